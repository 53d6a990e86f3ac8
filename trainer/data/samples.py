"""Picture-text pairs by position: what every reader promises, the order of an epoch, and generated
scenes.

Flow: ``reader.text(p)`` and ``reader.picture(p)`` give entry p of an endless stream, a pure
function of (seed, p), in any order and in any process; ``silc_bench.trainer.data.stream`` makes
batches of them. Readers: here, in ``shards``, ``lists`` and ``sources``.

Shapes: S = decode_size pixels, the longest side a picture may have; a picture is [h, w, 3].

Which samples a run leaves out: conditions on the text, the picture's size, the language and the
score columns.

``--set data.filters="text>=5 side>=64 language=en|de similarity>=0.28"``: conditions separated by
spaces, all of which must hold. ``text`` is a caption's length in characters, ``width``, ``height``
and ``side`` (the shorter one) are pixels; every other name is a column of the sample's ``.json``,
as img2dataset writes it, or of its row in a list of captions.
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from silc_bench.datasets.files import shards
from silc_bench.datasets.shapes import captions as shapes_captions
from silc_bench.datasets.shapes import drawing
from silc_bench.datasets.shapes import scenes as shapes
from silc_bench.errors import UserError
from silc_bench.trainer.config.config import DataConfig

LARGEST_SCENE, SMALLEST_SCENE = (
    512,
    16,
)  # pixels a side: more shows nothing more, less does not tell the shapes apart
ORDER, CAPTION, MIXTURE = range(3)  # what random words are drawn for: no use ever sees another's


class UnreadableError(ValueError):
    """An entry that has to be left out. ``cause`` is the same for all of a kind, to count by."""

    def __init__(self, cause: str, where: str) -> None:
        super().__init__(cause, where)
        self.cause, self.where = cause, where


class Reader(Protocol):
    """Entries by position. It is copied to worker processes, so it holds no open files."""

    @property
    def num_samples(self) -> int | None:
        """Of an epoch; None: it never repeats."""
        ...

    def describe(self) -> str: ...

    def text(self, position: int) -> str: ...

    def picture(self, position: int) -> np.ndarray:
        """uint8 [h, w, 3], no side longer than S. UnreadableError, as for ``text``, leaves the
        entry out.
        """
        ...


class ShapesReader:
    """Entry p is scene p of the split "train", with one of its five captions. UserError for what
    scenes cannot be.
    """

    num_samples = None

    def __init__(self, config: DataConfig) -> None:
        if config.filters:
            raise UserError(
                f"data.filters={config.filters!r} cannot be met by shapes: scenes are generated as they come, without columns;"
                " leave the filters out, or shapes"
            )
        if config.decode_size < SMALLEST_SCENE:
            raise UserError(
                f"data.decode_size={config.decode_size} is too small for shapes: at least {SMALLEST_SCENE}"
            )
        self._seed, self._size = config.seed, min(config.decode_size, LARGEST_SCENE)

    def describe(self) -> str:
        return f"shapes (generated, endless, seed {self._seed})"

    def text(self, position: int) -> str:
        captions = shapes_captions.captions(_scene(self._seed, position))
        return captions[int(random_words(self._seed, ORDER, position, 1)[0] % len(captions))]

    def picture(self, position: int) -> np.ndarray:
        return drawing.render(_scene(self._seed, position), self._size)[0]


@lru_cache(maxsize=1)  # text and picture of an entry are asked for one after the other
def _scene(seed: int, position: int) -> shapes.Scene:
    return shapes.scene(seed, "train", position)


# ---- what is random: raw Philox words stay the same in every release of numpy, its distributions
# may not ----


def random_words(seed: int, use: int, counter: int, count: int, inner: int = 0) -> np.ndarray:
    """uint64 [count]."""
    return np.random.Philox(key=(seed, use), counter=(0, 0, inner, counter)).random_raw(count)


def shuffled(
    seed: int, epoch: int, num_samples: int, groups: np.ndarray | None = None
) -> np.ndarray:
    """int64 [num_samples]: a permutation, the same on every machine; by ascending ``groups``
    [num_samples] where given.
    """
    words = random_words(seed, ORDER, epoch, num_samples)
    return np.argsort(words, kind="stable") if groups is None else np.lexsort((words, groups))


def choose_caption(captions: Sequence[str], seed: int, epoch: int, index: int) -> str:
    """The caption that sample ``index`` has in an epoch: f(seed, epoch, index)."""
    if len(captions) == 1:
        return captions[0]
    return captions[int(random_words(seed, CAPTION, epoch, 1, inner=index)[0] % len(captions))]


# ---- from bytes to a pair ----


def captions_of(text: bytes | None, columns: dict[str, Any] | None, where: str) -> list[str]:
    """The captions of a sample: the list "captions" of its JSON; else its text, a caption a line;
    else "caption" of its JSON.

    A text with a JSON beside it is one caption whatever its lines, as img2dataset writes them.
    """
    listed = (columns or {}).get("captions")
    if isinstance(listed, list):
        found = [str(caption) for caption in listed]
    elif text is not None:
        try:
            words = text.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UnreadableError("text that is not UTF-8", where) from error
        found = words.splitlines() if columns is None else [words]
    else:
        found = [str((columns or {}).get("caption") or "")]
    kept = [caption.strip() for caption in found if caption.strip()]
    if not kept:
        raise UnreadableError("empty text", where)
    return kept


def columns_of(data: bytes, where: str) -> dict[str, Any]:
    """A sample's JSON."""
    try:
        columns = json.loads(data)
    except ValueError as error:
        raise UnreadableError("JSON that cannot be read", where) from error
    if not isinstance(columns, dict):
        raise UnreadableError("JSON that cannot be read", where)
    return columns


