"""The command line as its users meet it: what it prints, writes, refuses, and its exit codes."""

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import typer
from commands import SETS, call, error_of, fail, succeed, train_tiny
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from silc_bench.cli.app import app
from silc_bench.cli.train import tasks_for
from silc_bench.errors import RunError, UserError
from silc_bench.results.folders import read
from silc_bench.results.record import SCHEMA
from silc_bench.system.terminal_table import hanging

pytestmark = pytest.mark.broad

SHALLOW = "--device cpu --set vision.depth=1 --set text.depth=1"
GENERATED = ("shapes", "places", "places_things")  # what needs no files
ONE_TASK = "--tasks shapes/zeroshot --limit 20 --device cpu"


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run of three steps."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    lines = train_tiny(folder, "--samples 24").splitlines()
    assert f"done: {folder}/checkpoints/step_00000003.pt" in lines
    assert f"next: silc-bench eval --ckpt {folder} --tasks shapes" in lines
    return folder


@pytest.fixture(scope="module")
def results(run, tmp_path_factory):
    """Records of student and teacher on a whole task and on part of others."""
    folder = tmp_path_factory.mktemp("results")
    both = f"--ckpt {run}:student --ckpt {run}:teacher --results {folder} --device cpu"
    output = succeed(f"eval {both} --tasks shapes/zeroshot")
    output += succeed(f"eval {both} --tasks shapes/knn,shapes/retrieval --limit 30")
    assert "known" not in output
    assert output.count("(limited to 30, never ranks)") == 4
    assert output.endswith(f"records in {folder}; silc-bench leaderboard --results {folder}\n")
    return folder


# ---- the process: how it ends (what it imports: test_first_words.py) ----


@pytest.mark.timing
def test_a_reader_that_goes_away_ends_it_quietly():
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-u", "-m", "silc_bench", "tasks"]
    with os.fdopen(write, "wb") as nobody:
        done = subprocess.run(command, stdout=nobody, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "")


# ---- train ----


def test_the_command_that_comes_next_can_be_typed_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.setattr("silc_bench.trainer.loop.run_training", Mock())
    lines = succeed(f"train --out '{tmp_path}/my runs'").splitlines()
    assert lines[1] == f"next: silc-bench eval --ckpt '{tmp_path}/my runs' --tasks shapes"
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (8, 8)).save(photos / "a.png")
    (photos / "a.txt").write_text("black")
    lines = succeed(f"data pack {photos} '{tmp_path}/my shards'").splitlines()
    assert lines[1] == f"next: silc-bench data stats '{tmp_path}/my shards/*.tar'"


@pytest.mark.parametrize(
    ("source", "tasks"),
    [
        ("shapes", "shapes"),
        ("photos/own.jsonl", "captions:photos/own.jsonl"),
        ("my photos/own.CSV", "'captions:my photos/own.CSV'"),
        ("captioned/*.tar", "'wds:captioned/*.tar'"),
        ("labelled/*.tar", "shapes"),  # whose names may lie anywhere
        ("https://host/captioned.tar", "shapes"),
        ("photos", "shapes"),
        ("places:num_pairs=64", "places"),
        ("3 * a.tar | 1 * own.jsonl", "shapes"),  # a part of it is not all
    ],
)
def test_the_next_step_fits_the_data(source, tasks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder, ending in (("captioned", "txt"), ("labelled", "cls")):
        Path(folder).mkdir()
        with tarfile.open(f"{folder}/0.tar", "w") as shard:
            for name in ("0.png", f"0.{ending}"):
                shard.addfile(tarfile.TarInfo(name))
    assert tasks_for(source) == tasks


def test_b16_in_an_empty_folder_on_a_laptop_says_what_fits_and_makes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("silc_bench.trainer.monitor.plan.fit.memory_of", lambda device: 24 * 2**30)
    result = call("train --preset b16 --device cpu --set precision=fp32")
    assert result.exit_code == 2
    said, *own_data = result.stdout.splitlines()
    assert said.startswith("no --data: trains b16 on generated scenes of 256 px")
    assert [line.split()[:3] for line in own_data] == [
        ["silc-bench", "data", "pack"],
        ["silc-bench", "train", "--preset"],
    ]
    head, *ways, error = result.stderr.splitlines()
    assert head == "these would fit, by the same count:"
    for option in ("--set micro_batch=", "--preset s16", "torchrun --nnodes", "--device"):
        assert any(option in way for way in ways), option
    sentence = error_of(error + "\n")
    assert "10,317.33 GiB" in sentence
    assert "may use 24.00 GiB" in sentence
    assert not list(tmp_path.iterdir())


def test_a_preset_without_data_trains_on_generated_scenes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sizes = "--set views.local_size=8 --set batch_size=8"
    said = train_tiny("runs/cifar", f"--preset cifar_tiny --samples 8 {sizes}")
    assert said.startswith("no --data: trains cifar_tiny on generated scenes of 32 px")
    assert "from shapes (generated" in said
    assert said.splitlines()[-1].endswith("--tasks shapes")


def test_the_cost_of_a_run_on_several_devices(monkeypatch):
    """Each has its share of the images; the weights are whole on each."""
    dry = f"train --dry-run {SHALLOW}"
    one, four = succeed(dry), succeed(f"{dry} --devices 4")
    assert "of a step on one device" in one
    assert "of a step on one of 4 devices" in four

    def size_of(part, output):
        return float(re.search(rf"memory, [^\n]*{part}.*? +([0-9.]+) MiB", output)[1])

    assert size_of("and views", four) == pytest.approx(size_of("and views", one) / 4, abs=0.1)
    assert size_of("weights", four) == size_of("weights", one)

    # of the processes that torchrun starts one says it
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "0")
    assert "of a step on one of 4 devices" in succeed(dry)
    monkeypatch.setenv("RANK", "1")
    assert succeed(dry) == succeed(f"train --show-config {SHALLOW}") == ""


