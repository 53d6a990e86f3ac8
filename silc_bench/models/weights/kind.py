"""What a file or a folder of weights is, by its first bytes and its names; no torch is needed.

A file is told by its content and never by its suffix.
"""

from __future__ import annotations

import os
import pickle
import re
import shlex
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from silc_bench.errors import UserError, first_line

# What a folder's weights are called; the first that is there is read.
IN_FOLDER = (
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
)
# What is left of several processes' weights, by a file beside them.
OF_PROCESSES = {
    ".metadata": (
        "a distributed checkpoint of torch",
        "one file: python -m torch.distributed.checkpoint.format_utils dcp_to_torch {} weights.pt",
    ),
    "zero_to_fp32.py": (
        "the parts of a DeepSpeed run",
        "one file, if you trust the script beside them: python {0}/zero_to_fp32.py {0} weights.bin",
    ),
}

# What to do about a file: where it is of another kind, where it is damaged, where it is of no use.
NAME_WEIGHTS = (
    "name weights as .safetensors, .pt/.pth/.bin/.ckpt of torch.save, .npz, "
    "or a folder with model.safetensors"
)
FETCH = "fetch it again"


def kind_of(path: Path) -> str:
    """What a file is: "torch", "legacy" (torch.save before 1.6), "safetensors" or "npz".

    Raises:
        OSError: it cannot be read.
        UserError: not a regular file, or of a kind that is not read.
    """
    # The status first: opening a pipe would wait for its other end for ever.
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise refused(path, "is no regular file")
    if path.suffix == ".distcp":
        raise refused(path, "is a part of a distributed checkpoint", "name its folder")
    with open(path, "rb") as file:
        head = file.read(24)
    if head[:2] == b"PK":
        return _kind_of_zip(path)

    # A pickle begins with PROTO and its version; a safetensors file with 8 bytes of length and then
    # a JSON object.
    if head[:1] == b"\x80" and head[1:2] and 2 <= head[1] <= 5:
        return "legacy"
    if head[8:9] == b"{":
        return "safetensors"
    begin = f"{path.stat().st_size:,} bytes that begin {head!r}"
    raise refused(path, f"is no checkpoint that silc-bench reads ({begin})")


def refused(path: Path, problem: str, fix: str = NAME_WEIGHTS) -> UserError:
    """The error of every checkpoint that is not read."""
    return UserError(problem, about=path, fix=fix)


def name_in(folder: Path) -> str:
    """The file of a folder that holds its weights, or lists their shards: one of ``IN_FOLDER``.

    Raises:
        UserError: there is none.
    """
    name = next((name for name in IN_FOLDER if (folder / name).exists()), None)
    if name is None:
        # what writes such a folder comes with the program that makes one file of it
        for mark, (what, line) in OF_PROCESSES.items():
            if (folder / mark).exists():
                place = shlex.quote(str(folder))
                raise refused(folder, f"holds {what}", f"write {line.format(place)}, and name that")
        named = f"checkpoints/step_*.pt of a run, {', '.join(IN_FOLDER[:2])} or {IN_FOLDER[3]}"
        raise refused(folder, f"holds none of {named}")
    return name


def needed_global(error: pickle.UnpicklingError) -> str:
    """Why a pickle was refused, in a few words: the global that it needs, where there is one."""
    match = re.search(r"GLOBAL ([\w.<>]+)", str(error))
    if match:
        return f"its pickle needs GLOBAL {match[1]}"
    return first_line(error)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Whatever a damaged file makes its reader raise becomes an error of ours."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise refused(path, "no such file or folder", "check the path") from None
    except OSError as error:
        raise refused(
            path,
            f"cannot be read ({error.strerror or error})",
            "check its permissions and its disk",
        ) from None
    except pickle.UnpicklingError as error:
        raise refused(path, f"nothing was executed: {needed_global(error)}") from None
    # on a damaged file zipfile and the unpickler raise nearly anything
    except Exception as error:
        size = path.stat().st_size
        problem = f"is truncated or damaged ({size:,} bytes; {first_line(error)})"
        raise refused(path, problem, FETCH) from None


def _kind_of_zip(path: Path) -> str:
    """Of the formats that are zip archives, which one."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()

    # TorchScript before torch.save, because a TorchScript archive has a data.pkl as well.
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        raise refused(
            path,
            "is a TorchScript program (as OpenAI's own CLIP files), which would be executed",
            "where you trust it, save torch.jit.load(FILE).state_dict() and name that",
        )
    if any(name.endswith("/data.pkl") for name in names):
        return "torch"
    if names and all(name.endswith(".npy") for name in names):
        return "npz"
    held = ", ".join(names[:3])[:100] or "nothing"
    raise refused(path, f"is a zip archive of no weights (it holds {held})")
