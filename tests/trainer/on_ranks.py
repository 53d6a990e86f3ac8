"""What the ranks of a GlooPool are asked to do; one process does the same without a group."""

import copy
import io
import os
import select
import signal
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from rich.console import Console
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from silc_bench.errors import UserError
from silc_bench.system.processes import joined, meet, num_ranks, rank
from silc_bench.trainer.checkpoints import file as checkpoint
from silc_bench.trainer.checkpoints import stop
from silc_bench.trainer.data.stream import Batch, open_source
from silc_bench.trainer.device import (
    first_of,
    gather,
    local_part,
    log_sum_exp_over_ranks,
    mean_over_ranks,
    mesh_of,
    whole,
)
from silc_bench.trainer.loop import run_training
from silc_bench.trainer.silc import losses
from silc_bench.trainer.silc.tokenizers import Tokenizer
from silc_bench.trainer.silc.views import Views, make_views
from silc_bench.trainer.train import TrainState, train_step


def first_batches(config, count):
    """A tokenizer, and the first ``count`` global batches."""
    source = open_source(config.data)
    tokenizer = Tokenizer.train(
        source.captions(50), config.text.vocab_size, config.text.context_length
    )
    stream = source.batches(config.batch_size, 0)
    batches = [next(stream) for _ in range(count)]
    stream.close()
    return tokenizer, batches


def rows_of(batch):
    """This rank's part of a global batch."""
    mine = my_share(len(batch.texts))
    return Batch(batch.images[mine], batch.sizes[mine], batch.texts[mine], batch.position)


def train(config, tokenizer, batches, dtype=torch.float32, plant=None):
    """Values and gradients of every step, and all that the run holds at its end.

    ``plant``: a rank whose weights get a NaN.
    """
    torch.set_default_dtype(dtype)  # of the weights
    try:
        state = TrainState.create(config, tokenizer, torch.device("cpu"))
    finally:
        torch.set_default_dtype(torch.float32)
    if plant == rank():
        state.student.text.head.weight.data[0] = torch.nan
    values, gradients = [], []
    for batch in batches:
        with mock.patch("silc_bench.trainer.train.make_views", partial(views_as, dtype)):
            row = train_step(state, rows_of(batch))
        values.append({name: value.item() for name, value in row.items()})
        learning = {n: p for n, p in state.student.named_parameters() if p.requires_grad}
        gradients.append({n: whole(p.grad).clone() for n, p in learning.items()})
    counters = state.step, state.samples_seen, state.position
    models = [
        {name: whole(value) for name, value in model.state_dict().items()}
        for model in (state.student, state.teacher)
    ]
    return copy.deepcopy((values, gradients, *models, counters))


def train_each(configs, tokenizer, batches, of_node=None):
    """``train`` of each configuration in float64, as bytes; ``of_node`` ranks are a node.

    Each tensor that is sent as such takes an open file.
    """
    with node_of(of_node):
        answers = [train(config, tokenizer, batches, torch.float64) for config in configs]
    file = io.BytesIO()
    torch.save(answers, file)
    return file.getvalue()


def trained(answer):
    """What ``train_each`` has answered."""
    return torch.load(io.BytesIO(answer), weights_only=False)


def node_of(count):
    return mock.patch.dict(os.environ, {"LOCAL_WORLD_SIZE": str(count)} if count else {})


def shares_of(config, tokenizer, batches, of_node):
    """After a step: {part: the share of its numbers that this rank holds}."""
    with node_of(of_node):
        state = TrainState.create(config, tokenizer, torch.device("cpu"))
    train_step(state, rows_of(batches[0]))
    parts = {
        "student": list(state.student.parameters()),
        "teacher": list(state.teacher.parameters()),
        "gradients": [p.grad for p in state.student.parameters()],
        "average": list(state.average.weights.values()),
        "optimizer": [
            leaf for leaf in tree_leaves(state.optimizer.state_dict()) if is_matrix(leaf)
        ],
    }
    return {
        part: sum(local_part(x).numel() for x in tensors) / sum(x.numel() for x in tensors)
        for part, tensors in parts.items()
    }


def refused_mesh(config, of_nodes):
    """What the refusal is about, where each rank's machine has so many."""
    with node_of(of_nodes[rank()]):
        try:
            mesh_of(config, torch.device("cpu"))
        except UserError as error:
            return error.about


def is_matrix(leaf):
    return isinstance(leaf, torch.Tensor) and leaf.ndim > 0


