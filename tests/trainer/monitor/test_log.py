"""The log of a run: rows by step, a killed run's surplus, curves, and the progress shown."""

import io
import json
import re
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import torch
from refusals import refused
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from silc_bench.errors import RunError
from silc_bench.system.processes import StoppedError
from silc_bench.trainer.monitor.history import start_of
from silc_bench.trainer.monitor.log import RunLog


def row(value):
    names = ("loss", "contrastive", "images_per_second", "seconds_left")
    return dict(zip(names, (value, value / 2, 1234.0, 3605.0), strict=True))


def write(run, steps, *, start=0, value=0.0, **terminal):
    """Log ``steps`` as a run that begins at ``start`` does; what was shown."""
    console = Console(file=io.StringIO(), **{"width": 200, **terminal})
    with RunLog(run, start, 10, console) as log:
        for step in steps:
            log.advance(step)
            log.write(step, row(value + step))
    return console.file.getvalue()


def losses(run, rows_in):
    return {row["step"]: row["loss"] for row in rows_in(run / "log.jsonl")}


def test_a_row_is_on_the_disk_as_soon_as_it_is_written(tmp_path, rows_in):
    with RunLog(tmp_path, 0, 10, Console(file=io.StringIO())) as log:
        log.write(2, row(2.0))
        assert rows_in(tmp_path / "log.jsonl") == [{"step": 2, **row(2.0)}]


@pytest.mark.parametrize("cut", ['{"step": 4, "lo', '{"step": 4, "loss": 4.0}', "{", '{"step'])
def test_a_resumed_log_leaves_out_what_is_damaged_or_was_cut_off_by_a_kill(tmp_path, rows_in, cut):
    write(tmp_path, [2, 3])
    path = tmp_path / "log.jsonl"
    path.write_bytes(path.read_bytes().replace(b'{"step": 3', b"\xff\x00") + cut.encode())
    write(tmp_path, [4], start=4)
    assert losses(tmp_path, rows_in) == {2: 2.0, 4: 4.0}


def test_a_run_that_starts_anew_has_a_new_log(tmp_path, rows_in):
    write(tmp_path, [2, 4])
    write(tmp_path, [2], value=50.0)
    assert losses(tmp_path, rows_in) == {2: 52.0}


def test_a_resumed_log_and_its_curves_read_as_if_nothing_had_happened(
    tmp_path, rows_in, monkeypatch
):
    # TensorBoard reads files of one second by the count in their names, and takes 10 for less than
    # 9: a run and its resumption are two processes, which both begin with 0.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
    write(tmp_path, [2, 4, 6, 8])
    write(tmp_path, [6, 8, 10], start=5, value=100.0)
    expected = {2: 2.0, 4: 4.0, 6: 106.0, 8: 108.0, 10: 110.0}
    assert losses(tmp_path, rows_in) == expected
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert {"contrastive", "images_per_second"} <= set(board.Tags()["scalars"])
    curve = {event.step: event.value for event in board.Scalars("loss")}
    assert curve == expected
    assert len(board.Scalars("loss")) == len(expected)


def test_a_log_file_gets_a_line_now_and_then_and_the_last_one(tmp_path):
    """The first row, the last, and none between within a quarter of a minute."""
    lines = write(tmp_path, range(1, 11)).splitlines()
    assert [line.split(" · ")[0] for line in lines] == ["step 1/10", "step 10/10"]
    shown = ["loss 10.000", "contrastive 5.000", "1234 images/s", "1:00:05 left"]
    assert lines[-1].split(" · ")[1:] == shown


def test_a_narrow_terminal_keeps_step_and_time_left(tmp_path):
    """Of what does not fit, the end of the losses is cut."""
    wide, narrow = (
        re.sub(
            r"\x1b\[[0-9;?]*\w", "", write(tmp_path, range(1, 11), force_terminal=True, width=width)
        )
        for width in (200, 60)
    )
    for shown in (wide, narrow):
        assert "step 10/10 1:00:05 left" in shown
        assert "loss 10.000" in shown
    assert "1234 images/s" in wide
    assert "images/s" not in narrow


