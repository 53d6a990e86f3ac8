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
import torch.distributed as dist
from gloo_pool import GlooPool
from refusals import refused
from runs import close, end_of, equal, rows_of, saved_in

from silc_bench.trainer import device as distributed
from silc_bench.trainer import loop
from silc_bench.trainer.checkpoints import file as checkpoint
from silc_bench.trainer.device import share_of

pytestmark = pytest.mark.timing
STEPS, BATCH = 3, 12
WORLDS = (2, 3)


@pytest.fixture(scope="module")
def pool():
    pool = GlooPool(max(WORLDS))
    yield pool
    pool.close()


# --- whole steps ----------------------------------------------------------------------------------

VARIANTS = {
    "silc": {},
    "local+global, both images": {
        "distillation": {"pairs": "local+global"},
        "contrastive": {"images": "original+global"},
    },
    "softmax": {"contrastive": {"loss": "softmax"}},
    "contrastive": {"objective": "contrastive"},
    # of two tokens a text: many are equal
    "equal texts": {"contrastive": {"equal_texts": "positive"}, "text": {"context_length": 2}},
    "equal texts, softmax": {
        "contrastive": {"equal_texts": "positive", "loss": "softmax"},
        "text": {"context_length": 2},
    },
    "micro-batches": {"micro_batch": 3},
    "locked text, micro-batches": {"optim": {"locked": "text"}, "micro_batch": 3},
    "locked vision": {"objective": "contrastive", "optim": {"locked": "vision"}},
    "masked": {"masked": {"weight": 0.5}, "micro_batch": 2},
    "masked, balanced": {"masked": {"weight": 0.5}, "distillation": {"centering": "sinkhorn"}},
    "masked, late": {"masked": {"weight": 0.5}, "distillation": {"start_fraction": 0.4}},
}


@pytest.mark.parametrize(
    ("variant", "world"), list(zip(VARIANTS, itertools.cycle(WORLDS), strict=False))
)
def test_ranks_equal_one_process(tiny, pool, world, variant):
    """Losses and gradients of each step, then weights, teacher and centre, in float64.

    Each variant in one of the worlds; the ranks are equal bit for bit.
    """
    config = tiny(**{"batch_size": BATCH, "samples": BATCH * STEPS} | VARIANTS[variant])
    tokenizer, batches = on_ranks.first_batches(config, STEPS)
    work = (config, tokenizer, batches, torch.float64)
    alone = on_ranks.train(*work)
    ranks, *others = pool.run(world, on_ranks.train, *work)
    assert all(equal(other, ranks) for other in others)
    assert ranks[4] == alone[4] == (STEPS, STEPS * BATCH, STEPS * BATCH)
    for mine, theirs in zip(ranks[0], alone[0], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-6)  # reported in fp32
    close(ranks[1:4], alone[1:4], 1e-9)


@pytest.mark.parametrize(("loss", "texts"), [("sigmoid", "negative"), ("softmax", "positive")])
def test_ranks_whose_tables_are_in_chunks_equal_one_process(tiny, pool, loss, texts):
    config = tiny(
        batch_size=BATCH,
        samples=BATCH,
        text={"context_length": 2},
        contrastive={"loss": loss, "equal_texts": texts},
    )
    work = (config, *on_ranks.first_batches(config, 1), torch.float64)
    alone = on_ranks.train(*work)
    for answer in pool.run(3, on_ranks.train_in_chunks, *work):
        close(answer[1:4], alone[1:4], 1e-9)


@pytest.mark.skipif(not dist.is_nccl_available(), reason="DDP's hook asks for a build with NCCL")
def test_gradients_may_be_exchanged_in_bf16(tiny, pool):
    """Equal on the ranks, and within bf16's rounding of those in fp32."""
    config = tiny(batch_size=BATCH, samples=BATCH)
    work = (config, *on_ranks.first_batches(config, 1))
    (half, plain), (other, _) = pool.run(2, on_ranks.trained_by_bf16, *work)
    assert equal(half, other)
    assert half[0] != plain[0], "nothing was rounded: the norm is of the gradients exchanged"
    for name, gradient in half[1][0].items():
        # the norm clips all of them alike
        wanted = plain[1][0][name]
        close(gradient, wanted, 0.02, atol=0.02 * wanted.abs().max().item())


