"""The ablation's exact identities, values that are not finite, a run and its folder."""

import itertools
import json
import math
import os
from dataclasses import replace

import pytest
import torch
from refusals import refused
from runs import differing, end_of, run, saved_in, started, steps_of

from silc_bench.errors import RunError
from silc_bench.trainer import loop, train
from silc_bench.trainer.checkpoints import file as checkpoint
from silc_bench.trainer.optim import lr_at
from silc_bench.trainer.silc.views import make_views
from silc_bench.trainer.train import train_step

pytestmark = [pytest.mark.broad, pytest.mark.usefixtures("few_captions")]


def test_bf16_keeps_weights_and_average_in_fp32(tiny):
    state, (row,) = steps_of(tiny(precision="bf16"), 1)
    _, (exact,) = steps_of(tiny(), 1)
    for weight in (*state.student.parameters(), *state.teacher.parameters()):
        assert weight.dtype == torch.float32
    assert row["loss"] == pytest.approx(exact["loss"], rel=0.02)
    assert row != exact


def test_it_learns(tiny):
    """25 real steps halve the contrastive loss, and take the student away from the teacher."""
    state, rows = steps_of(tiny(steps=25, optim={"lr": 3e-3}), 25)
    assert rows[-1]["contrastive"] < rows[0]["contrastive"] / 2
    tower = state.student.vision
    assert differing(tower, state.teacher.vision) == tower.state_dict().keys()


# --- the ablation is one code path ----------------------------------------------------------------


@pytest.mark.parametrize("images", ["global", "original+global"])
def test_weight_zero_is_contrastive_with_views_bit_for_bit(tiny, images):
    part = {"contrastive": {"images": images}}
    silc, silc_rows = steps_of(tiny("silc", distillation={"weight": 0.0}, **part), 4)
    views, views_rows = steps_of(tiny("contrastive+views", **part), 4)
    assert not differing(silc.student, views.student)
    assert not differing(silc.teacher, views.teacher)
    assert silc_rows == views_rows
    assert set(silc_rows[0]) == {"loss", "contrastive", "gradient_norm"}


def test_evaluating_the_losses_changes_no_state_and_draws_no_random_numbers(tiny):
    config = tiny()
    state, (first, batch) = started(config, 2)
    train_step(state, first)
    before, random_state = all_of(state), torch.get_rng_state()
    values = []
    for _ in range(2):
        views = make_views(batch.images, batch.sizes, config.views, 0, 1)
        targets = state.teacher.targets(views)
        tokens = state.tokenizer(batch.texts)
        out = state.student(views, tokens)
        values.append(train.contrastive(out, tokens, config).item())
        values.append(train.distillation(out, targets.views, config).item())
    assert values[:2] == values[2:]
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all_of(state) == before


def test_the_same_seed_gives_the_same_run_and_another_another(tiny):
    state, rows = steps_of(tiny(), 2)
    torch.manual_seed(123)  # the global generator has no part in it
    again, same_rows = steps_of(tiny(), 2)
    other, _ = steps_of(tiny(seed=1), 2)
    assert not differing(state.student, again.student)
    assert rows == same_rows
    assert "vision.patch.weight" in differing(state.student, other.student)


# --- values that are not finite -------------------------------------------------------------------


def all_of(state):
    """Bytes of weights, average, centre and moments; and the counters.

    Bytes, so that a planted NaN equals itself.
    """
    leaves = torch.utils._pytree.tree_leaves(state.payload())
    tensors = [x.numpy().tobytes() for x in leaves if isinstance(x, torch.Tensor)]
    return tensors, state.step, state.samples_seen, state.position


def weigh(state):
    distillation = replace(state.config.distillation, weight=math.inf)
    state.config = replace(state.config, distillation=distillation)


def give_infinite_gradient(state):
    state.student.text.head.weight.register_hook(lambda gradient: gradient * math.inf)


@pytest.mark.parametrize(
    ("plant", "name", "option"),
    [
        (lambda s: s.student.text.head.weight.data[0].fill_(math.nan), "contrastive", "optim.lr"),
        (lambda s: s.student.log_scale.data.fill_(1e4), "contrastive", "optim.lr (now 0.001)"),
        (lambda s: s.teacher.center.fill_(math.nan), "distillation", "teacher_temp (now 0.04)"),
        (give_infinite_gradient, "gradient_norm", "precision=fp32"),
        (weigh, "loss", "distillation.weight (now inf)"),
    ],
)
def test_a_value_that_is_not_finite_stops_before_the_weights_are_touched(tiny, plant, name, option):
    state, (first, second) = started(tiny(optim={"lr": 1e-3}), 2)
    train_step(state, first)
    plant(state)
    before = all_of(state)
    with refused(about="step 2", kind=RunError, is_kept=False) as caught:
        train_step(state, second)
    assert caught.value.problem.startswith(f"{name} is not finite (contrastive ")
    assert option in caught.value.fix
    assert all_of(state) == before


