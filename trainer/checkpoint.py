"""Checkpoints: one file of tensors and plain values, written atomically, read without executing anything from it.

RUN/checkpoints/step_00001000.pt holds all that continues a run bit for bit: student, teacher (with its centre), optimiser,
step, samples seen and the position in the data; plus the configuration and the tokenizer as JSON text. Randomness is a
pure function of (seed, step), so there is no generator state to keep. ``step_....json`` beside it says the same in words.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import torch

from silc_bench.atomic import atomic_path, write_text_atomic
from silc_bench.errors import UserError
from silc_bench.models import pickles

FORMAT = "silc-bench-checkpoint/1"
FIELDS = ("format", "config", "tokenizer", "student", "teacher", "optimizer", "step", "samples_seen", "position")


def save(run: Path, payload: dict[str, Any], keep: int = 2) -> Path:
    """Write RUN/checkpoints/step_N.pt and its JSON, then remove all but the newest ``keep``."""
    assert set(payload) | {"format"} == set(FIELDS), f"checkpoint fields differ: {set(payload) ^ set(FIELDS)}"
    path = run / "checkpoints" / f"step_{payload['step']:08d}.pt"
    for left in path.parent.glob(".step_*.tmp"):  # by a process that was killed while it wrote
        left.unlink()
    with atomic_path(path) as temporary:
        torch.save({"format": FORMAT, **payload}, temporary)
    words = {name: payload[name] for name in ("step", "samples_seen", "position")} | {"format": FORMAT}
    write_text_atomic(path.with_suffix(".json"), json.dumps(words | {"config": json.loads(payload["config"])}, indent=1) + "\n")
    for old in all_in(run)[:-keep]:
        old.unlink()
        old.with_suffix(".json").unlink(missing_ok=True)
    return path


def all_in(run: Path) -> list[Path]:
    """Checkpoints of a run, oldest first."""
    return sorted((run / "checkpoints").glob("step_*.pt"))


def find(path: Path) -> Path:
    """A checkpoint file, or the newest one of a run's folder.

    Raises:
        UserError: nothing there, or a folder that is not a run.
    """
    if path.is_file():
        return path
    if not path.exists():
        raise UserError(f"checkpoint {path}: no such file or folder")
    found = all_in(path) or sorted(path.glob("step_*.pt"))
    if not found:
        raise UserError(
            f"checkpoint {path}: a folder without checkpoints/step_*.pt; expected a run made by `silc-bench train --out`"
        )
    return found[-1]


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint on the CPU. Only tensors and plain values are unpickled (``silc_bench.models.pickles``).

    Raises:
        UserError: missing, empty, truncated, or not one of ours; says what was found and what was expected.
    """
    expected = "expected a checkpoint written by `silc-bench train`"
    try:
        payload = pickles.load_zip(path)
    except OSError as error:
        raise UserError(f"checkpoint {path}: cannot be read ({error.strerror or error}); {expected}") from None
    except pickle.UnpicklingError as error:
        reason = pickles.needed_global(error)
        raise UserError(f"checkpoint {path}: refused, nothing was executed: {reason}; {expected}") from None
    except Exception as error:  # on a damaged file zipfile and the unpickler raise nearly anything
        size = path.stat().st_size
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:200]
        kind = f"truncated, damaged or of another kind ({size:,} bytes: {reason})" if size else "an empty file"
        raise UserError(f"checkpoint {path}: {kind}; {expected}") from None
    if not isinstance(payload, dict) or payload.get("format") != FORMAT or set(payload) != set(FIELDS):
        found = sorted(map(str, payload))[:6] if isinstance(payload, dict) else type(payload).__name__
        raise UserError(f"checkpoint {path}: another program's file (it holds {found}); {expected}, format {FORMAT}")
    return payload
