"""Image-text pairs by position: what a reader promises, and what all readers share.

Flow: ``reader.text(p)`` and ``reader.image(p, S)`` give entry p of an endless stream, a pure
function of (seed, p), in any order and in any process; ``silc_bench.trainer.data.stream`` makes
batches of them. ``reader.captions_of_data(count)`` is what a tokenizer is trained on: no seed
decides it, so that runs with several seeds share a tokenizer.

The reader of generated scenes is here, the others are in ``shards``, ``lists`` and ``sources``.
They share the random order of an epoch, the way from bytes to a pair, and the filters.

Filters say which samples a run leaves out:
``--set data.filters="text>=5 side>=64 language=en|de similarity>=0.28"``. Conditions are separated
by spaces, and all of them must hold. ``text`` is a caption's length in characters; ``width``,
``height`` and ``side`` (the shorter one) are pixels. Every other name is a column of the sample's
``.json``, as img2dataset writes it, or of its row in a list of captions.

Shapes: S pixels, the longest side an image may have.
"""

from __future__ import annotations

import hashlib
import json
import math
import operator
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from silc_bench.datasets.files import images, shards, texts
from silc_bench.datasets.generated.shapes import captions as shapes_captions
from silc_bench.datasets.generated.shapes import drawing
from silc_bench.datasets.generated.shapes import scenes as shapes
from silc_bench.errors import DataError, ExplainedError, UserError
from silc_bench.later import np
from silc_bench.system.terminal import counted
from silc_bench.trainer.config.config import DataConfig

if TYPE_CHECKING:
    from PIL import Image

# Pixels a side of a generated scene: a larger one shows nothing more, in a smaller one the shapes
# cannot be told apart.
LARGEST_SCENE = 512
SMALLEST_SCENE = 16

# Scenes have no data but their seed: the captions that a tokenizer is trained on are those of this
# one, whichever the run has.
SEED_OF_CAPTIONS = 0

# Pairs up to which an epoch's order is a table (numpy's sort of random words), of 4 bytes a pair in
# each process. Of more, or on several nodes, each place of the order is computed (``keyed``).
LARGEST_TABLE = 2**24

# What random words are drawn for. Each use has a key of its own, so none ever sees another's.
ORDER, CAPTION, MIXTURE = range(3)


class UnreadableError(ValueError):
    """An entry that has to be left out. ``cause`` is the same for all of a kind, to count by."""

    def __init__(self, cause: str, where: str) -> None:
        super().__init__(cause, where)
        self.cause = cause
        self.where = where


class PassedOverError(UnreadableError):
    """What an entry does without, though it is read: it is counted, and never raised."""


class ChangedError(PassedOverError):
    """What was done to an entry that is read whole: counted apart, because nothing is lost."""


TURNED = "images turned as their EXIF orientation says"


@contextmanager
def one_sample(where: str) -> Iterator[None]:
    """Whatever reading this sample raises is a failure of this sample: UnreadableError.

    Only what concerns the whole run passes: a shard that is gone, a remote source without an
    answer. Decoders and parsers raise nearly anything on a hostile file.
    """
    try:
        yield
    except (UnreadableError, ExplainedError):
        raise
    except images.DamagedImageError as error:
        raise UnreadableError(error.cause, where) from error
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UnreadableError(f"file that cannot be read ({reason})", where) from error
    except Exception as error:
        cause = f"sample that cannot be read ({type(error).__name__})"
        raise UnreadableError(cause, where) from error


class Reader(Protocol):
    """Entries by position. It is copied to worker processes, so it holds no open files."""

    @property
    def num_samples(self) -> int | None:
        """Of an epoch; None: it never repeats."""
        ...

    @property
    def num_nodes(self) -> int:
        """N machines that read each its own part: entries p with p % N = k are those of machine k.

        1: any machine may read any entry.
        """
        ...

    def describe(self) -> str: ...

    def fingerprint(self) -> str:
        """16 hex digits of what the entries are: equal data has equal ones, wherever it lies."""
        ...

    def text(self, position: int) -> str: ...

    def image(self, position: int, side: int) -> Image.Image | np.ndarray:
        """RGB as Pillow decoded it, or uint8 [h, w, 3], no side longer than ``side`` pixels.

        UnreadableError, as for ``text``, leaves the entry out.
        """
        ...

    def captions_of_data(self, count: int) -> Iterator[str]:
        """About ``count`` captions, or all where there are fewer; the seed has no part in them.

        Those that cannot be read are left out: they are counted when a batch meets them.
        """
        ...

    def passed_over(self) -> list[PassedOverError]:
        """What entries that were read since the last call did without.

        For example an unreadable caption beside others.
        """
        ...


