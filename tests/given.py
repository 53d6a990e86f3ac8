"""Data, features and evaluations as tests give them: arrays in place of images and models."""

from types import SimpleNamespace

import numpy as np

from silc_bench.evaluation.evaluate import evaluate
from silc_bench.evaluation.features import Extractor
from silc_bench.evaluation.settings import EvalSettings


def measured(model, tasks, results_dir, data_root=None, on_result=lambda *_: None, **settings):
    """The records of ``tasks``, written below ``results_dir``."""
    return evaluate(
        model,
        tasks,
        EvalSettings(**{"device": "cpu", **settings}),
        model_source="where it came from",
        data_root=data_root,
        results_dir=results_dir,
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