def test_a_pytorch_that_exchanges_no_bf16_is_named(monkeypatch):
    class WithoutNccl(torch.nn.Module):
        def __init__(self, *args, **kwargs):
            super().__init__()

        def register_comm_hook(self, state, hook):
            raise TypeError("BF16 requires NCCL\nand more")

    monkeypatch.setattr(distributed, "num_ranks", lambda: 2)
    monkeypatch.setattr(distributed, "DistributedDataParallel", WithoutNccl)
    model = torch.nn.Linear(1, 1)
    with refused(about="exchange=bf16"):
        distributed.with_averaged_gradients(model, "bf16")
    assert isinstance(distributed.with_averaged_gradients(model, "fp32"), WithoutNccl)


def test_what_is_not_finite_on_one_rank_stops_all_at_the_same_step(tiny, pool):
    config = tiny(batch_size=BATCH, samples=BATCH * STEPS)
    tokenizer, batches = on_ranks.first_batches(config, STEPS)
    answers = pool.run(3, on_ranks.message_of_train, config, tokenizer, batches, plant=2)
    assert len(set(answers)) == 1
    assert answers[0][0] == "RunError"
    assert answers[0][1].startswith("step 1: contrastive ")


# --- the parts ------------------------------------------------------------------------------------


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
def test_each_rank_gets_the_gradient_of_its_own_rows(pool, world):
    """Of every rank's loss, and without a sum of the whole table everywhere."""
    rows = torch.randn(3 * world, 2, 5)
    weights = torch.randn(world, 3 * world, 2, 5)
    answers = pool.run(world, on_ranks.gathered, rows, weights)
    close(torch.cat(answers), weights.sum(0), 1e-6)


@pytest.mark.parametrize(("world", "batch", "near"), [(2, 9, 8), (3, 16, 15), (5, 3, 5)])
def test_a_batch_that_does_not_divide_is_refused(monkeypatch, world, batch, near):
    monkeypatch.setattr(distributed, "num_ranks", lambda: world)
    with refused(about="batch_size") as caught:
        share_of(batch)
    assert f"batch_size={near}" in caught.value.fix
    assert share_of(near) == near // world


# --- a whole run, as torchrun starts it -----------------------------------------------------------


def whole(tiny, **changes):
    return tiny(steps=4, checkpoint_every=2, log_every=1, **changes)


def ran(pool, config, folder, **how):
    """What two ranks of a run answer."""
    return pool.run_as_torchrun(2, on_ranks.run, config, folder, **how)


def test_a_run_of_two_is_the_run_of_one(tiny, pool, tmp_path):
    """Files, log and final weights; the tokenizer is trained once; only the first rank writes."""
    one, two = tmp_path / "one", tmp_path / "two"
    alone = on_ranks.run(whole(tiny), one)
    assert ran(pool, whole(tiny), two) == [alone.replace("one", "two")] * 2
    files, files_of_one = (
        sorted(path.name for path in folder.rglob("*.*") if "tfevents" not in path.name)
        for folder in (two, one)
    )
    assert files == files_of_one
    assert len(list((two / "tensorboard").iterdir())) == 1
    for mine, theirs in zip(rows_of(two), rows_of(one), strict=True):
        for name in ("step", "loss", "distillation", "gradient_norm", "samples_seen"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-4)
    mine, theirs = end_of(two), end_of(one)
    assert (mine["tokenizer"], mine["position"]) == (theirs["tokenizer"], theirs["position"])
    close(mine["teacher"]["center"], theirs["teacher"]["center"])


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
    how = {"event": on_ranks.sigterm, "gate": (tmp_path / "gate", first)}
    answers = ran(pool, whole(tiny), tmp_path, at=[(rank, 3) for rank in receivers], **how)
    saved = checkpoint.path_of(tmp_path, 3)
    (kind, sentence), second = answers
    assert (kind, second) == ("StoppedError", ("SystemExit", "1"))
    assert f"SIGTERM to {to} after step 3" in sentence
    assert str(saved) in sentence
    assert checkpoint.find(tmp_path) == saved
    assert end_of(tmp_path)["step"] == 3


