"""Folders of records: what is foreign or damaged is named and harms nothing; merged and tidied."""

import json
import os

import numpy as np
import pytest
from damage import of_file
from made import put, record_of
from refusals import refused

from silc_bench.errors import UserError
from silc_bench.results import folders, outcomes
from silc_bench.results.record import save

HITS = np.arange(400) % 3 == 0


def hits(model, first=0, **more):
    """A record and what each sample scored, as ``put`` takes them."""
    scored = HITS.copy()
    scored[:first] = False
    return (model, float(scored.mean())), {"arrays": {"acc1": scored}, **more}


def put_hits(folder, *args, **more):
    names, fields = hits(*args, **more)
    return put(folder, *names, **fields)


@pytest.fixture
def shared(tmp_path):
    """Two sound records."""
    folder = tmp_path / "results"
    for model in ("a", "b"):
        put_hits(folder, model)
    return folder


def models(reading):
    return [record.model.name for record in reading.records]


def named(reading):
    return {problem.path for problem in reading.problems} | set(reading.strays)


# ---- foreign and damaged files ----


def written(name, content):
    """A file of this content."""

    def make(folder, text):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return make


def altered(name, change):
    """A sound record's text, changed, beside its own file."""

    def make(folder, text):
        return written(name, change(text))(folder, text)

    return make


def link(name, target, is_folder=False):
    def make(folder, text):
        path = folder / name
        path.symlink_to(target, target_is_directory=is_folder)
        return path

    return make


def pipe(folder, text):
    """To open it would wait for ever."""
    os.mkfifo(folder / "x.json")
    return folder / "x.json"


def inner_folder(folder, text):
    (folder / "x.json" / "y").mkdir(parents=True)
    return folder / "x.json"


def large(folder, text):
    """A sparse file: it takes no room."""
    with open(folder / "x.json", "wb") as file:
        file.truncate(1 << 40)
    return folder / "x.json"


def circle(folder, text):
    (folder / "round").symlink_to(folder, target_is_directory=True)
    return folder / "round"


def undecodable(folder, text):
    path = os.fsencode(folder) + b"/\xff\n.json"
    try:
        with open(path, "w") as file:
            file.write("{}")
    except OSError:
        pytest.skip("this file system has names in UTF-8 only")
    return folder / os.fsdecode(b"\xff\n.json")


FOREIGN = {
    "empty": written("x.json", ""),
    "no JSON": written("x.json", "{"),
    "no text": written("x.json", b"\xff\xfe\x00"),
    "a list": written("x.json", "[]"),
    "a number": written("x.json", "7"),
    "deep": written("x.json", "[" * 100_000),
    "a huge number": written("x.json", "9" * 10_000),
    "NaN": written("x.json", '{"n": NaN}'),
    "a JSON of others": written("x.json", '{"schema": {"a": 1}}'),
    "a comparison": written("compare.json", '{"baseline": "a"}'),
    "an old record": altered("x.json", lambda text: text.replace('"record/', '"record/0.')),
    "a digit": altered("x.json", lambda text: text.replace('"n": 400', '"n": 401')),
    "a field less": altered("x.json", lambda text: text.replace('"seconds"', '"second"')),
    "a byte order mark": altered("x.json", lambda text: "\ufeff" + text),
    "a copy": altered("copy.json", str),
    "a copy below another folder": altered("backup/a/shapes/x.json", str),
    "a copy with a long name": altered(f"{'a' * 240}.json", str),
    "a name for a page": altered("<script>alert(1)<script>.json", str),
    "a folder": inner_folder,
    "a pipe": pipe,
    "larger than memory": large,
    "a link to itself": link("x.json", "x.json"),
    "a link to nothing": link("x.json", "nowhere.json"),
    "a link to a folder above": link("above", "..", is_folder=True),
    "a circle of folders": circle,
    "a name that is no text": undecodable,
    "of a file manager": written(".DS_Store", b"\0\0\0\1Bud1"),
    "of an archive": written("._x.json", b"\0\5\26\7"),
    "of a version control": written(".git", "gitdir: x"),
    "half written": written(".x.json.1234abcd.tmp", "{"),
    "notes": written("notes.md", "# ours"),
    "a notebook": written("look.ipynb", "{}"),
    "a backup": written("x.json~", "{}"),
    "a swap file": written("x.json.swp", "{}"),
    "other arrays": written("x.npz", b"PK"),
}


