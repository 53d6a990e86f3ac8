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
from PIL import Image
from torchvision import transforms
from typer.testing import CliRunner

from silc_bench.cli import app as cli
from silc_bench.models.doctor import known
from silc_bench.models.doctor import known as tables
from silc_bench.models.doctor import subject as cards
from silc_bench.models.doctor import subject as facts
from silc_bench.models.doctor.examine import KNOWN, Examination, examine
from silc_bench.models.doctor.subject import FAILED, NOT_APPLICABLE, OK, Subject
from silc_bench.models.load import load_model
from silc_bench.models.preprocessing import ImagePipeline
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
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 2}
VIT = {"image_size": 32, "layers": 2, "width": 32, "head_width": 8, "patch_size": 8}
ARCHS = {
    "doctor-vit": {"embed_dim": 24, "text_cfg": TEXT, "vision_cfg": VIT, "quick_gelu": True},
    "doctor-mean": {
        "embed_dim": 24,
        "text_cfg": TEXT,
        "vision_cfg": {**VIT, "pool_type": "avg", "no_ln_pre": True, "final_ln_after_pool": True},
        "init_logit_bias": -10,
    },
    "doctor-resnet": {
        "embed_dim": 24,
        "text_cfg": TEXT,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8},
    },
}


def draw(network):
    """Every weight a little off its start, as after training."""
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        parameter.data.add_(
            0.1 * torch.randn(parameter.shape, generator=generator) * (parameter.ndim > 0)
        )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of a trained run and of one before its first step."""
    folder = tmp_path_factory.mktemp("runs")
    captions = [*cards.TEXTS, "a photo, of a cat"]
    state = TrainState.create(CONFIG, Tokenizer.train(captions, 300, 24), torch.device("cpu"))
    checkpoint.save(folder / "fresh", state.payload())
    draw(state.student)
    checkpoint.save(folder / "trained", state.payload())
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


def verdicts(examination: Examination) -> dict[str, str]:
    return {finding.check: finding.verdict for finding in examination.findings}


def failed(model) -> dict[str, str]:
    """{check: all that it says} of those that fail; each names a cause and a fix."""
    found = examine(model).failed
    assert all(finding.cause and finding.fix for finding in found)
    return {finding.check: f"{finding.says}; {finding.cause}" for finding in found}


# ---- healthy models ----


def test_a_run_passes_everything(model):
    examination = examine(model)
    assert not examination.failed
    answers = verdicts(examination)
    assert {check for check, verdict in answers.items() if verdict == NOT_APPLICABLE} == {
        "known checkpoint"
    }
    assert len(answers) == len(examination.findings) == 15
    shown = examination.facts
    assert shown["parameters"] == model.num_params
    assert shown["pooling"] == facts.ATTENTION
    assert shown["activation"] == "gelu_tanh"
    assert shown["pixels"].endswith("SigLIP squash 32")
    assert shown["text length"] == 24
    assert shown["mean"] == [0.5, 0.5, 0.5]


def test_a_run_with_the_exact_gelu_says_so(tmp_path):
    """As one that started from a SigLIP of open_clip has."""
    config = replace(
        CONFIG, vision=replace(CONFIG.vision, gelu="exact"), text=replace(CONFIG.text, gelu="exact")
    )
    state = TrainState.create(
        config, Tokenizer.train(["a photo of a cat"], 300, 24), torch.device("cpu")
    )
    checkpoint.save(tmp_path, state.payload())
    assert examine(load_model(str(tmp_path))).facts["activation"] == "gelu"


@pytest.mark.parametrize(
    ("arch", "pooling", "activation", "is_pooled"),
    [
        ("doctor-vit", facts.TOKEN, "quick_gelu", NOT_APPLICABLE),
        ("doctor-mean", facts.MEAN, "gelu", OK),
        (
            "doctor-resnet",
            "attention over the positions and their mean (ResNet)",
            "relu, gelu",
            NOT_APPLICABLE,
        ),
    ],
)
def test_open_clip_passes_everything(open_clip_models, arch, pooling, activation, is_pooled):
    examination = examine(open_clip_models[arch])
    assert not examination.failed
    assert examination.facts["pooling"] == pooling
    assert examination.facts["activation"] == activation
    answers = verdicts(examination)
    assert answers["dense map pools to the embedding"] == is_pooled
    assert answers["logit bias"] == (OK if arch == "doctor-mean" else NOT_APPLICABLE)


def test_a_vision_model_passes_what_applies():
    pytest.importorskip("timm")
    examination = examine(load_model("timm:test_vit/random"))
    assert not examination.failed
    answers = verdicts(examination)
    assert answers["text tower"] == answers["weights"] == NOT_APPLICABLE
    assert "tokens" not in answers
    assert "image encoders only" in examination.facts["text"]


class Clock:
    """Seconds that pass only while a slow model works."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize(
    ("picture", "text", "counts"),
    [(0.5, 0.2, (32, 32)), (2.0, 0.2, (10, 32)), (6.0, 1.0, (4, 10)), (90.0, 90.0, (4, 4))],
)
def test_slow_models_are_looked_at_less_and_it_is_said(model, monkeypatch, picture, text, counts):
    clock, seen = Clock(), {"picture": 0, "text": 0}
    monkeypatch.setattr("silc_bench.models.doctor.subject.perf_counter", clock)

    def slow(encode, thing, each):
        def encoded(things, *point):
            seen[thing] += len(things)
            clock.now += each * len(things)
            return encode(things, *point)

        return encoded

    encoders = {
        "encode_image": slow(model.encode_image, "picture", picture),
        "encode_text": slow(model.encode_text, "text", text),
    }
    examination = examine(spoilt(model, **encoders))
    assert not examination.failed
    says = {finding.check: finding.says for finding in examination.findings}
    for thing, each, count in zip(("image", "text"), (picture, text), counts, strict=True):
        reduced = f"; {count} of 32, as one takes {each:.1f} s"
        assert says[f"{thing} embeddings"].endswith(reduced) == (count < 32)
        assert (
            f" {count} {'picture' if thing == 'image' else 'text'}s differ"
            in says[f"{thing} embeddings"]
        )
    assert seen["picture"] <= counts[0] + 4, "one alone, again, its mean_patch, and one patch"
    assert seen["text"] <= counts[1] + 9, "one alone, and the check of short texts beside long ones"


