"""Global and local crops of a batch, augmented on the device.

An image is decoded once, on the host; then each view takes a few batched kernels. Flow: ``draw``
(all that is random in a view, on the CPU; ``draw_boxes`` the areas of the crops) -> ``augment``
(crop, resize and flip; colour jitter; grey; blur; solarise; normalise). ``ViewsConfig`` has the
sizes and areas.

The order, probabilities and strengths are DINO's (2104.14294 and its released code); the order of
the four colour operations is drawn for each view, not for each image. Two of DINO's details are
options, which presets as large as the papers' take: ``resize=bicubic``, and ``blur_size=0`` (sigma
is not scaled with the view). A blur is a Gaussian; DINO's is Pillow's, three box filters in a row.

    kinds = {"global_crops", "local_crops"}
    views = make_views(batch.images, batch.sizes, ViewsConfig(), seed=0, step=7, needs=kinds)

A view is a pure function of (seed, step, view index, place in the global batch):
nothing to checkpoint, asking for fewer views changes none of the others, and any
number of processes draws the same.

Shapes: B images, S canvas pixels a side, G global views of g pixels, L local views
of l pixels.
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
BLUR_REACH = 3  # the kernel ends at so many sigmas of the widest blur
BLOCK = 4096  # images that one generator draws for
STREAM = 0  # beside (seed, step, view), of blocks after the first

# Pixels of a view that a CPU works on at a time: about what its caches hold, and few enough that
# malloc hands the same memory out again.
CACHED_PIXELS = 4 * 256**2


@dataclass(frozen=True)
class Views:
    """fp32, contiguous, in [-1, 1]; None where it was not asked for."""

    global_crops: Tensor | None = None  # [G, B, 3, g, g]
    local_crops: Tensor | None = None  # [L, B, 3, l, l]

    # [B, 3, g, g]: the whole image squashed to the square, not augmented.
    original: Tensor | None = None

    def of_images(self) -> dict[str, Tensor]:
        """[V, B, 3, g, g] of what may meet the text, by its name in ``contrastive.images``."""
        crops = {}
        if self.global_crops is not None:
            crops["global"] = self.global_crops
        if self.original is not None:
            crops["original"] = self.original.unsqueeze(0)
        return crops

    def split(self, size: int) -> Iterator[Views]:
        """The same views of ``size`` images at a time."""
        # Each field with the dimension in which its images lie.
        dims = {"global_crops": 1, "local_crops": 1, "original": 0}
        present = {name: crops for name, crops in vars(self).items() if crops is not None}
        parts = [crops.split(size, dims[name]) for name, crops in present.items()]
        for crops in zip(*parts, strict=True):
            yield Views(**dict(zip(present, crops, strict=True)))


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

    Args:
        images: uint8 [B, 3, S, S], each image top-left on its canvas.
        sizes: int64 [B, 2], the height and width in pixels of each.
        first: the place of the first image in the global batch, of which ``images`` may be a part.
        needs: the fields of Views to make.
    """
    sizes = sizes.cpu()
    canvas = images.shape[-1]
    assert images.dtype == torch.uint8, images.dtype
    assert images.shape == (len(sizes), 3, canvas, canvas), images.shape

    # Half precision would round the pixels below 8 bits.
    with torch.autocast(images.device.type, enabled=False):
        pixels = image_ops.to_pixels(images)

        def stack(indices: range, size: int) -> Tensor:
            crops = image_ops.empty(len(indices), len(sizes), 3, size, size, device=images.device)
            for index, out in zip(indices, crops, strict=True):
                augment(pixels, draw(sizes, config, seed, step, index, first), out, config.resize)
            return crops

        # Views are numbered globals first. A view that is not needed keeps its number.
        num_views = config.num_global + config.num_local
        made = {}
        if "global_crops" in needs:
            made["global_crops"] = stack(range(config.num_global), config.global_size)
        if "local_crops" in needs:
            made["local_crops"] = stack(range(config.num_global, num_views), config.local_size)
        if "original" in needs:
            made["original"] = squash(pixels, sizes, config.global_size)
        return Views(**made)


