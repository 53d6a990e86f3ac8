"""One self-contained page of a run's curves, made from the files in its folder.

Flow: ``write_report(run)`` reads log.jsonl, probes.jsonl, notes.jsonl and what stands beside the
checkpoints -> a chart for each number -> report.html. It may be called while the run goes on.

    silc-bench report RUN
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jinja2

from silc_bench.errors import UserError
from silc_bench.system.checksums import read_sealed
from silc_bench.system.files import write_text_atomic
from silc_bench.trainer.config.config import flatten
from silc_bench.trainer.monitor.log import row_of

# Which curves stand together on the page, in this order.
GROUPS = {
    "Losses": ("loss", "contrastive", "distillation", "masked", "lr", "logit_scale", "logit_bias"),
    "Health": (
        "teacher_entropy",
        "teacher_entropy_at_recipe",
        "target_information",
        "student_teacher_kl",
        "prototypes_in_use",
        "patch_teacher_entropy",
        "patch_teacher_entropy_at_recipe",
        "patch_target_information",
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
# What stands below a curve; names say the rest.
MEANINGS = {
    "loss": "what is minimised: the losses beside it, each times its weight",
    "contrastive": "images against texts",
    "distillation": "student against teacher; it may rise while the teacher grows less certain",
    "masked": "patches that the student does not see, against the teacher",
    "lr": (
        "of the layers next to the end; earlier ones are slower where optim.layer_decay is below 1"
    ),
    "logit_scale": "what the cosine of an image and a text is multiplied by",
    "logit_bias": "added to it; the softmax loss has none",
    "teacher_entropy": "of ln K: 0 is one prototype, 1 is uniform; both are a collapse",
    "teacher_entropy_at_recipe": "the same at the recipe's teacher temperature, 0.04",
    "target_information": (
        "what targets tell of their image, of ln of the images looked at; below 0.05: nothing"
    ),
    "student_teacher_kl": "nats, of the same global view",
    "prototypes_in_use": "different winners among the images looked at",
    "patch_teacher_entropy": "of ln K, of masked patches",
    "patch_teacher_entropy_at_recipe": "the same at the recipe's teacher temperature, 0.04",
    "patch_target_information": "the same of one masked patch a view",
    "patch_student_teacher_kl": "nats, of patches that the student does not see",
    "patch_prototypes_in_use": "of one masked patch a view",
    "feature_rank": "effective rank of the embeddings; 1 is one direction",
    "ema_distance": "between the weights of student and teacher, over the size of the student's",
    "center_error": (
        "between the centre and the mean of the teacher's outputs, over the size of the mean"
    ),
    "patch_center_error": "the same of masked patches",
    "update_ratio": (
        "what a step changed of a matrix, over its size; above 0.15 the rate is too high"
    ),
    "gradient_norm": "of all weights, before clipping",
    "images_per_second": "pairs, by all processes together",
    "mfu": "of the device's measured rate of matrix products",
    "left_out": "pairs that could not be read, as often as they were met",
    "data_wait_share": "of the time; above 0.1 the data is too slow",
}


def write_report(run: Path, out: Path | None = None) -> Path:
    """RUN/report.html, or ``out``. UserError for a folder without a log, or with a damaged one."""
    path = out or run / "report.html"
    if path.is_dir():
        raise UserError(
            "is a folder, and the page is a file",
            about=path,
            fix=f"write --out {path / 'report.html'}",
        )
    rows = _rows(run / "log.jsonl")
    if not rows:
        raise UserError(
            "has no rows in log.jsonl",
            about=run,
            fix="name a run made by `silc-bench train --out`",
        )

    checkpoints = _checkpoints(run)
    config = checkpoints[-1][1].get("config", {}) if checkpoints else {}
    scored = [
        (record["score"], name) for name, record in checkpoints if record.get("score") is not None
    ]

    # Numbers that no group knows get charts too: a later version of the log may have more.
    in_groups = {"step", "samples_seen", "seconds_left"}
    in_groups |= {name for names in GROUPS.values() for name in names}
    others = sorted({name for row in rows for name in row} - in_groups)
    probes = _rows(run / "probes.jsonl")
    probe_names = sorted({name for row in probes for name in row} - {"step"})

    groups = [{"title": title, "charts": _charts(rows, names)} for title, names in GROUPS.items()]
    groups.append({"title": "Others", "charts": _charts(rows, others)})
    groups.append({"title": "Probes", "charts": _charts(probes, probe_names)})

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("silc_bench.trainer.monitor", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template("report.html.j2").render(
        name=f"{config.get('preset', run.name)}-{config.get('objective', '')}".rstrip("-"),
        step=rows[-1]["step"],
        num_steps=max(1, config.get("samples", 0) // max(1, config.get("batch_size", 1))),
        samples=int(rows[-1].get("samples_seen", 0)),
        best=max(scored)[1] if scored else "",
        notes=_notes(run / "notes.jsonl"),
        groups=[group for group in groups if group["charts"]],
        config=flatten(config).items(),
    )
    write_text_atomic(path, page)
    return path


def _charts(rows: list[dict[str, Any]], names: Iterable[str]) -> list[dict[str, str]]:
    """A chart for each name that has a finite value at all, in the words of the page's template.

    A value that is not finite is left out of its curve, and shown where it is the last.
    """
    charts = []
    for name in names:
        series = [(row["step"], float(row[name])) for row in rows if name in row]
        points = [(step, value) for step, value in series if math.isfinite(value)]
        if not points:
            continue

        values = [value for _, value in points]
        charts.append(
            {
                "name": name,
                "points": _polyline(points),
                "last": f"{series[-1][1]:.4g}",
                "low": f"{min(values):.4g}",
                "high": f"{max(values):.4g}",
                "first_step": f"{points[0][0]:,}",
                "last_step": f"{points[-1][0]:,}",
                "meaning": MEANINGS.get(name, ""),
            }
        )
    return charts


def _polyline(points: list[tuple[int, float]]) -> str:
    """(step, value) as points of SVG, from 0 to 100 across and, with a margin, from 95 up to 5."""
    if len(points) == 1:
        return "50,50 50,50"  # a line of no length, which round ends make a dot

    values = [value for _, value in points]
    low = min(values)
    height = (max(values) - low) or 1  # a flat curve lies at the bottom
    first = points[0][0]
    width = max(1, points[-1][0] - first)
    return " ".join(
        f"{100 * (step - first) / width:.2f},{95 - 90 * (value - low) / height:.2f}"
        for step, value in points
    )


def _rows(path: Path) -> list[dict[str, Any]]:
    """Whole rows; the last one may have been cut off by a kill."""
    if not path.is_file():
        return []

    rows = []
    lines = path.read_bytes().splitlines()
    for number, line in enumerate(lines, start=1):
        row = row_of(line)

        # type() and not isinstance: true is no number.
        if row and all(type(value) in (int, float) for value in row.values()):
            rows.append(row)
        elif number < len(lines):
            raise UserError(
                "is no row of a log",
                about=f"{path}:{number}",
                fix="name a run made by `silc-bench train --out`; where this is one, remove the"
                " line",
            )
    return rows


def _notes(path: Path) -> list[str]:
    """What the run said of itself, each sentence once however often it was resumed.

    Whole lines alone: the last one may have been cut off by a kill.
    """
    if not path.is_file():
        return []

    notes = []
    for line in path.read_bytes().splitlines():
        row = row_of(line)
        if row and "note" in row:
            notes.append(str(row["note"]))
    return list(dict.fromkeys(notes))  # in the order in which they were said


def _checkpoints(run: Path) -> list[tuple[str, dict[str, Any]]]:
    """(name, the record beside it) of each checkpoint, oldest first.

    Those whose record is damaged are left out.
    """
    checkpoints = []
    for path in sorted((run / "checkpoints").glob("step_*.json")):
        record = read_sealed(path)
        if record is not None:
            checkpoints.append((path.stem, record))
    return checkpoints
