"""Named protocols: the choices that papers make silently, each set of them under one name and version.

Flow: ``choose("bigvision")`` -> NamedProtocol; ``.task(task)`` is the task asked in its words, and ``.pipeline(model, task)``
what is done to the pictures instead of the model's own preprocessing. The rule of names: a measurement whose words and
pictures are the native ones is called native, whatever was asked for, so that nothing is measured twice under two names.
Under openai80 kNN is native, which asks in no words, and so is ImageNet's zero-shot, whose own prompts are those 80.

- native: the checkpoint's own preprocessing, the prompts that belong to the dataset.
- openai80, openai7, single: CLIP's 80 ImageNet templates, the 7 of them that a greedy search kept, or "a photo of a {c}."
  alone, on every dataset (CLIP, notebooks/Prompt_Engineering_for_ImageNet). Pictures as in native.
- bigvision: the 80 templates, canonicalised as a whole (lower case, no punctuation); pictures with the shorter side resized to
  size / 0.875, then the centre crop, in the model's own interpolation and normalisation, for classification and
  its probes (big_vision, evaluators of image_text and fewshot_lsr). Retrieval keeps the model's own preprocessing, as there.
- tcl, sclip, naclip, clearclip: of zero-shot segmentation (tasks.segmentation_rules); another dense method in place of the
  protocol's gives it another name, "tcl+sclip". What else reads patches (tasks.dense) sees the same windows: encoded once;
  "tokens:4" gives it those of the last four blocks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from silc_bench.errors import UserError, unknown_name
from tasks.dense import CellsTask
from tasks.prompts import Prompts, asks_in_words, named_prompts, with_prompts
from tasks.segmentation_rules import protocol_names, rule_of
from tasks.segmentation_zeroshot import ZeroShotSegmentation

if TYPE_CHECKING:
    from silc_bench.models import ImageModel
    from silc_bench.models.images import ImagePipeline
    from silc_bench.registry import Task

AnyTask = TypeVar("AnyTask")
CROP_FRACTION = 0.875
CROPPED_GROUPS = ("zero-shot", "few-shot", "linear", "knn")


@dataclass(frozen=True)
class NamedProtocol:
    name: str
    version: int = 1  # raised when the name comes to mean something else
    prompts: Prompts | None = None  # None: the task's own
    is_cropped: bool = False  # classification sees the centre of a larger picture
    segmentation: str | None = None  # a protocol of tasks.segmentation_rules; None: the task's own rule
    dense_method: str | None = None  # of zero-shot segmentation, instead of the rule's
    probe_method: str | None = None  # of what learns from patches or compares them, instead of the task's

    def task(self, task: AnyTask) -> AnyTask:
        """The same task in this protocol's words; itself where it asks in none, or they are not for it."""
        if isinstance(task, ZeroShotSegmentation):
            return self._segmented(task)  # type: ignore[return-value]  # of the same type
        if isinstance(task, CellsTask) and (self.segmentation or self.probe_method):
            view = rule_of(self.segmentation, task.name.partition("/")[0]).view if self.segmentation else task.view
            return replace(task, view=view, method=self.probe_method or task.method)
        if self.prompts is None or not self._is_classification(task) or not asks_in_words(task):
            return task
        return with_prompts(task, self.prompts)

    def pipeline(self, model: ImageModel, task: Task) -> ImagePipeline | None:
        """What is done to the pictures instead of the model's own preprocessing; None: that.

        Raises:
            UserError: the model's preprocessing has no fixed size to crop to.
        """
        if not self.is_cropped or not self._is_classification(task):
            return None
        from silc_bench.models.images import ImagePipeline

        own = model.pipeline
        if not isinstance(own, ImagePipeline):
            raise UserError(f"protocol {self.name} crops to a fixed size, which {model.name} has not; use --protocol native")
        return replace(own, resize="shortest", resize_size=int(own.size / CROP_FRACTION), crop="center")

    def changes(self, model: ImageModel, task: Task) -> bool:
        """Whether a measurement of ``task`` on ``model`` differs from the native one, in its words or in its pictures."""
        pipeline = self.pipeline(model, task)
        sees_others = pipeline is not None and pipeline.as_dict() != model.image_protocol
        return sees_others or self.task(task).protocol() != task.protocol()

    def _segmented(self, task: ZeroShotSegmentation) -> ZeroShotSegmentation:
        rule, prompts = task.rule, task.prompts
        if self.segmentation is not None:
            rule = rule_of(self.segmentation, task.name.partition("/")[0])
            prompts = self.prompts or rule.prompts or prompts
        return replace(task, rule=replace(rule, method=self.dense_method or rule.method), prompts=prompts)

    @staticmethod
    def _is_classification(task: object) -> bool:
        return getattr(task, "group", None) in CROPPED_GROUPS


def choose(
    name: str, prompts: Prompts | None = None, average: str | None = None, dense_method: str | None = None
) -> NamedProtocol:
    """A protocol by name, or one of the user's own making from it.

    Args:
        prompts: instead of the protocol's; the name then says whose they are.
        average: over prompts, instead of the protocol's: "embeddings" or "logits".
        dense_method: of zero-shot segmentation, instead of the protocol's; or "tokens:N", and whatever learns from patches or
            compares them reads those of the last N blocks side by side.

    Raises:
        UserError: an unknown name, or a choice that the protocol leaves to the tasks.
    """
    known = {protocol.name: protocol for protocol in _protocols()}
    if name not in known:
        raise unknown_name("protocol", name, known)
    chosen = known[name]
    if prompts is not None:
        chosen = replace(chosen, name=f"{name}+{prompts.name}", prompts=replace(prompts, average=average or prompts.average))
    elif average is not None and average != "embeddings":
        if chosen.prompts is None:
            raise UserError(
                f"protocol {name!r} has no prompts of its own to average by {average}; name openai80, openai7 or single"
            )
        chosen = replace(chosen, name=f"{name}+{average}", prompts=replace(chosen.prompts, average=average))
    if dense_method is not None:
        from silc_bench.models.towers import JOINT

        is_joint = dense_method in JOINT
        if not is_joint and not re.fullmatch(r"tokens:([2-9]|[1-9]\d+)", dense_method):
            raise unknown_name("dense method", dense_method, (*JOINT, "tokens:2", "tokens:4"))
        chosen = replace(chosen, name=f"{chosen.name}+{dense_method}")
        chosen = replace(chosen, dense_method=dense_method) if is_joint else replace(chosen, probe_method=dense_method)
    return chosen


def _protocols() -> tuple[NamedProtocol, ...]:
    sets = named_prompts()
    canonical = replace(sets["openai80"], text_cleaning="bigvision")
    return (
        NamedProtocol("native"),
        *(NamedProtocol(name, prompts=sets[name]) for name in ("openai80", "openai7", "single")),
        NamedProtocol("bigvision", prompts=canonical, is_cropped=True),
        *(NamedProtocol(name, segmentation=name) for name in protocol_names()),
    )
