"""Exports: the other libraries' embeddings, token ids and pixels are ours; refusals; no halves."""

import errno
import json
import math
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import fail, succeed
from PIL import Image
from random_runs import random_model, random_run
from refusals import refused

from silc_bench.errors import RunError, UserError
from silc_bench.models.load import load_model
from silc_bench.trainer.checkpoints import export as exports
from silc_bench.trainer.checkpoints import file as checkpoint
from silc_bench.trainer.checkpoints import model as native
from silc_bench.trainer.checkpoints.early import TARGETS
from silc_bench.trainer.checkpoints.export import export, load_trained
from silc_bench.trainer.checkpoints.libraries import exchange, open_clip
from silc_bench.trainer.config.presets import make_preset

pytestmark = pytest.mark.broad

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


@pytest.fixture(scope="module")
def odd(uneven):
    return random_model(uneven)


@pytest.fixture(scope="module", params=["uneven", "shapes_tiny"])
def model(request, odd):
    return odd if request.param == "uneven" else random_model(make_preset("shapes_tiny"))


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    """{target: where ``model`` was exported to}."""
    folder = tmp_path_factory.mktemp("exports")
    places = {target: folder / target for target in exports.FOLDERS}
    places["safetensors"] = folder / "x.safetensors"
    for target, place in places.items():
        export(model, target, place)
    return places


@pytest.fixture(scope="module")
def run(uneven, tmp_path_factory):
    return random_run(uneven, tmp_path_factory.mktemp("runs") / "a")


def images_of():
    rng = np.random.default_rng(0)
    sizes = [(50, 133), (81, 116), (112, 99)]
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


@torch.no_grad()
def embeddings(model, preprocess, tokens):
    """Of the images and of the texts' tokens."""
    images = torch.stack([preprocess(image) for image in images_of()])
    return model.encode_image(images), model.encode_text(tokens)


def ours(model, texts=PLAIN):
    return embeddings(model, model.preprocess, model.tokenize(texts))


def assert_same(embeddings, expected):
    for theirs, mine in zip(embeddings, expected, strict=True):
        assert (theirs - mine).abs().max() < 1e-5 * mine.abs().max()
        assert torch.cosine_similarity(theirs.double(), mine.double()).min() >= 1 - 1e-6


def through_transformers(folder):
    """Its embeddings, as it reads images and texts; and the logits."""
    import transformers

    network = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    tokens = tokenizer(PLAIN, padding="max_length", truncation=True, return_tensors="pt")
    assert set(tokens) == {"input_ids"}, "the model reads its padding: no mask"
    with torch.no_grad():
        outputs = network(**processor(images_of(), return_tensors="pt"), **tokens)
    both = outputs.vision_model_output.pooler_output, outputs.text_model_output.pooler_output
    return both, outputs.logits_per_image


def through_open_clip(folder):
    """Its embeddings, and the network."""
    import open_clip

    network, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    return embeddings(network.eval(), preprocess, tokenizer(PLAIN)), network


# ---- the same embeddings ----


def test_transformers_gives_the_same_embeddings_and_logits(model, exported):
    both, logits = through_transformers(exported["hf"])
    images, texts = ours(model)
    assert_same(both, (images, texts))
    cosine = torch.cosine_similarity(images[:, None], texts[None], dim=-1)
    expected = model.logit_scale * cosine + model.logit_bias
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-5)


def test_open_clip_gives_the_same_embeddings_and_logits(model, exported):
    both, network = through_open_clip(exported["open_clip"])
    assert_same(both, ours(model))
    assert network.logit_scale.exp().item() == pytest.approx(model.logit_scale)
    assert network.logit_bias.item() == pytest.approx(model.logit_bias)


def test_one_file_is_the_same_model(model, exported):
    again = load_model(str(exported["safetensors"]))
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
    assert all(map(torch.equal, ours(again, NASTY), ours(model, NASTY)))


@pytest.mark.parametrize("branch", ["student", "teacher"])
def test_each_branch_of_a_run(run, tmp_path, branch):
    path = tmp_path / "x.safetensors"
    model = load_trained(f"{run}:{branch}")
    export(model, "safetensors", path)
    for again in (load_model(str(path)), load_model(f"{path}:{branch}")):
        assert (again.name, again.revision) == (model.name, model.revision)
    other = "teacher" if branch == "student" else "student"
    with refused(about=f"{path}:{other}"):
        load_model(f"{path}:{other}")


def test_an_export_can_be_exported(exported, tmp_path):
    export(load_trained(str(exported["safetensors"])), "hf", tmp_path / "hf")
    for file in exported["hf"].iterdir():
        assert (tmp_path / "hf" / file.name).read_bytes() == file.read_bytes(), file.name


# ---- texts and images ----


def test_transformers_reads_texts_as_we_do(model, exported):
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(exported["hf"])
    tokens = [tokenizer(text, padding="max_length", truncation=True).input_ids for text in NASTY]
    assert tokens == model.tokenize(NASTY).tolist(), "the trained length is known to the tokenizer"