class ShapesReader:
    """Entry p is scene p of the split "train", with one of its five captions.

    UserError for filters, which scenes cannot meet, and for images that are too small.
    """

    num_samples = None
    num_nodes = 1

    def __init__(self, config: DataConfig) -> None:
        if config.filters:
            problem = "shapes cannot meet a filter: scenes are generated, without columns"
            raise UserError(problem, about="data.filters", fix="leave the filters out, or shapes")
        if 0 < config.decode_size < SMALLEST_SCENE:
            problem = f"{config.decode_size} is too small for shapes"
            fix = f"give at least {SMALLEST_SCENE}"
            raise UserError(problem, about="data.decode_size", fix=fix)
        self._seed = config.seed

    def describe(self) -> str:
        return f"shapes (generated, endless, seed {self._seed})"

    def fingerprint(self) -> str:
        return digits_of([b"shapes"])

    def text(self, position: int) -> str:
        return _caption(self._seed, position)

    def captions_of_data(self, count: int) -> Iterator[str]:
        return (_caption(SEED_OF_CAPTIONS, position) for position in range(count))

    def image(self, position: int, side: int) -> np.ndarray:
        return drawing.render(_scene(self._seed, position), min(side, LARGEST_SCENE))[0]

    def passed_over(self) -> list[PassedOverError]:
        return []


# One scene is enough: text and image of an entry are asked for one after the other.
@lru_cache(maxsize=1)
def _scene(seed: int, position: int) -> shapes.Scene:
    return shapes.scene(seed, "train", position)


def _caption(seed: int, position: int) -> str:
    captions = shapes_captions.captions(_scene(seed, position))
    word = random_words(seed, ORDER, position, 1)[0]
    return captions[int(word) % len(captions)]


# ---- samples in epochs ----

V = TypeVar("V")


class LastTwo(dict[int, V], Generic[V]):
    """``values[number]`` makes a value, and keeps it for the last two numbers.

    Two, because a range of positions may lie across two epochs.
    """

    def __init__(self, make: Callable[[int], V]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, number: int) -> V:
        for old in list(self)[:-1]:
            del self[old]
        self[number] = value = self._make(number)
        return value


