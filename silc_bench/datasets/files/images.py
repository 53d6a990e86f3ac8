"""Encoded images: which formats are read, how large they may be, and which way up they stand.

Flow: ``open_image(data)`` reads the header alone; ``decode_image(data)`` -> RGB, and
``decode_within(data, side)`` -> RGB that is no larger than a square.

Pillow chooses a decoder by the first bytes, not by the name of a file. It is offered the FORMATS
alone, which it decodes itself, in memory: an EPS that is called .jpg would start Ghostscript.

Cameras store an image as the sensor lay and write beside it how it is to be turned (EXIF's
orientation). Every viewer turns it. With ``is_upright`` it is turned here too; else it stays as it
is stored, as the papers did with the public sets.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

from silc_bench.errors import FETCH_AGAIN, first_line

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "PPM", "TIFF", "AVIF")
# the first of them that a sample of a shard has is its image
IMAGE_EXTENSIONS = (
    *("jpg", "jpeg", "png", "webp", "jpe", "jfif", "gif", "avif"),
    *("bmp", "ppm", "pgm", "pbm", "pnm", "tif", "tiff", "mpo"),
)
# images too, which are passed over with a word of their own
UNREAD_EXTENSIONS = (
    *("heic", "heif", "jxl", "jp2", "j2k", "svg", "psd", "eps", "tga", "ico", "exr", "hdr", "dib"),
    *("raw", "dng", "cr2", "cr3", "nef", "arw", "orf", "rw2", "raf"),
)
SAVE_AS = "as JPEG or PNG"
# Times the size that is asked for, from which on fewer pixels may be the start: Pillow's default,
# which it calls very close to a fair resampling.
GAP = 2

BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
MAX_PIXELS = 64_000_000  # an image that claims more is taken for a decompression bomb
MAX_SIDE = 65_535  # pixels: JPEG allows no more, and a longer side is no photograph

# cause -> what is wrong, and what mends it
_CAUSES = {
    "corrupt image": ("the image is damaged", FETCH_AGAIN),
    "oversized image": (
        "the image is too large",
        f"save it with at most {MAX_PIXELS // 10**6} million pixels,"
        f" and no side longer than {MAX_SIDE:,}",
    ),
    "image of more than 8 bits": (
        "the image has more than 8 bits a channel, and nothing says how to make 8 of them",
        "save it with 8 bits a channel",
    ),
    "image of a format that is not read": (
        "the format of the image is not read",
        f"save it {SAVE_AS}",
    ),
}
# first bytes of what is often called .jpg, from a byte on
_OTHERS = (
    (0, b"%!PS", "EPS"),
    (0, b"\xc5\xd0\xd3\xc6", "EPS"),
    (0, b"%PDF", "PDF"),
    (0, b"8BPS", "Photoshop"),
    (0, b"<svg", "SVG"),
    (0, b"<?xml", "XML"),
    (0, b"<!DOCTYPE", "a web page"),
    (0, b"<html", "a web page"),
    (0, b"\x00\x00\x00\x0cjP", "JPEG 2000"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\x00\x00\x00\x0cJXL", "JPEG XL"),
    (4, b"ftypheic", "HEIC"),
    (4, b"ftypheix", "HEIC"),
    (4, b"ftypmif1", "HEIF"),
    (4, b"ftypmsf1", "HEIF"),
    (0, b"version https://git-lfs", "a Git LFS pointer (git lfs pull fetches the image)"),
)

# What Pillow thinks of broken notes beside an image is no sentence for people, and a size that it
# warns of is refused.
warnings.filterwarnings("ignore", module=r"PIL\.")

ORIENTATION = 0x0112  # EXIF's tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# where a PNG's orientation may stand; without them Pillow decodes the image to look behind it
_MARKS_OF_NOTES = (b"Exif", b"EXIF", b"eXIf", b"exif", b"tiff:Orientation")
_MARKS_IN_PNG = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")


class DamagedImageError(ValueError):
    """Bytes that are no usable image.

    ``cause`` is short and the same for all errors of a kind, to count by; ``problem`` and ``fix``
    are parts of a sentence.
    """

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(f"{cause}: {detail}")
        self.cause = cause
        problem, self.fix = _CAUSES[cause]
        self.problem = f"{problem} ({detail})"


def open_image(data: bytes) -> Image.Image:
    """An image of which only the header is read: its size and format.

    Raises:
        DamagedImageError: it has none.
    """
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except MemoryError:
        raise  # the machine's fault, not the image's
    except BOMBS as error:
        raise DamagedImageError("oversized image", what_broke(error)) from error
    except Exception as error:
        # each decoder raises what it likes, and one image must not stop a run of millions
        for start, mark, name in _OTHERS:
            if data[start : start + len(mark)] == mark:
                raise DamagedImageError("image of a format that is not read", name) from error
        raise DamagedImageError("corrupt image", what_broke(error)) from error


def decode_image(data: bytes, is_upright: bool = False) -> Image.Image:
    """An image as RGB, decoded completely; of several in one file the first.

    Args:
        is_upright: turned as its EXIF says.

    Raises:
        DamagedImageError: not an image, a broken one, one of more than MAX_PIXELS or a side above
            MAX_SIDE, or one whose values do not fit 8 bits.
    """
    image = _bounded(data)
    with _explained():
        decoded = image.convert("RGB")
    return _turned(decoded, orientation_of(image, data)) if is_upright else decoded


def decode_within(data: bytes, side: int, *, may_shrink: bool = False) -> Image.Image:
    """As ``decode_image``, upright, and no side longer than ``side`` pixels.

    It keeps the aspect and never enlarges.

    Args:
        may_shrink: of a JPEG that is four times as long or more, the decoder computes a half, a
            quarter or an eighth of each side alone, at least twice what is asked for (as Pillow's
            own ``thumbnail`` does). It is cheaper, and pixels differ a little.

    Raises:
        DamagedImageError: as ``decode_image``.
    """
    image = _bounded(data)
    is_jpeg = image.format in ("JPEG", "MPO")
    times = max(image.size) / side
    with _explained():
        if is_jpeg and may_shrink and times >= 2 * GAP:
            width, height = (max(1, round(pixels / times)) for pixels in image.size)
            drafted = image.draft(None, (GAP * width, GAP * height))
            box = drafted[1] if drafted else None  # the last row may be a part of one
            small = image.convert("RGB").resize((width, height), box=box, reducing_gap=GAP)
            return _turned(small, orientation_of(image, data))
        image.load()

        # What is RGB is copied by ``convert``. Of a JPEG the copy is spared; other decoders come
        # back to their file.
        decoded = image if is_jpeg and image.mode == "RGB" else image.convert("RGB")
    decoded = _turned(decoded, orientation_of(image, data))
    decoded.thumbnail((side, side), reducing_gap=GAP)
    return decoded


def _bounded(data: bytes) -> Image.Image:
    """An image that is not decoded yet, of a size and a kind that can be."""
    # Pillow opens lazily: the claimed size is known before any pixel takes memory
    image = open_image(data)
    if image.width * image.height > MAX_PIXELS or max(image.size) > MAX_SIDE:
        raise DamagedImageError("oversized image", f"{image.width:,} x {image.height:,} pixels")

    # Pillow would cut these values off at 255, which makes another image of them
    if image.mode in ("F", "I") or image.mode.startswith("I;"):
        raise DamagedImageError("image of more than 8 bits", f"mode {image.mode}")
    return image


@contextmanager
def _explained() -> Iterator[None]:
    """DamagedImageError for whatever a decoder raises in the block."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        raise DamagedImageError("corrupt image", what_broke(error)) from error


