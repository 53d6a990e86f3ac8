"""What happens to a picture before a model sees it: one pipeline for every kind of checkpoint,
described as JSON.

Flow: an adapter translates its library's configuration into an ``ImagePipeline``;
``pipeline(picture)`` -> [3, S, S]; ``pipeline.as_dict()`` goes into the protocol and is hashed.
Pillow resizes, as in the code that trained these models; the same sizes and offsets as
torchvision's and transformers' own transforms, so that their pixels are reproduced bit for bit.

Shapes: S pixels a side of what the model sees.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
RESIZES = ("squash", "shortest")
CROPS = ("none", "center", "center_floor")


@dataclass(frozen=True)
class ImagePipeline:
    """RGB -> resize -> centre crop -> [0, 1] -> (x - mean) / std.

    A picture is made RGB first: Pillow resizes a palette picture by its nearest index, and weighs
    colours by transparency.
    """

    size: int  # S
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    # both sides to resize_size; "shortest": the shorter side, the other one in proportion, cut to
    # whole pixels
    resize: str = "squash"
    resize_size: int | None = None  # pixels; None: size
    # "center": offset rounded (torchvision, timm, open_clip); "center_floor": cut to whole pixels
    # (transformers)
    crop: str = "none"
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        if (
            self.resize not in RESIZES
            or self.crop not in CROPS
            or self.interpolation not in INTERPOLATIONS
        ):
            raise ValueError(f"no such image pipeline: {self}")
        if self.crop == "none" and (
            self.resize != "squash" or self.resize_size not in (None, self.size)
        ):
            raise ValueError(
                f"without a crop the picture must be squashed to its final size: {self}"
            )

    def __call__(self, image: Image.Image) -> Tensor:
        """A picture of any size and mode -> [3, S, S] fp32."""
        image = image.convert("RGB")
        target = self._resized(*image.size)
        if image.size != target:
            image = image.resize(target, INTERPOLATIONS[self.interpolation])
        if self.crop != "none":
            image = self._cropped(image)
        pixels = tv.pil_to_tensor(image).float().div_(255)
        return pixels.sub_(torch.tensor(self.mean).view(3, 1, 1)).div_(
            torch.tensor(self.std).view(3, 1, 1)
        )

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON, for the protocol."""
        resize_size = (
            {} if self.resize_size in (None, self.size) else {"resize_size": self.resize_size}
        )
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
        side = self.resize_size or self.size
        if self.resize == "squash":
            return side, side
        if width <= height:
            return side, int(side * height / width)
        return int(side * width / height), side

    def _cropped(self, image: Image.Image) -> Image.Image:
        """The centre [S, S]; where the picture is smaller than that it is set on black, as both
        libraries do.
        """
        width, height = image.size
        if self.crop == "center_floor":
            left, top = (width - self.size) // 2, (height - self.size) // 2
        elif min(width, height) >= self.size:
            left, top = round((width - self.size) / 2.0), round((height - self.size) / 2.0)
        else:  # torchvision pads first, then crops what is left over
            pad_left, pad_top = max(0, (self.size - width) // 2), max(0, (self.size - height) // 2)
            padded_width, padded_height = max(width, self.size), max(height, self.size)
            left = round((padded_width - self.size) / 2.0) - pad_left
            top = round((padded_height - self.size) / 2.0) - pad_top
        return image.crop((left, top, left + self.size, top + self.size))
