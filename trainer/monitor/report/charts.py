"""The charts of the report: which numbers stand together, their units, scales and bounds.

A number of the log that no chart knows gets one of its own under "Others"; each task of the probes
gets one under "Probes".
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from silc_bench.trainer.monitor import bounds
from silc_bench.trainer.monitor.log import PROBE, STDERR, TEACHER


@dataclass(frozen=True)
class Bound:
    """A line in a chart: what is beyond it, ``side`` "above" or "below", is what ``words`` say."""

    value: float
    side: str
    words: str


@dataclass(frozen=True)
class Chart:
    name: str  # of the number in a row
    title: str
    unit: str
    meaning: str = ""
    is_log: bool = False
    ends: tuple[float, ...] = ()  # what the axis shows at least
    bounds: tuple[Bound, ...] = ()
    percent: bool = False  # a fraction, shown times 100
    teacher: str = ""  # name of the teacher's number, where ``name`` is the student's


NATS = "nats"
SHARE = "ratio"
SIZE = "norm"

_ENTROPY = Chart(
    "teacher_entropy",
    "Teacher's entropy",
    "ratio to ln K",
    "0 is one prototype, 1 is uniform; both are a collapse",
    ends=(0.0, 1.0),
    bounds=(
        Bound(bounds.UNIFORM, "above", "uniform: it teaches nothing"),
        Bound(bounds.CERTAIN, "below", "with one prototype in use: a collapse"),
        Bound(bounds.ONE_HOT, "below", "one-hot: certain of one prototype"),
    ),
)
_AT_RECIPE = Chart(
    "teacher_entropy_at_recipe",
    "Teacher's entropy at the recipe's temperature",
    "ratio to ln K",
    "the same at a teacher temperature of 0.04",
    ends=(0.0, 1.0),
    bounds=(Bound(bounds.UNIFORM, "above", "the outputs are alike"),),
)
_INFORMATION = Chart(
    "target_information",
    "What targets tell of their image",
    "ratio to ln of the images",
    "of what tells the images looked at apart: 0 is nothing, 1 is which image it is",
    ends=(0.0,),
    bounds=(Bound(bounds.TELLS_NOTHING, "below", "targets teach next to nothing"),),
)
_KL = Chart(
    "student_teacher_kl",
    "Student from teacher",
    NATS,
    "KL divergence, of the same global view",
)
_IN_USE = Chart(
    "prototypes_in_use",
    "Prototypes in use",
    "prototypes",
    "different winners among the images looked at",
    is_log=True,
    ends=(1.0,),
    bounds=(Bound(1.0, "below", "one prototype for all images"),),
)
_CENTER = Chart(
    "center_error",
    "Error of the centre",
    SHARE,
    "between the centre and the mean of the teacher's outputs, over the size of the mean",
    is_log=True,
    bounds=(Bound(bounds.MAX_CENTER_ERROR, "above", "the centre has to move"),),
)


def _of_patches(chart: Chart, meaning: str) -> Chart:
    return replace(
        chart, name=f"patch_{chart.name}", title=f"{chart.title}, patches", meaning=meaning
    )


def _gradient(name: str, title: str, meaning: str) -> Chart:
    return Chart(name, f"Gradient norm, {title}", SIZE, meaning, is_log=True)


# In the order of the page.
GROUPS = {
    "Losses": (
        Chart("loss", "Loss", NATS, "what is minimised: the losses, each times its weight"),
        Chart("contrastive", "Contrastive loss", NATS, "images against texts"),
        Chart(
            "distillation",
            "Distillation loss",
            NATS,
            "student against teacher; it may rise while the teacher grows less certain",
        ),
        Chart(
            "masked",
            "Masked loss",
            NATS,
            "patches that the student does not see, against the teacher",
        ),
        Chart(
            "lr",
            "Learning rate",
            "rate",
            "of the layers next to the end; earlier ones are slower where optim.layer_decay is"
            " below 1",
            is_log=True,
        ),
        Chart(
            "logit_scale",
            "Logit scale",
            "factor",
            "what the cosine of an image and a text is multiplied by",
        ),
        Chart("logit_bias", "Logit bias", "logits", "added to it; the softmax loss has none"),
    ),
    "Health": (
        _ENTROPY,
        _AT_RECIPE,
        _INFORMATION,
        _KL,
        _IN_USE,
        _of_patches(_ENTROPY, "of masked patches"),
        _of_patches(_AT_RECIPE, "the same at a teacher temperature of 0.04"),
        _of_patches(_INFORMATION, "the same of one masked patch a view"),
        _of_patches(_KL, "KL divergence, of patches that the student does not see"),
        _of_patches(_IN_USE, "of one masked patch a view"),
        Chart(
            "feature_rank",
            "Rank of the embeddings",
            "directions",
            "effective rank; 1 is one direction",
            is_log=True,
            ends=(1.0,),
            bounds=(Bound(bounds.SAME, "below", "all images have one embedding"),),
        ),
        Chart(
            "ema_distance",
            "Distance of student and teacher",
            SHARE,
            "between their weights, over the size of the student's",
        ),
        _CENTER,
        _of_patches(_CENTER, "the same of masked patches"),
        Chart(
            "update_ratio",
            "Size of a step",
            SHARE,
            "what a step changed of a matrix, over its size",
            is_log=True,
            bounds=(Bound(bounds.LEAP, "above", "optim.lr is far too high"),),
        ),
    ),
    "Gradients": (
        _gradient("gradient_norm", "all weights", "before clipping"),
        _gradient("gradient_norm_vision", "vision tower", "before clipping"),
        _gradient("gradient_norm_text", "text tower", "before clipping"),
        _gradient("gradient_norm_head", "head", "before clipping"),
        _gradient("gradient_norm_patch_head", "patch head", "before clipping"),
    ),
    "Speed and data": (
        Chart(
            "images_per_second",
            "Speed",
            "images/s",
            "pairs, by all processes together",
            ends=(0.0,),
        ),
        Chart(
            "mfu",
            "Use of the device",
            SHARE,
            "of the device's measured rate of matrix products",
            ends=(0.0,),
        ),
        Chart(
            "data_wait_share",
            "Waiting for data",
            "ratio of the time",
            ends=(0.0,),
            bounds=(Bound(bounds.MAX_WAIT, "above", "the data is too slow"),),
        ),
        Chart(
            "left_out_share",
            "Left out",
            "ratio of the pairs",
            "pairs that could not be read, as often as they were met, of all that were read",
            ends=(0.0,),
            bounds=(Bound(bounds.MAX_LEFT_OUT, "above", "too much cannot be read"),),
        ),
    ),
}
# What a row holds besides: axes, and what the head of the page says.
NO_CHARTS = {"step", "samples_seen", "seconds_left", "left_out"}


def charts_of(names: set[str]) -> dict[str, list[Chart]]:
    """The charts of numbers with these names, by the title of their group."""
    known = {chart.name for charts in GROUPS.values() for chart in charts}
    others = sorted(
        name for name in names - known - NO_CHARTS if not name.startswith((PROBE, TEACHER, STDERR))
    )
    tasks = sorted(name for name in names if name.startswith(PROBE))

    groups = {
        title: [chart for chart in charts if chart.name in names]
        for title, charts in GROUPS.items()
    }
    groups["Others"] = [Chart(name, name, "") for name in others]
    groups["Probes"] = [_probe(name) for name in tasks]
    return {title: charts for title, charts in groups.items() if charts}


def _probe(name: str) -> Chart:
    return Chart(
        name,
        name.removeprefix(PROBE),
        "percent",
        "main metric; the band is the 95 % interval over the probe's images",
        percent=True,
        teacher=name.replace(PROBE, TEACHER, 1),
    )
