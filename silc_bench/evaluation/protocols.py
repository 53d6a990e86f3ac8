"""Named protocols: the choices that papers make silently, each set under one name and version.

Flow: ``choose("bigvision")`` -> NamedProtocol; ``task.under(protocol)`` is the task asked in its
words, and ``.pipeline(model, task)`` what is done to the images instead of the model's own
preprocessing.
The rule of names: a task that a protocol leaves as it is is called native, whatever was asked for,
so that nothing is measured twice under two names. Under openai80 kNN is
native, which asks in no words, and so is ImageNet's zero-shot, whose own prompts are those 80.

- native: the checkpoint's own preprocessing, the prompts that belong to the dataset.
- openai80, openai7, single: CLIP's 80 ImageNet templates, the 7 of them that a greedy search kept,
  or "a photo of a {c}." alone, on every dataset (CLIP, notebooks/Prompt_Engineering_for_ImageNet).
  Images as in native.
- bigvision: the 80 templates, canonicalised as a whole (lower case, no punctuation); images with
  the shorter side resized to size / 0.875, then the centre crop, in the model's own interpolation
  and normalisation, for classification and its probes (big_vision, evaluators of image_text and
  fewshot_lsr). Retrieval keeps the model's own preprocessing, as there.
- tcl, sclip, naclip, clearclip: of zero-shot segmentation (below); another dense method in place of
  the protocol's gives it another name, "tcl+sclip". What else reads patches
  (silc_bench.tasks.dense.scores) sees the same windows: encoded once; "tokens:4" gives it those of
  the last four blocks.

A ``Rule`` says how zero-shot segmentation is done under a protocol's name: view, method, words, and
what is called background. Flow: ``rule_of("sclip", "cityscapes")`` -> Rule; a
``ZeroShotSegmentation`` holds one, and its ``under`` puts another in its place. Each number is read
from the authors' code, at the commit that is named:
- tcl (Cha et al., 2212.00785; khanrc/tcl e643d68, segmentation/configs): shorter side 448, windows
  of 448 every 224; the nine templates that it calls custom. Where a set has a background, that is a
  pixel whose best cosine lies below a threshold; theirs (0.4) is one of a sigmoid that TCL learned,
  so here it is swept.
- sclip (Wang et al., 2312.01597; wangf3014/SCLIP 57fa9aa, configs): shorter side 336, Cityscapes
  560, COCO-Stuff 448; windows of 224 every 112; OpenAI's 80 templates. Background has words of its
  own, and is what lies below a probability of 0.1.
- naclip (Hajimiri et al., 2404.08181; sinahmr/NACLIP cbb720d): as sclip, and the softmax scale is
  40 on each set.
- clearclip (Lan et al., 2407.12442; mc-lan/ClearCLIP fd05ce4): shorter side 448, windows of 448
  every 224, on Cityscapes 224 every 224; scale 50; each background its own threshold.
- native: the model's own size and interpolation (silc_bench.evaluation.dense_features), the value
  path, words and templates of the set; background below a swept probability at SCLIP's scale.

Left out of all of them, as their protocols state: refinement by colour (PAMR, a CRF), TCL's mixing
with key features and SCLIP's rule on VOC-21 that drops classes of small area. mmsegmentation
resizes without antialiasing; Pillow's bilinear has it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from silc_bench.errors import UserError, unknown_name
from silc_bench.evaluation.prompts import Prompts, prompts_of
from silc_bench.models.interface import JOINT
from silc_bench.models.windows import View
from silc_bench.results.question import MODELS_OWN

if TYPE_CHECKING:
    from silc_bench.models.interface import ImageModel
    from silc_bench.models.preprocessing import ImagePipeline
    from silc_bench.task import Task

CROP_FRACTION = 0.875
MODELS_OWN_WINDOWS = (
    "shorter side to the model's size, aspect kept, windows of that size that half overlap"
)
CROPPED_GROUPS = ("zero-shot", "few-shot", "linear", "knn")


@dataclass(frozen=True)
class NamedProtocol:
    """The choices of one name: words, images and dense methods."""

    name: str
    version: int = 1  # raised when the name comes to mean something else
    prompts: Prompts | None = None  # None: the task's own
    is_cropped: bool = False  # classification sees the centre of a larger image
    # a protocol of ``rule_of``; None: the task's own rule
    segmentation: str | None = None
    dense_method: str | None = None  # of zero-shot segmentation, instead of the rule's
    # of what learns from patches or compares them, instead of the task's
    probe_method: str | None = None

    def pipeline(self, model: ImageModel, task: Task) -> ImagePipeline | None:
        """What is done to the images instead of the model's own preprocessing; None: that.

        Raises:
            UserError: the model's preprocessing has no fixed size to crop to.
        """
        if not self.crops(task):
            return None

        # imported here: it brings torch, which a listing of protocols must not wait for
        from silc_bench.models.preprocessing import ImagePipeline

        own = model.pipeline
        if not isinstance(own, ImagePipeline):
            raise UserError(
                f"protocol {self.name} crops to a fixed size, which the model has not",
                about=model.name,
                fix="use --protocol native",
            )
        resize_size = int(own.size / CROP_FRACTION)
        return replace(own, resize="shortest", resize_size=resize_size, crop="center")

    def crops(self, task: Task) -> bool:
        """Whether ``task`` sees the centre of a larger image."""
        return self.is_cropped and task.group in CROPPED_GROUPS

    def changes(self, task: Task) -> bool:
        """Whether ``task`` differs from the native one, in its words, its images or its methods.

        It is a question about the task alone: a model that crops like this by itself is asked the
        same as all others.
        """
        asked = task.under(self)
        return self.crops(task) or (asked.protocol(), asked.view) != (task.protocol(), task.view)

    def images(self, task: Task) -> str | dict[str, Any]:
        """What is done to the images of ``task`` (``under`` this protocol), for any model."""
        if self.crops(task):
            return {
                "resize": f"shorter side to the model's size / {CROP_FRACTION:g}",
                "crop": "center, of the model's size",
                "otherwise": MODELS_OWN,
            }
        if "dense" not in task.requires:
            return MODELS_OWN
        if task.view is None:
            return MODELS_OWN_WINDOWS
        view = task.view.as_dict()
        return {**view, "interpolation": view["interpolation"] or "the model's own"}


NATIVE = NamedProtocol("native")


def choose(
    name: str, prompts: Prompts | None = None, dense_method: str | None = None
) -> NamedProtocol:
    """A protocol by name, or one of the user's own making from it.

    Args:
        prompts: instead of the protocol's; the name then says whose they are.
        dense_method: of zero-shot segmentation, instead of the protocol's; or "tokens:N", and
            whatever learns from patches or compares them reads those of the last N blocks side by
            side.

    Raises:
        UserError: an unknown name.
    """
    known = {protocol.name: protocol for protocol in _protocols()}
    if name not in known:
        raise unknown_name("protocol", name, known, about="--protocol")

    # every change goes into the name: two records of one name must mean one thing
    chosen = known[name]
    if prompts is not None:
        chosen = replace(chosen, name=f"{name}+{prompts.name}", prompts=prompts)

    if dense_method is not None:
        # "tokens:1" is left out: it is what the probes read anyway, under a second name
        is_joint = dense_method in JOINT
        if not is_joint and not re.fullmatch(r"tokens:([2-9]|[1-9]\d+)", dense_method):
            methods = (*JOINT, "tokens:2", "tokens:4")
            raise unknown_name("dense method", dense_method, methods, about="--dense-method")

        chosen = replace(
            chosen,
            name=f"{chosen.name}+{dense_method}",
            dense_method=dense_method if is_joint else None,
            probe_method=None if is_joint else dense_method,
        )
    return chosen


def _protocols() -> tuple[NamedProtocol, ...]:
    """All of them, made when they are asked for: their templates are read from files."""
    canonical = replace(prompts_of("openai80"), text_cleaning="bigvision")
    sets = ("openai80", "openai7", "single")
    return (
        NATIVE,
        *(NamedProtocol(name, prompts=prompts_of(name)) for name in sets),
        NamedProtocol("bigvision", prompts=canonical, is_cropped=True),
        *(NamedProtocol(name, segmentation=name) for name in protocol_names()),
    )


@dataclass(frozen=True)
class Rule:
    """One protocol on one set."""

    protocol: str
    view: View | None = None  # None: the model's own
    method: str = "maskclip"  # of silc_bench.models.patch_features
    # the confidence is softmax(scale x cosine) over all words; None: the cosine itself
    scale: float | None = 40.0
    # of the confidence, below which a pixel is background; None: swept on images held out
    threshold: float | None = None
    has_background_words: bool = False  # whether label 0 is asked for in words too
    prompts: Prompts | None = None  # None: the task's own

    def as_dict(self) -> dict[str, Any]:
        """What it decides beside view and prompts, as JSON, for the protocol."""
        # hashed with the record's protocol: another wording is another protocol
        confidence = "largest cosine"
        if self.scale is not None:
            confidence = f"softmax of {self.scale:g} x cosine over all words"
        limit = "a swept threshold" if self.threshold is None else self.threshold

        return {
            "method": self.method,
            "words": self.protocol,
            "synonyms": "the largest of a class's words",
            "logits": "cosine, bilinear in each window, mean over windows, bilinear to the mask",
            "background_if": f"{confidence} below {limit}",
            "background_words": self.has_background_words,
            "left_out": "refinement of masks",
        }


def protocol_names() -> tuple[str, ...]:
    """Those that say how pixels are named; "native" is every task's own."""
    return tuple(_rules())


