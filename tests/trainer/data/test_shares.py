"""Each process reads its own part of every batch; together they read what one process does.

Whatever is damaged.
"""

import itertools
from collections import Counter
from contextlib import closing, suppress

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import as_ranks
from refusals import refused

from silc_bench.datasets.files.shards import Damage
from silc_bench.errors import DataError, RunError, UserError
from silc_bench.trainer.config.config import DataConfig
from silc_bench.trainer.data.samples import PassedOverError, UnreadableError, shuffled
from silc_bench.trainer.data.stream import BATCHES_AHEAD, ReadAhead, Source

pytestmark = pytest.mark.timing
SIDE = 2


def cause(sample):
    return "empty text" if sample % 2 else "corrupt image"


class Numbers:
    """Samples 0 to n - 1 in epochs of an order each, some unreadable in text or image.

    Every fifth one that is whole has an unreadable caption beside its own. Counts what it is
    asked for.
    """

    num_nodes = 1

    def __init__(self, num_samples, damaged=(), seed=0):
        self.num_samples, self.damaged, self.seed = num_samples, damaged, seed
        self.asked = Counter()
        self.skipped = []

    def sample(self, position):
        epoch, place = divmod(position, self.num_samples)
        return int(shuffled(self.seed, epoch, self.num_samples)[place])

    def _read(self, position, is_text):
        sample = self.sample(position)
        if sample in self.damaged and sample % 2 == is_text:
            raise UnreadableError(cause(sample), f"sample {sample}")
        return sample

    def text(self, position):
        self.asked[position] += 1
        sample = self._read(position, is_text=True)
        if sample % 5 == 4:
            self.skipped.append(PassedOverError("beside others", f"sample {sample}"))
        return f"number {sample} at {position}"

    def passed_over(self):
        skipped, self.skipped = self.skipped, []
        return skipped

    def image(self, position, side):
        sample = self._read(position, is_text=False)
        return np.full((1 + sample % SIDE, SIDE, 3), sample % 251, np.uint8)


def read(readers, batch_size, start, count, workers=0):
    """The first batches of every rank, and their sources; or the error of each."""
    config = DataConfig(decode_size=SIDE, num_workers=workers)
    sources = [Source(reader, config, Damage()) for reader in readers]

    def batches_of(rank, tell):
        part = (batch_size, start, rank, len(readers), tell)
        with closing(sources[rank].batches(*part)) as batches:
            return list(itertools.islice(batches, count))

    return as_ranks(len(readers), batches_of), sources


def naive(reader, batch_size, start, count):
    """(images, sizes, texts, end) of each batch, read one entry after the other."""
    batches = []
    for _ in range(count):
        images, sizes, texts = np.zeros((batch_size, 3, SIDE, SIDE), np.uint8), [], []
        while len(texts) < batch_size:
            with suppress(UnreadableError):
                image, text = reader.image(start, SIDE), reader.text(start)
                images[len(texts), :, : len(image)] = image.transpose(2, 0, 1)
                sizes.append([len(image), SIDE])
                texts.append(text)
            start += 1
        batches.append((images.tolist(), sizes, texts, start))
    return batches


def joined(answers):
    """As ``naive`` gives them: the ranks' equal parts of each batch, one below the other."""
    batches = []
    for parts in zip(*answers, strict=True):
        assert len({(len(part.texts), part.position) for part in parts}) == 1
        images, sizes = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("images", "sizes")
        )
        texts = [text for part in parts for text in part.texts]
        batches.append((images.tolist(), sizes.tolist(), texts, parts[0].position))
    return batches


@settings(max_examples=40)
@given(
    num_samples=st.integers(2, 40),
    ranks=st.integers(1, 4),
    share=st.integers(1, 6),
    seed=st.integers(0, 2**32),
    resume=st.integers(0, 4),
    data=st.data(),
)
def test_any_ranks_read_what_one_process_reads(num_samples, ranks, share, seed, resume, data):
    """Byte for byte, from any batch on, with the same damage; nobody reads much beyond his part."""
    damaged = data.draw(st.sets(st.integers(0, num_samples - 1), max_size=num_samples - 1))
    batch_size, count = ranks * share, 4
    alone, *readers = (Numbers(num_samples, damaged, seed) for _ in range(1 + ranks))
    expected = naive(alone, batch_size, 0, resume + count)
    start = expected[resume - 1][-1] if resume else 0
    answers, sources = read(readers, batch_size, start, count)
    assert joined(answers) == expected[resume:]

    # In the order of the stream, whichever rank met it and when.
    damage, last = Damage(), expected[-1][-1]
    for sample in dict.fromkeys(map(alone.sample, range(start, last))):
        if sample in damaged:
            damage.add(cause(sample), f"sample {sample}")
        elif sample % 5 == 4:
            damage.add("beside others", f"sample {sample}")
    assert all(source.damage == damage for source in sources)

    failed = last - start - count * batch_size
    for rank, reader in enumerate(readers):
        assert reader.asked.total() <= share * (count + BATCHES_AHEAD) + BATCHES_AHEAD * failed
        if not damaged:
            assert max(reader.asked.values()) == 1, "nothing is read twice"
            assert {(p - start) % batch_size // share for p in reader.asked} == {rank}


@pytest.mark.parametrize("workers", [1, 2])
def test_with_workers_too(workers):
    reader = Numbers(37, {3, 4, 5, 17, 30})
    expected = naive(reader, 12, 0, 6)
    assert joined(read([reader], 12, expected[0][-1], 5, workers)[0]) == expected[1:]


def test_a_source_that_is_all_damage_ends_every_rank():
    answers, _ = read([Numbers(9, range(9)) for _ in range(3)], 6, 0, 1)
    last = Numbers(9).sample(17)  # two epochs hold every sample, wherever they begin
    ends = {(type(answer), answer.about) for answer in answers}
    assert ends == {(DataError, f"sample {last}")}


class Gone(Numbers):
    """Ends the run at its fourth sample."""

    error = None

    def image(self, position, side):
        if position == 3:
            raise self.error
        return super().image(position, side)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", [UserError, RunError])
def test_an_error_that_ends_the_run_comes_as_it_was_raised_and_when_its_batch_is_due(kind, workers):
    """Also out of a worker, which would bury it in a traceback."""
    reader = Gone(9)
    reader.error = kind("it is gone", about="the bucket", fix="make it anew")
    source = Source(reader, DataConfig(decode_size=SIDE, num_workers=workers), Damage())
    with closing(source.batches(2, 0)) as batches:
        assert len(next(batches).texts) == 2
        with refused("the bucket", kind):
            next(batches)


SENT = "Caught {0} in DataLoader worker process 0.\nOriginal Traceback"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), RunError),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), RunError),
        (EOFError(), RunError),  # its tensors go before it is seen to be dead
        (ConnectionResetError(104, "Connection reset by peer"), RunError),
        (RuntimeError(SENT.format("RuntimeError")), RuntimeError),
        (ConnectionError(SENT.format("ConnectionError")), ConnectionError),
        (RuntimeError("a mistake of ours"), RuntimeError),
    ],
)
def test_which_errors_mean_that_a_worker_was_killed(error, kind):
    def answers():
        raise error
        yield

    with ReadAhead(Numbers(9), SIDE, 1, 0) as ahead:
        ahead._answers = answers()
        with pytest.raises(kind) as caught:
            ahead._next()
    assert type(caught.value) is kind
