"""A pickle gone through in which everything named is an inert stand-in, and no code is called.

Flow: ``Walk(file, read).load()`` -> what was saved: maps, lists and plain values as they are, each
tensor as a ``Stored`` that has read nothing yet, all else as a ``StandIn``. ``entries`` looks into
a map or a whole module, ``Stored.load`` reads one tensor.

What a pickle names is told apart by where it lives:

- torch's tensors and the maps of the standard library are understood;
- other things of the standard library that hold values (DATA) are stand-ins;
- what else of the standard library is called is refused: that is how a payload looks (os.system,
  builtins.eval, subprocess.Popen);
- whatever comes from other packages (argparse's kin, configurations, NumPy's numbers, modules of a
  program) is a stand-in.

Nothing of it would be executed either way. The refusal is there to be said.

A small file may ask for no more than a few seconds of work.
"""

from __future__ import annotations

import functools
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any, ClassVar

import torch
from torch import Tensor

MAX_READS = 1_000_000  # of one pickle; a state dict takes about 50 a tensor
MAX_MODULES = 20_000  # looked into; a module may be part of several, or of itself
MAX_NAME = 1000  # letters

# Bytes a value, by the storage class that the pickle names.
BYTE_STORAGES = ("CharStorage", "ByteStorage", "BoolStorage", "QInt8Storage", "QUInt8Storage")
ITEM_SIZES = {
    **dict.fromkeys(("DoubleStorage", "LongStorage", "ComplexFloatStorage"), 8),
    **dict.fromkeys(("FloatStorage", "IntStorage", "QInt32Storage"), 4),
    **dict.fromkeys(("HalfStorage", "BFloat16Storage", "ShortStorage"), 2),
    **dict.fromkeys((*BYTE_STORAGES, "UntypedStorage"), 1),
    "ComplexDoubleStorage": 16,
}
DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}

# Of the standard library: maps, and what else makes plain values and nothing else.
MAPS = {"collections.OrderedDict", "collections.defaultdict", "collections.Counter"}
BUILTINS = ("builtins", "__builtin__")  # now, and in Python 2, as pickles still name it
COPIES = {
    f"{module}.{name}"
    for module in ("copyreg", "copy_reg")
    for name in ("_reconstructor", "__newobj__")
}  # of a class, its first argument
STANDARD = sys.stdlib_module_names | {"__builtin__", "copy_reg"}
ENCODE = "_codecs.encode"
DATA = {
    *MAPS,
    *COPIES,
    ENCODE,
    "argparse.Namespace",
    "collections.deque",
    "datetime.date",
    "datetime.datetime",
    "datetime.time",
    "datetime.timedelta",
    "datetime.timezone",
    "decimal.Decimal",
    "fractions.Fraction",
    "functools.partial",
    "types.SimpleNamespace",
    "uuid.UUID",
    *(
        f"{module}.{kind}Path"
        for module in ("pathlib", "pathlib._local")
        for kind in ("", "Posix", "Windows", "PurePosix", "PureWindows")
    ),
    *(
        f"{builtin}.{name}"
        for builtin in BUILTINS
        for name in ("set", "frozenset", "complex", "slice", "range", "getattr")
    ),
}

# What torch's own reader (weights_only) builds beside storages and dtypes, or what it begins with.
VALUES_OF_TORCH = {
    "collections.OrderedDict",
    "collections.Counter",
    ENCODE,
    *(f"{builtin}.{name}" for builtin in BUILTINS for name in ("set", "complex")),
}
OF_TORCH = (
    "torch._utils._rebuild_",
    "torch._tensor._rebuild_from_type_v2",
    "torch.Size",
    "torch.device",
    "torch.nn.parameter.Parameter",
    "torch.Tensor",
    "torch.serialization._get_layout",
    "torch.per_",
)
TYPED = "torch._tensor._rebuild_from_type_v2"
PLAIN_TENSORS = ("torch.Tensor", "torch.nn.parameter.Parameter")
REBUILD = {"torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"}
PARAMETERS = {
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch.nn.parameter.Parameter",
}


@dataclass(frozen=True)
class Storage:
    """Bytes that belong to tensors, still in the file."""

    key: str
    dtype: torch.dtype | None  # None: of a kind that holds no weights
    read: Callable[[str], bytearray]


