"""What checkpoints see on some images: zero-shot classes, maps of similarity, principal components.

Flow: ``read_images(paths)`` and ``read_classes("cat,grass")`` of `silc_bench.show.asked` check what
the user wants shown, before anything is computed -> for each model ``look(model, shown,
class_names)`` -> a Look -> ``draw(shown, looks, ...)`` puts them side by side into one PNG.
``replaced(names)`` says which class names cannot be drawn.

Windows, methods and class embeddings are those of the evaluation; classes are predicted at the size
that is drawn, as for a mask of that size.

Shapes: N images, gh x gw cells of all windows, D features, C classes, H x W pixels of a panel.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from silc_bench.errors import UserError
from silc_bench.evaluation.dense_features import cosines_with, native_view
from silc_bench.evaluation.features import Extractor
from silc_bench.evaluation.prompts import class_embeddings
from silc_bench.evaluation.protocols import Rule
from silc_bench.evaluation.settings import EvalSettings
from silc_bench.models.interface import JOINT, DenseModel, ImageModel, lacking_of
from silc_bench.models.patch_features import check_methods
from silc_bench.models.windows import MAX_WINDOWS, DenseImage, View, pixel_logits
from silc_bench.show.asked import NATIVE, Shown
from silc_bench.show.colors import PALETTE, heat_colors, numbered, pca_colors
from silc_bench.show.sheet import Panel, drawable, figure

COLUMNS = 7  # panels beside the image, of all models together, where each then has two at least


@dataclass(frozen=True)
class Look:
    """One model's view of all images."""

    name: str
    revision: str
    view: View
    parts: list[np.ndarray]  # uint8 [H, W, 3] of each image: principal components
    cosines: list[np.ndarray] | None  # fp32 [H, W, C] of each image; None: no classes
    missing: str = ""  # why there are none


def replaced(class_names: Sequence[str]) -> list[str]:
    """A sentence for each class name that cannot be drawn as it is."""
    return [
        f"class {number}, {name!r}, is drawn as {drawable(name)!r}:"
        " Pillow's own font has no other letters"
        for number, name in enumerate(class_names, 1)
        if drawable(name) != name
    ]


def look(
    model: ImageModel,
    shown: Shown,
    class_names: Sequence[str],
    *,
    rule: Rule = NATIVE,
    device: str = "auto",
    precision: str = "auto",
    progress: bool = False,
) -> Look:
    """Encode every image once and compare its patches with the class names.

    Raises:
        UserError: the model cannot do the method, has no dense features, or reads and there are no
            class names; an image is too long and thin for its windows.
        RunError: a feature is not finite.
    """
    lacking = lacking_of(model)
    if not callable(getattr(model, "encode_dense", None)):
        reason = lacking.get("dense", "its features have no places on the image")
        raise UserError(
            f"no dense features to show: {reason}",
            about=model.name,
            fix="show a checkpoint that has a feature for each patch",
        )

    # All that can be refused is refused here, before the images are encoded.
    dense = cast(DenseModel, model)
    view = rule.view or native_view(dense)
    missing = _why_without_classes(model)
    methods = ["tokens"] if missing else ["tokens", rule.method]
    if not missing:
        if not class_names:
            problem = "reads text, and no classes are named"
            fix = 'add them, as in --classes "cat,grass"'
            raise UserError(problem, about=model.name, fix=fix)
        check_methods(model.name, [rule.method], dense.dense_methods, lacking)

    # refuses windows that are no whole number of patches
    view.layout(view.window, view.window, dense.patch_size)
    _check_shapes(view, shown)

    # No workers: there are few images, and starting a process takes longer than decoding them.
    settings = EvalSettings(device=device, precision=precision, batch_size=64, progress=progress)
    extract = Extractor(model, settings)
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
    images: Iterable[DenseImage], classes: np.ndarray, sizes: Sequence[tuple[int, ...]]
) -> list[np.ndarray]:
    """fp32 [H, W, C] of each image: its patches' cosines with ``classes`` [C, D], up-sampled.

    H and W are those of ``sizes``.
    """
    logits = cosines_with(classes)
    maps = []
    for image, (height, width) in zip(images, sizes, strict=True):
        cosines = np.empty((height, width, len(classes)), np.float32)
        for rows, cols, tile in pixel_logits(logits, image.grid, image.layout, height, width):
            cosines[rows, cols] = tile.numpy()
        maps.append(cosines)
    return maps