def augment(pixels: Tensor, params: ViewParams, out: Tensor, resize: str = "bilinear") -> None:
    """Write one view of ``pixels`` to ``out`` [B, 3, g, g]. ``resize``: of ``ViewsConfig``.

    Only the samples that an operation was drawn for go through it.
    """
    count, _, size, _ = out.shape
    device = pixels.device
    places, weights = image_ops.resampling_taps(params.boxes, params.flips, size, device, resize)
    factors = send(params.jitter_factors, device)
    sigmas = send(params.blur_sigmas, device)

    # Jittered samples lie together, and blurred ones too, so that most parts go through an
    # operation whole or not at all.
    blurred = params.blur.byte()
    grouped = torch.where(params.jitter, blurred, 3 - blurred).argsort(stable=True)
    part_size = count if pixels.is_cuda else max(1, CACHED_PIXELS // size**2)

    order = params.jitter_order
    radius = params.blur_radius
    for part in grouped.split(part_size):
        rows = send(part, device)
        images = image_ops.resample(pixels, rows, places[:, rows], weights[:, rows], resize)
        apply(image_ops.jitter_colors, images, params.jitter[part], factors[rows], order=order)
        apply(image_ops.to_gray, images, params.gray[part])
        apply(image_ops.blur, images, params.blur[part], sigmas[rows], radius=radius)
        apply(image_ops.solarize, images, params.solarize[part])
        put(normalize(images), out, rows)


def apply(
    operation: Callable[..., Tensor],
    images: Tensor,
    drawn: Tensor,
    *arguments: Tensor,
    **settings: Any,
) -> None:
    """Change those of ``images`` that ``drawn`` (bool, on the CPU) says, in place.

    ``arguments`` have a row for each image.
    """
    rows = drawn.nonzero()[:, 0]
    if not len(rows):
        return

    # Rows that lie together are changed where they lie; others are copied out and back.
    start = rows[0].item()
    stop = rows[-1].item() + 1
    if stop - start == len(rows):
        theirs = [argument[start:stop] for argument in arguments]
        operation(images[start:stop], *theirs, **settings)
    else:
        on_device = send(rows, images.device)
        theirs = [argument[on_device] for argument in arguments]
        changed = operation(images.index_select(0, on_device), *theirs, **settings)
        put(changed, images, on_device)


def put(images: Tensor, out: Tensor, rows: Tensor) -> None:
    """out[rows] = images, all on one device."""
    if images.is_cuda:
        out.index_copy_(0, rows, images)
        return

    # On a CPU torch's own index_copy_ goes value by value.
    for row, image in zip(rows.tolist(), images, strict=True):
        out[row].copy_(image)


def squash(pixels: Tensor, sizes: Tensor, size: int) -> Tensor:
    """The whole images, normalised: [B, 3, size, size]."""
    whole = torch.cat([torch.zeros_like(sizes), sizes], dim=1)
    unflipped = torch.zeros(len(sizes), dtype=torch.bool)
    taps = image_ops.resampling_taps(whole, unflipped, size, pixels.device)

    everyone = torch.arange(len(pixels), device=pixels.device)
    return normalize(image_ops.resample(pixels, everyone, *taps))


def normalize(images: Tensor) -> Tensor:
    """[0, 1] -> [-1, 1], in place: mean and standard deviation 0.5."""
    return torch.add(torch.tensor(-1.0), images, alpha=2, out=images)


# ---- what is random, on the CPU so that every device gets the same ----


@dataclass(frozen=True)
class ViewParams:
    """One view of a batch, on the CPU.

    ``jitter``, ``gray``, ``blur``, ``solarize`` bool [B]: which samples go through it.
    """

    boxes: Tensor  # [B, 4] int64: top, left, height, width
    flips: Tensor  # [B] bool
    jitter: Tensor

    # A permutation of brightness, contrast, saturation, hue: one for the view.
    jitter_order: list[int]
    jitter_factors: Tensor  # [B, 4] fp32: three factors, then the shift of the hue in turns
    gray: Tensor
    blur: Tensor
    blur_sigmas: Tensor  # [B] fp32, pixels of the view
    blur_radius: int  # pixels of the view
    solarize: Tensor


def draw(
    sizes: Tensor, config: ViewsConfig, seed: int, step: int, view: int, first: int = 0
) -> ViewParams:
    """What view ``view`` (globals first, then locals) of a step does to a batch of images.

    ``sizes`` int64 [B, 2]: their heights and widths in pixels. ``first``: the place of the first of
    them in the global batch.
    """
    is_global = view < config.num_global
    if is_global:
        size = config.global_size
        area = config.global_area
        blur_prob = config.blur_probs[min(view, 1)]
    else:
        size = config.local_size
        area = config.local_area
        blur_prob = config.blur_probs[2]

    # DINO solarises every global view but the first, which it always blurs.
    solarize_prob = config.solarize_prob if is_global and view > 0 else 0.0

    # The order is drawn first: the generator goes on with the numbers of the first block.
    generator = seeded(seed, step, view)
    order = torch.randperm(4, generator=generator).tolist()

    # A row of numbers for each sample, so that a sample's do not depend on how many others there
    # are. All are drawn, whether they are needed or not.
    counts = [1, 1, 1, 1, 1, 4, 1, 2 + 2 * CROP_TRIES]
    numbers = table(first, len(sizes), sum(counts), generator, (seed, step, view, STREAM)).T
    columns = numbers.split(counts)
    (flip,), (jitter,), (gray,), (blur,), (solarize,), factors, (sigma,), box = columns

    # Uniform around what changes nothing: a factor of 1, and a hue shift of 0.
    neutral = torch.tensor((1, 1, 1, 0), dtype=torch.float64)[:, None]
    reach = torch.tensor(config.jitter, dtype=torch.float64)[:, None]
    factors = neutral + reach * (2 * factors - 1)
    factors[:3].clamp_min_(0)

    # A border reflects at most the whole view.
    low, high = blur_sigmas(config, size)
    blur_radius = min(max(1, math.ceil(BLUR_REACH * high)), size - 1)

    return ViewParams(
        boxes=draw_boxes(sizes, area, box),
        flips=flip < config.flip_prob,
        jitter=jitter < config.jitter_prob,
        jitter_order=order,
        jitter_factors=factors.T.float(),
        gray=gray < config.gray_prob,
        blur=blur < blur_prob,
        blur_sigmas=(low + (high - low) * sigma).float(),
        blur_radius=blur_radius,
        solarize=solarize < solarize_prob,
    )


def blur_sigmas(config: ViewsConfig, size: int) -> tuple[float, float]:
    """The least and the largest sigma at a view of ``size`` pixels a side, in pixels."""
    low, high = config.blur_sigma
    if not config.blur_size:
        return low, high
    return low * size / config.blur_size, high * size / config.blur_size


def seeded(*key: int) -> torch.Generator:
    """A generator of its own for each sequence of numbers."""
    (state,) = np.random.SeedSequence(key).generate_state(1, np.uint64).tolist()
    return torch.Generator().manual_seed(state >> 1)


def table(
    first: int, count: int, columns: int, generator: torch.Generator, key: tuple[int, ...]
) -> Tensor:
    """Rows ``first`` to ``first + count`` of an endless table of uniform numbers on [0, 1).

    Returns float64 [count, columns]. ``generator`` draws its first BLOCK rows, and generators of
    ``key`` and its number each further block: of a large global batch a process draws little
    more than its own part.
    """
    end = first + count
    parts = []
    for block in range(first // BLOCK, -(-end // BLOCK)):
        start = min(max(first - block * BLOCK, 0), BLOCK)
        stop = min(max(end - block * BLOCK, 0), BLOCK)
        source = seeded(*key, block) if block else generator

        # A generator always starts at its first row, so rows before ours are drawn and dropped.
        rows = torch.rand(stop, columns, generator=source, dtype=torch.float64)
        parts.append(rows[start:])
    return torch.cat(parts)


def draw_boxes(sizes: Tensor, area: tuple[float, float], numbers: Tensor) -> Tensor:
    """Crop boxes with the distribution of torchvision's RandomResizedCrop.

    Returns int64 [B, 4]: top, left, height, width. ``numbers`` float64 [2 + 2 * CROP_TRIES, B],
    uniform on [0, 1): two place the box, then an area and an aspect for each try.
    """
    height, width = sizes.double().T
    (down, right), areas, aspects = numbers.split([2, CROP_TRIES, CROP_TRIES])

    # All tries at once, [CROP_TRIES, B]; the first that fits into the image is taken.
    low = math.log(ASPECT[0])
    high = math.log(ASPECT[1])
    areas = height * width * (area[0] + (area[1] - area[0]) * areas)
    aspects = torch.exp(low + (high - low) * aspects)
    heights = torch.sqrt(areas / aspects).round()
    widths = torch.sqrt(areas * aspects).round()
    fits = (heights >= 1) & (heights <= height) & (widths >= 1) & (widths <= width)
    first = fits.byte().argmax(dim=0, keepdim=True)
    fit_height = heights.gather(0, first)[0]
    fit_width = widths.gather(0, first)[0]

    # Where none fits the image is long and thin: the largest centred box of an allowed aspect.
    any_fits = fits.any(dim=0)
    tallest = torch.minimum(height, (width / ASPECT[0]).round())
    widest = torch.minimum(width, (height * ASPECT[1]).round())
    box_height = torch.where(any_fits, fit_height, tallest)
    box_width = torch.where(any_fits, fit_width, widest)

    # A box of the drawn size has as many places as pixels are left beside it, and one more.
    below = height - box_height
    beside = width - box_width
    top = torch.where(any_fits, down * (below + 1), below / 2).floor()
    left = torch.where(any_fits, right * (beside + 1), beside / 2).floor()
    return torch.stack([top, left, box_height, box_width], dim=1).long()
