"""The schemas of our JSON files, and their check.

``check(json.loads(text), SCHEMA, "results/a/b.json")`` passes or raises a DataError that names the
file, the field and what is wrong. The schemas stand beside what they describe: records in
``record.py``, published numbers in ``published.py``; here is what they share.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
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
_STRICT = json.JSONEncoder(allow_nan=False, ensure_ascii=False)
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
    # jsonschema finds the words for what is wrong; for what is right it takes ten times as long
    if not fits(data, schema):
        from jsonschema.exceptions import best_match

        error = best_match(_validator(json.dumps(schema)).iter_errors(data))
        assert error is not None, "the two readings of a schema differ"
        field = error.json_path.removeprefix("$").removeprefix(".")
        about = f"{where}: {field}" if field else where
        raise DataError(error.message[:200], about=about, fix=fix)

    # what a schema leaves open may hold anything: a NaN, an array of a task, half a letter
    try:
        _STRICT.encode(data).encode()
    except (TypeError, ValueError, RecursionError):
        for name, value in data.items():
            try:
                _STRICT.encode(value).encode()
            except (TypeError, ValueError, RecursionError) as reason:
                raise DataError(first_line(reason), about=f"{where}: {name}", fix=fix) from reason
        raise


@cache
def _validator(schema: str) -> Any:
    """Made once for each schema.

    Stricter than the standard: 1.0 is no integer, a NaN is no number, and a newline never ends a
    text unseen.
    """
    # imported here: it takes longer than all that a listing of tasks needs
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import ValidationError
    from jsonschema.validators import extend

    def matches(validator: object, pattern: str, value: object, schema: object) -> Iterator[Any]:
        if isinstance(value, str) and not re.fullmatch(pattern, value):
            yield ValidationError(f"{value!r} is no text like {pattern}")

    strict = extend(
        Draft202012Validator,
        {"pattern": matches},
        type_checker=Draft202012Validator.TYPE_CHECKER.redefine_many(
            {name: lambda checker, value, test=_TYPES[name]: test(value) for name in _NUMBERS}
        ),
    )
    return strict(json.loads(schema))


Predicate = Callable[[Any], bool]
_NUMBERS = ("integer", "number")
_TYPES: dict[str, Predicate] = {
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: (
        math.isfinite(value)
        if isinstance(value, float)
        else isinstance(value, int) and not isinstance(value, bool)
    ),
    "string": lambda value: isinstance(value, str),
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
}


# by the schema's id, which nobody else gets as long as the schema is held here too
_PREDICATES: dict[int, tuple[Mapping[str, Any], Predicate]] = {}


def fits(value: Any, schema: Mapping[str, Any]) -> bool:
    """As ``_validator`` would say; compiled once for each schema, for thousands of records."""
    if id(schema) not in _PREDICATES:
        _PREDICATES[id(schema)] = schema, _compiled(schema)
    return _PREDICATES[id(schema)][1](value)


def _compiled(schema: Mapping[str, Any]) -> Predicate:
    """Of the keywords that our schemas use; another one is a KeyError."""
    tests = [_KEYWORDS[name](schema) for name in schema if name not in ("$schema", "title")]
    if len(tests) == 1:
        return tests[0]
    return lambda value: all(test(value) for test in tests)


def _type(schema: Mapping[str, Any]) -> Predicate:
    names = schema["type"]
    if isinstance(names, str):
        return _TYPES[names]
    tests = [_TYPES[name] for name in names]
    return lambda value: any(test(value) for test in tests)


def _properties(schema: Mapping[str, Any]) -> Predicate:
    tests = {name: _compiled(inner) for name, inner in schema["properties"].items()}

    def holds(value: Any) -> bool:
        if not isinstance(value, dict):
            return True
        return all(tests[name](item) for name, item in value.items() if name in tests)

    return holds


def _pattern_properties(schema: Mapping[str, Any]) -> Predicate:
    patterns = schema["patternProperties"].items()
    tests = [(re.compile(pattern).search, _compiled(inner)) for pattern, inner in patterns]

    def holds(value: Any) -> bool:
        if not isinstance(value, dict):
            return True
        for is_meant, test in tests:
            for name, item in value.items():
                if is_meant(name) and not test(item):
                    return False
        return True

    return holds


def _no_others(schema: Mapping[str, Any]) -> Predicate:
    assert schema["additionalProperties"] is False
    known = set(schema["properties"])
    return lambda value: not isinstance(value, dict) or known.issuperset(value)


def _required(schema: Mapping[str, Any]) -> Predicate:
    names = set(schema["required"])
    return lambda value: not isinstance(value, dict) or names.issubset(value)


def _property_names(schema: Mapping[str, Any]) -> Predicate:
    test = _compiled(schema["propertyNames"])
    return lambda value: not isinstance(value, dict) or all(test(name) for name in value)


def _items(schema: Mapping[str, Any]) -> Predicate:
    test = _compiled(schema["items"])
    return lambda value: not isinstance(value, list) or all(test(item) for item in value)


def _pattern(schema: Mapping[str, Any]) -> Predicate:
    matches = re.compile(schema["pattern"]).fullmatch
    return lambda value: not isinstance(value, str) or matches(value) is not None


_KEYWORDS: dict[str, Callable[[Mapping[str, Any]], Predicate]] = {
    "type": _type,
    "properties": _properties,
    "patternProperties": _pattern_properties,
    "additionalProperties": _no_others,
    "required": _required,
    "propertyNames": _property_names,
    "minProperties": lambda schema: (
        lambda value: not isinstance(value, dict) or len(value) >= schema["minProperties"]
    ),
    "items": _items,
    "pattern": _pattern,
    "const": lambda schema: lambda value: value == schema["const"],
    "minimum": lambda schema: (
        lambda value: not _TYPES["number"](value) or value >= schema["minimum"]
    ),
    "maximum": lambda schema: (
        lambda value: not _TYPES["number"](value) or value <= schema["maximum"]
    ),
}
