"""The training stream: every pair once an epoch, the same from anywhere, damage counted.

From any position, with any number of workers.
"""

import errno
import multiprocessing
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from contextlib import closing

import numpy as np
import pytest
import torch
from refusals import refused

from silc_bench.datasets.files.images import decode_within
from silc_bench.datasets.generated.shapes import captions, drawing, scenes
from silc_bench.errors import DataError, RunError
from silc_bench.trainer.config.config import DataConfig
from silc_bench.trainer.data import stream as module
from silc_bench.trainer.data.stream import PLACES, Canvases, crowding, num_readers

from pretended_gpu import pretended_gpu  # isort: skip
from pairs import encoded, numbered, numbers, shard, source, take, whole, write_shard  # isort: skip

pytestmark = pytest.mark.timing


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """37 pairs in 3 shards."""
    folder = tmp_path_factory.mktemp("clean")
    numbered(folder, 15, 15, 7)
    return str(folder / "{000..002}.tar")


CORRUPT, TEXTLESS = {3, 4, 5, 17}, {8, 20}
TEXTS = {11: b" \n", 13: b"caf\xe9"}


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """24 samples, of which 16 are readable pairs."""
    members = []
    for index in range(24):
        (image, pixels), (text, words) = whole(index)
        members.append((image, pixels[:40] if index in CORRUPT else pixels))
        if index not in TEXTLESS:
            members.append((text, TEXTS.get(index, words)))
    path = tmp_path_factory.mktemp("damaged") / "a.tar"
    write_shard(path, members)
    return str(path)


# --- order and position ---------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 3])
def test_each_pair_once_an_epoch_in_an_order_of_its_own(clean, workers):
    stream = source(clean, num_workers=workers)
    assert stream.num_samples == 37
    stream_of_pairs = numbers(take(stream, 5, 0, 23))  # 3 epochs of 37, and a bit
    epochs = [stream_of_pairs[37 * epoch : 37 * (epoch + 1)] for epoch in range(3)]
    orders = [*epochs, list(range(37)), numbers(take(source(clean, seed=1), 37, 0, 1))]
    for order in orders:
        assert sorted(order) == list(range(37))
    assert len(set(map(tuple, orders))) == 5


def test_the_global_generator_is_left_alone(clean):
    before = torch.random.get_rng_state()
    take(source(clean, num_workers=2), 4, 0, 2)
    assert torch.equal(before, torch.random.get_rng_state())


def test_more_workers_than_cores_is_one_sentence_of_ours(clean, monkeypatch):
    monkeypatch.setattr("silc_bench.trainer.data.stream.num_cores", lambda: 2)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*worker")
        take(source(clean, num_workers=3), 4, 0, 2)
    assert crowding(2, 1) is crowding(0, 8) is None
    assert "data.num_workers=2 " in crowding(2, 2)