def test_loading_is_counted(model):
    assert examine(model, loading=1000.0).seconds > 1000


# ---- spoilt models ----


def broken_text(model):
    """Its tokens count capitals, as if no cleaning came first."""

    def tokenize(texts):
        return model.tokenize(
            ["x " * sum(letter.isupper() for letter in text) + text for text in texts]
        )

    return spoilt(model, tokenize=tokenize)


def to_longest(model):
    def tokenize(texts):
        tokens = model.tokenize(texts)
        return tokens[:, : int((tokens != 0).sum(dim=1).max()) + 1]

    return spoilt(model, tokenize=tokenize)


def leaking(model):
    """Texts see their neighbours."""

    def encode(tokens):
        features = model.encode_text(tokens)
        return features + 0.01 * features.norm(dim=1).mean() * (tokens != 0).float().mean()

    return spoilt(model, encode_text=encode)


def mixed(model, amount):
    """Pictures see their neighbours."""

    def encode(images, point="pooled"):
        features = model.encode_image(images, point)
        return features + amount * (features - features.mean(dim=0))

    return spoilt(model, encode_image=encode)


def image_encoder(change):
    """Spoils encode_image by a function of its features."""
    return lambda model: spoilt(
        model, encode_image=lambda images, point="pooled": change(model.encode_image(images, point))
    )


def with_pixels(change):
    return lambda model: spoilt(model, preprocess=change(model))


def drifting(model):
    """Each picture is brightened by how many came before."""
    count = itertools.count()
    return lambda image: model.pipeline(image) + 1e-3 * next(count)


def noisy(features):
    return features + 0.1 * torch.randn_like(features)


def constant(features):
    return torch.ones_like(features)


def with_nan(features):
    return torch.where(torch.arange(len(features))[:, None] == 3, torch.nan, features)


def halves(model):
    return spoilt(model, spare=copy.deepcopy(model.text).half())


def doubled_joint(model):
    def encode_dense(images, methods):
        found = model.encode_dense(images, methods)
        return {
            method: patches * (1 if method == "tokens" else 2) for method, patches in found.items()
        }

    return spoilt(model, encode_dense=encode_dense)


def other_tokens(model):
    def encode(images, point="pooled"):
        return model.encode_image(images, point) * (2 if point == "mean_patch" else 1)

    return spoilt(model, encode_image=encode)


def raising(model):
    def encode(tokens):
        raise IndexError("index out of range in self")

    return spoilt(model, encode_text=encode)


def wrong_mean(model):
    return replace(model.pipeline, mean=(0.48, 0.45, 0.40))


