"""Local-to-global self-distillation over K prototypes without a table of K columns.

Head and loss in one, a chunk of prototypes at a time. A logit is the product of a
feature and a prototype, so neither the student's [S, B, K] nor the teacher's [T, B,
K] has to be kept. ``Targets`` holds the teacher's distributions factored;
``distillation_loss`` needs each of them once: for s = W h / temp,

    sum_t -P_t . log softmax(s) = T lse(s) - (sum_t P_t) . s    and    P_t . s = h . (P_t W) / temp

where ``P_t W`` is only [T, B, d]. So chunks run over the log-sum-exp alone; the
backward pass makes them anew.

Flow: ``Head.project`` and ``Head.unit_prototypes`` of both networks -> ``Targets``
of the teacher (``log_sum_exp`` with a centre, or ``sinkhorn_targets``) ->
``distillation_loss`` of the student. The head is DINO's (2104.14294), in fp32
whatever the towers run in.

Shapes: T teacher views, S student views, B images, D embedding, d bottleneck, K
prototypes, k of them in a chunk. All in fp32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from silc_bench.trainer.config.config import DistillationConfig
from silc_bench.trainer.device import log_sum_exp_over_ranks

# Logits made at a time. On a CPU 16 MB: four times as many do not fit into the caches and take a
# fifth longer. On a GPU 256 MB, so that each product has enough to do; this was not measured.
CHUNK = {"cpu": 2**22, "cuda": 2**26}

SINKHORN_STEPS = 3


class Targets(NamedTuple):
    """The teacher's distributions, factored.

    P[t, b, k] = exp((features[t, b] . prototypes[k] - offsets[k]) / temp - normalizers[t, b]).
    Prototypes and offsets are those of the moment, whatever becomes of the teacher.
    """

    features: Tensor  # [T, B, d] of unit length
    prototypes: Tensor  # [K, d] of unit length
    offsets: Tensor  # [K]: the centre, or what balances the prototypes
    normalizers: Tensor  # [T, B]
    temp: float
    is_tf32: bool = False  # whether a GPU may round what goes into products, the student's too

    def probabilities(self, columns: slice = slice(None)) -> Tensor:
        """[T, B, k] of the prototypes ``columns``; rows of all K sum to 1."""
        # In place: the table is the largest thing here, and each pass over it costs.
        with products(self.is_tf32):
            logits = self.features @ self.prototypes[columns].T
        logits.sub_(self.offsets[columns]).div_(self.temp)
        return logits.sub_(self.normalizers.unsqueeze(-1)).exp_()


def distillation_loss(
    features: Tensor,
    prototypes: Tensor,
    targets: Targets,
    student_temp: float,
    num_skipped: int = 0,
) -> Tensor:
    """Cross-entropy -P_t . log softmax(prototypes . h_s / student_temp), a scalar.

    Averaged over the batch and all pairs of views (SILC, 2310.13355; DINO, 2104.14294 eq. 1). The
    gradient reaches features and prototypes, never the targets.

    Args:
        features: [S, B, d], ``Head.project`` of the student's views.
        prototypes: [K, d], the student's.
        targets: of the teacher's T views of the same B images.
        student_temp: the student's temperature; the teacher's is in the targets.
        num_skipped: the first ``num_skipped`` student views are the teacher's own views in the same
            order, and a view is never compared with itself: pairs (t, s) with t == s < num_skipped
            are left out. 0 when the student side holds local views only: then every pair counts.
    """
    wide = torch.promote_types(features.dtype, torch.float32)
    with torch.autocast(features.device.type, enabled=False):
        return _Distillation.apply(
            features.to(wide), prototypes.to(wide), targets, student_temp, num_skipped
        )


class _Distillation(torch.autograd.Function):
    """Keeps prototypes and targets for the backward pass, and no table with K columns."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        prototypes: Tensor,
        targets: Targets,
        student_temp: float,
        num_skipped: int,
    ) -> Tensor:
        S, B, _ = features.shape
        T = len(targets.features)
        own = min(num_skipped, S, T)  # pairs of a view with itself

        # P_t W, [T, B, d]: the prototype that the teacher expects.
        expected = torch.zeros_like(targets.features)
        for columns in chunks(prototypes, T * B):
            probs = targets.probabilities(columns)
            with products(targets.is_tf32):
                expected += probs @ prototypes[columns]

        # [S, B, d]: its sum over the teacher views that a student view meets, and their number.
        toward = expected.sum(0).repeat(S, 1, 1)
        toward[:own] -= expected[:own]
        num_met = torch.full((S, 1, 1), T, dtype=features.dtype, device=features.device)
        num_met[:own] -= 1

        normalizers = log_sum_exp(  # [S, B]
            features, prototypes, student_temp, is_tf32=targets.is_tf32
        )
        ctx.save_for_backward(features, prototypes, toward, num_met, normalizers)
        ctx.targets = targets
        ctx.temp = student_temp
        ctx.own = own
        ctx.count = B * (T * S - own)

        cross = (features * toward).sum(-1) / student_temp
        return (num_met[..., 0] * normalizers - cross).sum() / ctx.count

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        features, prototypes, toward, num_met, normalizers = ctx.saved_tensors
        targets = ctx.targets
        own = ctx.own
        with (
            torch.autocast(features.device.type, enabled=False),
            products(targets.is_tf32),
        ):
            # Scaled here and not at the end, which saves a pass over [K, d].
            factor = gradient / (ctx.temp * ctx.count)
            scaled = features * factor

            # [T, B, d]: the sum over the student views that a teacher view meets.
            meets = scaled.sum(0).repeat(len(targets.features), 1, 1)
            meets[:own] -= scaled[:own]

            # The gradient by a logit is num_met * softmax(s) - sum_t P_t, times the factor.
            for_features = -toward
            for_prototypes = torch.empty_like(prototypes)
            for columns in chunks(prototypes, features[..., 0].numel()):
                rows = prototypes[columns]
                logits = (features @ rows.T).div_(ctx.temp)
                probs = logits.sub_(normalizers.unsqueeze(-1)).exp_().mul_(num_met)
                for_features += probs @ rows

                taught = targets.probabilities(columns).flatten(0, 1)
                part = for_prototypes[columns]
                torch.mm(probs.flatten(0, 1).T, scaled.flatten(0, 1), out=part)
                part.addmm_(taught.T, meets.flatten(0, 1), alpha=-1)
        return for_features * factor, for_prototypes, None, None, None


