"""Records -> tables, a page, and what self-distillation changed.

No torch; the same files always give the same bytes.

Flow: ``build("results")`` -> Board -> ``to_terminal``, ``to_markdown``, ``to_csv``, ``to_page``;
``write(board, out)`` makes the files. Run: ``silc-bench leaderboard --results results --out
results``.

A column is a question and a metric, a row is a model under one setup
(`silc_bench.results.question`, `silc_bench.results.setup`). What never happens: an average over
gaps; two questions in one column; a limited, an outdated or a published number among ranked ones.
Which values are tied with the best, and every difference, comes from the paired test of
`silc_bench.reports.comparison.pairing`.

What self-distillation changed: a SILC model against its contrastive-only twin, task by task. Twins
are alike in all that their records say of the training - preset, data, seed, step, branch - but
the objective. They are compared only within a column of the leaderboard.
"""

from __future__ import annotations

import base64
import re
from collections import Counter, namedtuple
from collections.abc import Callable, Sequence
from dataclasses import astuple, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeAlias

from silc_bench.errors import first_line
from silc_bench.later import pd
from silc_bench.metrics.statistics import Paired
from silc_bench.models.interface import Training
from silc_bench.reports.comparison.pairing import Samples, tied
from silc_bench.reports.comparison.seeds import Methods, Place, grouped, tied_over_seeds
from silc_bench.reports.forms.data import to_json, to_parquet
from silc_bench.reports.forms.latex import to_latex
from silc_bench.reports.page.board import page_document
from silc_bench.reports.page.render import render
from silc_bench.reports.tables import (
    BEST,
    TIED,
    Board,
    Cell,
    Change,
    Figure,
    Head,
    Section,
    Table,
    to_csv,
    to_markdown,
)
from silc_bench.reports.titles import (
    COMPARED,
    distinctions,
    metric_title,
    question_words,
    setup_labels,
    setup_words,
    task_title,
)
from silc_bench.reports.view import View, chosen, group_of, limited, row_order
from silc_bench.results import folders
from silc_bench.results.published import FOLDER, ReportedRow
from silc_bench.results.question import Question
from silc_bench.results.record import Record
from silc_bench.results.schema import is_fraction
from silc_bench.results.setup import Setup
from silc_bench.system.files import atomic_path, read_bytes, read_text
from silc_bench.system.terminal import counted


def to_page(board: Board) -> str:
    """One file with everything in it: its program, its data, no network."""
    return render(board.page())


EVERYTHING = View()
# by the ending of the file
FORMATS: dict[str, Callable[[Board], str | bytes]] = {
    "md": to_markdown,
    "csv": to_csv,
    "json": to_json,
    "html": to_page,
    "tex": to_latex,
    "parquet": to_parquet,
}
USUAL_FORMATS = ("md", "csv", "json", "html")
# headings in this order, then any others
GROUPS = ("zero-shot", "few-shot", "linear", "knn", "retrieval", "dense")
# in the tables, beside each main metric
SHOWN = r"(?:acc1|mIoU)(?:_.*)?|(?:image|text)_retrieval_recall@1"

# what sets two rows apart, and two columns
ROW = ["model", "revision", "setup", "params", "image_size"]
COLUMN = ["task", "metric", "question"]

# the fields of a score, in the order of leaderboard.csv, and where a record has them
FIELDS = {
    "kind": "",
    "group": "task.group",
    "task": "task.name",
    "metric": "",
    "model": "model.name",
    "revision": "model.revision",
    "setup": "setup.row",
    "setup_label": "",
    "protocol": "question.protocol",
    "question": "question.hash",
    "question_label": "",
    "fingerprint": "dataset.fingerprint",
    "precision": "setup.precision",
    "device": "setup.device",
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
Score: TypeAlias = Any  # a row of the scores, whose fields are FIELDS
make_score: Callable[..., Score] = namedtuple("Score", list(FIELDS))  # type: ignore[misc]
MAX_IMAGE = 1 << 26  # bytes of a file that the page embeds
FRACTIONAL = ["value", "stderr", "chance", "seconds"]
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
    "SILC minus its contrastive-only twin, in points ± one standard error, on the same images for"
    " both (the paired test of `silc-bench compare`). The 95 % interval is of each task alone (no"
    " correction for several tasks). It covers the finite test set, not the spread between training"
    " seeds: it says which of these two checkpoints is better, not which method."
)
TWINS = ("contrastive", "silc")  # objectives