TEXTS_ALL = {"short text alone and beside long ones", "text embeddings"}
SPOILT = {  # how: which checks fail, and a word that tells what is wrong
    "mask leak": (leaking, {"short text alone and beside long ones"}, "padding"),
    "padded to the longest": (to_longest, TEXTS_ALL | {"tokens"}, "beside long texts"),
    "cleaning dropped": (broken_text, {"text cleaning"}, "upper case change the tokens"),
    "unknown words": (
        lambda model: spoilt(
            model, tokenize=lambda texts: torch.zeros(len(texts), 24, dtype=torch.int64)
        ),
        {"tokens", "text embeddings"},
        "unknown to this tokenizer",
    ),
    "text tower fails": (raising, TEXTS_ALL, "IndexError: index out of range"),
    "no projection": (
        lambda model: spoilt(model, encode_text=lambda tokens: model.encode_text(tokens)[:, :16]),
        {"text embeddings"},
        "16 dimensions",
    ),
    "log scale": (
        lambda model: spoilt(model, logit_scale=math.log(model.logit_scale)),
        {"logit scale"},
        "a logarithm: exp(",
    ),
    "scale twice": (
        lambda model: spoilt(model, logit_scale=math.exp(model.logit_scale)),
        {"logit scale"},
        "twice",
    ),
    "scale lost": (lambda model: spoilt(model, logit_scale=float("nan")), {"logit scale"}, "nan"),
    "bias turned": (
        lambda model: spoilt(model, logit_bias=-model.logit_bias),
        {"logit bias"},
        "sign",
    ),
    "wrong mean": (with_pixels(wrong_mean), {"preprocessing"}, "not those of the protocol"),
    "no resize filter": (
        with_pixels(lambda model: replace(model.pipeline, interpolation="bilinear")),
        {"preprocessing"},
        "not those of the protocol",
    ),
    "protocol by hand": (
        lambda model: spoilt(model, image_protocol={**model.image_protocol, "std": [1, 1, 1]}),
        {"preprocessing"},
        "protocol",
    ),
    "depends on others": (with_pixels(drifting), {"preprocessing"}, "twice the same picture"),
    "batch statistics": (
        lambda model: mixed(model, 0.1),
        {"picture alone and in a batch"},
        "batch",
    ),
    "dropout": (
        image_encoder(noisy),
        {
            "the same picture twice",
            "picture alone and in a batch",
            "mean_patch and the dense map",
            "dense map pools to the embedding",
        },
        "dropout",
    ),
    "not a number": (image_encoder(with_nan), {"image embeddings"}, "4 of 32 are not finite"),
    "collapsed": (
        image_encoder(constant),
        {"image embeddings", "mean_patch and the dense map", "dense map pools to the embedding"},
        "0 directions",
    ),
    "normalised": (
        image_encoder(lambda features: features / features.norm(dim=-1, keepdim=True)),
        {"image embeddings", "mean_patch and the dense map", "dense map pools to the embedding"},
        "all norms are 1",
    ),
    "vanishing": (
        image_encoder(lambda features: features * 1e-6),
        {"image embeddings", "mean_patch and the dense map", "dense map pools to the embedding"},
        "norms from",
    ),
    "half precision": (halves, {"weights"}, "float16"),
    "dense head": (doubled_joint, {"dense map pools to the embedding"}, "pooling head"),
    "other tokens": (other_tokens, {"mean_patch and the dense map"}, "final norm"),
}


@pytest.mark.parametrize("how", SPOILT)
def test_what_is_spoilt_is_named(model, how):
    spoil, checks, word = SPOILT[how]
    found = failed(spoil(model))
    assert found.keys() == checks
    assert any(word in says for says in found.values()), found


@pytest.mark.parametrize(
    ("named", "verdict"),
    [
        ("whitespace", OK),
        ("lower", OK),
        ("lower, no ASCII punctuation", OK),
        ("none", NOT_APPLICABLE),
    ],
)
def test_a_cleaning_is_held_to_its_name(model, named, verdict):
    answers = {
        finding.check: finding
        for finding in examine(
            spoilt(model, text_protocol={**model.text_protocol, "cleaning": named})
        ).findings
    }
    assert answers["text cleaning"].verdict == verdict
    assert "ignores upper case, punctuation, double spaces" in answers["text cleaning"].says


@pytest.mark.parametrize(
    ("scale", "verdict"),
    [(2.3026, FAILED), (4.6052, FAILED), (8.0, OK), (100.0, OK), (117.3, OK), (1.0, FAILED)],
)
def test_scales_of_trained_models_pass(model, scale, verdict):
    assert verdicts(examine(spoilt(model, logit_scale=scale)))["logit scale"] == verdict


