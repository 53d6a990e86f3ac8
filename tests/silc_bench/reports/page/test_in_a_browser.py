"""The page in Debian's chromium: what a reader does with a pointer, with keys, on a phone."""

import random
import re

import pytest
from boards import made, page_of, published, typical
from browser import serious_faults, until

from silc_bench.reports.page.document import Difference

pytestmark = pytest.mark.broad
ALPHA = "#column=cifar100%2Fzeroshot+acc1&model=alpha%4011111111"


def names(page, part="#overview"):
    """The models of a table from top to bottom, the published ones after a line of their own."""
    return page.locator(f"{part} tbody tr:not(.space):not(.divider) th a").all_inner_texts()


def column(page, title, part="#overview"):
    """The texts of the column with this heading, gaps as ""."""
    heads = page.locator(f"{part} thead th").all_inner_texts()
    (index,) = [place for place, text in enumerate(heads) if title in re.sub(r"\s+", " ", text)]
    rows = page.locator(f"{part} tbody tr:not(.space):not(.divider)").all()
    return [row.locator("th,td").nth(index).inner_text() for row in rows]


def test_the_overview_centres_on_chance_ranks_and_leaves_gaps(show):
    page = show(typical())
    assert page.locator("#facts").inner_text().split(" · ") == [
        "newest record 2026-11-25", "silc-bench 0.1.0", "3 models", "2 questions", "400 images"
    ]  # fmt: skip
    assert dict(zip(names(page), column(page, "zero-shot"), strict=True)) == {
        "alpha": "50.0", "beta": "37.5", "gamma": "62.5", "paper": "75.0"
    }  # fmt: skip
    assert dict(zip(names(page), column(page, "few-shot"), strict=True)) == {
        "alpha": "50.0", "beta": "60.0", "gamma": "", "paper": ""
    }  # fmt: skip
    # of all three models one question: by rank, the published one last
    assert names(page) == ["gamma", "alpha", "beta", "paper"]
    assert column(page, "mean rank") == ["1.00", "2.00", "3.00", ""]


@pytest.mark.parametrize("part", ["zero-shot", "changes", "unranked"])
def test_an_address_opens_at_its_part(show, part):
    page = show(typical(), at=f"#at={part}", width=360, height=640)
    assert 0 <= page.locator(f"section[data-part='{part}']").bounding_box()["y"] < 640
    assert page.evaluate("scrollY") > 0


def test_a_score_below_chance_is_told_from_one_at_chance(show):
    values = {"above": 0.6, "at": 0.19999, "below": 0.1}
    page = show(page_of([made(name, value, chance=0.2) for name, value in values.items()]))
    assert dict(zip(names(page), column(page, "zero-shot"), strict=True)) == {
        "above": "50.0", "at": "0.0", "below": "-12.5"
    }  # fmt: skip
    assert "Below 0 a model scores less than chance" in page.locator("#overview").inner_text()


def test_a_heading_sorts_both_ways_and_stands_in_the_address(show):
    page = show(typical())
    head = page.locator("#overview thead th", has_text="size").get_by_role("button")
    for order, expected in (
        ("ascending", ["alpha", "beta", "gamma", "paper"]),
        ("descending", ["gamma", "beta", "alpha", "paper"]),
    ):
        head.click()
        page.wait_for_selector(f"#overview thead th:nth-child(2)[aria-sort='{order}']")
        assert names(page) == expected, "measured models stand first"
    assert page.url.endswith("sort.overview=-size")


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        ({"q": "ALPHA"}, ["alpha"]),
        ({"q": "lph 111"}, ["alpha"]),
        ({"size": "5e7-2e8"}, []),
        ({"size": "0-5e7"}, ["alpha", "beta", "paper"]),
        ({"kind": "measured"}, ["gamma", "alpha", "beta"]),
        ({"kind": "published"}, ["paper"]),
        ({"question": "cifar100/fewshot acc1_10shot"}, ["beta", "alpha"]),
        ({"family": "few-shot"}, ["beta", "alpha", "gamma"]),
    ],
)
def test_filters_narrow_every_table_and_stand_in_the_address(show, choices, expected):
    page = show(typical())
    for name, value in choices.items():
        control = page.locator(f"#{name}")
        control.fill(value) if name == "q" else control.select_option(value)
    until(
        page,
        "expected => document.querySelectorAll("
        "'#overview tbody tr:not(.space):not(.divider)').length === expected",
        arg=len(expected),
    )
    assert sorted(names(page)) == sorted(expected)
    assert page.locator("#none").is_visible() == (expected == [])

    # the address alone shows the same
    again = show(typical(), at="#" + page.url.partition("#")[2])
    assert names(again) == names(page)
    page.locator("#reset").click()
    until(page, "document.querySelectorAll('#overview tbody th').length === 4")


