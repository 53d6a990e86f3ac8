"""Which named sets are measured by which families, with the prompts that OpenAI wrote for them.

Everything here is read from the data root: layouts and counts stand in docs/datasets.md. A set more is a line in one of the
tables below, beside its lines in `silc_bench.datasets`.
"""

from __future__ import annotations

from silc_bench.datasets.mask_sets import rule_of
from silc_bench.registry import register
from tasks.fewshot import FewShot, FewShotLogistic
from tasks.knn import Knn
from tasks.linear import Linear
from tasks.prompts import Prompts, named_prompts
from tasks.retrieval import Retrieval
from tasks.segmented import segmentation_tasks
from tasks.sources import NamedSource, openai_templates
from tasks.zeroshot import ZeroShot

CIFAR10 = Prompts("openai_cifar10", openai_templates("cifar10"))
IMAGENET = named_prompts()["openai80"]

ZEROSHOT = {
    "cifar10": CIFAR10,
    "imagenet1k": IMAGENET,
    "imagenet_v2": IMAGENET,
    "imagenet_a": IMAGENET,
    "imagenet_r": IMAGENET,
    "imagenet_sketch": IMAGENET,
    "objectnet": IMAGENET,
}
LEARNED = ("cifar10", "imagenet1k")  # with a train split
RETRIEVED = ("coco", "flickr30k")
SEGMENTED = {  # and the splits that are measured
    "voc20": ("test", "train"),
    "voc21": ("test", "train"),
    "pc59": ("test", "train"),
    "pc60": ("test", "train"),
    "ade20k150": ("test", "train"),
    "ade20k847": ("test",),  # asked for in words; nobody learns it from frozen features
    "cityscapes": ("test", "train"),
    "cocostuff": ("test", "train"),
    "coco_object": ("test",),
    "camvid": ("test", "train"),
    "camvid_mini": ("test", "train"),
}

for _name, _prompts in ZEROSHOT.items():
    register(
        ZeroShot(name=f"{_name}/zeroshot", needs_data_root=True, sources={"test": NamedSource(_name, "test")}, prompts=_prompts)
    )
for _name in LEARNED:
    _sources = {split: NamedSource(_name, split) for split in ("train", "test")}
    register(FewShot(name=f"{_name}/fewshot", needs_data_root=True, sources=_sources))
    register(FewShotLogistic(name=f"{_name}/fewshot_logistic", needs_data_root=True, sources=_sources))
    register(Linear(name=f"{_name}/linear", needs_data_root=True, sources=_sources))
    register(Knn(name=f"{_name}/knn", needs_data_root=True, sources=_sources))
for _name in RETRIEVED:
    register(Retrieval(name=f"{_name}/retrieval", needs_data_root=True, sources={"test": NamedSource(_name, "test")}))
for _name, _splits in SEGMENTED.items():
    _sources = {split: NamedSource(_name, split) for split in _splits}
    for _task in segmentation_tasks(_name, _sources, rule_of(_name, "labels").has_background, needs_data_root=True):
        register(_task)
