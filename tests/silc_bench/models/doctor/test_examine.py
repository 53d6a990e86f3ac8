"""Healthy models pass every check; models spoilt in one way are named by the check for it.

Tables are what they claim.
"""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import copy
import itertools
import json
import math
import types
from dataclasses import replace

import pytest
import torch
from torchvision import transforms
from typer.testing import CliRunner

from silc_bench.cli import app as cli
from silc_bench.models.doctor import known, subject
from silc_bench.models.doctor.examine import KNOWN, examine
from silc_bench.models.doctor.subject import FAILED, NOT_APPLICABLE, OK, Subject
from silc_bench.models.load import load_model
from silc_bench.trainer.checkpoints import file as checkpoint
from silc_bench.trainer.config.config import (
    Config,
    DistillationConfig,
    TextConfig,
    ViewsConfig,
    VisionConfig,
)
from silc_bench.trainer.silc.tokenizers import Tokenizer
from silc_bench.trainer.train import TrainState

pytestmark = pytest.mark.broad

TOWER = {"width": 32, "depth": 1, "num_heads": 2, "mlp_dim": 48}
CONFIG = Config(
    preset="tiny",
    vision=VisionConfig(image_size=32, patch_size=8, **TOWER),
    text=TextConfig(vocab_size=300, context_length=24, **TOWER),
    views=ViewsConfig(global_size=16, local_size=8, num_local=2),
    distillation=DistillationConfig(num_prototypes=64, hidden_dim=32, bottleneck_dim=16),
    batch_size=8,
    samples=8,
)
EXACT = replace(
    CONFIG, vision=replace(CONFIG.vision, gelu="exact"), text=replace(CONFIG.text, gelu="exact")
)
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 2}
BASE = {"embed_dim": 24, "text_cfg": TEXT}
VIT = {"image_size": 32, "layers": 2, "width": 32, "head_width": 8, "patch_size": 8}
MEAN = {**VIT, "pool_type": "avg", "no_ln_pre": True, "final_ln_after_pool": True}
RESNET = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8}
ARCHS = {
    "doctor-vit": {**BASE, "vision_cfg": VIT, "quick_gelu": True},
    "doctor-mean": {**BASE, "vision_cfg": MEAN, "init_logit_bias": -10},
    "doctor-resnet": {**BASE, "vision_cfg": RESNET},
}


