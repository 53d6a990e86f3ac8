"""Result files of other programs -> published rows, each with its source (no torch).

Read are CLIP_benchmark's JSON (a model on a dataset a file) and the CSV that its ``build`` makes of
many, and the tables in open_clip's ``docs``: ``openclip_results.csv`` and
``openclip_retrieval_results.csv``. Which is meant, the names of the columns say.

Flow: ``read([path, ...], url)`` -> rows in the format of ``published``, and what was left out, by
reason -> ``save(rows, results/reported/NAME.json)``.

Other programs measure datasets that we do not have, by metrics that we do not have: what has no
place under our names is left out and counted. Where two files say two things of one model, the
first one stays.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from silc_bench.errors import DataError, UserError, first_line
from silc_bench.results.published import MAX_BYTES, SCHEMA, SCHEMA_VERSION
from silc_bench.results.schema import NAME, URL, check
from silc_bench.system.files import read_text, write_text_atomic

FIX = "give a JSON or CSV file of CLIP_benchmark, or a results table of open_clip"

# CLIP_benchmark's names of datasets, without "wds/" and "vtab/", and ours
DATASETS = {
    "cifar10": "cifar10",
    "cifar100": "cifar100",
    "flickr30k": "flickr30k",
    "imagenet-a": "imagenet_a",
    "imagenet-r": "imagenet_r",
    "imagenet1k": "imagenet1k",
    "imagenet_sketch": "imagenet_sketch",
    "imagenetv2": "imagenet_v2",
    "mscoco_captions": "coco",
    "objectnet": "objectnet",
}
# its tasks: our family, and which of its metrics are which of ours
TASKS = {
    "zeroshot_classification": ("zeroshot", r"(acc1|acc5|mean_per_class_recall)"),
    "zeroshot_retrieval": ("retrieval", r"((?:image|text)_retrieval_recall@[1-9]\d*)"),
    "linear_probe": ("linear", r"lp_(acc1|acc5|mean_per_class_recall)"),
}
IDENTITY = ("dataset", "model", "pretrained", "task")
# what may stand beside the metrics and is none
BESIDE = (*IDENTITY, "language", "model_fullname", "classnames", "templates")

# the columns of open_clip's tables
COLUMNS = {
    "ImageNet 1k": ("imagenet1k/zeroshot", "acc1"),
    "ImageNet v2": ("imagenet_v2/zeroshot", "acc1"),
    "ImageNet-A": ("imagenet_a/zeroshot", "acc1"),
    "ImageNet-R": ("imagenet_r/zeroshot", "acc1"),
    "ImageNet Sketch": ("imagenet_sketch/zeroshot", "acc1"),
    "ObjectNet": ("objectnet/zeroshot", "acc1"),
    "CIFAR-10": ("cifar10/zeroshot", "acc1"),
    "CIFAR-100": ("cifar100/zeroshot", "acc1"),
}
RETRIEVAL_COLUMN = re.compile(r"(Flickr|MSCOCO) (image|text) retr\. R@([1-9]\d*)")
RETRIEVAL_SETS = {"Flickr": "flickr30k", "MSCOCO": "coco"}
MILLIONS_OF_PARAMS = "params (M)"
OPEN_CLIP_BESIDE = ("name", "pretrained", MILLIONS_OF_PARAMS)


@dataclass
class Imported:
    """What was read, and what was not."""

    rows: dict[str, dict[str, Any]] = field(default_factory=dict)  # by model
    num_values: int = 0
    left_out: dict[str, list[str]] = field(default_factory=dict)  # reason -> where

    def leave_out(self, reason: str, where: str) -> None:
        self.left_out.setdefault(reason, []).append(where)


@dataclass(frozen=True)
class _Entry:
    """A number of a file, or of several with one reason not to be read."""

    model: str
    params: int | None
    task: str  # ours
    metric: str  # ours
    value: Any
    where: str  # in words: "benchmark.csv, row 3"


def read(paths: Sequence[Path], url: str) -> Imported:
    """Every number that has a place under our names; of a folder its ``*.json`` and ``*.csv``.

    Args:
        url: where the numbers were published; stands in each row.

    Raises:
        UserError: no such address; a file is not one of those formats; nothing at all was read.
    """
    if not re.fullmatch(URL["pattern"], url):
        fix = "give the http(s) address at which the numbers were published"
        raise UserError(f"{url!r} is no address", about="--source", fix=fix)

    imported = Imported()
    for path in paths:
        # of a folder a file may be anything, and what it is not is said; a named file is meant
        if not Path(path).is_dir():
            _add(imported, Path(path), url)
            continue
        for inner in sorted(Path(path).iterdir()):
            if inner.suffix not in (".json", ".csv"):
                imported.leave_out("neither JSON nor CSV", inner.name)
                continue
            try:
                _add(imported, inner, url)
            except DataError as error:
                imported.leave_out(error.problem, inner.name)

    if not imported.rows:
        names = ", ".join(str(path) for path in paths)
        problem = "holds no number of a dataset and a metric that silc-bench measures"
        if imported.left_out:
            problem += f" (left out: {next(iter(imported.left_out))})"
        raise DataError(problem, about=names, fix=FIX)
    return imported


def save(imported: Imported, path: Path) -> None:
    """Write the rows where ``published.load`` finds them, a row a line.

    Raises:
        UserError: there is such a file: published numbers are not overwritten.
    """
    if path.exists():
        fix = "choose another --name, or delete that file first"
        raise UserError("exists, and is not overwritten", about=path, fix=fix)

    rows = list(imported.rows.values())
    check({"schema": SCHEMA_VERSION, "rows": rows}, SCHEMA, path, FIX)
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    write_text_atomic(path, f'{{"schema": "{SCHEMA_VERSION}", "rows": [\n{lines}\n]}}\n')


def _add(imported: Imported, path: Path, url: str) -> None:
    """The numbers of one file."""
    program, entries = _entries(imported, path)
    source = {"url": url, "where": f"{program}, {path.name}"}
    for entry in entries:
        # a cell without a number was not measured
        if entry.value is None or entry.value == "":
            continue
        value = _fraction(entry.value)
        if value is None:
            imported.leave_out("no fraction between 0 and 1", entry.where)
            continue
        if not re.fullmatch(NAME["pattern"], entry.model):
            imported.leave_out("a model without a printable name", entry.where)
            continue

        row = {"model": entry.model, "params": entry.params, "source": source, "note": ""}
        values = imported.rows.setdefault(entry.model, {**row, "values": {}})["values"]
        known = values.setdefault(entry.task, {}).setdefault(entry.metric, value)
        if known != value:
            reason = "another value of the same model, task and metric than an earlier one"
            imported.leave_out(reason, entry.where)
        else:
            imported.num_values += 1


def _entries(imported: Imported, path: Path) -> tuple[str, Iterator[_Entry]]:
    """(Name of the program, the numbers that have a place under our names)."""
    try:
        text = read_text(path, MAX_BYTES).removeprefix("\ufeff")
    except (OSError, UnicodeDecodeError) as error:
        problem = f"cannot be read ({first_line(error)})"
        raise DataError(problem, about=path, fix=FIX) from error

    if path.suffix == ".json":
        return "CLIP_benchmark", _of_json(imported, text, path)

    header, rows = _table(imported, text, path)
    if set(IDENTITY) <= set(header):
        return "CLIP_benchmark", _of_benchmark(imported, rows)
    if {"name", "pretrained"} <= set(header):
        return "open_clip", _of_open_clip(imported, rows)
    raise DataError("has none of the known columns", about=path, fix=FIX)


def _table(
    imported: Imported, text: str, path: Path
) -> tuple[list[str], list[tuple[str, dict[str, str]]]]:
    """(Names of the columns, [(where, row)]) of a CSV file."""
    try:
        lines = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise DataError(f"no CSV file ({first_line(error)})", about=path, fix=FIX) from error

    header = lines[0] if lines else []
    if len(set(header)) < len(header):
        raise DataError("two columns have one name", about=path, fix=FIX)

    rows = []
    for number, line in enumerate(lines[1:], start=2):
        where = f"{path.name}, row {number}"
        if line and len(line) != len(header):
            imported.leave_out("a row with another number of columns than the first", where)
        elif line:
            rows.append((where, dict(zip(header, line, strict=True))))
    return header, rows


def _of_json(imported: Imported, text: str, path: Path) -> Iterator[_Entry]:
    """The numbers of one of CLIP_benchmark's JSON files."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON ({first_line(error)})", about=path, fix=FIX) from error

    is_result = isinstance(content, dict) and isinstance(content.get("metrics"), dict)
    if not is_result or not all(isinstance(content.get(name), str) for name in IDENTITY):
        problem = f"is no object with {', '.join(IDENTITY)} and metrics"
        raise DataError(problem, about=path, fix=FIX)
    return _of_benchmark(imported, [(path.name, {**content, **content["metrics"]})])


