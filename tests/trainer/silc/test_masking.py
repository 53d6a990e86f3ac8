"""Masked patches: which, how many, for any ranks; the loss against loops; what stays untouched."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from on_ranks import first_batches
from torch.utils._python_dispatch import TorchDispatchMode

from silc_bench.errors import UserError
from silc_bench.trainer import train
from silc_bench.trainer.silc import distillation
from silc_bench.trainer.silc.masking import draw_masked, take
from silc_bench.trainer.silc.views import make_views, seeded
from silc_bench.trainer.train import TrainState, train_step

CPU = torch.device("cpu")
MASKED = {
    "views": {"global_size": 32, "local_size": 16},
    "vision": {"image_size": 32},
    "masked": {"weight": 0.5},
}


@pytest.fixture(scope="module")
def config(tiny):
    """Two global views of 16 patches, 8 of them masked."""
    return tiny(precision="fp32", **copy.deepcopy(MASKED))


@pytest.fixture(scope="module")
def first(config):
    return first_batches(config, 3)


def in_float64(config, tokenizer):
    """A run's state with weights that are not those of the start: the mask token is zero there."""
    torch.set_default_dtype(torch.float64)
    try:
        state = TrainState.create(config, tokenizer, CPU)
    finally:
        torch.set_default_dtype(torch.float32)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in [*state.student.parameters(), *state.teacher.parameters()]:
            parameter.add_(
                torch.randn(parameter.shape, generator=generator, dtype=torch.float64), alpha=0.05
            )
        state.teacher.patch_center.copy_(
            torch.randn(64, generator=generator, dtype=torch.float64) / 10
        )
    return state


# --- which patches --------------------------------------------------------------------------------


@pytest.mark.parametrize(("ratio", "count"), [(0.5, 8), (0.25, 4), (0.06, 1), (0.9, 14)])
def test_every_view_masks_the_stated_share(config, ratio, count):
    config = replace(config, masked=replace(config.masked, ratio=ratio))
    places = draw_masked(config, 20, step=3)
    assert places.shape == (2, 20, count)
    assert all(
        len(set(row.tolist())) == count and set(row.tolist()) <= set(range(16))
        for row in places.flatten(0, 1)
    )


@pytest.mark.parametrize("block", [4096, 5])
@pytest.mark.parametrize("shares", [(12,), (6, 6), (4, 4, 4), (1, 11)])
def test_any_number_of_ranks_draws_the_same(config, shares, block, monkeypatch):
    monkeypatch.setattr("silc_bench.trainer.silc.views.BLOCK", block)
    starts = [sum(shares[:number]) for number in range(len(shares))]
    parts = [
        draw_masked(config, share, 5, start) for share, start in zip(shares, starts, strict=True)
    ]
    assert torch.equal(torch.cat(parts, dim=1), draw_masked(config, 12, 5))


def test_masks_depend_on_seed_step_view_and_image_and_on_nothing_else(config):
    one = draw_masked(config, 6, 5)
    torch.manual_seed(1)
    assert torch.equal(one, draw_masked(config, 6, 5))
    assert not torch.equal(one, draw_masked(config, 6, 6))
    assert not torch.equal(one, draw_masked(replace(config, seed=1), 6, 5))
    assert not torch.equal(one[0], one[1])
    assert not torch.equal(one[0, 0], one[0, 1])
    assert torch.equal(
        one, draw_masked(replace(config, vision=replace(config.vision, image_size=64)), 6, 5)
    )


def test_masks_see_none_of_the_numbers_that_views_are_drawn_from(config):
    numbers = torch.rand(6, 16, generator=seeded(config.seed, 5, 0), dtype=torch.float64)
    assert not torch.equal(draw_masked(config, 6, 5)[0], numbers.argsort(dim=1, stable=True)[:, :8])


def test_every_place_is_masked_equally_often(config):
    counts = torch.bincount(draw_masked(config, 2000, 0).flatten(), minlength=16)
    assert (counts / 4000 - 0.5).abs().max() < 0.04  # five standard errors


@pytest.mark.parametrize("ratio", [0.0, 0.03, 0.99, 1.0])
def test_a_share_that_masks_nothing_or_everything_is_refused(tiny, ratio):
    with pytest.raises(UserError, match=r"masked.ratio must mask at least one patch"):
        tiny(**copy.deepcopy(MASKED) | {"masked": {"weight": 0.5, "ratio": ratio}})


