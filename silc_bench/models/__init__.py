"""Checkpoints: what an evaluation asks of a model (``interface``), and how a spec becomes one
(``load``).

Whatever measures a model imports ``interface``, ``load``, ``preprocessing``, ``windows`` and
``patch_features``; adapters and weights are reached through ``load``.
"""
