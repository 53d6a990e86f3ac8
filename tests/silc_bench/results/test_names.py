"""A model is found by what was measured, by its name, or by either with its revision."""

import pytest
from made import record_of
from refusals import refused

from silc_bench.results.names import Models

FIRST, SECOND, THIRD = "1234567890abcdef", "fedcba9876543210", "1234ffff00000000"
RECORDS = [
    # name, revision, what was measured, when
    ("own:student", FIRST, "runs/own", 1),
    ("own:teacher", SECOND, "{here}/runs/own:teacher", 1),
    ("own:student", SECOND, "runs/b/own/", 1),
    ("again:student", FIRST, "runs/again", 1),
    ("again:student", SECOND, "runs/again", 2),
    ("open_clip:ViT-B-32/x", FIRST, "open_clip:ViT-B-32/dir/x.pt", 1),
    ("hf:clip", THIRD, "hf:{here}/clip", 1),
    ("hf:org/name@main", FIRST, "hf:org/name@main", 1),
    ("runs/own", THIRD, "elsewhere", 1),
    ("line%0Abreak", FIRST, "runs/line\nbreak:student", 1),
    ("moved:student", FIRST, "old", 1),
    ("moved:student", FIRST, "new", 3),
    ("moved:student", FIRST, "older", 2),
]


@pytest.fixture
def models(tmp_path, monkeypatch):
    for folder in ("clip", "dir"):
        (tmp_path / folder).mkdir()
    (tmp_path / "dir" / "x.pt").touch()
    monkeypatch.chdir(tmp_path)
    records = []
    for name, revision, source, day in RECORDS:
        where, created = source.format(here=tmp_path), f"2026-01-0{day}T00:00:00Z"
        records.append(record_of(name, 0.5, revision=revision, source=where, created=created))
    return Models(records)


@pytest.mark.parametrize(
    ("asked", "row"),
    [
        # what eval took, as it was typed and otherwise
        ("runs/own", ("own:student", FIRST)),
        ("{here}/runs/own/:student", ("own:student", FIRST)),
        ("./runs/own:teacher", ("own:teacher", SECOND)),
        ("runs/b/own", ("own:student", SECOND)),
        ("open_clip:ViT-B-32/{here}/dir/x.pt", ("open_clip:ViT-B-32/x", FIRST)),
        ("hf:./clip/", ("hf:clip", THIRD)),
        ("hf:org/name@main", ("hf:org/name@main", FIRST)),
        ("runs/line\nbreak", ("line%0Abreak", FIRST)),
        # names
        ("own:teacher", ("own:teacher", SECOND)),
        ("hf:clip", ("hf:clip", THIRD)),
        ("line\nbreak", ("line%0Abreak", FIRST)),
        # with a revision
        ("own:student@1234", ("own:student", FIRST)),
        ("own:student@" + SECOND, ("own:student", SECOND)),
        ("hf:org/name@main@12", ("hf:org/name@main", FIRST)),
        ("runs/again@fed", ("again:student", SECOND)),
        ("runs/own@1234ffff", ("runs/own", THIRD)),
    ],
)
def test_a_model_is_found_however_it_is_named(models, tmp_path, asked, row):
    assert models.find(asked.format(here=tmp_path)) == row


@pytest.mark.parametrize(
    ("asked", "fix"),
    [
        ("own:student", "name one of own:student@12345678, own:student@fedcba98"),
        ("runs/again", "name one of again:student@12345678, again:student@fedcba98"),
        ("own:studnet", "did you mean own:student"),
        ("runs/owm", "did you mean runs/own"),
        ("own:student@12345679", "did you mean own:student@12345678"),
        ("own:student@", "or own:student@12345678"),
        ("runs/b/own:teacher", "or runs/b/own"),
        ("", "known: "),
    ],
)
def test_what_is_not_one_model_is_refused_with_the_nearest(models, asked, fix):
    is_several = fix.startswith("name one")
    with refused(asked if is_several else "measured models", is_kept=asked != "") as caught:
        models.find(asked)
    assert fix in caught.value.fix


def test_what_is_shown_of_a_model_finds_it(models):
    labels = {row: models.label(row) for row in models.rows}
    for row, label in labels.items():
        assert models.find(label) == row

    # "runs/own" is a name too, but another was measured as that
    several = [("own:student", FIRST), ("own:student", SECOND), ("runs/own", THIRD)]
    several += [("again:student", revision) for revision in (FIRST, SECOND)]
    for name, revision in models.rows:
        with_revision = f"{name}@{revision[:8]}"
        is_shared = (name, revision) in several
        assert labels[name, revision] == (with_revision if is_shared else name)


def test_a_model_is_loaded_from_where_it_was_measured_last(models):
    assert models.source(("moved:student", FIRST)) == "new"
