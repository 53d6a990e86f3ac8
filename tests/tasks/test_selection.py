"""What the tasks of the generated scenes load, and tasks found by the names people use."""

from __future__ import annotations

import json
import tarfile
from types import SimpleNamespace

import pytest
from commands import call
from PIL import Image
from refusals import refused

from silc_bench import task as contract
from silc_bench.datasets.own_data import name_of
from silc_bench.task import register
from silc_bench.tasks import selection
from silc_bench.tasks.classification.knn import Knn
from silc_bench.tasks.selection import all_tasks, select, words_of

TASKS = all_tasks()
OF_SHAPES = [name for name in TASKS if name.startswith("shapes/")]


@pytest.mark.parametrize("name", OF_SHAPES)
def test_loading_is_repeatable_and_limited_and_what_is_learned_from_is_not_scored(name):
    task = TASKS[name]
    whole, again, part = task.load(None, None), task.load(None, None), task.load(None, 10)
    assert whole["test"].split in ("test", "unseen")
    for role, dataset in whole.items():
        assert role == "test" or dataset.split == "train"
        assert dataset.fingerprint == again[role].fingerprint
        assert dataset.fingerprint != part[role].fingerprint
        # that pool keeps the shots of each class
        of_shots = role == "train" and task.group == "few-shot"
        assert len(part[role]) == (10 if not of_shots else 1399) < len(dataset)


@pytest.mark.parametrize(
    ("pattern", "is_meant"),
    [
        ("shapes/zeroshot", lambda dataset, family: (dataset, family) == ("shapes", "zeroshot")),
        ("zeroshot", lambda dataset, family: family.startswith("zeroshot")),
        ("segmentation", lambda dataset, family: family.startswith("segmentation_")),
        ("dense", lambda dataset, family: "dense" in TASKS[f"{dataset}/{family}"].requires),
        ("cifar100", lambda dataset, family: dataset == "cifar100"),
        ("*/knn", lambda dataset, family: family == "knn"),
        ("imagenet_*", lambda dataset, family: dataset.startswith("imagenet_")),
        ("*", lambda dataset, family: True),
    ],
)
def test_select(pattern, is_meant):
    meant = [name for name in TASKS if is_meant(*name.split("/"))]
    assert [task.name for task in select([pattern])] == meant
    assert select([pattern, pattern]) == select([pattern])


@pytest.mark.parametrize(
    "patterns",
    [["shapes/knn", "zeroshoot"], ["cifar1000/zeroshot"], ["Shapes"], ["imagenet/*"], []],
    ids=str,
)
def test_unknown_names_are_refused(patterns):
    with refused("--tasks"):
        select(patterns)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a/b, knn,wds:x/{a,b}/{0..3}.tar,", ["a/b", "knn", "wds:x/{a,b}/{0..3}.tar"]),
        ("seg:a,b/c, d.json#knn,knn", ["seg:a,b/c,d.json#knn", "knn"]),
        ("knn,seg:a", ["knn", "seg:a"]),
    ],
)
def test_words_are_separated_by_commas_outside_braces(text, words):
    assert words_of(text) == words


ODD_NAMES = (
    "my pets",
    "pets [x]",
    "pets#1",
    "pets#knn",
    "cats,dogs",
    "a,b,c",
    "p{1,2}",
    "p*",
    "x#",
)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_path_that_is_there_may_hold_what_separates_words(tmp_path, name):
    home = tmp_path / name
    for file in ("pets/a/0.png", "pets/b/0.png", "pics/0.png", "masks/0.png"):
        (home / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(home / file)
    with tarfile.open(home / "0.tar", "w") as tar:
        tar.add(home / "pics/0.png", "0.png")
    (home / "x.csv").write_text("file,caption\npics/0.png,one\n")
    (home / "c.json").write_text('["sky", "road"]')

    set_name = name_of(str(home))
    expected = {
        f"folder:{home}/pets": "pets/zeroshot",
        f"folder:{home}/pets#zeroshot": "pets/zeroshot",
        f"captions:{home}/x.csv": "x/retrieval",
        f"wds:{home}/0.tar": "0/retrieval",
        f"wds:{home}/{{0..0}}.tar#retrieval": f"{set_name}/retrieval",
        f"seg:{home}/pics,{home}/masks,{home}/c.json#correspondence": "pics/correspondence",
    }
    for word, task in expected.items():
        assert words_of(f"shapes/knn,{word},shapes/linear") == ["shapes/knn", word, "shapes/linear"]
        assert [chosen.name for chosen in select([word])] == [task]
    assert set_name != name_of(str(tmp_path)), "its own name, and not that of the folder above it"


@pytest.mark.parametrize("name", ["shapes/knn", "knn"], ids=["twice", "no dataset/family"])
def test_a_wrong_name_is_not_registered(name):
    with pytest.raises(AssertionError, match=name):
        register(Knn(name=name, sources={}))


@pytest.fixture
def installed(monkeypatch):
    """Installs packages with tasks, each of which does something when it is imported."""
    monkeypatch.setattr(contract, "_TASKS", dict(contract._TASKS))

    def install(**imports):
        entries = [
            SimpleNamespace(name=name, value=f"{name}.tasks", dist=None, load=load)
            for name, load in imports.items()
        ]
        monkeypatch.setattr(selection, "entry_points", lambda group: entries)
        selection._load_plugins.cache_clear()

    yield install
    selection._load_plugins.cache_clear()


def register_birds():
    register(Knn(name="birds/knn", sources={}))


def test_other_packages_register_through_an_entry_point(installed):
    installed(birds=register_birds)
    assert "birds/knn" in all_tasks()


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import no_such_module", "ModuleNotFoundError"),
        ("a b", "SyntaxError"),
        ("register(Knn(name='shapes/knn', sources={}))", "registered twice"),
        ("raise SystemExit(3)", "SystemExit"),
        ("raise ValueError('[bold]two\\nlines')", "[bold]two lines"),
    ],
)
def test_a_package_that_cannot_be_imported_breaks_nothing_else(installed, capfd, code, reason):
    installed(fish=lambda: exec(code, globals()), birds=register_birds)
    result = call("tasks --json")
    assert result.exit_code == 0, result.output
    assert {"birds/knn", "shapes/knn"} <= {task["name"] for task in json.loads(result.stdout)}
    said = result.stderr + capfd.readouterr().err
    assert said.count("fish.tasks") == said.count("\n") == 1
    assert reason in said
