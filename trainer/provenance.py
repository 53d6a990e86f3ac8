"""How sure each number of the real presets is.

"sure" (read from the paper), "likely" (the value of the code it builds on, or widely repeated), "open" (not established; our
choice, named). ``silc-bench train --preset b16 --show-config`` prints it beside each value.
"""

from __future__ import annotations

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
    "distillation.start_fraction": "sure: SILC distils from the first step",
    "distillation.ema_momentum": "sure that it is fixed; likely 0.966 at batch 16k, and 1 - m shrinks with the batch",
    "distillation": "likely: DINO's temperatures and centre momentum",
    "masked": "sure that SILC has none: weight 0",
    "optim.locked": "sure: both towers learn",
    "optim.layer_decay": "likely: all layers at one rate",
    "optim.schedule": "likely: rsqrt; its time scale, here the warm-up: open (big_vision's, 10k steps, ends at half the rate)",
    "optim": "likely: rsqrt, peak 1e-3, 50k steps of warm-up and cool-down, beta2 0.95, decay 1e-4, clip 1.0",
    "batch_size": "likely",
    "samples": "likely: 20 billion",
    "data.decode_size": "open",
}


_TEACHER = {  # of both neighbours
    "distillation.pairs": "open: SILC's local views alone",
    "distillation.hidden_dim": "open: DINO's head, for views and for patches",
    "distillation.bottleneck_dim": "open: DINO's head, for views and for patches",
    "distillation.center_momentum": "open: DINO's, with a centre of their own for patches (iBOT)",
    "distillation.centering": "open: SILC's centre",
    "distillation.ema_momentum": "open: SILC's at batch 16k, and 1 - m grows with the batch",
    "distillation": "open: SILC's",
    "masked.ratio": "open",
}
PROVENANCE_OF = {  # where a preset departs from SILC, or SILC's value is all that is known
    "silc_star": {
        "samples": "likely: 1 billion pairs more, on a cleaner subset of 100 million that is not public",
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
        "text": "open: SILC's; SigLIP 2 has Gemma's vocabulary of 256k",
        "contrastive.loss": "sure: the sigmoid loss",
        "contrastive.images": "sure: the original picture alone",
        "contrastive": "likely: SigLIP's initial scale 10 and bias -10",
        "distillation.weight": "sure: 1, times 0.25 at this size",
        "distillation.start_fraction": "sure: at 80 % of training, teacher copied from the student, heads fresh",
        "distillation.num_prototypes": "open: SILC's",
        "masked.weight": "sure: 0.25, times 0.25 at this size",
        "masked.ratio": "sure: 50 % of the patches; drawn at random over the view: open; a head of its own: likely",
        "optim.schedule": "likely: cosine, 20k steps of warm-up",
        "optim.warmup_fraction": "likely: 20k of 1.2 M steps",
        "batch_size": "likely: 32k",
        "samples": "likely: 40 billion",
    },
    "tips": _TEACHER
    | {
        "views.num_global": "open: SILC's",
        "views.num_local": "open: SILC's",
        "views.global_area": "open: SILC's",
        "views.local_area": "open: SILC's",
        "views.global_size": "open: SILC's",
        "views.local_size": "open: SILC's",
        "views": "sure: resized, cropped and flipped, nothing else",
        "vision": "open: SILC's towers, with MAP pooling; TIPS pools by two class tokens, for two captions a picture",
        "text": "open: SILC's",
        "contrastive.loss": "sure: CLIP's softmax loss",
        "contrastive.images": "open: SILC's",
        "contrastive": "open: SILC's scale; the softmax loss has no bias",
        "distillation.weight": "sure: 1",
        "distillation.start_fraction": "likely: from the first step",
        "distillation.num_prototypes": "sure: 32k",
        "distillation.teacher_temp": "sure",
        "masked.weight": "sure: 2",
        "optim": "open: SILC's",
        "optim.schedule": "open: SILC's",
        "batch_size": "open: SILC's",
        "samples": "open: SILC's",
    },
}


def provenance_of(field: str, preset: str = "b16") -> str:
    """How sure the recipe is of a preset's field such as "views.local_size"; "" for the fields that are our own affair."""
    known = PROVENANCE | PROVENANCE_OF.get(preset, {})
    while field not in known and "." in field:
        field = field.rpartition(".")[0]
    return known.get(field, "")
