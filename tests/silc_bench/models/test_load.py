"""Our own checkpoints as models: loaded, named, refused; and a family of models of your own."""

from __future__ import annotations

import copy
import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from images_and_runs import check_cut_texts
from PIL import Image
from refusals import refused

from silc_bench.models.interface import (
    DenseModel,
    ImageTextModel,
    Training,
    cut_texts,
    lacking_of,
    libraries_of,
    training_of,
)
from silc_bench.models.load import load_model
from silc_bench.models.preprocessing import ImagePipeline
from silc_bench.models.weights.revision import revision_of
from silc_bench.results.schema import NAME
from silc_bench.trainer.checkpoints import file as checkpoint
from silc_bench.trainer.config.config import (
    Config,
    DistillationConfig,
    TextConfig,
    ViewsConfig,
    VisionConfig,
    to_dict,
)
from silc_bench.trainer.silc.tokenizers import Tokenizer
from silc_bench.trainer.train import TrainState

pytestmark = pytest.mark.broad

TOWER = {"width": 32, "depth": 1, "num_heads": 2, "mlp_dim": 48}
CONFIG = Config(
    preset="tiny",
    vision=VisionConfig(image_size=16, patch_size=8, **TOWER),
    text=TextConfig(vocab_size=270, context_length=12, **TOWER),
    views=ViewsConfig(global_size=16, local_size=8, num_local=2),
    distillation=DistillationConfig(num_prototypes=64, hidden_dim=32, bottleneck_dim=16),
    batch_size=8,
    samples=8,
)
CAPTIONS = ["a red ring", "a blue star on a green ground"]
COLORS = ("red", "blue", "green")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run whose teacher lags behind its student."""
    state = TrainState.create(CONFIG, Tokenizer.train(CAPTIONS, 270, 12), torch.device("cpu"))
    with torch.no_grad():
        for parameter in state.teacher.parameters():
            parameter.mul_(0.9)
    folder = tmp_path_factory.mktemp("runs") / "a"
    checkpoint.save(folder, state.payload())
    return folder


@pytest.fixture(scope="module")
def model(run):
    return load_model(str(run))


@pytest.fixture(scope="module")
def payload(run):
    return checkpoint.load(checkpoint.find(run))


@pytest.fixture
def changed(payload, tmp_path):
    """Writes the run's checkpoint with fields replaced; its path."""

    def write(name: str = "x.pt", **fields) -> str:
        torch.save(checkpoint.with_checksums({**payload, **fields}), tmp_path / name)
        return str(tmp_path / name)

    return write


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


# ---- the protocol ----


def test_it_keeps_the_protocol(payload, model):
    assert isinstance(model, ImageTextModel)
    assert isinstance(model, DenseModel)
    sizes = (model.embed_dim, model.image_size, model.patch_size)
    assert sizes == (32, 16, 8)
    assert model.logit_bias == pytest.approx(-10.0)
    json.dumps([model.image_protocol, model.text_protocol], allow_nan=False)
    student = payload["student"].items()
    towers = [value for name, value in student if name.startswith(("vision.", "text."))]
    assert model.num_params == sum(value.numel() for value in towers)


def test_a_model_of_another_package_need_not_explain_itself():
    assert libraries_of(object()) == ()
    assert lacking_of(object()) == {}
    assert training_of(object()) is None
    assert cut_texts(object(), ["a text"]) is None


def test_texts_that_are_cut_are_counted(model):
    check_cut_texts(model)


def test_embeddings_are_fp32_under_autocast_too_and_not_normalised(model):
    images = torch.stack([model.preprocess(Image.new("RGB", (20, 30), name)) for name in COLORS])
    with torch.autocast("cpu", torch.bfloat16):
        pooled = model.encode_image(images)
        outputs = [pooled, model.encode_text(model.tokenize(CAPTIONS))]
        outputs += model.encode_dense(images, ["maskclip", "tokens"]).values()
    shapes = [tuple(output.shape) for output in outputs]
    assert shapes == [(3, 32), (2, 32), (3, 2, 2, 32), (3, 2, 2, 32)]
    assert all(output.dtype == torch.float32 for output in outputs)
    assert all(output.isfinite().all() for output in outputs)
    assert abs(pooled.norm(dim=-1) - 1).min() > 1e-3


def test_loading_is_repeatable_and_draws_no_random_numbers(run, model):
    before = torch.random.get_rng_state()
    again = load_model(str(run))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert again.revision == model.revision
    assert not again.vision.training
    assert not again.text.training


# ---- names ----


def test_a_run_is_called_as_its_folder_and_knows_what_it_was_trained_as(run, monkeypatch):
    own = Training("tiny", "silc", "student", "shapes", seed=0, step=0)
    monkeypatch.chdir(run)
    for spec in (str(run), f"{run}/", ".", "checkpoints", "../a", str(checkpoint.find(run))):
        model = load_model(spec)
        assert (model.name, replace(model.training, recipe=own.recipe)) == ("a:student", own), spec

    # With the same preset, objective and seed: only the folder tells one run from another.
    copied = run.with_name("b")
    shutil.copytree(run, copied)
    assert load_model(f"{copied}:teacher").name == "b:teacher"


