"""Weights alone: with ``--arch`` they are that model, without it the answer names what they fit."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from typer.testing import CliRunner

from silc_bench.cli import app as cli
from silc_bench.errors import UserError
from silc_bench.models.interface import ImageTextModel
from silc_bench.models.load import load_model
from silc_bench.models.weights import architectures
from silc_bench.models.weights.read import read_weights
from silc_bench.trainer.checkpoints import model as native
from silc_bench.trainer.config.presets import make_preset
from silc_bench.trainer.silc.student import Student, init_weights
from silc_bench.trainer.silc.tokenizers import Tokenizer

pytestmark = pytest.mark.broad

os.environ.setdefault("HF_HUB_OFFLINE", "1")
CAPTIONS = ["a red ring", "a blue star on a green ground"]


def answer(path, arch=None):
    """The one line with which ``load_model`` refuses."""
    start = time.process_time()
    with pytest.raises(UserError) as caught:
        load_model(str(path), arch)
    assert time.process_time() - start < 5
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 900
    return message


# ---- silc: ----


@pytest.fixture(scope="module")
def student():
    config = make_preset("cifar_tiny")
    made = Student(replace(config, distillation=replace(config.distillation, num_prototypes=8)))
    init_weights(made, seed=3)
    return made


@pytest.fixture(scope="module")
def tokenizer(student):
    return Tokenizer.train(CAPTIONS, 300, student.config.text.context_length)


@pytest.fixture
def saved(student, tokenizer, tmp_path):
    """Writes the student's tensors, changed, with or without the tokenizer; the path."""

    def write(metadata=None, **changes):
        weights = {
            name: value.detach().clone() for name, value in student.state_dict().items()
        } | changes
        weights = {name: value for name, value in weights.items() if value is not None}
        path = tmp_path / "weights.bin"
        safetensors.torch.save_file(
            weights,
            path,
            metadata={"tokenizer": tokenizer.to_json()} if metadata is None else metadata,
        )
        return path

    return write


def test_a_student_in_the_towers_of_its_preset(student, tokenizer, saved):
    model = load_model(str(saved()), "silc:cifar_tiny")
    images, tokens = torch.randn(2, 3, model.image_size, model.image_size), tokenizer(CAPTIONS)
    with torch.no_grad():
        assert torch.equal(model.tokenize(CAPTIONS), tokens)
        assert torch.equal(model.encode_image(images), student.vision(images))
        assert torch.equal(model.encode_text(tokens), student.text(tokens))
    assert model.name == "silc:cifar_tiny/weights"
    assert model.logit_scale == pytest.approx(student.log_scale.exp().item())


def test_weights_that_do_not_fit_the_preset(saved):
    path = saved(
        **{"vision.norm.weight": None, "text.norm.bias": torch.ones(3), "more": torch.ones(2)}
    )
    said = answer(path, "silc:cifar_tiny")
    assert said.startswith(
        f"checkpoint {path} as silc:cifar_tiny: its weights do not fit: "
        "1 missing (vision.norm.weight);"
    )
    assert "1 unexpected (more)" in said
    assert "1 of another shape (text.norm.bias [3] instead of" in said
    assert "its tokenizer makes 16 tokens" in answer(saved(), "silc:b16")


@pytest.mark.parametrize(
    "write", [torch.save, safetensors.torch.save_file], ids=["pt", "safetensors"]
)
def test_the_tokenizer_may_lie_beside_the_weights(student, tokenizer, tmp_path, write):
    path = tmp_path / "student.bin"
    write({name: value.detach().clone() for name, value in student.state_dict().items()}, path)
    blind = load_model(str(path), "silc:cifar_tiny")
    images, tokens = torch.randn(2, 3, blind.image_size, blind.image_size), tokenizer(CAPTIONS)
    assert not isinstance(blind, ImageTextModel)
    assert f"put it beside {path} as tokenizer.json" in blind.lacking["text"]
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    model = load_model(str(path), "silc:cifar_tiny")
    assert isinstance(model, ImageTextModel)
    with torch.no_grad():
        assert torch.equal(blind.encode_image(images), student.vision(images))
        assert torch.equal(model.encode_image(images), student.vision(images))
        assert torch.equal(model.tokenize(CAPTIONS), tokens)
        assert torch.equal(model.encode_text(tokens), student.text(tokens))
    assert model.revision == blind.revision
    for damage in (b"{}", b"\xff"):
        (tmp_path / "tokenizer.json").write_bytes(damage)
        assert "tokenizer" in answer(path, "silc:cifar_tiny")


