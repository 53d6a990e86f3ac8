"""The schemas of our JSON files, and their check.

``check(json.loads(text), SCHEMA, "results/a/b.json")`` passes or raises a DataError that names the
file, the field and what is wrong. The schemas stand beside what they describe: records in
``record.py``, published numbers in ``published.py``; here is what they share.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from silc_bench.errors import DataError, first_line

# No control characters and no half of a surrogate pair: names are printed in terminals and written
# as UTF-8.
NAME = {"type": "string", "pattern": r"^[^\u0000-\u001f\u007f-\u009f\ud800-\udfff]+$"}
TASK_NAME = {
    "type": "string",
    "pattern": r"^[A-Za-z0-9][A-Za-z0-9_.+-]*/[A-Za-z0-9][A-Za-z0-9_.+-]*$",
}
HEX = {"type": "string", "pattern": "^[0-9a-f]{8,64}$"}
URL = {"type": "string", "pattern": r"^https?://[^\s()<>\"']+$"}
COUNT = {"type": "integer", "minimum": 1}
_RANK = r"(^|_)rank(_|$)"
METRICS = {
    "type": "object",
    "minProperties": 1,
    "propertyNames": {"pattern": r"^[A-Za-z0-9_@.+-]+$"},
    "patternProperties": {
        _RANK: {"type": "number", "minimum": 1},
        f"^(?!.*{_RANK})": {"type": "number", "minimum": 0, "maximum": 1},
    },
}


def is_fraction(metric: str) -> bool:
    """All metrics are fractions, higher is better.

    But a rank ("median_rank") counts from 1, and lower is better.
    """
    return re.search(_RANK, metric) is None


def object_of(**properties: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of an object with exactly these fields."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def check(data: Any, schema: Mapping[str, Any], where: object, fix: str) -> None:
    """Pass if ``data`` (decoded JSON) fits ``schema`` and JSON can say it: a NaN is refused.

    Raises:
        DataError: about ``where`` and the field.
    """
    from jsonschema.exceptions import best_match

    error = best_match(_validator(json.dumps(schema)).iter_errors(data))
    if error is not None:
        field = error.json_path.removeprefix("$").removeprefix(".")
        about = f"{where}: {field}" if field else where
        raise DataError(error.message[:200], about=about, fix=fix)

    # what a schema leaves open may hold anything: a NaN, an array of a task
    for name, value in data.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as reason:
            raise DataError(first_line(reason), about=f"{where}: {name}", fix=fix) from reason


@cache
def _validator(schema: str) -> Any:
    """Made once for each schema: thousands of records are read with it.

    Stricter than the standard: 1.0 is no integer, a NaN is no number, and a newline never ends a
    text unseen.
    """
    # imported here: it takes longer than all that a listing of tasks needs
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import ValidationError
    from jsonschema.validators import extend

    def is_integer(checker: object, value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool)

    def is_number(checker: object, value: object) -> bool:
        if isinstance(value, float):
            return math.isfinite(value)
        return is_integer(checker, value)

    def matches(validator: object, pattern: str, value: object, schema: object) -> Iterator[Any]:
        if isinstance(value, str) and not re.fullmatch(pattern, value):
            yield ValidationError(f"{value!r} is no text like {pattern}")

    strict = extend(
        Draft202012Validator,
        {"pattern": matches},
        type_checker=Draft202012Validator.TYPE_CHECKER.redefine_many(
            {"integer": is_integer, "number": is_number}
        ),
    )
    return strict(json.loads(schema))