def rule_of(protocol: str, dataset: str) -> Rule:
    """The rule of a protocol, one of ``protocol_names``, on a set."""
    rule, by_set = _rules()[protocol]
    return replace(rule, **by_set.get(dataset, {}))


def _rules() -> dict[str, tuple[Rule, dict[str, dict[str, Any]]]]:
    """The numbers of the authors' code, and by set what differs there.

    The module's docstring names the commits.
    """
    openai80 = prompts_of("openai80")

    # View(shorter side, window, stride), in pixels
    small = View(336, 224, 112, "bilinear")
    large = View(448, 448, 224, "bilinear")
    views = {
        "cityscapes": {"view": View(560, 224, 112, "bilinear")},
        "cocostuff": {"view": View(448, 224, 112, "bilinear")},
    }

    # only sets with a background need a threshold
    scales = {"voc21": 65.0, "pc60": 50.0, "coco_object": 50.0}
    sclip = {name: {"scale": scale, "threshold": 0.1} for name, scale in scales.items()}
    return {
        "tcl": (Rule("tcl", large, "maskclip", None, prompts=prompts_of("tcl")), {}),
        "sclip": (Rule("sclip", small, "sclip", 40.0, None, True, openai80), views | sclip),
        "naclip": (
            Rule("naclip", small, "naclip", 40.0, None, True, openai80),
            views | {name: {"threshold": 0.1} for name in scales},
        ),
        "clearclip": (
            Rule("clearclip", large, "clearclip", 50.0, None, True, openai80),
            {
                "cityscapes": {"view": View(448, 224, 224, "bilinear")},
                "voc21": {"threshold": 0.5},
                "pc60": {"threshold": 0.15},
                "coco_object": {"threshold": 0.4},
            },
        ),
    }
