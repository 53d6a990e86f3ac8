"""Data, features and evaluations as tests give them: arrays in place of images and models."""

from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from silc_bench.evaluation.evaluate import evaluate
from silc_bench.evaluation.features import Extractor
from silc_bench.evaluation.settings import EvalSettings
from silc_bench.models.preprocessing import ImagePipeline


def measured(
    model, tasks, results_dir, data_root=None, on_result=lambda *_: None, known_in=(), **settings
):
    """The records of ``tasks``, written below ``results_dir``."""
    return evaluate(
        model,
        tasks,
        EvalSettings(**{"device": "cpu", **settings}),
        model_source="where it came from",
        data_root=data_root,
        results_dir=results_dir,
        also_known_in=known_in,
        on_result=on_result,
    )


def extractor(model, **settings):
    defaults = {"device": "cpu", "precision": "fp32", "batch_size": 4}
    return Extractor(model, EvalSettings(**{**defaults, **settings}))


class GivenData(SimpleNamespace):
    """A dataset of which only what is given exists: labels, captions, masks ..."""

    def __init__(self, **fields):
        what = {"name": "given", "split": "test", "fingerprint": "0" * 16, "class_names": ()}
        super().__init__(**{**what, **fields})

    def __len__(self):
        parts = (getattr(self, name, None) for name in ("labels", "captions", "masks"))
        return len(next(part for part in parts if part is not None))

    def mask(self, index):
        return self.masks[index]


class GivenFeatures(SimpleNamespace):
    """``data`` and ``images`` by role, ``texts``: an embedding by text."""

    device = "cpu"

    def image(self, role):
        return self.images[role]

    def text(self, texts):
        return np.stack([self.texts[text] for text in texts])

    def same_text(self, texts):
        return np.array([texts.index(text) for text in texts])


class Noise:
    """Images of noise, of these widths and heights."""

    name, split, class_names, labels, captions, mask_names = "noise", "test", (), None, None, ()

    def __init__(self, sizes, seed=0):
        self.sizes, self.seed, self.fingerprint = sizes, seed, repr((sizes, seed))

    def __len__(self):
        return len(self.sizes)

    def image(self, index):
        width, height = self.sizes[index]
        rng = np.random.default_rng([self.seed, index])
        return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


class Means:
    """Embeds an image as its mean colour, a text as its length; counts what it is asked for.

    Of the dense methods "tokens" are the mean colours of each patch, and every other is twice that.
    """

    name, revision, num_params = "runs/means:student", "0123456789abcdef", 7
    embed_dim, image_size, patch_size = 3, 8, 4
    dense_methods = ("tokens", "twice")

    def __init__(self):
        self.pipeline = ImagePipeline(8, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
        self.feature_points = {"pooled": 3, "mean_patch": 3}
        self.image_protocol, self.text_protocol = self.pipeline.as_dict(), {"cleaning": "none"}
        self.batches, self.methods, self.texts, self.dtype = [], [], 0, None
        self.asked = set()

    @property
    def images(self):
        return sum(self.batches)

    def preprocess(self, image):
        return self.pipeline(image)

    def tokenize(self, texts):
        self.asked.update(texts)
        return torch.tensor([[len(text), text.count("e"), 1] for text in texts])

    def encode_image(self, images, point="pooled"):
        self.batches.append(len(images))
        features = images.mean(dim=(2, 3)) @ torch.eye(3)
        self.dtype = features.dtype
        return features * (2 if point == "mean_patch" else 1)

    def encode_text(self, tokens):
        self.texts += len(tokens)
        return tokens.float()

    def encode_dense(self, images, methods):
        self.batches.append(len(images))
        self.methods.append(tuple(methods))
        tokens = torch.nn.functional.avg_pool2d(images, 4).permute(0, 2, 3, 1)
        return {name: tokens * (1 if name == "tokens" else 2) for name in methods}

    def to(self, device):
        return self
