"""Global and local crops of a batch, augmented on the device: one decode a picture, then a few batched kernels a view.

Flow: ``draw`` (all that is random in a view, on the CPU) -> ``augment`` (crop, resize and flip; colour jitter; grey; blur;
solarise; normalise). The order, probabilities and strengths are DINO's (2104.14294 and its released code).

    views = make_views(batch.images, batch.sizes, ViewsConfig(), seed=0, step=7, needs={"global_crops", "local_crops"})

A view is a pure function of (seed, step, view index, place in the global batch): nothing to checkpoint, asking for fewer views
changes none of the others, and any number of processes draws the same. The order of the colour operations is a view's own.

Shapes: B pictures, S canvas pixels a side, G global views of g pixels, L local views of l pixels, n samples of a view that
an operation was drawn for.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from trainer import image_ops
from trainer.sections import ViewsConfig

ASPECT = (3 / 4, 4 / 3)  # width / height of a crop, log-uniform
CROP_TRIES = 10  # then the largest centred crop of an allowed aspect, as RandomResizedCrop does
BLUR_REFERENCE = 224  # pixels of the view that ViewsConfig.blur_sigma is meant for
BLUR_REACH = 3  # the kernel ends at so many sigmas of the widest blur


@dataclass(frozen=True)
class Views:
    """fp32, contiguous, in [-1, 1]; None where it was not asked for."""

    global_crops: Tensor | None = None  # [G, B, 3, g, g]
    local_crops: Tensor | None = None  # [L, B, 3, l, l]
    original: Tensor | None = None  # [B, 3, g, g]: the whole picture squashed to the square, not augmented

    def split(self, size: int) -> Iterator[Views]:
        """The same views of ``size`` pictures at a time."""
        made = [(self.global_crops, 1), (self.local_crops, 1), (self.original, 0)]
        count = next(crops.shape[dim] for crops, dim in made if crops is not None)
        for start in range(0, count, size):
            num = min(size, count - start)
            yield Views(*(None if crops is None else crops.narrow(dim, start, num) for crops, dim in made))


KINDS = frozenset(field.name for field in fields(Views))


@torch.no_grad()
def make_views(
    images: Tensor,
    sizes: Tensor,
    config: ViewsConfig,
    seed: int,
    step: int,
    *,
    first: int = 0,
    needs: Collection[str] = KINDS,
) -> Views:
    """The views of one step, on the device of ``images``.

    ``images`` uint8 [B, 3, S, S]: each picture top-left on its canvas; ``sizes`` int64 [B, 2]: its height and width in pixels.
    ``first`` is the place of the first picture in the global batch, of which ``images`` may be a part.
    ``needs`` names the fields of Views to make. ValueError for an unknown name, or sizes that do not fit the canvas.
    """
    if not set(needs) <= KINDS:
        raise ValueError(f"needs={sorted(needs)} names no view; known: {', '.join(sorted(KINDS))}")
    sizes = sizes.cpu()
    canvas = images.shape[-1]
    if images.dtype != torch.uint8 or images.shape != (len(sizes), 3, canvas, canvas):
        raise ValueError(f"images must be uint8 [{len(sizes)}, 3, S, S], got {images.dtype} {list(images.shape)}")
    if ((sizes < 1) | (sizes > canvas)).any():
        raise ValueError(f"sizes must lie in 1..{canvas}, the canvas; got {sizes.min()}..{sizes.max()}")

    with torch.autocast(images.device.type, enabled=False):  # half precision would round the pixels below 8 bits
        pixels = image_ops.to_pixels(images)

        def stack(indices: range, size: int) -> Tensor:
            crops = torch.empty(len(indices), len(sizes), 3, size, size, device=images.device)
            for index, out in zip(indices, crops, strict=True):
                augment(pixels, draw(sizes, config, seed, step, index, first), out)
            return crops

        num_views = config.num_global + config.num_local
        return Views(
            stack(range(config.num_global), config.global_size) if "global_crops" in needs else None,
            stack(range(config.num_global, num_views), config.local_size) if "local_crops" in needs else None,
            squash(pixels, sizes, config.global_size) if "original" in needs else None,
        )


def augment(pixels: Tensor, params: ViewParams, out: Tensor) -> None:
    """Write one view of ``pixels`` to ``out`` [B, 3, g, g]. Only the samples that an operation was drawn for go through it."""
    device = pixels.device
    out.copy_(image_ops.resample(pixels, params.boxes, params.flips, out.shape[-1]))
    for operation, rows, arguments in (
        (image_ops.jitter_colors, params.jitter_rows, (params.jitter_factors.to(device), params.jitter_order)),
        (image_ops.to_gray, params.gray_rows, ()),
        (image_ops.blur, params.blur_rows, (params.blur_sigmas.to(device), params.blur_radius)),
        (image_ops.solarize, params.solarize_rows, ()),
    ):
        if len(rows) == len(out):
            operation(out, *arguments)
        elif len(rows):
            on_device = rows.to(device)
            out.index_copy_(0, on_device, operation(out.index_select(0, on_device), *arguments))
    normalize(out)


def squash(pixels: Tensor, sizes: Tensor, size: int) -> Tensor:
    """The whole pictures, normalised: [B, 3, size, size]."""
    whole = torch.cat([torch.zeros_like(sizes), sizes], dim=1)
    unflipped = torch.zeros(len(sizes), dtype=torch.bool)
    return normalize(image_ops.resample(pixels, whole, unflipped, size).contiguous())


def normalize(images: Tensor) -> Tensor:
    """[0, 1] -> [-1, 1], in place: mean and standard deviation 0.5."""
    return images.mul_(2).sub_(1)


# ---- what is random, on the CPU so that every device gets the same ----


@dataclass(frozen=True)
class ViewParams:
    """One view of a batch. ``*_rows`` int64 [n]: the samples that the operation was drawn for."""

    boxes: Tensor  # [B, 4] int64: top, left, height, width
    flips: Tensor  # [B] bool
    jitter_rows: Tensor
    jitter_order: list[int]  # a permutation of brightness, contrast, saturation, hue: one for the view
    jitter_factors: Tensor  # [4, n] fp32: three factors, then the shift of the hue in turns
    gray_rows: Tensor
    blur_rows: Tensor
    blur_sigmas: Tensor  # [n] fp32, pixels of the view
    blur_radius: int  # pixels of the view
    solarize_rows: Tensor


def draw(sizes: Tensor, config: ViewsConfig, seed: int, step: int, view: int, first: int = 0) -> ViewParams:
    """What view ``view`` (globals first, then locals) of a step does to pictures of ``sizes`` int64 [B, 2].

    ``first``: the place of the first of them in the global batch.
    """
    if view < config.num_global:
        size, area, blur_prob = config.global_size, config.global_area, config.blur_probs[0 if view == 0 else 1]
    else:
        size, area, blur_prob = config.local_size, config.local_area, config.blur_probs[2]
    solarize_prob = config.solarize_prob if 0 < view < config.num_global else 0.0

    generator = seeded(seed, step, view)
    order = torch.randperm(4, generator=generator).tolist()
    # A row of numbers for each sample, so that a sample's do not depend on how many others there are.
    counts = [1, 1, 1, 1, 1, 4, 1, 2 + 2 * CROP_TRIES]
    numbers = torch.rand(first + len(sizes), sum(counts), generator=generator, dtype=torch.float64)[first:].T
    (flip,), (jitter,), (gray,), (blur,), (solarize,), factors, (sigma,), box = numbers.split(counts)

    jitter_rows, blur_rows = rows_below(jitter, config.jitter_prob), rows_below(blur, blur_prob)
    neutral, reach = torch.tensor([(1, 1, 1, 0), config.jitter], dtype=torch.float64)[:, :, None]
    jitter_factors = (neutral + reach * (2 * factors[:, jitter_rows] - 1)).float()
    jitter_factors[:3].clamp_min_(0)
    low, high = (pixels * size / BLUR_REFERENCE for pixels in config.blur_sigma)
    return ViewParams(
        boxes=draw_boxes(sizes, area, box),
        flips=flip < config.flip_prob,
        jitter_rows=jitter_rows,
        jitter_order=order,
        jitter_factors=jitter_factors,
        gray_rows=rows_below(gray, config.gray_prob),
        blur_rows=blur_rows,
        blur_sigmas=(low + (high - low) * sigma[blur_rows]).float(),
        blur_radius=min(max(1, math.ceil(BLUR_REACH * high)), size - 1),  # a border reflects at most the whole view
        solarize_rows=rows_below(solarize, solarize_prob),
    )


def seeded(*words: int) -> torch.Generator:
    """A generator of its own for each sequence of numbers."""
    (word,) = np.random.SeedSequence(words).generate_state(1, np.uint64).tolist()
    return torch.Generator().manual_seed(word >> 1)


def rows_below(numbers: Tensor, probability: float) -> Tensor:
    return (numbers < probability).nonzero()[:, 0]


def draw_boxes(sizes: Tensor, area: tuple[float, float], numbers: Tensor) -> Tensor:
    """Crop boxes int64 [B, 4] (top, left, height, width) with the distribution of torchvision's RandomResizedCrop.

    ``numbers`` float64 [2 + 2 * CROP_TRIES, B], uniform on [0, 1): two place the box, then an area and an aspect for each try.
    """
    height, width = sizes.double().T
    (down, right), areas, aspects = numbers.split([2, CROP_TRIES, CROP_TRIES])
    low, high = math.log(ASPECT[0]), math.log(ASPECT[1])
    areas = height * width * (area[0] + (area[1] - area[0]) * areas)
    aspects = torch.exp(low + (high - low) * aspects)
    heights, widths = torch.sqrt(areas / aspects).round(), torch.sqrt(areas * aspects).round()
    fits = (heights >= 1) & (heights <= height) & (widths >= 1) & (widths <= width)
    first = fits.byte().argmax(dim=0, keepdim=True)
    fit_height, fit_width = heights.gather(0, first)[0], widths.gather(0, first)[0]

    any_fits = fits.any(dim=0)  # else the picture is long and thin: the largest centred box of an allowed aspect
    box_height = torch.where(any_fits, fit_height, torch.minimum(height, (width / ASPECT[0]).round()))
    box_width = torch.where(any_fits, fit_width, torch.minimum(width, (height * ASPECT[1]).round()))
    top = torch.where(any_fits, down * (height - box_height + 1), (height - box_height) / 2).floor()
    left = torch.where(any_fits, right * (width - box_width + 1), (width - box_width) / 2).floor()
    return torch.stack([top, left, box_height, box_width], dim=1).long()
