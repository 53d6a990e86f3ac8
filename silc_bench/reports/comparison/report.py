"""A comparison written down: sentences, tables and a forest plot (no torch).

Each ``to_*`` is a pure function of the comparison, so equal comparisons give equal bytes; ``write``
makes the files.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from silc_bench.reports.comparison.compare import Comparison, Result, flat
from silc_bench.reports.comparison.pairing import ALPHA
from silc_bench.reports.forms import forest_plot, latex
from silc_bench.reports.tables import escaped, in_spreadsheet
from silc_bench.reports.titles import title
from silc_bench.system.files import write_text_atomic
from silc_bench.system.terminal_table import Column, Grid, Paragraph, Span, visible

if TYPE_CHECKING:
    from rich.console import RenderableType

USUAL_FORMATS = ("md", "csv", "json", "png")
SCHEMA_VERSION = "compare/3"
HEADS = ("task", "metric", "baseline", "model", "difference", "p", "p Holm", "verdict")
SHORT_HEADS = ("A", "B", "B - A", "p Holm", "B is")
NOTE = (
    "Percent, and differences in points ± one standard error, on the same images for both."
    " p is McNemar's exact test where an image is hit or missed, and Student's t on the paired"
    " bootstrap's error elsewhere; the verdict is at {alpha:g} after Holm's correction over"
    " {tests}. Errors cover the images, and the draws of training shots where there are several,"
    " not the spread between training runs: a verdict is about these checkpoints, and not about the"
    " methods that trained them."
)
NOTE_OF_METHODS = (
    "Percent, means over seeds, and differences in points ± one standard error over seeds, paired"
    " by seed. p is Student's t over the seeds that both have; the verdict is at {alpha:g} after"
    " Holm's correction over {tests}. It is about the methods as they were trained here, and says"
    " nothing of other data or lengths."
)


def sentence(result: Result, num_tests: int) -> str:
    """ "b is better on cifar100/zeroshot, +0.42 ± 0.11 points, p 0.003 after Holm over 8 tests"."""
    where = result.task if result.is_main else f"{result.task} ({result.metric})"
    size = _points(result)
    evidence = f"on {where}, {size} points, p {_p(result.p_holm)}"
    if result.verdict == "no difference":
        text = f"no difference of {result.model} can be shown {evidence}"
    else:
        text = f"{result.model} is {result.verdict} {evidence}"

    # one test needs no correction, and so no word about it
    after = f" after Holm over {num_tests} tests" if num_tests > 1 else ""
    return text + after + "".join(f" [{mark}]" for mark in result.marks)


def sentences(comparison: Comparison) -> list[str]:
    """One for each task and metric, of each model against the baseline."""
    lines: list[str] = []
    for model in comparison.models:
        for result in comparison.of(comparison.baseline, model):
            lines.append(sentence(result, len(comparison.results)))
    return lines


def matrix(comparison: Comparison) -> list[list[str]]:
    """Of three models or more, every two: rows of cells, the names first; empty for two models.

    A cell says on how many main metrics the model of its row is better than that of its column,
    worse, and not told apart: "+3 -1 =2".
    """
    names = [comparison.baseline, *comparison.models]
    if len(names) < 3:
        return []

    rows: list[list[str]] = []
    for row in names:
        cells: list[str] = []
        for column in names:
            own = [result for result in comparison.of(column, row) if result.is_main]
            other = [result for result in comparison.of(row, column) if result.is_main]
            better = [r for r in own if r.verdict == "better"]
            better += [r for r in other if r.verdict == "worse"]
            worse = [r for r in own if r.verdict == "worse"]
            worse += [r for r in other if r.verdict == "better"]
            num_even = len(own) + len(other) - len(better) - len(worse)
            is_empty = row == column or not own + other
            cells.append("" if is_empty else f"+{len(better)} -{len(worse)} ={num_even}")
        rows.append([row, *cells])
    return rows


def setup_lines(comparison: Comparison) -> list[str]:
    """One for each further model: how its setup differs from the baseline's; none if it does not.

    Models with other preprocessing answer the same question, each in its own way.
    """
    lines: list[str] = []
    for model, differences in comparison.setups.items():
        if differences:
            fields = ", ".join(f"{name} {one} → {other}" for name, one, other in differences)
            lines.append(f"setups of {comparison.baseline} → {model}: {fields}")
    return lines


def omission_lines(comparison: Comparison) -> list[str]:
    """What was not compared: one line for each model and reason, with the tasks it holds for."""
    tasks: dict[tuple[str, str, str], list[str]] = {}
    for omission in comparison.omissions:
        pair_and_reason = (omission.baseline, omission.model, omission.reason)
        tasks.setdefault(pair_and_reason, []).append(omission.task)

    lines: list[str] = []
    for (baseline, model, reason), names in tasks.items():
        # the pair is said where there are several
        whose = f" ({model} against {baseline})" if len(comparison.models) > 1 else ""
        lines.append(f"not compared{whose}: {reason}: {', '.join(names)}")
    return lines


def note(comparison: Comparison) -> str:
    """How the numbers are to be read."""
    number = len(comparison.results)
    tests = f"{number} tests" if number != 1 else "1 test"
    words = NOTE_OF_METHODS if comparison.is_of_methods else NOTE
    return words.format(alpha=ALPHA, tests=tests)


def to_terminal(comparison: Comparison) -> RenderableType:
    """Something for ``rich.print``: a table for each model."""
    from rich.console import Group

    columns = [Column("task"), *(Column(head, is_numeric=True) for head in SHORT_HEADS)]
    parts: list[RenderableType] = []
    for model, results in _by_model(comparison):
        rows: list[list[tuple[Span, ...]]] = []
        for result in results:
            task, metric, a, b, difference, _, p_holm, verdict = _row(result)
            style = {"better": "bold green", "worse": "bold red"}.get(verdict, "")

            # the main metric needs no name: the task has one
            name = visible(task) if result.is_main else f"{visible(task)}\n{visible(metric)}"
            cells = [(name, ""), (a, ""), (b, ""), (difference, ""), (p_holm, "")]
            rows.append([(cell,) for cell in (*cells, (verdict if style else "–", style))])
        names = f"\nA: {visible(comparison.baseline)}\nB: {visible(model)}"
        parts += [Paragraph(names, "bold"), Grid(columns, rows)]

    # letters as heads: names of models side by side would not fit
    of_pairs = matrix(comparison)
    if of_pairs:
        letters = [_letter(number) for number in range(len(of_pairs))]
        columns = [Column("better, worse and even than")]
        columns += [Column(letter, is_numeric=True) for letter in letters]
        rows = []
        for letter, (name, *texts) in zip(letters, of_pairs, strict=True):
            rows.append([((text, ""),) for text in (f"{letter}: {visible(name)}", *texts)])
        title = f"Every two models, main metrics of {len(comparison.results)} tests"
        parts += [Paragraph(f"\n{title}", "bold"), Grid(columns, rows)]
    return Group(*parts, Paragraph(f"\n{note(comparison)}", "dim"))


def _letter(number: int) -> str:
    """A, B ... Z, AA, AB ..."""
    before, index = divmod(number, 26)
    return (_letter(before - 1) if before else "") + chr(ord("A") + index)


def to_markdown(comparison: Comparison, image: str | None = None) -> str:
    """A page with a section for each model, and what was not compared at its end.

    Args:
        image: the file of the forest plot beside the page, if there is one.
    """
    lines = [
        f"# {escaped(comparison.baseline)} against {escaped(', '.join(comparison.models))}",
        "",
        note(comparison),
    ]

    for model, results in _by_model(comparison):
        heads = [*HEADS[:2], escaped(comparison.baseline), escaped(model), *HEADS[4:]]
        lines += ["", f"## {escaped(model)}", ""]
        lines += [f"- {escaped(sentence(result, len(comparison.results)))}" for result in results]
        lines += ["", f"| {' | '.join(heads)} |", "|---|---|---:|---:|---:|---:|---:|---|"]
        lines += [f"| {' | '.join(escaped(cell) for cell in _row(result))} |" for result in results]

    rows = matrix(comparison)
    if rows:
        heads = [escaped(row[0]) for row in rows]
        lines += ["", "## Every two models", ""]
        lines += ["On how many main metrics the row's model is better (+), worse (-), even (=)", ""]
        lines += [f"| | {' | '.join(heads)} |", f"|---|{'---|' * len(rows)}"]
        lines += [f"| {' | '.join(escaped(cell) for cell in row)} |" for row in rows]

    if image is not None:
        text = "Differences with their 95 % intervals, each for its test alone"
        lines += ["", f"![{text}]({image})"]

    if any(comparison.setups.values()):
        lines += ["", "## Setups that differ", ""]
        lines += [f"- {escaped(line)}" for line in setup_lines(comparison)]
    if comparison.omissions:
        lines += ["", "## Not compared", ""]
        lines += [f"- {escaped(line)}" for line in omission_lines(comparison)]
    return "\n".join(lines) + "\n"


def to_csv(comparison: Comparison) -> str:
    """A line for each pair of models and metric, unrounded, as fractions.

    What was not compared has its reason and no numbers. There is at least one result.
    """
    rows = [flat(result) for result in comparison.results]
    rows += [{"verdict": "not compared", **asdict(left)} for left in comparison.omissions]

    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [*rows[0], "reason"], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: in_spreadsheet(value) for name, value in row.items()})
    return buffer.getvalue()


def to_latex(comparison: Comparison) -> str:
    """A table for each model, for a paper; see `silc_bench.reports.forms.latex`."""
    heads = ("A", "B", "B - A", "p Holm")
    parts = [latex.HEAD]
    for model, results in _by_model(comparison):
        columns = [Column("task"), *(Column(head, is_numeric=True) for head in heads)]
        rows: list[list[latex.Pair]] = []
        for result in results:
            *_, a, b, difference, _, p_holm, _ = _row(result)
            name = ", ".join((title(result.task, result.metric), *result.marks))
            shown = latex.number(difference)
            if result.verdict != "no difference":
                shown = rf"\textbf{{{shown}}}"
            numbers = [(number, latex.number(number)) for number in (a, b)]
            rows.append(
                [(name, ""), *numbers, (difference, shown), (p_holm, latex.escaped(p_holm))]
            )
        caption = f"A: {comparison.baseline}. B: {model}. Bold: a difference. {note(comparison)}"
        parts.append(latex.table(columns, rows, caption))
    return "\n".join(parts)


def to_json(comparison: Comparison) -> str:
    """Everything, unrounded, as fractions, for other programs."""
    data = {
        "schema": SCHEMA_VERSION,
        "baseline": comparison.baseline,
        "models": comparison.models,
        "num_tests": len(comparison.results),
        "results": [flat(result) for result in comparison.results],
        "setups": comparison.setups,
        "not_compared": [asdict(omission) for omission in comparison.omissions],
    }
    return json.dumps(data, indent=2, allow_nan=False) + "\n"


def write(
    comparison: Comparison, out_dir: Path, formats: Sequence[str] = USUAL_FORMATS
) -> list[Path]:
    """``compare.md`` and so on in ``out_dir``, each whole or not at all.

    Args:
        formats: of ``FORMATS``.

    Raises:
        ModuleNotFoundError: a PDF is asked for, and fpdf2 is not installed.
    """
    assert comparison.results, "nothing was compared"
    heading = f"Difference to {comparison.baseline} in points, 95 % interval of each alone"
    image = next((f"compare.{kind}" for kind in formats if kind in SHOWN_IMAGES), None)
    paths = []
    for kind in formats:
        paths.append(Path(out_dir) / f"compare.{kind}")
        if kind in IMAGES:
            forest_plot.draw(_plotted(comparison), heading, paths[-1])
        elif kind == "md":
            write_text_atomic(paths[-1], to_markdown(comparison, image))
        else:
            write_text_atomic(paths[-1], TEXTS[kind](comparison))
    return paths


# by the ending of the file
TEXTS: dict[str, Callable[[Comparison], str]] = {
    "md": to_markdown,
    "csv": to_csv,
    "json": to_json,
    "tex": to_latex,
}
IMAGES = ("png", "svg", "pdf")
SHOWN_IMAGES = ("png", "svg")  # by what renders Markdown
FORMATS = (*TEXTS, *IMAGES)


def _by_model(comparison: Comparison) -> Iterator[tuple[str, list[Result]]]:
    for model in comparison.models:
        results = comparison.of(comparison.baseline, model)
        if results:
            yield model, results


def _plotted(comparison: Comparison) -> list[forest_plot.Row]:
    """Rows of the plot: the name of a model, then its results below it."""
    rows = []
    for model, results in _by_model(comparison):
        rows.append(forest_plot.Row(model))
        for result in results:
            marks = [f"[{mark}]" for mark in result.marks]
            label = "    " + " ".join((result.task, result.metric, *marks))
            rows.append(
                forest_plot.Row(
                    label,
                    100 * result.paired.difference,
                    100 * result.paired.margin,
                    result.verdict,
                    f"{_points(result)}, p {_p(result.p_holm)}",
                )
            )
    return rows


def _row(result: Result) -> tuple[str, ...]:
    """One cell for each of HEADS."""
    task = " ".join((result.task, *(f"[{mark}]" for mark in result.marks)))
    return (
        task,
        result.metric,
        f"{100 * result.baseline_value:.2f}",
        f"{100 * result.value:.2f}",
        _points(result),
        _p(result.paired.p),
        _p(result.p_holm),
        result.verdict,
    )


def _points(result: Result) -> str:
    return f"{100 * result.paired.difference:+.2f} ± {100 * result.paired.stderr:.2f}"


def _p(p: float) -> str:
    """Two digits, never rounded up to what would contradict the verdict."""
    text = f"{p:.2g}"
    if p < 0.0001:
        return "< 0.0001"

    # 0.0496 would read as 0.05, beside a verdict that says "below 0.05"
    if p < ALPHA <= float(text):
        return f"< {ALPHA:g}"
    return text
