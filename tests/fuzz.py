"""Draws new examples for every property test, round after round, until the time is over.

`make test` draws the same examples on every machine. This draws others: each round has a seed of
its own, which is printed, and runs all property tests with it. What fails is kept twice: hypothesis
writes a patch that adds the example to its test (``git apply`` it and commit it with the cure), and
pytest repeats the round with the printed options.

    make fuzz MINUTES=20                           # or: .venv/bin/python tests/fuzz.py 20
"""

import random
import subprocess
import sys
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parent
# collecting only files that hold a property test saves most of a round's start
FILES = [str(path) for path in TESTS.rglob("test_*.py") if "@given(" in path.read_text("utf-8")]


def main(minutes):
    end, failed_seeds = time.monotonic() + 60 * minutes, []
    while time.monotonic() < end:
        seed = random.SystemRandom().randrange(2**32)
        options = f"-m hypothesis --hypothesis-profile fuzz --hypothesis-seed {seed} -n 2"
        print(options, flush=True)
        command = [sys.executable, "-m", "pytest", *options.split(), *FILES]
        exit_code = subprocess.run(command, cwd=TESTS.parent, check=False).returncode
        if exit_code > 1:
            return exit_code  # Ctrl-C, a mistake in the tests themselves, or no property test
        failed_seeds += [seed] * exit_code

    print(f"failed with seeds: {failed_seeds or 'none'}")
    return bool(failed_seeds)


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1])))
