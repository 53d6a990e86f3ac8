"""Whole commands at the same time: one record, the same numbers, and a store that is whole.

Each is a process of its own that runs the command line (``meeting_command``). It meets the test at
agreed places through a connection of its own, so that nothing here hangs on how fast the machine
is.
"""

from multiprocessing.connection import wait
from unittest.mock import Mock

import forked
import meeting_command
import pytest
from commands import succeed, train_tiny

from silc_bench.results import outcomes
from silc_bench.results.record import load_all
from silc_bench.trainer.checkpoints.model import NativeImageModel

pytestmark = pytest.mark.timing


def metrics_in(results):
    """Of the one record, whose outcomes are whole."""
    (record,) = load_all(results)
    assert outcomes.load(record, results) is not None
    return record.metrics


def test_two_commands_with_one_key_at_once_leave_one_record(tmp_path, monkeypatch):
    """They meet before the first image, and again when both are about to write their records.

    Before the first image neither found one.
    """
    train_tiny(tmp_path / "run", "--objective contrastive --samples 8")

    def line(results, cache):
        return (
            f"eval --ckpt {tmp_path}/run --tasks shapes/knn --limit 60 --batch-size 8 --device cpu"
            f" --results {tmp_path}/{results} --cache {cache}"
        )

    meetings, ends = zip(*(forked.context.Pipe() for _ in range(2)), strict=True)
    words, output = line("shared", tmp_path / "cache").split(), tmp_path / "output"
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

    succeed(line("alone", "off"))
    encode = Mock()
    monkeypatch.setattr(NativeImageModel, "encode_image", encode)
    succeed(line("again", tmp_path / "cache"))
    assert not encode.called, "what both wrote into the store is whole"
    for results in ("shared", "again"):
        assert metrics_in(tmp_path / results) == metrics_in(tmp_path / "alone")
