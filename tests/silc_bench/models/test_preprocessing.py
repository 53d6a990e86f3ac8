"""Pixels equal torchvision's, open_clip's, timm's and transformers', bit for bit, of any image."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from images_and_runs import image_of
from PIL import Image
from torchvision import transforms

from silc_bench.models.preprocessing import INTERPOLATIONS, ImagePipeline

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's
SIZES = [(40, 30), (31, 47), (24, 24), (101, 25), (25, 101), (5, 7), (1, 1), (1, 60), (33, 32)]
GOLDEN = Path(os.environ.get("SILC_BENCH_TEST_DATA", "/nowhere")) / "clip_vit_b32_golden"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", INTERPOLATIONS)
@pytest.mark.parametrize("resize_size", [None, 24, 27, 32])
def test_pixels_equal_torchvisions(size, name, resize_size):
    mode = transforms.InterpolationMode(name)
    options, steps = {}, [transforms.Resize((24, 24), mode)]
    if resize_size:
        options = {"resize": "shortest", "resize_size": resize_size, "crop": "center"}
        steps = [transforms.Resize(resize_size, mode), transforms.CenterCrop(24)]

    # as open_clip and timm compose it; v2.ToDtype differs in the last bit
    last = transforms.ToTensor(), transforms.Normalize(MEAN, STD)
    theirs = transforms.Compose([*steps, *last])(image_of(*size))
    ours = ImagePipeline(24, MEAN, STD, interpolation=name, **options)
    assert torch.equal(ours(image_of(*size)), theirs)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "CMYK", "YCbCr", "I;16"])
def test_an_image_of_another_mode_is_made_rgb_first(mode):
    image = image_of(40, 30)
    image.putalpha(image.convert("L"))
    image = image.convert("I").convert(mode) if mode == "I;16" else image.convert(mode)
    pipeline = ImagePipeline(24, MEAN, STD, resize="shortest", crop="center")
    assert torch.equal(pipeline(image), pipeline(image.convert("RGB")))


def test_its_description_tells_pipelines_apart():
    common = {"size": 24, "mean": MEAN, "std": STD}
    differing = [
        {},
        {"size": 32},
        {"mean": STD},
        {"interpolation": "bilinear"},
        {"crop": "center"},
        {"crop": "center", "resize_size": 27},
        {"crop": "center", "resize": "shortest"},
        {"crop": "center_floor", "resize": "shortest"},
    ]
    described = [ImagePipeline(**common | fields).as_dict() for fields in differing]
    assert len(set(map(str, described))) == len(differing)
    assert ImagePipeline(**common, resize_size=24).as_dict() == described[0], "said twice"


@pytest.mark.skipif(not GOLDEN.exists(), reason="SILC_BENCH_TEST_DATA holds no clip_vit_b32_golden")
def test_openai_clip_pixels_are_reproduced():
    golden = np.load(GOLDEN / "golden.npz")
    pipeline = ImagePipeline(224, MEAN, STD, resize="shortest", crop="center")
    files = {path.stem: path for path in GOLDEN.rglob("*") if path.is_file()}
    for name, pixels in zip(golden["names"], golden["pixels"], strict=True):
        assert np.abs(pipeline(Image.open(files[str(name)])).numpy() - pixels).max() == 0
