"""The EMA teacher: its formula in float64, its centre, and what it must not do."""

from dataclasses import replace

import pytest
import torch
from runs import close, differing

from silc_bench.trainer.config.config import (
    Config,
    DistillationConfig,
    MaskedConfig,
    TextConfig,
    VisionConfig,
    without_heads,
)
from silc_bench.trainer.silc.student import Student, init_weights
from silc_bench.trainer.silc.teacher import Teacher
from silc_bench.trainer.silc.views import Views

SIZE = {"width": 32, "depth": 1, "num_heads": 2, "mlp_dim": 48}
CONFIG = Config(
    preset="tiny",
    vision=VisionConfig(image_size=16, patch_size=8, **SIZE),
    text=TextConfig(vocab_size=300, context_length=8, **SIZE),
    distillation=DistillationConfig(num_prototypes=50, hidden_dim=24, bottleneck_dim=16),
    masked=MaskedConfig(weight=1.0),
)
VIEWS = Views(
    global_crops=torch.rand(2, 3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
)


def pair(config=CONFIG, **fields):
    """A student, and its teacher as the run starts."""
    student = Student(config)
    init_weights(student, seed=0)
    return student, Teacher(student, replace(config.distillation, **fields))


def shake(student, seed, size=0.05):
    """As an optimiser step would: every parameter of the student moves."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=size)


def followed(student):
    """The student's parameters that the teacher follows, by the teacher's names."""
    starts = ("vision.", "head.", "patch_head.")
    return {
        name: value.detach().clone()
        for name, value in student.named_parameters()
        if name.startswith(starts)
    }


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def probabilities(teacher):
    return teacher.targets(VIEWS).views.probabilities()


# --- the average ----------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [CONFIG, without_heads(CONFIG)], ids=["heads", "tower alone"])
@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.966, 0.9999, 1.0])
def test_update_is_the_formula_at_every_step(momentum, config):
    """A copy at first, then teacher <- m teacher + (1 - m) student at each of 20 steps."""
    student, teacher = pair(config)
    expected = followed(student)
    assert not differing(dict(teacher.named_parameters()), expected)
    for step in range(20):
        shake(student, seed=step)
        before = state(student)
        teacher.update(student, momentum)
        assert not differing(state(student), before)
        for name, weight in followed(student).items():
            expected[name] = momentum * expected[name].double() + (1 - momentum) * weight.double()
    for name, weight in teacher.named_parameters():
        close(weight.double(), expected[name], 1e-6)


def test_a_slow_teacher_moves_under_autocast():
    """In bf16 a step of 1e-4 of a small distance would round to nothing."""
    student, teacher = pair()
    with torch.no_grad():
        for weight in student.parameters():
            weight.add_(0.01)
    before = state(teacher)
    with torch.autocast("cpu", torch.bfloat16):
        teacher.targets(VIEWS)
        teacher.update(student, 0.9999)
    for name, weight in teacher.named_parameters():
        assert weight.dtype == torch.float32
        moved = (weight.double() - before[name].double()).mean().item()
        assert moved == pytest.approx(1e-6, rel=0.1), name


# --- targets and centre ---------------------------------------------------------------------------


def test_targets_are_the_centred_softmax_of_the_global_crops():
    _, teacher = pair(teacher_temp=0.07)
    teacher.center.copy_(torch.randn(50) / 10)
    for crop, probs in zip(VIEWS.global_crops, probabilities(teacher), strict=True):
        logits = teacher.head(teacher.vision(crop)).double() - teacher.center.double()
        close(probs.double(), torch.softmax(logits / 0.07, -1), 1e-4, atol=1e-6)


def test_targets_in_bf16_are_fp32_and_sum_to_one():
    _, teacher = pair()
    exact = probabilities(teacher)
    with torch.autocast("cpu", torch.bfloat16):
        targets = teacher.targets(VIEWS)
    assert {x.dtype for x in targets.views[:4]} == {torch.float32}
    assert not any(x.requires_grad for x in targets.views[:4])
    probs = targets.views.probabilities()
    close(probs.sum(-1), torch.ones(2, 3))
    assert (probs - exact).abs().sum(-1).max() < 0.1


def test_targets_stay_when_the_teacher_moves():
    """They are made before the step and read after it, for the centre."""
    student, teacher = pair()
    targets = teacher.targets(VIEWS)
    before = targets.views.probabilities()
    shake(student, seed=1)
    teacher.update(student, 0.9)
    teacher.update_center(targets)
    assert torch.equal(targets.views.probabilities(), before)


@pytest.mark.parametrize("momentum", [0.0, 0.9, 1.0])
def test_center_is_the_formula(momentum):
    """The mean of the logits themselves, of views, images and steps that differ."""
    student, teacher = pair(center_momentum=momentum)
    center = torch.zeros(50, dtype=torch.float64)
    for seed in range(5):
        shake(student, seed)
        teacher.update(student, 0.9)
        before = state(teacher)
        teacher.update_center(teacher.targets(VIEWS))
        assert differing(state(teacher), before) <= {"center"}
        logits = teacher.head(teacher.vision(VIEWS.global_crops.flatten(0, 1))).double()
        center = momentum * center + (1 - momentum) * logits.mean(0)
    close(teacher.center.double(), center, atol=1e-6)


def test_sinkhorn_balances_the_prototypes():
    """Against a table divided by its columns and rows in float64; there is no centre to keep."""
    _, teacher = pair(centering="sinkhorn", teacher_temp=0.07)
    targets = teacher.targets(VIEWS)
    logits = targets.views.features.double() @ targets.views.prototypes.double().T
    table = torch.exp(logits.flatten(0, 1) / 0.07)
    for _ in range(3):
        table = table / table.sum(0, keepdim=True)
        table = table / table.sum(1, keepdim=True)
    close(targets.views.probabilities().flatten(0, 1).double(), table, 1e-4, atol=1e-7)
    before = state(teacher)
    teacher.update_center(targets)
    assert not differing(state(teacher), before)


def test_teacher_gets_no_gradient():
    student, teacher = pair()
    logits = student.head(student.vision(VIEWS.global_crops[0]))
    (logits * probabilities(teacher)[0]).sum().backward()
    assert all(not p.requires_grad and p.grad is None for p in teacher.parameters())


def test_without_a_head_there_are_no_targets():
    with pytest.raises(AssertionError, match="targets need a head"):
        pair(without_heads(CONFIG))[1].targets(VIEWS)