def draw(network):
    """Every weight a little off its start, as after training."""
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data.add_(noise, alpha=0.1 * (parameter.ndim > 0))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of a trained run, of one before its first step, and of one with the exact GELU."""
    folder = tmp_path_factory.mktemp("runs")
    tokenizer = Tokenizer.train([*subject.TEXTS, "a photo, of a cat"], 300, 24)
    state = TrainState.create(CONFIG, tokenizer, torch.device("cpu"))
    checkpoint.save(folder / "fresh", state.payload())
    draw(state.student)
    checkpoint.save(folder / "trained", state.payload())
    exact = TrainState.create(EXACT, tokenizer, torch.device("cpu"))
    checkpoint.save(folder / "exact", exact.payload())
    return folder


@pytest.fixture(scope="module")
def model(runs):
    return load_model(str(runs / "trained"))


@pytest.fixture(scope="module")
def open_clip_models(tmp_path_factory):
    open_clip = pytest.importorskip("open_clip")
    folder = tmp_path_factory.mktemp("open_clip")
    (folder / "archs").mkdir()
    for name, config in ARCHS.items():
        (folder / "archs" / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / "archs")
    models = {}
    for name in ARCHS:
        network = open_clip.create_model(name).eval()
        draw(network)
        torch.save(network.state_dict(), folder / f"{name}.pt")
        models[name] = load_model(f"open_clip:{name}/{folder / name}.pt")
    yield models
    open_clip.factory._MODEL_CONFIG_PATHS.remove(folder / "archs")
    for name in ARCHS:
        del open_clip.factory._MODEL_CONFIGS[name]


def spoilt(model, **changes):
    """The same model with some of its parts replaced."""
    twin = copy.copy(model)
    vars(twin).update(changes)
    return twin


def verdicts(examination):
    return {finding.check: finding.verdict for finding in examination.findings}


def failures(model):
    """The checks that fail; each names a cause and a fix."""
    failed = examine(model).failed
    assert all(finding.says and finding.cause and finding.fix for finding in failed)
    return {finding.check for finding in failed}


# ---- healthy models ----


def test_a_run_passes_everything(model):
    examination = examine(model, loading=1000.0)
    assert not examination.failed
    answers = verdicts(examination)
    assert [check for check, verdict in answers.items() if verdict == NOT_APPLICABLE] == [KNOWN]
    assert len(answers) == len(examination.findings) == 15
    assert examination.seconds > 1000, "loading is counted"
    facts = {
        "parameters": model.num_params,
        "pooling": subject.ATTENTION,
        "activation": "gelu_tanh",
        "text length": 24,
        "mean": [0.5, 0.5, 0.5],
    }
    assert examination.facts | facts == examination.facts
    assert examination.facts["pixels"].endswith("SigLIP squash 32")


def test_a_run_with_the_exact_gelu_says_so(runs):
    """As one that started from a SigLIP of open_clip has."""
    assert examine(load_model(str(runs / "exact"))).facts["activation"] == "gelu"


@pytest.mark.parametrize(
    ("arch", "pooling", "activation", "is_pooled", "has_bias"),
    [
        ("doctor-vit", subject.TOKEN, "quick_gelu", NOT_APPLICABLE, NOT_APPLICABLE),
        ("doctor-mean", subject.MEAN, "gelu", OK, OK),
        (
            "doctor-resnet",
            "attention over the positions and their mean (ResNet)",
            "relu, gelu",
            NOT_APPLICABLE,
            NOT_APPLICABLE,
        ),
    ],
)
def test_open_clip_passes_everything(
    open_clip_models, arch, pooling, activation, is_pooled, has_bias
):
    examination = examine(open_clip_models[arch])
    assert not examination.failed
    assert examination.facts["pooling"] == pooling
    assert examination.facts["activation"] == activation
    answers = verdicts(examination)
    assert answers["dense map pools to the embedding"] == is_pooled
    assert answers["logit bias"] == has_bias


def test_a_vision_model_passes_what_applies():
    pytest.importorskip("timm")
    examination = examine(load_model("timm:test_vit/random"))
    assert not examination.failed
    answers = verdicts(examination)
    assert answers["text tower"] == answers["weights"] == NOT_APPLICABLE
    assert "tokens" not in answers
    assert "text" in examination.facts


@pytest.mark.parametrize(
    ("seconds", "counts"), [((2.0, 0.2), (10, 32)), ((6.0, 1.0), (4, 10)), ((90.0, 90.0), (4, 4))]
)
def test_slow_models_are_looked_at_less_and_it_is_said(model, monkeypatch, seconds, counts):
    # seconds pass only while the slow model works
    clock = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr("silc_bench.models.doctor.subject.perf_counter", lambda: clock.now)
    seen = {"encode_image": 0, "encode_text": 0}

    def slow(name, each):
        def encode(inputs, *point):
            seen[name] += len(inputs)
            clock.now += each * len(inputs)
            return getattr(model, name)(inputs, *point)

        return encode

    encoders = {name: slow(name, each) for name, each in zip(seen, seconds, strict=True)}
    examination = examine(spoilt(model, **encoders))
    assert not examination.failed
    says = {finding.check: finding.says for finding in examination.findings}
    for kind, each, count in zip(("image", "text"), seconds, counts, strict=True):
        is_said = f"; {count} of 32, as one takes {each:.1f} s" in says[f"{kind} embeddings"]
        assert is_said == (count < 32)
    assert seen["encode_image"] <= counts[0] + 4, "one alone, again, its mean_patch, and one patch"
    assert seen["encode_text"] <= counts[1] + 9, "one alone, and short texts beside long ones"


# ---- spoilt models ----


def returns(method, change):
    """A method gives something else: ``change`` of what it gave, and of its arguments."""

    def spoil(model):
        def changed(*args):
            return change(getattr(model, method)(*args), *args)

        return spoilt(model, **{method: changed})

    return spoil


def has(name, change):
    """An attribute is something else."""
    return lambda model: spoilt(model, **{name: change(getattr(model, name))})


def encodes(change):
    """Image features are something else, at every feature point."""
    return returns("encode_image", lambda features, *args: change(features))


def prepares(**changes):
    return lambda model: spoilt(model, preprocess=replace(model.pipeline, **changes))


def drifting(model):
    """Each image is brightened by how many came before."""
    count = itertools.count()
    return spoilt(model, preprocess=lambda image: model.pipeline(image) + 1e-3 * next(count))


def counts_capitals(model):
    """As if no cleaning came first."""

    def tokenize(texts):
        capitals = [sum(letter.isupper() for letter in text) for text in texts]
        return model.tokenize(["x " * n + text for n, text in zip(capitals, texts, strict=True)])

    return spoilt(model, tokenize=tokenize)


def to_longest(tokens, texts):
    return tokens[:, : int((tokens != 0).sum(dim=1).max()) + 1]


def leaking(features, tokens):
    """Texts see their neighbours."""
    return features + 0.01 * features.norm(dim=1).mean() * (tokens != 0).float().mean()


def raising(features, tokens):
    raise IndexError("index out of range in self")


def with_nan(features):
    return torch.where(torch.arange(len(features))[:, None] == 3, torch.nan, features)


def doubled_joint(features, images, methods):
    return {name: rows * (1 if name == "tokens" else 2) for name, rows in features.items()}


def other_tokens(features, images, point="pooled"):
    return features * (2 if point == "mean_patch" else 1)


SHORT = "short text alone and beside long ones"
TEXTS = {SHORT, "text embeddings"}
DENSE = {"mean_patch and the dense map", "dense map pools to the embedding"}
ALONE = "image alone and in a batch"
SPOILT = {  # how: which checks fail
    "mask leak": (returns("encode_text", leaking), {SHORT}),
    "padded to the longest": (returns("tokenize", to_longest), TEXTS | {"tokens"}),
    "cleaning dropped": (counts_capitals, {"text cleaning"}),
    "unknown words": (
        returns("tokenize", lambda tokens, texts: torch.zeros_like(tokens)),
        {"tokens", "text embeddings"},
    ),
    "text tower fails": (returns("encode_text", raising), TEXTS),
    "no projection": (
        returns("encode_text", lambda features, tokens: features[:, :16]),
        {"text embeddings"},
    ),
    "scale twice": (has("logit_scale", math.exp), {"logit scale"}),
    "scale lost": (has("logit_scale", lambda scale: float("nan")), {"logit scale"}),
    "bias turned": (has("logit_bias", lambda bias: -bias), {"logit bias"}),
    "wrong mean": (prepares(mean=(0.48, 0.45, 0.40)), {"preprocessing"}),
    "no resize filter": (prepares(interpolation="bilinear"), {"preprocessing"}),
    "protocol by hand": (
        has("image_protocol", lambda protocol: {**protocol, "std": [1, 1, 1]}),
        {"preprocessing"},
    ),
    "depends on others": (drifting, {"preprocessing"}),
    "batch statistics": (
        encodes(lambda features: features + 0.1 * (features - features.mean(dim=0))),
        {ALONE},
    ),
    "dropout": (
        encodes(lambda features: features + 0.1 * torch.randn_like(features)),
        DENSE | {ALONE, "the same image twice"},
    ),
    "not a number": (encodes(with_nan), {"image embeddings"}),
    "collapsed": (encodes(torch.ones_like), DENSE | {"image embeddings"}),
    "normalised": (
        encodes(lambda features: features / features.norm(dim=-1, keepdim=True)),
        DENSE | {"image embeddings"},
    ),
    "vanishing": (encodes(lambda features: features * 1e-6), DENSE | {"image embeddings"}),
    "half precision": (
        lambda model: spoilt(model, spare=copy.deepcopy(model.text).half()),
        {"weights"},
    ),
    "dense head": (returns("encode_dense", doubled_joint), {"dense map pools to the embedding"}),
    "other tokens": (returns("encode_image", other_tokens), {"mean_patch and the dense map"}),
}


@pytest.mark.parametrize("how", SPOILT)
def test_what_is_spoilt_is_named(model, how):
    spoil, checks = SPOILT[how]
    assert failures(spoil(model)) == checks


@pytest.mark.parametrize(
    ("check", "name", "value", "verdict"),
    [
        ("text cleaning", "text_protocol", {"cleaning": "whitespace"}, OK),
        ("text cleaning", "text_protocol", {"cleaning": "lower, no ASCII punctuation"}, OK),
        ("text cleaning", "text_protocol", {"cleaning": "none"}, NOT_APPLICABLE),
        ("logit scale", "logit_scale", 1.0, FAILED),
        ("logit scale", "logit_scale", 2.3026, FAILED),
        ("logit scale", "logit_scale", 4.6052, FAILED),
        ("logit scale", "logit_scale", 8.0, OK),
        ("logit scale", "logit_scale", 117.3, OK),
    ],
)
def test_what_a_model_states_is_held_to_it(model, check, name, value, verdict):
    if isinstance(value, dict):
        value = getattr(model, name) | value
    assert verdicts(examine(spoilt(model, **{name: value})))[check] == verdict


def test_a_text_tower_without_its_tokenizer_is_a_fault(model):
    lacking = {"text": "put x beside it"}
    blind = spoilt(model, tokenize=None, encode_dense=None, lacking=lacking)
    examination = examine(blind)
    (finding,) = examination.failed
    assert (finding.check, finding.fix) == ("text tower", "put x beside it")
    assert verdicts(examination)["dense map pools to the embedding"] == NOT_APPLICABLE


def test_what_a_broken_model_raises_is_a_fault_and_no_traceback(model):
    examination = examine(spoilt(model, preprocess=lambda image: 1 / 0))
    assert examination.failed[0].check == "what was loaded"
    assert "ZeroDivisionError" in examination.failed[0].says
    assert examination.facts["name"] == model.name
    assert verdicts(examination)["tokens"] == verdicts(examination)["logit scale"] == OK

    blank = spoilt(model, image_protocol=None, name="open_clip:ViT-B-32/openai")
    assert failures(blank) == {"what was loaded", "preprocessing", KNOWN}


def test_wrong_preprocessing_under_a_known_name(open_clip_models):
    model = open_clip_models["doctor-vit"]
    pipeline = replace(model.pipeline, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    failed = examine(
        spoilt(
            model,
            pipeline=pipeline,
            preprocess=pipeline,
            image_protocol=pipeline.as_dict(),
            image_size=224,
            name="open_clip:ViT-B-32/openai",
            logit_scale=100.0,
            num_params=151277313,
        )
    ).failed
    assert [(finding.check, finding.says.split()[0]) for finding in failed] == [
        (KNOWN, "mean"),
        (KNOWN, "std"),
    ]


# ---- tables ----


@pytest.mark.parametrize(
    "entry", known.read_table("expected")["checkpoints"], ids=lambda entry: str(entry["names"][0])
)
def test_one_difference_is_one_finding(entry):
    expect = entry["expect"]
    (finding,) = known.compare(entry, expect)
    assert finding.verdict == OK
    assert entry["names"][0] in finding.says
    for key, value in expect.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        other = value * 2 + 1 if is_number else "other"
        (finding,) = known.compare(entry, {**expect, key: other})
        assert finding.verdict == FAILED
        assert finding.says.startswith(key.replace("_", " "))
        assert finding.cause
        assert finding.fix


def test_names_are_told_apart():
    names = [
        name for entry in known.read_table("expected")["checkpoints"] for name in entry["names"]
    ]
    assert len(names) == len(set(names)) > 100
    file = known.expectation("open_clip:ViT-B-32/ViT-B-32.pth")
    assert file == known.expectation("open_clip:ViT-B-32/openai") is not None
    dated = known.expectation("big_vision:webli_en_b16_224_63724782")
    assert dated["expect"]["parameters"] == 203155968
    assert known.expectation("hf:clip-vit-base-patch32-mine") is None


@pytest.mark.parametrize(
    ("name", "kind", "activation"),
    [
        ("hf:clip-vit-base-patch32", "CLIP", "quick_gelu"),
        ("hf:siglip-base-patch16-224", "Siglip", "gelu_tanh"),
    ],
)
def test_expectations_are_those_of_transformers(name, kind, activation):
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        network = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")())
    expect = known.expectation(name)["expect"]
    count = sum(parameter.numel() for parameter in network.parameters())
    assert 0 < count - expect["parameters"] <= known.TOLERANCE["parameters"]
    assert expect["image_size"] == network.config.vision_config.image_size
    assert expect["context_length"] == network.config.text_config.max_position_embeddings
    model = types.SimpleNamespace(network=network)
    assert expect["activation"] == activation == subject.activation_of(Subject(model))


def test_expectations_are_those_of_open_clip():
    open_clip = pytest.importorskip("open_clip")
    expect = known.expectation("open_clip:ViT-B-32/openai")["expect"]
    assert expect["mean"] == list(open_clip.OPENAI_DATASET_MEAN)
    assert expect["std"] == list(open_clip.OPENAI_DATASET_STD)
    assert known._num_params("ViT-B-32") == expect["parameters"]


BICUBIC = transforms.InterpolationMode.BICUBIC


@pytest.mark.parametrize(
    ("name", "steps", "colors"),
    [
        (
            "OpenAI CLIP 224",
            [transforms.Resize(224, BICUBIC), transforms.CenterCrop(224)],
            known.OPENAI,
        ),
        ("SigLIP squash 256", [transforms.Resize((256, 256), BICUBIC)], known.HALF),
    ],
)
def test_stored_pixels_are_torchvisions(name, steps, colors):
    """The transforms that the weights were published with, on images made RGB first."""
    last = transforms.ToTensor(), transforms.Normalize(*colors)
    transform = transforms.Compose([lambda image: image.convert("RGB"), *steps, *last])
    assert known.pipeline_named(subject.pixel_hash(transform)) == name


def test_stored_pixels_are_ours_and_differ():
    stored = known.read_table("pixels")["pipelines"]
    assert stored.keys() == known.PIPELINES.keys()
    assert len({entry["hash"] for entry in stored.values()}) == len(stored)
    for name, pipeline in known.PIPELINES.items():
        assert stored[name]["pipeline"] == pipeline.as_dict()
        if pipeline.size <= 256:
            assert stored[name]["hash"] == subject.pixel_hash(pipeline), name


def test_moved_pixels_of_a_known_pipeline_are_named(model, monkeypatch):
    stored = copy.deepcopy(known.read_table("pixels"))
    stored["pipelines"]["SigLIP squash 32"]["hash"] = "0" * 16
    tables = {"pixels": stored, "expected": {"checkpoints": []}}
    monkeypatch.setattr(known, "read_table", tables.get)
    assert failures(model) == {"preprocessing"}


def test_cards_and_scenes_differ():
    cards = subject.cards()
    assert {card.mode for card in cards.values()} == {"RGB", "L", "P", "RGBA"}
    assert cards["one pixel"].size == (1, 1)
    scenes = {scene.tobytes() for scene in subject.scenes()}
    assert len(scenes) == subject.NUM_SCENES == len(set(subject.TEXTS))


# ---- the command ----


def run(*words):
    return CliRunner().invoke(cli.app, ["doctor", *map(str, words)])


def test_command_passes(runs):
    done = run(runs / "trained")
    assert done.exit_code == 0, done.output
    assert "SigLIP squash 32" in done.output
    as_json = json.loads(run(runs / "trained", "--json").output)
    assert as_json["passed"] is True
    assert as_json["facts"]["image size"] == 32
    assert {finding["verdict"] for finding in as_json["findings"]} == {OK, NOT_APPLICABLE}


def test_command_finds_a_fault(runs):
    """Weights before their first step."""
    done = run(runs / "fresh")
    assert done.exit_code == 1
    (failed,) = json.loads(run(runs / "fresh", "--json").output)["findings"][1:2]
    assert (failed["check"], failed["verdict"]) == ("weights", FAILED)
    assert failed["cause"] in done.output
    assert failed["fix"] in done.output


def test_command_names_a_mistake(tmp_path):
    assert run(tmp_path / "nothing").exit_code == 2
