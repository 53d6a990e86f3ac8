"""Records: round trips, what fits the schema, damage, keys and places, atomic writes."""

import dataclasses
import json
import os
import subprocess
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from made import record_of
from refusals import refused

import silc_bench
from silc_bench.errors import DataError
from silc_bench.models.interface import Training
from silc_bench.results import folders, outcomes, schema
from silc_bench.results import record as results
from silc_bench.results.record import find, key, read_file, record_path, save, validate
from silc_bench.system.checksums import sealed

ROOT = Path(__file__).parents[3]
MODEL, REVISION, TASK = HERE = ("shapes_tiny-silc:student", "0123456789abcdef", "shapes/zeroshot")


METRICS = {"acc1": 0.455, "text_retrieval_median_rank": 3.5}
DETAILS = {"per_class": [0.5, 1]}
RECORD = record_of(MODEL, METRICS, TASK, revision=REVISION, limit=100, details=DETAILS)
PLAIN = json.loads(RECORD.to_json())


@pytest.fixture
def plain():
    return json.loads(RECORD.to_json())


@pytest.fixture
def saved(tmp_path):
    return save(RECORD, tmp_path)


NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=300)
METRIC = st.from_regex(r"[A-Za-z0-9@_]{1,12}", fullmatch=True).filter(lambda n: "rank" not in n)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)


@given(
    name=NAMES | st.sampled_from(["a" * 300, "猫" * 300]),
    metrics=st.dictionaries(METRIC, st.floats(0, 1), min_size=1, max_size=5),
    details=st.dictionaries(st.text(max_size=5), st.lists(FLOATS) | st.text()),
    limit=st.none() | st.integers(1, 10**9),
)
@settings(max_examples=60)
def test_round_trip_through_a_file(tmp_path_factory, name, metrics, **fields):
    record = record_of(name, metrics, TASK, revision=REVISION, **fields)
    folder = tmp_path_factory.mktemp("results")
    assert save(record, folder).read_text() == record.to_json()
    assert find(folder, name, REVISION, TASK, record.key) == record
    assert read_file(record.path(folder), folder) == record


def test_create_fills_every_field_of_the_contract(plain):
    assert list(plain) == [*results.SCHEMA["properties"]]
    stated = {
        "schema": "record/3",
        "metrics": METRICS,
        "n": 400,
        "details": DETAILS,
        "seconds": 1,
        "source": "measured",
    }
    assert stated.items() <= plain.items()
    assert list(plain["task"].values()) == [TASK, 1, "zero-shot", "acc1", 0.02]
    assert list(plain["model"].values()) == [MODEL, REVISION, "x", 1_640_000, 64, None]
    assert plain["question"] == RECORD.question.as_dict()
    assert plain["setup"] == RECORD.setup.as_dict()
    assert (RECORD.limit, RECORD.dataset.fingerprint) == (100, "0" * 16)
    assert plain["code"]["version"] == silc_bench.__version__

    numpys = record_of("a", {"acc1": np.float32(0.5)}, n=np.int64(7))
    assert (numpys.metrics, numpys.n) == ({"acc1": 0.5}, 7)


# ---- the schema ----


def test_the_published_schema_is_the_one_in_use():
    jsonschema.Draft202012Validator.check_schema(results.SCHEMA)
    assert json.loads((ROOT / "docs" / "record.schema.json").read_text()) == results.SCHEMA


