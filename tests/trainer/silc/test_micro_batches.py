"""k micro-batches of b pairs equal one of k x b: loss, gradients, centre, teacher; memory.

They keep few activations.
"""

import pytest
import torch
from on_ranks import first_batches, train

from silc_bench.trainer.silc.student import MicroBatches
from silc_bench.trainer.silc.views import make_views
from silc_bench.trainer.train import TrainState

STEPS = 2
ALL_VIEWS = {
    "distillation": {"pairs": "local+global"},
    "contrastive": {"images": "original+global"},
}


@pytest.mark.parametrize(
    ("size", "changes"),
    [
        # what a part of one pair may lose, a dimension, does not depend on the losses
        (1, ALL_VIEWS),
        (3, ALL_VIEWS),
        (3, {"distillation": {"centering": "sinkhorn"}, "contrastive": {"loss": "softmax"}}),
        (3, {"distillation": {"weight": 0.0}}),
        (3, {"masked": {"weight": 0.5}, "contrastive": {"images": "original"}}),
    ],
    ids=["pairs one by one", "all views", "sinkhorn", "contrastive", "masked"],
)
def test_k_times_b_equals_one_batch(tiny, changes, size):
    """In float64, after two steps; batches of 8, also in parts that do not divide it."""
    tokenizer, batches = first_batches(tiny(precision="fp32"), STEPS)
    one, many = (
        train(
            tiny(precision="fp32", micro_batch=n, **changes),
            tokenizer,
            batches,
            dtype=torch.float64,
        )
        for n in (0, size)
    )
    for mine, theirs in zip(many[0], one[0], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-6)
    for mine, theirs in zip((*many[1], *many[2:4]), (*one[1], *one[2:4]), strict=True):
        for name in theirs:
            torch.testing.assert_close(mine[name], theirs[name], rtol=1e-9, atol=1e-9)
    assert many[4] == one[4]


def test_the_activations_of_a_micro_batch_are_not_kept(tiny):
    """Of 8 pairs one at a time: a tenth of the tensors that one forward pass saves."""
    config = tiny(precision="fp32")
    tokenizer, (batch, *_) = first_batches(config, STEPS)
    state = TrainState.create(config, tokenizer, torch.device("cpu"))
    views, tokens = (
        make_views(batch.images, batch.sizes, config.views, 0, 0),
        tokenizer(batch.texts),
    )
    kept = {}
    for name, forward in (("whole", state.student), ("parts", MicroBatches(state.student, 1))):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, sizes=sizes: sizes.append(x.numel()) or x, lambda x: x
        ):
            out = forward(views, tokens)
        kept[name] = sum(sizes)
        assert out.image_features.shape[:2] == (2, 8)
    assert kept["parts"] < kept["whole"] / 10


@pytest.mark.parametrize("size", [1, 3, 8, 9])
def test_views_are_split_by_images(tiny, size):
    config = tiny()
    _, (batch, *_) = first_batches(config, STEPS)
    views = make_views(batch.images, batch.sizes, config.views, 0, 0)
    parts = list(views.split(size))
    assert torch.equal(torch.cat([p.global_crops for p in parts], dim=1), views.global_crops)
    assert torch.equal(torch.cat([p.local_crops for p in parts], dim=1), views.local_crops)
    assert torch.equal(torch.cat([p.original for p in parts]), views.original)
    assert max(len(p.original) for p in parts) == min(size, 8)
