"""precision=auto: what is native, resolved once, kept by the run on any machine."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from refusals import refused
from runs import differing, end_of, run

from silc_bench.trainer.checkpoints import file as checkpoint
from silc_bench.trainer.device import resolve

CPU, GPU = torch.device("cpu"), torch.device("cuda")
X86 = {"architecture": "x86_64", "avx2": True, "avx512_bf16": False, "amx_fp16": True}


def computes(monkeypatch, kernels="AVX512", **capabilities):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: X86 | capabilities)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: kernels)


@pytest.mark.parametrize(
    ("device", "capabilities", "precision"),
    [
        (CPU, {}, "fp32"),
        (CPU, {"avx512_f": True}, "fp32"),
        (CPU, {"avx512_bf16": True}, "bf16"),
        (CPU, {"avx512_bf16": True, "kernels": "AVX2"}, "fp32"),  # not to be used
        (CPU, {"amx_bf16": True}, "bf16"),
        (CPU, {"bf16": True}, "bf16"),
        (GPU, {}, "fp32"),  # one from before Ampere only emulates it
        (GPU, {"gpu": True}, "bf16"),
    ],
)
def test_bf16_is_computed_where_it_is_native(tiny, monkeypatch, device, capabilities, precision):
    def is_native(including_emulation):
        return including_emulation or bool(capabilities)

    computes(monkeypatch, **capabilities)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_native)
    assert resolve(tiny(precision="auto"), device).precision == precision


@pytest.mark.parametrize("asked", ["bf16", "fp32"])
def test_what_was_asked_for_stays(tiny, monkeypatch, asked):
    computes(monkeypatch, avx512_bf16=asked == "fp32")
    config = tiny(precision=asked)  # and no compilation: nothing is left to resolve
    assert resolve(config, CPU) is config


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
