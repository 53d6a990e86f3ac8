"""Which samples a run leaves out: conditions on the text, the picture's size, the language and the score columns.

``--set data.filters="text>=5 side>=64 language=en|de similarity>=0.28"``: conditions separated by spaces, all of which must
hold. ``text`` is a caption's length in characters, ``width``, ``height`` and ``side`` (the shorter one) are pixels; every other
name is a column of the sample's ``.json``, as img2dataset writes it, or of its row in a list of captions.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from silc_bench.errors import UserError

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
        return [caption for caption in captions if all(condition.holds(len(caption)) for condition in mine)]

    def reason(self, captions: Sequence[str], columns: Mapping[str, Any]) -> str | None:
        """Why a sample is left out, in words that are the same for all of a kind; None: it stays."""
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
    """Raises UserError for what is no condition, or a comparison with something that is no number."""
    conditions = []
    for word in text.split():
        found = _CONDITION.fullmatch(word)
        if found is None:
            raise UserError(f"data.filters: {word!r} is no condition; write NAME>=NUMBER, NAME<NUMBER or NAME=WORD|WORD")
        condition = Condition(*found.groups())
        if condition.sign != "=" or condition.name in ("text", *SIZES):
            try:
                float(condition.value)
            except ValueError:
                raise UserError(f"data.filters: {word!r} compares with {condition.value!r}, which is no number") from None
        conditions.append(condition)
    return Filters(tuple(conditions))
