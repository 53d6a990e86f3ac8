"""Thousands of damaged and foreign files in a results folder: each is named, none is fatal, and the
sound records are read as before.

    python benchmarks/damaged_results.py [--files 10000] [--seed 0]

Flow: a copy of ``results/`` -> files drawn with the seed, beside its records -> ``read`` and
``check`` -> the commands as a user types them. Exits with 1 and the first file that was not named.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from silc_bench.results import folders

ROOT = Path(__file__).resolve().parent.parent
LETTERS = "abcXYZ019._-+=@!%&#'\"<>[]{}() \t\néß猫😀\u202e\u0301"
SHARE_OF_SAMPLES = 0.1  # of the files: damaged .outcomes.npz
COMMANDS = {  # and the exit code of each
    "leaderboard": 0,
    "compare shapes_tiny-contrastive:student shapes_tiny-silc:student": 0,
    "results ls": 0,
    "results validate": 1,
}


def damaged(rng: random.Random, content: bytes) -> bytes:
    """Bytes changed, lost, added, doubled or replaced."""
    start = rng.randrange(len(content))
    end = min(len(content), start + rng.choice([1, 2, 10, 100, 1000]))
    noise = rng.randbytes(end - start)
    return rng.choice(
        [
            content[:start] + noise + content[end:],
            content[:start] + content[end:],
            content[:end] + content[start:],
            content[:start],
            content + noise,
            noise + content,
            content.replace(rng.choice([b"0", b"1", b'"', b":", b"a"]), noise[:1], 1),
            noise,
            b"",
            content,  # sound, and in another record's place
        ]
    )


def add_files(rng: random.Random, results_dir: Path, count: int) -> list[Path]:
    """The new files; each has a folder and a name by luck."""
    records = sorted(results_dir.glob("*@*/*/*.json"))
    samples = sorted(results_dir.glob("*@*/*/*.outcomes.npz"))
    homes = [results_dir, *sorted({path.parent for path in records})]
    added = []
    for number in range(count):
        word = "".join(rng.choices(LETTERS, k=rng.randrange(1, 40)))
        name = f"{word}{number}".replace("/", "_")
        if rng.random() < SHARE_OF_SAMPLES:
            name, content = f"{name}.outcomes.npz", rng.choice(samples).read_bytes()
        else:
            ending = rng.choice([".json", ".json", ".json", ".json.tmp", ".txt", ".ipynb", ""])
            name, content = name + ending, rng.choice(records).read_bytes()

        home = rng.choice(homes)
        if rng.random() < 0.1:
            home = home / f"inner{rng.randrange(20)}"
        home.mkdir(exist_ok=True)
        path = home / name
        path.write_bytes(damaged(rng, content))
        added.append(path)
    return added


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as scratch:
        results_dir = Path(scratch) / "results"
        shutil.copytree(ROOT / "results", results_dir)
        sound = folders.read([results_dir])
        added = add_files(random.Random(options.seed), results_dir, options.files)

        start = time.process_time()
        reading = folders.read([results_dir])
        seconds = time.process_time() - start
        checked = folders.check([results_dir])
        for name, found in (("read", reading), ("check", checked)):
            if found.records != sound.records:
                print(f"{name}: the sound records are not as before")
                return 1

        named = {problem.path for problem in checked.problems} | set(checked.strays)
        for path in added:
            if path not in named:
                print(f"not named: {os.fspath(path)!r}")
                return 1
        print(
            f"{len(added):,} files, seed {options.seed}: {len(checked.problems):,} damaged or"
            f" misplaced and {len(checked.strays):,} foreign ones, all named; {len(sound.records)}"
            f" records as before; read in {seconds:.1f} s CPU"
        )

        for line, expected in COMMANDS.items():
            words = [sys.executable, "-m", "silc_bench", *line.split(), "--results", results_dir]
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            output = done.stdout + done.stderr
            if done.returncode != expected or "Traceback" in output:
                print(f"{line}: exit code {done.returncode}\n{output[-2000:]}")
                return 1
            print(f"{line}: exit code {done.returncode}, {output.count('left out')} lines on files")
    return 0


if __name__ == "__main__":
    sys.exit(main())
