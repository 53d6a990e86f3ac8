"""Weights of good files: bit for bit what was saved, in every format, under the right names."""

from __future__ import annotations

import collections
import json

import numpy as np
import pytest
import safetensors.torch
import torch

from silc_bench.models.weights.read import read_weights

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
ONES = {"a": torch.ones(2)}


def weights():
    generator = torch.Generator().manual_seed(0)
    values = {
        str(dtype)[6:] + ".weight": torch.randn(3, 5, generator=generator).to(dtype)
        for dtype in DTYPES
    }
    big = torch.randn(20, 6, generator=generator)
    return values | {
        "transposed": big.T,
        "part": big[3:7, 1:],
        "scalar": torch.tensor(2.5),
        "none_of_it": torch.empty(0, 4),
        "position_ids": torch.arange(7).expand(1, -1),
        "mask": torch.tensor([True, False]),
        "shared": big,
    }


def check(path, saved):
    """What is read has the names, dtypes, shapes and bits of ``saved``."""
    read = read_weights(path)
    assert read.keys() == saved.keys()
    for name, value in saved.items():
        assert read[name].dtype == value.dtype
        assert torch.equal(read[name], value)
        assert not read[name].requires_grad


def save_safetensors(content, path):
    copies = {name: value.clone().contiguous() for name, value in content.items()}
    safetensors.torch.save_file(copies, path)


def save_npz(content, path):
    arrays = {
        name: value.view(torch.int16).numpy().view("V2")
        if value.dtype == torch.bfloat16
        else value.numpy()
        for name, value in content.items()
    }
    with open(path, "wb") as file:  # by the handle: NumPy adds a suffix to names
        np.savez(file, **arrays)


FORMATS = {
    "torch": torch.save,
    "legacy": lambda content, path: torch.save(content, path, _use_new_zipfile_serialization=False),
    "safetensors": save_safetensors,
    "npz": save_npz,
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("suffix", ["pt", "safetensors", "npz", "words"])
def test_round_trip_whatever_the_suffix(tmp_path, kind, suffix):
    FORMATS[kind](weights(), tmp_path / f"x.{suffix}")
    check(tmp_path / f"x.{suffix}", weights())


def test_compressed_npz_and_names_with_slashes(tmp_path):
    arrays = {
        "params/img/kernel": np.zeros((300, 40), np.float32),
        "params/t": np.array([2.0], ">f4"),
        "fortran": np.eye(4)[::2].T,
    }
    np.savez_compressed(tmp_path / "x.npz", **arrays)
    native = {name: value.astype(value.dtype.newbyteorder("=")) for name, value in arrays.items()}
    check(tmp_path / "x.npz", {name: torch.from_numpy(value) for name, value in native.items()})


def test_a_file_that_is_written_anew_does_not_change_what_was_read(tmp_path):
    path = tmp_path / "x.safetensors"
    save_safetensors(ONES, path)
    read = read_weights(path)
    with open(path, "r+b") as file:
        file.seek(-8, 2)
        file.write(bytes(8))
    assert torch.equal(read["a"], ONES["a"])


STATE = {"a.weight": torch.ones(2, 3), "b": torch.zeros(4)}
SAVED = {
    "lightning": {"state_dict": STATE, "epoch": 3, "optimizer": {"state": {0: {"step": ONES}}}},
    "ema": {"model": STATE, "model_ema": {name: value + 1 for name, value in STATE.items()}},
    "twice": {"model_state_dict": {"model": collections.OrderedDict(STATE), "words": ("a", b"b")}},
    "compiled": {
        "state_dict": {f"module._orig_mod.{name}": value for name, value in STATE.items()}
    },
    "prefixed": {"state_dict": {f"model.{name}": value for name, value in STATE.items()}},
    "parameters": {name: torch.nn.Parameter(value) for name, value in STATE.items()},
}


@pytest.mark.parametrize("saved", SAVED)
def test_what_programs_save_around_it(tmp_path, saved):
    torch.save(SAVED[saved], tmp_path / "x.pt")
    check(tmp_path / "x.pt", STATE)


def test_a_prefix_that_one_name_lacks_stays(tmp_path):
    content = {"model.a": torch.ones(2), "logit_scale": torch.tensor(1.0)}
    torch.save(content, tmp_path / "x.pt")
    check(tmp_path / "x.pt", content)


@pytest.mark.parametrize(
    ("kind", "whole"), [("safetensors", "model.safetensors"), ("torch", "pytorch_model.bin")]
)
def test_folders(tmp_path, kind, whole, capsys):
    saved = weights()
    index = {name: f"shard-{number % 2}" for number, name in enumerate(saved)}
    for shard in set(index.values()):
        part = {name: value for name, value in saved.items() if index[name] == shard}
        FORMATS[kind](part, tmp_path / shard)
    (tmp_path / f"{whole}.index.json").write_text(json.dumps({"weight_map": index}))
    check(tmp_path, saved)
    assert not capsys.readouterr().err
    FORMATS[kind](ONES, tmp_path / whole)
    check(tmp_path, ONES)  # a whole file comes before an index
    assert f"{whole} is read, not {whole}.index.json" in capsys.readouterr().err
