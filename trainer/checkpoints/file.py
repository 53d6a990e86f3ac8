"""Checkpoints: one file of tensors and plain values, written atomically, read without executing it.

RUN/checkpoints/step_00001000.pt holds all that continues a run bit for bit: student, teacher (with
its centre), optimiser, step, samples seen and the position in the data; plus the configuration,
the tokenizer and what is known of the data as JSON text. Randomness is a pure function of (seed,
step), so there is no generator state to keep. A checksum of each of these parts is in
the file, so that it may be copied alone.

``step_....json`` beside it says the same for people, with the file's sha256 and, where a probe was
scored at that step, its score. This note has checksums too. Where it is missing or damaged, the
checkpoint stands by itself and has no score; where it belongs to another checkpoint, the checkpoint
is refused.

Where the state is spread over several processes (``sharded``), step_00001000/ is a folder: plain.pt
is such a file without the sharded tensors, and the tensors lie beside it, written by each process
for itself. It gets its name last, so that a kill at any moment leaves the one before. ``load``
gives the whole payload of either kind.

Flow: ``Writer.write`` copies the state and returns; ``save`` or ``save_sharded`` runs on the
writer's thread. ``load_newest`` is what resumes.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.distributed as dist
from torch.utils._pytree import tree_leaves, tree_map_only

from silc_bench.errors import RunError, UserError, first_line
from silc_bench.later import Later
from silc_bench.models.load import PLAIN, STEP, is_folder, step_of
from silc_bench.models.load import checkpoints_of as all_in
from silc_bench.models.weights import pickles
from silc_bench.models.weights.kind import needed_global
from silc_bench.system.checksums import CHECKSUMS, DIGITS, differences, read_sealed, sealed
from silc_bench.system.files import atomic_path, flush, write_text_atomic
from silc_bench.system.processes import concatenated, group_of_mine, num_ranks, rank
from silc_bench.trainer import device

if TYPE_CHECKING:
    from silc_bench.trainer.checkpoints import sharded
else:
    # it imports torch.distributed.checkpoint, which takes as long as half of torch
    sharded = Later("silc_bench.trainer.checkpoints.sharded")

FORMAT = "silc-bench-checkpoint/3"
EARLIER = "silc-bench-checkpoint/2"  # the scale and the bias had no dimension
FIELDS = (
    "format",
    "config",
    "tokenizer",
    "student",
    "teacher",
    "optimizer",
    "step",
    "samples_seen",
    "position",
)
# What is known of the weights that the run started from, what --init or --tokenizer brought
# (``silc_bench.trainer.config.identity``), and what is known of its data, as JSON texts; averaged
# weights; of a sharded checkpoint, the list of its parts.
OPTIONAL = ("start", "brought", "data", "average", "parts")
KEEP = 2  # newest checkpoints that stay; the one with the best score stays besides
OURS = "name a checkpoint that `silc-bench train` wrote"
COPY_AGAIN = "copy it again, or take an earlier checkpoint of the run"


class DamagedCheckpointError(UserError):
    """A checkpoint that was once whole: what is read is not what was written."""


class Writer:
    """Writes checkpoints of one run on a thread of its own, one at a time.

    It is a context manager: leaving it ends the last write. Every method raises RunError where a
    write that was under way has failed, with the last good checkpoint in its sentence.

    Where the state is sharded, each rank has a writer, and all of them write the same steps.
    """

    def __init__(self, run: Path, is_sharded: bool = False) -> None:
        """``is_sharded``: of a run whose state is spread over the ranks; all of them call this."""
        self._run = run
        # What the threads say to each other must not meet what the steps say: a group of its own,
        # by way of the hosts.
        self._group: dist.ProcessGroup | None = None
        if is_sharded:
            self._group = group_of_mine([range(num_ranks())], backend="gloo")
        self._buffers: dict[str, torch.Tensor] = {}  # page-locked, of the copies
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.step = 0  # of the last write that began
        self._size = 0  # of its tensors, in bytes
        self._pending: Future[Path] | None = None
        self.path: Path | None = None  # of the newest one that is written

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._thread.shutdown()

        # After an error of the block its own failure would hide that error.
        if kind is None:
            self.wait()

    def write(self, payload: dict[str, Any], score: float | None = None) -> None:
        """Wait for the write before, copy ``payload`` to the CPU, and return.

        Args:
            payload: what ``save`` takes.
        """
        self.wait()
        self.step = payload["step"]
        if self._group is not None:
            copies = sharded.Copies(payload, self._buffers)
            self._size = size_of(copies.rest) + copies.num_bytes
            self._pending = self._thread.submit(save_sharded, self._run, copies, self._group, score)
            return

        # A copy, because the next step changes the tensors while the thread still writes them.
        copy = tree_map_only(torch.Tensor, device.kept_on_host, payload)
        self._size = size_of(copy)
        self._pending = self._thread.submit(save, self._run, copy, score)

    def check(self) -> None:
        """Notice a write that has ended, without waiting for one that has not."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> Path | None:
        """The newest checkpoint, written completely."""
        pending = self._pending
        self._pending = None
        if pending is None:
            return self.path

        try:
            self.path = pending.result()
        except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
            # Another rank has ended: ``joined`` says so, and this disk is not the reason.
            if self._group is not None and _is_lost_rank(error):
                raise
            kept = all_in(self._run)
            reason = first_line(error)
            if isinstance(error, RuntimeError) and (full := _lacks_room(self._run, self._size)):
                reason = full
            last = f"the last good one is {kept[-1]}" if kept else "there is none yet"
            raise RunError(
                f"step {self.step}: the checkpoint could not be written ({reason}); {last}",
                about=self._run,
                fix="make room there, and continue with --resume",
            ) from error
        return self.path

    def path_of(self, step: int) -> Path:
        """Where it writes the checkpoint of a step."""
        return path_of(self._run, step, is_sharded=self._group is not None)

    @property
    def needs_all(self) -> bool:
        """Whether a rank alone can write nothing."""
        return self._group is not None and self._group.size() > 1


