"""Named accelerators, as public documents describe them: nobody measured them here.

``named("h100x64")`` -> ("h100", Accelerator, 64). Rates are dense products with fp32 sums, without
sparsity; links are bytes a second in one direction. Links between nodes and GPUs a node are no part
of a GPU's data sheet: they are those of the server that ``links`` names, or our guess, as it says.

Where a figure was read stands beside it, by these letters:

    [L]  Lightning-AI/pytorch-lightning, src/lightning/fabric/utilities/throughput.py
    [T]  pytorch/torchtitan, torchtitan/tools/utils.py (get_peak_flops)
    [E]  stas00/ml-engineering, compute/accelerator/README.md
    [N]  stas00/ml-engineering, network/README.md
    [S]  nvidia-smi or rocm-smi of such a GPU, as several public logs print it
    [B]  NVIDIA, DGX BasePOD reference architecture, "Core Components"
    [M]  alpharomercoma/MI300X-vs-H200, METHODOLOGY.md
"""

from __future__ import annotations

import re
from typing import NamedTuple

from silc_bench.errors import UserError, nearest

MIB = 2**20
RTX = "PCIe 4.0 x16 through the host, and 25 Gb/s a GPU between nodes (node guessed)"
L40S = "PCIe 4.0 x16 through the host, and 100 Gb/s a GPU between nodes (node guessed)"


class Accelerator(NamedTuple):
    bf16: float  # FLOP/s; 0: it has no bf16
    fp32: float  # FLOP/s, without TF32
    memory: int  # bytes that its driver shows
    bandwidth: float  # of the memory, bytes/s
    link: float  # within a node, bytes/s a GPU
    net: float  # between nodes, bytes/s a GPU
    per_node: int  # GPUs
    form: str  # which of its kind
    links: str  # whose node and links these are


