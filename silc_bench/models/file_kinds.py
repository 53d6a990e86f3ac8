"""What a file is, by its first bytes and never by its suffix - and, where it holds no weights, a sentence that says so."""

from __future__ import annotations

import os
import re
import stat
import zipfile
from pathlib import Path

from silc_bench.errors import UserError

EXPECTED = "weights as .safetensors, .pt/.pth/.bin/.ckpt of torch.save, .npz, or a folder with model.safetensors"
HEAD = 4096  # bytes looked at
MAGIC = {  # of files that hold no weights we read
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"GIF8": "a GIF picture",
    b"%PDF": "a PDF document",
    b"\x89HDF": "an HDF5 file (Keras); convert its weights to .safetensors",
    b"GGUF": "a GGUF file of quantised weights",
    b"\x93NUMPY": "one NumPy array (.npy); put the named arrays of a model into an .npz",
    b"\x1f\x8b": "a gzip file; unpack it and name what is in it",
    b"BZh": "a bzip2 file; unpack it and name what is in it",
    b"\xfd7zXZ": "an xz file; unpack it and name what is in it",
    b"\x28\xb5\x2f\xfd": "a zstandard file; unpack it and name what is in it",
    b"7z\xbc\xaf": "a 7z archive; unpack it and name what is in it",
    b"Rar!": "a RAR archive; unpack it and name what is in it",
    b"\x7fELF": "a program",
    b"SQLite": "an SQLite database",
}


def refused(path: Path, what: str) -> UserError:
    """The one sentence that every unreadable checkpoint is answered with: its name, what it is, what was expected."""
    return UserError(f"checkpoint {path}: {what}; expected {EXPECTED}")


def kind_of(path: Path) -> str:
    """ "torch", "legacy" (torch.save before 1.6), "safetensors" or "npz".

    Raises:
        UserError: not a regular file, unreadable, empty, or of a kind that holds no weights; says which.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise refused(path, "a folder" if stat.S_ISDIR(status.st_mode) else "a device, pipe or socket and no file")
        with open(path, "rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        raise refused(path, f"cannot be read ({error.strerror or error})") from None
    if not head:
        raise refused(path, "an empty file")
    if head[:2] == b"PK":
        return _kind_of_zip(path, status.st_size)
    if head[:1] == b"\x80" and head[1:2] and 2 <= head[1] <= 5:
        return "legacy"
    if head[8:9] == b"{":
        return "safetensors"
    raise refused(path, _name_of(head, status.st_size))


def _kind_of_zip(path: Path, size: int) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception as error:  # a damaged directory makes zipfile raise nearly anything
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:100]
        raise refused(path, f"a truncated or damaged zip archive ({size:,} bytes: {reason}); fetch it again") from None
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        raise refused(
            path,
            "a TorchScript program (as OpenAI's own CLIP files), which would have to be executed; where you trust it, save"
            " torch.jit.load(FILE).state_dict() and name that",
        )
    if any(name.endswith("/data.pkl") for name in names):
        return "torch"
    if names and all(name.endswith(".npy") for name in names):
        return "npz"
    raise refused(path, f"a zip archive that is no checkpoint (it holds {', '.join(names[:3]) or 'nothing'})"[:200])


def _name_of(head: bytes, size: int) -> str:
    """What a file that holds no weights is, in a few words."""
    for magic, what in MAGIC.items():
        if head.startswith(magic):
            return what
    if head[257:262] == b"ustar":
        return "a tar archive; unpack it and name what is in it"
    if head.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer in place of the file; fetch the file itself (git lfs pull)"
    if (found := re.match(rb"c([\w.]+)\n([\w.]+)\n", head)) is not None:
        return f"refused, nothing was executed: a pickle of text that names GLOBAL {found[1].decode()}.{found[2].decode()}"
    if not head.strip(b"\0"):
        return f"{size:,} bytes that begin with nothing but zeros, as an interrupted download does; fetch it again"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "a web page saved in place of the file; fetch the file itself (the page may ask to sign in)"
    if text[:1] in (b"{", b"["):
        return "a JSON text; a model with a JSON index is named by its folder"
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head):
        return f"a text file that begins {head[:24].decode().split(chr(10))[0]!r}"
    return f"truncated, damaged or of an unknown kind ({size:,} bytes that begin {head[:8].hex(' ')})"
