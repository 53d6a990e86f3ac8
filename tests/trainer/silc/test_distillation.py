"""Fused, chunked distillation against float64 loops and lightly, in any chunks; its memory."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from silc_bench.trainer.silc import distillation
from silc_bench.trainer.silc.distillation import Targets, chunks, distillation_loss, log_sum_exp

TEMP, TEACHER_TEMP = 0.1, 0.04


def rows(*shape, seed):
    """[..., d] of unit length."""
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def make_targets(views, batch, prototypes, dim=8, seed=0):
    features, weights = rows(views, batch, dim, seed=seed), rows(prototypes, dim, seed=seed + 1)
    offsets = torch.randn(prototypes, generator=torch.Generator().manual_seed(seed + 2)) / 10
    return Targets(
        features,
        weights,
        offsets,
        log_sum_exp(features, weights, TEACHER_TEMP, offsets),
        TEACHER_TEMP,
    )


def teacher_probs(targets):
    """[T, B, K] in float64, from the definition."""
    logits = targets.features.double() @ targets.prototypes.double().T - targets.offsets.double()
    return torch.softmax(logits / targets.temp, dim=-1)


def value_and_gradients(loss, *inputs, dtype=None):
    leaves = [x.detach().to(dtype or x.dtype).clone().requires_grad_() for x in inputs]
    value = loss(*leaves)
    return [value.detach().double(), *(g.double() for g in torch.autograd.grad(value, leaves))]


def same(mine, theirs, value=1e-6, gradient=1e-5, floor=0.0):
    """``gradient``: of its largest entry, or of ``floor`` where all that adds up to it cancels."""
    torch.testing.assert_close(mine[0], theirs[0], rtol=value, atol=value)
    for one, other in zip(mine[1:], theirs[1:], strict=True):
        torch.testing.assert_close(
            one, other, rtol=gradient, atol=gradient * max(floor, other.abs().max().item())
        )


def naive(features, prototypes, probs, temp, num_skipped):
    """One pair of views, one picture, one prototype at a time."""
    total, pairs = 0.0, 0
    for t in range(len(probs)):
        for s in range(len(features)):
            if t == s and s < num_skipped:
                continue
            pairs += 1
            for b in range(features.shape[1]):
                powers = [torch.exp(torch.dot(features[s, b], w) / temp) for w in prototypes]
                for k in range(len(prototypes)):
                    total = total - probs[t, b, k] * torch.log(powers[k] / sum(powers))
    return total / (pairs * features.shape[1])


def plain(features, prototypes, probs, temp, num_skipped):
    """The same with tables of [B, K]."""
    pairs = [
        (t, s)
        for t in range(len(probs))
        for s in range(len(features))
        if not (t == s and s < num_skipped)
    ]
    logs = [F.log_softmax(view @ prototypes.T / temp, -1) for view in features]
    return sum(-(probs[t] * logs[s]).sum(-1).mean() for t, s in pairs) / len(pairs)


PAIRINGS = [
    (2, 4, 0),
    (1, 1, 0),
    (2, 2, 0),
    (3, 1, 0),
    (2, 5, 2),
    (2, 2, 2),
    (1, 4, 1),
    (3, 2, 3),
    (2, 4, 1),
]


@pytest.mark.parametrize("chunk", [1, 40, 2**24])
@pytest.mark.parametrize(("teachers", "students", "num_skipped"), PAIRINGS)
def test_value_and_gradients_equal_the_loop(monkeypatch, teachers, students, num_skipped, chunk):
    """In chunks of one prototype, of a few, and in one."""
    monkeypatch.setattr(distillation, "CHUNK", chunk)
    targets = make_targets(teachers, 2, 7)
    inputs = [rows(students, 2, 8, seed=5), rows(7, 8, seed=6)]
    probs = teacher_probs(targets)
    mine = value_and_gradients(
        lambda h, w: distillation_loss(h, w, targets, TEMP, num_skipped), *inputs
    )
    same(
        mine,
        value_and_gradients(
            lambda h, w: naive(h, w, probs, TEMP, num_skipped), *inputs, dtype=torch.float64
        ),
    )


@settings(max_examples=25, deadline=None)
@given(
    teachers=st.integers(1, 3),
    students=st.integers(1, 6),
    batch=st.integers(1, 5),
    prototypes=st.integers(2, 400),
    skipped=st.integers(0, 3),
    temp=st.sampled_from([0.04, 0.1, 1.0]),
    chunk=st.integers(1, 3000),
)
def test_any_shape(teachers, students, batch, prototypes, skipped, temp, chunk):
    if teachers * students - min(teachers, students, skipped) == 0:
        return
    targets = make_targets(teachers, batch, prototypes, seed=prototypes)
    inputs = [rows(students, batch, 8, seed=batch), rows(prototypes, 8, seed=skipped)]
    probs = teacher_probs(targets)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distillation, "CHUNK", chunk)
        mine = value_and_gradients(
            lambda h, w: distillation_loss(h, w, targets, temp, skipped), *inputs
        )
    theirs = value_and_gradients(
        lambda h, w: plain(h, w, probs, temp, skipped), *inputs, dtype=torch.float64
    )
    # a logit of 25 has an ulp of 2e-6
    same(mine, theirs, value=1e-5, gradient=1e-5, floor=1 / temp)


def test_the_recipes_prototypes_in_bf16(monkeypatch):
    """K = 65,536 in 16 chunks, inputs in bf16: only their rounding is lost, even in autocast."""
    # and 0, in chunks too, at the small sizes above: which pairs meet has no part in the rounding
    num_skipped = 2
    monkeypatch.setattr(distillation, "CHUNK", 2**14 * 3)
    targets = make_targets(2, 3, 65_536, dim=64)
    inputs = [x.bfloat16() for x in (rows(4, 3, 64, seed=5), rows(65_536, 64, seed=6))]
    with torch.autocast("cpu", torch.bfloat16):
        mine = value_and_gradients(
            lambda h, w: distillation_loss(h.float(), w.float(), targets, TEMP, num_skipped),
            *inputs,
        )
        value = distillation_loss(*inputs, targets, TEMP, num_skipped)
    assert value.dtype == torch.float32
    probs = teacher_probs(targets)
    theirs = value_and_gradients(
        lambda h, w: plain(h.double(), w.double(), probs, TEMP, num_skipped), *inputs
    )
    # gradients by leaves of bf16 are rounded to it
    same([value.double(), *mine[1:]], theirs, gradient=1e-2)
    exact = value_and_gradients(
        lambda h, w: plain(h, w, probs, TEMP, num_skipped), *inputs, dtype=torch.float64
    )
    same(
        value_and_gradients(
            lambda h, w: distillation_loss(h, w, targets, TEMP, num_skipped),
            *inputs,
            dtype=torch.float32,
        ),
        exact,
    )


def test_autocast_changes_no_bit_forward_or_backward():
    targets, inputs = make_targets(2, 3, 50), [rows(4, 3, 8, seed=5), rows(50, 8, seed=6)]
    plainly = value_and_gradients(lambda h, w: distillation_loss(h, w, targets, TEMP, 1), *inputs)
    with torch.autocast("cpu", torch.bfloat16):
        under = value_and_gradients(lambda h, w: distillation_loss(h, w, targets, TEMP, 1), *inputs)
    assert all(map(torch.equal, under, plainly))


def test_a_weighted_loss_has_weighted_gradients():
    targets, inputs = make_targets(2, 3, 50), [rows(4, 3, 8, seed=5), rows(50, 8, seed=6)]
    once = value_and_gradients(lambda h, w: distillation_loss(h, w, targets, TEMP, 1), *inputs)
    weighted = value_and_gradients(
        lambda h, w: -2.5 * distillation_loss(h, w, targets, TEMP, 1), *inputs
    )
    same(weighted, [-2.5 * x for x in once])


def test_nothing_of_k_columns_is_kept_or_made():
    """Saved for the backward pass: a hundredth of one table of logits.

    Made at any time: less than the table.
    """
    views, batch, prototypes, dim = 4, 32, 65_536, 16
    targets, table = make_targets(2, batch, prototypes, dim), views * batch * prototypes
    h, w = (
        rows(views, batch, dim, seed=5).requires_grad_(),
        rows(prototypes, dim, seed=6).requires_grad_(),
    )
    saved, largest = [], [0]

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            largest[0] = max(
                [
                    largest[0],
                    *(
                        x.numel()
                        for x in torch.utils._pytree.tree_leaves(out)
                        if isinstance(x, torch.Tensor)
                    ),
                ]
            )
            return out

    with Largest():
        with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
            loss = distillation_loss(h, w, targets, TEMP)
        loss.backward()
    own = {
        x.data_ptr(): x.numel() for x in saved if x.data_ptr() not in (h.data_ptr(), w.data_ptr())
    }
    assert sum(own.values()) < table / 100
    assert prototypes * dim < largest[0] <= distillation.CHUNK < table


def test_no_pair_is_dropped_where_the_student_holds_local_views_only():
    """With one teacher view that agrees with the first student view alone.

    Dropping the diagonal would hide it.
    """
    prototypes = torch.eye(4)
    targets = Targets(
        prototypes[:1, None] * 100, prototypes, torch.zeros(4), torch.full((1, 1), 100 / 0.04), 0.04
    )
    features = torch.stack([prototypes[:1], torch.zeros(1, 4)])
    expected = (-math.log(math.exp(10) / (math.exp(10) + 3)) + math.log(4)) / 2
    assert float(distillation_loss(features, prototypes, targets, TEMP)) == pytest.approx(
        expected, rel=1e-6
    )
    assert float(
        distillation_loss(features, prototypes, targets, TEMP, num_skipped=1)
    ) == pytest.approx(math.log(4), rel=1e-6)


def test_it_is_least_at_the_teachers_own_distribution():
    """There the cross-entropy is the teacher's entropy and its gradient zero."""
    features, weights = rows(1, 4, 8, seed=0), rows(50, 8, seed=1)
    targets = Targets(
        features, weights, torch.zeros(50), log_sum_exp(features, weights, TEMP), TEMP
    )
    probs = teacher_probs(targets)
    value, gradient, _ = value_and_gradients(
        lambda h, w: distillation_loss(h, w, targets, TEMP), features, weights
    )
    torch.testing.assert_close(value, -(probs * probs.log()).sum(-1).mean(), rtol=1e-5, atol=1e-6)
    assert gradient.abs().max() < 1e-6
    assert distillation_loss(rows(1, 4, 8, seed=9), weights, targets, TEMP) > value


