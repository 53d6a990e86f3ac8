"""CPU seconds of light commands and of everyday mistakes, from their start to their answer.

Each is a process of its own in a new folder, started several times; the least user and system
seconds count, because other programs only make them longer. What answers later than ``--most`` is
named, and the exit code is 1.

    python benchmarks/first_words.py
    python benchmarks/first_words.py --repeats 9 --most 0.5
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAIR = "shapes_tiny-contrastive:student shapes_tiny-silc:student"
# {results}: the records of this repository. The folder holds note.txt, no.jpg, empty/ and run/.
LIGHT = (
    "--help",
    "-h",
    "eval --help",
    "tasks",
    "cache ls --cache cache",
    "results ls --results {results}",
    "train --show-config",
    "report run",
)
MISTAKES = (
    "evla",
    "eval --ckpt run",
    "tasks --jsn",
    "train --preset b17",
    "train --objective slic",
    "train --set optim.lrr=1",
    "train --data nope.jsonl",
    "train --init nope.pt",
    "train --resume --out nope",
    "train --preset b16 --devices 4",
    "eval --ckpt nope.pt --tasks shapes",
    "eval --ckpt note.txt --tasks shapes",
    "eval --ckpt empty --tasks shapes",
    "eval --ckpt open_clipp:ViT-B-32 --tasks shapes",
    "eval --ckpt open_clip:ViT-B-32/openai --tasks zeroshto",
    "eval --ckpt open_clip:ViT-B-32/openai --tasks shapes --data-root nope",
    "eval --ckpt open_clip:ViT-B-32/openai --tasks cifar100/knn --data-root empty",
    "eval --ckpt open_clip:ViT-B-32/openai --tasks shapes --device gpu",
    "eval --ckpt open_clip:ViT-B-32/openai --tasks shapes --protocol tlc",
    "eval --ckpt open_clip:ViT-B-32/openai --tasks shapes --dense-method slcip",
    "doctor nope",
    "export nope --to hf --out out",
    "show open_clip:ViT-B-32/openai nope.jpg",
    "show open_clip:ViT-B-32/openai nope.jpg --protocol tlc",
    "data check cifar10 nope",
    "data stats 'nope/*.tar'",
    "leaderboard --results nope",
    "leaderboard --results empty",
    "leaderboard --results {results} --sort nope",
    "compare --results {results} shapes_tiny-slic:student shapes_tiny-contrastive:student",
    "report empty",
)
# They have to compute: paired tests over all images of 78 records, and of one pair.
COMPUTING = ("leaderboard --results {results}", f"compare --results {{results}} {PAIR}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--most", type=float, default=0.5, help="CPU seconds")
    options = parser.parse_args()

    late = []
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        print("| command | CPU s | exit code |\n|---|---:|---:|")
        for lines, has_to_compute in ((LIGHT, False), (MISTAKES, False), (COMPUTING, True)):
            for line in lines:
                words = shlex.split(line.format(results=shlex.quote(str(ROOT / "results"))))
                seconds, code = least(words, Path(folder), options.repeats)
                shown = line.replace(" --results {results}", "")
                print(f"| `{shown}` | {seconds:.2f} | {code} |", flush=True)
                if seconds > options.most and not has_to_compute:
                    late.append(shown)
    if late:
        sys.exit(f"later than {options.most} s: {'; '.join(late)}")


def prepare(folder: Path) -> None:
    (folder / "note.txt").write_text("no checkpoint\n")
    (folder / "empty").mkdir()
    (folder / "run").mkdir()
    rows = [{"step": step, "samples_seen": 8 * step, "loss": 5.0 / step} for step in range(1, 100)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "run" / "log.jsonl").write_text(lines)


def least(words: list[str], folder: Path, repeats: int) -> tuple[float, int]:
    """(CPU seconds, exit code) of ``silc-bench WORDS`` in ``folder``."""
    command = [sys.executable, "-m", "silc_bench", *words]
    nowhere = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_WRONLY, 0) for number in (1, 2)]
    # the sources of this checkout, and nothing that the user's own settings would change
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SILC_BENCH_CONFIG": "off"}
    seconds, code = float("inf"), 0
    for _ in range(repeats):
        before = os.getcwd()
        os.chdir(folder)
        process = os.posix_spawn(command[0], command, environment, file_actions=nowhere)
        os.chdir(before)
        _, status, usage = os.wait4(process, 0)
        seconds = min(seconds, usage.ru_utime + usage.ru_stime)
        code = os.waitstatus_to_exitcode(status)
    return seconds, code


if __name__ == "__main__":
    main()
