"""Masked patches: which, how many, for any ranks; their loss in a step against plain tables."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from runs import close, started, student_of, values_of

from silc_bench.trainer.silc.masking import draw_masked
from silc_bench.trainer.silc.views import make_views, seeded
from silc_bench.trainer.train import train_step

MASKED = {
    "views": {"global_size": 32, "local_size": 16},
    "vision": {"image_size": 32},
    "masked": {"weight": 0.5},
}


@pytest.fixture(scope="module")
def config(tiny):
    """Two global views of 16 patches, 8 of them masked."""
    return tiny(**MASKED)


# --- which patches --------------------------------------------------------------------------------


@pytest.mark.parametrize(("ratio", "count"), [(0.5, 8), (0.25, 4), (0.06, 1), (0.9, 14)])
def test_every_view_masks_the_stated_share_and_every_place_equally_often(config, ratio, count):
    config = replace(config, masked=replace(config.masked, ratio=ratio))
    places = draw_masked(config, 2000, step=3)
    assert places.shape == (2, 2000, count)
    assert (places.sort(-1).values.diff(dim=-1) > 0).all(), "no place twice"
    counts = torch.bincount(places.flatten(), minlength=16)
    assert (counts / 4000 - count / 16).abs().max() < 0.04  # five standard errors


def test_masks_depend_on_seed_step_view_and_image_and_not_on_what_a_view_draws(config):
    masks = draw_masked(config, 6, 5)
    numbers_of_views = torch.rand(6, 16, generator=seeded(0, 5, 0), dtype=torch.float64)
    for other, mine in (
        (draw_masked(config, 6, 6), masks),
        (draw_masked(replace(config, seed=1), 6, 5), masks),
        (masks[1], masks[0]),
        (masks[0, 1], masks[0, 0]),
        (numbers_of_views.argsort(dim=1, stable=True)[:, :8], masks[0]),
    ):
        assert not torch.equal(other, mine)


# --- the loss -------------------------------------------------------------------------------------


@pytest.mark.parametrize("micro_batch", [0, 3])
def test_a_step_adds_the_loss_of_the_masked_places_alone(tiny, micro_batch):
    """Value, gradients and centre from tables of all patches; the teacher sees every patch."""
    config = tiny(micro_batch=micro_batch, optim={"clip_norm": 1e6}, **MASKED)
    state, (batch,) = started(config, 1)
    student, teacher, d = state.student, state.teacher, config.distillation
    student.mask_token.data.normal_()
    views = make_views(batch.images, batch.sizes, config.views, config.seed, 0)
    images, places = views.global_crops.flatten(0, 1), draw_masked(config, 8, 0).flatten(0, 1)
    rows = torch.arange(len(images)).unsqueeze(1)

    guessed = student.vision.tokens(images, places, student.mask_token)[rows, places]
    logs = F.log_softmax(student.patch_head(guessed) / d.student_temp, -1)
    with torch.no_grad():
        seen = teacher.patch_head(teacher.vision.tokens(images)[rows, places])
    expected = -(torch.softmax(seen / d.teacher_temp, -1) * logs).sum(-1).mean()
    learning = [student.mask_token, *student.patch_head.parameters()]
    gradients = torch.autograd.grad(0.5 * expected, learning)

    values = values_of(train_step(state, batch))
    assert values["masked"] == pytest.approx(expected.item(), rel=1e-5)
    total = values["contrastive"] + values["distillation"] + 0.5 * values["masked"]
    assert values["loss"] == pytest.approx(total, rel=1e-6)
    close([weight.grad for weight in learning], [*gradients], 1e-3, atol=1e-6)
    close(teacher.patch_center, 0.1 * seen.flatten(0, 1).mean(0), 1e-4, atol=1e-6)


def test_the_token_stands_where_the_patch_was_before_positions_are_added(config):
    student, places = student_of(config), draw_masked(config, 3, 0)[0]
    vision, token = student.vision, torch.randn(32)
    images = torch.randn(3, 3, 32, 32)
    expected = vision.embed(images).clone()
    for b in range(3):
        expected[b, places[b]] = token + vision.positions[0, places[b]]
    assert torch.equal(vision.embed(images, places, token), expected)