def with_sizes(columns: dict[str, Any], picture: bytes, where: str) -> dict[str, Any]:
    """``columns`` with "width", "height" and "side" of the picture as it lies there, read from its
    header.
    """
    try:
        width, height = shards.image_size(picture)
    except shards.DamagedImageError as error:
        raise UnreadableError(error.cause, where) from error
    return {**columns, "width": width, "height": height, "side": min(width, height)}


def decoded(data: bytes, decode_size: int, where: str) -> np.ndarray:
    try:
        image = shards.decode_image(data)
    except shards.DamagedImageError as error:
        raise UnreadableError(error.cause, where) from error
    image.thumbnail(
        (decode_size, decode_size)
    )  # keeps the aspect and never enlarges: views do that
    return np.asarray(image)


SIZES = ("width", "height", "side")
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_CONDITION = re.compile(r"([A-Za-z_][\w.-]*)(>=|<=|>|<|=)(\S+)")


@dataclass(frozen=True)
class Condition:
    name: str
    sign: str
    value: str

    def holds(self, found: Any) -> bool:
        """Numbers compare as numbers; ``=`` takes alternatives, without regard to case."""
        if self.sign == "=":
            return str(found).strip().lower() in self.value.lower().split("|")
        return _OPERATORS[self.sign](float(found), float(self.value))


@dataclass(frozen=True)
class Filters:
    conditions: tuple[Condition, ...]

    @property
    def needs_size(self) -> bool:
        return any(condition.name in SIZES for condition in self.conditions)

    def captions(self, captions: Sequence[str]) -> list[str]:
        """Those of an allowed length."""
        mine = [condition for condition in self.conditions if condition.name == "text"]
        return [
            caption
            for caption in captions
            if all(condition.holds(len(caption)) for condition in mine)
        ]

    def reason(self, captions: Sequence[str], columns: Mapping[str, Any]) -> str | None:
        """Why a sample is left out, in words that are the same for all of a kind; None: it
        stays.
        """
        if not self.captions(captions):
            return "length of text"
        for condition in self.conditions:
            if condition.name == "text":
                continue
            found = columns.get(condition.name)
            if found is None:
                return f"no {condition.name}"
            try:
                if not condition.holds(found):
                    return condition.name
            except (TypeError, ValueError):
                return f"{condition.name} that is no number"
        return None


def parse(text: str) -> Filters:
    """Raises UserError for what is no condition, or a comparison with something that is no
    number.
    """
    conditions = []
    for word in text.split():
        found = _CONDITION.fullmatch(word)
        if found is None:
            raise UserError(
                f"data.filters: {word!r} is no condition; write NAME>=NUMBER, NAME<NUMBER or NAME=WORD|WORD"
            )
        condition = Condition(*found.groups())
        if condition.sign != "=" or condition.name in ("text", *SIZES):
            try:
                float(condition.value)
            except ValueError:
                raise UserError(
                    f"data.filters: {word!r} compares with {condition.value!r}, which is no number"
                ) from None
        conditions.append(condition)
    return Filters(tuple(conditions))