class EpochReader:
    """Entries are epochs of all samples, each epoch in an order of its own.

    A class below says what a sample holds, by its number: ``captions``, ``image_bytes`` and
    ``where`` it lies, for people; and the ``fingerprint`` of all. ``captions`` adds to ``skipped``
    what it passes over.
    """

    num_nodes = 1

    def __init__(
        self, num_samples: int, place: str, config: DataConfig, left_out: Counter[str]
    ) -> None:
        self.num_samples = num_samples
        self.place = place  # "in 3 shards"
        self.config = config
        self.filters = parse(config.filters)
        self.left_out = left_out  # by the filters, by reason
        self.skipped: list[PassedOverError] = []
        self._orders = LastTwo(self._kept_order)

    def captions(self, index: int) -> Sequence[str]:
        raise NotImplementedError

    def image_bytes(self, index: int) -> bytes:
        raise NotImplementedError

    def where(self, index: int) -> str:
        raise NotImplementedError

    def fingerprint(self) -> str:
        raise NotImplementedError

    def order(self, epoch: int) -> np.ndarray:
        """int64 [num_samples]: the numbers of the samples."""
        return shuffled(self.config.seed, epoch, self.num_samples)

    def _kept_order(self, epoch: int) -> np.ndarray:
        # Each process that reads holds it: half the memory.
        return self.order(epoch).astype(np.uint32 if self.num_samples < 2**32 else np.int64)

    def chosen(self, count: int) -> np.ndarray:
        """int64: at most ``count`` numbers of samples, spread over the data, whatever the seed."""
        return spread(self.num_samples, count)

    def captions_of_data(self, count: int) -> Iterator[str]:
        chosen = self.chosen(count).tolist()
        for index in chosen:
            with suppress(UnreadableError):
                yield from self.filters.captions(self.captions(index))[: count // len(chosen)]

    def find(self, position: int) -> tuple[int, int]:
        """(epoch, number of the sample) of an entry."""
        epoch, place = divmod(position, self.num_samples)
        return epoch, int(self._orders[epoch][place])

    def describe(self) -> str:
        left_out = f" ({_by_reason(self.left_out)})" if self.left_out else ""
        return f"{counted(self.num_samples, 'pair')} {self.place}{left_out}"

    def text(self, position: int) -> str:
        epoch, index = self.find(position)
        with one_sample(self.where(index)):
            captions = self.filters.captions(self.captions(index))
            return choose_caption(captions, self.config.seed, epoch, index)

    def image(self, position: int, side: int) -> Image.Image:
        _, index = self.find(position)
        with one_sample(self.where(index)):
            data = self.image_bytes(index)
            # A size that a recipe gives keeps the pixels that its numbers were measured with.
            may_shrink = self.config.decode_size == 0
            image = images.decode_within(data, side, may_shrink=may_shrink)
            if images.is_turned(data):
                self.skipped.append(ChangedError(TURNED, self.where(index)))
            return image

    def passed_over(self) -> list[PassedOverError]:
        skipped = self.skipped
        self.skipped = []
        return skipped


def no_pair(source: str | Path, damage: shards.Damage, left_out: Counter[str]) -> DataError:
    """The error to raise where a source holds nothing to learn from; it says why."""
    reasons = [damage.summary()] if damage.total else []
    reasons += [_by_reason(left_out)] if left_out else []
    problem = f"it holds no pair of an image and a caption: {'; '.join(reasons) or 'no sample'}"
    endings = ", ".join(f".{extension}" for extension in images.IMAGE_EXTENSIONS)
    fix = f"give images ({endings}) with a .txt or a .json, and filters that keep some"
    return DataError(problem, about=source, fix=fix)


def _by_reason(left_out: Counter[str]) -> str:
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in left_out.most_common())
    return f"filters left out {left_out.total():,}: {reasons}"


@dataclass(frozen=True)
class InPieces:
    """Bytes that are too many to be held at once."""

    num_bytes: int
    pieces: Iterable[bytes]


