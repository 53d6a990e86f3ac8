"""Folders of runs that were never trained, and a browser to show their page in."""

import json

import pytest

from silc_bench.system.checksums import sealed


@pytest.fixture
def made(tmp_path):
    """``made("name", log=rows, ...)``: the folder of a run with these rows in log.jsonl, ...

    At the end of each file stands a row that was cut off.
    """

    def write(name="run", checkpoints=(), log=({"step": 7, "loss": 2.5},), **files):
        folder = tmp_path / "runs" / name
        (folder / "checkpoints").mkdir(parents=True)
        for kind, rows in {"log": log, **files}.items():
            lines = [*map(json.dumps, rows), '{"step": 9, "lo']
            (folder / f"{kind}.jsonl").write_text("\n".join(lines))
        for record in checkpoints:
            path = folder / "checkpoints" / f"step_{record['step']}.json"
            path.write_text(json.dumps(sealed(record)))
        return folder

    return write
