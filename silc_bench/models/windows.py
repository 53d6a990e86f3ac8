"""How a picture of any shape is shown to a tower, and how what the tower says comes back to the
picture's pixels.

Flow: ``view.resized(picture)`` -> ``view.layout(h, w, patch)`` -> the tower sees the windows at
``layout.places`` -> their cells lie side by side in one grid [gh, gw, D] -> ``predict(logits, grid,
layout, H, W)`` gives each pixel of a mask a class.

Up-sampling each window bilinearly to its own pixels, averaging where windows overlap, and resizing
the picture bilinearly to the mask are linear, and separable in rows and columns. So all three are
two banded matrices, ``layout.rows(H)`` [H, gh] and ``layout.cols(W)`` [W, gw], with which every
pixel is ``rows @ grid @ cols.T``. Their entries are not negative and their rows sum to 1. The
protocol of TCL (2212.00785) and of the methods after it, whose code is mmsegmentation's sliding
window.

Shapes: H x W pixels of the mask, h x w of the resized picture, gh x gw cells of all windows, D
features, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from silc_bench.errors import UserError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor


@dataclass(frozen=True)
class DensePicture:
    """What a tower says of each cell of one picture."""

    index: int  # in the dataset
    grid: np.ndarray  # fp32 [gh, gw, D]
    layout: Layout


MAX_WINDOWS = 4096  # of a picture; more is a strip, not a picture
TILE_LOGITS = 1 << 20  # logits of pixels held at once: 4 MiB of fp32, about a core's cache
CELL_LOGITS = 1 << 26  # logits of cells held at once: 256 MiB of fp32
GROUP = 32  # classes whose maximum is taken first
NEVER = -1e30  # a logit; infinite, it would be no number where it weighs nothing


@dataclass(frozen=True)
class View:
    """What a protocol does to a picture before a dense model sees it; normalisation is the model's
    own.
    """

    # pixels of the shorter side after resizing; the aspect is kept, sides are rounded half up
    size: int
    window: int  # pixels a side of the square that slides over it
    stride: int  # pixels between windows; the last one is moved back to the border
    interpolation: str | None = (
        None  # a name of models.preprocessing.INTERPOLATIONS; None: the model's own
    )

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
        """Height and width that a picture is resized to."""
        short = min(height, width)
        return int(height * self.size / short + 0.5), int(width * self.size / short + 0.5)

    def num_windows(self, height: int, width: int) -> int:
        """Of a picture of these sides."""
        return math.prod(len(self._offsets(side)) for side in self.resized_sides(height, width))

    def resized(self, image: Image.Image, interpolation: str) -> np.ndarray:
        """uint8 [h, w, 3]; untouched where it has the size already. UserError for a strip of more
        than MAX_WINDOWS.
        """
        from silc_bench.models.preprocessing import INTERPOLATIONS

        image = image.convert("RGB")
        height, width = self.resized_sides(image.height, image.width)
        count = self.num_windows(image.height, image.width)
        if count > MAX_WINDOWS:
            raise UserError(
                f"a picture of {image.width:,} x {image.height:,} pixels becomes {count:,} windows of {self.window} pixels,"
                f" more than {MAX_WINDOWS:,}: too long and thin for a view that keeps the aspect; cut it, or leave it out"
            )
        if image.size != (width, height):
            image = image.resize(
                (width, height), INTERPOLATIONS[self.interpolation or interpolation]
            )
        return np.array(image)

    def layout(self, height: int, width: int, patch: int) -> Layout:
        """Where the windows of a resized picture lie, for a tower with patches of ``patch`` pixels.

        Raises:
            UserError: the window is no whole number of patches.
        """
        if self.window % patch:
            raise UserError(
                f"windows of {self.window} pixels do not divide into patches of {patch}; choose a protocol whose window does"
            )
        return Layout(
            height, width, self._offsets(height), self._offsets(width), self.window, patch
        )

    def _offsets(self, side: int) -> tuple[int, ...]:
        count = math.ceil((side - self.window) / self.stride) + 1
        return tuple(min(i * self.stride, side - self.window) for i in range(count))


@dataclass(frozen=True)
class Layout:
    """Where the cells of all windows of one picture lie."""

    height: int  # of the resized picture, pixels
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
        return _to_pixels(height, self.height, self.tops, self.window, self.cells)

    def cols(self, width: int) -> sparse.csr_array:
        """float64 [width, gw]."""
        return _to_pixels(width, self.width, self.lefts, self.window, self.cells)


@lru_cache(maxsize=64)
def _to_pixels(
    size: int, resized: int, starts: tuple[int, ...], window: int, cells: int
) -> sparse.csr_array:
    inside = bilinear(window, cells)
    covers = np.zeros(resized)
    for start in starts:
        covers[start : start + window] += 1
    blocks = []
    for start in starts:
        block = sparse.coo_array(inside)
        rows = block.row + start
        blocks.append(
            sparse.csr_array((block.data / covers[rows], (rows, block.col)), shape=(resized, cells))
        )
    return sparse.csr_array(bilinear(size, resized) @ sparse.hstack(blocks, format="csr"))


@lru_cache(maxsize=64)
def bilinear(size: int, cells: int) -> sparse.csr_array:
    """float64 [size, cells]: torch's ``interpolate`` along one axis, align_corners=False, without
    antialiasing.
    """
    center = np.maximum((np.arange(size) + 0.5) * cells / size - 0.5, 0)
    low = np.minimum(center.astype(np.int64), cells - 1)
    high = np.minimum(low + 1, cells - 1)
    share = center - low
    places = (np.tile(np.arange(size), 2), np.concatenate([low, high]))
    return sparse.csr_array(
        (np.concatenate([1 - share, share]), places), shape=(size, cells)
    )  # what coincides is added


Logits = Callable[["Tensor"], "Tensor"]  # cells [n, D] -> [n, C]


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
        prediction[rows, cols] = (winner if kept is None else kept[winner]).cpu().numpy()
    return prediction


def pixel_logits(
    logits: Logits, grid: np.ndarray, layout: Layout, height: int, width: int
) -> Iterator[tuple[slice, slice, Tensor]]:
    """(rows, columns, fp32 [rows, columns, C]) tile by tile: for decisions that need more than the
    largest.

    A tile's memory is used again for the next one.
    """
    for rows, cols, tile, _ in _tiles(logits, grid, layout, height, width, is_winner=False):
        yield rows, cols, tile


def _tiles(
    logits: Logits, grid: np.ndarray, layout: Layout, height: int, width: int, is_winner: bool
) -> Iterator[tuple[slice, slice, Tensor, Tensor | None]]:
    """Rows, columns, logits, and which classes these are where some are left out."""
    import torch

    assert grid.shape[:2] == layout.grid, (grid.shape, layout)
    cells = torch.from_numpy(np.ascontiguousarray(grid, dtype=np.float32))
    num_classes = logits(cells[0, :1]).shape[1]
    is_whole = cells.shape[0] * cells.shape[1] * num_classes <= CELL_LOGITS
    if is_whole:  # else they are made again for each tile that they reach into
        cells = logits(cells.flatten(0, 1)).unflatten(0, layout.grid)
    side = max(8, min(128, math.isqrt(TILE_LOGITS // num_classes)))
    strips = _bands(layout.rows(height), side)
    columns = _bands(layout.cols(width), side)
    memory = cells.new_empty(side * side * (num_classes + GROUP))
    for rows, down, row_cells in strips:
        strip = cells[row_cells]
        for cols, along, column_cells in columns:
            part = strip[:, column_cells]
            if not is_whole:
                part = logits(part.flatten(0, 1)).unflatten(0, part.shape[:2])
            kept = _can_win(part) if is_winner else None
            part = part if kept is None else part[..., kept]
            if (
                is_winner and part.shape[-1] > 4 * GROUP
            ):  # to whole groups, with classes that never win
                part = torch.nn.functional.pad(part, (0, -part.shape[-1] % GROUP), value=NEVER)
            half = (down @ part.flatten(1)).unflatten(1, part.shape[1:])  # [rows, column cells, C]
            shape = (len(down), len(along), part.shape[-1])
            yield (
                rows,
                cols,
                torch.matmul(along, half, out=memory[: math.prod(shape)].view(shape)),
                kept,
            )


def _bands(matrix: sparse.csr_array, side: int) -> list[tuple[slice, Tensor, Tensor]]:
    """Of each ``side`` rows: which they are, their part that is not zero, dense fp32, and which
    columns that is.
    """
    import torch

    bands = []
    for start in range(0, matrix.shape[0], side):
        rows = matrix[start : start + side]
        used = np.unique(rows.indices)
        dense = torch.from_numpy(rows[:, used].toarray().astype(np.float32))
        bands.append(
            (slice(start, start + len(dense)), dense, torch.from_numpy(used.astype(np.int64)))
        )
    return bands


def _can_win(part: Tensor) -> Tensor | None:
    """Classes that can be largest at a weighted mean of the cells [m, n, C]; None: all of them."""
    flat = part.flatten(0, 1)
    can_win = ~(flat.amax(dim=0) < flat.amin(dim=0).max())
    return None if bool(can_win.all()) else can_win.nonzero()[:, 0]


def _argmax(tile: Tensor) -> Tensor:
    """[r, c, C] -> [r, c], the first of equal ones. Groups first: torch vectorises amax, and argmax
    it does not.
    """
    import torch

    if tile.shape[-1] % GROUP:
        return tile.argmax(dim=-1)
    grouped = tile.view(-1, tile.shape[-1] // GROUP, GROUP)
    group = grouped.amax(dim=-1).argmax(dim=-1)
    places = torch.arange(len(group), device=tile.device) * grouped.shape[1] + group
    winner = group * GROUP + grouped.view(-1, GROUP).index_select(0, places).argmax(dim=-1)
    return winner.view(tile.shape[:2])