def build(
    results_dirs: folders.Folders,
    view: View = EVERYTHING,
    *,
    current_version: Callable[[str], int | None] = lambda task: None,
) -> Board:
    """Read every record and published row below the results folders, and the images of the page.

    The images are the ``*.png`` and ``*.svg`` of ``pictures`` in each of them, with an optional
    caption in a ``.txt`` beside each image. Damaged and foreign files are left out, and named in
    ``Board.remarks``.

    Args:
        view: which of them are shown, and in which order.
        current_version: of a task, as the program has it today; records of an older one never rank.

    Raises:
        UserError: no such folder, nothing at all to show, or a view that means nothing.
    """
    reading = folders.read(results_dirs)
    reported, problems = folders.published_in(results_dirs)

    # what the package itself brings is nothing to show
    if not reading.records and not any(
        any(folder.glob(f"{FOLDER}/*")) for folder in reading.folders
    ):
        raise folders.none_in(reading)
    records, reported = chosen(reading.records, reported, view)

    scores = _scores(records, reported, current_version)
    ranked = scores[scores.kind == "ranked"]
    ranked = ranked.sort_values(["group", "task"], key=_heading_order, kind="stable")

    images, damaged = _images(reading.folders)
    problems += damaged
    samples = Samples(reading)
    ranks = Ranks(samples, records)
    changes = change_tables(_with_main(ranked, COMPARED), ranks)
    single, single_ranks = ranked, ranks
    of_methods: tuple[str, ...] = ()
    if view.has_seeds_grouped:
        # what single checkpoints differ in says nothing of the methods
        changes = ()
        ranks = Ranks(samples, records)
        methods = Methods(records)
        ranked, ranks.values = grouped(ranked, methods)
        of_methods = methods.remarks()
    shown_scores = _with_main(ranked, SHOWN)
    sections = [
        _measured(shown_scores, ranks, view, row_order(ranked, ROW, view)),
        Section("What self-distillation changed", NOTE, changes),
        Section("Images", "", images=images),
        *(_listed(kind, scores[scores.kind == kind]) for kind in LISTED),
        questions_section(shown_scores, records),
        setups_section(shown_scores, records),
        _reported(scores[scores.kind == "reported"], ranked),
    ]

    # the first section stays even if it is empty: it then says how to measure
    shown = [part for part in sections if part.tables or part.images or part is sections[0]]
    problems += [folders.Problem(path, sentence) for path, sentence in samples.problems.items()]
    shown = [limited(part, view) for part in shown]
    remarks = (*reading.remarks_with(problems), *of_methods)

    def page() -> dict[str, Any]:
        # a row of the page opens its record, so it is a checkpoint, also where methods are ranked
        shown_single = _with_main(single, SHOWN)
        standing = single_ranks.standing
        return page_document(
            records, reported, scores, standing, shown_single, changes, images, remarks
        )

    return Board(tuple(shown), scores, page, remarks)