def test_two_signals_at_once_are_one(tiny, pool, tmp_path):
    """Schedulers tell every process, and torchrun passes on what it was told itself."""
    how = {"at": [(0, 3), (1, 3)], "event": on_ranks.two_signals}
    os.mkfifo(tmp_path / "gate")
    (kind, _), _ = ran(pool, whole(tiny), tmp_path, gate=(tmp_path / "gate", 0), **how)
    assert (kind, saved_in(tmp_path)[-1]) == ("StoppedError", 3)


def test_different_signals_to_some_ranks_are_all_named():
    error = loop._stopped([0, signal.SIGTERM, 0, signal.SIGINT, signal.SIGTERM], 7, "PATH")
    assert "SIGINT to rank 3 of 5 and SIGTERM to rank 1, 4 of 5" in error.problem


def test_a_signal_in_the_last_step_changes_nothing(tiny, pool, tmp_path):
    """The rank that gets it saves nothing, and so would have nothing to say.

    A run that a signal stopped before goes on.
    """
    for step, resume in ((3, False), (4, True)):
        how = {"at": [(1, step)], "event": on_ranks.sigterm, "resume": resume}
        answers = ran(pool, whole(tiny), tmp_path, **how)
    assert answers == [str(checkpoint.path_of(tmp_path, 4))] * 2


@pytest.mark.parametrize(
    ("event", "kind", "words"),
    [
        (on_ranks.refuse, "UserError", "rank 1 of 2: the image is missing"),
        (on_ranks.break_down, "ZeroDivisionError", "a mistake of ours on rank 1 of 2"),
    ],
)
def test_a_rank_that_fails_names_itself_and_the_others_end(
    tiny, pool, tmp_path, event, kind, words
):
    """The failing one speaks; the other, which waits for it in the middle of a step, is silent."""
    first, second = ran(pool, whole(tiny), tmp_path, at=[(1, 2)], event=event)
    assert (first, second[0]) == (("SystemExit", "1"), kind)
    assert words in second[1]


def test_a_rank_that_is_killed_is_missed(tiny, pool, tmp_path):
    (kind, sentence), _ = ran(pool, whole(tiny), tmp_path, at=[(1, 2)], event=on_ranks.leave)
    assert kind == "RunError"
    assert "rank 0 of 2" in sentence


def test_no_rank_begins_before_all_are_connected(pool, tmp_path):
    """One that began could fail and leave, and the others would wait for it while they connect."""
    os.mkfifo(tmp_path / "gate")
    pool.run_as_torchrun(2, on_ranks.order_of_joining, tmp_path, late=1)
    assert [path.name for path in tmp_path.glob("*early*")] == []
    assert (tmp_path / "connected").read_bytes() == b""


# --- evaluation -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    on_ranks.run(whole(tiny), folder)
    return folder


def written(folder):
    """{file: its bytes; of a record without what a clock says}."""
    contents = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".json":
            record = json.loads(path.read_text())
            without = {"seconds", "created", "outcomes", "checksums"}
            contents[name] = {key: record[key] for key in record.keys() - without}
        elif path.is_file():
            contents[name] = path.read_bytes()
    return contents


def test_records_of_several_processes_are_those_of_one(trained, pool, tmp_path):
    """77 images in batches of 10: neither divides.

    With a store, again from it, and with another number of ranks.
    """
    expected = on_ranks.evaluate_run(trained, tmp_path / "1", 10)
    for world in WORLDS:
        how = (trained, tmp_path / str(world), 10, tmp_path / "store")
        assert pool.run(world, on_ranks.evaluate_run, *how) == [expected] * world
        assert written(tmp_path / str(world)) == written(tmp_path / "1")
    assert len(written(tmp_path / "1")) >= 4


def test_a_rank_that_cannot_encode_its_share_is_named_by_every_rank(trained, pool, tmp_path):
    """With its reason and the kind of its error, as each of them may be the one that is heard."""
    answers = pool.run(2, on_ranks.evaluate_run_that_fails, trained, tmp_path)
    assert answers[0] == answers[1]
    assert answers[0][0] == "UserError"
    assert "rank 1 of 2: image 7 is damaged" in answers[0][1]
