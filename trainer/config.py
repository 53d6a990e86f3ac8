"""One frozen configuration for a run: what is built, what it sees, what is minimised, for how long.

A preset (``trainer.presets``) makes a Config, ``apply_objective`` turns it into a step of the ablation, ``trainer.overrides``
applies the user's ``--set field=value``. The resolved configuration is saved in every checkpoint (``to_dict``) and read back
from it (``from_dict``).
"""

from __future__ import annotations

import dataclasses
import math
import typing
from dataclasses import MISSING, dataclass, field
from typing import Any

from silc_bench.errors import UserError, unknown_name
from trainer.sections import (
    ContrastiveConfig,
    DataConfig,
    DistillationConfig,
    MaskedConfig,
    OptimConfig,
    ProbeConfig,
    TextConfig,
    ViewsConfig,
    VisionConfig,
)


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
    init: str = ""  # the checkpoint whose weights the run starts from (trainer.start); "": drawn from the seed
    batch_size: int = 16_384
    average_momentum: float = 0.0  # of an average of the weights that is kept for evaluation (trainer.averaging); 0: none
    micro_batch: int = 0  # pairs that a process encodes at a time, with the same result; 0: all of its batch
    samples: int = 20_000_000_000  # images seen in the whole run
    seed: int = 0  # weights and views
    precision: str = "auto"  # "bf16" (autocast; head, softmax, centre and EMA stay fp32), "fp32", or what is native here
    checkpointing: str = "none"  # of activations; "blocks": a backward pass computes each block anew, with the same result
    compile: bool = False  # torch.compile each block: other roundings, fewer passes over memory
    log_every: int = 50  # steps
    checkpoint_every: int = 1000  # steps
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    checkpoint_minutes: float = 30.0  # since the last checkpoint, whatever the step; 0: by steps alone

    @property
    def num_steps(self) -> int:
        return max(1, self.samples // self.batch_size)

    @property
    def start_step(self) -> int:
        """Optimiser updates done before the teacher teaches."""
        return round(self.distillation.start_fraction * self.num_steps)

    def is_taught_at(self, step: int) -> bool:
        """Whether update number ``step`` (from 0) learns from a teacher, of views or of masked patches."""
        return (self.distillation.weight > 0 or self.masked.weight > 0) and step >= self.start_step

    @property
    def num_masked(self) -> int:
        """Patches that are masked in each global view."""
        return round(self.masked.ratio * (self.views.global_size // self.vision.patch_size) ** 2)

    @property
    def view_kinds(self) -> set[str]:
        """Fields of trainer.views.Views that a step makes, once the teacher teaches."""
        return self.view_kinds_at(self.start_step)

    def view_kinds_at(self, step: int) -> set[str]:
        is_taught = self.is_taught_at(step)
        kinds = {"global_crops"} if is_taught or "global" in self.contrastive.images else set()
        kinds |= {"local_crops"} if is_taught and self.distillation.weight > 0 and self.views.num_local else set()
        return kinds | ({"original"} if "original" in self.contrastive.images else set())

    @property
    def name(self) -> str:
        return f"{self.preset}-{self.objective}"


OBJECTIVES = ("silc", "contrastive+views", "contrastive")
CHOICES = {
    "vision.gelu": ("tanh", "exact"),
    "text.gelu": ("tanh", "exact"),
    "contrastive.loss": ("sigmoid", "softmax"),
    "contrastive.images": ("global", "original", "original+global"),
    "distillation.pairs": ("local", "local+global"),
    "distillation.centering": ("mean", "sinkhorn"),
    "distillation.ema_schedule": ("fixed", "cosine"),
    "optim.kind": ("adamw", "adafactor"),
    "optim.locked": ("", "vision", "text"),
    "optim.schedule": ("rsqrt", "cosine", "wsd"),
    "precision": ("auto", "bf16", "fp32"),
    "checkpointing": ("none", "blocks"),
}
LABELS = ("preset", "objective")  # what the other fields were derived from
MAY_BE_ZERO = (  # every other whole number is at least 1
    "distillation.ema_batch",
    "micro_batch",
    "views.num_local",
    "data.num_workers",
    "data.seed",
    "seed",
    "probe.every",
)


def apply_objective(config: Config, objective: str) -> Config:
    """The steps of the ablation: "contrastive" -> "contrastive+views" -> "silc", each the next one with a part taken away."""
    if objective not in OBJECTIVES:
        raise unknown_name("objective", objective, OBJECTIVES)
    config = dataclasses.replace(config, objective=objective)
    if objective != "silc":
        config = without_heads(config)
    if objective == "contrastive":
        config = dataclasses.replace(config, contrastive=dataclasses.replace(config.contrastive, images="original"))
    return config


def without_heads(config: Config) -> Config:
    """The same towers with nothing that a teacher teaches."""
    return dataclasses.replace(
        config,
        distillation=dataclasses.replace(config.distillation, weight=0.0),
        masked=dataclasses.replace(config.masked, weight=0.0),
    )


def validate(config: Config) -> Config:
    """The same configuration, or a UserError that names the first field that cannot work and why."""
    for path, allowed in CHOICES.items():
        value = config
        for part in path.split("."):
            value = getattr(value, part)
        if value not in allowed:
            raise unknown_name(path, str(value), allowed)
    for path, value in flatten(config).items():
        least = 0 if path in MAY_BE_ZERO else 1
        if type(value) is int and value < least:
            raise UserError(f"configuration: {path} must be at least {least}, not {value}")
        numbers = value if isinstance(value, tuple) else (value,)
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            raise UserError(f"configuration: {path} must be finite, not {value}")
    for holds, message in _rules(config):
        if not holds:
            raise UserError(f"configuration: {message}")
    return config


def _rules(config: Config) -> list[tuple[bool, str]]:
    vision, views, distil, masked, optim = config.vision, config.views, config.distillation, config.masked, config.optim
    probabilities = (views.flip_prob, views.jitter_prob, views.gray_prob, views.solarize_prob, *views.blur_probs)
    return [
        (vision.image_size % vision.patch_size == 0, "vision.image_size must be a multiple of vision.patch_size"),
        (views.global_size % vision.patch_size == 0, "views.global_size must be a multiple of vision.patch_size"),
        (views.local_size % vision.patch_size == 0, "views.local_size must be a multiple of vision.patch_size"),
        (vision.width % vision.num_heads == 0, "vision.width must be a multiple of vision.num_heads"),
        (vision.width % 4 == 0, "vision.width must be a multiple of 4"),
        (config.text.width % config.text.num_heads == 0, "text.width must be a multiple of text.num_heads"),
        (
            distil.weight == 0 or views.num_local >= 1 or (distil.pairs == "local+global" and views.num_global >= 2),
            "distillation needs views.num_local >= 1, or distillation.pairs=local+global and views.num_global >= 2",
        ),
        (
            all(0 < a <= b <= 1 for a, b in (views.global_area, views.local_area)),
            "views.*_area must lie in (0, 1], low first",
        ),
        (all(0 <= p <= 1 for p in probabilities), "views.*_prob and views.blur_probs must lie in [0, 1]"),
        (min(views.jitter) >= 0 and views.jitter[3] <= 0.5, "views.jitter must not be negative, its hue at most 0.5 of a turn"),
        (0 < views.blur_sigma[0] <= views.blur_sigma[1], "views.blur_sigma must be positive, low first"),
        (config.contrastive.init_scale > 0, "contrastive.init_scale must be positive"),
        (distil.weight >= 0 and masked.weight >= 0, "distillation.weight and masked.weight must not be negative"),
        (0 <= distil.start_fraction < 1, "distillation.start_fraction must lie in [0, 1)"),
        (
            config.start_step < config.num_steps,
            "distillation.start_fraction leaves no step of the run to distil in; lower it, or raise samples",
        ),
        (
            masked.weight == 0 or 1 <= config.num_masked < (views.global_size // vision.patch_size) ** 2,
            "masked.ratio must mask at least one patch of a global view and leave one",
        ),
        (distil.num_prototypes >= 2, "distillation.num_prototypes must be at least 2: one takes every picture"),
        (0 <= distil.ema_momentum <= 1, "distillation.ema_momentum must lie in [0, 1]"),
        (0 <= config.average_momentum < 1, "average_momentum must lie in [0, 1)"),
        (0 <= distil.center_momentum <= 1, "distillation.center_momentum must lie in [0, 1]"),
        (distil.student_temp > 0 and distil.teacher_temp > 0, "distillation temperatures must be positive"),
        (optim.lr > 0 and optim.clip_norm > 0, "optim.lr and optim.clip_norm must be positive"),
        (0 < optim.layer_decay <= 1, "optim.layer_decay must lie in (0, 1]"),
        (
            optim.locked != "vision" or distil.weight == masked.weight == 0,
            "optim.locked=vision leaves self-distillation no tower to teach; take --objective contrastive or"
            " contrastive+views, or lock the text tower",
        ),
        (optim.weight_decay >= 0, "optim.weight_decay must not be negative"),
        (
            optim.kind != "adafactor" or optim.beta2 == OptimConfig.beta2,
            "optim.beta2 has no meaning with optim.kind=adafactor, whose second moments fade by the step; leave it out",
        ),
        (0 <= optim.beta1 < 1 and 0 <= optim.beta2 < 1, "optim.beta1 and optim.beta2 must lie in [0, 1)"),
        (
            min(optim.warmup_fraction, optim.cooldown_fraction) >= 0 and optim.warmup_fraction + optim.cooldown_fraction <= 1,
            "optim.warmup_fraction and optim.cooldown_fraction must not be negative, and sum to at most 1",
        ),
        (max(config.seed, config.data.seed) < 2**63, "seed and data.seed must be below 2**63"),
        (config.data.mirror_gb > 0, "data.mirror_gb must be positive"),
        (config.checkpoint_minutes >= 0, "checkpoint_minutes must not be negative"),
        (config.batch_size >= 2, "batch_size must be at least 2: a contrastive loss needs a negative"),
        (config.samples >= config.batch_size, "samples must be at least batch_size"),
    ]


def to_dict(config: Config) -> dict[str, Any]:
    return dataclasses.asdict(config)


def flatten(config: Config) -> dict[str, Any]:
    """{"optim.lr": 0.001, ...}, in the order of the fields."""
    flat: dict[str, Any] = {}
    for name, value in to_dict(config).items():
        flat |= {f"{name}.{inner}": v for inner, v in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def from_dict(data: dict[str, Any]) -> Config:
    """The configuration saved in a checkpoint. Unknown fields are a UserError: the file is of a later version.

    A field that an earlier version did not save takes its default, so a new field's default is what every run did before it.
    """
    return validate(_build(Config, data, "config"))


def _build(cls: Any, data: Any, path: str) -> Any:
    hints = typing.get_type_hints(cls)
    if not isinstance(data, dict):
        raise UserError(f"{path}: not a configuration of this version of silc-bench (found: {type(data).__name__})")
    needed = {f.name for f in dataclasses.fields(cls) if f.default is MISSING and f.default_factory is MISSING}
    differ = sorted((set(data) - set(hints)) | (needed - set(data)))
    if differ:
        raise UserError(f"{path}: not a configuration of this version of silc-bench (differs in: {differ})")
    return cls(**{name: _read(value, hints[name], f"{path}.{name}") for name, value in data.items()})


def _read(value: Any, hint: Any, path: str) -> Any:
    """A value of JSON as its field's type; nothing is converted that means something else."""
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, path)
    kinds = typing.get_args(hint)
    if kinds and isinstance(value, list | tuple) and len(value) == len(kinds):
        return tuple(_read(part, kind, path) for part, kind in zip(value, kinds, strict=True))
    if kinds or not (type(value) is hint or (hint is float and type(value) is int)):
        raise wrong_type(value, hint, path)
    return hint(value)


def wrong_type(value: Any, hint: Any, path: str) -> UserError:
    return UserError(f"{path}: {value!r} is not of type {hint if typing.get_args(hint) else hint.__name__}")
