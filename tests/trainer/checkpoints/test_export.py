"""Exports: the other libraries' embeddings, token ids and pixels are ours; refusals; no halves."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refused
from typer.testing import CliRunner

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: nothing is looked up

from silc_bench.cli.app import app
from silc_bench.errors import RunError, UserError
from silc_bench.models.load import load_model
from silc_bench.models.weights import tensor_files
from silc_bench.trainer.checkpoints import exchange as tensor_file
from silc_bench.trainer.checkpoints import export as exports
from silc_bench.trainer.checkpoints import file as checkpoint
from silc_bench.trainer.checkpoints import model as native
from silc_bench.trainer.checkpoints import open_clip
from silc_bench.trainer.checkpoints.export import export, load_trained
from silc_bench.trainer.checkpoints.model import NativeModel
from silc_bench.trainer.config.config import (
    Config,
    ContrastiveConfig,
    DistillationConfig,
    TextConfig,
    ViewsConfig,
    VisionConfig,
)
from silc_bench.trainer.config.presets import make_preset
from silc_bench.trainer.silc.student import Student
from silc_bench.trainer.silc.tokenizers import Tokenizer
from silc_bench.trainer.train import TrainState

pytestmark = pytest.mark.broad

UNEVEN = (
    Config(  # every size differs between the towers, and no MLP is a whole multiple of its width
        preset="uneven",
        vision=VisionConfig(
            image_size=24, patch_size=8, width=24, depth=2, num_heads=3, mlp_dim=50
        ),
        text=TextConfig(
            vocab_size=300, context_length=12, width=40, depth=3, num_heads=5, mlp_dim=87
        ),
        views=ViewsConfig(global_size=24, local_size=8, num_local=1),
        distillation=DistillationConfig(num_prototypes=8, hidden_dim=8, bottleneck_dim=4),
        contrastive=ContrastiveConfig(loss="sigmoid"),
    )
)
CONFIGS = {"uneven": UNEVEN, "shapes_tiny": make_preset("shapes_tiny")}
CAPTIONS = ["a red ring", "a blue star on a green ground", "the photo of a small dog"]
PLAIN = [
    "a photo of a dog",
    "",
    "A RED RING!",
    "snake_case",
    "two small blue stars, on a green ground",
    "ring " * 30,
    "x" * 300,
]
NASTY = [
    *PLAIN,
    "<eos>",
    "a <eos> b <eos><eos>",
    "<pad> <unk> [CLS] </s> <|endoftext|>",
    "Ġ Ċ ▁a ##b @@c",
    "it's a dog’s “ring”",
    "Tom &amp; Jerry &lt;3 &#39;",
    "naïve café cafe\u0301",
    "ﬁne ligature ＦＵＬＬ　ｗｉｄｔｈ",
    "一张狗的照片 犬の写真 강아지 사진",
    "صورة كلب תמונה של כלב",
    "фото собаки หมา ΣΊΣΥΦΟΣ",
    "İstanbul ẞ",
    "😀 ☃ snow ❄ 🇫🇷🇩🇪",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 family \U0001f3f3\ufe0f\u200d\U0001f308",
    "  spaces   inside\tand\nlines\r\n ",
    "\u00a0nbsp\u2003em\u200bzero",
    "\u3000",
    "... !?#$%^&*()[]{} ___",
    "\x00nul\x07bell\x1b[31mred",
    "\ufeffbom \u202ertl \ufffd \U0010ffff",
    "½ ² ™ № ℃ ÃƒÂ© mojibake 𝕬 𝓫 𝟙",
    "e" + "\u0301" * 40,
    "1234567890 3.14 a-b_c.d,e http://a.b/c?d=e&f",
    "ring\u2028line\u2029paragraph",
]


def made(config: Config) -> NativeModel:
    """A model with no zero anywhere, so that no part can be left out unnoticed."""
    with torch.device("meta"):
        student = Student(replace(config, distillation=replace(config.distillation, weight=0.0)))
    student.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for parameter in student.parameters():
        torch.nn.init.normal_(
            parameter, std=0.05 if parameter.ndim > 1 else 0.2, generator=generator
        )
    student.log_scale.data.fill_(2.5)
    student.config = config
    tokenizer = Tokenizer.train(
        CAPTIONS, min(config.text.vocab_size, 300), config.text.context_length
    )
    return NativeModel(f"{config.name}:student", student, student.vision, tokenizer)


@pytest.fixture(scope="module", params=list(CONFIGS))
def model(request):
    return made(CONFIGS[request.param])


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    """Folder with an export of ``model`` for every target."""
    folder = tmp_path_factory.mktemp("exports")
    for target in exports.TARGETS:
        export(
            model, target, folder / (target + (".safetensors" if target == "safetensors" else ""))
        )
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run whose teacher is another model than its student."""
    state = TrainState.create(UNEVEN, Tokenizer.train(CAPTIONS, 300, 12), torch.device("cpu"))
    with torch.no_grad():
        for parameter in state.teacher.parameters():
            parameter.mul_(0.9)
    folder = tmp_path_factory.mktemp("runs") / "a"
    checkpoint.save(folder, state.payload())
    return folder