@pytest.mark.parametrize("place", ["", "a/shapes"], ids=["at the top", "beside records"])
@pytest.mark.parametrize("what", FOREIGN)
def test_what_is_no_sound_record_is_named_and_harms_none(shared, what, place):
    folder = next(shared.glob("a@*")) / "shapes" if place else shared
    text = next(shared.glob("a@*/*/*.json")).read_text()
    before = folders.read([shared])
    path = FOREIGN[what](folder, text)
    for read in (folders.read, folders.check):
        reading = read([shared])
        assert reading.records == before.records
        assert named(reading) == {path}
        assert all(str(problem.path) in problem.sentence for problem in reading.problems)
        assert str(path) in " ".join(reading.remarks)


def test_a_folder_that_may_not_be_listed_is_named(shared, monkeypatch):
    # permissions do not stop root, so the system's answer is made up
    closed = next(shared.glob("a@*"))
    scandir = os.scandir

    def answer(folder):
        if folder == closed:
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", answer)
    reading = folders.read([shared])
    assert models(reading) == ["b"]
    assert [problem.path for problem in reading.problems] == [closed]


def test_every_damage_to_a_record_is_named(shared):
    """One generator of damage, over the bytes of a file."""
    before = folders.read([shared])
    path = before.located[0].path
    whole = path.read_bytes()
    for what, content in of_file(whole, edge=64):
        path.write_bytes(content)
        reading = folders.read([shared])
        is_harmless = reading.records == before.records and not reading.problems
        is_named = models(reading) == ["b"] and named(reading) == {path}
        assert is_harmless or is_named, what


def test_many_are_counted_and_the_first_named(shared):
    for number in range(1000):
        (shared / f"{number:03}.json").write_text("{")
        (shared / f"{number:03}.txt").write_text("")
    reading = folders.read([shared])
    assert models(reading) == ["a", "b"]
    assert (len(reading.problems), len(reading.strays)) == (1000, 1000)
    *first, others, strays = reading.remarks
    assert [str(shared / f"00{number}.json") in first[number] for number in range(5)] == [True] * 5
    assert (len(first), "995 more" in others, "1,000" in strays) == (5, True, True)


def test_what_other_commands_read_and_write_there_is_theirs(shared):
    put(shared, "reported", 0.5)
    for name in ("reported/x.json", "pictures/a.png", "leaderboard.json", "leaderboard.html"):
        (shared / name).parent.mkdir(exist_ok=True)
        (shared / name).write_text("anything")
    reading = folders.read([shared])
    assert (models(reading), reading.remarks) == (["a", "b", "reported"], ())

    # but a table that nobody reads there is said
    (shared / "reported" / "benchmark.csv").write_text("")
    assert folders.read([shared]).strays == (shared / "reported" / "benchmark.csv",)


# ---- several folders ----


def test_of_several_folders_the_first_counts(shared, tmp_path):
    other = tmp_path / "other"
    put_hits(other, "b")
    put_hits(other, "a", first=30)
    put_hits(other, "c")
    reading = folders.read([shared, other, f"{tmp_path}/./results"])
    assert models(reading) == ["a", "b", "c"]
    assert reading.num_twice == 1
    (problem,) = reading.problems
    assert problem.path.is_relative_to(other)
    assert problem.path.parent.parent.name.startswith("a@")
    places = {record.model.name: reading.results_dir_of(record) for record in reading.records}
    assert places == {"a": shared, "b": shared, "c": other}
    with refused(tmp_path / "missing"):
        folders.read([shared, tmp_path / "missing"])


def test_check_reads_what_each_sample_scored(shared):
    a, b = folders.read([shared]).located
    lone = outcomes.path_of(record_of("a", 0.5, limit=7), shared)
    sound = outcomes.path_of(a.record, shared)
    lone.write_bytes(sound.read_bytes())
    sound.write_bytes(outcomes.path_of(b.record, shared).read_bytes())
    (shared / "reported").mkdir()
    (shared / "reported" / "paper.json").write_text("{")
    reading = folders.check([shared])
    assert models(reading) == ["a", "b"]
    assert named(reading) == {sound, lone, shared / "reported" / "paper.json"}


# ---- merge and remove ----


