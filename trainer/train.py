"""Training, from a configuration to a run's folder: shards -> views -> student and teacher -> losses -> update -> EMA.

``train_step`` is the algorithm and nothing else. ``train`` is what surrounds it: data, log, checkpoints, signals.
Randomness is a pure function of (seed, step), so (state, step, data position) continue a run bit for bit, on the same machine
and with as many threads as before: another number of threads adds in another order.

Run it: ``silc-bench train --preset shapes_tiny --data shapes --out runs/first``.
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from silc_bench.errors import RunError, UserError
from trainer import checkpoint
from trainer.config import Config, flatten, from_dict, to_dict
from trainer.data import Batch, Source, open_source
from trainer.log import RunLog
from trainer.losses import distillation_loss, sigmoid_loss, softmax_loss
from trainer.model import Student, StudentOutput, init_weights
from trainer.optim import clip_gradients, make_optimizer, set_lr
from trainer.precision import resolve
from trainer.schedule import lr_at
from trainer.teacher import Teacher
from trainer.tokenizer import Tokenizer
from trainer.views import make_views

TOKENIZER_CAPTIONS = 20_000  # captions that the tokenizer is trained on


@dataclass
class TrainState:
    """Everything that a checkpoint holds."""

    config: Config
    student: Student
    teacher: Teacher
    optimizer: torch.optim.Optimizer
    tokenizer: Tokenizer
    step: int = 0  # optimiser updates done
    samples_seen: int = 0
    position: int = 0  # where the data continues

    @classmethod
    def create(cls, config: Config, tokenizer: Tokenizer, device: torch.device) -> TrainState:
        config = resolve(config, device)
        student = Student(config)
        init_weights(student, config.seed)
        student.to(device)
        teacher = Teacher(student, config.distillation)
        return cls(config, student, teacher, make_optimizer(student, config.optim), tokenizer)

    @classmethod
    def restore(cls, payload: dict[str, Any], device: torch.device) -> TrainState:
        """From ``checkpoint.load``'s answer. UserError when the file's parts do not fit together."""
        try:
            config = from_dict(json.loads(payload["config"]))
            state = cls.create(config, Tokenizer.from_json(payload["tokenizer"]), device)
            state.student.load_state_dict(payload["student"])
            state.teacher.load_state_dict(payload["teacher"])
            state.optimizer.load_state_dict(payload["optimizer"])
            state.step, state.samples_seen, state.position = (int(payload[k]) for k in ("step", "samples_seen", "position"))
        except (ValueError, TypeError, KeyError, RuntimeError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(f"--resume: the checkpoint's parts do not fit together ({reason})") from None
        return state

    def payload(self) -> dict[str, Any]:
        return {
            "config": json.dumps(to_dict(self.config)),
            "tokenizer": self.tokenizer.to_json(),
            "student": self.student.state_dict(),
            "teacher": self.teacher.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "samples_seen": self.samples_seen,
            "position": self.position,
        }


def train_step(state: TrainState, batch: Batch) -> dict[str, Tensor]:
    """One optimiser update. Returns the losses and the gradient norm as scalars on the device."""
    config, student, teacher = state.config, state.student, state.teacher
    device = student.log_scale.device
    set_lr(state.optimizer, lr_at(state.step, config.num_steps, config.optim))
    views = make_views(batch.images.to(device), batch.sizes, config.views, config.seed, state.step, needs=config.view_kinds)
    tokens = state.tokenizer(batch.texts).to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        targets, teacher_logits = teacher.targets(views) if student.head is not None else (None, None)
        out = student(views, tokens)
    losses = {"contrastive": contrastive(out, student, config)}
    if out.logits is not None and targets is not None:
        num_skipped = config.views.num_global if config.distillation.pairs == "local+global" else 0
        losses["distillation"] = distillation_loss(out.logits, targets, config.distillation.student_temp, num_skipped)
    loss = losses["contrastive"] + config.distillation.weight * losses.get("distillation", 0.0)
    state.optimizer.zero_grad()
    loss.backward()
    gradient_norm = clip_gradients(student, config.optim.clip_norm)
    stop_if_not_finite(state.step, losses | {"gradient_norm": gradient_norm}, config)
    state.optimizer.step()
    teacher.update(student)
    if teacher_logits is not None:
        teacher.update_center(teacher_logits)
    state.step, state.samples_seen, state.position = state.step + 1, state.samples_seen + len(batch.texts), batch.position
    return {"loss": loss.detach(), **{k: v.detach() for k, v in losses.items()}, "gradient_norm": gradient_norm}


def contrastive(out: StudentOutput, student: Student, config: Config) -> Tensor:
    """The image-text loss, averaged over the views that meet the text; each view meets the whole batch of texts."""
    scale = student.log_scale.exp()
    if config.contrastive.loss == "sigmoid":
        parts = [sigmoid_loss(view, out.text_features, scale, student.logit_bias) for view in out.image_features]
    else:
        parts = [softmax_loss(view, out.text_features, scale) for view in out.image_features]
    return torch.stack(parts).mean()


def stop_if_not_finite(step: int, values: dict[str, Tensor], config: Config) -> None:
    """Raise before the weights are touched, naming the first value that is not finite and the likely cause."""
    if bool(torch.isfinite(torch.stack([v.detach().float() for v in values.values()])).all()):
        return
    numbers = {name: value.item() for name, value in values.items()}
    name = next(name for name, number in numbers.items() if not math.isfinite(number))
    causes = {
        "contrastive": f"the features overflowed or a picture was not a number; try a lower optim.lr (now {config.optim.lr:g})",
        "distillation": f"a temperature is too small (student {config.distillation.student_temp:g}, "
        f"teacher {config.distillation.teacher_temp:g}) or optim.lr too high (now {config.optim.lr:g})",
        "gradient_norm": f"the losses are finite but a gradient overflowed; try a lower optim.lr (now {config.optim.lr:g}), "
        "a longer optim.warmup_fraction, or precision=fp32",
    }
    found = ", ".join(f"{k} {number:g}" for k, number in numbers.items())
    raise RunError(
        f"step {step + 1}: {name} is not finite ({found}). Likely cause: {causes[name]}. Earlier checkpoints are intact."
    )


def run_training(config: Config, run: Path, *, resume: bool, device: torch.device, console: Console) -> Path:
    """A new run in an empty folder, or the continuation of one with the same configuration; the final checkpoint's path.

    Raises:
        UserError: the folder already holds a run, holds none to resume, or holds one of another configuration.
        RunError: as ``train``.
    """
    if not config.data.source:
        raise UserError(f"preset {config.preset} brings no data: name your shards, as in --data 'DIR/*.tar'")
    if not resume:
        if checkpoint.all_in(run):
            raise UserError(f"{run} already holds a run; continue it with --resume, or choose another --out")
        return train(config, run, device, console)
    if not checkpoint.all_in(run):
        raise UserError(f"--resume: {run} holds no checkpoints/step_*.pt to continue from; leave --resume out to start anew")
    path = checkpoint.find(run)
    payload = checkpoint.load(path)
    saved, wanted = flatten(from_dict(json.loads(payload["config"]))), flatten(config)
    wanted["data.num_workers"] = saved["data.num_workers"]  # changes nothing but speed
    if config.precision == "auto":
        wanted["precision"] = saved["precision"]  # what was native where the run began
    differ = [f"{name} {saved[name]!r} -> {wanted[name]!r}" for name in saved if saved[name] != wanted[name]]
    if differ:
        raise UserError(
            f"--resume: {run} was started with another configuration ({'; '.join(differ[:5])});"
            " repeat its options, or choose another --out"
        )
    if payload["step"] >= config.num_steps:
        console.print(f"{run} is already complete", markup=False, soft_wrap=True)
        return path
    return train(config, run, device, console, payload)


def train(config: Config, run: Path, device: torch.device, console: Console, payload: dict[str, Any] | None = None) -> Path:
    """Train to the end of ``config``, or on from ``payload`` (of ``checkpoint.load``); the final checkpoint's path.

    Raises:
        RunError: a loss that is not finite, a checkpoint that cannot be written, or a signal (after a checkpoint).
    """
    source = open_source(config.data)
    if payload is None:
        captions = source.captions(TOKENIZER_CAPTIONS)
        tokenizer = Tokenizer.train(captions, config.text.vocab_size, config.text.context_length)
        state = TrainState.create(config, tokenizer, device)
    else:
        state = TrainState.restore(payload, device)
    where = f"from {source.describe()} on {device} in {state.config.precision}"
    console.print(f"{config.name}: {config.num_steps:,} steps of {config.batch_size:,} {where}", markup=False, soft_wrap=True)
    try:
        with RunLog(run, state.step, config.num_steps, console) as log, _signals() as received:
            return _loop(state, source, run, log, received)
    finally:
        if source.damage.total:
            console.print(f"left out: {source.damage.summary()}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def _loop(state: TrainState, source: Source, run: Path, log: RunLog, received: list[int]) -> Path:
    config, path = state.config, None
    batches = source.batches(config.batch_size, start=state.position)
    mark, mark_step, waited = time.perf_counter(), state.step, 0.0
    try:
        while state.step < config.num_steps:
            before = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - before
            values = train_step(state, batch)
            is_last = state.step == config.num_steps
            log.advance(state.step)
            if state.step % config.log_every == 0 or is_last:
                seconds, steps = time.perf_counter() - mark, state.step - mark_step
                log.write(state.step, _row(state, values, seconds / steps, waited / seconds))
                mark, mark_step, waited = time.perf_counter(), state.step, 0.0
            if state.step % config.checkpoint_every == 0 or is_last or received:
                path = save_checkpoint(state, run)
            if received and not is_last:
                name = signal.Signals(received[0]).name
                raise RunError(f"stopped by {name} after step {state.step}; {path} is saved, continue with --resume")
    finally:
        batches.close()
    assert path is not None, "a run of at least one step ends with a checkpoint"
    return path


def _row(state: TrainState, values: dict[str, Tensor], seconds_per_step: float, wait_share: float) -> dict[str, float]:
    config = state.config
    return {
        **{name: float(value) for name, value in values.items()},
        "lr": lr_at(state.step - 1, config.num_steps, config.optim),
        "logit_scale": state.student.log_scale.exp().item(),
        "logit_bias": state.student.logit_bias.item(),
        "samples_seen": state.samples_seen,
        "images_per_second": config.batch_size / seconds_per_step,
        "data_wait_share": wait_share,
        "seconds_left": seconds_per_step * (config.num_steps - state.step),
    }


def save_checkpoint(state: TrainState, run: Path) -> Path:
    try:
        return checkpoint.save(run, state.payload())
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        kept = checkpoint.all_in(run)
        last = f"the last good one is {kept[-1]}" if kept else "there is none yet"
        raise RunError(f"step {state.step}: the checkpoint could not be written to {run} ({error}); {last}") from error


@contextmanager
def _signals() -> Iterator[list[int]]:
    """SIGINT and SIGTERM are noted and answered after the step; a second one acts at once, as it always did."""
    received: list[int] = []
    old = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}

    def note(kind: int, frame: object) -> None:
        received.append(kind)
        for each, handler in old.items():
            signal.signal(each, handler)

    for kind in old:
        signal.signal(kind, note)
    try:
        yield received
    finally:
        for kind, handler in old.items():
            signal.signal(kind, handler)