def _is_lost_rank(error: Exception) -> bool:
    """As ``silc_bench.system.processes.joined`` tells it: gloo's errors have no class of theirs."""
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()


def size_of(payload: Any) -> int:
    """Bytes of all tensors in it; of a sharded one, those of all ranks."""
    tensors = (leaf for leaf in tree_leaves(payload) if isinstance(leaf, torch.Tensor))
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _lacks_room(folder: Path, size: int) -> str:
    """A clause where so many bytes do not fit on the disk; torch says nothing of it."""
    free = shutil.disk_usage(folder).free
    if free >= size:
        return ""
    return f"it takes {size / 2**20:,.1f} MiB, and {free / 2**20:,.1f} MiB are free"


def save(run: Path, payload: dict[str, Any], score: float | None = None) -> Path:
    """Write RUN/checkpoints/step_N.pt and its note, then remove all but the newest and the best.

    Those at multiples of the configuration's ``checkpoint_keep_every`` stay, too.

    The note comes first, so that a checkpoint in its place always has its checksum beside it. A
    checkpoint of a later step than N was found damaged when the run was resumed, and is removed.
    """
    whole = with_checksums({"format": FORMAT, **payload})
    assert _has_all_fields(whole), f"checkpoint fields differ: {set(payload) ^ set(FIELDS)}"

    path = path_of(run, payload["step"])
    _remove(path.parent.glob(".step_*.tmp"))  # of a process that was killed while it wrote

    with atomic_path(path) as temporary:
        torch.save(whole, temporary)
        _write_note(path, payload, _sha256(temporary), score)

    _tidy(run, path, payload)
    return path


def save_sharded(
    run: Path, copies: sharded.Copies, group: dist.ProcessGroup, score: float | None = None
) -> Path:
    """``save`` of a state that is spread over the ranks of ``group``; each of them calls it.

    Writes RUN/checkpoints/step_N/ under another name, which the first rank changes when all ranks
    have written. ``score`` is the first rank's.

    Raises:
        OSError, RuntimeError: it failed on some rank; on each rank the same.
    """
    path = path_of(run, copies.rest["step"], is_sharded=True)
    temporary = path.with_name(f".{path.name}.tmp")

    def begin() -> None:
        _remove(path.parent.glob(".step_*.tmp"))
        temporary.mkdir(parents=True)

    def finish(parts: str) -> None:
        whole = with_checksums({"format": FORMAT, **copies.rest, "parts": parts})
        with atomic_path(temporary / PLAIN) as plain:
            torch.save(whole, plain)
        _write_note(path, copies.rest, _sha256(temporary / PLAIN), score)
        flush(temporary)

        # One of this step was found damaged when the run was resumed; a folder that holds anything
        # is in the way of another.
        _remove([path])
        os.replace(temporary, path)
        flush(path.parent)
        _tidy(run, path, copies.rest)

    try:
        sharded.write(temporary, copies, group, begin, finish)
    except BaseException:
        if dist.get_rank(group) == 0:
            _remove([temporary])
            _remove_lone_notes(path.parent)
        raise
    return path


