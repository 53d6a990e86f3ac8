"""k micro-batches of b pairs equal one of k x b: loss, gradients, centre, teacher; memory."""

import pytest
import torch
from on_ranks import first_batches, train
from runs import CPU, close, saved_numels

from silc_bench.trainer.silc.student import MicroBatches
from silc_bench.trainer.silc.views import make_views
from silc_bench.trainer.train import TrainState

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
    tokenizer, batches = first_batches(tiny(), 2)
    whole, parts = (
        train(tiny(micro_batch=count, **changes), tokenizer, batches, dtype=torch.float64)
        for count in (0, size)
    )
    for mine, theirs in zip(parts[0], whole[0], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-6)
    close(parts[1:4], whole[1:4], 1e-9)
    assert parts[4] == whole[4]


@pytest.fixture
def state_and_views(tiny):
    config = tiny(contrastive={"images": "original+global"})
    tokenizer, (batch,) = first_batches(config, 1)
    state = TrainState.create(config, tokenizer, CPU)
    return state, make_views(batch.images, batch.sizes, config.views, 0, 0), tokenizer(batch.texts)


def test_the_activations_of_a_micro_batch_are_not_kept(state_and_views):
    """Of 8 pairs one at a time: a tenth of the tensors that one forward pass saves."""
    state, *inputs = state_and_views
    whole, _ = saved_numels(lambda: state.student(*inputs))
    parts, _ = saved_numels(lambda: MicroBatches(state.student, 1)(*inputs))
    assert sum(parts.values()) < sum(whole.values()) / 10


@pytest.mark.parametrize("size", [1, 3, 8, 9])
def test_views_are_split_by_images(state_and_views, size):
    _, views, _ = state_and_views
    parts = list(views.split(size))
    assert max(len(part.original) for part in parts) == min(size, 8)
    for kind, dim in {"global_crops": 1, "local_crops": 1, "original": 0}.items():
        joined = torch.cat([getattr(part, kind) for part in parts], dim)
        assert torch.equal(joined, getattr(views, kind))
