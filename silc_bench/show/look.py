"""What checkpoints see on some pictures: zero-shot classes, the similarity of each class, principal
components of the patches.

Flow: pictures and names of `silc_bench.show.look` -> for each model ``look(model, shown,
class_names)`` -> a Look -> ``draw(shown, looks, ...)`` puts them side by side into one PNG.
Windows, methods and class embeddings are those of the evaluation; classes are predicted at the size
that is drawn, as for a mask of that size.

Shapes: N pictures, gh x gw cells of all windows, D features, C classes, H x W pixels of a panel.

What the user wants shown: pictures and class names, checked before anything is computed.

Flow: ``read_pictures(paths)`` -> Shown; ``read_classes("cat,grass")`` -> names; ``replaced(names)``
says which cannot be drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from silc_bench.datasets.files.shards import DamagedImageError, decode_image
from silc_bench.datasets.image_set import Found, Picture, PictureSet
from silc_bench.errors import UserError, unknown_name
from silc_bench.evaluation.dense_features import cosines_with, native_view
from silc_bench.evaluation.features import Extractor, choose_device, choose_precision
from silc_bench.evaluation.prompts import class_embeddings, named_prompts
from silc_bench.evaluation.protocols import Rule, protocol_names, rule_of
from silc_bench.models.interface import DenseModel, ImageModel
from silc_bench.models.patch_features import JOINT, check_methods
from silc_bench.models.windows import MAX_WINDOWS, DensePicture, View, pixel_logits
from silc_bench.show.colors import PALETTE, heat_colors, overlay, pca_colors
from silc_bench.show.sheet import Panel, drawable, figure, panel_size

METHOD = "maskclip"
COLUMNS = 7  # panels beside the picture, of all models together, where each then has two at least
NATIVE = Rule("native", method=METHOD, prompts=named_prompts()["single"])


@dataclass(frozen=True)
class Look:
    """One model's view of all pictures."""

    name: str
    revision: str
    view: View
    parts: list[np.ndarray]  # uint8 [H, W, 3] of each picture: principal components
    cosines: list[np.ndarray] | None  # fp32 [H, W, C] of each picture; None: no classes
    missing: str = ""  # why there are none


def choose_rule(protocol: str, method: str | None) -> Rule:
    """View, method and prompts of a protocol of zero-shot segmentation; "native": the model's own
    view, "a photo of a {c}.".

    ``method``: instead of the protocol's. Raises UserError for an unknown one, or an unknown
    protocol.
    """
    if method is not None and method not in JOINT:
        raise unknown_name("dense method", method, JOINT)
    if protocol not in ("native", *protocol_names()):
        raise unknown_name("protocol", protocol, ("native", *protocol_names()))
    rule = NATIVE if protocol == "native" else rule_of(protocol, "pictures")
    return replace(rule, method=method or rule.method)


def look(
    model: ImageModel,
    shown: Shown,
    class_names: Sequence[str],
    *,
    rule: Rule = NATIVE,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int = 64,
    progress: bool = False,
) -> Look:
    """Encode every picture once and compare its patches with the class names.

    Raises:
        UserError: the model cannot do the method, has no dense features, or reads and there are no
        class names; a picture is too long and thin for its windows.
        RunError: a feature is not finite.
    """
    if not callable(getattr(model, "encode_dense", None)):
        reason = getattr(model, "lacking", {}).get(
            "dense", "its features have no places on the picture"
        )
        raise UserError(f"{model.name} has no dense features to show ({reason})")
    dense = cast(DenseModel, model)
    view = rule.view or native_view(dense)
    missing = _why_without_classes(model)
    methods = ["tokens"] if missing else ["tokens", rule.method]
    if not missing:
        if not class_names:
            raise UserError(
                f'{model.name} reads text, and no classes are named; add them, as in --classes "cat,grass"'
            )
        check_methods(model.name, [rule.method], dense.dense_methods, getattr(model, "lacking", {}))
    view.layout(
        view.window, view.window, dense.patch_size
    )  # refuses windows that are no whole number of patches
    _check_shapes(view, shown)
    chosen = choose_device(device)
    extract = Extractor(
        model,
        device=chosen,
        precision=choose_precision(precision, chosen),
        batch_size=batch_size,
        num_workers=0,
        progress=progress,
    )
    extract.grids.expect(shown.data, view, methods)
    features = extract({"shown": shown.data})
    sizes = [panel.shape[:2] for panel in shown.panels]
    cosines = None
    if not missing:
        assert rule.prompts is not None, rule
        classes = class_embeddings(features, class_names, rule.prompts)
        cosines = cosine_maps(features.grids("shown", view, rule.method), classes, sizes)
    parts = component_maps(features.grids("shown", view, "tokens"), sizes)
    return Look(model.name, model.revision, view, parts, cosines, missing)


