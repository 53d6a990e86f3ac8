"""The losses against loops written from their formulas in float64, and against open_clip, transformers and lightly."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from lightly.loss import DINOLoss
from open_clip.loss import ClipLoss, SigLipLoss
from transformers import SiglipConfig, SiglipModel

from trainer.losses import cosine, distillation_loss, sigmoid_loss, softmax_loss

TEMP = 0.1


def features(batch, dim, seed, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(batch, dim, generator=generator) for _ in range(2)]


def distributions(views, batch, prototypes, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(torch.randn(views, batch, prototypes, generator=generator) * 4, dim=-1)


def value_and_gradients(loss, *inputs, dtype=None):
    """Value and gradients of ``loss`` at copies of ``inputs``, as float64."""
    leaves = [x.detach().to(dtype or x.dtype).clone().requires_grad_() for x in inputs]
    value = loss(*leaves)
    return [value.detach().double(), *(g.double() for g in torch.autograd.grad(value, leaves))]


def same(mine, theirs, tolerance=1e-5):
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


# --- from the formula, one pair at a time ------------------------------------------------------------------------------


def unit(x):
    return x / sum(v * v for v in x).sqrt()


def naive_sigmoid(images, texts, scale, bias):
    total = 0.0
    for i in range(len(images)):
        for j in range(len(texts)):
            z = 1.0 if i == j else -1.0
            total = total - torch.log(1 / (1 + torch.exp(-z * (scale * torch.dot(unit(images[i]), unit(texts[j])) + bias))))
    return total / len(images)


def naive_softmax(images, texts, scale):
    def one_way(queries, keys):
        total = 0.0
        for i in range(len(queries)):
            weights = [torch.exp(scale * torch.dot(unit(queries[i]), unit(key))) for key in keys]
            total = total - torch.log(weights[i] / sum(weights))
        return total / len(queries)

    return (one_way(images, texts) + one_way(texts, images)) / 2


def naive_distillation(student, teacher, temp, num_skipped):
    total, pairs = 0.0, 0
    for t in range(len(teacher)):
        for s in range(len(student)):
            if t == s and s < num_skipped:
                continue
            pairs += 1
            for b in range(student.shape[1]):
                powers = torch.exp(student[s, b] / temp)
                for k in range(student.shape[2]):
                    total = total - teacher[t, b, k] * torch.log(powers[k] / powers.sum())
    return total / (pairs * student.shape[1])


@pytest.mark.parametrize(("scale", "bias"), [(10.0, -10.0), (1.0, 0.0), (25.0, -3.0)])
@pytest.mark.parametrize("batch", [2, 7])
def test_sigmoid_value_and_gradient_equal_the_loop(batch, scale, bias):
    inputs = [*features(batch, 5, seed=batch), torch.tensor(scale), torch.tensor(bias)]
    same(value_and_gradients(sigmoid_loss, *inputs), value_and_gradients(naive_sigmoid, *inputs, dtype=torch.float64))


@pytest.mark.parametrize("scale", [1.0, 10.0, 40.0])
@pytest.mark.parametrize("batch", [2, 7])
def test_softmax_value_and_gradient_equal_the_loop(batch, scale):
    inputs = [*features(batch, 5, seed=batch), torch.tensor(scale)]
    same(value_and_gradients(softmax_loss, *inputs), value_and_gradients(naive_softmax, *inputs, dtype=torch.float64))


@pytest.mark.parametrize(
    ("teachers", "students", "num_skipped"),
    [(2, 4, 0), (1, 1, 0), (2, 2, 0), (3, 1, 0), (2, 5, 2), (2, 2, 2), (1, 4, 1), (3, 2, 3), (2, 4, 1)],
)
def test_distillation_value_and_gradient_equal_the_loop(teachers, students, num_skipped):
    batch, prototypes = 3, 11
    logits = torch.randn(students, batch, prototypes, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)
    probs = distributions(teachers, batch, prototypes, seed=2)
    mine = value_and_gradients(lambda x: distillation_loss(x, probs, TEMP, num_skipped), logits)
    theirs = value_and_gradients(
        lambda x: naive_distillation(x, probs.double(), TEMP, num_skipped), logits, dtype=torch.float64
    )
    same(mine, theirs)


@settings(max_examples=25, deadline=None)
@given(
    teachers=st.integers(1, 3),
    students=st.integers(1, 6),
    batch=st.integers(1, 5),
    prototypes=st.integers(2, 400),
    skipped=st.integers(0, 3),
    temp=st.sampled_from([0.04, 0.1, 1.0]),
)
def test_distillation_of_any_shape(teachers, students, batch, prototypes, skipped, temp):
    """Against log_softmax in float64, a pair of views at a time; hundreds of prototypes."""
    generator = torch.Generator().manual_seed(prototypes)
    logits = torch.rand(students, batch, prototypes, generator=generator) * 2 - 1
    probs = distributions(teachers, batch, prototypes, seed=batch)
    pairs = [(t, s) for t in range(teachers) for s in range(students) if not (t == s and s < skipped)]
    if not pairs:
        return

    def loop(x):
        return sum(-(probs[t].double() * F.log_softmax(x[s] / temp, -1)).sum(-1).mean() for t, s in pairs) / len(pairs)

    mine = value_and_gradients(lambda x: distillation_loss(x, probs, temp, skipped), logits)
    same(mine, value_and_gradients(loop, logits, dtype=torch.float64))


def test_no_pair_is_dropped_where_the_student_holds_local_views_only():
    """With one teacher view that agrees with the first student view alone, dropping the diagonal would hide it."""
    logits = torch.zeros(2, 1, 4)
    logits[0, 0, 0] = 1.0
    probs = torch.eye(4)[:1, None]
    expected = (-math.log(math.exp(10) / (math.exp(10) + 3)) + math.log(4)) / 2
    assert float(distillation_loss(logits, probs, TEMP)) == pytest.approx(expected, rel=1e-6)
    assert float(distillation_loss(logits, probs, TEMP, num_skipped=1)) == pytest.approx(math.log(4), rel=1e-6)


def test_distillation_is_least_at_the_teachers_own_distribution():
    """There the cross-entropy is the teacher's entropy and its gradient zero."""
    probs = distributions(1, 4, 50, seed=3)
    at = TEMP * probs.log()
    value, gradient = value_and_gradients(lambda x: distillation_loss(x, probs, TEMP), at)
    torch.testing.assert_close(value, -(probs * probs.log()).sum(-1).mean().double(), rtol=1e-5, atol=1e-6)
    assert gradient.abs().max() < 1e-6
    assert distillation_loss(at + TEMP * torch.randn(at.shape), probs, TEMP) > value


