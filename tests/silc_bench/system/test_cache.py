"""The feature store: the finished is not encoded again, the damaged is, and nothing changes."""

import os
import signal
import time
from pathlib import Path

import forked
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from silc_bench.cli.app import app
from silc_bench.errors import RunError, UserError
from silc_bench.evaluation.features import Extractor
from silc_bench.evaluation.settings import EvalSettings
from silc_bench.system import cache as store_module
from silc_bench.system.cache import DESCRIPTION, Store, default_folder, prune, text_hash

DESCRIPTIONS = {"model": "m", "revision": "0" * 16, "precision": "fp32"}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "cache")


@pytest.fixture
def rows():
    return np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)


class Images:
    """Indices as pictures: a stand-in for an ImageDataset."""

    name, split = "pictures", "test"

    def __init__(self, num, fingerprint="f" * 16):
        self.num, self.fingerprint = num, fingerprint

    def __len__(self):
        return self.num

    def image(self, index):
        return index


class Counting:
    """Embeds a picture's index; counts, and fails when told to."""

    name, revision, embed_dim = "counting", "0" * 16, 4

    def __init__(self, fails_at=None, **attributes):
        self.feature_points = {"pooled": 4, "mean_patch": 4}
        self.image_protocol, self.text_protocol = {"resize": "none"}, {"cleaning": "none"}
        self.images = self.texts = 0
        self.fails_at = fails_at
        self.__dict__ |= attributes

    def preprocess(self, image):
        return torch.full((3, 2, 2), float(image))

    def encode_image(self, images, point="pooled"):
        if self.fails_at is not None and self.images >= self.fails_at:
            raise KeyboardInterrupt
        self.images += len(images)
        return torch.nn.functional.pad(images.mean(dim=(2, 3)), (0, 1), value=7.0)

    def tokenize(self, texts):
        return torch.tensor([[len(text)] for text in texts])

    def encode_text(self, tokens):
        self.texts += len(tokens)
        return tokens.float() * torch.ones(4)

    def to(self, device):
        return self


def extractor(model, store, **options):
    defaults = {"device": "cpu", "precision": "fp32", "batch_size": 8}
    return Extractor(model, EvalSettings(store=store, **{**defaults, **options}))


def test_rows_come_back_bit_for_bit_with_the_gaps_marked(store, rows):
    entry = store.entry(DESCRIPTIONS)
    assert not entry.rows(50, 8)[1].any()
    assert not entry.folder.exists(), "asking writes nothing"
    entry.save(40, rows[40:])
    entry.save(0, rows[:16])
    found, is_known = store.entry(DESCRIPTIONS).rows(50, 8)
    assert is_known.tolist() == [True] * 16 + [False] * 24 + [True] * 10
    assert np.array_equal(found[is_known], rows[is_known])
    assert np.isnan(found[~is_known]).all()


def test_texts_come_back_whatever_they_hold(store, rows):
    texts = ["", "a cat", "A cat", "naïve", "猫", "🙂", "\ud800", "x" * 10_000]
    store.entry(DESCRIPTIONS).save_texts(texts[:3], rows[:3])
    store.entry(DESCRIPTIONS).save_texts(texts[3:], rows[3:8])
    known = store.entry(DESCRIPTIONS).texts(8)
    assert all(
        np.array_equal(known[text_hash(text)], row) for text, row in zip(texts, rows, strict=False)
    )
    assert len(known) == 8


def test_every_part_of_the_description_counts(store, rows):
    store.entry(DESCRIPTIONS).save(0, rows)
    for name in DESCRIPTIONS:
        assert not store.entry({**DESCRIPTIONS, name: "other"}).rows(50, 8)[1].any()
    assert store.entry(dict(reversed(DESCRIPTIONS.items()))).rows(50, 8)[1].all(), (
        "the order of the fields is no difference"
    )


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "another file", "removed"])
def test_what_is_damaged_is_missing(store, rows, damage):
    entry = store.entry(DESCRIPTIONS)
    entry.save(0, rows[:25])
    entry.save(25, rows[25:])
    path = sorted(entry.folder.glob("rows-*"))[0]
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[200] ^= 1
    changes = {
        "cut": content[:-9],
        "flipped": bytes(flipped),
        "emptied": b"",
        "another file": b"hello" * 100,
    }
    path.unlink() if damage == "removed" else path.write_bytes(changes[damage])
    found, is_known = entry.rows(50, 8)
    assert is_known.tolist() == [False] * 25 + [True] * 25
    assert np.array_equal(found[25:], rows[25:])
    entry.save(0, rows[:25])
    assert entry.rows(50, 8)[1].all()


def test_parts_of_another_shape_are_not_mistaken(store, rows):
    entry = store.entry(DESCRIPTIONS)
    entry.save(0, rows)
    assert not entry.rows(50, 9)[1].any()
    assert not entry.rows(49, 8)[1].any()


