"""One self-contained page of a run's curves, from the files in its folder: ``silc-bench report RUN``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from silc_bench.atomic import write_text_atomic
from silc_bench.errors import UserError

GROUPS = {
    "Losses": ("loss", "contrastive", "distillation", "masked", "lr", "logit_scale", "logit_bias"),
    "Health": (
        "teacher_entropy",
        "student_teacher_kl",
        "prototypes_in_use",
        "patch_teacher_entropy",
        "patch_student_teacher_kl",
        "patch_prototypes_in_use",
        "feature_rank",
        "ema_distance",
        "center_error",
        "update_ratio",
    ),
    "Gradients": (
        "gradient_norm",
        "gradient_norm_vision",
        "gradient_norm_text",
        "gradient_norm_head",
        "gradient_norm_patch_head",
    ),
    "Speed": ("images_per_second", "mfu", "data_wait_share"),
}
MEANINGS = {
    "teacher_entropy": "of ln K: 0 is one prototype, 1 is uniform; both are a collapse",
    "student_teacher_kl": "nats, of the same global view",
    "prototypes_in_use": "different winners among the pictures looked at",
    "patch_teacher_entropy": "the same of masked patches",
    "patch_student_teacher_kl": "nats, of patches that the student does not see",
    "patch_prototypes_in_use": "of one masked patch a view",
    "feature_rank": "effective rank of the embeddings; 1 is one direction",
    "ema_distance": "of the student's own size",
    "center_error": "of the mean output's own size",
    "update_ratio": "of a matrix's own size, in one step; above 0.15 the rate is too high",
    "mfu": "of the device's measured rate of matrix products",
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
    rows = _rows(run / "log.jsonl")
    if not rows:
        raise UserError(f"{run} has no rows in log.jsonl; expected a run made by `silc-bench train --out`")
    words = _words(run)
    groups = [{"title": title, "charts": _charts(rows, names)} for title, names in GROUPS.items()]
    known = {name for names in GROUPS.values() for name in names} | {"step", "samples_seen", "seconds_left"}
    others = sorted({name for row in rows for name in row} - known)
    probes = _rows(run / "probes.jsonl")
    groups += [{"title": "Others", "charts": _charts(rows, others)}]
    groups += [{"title": "Probes", "charts": _charts(probes, sorted({name for row in probes for name in row} - {"step"}))}]
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        files("trainer").joinpath("report.html.j2").read_text(encoding="utf-8")
    )
    config = words.get("config", {})
    page = template.render(
        name=f"{config.get('preset', run.name)}-{config.get('objective', '')}".rstrip("-"),
        step=rows[-1]["step"],
        num_steps=max(1, config.get("samples", 0) // max(1, config.get("batch_size", 1))),
        samples=int(rows[-1].get("samples_seen", 0)),
        best=_best(run),
        groups=[group for group in groups if group["charts"]],
        config=[(f"{a}.{b}", v) for a, inner in config.items() if isinstance(inner, dict) for b, v in inner.items()]
        + [(name, value) for name, value in config.items() if not isinstance(value, dict)],
    )
    path = out or run / "report.html"
    write_text_atomic(path, page)
    return path


def _charts(rows: list[dict[str, Any]], names: Any) -> list[Chart]:
    charts = []
    for name in names:
        points = [(row["step"], float(row[name])) for row in rows if name in row]
        if not points:
            continue
        steps, values = [step for step, _ in points], [value for _, value in points]
        low, high, first, last = min(values), max(values), steps[0], steps[-1]
        drawn = " ".join(
            f"{100 * (step - first) / max(1, last - first):.2f},{95 - 90 * (value - low) / ((high - low) or 1):.2f}"
            for step, value in points
        )
        shown, bottom, top = (f"{value:.4g}" for value in (values[-1], low, high))
        charts.append(Chart(name, drawn, shown, bottom, top, f"{first:,}", f"{last:,}", MEANINGS.get(name, "")))
    return charts


def _rows(path: Path) -> list[dict[str, Any]]:
    """Whole rows; the last one may have been cut off by a kill."""
    rows: list[dict[str, Any]] = []
    if not path.is_file():
        return rows
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            if number < len(lines):
                raise UserError(f"{path}:{number} is no row of a log") from None
    return rows


def _words(run: Path) -> dict[str, Any]:
    found = sorted((run / "checkpoints").glob("step_*.json"))
    return json.loads(found[-1].read_text(encoding="utf-8")) if found else {}


def _best(run: Path) -> str:
    scored = []
    for path in sorted((run / "checkpoints").glob("step_*.json")):
        score = json.loads(path.read_text(encoding="utf-8")).get("score")
        if score is not None:
            scored.append((score, path.stem))
    return max(scored)[1] if scored else ""