def test_columns_are_chosen(show):
    page = show(typical())
    few = page.locator("section[data-part='few-shot']")
    assert few.locator("thead th").count() == 4
    few.get_by_text("Columns").click()
    few.get_by_label("CIFAR-100 few-shot ridge, top-1, 1-shot").uncheck()
    until(
        page, "document.querySelectorAll(\"section[data-part='few-shot'] thead th\").length === 3"
    )
    assert "show.few-shot" in page.url


def test_the_best_and_the_tied_are_said_not_only_painted(show):
    page = show(typical())
    part = "section[data-part='zero-shot']"
    cells = dict(zip(names(page, part), column(page, "CIFAR-100", part), strict=True))
    assert re.fullmatch(r"70\.0\s*±1\.0\s*best", cells["gamma"])
    assert re.fullmatch(r"60\.0\s*±1\.0\s*tied with the best", cells["alpha"])
    assert re.fullmatch(r"50\.0\s*±1\.0", cells["beta"])
    assert re.fullmatch(r"published\s*80\.0", cells["paper"])


def test_a_cell_opens_its_record_and_back_closes_it(show):
    page = show(typical())
    page.locator("section[data-part='zero-shot'] tbody td a", has_text="60.0").click()
    dialog = page.locator("dialog[open]")
    dialog.wait_for()
    text = dialog.inner_text()
    for part in (
        "CIFAR-100 zero-shot, top-1", "alpha", "95 % interval 58.0 to 62.0", "chance 20.0",
        "tied with the best", "a drawing of a {c}.", "--ckpt runs/alpha", "0.1.0",
    ):  # fmt: skip
        assert part in text
    page.wait_for_selector("#class-table")
    page.go_back()
    page.wait_for_selector("dialog:not([open])", state="attached")
    assert "model=" not in page.url


def test_two_models_stand_side_by_side_by_class(show):
    page = show(typical(), at=ALPHA)
    page.locator("#beside").select_option(label="beta @11111111")
    page.wait_for_selector("#class-table thead th:nth-child(4)")
    rows = [
        row.all_inner_texts()
        for row in (one.locator("th,td") for one in page.locator("#class-table tbody tr").all())
    ]
    assert rows == [
        ["apple", "90.0", "40.0", "+50.0"],
        ["bear", "60.0", "60.0", "0.0"],
        ["cup", "30.0", "none", "none"],
    ]
    page.locator("#by-name").click()
    page.wait_for_selector("#class-table th[aria-sort='ascending']")
    assert "with=beta" in page.url


def test_a_published_number_opens_its_source(show):
    page = show(typical())
    page.locator("section[data-part='zero-shot'] td.hollow a").click()
    link = page.locator("dialog[open] dd a")
    link.wait_for()
    assert link.get_attribute("href") == "https://arxiv.org/abs/2310.13355"
    assert "never ranked" in page.locator("dialog").inner_text()


def test_a_model_opens_all_its_scores(show):
    page = show(typical(), at="#model=alpha%4011111111")
    captions = page.locator("dialog[open] caption")
    captions.first.wait_for()
    assert captions.all_inner_texts() == ["Zero-shot classification", "Few-shot classification"]
    page.keyboard.press("Escape")
    until(page, "!location.hash.includes('model')")


def test_an_address_of_a_model_that_is_gone_says_so(show):
    page = show(typical(), at="#model=%3Cb%3Egone")
    page.get_by_text("No such model").wait_for()
    assert "<b>gone" in page.locator("dialog").inner_text()


def test_keys_alone_reach_open_and_leave_a_record(show):
    page = show(typical())
    first = page.locator("section[data-part='zero-shot'] tbody th a").first
    first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.textContent") == "60.0"
    page.keyboard.press("Enter")
    page.locator("dialog[open]").wait_for()
    assert page.evaluate("document.activeElement.id") == "dialog-title"
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog:not([open])", state="attached")
    assert page.evaluate("document.activeElement.textContent") == "60.0"
    # one stop of the Tab key a table, and the table itself, which scrolls
    assert page.locator("section[data-part='zero-shot'] tbody a[tabindex='0']").count() == 1


