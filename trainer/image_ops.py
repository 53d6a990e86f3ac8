"""Image operations on a batch, each sample with its own parameters, on any device.

Flow: ``resample`` makes the batch (crop, resize and flip at once); the other operations then change it in place and return
it: ``jitter_colors`` -> ``to_gray`` -> ``blur`` -> ``solarize``. Each equals the torchvision function of its name (v2
functional) on float pictures in [0, 1], which takes one sample at a time.

Shapes: n samples, [n, 3, h, w] fp32 in [0, 1], channels red, green, blue.
"""

from __future__ import annotations

import torch
from torch import Tensor

GRAY = (0.2989, 0.587, 0.114)  # luma of red, green and blue, in torchvision's digits


def to_pixels(images: Tensor) -> Tensor:
    """uint8 [n, 3, h, w] -> fp32 in [0, 1], laid out in memory as [n, h, 3, w], which makes ``resample`` two plain matmuls."""
    return images.transpose(1, 2).to(torch.float32, memory_format=torch.contiguous_format).div_(255).transpose(1, 2)


def resample(pixels: Tensor, boxes: Tensor, flips: Tensor, size: int) -> Tensor:
    """Crop, antialiased bilinear resize and horizontal flip: [n, 3, h, w] of ``to_pixels`` -> [n, 3, size, size].

    ``boxes`` int64 [n, 4] (top, left, height, width), ``flips`` bool [n]. Separable, so it is rows @ picture @ columns^T with
    one matrix of weights a sample and an axis. Equals ``resized_crop(antialias=True)``: nothing outside the box contributes.
    """
    count, _, height, width = pixels.shape
    top, left, box_height, box_width = boxes.to(pixels.device).T
    flips = flips.to(pixels.device)
    rows = resampling_weights(top, box_height, torch.zeros_like(flips), height, size)
    columns = resampling_weights(left, box_width, flips, width, size)
    low = torch.bmm(rows, pixels.transpose(1, 2).reshape(count, height, 3 * width))
    small = torch.bmm(low.view(count, size * 3, width), columns.mT)
    return small.view(count, size, 3, size).transpose(1, 2)


def resampling_weights(starts: Tensor, lengths: Tensor, backwards: Tensor, extent: int, size: int) -> Tensor:
    """fp32 [n, size, extent]: rows of weights (sum 1) that make ``size`` pixels of ``lengths`` pixels beginning at ``starts``.

    A triangle as wide as an output pixel, and at least as wide as an input pixel: the antialias filter of Pillow and torch.
    """
    index = torch.arange(max(size, extent), device=starts.device, dtype=torch.float64) + 0.5
    scale = lengths[:, None] / size  # input pixels an output pixel
    centers = torch.where(backwards[:, None], index[:size].flip(0), index[:size]) * scale
    places = index[:extent] - starts[:, None]
    places = torch.where((places > 0) & (places < lengths[:, None]), places, torch.inf)  # infinitely far away: weight 0
    width = scale.clamp_min(1)
    weights = (places / width).float()[:, None, :] - (centers / width).float()[:, :, None]
    weights.abs_().neg_().add_(1).relu_()
    return weights.div_(weights.sum(-1, keepdim=True))


def jitter_colors(images: Tensor, factors: Tensor, order: list[int]) -> Tensor:
    """Brightness, contrast and saturation by a factor, hue by a shift: ``factors`` [4, n], applied in ``order``."""
    operations = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)
    for index in order:
        operations[index](images, factors[index].view(-1, 1, 1, 1))
    return images


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Away from black; ``factor`` is [n, 1, 1, 1] here and below."""
    return images.mul_(factor).clamp_(0, 1)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Away from the mean grey of each picture."""
    mean = images.mean((2, 3), keepdim=True)  # the mean of the grey is the grey of the mean
    return images.mul_(factor).add_((1 - factor) * luma(mean)).clamp_(0, 1)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Away from the grey of each pixel."""
    gray = luma(images)
    return images.mul_(factor).add_(gray.mul_(1 - factor)).clamp_(0, 1)


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue by ``shift`` turns; value v (the highest channel) and chroma c (highest - lowest) stay.

    The hue is the angle on the colour hexagon, red at 0; with d the distance in turns from it to a channel's own hue (red 0,
    green 1/3, blue 2/3), that channel is v up to d = 1/6, v - c from d = 1/3 on, and linear between.
    """
    red, green, blue = images.unbind(1)
    high = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = high - low
    # |hue| = (1 + g + b - r) / 6 with the channels scaled to 0..1, and green's side is the positive one: the six cases of
    # the textbook in one, without a branch a pixel. Grey has no hue and any will do, as its chroma is 0.
    hue = (green + blue).sub_(red).add_(high).sub_(low, alpha=2).div_(chroma.clamp_min(1e-30).mul_(6))
    hue.copysign_(green - blue).add_(shift[:, 0])
    own = torch.arange(3, device=images.device).view(3, 1, 1) / 3
    torch.sub(hue[:, None], own, out=images)
    images.sub_(images.round()).abs_().mul_(6).sub_(1).clamp_(0, 1)
    return images.mul_(chroma.neg_()[:, None]).add_(high[:, None])


def to_gray(images: Tensor) -> Tensor:
    """Three channels of luma."""
    return images.copy_(luma(images))


def luma(images: Tensor) -> Tensor:
    """[n, 3, h, w] -> [n, 1, h, w]."""
    red, green, blue = images.split(1, dim=1)
    return (red * GRAY[0]).add_(green, alpha=GRAY[1]).add_(blue, alpha=GRAY[2])


def blur(images: Tensor, sigmas: Tensor, radius: int) -> Tensor:
    """Gaussian blur with ``sigmas`` [n] in pixels, 2 * radius + 1 taps and reflected borders (radius < h = w)."""
    size = images.shape[-1]
    index = torch.arange(size, device=images.device)
    taps = torch.arange(-radius, radius + 1, device=images.device)
    source = (index + taps[:, None]).abs()  # where a tap of an output pixel reads, reflected at both borders
    source = size - 1 - (size - 1 - source).abs()
    reads = (source[:, :, None] == index).to(images).flatten(1)  # [taps, size * size]
    kernels = torch.softmax(-((taps / sigmas[:, None]) ** 2) / 2, dim=1)  # [n, taps]
    matrices = (kernels @ reads).view(-1, size, size)
    across = torch.bmm(images.flatten(1, 2), matrices.mT).view_as(images)
    return torch.matmul(matrices[:, None], across, out=images)


def solarize(images: Tensor) -> Tensor:
    """Invert what is above one half."""
    return images.sub_(0.5).abs_().neg_().add_(0.5)  # x above 1/2 -> 1 - x, the others unchanged
