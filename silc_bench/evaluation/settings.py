"""How models are measured: what one command decides for all of its tasks.

Flow: ``EvalSettings(limit=100, device="cpu")`` -> ``evaluate(model, tasks, settings, ...)``, or
``Extractor(model, settings)`` for features alone. Whether a word is one of those that are known is
said here, before torch is imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from silc_bench.errors import UserError, unknown_name
from silc_bench.evaluation.protocols import NATIVE, NamedProtocol
from silc_bench.models.interface import FEATURE_POINTS

if TYPE_CHECKING:
    import torch

    from silc_bench.system.cache import Store

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "fp32", "bf16")
EXISTING = ("skip", "overwrite", "error")


@dataclass(frozen=True)
class EvalSettings:
    """The choices of one command. Raises UserError for one that cannot be."""

    limit: int | None = None  # images a split, evenly spread; the records say so and never rank
    protocol: NamedProtocol = NATIVE  # whose prompts and preprocessing
    # where image embeddings are read (models.FEATURE_POINTS); "pooled" where text is compared
    feature_point: str = "pooled"
    device: str | torch.device = "auto"
    precision: str = "auto"
    batch_size: int = 256
    # processes that decode images; 0: in this one; None: what the machine has, for images of files
    num_workers: int | None = 0
    is_compiled: bool = False  # torch.compile: pays off from some thousand images on
    store: Store | None = None  # where embeddings and fingerprints outlive the command
    existing: str = "skip"  # what to do about a measurement that is known; "error": before any work
    progress: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.device, str):
            check_device(self.device)
        check_precision(self.precision)
        if self.feature_point not in FEATURE_POINTS:
            raise unknown_name(
                "feature point", self.feature_point, FEATURE_POINTS, about="--feature-point"
            )
        if self.existing not in EXISTING:
            raise unknown_name("choice", self.existing, EXISTING, about="--existing")
        if self.batch_size < 1:
            raise UserError(f"is {self.batch_size}", about="--batch-size", fix="give 1 or more")


def check_device(name: str) -> None:
    """Raises UserError for an unknown name; whether the device is there is not looked at."""
    if name not in DEVICES:
        raise unknown_name("device", name, DEVICES, about="--device")


def check_precision(name: str) -> None:
    """Raises UserError for an unknown name."""
    if name not in PRECISIONS:
        raise unknown_name("precision", name, PRECISIONS, about="--precision")
