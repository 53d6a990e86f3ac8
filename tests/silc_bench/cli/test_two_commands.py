"""Whole commands, killed or at the same time: one record, the same numbers, a store that is whole.

Each is a process of its own that runs the command line (``meeting_command``). It meets the test at
agreed places through a connection of its own, so that nothing here hangs on how fast the machine
is.
"""

import signal
from multiprocessing.connection import wait
from unittest.mock import Mock

import forked
import meeting_command
import pytest
from commands import succeed, train_tiny

from silc_bench.results import outcomes
from silc_bench.results.folders import read
from silc_bench.trainer.checkpoints.model import NativeImageModel

pytestmark = pytest.mark.timing


def metrics_in(results):
    """Of the one record, whose outcomes are whole."""
    (record,) = read([results]).records
    assert outcomes.load(record, results) is not None
    return record.metrics


def evaluate_line(home, results, cache):
    return (
        f"eval --ckpt {home}/run --tasks shapes/knn --limit 60 --batch-size 8 --device cpu"
        f" --results {home}/{results} --cache {cache}"
    )


def test_a_killed_command_goes_on_where_it_was(tmp_path, monkeypatch):
    train_tiny(tmp_path / "run", "--objective contrastive --samples 8")
    cache, output = tmp_path / "cache", tmp_path / "output"
    words = evaluate_line(tmp_path, "killed", cache).split()
    killed = forked.start(output, meeting_command.run, words, None, 5)
    assert forked.ended(killed) == -signal.SIGKILL, output.read_text()
    assert not list((tmp_path / "killed").rglob("*.json")), "nothing was measured"

    sizes, encode = [], NativeImageModel.encode_image

    def counted(*args, **how):
        sizes.append(len(args[1]))
        return encode(*args, **how)

    monkeypatch.setattr("silc_bench.evaluation.features.PART_ROWS", 1)
    monkeypatch.setattr(NativeImageModel, "encode_image", counted)
    succeed(evaluate_line(tmp_path, "killed", cache))
    assert sum(sizes) == 2 * 60 - 5 * 8, "what was encoded is kept"
    succeed(evaluate_line(tmp_path, "alone", "off"))
    assert metrics_in(tmp_path / "killed") == metrics_in(tmp_path / "alone")


def test_two_commands_with_one_key_at_once_leave_one_record(tmp_path, monkeypatch):
    """They meet before the first image, and again when both are about to write their records.

    Before the first image neither found one.
    """
    train_tiny(tmp_path / "run", "--objective contrastive --samples 8")

    meetings, ends = zip(*(forked.context.Pipe() for _ in range(2)), strict=True)
    output = tmp_path / "output"
    words = evaluate_line(tmp_path, "shared", tmp_path / "cache").split()
    processes = [forked.start(output, meeting_command.run, words, end) for end in ends]
    for end in ends:
        end.close()  # so that a command that ends too early is noticed
    try:
        for place in ("the first image", "the record"):
            for meeting in meetings:
                assert wait([meeting], forked.SECONDS), f"a command did not come to {place}"
                assert meeting.recv() == place
            for meeting in meetings:
                meeting.send("go on")
        codes = [forked.ended(process) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0, 0], output.read_text()
    assert "known" not in output.read_text(), "both measured"
    files = [path.suffix for path in (tmp_path / "shared").rglob("*.*") if path.is_file()]
    assert sorted(files) == [".json", ".npz"]
    assert not list(tmp_path.rglob("*.tmp"))

    succeed(evaluate_line(tmp_path, "alone", "off"))
    encode = Mock()
    monkeypatch.setattr(NativeImageModel, "encode_image", encode)
    succeed(evaluate_line(tmp_path, "again", tmp_path / "cache"))
    assert not encode.called, "what both wrote into the store is whole"
    for results in ("shared", "again"):
        assert metrics_in(tmp_path / results) == metrics_in(tmp_path / "alone")
