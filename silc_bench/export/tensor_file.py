"""Writing a safetensors file: 8 bytes with the length of the header, a JSON header, then the values, tensor after tensor.

The counterpart of ``silc_bench.models.tensor_files``; one tensor at a time, so that no second copy of the weights is held.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from silc_bench.models.tensor_files import CHECKSUMS, part_checksums

ALIGNMENT = 8  # bytes; the header is padded with spaces, so that values can be mapped into memory


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """fp32 tensors by name, and texts beside them; one more text holds the checksum of each.

    Raises:
        OSError: it could not be written.
    """
    checksums = json.dumps(part_checksums(tensors, metadata))
    header: dict[str, object] = {"__metadata__": {**metadata, CHECKSUMS: checksums}}
    end = 0
    for name, value in tensors.items():
        assert value.dtype == torch.float32, f"{name} is {value.dtype}"
        begin, end = end, end + value.numel() * value.element_size()
        header[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": [begin, end]}
    words = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    words += b" " * (-len(words) % ALIGNMENT)
    with open(path, "wb") as file:
        file.write(len(words).to_bytes(8, "little"))
        file.write(words)
        for value in tensors.values():
            file.write(value.detach().cpu().contiguous().numpy().reshape(-1).view(np.uint8).data)
