"""A run, from a configuration to its folder: data -> steps -> log and checkpoints, until the end or a signal.

Flow: ``run_training`` (a new run, or the continuation of one) -> ``train`` -> ``_loop``, which calls ``train_step``.

Run it: ``silc-bench train --preset shapes_tiny --data shapes --out runs/first``.
"""

from __future__ import annotations

import dataclasses
import json
import signal
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from silc_bench.errors import RunError, UserError
from silc_bench.ranks import any_of, meet, num_ranks, of_first, rank
from trainer import checkpoint
from trainer.config import Config, flatten, from_dict
from trainer.data import Batch, Source, open_source
from trainer.distributed import share_of
from trainer.log import RunLog
from trainer.schedule import lr_at
from trainer.tokenizer import Tokenizer
from trainer.train import TrainState, train_step

TOKENIZER_CAPTIONS = 20_000  # captions that the tokenizer is trained on
FREE_ON_RESUME = ("data.num_workers", "data.mirror_gb", "checkpoint_every", "checkpoint_minutes")  # the end is the same
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # Ctrl-C, and what schedulers send before they take a machine away


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
    path, payload, damaged = checkpoint.load_newest(run)
    for sentence in damaged:
        console.print(f"{sentence}; going on from {path}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    saved, wanted = flatten(from_dict(json.loads(payload["config"]))), flatten(config)
    for name in FREE_ON_RESUME:
        wanted[name] = saved[name]
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
    share_of(config.batch_size)
    source = open_source(config.data)
    if payload is None:
        state = TrainState.create(config, Tokenizer.from_json(of_first(lambda: _tokenizer_json(source, config))), device)
    else:
        state = TrainState.restore(payload, device)
        rhythm = {name: getattr(config, name) for name in ("checkpoint_every", "checkpoint_minutes")}
        state.config = dataclasses.replace(state.config, **rhythm)
    processes = f"{num_ranks()} processes on " if num_ranks() > 1 else ""
    where = f"from {source.describe()} on {processes}{device} in {state.config.precision}"
    console.print(f"{config.name}: {config.num_steps:,} steps of {config.batch_size:,} {where}", markup=False, soft_wrap=True)
    try:
        with _signals() as received:
            if rank() > 0:
                return _follow(state, source, run, received)
            with RunLog(run, state.step, config.num_steps, console) as log:
                return _loop(state, source, run, log, received)
    finally:
        if source.damage.total:
            console.print(f"left out: {source.damage.summary()}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def _tokenizer_json(source: Source, config: Config) -> str:
    captions = source.captions(TOKENIZER_CAPTIONS)
    return Tokenizer.train(captions, config.text.vocab_size, config.text.context_length).to_json()


def _follow(state: TrainState, source: Source, run: Path, received: list[int]) -> Path:
    """What every rank but the first does: the same steps; log, checkpoints and probes are the first one's."""
    with closing(_my_batches(state, source)) as batches:
        while state.step < state.config.num_steps:
            train_step(state, next(batches))
            if any_of(bool(received)) and state.step < state.config.num_steps:
                meet()
                raise RunError(f"stopped after step {state.step}; continue with --resume")
    return checkpoint.path_of(run, state.step)


def _my_batches(state: TrainState, source: Source) -> Generator[Batch, None, None]:
    return source.batches(state.config.batch_size, state.position, rank(), num_ranks())


def _loop(state: TrainState, source: Source, run: Path, log: RunLog, received: list[int]) -> Path:
    config = state.config
    mark, mark_step, waited, saved = time.perf_counter(), state.step, 0.0, time.monotonic()
    with closing(_my_batches(state, source)) as batches, checkpoint.Writer(run) as writer:
        while state.step < config.num_steps:
            before = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - before
            values = train_step(state, batch)
            is_last, is_stopped = state.step == config.num_steps, any_of(bool(received))
            log.advance(state.step)
            if state.step % config.log_every == 0 or is_last:
                seconds, steps = time.perf_counter() - mark, state.step - mark_step
                log.write(state.step, _row(state, values, seconds / steps, waited / seconds))
                mark, mark_step, waited = time.perf_counter(), state.step, 0.0
            writer.check()
            is_due = 0 < config.checkpoint_minutes * 60 <= time.monotonic() - saved
            if state.step % config.checkpoint_every == 0 or is_due or is_last or is_stopped:
                writer.write(state.payload())
                saved = time.monotonic()
            if is_stopped and not is_last:
                name, path = signal.Signals(received[0]).name if received else "another process", writer.wait()
                meet()  # the others would end before it is saved, and torchrun us with them
                raise RunError(f"stopped by {name} after step {state.step}; {path} is saved, continue with --resume")
    assert writer.path is not None, "a run of at least one step ends with a checkpoint"
    return writer.path


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


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Signals that stop a run are noted and answered after the step; a second one acts at once, as it always did."""
    received: list[int] = []
    old = {kind: signal.getsignal(kind) for kind in STOPPING}

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
