"""What the user wants shown: images, class names and a protocol, checked before torch is loaded.

Shapes: H x W pixels of a panel.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from silc_bench.datasets.files.images import DamagedImageError, decode_image
from silc_bench.datasets.image_set import ImageFiles, ImageSplit, image_file
from silc_bench.errors import UserError, unknown_name
from silc_bench.evaluation.prompts import prompts_of
from silc_bench.evaluation.protocols import Rule, protocol_names, rule_of
from silc_bench.later import np
from silc_bench.models.interface import JOINT
from silc_bench.show.colors import PALETTE
from silc_bench.show.sheet import panel_size

METHOD = "maskclip"
NATIVE = Rule("native", method=METHOD, prompts=prompts_of("single"))


@dataclass(frozen=True)
class Shown:
    """The user's images: as data, and as they are drawn."""

    data: ImageFiles
    names: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]  # height and width
    panels: tuple[np.ndarray, ...]  # uint8 [H, W, 3]


def read_images(paths: Sequence[Path]) -> Shown:
    """Decode every image once.

    Raises:
        UserError: no images, or one that is not there, a folder, or nothing that can be decoded;
            names it.
    """
    if not paths:
        raise UserError(
            "no images to show",
            about="IMAGE",
            fix="name them after the checkpoint: silc-bench show CKPT cat.jpg dog.jpg",
        )

    sizes = []
    panels = []
    for path in paths:
        try:
            image = decode_image(path.read_bytes(), is_upright=True)
        except (OSError, DamagedImageError) as error:
            reason = getattr(error, "strerror", error)
            fix = "name files that are whole images, as in photos/*.jpg"
            raise UserError(f"cannot be shown: {reason}", about=path, fix=fix) from error

        height, width = panel_size(image.height, image.width)
        sizes.append((image.height, image.width))
        panels.append(np.array(image.resize((width, height), Image.Resampling.LANCZOS)))

    files = [image_file(path, is_upright=True) for path in paths]
    data = ImageFiles("images", "shown", ImageSplit(files, paths[0].parent, "files"))
    return Shown(data, tuple(path.name for path in paths), tuple(sizes), tuple(panels))


def read_classes(option: str | None) -> list[str]:
    """Class names of an option: "cat, grass" -> ["cat", "grass"]; nothing -> [].

    Raises:
        UserError: an empty or repeated name, one with control characters, or more names than there
            are colours.
    """
    if option is None:
        return []

    names = [" ".join(name.split()) for name in option.split(",")]
    for name in names:
        problem = ""
        if not name:
            problem = f"{option!r} holds an empty name"
        elif any(unicodedata.category(letter) == "Cc" for letter in name):
            problem = f"the name {name!r} holds a control character"
        elif names.count(name) > 1:
            problem = f"names {name!r} {names.count(name)} times"
        elif len(names) > len(PALETTE):
            problem = f"{len(names)} classes, and {len(PALETTE)} colours can be told apart"
        if problem:
            fix = "write different names with one comma between, as in cat,grass"
            raise UserError(problem, about="--classes", fix=fix)
    return names


def choose_rule(protocol: str, method: str | None) -> Rule:
    """View, method and prompts of a protocol of zero-shot segmentation.

    "native" is the model's own view, with "a photo of a {c}.".

    Args:
        method: instead of the protocol's.

    Raises:
        UserError: an unknown method or protocol.
    """
    protocols = ("native", *protocol_names())
    if method is not None and method not in JOINT:
        raise unknown_name("dense method", method, JOINT, "--dense-method")
    if protocol not in protocols:
        raise unknown_name("protocol", protocol, protocols, "--protocol")

    rule = NATIVE if protocol == "native" else rule_of(protocol, "images")
    return replace(rule, method=method or rule.method)