def cosine_maps(
    pictures: Iterable[DensePicture], classes: np.ndarray, sizes: Sequence[tuple[int, ...]]
) -> list[np.ndarray]:
    """fp32 [H, W, C] of each picture, H and W of ``sizes``: its patches' cosines with ``classes``
    [C, D], up-sampled.
    """
    logits, maps = cosines_with(classes), []
    for picture, (height, width) in zip(pictures, sizes, strict=True):
        found = np.empty((height, width, len(classes)), np.float32)
        for rows, cols, tile in pixel_logits(logits, picture.grid, picture.layout, height, width):
            found[rows, cols] = tile.numpy()
        maps.append(found)
    return maps


def component_maps(
    pictures: Iterable[DensePicture], sizes: Sequence[tuple[int, ...]]
) -> list[np.ndarray]:
    """uint8 [H, W, 3] of each picture, H and W of ``sizes``: principal components over all
    pictures, up-sampled.
    """
    seen = list(pictures)
    maps = []
    for picture, colors, (height, width) in zip(
        seen, pca_colors([picture.grid for picture in seen]), sizes, strict=True
    ):
        rows, cols = picture.layout.rows(height), picture.layout.cols(width)
        channels = [
            (cols @ (rows @ colors[..., channel].astype(float)).T).T for channel in range(3)
        ]
        maps.append(np.rint(np.stack(channels, axis=-1)).astype(np.uint8))
    return maps


