"""From Python the same as from the command line: records, tables, sentences, refusals."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from commands import TINY, succeed, train_tiny
from PIL import Image
from refusals import refused
from torch import nn
from torchvision import transforms as tv

import silc_bench
from silc_bench.datasets.public.find import NotFoundError
from silc_bench.errors import UserError
from silc_bench.results.folders import read

pytestmark = pytest.mark.broad

HOW = {"limit": 20, "device": "cpu"}
TASKS = "shapes/zeroshot,shapes/knn"
TIMES = ("seconds", "created", "checksums")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "own"
    train_tiny(folder, "--samples 24")
    return folder


@pytest.fixture
def module():
    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            self.color = nn.Linear(3, 5)

        def encode_image(self, images):
            return self.color(images.mean(dim=(2, 3)))

    torch.manual_seed(0)
    return Module()


def wrapped(module, name="mine"):
    steps = [tv.Resize((16, 16)), tv.ToTensor(), tv.Normalize((0.5,) * 3, (0.5,) * 3)]
    return silc_bench.wrap(module, tv.Compose(steps), name=name)


def files_in(folder):
    """{place of a record: its fields, without the times}."""
    found = {}
    for path in folder.rglob("*.json"):
        fields = json.loads(path.read_text(encoding="utf-8"))
        found[str(path.relative_to(folder))] = {
            name: value for name, value in fields.items() if name not in TIMES
        }
    return found


# ---- what is offered ----


def test_what_is_offered_is_there_and_typed():
    stub = Path(silc_bench.__file__).with_suffix(".pyi").read_text(encoding="utf-8")
    typed = re.findall(r"^from (\S+) import (\w+) as \2$", stub, flags=re.M)
    assert {name: module for module, name in typed} == silc_bench.OFFERED
    for name, place in silc_bench.OFFERED.items():
        assert getattr(silc_bench, name) is getattr(importlib.import_module(place), name)
        assert getattr(silc_bench, name).__doc__
    assert set(silc_bench.OFFERED) <= set(dir(silc_bench))
    with pytest.raises(AttributeError):
        silc_bench.evaluat  # noqa: B018


def test_importing_it_imports_nothing_large():
    program = (
        "import sys, silc_bench; print(*{'numpy', 'torch', 'pandas', 'rich'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("\n", "")


# ---- evaluate ----


def test_records_are_those_of_the_command(run, tmp_path):
    how = f"--limit 20 --device cpu --results {tmp_path}/command --cache off"
    succeed(f"eval --ckpt {run} --ckpt {run}:teacher --tasks {TASKS} {how}")
    specs = [run, f"{run}:teacher"]
    results = silc_bench.evaluate(specs, TASKS, results=tmp_path / "python", cache="off", **HOW)
    assert files_in(tmp_path / "command") == files_in(tmp_path / "python")
    assert [record.task.name for record in results] == ["shapes/knn", "shapes/zeroshot"] * 2
    assert list(results) == [*results.records] == [*results[:3], results[3]]
    (folder,) = {results.folder}
    assert {record.key for record in read([folder]).records} == {r.key for r in results}


def test_results_are_a_frame_and_a_few_lines(run, tmp_path):
    results = silc_bench.evaluate(run, ["shapes/knn"], results=tmp_path, **HOW)
    pd.testing.assert_frame_equal(results.to_frame(), silc_bench.load_results(tmp_path))
    first, line = repr(results).splitlines()
    assert first == f"<Results: 1 record in {tmp_path}"
    assert re.fullmatch(
        r"  own:student@\w{8}  shapes/knn  acc1_20nn \d+\.\d ± \d+\.\d %  n 20, limited to 20>",
        line,
    )


def test_what_waits_for_data_and_what_failed_is_said(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    results = silc_bench.evaluate([run, "empty"], "knn", **HOW)
    assert results.left_out["cifar100/knn"]
    assert list(results.failures) == ["empty"]
    said = capsys.readouterr().err
    assert "left out as they wait for data" in said
    assert "1 of 2 checkpoints failed: empty: " in said
    assert results.folder == Path("results")
    text = repr(results)
    assert f"left out: {len(results.left_out)} tasks" in text
    assert "failed: empty: " in text


def test_the_data_root_may_stand_in_the_environment(run, tmp_path, monkeypatch):
    monkeypatch.setenv("SILC_BENCH_DATA_ROOT", str(tmp_path / "none"))
    with refused(about="--data-root"):
        silc_bench.evaluate(run, "cifar100/knn", **HOW)
    with refused(about="cifar100", kind=NotFoundError):
        silc_bench.evaluate(run, "cifar100/knn", data_root=tmp_path, results=tmp_path, **HOW)


def test_a_module_in_memory_is_measured_and_kept_nowhere(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SILC_BENCH_CACHE", str(tmp_path / "cache"))
    results = silc_bench.evaluate(wrapped(module), "shapes/knn", results=None, **HOW)
    assert (len(results), results.folder) == (1, None)
    assert (results[0].model.name, results[0].model.source) == ("mine", "mine in memory")
    assert not list(tmp_path.iterdir()), "its code may change, so no embedding is kept"


def test_a_module_that_is_trained_on_is_another_row(module, tmp_path):
    model = wrapped(module)
    for _ in range(2):
        silc_bench.evaluate(model, "shapes/knn", results=tmp_path, **HOW)
        module.color.weight.data += 1
    first, second = read([tmp_path]).records
    assert first.model.name == second.model.name
    assert first.model.revision != second.model.revision


def test_what_a_module_lacks_is_a_reason(module, tmp_path):
    with refused(about="shapes/zeroshot"):
        silc_bench.evaluate(wrapped(module), "shapes/zeroshot", results=tmp_path, **HOW)


@pytest.mark.parametrize(
    ("models", "more", "about"),
    [
        (nn.Linear(2, 2), {}, "evaluate"),
        ([], {}, "evaluate"),
        (["a", "b"], {"name": "x"}, "checkpoint a"),
        ("none", {}, "none"),
        ("hf:org/name", {"protocol": "openai81"}, "--protocol"),
        ("hf:org/name", {"existing": "skpi"}, "--existing"),
        ("hf:org/name", {"device": "gpu"}, "--device"),
    ],
)
def test_a_mistake_is_the_same_error(models, more, about, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with refused(about=about):
        silc_bench.evaluate(models, "shapes/knn", **more)
    assert not list(tmp_path.iterdir())


def test_one_name_is_for_one_spec(run, module, tmp_path):
    for models in ([run, run], wrapped(module)):
        with refused(about="evaluate(name=...)"):
            silc_bench.evaluate(models, "shapes/knn", name="ours", results=tmp_path)
    results = silc_bench.evaluate(run, "shapes/knn", name="ours", results=tmp_path, **HOW)
    assert results[0].model.name == "ours"


# ---- the others ----


def test_models_are_compared_and_tabulated_by_what_was_evaluated(run, module, tmp_path):
    model = wrapped(module)
    silc_bench.evaluate([run, model], "shapes/knn", results=tmp_path, **HOW)
    comparison = silc_bench.compare(run, model, results=tmp_path)
    assert (comparison.baseline, comparison.models) == ("own:student", ("mine",))
    frame = comparison.to_frame()
    assert {"task", "metric", "difference", "stderr", "p_holm", "verdict"} <= set(frame)
    assert repr(comparison).startswith("<Comparison of 'mine' with 'own:student': main metrics ")
    board = silc_bench.leaderboard(tmp_path, out=tmp_path / "board", formats=["csv"])
    assert set(board.scores.model) >= {"mine", "own:student"}
    assert [path.name for path in (tmp_path / "board").iterdir()] == ["leaderboard.csv"]
    assert repr(board).startswith("<Board: ")
    with refused(about="formats"):
        silc_bench.leaderboard(tmp_path, formats=["csv"])


def test_a_run_is_trained_and_measured(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("silc_bench.trainer.loop.TOKENIZER_CAPTIONS", 50)
    changes = dict(field.split("=") for field in TINY.split())
    run = silc_bench.train(samples=8, changes=changes, device="cpu")
    assert run == Path("runs/shapes_tiny-silc")
    model = silc_bench.load_model(run)
    assert (model.training.step, model.name) == (1, "shapes_tiny-silc:student")
    image = Image.new("RGB", (30, 20))
    assert model.encode_image(model.preprocess(image)[None]).shape == (1, model.embed_dim)
    with pytest.raises(UserError):
        silc_bench.train(samples=8, changes=changes, device="cpu")
    assert silc_bench.train(samples=8, changes=changes, device="cpu", resume="auto") == run
    with refused(about="resume"):
        silc_bench.train(resume="atuo", out=tmp_path / "x")
    with refused(about="optim.lrr"):
        silc_bench.train(changes={"optim.lrr": 1}, out=tmp_path / "x")
