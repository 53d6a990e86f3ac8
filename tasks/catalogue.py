"""Which dataset is measured by which family: ``FAMILIES``, and ``measure`` for any data.

A family is a file of this folder and a line in ``CLASSES``. A named set says itself which families
measure it (``SETS`` of `silc_bench.datasets.public.load`).

The user's own data is measured by the same families, and nothing of it is registered: such tasks
belong to the command that names them. ``own_tasks("folder:pets")`` -> pets/zeroshot, with a train
folder the learned families too; ``seg:IMAGES,MASKS,CLASSES.json`` gives those of segmentation;
``folder:PATH#knn`` takes one family.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable

from silc_bench.datasets import own_data
from silc_bench.datasets.own_data import OwnData, OwnMasks, parse, read_classes
from silc_bench.datasets.public.load import SETS
from silc_bench.errors import UserError, unknown_name
from silc_bench.evaluation.prompts import Prompts, prompts_of
from silc_bench.task import Task, register
from silc_bench.tasks.sources import (
    NamedSource,
    OwnSource,
    SourcedTask,
    TaskData,
    places,
    shapes,
)

# Family -> its class, below silc_bench.tasks; a name, so that a new family is one line.
CLASSES = {
    "zeroshot": "classification.zeroshot:ZeroShot",
    "fewshot": "classification.fewshot:FewShot",
    "fewshot_logistic": "classification.fewshot:FewShotLogistic",
    "linear": "classification.linear:Linear",
    "knn": "classification.knn:Knn",
    "retrieval": "retrieval:Retrieval",
    "segmentation_zeroshot": "dense.segmentation_zeroshot:ZeroShotSegmentation",
    "correspondence": "dense.correspondence:Correspondence",
    "discovery": "dense.discovery:Discovery",
    "segmentation_linear": "dense.segmentation_probes:LinearSegmentation",
    "segmentation_sgd": "dense.segmentation_probes:SgdSegmentation",
    "segmentation_knn": "dense.segmentation_probes:KnnSegmentation",
}


def _class_at(place: str) -> type[SourcedTask]:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(f"silc_bench.tasks.{module}"), name)


FAMILIES = {family: _class_at(place) for family, place in CLASSES.items()}


def measure(data: TaskData, families: Iterable[str]) -> list[Task]:
    """The tasks of these families on ``data``."""
    return [FAMILIES[family].of(data, family) for family in families]


def allowed(holds: set[str]) -> tuple[str, ...]:
    """The families for data that holds these: "labels", "train" ... (``SourcedTask.needs``)."""
    return tuple(family for family, task in FAMILIES.items() if task.needs <= holds)


def _registered() -> Iterable[Task]:
    """The tasks of the named sets, and of the generated scenes."""
    for name, entry in SETS.items():
        # a train split that no family learns from is not asked for
        learns = any("train" in FAMILIES[family].needs for family in entry.families)
        splits = ("train", "test") if learns else ("test",)
        sources = {split: NamedSource(name, split) for split in splits}
        prompts = prompts_of(entry.prompts or "single")
        data = TaskData(name, sources, prompts, needs_data_root=True)
        yield from measure(data, entry.families)

    prompts = prompts_of("shapes")
    scenes = {"train": shapes("train", 2000), "test": shapes("test", 1000)}
    families = allowed({"labels", "captions", "train"})
    yield from measure(TaskData("shapes", scenes, prompts), families)

    # colour and shape pairs that no training caption holds, to be told from all 64
    unseen = TaskData("shapes", {"test": shapes("unseen", 1000)}, prompts)
    yield FAMILIES["zeroshot"].of(unseen, "zeroshot_unseen")

    scenes = {"train": shapes("train", 1000), "test": shapes("test", 1000)}
    prompts = prompts_of("shapes_segmentation")
    masked = TaskData("shapes", scenes, prompts, scores_background=False)
    yield from measure(masked, allowed({"masks", "train", "background"}))

    # the same scenes with masks by colour; what is an object there is the same, so no discovery
    scenes = {
        "train": shapes("train", 1000, are_colours=True),
        "test": shapes("test", 1000, are_colours=True),
    }
    prompts = prompts_of("shapes_colours_segmentation")
    masked = TaskData("shapes_colours", scenes, prompts, scores_background=False)
    yield from measure(masked, allowed({"masks", "train"}))

    yield from _of_places("places", are_things=False)
    yield from _of_places("places_things", are_things=True)


def _of_places(name: str, are_things: bool) -> Iterable[Task]:
    """Of the scenes with structure: by place with things and stuff, or by thing with things."""
    labelled = {
        "train": places("train", 2000, are_things),
        "test": places("test", 1000, are_things),
    }
    holds = {"labels", "train"} | ({"captions"} if name == "places" else set())
    yield from measure(TaskData(name, labelled, prompts_of(name)), allowed(holds))

    masked = {"train": places("train", 1000, are_things), "test": places("test", 500, are_things)}
    prompts = prompts_of("places_segmentation")
    data = TaskData(name, masked, prompts, scores_background=not are_things)
    holds = {"masks", "train"} | ({"background"} if are_things else set())
    yield from measure(data, allowed(holds))


for _task in _registered():
    register(_task)


def own_tasks(pattern: str) -> list[Task] | None:
    """The tasks that "folder:", "captions:", "wds:" and "seg:" name, None for any other pattern.

    Raises:
        UserError: nothing is there, or the data does not allow the family.
    """
    place, family = split_family(pattern)
    own = parse(place)
    if own is None:
        return None
    if family and family not in FAMILIES:
        raise unknown_name("family", family, FAMILIES, about=pattern)

    data, holds = _own_data(own)
    families = allowed(holds)
    if family and family not in families:
        # what is read decides which families are possible at all: only then a lack is the reason
        lacks = FAMILIES[family].needs - holds
        problem = f"does not allow {family}"
        if lacks == {"train"}:
            problem += " without a folder train/"
        if lacks == {"background"}:
            problem += " without a background among its classes"
        raise UserError(problem, about=own.word, fix=f"it allows {', '.join(families)}")
    return measure(data, [family] if family else families)


def split_family(pattern: str) -> tuple[str, str]:
    """(word, family) of "folder:PATH#family"; the family is "" where none is named.

    A "#" in the name of what is there separates nothing.
    """
    word, sharp, family = pattern.rpartition("#")
    return (word, family) if sharp and word and not own_data.is_there(pattern) else (pattern, "")


def is_there(pattern: str) -> bool:
    """Whether it is the user's own data, with or without a family, and its files are there."""
    word, family = split_family(pattern)
    return family in ("", *FAMILIES) and own_data.is_there(word)


def _own_data(own: OwnData | OwnMasks) -> tuple[TaskData, set[str]]:
    """The user's data, and what it holds."""
    sources = {split: OwnSource(own, split) for split in own.splits()}
    if isinstance(own, OwnMasks):
        classes = read_classes(own.classes)
        holds = {"masks", *sources}
        if classes.rule.has_background:
            holds.add("background")
        return TaskData(own.name, sources, prompts_of("openai80"), classes.words), holds

    templates = own.templates()
    prompts = Prompts("own", templates) if templates else prompts_of("single")
    # captions, not labels: nothing but retrieval can be asked
    kind = "labels" if own.has_labels() else "captions"
    return TaskData(own.name, sources, prompts), {kind, *sources}
