"""Weights alone: with ``--arch`` they are that model, without it the answer says what to write."""

from __future__ import annotations

import os
from dataclasses import replace

import hf_folders
import numpy as np
import pytest
import safetensors.torch
import torch
from refusals import refused

from silc_bench.errors import UserError
from silc_bench.models.interface import ImageTextModel
from silc_bench.models.load import load_model
from silc_bench.models.weights.read import read_weights
from silc_bench.trainer.config.presets import make_preset
from silc_bench.trainer.silc.student import Student, init_weights
from silc_bench.trainer.silc.tokenizers import Tokenizer

pytestmark = pytest.mark.broad

os.environ.setdefault("HF_HUB_OFFLINE", "1")
CAPTIONS = ["a red ring", "a blue star on a green ground"]
ARCH = "silc:cifar_tiny"


# ---- silc: ----


@pytest.fixture(scope="module")
def student():
    config = make_preset("cifar_tiny")
    made = Student(replace(config, distillation=replace(config.distillation, num_prototypes=8)))
    return init_weights(made, seed=3) or made


@pytest.fixture(scope="module")
def tokenizer(student):
    return Tokenizer.train(CAPTIONS, 300, student.config.text.context_length)


@pytest.fixture
def saved(student, tokenizer, tmp_path):
    """Writes the student's tensors, changed, and texts (the tokenizer); the path."""

    def write(metadata=None, **changes):
        weights = {name: value.clone() for name, value in student.state_dict().items()} | changes
        weights = {name: value for name, value in weights.items() if value is not None}
        metadata = metadata or {"tokenizer": tokenizer.to_json()}
        safetensors.torch.save_file(weights, tmp_path / "weights.bin", metadata)
        return tmp_path / "weights.bin"

    return write


def check_embeddings(model, student, tokenizer):
    tokens = tokenizer(CAPTIONS)
    images = torch.randn(2, 3, model.image_size, model.image_size)
    with torch.no_grad():
        assert torch.equal(model.encode_image(images), student.vision(images))
        if isinstance(model, ImageTextModel):
            assert torch.equal(model.tokenize(CAPTIONS), tokens)
            assert torch.equal(model.encode_text(tokens), student.text(tokens))


def test_a_student_in_the_towers_of_its_preset(student, tokenizer, saved):
    zeros = student.state_dict()["text.norm.bias"].bfloat16()
    model = load_model(str(saved(**{"text.norm.bias": zeros})), ARCH)
    assert isinstance(model, ImageTextModel)
    check_embeddings(model, student, tokenizer)
    assert model.name == "silc:cifar_tiny/weights"
    assert model.logit_scale == pytest.approx(student.log_scale.exp().item())


def test_the_tokenizer_may_lie_beside_the_weights(student, tokenizer, tmp_path):
    path = tmp_path / "student.bin"
    torch.save(student.state_dict(), path)
    blind = load_model(str(path), ARCH)
    assert not isinstance(blind, ImageTextModel)
    assert "tokenizer.json" in blind.lacking["text"]
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    model = load_model(str(path), ARCH)
    assert isinstance(model, ImageTextModel)
    assert model.revision == blind.revision
    for each in (blind, model):
        check_embeddings(each, student, tokenizer)
    (tmp_path / "tokenizer.json").write_bytes(b"\xff")
    with pytest.raises(UserError, match="tokenizer"):
        load_model(str(path), ARCH)


OTHERS = {"vision.norm.weight": None, "text.norm.bias": torch.ones(3), "more": torch.ones(2)}


@pytest.mark.parametrize(
    ("arch", "changes", "words"),
    [
        (ARCH, OTHERS, ["vision.norm.weight", "more", "text.norm.bias [3]"]),
        (ARCH, {"metadata": {"tokenizer": "{}"}}, ["tokenizer"]),
        (ARCH, {"metadata": {"format": "silc-bench"}}, ["--arch silc:cifar_tiny"]),
        ("silc:b16", {}, ["16"]),
        ("open_clip", {}, ["open_clip:NAME"]),
    ],
)
def test_what_does_not_fit_or_exist(saved, arch, changes, words):
    path = saved(**changes)
    with pytest.raises(UserError) as caught:
        load_model(str(path), arch)
    assert all(word in str(caught.value) for word in words)


# ---- open_clip: and hf: ----


VISION = {"width": 32, "layers": 1, "image_size": 16, "patch_size": 8, "head_width": 16}


@pytest.mark.parametrize(("kind", "lost"), [("open_clip", "visual.proj"), ("hf", "logit_scale")])
def test_other_libraries_take_the_weights(open_clip_file, tmp_path, kind, lost):
    if kind == "hf":
        pytest.importorskip("transformers")
        arch = whole = f"hf:{hf_folders.write('clip', tmp_path / 'folder')}"
        weights = read_weights(tmp_path / "folder")
    else:
        path = open_clip_file("tiny-raw", vision_cfg=VISION)
        arch, whole = "open_clip:tiny-raw", f"open_clip:tiny-raw/{path}"
        weights = read_weights(path)

    torch.save(weights, tmp_path / "raw.pt")
    model = load_model(str(tmp_path / "raw.pt"), arch)
    assert model.revision == load_model(whole).revision
    del weights[lost]
    torch.save(weights, tmp_path / "raw.pt")
    with pytest.raises(UserError, match=lost):
        load_model(str(tmp_path / "raw.pt"), arch)


ADDED = ["lora_A.default.weight", "lora_embedding_B.default", "hada_w1_a", "oft_r.default"]


@pytest.mark.parametrize("name", ADDED)
@pytest.mark.parametrize("arch", [ARCH, "open_clip:ViT-B-32"])
def test_an_adapter_is_no_models_weights(saved, tmp_path, arch, name):
    path = saved(**{f"text.blocks.0.mlp.{name}": torch.ones(2, 2)})
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "adapter_config.json").write_text("{}")
    for place in (path, tmp_path / "folder"):
        with refused(about=place) as caught:
            load_model(str(place), arch)
        assert "merge_and_unload" in caught.value.fix


def test_an_adapter_in_a_folder_of_open_clip_is_refused(tmp_path):
    pytest.importorskip("open_clip")
    for name in ("open_clip_config.json", "adapter_config.json"):
        (tmp_path / name).write_text("{}")
    with refused(about=tmp_path):
        load_model(f"open_clip:{tmp_path}")


# ---- no --arch ----


def test_without_an_architecture_the_answer_says_what_to_write(student, tmp_path):
    torch.save({"a.weight": torch.ones(2, 3)}, tmp_path / "x.pt")
    torch.save(student.state_dict(), tmp_path / "student.pt")
    np.savez(tmp_path / "x.npz", **{"params/img/pos_embedding": np.ones(3, np.float32)})
    for kind, config in (("hf", "config.json"), ("open_clip", "open_clip_config.json")):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / config).write_text("{}")
    answers = {
        "x.pt": "--arch",
        "student.pt": ARCH,
        "x.npz": f"big_vision:{tmp_path}",
        "hf": f"hf:{tmp_path}",
        "open_clip": f"open_clip:{tmp_path}",
    }
    for name, answer in answers.items():
        with refused(about=tmp_path / name) as caught:
            load_model(str(tmp_path / name))
        assert answer in caught.value.fix
