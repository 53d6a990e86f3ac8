"""The image-text losses against float64 loops from their formulas and open_clip."""

import open_clip.loss
import pytest
import torch
import torch.nn.functional as F
from runs import close, peak_bytes, value_and_gradients

from silc_bench.trainer.config.config import LOSSES
from silc_bench.trainer.silc import losses

SCALARS = [torch.tensor(10.0), torch.tensor(-10.0)]


def features(batch, dim, seed, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(batch, dim, generator=generator) for _ in range(2)]


@pytest.fixture(params=LOSSES)
def name(request):
    return request.param


@pytest.fixture
def loss(name):
    return getattr(losses, LOSSES[name].function)


# --- from the formula, one pair at a time, and peers ----------------------------------------------


def unit(x):
    return x / sum(v * v for v in x).sqrt()


def naive_sigmoid(images, texts, scale, bias):
    total = 0.0
    for i, image in enumerate(images):
        for j, text in enumerate(texts):
            z = 1.0 if i == j else -1.0
            logit = scale * torch.dot(unit(image), unit(text)) + bias
            total = total - torch.log(1 / (1 + torch.exp(-z * logit)))
    return total / len(images)


def naive_softmax(images, texts, scale, bias):
    total = 0.0
    for queries, keys in ((images, texts), (texts, images)):
        for i, query in enumerate(queries):
            powers = [torch.exp(scale * torch.dot(unit(query), unit(key))) for key in keys]
            total = total - torch.log(powers[i] / sum(powers))
    return total / (2 * len(images))


def by_open_clip(name):
    def peer(images, texts, *scalars):
        images, texts = F.normalize(images, dim=-1), F.normalize(texts, dim=-1)
        if name == "sigmoid":
            return open_clip.loss.SigLipLoss()(images, texts, *scalars)
        return open_clip.loss.ClipLoss()(images, texts, scalars[0])

    return peer


NAIVE = {"sigmoid": naive_sigmoid, "softmax": naive_softmax}


@pytest.mark.parametrize("scalars", [(10.0, -10.0), (1.0, 0.0), (40.0, -3.0)])
@pytest.mark.parametrize("batch", [2, 7])
def test_value_and_gradients_equal_the_loop_and_open_clip(name, loss, batch, scalars):
    inputs = [*features(batch, 5, seed=batch), *map(torch.tensor, scalars)]
    mine = value_and_gradients(loss, *inputs)
    for peer in (NAIVE[name], by_open_clip(name)):
        close(mine, value_and_gradients(peer, *inputs, dtype=torch.float64))


TOKENS = {
    "all different": [[1, 0], [2, 0], [3, 0], [4, 0], [0, 4]],
    "two are equal": [[1, 0], [2, 0], [1, 0], [4, 0], [0, 4]],
    "three and two": [[1, 0], [2, 0], [1, 0], [1, 0], [2, 0]],
    "all are one": [[7, 0]] * 5,
}


def naive_with_equal_texts(name, tokens):
    """Each equal text is as right as an image's own, from the formulas, pair by pair."""
    right = [[j for j, other in enumerate(tokens) if other == own] for own in tokens]

    def logit(x, y, scale, bias):
        return scale * torch.dot(unit(x), unit(y)) + bias

    def sigmoid(images, texts, scale, bias):
        total = 0.0
        for i, image in enumerate(images):
            for j, text in enumerate(texts):
                z = 1.0 if j in right[i] else -1.0
                total = total - torch.log(1 / (1 + torch.exp(-z * logit(image, text, scale, bias))))
        return total / len(images)

    def softmax(images, texts, scale, bias):
        total = 0.0
        for queries, keys in ((images, texts), (texts, images)):
            for i, query in enumerate(queries):
                powers = [torch.exp(logit(query, key, scale, 0.0)) for key in keys]
                for j in right[i]:
                    total = total - torch.log(powers[j] / sum(powers)) / len(right[i])
        return total / (2 * len(images))

    return {"sigmoid": sigmoid, "softmax": softmax}[name]


@pytest.mark.parametrize("tokens", TOKENS.values(), ids=TOKENS)
@pytest.mark.parametrize("scalars", [(10.0, -10.0), (1.0, 0.0)])
def test_equal_texts_may_be_right_ones(name, loss, tokens, scalars):
    inputs = [*features(5, 4, seed=3), *map(torch.tensor, scalars)]
    is_right = losses.equal_texts(torch.tensor(tokens))

    def mine(*inputs):
        return loss(*inputs, is_right=is_right)

    value = value_and_gradients(mine, *inputs)
    naive = naive_with_equal_texts(name, tokens)
    close(value, value_and_gradients(naive, *inputs, dtype=torch.float64))
    is_as_without = tokens == TOKENS["all different"]
    assert torch.allclose(value[0], loss(*inputs).double()) == is_as_without


# --- what holds of each loss ----------------------------------------------------------------------


