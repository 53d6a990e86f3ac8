"""The image-text losses against float64 loops from their formulas, open_clip and transformers."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from silc_bench.trainer.silc.losses import sigmoid_loss, softmax_loss


def features(batch, dim, seed, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(batch, dim, generator=generator) for _ in range(2)]


def value_and_gradients(loss, *inputs, dtype=None):
    """Value and gradients of ``loss`` at copies of ``inputs``, as float64."""
    leaves = [x.detach().to(dtype or x.dtype).clone().requires_grad_() for x in inputs]
    value = loss(*leaves)
    return [value.detach().double(), *(g.double() for g in torch.autograd.grad(value, leaves))]


def same(mine, theirs, tolerance=1e-5):
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


# --- from the formula, one pair at a time ---------------------------------------------------------


def unit(x):
    return x / sum(v * v for v in x).sqrt()


def naive_sigmoid(images, texts, scale, bias):
    total = 0.0
    for i in range(len(images)):
        for j in range(len(texts)):
            z = 1.0 if i == j else -1.0
            total = total - torch.log(
                1
                / (1 + torch.exp(-z * (scale * torch.dot(unit(images[i]), unit(texts[j])) + bias)))
            )
    return total / len(images)


def naive_softmax(images, texts, scale):
    def one_way(queries, keys):
        total = 0.0
        for i in range(len(queries)):
            weights = [torch.exp(scale * torch.dot(unit(queries[i]), unit(key))) for key in keys]
            total = total - torch.log(weights[i] / sum(weights))
        return total / len(queries)

    return (one_way(images, texts) + one_way(texts, images)) / 2


@pytest.mark.parametrize(("scale", "bias"), [(10.0, -10.0), (1.0, 0.0), (25.0, -3.0)])
@pytest.mark.parametrize("batch", [2, 7])
def test_sigmoid_value_and_gradient_equal_the_loop(batch, scale, bias):
    inputs = [*features(batch, 5, seed=batch), torch.tensor(scale), torch.tensor(bias)]
    same(
        value_and_gradients(sigmoid_loss, *inputs),
        value_and_gradients(naive_sigmoid, *inputs, dtype=torch.float64),
    )


@pytest.mark.parametrize("scale", [1.0, 10.0, 40.0])
@pytest.mark.parametrize("batch", [2, 7])
def test_softmax_value_and_gradient_equal_the_loop(batch, scale):
    inputs = [*features(batch, 5, seed=batch), torch.tensor(scale)]
    same(
        value_and_gradients(softmax_loss, *inputs),
        value_and_gradients(naive_softmax, *inputs, dtype=torch.float64),
    )


# --- peers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [2, 32])
def test_sigmoid_equals_open_clip(batch):
    from open_clip.loss import SigLipLoss

    inputs = [*features(batch, 16, seed=0), torch.tensor(10.0), torch.tensor(-10.0)]

    def peer(images, texts, scale, bias):
        return SigLipLoss()(F.normalize(images, dim=-1), F.normalize(texts, dim=-1), scale, bias)

    same(value_and_gradients(sigmoid_loss, *inputs), value_and_gradients(peer, *inputs))


@pytest.mark.parametrize("batch", [2, 32])
def test_softmax_equals_open_clip(batch):
    from open_clip.loss import ClipLoss

    inputs = [*features(batch, 16, seed=0), torch.tensor(14.0)]

    def peer(images, texts, scale):
        return ClipLoss()(F.normalize(images, dim=-1), F.normalize(texts, dim=-1), scale)

    same(value_and_gradients(softmax_loss, *inputs), value_and_gradients(peer, *inputs))


def test_sigmoid_equals_transformers():
    """SiglipModel's own loss: the same value of the same embeddings.

    The gradients of scale and bias agree.
    """
    from transformers import SiglipConfig, SiglipModel

    torch.manual_seed(0)
    tower = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    model = SiglipModel(
        SiglipConfig(
            text_config={
                **tower,
                "vocab_size": 30,
                "max_position_embeddings": 8,
                "projection_size": 16,
            },
            vision_config={**tower, "image_size": 16, "patch_size": 8},
        )
    )
    torch.nn.init.constant_(model.logit_scale, math.log(10.0))
    torch.nn.init.constant_(model.logit_bias, -10.0)
    out = model(
        input_ids=torch.randint(1, 30, (6, 8)),
        pixel_values=torch.randn(6, 3, 16, 16),
        return_loss=True,
    )
    theirs = torch.autograd.grad(out.loss, [model.logit_scale, model.logit_bias])
    log_scale, bias = (
        torch.tensor(math.log(10.0)).requires_grad_(),
        torch.tensor(-10.0).requires_grad_(),
    )
    mine = sigmoid_loss(
        5 * out.image_embeds.detach(), 2 * out.text_embeds.detach(), log_scale.exp(), bias
    )
    torch.testing.assert_close(mine, out.loss)
    same(torch.autograd.grad(mine, [log_scale, bias]), [g.squeeze() for g in theirs])


# --- precision and purity -------------------------------------------------------------------------


def test_bf16_inputs_are_computed_in_fp32():
    """Only the rounding of the inputs is lost: the values are those of rounded ones in float64."""
    images, texts = (x.bfloat16() for x in features(8, 16, seed=4))
    scale, bias = torch.tensor(10.0), torch.tensor(-10.0)
    with torch.autocast("cpu", torch.bfloat16):
        mine = [
            sigmoid_loss(images, texts, scale, bias),
            softmax_loss(images, texts, scale),
        ]
    assert {value.dtype for value in mine} == {torch.float32}
    theirs = [
        sigmoid_loss(images.double(), texts.double(), scale.double(), bias.double()),
        softmax_loss(images.double(), texts.double(), scale.double()),
    ]
    same([value.double() for value in mine], theirs, tolerance=1e-5)


def test_large_logits_do_not_overflow():
    images, texts = features(4, 8, seed=0, scale=1e4)
    assert torch.isfinite(sigmoid_loss(images, texts, torch.tensor(1000.0), torch.tensor(-10.0)))
    assert torch.isfinite(softmax_loss(images, texts, torch.tensor(1000.0)))


@pytest.mark.parametrize("loss", [sigmoid_loss, softmax_loss])
def test_views_are_averaged(loss):
    """Three views at once are the mean of three times one view."""
    views, texts = (
        torch.stack([features(5, 8, seed=n)[0] for n in range(3)]),
        features(5, 8, seed=9)[1],
    )
    scalars = [torch.tensor(10.0), torch.tensor(-10.0)][: 2 if loss is sigmoid_loss else 1]
    together = value_and_gradients(loss, views, texts, *scalars)
    apart = value_and_gradients(
        lambda v, *rest: sum(loss(view, *rest) for view in v) / 3, views, texts, *scalars
    )
    same(together, apart)


def test_a_loss_changes_no_state_and_draws_no_random_numbers():
    inputs = [*features(6, 8, seed=9), torch.tensor(10.0), torch.tensor(-10.0)]
    before, random_state = copy.deepcopy(inputs), torch.get_rng_state()
    values = [[sigmoid_loss(*inputs), softmax_loss(*inputs[:3])] for _ in range(2)]
    assert values[0] == values[1]
    assert all(torch.equal(one, other) for one, other in zip(inputs, before, strict=True))
    assert torch.equal(torch.get_rng_state(), random_state)
