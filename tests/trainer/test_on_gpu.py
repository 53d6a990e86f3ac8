"""Training on a pretended GPU: the numbers of a CPU, no tensor left behind on the host."""

import io
import json
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parents[1]))
from pretended_gpu import CPU, CUDA, pretended_gpu

from trainer.data import open_source
from trainer.loop import run_training
from trainer.tokenizer import Tokenizer
from trainer.train import TrainState, train_step

pytestmark = pytest.mark.usefixtures("few_captions")
MASKED = {"masked": {"weight": 1.0}}
TAKEN_TIME = {"images_per_second", "data_wait_share", "seconds_left", "mfu"}


def two_steps(config, device):
    """What two steps reported, and the state after them; on the CPU."""
    source = open_source(config.data)
    tokenizer = Tokenizer.train(source.captions(50), config.text.vocab_size, config.text.context_length)
    state, batches = TrainState.create(config, tokenizer, device), source.batches(config.batch_size, 0)
    rows = [train_step(state, next(batches)) for _ in range(2)]
    batches.close()
    average = state.average.weights if state.average else {}
    tensors = {**state.student.state_dict(), **{f"teacher.{n}": t for n, t in state.teacher.state_dict().items()}, **average}
    return [{name: value.item() for name, value in row.items()} for row in rows], {n: t.cpu() for n, t in tensors.items()}


@pytest.mark.parametrize(
    ("objective", "changes"),
    [
        ("contrastive", {}),
        ("silc", {"contrastive": {"loss": "softmax"}, "average_momentum": 0.9}),
        ("silc", {"distillation": {"centering": "sinkhorn", "pairs": "local+global"}, "micro_batch": 3}),
        ("silc", {"optim": {"kind": "adafactor", "layer_decay": 0.8}, **MASKED}),
        ("silc", {"views": {"gray_prob": 0.5, "blur_probs": (0.5, 0.5, 0.5), "solarize_prob": 0.5}}),
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
        torch.testing.assert_close(ours[name], tensor, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def rows_of(folder):
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in TAKEN_TIME} for row in rows]


def test_a_run_on_a_gpu_goes_on_from_its_checkpoint_and_says_what_one_on_a_cpu_says(tiny, tmp_path):
    config = tiny(steps=4, probe={"every": 4, "limit": 16, "tasks": "shapes/knn"}, **MASKED)
    quiet = Console(file=io.StringIO())
    run_training(config, tmp_path / "cpu", resume=False, device=CPU, console=quiet)
    with pretended_gpu():
        run_training(config, tmp_path / "gpu", resume=False, device=CUDA, console=quiet)
        for later in (tmp_path / "gpu" / "checkpoints").glob("step_*4.pt"):
            later.unlink()
        run_training(config, tmp_path / "gpu", resume=True, device=CUDA, console=quiet)
    for row, other in zip(rows_of(tmp_path / "gpu"), rows_of(tmp_path / "cpu"), strict=True):
        assert row == pytest.approx(other, rel=1e-3, abs=1e-5)
