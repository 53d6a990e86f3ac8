"""The losses of SILC as pure functions: nothing here has state, and evaluating one changes none.

``sigmoid_loss`` (SigLIP, 2303.15343 eq. 1), ``softmax_loss`` (CLIP, 2103.00020), ``distillation_loss`` (SILC, 2310.13355;
DINO, 2104.14294 eq. 1). All in fp32 whatever autocast says.

Shapes: B pairs, D embedding, T teacher views, S student views, K prototypes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sigmoid_loss(image_features: Tensor, text_features: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """1/B sum_ij -log sigmoid(z_ij (scale * x_i.y_j + bias)), z = +1 on the diagonal and -1 elsewhere.

    Args: [B, D] features, not normalised; scale and bias are scalars (scale already exponentiated).
    """
    logits = scale * cosine(image_features, text_features) + bias
    z = 2 * torch.eye(len(logits), device=logits.device, dtype=logits.dtype) - 1
    return -F.logsigmoid(z * logits).sum() / len(logits)


def softmax_loss(image_features: Tensor, text_features: Tensor, scale: Tensor) -> Tensor:
    """Symmetric InfoNCE: the mean of cross-entropies of each picture over texts and of each text over pictures."""
    logits = scale * cosine(image_features, text_features)
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def cosine(image_features: Tensor, text_features: Tensor) -> Tensor:
    """[B, D], [B', D] -> [B, B'] cosine similarities, at least fp32."""
    with torch.autocast(image_features.device.type, enabled=False):
        return F.normalize(_at_least_fp32(image_features), dim=-1) @ F.normalize(_at_least_fp32(text_features), dim=-1).T


def distillation_loss(student_logits: Tensor, teacher_probs: Tensor, student_temp: float, num_skipped: int = 0) -> Tensor:
    """Cross-entropy -P_t . log softmax(p_s / student_temp), averaged over the batch and all pairs of views.

    Args:
        student_logits: [S, B, K], the head's output.
        teacher_probs: [T, B, K], rows sum to 1, no gradient.
        num_skipped: the first ``num_skipped`` student views are the teacher's own views in the same order, and a view
            is never compared with itself: pairs (t, s) with t == s < num_skipped are left out. 0 when the student side
            holds local views only: then every pair counts.
    """
    (S, B, _), T = student_logits.shape, len(teacher_probs)
    scaled = _at_least_fp32(student_logits) / student_temp
    # sum_t -P_t . (s - lse(s)) = T lse(s) - (sum_t P_t) . s : the teacher's views are summed once, not once a student view
    total = teacher_probs.sum(0, dtype=scaled.dtype)
    loss = T * torch.logsumexp(scaled, dim=-1) - (total * scaled).sum(-1)  # [S, B]
    own = min(num_skipped, S, T)
    if own:
        same = torch.logsumexp(scaled[:own], dim=-1) - (teacher_probs[:own] * scaled[:own]).sum(-1)
        loss = torch.cat([loss[:own] - same, loss[own:]])
    return loss.sum() / (B * (T * S - own))


def _at_least_fp32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