def test_weights_before_the_first_step_are_named(runs):
    found = failed(load_model(str(runs / "fresh")))
    assert "never trained" in found["weights"]


def test_a_text_tower_without_its_tokenizer_is_a_fault(model):
    kept = (
        "name",
        "revision",
        "num_params",
        "image_size",
        "feature_points",
        "image_protocol",
        "pipeline",
        "preprocess",
        "encode_image",
        "vision",
        "text",
    )
    blind = types.SimpleNamespace(
        **{name: getattr(model, name) for name in kept}, lacking={"text": "put x.model beside it"}
    )
    examination = examine(blind)
    assert [(finding.check, finding.fix) for finding in examination.failed] == [
        ("text tower", "put x.model beside it")
    ]
    assert verdicts(examination)["dense map pools to the embedding"] == NOT_APPLICABLE


def test_images_that_cannot_be_read_are_a_fault_and_no_traceback(model):
    def preprocess(image):
        raise ZeroDivisionError("a picture of no width")

    examination = examine(spoilt(model, preprocess=preprocess))
    assert "ZeroDivisionError: a picture of no width" in examination.failed[0].says
    assert (examination.failed[0].check, examination.facts["name"]) == (
        "what was loaded",
        model.name,
    )
    assert verdicts(examination)["tokens"] == verdicts(examination)["logit scale"] == OK


def test_a_protocol_that_says_nothing_is_a_fault_and_no_traceback(open_clip_models):
    examination = examine(
        spoilt(
            open_clip_models["doctor-vit"], image_protocol=None, name="open_clip:ViT-B-32/openai"
        )
    )
    assert {"what was loaded", "preprocessing", KNOWN} == {
        finding.check for finding in examination.failed
    }


