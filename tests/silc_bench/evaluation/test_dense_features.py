"""Dense features: as one window at a time would give them, encoded once for all who ask."""

from __future__ import annotations

import numpy as np
import pytest
from given import Means, Noise, extractor
from PIL import Image
from refusals import refused

from silc_bench.errors import RunError
from silc_bench.evaluation import dense_features as dense
from silc_bench.evaluation.dense_features import image_protocol, native_view
from silc_bench.models.preprocessing import ImagePipeline
from silc_bench.models.windows import View
from silc_bench.system.cache import Store

DATA = Noise([(8, 8), (20, 9), (9, 31), (16, 16), (1, 1), (40, 8)])


def grids_of(model, view=None, method="tokens", **settings):
    features = extractor(model, **settings)({"test": DATA})
    return [image.grid for image in features.grids("test", view, method)]


def same(left, right):
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


def alone(model, image, view):
    """The grid of one image, window by window, in plain loops."""
    resized = view.resized(image, "bicubic")
    layout = view.layout(*resized.shape[:2], model.patch_size)
    rows = []
    for top in layout.tops:
        row = []
        for left in layout.lefts:
            crop = Image.fromarray(resized[top : top + view.window, left : left + view.window])
            pixels = ImagePipeline(view.window, model.pipeline.mean, model.pipeline.std)(crop)
            row.append(Means().encode_dense(pixels[None], ["tokens"])["tokens"][0].numpy())
        rows.append(np.concatenate(row, axis=1))
    return np.concatenate(rows), layout


@pytest.mark.timing
@pytest.mark.parametrize("view", [None, View(8, 8, 4), View(12, 8, 8), View(20, 16, 5)])
@pytest.mark.parametrize(
    "settings", [{}, {"batch_size": 1}, {"batch_size": 1000}, {"num_workers": 2}]
)
def test_grids_are_those_of_each_window_by_itself(view, settings):
    model = Means()
    images = list(extractor(model, **settings)({"test": DATA}).grids("test", view, "tokens"))
    assert [image.index for image in images] == list(range(len(DATA)))
    for image in images:
        grid, layout = alone(model, DATA.image(image.index), view or native_view(model))
        assert image.layout == layout
        assert image.grid.dtype == np.float32
        np.testing.assert_array_equal(image.grid, grid.astype(np.float16), err_msg="kept in fp16")


@pytest.mark.parametrize("fits", [True, False])
def test_what_was_announced_is_encoded_in_one_pass_and_kept_where_it_fits(fits, monkeypatch):
    if not fits:
        monkeypatch.setattr(dense, "MEMORY", 10)
    model = Means()
    extract = extractor(model)
    extract.grids.expect(DATA, None, ["twice"])
    features = extract({"test": DATA})
    kept, num_passes = [], []
    for method in ("tokens", "twice", "tokens"):
        kept.append([image.grid for image in features.grids("test", None, method)])
        num_passes.append(len(model.batches))
    passes = num_passes[0]
    assert num_passes[2] == (passes if fits else 3 * passes)
    assert set(model.methods) == {("tokens", "twice")}
    assert max(model.batches) == 4, "windows of several images make a batch"
    assert same(kept[0], kept[2])
    assert same([2 * grid for grid in kept[0]], kept[1])


def test_the_store_keeps_them_between_commands_and_notices_damage(tmp_path):
    store = Store(tmp_path)
    first = grids_of(Means(), store=store)
    (entry,) = store.listing()
    damaged, gone = (next(entry.path.glob(f"grid-00000000{i}-*.npy")) for i in (1, 4))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    gone.unlink()
    model, other = Means(), Means()
    assert same(first, grids_of(model, store=store))
    assert 0 < model.images < 12, "two images of six"
    grids_of(other, View(12, 8, 8), store=store)
    assert other.images > 12, "another view is another entry"


def test_nothing_is_encoded_before_it_is_taken_and_a_reader_may_stop_early():
    model = Means()
    grids = extractor(model, batch_size=1)({"test": DATA}).grids("test", None, "tokens")
    assert not model.batches
    next(grids)
    assert model.images == 1
    grids.close()


def test_features_beyond_fp16_are_named():
    class Broken(Means):
        def encode_dense(self, images, methods):
            features = super().encode_dense(images, methods)
            return {name: part + 1e6 * (len(self.batches) > 3) for name, part in features.items()}

    with refused("means", kind=RunError) as caught:
        grids_of(Broken(), batch_size=1)
    assert "of image 1 of noise/test" in caught.value.problem


def test_the_protocol_says_all_that_is_done_to_an_image():
    model = Means()
    native, other = image_protocol(model, None), image_protocol(model, View(12, 8, 8, "bilinear"))
    assert native == image_protocol(model, View(8, 8, 4))
    stated = {"mean": [0.5, 0.4, 0.3], "window": 8, "stride": 4, "interpolation": "bicubic"}
    assert stated.items() <= native.items()
    assert {"size": 12, "stride": 8, "interpolation": "bilinear"}.items() <= other.items()


def test_a_model_without_squares_is_refused():
    model = Means()
    model.pipeline = object()
    with refused("means"):
        grids_of(model)
