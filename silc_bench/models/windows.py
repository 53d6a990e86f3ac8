"""How an image of any shape is shown to a tower, and how features come back to its pixels.

Flow: ``view.resized(image)`` -> ``view.layout(h, w, patch)`` -> the tower sees the windows at
``layout.places`` -> their cells lie side by side in one grid [gh, gw, D] -> ``predict(logits, grid,
layout, H, W)`` gives each pixel of a mask a class.

Up-sampling each window bilinearly to its own pixels, averaging where windows overlap, and resizing
the image bilinearly to the mask are linear, and separable in rows and columns. So all three are two
banded matrices, ``layout.rows(H)`` [H, gh] and ``layout.cols(W)`` [W, gw], with which every pixel
is ``rows @ grid @ cols.T``. Their entries are not negative and their rows sum to 1. The protocol is
that of TCL (2212.00785) and of the methods after it, whose code is mmsegmentation's sliding window.

Shapes: H x W pixels of the mask, h x w of the resized image, gh x gw cells of all windows, D
features, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

from silc_bench.errors import UserError
from silc_bench.later import np, sparse

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

MAX_WINDOWS = 4096  # of an image; what has more is a strip
TILE_LOGITS = 1 << 20  # logits of pixels held at once: 4 MiB of fp32, about a core's cache
CELL_LOGITS = 1 << 26  # logits of cells held at once: 256 MiB of fp32
GROUP = 32  # classes whose maximum is taken first

# A logit that never wins. It is finite, because infinity times a weight of 0 would be no number.
NEVER = -1e30

Logits = Callable[["Tensor"], "Tensor"]  # cells [n, D] -> [n, C]

# One axis of a mask: its pixels, those of the resized image, where windows start, their pixels and
# cells.
Axis: TypeAlias = tuple[int, int, tuple[int, ...], int, int]

# Some rows of a matrix, their part that is not zero, and the numbers of its columns.
Band: TypeAlias = tuple[slice, "Tensor", "Tensor"]


@dataclass(frozen=True)
class DenseImage:
    """What a tower says of each cell of one image."""

    index: int  # in the dataset
    grid: np.ndarray  # fp32 [gh, gw, D]
    layout: Layout


@dataclass(frozen=True)
class View:
    """What a protocol does to an image before a dense model sees it.

    Normalisation is the model's own.
    """

    # Pixels of the shorter side after resizing. The aspect is kept, sides are rounded half up.
    size: int
    window: int  # pixels a side of the square that slides over it
    stride: int  # pixels between windows; the last one is moved back to the border

    # A name of models.preprocessing.INTERPOLATIONS; None: the model's own.
    interpolation: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.window <= self.size or not 1 <= self.stride <= self.window:
            raise ValueError(f"no such view: stride <= window <= size must hold: {self}")

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON, for the protocol."""
        return {
            **asdict(self),
            "resize": "shortest, aspect kept",
            "overlap": "mean of bilinear logits",
        }

    def resized_sides(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that an image is resized to."""
        short = min(height, width)
        return int(height * self.size / short + 0.5), int(width * self.size / short + 0.5)

    def num_windows(self, height: int, width: int) -> int:
        """How many windows an image of these sides takes."""
        return math.prod(len(self._offsets(side)) for side in self.resized_sides(height, width))

    def resized(self, image: Image.Image, interpolation: str) -> np.ndarray:
        """uint8 [h, w, 3]; untouched where it has the size already.

        Raises:
            UserError: a strip of more than MAX_WINDOWS.
        """
        from silc_bench.models.preprocessing import INTERPOLATIONS

        image = image.convert("RGB")
        height, width = self.resized_sides(image.height, image.width)

        # Checked before resizing: a strip of 1 x 10,000 pixels would become gigabytes.
        count = self.num_windows(image.height, image.width)
        if count > MAX_WINDOWS:
            raise UserError(
                f"too long and thin: {count:,} windows of {self.window} pixels are more than"
                f" {MAX_WINDOWS:,}",
                about=f"an image of {image.width:,} x {image.height:,} pixels",
                fix="cut it, or leave it out",
            )

        if image.size != (width, height):
            resampling = INTERPOLATIONS[self.interpolation or interpolation]
            image = image.resize((width, height), resampling)
        return np.array(image)

    def layout(self, height: int, width: int, patch: int) -> Layout:
        """Where the windows of a resized image lie, for a tower with patches of ``patch`` pixels.

        Raises:
            UserError: the window is no whole number of patches.
        """
        if self.window % patch:
            raise UserError(
                f"they do not divide into patches of {patch}",
                about=f"windows of {self.window} pixels",
                fix="choose a protocol whose windows do",
            )
        tops = self._offsets(height)
        lefts = self._offsets(width)
        return Layout(height, width, tops, lefts, self.window, patch)

    def _offsets(self, side: int) -> tuple[int, ...]:
        """Where the windows begin along a side, in pixels."""
        count = math.ceil((side - self.window) / self.stride) + 1
        return tuple(min(i * self.stride, side - self.window) for i in range(count))


@dataclass(frozen=True)
class Layout:
    """Where the cells of all windows of one image lie."""

    height: int  # of the resized image, pixels
    width: int
    tops: tuple[int, ...]  # of the windows, in order of the grid
    lefts: tuple[int, ...]
    window: int
    patch: int

    @property
    def cells(self) -> int:
        """Patches along a side of a window."""
        return self.window // self.patch

    @property
    def grid(self) -> tuple[int, int]:
        """gh, gw."""
        return len(self.tops) * self.cells, len(self.lefts) * self.cells

    @cached_property
    def places(self) -> tuple[tuple[int, int], ...]:
        """Top and left of each window, row by row."""
        return tuple((top, left) for top in self.tops for left in self.lefts)

    def rows(self, height: int) -> sparse.csr_array:
        """float64 [height, gh]: what each cell's row gives to each row of a mask."""
        return _to_pixels(*self._down(height))

    def cols(self, width: int) -> sparse.csr_array:
        """float64 [width, gw]: what each cell's column gives to each column of a mask."""
        return _to_pixels(*self._along(width))

    def strips(self, height: int, side: int) -> tuple[Band, ...]:
        """``rows`` in bands of ``side``."""
        return _bands(side, *self._down(height))

    def columns(self, width: int, side: int) -> tuple[Band, ...]:
        """``cols`` in bands of ``side``."""
        return _bands(side, *self._along(width))

    def _down(self, height: int) -> Axis:
        return height, self.height, self.tops, self.window, self.cells

    def _along(self, width: int) -> Axis:
        return width, self.width, self.lefts, self.window, self.cells


def predict(
    logits: Logits, grid: np.ndarray, layout: Layout, height: int, width: int
) -> np.ndarray:
    """int64 [height, width]: the class of largest logit at each pixel, of equal ones the first.

    Args:
        logits: of cells [n, D] fp32, the class logits [n, C].
        grid: features of all cells [gh, gw, D].

    Memory is bounded whatever the sizes. A class whose largest cell under a tile lies below the
    smallest of another there can win at no pixel of it, because pixels are weighted means of cells:
    such classes are left out, which changes nothing.
    """
    prediction = np.empty((height, width), dtype=np.int64)
    for rows, cols, tile, kept in _tiles(logits, grid, layout, height, width, is_winner=True):
        winner = _argmax(tile)

        # the winner counts among the classes kept; the mask needs its number among all
        if kept is not None:
            winner = kept[winner]
        prediction[rows, cols] = winner.cpu().numpy()
    return prediction


def pixel_logits(
    logits: Logits, grid: np.ndarray, layout: Layout, height: int, width: int
) -> Iterator[tuple[slice, slice, Tensor]]:
    """(rows, columns, fp32 [rows, columns, C]) tile by tile, where the largest is not enough.

    A tile's memory is used again for the next one.
    """
    for rows, cols, tile, _ in _tiles(logits, grid, layout, height, width, is_winner=False):
        yield rows, cols, tile


@lru_cache(maxsize=64)
def bilinear(size: int, cells: int) -> sparse.csr_array:
    """float64 [size, cells]: torch's ``interpolate`` along one axis, as a matrix.

    With align_corners=False and without antialiasing.
    """
    # Each pixel's centre, in cells; it lies between the centres of the cells low and high.
    center = np.maximum((np.arange(size) + 0.5) * cells / size - 0.5, 0)
    low = np.minimum(center.astype(np.int64), cells - 1)
    high = np.minimum(low + 1, cells - 1)
    share = center - low

    # At the border low and high are one cell; entries at the same place are added.
    entries = np.concatenate([1 - share, share])
    places = (np.tile(np.arange(size), 2), np.concatenate([low, high]))
    return sparse.csr_array((entries, places), shape=(size, cells))


@lru_cache(maxsize=64)
def _to_pixels(
    size: int, resized: int, starts: tuple[int, ...], window: int, cells: int
) -> sparse.csr_array:
    """float64 [size, cells of all windows]: one axis, from the cells to the pixels of a mask."""
    inside = bilinear(window, cells)

    # How many windows see each pixel of the resized image: their mean is taken there.
    covers = np.zeros(resized)
    for start in starts:
        covers[start : start + window] += 1

    blocks = []
    for start in starts:
        block = sparse.coo_array(inside)
        rows = block.row + start
        entries = block.data / covers[rows]
        blocks.append(sparse.csr_array((entries, (rows, block.col)), shape=(resized, cells)))

    return sparse.csr_array(bilinear(size, resized) @ sparse.hstack(blocks, format="csr"))


def _tiles(
    logits: Logits, grid: np.ndarray, layout: Layout, height: int, width: int, is_winner: bool
) -> Iterator[tuple[slice, slice, Tensor, Tensor | None]]:
    """Rows, columns, logits, and which classes these are where some are left out.

    Args:
        is_winner: only the largest class is asked for, so the others may be left out.
    """
    import torch

    assert grid.shape[:2] == layout.grid, (grid.shape, layout)
    cells = torch.from_numpy(np.ascontiguousarray(grid, dtype=np.float32))
    num_classes = logits(cells[0, :1]).shape[1]

    # Logits of all cells at once where they fit; else they are computed again for each tile that
    # the cells reach into.
    is_whole = cells.shape[0] * cells.shape[1] * num_classes <= CELL_LOGITS
    if is_whole:
        cells = logits(cells.flatten(0, 1)).unflatten(0, layout.grid)

    side = max(8, min(128, math.isqrt(TILE_LOGITS // num_classes)))
    strips = layout.strips(height, side)
    columns = layout.columns(width, side)

    # one buffer for all tiles, so that none is allocated anew; hence pixel_logits' warning
    memory = cells.new_empty(side * side * (num_classes + GROUP))

    for rows, down, row_cells in strips:
        strip = cells[row_cells]
        for cols, along, column_cells in columns:
            part = strip[:, column_cells]
            if not is_whole:
                part = logits(part.flatten(0, 1)).unflatten(0, part.shape[:2])

            kept = _can_win(part) if is_winner else None
            if kept is not None:
                part = part[..., kept]

            # Filled up to whole groups with classes that never win, so that _argmax can go by
            # groups.
            if is_winner and part.shape[-1] > 4 * GROUP:
                missing = -part.shape[-1] % GROUP
                part = torch.nn.functional.pad(part, (0, missing), value=NEVER)

            half = (down @ part.flatten(1)).unflatten(1, part.shape[1:])  # [rows, column cells, C]
            shape = (len(down), len(along), part.shape[-1])
            tile = memory[: math.prod(shape)].view(shape)
            yield rows, cols, torch.matmul(along, half, out=tile), kept


@lru_cache(maxsize=64)
def _bands(
    side: int, size: int, resized: int, starts: tuple[int, ...], window: int, cells: int
) -> tuple[Band, ...]:
    """For every ``side`` rows of ``_to_pixels``: which they are, and their part that is not zero.

    That part is dense fp32, and comes with the numbers of its columns. Kept, because the images of
    a set often have few sizes: nobody may change it.
    """
    import torch

    matrix = _to_pixels(size, resized, starts, window, cells)
    bands = []
    for start in range(0, size, side):
        rows = matrix[start : start + side]
        used = np.unique(rows.indices)
        dense = torch.from_numpy(rows[:, used].toarray().astype(np.float32))
        columns = torch.from_numpy(used.astype(np.int64))
        bands.append((slice(start, start + len(dense)), dense, columns))
    return tuple(bands)


def _can_win(part: Tensor) -> Tensor | None:
    """Classes that can be largest at a weighted mean of the cells [m, n, C]; None: all of them."""
    flat = part.flatten(0, 1)

    # Written as "not below", so that a class with NaN stays in and is seen.
    can_win = ~(flat.amax(dim=0) < flat.amin(dim=0).max())
    return None if bool(can_win.all()) else can_win.nonzero()[:, 0]


def _argmax(tile: Tensor) -> Tensor:
    """[r, c, C] -> [r, c], the first of equal ones."""
    import torch

    if tile.shape[-1] % GROUP:
        return tile.argmax(dim=-1)

    # Groups first, because torch vectorises amax over the last axis and argmax it does not.
    grouped = tile.view(-1, tile.shape[-1] // GROUP, GROUP)
    group = grouped.amax(dim=-1).argmax(dim=-1)

    # then the place inside the one group that holds the winner
    places = torch.arange(len(group), device=tile.device) * grouped.shape[1] + group
    winner = group * GROUP + grouped.view(-1, GROUP).index_select(0, places).argmax(dim=-1)
    return winner.view(tile.shape[:2])
