"""A run, from a configuration to its folder: data -> steps -> log and checkpoints, until the end or a signal.

Flow: ``run_training`` (a new run, or the continuation of one) -> ``train`` -> ``_loop``, which calls ``train_step``.

Run it: ``silc-bench train --preset shapes_tiny --data shapes --out runs/first``.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from silc_bench.errors import RunError, UserError
from trainer import checkpoint
from trainer.config import Config, flatten, from_dict
from trainer.data import Source, open_source
from trainer.log import RunLog
from trainer.schedule import lr_at
from trainer.tokenizer import Tokenizer
from trainer.train import TrainState, train_step

TOKENIZER_CAPTIONS = 20_000  # captions that the tokenizer is trained on


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
