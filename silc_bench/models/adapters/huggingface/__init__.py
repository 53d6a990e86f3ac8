"""Checkpoints of transformers: CLIP, SigLIP, SigLIP 2, and their kin.

``model`` is what ``silc_bench.models.load`` imports; ``files``, ``text``, ``towers`` and
``naflex`` serve it, and ``text`` and ``towers`` serve big_vision too.
"""
