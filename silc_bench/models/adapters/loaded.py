"""What the models of all libraries have in common: a tower for images, and what surrounds it.

Flow: an adapter builds a tower and an image pipeline -> ``LoadedModel``, or ``DenseLoadedModel``
where features have places on the image; text is the adapter's own.

A tower is the images' side of a network:

- ``feature_points``: of interface.FEATURE_POINTS, with their widths;
- ``lacking``: as in interface.ExplainedModel;
- ``step``: pixels of which each side is a multiple, but for the trained size, whose rest may belong
  to no patch (27 patches of 14 pixels in 384); 0: no other size than that;
- ``encode(images, point)``: [B, 3, H, W] -> [B, feature_points[point]].

A dense one has ``patch_size``, ``dense_methods`` and ``dense(images, methods)``, [B, 3, H, W] ->
{method: [B, h, w, D or W]}, too, and need not encode "mean_patch".

Shapes: B images, H x W pixels, h x w patches, D embedding, W width of the tower.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor, nn

from silc_bench.errors import UserError
from silc_bench.models.patch_features import check_methods
from silc_bench.models.weights.revision import revision_of


class LoadedModel:
    """An ImageModel over a network of some library."""

    libraries: tuple[str, ...]

    def __init__(
        self,
        name: str,
        network: Any,
        tower: Any,
        pipeline: Any,
        parts: Mapping[str, nn.Module],
        settings: dict[str, Any],
    ):
        """As attributes, but for ``parts``: what stands behind the embeddings.

        Args:
            settings: what changes the embeddings and is no weight; it belongs to the revision.
        """
        self.name = name
        self.network = network
        self.tower = tower
        self.settings = settings
        self.revision = revision_of(parts, settings)
        weights = [weight for part in parts.values() for weight in part.parameters()]
        self.num_params = sum(weight.numel() for weight in weights)

        self.feature_points = tower.feature_points
        self.embed_dim = tower.feature_points["pooled"]
        self.lacking = tower.lacking

        self.pipeline = pipeline
        self.image_protocol = pipeline.as_dict()
        self.image_size = pipeline.size

    def preprocess(self, image: Image.Image) -> Tensor:
        return self.pipeline(image)

    def encode_image(self, images: Tensor, point: str = "pooled") -> Tensor:
        """What ``preprocess`` gives, in a batch -> [B, feature_points[point]].

        Raises:
            UserError: a size that the tower does not take.
        """
        self._check_size(images)
        return self.tower.encode(images, point).float()

    def to(self, device: torch.device) -> Self:
        self.network.to(device)
        return self

    def _check_size(self, images: Tensor) -> None:
        height, width = images.shape[-2:]
        side = self.image_size
        step = self.tower.step
        if (height, width) == (side, side):
            return

        problem = f"images of {height} x {width} pixels do not fit"
        if not step:
            fix = f"give images of {side} x {side} pixels"
            raise UserError(problem, about=self.name, fix=fix)
        if height % step or width % step:
            fix = f"give sides that are multiples of the patch, {step} pixels"
            raise UserError(problem, about=self.name, fix=fix)


class DenseLoadedModel(LoadedModel):
    """A DenseModel."""

    def __init__(self, *args: Any, **others: Any):
        super().__init__(*args, **others)
        self.patch_size = self.tower.patch_size
        self.dense_methods = self.tower.dense_methods

    def encode_image(self, images: Tensor, point: str = "pooled") -> Tensor:
        if point == "mean_patch":
            return self.encode_dense(images, ("tokens",))["tokens"].mean(dim=(1, 2))
        return super().encode_image(images, point)

    def encode_dense(self, images: Tensor, methods: Sequence[str]) -> dict[str, Tensor]:
        """[B, 3, H, W] -> {method: [B, h, w, D or W]}, [B, h, w, N * W] for "tokens:N".

        Raises:
            UserError: as ``encode_image``, or a method that this tower cannot do.
        """
        check_methods(self.name, methods, self.dense_methods, self.lacking)
        self._check_size(images)
        return self.tower.dense(images, methods)
