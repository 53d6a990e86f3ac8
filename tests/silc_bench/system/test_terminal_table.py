"""Tables that fit a terminal: no line too wide, no number broken, no name lost."""

import io
import re

import pytest
from hostile import HOSTILE_NAMES, cells
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from silc_bench.system.terminal_table import (
    Column,
    Listing,
    fitted,
    legend,
    short_names,
    shortened,
    visible,
    width_of,
    wrapped,
)

NAMES = st.one_of(st.sampled_from(HOSTILE_NAMES), st.text(min_size=1, max_size=60))
NUMBERS = st.from_regex(r"-?\d{1,3}\.\d ±\d\.\d", fullmatch=True)


@st.composite
def boards(draw):
    """Heads, and rows of a name and numbers."""
    heads = draw(st.lists(NAMES, min_size=1, max_size=9))
    numbers = st.lists(NUMBERS, min_size=len(heads), max_size=len(heads))
    return heads, draw(st.lists(st.tuples(NAMES, numbers), min_size=1, max_size=4))


@given(boards(), st.sampled_from([40, 80, 132]))
@example(
    (list(HOSTILE_NAMES), [(name, ["45.5 ±1.2"] * len(HOSTILE_NAMES)) for name in HOSTILE_NAMES]),
    80,
)
@example(([" \U00018cd6\U00018d09"], [("a" * 170, ["0.0 ±0.0"])]), 40)
def test_every_table_fits_and_holds_every_value(board, width):
    heads, rows = board
    shorts = short_names([visible(name) for name, _ in rows], width // 2)
    columns = [Column("model"), *(Column(visible(head), ("acc1",), True) for head in heads)]
    lines = []
    for name, numbers in rows:
        lines.append([((shorts[visible(name)], ""),), *(((number, ""),) for number in numbers)])
    text = fitted(columns, lines, width).plain
    assert max(cells(line) for line in text.split("\n")) <= width
    for number in {number for _, numbers in rows for number in numbers}:
        shown = re.findall(rf"(?<![\d.-]){re.escape(number)}(?![\d.])", text)
        assert len(shown) == sum(numbers.count(number) for _, numbers in rows)

    # the legend gives back what was shortened
    told = legend(shorts, width).plain
    assert max(cells(line) for line in told.split("\n")) <= width
    told = re.sub(r"\s", "", told)
    for name, short in shorts.items():
        assert name == short or re.sub(r"\s", "", f"{short}={name}") in told


@given(st.lists(st.tuples(NAMES, NAMES, NAMES), min_size=1, max_size=3), st.sampled_from([40, 80]))
@example([(name, name, name) for name in HOSTILE_NAMES], 80)
def test_every_listing_fits_and_shows_every_letter(rows, width):
    listing = Listing("field", HOSTILE_NAMES[1], "of it", title=HOSTILE_NAMES[2])
    for row in rows:
        listing.add_row(*row)
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(listing)
    shown = console.file.getvalue()
    assert max(map(cells, shown.splitlines())) <= width
    letters = set("".join(visible(text) for row in rows for text in row))
    assert letters <= set(shown) | {" "}


@given(st.lists(NAMES, unique=True), st.integers(8, 40))
@example(["x" * 50 + digit + "x" * 50 for digit in "123456789012"], 10)
def test_no_two_short_names_meet(names, width):
    shorts = short_names(names, width)
    assert list(shorts) != [] or not names
    assert len(set(shorts.values())) == len(set(names))
    assert all(width_of(short) <= width for short in shorts.values())


@given(st.text(), st.integers(1, 30))
def test_wrapping_loses_no_letter(text, width):
    text = visible(text)
    lines = wrapped(text, width)
    assert re.sub(r"\s", "", "".join(lines)) == re.sub(r"\s", "", text)
    widest_letter = max(map(width_of, text), default=0)
    assert all(width_of(line) <= max(width, widest_letter) for line in lines)


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("cifar100/zeroshot", 10, ["cifar100/", "zeroshot"]),
        ("text_retrieval_recall@1", 12, ["text_", "retrieval_", "recall@1"]),
        ("CIFAR-100 zero-shot, top-1", 10, ["CIFAR-100", "zero-shot,", "top-1"]),
        ("cross-correspondence", 12, ["cross-", "corresponden", "ce"]),
        ("from 1e-05 to -0.5", 6, ["from", "1e-05", "to", "-0.5"]),
    ],
)
def test_texts_are_broken_between_words(text, width, lines):
    assert wrapped(text, width) == lines


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\u202eb", "a<U+202E>b"),
        ("a\nb\x1b[31m", "a<U+000A>b<U+001B>[31m"),
        ("❤\ufe0f", "❤<U+FE0F>"),
        ("שלום", "\u200eשלום\u200e"),
        ("模型 e\u0301", "模型 e\u0301"),
    ],
)
def test_what_has_no_shape_is_written_out(text, shown):
    assert visible(text) == shown


def test_a_name_keeps_its_two_ends():
    assert shortened("open_clip:ViT-B-32/laion2b_s34b_b79k", 21) == "open_clip:…_s34b_b79k"
