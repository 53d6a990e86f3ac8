"""What training programs save around the weights: the same tensors come out of every wrapper.

Nothing is executed, and what cannot be read says what to write.
"""

from __future__ import annotations

import argparse
import collections
import os
import zipfile
from pathlib import Path

import hf_folders
import numpy as np
import pytest
import safetensors.torch
import torch
from refusals import refused
from torch import nn

from silc_bench.models.load import load_model
from silc_bench.models.weights.read import read_weights

pytestmark = pytest.mark.broad
VISION = {"width": 32, "layers": 1, "image_size": 16, "patch_size": 8, "head_width": 16}


class Settings(dict):
    """As Lightning's AttributeDict: a map of a class of its own."""


class Canary:
    """Settings whose class does something when they are read by pickle."""

    def __setstate__(self, state):
        pytest.fail("code of the file's program was executed")

    def __init__(self):
        self.lr = 1.0


class Called:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def fails(*args):
    pytest.fail("a function of the file's program was executed")


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        body = nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4), nn.Linear(4, 3))
        body.register_buffer("mask", torch.ones(2), persistent=False)
        return body


def below(name, state):
    return {f"{name}.{key}": value for key, value in state.items()}


def within(wrapper, state):
    """The wrapper is around one layer: "0.weight" -> "0.WRAPPER.weight"."""
    return {key.replace(".", f".{wrapper}.", 1): value for key, value in state.items()}


def shifted(state):
    return {key: value + 1 for key, value in state.items()}


def run_of(**parts):
    """What a program writes: the weights, its optimiser's state, and settings of every kind."""
    net = network()
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(1, 3, 2, 5)).sum().backward()
    optimizer.step()
    args = argparse.Namespace(lr=np.float64(1e-3), out=Path("runs/a"), seed=np.int64(1))
    return {
        **parts,
        "optimizer": optimizer.state_dict(),
        "args": args,
        "best": np.float32(0.5),
        "random": np.random.default_rng(0).bit_generator.state,
        "legacy_random": np.random.RandomState(0).get_state(),
        "settings": Settings(canary=Canary(), called=Called(fails, 1), loop=fails),
        "counts": collections.defaultdict(list, a=[1]),
        "epoch": 3,
    }


def average_of(state):
    net = network()
    net.load_state_dict(state)
    return torch.optim.swa_utils.AveragedModel(net).state_dict()


def whole(state):
    net = network()
    net.load_state_dict(state)
    return net


# what is around the names -> (what is saved, the part to ask for)
NAMES = {
    "plain": (lambda state: state, ""),
    "DataParallel": (lambda state: below("module", state), ""),
    "torch.compile": (lambda state: below("_orig_mod", state), ""),
    "torch.compile of a layer": (lambda state: within("_orig_mod", state), ""),
    "FSDP": (lambda state: within("_fsdp_wrapped_module", state), ""),
    "checkpointing": (
        lambda state: within("_fsdp_wrapped_module._checkpoint_wrapped_module", state),
        "",
    ),
    "several": (lambda state: below("module._orig_mod.model", state), ""),
    "AveragedModel": (average_of, ""),
    "beside a loss": (lambda state: below("model", state) | {"loss.scale": torch.ones(2)}, "model"),
    "beside its average": (
        lambda state: below("online_model", shifted(state)) | below("ema_model", state),
        "ema_model",
    ),
    "a part of a part": (
        lambda state: below("module.net.trunk", state) | {"module.head.bias": torch.ones(2)},
        "net.trunk",
    ),
}
FORMATS = {
    "torch": torch.save,
    "legacy": lambda content, path: torch.save(content, path, _use_new_zipfile_serialization=False),
    "protocol 4": lambda content, path: torch.save(content, path, pickle_protocol=4),
    "safetensors": lambda content, path: safetensors.torch.save_file(content, path),
    "npz": lambda content, path: np.savez(
        path.open("wb"), **{name: value.numpy() for name, value in content.items()}
    ),
}
DINO = {
    "student": lambda state: (
        below("module.backbone", shifted(state)) | {"module.head.weight": torch.ones(2)}
    ),
    "teacher": lambda state: below("backbone", state) | {"head.weight": torch.ones(2)},
}
PROGRAMS = {
    "MAE": (lambda state: run_of(model=state), ""),
    "DINO": (
        lambda state: run_of(**{name: make(state) for name, make in DINO.items()}),
        "teacher.backbone",
    ),
    "DINOv2": (lambda state: {"teacher": below("backbone", state)}, "backbone"),
    "Lightning": (lambda state: run_of(state_dict=below("model", state)), ""),
    "MoCo": (
        lambda state: run_of(
            state_dict=below("module.base", shifted(state)) | below("module.momentum", state)
        ),
        "momentum",
    ),
    "ordered": (lambda state: run_of(state_dict=collections.OrderedDict(state)), ""),
    "parameters": (
        lambda state: run_of(
            model={
                name: nn.Parameter(value) if value.is_floating_point() else value
                for name, value in state.items()
            }
        ),
        "",
    ),
    "views": (
        lambda state: run_of(
            model={
                name: torch.stack([value + 1, value], dim=-1)[..., 1]
                for name, value in state.items()
            }
        ),
        "",
    ),
    "average beside": (
        lambda state: run_of(state_dict=shifted(state), state_dict_ema=state),
        "state_dict_ema",
    ),
    "deep": (lambda state: {"model": {"module": {"params": state}}, "a": Path("b")}, ""),
    "whole module": (whole, ""),
    "whole module in a run": (lambda state: run_of(model=nn.DataParallel(whole(state))), ""),
}