def images_of(number: int = 3) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [
        Image.fromarray(rng.integers(0, 256, (50 + 31 * n, 133 - 17 * n, 3), dtype=np.uint8))
        for n in range(number)
    ]


def ours(model, texts=PLAIN, number=3):
    """Our embeddings of ``number`` images and of ``texts``."""
    with torch.no_grad():
        images = model.encode_image(
            torch.stack([model.preprocess(image) for image in images_of(number)])
        )
        return images, model.encode_text(model.tokenize(texts))


def assert_same(found, expected):
    for mine, theirs in zip(expected, found[:2], strict=True):
        assert (theirs - mine).abs().max() < 1e-5 * mine.abs().max()
        assert torch.cosine_similarity(theirs.double(), mine.double()).min() >= 1 - 1e-6


def through_transformers(folder: Path, texts=PLAIN, number=3):
    """Its embeddings of images and texts, as it reads both; and all that the model returned."""
    import transformers

    network = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    tokens = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
    assert set(tokens) == {"input_ids"}, "the model reads its padding: no mask"
    with torch.no_grad():
        outputs = network(**processor(images_of(number), return_tensors="pt"), **tokens)
    return (
        outputs.vision_model_output.pooler_output,
        outputs.text_model_output.pooler_output,
        outputs,
    )


def through_open_clip(folder: Path, texts=PLAIN, number=3):
    import open_clip

    network, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    network.eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(texts)
    with torch.no_grad():
        images = network.encode_image(
            torch.stack([preprocess(image) for image in images_of(number)])
        )
        return images, network.encode_text(tokens), network


# ---- the same embeddings ----


def test_transformers_gives_the_same_embeddings_and_logits(model, exported):
    *found, outputs = through_transformers(exported / "hf")
    images, texts = ours(model)
    assert_same(found, (images, texts))
    cosine = torch.cosine_similarity(images[:, None], texts[None], dim=-1)
    torch.testing.assert_close(
        outputs.logits_per_image,
        model.logit_scale * cosine + model.logit_bias,
        atol=1e-4,
        rtol=1e-5,
    )


def test_open_clip_gives_the_same_embeddings_and_logits(model, exported):
    *found, network = through_open_clip(exported / "open_clip")
    assert_same(found, ours(model))
    assert network.logit_scale.exp().item() == pytest.approx(model.logit_scale)
    assert network.logit_bias.item() == pytest.approx(model.logit_bias)


