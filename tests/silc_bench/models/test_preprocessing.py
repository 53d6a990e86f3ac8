"""Pixels equal torchvision's, open_clip's, timm's and transformers', bit for bit, of any image."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from images_and_runs import image_of
from PIL import Image
from torchvision import transforms

from silc_bench.models import preprocessing
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


@pytest.mark.parametrize("size", [(400, 2), (2, 400), (333, 7), (5, 777), (1, 90)])
@pytest.mark.parametrize("name", INTERPOLATIONS)
@pytest.mark.parametrize("crop", ["center", "center_floor"])
def test_of_a_strip_only_what_the_crop_keeps_is_resized(monkeypatch, size, name, crop):
    pipeline = ImagePipeline(24, (0,) * 3, (1,) * 3, "shortest", 27, crop, name)
    whole = pipeline(image_of(*size))
    monkeypatch.setattr(preprocessing, "MOST_PIXELS", 0)
    largest = []
    resize = Image.Image.resize

    def recorded(image, size, *rest):
        largest.append(max(size))
        return resize(image, size, *rest)

    monkeypatch.setattr(Image.Image, "resize", recorded)
    assert (pipeline(image_of(*size)) - whole).abs().max() <= 1.01 / 255
    assert largest == [24]


@pytest.mark.parametrize("size", [(20_000, 2), (2, 20_000)])
def test_a_strip_of_a_photographs_file_size_takes_little_memory(monkeypatch, size):
    def refuse(image, size, *rest):
        assert size[0] * size[1] <= preprocessing.MOST_PIXELS
        return Image.new("RGB", size)

    monkeypatch.setattr(Image.Image, "resize", refuse)
    pipeline = ImagePipeline(224, MEAN, STD, resize="shortest", crop="center")
    assert pipeline(Image.new("RGB", size)).shape == (3, 224, 224)


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