def train_in_chunks(*work):
    """``train`` with contrastive tables a few logits at a time."""
    with (
        mock.patch.object(losses, "CHUNK", {"cpu": 30}),
        mock.patch.object(losses, "MOST_CHUNKS", 0),
        mock.patch.object(losses._Rows, "apply", wraps=losses._Rows.apply) as apply,
    ):
        answer = train(*work)
    assert apply.called, "no table was made in chunks"
    return answer


def trained_by_bf16(config, *work):
    """``train`` with gradients exchanged in bf16, and the same in fp32."""
    return train(replace(config, exchange="bf16"), *work), train(config, *work)


def gathered(rows, weights):
    """Gradients of sum(weights[rank] * all rows) by this rank's rows."""
    mine = rows.chunk(num_ranks())[rank()].clone().requires_grad_()
    with mock.patch.object(dist, "all_reduce", side_effect=AssertionError("a sum of the table")):
        (gather(mine) * weights[rank()]).sum().backward()
    return mine.grad


def views_as(dtype, *args, **kwargs):
    made = make_views(*args, **kwargs)
    present = {name: part for name, part in vars(made).items() if part is not None}
    return Views(**{name: part.to(dtype) for name, part in present.items()})


def message_of_train(*args, **kwargs):
    """The error that the step ends with."""
    try:
        train(*args, **kwargs)
    except Exception as error:
        return type(error).__name__, str(error)
    return None


def my_share(count):
    """This rank's part of ``count`` rows."""
    share = count // num_ranks()
    return slice(first_of(share), first_of(share) + share)


def reduced(rows):
    """This rank's row, its mean over the ranks and its log-sum-exp over them."""
    row = rows[rank()].clone()
    return mean_over_ranks(row), log_sum_exp_over_ranks(row), row


# --- a whole run, as torchrun starts it -----------------------------------------------------------


def run(
    config, folder, *, resume=False, at=(), event=None, gate=None, of_node=None, dtype=torch.float32
):
    """run_training inside ``joined``: the path, or what this rank raised.

    ``at``: (rank, step) at which ``event`` happens, one or several. ``gate``: (a FIFO, the rank
    that speaks first): the other rank leaves the run only when that one is ready to speak, or has
    spoken. ``of_node`` ranks are a node. ``dtype``: of the weights.
    """
    gate, first = gate or (None, None)

    def stepped(state, batch):
        if (rank(), state.step + 1) in at:
            event()
        return train_step(state, batch)

    def met():
        if first == rank():
            open_gate()
        meet()

    def open_gate():
        nonlocal gate
        if gate is not None:
            Path(gate).write_text("ready")  # waits for the one who reads
            gate = None

    console = Console(file=io.StringIO(), width=200)
    views = partial(views_as, dtype)
    torch.set_default_dtype(dtype)
    try:
        with (
            mock.patch("silc_bench.trainer.loop.TOKENIZER_CAPTIONS", 50),
            mock.patch("silc_bench.trainer.loop.train_step", stepped),
            mock.patch("silc_bench.trainer.train.make_views", views),
            mock.patch("silc_bench.trainer.monitor.health.make_views", views),
            mock.patch("silc_bench.system.processes.meet", met),
            node_of(of_node),
            joined(torch.device("cpu")),
        ):
            try:
                device = torch.device("cpu")
                return str(
                    run_training(config, folder, resume=resume, device=device, console=console)
                )
            finally:
                if gate is not None and first != rank():
                    Path(gate).read_text()
    except (Exception, SystemExit) as error:
        if first is not None:
            # Nobody ends before rank 0 has spoken.
            said = Path(folder) / "said"
            if os.environ["RANK"] == "0":
                said.touch()
            else:
                said.stat()
        return type(error).__name__, " ".join([str(error), *getattr(error, "__notes__", ())])
    finally:
        torch.set_default_dtype(torch.float32)
        if first is not None and first == int(os.environ["RANK"]):
            open_gate()


def run_apart(config, folder):
    """``run``, each rank on a disk of its own."""
    here = Path(folder, os.environ["RANK"])
    here.mkdir()
    os.chdir(here)
    return run(config, Path("run"))


