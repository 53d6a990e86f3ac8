"""One frozen configuration for a run: what is built, what it sees, what is minimised, for how long.

Flow: a preset (``silc_bench.trainer.config.presets``) makes a Config, ``apply_objective`` turns it
into a step of the ablation, ``silc_bench.trainer.config.overrides`` applies the user's
``--set field=value``. The resolved configuration is saved in every checkpoint (``to_dict``) and
read back from it (``from_dict``).

A Config holds one of each section (VisionConfig, ViewsConfig, ...). Each field says what it means.
"""

from __future__ import annotations

import dataclasses
import math
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field
from typing import Any, NamedTuple

from silc_bench.errors import UserError, unknown_name


@dataclass(frozen=True)
class VisionConfig:
    """Vision transformer with MAP pooling; the embedding is as wide as the tower."""

    image_size: int = 256  # pixels a side of a global crop
    patch_size: int = 16
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    # "tanh" (big_vision's approximation) or "exact" (most of open_clip's SigLIPs)
    gelu: str = "tanh"
    # what the learned positions start as: "sincos" (2205.01580) or "normal" (std 1/sqrt(width),
    # SigLIP's)
    init_positions: str = "sincos"


@dataclass(frozen=True)
class TextConfig:
    """Text transformer, SigLIP style.

    No causal mask, last position pooled, then a linear head to the embedding.
    """

    vocab_size: int = 32_000
    context_length: int = 64
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    # "tanh" (big_vision's approximation) or "exact" (most of open_clip's SigLIPs)
    gelu: str = "tanh"


@dataclass(frozen=True)
class ViewsConfig:
    """What the student and the teacher see of an image.

    Areas are fractions of the image, sizes pixels a side.
    """

    num_global: int = 2
    global_size: int = 256
    global_area: tuple[float, float] = (0.4, 1.0)
    num_local: int = 8
    local_size: int = 96
    local_area: tuple[float, float] = (0.05, 0.4)
    flip_prob: float = 0.5
    # brightness, contrast, saturation, hue
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    jitter_prob: float = 0.8
    gray_prob: float = 0.2
    # first global view, every other global view, local views
    blur_probs: tuple[float, float, float] = (1.0, 0.1, 0.5)
    # pixels, at a view of ``blur_size`` pixels a side
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    blur_size: int = 224  # a view of another size is blurred in proportion; 0: of any size the same
    # of crops, with antialias: "bilinear" or "bicubic" (Pillow's); "original" is bilinear always
    resize: str = "bilinear"
    solarize_prob: float = 0.2  # every global view but the first


@dataclass(frozen=True)
class DataConfig:
    # what silc_bench.trainer.data.sources reads: "shapes", shards, lists of captions;
    # "3 * A | 1 * B" mixes
    source: str = "shapes"
    # conditions that every sample must meet (silc_bench.trainer.data.samples):
    # "text>=5 side>=64 similarity>=0.28"
    filters: str = ""
    # so many shards are shuffled together: remote ones, and local ones on several nodes or with
    # more than 16,777,216 pairs; else local ones are shuffled as a whole
    shuffle_shards: int = 8
    mirror_gb: float = 50.0  # local copies of remote shards, at most
    # Longer side of a decoded image, pixels; 0: what the views need (Config.canvas), and a JPEG of
    # four times that or more is made smaller by its decoder.
    decode_size: int = 0
    num_workers: int = -1  # processes that decode, a rank; -1: one for each core there is
    seed: int = 0  # order of the samples and which caption of an image is read


@dataclass(frozen=True)
class ProbeConfig:
    """A small evaluation while the run goes on (silc_bench.trainer.monitor.probe)."""

    every: int = 0  # steps; 0: never
    tasks: str = (  # as `silc-bench eval --tasks`
        "shapes/knn,shapes/zeroshot,shapes/segmentation_zeroshot,shapes/discovery,"
        "shapes/correspondence"
    )
    limit: int = 256  # images a split
    data_root: str = ""  # where the data of other tasks lies
    teacher: bool = False  # measure the teacher too; the best checkpoint is the student's still


@dataclass(frozen=True)
class ContrastiveConfig:
    loss: str = "sigmoid"  # of LOSSES: "sigmoid" (SigLIP) or "softmax" (CLIP)
    # which images meet the text: "global" (every global view), "original", "original+global"
    images: str = "global"
    # texts of a batch that are one text to the tokenizer: "negative" (an image has its own text
    # alone, as in the papers) or "positive" (all of them are right)
    equal_texts: str = "negative"
    init_scale: float = 10.0
    init_bias: float = -10.0  # of a loss with a bias
    max_scale: float = 0.0  # the scale stays at or below it (CLIP: 100); 0: no ceiling

    @property
    def has_bias(self) -> bool:
        return LOSSES[self.loss].has_bias


