"""Each batched operation against torchvision's v2 function, which takes one sample at a time."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as peer

from silc_bench.trainer.silc import image_ops

SIDE = 40


def pictures(count=9, seed=0, side=SIDE):
    """fp32 [count, 3, side, side] with all hues, flat colours and flat greys.

    In the memory layout of ``resample``.
    """
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 3, side, side), dtype=np.uint8)
    images[:, :, : side // 2, : side // 3] = rng.integers(0, 256, (count, 3, 1, 1))
    images[:, :, side // 2 :, : side // 4] = rng.integers(0, 256, (count, 1, 1, 1))
    return image_ops.to_pixels(torch.from_numpy(images))


def floats(count=9, seed=0):
    return pictures(count, seed).contiguous()


def random_boxes(count, side, rng):
    lengths = rng.integers(1, side + 1, (count, 2))
    return torch.from_numpy(np.concatenate([rng.integers(0, side - lengths + 1), lengths], axis=1))


def resample(images, boxes, flips, size):
    taps = image_ops.resampling_taps(boxes, flips, size, images.device)
    return image_ops.resample(images, torch.arange(len(images)), *taps)


def same(mine, theirs, tolerance=1e-5):
    torch.testing.assert_close(mine, theirs, rtol=0, atol=tolerance)


@settings(max_examples=40, deadline=None)
@given(size=st.integers(1, 64), side=st.integers(1, 48), seed=st.integers(0, 2**31))
def test_resample_is_resized_crop_and_flip(size, side, seed):
    images, rng = pictures(6, seed, side), np.random.default_rng(seed)
    boxes, flips = random_boxes(6, side, rng), torch.as_tensor(rng.random(6) < 0.5)
    mine = resample(images, boxes, flips, size)
    for index, (top, left, height, width) in enumerate(boxes.tolist()):
        theirs = peer.resized_crop(
            images[index].contiguous(), top, left, height, width, [size, size], antialias=True
        )
        same(mine[index], peer.horizontal_flip(theirs) if flips[index] else theirs)


def test_a_canvas_need_not_be_square():
    images = image_ops.to_pixels(
        torch.randint(
            0, 256, (3, 3, 20, 31), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
        )
    )
    boxes = torch.tensor([[0, 0, 20, 31], [3, 11, 17, 20], [5, 2, 4, 9]])
    mine = resample(images, boxes, torch.zeros(3, dtype=torch.bool), 12)
    for image, (top, left, height, width), found in zip(images, boxes.tolist(), mine, strict=True):
        same(
            found,
            peer.resized_crop(
                image.contiguous(), top, left, height, width, [12, 12], antialias=True
            ),
        )


def test_resample_keeps_its_precision_on_large_canvases():
    images, boxes = pictures(2, side=512), torch.tensor([[3, 5, 509, 480], [100, 37, 256, 471]])
    mine = resample(images, boxes, torch.zeros(2, dtype=torch.bool), 224)
    for index, (top, left, height, width) in enumerate(boxes.tolist()):
        image = images[index].double().contiguous()
        exact = peer.resized_crop(image, top, left, height, width, [224, 224], antialias=True)
        same(mine[index].double(), exact, 2e-5)  # torchvision's own fp32 is off by 1e-5 here


@pytest.mark.parametrize(
    ("operation", "theirs", "low", "high"),
    [
        (image_ops.adjust_brightness, peer.adjust_brightness, 0.0, 2.0),
        (image_ops.adjust_contrast, peer.adjust_contrast, 0.0, 2.0),
        (image_ops.adjust_saturation, peer.adjust_saturation, 0.0, 2.0),
        (image_ops.adjust_hue, peer.adjust_hue, -0.5, 0.5),
    ],
)
def test_color_operation_is_torchvisions(operation, theirs, low, high):
    images = floats()
    factors = torch.linspace(low, high, len(images))
    expected = torch.stack(
        [theirs(image, factor.item()) for image, factor in zip(images, factors, strict=True)]
    )
    same(operation(images.clone(), factors.view(-1, 1, 1, 1)), expected)


def test_hue_keeps_grey_black_white_and_primaries_and_turns_what_is_nearly_grey():
    colors = torch.tensor(
        [
            [0, 0, 0],
            [1, 1, 1],
            [0.3, 0.3, 0.3],
            [1, 0, 0],
            [0, 1, 0],
            [1, 1, 0],
            [0.2, 0.2, 0.7],
            [0.5, 0.502, 0.499],
        ]
    )
    images = colors[:, :, None, None].contiguous()
    expected = torch.stack([peer.adjust_hue(image, 1 / 3) for image in images])
    turned = image_ops.adjust_hue(images.clone(), torch.full((len(images), 1, 1, 1), 1 / 3))
    same(turned, expected)
    same(turned[3].flatten(), torch.tensor([0.0, 1.0, 0.0]))  # red turned by a third is green


def test_jitter_applies_the_operations_in_the_order_drawn():
    images, factors = floats(), torch.tensor([[1.4, 0.6, 0.8, 0.1]]).repeat(9, 1)
    by_index = [
        peer.adjust_brightness,
        peer.adjust_contrast,
        peer.adjust_saturation,
        peer.adjust_hue,
    ]
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]):
        expected = images
        for index in order:
            expected = by_index[index](expected, factors[0, index].item())
        same(image_ops.jitter_colors(images.clone(), factors, order), expected)


def test_gray_and_solarize_are_torchvisions():
    images = floats()
    same(image_ops.to_gray(images.clone()), peer.rgb_to_grayscale(images, num_output_channels=3))
    same(image_ops.solarize(images.clone()), peer.solarize(images, threshold=0.5))


@pytest.mark.parametrize("radius", [1, 3, 7, SIDE - 1])
def test_blur_is_torchvisions_with_reflected_borders(radius):
    images = floats()
    sigmas = torch.tensor([0.01, 0.1, 0.3, 0.5, 1.0, 1.5, 2.0, 4.0, 9.0])
    kernel = [2 * radius + 1] * 2
    expected = torch.stack(
        [peer.gaussian_blur(i, kernel, [s.item()] * 2) for i, s in zip(images, sigmas, strict=True)]
    )
    same(image_ops.blur(images.clone(), sigmas, radius), expected)