class Ranks:
    """Who is best in a column, who is tied with it, and how far two of its values lie apart."""

    def __init__(self, samples: Samples, records: Sequence[Record]) -> None:
        self.samples = samples
        self._standings: dict[Any, dict[tuple[str, str, str], str]] = {}
        self._records: dict[tuple[str, str, str, str], Record] = {}
        self.values: dict[Place, dict[int, float]] = {}  # of methods, by seed
        self.trainings: dict[tuple[str, str], Training | None] = {}  # by model and revision
        for record in records:
            self._records[self._place(record)] = record
            model = record.model
            self.trainings[model.name, model.revision] = model.training

    def standing(self, own: pd.DataFrame, metric: str) -> dict[tuple[str, str, str], str]:
        """ "best" or "tied", by the row's model, revision and setup; ``own`` is one column.

        There is no best of a single value. A value whose samples were not kept is never tied.
        """
        if len(own) < 2:
            return {}

        # the tables and the page ask for the same columns, and the tests take a while
        question = str(own.question.iloc[0])
        rows = list(zip(own.model, own.revision, own.setup, strict=True))
        key = (question, metric, tuple(rows))
        if key not in self._standings:
            self._standings[key] = self._tested(own, metric, question, rows)
        return self._standings[key]

    def _tested(
        self, own: pd.DataFrame, metric: str, question: str, rows: list[tuple[str, str, str]]
    ) -> dict[tuple[str, str, str], str]:
        is_low_best = not is_fraction(metric)
        best = own.value.min() if is_low_best else own.value.max()
        is_best = (own.value == best).tolist()
        found = {row: "best" for row, one in zip(rows, is_best, strict=True) if one}

        others = [row for row, one in zip(rows, is_best, strict=True) if not one]
        ties = self._ties(next(iter(found)), others, question, metric)
        found |= {row: "tied" for row, is_tied in zip(others, ties, strict=True) if is_tied}
        return found

    def _ties(
        self,
        best: tuple[str, str, str],
        others: Sequence[tuple[str, str, str]],
        question: str,
        metric: str,
    ) -> list[bool | None]:
        """Of each other row whether it is tied with the best: over seeds, or over images."""

        def seeds_of(row: tuple[str, str, str]) -> dict[int, float]:
            return self.values.get((row[0], row[2], question, metric), {})

        if self.values:
            return tied_over_seeds(seeds_of(best), [seeds_of(row) for row in others])
        first = self._records[(*best, question)]
        return tied(
            self.samples, first, [self._records[(*row, question)] for row in others], metric
        )

    def pair(
        self, a: tuple[str, str, str], b: tuple[str, str, str], question: str, metric: str
    ) -> Paired | str:
        """The paired test of two rows in a column, or why there is none."""
        records = [self._records[(*row, question)] for row in (a, b)]
        return self.samples.pair(records[0], records[1], metric)

    @staticmethod
    def _place(record: Record) -> tuple[str, str, str, str]:
        model = record.model
        return model.name, model.revision, record.setup.row, record.question.hash


def write(board: Board, out_dir: Path, formats: Sequence[str] = USUAL_FORMATS) -> list[Path]:
    """``leaderboard.md`` and so on in ``out_dir``, each whole or not at all.

    Args:
        formats: keys of ``FORMATS``.

    Raises:
        ModuleNotFoundError: Parquet is asked for, and pyarrow is not installed.
    """
    paths = []
    for name, content in _files(board, formats).items():
        paths.append(Path(out_dir) / name)
        with atomic_path(paths[-1]) as temporary:
            temporary.write_bytes(content)
    return paths


def stale(board: Board, out_dir: Path, formats: Sequence[str] = USUAL_FORMATS) -> list[str]:
    """The names of those files in ``out_dir`` that ``write`` would change or add."""
    names = []
    for name, content in _files(board, formats).items():
        path = Path(out_dir) / name
        if not path.is_file() or path.read_bytes() != content:
            names.append(name)
    return names


def _files(board: Board, formats: Sequence[str]) -> dict[str, bytes]:
    """Their contents by name."""
    contents: dict[str, bytes] = {}
    for kind in formats:
        content = FORMATS[kind](board)
        contents[f"leaderboard.{kind}"] = (
            content if isinstance(content, bytes) else content.encode()
        )
    return contents


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

    question_label = question_labels(records)
    setup_label = labels_of_setups(records)
    # tuples, not dicts: of 20,000 records these would need as much memory as all else here
    rows: list[tuple[Any, ...]] = []

    def add(score: dict[str, Any]) -> None:
        rows.append(tuple(score.get(name) for name in FIELDS))

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
        labels = {"question_label": question_label[record.question.hash]}
        labels["setup_label"] = setup_label[record.model.name, record.model.revision][
            record.setup.row
        ]
        placed = {name: attrgetter(place)(record) for name, place in FIELDS.items() if place}
        shared = {**placed, "where": "", "note": "", **labels, **change}
        for metric in record.metrics:
            add({**shared, **_score(record, metric)})
    for row in reported:
        shared = {name: getattr(row, name) for name in ("model", "params", "where", "note")}
        shared |= {"kind": "reported", "group": row.collection, "is_main": False}
        for task, metrics in row.values.items():
            for metric, value in metrics.items():
                score = {"task": task, "metric": metric, "value": value}
                add({**shared, **score, "source": f"reported({row.url})"})

    # object: the texts stay those of the records, which share them; Arrow would copy each, and make
    # it anew for each row that is looked at
    frame = pd.DataFrame(rows, columns=list(FIELDS), dtype=object)
    # Int64 is the integer of pandas that can be missing: published rows have no n
    types = {"is_main": "bool", **dict.fromkeys(FRACTIONAL, "float64")}
    return frame.astype({**types, **dict.fromkeys(WHOLE_NUMBERS, "Int64")})


