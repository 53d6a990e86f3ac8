"""Named accelerators, as their makers describe them: nobody measured them here.

``named("h100x64")`` -> (Accelerator, 64). Rates are dense products with fp32 sums, without
sparsity; links are bytes a second in one direction. Links between nodes and GPUs a node are no part
of a GPU's data sheet: they are those of the maker's own server where it has one, else our guess.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from silc_bench.errors import UserError, unknown_name

GIB = 2**30


class Accelerator(NamedTuple):
    bf16: float  # FLOP/s; 0: it has no bf16
    fp32: float  # FLOP/s, without TF32
    memory: int  # bytes
    bandwidth: float  # of the memory, bytes/s
    link: float  # within a node, bytes/s a GPU
    net: float  # between nodes, bytes/s a GPU
    per_node: int  # GPUs
    source: str


ACCELERATORS = {
    "a100-40": Accelerator(
        312e12, 19.5e12, 40 * GIB, 1555e9, 300e9, 25e9, 8, "A100 data sheet, DGX A100"
    ),
    "a100-80": Accelerator(
        312e12, 19.5e12, 80 * GIB, 2039e9, 300e9, 25e9, 8, "A100 data sheet, DGX A100"
    ),
    "h100": Accelerator(
        989e12, 67e12, 80 * GIB, 3350e9, 450e9, 50e9, 8, "H100 SXM data sheet, DGX H100"
    ),
    "h200": Accelerator(
        989e12, 67e12, 140 * GIB, 4800e9, 450e9, 50e9, 8, "H200 SXM data sheet, DGX H200"
    ),
    "b200": Accelerator(
        2250e12, 75e12, 179 * GIB, 8000e9, 900e9, 50e9, 8, "HGX B200 data sheet, DGX B200"
    ),
    "l40s": Accelerator(
        362e12, 91.6e12, 45 * GIB, 864e9, 32e9, 12.5e9, 8, "L40S data sheet (ECC on); node guessed"
    ),
    "rtx4090": Accelerator(
        165e12, 82.6e12, 24 * GIB, 1008e9, 32e9, 3.1e9, 8, "Ada white paper; node guessed"
    ),
    "v100": Accelerator(
        0.0, 15.7e12, 32 * GIB, 900e9, 150e9, 6.25e9, 8, "V100 SXM2 data sheet; node guessed"
    ),
    "mi300x": Accelerator(
        1307e12, 163e12, 192 * GIB, 5300e9, 448e9, 50e9, 8, "MI300X data sheet; node guessed"
    ),
}


def named(words: str) -> tuple[str, Accelerator, int]:
    """ "h100x64" -> its name, what it is, and how many.

    Raises:
        UserError: an unknown name, or no number of them.
    """
    match = re.fullmatch(r"(.+?)(?:x([1-9][0-9]{0,6}))?", words.strip().lower())
    name = match[1] if match else words
    if name not in ACCELERATORS:
        raise unknown_name("accelerator", name, ACCELERATORS, about="--on")
    accelerator = ACCELERATORS[name]
    count = int(match[2] or 1) if match else 1
    if count > accelerator.per_node and count % accelerator.per_node:
        raise UserError(
            f"{count} are no whole number of nodes with {accelerator.per_node} each",
            about="--on",
            fix=f"try {name}x{count // accelerator.per_node * accelerator.per_node}",
        )
    return name, accelerator, count