def digits_of(parts: Iterable[bytes | InPieces]) -> str:
    """16 hex digits over ``parts``, each with its length."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        whole = part if isinstance(part, InPieces) else InPieces(len(part), [part])
        digest.update(f"{whole.num_bytes} ".encode())
        for piece in whole.pieces:
            digest.update(piece)
    return digest.hexdigest()


# ---- what is random ----
#
# Everything is made of raw Philox words. They stay the same in every release of numpy, which the
# numbers of its distributions may not.


def random_words(seed: int, use: int, counter: int, count: int, inner: int = 0) -> np.ndarray:
    """uint64 [count]: f(seed, use, counter, inner), without any state."""
    return np.random.Philox(key=(seed, use), counter=(0, 0, inner, counter)).random_raw(count)


def shuffled(
    seed: int, epoch: int, num_samples: int, groups: np.ndarray | None = None
) -> np.ndarray:
    """int64 [num_samples]: a permutation, the same on every machine.

    With ``groups`` [num_samples] the groups follow each other in ascending order, and each is
    shuffled in itself.
    """
    words = random_words(seed, ORDER, epoch, num_samples)
    return np.argsort(words, kind="stable") if groups is None else np.lexsort((words, groups))


ROUNDS = 2  # of a keyed order, each for both halves


# To make one takes longer than all that is done with it; entries of one group ask for the same.
@lru_cache(maxsize=4096)
def order_key(seed: int, epoch: int, part: int) -> tuple[int, ...]:
    """The key of ``keyed`` for a part of an epoch: f(seed, epoch, part)."""
    # inner 0 and 1 are the words of ``shuffled`` and of the order of shards.
    return tuple(random_words(seed, ORDER, epoch, 2 * ROUNDS, inner=2 + part).tolist())


def keyed(place: int, count: int, key: Sequence[int]) -> int:
    """Where ``place`` of 0 ... count - 1 goes in a permutation that ``key`` chooses.

    Nothing is kept for it. It is a Feistel network (Luby and Rackoff 1988) over a rectangle of at
    least ``count`` places, with sums in place of exclusive ors so that the rectangle may have any
    sides (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). A place beyond
    ``count`` is sent on until it is within (cycle walking). Whole numbers alone, so it is the same
    on every machine.
    """
    height = math.isqrt(count - 1) + 1
    width = -(-count // height)
    while True:
        left, right = divmod(place, width)
        for number in range(0, len(key), 2):
            left = (left + _mixed(right, key[number])) % height
            right = (right + _mixed(left, key[number + 1])) % width
        place = left * width + right
        if place < count:
            return place


def _mixed(value: int, key: int) -> int:
    """High bits of a word that depends on all bits of both, with constants of SplitMix64."""
    word = (value * 0x9E3779B97F4A7C15 + key) & 0xFFFFFFFFFFFFFFFF
    word = ((word ^ word >> 30) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    return (word ^ word >> 27) * 0x94D049BB133111EB >> 24 & 0xFFFFFFFFFF


def spread(total: int, count: int) -> np.ndarray:
    """int64: ``count`` of ``total`` numbers, or all, at equal distances.

    Data may be sorted by subject, so that its beginning would not stand for it.
    """
    num_chosen = min(total, count)
    return np.arange(num_chosen) * total // max(1, num_chosen)


def choose_caption(captions: Sequence[str], seed: int, epoch: int, index: int) -> str:
    """The caption that sample ``index`` has in an epoch: f(seed, epoch, index)."""
    if len(captions) == 1:
        return captions[0]
    word = random_words(seed, CAPTION, epoch, 1, inner=index)[0]
    return captions[int(word) % len(captions)]


# ---- from bytes to a pair ----


def captions_of(
    text: bytes | None,
    columns: dict[str, Any] | None,
    where: str,
    skipped: list[PassedOverError] | None = None,
) -> list[str]:
    """The captions of a sample, from its text and its JSON.

    They are the list "captions" of its JSON; else its text, a caption a line; else "caption" of its
    JSON. A text with a JSON beside it is one caption whatever its lines, as img2dataset writes
    them. In JSON a caption is a text, or an object that has one under "caption" or "text", as
    COCO's annotations.

    Args:
        skipped: gets what is no caption, if there are others that are.

    Raises:
        UnreadableError: there is none.
    """
    columns_or_none = columns or {}
    listed = columns_or_none.get("captions")
    if isinstance(listed, list):
        found = listed
    elif text is not None:
        decoded_text = _decoded_text(text, where)
        found = texts.lines_of(decoded_text) if columns is None else [decoded_text]
    else:
        # Not "or": of a column that is there and is no text, the user has to hear.
        value = columns_or_none.get("caption", columns_or_none.get("text", listed))
        found = ["" if value is None else value]

    captions = [caption_of(value) for value in found]
    num_unreadable = captions.count(None)
    kept = [caption for caption in captions if caption and not is_blank(caption)]
    if not kept:
        raise UnreadableError(NO_CAPTION if num_unreadable else "empty text", where)
    if num_unreadable and skipped is not None:
        skipped.append(PassedOverError(f"{NO_CAPTION} beside others", where))
    return kept


NO_CAPTION = "unreadable caption"  # what stands in its place is no text


def caption_of(value: Any) -> str | None:
    """A caption from JSON, without spaces around it; None where ``value`` is none."""
    if isinstance(value, dict):
        value = value.get("caption", value.get("text"))
    if not isinstance(value, str):
        return None

    # JSON can spell half of a surrogate pair, which is no letter: no tokenizer takes it.
    try:
        value.encode()
    except UnicodeEncodeError:
        return None
    return value.strip()


def is_blank(caption: str) -> bool:
    """Whether nothing is left of it but spaces and punctuation, which our tokenizer removes."""
    if any(map(str.isalnum, caption)):
        return False
    return not unicodedata.normalize("NFKC", caption).translate(_REMOVED).strip()


# As ``silc_bench.trainer.silc.tokenizers.canonicalizer`` does, which brings a library.
_REMOVED = str.maketrans("", "", string.punctuation)


def _decoded_text(data: bytes, where: str) -> str:
    try:
        return texts.text_of(data)
    except UnicodeDecodeError as error:
        raise UnreadableError("text that is not UTF-8", where) from error


def columns_of(data: bytes, where: str) -> dict[str, Any]:
    """A sample's JSON."""
    try:
        columns = json.loads(texts.text_of(data))
    except (ValueError, RecursionError):  # the latter for brackets within brackets
        columns = None
    if not isinstance(columns, dict):
        raise UnreadableError("JSON that cannot be read", where)
    return columns


