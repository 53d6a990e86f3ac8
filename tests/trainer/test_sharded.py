"""Weights shared by 2, 3 and 4 gloo ranks (``parallel=fsdp`` and ``hsdp``) against one process.

Losses, gradients, weights, teacher and centre of every variant of the step, and what a rank holds.
Each world does all its variants in one call, because to make a group takes as long as a variant.
"""

import shutil
import signal
from datetime import timedelta
from functools import partial

import on_ranks
import pytest
import torch
from gloo_pool import GlooPool, lives
from runs import close, end_of, equal, rows_of, saved_in

from silc_bench.trainer import device
from silc_bench.trainer.checkpoints import file as checkpoint

pytestmark = pytest.mark.timing
STEPS, BATCH = 8, 12
TOWER = {"width": 36, "num_heads": 2, "mlp_dim": 72, "depth": 2}  # of 2, 3 and 4 equal parts
SIZES = {
    "vision": TOWER,
    "text": TOWER | {"vocab_size": 300},
    "distillation": {"num_prototypes": 48, "hidden_dim": 36, "bottleneck_dim": 36},
    "batch_size": BATCH,
    "samples": BATCH * STEPS,
}
VARIANTS = {
    "sigmoid": {"average_momentum": 0.9},
    "softmax": {"contrastive": {"loss": "softmax", "max_scale": 10.0}},  # it starts there
    "adafactor": {"optim": {"kind": "adafactor"}},
    "masked, balanced": {"masked": {"weight": 0.5}, "distillation": {"centering": "sinkhorn"}},
    "masked, late, in parts": {
        "masked": {"weight": 0.5},
        "distillation": {"start_fraction": 0.4},
        "micro_batch": 1,
    },
    "blocks anew": {"checkpointing": "blocks", "distillation": {"pairs": "local+global"}},
    "blocks anew, in parts": {"checkpointing": "blocks", "micro_batch": 2},
    "locked text": {"optim": {"locked": "text"}},
    "locked text, in parts": {"optim": {"locked": "text"}, "micro_batch": 2},
    "locked vision": {"objective": "contrastive", "optim": {"locked": "vision"}},
}


@pytest.fixture(scope="module")
def configs(tiny):
    made = {}
    for name, changes in VARIANTS.items():
        joined = dict(SIZES)
        for field, change in changes.items():
            joined[field] = joined.get(field, {}) | change if isinstance(change, dict) else change
        made[name] = tiny(**joined)
    return made


@pytest.fixture(scope="module")
def work(configs):
    return on_ranks.first_batches(configs["sigmoid"], STEPS)


@pytest.fixture(scope="module")
def alone(configs, work):
    answers = on_ranks.trained(on_ranks.train_each(configs.values(), *work))
    return dict(zip(configs, answers, strict=True))


@pytest.fixture(scope="module")
def pool():
    pool = GlooPool(4)
    yield pool
    pool.close()


def sharded(config, parallel="fsdp"):
    return device.replace(config, parallel=parallel)


def check(configs, alone, ranks):
    """Each rank says the same to the bit, and as one process does."""
    ranks = [on_ranks.trained(answer) for answer in ranks]
    for number, name in enumerate(configs):
        first, *others = (answers[number] for answers in ranks)
        assert all(equal(other, first) for other in others), name
        assert first[4] == alone[name][4]
        for mine, theirs in zip(first[0], alone[name][0], strict=True):
            assert mine == pytest.approx(theirs, rel=1e-6), name  # reported in fp32
        # Adafactor rounds what it keeps to bf16: a last bit may round it to a neighbour.
        tolerance = 1e-5 if configs[name].optim.kind == "adafactor" else 1e-9
        try:
            close(first[1:4], alone[name][1:4], tolerance)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None


@pytest.mark.parametrize(
    "world", [2, pytest.param(3, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)]
)
def test_shards_equal_one_process(configs, work, alone, pool, world):
    asked = [sharded(config) for config in configs.values()]
    check(configs, alone, pool.run(world, on_ranks.train_each, asked, *work))