def test_show_config_says_how_sure_the_recipe_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = succeed("train --preset b16 --data '[/a].tar' --objective contrastive --show-config")
    rows = {}
    for line in shown.splitlines():
        field, *rows[field] = re.split(r"\s{2,}", line.rstrip())
    assert rows["data.source"][0] == "[/a].tar"
    assert rows["distillation.weight"][0] == "0.0"
    for field, status in (
        ("vision.width", "likely"),
        ("views.num_local", "sure"),
        ("distillation.pairs", "open"),
    ):
        assert rows[field][1].startswith(status)
    assert rows["precision"] == ["auto"], "our own affair"
    assert not list(tmp_path.iterdir()), "it only shows"
    assert "likely" not in succeed("train --show-config")


def test_train_keeps_runs_apart(run):
    before = contents(run)
    again = f"train --out {run} --device cpu {SETS}"
    fail(f"{again} --samples 24", run)
    sentence = fail(f"{again} --samples 48 --seed 3 --resume", run)
    assert "samples 24 -> 48" in sentence
    assert "seed 0 -> 3" in sentence
    for resume in ("--resume", "--resume auto", "--resume=auto"):
        output = succeed(f"{again} --samples 24 {resume}").replace("\n", "")
        assert f"{run} is already complete" in output
    assert contents(run) == before


# ---- what is refused, before any work ----

OPTIONS = {  # which a row may give again
    "train": "--out {tmp}/runs/a",
    "eval": "--ckpt {run} --tasks shapes/zeroshot --limit 20 --results {tmp}/results",
    "compare": "a b",
}
REFUSED = {  # the rest of a command line, and what the sentence is about
    "train": [
        ("--preset b61", "b61"),
        ("--set optim.lrr=1", "optim.lrr"),
        ("--set optim.lr=fast", "optim.lr"),
        ("--data shape", "shape"),
        ("--data '/nowhere/{{000..002}}.tar'", "/nowhere/000.tar"),
        ("--data {here}", "test_cli.py"),
        ("--device gpu", "gpu"),
        ("--device cuda", "cuda"),
        ("--resume", "runs/a"),
        ("--resume maybe", "--resume"),
        ("--devices 2", "--devices"),
        ("--dry-run --devices 7", "batch_size"),
    ],
    "eval": [
        ("--tasks shapes/zeroshoot", "shapes/zeroshoot"),
        ("--tasks 'cifar1/*'", "cifar1/*"),
        ("--tasks ' , '", "task"),
        ("--ckpt {run}:best", "best"),
        ("--ckpt {tmp}/none", "/none"),
        ("--ckpt {tmp}", "checkpoints/step_*.pt"),
        ("--ckpt {run}/log.jsonl", "log.jsonl"),
        ("--ckpt ''", "name"),
        ("--device cud", "cud"),
        ("--device cuda", "cuda"),
        ("--precision fp8", "fp8"),
        ("--existing skpi", "skpi"),
        ("--tasks cifar100/knn", "cifar100"),
        ("--tasks cifar100/knn --data-root {tmp}", "cifar100/train"),
        ("--data-root {here}", "test_cli.py"),
        ("--data-root {tmp}/none", "--data-root"),
        ("--ckpt '{tmp}/*'", "/*"),
        ("--ckpt @{tmp}/none", "/none"),
        ("{tmp}/none", "/none"),
    ],
    "leaderboard": [("--results {tmp}", "eval --results"), ("--results {here}", "test_cli.py")],
    "compare": [("--results {tmp}", "eval --results"), ("--results {tmp}/none", "/none")],
    "doctor": [("{tmp}/none", "/none"), ("timm", "timm")],
    "export": [
        ("{run} --to onnx --out {tmp}/x", "onnx"),
        ("{run} --to safetensors --out {tmp}/x", "/x"),
        ("{here} --to safetensors --out {tmp}/x.safetensors", "test_cli.py"),
    ],
    "report": [("{tmp}/none", "/none"), ("{run} {tmp}/none", "/none"), ("{run} {run}", "/tiny")],
}
ROWS = [(name, *row) for name, rows in REFUSED.items() for row in rows]


