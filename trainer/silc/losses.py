"""The image-text losses as pure functions: nothing here has state, and evaluating one changes none.

``sigmoid_loss`` (SigLIP, 2303.15343 eq. 1) and ``softmax_loss`` (CLIP, 2103.00020),
in fp32 whatever autocast says. To add a loss, write a function here with the same arguments, and a
line of ``LOSSES`` in ``silc_bench.trainer.config.config``.

A small table of logits is made whole, as the formula says. A large one (``is_large``) is made a few
rows at a time by ``_Rows``, which makes the gradients together with the value. The result is equal
up to rounding, and takes a fraction of the memory. ``peak_bytes`` counts both ways.

With several processes each gives its rank's share: its own pairs against the texts
(and images) of all ranks. The mean of the shares over the ranks is the loss of the
global batch (``silc_bench.trainer.device``).

Shapes: V views of the images (or none: [b, D]), b pairs of this rank, B of all
ranks, D embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from silc_bench.trainer.device import first_of, gather

# Logits that are made at a time. On a CPU they stay in the caches; a GPU has enough to do with 64
# MiB of them.
CHUNK = {"cpu": 2**20, "cuda": 2**24}

# A table of more chunks than these is made in chunks. With eight, what is alive for one chunk
# (CHUNKS times its size) is less than half of the table. A smaller table is not worth the trouble.
MOST_CHUNKS = 8


class Alive(NamedTuple):
    """What is alive at the peak of forward and backward pass. The tests count it."""

    tables: float  # [V, b, B], where the table is made whole
    chunks: float  # where it is made in chunks


# Of each loss: where an image has its own text alone, and where equal texts are right ones.
ALIVE = {
    "sigmoid": (Alive(6.0, 2.0), Alive(6.0, 2.0)),
    "softmax": (Alive(6.0, 2.0), Alive(8.5, 3.0)),
}


def is_large(views: int, share: int, batch: int, device: str) -> bool:
    """Whether a table of logits [V, b, B] is made a few rows at a time on ``device``."""
    return views * share * batch > MOST_CHUNKS * _chunk(device)


def peak_bytes(
    loss: str, views: int, share: int, batch: int, device: str, *, with_equal_texts: bool = False
) -> int:
    """Bytes of logits at the peak of a loss, forward and backward, in fp32.

    Features and their gradients, [V, b, D] and [B, D], are not counted. A loss that is not in
    ``ALIVE`` counts as the largest one there, with its table whole.
    """
    alive = {name: of_loss[with_equal_texts] for name, of_loss in ALIVE.items()}
    if loss in alive and is_large(views, share, batch, device):
        return int(4 * alive[loss].chunks * _chunk(device))
    num_tables = alive[loss].tables if loss in alive else max(alive.values()).tables
    return int(4 * num_tables * views * share * batch)


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
        if is_large_for(images, texts):
            parts = [
                _Rows.apply("sigmoid", view, texts, scale, bias, is_right, first_of(len(view)))
                for view in views_of(images)
            ]
            return torch.stack(parts).mean()

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
        all_texts = gather(texts)
        if is_large_for(images, all_texts):
            first = first_of(len(texts))
            rows = [(view, all_texts) for view in views_of(images)]
            rows += [(texts, view) for view in views_of(all_images)]
            parts = [_Rows.apply("softmax", *pair, scale, None, is_right, first) for pair in rows]
            return torch.stack(parts).mean()

        to_texts = images @ all_texts.T  # [V, b, B]
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


def views_of(features: Tensor) -> tuple[Tensor, ...]:
    """[V, b, D] or [b, D] -> [b, D] of each view."""
    return features.unbind() if features.ndim == 3 else (features,)


def is_large_for(images: Tensor, texts: Tensor) -> bool:
    """``is_large`` of the table of images [V, b, D] or [b, D] and texts [B, D]."""
    return is_large(images[..., 0].numel(), 1, len(texts), images.device.type)


class _Rows(torch.autograd.Function):
    """A loss of the rows of a table of logits, a few rows at a time: its mean over the rows.

    The forward pass makes the gradients too, because both need the same logits. This saves the
    product that would make the logits again. The backward pass only scales these gradients. Nothing
    that is kept has B columns.

    Args of ``apply``: "sigmoid" or "softmax"; queries [b, D] and keys [B, D] of unit length; scale;
    bias (None for softmax); ``is_right`` bool [b, B] or None; the column of the first row's own.
    """

    @staticmethod
    def forward(
        ctx: Any,
        loss: str,
        queries: Tensor,
        keys: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        is_right: Tensor | None,
        first: int,
    ) -> Tensor:
        needs_gradient = any(ctx.needs_input_grad)
        of_rows = _sigmoid_rows if loss == "sigmoid" else _softmax_rows

        value = queries.new_zeros(())
        bias_gradient = queries.new_zeros(())
        for_queries = torch.empty_like(queries) if needs_gradient else None
        for_keys = torch.zeros_like(keys) if needs_gradient else None
        for rows in chunks(len(queries), len(keys), queries.device.type):
            logits = (queries[rows] @ keys.T).mul_(scale)
            if bias is not None:
                logits.add_(bias)
            right = None if is_right is None else is_right[rows]
            part, by_logits = of_rows(logits, right, first + rows.start)
            value += part
            if for_queries is not None and for_keys is not None:
                bias_gradient += by_logits.sum()
                torch.mm(by_logits, keys, out=for_queries[rows])
                for_keys.addmm_(by_logits.T, queries[rows])
            del logits, by_logits  # else they would stay beside the next product

        if for_queries is not None:
            # A logit is scale * q . k (+ bias), so by the scale it is sum_k gradient * q . k.
            scale_gradient = (queries * for_queries).sum().to(scale.dtype).view_as(scale)
            ctx.save_for_backward(for_queries, for_keys, scale, scale_gradient, bias_gradient)
            ctx.bias = None if bias is None else (bias.shape, bias.dtype)
            ctx.count = len(queries)
        return value / len(queries)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        for_queries, for_keys, scale, scale_gradient, bias_gradient = ctx.saved_tensors
        factor = gradient / ctx.count
        for_bias = None
        if ctx.bias is not None:
            shape, dtype = ctx.bias
            for_bias = (bias_gradient * factor).to(dtype).view(shape)
        by_product = factor * scale
        return (
            None,
            for_queries * by_product,
            for_keys * by_product,
            scale_gradient * factor,
            for_bias,
            None,
            None,
        )


def _chunk(device: str) -> int:
    return CHUNK.get(device, CHUNK["cpu"])


def chunks(num_rows: int, num_columns: int, device: str) -> Iterator[slice]:
    """Rows in slices whose table has at most CHUNK logits; a slice has at least one row."""
    size = max(1, _chunk(device) // num_columns)
    for start in range(0, num_rows, size):
        yield slice(start, min(start + size, num_rows))


def _sigmoid_rows(logits: Tensor, is_right: Tensor | None, first: int) -> tuple[Tensor, Tensor]:
    """Sum over rows [r, B] of -log sigmoid(z * logits), and its gradient by the logits.

    The gradient takes the place of the logits.
    """
    # -log sigmoid(z x) is softplus(-z x), and its derivative by x is -z sigmoid(-z x).
    _negate_right(logits, is_right, first)
    # Above its threshold softplus is the identity: at 50 no digit of float64 is lost.
    value = F.softplus(logits, threshold=50).sum()
    gradient = logits.sigmoid_()
    _negate_right(gradient, is_right, first)
    return value, gradient


def _negate_right(table: Tensor, is_right: Tensor | None, first: int) -> None:
    """Change the sign of [r, B], in place, where a text is right for a row's image."""
    if is_right is None:
        table[:, first : first + len(table)].diagonal().neg_()
    else:
        # By a table of signs, because an index by a mask would make the host wait for a GPU.
        table.mul_(torch.where(is_right, -1.0, 1.0).to(table.dtype))


def _softmax_rows(logits: Tensor, is_right: Tensor | None, first: int) -> tuple[Tensor, Tensor]:
    """Sum over rows [r, B] of the cross-entropy, and its gradient by the logits."""
    # Without the highest logit of each row, so that no digit of a small loss is lost.
    logits.sub_(logits.amax(-1, keepdim=True))
    gradient = logits.exp()
    sums = gradient.sum(-1, keepdim=True)
    gradient.div_(sums)
    if is_right is None:
        own = slice(first, first + len(logits))
        value = sums.log().sum() - logits[:, own].diagonal().sum()
        gradient[:, own].diagonal().sub_(1)
        return value, gradient

    share = is_right.to(logits.dtype)
    share /= share.sum(-1, keepdim=True)
    value = sums.log().sum() - logits.mul_(share).sum()
    return value, gradient.sub_(share)
