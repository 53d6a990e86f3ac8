"""Encode once, score many times: the features of one model for every task of one command.

The store keeps them for the commands after it.

Flow: ``extract = Extractor(model, settings)`` once a command; ``features =
extract(task.load(...))`` for each task; the task asks ``features.image("test")``,
``.text(prompts)``, ``.grids("test", view, method)`` and nothing is encoded before that.

- Pooled image embeddings are kept by the *content* of the dataset (its fingerprint), text
  embeddings by the tokens: tasks that share images or prompts share the encoding. An Extractor
  belongs to one model, whose weights do not change.
- A `silc_bench.system.cache.Store` keeps both on disk, part by part: what was finished is never
  encoded again, after a kill neither.
- Dense features come image by image from `silc_bench.evaluation.dense_features`.
- Images are decoded and preprocessed by ``num_workers`` processes (0: in this one).

``SharedExtractor`` stands in for ``Extractor`` where torchrun started several ranks, and gives the
bits that one process would get: the ranks take turns at the batches that one process would encode,
place them by index into zeros, and the sum over the ranks is everything (no gather, no padding).
Texts and dense features are encoded by every rank. The first rank alone reads and writes the store.

Shapes: N images or texts, B of them in a batch, D embedding, W ranks.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from silc_bench.datasets.dataset import ImageDataset
from silc_bench.errors import (
    ExplainedError,
    RunError,
    UserError,
    first_line,
)
from silc_bench.evaluation.dense_features import (
    DenseFeatures,
    Prepared,
    description,
    prepared,
    processes_for,
)
from silc_bench.evaluation.settings import EvalSettings, check_device, check_precision
from silc_bench.models.interface import (
    DenseModel,
    ImageModel,
    ImageTextModel,
    cut_texts,
    libraries_of,
)
from silc_bench.models.preprocessing import ImagePipeline
from silc_bench.models.windows import DenseImage, View
from silc_bench.system.cache import Entry, releases, text_hash
from silc_bench.system.checksums import checksum
from silc_bench.system.processes import concatenated, num_ranks, rank, summed
from silc_bench.system.terminal import progress_bar
from silc_bench.task import Task

Encode = Callable[[Tensor], Tensor]
PART_ROWS = 1024  # about what the store writes at a time: a few seconds of work


def choose_device(device: str | torch.device) -> torch.device:
    """``auto`` is the GPU where there is one.

    Raises UserError for an unknown name or a GPU that is not there.
    """
    if isinstance(device, torch.device):
        return device
    check_device(device)
    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        fix = "use --device cpu or auto"
        raise UserError("torch finds no GPU here", about="--device cuda", fix=fix)
    return torch.device("cuda" if has_cuda and device != "cpu" else "cpu")


def choose_precision(name: str, device: torch.device) -> str:
    """``auto`` is bf16 on a GPU and fp32 on a CPU. Raises UserError for an unknown name."""
    check_precision(name)
    if name != "auto":
        return name
    return "bf16" if device.type == "cuda" else "fp32"


class Extractor:
    """Encodes for one model and keeps what it encoded.

    Called with a task's data it gives that task's Features.
    """

    def __init__(self, model: ImageModel, settings: EvalSettings) -> None:
        self.device = choose_device(settings.device)
        self.model = model.to(self.device)
        self.precision = choose_precision(settings.precision, self.device)
        self.settings = settings

        self._images: dict[str, np.ndarray] = {}
        self._tokens: dict[str, str] = {}  # text -> key of what the model reads
        self._texts: dict[str, np.ndarray] = {}  # by that key
        self._dense: dict[tuple[str, ...], Callable[[Tensor], Any]] = {}
        self._is_trimmed = False  # whether the store was brought below its limit

        # they read patches, not embeddings, so they are kept apart: image by image, in a file each
        self.grids = DenseFeatures(
            cast(DenseModel, model),
            settings,
            self.device.type,
            self._encode_windows,
            lambda what: self._entry(kind="dense", **what),
        )

    def __call__(
        self, data: Mapping[str, ImageDataset], pipeline: ImagePipeline | None = None
    ) -> DatasetFeatures:
        """A task's Features; ``pipeline`` takes the place of the model's own preprocessing."""
        return DatasetFeatures(self, data, pipeline, str(self.device))

    def expect(self, task: Task, data: Mapping[str, ImageDataset]) -> None:
        """``task`` will be scored on ``data``.

        Dense features that several tasks read are then encoded in one pass.
        """
        for role, methods in task.dense_needs().items():
            self.grids.expect(data[role], task.view, methods)

    def image(self, dataset: ImageDataset, pipeline: ImagePipeline | None = None) -> np.ndarray:
        """[N, D] fp32, in the dataset's order.

        What the store holds is not encoded; each finished part goes into it.
        """
        image = pipeline.as_dict() if pipeline else self.model.image_protocol
        what = {
            "image": image,
            "feature_point": self.settings.feature_point,
            "dataset": description(dataset),
        }

        # by content, not by name: two tasks that load the same images share the encoding
        key = json.dumps(what, sort_keys=True)
        if key not in self._images:
            images = Prepared(pipeline or self.model.preprocess, dataset)
            self._images[key] = self._encoded(images, self._entry(kind="image", **what))
        return self._images[key]

    def _encoded(self, images: Prepared, entry: Entry | None) -> np.ndarray:
        # NaN, not zeros: a row that nobody fills must not pass for an embedding
        features, is_known = self._stored(len(images), np.nan, entry)
        self._encode_parts(images, self._missing(is_known), features, entry)
        return features

    def _encode_parts(
        self, images: Prepared, parts: list[slice], features: np.ndarray, entry: Entry | None
    ) -> None:
        """``parts`` into their rows of ``features``; of W ranks each takes every W-th batch."""
        # the batches of one process, in its order: a row's bits can depend on its batch
        size = self.settings.batch_size
        batches: list[range] = []
        for part in parts:
            for start in range(part.start, part.stop, size):
                batches.append(range(start, min(start + size, part.stop)))
        indices = [index for batch in batches[rank() :: num_ranks()] for index in batch]

        point = self.settings.feature_point
        encode = self._compiled(partial(self.model.encode_image, point=point))
        for batch_indices, batch in self._batches(images, encode, indices):
            features[batch_indices] = batch

            # a part goes to the store with its last batch: a kill costs one part at most
            start = int(batch_indices[0]) // self._part_size * self._part_size
            stop = int(batch_indices[-1]) + 1
            if entry is not None and (stop - start == self._part_size or stop == len(images)):
                entry.save(start, features[start:stop])

    def _stored(
        self, num_rows: int, empty: float, entry: Entry | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows [N, D] that the store holds, and which these are [N]; the others are ``empty``."""
        width = self.model.feature_points[self.settings.feature_point]
        if entry is not None:
            return entry.rows(num_rows, width)
        return np.full((num_rows, width), empty, np.float32), np.zeros(num_rows, bool)

    @property
    def _part_size(self) -> int:
        """Rows a part, always whole batches.

        An extraction that goes on after a kill then encodes the same batches, and so the same bits.
        """
        batch_size = self.settings.batch_size
        return batch_size * max(1, PART_ROWS // batch_size)

    def _missing(self, is_known: np.ndarray) -> list[slice]:
        """The parts that are to be encoded.

        A part that the store holds in pieces is one of them: same batches, same bits.
        """
        starts = range(0, len(is_known), self._part_size)
        parts = [slice(start, min(start + self._part_size, len(is_known))) for start in starts]
        return [part for part in parts if not is_known[part].all()]

    def text(self, texts: Sequence[str]) -> np.ndarray:
        """[len(texts), D] fp32; what the model reads as one text is encoded once."""
        model = cast(ImageTextModel, self.model)
        keys = self._read(texts)
        if not self._texts.keys() >= set(keys):
            # kept by its tokens: "Red" and "red" can be one text for a model, and must not get
            # two embeddings from two batches or from a store
            entry = self._entry(kind="tokens", text=model.text_protocol)
            if entry is not None:
                known = entry.texts(model.embed_dim)
                hashes = {key: text_hash(key) for key in keys}
                self._texts |= {key: known[h] for key, h in hashes.items() if h in known}

            # of the texts that share a key the first in order, whatever was asked first
            missing: dict[str, str] = {}
            for text, key in sorted(zip(texts, keys, strict=True)):
                if key not in self._texts:
                    missing.setdefault(key, text)
            # in a fixed order: a set has another one in each process, and so would the batches
            in_order = sorted(missing.items(), key=lambda item: (len(item[1]), item[1]))
            self._encode_texts(model, in_order, entry)
        return np.stack([self._texts[key] for key in keys])

    def same_text(self, texts: Sequence[str]) -> np.ndarray:
        """[len(texts)] int64: of each text the place of the first that the model reads alike."""
        keys = self._read(texts)
        first: dict[str, int] = {}
        return np.array([first.setdefault(key, place) for place, key in enumerate(keys)], np.int64)

    def _read(self, texts: Sequence[str]) -> list[str]:
        """Of each text a key of what the model reads: its tokens."""
        model = cast(ImageTextModel, self.model)
        new = sorted(set(texts) - self._tokens.keys())
        for start in range(0, len(new), self.settings.batch_size):
            batch = new[start : start + self.settings.batch_size]
            rows = model.tokenize(batch).numpy()
            self._tokens |= {
                text: checksum(np.ascontiguousarray(row).tobytes())
                for text, row in zip(batch, rows, strict=True)
            }
        return [self._tokens[text] for text in texts]

    def _encode_texts(
        self, model: ImageTextModel, texts: list[tuple[str, str]], entry: Entry | None
    ) -> None:
        """``texts``: key and text."""
        batch_size = self.settings.batch_size
        with progress_bar(self.settings.progress, "texts", len(texts)) as advance:
            for start in range(0, len(texts), batch_size):
                keys, batch = map(list, zip(*texts[start : start + batch_size], strict=True))
                features = self._encode(model.encode_text, model.tokenize(batch))

                self._check_finite(features, [f"text {text!r}" for text in batch])
                self._texts.update(zip(keys, features, strict=True))
                if entry is not None:
                    entry.save_texts(keys, features)
                advance(len(batch))

    def seconds_an_image(self, dataset: ImageDataset, count: int = 4) -> float:
        """What the first ``count`` images take, decoded and encoded in this process.

        One image more goes before them and is not counted: the first pass of a network is slow.
        """
        self._encode(self.model.encode_image, self.model.preprocess(dataset.image(0))[None])
        started = time.perf_counter()
        pixels = [self.model.preprocess(dataset.image(i)) for i in range(min(count, len(dataset)))]

        # a model that keeps the shape of images takes them one by one
        is_batch = len({image.shape for image in pixels}) == 1
        for batch in [torch.stack(pixels)] if is_batch else [image[None] for image in pixels]:
            self._encode(self.model.encode_image, batch)
        return (time.perf_counter() - started) / len(pixels)

    def _entry(self, **what: Any) -> Entry | None:
        """Where the store keeps embeddings of this kind.

        The entry is named by everything that can change one of their bits.
        """
        store = self.settings.store
        if store is None:
            return None

        # once a model: it looks at each file of the store, of which dense features have very many
        if not self._is_trimmed:
            self._is_trimmed = True
            store.trim()
        compiled = "compiled " if self.settings.is_compiled else ""

        # the libraries count too: another Pillow resizes, another torch multiplies differently
        how = {
            "precision": self.precision,
            "device": self.device.type,
            "torch": f"{compiled}{torch.__version__}",
        }
        how |= releases("pillow", *libraries_of(self.model))
        return store.entry(
            {"model": self.model.name, "revision": self.model.revision, **how, **what}
        )

    def _batches(
        self, images: Prepared, encode: Encode, indices: Sequence[int]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(indices of a batch, its features) for the images ``indices``, in that order."""
        num_workers = self.settings.num_workers
        if num_workers is None:
            num_bytes = self.settings.batch_size * 3 * self.model.image_size**2 * 4
            num_workers = processes_for(images.dataset, len(indices), num_bytes)
        batches = prepared(
            images,
            indices,
            batch_size=self.settings.batch_size,
            # They cost seconds to start: none where the store held everything.
            num_workers=num_workers if indices else 0,
            is_pinned=self.device.type == "cuda",
        )

        title = f"{images.dataset.name}/{images.dataset.split}"
        with progress_bar(self.settings.progress, f"{title} image", len(images)) as advance:
            advance(len(images) - len(indices))
            for batch_indices, pixels in batches:
                features = self._encode(encode, pixels)

                # here, not in the task: a mean would hide which image it was
                numbers = batch_indices.numpy()
                self._check_finite(features, [f"image {number} of {title}" for number in numbers])
                yield numbers, features
                advance(len(numbers))

    def _check_finite(self, features: np.ndarray, names: Sequence[str]) -> None:
        """Raises RunError for the first row of [B, D] that holds a NaN or an infinity."""
        is_bad = ~np.isfinite(features).all(axis=1)
        if is_bad.any():
            problem = f"gives features of {names[is_bad.argmax()]} that are not finite"
            fix = "try --precision fp32, or an earlier checkpoint"
            raise RunError(problem, about=self.model.name, fix=fix)

    def _compiled(self, encode: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
        if not self.settings.is_compiled:
            return encode
        compiled = torch.compile(lambda images: encode(images))

        def checked(images: Tensor) -> Any:
            try:
                return compiled(images)
            except torch._dynamo.exc.TorchDynamoException as error:
                # no C++ compiler, or an operation that it cannot take
                problem = f"cannot be compiled here ({first_line(error)})"
                fix = "leave --compile out"
                raise UserError(problem, about=self.model.name, fix=fix) from error

        return checked

    def _encode_windows(self, windows: Tensor, methods: Sequence[str]) -> dict[str, np.ndarray]:
        names = tuple(methods)
        if names not in self._dense:
            self._dense[names] = self._compiled(
                partial(cast(Any, self.model).encode_dense, methods=names)
            )

        features = self._run(self._dense[names], windows)
        return {name: part.float().cpu().numpy() for name, part in features.items()}

    def _encode(self, encode: Encode, inputs: Tensor) -> np.ndarray:
        return self._run(encode, inputs).float().cpu().numpy()

    def _run(self, encode: Callable[[Tensor], Any], inputs: Tensor) -> Any:
        # autocast keeps the weights in fp32, and the operations that need it too
        bf16 = torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"
        )
        with torch.inference_mode(), bf16:
            return encode(inputs.to(self.device, non_blocking=True))


@dataclass
class DatasetFeatures:
    """What `silc_bench.task.Features` promises: a task's data beside the extractor."""

    extractor: Extractor
    data: Mapping[str, ImageDataset]
    pipeline: ImagePipeline | None
    device: str
    _asked: dict[str, None] = field(default_factory=dict)  # texts, in the order they came

    def notes(self) -> tuple[str, ...]:
        """What the model did not read of the texts it was asked: a sentence, or nothing."""
        texts = list(self._asked)
        model = self.extractor.model
        cut = cut_texts(model, texts) if texts else None
        if not cut:
            return ()
        length = cast(ImageTextModel, model).text_protocol["length"]
        return (
            f"{len(cut)} of {len(texts)} texts are cut at {length} tokens, first"
            f" {texts[cut[0]]!r:.80}",
        )

    def image(self, role: str) -> np.ndarray:
        return self.extractor.image(self.data[role], self.pipeline)

    def text(self, texts: Sequence[str]) -> np.ndarray:
        self._asked |= dict.fromkeys(texts)
        return self.extractor.text(texts)

    def same_text(self, texts: Sequence[str]) -> np.ndarray:
        return self.extractor.same_text(texts)

    def grids(self, role: str, view: View | None, method: str) -> Iterator[DenseImage]:
        return self.extractor.grids(self.data[role], view, method)


class SharedExtractor(Extractor):
    """Called with the same data in the same order by every rank; each gets all features."""

    def _encoded(self, images: Prepared, entry: Entry | None) -> np.ndarray:
        # zeros, not NaN: what other ranks fill must not change the sum
        features, is_known = self._stored(len(images), 0, entry)

        # the first rank tells the others what its store holds: their share adds nothing there
        missing = self._missing(self._sum(is_known.astype(np.float32)) > 0)
        for part in missing:
            features[part] = 0

        failure: Exception | None = None
        try:
            self._encode_parts(images, missing, features, None)
        except Exception as error:
            # not raised here: the other ranks wait below, and would wait for ever
            failure = error

        # all ranks raise the same error: it does not matter which of them is heard in the end
        for first in concatenated([] if failure is None else [_told(failure)]):
            raise first from failure

        features = self._sum(features)
        if entry is not None:
            for part in missing:
                entry.save(part.start, features[part])
        return features

    def _sum(self, values: np.ndarray) -> np.ndarray:
        return summed(torch.from_numpy(values).to(self.device)).cpu().numpy()


def _told(error: Exception) -> UserError | RunError:
    """What a rank tells the others of its error."""
    place = f"rank {rank()} of {num_ranks()}"
    if not isinstance(error, ExplainedError):
        fix = "read the log of that rank; what is stored by now is not encoded again"
        return RunError(first_line(error), about=place, fix=fix)
    kind = UserError if isinstance(error, UserError) else RunError
    about = f"{place}: {error.about}" if error.about else place
    return kind(error.problem, about=about, fix=error.fix)
