"""The tables of the manual that repeat what the code says: presets, objectives, bounds, fields."""

import re
from pathlib import Path

import pytest

from silc_bench.trainer.config.config import OBJECTIVES
from silc_bench.trainer.config.presets import PRESETS, make_preset
from silc_bench.trainer.loop import FREE_ON_RESUME
from silc_bench.trainer.monitor import bounds, health

DOCS = Path(__file__).resolve().parents[2] / "docs"


def rows_of(page, heading):
    """The cells of the first table below a heading, by their first cell."""
    text = (DOCS / page).read_text(encoding="utf-8").split(f"\n## {heading}\n")[1]
    lines = re.search(r"(?:^\|.*\n)+", text, flags=re.M)[0].splitlines()[2:]
    cells = [[cell.strip(" `") for cell in line.strip("|").split(" | ")] for line in lines]
    return {row[0]: row[1:] for row in cells}


def test_the_table_of_presets_has_each_with_its_numbers():
    rows = rows_of("recipe.md", "Presets")
    assert set(rows) == set(PRESETS)
    for name, (_, *said) in rows.items():
        config = make_preset(name)
        samples = config.samples
        large = {10**9: "billion", 10**6: "million"}
        unit = next((unit for unit in large if samples >= unit), None)
        assert said == [
            str(config.vision.image_size),
            f"{config.vision.width:,}, {config.vision.depth}",
            f"{config.batch_size:,}",
            f"{samples / unit:g} {large[unit]}" if unit else f"{samples:,}",
            f"{config.optim.lr:.0e}".replace("e-0", "e-"),
        ], name


def test_the_table_of_objectives_has_each():
    rows = rows_of("recipe.md", "Objectives and controls")
    assert {name.removesuffix("` (default)") for name in rows} == set(OBJECTIVES)


@pytest.mark.parametrize(
    ("warning", "bound"),
    [
        (health.ONE_DIRECTION, bounds.SAME),
        ("teacher is uniform", bounds.UNIFORM),
        (health.ONE_PROTOTYPE, bounds.CERTAIN),
        ("teacher is one-hot", bounds.ONE_HOT),
        ("targets teach next to nothing", bounds.TELLS_NOTHING),
        ("steps too large", bounds.LEAP),
        ("waiting for data", bounds.MAX_WAIT),
    ],
)
def test_the_table_of_warnings_has_the_bounds(warning, bound):
    when = rows_of("health.md", "Warnings")[warning][0]
    assert [float(number) for number in re.findall(r"\d+\.\d+", when)] == [bound]


def test_what_a_resumed_run_may_change_is_listed():
    text = (DOCS / "runs.md").read_text(encoding="utf-8")
    listed = text.split("**These may change**")[1].split(". So ")[0]
    fields = {name.removeprefix("--") for name in re.findall(r"`([^`]+)`", listed)}
    assert fields == set(FREE_ON_RESUME)
