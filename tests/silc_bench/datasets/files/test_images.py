"""Images: what is read of every format, which way up it stands, and how the rest is refused."""

import io
import subprocess
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from refusals import refused

from silc_bench.datasets.files.images import (
    FORMATS,
    IMAGE_EXTENSIONS,
    MAX_SIDE,
    UNREAD_EXTENSIONS,
    DamagedImageError,
    decode_image,
    decode_within,
    open_image,
    size_of,
)
from silc_bench.datasets.image_set import fingerprint
from silc_bench.datasets.own_data import parse
from silc_bench.errors import DataError
from silc_bench.show.asked import read_images

EXIF_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "AVIF")


def pixels(width=8, height=6):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "kind", ["PNG RGB", "PNG P", "PNG 1", "PNG RGBA", "JPEG CMYK", "JPEG L", "WEBP RGB"]
)
def test_images_of_every_usual_kind_become_rgb(make, kind):
    data = make.encoded(pixels(), *kind.split())
    image = decode_image(data)
    assert (image.mode, image.size) == ("RGB", (8, 6))
    assert image.tobytes() == Image.open(io.BytesIO(data)).convert("RGB").tobytes()


def test_unusable_images_are_refused_by_cause(make):
    png, jpeg = (make.encoded(pixels(64, 64), kind) for kind in ("PNG", "JPEG"))
    images = {
        "corrupt image": (b"", b"not an image", png[: len(png) // 2], png[:20], jpeg[:400]),
        "oversized image": (claiming(png, 20_000, 3_300), claiming(png, 10**5, 10**5)),
        "image of more than 8 bits": (make.encoded(np.full((8, 8), 900, np.uint16)),),
    }
    for cause, contents in images.items():
        for data in contents:
            with pytest.raises(DamagedImageError) as caught:
                decode_image(data)
            assert caught.value.cause == cause


def claiming(png, width, height):
    header = png[12:16] + width.to_bytes(4, "big") + height.to_bytes(4, "big") + png[24:29]
    return png[:12] + header + zlib.crc32(header).to_bytes(4, "big") + png[33:]


@settings(max_examples=200)
@given(
    st.sampled_from(["PNG", "JPEG", "WEBP"]),
    st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), max_size=6),
    st.floats(0, 1),
)
def test_broken_images_raise_nothing_else(make, kind, flips, keep):
    data = bytearray(make.encoded(pixels(24, 24), kind))
    for at, value in flips:
        data[at % len(data)] = value
    try:
        image = decode_image(bytes(data[: int(len(data) * keep) + 1]))
    except DamagedImageError:
        return
    assert image.mode == "RGB"


def test_a_damaged_image_is_described_without_the_address_of_a_buffer():
    for read in (decode_image, open_image):
        with pytest.raises(DamagedImageError, match=r"^corrupt image: [^<]*image file$"):
            read(b"no image")


def test_every_format_is_read_and_no_other_decoder_is_asked(make, monkeypatch):
    for kind in FORMATS:
        assert decode_image(make.encoded(pixels(), kind)).size == (8, 6)
    assert not set(IMAGE_EXTENSIONS) & set(UNREAD_EXTENSIONS)

    # an EPS that is called .jpg would start Ghostscript
    monkeypatch.setattr(subprocess, "check_call", None)
    monkeypatch.setattr(subprocess, "Popen", None)
    for kind in ("EPS", "TGA", "ICO", "PCX", "SGI", "DDS", "JPEG2000", "PDF"):
        with pytest.raises(DamagedImageError) as caught:
            decode_image(make.encoded(pixels(), kind))
        names = {"EPS": "EPS", "PDF": "PDF", "JPEG2000": "JPEG 2000"}
        if kind in names:
            assert caught.value.cause == "image of a format that is not read"
            assert names[kind] in caught.value.problem


