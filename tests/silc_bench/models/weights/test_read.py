"""Weights of good files: bit for bit what was saved, in every format, under the right names."""

from __future__ import annotations

import collections
import json

import numpy as np
import pytest
import safetensors.torch
import torch

from silc_bench.errors import UserError
from silc_bench.models.weights.read import load_into, metadata_of, read_weights

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


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


def same(one, other):
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype
        and one[name].shape == other[name].shape
        and torch.equal(one[name], other[name])
        for name in one
    )


def save_safetensors(content, path):
    safetensors.torch.save_file(
        {name: value.clone().contiguous() for name, value in content.items()}, path
    )


def save_npz(content, path):
    arrays = {
        n: (v.view(torch.int16).numpy().view("V2") if v.dtype == torch.bfloat16 else v.numpy())
        for n, v in content.items()
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
    saved = weights()
    FORMATS[kind](saved, tmp_path / f"x.{suffix}")
    found = read_weights(tmp_path / f"x.{suffix}")
    assert same(found, saved)
    assert all(value.device.type == "cpu" and not value.requires_grad for value in found.values())


def test_compressed_npz_and_names_with_slashes(tmp_path):
    arrays = {
        "params/img/kernel": np.zeros((300, 40), np.float32),
        "params/t": np.array([2.0], ">f4"),
        "fortran": np.eye(4)[::2].T,
    }
    np.savez_compressed(tmp_path / "x.npz", **arrays)
    found = read_weights(tmp_path / "x.npz")
    assert found.keys() == arrays.keys()
    for name, value in arrays.items():
        assert np.array_equal(found[name].numpy(), value)
    assert found["params/t"].dtype == torch.float32


def test_safetensors_are_those_of_the_library(tmp_path):
    save_safetensors(weights(), tmp_path / "x")
    assert same(read_weights(tmp_path / "x"), safetensors.torch.load_file(tmp_path / "x"))


def test_metadata(tmp_path):
    texts = {"format": "silc-bench", "config": '{"a": "ü"}'}
    safetensors.torch.save_file({"a": torch.ones(2)}, tmp_path / "x", metadata=texts)
    assert metadata_of(tmp_path / "x") == texts
    save_safetensors({"a": torch.ones(2)}, tmp_path / "y")
    torch.save({"a": torch.ones(2)}, tmp_path / "z")
    assert metadata_of(tmp_path / "y") == metadata_of(tmp_path / "z") == metadata_of(tmp_path) == {}


STATE = {"a.weight": torch.ones(2, 3), "b": torch.zeros(4)}


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": STATE, "epoch": 3, "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}}},
        {
            "model": STATE,
            "model_ema": {name: value + 1 for name, value in STATE.items()},
            "args": {"lr": 0.1},
        },
        {"model": {"state_dict": STATE, "step": 1}},
        {
            "model_state_dict": collections.OrderedDict(STATE),
            "hyper": "text",
            "words": [1, 2.5, None, True, ("a", b"b")],
        },
        {f"module.{name}": value for name, value in STATE.items()},
        {"state_dict": {f"module._orig_mod.{name}": value for name, value in STATE.items()}},
        {"state_dict": {f"model.{name}": value for name, value in STATE.items()}},
        torch.nn.ParameterDict({"b": STATE["b"]}).state_dict()
        | {"a.weight": torch.nn.Parameter(STATE["a.weight"])},
    ],
    ids=[
        "lightning",
        "ema",
        "twice",
        "words",
        "data parallel",
        "compiled",
        "prefixed",
        "parameters",
    ],
)
@pytest.mark.parametrize("kind", ["torch", "legacy"])
def test_what_programs_save_around_it(tmp_path, content, kind):
    FORMATS[kind](content, tmp_path / "x.pt")
    assert same(read_weights(tmp_path / "x.pt"), STATE)


def test_a_prefix_that_one_name_lacks_stays(tmp_path):
    content = {"model.a": torch.ones(2), "model.b": torch.ones(2), "logit_scale": torch.tensor(1.0)}
    torch.save(content, tmp_path / "x.pt")
    assert same(read_weights(tmp_path / "x.pt"), content)


def test_folders(tmp_path):
    saved = weights()
    names = sorted(saved)
    for kind, pattern in (
        ("safetensors", "model-{}.safetensors"),
        ("torch", "pytorch_model-{}.bin"),
    ):
        folder = tmp_path / kind
        folder.mkdir()
        index = {name: pattern.format(i % 2) for i, name in enumerate(names)}
        for shard in set(index.values()):
            FORMATS[kind](
                {name: saved[name] for name in names if index[name] == shard}, folder / shard
            )
        kept = "model.safetensors" if kind == "safetensors" else "pytorch_model.bin"
        (folder / f"{kept}.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": index})
        )
        assert same(read_weights(folder), saved)
        FORMATS[kind]({"only": torch.ones(2)}, folder / kept)
        assert list(read_weights(folder)) == ["only"], "a whole file comes before an index"


def test_loading_into_a_module():
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    state = {
        name: torch.full_like(value, 2).bfloat16() if value.ndim else value
        for name, value in module.state_dict().items()
    }
    load_into(module, state, "x.pt")
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert (module[0].weight == 2).all()
    del state["0.bias"]
    with pytest.raises(UserError) as caught:
        load_into(module, {**state, "0.weight": torch.ones(3, 3), "c": torch.ones(1)}, "x.pt")
    assert str(caught.value) == (
        "x.pt: its weights do not fit: 1 missing (0.bias); 1 unexpected (c);"
        " 1 of another shape (0.weight [3, 3] instead of [2, 3])"
    )
    assert (module[0].weight == 2).all(), "nothing is loaded of what does not fit"
