"""Views against torchvision's per-sample chain, and the promises about randomness."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as peer

from silc_bench.trainer.config.config import ViewsConfig
from silc_bench.trainer.silc import views

CONFIG = ViewsConfig(num_global=3, global_size=40, num_local=2, local_size=16)
CANVAS = 48


def make_images(count, sizes=None, *, seed=0, padding=0):
    """uint8 canvases [count, 3, CANVAS, CANVAS] and their sizes.

    Smooth enough to have all hues, noisy enough to alias.
    """
    rng = np.random.default_rng(seed)
    if sizes is None:
        sizes = rng.integers(12, CANVAS + 1, (count, 2))
    sizes = np.broadcast_to(sizes, (count, 2)).copy()
    images = np.full((count, 3, CANVAS, CANVAS), padding, dtype=np.uint8)
    for image, (height, width) in zip(images, sizes, strict=True):
        image[:, :height, :width] = rng.integers(0, 256, (3, height, width))
        # flat, and some of it grey
        image[:, : height // 2, : width // 3] = rng.integers(0, 256, (3, 1, 1))
        image[:, height // 2 :, : width // 4] = rng.integers(0, 256)
    return torch.from_numpy(images), torch.from_numpy(sizes)


def made(images, sizes, config=CONFIG, **where):
    return views.make_views(images, sizes, config, **{"seed": 0, "step": 0} | where)


def drawn(count, size=(CANVAS, CANVAS), view=0, **changes):
    """What is drawn for ``count`` images of one size."""
    config = dataclasses.replace(CONFIG, **changes)
    return views.draw(torch.tensor([size]).expand(count, 2), config, seed=0, step=0, view=view)


def same(mine, theirs, tolerance=1e-5):
    """Two tensors, or the three of two ``Views``."""
    if isinstance(mine, views.Views):
        mine, theirs = dataclasses.astuple(mine), dataclasses.astuple(theirs)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=tolerance)


@pytest.mark.parametrize("resize", ["bilinear", "bicubic"])
def test_whole_view_is_torchvisions_chain(resize):
    """The operations meet the right samples, in DINO's order, with the drawn parameters."""
    images, sizes = make_images(32)
    if resize == "bicubic":  # of hard edges torchvision cuts nothing off before the colours change
        images = (85 + images.double() / 3).byte()
    config = dataclasses.replace(CONFIG, resize=resize)
    finished = made(images, sizes, config, seed=3, step=11)
    for view, crops in enumerate([*finished.global_crops, *finished.local_crops]):
        params = views.draw(sizes, CONFIG, 3, 11, view)
        size = crops.shape[-1]
        expected = [reference_view(images, params, row, size, resize) for row in range(32)]
        same(crops, torch.stack(expected), 5e-5)


def reference_view(images, params, row, size, resize):
    box = params.boxes[row].tolist()
    how = {"interpolation": v2.InterpolationMode(resize), "antialias": True}
    image = peer.resized_crop(images[row].float() / 255, *box, [size, size], **how)
    if params.flips[row]:
        image = peer.horizontal_flip(image)
    if params.jitter[row]:
        factors = params.jitter_factors[row].tolist()
        for index in params.jitter_order:
            name = ("brightness", "contrast", "saturation", "hue")[index]
            image = getattr(peer, f"adjust_{name}")(image, factors[index])
    if params.gray[row]:
        image = peer.rgb_to_grayscale(image, num_output_channels=3)
    if params.blur[row]:
        taps = 2 * max(1, math.ceil(6 * size / 224)) + 1
        image = peer.gaussian_blur(image, [taps] * 2, [params.blur_sigmas[row].item()] * 2)
    if params.solarize[row]:
        image = peer.solarize(image, threshold=0.5)
    return 2 * image - 1


def test_original_is_the_whole_image_squashed():
    images, sizes = make_images(7)
    original = made(images, sizes, needs={"original"}).original
    for image, (height, width), squashed in zip(images, sizes.tolist(), original, strict=True):
        whole = image[:, :height, :width].float() / 255
        same(squashed, peer.resize(whole, [40, 40], antialias=True) * 2 - 1)


# --- randomness -----------------------------------------------------------------------------------