def test_one_file_is_the_same_model(model, exported):
    again = load_model(str(exported / "safetensors.safetensors"))
    for field in (
        "name",
        "revision",
        "config",
        "num_params",
        "image_protocol",
        "text_protocol",
        "logit_scale",
        "logit_bias",
    ):
        assert getattr(again, field) == getattr(model, field), field
    for found, expected in zip(ours(again, NASTY), ours(model, NASTY), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.slow
def test_a_model_of_the_shape_of_b16(tmp_path, monkeypatch):
    """The real sizes: 203 M parameters, 32,000 tokens, 256 px; 15 s of a core, 0.8 GB of disk."""
    # whether the files outlive a power cut is not asked here
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    model = made(make_preset("b16"))
    assert model.num_params > 200e6
    expected = ours(model, PLAIN[:2], 1)
    for target, load in (("hf", through_transformers), ("open_clip", through_open_clip)):
        export(model, target, tmp_path / target)
        assert_same(load(tmp_path / target, PLAIN[:2], 1), expected)
        shutil.rmtree(tmp_path / target)


@pytest.mark.parametrize("branch", ["student", "teacher"])
def test_each_branch_of_a_run(run, tmp_path, branch):
    path = tmp_path / "x.safetensors"
    model = load_model(f"{run}:{branch}")
    export(load_trained(f"{run}:{branch}"), "safetensors", path)
    for again in (load_model(str(path)), load_model(f"{path}:{branch}")):
        assert (again.name, again.revision) == (model.name, model.revision)
    other = "teacher" if branch == "student" else "student"
    with refused(about=f"{path}:{other}"):
        load_model(f"{path}:{other}")


def test_an_export_can_be_exported(exported, tmp_path):
    export(load_trained(str(exported / "safetensors.safetensors")), "hf", tmp_path / "hf")
    for file in (exported / "hf").iterdir():
        assert (tmp_path / "hf" / file.name).read_bytes() == file.read_bytes(), file.name


def test_the_softmax_loss_has_no_bias(tmp_path):
    config = replace(UNEVEN, contrastive=ContrastiveConfig(loss="softmax"))
    state = TrainState.create(config, Tokenizer.train(CAPTIONS, 300, 12), torch.device("cpu"))
    checkpoint.save(tmp_path / "run", state.payload())
    export(load_trained(str(tmp_path / "run")), "hf", tmp_path / "hf")
    weights = tensor_files.read_safetensors(tmp_path / "hf" / "model.safetensors")
    assert weights["logit_bias"].tolist() == [0.0]
    assert weights["logit_scale"].exp().item() == pytest.approx(10.0)


# ---- texts and images ----


def test_transformers_reads_texts_as_we_do(model, exported):
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(exported / "hf")
    length = model.config.text.context_length
    found = tokenizer(
        NASTY, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )["input_ids"]
    assert torch.equal(found, model.tokenize(NASTY))
    alone = [tokenizer(text, padding="max_length", truncation=True)["input_ids"] for text in NASTY]
    assert alone == found.tolist(), "the trained length is known to the tokenizer"


def test_open_clip_reads_texts_as_we_do_after_its_own_repair(model, exported):
    import open_clip
    from open_clip.tokenizer import basic_clean, whitespace_clean

    tokenizer = open_clip.get_tokenizer(f"local-dir:{exported / 'open_clip'}")
    assert torch.equal(tokenizer(PLAIN), model.tokenize(PLAIN))
    assert torch.equal(
        tokenizer(NASTY), model.tokenize([whitespace_clean(basic_clean(text)) for text in NASTY])
    )


def test_images_become_the_same_pixels(model, exported):
    import open_clip
    import transformers

    _, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{exported / 'open_clip'}")
    exact = transformers.AutoImageProcessor.from_pretrained(exported / "hf", backend="pil")
    default = transformers.AutoImageProcessor.from_pretrained(exported / "hf")
    for image in images_of():
        expected = model.preprocess(image)
        assert torch.equal(preprocess(image), expected)
        assert torch.equal(torch.as_tensor(exact(image)["pixel_values"][0]), expected)
        assert (
            torch.as_tensor(default(image)["pixel_values"][0]) - expected
        ).abs().max() < 3 / 127.5


# ---- without us ----


OWN_PACKAGES = ("silc_bench", "trainer", "tasks")


def test_the_libraries_import_nothing_of_ours(model, exported, tmp_path, monkeypatch):
    """In this process, where our packages cannot be imported meanwhile.

    The transformers folder has been moved.
    """
    expected = ours(model)
    shutil.copytree(exported / "hf", tmp_path / "moved")
    for name in [name for name in sys.modules if name.split(".")[0] in OWN_PACKAGES]:
        monkeypatch.delitem(sys.modules, name)
    for name in OWN_PACKAGES:
        monkeypatch.setitem(sys.modules, name, None)  # an import of it fails
    assert_same(through_transformers(tmp_path / "moved"), expected)
    assert_same(through_open_clip(exported / "open_clip"), expected)
    assert not [
        name
        for name in sys.modules
        if name.startswith(tuple(f"{package}." for package in OWN_PACKAGES))
    ]


# ---- the command ----


def command(*words: object):
    return CliRunner().invoke(app, ["export", *map(str, words)])


def assert_refused(done, about: object, exit_code: int = 2) -> None:
    assert done.exit_code == exit_code, done.output
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"error: {about}")