def test_open_clip_reads_texts_as_we_do_after_its_own_repair(model, exported):
    import open_clip
    from open_clip.tokenizer import basic_clean, whitespace_clean

    tokenizer = open_clip.get_tokenizer(f"local-dir:{exported['open_clip']}")
    assert torch.equal(tokenizer(PLAIN), model.tokenize(PLAIN))
    cleaned = [whitespace_clean(basic_clean(text)) for text in NASTY]
    assert torch.equal(tokenizer(NASTY), model.tokenize(cleaned))


def test_images_become_the_same_pixels(model, exported):
    import open_clip
    import transformers

    _, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{exported['open_clip']}")
    exact = transformers.AutoImageProcessor.from_pretrained(exported["hf"], backend="pil")
    default = transformers.AutoImageProcessor.from_pretrained(exported["hf"])
    for image in images_of():
        expected = model.preprocess(image)
        assert torch.equal(preprocess(image), expected)
        assert torch.equal(torch.as_tensor(exact(image).pixel_values[0]), expected)
        difference = torch.as_tensor(default(image).pixel_values[0]) - expected
        assert difference.abs().max() < 3 / 127.5


HOW = [{}, {"padding": True}, {"padding": "max_length"}, {"padding": True, "truncation": True}]


@pytest.mark.parametrize("asked", HOW, ids=str)
@pytest.mark.parametrize("texts", [PLAIN, PLAIN[:1]])
def test_a_processor_pads_texts_to_the_trained_length_however_it_is_asked(
    model, exported, texts, asked
):
    import transformers

    processor = transformers.AutoProcessor.from_pretrained(exported["hf"], backend="pil")
    inputs = processor(text=texts, images=images_of(), return_tensors="pt", **asked)
    assert set(inputs) == {"input_ids", "pixel_values"}
    assert torch.equal(inputs["input_ids"], model.tokenize(texts))
    assert torch.equal(
        inputs["pixel_values"], torch.stack(list(map(model.preprocess, images_of())))
    )


@pytest.mark.parametrize("length", [12, 64, 70])
def test_transformers_pipeline_is_right_by_itself_or_with_the_line_that_is_printed(
    uneven, tmp_path, length
):
    import transformers

    text = replace(uneven.text, context_length=length)
    run = random_run(replace(uneven, text=text), tmp_path / "run")
    said = succeed(f"export {run} --to hf --out {tmp_path / 'hf'}")
    pipe = transformers.pipeline(
        "zero-shot-image-classification", str(tmp_path / "hf"), image_processor=None
    )
    pipe.image_processor = transformers.AutoImageProcessor.from_pretrained(
        tmp_path / "hf", backend="pil"
    )
    lines = re.findall(r"it is right: (.*)", said)
    assert bool(lines) == (length != 64)
    model = native.load(run)
    expected = [pytest.approx(score, abs=1e-5) for score in scores_of(model)]

    # what the note warns of does happen
    if length < 64:
        with pytest.raises(ValueError, match="64"):
            pipeline_scores(pipe)
    elif length > 64:
        assert pipeline_scores(pipe) != expected
    for line in lines:
        exec(line, {"pipe": pipe})
    assert pipeline_scores(pipe) == expected


LABELS = PLAIN[:4]


def pipeline_scores(pipe):
    scores = pipe(images_of()[0], candidate_labels=LABELS, hypothesis_template="{}")
    by_label = {entry["label"]: entry["score"] for entry in scores}
    return [by_label[label] for label in LABELS]


@torch.no_grad()
def scores_of(model):
    image = model.encode_image(model.preprocess(images_of()[0])[None])
    texts = model.encode_text(model.tokenize(LABELS))
    cosine = torch.cosine_similarity(image, texts)
    return torch.sigmoid(model.logit_scale * cosine + model.logit_bias).tolist()


# ---- without us ----


OWN_PACKAGES = ("silc_bench", "trainer", "tasks")


def test_the_libraries_import_nothing_of_ours(model, exported, tmp_path, monkeypatch):
    """In this process, where our packages cannot be imported meanwhile.

    The transformers folder has been moved.
    """
    expected = ours(model)
    shutil.copytree(exported["hf"], tmp_path / "moved")
    for name in [name for name in sys.modules if name.split(".")[0] in OWN_PACKAGES]:
        monkeypatch.delitem(sys.modules, name)
    for name in OWN_PACKAGES:
        monkeypatch.setitem(sys.modules, name, None)  # an import of it fails
    assert_same(through_transformers(tmp_path / "moved")[0], expected)
    assert_same(through_open_clip(exported["open_clip"])[0], expected)


# ---- the command ----