def _write_note(path: Path, payload: dict[str, Any], sha256: str, score: float | None) -> None:
    note = {name: payload[name] for name in ("step", "samples_seen", "position")}
    note |= {
        "format": FORMAT,
        "sha256": sha256,
        "score": score,
        "config": json.loads(payload["config"]),
    }
    if "brought" in payload:
        note["brought"] = json.loads(payload["brought"])
    write_text_atomic(path.with_suffix(".json"), json.dumps(sealed(note), indent=1) + "\n")


def _tidy(run: Path, path: Path, payload: dict[str, Any]) -> None:
    """Remove what is not to be kept beside the checkpoint ``path``, which was just written."""
    # Counted from this checkpoint back: what stands after it in the list is a damaged later one, or
    # one of the same step and the other kind.
    checkpoints = all_in(run)
    until_now = [old for old in checkpoints if step_of(old) < step_of(path)]
    kept = {path, *until_now[-KEEP + 1 :], best_in(run)}
    keep_every = _keep_every(payload)
    if keep_every:
        kept |= {old for old in until_now if step_of(old) % keep_every == 0}
    _remove(old for old in checkpoints if old not in kept)
    _remove_lone_notes(path.parent)


def _remove_lone_notes(folder: Path) -> None:
    names = {path.stem for path in all_in(folder)}
    notes = (note for note in folder.glob("step_*.json") if STEP.fullmatch(note.stem))
    _remove(note for note in notes if note.stem not in names)


def _remove(paths: Iterable[Path]) -> None:
    """Files and folders, which may be gone; of what lies on another disk only the link to it."""
    for path in list(paths):
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
            continue

        # Half a folder must not keep the name of a whole one.
        gone = path
        if not path.name.startswith("."):
            gone = path.with_name(f".{path.name}.gone.tmp")
            os.replace(path, gone)
        shutil.rmtree(gone)


