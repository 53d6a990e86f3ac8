"""Whole commands that are killed, and whole commands at the same time: one record, the same numbers, nothing encoded twice.

Each is a process of its own that runs the command line; what it encodes is counted, and it meets the test at agreed places
through pipes, so that nothing here hangs on how fast the machine is.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from silc_bench import cli, outcomes
from silc_bench.models.native import NativeImageModel
from silc_bench.results import load_all

ROOT = Path(__file__).parents[2]
LIMIT, BATCH = 200, 16  # pictures a split, of which kNN has two; pictures a forward pass, and here a part of the store
TIMEOUT = 300
SETS = {
    **{f"{tower}.{name}": value for tower in ("vision", "text") for name, value in (("width", 32), ("depth", 1))},
    **{f"{tower}.{name}": value for tower in ("vision", "text") for name, value in (("num_heads", 2), ("mlp_dim", 48))},
    "text.vocab_size": 300,
    "batch_size": 8,
}
PROGRAM = """
import os, signal
import silc_bench.features, silc_bench.outcomes
from silc_bench.cli import main
from silc_bench.models.native import NativeImageModel

silc_bench.features.PART_ROWS = 1
encode, save, told = NativeImageModel.encode_image, silc_bench.outcomes.save, os.environ.get
count = 0


def meet():
    os.write(int(told("READY")), b"r")
    os.read(int(told("GO")), 1)


def counted(self, images, point="pooled"):
    global count
    if told("READY") and not count:
        meet()
    if told("KILLED_AT") and count >= int(told("KILLED_AT")):
        os.kill(os.getpid(), signal.SIGKILL)
    count += len(images)
    with open(told("COUNTED"), "a") as file:
        file.write(f"{len(images)}\\n")
    return encode(self, images, point)


def saved(*what):
    if told("READY"):
        meet()
    return save(*what)


NativeImageModel.encode_image, silc_bench.outcomes.save = counted, saved
main()
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of one step."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    sets = [word for name, value in SETS.items() for word in ("--set", f"{name}={value}")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.train.TOKENIZER_CAPTIONS", 50, raising=False)
        words = ["train", "--out", str(folder), "--objective", "contrastive", "--samples", "8", "--device", "cpu", *sets]
        done = CliRunner().invoke(cli.app, words)
    assert done.exit_code == 0, done.output
    return folder


class Commands:
    """``silc-bench eval`` of one model on kNN, each into a folder of results below ``home``, with one store of embeddings."""

    def __init__(self, run, home):
        self.run, self.home, self.count = run, home, 0

    def words(self, results, cache):
        words = ["eval", "--ckpt", str(self.run), "--tasks", "shapes/knn", "--limit", str(LIMIT), "--batch-size", str(BATCH)]
        words += ["--device", "cpu", "--results", str(self.home / results)]
        return [*words, "--cache", cache if cache == "off" else str(self.home / cache)]

    def here(self, results, cache="cache"):
        """The same in this process, which is faster: what it printed, how many pictures it encoded."""
        sizes, encode = [], NativeImageModel.encode_image
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                NativeImageModel, "encode_image", lambda *args, **how: sizes.append(len(args[1])) or encode(*args, **how)
            )
            done = CliRunner().invoke(cli.app, self.words(results, cache))
        assert done.exit_code == 0, done.output
        return done.output, sum(sizes)

    def start(self, results, cache="cache", pass_fds=(), **told):
        self.count += 1
        counted = self.home / f"counted{self.count}"
        counted.write_text("")
        words = self.words(results, cache)
        environment = {**os.environ, "COUNTED": str(counted), "OMP_NUM_THREADS": "1", **told}
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *words], cwd=ROOT, env=environment, pass_fds=pass_fds,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        return process, counted

    def finish(self, started):
        """(exit code, what it printed, how many pictures it encoded)."""
        process, counted = started
        said, complaint = process.communicate(timeout=TIMEOUT)
        return process.returncode, said + complaint, sum(map(int, counted.read_text().split()))

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
    code, said, encoded = commands.call("killed", KILLED_AT="100")
    assert (code, encoded) == (-signal.SIGKILL, 112), said
    assert not list((commands.home / "killed").rglob("*.json")), "no record of what was not measured"
    code, said, encoded = commands.call("killed")
    assert (code, encoded) == (0, 2 * LIMIT - 112), said
    assert commands.record("killed").metrics == commands.record("alone").metrics

    said, encoded = commands.here("killed")
    assert encoded == 0
    assert "known, not measured again" in said
    assert commands.here("elsewhere")[1] == 0, "scored anew from what is kept"
    assert commands.record("elsewhere").metrics == commands.record("alone").metrics


def test_two_commands_with_one_key_at_once_leave_one_record(commands):
    """They meet before the first picture, when neither found a record, and again when both are about to write theirs."""
    ready, ready_end = os.pipe()
    go_end, go = os.pipe()
    told = {"READY": str(ready_end), "GO": str(go_end), "pass_fds": (ready_end, go_end)}
    started = [commands.start("shared", **told) for _ in range(2)]
    try:
        for _ in ("the first picture", "the records"):
            arrived = b""
            while len(arrived) < 2:
                assert select.select([ready], [], [], TIMEOUT)[0], "a command did not come so far"
                arrived += os.read(ready, 2 - len(arrived))
            os.write(go, b"gg")
        finished = [commands.finish(one) for one in started]
    finally:
        for process, _ in started:
            process.kill()
        for end in (ready, ready_end, go, go_end):
            os.close(end)
    assert [code for code, _, _ in finished] == [0, 0], finished
    assert all("known" not in said for _, said, _ in finished), "both measured"
    assert len(list((commands.home / "shared").rglob("*.json"))) == len(list((commands.home / "shared").rglob("*.npz"))) == 1
    assert not commands.leftovers()

    commands.here("alone", cache="off")
    assert commands.record("shared").metrics == commands.record("alone").metrics
    assert commands.here("again")[1] == 0, "what both wrote into the store is whole"
    assert commands.record("again").metrics == commands.record("alone").metrics