def size_of(data: bytes, is_upright: bool = False) -> tuple[int, int]:
    """(width, height) in pixels, as ``decode_image`` gives it. Raises DamagedImageError."""
    image = open_image(data)
    width, height = image.size

    # Pillow turns a TIFF by itself, and says so in its size
    is_lying = is_upright and image.format != "TIFF" and orientation_of(image, data) >= 5
    return (height, width) if is_lying else (width, height)


def orientation_of(image: Image.Image, data: bytes) -> int:
    """EXIF's orientation, 1 to 8; 1 is as it is stored, also where nothing readable says."""
    if image.format == "PNG" and not any(mark in data for mark in _MARKS_IN_PNG):
        return 1
    try:
        value = image.getexif().get(ORIENTATION)
    except Exception:
        return 1  # broken notes beside a whole image: viewers show it as it is stored
    return value if isinstance(value, int) and value in _TURNS else 1


def is_turned(data: bytes) -> bool:
    """Whether ``decode_image`` turns it, if it is asked to. DamagedImageError for no image."""
    # most images of the web have lost their notes: they are not opened for it
    if not any(mark in data for mark in _MARKS_OF_NOTES):
        return False
    image = open_image(data)
    return image.format != "TIFF" and orientation_of(image, data) > 1


def has_several(image: Image.Image) -> bool:
    """Whether the file holds more images than the one that is read: an animation, or pages."""
    # a phone's JPEG may hold a preview or depth beside its image (MPO)
    try:
        return image.format not in ("JPEG", "MPO") and getattr(image, "is_animated", False)
    except Exception:
        return False  # a broken second image is no matter of the first


def what_broke(error: Exception) -> str:
    """An error of Pillow as a clause.

    It names the buffer that it read by its address, which tells nobody which image it was.
    """
    return re.sub(r" <_io\.BytesIO object at 0x[0-9a-f]+>", "", first_line(error))


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)
