"""A run, from a configuration to its folder: data -> steps -> log and checkpoints.

Flow: ``run_training`` (a new run, or the continuation of one) -> ``train`` ->
``_loop``, which calls ``train_step`` until the end or a signal.

Run it: ``silc-bench train --preset shapes_tiny --data shapes --out runs/first``.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from rich.console import Console

from silc_bench.errors import RunError, UserError
from silc_bench.system.lock import NAME as RUNNING
from silc_bench.system.lock import locked
from silc_bench.system.processes import (
    StoppedError,
    concatenated,
    num_local_ranks,
    num_ranks,
    of_all,
    of_first,
    rank,
)
from silc_bench.system.terminal import counted, duration, say, warn
from silc_bench.trainer.checkpoints import file as checkpoint
from silc_bench.trainer.checkpoints.early import check_begun
from silc_bench.trainer.checkpoints.init import OF_WEIGHTS, read_start
from silc_bench.trainer.checkpoints.stop import LeftError, Stop
from silc_bench.trainer.config.config import Config, changed, flatten, from_dict, to_dict
from silc_bench.trainer.config.presets import SECOND_PHASES
from silc_bench.trainer.data.stream import Batch, Source, crowding, num_readers, open_source
from silc_bench.trainer.data.texts import Texts, look_at
from silc_bench.trainer.device import DataWait, is_sharded, share_of
from silc_bench.trainer.monitor.bounds import check_on_collapse
from silc_bench.trainer.monitor.history import start_of
from silc_bench.trainer.monitor.log import RunLog, WandbLog, check_place
from silc_bench.trainer.monitor.plan.fit import check_fit, hours_of
from silc_bench.trainer.monitor.probe import Probe, destroyed, remembered
from silc_bench.trainer.monitor.watch import Watch, repeating
from silc_bench.trainer.silc.tokenizers import Tokenizer, of_file, read_tokenizer
from silc_bench.trainer.train import TrainState, train_step

OnStep: TypeAlias = Callable[[int], None]

DUE = 1 << 16  # beyond any number of a signal
TOKENIZER_CAPTIONS = 20_000  # that a tokenizer is trained on, where tokenizer_captions is 0
LOOKED_AT = 2_000  # captions whose lengths and repetitions are said at the start

# What a run without --data says first.
NO_DATA = (
    "no --data: trains {preset} on generated scenes of {size} px, which show that it runs and no"
    " more. On your own images:",
    "  silc-bench data pack PHOTOS SHARDS",
    "  silc-bench train --preset {preset} --data 'SHARDS/*.tar'",
)

# Fields that suit the machine and are no part of the result, so that a resumed run takes new ones.
OF_THE_MACHINE = (
    "checkpoint_every",
    "checkpoint_keep_every",
    "checkpoint_minutes",
    "log_every",
    "probe",
    "checkpointing",
    "micro_batch",
    "parallel",
)
OF_THE_MACHINES_DATA = ("num_workers", "mirror_gb")

# Beginnings of the names of fields that may differ when a run is resumed.
FREE_ON_RESUME = (*(f"data.{name}" for name in OF_THE_MACHINES_DATA), *OF_THE_MACHINE)


def run_training(
    config: Config,
    run: Path,
    *,
    resume: bool | Literal["auto"],
    device: torch.device,
    console: Console,
    on_collapse: str = "warn",
    wandb: str | None = None,
    on_step: OnStep = lambda step: None,
    force: bool = False,
) -> Path:
    """Train a new run in an empty folder, or continue one; returns the final checkpoint's path.

    ``resume``: "auto" continues the run where it has a checkpoint, and else starts it.
    ``on_collapse``: "warn" says what ``silc_bench.trainer.monitor.health`` finds and goes on,
    "stop" ends the run with it. ``wandb``: [ENTITY/]PROJECT that gets the rows of the log too
    (silc_bench.trainer.monitor.log). ``on_step``: is called after each step, on the first rank,
    with how many are done. ``force``: starts although a step seems not to fit.

    Without a source of data it trains on generated scenes, and says so first.

    Raises:
        UserError: an unknown word; the folder already holds a run, holds none to resume,
            or one of another configuration or of other data; another process trains there; a step
            does not fit into memory.
        RunError: as ``train``.
    """
    check_on_collapse(on_collapse)
    if wandb is not None:
        check_place(wandb)
    if config.preset in SECOND_PHASES and not config.init:
        raise UserError(
            f"preset {config.preset} goes on from a finished run",
            about="--init",
            fix="name the run, as in --init runs/b16 (or RUN:teacher)",
        )

    if not config.data.source:
        config = changed(config, {"data.source": "shapes"})
        for sentence in NO_DATA:
            say(sentence.format(preset=config.preset, size=config.vision.image_size), console)

    # Before anything is looked for: two that start at once must not both find the folder empty.
    in_run = locked(run, partial(warn, to=console)) if rank() == 0 else nullcontext()
    with in_run:
        return _begun_or_resumed(
            config, run, resume, device, console, on_collapse, wandb, on_step, force
        )


def _begun_or_resumed(
    config: Config,
    run: Path,
    resume: bool | Literal["auto"],
    device: torch.device,
    console: Console,
    on_collapse: str,
    wandb: str | None,
    on_step: OnStep,
    force: bool,
) -> Path:
    if resume == "auto":
        # The first rank's answer: a folder of the network may look different from another node.
        resume = of_first(lambda: "yes" if checkpoint.all_in(run) else "") == "yes"
        said = "goes on from its newest checkpoint" if resume else "holds no checkpoint: a new run"
        say(f"--resume auto: {run} {said}", console)
    check_begun(run, resume)

    payload = None
    if resume:
        # Where the newest checkpoint is damaged, the run goes on from an older one.
        path, payload, damaged = checkpoint.load_newest(run)
        for sentence in damaged:
            warn(f"{sentence}; going on from {path}", console)
        if not config.data.decode_size:
            # What followed the views may have been a number when the run began.
            saved = from_dict(json.loads(payload["config"])).data.decode_size
            config = changed(config, {"data.decode_size": saved})
        _check_same_configuration(config, payload, run)

        if payload["step"] >= config.num_steps:
            # Its data may be gone by now; data of another name is looked at all the same.
            saved_source = json.loads(payload["config"])["data"]["source"]
            if config.data.source != saved_source:
                other = open_source(config.data, config.canvas).identity()
                _check_same_data(json.loads(payload["data"]), other, config.data.source)
            say(f"{run} is already complete", console)
            return path

    check_fit(config, device, console, is_resumed=resume, force=force)
    return train(config, run, device, console, payload, on_collapse, wandb, on_step)


def _check_same_configuration(config: Config, payload: dict[str, Any], run: Path) -> None:
    """UserError that names the fields in which ``config`` would lead to another result."""
    saved = flatten(from_dict(json.loads(payload["config"])))
    asked = flatten(config)

    # What a resumed run may change does not change its result, so it counts as the same.
    asked |= {name: value for name, value in saved.items() if name.startswith(FREE_ON_RESUME)}
    for name in ("precision", "compile"):
        if asked[name] == "auto":
            asked[name] = saved[name]  # what suited the machine where the run began
    if config.init:
        asked |= {name: saved[name] for name in OF_WEIGHTS}
    if "data" in payload:
        asked["data.source"] = saved["data.source"]  # ``_check_same_data`` knows more of it

    differences = [
        f"{name} {saved[name]!r} -> {asked[name]!r}" for name in saved if saved[name] != asked[name]
    ]
    if differences:
        raise UserError(
            f"was started with another configuration ({'; '.join(differences[:5])})",
            about=run,
            fix="repeat its options, or choose another --out",
        )


def _check_same_data(saved: dict[str, Any] | None, now: dict[str, Any], source: str) -> None:
    """UserError where a resumed run would go on with other data; it may lie elsewhere by now."""
    if saved is None or saved.get("fingerprint") == now["fingerprint"]:
        return
    then = f"{saved.get('description')} then"
    if saved.get("description") == now["description"]:
        problem = f"its data has changed since the run started ({then} and now)"
    else:
        problem = f"the run started with other data: {then}, {now['description']} now"
    raise UserError(
        problem,
        about=f"--data {source}",
        fix="name the data as it was, or start anew with another --out",
    )


def _cut_anew(saved: dict[str, Any], num_nodes: int) -> str | None:
    """A sentence where a resumed run reads shards on another number of nodes than before."""
    before = len(saved.get("nodes", ())) or 1
    if before == num_nodes:
        return None
    then, now = (counted(count, "node") for count in (before, num_nodes))
    return (
        f"the data was read on {then} and is read on {now} now: the rest of this epoch is cut anew,"
        " so some of its pairs come twice and as many do not come"
    )


def train(
    config: Config,
    run: Path,
    device: torch.device,
    console: Console,
    payload: dict[str, Any] | None,
    on_collapse: str,
    wandb: str | None,
    on_step: OnStep,
) -> Path:
    """Train to the end of ``config``, or on from ``payload`` (of ``checkpoint.load``).

    Returns the final checkpoint's path.

    Raises:
        UserError: ranks that share the weights do not see one folder.
        RunError: a loss that is not finite, a collapse that is to stop it, or a checkpoint that
            cannot be written.
        StoppedError: a signal to any of the ranks, after a checkpoint.
    """
    share_of(config.batch_size)  # refuses a batch that does not divide, before any data is read

    # As early, because the data of its tasks may be missing. Probes are the first rank's.
    probe = None
    if config.probe.every and rank() == 0:
        probe = Probe(config.probe, device, lambda sentence: watch.say(sentence))

    source = open_source(config.data, config.canvas)
    data = source.identity()
    cut_anew = None
    if payload is None:
        state = _created(config, source, device, console)
    else:
        state = _restored(config, payload, device)
        _check_same_data(state.data, data, config.data.source)
        cut_anew = _cut_anew(state.data or {}, source.num_nodes)
        if not cut_anew and source.num_nodes > 1:
            data["nodes"] = (state.data or {})["nodes"]  # how far each has gone in the data
    state.data = data

    # A resumed run has said it, and of a remote source its beginning may be far away.
    texts = None
    room = None
    if payload is None and rank() == 0:
        num_moments = 2 if config.optim.kind == "adamw" else 1
        room = checkpoint.room_for(run, state.payload(), num_moments)
        captions = source.captions(min(LOOKED_AT, TOKENIZER_CAPTIONS))
        texts = look_at(captions, state.tokenizer, config.batch_size)

    if rank() == 0:
        say(_plan(state, source, device, texts), console)
    counts_as_right = config.contrastive.equal_texts == "positive"
    doubts = (
        crowding(num_readers(config.data), num_local_ranks()),
        repeating(config, source.num_samples),
        cut_anew,
        texts.repetition(counts_as_right) if texts else None,
        room,
    )
    for sentence in filter(None, doubts):
        warn(sentence, console)

    try:
        with Stop(console).listening() as stop:
            # Log and probes are the first rank's, and so is a checkpoint that is one file; the
            # others only do the steps.
            shares_weights = checkpoint.is_sharded(state.payload())
            if shares_weights:
                _check_seen_by_all(run)
            writer = checkpoint.Writer(run, shares_weights)
            if rank() > 0:
                silent = Watch(state.config, device, console, "warn", source.damage, lambda _: None)
                return _follow(state, source, writer, stop.received, silent)

            online = None
            if wandb:
                online = WandbLog(wandb, run, flatten(state.config), state.step > 0, console)
            with RunLog(run, state.step, config.num_steps, console, online) as log:
                log.write_start(start_of(state.config, device, state.brought))
                watch = Watch(
                    state.config, device, console, on_collapse, source.damage, log.write_note
                )
                return _loop(state, source, run, log, stop, watch, probe, console, on_step, writer)
    finally:
        # However the run ends, its user learns which samples it went without.
        if source.damage.total:
            warn(f"left out: {source.damage.summary()}", console)
        for cause, count in source.changed.counts.items():
            say(f"{count:,} {cause}, the first: {source.changed.first[cause]}", console)


def _check_seen_by_all(run: Path) -> None:
    """UserError on every rank where one does not see the folder that the first rank works in.

    Its parts of the checkpoints would lie on a disk of its own, and nobody could read any of them.
    """
    blind = concatenated([] if (run / RUNNING).exists() else [rank()])
    if blind:
        raise UserError(
            f"rank {', '.join(map(str, blind))} of {num_ranks()} does not see this folder, and each"
            " rank writes a part of every checkpoint there",
            about=run,
            fix="choose an --out on a file system that all nodes share",
        )


def _created(config: Config, source: Source, device: torch.device, console: Console) -> TrainState:
    """A run before its first step."""
    if not config.init:
        # One rank reads or trains the tokenizer and the others get a copy, so that all agree.
        said: list[str] = []
        tokenizer_json = of_first(lambda: _tokenizer_json(source, config, said))
        state = TrainState.create(config, read_tokenizer(tokenizer_json), device)
        for sentence in said:
            say(sentence, console)
        return state

    start = read_start(config)
    for sentence in start.said:
        say(sentence, console)
    return TrainState.create(changed(config, start.fields), start.tokenizer, device, start)


def _tokenizer_json(source: Source, config: Config, said: list[str]) -> str:
    """The tokenizer of a new run; what there is to say of it is added to ``said``."""
    if config.tokenizer:
        tokenizer = of_file(Path(config.tokenizer), config.text)
        said.append(f"tokenizer: {config.tokenizer}, cleaning {tokenizer.cleaning}")
        return tokenizer.to_json()

    captions = source.captions(config.tokenizer_captions or TOKENIZER_CAPTIONS)
    trained = Tokenizer.train(captions, config.text.vocab_size, config.text.context_length)
    said.append(
        f"tokenizer: {trained.vocab_size:,} ids, trained on {counted(len(captions), 'caption')}"
    )
    return trained.to_json()


def _restored(config: Config, payload: dict[str, Any], device: torch.device) -> TrainState:
    """The run of ``payload``, with what suits this machine from ``config``."""
    asked = to_dict(config)
    of_this_machine = {name: asked[name] for name in OF_THE_MACHINE}
    joined = json.loads(payload["config"]) | of_this_machine
    names = ("source", *OF_THE_MACHINES_DATA)  # the source may have moved
    joined["data"] |= {name: asked["data"][name] for name in names}
    return TrainState.restore({**payload, "config": json.dumps(joined)}, device)


def _plan(state: TrainState, source: Source, device: torch.device, texts: Texts | None) -> str:
    """What the run is about to do, in a line."""
    config = state.config

    # The parts of a mixture ("A | B") end each at a time of its own: it has no epoch.
    epoch = None if "|" in config.data.source else source.num_samples
    epochs = f", {config.samples / epoch:,.1f} epochs" if epoch else ""

    late = config.start_step if config.is_taught_at(config.start_step) else 0
    taught = f", the teacher from step {late + 1:,} on" if late else ""
    begun = f", going on after step {state.step:,}" if state.step else ""
    shared = "" if config.parallel == "ddp" else f" that share the weights ({config.parallel})"
    processes = f"{num_ranks()} processes{shared} on " if num_ranks() > 1 else ""
    compiled = ""
    if config.compile == "true":
        compiled = "; the first steps compile the blocks, for a minute or more"
    idle = ""
    if config.distillation.products == "tf32" and device.type != "cuda":
        idle += "; distillation.products=tf32 does nothing here, only on a GPU"
    if config.exchange == "bf16" and num_ranks() == 1:
        idle += "; exchange=bf16 does nothing in one process"
    if config.parallel != "ddp" and num_ranks() == 1:
        idle += f"; parallel={config.parallel} does nothing in one process"
    num_workers = num_readers(config.data)
    decoding = f"; data.num_workers={num_workers}" if num_workers else ""
    cut_off = texts.cut_off() if texts else ""
    cut = f"; {cut_off}" if cut_off else ""

    left = 1 - state.step / config.num_steps
    time = duration(3600 * left * hours_of(config, device, num_ranks()))

    return (
        f"{config.name}: {counted(config.num_steps, 'step')} of {config.batch_size:,}"
        f"{epochs}{taught}{begun}, from {source.describe()}"
        f" on {processes}{device} in {config.precision}, {time} or more"
        f"{decoding}{compiled}{idle}{cut}"
    )


def _follow(
    state: TrainState,
    source: Source,
    writer: checkpoint.Writer,
    received: list[int],
    watch: Watch,
) -> Path:
    """What every rank but the first does: the same steps, without log and probes.

    Of a sharded state it writes its part of the same checkpoints, and helps to make the rows of the
    log and the models that the first rank measures.
    """
    config = state.config
    helps = is_sharded(state.student.log_scale)
    if helps and config.probe.every and state.start is not None and state.step == 0:
        state.to_evaluate()
    with closing(_my_batches(state, source)) as batches, writer:
        while state.step < config.num_steps:
            is_row = helps and _is_row(state.step + 1, config)
            batch = next(batches)
            if is_row:
                watch.before_step(state)
            values = train_step(state, batch)

            # A collective call, as in ``_loop``: the ranks learn of a signal after the same step.
            signals, is_due = _of_all_ranks(received)
            is_stopped = any(signals)
            if is_row:
                watch.row(state, batch, values, seconds_per_step=1.0, wait_share=0.0)
            if helps and _is_probe(state.step, config):
                state.to_evaluate()
            if writer.needs_all:
                writer.check()
                if is_due or is_stopped or _is_saved_after(state.step, config):
                    writer.write(state.payload())
            if is_stopped and state.step < config.num_steps:
                writer.wait()
                raise _stopped(signals, state.step, writer.path_of(state.step))
    return writer.path_of(state.step)


def _is_saved_after(step: int, config: Config) -> bool:
    """Whether a checkpoint follows a step whatever happens: after so many, a probe and the last."""
    is_last = step == config.num_steps
    return step % config.checkpoint_every == 0 or is_last or _is_probe(step, config)


def _is_probe(step: int, config: Config) -> bool:
    every = config.probe.every
    return every > 0 and (step % every == 0 or step == config.num_steps)


def _is_row(step: int, config: Config) -> bool:
    return step % config.log_every == 0 or step == config.num_steps


def _my_batches(state: TrainState, source: Source) -> Generator[Batch, None, None]:
    """This rank's part of each global batch, from the position where ``state`` stands."""
    nodes = (state.data or {}).get("nodes", ())
    batch_size = state.config.batch_size
    return source.batches(batch_size, state.position, rank(), num_ranks(), nodes=nodes)


