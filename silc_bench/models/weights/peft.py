"""Adapters (LoRA and its kin, as PEFT saves them): known and refused, as they are half a model.

Beside the base that they change they would be passed over without a word: the base would be
measured under the tuned model's name. Alone they are no weights of any architecture. Merging them
is a line of PEFT's, and it needs the code of each kind of adapter: it is printed, not done here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from silc_bench.errors import UserError

CONFIG = "adapter_config.json"
FILES = (CONFIG, "adapter_model.safetensors", "adapter_model.bin")

# What PEFT adds to the names of a model: lora_A, lora_embedding_B, hada_w1_a, oft_r, ia3_l ...
NAMES = re.compile(r"\b(lora|hada|lokr|oft|ia3|boft|vera|fourierft|adalora|hra)_\w+")
MERGE = (
    "from peft import PeftModel as P; from transformers import AutoModel as M; "
    "P.from_pretrained(M.from_pretrained('BASE'), 'ADAPTER').merge_and_unload()"
    ".save_pretrained('MERGED')"
)
FIX = (
    "with the adapter's files in a folder ADAPTER of their own, merge it by "
    f'python -c "{MERGE}", copy the other files of the base to MERGED and name that'
)


def refuse_adapter(folder: Path) -> None:
    """Refuses a folder in which an adapter lies, beside its base or alone.

    Raises:
        UserError: names the files, and how the adapter is merged.
    """
    held = [name for name in FILES if (folder / name).is_file()]
    if held:
        problem = f"it holds an adapter ({', '.join(held)}), and weights are read without it"
        raise UserError(problem, about=folder, fix=FIX)


def refuse_names(path: Path, names: Iterable[str]) -> None:
    """Refuses a file whose tensors are an adapter's, or a model's with one that is not merged.

    Raises:
        UserError: names the first of them.
    """
    added = [name for name in names if NAMES.search(name)]
    if added:
        problem = f"{len(added)} of its tensors are an adapter's, as {added[0]:.80}"
        raise UserError(problem, about=path, fix=FIX)
