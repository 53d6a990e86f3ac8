"""What the finished runs say: tables, a figure, and what follows from the rule."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

from differences import Rows, by_seed, differences
from jobs import Study, chosen, rows_as_tuned, rows_of_variant
from plan import AGAINST, ARMS, PLACES, SEARCHED, SETTINGS, TRIED_LATER, VARIANTS, Setting


def report(study: Study, setting: str) -> None:
    """Write the tables, the figure, and the verdict of a setting, as far as there are runs."""
    from silc_bench.reports.forms.forest_plot import draw

    plan = SETTINGS[setting]
    found = study.rows("run", setting)
    if not found:
        command = f"python benchmarks/study run --setting {setting}"
        sys.exit(f"{study.lines_of('run', setting)} has no runs yet: {command}")
    if plan.others_of:
        others = study.rows("run", plan.others_of)
        found = found + [row for row in others if row["arm"] not in plan.arms]

    text = [f"# {plan.title}", ""]
    if plan.is_confirmation:
        text += [f"The search chose: {chosen(study)}.", ""]
    text += [described(found, arm) for arm in ARMS if by_seed(found, arm, "student")]
    measures, decisive = tuple(plan.world.measures), plan.world.decisive
    for branch, columns in (("student", measures), ("teacher", plan.world.of_teacher)):
        text += ["", f"{branch}, percent, mean ± half of the 95 % interval over seeds:", ""]
        text += header("arm", columns)
        for arm in ARMS:
            values = by_seed(found, arm, branch)
            if values:
                cells = [interval([row[name] for row in values.values()]) for name in columns]
                text.append(line(arm, len(values), cells))

    text += ["", "Differences of students in points, paired by seed; **bold** excludes 0:", ""]
    text += header("difference", measures)
    for arm in (arm for arm in ARMS if arm != "silc" and by_seed(found, arm, "student")):
        of_arm = differences(found, arm)
        cells = [marked(of_arm[name]) for name in measures]
        text.append(line(f"silc - {arm}", len(of_arm[decisive[0]]), cells))

    text += ["", verdict(found, plan)]
    path = study.out / f"{setting}.md"
    path.write_text("\n".join(text) + "\n", encoding="utf-8")
    print("\n".join(text))
    figure = figure_rows(found, decisive)
    if figure:
        title = f"{plan.title}: student of silc minus the student of ..."
        draw(figure, title, path.with_suffix(".png"))


def described(found: Rows, arm: str) -> str:
    """With what an arm ran, and for how long."""
    own = [row for row in found if row["arm"] == arm]
    lr, clip, samples = (own[0][name] for name in ("lr", "clip", "samples"))
    seconds = mean(row["train_seconds"] for row in own)
    return (
        f"`{arm}`: optim.lr={lr}, optim.clip_norm={clip}; {samples:,} images seen,"
        f" {seconds:.0f} CPU seconds of training  "
    )


def verdict(found: Rows, plan: Setting) -> str:
    """What follows from the rule; nothing, as long as a seed of it is missing."""
    decisive = plan.world.decisive
    cells = [(arm, name, differences(found, arm)[name]) for arm in AGAINST for name in decisive]
    fewest = min(len(points) for _, _, points in cells)
    if fewest < len(plan.seeds):
        return (
            f"**Not decided**: the rule asks for {len(plan.seeds)} seeds of each arm, and {fewest}"
            " are complete. Until then nothing here speaks about the method."
        )
    failed = [
        f"{name}, against {arm} ({interval(points, '+')})"
        for arm, name, points in cells
        if not (mean(points) > 0 and excludes_zero(points))
    ]
    if failed:
        return (
            "By the rule written in the script, SILC's claim **does not hold** in this setting: 0"
            f" is not excluded, or silc is below, for {'; '.join(failed)}."
        )
    return "By the rule written in the script, SILC's claim **holds** in this setting."


def report_search(study: Study) -> None:
    """Every variant that was tried, with its outcome, in search.md."""
    setting, decisive = PLACES.tuned_on, PLACES.decisive
    found = study.rows("search", setting)
    if not found:
        lines = study.lines_of("search", setting)
        sys.exit(f"{lines} has no runs yet: python benchmarks/study search")
    columns = [f"silc, {name}" for name in decisive]
    columns += [f"- {arm}, {name}" for arm in AGAINST for name in decisive]
    text = [
        "# The search, places, 1,024 pairs",
        "",
        f"{len(SEARCHED)} variants; percent of silc's student, and its differences in points, on",
        '"val" with the tuning seeds: mean, and lowest to highest. None of these numbers is a',
        f"result; they only choose what is confirmed. The last {len(TRIED_LATER)} rows came after",
        "the confirmation and choose nothing.",
        "",
        *header("variant", tuple(columns)),
    ]
    text.append(line("as tuned", *outcome(rows_as_tuned(study))))
    for name in VARIANTS:
        if any(row["variant"] == name for row in found):
            text.append(line(name, *outcome(rows_of_variant(study, name))))
    path = study.out / "search.md"
    path.write_text("\n".join(text) + "\n", encoding="utf-8")
    print("\n".join(text))


def outcome(rows: Rows) -> tuple[int, list[str]]:
    """Number of seeds of silc, and the cells of a variant."""
    silc = by_seed(rows, "silc", "student")
    cells = [spread([values[name] for values in silc.values()]) for name in PLACES.decisive]
    for arm in AGAINST:
        of_arm = differences(rows, arm)
        cells += [spread(of_arm[name], "+") for name in PLACES.decisive]
    return len(silc), cells


def figure_rows(found: Rows, decisive: Sequence[str]) -> list[Any]:
    """A heading for each decisive measure, then a line for each arm; none without intervals."""
    from silc_bench.reports.forms.forest_plot import Row

    drawn = []
    for name in decisive:
        own = []
        for arm in (arm for arm in ARMS if arm != "silc"):
            points = differences(found, arm)[name]
            if len(points) > 1:
                tone = "no difference"
                if excludes_zero(points):
                    tone = "better" if mean(points) > 0 else "worse"
                note = f"{interval(points, '+')}, {len(points)} seeds"
                own.append(Row(f"  {arm}", mean(points), half_interval(points), tone, note))
        drawn += [Row(f"{name}, mIoU"), *own] if own else []
    return drawn


# ---- numbers ----


def header(first: str, columns: tuple[str, ...]) -> list[str]:
    cells = (first, "seeds", *columns)
    return [f"| {' | '.join(cells)} |", "|---" * len(cells) + "|"]


def line(name: str, num_seeds: int, cells: Sequence[str]) -> str:
    return f"| {name} | {num_seeds} | {' | '.join(cells)} |"


def marked(points: list[float]) -> str:
    if not points:
        return ""
    mark = "**" if len(points) > 1 and excludes_zero(points) else ""
    return f"{mark}{interval(points, '+')}{mark}"


def spread(values: list[float], sign: str = "") -> str:
    """Mean (lowest to highest): of two seeds an interval would say nothing."""
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:{sign}.1f}"
    return f"{mean(values):{sign}.1f} ({min(values):{sign}.1f} to {max(values):{sign}.1f})"


def interval(values: list[float], sign: str = "") -> str:
    if len(values) < 2:
        return f"{mean(values):{sign}.1f}"
    return f"{mean(values):{sign}.1f} ± {half_interval(values):.1f}"


def excludes_zero(values: list[float]) -> bool:
    return abs(mean(values)) > half_interval(values)


def half_interval(values: list[float]) -> float:
    """Half of the 95 % interval of the mean (Student's t)."""
    from scipy import stats

    return float(stats.t.ppf(0.975, len(values) - 1) * stdev(values) / len(values) ** 0.5)