def _of_benchmark(
    imported: Imported, rows: Sequence[tuple[str, Mapping[str, Any]]]
) -> Iterator[_Entry]:
    """Of CLIP_benchmark: a row is a model on a dataset."""
    for where, row in rows:
        dataset = DATASETS.get(re.sub(r"^(wds/)?(vtab/)?", "", row["dataset"]))
        family, known_metrics = TASKS.get(row["task"], ("", ""))
        # a table without the column is of a time when there was English only
        language = row.get("language") or "en"
        shots = row.get("fewshot_k", -1)

        # one reason a row: the first that holds
        reason = ""
        if not dataset:
            reason = f"dataset {row['dataset']!r}"
        elif not family:
            reason = f"task {row['task']!r}"
        elif language != "en":
            reason = f"language {language!r}"
        elif family == "linear" and str(shots) != "-1":
            reason = f"a linear probe on {shots!r} shots"
        if reason:
            imported.leave_out(reason, where)
            continue

        model = _model(row["model"], row["pretrained"])
        for name, value in row.items():
            metric = re.fullmatch(known_metrics, name)
            if metric:
                yield _Entry(model, None, f"{dataset}/{family}", metric[1], value, where)
            elif name not in (*BESIDE, "metrics") and value not in ("", None):
                imported.leave_out(f"{name!r} of {row['task']}", where)


