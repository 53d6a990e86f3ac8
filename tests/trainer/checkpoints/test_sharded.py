"""Sharded checkpoints: any number of ranks goes on; nothing half, nothing altered, nothing run."""

import json
import os
import pickle
import shutil

import on_ranks
import on_shards
import pytest
import torch
from gloo_pool import GlooPool
from pretended_gpu import CUDA, pretended_gpu
from random_runs import random_state
from refusals import refused
from runs import close, differing, end_of, equal, rows_of, saved_in
from test_file import Shell
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from silc_bench.errors import UserError
from silc_bench.models.load import check_spec
from silc_bench.models.specs import specs_of
from silc_bench.models.weights import pickles
from silc_bench.trainer.checkpoints import file as checkpoint
from silc_bench.trainer.checkpoints import model as native
from silc_bench.trainer.checkpoints import sharded
from silc_bench.trainer.checkpoints.export import export, load_trained
from silc_bench.trainer.checkpoints.file import DamagedCheckpointError
from silc_bench.trainer.checkpoints.init import read_start
from silc_bench.trainer.config.identity import recipe_of

pytestmark = pytest.mark.timing
ALONE = "alone"  # one process without a group: its checkpoints are single files


@pytest.fixture(scope="module")
def pool():
    pool = GlooPool(4)
    yield pool
    pool.close()


def life(pool, world, *args, **how):
    """``on_shards.life`` on so many ranks, which all say the same."""
    if world == ALONE:
        return on_shards.life(*args, **how)
    answers = pool.run(world, on_shards.life, *args, **how)
    assert all(answer == answers[0] for answer in answers)
    return answers[0]


def curve(count):
    state = on_shards.TinyState()
    return [state.train() for _ in range(count)], state


@pytest.fixture(scope="module")
def saved(pool, tmp_path_factory):
    """A run on two ranks, with checkpoints after steps 2 and 3."""
    run = tmp_path_factory.mktemp("saved") / "run"
    life(pool, 2, run, 2, resume=False)
    life(pool, 2, run, 1)
    return run