@pytest.mark.parametrize(
    ("changes", "step"), [({"checkpoint_every": 1}, 2), ({"log_every": 1}, 1)], ids=str
)
def test_a_rate_that_is_far_too_high_stops_the_run(tiny, tmp_path, changes, step):
    """Before a checkpoint or a row of the log says anything of such weights."""
    config = tiny(steps=9, optim={"lr": 1e30, "warmup_fraction": 0.0}, **changes)
    with pytest.raises(RunError, match=rf"^step {step}: .*lower optim.lr \(now 1e\+30\)"):
        run(config, tmp_path)
    assert saved_in(tmp_path) == list(range(1, step))


# --- a run and its folder -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "TOKENIZER_CAPTIONS", 50)
        path, printed = run(tiny(steps=5), folder)
    return folder, path, printed


def test_a_run_leaves_a_log_and_the_state_after_its_last_step(tiny, finished):
    folder, path, printed = finished
    assert path == checkpoint.path_of(folder, 5)
    assert saved_in(folder) == [3, 5]
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert all(map(math.isfinite, itertools.chain(*(row.values() for row in rows))))
    names = {"loss", "contrastive", "distillation", "gradient_norm", "logit_scale", "logit_bias"}
    assert names <= set(rows[0])
    assert [(row["step"], row["samples_seen"], row["lr"]) for row in rows] == [
        (step, 8 * step, lr_at(step - 1, 5, tiny().optim)) for step in (2, 4, 5)
    ]
    assert "tiny-silc: 5 steps of 8, from shapes" in printed
    assert "step 5/5" in printed
    state, _ = steps_of(tiny(steps=5), 5)
    saved = end_of(folder)
    assert not differing(dict(state.student.state_dict()), saved["student"])
    assert (saved["step"], saved["samples_seen"], saved["position"]) == (5, 40, 40)


@pytest.mark.usefixtures("few_captions")
def test_another_seed_and_objective_have_the_same_tokenizer(tiny, finished, tmp_path):
    run(tiny("contrastive", steps=1, seed=7, data={"seed": 7}), tmp_path)
    assert end_of(tmp_path)["tokenizer"] == end_of(finished[0])["tokenizer"]


@pytest.mark.usefixtures("few_captions")
def test_a_run_takes_the_tokenizer_of_a_file_and_keeps_it(tiny, finished, tmp_path):
    """To the byte: of the finished run's, and without the file when it goes on."""
    file = tmp_path / "tokenizer.json"
    file.write_text(end_of(finished[0])["tokenizer"], encoding="utf-8")
    config = tiny("contrastive", steps=2, tokenizer=str(file), checkpoint_every=1)
    _, printed = run(config, tmp_path / "run")
    assert f"tokenizer: {file}" in printed
    assert end_of(tmp_path / "run")["tokenizer"] == file.read_text(encoding="utf-8")
    file.unlink()
    checkpoint.path_of(tmp_path / "run", 2).unlink()
    run(config, tmp_path / "run", resume=True)
    assert end_of(tmp_path / "run")["step"] == 2


@pytest.mark.parametrize(("count", "read"), [(0, 50), (7, 7)])
@pytest.mark.usefixtures("few_captions")
def test_a_run_says_how_many_captions_its_tokenizer_has_read(tiny, tmp_path, count, read):
    _, printed = run(tiny("contrastive", steps=1, tokenizer_captions=count), tmp_path)
    assert f"ids, trained on {read} captions" in printed


def test_a_finished_run_is_recognised(tiny, finished):
    folder, path, _ = finished
    before = path.stat().st_mtime_ns
    again, printed = run(tiny(steps=5), folder, resume=True)
    assert again == path
    assert "already complete" in printed
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"steps": 9}, "samples 40 -> 72"),
        ({"distillation": {"weight": 0.5}}, "distillation.weight 1.0 -> 0.5"),
        ({"data": {"decode_size": 48}}, "data.decode_size 32 -> 48"),
    ],
)
def test_resuming_with_another_configuration_names_the_fields(tiny, finished, changes, difference):
    with refused(about=finished[0]) as caught:
        run(tiny(**{"steps": 5} | changes), finished[0], resume=True)
    assert difference in caught.value.problem


