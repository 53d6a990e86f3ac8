"""The EMA teacher: its formula in float64, its centre, and what it must not do."""

import pytest
import torch
from runs import close, differing, student_of

from silc_bench.trainer.silc.teacher import Teacher
from silc_bench.trainer.silc.views import Views

VIEWS = Views(
    global_crops=torch.rand(2, 3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
)


@pytest.fixture
def pair(tiny):
    """A student, and its teacher as the run starts."""

    def make(**changes):
        config = tiny(**changes)
        student = student_of(config)
        return student, Teacher(student, config.distillation)

    return make


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


@pytest.mark.parametrize(
    "changes", [{"masked": {"weight": 1.0}}, {"distillation": {"weight": 0.0}}], ids=str
)
@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.9999, 1.0])
def test_update_is_the_formula_at_every_step(pair, momentum, changes):
    """A copy at first, then teacher <- m teacher + (1 - m) student at each of 20 steps."""
    student, teacher = pair(**changes)
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


# --- targets and centre ---------------------------------------------------------------------------


def test_targets_are_the_centred_softmax_of_the_global_crops_in_fp32(pair):
    """Of a tower in bf16 too."""
    _, teacher = pair(distillation={"teacher_temp": 0.07})
    teacher.center.copy_(torch.randn(64) / 10)
    for crop, probs in zip(VIEWS.global_crops, probabilities(teacher), strict=True):
        logits = teacher.head(teacher.vision(crop)).double() - teacher.center.double()
        close(probs.double(), torch.softmax(logits / 0.07, -1), 1e-4, atol=1e-6)

    with torch.autocast("cpu", torch.bfloat16):
        rounded = teacher.targets(VIEWS).views
    assert {x.dtype for x in rounded[:4]} == {torch.float32}
    assert not any(x.requires_grad for x in rounded[:4])
    probs = rounded.probabilities()
    close(probs.sum(-1), torch.ones(2, 3))
    assert (probs - probabilities(teacher)).abs().sum(-1).max() < 0.1


def test_sinkhorn_balances_the_prototypes(pair):
    """Against a table divided by its columns and rows in float64; there is no centre to keep."""
    _, teacher = pair(distillation={"centering": "sinkhorn", "teacher_temp": 0.07})
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