def _of_open_clip(
    imported: Imported, rows: Sequence[tuple[str, Mapping[str, str]]]
) -> Iterator[_Entry]:
    """Of open_clip: a row is a model, a column a dataset."""
    for where, row in rows:
        params = None
        if row.get(MILLIONS_OF_PARAMS):
            params = _params(row[MILLIONS_OF_PARAMS])
            if params is None:
                imported.leave_out(f"{MILLIONS_OF_PARAMS!r} that is no number", where)

        model = _model(row["name"], row["pretrained"])
        for name, value in row.items():
            retrieval = RETRIEVAL_COLUMN.fullmatch(name)
            if name in COLUMNS:
                task, metric = COLUMNS[name]
                yield _Entry(model, params, task, metric, value, where)
            elif retrieval:
                task = f"{RETRIEVAL_SETS[retrieval[1]]}/retrieval"
                metric = f"{retrieval[2]}_retrieval_recall@{retrieval[3]}"
                yield _Entry(model, params, task, metric, value, where)
            elif name not in OPEN_CLIP_BESIDE and value:
                imported.leave_out(f"column {name!r}", where)


def _model(name: str, pretrained: str) -> str:
    """As ``eval --ckpt`` takes it, unless the weights are somebody's own file."""
    if pretrained and "/" not in pretrained:
        return f"open_clip:{name}/{pretrained}"
    return f"{name} {pretrained}".strip()


def _fraction(value: Any) -> float | None:
    """None where it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if 0 <= number <= 1 else None  # a NaN is not between them


def _params(millions: str) -> int | None:
    try:
        number = float(millions)
    except ValueError:
        return None
    return round(number * 1e6) if math.isfinite(number) and number >= 1e-6 else None
