"""precision=auto: what is native, resolved once, kept by the run on any machine."""

import contextlib
import io
import json

import pytest
import torch
from rich.console import Console

from silc_bench.errors import UserError
from silc_bench.trainer.checkpoints import file as checkpoint
from silc_bench.trainer.config.presets import PRESETS
from silc_bench.trainer.device import resolve
from silc_bench.trainer.loop import run_training
from silc_bench.trainer.train import train_step

CPU, GPU = torch.device("cpu"), torch.device("cuda")
X86 = {
    "architecture": "x86_64",
    "avx2": True,
    "avx512_f": False,
    "avx512_bf16": False,
    "amx_bf16": False,
    "amx_fp16": True,
}


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

    def run(folder, steps, *, resume, **changes):
        config = tiny(checkpoint_every=2, log_every=2, samples=8 * 4, **changes)
        monkeypatch.setattr("silc_bench.trainer.loop.train_step", stop_after(steps))
        with contextlib.suppress(KeyboardInterrupt):
            run_training(
                config, folder, resume=resume, device=CPU, console=Console(file=io.StringIO())
            )
        return checkpoint.load(checkpoint.find(folder))

    def stop_after(steps):
        def limited(state, batch):
            if state.step == steps:
                raise KeyboardInterrupt
            return train_step(state, batch)

        return limited

    computes(monkeypatch)
    begun = run(tmp_path / "moved", 2, resume=False)
    stayed = run(tmp_path / "stayed", 99, resume=False)
    assert (begun["step"], json.loads(begun["config"])["precision"]) == (2, "fp32")
    computes(monkeypatch, amx_bf16=True)
    with pytest.raises(UserError, match="precision 'fp32' -> 'bf16'"):
        run(tmp_path / "moved", 99, resume=True, precision="bf16")
    moved = run(tmp_path / "moved", 99, resume=True)
    assert (moved["step"], json.loads(moved["config"])["precision"]) == (4, "fp32")
    assert all(
        torch.equal(value, stayed["student"][name]) for name, value in moved["student"].items()
    )
