"""Views against torchvision's per-sample chain, and the promises about randomness."""

import dataclasses

import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as peer

from silc_bench.trainer.config.config import ViewsConfig
from silc_bench.trainer.silc import views

CONFIG = ViewsConfig(num_global=3, global_size=40, num_local=2, local_size=16)
CANVAS = 48


def pictures(count, sizes=None, *, seed=0, padding=0):
    """uint8 canvases [count, 3, CANVAS, CANVAS] and their sizes.

    Smooth enough to have all hues, noisy enough to alias.
    """
    rng = np.random.default_rng(seed)
    sizes = (
        rng.integers(12, CANVAS + 1, (count, 2))
        if sizes is None
        else np.broadcast_to(sizes, (count, 2)).copy()
    )
    images = np.full((count, 3, CANVAS, CANVAS), padding, dtype=np.uint8)
    for image, (height, width) in zip(images, sizes, strict=True):
        image[:, :height, :width] = rng.integers(0, 256, (3, height, width))
        # flat, and some of it grey
        image[:, : height // 2, : width // 3] = rng.integers(0, 256, (3, 1, 1))
        image[:, height // 2 :, : width // 4] = rng.integers(0, 256)
    return torch.from_numpy(images), torch.from_numpy(sizes)


def same(mine, theirs, tolerance=1e-5):
    torch.testing.assert_close(mine, theirs, rtol=0, atol=tolerance)


def test_whole_view_is_torchvisions_chain():
    """The operations meet the right samples, in DINO's order, with the drawn parameters."""
    images, sizes = pictures(32)
    made = views.make_views(images, sizes, CONFIG, seed=3, step=11)
    for view, (crops, size) in enumerate(
        [(crop, 40) for crop in made.global_crops] + [(c, 16) for c in made.local_crops]
    ):
        params = views.draw(sizes, CONFIG, 3, 11, view)
        same(
            crops,
            torch.stack([reference_view(images, params, row, size) for row in range(32)]),
            5e-5,
        )


def reference_view(images, params, row, size):
    top, left, height, width = params.boxes[row].tolist()
    image = peer.resized_crop(
        images[row].float() / 255, top, left, height, width, [size, size], antialias=True
    )
    if params.flips[row]:
        image = peer.horizontal_flip(image)
    if params.jitter[row]:
        factors = params.jitter_factors[row].tolist()
        by_index = [
            peer.adjust_brightness,
            peer.adjust_contrast,
            peer.adjust_saturation,
            peer.adjust_hue,
        ]
        for index in params.jitter_order:
            image = by_index[index](image, factors[index])
    if params.gray[row]:
        image = peer.rgb_to_grayscale(image, num_output_channels=3)
    if params.blur[row]:
        sigma = params.blur_sigmas[row].item()
        image = peer.gaussian_blur(
            image, [2 * max(1, int(np.ceil(6 * size / 224))) + 1] * 2, [sigma] * 2
        )
    if params.solarize[row]:
        image = peer.solarize(image, threshold=0.5)
    return peer.normalize(image, [0.5] * 3, [0.5] * 3)


def test_original_is_the_whole_image_squashed():
    images, sizes = pictures(7)
    original = views.make_views(images, sizes, CONFIG, 0, 0, needs={"original"}).original
    for index, (height, width) in enumerate(sizes.tolist()):
        expected = peer.resize(
            images[index, :, :height, :width].float() / 255, [40, 40], antialias=True
        )
        same(original[index], expected * 2 - 1)


# --- randomness -----------------------------------------------------------------------------------


def statistic(first, second):
    """Kolmogorov-Smirnov distance between two samples."""
    grid = np.sort(np.concatenate([first, second]))
    ranks = [
        np.searchsorted(np.sort(sample), grid, side="right") / len(sample)
        for sample in (first, second)
    ]
    return np.abs(ranks[0] - ranks[1]).max()


@pytest.mark.parametrize("area", [(0.4, 1.0), (0.05, 0.4)])
@pytest.mark.parametrize("size", [(64, 64), (40, 64), (64, 24)])
def test_boxes_have_random_resized_crops_distribution(size, area):
    count = 4000
    torch.manual_seed(1)
    crop = v2.RandomResizedCrop(8, scale=area)
    blank = [torch.zeros(3, *size)]
    theirs = np.array([list(crop.make_params(blank).values()) for _ in range(count)])
    config = dataclasses.replace(CONFIG, global_area=area)
    params = views.draw(torch.tensor([size]).expand(count, 2), config, seed=0, step=0, view=0)
    mine = params.boxes.numpy()
    assert (mine[:, :2] >= 0).all()
    assert (mine[:, :2] + mine[:, 2:] <= size).all()
    bound = 2.2 * np.sqrt(2 / count)  # a true match exceeds this about once in 15,000
    for column in range(4):
        assert statistic(mine[:, column], theirs[:, column]) < bound
    for measure in (
        lambda b: b[:, 2] * b[:, 3],
        lambda b: np.log(b[:, 3] / b[:, 2]),
        lambda b: b[:, 0] - b[:, 1],
    ):
        assert statistic(measure(mine), measure(theirs)) < bound
    assert abs(params.flips.double().mean() - 0.5) < 0.04


@pytest.mark.parametrize("size", [(4, 64), (64, 3)])
def test_a_thin_image_falls_back_to_the_centre(size):
    boxes = views.draw(
        torch.tensor([size]).expand(50, 2),
        dataclasses.replace(CONFIG, global_area=(1.0, 1.0)),
        0,
        0,
        0,
    ).boxes
    crop = v2.RandomResizedCrop(8, scale=(1.0, 1.0))
    assert (boxes == torch.tensor(list(crop.make_params([torch.zeros(3, *size)]).values()))).all()


@pytest.mark.parametrize("side", [1, 2, 3])
def test_a_crop_of_a_few_pixels_has_one_at_least(side):
    """A twentieth of them would be none."""
    config = dataclasses.replace(CONFIG, num_global=0, local_area=(0.01, 0.1))
    boxes = views.draw(torch.full((500, 2), side), config, 0, 0, 0).boxes
    assert boxes[:, 2:].min() == 1
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= side).all()


def test_settings_beyond_the_recipe_stay_within_what_the_operations_can():
    """A factor is no less than 0, as in torchvision, and a blur reflects the view once at most."""
    images, sizes = pictures(6)
    config = dataclasses.replace(CONFIG, jitter=(2.0, 1.5, 1.2, 0.5), blur_sigma=(90.0, 100.0))
    params = views.draw(torch.full((500, 2), CANVAS), config, 0, 0, 0)
    assert (params.jitter_factors[:, :3] == 0).any(0).all()
    assert (params.jitter_factors[:, :3] >= 0).all()
    assert params.jitter_factors[:, 3].min() < -0.4
    assert params.blur_radius == 39
    made = views.make_views(images, sizes, config, 0, 0, needs={"global_crops"}).global_crops
    assert made.abs().max() <= 1.00001


def test_jitter_and_blur_are_drawn_as_torchvision_draws_them():
    """Factors, order and sigma of its own transforms.

    The shares of jittered and blurred samples are tested below.
    """
    count = 3000
    torch.manual_seed(2)
    jitter, blur = v2.ColorJitter(*CONFIG.jitter), v2.GaussianBlur(5, sigma=CONFIG.blur_sigma)
    theirs = [jitter.make_params([]) for _ in range(count)]
    # sigma in torchvision's pixels
    config = dataclasses.replace(CONFIG, global_size=views.BLUR_REFERENCE, jitter_prob=1.0)
    params = views.draw(torch.full((count, 2), CANVAS), config, seed=4, step=0, view=0)
    bound = 2.2 * np.sqrt(2 / count)
    for index, name in enumerate(
        ("brightness_factor", "contrast_factor", "saturation_factor", "hue_factor")
    ):
        assert (
            statistic(
                params.jitter_factors[:, index].numpy(), np.array([float(p[name]) for p in theirs])
            )
            < bound
        ), name
    sigmas = np.array([float(blur.make_params([])["sigma"][0]) for _ in range(count)])
    assert statistic(params.blur_sigmas.numpy(), sigmas) < bound
    small = views.draw(
        torch.full((count, 2), CANVAS),
        dataclasses.replace(config, global_size=112),
        seed=4,
        step=0,
        view=0,
    )
    assert 0.05 <= small.blur_sigmas.min() < 0.06, (
        "half of 0.1 to 2 pixels where a view has half of 224"
    )
    assert 0.99 < small.blur_sigmas.max() <= 1
    assert [
        p.blur_radius for p in (params, small, views.draw(torch.tensor([[9, 9]]), CONFIG, 0, 0, 0))
    ] == [6, 3, 2]


def test_finished_views_have_the_distribution_of_torchvisions():
    """One picture, hundreds of views through either chain: their statistics.

    Means of channels, contrast, sharpness, difference of halves.
    """
    count, size = 700, 24
    image = pictures(1, CANVAS, seed=8)[0][0]
    config = dataclasses.replace(CONFIG, num_global=2, global_size=size, blur_probs=(1.0, 0.5, 0.5))
    made = views.make_views(
        image.expand(count, 3, -1, -1),
        torch.full((count, 2), CANVAS),
        config,
        7,
        0,
        needs={"global_crops"},
    )
    torch.manual_seed(3)
    low, high = (sigma * size / views.BLUR_REFERENCE for sigma in config.blur_sigma)
    chain = v2.Compose([
        v2.RandomResizedCrop(size, scale=config.global_area, antialias=True),
        v2.RandomHorizontalFlip(config.flip_prob),
        v2.RandomApply([v2.ColorJitter(*config.jitter)], config.jitter_prob),
        v2.RandomGrayscale(config.gray_prob),
        v2.RandomApply([v2.GaussianBlur(2 * max(1, int(np.ceil(3 * high))) + 1, (low, high))], 0.5),
        v2.RandomSolarize(0.5, config.solarize_prob),
    ])  # fmt: skip
    theirs = torch.stack([chain(image.float() / 255) for _ in range(count)])
    mine = (made.global_crops[1] + 1) / 2
    measures = {
        "red": lambda x: x[:, 0].mean((1, 2)),
        "green": lambda x: x[:, 1].mean((1, 2)),
        "blue": lambda x: x[:, 2].mean((1, 2)),
        "contrast": lambda x: x.std((1, 2, 3)),
        "sharpness": lambda x: x.diff(dim=-1).abs().mean((1, 2, 3)),
        "colourfulness": lambda x: (x[:, 0] - x[:, 2]).abs().mean((1, 2)),
        "left minus right": lambda x: (x[..., : size // 2] - x[..., size // 2 :]).mean((1, 2, 3)),
    }
    bound = 2.0 * np.sqrt(2 / count)
    found = {
        name: statistic(measure(mine).numpy(), measure(theirs).numpy())
        for name, measure in measures.items()
    }
    assert {name: value for name, value in found.items() if value >= bound} == {}
    other = views.make_views(
        image.expand(count, 3, -1, -1),
        torch.full((count, 2), CANVAS),
        dataclasses.replace(config, solarize_prob=0.0),
        7,
        0,
    )
    # what the test can tell apart: without solarisation it fails
    halves = (other.global_crops[1] + 1) / 2
    assert (
        max(
            statistic(measure(halves).numpy(), measure(theirs).numpy())
            for measure in measures.values()
        )
        > bound
    )


def test_a_reduced_view_is_antialiased():
    """Stripes of one pixel become their grey; every third pixel alone would be black and white."""
    images = torch.zeros(2, 3, CANVAS, CANVAS, dtype=torch.uint8)
    images[0, :, :, ::2] = 255
    images[1, :, ::2] = 255
    config = dataclasses.replace(
        CONFIG, global_size=16, jitter_prob=0, gray_prob=0, blur_probs=(0, 0, 0), solarize_prob=0
    )
    made = views.make_views(
        images,
        torch.full((2, 2), CANVAS),
        dataclasses.replace(config, global_area=(1.0, 1.0)),
        0,
        0,
    )
    # a kernel that a border cuts sees more of one stripe
    inside = made.global_crops[..., 1:-1, 1:-1]
    assert inside.abs().max() < 0.15
    aliased = peer.resize(images.float() / 127.5 - 1, [16, 16], antialias=False)
    assert aliased.abs().max() > 0.9


def test_each_operation_is_drawn_as_often_as_configured():
    count, sizes = 20_000, torch.full((20_000, 2), CANVAS)
    config = dataclasses.replace(CONFIG, flip_prob=0.3)
    rates = {
        "flips": [0.3] * 4,
        "jitter": [0.8] * 4,
        "gray": [0.2] * 4,
        "blur": [1, 0.1, 0.1, 0.5],
        "solarize": [0, 0.2, 0.2, 0],
    }
    for view in range(4):
        params = views.draw(sizes, config, 0, 0, view)
        for name, expected in rates.items():
            rate = getattr(params, name).double().mean()
            assert abs(rate - expected[view]) < 5 * np.sqrt(0.25 / count), (name, view)
        # uniform on 0.6..1.4, 0.6..1.4, 0.8..1.2 and -0.1..0.1, and independent of each other
        factors = (params.jitter_factors.double() - torch.tensor([1.0, 1, 1, 0])) / torch.tensor(
            [0.4, 0.4, 0.2, 0.1]
        )
        assert factors.abs().max() <= 1 + 1e-6
        torch.testing.assert_close(
            torch.cov(factors.T), torch.eye(4).double() / 3, atol=0.02, rtol=0
        )
    orders = {tuple(views.draw(sizes[:1], CONFIG, 0, step, 0).jitter_order) for step in range(300)}
    assert len(orders) == 24


def test_views_are_a_pure_function_of_seed_step_and_view():
    images, sizes = pictures(8)
    torch.manual_seed(5)
    first = views.make_views(images, sizes, CONFIG, seed=1, step=2)
    state = torch.random.get_rng_state()
    again = views.make_views(images, sizes, CONFIG, seed=1, step=2)
    assert torch.equal(state, torch.random.get_rng_state())  # the global generator is left alone
    fewer = views.make_views(images, sizes, CONFIG, seed=1, step=2, needs={"local_crops"})
    smaller = views.make_views(
        images, sizes, dataclasses.replace(CONFIG, num_local=1), seed=1, step=2
    )
    assert fewer.global_crops is None
    assert fewer.original is None
    assert torch.equal(first.global_crops, again.global_crops)
    assert torch.equal(first.local_crops, fewer.local_crops)
    assert torch.equal(first.local_crops[:1], smaller.local_crops)
    for seed, step in ((1, 3), (2, 2)):
        other = views.make_views(images, sizes, CONFIG, seed=seed, step=step).global_crops
        assert not torch.isclose(other, first.global_crops).flatten(2).all(-1).any()
    crops = first.global_crops
    assert not torch.isclose(crops[0], crops[1]).flatten(1).all(-1).any()


def test_a_sample_does_not_depend_on_the_rest_of_the_batch():
    images, sizes = pictures(8)
    whole = views.make_views(images, sizes, CONFIG, 0, 0)
    part = views.make_views(images[:5], sizes[:5], CONFIG, 0, 0)
    same(part.global_crops, whole.global_crops[:, :5])
    same(part.local_crops, whole.local_crops[:, :5])


@pytest.mark.parametrize(
    "drawn", [[0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 1, 1, 0, 0], [1, 0, 0, 1, 0], [0, 0, 1, 0, 1]]
)
def test_an_operation_changes_the_rows_it_was_drawn_for_with_their_own_parameters(drawn):
    """None, all, a run of them, and scattered."""
    images, drawn, factors = (
        torch.ones(5, 3, 2, 2),
        torch.tensor(drawn).bool(),
        torch.arange(2.0, 7.0),
    )
    views.apply(
        lambda images, factor, power: images.mul_(factor.view(-1, 1, 1, 1) ** power),
        images,
        drawn,
        factors,
        power=2,
    )
    assert torch.equal(
        images, torch.where(drawn, factors**2, torch.ones(5)).view(5, 1, 1, 1).expand(5, 3, 2, 2)
    )


@pytest.mark.parametrize("pixels", [1, 3 * 40**2])
def test_views_do_not_depend_on_how_many_are_made_at_a_time(monkeypatch, pixels):
    images, sizes = pictures(16)
    together = views.make_views(images, sizes, CONFIG, 0, 0)
    monkeypatch.setattr(views, "CACHED_PIXELS", pixels)
    apart = views.make_views(images, sizes, CONFIG, 0, 0)
    same(apart.global_crops, together.global_crops)
    same(apart.local_crops, together.local_crops)


# --- promises about the tensors -------------------------------------------------------------------


@pytest.mark.parametrize("block", [4096, 3, 1])
@pytest.mark.parametrize("first", [1, 5])
def test_a_part_of_the_global_batch_gets_the_views_that_the_whole_would_give_it(
    first, block, monkeypatch
):
    monkeypatch.setattr(views, "BLOCK", block)
    images, sizes = pictures(8)
    whole = views.make_views(images, sizes, CONFIG, seed=1, step=2)
    part = views.make_views(images[first:7], sizes[first:7], CONFIG, seed=1, step=2, first=first)
    same(part.global_crops, whole.global_crops[:, first:7])
    same(part.local_crops, whole.local_crops[:, first:7])


def test_random_numbers_of_a_block_are_drawn_for_those_who_ask_for_it(monkeypatch):
    monkeypatch.setattr(views, "BLOCK", 4)
    drawn = []
    monkeypatch.setattr(
        torch,
        "rand",
        lambda *shape, rand=torch.rand, **rest: drawn.append(shape) or rand(*shape, **rest),
    )
    whole = views.table(0, 11, 5, views.seeded(1), (1, 2))
    assert drawn == [(4, 5), (4, 5), (3, 5)]
    assert len(whole.unique()) == whole.numel(), "no two blocks draw the same"
    drawn.clear()
    assert torch.equal(views.table(9, 1, 5, views.seeded(1), (1, 2)), whole[9:10])
    assert drawn == [(2, 5)], "and nothing of the blocks before"


def test_padding_never_reaches_a_view():
    black, sizes = pictures(16, seed=4, padding=0)
    white, _ = pictures(16, seed=4, padding=255)
    assert not torch.equal(black, white)
    for first, second in zip(
        *[dataclasses.astuple(views.make_views(i, sizes, CONFIG, 0, 0)) for i in (black, white)],
        strict=True,
    ):
        assert torch.equal(first, second)


def test_outputs_are_plain_contiguous_fp32_in_range_without_gradient():
    images, sizes = pictures(4)
    before = images.clone()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = views.make_views(images, sizes, CONFIG, 0, 0)
    assert torch.equal(images, before)
    assert made.global_crops.shape == (3, 4, 3, 40, 40)
    assert made.local_crops.shape == (2, 4, 3, 16, 16)
    assert made.original.shape == (4, 3, 40, 40)
    for tensor in dataclasses.astuple(made):
        assert tensor.dtype == torch.float32
        assert tensor.is_contiguous()
        assert not tensor.requires_grad
        assert -1.00001 <= tensor.min() < -0.5
        assert 0.5 < tensor.max() <= 1.00001
    # autocast changed nothing
    assert torch.equal(made.original, views.make_views(images, sizes, CONFIG, 0, 0).original)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_makes_the_same_views():
    images, sizes = pictures(16)
    here, there = (
        views.make_views(images, sizes, CONFIG, 0, 0),
        views.make_views(images.cuda(), sizes, CONFIG, 0, 0),
    )
    for mine, theirs in zip(dataclasses.astuple(there), dataclasses.astuple(here), strict=True):
        assert mine.is_cuda
        same(mine.cpu(), theirs, 1e-4)


def test_no_local_views_and_one_pixel_images_work():
    images, sizes = pictures(3, 1)
    made = views.make_views(images, sizes, dataclasses.replace(CONFIG, num_local=0), 0, 0)
    assert made.local_crops.shape == (0, 3, 3, 16, 16)
    assert made.global_crops.isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"needs": {"globals"}}, "known: global_crops"),
        ({"images": torch.zeros(4, 3, CANVAS, CANVAS)}, "uint8"),
        ({"images": torch.zeros(4, 3, CANVAS, 8, dtype=torch.uint8)}, "must be uint8"),
        ({"sizes": torch.full((4, 2), CANVAS + 1)}, "canvas"),
        ({"sizes": torch.zeros(4, 2, dtype=torch.int64)}, "canvas"),
    ],
)
def test_wrong_input_is_refused(change, message):
    images, sizes = pictures(4)
    arguments = {"images": images, "sizes": sizes, "config": CONFIG, "seed": 0, "step": 0} | change
    with pytest.raises(ValueError, match=message):
        views.make_views(**arguments)
