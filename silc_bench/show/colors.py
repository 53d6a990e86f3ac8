"""Colours of dense features: classes, one class's similarity, principal components, masks.

Arrays in, uint8 [H, W, 3] out: what is drawn is computed elsewhere, and `silc_bench.show.sheet`
puts it together.

Shapes: h x w patches, D embedding, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageColor, ImageDraw, ImageFont

from silc_bench.datasets.dataset import IGNORE
from silc_bench.later import np

INK, PAPER = (32, 33, 36), (255, 255, 255)


def _rgb(names: str) -> list[tuple[int, ...]]:
    return [ImageColor.getrgb(name) for name in names.split()]


# Okabe and Ito's eight colours, told apart with any colour vision (black is replaced by grey), and
# 24 more. Each of those is the one farthest from all before it and from ink and paper: distance in
# CIELAB, or twice that as protanopes and deuteranopes see it (Machado et al., 2009) where that is
# less.
PALETTE = _rgb(
    "#e69f00 #56b4e9 #009e73 #f0e442 #0072b2 #d55e00 #cc79a7 #787878 "
    "#0000ff #2d0f87 #00ff87 #e100ff #3c4b00 #e1003c #960078 #b4f0b4 "
    "#c3a55a #00e1f0 #4b1e4b #a51e4b #1e69e1 #4b00c3 #a5e15a #5a2d1e "
    "#e1b4b4 #d200b4 #78965a #78a5ff #00d287 #1e782d #00f0d2 #00d21e"
)

# viridis of matplotlib at ten even places: brighter is more, in grey and to any colour vision too
HEAT = _rgb("#440154 #482878 #3e4989 #31688e #26828e #1f9e89 #35b779 #6ece58 #b5de2b #fde725")
LABELLED = 0.01  # share of the image from which a region has its number written on it
ROOM = 8  # pixels from such a number's middle to the edge of its region


def class_colors(
    prediction: np.ndarray, truth: np.ndarray, palette: Sequence[tuple[int, ...]] = PALETTE
) -> np.ndarray:
    """[H, W] class indices and the true ones [H, W] -> [H, W, 3] uint8.

    The prediction is flat: each pixel has its class's colour, white without one (IGNORE), whatever
    the truth is. The truth is a contour in ink over it. A tint that is strong where a pixel is
    scored would draw the true outline into any prediction.
    """
    # Any class does for IGNORE, because it is painted white.
    colors = np.array(palette, float)[np.where(prediction == IGNORE, 0, prediction)]
    colors = np.where((prediction == IGNORE)[..., None], 255, np.rint(colors)).astype(np.uint8)
    colors[_borders(truth)] = INK
    return colors


def numbered(prediction: np.ndarray) -> np.ndarray:
    """The flat colours of classes [H, W] -> [H, W, 3] uint8, for an image whose truth is not known.

    Borders between classes are drawn in ink. Regions of some size carry the number of their class,
    counted from 1, as the legend does. The photograph belongs beside it, not below it: its own
    edges would pass for those of the prediction.
    """
    # Numbers are light with an outline in ink, so that they are read on any colour.
    drawn = Image.fromarray(class_colors(prediction, prediction))
    draw = ImageDraw.Draw(drawn)
    font = ImageFont.load_default(13)
    for number, (x, y) in _places(prediction):
        draw.text((x, y), str(number), PAPER, font, anchor="mm", stroke_width=2, stroke_fill=INK)
    return np.asarray(drawn)


def heat_colors(values: np.ndarray) -> np.ndarray:
    """[H, W] -> [H, W, 3] uint8, stretched between the least and the largest value."""
    low = float(values.min())
    high = float(values.max())

    # 1e-12, so that a map of one value is drawn and not divided by zero
    place = (values - low) / max(high - low, 1e-12) * (len(HEAT) - 1)
    channels = [np.interp(place, range(len(HEAT)), channel) for channel in zip(*HEAT, strict=True)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def pca_colors(grids: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Grids [h, w, D] of any sizes -> [h, w, 3] uint8: principal components as colours.

    Three components over all grids are red, green and blue. Each is stretched between its 2nd and
    98th percentile. Signs are fixed by the largest loading, so that equal features give equal
    colours.
    """
    flat = np.concatenate([grid.reshape(-1, grid.shape[-1]) for grid in grids]).astype(np.float64)
    flat -= flat.mean(axis=0)

    # eigh gives ascending eigenvalues: the last three columns, the largest first
    _, vectors = np.linalg.eigh(flat.T @ flat)
    top = vectors[:, :-4:-1]
    top = top * np.sign(top[np.abs(top).argmax(axis=0), range(3)])
    components = flat @ top

    low, high = np.percentile(components, (2, 98), axis=0)
    stretched = np.clip((components - low) / np.maximum(high - low, 1e-12), 0, 1)
    colors = np.rint(255 * stretched).astype(np.uint8)

    ends = np.cumsum([grid.shape[0] * grid.shape[1] for grid in grids])[:-1]
    return [
        part.reshape(*grid.shape[:2], 3)
        for part, grid in zip(np.split(colors, ends), grids, strict=True)
    ]


def _borders(classes: np.ndarray) -> np.ndarray:
    """[H, W] bool: the pixel's neighbour to the left or above has another class."""
    is_border = np.zeros(classes.shape, bool)
    is_border[:, 1:] |= classes[:, 1:] != classes[:, :-1]
    is_border[1:] |= classes[1:] != classes[:-1]
    return is_border


def _places(prediction: np.ndarray) -> list[tuple[int, tuple[int, int]]]:
    """Where numbers are written: (number of the class, (x, y)) of each region that has room.

    The place is the pixel farthest from the region's edge.
    """
    from scipy import ndimage

    places = []
    for label in np.unique(prediction):
        # a ring of nothing around the image, because its edge is an edge of the region too
        regions, count = ndimage.label(np.pad(prediction == label, 1))
        depth = ndimage.distance_transform_edt(regions)[1:-1, 1:-1]
        regions = regions[1:-1, 1:-1]

        # Sizes first: most regions are small, and each of the others costs a pass over the image.
        sizes = np.bincount(regions.ravel(), minlength=count + 1)
        for region in range(1, count + 1):
            if sizes[region] < LABELLED * prediction.size:
                continue
            inside = np.where(regions == region, depth, 0)
            y, x = np.unravel_index(inside.argmax(), inside.shape)
            if inside[y, x] >= ROOM:
                places.append((int(label) + 1, (int(x), int(y))))
    return places