# --- peers ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [2, 32])
def test_sigmoid_equals_open_clip(batch):
    inputs = [*features(batch, 16, seed=0), torch.tensor(10.0), torch.tensor(-10.0)]

    def peer(images, texts, scale, bias):
        return SigLipLoss()(F.normalize(images, dim=-1), F.normalize(texts, dim=-1), scale, bias)

    same(value_and_gradients(sigmoid_loss, *inputs), value_and_gradients(peer, *inputs))


@pytest.mark.parametrize("batch", [2, 32])
def test_softmax_equals_open_clip(batch):
    inputs = [*features(batch, 16, seed=0), torch.tensor(14.0)]

    def peer(images, texts, scale):
        return ClipLoss()(F.normalize(images, dim=-1), F.normalize(texts, dim=-1), scale)

    same(value_and_gradients(softmax_loss, *inputs), value_and_gradients(peer, *inputs))


def test_sigmoid_equals_transformers():
    """SiglipModel's own loss; the embeddings it met give the same value, the gradients of scale and bias agree."""
    torch.manual_seed(0)
    tower = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = SiglipModel(
        SiglipConfig(
            text_config={**tower, "vocab_size": 30, "max_position_embeddings": 8, "projection_size": 16},
            vision_config={**tower, "image_size": 16, "patch_size": 8},
        )
    )
    torch.nn.init.constant_(model.logit_scale, math.log(10.0))
    torch.nn.init.constant_(model.logit_bias, -10.0)
    out = model(input_ids=torch.randint(1, 30, (6, 8)), pixel_values=torch.randn(6, 3, 16, 16), return_loss=True)
    theirs = torch.autograd.grad(out.loss, [model.logit_scale, model.logit_bias])
    log_scale, bias = torch.tensor(math.log(10.0)).requires_grad_(), torch.tensor(-10.0).requires_grad_()
    mine = sigmoid_loss(5 * out.image_embeds.detach(), 2 * out.text_embeds.detach(), log_scale.exp(), bias)
    torch.testing.assert_close(mine, out.loss)
    same(torch.autograd.grad(mine, [log_scale, bias]), [g.squeeze() for g in theirs])