def test_a_checkpoint_that_lies_alone_is_called_as_its_file(changed):
    assert load_model(changed("lonely.pt")).name == "lonely:student"


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("ours", "ours"),
        ("a b@c:d", "a b@c:d"),
        ("猫", "猫"),
        ("a\nb\x1b[1m\udcff", "a%0Ab%1B[1m%ED%B3%BF"),
    ],
)
def test_another_name_is_taken_as_it_is_where_a_record_can_hold_it(run, given, shown):
    assert load_model(str(run), name=given).name == shown
    assert re.fullmatch(NAME["pattern"], shown)


def test_a_folder_of_any_name_gives_a_name_that_a_record_can_hold(run, tmp_path):
    folder = tmp_path / "line\nbreak"
    shutil.copytree(run, folder)
    assert load_model(str(folder)).name == "line%0Abreak:student"


def test_student_is_the_default_and_teacher_another_model(run, model):
    file = str(checkpoint.find(run))
    for spec in (f"{run}:student", file, f"{file}:student", str(run / "checkpoints")):
        student = load_model(spec)
        assert (student.name, student.revision) == (model.name, model.revision)

    teacher = load_model(f"{run}:teacher")
    again = load_model(f"{file}:teacher")
    assert teacher.name == again.name == "a:teacher"
    assert teacher.revision == again.revision != model.revision


@pytest.mark.parametrize("name", ["with:colon", "a:student", "x:y/z"])
def test_a_colon_may_be_part_of_the_path(run, model, tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(run)
    (tmp_path / "with").touch()  # the path as it is written comes first
    assert load_model(str(path)).revision == model.revision
    assert load_model(f"{path}:teacher").name == "a:teacher", "a link is no name of its own"


# ---- the revision ----


def test_revision_depends_on_every_weight_of_the_towers_and_nothing_else(payload, model, changed):
    saved = payload["student"]
    known = {model.revision}
    for name, value in saved.items():
        revision = load_model(changed(student={**saved, name: value + 0.5})).revision
        is_tower = name.startswith(("vision.", "text."))
        assert (revision not in known) == is_tower, name
        known.add(revision)


def test_revision_is_not_about_names_optimiser_step_or_tokenizer(model, changed):
    renamed = json.dumps(to_dict(replace(CONFIG, preset="another", seed=7, samples=800)))
    other = load_model(changed(config=renamed, optimizer={}, step=99, samples_seen=1, position=5))
    expected = Training("another", "silc", "student", "shapes", seed=7, step=99)
    assert replace(other.training, recipe=expected.recipe) == expected
    assert other.revision == model.revision


def test_revision_is_not_about_dtype_or_device(payload, changed):
    half = {name: value.bfloat16() for name, value in payload["student"].items()}
    rounded = load_model(changed(student=half))
    model = load_model(changed(student={name: value.float() for name, value in half.items()}))
    assert rounded.revision == model.revision
    weights = [*rounded.vision.parameters(), *rounded.text.parameters()]
    assert {weight.dtype for weight in weights} == {torch.float32}

    towers = {"vision": model.vision, "text": model.text}
    heads = {"vision_heads": 2, "text_heads": 2}
    halved = {name: copy.deepcopy(tower).bfloat16() for name, tower in towers.items()}
    assert revision_of(halved, heads) == model.revision
    assert revision_of(towers) != model.revision, "what is no weight counts too"


def test_revision_tells_where_a_value_stands():
    first, second = torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False)
    revision = revision_of({"vision": first, "text": second})
    assert revision == revision_of({"text": second, "vision": first}), (
        "the order of the modules is no difference"
    )
    assert revision != revision_of({"vision": second, "text": first})
    flat = torch.nn.Linear(4, 1, bias=False)
    flat.weight.data = first.weight.data.reshape(1, 4)
    assert revision_of({"x": flat}) != revision_of({"x": first}), "same bytes, other shape"


# ---- preprocessing ----


def test_images_are_squashed_to_pixels_from_minus_one_to_one(model):
    assert model.pipeline == ImagePipeline(16, (0.5,) * 3, (0.5,) * 3)
    assert (model.preprocess(Image.new("L", (5, 9), 0)) == -1).all()
    assert (model.preprocess(Image.new("RGB", (5, 9), "white")) == 1).all()


# ---- texts ----


def test_the_tokenizer_is_the_checkpoints_own(payload, model, changed):
    own = Tokenizer.from_json(payload["tokenizer"])
    texts = ["A Red  ring!", "", "<eos>", "ß 你好 🙂", "word " * 100]
    assert torch.equal(model.tokenize(texts), own(texts))
    assert model.text_protocol["length"] == 12
    other = Tokenizer.train(["other captions teach other merges"] * 3, 270, 12)
    bound = load_model(changed(tokenizer=other.to_json()))
    assert not torch.equal(bound.tokenize(CAPTIONS), own(CAPTIONS))
    assert bound.text_protocol["tokenizer"] != model.text_protocol["tokenizer"]
    assert bound.revision == model.revision


