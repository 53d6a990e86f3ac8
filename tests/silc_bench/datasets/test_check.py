"""``silc-bench data check``: what is there, what is wrong, what mends it; nothing is written."""

from __future__ import annotations

import os

import pytest
from typer.testing import CliRunner

from silc_bench.cli.app import app
from silc_bench.datasets.check import check
from silc_bench.datasets.public.cifar import CIFAR10_NAMES
from silc_bench.datasets.public.counts import EXPECTED, Expected
from silc_bench.errors import UserError

REAL = os.environ.get("SILC_BENCH_TEST_DATA")


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setitem(EXPECTED, ("cifar10", "test"), Expected(10, classes=10, per_class=1))


def run(*words):
    done = CliRunner().invoke(app, ["data", "check", *map(str, words)], env={"COLUMNS": "200"})
    return done.exit_code, done.stdout, done.stderr


def contents(root):
    return {
        path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes())
        for path in root.rglob("*")
    }


def test_a_whole_set(make, tmp_path):
    make.shard(tmp_path / "cifar10/test/0.tar", range(10))
    before = contents(tmp_path)
    for path in (tmp_path, tmp_path / "cifar10"):
        code, said, _ = run("cifar10", path)
        assert code == 0, said
        assert said.splitlines()[:3] == [
            f"cifar10 test: webdataset shards in {tmp_path}/cifar10/test",
            "  10 pictures, 10 classes of 1 to 1 pictures, as many as the set has",
            "  10 of 10 pictures decoded; commonest sizes: 4 x 4 (10)",
        ]
        assert said.splitlines()[-1] == "ready to be measured"
    assert contents(tmp_path) == before
    (tmp_path / "cifar10").rename(tmp_path / "pictures")
    assert run("cifar10", tmp_path / "pictures")[0] == 0, "the path may have any name"


def test_what_is_wrong_and_the_line_that_mends_it(make, tmp_path):
    make.shard(tmp_path / "test/0.tar", range(9))
    code, said, error = run("cifar10", tmp_path)
    assert code == 2
    assert "wrong: cifar10 test in" in said
    assert (
        "9 pictures (webdataset shards), and the set has 10; 1 of 10 classes have none, "
        "such as 'truck'"
    ) in said
    assert "fix:   fetch what is missing" in said
    assert "cifar10 cannot be measured as it is" in error


def test_damaged_images_are_counted(make, tmp_path):
    make.tree(
        tmp_path / "cifar10/test",
        [(f"{name}/0.png", make.image(i)) for i, name in enumerate(CIFAR10_NAMES)],
    )
    for name in ("cat", "dog"):
        (tmp_path / f"cifar10/test/{name}/0.png").write_bytes(b"no picture")
    (tmp_path / "cifar10/test/dog/.DS_Store").write_bytes(b"")
    code, said, _ = run("cifar10", tmp_path)
    assert code == 2
    assert "  skipped stray files of the system: 1 .DS_Store\n" in said
    assert (
        "wrong: 2 of 10 pictures cannot be decoded; the first: "
        f"{tmp_path}/cifar10/test/cat/0.png is damaged"
    ) in said


def test_only_a_spread_part_is_decoded_unless_all_are_asked_for(make, tmp_path, monkeypatch):
    monkeypatch.setattr("silc_bench.datasets.check.DECODED", 2)
    make.tree(
        tmp_path, [(f"{name}/{i}.png", make.image(i)) for name in ("a", "b") for i in range(3)]
    )
    (tmp_path / "a/1.png").write_bytes(b"no picture")
    assert not check(f"folder:{tmp_path}").problems
    assert check(f"folder:{tmp_path}", every_image=True).problems


def test_own_data(make, tmp_path):
    make.tree(
        tmp_path,
        [
            (f"{split}/{label}/0.png", make.image(label))
            for split in ("train", "test")
            for label in (0, 1)
        ],
    )
    code, said, _ = run(f"folder:{tmp_path}")
    assert code == 0
    assert f"folder:{tmp_path} train: class folders" in said
    assert "classes in label order: 0, 1\n" in said
    assert "the names are no words" in said


def test_both_splits_are_looked_at_and_only_what_is_there_is_wrong(make, tmp_path):
    make.shard(tmp_path / "cifar10/test/0.tar", range(10))
    make.shard(tmp_path / "cifar10/train/0.tar", range(10))
    report = check("cifar10", tmp_path)
    assert [
        problem.what
        for problem in report.problems
        if "cifar10 train in" in problem.what and "has 50,000" in problem.what
    ]
    assert any(line.startswith("cifar10 test:") for line in report.found)


def test_mistakes_in_the_command(tmp_path):
    for words, sentence in (
        (("cifar11", tmp_path), "did you mean cifar10"),
        (("cifar10",), "where is cifar10? Write: silc-bench data check cifar10 PATH"),
        (("cifar10", tmp_path / "none"), "none does not exist"),
        ((f"folder:{tmp_path}", tmp_path), "says already where"),
        (("folder:",), "names no data"),
    ):
        code, _, error = run(*words)
        assert (code, sentence in error) == (2, True), error
    with pytest.raises(UserError):
        check("cifar10")


@pytest.mark.skipif(REAL is None, reason="SILC_BENCH_TEST_DATA is not set: no real photographs")
def test_real_photographs():
    report = check(f"captions:{REAL}/coco_mini/meta.jsonl")
    assert not report.problems
    assert "  159 pictures, 795 captions (5 to 5 a picture)" in report.found
