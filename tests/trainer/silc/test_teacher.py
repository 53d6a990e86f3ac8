"""The EMA teacher: its formula in float64, its centre, and what it must not do."""

import copy
from dataclasses import replace

import pytest
import torch

from silc_bench.trainer.config.config import (
    Config,
    DistillationConfig,
    TextConfig,
    VisionConfig,
    apply_objective,
)
from silc_bench.trainer.optim import make_optimizer
from silc_bench.trainer.silc.student import Student, init_weights
from silc_bench.trainer.silc.teacher import Teacher
from silc_bench.trainer.silc.views import Views

SIZE = {"width": 32, "depth": 1, "num_heads": 2, "mlp_dim": 48}
CONFIG = Config(
    preset="tiny",
    vision=VisionConfig(image_size=16, patch_size=8, **SIZE),
    text=TextConfig(vocab_size=300, context_length=8, **SIZE),
    distillation=DistillationConfig(num_prototypes=50, hidden_dim=24, bottleneck_dim=16),
)
VIEWS = Views(
    global_crops=torch.rand(2, 3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
)


def pair(**fields):
    """A student, and its teacher as the run starts."""
    config = replace(CONFIG, distillation=replace(CONFIG.distillation, **fields))
    student = Student(config)
    init_weights(student, seed=0)
    return student, Teacher(student, config.distillation)


def shake(student, seed, size=0.05):
    """As an optimiser step would: every parameter of the student moves."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=size)


def shared(student):
    """The student's parameters that the teacher follows, by the teacher's names."""
    return {
        name: p for name, p in student.named_parameters() if name.startswith(("vision.", "head."))
    }


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(module, before):
    return {
        name for name, value in module.state_dict().items() if not torch.equal(value, before[name])
    }


# --- the average ----------------------------------------------------------------------------------


def test_teacher_starts_as_a_copy_of_tower_and_head_alone():
    student, teacher = pair()
    assert set(dict(teacher.named_parameters())) == set(shared(student))
    assert all(torch.equal(p, shared(student)[name]) for name, p in teacher.named_parameters())
    before = state(teacher)
    shake(student, seed=1)
    assert changed(teacher, before) == set()


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.9, 0.966, 0.9999, 1.0])
def test_update_is_the_formula_at_every_step(momentum):
    """teacher <- m teacher + (1 - m) student, the same m at each of 20 steps, against float64."""
    student, teacher = pair()
    expected = {name: p.double().clone() for name, p in teacher.named_parameters()}
    for step in range(20):
        shake(student, seed=step)
        teacher.update(student, momentum)
        for name, p in shared(student).items():
            expected[name] = momentum * expected[name] + (1 - momentum) * p.detach().double()
    for name, p in teacher.named_parameters():
        torch.testing.assert_close(p.double(), expected[name], rtol=1e-6, atol=1e-6)


def test_momentum_one_never_moves_and_zero_copies_bit_for_bit():
    (student, still), (_, copying) = pair(), pair()
    before = state(still)
    shake(student, seed=3)
    still.update(student, 1.0)
    copying.update(student, 0.0)
    assert changed(still, before) == set()
    assert all(torch.equal(p, shared(student)[name]) for name, p in copying.named_parameters())


def test_update_moves_the_teacher_only_and_every_part_of_it():
    student, teacher = pair()
    shake(student, seed=4)
    students, teachers = state(student), state(teacher)
    teacher.update(student, 0.9)
    assert changed(student, students) == set()
    assert changed(teacher, teachers) == set(shared(student))


def test_a_slow_teacher_moves_under_autocast():
    """In bf16 a step of 1e-4 of a small distance would round to nothing."""
    student, teacher = pair()
    with torch.no_grad():
        for p in student.parameters():
            p.add_(0.01)
    before = state(teacher)
    with torch.autocast("cpu", torch.bfloat16):
        teacher.targets(VIEWS)
        teacher.update(student, 0.9999)
    assert {p.dtype for p in [*teacher.parameters(), *teacher.buffers()]} == {torch.float32}
    for name, p in teacher.named_parameters():
        moved = (p.double() - before[name].double()).mean().item()
        assert moved == pytest.approx(1e-6, rel=0.1), name


# --- targets and centre ---------------------------------------------------------------------------


def test_targets_are_the_centred_softmax_of_the_global_crops():
    _, teacher = pair(teacher_temp=0.07)
    teacher.center.copy_(torch.randn(50) / 10)
    probs = teacher.targets(VIEWS).views.probabilities()
    assert probs.shape == (2, 3, 50)
    for t in range(2):
        alone = teacher.head(teacher.vision(VIEWS.global_crops[t]))
        for b in range(3):
            powers = torch.exp((alone[b].double() - teacher.center.double()) / 0.07)
            torch.testing.assert_close(
                probs[t, b].double(), powers / powers.sum(), rtol=1e-4, atol=1e-6
            )


def test_targets_in_bf16_are_fp32_and_sum_to_one():
    _, teacher = pair()
    exact = teacher.targets(VIEWS).views.probabilities()
    with torch.autocast("cpu", torch.bfloat16):
        targets = teacher.targets(VIEWS)
    assert {x.dtype for x in targets.views[:4]} == {torch.float32}
    probs = targets.views.probabilities()
    torch.testing.assert_close(probs.sum(-1), torch.ones(2, 3))
    assert (probs - exact).abs().sum(-1).max() < 0.1


def test_asking_for_targets_changes_no_state_and_draws_no_random_numbers():
    _, teacher = pair()
    teacher.center.copy_(torch.randn(50))
    before, random_state = state(teacher), torch.get_rng_state()
    first, again = teacher.targets(VIEWS), teacher.targets(VIEWS)
    assert all(
        torch.equal(one, other) for one, other in zip(first.views[:4], again.views[:4], strict=True)
    )
    assert changed(teacher, before) == set()
    assert torch.equal(torch.get_rng_state(), random_state)


def test_targets_stay_when_the_teacher_moves():
    """They are made before the step and read after it, for the centre."""
    student, teacher = pair()
    targets = teacher.targets(VIEWS)
    before = [x.clone() for x in targets.views[:4]]
    shake(student, seed=1)
    teacher.update(student, 0.9)
    teacher.update_center(targets)
    assert all(
        torch.equal(one, other) for one, other in zip(before, targets.views[:4], strict=True)
    )


@pytest.mark.parametrize("momentum", [0.0, 0.9, 1.0])
def test_center_is_the_formula(momentum):
    """The mean of the logits themselves, of views, pictures and steps that differ."""
    student, teacher = pair(center_momentum=momentum)
    center = torch.zeros(50, dtype=torch.float64)
    for seed in range(5):
        shake(student, seed)
        teacher.update(student, 0.9)
        targets = teacher.targets(VIEWS)
        before = state(teacher)
        teacher.update_center(targets)
        assert changed(teacher, before) <= {"center"}
        logits = teacher.head(teacher.vision(VIEWS.global_crops.flatten(0, 1))).view(2, 3, 50)
        mean = sum(logits[t, b].double() for t in range(2) for b in range(3)) / 6
        center = momentum * center + (1 - momentum) * mean
    torch.testing.assert_close(teacher.center.double(), center, rtol=1e-5, atol=1e-6)


def test_center_and_targets_equal_lightlys():
    """Step after step: the targets of a step are made with the centre before it."""
    from lightly.loss import DINOLoss

    student, teacher = pair(center_momentum=0.8)
    peer = DINOLoss(50, teacher_temp=0.04, student_temp=0.1, center_momentum=0.8)
    for step in range(4):
        targets = teacher.targets(VIEWS)
        logits = targets.views.features @ targets.views.prototypes.T
        expected = torch.softmax((logits - peer.center) / 0.04, -1)
        torch.testing.assert_close(targets.views.probabilities(), expected, rtol=1e-4, atol=1e-6)
        peer(list(logits), [*logits, torch.randn(3, 50)])
        teacher.update_center(targets)
        torch.testing.assert_close(teacher.center, peer.center.flatten(), rtol=1e-5, atol=1e-7)
        shake(student, seed=step)
        teacher.update(student, 0.9)


def test_sinkhorn_balances_the_prototypes():
    """Against a table divided by its columns and rows in float64; there is no centre to keep."""
    _, teacher = pair(centering="sinkhorn", teacher_temp=0.07)
    targets = teacher.targets(VIEWS)
    table = torch.exp(
        (targets.views.features.double() @ targets.views.prototypes.double().T).flatten(0, 1) / 0.07
    )
    table /= table.sum()
    for _ in range(3):
        table = table / table.sum(0, keepdim=True) / table.shape[1]
        table = table / table.sum(1, keepdim=True) / table.shape[0]
    table *= table.shape[0]
    torch.testing.assert_close(
        targets.views.probabilities().flatten(0, 1).double(), table, rtol=1e-4, atol=1e-7
    )
    before = state(teacher)
    teacher.update_center(targets)
    assert changed(teacher, before) == set()


# --- what it must not do --------------------------------------------------------------------------


def test_teacher_gets_no_gradient_and_is_not_optimised():
    student, teacher = pair()
    targets = teacher.targets(VIEWS)
    assert not any(x.requires_grad for x in targets.views[:4])
    assert not any(p.requires_grad for p in teacher.parameters())
    optimised = {
        id(p)
        for group in make_optimizer(student, CONFIG.optim).param_groups
        for p in group["params"]
    }
    assert optimised == {id(p) for p in student.parameters()}
    assert not optimised & {id(p) for p in teacher.parameters()}
    out = student.head(student.vision(VIEWS.global_crops[0]))
    (out * targets.views.probabilities()[0]).sum().backward()
    assert all(p.grad is None for p in teacher.parameters())


def test_everything_is_saved():
    student, teacher = pair()
    shake(student, seed=5)
    teacher.update(student, 0.9)
    teacher.update_center(teacher.targets(VIEWS))
    _, other = pair()
    other.load_state_dict(copy.deepcopy(teacher.state_dict()))
    assert "center" in teacher.state_dict()
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            other.targets(VIEWS).views[:4], teacher.targets(VIEWS).views[:4], strict=True
        )
    )


def test_without_a_head_it_is_the_average_of_the_tower():
    config = apply_objective(CONFIG, "contrastive")
    student = Student(config)
    init_weights(student, seed=0)
    teacher = Teacher(student, config.distillation)
    assert set(teacher.state_dict()) == {
        name for name in student.state_dict() if name.startswith("vision.")
    }
    shake(student, seed=6)
    before = state(teacher)
    teacher.update(student, 0.9)
    name = "vision.patch.weight"
    torch.testing.assert_close(
        teacher.state_dict()[name], 0.9 * before[name] + 0.1 * student.vision.patch.weight
    )
    with pytest.raises(AssertionError, match="targets need a head"):
        teacher.targets(VIEWS)