def test_bf16_inputs_are_computed_in_fp32(loss):
    """Only the rounding of the inputs is lost: the values are those of rounded ones in float64."""
    inputs = [*(x.bfloat16() for x in features(8, 16, seed=4)), *SCALARS]
    with torch.autocast("cpu", torch.bfloat16):
        mine = loss(*inputs)
    assert mine.dtype == torch.float32
    close(mine.double(), loss(*(x.double() for x in inputs)))


def test_large_logits_do_not_overflow(loss):
    assert loss(*features(4, 8, seed=0, scale=1e4), torch.tensor(1000.0), SCALARS[1]).isfinite()


# --- a large table, a few rows at a time ----------------------------------------------------------


def in_chunks(monkeypatch, logits):
    """Make every table in chunks of so many logits."""
    monkeypatch.setattr(losses, "CHUNK", {"cpu": logits})
    monkeypatch.setattr(losses, "MOST_CHUNKS", 0)


def views_and_texts(views, batch, dim, dtype=torch.float64):
    generator = torch.Generator().manual_seed(batch)
    of_images = (batch, dim) if views is None else (views, batch, dim)
    return [
        3 * torch.randn(*shape, generator=generator, dtype=dtype)
        for shape in (of_images, (batch, dim))
    ]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("tokens", [None, *TOKENS.values()], ids=["own alone", *TOKENS])
@pytest.mark.parametrize("scalars", [(10.0, -10.0), (90.0, 5.0)])
@pytest.mark.parametrize("views", [None, 1, 3])
def test_a_large_table_gives_the_same_in_chunks(
    loss, views, scalars, tokens, dtype, tolerance, monkeypatch
):
    """Chunks of one row, of two and a rest, and of all; against the largest value or gradient."""
    is_right = None if tokens is None else losses.equal_texts(torch.tensor(tokens))
    scalars = torch.tensor(scalars, dtype=dtype)
    inputs = [*views_and_texts(views, 5, 4, dtype), *scalars]

    def weighted(*inputs):
        return -2.5 * loss(*inputs, is_right=is_right)

    whole = value_and_gradients(weighted, *inputs)
    largest = max(x.abs().max().item() for x in whole)
    for logits in (1, 12, 100):
        in_chunks(monkeypatch, logits)
        mine = value_and_gradients(weighted, *inputs)
        close(mine, whole, tolerance, atol=tolerance * largest)


def test_gradients_in_chunks_are_those_of_differences(loss, monkeypatch):
    inputs = [*views_and_texts(2, 6, 3), *(x.double() for x in SCALARS)]
    in_chunks(monkeypatch, 13)
    assert torch.autograd.gradcheck(loss, [x.clone().requires_grad_() for x in inputs])


@pytest.mark.parametrize("learns", ["images", "texts", "nothing"])
def test_in_chunks_a_locked_tower_changes_no_gradient_of_the_other(loss, learns, monkeypatch):
    images, texts = views_and_texts(2, 6, 3)
    scalars = [x.double() for x in SCALARS]
    whole = value_and_gradients(loss, images, texts, *scalars)
    in_chunks(monkeypatch, 13)
    images.requires_grad_(learns == "images")
    texts.requires_grad_(learns == "texts")
    value = loss(images, texts, *scalars)
    close(value.detach(), whole[0], 1e-12)
    assert value.requires_grad == (learns != "nothing")
    for features, wanted in zip((images, texts), whole[1:3], strict=True):
        if features.requires_grad:
            value.backward()
            close(features.grad, wanted, 1e-12)


@pytest.mark.parametrize("with_equal_texts", [False, True])
@pytest.mark.parametrize("views", [1, 2])
def test_the_peak_is_what_a_plan_counts(name, loss, views, with_equal_texts, monkeypatch):
    """Within a fifth, whole and in chunks of a ninth of the table: then less than half a table."""
    batch = 384
    table = 4 * views * batch**2
    is_right = torch.eye(batch, dtype=torch.bool) if with_equal_texts else None
    # of one number each, because a plan of tables does not count them
    leaves = [x.requires_grad_() for x in views_and_texts(views, batch, 1, torch.float32)]
    scalars = [x.clone().requires_grad_() for x in SCALARS]

    def planned():
        return losses.peak_bytes(
            name, views, batch, batch, "cpu", with_equal_texts=with_equal_texts
        )

    def measured():
        return peak_bytes(lambda: loss(*leaves, *scalars, is_right=is_right).backward())

    assert measured() == pytest.approx(planned(), rel=0.2)
    monkeypatch.setattr(losses, "CHUNK", {"cpu": table // 4 // 9})
    assert measured() == pytest.approx(planned(), rel=0.2)
    assert max(planned(), measured()) < table / 2


@pytest.mark.parametrize(("with_equal_texts", "tables"), [(False, 6.0), (True, 8.5)])
def test_a_loss_that_nobody_counted_counts_as_the_largest(with_equal_texts, tables):
    """The page on extending adds a loss by one line, and ``--dry-run --on`` has to count it."""
    pairs = 2**13  # a table that the losses here would make in chunks
    counted = losses.peak_bytes("cosine", 2, pairs, pairs, "cpu", with_equal_texts=with_equal_texts)
    assert counted == 4 * tables * 2 * pairs**2
