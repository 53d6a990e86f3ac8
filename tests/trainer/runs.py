"""Runs, comparisons and counts that several tests of the trainer need."""

import io
import json
from itertools import accumulate

import torch
from on_ranks import first_batches
from rich.console import Console
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from silc_bench.trainer.checkpoints import file as checkpoint
from silc_bench.trainer.loop import run_training
from silc_bench.trainer.silc.student import Student, init_weights
from silc_bench.trainer.train import TrainState, train_step

CPU = torch.device("cpu")
TIMING = {"images_per_second", "data_wait_share", "seconds_left", "mfu"}  # of a row of the log


def run(config, folder, *, resume=False, device=CPU, **options):
    """``run_training``: the path of the last checkpoint, and what was printed.

    An error has the latter too.
    """
    options |= {"resume": resume, "device": device}
    console = Console(file=io.StringIO(), width=200)
    try:
        path = run_training(config, folder, console=console, **options)
    except Exception as error:
        error.printed = console.file.getvalue()
        raise
    return path, console.file.getvalue()


def end_of(folder):
    """What the newest checkpoint of a run holds."""
    return checkpoint.load(checkpoint.find(folder))


def rows_of(folder):
    """The log without what a clock says."""
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: row[name] for name in row.keys() - TIMING} for row in rows]


def saved_in(folder):
    return [int(path.stem.removeprefix("step_")) for path in checkpoint.all_in(folder)]


def equal(one, other):
    """The same to the bit, in type and order, however nested."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and not differing(one, other)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return type(one) is type(other) and one == other


def differing(one, other):
    """Names of what is not equal to the bit, of two dictionaries or two modules."""
    if isinstance(one, torch.nn.Module):
        one, other = one.state_dict(), other.state_dict()
    return {name for name in one.keys() | other.keys() if not equal(one.get(name), other.get(name))}


def value_and_gradients(loss, *inputs, dtype=None):
    """Value and gradients of ``loss`` at copies of ``inputs``, as float64."""
    leaves = [x.detach().to(dtype or x.dtype).clone().requires_grad_() for x in inputs]
    value = loss(*leaves)
    gradients = torch.autograd.grad(value, leaves, materialize_grads=True)
    return [x.detach().double() for x in (value, *gradients)]


def close(mine, theirs, tolerance=1e-5, atol=None):
    torch.testing.assert_close(
        mine, theirs, rtol=tolerance, atol=tolerance if atol is None else atol
    )


class LargestTensor(TorchDispatchMode):
    """``numel`` of the largest tensor that any operation inside makes."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for leaf in torch.utils._pytree.tree_leaves(made):
            if isinstance(leaf, torch.Tensor):
                self.numel = max(self.numel, leaf.numel())
        return made


def peak_bytes(work):
    """The most bytes that ``work`` had on the CPU at once, what was there before not counted.

    Of the allocator, so that what a kernel needs inside counts too.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(accumulate(changes))


def saved_bytes(forward):
    """{place: bytes} of each storage that ``forward`` saves for its backward pass, and its result.

    The storages stay until the end, so that no place is used twice.
    """
    saved = {}

    def save(tensor):
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda x: x):
        result = forward()
    return {place: storage.nbytes() for place, storage in saved.items()}, result


def values_of(row):
    return {name: value.item() for name, value in row.items()}


def student_of(config, seed=0):
    student = Student(config)
    init_weights(student, seed)
    return student


def started(config, count, device=CPU):
    """The state a run starts with, and its first batches."""
    tokenizer, batches = first_batches(config, count)
    return TrainState.create(config, tokenizer, device), batches


def steps_of(config, count, device=CPU):
    """The state after ``count`` steps, and what each of them reported."""
    state, batches = started(config, count, device)
    return state, [values_of(train_step(state, batch)) for batch in batches]


# Ends of the names of what never decays.
SPARED = ("bias", "positions", "probe", "log_scale", "norm1.weight", "norm2.weight", "norm.weight")
SPARED += ("embedding.weight", "mask_token")
