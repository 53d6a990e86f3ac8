"""A run, from a configuration to its folder: data -> steps -> log and checkpoints, until the end or
a signal.

Flow: ``run_training`` (a new run, or the continuation of one) -> ``train`` -> ``_loop``, which
calls ``train_step``.

Run it: ``silc-bench train --preset shapes_tiny --data shapes --out runs/first``.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from silc_bench.errors import RunError, UserError
from silc_bench.system.processes import (
    StoppedError,
    num_local_ranks,
    num_ranks,
    of_all,
    of_first,
    rank,
)
from silc_bench.trainer.checkpoints import file as checkpoint
from silc_bench.trainer.checkpoints.init import read_start
from silc_bench.trainer.config.config import Config, flatten, from_dict, to_dict
from silc_bench.trainer.config.presets import SECOND_PHASES
from silc_bench.trainer.data.stream import Batch, Source, crowding, open_source
from silc_bench.trainer.device import DataWait, share_of
from silc_bench.trainer.monitor.log import RunLog, WandbLog, check_place
from silc_bench.trainer.monitor.probe import Probe, destroyed, remembered
from silc_bench.trainer.monitor.watch import Watch, check_on_collapse, repeating
from silc_bench.trainer.silc.tokenizers import Tokenizer
from silc_bench.trainer.train import TrainState, train_step

TOKENIZER_CAPTIONS = 20_000  # captions that the tokenizer is trained on
# No part of the result:
OF_THE_MACHINE = (
    "checkpoint_every",
    "checkpoint_minutes",
    "log_every",
    "probe",
    "checkpointing",
    "micro_batch",
)
FREE_ON_RESUME = ("data.num_workers", "data.mirror_gb", *OF_THE_MACHINE)  # prefixes
STOPPING = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGUSR1,
)  # Ctrl-C, and what schedulers send before they take a machine away


def run_training(
    config: Config,
    run: Path,
    *,
    resume: bool,
    device: torch.device,
    console: Console,
    on_collapse: str = "warn",
    wandb: str | None = None,
) -> Path:
    """A new run in an empty folder, or the continuation of one with the same configuration; the
    final checkpoint's path.

    ``on_collapse``: "warn" says what ``silc_bench.trainer.monitor.health`` finds and goes on,
    "stop" ends the run with it. ``wandb``: [ENTITY/]PROJECT that gets the rows of the log too
    (silc_bench.trainer.monitor.log).

    Raises:
        UserError: an unknown word, no data; the folder already holds a run, holds none to resume,
        or one of another configuration.
        RunError: as ``train``.
    """
    check_on_collapse(on_collapse)
    if wandb is not None:
        check_place(wandb)
    if not config.data.source:
        raise UserError(
            f"preset {config.preset} brings no data: name your shards, as in --data 'DIR/*.tar'"
        )
    if config.preset in SECOND_PHASES and not config.init:
        raise UserError(
            f"preset {config.preset} goes on from a finished run: name it, as in --init runs/b16 (or RUN:teacher)"
        )
    if not resume:
        if checkpoint.all_in(run):
            raise UserError(
                f"{run} already holds a run; continue it with --resume, or choose another --out"
            )
        return train(config, run, device, console, on_collapse=on_collapse, wandb=wandb)
    if not checkpoint.all_in(run):
        raise UserError(
            f"--resume: {run} holds no checkpoints/step_*.pt to continue from; leave --resume out to start anew"
        )
    path, payload, damaged = checkpoint.load_newest(run)
    for sentence in damaged:
        console.print(
            f"{sentence}; going on from {path}",
            style="yellow",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    saved, wanted = flatten(from_dict(json.loads(payload["config"]))), flatten(config)
    wanted |= {
        name: value for name, value in saved.items() if name.startswith(FREE_ON_RESUME)
    }  # the run ends as it would
    if config.precision == "auto":
        wanted["precision"] = saved["precision"]  # what was native where the run began
    differ = [
        f"{name} {saved[name]!r} -> {wanted[name]!r}"
        for name in saved
        if saved[name] != wanted[name]
    ]
    if differ:
        raise UserError(
            f"--resume: {run} was started with another configuration ({'; '.join(differ[:5])});"
            " repeat its options, or choose another --out"
        )
    if payload["step"] >= config.num_steps:
        console.print(f"{run} is already complete", markup=False, soft_wrap=True)
        return path
    return train(config, run, device, console, payload, on_collapse, wandb)


def train(
    config: Config,
    run: Path,
    device: torch.device,
    console: Console,
    payload: dict[str, Any] | None = None,
    on_collapse: str = "warn",
    wandb: str | None = None,
) -> Path:
    """Train to the end of ``config``, or on from ``payload`` (of ``checkpoint.load``); the final
    checkpoint's path.

    Raises:
        RunError: a loss that is not finite, a collapse that is to stop it, or a checkpoint that
        cannot be written. StoppedError: a signal to any of the ranks, after a checkpoint.
    """
    share_of(config.batch_size)
    source = open_source(config.data)
    if payload is None:
        state = _created(config, source, device, console)
    else:
        wanted = {name: value for name, value in to_dict(config).items() if name in OF_THE_MACHINE}
        state = TrainState.restore(
            {**payload, "config": json.dumps(json.loads(payload["config"]) | wanted)}, device
        )
    console.print(_plan(state, source, device), markup=False, highlight=False, soft_wrap=True)
    doubts = (
        crowding(config.data.num_workers, num_local_ranks()),
        repeating(config, source.num_samples),
    )
    for sentence in filter(None, doubts):
        console.print(sentence, style="yellow", markup=False, highlight=False, soft_wrap=True)
    try:
        with _signals() as received:
            if rank() > 0:
                return _follow(state, source, run, received)
            online = (
                WandbLog(wandb, run, flatten(state.config), state.step > 0, console)
                if wandb
                else None
            )
            with RunLog(run, state.step, config.num_steps, console, online) as log:
                watch = Watch(
                    state.config, device, console, on_collapse, source.damage, log.write_note
                )
                return _loop(state, source, run, log, received, watch)
    finally:
        if source.damage.total:
            console.print(
                f"left out: {source.damage.summary()}",
                style="yellow",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )


def _plan(state: TrainState, source: Source, device: torch.device) -> str:
    """What the run is about to do, in a line."""
    config = state.config
    epoch = (
        None if "|" in config.data.source else source.num_samples
    )  # each part of a mixture ends at a time of its own
    epochs = f", {config.samples / epoch:,.1f} epochs" if epoch else ""
    late = config.start_step if config.is_taught_at(config.start_step) else 0
    taught = f", the teacher from step {late + 1:,} on" if late else ""
    begun = f", going on after step {state.step:,}" if state.step else ""
    processes = f"{num_ranks()} processes on " if num_ranks() > 1 else ""
    compiled = (
        "; the first steps compile the blocks, for a minute or more" if config.compile else ""
    )
    return (
        f"{config.name}: {config.num_steps:,} steps of {config.batch_size:,}{epochs}{taught}{begun}, from {source.describe()}"
        f" on {processes}{device} in {config.precision}{compiled}"
    )


def _created(config: Config, source: Source, device: torch.device, console: Console) -> TrainState:
    """A run before its first step."""
    if not config.init:
        return TrainState.create(
            config, Tokenizer.from_json(of_first(lambda: _tokenizer_json(source, config))), device
        )
    start = read_start(config)
    for sentence in start.said:
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)
    return TrainState.create(config, start.tokenizer, device, start)


def _tokenizer_json(source: Source, config: Config) -> str:
    captions = source.captions(TOKENIZER_CAPTIONS)
    return Tokenizer.train(captions, config.text.vocab_size, config.text.context_length).to_json()


def _follow(state: TrainState, source: Source, run: Path, received: list[int]) -> Path:
    """What every rank but the first does: the same steps; log, checkpoints and probes are the first
    one's.
    """
    with closing(_my_batches(state, source)) as batches:
        while state.step < state.config.num_steps:
            train_step(state, next(batches))
            signals = of_all(received[0] if received else 0)
            if any(signals) and state.step < state.config.num_steps:
                raise _stopped(signals, state.step, checkpoint.path_of(run, state.step))
    return checkpoint.path_of(run, state.step)


def _my_batches(state: TrainState, source: Source) -> Generator[Batch, None, None]:
    return source.batches(state.config.batch_size, state.position, rank(), num_ranks())


def _loop(
    state: TrainState, source: Source, run: Path, log: RunLog, received: list[int], watch: Watch
) -> Path:
    config = state.config
    probe = (
        Probe(config.probe, state.student.log_scale.device, watch.say)
        if config.probe.every
        else None
    )
    if probe is not None and state.start is not None and state.step == 0:
        found = probe(state)
        if probe.diverged:
            raise RunError(f"--init {config.init} cannot be measured: {probe.diverged}")
        log.write_probe(0, found)
        state.start["probes"] = remembered(found, probe.errors)
    wait = DataWait(state.student.log_scale.device)
    with closing(_my_batches(state, source)) as opened, checkpoint.Writer(run) as writer:
        batches = chain(
            [next(opened)], opened
        )  # the first takes what opening the source takes, which is no part of the speed
        mark, mark_step, saved = time.perf_counter(), state.step, time.monotonic()
        while state.step < config.num_steps:
            batch = wait.next(batches)
            is_last = state.step + 1 == config.num_steps
            is_row = is_last or (state.step + 1) % config.log_every == 0
            is_probe = probe is not None and (is_last or (state.step + 1) % config.probe.every == 0)
            if is_row:
                watch.before_step(state)
            values = train_step(state, batch)
            signals = of_all(received[0] if received else 0)
            is_stopped, score, fallen = any(signals), None, None
            log.advance(state.step)
            if is_row or is_probe:
                state.confirm()
            if is_row:
                seconds, steps = time.perf_counter() - mark, state.step - mark_step
                row = watch.row(state, batch, values, seconds / steps, wait.seconds() / seconds)
                log.write(state.step, row)
                watch.judge(state, row)
                mark, mark_step = time.perf_counter(), state.step
            if probe is not None and is_probe:
                before = time.perf_counter()
                found = probe(state)
                mark += time.perf_counter() - before  # the speed of a row is that of its steps
                if found:  # nothing could be scored of a student that diverged
                    log.write_probe(state.step, found)
                score = sum(found.values()) / len(found) if found and not probe.diverged else None
                fallen = destroyed(state.start, found, probe.errors, config.optim)
            writer.check()
            is_due = 0 < config.checkpoint_minutes * 60 <= time.monotonic() - saved
            if (
                state.step % config.checkpoint_every == 0
                or is_due
                or is_last
                or is_stopped
                or is_probe
            ):
                writer.write(state.payload(), score)
                saved = time.monotonic()
            if is_probe and probe is not None and probe.diverged:
                watch.alarm(state, "the student cannot be measured", probe.diverged)
            if fallen:
                watch.alarm(state, "zero-shot is lost", fallen)
            if is_stopped and not is_last:
                raise _stopped(signals, state.step, writer.wait())
    assert writer.path is not None, "a run of at least one step ends with a checkpoint"
    return writer.path


def _stopped(signals: list[int], step: int, path: Path | None) -> StoppedError:
    """What every rank says of ``signals``: the number that each rank received, 0 for none."""
    causes = []
    for number in sorted({*signals} - {0}):
        receivers = [index for index, received in enumerate(signals) if received == number]
        to = f" to rank {', '.join(map(str, receivers))} of {len(signals)}"
        if len(receivers) == len(signals):
            to = " to every rank" if len(signals) > 1 else ""
        causes.append(f"{signal.Signals(number).name}{to}")
    return StoppedError(
        f"stopped by {' and '.join(causes)} after step {step}; {path} is saved, continue with --resume"
    )


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Signals that stop a run are noted and answered after the step; a second one acts at once, as
    it always did.
    """
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