@contextmanager
def products(is_tf32: bool) -> Iterator[None]:
    """Inside, matrix products of fp32 tensors on a GPU run in TF32, if ``is_tf32``."""
    if not is_tf32:
        yield
        return

    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def chunks(prototypes: Tensor, num_rows: int) -> Iterator[slice]:
    """[K, d] in slices such that a table of ``num_rows`` rows has at most CHUNK entries.

    A slice has at least one column.
    """
    size = max(1, CHUNK.get(prototypes.device.type, CHUNK["cpu"]) // num_rows)
    for start in range(0, len(prototypes), size):
        yield slice(start, min(start + size, len(prototypes)))


def log_sum_exp(
    features: Tensor,
    prototypes: Tensor,
    temp: float,
    offsets: Tensor | None = None,
    is_tf32: bool = False,
) -> Tensor:
    """log sum_k exp((features . prototypes[k] - offsets[k]) / temp): [..., d], [K, d] -> [...]."""
    parts = []
    for columns in chunks(prototypes, features[..., 0].numel()):
        with products(is_tf32):
            logits = features @ prototypes[columns].T
        if offsets is not None:
            logits.sub_(offsets[columns])
        parts.append(torch.logsumexp(logits.div_(temp), dim=-1))
    return torch.logsumexp(torch.stack(parts), dim=0)


def sinkhorn_targets(
    features: Tensor, prototypes: Tensor, temp: float, is_tf32: bool = False
) -> Targets:
    """Distributions of [T, B, d] features that use every prototype equally often.

    Equally over the views and the global batch: Sinkhorn-Knopp (SwAV, 2006.09882; DINOv2 in the
    place of a centre). exp(logits / temp) is divided by the sums of its columns, then of its rows,
    SINKHORN_STEPS times. Only the factors are kept: logarithms of sums of columns and rows.
    """
    T, B, _ = features.shape
    normalizers = torch.zeros(T, B, dtype=features.dtype, device=features.device)

    # Of columns, over all ranks; of rows each rank has its own.
    sums = torch.zeros(len(prototypes), dtype=features.dtype, device=features.device)
    for _ in range(SINKHORN_STEPS):
        for columns in chunks(prototypes, T * B):
            with products(is_tf32):
                logits = (features @ prototypes[columns].T).div_(temp)
            logits.sub_(normalizers.unsqueeze(-1))
            sums[columns] = torch.logsumexp(logits.flatten(0, 1), dim=0)
        sums = log_sum_exp_over_ranks(sums)
        normalizers = log_sum_exp(features, prototypes, temp, temp * sums, is_tf32)
    return Targets(features, prototypes, temp * sums, normalizers, temp, is_tf32)


class _UnitRows(torch.autograd.Function):
    """[K, d] at unit length.

    As ``F.normalize``, whose gradient takes several passes over all of it; this one takes two.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        lengths = torch.linalg.vector_norm(rows, dim=-1, keepdim=True).clamp_min_(1e-12)
        unit = rows / lengths
        ctx.save_for_backward(unit, lengths)
        return unit

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """The part of the gradient along a row is taken out: it would only change its length."""
        unit, lengths = ctx.saved_tensors
        along = torch.einsum("kd,kd->k", gradient, unit).unsqueeze(-1)
        return torch.addcmul(gradient, unit, along, value=-1).div_(lengths)


class Head(nn.Module):
    """DINO's projection head, [B, D] -> [B, K]: 3 linear layers, l2-norm, prototypes of length 1.

    Always in fp32. Training never makes the K logits: the loss takes ``project`` and
    ``unit_prototypes``.
    """

    def __init__(self, embed_dim: int, config: DistillationConfig):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(embed_dim, config.hidden_dim),
            nn.GELU(),
            nn.Linear(config.hidden_dim, config.hidden_dim),
            nn.GELU(),
            nn.Linear(config.hidden_dim, config.bottleneck_dim),
        )
        self.prototypes = nn.Parameter(torch.empty(config.num_prototypes, config.bottleneck_dim))

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return F.linear(self.project(features), self.unit_prototypes())

    def project(self, features: Tensor) -> Tensor:
        """[..., D] -> [..., d]: the bottleneck, of unit length."""
        with torch.autocast(features.device.type, enabled=False):
            return F.normalize(self.layers(features.to(self.prototypes.dtype)), dim=-1)

    def unit_prototypes(self) -> Tensor:
        """[K, d]: weight normalisation with its gain fixed to 1."""
        return _UnitRows.apply(self.prototypes)
