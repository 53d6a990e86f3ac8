"""The feature store: the finished is not encoded again, the damaged is, and nothing changes.

Two commands at a time: ``tests/silc_bench/cli/test_two_commands.py``. Every
damage of a part: ``tests/test_damage.py``.
"""

import os
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from commands import fail, succeed
from given import GivenData, extractor
from refusals import refused

from silc_bench.errors import RunError
from silc_bench.system import cache
from silc_bench.system.cache import (
    DESCRIPTION,
    Store,
    default_folder,
    prune,
    shards_folder,
    text_hash,
)

DESCRIPTIONS = {"model": "m", "revision": "0" * 16, "precision": "fp32"}
ROWS = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "cache")


@pytest.fixture
def entry(store):
    return store.entry(DESCRIPTIONS)


class Images(GivenData):
    """Indices as images: a stand-in for an ImageDataset."""

    def image(self, index):
        return index


class Counting(SimpleNamespace):
    """Embeds an image's index; counts, and fails when told to."""

    name, revision, embed_dim = "counting", "0" * 16, 4
    feature_points = {"pooled": 4, "mean_patch": 4}  # noqa: RUF012
    image_protocol, text_protocol = {"resize": "none"}, {"cleaning": "none"}
    images = texts = 0
    fails_at, scale = None, 1.0

    def preprocess(self, image):
        return torch.full((3, 2, 2), float(image))

    def encode_image(self, images, point="pooled"):
        if self.images == self.fails_at:
            raise KeyboardInterrupt
        self.images += len(images)
        return self.scale * torch.nn.functional.pad(images.mean(dim=(2, 3)), (0, 1), value=7.0)

    def tokenize(self, texts):
        return torch.tensor([[len(text)] for text in texts])

    def encode_text(self, tokens):
        self.texts += len(tokens)
        return tokens.float() * torch.ones(4)

    def to(self, device):
        return self


def features_of(model, store, num=20, fingerprint="f" * 16, **settings):
    """Of ``num`` images, through the extractor."""
    data = Images(labels=range(num), fingerprint=fingerprint)
    return extractor(model, **{"store": store, "batch_size": 8} | settings)({"test": data})


def test_rows_come_back_bit_for_bit_with_the_gaps_marked(store, entry):
    assert not entry.rows(50, 8)[1].any()
    assert not entry.folder.exists(), "asking writes nothing"
    entry.save(40, ROWS[40:])
    entry.save(0, ROWS[:16])
    rows, is_known = store.entry(DESCRIPTIONS).rows(50, 8)
    assert is_known.tolist() == [True] * 16 + [False] * 24 + [True] * 10
    expected = np.where(is_known[:, None], ROWS, np.nan)
    assert np.array_equal(rows, expected, equal_nan=True)


def test_texts_come_back_whatever_they_hold(entry):
    texts = ["", "a cat", "A cat", "naïve", "猫", "\ud800", "x" * 10_000]
    entry.save_texts(texts[:3], ROWS[:3])
    entry.save_texts(texts[3:], ROWS[3:7])
    known = entry.texts(8)
    assert np.array_equal([known[text_hash(text)] for text in texts], ROWS[:7])


def test_every_part_of_the_description_counts_and_the_shape(store, entry):
    entry.save(0, ROWS)
    for name in DESCRIPTIONS:
        assert not store.entry({**DESCRIPTIONS, name: "other"}).rows(50, 8)[1].any()
    in_another_order = store.entry(dict(reversed(DESCRIPTIONS.items())))
    assert in_another_order.rows(50, 8)[1].all()
    for shape in ((50, 9), (49, 8)):
        assert not entry.rows(*shape)[1].any()


def models_in(entries):
    return [listed.description["model"] for listed in entries]


def make_old(entry, hours):
    os.utime(entry.folder / DESCRIPTION, (time.time() - hours * 3600,) * 2)


def test_pruning_takes_the_least_recently_used_first(store):
    entries = [store.entry({**DESCRIPTIONS, "model": str(number)}) for number in range(4)]
    for hours, entry in zip((40, 30, 20, 10), entries, strict=True):
        entry.save(0, ROWS)
        make_old(entry, hours)
    entries[0].rows(50, 8)  # used now
    removed = prune(store.listing(), 2 * store.listing()[0].bytes)
    assert models_in(removed) == ["1", "2"]
    assert models_in(store.listing()) == ["3", "0"]
    Store(store.folder, limit=0).trim()
    assert models_in(store.listing()) == ["0"], "what is in use stays"
    assert len(prune(store.listing(), 0)) == 1
    assert store.listing() == []


def test_an_entry_is_in_use_while_it_is_written(store, entry):
    """An extraction of hours writes parts now and then: making room leaves those that are there."""
    for start in (0, 25):
        entry.save(start, ROWS[start : start + 25])
        Store(store.folder, limit=0).trim()
        make_old(entry, 2)
    entry.save_texts(["a"], ROWS[:1])
    Store(store.folder, limit=0).trim()
    assert entry.rows(50, 8)[1].all()