ACCELERATORS = {
    "a100-40": Accelerator(
        bf16=312e12,  # [L]
        fp32=19.5e12,  # [L]
        memory=40_960 * MIB,  # [S]
        bandwidth=1555e9,  # Paderborn PC2, "NVIDIA A100 40GB with NVLINK"
        link=300e9,  # [N]
        net=25e9,  # DGX A100 data sheet: eight ConnectX-6 of 200 Gb/s
        per_node=8,
        form="A100 SXM 40 GB",
        links="DGX A100",
    ),
    "a100-80": Accelerator(
        bf16=312e12,  # [L]
        fp32=19.5e12,  # [L]
        memory=81_920 * MIB,  # [S]
        bandwidth=2039e9,  # G. K. Lockwood, "A100", after the data sheet
        link=300e9,  # [N]
        net=25e9,  # DGX A100 data sheet: eight ConnectX-6 of 200 Gb/s
        per_node=8,
        form="A100 SXM 80 GB",
        links="DGX A100",
    ),
    "h100": Accelerator(
        bf16=989e12,  # [L], [T]
        fp32=67e12,  # [L]
        memory=81_559 * MIB,  # [S]
        bandwidth=3350e9,  # [E]
        link=450e9,  # [N]
        net=50e9,  # [B]: eight ConnectX-7 of 400 Gb/s
        per_node=8,
        form="H100 SXM 80 GB",
        links="DGX H100",
    ),
    "h200": Accelerator(
        bf16=989e12,  # [T]
        fp32=67e12,  # [E]
        memory=143_771 * MIB,  # [S]
        bandwidth=4800e9,  # [E]
        link=450e9,  # [N]
        net=50e9,  # [B]: eight ConnectX-7 of 400 Gb/s
        per_node=8,
        form="H200 SXM 141 GB",
        links="DGX H200",
    ),
    "b200": Accelerator(
        bf16=2250e12,  # [T]
        fp32=75e12,  # tables of HGX B200: 600 TFLOP/s for eight; G. K. Lockwood, "B200", has 80
        memory=183_359 * MIB,  # [S]
        bandwidth=8000e9,  # DGX B200: 64 TB/s for eight
        link=900e9,  # [N]
        net=50e9,  # NVIDIA, "Introduction to DGX B200 Systems": eight cards of 400 Gb/s
        per_node=8,
        form="B200 SXM 180 GB",
        links="DGX B200",
    ),
    "l40s": Accelerator(
        bf16=362e12,  # [T], of the data sheet
        fp32=91.6e12,  # [E]
        memory=46_068 * MIB,  # [S], with ECC
        bandwidth=864e9,  # data sheet
        link=32e9,  # data sheet: 64 GB/s in both directions
        net=12.5e9,  # guessed
        per_node=8,  # guessed
        form="L40S 48 GB",
        links=L40S,
    ),
    "rtx4090": Accelerator(
        bf16=165.2e12,  # WareDB, "NVIDIA GeForce RTX 4090"; [L] has 82.6, without tensor cores
        fp32=82.6e12,  # [L], after the Ada white paper
        memory=24_564 * MIB,  # [S]
        bandwidth=1008e9,  # WareDB
        link=32e9,  # as l40s; GPUs do not reach each other but through the host
        net=3.125e9,  # guessed
        per_node=8,  # guessed
        form="GeForce RTX 4090 24 GB",
        links=RTX,
    ),
    "v100": Accelerator(
        bf16=0.0,
        fp32=15.7e12,  # [L]
        memory=32_510 * MIB,  # [S]; newer drivers show 32,768
        bandwidth=900e9,  # NVIDIA at its announcement, GTC 2017
        link=150e9,  # [N]
        net=6.25e9,  # white paper "NVIDIA DGX-1 with Tesla V100": four cards of 100 Gb/s for eight
        per_node=8,
        form="V100 SXM2 32 GB",
        links="DGX-1",
    ),
    "mi300x": Accelerator(
        bf16=1307.4e12,  # [M]
        fp32=163.4e12,  # [E]
        memory=206_141_652_992,  # [S]
        bandwidth=5300e9,  # [M]
        link=448e9,  # [N]: 64 to each of seven others
        net=50e9,  # Microsoft, Azure ND MI300X v5: 400 Gb/s a GPU
        per_node=8,
        form="MI300X OAM 192 GB",
        links="Azure ND MI300X v5, which are slower where fewer than all eight of a node work",
    ),
}


def named(words: str) -> tuple[str, Accelerator, int]:
    """ "h100x64", "64xh100", "H100 x 64" -> its name, what it is, and how many; "h100": one.

    Raises:
        UserError: an unknown name, or no number of whole nodes.
    """
    typed = "".join(words.lower().split())
    for name, accelerator in ACCELERATORS.items():
        match = re.fullmatch(rf"(?:([0-9]{{1,7}})x{name}|{name}(?:x([0-9]{{1,7}}))?)", typed)
        if match:
            count = int(match[1] or match[2] or 1)
            _check_count(name, count, accelerator.per_node)
            return name, accelerator, count

    # Where what was typed holds a name, or the reverse, that is what was meant.
    stems = {re.sub(r"x[0-9]*$", "", typed), re.sub(r"^[0-9]+x", "", typed)}
    near = [
        name
        for name in ACCELERATORS
        if any(name in stem or (len(stem) > 2 and stem in name) for stem in stems)
    ]
    near = near or nearest(min(stems, key=len), ACCELERATORS)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise UserError(
        f"no number of known accelerators: {words!r}",
        about="--on",
        fix=f"{hint}write NAMExCOUNT, as h100x8; known: {', '.join(ACCELERATORS)}",
    )


def _check_count(name: str, count: int, per_node: int) -> None:
    fewer = max(1, count // per_node * per_node)
    if count == 0:
        raise UserError("0 accelerators train nothing", about="--on", fix=f"try {name}x{per_node}")
    if count > per_node and count % per_node:
        raise UserError(
            f"{count} are no whole number of nodes with {per_node} each",
            about="--on",
            fix=f"try {name}x{fewer} or {name}x{fewer + per_node}",
        )
