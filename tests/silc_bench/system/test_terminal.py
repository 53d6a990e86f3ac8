"""Outputs that are closed, full, or know ASCII alone."""

import importlib
import io
import os
import sys
from typing import ClassVar

import pytest
import typer
from rich.console import Console
from rich.text import Text

from silc_bench.errors import UserError
from silc_bench.system import terminal
from silc_bench.system.terminal import (
    answering,
    console,
    counted,
    detail,
    lasting_output,
    loading,
    progress_bar,
    say,
    set_loudness,
    shows_progress,
    timed,
    warn,
)


def closed():
    stream = open(os.devnull, "w")  # noqa: SIM115
    stream.close()
    return stream


def full():
    return open("/dev/full", "w", buffering=1)


def without_a_reader():
    reader, writer = os.pipe()
    os.close(reader)
    return open(writer, "w", buffering=1)


@pytest.mark.parametrize("broken", [closed, full, without_a_reader, lambda: None])
def test_within_lasting_output_no_stream_is_a_reason_to_stop(monkeypatch, broken):
    stream = broken()
    monkeypatch.setattr(sys, "stdout", stream)
    with lasting_output():
        for _ in range(3):
            print("a line", flush=True)
            say("a sentence", console)
            Console().print("another")
    assert sys.stdout is stream
    if stream is not None and not stream.closed:
        stream.write("what the end of the program does")
        stream.close()


def test_a_whole_stream_gets_everything(capsys):
    with lasting_output():
        print("a line")
        say("a sentence")
        assert not sys.stdout.isatty()
    assert capsys.readouterr() == ("a line\n", "a sentence\n")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_letters_that_a_stream_does_not_know_are_escaped(monkeypatch, encoding):
    buffer = io.BytesIO()
    stream = io.TextIOWrapper(buffer, encoding=encoding, line_buffering=True)
    monkeypatch.setattr(sys, "stdout", stream)

    @answering
    def command():
        say("step 1 · 猫", console)
        print("·")

    command()
    text = buffer.getvalue().decode(encoding)
    shown = {"ascii": "\\xb7 \\u732b", "latin-1": "· \\u732b", "utf-8": "· 猫"}[encoding]
    assert text == f"step 1 {shown}\n{shown.split()[0]}\n"


def test_an_error_that_nobody_hears_keeps_its_exit_code(monkeypatch):
    @answering
    def command():
        raise UserError("wrong", about="x", fix="y")

    monkeypatch.setattr(sys, "stderr", full())
    with pytest.raises(typer.Exit) as caught:
        command()
    assert caught.value.exit_code == 2


# ---- what takes long to load ----


class Second:
    """In place of ``threading.Timer``: a second passes when ``pass_by`` is called."""

    waiting: ClassVar = []

    def __init__(self, seconds, function):
        self.function = function

    def start(self):
        self.waiting.append(self)

    def cancel(self):
        self.waiting.remove(self)

    @classmethod
    def pass_by(cls):
        for timer in cls.waiting:
            timer.function()


@pytest.fixture
def said(monkeypatch, tmp_path):
    """What a command says on a terminal while it imports ``slow``, for longer than a second."""
    (tmp_path / "slow.py").write_text("import sys; sys.second.pass_by()")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "second", Second, raising=False)
    monkeypatch.setattr(sys, "meta_path", sys.meta_path.copy())
    monkeypatch.setattr(Second, "waiting", [])
    monkeypatch.setattr(terminal.threading, "Timer", Second)
    monkeypatch.setattr(terminal, "LARGE", ("slow",))

    def run(command, is_terminal=True, is_quiet=False):
        stream = io.StringIO()
        monkeypatch.setattr(terminal, "notes", Console(file=stream, force_terminal=is_terminal))
        monkeypatch.setitem(terminal.LOUDNESS, "is_quiet", is_quiet)
        monkeypatch.delitem(sys.modules, "slow", raising=False)
        answering(command)()
        return Text.from_ansi(stream.getvalue()).plain.strip()

    return run


def import_it():
    importlib.import_module("slow")


def test_what_loads_for_more_than_a_second_is_named(said):
    assert said(import_it) == "loading slow ..."

    def load_model():
        with loading("checkpoint runs/a"):
            Second.pass_by()

    assert said(load_model) == "loading checkpoint runs/a ..."


def test_what_is_loaded_by_then_is_not_named(said, tmp_path):
    (tmp_path / "slow.py").write_text("")

    def wait_longer():
        import_it()
        with loading("checkpoint runs/a"):
            pass
        Second.pass_by()

    assert said(wait_longer) == ""


@pytest.mark.parametrize("case", [{"is_terminal": False}, {"is_quiet": True}])
def test_a_log_and_quiet_hear_nothing_of_it(said, case):
    assert said(import_it, **case) == ""


# ---- how much is said ----


@pytest.fixture
def loud():
    """Sets how much is said; afterwards it is as usual."""
    yield set_loudness
    set_loudness(False, False)


@pytest.mark.parametrize(
    ("is_quiet", "is_verbose", "said"),
    [
        (False, False, ["a note", "a warning"]),
        (True, False, ["a warning"]),
        (False, True, ["a note", "a warning", "a detail", "work: 0.0 s"]),
    ],
)
def test_how_much_is_said(loud, capsys, monkeypatch, is_quiet, is_verbose, said):
    monkeypatch.setattr("time.perf_counter", lambda: 1.0)
    loud(is_quiet, is_verbose)
    say("a note")
    warn("a warning")
    detail("a detail")
    with timed("work"):
        pass
    assert capsys.readouterr().err.splitlines() == said


def test_quiet_shows_no_bar_on_a_terminal(loud, monkeypatch):
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True)
    monkeypatch.setattr("silc_bench.system.terminal.notes", terminal)
    for is_quiet in (False, True):
        loud(is_quiet, False)
        assert shows_progress(terminal) == (not is_quiet)
        with progress_bar(True, "images", 2) as advance:
            advance(2)
        assert ("images" in screen.getvalue()) == (not is_quiet)
        screen.truncate(0)


@pytest.mark.parametrize(
    ("number", "words", "text"),
    [
        (0, ("image",), "0 images"),
        (1, ("image",), "1 image"),
        (1234, ("image",), "1,234 images"),
        (1, ("mask has", "masks have"), "1 mask has"),
        (2, ("mask has", "masks have"), "2 masks have"),
    ],
)
def test_a_number_and_its_noun(number, words, text):
    assert counted(number, *words) == text
