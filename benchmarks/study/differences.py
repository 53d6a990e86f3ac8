"""Students of the arms, compared seed by seed."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

Rows = list[dict[str, Any]]
Points = dict[str, list[float]]  # of each measure, a number a seed


def differences(found: Rows, arm: str) -> Points:
    """Student of silc minus that of ``arm``, in points, of the seeds that both have."""
    silc, other = (by_seed(found, one, "student") for one in ("silc", arm))
    seeds = sorted(set(silc) & set(other))
    points: Points = defaultdict(list)
    for seed in seeds:
        for name in silc[seed]:
            points[name].append(silc[seed][name] - other[seed][name])
    return points


def by_seed(found: Rows, arm: str, branch: str) -> dict[int, dict[str, float]]:
    """{seed: {measure: percent}}."""
    return {
        row["seed"]: {name: 100 * value for name, value in row[branch].items()}
        for row in found
        if row["arm"] == arm and branch in row
    }