@pytest.mark.parametrize(
    ("change", "about"),
    [
        ({"schema": "record/1"}, "a.json"),
        ({"n": 1.0}, "a.json: n"),
        ({"metrics": {"acc1": 45.5}}, "a.json: metrics.acc1"),
        ({"metrics": {"acc1": float("nan")}}, "a.json: metrics.acc1"),
        ({"n": True}, "a.json: n"),
        ({"metrics": {"acc1": 10**400}}, "a.json: metrics.acc1"),
        ({"metrics": {"median_rank": 0.5}}, "a.json: metrics.median_rank"),
        ({"metrics": {"acc5": 0.5}, "stderr": {}}, "a.json: acc1"),
        ({"stderr": {"acc9": 0.1}}, "a.json: acc9"),
        ({"details": {"deep": [1, float("inf")]}}, "a.json: details"),
        ({"details": {"array": np.zeros(2)}}, "a.json: details"),
        ({"details": {"name": "half \ud800"}}, "a.json: details"),
        ({"colour": 1}, "a.json"),
        ({"task": {**PLAIN["task"], "version": 2}}, "a.json: task.version"),
        ({"source": "reported(nowhere)"}, "a.json: source"),
        ({"created": "2024-01-01T00:00:00Z\n"}, "a.json: created"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_wrong_is_named_by_file_and_field(plain, change, about):
    with refused(about, kind=DataError, is_kept=False):
        validate({**plain, **change}, "a.json")


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
    | st.sampled_from(["record/2", "measured", "0" * 16, 10**400]),
    lambda inner: st.lists(inner, max_size=2)
    | st.dictionaries(st.sampled_from(["name", "median_rank", "acc1", "\n"]), inner, max_size=3),
    max_leaves=4,
)  # fmt: skip


@given(st.data())
def test_what_passes_and_what_jsonschema_passes_are_the_same(data):
    """The quick reading of a schema decides; jsonschema only says what is wrong."""
    plain = json.loads(RECORD.to_json())
    holder = plain
    field = data.draw(st.sampled_from(sorted(plain)))
    if isinstance(plain[field], dict) and plain[field] and data.draw(st.booleans()):
        holder = plain[field]
        field = data.draw(st.sampled_from([*sorted(holder), "another"]))
    holder[field] = data.draw(ANYTHING)
    if data.draw(st.booleans()):
        del holder[field]

    errors = schema._validator(json.dumps(results.SCHEMA)).iter_errors(plain)
    assert schema.fits(plain, results.SCHEMA) == (not any(errors))


def test_deep_nesting_is_refused(plain):
    for _ in range(50_000):  # Python 3.13 can write 2,000
        plain["details"] = {"a": plain["details"]}
    with refused("details", kind=DataError, is_kept=False):
        validate(plain)


@pytest.mark.parametrize(
    ("part", "name"),
    [
        *[("model", name) for name in ("", "a\nb", "esc\x1b[31m", "half \ud800")],
        *[("task", name) for name in ("../x", "a/../b", "a", "a/.b", "a b/c")],
    ],
)
def test_names_that_could_harm_a_terminal_or_leave_the_folder(plain, part, name):
    plain[part]["name"] = name
    with refused(f"{part}.name", kind=DataError, is_kept=False):
        validate(plain)


# ---- keys and places ----


def test_question_and_setup_change_the_key_and_must_be_what_their_hashes_say():
    changes = ({"limit": 10}, {"protocol": "own"}, {"size": 65}, {"precision": "bf16"})
    keys = {record_of("a", 0.5, **change).key for change in ({}, *changes)}
    assert len(keys) == 5
    question, setup = record_of("a", 0.5).question, record_of("b", 0.5).setup
    assert key(question, setup) == record_of("c", 0.5).key, "neither names the model"

    for part, field in (("question", "protocol"), ("setup", "precision")):
        changed = json.loads(RECORD.to_json())
        changed[part][field] = "another"
        del changed["checksums"]
        with refused(f"x.json: {part}", kind=DataError, is_kept=False):
            results.Record.from_json(json.dumps(sealed(changed)), "x.json")


def test_a_record_lies_where_the_design_says():
    path = record_path(Path("r"), "hf:google/siglip", REVISION, TASK, "89abcdef")
    assert path == Path("r/hf+google=siglip@01234567/shapes/zeroshot.89abcdef.json")


@given(NAMES, NAMES)
@example("a:b", "a+b")
@example("a/b", "a=b")
@example("a:b", "a%3Ab")
@example("..", "/")
@example(".a", "%2Ea")
@example("a" * 180, "a" * 181)
@example("a" * 300, "a" * 299 + "b")
@example("猫" * 300, "猫" * 299 + "犬")
def test_two_names_never_share_a_folder_and_none_leaves_it(first, second):
    paths = [record_path(Path("r"), name, "0" * 16, "a/b", "c" * 8) for name in (first, second)]
    assert (paths[0] == paths[1]) == (first == second)
    for path in paths:
        assert len(path.parts) == 4
        assert path.parts[1].isascii()
        assert len(path.parts[1]) < 200
        assert path.parts[1][0] != "."


def test_a_cut_name_meets_no_name_that_is_written_like_it():
    cut = record_path(Path("r"), "a" * 300, REVISION, TASK, "c" * 8).parts[1].rpartition("@")[0]
    assert record_path(Path("r"), cut, REVISION, TASK, "c" * 8).parts[1].rpartition("@")[0] != cut


def test_a_task_of_any_length_has_a_place(tmp_path):
    record = record_of(MODEL, METRICS, "d" * 300 + "/" + "f" * 300)
    save(record, tmp_path)
    assert read_file(record.path(tmp_path), tmp_path) == record


def test_what_a_run_was_trained_as_is_kept_whatever_letters_are_in_it(tmp_path):
    training = Training("tiny", "silc", "teacher", "a\nb/*.tar", seed=0, step=0)
    record = record_of(MODEL, METRICS, source="runs/a\x1bb:teacher", training=training)
    save(record, tmp_path)
    read = read_file(record.path(tmp_path), tmp_path)
    assert read.model.source == "runs/a%1Bb:teacher"
    assert read.model.training == dataclasses.replace(training, data="a%0Ab/*.tar")


@pytest.mark.parametrize("change", [{"seed": 0.5}, {"step": -1}, {"branch": ""}, {"colour": 1}])
def test_a_training_that_says_something_else_is_refused(plain, change):
    known = Training("tiny", "silc", "teacher", "shapes", seed=0, step=1)
    training = {**dataclasses.asdict(known), **change}
    with refused("model.training", kind=DataError, is_kept=False):
        validate({**plain, "model": {**plain["model"], "training": training}})


def test_what_is_another_measurement_is_not_found(saved, tmp_path):
    assert find(tmp_path, *HERE, "0" * 8) is None
    with refused(saved, is_kept=False):  # the key in its name holds versions of libraries
        find(tmp_path, MODEL, "01234567" + "f" * 8, TASK, RECORD.key)


# ---- files ----


@pytest.mark.parametrize("content", ["[]", "[" * 100_000, '{"schema": "record/3"}', '{"n": NaN}'])
def test_a_foreign_file_is_named(saved, tmp_path, content):
    saved.write_text(content)
    for read in (lambda: read_file(saved, tmp_path), lambda: find(tmp_path, *HERE, RECORD.key)):
        with refused(saved, kind=DataError, is_kept=False):
            read()


def test_what_is_no_file_is_refused_where_a_record_is_looked_for(saved, tmp_path):
    """To open a pipe would be to wait for ever."""
    for make in (os.mkfifo, os.mkdir, lambda path: os.symlink(path, path)):
        saved.unlink(missing_ok=True) if not saved.is_dir() else saved.rmdir()
        make(saved)
        with refused(saved, kind=DataError, is_kept=False):
            read_file(saved, tmp_path)


def test_a_copied_record_is_refused(saved, tmp_path):
    copy = saved.with_name("copy.json")
    copy.write_text(saved.read_text())
    with refused(copy, kind=DataError, is_kept=False):
        read_file(copy, tmp_path)


def test_records_share_their_questions_setups_and_names_of_classes(tmp_path):
    """As 20,000 records of 40 questions and 500 setups must, to be held at once."""
    details = {"acc1_by_class": [["a class", 0.5]]}
    for name in ("a", "b"):
        save(record_of(name, 0.5, TASK, details=details), tmp_path)
    a, b = folders.read(tmp_path).records
    assert a.question is b.question
    assert a.setup is b.setup
    assert a.details["acc1_by_class"][0][0] is b.details["acc1_by_class"][0][0]


def test_equal_numbers_of_other_types_stay_as_they_are_in_the_file():
    records = [record_of("a", 0.5, TASK, chance=chance) for chance in (0.0, 0, 0.0)]
    assert [str(one.task.chance) for one in records] == ["0.0", "0", "0.0"]


def test_a_failing_write_leaves_the_old_files_and_no_rubbish(saved, monkeypatch, tmp_path):
    outcomes.save(b"old", RECORD, tmp_path)
    before = {path: path.read_bytes() for path in saved.parent.iterdir()}

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    for write in (lambda: save(RECORD, tmp_path), lambda: outcomes.save(b"new", RECORD, tmp_path)):
        with pytest.raises(OSError, match="No space"):
            write()
    invalid = dataclasses.replace(RECORD, metrics={**METRICS, "acc1": float("nan")})
    with refused("metrics.acc1", kind=DataError, is_kept=False):
        save(invalid, tmp_path)
    assert {path: path.read_bytes() for path in saved.parent.iterdir()} == before


# ---- where the code came from ----


def _git(folder, *words):
    who = ["-c", "user.name=x", "-c", "user.email=x@x", "-c", "commit.gpgsign=false"]
    command = ["git", *who, "-C", str(folder), *words]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return done.stdout.strip()


@pytest.fixture
def code_of(tmp_path, monkeypatch):
    """(a checkout, what ``code_state`` says of it now)."""
    for name in ("silc_bench", "tasks", "trainer"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.py").write_text("")
    monkeypatch.setattr(results, "__file__", str(tmp_path / "silc_bench" / "results" / "record.py"))

    def now():
        results.code_state.cache_clear()
        return results.code_state()

    yield tmp_path, now
    results.code_state.cache_clear()


@pytest.mark.timing
def test_commit_and_dirt_are_those_of_the_checkout(code_of, monkeypatch):
    checkout, now = code_of
    _git(checkout, "init", "-q")
    assert now().commit is None  # no commit yet
    _git(checkout, "add", ".")
    _git(checkout, "commit", "-qm", "x")
    (checkout / "notes.txt").write_text("not code")
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # as inside a hook
    head = _git(checkout, "rev-parse", "HEAD")
    assert now() == results.Code(silc_bench.__version__, head, False)
    (checkout / "tasks" / "new.py").write_text("")
    assert now() == results.Code(silc_bench.__version__, head, True)


def test_code_state_is_unknown_but_never_fails(code_of, monkeypatch):
    checkout, now = code_of
    unknown = results.Code(silc_bench.__version__, None, None)
    assert now() == unknown  # installed, no checkout
    (checkout / ".git").write_text("gitdir: /nowhere")
    assert now() == unknown
    monkeypatch.setenv("PATH", "")  # no git at all
    assert now() == unknown
