"""The training stream: every pair once an epoch, the same from anywhere, damage counted.

From any position, with any number of workers.
"""

import io
import itertools
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import warnings
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from silc_bench.datasets.shapes import captions, drawing, scenes
from silc_bench.errors import UserError
from silc_bench.trainer.config.config import DataConfig
from silc_bench.trainer.data.stream import crowding, open_source

pytestmark = pytest.mark.timing
SIDE = 16


def encoded(index, size=(12, 9), kind="PNG"):
    """A picture that is recognised by its first pixel: its number in red and green."""
    image = Image.new("RGB", size, (index % 256, index // 256, 77))
    file = io.BytesIO()
    image.save(
        file,
        kind,
        **({"quality": 100} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}),
    )
    return file.getvalue()


def write_shard(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))


def whole(index):
    return [(f"{index:04}.png", encoded(index)), (f"{index:04}.txt", f"number {index}".encode())]


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """37 pairs in 3 shards."""
    folder = tmp_path_factory.mktemp("clean")
    for shard, indices in enumerate([range(15), range(15, 30), range(30, 37)]):
        write_shard(
            folder / f"{shard:03}.tar", itertools.chain.from_iterable(whole(i) for i in indices)
        )
    return str(folder / "{000..002}.tar")


CORRUPT, TEXTLESS, EMPTY, LATIN = {3, 4, 5, 17}, {8, 20}, {11}, {13}
READABLE = sorted(set(range(24)) - CORRUPT - TEXTLESS - EMPTY - LATIN)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """24 samples, of which 16 are readable pairs."""
    folder, members = tmp_path_factory.mktemp("damaged"), []
    for index in range(24):
        picture, text = whole(index)
        members.append((picture[0], picture[1][:40]) if index in CORRUPT else picture)
        if index not in TEXTLESS:
            members.append(
                (text[0], b" \n" if index in EMPTY else b"caf\xe9" if index in LATIN else text[1])
            )
    write_shard(folder / "a.tar", members)
    return str(folder / "a.tar")


def source(pattern, **fields):
    return open_source(DataConfig(**({"source": pattern, "decode_size": SIDE} | fields)))


def take(stream, batch_size, start, count):
    with closing(stream.batches(batch_size, start)) as batches:
        return list(itertools.islice(batches, count))


def numbers(batches):
    """What each pair is, checked to be the same in picture and text."""
    found = []
    for batch in batches:
        for image, text in zip(batch.images, batch.texts, strict=True):
            number = int(image[0, 0, 0]) + 256 * int(image[1, 0, 0])
            assert text == f"number {number}"
            found.append(number)
    return found


def assert_equal(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.sizes, other.sizes)
        assert (one.texts, one.position) == (other.texts, other.position)


# --- order and position ---------------------------------------------------------------------------


# more workers than this machine has cores
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_each_pair_once_an_epoch_in_an_order_of_its_own(clean, workers):
    stream = source(clean, num_workers=workers)
    assert stream.num_samples == 37
    found = numbers(take(stream, 5, 0, 23))  # 3 epochs of 37, and a bit
    epochs = [found[37 * epoch : 37 * (epoch + 1)] for epoch in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(37))
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert epochs[0] != list(range(37))
    assert stream.damage.total == 0
    other = numbers(take(source(clean, seed=1), 37, 0, 1))
    assert sorted(other) == list(range(37))
    assert other != epochs[0]


@pytest.mark.parametrize("name", ["clean", "damaged"])
def test_where_a_gpu_is_in_use_batches_are_page_locked(name, request, monkeypatch):
    locked, plain = [], take(source(request.getfixturevalue(name)), 5, 0, 6)

    def pin_memory(images):
        # it takes as long as a copy
        assert threading.current_thread() is not threading.main_thread()
        locked.append(images.clone())
        return locked[-1]

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    batches = take(source(request.getfixturevalue(name)), 5, 0, 6)
    assert_equal(batches, plain)
    assert all(any(batch.images is images for images in locked) for batch in batches)


@pytest.mark.parametrize("name", ["clean", "damaged", "shapes"])
def test_resuming_anywhere_with_other_workers_continues_exactly(name, request):
    pattern = "shapes" if name == "shapes" else request.getfixturevalue(name)
    reference = take(source(pattern), 6, 0, 14)
    for workers, batch in zip((0, 1, 2), random.Random(0).sample(range(1, 12), 3), strict=True):
        rest = take(
            source(pattern, num_workers=workers), 6, reference[batch - 1].position, 14 - batch
        )
        assert_equal(rest, reference[batch:])


