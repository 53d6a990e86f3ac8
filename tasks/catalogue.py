"""Which dataset is measured by which family, with the prompts that OpenAI wrote for it.

Named sets are registered here (shapes and cifar100 in the file of each family) and read from the
data root: layouts and counts stand in docs/datasets.md. A set more is a line in one of the tables
below, beside its lines in `silc_bench.datasets`.

The user's own data is measured by the same families, and nothing of it is registered: such tasks
belong to the command that names them. ``own_tasks("folder:pets")`` -> pets/zeroshot, with a train
folder the learned families too; ``seg:IMAGES,MASKS,CLASSES.json`` gives those of segmentation;
``folder:PATH#knn`` takes one family.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from silc_bench.datasets.own_data import OwnData, OwnMasks, parse, read_classes
from silc_bench.datasets.public.mask_sets import rule_of
from silc_bench.errors import UserError, unknown_name
from silc_bench.evaluation.prompts import Prompts, named_prompts, openai_templates
from silc_bench.task import Task, register
from silc_bench.tasks.classification.fewshot import FewShot, FewShotLogistic
from silc_bench.tasks.classification.knn import Knn
from silc_bench.tasks.classification.linear import Linear
from silc_bench.tasks.classification.zeroshot import ZeroShot
from silc_bench.tasks.dense.correspondence import Correspondence
from silc_bench.tasks.dense.discovery import Discovery
from silc_bench.tasks.dense.segmentation_probes import (
    KnnSegmentation,
    LinearSegmentation,
    SgdSegmentation,
)
from silc_bench.tasks.dense.segmentation_zeroshot import ZeroShotSegmentation
from silc_bench.tasks.retrieval import Retrieval
from silc_bench.tasks.sources import NamedSource, OwnSource, Source

if TYPE_CHECKING:
    from silc_bench.datasets.dataset import ImageDataset

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
FAMILIES = ("zeroshot", "fewshot", "fewshot_logistic", "linear", "knn", "retrieval")
for _name, _prompts in ZEROSHOT.items():
    register(
        ZeroShot(
            name=f"{_name}/zeroshot",
            needs_data_root=True,
            sources={"test": NamedSource(_name, "test")},
            prompts=_prompts,
        )
    )

for _name in LEARNED:
    _sources = {split: NamedSource(_name, split) for split in ("train", "test")}
    register(FewShot(name=f"{_name}/fewshot", needs_data_root=True, sources=_sources))
    register(
        FewShotLogistic(name=f"{_name}/fewshot_logistic", needs_data_root=True, sources=_sources)
    )
    register(Linear(name=f"{_name}/linear", needs_data_root=True, sources=_sources))
    register(Knn(name=f"{_name}/knn", needs_data_root=True, sources=_sources))

for _name in RETRIEVED:
    register(
        Retrieval(
            name=f"{_name}/retrieval",
            needs_data_root=True,
            sources={"test": NamedSource(_name, "test")},
        )
    )


def segmentation_tasks(
    name: str,
    sources: Mapping[str, Source],
    has_background: bool,
    words: tuple[tuple[str, ...], ...] | None = None,
    needs_data_root: bool = False,
) -> list[Task]:
    """The tasks of dense sets: what needs "test" alone, and with "train" also what is learned.

    Object discovery is among them where the first label is a background.

    Args:
        words: of each label, asked for instead of its name.
    """
    prompts = named_prompts()["openai80"]
    home: dict[str, Any] = {"needs_data_root": needs_data_root}
    test = {"test": sources["test"]}

    # zero-shot chooses a background's threshold on "train" where there is one
    tasks: list[Task] = [
        ZeroShotSegmentation(
            name=f"{name}/segmentation_zeroshot",
            sources=sources,
            prompts=prompts,
            words=words,
            **home,
        ),
        Correspondence(name=f"{name}/correspondence", sources=test, **home),
    ]

    # without a background nothing tells an object from the rest
    if has_background:
        tasks.append(Discovery(name=f"{name}/discovery", sources=test, **home))
    if "train" in sources:
        tasks += [
            LinearSegmentation(name=f"{name}/segmentation_linear", sources=sources, **home),
            SgdSegmentation(name=f"{name}/segmentation_sgd", sources=sources, **home),
            KnnSegmentation(name=f"{name}/segmentation_knn", sources=sources, **home),
        ]
    return tasks


for _name, _splits in SEGMENTED.items():
    _sources = {split: NamedSource(_name, split) for split in _splits}
    _has_background = rule_of(_name, "labels").has_background
    for _task in segmentation_tasks(_name, _sources, _has_background, needs_data_root=True):
        register(_task)


def own_tasks(word: str) -> list[Task] | None:
    """The tasks that "folder:", "captions:", "wds:" and "seg:" words name, None for any other word.

    Raises:
        UserError: nothing is there, or the data does not allow the family.
    """
    # the last "#", as a folder's name may hold one too
    data, _, family = word.rpartition("#")
    if not data:
        data, family = word, ""
    own = parse(data)
    if own is None:
        return None

    known = families() if isinstance(own, OwnMasks) else FAMILIES
    if family and family not in known:
        raise unknown_name(f"family in {word}: it", family, known)
    tasks = _segmentation(own) if isinstance(own, OwnMasks) else _tasks(own)
    chosen = [task for task in tasks if family in ("", task.name.split("/")[1])]

    if not chosen:
        allowed = ", ".join(task.name.split("/")[1] for task in tasks)
        can_learn = isinstance(own, OwnMasks) or own.kind != "captions"
        lacks = ""
        if can_learn and "train" not in own.splits():
            lacks = " without a folder train/"
        if family == "discovery":
            lacks = " without a background among its classes"
        raise UserError(f"{own.word} does not allow {family}{lacks}; it allows {allowed}")
    return chosen


def _segmentation(own: OwnMasks) -> list[Task]:
    sources = {split: OwnSource(own, split) for split in own.splits()}
    classes = read_classes(own.classes)
    return segmentation_tasks(own.name, sources, classes.rule.has_background, classes.words)


def _tasks(own: OwnData) -> list[Task]:
    splits = own.splits()
    sources = {split: OwnSource(own, split) for split in splits}
    test = {"test": sources["test"]}

    # captions, not labels: nothing but retrieval can be asked
    if not own.has_labels():
        return [Retrieval(name=f"{own.name}/retrieval", sources=test)]

    templates = own.templates()
    prompts = Prompts("own", templates) if templates else named_prompts()["single"]
    tasks: list[Task] = [ZeroShot(name=f"{own.name}/zeroshot", sources=test, prompts=prompts)]

    if "train" in splits:
        tasks.append(FewShot(name=f"{own.name}/fewshot", sources=sources))
        tasks.append(FewShotLogistic(name=f"{own.name}/fewshot_logistic", sources=sources))
        tasks.append(Linear(name=f"{own.name}/linear", sources=sources))
        tasks.append(Knn(name=f"{own.name}/knn", sources=sources))
    return tasks


def families() -> tuple[str, ...]:
    """The families that measure images with masks, by name."""

    def nothing(data_root: Path | None, limit: int | None) -> ImageDataset:
        raise AssertionError("never loaded")

    # asked of the tasks themselves: a list beside them would fall behind
    tasks = segmentation_tasks("any", {"test": nothing, "train": nothing}, True)
    return tuple(task.name.split("/")[1] for task in tasks)