@pytest.mark.parametrize("target", exports.TARGETS)
def test_the_command_says_how_to_load_what_it_wrote(run, tmp_path, monkeypatch, target):
    monkeypatch.chdir(tmp_path)
    out = Path("new") / ("teacher.safetensors" if target == "safetensors" else "teacher")
    done = command(f"{run}:teacher", "--to", target, "--out", out)
    assert done.exit_code == 0, done.output
    assert "uneven-silc:teacher@" in done.output
    assert str(tmp_path / out) in done.output
    (checked,) = re.findall(r"check it with: silc-bench doctor (\S+)", done.output)
    assert load_model(checked, None).name
    assert [path.name for path in Path("new").iterdir()] == [out.name], "no temporary file is left"
    if target == "open_clip":
        settings = json.loads((out / "open_clip_config.json").read_text())
        assert (
            settings["model_cfg"]["vision_cfg"]["timm_model_name"] == f"local-dir:{tmp_path / out}"
        ), "from any folder"


def test_an_empty_folder_is_as_good_as_none(run, tmp_path):
    assert command(run, "--to", "hf", "--out", tmp_path).exit_code == 0
    assert (tmp_path / "config.json").exists()


@pytest.mark.parametrize("ckpt", ["open_clip:ViT-B-32/random", "foreign.pt", "foreign"])
def test_what_was_not_trained_here_is_refused(tmp_path, monkeypatch, ckpt):
    monkeypatch.chdir(tmp_path)
    torch.save({"a.weight": torch.ones(2)}, "foreign.pt")
    Path("foreign").mkdir()
    with refused(about=ckpt):
        load_trained(ckpt)
    assert_refused(command(ckpt, "--to", "hf", "--out", "out"), ckpt)
    assert not Path("out").exists()


@pytest.mark.parametrize("spec", ["nowhere", "{run}:techer"])
def test_what_is_not_there_is_refused(run, spec):
    with pytest.raises(UserError, match=r"no such file|did you mean teacher"):
        load_trained(spec.format(run=run))


