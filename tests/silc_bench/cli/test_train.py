"""What a finished run proposes to do next."""

import pytest

from silc_bench.cli.train import tasks_for

pytestmark = pytest.mark.broad


@pytest.mark.parametrize(
    ("source", "tasks"),
    [
        ("shapes", "shapes"),
        ("photos/own.jsonl", "captions:photos/own.jsonl"),
        ("my photos/own.CSV", "'captions:my photos/own.CSV'"),
        ("shards/*.tar", "zeroshot --data-root DIR"),
        ("3 * a.tar | 1 * own.jsonl", "zeroshot --data-root DIR"),  # a part of it is not all
    ],
)
def test_the_next_step_fits_the_data(source, tasks):
    assert tasks_for(source) == tasks