def lying(orientation, kind="JPEG", width=64, height=32):
    """An image that an upright one becomes when the camera is turned; (its bytes, upright).

    The quarters of the upright one have four colours.
    """
    upright = np.zeros((height, width, 3), np.uint8)
    upright[: height // 2, : width // 2] = (200, 0, 0)
    upright[: height // 2, width // 2 :] = (0, 200, 0)
    upright[height // 2 :, : width // 2] = (0, 0, 200)
    # EXIF 2.3: what the 0th row and the 0th column of the stored image are
    turned = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95}}.get(kind, {})
    Image.fromarray(np.ascontiguousarray(turned)).save(buffer, kind, exif=exif, **options)
    return buffer.getvalue(), upright


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", EXIF_FORMATS)
def test_an_image_is_turned_as_viewers_show_it(kind, orientation):
    data, upright = lying(orientation, kind)
    shown = np.asarray(decode_image(data, is_upright=True))
    assert shown.shape == upright.shape
    assert np.abs(shown.astype(int) - upright).mean() < 4, "lossy at the edges"
    assert size_of(data, is_upright=True) == (64, 32)
    np.testing.assert_array_equal(decode_within(data, 100), shown)

    # Pillow turns a TIFF, whoever asks
    stored = decode_image(data)
    assert size_of(data) == stored.size
    is_lying = orientation >= 5 and kind != "TIFF"
    assert stored.size == ((32, 64) if is_lying else (64, 32))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_broken_exif_leaves_the_image_as_it_is_stored(make):
    for exif in (b"Exif\0\0nonsense", b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\x63\0\0"):
        data = make.encoded(pixels(), "JPEG", exif=exif)
        assert decode_image(data, is_upright=True).size == (8, 6)
        assert size_of(data, is_upright=True) == (8, 6)


def test_own_images_are_turned_and_it_is_said(make, tmp_path, town):
    """In every kind of own data, with its count and first place; the fingerprint follows."""
    data, upright = lying(6)
    plain = make.encoded(upright, "JPEG", quality=95)
    make.tree(tmp_path / "pets", [("a/0.jpg", plain), ("a/1.jpg", data), ("b/0.jpg", data)])
    list_of_two = b"file,caption\na/0.jpg,one\na/1.jpg,two\n"
    members = [("0.jpg", plain), ("0.txt", b"one"), ("1.jpg", data), ("1.txt", b"two")]
    make.tree(tmp_path / "pets", [("x.csv", list_of_two)])
    make.tar(tmp_path / "a.tar", members)
    masks = make.encoded(np.zeros((32, 64), np.uint8))
    word = town(["sky"], (), tmp_path / "town")
    make.tree(tmp_path / "town", [(f"images/{name}.jpg", data) for name in "ab"])
    make.tree(tmp_path / "town", [(f"masks/{name}.png", masks) for name in "ab"])

    words = {
        f"folder:{tmp_path}/pets": ("2 images were", "a/1.jpg"),
        f"captions:{tmp_path}/pets/x.csv": ("1 image was", "a/1.jpg"),
        f"wds:{tmp_path}/a.tar": ("1 image was", "a.tar:1"),
        word: ("2 images were", "images/a.jpg"),
    }
    for word, (count, first) in words.items():
        split = parse(word).load("test")
        assert {split.image(i).size for i in range(len(split))} == {(64, 32)}
        note = next(note for note in split.notes if "EXIF" in note)
        assert f": {count} turned " in note
        assert note.endswith(first)
        stored = [replace(image, is_upright=False, mask=None) for image in split.images]
        upright_images = [replace(image, mask=None) for image in split.images]
        assert fingerprint((), stored, "x") != fingerprint((), upright_images, "x")
        assert fingerprint((), stored[:1], "x") == fingerprint((), upright_images[:1], "x") or (
            first == "images/a.jpg"
        ), "an image that is not turned is the same data as before"


def test_a_mask_that_lies_as_its_image_is_stored_names_exif(make, town, tmp_path):
    word = town(["sky"], ())
    make.tree(tmp_path, [("images/a.jpg", lying(6)[0])])
    make.tree(tmp_path, [("masks/a.png", make.encoded(np.zeros((64, 32), np.uint8)))])
    with refused("masks/a.png", DataError) as caught:
        parse(word).load("test")
    assert "EXIF" in caught.value.problem
    assert "EXIF" in caught.value.fix


def test_show_turns_images_too(tmp_path):
    (tmp_path / "a.jpg").write_bytes(lying(6)[0])
    shown = read_images([tmp_path / "a.jpg"])
    assert shown.sizes == ((32, 64),)
    assert shown.data.image(0).size == (64, 32)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_of_several_images_in_a_file_the_first_is_read_and_it_is_said(make, tmp_path, kind):
    frames = [Image.new("RGB", (4, 4), (200 * i, 9, 9)) for i in range(2)]
    buffer = io.BytesIO()
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
    make.tree(tmp_path, [("a/0.png", make.image(0)), ("b/0.png", buffer.getvalue())])
    split = parse(f"folder:{tmp_path}").load("test")
    assert split.image(1).getpixel((0, 0))[0] < 30
    (note,) = split.notes
    assert ": 1 file " in note
    assert note.endswith("b/0.png")


# what is wrong with an image -> a word of the sentence, which is not "damaged"
UNUSABLE = {
    "65 megapixels": (
        "million pixels",
        lambda make: claiming(make.encoded(pixels()), 10_000, 6_500),
    ),
    "a long side": (
        "no side longer",
        lambda make: claiming(make.encoded(pixels()), MAX_SIDE + 1, 2),
    ),
    "16 bits": ("8 bits", lambda make: make.encoded(np.full((8, 8), 900, np.uint16))),
    "EPS": ("JPEG or PNG", lambda make: make.encoded(pixels(), "EPS")),
    "HEIC": ("JPEG or PNG", lambda make: b"\0\0\0\x18ftypheic" + bytes(99)),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_images_that_are_whole_and_not_read_are_not_called_damaged(make, tmp_path, case):
    word, content = UNUSABLE[case]
    pets = make.tree(tmp_path / "pets", [("a/0.jpg", make.image(0)), ("b/0.jpg", content(make))])
    with refused(pets / "b/0.jpg", DataError) as caught:
        parse(f"folder:{pets}").load("test").image(1)
    assert "damaged" not in caught.value.problem
    assert word in caught.value.fix


# --- smaller --------------------------------------------------------------------------------------


def photograph(kind, size, mode="RGB"):
    """Smooth, as what a decoder makes smaller has to be to stay alike."""
    x, y = np.meshgrid(*(np.linspace(0, 5, pixels) for pixels in size))
    waves = np.stack([np.sin(x + y), np.cos(x - y), np.sin(x * y / 5)], axis=-1)
    buffer = io.BytesIO()
    Image.fromarray((120 + 100 * waves).astype(np.uint8)).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def whole_and_small(data, side):
    """By Pillow's own means: all pixels are decoded, then made smaller."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    image.thumbnail((side, side))
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("size", [(127, 99), (99, 127), (31, 20), (127, 9), (127, 126)])
def test_an_image_is_made_smaller_from_all_of_its_pixels(size, mode):
    data = photograph("JPEG", size, mode)
    for may_shrink in (False, True):  # none is four times as long
        found = np.asarray(decode_within(data, 32, may_shrink=may_shrink))
        np.testing.assert_array_equal(found, whole_and_small(data, 32))


@pytest.mark.parametrize(("side", "times"), [(102, 1), (100, 2), (50, 4), (24, 8), (10, 8)])
@pytest.mark.parametrize("size", [(405, 300), (301, 403)])
def test_a_jpeg_that_is_far_larger_is_made_smaller_by_its_decoder(monkeypatch, size, side, times):
    """To no fewer than twice as many pixels a side as are asked for, and nearly the same ones."""
    data = photograph("JPEG", size)
    resized = []
    resize = Image.Image.resize
    whole = whole_and_small(data, side)

    def noted(image, *args, **options):
        resized.append(image.size)
        return resize(image, *args, **options)

    monkeypatch.setattr(Image.Image, "resize", noted)
    found = np.asarray(decode_within(data, side, may_shrink=True))
    assert resized == [tuple(-(-pixels // times) for pixels in size)]
    assert np.abs(found.astype(int) - whole).mean() < (2 if times > 1 else 0.001)
    np.testing.assert_array_equal(decode_within(data, side), whole)
