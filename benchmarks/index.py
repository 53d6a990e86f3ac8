"""What the index of many pairs costs: memory of all processes, the first batch, the order.

    python benchmarks/index.py                  # 20,000,000 pairs, 2 ranks x 2 workers; 1.5 GB
    python benchmarks/index.py --pairs 1000000

Flow: 2,000 shards and their indexes are laid out -> ranks start as torchrun starts them, open the
source, and take a batch -> each worker touches the rows of all shards, asks for the order of random
positions, and stays -> the memory of all ranks and workers is summed.

What is made up: each shard is a link to one file of 64 pairs (32 pixels, PNG), and its index says
10,000 pairs, which lie where those 64 do. The indexes are written by what writes them for real
shards, and all that follows is the product's. Images so come out of the system's cache.

Memory is PSS of /proc: a page that several processes map counts once in their sum. The constant is
that of a run over a hundredth of the pairs in as many shards, less 24 bytes a pair of its own; no
process of it keeps a table of the order, whatever that number. Seconds of a start do not count the
imports. Exit status 1 where a goal is missed; on a busy machine look at the seconds of CPU.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import random
import re
import shlex
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from silc_bench.datasets.files.shards import Damage, index_shard
from silc_bench.system.cache import shards_folder
from silc_bench.system.files import write_text_atomic
from silc_bench.system.processes import joined, meet, num_ranks, rank
from silc_bench.trainer.config.config import DataConfig
from silc_bench.trainer.data import shards
from silc_bench.trainer.data.samples import parse
from silc_bench.trainer.data.shard_index import ABSENT, ShardIndex, expand, keep, kept_at
from silc_bench.trainer.data.shards import ShardsReader
from silc_bench.trainer.data.stream import open_source

BYTES_A_PAIR, FIRST_BATCH, ORDER = 24, 2.0, 10e-6  # goals: bytes, seconds, seconds
NUM_SHARDS = 2000
REAL_PAIRS = 64
SIDE = 32  # pixels
ASKED = 20_000  # positions whose order each worker asks for
MB = 1e6
VARIES = 0.02  # of the constant, from start to start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=20_000_000)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2, help="of each rank")
    args = parser.parse_args()
    print(f"$ python {shlex.join(sys.argv)}")
    print(f"torch {torch.__version__}, numpy {np.__version__}, {os.cpu_count()} cores")

    runs = {}
    with tempfile.TemporaryDirectory(prefix="index-") as folder:
        for name, pairs in (("small", args.pairs // 100), ("large", args.pairs)):
            place = Path(folder, name)
            lay_out(place, pairs // NUM_SHARDS)
            first = start(place, args.ranks, args.workers)
            runs[name] = start(place, args.ranks, args.workers)
            for words, run in (
                ("first start, which writes the table", first),
                ("next", runs[name]),
            ):
                print(
                    f"{run['pairs']:,} pairs in {NUM_SHARDS:,} shards, {words}: first batch after"
                    f" {run['seconds']:.2f} s, of which a rank and a worker compute"
                    f" {run['cpu']:.2f}; load {os.getloadavg()[0]:.0f}",
                    flush=True,
                )

    small, large = runs["small"], runs["large"]
    constant = small["pss"] - BYTES_A_PAIR * small["pairs"]
    of_pair = (large["pss"] - small["pss"]) / (large["pairs"] - small["pairs"])
    of_table = large["table"] / large["pairs"]
    others = large["pss"] - large["table"] - (small["pss"] - small["table"])
    print(
        f"PSS of {args.ranks} ranks and {args.ranks * args.workers} workers, each of which touched"
        f" all rows: {large['pss'] / MB:,.0f} MB = {constant / MB:,.0f} MB + {of_pair:.2f} bytes a"
        f" pair (goal: at most {BYTES_A_PAIR}, to within what the constant varies)"
    )
    print(
        f"of it the mapped table: {of_table:.3f} bytes a pair; all else is {others / MB:+.1f} MB"
        f" against {small['pairs']:,} pairs; one worker maps {large['mapped'] / MB:,.0f} MB, of"
        f" which {large['private'] / MB:.1f} MB are its own"
    )
    print(
        f"order of a random position: {1e6 * large['order']:.1f} us of CPU (goal: under"
        f" {1e6 * ORDER:.0f}); the first position of an epoch {1e3 * large['first_order']:.1f} ms"
    )
    is_met = of_table <= BYTES_A_PAIR + 0.01 and others <= VARIES * small["pss"]
    is_met &= large["seconds"] < FIRST_BATCH and large["order"] < ORDER
    raise SystemExit(not is_met)


# ---- what is laid out ----


def lay_out(place: Path, per_shard: int) -> None:
    """Shards in ``place``/shards, each with an index of ``per_shard`` pairs in ``place``/cache."""
    (place / "shards").mkdir(parents=True)
    real = place / "real.tar"
    write_real(real)
    members = [sample.members for sample in index_shard(real).samples]
    of_real = np.array([(*each["png"], *each["txt"], *ABSENT) for each in members], np.int64)
    rows = of_real[np.random.default_rng(0).integers(0, REAL_PAIRS, per_shard)]

    for number in range(NUM_SHARDS):
        os.link(real, place / "shards" / f"{number:05}.tar")
    os.environ["SILC_BENCH_CACHE"] = str(place / "cache" / "features")
    filters = parse("")
    for shard in expand(str(place / "shards")):
        index = ShardIndex(rows, Damage(), Counter())
        keep(index, shard, kept_at(shard, filters, shards_folder()))


def write_real(path: Path) -> None:
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w") as tar:
        for number in range(REAL_PAIRS):
            image = io.BytesIO()
            pixels = rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
            Image.fromarray(pixels).save(image, "PNG")
            text = f"number {number}".encode()
            for ending, content in (("png", image.getvalue()), ("txt", text)):
                header = tarfile.TarInfo(f"{number:04}.{ending}")
                header.size = len(content)
                tar.addfile(header, io.BytesIO(content))


# ---- a start ----


def start(place: Path, num_ranks: int, num_workers: int) -> dict[str, float]:
    """What the ranks measure, put together."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with tempfile.TemporaryDirectory(dir=place) as folder:
        ranks = []
        for number in range(num_ranks):
            variables = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": num_ranks}
            variables |= {"LOCAL_WORLD_SIZE": num_ranks, "MASTER_ADDR": "127.0.0.1"}
            variables |= {"MASTER_PORT": port, "OMP_NUM_THREADS": 1, "SILC_BENCH_CONFIG": "off"}
            environment = os.environ | {name: str(value) for name, value in variables.items()}
            command = [sys.executable, __file__, "--process", folder, str(place), str(num_workers)]
            ranks.append(subprocess.Popen(command, env=environment))
        codes = [each.wait() for each in ranks]
        assert not any(codes), codes
        of_ranks = [json.loads(path.read_text()) for path in Path(folder).glob("rank-*")]
        workers = [json.loads(path.read_text()) for path in Path(folder).glob("touched-*")]
    assert len(workers) == num_ranks * num_workers
    memory = [process for each in of_ranks for process in each["memory"]]
    return {
        "pairs": of_ranks[0]["pairs"],
        "seconds": max(each["seconds"] for each in of_ranks),
        "cpu": max(each["cpu"] for each in of_ranks) + max(each["cpu"] for each in workers),
        "pss": sum(each["pss"] for each in memory),
        "table": sum(each["table"] for each in memory),
        "mapped": max(each["mapped"] for each in memory),
        "private": max(each["private"] for each in memory),
        "order": max(each["order"] for each in workers),
        "first_order": max(each["first_order"] for each in workers),
    }