# ---- what is refused ----


def with_field(section: str, name: str, value: int) -> dict[str, str]:
    config = to_dict(CONFIG)
    config[section][name] = value
    return {"config": json.dumps(config)}


def tokenizer(vocab_size: int, length: int) -> dict[str, str]:
    return {"tokenizer": Tokenizer.train(CAPTIONS, vocab_size, length).to_json()}


# a part of the checkpoint, and what the sentence says of it
DAMAGED = {
    "config too deep": ({"config": "[" * 100_000}, "config"),
    "config no text": ({"config": 3}, "config"),
    "config of another version": ({"config": "{}"}, "config"),
    "config that cannot be": (with_field("vision", "patch_size", 7), "vision.patch_size"),
    "another width": (with_field("vision", "width", 64), "configuration"),
    "a width nobody has": (with_field("vision", "width", 4 * 10**8), "configuration"),
    "no weights": ({"student": {}}, "Missing key"),
    "weights that are none": ({"student": None}, "configuration"),
    "no teacher": ({"teacher": {}}, "Missing key"),
    "no tokenizer": ({"tokenizer": "{}"}, "tokenizer"),
    "tokenizer no text": ({"tokenizer": 3}, "tokenizer"),
    "tokenizer of another length": (tokenizer(270, 13), "13 tokens"),
    "tokenizer with more words": (tokenizer(275, 12), "275"),
    "another format": ({"format": "silc-bench-checkpoint/99"}, checkpoint.FORMAT),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_parts_that_do_not_fit_are_named_with_the_file(changed, damage):
    fields, part = DAMAGED[damage]
    path = changed(**fields)
    with refused(about=path, is_kept=False) as caught:
        load_model(path)
    assert part in str(caught.value)


@pytest.mark.parametrize(("part", "value"), [("student", float("nan")), ("teacher", float("inf"))])
def test_a_diverged_run_is_named_with_its_tensor_but_can_be_resumed(payload, changed, part, value):
    state = dict(payload[part])
    name = next(name for name in state if name.endswith("norm.weight"))
    state[name] = torch.full_like(state[name], value)
    path = changed(**{part: state})
    with refused(about=path) as caught:
        load_model(path)
    assert f"{part}.{name}" in caught.value.problem
    assert not checkpoint.load(Path(path))[part][name].isfinite().all()


def test_a_run_of_sparse_weights_is_refused(payload, changed):
    state = payload["student"]
    name = next(name for name in state if name.endswith("fc1.weight"))
    path = changed(student=state | {name: state[name].to_sparse()})
    with refused(about=path):
        load_model(path)


@pytest.mark.parametrize(
    ("spec", "arch", "about", "fix"),
    [
        ("/nope:teacher", None, "/nope:teacher", "open_clip:ARCH/TAG"),
        (":teacher", None, ":teacher", "open_clip:ARCH/TAG"),
        ("", None, "checkpoint", "open_clip:ARCH/TAG"),
        ("openclip:ViT-B-32", None, "openclip:ViT-B-32", "did you mean open_clip?"),
        ("timm:", None, "timm:", "write timm:NAME, NAME/PATH or NAME/random"),
        ("{run}:techer", None, "", "teacher"),
        ("{run}:", None, "", "teacher"),
        ("{run}:teacher", "silc:b16", "{run}:teacher", "leave out :teacher"),
        ("timm:resnet18", "timm:resnet18", "timm:resnet18", "leave out --arch timm:resnet18"),
    ],
)
def test_names_that_name_nothing(run, spec, arch, about, fix):
    with refused(about=about.format(run=run) or run) as caught:
        load_model(spec.format(run=run), arch)
    assert fix in caught.value.fix


@pytest.mark.parametrize(
    ("kind", "package"), [("open_clip", "open_clip"), ("timm", "timm"), ("hf", "transformers")]
)
def test_without_a_library_its_extra_is_named(monkeypatch, kind, package):
    monkeypatch.setitem(sys.modules, package, None)
    with refused(about=kind) as caught:
        load_model(f"{kind}:anything")
    assert caught.value.fix == f"pip install 'silc-bench[{kind}]'"


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("/home/me/data/cifar100/train/*.tar", "cifar100/train/*.tar"),
        ("2 * /a/b/c/d.tar | 1 * own.jsonl", "2 * b/c/d.tar | 1 * own.jsonl"),
        ("https://host/a/b/c/d.tar", "https://host/a/b/c/d.tar"),
        ("places:num_pairs=1024", "places:num_pairs=1024"),
    ],
)
def test_records_name_data_without_the_places_of_one_machine(changed, source, named):
    """And seeds of one method are one method wherever their data lay."""
    elsewhere = [replace(CONFIG, data=replace(CONFIG.data, source=s)) for s in (source, "shapes")]
    here, there = (load_model(changed(config=json.dumps(to_dict(one)))) for one in elsewhere)
    assert here.training.data == named
    assert here.training.recipe == there.training.recipe
