"""Files damaged, forged, or something else: a line names file and reason; nothing is executed.

It comes quickly.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from silc_bench.cli.app import app
from silc_bench.errors import UserError
from silc_bench.models import load as raw
from silc_bench.models.load import load_model
from silc_bench.models.weights import pickles
from silc_bench.trainer.checkpoints import model as native

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.filterwarnings("ignore:Validating sparse tensor"),
]
CANARY = "SILC_BENCH_CANARY"
GOOD = {"a.weight": torch.arange(12.0).reshape(3, 4), "b.bias": torch.ones(5)}
SECONDS = 10  # of this process: what else the machine does is not the file's fault
LOADERS = native, raw  # imported beforehand: what is timed is the file, not torch


class Shell:
    """Unpickling it makes the file that the environment names."""

    def __reduce__(self):
        return os.system, (f'touch "${CANARY}"',)


class Evaluated:
    def __reduce__(self):
        return eval, (f"open(__import__('os').environ['{CANARY}'], 'w')",)


class Nested:
    """A pickle in a pickle: the outer one names only the unpickler."""

    def __reduce__(self):
        return pickle.loads, (pickle.dumps(Shell()),)


class Called:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


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


def scripted():
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), file)
    return file.getvalue()


def flipped(data, marker):
    place = data.index(marker) + len(marker) // 2
    return data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]


def forged(claimed, numel=1, real=b"\0" * 4):
    """torch.save's file whose pickle claims ``claimed`` values in a storage of ``real`` bytes.

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
        [("x/data.pkl", data), ("x/byteorder", "little"), ("x/data/0", real), ("x/version", "3\n")]
    )


def legacy_forged():
    """The same before torch 1.6: the length before the storage is not that of the pickle."""
    data = torch_file(GOOD, zipped=False)
    length = struct.pack("<q", 12)
    place = data.rindex(length + GOOD["a.weight"].numpy().tobytes())
    return data[:place] + struct.pack("<q", 2**40) + data[place + 8 :]


def safetensors(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def one_tensor(data=b"\0" * 8, **changes):
    return safetensors(
        {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}, data
    )


def two_tensors(second):
    return safetensors(
        {name: {"dtype": "F32", "shape": [2], "data_offsets": at} for name, at in second.items()},
        b"\0" * 16,
    )


def npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def npy(shape, descr="<f4", data=b"\0" * 16, version=b"\1\0"):
    """One member of an npz with a header of our own."""
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}".encode() + b"\n"
    return zip_file(
        [("w.npy", b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text + data)]
    )


def image():
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "png")
    return file.getvalue()


def tarred():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        entry = tarfile.TarInfo("model.pt")
        entry.size = 4
        archive.addfile(entry, io.BytesIO(b"abcd"))
    return file.getvalue()


def many_steps():
    data = b"\x80\x02]" + b"Na" * (10 * pickles.MAX_READS) + b"."
    return zip_file([("x/data.pkl", data), ("x/version", "3\n")])


