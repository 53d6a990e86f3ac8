"""Global and local crops of a batch, augmented on the device: one decode a picture, then a few
batched kernels a view.

Flow: ``draw`` (all that is random in a view, on the CPU) -> ``augment`` (crop, resize and flip;
colour jitter; grey; blur; solarise; normalise). The order, probabilities and strengths are DINO's
(2104.14294 and its released code).

    views = make_views(batch.images, batch.sizes, ViewsConfig(), seed=0, step=7,
    needs={"global_crops", "local_crops"})

A view is a pure function of (seed, step, view index, place in the global batch): nothing to
checkpoint, asking for fewer views changes none of the others, and any number of processes draws the
same. The order of the colour operations is a view's own.

Shapes: B pictures, S canvas pixels a side, G global views of g pixels, L local views of l pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from silc_bench.trainer.config.config import ViewsConfig
from silc_bench.trainer.device import send
from silc_bench.trainer.silc import image_ops

ASPECT = (3 / 4, 4 / 3)  # width / height of a crop, log-uniform
CROP_TRIES = 10  # then the largest centred crop of an allowed aspect, as RandomResizedCrop does
BLUR_REFERENCE = 224  # pixels of the view that ViewsConfig.blur_sigma is meant for
CACHED_PIXELS = (
    4 * 256**2
)  # of a view at a time on a CPU: about what its caches hold, and what malloc hands out again
BLOCK = 4096  # pictures that one generator draws for
STREAM = 0  # beside (seed, step, view), of blocks after the first
BLUR_REACH = 3  # the kernel ends at so many sigmas of the widest blur


@dataclass(frozen=True)
class Views:
    """fp32, contiguous, in [-1, 1]; None where it was not asked for."""

    global_crops: Tensor | None = None  # [G, B, 3, g, g]
    local_crops: Tensor | None = None  # [L, B, 3, l, l]
    original: Tensor | None = (
        None  # [B, 3, g, g]: the whole picture squashed to the square, not augmented
    )

    def split(self, size: int) -> Iterator[Views]:
        """The same views of ``size`` pictures at a time."""
        made = [(self.global_crops, 1), (self.local_crops, 1), (self.original, 0)]
        count = next(crops.shape[dim] for crops, dim in made if crops is not None)
        for start in range(0, count, size):
            num = min(size, count - start)
            yield Views(
                *(None if crops is None else crops.narrow(dim, start, num) for crops, dim in made)
            )


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

    ``images`` uint8 [B, 3, S, S]: each picture top-left on its canvas; ``sizes`` int64 [B, 2]: its
    height and width in pixels. ``first`` is the place of the first picture in the global batch, of
    which ``images`` may be a part. ``needs`` names the fields of Views to make. ValueError for an
    unknown name, or sizes that do not fit the canvas.
    """
    if not set(needs) <= KINDS:
        raise ValueError(f"needs={sorted(needs)} names no view; known: {', '.join(sorted(KINDS))}")
    sizes = sizes.cpu()
    canvas = images.shape[-1]
    if images.dtype != torch.uint8 or images.shape != (len(sizes), 3, canvas, canvas):
        raise ValueError(
            f"images must be uint8 [{len(sizes)}, 3, S, S], got {images.dtype} {list(images.shape)}"
        )
    if ((sizes < 1) | (sizes > canvas)).any():
        raise ValueError(
            f"sizes must lie in 1..{canvas}, the canvas; got {sizes.min()}..{sizes.max()}"
        )

    with torch.autocast(
        images.device.type, enabled=False
    ):  # half precision would round the pixels below 8 bits
        pixels = image_ops.to_pixels(images)

        def stack(indices: range, size: int) -> Tensor:
            crops = image_ops.empty(len(indices), len(sizes), 3, size, size, device=images.device)
            for index, out in zip(indices, crops, strict=True):
                augment(pixels, draw(sizes, config, seed, step, index, first), out)
            return crops

        num_views = config.num_global + config.num_local
        return Views(
            stack(range(config.num_global), config.global_size)
            if "global_crops" in needs
            else None,
            stack(range(config.num_global, num_views), config.local_size)
            if "local_crops" in needs
            else None,
            squash(pixels, sizes, config.global_size) if "original" in needs else None,
        )


