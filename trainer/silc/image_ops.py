"""Image operations on a batch, each sample with its own parameters, on any device.

Flow: ``to_pixels`` -> ``resample`` makes the batch (crop, resize and flip at once,
read by ``resampling_taps``). The other operations then change it in place and
return it: ``jitter_colors`` -> ``to_gray`` -> ``blur`` -> ``solarize``. Each equals
the torchvision function of its name (v2 functional) on float images in [0, 1],
which takes one sample at a time.

Shapes: n samples, [n, 3, h, w] fp32 in [0, 1], channels red, green, blue.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import channel_shuffle, embedding_bag

from silc_bench.trainer.device import send

BICUBIC = -0.5  # Keys' parameter; Pillow's, and torch's where it antialiases
GRAY = (0.2989, 0.587, 0.114)  # luma of red, green and blue, in torchvision's digits


def empty(*shape: int, device: torch.device) -> Tensor:
    """fp32, not initialised."""
    if device.type != "cpu":
        return torch.empty(shape, device=device)
    # numpy asks for huge pages; the first touch of small ones takes long.
    return torch.from_numpy(np.empty(shape, dtype=np.float32))


def to_pixels(images: Tensor) -> Tensor:
    """uint8 [n, 3, h, w] -> fp32 in [0, 1], in memory as [n, w, 3, h].

    So each column lies together, as ``resample`` wants it.
    """
    count, channels, height, width = images.shape
    pixels = empty(count, width, channels, height, device=images.device)
    return pixels.copy_(images.permute(0, 3, 1, 2)).div_(255).permute(0, 2, 3, 1)


def resampling_taps(
    boxes: Tensor, flips: Tensor, size: int, device: torch.device, kind: str = "bilinear"
) -> tuple[Tensor, Tensor]:
    """What ``resample`` reads: columns and rows, int64 [2, n, size, t], and their fp32 weights.

    The weights of an output pixel have the sum 1. They are a triangle, or Keys' cubic, that is
    stretched by the size of an output pixel in input pixels where that is above 1: the antialias
    filters of Pillow and torch.

    Args:
        boxes: int64 [n, 4] (top, left, height, width), on the CPU.
        flips: bool [n], on the CPU.
        size: output pixels a side.
        device: of the answer.
        kind: "bilinear" or "bicubic".
    """
    # How far the filter reaches to each side, and how many pixels it covers at most.
    support = {"bilinear": 1, "bicubic": 2}[kind]
    taps = math.ceil(2 * support * max(1, boxes[:, 2:].max().item() / size))

    # [2, n, 1, 1]: columns first, then rows, as ``resample`` takes them. Only columns are flipped.
    starts = send(boxes[:, [1, 0]].T, device)[:, :, None, None]
    lengths = send(boxes[:, [3, 2]].T, device)[:, :, None, None]
    unflipped = torch.zeros_like(flips)
    backwards = send(torch.stack([flips, unflipped]), device)[:, :, None, None]

    # In input pixels, from the start of the box. fp64 until the difference is taken.
    scale = lengths.double() / size
    stretch = scale.clamp_min(1)
    centers = torch.arange(size, device=device, dtype=torch.float64)[:, None] + 0.5
    centers = torch.where(backwards, size - centers, centers) * scale
    first = torch.ceil(centers - support * stretch - 0.5)

    # Distances in stretched pixels. A triangle is 1 - distance, and 0 beyond.
    index = torch.arange(taps, device=device)
    weights = ((first + 0.5 - centers) / stretch).float() + index / stretch.float()
    weights.abs_()
    weights = cubic(weights) if kind == "bicubic" else weights.neg_().add_(1).clamp_min_(0)

    # Nothing outside the box contributes: the weights inside make up for it.
    places = first.long() + index
    inside = places.clamp_min(0).minimum(lengths - 1)
    weights.masked_fill_(inside != places, 0)
    return inside.add_(starts), weights.div_(weights.sum(-1, keepdim=True))


def cubic(distance: Tensor) -> Tensor:
    """Keys' cubic convolution, from 1 at 0 through 0 at 1 to 0 from 2 on."""
    x, a = distance, BICUBIC
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return torch.where(x < 1, near, far).masked_fill_(x >= 2, 0)


def resample(
    pixels: Tensor, which: Tensor, places: Tensor, weights: Tensor, kind: str = "bilinear"
) -> Tensor:
    """Crop, antialiased resize and horizontal flip, as ``resized_crop(antialias=True)``.

    The cubic filter can leave [0, 1]. Values are clamped after the columns and after the rows, as
    in Pillow, which stores bytes in between.

    Args:
        pixels: [N, 3, h, w] of ``to_pixels``.
        which: int64 [n], the images to take.
        places: of the ``resampling_taps`` of these images.
        weights: of the same taps.
        kind: theirs.

    Returns:
        [n, 3, size, size].
    """
    _, _, height, width = pixels.shape
    _, count, size, _ = places.shape

    # Separable: sums of columns first, then of rows, from a table with a column of three channels
    # in each row.
    table = pixels.permute(0, 3, 1, 2).reshape(-1, 3 * height)
    columns = places[0] + width * which[:, None, None]
    narrow = weighted_sums(table, columns, weights[0])  # [n, size, 3 * h]
    if kind == "bicubic":
        narrow.clamp_(0, 1)

    upright = transposed(narrow).view(-1, size)
    images = weighted_sums(upright, *by_plane(places[1], weights[1], height))
    if kind == "bicubic":
        images.clamp_(0, 1)
    return images.view(count, 3, size, size)


