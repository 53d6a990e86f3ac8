"""What a measurement asks, named and hashed (no torch).

A question is everything that the evaluation decides. How a checkpoint takes it in - its own size,
crop, tokenizer, precision - is its setup (`silc_bench.results.setup`). So models with different
preprocessing answer one question, and a column of the leaderboard is a question.

Flow: ``Question.of(task, data, ...)`` -> ``.hash`` is the column, and with the setup's hash the key
of a record -> ``.as_dict()`` goes into the record whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self, cast

if TYPE_CHECKING:
    from silc_bench.datasets.dataset import ImageDataset
    from silc_bench.task import Task

MODELS_OWN = "the model's own preprocessing"


class Stated:
    """What questions and setups share: frozen fields of plain JSON, named by their hash."""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of ``as_dict``.

        Raises:
            ValueError: a field is missing or unknown, or the hash does not follow from the fields.
        """
        given = dict(data)
        stated_hash = given.pop("hash", None)
        known = {field.name for field in fields(cast(Any, cls))}
        if given.keys() != known:
            wrong = ", ".join(sorted(given.keys() ^ known))
            raise ValueError(f"has missing or unknown fields: {wrong}")

        made = cls(**given)
        if made.hash != stated_hash:
            raise ValueError(f"its hash is {stated_hash}, and its fields give {made.hash}")
        return made

    def __post_init__(self) -> None:
        # raises here, where the task or model that gave the field is still known
        _ = self.hash

    @cached_property
    def hash(self) -> str:
        """16 hex digits that any field changes."""
        return hash_of(self.stated())

    def stated(self) -> dict[str, Any]:
        """The fields by name, not copied: they are plain JSON."""
        return {field.name: getattr(self, field.name) for field in fields(cast(Any, self))}

    def as_dict(self) -> dict[str, Any]:
        """The hash and all fields, as plain JSON."""
        return {"hash": self.hash, **plain(self.stated())}


@dataclass(frozen=True)
class Question(Stated):
    """Every choice of the evaluation that can move a number.

    The dicts hold JSON only; a NaN or an array in them is a ValueError.
    """

    task: str  # "cifar100/zeroshot"
    task_version: int
    main_metric: str

    # of silc_bench.evaluation.protocols; "native": the checkpoint's own preprocessing and the
    # dataset's own prompts
    protocol: str
    protocol_version: int  # of what the name means

    # what the protocol does to images, as a rule that holds for a model of any size
    image: str | dict[str, Any]

    # how many names are asked for, and their hash; empty where no text is encoded
    class_names: dict[str, Any]
    asks: dict[str, Any]  # Task.protocol(): prompts, shots, draws, penalties, dense method ...

    # name, split and fingerprint of the scored data; the fingerprints of what was learned from, by
    # role ("pools"); what the pixels of masks mean ("masks")
    dataset: dict[str, Any]
    limit: int | None  # images a split; None: all

    @classmethod
    def of(
        cls,
        task: Task,
        data: Mapping[str, ImageDataset],
        *,
        limit: int | None = None,
        protocol: str = "native",
        protocol_version: int = 1,
        image: str | dict[str, Any] = MODELS_OWN,
    ) -> Question:
        """What measuring ``task`` on ``data`` asks; ``task`` has the protocol's words by now.

        Args:
            data: by role; "test" is the scored one.
            protocol: the name of the protocol, and ``protocol_version`` of what it means.
            image: what the protocol does to images.
        """
        test = data["test"]
        is_dense = "dense" in task.requires
        names = test.mask_names if is_dense else test.class_names
        dataset: dict[str, Any] = {
            "name": test.name,
            "split": test.split,
            "fingerprint": test.fingerprint,
            "pools": {role: pool.fingerprint for role, pool in data.items() if role != "test"},
            "masks": dict(test.mask_policy) if is_dense else {},
        }
        return cls(
            task=task.name,
            task_version=task.version,
            main_metric=task.main_metric,
            protocol=protocol,
            protocol_version=protocol_version,
            image=image,
            # the names of classes move a number only where they are read as words
            class_names=_names(names) if "text" in task.requires and names else {},
            asks=task.protocol(),
            dataset=dataset,
            limit=limit,
        )

    def __repr__(self) -> str:
        part = "" if self.limit is None else f", limit {self.limit}"
        return f"<Question {self.task}, {self.protocol}{part}, {self.hash[:8]}>"


def _names(class_names: Sequence[str]) -> dict[str, Any]:
    """By their hash, for ImageNet has a thousand."""
    content = json.dumps(list(class_names)).encode()
    return {"count": len(class_names), "sha256": hashlib.sha256(content).hexdigest()[:16]}


def canonical(value: Mapping[str, Any]) -> str:
    """JSON with keys sorted, no spaces, no NaN.

    Raises:
        ValueError: a field is no plain JSON (a NaN, an array, a set).
    """
    try:
        return json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise ValueError(f"every field must be plain JSON, but {error}: {value!r:.200}") from error


def hash_of(value: Mapping[str, Any]) -> str:
    """First 16 hex digits of the SHA-256 of ``canonical``; the order of keys does not count."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:16]


def plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """The value as a reader of its JSON sees it: tuples have become lists, keys are sorted."""
    return json.loads(canonical(value))