def test_pruning_takes_the_least_recently_used_first(store, rows):
    entries = [store.entry({**DESCRIPTIONS, "model": str(number)}) for number in range(4)]
    for age, entry in zip((40, 30, 20, 10), entries, strict=True):
        entry.save(0, rows)
        os.utime(entry.folder / DESCRIPTION, (time.time() - age * 3600,) * 2)
    entries[0].rows(50, 8)  # used now
    size = store.listing()[0].bytes
    removed = prune(store.listing(), 2 * size)
    assert [listed.description["model"] for listed in removed] == ["1", "2"]
    assert [listed.description["model"] for listed in store.listing()] == ["3", "0"]
    Store(store.folder, limit=0).trim()
    assert [listed.description["model"] for listed in store.listing()] == ["0"], (
        "what is in use stays"
    )
    assert len(prune(store.listing(), 0)) == 1
    assert store.listing() == []


def test_an_entry_is_in_use_while_it_is_written(store, rows):
    """An extraction of hours writes parts now and then: making room leaves those that are there."""
    entry = store.entry(DESCRIPTIONS)
    entry.save(0, rows[:25])
    # the first part was written long ago
    os.utime(entry.folder / DESCRIPTION, (time.time() - 2 * store_module.IN_USE,) * 2)
    entry.save(25, rows[25:])
    Store(store.folder, limit=0).trim()
    assert entry.rows(50, 8)[1].all()
    os.utime(entry.folder / DESCRIPTION, (time.time() - 2 * store_module.IN_USE,) * 2)
    entry.save_texts(["a"], rows[:1])
    Store(store.folder, limit=0).trim()
    assert len(store.listing()) == 1


def test_foreign_folders_are_left_alone(store, rows):
    foreign = store.folder / "photos"
    foreign.mkdir(parents=True)
    (foreign / DESCRIPTION).write_text('{"a": 1}')
    (store.folder / "loose.npy").write_bytes(b"x")
    store.entry(DESCRIPTIONS).save(0, rows)
    assert len(store.listing()) == 1
    prune(store.listing(), 0)
    assert sorted(path.name for path in store.folder.iterdir()) == ["loose.npy", "photos"]


def test_a_store_that_cannot_be_written_says_what_to_do(tmp_path, rows):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match=r"feature store .*cache cannot be written .*--cache off"):
        Store(tmp_path / "cache").entry(DESCRIPTIONS).save(0, rows)


