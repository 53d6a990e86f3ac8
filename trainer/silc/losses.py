"""The image-text losses as pure functions: nothing here has state, and evaluating one changes none.

``sigmoid_loss`` (SigLIP, 2303.15343 eq. 1) and ``softmax_loss`` (CLIP, 2103.00020), in fp32
whatever autocast says. With several processes each gives its rank's share: its own pairs against
the texts (and pictures) of all ranks; the mean of the shares over the ranks is the loss of the
global batch (``silc_bench.trainer.device``).

Shapes: V views of the pictures (or none: [b, D]), b pairs of this rank, B of all ranks, D
embedding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from silc_bench.trainer.device import first_of, gather


def sigmoid_loss(
    image_features: Tensor, text_features: Tensor, scale: Tensor, bias: Tensor
) -> Tensor:
    """1/b sum_ij -log sigmoid(z_ij (scale * x_i.y_j + bias)), z = +1 for a picture and its own text
    and -1 elsewhere.

    Args: [V, b, D] and [b, D] features, not normalised; scale and bias are scalars (scale already
    exponentiated). The mean over the views: each meets all texts.
    """
    with torch.autocast(image_features.device.type, enabled=False):
        logits = scale * (unit(image_features) @ gather(unit(text_features)).T) + bias  # [V, b, B]
        own = own_columns(logits).expand(logits.shape[:-1]).unsqueeze(-1)
        z = torch.full_like(logits, -1).scatter_(-1, own, 1)
        return -F.logsigmoid(z * logits).sum() / own.numel()


def softmax_loss(image_features: Tensor, text_features: Tensor, scale: Tensor) -> Tensor:
    """Symmetric InfoNCE: the mean of cross-entropies of each picture over texts and of each text
    over pictures of a view.
    """
    with torch.autocast(image_features.device.type, enabled=False):
        images, texts = unit(image_features), unit(text_features)
        everyone = gather(images.transpose(0, -2)).transpose(0, -2)  # [V, B, D]
        total = torch.zeros((), device=images.device, dtype=images.dtype)
        for logits in (images @ gather(texts).T, texts @ everyone.mT):  # [V, b, B]
            own = own_columns(logits).expand(logits.shape[:-1])
            total = total + F.cross_entropy(scale * logits.flatten(0, -2), own.flatten()) / 2
        return total


def own_columns(logits: Tensor) -> Tensor:
    """int64 [b]: where in the global batch the pairs of this rank are, for logits [..., b, B]."""
    share = logits.shape[-2]
    return first_of(share) + torch.arange(share, device=logits.device)


def unit(features: Tensor) -> Tensor:
    """[b, D] -> the same at unit length, at least fp32."""
    return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)