def test_merge_copies_what_is_new_and_overwrites_nothing(shared, tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    put_hits(one, "a")
    put_hits(one, "b", first=30)
    put_hits(one, "c")
    put_hits(other, "c")
    put(other, "d", 0.5)
    (other / "e.json").write_text("{")
    (other / "notes.txt").write_text("")
    before = {path: path.read_bytes() for path in shared.rglob("*") if path.is_file()}

    merged = folders.merge([one, other], shared)
    assert [path.parent.parent.name[0] for path in merged.copied] == ["c", "d"]
    assert merged.num_known == 2
    ((kept, known),) = merged.apart
    assert (kept.is_relative_to(one), known.is_relative_to(shared)) == (True, True)
    assert [problem.path for problem in merged.problems] == [other / "e.json"]
    assert merged.strays == (other / "notes.txt",)
    assert {path: path.read_bytes() for path in before} == before

    reading = folders.check([shared])
    assert (models(reading), reading.problems) == (["a", "b", "c", "d"], ())
    assert outcomes.load(reading.records[2], shared) is not None
    again = folders.merge([one, other], shared)
    assert (again.copied, again.num_known) == ((), 4)


def test_merge_leaves_damaged_samples_behind(shared, tmp_path):
    record = put_hits(tmp_path / "one", "c")
    samples = outcomes.path_of(record, tmp_path / "one")
    samples.write_bytes(samples.read_bytes()[:-9])
    merged = folders.merge([tmp_path / "one"], shared)
    assert (merged.copied, len(merged.problems)) == ((), 1)
    assert str(samples) in merged.problems[0].sentence
    assert models(folders.read([shared])) == ["a", "b"]


def test_merge_keeps_a_damaged_record_of_the_target(shared, tmp_path):
    record = put_hits(tmp_path / "one", "a")
    record.path(shared).write_text("{")
    merged = folders.merge([tmp_path / "one"], shared)
    assert (merged.copied, record.path(shared).read_text()) == ((), "{")
    assert str(record.path(shared)) in merged.problems[0].sentence


@pytest.mark.parametrize("into", ["results", "results/inner", "."])
def test_a_folder_is_not_merged_into_itself(shared, tmp_path, into):
    with refused(shared):
        folders.merge([shared], tmp_path / into)


def test_remove_takes_the_samples_and_empty_folders_too(shared):
    reading = folders.read([shared])
    folders.remove(folders.chosen(reading.located, ["a"]))
    left = sorted(path.relative_to(shared).parts[0][0] for path in shared.rglob("*"))
    assert set(left) == {"b"}
    assert folders.check([shared]).problems == ()


@pytest.mark.parametrize(
    ("models_meant", "tasks_meant", "count"),
    [
        ([], [], 3), (["a"], [], 1), (["a@*"], [], 1), (["*"], ["zeroshot"], 2),
        ([], ["shapes"], 2), ([], ["knn"], 1), (["a"], ["knn"], 0), (["runs/*"], ["*/knn"], 1),
        (["./elsewhere/c"], [], 1), (["runs/c:student@b9"], [], 1),
    ],
)  # fmt: skip
def test_models_and_tasks_are_chosen_by_pattern(tmp_path, models_meant, tasks_meant, count):
    put(tmp_path, "a", 0.5)
    put(tmp_path, "b", 0.5)
    put(tmp_path, "runs/c:student", 0.5, "places/knn", group="knn", source="elsewhere/c")
    located = folders.read([tmp_path]).located
    assert len(folders.chosen(located, models_meant, tasks_meant)) == count


@pytest.mark.parametrize("patterns", [(["a", "nothing"], []), ([], ["shapes", "nothing"])])
def test_a_pattern_that_means_nothing_is_a_mistake(shared, patterns):
    with pytest.raises(UserError, match=r"unknown (model|task) 'nothing'"):
        folders.chosen(folders.read([shared]).located, *patterns)


def test_long_and_hidden_names_of_models_are_found_again(tmp_path):
    names = ["." * 3, ".hidden", "猫" * 200, "x" * 300, "<script>", "=cmd()", "\u202eabc", "😀"]
    for name in names:
        save(record_of(name, 0.5), tmp_path)
    reading = folders.read([tmp_path])
    assert (sorted(models(reading)), reading.remarks) == (sorted(names), ())
    assert json.dumps(models(reading))
