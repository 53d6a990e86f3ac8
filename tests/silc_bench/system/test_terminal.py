"""Outputs that are closed, full, or know ASCII alone."""

import io
import os
import sys

import pytest
import typer
from rich.console import Console

from silc_bench.errors import UserError
from silc_bench.system.terminal import answering, console, lasting_output, say


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
