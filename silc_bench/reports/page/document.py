"""Records and published rows -> the page's data, as plain JSON.

The page of 500 models and 40 tasks holds 20,000 records. What every table needs stands in columns
of numbers; what only an opened record shows (its setup, its command, its classes) is packed: JSON
or 16-bit numbers, deflated, in base64, one pack a question, which the browser unpacks when asked.

    models      one list a field: name, revision, label, params ...; a row is an index into them
    questions   what was asked, in words, and the pack of its records
    columns     a question and a metric: rows, values, standard errors; which rows are best or tied
    changes, unranked, images, remarks      the sections below the tables

The same records give the same document: its date is that of the newest record.
"""

from __future__ import annotations

import base64
import json
import re
import shlex
import sys
import zlib
from array import array
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import silc_bench
from silc_bench.reports.page.libraries import libraries
from silc_bench.reports.page.words import in_words
from silc_bench.results.published import ReportedRow
from silc_bench.results.record import Record
from silc_bench.results.schema import is_fraction
from silc_bench.results.setup import USUAL_POINTS

# What a record's details say of each class: the key, and what it is called.
BY_CLASS = {"acc1_by_class": "top-1", "iou": "IoU"}
DENSE_METHODS = ("plain", "maskclip", "sclip", "naclip", "clearclip")  # of ``eval --dense-method``
NO_SCORE = 0xFFFF  # of a class without samples; all others are ten-thousandths
LONGEST_DETAIL = 2000  # characters of one field of the details


@dataclass(frozen=True, order=True)
class Row:
    """A model as it was measured: a row of every table."""

    model: str
    revision: str
    label: str = ""  # tells two setups of one model apart: "bf16"


@dataclass(frozen=True)
class Ranked:
    """What the board decided about the records that rank, and the page only shows."""

    title: Callable[[Record, str], str]  # of a record's question and a metric, in words
    row: Callable[[Record], Row]
    # of the question with this hash and this metric: the best rows and those tied with them
    best: Callable[[str, str], Collection[Row]]
    # of a published task and metric: its family and its title
    published: Callable[[str, str], tuple[str, str]]


@dataclass(frozen=True)
class Difference:
    """What self-distillation changed in one metric, as fractions."""

    title: str
    before: float
    after: float
    low: float | None  # of the difference's 95 % interval; None where no error is known
    high: float | None


def document(
    records: Sequence[Record],
    reported: Sequence[ReportedRow],
    ranked: Ranked,
    *,
    unranked: Sequence[tuple[Record, str]] = (),
    changes: Mapping[str, Sequence[Difference] | Sequence[str]] | None = None,
    images: Sequence[Mapping[str, str]] = (),
    remarks: Sequence[str] = (),
    families: Mapping[str, str],
) -> dict[str, Any]:
    """The page's data.

    Args:
        records: those that rank, at most one of a row and question.
        unranked: those that do not, with the reason in words.
        changes: of each pair of twins what self-distillation changed, or the names of the models
            where several could be meant.
        images: title, caption and uri ("data:...") of each.
        remarks: which files were left out, and why: a sentence each.
        families: name -> title, in their order; others follow by name.
    """
    rows = sorted({ranked.row(record) for record in records})
    models = _Models(rows, ranked)
    by_question: dict[str, dict[int, Record]] = {}
    for record in records:
        models.add(record)
        of_question = by_question.setdefault(record.question.hash, {})
        of_question[models.index[ranked.row(record)]] = record

    present = {record.task.group for record in records}
    order = [name for name in families if name in present] + sorted(present - set(families))

    def place(hash_: str) -> tuple[Any, ...]:
        record = next(iter(by_question[hash_].values()))
        return order.index(record.task.group), record.task.name, hash_

    shared = _Shared()
    ids = _Ids()
    questions: list[dict[str, Any]] = []
    columns: list[dict[str, Any]] = []
    for hash_ in sorted(by_question, key=place):
        of_question = dict(sorted(by_question[hash_].items()))
        columns += _columns(hash_, of_question, len(questions), models.index, ranked, ids)
        questions.append(_question(of_question, ranked, shared))

    _add_published(columns, reported, models, ids, ranked)
    everything = [*records, *(record for record, _ in unranked)]
    return {
        "version": silc_bench.__version__,
        "date": max((record.created for record in everything), default=None),
        "num_images": _num_images(records),
        "libraries": [_library(library) for library in libraries()],
        "families": order,
        "family_titles": dict(families),
        "models": models.fields,
        "questions": questions,
        "columns": columns,
        "shared": _packed(shared.values),
        "changes": _changes(changes or {}),
        "unranked": [_unranked(record, reason, ranked) for record, reason in unranked],
        "images": [dict(image) for image in images],
        "remarks": list(remarks),
    }