def test_tokens_are_taken_in_the_order_of_the_places():
    tokens, places = torch.arange(24.0).view(2, 4, 3), torch.tensor([[3, 0], [1, 2]])
    assert torch.equal(take(tokens, places), torch.stack([tokens[0, [3, 0]], tokens[1, [1, 2]]]))


# --- the loss -------------------------------------------------------------------------------------


def naive(student, teacher, views, masked, config, guessed):
    """One view, one picture, one masked place, one prototype at a time.

    ``guessed`` [T * B, N, W]: the student's tokens.
    """
    d, total, count = config.distillation, 0.0, 0
    unit = student.patch_head.prototypes / student.patch_head.prototypes.norm(dim=-1, keepdim=True)
    for t, view in enumerate(views):
        for b, image in enumerate(view):
            with torch.no_grad():
                seen = teacher.patch_head(teacher.vision.tokens(image[None])[0])
            for place in masked[t, b].tolist():
                powers = torch.exp((seen[place] - teacher.patch_center) / d.teacher_temp)
                bottleneck = student.patch_head.layers(guessed[t * len(view) + b, place])
                answer = (
                    torch.stack([torch.dot(bottleneck / bottleneck.norm(), w) for w in unit])
                    / d.student_temp
                )
                for k in range(len(unit)):
                    total = total - powers[k] / powers.sum() * torch.log(
                        torch.exp(answer[k]) / torch.exp(answer).sum()
                    )
                count += 1
    return total / count