def _score(record: Record, metric: str) -> dict[str, Any]:
    """What is of one metric alone; a chance is known of the main metric."""
    is_main = metric == record.task.main_metric
    return {
        "metric": metric,
        "is_main": is_main,
        "value": record.metrics[metric],
        "stderr": record.stderr.get(metric),
        "chance": record.task.chance if is_main else None,
    }


def question_labels(records: Sequence[Record]) -> dict[str, str]:
    """Of each question, by its hash: how it differs from the other whole ones of its task."""
    by_task: dict[str, dict[str, Question]] = {}
    for record in records:
        questions = by_task.setdefault(record.task.name, {})
        questions[record.question.hash] = record.question

    labels: dict[str, str] = {}
    for questions in by_task.values():
        # a limited or outdated one never stands beside the others
        for kind in (True, False):
            own = {name: q for name, q in questions.items() if (q.limit is None) == kind}
            labels |= zip(own, distinctions(list(own.values())), strict=True)
    return labels


def labels_of_setups(records: Sequence[Record]) -> dict[tuple[str, str], dict[str, str]]:
    """Of each model and revision: row of the setup -> how it differs from the model's others."""
    by_model: dict[tuple[str, str], dict[str, Setup]] = {}
    for record in records:
        setups = by_model.setdefault((record.model.name, record.model.revision), {})
        # which patches or pooled features a task reads is no choice of the run
        setups.setdefault(record.setup.row, record.setup)

    labels: dict[tuple[str, str], dict[str, str]] = {}
    for model, setups in by_model.items():
        labels[model] = dict(zip(setups, setup_labels(list(setups.values())), strict=True))
    return labels


def _measured(
    ranked: pd.DataFrame, ranks: Ranks, view: View, order_of_rows: dict[tuple, tuple] | None
) -> Section:
    if ranked.empty:
        return Section("Measured here", "Nothing yet: `silc-bench eval` measures a model.")

    # two revisions of one name are two models
    num_models = ranked.groupby(["model", "revision"]).ngroups
    counts = f"{counted(num_models, 'model')}, {counted(ranked.task.nunique(), 'task')}"
    note = (
        f"{counts}. Percent ± one standard error; {BEST} is the best of a column, {TIED} is tied"
        " with it (no difference after Holm in the paired test), an empty cell was not measured."
    )
    by_group = ranked.groupby(group_of(ranked, view), sort=False)
    tables = tuple(_ranking(str(group), part, ranks, order_of_rows) for group, part in by_group)
    return Section("Measured here", note, tables)


def _heading_order(names: pd.Series) -> pd.Series:
    """A key for ``sort_values``: the position in GROUPS, then the name."""
    return names.map(lambda name: (GROUPS.index(name) if name in GROUPS else len(GROUPS), name))


def _with_main(scores: pd.DataFrame, others: str) -> pd.DataFrame:
    """The main metrics, and those whose whole name matches the pattern ``others``."""
    return scores[scores.is_main.astype(bool) | scores.metric.str.fullmatch(others)]


