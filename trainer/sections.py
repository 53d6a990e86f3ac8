"""The sections of a run's configuration: frozen, each field with what it means. ``trainer.config.Config`` holds one of each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class VisionConfig:
    """Vision transformer with MAP pooling; the embedding is as wide as the tower."""

    image_size: int = 256  # pixels a side of a global crop
    patch_size: int = 16
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    gelu: str = "tanh"  # "tanh" (big_vision's approximation) or "exact" (most of open_clip's SigLIPs)


@dataclass(frozen=True)
class TextConfig:
    """Text transformer, SigLIP style: no causal mask, last position pooled, then a linear head to the embedding."""

    vocab_size: int = 32_000
    context_length: int = 64
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    gelu: str = "tanh"  # "tanh" (big_vision's approximation) or "exact" (most of open_clip's SigLIPs)


@dataclass(frozen=True)
class ViewsConfig:
    """What the student and the teacher see of a picture. Areas are fractions of the picture, sizes pixels a side."""

    num_global: int = 2
    global_size: int = 256
    global_area: tuple[float, float] = (0.4, 1.0)
    num_local: int = 8
    local_size: int = 96
    local_area: tuple[float, float] = (0.05, 0.4)
    flip_prob: float = 0.5
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)  # brightness, contrast, saturation, hue
    jitter_prob: float = 0.8
    gray_prob: float = 0.2
    blur_probs: tuple[float, float, float] = (1.0, 0.1, 0.5)  # first global view, every other global view, local views
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # pixels at a view of 224 px; scaled with the view's size
    solarize_prob: float = 0.2  # every global view but the first


@dataclass(frozen=True)
class DataConfig:
    source: str = "shapes"  # what trainer.sources reads: "shapes", shards, lists of captions; "3 * A | 1 * B" mixes
    filters: str = ""  # conditions that every sample must meet (trainer.filters): "text>=5 side>=64 similarity>=0.28"
    shuffle_shards: int = 8  # of a remote source: so many shards are shuffled together; local ones all
    mirror_gb: float = 50.0  # local copies of remote shards, at most
    decode_size: int = 512  # longer side of a decoded picture, pixels
    num_workers: int = 0
    seed: int = 0  # order of the samples and which caption of a picture is read


@dataclass(frozen=True)
class ProbeConfig:
    """A small evaluation while the run goes on (trainer.probe)."""

    every: int = 0  # steps; 0: never
    tasks: str = (  # as `silc-bench eval --tasks`
        "shapes/knn,shapes/zeroshot,shapes/segmentation_zeroshot,shapes/discovery,shapes/correspondence"
    )
    limit: int = 256  # pictures a split
    data_root: str = ""  # where the data of other tasks lies


@dataclass(frozen=True)
class ContrastiveConfig:
    loss: str = "sigmoid"  # "sigmoid" (SigLIP) or "softmax" (CLIP)
    images: str = "global"  # which pictures meet the text: "global" (every global view), "original", "original+global"
    init_scale: float = 10.0
    init_bias: float = -10.0  # sigmoid only


@dataclass(frozen=True)
class DistillationConfig:
    weight: float = 1.0  # 0: neither head nor local views are computed, nor a teacher's forward but for masked patches
    start_fraction: float = 0.0  # of all steps, done before the teacher teaches (views and masked patches): trainer.train
    pairs: str = "local"  # "local": teacher global -> student local; "local+global": also the student's other global views
    num_prototypes: int = 65_536
    hidden_dim: int = 2048
    bottleneck_dim: int = 256
    student_temp: float = 0.1
    teacher_temp: float = 0.04
    center_momentum: float = 0.9
    centering: str = "mean"  # "mean" (a running centre is subtracted) or "sinkhorn" (each batch is balanced over prototypes)
    ema_momentum: float = 0.966  # of the teacher
    ema_schedule: str = "fixed"  # "fixed" (one value for the whole run) or "cosine" (half a cosine from there to 1)
    ema_batch: int = 0  # batch that ema_momentum is meant for: 1 - m is scaled with batch_size; 0: never scaled


@dataclass(frozen=True)
class MaskedConfig:
    """Patches that the student sees as a mask token; the head's sizes, temperatures and centring are distillation's."""

    weight: float = 0.0  # 0: nothing of it is computed
    ratio: float = 0.5  # of the patches of each global view


@dataclass(frozen=True)
class OptimConfig:
    kind: str = "adamw"  # "adamw" or "adafactor" (big_vision's)
    lr: float = 1e-3  # peak
    schedule: str = "rsqrt"  # "rsqrt" (warm-up, 1/sqrt(step), linear cool-down), "cosine" (to 0) or "wsd" (constant between)
    warmup_fraction: float = 0.04  # of all steps
    cooldown_fraction: float = 0.04  # of all steps; rsqrt and wsd
    beta1: float = 0.9
    beta2: float = 0.95  # adamw only
    locked: str = ""  # "vision" or "text": this tower stays as it started (LiT, 2111.07991); "": both learn
    layer_decay: float = 1.0  # each layer's rate over that of the layer above it
    weight_decay: float = 1e-4  # a step at the peak rate shrinks a matrix by this fraction (big_vision)
    clip_norm: float = 1.0
