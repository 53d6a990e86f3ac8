"""Presets are functions: a variant calls its base and changes a field.

``PROVENANCE`` says of each number of the real presets how sure it is: "sure" (read from the paper), "likely" (the value
of the code it builds on, or widely repeated), "open" (not established; our choice, named). ``silc-bench train --preset b16
--show-config`` prints both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from silc_bench.errors import unknown_name
from trainer.config import Config, apply_objective
from trainer.overrides import apply_sets
from trainer.sections import (
    ContrastiveConfig,
    DataConfig,
    DistillationConfig,
    OptimConfig,
    TextConfig,
    ViewsConfig,
    VisionConfig,
)


def b16() -> Config:
    """SILC ViT-B/16 at 256 px as far as the paper tells: batch 16k, 20 billion pairs, 65,536 prototypes."""
    return Config(
        preset="b16",
        vision=VisionConfig(),
        text=TextConfig(),
        data=DataConfig(source=""),
        distillation=DistillationConfig(ema_batch=16_384),
        optim=OptimConfig(warmup_fraction=50_000 / 1_220_703, cooldown_fraction=50_000 / 1_220_703),
    )


def l16() -> Config:
    base = b16()
    tower: dict[str, Any] = {"width": 1024, "depth": 24, "num_heads": 16, "mlp_dim": 4096}
    return replace(base, preset="l16", vision=replace(base.vision, **tower), text=replace(base.text, **tower))


def so400m() -> Config:
    """The shape-optimised tower of 2305.13035, here with 16-pixel patches so that the views stay those of b16."""
    base = b16()
    tower: dict[str, Any] = {"width": 1152, "depth": 27, "num_heads": 16, "mlp_dim": 4304}
    return replace(base, preset="so400m", vision=replace(base.vision, **tower), text=replace(base.text, **tower))


def g16() -> Config:
    """ViT-G of 2106.04560 for both towers."""
    base = b16()
    tower: dict[str, Any] = {"width": 1664, "depth": 48, "num_heads": 16, "mlp_dim": 8192}
    return replace(base, preset="g16", vision=replace(base.vision, **tower), text=replace(base.text, **tower))


def shapes_tiny() -> Config:
    """The demo: two small towers on generated scenes, minutes on two cores.

    Departs from the recipe where the data demands it: captions name colour, size and place and each scene is seen once, so
    views are only cropped and flipped, the global ones mildly (docs/log.md has the recipe's own); a batch of 64 learns sooner
    with the softmax loss and a peak of 2e-3, and needs a slower teacher than batch 16k (EMA 0.99) and far fewer prototypes.
    Local views keep the recipe's share of a global one (4 of 36 patches).
    """
    tower: dict[str, Any] = {"width": 96, "num_heads": 6, "mlp_dim": 384}
    return Config(
        preset="shapes_tiny",
        vision=VisionConfig(image_size=48, patch_size=8, depth=3, **tower),
        text=TextConfig(vocab_size=512, context_length=20, depth=2, **tower),
        views=ViewsConfig(
            global_size=48,
            global_area=(0.7, 1.0),
            local_size=16,
            jitter_prob=0.0,
            gray_prob=0.0,
            blur_probs=(0.0, 0.0, 0.0),
            solarize_prob=0.0,
        ),
        data=DataConfig(source="shapes", decode_size=64),
        contrastive=ContrastiveConfig(loss="softmax"),
        distillation=DistillationConfig(num_prototypes=1024, hidden_dim=256, bottleneck_dim=64, ema_momentum=0.99),
        optim=OptimConfig(lr=2e-3, schedule="cosine", warmup_fraction=0.1),
        batch_size=64,
        samples=38_400,
        log_every=10,
        checkpoint_every=100,
    )


def cifar_tiny() -> Config:
    """Real photographs of 32 px with a short caption each: the demo's towers, a little larger, and the recipe's colour jitter.

    Patches of 8 px: with minutes to train, seeing a photograph four times as often is worth more than finer patches.
    """
    base = shapes_tiny()
    return replace(
        base,
        preset="cifar_tiny",
        vision=replace(base.vision, image_size=32, depth=4, width=128, num_heads=4, mlp_dim=512),
        text=replace(base.text, context_length=16),
        views=ViewsConfig(global_size=32, local_size=16, blur_probs=(0.0, 0.0, 0.0), solarize_prob=0.0),
        data=DataConfig(source="", decode_size=32),
        optim=replace(base.optim, lr=1e-3),
        samples=150_000,
        log_every=20,
        checkpoint_every=200,
    )


PRESETS: dict[str, Callable[[], Config]] = {f.__name__: f for f in (shapes_tiny, cifar_tiny, b16, l16, so400m, g16)}

PROVENANCE = {
    "vision": "likely: SigLIP's tower of this name, 256 px; g16 and the patch of so400m: open",
    "text": "likely: same width and depth as the vision tower, 32k vocabulary, 64 tokens; so400m, g16: open",
    "views.num_global": "sure",
    "views.num_local": "sure",
    "views.global_area": "sure",
    "views.local_area": "sure",
    "views.global_size": "likely",
    "views.local_size": "likely",
    "views": "likely: DINO's augmentation",
    "contrastive.loss": "sure: both losses are in the paper",
    "contrastive.images": "sure: every global view meets the text",
    "contrastive": "sure: SigLIP's initial scale 10 and bias -10",
    "distillation.weight": "likely: plain sum",
    "distillation.pairs": "open: the paper draws global -> local only; DINO adds the other global view",
    "distillation.num_prototypes": "sure",
    "distillation.hidden_dim": "likely: DINO's head",
    "distillation.bottleneck_dim": "likely: DINO's head",
    "distillation.ema_momentum": "sure that it is fixed; likely 0.966 at batch 16k, and 1 - m shrinks with the batch",
    "distillation": "likely: DINO's temperatures and centre momentum",
    "optim": "likely: rsqrt, peak 1e-3, 50k steps of warm-up and cool-down, beta2 0.95, decay 1e-4, clip 1.0",
    "batch_size": "likely",
    "samples": "likely: 20 billion",
    "data.decode_size": "open",
}


def make_preset(name: str) -> Config:
    if name not in PRESETS:
        raise unknown_name("preset", name, PRESETS)
    return PRESETS[name]()


def configure(
    preset: str,
    objective: str,
    *,
    data: str | None = None,
    samples: int | None = None,
    seed: int | None = None,
    init: str | None = None,
    sets: Iterable[str] = (),
) -> Config:
    """A preset, a step of the ablation, and the user's changes, in this order; checked as a whole.

    Raises:
        UserError: an unknown name, a value of the wrong type, or a configuration that cannot work.
    """
    config = apply_objective(make_preset(preset), objective)
    if data is not None:
        config = replace(config, data=replace(config.data, source=data))
    if init is not None:
        config = replace(config, init=init)
    if samples is not None:
        config = replace(config, samples=samples)
    if seed is not None:
        config = replace(config, seed=seed, data=replace(config.data, seed=seed))
    return apply_sets(config, sets)


def provenance_of(field: str) -> str:
    """How sure the recipe is of a field such as "views.local_size"; "" for the fields that are our own affair."""
    while field not in PROVENANCE and "." in field:
        field = field.rpartition(".")[0]
    return PROVENANCE.get(field, "")
