"""Each process reads its own part of every batch; together they read what one process does.

Whatever is damaged.
"""

import itertools
import threading
from collections import Counter
from contextlib import closing

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused

from silc_bench.datasets.files.shards import Damage
from silc_bench.errors import DataError, RunError, UserError
from silc_bench.trainer.config.config import DataConfig
from silc_bench.trainer.data.samples import UnreadableError, shuffled
from silc_bench.trainer.data.stream import BATCHES_AHEAD, ReadAhead, Source

pytestmark = pytest.mark.timing
SIDE = 2


class Numbers:
    """Samples 0 to n - 1 in epochs of an order each, some unreadable in text or image.

    Counts what it is asked for.
    """

    def __init__(self, num_samples, damaged=(), seed=0):
        self.num_samples, self.damaged, self.seed = num_samples, frozenset(damaged), seed
        self.asked = Counter()

    def describe(self):
        return "numbers"

    def sample(self, position):
        epoch, place = divmod(position, self.num_samples)
        return int(shuffled(self.seed, epoch, self.num_samples)[place])

    def text(self, position):
        sample = self.sample(position)
        self.asked[position] += 1
        if sample in self.damaged and sample % 2:
            raise UnreadableError("empty text", f"sample {sample}")
        return f"number {sample} at {position}"

    def image(self, position):
        sample = self.sample(position)
        if sample in self.damaged:
            raise UnreadableError("corrupt image", f"sample {sample}")
        return np.full((1 + sample % SIDE, SIDE, 3), sample % 251, np.uint8)


class Ranks:
    """Threads instead of processes.

    ``tell(rank)`` is what silc_bench.system.processes.concatenated does.
    """

    def __init__(self, count):
        self.boxes, self.barrier = [[] for _ in range(count)], threading.Barrier(count, timeout=60)

    def tell(self, rank):
        def told(values):
            self.boxes[rank] = values
            self.barrier.wait()
            found = [value for box in self.boxes for value in box]
            self.barrier.wait()
            return found

        return told


def read(readers, batch_size, start, count, workers=0):
    """The first batches of every rank, and their sources; or the error of each."""
    ranks, answers = Ranks(len(readers)), [None] * len(readers)
    config = DataConfig(decode_size=SIDE, num_workers=workers)
    sources = [Source(reader, config, Damage()) for reader in readers]

    def run(rank):
        part = (batch_size, start, rank, len(readers), ranks.tell(rank))
        try:
            with closing(sources[rank].batches(*part)) as batches:
                answers[rank] = list(itertools.islice(batches, count))
        except UserError as error:
            answers[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(readers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return answers, sources


def walked(reader, batch_size, start, count):
    """Sample and position of the pairs of ``count`` batches, and where each ends, in turn."""
    batches, position = [], start
    for _ in range(count):
        pairs = []
        while len(pairs) < batch_size:
            if (sample := reader.sample(position)) not in reader.damaged:
                pairs.append((sample, position))
            position += 1
        batches.append((pairs, position))
    return batches


def assert_is(parts, pairs, end):
    """The ranks' parts of a batch, one below the other, are the pairs."""
    texts = [f"number {sample} at {position}" for sample, position in pairs]
    assert [text for part in parts for text in part.texts] == texts
    assert {len(part.texts) for part in parts} == {len(pairs) // len(parts)}
    assert {part.position for part in parts} == {end}
    images, sizes = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("images", "sizes")
    )
    assert sizes.tolist() == [[1 + sample % SIDE, SIDE] for sample, _ in pairs]
    for image, (sample, _) in zip(images, pairs, strict=True):
        height = 1 + sample % SIDE
        assert (image[:, :height] == sample % 251).all()
        assert (image[:, height:] == 0).all()


@settings(max_examples=40, deadline=None)
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
    expected = walked(Numbers(num_samples, damaged, seed), batch_size, 0, resume + count)
    start = expected[resume - 1][1] if resume else 0
    readers = [Numbers(num_samples, damaged, seed) for _ in range(ranks)]
    answers, sources = read(readers, batch_size, start, count)
    for parts, (pairs, end) in zip(zip(*answers, strict=True), expected[resume:], strict=True):
        assert_is(parts, pairs, end)
    last = expected[-1][1]
    met = set(map(Numbers(num_samples, (), seed).sample, range(start, last))) & damaged
    counts = Counter("empty text" if sample % 2 else "corrupt image" for sample in met)
    assert all(source.damage.counts == counts for source in sources)
    failed = last - start - count * batch_size
    for reader in readers:
        assert reader.asked.total() <= share * (count + BATCHES_AHEAD) + BATCHES_AHEAD * failed
        if not damaged:
            assert max(reader.asked.values()) == 1, "nothing is read twice"


@pytest.mark.parametrize("workers", [1, 2])
def test_with_workers_too(workers):
    damaged = {3, 4, 5, 17, 30}
    expected = walked(Numbers(37, damaged), 12, 0, 6)
    answers, _ = read([Numbers(37, damaged)], 12, 0, 6, workers)
    for parts, (pairs, end) in zip(zip(*answers, strict=True), expected, strict=True):
        assert_is(parts, pairs, end)


def test_a_rank_reads_nothing_of_what_the_others_have():
    readers = [Numbers(1000) for _ in range(4)]
    read(readers, 40, 0, 5)
    for rank, reader in enumerate(readers):
        assert set(reader.asked) <= {p for p in range(40 * 7) if p % 40 // 10 == rank}
        assert reader.asked.total() >= 50


def test_a_source_that_is_all_damage_ends_every_rank():
    answers, _ = read([Numbers(9, range(9)) for _ in range(3)], 6, 0, 1)
    last = Numbers(9).sample(17)  # two epochs hold every sample, wherever they begin
    assert [type(answer) for answer in answers] == [DataError] * 3
    assert {answer.about for answer in answers} == {f"sample {last}"}


class Gone(Numbers):
    """Ends the run at its fourth sample."""

    def __init__(self, error):
        super().__init__(9)
        self.error = error

    def image(self, position):
        if position == 3:
            raise self.error
        return super().image(position)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", [UserError, RunError])
def test_an_error_that_ends_the_run_comes_as_it_was_raised_and_when_its_batch_is_due(kind, workers):
    """Also out of a worker, which would bury it in a traceback."""
    error = kind("it is gone", about="the bucket", fix="make it anew")
    source = Source(Gone(error), DataConfig(decode_size=SIDE, num_workers=workers), Damage())
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

    with ReadAhead(Numbers(9), SIDE, 0) as ahead:
        ahead._answers = answers()
        with pytest.raises(kind) as caught:
            ahead._next()
    assert type(caught.value) is kind


def test_damage_is_reported_in_the_order_of_the_stream():
    """The first example of a cause is the first one met, whichever rank met it and when."""
    damaged = {1, 3, 5, 7, 9, 11}
    first = next(sample for sample in map(Numbers(40).sample, range(40)) if sample in damaged)
    _, sources = read([Numbers(40, damaged) for _ in range(3)], 33, 0, 1)
    assert [source.damage.first for source in sources] == [{"empty text": f"sample {first}"}] * 3