def order_of_joining(folder, late):
    """Which ranks begin their work before rank ``late`` is connected: empty files in ``folder``.

    That rank's last line of connecting waits until another rank has begun, or half a second.
    """
    connect = dist.init_process_group

    def connect_late(*args, **kwargs):
        connect(*args, **kwargs)
        if dist.get_rank() == late:
            begun = os.open(Path(folder) / "gate", os.O_RDONLY | os.O_NONBLOCK)
            select.select([begun], [], [], 0.5)
            words = os.read(begun, 100)
            os.close(begun)
            (Path(folder) / "connected").write_bytes(words)

    with mock.patch.object(dist, "init_process_group", connect_late), joined(torch.device("cpu")):
        if rank() != late and not (Path(folder) / "connected").exists():
            (Path(folder) / f"rank {rank()} was early").touch()
            Path(folder, "gate").write_text("begun")


def sigterm():
    os.kill(os.getpid(), signal.SIGTERM)


def two_signals():
    """As where a scheduler tells every process, and torchrun passes on what it was told."""
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGUSR1)


def told_again(ranks, step):
    """SIGTERM to every rank, and to ``ranks`` again while they write their part of a checkpoint."""
    from silc_bench.trainer.checkpoints import sharded

    stop.TOGETHER = 0.0
    write = sharded._Writer.write_data

    def told(writer, plan, planner):
        if rank() in ranks and str(step) in writer._folder.name:
            sigterm()
            threading.Event().wait()
        return write(writer, plan, planner)

    sharded._Writer.write_data = told
    sigterm()


def refuse():
    raise UserError("the image is missing")


def break_down():
    raise ZeroDivisionError("a mistake of ours")


def leave():
    """As a kill does: the connections close, and nobody says why."""
    dist.destroy_process_group()
    raise SystemExit(9)


def patience(config, run):
    """How long a rank waits in the group of a node's ranks, and in that of the checkpoints."""
    cpu = torch.device("cpu")
    with joined(cpu, timeout_minutes=7), node_of(2):
        groups = mesh_of(config, cpu).get_group(1), checkpoint.Writer(run, is_sharded=True)._group
        return [group._get_backend(cpu).options._timeout for group in groups]


def evaluate_run(run, results, batch_size, store=None):
    """Metrics of two tasks of a trained run; records below ``results``."""
    from silc_bench.evaluation.evaluate import evaluate
    from silc_bench.evaluation.settings import EvalSettings
    from silc_bench.models.load import load_model
    from silc_bench.system.cache import Store
    from silc_bench.tasks.selection import select

    model = load_model(str(run))
    kept = None if store is None else Store(store)
    tasks = select(["shapes/zeroshot", "shapes/knn"])
    settings = EvalSettings(
        limit=77, device="cpu", batch_size=batch_size, store=kept, existing="overwrite"
    )
    places = {"data_root": None, "results_dir": results}
    records = evaluate(model, tasks, settings, model_source="run", **places)
    return [record.metrics for record in records]


def evaluate_run_that_fails(run, results):
    """The error of an evaluation in which the last rank meets a damaged image."""
    from silc_bench.evaluation.features import SharedExtractor

    batches = SharedExtractor._batches

    def damaged(*which):
        if rank() == num_ranks() - 1:
            raise UserError("image 7 is damaged")
        return batches(*which)

    with mock.patch.object(SharedExtractor, "_batches", damaged):
        try:
            evaluate_run(run, results, 10)
        except Exception as error:
            return type(error).__name__, str(error)
    return None


# --- what the ranks say to each other -------------------------------------------------------------


class Said(TorchDispatchMode):
    """Bytes of whole tensors by kind of collective, of what goes over the wire inside."""

    KINDS = {  # noqa: RUF012
        "c10d.allreduce_.default": "all-reduce",
        "c10d._allgather_base_.default": "all-gather",
        "c10d.allgather_.default": "all-gather",
        "c10d._reduce_scatter_base_.default": "reduce-scatter",
    }

    def __init__(self):
        super().__init__()
        self.sizes = dict.fromkeys(self.KINDS.values(), 0)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function)
        if name in self.KINDS:
            # both sides of it, of which the larger is the whole; a list is one of parts
            sides = [tree_leaves(side) for side in args[:2]]
            sizes = [sum(x.nbytes for x in side if isinstance(x, torch.Tensor)) for side in sides]
            self.sizes[self.KINDS[name]] += max(sizes)
        return function(*args, **(kwargs or {}))


def said_in_a_step(configs, tokenizer, batches, of_node=None):
    """For each configuration what the second step says: DDP orders its buckets after the first."""
    answers = []
    with node_of(of_node):
        for config in configs:
            state = TrainState.create(config, tokenizer, torch.device("cpu"))
            train_step(state, rows_of(batches[0]))
            with Said() as said:
                train_step(state, rows_of(batches[1]))
            answers.append(said.sizes)
    return answers
