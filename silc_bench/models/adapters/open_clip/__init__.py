"""Checkpoints of open_clip: its own tags, files of weights and folders.

``model`` is what ``silc_bench.models.load`` imports; ``checkpoints`` and ``towers`` serve it.
"""
