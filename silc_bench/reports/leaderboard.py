"""Records -> tables, a page, and what self-distillation changed.

No torch; the same files always give the same bytes.

Flow: ``build("results")`` -> Board -> ``to_terminal``, ``to_markdown``, ``to_csv``, ``to_html``;
``write(board, out)`` makes the three files. Run: ``silc-bench leaderboard --results results --out
results``.

What never happens: an average over gaps; two protocols in one column unless asked for and then
marked; two datasets or task versions in one column; a limited, an outdated or a published number
among ranked ones.

What self-distillation changed: a SILC model against its contrastive-only twin, task by task. Twins
are found by name, ``preset-objective:branch``: "shapes_tiny-silc:student" and
"shapes_tiny-contrastive:student". They are compared only within a column of the leaderboard: same
data, same protocol.

One task may be measured in more than one way: ``with_variants`` says which values share a column,
``protocols_section`` where the ways differ.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import pandas as pd

from silc_bench.errors import UserError
from silc_bench.reports.tables import (
    Board,
    Cell,
    Change,
    Figure,
    Head,
    Section,
    Table,
    to_csv,
    to_html,
    to_markdown,
)
from silc_bench.results.published import ReportedRow, load_reported
from silc_bench.results.record import Record, load_all
from silc_bench.results.schema import is_fraction
from silc_bench.system.files import write_text_atomic

# headings in this order, then any others
GROUPS = ("zero-shot", "few-shot", "linear", "knn", "retrieval", "dense")
# in the tables, beside each main metric
SHOWN = r"(?:acc1|mIoU)(?:_.*)?|(?:image|text)_retrieval_recall@1"
COMPARED = r"(?:image|text)_retrieval_recall@1"  # between twins, beside each main metric

# what sets two rows apart, and two columns
ROW = ["model", "revision", "params", "image_size"]
COLUMN = ["task", "metric", "variant", "fingerprint"]

# the fields of a score, in the order of leaderboard.csv, and where a record has them
FIELDS = {
    "kind": "",
    "group": "task.group",
    "task": "task.name",
    "metric": "",
    "model": "model.name",
    "revision": "model.revision",
    "protocol": "",
    "fingerprint": "dataset.fingerprint",
    "precision": "env.precision",
    "device": "env.device",
    "is_main": "",
    "value": "",
    "stderr": "",
    "chance": "",
    "params": "model.params",
    "image_size": "model.image_size",
    "n": "n",
    "limit": "limit",
    "version": "task.version",
    "seconds": "seconds",
    "commit": "code.commit",
    "source": "source",
    "where": "",
    "note": "",
}
WHOLE_NUMBERS = ["params", "image_size", "n", "limit", "version"]

# what never ranks: the heading, why, and the field that sets it apart
LISTED = {
    "limited": (
        "Limited runs",
        "Run with `--limit`: quick looks at part of the data."
        " They never rank and share no column with whole runs.",
        "limit",
    ),
    "outdated": (
        "Outdated",
        "Measured by an older version of their task, which gives other numbers today."
        " They never rank; the same `silc-bench eval` measures them anew.",
        "version",
    ),
}
NOTE = (
    "SILC minus its contrastive-only twin, in points. The standard error is the root of the two"
    " summed squares, as if the two were independent; the interval is ±1.96 of it, for each task"
    " alone (no correction for several tasks). It covers the finite test set, not the spread"
    " between training seeds."
)
_TWIN = re.compile(r"(?P<preset>.+)-(?P<objective>contrastive|silc)(?P<branch>:.+)?")


def build(
    results_dir: Path,
    *,
    across_protocols: bool = False,
    current_version: Callable[[str], int | None] = lambda task: None,
) -> Board:
    """Read every record and published row below ``results_dir``, and the images of its page.

    The images are the ``*.png`` and ``*.svg`` of ``results_dir/pictures``, each with an optional
    caption in a ``.txt`` beside it.

    Args:
        across_protocols: one column a task, whatever the protocols; each value is marked with its
            own, and none is called best.
        current_version: of a task, as the program has it today; records of an older one never rank.

    Raises:
        UserError: no such folder, a damaged file (named), or nothing at all to show.
    """
    results_dir = Path(results_dir)
    records = load_all(results_dir)
    reported = load_reported(results_dir / "reported")
    if not records and not reported:
        raise no_records(results_dir)

    scores = _scores(records, reported, current_version)
    ranked = scores[scores.kind == "ranked"]
    ranked = ranked.sort_values(["group", "task"], key=_heading_order, kind="stable")
    ranked = with_variants(ranked, across_protocols)

    changes = change_tables(_with_main(ranked, COMPARED))
    protocols = {record.protocol["hash"]: record.protocol for record in records}
    sections = [
        _measured(_with_main(ranked, SHOWN)),
        Section("What self-distillation changed", NOTE, changes),
        Section("Images", "", images=_images(results_dir / "pictures")),
        *(_listed(kind, scores[scores.kind == kind]) for kind in LISTED),
        protocols_section(ranked, protocols),
        _reported(scores[scores.kind == "reported"], ranked),
    ]

    # the first section stays even if it is empty: it then says how to measure
    shown = [part for part in sections if part.tables or part.images or part is sections[0]]
    return Board(tuple(shown), scores)


def no_records(results_dir: Path) -> UserError:
    """The error of a folder that holds nothing to show."""
    fix = f"`silc-bench eval --results {results_dir}` writes some"
    return UserError("holds no records", about=results_dir, fix=fix)


def write(board: Board, out_dir: Path) -> list[Path]:
    """``leaderboard.md``, ``.csv`` and ``.html`` in ``out_dir``, each whole or not at all."""
    texts = {"md": to_markdown(board), "csv": to_csv(board), "html": to_html(board)}
    paths = [Path(out_dir) / f"leaderboard.{ending}" for ending in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        write_text_atomic(path, text)
    return paths


def _scores(
    records: Sequence[Record],
    reported: Sequence[ReportedRow],
    current_version: Callable[[str], int | None],
) -> pd.DataFrame:
    """One row per record and metric.

    ``kind``: ranked, limited, outdated (an older task version) or reported.

    The newest version of a task is that of the program or of a whole run, whichever is higher.
    """
    newest = {name: current_version(name) or 0 for name in {record.task.name for record in records}}
    for record in records:
        if record.limit is None:
            newest[record.task.name] = max(record.task.version, newest[record.task.name])

    rows: list[dict[str, Any]] = []
    for record in records:
        if record.limit is not None:
            kind = "limited"
        elif record.task.version == newest[record.task.name]:
            kind = "ranked"
        else:
            kind = "outdated"

        # a record that was typed in from a publication is never ranked, whatever it says
        change = {"kind": kind}
        if record.source != "measured":
            change = {"kind": "reported", "group": "records"}
        rows += [{**_score(record, metric), **change} for metric in record.metrics]
    for row in reported:
        shared = {name: getattr(row, name) for name in ("model", "params", "where", "note")}
        shared |= {"kind": "reported", "group": row.collection, "is_main": False}
        for task, metrics in row.values.items():
            for metric, value in metrics.items():
                score = {"task": task, "metric": metric, "value": value}
                rows.append({**shared, **score, "source": f"reported({row.url})"})

    # Int64 is the integer of pandas that can be missing: published rows have no n
    return pd.DataFrame(rows, columns=list(FIELDS)).astype(dict.fromkeys(WHOLE_NUMBERS, "Int64"))


def _score(record: Record, metric: str) -> dict[str, Any]:
    """The fields of one metric; a chance is known of the main metric alone."""
    is_main = metric == record.task.main_metric
    return {
        **{name: attrgetter(place)(record) for name, place in FIELDS.items() if place},
        "metric": metric,
        "protocol": record.protocol["hash"],
        "is_main": is_main,
        "value": record.metrics[metric],
        "stderr": record.stderr.get(metric),
        "chance": record.task.chance if is_main else None,
        "where": "",
        "note": "",
    }


def _measured(ranked: pd.DataFrame) -> Section:
    if ranked.empty:
        return Section("Measured here", "Nothing yet: `silc-bench eval` measures a model.")

    # two revisions of one name are two models
    num_models = ranked.groupby(["model", "revision"]).ngroups
    counts = f"{_counted(num_models, 'model')}, {_counted(ranked.task.nunique(), 'task')}"
    note = (
        f"{counts}. Percent ± one standard error; **bold** is the best of a column,"
        " an empty cell was not measured."
    )
    by_group = ranked.groupby("group", sort=False)
    tables = tuple(_ranking(str(group), part) for group, part in by_group)
    return Section("Measured here", note, tables)


def _heading_order(names: pd.Series) -> pd.Series:
    """A key for ``sort_values``: the position in GROUPS, then the name."""
    return names.map(lambda name: (GROUPS.index(name) if name in GROUPS else len(GROUPS), name))


def _with_main(scores: pd.DataFrame, others: str) -> pd.DataFrame:
    """The main metrics, and those whose whole name matches the pattern ``others``."""
    return scores[scores.is_main.astype(bool) | scores.metric.str.fullmatch(others)]


def _ranking(group: str, part: pd.DataFrame) -> Table:
    """Rows in the order of the first column's values, then of the second's ...; gaps last.

    Equal rows stand by name.
    """
    # columns by task, the main metric first, then "5shot" before "10shot"
    by_column = dict(iter(part.groupby(COLUMN)))
    is_main = {column: own.is_main.iloc[0] for column, own in by_column.items()}
    columns = sorted(
        is_main, key=lambda column: (column[0], not is_main[column], _natural(column[1]), column)
    )
    lower_is_better = [not is_fraction(metric) for _, metric, *_ in columns]

    # sorted by name first: a stable sort by values then leaves equal rows in the order of names
    wide = part.pivot(index=ROW, columns=COLUMN, values="value").sort_index()
    wide = wide.sort_values(columns, ascending=lower_is_better, kind="stable")

    heads = [*_names("model"), Head("params"), Head("px")]
    cells: dict[tuple[tuple, tuple], Cell] = {}
    for column, is_low_best in zip(columns, lower_is_better, strict=True):
        own = by_column[column]
        heads.append(_ranked_head(column, own, part))

        # no best of a single value, nor under different protocols (an empty variant)
        best = None
        if len(own) >= 2 and column[2] != "":
            best = own.value.min() if is_low_best else own.value.max()
        for score in own.itertuples():
            row = tuple(getattr(score, name) for name in ROW)
            cells[row, column] = _ranked_cell(score, is_best=score.value == best)

    rows = []
    for row in wide.index:
        model, revision, params, image_size = row
        named = (Cell(model, f"@{revision[:8]}"), Cell(_count(params)), Cell(str(image_size)))
        rows.append((*named, *(cells.get((row, column), Cell()) for column in columns)))
    return Table(group, tuple(heads), tuple(rows))


def _ranked_head(column: tuple[str, ...], own: pd.DataFrame, part: pd.DataFrame) -> Head:
    task, metric, variant, fingerprint = column
    details = [metric]

    # protocols that share a column can differ in their chance
    chances = sorted({_percent(chance, metric) for chance in own.chance.dropna()})
    if chances:
        details.append(f"chance {'–'.join(chances)}")

    # what is the same for all columns of a task is not said
    variants = part[part.task == task]
    if variants.protocol.nunique() > 1:
        details.append(f"protocol {variant[:8]}" if variant else "protocols differ (#)")
    if variants.fingerprint.nunique() > 1:
        details.append(f"data {fingerprint[:8]}")
    return Head(task, tuple(details))


def _ranked_cell(score: Any, is_best: bool) -> Cell:
    # the bar behind the number: from chance to perfect, so that a guess has no bar
    share = None
    if is_fraction(score.metric):
        chance = score.chance if score.is_main else 0.0
        share = min(max((score.value - chance) / (1 - chance), 0.0), 1.0) if chance < 1 else None

    hint = (
        f"n = {score.n}, {score.precision},"
        f" protocol {score.protocol[:8]}, data {score.fingerprint[:8]}"
    )
    cell = _value(score, "" if score.variant else f" #{score.protocol[:8]}")
    return replace(cell, is_best=is_best, share=share, hint=hint)


def _listed(kind: str, scores: pd.DataFrame) -> Section:
    """The main metric of each record in a row of its own, with what sets it apart."""
    title, note, field = LISTED[kind]
    heads = [*_names("model", "task", "metric"), Head("value"), Head(field)]

    # astype, because the column of an empty table is no bool and cannot be a mask
    main_scores = scores[scores.is_main.astype(bool)]
    rows: list[tuple[Cell, ...]] = []
    for score in main_scores.sort_values(["task", *ROW, field], kind="stable").itertuples():
        number = Cell(str(getattr(score, field)))
        rows.append((_model(score), Cell(score.task), Cell(score.metric), _value(score), number))

    # without a table the section is not shown
    tables = (Table(kind, tuple(heads), tuple(rows)),) if rows else ()
    return Section(title, note, tables)


def _reported(reported: pd.DataFrame, ranked: pd.DataFrame) -> Section:
    """Tables of published numbers; below them what was measured here of the same columns."""
    note = (
        "What others published, under their own protocols: not measured here, never ranked with"
        " the tables above. What was measured here of the same tasks stands below in the same"
        " columns, marked."
    )

    # a table for each family of each source file: other metrics, other columns
    family = reported.task.str.split("/").str[1]
    tables = []
    for (collection, name), part in reported.groupby(["group", family]):
        columns = sorted(set(zip(part.task, part.metric, strict=True)))
        heads = [*_names("model"), Head("params")]
        heads += [Head(task.split("/")[0], (metric,)) for task, metric in columns]
        heads += _names("source", "note")

        # each value bears its protocol, and a second one has a second row
        ours = ranked.merge(pd.DataFrame(columns, columns=["task", "metric"]))
        second = ours.groupby(["model", "revision", "task", "metric"]).cumcount()
        of_papers = part.groupby(["model", "source"], sort=False)
        of_ours = ours.groupby(["model", "revision", second])
        rows = [_row(scores, columns) for _, scores in (*of_papers, *of_ours)]
        tables.append(Table(f"published ({collection}): {name}", tuple(heads), tuple(rows)))
    return Section("Published numbers", note, tuple(tables), is_reference=True)


def _row(scores: pd.DataFrame, columns: Sequence[tuple[str, str]]) -> tuple[Cell, ...]:
    """Of one publication or of one model measured here."""
    first = scores.iloc[0]
    by_column = {(score.task, score.metric): score for score in scores.itertuples()}
    if first.kind == "ranked":
        model, ending = _model(first), (Cell("measured here"), Cell())
    else:
        # where in the publication, as a link to it
        url = first.source.removeprefix("reported(").removesuffix(")")
        model, ending = Cell(first.model), (Cell(first["where"] or url, url=url), Cell(first.note))

    cells = [model, Cell(_count(first.params))]
    for column in columns:
        score = by_column.get(column)
        mark = f" #{score.protocol[:8]}" if score and first.kind == "ranked" else ""
        cells.append(_value(score, mark) if score else Cell())
    return (*cells, *ending)


def _images(folder: Path) -> tuple[Figure, ...]:
    """The drawings of a folder, by name, embedded as data: the page needs no other file."""
    types = {".png": "image/png", ".svg": "image/svg+xml"}
    images = []
    for path in sorted(path for path in Path(folder).glob("*") if path.suffix in types):
        caption = path.with_suffix(".txt")
        text = caption.read_text(encoding="utf-8").strip() if caption.exists() else ""

        data = base64.b64encode(path.read_bytes()).decode()
        url = f"data:{types[path.suffix]};base64,{data}"
        images.append(Figure(path.stem.replace("_", " "), text, url))
    return tuple(images)


def _names(*texts: str) -> list[Head]:
    """Heads of columns that hold no numbers."""
    return [Head(text, is_numeric=False) for text in texts]


def _model(score: Any) -> Cell:
    return Cell(score.model, f"@{score.revision[:8]}")


def _value(score: Any, mark: str = "") -> Cell:
    """The value, its standard error and a mark."""
    error = ""
    if not pd.isna(score.stderr):
        error = f" ±{_percent(score.stderr, score.metric)}"
    return Cell(_percent(score.value, score.metric), error + mark)


def _percent(value: float, metric: str) -> str:
    """A fraction in percent, a rank as it is."""
    return f"{100 * value if is_fraction(metric) else value:.1f}"


def _count(params: Any) -> str:
    """Parameters as "86.2 M", "" where nobody counted them."""
    if pd.isna(params):
        return ""
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if params >= size:
            return f"{params / size:.3g} {unit}"
    return str(params)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts "acc1_5shot" before "acc1_10shot"."""
    parts = re.split(r"(\d+)", name)
    return [(int(part or 0), "") if part.isdigit() else (0, part) for part in parts]


