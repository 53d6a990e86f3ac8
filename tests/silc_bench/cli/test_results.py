"""``silc-bench results`` and the folders of the other commands, as users meet them."""

import json
import shutil

import numpy as np
import pytest
from commands import call, error_of, fail, succeed
from made import put
from rich.console import Console

pytestmark = pytest.mark.broad

HITS = np.arange(400) % 4 > 0


@pytest.fixture
def shared(tmp_path):
    """Two models on two tasks."""
    for model in ("runs/a:student", "runs/b:student"):
        for task in ("shapes/zeroshot", "shapes/knn"):
            put(tmp_path / "results", model, 0.75, task, arrays={"acc1": HITS})
    return tmp_path / "results"


def record_files(folder):
    return sorted(folder.glob("*@*/*/*.json"))


def damage(folder):
    """A damaged record, a foreign file, a hidden one."""
    record_files(folder)[0].write_text("{")
    (folder / "notes.md").write_text("")
    (folder / ".DS_Store").write_text("")
    return record_files(folder)[0]


def complaints(result):
    return [line for line in result.stderr.splitlines() if line.startswith("left out: ")]


# ---- ls, validate, merge, rm ----


def test_ls_lists_records_by_model_and_task(shared):
    output = succeed(f"results ls --results {shared}")
    assert output.splitlines()[-1] == f"4 records in {shared}"
    assert output.count("native") == output.count(" 75.0 %") == output.count("top-1") == 4
    assert output.count("fp32, cpu") == 2, "once a model"
    rows = json.loads(
        succeed(f"results ls --results {shared} --models runs/a:* --tasks knn --json")
    )
    (row,) = rows
    assert (row["model"], row["task"], row["value"]) == ("runs/a:student", "shapes/knn", 0.75)
    assert row["path"] in map(str, record_files(shared))


def test_ls_breaks_no_word_in_80_columns(shared, monkeypatch):
    model, task = "open_clip:ViT-SO400M-14-SigLIP-384/webli", "camvid_mini/segmentation_zeroshot"
    put(shared, model, 0.5, task, main="text_retrieval_recall@1", protocol="bigvision")
    monkeypatch.setattr("silc_bench.cli.results.console", Console(width=80))
    lines = succeed(f"results ls --results {shared}").splitlines()
    assert max(map(len, lines[:-1])) <= 80
    (heading,) = [line for line in lines if line.startswith(model)]
    assert heading.endswith(", fp32, cpu")
    row = next(line for line in lines if line.startswith(task)).split()
    assert row[1:4] == ["50.0", "%", "bigvision"]
    assert row[5:] == ["image", "to", "text"], "and R@1 in the next line"


def test_ls_says_how_two_setups_of_a_model_differ(shared):
    put(shared, "runs/a:student", 0.7, "shapes/knn", precision="bf16")
    rows = json.loads(succeed(f"results ls --results {shared} --models runs/a:student --json"))
    assert sorted(row["setup"] for row in rows) == ["bf16", "fp32", "fp32"]


def test_validate_names_everything_and_fails_on_damage_alone(shared):
    assert succeed(f"results validate --results {shared}") == "4 records can be used\n"
    (shared / "notes.md").write_text("")
    assert succeed(f"results validate --results {shared}").splitlines() == [
        f"no record: {shared}/notes.md",
        "4 records can be used",
    ]
    path = damage(shared)
    result = call(f"results validate --results {shared}")
    assert result.exit_code == 1
    assert f"wrong: {path}: not JSON" in result.stdout
    assert result.stdout.splitlines()[-1] == "3 records can be used"
    assert error_of(result.stderr).startswith(f"{shared}: 1 file is not sound")