@pytest.fixture
def run(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


# --- any number of ranks --------------------------------------------------------------------------


@pytest.mark.parametrize("worlds", [[4, 2, 1, 4], [ALONE, 3, ALONE, 2]], ids=str)
def test_a_run_goes_on_with_any_number_of_ranks(pool, tmp_path, worlds):
    """Its losses are those of one process that nothing interrupts, and so is its end."""
    expected, state = curve(2 * len(worlds))
    losses = []
    for number, world in enumerate(worlds):
        more, begun, said = life(pool, world, tmp_path, 2, resume=number > 0)
        assert begun == (f"step_{2 * number:08d}" if number else None)
        assert not said
        losses += more
    close(losses, expected, 1e-6)

    end = checkpoint.load(checkpoint.find(tmp_path))
    whole = state.payload()
    assert end["position"] == whole["position"]
    for part in ("student", "average", "teacher", "optimizer"):
        close(end[part], whole[part], 1e-5, atol=1e-6)


def test_moments_of_rows_and_columns_are_whole_or_spread_as_their_weight(pool, tmp_path):
    for kept in pool.run(2, on_shards.kept_of_rows, tmp_path):
        for name, placed, size in (("rows", "Replicate", (1, 6)), ("columns", "Shard", (37, 1))):
            placements, of_parts, of_whole = kept[name]
            assert placed in placements
            assert torch.equal(of_parts, torch.full(size, 37.0 if name == "rows" else 6.0))
            assert torch.equal(of_whole, of_parts)


def test_each_rank_reads_its_part_alone(pool, run):
    """To check it, and to go on from it; pieces on the border of two ranks are read by both."""
    for world, most in ((2, 0.55), (4, 0.65)):
        for read, total in pool.run(world, on_shards.bytes_read, run):
            assert 0 < read["check"] <= total * (1 / world + 0.1)
            assert 0 < read["fill"] <= total * most


def test_torchs_own_tools_read_the_folder(run, tmp_path):
    """They unpickle it, so they are for folders of one's own."""
    newest = checkpoint.find(run)
    dcp_to_torch_save(newest, tmp_path / "one.pt")
    theirs = torch.load(tmp_path / "one.pt", weights_only=False)
    ours = checkpoint.load(newest)
    assert equal(theirs["student"], dict(ours["student"]))
    moments = ours["optimizer"]["state"][3]
    assert torch.equal(theirs["optimizer"]["state"]["3"]["exp_avg"], moments["exp_avg"])


def test_a_gpu_fills_the_same_page_locked_memory_each_time():
    """And the host waits once, not for each tensor."""
    buffers, places = {}, []
    for value in (1.0, 2.0):
        with pretended_gpu() as gpu:
            tensors = {name: torch.full((3, 2), value, device=CUDA) for name in "ab"}
            gpu.waits.clear()
            copies = sharded.on_host(tensors, buffers)
            assert gpu.waits == []
        assert all(torch.equal(copy, torch.full((3, 2), value)) for copy in copies.values())
        places.append([copy.data_ptr() for copy in copies.values()])
    assert places[0] == places[1]


# --- a whole run, as torchrun starts it -----------------------------------------------------------


def test_a_sharded_run_is_stopped_and_goes_on_with_other_ranks(pool, tiny, tmp_path):
    """All ranks write, after a signal to one of them too, and one process ends the run."""
    config = tiny(steps=6, checkpoint_every=2, log_every=1, batch_size=12, samples=72)
    one, run = tmp_path / "one", tmp_path / "run"
    on_ranks.run(config, one)
    for world, step in ((2, 3), (3, 5)):
        how = {"at": [(1, step)], "event": on_ranks.sigterm, "resume": step > 3}
        said = pool.run_as_torchrun(world, on_shards.run_spread, config, run, **how)
        folder = checkpoint.path_of(run, step, is_sharded=True)
        assert said[0][0] == "StoppedError"
        assert f"SIGTERM to rank 1 of {world} after step {step}; {folder} is saved" in said[0][1]
        assert saved_in(run)[-1] == step
        assert folder.is_dir()
    on_ranks.run(config, run, resume=True)
    assert saved_in(run) == [5, 6]
    for mine, theirs in zip(rows_of(run), rows_of(one), strict=True):
        for name in ("step", "loss", "distillation", "gradient_norm", "samples_seen"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-4)
    mine, theirs = end_of(run), end_of(one)
    assert mine["position"] == theirs["position"]
    close(mine["teacher"]["center"], theirs["teacher"]["center"])


def test_the_clock_of_the_first_rank_decides_for_all(pool, tiny, tmp_path):
    config = tiny(steps=3, checkpoint_every=1000, checkpoint_minutes=1e-9)
    said = pool.run_as_torchrun(2, on_shards.run_spread, config, tmp_path)
    assert said == [str(checkpoint.path_of(tmp_path, 3, is_sharded=True))] * 2
    assert saved_in(tmp_path) == [2, 3]


def test_a_rank_that_fails_alone_saves_nothing_and_keeps_nobody_waiting(pool, tiny, tmp_path):
    config = tiny(steps=4, checkpoint_every=2)
    how = {"at": [(0, 4)], "event": on_ranks.refuse}
    said = pool.run_as_torchrun(2, on_shards.run_spread, config, tmp_path, **how)
    assert said[0][0] == "UserError"
    assert said[1][0] == "SystemExit"
    assert saved_in(tmp_path) == [2]


# --- all or nothing -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("owner", "name", "number", "on", "kept"),
    [
        ("torch", "save", 25, 1, [1]),  # within its part of the second checkpoint
        ("writer", "finish", 2, 0, [1]),
        ("os", "replace", 4, 0, [1]),  # plain.pt, the note and the folder get their names
        ("os", "replace", 6, 0, [1]),
        ("os", "replace", 10, 0, [1, 2, 3]),  # of the one that is to be removed
        ("shutil", "rmtree", 1, 0, [2, 3]),
    ],
    ids=str,
)
def test_a_kill_at_any_moment_leaves_what_was_whole(tmp_path, owner, name, number, on, kept):
    pool = GlooPool(2)
    try:
        with pytest.raises((EOFError, AssertionError)):
            pool.run(2, on_shards.killed_in, tmp_path, owner, name, number, on)
    finally:
        pool.close()
    assert saved_in(tmp_path) == kept

    expected, _ = curve(kept[-1] + 2)
    losses, begun, said = on_shards.life(tmp_path, 2)
    assert (begun, said) == (f"step_{kept[-1]:08d}", [])
    close(losses, expected[-2:], 1e-6)
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    newest = f"step_{kept[-1] + 2:08d}"
    assert names == {begun, f"{begun}.json", f"{newest}.pt", f"{newest}.json"}