def draw(
    shown: Shown, looks: Sequence[Look], class_names: Sequence[str], path: Path, note: str
) -> tuple[int, int]:
    """Pictures below each other, models side by side -> PNG; its width and height."""
    has_classes = any(one.cosines is not None for one in looks)
    widths = [
        _columns(len(looks), 1 if one.cosines is None else 2 + len(class_names)) for one in looks
    ]
    rows: list[list[Panel | None]] = []
    for index, name in enumerate(shown.names):
        blocks = [
            [Panel(shown.panels[index], name)],
            *(_panels(one, shown, index, class_names) for one in looks),
        ]
        for row in range(
            max(-(-len(block) // width) for block, width in zip(blocks, [1, *widths], strict=True))
        ):
            line: list[Panel | None] = []
            for block, width in zip(blocks, [1, *widths], strict=True):
                part = block[row * width : (row + 1) * width]
                line += [*part, *[None] * (width - len(part))]
            rows.append(line)
    groups = [
        ("", 1),
        *(
            (f"{one.name} @{one.revision[:8]}", width)
            for one, width in zip(looks, widths, strict=True)
        ),
    ]
    return figure(
        groups, rows, class_names if has_classes else (), path, note, has_heat=has_classes
    )


def caption(shown: Shown, looks: Sequence[Look], rule: Rule) -> str:
    """What the picture shows and how it was made, in sentences; names stand in it as they are."""
    models = "; ".join(
        f"{one.name} @{one.revision[:8]}"
        f" (shorter side {one.view.size} px, windows of {one.view.window} every {one.view.stride})"
        for one in looks
    )
    words = [f"{', '.join(shown.names)}, as seen by {models}."]
    if any(one.cosines is not None for one in looks):
        assert rule.prompts is not None, rule
        templates = rule.prompts.templates
        asked = f'prompt "{templates[0]}"' if len(templates) == 1 else f"{len(templates)} prompts"
        words.append(
            f"Zero-shot classes: each pixel has the class of largest cosine (protocol {rule.protocol}, method {rule.method},"
            f" {asked}). Each class's map is stretched between its own ends."
        )
    words.append(
        "Patch PCA: three principal components of a model's patch features as red, green and blue."
    )
    return " ".join(words)


def _panels(one: Look, shown: Shown, index: int, class_names: Sequence[str]) -> list[Panel]:
    parts = Panel(one.parts[index], "patch PCA")
    if one.cosines is None:
        return [parts]
    cosines = one.cosines[index]
    maps = [
        Panel(
            heat_colors(values),
            f"{number} {name}",
            f"{values.min():.3f} to {values.max():.3f}",
            PALETTE[number - 1],
        )
        for number, (name, values) in enumerate(
            zip(class_names, np.moveaxis(cosines, -1, 0), strict=True), 1
        )
    ]
    return [
        Panel(overlay(shown.panels[index], cosines.argmax(axis=-1)), "zero-shot classes"),
        parts,
        *maps,
    ]


def _columns(num_models: int, num_panels: int) -> int:
    """As few rows as fit into a model's share of COLUMNS, then as few columns as those rows
    need.
    """
    most = max(2, COLUMNS // num_models)
    rows = -(-num_panels // most)
    return -(-num_panels // rows)


def _why_without_classes(model: Any) -> str:
    """Empty where patches can be compared with text."""
    if not callable(getattr(model, "encode_text", None)):
        return str(getattr(model, "lacking", {}).get("text", "it reads no text"))
    if not set(JOINT) & set(model.dense_methods):
        return "none of its dense features are in the space shared with text"
    return ""


def _check_shapes(view: View, shown: Shown) -> None:
    for name, (height, width) in zip(shown.names, shown.sizes, strict=True):
        count = view.num_windows(height, width)
        if count > MAX_WINDOWS:
            raise UserError(
                f"{name}, {width:,} x {height:,} pixels, becomes {count:,} windows of {view.window}, more than {MAX_WINDOWS:,}:"
                " too long and thin; cut it, or leave it out"
            )


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
        UserError: no pictures, or one that is not there, a folder, or nothing that can be decoded;
        names it.
    """
    if not paths:
        raise UserError(
            "no pictures to show; name them after the checkpoint: silc-bench show CKPT cat.jpg dog.jpg"
        )
    sizes, panels = [], []
    for path in paths:
        if path.is_dir():
            raise UserError(
                f"{path} is a folder, not a picture; name the pictures in it, as in {path}/*.jpg"
            )
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
        UserError: an empty or repeated name, one with control characters, or more names than there
        are colours.
    """
    if words is None:
        return []
    names = [" ".join(name.split()) for name in words.split(",")]
    for name in names:
        if not name:
            raise UserError(
                f"--classes {words!r} holds an empty name; write them with one comma between, as in cat,grass"
            )
        if any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in name):
            raise UserError(f"the class name {name!r} holds a control character; write it without")
        if names.count(name) > 1:
            raise UserError(f"--classes names {name!r} {names.count(name)} times; once is enough")
    if len(names) > len(PALETTE):
        raise UserError(
            f"{len(names)} classes are more than the {len(PALETTE)} colours that can be told apart; name fewer"
        )
    return names


def replaced(class_names: Sequence[str]) -> list[str]:
    """A sentence for each class name that cannot be drawn as it is."""
    return [
        f"class {number}, {name!r}, is drawn as {drawable(name)!r}: Pillow's own font has no other letters"
        for number, name in enumerate(class_names, 1)
        if drawable(name) != name
    ]