def _loop(
    state: TrainState,
    source: Source,
    run: Path,
    log: RunLog,
    stop: Stop,
    watch: Watch,
    probe: Probe | None,
    console: Console,
    on_step: OnStep,
    writer: checkpoint.Writer,
) -> Path:
    """The first rank's steps, with what stands around each: log row, probe, checkpoint, signal."""
    config = state.config
    device = state.student.log_scale.device
    wait = DataWait(device)
    with (
        closing(_my_batches(state, source)) as opened,
        writer,
        _saved_when_left(state, writer, run, log, stop),
    ):
        if probe is not None and state.start is not None and state.step == 0:
            with stop.leavable():
                state.start["probes"] = _probe_of_start(state, probe, log)

        # The first batch takes what opening the source takes, which is no part of the speed.
        with stop.leavable():
            first = next(opened)
        batches = chain([first], opened)
        mark = time.perf_counter()
        mark_step = state.step
        saved = time.monotonic()

        # Around what changes nothing of the state (data, log, probe), and around a step, which ends
        # for want of memory nearly always before it moves the weights.
        saving_first = partial(_saving_first, state, writer, state.step, console)
        moved: list[bool] = []  # an entry where the update of this step has begun
        # The hook must not hold ``state``: a circle would keep DDP alive when the group is
        # destroyed, and the other ranks would wait.
        state.optimizer.register_step_pre_hook(lambda *_: stop.begin_update())
        state.optimizer.register_step_pre_hook(lambda *_: moved.append(True))

        while state.step < config.num_steps:
            stop.begin_step()
            with saving_first(), stop.leavable():
                batch = wait.next(batches)
            number = state.step + 1  # of this step, from 1 as in the log
            is_last = number == config.num_steps
            is_row = _is_row(number, config)
            is_probe = _is_probe(number, config)

            if is_row:
                watch.before_step(state)
            with saving_first(moved, but=RunError), stop.leavable():
                values = train_step(state, batch)
            moved.clear()
            stop.end_step()

            # A collective call, so after each step: a signal to one rank stops all of them.
            is_late = 0 < config.checkpoint_minutes * 60 <= time.monotonic() - saved
            signals, is_due = _of_all_ranks(stop.received, is_late)
            is_stopped = any(signals)
            log.advance(state.step)
            on_step(state.step)

            # No row and no score of a step whose values were not finite.
            if is_row or is_probe:
                state.confirm()
            if is_row:
                seconds = time.perf_counter() - mark
                steps = state.step - mark_step
                share = wait.seconds() / seconds  # of the time that went by without a batch
                row = watch.row(state, batch, values, seconds / steps, share)
                with saving_first():
                    log.write(state.step, row)
                    verdicts = watch.judge(state, row)
                watch.stop(state, verdicts)
                mark = time.perf_counter()
                mark_step = state.step

            score = None  # the mean over the probe's tasks, by which the best checkpoint is kept
            fallen = None
            if probe is not None and is_probe:
                before = time.perf_counter()
                with saving_first(), stop.leavable():
                    scores = probe(state.to_evaluate())
                    if scores:  # nothing could be scored of a student that diverged
                        log.write_probe(state.step, scores | probe.teacher, probe.errors)
                mark += time.perf_counter() - before  # the speed of a row is that of its steps
                if scores and not probe.diverged:
                    score = sum(scores.values()) / len(scores)
                fallen = destroyed(state.start, scores, probe.errors, config.optim)

            # The probe's alarms come after its checkpoint: the weights they stop at are kept.
            writer.check()
            if is_due or is_stopped or _is_saved_after(state.step, config):
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


