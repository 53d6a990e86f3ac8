"""How long `silc-bench demo` takes, to its first page and to its end.

It runs in a new empty folder. With --avx2 torch uses what an AVX2 processor has, so trains in fp32.
Nothing else should run meanwhile:

    python benchmarks/demo_seconds.py
    python benchmarks/demo_seconds.py --avx2
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time

AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--avx2", action="store_true", help="no kernels beyond AVX2")
    args, options = parser.parse_known_args()  # the others are the demo's

    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **(AVX2 if args.avx2 else {})}
    command = [sys.executable, "-m", "silc_bench", "demo", *options]
    started = time.perf_counter()
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
        ) as child,
    ):
        assert child.stdout is not None
        for line in child.stdout:
            print(f"{time.perf_counter() - started:6.1f} s  {line}", end="", flush=True)

    spent = os.times()
    cpu = spent.children_user + spent.children_system
    load = os.getloadavg()[0]
    print(f"exit code {child.returncode}, {cpu:.0f} CPU seconds, load {load:.1f} at the end")
    sys.exit(child.returncode)


if __name__ == "__main__":
    main()
