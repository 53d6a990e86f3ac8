"""Masked patches: which, how many, for any ranks; the loss against loops; what stays untouched."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from on_ranks import first_batches
from runs import CPU, LargestTensor, close

from silc_bench.trainer import train
from silc_bench.trainer.silc import distillation
from silc_bench.trainer.silc.masking import draw_masked, take
from silc_bench.trainer.silc.views import make_views, seeded
from silc_bench.trainer.train import TrainState, train_step

MASKED = {
    "views": {"global_size": 32, "local_size": 16},
    "vision": {"image_size": 32},
    "masked": {"weight": 0.5},
}


@pytest.fixture(scope="module")
def config(tiny):
    """Two global views of 16 patches, 8 of them masked."""
    return tiny(**MASKED)


@pytest.fixture(scope="module")
def first(config):
    return first_batches(config, 1)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def in_float64(config, first):
    """A run's state with weights that are not those of the start: the mask token is zero there."""
    torch.set_default_dtype(torch.float64)
    try:
        state = TrainState.create(config, first[0], CPU)
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        for seed, weight in enumerate([*state.student.parameters(), *state.teacher.parameters()]):
            weight.add_(noise(*weight.shape, seed=seed), alpha=0.05)
        state.teacher.patch_center.copy_(noise(64) / 10)
    return state


def taught_by(teacher, views, masked):
    return teacher.targets(SimpleNamespace(global_crops=views), masked).patches


def loss_of(student, views, masked, targets, config):
    projections = student.project_masked(views, masked)
    prototypes = student.patch_head.unit_prototypes()
    out = SimpleNamespace(patch_projections=projections, patch_prototypes=prototypes)
    return train.masked_patches(out, targets, config)


# --- which patches --------------------------------------------------------------------------------


@pytest.mark.parametrize(("ratio", "count"), [(0.5, 8), (0.25, 4), (0.06, 1), (0.9, 14)])
def test_every_view_masks_the_stated_share_and_every_place_equally_often(config, ratio, count):
    config = replace(config, masked=replace(config.masked, ratio=ratio))
    places = draw_masked(config, 2000, step=3)
    assert places.shape == (2, 2000, count)
    assert (places.sort(-1).values.diff(dim=-1) > 0).all(), "no place twice"
    counts = torch.bincount(places.flatten(), minlength=16)
    assert (counts / 4000 - count / 16).abs().max() < 0.04  # five standard errors


@pytest.mark.parametrize("block", [4096, 5])
@pytest.mark.parametrize("shares", [(12,), (4, 4, 4), (1, 11)])
def test_any_number_of_ranks_draws_the_same(config, shares, block, monkeypatch):
    monkeypatch.setattr("silc_bench.trainer.silc.views.BLOCK", block)
    parts = [
        draw_masked(config, share, 5, sum(shares[:number])) for number, share in enumerate(shares)
    ]
    assert torch.equal(torch.cat(parts, dim=1), draw_masked(config, 12, 5))


def test_masks_depend_on_seed_step_view_and_image_and_on_nothing_else(config):
    masks = draw_masked(config, 6, 5)
    torch.manual_seed(1)
    larger = replace(config, vision=replace(config.vision, image_size=64))
    assert torch.equal(masks, draw_masked(larger, 6, 5))
    numbers_of_views = torch.rand(6, 16, generator=seeded(0, 5, 0), dtype=torch.float64)
    for other, mine in (
        (draw_masked(config, 6, 6), masks),
        (draw_masked(replace(config, seed=1), 6, 5), masks),
        (masks[1], masks[0]),
        (masks[0, 1], masks[0, 0]),
        (numbers_of_views.argsort(dim=1, stable=True)[:, :8], masks[0]),
    ):
        assert not torch.equal(other, mine)


@pytest.mark.parametrize("ratio", [0.0, 0.03, 0.99, 1.0])
def test_a_share_that_masks_nothing_or_everything_is_refused(tiny, ratio):
    with pytest.raises(ValueError, match=r"masked.ratio"):
        tiny(**MASKED | {"masked": {"weight": 0.5, "ratio": ratio}})


# --- the loss -------------------------------------------------------------------------------------


def naive(student, teacher, views, masked, config, guessed):
    """One view, one image, one masked place, one prototype at a time.

    ``guessed`` [T * B, N, W]: the student's tokens.
    """
    d, terms = config.distillation, []
    unit = student.patch_head.prototypes / student.patch_head.prototypes.norm(dim=-1, keepdim=True)
    for index, image in enumerate(views.flatten(0, 1)):
        with torch.no_grad():
            seen = teacher.patch_head(teacher.vision.tokens(image[None])[0])
        for place in masked.flatten(0, 1)[index].tolist():
            powers = torch.exp((seen[place] - teacher.patch_center) / d.teacher_temp)
            bottleneck = student.patch_head.layers(guessed[index, place])
            cosines = [torch.dot(bottleneck / bottleneck.norm(), w) for w in unit]
            answer = torch.exp(torch.stack(cosines) / d.student_temp)
            terms.append(-(powers / powers.sum() * torch.log(answer / answer.sum())).sum())
    return sum(terms) / len(terms)