@dataclass(frozen=True)
class Stored:
    """A tensor, still in the file."""

    storage: Storage
    offset: int  # of its first value
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def load(self) -> Tensor:
        """The tensor. Raises RuntimeError where it claims more than its storage has."""
        dtype = self.storage.dtype
        assert dtype is not None
        data = self.storage.read(self.storage.key)
        values = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return values.as_strided(self.size, self.stride, self.offset)


class StandIn:
    """Stands for whatever a pickle names or makes.

    It can be called, filled and given a state, and does nothing.
    """

    named: str  # what a pickle names: "argparse.Namespace"; of what it makes ""
    kind: str  # of what it makes, the name of its class
    items: dict[Any, Any]
    state: Any

    # A pickle may call __new__ itself, with any arguments; hence the care about the first.
    def __new__(cls, *args: Any, **kwargs: Any) -> StandIn:
        inert = object.__new__(StandIn)
        inert.named = args[0] if cls is StandIn and args and type(args[0]) is str else ""
        inert.kind = cls.named if isinstance(cls, StandIn) else ""
        inert.items = {}
        inert.state = None
        return inert

    def __call__(self, *args: Any) -> Any:
        if not _may_call(self.named, args):
            raise pickle.UnpicklingError(f"calls GLOBAL {self.named or 'made'}")

        if self.named in REBUILD:
            return _stored(args) or self.made()
        if self.named in PARAMETERS and args:
            return args[0]
        if self.named in ("builtins.set", "__builtin__.set"):
            return set(*args)

        # a tensor of a class of its own is that class's object, unless the class is torch's
        if self.named == TYPED and len(args) > 2 and isinstance(args[0], StandIn):
            kind = getattr(args[1], "named", "")
            return args[0](*args[2]) if kind in PLAIN_TENSORS else args[1].made()

        made = self.made()
        if self.named in COPIES and args and isinstance(args[0], StandIn):
            made = args[0].made()
        filling = args[2:] if self.named in COPIES else args if self.named in MAPS else ()
        if filling and isinstance(filling[0], list | dict):
            made.items = dict(filling[0])
        return made

    def made(self) -> StandIn:
        """What calling it would make."""
        return StandIn.__new__(self)  # type: ignore[arg-type]

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value

    def _nothing(self, *args: Any) -> None:
        pass

    # the names by which a pickle gives an object more
    append = extend = add = _nothing


class Walk(pickle._Unpickler):
    """Goes through one pickle; what it names is inert.

    Collects ``storages`` and ``named``. The unpickler of pure Python, because its steps can be
    taken out and its reads counted.
    """

    proto: int  # of the pickle; the parent sets it

    # BYTEARRAY8 fills as much memory as it is told to, before it reads
    dispatch: ClassVar = {
        code: step
        for code, step in pickle._Unpickler.dispatch.items()
        if code != pickle.BYTEARRAY8[0]
    }

    def __init__(self, file: IO[bytes], read: Callable[[str], bytearray] | None = None):
        """``read``: the bytes of a storage by its key."""
        self._file = file
        # once each, because several tensors may be views of one
        self._read_storage = functools.cache(read) if read else None
        self._reads = 0
        self.proto = 0  # the pickle's own, once it is loaded
        self.named: set[str] = set()
        self.storages: dict[str, tuple[int, int]] = {}  # key -> values, bytes a value
        super().__init__(self, encoding="latin1")

    @property
    def exceeds_torch(self) -> bool:
        """Whether torch's own reader refuses it: what it names, or operations after protocol 2."""
        return self.proto > 2 or not all(map(_is_torchs, self.named))

    def load(self) -> Any:
        try:
            return super().load()
        except KeyError as error:
            raise pickle.UnpicklingError(f"an unknown operation {error} in its pickle") from None

    def find_class(self, module: str, name: str) -> Any:
        self.named.add(f"{module}.{name}")
        return StandIn(f"{module}.{name}")

    def persistent_load(self, saved: Any) -> Any:
        """Called for each storage: ("storage", its class, key, device, number of values)."""
        # the old format names the class of a whole module so, with its source
        is_class = isinstance(saved, tuple) and len(saved) == 4 and saved[0] == "module"
        if is_class and isinstance(saved[1], StandIn):
            return saved[1]
        if not isinstance(saved, tuple) or len(saved) not in (5, 6) or saved[0] != "storage":
            raise ValueError("its pickle refers to something that is no storage")

        _, kind, key, _, numel = saved[:5]
        word = kind.named.rpartition(".")[2] if isinstance(kind, StandIn) else ""
        item_size = ITEM_SIZES.get(word)

        # type(numel), because True is an int to isinstance
        is_sane = isinstance(key, str | int) and type(numel) is int and numel >= 0
        if item_size is None or not is_sane:
            raise ValueError(
                f"storage {str(key)[:40]!r} is of an unknown kind "
                f"or claims {str(numel)[:40]} values"
            )

        # Views share a storage, so a key may come twice; only its bytes must agree.
        first_numel, first_size = self.storages.setdefault(str(key), (numel, item_size))
        if first_numel * first_size != numel * item_size:
            raise ValueError(f"storage {key!r} has two sizes")

        # a view of a storage, as the old format may have it, is left to torch
        is_view = len(saved) == 6 and saved[5] is not None
        if is_view or self._read_storage is None:
            return StandIn("storage")
        return Storage(str(key), DTYPES.get(word), self._read_storage)

    # The walk is also the file that the unpickler reads, so that its reads can be counted.

    def read(self, size: int) -> bytes:
        self._count()
        return self._file.read(size)

    def readline(self) -> bytes:
        self._count()
        return self._file.readline()

    def _count(self) -> None:
        self._reads += 1
        if self._reads > MAX_READS:
            raise ValueError(f"its pickle takes more than {MAX_READS:,} steps")


