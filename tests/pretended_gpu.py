"""A GPU that is only pretended, to try what runs on a GPU without one.

Its tensors say ``cuda:0`` and are computed on the CPU.

    with pretended_gpu() as gpu:
        ...                    # anything that computes on torch.device("cuda")
    gpu.waits                  # where the host would have waited for the device, with its line

Three things are seen that a run on a CPU hides: an operation that mixes tensors of both
(AssertionError, as a GPU would refuse it), the branches for a GPU (their numbers are real), and
where the host waits. Not seen: speed, bf16, compilation, and the kernels of a GPU themselves.
"""

import linecache
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).parents[1]
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
# an index on the CPU is taken over, which waits
MAY_MIX = {"copy_", "_foreach_copy_", "index", "index_put_"}
# their answer is the host's
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal"}
to, group_tensors = nn.Module.to, torch._C._group_tensors_by_device_and_dtype


class OnGpu(Tensor):
    """``inner`` is on the CPU.

    To torch's own code in C++ it is on the device "meta", which needs no driver.
    """

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device("meta"),
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} of a pretended GPU's tensor after the GPU is gone")

    @property
    def device(self):
        return CUDA

    @property
    def is_cuda(self):
        return True

    @property
    def is_meta(self):
        return False


class Gpu(TorchDispatchMode):
    """Computes on ``inner``, and writes down the lines where the host would wait."""

    def __init__(self):
        super().__init__()
        self.waits = []
        self.is_busy = False  # for those who ask without waiting
        self.can_lock = True
        self.locked = {}  # address: bytes of memory that is page-locked where it lies

    def is_pinned(self, tensor):
        start = tensor.data_ptr()
        is_locked = any(first <= start < first + size for first, size in self.locked.items())
        return is_locked or getattr(tensor, "pretends_pinned", False)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        ours = []
        others = []

        def inner(value):
            if isinstance(value, OnGpu):
                ours.append(value)
                return value.inner
            if isinstance(value, Tensor):
                others.append(value)
            return value

        inner_args, inner_kwargs = (
            _mapped(inner, args),
            {name: _mapped(inner, value) for name, value in kwargs.items()},
        )
        target = kwargs.get("device")
        goes_here = target is not None and torch.device(target).type in ("cuda", "meta")
        if not ours and not goes_here:
            return func(*args, **kwargs)
        name = func.overloadpacket.__name__
        # one number may come from the CPU: it is passed to the kernel
        others = [t for t in others if t.ndim > 0]
        assert not (ours and others) or name in MAY_MIX, (
            f"{name} mixes tensors of CPU and GPU, at {_line()}"
        )
        goes_away = target is not None and torch.device(target).type == "cpu"
        is_async = bool(kwargs.get("non_blocking") or (name == "copy_" and args[2:] and args[2]))
        is_pinned = all(map(self.is_pinned, others))
        is_copy = (name == "_to_copy" and (goes_away or not ours)) or (
            name in MAY_MIX and bool(others)
        )
        indices = args[1] if name in ("index", "index_put_") else ()
        by_mask = any(
            isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in indices
        )
        if name in WAITS or by_mask or (is_copy and not (is_async and is_pinned)):
            self.waits.append(f"{name} at {_line()}")
        if target is not None:
            inner_kwargs["device"] = CPU
        out = func(*inner_args, **inner_kwargs)
        if goes_away:
            return out
        known = {id(t.inner): t for t in ours}  # of an operation in place

        def outer(value):
            if not isinstance(value, Tensor):
                return value
            return known[id(value)] if id(value) in known else OnGpu(value)

        return _mapped(outer, out)


class Event:
    """A torch.cuda.Event of a GPU that is always done."""

    def __init__(self, enable_timing=False):
        self.is_recorded = self.is_waited_for = False

    def record(self):
        self.is_recorded = True

    def synchronize(self):
        assert self.is_recorded, "nothing was recorded"
        self.is_waited_for = True

    def elapsed_time(self, later):
        assert self.is_recorded, "nothing was recorded"
        assert later.is_waited_for, "the later event may not have happened yet"
        return 0.0


HAS = SimpleNamespace(total_memory=80 * 2**30)


@contextmanager
def pretended_gpu():
    def pinned(tensor):
        made = tensor.clone()
        made.pretends_pinned = True
        return made

    def record_event():
        event = Event()
        event.record()
        event.query = lambda: not gpu.is_busy
        return event

    def register(address, size, flags):
        if gpu.can_lock:
            assert address not in gpu.locked
            gpu.locked[address] = size
        return 0 if gpu.can_lock else 801

    cudart = SimpleNamespace(
        cudaError=SimpleNamespace(success=0),
        cudaGetErrorString=lambda error: "operation not supported",
        cudaHostRegister=register,
        cudaHostUnregister=lambda address: gpu.locked.pop(address),
    )
    stream = SimpleNamespace(record_event=record_event)

    def grouped(*args):
        return {
            (CUDA if d.type == "meta" else d, dtype): tensors
            for (d, dtype), tensors in group_tensors(*args).items()
        }

    def moved(module, device):
        kind = torch.device(device).type
        if all(tensor.device.type == kind for tensor in (*module.parameters(), *module.buffers())):
            return module
        # Else torch would put a tensor of ours into one of its own.
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        try:
            return to(module, device)
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(False)

    with (
        mock.patch.object(nn.Module, "to", moved),
        mock.patch.object(torch.cuda, "_lazy_init"),
        mock.patch.object(torch.cuda, "is_initialized", return_value=True),
        mock.patch.object(torch.cuda, "is_bf16_supported", return_value=False),
        mock.patch.object(torch.cuda, "synchronize"),
        mock.patch.object(torch.cuda, "cudart", return_value=cudart),
        mock.patch.object(torch.cuda, "current_stream", return_value=stream),
        mock.patch.object(torch.cuda, "get_device_name", return_value="pretended GPU"),
        mock.patch.object(torch.cuda, "get_device_properties", return_value=HAS),
        mock.patch.object(torch.cuda, "Event", Event),
        mock.patch.object(Tensor, "pin_memory", pinned),
        mock.patch.object(torch._C, "_group_tensors_by_device_and_dtype", grouped),
        sdpa_kernel(SDPBackend.MATH),
        Gpu() as gpu,
    ):
        yield gpu


def _mapped(function, value):
    """``function`` of all that an operator takes or gives, in lists and tuples too.

    torch's tree_map takes a lot longer.
    """
    if isinstance(value, list | tuple):
        return type(value)([_mapped(function, part) for part in value])
    return function(value)


def _line():
    """The innermost of ours that is running."""
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT) and "tests" not in path.parts and ".venv" not in path.parts:
            line = linecache.getline(str(path), frame.f_lineno).strip()
            return f"{path.relative_to(ROOT)}:{frame.f_lineno} {line}"
        frame = frame.f_back
    return "no line of ours"
