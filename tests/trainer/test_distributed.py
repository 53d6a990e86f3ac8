"""Two and three gloo ranks against one process on the same global batch.

Losses, gradients, centre, teacher, weights.
"""

import itertools
import json
import os
import signal

import on_ranks
import pytest
import torch
import torch.nn.functional as F
from gloo_pool import GlooPool

from silc_bench.errors import UserError
from silc_bench.trainer import device as distributed
from silc_bench.trainer import loop
from silc_bench.trainer.checkpoints import file as checkpoint
from silc_bench.trainer.config.config import ViewsConfig
from silc_bench.trainer.device import share_of

pytestmark = pytest.mark.timing
STEPS, BATCH = 3, 12
WORLDS = (2, 3)


@pytest.fixture(scope="module")
def pool():
    pool = GlooPool(max(WORLDS))
    yield pool
    pool.close()


def close(one, other, tolerance=1e-6):
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


# --- whole steps ----------------------------------------------------------------------------------

VARIANTS = {
    "silc": {},
    "local+global, both images": {
        "distillation": {"pairs": "local+global"},
        "contrastive": {"images": "original+global"},
    },
    "softmax": {"contrastive": {"loss": "softmax"}},
    "contrastive": {"objective": "contrastive"},
    "micro-batches": {"micro_batch": 3},
    "locked text, micro-batches": {"optim": {"locked": "text"}, "micro_batch": 3},
    "locked vision": {"objective": "contrastive", "optim": {"locked": "vision"}},
    "masked": {"masked": {"weight": 0.5}, "micro_batch": 2},
    "masked, balanced": {"masked": {"weight": 0.5}, "distillation": {"centering": "sinkhorn"}},
    "masked, late": {"masked": {"weight": 0.5}, "distillation": {"start_fraction": 0.4}},
}


def both(tiny, pool, world, variant, dtype):
    """What one process and rank 0 of ``world`` end with; the ranks are equal bit for bit."""
    changes = {
        "objective": "silc",
        "precision": "fp32",
        "batch_size": BATCH,
        "samples": BATCH * STEPS,
    } | VARIANTS[variant]
    config = tiny(changes.pop("objective"), **changes)
    tokenizer, batches = on_ranks.first_batches(config, STEPS)
    one = on_ranks.train(config, tokenizer, batches, dtype=dtype)
    first, *others = pool.run(world, on_ranks.train, config, tokenizer, batches, dtype=dtype)
    for other in others:
        assert other[0] == first[0]
        for mine, theirs in zip((*other[1], *other[2:4]), (*first[1], *first[2:4]), strict=True):
            assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []
    assert first[4] == one[4] == (STEPS, STEPS * BATCH, STEPS * BATCH)
    return one, first


@pytest.mark.parametrize(
    ("variant", "world"), list(zip(VARIANTS, itertools.cycle(WORLDS), strict=False))
)
def test_ranks_equal_one_process(tiny, pool, world, variant):
    """Losses and gradients of each step, then weights, teacher and centre, in float64.

    Each variant in one of the worlds.
    """
    one, ranks = both(tiny, pool, world, variant, torch.float64)
    for mine, theirs in zip(ranks[0], one[0], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-6)  # reported in fp32
    for mine, theirs in zip(
        (*ranks[1], ranks[2], ranks[3]), (*one[1], one[2], one[3]), strict=True
    ):
        assert {value.dtype for value in mine.values()} == {torch.float64}
        for name in theirs:
            close(mine[name], theirs[name], 1e-9)
    centers = [name for name in one[3] if "center" in name and "balanced" not in variant]
    numbers = {
        "contrastive": 0,
        "locked vision": 0,
        "masked": 2,
        "masked, balanced": 0,
        "masked, late": 2,
    }
    assert len(centers) == numbers.get(variant, 1)
    assert all(one[3][name].abs().max() > 1e-3 for name in centers)


