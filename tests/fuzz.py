"""Draws new examples for every property test, round after round, until the time is over.

`make test` draws the same examples on every machine. This draws others: each round has a seed of
its own, which is printed, and runs all property tests with it. What fails is kept twice: hypothesis
writes a patch that adds the example to its test (``git apply`` it and commit it with the cure), and
the seed repeats the round.

    make fuzz MINUTES=20                           # or: .venv/bin/python tests/fuzz.py --minutes 20
    .venv/bin/python tests/fuzz.py --seed 123456   # one round again
"""

import argparse
import random
import subprocess
import sys
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parent
NO_TESTS = 5  # pytest's exit code when nothing was selected


def property_test_files():
    """Files that hold a property test; collecting only these saves most of a round's start."""
    return [
        str(path)
        for path in sorted(TESTS.rglob("test_*.py"))
        if "@given(" in path.read_text("utf-8")
    ]


def run_round(seed):
    """All property tests with examples drawn from ``seed``; pytest's exit code."""
    options = ["-m", "hypothesis", "--hypothesis-profile", "fuzz", "--hypothesis-seed", str(seed)]
    processes = ["--numprocesses", "2", "--dist", "load"]
    command = [sys.executable, "-m", "pytest", *options, *processes, *property_test_files()]
    return subprocess.run(command, cwd=TESTS.parent, check=False).returncode


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=20, help="no round begins after this time")
    parser.add_argument("--seed", type=int, help="run one round with this seed")
    wanted = parser.parse_args()

    if wanted.seed is not None:
        return run_round(wanted.seed)

    end, num_rounds, failed_seeds = time.monotonic() + 60 * wanted.minutes, 0, []
    while time.monotonic() < end:
        seed = random.SystemRandom().randrange(2**32)
        num_rounds += 1
        print(f"round {num_rounds}, seed {seed}", flush=True)
        exit_code = run_round(seed)
        if exit_code == NO_TESTS:
            print("no property test was found")
            return 1
        if exit_code == 1:
            failed_seeds.append(seed)
        elif exit_code:
            return exit_code  # Ctrl-C, or a mistake in the tests themselves

    print(f"{num_rounds} rounds; failed with seeds: {failed_seeds or 'none'}")
    return 1 if failed_seeds else 0


if __name__ == "__main__":
    sys.exit(main())