@pytest.mark.parametrize("line", ['{"a": 1}', "some words", "3", '{"step": "2"}'])
def test_a_log_of_something_else_is_not_overwritten(tmp_path, line):
    path = tmp_path / "log.jsonl"
    path.write_text(f'{{"step": 1, "loss": 2.0}}\n{line}\n{{"step": 3}}\n')
    before = path.read_bytes()
    with refused(about=f"{path}:2"):
        write(tmp_path, [2])
    assert path.read_bytes() == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
@pytest.mark.parametrize("method", ["write", "__exit__"])
def test_a_full_disk_is_a_sentence_with_the_place(tmp_path, method):
    log = RunLog(tmp_path, 0, 10, Console(file=io.StringIO()))
    log._file.close()
    log._file = open("/dev/full", "a")  # noqa: SIM115
    arguments = (1, row(1.0))
    if method == "__exit__":
        log._file.write("a row in the buffer")
        arguments = (None, None, None)
    with refused(about=tmp_path, kind=RunError):
        getattr(log, method)(*arguments)


@pytest.mark.parametrize(
    ("error", "how"),
    [
        (None, "finished"),
        (StoppedError("stopped by SIGTERM after step 4", fix="continue"), "stopped by SIGTERM"),
        (ValueError("two\nlines"), "ValueError: two lines"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
    ],
)
def test_the_history_says_how_each_start_ended(tmp_path, rows_in, error, how):
    with suppress(BaseException), RunLog(tmp_path, 0, 10, Console(file=io.StringIO())) as log:
        log.write_start({"event": "start"})
        log.advance(4)
        if error:
            raise error
    start, end = rows_in(tmp_path / "history.jsonl")
    assert start == {"step": 0, "event": "start"}
    assert (end["step"], end["event"]) == (4, "end")
    assert end["how"].startswith(how)


def test_a_new_run_keeps_nothing_of_one_that_died_before_its_first_checkpoint(tmp_path, rows_in):
    for _ in range(2):
        with RunLog(tmp_path, 0, 10, Console(file=io.StringIO())) as log:
            log.write_start({"event": "start"})
            log.write_probe(0, {"probe/x": 0.5}, {"probe/x": 0.1})
            log.write_note("at the start")
    assert rows_in(tmp_path / "probes.jsonl") == [{"step": 0, "probe/x": 0.5, "stderr/x": 0.1}]
    assert len(rows_in(tmp_path / "notes.jsonl")) == 1
    assert [row["event"] for row in rows_in(tmp_path / "history.jsonl")] == ["start", "end"]


def test_a_start_knows_its_machine_its_code_and_its_configuration(tiny):
    start = start_of(tiny(seed=5), torch.device("cpu"))
    assert start["config"]["seed"] == 5
    assert (start["device"], start["processes"]) == ("cpu", 1)
    assert start["versions"]["torch"] == torch.__version__
    assert datetime.fromisoformat(start["date"]).utcoffset() == timedelta(0)
    assert json.loads(json.dumps(start)).keys() >= {"commit", "dirty", "processor", "platform"}


def test_notes_are_kept_by_step_and_those_of_a_killed_run_dropped(tmp_path, rows_in):
    for start, steps in ((0, (2, 4, 6)), (4, (5, 7))):
        with RunLog(tmp_path, start, 10, Console(file=io.StringIO())) as log:
            log.write_note(f"from {start}")
            for step in steps:
                log.advance(step)
                log.write_note("then")
    notes = [(note["step"], note["note"]) for note in rows_in(tmp_path / "notes.jsonl")]
    first, second = [(0, "from 0"), (2, "then"), (4, "then")], [(4, "from 4")]
    assert notes == [*first, *second, (5, "then"), (7, "then")]