def test_ranks_equal_one_process_in_fp32(tiny, pool):
    """To 1e-6.

    Adam divides a gradient by its own size: where that is nothing but rounding (a key's bias, which
    a softmax does not see) the update is rounding at the size of the rate, so later steps are
    compared where the gradient is more than that.
    """
    one, ranks = both(tiny, pool, 2, "local+global, both images", torch.float32)
    for mine, theirs in zip(ranks[0], one[0], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)
    for name, gradient in one[1][0].items():
        close(ranks[1][0][name], gradient)
    is_real = {
        name: torch.stack([g[name].abs() for g in one[1]]).amin(0) > 1e-5 for name in one[1][0]
    }
    assert sum(int(x.sum()) for x in is_real.values()) > 0.5 * sum(
        x.numel() for x in is_real.values()
    )
    for mine, theirs in (ranks[2:3] + one[2:3], ranks[3:4] + one[3:4]):
        for name, value in theirs.items():
            where = is_real.get(name, torch.ones_like(value, dtype=torch.bool))
            assert (mine[name] - value)[where].abs().max() < 1e-6, name


def test_what_is_not_finite_on_one_rank_stops_all_at_the_same_step(tiny, pool):
    config = tiny(batch_size=BATCH, samples=BATCH * STEPS, precision="fp32")
    tokenizer, batches = on_ranks.first_batches(config, STEPS)
    answers = pool.run(3, on_ranks.message_of_train, config, tokenizer, batches, plant=2)
    assert len(set(answers)) == 1
    assert answers[0][0] == "RunError"
    assert answers[0][1].startswith("step 1: contrastive is not finite")


# --- the parts ------------------------------------------------------------------------------------


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
def test_sums_over_the_ranks_leave_what_was_given_and_do_not_overflow(pool, world):
    rows = torch.tensor(
        [[0.0, 900.0, -900.0, 1.0], [1.0, -900.0, -900.0, 1.0], [5.0, 3.0, 900.0, 1.0]]
    )[:world]
    for (mean, log_sum, mine), row in zip(
        pool.run(world, on_ranks.reduced, rows), rows, strict=True
    ):
        close(mean, rows.mean(0))
        close(log_sum, torch.logsumexp(rows, 0))
        assert torch.equal(mine, row)


@pytest.mark.parametrize("world", WORLDS)
def test_sinkhorn_balances_the_global_batch(pool, world):
    generator = torch.Generator().manual_seed(0)
    features = F.normalize(torch.randn(2, 6, 5, generator=generator, dtype=torch.float64), dim=-1)
    prototypes = F.normalize(torch.randn(9, 5, generator=generator, dtype=torch.float64), dim=-1)
    parts = pool.run(world, on_ranks.sinkhorn, features, prototypes)
    close(torch.cat(parts, dim=1), on_ranks.sinkhorn(features, prototypes), 1e-12)


