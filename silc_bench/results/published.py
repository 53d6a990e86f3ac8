"""Published numbers, each with its source (no torch).

The leaderboard shows those that come with the package (``reported/*.json`` beside this file) and
those of each results folder (``results/reported/*.json``) in tables of their own.

Other people's protocols differ in ways their papers may not say, so these rows stand beside
measured ones, never among them. A file is ``{"schema": "reported/1", "rows": [{model, params,
source: {url, where}, note, values}]}`` with values ``{"imagenet1k/zeroshot": {"acc1": 0.767}}``:
fractions, under our names. What no one could read in a source stays absent.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from silc_bench.errors import DataError, first_line
from silc_bench.results.schema import METRICS, NAME, TASK_NAME, URL, check, object_of
from silc_bench.system.files import read_text

ENDING = ".json"
FOLDER = "reported"  # of the package and of a results folder
OURS = Path(__file__).parent / FOLDER
MAX_BYTES = 1 << 26  # of a file
SCHEMA_VERSION = "reported/1"
MEND = "mend the file, or take it away"
DIFFERS = "join the rows in one file, or give one file another name"
SCHEMA: dict[str, Any] = object_of(
    schema={"const": SCHEMA_VERSION},
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


def load(results_dirs: Sequence[Path]) -> tuple[list[ReportedRow], list[DataError]]:
    """The rows of the results folders, then those of the package; by file, in the file's order.

    One model in one source is one row of a table. A row that stands in two places with the same
    content counts once. Where the content differs, the first one stays, and the other is a problem.

    Returns:
        The rows, and a problem for each file or row that was left out. Each names its file.
    """
    rows: dict[tuple[str, str, str], ReportedRow] = {}
    problems: list[DataError] = []
    for folder in (*(Path(results_dir) / FOLDER for results_dir in results_dirs), OURS):
        try:
            paths = files_in(folder)
        except DataError as error:
            problems.append(error)
            continue
        for path in paths:
            try:
                of_file = _read(path)
            except DataError as error:
                problems.append(error)
                continue
            for row in of_file:
                first = rows.setdefault((row.collection, row.model, row.url), row)
                if first != row:
                    problem = f"{row.model!r} from {row.url} stands there with other content"
                    about = f"{path}: {row.collection}"
                    problems.append(DataError(problem, about=about, fix=DIFFERS))
    return list(rows.values()), problems


def files_in(folder: Path) -> list[Path]:
    """The files of published numbers in a folder ``reported``; none, if there is no such folder.

    Raises:
        DataError: the folder cannot be listed.
    """
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    except OSError as error:
        problem = f"cannot be listed ({first_line(error)})"
        raise DataError(problem, about=folder, fix=MEND) from error
    return [folder / name for name in names if name.endswith(ENDING) and name[0] != "."]


def _read(path: Path) -> list[ReportedRow]:
    """The rows of one file.

    Raises:
        DataError: it is not ``reported/1``, or two rows have the same model and source; file and
            row are named.
    """
    try:
        data = json.loads(read_text(path, MAX_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        problem = f"not a readable JSON file ({first_line(error)})"
        raise DataError(problem, about=path, fix=MEND) from error
    check(data, SCHEMA, path, fix=MEND)

    rows: list[ReportedRow] = []
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
