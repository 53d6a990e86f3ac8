"""Whole commands that are killed, and at the same time: one record, nothing encoded twice.

The numbers are the same too.

Each is a process of its own that runs the command line (``counted_command``); what it encodes is
counted, and it meets the test at agreed places through a connection of its own, so that nothing
here hangs on how fast the machine is.
"""

import signal
from multiprocessing.connection import wait

import counted_command
import forked
import pytest
from commands import succeed, train_tiny

from silc_bench.results import outcomes
from silc_bench.results.record import load_all
from silc_bench.trainer.checkpoints.model import NativeImageModel

pytestmark = pytest.mark.timing
# images a split, of which kNN has two; images a forward pass, and here a part of the store
LIMIT, BATCH = 60, 8


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of one step."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    train_tiny(folder, "--objective contrastive --samples 8")
    return folder


class Commands:
    """``silc-bench eval`` of one model on kNN, with one store of embeddings.

    Each into a folder of results below ``home``.
    """

    def __init__(self, run, home):
        self.run, self.home, self.count = run, home, 0

    def line(self, results, cache="cache"):
        cache = cache if cache == "off" else self.home / cache
        return (
            f"eval --ckpt {self.run} --tasks shapes/knn --limit {LIMIT} --batch-size {BATCH}"
            f" --device cpu --results {self.home / results} --cache {cache}"
        )

    def here(self, results, cache="cache"):
        """The same in this process, which is faster: what it printed, how many it encoded."""
        sizes, encode = [], NativeImageModel.encode_image

        def counted(*args, **how):
            sizes.append(len(args[1]))
            return encode(*args, **how)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(NativeImageModel, "encode_image", counted)
            return succeed(self.line(results, cache)), sum(sizes)

    def start(self, results, **how):
        self.count += 1
        counted, output = (self.home / f"{name}{self.count}" for name in ("counted", "output"))
        counted.write_text("")
        words = self.line(results).split()
        return forked.start(output, counted_command.run, words, counted, **how), counted, output

    def finish(self, started):
        """(exit code, what it printed, how many images it encoded)."""
        process, counted, output = started
        return forked.ended(process), output.read_text(), sum(map(int, counted.read_text().split()))

    def metrics(self, results):
        """Of the one record, whose outcomes are whole."""
        (record,) = load_all(self.home / results)
        assert outcomes.load(record, self.home / results) is not None
        return record.metrics


@pytest.fixture
def commands(run, tmp_path):
    return Commands(run, tmp_path)


def test_a_killed_command_goes_on_where_it_was(commands):
    assert commands.here("alone", cache="off")[1] == 2 * LIMIT
    code, output, encoded = commands.finish(commands.start("killed", killed_at=33))
    assert (code, encoded) == (-signal.SIGKILL, 40), output
    assert not list((commands.home / "killed").rglob("*.json")), "nothing was measured"
    code, output, encoded = commands.finish(commands.start("killed"))
    assert (code, encoded) == (0, 2 * LIMIT - 40), output

    output, encoded = commands.here("killed")
    assert encoded == 0
    assert "known, not measured again" in output
    assert commands.here("elsewhere")[1] == 0, "scored anew from what is kept"
    for results in ("killed", "elsewhere"):
        assert commands.metrics(results) == commands.metrics("alone")


def test_two_commands_with_one_key_at_once_leave_one_record(commands):
    """They meet before the first image, and again when both are about to write their records.

    Before the first image neither found one.
    """
    meetings, ends = zip(*(forked.context.Pipe() for _ in range(2)), strict=True)
    started = [commands.start("shared", meeting=end) for end in ends]
    for end in ends:
        end.close()  # so that a command that ends too early is noticed
    try:
        for place in ("the first image", "the records"):
            for meeting in meetings:
                assert wait([meeting], forked.SECONDS), f"a command did not come to {place}"
                meeting.recv()
            for meeting in meetings:
                meeting.send("go on")
        finished = [commands.finish(command) for command in started]
    finally:
        for process, _, _ in started:
            process.kill()
    assert [code for code, _, _ in finished] == [0, 0], finished
    assert all("known" not in output for _, output, _ in finished), "both measured"
    files = [path.suffix for path in (commands.home / "shared").rglob("*.*") if path.is_file()]
    assert sorted(files) == [".json", ".npz"]
    assert not list(commands.home.rglob("*.tmp"))

    commands.here("alone", cache="off")
    assert commands.here("again")[1] == 0, "what both wrote into the store is whole"
    for results in ("shared", "again"):
        assert commands.metrics(results) == commands.metrics("alone")