def test_merge_says_what_it_did_and_what_it_did_not(shared, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(shared, other)
    put(other, "runs/c:student", 0.5)
    (other / "pictures").mkdir()
    assert succeed(f"results merge {other} --into {shared}").splitlines() == [
        f"copied 1 record into {shared}",
        "4 records known already, with the same result",
        f"not copied: {other}/pictures, which holds no records",
    ]

    put(other, "runs/c:student", 0.6)
    damaged = damage(other)
    result = call(f"results merge {other} --into {shared}")
    assert result.exit_code == 1
    assert "copied 0 records" in result.stdout
    assert "kept apart: " in result.stdout
    assert [str(damaged) in line for line in complaints(result)] == [True, False]
    assert result.stderr.splitlines()[-1].startswith(f"error: {shared}: 1 record kept apart")


def test_rm_counts_first_and_deletes_only_when_told(shared):
    files = record_files(shared)
    line = f"results rm --results {shared} --models runs/a:student --tasks knn"
    result = call(line)
    (path,) = [file for file in files if "=a" in str(file) and "knn" in file.name]
    assert result.exit_code == 2
    assert result.stdout == f"would delete 1 record (1 model, 1 task):\n  {path}\n"
    assert error_of(result.stderr).startswith("results rm: nothing was deleted")
    assert record_files(shared) == files

    assert succeed(f"{line} --yes") == "deleted 1 record (1 model, 1 task)\n"
    assert record_files(shared) == [file for file in files if file != path]
    assert not path.with_suffix(".outcomes.npz").exists()
    fail(f"results rm --results {shared}", "results rm")
    fail(f"{line} --yes", "results rm")
    assert "unknown model" in call(f"results rm --results {shared} --models c --yes").stderr


# ---- import ----


def test_import_writes_published_rows_with_their_source(shared, tmp_path):
    table = tmp_path / "their table.csv"
    table.write_text(
        "name,pretrained,ImageNet 1k,Caltech-101\nViT-L-14,openai,0.7554,0.9\nRN50,yfcc,0.3,0.4\n"
    )
    line = f"results import '{table}' --source https://example.org/a --results {shared}"
    path = shared / "reported" / "their table.json"
    assert succeed(line).splitlines() == [
        f"wrote {path}: 2 models, 2 values",
        "left out: column 'Caltech-101', 2 times, first in their table.csv, row 2",
    ]
    fail(line, path)
    succeed(f"{line} --name theirs")
    fail(f"{line} --name ../theirs", "--name")
    fail(
        f"results import {table.parent}/none.csv --source https://x.org", "none.csv", is_kept=False
    )

    page = succeed(f"leaderboard --results {shared} --out {tmp_path}/out")
    assert "wrote" in page
    assert "open_clip:RN50/yfcc" in (tmp_path / "out" / "leaderboard.md").read_text()


# ---- the other commands on folders that hold damage ----


@pytest.mark.parametrize("command", ["leaderboard", "compare runs/a:student runs/b:student"])
def test_reports_leave_out_what_is_damaged_and_say_so(shared, command):
    path = damage(shared)
    result = call(f"{command} --results {shared}")
    assert result.exit_code == 0, result.output
    assert [str(path) in line for line in complaints(result)] == [True, False]
    assert "2 files that are no records" in result.stderr


@pytest.mark.parametrize("command", ["leaderboard", "compare runs/a:student runs/b:student"])
def test_reports_read_several_folders(shared, tmp_path, command):
    other = tmp_path / "other"
    other.mkdir()
    shutil.move(next(shared.glob("runs=a*")), other)
    output = succeed(f"{command} --results {shared} --results {other}")
    assert "runs/a:student" in output
    assert "runs/b:student" in output


def test_where_nothing_is_sound_the_first_damage_is_named(shared):
    for path in record_files(shared):
        path.write_text("{")
    for command in ("leaderboard", "compare runs/a:student runs/b:student"):
        fail(f"{command} --results {shared}", shared, is_kept=False)


def test_a_stale_leaderboard_is_found(shared, tmp_path):
    line = f"leaderboard --results {shared} --out {tmp_path}/out"
    assert "leaderboard.md" in error_of(call(f"{line} --check").stderr)
    succeed(line)
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert "up to date" in succeed(f"{line} --check")

    put(shared, "runs/c:student", 0.5)
    result = call(f"{line} --check")
    assert result.exit_code == 1
    assert all(path.name in result.stderr for path in before)
    assert {path: path.read_bytes() for path in before} == before, "a check writes nothing"
    fail(f"leaderboard --results {shared} --check", "--check")
