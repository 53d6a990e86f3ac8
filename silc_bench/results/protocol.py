"""What exactly was measured, named and hashed (no torch).

Two numbers may share a column only if their protocols hash alike.

Flow: ``Protocol.of(model, task, precision)`` -> ``.hash`` decides, with the data, whether a record
exists -> ``.as_dict()`` goes into it whole, so that the leaderboard can say which field differs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from silc_bench.models.interface import ImageModel
    from silc_bench.task import Task


@dataclass(frozen=True)
class Protocol:
    """Every choice that can move a number.

    The dicts hold JSON only; a NaN or an array in them is a ValueError.
    """

    # of silc_bench.evaluation.protocols; "native": the checkpoint's own preprocessing and the
    # dataset's own prompts
    name: str
    version: int  # of what the name means
    image: dict[str, Any]  # ImageTextModel.image_protocol
    text: dict[str, Any]  # ImageTextModel.text_protocol; empty where no text is encoded
    # how many names are asked for, and their hash; empty where no text is encoded
    class_names: dict[str, Any]
    task: dict[str, Any]  # Task.protocol()
    task_version: int
    main_metric: str
    feature_point: str  # of models.FEATURE_POINTS, or "dense"
    precision: str  # of the forward pass: "fp32", "bf16"

    @classmethod
    def of(
        cls,
        model: ImageModel,
        task: Task,
        precision: str,
        *,
        feature_point: str = "pooled",
        name: str = "native",
        version: int = 1,
        image: dict[str, Any] | None = None,
        class_names: Sequence[str] = (),
    ) -> Protocol:
        """What measuring ``task`` on ``model`` means.

        Args:
            feature_point: where image embeddings are read.
            name: of the named protocol; its prompts are the task's by now.
            version: of what the name means.
            image: preprocessing, where it is not the model's own.
            class_names: of the scored data, in label order; they count where text is encoded.
        """
        # the names of classes move a number only where they are read as words
        has_text = "text" in task.requires
        text: dict[str, Any] = {}
        if has_text:
            text = model.text_protocol  # type: ignore[attr-defined]  # check_supported has asked

        return cls(
            name=name,
            version=version,
            image=model.image_protocol if image is None else image,
            text=text,
            class_names=_names(class_names) if has_text and class_names else {},
            task=task.protocol(),
            task_version=task.version,
            main_metric=task.main_metric,
            feature_point="dense" if "dense" in task.requires else feature_point,
            precision=precision,
        )

    def __post_init__(self) -> None:
        # raises here, where the task that gave the field is still known, not when it is hashed
        _canonical(asdict(self))

    @property
    def hash(self) -> str:
        """First 16 hex digits of the SHA-256 of the canonical JSON.

        Any field counts, the order of keys does not.
        """
        return hashlib.sha256(_canonical(asdict(self)).encode()).hexdigest()[:16]

    def as_dict(self) -> dict[str, Any]:
        """All fields and the hash, as plain JSON (tuples have become lists), keys sorted."""
        return json.loads(_canonical({**asdict(self), "hash": self.hash}))


def _names(class_names: Sequence[str]) -> dict[str, Any]:
    """By their hash, for ImageNet has a thousand."""
    content = json.dumps(list(class_names)).encode()
    return {"count": len(class_names), "sha256": hashlib.sha256(content).hexdigest()[:16]}


def _canonical(value: dict[str, Any]) -> str:
    """One text for equal values: keys sorted, no spaces, no NaN."""
    try:
        return json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"protocol: every field must be plain JSON, but {error}: {value!r:.200}"
        ) from error