def weighted_sums(table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """Sums of rows of ``table`` [r, f]: indices [..., t] and weights [..., t] -> [..., f].

    A value costs t multiplications; as a product with a matrix that is zero but for t values a row
    it would cost r.
    """
    flat_weights = weights.flatten(0, -2)
    sums = embedding_bag(rows.flatten(0, -2), table, mode="sum", per_sample_weights=flat_weights)
    return sums.unflatten(0, rows.shape[:-1])


def by_plane(rows: Tensor, weights: Tensor, height: int) -> tuple[Tensor, Tensor]:
    """Rows of an image and their weights, for a table of n images of three planes.

    [n, s, t] -> [n, 3, s, t]; each plane has ``height`` rows in the table.
    """
    first = height * torch.arange(3 * len(rows), device=rows.device).view(-1, 3, 1, 1)
    places = rows[:, None] + first
    return places, weights[:, None].expand_as(places)


def transposed(matrices: Tensor) -> Tensor:
    """[n, a, b] -> [n, b, a], contiguous."""
    if matrices.is_cuda:
        return matrices.mT.contiguous()

    # A shuffle of a * b channels in a groups is the same, and torch does it by blocks in registers:
    # two to five times faster than its copy.
    count, rows, columns = matrices.shape
    channels_last = matrices.view(1, count, 1, rows * columns).permute(0, 3, 1, 2)
    shuffled = channel_shuffle(channels_last, rows).permute(0, 2, 3, 1)
    return shuffled.reshape(count, columns, rows)


def jitter_colors(images: Tensor, factors: Tensor, order: list[int]) -> Tensor:
    """Brightness, contrast and saturation by a factor, hue by a shift, applied in ``order``.

    ``factors`` [n, 4], in the order of the names above.
    """
    operations = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)
    for index in order:
        operations[index](images, factors[:, index].reshape(-1, 1, 1, 1))
    return images


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Away from black; ``factor`` is [n, 1, 1, 1] here and below."""
    return images.mul_(factor).clamp_(0, 1)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Away from the mean grey of each image."""
    mean = images.mean((2, 3), keepdim=True)  # the mean of the grey is the grey of the mean
    return images.mul_(factor).add_((1 - factor) * luma(mean)).clamp_(0, 1)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Away from the grey of each pixel."""
    gray = luma(images)
    return images.lerp_(gray, 1 - factor).clamp_(0, 1)


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue by ``shift`` turns.

    Value v (the highest channel) and chroma c (highest - lowest) stay. The hue is the angle on the
    colour hexagon, red at 0; with d the distance in turns from it to a channel's own hue (red 0,
    green 1/3, blue 2/3), that channel is v up to d = 1/6, v - c from d = 1/3 on, and linear
    between.
    """
    red, green, blue = images.unbind(1)
    high = images.amax(1)
    low = images.amin(1)
    chroma = high - low

    # |hue| = (1 + g + b - r) / 6 with the channels scaled to 0..1, and green's side is the positive
    # one: the six cases of the textbook in one, without a branch a pixel. Grey has no hue and any
    # will do, as its chroma is 0.
    sixfold = (green + blue).sub_(red).add_(high).sub_(low, alpha=2)
    hue = sixfold.div_(chroma.clamp_min(1e-30).mul_(6))
    hue.copysign_(green - blue).add_(shift[:, 0])

    # 2.5 turns more, so that every difference is positive, as frac_ needs it. The half turn makes
    # it 0.5 at a channel's own hue, and |6 frac - 3| - 1 the fraction of the chroma to take away.
    own = torch.arange(3, device=images.device).view(3, 1, 1) / 3 - 2.5
    torch.sub(hue[:, None], own, out=images)
    torch.add(torch.tensor(-3.0), images.frac_(), alpha=6, out=images)
    images.abs_().sub_(1).clamp_(0, 1)
    return torch.addcmul(high[:, None], images, chroma[:, None], value=-1, out=images)


def to_gray(images: Tensor) -> Tensor:
    """Three channels of luma."""
    return images.copy_(luma(images))


def luma(images: Tensor) -> Tensor:
    """[n, 3, h, w] -> [n, 1, h, w]."""
    red, green, blue = images.split(1, dim=1)
    return (red * GRAY[0]).add_(green, alpha=GRAY[1]).add_(blue, alpha=GRAY[2])


def blur(images: Tensor, sigmas: Tensor, radius: int) -> Tensor:
    """Gaussian blur with ``sigmas`` [n] in pixels, 2 * radius + 1 taps and reflected borders.

    radius < h = w: a border reflects the whole image at most.
    """
    count = len(images)
    size = images.shape[-1]
    index = torch.arange(0, size, device=images.device)
    taps = torch.arange(-radius, radius + 1, device=images.device)

    # Where a tap of an output pixel reads, [n, size, taps], reflected at both borders.
    rows = (index[:, None] + taps).abs()
    rows = (size - 1 - (size - 1 - rows).abs()).expand(count, -1, -1)
    exponents = -((taps / sigmas[:, None]) ** 2) / 2
    kernels = torch.softmax(exponents, dim=1)[:, None].expand_as(rows)

    # Separable: down the columns of each plane, then across the rows of the transposed image.
    down = weighted_sums(images.view(-1, size), *by_plane(rows, kernels, size))
    upright = transposed(down.view(count, 3 * size, size)).view(-1, 3 * size)
    first = size * torch.arange(count, device=images.device)[:, None, None]
    across = weighted_sums(upright, rows + first, kernels)
    return images.copy_(transposed(across).view_as(images))


def solarize(images: Tensor) -> Tensor:
    """Invert what is above one half."""
    # x above 1/2 -> 1 - x, the others unchanged.
    return images.sub_(0.5).abs_().neg_().add_(0.5)