def test_tasks_with_text_name_the_missing_tokenizer(saved, tmp_path):
    words = [
        "eval",
        "--ckpt",
        str(saved(metadata={"format": "pt"})),
        "--arch",
        "silc:cifar_tiny",
        "--tasks",
        "shapes/zeroshot",
    ]
    done = CliRunner().invoke(
        cli.app, [*words, "--limit", "10", "--results", str(tmp_path / "results")]
    )
    assert done.exit_code == 2
    assert "tokenizer.json" in done.stderr


def test_what_a_preset_does_not_tell(saved, tmp_path):
    assert "tokenizer is damaged" in answer(saved(metadata={"tokenizer": "{}"}), "silc:cifar_tiny")
    assert "did you mean cifar_tiny" in answer(saved(), "silc:cifar-tiny")
    torch.save({"a": torch.ones(2)}, tmp_path / "x.pt")
    assert "its weights do not fit" in answer(tmp_path / "x.pt", "silc:cifar_tiny")


@pytest.mark.parametrize(
    ("arch", "words"),
    [
        ("openclip:RN50", "did you mean open_clip"),
        ("open_clip", "write open_clip:NAME"),
        ("silc:", "write silc:PRESET"),
        ("timm:vit_base_patch16_224", "timm:vit_base_patch16_224/"),
        ("", "unknown kind of architecture"),
    ],
)
def test_no_such_architecture(saved, arch, words):
    assert words in answer(saved(), arch)


def test_an_export_needs_no_architecture(saved):
    assert "leave out --arch silc:cifar_tiny" in answer(
        saved(metadata={"format": "silc-bench"}), "silc:cifar_tiny"
    )


# ---- open_clip: and hf: ----


