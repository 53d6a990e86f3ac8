"""The controls of a study: a teacher that learns nothing, and targets of another image."""

import copy

import pytest
import torch
from on_ranks import first_batches
from runs import CPU, differing, equal

from silc_bench.trainer.config.config import CONTROLS
from silc_bench.trainer.config.presets import configure
from silc_bench.trainer.silc.distillation import Targets
from silc_bench.trainer.silc.teacher import Taught
from silc_bench.trainer.train import TrainState, train_step


def state_of(config, count):
    tokenizer, batches = first_batches(config, count)
    return TrainState.create(config, tokenizer, CPU), batches


def test_a_frozen_teacher_keeps_its_weights_to_the_bit(tiny):
    state, batches = state_of(tiny("silc+frozen"), 3)
    before = copy.deepcopy(state.teacher)
    student = copy.deepcopy(state.student)
    for batch in batches:
        train_step(state, batch)
    assert differing(state.teacher, before) == {"center"}
    assert differing(state.student, student)


def taught(num_images):
    features = torch.arange(2 * num_images).float().view(2, num_images, 1)
    return Taught(Targets(features, torch.ones(3, 1), torch.zeros(3), features[..., 0], 0.1), None)


@pytest.mark.parametrize("num_images", [2, 3, 8, 65])
def test_shuffled_targets_are_a_permutation_without_fixed_points_by_seed_and_step(num_images):
    given = taught(num_images)
    for seed, step in ((0, 0), (0, 1), (1, 0)):
        views = given.shuffled(2, num_images, seed, step).views
        assert equal(views, given.shuffled(2, num_images, seed, step).views)
        order = views.features[0, :, 0].long()
        assert sorted(order.tolist()) == list(range(num_images))
        assert (order != torch.arange(num_images)).all()
        assert torch.equal(views.features[1, :, 0].long(), order + num_images), "all views alike"
        assert torch.equal(views.normalizers, views.features[..., 0])
    if num_images > 3:
        assert not equal(
            given.shuffled(2, num_images, 0, 0).views, given.shuffled(2, num_images, 0, 1).views
        )
        assert not equal(
            given.shuffled(2, num_images, 0, 0).views, given.shuffled(2, num_images, 1, 0).views
        )


def test_masked_patches_move_with_their_images():
    """Two views of three images with two masked places each."""
    rows = torch.arange(12).float()
    patches = Targets(rows.view(1, 12, 1), torch.ones(3, 1), torch.zeros(3), rows.view(1, 12), 0.1)
    views = taught(3).views
    moved = Taught(views, patches).shuffled(2, 3, 0, 0)
    givers = moved.views.features[0, :, 0].long()
    expected = rows.view(2, 3, 2)[:, givers].flatten()
    assert torch.equal(moved.patches.features.flatten(), expected)
    assert torch.equal(moved.patches.normalizers.flatten(), expected)
    assert equal(Taught(None, patches).shuffled(2, 3, 0, 0).patches, moved.patches)


def test_a_step_meets_the_shuffled_targets(tiny):
    """The loss of the first step is another one, and all that came before it is the same."""
    (silc, batches), (other, _) = (state_of(tiny(name), 1) for name in ("silc", "silc+shuffled"))
    assert not differing(silc.student, other.student)
    values, shuffled = train_step(silc, batches[0]), train_step(other, batches[0])
    assert equal(values["contrastive"], shuffled["contrastive"])
    assert not equal(values["distillation"], shuffled["distillation"])


@pytest.mark.parametrize("control", CONTROLS)
def test_a_control_is_named_by_the_model(control):
    assert configure("places_tiny", control).name == f"places_tiny-{control}"
