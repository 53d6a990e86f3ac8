"""Fused, chunked distillation against float64 loops and lightly, in any chunks; its memory."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from runs import LargestTensor, close, saved_bytes, value_and_gradients
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from silc_bench.trainer.config.config import DistillationConfig
from silc_bench.trainer.silc import distillation
from silc_bench.trainer.silc.distillation import Head, Targets, distillation_loss, log_sum_exp
from silc_bench.trainer.silc.teacher import Teacher

TEMP, TEACHER_TEMP = 0.1, 0.04


def rows(*shape, seed):
    """[..., d] of unit length."""
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def make_targets(views, batch, prototypes, dim=8, seed=0):
    features, weights = rows(views, batch, dim, seed=seed), rows(prototypes, dim, seed=seed + 1)
    offsets = torch.randn(prototypes, generator=torch.Generator().manual_seed(seed + 2)) / 10
    normalizers = log_sum_exp(features, weights, TEACHER_TEMP, offsets)
    return Targets(features, weights, offsets, normalizers, TEACHER_TEMP)


def same(mine, theirs, value=1e-6, gradient=1e-5, floor=0.0):
    """``gradient``: of its largest entry, or of ``floor`` where all that adds up to it cancels."""
    close(mine[0], theirs[0], value)
    for one, other in zip(mine[1:], theirs[1:], strict=True):
        close(one, other, gradient, atol=gradient * max(floor, other.abs().max().item()))


def by_pairs(targets, temp, num_skipped):
    """The loss from its definition, for a pair of views at a time; of float64."""
    logits = targets.features.double() @ targets.prototypes.double().T - targets.offsets.double()
    probs = torch.softmax(logits / targets.temp, dim=-1)

    def loss(features, prototypes):
        terms = []
        for t, taught in enumerate(probs):
            for s, view in enumerate(features):
                if t != s or s >= num_skipped:
                    logs = F.log_softmax(view @ prototypes.T / temp, -1)
                    terms.append(-(taught * logs).sum(-1).mean())
        return sum(terms) / len(terms)

    return loss


def ours(targets, temp=TEMP, num_skipped=0):
    return lambda h, w: distillation_loss(h, w, targets, temp, num_skipped)


@settings(max_examples=60)
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
def test_value_and_gradients_equal_the_loop(
    teachers, students, batch, prototypes, skipped, temp, weight, chunk
):
    """For any numbers of views, in chunks of one prototype, of a few, and in one."""
    assume(teachers * students > min(teachers, students, skipped))
    targets = make_targets(teachers, batch, prototypes, seed=prototypes)
    inputs = [rows(students, batch, 8, seed=batch), rows(prototypes, 8, seed=skipped)]
    mine, theirs = ours(targets, temp, skipped), by_pairs(targets, temp, skipped)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distillation, "CHUNK", {"cpu": chunk})
        values = value_and_gradients(lambda h, w: weight * mine(h, w), *inputs)
    expected = value_and_gradients(lambda h, w: weight * theirs(h, w), *inputs, dtype=torch.float64)
    # a logit of 25 has an ulp of 2e-6
    same(values, expected, value=1e-5, floor=1 / temp)


def test_autocast_changes_no_bit_and_of_bf16_only_the_rounding_is_lost():
    loss = ours(make_targets(2, 3, 50), num_skipped=1)
    rounded = [x.bfloat16() for x in (rows(4, 3, 8, seed=5), rows(50, 8, seed=6))]
    wide = [x.float() for x in rounded]
    plainly = value_and_gradients(loss, *wide)
    with torch.autocast("cpu", torch.bfloat16):
        assert all(map(torch.equal, value_and_gradients(loss, *wide), plainly))
        value = loss(*rounded)
    assert value.dtype == torch.float32
    assert value.double() == plainly[0]


class Products(TorchDispatchMode):
    """In which precisions a GPU would compute the products of matrices inside."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket.__name__ in ("mm", "bmm", "addmm", "addmm_"):
            self.found.add(torch.backends.cuda.matmul.fp32_precision)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("centering", ["mean", "sinkhorn"])
@pytest.mark.parametrize(("products", "seen"), [("fp32", {"none"}), ("tf32", {"tf32"})])
def test_tf32_is_asked_for_in_the_heads_products_and_nowhere_else(centering, products, seen):
    """Of the teacher and the student, forward and backward; afterwards it is as it was."""
    config = DistillationConfig(
        num_prototypes=40, hidden_dim=8, bottleneck_dim=8, products=products, centering=centering
    )
    student = nn.Module()
    student.vision, student.patch_head, student.head = None, None, Head(8, config)
    nn.init.normal_(student.head.prototypes)
    teacher = Teacher(student, config)
    h, w = (rows(*shape, 8, seed=5).requires_grad_() for shape in ((3, 4), (40,)))
    with Products() as made:
        targets = teacher._of(rows(2, 4, 8, seed=1), teacher.head, teacher.center)
        distillation_loss(h, w, targets, TEMP, 2).backward()
    assert made.found == seen
    assert torch.backends.cuda.matmul.fp32_precision == "none"


def test_nothing_of_k_columns_is_kept_or_made(monkeypatch):
    """Saved for the backward pass: a hundredth of one table of logits.

    Made at any time, by the teacher too: less than its smaller table.
    """
    monkeypatch.setattr(distillation, "CHUNK", {"cpu": 2**21})
    views, batch, prototypes, dim = 2, 32, 65_536, 16
    table = views * batch * prototypes
    leaves = [
        rows(*shape, dim, seed=5).requires_grad_() for shape in ((views, batch), (prototypes,))
    ]
    with LargestTensor() as largest:
        targets = make_targets(views, batch, prototypes, dim)
        saved, loss = saved_bytes(lambda: ours(targets)(*leaves))
        loss.backward()
    for leaf in leaves:
        saved.pop(leaf.data_ptr(), None)
    assert sum(saved.values()) < 4 * table / 100
    assert prototypes * dim < largest.numel <= distillation.CHUNK["cpu"] < table


@pytest.mark.parametrize(("num_global", "num_local"), [(2, 0), (2, 6), (1, 3), (3, 1)])
def test_it_equals_lightly_where_identical_views_are_skipped(num_global, num_local):
    """DINO's pairing: the student shows every view, the teacher its first ones, the global."""
    from lightly.loss import DINOLoss

    targets = make_targets(num_global, 4, 64)
    inputs = [rows(num_global + num_local, 4, 8, seed=7), rows(64, 8, seed=8)]
    peer = DINOLoss(64, teacher_temp=TEACHER_TEMP, student_temp=TEMP)
    peer.center.copy_(targets.offsets.view(1, 1, -1))
    logits = list(targets.features @ targets.prototypes.T)
    theirs = value_and_gradients(lambda h, w: peer(logits, list(h @ w.T)), *inputs)
    same(value_and_gradients(ours(targets, TEMP, num_global), *inputs), theirs, value=1e-5)


def test_extreme_features_do_not_overflow():
    targets = make_targets(1, 2, 8)
    assert distillation_loss(500 * rows(1, 2, 8, seed=1), rows(8, 8, seed=2), targets, 0.04) < 1e5
