"""What the ranks of a GlooPool do with a small sharded state; one process does the same alone.

``TinyState`` stands for a run's state: layers that do not divide among the ranks, a parameter of
one number, an average, a centre that no rank shares.
"""

import errno
import json
import os
import shutil
from contextlib import contextmanager
from unittest import mock

import on_ranks
import torch
import torch.distributed as dist
from dying import die
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from torch.utils._pytree import tree_map_only

from silc_bench.errors import RunError, UserError
from silc_bench.system.processes import num_ranks, rank
from silc_bench.trainer.checkpoints import file as checkpoint
from silc_bench.trainer.checkpoints import sharded
from silc_bench.trainer.config.config import to_dict
from silc_bench.trainer.config.presets import shapes_tiny
from silc_bench.trainer.train import TrainState

ROWS = 12  # of a global batch


class TinyState:
    def __init__(self):
        self.is_sharded = dist.is_initialized()
        self.student = _module()
        self.average = _module()
        if self.is_sharded:
            for module in (self.student, self.average):
                for layer in module.layers:
                    fully_shard(layer)
                fully_shard(module)
        groups = [{"params": list(self.student.parameters()), "weight_decay": 0.1}]
        self.optimizer = torch.optim.AdamW(groups, lr=0.01)
        self.center = torch.zeros(4)
        self.step = 0

    def train(self):
        """One step; the loss of the global batch."""
        generator = torch.Generator().manual_seed(self.step)
        inputs = torch.randn(ROWS, 6, generator=generator)
        targets = torch.randn(ROWS, 40, generator=generator)
        count = num_ranks() if self.is_sharded else 1
        mine = slice(rank() * ROWS // count, (rank() + 1) * ROWS // count)
        if not self.is_sharded:
            mine = slice(0, ROWS)
        loss = (self.student(inputs[mine]) - targets[mine]).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.center.lerp_(targets.mean(0)[:4], 0.1)
        with torch.no_grad():
            torch._foreach_lerp_(
                [local(value) for value in self.average.parameters()],
                [local(value) for value in self.student.parameters()],
                0.1,
            )
        self.step += 1
        mean = loss.detach().clone()
        if self.is_sharded:
            dist.all_reduce(mean)
        return mean.item() / count

    def payload(self):
        return {
            "config": json.dumps(to_dict(shapes_tiny()) | {"checkpoint_keep_every": 0}),
            "tokenizer": "{}",
            "student": self.student.state_dict(),
            "teacher": {"center": self.center},
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "samples_seen": ROWS * self.step,
            "position": ROWS * self.step + 1,
        }

    def restore(self, payload):
        held = {
            "student": self.student.state_dict(),
            "teacher": {"center": self.center},
            "average": self.average.state_dict(),
        }
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        payload = checkpoint.fitted(payload, held, parameters)
        self.student.load_state_dict(payload["student"])
        self.average.load_state_dict(payload["average"])
        self.center.copy_(payload["teacher"]["center"])
        self.optimizer.load_state_dict(payload["optimizer"])
        self.step = payload["step"]
        assert payload["position"] == ROWS * self.step + 1


class _Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 37), nn.Linear(37, 40)])
        self.log_scale = nn.Parameter(torch.zeros(1))

    def forward(self, inputs):
        return self.layers[1](self.layers[0](inputs).tanh()) * self.log_scale.exp()


def _module():
    torch.manual_seed(0)
    return _Tiny()


def local(value):
    return value.to_local() if hasattr(value, "to_local") else value


def life(run, steps, *, resume=True):
    """So many steps, saved at the end: their losses, the step they began after, what was said."""
    state, said, begun = TinyState(), [], None
    if resume:
        path, payload, said = checkpoint.load_newest(run)
        state.restore(payload)
        begun = path.stem
    losses = [state.train() for _ in range(steps)]
    with checkpoint.Writer(run, state.is_sharded) as writer:
        writer.write(state.payload())
        state.train()  # what moves meanwhile is not saved
    return losses, begun, said


