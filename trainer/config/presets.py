"""Presets: functions that make a Config. A variant calls its base and changes a field.

Flow: ``configure(preset, objective, ...)`` -> the Config of a run: a preset, a step of the
ablation, and the user's changes.

PROVENANCE says how sure each number of the real presets is: "sure" (read from the paper), "likely"
(the value of the code it builds on, or widely repeated) or "open" (not established; our choice,
named). ``provenance_of(field, preset)`` reads it, and the command prints it beside each value:

    silc-bench train --preset b16 --show-config
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from silc_bench.errors import UserError, unknown_name
from silc_bench.trainer.config.config import (
    Config,
    ContrastiveConfig,
    DataConfig,
    DistillationConfig,
    OptimConfig,
    ProbeConfig,
    TextConfig,
    ViewsConfig,
    VisionConfig,
    apply_objective,
    changed,
)
from silc_bench.trainer.config.overrides import apply_sets, refuse_idle

# Views that are only cropped and flipped.
NO_COLOUR_CHANGES = {
    "views.jitter_prob": 0.0,
    "views.gray_prob": 0.0,
    "views.blur_probs": (0.0, 0.0, 0.0),
    "views.solarize_prob": 0.0,
}


# What DINO, DINOv2 and COSMOS share, and SigLIP's positions. The tiny presets keep what their
# committed results were trained with.
_SOURCES = {
    "vision.init_positions": "normal",
    "views.resize": "bicubic",
    "views.blur_size": 0,
    "distillation.init_prototypes": "uniform",
}


def b16() -> Config:
    """SILC ViT-B/16 at 256 px as far as the paper tells.

    Batch 16k, 20 billion pairs, 65,536 prototypes.
    """
    # 20 billion pairs in batches of 16,384 are 1,220,703 steps, with 50,000 to warm up and as many
    # to cool down.
    ramp = 50_000 / 1_220_703
    config = Config(
        preset="b16",
        vision=VisionConfig(),
        text=TextConfig(),
        data=DataConfig(source=""),
        distillation=DistillationConfig(ema_batch=16_384),
        optim=OptimConfig(warmup_fraction=ramp, cooldown_fraction=ramp),
        probe=ProbeConfig(every=5_000),
    )
    return changed(config, _SOURCES)


def l16() -> Config:
    """ViT-L/16 for both towers."""
    return _with_towers("l16", width=1024, depth=24, num_heads=16, mlp_dim=4096)


def so400m() -> Config:
    """The shape-optimised tower of 2305.13035, for both towers.

    Its patches have 16 pixels here, so that the views stay those of b16.
    """
    return _with_towers("so400m", width=1152, depth=27, num_heads=16, mlp_dim=4304)


def g16() -> Config:
    """ViT-G of 2106.04560 for both towers."""
    return _with_towers("g16", width=1664, depth=48, num_heads=16, mlp_dim=8192)


def _with_towers(preset: str, **sizes: Any) -> Config:
    """b16 with both towers of another size."""
    fields = {f"{side}.{name}": size for side in ("vision", "text") for name, size in sizes.items()}
    return changed(b16(), {"preset": preset, **fields})


def s16() -> Config:
    """Towers half as wide as b16's, 224 px, batch 1,024: for one GPU of 24 GB.

    A step takes 64 pairs at a time. The rate suits the smaller batch; ``ema_batch`` suits the
    teacher to it.
    """
    fields = _ONE_GPU | {"vision.image_size": 224, "views.global_size": 224}
    config = _with_towers("s16", width=384, depth=12, num_heads=6, mlp_dim=1536)
    return changed(config, fields)


def b16_1k() -> Config:
    """b16 with a batch of 1,024, for one GPU: on own images, or on from a SigLIP B/16."""
    return changed(b16(), {"preset": "b16_1k", **_ONE_GPU})


# A batch that one GPU takes, 64 pairs at a time, and its rate.
_ONE_GPU = {
    "batch_size": 1024,
    "micro_batch": 64,
    "samples": 100_000_000,
    "optim.lr": 5e-4,
    "optim.warmup_fraction": OptimConfig.warmup_fraction,
    "optim.cooldown_fraction": OptimConfig.cooldown_fraction,
}


def siglip2_dense() -> Config:
    """SigLIP 2 (2502.14786) at ViT-B/16, without its captioning decoder.

    SILC's loss and masked patches join at 80 % of training. One global view teaches 8 local ones
    and the masked patches of itself; texts meet the original image. Weights 1 and 0.25, times 0.25
    at this size (L 0.5, So400m 1, g 0.5).
    """
    size_factor = 0.25  # of both losses

    # 40 billion pairs in batches of 32,768 are 1,220,703 steps.
    warmup = 20_000 / 1_220_703
    return changed(
        b16(),
        {
            "preset": "siglip2_dense",
            "views.num_global": 1,
            "contrastive.images": "original",
            "distillation.weight": size_factor,
            "distillation.start_fraction": 0.8,
            "distillation.ema_batch": 32_768,
            "masked.weight": 0.25 * size_factor,
            "masked.ratio": 0.5,
            "optim.schedule": "cosine",
            "optim.warmup_fraction": warmup,
            "batch_size": 32_768,
            "samples": 40_000_000_000,
        },
    )


def tips() -> Config:
    """TIPS (2410.16512) at ViT-B/16, with one caption an image.

    CLIP's loss, distillation and masked patches from the start, and one global view. Views are
    cropped and flipped only. Local views have 96 px where TIPS has 98, in patches of 16 and not 14.
    """
    return changed(
        b16(),
        {
            "preset": "tips",
            **NO_COLOUR_CHANGES,
            "views.num_global": 1,
            "contrastive.loss": "softmax",
            "distillation.num_prototypes": 32_768,
            "distillation.teacher_temp": 0.07,
            "distillation.ema_momentum": 0.994,
            "distillation.ema_schedule": "cosine",
            "masked.weight": 2.0,
            "masked.ratio": 0.75,
            "samples": 70 * 116_000_000,
        },
    )


def silc_star() -> Config:
    """SILC*: a finished b16 sees one billion pairs more, of a cleaner set of 100 million.

    Only with --init, which names the checkpoint of the first phase.
    """
    return changed(
        b16(),
        {
            "preset": "silc_star",
            "samples": 1_000_000_000,
            "optim.lr": 1e-4,
            "optim.warmup_fraction": 0.04,
            "optim.cooldown_fraction": 0.04,
        },
    )


SECOND_PHASES = ("silc_star",)  # nothing to start with but a checkpoint of the first


def shapes_tiny() -> Config:
    """The demo: two small towers on generated scenes, minutes on two cores.

    It departs from the recipe where the data demands it. Captions name colour, size and place and
    each scene is seen once, so views are only cropped and flipped, the global ones mildly
    (docs/log.md has the recipe's own). A batch of 64 learns sooner with the softmax loss, and needs
    a slower teacher than batch 16k (EMA 0.99) and far fewer prototypes. Local views keep the
    recipe's share of a global one (4 of 36 patches).
    """
    tower: dict[str, Any] = {"width": 96, "num_heads": 6, "mlp_dim": 384}
    config = Config(
        preset="shapes_tiny",
        vision=VisionConfig(image_size=48, patch_size=8, depth=3, **tower),
        text=TextConfig(vocab_size=512, context_length=20, depth=2, **tower),
        views=ViewsConfig(global_size=48, global_area=(0.7, 1.0), local_size=16),
        # Two cores are busy with the step, and scenes are cheap: processes would take 30 ms of
        # CPU a batch where a thread takes 22.
        data=DataConfig(source="shapes", decode_size=64, num_workers=0),
        contrastive=ContrastiveConfig(loss="softmax"),
        distillation=DistillationConfig(
            num_prototypes=1024, hidden_dim=256, bottleneck_dim=64, ema_momentum=0.99
        ),
        optim=OptimConfig(lr=1e-3, schedule="cosine", warmup_fraction=0.1),
        batch_size=64,
        samples=38_400,
        log_every=10,
        checkpoint_every=100,
    )
    return changed(config, NO_COLOUR_CHANGES)


def cifar_tiny() -> Config:
    """Real photographs of 32 px with a short caption each.

    The demo's towers, a little larger, and the recipe's colour jitter. Patches of 8 px: with
    minutes to train, seeing a photograph four times as often is worth more than finer patches.
    """
    return changed(
        shapes_tiny(),
        {
            "preset": "cifar_tiny",
            "vision.image_size": 32,
            "vision.depth": 4,
            "vision.width": 128,
            "vision.num_heads": 4,
            "vision.mlp_dim": 512,
            "text.context_length": 16,
            "views": ViewsConfig(
                global_size=32, local_size=16, blur_probs=(0.0, 0.0, 0.0), solarize_prob=0.0
            ),
            "data.source": "",
            "data.decode_size": 32,
            "optim.lr": 1e-3,
            "samples": 150_000,
            "log_every": 20,
            "checkpoint_every": 200,
        },
    )


def places_tiny() -> Config:
    """Scenes in which parts predict things and things predict places, few pairs many times.

    Towers of 0.1 M parameters, so that a study can have seeds: a run takes half a minute of one
    core, with silc a minute and a half. At the recipe's teacher_temp of 0.04 targets tell next to
    nothing of an image (docs/log.md). Rate and clipping are those of the study's first try.
    """
    return changed(
        shapes_tiny(),
        {
            "preset": "places_tiny",
            "vision.depth": 2,
            "vision.width": 64,
            "vision.num_heads": 4,
            "vision.mlp_dim": 192,
            "text.depth": 1,
            "text.width": 64,
            "text.num_heads": 4,
            "text.mlp_dim": 192,
            "text.context_length": 16,
            "views.global_area": (0.4, 1.0),
            "views.num_local": 4,
            "data.source": "places:num_pairs=4096",
            "distillation.num_prototypes": 512,
            "distillation.hidden_dim": 128,
            "distillation.bottleneck_dim": 48,
            "distillation.teacher_temp": 0.02,
            "optim.lr": 1e-3,
            "optim.clip_norm": 0.3,
        },
    )


_ALL = (
    shapes_tiny,
    cifar_tiny,
    places_tiny,
    s16,
    b16_1k,
    b16,
    l16,
    so400m,
    g16,
    siglip2_dense,
    tips,
    silc_star,
)
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

    ``seed`` is that of the weights, the views and the data. ``sets`` come last, so they may change
    what any of the others set.

    Raises:
        UserError: an unknown name, a value of the wrong type, a configuration that cannot work, or
            a change without effect.
    """
    config = apply_objective(make_preset(preset), objective)
    fields = {"data.source": data, "init": init, "samples": samples}
    fields |= {"seed": seed, "data.seed": seed}
    given = {path: value for path, value in fields.items() if value is not None}
    config = changed(config, given)

    sets = list(sets)  # it is read twice
    config = apply_sets(config, sets)
    refuse_idle(config, sets)
    _check_meaning(config)
    return config


def _check_meaning(config: Config) -> None:
    """UserError for what would run, but not as its names say.

    It is asked of new runs alone: checkpoints of such runs are still read.
    """
    objective = f"--objective {config.objective}"
    if config.has_teacher and not config.is_silc:
        raise UserError(
            f"it has no teacher, but distillation.weight={config.distillation.weight:g} and"
            f" masked.weight={config.masked.weight:g} need one",
            about=objective,
            fix="take --objective silc, or leave the weights out",
        )
    if not config.has_teacher and config.is_silc:
        raise UserError(
            "without distillation.weight and masked.weight nothing of SILC is left",
            about=objective,
            fix="take --objective contrastive+views, or contrastive",
        )

    if config.objective == "contrastive" and config.contrastive.images != "original":
        raise UserError(
            f"it has no views, but contrastive.images={config.contrastive.images} needs them",
            about=objective,
            fix="take --objective contrastive+views",
        )

    trained = config.views.global_size
    measured = config.vision.image_size
    if trained != measured:
        raise UserError(
            f"is {trained} and vision.image_size is {measured}: images would be trained at"
            f" {trained} px and measured at {measured}",
            about="views.global_size",
            fix="set both to one size",
        )

    decoded = config.canvas
    if decoded < trained:
        raise UserError(
            f"is {decoded} and views.global_size is {trained}: every image would be made small and"
            " then enlarged, and evaluations would show the model sharp ones",
            about="data.decode_size",
            fix=f"set {trained} or more; 0 keeps the smallest crops sharp",
        )


# ---- how sure each number is ----

# Made for tests, the demo and a study: no paper gives their fields. How their rates and clippings
# were found is told; their other fields are our own affair.
RESULTS = "benchmarks/study/results"
TINY = {
    "shapes_tiny": (
        "open: ours, the best of three rates for contrastive, contrastive+views and silc together,"
        f" by scenes of val ({RESULTS}/shapes-tune.jsonl, docs/log.md)"
    ),
    "cifar_tiny": (
        "open: ours, the best of three pairs with contrastive, contrastive+views and silc, one seed"
        " each, of smaller towers with smaller patches over one epoch, by held-out photographs"
        f" ({RESULTS}/photographs-tune.jsonl)"
    ),
    "places_tiny": (
        "open: ours, for 4,096 pairs (docs/log.md); with 1,024 pairs 4e-3 is best"
        f" ({RESULTS}/1024-tune.jsonl)"
    ),
}

# Of a field, or of a section: its entry holds for each field that has none of its own.
PROVENANCE = {
    "vision.init_positions": "likely: SigLIP's (big_vision): normal, std 1/sqrt(width)",
    "vision": "likely: SigLIP's tower of this name, 256 px; g16 and the patch of so400m: open",
    "text": (
        "likely: same width and depth as the vision tower, 32k vocabulary, 64 tokens; so400m, g16:"
        " open"
    ),
    "tokenizer": (
        "likely: SigLIP's, 32k sentencepieces of C4 (c4_en.model): bring it with --tokenizer;"
        " without it one is trained on captions of the data: ours"
    ),
    "tokenizer_captions": "open: ours",
    "views.num_global": "sure",
    "views.num_local": "sure",
    "views.global_area": "sure",
    "views.local_area": "sure",
    "views.global_size": "likely",
    "views.local_size": "likely",
    "views.resize": "likely: bicubic with antialias (Pillow's) in DINO, DINOv2 and COSMOS",
    "views.blur_sigma": "likely: DINO's, as a Gaussian; Pillow's, there, is three box filters",
    "views.blur_size": "likely: DINO, DINOv2 and COSMOS do not scale it with the view",
    "views": "likely: DINO's augmentation",
    "contrastive.loss": "sure: both losses are in the paper",
    "contrastive.images": (
        "sure: every global view meets the text; the mean over the views: open (their sum, or one"
        " view drawn a step, are also possible)"
    ),
    "contrastive.max_scale": "likely: no ceiling, as SigLIP; CLIP and open_clip stop at 100",
    "contrastive.equal_texts": "likely: no paper speaks of equal texts in a batch",
    "contrastive": "sure: SigLIP's initial scale 10 and bias -10",
    "distillation.weight": "likely: plain sum",
    "distillation.pairs": (
        "open: the paper draws global -> local only; DINO adds the other global view"
    ),
    "distillation.num_prototypes": "sure",
    "distillation.hidden_dim": "likely: DINO's head",
    "distillation.bottleneck_dim": "likely: DINO's head",
    "distillation.init_prototypes": (
        "likely: torch's for a linear layer, in DINO, DINOv2 and COSMOS"
    ),
    "distillation.products": "open: ours, fp32",
    "distillation.start_fraction": "sure: SILC distils from the first step",
    "distillation.ema_momentum": (
        "sure that it is fixed; likely 0.966 at batch 16k, and 1 - m is proportional to the batch"
    ),
    "distillation.ema_schedule": ("sure: at 1 the teacher would stop learning from the text loss"),
    "distillation.ema_batch": "likely: the paper's batch; 1 - m in proportion to it: open",
    "distillation.is_shuffled": "sure: each image has its own targets",
    "distillation": "likely: DINO's temperatures and centre momentum",
    "masked": "sure that SILC has none: weight 0",
    "optim.locked": "sure: both towers learn",
    "optim.layer_decay": "likely: all layers at one rate",
    "optim.schedule": (
        "likely: rsqrt; its time scale, here the warm-up: open (big_vision's, 10k steps, ends at"
        " half the rate)"
    ),
    "optim": (
        "likely: rsqrt, peak 1e-3, 50k steps of warm-up and cool-down, beta2 0.95, decay 1e-4, clip"
        " 1.0"
    ),
    "batch_size": "likely",
    "samples": "likely: 20 billion",
    "data.decode_size": (
        "open: ours; 0 is the size that the smallest crops need (512 px in b16, as every run before"
        " it; 352 where the whole image alone meets the text), and the decoder makes JPEGs of four"
        " times that smaller, whose pixels differ a little"
    ),
}

# SILC's neighbours siglip2_dense and tips say little of their teachers; this holds for both.
_TEACHER = {
    "distillation.pairs": "open: SILC's local views alone",
    "distillation.hidden_dim": "open: DINO's head, for views and for patches",
    "distillation.bottleneck_dim": "open: DINO's head, for views and for patches",
    "distillation.center_momentum": "open: DINO's, with a centre of their own for patches (iBOT)",
    "distillation.centering": "open: SILC's centre",
    "distillation": "open: SILC's",
}

_SILCS = (  # of tips
    "views.num_local",
    "views.global_area",
    "views.local_area",
    "views.global_size",
    "text",
    "contrastive.images",
    "optim",
    "optim.schedule",
)

_OURS = {  # of a preset for one GPU
    "batch_size": "open: ours, what one GPU takes",
    "micro_batch": "open: ours, and it changes no result",
    "samples": "open: ours, days on one GPU",
    "optim.lr": "open: ours, for a batch of 1,024",
    "optim.warmup_fraction": "open: ours",
    "optim.cooldown_fraction": "open: ours",
    "distillation.ema_momentum": (
        "open: the recipe's at batch 16k, and 1 - m is proportional to the batch"
    ),
}

# Where a preset departs from SILC, or SILC's value is all that is known.
PROVENANCE_OF = {
    "s16": _OURS
    | {
        "vision": "open: ours, the usual ViT-S/16 with MAP pooling",
        "text": "open: ours, as wide as the vision tower",
        "views.global_size": "open: ours, the tower's 224 px",
    },
    "b16_1k": _OURS,
    "silc_star": {
        "samples": (
            "likely: 1 billion pairs more, on a cleaner subset of 100 million that is not public"
        ),
        "optim.lr": "open: a tenth of the first phase's peak",
        "optim.schedule": "open: as in the first phase",
        "optim.warmup_fraction": "open",
        "optim.cooldown_fraction": "open",
    },
    "siglip2_dense": _TEACHER
    | {
        "views.num_global": "sure: one global view",
        "views.num_local": "sure: eight",
        "views.global_area": "open: SILC's",
        "views.local_area": "open: SILC's",
        "views.global_size": "likely: the tower's 256 px",
        "views.local_size": "open: SILC's",
        "views": "open: SILC's augmentation",
        "views.blur_probs": (
            "open: SILC's; the only global view is DINO's first, so the teacher sees blurred ones"
            " alone (0.1,0.1,0.5: as DINO's second)"
        ),
        "views.solarize_prob": "open: without effect, DINO's first global view is never solarised",
        "text": "open: SILC's; SigLIP 2 has Gemma's vocabulary of 256k",
        "contrastive.loss": "sure: the sigmoid loss",
        "contrastive.images": "sure: the original image alone",
        "contrastive": "likely: SigLIP's initial scale 10 and bias -10",
        "distillation.weight": "sure: 1, times 0.25 at this size",
        "distillation.start_fraction": (
            "sure: at 80 % of training, teacher copied from the student, heads fresh"
        ),
        "distillation.ema_momentum": (
            "likely: SILC's 0.966, by the paper's words as there, at its batch of 32k; 1 - m is"
            " proportional to the batch"
        ),
        "distillation.ema_batch": "likely: the paper's batch of 32k",
        "distillation.ema_schedule": "likely: SILC's, fixed",
        "distillation.num_prototypes": "open: SILC's",
        "masked.weight": "sure: 0.25, times 0.25 at this size",
        "masked.ratio": (
            "sure: 50 % of the patches; drawn at random over the view: open; a head of its own:"
            " likely"
        ),
        "optim.schedule": "likely: cosine, 20k steps of warm-up",
        "optim.warmup_fraction": "likely: 20k of 1.2 M steps",
        "batch_size": "likely: 32k",
        "samples": "likely: 40 billion",
    },
    "tips": _TEACHER
    | {
        **dict.fromkeys(_SILCS, "open: SILC's"),
        "views": "sure: resized, cropped and flipped, nothing else",
        "vision": (
            "open: SILC's towers, with MAP pooling; TIPS pools by two class tokens, for two"
            " captions an image"
        ),
        "contrastive.loss": "sure: CLIP's softmax loss",
        "contrastive.max_scale": "open: no ceiling; CLIP and open_clip stop at 100",
        "contrastive": "open: SILC's scale; the softmax loss has no bias",
        "distillation.weight": "sure: 1",
        "distillation.start_fraction": "likely: from the first step",
        "distillation.num_prototypes": "sure: 32k",
        "distillation.teacher_temp": "sure for views; that patches have the same: open",
        "distillation.ema_momentum": (
            "likely: 0.994, rising to 1, at batch 16k, and 1 - m is proportional to the batch"
        ),
        "distillation.ema_schedule": "likely: half a cosine to 1",
        "distillation.ema_batch": "likely: the paper's batch of 16k",
        "masked.weight": "sure: 2",
        "masked.ratio": "likely: 75 % of the patches; drawn at random over the view: open",
        "views.num_global": "likely: one global view",
        "views.local_size": "open: 96 px in patches of 16; TIPS has 98 in patches of 14: likely",
        "batch_size": "likely: 16k",
        "samples": "likely: 116 million pairs, 70 times",
    },
}


def provenance_of(field: str, preset: str = "b16") -> str:
    """How sure the recipe is of a preset's field, such as "views.local_size".

    "" for the fields that are our own affair.
    """
    if preset in TINY:
        return TINY[preset] if field in ("optim.lr", "optim.clip_norm") else ""
    entries = PROVENANCE | PROVENANCE_OF.get(preset, {})

    # A field without an entry of its own has that of its section.
    while field not in entries and "." in field:
        field = field.rpartition(".")[0]
    return entries.get(field, "")