def component_maps(
    images: Iterable[DenseImage], sizes: Sequence[tuple[int, ...]]
) -> list[np.ndarray]:
    """uint8 [H, W, 3] of each image: principal components over all images, up-sampled.

    H and W are those of ``sizes``.
    """
    images = list(images)
    colors_of_images = pca_colors([image.grid for image in images])

    maps = []
    for image, colors, (height, width) in zip(images, colors_of_images, sizes, strict=True):
        rows = image.layout.rows(height)
        cols = image.layout.cols(width)

        # rows @ colours @ cols.T a channel, written so that the sparse matrix stands on the left
        channels = []
        for channel in range(3):
            down = rows @ colors[..., channel].astype(float)
            channels.append((cols @ down.T).T)
        maps.append(np.rint(np.stack(channels, axis=-1)).astype(np.uint8))
    return maps


def draw(
    shown: Shown, looks: Sequence[Look], class_names: Sequence[str], path: Path, note: str
) -> tuple[int, int]:
    """Images below each other, models side by side -> PNG; its width and height."""
    has_classes = any(seen.cosines is not None for seen in looks)
    widths = [1]
    groups = [("", 1)]
    for seen in looks:
        num_panels = 1 if seen.cosines is None else 2 + len(class_names)
        widths.append(_columns(len(looks), num_panels))
        groups.append((f"{seen.name} @{seen.revision[:8]}", widths[-1]))

    # An image and each model have a block of columns; a model with many classes fills several rows
    # of it, and the other blocks have gaps there.
    rows = []
    for index, name in enumerate(shown.names):
        blocks = [[Panel(shown.panels[index], name)]]
        blocks += [_panels(seen, shown, index, class_names) for seen in looks]
        placed = list(zip(blocks, widths, strict=True))
        for row in range(max(math.ceil(len(block) / width) for block, width in placed)):
            line: list[Panel | None] = []
            for block, width in placed:
                part = block[row * width : (row + 1) * width]
                line += [*part, *[None] * (width - len(part))]
            rows.append(line)

    legend = class_names if has_classes else ()
    return figure(groups, rows, legend, path, note, has_heat=has_classes)


def caption(shown: Shown, looks: Sequence[Look], rule: Rule) -> str:
    """What the sheet shows and how it was made, in sentences; names stand in it as they are."""
    models = "; ".join(
        f"{seen.name} @{seen.revision[:8]} (shorter side {seen.view.size} px,"
        f" windows of {seen.view.window} every {seen.view.stride})"
        for seen in looks
    )
    sentences = [f"{', '.join(shown.names)}, as seen by {models}."]

    if any(seen.cosines is not None for seen in looks):
        assert rule.prompts is not None, rule
        templates = rule.prompts.templates
        asked = f'prompt "{templates[0]}"' if len(templates) == 1 else f"{len(templates)} prompts"
        sentences.append(
            "Zero-shot classes: each pixel has the class of largest cosine"
            f" (protocol {rule.protocol}, method {rule.method}, {asked})."
            " Each class's map is stretched between its own ends."
        )

    sentences.append(
        "Patch PCA: three principal components of a model's patch features as red, green and blue."
    )
    return " ".join(sentences)


def _panels(seen: Look, shown: Shown, index: int, class_names: Sequence[str]) -> list[Panel]:
    """One model's panels of one image: classes, components, a map a class."""
    components = Panel(seen.parts[index], "patch PCA")
    if seen.cosines is None:
        return [components]

    cosines = seen.cosines[index]
    classes = Panel(numbered(cosines.argmax(axis=-1)), "zero-shot classes")

    maps = []
    by_class = zip(class_names, np.moveaxis(cosines, -1, 0), strict=True)
    for number, (name, values) in enumerate(by_class, 1):
        detail = f"{values.min():.3f} to {values.max():.3f}"
        colors = heat_colors(values)
        maps.append(Panel(colors, f"{number} {name}", detail, PALETTE[number - 1]))
    return [classes, components, *maps]


def _columns(num_models: int, num_panels: int) -> int:
    """How many columns a model's panels take.

    As few rows as fit into its share of COLUMNS, then as few columns as those rows need.
    """
    most = max(2, COLUMNS // num_models)
    return math.ceil(num_panels / math.ceil(num_panels / most))


def _why_without_classes(model: Any) -> str:
    """Empty where patches can be compared with text."""
    if not callable(getattr(model, "encode_text", None)):
        return lacking_of(model).get("text", "it reads no text")
    if not set(JOINT) & set(model.dense_methods):
        return "none of its dense features are in the space shared with text"
    return ""


def _check_shapes(view: View, shown: Shown) -> None:
    """Refuse a strip by its name; ``View.resized`` would refuse it later, without."""
    for name, (height, width) in zip(shown.names, shown.sizes, strict=True):
        count = view.num_windows(height, width)
        if count > MAX_WINDOWS:
            size = f"{width:,} x {height:,} pixels"
            problem = f"{size} become {count:,} windows of {view.window}, over {MAX_WINDOWS:,}"
            raise UserError(problem, about=name, fix="cut the image, or leave it out")