def bytes_read(run):
    """How many bytes of parts this rank reads to resume, and how many there are in all."""
    read = {"check": 0, "fill": 0}
    stage = "check"
    real = sharded._bytes_of

    def counted(folder, piece):
        content = real(folder, piece)
        read[stage] += len(content)
        return content

    with mock.patch.object(sharded, "_bytes_of", counted):
        state = TinyState()
        _, payload, _ = checkpoint.load_newest(run)
        entries = payload["parts"].entries.values()
        total = sum(piece.length for entry in entries for piece in entry.pieces)
        stage = "fill"
        state.restore(payload)
    return read, total


def told_of_a_full_disk(run, on):
    """What each rank is told where the disk of one is full at the second checkpoint."""
    state = TinyState()
    state.train()
    with checkpoint.Writer(run, is_sharded=True) as writer:
        writer.write(state.payload())
        writer.wait()
    state.train()
    try:
        with full_disk(on), checkpoint.Writer(run, is_sharded=True) as writer:
            writer.write(state.payload())
    except (RunError, UserError) as error:
        return type(error).__name__, str(error)
    return None


@contextmanager
def full_disk(on):
    """Of one rank."""
    create = FileSystem.create_stream

    @contextmanager
    def stream(self, path, mode):
        with create(self, path, mode) as file:
            if rank() == on and mode == "wb":
                file = mock.Mock(wraps=file)
                file.write.side_effect = OSError(errno.ENOSPC, "No space left on device")
            yield file

    with mock.patch.object(FileSystem, "create_stream", stream):
        yield


def killed_in(run, owner, name, number, on):
    """Three checkpoints, in which rank ``on`` dies by SIGKILL in call ``number`` of owner.name."""
    owner = {"torch": torch, "os": os, "shutil": shutil, "writer": sharded._Writer}[owner]
    real, calls = getattr(owner, name), []

    def replaced(*args, **kwargs):
        calls.append(name)
        if len(calls) == number and rank() == on:
            die()
        return real(*args, **kwargs)

    setattr(owner, name, replaced)
    state = TinyState()
    with checkpoint.Writer(run, is_sharded=True) as writer:
        for _ in range(3):
            state.train()
            writer.write(state.payload())
            writer.wait()


def spread(payload, mesh):
    """``payload`` with its weights and moments spread over the ranks; no rank waits."""

    def one(value):
        if not value.ndim:
            return value
        return distribute_tensor(value, mesh, [Shard(0)], src_data_rank=None)

    return tree_map_only(torch.Tensor, one, payload)


def save_spread(run, payload, score=None):
    with checkpoint.Writer(run, is_sharded=True) as writer:
        writer.write(spread(payload, init_device_mesh("cpu", (num_ranks(),))), score)


def run_spread(config, folder, **how):
    """``on_ranks.run`` with checkpoints of a sharded state; the steps are those of whole ones."""
    real, meshes = TrainState.payload, []

    def payload(state):
        if not meshes:  # the ranks meet where one is made
            meshes.append(init_device_mesh("cpu", (num_ranks(),)))
        return spread(real(state), meshes[0])

    with mock.patch.object(TrainState, "payload", payload):
        return on_ranks.run(config, folder, **how)


def kept_of_rows(run):
    """Moments of rows and columns, as Adafactor has them: after a way through a checkpoint.

    Those of rows are a sum over the ranks that nobody has added up.
    """
    state = TinyState()
    weight = state.student.layers[0].weight  # [37, 6]
    ones = distribute_tensor(torch.ones(37, 6), weight.device_mesh, weight.placements)
    moments = {"rows": ones.sum(0, keepdim=True), "columns": ones.sum(1, keepdim=True)}
    assert moments["rows"].placements[0].is_partial()
    payload = state.payload()
    payload["optimizer"] = {"state": {1: moments}, "param_groups": []}
    assert state.optimizer.param_groups[0]["params"][1] is weight
    with checkpoint.Writer(run, is_sharded=True) as writer:
        writer.write(payload)

    path, payload, _ = checkpoint.load_newest(run)
    parameters = state.optimizer.param_groups[0]["params"]
    held = {part: state.payload()[part] for part in ("student", "average")}
    kept = sharded.fitted(payload, held, parameters)["optimizer"]["state"][1]
    whole = sharded.fitted(checkpoint.load(path), held, parameters)["optimizer"]["state"][1]
    return {
        name: (str(kept[name].placements), kept[name].full_tensor(), whole[name].full_tensor())
        for name in kept
    }
