"""Position embeddings of a trained grid for pictures of another size.

Shapes: h x w patches, W width.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def resize_positions(positions: Tensor, grid: tuple[int, int], height: int, width: int) -> Tensor:
    """[h0 * w0, W] on ``grid`` = (h0, w0) -> [height * width, W], bicubic and antialiased; the trained size stays as it is.

    The choice of open_clip (``resize_pos_embed``) and timm (``resample_abs_pos_embed``); transformers interpolates without
    antialiasing, which differs where a grid shrinks. Computed in fp32, returned in the dtype of ``positions``.
    """
    if grid == (height, width):
        return positions
    planes = positions.float().view(1, *grid, -1).permute(0, 3, 1, 2)
    planes = F.interpolate(planes, size=(height, width), mode="bicubic", antialias=True, align_corners=False)
    return planes.flatten(2)[0].T.to(positions.dtype)
