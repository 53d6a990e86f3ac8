"""Checkpoints: what an evaluation asks of a model, and how a spec string becomes a model.

Whatever measures a model imports ``interface``, ``load``, ``preprocessing``, ``windows`` and
``patch_features``; adapters and weights are reached through ``load``.
"""
