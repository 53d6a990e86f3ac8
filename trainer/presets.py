"""Presets are functions: a variant calls its base and changes a field. ``trainer.provenance`` says how sure each number is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from silc_bench.errors import UserError, unknown_name
from trainer.config import Config, apply_objective
from trainer.overrides import apply_sets, refuse_idle
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


def b16() -> Config:
    """SILC ViT-B/16 at 256 px as far as the paper tells: batch 16k, 20 billion pairs, 65,536 prototypes."""
    return Config(
        preset="b16",
        vision=VisionConfig(),
        text=TextConfig(),
        data=DataConfig(source=""),
        distillation=DistillationConfig(ema_batch=16_384),
        optim=OptimConfig(warmup_fraction=50_000 / 1_220_703, cooldown_fraction=50_000 / 1_220_703),
        probe=ProbeConfig(every=5_000),
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


def siglip2_dense() -> Config:
    """SigLIP 2 (2502.14786) at ViT-B/16, without its captioning decoder.

    SILC's loss and masked patches join at 80 % of training. One global view teaches 8 local ones and the masked patches of
    itself; texts meet the original picture. Weights 1 and 0.25, times 0.25 at this size (L 0.5, So400m 1, g 0.5).
    """
    base, size_factor = b16(), 0.25
    return replace(
        base,
        preset="siglip2_dense",
        views=replace(base.views, num_global=1),
        contrastive=replace(base.contrastive, images="original"),
        distillation=replace(base.distillation, weight=size_factor, start_fraction=0.8),
        masked=MaskedConfig(weight=0.25 * size_factor, ratio=0.5),
        optim=replace(base.optim, schedule="cosine", warmup_fraction=20_000 / 1_220_703),
        batch_size=32_768,
        samples=40_000_000_000,
    )


def tips() -> Config:
    """TIPS (2410.16512) at ViT-B/16, with one caption a picture: CLIP's loss, distillation and masked patches from the start.

    Views are cropped and flipped only.
    """
    base = b16()
    return replace(
        base,
        preset="tips",
        views=replace(base.views, jitter_prob=0.0, gray_prob=0.0, blur_probs=(0.0, 0.0, 0.0), solarize_prob=0.0),
        contrastive=replace(base.contrastive, loss="softmax"),
        distillation=replace(base.distillation, num_prototypes=32_768, teacher_temp=0.07),
        masked=MaskedConfig(weight=2.0),
    )


def silc_star() -> Config:
    """SILC*: a finished b16, one billion pairs more on a cleaner set of 100 million; only with --init."""
    base = b16()
    return replace(
        base,
        preset="silc_star",
        samples=1_000_000_000,
        optim=replace(base.optim, lr=1e-4, warmup_fraction=0.04, cooldown_fraction=0.04),
    )


SECOND_PHASES = ("silc_star",)  # nothing to start with but a checkpoint of the first


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


_ALL = (shapes_tiny, cifar_tiny, b16, l16, so400m, g16, siglip2_dense, tips, silc_star)
PRESETS: dict[str, Callable[[], Config]] = {f.__name__: f for f in _ALL}


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
        UserError: an unknown name, a value of the wrong type, a configuration that cannot work, or a change without effect.
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
    sets = list(sets)
    config = apply_sets(config, sets)
    refuse_idle(config, sets)
    _check_meaning(config)
    return config


def _check_meaning(config: Config) -> None:
    """What would run, but not as its names say. Checkpoints of such runs are still read."""
    is_taught = config.distillation.weight > 0 or config.masked.weight > 0
    if is_taught and config.objective != "silc":
        raise UserError(
            f"objective {config.objective} has no teacher, and distillation.weight={config.distillation.weight:g},"
            f" masked.weight={config.masked.weight:g} ask for one; take --objective silc, or leave the weights out"
        )
    if not is_taught and config.objective == "silc":
        raise UserError(
            "objective silc without distillation.weight and masked.weight has nothing of SILC; take --objective"
            " contrastive+views, or contrastive"
        )
    if config.objective == "contrastive" and config.contrastive.images != "original":
        raise UserError(
            f"objective contrastive is without views, and contrastive.images={config.contrastive.images} asks for them; take"
            " --objective contrastive+views"
        )
    trained, measured = config.views.global_size, config.vision.image_size
    if trained != measured:
        raise UserError(
            f"views.global_size={trained} and vision.image_size={measured} differ: pictures would be trained at {trained} px"
            f" and measured at {measured}; set both"
        )
