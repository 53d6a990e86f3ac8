"""Nodes of two ranks, each with a cache and a network of its own, train from a server that counts.

    two_nodes.py FOLDER PLAN loopback                  # plain processes on the loopback
    unshare -rn two_nodes.py FOLDER PLAN namespaces    # one for each node, joined by a bridge

PLAN: JSON, a start each: {"nodes": how many, "stop": the step after which SIGTERM comes, or null}.
Each start goes on with the run in FOLDER/run. FOLDER/shards is what the server serves; what was
trained on stands in FOLDER/read-START-RANK, a step a line, and the rest in FOLDER/answer.json.

A node is one process that has imported what is needed and forks its ranks; it gets a start a line.
"""

import importlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

BATCH, PER_NODE = 32, 2
NUM_SHARDS, PER_SHARD = 112, 10
PAIRS = NUM_SHARDS * PER_SHARD
EPOCH = PAIRS // BATCH  # steps
STEPS = 3 * EPOCH
MARK = "mark"  # a file of the server, which is asked for when the first epoch is over
NET = "10.77.0"
# Once a node, and not once a rank and start; none of them begins a thread.
IMPORTED = (
    "conftest",
    "lives",
    "silc_bench.trainer.loop",
    "torch._dynamo",
    "torch.utils.tensorboard",
    "fsspec.implementations.http",
)


def main(folder, plan, network):
    from faulty_server import FaultyServer

    is_apart = network == "namespaces"
    if is_apart:
        ip(f"link set lo up; link add br0 type bridge; addr add {NET}.254/24 dev br0")
        ip("link set br0 up")
    files = {path.name: path.read_bytes() for path in (folder / "shards").iterdir()}
    answer = {"codes": []}

    def count(name, start, size):
        if name == MARK:
            answer["first_epoch"] = server.bytes_sent.total()

    server = FaultyServer(files | {MARK: b"."}, count, f"{NET}.254" if is_apart else "127.0.0.1")
    with server:
        nodes = [begun(number, is_apart) for number in range(max(each["nodes"] for each in plan))]
        for number, start in enumerate(plan):
            start |= {
                "start": number,
                "folder": str(folder),
                "url": server.url,
                "address": f"{NET}.1" if is_apart else "127.0.0.1",
                "port": 29500 + number if is_apart else free_port(),
                "interface": "eth0" if is_apart else None,
            }
            taking_part = nodes[: start["nodes"]]
            for node in taking_part:
                tell(node, start)
            answer["codes"].append([code for node in taking_part for code in heard(node)])
        for node in nodes:
            node.stdin.close()
            node.wait()
    (folder / "answer.json").write_text(json.dumps(answer))


def ip(lines):
    for line in lines.split("; "):
        subprocess.run(["ip", *line.split()], check=True)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def begun(number, is_apart):
    """A node that can be told."""
    command = ["unshare", "-n"] if is_apart else []
    command += [sys.executable, __file__, "--node", str(number)]
    node = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert heard(node) == "begun"
    if is_apart:
        ip(f"link add veth{number} type veth peer name eth0 netns {node.pid}")
        ip(f"link set veth{number} master br0; link set veth{number} up")
        tell(node, f"link set lo up; addr add {NET}.{number + 1}/24 dev eth0; link set eth0 up")
    return node


def tell(node, what):
    node.stdin.write(json.dumps(what) + "\n")
    node.stdin.flush()


def heard(node):
    return json.loads(node.stdout.readline())


# --- a node ---------------------------------------------------------------------------------------


def serve(number):
    print(json.dumps("begun"), flush=True)
    for name in IMPORTED:
        importlib.import_module(name)
    torch = sys.modules["torch"]
    torch.set_num_threads(1)
    for line in sys.stdin:
        start = json.loads(line)
        if isinstance(start, str):
            ip(start)
            continue
        ranks = [forked(number, local, start) for local in range(PER_NODE)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) for rank in ranks]
        print(json.dumps(codes), flush=True)


def forked(number, local, start):
    process = os.fork()
    if process:
        return process
    code = 9
    try:
        rank = number * PER_NODE + local
        output = Path(start["folder"], f"said-{start['start']}-{rank}")
        file = os.open(output, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, 1)
        os.dup2(file, 2)
        variables = {
            "RANK": rank,
            "LOCAL_RANK": local,
            "GROUP_RANK": number,
            "WORLD_SIZE": PER_NODE * start["nodes"],
            "LOCAL_WORLD_SIZE": PER_NODE,
            "MASTER_ADDR": start["address"],
            "MASTER_PORT": start["port"],
            "SILC_BENCH_CACHE": Path(start["folder"], f"cache-{number}", "features"),
        }
        if start["interface"]:
            variables["GLOO_SOCKET_IFNAME"] = start["interface"]
        os.environ.update({name: str(value) for name, value in variables.items()})
        code = trained(rank, start)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def trained(rank, start):
    """What a rank does; 3 where it is stopped, and says so for all."""
    import torch
    from conftest import tiny_config
    from lives import uncounted
    from rich.console import Console

    from silc_bench.system.processes import StoppedError, joined
    from silc_bench.trainer import loop
    from silc_bench.trainer.monitor import health

    folder, number = Path(start["folder"]), start["start"]
    loop.TOKENIZER_CAPTIONS, health.flops_per_image = 2 * PER_SHARD, uncounted
    real = loop.train_step

    def step(state, batch):
        if state.step == EPOCH and rank == 0:
            urllib.request.urlopen(f"{start['url']}/{MARK}").read()
        with (folder / f"read-{number}-{rank}").open("a") as file:
            file.write(json.dumps({"step": state.step + 1, "texts": batch.texts}) + "\n")
        if state.step + 1 == start["stop"] and rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(state, batch)

    loop.train_step = step
    pattern = f"{start['url']}/{{{0:03}..{NUM_SHARDS - 1:03}}}.tar"
    data = {"source": pattern, "shuffle_shards": 1}
    sizes = {"batch_size": BATCH, "samples": BATCH * STEPS}
    seldom = {"checkpoint_every": STEPS, "log_every": STEPS}
    config = tiny_config("contrastive", data=data, **sizes, **seldom)
    cpu = torch.device("cpu")
    try:
        with joined(cpu, timeout_minutes=10):
            quiet = Console(file=io.StringIO())
            loop.run_training(config, folder / "run", resume="auto", device=cpu, console=quiet)
    except StoppedError:
        return 3
    except SystemExit as end:
        return int(end.code)
    return 0


if __name__ == "__main__":
    tests = Path(__file__).resolve().parents[2]
    # the trainer's conftest, not this folder's
    sys.path[:0] = [str(tests.parent), str(tests / "trainer"), str(tests)]
    if sys.argv[1] == "--node":
        serve(int(sys.argv[2]))
    else:
        main(Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3])