def check_distribution(mine, theirs, name=""):
    """Their Kolmogorov-Smirnov distance is what two samples of one distribution may have."""
    grid = np.sort(np.concatenate([mine, theirs]))
    shares = [
        np.searchsorted(np.sort(sample), grid, side="right") / len(sample)
        for sample in (mine, theirs)
    ]
    bound = 2.2 * np.sqrt(2 / len(mine))  # a true match exceeds this about once in 15,000
    assert np.abs(shares[0] - shares[1]).max() < bound, name


@pytest.mark.parametrize("area", [(0.4, 1.0), (0.05, 0.4)])
@pytest.mark.parametrize("size", [(64, 64), (40, 64), (64, 24)])
def test_boxes_have_random_resized_crops_distribution(area, size):
    count = 3000
    torch.manual_seed(1)
    crop, blank = v2.RandomResizedCrop(8, scale=area), torch.zeros(3, *size)
    theirs = np.array([[*crop.make_params([blank]).values()] for _ in range(count)])
    params = drawn(count, size, global_area=area)
    mine = params.boxes.numpy()
    assert (mine[:, :2] >= 0).all()
    assert (mine[:, :2] + mine[:, 2:] <= size).all()
    for column in range(4):
        check_distribution(mine[:, column], theirs[:, column], column)
    for measure in (
        lambda box: box[2] * box[3],
        lambda box: np.log(box[3] / box[2]),
        lambda box: box[0] - box[1],
    ):
        check_distribution(measure(mine.T), measure(theirs.T))
    assert abs(params.flips.double().mean() - 0.5) < 0.04


@pytest.mark.parametrize("size", [(4, 64), (64, 3)])
def test_a_thin_image_falls_back_to_the_centre(size):
    crop = v2.RandomResizedCrop(8, scale=(1.0, 1.0))
    expected = [*crop.make_params([torch.zeros(3, *size)]).values()]
    assert (drawn(50, size, global_area=(1.0, 1.0)).boxes == torch.tensor(expected)).all()


@pytest.mark.parametrize("side", [1, 2, 3])
def test_a_crop_of_a_few_pixels_has_one_at_least(side):
    """A twentieth of them would be none."""
    boxes = drawn(500, (side, side), num_global=0, local_area=(0.01, 0.1)).boxes
    assert boxes[:, 2:].min() == 1
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= side).all()


def test_settings_beyond_the_recipe_stay_within_what_the_operations_can():
    """A factor is no less than 0, as in torchvision, and a blur reflects the view once at most."""
    changes = {"jitter": (2.0, 1.5, 1.2, 0.5), "blur_sigma": (90.0, 100.0)}
    params = drawn(500, **changes)
    assert (params.jitter_factors[:, :3].amin(0) == 0).all()
    assert params.jitter_factors[:, 3].min() < -0.4
    assert params.blur_radius == 39
    finished = made(*make_images(6), dataclasses.replace(CONFIG, **changes))
    assert finished.global_crops.abs().max() <= 1.00001


def test_jitter_and_blur_are_drawn_as_torchvision_draws_them():
    """Factors and sigma of its own transforms, the sigma in its pixels."""
    count = 3000
    torch.manual_seed(2)
    jitter, blur = v2.ColorJitter(*CONFIG.jitter), v2.GaussianBlur(5, sigma=CONFIG.blur_sigma)
    theirs = [jitter.make_params([]) | blur.make_params([]) for _ in range(count)]
    params = drawn(count, global_size=CONFIG.blur_size)
    for index, name in enumerate(("brightness", "contrast", "saturation", "hue")):
        wanted = np.array([float(row[f"{name}_factor"]) for row in theirs])
        check_distribution(params.jitter_factors[:, index].numpy(), wanted, name)
    sigmas = np.array([float(row["sigma"][0]) for row in theirs])
    check_distribution(params.blur_sigmas.numpy(), sigmas)
    small = drawn(count, global_size=112)
    assert small.blur_sigmas.min().item() == pytest.approx(0.05, abs=0.01)
    assert small.blur_sigmas.max().item() == pytest.approx(1, abs=0.01)
    assert [radius.blur_radius for radius in (params, small, drawn(1))] == [6, 3, 2]

    unscaled = drawn(count, global_size=112, blur_size=0)
    assert torch.equal(unscaled.blur_sigmas, params.blur_sigmas)
    assert unscaled.blur_radius == 6