@pytest.mark.parametrize("chunk", [1, 100, 2**24])
def test_loss_and_gradients_equal_the_loop(config, first, monkeypatch, chunk):
    """By the student's tokens, prototypes and layers of the head, in float64, in chunks.

    Of one prototype, of few, and of all.
    """
    monkeypatch.setattr(distillation, "CHUNK", chunk)
    state = in_float64(config, first[0])
    student, teacher = state.student, state.teacher
    views = (
        torch.rand(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        * 2
        - 1
    )
    masked = draw_masked(config, 2, step=0)
    leaf = torch.randn(
        4, 16, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    ).requires_grad_()
    inputs = [leaf, student.patch_head.prototypes, student.patch_head.layers[0].weight]
    taught = teacher.targets(SimpleNamespace(global_crops=views), masked)
    assert taught.patches.features.shape == (1, 2 * 2 * 8, 16)

    def mine():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(student.vision, "tokens", lambda *args: leaf)
            out = SimpleNamespace(
                patch_projections=student.project_masked(views, masked),
                patch_prototypes=student.patch_head.unit_prototypes(),
            )
        return train.masked_patches(out, taught.patches, config)

    found = mine()
    expected = naive(student, teacher, views, masked, config, leaf)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    gradients = torch.autograd.grad(found, inputs)
    for one, other in zip(gradients, torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)

    seen = torch.ones(4, 16, dtype=torch.bool).scatter(1, masked.flatten(0, 1), False)
    assert seen.sum() == 4 * 8
    assert torch.equal(gradients[0][seen], torch.zeros_like(gradients[0][seen])), (
        "an unmasked place has a gradient"
    )
    assert gradients[0][~seen].abs().amin(-1).min() > 0
    with torch.no_grad():
        leaf[seen] += torch.randn(32, 32, dtype=torch.float64)
    assert torch.equal(mine(), found), "an unmasked place has a part in the value"
    with torch.no_grad():
        leaf[~seen] += 0.1
    assert not torch.equal(mine(), found)


@pytest.mark.parametrize("micro_batch", [0, 3])
def test_a_step_reports_it_and_adds_it_with_its_weight(tiny, first, micro_batch):
    config = tiny(precision="fp32", micro_batch=micro_batch, **copy.deepcopy(MASKED))
    state, batch = TrainState.create(config, first[0], CPU), first[1][0]
    views = make_views(batch.images, batch.sizes, config.views, config.seed, 0)
    masked = draw_masked(config, 8, 0)
    student, places = state.student, masked.flatten(0, 1)
    with torch.no_grad():
        guessed = student.vision.tokens(
            views.global_crops.flatten(0, 1), places, student.mask_token
        )
        answers = student.patch_head(take(guessed, places)) / config.distillation.student_temp
        seen = take(state.teacher.vision.tokens(views.global_crops.flatten(0, 1)), places)
        probs = torch.softmax(state.teacher.patch_head(seen) / config.distillation.teacher_temp, -1)
        expected = -(probs * F.log_softmax(answers, -1)).sum(-1).mean()
        center = 0.1 * state.teacher.patch_head(seen).flatten(0, 1).mean(0)
    values = train_step(state, batch)
    assert values["masked"].item() == pytest.approx(expected.item(), rel=1e-5)
    total = values["contrastive"] + values["distillation"] + 0.5 * values["masked"]
    assert values["loss"].item() == pytest.approx(total.item(), rel=1e-6)
    torch.testing.assert_close(state.teacher.patch_center, center, rtol=1e-4, atol=1e-6)
    assert not torch.equal(state.teacher.patch_center, state.teacher.center)
    assert student.mask_token.grad.abs().max() > 0
    assert all(p.grad is not None for p in student.patch_head.parameters())


def test_no_table_of_patches_and_prototypes_is_made(config, first, monkeypatch):
    """Neither by the teacher, nor forward, nor backward: 16,384 prototypes, 2 x 8 x 8 patches."""
    monkeypatch.setattr(distillation, "CHUNK", 2**18)
    config = replace(config, distillation=replace(config.distillation, num_prototypes=16_384))
    state, largest = TrainState.create(config, first[0], CPU), [0]
    views, masked = torch.rand(2, 8, 3, 32, 32), draw_masked(config, 8, 0)

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            leaves = torch.utils._pytree.tree_leaves(out)
            largest[0] = max(
                [largest[0], *(x.numel() for x in leaves if isinstance(x, torch.Tensor))]
            )
            return out

    with Largest():
        taught = state.teacher.targets(SimpleNamespace(global_crops=views), masked)
        projections = state.student.project_masked(views, masked)
        out = SimpleNamespace(
            patch_projections=projections,
            patch_prototypes=state.student.patch_head.unit_prototypes(),
        )
        train.masked_patches(out, taught.patches, config).backward()
    assert largest[0] == 16_384 * 16 < 2 * 8 * 8 * 16_384 / 4  # the prototypes themselves


# --- the mask token -------------------------------------------------------------------------------


def test_the_token_stands_where_the_patch_was_before_positions_are_added(config, first):
    state = in_float64(config, first[0])
    student = state.student
    images = torch.rand(3, 3, 32, 32, dtype=torch.float64)
    places = draw_masked(config, 3, 0)[0]
    masked, plain = (
        student.vision.embed(images, places, student.mask_token),
        student.vision.embed(images),
    )
    for b in range(3):
        for place in range(16):
            expected = plain[b, place]
            if place in places[b]:
                expected = student.mask_token + student.vision.positions[0, place]
            torch.testing.assert_close(masked[b, place], expected, rtol=0, atol=0)


def test_the_student_sees_nothing_of_a_masked_patch_and_the_teacher_everything(config, first):
    state = in_float64(config, first[0])
    views = torch.rand(1, 2, 3, 32, 32, dtype=torch.float64)
    masked = draw_masked(config, 2, 0)[:1]
    other = views.clone()
    for b in range(2):
        for place in masked[0, b].tolist():
            row, column = 8 * (place // 4), 8 * (place % 4)
            other[0, b, :, row : row + 8, column : column + 8] = 0.3
    assert torch.equal(
        state.student.project_masked(views, masked), state.student.project_masked(other, masked)
    )
    one, two = (
        state.teacher.targets(SimpleNamespace(global_crops=v), masked).patches.features
        for v in (views, other)
    )
    assert not torch.equal(one, two)


def test_the_teacher_shares_no_weight_with_the_student(config, first):
    state = TrainState.create(config, first[0], CPU)
    students = {parameter.data_ptr() for parameter in state.student.parameters()}
    assert [
        name
        for name, parameter in state.teacher.named_parameters()
        if parameter.data_ptr() in students
    ] == []


def test_with_weight_zero_there_is_no_head_token_or_centre(tiny, first):
    state = TrainState.create(tiny(precision="fp32"), first[0], CPU)
    names = [*state.student.state_dict(), *state.teacher.state_dict()]
    assert not [name for name in names if "patch_" in name or "mask" in name]
