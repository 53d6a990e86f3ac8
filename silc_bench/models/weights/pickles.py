"""Files of torch.save, read without executing anything and without believing their sizes.

Flow: the archive (sizes, names, checksums) -> a walk through its pickle in which everything named
is an inert stand-in, so that each storage can be compared with the bytes that are there ->
``torch.load(weights_only=True)``.

Why the walk: torch takes a storage's length from the pickle, and not every version compares it with
the record, so a forged file would be read beyond its end; and some of the names that
``weights_only`` allows take memory or time at will.

Everything here raises what the standard library raises (BadZipFile, UnpicklingError, ValueError
...); callers name the file.
"""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from pathlib import Path
from typing import IO, Any, ClassVar

import torch

from silc_bench.errors import first_line

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # first object of torch.save's format before 1.6
MAX_READS = 1_000_000  # of one pickle; a state dict takes about 50 a tensor
MAX_MEMBERS = 100_000
SMALL = 64 * 2**20  # bytes that any archive may unpack to
MAX_RATIO = 20  # of unpacked to packed beyond that; weights hardly shrink, bf16 kept as fp32 halves

# Bytes a value, by the storage class that the pickle names.
BYTE_STORAGES = ("CharStorage", "ByteStorage", "BoolStorage", "QInt8Storage", "QUInt8Storage")
ITEM_SIZES = {
    **dict.fromkeys(("DoubleStorage", "LongStorage", "ComplexFloatStorage"), 8),
    **dict.fromkeys(("FloatStorage", "IntStorage", "QInt32Storage"), 4),
    **dict.fromkeys(("HalfStorage", "BFloat16Storage", "ShortStorage"), 2),
    **dict.fromkeys((*BYTE_STORAGES, "UntypedStorage"), 1),
    "ComplexDoubleStorage": 16,
}

# Names outside torch that a state dict may call: they make plain values and nothing else.
PLAIN = {"collections.OrderedDict", "collections.Counter", "_codecs.encode"} | {
    f"{builtin}.{name}" for builtin in ("builtins", "__builtin__") for name in ("set", "complex")
}


def load_zip(path: Path) -> Any:
    """What torch.save (1.6 and later) wrote to ``path``: tensors on the CPU and plain values."""
    with zipfile.ZipFile(path) as archive:
        check_archive(archive, path.stat().st_size, may_deflate=False)

        # torch.load looks at no checksum: a flipped bit would become a weight
        broken = archive.testzip()
        if broken is not None:
            raise zipfile.BadZipFile(f"wrong checksum of {broken}")

        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1 or pickles[0].count("/") != 1:
            raise zipfile.BadZipFile("no data.pkl in the archive")

        # Storages lie in data/ beside the pickle, each under the key by which the pickle names it.
        folder = pickles[0].removesuffix("data.pkl") + "data/"
        sizes = {member.filename: member.file_size for member in archive.infolist()}
        walk = _Walk(io.BytesIO(archive.read(pickles[0])))

    walk.load()
    for key, (numel, item_size) in walk.storages.items():
        stored = sizes.get(folder + key, 0)
        if stored != numel * item_size:
            raise ValueError(
                f"storage {key!r} claims {numel * item_size:,} bytes, the archive holds {stored:,}"
            )
    return _load(path)


def load_legacy(path: Path) -> Any:
    """The same for torch.save's format before 1.6.

    There a file is five pickles, then each storage with its length before it.
    """
    with open(path, "rb") as file:
        magic = _Walk(file)
        if magic.load() != LEGACY_MAGIC:
            needs = f" that names {', '.join(sorted(magic.named)[:3])}" if magic.named else ""
            raise pickle.UnpicklingError(f"not written by torch.save: a pickle{needs}")

        _Walk(file).load()  # protocol
        _Walk(file).load()  # sizes of C's types
        payload = _Walk(file)
        payload.load()
        keys = _Walk(file).load()
        if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(payload.storages):
            raise ValueError("its list of storages is not that of its tensors")

        # Skip from storage to storage: seeking beyond the end raises nothing, so it is compared.
        end = path.stat().st_size
        for key in map(str, keys):
            numel, item_size = payload.storages[key]
            stated = int.from_bytes(file.read(8), "little", signed=True)
            if stated != numel or file.seek(numel * item_size, io.SEEK_CUR) > end:
                raise ValueError(f"storage {key!r} claims {numel:,} values, which are not there")
    return _load(path)