@pytest.mark.parametrize("target", TARGETS)
def test_the_command_says_how_to_load_what_it_wrote(run, tmp_path, monkeypatch, target):
    monkeypatch.chdir(tmp_path)
    out = Path("new") / ("teacher.safetensors" if target == "safetensors" else "teacher")
    if target == "hf":
        out.mkdir(parents=True)  # an empty folder is as good as none
    said = succeed(f"export {run}:teacher --to {target} --out {out}")
    assert f"{run.name}:teacher@" in said
    assert str(tmp_path / out) in said
    (checked,) = re.findall(r"check it with: silc-bench doctor (\S+)", said)
    assert load_model(checked, None).name
    assert [path.name for path in Path("new").iterdir()] == [out.name], "no temporary file is left"
    if target == "open_clip":
        settings = json.loads((out / "open_clip_config.json").read_text())
        tower = settings["model_cfg"]["vision_cfg"]["timm_model_name"]
        assert tower == f"local-dir:{tmp_path / out}", "from any folder"


@pytest.mark.parametrize(
    ("ckpt", "about"),
    [
        ("open_clip:ViT-B-32/random", "open_clip:ViT-B-32/random"),
        ("foreign.pt", "foreign.pt"),
        ("foreign", "foreign"),
        ("nowhere", "nowhere: no such file"),
        ("{run}:techer", "teacher"),
    ],
)
def test_what_was_not_trained_here_is_refused(run, tmp_path, monkeypatch, ckpt, about):
    monkeypatch.chdir(tmp_path)
    torch.save({"a.weight": torch.ones(2)}, "foreign.pt")
    Path("foreign").mkdir()
    fail(f"export {ckpt.format(run=run)} --to hf --out out", about)
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("target", "out", "about"),
    [
        ("opn_clip", "out", "--to"),
        ("hf", "full", "full"),
        ("hf", "file", "file"),
        ("hf", "dangling", "dangling"),
        ("open_clip", "file/below", "file"),
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
    for folder in ("full", "folder.safetensors"):
        Path(folder).mkdir()
    files = [Path(name) for name in ("file", "file.safetensors", "full/x")]
    for file in files:
        file.write_text("mine")
    Path("dangling").symlink_to("nowhere")
    fail(f"export run --to {target} --out {out}", about)
    assert [file.read_text() for file in files] == ["mine"] * 3


@pytest.mark.parametrize("target", TARGETS)
def test_a_full_disk_is_one_sentence_and_leaves_nothing(odd, tmp_path, monkeypatch, target):
    out = tmp_path / "out.safetensors"

    def full(path, tensors, metadata):
        assert not out.exists(), "not in its place before it is whole"
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(exports, "write_tensors", full)
    with refused(about=out, kind=RunError):
        export(odd, target, out)
    assert list(tmp_path.iterdir()) == []


def test_what_appears_in_its_place_meanwhile_stays(odd, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def slow(path, tensors, metadata):
        out.mkdir()
        (out / "mine").touch()

    monkeypatch.setattr(exports, "write_tensors", slow)
    with refused(about=out, kind=RunError):
        export(odd, "hf", out)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine"]


def test_a_diverged_model_is_not_exported(uneven, tmp_path):
    model = random_model(uneven)
    model.text.norm.weight.data[3] = math.nan
    with refused(about="own:student"):
        export(model, "hf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- damaged and forged exports ----

# Changes of the texts, of their configuration (with a point) and of the weights; None: left out.
FORGERIES = {
    "another branch": {"branch": "ema"},
    "no branch": {"branch": None},
    "no name": {"name": ""},
    "no step": {"step": "-1"},
    "no config": {"config": None},
    "config deep": {"config": "[" * 100_000},
    "a million blocks": {"vision.depth": 10**9},
    "overflow": {"text.vocab_size": 10**40},
    "no tokenizer": {"tokenizer": None},
    "a tensor less": {"log_scale": None},
    "a tensor more": {"extra": torch.ones(2)},
    "not finite": {"log_scale": torch.tensor(math.inf)},
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_export_is_one_sentence(odd, tmp_path, forgery):
    texts, weights = native.metadata(odd), native.tensors(odd)
    config = json.loads(texts["config"])
    for name, value in FORGERIES[forgery].items():
        section, _, field = name.rpartition(".")
        if section:
            config[section][field] = value
            texts["config"] = json.dumps(config)
        else:
            (texts if name in texts else weights)[name] = value

    path = tmp_path / "x.safetensors"
    kept = [
        {name: value for name, value in part.items() if value is not None}
        for part in (weights, texts)
    ]
    exchange.write_tensors(path, *kept)
    with pytest.raises(UserError, match=re.escape(str(path))) as caught:
        load_model(str(path))
    assert len(str(caught.value)) < 700


def test_only_our_own_files_are_ours(run, exported, tmp_path):
    weights = exported["hf"] / "model.safetensors"
    assert native.is_ours(exported["safetensors"])
    assert native.is_ours(checkpoint.find(run))
    assert not native.is_exported(checkpoint.find(run))
    assert not any(map(native.is_ours, (weights, exported["hf"] / "config.json", tmp_path)))
    with refused(about="model.safetensors"):
        native.load_safetensors(weights)


# ---- parts ----


def test_the_ratio_gives_back_every_width():
    for width in (24, 40, 96, 768, 1024, 1152, 1664):
        for mlp_dim in range(1, 6 * width, 7):
            assert int(width * open_clip.ratio(mlp_dim, width)) == mlp_dim