def _ranking(
    group: str, part: pd.DataFrame, ranks: Ranks, order_of_rows: dict[tuple, tuple] | None
) -> Table:
    """Rows in the order of the first column's values, then of the second's ...; gaps last.

    Equal rows stand by name. Where ``order_of_rows`` is given it comes before the columns.
    """
    # columns by task, the main metric first, then "5shot" before "10shot"
    by_column = dict(iter(part.groupby(COLUMN)))
    order: dict[tuple, tuple] = {}
    for column, own in by_column.items():
        first = own.iloc[0]
        is_native = first.protocol == "native"
        order[column] = (
            column[0], not first.is_main, _natural(column[1]), not is_native, first.question_label
        )  # fmt: skip
    columns = sorted(by_column, key=lambda column: (order[column], column))
    lower_is_better = [not is_fraction(metric) for _, metric, *_ in columns]

    # sorted by name first: a stable sort by values then leaves equal rows in the order of names
    wide = part.pivot(index=ROW, columns=COLUMN, values="value").sort_index()
    wide = wide.sort_values(columns, ascending=lower_is_better, kind="stable")

    heads = [*_names("model"), Head("params"), Head("px")]
    cells: dict[tuple[tuple, tuple], Cell] = {}
    for column in columns:
        own = by_column[column]
        heads.append(_ranked_head(column, own, part))

        standing = ranks.standing(own, column[1])
        for score in own.itertuples():
            row = tuple(getattr(score, name) for name in ROW)
            of_row = standing.get((score.model, score.revision, score.setup), "")
            cells[row, column] = replace(
                _value(score), is_best=of_row == "best", is_tied=of_row == "tied"
            )

    label_of = {
        tuple(getattr(score, name) for name in ROW): score.setup_label
        for score in part.itertuples()
    }
    rows_in_order = list(wide.index)
    if order_of_rows is not None:
        # False stands before True: what has no place in that order comes last
        rows_in_order.sort(key=lambda row: (row not in order_of_rows, order_of_rows.get(row, ())))
    rows = []
    for row in rows_in_order:
        model, revision, _, params, image_size = row
        label = f" ({label_of[row]})" if label_of[row] else ""
        named = (
            Cell(model, (f"@{revision[:8]}" if revision else "") + label),
            Cell(_count(params)),
            Cell(str(image_size)),
        )
        rows.append((*named, *(cells.get((row, column), Cell()) for column in columns)))
    return Table(group, tuple(heads), tuple(rows))


def _ranked_head(column: tuple[str, ...], own: pd.DataFrame, part: pd.DataFrame) -> Head:
    task, metric, _ = column
    details = [metric_title(metric)]
    chances = sorted({_percent(chance, metric) for chance in own.chance.dropna()})
    if chances:
        details.append(f"chance {'–'.join(chances)}")

    # in words, and only where two questions of one task stand side by side
    label = own.question_label.iloc[0]
    if label and part[part.task == task].question.nunique() > 1:
        details.append(label)
    return Head(task_title(task), tuple(details))


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
    by_table: dict[tuple[str, str], list[Score]] = {}
    for score in _in_rows(reported):
        by_table.setdefault((score.group, score.task.split("/")[1]), []).append(score)
    measured: dict[tuple[str, str], list[Score]] = {}
    for score in _in_rows(ranked) if by_table else ():
        measured.setdefault((score.task, score.metric), []).append(score)

    tables = []
    for (collection, name), part in sorted(by_table.items()):
        columns = sorted({(score.task, score.metric) for score in part})
        heads = [*_names("model"), Head("params")]
        heads += [Head(task.split("/")[0], (metric,)) for task, metric in columns]
        heads += _names("source", "note")

        of_papers: dict[tuple[str, str], list[Score]] = {}
        for score in part:
            of_papers.setdefault((score.model, score.source), []).append(score)

        # of two questions of one task, or two setups of a model, the second has a second row
        of_ours: dict[tuple[str, str, int], list[Score]] = {}
        for column in columns:
            times: Counter[tuple[str, str]] = Counter()
            for score in measured.get(column, ()):
                row = score.model, score.revision
                of_ours.setdefault((*row, times[row]), []).append(score)
                times[row] += 1
        ours = [scores for _, scores in sorted(of_ours.items())]
        rows = [_row(scores, columns) for scores in (*of_papers.values(), *ours)]
        tables.append(Table(f"published ({collection}): {name}", tuple(heads), tuple(rows)))
    return Section("Published numbers", note, tuple(tables), is_reference=True)


