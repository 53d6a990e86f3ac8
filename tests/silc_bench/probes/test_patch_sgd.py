"""The descended probe: gradient against autograd, schedule as the source says, layers folded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from silc_bench.models.windows import View
from silc_bench.probes import patch_sgd
from silc_bench.probes.patch_sgd import fit, learning_rate_at, num_steps, shuffled

ONE_WINDOW = View(12, 12, 12).layout(12, 12, 4)


def masks_of(images):
    return [mask.tobytes() for _, _, mask in images]


def test_the_schedule_is_dinov2s():
    """mmcv's poly policy of power 1 to 0, times its linear warm-up, over 40,000 steps.

    The warm-up takes 1,500 steps from a millionth.
    """
    for step in (0, 1, 700, 1499, 1500, 20_000, 39_999):
        rate = 1e-3 * (1 - step / 40_000)
        if step < 1500:
            rate *= 1 - (1 - step / 1500) * (1 - 1e-6)
        assert learning_rate_at(step, 40_000) == pytest.approx(rate, rel=1e-12)


def test_steps_keep_the_passes_between_bounds():
    """As published on ADE20K, whose 20,210 images are the first."""
    steps = [num_steps(num_images) for num_images in (20_210, 10_000, 46, 10**6)]
    assert steps == [40_000, 32 * 10_000 / 16, patch_sgd.MIN_STEPS, 40_000]


@pytest.mark.parametrize("band", [1, 40, 1 << 23], ids=["a row", "some rows", "whole"])
def test_a_fit_is_what_plain_layers_reach(band, monkeypatch):
    """The same steps by torch's own layers, interpolation and loss: one window and full batches."""
    monkeypatch.setattr(patch_sgd, "BAND", band)
    monkeypatch.setattr(patch_sgd, "MIN_STEPS", 12)
    rng = np.random.default_rng(1)
    grids = rng.normal(3, 2, (4, 3, 3, 5)).astype(np.float16).astype(np.float32)
    masks = rng.choice([0, 1, 2, 255], (4, 10, 13)).astype(np.uint8)
    data = [(grid, ONE_WINDOW, mask) for grid, mask in zip(grids, masks, strict=True)]
    probe = fit(lambda: data, 4, 3, seed=7)

    norm, head = torch.nn.BatchNorm2d(5), torch.nn.Conv2d(5, 3, 1)
    generator = torch.Generator().manual_seed(7)
    torch.nn.init.normal_(head.weight[:, :, 0, 0], std=0.01, generator=generator)
    torch.nn.init.zeros_(head.bias)
    optimizer = torch.optim.AdamW([*norm.parameters(), *head.parameters()], weight_decay=1e-4)
    cells, labels = torch.from_numpy(grids).permute(0, 3, 1, 2), torch.from_numpy(masks).long()
    for step in range(12):
        optimizer.param_groups[0]["lr"] = learning_rate_at(step, 12)
        optimizer.zero_grad()
        logits = F.interpolate(head(norm(cells)), size=(12, 12), mode="bilinear")
        logits = F.interpolate(logits, size=(10, 13), mode="bilinear")
        F.cross_entropy(logits, labels, ignore_index=255).backward()
        optimizer.step()
    expected = head.eval()(norm.eval()(cells)).detach().permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(probe(grids), expected, atol=2e-4)


def test_the_seed_decides_everything(cell_images, monkeypatch):
    monkeypatch.setattr(patch_sgd, "MIN_STEPS", 5)
    monkeypatch.setattr(patch_sgd, "BATCH", 2)
    first, again, other = (fit(cell_images, 4, 3, seed) for seed in (0, 0, 1))
    assert np.array_equal(first.weight, again.weight)
    assert not np.array_equal(first.weight, other.weight)


def test_each_pass_is_the_whole_set_in_a_new_order(cell_images):
    order = shuffled(cell_images, seed=0)
    passes = [masks_of(next(order) for _ in range(4)) for _ in range(3)]
    assert all(sorted(masks) == sorted(masks_of(cell_images())) for masks in passes)
    assert passes[0] != passes[1]


def test_a_set_that_does_not_fit_is_streamed_again_and_again(cell_images, monkeypatch):
    monkeypatch.setattr(patch_sgd, "BUFFER", 1000)
    calls = []

    def counted():
        calls.append(1)
        return cell_images(count=30)

    order = shuffled(counted, seed=0)
    drawn = masks_of(next(order) for _ in range(90))
    assert len(calls) in (3, 4)
    assert set(drawn) == set(masks_of(counted()))
    assert drawn[:30] != masks_of(counted())


def test_images_without_a_scored_pixel_change_nothing_but_decay(cell_images, monkeypatch):
    monkeypatch.setattr(patch_sgd, "MIN_STEPS", 3)
    empty = cell_images(classes=(255,))
    assert np.isfinite(fit(lambda: empty, 4, 3, seed=0).weight).all()
