"""The part of JSON Schema that this project uses.

Its errors name the file, the field and what was expected. ``check(json.loads(text), SCHEMA,
"results/a/b.json")`` passes or raises UserError (standard library only). The schemas stand beside
what they describe: records in ``record.py``, published numbers in ``published.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from silc_bench.errors import UserError, unknown_name

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


def check(data: Any, schema: Mapping[str, Any], where: str) -> None:
    """Pass if ``data`` (decoded JSON) fits ``schema``; every number anywhere in it must be finite.

    Stricter than the standard in two more ways: 1.0 is no integer, and a newline never ends a
    string unseen.

    Raises:
        UserError: ``where``, the field, what was expected and what was found.
    """
    try:
        _check(data, schema, "", where)
    except RecursionError as error:
        raise UserError(f"{where}: nested too deeply to be one of our files") from error


_TYPES: dict[str, Any] = {
    "object": dict,
    "array": (list, tuple),
    "string": str,
    "boolean": bool,
    "null": type(None),
    "integer": int,
    "number": (int, float),
}


def _check(value: Any, schema: Mapping[str, Any], field: str, where: str) -> None:
    def refusal(expected: str) -> UserError:
        shown = repr(value) if len(repr(value)) <= 60 else repr(value)[:57] + "..."
        return UserError(f"{where}: {field or 'top level'}: expected {expected}, got {shown}")

    types = schema.get("type", list(_TYPES))
    types = [types] if isinstance(types, str) else types
    fits = [name for name in types if isinstance(value, _TYPES[name])]
    # a bool is an int for Python, not for JSON
    if not fits or (isinstance(value, bool) and "boolean" not in fits):
        raise refusal(" or ".join(types))

    # NaN is the one number that differs from itself
    if isinstance(value, float) and (value != value or abs(value) == float("inf")):
        raise refusal("a finite number")
    if "const" in schema and value != schema["const"]:
        raise refusal(repr(schema["const"]))
    # fullmatch, because "$" would let a newline at the end pass
    if "pattern" in schema and not re.fullmatch(schema["pattern"], value):
        raise refusal(f"text like {schema['pattern']}")
    if "minimum" in schema and value is not None and value < schema["minimum"]:
        raise refusal(f"at least {schema['minimum']}")
    if "maximum" in schema and value > schema["maximum"]:
        raise refusal(f"at most {schema['maximum']} (a fraction, not percent)")

    if isinstance(value, dict):
        _check_object(value, schema, field, where)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check(item, schema.get("items", {}), f"{field}[{index}]", where)


def _check_object(value: dict[Any, Any], schema: Mapping[str, Any], field: str, where: str) -> None:
    known = schema.get("properties", {})
    prefix = f"{field}." if field else ""
    for name in schema.get("required", ()):
        if name not in value:
            raise UserError(f"{where}: field {prefix}{name} is missing")
    if len(value) < schema.get("minProperties", 0):
        raise UserError(f"{where}: {field} is empty")

    for name, item in value.items():
        if not isinstance(name, str):
            raise UserError(f"{where}: {field}: key {name!r} is not a string, as JSON needs")
        _check(name, schema.get("propertyNames", {}), f"name of {prefix}{name}", where)
        if name not in known and not schema.get("additionalProperties", True):
            known_fields = (prefix + word for word in known)
            raise UserError(f"{where}: {unknown_name('field', prefix + name, known_fields)}")

        # a name can match several patterns, and must fit all of them
        by_pattern = schema.get("patternProperties", {})
        parts = [known.get(name, {})]
        parts += [part for pattern, part in by_pattern.items() if re.search(pattern, name)]
        for part in parts:
            _check(item, part, f"{prefix}{name}", where)