def test_another_batch_size_from_a_position_gives_the_same_pairs(damaged):
    reference = take(source(damaged), 1, 0, 40)
    middle = reference[9].position
    assert numbers(take(source(damaged), 7, middle, 4)) == numbers(reference[10:38])


def test_position_counts_what_was_left_out(damaged):
    batches = take(source(damaged), 16, 0, 2)  # 16 readable pairs of 22: a batch is an epoch
    assert all(sorted(numbers([batch])) == READABLE for batch in batches)
    assert 16 < batches[0].position <= 22 < batches[1].position <= 44


def test_the_global_generator_is_left_alone(clean):
    for workers in (0, 2):
        before = torch.random.get_rng_state()
        take(source(clean, num_workers=workers), 4, 0, 2)
        assert torch.equal(before, torch.random.get_rng_state())


def test_more_workers_than_cores_is_one_sentence_of_ours(clean, monkeypatch):
    monkeypatch.setattr("silc_bench.trainer.data.stream.num_cores", lambda: 2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        take(source(clean, num_workers=3), 4, 0, 2)
    assert [str(warning.message) for warning in caught if "worker" in str(warning.message)] == []
    assert crowding(2, 1) is None
    assert crowding(0, 8) is None
    assert (
        "data.num_workers=2 starts 4 processes that decode, and this run may use 2 cores"
        in crowding(2, 2)
    )


def test_a_temporary_folder_of_too_long_a_name_is_refused_where_workers_need_it(clean, monkeypatch):
    """Their sockets are in it; the run would wait for ever."""
    monkeypatch.setattr(tempfile, "tempdir", "/tmp/" + "l" * 71)
    with pytest.raises(UserError, match="TMPDIR"):
        take(source(clean, num_workers=1), 4, 0, 1)
    assert len(take(source(clean), 4, 0, 1)) == 1


# --- contents -------------------------------------------------------------------------------------


def test_shapes_are_the_scenes_of_the_training_split():
    stream = source("shapes", seed=5, decode_size=32)
    (batch,) = take(stream, 8, 100, 1)
    assert stream.num_samples is None
    assert batch.position == 108
    assert batch.sizes.tolist() == [[32, 32]] * 8
    for offset in range(8):
        scene = scenes.scene(5, "train", 100 + offset)
        assert batch.texts[offset] in captions.captions(scene)
        assert np.array_equal(
            batch.images[offset].permute(1, 2, 0).numpy(), drawing.render(scene, 32)[0]
        )


def test_all_five_captions_of_shapes_are_read_about_equally():
    texts = source("shapes", seed=2).captions(500)
    ranks = [
        captions.captions(scenes.scene(2, "train", index)).index(text)
        for index, text in enumerate(texts)
    ]
    assert (np.bincount(ranks, minlength=5) > 70).all()
    assert texts == source("shapes", seed=2).captions(500)
    others = source("shapes", seed=3).captions(500)
    assert ranks != [
        captions.captions(scenes.scene(3, "train", index)).index(text)
        for index, text in enumerate(others)
    ]


def test_images_keep_their_aspect_and_are_never_enlarged(tmp_path):
    rng = np.random.default_rng(0)
    sides = {"wide": (64, 20), "tall": (10, 40), "small": (5, 7), "line": (300, 1)}
    members = []
    for number, (key, size) in enumerate(sides.items()):
        kind, extension = [("JPEG", "JPG"), ("PNG", "png"), ("WEBP", "webp"), ("JPEG", "jpeg")][
            number
        ]
        members += [
            (f"{key}.{extension}", encoded(number, size, kind)),
            (f"{key}.txt", key.encode()),
        ]
    noise = io.BytesIO()
    pixels = rng.integers(0, 256, (7, 5, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(noise, "PNG")
    members += [("noise.png", noise.getvalue()), ("noise.txt", b"noise")]
    write_shard(tmp_path / "a.tar", members)
    (batch,) = take(source(str(tmp_path / "a.tar")), 5, 0, 1)
    found = {
        text: (size.tolist(), image)
        for text, size, image in zip(batch.texts, batch.sizes, batch.images, strict=True)
    }
    assert {text: size for text, (size, _) in found.items()} == {
        "wide": [5, 16],
        "tall": [16, 4],
        "small": [7, 5],
        "line": [1, 16],
        "noise": [7, 5],
    }
    for text, ((height, width), image) in found.items():
        outside = image.clone()
        outside[:, :height, :width] = 0
        assert (outside == 0).all()
        if text == "noise":
            assert np.array_equal(image[:, :7, :5].permute(1, 2, 0).numpy(), pixels)
        else:
            assert abs(int(image[2, 0, 0]) - 77) <= 2


def test_grey_palette_and_transparent_images_become_rgb(tmp_path):
    members = []
    for mode in ("L", "P", "RGBA", "1", "CMYK"):
        file = io.BytesIO()
        Image.new(mode, (4, 4)).save(file, "JPEG" if mode == "CMYK" else "PNG")
        members += [
            (f"{mode}.{'jpg' if mode == 'CMYK' else 'png'}", file.getvalue()),
            (f"{mode}.txt", mode.encode()),
        ]
    write_shard(tmp_path / "a.tar", members)
    stream = source(str(tmp_path / "a.tar"))
    (batch,) = take(stream, 5, 0, 1)
    assert sorted(batch.texts) == ["1", "CMYK", "L", "P", "RGBA"]
    assert stream.damage.total == 0


def test_captions_are_the_readable_texts_of_an_epoch(clean, damaged):
    assert sorted(source(clean).captions(1000)) == sorted(f"number {index}" for index in range(37))
    some = source(clean).captions(10)
    assert len(some) == 10
    assert some == source(clean, num_workers=2).captions(10)
    assert len(source(damaged).captions(1000)) == 24 - len(TEXTLESS | EMPTY | LATIN)


@pytest.mark.skipif(
    "SILC_BENCH_TEST_DATA" not in os.environ,
    reason="SILC_BENCH_TEST_DATA names no folder of real data",
)
def test_real_shards_are_read_completely():
    stream = source(
        str(Path(os.environ["SILC_BENCH_TEST_DATA"], "cifar100", "test")),
        decode_size=32,
        num_workers=1,
    )
    assert stream.num_samples == 2000
    batches = take(stream, 500, 0, 4)
    assert batches[-1].position == 2000
    assert stream.damage.total == 0
    assert all((batch.sizes == 32).all() for batch in batches)
    pictures = torch.cat([batch.images for batch in batches]).flatten(1)
    assert len(pictures.unique(dim=0)) > 1990  # a few photographs occur twice
    assert sorted(text for batch in batches for text in batch.texts) == sorted(
        stream.captions(2000)
    )


def test_describe_says_how_much_there_is(clean):
    assert source(clean).describe() == "37 pairs in 3 shards"
    assert "endless" in source("shapes").describe()


# --- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_damage_is_counted_once_by_cause_when_it_is_met(damaged, workers):
    stream = source(damaged, num_workers=workers)
    assert stream.damage.counts == {"sample without a text": 2}  # known from the index
    take(stream, 16, 0, 3)  # three epochs
    assert stream.damage.counts == {
        "sample without a text": 2,
        "corrupt image": 4,
        "empty text": 1,
        "text that is not UTF-8": 1,
    }
    assert "a.tar" in stream.damage.summary()


@pytest.mark.parametrize("workers", [0, 2])
def test_damage_counts_only_what_was_handed_over(damaged, workers):
    met = []
    for count in range(1, 9, 1 if workers == 0 else 3):
        stream = source(damaged, num_workers=workers)
        position = take(stream, 2, 0, count)[-1].position
        met.append(stream.damage.total - 2)
        # within the first epoch: each position is a pair or damage
        assert met[-1] == position - 2 * count
    assert met[0] < met[-1]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_source_of_damage_alone_ends_with_an_error(tmp_path, workers):
    children = set(multiprocessing.active_children())
    members = [
        (name, data[:30] if name.endswith("png") else data)
        for i in range(10)
        for name, data in whole(i)
    ]
    write_shard(tmp_path / "bad.tar", members)
    with pytest.raises(UserError, match=r"none of 10 pairs.*corrupt image.*bad.tar") as caught:
        take(source(str(tmp_path / "bad.tar"), num_workers=workers), 4, 0, 1)
    assert caught
    assert set(multiprocessing.active_children()) <= children  # though the error is still held


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_disappears_is_the_users_error_in_one_sentence(tmp_path, workers):
    children = set(multiprocessing.active_children())
    write_shard(tmp_path / "a.tar", [member for index in range(10) for member in whole(index)])
    stream = source(str(tmp_path / "a.tar"), num_workers=workers)
    (tmp_path / "a.tar").unlink()
    with pytest.raises(UserError, match=r"cannot read the shard \S+a.tar") as caught:
        take(stream, 4, 0, 1)
    assert "Traceback" not in str(caught.value)
    assert set(multiprocessing.active_children()) <= children  # though the error is still held


def test_a_cut_shard_gives_what_is_whole(tmp_path):
    path = tmp_path / "a.tar"
    write_shard(path, [member for index in range(10) for member in whole(index)])
    os.truncate(path, 512 * 4 * 7 + 700)
    stream = source(str(path))
    assert stream.num_samples == 7
    assert stream.damage.counts == {
        "archive without an end (cut off?)": 1,
        "sample without a text": 1,
    }
    assert set(numbers(take(stream, 7, 0, 1))) == set(range(7))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.png", encoded(1))], r"no pair of a picture.*1 sample without a text"),
        ([("a.txt", b"x"), ("a.gif", b"x")], r"no pair of a picture.*1 sample without a picture"),
        ([], "no pair of a picture.*: no sample at all$"),
    ],
)
def test_shards_without_pairs_are_refused(tmp_path, members, message):
    write_shard(tmp_path / "a.tar", members)
    with pytest.raises(UserError, match=message):
        source(str(tmp_path / "a.tar"))


def test_wrong_configurations_are_refused(tmp_path):
    for name, value in (("num_workers", -1), ("decode_size", 0), ("seed", -1)):
        with pytest.raises(UserError, match=f"data.{name}={value} is too small"):
            source("shapes", **{name: value})
    with pytest.raises(UserError, match="nowhere"):
        source(str(tmp_path / "nowhere-{0..3}.tar"))
    with pytest.raises(
        UserError, match=r"data.decode_size=15 is too small for shapes: at least 16"
    ):
        source("shapes", decode_size=15)


@pytest.mark.parametrize("name", ["shapes", "1 * {clean} | 1 * shapes"])
@pytest.mark.parametrize("filters", ["text>=5", "nonsense"])
def test_filters_that_shapes_cannot_meet_are_refused(clean, name, filters):
    with pytest.raises(UserError, match=r"cannot be met by shapes|is no condition"):
        source(name.format(clean=clean), filters=filters)


# --- ends -----------------------------------------------------------------------------------------


def data_threads():
    return {thread for thread in threading.enumerate() if thread.name.startswith("data")}


@pytest.mark.parametrize("workers", [0, 2])
def test_closing_ends_the_thread_and_the_workers(clean, workers):
    threads, children = data_threads(), set(multiprocessing.active_children())
    batches = source(clean, num_workers=workers).batches(4, 0)
    next(batches)
    assert len(data_threads() - threads) == 1
    assert len(set(multiprocessing.active_children()) - children) == workers
    batches.close()
    assert data_threads() <= threads
    assert set(multiprocessing.active_children()) <= children


def test_the_death_of_a_worker_interrupts_nothing(clean, monkeypatch):
    """Who waits for its batch is told.

    torch's handler would raise in the main thread, whatever that is doing.
    """
    monkeypatch.setattr("torch.utils.data._utils.signal_handling._SIGCHLD_handler_set", False)
    handler = signal.getsignal(signal.SIGCHLD)
    with closing(source(clean, num_workers=1).batches(4, 0)) as batches:
        next(batches)
        assert signal.getsignal(signal.SIGCHLD) is handler


def test_a_program_that_never_closes_still_ends():
    """Neither the thread nor the processes that read hold it."""
    code = """
from silc_bench.trainer.config.config import DataConfig
from silc_bench.trainer.data.stream import open_source
configs = [DataConfig(source="shapes", decode_size=16, num_workers=n) for n in (0, 2)]
opened = [open_source(config).batches(4, 0) for config in configs]
print(*(next(batches).position for _ in range(2) for batches in opened))
"""
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    assert done.stdout.split() == ["4", "4", "8", "8"]
    assert done.stderr == ""