@pytest.fixture
def tiny_clip(tmp_path):
    """An architecture that open_clip knows for one test, and its random weights: (name, path).

    The weights are in a file.
    """
    import open_clip

    tower = {"width": 32, "layers": 1}
    vision, text = (
        {**tower, "image_size": 16, "patch_size": 8, "head_width": 16},
        {**tower, "heads": 2, "vocab_size": 49408},
    )
    path = tmp_path / "tiny-raw.json"
    path.write_text(json.dumps({"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(path)
    torch.save(open_clip.create_model("tiny-raw").state_dict(), tmp_path / "raw.pt")
    yield "tiny-raw", tmp_path / "raw.pt"
    open_clip.factory._MODEL_CONFIG_PATHS.remove(path)
    del open_clip.factory._MODEL_CONFIGS["tiny-raw"]


def test_open_clip_takes_the_weights(tiny_clip):
    name, path = tiny_clip
    model, named = (
        load_model(str(path), f"open_clip:{name}"),
        load_model(f"open_clip:{name}/{path}"),
    )
    assert model.revision == named.revision
    assert (model.embed_dim, model.image_size) == (24, 16)
    weights = torch.load(path, weights_only=True)
    del weights["visual.proj"]
    torch.save(
        {**weights, "other": torch.ones(2), "visual.conv1.weight": torch.ones(4, 3, 2, 2)}, path
    )
    said = answer(path, f"open_clip:{name}")
    assert said.startswith(f"{path} as open_clip's {name}: its weights do not fit: ")
    assert "1 missing (visual.proj); 1 unexpected (other)" in said
    assert "visual.conv1.weight [4, 3, 2, 2] instead of [32, 3, 8, 8]" in said


def test_hf_takes_the_weights(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    import hf_folders

    folder = hf_folders.write("clip", tmp_path / "folder")
    weights = read_weights(folder)
    torch.save({"state_dict": weights}, tmp_path / "raw.pt")
    assert (
        load_model(str(tmp_path / "raw.pt"), f"hf:{folder}").revision
        == load_model(f"hf:{folder}").revision
    )
    del weights["logit_scale"]
    torch.save(weights, tmp_path / "raw.pt")
    assert "logit_scale" in answer(tmp_path / "raw.pt", f"hf:{folder}")


# ---- no --arch ----


def shapes_of(module):
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def written(shapes, path):
    """A file whose tensors have these shapes."""
    torch.save({name: torch.zeros(shape) for name, shape in shapes.items()}, path)
    return path


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("ViT-B-32", ["ViT-B-32-quickgelu"]),
        ("RN50", ["RN50-quickgelu"]),
        ("ViT-B-16-SigLIP", []),
        ("coca_ViT-B-32", []),
        ("EVA02-B-16", []),
        ("convnext_base_w", ["convnext_base_w_320"]),
    ],
)
def test_open_clips_architectures_fit_themselves_and_no_other(name, others):
    import open_clip

    config = open_clip.get_model_config(name)
    is_custom = config.pop("custom_text", False)
    kind = (
        open_clip.CoCa
        if "multimodal_cfg" in config
        else open_clip.CustomTextCLIP
        if is_custom
        else open_clip.CLIP
    )
    with torch.device("meta"):
        shapes = shapes_of(kind(**config))
    assert architectures.fitting(shapes) == [f"open_clip:{fit}" for fit in [name, *others]]
    assert (
        architectures.fitting(
            {key: shape for key, shape in shapes.items() if "token_embedding" not in key}
        )
        == []
    )


@pytest.mark.parametrize(
    "name", ["vit_small_patch16_224", "vit_small_patch14_dinov2", "vit_base_patch16_siglip_256"]
)
def test_timms_architectures(name):
    with torch.device("meta"):
        shapes = shapes_of(timm.create_model(name))
    assert architectures.fitting(shapes) == [f"timm:{name}"]


def test_transformers_architectures():
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        clip = transformers.CLIPModel(transformers.CLIPConfig())
        siglip = transformers.SiglipModel(transformers.SiglipConfig())
    assert architectures.fitting(shapes_of(clip)) == ["hf:openai/clip-vit-base-patch32"]
    assert architectures.fitting(shapes_of(siglip)) == ["hf:google/siglip-base-patch16-224"]
    odd = shapes_of(clip) | {"vision_model.embeddings.patch_embedding.weight": (33, 3, 32, 32)}
    assert "a transformers CLIP of width 33" in architectures.fitting(odd)[0]


def test_the_answer_names_what_fits(student, tmp_path):
    said = answer(written(shapes_of(student), tmp_path / "x.pt"))
    assert said.startswith(
        f"checkpoint {tmp_path}/x.pt: {len(student.state_dict())} tensors without a "
        "configuration; --arch"
    )
    assert "it fits silc:cifar_tiny" in said
    assert native.fitting_presets({**shapes_of(student), "vision.norm.weight": (3,)}) == []
    with torch.device("meta"):
        shapes = shapes_of(timm.create_model("vit_tiny_patch16_224"))
    assert f"timm:vit_tiny_patch16_224; timm's are written timm:NAME/{tmp_path}/y" in answer(
        written(shapes, tmp_path / "y")
    )


def test_the_answer_where_nothing_fits(tmp_path):
    said = answer(written({"a.weight": (2, 3), "b": (4,)}, tmp_path / "x.pt"))
    assert "no architecture known here has tensors such as a.weight [2, 3], b [4]" in said
    assert "open_clip:NAME, hf:FOLDER_OR_NAME, silc:PRESET" in said


def test_the_answer_says_how_other_kinds_are_written(tmp_path):
    np.savez(tmp_path / "x.npz", **{"params/img/pos_embedding": np.ones(3, np.float32)})
    assert f"write big_vision:{tmp_path}/x.npz" in answer(tmp_path / "x.npz")
    for kind, config in (("hf", "config.json"), ("open_clip", "open_clip_config.json")):
        folder = tmp_path / kind
        folder.mkdir()
        (folder / config).write_text("{}")
        assert f"write {kind}:{folder}" in answer(folder)
