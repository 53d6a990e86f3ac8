"""How zero-shot segmentation is done under a protocol's name: view, method, words, and what is called background.

Flow: ``rule_of("sclip", "cityscapes")`` -> Rule; a ``ZeroShotSegmentation`` holds one, ``tasks.protocols`` puts another in its
place. Each number is read from the authors' code, at the commit that is named:

- tcl (Cha et al., 2212.00785; khanrc/tcl e643d68, segmentation/configs): shorter side 448, windows of 448 every 224; the nine
  templates that it calls custom. Where a set has a background, that is a pixel whose best cosine lies below a threshold; theirs
  (0.4) is one of a sigmoid that TCL learned, so here it is swept.
- sclip (Wang et al., 2312.01597; wangf3014/SCLIP 57fa9aa, configs): shorter side 336, Cityscapes 560, COCO-Stuff 448; windows
  of 224 every 112; OpenAI's 80 templates. Background has words of its own, and is what lies below a probability of 0.1.
- naclip (Hajimiri et al., 2404.08181; sinahmr/NACLIP cbb720d): as sclip, and the softmax scale is 40 on each set.
- clearclip (Lan et al., 2407.12442; mc-lan/ClearCLIP fd05ce4): shorter side 448, windows of 448 every 224, on Cityscapes 224
  every 224; scale 50; each background its own threshold.
- native: the model's own size and interpolation (silc_bench.dense), the value path, words and templates of the set; background
  below a swept probability at SCLIP's scale.

Left out of all of them, and said in the protocol: refinement by colour (PAMR, a CRF), TCL's mixing with key features and
SCLIP's rule on VOC-21 that drops classes of small area. mmsegmentation resizes without antialiasing; Pillow's bilinear has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from silc_bench.errors import unknown_name
from silc_bench.windows import View
from tasks.prompts import OPENAI_7, Prompts, named_prompts

# khanrc/tcl, datasets/templates.py: "custom". Its seven are not quite CLIP's: one article differs.
TCL_TEMPLATES = (
    *(template.replace("a bad photo of the {c}", "a bad photo of a {c}") for template in OPENAI_7),
    "a photo of many {c}.",
    "a photo of {c}s.",
)


@dataclass(frozen=True)
class Rule:
    """One protocol on one set."""

    protocol: str
    view: View | None = None  # None: the model's own
    method: str = "maskclip"  # of silc_bench.models.towers
    scale: float | None = 40.0  # the confidence is softmax(scale x cosine) over all words; None: the cosine itself
    threshold: float | None = None  # of the confidence, below which a pixel is background; None: swept on pictures held out
    has_background_words: bool = False  # whether label 0 is asked for in words too
    prompts: Prompts | None = None  # None: the task's own

    def as_dict(self) -> dict[str, Any]:
        """What it decides beside view and prompts, as JSON, for the protocol."""
        confidence = "largest cosine" if self.scale is None else f"softmax of {self.scale:g} x cosine over all words"
        return {
            "method": self.method,
            "words": self.protocol,
            "synonyms": "the largest of a class's words",
            "logits": "cosine, bilinear in each window, mean over windows, bilinear to the mask",
            "background_if": f"{confidence} below {'a swept threshold' if self.threshold is None else self.threshold}",
            "background_words": self.has_background_words,
            "left_out": "refinement of masks",
        }


@dataclass(frozen=True)
class _Family:
    """A protocol on all sets; by set where it makes a difference."""

    method: str
    prompts: Prompts
    view: View
    views: Mapping[str, View] = field(default_factory=dict)
    scale: float | None = 40.0
    scales: Mapping[str, float] = field(default_factory=dict)
    thresholds: Mapping[str, float] = field(default_factory=dict)
    has_background_words: bool = True


def protocol_names() -> tuple[str, ...]:
    """Those that say how pixels are named; "native" is every task's own."""
    return tuple(_families())


def rule_of(protocol: str, dataset: str) -> Rule:
    """Raises UserError for an unknown protocol."""
    families = _families()
    if protocol not in families:
        raise unknown_name("protocol of segmentation", protocol, families)
    family = families[protocol]
    return Rule(
        protocol,
        family.views.get(dataset, family.view),
        family.method,
        family.scales.get(dataset, family.scale) if family.scale is not None else None,
        family.thresholds.get(dataset),
        family.has_background_words,
        family.prompts,
    )


def _families() -> Mapping[str, _Family]:
    openai80 = named_prompts()["openai80"]
    small = View(336, 224, 112, "bilinear")
    sizes = {"cityscapes": View(560, 224, 112, "bilinear"), "cocostuff": View(448, 224, 112, "bilinear")}
    large = View(448, 448, 224, "bilinear")
    tenth = {"voc21": 0.1, "pc60": 0.1, "coco_object": 0.1}
    return MappingProxyType(
        {
            "tcl": _Family("maskclip", Prompts("tcl", TCL_TEMPLATES), large, scale=None, has_background_words=False),
            "sclip": _Family(
                *("sclip", openai80, small, sizes),
                scales={"voc21": 65.0, "pc60": 50.0, "coco_object": 50.0},
                thresholds=tenth,
            ),
            "naclip": _Family("naclip", openai80, small, sizes, thresholds=tenth),
            "clearclip": _Family(
                *("clearclip", openai80, large, {"cityscapes": View(448, 224, 224, "bilinear")}),
                scale=50.0,
                thresholds={"voc21": 0.5, "pc60": 0.15, "coco_object": 0.4},
            ),
        }
    )
