"""Fused, chunked distillation against float64 loops and lightly, in any chunks; its memory."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import LargestTensor, close, saved_numels, value_and_gradients

from silc_bench.trainer.silc import distillation
from silc_bench.trainer.silc.distillation import Targets, distillation_loss, log_sum_exp

TEMP, TEACHER_TEMP = 0.1, 0.04


def rows(*shape, seed):
    """[..., d] of unit length."""
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def make_targets(views, batch, prototypes, dim=8, seed=0):
    features, weights = rows(views, batch, dim, seed=seed), rows(prototypes, dim, seed=seed + 1)
    offsets = torch.randn(prototypes, generator=torch.Generator().manual_seed(seed + 2)) / 10
    normalizers = log_sum_exp(features, weights, TEACHER_TEMP, offsets)
    return Targets(features, weights, offsets, normalizers, TEACHER_TEMP)


def teacher_probs(targets):
    """[T, B, K] in float64, from the definition."""
    logits = targets.features.double() @ targets.prototypes.double().T - targets.offsets.double()
    return torch.softmax(logits / targets.temp, dim=-1)


def same(mine, theirs, value=1e-6, gradient=1e-5, floor=0.0):
    """``gradient``: of its largest entry, or of ``floor`` where all that adds up to it cancels."""
    close(mine[0], theirs[0], value)
    for one, other in zip(mine[1:], theirs[1:], strict=True):
        close(one, other, gradient, atol=gradient * max(floor, other.abs().max().item()))


def pairs_of(probs, features, num_skipped):
    """(t, s) of the views that meet."""
    everyone = [(t, s) for t in range(len(probs)) for s in range(len(features))]
    return [(t, s) for t, s in everyone if not (t == s and s < num_skipped)]


def naive(features, prototypes, probs, temp, num_skipped):
    """One pair of views, one image, one prototype at a time."""
    total = 0.0
    pairs = pairs_of(probs, features, num_skipped)
    for t, s in pairs:
        for b in range(features.shape[1]):
            powers = [torch.exp(torch.dot(features[s, b], w) / temp) for w in prototypes]
            for k in range(len(prototypes)):
                total = total - probs[t, b, k] * torch.log(powers[k] / sum(powers))
    return total / (len(pairs) * features.shape[1])


def plain(features, prototypes, probs, temp, num_skipped):
    """The same with tables of [B, K]."""
    pairs = pairs_of(probs, features, num_skipped)
    logs = [F.log_softmax(view @ prototypes.T / temp, -1) for view in features]
    return sum(-(probs[t] * logs[s]).sum(-1).mean() for t, s in pairs) / len(pairs)


def both(targets, inputs, num_skipped, reference, temp=TEMP, weight=1.0):
    """Value and gradients of ours, and of ``reference`` in float64."""
    probs = teacher_probs(targets)
    mine = value_and_gradients(
        lambda h, w: weight * distillation_loss(h, w, targets, temp, num_skipped), *inputs
    )
    theirs = value_and_gradients(
        lambda h, w: weight * reference(h, w, probs, temp, num_skipped),
        *inputs,
        dtype=torch.float64,
    )
    return mine, theirs


# (teacher's views, student's views, num_skipped)
PAIRINGS = [(2, 4, 0), (1, 1, 0), (3, 1, 0), (2, 5, 2), (2, 2, 2), (1, 4, 1), (3, 2, 3), (2, 4, 1)]


@pytest.mark.parametrize("chunk", [1, 40, 2**24])
@pytest.mark.parametrize(("teachers", "students", "num_skipped"), PAIRINGS)
def test_value_and_gradients_equal_the_loop(monkeypatch, teachers, students, num_skipped, chunk):
    """In chunks of one prototype, of a few, and in one."""
    monkeypatch.setattr(distillation, "CHUNK", chunk)
    inputs = [rows(students, 2, 8, seed=5), rows(7, 8, seed=6)]
    same(*both(make_targets(teachers, 2, 7), inputs, num_skipped, naive))


@settings(max_examples=25, deadline=None)
@given(
    teachers=st.integers(1, 3),
    students=st.integers(1, 6),
    batch=st.integers(1, 5),
    prototypes=st.integers(2, 400),
    skipped=st.integers(0, 3),
    temp=st.sampled_from([0.04, 0.1, 1.0]),
    weight=st.sampled_from([1.0, -2.5]),
    chunk=st.integers(1, 3000),
)
def test_any_shape(teachers, students, batch, prototypes, skipped, temp, weight, chunk):
    if teachers * students - min(teachers, students, skipped) == 0:
        return
    targets = make_targets(teachers, batch, prototypes, seed=prototypes)
    inputs = [rows(students, batch, 8, seed=batch), rows(prototypes, 8, seed=skipped)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distillation, "CHUNK", chunk)
        mine, theirs = both(targets, inputs, skipped, plain, temp, weight)
    # a logit of 25 has an ulp of 2e-6
    same(mine, theirs, value=1e-5, floor=1 / temp)


def test_the_recipes_prototypes_in_bf16(monkeypatch):
    """K = 65,536 in 16 chunks, inputs in bf16: only their rounding is lost, even in autocast."""
    monkeypatch.setattr(distillation, "CHUNK", 2**14 * 3)
    targets = make_targets(2, 3, 65_536, dim=64)
    rounded = [x.bfloat16() for x in (rows(4, 3, 64, seed=5), rows(65_536, 64, seed=6))]
    mine, theirs = both(targets, [x.float() for x in rounded], 2, plain)
    same(mine, theirs)
    with torch.autocast("cpu", torch.bfloat16):
        value = distillation_loss(*rounded, targets, TEMP, 2)
    assert value.dtype == torch.float32
    close(value.double(), theirs[0], 1e-6)


def test_autocast_changes_no_bit_forward_or_backward():
    targets, inputs = make_targets(2, 3, 50), [rows(4, 3, 8, seed=5), rows(50, 8, seed=6)]

    def loss(h, w):
        return distillation_loss(h, w, targets, TEMP, 1)

    plainly = value_and_gradients(loss, *inputs)
    with torch.autocast("cpu", torch.bfloat16):
        assert all(map(torch.equal, value_and_gradients(loss, *inputs), plainly))


def test_nothing_of_k_columns_is_kept_or_made():
    """Saved for the backward pass: a hundredth of one table of logits.

    Made at any time: less than the table.
    """
    views, batch, prototypes, dim = 4, 32, 65_536, 16
    targets, table = make_targets(2, batch, prototypes, dim), views * batch * prototypes
    leaves = [
        rows(*shape, dim, seed=5).requires_grad_() for shape in ((views, batch), (prototypes,))
    ]
    with LargestTensor() as largest:
        saved, loss = saved_numels(lambda: distillation_loss(*leaves, targets, TEMP))
        loss.backward()
    for leaf in leaves:
        saved.pop(leaf.data_ptr(), None)
    assert sum(saved.values()) < table / 100
    assert prototypes * dim < largest.numel <= distillation.CHUNK < table


@pytest.mark.parametrize(("num_global", "num_local"), [(2, 0), (2, 6), (1, 3), (3, 1)])
def test_it_equals_lightly_where_identical_views_are_skipped(num_global, num_local):
    """DINO's pairing: the student shows every view, the teacher its first ones, the global."""
    from lightly.loss import DINOLoss

    targets = make_targets(num_global, 4, 64)
    inputs = [rows(num_global + num_local, 4, 8, seed=7), rows(64, 8, seed=8)]
    peer = DINOLoss(64, teacher_temp=TEACHER_TEMP, student_temp=TEMP)
    peer.center.copy_(targets.offsets.view(1, 1, -1))
    logits = list(targets.features @ targets.prototypes.T)
    mine, _ = both(targets, inputs, num_global, plain)
    same(mine, value_and_gradients(lambda h, w: peer(logits, list(h @ w.T)), *inputs), value=1e-5)


def test_extreme_features_do_not_overflow():
    targets = make_targets(1, 2, 8)
    assert distillation_loss(500 * rows(1, 2, 8, seed=1), rows(8, 8, seed=2), targets, 0.04) < 1e5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_of_unit_length_and_their_gradient_are_torchs_own(dtype):
    """Rows of very different lengths, and one of zeros, which stays zero."""
    generator = torch.Generator().manual_seed(3)
    lengths = torch.logspace(-3, 3, 50, dtype=dtype).unsqueeze(1)
    matrix, weights = (torch.randn(50, 8, generator=generator, dtype=dtype) for _ in range(2))
    mine, theirs = (
        value_and_gradients(lambda x, unit=unit: (unit(x) ** 3 * weights).sum(), matrix * lengths)
        for unit in (distillation.unit_rows, lambda x: F.normalize(x, dim=-1))
    )
    same(mine, theirs)
    assert not distillation.unit_rows(torch.zeros(1, 8)).any()