@pytest.mark.parametrize(
    ("num_workers", "cores", "ranks", "count"),
    [(-1, 8, 1, 8), (-1, 8, 3, 2), (-1, 1, 1, 0), (-1, 8, 8, 0), (-1, 2, 8, 0)]
    + [(0, 8, 1, 0), (3, 2, 2, 3)],
)
def test_as_many_read_as_a_rank_has_cores_unless_it_is_told(
    monkeypatch, num_workers, cores, ranks, count
):
    monkeypatch.setattr(module, "num_cores", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    assert num_readers(DataConfig(num_workers=num_workers)) == count
    if num_workers < 0:
        assert crowding(count, ranks) is None


def test_nothing_is_sent_by_way_of_a_folder(clean, monkeypatch):
    """There may be none, or one whose name is too long for a socket."""
    monkeypatch.setattr(tempfile, "tempdir", "/tmp/" + "l" * 200)
    assert len(take(source(clean, num_workers=1), 4, 0, 1)) == 1


# --- where batches lie ----------------------------------------------------------------------------

SIZES = [(16, 9), (3, 16), (40, 40), (1, 1), (9, 2)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_is_written_where_an_older_one_was_unless_someone_holds_it(tmp_path, workers):
    """However small a part of it; and nothing of the older one is left in it."""
    samples = [{"png": encoded(n, SIZES[n % 5]), "txt": f"number {n}"} for n in range(23)]
    path = shard(tmp_path / "a.tar", samples)
    held = take(source(path, num_workers=workers), 4, 0, 12)  # more than there are places
    assert len({batch.images.data_ptr() for batch in held}) == 12

    places = set()
    part = None
    with closing(source(path, num_workers=workers).batches(4, 0)) as batches:
        for number, expected in enumerate(held):
            batch = next(batches)
            places.add(batch.images.data_ptr())
            assert torch.equal(batch.images, expected.images)
            if number == 2:
                part = batch.images[1, :, 2:].flatten()[3:]
    assert torch.equal(part, held[2].images[1, :, 2:].flatten()[3:])
    assert len(places) <= PLACES
    for batch in held:
        for image, (height, width) in zip(batch.images, batch.sizes.tolist(), strict=True):
            assert not image[:, height:].any()
            assert not image[:, :, width:].any()


def test_batches_for_which_there_is_no_memory_are_one_sentence(clean, monkeypatch):
    def none(*args, **options):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(module.mmap, "mmap", none)
    with refused("batch_size", RunError):
        take(source(clean), 4, 0, 1)


def test_a_place_that_a_gpu_still_reads_is_not_taken():
    with pretended_gpu() as gpu:
        canvases = Canvases(1, 2)
        taken = [canvases.take() for _ in range(PLACES)]
        assert [place for place, _ in taken] == list(range(PLACES))
        assert canvases.take() == (None, None)
        gpu.is_busy = True
        taken.clear()
        assert canvases.take() == (None, None)
        gpu.is_busy = False
        place, images = canvases.take()
        assert place == 0
        assert canvases.tensor(images, place).data_ptr() == images.ctypes.data
        assert len(gpu.locked) == PLACES, "each is locked once"
        assert canvases.memory[3].ctypes.data in gpu.locked
        del images, canvases, place
    assert not gpu.locked, "and unlocked before its memory goes"


def test_where_cuda_locks_nothing_each_batch_is_copied_and_it_is_said_once(clean, capsys):
    (plain,) = take(source(clean), 5, 0, 1)
    with pretended_gpu() as gpu:
        gpu.can_lock = False
        batches = take(source(clean), 5, 0, 3)
        assert all(batch.images.pretends_pinned for batch in batches)
        assert torch.equal(batches[0].images, plain.images)
    assert capsys.readouterr().err.count("does not lock") == 1


def test_where_a_gpu_is_in_use_batches_are_page_locked_where_they_are_written(damaged):
    (plain,) = take(source(damaged), 5, 0, 1)
    with pretended_gpu() as gpu:
        (batch,) = take(source(damaged), 5, 0, 1)
        assert torch.equal(batch.images, plain.images)
        assert batch.images.data_ptr() in gpu.locked


@pytest.mark.slow
def test_workers_that_are_no_forks_read_the_same(damaged):
    """They share no memory with the trainer, so they send what they read."""
    code = f"""
import multiprocessing
from silc_bench.trainer.config.config import DataConfig
from silc_bench.trainer.data.stream import open_source
if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    config = DataConfig(source={damaged!r}, decode_size=16, num_workers=1)
    batches = open_source(config).batches(5, 0)
    for batch in (next(batches) for _ in range(4)):
        print(batch.texts, batch.images.sum().item())
"""
    with tempfile.NamedTemporaryFile("w", suffix=".py") as file:  # spawn reads it again
        file.write(code)
        file.flush()
        done = subprocess.run(
            [sys.executable, file.name], capture_output=True, text=True, timeout=240, check=True
        )
    expected = take(source(damaged), 5, 0, 4)
    lines = [f"{batch.texts} {batch.images.sum().item()}" for batch in expected]
    assert done.stdout.splitlines() == lines


# --- contents -------------------------------------------------------------------------------------


def test_shapes_are_the_scenes_of_the_training_split():
    (batch,) = take(source("shapes", seed=5, decode_size=32), 8, 100, 1)
    assert batch.position == 108
    assert batch.sizes.tolist() == [[32, 32]] * 8
    for index, (image, text) in enumerate(zip(batch.images, batch.texts, strict=True), start=100):
        scene = scenes.scene(5, "train", index)
        assert text in captions.captions(scene)
        assert np.array_equal(image.permute(1, 2, 0), drawing.render(scene, 32)[0])


def test_all_five_captions_of_shapes_are_read_about_equally():
    texts = [text for batch in take(source("shapes", seed=2), 100, 0, 5) for text in batch.texts]
    ranks = [
        captions.captions(scenes.scene(2, "train", index)).index(text)
        for index, text in enumerate(texts)
    ]
    assert (np.bincount(ranks, minlength=5) > 70).all()


@pytest.mark.parametrize(
    ("kind", "size", "fitted"),
    [
        ("JPEG", (64, 20), (5, 16)),
        ("PNG", (10, 40), (16, 4)),
        ("WEBP", (5, 7), (7, 5)),
        ("BMP", (300, 1), (1, 16)),
    ],
)
def test_images_keep_their_aspect_and_are_never_enlarged(kind, size, fitted):
    image = np.asarray(decode_within(encoded(0, size, kind), 16))
    assert image.shape == (*fitted, 3)
    assert (abs(image[..., 2].astype(int) - 77) <= 2).all()


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


@pytest.mark.parametrize("workers", [0, 2])
def test_the_users_error_is_one_sentence_and_ends_the_workers(tmp_path, workers):
    before, path = in_background(), tmp_path / "a.tar"
    shard(path, [{"png": encoded(n)[:30], "txt": "x"} for n in range(10)])
    stream = source(path, num_workers=workers)
    with refused(f"{path} at byte ", DataError, is_kept=False) as damage:
        take(stream, 4, 0, 1)
    assert "corrupt image" in damage.value.problem
    unread = source(path, num_workers=workers)  # of which no file is open yet
    path.unlink()
    with refused(path):
        take(unread, 4, 0, 1)
    assert in_background() == before  # though the errors are still held


@pytest.mark.parametrize(
    "members", [[("a.png", encoded(1))], [("a.txt", b"x"), ("a.heic", b"x")], []]
)
def test_shards_without_pairs_are_refused(tmp_path, members):
    write_shard(tmp_path / "a.tar", members)
    with refused(tmp_path / "a.tar", DataError):
        source(tmp_path / "a.tar")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_workers", -2),
        ("decode_size", 0),
        ("decode_size", 15),
        ("seed", -1),
        ("filters", "text>=5"),
    ],
)
def test_wrong_configurations_are_refused(field, value):
    with refused(f"data.{field}"):
        source("shapes", **{field: value})


# --- ends -----------------------------------------------------------------------------------------


def in_background():
    """How many threads read, and how many processes there are."""
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("data")]
    return len(threads), len(multiprocessing.active_children())


@pytest.mark.parametrize("workers", [0, 2])
def test_closing_ends_the_thread_and_the_workers(clean, workers):
    threads, children = in_background()
    with closing(source(clean, num_workers=workers).batches(4, 0)) as batches:
        next(batches)
        assert in_background() == (threads + 1, children + workers)
    assert in_background() == (threads, children)


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
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=True
    )
    assert (done.stdout, done.stderr) == ("4 4 8 8\n", "")