def change_tables(ranked: pd.DataFrame) -> tuple[Table, ...]:
    """One table a pair of twins.

    Where several revisions bear one twin's name, the table lists them instead: which to pair is not
    ours to guess.
    """
    twins: dict[tuple[str, str], dict[str, list[tuple[str, str]]]] = {}
    for model, revision in sorted(set(zip(ranked.model, ranked.revision, strict=True))):
        match = _TWIN.fullmatch(model)
        if match:
            pair = (match["preset"], match["branch"] or "")
            twin = twins.setdefault(pair, {"contrastive": [], "silc": []})
            twin[match["objective"]].append((model, revision))

    tables = []
    for (preset, branch), twin in sorted(twins.items()):
        contrastive = twin["contrastive"]
        silc = twin["silc"]
        if len(contrastive) == len(silc) == 1:
            changes = tuple(_changes(ranked, contrastive[0], silc[0]))
            # twins that share no column have nothing to show
            if changes:
                tables.append(_table(f"{preset}{branch}", changes))

        elif contrastive and silc:
            rows = [(Cell(name, f"@{revision[:8]}"),) for name, revision in contrastive + silc]
            title = f"{preset}{branch}: not compared, several models bear one name"
            tables.append(Table(title, tuple(_names("model")), tuple(rows)))
    return tuple(tables)