@pytest.mark.parametrize(("num_global", "num_local"), [(2, 0), (2, 6), (1, 3), (3, 1)])
def test_it_equals_lightly_where_identical_views_are_skipped(num_global, num_local):
    """DINO's pairing: the student shows every view, the teacher its first ones, the global."""
    from lightly.loss import DINOLoss

    targets = make_targets(num_global, 4, 64)
    inputs = [rows(num_global + num_local, 4, 8, seed=7), rows(64, 8, seed=8)]
    peer = DINOLoss(64, teacher_temp=TEACHER_TEMP, student_temp=TEMP)
    peer.center.copy_(targets.offsets.view(1, 1, -1))
    logits = list(targets.features @ targets.prototypes.T)
    mine = value_and_gradients(
        lambda h, w: distillation_loss(h, w, targets, TEMP, num_skipped=num_global), *inputs
    )
    same(mine, value_and_gradients(lambda h, w: peer(logits, list(h @ w.T)), *inputs), value=1e-5)


def test_probabilities_are_the_softmax_in_chunks_too(monkeypatch):
    targets = make_targets(2, 3, 100)
    expected = teacher_probs(targets).float()
    torch.testing.assert_close(targets.probabilities(), expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(
        targets.probabilities(slice(20, 33)), expected[..., 20:33], rtol=1e-5, atol=1e-7
    )


@given(prototypes=st.integers(1, 500), num_rows=st.integers(1, 500), chunk=st.integers(1, 5000))
def test_chunks_cover_each_prototype_once_and_keep_to_the_size(prototypes, num_rows, chunk):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distillation, "CHUNK", chunk)
        found = list(chunks(prototypes, num_rows))
    assert [k for columns in found for k in range(columns.start, columns.stop)] == list(
        range(prototypes)
    )
    assert all((c.stop - c.start) * num_rows <= chunk or c.stop - c.start == 1 for c in found)


