"""The measurements, one file a family; importing this package registers them all (no torch until one is scored).

What needs no files and CIFAR-100 is registered at the foot of each family's file; ``catalog.py`` registers every other named
set, and ``own_data.py`` makes tasks of the user's own data when a command names it.
"""

from tasks import (
    catalog,
    correspondence,
    discovery,
    fewshot,
    knn,
    linear,
    retrieval,
    segmentation_knn,
    segmentation_linear,
    segmentation_sgd,
    segmentation_zeroshot,
    zeroshot,
)

__all__ = [
    "catalog",
    "correspondence",
    "discovery",
    "fewshot",
    "knn",
    "linear",
    "retrieval",
    "segmentation_knn",
    "segmentation_linear",
    "segmentation_sgd",
    "segmentation_zeroshot",
    "zeroshot",
]
