"""LaTeX: a name is printed as it is, and tables keep their shape whatever stands in them."""

import re

import pytest
from hostile import HOSTILE_NAMES
from hypothesis import example, given
from hypothesis import strategies as st

from silc_bench.reports.forms.latex import LETTERS, MOST_ROWS, escaped, table, to_latex
from silc_bench.reports.tables import Board, Cell, Figure, Head, Section, Table
from silc_bench.system.terminal_table import Column, visible

# What TeX makes of a word of ours, read from the manual and not from the code.
PRINTED = {
    "textbackslash": "\\",
    "textasciicircum": "^",
    "textasciitilde": "~",
    "textless": "<",
    "textgreater": ">",
    "textbar": "|",
    "textquotedbl": '"',
    "textquotesingle": "'",
    "textasciigrave": "`",
    "textendash": "–",
    "dots": "…",
    "kern": "",
}
TOKEN = re.compile(
    r"\\([a-z]+)(?:0pt)?\{\}|\\([{}$&#%_])|\{([\[\]*])\}|\$\\pm\$()|([^\\{}$&#%_^~])"
)
NAMES = st.one_of(st.sampled_from(HOSTILE_NAMES), st.text(max_size=40))


def printed(tex):
    """The letters on paper; fails on anything that would do something else than print."""
    letters, end = [], 0
    for match in TOKEN.finditer(tex):
        assert match.start() == end, f"TeX would not print {tex[end:]!r}"
        end = match.end()
        word, sign, bracket, plus_minus, letter = match.groups()
        if word is not None:
            letters.append(PRINTED[word])
        else:
            letters.append("±" if plus_minus is not None else sign or bracket or letter)
    assert end == len(tex), f"TeX would not print {tex[end:]!r}"
    return "".join(letters)


@given(NAMES)
@example("--,,<<>>---")
def test_every_text_is_printed_as_it_is(text):
    tex = escaped(text)
    assert printed(tex) == visible(text)
    assert not re.search(r"--|,,|``|''|\\textless\{\}\\textless", tex), "another sign"
    assert "\n" not in tex


def shape(tex):
    """(cells of each row of each table, words that begin and end)."""
    counts = []
    for body in re.findall(r"\\toprule\n(.*?)\\bottomrule", tex, re.DOTALL):
        rows = [line for line in body.splitlines() if line.endswith(r" \\")]
        counts.append([len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows])
    begun = re.findall(r"\\(begin|end)\{(\w+)\}", tex)
    return counts, begun


def board_of(names, note="Percent."):
    heads = (Head("model", is_numeric=False), Head("params"), Head(names[0], ("acc1", names[-1])))
    rows = []
    for number, name in enumerate(names):
        value = Cell(f"{number}.5", " ±1.2" * (number % 2), is_best=number == 3)
        rows.append((Cell(name, f"@{number:08x}"), Cell("1 M"), value))
    parts = (Table(names[0], heads, tuple(rows)),)
    published = Section("Published", "", parts, is_reference=True)
    images = Section("Images", "", images=(Figure("a", "b", "c"),))
    return Board((Section("Measured here", note, parts), published, images), None, dict)


@given(st.lists(NAMES, min_size=1, max_size=6))
@example(list(HOSTILE_NAMES))
def test_a_table_keeps_its_shape(names):
    tex = to_latex(board_of(names))
    counts, begun = shape(tex)
    assert counts
    assert all(set(table_counts) == {3} for table_counts in counts)
    assert sum(len(table_counts) - 1 for table_counts in counts) == len(names)
    opened = []
    for word, environment in begun:
        assert word == "begin" or opened.pop() == environment
        opened += [environment] * (word == "begin")
    assert opened == []
    bare = re.sub(r"\\\\|\\[{}]", "", re.sub(r"(?m)^%.*", "", tex))
    assert bare.count("{") == bare.count("}")


def test_best_errors_and_what_is_left_out():
    tex = to_latex(board_of(["a", "b", "c", "d_e"]))
    assert r"d\_e & 1 M & \textbf{3.5}{\scriptsize  $\pm$1.2} \\" in tex
    assert r"a & 1 M & 0.5\phantom{\scriptsize  $\pm$1.2} \\" in tex
    assert "% Published: 4, not in this file." in tex
    assert "% Images: 1, not in this file." in tex
    assert "@0000" not in tex, "no two rows share a name"
    assert "a@00000001" in to_latex(board_of(["a", "a"]))


@pytest.mark.parametrize(("num_columns", "num_rows"), [(30, 2), (2, 2 * MOST_ROWS + 1)])
def test_what_does_not_fit_a_page_goes_on_in_another_table(num_columns, num_rows):
    columns = [Column("model"), *(Column(f"task{i}", (), True) for i in range(num_columns))]
    rows = []
    for row in range(num_rows):
        cells = [(f"{row}.{column}", f"{row}.{column}") for column in range(num_columns)]
        rows.append([(f"model-{row}", ""), *cells])
    tex = table(columns, rows, "Title. More.")
    counts, _ = shape(tex)
    assert len(counts) > 1
    assert tex.count("Title, continued.") == len(counts) - 1
    assert max(len(table_counts) - 1 for table_counts in counts) <= MOST_ROWS
    assert sum((part[0] - 1) * (len(part) - 1) for part in counts) == num_columns * num_rows
    assert max(len(line) for line in tex.splitlines() if "&" in line) <= 2 * LETTERS