def check_archive(archive: zipfile.ZipFile, size: int, may_deflate: bool) -> None:
    """Refuse an archive of ``size`` bytes that claims more than they can account for.

    Nothing is unpacked before.

    Raises:
        BadZipFile: too many or too large members, encrypted or oddly compressed ones, two of one
            name.
    """
    members = archive.infolist()
    if len(members) > MAX_MEMBERS:
        raise zipfile.BadZipFile(f"{len(members):,} members")

    allowed = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) if may_deflate else (zipfile.ZIP_STORED,)
    for member in members:
        is_encrypted = member.flag_bits & 1
        if is_encrypted or member.compress_type not in allowed:
            raise zipfile.BadZipFile(
                f"{member.filename} is encrypted, or compressed in a way that no checkpoint is"
            )

    claimed = sum(member.file_size for member in members)
    most = max(SMALL, MAX_RATIO * size) if may_deflate else size
    if claimed > most:
        raise zipfile.BadZipFile(f"it claims to unpack to {claimed:,} bytes: a zip bomb")

    # torch finds members without regard to case, so it could read another one than was checked
    if len({member.filename.lower() for member in members}) != len(members):
        raise zipfile.BadZipFile("two members of one name")


def needed_global(error: pickle.UnpicklingError) -> str:
    """Why a pickle was refused, in a few words: the global that it needs, where there is one."""
    match = re.search(r"GLOBAL ([\w.<>]+)", str(error))
    if match:
        return f"its pickle needs GLOBAL {match[1]}"
    return first_line(error)


def _load(path: Path) -> Any:
    # By the handle: from a path torch may choose another reader by its suffix.
    with open(path, "rb") as file:
        return torch.load(file, map_location="cpu", weights_only=True)


class _Walk(pickle._Unpickler):
    """Goes through one pickle and builds nothing: what it names is inert.

    Collects ``storages`` and ``named``. The unpickler of pure Python, because its steps can be
    taken out and its reads counted.
    """

    # BYTEARRAY8 fills as much memory as it is told to, before it reads
    dispatch: ClassVar = {
        code: step
        for code, step in pickle._Unpickler.dispatch.items()
        if code != pickle.BYTEARRAY8[0]
    }

    def __init__(self, file: IO[bytes]):
        self._file = file
        self._reads = 0
        self.named: set[str] = set()
        self.storages: dict[str, tuple[int, int]] = {}  # key -> values, bytes a value
        super().__init__(self, encoding="latin1")

    def load(self) -> Any:
        try:
            return super().load()
        except KeyError as error:
            raise pickle.UnpicklingError(f"an unknown operation {error} in its pickle") from None

    def find_class(self, module: str, name: str) -> Any:
        self.named.add(f"{module}.{name}")
        return _Inert(f"{module}.{name}")

    def persistent_load(self, saved: Any) -> Any:
        """Called for each storage: ("storage", its class, key, device, number of values)."""
        if not isinstance(saved, tuple) or len(saved) not in (5, 6) or saved[0] != "storage":
            raise ValueError("its pickle refers to something that is no storage")

        _, kind, key, _, numel = saved[:5]
        item_size = None
        if isinstance(kind, _Inert):
            item_size = ITEM_SIZES.get(kind.named.rpartition(".")[2])

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
        return _Inert("storage")

    # The walk is also the file that the unpickler reads: a small file may ask for no more than a
    # few seconds of work.

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


class _Inert:
    """Stands for whatever a pickle names or makes.

    It can be called, filled and given a state, and does nothing.
    """

    named: str

    # A pickle may call __new__ itself, with any arguments; hence the care about the first.
    def __new__(cls, *args: Any, **kwargs: Any) -> _Inert:
        inert = object.__new__(_Inert)
        inert.named = args[0] if args and type(args[0]) is str else "made"
        return inert

    def __call__(self, *args: Any) -> _Inert:
        is_plain = self.named in PLAIN or self.named.startswith("torch.")

        # A storage made by a call would take memory at will; of the codecs, latin1 is the one that
        # a state dict uses.
        is_storage = self.named.endswith("Storage")
        is_odd_codec = self.named == "_codecs.encode" and args[1:] not in ((), ("latin1",))
        if not is_plain or is_storage or is_odd_codec:
            raise pickle.UnpicklingError(f"calls GLOBAL {self.named}")
        return _Inert()

    def _nothing(self, *args: Any) -> None:
        pass

    # the names by which a pickle gives an object its state and its items
    __setstate__ = __setitem__ = append = extend = add = _nothing