def entries(value: Any) -> dict[Any, Any] | None:
    """What a map holds, by name, or a whole module: its weights. None of anything else."""
    if not isinstance(value, StandIn):
        return value if isinstance(value, dict) else None
    if value.kind in MAPS or value.items:
        return value.items
    return _module(value)


def _module(value: StandIn) -> dict[str, Any] | None:
    """The state dict of a torch module that was saved whole; None of anything else."""
    if not _is_module(value):
        return None

    weights: dict[str, Any] = {}
    waiting = [("", value)]
    for _ in range(MAX_MODULES):
        if not waiting:
            return weights
        prefix, module = waiting.pop()
        if len(prefix) > MAX_NAME:
            raise ValueError(f"modules within modules, as {prefix[:60]}")
        left_out = module.state.get("_non_persistent_buffers_set") or ()
        for part in ("_parameters", "_buffers"):
            for name, tensor in (entries(module.state.get(part)) or {}).items():
                if tensor is not None and name not in left_out:
                    weights[f"{prefix}{name}"] = tensor

        children = (entries(module.state["_modules"]) or {}).items()
        waiting += [(f"{prefix}{name}.", child) for name, child in children if _is_module(child)]
    raise ValueError(f"a module of more than {MAX_MODULES:,} parts")


def _is_module(value: Any) -> bool:
    state = value.state if isinstance(value, StandIn) else None
    return isinstance(state, dict) and {"_parameters", "_modules"} <= state.keys()


def _may_call(name: str, args: tuple) -> bool:
    home = name.partition(".")[0]
    # A storage made by a call would take memory at will; of the codecs, latin1 is the one that a
    # state dict uses.
    if home == "torch":
        return not name.endswith("Storage")
    if name == ENCODE:
        return args[1:] in ((), ("latin1",))
    return bool(name) and (name in DATA or home not in STANDARD)


def _stored(args: tuple) -> Stored | None:
    """The arguments by which torch rebuilds a tensor; None where it is no plain one."""
    storage, offset, size, stride = (*args, None, None, None, None)[:4]
    is_marked = len(args) > 6 and bool(args[6])  # conjugate, negative
    if not isinstance(storage, Storage) or storage.dtype is None or is_marked:
        return None

    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or not all(type(number) is int for number in numbers):
        return None
    return Stored(storage, offset, tuple(size), tuple(stride))


def _is_torchs(name: str) -> bool:
    if name in VALUES_OF_TORCH:
        return True
    home, _, word = name.rpartition(".")
    is_dtype = home == "torch" and isinstance(getattr(torch, word, None), torch.dtype)
    is_storage = home in ("torch", "torch.storage") and word.endswith("Storage")
    return is_dtype or is_storage or name.startswith(OF_TORCH)
