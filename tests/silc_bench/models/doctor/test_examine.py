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
from commands import call

from silc_bench.models.doctor import checks, known, subject
from silc_bench.models.doctor.examine import KNOWN, examine
from silc_bench.models.doctor.subject import FAILED, NOT_APPLICABLE, OK, Subject
from silc_bench.models.load import load_model
from silc_bench.trainer.checkpoints import file as checkpoint
from silc_bench.trainer.config.presets import make_preset
from silc_bench.trainer.silc.tokenizers import Tokenizer
from silc_bench.trainer.silc.towers import VisionTower
from silc_bench.trainer.train import TrainState

pytestmark = pytest.mark.broad

TINY = make_preset("cifar_tiny")
CONFIG = replace(TINY, contrastive=replace(TINY.contrastive, loss="sigmoid"))
VIT = {"image_size": 32, "layers": 2, "width": 32, "head_width": 8, "patch_size": 8}
MEAN = {**VIT, "pool_type": "avg", "no_ln_pre": True, "final_ln_after_pool": True}
RESNET = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8}
OPEN_CLIP = {  # of whose checks one verdict: whether patches alone are pooled, and of the bias
    "vit": ({"vision_cfg": VIT, "quick_gelu": True}, subject.TOKEN, "quick_gelu", NOT_APPLICABLE),
    "mean": ({"vision_cfg": MEAN, "init_logit_bias": -10}, subject.MEAN, "gelu", OK),
    "resnet": (
        {"vision_cfg": RESNET},
        "attention over the positions and their mean (ResNet)",
        "relu, gelu",
        NOT_APPLICABLE,
    ),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of a run before its first step, and of one after training."""
    folder = tmp_path_factory.mktemp("runs")
    state = fresh(16)
    checkpoint.save(folder / "fresh", state.payload())
    checkpoint.save(folder / "trained", trained(state).payload())
    return folder


def fresh(length, vocab_size=512):
    """A run before its first step whose texts have so many tokens."""
    config = replace(CONFIG, text=replace(CONFIG.text, context_length=length))
    tokenizer = Tokenizer.train([*subject.TEXTS, "a photo, of a cat"], vocab_size, length)
    return TrainState.create(config, tokenizer, torch.device("cpu"))


@torch.no_grad()
def trained(state):
    for parameter in state.student.parameters():
        parameter += 0.1 * (parameter.ndim > 0) * torch.randn(parameter.shape)
    return state


@pytest.fixture(scope="module")
def model(runs):
    return load_model(str(runs / "trained"))


@pytest.fixture(scope="module")
def open_clip_model(open_clip_file):
    def load(name):
        path = open_clip_file(name, **OPEN_CLIP[name][0])
        return load_model(f"open_clip:{name}/{path}")

    return load


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
    answers = verdicts(examination)
    assert [check for check, verdict in answers.items() if verdict != OK] == [KNOWN]
    assert len(answers) == len(examination.findings) == 15
    assert examination.seconds > 1000, "loading is counted"
    facts = {"pooling": subject.ATTENTION, "activation": "gelu_tanh", "text length": 16}
    assert examination.facts | facts == examination.facts
    assert examination.facts["pixels"].endswith("SigLIP squash 32")


@pytest.mark.parametrize("arch", OPEN_CLIP)
def test_open_clip_passes_everything(open_clip_model, arch):
    _, pooling, activation, verdict = OPEN_CLIP[arch]
    examination = examine(open_clip_model(arch))
    assert not examination.failed
    facts = {"pooling": pooling, "activation": activation}
    assert examination.facts | facts == examination.facts
    answers = verdicts(examination)
    assert answers["dense map pools to the embedding"] == answers["logit bias"] == verdict


@pytest.mark.parametrize(
    ("length", "vocab_size", "first", "words"),
    [
        (7, 512, subject.TEXTS[0], "a photo of a cat"),
        (6, 512, "red circle", "a photo of a cat"),
        (3, 512, "red circle", "a cat"),
        # each letter is a token, and so is the space before a word
        (3, 257, "a", "a"),
        (2, 257, None, ""),
    ],
)
def test_a_short_context_is_asked_texts_that_it_reads_to_their_end(
    tmp_path, length, vocab_size, first, words
):
    checkpoint.save(tmp_path, trained(fresh(length, vocab_size)).payload())
    short = load_model(str(tmp_path))
    asked = Subject(short)
    assert (next(iter(asked.phrases), None), asked.words) == (first, words)
    assert len(set(asked.phrases)) in (0, subject.NUM_SCENES)
    examination = examine(short)
    assert not examination.failed, "the context is short, not wrong"
    expected = OK if first else NOT_APPLICABLE
    answers = verdicts(examination)
    assert answers["tokens"] == answers["text embeddings"] == expected
    assert answers["text cleaning"] == (OK if words else NOT_APPLICABLE)


def test_a_vision_model_passes_what_applies():
    pytest.importorskip("timm")
    examination = examine(load_model("timm:test_vit/random"))
    assert not examination.failed
    answers = verdicts(examination)
    assert answers["text tower"] == answers["weights"] == NOT_APPLICABLE
    assert "tokens" not in answers


@pytest.mark.parametrize(("each", "count"), [(0.5, 32), (2.0, 10), (90.0, 4)])
def test_slow_models_are_looked_at_less_and_it_is_said(model, monkeypatch, each, count):
    # seconds pass only while the slow model works
    clock = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr(subject, "perf_counter", lambda: clock.now)

    def slow(images, *point):
        clock.now += each * len(images)
        return model.encode_image(images, *point)

    examination = examine(spoilt(model, encode_image=slow))
    assert not examination.failed
    (says,) = [f.says for f in examination.findings if f.check == "image embeddings"]
    assert (f"; {count} of 32, as one takes {each:.1f} s" in says) == (count < 32)


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
    "no projection": (
        returns("encode_text", lambda features, tokens: features[:, :16]),
        {"text embeddings"},
    ),
    "scale twice": (has("logit_scale", math.exp), {"logit scale"}),
    "scale lost": (has("logit_scale", lambda scale: float("nan")), {"logit scale"}),
    "bias turned": (has("logit_bias", lambda bias: -bias), {"logit bias"}),
    "wrong mean": (
        lambda model: spoilt(model, preprocess=replace(model.pipeline, mean=(0.4, 0.4, 0.4))),
        {"preprocessing"},
    ),
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
    spoil, faults = SPOILT[how]
    assert failures(spoil(model)) == faults


@pytest.mark.parametrize(
    ("cleaning", "verdict"),
    [("whitespace", OK), ("lower, no ASCII punctuation", OK), ("none", NOT_APPLICABLE)],
)
def test_cleaning_is_held_to_what_the_model_states(model, cleaning, verdict):
    protocol = model.text_protocol | {"cleaning": cleaning}
    assert verdicts(examine(spoilt(model, text_protocol=protocol)))["text cleaning"] == verdict


def test_a_scale_is_told_from_a_logarithm(model):
    scales = {1.0: FAILED, 2.3: FAILED, 4.7: FAILED, 8.0: OK, 117.3: OK}
    for scale, verdict in scales.items():
        assert checks.scale(Subject(spoilt(model, logit_scale=scale))).verdict == verdict


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


def test_wrong_preprocessing_under_a_known_name(model):
    twin = spoilt(
        model,
        image_protocol=known.PIPELINES["SigLIP squash 224"].as_dict(),
        name="open_clip:ViT-B-32/openai",
    )
    failed = [finding for finding in examine(twin).failed if finding.check == KNOWN]
    differing = {finding.says.split()[0] for finding in failed}
    assert {"mean", "std", "resize", "parameters"} <= differing


# ---- tables ----


EXPECTED = known.read_table("expected")["checkpoints"]


def test_one_difference_is_one_finding():
    for entry in EXPECTED:
        expect = entry["expect"]
        (finding,) = known.compare(entry, expect)
        assert finding.verdict == OK
        for key, value in expect.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            other = value * 2 + 1 if is_number else "other"
            (finding,) = known.compare(entry, {**expect, key: other})
            assert finding.verdict == FAILED
            assert finding.says.startswith(key.replace("_", " "))
            assert finding.cause
            assert finding.fix


def test_names_are_told_apart():
    names = [name for entry in EXPECTED for name in entry["names"]]
    assert len(names) == len(set(names)) > 100
    file = known.expectation("open_clip:ViT-B-32/ViT-B-32.pth")
    assert file == known.expectation("open_clip:ViT-B-32/openai") is not None
    dated = known.expectation("big_vision:webli_en_b16_224_63724782")
    assert dated["expect"]["parameters"] == 203155968
    assert known.expectation("hf:clip-vit-base-patch32-mine") is None


@pytest.mark.parametrize(
    ("name", "kind"), [("clip-vit-base-patch32", "CLIP"), ("siglip-base-patch16-224", "Siglip")]
)
def test_expectations_are_those_of_transformers(name, kind):
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        network = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")())
    expect = known.expectation(f"hf:{name}")["expect"]
    count = sum(parameter.numel() for parameter in network.parameters())
    assert 0 < count - expect["parameters"] <= known.TOLERANCE["parameters"]
    assert expect["context_length"] == network.config.text_config.max_position_embeddings
    assert expect["activation"] == activation_of(network)


def test_expectations_are_those_of_open_clip():
    open_clip = pytest.importorskip("open_clip")
    expect = known.expectation("open_clip:ViT-B-32/openai")["expect"]
    assert expect["mean"] == list(open_clip.OPENAI_DATASET_MEAN)
    assert known._num_params("ViT-B-32") == expect["parameters"]


def activation_of(network):
    return subject.activation_of(Subject(types.SimpleNamespace(network=network)))


def test_the_activation_of_our_own_towers():
    """A run that started from a SigLIP of open_clip has the exact one."""
    towers = (VisionTower(replace(CONFIG.vision, gelu=gelu)) for gelu in ("exact", "tanh"))
    assert [activation_of(tower) for tower in towers] == ["gelu", "gelu_tanh"]


def test_stored_pixels_are_ours_and_differ():
    stored = known.read_table("pixels")["pipelines"]
    assert len({entry["hash"] for entry in stored.values()}) == len(stored)
    pipelines = known.PIPELINES.items()
    declared = {name: pipeline.as_dict() for name, pipeline in pipelines}
    assert declared == {name: entry["pipeline"] for name, entry in stored.items()}
    for name, pipeline in pipelines:
        if pipeline.size <= 256:
            assert stored[name]["hash"] == subject.pixel_hash(pipeline), name


def test_moved_pixels_of_a_known_pipeline_are_named(model, monkeypatch):
    stored = copy.deepcopy(known.read_table("pixels"))
    stored["pipelines"]["SigLIP squash 32"]["hash"] = "0" * 16
    tables = {"pixels": stored, "expected": {"checkpoints": []}}
    monkeypatch.setattr(known, "read_table", tables.get)
    assert failures(model) == {"preprocessing"}


# ---- the command ----


def test_command_passes(runs):
    done = call(f"doctor {runs}/trained --json")
    assert done.exit_code == 0, done.output
    as_json = json.loads(done.stdout)
    assert as_json["passed"] is True
    assert {finding["verdict"] for finding in as_json["findings"]} == {OK, NOT_APPLICABLE}


def test_command_finds_a_fault(runs):
    """Weights before their first step."""
    done, as_json = (call(f"doctor {runs}/fresh {option}") for option in ("", "--json"))
    assert done.exit_code == as_json.exit_code == 1
    (failed,) = (f for f in json.loads(as_json.stdout)["findings"] if f["verdict"] == FAILED)
    assert failed["check"] == "weights"
    assert failed["cause"] in done.stdout
    assert failed["fix"] in done.stdout
