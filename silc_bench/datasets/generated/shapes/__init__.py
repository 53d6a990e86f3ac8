"""Generated scenes of coloured shapes, with captions and masks, for the demo and the tests.

Tasks import ``dataset``; the trainer imports ``scenes``, ``captions`` and ``drawing``.
"""
