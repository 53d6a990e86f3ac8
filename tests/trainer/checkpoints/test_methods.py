"""A recipe says the method: what ``--init`` and ``--tokenizer`` brought, not where that lay."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import hf_folders
import pytest
import safetensors.torch
from made import put
from random_runs import CAPTIONS, random_state
from refusals import refused
from runs import CPU, run
from test_init import fitted

from silc_bench.models.load import load_model
from silc_bench.trainer.checkpoints import file as checkpoint
from silc_bench.trainer.checkpoints import model as native
from silc_bench.trainer.checkpoints.export import export
from silc_bench.trainer.checkpoints.init import read_start
from silc_bench.trainer.config.config import changed
from silc_bench.trainer.config.identity import recipe_of
from silc_bench.trainer.data.stream import open_source
from silc_bench.trainer.monitor.report.measured import measured
from silc_bench.trainer.monitor.report.run import read_run
from silc_bench.trainer.silc.tokenizers import Tokenizer, of_file
from silc_bench.trainer.train import TrainState

pytestmark = pytest.mark.broad


def begun(config, folder):
    """The checkpoint of a run before its first step."""
    start = read_start(config) if config.init else None
    if start is not None:
        config, tokenizer = changed(config, start.fields), start.tokenizer
    elif config.tokenizer:
        tokenizer = of_file(Path(config.tokenizer), config.text)
    else:
        tokenizer = Tokenizer.train(CAPTIONS, 300, config.text.context_length)
    state = TrainState.create(config, tokenizer, CPU, start)
    return checkpoint.save(folder, state.payload())


def recipe_in(path):
    return native.load(Path(path)).training.recipe


def first_phase(config, folder, step=2):
    state = random_state(config)
    state.step = step
    checkpoint.save(folder, state.payload())


def write_tokenizer(path, captions=CAPTIONS):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(Tokenizer.train(captions, 300, 12).to_json())


@pytest.fixture(scope="module")
def place(tiny, tmp_path_factory):
    """Runs, tokenizers and models of transformers, some of them twice, to start from."""
    place = tmp_path_factory.mktemp("sources")
    first_phase(tiny(), place / "first-0")
    first_phase(tiny(), place / "first-0", step=4)
    for seed in (1, 2):
        data = {"source": f"/disk{seed}/scenes/of/shapes", "seed": seed}
        first_phase(tiny(seed=seed, data=data), place / f"disk{seed}" / "first")
    first_phase(tiny(optim={"lr": 0.5}), place / "faster")
    first_phase(tiny("contrastive"), place / "twin")
    export(native.load(place / "first-0"), "safetensors", place / "first.safetensors")
    shutil.copy(place / "first.safetensors", place / "copy.safetensors")

    for name in ("here/ours.json", "there/copy.json"):
        write_tokenizer(place / name)
    write_tokenizer(place / "other" / "ours.json", ["other words", "of other captions"])

    hf_folders.write("siglip", place / "hf")
    for copy in ("hf-copy", "hf-tuned", "hf-scaled", "hf-spelt"):
        shutil.copytree(place / "hf", place / copy)
    for copy, name in (("hf-tuned", "text_model.head.bias"), ("hf-scaled", "logit_scale")):
        file = place / copy / "model.safetensors"
        weights = safetensors.torch.load_file(file)
        safetensors.torch.save_file({**weights, name: weights[name] + 0.5}, file, {"format": "pt"})
    spell_otherwise(place / "hf-spelt" / "tokenizer.json")
    return place


def spell_otherwise(file):
    """Two ids of the tokenizer change places."""
    content = json.loads(file.read_text())
    pieces = content["model"]["vocab"]
    pieces[-2:] = pieces[:-3:-1]
    file.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def recipe(place, tiny, tmp_path_factory):
    """The recipe of a run, by the words of its options; each is made once."""
    known = {}

    def recipe(words):
        if words not in known:
            objective, *rest = words.split()
            option, name, seed = (*rest, *("", "", "0")[len(rest) :])
            config = tiny(objective, seed=int(seed), data={"seed": int(seed)})
            if name.startswith("hf"):
                config = fitted(config, f"hf:{place / name}")
            elif name:
                config = replace(config, **{option: str(place / name)})
            known[words] = recipe_in(begun(config, tmp_path_factory.mktemp("run") / "run"))
        return known[words]

    return recipe


FIRST = "silc init first-0"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("silc tokenizer here/ours.json", "silc tokenizer there/copy.json"),
        ("silc tokenizer here/ours.json 0", "silc tokenizer there/copy.json 1"),
        ("silc init disk1/first 1", "silc init disk2/first 2"),
        ("silc init disk1/first 1", "silc init disk1/first 2"),
        ("silc init first.safetensors", "silc init copy.safetensors"),
        # without self-distillation there is no head to take
        ("contrastive init first-0", "contrastive init first.safetensors"),
        (FIRST, "silc init first-0:student"),
        (FIRST, "silc init first-0/checkpoints/step_00000004.pt"),
        ("silc init hf", "silc init hf-copy"),
    ],
)
def test_what_is_the_same_elsewhere_is_the_same_method(recipe, one, other):
    assert recipe(one) == recipe(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("silc", "silc tokenizer here/ours.json"),
        ("silc tokenizer here/ours.json", "silc tokenizer other/ours.json"),
        ("silc", FIRST),
        (FIRST, "silc init first-0:teacher"),
        (FIRST, "silc init first-0/checkpoints/step_00000002.pt"),
        (FIRST, "silc init first.safetensors"),
        (FIRST, "silc init faster"),
        (FIRST, "silc init twin"),
        (FIRST, "silc init disk1/first"),  # of other data
        (FIRST, "contrastive init first-0"),
        ("silc init hf", "silc init hf-tuned"),
        ("silc init hf", "silc init hf-scaled"),
        ("silc init hf", "silc init hf-spelt"),
    ],
)
def test_what_differs_is_another_method(recipe, one, other):
    assert recipe(one) != recipe(other)


@pytest.mark.parametrize("option", ["tokenizer", "init"])
def test_a_path_whose_content_changes_is_another_method(option, tiny, tmp_path):
    def put_there(number):
        if option == "tokenizer":
            write_tokenizer(tmp_path / "there.json", [f"words of the {number}th kind"])
        else:
            first_phase(tiny(optim={"lr": number / 100}), tmp_path / "there.json")

    recipes = []
    for number in (1, 2, 1):
        put_there(number)
        config = tiny(**{option: str(tmp_path / "there.json")})
        recipes.append(recipe_in(begun(config, tmp_path / f"run{len(recipes)}")))
    assert recipes[0] == recipes[2] != recipes[1]


# ---- the note, from the start to an export ----


@pytest.mark.parametrize("words", ["init first-0", "tokenizer here/ours.json"])
def test_a_run_stays_its_method_without_what_it_began_from(words, recipe, place, tiny, tmp_path):
    """After --resume, measured and exported; `report` knows its records."""
    option, name = words.split()
    source = tmp_path / Path(name).name
    (shutil.copytree if option == "init" else shutil.copy)(place / name, source)
    config, folder = tiny(**{option: str(source), "checkpoint_every": 2}), tmp_path / "run"
    run(config, folder)
    shutil.rmtree(source) if source.is_dir() else source.unlink()
    checkpoint.path_of(folder, 4).unlink()
    run(config, folder, resume=True)
    found = load_model(str(folder))
    assert found.training.recipe == recipe(f"silc {words}") != recipe_of(config)
    export(found, "safetensors", tmp_path / "x.safetensors")
    assert load_model(str(tmp_path / "x.safetensors")).training == found.training

    put(tmp_path / "results", "run:student", 0.5, training=found.training)
    for known_by in ("history.jsonl", "notes of the checkpoints"):
        assert measured([read_run(folder, "run")], [tmp_path / "results"]).curves != [{}], known_by
        (folder / "history.jsonl").unlink(missing_ok=True)


@pytest.mark.parametrize("words", ["init first-0", "tokenizer here/ours.json"])
def test_a_run_of_an_earlier_version_keeps_the_recipe_of_its_records(words, place, tiny, tmp_path):
    """Resumed, too: its checkpoints say nothing of what it began from, and never will."""
    option, name = words.split()
    config, folder = tiny(**{option: str(place / name)}), tmp_path / "run"
    payload = checkpoint.load(begun(config, tmp_path / "new"))
    del payload["brought"], payload["format"]
    identity = json.dumps(open_source(config.data, config.canvas).identity())
    checkpoint.save(folder, {**payload, "data": identity})
    assert recipe_in(folder) == recipe_of(config)
    run(config, folder, resume=True)
    assert recipe_in(folder) == recipe_of(config)


@pytest.mark.parametrize("note", ["{", "[]", '{"seed": "1"}', '{"init": 1}', None])
def test_a_note_that_is_none_is_refused(note, tiny, tmp_path):
    payload = checkpoint.load(begun(tiny(), tmp_path / "run"))
    del payload["format"]
    path = checkpoint.save(tmp_path / "odd", payload)
    with refused(about=f"{path}, brought"):
        native.from_payload(path, {**payload, "brought": note}, None)


def test_another_seed_than_the_first_phases_is_said(place, tiny):
    """Records hold one seed, so what it leaves out is said where it is chosen."""
    config = tiny(init=str(place / "disk1" / "first"))
    words = "its seed is 1 and this run's 0"
    assert words in " ".join(read_start(config).said)
    assert "its seed is" not in " ".join(read_start(replace(config, seed=1)).said)