def test_the_default_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("SILC_BENCH_CACHE", str(tmp_path / "here"))
    assert default_folder() == tmp_path / "here"
    monkeypatch.delenv("SILC_BENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "silc-bench" / "features"


# --- through the extractor ------------------------------------------------------------------------


def test_a_second_command_encodes_nothing(store):
    first, second = Counting(), Counting()
    data = {"test": Images(20)}
    a, b = extractor(first, store)(data), extractor(second, store)(data)
    assert np.array_equal(a.image("test"), b.image("test"))
    assert np.array_equal(a.text(["x", "yy"]), b.text(["yy", "x"])[::-1])
    assert (first.images, first.texts) == (20, 2)
    assert (second.images, second.texts) == (0, 0)
    assert np.array_equal(b.text(["zzz", "x"])[:, 0], [3, 1])
    assert second.texts == 1, "only the new one"


@pytest.mark.parametrize(
    ("model", "options", "data"),
    [
        ({"revision": "1" * 16}, {}, {}),
        ({"image_protocol": {"resize": "squash"}}, {}, {}),
        ({}, {"precision": "bf16"}, {}),
        ({}, {"feature_point": "mean_patch"}, {}),
        ({}, {}, {"fingerprint": "e" * 16}),
    ],
)
def test_another_measurement_finds_nothing(store, model, options, data):
    extractor(Counting(), store)({"test": Images(20)}).image("test")
    other = Counting(**model)
    extractor(other, store, **options)({"test": Images(20, **data)}).image("test")
    assert other.images == 20


@pytest.mark.parametrize(
    ("library", "is_used"), [("pillow", True), ("timm", True), ("transformers", False)]
)
def test_another_release_of_a_library_finds_nothing(store, monkeypatch, library, is_used):
    """It may resize, tokenize or pool otherwise; a library that the model does not use may not."""
    installed = {"pillow": "12.0.0", "timm": "1.0.31", "transformers": "5.0.0"}
    monkeypatch.setattr("silc_bench.system.cache.version", installed.__getitem__)
    extractor(Counting(libraries=("timm",)), store)({"test": Images(20)}).image("test")
    installed[library] = "99.0"
    other = Counting(libraries=("timm",))
    extractor(other, store)({"test": Images(20)}).image("test")
    assert other.images == (20 if is_used else 0)


def test_a_library_that_is_not_installed_is_said_so(store):
    extractor(Counting(libraries=("no-such-library",)), store)({"test": Images(20)}).image("test")
    assert store.listing()[0].description["no-such-library"] == "none"


def test_an_interrupted_extraction_goes_on_where_it_was(store, monkeypatch):
    monkeypatch.setattr("silc_bench.evaluation.features.PART_ROWS", 16)
    data = {"test": Images(100)}
    stopped = Counting(fails_at=40)
    with pytest.raises(KeyboardInterrupt):
        extractor(stopped, store)(data).image("test")
    assert stopped.images == 40
    again = Counting()
    features = extractor(again, store)(data).image("test")
    assert again.images == 100 - 32, "two parts of 16 were finished"
    assert np.array_equal(features, extractor(Counting(), None)(data).image("test"))
    other_batches = Counting()
    assert np.array_equal(
        extractor(other_batches, store, batch_size=7)(data).image("test"), features
    )
    assert other_batches.images == 0


class Suicidal(Counting):
    def encode_image(self, images, point="pooled"):
        if self.images >= 40:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode_image(images)


def in_parts(folder):
    """A program for another process, which finds this module by its folder; parts of 8 pictures."""
    tests = Path(__file__).parent
    start = (
        f"import pathlib, sys; sys.path.insert(0, {str(tests)!r}); "
        "import silc_bench.evaluation.features, test_cache as tests\n"
    )
    return (
        f"{start}silc_bench.evaluation.features.PART_ROWS = 8; "
        f"folder = pathlib.Path({str(folder)!r})\n"
    )


@pytest.mark.timing
def test_a_killed_extraction_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr("silc_bench.evaluation.features.PART_ROWS", 8)
    work = (
        "tests.extractor(tests.Suicidal(), tests.Store(folder))({'test': "
        "tests.Images(64)}).image('test')"
    )
    dead = forked.start(tmp_path / "said", exec, in_parts(tmp_path) + work)
    assert forked.ended(dead) == -signal.SIGKILL, (tmp_path / "said").read_text()
    again = Counting()
    features = extractor(again, Store(tmp_path))({"test": Images(64)}).image("test")
    assert again.images == 24
    assert features[:, 0].tolist() == list(range(64))


def _write(folder):
    data = {"test": Images(64)}
    model = Counting()
    features = extractor(model, Store(folder), batch_size=4)(data)
    assert features.image("test")[:, 0].tolist() == list(range(64))
    assert (
        features.text([str(number) for number in range(50)])[:, 0].tolist() == [1] * 10 + [2] * 40
    )


@pytest.mark.timing
def test_writers_at_the_same_time_do_not_disturb_each_other(tmp_path):
    barrier = forked.context.Barrier(3, timeout=forked.SECONDS)
    work = f"{in_parts(tmp_path)}barrier.wait()\ntests._write(folder)"
    writers = [forked.start(tmp_path / "said", exec, work, {"barrier": barrier}) for _ in range(3)]
    assert [forked.ended(writer) for writer in writers] == [0] * 3, (tmp_path / "said").read_text()
    _write(tmp_path)
    assert len(Store(tmp_path).listing()) == 2
    assert not list(tmp_path.rglob("*.tmp"))


def test_features_that_are_not_finite_are_not_kept(store):
    class Broken(Counting):
        def encode_image(self, images, point="pooled"):
            return super().encode_image(images) * float("nan")

    with pytest.raises(RunError, match="not finite"):
        extractor(Broken(), store)({"test": Images(20)}).image("test")
    assert store.listing() == []


# --- the command ----------------------------------------------------------------------------------


def test_the_command_lists_and_prunes(store, rows):
    store.entry({"kind": "fingerprint", "title": "cifar100 test", "files": "0"}).save_word(
        "0123456789abcdef"
    )
    extractor(Counting(), store)({"test": Images(20)}).image("test")
    extractor(Counting(), store)({"test": Images(20)}).text(["a"])
    listed = CliRunner().invoke(
        app, ["cache", "ls", "--cache", str(store.folder)], terminal_width=200
    )
    assert listed.exit_code == 0
    assert "pictures/test pooled" in listed.output
    assert "fingerprint of cifar100 test" in listed.output
    assert "3 entries" in listed.output
    for wrong in ("5 apples", "-1", "GB"):
        refused = CliRunner().invoke(
            app, ["cache", "prune", "--cache", str(store.folder), f"--max-size={wrong}"]
        )
        assert refused.exit_code == 2
        assert "is not a size" in refused.output
    pruned = CliRunner().invoke(
        app, ["cache", "prune", "--max-size", "0", "--cache", str(store.folder)]
    )
    assert "removed 3 entries" in pruned.output
    assert store.listing() == []


def test_the_limit_is_kept_while_working(store, monkeypatch):
    monkeypatch.setattr(store_module, "IN_USE", 0.0)
    small = Store(store.folder, limit=1)
    for number in range(3):
        extractor(Counting(revision=str(number) * 16), small)({"test": Images(20)}).image("test")
    assert len(store.listing()) == 1, "each command makes room for its own"