def _changes(ranked: pd.DataFrame, before: tuple[str, str], after: tuple[str, str]) -> list[Change]:
    """The columns that both have, in the order of the first; ranks are no points, and left out."""
    fractions = ranked[ranked.metric.map(is_fraction).astype(bool)]
    old, new = (
        fractions[(fractions.model == model) & (fractions.revision == revision)]
        for model, revision in (before, after)
    )
    both = old.merge(new, on=["task", "metric", "protocol", "fingerprint"], suffixes=("", "_new"))

    changes = []
    for pair in both.itertuples():
        # as if independent: what two models share of the test set makes the truth smaller
        stderr = math.hypot(pair.stderr, pair.stderr_new)
        known_stderr = None if math.isnan(stderr) else stderr
        changes.append(Change(pair.task, pair.metric, pair.value, pair.value_new, known_stderr))
    return changes


def _table(title: str, changes: tuple[Change, ...]) -> Table:
    heads = [
        *_names("task", "metric"),
        *(Head("contrastive"), Head("silc"), Head("difference", ("points",))),
        Head("95 % interval", ("excludes 0?",), is_numeric=False),
    ]
    rows: list[tuple[Cell, ...]] = []
    for change in changes:
        error = "" if change.stderr is None else f" ±{100 * change.stderr:.1f}"
        difference = Cell(f"{100 * change.difference:+.1f}", error)
        values = [Cell(f"{100 * value:.1f}") for value in (change.contrastive, change.silc)]
        texts = (Cell(change.task), Cell(change.metric), *values)
        rows.append((*texts, difference, Cell(change.verdict)))
    return Table(title, tuple(heads), tuple(rows), changes)