def test_extreme_features_do_not_overflow():
    targets = make_targets(1, 2, 8)
    assert torch.isfinite(
        distillation_loss(500 * rows(1, 2, 8, seed=1), rows(8, 8, seed=2), targets, 0.04)
    )


def test_it_changes_no_state_and_draws_no_random_numbers():
    targets, h, w = (
        make_targets(2, 3, 20),
        rows(3, 3, 8, seed=1).requires_grad_(),
        rows(20, 8, seed=2),
    )
    before, random_state = copy.deepcopy((tuple(targets), h.detach(), w)), torch.get_rng_state()
    values = [distillation_loss(h, w, targets, TEMP, 1) for _ in range(2)]
    values[0].backward()
    assert values[0] == values[1]
    assert all(torch.equal(a, b) for a, b in zip(before[0][:4], targets[:4], strict=True))
    assert torch.equal(before[1], h)
    assert torch.equal(before[2], w)
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_of_unit_length_and_their_gradient_are_torchs_own(dtype):
    """Rows of very different lengths, and one of zeros, which stays zero."""
    generator = torch.Generator().manual_seed(3)
    matrix = torch.randn(50, 8, generator=generator, dtype=dtype) * torch.logspace(
        -3, 3, 50, dtype=dtype
    ).unsqueeze(1)
    weights = torch.randn(50, 8, generator=generator, dtype=dtype)
    mine = value_and_gradients(lambda x: (distillation.unit_rows(x) ** 3 * weights).sum(), matrix)
    same(mine, value_and_gradients(lambda x: (F.normalize(x, dim=-1) ** 3 * weights).sum(), matrix))
    assert not distillation.unit_rows(torch.zeros(1, 8)).any()
    if dtype == torch.float64:
        assert torch.autograd.gradcheck(
            distillation.unit_rows, matrix[20:30].clone().requires_grad_()
        )
