"""precision=auto: what is native, resolved once, kept by the run on any machine."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from refusals import refused
from runs import differing, end_of, run

from silc_bench.trainer.checkpoints import file as checkpoint
from silc_bench.trainer.config.presets import PRESETS
from silc_bench.trainer.device import resolve

CPU, GPU = torch.device("cpu"), torch.device("cuda")
X86 = {"architecture": "x86_64", "avx2": True, "avx512_bf16": False, "amx_fp16": True}


def computes(monkeypatch, **capabilities):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: X86 | capabilities)


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [
        ({}, "fp32"),
        ({"avx512_f": True}, "fp32"),
        ({"avx512_bf16": True}, "bf16"),
        ({"amx_bf16": True}, "bf16"),
        ({"bf16": True}, "bf16"),
    ],
)
def test_a_cpu_computes_bf16_where_it_does_so_natively(tiny, monkeypatch, capabilities, precision):
    computes(monkeypatch, **capabilities)
    assert resolve(tiny(precision="auto"), CPU).precision == precision


@pytest.mark.parametrize(("native", "precision"), [(True, "bf16"), (False, "fp32")])
def test_so_does_a_gpu(tiny, monkeypatch, native, precision):
    """One from before Ampere only emulates it."""
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: native or including_emulation
    )
    assert resolve(tiny(precision="auto"), GPU).precision == precision


@pytest.mark.parametrize("asked", ["bf16", "fp32"])
def test_what_was_asked_for_stays(tiny, monkeypatch, asked):
    computes(monkeypatch, avx512_bf16=asked == "fp32")
    config = tiny(precision=asked)
    assert resolve(config, CPU) is config


def test_every_preset_leaves_it_to_the_machine():
    assert {make().precision for make in PRESETS.values()} == {"auto"}


@pytest.mark.usefixtures("few_captions")
def test_a_run_keeps_the_precision_it_began_in(tiny, tmp_path, monkeypatch):
    """Begun where bf16 is emulated, resumed where native: the weights of the run that stayed."""
    config = tiny(precision="auto", checkpoint_every=2)
    moved, stayed = tmp_path / "moved", tmp_path / "stayed"
    computes(monkeypatch)
    run(config, stayed)
    shutil.copytree(stayed, moved)
    checkpoint.path_of(moved, 4).unlink()
    computes(monkeypatch, amx_bf16=True)
    with refused(about=moved):
        run(replace(config, precision="bf16"), moved, resume=True)
    run(config, moved, resume=True)
    assert json.loads(end_of(moved)["config"])["precision"] == "fp32"
    assert not differing(end_of(moved)["student"], end_of(stayed)["student"])