@pytest.mark.parametrize(("num_global", "num_local"), [(2, 0), (2, 6), (1, 3), (3, 1)])
def test_distillation_equals_lightly_where_identical_views_are_skipped(num_global, num_local):
    """DINO's pairing: the student shows every view, the teacher the global ones, the first views of the student."""
    batch, prototypes = 4, 64
    generator = torch.Generator().manual_seed(7)
    logits = torch.rand(num_global + num_local, batch, prototypes, generator=generator) * 2 - 1
    teacher = torch.rand(num_global, batch, prototypes, generator=generator) * 2 - 1
    center = torch.rand(prototypes, generator=generator) / 5
    peer = DINOLoss(prototypes, teacher_temp=0.04, student_temp=TEMP)
    peer.center.copy_(center.view(1, 1, -1))
    probs = torch.softmax((teacher - center) / 0.04, dim=-1)
    mine = value_and_gradients(lambda x: distillation_loss(x, probs, TEMP, num_skipped=num_global), logits)
    same(mine, value_and_gradients(lambda x: peer(list(teacher), list(x)), logits))


# --- precision and purity ------------------------------------------------------------------------------------------------


def test_bf16_inputs_are_computed_in_fp32():
    """Only the rounding of the inputs is lost: the values equal those of the rounded inputs in float64."""
    images, texts = (x.bfloat16() for x in features(8, 16, seed=4))
    scale, bias = torch.tensor(10.0), torch.tensor(-10.0)
    logits = (torch.rand(3, 8, 300) * 2 - 1).bfloat16()
    probs = distributions(2, 8, 300, seed=5)
    with torch.autocast("cpu", torch.bfloat16):
        mine = [
            sigmoid_loss(images, texts, scale, bias),
            softmax_loss(images, texts, scale),
            distillation_loss(logits, probs, TEMP, 1),
        ]
    assert {value.dtype for value in mine} == {torch.float32}
    theirs = [
        sigmoid_loss(images.double(), texts.double(), scale.double(), bias.double()),
        softmax_loss(images.double(), texts.double(), scale.double()),
        distillation_loss(logits.double(), probs.double(), TEMP, 1),
    ]
    same([value.double() for value in mine], theirs, tolerance=1e-5)


def test_large_logits_do_not_overflow():
    images, texts = features(4, 8, seed=0, scale=1e4)
    assert torch.isfinite(sigmoid_loss(images, texts, torch.tensor(1000.0), torch.tensor(-10.0)))
    assert torch.isfinite(softmax_loss(images, texts, torch.tensor(1000.0)))
    assert torch.isfinite(distillation_loss(torch.full((1, 2, 8), 500.0), distributions(1, 2, 8, 0), 0.04))


def test_cosine_is_the_cosine_of_rows():
    images, texts = features(5, 9, seed=6)
    theirs = F.cosine_similarity(images[:, None], texts[None], dim=-1)
    torch.testing.assert_close(cosine(images, texts), theirs)


def test_a_loss_changes_no_state_and_draws_no_random_numbers():
    images, texts = features(6, 8, seed=9)
    scale, bias = torch.tensor(10.0), torch.tensor(-10.0)
    logits, probs = torch.randn(3, 6, 20), distributions(2, 6, 20, seed=1)
    inputs = [images, texts, scale, bias, logits, probs]
    before, random_state = copy.deepcopy(inputs), torch.get_rng_state()
    values = [
        [
            sigmoid_loss(images, texts, scale, bias),
            softmax_loss(images, texts, scale),
            distillation_loss(logits, probs, TEMP, n),
        ]
        for n in (0, 0, 2)
    ]
    assert values[0] == values[1]
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(one, other) for one, other in zip(inputs, before, strict=True))
