"""Records: round trips, schema by another validator, damage, keys and places, atomic writes."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

import silc_bench
from silc_bench.errors import UserError
from silc_bench.results import record as results
from silc_bench.results.protocol import Protocol
from silc_bench.results.record import Record, find, key, load_all, record_path, save, validate
from silc_bench.task import Scores

ROOT = Path(__file__).parents[3]
MODEL = SimpleNamespace(
    name="shapes_tiny-silc:student",
    revision="0123456789abcdef",
    num_params=1_600_000,
    image_size=64,
    image_protocol={"size": 64},
    text_protocol={"length": 32},
)
TASK = SimpleNamespace(
    name="shapes/retrieval", version=2, group="retrieval", main_metric="text_retrieval_recall@1",
    requires=frozenset({"image", "text"}), protocol=lambda: {"captions": 5},
)  # fmt: skip
DATA = SimpleNamespace(name="shapes", split="val", fingerprint="fedcba9876543210")


def make(limit=None, metrics=None, stderr=None, details=None, model=MODEL, n=1000):
    metrics = (
        {"text_retrieval_recall@1": 0.455, "text_retrieval_median_rank": 3.5}
        if metrics is None
        else metrics
    )
    stderr = {"text_retrieval_recall@1": 0.012} if stderr is None else stderr
    scores = Scores(metrics, stderr, n, chance=0.001, details=details or {})
    return Record.create(
        model, TASK, DATA, scores, Protocol.of(model, TASK, "fp32"),
        model_source="runs/a", device="cpu", limit=limit, seconds=3.25,
    )  # fmt: skip


def plain(**changes):
    return {**json.loads(make().to_json()), **changes}


NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30)
METRICS = st.dictionaries(
    st.from_regex(r"[A-Za-z0-9@_]{1,12}", fullmatch=True), st.floats(0, 1), min_size=1, max_size=5
)
DETAILS = st.dictionaries(
    st.text(max_size=5), st.lists(st.floats(allow_nan=False, allow_infinity=False)) | st.text()
)


@given(
    name=NAMES,
    metrics=METRICS,
    details=DETAILS,
    limit=st.none() | st.integers(1, 10**9),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_round_trip_through_json_and_through_a_file(
    tmp_path_factory, name, metrics, details, limit, data
):
    assume(not any("rank" in metric for metric in metrics))
    main = data.draw(st.sampled_from(sorted(metrics)))
    task = SimpleNamespace(**{**vars(TASK), "main_metric": main})
    model = SimpleNamespace(**{**vars(MODEL), "name": name})
    assume(
        len(record_path(Path(), name, MODEL.revision, TASK.name, "0" * 8).parts[0].encode()) < 250
    )
    scores = Scores(metrics, {main: 0.5}, 3, 0.1, details)
    record = Record.create(
        model, task, DATA, scores, Protocol.of(model, task, "bf16"),
        model_source="x", device="cpu", limit=limit, seconds=1,
    )  # fmt: skip
    assert Record.from_json(record.to_json()) == record
    folder = tmp_path_factory.mktemp("results")
    path = save(record, folder)
    assert path.read_text() == record.to_json()
    assert find(folder, name, MODEL.revision, TASK.name, record.key) == record
    assert load_all(folder) == [record]


def test_create_fills_every_field_of_the_contract():
    record = json.loads(make(limit=100, details={"per_class": (0.5, 1)}).to_json())
    fields = (
        "schema task metrics stderr n limit details model dataset protocol code env seconds "
        "created source checksums"
    )
    assert " ".join(record) == fields
    assert record["schema"] == "record/2"
    assert record["task"] == {
        "name": "shapes/retrieval", "version": 2, "group": "retrieval",
        "main_metric": "text_retrieval_recall@1", "chance": 0.001,
    }  # fmt: skip
    assert record["model"] == {
        "name": MODEL.name,
        "revision": MODEL.revision,
        "source": "runs/a",
        "params": 1_600_000,
        "image_size": 64,
    }
    assert record["dataset"] == {"name": "shapes", "split": "val", "fingerprint": DATA.fingerprint}
    assert record["protocol"]["name"] == "native"
    assert record["protocol"]["hash"] == Protocol.of(MODEL, TASK, "fp32").hash
    assert record["details"] == {"per_class": [0.5, 1]}
    assert (record["n"], record["limit"], record["seconds"], record["source"]) == (
        1000,
        100,
        3.25,
        "measured",
    )
    assert record["env"]["precision"] == "fp32"
    assert record["code"]["version"] == silc_bench.__version__


def test_numpy_scores_become_plain_numbers():
    record = make(metrics={"text_retrieval_recall@1": np.float32(0.5)}, stderr={}, n=np.int64(7))
    assert (record.metrics, record.n) == ({"text_retrieval_recall@1": 0.5}, 7)


# The schema, and jsonschema as the independent judge of what fits it.


def test_the_published_schema_is_the_one_in_use():
    jsonschema.Draft202012Validator.check_schema(results.SCHEMA)
    assert json.loads((ROOT / "docs" / "record.schema.json").read_text()) == results.SCHEMA


def _places(value, path=()):
    yield path
    for name, item in value.items() if isinstance(value, dict) else ():
        yield from _places(item, (*path, name))


JUDGE = jsonschema.Draft202012Validator(results.SCHEMA)
JUNK = st.sampled_from(
    [
        None,
        True,
        -1,
        0,
        2,
        0.5,
        1.5,
        "",
        "x",
        "2020-01-01T00:00:00Z",
        "ab" * 8,
        [],
        [1],
        {},
        {"a": 1},
    ]
)


@given(
    st.sampled_from([path for path in _places(plain()) if path]),
    st.sampled_from(["drop", "add", "set"]),
    JUNK,
)
@settings(max_examples=300, deadline=None)
def test_a_mutated_record_fits_for_us_exactly_when_it_fits_for_jsonschema(path, action, junk):
    data = plain()
    parent = data
    for name in path[:-1]:
        parent = parent[name]
    if action == "drop":
        del parent[path[-1]]
    elif action == "add":
        parent["surprise"] = junk
    else:
        parent[path[-1]] = junk
    fits = JUDGE.is_valid(data)
    try:
        validate(data)
        refusal = ""
    except UserError as error:
        refusal = str(error)
    beyond_schema = "is not among metrics" in refusal or "no metric of this name" in refusal
    assert fits == (not refusal or beyond_schema)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "record/1"}, "a.json: not a 'record/2' file (schema is 'record/1')"),
        ({"n": 1.0}, "a.json: n: expected integer, got 1.0"),
        ({"n": True}, "a.json: n: expected integer, got True"),
        ({"limit": 0}, "a.json: limit: expected at least 1, got 0"),
        ({"metrics": {}}, "a.json: metrics is empty"),
        (
            {"metrics": {"acc1": 45.5}},
            "a.json: metrics.acc1: expected at most 1 (a fraction, not percent), got 45.5",
        ),
        (
            {"metrics": {"acc1": float("nan")}},
            "a.json: metrics.acc1: expected a finite number, got nan",
        ),
        (
            {"metrics": {"median_rank": 0.5}},
            "a.json: metrics.median_rank: expected at least 1, got 0.5",
        ),
        (
            {"metrics": {"acc1": 0.5}, "stderr": {}},
            "task.main_metric 'text_retrieval_recall@1' is not among metrics",
        ),
        ({"stderr": {"acc1": 0.1}}, "a.json: stderr.acc1: there is no metric of this name"),
        (
            {"stderr": {"text_retrieval_recall@1": -0.1}},
            "stderr.text_retrieval_recall@1: expected at least 0",
        ),
        (
            {"details": {"deep": [1, float("inf")]}},
            "a.json: details.deep[1]: expected a finite number, got inf",
        ),
        ({"colour": 1}, "a.json: unknown field 'colour'"),
        ({"source": "reported(nowhere)"}, "a.json: source: expected text like"),
        ({"created": "2024-01-01T00:00:00Z\n"}, "a.json: created: expected text like"),
    ],
)
def test_messages_say_file_field_and_expectation(change, message):
    with pytest.raises(UserError) as caught:
        validate(plain(**change), "a.json")
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["", "a\nb", "esc\x1b[31m", "half \ud800", None])
def test_names_that_could_harm_a_terminal_or_a_file_are_refused(name):
    data = plain()
    data["model"]["name"] = name
    with pytest.raises(UserError, match=r"model\.name"):
        validate(data)


@pytest.mark.parametrize("name", ["../x", "a/../b", "a", "a/b/c", "/a/b", "a/.b", "a b/c"])
def test_task_names_cannot_leave_the_folder(name):
    data = plain()
    data["task"]["name"] = name
    with pytest.raises(UserError, match=r"task\.name"):
        validate(data)


def test_create_refuses_what_a_task_must_not_hand_over():
    with pytest.raises(
        UserError,
        match=r"shapes/retrieval on shapes_tiny-silc:student: metrics\.acc: expected a finite",
    ):
        make(metrics={"acc": float("nan")})
    with pytest.raises(UserError, match=r"details\.x: expected"):
        make(details={"x": np.zeros(2)})
    with pytest.raises(UserError, match="not a string"):
        make(details={1: 2})


# Keys and places.


def test_each_part_changes_the_key():
    base = ("shapes/zeroshot", 1, "0" * 16, "1" * 16, None)
    others = [("shapes/knn", *base[1:]), (base[0], 2, *base[2:]), (*base[:2], "2" * 16, *base[3:])]
    others += [(*base[:3], "3" * 16, None), (*base[:4], 10)]
    keys = {key(*parts) for parts in (base, *others)}
    assert len(keys) == 6
    assert all(len(one) == 8 and int(one, 16) >= 0 for one in keys)


def test_a_record_lies_where_the_design_says():
    path = record_path(
        Path("results"), "hf:google/siglip", "0123456789abcdef", "shapes/zeroshot", "89abcdef"
    )
    assert path == Path("results/hf+google=siglip@01234567/shapes/zeroshot.89abcdef.json")


@given(NAMES, NAMES)
@example("a:b", "a+b")
@example("a/b", "a=b")
@example("a:b", "a%3Ab")
@example("..", "/")
def test_two_names_never_share_a_folder_and_none_leaves_it(first, second):
    paths = [record_path(Path("r"), name, "0" * 16, "a/b", "c" * 8) for name in (first, second)]
    assert (paths[0] == paths[1]) == (first == second)
    assert all(len(path.parts) == 4 and path.parts[1].isascii() for path in paths)


def test_limited_and_whole_runs_lie_side_by_side(tmp_path):
    whole, limited = make(), make(limit=10)
    assert save(whole, tmp_path) != save(limited, tmp_path)
    assert find(tmp_path, MODEL.name, MODEL.revision, TASK.name, limited.key) == limited
    assert find(tmp_path, MODEL.name, MODEL.revision, TASK.name, "0" * 8) is None


def test_find_refuses_other_weights_with_the_same_first_digits(tmp_path):
    record = make()
    save(record, tmp_path)
    with pytest.raises(UserError, match="measured on revision"):
        find(tmp_path, MODEL.name, "01234567" + "f" * 8, TASK.name, record.key)


# Files.


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"a": 1}',
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"schema": "record/2"}',
        b'{"n": NaN}',
    ],
)
def test_a_damaged_or_foreign_file_is_named(tmp_path, content):
    path = save(make(), tmp_path)
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_all(tmp_path)
    assert str(caught.value).startswith(f"{path}: ")
    with pytest.raises(UserError):
        find(tmp_path, MODEL.name, MODEL.revision, TASK.name, make().key)


def test_deep_nesting_and_overflow_are_refused():
    deep = plain()
    for _ in range(2000):
        deep["details"] = {"a": deep["details"]}
    with pytest.raises(UserError, match="nested too deeply"):
        validate(deep)
    with pytest.raises(UserError, match="finite"):
        Record.from_json(make().to_json().replace("0.455", "1e999"))


def test_a_copied_or_edited_record_is_refused(tmp_path):
    path = save(make(), tmp_path)
    path.with_name("copy.json").write_text(path.read_text())
    with pytest.raises(UserError, match="was moved, copied or edited"):
        load_all(tmp_path)


def test_load_all_is_sorted_and_leaves_reported_numbers_alone(tmp_path):
    models = [SimpleNamespace(**{**vars(MODEL), "name": name}) for name in ("b", "reported", "a")]
    for model in models:
        save(make(model=model), tmp_path)
    (tmp_path / "reported").mkdir()
    (tmp_path / "reported" / "x.json").write_text("anything")
    assert [record.model.name for record in load_all(tmp_path)] == ["a", "b", "reported"]
    with pytest.raises(UserError, match="no results folder"):
        load_all(tmp_path / "missing")


def test_a_failing_write_leaves_the_old_record_and_no_rubbish(tmp_path, monkeypatch):
    path = save(make(), tmp_path)
    before = path.read_bytes()

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="No space"):
        save(make(details={"new": 1}), tmp_path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_an_invalid_record_is_not_written(tmp_path):
    record = make()
    record.metrics["text_retrieval_recall@1"] = float("nan")
    with pytest.raises(UserError, match="finite"):
        save(record, tmp_path)
    assert list(tmp_path.rglob("*")) == []


# Where the code came from.


def _git(folder, *words):
    command = [
        "git",
        "-c",
        "user.name=x",
        "-c",
        "user.email=x@x",
        "-c",
        "commit.gpgsign=false",
        "-C",
        str(folder),
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return subprocess.run(
        [*command, *words], check=True, capture_output=True, text=True, env=environment
    ).stdout


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    for name in ("silc_bench", "tasks", "trainer"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.py").write_text("")
    monkeypatch.setattr(results, "__file__", str(tmp_path / "silc_bench" / "results" / "record.py"))
    results.code_state.cache_clear()
    yield tmp_path
    results.code_state.cache_clear()


@pytest.mark.timing
def test_commit_and_dirt_are_those_of_the_checkout(checkout, monkeypatch):
    _git(checkout, "init", "-q")
    assert results.code_state().commit is None  # no commit yet
    _git(checkout, "add", ".")
    _git(checkout, "commit", "-qm", "x")
    (checkout / "notes.txt").write_text("not code")
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # as inside a hook
    results.code_state.cache_clear()
    head = _git(checkout, "rev-parse", "HEAD").strip()
    assert results.code_state() == results.Code(silc_bench.__version__, head, False)
    (checkout / "tasks" / "new.py").write_text("")
    results.code_state.cache_clear()
    assert results.code_state() == results.Code(silc_bench.__version__, head, True)


def test_code_state_is_unknown_but_never_fails(checkout, monkeypatch):
    assert results.code_state().commit is None  # installed, no checkout
    (checkout / ".git").write_text("gitdir: /nowhere")
    results.code_state.cache_clear()
    assert results.code_state() == results.Code(silc_bench.__version__, None, None)
    monkeypatch.setenv("PATH", "")  # no git at all
    results.code_state.cache_clear()
    assert results.code_state().dirty is None


@pytest.mark.timing
def test_only_the_standard_library_is_imported():
    code = (
        "import sys, silc_bench.results.record, silc_bench.results.protocol;"
        "assert not {'torch', 'numpy', 'pandas', 'rich', 'jsonschema'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_validate_does_not_change_its_argument():
    data = plain()
    before = copy.deepcopy(data)
    validate(data)
    assert data == before
