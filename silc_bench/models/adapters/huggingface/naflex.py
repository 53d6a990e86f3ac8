"""SigLIP 2 NaFlex: images of their own shape, cut into at most N patches.

An image is resized so that both sides are whole patches, its shape is nearly kept, and as many
patches as possible are used (2502.14786). transformers searches for the scale, because the last
digits of its search decide the size.

So that images make a batch, ``NaflexPipeline`` packs one into a tensor [1 + N, 3 P P]: first the
numbers of rows and columns (then zeros), then the patches row by row, each of P x P pixels with
their three colours last, then zeros. ``unpack`` takes it apart into what the network needs.

There is no dense path: images of one batch have grids of different shapes.

Shapes: B images, N most patches, P pixels a side of a patch, h x w patches, W width of the tower.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from silc_bench.errors import UserError
from silc_bench.models.adapters.huggingface.files import pixel_settings, processor_type
from silc_bench.models.preprocessing import INTERPOLATIONS, Color, normalized


@dataclass(frozen=True)
class NaflexPipeline:
    """RGB -> resize to whole patches -> [0, 1] -> (x - mean) / std -> packed patches."""

    patch_size: int  # P
    max_num_patches: int  # N
    mean: Color
    std: Color
    interpolation: str

    @property
    def size(self) -> int:
        """Pixels a side of a square image."""
        return self._resized(1024, 1024)[0]

    def __call__(self, image: Image.Image) -> Tensor:
        """An image of any size and mode -> [1 + N, 3 P P] fp32."""
        P = self.patch_size
        height, width = self._resized(image.height, image.width)
        h, w = height // P, width // P

        image = image.convert("RGB")
        if image.size != (width, height):
            image = image.resize((width, height), INTERPOLATIONS[self.interpolation])

        pixels = normalized(image, self.mean, self.std)

        # [3, h P, w P] -> [h w, P P 3]: patches row by row, colours last
        patches = pixels.view(3, h, P, w, P).permute(1, 3, 2, 4, 0).reshape(h * w, 3 * P * P)

        packed = torch.zeros(1 + self.max_num_patches, 3 * P * P)
        packed[0, :2] = torch.tensor([h, w])
        packed[1 : 1 + h * w] = patches
        return packed

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON, for the protocol."""
        return {
            "resize": "whole patches, shape kept",
            "patch_size": self.patch_size,
            "max_num_patches": self.max_num_patches,
            "interpolation": self.interpolation,
            "antialias": True,
            "crop": "none",
            "mean": list(self.mean),
            "std": list(self.std),
        }

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width in whole patches, by the library's own search for the scale."""
        from transformers.models.siglip2 import image_processing_siglip2 as siglip2

        return siglip2.get_image_size_for_max_num_patches(
            height, width, self.patch_size, self.max_num_patches
        )


class NaflexTower:
    """The library's own forward pass, padding masked."""

    step = 1  # an image comes as a packed sequence, whose size says nothing

    def __init__(self, network: Any):
        self.vision = network.vision_model
        width = self.vision.config.hidden_size
        self.feature_points = {"pooled": width, "mean_patch": width}
        self.lacking = {"dense": "the images of a batch have grids of different shapes"}

    def encode(self, images: Tensor, point: str) -> Tensor:
        """[B, 1 + N, 3 P P] -> [B, W]."""
        patches, mask, grids = unpack(images)

        # by position, because the names of the arguments have changed over the releases
        output = self.vision(patches, mask, grids)
        if point == "mean_patch":
            is_patch = mask.unsqueeze(-1)
            return (output.last_hidden_state * is_patch).sum(dim=1) / is_patch.sum(dim=1)
        return output.pooler_output


def unpack(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[B, 1 + N, 3 P P] -> patches [B, N, 3 P P], mask [B, N] (1: a patch), grids [B, 2].

    A grid is the numbers of rows and columns.
    """
    grids = images[:, 0, :2].long()
    patches = images[:, 1:]
    mask = torch.arange(patches.shape[1], device=images.device) < grids.prod(dim=1, keepdim=True)
    return patches, mask.long(), grids


def naflex_pipeline(path: Path, settings: dict[str, Any], patch_size: int) -> NaflexPipeline:
    """`Siglip2ImageProcessor`'s configuration -> a NaflexPipeline.

    Args:
        path: the file that ``settings`` come from, for errors.
        settings: of the processor.
        patch_size: the tower's.

    Raises:
        UserError: another processor, other patches than the tower's, or something that is not said.
    """
    kind = processor_type(settings, "Siglip2ImageProcessor")
    if kind != "Siglip2ImageProcessor":
        fix = "bring the Siglip2ImageProcessor of this NaFlex model"
        raise UserError(f"it is of {kind}", about=path, fix=fix)
    if settings.get("patch_size") != patch_size:
        problem = f"it cuts patches of {settings.get('patch_size')} pixels"
        raise UserError(problem, about=path, fix=f"bring that of a tower for {patch_size}")

    # unlike other settings this one has no default that all releases share
    most = settings.get("max_num_patches")
    if type(most) is not int or most < 1:
        fix = "write a number of 1 or more"
        raise UserError(f"max_num_patches is {most!r}", about=path, fix=fix)

    mean, std, interpolation = pixel_settings(path, settings)
    return NaflexPipeline(patch_size, most, mean, std, interpolation)