@pytest.mark.slow
def test_nodes_that_share_and_repeat_equal_one_process(configs, work, alone, pool):
    asked = [sharded(config, "hsdp") for config in configs.values()]
    check(configs, alone, pool.run(4, on_ranks.train_each, asked, *work, of_node=2))


@pytest.mark.parametrize(
    ("world", "parallel", "of_node", "count"),
    [(2, "fsdp", 2, 2), (3, "fsdp", 3, 3), (4, "fsdp", 2, 4), (4, "hsdp", 2, 2)],
)
def test_a_rank_holds_its_share_of_everything(configs, work, pool, world, parallel, of_node, count):
    config = sharded(configs["sigmoid"], parallel)
    for shares in pool.run(world, on_ranks.shares_of, config, *work, of_node):
        assert len(shares) == 5
        assert all(share <= 1 / count + 0.01 for share in shares.values()), shares


def test_one_process_has_nobody_to_share_with(configs, work, alone):
    mine = on_ranks.trained(on_ranks.train_each([sharded(configs["sigmoid"])], *work))
    assert equal(mine[0], alone["sigmoid"])


@pytest.mark.parametrize("of_nodes", [(2, 2, 2), (2, 2, 1, 1), (1, 3, 3, 3)])
def test_unequal_nodes_are_refused_by_every_rank(configs, pool, of_nodes):
    """Of two, one and one, ranks of the first node took them for two nodes, the others for four."""
    answers = pool.run(
        len(of_nodes), on_ranks.refused_mesh, sharded(configs["sigmoid"], "hsdp"), of_nodes
    )
    assert answers == ["parallel=hsdp"] * len(of_nodes)


@pytest.mark.slow
def test_compiled_blocks_are_shared_too(tiny, work):
    """Towers of one block and no teacher, because each graph takes a minute to compile."""
    sizes = {"checkpointing": "blocks", "micro_batch": 3, "objective": "contrastive"}
    config = tiny(
        **SIZES | {side: SIZES[side] | {"depth": 1} for side in ("vision", "text")} | sizes
    )
    tokenizer, batches = work
    (plain,) = on_ranks.trained(on_ranks.train_each([config], tokenizer, batches[:1]))
    asked = [sharded(device.replace(config, compile="true"))]

    # A pool of its own: where this one takes too long, no other test gets its answer.
    pool = GlooPool(2)
    try:
        answers = pool.run(2, on_ranks.train_each, asked, tokenizer, batches[:1])
    finally:
        pool.close()
    for (answer,) in map(on_ranks.trained, answers):
        close(answer[1:4], plain[1:4], 1e-9)


def test_ranks_wait_in_each_group_as_long_as_was_said(tiny, pool, tmp_path):
    """PyTorch would let them wait for 30 minutes."""
    config = tiny(parallel="hsdp")
    for answers in pool.run_as_torchrun(2, on_ranks.patience, config, tmp_path):
        assert answers == [timedelta(minutes=7)] * 2


# --- a whole run, as torchrun starts it -----------------------------------------------------------


def test_a_run_of_shards_is_that_of_whole_weights(tiny, pool, tmp_path):
    """Its log, its probes of student and teacher, its end; one process resumes it without shards.

    Gradients are summed in another order, and AdamW divides by their size.
    """
    probe = {"every": 2, "tasks": "shapes/knn", "limit": 77, "teacher": True}
    sizes = {"average_momentum": 0.9, "probe": probe, "masked": {"weight": 0.5}}
    config = tiny(steps=4, checkpoint_every=2, log_every=1, checkpoint_keep_every=2, **sizes)
    folders = {parallel: tmp_path / parallel for parallel in ("ddp", "fsdp")}
    for parallel, folder in folders.items():
        asked = sharded(config, parallel)
        assert len({*pool.run_as_torchrun(2, on_ranks.run, asked, folder)}) == 1

    (expected, probes), (rows, own_probes) = (
        (rows_of(folder), (folder / "probes.jsonl").read_text()) for folder in folders.values()
    )
    assert len(rows) == 4
    for mine, theirs in zip(rows, expected, strict=True):
        assert mine == pytest.approx(theirs, rel=5e-3, abs=1e-4)
    assert probes.count('"teacher/') == 2
    assert own_probes == probes
    check_end(folders["fsdp"], end_of(folders["ddp"]))

    newest = checkpoint.find(folders["fsdp"])
    assert newest.is_dir()
    shutil.rmtree(newest)
    on_ranks.run(config, folders["fsdp"], resume=True)
    assert checkpoint.find(folders["fsdp"]).is_file()
    check_end(folders["fsdp"], end_of(folders["ddp"]))


