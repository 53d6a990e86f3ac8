"""Errors have parts, in the sources and in the file of sentences."""

import ast
import pickle
from pathlib import Path

import pytest
import refusals

from silc_bench.errors import DataError, RunError, UserError, first_line, unknown_name

ROOT = Path(__file__).parents[1]
KINDS = {"UserError", "DataError", "RunError"}


def sources():
    for folder in ("silc_bench", "tasks", "trainer"):
        yield from sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("kind", [UserError, DataError, RunError])
def test_an_error_keeps_its_parts_across_a_process(kind):
    error = kind("is no image", about=Path("cat.jpg"), fix="save it anew")
    assert str(error) == "cat.jpg: is no image; save it anew"
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error)
    assert (again.problem, again.about, again.fix) == (error.problem, error.about, error.fix)


def test_a_library_s_error_is_one_line():
    assert first_line(KeyError("a")) == "KeyError: 'a'"
    assert first_line(RuntimeError("in\n\tlayer 1")) == "RuntimeError: in layer 1"
    assert first_line(ValueError()) == "ValueError"
    assert len(first_line(ValueError("x" * 999))) == 200


def test_an_unknown_name_is_met_by_near_ones():
    assert unknown_name("preset", "b61", ["b16", "l16"]).fix == "did you mean b16?"
    assert unknown_name("preset", "x", ["b16", "l16"]).fix == "known: b16, l16"


def test_every_error_of_ours_says_what_it_is_about_and_what_to_do():
    bare = []
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = getattr(node.func, "id", "") if isinstance(node, ast.Call) else ""
            if name in KINDS and not {"about", "fix"} <= {word.arg for word in node.keywords}:
                bare.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert bare == []


def test_the_file_of_sentences_holds_no_test_that_is_gone():
    assert [key for key in refusals.sentences() if not refusals._is_there(key)] == []


def test_a_long_list_of_known_names_is_cut():
    error = unknown_name("model", "x", (f"model{number:03}" for number in range(110)))
    assert error.fix.endswith("model098, model099 and 10 more")