@contextmanager
def _saved_when_left(
    state: TrainState, writer: checkpoint.Writer, run: Path, log: RunLog, stop: Stop
) -> Iterator[None]:
    """Where a second signal leaves the block, the steps before are saved, and StoppedError ends it.

    Raises:
        StoppedError: it was left.
    """
    begun = state.step

    def keep() -> None:
        if state.step not in (begun, writer.step):
            writer.write(state.payload())

    def saved() -> StoppedError:
        kind = signal.Signals([*stop.received, *stop.heard][0]).name
        keep()
        writer.wait()
        kept = checkpoint.all_in(run)
        fix = f"{kept[-1]} is saved, continue with --resume" if kept else "start it anew"
        return StoppedError(
            f"stopped by {kind} within step {state.step + 1}, which is lost", fix=fix
        )

    def ended() -> StoppedError:
        """From the thread of ``stop``: nothing that stands around the block comes to its end."""
        error = saved()
        log.__exit__(type(error), error, None)
        (run / RUNNING).unlink(missing_ok=True)
        return error

    stop.keep = keep
    stop.save = ended
    try:
        yield
    except LeftError:
        with stop.gate:
            raise saved() from None
    finally:
        stop.keep = stop.save = None  # they hold the state


@contextmanager
def _saving_first(
    state: TrainState,
    writer: checkpoint.Writer,
    begun: int,
    console: Console,
    moved: Sequence[bool] = (),
    but: type[Exception] | tuple[type[Exception], ...] = (),
) -> Iterator[None]:
    """Where the block fails, a checkpoint is written before its error ends the run.

    Args:
        begun: the step at which this process started.
        moved: holds anything where the block has begun to change ``state``.
        but: errors that come of a bad state, such as values that are not finite.
    """
    try:
        yield
    except but:
        raise
    except Exception:
        # Of a sharded state one rank alone has nothing to write.
        if state.step not in (begun, writer.step) and not moved and not writer.needs_all:
            try:
                writer.write(state.payload())
                warn(f"{writer.wait()} is saved, continue with --resume", console)
            except RunError as error:  # of the write; what ended the run is said below
                warn(str(error), console)
        raise


