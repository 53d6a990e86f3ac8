"""What happens to an image before a model sees it: one pipeline for every kind of checkpoint.

Flow: an adapter translates its library's configuration into an ``ImagePipeline``;
``pipeline(image)`` -> [3, S, S]; ``pipeline.as_dict()`` goes into the protocol and is hashed.

Pillow resizes, as in the code that trained these models. Sizes and offsets are those of
torchvision's and transformers' own transforms, so that their pixels are reproduced bit for bit.

Shapes: S pixels a side of what the model sees.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
RESIZES = ("squash", "shortest")
CROPS = ("none", "center", "center_floor")
# Of an image after resizing: more are a strip, which the short side made huge, as 20,000 x 2 pixels
# become 2,240,000 x 224. Of a strip only what the crop keeps is resized.
MOST_PIXELS = 1 << 26
Color = tuple[float, float, float]  # a number each of red, green and blue


@dataclass(frozen=True)
class ImagePipeline:
    """RGB -> resize -> centre crop -> [0, 1] -> (x - mean) / std.

    An image is made RGB first, because Pillow resizes an image with a palette by its nearest index,
    and weighs colours by transparency.
    """

    size: int  # S
    mean: Color
    std: Color

    # "squash": both sides become resize_size. "shortest": the shorter side does, and the other one
    # follows in proportion, cut to whole pixels.
    resize: str = "squash"
    resize_size: int | None = None  # pixels; None: size

    # "center": the offset is rounded (torchvision, timm, open_clip). "center_floor": it is cut to
    # whole pixels (transformers). The two may differ by one pixel where the margin is odd.
    crop: str = "none"
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        assert self.resize in RESIZES, self
        assert self.crop in CROPS, self
        assert self.interpolation in INTERPOLATIONS, self

        # without a crop nothing later would bring the image to S x S
        makes_square = self.resize == "squash" and self.resize_size in (None, self.size)
        assert makes_square or self.crop != "none", self

    def __call__(self, image: Image.Image) -> Tensor:
        """An image of any size and mode -> [3, S, S] fp32."""
        image = image.convert("RGB")

        target = self._resized(*image.size)
        is_strip = target[0] * target[1] > MOST_PIXELS
        if is_strip and self.crop != "none" and min(target) >= self.size:
            image = self._crop_of_a_strip(image, target)
            return normalized(image, self.mean, self.std)

        if image.size != target:
            image = image.resize(target, INTERPOLATIONS[self.interpolation])
        if self.crop != "none":
            image = self._cropped(image)

        return normalized(image, self.mean, self.std)

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON, for the protocol."""
        # Left out where it says nothing new: the protocol is hashed, and two ways to write the same
        # pipeline must have the same hash.
        resize_size = {}
        if self.resize_size not in (None, self.size):
            resize_size["resize_size"] = self.resize_size

        return {
            "resize": self.resize,
            **resize_size,
            "size": self.size,
            "interpolation": self.interpolation,
            "antialias": True,
            "crop": self.crop,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height after resizing, in pixels."""
        side = self.resize_size or self.size
        if self.resize == "squash":
            return side, side
        if width <= height:
            return side, int(side * height / width)
        return int(side * width / height), side

    def _cropped(self, image: Image.Image) -> Image.Image:
        """The centre [S, S]; an image smaller than that is set on black, as both libraries do."""
        left, top = map(self._offset, image.size)

        # Pillow fills with black where the box reaches beyond the image.
        return image.crop((left, top, left + self.size, top + self.size))

    def _crop_of_a_strip(self, image: Image.Image, target: tuple[int, int]) -> Image.Image:
        """The centre [S, S] of ``image`` resized to ``target``, without the rest of it.

        Pixels may differ by 1 of 255 from those of the whole, because Pillow keeps the box that is
        resized in fp32.
        """
        bounds = []
        inner = []
        for side, resized in zip(image.size, target, strict=True):
            scale = side / resized
            start = self._offset(resized) * scale
            stop = start + self.size * scale

            # Lanczos, the widest filter, reads 3 pixels around each; they are of the image, or of
            # the result where the image is made smaller.
            margin = math.ceil(3 * max(scale, 1)) + 1
            first = max(0, math.floor(start) - margin)
            bounds.append((first, min(side, math.ceil(stop) + margin)))
            inner.append((start - first, min(stop, side) - first))

        (left, right), (top, bottom) = bounds
        (x_start, x_stop), (y_start, y_stop) = inner
        part = image.crop((left, top, right, bottom))
        box = (x_start, y_start, x_stop, y_stop)
        return part.resize((self.size, self.size), INTERPOLATIONS[self.interpolation], box)

    def _offset(self, side: int) -> int:
        """Pixels of a side that lie before the crop; fewer than 0 where the side is too short."""
        margin = side - self.size
        if self.crop == "center_floor":
            return margin // 2

        # torchvision pads a short side first, then rounds, to the even number at one half as Python
        # does
        return round(margin / 2) if margin > 0 else -(-margin // 2)


def normalized(image: Image.Image, mean: Color, std: Color) -> Tensor:
    """An RGB image -> (x - mean) / std [3, H, W] fp32, where x lies in [0, 1]."""
    # As torchvision's `pil_to_tensor`, whose import takes longer than torch's. Scaled first and
    # normalised after, as the libraries do: one operation for both would round otherwise.
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div_(255)
    return pixels.sub_(torch.tensor(mean).view(3, 1, 1)).div_(torch.tensor(std).view(3, 1, 1))
