"""Two and three gloo ranks against one process on the same global batch: losses, gradients, centre, teacher, weights."""

import on_ranks
import pytest
import torch
from gloo_pool import GlooPool

from silc_bench.errors import UserError
from trainer import distributed
from trainer.config import ViewsConfig
from trainer.data import open_source
from trainer.distributed import share_of
from trainer.tokenizer import Tokenizer

STEPS, BATCH = 5, 12
WORLDS = (2, 3)


@pytest.fixture(scope="module")
def pool():
    pool = GlooPool(max(WORLDS))
    yield pool
    pool.close()


def setup(config):
    """A tokenizer and STEPS global batches."""
    source = open_source(config.data)
    tokenizer = Tokenizer.train(source.captions(50), config.text.vocab_size, config.text.context_length)
    stream = source.batches(config.batch_size, 0)
    batches = [next(stream) for _ in range(STEPS)]
    stream.close()
    return tokenizer, batches


def close(one, other, tolerance=1e-6):
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


# --- one step and five -----------------------------------------------------------------------------------------------------

VARIANTS = {
    "silc": {},
    "local+global, both images": {"distillation": {"pairs": "local+global"}, "contrastive": {"images": "original+global"}},
    "softmax": {"contrastive": {"loss": "softmax"}},
    "contrastive": {"objective": "contrastive"},
}


def both(tiny, pool, world, variant, dtype):
    """What one process and what rank 0 of ``world`` end with; the ranks equal each other bit for bit."""
    changes = {"objective": "silc", "precision": "fp32", "batch_size": BATCH, "samples": BATCH * STEPS} | VARIANTS[variant]
    config = tiny(changes.pop("objective"), **changes)
    tokenizer, batches = setup(config)
    one = on_ranks.train(config, tokenizer, batches, dtype=dtype)
    first, *others = pool.run(world, on_ranks.train, config, tokenizer, batches, dtype=dtype)
    for other in others:
        assert other[0] == first[0]
        for mine, theirs in zip((*other[1], *other[2:4]), (*first[1], *first[2:4]), strict=True):
            assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []
    assert first[4] == one[4] == (STEPS, STEPS * BATCH, STEPS * BATCH)
    return one, first


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("world", WORLDS)
def test_ranks_equal_one_process(tiny, pool, world, variant):
    """Losses and gradients of each of five steps, then weights, teacher and centre, in float64."""
    one, ranks = both(tiny, pool, world, variant, torch.float64)
    for mine, theirs in zip(ranks[0], one[0], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-6)  # reported in fp32
    for mine, theirs in zip((*ranks[1], ranks[2], ranks[3]), (*one[1], one[2], one[3]), strict=True):
        assert {value.dtype for value in mine.values()} == {torch.float64}
        for name in theirs:
            close(mine[name], theirs[name], 1e-9)
    assert (variant == "contrastive") or one[3]["center"].abs().max() > 1e-3


@pytest.mark.parametrize("world", WORLDS)
def test_ranks_equal_one_process_in_fp32(tiny, pool, world):
    """To 1e-6. Adam divides a gradient by its own size: where that is nothing but rounding (a key's bias, which a softmax does
    not see) the update is rounding at the size of the rate, so later steps are compared where the gradient is more than that.
    """
    one, ranks = both(tiny, pool, world, "local+global, both images", torch.float32)
    for mine, theirs in zip(ranks[0], one[0], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)
    for name, gradient in one[1][0].items():
        close(ranks[1][0][name], gradient)
    is_real = {name: torch.stack([g[name].abs() for g in one[1]]).amin(0) > 1e-5 for name in one[1][0]}
    assert sum(int(x.sum()) for x in is_real.values()) > 0.5 * sum(x.numel() for x in is_real.values())
    for mine, theirs in (ranks[2:3] + one[2:3], ranks[3:4] + one[3:4]):
        for name, value in theirs.items():
            where = is_real.get(name, torch.ones_like(value, dtype=torch.bool))
            assert (mine[name] - value)[where].abs().max() < 1e-6, name


@pytest.mark.parametrize("world", WORLDS)
def test_what_is_not_finite_on_one_rank_stops_all_at_the_same_step(tiny, pool, world):
    config = tiny(batch_size=BATCH, samples=BATCH * STEPS, precision="fp32")
    tokenizer, batches = setup(config)
    answers = pool.run(world, on_ranks.message_of_train, config, tokenizer, batches, plant=world - 1)
    assert len(set(answers)) == 1
    assert answers[0][0] == "RunError"
    assert answers[0][1].startswith("step 1: contrastive is not finite")


# --- the parts ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", WORLDS)
def test_shares_of_the_losses_average_to_the_loss_of_the_global_batch(pool, world):
    """Values and gradients in float64."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 6, 5, generator=generator, dtype=torch.float64)
    texts = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    expected = on_ranks.losses(images, texts)
    answers = pool.run(world, on_ranks.losses, images, texts)
    for index, (value, (by_images, by_texts, *by_scalars)) in enumerate(expected):
        for answer in answers:
            close(answer[index][0], value, 1e-12)
        close(torch.cat([answer[index][1][0] for answer in answers], dim=1), by_images, 1e-12)
        close(torch.cat([answer[index][1][1] for answer in answers]), by_texts, 1e-12)
        for number, gradient in enumerate(by_scalars):
            close(sum(answer[index][1][2 + number] for answer in answers), gradient, 1e-12)


@pytest.mark.parametrize("world", WORLDS)
def test_gather_is_in_the_order_of_the_ranks_and_its_gradient_goes_home(pool, world):
    rows = torch.arange(world * 2.0).view(world, 2)
    for number, (everyone, gradient) in enumerate(pool.run(world, on_ranks.gathered, rows)):
        assert torch.equal(everyone, rows)
        weights = torch.arange(world * 2.0).view(world, 2)[number]
        assert torch.equal(gradient, world * weights + 100 * sum(range(world)))


@pytest.mark.parametrize("world", WORLDS)
def test_any_number_of_ranks_draws_the_same_views(pool, world):
    config = ViewsConfig(global_size=16, num_local=3, local_size=8)
    images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    sizes = torch.full((6, 2), 32)
    whole = on_ranks.views(config, images, sizes, 4)
    parts = pool.run(world, on_ranks.views, config, images, sizes, 4)
    close(torch.cat([part.global_crops for part in parts], dim=1), whole.global_crops)
    close(torch.cat([part.local_crops for part in parts], dim=1), whole.local_crops)
    close(torch.cat([part.original for part in parts]), whole.original)


@pytest.mark.parametrize(("world", "batch", "near"), [(2, 9, 8), (3, 16, 15), (5, 3, 5)])
def test_a_batch_that_does_not_divide_is_refused(monkeypatch, world, batch, near):
    monkeypatch.setattr(distributed, "num_ranks", lambda: world)
    with pytest.raises(UserError, match=f"batch_size {batch} does not divide among {world} .*--set batch_size={near}"):
        share_of(batch)
    assert share_of(near) == near // world
