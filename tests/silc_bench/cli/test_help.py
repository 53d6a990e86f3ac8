"""Help of every command: examples that can be typed, and brackets that stay brackets."""

import inspect
import shlex

import pytest
import typer
from commands import call
from hostile import HOSTILE_NAMES
from test_docs import command_fault
from typer.testing import CliRunner

from silc_bench.cli.app import app
from silc_bench.cli.command import App, _commands
from silc_bench.system.terminal import answering

pytestmark = pytest.mark.broad

ROOT = typer.main.get_command(app)
COMMANDS = dict(_commands(ROOT, None))
COMMANDS |= {name: group for name, group in ROOT.commands.items() if hasattr(group, "commands")}
COMMANDS[""] = ROOT
EXAMPLES = [(name, line) for name, command in COMMANDS.items() for line in command.examples]
# rich turns words such as :smile: into emoji, which no text of ours holds
NAMES = [name.replace(":smile:", "") for name in HOSTILE_NAMES]
HOSTILE = ("[hf]", "[bold]x[/]", "[/]", "[link=x]y[/link]", *NAMES)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_help_ends_with_two_or_three_examples(name):
    line = name.replace("-", " ", 1)
    long, short = (call(f"{line} {option}") for option in ("--help", "-h"))
    assert long.stdout == short.stdout
    examples = COMMANDS[name].examples
    assert 2 <= len(examples) <= 3
    end = "\n".join(["Examples:", *(f"  {example}" for example in examples)])
    assert short.stdout.rstrip().endswith(end)


@pytest.mark.parametrize("name", ["", "cache", "results", "data"])
def test_a_group_alone_shows_its_help_with_examples(name):
    assert COMMANDS[name].examples[0] in call(name).stdout


@pytest.mark.parametrize(("name", "line"), EXAMPLES)
def test_an_example_can_be_typed(name, line):
    assert line.startswith(f"silc-bench {name.replace('-', ' ', 1)}")
    assert command_fault(line) is None


@pytest.mark.parametrize("text", HOSTILE)
def test_a_text_in_help_is_no_markup(text):
    """Of an option, of a command, in a list of commands, and as a default."""
    made = App(help=f"app {text}")

    @made.command("first", help=f"one {text} end", examples=(f"first {text}",))
    def first(option: str = typer.Option(text, help=f"two {text} end")) -> None: ...

    made.command("second", help=f"three {text} end")(lambda: None)
    shown = ""
    for words in (["-h"], ["first", "-h"], ["second", "-h"]):
        result = CliRunner().invoke(made, words, env={"COLUMNS": "9000"})
        assert result.exit_code == 0, result.output
        shown += result.stdout
    for word in (f"app {text}", f"one {text} end", f"two {text} end", f"three {text} end"):
        assert " ".join(word.split()) in " ".join(shown.split())
    assert f"first {text}" in shown


@pytest.mark.parametrize("text", ["[hf]", "[bold]x[/]", "[/]", "x[/red]", "\x1b[31mred"])
@pytest.mark.parametrize(
    "line",
    [
        "{}",
        "tasks --{}",
        "eval --ckpt open_clip:a --tasks {}",
        "eval --ckpt {} --tasks shapes/knn",
        "data check {}",
        "leaderboard --results {}",
        "doctor {}",
        "export {} --to hf --out x",
        "cache prune --max-size {}",
    ],
)
def test_a_text_in_an_error_is_no_markup(line, text):
    result = call(line.format(shlex.quote(text)))
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Traceback" not in result.stderr
    assert text.replace("\x1b", "") in result.stderr.replace("\\x1b", "").replace("\x1b", "")
    assert "\x1b" not in result.stderr


def test_the_loudness_may_stand_anywhere_but_behind_two_dashes():
    for line in ("--quiet tasks", "tasks --quiet"):
        assert call(line).exit_code == 0
    assert "--quiet" in call("tasks --quiet --verbose").stderr
    assert call("tasks -- --quiet").exit_code == 2


def test_a_wrapped_command_keeps_its_signature():
    """Typer reads it, and files find the kinds of options in it."""

    @answering
    def command(count: int = 1) -> None: ...

    assert list(inspect.signature(command).parameters) == ["count"]