@pytest.mark.parametrize(("name", "rest", "about"), ROWS)
def test_a_mistake_is_one_sentence_and_nothing_is_made(
    run, tmp_path, monkeypatch, name, rest, about
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    # a checkpoint more would be measured, and its failure said at the end
    given = (
        "--tasks shapes/zeroshot --results {tmp}/r" if "--ckpt" in rest else OPTIONS.get(name, "")
    )
    line = f"{name} {given} {rest}"
    # the log of a run has another length each time
    is_kept = about != "log.jsonl"
    fail(line.format(run=run, tmp=tmp_path, here=__file__), about, is_kept=is_kept)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_place_that_cannot_be_written_is_found_before_any_work(run, results, tmp_path, name):
    (tmp_path / "file").write_text("mine")
    place = tmp_path / name
    for line in (
        f"train --out {place}",
        f"eval --ckpt {run} {ONE_TASK} --results {place}",
        f"leaderboard --results {results} --out {place}",
        f"demo --out {place}",
    ):
        assert f"{tmp_path}/file is not a folder" in fail(line, place)
    assert (tmp_path / "file").read_text() == "mine"


# ---- eval ----


def test_records_are_valid_and_student_and_teacher_are_two_models(run, results):
    jsonschema = pytest.importorskip("jsonschema")
    for path in results.rglob("*.json"):
        jsonschema.validate(json.loads(path.read_text()), SCHEMA)
    records = read([results]).records
    assert len(records) == 6
    models = {(record.model.name, record.model.source) for record in records}
    branches = ("student", "teacher")
    assert models == {(f"{run.name}:{branch}", f"{run}:{branch}") for branch in branches}
    assert len({record.model.revision for record in records}) == 2
    tasks = {(record.task.name, record.limit) for record in records}
    assert tasks == {("shapes/zeroshot", None), ("shapes/knn", 30), ("shapes/retrieval", 30)}


def test_names_that_were_asked_for_stand_in_tables_with_their_revisions(run, tmp_path):
    both = f"--ckpt {run} --name 'ours, a' --ckpt {run}:teacher --name ours@b"
    output = succeed(f"eval {both} {ONE_TASK} --results {tmp_path}")
    for record in read([tmp_path]).records:
        branch = record.model.source.removeprefix(str(run))
        assert record.model.name == {"": "ours, a", ":teacher": "ours@b"}[branch]
        assert f"{record.model.name}@{record.model.revision[:8]} " in output


@pytest.mark.parametrize("names", ["--name a --name b", "--name ' '"])
def test_names_are_given_to_each_checkpoint_or_to_none(names):
    fail(f"eval --ckpt hf:nowhere {names} {ONE_TASK}", "--name")


def test_what_another_results_folder_holds_is_not_measured_again(run, results, tmp_path):
    both = f"--results '{tmp_path}/a new one' --results {results}"
    output = succeed(f"eval --ckpt {run} --tasks shapes/zeroshot --device cpu {both}")
    assert "(known, not measured again)" in output
    assert output.endswith(f"records in {tmp_path}/a new one; silc-bench leaderboard {both}\n")
    assert not (tmp_path / "a new one").exists()


def test_families_in_an_empty_folder_mean_what_can_be_measured(run, tmp_path, monkeypatch):
    """And two lines say which named sets wait for data, and how to point to it."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(run / "checkpoints/step_00000003.pt", "x.pt")
    output = succeed("eval --ckpt x.pt --tasks zeroshot,retrieval --limit 20 --device cpu")
    waiting, how, *_ = output.splitlines()
    sets = waiting.partition(": ")[2].split(", ")
    assert waiting.startswith(f"left out as they wait for data, {len(sets)} tasks on ")
    assert {"imagenet1k", "cifar100", "coco", "flickr30k"} <= set(sets)
    assert all(word in how for word in ("--data-root", "SILC_BENCH_DATA_ROOT", "silc-bench.toml"))
    names = {record.task.name for record in read(["results"]).records}
    wanted = {f"{name}/zeroshot" for name in GENERATED} | {"shapes/zeroshot_unseen"}
    assert names == wanted | {"shapes/retrieval", "places/retrieval"}


def test_a_sweep_goes_on_after_a_failure_and_says_it_at_the_end(run, tmp_path):
    """A glob that the shell has expanded; of its three folders one holds no checkpoint."""
    for name in ("a", "b", "c"):
        (tmp_path / f"runs/{name}").mkdir(parents=True)
    for name in ("a", "c"):
        shutil.copytree(run / "checkpoints", tmp_path / f"runs/{name}/checkpoints")
    folders = " ".join(str(tmp_path / f"runs/{name}") for name in ("a", "b", "c"))
    line = f"eval {ONE_TASK} --results {tmp_path}/results"
    for words, counts in (
        (f"--ckpt {folders}", "2 measured"),
        (f"--ckpt '{tmp_path}/runs/*'", "0 measured, 2 known"),
        (folders, "0 measured, 2 known"),
    ):
        result = call(f"{line} {words}")
        assert result.exit_code == 2
        assert counts in result.stdout
        failed = result.stderr.splitlines()[-1]
        assert failed.startswith(f"error: 1 of 3 checkpoints failed: {tmp_path}/runs/b: ")
    assert {record.model.name for record in read([tmp_path / "results"]).records} == {
        "a:student",
        "c:student",
    }


def test_the_checkpoints_of_a_run_are_a_sweep(run, tmp_path):
    result = call(f"eval --ckpt {run}:teacher@all {ONE_TASK} --results {tmp_path}")
    assert result.exit_code == 0, result.output
    files = sorted((run / "checkpoints").glob("*.pt"))
    steps = {record.model.training.step for record in read([tmp_path]).records}
    assert steps == {int(file.stem.removeprefix("step_")) for file in files}
    assert all(f"  step {step}  " in result.stdout for step in steps)


# ---- show, leaderboard and tasks ----


def test_show_draws_what_two_branches_of_a_run_see(run, tmp_path):
    image = tmp_path / "a[x].png"
    Image.new("RGB", (90, 40), (200, 30, 30)).save(image)
    both = f"--ckpt {run}:student --ckpt {run}:teacher {shlex.quote(str(image))} --device cpu"
    output = succeed(
        f"show {both} --classes 'red [/x],ring' --dense-method naclip --out {tmp_path}/out.png"
    )
    with Image.open(tmp_path / "out.png") as sheet:
        assert output == f"wrote {tmp_path}/out.png, {sheet.width} x {sheet.height} pixels\n"
    method = f"--classes ring --dense-method plain --out {tmp_path}/no.png"
    fail(f"show {run} {shlex.quote(str(image))} {method}", "plain")
    assert not (tmp_path / "no.png").exists()


def test_compare_takes_what_eval_took_however_it_is_written(run, results, monkeypatch):
    monkeypatch.chdir(run.parent)
    expected = succeed(f"compare tiny:student tiny:teacher --results {results}")
    (teacher,) = {
        r.model.revision for r in read([results]).records if r.model.name == "tiny:teacher"
    }
    for names in ("tiny tiny/:teacher", f"{run} tiny:teacher@{teacher[:4]}"):
        assert succeed(f"compare {names} --results {results}") == expected


def test_compare_breaks_its_sentences_between_words_in_a_terminal_alone(results, monkeypatch):
    command = f"compare tiny:student tiny:teacher --results {results}"
    whole = succeed(command)
    terminal = Console(force_terminal=True, width=40, height=50, legacy_windows=False)
    monkeypatch.setattr(importlib.import_module("silc_bench.cli.compare"), "console", terminal)
    broken = hanging(whole.splitlines()[0], 40)
    assert len(broken) > 1
    assert "\n".join(broken) in succeed(command)


def test_show_takes_names_of_the_leaderboard(run, results, tmp_path, monkeypatch):
    """From a folder in which nothing is called so."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(results, "results")
    Image.new("RGB", (90, 40)).save("x.png")
    (teacher,) = {
        r.model.revision for r in read([results]).records if r.model.name == "tiny:teacher"
    }

    def show(name):
        return f"show --ckpt {name} x.png --classes ring --results results --out y.png --device cpu"

    for name in ("tiny:teacher", f"tiny:teacher@{teacher}"):
        succeed(show(name))
        assert f"tiny:teacher @{teacher[:8]}" in Path("results/pictures/y.txt").read_text()
    fail(show("tiny:techer"), "did you mean tiny:teacher")
    fail(show("runs/tiny:teacher"), "no such file or folder")

    # Its run has been trained on since: not what the name stands for in the tables.
    monkeypatch.setattr("silc_bench.results.names.Models.source", lambda *_: str(run))
    fail(show("tiny:teacher"), "than were measured", is_kept=False)


def test_leaderboard_prints_and_writes(results, tmp_path):
    folder = tmp_path / "board[/x]"
    output = succeed(f"leaderboard --results {results} --out '{folder}'")
    assert "Measured here" in output
    for ending in ("md", "csv", "html"):
        assert (folder / f"leaderboard.{ending}").exists()
        assert f"wrote {folder}/leaderboard.{ending}\n" in output
    assert succeed(f"leaderboard --results {results}") in output


def test_tasks_lists_what_eval_knows():
    table = succeed("tasks")
    for row in json.loads(succeed("tasks --json")):
        assert set(row) == {"name", "version", "group", "main_metric", "requires"}
        assert row["name"] in table


# ---- ends that no command foresees ----


def test_a_full_disk_is_one_sentence(run, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", Mock(side_effect=OSError(28, "No space left on device")))
    line = f"eval --ckpt {run} {ONE_TASK} --results {tmp_path} --cache off"
    sentence = fail(line, tmp_path, code=1, is_kept=False)
    assert ".npz: No space left on device; make room there" in sentence
    assert not contents(tmp_path)


@pytest.mark.parametrize(
    ("error", "code", "output"),
    [
        (UserError("x is [red]wrong[/]; :x: y[/b]"), 2, "error: x is [red]wrong[/]; :x: y[/b]"),
        (RunError("two\nlines \x1b[31mred"), 1, "error: two lines  [31mred"),
        (PermissionError(13, "Permission denied", "a/b"), 1, "error: a/b: Permission denied"),
        (IsADirectoryError(21, "Is one", "a", None, "b"), 1, "error: a -> b: Is one"),
        (OSError("no number"), 1, "error: no number"),
        (MemoryError("44 TiB"), 1, "error: out of memory (44 TiB). "),
        (torch.OutOfMemoryError("CUDA out of memory. Tried 9 GiB\nmore"), 1, "Tried 9 GiB). "),
        (KeyboardInterrupt(), 1, "stopped by Ctrl-C; everything that was finished is saved"),
        (UserError("long " * 100 + "end"), 2, "error: " + "long " * 100 + "end"),
    ],
)
def test_an_end_is_one_line_as_it_was_written(monkeypatch, error, code, output):
    monkeypatch.setattr("silc_bench.reports.leaderboard.build", Mock(side_effect=error))
    result = call("leaderboard")
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.count("\n") == 1
    if "memory" in output or "GiB" in output:
        assert output in result.stderr
        assert "--set micro_batch=N" in result.stderr
    else:
        assert result.stderr == f"{output}\n"


def test_towers_that_no_memory_holds_are_a_sentence(tmp_path, monkeypatch):
    """What torch's own allocator says on a CPU, where the count beforehand was wrong."""
    monkeypatch.setattr("silc_bench.trainer.loop.check_fit", Mock())
    monkeypatch.setattr("silc_bench.trainer.loop.TOKENIZER_CAPTIONS", 50)
    line = f"train --set distillation.num_prototypes=10000000000000 --out {tmp_path}"
    fail(line, "out of memory (", code=1, is_kept=False)


@pytest.mark.parametrize("bug", [ZeroDivisionError("x"), RuntimeError("x")])
def test_a_bug_keeps_its_traceback(monkeypatch, bug):
    monkeypatch.setattr("silc_bench.reports.leaderboard.build", Mock(side_effect=bug))
    assert call("leaderboard").exception is bug


@pytest.mark.parametrize("name", typer.main.get_command(app).commands)
def test_help_says_each_word_of_an_option(name):
    """Brackets too, which a renderer of markup may swallow."""
    command = typer.main.get_command(app).commands[name]
    printed = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "900"}).output
    helps = [option.help for option in command.params if getattr(option, "help", None)]
    assert [text for text in helps if " ".join(text.split()) not in printed] == []