def check(path, part, state):
    read = read_weights(Path(f"{path}#{part}" if part else path))
    assert read.keys() == state.keys()
    for name, value in state.items():
        assert read[name].dtype == value.dtype
        assert torch.equal(read[name], value), name


@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize("kind", FORMATS)
def test_names_of_wrappers_in_every_format(tmp_path, kind, names):
    make, part = NAMES[names]
    state = network().state_dict()
    content = {name: value.clone() for name, value in make(state).items()}
    FORMATS[kind](content, tmp_path / "x")
    check(tmp_path / "x", part, state)


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("kind", ["torch", "legacy", "protocol 4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_programs_save(tmp_path, kind, program, dtype):
    make, part = PROGRAMS[program]
    state = network().state_dict()
    if "whole" not in program:
        state = {
            name: value.to(dtype) if value.is_floating_point() else value
            for name, value in state.items()
        }
    FORMATS[kind](make(state), tmp_path / "x.pth")
    check(tmp_path / "x.pth", part, state)


def test_views_of_one_storage_read_it_once(tmp_path, monkeypatch):
    whole = torch.arange(3000.0)
    state = {f"{place}.weight": whole[place : place + 3] for place in range(0, 3000, 3)}
    torch.save({"model": state, "args": Path("x")}, tmp_path / "x.pt")
    reads = []
    read = zipfile.ZipFile.read
    monkeypatch.setattr(
        zipfile.ZipFile, "read", lambda self, name: reads.append(str(name)) or read(self, name)
    )
    check(tmp_path / "x.pt", "", state)
    assert len([name for name in reads if "/data/" in name]) == 1


def test_a_second_set_of_weights_that_is_not_read_is_named(tmp_path, capsys):
    state = network().state_dict()
    torch.save({"model": state, "model_ema": shifted(state), "optimizer": {}}, tmp_path / "x.pt")
    check(tmp_path / "x.pt", "", state)
    assert f"model_ema ({len(state)} tensors); {tmp_path}/x.pt#model_ema" in capsys.readouterr().err
    check(tmp_path / "x.pt", "model_ema", shifted(state))
    check(tmp_path / "x.pt", "model", state)
    assert not capsys.readouterr().err, "who names one knows of both"


def test_a_name_may_hold_the_sign_of_a_part(tmp_path):
    state = network().state_dict()
    torch.save(state, tmp_path / "a#b.pt")
    check(tmp_path / "a#b.pt", "", state)
    torch.save({"x": state, "y": state}, tmp_path / "a#b.pt")
    check(tmp_path / "a#b.pt", "x", state)


class ShardedTensor:
    pass


STATE = {"a.weight": torch.ones(2, 3)}
NETWORKS = {"student": STATE, "teacher": STATE, "args": Path("x")}
# what is saved, the part that is asked for, and what the fix names
REFUSED = {
    "two networks": (NETWORKS, "", "x.pth#student"),
    "no such network": (NETWORKS, "techer", "x.pth#student"),
    "no such part": ({"model": {**STATE, "b.c": torch.ones(1)}}, "model.head", "a, b"),
    "no such part of names": (STATE, "b", "a"),
    "shards": ({"model": {"a.weight": ShardedTensor()}}, "", "full_state_dict"),
    "flat shards": ({"_fsdp_wrapped_module._flat_param": torch.ones(9)}, "", "full_state_dict"),
    "both": ({"a": torch.ones(1), "_orig_mod.a": torch.ones(1)}, "", "name weights"),
    "settings alone": ({"args": argparse.Namespace(a=1)}, "", "name weights"),
    "an object": (argparse.Namespace(a=1), "", "name weights"),
    "arrays": ({"model": {"a": np.ones(3)}}, "", "name weights"),
    "an adapter": ({"model": {"base_model.model.a.lora_A.weight": torch.ones(1)}}, "", "merge"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_says_what_to_write(tmp_path, case):
    content, part, fix = REFUSED[case]
    torch.save(content, tmp_path / "x.pth")
    # NumPy's own names are its affair
    with refused(about=tmp_path / "x.pth", is_kept=case != "arrays") as caught:
        read_weights(Path(f"{tmp_path}/x.pth#{part}" if part else f"{tmp_path}/x.pth"))
    assert fix in caught.value.fix


@pytest.mark.parametrize(
    ("file", "line"), [(".metadata", "dcp_to_torch"), ("zero_to_fp32.py", "zero_to_fp32.py")]
)
def test_folders_of_several_processes_name_the_program_that_joins_them(tmp_path, file, line):
    (tmp_path / file).touch()
    with refused(about=tmp_path) as caught:
        read_weights(tmp_path)
    assert line in caught.value.fix


def cycle():
    net = nn.Sequential(nn.Linear(1, 1))
    net[0].again = net
    return net


def billions():
    """A module of 2 ** 40 paths."""
    net = nn.Linear(1, 1)
    for _ in range(40):
        outer = nn.Module()
        outer.left = outer.right = net
        net = outer
    return net


@pytest.mark.parametrize("make", [cycle, billions])
def test_modules_without_an_end_are_refused(tmp_path, make):
    torch.save(make(), tmp_path / "x.pt")
    with refused(about=tmp_path / "x.pt", is_kept=False):
        read_weights(tmp_path / "x.pt")


# ---- every loader ----


@pytest.fixture(scope="module")
def loaders(open_clip_file, tmp_path_factory):
    """Of each loader its weights, and how a file of them is named."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    timm = pytest.importorskip("timm")
    pytest.importorskip("transformers")
    folder = hf_folders.write("clip", tmp_path_factory.mktemp("hf") / "clip")
    file = open_clip_file("tiny-wrapped", vision_cfg=VISION)
    trunk = timm.create_model("test_vit", num_classes=0).state_dict()
    return {
        "open_clip": (read_weights(file), "open_clip:tiny-wrapped/{}", None),
        "open_clip by --arch": (read_weights(file), "{}", "open_clip:tiny-wrapped"),
        "hf": (read_weights(folder), "{}", f"hf:{folder}"),
        "timm": (trunk, "timm:test_vit/{}", None),
    }


@pytest.mark.parametrize("loader", ["open_clip", "open_clip by --arch", "hf", "timm"])
def test_every_loader_takes_them_and_names_the_part(loaders, tmp_path, loader):
    state, spec, arch = loaders[loader]
    path = tmp_path / "x.pth"
    torch.save(state, path)
    revision = load_model(spec.format(path), arch).revision

    torch.save(run_of(**{name: make(state) for name, make in DINO.items()}), path)
    model = load_model(spec.format(f"{path}#teacher.backbone"), arch)
    assert model.revision == revision
    assert model.name.endswith("#teacher.backbone")
    assert load_model(spec.format(f"{path}#student.backbone"), arch).revision != revision

    # what of it fits is said, by every loader
    with refused(about="x.pth#teacher", is_kept=False) as caught:
        load_model(spec.format(f"{path}#teacher"), arch)
    assert "write #backbone" in caught.value.fix