@pytest.mark.parametrize("view", range(4))
def test_each_operation_is_drawn_as_often_as_configured(view):
    count = 20_000
    params = drawn(count, view=view, flip_prob=0.3)
    rates = {"flips": 0.3, "jitter": 0.8, "gray": 0.2}
    rates |= {"blur": [1, 0.1, 0.1, 0.5][view], "solarize": [0, 0.2, 0.2, 0][view]}
    for name, expected in rates.items():
        rate = getattr(params, name).double().mean().item()
        assert rate == pytest.approx(expected, abs=5 * math.sqrt(0.25 / count)), name
    # independent of each other
    spread = torch.corrcoef(params.jitter_factors.double().T) - torch.eye(4)
    assert spread.abs().max() < 0.05


def test_every_order_of_the_colour_operations_is_drawn():
    size = torch.tensor([[CANVAS, CANVAS]])
    orders = {tuple(views.draw(size, CONFIG, 0, step, 0).jitter_order) for step in range(300)}
    assert len(orders) == 24


def test_views_are_a_pure_function_of_seed_step_and_view():
    inputs = make_images(8)
    first = made(*inputs, seed=1, step=2)
    state = torch.random.get_rng_state()
    fewer = made(*inputs, seed=1, step=2, needs={"local_crops"})
    smaller = made(*inputs, dataclasses.replace(CONFIG, num_local=1), seed=1, step=2)
    assert torch.equal(state, torch.random.get_rng_state())  # the global generator is left alone
    assert fewer.global_crops is fewer.original is None
    assert torch.equal(first.local_crops, fewer.local_crops)
    assert torch.equal(first.local_crops[:1], smaller.local_crops)
    crops = first.global_crops
    others = [made(*inputs, seed=seed, step=step) for seed, step in ((1, 3), (2, 2))]
    for other in (*(other.global_crops for other in others), crops.roll(1, 0)):
        assert not torch.isclose(crops, other).flatten(2).all(-1).any()


@pytest.mark.parametrize("pixels", [1, 3 * 40**2])
def test_views_do_not_depend_on_how_many_are_made_at_a_time(monkeypatch, pixels):
    inputs = make_images(16)
    together = made(*inputs)
    monkeypatch.setattr(views, "CACHED_PIXELS", pixels)
    same(made(*inputs), together)


# --- promises about the tensors -------------------------------------------------------------------


@pytest.mark.parametrize("block", [4096, 3, 1])
@pytest.mark.parametrize("first", [0, 1, 5])
def test_a_part_of_the_global_batch_gets_the_views_that_the_whole_would_give_it(
    first, block, monkeypatch
):
    monkeypatch.setattr(views, "BLOCK", block)
    images, sizes = make_images(8)
    whole = made(images, sizes)
    part = made(images[first:7], sizes[first:7], first=first)
    same(part.global_crops, whole.global_crops[:, first:7])
    same(part.local_crops, whole.local_crops[:, first:7])
    assert len(drawn(8).blur_sigmas.unique()) == 8, "two blocks draw the same"


def test_padding_never_reaches_a_view():
    black, white = (made(*make_images(16, seed=4, padding=value)) for value in (0, 255))
    same(black, white, 0)


def test_outputs_are_contiguous_fp32_in_range():
    """In autocast too."""
    images, sizes = make_images(4)
    before = images.clone()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        finished = made(images, sizes)
    assert torch.equal(images, before)
    same(finished, made(images, sizes), 0)
    tensors = dataclasses.astuple(finished)
    shapes = [(3, 4, 3, 40, 40), (2, 4, 3, 16, 16), (4, 3, 40, 40)]
    assert [tensor.shape for tensor in tensors] == shapes
    for tensor in tensors:
        assert (tensor.dtype, tensor.is_contiguous()) == (torch.float32, True)
        assert -1.00001 <= tensor.min() < -0.5
        assert 0.5 < tensor.max() <= 1.00001


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_makes_the_same_views():
    images, sizes = make_images(16)
    on_gpu = dataclasses.astuple(made(images.cuda(), sizes))
    assert all(tensor.is_cuda for tensor in on_gpu)
    same(views.Views(*(tensor.cpu() for tensor in on_gpu)), made(images, sizes), 1e-4)


def test_no_local_views_and_one_pixel_images_work():
    finished = made(*make_images(3, 1), dataclasses.replace(CONFIG, num_local=0))
    assert finished.local_crops.shape == (0, 3, 3, 16, 16)
    assert finished.global_crops.isfinite().all()