def _in_rows(scores: pd.DataFrame) -> list[Score]:
    """All of them at once: of a hundred small frames each would cost as much as all of it."""
    return [make_score(*values) for values in scores.itertuples(index=False, name=None)]


def _row(scores: Sequence[Score], columns: Sequence[tuple[str, str]]) -> tuple[Cell, ...]:
    """Of one publication or of one model measured here."""
    first = scores[0]
    by_column = {(score.task, score.metric): score for score in scores}
    if first.kind == "ranked":
        model, ending = _model(first), (Cell("measured here"), Cell())
    else:
        # where in the publication, as a link to it
        url = first.source.removeprefix("reported(").removesuffix(")")
        model, ending = Cell(first.model), (Cell(first.where or url, url=url), Cell(first.note))

    cells = [model, Cell(_count(first.params))]
    for column in columns:
        score = by_column.get(column)
        mark = ""
        if score and first.kind == "ranked" and score.protocol != "native":
            mark = f" {score.protocol}"
        cells.append(_value(score, mark) if score else Cell())
    return (*cells, *ending)


def _images(results_dirs: Sequence[Path]) -> tuple[tuple[Figure, ...], list[folders.Problem]]:
    """The drawings of each folder, by name, embedded as data: the page needs no other file.

    Also a problem for each file that cannot be read, which is left out.
    """
    types = {".png": "image/png", ".svg": "image/svg+xml"}
    images: list[Figure] = []
    problems: list[folders.Problem] = []
    paths = [path for folder in results_dirs for path in sorted(folder.glob("pictures/*"))]
    for path in (path for path in paths if path.suffix in types):
        caption = path.with_suffix(".txt")
        try:
            text = read_text(caption, MAX_IMAGE).strip() if caption.exists() else ""
            data = base64.b64encode(read_bytes(path, MAX_IMAGE)).decode()
        except (OSError, UnicodeDecodeError) as error:
            sentence = f"{path} and its caption: cannot be read ({first_line(error)})"
            problems.append(folders.Problem(path, sentence))
            continue
        url = f"data:{types[path.suffix]};base64,{data}"
        images.append(Figure(path.stem.replace("_", " "), text, url))
    return tuple(images), problems


def _names(*texts: str) -> list[Head]:
    """Heads of columns that hold no numbers."""
    return [Head(text, is_numeric=False) for text in texts]