def augment(pixels: Tensor, params: ViewParams, out: Tensor) -> None:
    """Write one view of ``pixels`` to ``out`` [B, 3, g, g]. Only the samples that an operation was
    drawn for go through it.
    """
    (count, _, size, _), device = out.shape, pixels.device
    places, weights = image_ops.resampling_taps(params.boxes, params.flips, size, device)
    factors, sigmas = send(params.jitter_factors, device), send(params.blur_sigmas, device)
    # Jittered samples lie together, and blurred ones too, so that most parts go through an
    # operation whole or not at all.
    order = torch.where(params.jitter, params.blur.byte(), 3 - params.blur.byte()).argsort(
        stable=True
    )
    for some in order.split(count if pixels.is_cuda else max(1, CACHED_PIXELS // size**2)):
        on_device = send(some, device)
        images = image_ops.resample(pixels, on_device, places[:, on_device], weights[:, on_device])
        apply(
            image_ops.jitter_colors,
            images,
            params.jitter[some],
            factors[on_device],
            order=params.jitter_order,
        )
        apply(image_ops.to_gray, images, params.gray[some])
        apply(
            image_ops.blur, images, params.blur[some], sigmas[on_device], radius=params.blur_radius
        )
        apply(image_ops.solarize, images, params.solarize[some])
        put(normalize(images), out, on_device)


def apply(
    operation: Callable[..., Tensor],
    images: Tensor,
    drawn: Tensor,
    *arguments: Tensor,
    **settings: Any,
) -> None:
    """Change those of ``images`` that ``drawn`` (bool, on the CPU) says; ``arguments`` have a row
    for each image.
    """
    rows = drawn.nonzero()[:, 0]
    if not len(rows):
        return
    start, stop = rows[0].item(), rows[-1].item() + 1
    if stop - start == len(rows):
        operation(images[start:stop], *(argument[start:stop] for argument in arguments), **settings)
    else:
        some = send(rows, images.device)
        changed = operation(
            images.index_select(0, some), *(argument[some] for argument in arguments), **settings
        )
        put(changed, images, some)


def put(images: Tensor, out: Tensor, rows: Tensor) -> None:
    """out[rows] = images, all on one device. On a CPU torch's own index_copy_ goes value by
    value.
    """
    if images.is_cuda:
        out.index_copy_(0, rows, images)
    else:
        for row, image in zip(rows.tolist(), images, strict=True):
            out[row].copy_(image)


def squash(pixels: Tensor, sizes: Tensor, size: int) -> Tensor:
    """The whole pictures, normalised: [B, 3, size, size]."""
    whole = torch.cat([torch.zeros_like(sizes), sizes], dim=1)
    unflipped = torch.zeros(len(sizes), dtype=torch.bool)
    taps = image_ops.resampling_taps(whole, unflipped, size, pixels.device)
    return normalize(
        image_ops.resample(pixels, torch.arange(len(pixels), device=pixels.device), *taps)
    )


def normalize(images: Tensor) -> Tensor:
    """[0, 1] -> [-1, 1], in place: mean and standard deviation 0.5."""
    return torch.add(torch.tensor(-1.0), images, alpha=2, out=images)


# ---- what is random, on the CPU so that every device gets the same ----


@dataclass(frozen=True)
class ViewParams:
    """One view of a batch, on the CPU. ``jitter``, ``gray``, ``blur``, ``solarize`` bool [B]: which
    samples go through it.
    """

    boxes: Tensor  # [B, 4] int64: top, left, height, width
    flips: Tensor  # [B] bool
    jitter: Tensor
    jitter_order: list[
        int
    ]  # a permutation of brightness, contrast, saturation, hue: one for the view
    jitter_factors: Tensor  # [B, 4] fp32: three factors, then the shift of the hue in turns
    gray: Tensor
    blur: Tensor
    blur_sigmas: Tensor  # [B] fp32, pixels of the view
    blur_radius: int  # pixels of the view
    solarize: Tensor


def draw(
    sizes: Tensor, config: ViewsConfig, seed: int, step: int, view: int, first: int = 0
) -> ViewParams:
    """What view ``view`` (globals first, then locals) of a step does to pictures of ``sizes`` int64
    [B, 2].

    ``first``: the place of the first of them in the global batch.
    """
    if view < config.num_global:
        size, area, blur_prob = (
            config.global_size,
            config.global_area,
            config.blur_probs[0 if view == 0 else 1],
        )
    else:
        size, area, blur_prob = config.local_size, config.local_area, config.blur_probs[2]
    solarize_prob = config.solarize_prob if 0 < view < config.num_global else 0.0

    generator = seeded(seed, step, view)
    order = torch.randperm(4, generator=generator).tolist()
    # A row of numbers for each sample, so that a sample's do not depend on how many others there
    # are.
    counts = [1, 1, 1, 1, 1, 4, 1, 2 + 2 * CROP_TRIES]
    numbers = table(first, len(sizes), sum(counts), generator, (seed, step, view, STREAM)).T
    (flip,), (jitter,), (gray,), (blur,), (solarize,), factors, (sigma,), box = numbers.split(
        counts
    )

    neutral, reach = torch.tensor([(1, 1, 1, 0), config.jitter], dtype=torch.float64)[:, :, None]
    factors = neutral + reach * (2 * factors - 1)
    factors[:3].clamp_min_(0)
    low, high = (pixels * size / BLUR_REFERENCE for pixels in config.blur_sigma)
    return ViewParams(
        boxes=draw_boxes(sizes, area, box),
        flips=flip < config.flip_prob,
        jitter=jitter < config.jitter_prob,
        jitter_order=order,
        jitter_factors=factors.T.float(),
        gray=gray < config.gray_prob,
        blur=blur < blur_prob,
        blur_sigmas=(low + (high - low) * sigma).float(),
        blur_radius=min(
            max(1, math.ceil(BLUR_REACH * high)), size - 1
        ),  # a border reflects at most the whole view
        solarize=solarize < solarize_prob,
    )


def seeded(*words: int) -> torch.Generator:
    """A generator of its own for each sequence of numbers."""
    (word,) = np.random.SeedSequence(words).generate_state(1, np.uint64).tolist()
    return torch.Generator().manual_seed(word >> 1)


def table(
    first: int, count: int, columns: int, generator: torch.Generator, words: tuple[int, ...]
) -> Tensor:
    """Rows ``first`` to ``first + count`` of an endless table of uniform numbers on [0, 1): float64
    [count, columns].

    ``generator`` draws its first BLOCK rows, and generators of ``words`` and its number each
    further block: of a large global batch a process draws little more than its own part.
    """
    parts = []
    for block in range(first // BLOCK, -(-(first + count) // BLOCK)):
        start, stop = (min(max(row - block * BLOCK, 0), BLOCK) for row in (first, first + count))
        source = seeded(*words, block) if block else generator
        parts.append(torch.rand(stop, columns, generator=source, dtype=torch.float64)[start:])
    return torch.cat(parts)


def draw_boxes(sizes: Tensor, area: tuple[float, float], numbers: Tensor) -> Tensor:
    """Crop boxes int64 [B, 4] (top, left, height, width) with the distribution of torchvision's
    RandomResizedCrop.

    ``numbers`` float64 [2 + 2 * CROP_TRIES, B], uniform on [0, 1): two place the box, then an area
    and an aspect for each try.
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

    any_fits = fits.any(
        dim=0
    )  # else the picture is long and thin: the largest centred box of an allowed aspect
    box_height = torch.where(
        any_fits, fit_height, torch.minimum(height, (width / ASPECT[0]).round())
    )
    box_width = torch.where(any_fits, fit_width, torch.minimum(width, (height * ASPECT[1]).round()))
    top = torch.where(any_fits, down * (height - box_height + 1), (height - box_height) / 2).floor()
    left = torch.where(any_fits, right * (width - box_width + 1), (width - box_width) / 2).floor()
    return torch.stack([top, left, box_height, box_width], dim=1).long()
