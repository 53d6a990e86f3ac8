"""Each variant of the step, 20 steps in float64, against ``plain_step``: written from the formulas.

What is random is shared: the first weights, the pixels of the views, the masked places. All else is
computed twice, and must agree but for the rounding.
"""

from functools import partial
from pathlib import Path
from unittest import mock

import plain_step
import pytest
import torch
from on_ranks import first_batches, views_as
from plain_step import PlainRun
from runs import values_of

from silc_bench.trainer import train
from silc_bench.trainer.config.presets import configure
from silc_bench.trainer.data.stream import Batch
from silc_bench.trainer.train import TrainState, train_step

pytestmark = pytest.mark.broad

STEPS = 20
TOWER = {"width": 16, "depth": 2, "num_heads": 2, "mlp_dim": 24}
SMALL = {
    "vision": TOWER | {"image_size": 16, "patch_size": 8},
    "text": TOWER | {"vocab_size": 300, "context_length": 12},
    "views": {"global_size": 16, "local_size": 8, "num_local": 2},
    "data": {"decode_size": 32},
    "distillation": {"num_prototypes": 48, "hidden_dim": 40, "bottleneck_dim": 32},
    "optim": {"warmup_fraction": 0.2},
}
RUN = ["batch_size=6", f"samples={6 * STEPS}", "micro_batch=0", "precision=fp32", "seed=3"]

# preset, objective, changes
VARIANTS = {
    "silc": ("b16", "silc", "distillation.ema_batch=0 optim.cooldown_fraction=0.3"),
    "contrastive+views": ("b16", "contrastive+views", "contrastive.images=original+global"),
    "contrastive, micro-batches": ("b16", "contrastive", "micro_batch=2"),
    "local+global": ("b16", "silc", "distillation.pairs=local+global distillation.weight=0.5"),
    "softmax": (
        "b16",
        "silc",
        "contrastive.loss=softmax contrastive.init_scale=1 contrastive.max_scale=1"
        " optim.schedule=wsd",
    ),
    "equal texts": ("b16", "contrastive", "contrastive.equal_texts=positive"),
    "equal texts, softmax": (
        "b16",
        "contrastive",
        "contrastive.equal_texts=positive contrastive.loss=softmax",
    ),
    "sinkhorn": ("b16", "silc", "distillation.centering=sinkhorn"),
    "masked, sinkhorn": ("b16", "silc", "distillation.centering=sinkhorn masked.weight=0.5"),
    "masked patches alone": ("b16", "silc", "distillation.weight=0 masked.weight=0.5"),
    "late start": (
        "b16",
        "silc",
        "distillation.start_fraction=0.35 distillation.ema_schedule=cosine"
        " distillation.ema_momentum=0.9 distillation.ema_batch=0",
    ),
    "locked text": ("b16", "silc", "optim.locked=text optim.clip_norm=0.3"),
    "locked vision": ("b16", "contrastive", "optim.locked=vision"),
    "adafactor": ("b16", "silc", "optim.kind=adafactor masked.weight=0.5"),
    "layer decay and average": ("b16", "silc", "optim.layer_decay=0.8 average_momentum=0.7"),
    "exact gelu": ("b16", "contrastive", "vision.gelu=exact text.gelu=exact"),
    "blocks anew, micro-batches": (
        "b16",
        "silc",
        "checkpointing=blocks micro_batch=3 masked.weight=0.5",
    ),
    "frozen teacher": ("b16", "silc+frozen", ""),
    "shuffled targets": ("b16", "silc+shuffled", "masked.weight=0.5"),
    "siglip2_dense": ("siglip2_dense", "silc", "distillation.start_fraction=0.5"),
    # positions of 4 x 4 patches are resized to 2 x 2, where an antialias tells
    "tips": ("tips", "silc", "vision.image_size=32 views.global_size=32 views.local_size=16"),
}


@pytest.fixture(scope="module")
def batches():
    """Six pairs a step, the last two with one text, and the tokenizer."""
    tokenizer, batches = first_batches(config_of("b16", "silc", ""), STEPS)
    texts = [[*batch.texts[:-1], batch.texts[-2]] for batch in batches]
    return tokenizer, [
        Batch(batch.images, batch.sizes, text, batch.position)
        for batch, text in zip(batches, texts, strict=True)
    ]


def config_of(preset, objective, changes):
    sets = [f"{part}.{name}={x}" for part, fields in SMALL.items() for name, x in fields.items()]
    return configure(preset, objective, data="shapes", sets=[*sets, *RUN, *changes.split()])


def drawn_by(step):
    """What ``step()`` gives, and what it drew: views by their names, and masked places."""
    drawn = []

    def noted(draw):
        def draw_and_note(*args, **kwargs):
            drawn.append(draw(*args, **kwargs))
            return drawn[-1]

        return draw_and_note

    views_in_double = noted(partial(views_as, torch.float64))
    with (
        mock.patch.object(train, "make_views", views_in_double),
        mock.patch.object(train, "draw_masked", noted(train.draw_masked)),
    ):
        values = step()
    views, masked = drawn[0], drawn[1] if len(drawn) > 1 else None
    pixels = views.of_images()
    if views.local_crops is not None:
        pixels["local"] = views.local_crops
    return values, pixels, masked


@pytest.mark.parametrize("variant", VARIANTS)
def test_twenty_steps_equal_the_formulas(variant, batches):
    config = config_of(*VARIANTS[variant])
    tokenizer, batches = batches
    torch.set_default_dtype(torch.float64)  # of the weights
    try:
        state = TrainState.create(config, tokenizer, torch.device("cpu"))
    finally:
        torch.set_default_dtype(torch.float32)
    plain = PlainRun(config, state.student.state_dict())

    for batch in batches:
        values, pixels, masked = drawn_by(lambda batch=batch: train_step(state, batch))
        expected = plain.step(pixels, tokenizer(batch.texts), masked)
        # These are reported in fp32; the weights that follow from them are compared in float64.
        assert values_of(values) == pytest.approx(expected, rel=1e-6)

    check("student", dict(state.student.named_parameters()), plain.weights)
    check("teacher", dict(state.teacher.named_parameters()), plain.teacher)
    centers = {"head": state.teacher.center, "patch_head": state.teacher.patch_center}
    check("centre", centers, plain.centers)
    if state.average is not None:
        check("average", state.average.weights, plain.average)


def test_the_formulas_import_nothing_of_the_product():
    assert "import silc_bench" not in (source := Path(plain_step.__file__).read_text())
    assert "from silc_bench" not in source


def check(what, mine, theirs):
    """1e-12, but for the biases of keys.

    A softmax does not see them, so their gradient is rounding alone, and an optimiser that divides
    it by its own size moves them by noise. So nothing else depends on them either.
    """
    mine = {name: value.detach() for name, value in mine.items() if value is not None}
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert value.dtype == torch.float64
        errors = (value - theirs[name]).abs()
        if name.endswith("qkv.bias"):
            errors = errors.view(3, -1)[[0, 2]]
        elif name.endswith("kv.bias"):
            errors = errors.view(2, -1)[1]
        assert errors.max() < 1e-12, (what, name)