def _model(score: Any) -> Cell:
    return Cell(score.model, f"@{score.revision[:8]}" if score.revision else "")


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


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts "acc1_5shot" before "acc1_10shot"."""
    parts = re.split(r"(\d+)", name)
    return [(int(part or 0), "") if part.isdigit() else (0, part) for part in parts]


def change_tables(ranked: pd.DataFrame, ranks: Ranks) -> tuple[Table, ...]:
    """One table a pair of twins.

    Where several runs are one twin, the table lists them instead: which to pair is not ours to
    guess.
    """
    twins: dict[Training, dict[str, list[tuple[str, str]]]] = {}
    for row in sorted(set(zip(ranked.model, ranked.revision, strict=True))):
        training = ranks.trainings[row]
        if training is not None and training.objective in TWINS:
            pair = replace(training, objective="", recipe="")
            twins.setdefault(pair, {name: [] for name in TWINS})[training.objective].append(row)

    tables = []
    for training, twin in sorted(twins.items(), key=lambda item: astuple(item[0])):
        contrastive, silc = (twin[name] for name in TWINS)
        how = f"{training.preset}:{training.branch}, seed {training.seed}, step {training.step:,}"
        if len(contrastive) == len(silc) == 1:
            changes = tuple(_changes(ranked, contrastive[0], silc[0], ranks))
            # twins that share no column have nothing to show
            if changes:
                title = f"{silc[0][0]} against {contrastive[0][0]} ({how})"
                tables.append(_table(title, changes))

        elif contrastive and silc:
            rows = [(Cell(name, f"@{revision[:8]}"),) for name, revision in contrastive + silc]
            title = f"{how}: not compared, several runs are alike"
            tables.append(Table(title, tuple(_names("model")), tuple(rows)))
    return tuple(tables)


def _changes(
    ranked: pd.DataFrame, before: tuple[str, str], after: tuple[str, str], ranks: Ranks
) -> list[Change]:
    """The columns that both have, in the order of the first; ranks are no points, and left out."""
    fractions = ranked[ranked.metric.map(is_fraction).astype(bool)]
    old, new = (
        fractions[(fractions.model == model) & (fractions.revision == revision)]
        for model, revision in (before, after)
    )

    # Of several setups of a model the first is taken: each is a row, and one row says enough.
    old, new = (part.drop_duplicates(["question", "metric"]) for part in (old, new))
    both = old.merge(new, on=["task", "metric", "question"], suffixes=("", "_new"))

    changes = []
    for both_rows in both.itertuples():
        rows = ((*before, both_rows.setup), (*after, both_rows.setup_new))
        pair = ranks.pair(*rows, both_rows.question, both_rows.metric)
        paired = pair if isinstance(pair, Paired) else None
        changes.append(
            Change(both_rows.task, both_rows.metric, both_rows.value, both_rows.value_new, paired)
        )
    return changes


def _table(title: str, changes: tuple[Change, ...]) -> Table:
    heads = [
        *_names("task", "metric"),
        *(Head("contrastive"), Head("silc"), Head("difference", ("points",))),
        Head("95 % interval", ("excludes 0?",), is_numeric=False),
    ]
    rows: list[tuple[Cell, ...]] = []
    for change in changes:
        error = "" if change.paired is None else f" ±{100 * change.paired.stderr:.2f}"
        difference = Cell(f"{100 * change.difference:+.2f}", error)
        values = [Cell(f"{100 * value:.1f}") for value in (change.contrastive, change.silc)]
        texts = (Cell(task_title(change.task)), Cell(metric_title(change.metric)), *values)
        rows.append((*texts, difference, Cell(change.verdict)))
    return Table(title, tuple(heads), tuple(rows), changes)


def questions_section(ranked: pd.DataFrame, records: Sequence[Record]) -> Section:
    """Where one task has several columns: what was asked differently, in words."""
    by_hash = {record.question.hash: record.question for record in records}
    tables = []
    for task, part in ranked.groupby("task", sort=False):
        hashes = list(dict.fromkeys(part.question))
        if len(hashes) > 1:
            labels = dict(zip(part.question, part.question_label, strict=True))
            fields = [question_words(by_hash[name]) for name in hashes]
            heads = [labels[name] for name in hashes]
            tables.append(_differences(task_title(str(task)), heads, fields))
    note = (
        "One task asked in more than one way: these are several questions, each with columns of"
        " its own. This is how they differ."
    )
    return Section("Questions that differ", note, tuple(tables))


def setups_section(ranked: pd.DataFrame, records: Sequence[Record]) -> Section:
    """Models that were measured under more than one setup: where those differ."""
    by_row: dict[tuple[str, str], dict[str, Setup]] = {}
    everyones = {record.setup.row: record.setup for record in records}  # for rows of methods
    for record in records:
        own = by_row.setdefault((record.model.name, record.model.revision), {})
        own.setdefault(record.setup.row, record.setup)

    tables = []
    for (model, revision), part in ranked.groupby(["model", "revision"], sort=False):
        labels = dict(zip(part.setup, part.setup_label, strict=True))
        if len(labels) > 1:
            setups = by_row.get((str(model), str(revision)), everyones)
            fields = [setup_words(setups[row]) for row in labels]
            title = f"{model}@{revision[:8]}" if revision else str(model)
            tables.append(_differences(title, list(labels.values()), fields))
    note = "One model measured under more than one setup: each is a row of its own."
    return Section("Setups that differ", note, tuple(tables))


def _differences(title: str, labels: Sequence[str], fields: Sequence[dict[str, str]]) -> Table:
    """A column for each of the labels, a row for each field that is not the same in all."""
    names = dict.fromkeys(name for own in fields for name in own)
    rows: list[tuple[Cell, ...]] = []
    for name in names:
        values = [own.get(name, "–") for own in fields]
        # what all of them share says nothing about the difference
        if len(set(values)) > 1:
            rows.append((Cell(name), *map(Cell, values)))
    return Table(title, tuple(_names("field", *labels)), tuple(rows))