def test_loss_and_gradients_equal_the_loop(config, in_float64, monkeypatch):
    """By the student's tokens, prototypes and layers of the head, in float64, in chunks."""
    monkeypatch.setattr(distillation, "CHUNK", 100)
    student, teacher = in_float64.student, in_float64.teacher
    views, masked = noise(2, 2, 3, 32, 32), draw_masked(config, 2, step=0)
    tokens = noise(4, 16, 32, seed=1).requires_grad_()
    inputs = [tokens, student.patch_head.prototypes, student.patch_head.layers[0].weight]
    targets = taught_by(teacher, views, masked)
    assert targets.features.shape == (1, 2 * 2 * 8, 16)

    monkeypatch.setattr(student.vision, "tokens", lambda *args: tokens)
    mine = loss_of(student, views, masked, targets, config)
    expected = naive(student, teacher, views, masked, config, tokens)
    close(mine, expected, 1e-10)
    gradients = torch.autograd.grad(mine, inputs)
    close(gradients, torch.autograd.grad(expected, inputs), 1e-8)
    seen = torch.ones(4, 16, dtype=torch.bool).scatter(1, masked.flatten(0, 1), False)
    assert not gradients[0][seen].any(), "an unmasked place has a gradient"
    assert gradients[0][~seen].any(-1).all()


@pytest.mark.parametrize("micro_batch", [0, 3])
def test_a_step_reports_it_and_adds_it_with_its_weight(tiny, first, micro_batch):
    config = tiny(micro_batch=micro_batch, **MASKED)
    tokenizer, (batch,) = first
    state = TrainState.create(config, tokenizer, CPU)
    student, teacher, d = state.student, state.teacher, config.distillation
    views = make_views(batch.images, batch.sizes, config.views, config.seed, 0)
    images, places = views.global_crops.flatten(0, 1), draw_masked(config, 8, 0).flatten(0, 1)
    with torch.no_grad():
        guessed = student.vision.tokens(images, places, student.mask_token)
        logs = F.log_softmax(student.patch_head(take(guessed, places)) / d.student_temp, -1)
        seen = teacher.patch_head(take(teacher.vision.tokens(images), places))
        expected = -(torch.softmax(seen / d.teacher_temp, -1) * logs).sum(-1).mean()
    values = {name: value.item() for name, value in train_step(state, batch).items()}
    assert values["masked"] == pytest.approx(expected.item(), rel=1e-5)
    total = values["contrastive"] + values["distillation"] + 0.5 * values["masked"]
    assert values["loss"] == pytest.approx(total, rel=1e-6)
    close(teacher.patch_center, 0.1 * seen.flatten(0, 1).mean(0), 1e-4, atol=1e-6)
    assert student.mask_token.grad.any()
    assert all(weight.grad is not None for weight in student.patch_head.parameters())


def test_no_table_of_patches_and_prototypes_is_made(config, first, monkeypatch):
    """Neither by the teacher, nor forward, nor backward: 16,384 prototypes, 2 x 8 x 8 patches."""
    monkeypatch.setattr(distillation, "CHUNK", 2**18)
    config = replace(config, distillation=replace(config.distillation, num_prototypes=16_384))
    state = TrainState.create(config, first[0], CPU)
    views, masked = torch.rand(2, 8, 3, 32, 32), draw_masked(config, 8, 0)
    with LargestTensor() as largest:
        targets = taught_by(state.teacher, views, masked)
        loss_of(state.student, views, masked, targets, config).backward()
    assert largest.numel == 16_384 * 16 < 2 * 8 * 8 * 16_384 / 4  # the prototypes themselves


# --- the mask token -------------------------------------------------------------------------------


def test_the_token_stands_where_the_patch_was_before_positions_are_added(config, in_float64):
    vision, token = in_float64.student.vision, in_float64.student.mask_token
    images, places = noise(3, 3, 32, 32), draw_masked(config, 3, 0)[0]
    expected = vision.embed(images).clone()
    for b in range(3):
        expected[b, places[b]] = token + vision.positions[0, places[b]]
    assert torch.equal(vision.embed(images, places, token), expected)


def test_the_student_sees_nothing_of_a_masked_patch_and_the_teacher_everything(config, in_float64):
    views, masked = noise(1, 2, 3, 32, 32), draw_masked(config, 2, 0)[:1]
    other = copy.deepcopy(views)
    for b in range(2):
        for place in masked[0, b].tolist():
            row, column = 8 * (place // 4), 8 * (place % 4)
            other[0, b, :, row : row + 8, column : column + 8] = 0.3
    student, teacher = in_float64.student, in_float64.teacher
    guessed = [student.project_masked(shown, masked) for shown in (views, other)]
    assert torch.equal(*guessed)
    seen = [taught_by(teacher, shown, masked).features for shown in (views, other)]
    assert not torch.equal(*seen)