def test_wrong_preprocessing_under_a_known_name(open_clip_models):
    model = open_clip_models["doctor-vit"]
    pipeline = replace(model.pipeline, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    changes = {
        "pipeline": pipeline,
        "preprocess": pipeline,
        "image_protocol": pipeline.as_dict(),
        "image_size": 224,
    }
    found = examine(
        spoilt(
            model,
            **changes,
            name="open_clip:ViT-B-32/openai",
            logit_scale=100.0,
            num_params=151277313,
        )
    )
    assert {finding.check for finding in found.failed} == {KNOWN}
    says = [finding.says for finding in found.failed]
    assert len(says) == 2
    assert says[0].startswith(
        "mean is [0.5, 0.5, 0.5], expected [0.48145466, 0.4578275, 0.40821073]"
    )
    assert says[1].startswith("std is")


# ---- tables ----


@pytest.mark.parametrize(
    "entry", known.read_table("expected")["checkpoints"], ids=lambda entry: str(entry["names"][0])
)
def test_one_difference_is_one_finding(entry):
    name = entry["names"][0].replace("*", "x")
    lookups = {key: (lambda value=value: value) for key, value in entry["expect"].items()}
    (finding,) = known.compare(name, lookups)
    assert finding.verdict == OK
    assert finding.says.startswith(f"configuration as expected of {entry['names'][0]}: ")
    assert finding.says.endswith("; weights not compared")
    for key, value in entry["expect"].items():
        other = (
            value * 2 + 1
            if isinstance(value, int | float) and not isinstance(value, bool)
            else None
        )
        (finding,) = known.compare(
            name, {**lookups, key: lambda other=other if key != "activation" else "silu": other}
        )
        assert finding.verdict == FAILED
        assert finding.says.startswith(key.replace("_", " "))
        assert finding.cause
        assert finding.fix


def test_names_are_told_apart():
    names = [
        name for entry in known.read_table("expected")["checkpoints"] for name in entry["names"]
    ]
    assert len(names) == len(set(names)) > 100
    assert known.expectation("hf:clip-vit-base-patch32")["expect"]["activation"] == "quick_gelu"
    assert (
        known.expectation("big_vision:webli_en_b16_224_63724782")["expect"]["parameters"]
        == 203155968
    )
    assert known.expectation("hf:clip-vit-base-patch32-mine") is None
    assert (
        known.expectation("open_clip:ViT-B-32/ViT-B-32.pth")
        == known.expectation("open_clip:ViT-B-32/openai")
        is not None
    )


def test_expectations_are_the_libraries_own():
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("open_clip")
    with torch.device("meta"):
        clip, siglip = (
            transformers.CLIPModel(transformers.CLIPConfig()),
            transformers.SiglipModel(transformers.SiglipConfig()),
        )
    for name, network in (
        ("hf:clip-vit-base-patch32", clip),
        ("hf:siglip-base-patch16-224", siglip),
    ):
        expect = known.expectation(name)["expect"]
        count = sum(parameter.numel() for parameter in network.parameters())
        assert 0 < count - expect["parameters"] <= known.SCALE_AND_BIAS
        assert expect["image_size"] == network.config.vision_config.image_size
        assert expect["context_length"] == network.config.text_config.max_position_embeddings
        kind = {"quick_gelu": "quick_gelu", "gelu_pytorch_tanh": "gelu_tanh"}[
            network.config.vision_config.hidden_act
        ]
        assert (
            expect["activation"]
            == kind
            == facts.activation_of(Subject(types.SimpleNamespace(network=network)))
        )
    from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    expect = known.expectation("open_clip:ViT-B-32/openai")["expect"]
    assert (expect["mean"], expect["std"]) == (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
    assert tables._num_params("ViT-B-32") == expect["parameters"]


def test_stored_pixels_are_torchvisions():
    """The transforms that the weights were published with, on pictures made RGB first."""
    bicubic = transforms.InterpolationMode.BICUBIC
    crop = [transforms.Resize(224, bicubic), transforms.CenterCrop(224)]
    openai = transforms.Compose(
        [*crop, transforms.ToTensor(), transforms.Normalize(*tables.OPENAI)]
    )
    squash = transforms.Resize((256, 256), bicubic)
    siglip = transforms.Compose([squash, transforms.ToTensor(), transforms.Normalize(*tables.HALF)])
    for name, transform in (("OpenAI CLIP 224", openai), ("SigLIP squash 256", siglip)):
        assert (
            known.pipeline_named(
                cards.pixel_hash(lambda image, t=transform: t(image.convert("RGB")))
            )
            == name
        )


def test_stored_pixels_are_ours_and_differ():
    stored = known.read_table("pixels")["pipelines"]
    assert stored.keys() == tables.PIPELINES.keys()
    assert len({entry["hash"] for entry in stored.values()}) == len(stored)
    for name, pipeline in tables.PIPELINES.items():
        assert stored[name]["pipeline"] == pipeline.as_dict()
        if pipeline.size <= 256:
            assert stored[name]["hash"] == cards.pixel_hash(pipeline), name


def test_moved_pixels_of_a_known_pipeline_are_named(model, monkeypatch):
    stored = copy.deepcopy(known.read_table("pixels"))
    stored["pipelines"]["SigLIP squash 32"]["hash"] = "0" * 16
    monkeypatch.setattr(
        known, "read_table", lambda name: stored if name == "pixels" else {"checkpoints": []}
    )
    assert "instead of 0000000000000000 (Pillow" in failed(model)["preprocessing"]


def test_cards_have_the_modes_and_sizes_they_are_called_by():
    pictures = cards.cards()
    assert {picture.mode for picture in pictures.values()} == {"RGB", "L", "P", "RGBA"}
    assert pictures["one pixel"].size == (1, 1)
    scenes = cards.scenes()
    assert len({scene.tobytes() for scene in scenes}) == cards.NUM_SCENES == len(set(cards.TEXTS))
    assert cards.pixel_hash(ImagePipeline(8, *tables.HALF)) != cards.pixel_hash(
        ImagePipeline(8, *tables.HALF, interpolation="nearest")
    )
    assert isinstance(scenes[0], Image.Image)


# ---- the command ----


def run(*words):
    return CliRunner().invoke(cli.app, ["doctor", *map(str, words)])


def test_command_passes(runs):
    done = run(runs / "trained")
    assert done.exit_code == 0, done.output
    assert "no fault found in 15 checks" in done.output
    assert "SigLIP squash 32" in done.output
    as_json = json.loads(run(runs / "trained", "--json").output)
    assert as_json["passed"] is True
    assert as_json["facts"]["image size"] == 32
    assert {finding["verdict"] for finding in as_json["findings"]} == {OK, NOT_APPLICABLE}


def test_command_finds_a_fault(runs):
    done = run(runs / "fresh")
    assert done.exit_code == 1
    assert "likely cause: never trained" in done.output
    assert "fix: bring the trained weights" in done.output
    assert "checks failed" in done.output


def test_command_names_a_mistake(tmp_path):
    done = run(tmp_path / "nothing")
    assert done.exit_code == 2
    assert "no such file or folder" in done.output
