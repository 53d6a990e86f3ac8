"""The image-text losses as pure functions: nothing here has state, and evaluating one changes none.

``sigmoid_loss`` (SigLIP, 2303.15343 eq. 1) and ``softmax_loss`` (CLIP, 2103.00020),
in fp32 whatever autocast says. Another one is a function here with the same
arguments, and a line of ``LOSSES`` in ``silc_bench.trainer.config.config``.

With several processes each gives its rank's share: its own pairs against the texts
(and images) of all ranks. The mean of the shares over the ranks is the loss of the
global batch (``silc_bench.trainer.device``).

Shapes: V views of the images (or none: [b, D]), b pairs of this rank, B of all
ranks, D embedding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from silc_bench.trainer.device import first_of, gather


def sigmoid_loss(
    image_features: Tensor,
    text_features: Tensor,
    scale: Tensor,
    bias: Tensor,
    is_right: Tensor | None = None,
) -> Tensor:
    """1/b sum_ij -log sigmoid(z_ij (scale * x_i . y_j + bias)), averaged over the views.

    z = +1 for an image and its own text and -1 elsewhere. Each view meets all texts. With
    ``is_right`` z = +1 for each text that is right for the image.

    Args:
        image_features: [V, b, D], not normalised.
        text_features: [b, D], not normalised.
        scale: scalar, already exponentiated.
        bias: scalar.
        is_right: bool [b, B], of ``equal_texts``; None: an image has its own text alone.
    """
    with torch.autocast(image_features.device.type, enabled=False):
        images = unit(image_features)
        texts = gather(unit(text_features))
        logits = scale * (images @ texts.T) + bias  # [V, b, B]

        own = own_columns(logits)
        z = torch.full_like(logits, -1).scatter_(-1, own.unsqueeze(-1), 1)
        if is_right is not None:
            z = torch.where(is_right, 1.0, -1.0).to(logits.dtype)

        # By images, not by pairs: own.numel() is V * b, as SigLIP divides by the batch.
        return -F.logsigmoid(z * logits).sum() / own.numel()


def softmax_loss(
    image_features: Tensor,
    text_features: Tensor,
    scale: Tensor,
    bias: Tensor,
    is_right: Tensor | None = None,
) -> Tensor:
    """Symmetric InfoNCE, averaged over the views.

    The mean of two cross-entropies: of each image over the texts, and of each text over the images
    of a view. Args as ``sigmoid_loss``; a bias would cancel. With ``is_right`` the target is
    uniform over all that are right (UniCL, 2204.03610, eq. 3 and 4).
    """
    with torch.autocast(image_features.device.type, enabled=False):
        images = unit(image_features)
        texts = unit(text_features)

        # ``gather`` joins along the first dimension, so the pairs go there and back.
        all_images = gather(images.transpose(0, -2)).transpose(0, -2)  # [V, B, D]
        to_texts = images @ gather(texts).T  # [V, b, B]
        to_images = texts @ all_images.mT  # [V, b, B]

        losses = []
        for logits in (to_texts, to_images):
            if is_right is None:
                own = own_columns(logits).flatten()
            else:
                # As many are right for a text as for its image: the table is symmetric.
                share = is_right.to(logits.dtype) / is_right.sum(dim=-1, keepdim=True)
                own = share.expand(logits.shape).flatten(0, -2)
            losses.append(F.cross_entropy(scale * logits.flatten(0, -2), own))
        return torch.stack(losses).mean()


@torch.no_grad()
def equal_texts(tokens: Tensor) -> Tensor:
    """int64 [b, L] of this rank -> bool [b, B]: whether a text of the global batch is the same.

    The same for the model, which sees the ids alone.
    """
    # Numbered once: to compare all rows with all would take b * B * L bytes.
    _, numbers = gather(tokens).unique(dim=0, return_inverse=True)
    own = first_of(len(tokens)) + torch.arange(len(tokens), device=tokens.device)
    return numbers[own].unsqueeze(1) == numbers


def own_columns(logits: Tensor) -> Tensor:
    """int64 [..., b]: where in the global batch this rank's pairs are, for logits [..., b, B]."""
    share = logits.shape[-2]
    own = first_of(share) + torch.arange(share, device=logits.device)
    return own.expand(logits.shape[:-1])


def unit(features: Tensor) -> Tensor:
    """[..., D] -> the same at unit length, at least fp32."""
    wide = torch.promote_types(features.dtype, torch.float32)
    return F.normalize(features.to(wide), dim=-1)
