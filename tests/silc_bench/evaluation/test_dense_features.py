"""Dense features: as one window at a time would give them, encoded once for all who ask."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from silc_bench.errors import RunError, UserError
from silc_bench.evaluation import dense_features as dense
from silc_bench.evaluation.dense_features import image_protocol, native_view
from silc_bench.evaluation.features import Extractor
from silc_bench.models.preprocessing import ImagePipeline
from silc_bench.models.windows import View
from silc_bench.system.cache import Store

SIZES = [(8, 8), (20, 9), (9, 31), (16, 16), (1, 1), (40, 8)]  # width, height


class Noise:
    """Pictures of many shapes."""

    name, split, class_names, labels, captions, mask_names = "noise", "test", (), None, None, ()

    fingerprint = "0" * 16

    def __len__(self):
        return len(SIZES)

    def image(self, index):
        width, height = SIZES[index]
        return Image.fromarray(
            np.random.default_rng(index).integers(0, 256, (height, width, 3), dtype=np.uint8)
        )


class Patches:
    """ "tokens" are the means of each patch's colours, "twice" is twice that."""

    name, revision, embed_dim, image_size, patch_size = "patches", "0" * 16, 3, 8, 4
    feature_points, dense_methods = {"pooled": 3}, ("tokens", "twice")

    def __init__(self):
        self.pipeline = ImagePipeline(8, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
        self.image_protocol = self.pipeline.as_dict()
        self.batches, self.methods = [], []

    def encode_dense(self, images, methods):
        self.batches.append(len(images))
        self.methods.append(tuple(methods))
        tokens = torch.nn.functional.avg_pool2d(images, 4).permute(0, 2, 3, 1)
        return {name: tokens * (2 if name == "twice" else 1) for name in methods}

    def to(self, device):
        return self


def extractor(model, **options):
    defaults = {
        "device": torch.device("cpu"),
        "precision": "fp32",
        "batch_size": 4,
        "num_workers": 0,
        "progress": False,
    }
    return Extractor(model, **{**defaults, **options})


def alone(model, picture, view):
    """The grid of one picture, window by window, in plain loops."""
    resized = view.resized(picture, "bicubic")
    layout = view.layout(*resized.shape[:2], model.patch_size)
    rows = []
    for top in layout.tops:
        row = []
        for left in layout.lefts:
            crop = Image.fromarray(resized[top : top + view.window, left : left + view.window])
            pixels = ImagePipeline(view.window, model.pipeline.mean, model.pipeline.std)(crop)
            row.append(Patches().encode_dense(pixels[None], ["tokens"])["tokens"][0].numpy())
        rows.append(np.concatenate(row, axis=1))
    return np.concatenate(rows), layout


@pytest.mark.timing
@pytest.mark.parametrize("view", [None, View(8, 8, 4), View(12, 8, 8), View(20, 16, 5)])
@pytest.mark.parametrize(
    "options", [{}, {"batch_size": 1}, {"batch_size": 1000}, {"num_workers": 2}]
)
def test_grids_are_those_of_each_window_by_itself(view, options):
    model, data = Patches(), Noise()
    pictures = list(extractor(model, **options)({"test": data}).grids("test", view, "tokens"))
    assert [picture.index for picture in pictures] == list(range(len(SIZES)))
    for picture in pictures:
        grid, layout = alone(model, data.image(picture.index), view or native_view(model))
        assert picture.layout == layout
        assert picture.grid.dtype == np.float32
        np.testing.assert_array_equal(picture.grid, grid.astype(np.float16), err_msg="kept in fp16")


def test_what_was_announced_is_encoded_in_one_pass_and_read_again_from_memory():
    model, data = Patches(), Noise()
    extract = extractor(model)
    extract.grids.expect(data, None, ["twice"])
    features = extract({"test": data})
    tokens = [picture.grid for picture in features.grids("test", None, "tokens")]
    passes = len(model.batches)
    twice = [picture.grid for picture in features.grids("test", None, "twice")]
    again = [picture.grid for picture in features.grids("test", None, "tokens")]
    assert len(model.batches) == passes
    assert set(model.methods) == {("tokens", "twice")}
    assert max(model.batches) == 4, "windows of several pictures make a batch"
    assert all(
        (a == b).all() and (2 * a == c).all() for a, b, c in zip(tokens, again, twice, strict=True)
    )


def test_the_store_keeps_them_between_commands_and_notices_damage(tmp_path):
    store, data = Store(tmp_path), Noise()
    first = [
        p.grid
        for p in extractor(Patches(), store=store)({"test": data}).grids("test", None, "tokens")
    ]
    for entry in store.listing():
        (damaged, *_), gone = (
            sorted(entry.path.glob("grid-000000001-*.npy")),
            next(entry.path.glob("grid-000000004-*.npy")),
        )
        damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
        gone.unlink()
    model = Patches()
    again = [
        p.grid for p in extractor(model, store=store)({"test": data}).grids("test", None, "tokens")
    ]
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert 0 < sum(model.batches) < 12, "two pictures of six"
    other = Patches()
    list(extractor(other, store=store)({"test": data}).grids("test", View(12, 8, 8), "tokens"))
    assert sum(other.batches) > 12, "another view is another entry"


def test_what_does_not_fit_is_encoded_again(monkeypatch):
    monkeypatch.setattr(dense, "MEMORY", 10)
    model, data = Patches(), Noise()
    features = extractor(model)({"test": data})
    first = [picture.grid for picture in features.grids("test", None, "tokens")]
    passes = len(model.batches)
    second = [picture.grid for picture in features.grids("test", None, "tokens")]
    assert len(model.batches) == 2 * passes
    assert all((a == b).all() for a, b in zip(first, second, strict=True))


def test_nothing_is_encoded_before_it_is_taken_and_a_reader_may_stop_early():
    model, data = Patches(), Noise()
    grids = extractor(model, batch_size=1)({"test": data}).grids("test", None, "tokens")
    assert not model.batches
    next(grids)
    assert sum(model.batches) == 1
    grids.close()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e6])
def test_features_that_are_no_numbers_are_named(value):
    class Broken(Patches):
        def encode_dense(self, images, methods):
            features = super().encode_dense(images, methods)
            return {name: part + value * (len(self.batches) > 3) for name, part in features.items()}

    with pytest.raises(
        RunError,
        match=r"patches gives tokens features that are not finite.* picture \d of noise/test",
    ):
        list(extractor(Broken(), batch_size=1)({"test": Noise()}).grids("test", None, "tokens"))


def test_the_protocol_says_all_that_is_done_to_an_image():
    model = Patches()
    native, other = image_protocol(model, None), image_protocol(model, View(12, 8, 8, "bilinear"))
    assert native == image_protocol(model, View(8, 8, 4))
    assert (native["mean"], native["window"], native["stride"], native["interpolation"]) == (
        [0.5, 0.4, 0.3],
        8,
        4,
        "bicubic",
    )
    assert (other["size"], other["stride"], other["interpolation"]) == (12, 8, "bilinear")


def test_a_model_without_squares_is_refused():
    model = Patches()
    model.pipeline = object()
    with pytest.raises(UserError, match="patches takes pictures of their own shape"):
        list(extractor(model)({"test": Noise()}).grids("test", None, "tokens"))
