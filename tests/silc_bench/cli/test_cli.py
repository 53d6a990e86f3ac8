"""The command line as its users meet it: what it prints, writes, refuses, and its exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from silc_bench import __version__
from silc_bench.cli import app as cli
from silc_bench.errors import RunError, UserError
from silc_bench.results.record import SCHEMA, Record, load_all

pytestmark = pytest.mark.broad

TINY = {
    **{
        f"{tower}.{name}": value
        for tower in ("vision", "text")
        for name, value in (("width", 32), ("depth", 1))
    },
    **{
        f"{tower}.{name}": value
        for tower in ("vision", "text")
        for name, value in (("num_heads", 2), ("mlp_dim", 48))
    },
    "text.vocab_size": 300,
    "distillation.num_prototypes": 64,
    "distillation.hidden_dim": 32,
    "distillation.bottleneck_dim": 16,
    "distillation.ema_momentum": 0.5,
    "views.num_local": 2,
    "batch_size": 8,
    "log_every": 1,
}
SETS = [word for name, value in TINY.items() for word in ("--set", f"{name}={value}")]
SHALLOW = ("--set", "vision.depth=1", "--set", "text.depth=1")
ONE_TASK = ("--tasks", "shapes/zeroshot", "--limit", "20", "--device", "cpu")


def call(*args: object):
    return CliRunner().invoke(cli.app, [str(arg) for arg in args])


def succeed(*args: object) -> str:
    result = call(*args)
    assert result.exit_code == 0, result.output
    assert not result.stderr
    return result.stdout


def fail(*args: object, code: int = 2) -> str:
    """The one sentence of a command that fails; nothing else is printed."""
    result = call(*args)
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == code, result.output
    assert not result.stdout
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: ")
    return result.stderr.removeprefix("error: ").rstrip("\n")


def refused(*args: object) -> str:
    """What the parser says of a command line that it cannot read, without its frame."""
    result = call(*args)
    assert result.exit_code == 2, result.output
    assert not result.stdout
    assert "Traceback" not in result.stderr
    return " ".join(re.sub("[│╭╮╰╯─]", " ", result.stderr).split())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run of three steps."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("silc_bench.trainer.loop.TOKENIZER_CAPTIONS", 50)
        said = succeed("train", "--out", folder, "--samples", 24, "--device", "cpu", *SETS)
    assert f"done: {folder}/checkpoints/step_00000003.pt\n" in said
    assert f"next: silc-bench eval --ckpt {folder} --tasks shapes\n" in said
    return folder


def test_the_command_that_comes_next_can_be_typed_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "silc_bench.trainer.loop.run_training", lambda config, run, **options: run / "step_1.pt"
    )
    out = tmp_path / "my runs"
    assert (
        succeed("train", "--out", out).splitlines()[1]
        == f"next: silc-bench eval --ckpt '{out}' --tasks shapes"
    )
    photos, out = tmp_path / "photos", tmp_path / "my shards"
    photos.mkdir()
    Image.new("RGB", (8, 8)).save(photos / "a.png")
    (photos / "a.txt").write_text("black")
    assert (
        succeed("data", "pack", photos, out).splitlines()[1]
        == f"next: silc-bench data stats '{out}/*.tar'"
    )


def test_of_the_processes_that_torchrun_starts_one_says_what_they_cost(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    for number, word in (("1", "--dry-run"), ("3", "--show-config")):
        monkeypatch.setenv("RANK", number)
        assert succeed("train", word, "--device", "cpu", *SHALLOW) == ""
    monkeypatch.setenv("RANK", "0")
    assert "of a step on one of 4 devices" in succeed(
        "train", "--dry-run", "--device", "cpu", *SHALLOW
    )


def test_the_cost_of_a_run_on_several_devices():
    """Each has its share of the pictures; the weights are whole on each."""
    one, four = (
        succeed("train", "--dry-run", "--device", "cpu", *SHALLOW, *devices)
        for devices in ((), ("--devices", 4))
    )
    assert "of a step on one device" in one
    assert "of a step on one of 4 devices" in four

    def size_of(what, output):
        return float(re.search(rf"memory, {what} +([0-9.]+) MiB", output)[1])

    assert size_of("pictures and views", four) == pytest.approx(
        size_of("pictures and views", one) / 4, abs=0.1
    )
    assert size_of("weights", four) == size_of("weights", one)
    assert fail("train", "--dry-run", "--devices", 7).startswith(
        "batch_size 64 does not divide among 7 devices; try --set"
    )
    assert fail("train", "--devices", 2).startswith(
        "--devices belongs to --dry-run; torchrun --nproc-per-node N"
    )


@pytest.fixture(scope="module")
def results(run, tmp_path_factory):
    """Records of student and teacher on a whole task and on part of another."""
    folder = tmp_path_factory.mktemp("results")
    both = (
        "--ckpt",
        f"{run}:student",
        "--ckpt",
        f"{run}:teacher",
        "--results",
        folder,
        "--device",
        "cpu",
    )
    said = succeed("eval", *both, "--tasks", "shapes/zeroshot")
    said += succeed("eval", *both, "--tasks", "shapes/knn,shapes/retrieval", "--limit", 30)
    assert said.count("known") == 0
    assert said.count("(limited to 30, never ranks)") == 4
    assert said.count(f"records in {folder}; silc-bench leaderboard --results {folder}\n") == 2
    return folder


# ---- the process: what is imported, how it ends ----

PROGRAM = """
import contextlib, io, json, sys
from silc_bench.cli.app import main

