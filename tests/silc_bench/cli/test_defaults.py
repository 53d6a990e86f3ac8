"""Defaults from files and variables: which one counts, where a path lies, and what is refused."""

import json
import os

import pytest
import typer
from commands import call, error_of, fail, succeed
from made import put
from PIL import Image

from silc_bench.cli.app import app
from silc_bench.cli.command import _commands
from silc_bench.cli.defaults import Defaults, find, options_of

ROOT = typer.main.get_command(app)
COMMANDS = dict(_commands(ROOT, None))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder: two below the one in which files are."""
    monkeypatch.delenv("SILC_BENCH_CONFIG")
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    return below


def write(folder, own="", project=None):
    (folder / "silc-bench.toml").write_text(own)
    if project is not None:
        (folder / "pyproject.toml").write_text(project)


def given(folder, **variables):
    """{command: {option: value}} of what is given in ``folder``."""
    defaults = Defaults(find(variables, folder), options_of(COMMANDS))
    return {
        command: {name: value.value for name, value in values.items()}
        for command, values in defaults.given.items()
    }


# ---- which one counts ----


def test_the_command_line_comes_first_then_variables_then_files(folder, monkeypatch):
    def size():
        found = json.loads(succeed("env --json"))["defaults"].get("eval batch_size")
        return found and (found["value"], found["source"])

    assert size() is None
    write(folder.parent.parent, "", "[tool.silc-bench.eval]\nbatch_size = 1\n")
    assert size() == ("1", "../../pyproject.toml")
    write(folder.parent, "[eval]\nbatch-size = 2\n")
    assert size() == ("2", "../silc-bench.toml")
    monkeypatch.setenv("SILC_BENCH_EVAL_BATCH_SIZE", "3")
    assert size() == ("3", "SILC_BENCH_EVAL_BATCH_SIZE")

    # What it is there for: the command has it, and what is typed is stronger.
    monkeypatch.setenv("SILC_BENCH_DATA_STATS_COUNT", "2")
    for typed, count in (("", 2), ("--count 3", 3)):
        result = call(f"data stats shapes {typed} --json")
        assert json.loads(result.stdout)["looked_at"] == count
        said = "" if typed else "from SILC_BENCH_DATA_STATS_COUNT: count = 2\n"
        assert result.stderr == said


def test_the_nearest_file_of_each_kind_counts(folder):
    write(folder.parent.parent, "[eval]\nlimit = 1\n", "[tool.silc-bench.eval]\nlimit = 2\n")
    write(folder.parent, "[eval]\nbatch_size = 3\n", "[project]\nname = 'no table of ours'\n")
    assert given(folder) == {"eval": {"batch_size": 3, "limit": 2}}
    assert given(folder, SILC_BENCH_CONFIG="off") == {}
    chosen = str(folder.parent.parent / "silc-bench.toml")
    assert given(folder, SILC_BENCH_CONFIG=chosen) == {"eval": {"limit": 1}}


def test_shared_keys_reach_every_command_that_has_the_option(folder):
    write(folder, 'results = "r"\n[compare]\nresults = ["s", "t"]\n')
    values = given(folder, SILC_BENCH_DATA_ROOT="/data")
    several = {name for name, options in values.items() if options.get("results") == ["r"]}
    assert {"eval", "leaderboard", "results-ls", "results-import"} <= several
    assert values["compare"]["results"] == ["s", "t"]
    assert "show" not in values, "there --results means another thing"
    assert values["eval"]["data_root"] == "/data"

    # A variable stands before any file, also before a table of a command.
    values = given(folder, SILC_BENCH_RESULTS="/x:/y")
    assert values["compare"]["results"] == values["eval"]["results"] == ["/x", "/y"]


def test_the_cache_is_that_of_all_commands(folder, monkeypatch):
    monkeypatch.delenv("SILC_BENCH_CACHE")
    write(folder.parent, 'cache = "kept"\n')
    assert succeed("cache ls").splitlines()[-1].endswith(" in ../kept")
    assert "SILC_BENCH_CACHE" not in os.environ, "it ends with the command"
    write(folder.parent, 'cache = "off"\n')
    assert given(folder) == {"eval": {"cache": "off"}}


@pytest.mark.parametrize(
    ("command", "text", "value"),
    [
        ("eval", 'data_root = "data"', "../data"),
        ("eval", 'data_root = "/data"', "/data"),
        ("eval", 'prompts = "p.json"', "../p.json"),
        ("eval", 'ckpt = "runs/a:teacher"', ["../runs/a:teacher"]),
        ("eval", 'ckpt = ["hf:google/siglip", "runs/none"]', ["hf:google/siglip", "runs/none"]),
        ("train", 'data = "shapes"', "shapes"),  # a folder beside the file bears this name too
        ("train", 'data = "shapes/*.tar"', "../shapes/*.tar"),
        ("train", 'data = "3 * ./shapes | 1 * B"', "3 * ./shapes | 1 * B"),
        ("train", 'data = "s3://shapes/*.tar"', "s3://shapes/*.tar"),
        ("train", 'set = ["optim.lr=1e-3"]', ["optim.lr=1e-3"]),
        ("train", 'resume = "auto"', "auto"),
        ("train", "force = true", True),
        ("data-pack", "per-shard = 9", 9),
    ],
)
def test_a_value_and_its_place(folder, command, text, value):
    (folder.parent / "runs/a").mkdir(parents=True)
    (folder.parent / "shapes").mkdir()
    write(folder.parent, f"[{command}]\n{text}\n")
    ((found,),) = (values.values() for values in given(folder).values())
    assert found == value


def test_a_tilde_is_the_home_folder(folder, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    write(folder, 'data_root = "~/data"\n')
    assert given(folder)["eval"]["data_root"] == "/home/me/data"


@pytest.mark.parametrize("option", options_of(COMMANDS)["eval"], ids=lambda option: option.key)
def test_each_option_of_eval_has_its_variable(folder, option):
    text, value = {bool: ("on", True), int: ("3", 3)}.get(option.kind, ("a", "a"))
    name = f"SILC_BENCH_EVAL_{option.key.upper()}"
    expected = [value] if option.is_list else value
    assert given(folder, **{name: text}) == {"eval": {option.parameter: expected}}


# ---- what is refused ----

WRONG_FILES = [
    ("[eval", "is no TOML"),
    ("[evl]\nlimit = 1", "[evl]"),
    ("[eval]\nbath_size = 1", "[eval] bath_size: eval has no option 'bath_size'; did you mean"),
    ('[eval]\nbatch_size = "64"', "[eval] batch_size"),
    ("[eval]\nbatch_size = true", "[eval] batch_size"),
    ("[eval]\nbatch_size = 0", "[eval] batch_size"),
    ("[eval]\ncompile = 1", "[eval] compile"),
    ("[eval]\ntasks = ['zeroshot', 'knn']", "[eval] tasks"),
    ("[eval.cache]\nx = 1", "[eval] cache"),
    ("[results.ls]\njson = true", "write [results-ls], [results-validate]"),
    ("[results-rm]\nyes = true", "[results-rm] yes"),
    ("batch_size = 1", "write it below [eval]"),
    ("data_rot = 'x'", "did you mean data_root"),
    ("results = 3", "results"),
]


@pytest.mark.parametrize(("text", "about"), WRONG_FILES)
def test_a_wrong_file_is_one_sentence_that_names_the_place(folder, text, about):
    write(folder, text)
    # what is no TOML, and what is out of a range, Python and click say in words of their version
    is_kept = "TOML" not in about and not text.endswith("= 0")
    sentence = fail("eval --ckpt x --tasks shapes/knn", about, is_kept=is_kept)
    assert "silc-bench.toml" in sentence

    # Nobody is left without help.
    assert "Usage" in call("eval --help").stdout
    if "batch_size = 0" not in text:
        assert "silc-bench.toml" in json.loads(succeed("env --json"))["config_error"]


@pytest.mark.parametrize(
    ("name", "text", "about"),
    [
        ("EVAL_BATCHSIZE", "3", "did you mean SILC_BENCH_EVAL_BATCH_SIZE"),
        ("EVAL_BATCH_SIZE", "many", "SILC_BENCH_EVAL_BATCH_SIZE"),
        ("EVAL_BATCH_SIZE", "0", "SILC_BENCH_EVAL_BATCH_SIZE"),
        ("EVAL_COMPILE", "perhaps", "SILC_BENCH_EVAL_COMPILE"),
        ("RESULTS_RM_YES", "1", "SILC_BENCH_RESULTS_RM_YES"),
        ("CONFIG", "nowhere.toml", "SILC_BENCH_CONFIG"),
    ],
)
def test_a_wrong_variable_is_one_sentence(folder, monkeypatch, name, text, about):
    monkeypatch.setenv(f"SILC_BENCH_{name}", text)
    fail("eval --ckpt x --tasks shapes/knn", about, is_kept=text != "0")


def test_what_other_tools_wrote_is_left_alone(folder):
    (folder / "pyproject.toml").write_bytes(b"\xff [no toml")
    assert given(folder) == {}
    (folder / "pyproject.toml").write_text('[project]\nname = "silc-bench"\n')
    assert given(folder) == {}


# ---- what is seen of it ----


def test_help_shows_the_default_and_its_source(folder):
    write(folder, '[eval]\nbatch_size = 64\nprotocol = "[red]x"\n')
    shown = " ".join(call("eval -h").stdout.replace("│", " ").split())
    assert "[default: (64, from silc-bench.toml)]" in shown
    assert "[default: ([red]x, from silc-bench.toml)]" in shown
    assert "batch_size" not in call("tasks").stderr


def test_what_is_taken_is_said_once_and_not_with_quiet(folder):
    write(folder, 'results = "none"\n')
    said, error = call("leaderboard").stderr.splitlines()
    assert said == "from silc-bench.toml: results = none"
    assert error_of(f"{error}\n").startswith("none: no results folder")
    assert call("leaderboard --quiet").stderr.splitlines() == [error]
    assert call("leaderboard --results none").stderr.splitlines() == [error]
    loud = call("leaderboard --verbose").stderr.splitlines()
    assert loud[0] == f"defaults from {folder}/silc-bench.toml"
    assert loud[1:3] == [said, error]


def test_variables_that_nobody_understands_are_listed():
    found = json.loads(call("env --json").stdout)
    assert "SILC_BENCH_DATAROOT" not in found["not_understood"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SILC_BENCH_DATAROOT", "x")
        assert "SILC_BENCH_DATAROOT" in json.loads(succeed("env --json"))["not_understood"]


def test_data_check_and_show_look_where_the_files_say(folder, tmp_path):
    write(folder.parent, 'data_root = "data"\nresults = "kept"\n')
    result = call("data check cifar100")
    assert result.stderr.startswith("from ../silc-bench.toml: data_root = ../data\n")
    assert "../data: no such file or folder" in result.stderr
    assert "data_root" not in call("data check folder:nowhere").stderr

    for name in ("own-a", "own-b"):
        put(tmp_path / "a" / "kept", name, 0.5)
    Image.new("RGB", (8, 8)).save("x.png")
    result = call("show own-c x.png")
    assert result.stderr.startswith("from ../silc-bench.toml: results = ../kept\n")
    assert "own-a" in result.stderr
