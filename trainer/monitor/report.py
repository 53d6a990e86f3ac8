"""One self-contained page of a run's curves, from the files in its folder: ``silc-bench report
RUN``.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from silc_bench.errors import UserError
from silc_bench.system.checksums import read_sealed
from silc_bench.system.files import write_text_atomic
from silc_bench.trainer.monitor.log import row_of

GROUPS = {
    "Losses": ("loss", "contrastive", "distillation", "masked", "lr", "logit_scale", "logit_bias"),
    "Health": (
        "teacher_entropy",
        "teacher_entropy_at_recipe",
        "student_teacher_kl",
        "prototypes_in_use",
        "patch_teacher_entropy",
        "patch_teacher_entropy_at_recipe",
        "patch_student_teacher_kl",
        "patch_prototypes_in_use",
        "feature_rank",
        "ema_distance",
        "center_error",
        "patch_center_error",
        "update_ratio",
    ),
    "Gradients": (
        "gradient_norm",
        "gradient_norm_vision",
        "gradient_norm_text",
        "gradient_norm_head",
        "gradient_norm_patch_head",
    ),
    "Speed and data": ("images_per_second", "mfu", "data_wait_share", "left_out"),
}
MEANINGS = {
    "loss": "what is minimised: the losses beside it, each times its weight",
    "contrastive": "pictures against texts",
    "distillation": "student against teacher; it may rise while the teacher grows less certain",
    "masked": "patches that the student does not see, against the teacher",
    "lr": "of the layers next to the end; earlier ones are slower where optim.layer_decay is below 1",
    "logit_scale": "what the cosine of a picture and a text is multiplied by",
    "logit_bias": "added to it; the softmax loss has none",
    "teacher_entropy": "of ln K: 0 is one prototype, 1 is uniform; both are a collapse",
    "teacher_entropy_at_recipe": "the same at the recipe's teacher temperature, 0.04",
    "student_teacher_kl": "nats, of the same global view",
    "prototypes_in_use": "different winners among the pictures looked at",
    "patch_teacher_entropy": "of ln K, of masked patches",
    "patch_teacher_entropy_at_recipe": "the same at the recipe's teacher temperature, 0.04",
    "patch_student_teacher_kl": "nats, of patches that the student does not see",
    "patch_prototypes_in_use": "of one masked patch a view",
    "feature_rank": "effective rank of the embeddings; 1 is one direction",
    "ema_distance": "between the weights of student and teacher, over the size of the student's",
    "center_error": "between the centre and the mean of the teacher's outputs, over the size of the mean",
    "patch_center_error": "the same of masked patches",
    "update_ratio": "what a step changed of a matrix, over its size; above 0.15 the rate is too high",
    "gradient_norm": "of all weights, before clipping",
    "images_per_second": "pairs, by all processes together",
    "mfu": "of the device's measured rate of matrix products",
    "left_out": "pairs that could not be read, as often as they were met",
    "data_wait_share": "of the time; above 0.1 the data is too slow",
}


@dataclass(frozen=True)
class Chart:
    name: str
    points: str  # of an SVG polyline in a box of 100 x 100
    last: str
    low: str
    high: str
    first_step: str
    last_step: str
    meaning: str


def write_report(run: Path, out: Path | None = None) -> Path:
    """RUN/report.html, or ``out``. UserError for a folder without a log, or with a damaged one."""
    path = out or run / "report.html"
    if path.is_dir():
        raise UserError(
            f"{path} is a folder; name a file for the page, as in --out {path / 'report.html'}"
        )
    rows = _rows(run / "log.jsonl")
    if not rows:
        raise UserError(
            f"{run} has no rows in log.jsonl; expected a run made by `silc-bench train --out`"
        )
    checkpoints = _checkpoints(run)
    config = checkpoints[-1][1].get("config", {}) if checkpoints else {}
    scored = [
        (words["score"], name) for name, words in checkpoints if words.get("score") is not None
    ]
    groups = [{"title": title, "charts": _charts(rows, names)} for title, names in GROUPS.items()]
    known = {name for names in GROUPS.values() for name in names} | {
        "step",
        "samples_seen",
        "seconds_left",
    }
    others = sorted({name for row in rows for name in row} - known)
    probes = _rows(run / "probes.jsonl")
    groups += [{"title": "Others", "charts": _charts(rows, others)}]
    groups += [
        {
            "title": "Probes",
            "charts": _charts(probes, sorted({name for row in probes for name in row} - {"step"})),
        }
    ]
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        files("silc_bench.trainer.monitor").joinpath("report.html.j2").read_text(encoding="utf-8")
    )
    page = template.render(
        name=f"{config.get('preset', run.name)}-{config.get('objective', '')}".rstrip("-"),
        step=rows[-1]["step"],
        num_steps=max(1, config.get("samples", 0) // max(1, config.get("batch_size", 1))),
        samples=int(rows[-1].get("samples_seen", 0)),
        best=max(scored)[1] if scored else "",
        notes=_notes(run / "notes.jsonl"),
        groups=[group for group in groups if group["charts"]],
        config=[
            (f"{a}.{b}", v)
            for a, inner in config.items()
            if isinstance(inner, dict)
            for b, v in inner.items()
        ]
        + [(name, value) for name, value in config.items() if not isinstance(value, dict)],
    )
    write_text_atomic(path, page)
    return path


def _charts(rows: list[dict[str, Any]], names: Any) -> list[Chart]:
    """Of what is a number at all: a value that is not finite is left out of its curve, and named
    where it is the last.
    """
    charts = []
    for name in names:
        known = [(row["step"], float(row[name])) for row in rows if name in row]
        points = [(step, value) for step, value in known if math.isfinite(value)]
        if not points:
            continue
        steps, values = [step for step, _ in points], [value for _, value in points]
        low, high, first, last = min(values), max(values), steps[0], steps[-1]
        drawn = " ".join(
            f"{100 * (step - first) / max(1, last - first):.2f},{95 - 90 * (value - low) / ((high - low) or 1):.2f}"
            for step, value in points
        )
        if len(points) == 1:
            drawn = "50,50 50,50"  # a line of no length, which round ends make a dot
        shown, bottom, top = (f"{value:.4g}" for value in (known[-1][1], low, high))
        charts.append(
            Chart(
                name, drawn, shown, bottom, top, f"{first:,}", f"{last:,}", MEANINGS.get(name, "")
            )
        )
    return charts


def _rows(path: Path) -> list[dict[str, Any]]:
    """Whole rows; the last one may have been cut off by a kill."""
    if not path.is_file():
        return []
    rows = []
    lines = path.read_bytes().splitlines()
    for number, line in enumerate(lines, start=1):
        row = _row(line)
        if row is not None:
            rows.append(row)
        elif number < len(lines):
            raise UserError(
                f"{path}:{number} is no row of a log; expected a run made by `silc-bench train --out` (where it is one,"
                " remove the line)"
            )
    return rows


def _notes(path: Path) -> list[str]:
    """What the run said of itself, each sentence once however often it was resumed; whole lines
    alone.
    """
    found = []
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            found.append(str(json.loads(line)["note"]))
        except (ValueError, KeyError, TypeError):
            continue
    return list(dict.fromkeys(found))


def _row(line: bytes) -> dict[str, Any] | None:
    """A step and numbers; None for anything else."""
    row = row_of(line)
    return (
        row
        if row is not None and all(type(value) in (int, float) for value in row.values())
        else None
    )


def _checkpoints(run: Path) -> list[tuple[str, dict[str, Any]]]:
    """(name, what its words say) of each checkpoint, oldest first; without those whose words are
    damaged.
    """
    found = []
    for path in sorted((run / "checkpoints").glob("step_*.json")):
        words = read_sealed(path)
        if words is not None:
            found.append((path.stem, words))
    return found