# ---- which samples are left out ----

SIZES = ("width", "height", "side")
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
# The signs of two letters stand first: else ">=5" would be read as ">" and "=5".
_CONDITION = re.compile(r"([A-Za-z_][\w.-]*)(>=|<=|>|<|=)(\S+)")


@dataclass(frozen=True)
class Condition:
    name: str
    sign: str
    value: str

    def holds(self, value: Any) -> bool:
        """Numbers compare as numbers; ``=`` takes alternatives, without regard to case."""
        if self.sign == "=":
            return str(value).strip().lower() in self.value.lower().split("|")
        return _OPERATORS[self.sign](float(value), float(self.value))


@dataclass(frozen=True)
class Filters:
    conditions: tuple[Condition, ...]

    def captions(self, captions: Sequence[str]) -> list[str]:
        """Those of an allowed length."""
        kept = list(captions)
        for condition in self.conditions:
            if condition.name == "text":
                kept = [caption for caption in kept if condition.holds(len(caption))]
        return kept

    def reason(
        self,
        captions: Sequence[str],
        columns: Mapping[str, Any],
        image: Callable[[], bytes] = bytes,
    ) -> str | None:
        """Why a sample is left out; None: it stays.

        The words are the same for all samples of a kind, so that they can be counted. An image
        that cannot be read is no matter of filters: it is counted when it is met.
        """
        if not self.captions(captions):
            return "length of text"
        if any(condition.name in SIZES for condition in self.conditions):
            try:
                with one_sample(""):
                    width, height = images.size_of(image(), is_upright=True)
            except UnreadableError:
                return None
            # Columns with these names may be those of another resolution.
            sizes = {"width": width, "height": height, "side": min(width, height)}
            columns = {**columns, **sizes}

        for condition in self.conditions:
            if condition.name == "text":
                continue
            value = columns.get(condition.name)
            if value is None:
                return f"no {condition.name}"
            try:
                if not condition.holds(value):
                    return condition.name
            except (TypeError, ValueError, OverflowError):
                return f"{condition.name} that is no number"
        return None


def parse(text: str) -> Filters:
    """The filters that ``text`` describes.

    Raises UserError for what is no condition, or a comparison with something that is no number.
    """
    conditions = []
    for part in text.split():
        match = _CONDITION.fullmatch(part)
        if match is None:
            fix = "write NAME>=NUMBER, NAME<NUMBER or NAME=WORD|WORD"
            raise UserError(f"{part!r} is no condition", about="data.filters", fix=fix)
        condition = Condition(*match.groups())

        # What is a number by its meaning has to be one even with "=", where others may be words.
        if condition.sign != "=" or condition.name in ("text", *SIZES):
            try:
                float(condition.value)
            except ValueError:
                problem = f"{part!r} compares with {condition.value!r}, which is no number"
                raise UserError(problem, about="data.filters", fix="write a number") from None
        conditions.append(condition)
    return Filters(tuple(conditions))