def check_end(folder, expected):
    end = end_of(folder)
    assert end["step"] == expected["step"] == 4
    for part in ("student", "teacher", "average"):
        close(end[part], expected[part], 1e-4)


LIVES = [(4, "hsdp"), (4, "fsdp"), (2, "fsdp"), (1, "fsdp"), (4, "fsdp"), (2, "ddp")]
OF_ALL = ("loss", "contrastive", "distillation", "masked", "gradient_norm", "update_ratio")


@pytest.mark.slow
def test_a_run_goes_on_with_other_ranks_that_share_otherwise(tiny, tmp_path):
    """Each life is stopped after a step. Together they are what one process does alone."""
    sizes = {"average_momentum": 0.9, "masked": {"weight": 0.5}, "samples": BATCH * len(LIVES)}
    config = tiny(**SIZES | sizes, log_every=1, checkpoint_every=1000)
    on_ranks.run(config, tmp_path / "alone", dtype=torch.float64)
    run = tmp_path / "run"
    for step, (world, parallel) in enumerate(LIVES, 1):
        how = {"at": [(rank, step) for rank in range(world)], "event": on_ranks.sigterm}
        how |= {"resume": step > 1, "of_node": 2 if parallel == "hsdp" else None}
        lives(world, on_ranks.run, sharded(config, parallel), run, **how, dtype=torch.float64)
        assert saved_in(run)[-1] == step
        assert checkpoint.find(run).is_dir() == (parallel != "ddp" and world > 1)

    rows, expected = (
        [{name: row[name] for name in OF_ALL} for row in rows_of(folder)]
        for folder in (run, tmp_path / "alone")
    )
    assert len(rows) == len(LIVES)
    for mine, theirs in zip(rows, expected, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-6)  # reported in fp32
    end, expected = end_of(run), end_of(tmp_path / "alone")
    assert end["position"] == expected["position"]
    for part in ("student", "teacher", "average", "optimizer"):
        close(end[part], expected[part], 1e-9)


def test_ranks_that_see_no_common_folder_are_refused(tiny, tmp_path):
    """Each would keep its part of every checkpoint for itself, and nobody could read one."""
    answers = dict(lives(2, on_ranks.run_apart, sharded(tiny(steps=1)), tmp_path))
    assert answers.keys() == {"UserError", "SystemExit"}
    assert "rank 1 of 2 does not see this folder" in answers["UserError"]


@pytest.mark.parametrize("told", [[0], [1], [0, 1]], ids=str)
def test_a_second_signal_while_shards_are_saved_leaves_what_was_saved(tiny, tmp_path, told):
    """Whoever gets it ends at once, and the other one misses it. Nothing half counts."""
    config = tiny(steps=4, checkpoint_every=2, log_every=1)
    event = partial(on_ranks.told_again, told, 3)
    how = {"at": [(0, 3), (1, 3)], "event": event}
    said = lives(2, on_ranks.run, sharded(config), tmp_path, **how)
    for rank, answer in enumerate(said):
        if rank in told:
            assert answer == 128 + signal.SIGTERM
        else:
            assert answer[0] == "RunError"
            assert "lost another rank" in answer[1]
    assert saved_in(tmp_path) == [2]

    on_ranks.run(config, tmp_path, resume=True)
    assert saved_in(tmp_path) == [2, 4]
    names = {path.name.partition(".")[0] for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"step_00000002", "step_00000004"}
    assert [row["step"] for row in rows_of(tmp_path)] == [1, 2, 3, 4]