def room_for(run: Path, state: dict[str, Any], num_moments: int) -> str | None:
    """A sentence, before the first step, where the disk is too small for what will be kept.

    Args:
        state: the payload before the first step, when the optimiser has no moments yet.
        num_moments: tensors that it will keep of each weight of the student.
    """
    size = size_of(state) + num_moments * size_of(state["student"])
    free = shutil.disk_usage(run).free
    config = json.loads(state["config"])
    keep_every = _keep_every(state)
    num_steps = config["samples"] // config["batch_size"]

    # a new one is written before an old one goes
    count = KEEP + 1 + (num_steps // keep_every if keep_every else 0)
    if free >= count * size:
        return None
    return (
        f"{run}: a checkpoint takes about {size / 2**20:,.1f} MiB, {count} of them lie there"
        f" while one is written, and {free / 2**20:,.1f} MiB are free: make room there"
    )


def _keep_every(payload: dict[str, Any]) -> int:
    # not there in a checkpoint of an earlier version that is resumed
    return json.loads(payload["config"]).get("checkpoint_keep_every", 0)


def path_of(run: Path, step: int, is_sharded: bool = False) -> Path:
    """Where the checkpoint of a step lies; eight digits, so that names sort as steps do."""
    return run / "checkpoints" / f"step_{step:08d}{'' if is_sharded else '.pt'}"


def best_in(run: Path) -> Path | None:
    """The checkpoint with the highest score, of equals the newer; None where none was scored."""
    scored = []
    for path in all_in(run):
        score = _note_of(path).get("score")
        if score is not None:
            scored.append((score, path))
    return max(scored)[1] if scored else None


def find(path: Path) -> Path:
    """A checkpoint, or the newest one of a run's folder.

    Raises:
        UserError: nothing there, or a folder that is not a run.
    """
    if path.is_file() or is_folder(path):
        return path
    if not path.exists():
        raise UserError("no such file or folder", about=path, fix="check the path")

    checkpoints = all_in(path)
    if not checkpoints:
        raise UserError("a folder without checkpoints/step_*", about=path, fix=OURS)
    return checkpoints[-1]


def load_newest(run: Path) -> tuple[Path, dict[str, Any], list[str]]:
    """The newest checkpoint of a run that is whole for every rank; all of them call this.

    Returns:
        Its path, what it holds, and a sentence for each damaged one that is newer. Of a sharded
        checkpoint each rank has checked a share; its ``Parts`` stand at "parts" instead of the
        tensors, for ``fitted``.

    Raises:
        UserError: none is whole, or one was written by another program.
    """
    damaged: list[DamagedCheckpointError] = []
    for path in reversed(all_in(run)):
        problems = []
        payload: dict[str, Any] = {}
        try:
            payload = _load_share(path) if path.is_dir() else load(path)
        except DamagedCheckpointError as error:
            problems.append(error.problem)

        # What one rank cannot read, no rank takes.
        problems = concatenated(problems)
        if not problems:
            return path, payload, [f"{error.about}: {error.problem}" for error in damaged]
        damaged.append(DamagedCheckpointError(problems[0], about=path, fix=COPY_AGAIN))
    assert damaged, "the caller knows that there are checkpoints"
    raise damaged[0]


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint on the CPU, all of it.

    Only tensors and plain values are unpickled (``silc_bench.models.weights.pickles``), and of what
    torch.distributed.checkpoint has written nothing is.

    Raises:
        DamagedCheckpointError: empty, truncated, not the bytes whose checksum stands beside it, of
            another step than its name says, or with a part that is missing, foreign or altered.
        UserError: missing, or not one of ours.
    """
    if not path.is_dir():
        return _load_file(path)

    rest, parts = _load_folder(path)
    try:
        return sharded.joined(rest, parts, parts.whole())
    except (ValueError, RuntimeError) as error:
        raise _damaged(path, first_line(error)) from None


def fitted(
    payload: dict[str, Any],
    held: dict[str, dict[str, torch.Tensor]],
    parameters: list[torch.Tensor],
) -> dict[str, Any]:
    """``load_newest``'s answer with all tensors, as the state holds them: whole, or spread.

    Arguments and errors as of ``sharded.fitted``.
    """
    if "parts" in payload or is_sharded(held):
        return sharded.fitted(payload, held, parameters)
    return payload


def is_sharded(payload: Any) -> bool:
    """Whether any tensor in it is spread over several processes."""
    return any(map(device.is_sharded, tree_leaves(payload)))


def _load_share(path: Path) -> dict[str, Any]:
    """A sharded checkpoint of which this rank has checked its share. Raises as ``load``."""
    rest, parts = _load_folder(path)
    try:
        parts.check(rank(), num_ranks())
    except sharded.DamagedPartError as error:
        raise _damaged(path, str(error)) from None
    return {**rest, "parts": parts}


def _load_folder(path: Path) -> tuple[dict[str, Any], sharded.Parts]:
    """What is not sharded, and what is known of the rest. Raises as ``load``."""
    plain = path / PLAIN
    if not plain.exists():
        raise _damaged(path, f"{PLAIN} is missing")
    rest = _load_file(plain, path)
    text = rest.pop("parts")
    try:
        return rest, sharded.Parts.from_json(path, text)
    except sharded.DamagedPartError as error:
        raise _damaged(path, str(error)) from None


def _load_file(path: Path, folder: Path | None = None) -> dict[str, Any]:
    """A checkpoint that is a file, or what ``folder`` holds in one. Raises as ``load``."""
    named = folder or path  # has the note beside it, and the step in its name
    sha256 = _note_of(named).get("sha256")
    payload = _unpickled(path, sha256, named)

    is_ours = isinstance(payload, dict) and payload.get("format") in (FORMAT, EARLIER)
    if not is_ours or not _has_all_fields(payload):
        content: Any = type(payload).__name__
        if isinstance(payload, dict):
            content = sorted(map(str, payload))[:6]
        raise UserError(
            f"it holds {content}, which is no checkpoint of format {FORMAT}", about=path, fix=OURS
        )
    if ("parts" in payload) != (folder is not None):
        problem = "is not the plain part of a sharded checkpoint"
        if folder is None:
            problem = "is the plain part of a sharded checkpoint"
        raise UserError(problem, about=path, fix="name its folder, whole as it was written")

    # Where the note has proved the whole file, the checksums of its parts say nothing new.
    stated = payload.pop(CHECKSUMS)
    problem = ""
    try:
        if sha256 is None:
            problem = differences(stated, _checksums(payload))
    except (TypeError, RuntimeError) as error:
        # What no checkpoint of ours holds: a part within itself, tensors without values.
        problem = f"a part cannot be looked at ({type(error).__name__})"
    problem = problem or _renamed(named, payload["step"])
    if problem:
        raise _damaged(named, problem)
    return payload if payload["format"] == FORMAT else _migrated(payload)


def _migrated(payload: dict[str, Any]) -> dict[str, Any]:
    """A payload of the format EARLIER as one of FORMAT: its tensors without a dimension are [1].

    Those are scale and bias of the contrastive loss, their average, and what an optimiser keeps of
    them; its count of steps stays as it is.
    """

    def raised(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: inner if key == "step" else raised(inner) for key, inner in part.items()}
        is_scalar = isinstance(part, torch.Tensor) and part.ndim == 0
        return part.reshape(1) if is_scalar else part

    moved = {**payload, "format": FORMAT}
    for name in ("student", "optimizer", "average"):
        if name in moved:
            moved[name] = raised(moved[name])
    return moved


def _unpickled(path: Path, sha256: str | None, named: Path) -> Any:
    """Whatever tensors and plain values the file of that checksum holds. Raises as ``load``.

    ``named``: what a damaged one is called, and the note beside it.
    """
    try:
        if sha256 is not None and _sha256(path) != sha256:
            note_name = named.with_suffix(".json").name
            raise _damaged(named, f"its sha256 is not that of {note_name} beside it")
        return pickles.load_zip(path)
    except DamagedCheckpointError:
        raise
    except OSError as error:
        reason = f"cannot be read ({error.strerror or error})"
    except pickle.UnpicklingError as error:
        reason = f"refused, nothing was executed: {needed_global(error)}"
    except Exception as error:  # on a damaged file zipfile and the unpickler raise nearly anything
        size = path.stat().st_size
        problem = f"truncated or of another kind ({size:,} bytes: {first_line(error)})"
        raise _damaged(named, problem if size else "it is empty") from None
    raise UserError(reason, about=path, fix=OURS)


def _damaged(path: Path, problem: str) -> DamagedCheckpointError:
    return DamagedCheckpointError(f"damaged: {problem}", about=path, fix=COPY_AGAIN)


def with_checksums(payload: dict[str, Any]) -> dict[str, Any]:
    """All that ``load`` expects in a file, from what it gives."""
    return {**payload, CHECKSUMS: _checksums(payload)}


def _checksums(payload: dict[str, Any]) -> dict[str, str]:
    return {str(name): _checksum(value) for name, value in payload.items()}


def _checksum(part: Any) -> str:
    digest = hashlib.sha256()

    # Types and lengths go in too: the values of [[1], 2] and [1, [2]] alone would be the same.
    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            digest.update(f"{value.dtype} {list(value.shape)} {value.layout} ".encode())

            # Sparse and quantised tensors are refused by whoever loads the weights.
            if value.layout == torch.strided and not value.is_quantized:
                flat = value.detach().cpu().contiguous().reshape(-1)
                # As bytes, because numpy has no bf16.
                digest.update(flat.view(torch.uint8).numpy().data)
        elif isinstance(value, dict):
            digest.update(f"map of {len(value)} ".encode())
            for name, inner in value.items():
                digest.update(f"{name!r} ".encode())
                add(inner)
        elif isinstance(value, list | tuple):
            digest.update(f"list of {len(value)} ".encode())
            for inner in value:
                add(inner)
        else:
            digest.update(f"{value!r} ".encode())

    add(part)
    return digest.hexdigest()[:DIGITS]


def _renamed(path: Path, step: int) -> str:
    """What is wrong with the name, which says what a run goes on from; "" where it says no step."""
    is_of_step = STEP.fullmatch(path.stem) is not None
    return f"it holds step {step} and was renamed" if is_of_step and step_of(path) != step else ""


def _has_all_fields(payload: dict[str, Any]) -> bool:
    return set(payload) - set(OPTIONAL) == {*FIELDS, CHECKSUMS}


def _note_of(path: Path) -> dict[str, Any]:
    """What stands beside a checkpoint; nothing where that is missing or damaged."""
    return read_sealed(path.with_suffix(".json")) or {}


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