@pytest.mark.parametrize(
    ("target", "out", "about"),
    [
        ("opn_clip", "out", "--to"),
        ("hf", "full", "full"),
        ("hf", "file", "file"),
        ("hf", "dangling", "dangling"),
        ("safetensors", "file.safetensors", "file.safetensors"),
        ("safetensors", "folder.safetensors", "folder.safetensors"),
        ("safetensors", "out", "--out"),
        ("safetensors", "out.safetensors/x", "--out"),
    ],
)
def test_where_it_cannot_go_is_said_before_anything_is_loaded(
    tmp_path, monkeypatch, target, out, about
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(exports, "load_trained", lambda spec: pytest.fail("loaded"))
    Path("full").mkdir()
    Path("folder.safetensors").mkdir()
    files = [Path(name) for name in ("file", "file.safetensors", "full/x")]
    for file in files:
        file.write_text("mine")
    Path("dangling").symlink_to("nowhere")
    with refused(about=about):
        exports.check_target(target, Path(out))
    assert_refused(command("run", "--to", target, "--out", out), about)
    assert [file.read_text() for file in files] == ["mine"] * 3


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_loaded(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(exports, "load_trained", lambda spec: pytest.fail("loaded"))
    (tmp_path / "file").touch()
    done = command("run", "--to", "open_clip", "--out", tmp_path / "file" / "below")
    assert done.exit_code == 2
    assert str(tmp_path / "file") in done.stderr


@pytest.mark.parametrize("target", exports.TARGETS)
def test_a_full_disk_is_one_sentence_and_leaves_nothing(run, tmp_path, monkeypatch, target):
    out = tmp_path / "out.safetensors"

    def full(path, tensors, metadata):
        assert not out.exists(), "not in its place before it is whole"
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    for module in (exports, exports.hf, open_clip):
        monkeypatch.setattr(module, "write_tensors", full)
    with refused(about=out, kind=RunError):
        export(load_trained(str(run)), target, out)
    assert list(tmp_path.iterdir()) == []


def test_what_appears_in_its_place_meanwhile_stays(model, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def slow(path, tensors, metadata):
        out.mkdir()
        (out / "mine").write_text("mine")

    monkeypatch.setattr(exports.hf, "write_tensors", slow)
    with refused(about=out, kind=RunError):
        export(model, "hf", out)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine"]


def test_a_diverged_model_is_not_exported(tmp_path):
    model = made(UNEVEN)
    model.text.norm.weight.data[3] = float("nan")
    with refused(about="uneven-silc:student"):
        export(model, "hf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- damaged and forged exports ----


def with_config(section, **changes):
    """Texts beside the weights with another configuration."""

    def forge(texts, weights):
        config = json.loads(texts["config"])
        config[section].update(changes)
        return {**texts, "config": json.dumps(config)}, weights

    return forge


def with_texts(**changes):
    """``None``: the text is missing."""

    def forge(texts, weights):
        changed = {**texts, **changes}
        return {name: text for name, text in changed.items() if text is not None}, weights

    return forge


def with_weights(**changes):
    def forge(texts, weights):
        changed = {**weights, **changes}
        return texts, {name: value for name, value in changed.items() if value is not None}

    return forge


FORGERIES = {
    "another branch": with_texts(branch="ema"),
    "no branch": with_texts(branch=None),
    "no config": with_texts(config=None),
    "config deep": with_texts(config="[" * 100_000),
    "a million blocks": with_config("vision", depth=10**9),
    "wider": with_config("text", width=10**9, num_heads=1),
    "overflow": with_config("text", vocab_size=10**40),
    "no tokenizer": with_texts(tokenizer=None),
    "longer": with_config("text", context_length=10**9),
    "a tensor less": with_weights(log_scale=None),
    "a tensor more": with_weights(extra=torch.ones(2)),
    "another shape": with_weights(log_scale=torch.ones(2)),
    "not finite": with_weights(log_scale=torch.tensor(math.inf)),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_export_is_one_sentence(tmp_path, forgery):
    model = made(UNEVEN)
    path = tmp_path / "x.safetensors"
    texts, weights = FORGERIES[forgery](native.metadata(model), native.tensors(model))
    tensor_file.write_tensors(path, weights, texts)
    with pytest.raises(UserError, match=re.escape(str(path))) as caught:
        load_model(str(path))
    assert len(str(caught.value)) < 700


def test_only_our_own_files_are_ours(run, exported, tmp_path):
    assert native.is_ours(exported / "safetensors.safetensors")
    assert native.is_ours(checkpoint.find(run))
    assert not native.is_exported(checkpoint.find(run))
    for file in (exported / "hf" / "model.safetensors", exported / "hf" / "config.json", tmp_path):
        assert not native.is_ours(file)
    with refused(about="model.safetensors"):
        native.load_safetensors(exported / "hf" / "model.safetensors")


# ---- parts ----


def test_the_file_is_what_the_library_of_the_format_reads(exported):
    from safetensors import safe_open

    with safe_open(exported / "safetensors.safetensors", "pt") as file:
        assert file.metadata()["format"] == "silc-bench"
        mine = tensor_files.read_safetensors(exported / "safetensors.safetensors")
        assert sorted(file.keys()) == sorted(mine)
        assert all(torch.equal(file.get_tensor(name), value) for name, value in mine.items())


def test_the_ratio_gives_back_every_width():
    for width in (24, 40, 96, 768, 1024, 1152, 1664):
        for mlp_dim in range(1, 6 * width, 7):
            assert int(width * open_clip.ratio(mlp_dim, width)) == mlp_dim