def with_variants(ranked: pd.DataFrame, across_protocols: bool) -> pd.DataFrame:
    """The scores with a field ``variant``: what a column holds apart.

    It is the protocol, or "" where several may meet because every model has one value.
    """
    columns = ["task", "fingerprint"]
    has_several = ranked.groupby(columns).protocol.transform("nunique") > 1

    # of a model with two values in one column neither could be left out: such columns stay apart
    per_model = ranked.groupby([*columns, "model", "revision"]).protocol.transform("nunique")
    most = per_model.groupby([ranked.task, ranked.fingerprint]).transform("max")
    may_meet = has_several & (most == 1) & across_protocols
    return ranked.assign(variant=ranked.protocol.where(~may_meet, ""))


def protocols_section(ranked: pd.DataFrame, protocols: Mapping[str, dict[str, Any]]) -> Section:
    """Where one task has several columns: the fields of protocol and dataset that differ."""
    tables = []
    for task, part in ranked.groupby("task"):
        variants = sorted(set(zip(part.protocol, part.fingerprint, strict=True)))
        if len(variants) < 2:
            continue

        fields = []
        for protocol, data in variants:
            fields.append({**flat_fields(protocols[protocol]), "dataset.fingerprint": data})
        names = sorted(set().union(*fields))
        differing = [name for name in names if len({field.get(name) for field in fields}) > 1]

        # what all of them share says nothing about the difference
        heads = _names("field")
        for protocol, data in variants:
            details = (f"data {data[:8]}",)
            heads.append(Head(f"protocol {protocol[:8]}", details, is_numeric=False))
        rows: list[tuple[Cell, ...]] = []
        for name in differing:
            rows.append((Cell(name), *(Cell(field.get(name, "")) for field in fields)))
        tables.append(Table(str(task), tuple(heads), tuple(rows)))
    note = (
        "One task measured in more than one way: not to be compared without a thought."
        " This is where they differ."
    )
    return Section("Protocols that differ", note, tuple(tables))


def flat_fields(value: Any, prefix: str = "") -> dict[str, str]:
    """A protocol as dotted fields with printable values, its hash left out.

    Long values become their length and a hash.
    """
    if isinstance(value, dict):
        fields: dict[str, str] = {}
        for key, item in value.items():
            # the hash follows from the fields: it says nothing of its own
            if prefix or key != "hash":
                fields |= flat_fields(item, f"{prefix}.{key}" if prefix else key)
        return fields

    text = json.dumps(value)
    if len(text) > 60:
        unit = "entries" if isinstance(value, list) else "characters"
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        text = f"{len(value)} {unit}, {digest}"
    return {prefix: text}
