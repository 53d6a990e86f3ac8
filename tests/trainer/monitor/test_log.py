"""The log of a run: rows by step, a killed run's surplus, curves, and the progress shown."""

import io
import json
import re
from pathlib import Path

import pytest
from refusals import refused
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from silc_bench.errors import RunError
from silc_bench.trainer.monitor.log import RunLog


def row(value, **more):
    return {
        "loss": value,
        "contrastive": value / 2,
        "images_per_second": 1234.0,
        "seconds_left": 3605.0,
        **more,
    }


def write(run, steps, *, start=0, num_steps=10, terminal=False, value=0.0, width=200):
    """Log ``steps`` as a run that begins at ``start`` does; what was shown."""
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal)
    with RunLog(run, start, num_steps, console) as log:
        for step in steps:
            log.advance(step)
            log.write(step, row(value + step))
    return console.file.getvalue()


def losses(run):
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows}


def test_a_row_is_on_the_disk_as_soon_as_it_is_written(tmp_path):
    with RunLog(tmp_path, 0, 10, Console(file=io.StringIO())) as log:
        log.write(2, row(2.0))
        assert json.loads((tmp_path / "log.jsonl").read_text()) == {"step": 2, **row(2.0)}


@pytest.mark.parametrize("cut", ['{"step": 4, "lo', '{"step": 4, "loss": 4.0}', "{", '{"step'])
def test_a_row_that_a_kill_cut_off_is_dropped(tmp_path, cut):
    write(tmp_path, [2])
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write(cut)
    write(tmp_path, [4], start=4)
    assert losses(tmp_path) == {2: 2.0, 4: 4.0}


def test_a_run_that_starts_anew_has_a_new_log(tmp_path):
    write(tmp_path, [2, 4])
    write(tmp_path, [2], value=50.0)
    assert losses(tmp_path) == {2: 52.0}


def test_a_resumed_log_and_its_curves_read_as_if_nothing_had_happened(tmp_path):
    write(tmp_path, [2, 4, 6, 8])
    write(tmp_path, [6, 8, 10], start=5, value=100.0)
    expected = {2: 2.0, 4: 4.0, 6: 106.0, 8: 108.0, 10: 110.0}
    assert losses(tmp_path) == expected
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert {"contrastive", "images_per_second"} <= set(board.Tags()["scalars"])
    assert sorted((event.step, event.value) for event in board.Scalars("loss")) == [
        *expected.items()
    ]


def test_a_log_file_gets_a_line_now_and_then_and_the_last_one(tmp_path):
    """The first row, the last, and none between within a quarter of a minute."""
    lines = write(tmp_path, range(1, 11)).splitlines()
    assert [line.split(" · ")[0] for line in lines] == ["step 1/10", "step 10/10"]
    assert (
        lines[-1] == "step 10/10 · loss 10.000 · contrastive 5.000 · 1234 images/s · 1:00:05 left"
    )


def test_a_narrow_terminal_keeps_step_and_time_left(tmp_path):
    """Of what does not fit, the end of the losses is cut."""
    wide, narrow = (
        re.sub(r"\x1b\[[0-9;?]*\w", "", write(tmp_path, range(1, 11), terminal=True, width=width))
        for width in (200, 60)
    )
    for shown in (wide, narrow):
        assert "step 10/10 1:00:05 left" in shown
        assert "loss 10.000" in shown
    assert "1234 images/s" in wide
    assert "images/s" not in narrow


def test_everything_is_closed_when_the_run_fails(tmp_path):
    log = RunLog(tmp_path, 0, 10, Console(file=io.StringIO()))
    with pytest.raises(KeyError, match="images_per_second"), log:
        log.write(1, {"loss": 1.0})
    assert log._file.closed
    assert losses(tmp_path) == {1: 1.0}


@pytest.mark.parametrize("line", ['{"a": 1}', "some words", "3", '{"step": "2"}'])
def test_a_log_of_something_else_is_not_overwritten(tmp_path, line):
    path = tmp_path / "log.jsonl"
    path.write_text(f'{{"step": 1, "loss": 2.0}}\n{line}\n{{"step": 3}}\n')
    before = path.read_bytes()
    with refused(about=f"{path}:2"):
        write(tmp_path, [2])
    assert path.read_bytes() == before


def test_a_resumed_log_goes_on_without_a_damaged_line(tmp_path):
    write(tmp_path, [2, 4, 6])
    path = tmp_path / "log.jsonl"
    path.write_bytes(path.read_bytes().replace(b'{"step": 4', b"\xff\x00"))
    write(tmp_path, [8], start=6)
    assert list(losses(tmp_path)) == [2, 6, 8]


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


def test_notes_are_kept_by_step_and_those_of_a_killed_run_dropped(tmp_path):
    for start, steps in ((0, (2, 4, 6)), (4, (5, 7))):
        with RunLog(tmp_path, start, 10, Console(file=io.StringIO())) as log:
            log.write_note(f"begun at {start}")
            for step in steps:
                log.advance(step)
                log.write_note(f"said at {step}")
    notes = [json.loads(line) for line in (tmp_path / "notes.jsonl").read_text().splitlines()]
    words = [
        (0, "begun at 0"),
        (2, "said at 2"),
        (4, "said at 4"),
        (4, "begun at 4"),
        (5, "said at 5"),
        (7, "said at 7"),
    ]
    assert notes == [{"step": step, "note": note} for step, note in words]