class _Models:
    """The fields of the rows, one list each; published models follow the measured ones."""

    def __init__(self, rows: Sequence[Row], ranked: Ranked) -> None:
        self.index = {row: number for number, row in enumerate(rows)}
        self._ranked = ranked
        self._ids = _Ids()
        names = ("id", "name", "revision", "label", "params", "size", "url", "where", "note")
        self.fields: dict[str, list[Any]] = {name: [] for name in names}
        for row in rows:
            parts = [f"{row.model}@{row.revision[:8]}", row.label]
            self._append(
                id=self._ids.of(" ".join(part for part in parts if part)),
                name=row.model,
                revision=row.revision[:8],
                label=row.label,
            )

    def add(self, record: Record) -> None:
        """The size of a row, which any of its records knows."""
        index = self.index[self._ranked.row(record)]
        self.fields["params"][index] = record.model.params
        self.fields["size"][index] = record.model.image_size

    def add_published(self, row: ReportedRow) -> int:
        self._append(
            id=self._ids.of(f"{row.model} in {row.collection}"),
            name=row.model,
            params=row.params,
            url=row.url,
            where=row.where,
            note=row.note,
        )
        return len(self.fields["name"]) - 1

    def _append(self, **values: Any) -> None:
        for name, field in self.fields.items():
            field.append(values.get(name))


class _Ids:
    """Names for addresses, each used once."""

    def __init__(self) -> None:
        self._count: dict[str, int] = {}

    def of(self, name: str) -> str:
        number = self._count[name] = self._count.get(name, 0) + 1
        return name if number == 1 else self.of(f"{name} ({number})")


