"""Each batched operation against torchvision's v2 function, which takes one sample at a time."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as peer

from silc_bench.trainer.silc import image_ops

SIDE = 40
# grey, black, white, primaries, and what is nearly grey
COLORS = torch.tensor(
    [[0, 0, 0], [1, 1, 1], [0.3, 0.3, 0.3], [1, 0, 0], [0, 1, 0], [1, 1, 0], [0.5, 0.502, 0.499]]
)


def make_images(count=9, seed=0, height=SIDE, width=SIDE):
    """fp32 [count, 3, height, width] with all hues, flat colours and flat greys."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 3, height, width), dtype=np.uint8)
    images[:, :, : height // 2, : width // 3] = rng.integers(0, 256, (count, 3, 1, 1))
    images[:, :, height // 2 :, : width // 4] = rng.integers(0, 256, (count, 1, 1, 1))
    return image_ops.to_pixels(torch.from_numpy(images))


def same(mine, theirs, tolerance=1e-5):
    torch.testing.assert_close(mine, theirs, rtol=0, atol=tolerance)


def check_resampling(images, boxes, flips, size, tolerance=1e-5, kind="bilinear"):
    taps = image_ops.resampling_taps(boxes, flips, size, images.device, kind)
    mine = image_ops.resample(images, torch.arange(len(images)), *taps, kind)
    for index, box in enumerate(boxes.tolist()):
        # torchvision's own fp32 is off by 1e-5 on a large canvas
        image = images[index].double().contiguous()
        how = {"interpolation": InterpolationMode(kind), "antialias": True}
        theirs = peer.resized_crop(image, *box, [size, size], **how)
        theirs = peer.horizontal_flip(theirs) if flips[index] else theirs
        same(mine[index].double(), theirs, tolerance)


@settings(max_examples=40)
@given(
    size=st.integers(1, 64),
    height=st.integers(1, 48),
    width=st.integers(1, 48),
    seed=st.integers(0, 2**31),
    kind=st.sampled_from(["bilinear", "bicubic"]),
)
def test_resample_is_resized_crop_and_flip(size, height, width, seed, kind):
    """Of a soft image: what a cubic lifts out of [0, 1] is cut off here, and not there."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, [height + 1, width + 1], (6, 2))
    corners = rng.integers(0, [height, width] - lengths + 1)
    boxes = torch.from_numpy(np.concatenate([corners, lengths], axis=1))
    flips = torch.as_tensor(rng.random(6) < 0.5)
    images = make_images(6, seed, height, width)
    soft = image_ops.to_pixels((85 + images * 85).round().byte())
    check_resampling(soft if kind == "bicubic" else images, boxes, flips, size, kind=kind)


@pytest.mark.parametrize(("height", "width", "size"), [(40, 40, 96), (200, 130, 48), (96, 300, 96)])
def test_bicubic_is_pillows_to_its_rounding(height, width, size):
    """DINO's crops are Pillow's, which rounds and cuts to bytes after columns and after rows.

    Which of the two it does first depends on its version and the sizes, so it is asked for each.
    """
    rng = np.random.default_rng(5)
    pixels = rng.choice(np.uint8([0, 255]), (height, width, 3))
    box = (7, 3, width - 9, height - 2)
    theirs = Image.fromarray(pixels).crop(box)
    for shape in ((size, theirs.height), (size, size)):
        theirs = theirs.resize(shape, Image.Resampling.BICUBIC)
    mine_box = torch.tensor([[box[1], box[0], box[3] - box[1], box[2] - box[0]]])
    images = image_ops.to_pixels(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    unflipped = torch.zeros(1, dtype=torch.bool)
    taps = image_ops.resampling_taps(mine_box, unflipped, size, images.device, "bicubic")
    mine = image_ops.resample(images, torch.arange(1), *taps, "bicubic")
    assert (mine >= 0).all()
    assert (mine <= 1).all()
    expected = torch.from_numpy(np.array(theirs)).permute(2, 0, 1)
    same(255 * mine[0], expected.float(), 1.5)


def test_resample_keeps_its_precision_on_large_canvases():
    boxes = torch.tensor([[3, 5, 509, 480], [100, 37, 256, 471]])
    images = make_images(2, height=512, width=512)
    check_resampling(images, boxes, torch.zeros(2, dtype=torch.bool), 224, 2e-5)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("brightness", 0.0, 2.0),
        ("contrast", 0.0, 2.0),
        ("saturation", 0.0, 2.0),
        ("hue", -0.5, 0.5),
    ],
)
def test_color_operation_is_torchvisions(name, low, high):
    images = make_images().contiguous()
    images[:, :, 0, : len(COLORS)] = COLORS.T
    factors = torch.linspace(low, high, len(images))
    theirs = getattr(peer, f"adjust_{name}")
    pairs = zip(images, factors.tolist(), strict=True)
    expected = torch.stack([theirs(image, factor) for image, factor in pairs])
    mine = getattr(image_ops, f"adjust_{name}")
    same(mine(images.clone(), factors.view(-1, 1, 1, 1)), expected)


@pytest.mark.parametrize("radius", [1, 3, 7, SIDE - 1])
def test_blur_is_torchvisions_with_reflected_borders(radius):
    images = make_images().contiguous()
    sigmas = torch.tensor([0.01, 0.1, 0.3, 0.5, 1.0, 1.5, 2.0, 4.0, 9.0])
    kernel = [2 * radius + 1] * 2
    pairs = zip(images, sigmas.tolist(), strict=True)
    expected = [peer.gaussian_blur(image, kernel, [sigma] * 2) for image, sigma in pairs]
    same(image_ops.blur(images.clone(), sigmas, radius), torch.stack(expected))
