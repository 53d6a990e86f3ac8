"""Which records of two models measure the same - one protocol, data, limit and task version - and why others do not (no torch).

``pair_up(mine, theirs, labels)`` takes the records of one task by two models and accounts for every one of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from silc_bench.results import Record
from silc_bench.variants import flat_fields

SHOWN_FIELDS = 3  # of those in which two measurements differ


def pair_up(
    mine: Sequence[Record], theirs: Sequence[Record], labels: tuple[str, str], across_protocols: bool = False
) -> tuple[list[tuple[Record, Record]], list[str]]:
    """Pairs of records, and a reason for each record that is in none.

    Of several pairs the newest task version counts, and of that whole runs, if there are any.

    Args:
        labels: of the two models, for the reasons.
        across_protocols: also pair records that differ in nothing but the protocol, where each model has one such.
    """
    pairs = [(a, b) for a in mine for b in theirs if a.key == b.key]
    left = _without(mine, pairs), _without(theirs, pairs)
    if across_protocols:
        for a in left[0]:
            same = [[record for record in side if _scored(record) == _scored(a)] for side in left]
            if len(same[0]) == len(same[1]) == 1:
                pairs.append((a, same[1][0]))
        left = _without(mine, pairs), _without(theirs, pairs)
    best = max((a for a, _ in pairs), key=_rank, default=None)
    if best is None:
        return [], _unpaired(*left, labels)
    reasons = [f"{_way(a)}: left out, as {_way(best)} was compared" for a, _ in pairs if _rank(a) != _rank(best)]
    return [pair for pair in pairs if _rank(pair[0]) == _rank(best)], reasons + _unpaired(*left, labels)


def is_alike(a: Record, b: Record) -> bool:
    return bool(a.protocol["hash"] == b.protocol["hash"])


def protocol_of(record: Record) -> str:
    """Its name and the beginning of its hash."""
    return f"{record.protocol['name']} {record.protocol['hash'][:8]}"


def _without(records: Sequence[Record], pairs: Sequence[tuple[Record, Record]]) -> list[Record]:
    return [record for record in records if all(record not in pair for pair in pairs)]


def _scored(record: Record) -> tuple[int, str, int | None]:
    return record.task.version, record.dataset.fingerprint, record.limit


def _rank(record: Record) -> tuple[int, bool]:
    return record.task.version, record.limit is None


def _way(record: Record) -> str:
    return f"task version {record.task.version} on {_part(record)}"


def _part(record: Record) -> str:
    return "the whole split" if record.limit is None else f"{record.limit} pictures"


def _unpaired(mine: list[Record], theirs: list[Record], labels: tuple[str, str]) -> list[str]:
    """A reason for each record, or for two at once: those that are nearest to having measured the same."""
    reasons = []
    while mine and theirs:
        a, b = min(((a, b) for a in mine for b in theirs), key=lambda pair: len(_differences(*pair)))
        mine, theirs = _without(mine, [(a, b)]), _without(theirs, [(a, b)])
        differing = _differences(a, b)
        more = f" and {len(differing) - SHOWN_FIELDS} more" if len(differing) > SHOWN_FIELDS else ""
        reasons.append(f"not measured alike: {'; '.join(differing[:SHOWN_FIELDS])}{more}")
    for label, rest in zip(labels, (mine, theirs), strict=True):
        reasons += [f"only {label} has measured it (protocol {protocol_of(record)}, {_way(record)})" for record in rest]
    return reasons


def _differences(a: Record, b: Record) -> list[str]:
    """Every field that decides what a measurement is, where the two disagree."""
    fields = [
        {"limit": _part(record), "data": record.dataset.fingerprint[:8], **flat_fields(record.protocol)} for record in (a, b)
    ]
    names = dict.fromkeys((*fields[0], *fields[1]))
    values = [(name, fields[0].get(name, "nothing"), fields[1].get(name, "nothing")) for name in names]
    return [f"{name} is {first} against {second}" for name, first, second in values if first != second]
