"""Tasks of the user's own data: ``own_tasks("folder:pets")`` -> pets/zeroshot, with a train folder the learned families too.
``seg:IMAGES,MASKS,CLASSES.json`` gives those of segmentation.

``folder:PATH#knn`` takes one family. Nothing is registered: such tasks belong to the command that names them.
"""

from __future__ import annotations

from silc_bench.datasets.own import OwnData, parse
from silc_bench.datasets.own_masks import OwnMasks, read_classes
from silc_bench.errors import UserError, unknown_name
from silc_bench.registry import Task
from tasks import segmented
from tasks.fewshot import FewShot, FewShotLogistic
from tasks.knn import Knn
from tasks.linear import Linear
from tasks.prompts import Prompts, named_prompts
from tasks.retrieval import Retrieval
from tasks.sources import OwnSource
from tasks.zeroshot import ZeroShot

FAMILIES = ("zeroshot", "fewshot", "fewshot_logistic", "linear", "knn", "retrieval")


def own_tasks(word: str) -> list[Task] | None:
    """The tasks that "folder:", "captions:", "wds:" and "seg:" words name, None for any other word.

    Raises:
        UserError: nothing is there, or the data does not allow the family.
    """
    data, _, family = word.rpartition("#")
    if not data:
        data, family = word, ""
    own = parse(data)
    if own is None:
        return None
    known = segmented.families() if isinstance(own, OwnMasks) else FAMILIES
    if family and family not in known:
        raise unknown_name(f"family in {word}: it", family, known)
    tasks = _segmentation(own) if isinstance(own, OwnMasks) else _tasks(own)
    chosen = [task for task in tasks if family in ("", task.name.split("/")[1])]
    if not chosen:
        allowed = ", ".join(task.name.split("/")[1] for task in tasks)
        can_learn = isinstance(own, OwnMasks) or own.kind != "captions"
        lacks = " without a folder train/" if can_learn and "train" not in own.splits() else ""
        lacks = " without a background among its classes" if family == "discovery" else lacks
        raise UserError(f"{own.word} does not allow {family}{lacks}; it allows {allowed}")
    return chosen


def _segmentation(own: OwnMasks) -> list[Task]:
    sources = {split: OwnSource(own, split) for split in own.splits()}
    classes = read_classes(own.classes)
    return segmented.segmentation_tasks(own.name, sources, classes.rule.has_background, classes.words)


def _tasks(own: OwnData) -> list[Task]:
    splits = own.splits()
    sources = {split: OwnSource(own, split) for split in splits}
    test = {"test": sources["test"]}
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
