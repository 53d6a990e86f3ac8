"""Records -> tables, a page, and what self-distillation changed.

No torch; the same files always give the same bytes.

Flow: ``build("results")`` -> Board -> ``to_terminal``, ``to_markdown``, ``to_csv``, ``to_html``;
``write(board, out)`` makes the three files. Run: ``silc-bench leaderboard --results results --out
results``.

What never happens: an average over gaps; two protocols in one column unless asked for and then
marked; two datasets or task versions in one column; a limited, an outdated or a published number
among ranked ones.

What self-distillation changed: a SILC model against its contrastive-only twin, task by task (no
torch).

Twins are found by name, ``preset-objective:branch``: "shapes_tiny-silc:student" and
"shapes_tiny-contrastive:student". They are compared only within a column of the leaderboard: same
data, same protocol.

One task measured in more than one way: which values may share a column, and where the ways differ
(no torch).
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from silc_bench.errors import UserError
from silc_bench.reports.tables import (
    Board,
    Cell,
    Change,
    Head,
    Picture,
    Section,
    Table,
    to_csv,
    to_html,
    to_markdown,
    to_terminal,
)
from silc_bench.results.published import ReportedRow, load_reported
from silc_bench.results.record import Record, load_all
from silc_bench.results.schema import is_fraction
from silc_bench.system.files import write_text_atomic

__all__ = ["Board", "build", "to_csv", "to_html", "to_markdown", "to_terminal", "write"]
GROUPS = (
    "zero-shot",
    "few-shot",
    "linear",
    "knn",
    "retrieval",
    "dense",
)  # headings in this order, then any others
# in the tables, beside each main metric
SHOWN = r"(?:acc1|mIoU)(?:_.*)?|(?:image|text)_retrieval_recall@1"
COMPARED = r"(?:image|text)_retrieval_recall@1"  # between twins, beside each main metric
ROW = ["model", "revision", "params", "image_size"]
COLUMN = ["task", "metric", "variant", "fingerprint"]


def build(
    results_dir: Path,
    pictures: Path | None = None,
    *,
    across_protocols: bool = False,
    current_version: Callable[[str], int | None] = lambda task: None,
) -> Board:
    """Read every record, published row and picture below ``results_dir``.

    Args:
        pictures: folder of ``*.png`` and ``*.svg``, each with an optional caption in a ``.txt``
        beside it; ``results_dir/pictures`` if not given.
        across_protocols: one column a task, whatever the protocols; each value is marked with its
        own, and none is called best.

    Raises:
        UserError: no such folder, a damaged file (named), or nothing at all to show.
    """
    results_dir = Path(results_dir)
    records = load_all(results_dir)
    reported = load_reported(results_dir / "reported")
    if not records and not reported:
        raise UserError(
            f"no records in {results_dir}; `silc-bench eval --results {results_dir}` writes them"
        )
    scores = _scores(records, reported, current_version)
    ranked = scores[scores.kind == "ranked"].sort_values(
        ["group", "task"], key=_heading_order, kind="stable"
    )
    ranked = with_variants(ranked, across_protocols)
    protocols = {record.protocol["hash"]: record.protocol for record in records}
    sections = [
        _measured(_with_main(ranked, SHOWN)),
        Section(
            "What self-distillation changed", NOTE, change_tables(_with_main(ranked, COMPARED))
        ),
        Section("Pictures", "", pictures=_pictures(pictures or results_dir / "pictures")),
        _limited(scores[scores.kind == "limited"]),
        _outdated(scores[scores.kind == "outdated"]),
        protocols_section(ranked, protocols),
        _reported(scores[scores.kind == "reported"], ranked),
    ]
    return Board(
        tuple(part for part in sections if part.tables or part.pictures or part is sections[0]),
        scores,
    )


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
    newest = {record.task.name: current_version(record.task.name) or 0 for record in records}
    for record in records:
        if record.limit is None:
            newest[record.task.name] = max(record.task.version, newest[record.task.name])
    rows: list[dict[str, Any]] = []
    for record in records:
        is_newest = record.task.version == newest[record.task.name]
        kind = "limited" if record.limit is not None else "ranked" if is_newest else "outdated"
        change = (
            {"kind": kind}
            if record.source == "measured"
            else {"kind": "reported", "group": "records"}
        )
        rows += [{**_score(record, metric), **change} for metric in record.metrics]
    for row in reported:
        shared = {
            "kind": "reported",
            "group": row.collection,
            "model": row.model,
            "params": row.params,
        }
        shared |= {
            "source": f"reported({row.url})",
            "where": row.where,
            "note": row.note,
            "is_main": False,
        }
        for task, metrics in row.values.items():
            rows += [
                {**shared, "task": task, "metric": metric, "value": value}
                for metric, value in metrics.items()
            ]
    whole = ["params", "image_size", "n", "limit", "version"]
    words = [
        "kind",
        "group",
        "task",
        "metric",
        "model",
        "revision",
        "protocol",
        "fingerprint",
        "precision",
        "device",
    ]
    columns = [
        *words,
        "is_main",
        "value",
        "stderr",
        "chance",
        *whole,
        "seconds",
        "commit",
        "source",
        "where",
        "note",
    ]
    return pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(whole, "Int64"))


def _score(record: Record, metric: str) -> dict[str, Any]:
    is_main = metric == record.task.main_metric
    return {
        "group": record.task.group, "task": record.task.name, "version": record.task.version,
        "metric": metric, "is_main": is_main, "value": record.metrics[metric], "stderr": record.stderr.get(metric),
        "chance": record.task.chance if is_main else None, "n": record.n, "limit": record.limit,
        "model": record.model.name, "revision": record.model.revision, "params": record.model.params,
        "image_size": record.model.image_size, "protocol": record.protocol["hash"],
        "fingerprint": record.dataset.fingerprint, "precision": record.env.precision, "device": record.env.device,
        "seconds": record.seconds, "commit": record.code.commit, "source": record.source, "where": "", "note": "",
    }  # fmt: skip


def _measured(ranked: pd.DataFrame) -> Section:
    if ranked.empty:
        return Section("Measured here", "Nothing yet: `silc-bench eval` measures a model.")
    counts = f"{_counted(ranked.groupby(['model', 'revision']).ngroups, 'model')}, {_counted(ranked.task.nunique(), 'task')}"
    note = f"{counts}. Percent ± one standard error; **bold** is the best of a column, an empty cell was not measured."
    tables = tuple(
        _ranking(str(group), part) for group, part in ranked.groupby("group", sort=False)
    )
    return Section("Measured here", note, tables)


def _heading_order(names: pd.Series) -> pd.Series:
    return names.map(lambda name: (GROUPS.index(name) if name in GROUPS else len(GROUPS), name))


def _with_main(scores: pd.DataFrame, others: str) -> pd.DataFrame:
    return scores[scores.is_main.astype(bool) | scores.metric.str.fullmatch(others)]


def _ranking(group: str, part: pd.DataFrame) -> Table:
    """Rows in the order of the first column's values, then of the second's ...; gaps last.

    Equal rows stand by name.
    """
    scores = {
        (tuple(getattr(s, c) for c in ROW), tuple(getattr(s, c) for c in COLUMN)): s
        for s in part.itertuples()
    }
    is_main = {column: score.is_main for (_, column), score in scores.items()}
    columns = sorted(
        is_main, key=lambda column: (column[0], not is_main[column], _natural(column[1]), column)
    )
    lower_is_better = [not is_fraction(metric) for _, metric, *_ in columns]
    wide = part.pivot(index=ROW, columns=COLUMN, values="value").sort_index()
    wide = wide.sort_values(columns, ascending=lower_is_better, kind="stable")
    heads = [Head("model", is_numeric=False), Head("params"), Head("px")]
    best: dict[tuple, float | None] = {}
    for column, low in zip(columns, lower_is_better, strict=True):
        values = wide[column].dropna()
        is_mixed = column[2] == ""  # under different protocols no value is better than another
        best[column] = (
            None if len(values) < 2 or is_mixed else values.min() if low else values.max()
        )
        heads.append(
            _ranked_head(
                column, [score for (_, other), score in scores.items() if other == column], part
            )
        )
    rows = []
    for row in wide.index:
        model, revision, params, image_size = row
        cells = [Cell(model, f"@{revision[:8]}"), Cell(_count(params)), Cell(str(image_size))]
        for column in columns:
            score = scores.get((row, column))
            cells.append(
                Cell()
                if score is None
                else _ranked_cell(score, is_best=score.value == best[column])
            )
        rows.append(tuple(cells))
    return Table(group, tuple(heads), tuple(rows))


def _ranked_head(
    column: tuple[str, str, str, str], scores: Sequence[Any], part: pd.DataFrame
) -> Head:
    task, metric, variant, fingerprint = column
    details = [metric]
    chances = sorted({_percent(score.chance, metric) for score in scores if score.is_main})
    if chances:
        details.append(f"chance {'–'.join(chances)}")
    variants = part[part.task == task]
    if variants.protocol.nunique() > 1:
        details.append(f"protocol {variant[:8]}" if variant else "protocols differ (#)")
    if variants.fingerprint.nunique() > 1:
        details.append(f"data {fingerprint[:8]}")
    return Head(task, tuple(details))


def _ranked_cell(score: Any, is_best: bool) -> Cell:
    share = None
    if is_fraction(score.metric):
        chance = score.chance if score.is_main else 0.0
        share = min(max((score.value - chance) / (1 - chance), 0.0), 1.0) if chance < 1 else None
    hint = f"n = {score.n}, {score.precision}, protocol {score.protocol[:8]}, data {score.fingerprint[:8]}"
    mark = "" if score.variant else f" #{score.protocol[:8]}"
    return Cell(
        _percent(score.value, score.metric), _plus_minus(score) + mark, is_best, share, hint
    )


def _limited(limited: pd.DataFrame) -> Section:
    note = "Run with `--limit`: quick looks at part of the data. They never rank and share no column with whole runs."
    return _listed("Limited runs", note, "limited", limited, "limit")


def _outdated(outdated: pd.DataFrame) -> Section:
    note = (
        "Measured by an older version of their task, which gives other numbers today. They never rank; the same `silc-bench"
        " eval` measures them anew."
    )
    return _listed("Outdated", note, "outdated", outdated, "version")


def _listed(title: str, note: str, name: str, scores: pd.DataFrame, field: str) -> Section:
    """The main metric of each record in a row of its own, with what sets it apart."""
    heads = [
        Head("model", is_numeric=False),
        Head("task", is_numeric=False),
        Head("metric", is_numeric=False),
    ]
    rows = tuple(
        (
            Cell(score.model, f"@{score.revision[:8]}"),
            Cell(score.task),
            Cell(score.metric),
            Cell(_percent(score.value, score.metric), _plus_minus(score)),
            Cell(str(getattr(score, field))),
        )
        for score in scores[scores.is_main.astype(bool)]
        .sort_values(["task", *ROW, field], kind="stable")
        .itertuples()
    )
    tables = (Table(name, (*heads, Head("value"), Head(field)), rows),) if rows else ()
    return Section(title, note, tables)


def _reported(reported: pd.DataFrame, ranked: pd.DataFrame) -> Section:
    """Tables of published numbers; below them what was measured here of the same columns."""
    note = (
        "What others published, under their own protocols: not measured here, never ranked with the tables above. What was"
        " measured here of the same tasks stands below in the same columns, marked."
    )
    family = reported.task.str.split("/").str[1]
    tables = []
    for (collection, name), part in reported.groupby(["group", family]):
        columns = sorted(set(zip(part.task, part.metric, strict=True)))
        heads = [Head("model", is_numeric=False), Head("params")]
        heads += [Head(task.split("/")[0], (metric,)) for task, metric in columns]
        heads += [Head("source", is_numeric=False), Head("note", is_numeric=False)]
        rows = []
        for (model, source), scores in part.groupby(["model", "source"], sort=False):
            values = {
                (score.task, score.metric): _percent(score.value, score.metric)
                for score in scores.itertuples()
            }
            first = scores.iloc[0]
            cells = [
                Cell(model),
                Cell(_count(first.params)),
                *(Cell(values.get(column, "")) for column in columns),
            ]
            url = source.removeprefix("reported(").removesuffix(")")
            rows.append((*cells, Cell(first["where"] or url, url=url), Cell(first.note)))
        rows += _measured_beside(ranked, columns)
        tables.append(Table(f"published ({collection}): {name}", tuple(heads), tuple(rows)))
    return Section("Published numbers", note, tuple(tables), is_reference=True)


def _measured_beside(
    ranked: pd.DataFrame, columns: Sequence[tuple[str, str]]
) -> list[tuple[Cell, ...]]:
    """A row for each model measured in one of the columns.

    Each value bears its protocol, and a second one has a second row.
    """
    is_ours = pd.Series(
        [column in columns for column in zip(ranked.task, ranked.metric, strict=True)],
        ranked.index,
        dtype=bool,
    )
    rows = []
    for (model, revision), scores in ranked[is_ours].groupby(["model", "revision"]):
        ways = {
            column: [s for s in scores.itertuples() if (s.task, s.metric) == column]
            for column in columns
        }
        for number in range(max(map(len, ways.values()))):
            cells = [Cell(model, f"@{revision[:8]}"), Cell(_count(scores.iloc[0].params))]
            for column in columns:
                score = ways[column][number] if number < len(ways[column]) else None
                detail = "" if score is None else f"{_plus_minus(score)} #{score.protocol[:8]}"
                cells.append(
                    Cell("" if score is None else _percent(score.value, score.metric), detail)
                )
            rows.append((*cells, Cell("measured here"), Cell()))
    return rows


def _pictures(folder: Path) -> tuple[Picture, ...]:
    types = {".png": "image/png", ".svg": "image/svg+xml"}
    pictures = []
    for path in sorted(path for path in Path(folder).glob("*") if path.suffix in types):
        caption = path.with_suffix(".txt")
        text = caption.read_text(encoding="utf-8").strip() if caption.exists() else ""
        data = base64.b64encode(path.read_bytes()).decode()
        pictures.append(
            Picture(path.stem.replace("_", " "), text, f"data:{types[path.suffix]};base64,{data}")
        )
    return tuple(pictures)


def _percent(value: float, metric: str) -> str:
    return f"{100 * value if is_fraction(metric) else value:.1f}"


def _plus_minus(score: Any) -> str:
    return "" if pd.isna(score.stderr) else f" ±{_percent(score.stderr, score.metric)}"


def _count(params: Any) -> str:
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
    return [
        (int(part or 0), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)
    ]


_TWIN = re.compile(r"(?P<preset>.+)-(?P<objective>contrastive|silc)(?P<branch>:.+)?")
NOTE = (
    "SILC minus its contrastive-only twin, in points. The standard error is the root of the two summed squares, as if the "
    "two were independent; the interval is ±1.96 of it, for each task alone (no correction for several tasks). It covers "
    "the finite test set, not the spread between training seeds."
)


def change_tables(ranked: pd.DataFrame) -> tuple[Table, ...]:
    """One table a pair of twins.

    Where several revisions bear one twin's name, the table lists them instead: which to pair is not
    ours to guess.
    """
    twins: dict[tuple[str, str], dict[str, list[tuple[str, str]]]] = {}
    for model, revision in sorted(set(zip(ranked.model, ranked.revision, strict=True))):
        if match := _TWIN.fullmatch(model):
            found = twins.setdefault(
                (match["preset"], match["branch"] or ""), {"contrastive": [], "silc": []}
            )
            found[match["objective"]].append((model, revision))
    tables = []
    for (preset, branch), found in sorted(twins.items()):
        if len(found["contrastive"]) == len(found["silc"]) == 1:
            changes = tuple(_changes(ranked, found["contrastive"][0], found["silc"][0]))
            if changes:
                tables.append(_table(f"{preset}{branch}", changes))
        elif found["contrastive"] and found["silc"]:
            rows = tuple(
                (Cell(model, f"@{revision[:8]}"),)
                for model, revision in found["contrastive"] + found["silc"]
            )
            title = f"{preset}{branch}: not compared, several models bear one name"
            tables.append(Table(title, (Head("model", is_numeric=False),), rows))
    return tuple(tables)


def _changes(ranked: pd.DataFrame, before: tuple[str, str], after: tuple[str, str]) -> list[Change]:
    def scores(model: str, revision: str) -> dict[tuple, Any]:
        part = ranked[(ranked.model == model) & (ranked.revision == revision)]
        return {
            (s.task, s.metric, s.protocol, s.fingerprint): s
            for s in part.itertuples()
            if is_fraction(s.metric)
        }

    old, new = scores(*before), scores(*after)
    changes = []
    for column in [column for column in old if column in new]:
        a, b = old[column], new[column]
        stderr = None if pd.isna(a.stderr) or pd.isna(b.stderr) else math.hypot(a.stderr, b.stderr)
        changes.append(Change(a.task, a.metric, a.value, b.value, stderr))
    return changes


def _table(title: str, changes: tuple[Change, ...]) -> Table:
    heads = (
        Head("task", is_numeric=False),
        Head("metric", is_numeric=False),
        Head("contrastive"),
        Head("silc"),
        Head("difference", ("points",)),
        Head("95 % interval", ("excludes 0?",), is_numeric=False),
    )
    rows = tuple(
        (
            Cell(change.task),
            Cell(change.metric),
            Cell(f"{100 * change.contrastive:.1f}"),
            Cell(f"{100 * change.silc:.1f}"),
            Cell(
                f"{100 * change.difference:+.1f}",
                "" if change.stderr is None else f" ±{100 * change.stderr:.1f}",
            ),
            Cell(change.verdict),
        )
        for change in changes
    )
    return Table(title, heads, rows, changes)


def with_variants(ranked: pd.DataFrame, across_protocols: bool) -> pd.DataFrame:
    """The scores with a field ``variant``: what a column holds apart.

    It is the protocol, or "" where several may meet because every model has one value.
    """
    values = ["task", "fingerprint", "model", "revision"]
    several = ranked.groupby(["task", "fingerprint"]).protocol.transform("nunique") > 1
    is_single = (
        ranked.groupby(values)
        .protocol.transform("nunique")
        .groupby([ranked.task, ranked.fingerprint])
        .transform("max")
        == 1
    )
    return ranked.assign(
        variant=ranked.protocol.where(~(several & is_single & across_protocols), "")
    )


def protocols_section(ranked: pd.DataFrame, protocols: Mapping[str, dict[str, Any]]) -> Section:
    """Where one task has several columns: the fields of protocol and dataset that differ."""
    tables = []
    for task, part in ranked.groupby("task"):
        variants = sorted(set(zip(part.protocol, part.fingerprint, strict=True)))
        if len(variants) < 2:
            continue
        fields = [
            {**flat_fields(protocols[protocol]), "dataset.fingerprint": data}
            for protocol, data in variants
        ]
        names = sorted(set().union(*fields))
        differing = [name for name in names if len({field.get(name) for field in fields}) > 1]
        heads = [Head("field", is_numeric=False)]
        heads += [
            Head(f"protocol {protocol[:8]}", (f"data {data[:8]}",), is_numeric=False)
            for protocol, data in variants
        ]
        rows = [
            (Cell(name), *(Cell(field.get(name, "")) for field in fields)) for name in differing
        ]
        tables.append(Table(str(task), tuple(heads), tuple(rows)))
    note = "One task measured in more than one way: not to be compared without a thought. This is where they differ."
    return Section("Protocols that differ", note, tuple(tables))


def flat_fields(value: Any, prefix: str = "") -> dict[str, str]:
    """A protocol as dotted fields with printable values, its hash left out.

    Long values become their length and a hash.
    """
    if isinstance(value, dict):
        return {
            name: text
            for key, item in value.items()
            if prefix or key != "hash"
            for name, text in flat_fields(item, f"{prefix}.{key}" if prefix else key).items()
        }
    text = json.dumps(value)
    if len(text) > 60:
        text = f"{len(value)} {'entries' if isinstance(value, list) else 'characters'}, "
        text += hashlib.sha256(json.dumps(value).encode()).hexdigest()[:8]
    return {prefix: text}
