"""``silc-bench data check``: what is there, what is wrong, what mends it; nothing is written."""

from __future__ import annotations

import pytest
from commands import call, succeed
from refusals import refused

from silc_bench.datasets.check import check
from silc_bench.datasets.public.cifar import CIFAR10_NAMES
from silc_bench.datasets.public.find import Expected
from silc_bench.datasets.public.load import SETS


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setitem(SETS["cifar10"].splits, "test", Expected(10, classes=10, per_class=1))


def test_a_whole_set(make, tmp_path):
    make.shard(tmp_path / "cifar10/test/0.tar", range(10))
    for path in (tmp_path, tmp_path / "cifar10"):
        assert succeed(f"data check cifar10 {path}").splitlines()[:3] == [
            f"cifar10 test: webdataset shards in {tmp_path}/cifar10/test",
            "  10 images, 10 classes of 1 to 1 images, as many as the set has",
            "  10 of 10 images decoded; commonest sizes: 4 x 4 (10)",
        ]
    (tmp_path / "cifar10").rename(tmp_path / "images")
    succeed(f"data check cifar10 {tmp_path}/images")  # the path may have any name


def test_damaged_images_are_counted(make, tmp_path):
    folder = tmp_path / "cifar10/test"
    make.tree(folder, [(f"{name}/0.png", make.image(i)) for i, name in enumerate(CIFAR10_NAMES)])
    damaged = [(f"{name}/0.png", b"no image") for name in ("cat", "dog")]
    make.tree(folder, [*damaged, ("dog/.DS_Store", b"")])
    result = call(f"data check cifar10 {tmp_path}")
    assert result.exit_code == 2
    assert "1 .DS_Store\n" in result.stdout
    wrong, fix = result.stdout.splitlines()[-2:]
    assert wrong.startswith("wrong: 2 of 10 ")
    assert f" {folder}/cat/0.png: " in wrong
    assert fix.startswith("fix: ")


def test_only_a_spread_part_is_decoded_unless_all_are_asked_for(make, tmp_path, monkeypatch):
    monkeypatch.setattr("silc_bench.datasets.check.DECODED", 2)
    files = [(f"{name}/{i}.png", make.image(i)) for name in ("a", "b") for i in range(3)]
    make.tree(tmp_path, [*files, ("a/1.png", b"no image")])
    assert not check(f"folder:{tmp_path}").problems
    assert check(f"folder:{tmp_path}", every_image=True).problems


def test_own_data(make, tmp_path):
    splits = [(split, label) for split in ("train", "test") for label in (0, 1)]
    make.tree(tmp_path, [(f"{split}/{label}/0.png", make.image(label)) for split, label in splits])
    shown = succeed(f"data check folder:{tmp_path}")
    assert f"folder:{tmp_path} train: class folders" in shown
    assert "classes in label order: 0, 1\n" in shown
    assert "classnames.txt" in shown, "numbers are no names"


def test_both_splits_are_looked_at_and_only_what_is_there_is_wrong(make, tmp_path):
    make.shard(tmp_path / "cifar10/test/0.tar", range(10))
    make.shard(tmp_path / "cifar10/train/0.tar", range(10))
    report = check("cifar10", tmp_path)
    (problem,) = report.problems
    assert "cifar10 train" in problem.what
    assert "50,000" in problem.what
    assert problem.fix
    assert any(line.startswith("cifar10 test:") for line in report.found)


@pytest.mark.parametrize(
    ("name", "path", "about"),
    [
        ("cifar11", ".", "data check"),
        ("cifar10", None, "cifar10"),
        ("cifar10", "none", "none"),
        ("folder:{}", ".", "{}"),
        ("folder:", None, "folder:"),
    ],
)
def test_mistakes_in_the_command(tmp_path, name, path, about):
    with refused(about.format(tmp_path)):
        check(name.format(tmp_path), tmp_path / path if path else None)
