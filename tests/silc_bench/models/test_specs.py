"""The words of --ckpt: globs, lists, a run's checkpoints, and what is there by its very name."""

import pytest
from refusals import refused

from silc_bench.models.specs import specs_of

RUNS = {  # folder -> steps that it kept
    "runs/b": (8, 10, 100),
    "runs/a": (5,),
    "runs/[x]": (1,),
}
LIST = """
# what is compared
runs/a          # a comment behind it
runs/b:teacher

timm:resnet18/random
weights/*.pth
"""


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    for folder, steps in RUNS.items():
        for step in steps:
            path = tmp_path / folder / f"checkpoints/step_{step}.pt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            path.with_suffix(".json").touch()
    (tmp_path / "weights").mkdir()
    for name in ("two.pth", "one.pth", "one.md"):
        (tmp_path / f"weights/{name}").touch()
    (tmp_path / "runs/both.html").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "runs/c").mkdir()
    (tmp_path / "list.txt").write_text(LIST)
    (tmp_path / "lists.txt").write_text("runs/a\n@list.txt\n")
    (tmp_path / "wrong.txt").write_text("runs/a\nruns/none\n")
    (tmp_path / "nothing.txt").write_text("# nothing\n")
    (tmp_path / "weights.pt").write_bytes(b"\xff\xfe\xfd")
    monkeypatch.chdir(tmp_path)


def steps(run, *numbers, branch=""):
    return [f"{run}/checkpoints/step_{number}.pt{branch}" for number in numbers]


def both(folder):
    return [f"{folder}/one.pth", f"{folder}/two.pth"]


@pytest.mark.parametrize(
    ("words", "specs"),
    [
        (["runs/a", "runs/b:teacher"], ["runs/a", "runs/b:teacher"]),
        (["runs/a", "runs/a"], ["runs/a", "runs/a"]),  # typed twice: two names may be asked for
        (["hf:org/name", "timm:resnet18"], ["hf:org/name", "timm:resnet18"]),
        (["runs/[ab]"], ["runs/a", "runs/b"]),
        (["runs/[ab]:teacher"], ["runs/a:teacher", "runs/b:teacher"]),
        (["runs/[x]"], ["runs/[x]"]),  # there by its very name
        (["runs/[x]:teacher"], ["runs/[x]:teacher"]),
        (["timm:resnet18/weights/*.pth"], both("timm:resnet18/weights")),
        (["hf:weights/*"], both("hf:weights")),
        (["runs/b@all"], steps("runs/b", 8, 10, 100)),
        (["runs/b:teacher@all"], steps("runs/b", 8, 10, 100, branch=":teacher")),
        (["runs/b/checkpoints@all"], steps("runs/b", 8, 10, 100)),
        (["runs/[ab]@all"], [*steps("runs/a", 5), *steps("runs/b", 8, 10, 100)]),
        (["runs/b/checkpoints/*"], steps("runs/b", 8, 10, 100)),
        (
            ["@list.txt"],
            ["runs/a", "runs/b:teacher", "timm:resnet18/random", *both("weights")],
        ),
    ],
)
def test_a_word_means_these_checkpoints(words, specs):
    assert list(specs_of(words).specs) == specs


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["runs/*"], "runs/* passes over 1 file without an ending of weights: runs/both.html"),
        (["runs/b", "runs/[ab]"], "1 checkpoint was named twice and count once: runs/b"),
        (["runs/[ac]@all"], "runs/[ac]@all passes over 1 without checkpoints: runs/c"),
        (["runs/a", "runs/b"], ""),
    ],
)
def test_what_is_passed_over_is_said(words, said):
    assert [said in remark for remark in specs_of(words).remarks] == [True] * bool(said)


@pytest.mark.parametrize(
    ("word", "about"),
    [
        ("", "checkpoint"),
        ("runs/none", "runs/none"),
        ("runs/a:techer", "runs/a"),
        ("runs/z*", "runs/z*"),
        ("weights/*.md", "weights/*.md"),
        ("empty@all", "empty@all"),
        ("none@all", "none"),
        ("@none.txt", "@none.txt"),
        ("@empty", "@empty"),
        ("@nothing.txt", "@nothing.txt"),
        ("@weights.pt", "@weights.pt"),
        ("@lists.txt", "@lists.txt, line 2"),
        ("@wrong.txt", "@wrong.txt, line 2"),
        ("opne_clip:ViT-B-32/openai", "opne_clip"),
    ],
)
def test_a_word_that_means_nothing_is_refused(word, about):
    with refused(about=about):
        specs_of([word])


def test_no_word_is_refused():
    with refused(about="--ckpt"):
        specs_of([])
