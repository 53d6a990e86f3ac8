"""The report in Debian's chromium: with a pointer, with keys, on a phone, of hostile runs."""

import pytest
from browser import serious_faults, until

from silc_bench.trainer.monitor.report.page import write_report

pytestmark = pytest.mark.broad
LOSS = ".chart[aria-label^='Chart of Loss;']"
HOSTILE = ["<img src=x onerror=\"document.title='taken'\">", "constructor", "a" * 200, "\u202edcba"]


def log(scale, *, steps=6, every=10, **more):
    return [
        {
            "step": step,
            "samples_seen": 8 * step,
            "images_per_second": 8.0,
            "loss": scale * step,
            "lr": 1e-3 / step,
            "teacher_entropy": 0.5,
            **more,
        }
        for step in range(every, every * (steps + 1), every)
    ]


@pytest.fixture
def page_of(made):
    """The page of runs: {name: rows of its log}, with marks of every kind."""

    def written(runs):
        folders = []
        for name, rows in runs.items():
            probe = {"probe/shapes/knn": 0.5, "stderr/shapes/knn": 0.01, "teacher/shapes/knn": 0.6}
            probes = [{"step": step, **probe} for step in (20, 40)]
            folders.append(
                made(
                    name,
                    log=rows,
                    probes=probes,
                    notes=[{"step": 30, "note": f"beware of {name}"}],
                    history=[{"step": step, "event": "start"} for step in (0, 20)],
                    checkpoints=[{"step": 40, "score": 0.5, "config": {"seed": len(folders)}}],
                )
            )
        return write_report(folders, folders[0].parent / "page.html").read_text(encoding="utf-8")

    return written


@pytest.fixture
def two(page_of):
    return page_of({"first": log(1.0), "second": log(2.0)})


def readout(page, chart=LOSS):
    return page.locator(f"{chart} + .readout").inner_text()


def test_keys_move_a_cursor_through_all_charts(show, two):
    page = show(two)
    assert "first60 at step 60" in readout(page).replace("\n", "")
    page.locator(LOSS).focus()
    for key, step in (("ArrowRight", 10), ("ArrowRight", 20), ("End", 60), ("ArrowLeft", 50)):
        page.keyboard.press(key)
        assert f"{step} at step {step}" in readout(page)
        assert f"{2 * step} at step {step}" in readout(page)
    rate = ".chart[aria-label^='Chart of Learning rate;']"
    assert "2e-5 at step 50" in readout(page, rate)
    page.keyboard.press("Escape")
    assert "at step 60" in readout(page)


def test_a_pointer_shows_values_and_what_happened_there(show, two):
    page = show(two)
    drawing = page.locator(f"{LOSS} svg")
    # the plot lies between the margins of report.js; step 30 is in its middle
    middle = 48 + (drawing.bounding_box()["width"] - 62) / 2
    drawing.hover(position={"x": middle, "y": 100})
    text = readout(page)
    assert "30 at step 30" in text
    assert "first, step 30: beware of first" in text


def test_runs_are_hidden_and_the_axis_is_chosen_in_the_address(show, two):
    page = show(two)
    assert "second" in readout(page)
    page.get_by_role("checkbox", name="second").uncheck()
    until(page, "location.hash === '#hide=1'")
    assert "second" not in readout(page)
    assert page.locator(f"{LOSS} svg [stroke='var(--run-0)']").count() > 0
    assert page.locator(f"{LOSS} svg [stroke='var(--run-1)']").count() == 0
    page.locator("#axis").select_option("images")
    until(page, "location.hash.includes('axis=images')")
    assert page.locator(f"{LOSS} svg").get_by_text("images seen").count() == 1
    again = show(two, at="#" + page.url.partition("#")[2])
    assert readout(again) == readout(page)


def test_thresholds_and_marks_are_drawn_and_explained(show, two):
    page = show(two)
    chart = '.chart[aria-label="Chart of Teacher\'s entropy; arrow keys move through its values"]'
    text = page.locator(f"{chart} svg").text_content()
    for part in ("above 0.99: uniform", "ratio to ln K", "▼", "▲", "step"):
        assert part in text
    rules = page.locator(f"{chart} svg [stroke='var(--bound)'] line, {chart} svg line")
    assert rules.count() >= 3
    explained = page.locator("#marks").inner_text()
    for part in ("what the run said", "checkpoint", "resumption", "threshold"):
        assert part in explained
    assert (
        "(log scale)" in page.locator(".chart[aria-label^='Chart of Learning'] svg").text_content()
    )


def test_student_and_teacher_share_the_chart_of_a_probe(show, two):
    page = show(two)
    lines = readout(page, ".chart[aria-label^='Chart of shapes/knn;']").replace("\n", " ")
    for run in ("first", "second"):
        assert f"{run} 50.0 ± 1.0 % at step 40" in lines
        assert f"{run} ○ teacher 60.0 % at step 40" in lines
    assert "○ the teacher" in page.locator("#marks").inner_text()


def test_a_table_holds_the_same_values(show, page_of):
    page = show(page_of({"only": log(1.0, steps=60), "other": log(0.5, steps=3)}))
    details = page.locator(f"{LOSS} ~ details")
    details.locator("summary").click()
    details.locator("table").wait_for()
    cells = [row.split("\t") for row in details.locator("tbody").inner_text().splitlines()]
    assert cells[:3] == [
        ["least", "10 at 10", "5 at 10"],
        ["largest", "600 at 600", "15 at 30"],
        ["10", "10", "5"],
    ]
    assert cells[-1] == ["600", "600", ""]
    assert len(cells) == 2 + 25


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_phone_shows_all_within_its_width_and_axe_finds_nothing_serious(show, two, theme):
    page = show(two, width=360, height=640, color_scheme=theme)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.locator(f"{LOSS} ~ details summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert serious_faults(page) == []


def test_hostile_names_are_text_everywhere(show, page_of):
    runs = {name.replace("/", "|"): log(1.0, **{name: 1.0}) for name in HOSTILE}
    page = show(page_of(runs))
    assert "training report" in page.title()
    titles = page.locator(".card h3").all_inner_texts()
    assert set(HOSTILE) <= set(titles)
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280


def test_values_that_are_not_finite_and_single_rows_have_a_chart(show, page_of):
    rows = [*log(1.0, steps=1), {"step": 20, "samples_seen": 160, "loss": float("nan")}]
    page = show(page_of({"one": rows}))
    assert readout(page) == "last nan at step 20"
    assert "×" in page.locator(f"{LOSS} svg").text_content()
    page.locator(LOSS).focus()
    page.keyboard.press("ArrowRight")
    assert readout(page).startswith("10 at step 10")