def _probe_of_start(state: TrainState, probe: Probe, log: RunLog) -> dict[str, dict[str, float]]:
    """What other weights score before the first step: later probes are compared with it."""
    scores = probe(state.to_evaluate())
    if probe.diverged:
        raise RunError(
            f"its weights cannot be measured: {probe.diverged}",
            about=f"--init {state.config.init}",
            fix="name weights that did not diverge",
        )
    log.write_probe(0, scores | probe.teacher, probe.errors)
    return remembered(scores, probe.errors)


def _of_all_ranks(received: list[int], is_due: bool = False) -> tuple[list[int], bool]:
    """The first signal that each rank received, 0 for none; and the first rank's ``is_due``."""
    mine = received[0] if received else 0
    numbers = of_all(mine + DUE * is_due)
    return [number % DUE for number in numbers], numbers[0] >= DUE


def _stopped(signals: list[int], step: int, path: Path | None) -> StoppedError:
    """What every rank says of ``signals``: the number that each rank received, 0 for none."""
    causes = []
    for number in sorted({*signals} - {0}):
        receivers = [index for index, received in enumerate(signals) if received == number]
        if len(receivers) < len(signals):
            where = f" to rank {', '.join(map(str, receivers))} of {len(signals)}"
        elif len(signals) > 1:
            where = " to every rank"
        else:
            where = ""
        causes.append(f"{signal.Signals(number).name}{where}")
    return StoppedError(
        f"stopped by {' and '.join(causes)} after step {step}",
        fix=f"{path} is saved, continue with --resume",
    )
