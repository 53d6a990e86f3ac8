"""What a checkpoint and a run bring to a question, named and hashed (no torch).

One command gives a model one setup for all of its tasks. Two setups of one model - bf16 and fp32,
two versions of a library - are two rows of the leaderboard.

Flow: ``Setup.of(model, precision, device)`` -> ``.hash``, with the question's, is the key of a
record -> ``.as_dict()`` goes into the record whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from silc_bench.results.question import Stated, hash_of
from silc_bench.system.cache import releases

if TYPE_CHECKING:
    from silc_bench.models.interface import ImageModel

# decode, resize and encode for every model; the model's own libraries come on top
LIBRARIES = ("torch", "pillow")
# What a task reads where the user chose no other point: it is no choice, and makes no row.
USUAL_POINTS = ("pooled", "patches")


@dataclass(frozen=True)
class Setup(Stated):
    """How a model takes a question in. The dicts hold JSON only."""

    image: dict[str, Any]  # ImageModel.image_protocol: its own size, resize, crop, mean and std
    # ImageTextModel.text_protocol: tokenizer, cleaning, length; empty for a model without text
    text: dict[str, Any]
    network: dict[str, Any]  # what changes its embeddings and is no weight: activations ...
    feature_point: str  # of models.FEATURE_POINTS; "patches" where a task reads those
    precision: str  # of the forward pass: "fp32", "bf16"
    device: str  # "cpu", or the name of the GPU
    libraries: dict[str, str]  # versions

    @classmethod
    def of(
        cls, model: ImageModel, *, precision: str, device: str, feature_point: str = "pooled"
    ) -> Setup:
        """``feature_point``: where the task reads; ``device`` as a reader would name it."""
        from silc_bench.models.interface import libraries_of

        return cls(
            image=model.image_protocol,
            text=getattr(model, "text_protocol", {}),
            network=getattr(model, "settings", {}),
            feature_point=feature_point,
            precision=precision,
            device=device,
            libraries=releases(*LIBRARIES, *libraries_of(model)),
        )

    def __repr__(self) -> str:
        return f"<Setup {self.precision} on {self.device}, {self.feature_point}, {self.hash[:8]}>"

    @cached_property
    def row(self) -> str:
        """As ``hash``, but equal for the tasks of one command, wherever they read."""
        kept = self.stated()
        if self.feature_point in USUAL_POINTS:
            del kept["feature_point"]
        return hash_of(kept)