def test_a_run_that_began_with_a_size_of_its_images_goes_on_with_it(tiny, tmp_path):
    """Also where the preset lets it follow the views by now."""
    config = tiny("contrastive", steps=2, checkpoint_every=1, data={"decode_size": 48})
    run(config, tmp_path / "run")
    whole = end_of(tmp_path / "run")
    checkpoint.find(tmp_path / "run").unlink()

    following = replace(config, data=replace(config.data, decode_size=0))
    assert following.canvas != config.canvas
    run(following, tmp_path / "run", resume=True)
    assert not differing(end_of(tmp_path / "run"), whole)


@pytest.mark.parametrize(
    ("source", "about"), [("places", "--data places"), ("elsewhere/*.tar", "elsewhere/*.tar")]
)
def test_a_finished_run_was_not_of_other_data(tiny, finished, source, about):
    with refused(about=about):
        run(tiny(steps=5, data={"source": source}), finished[0], resume=True)


@pytest.mark.parametrize(
    ("changes", "is_new", "about"),
    [
        ({}, False, "finished"),
        ({}, True, "nowhere"),
        ({"preset": "silc_star"}, True, "--init"),
    ],
)
def test_a_run_that_cannot_start_is_refused(tiny, finished, tmp_path, changes, is_new, about):
    folder = tmp_path / "nowhere" if is_new else finished[0]
    with refused(about=about):
        run(tiny(**{"steps": 5} | changes), folder, resume=is_new)


def test_a_folder_that_tensorboard_cannot_name_is_refused(tiny, tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    with refused(about=folder, is_kept=False):
        run(tiny(steps=5), folder)
    assert not folder.exists()


def test_what_a_shard_lacks_is_reported(tiny, tmp_path, shards):
    """Two epochs of 20 readable pairs and one that is cut in half."""
    _, printed = run(tiny("contrastive", steps=5, data={"source": shards}), tmp_path)
    assert "5 steps of 8, 1.9 epochs, from 21 pairs in 2 shards" in printed
    assert "left out: 1 damaged: 1 corrupt image (first: " in printed


def test_a_mixture_has_no_epochs(tiny, tmp_path, shards):
    """Each source ends at a time of its own."""
    mixture = {"source": f"3 * {shards} | 1 * {shards}"}
    _, printed = run(tiny("contrastive", steps=1, data=mixture), tmp_path)
    assert "1 step of 8, from 75 % 21 pairs in 2 shards + 25 % 21 pairs in 2 shards" in printed


@pytest.mark.timing
def test_a_write_that_failed_ends_the_run_at_the_next_step(tiny, tmp_path, monkeypatch):
    """And not at the next checkpoint, which may be hours away."""
    calls, write, step = [], checkpoint.Writer.write, loop.train_step

    def failed(run, payload, score):
        raise OSError(28, "No space left on device")

    def written(writer, payload, score):
        write(writer, payload, score)
        assert writer._pending.exception(timeout=60)

    monkeypatch.setattr(checkpoint, "save", failed)
    monkeypatch.setattr(checkpoint.Writer, "write", written)
    monkeypatch.setattr(loop, "train_step", lambda *args: calls.append(1) or step(*args))
    with pytest.raises(RunError, match="step 2: "):
        run(tiny(steps=9, checkpoint_every=2), tmp_path)
    assert len(calls) == 3


@pytest.mark.parametrize("loss", ["sigmoid", "softmax"])
@pytest.mark.parametrize(("start", "is_stopped"), [(200.0, True), (50.0, False)])
def test_the_scale_stays_at_its_ceiling_and_is_free_below(tiny, loss, start, is_stopped):
    """Brought down after the update, as in open_clip: the step itself sees the scale as it was."""
    found = []
    for highest in (0.0, 100.0):
        state, (batch,) = started(tiny(contrastive={"loss": loss, "max_scale": highest}), 1)
        state.student.log_scale.data.fill_(math.log(start))
        values = train_step(state, batch)
        found.append((values["loss"].item(), state.student.log_scale.exp().item()))
    (free_loss, free), (loss_below, capped) = found
    assert free_loss == loss_below
    assert capped == pytest.approx(100.0 if is_stopped else free, rel=1e-6)
    assert (free > 100) == is_stopped
