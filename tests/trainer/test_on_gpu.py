"""Training on a pretended GPU: the numbers of a CPU, no tensor left behind, no waiting host."""

import copy
import io
import json
import math
import sys
from contextlib import closing
from pathlib import Path

import pytest
import torch
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parents[1]))
from pretended_gpu import CPU, CUDA, pretended_gpu

from silc_bench.errors import RunError
from silc_bench.trainer.checkpoints import file as checkpoint
from silc_bench.trainer.data.stream import open_source
from silc_bench.trainer.device import DataWait
from silc_bench.trainer.loop import run_training
from silc_bench.trainer.monitor import cost as estimate
from silc_bench.trainer.silc.tokenizers import Tokenizer
from silc_bench.trainer.train import TrainState, train_step

pytestmark = [pytest.mark.broad, pytest.mark.usefixtures("few_captions")]
MASKED = {"masked": {"weight": 1.0}}
TAKEN_TIME = {"images_per_second", "data_wait_share", "seconds_left", "mfu"}


def started(config, device):
    """A state before its first step, and its batches."""
    source = open_source(config.data)
    tokenizer = Tokenizer.train(
        source.captions(50), config.text.vocab_size, config.text.context_length
    )
    return TrainState.create(config, tokenizer, device), source.batches(config.batch_size, 0)


def two_steps(config, device):
    """What two steps reported, and the state after them; on the CPU."""
    state, batches = started(config, device)
    rows = [train_step(state, next(batches)) for _ in range(2)]
    batches.close()
    average = state.average.weights if state.average else {}
    tensors = {
        **state.student.state_dict(),
        **{f"teacher.{n}": t for n, t in state.teacher.state_dict().items()},
        **average,
    }
    return [{name: value.item() for name, value in row.items()} for row in rows], {
        n: t.cpu() for n, t in tensors.items()
    }


@pytest.mark.parametrize(
    ("objective", "changes"),
    [
        ("contrastive", {}),
        ("silc", {"contrastive": {"loss": "softmax"}, "average_momentum": 0.9}),
        (
            "silc",
            {"distillation": {"centering": "sinkhorn", "pairs": "local+global"}, "micro_batch": 3},
        ),
        ("silc", {"optim": {"kind": "adafactor", "layer_decay": 0.8}, **MASKED}),
        (
            "silc",
            {"views": {"gray_prob": 0.5, "blur_probs": (0.5, 0.5, 0.5), "solarize_prob": 0.5}},
        ),
    ],
)
def test_steps_on_a_gpu_are_those_on_a_cpu(tiny, objective, changes):
    config = tiny(objective, **changes)
    wanted, weights = two_steps(config, CPU)
    with pretended_gpu():
        found, ours = two_steps(config, CUDA)
    for row, other in zip(found, wanted, strict=True):
        assert row == pytest.approx(other, rel=1e-5)
    for name, tensor in weights.items():
        torch.testing.assert_close(
            ours[name], tensor, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize(
    "changes",
    [{"average_momentum": 0.9, **MASKED}, {"micro_batch": 4, "optim": {"kind": "adafactor"}}],
)
def test_the_host_waits_for_nothing_in_a_step(tiny, changes):
    """It would leave the GPU with nothing to do while the host prepares what comes next."""
    augmented = {"gray_prob": 0.5, "blur_probs": (0.5, 0.5, 0.5), "solarize_prob": 0.5}
    with pretended_gpu() as gpu:
        state, batches = started(tiny("silc", views=augmented, **changes), CUDA)
        with closing(batches):
            train_step(state, next(batches))
            gpu.waits.clear()
            train_step(state, next(batches))
        assert gpu.waits == []
        state.student.log_scale.item()
        assert len(gpu.waits) == 1, "a wait is not seen"


def test_what_is_not_finite_on_a_gpu_is_known_a_step_later_and_not_saved(tiny):
    with pretended_gpu():
        state, batches = started(tiny(steps=9), CUDA)
        with closing(batches):
            train_step(state, next(batches))
            state.confirm()
            state.teacher.center.fill_(math.nan)
            train_step(state, next(batches))
            with pytest.raises(RunError, match=r"^step 2: distillation is not finite"):
                copy.copy(state).payload()
            with pytest.raises(RunError, match=r"^step 2: distillation is not finite"):
                train_step(state, next(batches))
            assert state.step == 2


def test_a_run_on_a_gpu_that_goes_wrong_ends_before_it_is_said_or_saved(tiny, tmp_path):
    config = tiny(
        steps=9, checkpoint_every=1, log_every=2, optim={"lr": 1e30, "warmup_fraction": 0.0}
    )
    with pretended_gpu(), pytest.raises(RunError, match="step 2: contrastive is not finite"):
        run_training(
            config, tmp_path, resume=False, device=CUDA, console=Console(file=io.StringIO())
        )
    assert rows_of(tmp_path) == []
    assert [path.name for path in checkpoint.all_in(tmp_path)] == ["step_00000001.pt"]


def test_waiting_for_data_is_what_the_gpu_stood_still(monkeypatch):
    with pretended_gpu():
        monkeypatch.setattr(torch.cuda.Event, "elapsed_time", lambda before, after: 1500.0)
        wait = DataWait(CUDA)
        assert [wait.next(iter([batch])) for batch in "ab"] == ["a", "b"]
        assert wait.seconds() == 3.0
        assert wait.seconds() == 0.0


def rows_of(folder):
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in TAKEN_TIME} for row in rows]


def test_a_run_on_a_gpu_goes_on_from_its_checkpoint_and_says_what_one_on_a_cpu_says(
    tiny, tmp_path, monkeypatch
):
    # a GPU's products take seconds here, and no rate is compared
    monkeypatch.setitem(estimate.MATRIX, "cuda", 64)
    config = tiny(
        steps=4,
        probe={"every": 4, "limit": 16, "tasks": "shapes/knn"},
        average_momentum=0.9,
        **MASKED,
    )
    quiet = Console(file=io.StringIO())
    run_training(config, tmp_path / "cpu", resume=False, device=CPU, console=quiet)
    with pretended_gpu():
        run_training(config, tmp_path / "gpu", resume=False, device=CUDA, console=quiet)
        for later in (tmp_path / "gpu" / "checkpoints").glob("step_*4.pt"):
            later.unlink()
        run_training(config, tmp_path / "gpu", resume=True, device=CUDA, console=quiet)
    for row, other in zip(rows_of(tmp_path / "gpu"), rows_of(tmp_path / "cpu"), strict=True):
        assert row == pytest.approx(other, rel=1e-3, abs=1e-5)
