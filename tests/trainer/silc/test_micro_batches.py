"""k micro-batches of b pairs equal one of k x b: loss, gradients, centre, teacher; memory."""

import pytest
import torch
from on_ranks import first_batches, train
from runs import close, saved_bytes, started

from silc_bench.trainer.silc.student import MicroBatches
from silc_bench.trainer.silc.views import make_views

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
        (3, {"optim": {"locked": "text"}}),
        (3, {"objective": "contrastive", "optim": {"locked": "vision"}}),
    ],
    ids=str,
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


def test_the_activations_of_a_micro_batch_are_not_kept(tiny):
    """Of 8 pairs one at a time: a tenth of the tensors that one forward pass saves."""
    config = tiny(contrastive={"images": "original+global"})
    state, (batch,) = started(config, 1)
    views = make_views(batch.images, batch.sizes, config.views, 0, 0)
    tokens = state.tokenizer(batch.texts)
    whole, parts = (
        saved_bytes(lambda encode=encode: encode(views, tokens))[0]
        for encode in (state.student, MicroBatches(state.student, 1))
    )
    assert sum(parts.values()) < sum(whole.values()) / 10