@dataclass(frozen=True)
class DistillationConfig:
    # 0: neither head nor local views are computed, nor a teacher's forward but for masked patches
    weight: float = 1.0
    # of all steps, done before the teacher teaches (views and masked patches):
    # silc_bench.trainer.train
    start_fraction: float = 0.0
    # "local": teacher global -> student local;
    # "local+global": also the student's other global views
    pairs: str = "local"
    num_prototypes: int = 65_536
    # what they start as: "normal" (std 0.02) or "uniform" (up to 1/sqrt(bottleneck_dim), DINO's)
    init_prototypes: str = "normal"
    # of features with prototypes, on a GPU: "fp32", or "tf32" (inputs rounded to 10 bits)
    products: str = "fp32"
    hidden_dim: int = 2048
    bottleneck_dim: int = 256
    student_temp: float = 0.1
    teacher_temp: float = 0.04
    center_momentum: float = 0.9
    # "mean" (a running centre is subtracted) or "sinkhorn" (each batch is balanced over prototypes)
    centering: str = "mean"
    ema_momentum: float = 0.966  # of the teacher
    # "fixed" (one value for the whole run) or "cosine" (half a cosine from there to 1)
    ema_schedule: str = "fixed"
    # each image gets the targets of another one: a control, see CONTROLS
    is_shuffled: bool = False
    # batch that ema_momentum is meant for: 1 - m is scaled with batch_size; 0: never scaled
    ema_batch: int = 0


@dataclass(frozen=True)
class MaskedConfig:
    """Patches that the student sees as a mask token.

    The head's sizes, temperatures and centring are those of DistillationConfig.
    """

    weight: float = 0.0  # 0: nothing of it is computed
    ratio: float = 0.5  # of the patches of each global view


@dataclass(frozen=True)
class OptimConfig:
    kind: str = "adamw"  # "adamw" or "adafactor" (big_vision's)
    lr: float = 1e-3  # peak
    # "rsqrt" (warm-up, 1/sqrt(step), linear cool-down), "cosine" (to 0) or "wsd" (constant between)
    schedule: str = "rsqrt"
    warmup_fraction: float = 0.04  # of all steps
    cooldown_fraction: float = 0.04  # of all steps; rsqrt and wsd
    beta1: float = 0.9
    beta2: float = 0.95  # adamw only
    # "vision" or "text": this tower stays as it started (LiT, 2111.07991); "": both learn
    locked: str = ""
    layer_decay: float = 1.0  # each layer's rate over that of the layer above it
    # a step at the peak rate shrinks a matrix by this fraction (big_vision)
    weight_decay: float = 1e-4
    clip_norm: float = 1.0


