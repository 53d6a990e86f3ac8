"""Pixels equal torchvision's, open_clip's, timm's and transformers', bit for bit, of any picture.

Of every shape and mode.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from silc_bench.models.preprocessing import ImagePipeline

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's
SIZES = [(40, 30), (31, 47), (24, 24), (101, 25), (25, 101), (5, 7), (1, 1), (1, 60), (33, 32)]
GOLDEN = Path(os.environ.get("SILC_BENCH_TEST_DATA", "/nowhere")) / "clip_vit_b32_golden"


def picture(width, height, mode="RGB"):
    pixels = np.random.default_rng(width * 1000 + height).integers(
        0, 256, (height, width, 4), dtype=np.uint8
    )
    return Image.fromarray(pixels, "RGBA").convert(mode)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("resize_size", [24, 27, 32])
def test_shortest_side_and_crop_equal_torchvision(size, resize_size):
    image = picture(*size)
    theirs = transforms.Compose(
        [
            transforms.Resize(resize_size, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(24),
            # as open_clip and timm compose it; v2.ToDtype differs in the last bit
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    ours = ImagePipeline(24, MEAN, STD, resize="shortest", resize_size=resize_size, crop="center")
    assert torch.equal(ours(image), theirs(image))


@pytest.mark.parametrize("size", SIZES)
def test_squash_and_other_interpolations_equal_torchvision(size):
    image = picture(*size)
    for name in ("nearest", "bilinear", "bicubic", "lanczos"):
        theirs = transforms.Resize((24, 24), getattr(transforms.InterpolationMode, name.upper()))(
            image
        )
        expected = (torch.from_numpy(np.array(theirs)).permute(2, 0, 1) / 255 - 0.5) / 0.5
        assert torch.equal(
            ImagePipeline(24, (0.5,) * 3, (0.5,) * 3, interpolation=name)(image), expected
        )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("resize_size", "crop"), [(24, 24), (27, 24), (24, 30)])
def test_center_floor_equals_transformers(size, resize_size, crop):
    from transformers.models.clip import image_processing_pil_clip as clip

    processor = clip.CLIPImageProcessorPil(
        size={"shortest_edge": resize_size}, crop_size={"height": crop, "width": crop}
    )
    image = picture(*size)
    theirs = processor(image, return_tensors="pt")["pixel_values"][0]
    ours = ImagePipeline(
        crop, MEAN, STD, resize="shortest", resize_size=resize_size, crop="center_floor"
    )
    assert torch.equal(ours(image), theirs)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "CMYK", "I;16"])
def test_an_image_of_another_mode_is_made_rgb_first(mode):
    image = (
        picture(40, 30, "L").convert("I").convert("I;16")
        if mode == "I;16"
        else picture(40, 30, mode)
    )
    pipeline = ImagePipeline(24, MEAN, STD, resize="shortest", crop="center")
    assert torch.equal(pipeline(image), pipeline(image.convert("RGB")))


def test_what_cannot_be_is_refused():
    for wrong in (
        {"resize": "longest"},
        {"crop": "top"},
        {"interpolation": "cubic"},
        {"resize": "shortest"},
        {"resize_size": 30},
    ):
        with pytest.raises(ValueError, match=r"picture must be squashed|no such image pipeline"):
            ImagePipeline(24, MEAN, STD, **wrong)


def test_its_description_tells_pipelines_apart():
    base = ImagePipeline(24, MEAN, STD)
    assert base.as_dict() == ImagePipeline(24, MEAN, STD, resize_size=24).as_dict(), (
        "the same thing said twice"
    )
    others = [
        ImagePipeline(32, MEAN, STD),
        ImagePipeline(24, STD, STD),
        ImagePipeline(24, MEAN, STD, interpolation="bilinear"),
        ImagePipeline(24, MEAN, STD, crop="center"),
        ImagePipeline(24, MEAN, STD, crop="center", resize_size=27),
        ImagePipeline(24, MEAN, STD, crop="center", resize="shortest"),
        ImagePipeline(24, MEAN, STD, crop="center_floor", resize="shortest"),
    ]
    descriptions = [str(pipeline.as_dict()) for pipeline in (base, *others)]
    assert len(set(descriptions)) == len(descriptions)


@pytest.mark.skipif(not GOLDEN.exists(), reason="SILC_BENCH_TEST_DATA holds no clip_vit_b32_golden")
def test_openai_clip_pixels_are_reproduced():
    golden = np.load(GOLDEN / "golden.npz")
    pipeline = ImagePipeline(224, MEAN, STD, resize="shortest", crop="center")
    files = {path.stem: path for path in GOLDEN.rglob("*") if path.is_file()}
    for name, pixels in zip(golden["names"], golden["pixels"], strict=True):
        assert np.abs(pipeline(Image.open(files[str(name)])).numpy() - pixels).max() == 0