@pytest.mark.parametrize("on", [0, 1])
def test_a_full_disk_is_told_to_every_rank_and_costs_nothing_else(pool, tmp_path, on):
    told = pool.run(2, on_shards.told_of_a_full_disk, tmp_path, on)
    assert told[0] == told[1]
    kind, words = told[0]
    assert kind == "RunError"
    assert f"No space left on device on rank {on} of 2" in words
    assert str(checkpoint.path_of(tmp_path, 1, is_sharded=True)) in words
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step_00000001", "step_00000001.json"]


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


def of_another_step(path):
    path.rename(path.with_name("step_00000004"))


DAMAGE = {
    "a part is cut off": ("__1_0.distcp", lambda path: os.truncate(path, 2000)),
    "a part is empty": ("__0_0.distcp", lambda path: path.write_bytes(b"")),
    "a part is altered": ("__1_0.distcp", flip),
    "a part is missing": ("__0_0.distcp", os.unlink),
    "the plain part is altered": ("plain.pt", flip),
    "the plain part is cut off": ("plain.pt", lambda path: os.truncate(path, 500)),
    "the plain part is missing": ("plain.pt", os.unlink),
    "it is renamed": ("", of_another_step),
    "it is of another note": (
        "../step_00000003.json",
        lambda path: shutil.copy(path.with_name("step_00000002.json"), path),
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("world", [2, ALONE])
def test_all_ranks_take_the_one_before_a_damaged_one(pool, run, kind, world):
    name, damage = DAMAGE[kind]
    newest = checkpoint.find(run)
    damage(newest / name)
    newest = checkpoint.find(run)
    _, begun, said = life(pool, world, run, 1)
    assert begun == "step_00000002"
    assert len(said) == 1
    assert said[0].startswith(f"{newest}: damaged: ")
    assert saved_in(run) == [2, 3], "the damaged one does not count as one of the newest"
    assert not life(pool, world, run, 1)[2]


def test_its_own_checksums_do_where_the_note_is_missing(run):
    """So the folder may be copied alone."""
    alone = shutil.copytree(checkpoint.find(run), run.parent / "alone")
    whole = checkpoint.load(alone)
    assert equal(whole, checkpoint.load(checkpoint.find(run)))
    flip(alone / "plain.pt")
    with refused(about=alone, kind=DamagedCheckpointError, is_kept=False):
        checkpoint.load(alone)


# --- nothing is executed, nothing believed --------------------------------------------------------


def test_no_pickle_of_the_folder_is_executed(pool, run, tmp_path):
    """``.metadata`` is never read; of a part only the numbers are."""
    marker, folder = tmp_path / "marker", checkpoint.find(run)
    before = checkpoint.load(folder)
    (folder / ".metadata").write_bytes(pickle.dumps(Shell(marker)))
    assert equal(checkpoint.load(folder), before)
    assert life(pool, 2, run, 1)[1] == folder.name
    assert not marker.exists()

    hostile = pickles.load_zip(folder / "plain.pt") | {"optimizer": Shell(marker)}
    torch.save(hostile, folder / "plain.pt")
    folder.with_suffix(".json").unlink()
    with refused(about=folder):
        checkpoint.load(folder)
    assert not marker.exists()
    pickle.loads((folder / ".metadata").read_bytes())
    assert marker.exists(), "the payload was harmless: this test tests nothing"


def edited(index, value, within=None):
    """The list of parts with ``value`` in place ``index`` of its first tensor, or first piece."""

    def edit(rows):
        row = rows[0] if within is None else rows[0][3][0]
        row[index] = value
        return rows

    return edit


PIECE = "piece"
LIES = {
    "no list": lambda rows: {"a": 1},
    "no tensor": lambda rows: [1],
    "no place": edited(0, []),
    "a place that is taken": edited(0, ["step"]),
    "a place within a number": edited(0, ["step", "x"]),
    "a type that is none": edited(1, "object"),
    "a type of no word": edited(1, []),
    "a huge tensor": edited(2, [10**12, 6]),
    "a negative size": edited(2, [-37, -6]),
    "a truth for a number": edited(2, [True, 6]),
    "no pieces": edited(3, []),
    "another folder": edited(0, "../plain.pt", PIECE),
    "an absolute path": edited(0, "/etc/passwd", PIECE),
    "no name": edited(0, 7, PIECE),
    "beyond the end": edited(1, 2**40, PIECE),
    "a huge piece": edited(2, 2**40, PIECE),
    "a small piece": edited(2, 1, PIECE),
    "no checksum": edited(3, None, PIECE),
    "a piece elsewhere": edited(4, [90, 0], PIECE),
    "a piece of other dimensions": edited(5, [114], PIECE),
    "one piece twice": lambda rows: [[*rows[0][:3], [rows[0][3][0]] * 2]],
    "one tensor twice": lambda rows: [rows[0], rows[0]],
    "all tensors in one place": lambda rows: [
        [[*row[0], i], *row[1:]] for i in range(100) for row in rows
    ],
}


@pytest.mark.parametrize("lie", LIES)
def test_a_list_of_parts_that_lies_is_refused(run, lie):
    folder = checkpoint.find(run)
    plain = pickles.load_zip(folder / "plain.pt")
    plain["parts"] = json.dumps(LIES[lie](json.loads(plain["parts"])))
    del plain["checksums"]
    torch.save(checkpoint.with_checksums(plain), folder / "plain.pt")
    folder.with_suffix(".json").unlink()
    with refused(about=folder, kind=DamagedCheckpointError, is_kept=False):
        checkpoint.load(folder)


@pytest.mark.parametrize("name", ["plain.pt", "whole.pt"])
def test_a_part_is_no_checkpoint_and_a_checkpoint_no_part(run, name):
    folder = checkpoint.find(run)
    path = folder / name
    if name == "whole.pt":
        on_shards.life(run, 1)  # a single file
        shutil.copy(checkpoint.find(run), folder / "plain.pt")
        folder.with_suffix(".json").unlink(missing_ok=True)
        path = folder
    with refused(about=folder, kind=UserError):
        checkpoint.load(path)
    with refused(about=folder / "__0_0.distcp"):
        check_spec(str(folder / "__0_0.distcp"))


# --- kept, measured, exported ---------------------------------------------------------------------


def test_the_best_and_the_newest_stay_of_both_kinds(pool, tmp_path):
    payload = on_shards.TinyState().payload()
    for step, (world, score) in enumerate([(2, 0.5), (ALONE, 0.1), (2, None), (ALONE, None)], 1):
        now = payload | {"step": step}
        if world == ALONE:
            checkpoint.save(tmp_path, now, score)
        else:
            pool.run(world, on_shards.save_spread, tmp_path, now, score)
    assert saved_in(tmp_path) == [1, 3, 4]
    assert checkpoint.best_in(tmp_path) == checkpoint.path_of(tmp_path, 1, is_sharded=True)
    assert [path.is_dir() for path in checkpoint.all_in(tmp_path)] == [True, True, False]

    # one of the same step takes the other's place
    checkpoint.save(tmp_path, payload | {"step": 3})
    assert checkpoint.path_of(tmp_path, 3) in checkpoint.all_in(tmp_path)
    assert not checkpoint.path_of(tmp_path, 3, is_sharded=True).exists()


def test_what_reads_a_run_reads_a_sharded_one(pool, tiny, tmp_path):
    """Evaluation of each branch, all steps by name, export, start; the folder names a step."""
    payload = random_state(tiny()).payload() | {"brought": json.dumps({"init": "words"})}
    run, single = tmp_path / "run", tmp_path / "single"
    pool.run(2, on_shards.save_spread, run, payload)
    checkpoint.save(single, payload)
    folder = checkpoint.find(run)
    assert equal(checkpoint.load(folder), checkpoint.load(checkpoint.find(single)))

    for spec in (run, folder):
        assert native.is_ours(spec)
        model = load_trained(f"{spec}:teacher")
        assert model.name == "run:teacher"
        assert not differing(model.vision, load_trained(f"{single}:teacher").vision)
        assert model.training.recipe == recipe_of(tiny(init="words"))
        starts = [read_start(tiny(init=str(source))) for source in (spec, single)]
        assert equal(*(start.weights for start in starts))
        assert equal(*(start.center for start in starts))
    assert specs_of([f"{run}@all"]).specs == (str(folder),)
    assert specs_of([f"{run}/checkpoints/step_*"]).specs == (str(folder),)
    export(load_trained(str(run)), "safetensors", tmp_path / "one.safetensors")
    exported = native.load(tmp_path / "one.safetensors")
    assert not differing(exported.vision, load_trained(str(single)).vision)
    assert not checkpoint.is_sharded(payload)