@dataclass(frozen=True)
class Config:
    preset: str
    vision: VisionConfig
    text: TextConfig
    views: ViewsConfig = field(default_factory=ViewsConfig)
    data: DataConfig = field(default_factory=DataConfig)
    contrastive: ContrastiveConfig = field(default_factory=ContrastiveConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    masked: MaskedConfig = field(default_factory=MaskedConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    objective: str = "silc"
    # the checkpoint whose weights the run starts from (silc_bench.trainer.checkpoints.init);
    # "": drawn from the seed
    init: str = ""
    # the file of the run's tokenizer, a sentencepiece .model or a tokenizer.json
    # (silc_bench.trainer.silc.tokenizers); "": trained on captions of the data
    tokenizer: str = ""
    tokenizer_captions: int = 0  # that it is trained on; 0: 20,000
    batch_size: int = 16_384
    # of an average of the weights that is kept for evaluation (silc_bench.trainer.optim); 0: none
    average_momentum: float = 0.0
    # pairs that a process encodes at a time, with the same result; 0: all of its batch
    micro_batch: int = 0
    samples: int = 20_000_000_000  # images seen in the whole run
    seed: int = 0  # weights and views
    # "bf16" (autocast; head, softmax, centre and EMA stay fp32), "fp32", or what is native here
    precision: str = "auto"
    # of activations; "blocks": the backward pass computes each block again, with the same result;
    # "blocks:N": only the first N blocks of each tower
    checkpointing: str = "none"
    # of several processes: "ddp" (each holds all weights), "fsdp" (each holds a share), "hsdp" (the
    # processes of a node share them, and every node holds all of them)
    parallel: str = "ddp"
    # torch.compile each block, "true" or "false": other roundings, fewer passes over memory;
    # "auto": on a GPU alone
    compile: str = "auto"
    # of DDP's gradients between processes; "bf16": half of the bytes, and roundings
    exchange: str = "fp32"
    log_every: int = 50  # steps
    checkpoint_every: int = 1000  # steps
    # steps: checkpoints at multiples of it stay, for curves; 0: the newest and the best alone
    checkpoint_keep_every: int = 0
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    # since the last checkpoint, whatever the step; 0: by steps alone
    checkpoint_minutes: float = 30.0

    @property
    def num_steps(self) -> int:
        return max(1, self.samples // self.batch_size)

    def num_checkpointed(self, depth: int) -> int:
        """Blocks of a tower of ``depth``, the first ones, that a backward pass computes again."""
        kind, _, number = self.checkpointing.partition(":")
        if kind == "none":
            return 0
        return min(int(number), depth) if number else depth

    @property
    def start_step(self) -> int:
        """Optimiser updates done before the teacher teaches."""
        return round(self.distillation.start_fraction * self.num_steps)

    def is_taught_at(self, step: int) -> bool:
        """Whether update ``step`` (from 0) learns from a teacher, of views or of masked patches."""
        return self.has_teacher and step >= self.start_step

    @property
    def has_teacher(self) -> bool:
        return self.distillation.weight > 0 or self.masked.weight > 0

    @property
    def num_patches(self) -> int:
        """Of a global view."""
        return (self.views.global_size // self.vision.patch_size) ** 2

    @property
    def num_masked(self) -> int:
        """Patches that are masked in each global view."""
        return round(self.masked.ratio * self.num_patches)

    @property
    def view_kinds(self) -> set[str]:
        """Fields of ``silc.views.Views`` that a step makes, once the teacher teaches."""
        return self.view_kinds_at(self.start_step)

    def view_kinds_at(self, step: int) -> set[str]:
        is_taught = self.is_taught_at(step)
        kinds = set()
        if is_taught or "global" in self.contrastive.images:
            kinds.add("global_crops")
        if is_taught and self.distillation.weight > 0 and self.views.num_local:
            kinds.add("local_crops")
        if "original" in self.contrastive.images:
            kinds.add("original")
        return kinds

    @property
    def needed_pixels(self) -> int:
        """Longer side of a square image of which no view of a step has to be enlarged."""
        return math.ceil(self._needed(1))

    def _needed(self, aspect: float) -> float:
        """Longer side of an image whose shorter one is ``aspect`` of it, with sharp views."""
        views = self.views

        # A crop is a share of the area; the whole image is squashed to a square.
        sides = {
            "original": views.global_size / aspect,
            "global_crops": views.global_size / math.sqrt(views.global_area[0] * aspect),
            "local_crops": views.local_size / math.sqrt(views.local_area[0] * aspect),
        }
        return max(sides[kind] for kind in self.view_kinds)

    @property
    def canvas(self) -> int:
        """Pixels a side of the square that each decoded image lies on, at most as large.

        Where no ``decode_size`` says it, no view of an image of 3 to 4 has to be enlarged, the
        shape of most photographs; a multiple of 32.
        """
        if self.data.decode_size:
            return self.data.decode_size
        return 32 * math.ceil(self._needed(3 / 4) / 32)

    @property
    def name(self) -> str:
        return f"{self.preset}-{self.objective}"

    @property
    def is_silc(self) -> bool:
        """Whether it distils: silc, or a control of it."""
        return self.objective == "silc" or self.objective in CONTROLS


FORMS = {int: "a whole number", float: "a number", bool: "true or false"}  # of a field's type
OTHER_VERSION = "read it with the version of silc-bench that wrote it"


class Loss(NamedTuple):
    """An image-text loss, by its name in ``contrastive.loss``."""

    function: str  # of silc_bench.trainer.silc.losses: a name, so that this file imports no torch
    has_bias: bool  # in a softmax a bias cancels: it would be a parameter without a gradient


LOSSES = {
    "sigmoid": Loss("sigmoid_loss", has_bias=True),
    "softmax": Loss("softmax_loss", has_bias=False),
}
# What a study must hold against silc, and no recipe: a teacher that keeps its first, random
# weights, and targets of another image. A gain that they share with silc is no self-distillation.
CONTROLS: dict[str, dict[str, Any]] = {
    "silc+frozen": {"distillation.ema_momentum": 1.0, "distillation.ema_schedule": "fixed"},
    "silc+shuffled": {"distillation.is_shuffled": True},
}
OBJECTIVES = ("silc", "contrastive+views", "contrastive", *CONTROLS)
CHOICES = {
    "vision.gelu": ("tanh", "exact"),
    "vision.init_positions": ("sincos", "normal"),
    "text.gelu": ("tanh", "exact"),
    "views.resize": ("bilinear", "bicubic"),
    "contrastive.loss": LOSSES,
    "contrastive.equal_texts": ("negative", "positive"),
    "contrastive.images": ("global", "original", "original+global"),
    "distillation.pairs": ("local", "local+global"),
    "distillation.init_prototypes": ("normal", "uniform"),
    "distillation.centering": ("mean", "sinkhorn"),
    "distillation.ema_schedule": ("fixed", "cosine"),
    "distillation.products": ("fp32", "tf32"),
    "optim.kind": ("adamw", "adafactor"),
    "optim.locked": ("", "vision", "text"),
    "optim.schedule": ("rsqrt", "cosine", "wsd"),
    "precision": ("auto", "bf16", "fp32"),
    "checkpointing": ("none", "blocks"),
    "parallel": ("ddp", "fsdp", "hsdp"),
    "compile": ("auto", "true", "false"),
    "exchange": ("fp32", "bf16"),
}
# Values that no list can hold: how they are written, and their form.
FORMS_OF_CHOICES = {"checkpointing": ("blocks:N", re.compile(r"blocks:[1-9][0-9]{0,5}"))}
LABELS = ("preset", "objective")  # what the other fields were derived from


class Bound(NamedTuple):
    """What each number of some fields must be."""

    words: str
    holds: Callable[[float], bool]
    fields: tuple[str, ...]


# Comparisons with infinity refuse NaN too, and take whole numbers that no float can hold.
BOUNDS = (
    Bound(
        "a positive number",
        lambda number: 0 < number < math.inf,
        (
            "contrastive.init_scale",
            "data.mirror_gb",
            "distillation.student_temp",
            "distillation.teacher_temp",
            "optim.clip_norm",
            "optim.lr",
            "views.blur_sigma",
        ),
    ),
    Bound(
        "at least 0",
        lambda number: 0 <= number < math.inf,
        (
            "checkpoint_keep_every",
            "checkpoint_minutes",
            "contrastive.max_scale",
            "data.decode_size",
            "distillation.ema_batch",
            "distillation.weight",
            "masked.weight",
            "micro_batch",
            "optim.cooldown_fraction",
            "optim.warmup_fraction",
            "optim.weight_decay",
            "probe.every",
            "tokenizer_captions",
            "views.blur_size",
            "views.jitter",
            "views.num_local",
        ),
    ),
    Bound("at least -1", lambda number: number >= -1, ("data.num_workers",)),
    # A contrastive loss needs a negative, and one prototype would take every image.
    Bound("at least 2", lambda number: number >= 2, ("batch_size", "distillation.num_prototypes")),
    Bound(
        "at least 0, and below 2**63",
        lambda number: 0 <= number < 2**63,
        ("seed", "data.seed"),
    ),
    Bound(
        "from 0 to 1",
        lambda number: 0 <= number <= 1,
        (
            "distillation.center_momentum",
            "distillation.ema_momentum",
            "masked.ratio",
            "views.blur_probs",
            "views.flip_prob",
            "views.gray_prob",
            "views.jitter_prob",
            "views.solarize_prob",
        ),
    ),
    Bound(
        "at least 0, and below 1",
        lambda number: 0 <= number < 1,
        ("average_momentum", "distillation.start_fraction", "optim.beta1", "optim.beta2"),
    ),
    Bound(
        "above 0, and at most 1",
        lambda number: 0 < number <= 1,
        ("optim.layer_decay", "views.global_area", "views.local_area"),
    ),
)
BOUND_OF = {path: bound for bound in BOUNDS for path in bound.fields}

# Of all other fields.
WHOLE = Bound("at least 1", lambda number: number >= 1, ())
FINITE = Bound("finite", lambda number: abs(number) < math.inf, ())


class Rule(NamedTuple):
    """What several fields must be together."""

    about: str
    holds: Callable[[Config], bool]
    problem: str
    fix: str


def _has_pair(config: Config) -> bool:
    """Someone learns what the teacher teaches: a local view, or the other global view."""
    views = config.views
    has_other_global = config.distillation.pairs == "local+global" and views.num_global >= 2
    return config.distillation.weight == 0 or views.num_local >= 1 or has_other_global


# Images are cut into whole patches, and embeddings into whole heads.
MULTIPLES = {
    "vision.image_size": "vision.patch_size",
    "views.global_size": "vision.patch_size",
    "views.local_size": "vision.patch_size",
    "vision.width": "vision.num_heads",
    "text.width": "text.num_heads",
    "checkpoint_keep_every": "checkpoint_every",
}
RANGES = ("views.global_area", "views.local_area", "views.blur_sigma")
RULES = (
    Rule(
        "vision.width",
        lambda config: config.vision.width % 4 == 0,
        "is no multiple of 4, and positions are sines and cosines of two coordinates",
        "take a multiple of 4",
    ),
    Rule(
        "contrastive.max_scale",
        lambda config: (
            config.contrastive.max_scale == 0
            or config.contrastive.init_scale <= config.contrastive.max_scale
        ),
        "is below contrastive.init_scale, where the scale starts",
        "raise it, lower contrastive.init_scale, or take 0 for no ceiling",
    ),
    Rule(
        "views.jitter",
        lambda config: config.views.jitter[3] <= 0.5,
        "its last number turns the hue by more than half a circle",
        "take 0.5 or less",
    ),
    Rule(
        "views.num_local",
        _has_pair,
        "without local views distillation has no pair of views",
        "set views.num_local=1 or more, or distillation.pairs=local+global with"
        " views.num_global=2 or more",
    ),
    Rule(
        "checkpointing",
        lambda config: (
            ":" not in config.checkpointing
            or int(config.checkpointing.partition(":")[2])
            <= max(config.vision.depth, config.text.depth)
        ),
        "names more blocks than a tower has",
        "take fewer, or checkpointing=blocks for all of them",
    ),
    Rule(
        "distillation.start_fraction",
        lambda config: config.start_step < config.num_steps,
        "leaves no step to distil in",
        "lower it, or raise samples",
    ),
    Rule(
        "masked.ratio",
        lambda config: config.masked.weight == 0 or 1 <= config.num_masked < config.num_patches,
        "must mask at least one patch of a global view, and leave one",
        "bring it nearer to 0.5, or take smaller patches",
    ),
    Rule(
        "optim.locked",
        lambda config: config.optim.locked != "vision" or not config.has_teacher,
        "a locked image tower cannot learn from a teacher",
        "take --objective contrastive or contrastive+views, or lock the text tower",
    ),
    Rule(
        "optim.beta2",
        lambda config: config.optim.kind != "adafactor" or config.optim.beta2 == OptimConfig.beta2,
        "optim.kind=adafactor does not use it: its second moments fade by the step",
        "leave it out",
    ),
    Rule(
        "tokenizer",
        lambda config: not (config.tokenizer and config.init),
        "--init brings the tokenizer that its weights were trained with",
        "leave one of the two out",
    ),
    Rule(
        "optim.warmup_fraction",
        lambda config: config.optim.warmup_fraction + config.optim.cooldown_fraction <= 1,
        "with optim.cooldown_fraction it takes more than the whole run",
        "lower one of the two",
    ),
    Rule(
        "exchange",
        lambda config: config.exchange == "fp32" or config.parallel == "ddp",
        "is for the gradients of parallel=ddp; sharded ones are exchanged in fp32",
        "leave exchange at fp32",
    ),
    Rule(
        "samples",
        lambda config: config.samples >= config.batch_size,
        "do not fill one batch",
        "raise samples, or lower batch_size",
    ),
)


def apply_objective(config: Config, objective: str) -> Config:
    """A step of the ablation: "contrastive" -> "contrastive+views" -> "silc".

    Each step is the next one with a part taken away. Or one of CONTROLS: silc with a part made
    meaningless.
    """
    if objective not in OBJECTIVES:
        raise unknown_name("objective", objective, OBJECTIVES)

    config = changed(config, {"objective": objective, **CONTROLS.get(objective, {})})
    if not config.is_silc:
        config = without_heads(config)
    if objective == "contrastive":
        config = changed(config, {"contrastive.images": "original"})
    return config


def without_heads(config: Config) -> Config:
    """The same towers with nothing that a teacher teaches."""
    return changed(config, {"distillation.weight": 0.0, "masked.weight": 0.0})


def changed(config: Config, fields: Mapping[str, Any]) -> Config:
    """The configuration with other values in ``fields``, {"optim.lr": 0.001, ...}."""
    for path, value in fields.items():
        section, _, name = path.rpartition(".")
        change = {name: value}
        if section:
            change = {section: dataclasses.replace(getattr(config, section), **change)}
        config = dataclasses.replace(config, **change)
    return config


def validate(config: Config) -> Config:
    """The same configuration. UserError about the first field that cannot work."""
    fields = flatten(config)
    for path, allowed in CHOICES.items():
        written, form = FORMS_OF_CHOICES.get(path, ("", None))
        if fields[path] in allowed or (form and form.fullmatch(str(fields[path]))):
            continue
        known = [*allowed, written] if written else allowed
        raise unknown_name("value", str(fields[path]), known, about=path)

    for path, value in fields.items():
        if isinstance(value, str | bool):
            continue
        bound = BOUND_OF.get(path, WHOLE if isinstance(value, int) else FINITE)
        numbers = value if isinstance(value, tuple) else (value,)
        if not all(map(bound.holds, numbers)):
            raise UserError(
                f"must be {bound.words}, not {value}", about=path, fix="choose another value"
            )

    # Last, because these divide by numbers that are not 0 by now.
    for path, part in MULTIPLES.items():
        if fields[path] % fields[part]:
            raise UserError(f"is no multiple of {part}", about=path, fix="change one of the two")
    for path in RANGES:
        if fields[path] != tuple(sorted(fields[path])):
            raise UserError(
                "its first number is above its second", about=path, fix="write the lower one first"
            )
    for rule in RULES:
        if not rule.holds(config):
            raise UserError(rule.problem, about=rule.about, fix=rule.fix)
    return config


# ---- as JSON ----


def to_dict(config: Config) -> dict[str, Any]:
    return dataclasses.asdict(config)


def flatten(config: Config | dict[str, Any]) -> dict[str, Any]:
    """{"optim.lr": 0.001, ...}, in the order of the fields; of ``to_dict``'s answer too."""
    flat: dict[str, Any] = {}
    fields = config if isinstance(config, dict) else to_dict(config)
    for name, value in fields.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{inner}": inner_value for inner, inner_value in value.items()}
        else:
            flat[name] = value
    return flat


def from_dict(data: dict[str, Any]) -> Config:
    """The configuration saved in a checkpoint.

    Unknown fields are a UserError: the file is of a later version. A field that an earlier version
    did not save takes its default, so a new field's default is what every run did before it.
    """
    try:
        return validate(_build(Config, data, "config"))
    except UserError as error:
        raise UserError(error.problem, about=error.about, fix=OTHER_VERSION) from None


def _build(cls: Any, data: Any, path: str) -> Any:
    """An instance of the dataclass ``cls``. ``path`` is where ``data`` stands in the file."""
    hints = typing.get_type_hints(cls)
    if not isinstance(data, dict):
        raise wrong_type(data, cls, path)

    needed = {
        f.name
        for f in dataclasses.fields(cls)
        if f.default is MISSING and f.default_factory is MISSING
    }
    differ = sorted((set(data) - set(hints)) | (needed - set(data)))
    if differ:
        raise UserError(
            f"not a configuration of this version of silc-bench (differs in: {differ})",
            about=path,
            fix=OTHER_VERSION,
        )

    values = {name: _read(value, hints[name], f"{path}.{name}") for name, value in data.items()}
    return cls(**values)


def _read(value: Any, hint: Any, path: str) -> Any:
    """A value of JSON as its field's type; nothing is converted that means something else."""
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, path)

    # ``compile`` was a bool before it could be "auto".
    if hint is str and isinstance(value, bool):
        return str(value).lower()

    # JSON has lists for tuples.
    kinds = typing.get_args(hint)
    if kinds and isinstance(value, list | tuple) and len(value) == len(kinds):
        return tuple(_read(part, kind, path) for part, kind in zip(value, kinds, strict=True))

    # Of numbers, only an int may stand for a float: 1 means 1.0.
    is_number = hint is float and type(value) is int
    if kinds or not (type(value) is hint or is_number):
        raise wrong_type(value, hint, path)
    return hint(value)


def wrong_type(value: Any, hint: Any, path: str) -> UserError:
    kinds = typing.get_args(hint)
    form = FORMS.get(hint, f"{len(kinds)} numbers with commas between them")
    return UserError(
        f"{value!r} is not of type {hint if kinds else hint.__name__}",
        about=path,
        fix=f"write {form}",
    )