BOMB = np.zeros(80 * 2**20 // 8)
PAGE = "<!DOCTYPE html>\n<html><body>Sign in to download</body></html>"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 605000000\n"
NAN, INFINITE = torch.tensor([1.0, float("nan")]), torch.tensor([float("inf"), 1.0, 2.0]).half()
WHOLE, OLD, ARRAYS = torch_file(GOOD), torch_file(GOOD, zipped=False), npz(w=np.arange(9.0))

HOSTILE = {  # name of the file: (its bytes, words of the answer)
    # pickles that would do something
    "shell.pt": (torch_file(Shell()), r"nothing was executed: .*GLOBAL posix\.system"),
    "shell_inside.pt": (
        torch_file({"state_dict": GOOD, "x": Shell()}),
        r"nothing was executed: .*GLOBAL posix\.system",
    ),
    "shell_key.pt": (torch_file({**GOOD, "x": [Shell()]}), r"GLOBAL posix\.system"),
    "shell_legacy.pth": (torch_file({**GOOD, "x": Shell()}, zipped=False), r"GLOBAL posix\.system"),
    "eval.bin": (torch_file(Evaluated()), r"GLOBAL __builtin__\.eval"),
    "nested.ckpt": (torch_file(Nested()), r"GLOBAL _?pickle\.loads"),
    "plain.pkl": (pickle.dumps(Shell()), r"nothing was executed: .*needs GLOBAL posix\.system"),
    "plain_2.pt": (pickle.dumps(Shell(), 2), r"needs GLOBAL posix\.system"),
    "plain_0.pt": (pickle.dumps(Shell(), 0), r"names GLOBAL posix\.system"),
    "of_another_program.pkl": (
        pickle.dumps([print]),
        "not written by torch.save: a pickle that names builtins.print",
    ),
    "renamed.safetensors": (torch_file(Shell()), r"GLOBAL posix\.system"),
    "module.pt": (torch_file(torch.nn.Linear(2, 2)), r"GLOBAL torch\.nn\.modules\.linear\.Linear"),
    "memory.pt": (torch_file({"w": Called(bytearray, 10**11)}), r"GLOBAL __builtin__\.bytearray"),
    "codec.pt": (
        torch_file({"w": Called(__import__("_codecs").encode, "a" * 10**6, "idna")}),
        r"GLOBAL _codecs\.encode",
    ),
    "scripted.pt": (scripted(), r"a TorchScript program .*state_dict\(\)"),
    # pickles that lie about sizes
    "claims_more.pt": (
        forged(10**6, 10**6),
        r"storage '0' claims 4,000,000 bytes, the archive holds 4",
    ),
    "claims_all.pt": (forged(10**15, 10**15), "the archive holds 4"),
    "claims_less_than_none.pt": (forged(-1), "claims -1 values"),
    "beyond_its_storage.pt": (forged(1, 10**12), "truncated or damaged"),
    "negative_size.pt": (forged(1, -3), "truncated or damaged"),
    "no_record.pt": (forged(1, real=b""), "the archive holds 0"),
    "legacy_length.pt": (legacy_forged(), "which are not there"),
    "many_steps.pt": (many_steps(), "takes more than 1,000,000 steps"),
    # archives
    "cut.pt": (WHOLE[: len(WHOLE) // 2], "truncated or damaged zip"),
    "cut_legacy.pt": (OLD[:-9], "truncated or damaged"),
    "cut_early.pt": (OLD[:40], "truncated or damaged"),
    "flipped.pt": (flipped(WHOLE, GOOD["a.weight"].numpy().tobytes()), "wrong checksum"),
    "flipped.npz": (flipped(ARRAYS, np.arange(9.0).tobytes()), "Bad CRC-32"),
    "bomb.pt": (
        zip_file([("x/data.pkl", BOMB.tobytes())], zipfile.ZIP_DEFLATED),
        "compressed in a way that no checkpoint is",
    ),
    "bomb.npz": (zip_file([("w.npy", BOMB.tobytes())], zipfile.ZIP_DEFLATED), "a zip bomb"),
    "twice.pt": (zip_file([("x/data.pkl", b"."), ("x/data.pkl", b".")]), "two members of one name"),
    "words.zip": (
        zip_file([("readme.txt", "hello")]),
        "a zip archive that is no checkpoint .*readme.txt",
    ),
    "none.zip": (zip_file([]), "it holds nothing"),
    # safetensors
    "header.safetensors": (
        struct.pack("<Q", 2**62) + b'{"w":1}',
        "header claims 4,611,686,018,427,387,904 bytes",
    ),
    "no_json.safetensors": (safetensors(b'{"w": '), "header is not JSON"),
    "deep.safetensors": (safetensors(b'{"w":' + b"[" * 10**6), "header is not JSON"),
    "twice.safetensors": (safetensors(b'{"w": 1, "w": 2}'), "names something twice"),
    "no_entry.safetensors": (safetensors({"w": 3}), "not described by dtype"),
    "beyond.safetensors": (one_tensor(data_offsets=[8, 16]), "begins at byte 8"),
    "backwards.safetensors": (one_tensor(data_offsets=[8, 0]), "has shape"),
    "negative.safetensors": (one_tensor(shape=[-2, -1]), "whole and not negative"),
    "petabytes.safetensors": (one_tensor(shape=[2**50], data_offsets=[0, 2**52]), "truncated"),
    "fraction.safetensors": (one_tensor(shape=[2.0]), "whole and not negative"),
    "other_shape.safetensors": (one_tensor(shape=[3]), "has shape"),
    "dtype.safetensors": (one_tensor(dtype="F7"), "dtype 'F7'"),
    "overlap.safetensors": (two_tensors({"a": [0, 8], "b": [4, 12]}), "overlapping tensors"),
    "gap.safetensors": (two_tensors({"a": [0, 8]}), "truncated or longer"),
    "cut.safetensors": (one_tensor(data=b"\0" * 5), "truncated"),
    # npz
    "objects.npz": (npz(w=np.array([Shell()], dtype=object)), "an array of Python objects"),
    "text.npz": (npz(w=np.array(["a"])), "only numbers are read"),
    "cut.npz": (ARRAYS[:-30], "truncated or damaged zip"),
    "petabytes.npz": (npy((2**50,)), "claims 4,503,599,627,370,496 bytes"),
    "negative.npz": (npy((-4,)), "has shape"),
    "structured.npz": (npy((2,), [("a", "<f4"), ("b", "<f4")]), "only numbers are read"),
    "code.npz": (npy("__import__('os').system('x')"), "truncated or damaged"),
    "version.npz": (npy((4,), version=b"\7\0"), "truncated or damaged"),
    # tensors that are no weights
    "nan.pt": (torch_file({**GOOD, "c": NAN}), r"c is not finite \(1 of 2"),
    "infinite.pt": (torch_file({"c": INFINITE}), r"c is not finite \(1 of 3"),
    "nan.npz": (npz(**{"params/t": np.array([np.nan])}), "params/t is not finite"),
    "integers.pt": (
        torch_file({"a.weight": torch.ones(3, 3).to(torch.int8), "b": torch.ones(2)}),
        "a.weight is of int8",
    ),
    "counters.pt": (torch_file({"steps": torch.tensor(3)}), "none is of a floating-point dtype"),
    "complex.pt": (torch_file({"a": torch.ones(2, dtype=torch.complex64)}), "a is of complex64"),
    "sparse.pt": (torch_file({"a": torch.eye(3).to_sparse()}), "not a plain tensor"),
    "expanded.pt": (torch_file({"a": torch.ones(1).expand(10**9)}), "claims the shape"),
    "tensor.pt": (torch_file(torch.ones(3)), "a saved Tensor and no state dict"),
    "words.pt": (torch_file({"epoch": 3, "lr": 0.1}), "'epoch': int, 'lr': float"),
    "numbers_for_names.pt": (torch_file({0: torch.ones(2)}), "no state dict"),
    "nothing.pt": (torch_file({}), "no weights among its 0 tensors"),
    # something else
    "empty.pt": (b"", "an empty file"),
    "text.pt": (b"these are not weights\n", "a text file that begins 'these are not weights'"),
    "page.bin": (PAGE.encode(), "a web page"),
    "pointer.safetensors": (POINTER.encode(), "a git-lfs pointer"),
    "config.pt": (json.dumps({"width": 3}).encode(), "a JSON text"),
    "archive.pt": (tarred(), "a tar archive"),
    "packed.pt": (gzip.compress(WHOLE), "a gzip file"),
    "picture.pt": (image(), "a PNG picture"),
    "keras.h5": (b"\x89HDF\r\n\x1a\n" + b"\0" * 50, "an HDF5 file"),
    "zeros.pt": (b"\0" * 5000, "nothing but zeros"),
    "random.pt": (np.random.default_rng(0).bytes(5000), "of an unknown kind"),
}


@pytest.fixture(autouse=True)
def canary(tmp_path, monkeypatch):
    """Fails a test in which anything was executed."""
    path = tmp_path / "canary"
    monkeypatch.setenv(CANARY, str(path))
    yield path
    assert not path.exists(), "a file's code was executed"


def refused(path, words):
    """``load_model`` answers with one line about ``path``, soon."""
    start = time.process_time()
    with pytest.raises(UserError, match=words) as caught:
        load_model(str(path))
    assert time.process_time() - start < SECONDS
    message = str(caught.value)
    assert message.startswith(f"checkpoint {path}")
    assert "\n" not in message
    assert len(message) < 700
    return message


@pytest.mark.parametrize("name", HOSTILE)
def test_it_is_refused_in_one_line(tmp_path, name):
    data, words = HOSTILE[name]
    path = tmp_path / name
    path.write_bytes(data)
    assert "expected weights as" in refused(path, words)


@pytest.mark.parametrize(
    "name", ["shell.pt", "plain.pkl", "plain_0.pt", "shell_legacy.pth", "nested.ckpt", "eval.bin"]
)
def test_the_payloads_are_not_harmless(tmp_path, canary, name):
    """The same bytes, read as a trusting program reads them."""
    path = tmp_path / name
    path.write_bytes(HOSTILE[name][0])
    if name.startswith("plain"):
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert canary.exists()
    canary.unlink()


@pytest.mark.parametrize(
    "name", ["shell.pt", "empty.pt", "bomb.npz", "overlap.safetensors", "text.pt", "scripted.pt"]
)
def test_the_command_line_says_it_and_exits_with_2(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(HOSTILE[name][0])
    result = CliRunner().invoke(
        app, ["eval", "--ckpt", str(path), "--tasks", "shapes/zeroshot", "--results", str(tmp_path)]
    )
    said = " ".join(result.output.split())
    assert result.exit_code == 2, result.output
    assert "Traceback" not in said
    assert "expected weights as" in said


@pytest.mark.parametrize("cut", ["torch", "legacy", "safetensors", "npz"])
def test_a_file_cut_anywhere_is_refused(tmp_path, cut):
    data = {"torch": WHOLE, "legacy": OLD, "safetensors": one_tensor(), "npz": ARRAYS}[cut]
    path = tmp_path / "x"
    for length in sorted(
        {1, 2, 3, 9, len(data) - 1, *np.random.default_rng(0).integers(1, len(data), 25).tolist()}
    ):
        path.write_bytes(data[:length])
        refused(path, "truncated|damaged|text file|zeros")


# --- folders, links and what else a path can be ---------------------------------------------------


def folder_with_index(path: Path, index, shards=("model-1.safetensors",)) -> Path:
    path.mkdir()
    (path / "model.safetensors.index.json").write_text(
        index if isinstance(index, str) else json.dumps({"weight_map": index})
    )
    for shard in shards:
        (path / shard).write_bytes(one_tensor())
    return path


@pytest.mark.parametrize(
    ("index", "words"),
    [
        (
            {"w": "model-1.safetensors", "v": "model-2.safetensors"},
            "names model-2.safetensors, which is not there",
        ),
        ({"w": "model-1.safetensors", "v": "model-1.safetensors"}, r"name different tensors \(v\)"),
        ({"w": "../secret.safetensors"}, "not a file beside it"),
        ({"w": "/etc/passwd"}, "not a file beside it"),
        ({"w": 3}, "without a weight_map"),
        ("{", "an index that is not JSON"),
        ("[]", "without a weight_map"),
        ("[" * 100_000, "an index that is not JSON"),
    ],
)
def test_an_index_that_does_not_fit_its_shards(tmp_path, index, words):
    refused(folder_with_index(tmp_path / "model", index), words)


def test_a_shard_is_read_as_carefully_as_a_file(tmp_path):
    folder = folder_with_index(tmp_path / "model", {"w": "model-1.safetensors"})
    (folder / "model-1.safetensors").write_bytes(torch_file(Shell()))
    refused(folder, r"model-1\.safetensors: refused, nothing was executed: .*posix\.system")


def test_a_folder_without_weights(tmp_path):
    (tmp_path / "model").mkdir()
    refused(
        tmp_path / "model",
        r"a folder without checkpoints/step_\*\.pt of a run, or model\.safetensors",
    )


def test_a_link_that_leads_to_itself(tmp_path):
    path = tmp_path / "loop.pt"
    path.symlink_to(path)
    refused(path, "no such file")


def test_a_pipe_is_not_waited_for(tmp_path):
    path = tmp_path / "pipe.pt"
    os.mkfifo(path)
    refused(path, "a device, pipe or socket")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_no_permission(tmp_path):
    path = tmp_path / "secret.pt"
    path.write_bytes(WHOLE)
    path.chmod(0)
    refused(path, "cannot be read .Permission denied")
