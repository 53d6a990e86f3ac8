"""Two nodes of two gloo ranks each, as real processes, read shards that one server sends.

Each node has a cache and, where this user may make network namespaces, a network of its own; else
they are processes on one loopback. The test prints which.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from pairs import numbered
from two_nodes import BATCH, EPOCH, NUM_SHARDS, PAIRS, PER_NODE, PER_SHARD, STEPS

pytestmark = [pytest.mark.slow, pytest.mark.timing, pytest.mark.timeout(1800)]
# The second start is in the middle of the first epoch and of a shard; at the third a node is gone.
STOPS = (EPOCH // 2 - 3, EPOCH + EPOCH // 2 - 1, None)
NODES = (2, 2, 1)


def can_make_namespaces():
    probe = "ip link add probe type bridge && unshare -n true"
    try:
        return not subprocess.run(["unshare", "-rn", "sh", "-c", probe], timeout=20).returncode
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Of a run of three starts: what it cost, the shards, and the pairs of each step."""
    folder = tmp_path_factory.mktemp("nodes")
    (folder / "shards").mkdir()
    files = numbered(folder / "shards", *[PER_SHARD] * NUM_SHARDS)
    starts = [{"nodes": count, "stop": stop} for count, stop in zip(NODES, STOPS, strict=True)]
    network = "namespaces" if can_make_namespaces() else "loopback"
    command = ["unshare", "-rn"] if network == "namespaces" else []
    command += [sys.executable, Path(__file__).with_name("two_nodes.py"), folder]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(
        [*command, json.dumps(starts), network],
        capture_output=True,
        text=True,
        env=environment,
        timeout=1700,
    )
    said = "".join(f"{path.name}: {path.read_text()}" for path in sorted(folder.glob("said-*")))
    assert ended.returncode == 0, ended.stderr + said
    answer = json.loads((folder / "answer.json").read_text())
    print("each node in:", network)
    stopped = [3, *[1] * (2 * PER_NODE - 1)]
    assert answer["codes"] == [stopped, stopped, [0] * PER_NODE], said

    pairs = {step: [] for step in range(1, STEPS + 1)}
    for path in sorted(folder.glob("read-*")):
        for row in map(json.loads, path.read_text().splitlines()):
            pairs[row["step"]] += (int(text.removeprefix("number ")) for text in row["texts"])
    assert {len(of_step) for of_step in pairs.values()} == {BATCH}, "each step is done once"
    return answer, files, pairs


def test_two_nodes_fetch_an_epoch_once_and_train_on_each_pair_once(run):
    """Across a restart: with the first look, the tokenizer, and what is read ahead."""
    answer, files, pairs = run
    first = [pair for step in range(1, EPOCH + 1) for pair in pairs[step]]
    assert sorted(first) == list(range(PAIRS))
    cost = answer["first_epoch"] / sum(map(len, files.values()))
    print(f"the first epoch cost {cost:.3f} times the shards")
    assert 1 <= cost <= 1.1


def test_a_node_fewer_cuts_the_rest_of_the_epoch_anew_and_the_next_one_is_whole(run):
    """As docs/scale.md says: of the epoch at hand some come twice, and as many do not."""
    _, _, pairs = run
    stop = STOPS[1]
    before = [pair for step in range(EPOCH + 1, stop + 1) for pair in pairs[step]]
    after = [pair for step in range(stop + 1, 2 * EPOCH + 1) for pair in pairs[step]]
    assert len(before) == len(set(before))
    assert len(after) == len(set(after))
    assert len(before) + len(after) == PAIRS
    met = Counter(before + after)
    assert list(met.values()).count(2) == len(set(range(PAIRS)) - set(met)) > 0
    last = [pair for step in range(2 * EPOCH + 1, STEPS + 1) for pair in pairs[step]]
    assert sorted(last) == list(range(PAIRS))
