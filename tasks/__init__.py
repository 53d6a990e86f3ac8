"""The measurements, one file a family; importing this package registers them all (no torch until one is scored).

A dataset more is one ``register(...)`` at the foot of each family's file that can use it, with a source from ``sources.py``.
"""

from tasks import fewshot, knn, linear, retrieval, segmentation, zeroshot

__all__ = ["fewshot", "knn", "linear", "retrieval", "segmentation", "zeroshot"]