def process(folder: Path, place: Path, num_workers: int) -> None:
    """A rank: opens the source, takes batches until its workers have touched all, and measures."""
    torch.set_num_threads(1)
    if place.name == "small":
        shards.LARGEST_TABLE = 0
    with joined(torch.device("cpu")):
        meet()
        begun, computed = time.perf_counter(), time.process_time()
        config = DataConfig(source=str(place / "shards"), decode_size=SIDE, num_workers=num_workers)
        source = open_source(config)
        identity = source.identity()

        reader: Any = source._reader
        reader.__class__ = Touching
        reader.folder = folder
        with closing(source.batches(32 * num_ranks(), 0, rank(), num_ranks())) as batches:
            next(batches)
            seconds = time.perf_counter() - begun
            cpu = time.process_time() - computed
            meet()
            (folder / "go").touch()
            while len(list(folder.glob("touched-*"))) < num_ranks() * num_workers:
                next(batches)
            meet()
            pids = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
            memory = [memory_of(pid) for pid in pids]
            meet()
    answer = {"pairs": identity["pairs"], "seconds": seconds, "cpu": cpu, "memory": memory}
    (folder / f"rank-{os.environ['RANK']}").write_text(json.dumps(answer))


class Touching(ShardsReader):
    """The product's reader, which touches all rows once it is told to, in each worker."""

    folder: Path
    has_touched = False

    def text(self, position: int) -> str:
        if not self.has_touched and (self.folder / "go").exists():
            self.has_touched = True
            self.touch()
        return super().text(position)

    def touch(self) -> None:
        cpu = time.process_time()  # of the worker until now
        for shard in range(len(self.files)):
            self.table.check(shard)

        begun = time.thread_time()
        self.find(10 * self.num_samples)
        first_order = time.thread_time() - begun
        epoch = range(10 * self.num_samples, 11 * self.num_samples)
        positions = random.Random(os.getpid()).choices(epoch, k=ASKED)
        begun = time.thread_time()
        for position in positions:
            self.find(position)
        order = (time.thread_time() - begun) / ASKED

        answer = json.dumps({"order": order, "first_order": first_order, "cpu": cpu})
        write_text_atomic(self.folder / f"touched-{os.getpid()}", answer)


def memory_of(pid: int) -> dict[str, int]:
    """Bytes of a process: its PSS, the table's part of it, and what it maps of the table."""
    found = dict.fromkeys(("pss", "table", "mapped", "private"), 0)
    is_table = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            is_table = line.endswith(".rows")
            continue
        name, value = line.split(":", 1)
        if name == "Pss":
            found["pss"] += kilobytes(value)
        if is_table and name in ("Pss", "Rss", "Private_Dirty"):
            kind = {"Pss": "table", "Rss": "mapped", "Private_Dirty": "private"}[name]
            found[kind] += kilobytes(value)
    return found


def kilobytes(value: str) -> int:
    return 1024 * int(value.split()[0])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--process"]:
        process(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
    else:
        main()
