"""Training on a pretended GPU: the numbers of a CPU, no tensor left behind, no waiting host."""

import math
import sys
from pathlib import Path

import pytest
import torch
from refusals import refused
from runs import close, rows_of, run, saved_in, started, steps_of

sys.path.insert(0, str(Path(__file__).parents[1]))
from pretended_gpu import CPU, CUDA, pretended_gpu

from silc_bench.errors import RunError
from silc_bench.trainer.checkpoints import file as checkpoint
from silc_bench.trainer.device import DataWait, resolve
from silc_bench.trainer.monitor.plan import cost as estimate
from silc_bench.trainer.silc import distillation, losses
from silc_bench.trainer.train import train_step

pytestmark = [pytest.mark.broad, pytest.mark.usefixtures("few_captions")]
MASKED = {"masked": {"weight": 1.0}}


def two_steps(config, device):
    """What two steps reported, and all weights after them, on the CPU."""
    state, rows = steps_of(config, 2, device)
    models = torch.nn.ModuleList([state.student, state.teacher]).state_dict()
    tensors = models | (state.average.weights if state.average else {})
    return rows, {name: tensor.cpu() for name, tensor in tensors.items()}


GRAY = {"gray_prob": 0.5, "blur_probs": (0.5, 0.5, 0.5), "solarize_prob": 0.5}


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": "contrastive"},
        {"contrastive": {"loss": "softmax"}, "average_momentum": 0.9},
        {"distillation": {"centering": "sinkhorn", "pairs": "local+global"}, "micro_batch": 3},
        {"optim": {"kind": "adafactor", "layer_decay": 0.8}, **MASKED},
        {"views": GRAY},
        {"distillation": {"products": "tf32"}},
    ],
    ids=str,
)
def test_steps_on_a_gpu_are_those_on_a_cpu(tiny, changes):
    config = tiny(**changes)
    wanted, weights = two_steps(config, CPU)
    with pretended_gpu():
        rows, ours = two_steps(config, CUDA)
    for row, other in zip(rows, wanted, strict=True):
        assert row == pytest.approx(other, rel=1e-5)
    close(ours, weights, 1e-4, atol=1e-5)


ROWS = {"contrastive": {"loss": "softmax", "max_scale": 100.0}}


@pytest.mark.parametrize("is_large", [False, True], ids=["table whole", "table in chunks"])
@pytest.mark.parametrize(
    "changes",
    [
        {"average_momentum": 0.9, "distillation": {"products": "tf32"}, **MASKED},
        {"micro_batch": 4, "optim": {"kind": "adafactor"}, **ROWS},
    ],
)
def test_the_host_waits_for_nothing_in_a_step(tiny, changes, is_large, monkeypatch):
    """It would leave the GPU with nothing to do while the host prepares what comes next."""
    if is_large:
        monkeypatch.setattr(losses, "CHUNK", {"cpu": 30, "cuda": 30})
        monkeypatch.setattr(losses, "MOST_CHUNKS", 0)
    with pretended_gpu() as gpu:
        state, batches = started(tiny(views=GRAY, **changes), 2, CUDA)
        for batch in batches:
            gpu.waits.clear()
            train_step(state, batch)
        assert gpu.waits == []
        state.student.log_scale.item()
        assert len(gpu.waits) == 1, "a wait is not seen"


def test_chunks_on_a_gpu_are_its_own():
    """Those of a CPU would leave it with little to do at a time."""
    table = torch.empty(2**16, 1)
    with pretended_gpu():
        on_gpu = table.to(CUDA)
        parts = [len([*distillation.chunks(where, 2**11)]) for where in (table, on_gpu)]
    assert parts == [32, 2]
    pairs = 2**13  # a table of 256 MiB
    assert [losses.is_large(1, pairs, pairs, where) for where in ("cpu", "cuda")] == [True, False]
    assert losses.is_large(1, 3 * pairs, pairs, "cuda")


@pytest.mark.parametrize(
    ("asked", "on_cpu", "on_gpu"),
    [("auto", "false", "true"), ("true", "true", "true"), ("false", "false", "false")],
)
def test_auto_compiles_the_blocks_on_a_gpu(tiny, asked, on_cpu, on_gpu, monkeypatch):
    """The answer is the run's; what is compiled takes its steps without a wait."""
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda call, **_: compiled.append(call) or call)
    assert resolve(tiny(compile=asked), CPU).compile == on_cpu
    with pretended_gpu() as gpu:
        state, (batch,) = started(tiny(compile=asked), 1, CUDA)
        gpu.waits.clear()
        train_step(state, batch)
        assert gpu.waits == []
    assert state.config.compile == on_gpu
    assert bool(compiled) == (on_gpu == "true")


@pytest.mark.parametrize("end", ["payload", "step"])
def test_what_is_not_finite_on_a_gpu_is_known_a_step_later_and_not_saved(tiny, end):
    with pretended_gpu():
        state, batches = started(tiny(), 2, CUDA)
        state.teacher.center.fill_(math.nan)
        train_step(state, batches[0])
        with refused(about="step 1", kind=RunError, is_kept=False):
            state.payload() if end == "payload" else train_step(state, batches[1])
        assert state.step == 1


def test_a_run_on_a_gpu_that_goes_wrong_ends_before_it_is_said_or_saved(tiny, tmp_path):
    rate = {"lr": 1e30, "warmup_fraction": 0.0}
    config = tiny(steps=9, checkpoint_every=1, log_every=2, optim=rate)
    with pretended_gpu(), refused(about="step 2", kind=RunError, is_kept=False):
        run(config, tmp_path, device=CUDA)
    assert rows_of(tmp_path) == []
    assert saved_in(tmp_path) == [1]


def test_waiting_for_data_is_what_the_gpu_stood_still(monkeypatch):
    with pretended_gpu():
        monkeypatch.setattr(torch.cuda.Event, "elapsed_time", lambda before, after: 1500.0)
        wait = DataWait(CUDA)
        assert [wait.next(iter([batch])) for batch in "ab"] == ["a", "b"]
        assert wait.seconds() == 3.0
        assert wait.seconds() == 0.0


def test_a_run_on_a_gpu_goes_on_from_its_checkpoint_and_says_what_one_on_a_cpu_says(
    tiny, tmp_path, monkeypatch
):
    # a GPU's products take seconds here, and no rate is compared
    monkeypatch.setitem(estimate.MATRIX, "cuda", 64)
    probe = {"every": 4, "limit": 16, "tasks": "shapes/knn"}
    config = tiny(probe=probe, average_momentum=0.9, **MASKED)
    run(config, tmp_path / "cpu")
    with pretended_gpu():
        run(config, tmp_path / "gpu", device=CUDA)
        checkpoint.path_of(tmp_path / "gpu", 4).unlink()
        run(config, tmp_path / "gpu", device=CUDA, resume=True)
    for row, other in zip(rows_of(tmp_path / "gpu"), rows_of(tmp_path / "cpu"), strict=True):
        assert row == pytest.approx(other, rel=1e-3, abs=1e-5)
