"""Whole commands that are killed, and at the same time: one record, nothing encoded twice.

The numbers are the same too.

Each is a process of its own that runs the command line (``counted_command``); what it encodes is
counted, and it meets the test at agreed places through a connection of its own, so that nothing
here hangs on how fast the machine is.
"""

from __future__ import annotations

import signal
from multiprocessing.connection import wait

import counted_command
import forked
import pytest
from typer.testing import CliRunner

from silc_bench.cli import app as cli
from silc_bench.results import outcomes
from silc_bench.results.record import load_all
from silc_bench.trainer.checkpoints.model import NativeImageModel

pytestmark = pytest.mark.timing
# images a split, of which kNN has two; images a forward pass, and here a part of the store
LIMIT, BATCH = 60, 8
SETS = {
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
    "batch_size": 8,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of one step."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    sets = [word for name, value in SETS.items() for word in ("--set", f"{name}={value}")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("silc_bench.trainer.loop.TOKENIZER_CAPTIONS", 50)
        words = [
            "train",
            "--out",
            str(folder),
            "--objective",
            "contrastive",
            "--samples",
            "8",
            "--device",
            "cpu",
            *sets,
        ]
        done = CliRunner().invoke(cli.app, words)
    assert done.exit_code == 0, done.output
    return folder


class Commands:
    """``silc-bench eval`` of one model on kNN, with one store of embeddings.

    Each into a folder of results below ``home``.
    """

    def __init__(self, run, home):
        self.run, self.home, self.count = run, home, 0

    def words(self, results, cache):
        words = [
            "eval",
            "--ckpt",
            str(self.run),
            "--tasks",
            "shapes/knn",
            "--limit",
            str(LIMIT),
            "--batch-size",
            str(BATCH),
        ]
        words += ["--device", "cpu", "--results", str(self.home / results)]
        return [*words, "--cache", cache if cache == "off" else str(self.home / cache)]

    def here(self, results, cache="cache"):
        """The same in this process, which is faster: what it printed, how many it encoded."""
        sizes, encode = [], NativeImageModel.encode_image
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                NativeImageModel,
                "encode_image",
                lambda *args, **how: sizes.append(len(args[1])) or encode(*args, **how),
            )
            done = CliRunner().invoke(cli.app, self.words(results, cache))
        assert done.exit_code == 0, done.output
        return done.output, sum(sizes)

    def start(self, results, **how):
        self.count += 1
        counted, said = (self.home / f"{name}{self.count}" for name in ("counted", "said"))
        counted.write_text("")
        process = forked.start(
            said, counted_command.run, self.words(results, "cache"), counted, **how
        )
        return process, counted, said

    def finish(self, started):
        """(exit code, what it printed, how many pictures it encoded)."""
        process, counted, said = started
        return forked.ended(process), said.read_text(), sum(map(int, counted.read_text().split()))

    def call(self, results, **how):
        return self.finish(self.start(results, **how))

    def record(self, results):
        (record,) = load_all(self.home / results)
        assert outcomes.load(record, self.home / results) is not None
        return record

    def leftovers(self):
        return list(self.home.rglob("*.tmp"))


@pytest.fixture
def commands(run, tmp_path):
    return Commands(run, tmp_path)


def test_a_killed_command_goes_on_where_it_was(commands):
    assert commands.here("alone", cache="off")[1] == 2 * LIMIT
    code, said, encoded = commands.call("killed", killed_at=33)
    assert (code, encoded) == (-signal.SIGKILL, 40), said
    assert not list((commands.home / "killed").rglob("*.json")), (
        "no record of what was not measured"
    )
    code, said, encoded = commands.call("killed")
    assert (code, encoded) == (0, 2 * LIMIT - 40), said
    assert commands.record("killed").metrics == commands.record("alone").metrics

    said, encoded = commands.here("killed")
    assert encoded == 0
    assert "known, not measured again" in said
    assert commands.here("elsewhere")[1] == 0, "scored anew from what is kept"
    assert commands.record("elsewhere").metrics == commands.record("alone").metrics


def test_two_commands_with_one_key_at_once_leave_one_record(commands):
    """They meet before the first picture, and again when both are about to write their records.

    Before the first picture neither found one.
    """
    meetings, ends = zip(*(forked.context.Pipe() for _ in range(2)), strict=True)
    started = [commands.start("shared", meeting=end) for end in ends]
    for end in ends:
        end.close()  # so that a command that ends too early is noticed
    try:
        for place in ("the first picture", "the records"):
            for meeting in meetings:
                assert wait([meeting], forked.SECONDS), f"a command did not come to {place}"
                meeting.recv()
            for meeting in meetings:
                meeting.send("go on")
        finished = [commands.finish(one) for one in started]
    finally:
        for process, _, _ in started:
            process.kill()
    assert [code for code, _, _ in finished] == [0, 0], finished
    assert all("known" not in said for _, said, _ in finished), "both measured"
    assert (
        len(list((commands.home / "shared").rglob("*.json")))
        == len(list((commands.home / "shared").rglob("*.npz")))
        == 1
    )
    assert not commands.leftovers()

    commands.here("alone", cache="off")
    assert commands.record("shared").metrics == commands.record("alone").metrics
    assert commands.here("again")[1] == 0, "what both wrote into the store is whole"
    assert commands.record("again").metrics == commands.record("alone").metrics