@pytest.mark.parametrize(
    ("system", "asked", "expected"),
    [
        ("light", "", "light"),
        ("dark", "", "dark"),
        ("light", "dark", "dark"),
        ("dark", "light", "light"),
    ],
)
def test_themes(show, system, asked, expected):
    page = show(typical(), at=f"#theme={asked}" if asked else "", color_scheme=system)
    red = page.evaluate(
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]"
    )
    assert (red > 128) == (expected == "light")
    page.locator("#theme").click()
    until(
        page,
        "theme => new URLSearchParams(location.hash.slice(1)).get('theme') === theme",
        arg={"": "light", "light": "dark", "dark": None}[asked],
    )


def test_a_phone_shows_a_score_at_once_and_nothing_sticks_out(show):
    page = show(typical(), width=360, height=640)
    score = page.locator("#overview tbody tr:not(.space) td a").first.bounding_box()
    assert score["x"] + score["width"] <= 360
    assert score["y"] + score["height"] <= 640
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


@pytest.mark.parametrize("width", [360, 800, 1280])
def test_the_names_of_what_changed_stand_within_their_card(show, width):
    names = ["shapes, colours patch correspondence, patch R@1", "COCO mini, all", "short"]
    changes = {"twins": [Difference(name, 0.5, 0.6, 0.05, 0.15) for name in names]}
    page = show(page_of([made("alone", 0.5)], changes=changes), width=width)
    card = page.locator("#changes .card").bounding_box()
    labels = page.locator("#changes svg text").all()
    boxes = [label.bounding_box() for label in labels if re.search("[a-z]", label.text_content())]
    assert len(boxes) == 3
    for box in boxes:
        assert card["x"] <= box["x"]
        assert box["x"] + box["width"] <= card["x"] + card["width"]


def test_rows_out_of_sight_are_not_in_the_document_but_are_counted_and_reached(show):
    page = show(page_of([made(f"model {number:03}", number / 1000) for number in range(300)]))
    part = "section[data-part='zero-shot']"
    assert page.locator(f"{part} table").get_attribute("aria-rowcount") == "301"
    assert len(names(page, part)) < 60
    page.locator(f"{part} tbody th a").first.focus()
    assert page.evaluate("document.activeElement.textContent") == "model 299"
    for _ in range(40):
        page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.textContent") == "model 259"
    row = page.locator(f"{part} tbody tr", has_text="model 259")
    assert row.get_attribute("aria-rowindex") == "42"


# What the page computes, beside the same in Python.


def test_numbers_are_rounded_as_in_the_tables_beside_the_page(show):
    values = [count / 2000 for count in range(2001)] + [count / 17 for count in range(18)]
    page = show(typical())
    shown = page.evaluate("values => values.map((value) => valueText(value))", values)
    assert shown == [f"{100 * value:.1f}" for value in values]


def test_mean_ranks_share_the_rank_of_equal_values(show):
    draws = random.Random(0)
    rows = range(8)
    columns = [[draws.randrange(5) / 10 for _ in rows] for _ in range(6)]
    page = show(typical())
    shown = page.evaluate(
        """columns => [...meanRanks(columns[0].map((_, row) => row), columns.map((values) => ({
          is_fraction: true,
          cells: new Map(values.map((value, row) => [row, {value}])),
        }))).values()]""",
        columns,
    )
    for row, mean in zip(rows, shown, strict=True):
        ranks = [
            1 + sum(v > own[row] for v in own) + (sum(v == own[row] for v in own) - 1) / 2
            for own in columns
        ]
        assert mean == pytest.approx(sum(ranks) / len(ranks))