@pytest.mark.parametrize("world", WORLDS)
def test_any_number_of_ranks_draws_the_same_views(pool, world):
    config = ViewsConfig(global_size=16, num_local=3, local_size=8)
    images = torch.randint(
        0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    sizes = torch.full((6, 2), 32)
    whole = on_ranks.views(config, images, sizes, 4)
    parts = pool.run(world, on_ranks.views, config, images, sizes, 4)
    close(torch.cat([part.global_crops for part in parts], dim=1), whole.global_crops)
    close(torch.cat([part.local_crops for part in parts], dim=1), whole.local_crops)
    close(torch.cat([part.original for part in parts]), whole.original)


@pytest.mark.parametrize(("world", "batch", "near"), [(2, 9, 8), (3, 16, 15), (5, 3, 5)])
def test_a_batch_that_does_not_divide_is_refused(monkeypatch, world, batch, near):
    monkeypatch.setattr(distributed, "num_ranks", lambda: world)
    with pytest.raises(
        UserError,
        match=f"batch_size {batch} does not divide among {world} .*--set batch_size={near}",
    ):
        share_of(batch)
    assert share_of(near) == near // world


# --- a whole run, as torchrun starts it -----------------------------------------------------------


def whole(tiny, **changes):
    return tiny(steps=4, precision="fp32", checkpoint_every=2, log_every=1, **changes)


def files_in(folder):
    return sorted(
        p.relative_to(folder).as_posix()
        for p in folder.rglob("*")
        if p.is_file() and "tensorboard" not in str(p)
    )


def test_a_run_of_two_is_the_run_of_one(tiny, pool, tmp_path):
    """Files, log and final weights; the tokenizer is trained once; only the first rank writes."""
    alone = on_ranks.run(whole(tiny), tmp_path / "one")
    assert (
        pool.run_as_torchrun(2, on_ranks.run, whole(tiny), tmp_path / "two")
        == [alone.replace("one", "two")] * 2
    )
    assert files_in(tmp_path / "two") == files_in(tmp_path / "one")
    logs = [
        [json.loads(line) for line in (tmp_path / n / "log.jsonl").read_text().splitlines()]
        for n in ("one", "two")
    ]
    assert len(list((tmp_path / "two" / "tensorboard").iterdir())) == 1
    for one, two in zip(*logs, strict=True):
        for name in (
            "step",
            "loss",
            "distillation",
            "gradient_norm",
            "samples_seen",
            "logit_scale",
        ):
            assert two[name] == pytest.approx(one[name], rel=1e-4)
    ends = [checkpoint.load(checkpoint.find(tmp_path / name)) for name in ("one", "two")]
    assert (ends[0]["tokenizer"], ends[0]["position"]) == (
        ends[1]["tokenizer"],
        ends[1]["position"],
    )
    close(ends[1]["teacher"]["center"], ends[0]["teacher"]["center"], 1e-5)


def test_shards_with_damage_are_shared_as_one_process_reads_them(tiny, pool, tmp_path, shards):
    config = whole(tiny, data={"source": shards})
    on_ranks.run(config, tmp_path / "one")
    pool.run_as_torchrun(2, on_ranks.run, config, tmp_path / "two")
    ends = [checkpoint.load(checkpoint.find(tmp_path / name)) for name in ("one", "two")]
    assert (ends[0]["step"], ends[0]["position"]) == (ends[1]["step"], ends[1]["position"])
    close(ends[1]["student"]["text.head.weight"], ends[0]["student"]["text.head.weight"], 1e-4)


@pytest.mark.parametrize("first", [0, 1], ids=lambda rank: f"rank {rank} speaks first")
@pytest.mark.parametrize(
    ("receivers", "to"),
    [([0], "rank 0 of 2"), ([1], "rank 1 of 2"), ([0, 1], "every rank")],
    ids=["0", "1", "both"],
)
def test_a_signal_is_told_of_by_rank_0_whoever_received_it_and_whoever_ends_first(
    tiny, pool, tmp_path, receivers, to, first
):
    """All ranks stop after the same step, and one sentence says why.

    It names the signal, who received it and what is saved.
    """
    os.mkfifo(tmp_path / "gate")
    how = {
        "at": [(rank, 3) for rank in receivers],
        "event": on_ranks.sigterm,
        "gate": (tmp_path / "gate", first),
    }
    answers = pool.run_as_torchrun(2, on_ranks.run, whole(tiny), tmp_path, **how)
    saved = checkpoint.path_of(tmp_path, 3)
    sentence = f"stopped by SIGTERM to {to} after step 3; {saved} is saved, continue with --resume"
    assert answers == [("StoppedError", sentence), ("SystemExit", "1")]
    assert checkpoint.find(tmp_path) == saved
    assert checkpoint.load(saved)["step"] == 3


def test_a_run_that_a_signal_stopped_goes_on(tiny, pool, tmp_path):
    pool.run_as_torchrun(
        2, on_ranks.run, whole(tiny), tmp_path, at=[(1, 3)], event=on_ranks.sigterm
    )
    done = pool.run_as_torchrun(2, on_ranks.run, whole(tiny), tmp_path, resume=True)
    assert done == [str(tmp_path / "checkpoints" / "step_00000004.pt")] * 2


def test_different_signals_to_some_ranks_are_all_named():
    error = loop._stopped([0, signal.SIGTERM, 0, signal.SIGINT, signal.SIGTERM], 7, "PATH")
    assert "SIGINT to rank 3 of 5 and SIGTERM to rank 1, 4 of 5 after step 7; PATH is saved" in str(
        error
    )


def test_a_signal_in_the_last_step_changes_nothing(tiny, pool, tmp_path):
    """The rank that gets it saves nothing, and so would have nothing to say."""
    done = pool.run_as_torchrun(
        2, on_ranks.run, whole(tiny), tmp_path, at=[(1, 4)], event=on_ranks.sigterm
    )
    assert done == [str(tmp_path / "checkpoints" / "step_00000004.pt")] * 2


@pytest.mark.parametrize(
    ("event", "kind", "words"),
    [
        (on_ranks.refuse, "UserError", "rank 1 of 2: the picture is missing"),
        (on_ranks.break_down, "ZeroDivisionError", "a mistake of ours on rank 1 of 2"),
    ],
)
def test_a_rank_that_fails_names_itself_and_the_others_end(
    tiny, pool, tmp_path, event, kind, words
):
    """The failing one speaks; the other, which waits for it in the middle of a step, is silent."""
    answers = pool.run_as_torchrun(2, on_ranks.run, whole(tiny), tmp_path, at=[(1, 2)], event=event)
    assert answers == [("SystemExit", "1"), (kind, words)]


def test_a_rank_that_is_killed_is_missed(tiny, pool, tmp_path):
    answers = pool.run_as_torchrun(
        2, on_ranks.run, whole(tiny), tmp_path, at=[(1, 2)], event=on_ranks.leave
    )
    assert answers[0][0] == "RunError"
    assert answers[0][1].startswith("rank 0 of 2: lost another rank, which torchrun names below")


def test_no_rank_begins_before_all_are_connected(pool, tmp_path):
    """One that began could fail and leave, and the others would wait for it while they connect."""
    os.mkfifo(tmp_path / "gate")
    pool.run_as_torchrun(2, on_ranks.order_of_joining, tmp_path, late=1)
    assert [path.name for path in tmp_path.glob("*early*")] == []
    assert (tmp_path / "connected").read_bytes() == b""


def test_a_batch_that_cannot_be_shared_stops_before_anything_is_read(tiny, pool, tmp_path):
    answers = pool.run_as_torchrun(
        3, on_ranks.run, whole(tiny, data={"source": "nowhere/*.tar"}), tmp_path
    )
    assert sorted(kind for kind, _ in answers) == ["SystemExit", "SystemExit", "UserError"]
    assert any(
        "of 3: batch_size 8 does not divide among 3 processes" in words for _, words in answers
    )


# --- evaluation -----------------------------------------------------------------------------------


def written(folder):
    """{file: its bytes; of a record without what a clock says}."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".json":
            record = json.loads(path.read_text())
            for name in ("seconds", "created", "outcomes", "checksums"):
                record.pop(name, None)
            found[path.relative_to(folder).as_posix()] = json.dumps(record)
        elif path.is_file():
            found[path.relative_to(folder).as_posix()] = path.read_bytes()
    return found


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    on_ranks.run(whole(tiny), folder)
    return folder


def test_records_of_several_processes_are_those_of_one(trained, pool, tmp_path):
    """77 pictures in batches of 10: neither divides.

    With a store, again from it, and with another number of ranks.
    """
    run = trained
    expected = on_ranks.evaluate_run(run, tmp_path / "one", 10)
    assert (
        pool.run(2, on_ranks.evaluate_run, run, tmp_path / "two", 10, tmp_path / "store")
        == [expected] * 2
    )
    assert (
        pool.run(3, on_ranks.evaluate_run, run, tmp_path / "three", 10, tmp_path / "store")
        == [expected] * 3
    )
    assert len(written(tmp_path / "one")) >= 4
    assert written(tmp_path / "two") == written(tmp_path / "one") == written(tmp_path / "three")


def test_a_rank_that_cannot_encode_its_share_is_named_by_every_rank(trained, pool, tmp_path):
    """With its reason and the kind of its error, as each of them may be the one that is heard."""
    answers = pool.run(2, on_ranks.evaluate_run_that_fails, trained, tmp_path)
    assert answers[0] == answers[1]
    assert answers[0][0] == "UserError"
    assert "rank 1 of 2: picture 7 is damaged" in answers[0][1]
