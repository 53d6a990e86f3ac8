"""Files damaged, forged, or something else are refused soon, and nothing in them is executed."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import pickle
import struct
import time
import warnings
import zipfile

import numpy as np
import pytest
import torch
from refusals import refused
from torch import nn

from silc_bench.errors import UserError
from silc_bench.models import load as raw
from silc_bench.models.load import load_model
from silc_bench.models.weights import stand_ins
from silc_bench.models.weights.read import read_weights
from silc_bench.trainer.checkpoints import model as native

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.filterwarnings("ignore:Validating sparse tensor"),
]
CANARY = "SILC_BENCH_CANARY"
GOOD = {"a.weight": torch.arange(12.0).reshape(3, 4), "b.bias": torch.ones(5)}
SECONDS = 10  # of this process: what else the machine does is not the file's fault
LOADERS = native, raw  # imported beforehand: what is timed is the file, not torch


class Called:
    """Unpickling it calls a function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


# Each makes the file that the environment names.
SHELL = Called(os.system, f'touch "${CANARY}"')
NESTED = Called(pickle.loads, pickle.dumps(SHELL))  # the outer one names only the unpickler


def torch_file(content, zipped=True):
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def zip_file(members, compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", compression) as archive:
        warnings.simplefilter("ignore")  # two members of one name are meant
        for name, data in members:
            archive.writestr(name, data)
    return file.getvalue()


def flipped(data, marker):
    place = data.index(marker) + len(marker) // 2
    return data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]


def forged(claimed, numel=1):
    """torch.save's file whose pickle claims ``claimed`` values in a storage of one.

    Its tensor has ``numel``.
    """
    number = pickle.dumps(claimed, 2)[2:-1]
    size = pickle.dumps(numel, 2)[2:-1]
    text = [b"X" + struct.pack("<I", len(word)) + word for word in (b"w", b"storage", b"0", b"cpu")]
    storage = b"(" + text[1] + b"ctorch\nFloatStorage\n" + text[2] + text[3] + number + b"tQ"
    rebuilt = (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\0" + size + b"\x85K\x01\x85\x89"
    )
    data = b"\x80\x02}" + text[0] + rebuilt + b"ccollections\nOrderedDict\n)RtRs."
    return zip_file(
        [
            ("x/data.pkl", data),
            ("x/byteorder", "little"),
            ("x/data/0", b"\0" * 4),
            ("x/version", "3\n"),
        ]
    )


def legacy_forged():
    """The same before torch 1.6: the length before the storage is not that of the pickle."""
    data = torch_file(GOOD, zipped=False)
    place = data.rindex(struct.pack("<q", 12) + GOOD["a.weight"].numpy().tobytes())
    return data[:place] + struct.pack("<q", 2**40) + data[place + 8 :]


def safetensors(data=b"\0" * 8, **changes):
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}
    text = json.dumps({"w": entry}).encode()
    return struct.pack("<Q", len(text)) + text + data


def npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def npy(shape):
    """One member of an npz with a header of our own."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode() + b"\n"
    header = b"\x93NUMPY\1\0" + struct.pack("<H", len(text))
    return zip_file([("w.npy", header + text + b"\0" * 16)])


def pickled(data):
    return zip_file([("x/data.pkl", data), ("x/version", "3\n")])


BOMB = np.zeros(80 * 2**20 // 8).tobytes()
NAN = torch.tensor([1.0, float("nan")])
OF_A_RUN = {"model": GOOD, "args": argparse.Namespace(lr=np.float64(1.0)), "net": nn.Linear(1, 1)}
WHOLE, OLD, ARRAYS = torch_file(GOOD), torch_file(GOOD, zipped=False), npz(w=np.arange(9.0))

# Name of the file -> its bytes. Of OURS the sentence is ours, of THEIRS a library's.
OURS = {
    # pickles that would do something
    "shell.pt": torch_file(SHELL),
    "shell_inside.pt": torch_file({"state_dict": GOOD, "x": SHELL}),
    "shell_legacy.pth": torch_file({**GOOD, "x": SHELL}, zipped=False),
    "nested.ckpt": torch_file(NESTED),
    "plain.pkl": pickle.dumps(SHELL),
    "memory.pt": torch_file({"w": Called(bytearray, 10**11)}),
    "codec.pt": torch_file({"w": Called(__import__("_codecs").encode, "a" * 10**6, "idna")}),
    "scripted.pt": zip_file([("x/constants.pkl", b""), ("x/data.pkl", b"")]),
    # pickles that lie about sizes
    "claims_more.pt": forged(10**6, 10**6),
    "claims_less_than_none.pt": forged(-1),
    "many_steps.pt": pickled(b"\x80\x02]" + b"Na" * (10 * stand_ins.MAX_READS) + b"."),
    # archives
    "bomb.pt": zip_file([("x/data.pkl", BOMB)], zipfile.ZIP_DEFLATED),
    "bomb.npz": zip_file([("w.npy", BOMB)], zipfile.ZIP_DEFLATED),
    "twice.pt": zip_file([("x/data.pkl", b"."), ("x/data.pkl", b".")]),
    "words.zip": zip_file([("readme.txt", "hello")]),
    "quantised.safetensors": safetensors(dtype="F8_E4M3", shape=[8]),
    # npz
    "text.npz": npz(w=np.array(["a"])),
    "less.npz": npy((3,)),
    # tensors that are no weights
    "nan.pt": torch_file({**GOOD, "c": NAN}),
    "integers.pt": torch_file({"a.weight": torch.ones(3, 3).to(torch.int8), "b": torch.ones(2)}),
    "counters.pt": torch_file({"steps": torch.tensor(3)}),
    "complex.pt": torch_file({"a": torch.ones(2, dtype=torch.complex64)}),
    "sparse.pt": torch_file({"a": torch.eye(3).to_sparse()}),
    "tensor.pt": torch_file(torch.ones(3)),
    "words.pt": torch_file({"epoch": 3, "lr": 0.1}),
    "numbers_for_names.pt": torch_file({0: torch.ones(2)}),
    "nothing.pt": torch_file({}),
    # something else
    "empty.pt": b"",
    "page.bin": b"<!DOCTYPE html>\n<html><body>Sign in to download</body></html>",
}
THEIRS = {
    "beyond_its_storage.pt": forged(1, 10**12),
    "legacy_length.pt": legacy_forged(),
    "flipped.pt": flipped(WHOLE, GOOD["a.weight"].numpy().tobytes()),
    "flipped.npz": flipped(ARRAYS, np.arange(9.0).tobytes()),
    "header.safetensors": struct.pack("<Q", 2**62) + b'{"w":1}',
    "longer.safetensors": safetensors(data=b"\0" * 16),
    "petabytes.safetensors": safetensors(shape=[2**50], data_offsets=[0, 2**52]),
    "objects.npz": npz(w=np.array([SHELL], dtype=object)),
    "petabytes.npz": npy((2**50,)),
    "code.npz": npy("__import__('os').system('x')"),
    "expanded.pt": torch_file({"a": torch.ones(1).expand(10**9)}),
}
HOSTILE = OURS | THEIRS


@pytest.fixture(autouse=True)
def canary(tmp_path, monkeypatch):
    """Fails a test in which anything was executed."""
    path = tmp_path / "canary"
    monkeypatch.setenv(CANARY, str(path))
    yield path
    assert not path.exists(), "a file's code was executed"


def refuse(path, is_kept=True, about=None):
    """``load_model`` answers with one line about ``path``, soon."""
    start = time.process_time()
    with refused(about=about or path, is_kept=is_kept) as caught:
        load_model(str(path))
    assert time.process_time() - start < SECONDS
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("name", HOSTILE)
def test_it_is_refused_in_one_line(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(HOSTILE[name])
    refuse(path, is_kept=name in OURS)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_of_a_run_that_diverged_an_earlier_checkpoint_is_asked_for(tmp_path, dtype, value):
    path = tmp_path / "last.pt"
    torch.save({**GOOD, "c": torch.tensor([1.0, value], dtype=dtype)}, path)
    with refused(about=path) as caught:
        read_weights(path)
    assert "earlier checkpoint" in caught.value.fix


@pytest.mark.parametrize("name", ["shell.pt", "plain.pkl", "shell_legacy.pth", "nested.ckpt"])
def test_the_payloads_are_not_harmless(tmp_path, canary, name):
    """The same bytes, read as a trusting program reads them."""
    path = tmp_path / name
    path.write_bytes(HOSTILE[name])
    if name.startswith("plain"):
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert canary.exists()
    canary.unlink()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("content", [GOOD, OF_A_RUN])
def test_a_changed_pickle_is_read_or_refused_and_never_executed(tmp_path, zipped, content):
    """One byte of it is another, and its checksum is right."""
    data = torch_file(content, zipped)
    members = [("", data)]
    if zipped:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(name, archive.read(name)) for name in archive.namelist()]

    # in the old format five pickles begin the file
    (name, first), *others = members
    random = np.random.default_rng(0)
    for _ in range(200):
        changed = bytearray(first)
        changed[random.integers(min(len(first), 1500))] = random.integers(256)
        whole = zip_file([(name, bytes(changed)), *others]) if zipped else bytes(changed)
        (tmp_path / "x.pt").write_bytes(whole)
        with contextlib.suppress(UserError):
            read_weights(tmp_path / "x.pt")


@pytest.mark.parametrize("data", [WHOLE, OLD, torch_file(OF_A_RUN), safetensors(), ARRAYS])
def test_a_file_cut_anywhere_is_refused(tmp_path, data):
    path = tmp_path / "x"
    lengths = np.random.default_rng(0).integers(1, len(data), 25)
    for length in {1, 2, 3, 9, len(data) - 1, *lengths.tolist()}:
        path.write_bytes(data[:length])
        refuse(path, is_kept=False)


# --- folders, links and what else a path can be ---------------------------------------------------

SHARD = "model-1.safetensors"


@pytest.mark.parametrize(
    "index",
    [
        {"w": SHARD, "v": "model-2.safetensors"},
        {"w": SHARD, "v": SHARD},
        {"w": "../secret.safetensors"},
        {"w": "/etc/passwd"},
        {"w": 3},
        "{",
        pytest.param("[" * 100_000, id="index6"),
    ],
)
def test_an_index_that_does_not_fit_its_shards(tmp_path, index):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(index if isinstance(index, str) else json.dumps({"weight_map": index}))
    for shard in (tmp_path / SHARD, tmp_path.parent / "secret.safetensors"):
        shard.write_bytes(safetensors())
    refuse(tmp_path, about=path)


def test_a_shard_is_read_as_carefully_as_a_file(tmp_path):
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"w": "shard.bin"}}))
    (tmp_path / "shard.bin").write_bytes(HOSTILE["shell.pt"])
    refuse(tmp_path, about=tmp_path / "shard.bin")


def a_link_to_itself(path):
    path.symlink_to(path)


@pytest.mark.parametrize("make", [os.mkdir, a_link_to_itself, os.mkfifo])
def test_what_else_a_path_can_be(tmp_path, make):
    """A pipe is not waited for."""
    make(tmp_path / "x.pt")
    with refused(about=tmp_path / "x.pt"):
        read_weights(tmp_path / "x.pt")
