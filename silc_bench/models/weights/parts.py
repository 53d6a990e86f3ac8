"""How a part of a file is named, FILE#PART (no torch): a file may hold several sets of weights."""

from __future__ import annotations

import os
from pathlib import Path


def split_part(path: str | Path) -> tuple[Path, str]:
    """FILE#PART -> the file and the part; "" where the name stands for itself."""
    place, _, part = str(path).rpartition("#")
    if place and not os.path.exists(path) and os.path.exists(place):
        return Path(place), part
    return Path(path), ""


def label_of(path: Path) -> str:
    """A file of weights in the name of a model: without its suffix, with its part."""
    place, part = split_part(path)
    return f"{place.stem}#{part}" if part else place.stem