@pytest.mark.parametrize(
    ("asked", "rows", "shared"),
    [
        (["abc", "abc", "ab"], "abc", [0, 1]),  # of all: what all share
        (["ab", "abc", "c"], "abc", [1]),
        (["ab", "ab", "c"], "ab", [0, 1]),  # the question of most models, and theirs
        (["a", "b"], "a", [0]),
        ([""], "", []),
    ],
)
def test_a_score_is_of_the_questions_that_most_models_share(show, asked, rows, shared):
    page = show(typical())
    found = page.evaluate(
        """asked => {
          const cells = (names) => new Map([...names].map((name) => [name, {}]));
          const columns = asked.map((names) => ({ cells: cells(names) }));
          const base = basis(columns, ["a", "b", "c"]);
          return [base.rows.join(""), base.columns.map((one) => columns.indexOf(one))];
        }""",
        asked,
    )
    assert found == [rows, shared]


def test_the_line_joins_what_no_smaller_model_beats(show):
    draws = random.Random(0)
    points = [{"params": draws.randrange(1, 20), "score": draws.randrange(20)} for _ in range(40)]
    page = show(typical())
    line = page.evaluate("points => paretoLine(points)", points)
    expected = {
        (one["params"], one["score"])
        for one in points
        if not any(
            other["params"] <= one["params"]
            and other["score"] >= one["score"]
            and (other["params"], other["score"]) != (one["params"], one["score"])
            for other in points
        )
    }
    assert {(one["params"], one["score"]) for one in line} == expected
    assert line == sorted(line, key=lambda one: one["params"])


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        (page_of([]), []),
        (page_of([], [published("paper", {"cifar100/zeroshot": {"acc1": 0.9}})]), ["paper"]),
        (page_of([made("alone", 0.5)]), ["alone"]),
        (
            page_of([made(name, {"median_rank": rank}, chance=50.0) for name, rank in
                (("slow", 9.0), ("fast", 2.0))]),
            ["fast", "slow"],
        ),
    ],
    ids=["empty", "published", "one", "ranks"],
)  # fmt: skip
def test_small_and_strange_boards(show, page, expected):
    assert names(show(page)) == expected


@pytest.mark.parametrize("remarks", [[], ["a.json is no record", "<b>2</b> twice"]])
def test_what_was_left_out_is_said_below_the_tables(show, remarks):
    page = show(page_of([made("alone", 0.5)], remarks=remarks))
    assert page.locator("#remarks").is_visible() == bool(remarks)
    assert page.locator("#remarks li").all_inner_texts() == remarks
    assert ("Left out" in page.locator("#parts button").all_inner_texts()) == bool(remarks)


HOSTILE = [
    "<script>document.title='taken'</script>",
    "<img src=x onerror=\"document.title='taken'\">",
    "\N{RIGHT-TO-LEFT OVERRIDE}nur/\N{HEBREW LETTER ALEF}\N{ARABIC LETTER BEH}",
    "x" * 300,
    "\N{PILE OF POO}\N{ZERO WIDTH JOINER}\N{FAMILY} 模型",
    "=cmd()",
    "__proto__",
    "\" ' & </td> ${1} {{ 1 }}",
]


def test_hostile_names_are_text_everywhere(show):
    records = [
        made(name, 0.5 + index / 100, scores=[0.1, 0.2, 0.3], source=name, details={name: name})
        for index, name in enumerate(HOSTILE)
    ]
    values = {"cifar100/zeroshot": {"acc1": 0.9}}
    reported = [published(f"published {name}", values, note=name) for name in HOSTILE]
    page = show(page_of(records, reported))
    titles = page.locator("#overview tbody th a").evaluate_all("all => all.map(one => one.title)")
    assert set(HOSTILE) <= set(titles)
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    for name in HOSTILE:
        page.locator("#overview tbody th a").nth(titles.index(name)).click()
        heading = page.locator("dialog[open] h2")
        heading.wait_for()
        assert heading.text_content() == name
        page.locator("dialog td a").first.click()
        page.wait_for_selector("#class-table")
        assert name in page.locator("dialog pre").text_content().replace("'\"'\"'", "'")
        page.keyboard.press("Escape")
        page.wait_for_selector("dialog:not([open])", state="attached")
    assert page.title() == "silc-bench leaderboard"


@pytest.mark.parametrize(
    "at", ["", ALPHA, ALPHA + "&with=beta%4011111111", "#model=alpha%4011111111"]
)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious(show, at, theme):
    page = show(typical(), at=at, color_scheme=theme)
    if "with" in at:
        page.wait_for_selector("#class-table thead th:nth-child(4)")
    elif at:
        page.locator("dialog[open]").wait_for()
    assert serious_faults(page) == []
