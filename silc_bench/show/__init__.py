"""What a model sees: classes, maps and patch features drawn on images.

The command line imports ``look``, ``colors`` and ``sheet``; nothing else needs them.
"""