ends = []
for words in json.loads(sys.argv[1]):
    sys.argv = ["silc-bench", *words]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code
    imported = [name for name in ("torch", "sklearn", "transformers") if name in sys.modules]
    said = {"code": code, "stdout": out.getvalue(), "stderr": err.getvalue()}
    ends.append(said | {"imported": imported})
print(json.dumps(ends))
"""
COMPARE = ("compare", "shapes_tiny-silc:student", "shapes_tiny-silc:teacher")
COMMANDS = {  # words, and the exit code; none of them computes with a model
    "--help": 0,
    "train --help": 0,
    "eval --help": 0,
    "--version": 0,
    "tasks --json": 0,
    "leaderboard --results {results} --out {out}": 0,
    " ".join(COMPARE) + " --results {results} --out {out}": 0,
    "leaderboard --results {out}/nothing": 2,
    "eval --ckpt x --tasks nonsense": 2,
}


@pytest.fixture(scope="module")
def ends(results, tmp_path_factory):
    """{command: how it ended}.

    One process runs them in turn: a module that one has imported, the next ones show too.
    """
    out = tmp_path_factory.mktemp("out")
    lines = [
        [word.format(results=results, out=out) for word in command.split()] for command in COMMANDS
    ]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(lines)], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    return dict(zip(COMMANDS, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("command", COMMANDS)
def test_what_computes_nothing_never_imports_torch(ends, command):
    end = ends[command]
    assert end["code"] == COMMANDS[command], end["stderr"]
    assert end["imported"] == []
    assert end["stdout"] if end["code"] == 0 else end["stderr"].startswith("error: ")


def test_the_version_is_that_of_the_package(ends):
    assert ends["--version"] == {
        "code": 0,
        "stdout": f"silc-bench {__version__}\n",
        "stderr": "",
        "imported": [],
    }


@pytest.mark.timing
def test_the_package_runs_as_a_module(tmp_path):
    command = [
        sys.executable,
        "-m",
        "silc_bench",
        "leaderboard",
        "--results",
        str(tmp_path / "nope"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: no results folder at {tmp_path}/nope;")


@pytest.mark.timing
@pytest.mark.parametrize("args", [["tasks"], ["tasks", "--json"]], ids=" ".join)
def test_a_reader_that_goes_away_ends_it_quietly(args):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-u", "-m", "silc_bench", *args]
    with os.fdopen(write, "wb") as nobody:
        done = subprocess.run(command, stdout=nobody, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "")


FEW_CAPTIONS = (
    "import silc_bench.trainer.loop; silc_bench.trainer.loop.TOKENIZER_CAPTIONS = 50; "
    "from silc_bench.cli.app import main; main()"
)


@pytest.mark.timing
def test_ctrl_c_leaves_a_checkpoint_and_one_line(tmp_path):
    words = ["train", "--out", str(tmp_path), "--samples", "800000", "--device", "cpu", *SETS]
    command = [sys.executable, "-u", "-c", FEW_CAPTIONS, *words]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            for line in process.stdout:
                if line.startswith("step "):
                    break
            process.send_signal(signal.SIGINT)
            _, said = process.communicate()
        finally:
            process.kill()
    assert process.returncode == 1
    (path,) = (tmp_path / "checkpoints").glob("*.pt")
    step = int(path.stem.removeprefix("step_"))
    assert (
        said
        == f"error: stopped by SIGINT after step {step}; {path} is saved, continue with --resume\n"
    )
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == step


# ---- train ----


def test_train_writes_a_run(run):
    assert {path.name for path in run.iterdir()} == {
        "checkpoints",
        "log.jsonl",
        "notes.jsonl",
        "probes.jsonl",
        "tensorboard",
    }
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    saved = json.loads((run / "checkpoints" / "step_00000003.json").read_text())["config"]
    assert (saved["objective"], saved["samples"], saved["vision"]["width"]) == ("silc", 24, 32)


def test_show_config_says_how_sure_the_recipe_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = succeed(
        "train",
        "--preset",
        "b16",
        "--data",
        "[/a].tar",
        "--objective",
        "contrastive",
        "--show-config",
    )
    rows = {
        field: words for field, *words in (re.split(r"\s{2,}", line) for line in shown.splitlines())
    }
    assert rows["data.source"][0] == "[/a].tar"
    assert rows["vision.width"][0] == "768"
    assert rows["distillation.weight"][0] == "0.0"
    for field, status in (
        ("vision.width", "likely"),
        ("views.num_local", "sure"),
        ("distillation.pairs", "open"),
    ):
        assert rows[field][1].startswith(status)
    assert rows["precision"] == ["auto", ""], "our own affair"
    assert not list(tmp_path.iterdir()), "it only shows"
    tiny = succeed("train", "--show-config")
    assert "likely" not in tiny


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--preset", "b61"], "unknown preset 'b61'; did you mean b16?"),
        (
            ["--objective", "contrastive+view"],
            "unknown objective 'contrastive+view'; did you mean contrastive+views",
        ),
        (["--set", "optim.lrr=1"], "unknown field 'optim.lrr'; did you mean optim.lr"),
        (
            ["--set", "optim.lr"],
            "--set optim.lr: has no value; write field=value, as in --set optim.lr=3e-4",
        ),
        (["--set", "optim.lr=fast"], "optim.lr: 'fast' is not of type float"),
        (["--set", "batch_size=8.5"], "batch_size: '8.5' is not of type int"),
        (["--samples", "0"], "samples: must be at least 1, not 0"),
        (["--seed", "-1"], "seed: must be at least 0, and below 2**63, not -1"),
        (
            ["--preset", "cifar_tiny"],
            "preset cifar_tiny brings no data: name your shards, as in --data 'DIR/*.tar'",
        ),
        (["--data", "shape"], "no shard found for 'shape'"),
        (["--data", "/nowhere/{000..002}.tar"], "no shard found for '/nowhere/{000..002}.tar'"),
        (["--data", __file__], f"{__file__} is not a tar shard: it starts with b'"),
        (["--device", "gpu"], "unknown device 'gpu'; did you mean cpu?"),
        (
            ["--resume"],
            "holds no checkpoints/step_*.pt to continue from; leave --resume out to start anew",
        ),
    ],
    ids=lambda value: " ".join(value)[-40:] if isinstance(value, list) else "",
)
def test_train_refuses_with_one_sentence_and_makes_nothing(tmp_path, args, words):
    assert words in fail("train", "--out", tmp_path / "runs" / "a", *args)
    assert not list(tmp_path.iterdir())


def test_train_keeps_runs_apart(run):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    again = ("train", "--out", run, "--device", "cpu", *SETS)
    assert (
        fail(*again, "--samples", 24)
        == f"{run} already holds a run; continue it with --resume, or choose another --out"
    )
    said = fail(*again, "--samples", 48, "--seed", 3, "--resume")
    assert said.startswith(f"--resume: {run} was started with another configuration (")
    assert "samples 24 -> 48" in said
    assert "seed 0 -> 3" in said
    assert f"{run} is already complete" in succeed(*again, "--samples", 24, "--resume").replace(
        "\n", ""
    )
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


# ---- eval ----


def test_records_are_valid_and_student_and_teacher_are_two_models(run, results):
    jsonschema = pytest.importorskip("jsonschema")
    records = load_all(results)
    for path in results.rglob("*.json"):
        jsonschema.validate(json.loads(path.read_text()), SCHEMA)
    assert len(records) == 6
    models = {record.model.name: record.model for record in records}
    assert set(models) == {"shapes_tiny-silc:student", "shapes_tiny-silc:teacher"}
    assert len({record.model.revision for record in records}) == 2
    assert models["shapes_tiny-silc:teacher"].source == f"{run}:teacher"
    assert {(record.task.name, record.limit) for record in records} == {
        ("shapes/zeroshot", None),
        ("shapes/knn", 30),
        ("shapes/retrieval", 30),
    }


def test_a_second_eval_does_no_work(run, results, monkeypatch):
    def encode(*args):
        raise AssertionError("encoded again")

    for name in ("encode_image", "encode_text"):
        monkeypatch.setattr(f"silc_bench.trainer.checkpoints.model.NativeModel.{name}", encode)
    before = {path: path.stat().st_mtime_ns for path in results.rglob("*")}
    again = (
        "eval",
        "--ckpt",
        run,
        "--tasks",
        "shapes/zeroshot",
        "--results",
        results,
        "--device",
        "cpu",
    )
    said = succeed(*again)
    assert said.count("(known, not measured again)") == 1
    assert fail(*again, "--existing", "error") == (
        f"already measured in {results}: shapes/zeroshot; use --existing skip or overwrite"
    )
    assert {path: path.stat().st_mtime_ns for path in results.rglob("*")} == before


def test_overwrite_measures_again(run, tmp_path):
    again = ("eval", "--ckpt", run, *ONE_TASK, "--results", tmp_path)
    first = succeed(*again)
    (path,) = tmp_path.rglob("*.json")
    record = Record.from_json(path.read_text())
    path.write_text(replace(record, seconds=12345.0).to_json())
    assert succeed(*again, "--existing", "overwrite") == first
    assert Record.from_json(path.read_text()).seconds != 12345.0
    assert Record.from_json(path.read_text()).metrics == record.metrics


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (
            ["--tasks", "shapes/zeroshoot"],
            "unknown task 'shapes/zeroshoot'; did you mean shapes/zeroshot",
        ),
        (["--tasks", "cifar1/*"], "unknown task 'cifar1/*'; did you mean cifar10"),
        (["--tasks", " , "], "no task was named; `silc-bench tasks` lists them"),
        (["--ckpt", "{run}:best"], "unknown branch 'best'; known: average, student, teacher"),
        (["--ckpt", "{tmp}/none"], "checkpoint {tmp}/none: no such file or folder"),
        (
            ["--ckpt", "{tmp}"],
            (
                "checkpoint {tmp}: a folder without checkpoints/step_*.pt of a run, "
                "or model.safetensors"
            ),
        ),
        (
            ["--ckpt", "{run}/log.jsonl"],
            "checkpoint {run}/log.jsonl: a JSON text; a model with a JSON index",
        ),
        (["--ckpt", ""], "an empty name is no checkpoint; name a run's folder"),
        (["--device", "cud"], "unknown device 'cud'; did you mean cuda"),
        (["--precision", "fp8"], "unknown precision 'fp8'; did you mean fp32?"),
        (["--existing", "skpi"], "unknown --existing 'skpi'; did you mean skip?"),
        (
            ["--tasks", "cifar100/knn"],
            "cifar100 is read from files; give --data-root DIR with cifar100/train/*.tar",
        ),
        (
            ["--tasks", "cifar100/knn", "--data-root", "{tmp}"],
            "no cifar100 train data: looked in {tmp}/cifar100/train",
        ),
        (
            ["--tasks", "cifar100/knn", "--data-root", __file__],
            f"no cifar100 train data: looked in {__file__}/cifar100/train",
        ),
    ],
    ids=lambda value: " ".join(value)[-40:] if isinstance(value, list) else "",
)
def test_eval_refuses_with_one_sentence_before_any_work(run, tmp_path, args, words):
    places = {"run": str(run), "tmp": str(tmp_path)}
    base = {
        "--ckpt": str(run),
        "--tasks": "shapes/zeroshot",
        "--limit": "20",
        "--results": str(tmp_path / "results"),
    }
    chosen = base | {
        name: value.format(**places) for name, value in zip(args[::2], args[1::2], strict=True)
    }
    assert words.format(**places) in fail(
        "eval", *(word for pair in chosen.items() for word in pair)
    )
    assert not list(tmp_path.iterdir())


def test_a_gpu_that_is_not_there(run, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    words = "device 'cuda' was asked for but torch finds no GPU here; use --device cpu or auto"
    assert (
        fail("eval", "--ckpt", run, *ONE_TASK, "--results", tmp_path, "--device", "cuda") == words
    )
    assert fail("train", "--out", tmp_path / "a", "--device", "cuda") == words


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["eval", "--ckpt", "x", "--tasks", "knn", "--limit", "0"], "Invalid value for '--limit'"),
        (
            ["eval", "--ckpt", "x", "--tasks", "knn", "--limit", "many"],
            "Invalid value for '--limit'",
        ),
        (
            ["eval", "--ckpt", "x", "--tasks", "knn", "--batch-size", "0"],
            "Invalid value for '--batch-size'",
        ),
        (
            ["eval", "--ckpt", "x", "--tasks", "knn", "--workers", "-1"],
            "Invalid value for '--workers'",
        ),
        (["eval", "--ckpt", "x"], "Missing option '--tasks'"),
        (["eval", "--tasks", "knn"], "Missing option '--ckpt'"),
        (["train", "--sample", "3"], "No such option: --sample"),
        (["trian"], "No such command 'trian'. Did you mean 'train'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_command_line_that_cannot_be_read(args, words):
    assert words in refused(*args)


def test_workers_and_batches_change_no_number(run, tmp_path):
    said = [
        succeed(
            "eval",
            "--ckpt",
            run,
            *ONE_TASK,
            "--results",
            tmp_path / str(size),
            "--batch-size",
            size,
            "--workers",
            workers,
        )
        for size, workers in ((256, 0), (3, 1))
    ]
    assert said[0].splitlines()[0] == said[1].splitlines()[0]


def test_a_family_without_a_data_root_means_what_can_be_measured(run, tmp_path):
    said = succeed(
        "eval",
        "--ckpt",
        run,
        "--tasks",
        "knn,zeroshot",
        "--limit",
        20,
        "--results",
        tmp_path,
        "--device",
        "cpu",
    )
    assert said.startswith(
        "left out without --data-root: cifar10/knn, cifar10/zeroshot, cifar100/knn, "
        "cifar100/zeroshot, "
    )
    assert {record.task.name for record in load_all(tmp_path)} == {
        "shapes/knn",
        "shapes/zeroshot",
        "shapes/zeroshot_unseen",
    }


def test_real_photographs(run, tmp_path):
    root = os.environ.get("SILC_BENCH_TEST_DATA")
    if not root or not (Path(root) / "cifar100").is_dir():
        pytest.skip("SILC_BENCH_TEST_DATA holds no cifar100")
    args = ("eval", "--ckpt", run, "--data-root", root, "--results", tmp_path, "--device", "cpu")
    assert "shapes_tiny-silc:student" in succeed(
        *args, "--tasks", "cifar100/zeroshot", "--limit", 20
    )
    (record,) = load_all(tmp_path)
    assert (record.task.name, record.n, record.task.chance) == (
        "cifar100/zeroshot",
        20,
        pytest.approx(0.01),
    )


# ---- show ----


def test_show_draws_what_two_branches_of_a_run_see(run, tmp_path):
    Image.new("RGB", (90, 40), (200, 30, 30)).save(tmp_path / "a[x].png")
    both = (
        "--ckpt",
        f"{run}:student",
        "--ckpt",
        f"{run}:teacher",
        tmp_path / "a[x].png",
        "--device",
        "cpu",
    )
    said = succeed(
        "show",
        *both,
        "--classes",
        "red [/x],ring",
        "--dense-method",
        "naclip",
        "--out",
        tmp_path / "out.png",
    )
    with Image.open(tmp_path / "out.png") as sheet:
        assert said == f"wrote {tmp_path}/out.png, {sheet.width} x {sheet.height} pixels\n"
    said = fail(
        "show",
        run,
        tmp_path / "a[x].png",
        "--classes",
        "ring",
        "--dense-method",
        "plain",
        "--out",
        tmp_path / "no.png",
    )
    assert (
        "cannot give dense features by 'plain': its patches meet text through attention pooling"
        in said
    )
    assert not (tmp_path / "no.png").exists()


# ---- leaderboard and tasks ----


def test_leaderboard_prints_and_writes_the_same_bytes_again(results, tmp_path):
    said = succeed("leaderboard", "--results", results, "--out", tmp_path / "board[/x]")
    assert "Measured here" in said
    assert "limited" in said
    files = {path.name: path.read_bytes() for path in (tmp_path / "board[/x]").iterdir()}
    assert set(files) == {"leaderboard.md", "leaderboard.csv", "leaderboard.html"}
    assert all(f"wrote {tmp_path}/board[/x]/{name}\n" in said for name in files)
    assert succeed("leaderboard", "--results", results, "--out", tmp_path / "board[/x]") == said
    assert {path.name: path.read_bytes() for path in (tmp_path / "board[/x]").iterdir()} == files
    assert succeed("leaderboard", "--results", results) in said


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.write_text("{"), "not JSON"),
        (lambda path: path.write_text("[]"), "expected object, got []"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "cannot be read"),
        (lambda path: path.write_text('{"a": 1}'), "not a 'record/2' file"),
        (
            lambda path: path.rename(path.with_name("zeroshot.00000000.json")),
            "was moved, copied or edited",
        ),
    ],
    ids=["cut", "no object", "no text", "foreign", "moved"],
)
def test_a_damaged_record_is_named(run, tmp_path, damage, words):
    succeed("eval", "--ckpt", run, *ONE_TASK, "--results", tmp_path)
    (path,) = tmp_path.rglob("*.json")
    damage(path)
    (path,) = tmp_path.rglob("*.json")
    said = fail("leaderboard", "--results", tmp_path)
    assert said.startswith(f"{path}: ")
    assert words in said


def test_leaderboard_without_records(tmp_path):
    said = f"no records in {tmp_path}; `silc-bench eval --results {tmp_path}` writes them"
    assert fail("leaderboard", "--results", tmp_path) == said
    said = f"no results folder at {__file__}; `silc-bench eval --results {__file__}` makes one"
    assert fail("leaderboard", "--results", __file__) == said


def test_tasks_lists_what_eval_knows():
    rows = json.loads(succeed("tasks", "--json"))
    assert {row["name"] for row in rows} >= {
        "shapes/zeroshot",
        "cifar100/knn",
        "shapes/segmentation_zeroshot",
    }
    for row in rows:
        assert set(row) == {"name", "version", "group", "main_metric", "requires"}
        assert set(row["requires"]) <= {"image", "text", "dense"}
    table = succeed("tasks")
    assert all(row["name"] in table for row in rows)


# ---- what is the same for every command ----


def commands_that_write(run, results, place):
    return [
        ("train", "--out", place),
        ("eval", "--ckpt", run, *ONE_TASK, "--results", place),
        ("leaderboard", "--results", results, "--out", place),
        ("demo", "--fast", "--out", place),
    ]


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_place_that_cannot_be_written_is_found_before_any_work(run, results, tmp_path, name):
    (tmp_path / "file").write_text("mine")
    for command in commands_that_write(run, results, tmp_path / name):
        assert fail(*command) == (
            f"cannot write to {tmp_path / name}: {tmp_path}/file is not a folder; "
            "choose another one"
        )
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_is_one_sentence(run, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    said = fail("eval", "--ckpt", run, *ONE_TASK, "--results", tmp_path, "--cache", "off", code=1)
    assert said.startswith(str(tmp_path))
    assert said.endswith(
        ".npz: No space left on device; make room there, and start the command again"
    )
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


LESS_MEMORY = (
    "A training step needs less with --set micro_batch=N or --set checkpointing=blocks, "
    "and `silc-bench train --dry-run` counts it by part; "
    "an evaluation with a smaller --batch-size"
)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("x is [red]wrong[/]; :x: y[/b]"), 2, "error: x is [red]wrong[/]; :x: y[/b]\n"),
        (RunError("two\nlines \x1b[31mred"), 1, "error: two lines  [31mred\n"),
        (PermissionError(13, "Permission denied", "a/b"), 1, "error: a/b: Permission denied\n"),
        (
            IsADirectoryError(21, "Is a directory", "a", None, "b"),
            1,
            "error: a -> b: Is a directory\n",
        ),
        (OSError("no number"), 1, "error: no number\n"),
        (
            MemoryError("Unable to allocate 44 TiB"),
            1,
            f"error: out of memory (Unable to allocate 44 TiB). {LESS_MEMORY}\n",
        ),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB\nmore"),
            1,
            f"error: out of memory (CUDA out of memory. Tried to allocate 9 GiB). {LESS_MEMORY}\n",
        ),
        (KeyboardInterrupt(), 1, "stopped by Ctrl-C; everything that was finished is saved\n"),
        (UserError("long " * 100 + "end"), 2, "error: " + "long " * 100 + "end\n"),
    ],
    ids=[
        "markup",
        "control characters",
        "permission",
        "two places",
        "no number",
        "memory",
        "GPU memory",
        "Ctrl-C",
        "long",
    ],
)
def test_an_end_is_one_line_as_it_was_written(monkeypatch, error, code, said):
    def fails(*args, **kwargs):
        raise error

    monkeypatch.setattr("silc_bench.reports.leaderboard.build", fails)
    result = call("leaderboard")
    assert (result.exit_code, result.stdout, result.stderr) == (code, "", said)


def test_towers_that_no_memory_holds_are_a_sentence(tmp_path, monkeypatch):
    """What torch's own allocator says on a CPU."""
    monkeypatch.setattr("silc_bench.trainer.loop.TOKENIZER_CAPTIONS", 50)
    said = fail(
        "train", "--set", "distillation.num_prototypes=10000000000000", "--out", tmp_path, code=1
    )
    assert said.startswith("out of memory (")
    assert said.endswith(LESS_MEMORY)


@pytest.mark.parametrize("bug", [ZeroDivisionError("x"), RuntimeError("x")])
def test_a_bug_keeps_its_traceback(monkeypatch, bug):
    def fails(*args, **kwargs):
        raise bug

    monkeypatch.setattr("silc_bench.reports.leaderboard.build", fails)
    assert call("leaderboard").exception is bug