def test_foreign_folders_are_left_alone(store, entry):
    foreign = store.folder / "photos"
    foreign.mkdir(parents=True)
    (foreign / DESCRIPTION).write_text('{"a": 1}')
    (store.folder / "loose.npy").write_bytes(b"x")
    entry.save(0, ROWS)
    assert len(prune(store.listing(), 0)) == 1
    assert sorted(path.name for path in store.folder.iterdir()) == ["loose.npy", "photos"]


def test_a_store_that_cannot_be_written_says_what_to_do(store, entry):
    store.folder.write_text("a file")
    with refused(about=store.folder):
        entry.save(0, ROWS)


def test_the_default_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("SILC_BENCH_CACHE", str(tmp_path / "here"))
    assert default_folder() == tmp_path / "here"
    assert shards_folder() == tmp_path / "here" / "shards", "beside it may be the user's own"
    monkeypatch.delenv("SILC_BENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "silc-bench" / "features"
    assert shards_folder() == tmp_path / "silc-bench" / "shards"


# --- through the extractor ------------------------------------------------------------------------


def test_a_second_command_encodes_nothing(store):
    first, second = Counting(), Counting()
    a, b = features_of(first, store), features_of(second, store)
    assert np.array_equal(a.image("test"), b.image("test"))
    assert np.array_equal(a.text(["x", "yy"]), b.text(["yy", "x"])[::-1])
    assert (first.images, first.texts, second.images, second.texts) == (20, 2, 0, 0)
    assert np.array_equal(b.text(["zzz", "x"])[:, 0], [3, 1])
    assert second.texts == 1, "only the new one"


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ({"revision": "1" * 16}, {}),
        ({"image_protocol": {"resize": "squash"}}, {}),
        ({}, {"precision": "bf16"}),
        ({}, {"feature_point": "mean_patch"}),
        ({}, {"fingerprint": "e" * 16}),
    ],
)
def test_another_measurement_finds_nothing(store, model, options):
    features_of(Counting(), store).image("test")
    other = Counting(**model)
    features_of(other, store, **options).image("test")
    assert other.images == 20


@pytest.mark.parametrize(
    ("library", "is_used"), [("pillow", True), ("timm", True), ("transformers", False)]
)
def test_another_release_of_a_library_finds_nothing(store, monkeypatch, library, is_used):
    """It may resize, tokenize or pool otherwise; a library that the model does not use may not."""
    installed = {"pillow": "12.0.0", "timm": "1.0.31", "transformers": "5.0.0"}
    monkeypatch.setattr(cache, "version", installed.__getitem__)
    for num_encoded in (20, 20 if is_used else 0):
        model = Counting(libraries=("timm",))
        features_of(model, store).image("test")
        assert model.images == num_encoded
        installed[library] = "99.0"


def test_a_library_that_is_not_installed_is_said_so(store):
    features_of(Counting(libraries=("no-such-library",)), store).image("test")
    assert store.listing()[0].description["no-such-library"] == "none"


def test_an_interrupted_extraction_goes_on_where_it_was(store, monkeypatch):
    monkeypatch.setattr("silc_bench.evaluation.features.PART_ROWS", 16)
    stopped, again = Counting(fails_at=40), Counting()
    with pytest.raises(KeyboardInterrupt):
        features_of(stopped, store, 100).image("test")
    assert stopped.images == 40
    features = features_of(again, store, 100).image("test")
    assert again.images == 100 - 32, "two parts of 16 were finished"
    assert np.array_equal(features, features_of(Counting(), None, 100).image("test"))


def test_features_that_are_not_finite_are_not_kept(store):
    with pytest.raises(RunError, match="not finite"):
        features_of(Counting(scale=float("nan")), store).image("test")
    assert store.listing() == []


def test_the_limit_is_kept_while_working(store, monkeypatch):
    monkeypatch.setattr(cache, "IN_USE", 0.0)
    small = Store(store.folder, limit=1)
    for digit in "012":
        features_of(Counting(revision=16 * digit), small).image("test")
    assert len(store.listing()) == 1, "each command makes room for its own"


def test_room_is_made_once_a_model(store, monkeypatch):
    """Each time looks at every file of the store; dense features are a file an image."""
    times = []
    monkeypatch.setattr(Store, "trim", lambda store: times.append(store))
    features = features_of(Counting(), store)
    features.image("test")
    features.text(["a"])
    features.text(["b"])
    assert len(times) == 1
    features_of(Counting(), store).image("test")
    assert len(times) == 2


# --- the command ----------------------------------------------------------------------------------


def test_the_command_lists_and_prunes(store):
    description = {"kind": "fingerprint", "title": "cifar100 test", "files": "0"}
    store.entry(description).save_word("0123456789abcdef")
    features = features_of(Counting(), store)
    features.image("test")
    features.text(["a"])
    here = f"--cache {store.folder}"
    listed = succeed(f"cache ls {here}")
    for words in ("given/test pooled", "fingerprint of cifar100 test", "3 entries"):
        assert words in listed
    for wrong in ("5 apples", "-1", "GB"):
        fail(f"cache prune {here} '--max-size={wrong}'", "--max-size")
    assert "removed 3 entries" in succeed(f"cache prune {here} --max-size 0")
    assert store.listing() == []
