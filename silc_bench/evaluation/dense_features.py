"""Dense features of a dataset, one image at a time, encoded once for all the tasks that read them.

Flow: ``grids = DenseFeatures(...)``; ``grids.expect(dataset, view, methods)`` for everything that a
command will ask; then ``grids(dataset, view, method)`` yields a DenseImage for each image, in
order, as often as it is called.

Windows are batched across images, and one forward pass gives every method that was announced. The
grids are rounded to fp16 at once, so that what is read again equals what was read first; they are
kept in the store, or without one in memory, as long as a dataset's fit into a share of it, and are
encoded again where they do not.

Shapes: S pixels a side of a window, gh x gw cells of all windows, D features.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, default_collate

from silc_bench.datasets.dataset import ImageDataset, is_drawn
from silc_bench.errors import ExplainedError, RunError, UserError, first_line
from silc_bench.evaluation.settings import EvalSettings
from silc_bench.models.interface import DenseModel
from silc_bench.models.preprocessing import ImagePipeline
from silc_bench.models.windows import DenseImage, Layout, Logits, View
from silc_bench.system.cache import Entry
from silc_bench.system.limits import num_cores, shared_memory
from silc_bench.system.processes import begun, is_of_dead_reader, num_local_ranks
from silc_bench.system.terminal import progress_bar

MEMORY = 1 << 30  # bytes of grids kept in memory where there is no store
STORE_SHARE = 0.25  # of the store's limit, for one dataset seen in one way
TOKENS = {"cpu": 1 << 13, "cuda": 1 << 16}  # patches of one forward pass: bounds its memory
Sides: TypeAlias = tuple[int, int]  # of the resized image
IMAGES_A_PROCESS = 256  # fewer are decoded before another process has started
HANDED_OVER = 3  # batches of a process: two that a loader asks for ahead, and the one in use
LARGE_IMAGE = 3 * 4096**2  # bytes


def native_view(model: DenseModel) -> View:
    """The image at the size the model was trained at, aspect kept, in windows that half overlap."""
    cells = model.image_size // model.patch_size
    window = cells * model.patch_size  # So400m/14 at 384 sees 378
    return View(window, window, max(1, cells // 2) * model.patch_size)


def description(dataset: ImageDataset) -> dict[str, str]:
    """Which images these are, as JSON for the store."""
    return {"name": dataset.name, "split": dataset.split, "fingerprint": dataset.fingerprint}


def cosines_with(classes: np.ndarray) -> Logits:
    """Cells fp32 [n, D] -> their cosines with ``classes`` [C, D] of unit length: fp32 [n, C]."""
    weights = torch.from_numpy(np.ascontiguousarray(classes.T, dtype=np.float32))
    return lambda cells: F.normalize(cells, dim=-1) @ weights


def image_protocol(model: DenseModel, view: View | None) -> dict[str, Any]:
    """All that is done to an image before ``model`` sees it, as JSON."""
    pipeline = window_pipeline(model)
    view = view or native_view(model)
    return {
        "mean": list(pipeline.mean),
        "std": list(pipeline.std),
        **view.as_dict(),
        "interpolation": view.interpolation or pipeline.interpolation,
        "antialias": True,
    }


def window_pipeline(model: DenseModel) -> ImagePipeline:
    """The model's own; its colours and interpolation count here, not its sizes.

    Raises:
        UserError: the model takes no square windows.
    """
    if not isinstance(model.pipeline, ImagePipeline):
        problem = "takes images of their own shape, which windows are not"
        raise UserError(problem, about=model.name, fix="leave dense tasks out")
    return model.pipeline


@dataclass
class DenseFeatures:
    """Encodes and keeps; belongs to one model, whose weights do not change.

    Args:
        device: its type.
        encode: windows [B, 3, S, S] on any device and methods -> {method: fp32 [B, h, w, D]} on the
            CPU.
        entry: where the store keeps one method's grids of (dataset, view), given as JSON; None:
            nowhere.
    """

    model: DenseModel
    settings: EvalSettings
    device: str
    encode: Callable[[Tensor, Sequence[str]], Mapping[str, np.ndarray]]
    entry: Callable[[dict[str, Any]], Entry | None]
    _expected: dict[tuple[str, View], set[str]] = field(default_factory=dict)
    _memory: dict[tuple[str, View, str], _Memory] = field(default_factory=dict)

    def expect(self, dataset: ImageDataset, view: View | None, methods: Iterable[str]) -> None:
        """These methods will be asked for: whichever comes first encodes for all of them."""
        key = (dataset.fingerprint, view or native_view(self.model))
        self._expected.setdefault(key, set()).update(methods)

    def __call__(
        self, dataset: ImageDataset, view: View | None, method: str
    ) -> Iterator[DenseImage]:
        """Every image in order. ``view`` None: the model's own.

        Raises:
            UserError: the model cannot do the method, an image is damaged or too long and thin.
            RunError: a feature is not finite.
        """
        view = view or native_view(self.model)
        self.expect(dataset, view, [method])
        names = sorted(self._expected[dataset.fingerprint, view])
        kept = {name: self._kept(dataset, view, name) for name in names}
        sides_of = {name: grids.grids() for name, grids in kept.items()}

        # an image counts as known only with the grids of every method: one pass gives all of them
        known = set.intersection(*(set(sides) for sides in sides_of.values()))
        missing = [index for index in range(len(dataset)) if index not in known]

        with contextlib.closing(self._encode(dataset, view, missing, names)) as coming:
            for index in range(len(dataset)):
                grid = None
                if index in known:
                    sides = sides_of[method][index]
                    grid = kept[method].grid(index, sides)
                if grid is None:
                    # a grid that was there and is damaged, or was pruned meanwhile, is encoded by
                    # itself; the stream of the missing ones does not hold it
                    source = coming
                    if index in known:
                        source = self._encode(dataset, view, [index], names)
                    sides, grids = next(source)

                    # all or nothing: a dataset that does not fit as a whole would push itself out
                    num_bytes = sum(grid.nbytes for grid in grids.values()) * len(dataset)
                    if num_bytes <= self._budget():
                        for name, grid in grids.items():
                            kept[name].save_grid(index, sides, grid)
                    grid = grids[method]

                layout = view.layout(*sides, self.model.patch_size)
                yield DenseImage(index, grid.astype(np.float32), layout)

    def _kept(self, dataset: ImageDataset, view: View, method: str) -> Entry | _Memory:
        what = {"method": method, "dataset": description(dataset)}
        entry = self.entry({"image": image_protocol(self.model, view), **what})
        if entry is not None:
            return entry
        return self._memory.setdefault((dataset.fingerprint, view, method), _Memory())

    def _budget(self) -> float:
        """Bytes that the grids of one dataset may take."""
        store = self.settings.store
        return MEMORY if store is None else store.limit * STORE_SHARE

    def _encode(
        self, dataset: ImageDataset, view: View, indices: Sequence[int], methods: Sequence[str]
    ) -> Generator[tuple[Sides, dict[str, np.ndarray]], None, None]:
        """(sides of the resized image, {method: fp16 [gh, gw, D]}) of each image.

        Nothing is computed before the first is asked for.
        """
        if not indices:
            return

        title = f"{dataset.name}/{dataset.split}"
        patch_size = self.model.patch_size

        # the batch size of the user is one of images at the model's size; a window can hold more
        # cells, so batches are bounded by cells too
        cells = view.layout(view.window, view.window, patch_size).cells
        size = max(1, min(self.settings.batch_size, TOKENS[self.device] // cells**2))

        # images whose windows are not all encoded, in order: a batch can span several
        open_images: deque[_Open] = deque()
        windows = self._windows(dataset, view, indices, open_images)
        is_shown = self.settings.progress
        with progress_bar(is_shown, f"{title} dense", len(dataset)) as advance:
            advance(len(dataset) - len(indices))
            while batch := list(itertools.islice(windows, size)):
                features = self.encode(torch.stack([pixels for _, _, pixels in batch]), methods)
                for row, (image, place, _) in enumerate(batch):
                    image.put(place, {name: values[row] for name, values in features.items()})

                while open_images and open_images[0].is_done:
                    image = open_images.popleft()
                    for name, grid in image.grids.items():
                        if not np.isfinite(grid).all():
                            raise RunError(
                                f"gives {name} features of image {image.index} of {title} that"
                                " are not finite, or beyond fp16",
                                about=self.model.name,
                                fix="leave dense tasks or this checkpoint out",
                            )
                    yield (image.layout.height, image.layout.width), image.grids
                    advance(1)

    def _windows(
        self,
        dataset: ImageDataset,
        view: View,
        indices: Sequence[int],
        opened: deque[_Open],
    ) -> Iterator[tuple[_Open, int, Tensor]]:
        """(image, number of the window, normalised pixels [3, S, S]) of every window in order.

        Each image is put into ``opened`` as it begins.
        """
        pipeline = window_pipeline(self.model)
        mean = torch.tensor(pipeline.mean).view(3, 1, 1)
        std = torch.tensor(pipeline.std).view(3, 1, 1)
        resize = partial(view.resized, interpolation=pipeline.interpolation)
        resized = Prepared(resize, dataset)
        num_workers = self.settings.num_workers
        if num_workers is None:
            num_workers = processes_for(dataset, len(indices), LARGE_IMAGE)
        if not indices:
            num_workers = 0

        # images differ in size, so that the loader cannot stack them: one at a time
        for index, pixels in prepared(resized, indices, batch_size=None, num_workers=num_workers):
            layout = view.layout(pixels.shape[0], pixels.shape[1], self.model.patch_size)
            image = _Open(index, layout)
            opened.append(image)

            # cut first, made a float then: a whole large image in fp32 would be four times as large
            whole = pixels.permute(2, 0, 1)
            for place, (top, left) in enumerate(layout.places):
                part = whole[:, top : top + view.window, left : left + view.window]
                yield image, place, part.float().div_(255).sub_(mean).div_(std)


@dataclass
class _Open:
    """An image some of whose windows are encoded."""

    index: int
    layout: Layout
    grids: dict[str, np.ndarray] = field(default_factory=dict)
    num_encoded: int = 0

    @property
    def is_done(self) -> bool:
        return self.num_encoded == len(self.layout.places)

    def put(self, place: int, features: Mapping[str, np.ndarray]) -> None:
        """Window number ``place``: {method: fp32 [h, w, D]}."""
        row, column = divmod(place, len(self.layout.lefts))
        cells = self.layout.cells
        rows = slice(row * cells, (row + 1) * cells)
        columns = slice(column * cells, (column + 1) * cells)
        for name, values in features.items():
            empty = np.empty((*self.layout.grid, values.shape[-1]), np.float16)
            grid = self.grids.setdefault(name, empty)

            # what overflows fp16 becomes infinite, and is reported when the image is whole
            with np.errstate(over="ignore"):
                grid[rows, columns] = values
        self.num_encoded += 1


class _Memory:
    """What an `Entry` of the store is, where there is no store."""

    def __init__(self) -> None:
        self._items: dict[int, tuple[Sides, np.ndarray]] = {}

    def grids(self) -> dict[int, Sides]:
        return {index: sides for index, (sides, _) in self._items.items()}

    def grid(self, index: int, sides: Sides) -> np.ndarray | None:
        return self._items[index][1]

    def save_grid(self, index: int, sides: Sides, grid: np.ndarray) -> None:
        self._items[index] = sides, grid


class Prepared(Dataset):
    """(index, ``prepare`` of the image) of each image, for ``prepared``.

    An error for the user is returned and not raised: a worker would bury it in its traceback.
    """

    def __init__(self, prepare: Callable[[Image.Image], Any], dataset: ImageDataset) -> None:
        self.prepare = prepare
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[int, Any] | ExplainedError:
        try:
            return index, self.prepare(self.dataset.image(index))
        except ExplainedError as error:
            return error


def prepared(
    images: Prepared,
    indices: Sequence[int],
    *,
    batch_size: int | None,
    num_workers: int,
    is_pinned: bool = False,
) -> Iterator[Any]:
    """(index, image) or, with ``batch_size``, batches of them, by ``num_workers`` processes.

    Raises:
        UserError: the first one of an image, the same with any number of processes.
        RunError: a process was killed.
    """
    loader = DataLoader(
        Subset(images, indices),
        batch_size=batch_size,
        num_workers=num_workers,
        pin_memory=is_pinned,
        collate_fn=None if batch_size is None else _batch_of,
    )
    try:
        for answer in begun(loader):
            if isinstance(answer, ExplainedError):
                raise answer
            yield answer
    except (RuntimeError, EOFError, ConnectionError) as error:
        if not is_of_dead_reader(error):
            raise
        raise RunError(
            f"a process that reads images was killed ({first_line(error)}), mostly for want of"
            " memory",
            about="--workers",
            fix="lower it, and start the command again",
        ) from error


def processes_for(dataset: ImageDataset, num_images: int, num_bytes: int) -> int:
    """How many processes decode so many images of ``dataset``, where nobody says it.

    Args:
        num_bytes: of what a process hands over at a time, in shared memory.
    """
    # What is drawn stays in the memory of the process that draws it. And another process is told
    # what to do by pickle unless it is a fork, which not every model's preprocessing allows.
    cores = num_cores() // num_local_ranks()
    is_fork = multiprocessing.get_context().get_start_method() == "fork"
    if is_drawn(dataset) or cores < 2 or not is_fork:
        return 0

    # A container may have 64 MB of shared memory, and more than that kills the process.
    room = shared_memory() // (HANDED_OVER * num_bytes)
    return int(min(cores, num_images // IMAGES_A_PROCESS, room))


def _batch_of(items: list[Any]) -> Any:
    """The first error among ``items``, or one batch of them."""
    errors = (item for item in items if isinstance(item, ExplainedError))
    return next(errors, None) or default_collate(items)
