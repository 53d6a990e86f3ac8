"""What the user wants shown: pictures and class names, checked before anything is computed.

Flow: ``read_pictures(paths)`` -> Shown; ``read_classes("cat,grass")`` -> names; ``replaced(names)`` says which cannot be drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from silc_bench.datasets.picture_set import Found, Picture, PictureSet
from silc_bench.datasets.shards import DamagedImageError, decode_image
from silc_bench.errors import UserError
from silc_bench.lettering import drawable
from silc_bench.pictures import PALETTE
from silc_bench.sheet import panel_size


@dataclass(frozen=True)
class Shown:
    """The user's pictures: as data, and as they are drawn."""

    data: PictureSet
    names: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]  # height and width
    panels: tuple[np.ndarray, ...]  # uint8 [H, W, 3]


def read_pictures(paths: Sequence[Path]) -> Shown:
    """Decode every picture once.

    Raises:
        UserError: no pictures, or one that is not there, a folder, or nothing that can be decoded; names it.
    """
    if not paths:
        raise UserError("no pictures to show; name them after the checkpoint: silc-bench show CKPT cat.jpg dog.jpg")
    sizes, panels = [], []
    for path in paths:
        if path.is_dir():
            raise UserError(f"{path} is a folder, not a picture; name the pictures in it, as in {path}/*.jpg")
        if not path.exists():
            raise UserError(f"picture {path}: no such file")
        try:
            image = decode_image(path.read_bytes())
        except DamagedImageError as error:
            raise UserError(f"{path} is not a picture that can be read: {error}") from error
        height, width = panel_size(image.height, image.width)
        sizes.append((image.height, image.width))
        panels.append(np.array(image.resize((width, height), Image.Resampling.LANCZOS)))
    pictures = [Picture(path, (0, path.stat().st_size), str(path)) for path in paths]
    data = PictureSet("pictures", "shown", Found(pictures, paths[0].parent, "files"))
    return Shown(data, tuple(path.name for path in paths), tuple(sizes), tuple(panels))


def read_classes(words: str | None) -> list[str]:
    """ "cat, grass" -> ["cat", "grass"]; nothing -> [].

    Raises:
        UserError: an empty or repeated name, one with control characters, or more names than there are colours.
    """
    if words is None:
        return []
    names = [" ".join(name.split()) for name in words.split(",")]
    for name in names:
        if not name:
            raise UserError(f"--classes {words!r} holds an empty name; write them with one comma between, as in cat,grass")
        if any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in name):
            raise UserError(f"the class name {name!r} holds a control character; write it without")
        if names.count(name) > 1:
            raise UserError(f"--classes names {name!r} {names.count(name)} times; once is enough")
    if len(names) > len(PALETTE):
        raise UserError(f"{len(names)} classes are more than the {len(PALETTE)} colours that can be told apart; name fewer")
    return names


def replaced(class_names: Sequence[str]) -> list[str]:
    """A sentence for each class name that cannot be drawn as it is."""
    return [
        f"class {number}, {name!r}, is drawn as {drawable(name)!r}: Pillow's own font has no other letters"
        for number, name in enumerate(class_names, 1)
        if drawable(name) != name
    ]