class _Shared:
    """What many records have alike, said once: setups, environments."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._index: dict[Hashable, int] = {}

    def add(self, key: Hashable, make: Callable[[], Any]) -> int:
        """The place of the value with this key; ``make`` is called for a new one."""
        if key not in self._index:
            self._index[key] = len(self.values)
            self.values.append(make())
        return self._index[key]


def _columns(
    hash_: str,
    of_question: Mapping[int, Record],
    question: int,
    index: Mapping[Row, int],
    ranked: Ranked,
    ids: _Ids,
) -> list[dict[str, Any]]:
    """One column a metric, the main one first."""
    first = next(iter(of_question.values()))
    main = first.task.main_metric
    metrics = {metric for record in of_question.values() for metric in record.metrics}

    columns = []
    for metric in sorted(metrics, key=lambda name: (name != main, _natural(name))):
        rows = [row for row, record in of_question.items() if metric in record.metrics]
        own = [of_question[row] for row in rows]
        # a single value is no best
        best = ranked.best(hash_, metric) if len(rows) > 1 else ()
        columns.append(
            {
                "id": ids.of(f"{first.task.name} {metric}"),
                "question": question,
                "task": first.task.name,
                "family": first.task.group,
                "metric": metric,
                "title": ranked.title(first, metric),
                "is_main": metric == main,
                "is_fraction": is_fraction(metric),
                "chance": _rounded(first.task.chance) if metric == main else None,
                "rows": rows,
                "values": [_rounded(record.metrics[metric]) for record in own],
                "errors": [_rounded(record.stderr.get(metric)) for record in own],
                "best": sorted(index[row] for row in best),
                "published": {"rows": [], "values": []},
            }
        )
    return columns


def _question(of_question: Mapping[int, Record], ranked: Ranked, shared: _Shared) -> dict[str, Any]:
    first = next(iter(of_question.values()))
    records = list(of_question.values())
    names, classes = _by_class(records)
    pack = {
        "rows": list(of_question),
        "setups": [_shared_setup(record, shared) for record in records],
        "trainings": [_shared_training(record, shared) for record in records],
        "environments": [_shared_environment(record, shared) for record in records],
        "seconds": [record.seconds for record in records],
        "created": [record.created for record in records],
        "n": [record.n for record in records],
        "commands": [command(record) for record in records],
        "notes": [record.notes for record in records],
        "details": [_details(record, has_classes=bool(names)) for record in records],
        "class_names": names,
    }
    return {
        "task": first.task.name,
        "title": ranked.title(first, first.task.main_metric),
        "family": first.task.group,
        "words": _question_words(first),
        "n": max(record.n for record in records),
        "class_score": next((BY_CLASS[key] for key in BY_CLASS if key in first.details), None),
        "records": _packed(pack),
        "classes": classes,
    }


def _question_words(record: Record) -> list[list[Any]]:
    """What was asked: what it is called and of which data first, then how."""
    stated = record.question.as_dict()
    first = ("task", "protocol", "dataset", "image", "class_names", "main_metric")
    order = [*first, *(name for name in stated if name not in first)]
    return in_words({name: stated[name] for name in order})


def _by_class(records: Sequence[Record]) -> tuple[list[str], str | None]:
    """The names of the classes, and the scores [records, classes] as a pack of 16-bit numbers.

    Nothing where the records do not name the same classes: each then keeps its own in its details.
    """
    names: list[str] | None = None
    packed = array("H")
    for record in records:
        own, scores = _class_scores(record)
        if not own or (names is not None and own != names):
            return [], None
        names = own
        packed.extend(NO_SCORE if score is None else round(10_000 * score) for score in scores)

    # the browser is told one order of bytes
    if sys.byteorder == "big":
        packed.byteswap()
    return names or [], _deflated(packed.tobytes())


def _class_scores(record: Record) -> tuple[list[str], list[float | None]]:
    """Names and fractions, None for a class without samples.

    Empty where the details say something else under these keys: a third party's task may.
    """
    for key in BY_CLASS:
        found = record.details.get(key)
        pairs = list(found.items()) if isinstance(found, dict) else found
        if not isinstance(pairs, list) or not pairs:
            continue
        if {type(pair) for pair in pairs} <= {tuple, list} and {len(pair) for pair in pairs} == {2}:
            names = [pair[0] for pair in pairs]
            scores = [pair[1] for pair in pairs]
            known = [score for score in scores if score is not None]
            are_names = {type(name) for name in names} == {str}
            are_numbers = {type(score) for score in known} <= {float, int}
            if are_names and are_numbers and all(0 <= end <= 1 for end in _ends(known)):
                return names, scores
    return [], []


def _ends(numbers: Sequence[float]) -> tuple[float, ...]:
    return (min(numbers), max(numbers)) if numbers else ()


def _details(record: Record, has_classes: bool) -> dict[str, Any]:
    """What else the task said, without what the table of classes shows."""
    details: dict[str, Any] = {}
    for key, value in record.details.items():
        if has_classes and key in BY_CLASS:
            continue
        text = json.dumps(value, ensure_ascii=False)
        if len(text) > LONGEST_DETAIL:
            value = f"{text[:LONGEST_DETAIL]}… ({len(text)} characters; the record has them all)"
        details[key] = value
    return details


def _shared_setup(record: Record, shared: _Shared) -> int:
    return shared.add(record.setup.hash, lambda: in_words(record.setup.as_dict()))


def _shared_training(record: Record, shared: _Shared) -> int | None:
    training = record.model.training
    if training is None:
        return None
    return shared.add(training, lambda: in_words(asdict(training)))


def _shared_environment(record: Record, shared: _Shared) -> int:
    return shared.add((record.code, record.env), lambda: _environment(record))


def _environment(record: Record) -> list[list[Any]]:
    """What a reader would need to run the same program on the same machine."""
    code = record.code
    state = " and changes that are in no commit" if code.dirty else ""
    commit = f"{code.commit[:12]}{state}" if code.commit else "not run from a checkout"
    about = {"silc-bench": code.version, "commit": commit}
    return [*in_words(about), *in_words(asdict(record.env))]


def command(record: Record) -> str:
    """The command that measures it again.

    The data folder is the reader's, and so is a file of prompts; defaults are left out.
    """
    words = ["silc-bench", "eval", "--ckpt", record.model.source, "--tasks", record.task.name]
    protocol, *changed = record.question.protocol.split("+")
    if protocol != "native":
        words += ["--protocol", protocol]

    # what was put in the place of a protocol's own stands in its name: a dense method, or prompts
    own_prompts = []
    for part in changed:
        if part.startswith("tokens:") or part in DENSE_METHODS:
            words += ["--dense-method", part]
        else:
            own_prompts = ["--prompts", "PROMPTS.json"]
    words += own_prompts
    words += ["--precision", record.setup.precision]
    if record.setup.feature_point not in USUAL_POINTS:
        words += ["--feature-point", record.setup.feature_point]
    if record.limit is not None:
        words += ["--limit", str(record.limit)]
    return " ".join(shlex.quote(word) for word in words) + " --data-root DATA"


def _add_published(
    columns: list[dict[str, Any]],
    reported: Sequence[ReportedRow],
    models: _Models,
    ids: _Ids,
    ranked: Ranked,
) -> None:
    """Published numbers beside the columns of the same task and metric, or in columns of their own.

    Their protocols are their own: they have no question, no rank and no error.
    """
    by_metric: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for column in columns:
        by_metric.setdefault((column["task"], column["metric"]), []).append(column)

    for row in reported:
        index = models.add_published(row)
        for task, metrics in row.values.items():
            for metric, value in metrics.items():
                if (task, metric) not in by_metric:
                    alone = _published_column(task, metric, ids, ranked)
                    by_metric[task, metric] = [alone]
                    columns.append(alone)
                for column in by_metric[task, metric]:
                    column["published"]["rows"].append(index)
                    column["published"]["values"].append(_rounded(value))


def _published_column(task: str, metric: str, ids: _Ids, ranked: Ranked) -> dict[str, Any]:
    family, title = ranked.published(task, metric)
    return {
        "id": ids.of(f"{task} {metric}"),
        "question": None,
        "task": task,
        "family": family,
        "metric": metric,
        "title": title,
        "is_main": True,
        "is_fraction": is_fraction(metric),
        "chance": None,
        "rows": [],
        "values": [],
        "errors": [],
        "best": [],
        "published": {"rows": [], "values": []},
    }


def _changes(
    changes: Mapping[str, Sequence[Difference] | Sequence[str]],
) -> list[dict[str, Any]]:
    tables = []
    for title, entries in changes.items():
        rows = [_difference(entry) for entry in entries if isinstance(entry, Difference)]
        names = [entry for entry in entries if isinstance(entry, str)]
        tables.append({"title": title, "rows": rows, "names": names})
    return tables


def _difference(change: Difference) -> list[Any]:
    numbers = (change.before, change.after, change.low, change.high)
    return [change.title, *(_rounded(number) for number in numbers)]


def _unranked(record: Record, reason: str, ranked: Ranked) -> list[Any]:
    metric = record.task.main_metric
    row = ranked.row(record)
    name = f"{row.model} {row.label}".strip()
    title = ranked.title(record, metric)
    value = _rounded(record.metrics[metric])
    return [name, row.revision[:8], title, value, is_fraction(metric), reason]


def _num_images(records: Sequence[Record]) -> int:
    """Of all splits that were scored, each counted once: the most that one of its tasks scored."""
    counts: dict[tuple[str, ...], int] = {}
    for record in records:
        data = record.dataset
        split = (data.name, data.split, data.fingerprint)
        counts[split] = max(counts.get(split, 0), record.n)
    return sum(counts.values())


def _library(library: Any) -> dict[str, str]:
    names = ("name", "version", "licence", "url")
    return {name: getattr(library, name) for name in names}


def _rounded(value: float | None) -> float | None:
    """Seven digits behind the point: more than any column shows, and half the bytes."""
    return None if value is None else round(value, 7)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts "acc1_5shot" before "acc1_10shot"."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdigit() else (0, part) for part in parts]


def _packed(value: Any) -> str:
    return _deflated(json.dumps(value, separators=(",", ":")).encode())


def _deflated(content: bytes) -> str:
    return base64.b64encode(zlib.compress(content, 6)).decode()
