"""Two models on the same samples: the one paired test behind every difference and every tie.

Flow: ``Samples(reading)`` reads what each sample scored -> ``samples.pair(a, b, metric)`` ->
``Paired``, or the reason why there is none. ``compare`` and the leaderboard ask here, so they never
say two things of one pair (no torch).

Hits are tested by McNemar's exact test. Everything else has Student's t on the paired bootstrap's
error: captions and pixels are drawn with their image; where the training shots were drawn several
times, that variance is added.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from silc_bench.errors import DataError, UserError
from silc_bench.later import np
from silc_bench.metrics import statistics
from silc_bench.metrics.statistics import Paired
from silc_bench.results import outcomes
from silc_bench.results.folders import Reading
from silc_bench.results.outcomes import PerImage
from silc_bench.results.record import Record

ALPHA = 0.05  # of all tests together
KEPT = 256  # records whose samples are held at once
# No pairing makes the error of a difference larger than the sum of both errors: beyond this many of
# them no test could call the two equal.
SURE = 6.0


class Samples:
    """What each sample scored, of the records that were read; ``problems`` names damage."""

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.problems: dict[Path, str] = {}
        self._kept: OrderedDict[tuple[str, str, str], dict[str, np.ndarray] | None] = OrderedDict()

    def of(self, record: Record) -> dict[str, np.ndarray] | None:
        """The arrays of a record; None where none were kept, or where their file is damaged."""
        place = record.model.name, record.model.revision, record.key
        if place not in self._kept:
            self._kept[place] = self._read(record)
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(place)
        return self._kept[place]

    def pair(self, a: Record, b: Record, metric: str) -> Paired | str:
        """The paired test of two records of one question, or why it cannot be made.

        Raises:
            UserError: the two files are of other samples, though one question was asked.
        """
        kept = [self.of(record) for record in (a, b)]
        missing = [
            f"{record.model.name}@{record.model.revision[:8]}"
            for record, own in zip((a, b), kept, strict=True)
            if own is None
        ]
        if missing:
            mend = "`silc-bench eval --existing overwrite` keeps them"
            return f"no outcomes of single images of {' and '.join(missing)} ({mend})"
        kept_a, kept_b = (own or {} for own in kept)

        problem = not_the_same_samples(kept_a, kept_b)
        if problem:
            places = " and ".join(str(self.path_of(record)) for record in (a, b))
            raise UserError(
                f"{problem}, though both records name the same data",
                about=places,
                fix="measure one of them again",
            )

        part_a = outcomes.per_image(kept_a, metric)
        part_b = outcomes.per_image(kept_b, metric)
        if part_a is None or part_b is None:
            return f"the outcomes do not say what each image adds to {metric}"
        return paired(part_a, part_b)

    def path_of(self, record: Record) -> Path:
        """Where the samples of a record lie: beside the record itself."""
        return outcomes.path_of(record, self.reading.results_dir_of(record))

    def _read(self, record: Record) -> dict[str, np.ndarray] | None:
        try:
            return outcomes.load(record, self.reading.results_dir_of(record))
        except DataError as error:
            self.problems[self.path_of(record)] = str(error)
            return None


def paired(a: PerImage, b: PerImage) -> Paired:
    """One metric of two models, from what each image adds to it."""
    value_a, value_b = (float(part.statistic(part.counts.sum(axis=0)[None])[0]) for part in (a, b))
    difference = value_b - value_a
    num_images = len(a.counts)

    # which images were tested, and which shots were drawn: independent, so variances add
    variances = [statistics.paired_bootstrap(a.counts, b.counts, a.statistic) ** 2]
    dofs = [num_images - 1]
    if a.hits is not None and b.hits is not None:
        variances.append(statistics.draws_variance(a.hits, b.hits))
        dofs.append(a.hits.shape[1] - 1)
    stderr = float(np.sqrt(sum(variances)))
    dof = statistics.pooled_dof(variances, dofs)

    # hits of a single draw have an exact test
    if a.hits is not None and b.hits is not None and a.hits.shape[1] == 1:
        test = "mcnemar"
        p = statistics.mcnemar(a.hits, b.hits)
    else:
        test = "bootstrap"
        num_differing = int((a.counts != b.counts).reshape(num_images, -1).any(axis=1).sum())
        p = statistics.paired_p(difference, stderr, dof, num_differing)
    return Paired(difference, stderr, statistics.half_interval(stderr, dof), p, test)


def tied(
    samples: Samples, best: Record, others: Sequence[Record], metric: str
) -> list[bool | None]:
    """Of each other record of one question whether it is tied with the best.

    Tied means: no difference can be shown after Holm's correction over the column. None: its
    samples were not kept, so nobody can say.
    """
    p_of: dict[int, float] = {}
    for index, other in enumerate(others):
        errors = [record.stderr.get(metric) for record in (best, other)]
        gap = abs(best.metrics[metric] - other.metrics[metric])
        known = [error for error in errors if error is not None]
        # far behind: the test would only repeat what the errors say already
        if len(known) == 2 and gap > SURE * sum(known):
            p_of[index] = 0.0
            continue
        pair = samples.pair(best, other, metric)
        if isinstance(pair, Paired):
            p_of[index] = pair.p

    adjusted = dict(zip(p_of, statistics.holm(list(p_of.values())), strict=True))
    return [
        bool(adjusted[index] >= ALPHA) if index in adjusted else None
        for index in range(len(others))
    ]


def not_the_same_samples(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> str:
    """What shows that two files are of different samples; empty if nothing does."""
    for name in sorted(set(a) & set(b)):
        if a[name].shape != b[name].shape:
            return f"{name} is {list(a[name].shape)} in one and {list(b[name].shape)} in the other"
        if name in (outcomes.LABELS, outcomes.ASKED_BY) and not np.array_equal(a[name], b[name]):
            return f"{name} differs"
    return ""
