"""What a change must leave: ten training steps, the tasks, the leaderboard of ``results/``.

The files in ``tests/golden`` hold what the program gave when they were written. A refactor leaves
them as they are, to the byte. A change that moves a number on purpose writes them anew, in the same
commit, and says why:

    OMP_NUM_THREADS=1 python -m tests.test_golden

``shapes_tiny.jsonl`` begins with the machine that wrote it. Kernels of another processor, or of
another version of torch, add numbers in another order. So a machine of the same kind must give the
same bits, weights included, and any other machine the same numbers up to 1e-4 of each.
"""

import hashlib
import json
import platform
import re
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from silc_bench.evaluation.protocols import choose
from silc_bench.reports.leaderboard import build
from silc_bench.reports.leaderboard import write as write_board
from silc_bench.results.question import Question
from silc_bench.tasks.selection import all_tasks, current_version
from silc_bench.trainer.config.presets import configure
from silc_bench.trainer.data.stream import open_source
from silc_bench.trainer.silc.tokenizers import Tokenizer
from silc_bench.trainer.train import TrainState, train_step

pytestmark = pytest.mark.broad

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"
STEPS, BATCH_SIZE, CAPTIONS = 10, 16, 500
PROTOCOLS = (
    "native",
    "openai80",
    "openai7",
    "single",
    "bigvision",
    "tcl",
    "sclip",
    "naclip",
    "clearclip",
)


def machine():
    """What decides in which order the kernels add."""
    processor = [platform.machine()]
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        text = cpuinfo.read_text().partition("\n\n")[0]
        first = dict(re.findall(r"(?m)^([\w ]+?)\s*: (.*)$", text))
        fields = ("vendor_id", "cpu family", "model", "stepping", "cache size")
        processor += [f"{name} {first.get(name)}" for name in fields]
        # what a virtual machine hides of it
        processor += [hashlib.sha256(first.get("flags", "").encode()).hexdigest()[:8]]
    return {
        "processor": ", ".join(processor),
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def training_rows():
    """The values of each step of a short run on one thread, then a hash of its last weights."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # Small batches, to be quick; masked patches, which the preset leaves out, so that all three
        # losses are held; the rate that the preset had when the file was written.
        sets = [f"batch_size={BATCH_SIZE}", "precision=fp32", "masked.weight=0.5", "optim.lr=2e-3"]
        config = configure("shapes_tiny", "silc", samples=STEPS * BATCH_SIZE, sets=sets)
        source = open_source(config.data)
        tokenizer = Tokenizer.train(
            source.captions(CAPTIONS), config.text.vocab_size, config.text.context_length
        )
        state = TrainState.create(config, tokenizer, torch.device("cpu"))
        batches = source.batches(config.batch_size, 0, 0, 1)
        for step in range(1, STEPS + 1):
            values = train_step(state, next(batches))
            yield {"step": step, **{name: value.item() for name, value in values.items()}}
        batches.close()
        yield {"weights": {name: hash_of(getattr(state, name)) for name in ("student", "teacher")}}
    finally:
        torch.set_num_threads(threads)


def hash_of(module):
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def task_rows():
    """Each registered task, with the hashes of its question on data that stand for any.

    The named protocols that do not change the task hash as "native" does, and are left out.
    """
    names = ("cat", "dog")
    data = SimpleNamespace(name="any", split="test", fingerprint="0" * 16, mask_policy={})
    data.class_names = data.mask_names = names
    for name, task in all_tasks().items():
        hashes = {}
        for word in PROTOCOLS:
            named = choose(word)
            asked = task.under(named)
            if named.changes(task):
                question = Question.of(
                    asked, {"test": data}, protocol=word, image=named.images(asked)
                )
            else:
                question = Question.of(task, {"test": data}, image=choose("native").images(task))
            if question.hash != hashes.get("native"):
                hashes[word] = question.hash
        yield {
            "task": name,
            "version": task.version,
            "group": task.group,
            "main_metric": task.main_metric,
            "requires": sorted(task.requires),
            **hashes,
        }


def leaderboard_files():
    """The leaderboard of this repository's records: its tables, and the hash of the larger file.

    The page holds the same numbers, and its looks and libraries change without them.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = write_board(build(ROOT / "results", current_version=current_version), folder)
        contents = {path.name: path.read_bytes() for path in paths}
    digest = hashlib.sha256(contents["leaderboard.csv"]).hexdigest()
    tables = contents["leaderboard.md"].decode()
    return {"leaderboard.md": tables, "leaderboard.sha256": f"{digest}  leaderboard.csv\n"}


def as_lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_ten_training_steps_are_as_they_were():
    lines = (GOLDEN / "shapes_tiny.jsonl").read_text().splitlines()
    known_machine, *known = map(json.loads, lines)
    rows = list(training_rows())
    if machine() == known_machine:
        assert rows == known
        return
    for row, known_row in zip(rows[:-1], known[:-1], strict=True):
        assert row == pytest.approx(known_row, rel=1e-4)


def test_the_registered_tasks_are_as_they_were():
    assert as_lines(list(task_rows())) == (GOLDEN / "tasks.jsonl").read_text()


def test_the_leaderboard_of_the_records_is_as_it_was():
    for name, text in leaderboard_files().items():
        assert text == (GOLDEN / name).read_text()


def write():
    """Every golden file anew."""
    GOLDEN.mkdir(exist_ok=True)
    (GOLDEN / "shapes_tiny.jsonl").write_text(as_lines([machine(), *training_rows()]))
    (GOLDEN / "tasks.jsonl").write_text(as_lines(list(task_rows())))
    for name, text in leaderboard_files().items():
        (GOLDEN / name).write_text(text)


if __name__ == "__main__":
    write()
