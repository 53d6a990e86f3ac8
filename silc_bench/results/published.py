"""Published numbers, each with its source (no torch).

The leaderboard reads ``results/reported/*.json`` for tables of their own.

Other people's protocols differ in ways their papers may not say, so these rows stand beside
measured ones, never among them. A file is ``{"schema": "reported/1", "rows": [{model, params,
source: {url, where}, note, values}]}`` with values ``{"imagenet1k/zeroshot": {"acc1": 0.767}}``:
fractions, under our names. What no one could read in a source stays absent.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from silc_bench.errors import DataError, first_line
from silc_bench.results.schema import METRICS, NAME, TASK_NAME, URL, check, object_of

MEND = "mend the file, or take it away"
SCHEMA: dict[str, Any] = object_of(
    schema={"const": "reported/1"},
    rows={
        "type": "array",
        "items": object_of(
            model=NAME,
            params={"type": ["integer", "null"], "minimum": 1},
            source=object_of(url=URL, where=NAME),
            note={"type": "string", "pattern": r"^[^\u0000-\u001f\u007f-\u009f\ud800-\udfff]*$"},
            values={
                "type": "object",
                "minProperties": 1,
                "propertyNames": TASK_NAME,
                "patternProperties": {"": METRICS},
            },
        ),
    },
)


@dataclass(frozen=True)
class ReportedRow:
    """What one source says about one model."""

    collection: str  # the file's name without ".json": heading of the table
    model: str
    params: int | None  # None: the source does not say
    url: str
    where: str  # table or section
    note: str
    values: dict[str, dict[str, float]]  # task -> metric -> fraction


def load_reported(folder: Path) -> list[ReportedRow]:
    """Every row of ``folder/*.json``, by file and then in the file's own order.

    The list is empty if there is no such folder.

    Raises:
        UserError: a file that is not ``reported/1``, or two rows with the same model and source;
            file and row are named.
    """
    rows: list[ReportedRow] = []
    for path in sorted(Path(folder).glob("*.json")):
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            problem = f"not a readable JSON file ({first_line(error)})"
            raise DataError(problem, about=path, fix=MEND) from error

        check(data, SCHEMA, path, fix=MEND)
        seen: set[tuple[str, str]] = set()
        for index, row in enumerate(data["rows"]):
            model = row["model"]
            url = row["source"]["url"]
            where = row["source"]["where"]

            # one row of the table is one model in one source: two would overwrite each other
            if (model, url) in seen:
                problem = f"{model!r} from {url} stands there twice"
                raise DataError(problem, about=f"{path}: rows[{index}]", fix="join the rows")
            seen.add((model, url))
            rows.append(
                ReportedRow(path.stem, model, row["params"], url, where, row["note"], row["values"])
            )
    return rows
