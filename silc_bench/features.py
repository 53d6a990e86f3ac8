"""Encode once, score many times: a model's features for every task of one command.

Flow: ``extract = Extractor(model, device=...)`` once a command; ``features = extract(task.load(...))`` for each task; the task
asks ``features.image("test")``, ``.text(prompts)``, ``.dense("test", joint=True)`` and nothing is encoded before that.

- Pooled image embeddings are kept by the *content* of the dataset (its fingerprint), text embeddings by the text itself:
  tasks that share pictures or prompts share the encoding. An Extractor belongs to one model, whose weights do not change.
- Dense features are streamed in batches and not kept: one pass each is all that the tasks ask, and they are large.
- Pictures are decoded and preprocessed by ``num_workers`` processes (0: in this one).

Shapes: N pictures or texts, B of them in a batch, D embedding, h x w patches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import cast

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from silc_bench.datasets import ImageDataset
from silc_bench.errors import RunError, UserError, unknown_name
from silc_bench.models import DenseModel, ImageModel, ImageTextModel

Encode = Callable[[Tensor], Tensor]
DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "fp32", "bf16")


def choose_device(name: str) -> torch.device:
    """``auto`` is the GPU where there is one. Raises UserError for an unknown name or a GPU that is not there."""
    if name not in DEVICES:
        raise unknown_name("device", name, DEVICES)
    has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        raise UserError("device 'cuda' was asked for but torch finds no GPU here; use --device cpu or auto")
    return torch.device("cuda" if has_cuda and name != "cpu" else "cpu")


def choose_precision(name: str, device: torch.device) -> str:
    """``auto`` is bf16 on a GPU and fp32 on a CPU. Raises UserError for an unknown name."""
    if name not in PRECISIONS:
        raise unknown_name("precision", name, PRECISIONS)
    if name != "auto":
        return name
    return "bf16" if device.type == "cuda" else "fp32"


class Extractor:
    """Encodes for one model and keeps what it encoded; called with a task's data it gives that task's Features."""

    def __init__(
        self,
        model: ImageModel,
        *,
        device: torch.device,
        precision: str,
        feature_point: str = "pooled",
        batch_size: int,
        num_workers: int,
        progress: bool,
    ) -> None:
        self.model = model.to(device)
        self.device = device
        self.precision = precision
        self.feature_point = feature_point
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.progress = progress
        self._images: dict[tuple[str, str, str], np.ndarray] = {}
        self._texts: dict[str, np.ndarray] = {}

    def __call__(self, data: Mapping[str, ImageDataset]) -> DatasetFeatures:
        return DatasetFeatures(self, data)

    def image(self, dataset: ImageDataset) -> np.ndarray:
        """[N, D] fp32, in the dataset's order."""
        key = (dataset.name, dataset.split, dataset.fingerprint)
        if key not in self._images:
            width = self.model.feature_points[self.feature_point]
            features = np.full((len(dataset), width), np.nan, dtype=np.float32)
            encode = partial(self.model.encode_image, point=self.feature_point)
            for indices, batch in self._batches(dataset, "image", encode):
                features[indices] = batch
            self._images[key] = features
        return self._images[key]

    def dense(self, dataset: ImageDataset, joint: bool) -> Iterator[np.ndarray]:
        """Batches [B, h, w, D] fp32, in the dataset's order."""
        encode = partial(cast(DenseModel, self.model).encode_dense, joint=joint)
        for _, batch in self._batches(dataset, "dense", encode):
            yield batch

    def text(self, texts: Sequence[str]) -> np.ndarray:
        """[len(texts), D] fp32; equal texts are encoded once."""
        model = cast(ImageTextModel, self.model)
        missing = sorted(set(texts) - self._texts.keys(), key=lambda text: (len(text), text))
        with _bar(self.progress, "texts", len(missing)) as advance:
            for start in range(0, len(missing), self.batch_size):
                batch = missing[start : start + self.batch_size]
                features = self._encode(model.encode_text, model.tokenize(batch))
                bad = _first_not_finite(features)
                if bad is not None:
                    raise RunError(f"{self.model.name} gives a text embedding that is not finite: {batch[bad]!r}")
                self._texts.update(zip(batch, features, strict=True))
                advance(len(batch))
        return np.stack([self._texts[text] for text in texts])

    def _batches(self, dataset: ImageDataset, kind: str, encode: Encode) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        loader = DataLoader(
            _Preprocessed(self.model, dataset),
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            pin_memory=self.device.type == "cuda",
        )
        with _bar(self.progress, f"{dataset.name}/{dataset.split} {kind}", len(dataset)) as advance:
            for indices, images in loader:
                features = self._encode(encode, images)
                bad = _first_not_finite(features)
                if bad is not None:
                    raise RunError(
                        f"{self.model.name} gives {kind} features that are not finite for picture {int(indices[bad])}"
                        f" of {dataset.name}/{dataset.split} ({self.precision} on {self.device})"
                    )
                yield indices.numpy(), features
                advance(len(indices))

    def _encode(self, encode: Encode, inputs: Tensor) -> np.ndarray:
        bf16 = torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")
        with torch.inference_mode(), bf16:
            features = encode(inputs.to(self.device, non_blocking=True))
        return features.float().cpu().numpy()


class DatasetFeatures:
    """What `silc_bench.registry.Features` promises: one task's data beside the extractor that encodes it."""

    def __init__(self, extractor: Extractor, data: Mapping[str, ImageDataset]) -> None:
        self.data = data
        self._extractor = extractor

    def image(self, role: str) -> np.ndarray:
        return self._extractor.image(self.data[role])

    def text(self, texts: Sequence[str]) -> np.ndarray:
        return self._extractor.text(texts)

    def dense(self, role: str, joint: bool) -> Iterator[np.ndarray]:
        return self._extractor.dense(self.data[role], joint)


class _Preprocessed(Dataset):
    """(index, [3, H, W]) as the model wants its pictures."""

    def __init__(self, model: ImageModel, dataset: ImageDataset) -> None:
        self.model = model
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        return index, self.model.preprocess(self.dataset.image(index))


def _first_not_finite(features: np.ndarray) -> int | None:
    bad = ~np.isfinite(features).reshape(len(features), -1).all(axis=1)
    return int(bad.argmax()) if bad.any() else None


@contextmanager
def _bar(enabled: bool, title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on the error stream with pictures a second and the time left; yields the function that advances it."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not enabled or not total) as bar:
        task_id = bar.add_task(title, total=total, rate="")

        def advance(count: int) -> None:
            speed = bar.tasks[task_id].speed
            bar.update(task_id, advance=count, rate=f"{speed:.0f}/s" if speed else "")

        yield advance
