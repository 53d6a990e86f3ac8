"""transformers' embeddings, pixels and token ids, a tiny model a kind; traps; what is refused.

The models are random.
"""

from __future__ import annotations

import inspect
import json
import os
import shutil
import sys
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize
from typer.testing import CliRunner

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parents[2]))

import hf_folders
from hf_folders import KINDS, LENGTH, SIZE, change

from silc_bench.cli import app as cli
from silc_bench.errors import UserError
from silc_bench.models.adapters.huggingface import model as hf
from silc_bench.models.adapters.huggingface.naflex import naflex_grid, unpack
from silc_bench.models.adapters.huggingface.text import without_padding
from silc_bench.models.adapters.huggingface.towers import embedding_of
from silc_bench.models.interface import DenseModel, ImageTextModel
from silc_bench.models.load import load_model

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.broad
IS_5 = int(transformers.__version__.split(".")[0]) >= 5
SQUARES = [kind for kind in KINDS if kind != "naflex"]
SIZES = [(211, 97), (40, 333), (32, 32), (7, 5), (33, 31), (64, 64)]
WORDS = [
    "a photo of",
    "A Red RING",
    "don't",
    "the stars,",
    "café",
    "Straße",
    "ÀÉÎ",
    "東京",
    "\U0001f600",
    "x" * 40,
    "  two\nlines\t",
]
TEXTS = [
    "",
    " ",
    "A cat",
    *(" ".join(WORDS[(i * 7 + j) % 11] for j in range(1 + i % 9)) for i in range(47)),
]


def picture(width, height):
    pixels = np.random.default_rng(width * 1000 + height).integers(
        0, 256, (height, width, 3), dtype=np.uint8
    )
    return Image.fromarray(pixels)


def close(left, right):
    return torch.allclose(left, right, rtol=1e-5, atol=1e-5)


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def library_pixels(folder, pictures):
    """What the library's own processor over Pillow makes of them."""
    backend = {"backend": "pil"} if IS_5 else {"use_fast": False}
    return transformers.AutoImageProcessor.from_pretrained(folder, **backend)(
        pictures, return_tensors="pt"
    )


def library_tokens(kind, folder, texts):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    if kind in ("siglip2", "naflex") and type(tokenizer).__name__ != "Siglip2Tokenizer":
        texts = [text.lower() for text in texts]
    options = {
        "padding": "max_length",
        "truncation": True,
        "max_length": LENGTH,
        "return_tensors": "pt",
    }
    inputs = tokenizer(texts, return_attention_mask=True, **options)
    return {key: inputs[key] for key in ("input_ids", "attention_mask")}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("hf")
    return {kind: hf_folders.write(kind, root / kind) for kind in KINDS}


@pytest.fixture(scope="module")
def models(folders):
    """Each kind once: ours, and the library's own, with the attention written out."""
    known = {}

    def pair(kind):
        if kind not in known:
            ours = load_model(f"hf:{folders[kind]}")
            theirs = transformers.AutoModel.from_pretrained(
                folders[kind], attn_implementation="eager"
            )
            known[kind] = ours, theirs.float().eval().requires_grad_(False)
        return known[kind]

    return pair


@pytest.fixture
def copy(folders, tmp_path):
    """A folder of one kind that may be changed."""
    return lambda kind: Path(shutil.copytree(folders[kind], tmp_path / kind))


# ---- the library's own ----


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_and_image_embeddings_are_the_librarys_own(kind, models, folders):
    ours, theirs = models(kind)
    pictures = [picture(*size) for size in SIZES]
    inputs = library_pixels(folders[kind], pictures)
    pixels = torch.stack([ours.preprocess(image) for image in pictures])
    if kind == "naflex":
        patches, mask, grids = unpack(pixels)
        assert torch.equal(mask, inputs["pixel_attention_mask"].long())
        assert torch.equal(grids, inputs["spatial_shapes"].long())
        assert len({tuple(grid) for grid in grids.tolist()}) > 3
        assert torch.equal(patches, inputs["pixel_values"])
    else:
        assert torch.equal(pixels, inputs["pixel_values"])
    embeddings = ours.encode_image(pixels)
    assert embeddings.dtype == torch.float32
    assert embeddings.shape == (len(SIZES), ours.embed_dim)
    assert close(embeddings, embedding_of(theirs.get_image_features(**inputs)))


@pytest.mark.parametrize("kind", KINDS)
def test_token_ids_and_text_embeddings_are_the_librarys_own(kind, models, folders):
    ours, theirs = models(kind)
    inputs = library_tokens(kind, folders[kind], TEXTS)
    tokens = ours.tokenize(TEXTS)
    assert tokens.dtype == torch.int64
    assert torch.equal(tokens, inputs["input_ids"])
    if kind in ("siglip", "siglip2", "naflex"):  # trained to attend to the padding
        del inputs["attention_mask"]
    assert close(ours.encode_text(tokens), embedding_of(theirs.get_text_features(**inputs)))


@pytest.mark.parametrize("kind", KINDS)
def test_it_keeps_the_protocol(kind, models):
    ours, theirs = models(kind)
    assert isinstance(ours, ImageTextModel)
    assert isinstance(ours, DenseModel) == (kind != "naflex")
    assert ours.name == f"hf:{kind}"
    assert ours.image_size == SIZE
    assert ours.logit_scale == pytest.approx(theirs.logit_scale.exp().item())
    assert ours.logit_bias == pytest.approx(
        theirs.logit_bias.item() if "sig" in kind or kind == "naflex" else 0.0
    )
    num_scalars = 1 if ours.logit_bias == 0 else 2
    assert (
        ours.num_params == sum(parameter.numel() for parameter in theirs.parameters()) - num_scalars
    )
    json.dumps([ours.image_protocol, ours.text_protocol], allow_nan=False)
    pixels = torch.stack([ours.preprocess(picture(*size)) for size in SIZES[:2]])
    for point, width in ours.feature_points.items():
        assert ours.encode_image(pixels, point).shape == (2, width)


@pytest.mark.parametrize("kind", ["clip", "altclip", "chinese_clip"])
def test_feature_points_of_a_class_token(kind, models):
    ours, theirs = models(kind)
    images = noise(3, 3, SIZE, SIZE)
    vision = theirs.vision_model(pixel_values=images)
    assert close(ours.encode_image(images, "pre_projection"), vision.pooler_output)
    assert close(
        ours.encode_image(images, "pooled"), theirs.visual_projection(vision.pooler_output)
    )
    patches = theirs.vision_model.post_layernorm(vision.last_hidden_state[:, 1:])
    assert close(ours.encode_dense(images, ["tokens"])["tokens"].flatten(1, 2), patches)
    assert close(ours.encode_image(images, "mean_patch"), patches.mean(dim=1))


@pytest.mark.parametrize("kind", ["siglip", "siglip2"])
def test_feature_points_of_a_pooling_head(kind, models):
    ours, theirs = models(kind)
    images = noise(3, 3, SIZE, SIZE)
    patches = theirs.vision_model(pixel_values=images).last_hidden_state
    assert close(ours.encode_dense(images, ["tokens"])["tokens"].flatten(1, 2), patches)
    assert close(ours.encode_image(images, "mean_patch"), patches.mean(dim=1))


def test_the_mean_patch_of_naflex_leaves_out_the_padding(models, folders):
    ours, theirs = models("naflex")
    pictures = [picture(*size) for size in SIZES]
    inputs = library_pixels(folders["naflex"], pictures)
    tokens = theirs.vision_model(
        inputs["pixel_values"], inputs["pixel_attention_mask"], inputs["spatial_shapes"]
    )[0]
    kept = inputs["pixel_attention_mask"].bool()
    expected = torch.stack([row[mask].mean(dim=0) for row, mask in zip(tokens, kept, strict=True)])
    assert not kept.all()
    assert close(
        ours.encode_image(
            torch.stack([ours.preprocess(image) for image in pictures]), "mean_patch"
        ),
        expected,
    )


# ---- dense ----


@pytest.mark.parametrize("kind", SQUARES)
def test_joint_features_are_what_the_library_says_of_a_patch_left_alone(kind, models):
    """A sequence of one token attends to nothing else.

    So each patch goes alone through the library's own last block or pooling head.
    """
    ours, theirs = models(kind)
    images, vision = noise(2, 3, SIZE, SIZE), theirs.vision_model
    expected = []
    if "siglip" in kind:
        tokens = vision(pixel_values=images).last_hidden_state
        expected = [vision.head(tokens[:, i : i + 1]) for i in range(tokens.shape[1])]
    else:
        entering = []
        last = vision.encoder.layers[-1]
        hook = last.register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0]))
        vision(pixel_values=images)
        hook.remove()
        for i in range(1, entering[0].shape[1]):
            # transformers 4 wants each named
            masks = (None,) * (len(inspect.signature(last.forward).parameters) - 2)
            output = last(entering[0][:, i : i + 1], *masks)
            output = output if torch.is_tensor(output) else output[0]
            expected.append(theirs.visual_projection(vision.post_layernorm(output[:, 0])))
    dense = ours.encode_dense(images, ["maskclip"])["maskclip"]
    assert dense.shape == (2, SIZE // 8, SIZE // 8, ours.embed_dim)
    assert close(dense.flatten(1, 2), torch.stack(expected, dim=1))


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_other_sizes_keep_positions_where_they_are(kind, folders):
    """Positions that do not vary over the grid are the same on any grid, however interpolated."""
    ours = load_model(f"hf:{folders[kind]}")
    theirs = (
        transformers.AutoModel.from_pretrained(folders[kind], attn_implementation="eager")
        .float()
        .eval()
    )
    first = 1 if kind == "clip" else 0
    for network in (ours.network, theirs):
        positions = network.vision_model.embeddings.position_embedding.weight
        positions.data[first:] = positions.data[first]
    images = noise(2, 3, 48, 72)
    with torch.no_grad():
        expected = embedding_of(
            theirs.get_image_features(pixel_values=images, interpolate_pos_encoding=True)
        )
    assert close(ours.encode_image(images), expected)
    for features in ours.encode_dense(images, ours.dense_methods).values():
        assert features.shape[:3] == (2, 6, 9)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_size_that_does_not_divide_is_refused(kind, models):
    with pytest.raises(UserError, match="48 x 50 pixels do not divide into patches of 8"):
        models(kind)[0].encode_image(noise(1, 3, 48, 50))


def test_the_trained_size_need_not_divide(tmp_path):
    """SigLIP So400m has 27 patches of 14 pixels in 384: the rest is not seen."""
    folder = hf_folders.write("siglip", tmp_path / "so")
    config = transformers.AutoConfig.from_pretrained(folder)
    config.vision_config.image_size = 36
    theirs = hf_folders.network_of(config)
    theirs.save_pretrained(folder)
    change(folder / "preprocessor_config.json", size={"height": 36, "width": 36})
    ours = load_model(f"hf:{folder}")
    images = noise(2, 3, 36, 36)
    with torch.no_grad():
        assert close(
            ours.encode_image(images), embedding_of(theirs.get_image_features(pixel_values=images))
        )
    assert ours.encode_dense(images, ["maskclip"])["maskclip"].shape[1:3] == (4, 4)


# ---- traps ----


def test_a_text_tower_that_pools_the_padding_never_sees_a_mask(models, folders):
    for kind in ("siglip", "siglip2", "naflex"):
        ours, theirs = models(kind)
        inputs = library_tokens(kind, folders[kind], ["a cat"])
        masked = embedding_of(theirs.get_text_features(**inputs))
        embedding = ours.encode_text(ours.tokenize(["a cat"]))
        assert (embedding - masked).abs().max() > 1e-2, (
            "the trap is real: a mask changes the result"
        )
        assert ours.text_protocol["padding_is_masked"] is False


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_alone_equals_itself_among_longer_ones(kind, models):
    ours, _ = models(kind)
    alone, among = ours.tokenize(["a cat"]), ours.tokenize(["a cat", WORDS[9] * 9])
    assert alone.shape == (1, LENGTH)
    assert torch.equal(alone[0], among[0])
    assert close(ours.encode_text(alone), ours.encode_text(among)[:1])


@pytest.mark.parametrize("kind", ["siglip2", "naflex"])
def test_siglip2_reads_lower_case_whatever_the_librarys_tokenizer_does(kind, models, folders):
    ours, _ = models(kind)
    raw = transformers.GemmaTokenizerFast if not IS_5 else transformers.GemmaTokenizer
    tokenizer = raw.from_pretrained(folders[kind])
    upper, lower = (
        tokenizer([text])["input_ids"] for text in ("A Photo of two CATS", "a photo of two cats")
    )
    assert upper != lower, "the trap is real: the tokenizer that the files name keeps capitals"
    assert torch.equal(
        ours.tokenize(["A Photo of two CATS"]), ours.tokenize(["a photo of two cats"])
    )
    assert ours.tokenize(["a photo of two cats"])[0].tolist()[: len(lower[0])] == lower[0]
    assert ours.text_protocol["cleaning"] == "lower"


def test_siglip_texts_are_canonical(tmp_path):
    spm = pytest.importorskip(
        "sentencepiece", reason="SigLIP's own tokenizer needs the package sentencepiece"
    )
    folder = hf_folders.write("siglip", tmp_path / "siglip")
    (folder / "tokenizer.json").unlink()
    (tmp_path / "corpus").write_text(
        "\n".join(text.lower() for text in hf_folders.CORPUS * 20), encoding="utf-8"
    )
    spm.SentencePieceTrainer.train(
        input=str(tmp_path / "corpus"),
        model_prefix=str(folder / "spiece"),
        vocab_size=40,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    hf_folders.write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "SiglipTokenizer", "model_max_length": 64},
    )
    ours = load_model(f"hf:{folder}")
    assert torch.equal(ours.tokenize(TEXTS), library_tokens("siglip", folder, TEXTS)["input_ids"])
    assert torch.equal(ours.tokenize(["A photo, of a CAT!"]), ours.tokenize(["a  photo of a cat"]))
    change(folder / "tokenizer_config.json", do_lower_case=False)
    cased = load_model(f"hf:{folder}")
    assert cased.text_protocol["cleaning"] == "no ASCII punctuation"
    assert torch.equal(cased.tokenize(TEXTS), library_tokens("siglip", folder, TEXTS)["input_ids"])
    assert not torch.equal(cased.tokenize(["a CAT"]), cased.tokenize(["a cat"]))


def test_a_siglip_whose_tokenizer_keeps_capitals_is_refused_unless_it_says_so(copy):
    folder = copy("siglip")
    assert load_model(f"hf:{folder}").text_protocol["cleaning"] == "none", (
        "its own normaliser lowers"
    )
    change(folder / "tokenizer.json", normalizer=None)
    with pytest.raises(
        UserError,
        match="a PreTrainedTokenizer that tells capitals apart, but SigLIP read lower-cased text",
    ):
        load_model(f"hf:{folder}")
    change(folder / "tokenizer_config.json", do_lower_case=False)
    cased = load_model(f"hf:{folder}")
    assert not torch.equal(cased.tokenize(["a CAT"]), cased.tokenize(["a cat"]))


@pytest.mark.parametrize("kind", ["clip", "clip_old_eos"])
@torch.no_grad()
def test_clips_causal_tower_reads_no_padding(kind, models):
    """Cut behind the batch's longest text: the library's answer at full length, from less work."""
    ours, theirs = models(kind)
    seen = []
    handle = ours.network.text_model.register_forward_pre_hook(
        lambda module, args, keywords: seen.append(
            (keywords.get("input_ids", args[0] if args else None)).shape[1]
        ),
        with_kwargs=True,
    )
    try:
        for texts in (["a cat"], ["a", "a red ring"], [""], TEXTS):
            tokens = ours.tokenize(texts)
            assert tokens.shape[1] == LENGTH
            whole = embedding_of(theirs.get_text_features(input_ids=tokens))
            torch.testing.assert_close(ours.encode_text(tokens), whole, rtol=1e-6, atol=1e-6)
            exact = deepcopy(ours.network).double()  # in twice the digits, to twice the digits
            cut = without_padding(tokens, theirs.config.text_config.eos_token_id)
            long, short = (
                embedding_of(exact.get_text_features(input_ids=ids)) for ids in (tokens, cut)
            )
            torch.testing.assert_close(short, long, rtol=0, atol=1e-13)
    finally:
        handle.remove()
    read = seen[::3]  # the copies for the exact answers carry the hook along
    assert read[0] < LENGTH
    assert read[2:] == [2, LENGTH], (
        "start and end alone; and texts of which some are cut to the length"
    )


@pytest.mark.parametrize("kind", ["siglip", "altclip", "chinese_clip"])
@torch.no_grad()
def test_towers_that_are_not_causal_are_left_whole(kind, models):
    ours, _ = models(kind)
    tokens, seen = ours.tokenize(["a cat"]), []
    with pytest.MonkeyPatch.context() as patch:
        real = ours.network.get_text_features
        patch.setattr(
            ours.network,
            "get_text_features",
            lambda input_ids, **rest: seen.append(input_ids) or real(input_ids, **rest),
        )
        ours.encode_text(tokens)
    assert seen[0].shape[1] == LENGTH


def test_clip_pools_the_end_of_text_in_old_configurations_too(models):
    for kind in ("clip", "clip_old_eos"):
        ours, _ = models(kind)
        tokens = ours.tokenize(["a cat", ""])
        end = ours.reader.tokenizer.eos_token_id
        after = tokens.clone()
        for row, ids in enumerate(tokens.tolist()):
            # what follows the first end-of-text token is never looked at
            after[row, ids.index(end) + 1 :] = 5
        assert close(ours.encode_text(tokens), ours.encode_text(after))
    assert models("clip")[0].revision != models("clip_old_eos")[0].revision


@pytest.mark.parametrize("eos", [3, 100])
def test_a_tokenizer_that_ends_texts_otherwise_than_the_tower_pools_is_refused(copy, eos):
    folder = copy("clip")
    config = json.loads((folder / "config.json").read_text())
    change(folder / "config.json", text_config={**config["text_config"], "eos_token_id": eos})
    with pytest.raises(UserError, match=f"eos_token_id {eos}.*different models"):
        load_model(f"hf:{folder}")


def test_tokens_that_the_tower_does_not_know_are_refused(copy):
    folder = copy("clip")
    vocab = json.loads((folder / "vocab.json").read_text())
    vocab = {token: index + (0 if index < 500 else 1000) for token, index in vocab.items()}
    hf_folders.write_json(folder / "vocab.json", vocab)
    config = json.loads((folder / "config.json").read_text())
    change(
        folder / "config.json",
        text_config={**config["text_config"], "eos_token_id": max(vocab.values())},
    )
    ours = load_model(f"hf:{folder}")
    with pytest.raises(UserError, match="the text tower knows 521"):
        ours.tokenize(["a cat"])


def test_both_forms_of_what_the_library_returns():
    embeddings = noise(2, 4)
    assert embedding_of(embeddings) is embeddings
    assert (
        embedding_of(SimpleNamespace(last_hidden_state=noise(2, 3, 4), pooler_output=embeddings))
        is embeddings
    )


def test_weights_are_not_rounded_to_the_dtype_that_the_configuration_names(copy, models):
    folder = copy("clip")
    change(folder / "config.json", dtype="float16", torch_dtype="float16")
    assert load_model(f"hf:{folder}").revision == models("clip")[0].revision


@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (1, 3000), (480, 640), (97, 211), (5000, 37), (224, 224)]
)
@pytest.mark.parametrize("limit", [1, 20, 256])
def test_naflex_grids_are_the_librarys_own(height, width, limit):
    module = (
        transformers.models.siglip2.image_processing_pil_siglip2
        if IS_5
        else transformers.models.siglip2.image_processing_siglip2
    )
    expected = module.get_image_size_for_max_num_patches(height, width, 16, limit)
    assert naflex_grid(height, width, 16, limit) == (expected[0] // 16, expected[1] // 16)


# ---- preprocessing ----


FORMS = {
    "openai": {"crop_size": 32, "size": 32, "do_resize": True, "do_normalize": True},
    "larger": {"size": {"shortest_edge": 41}},
    "squash": {"size": {"height": 37, "width": 37}},
    "bilinear": {"resample": 2},
    "raw": {"do_normalize": False},
    "padded": {"size": {"shortest_edge": 20}},
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_preprocessing(form, copy):
    folder = copy("clip")
    change(folder / "preprocessor_config.json", **FORMS[form])
    ours = load_model(f"hf:{folder}")
    pictures = [picture(*size) for size in SIZES]
    expected = library_pixels(folder, pictures)["pixel_values"]
    assert torch.equal(
        torch.stack([ours.preprocess(image) for image in pictures]), expected.float()
    )


def test_preprocessing_as_transformers_5_writes_it(copy, models):
    folder = copy("clip")
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    hf_folders.write_json(
        folder / "processor_config.json",
        {"image_processor": settings, "processor_class": "CLIPProcessor"},
    )
    assert load_model(f"hf:{folder}").image_protocol == models("clip")[0].image_protocol


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("clip", {"rescale_factor": 1.0}, "rescale_factor: 1.0; only 1/255"),
        ("clip", {"do_resize": False}, "do_resize: false"),
        ("clip", {"resample": 7}, "resample: 7; known: 0 .nearest."),
        ("clip", {"resample": None}, "resample: None"),
        ("clip", {"size": None}, "says size: None"),
        ("clip", {"size": {"height": 32, "width": 40}}, "only squares"),
        (
            "clip",
            {"crop_size": 24},
            "pictures of 24 pixels a side, but config.json is of a tower for 32",
        ),
        ("clip", {"do_center_crop": False}, "shortest edge without a crop"),
        ("clip", {"image_mean": [0.5]}, "image_mean: .0.5.; expected three numbers"),
        (
            "clip",
            {"image_processor_type": "ViltImageProcessor"},
            "is of ViltImageProcessor; what is known",
        ),
        ("naflex", {"patch_size": 16}, "patches of 16 pixels, but config.json is of a tower for 8"),
        ("naflex", {"max_num_patches": None}, "max_num_patches: None"),
        ("naflex", {"image_processor_type": "SiglipImageProcessor"}, "needs Siglip2ImageProcessor"),
    ],
)
def test_preprocessing_that_cannot_be_reproduced_is_refused(copy, kind, fields, message):
    folder = copy(kind)
    change(folder / "preprocessor_config.json", **fields)
    with pytest.raises(UserError, match=message):
        load_model(f"hf:{folder}")


# ---- files ----


def test_weights_in_any_safe_form_are_the_same_model(copy, models, tmp_path):
    folder, ours = copy("clip"), models("clip")[0]
    state = models("clip")[1].state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    assert load_model(f"hf:{folder}").revision == ours.revision
    (folder / "pytorch_model.bin").unlink()
    state["logit_scale"] = torch.tensor(1.0)
    # the model's own stays
    state["vision_model.post_layernorm.bias"] = state["vision_model.post_layernorm.bias"] + 1
    torch.save({"state_dict": state}, tmp_path / "tuned.pt")
    tuned = hf.load(str(folder), weights=tmp_path / "tuned.pt")
    assert tuned.name == "hf:clip/tuned"
    assert tuned.logit_scale == pytest.approx(np.e)
    assert tuned.revision != ours.revision


def test_the_activation_is_part_of_the_revision(copy, models):
    folder = copy("clip")
    config = json.loads((folder / "config.json").read_text())
    change(folder / "config.json", vision_config={**config["vision_config"], "hidden_act": "gelu"})
    assert load_model(f"hf:{folder}").revision != models("clip")[0].revision


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_missing_files_are_named(copy, name):
    folder = copy("clip")
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"lacks {name}"):
        load_model(f"hf:{folder}")


def test_a_missing_tokenizer_and_shard_are_named(copy):
    folder = copy("siglip")
    (folder / "tokenizer.json").unlink()
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"logit_scale": "model-00001-of-00002.safetensors"}}
    hf_folders.write_json(folder / "model.safetensors.index.json", index)
    with pytest.raises(UserError, match=r"lacks a tokenizer .*; model-00001-of-00002.safetensors"):
        load_model(f"hf:{folder}")


def _damage_weights(folder):
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000])


def _other_weights(folder):
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    state["visual_projection.bias"] = state.pop("logit_scale").view(1)
    save_file(state, folder / "model.safetensors")


def _other_shape(folder):
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    state["text_projection.weight"] = torch.zeros(7, 24)
    save_file(state, folder / "model.safetensors")


DAMAGES = {
    "no JSON": (
        lambda folder: (folder / "config.json").write_text("{"),
        "config.json is no configuration",
    ),
    "no type": (
        lambda folder: change(folder / "config.json", model_type=None),
        "names no model_type",
    ),
    "type": (
        lambda folder: change(folder / "config.json", model_type="clipseg"),
        "unknown model_type 'clipseg'.*siglip2",
    ),
    "code": (
        lambda folder: change(folder / "config.json", auto_map={"AutoModel": "x.Y"}),
        "asks for code of its own",
    ),
    "tokenizer code": (
        lambda f: change(f / "tokenizer_config.json", auto_map={"AutoTokenizer": ["x.Y", None]}),
        "asks for code",
    ),
    "heads": (
        lambda folder: _vision(folder, num_attention_heads=5),
        "does not describe a CLIPModel|hold the weights",
    ),
    "activation": (
        lambda folder: _vision(folder, hidden_act="no such"),
        "does not describe a CLIPModel",
    ),
    "tokenizer": (
        lambda folder: (folder / "vocab.json").write_text("[1"),
        "tokenizer's files .* cannot be read",
    ),
    "weights": (_damage_weights, "model.safetensors"),
    "names": (
        _other_weights,
        r"lacks 1 \(logit_scale\) and has besides 1 \(visual_projection.bias\)",
    ),
    "shape": (_other_shape, r"has in other shapes 1 \(text_projection.weight"),
}


def _vision(folder, **fields):
    config = json.loads((folder / "config.json").read_text())
    change(folder / "config.json", vision_config={**config["vision_config"], **fields})


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_one_sentence(damage, copy):
    folder = copy("clip")
    spoil, message = DAMAGES[damage]
    spoil(folder)
    with pytest.raises(UserError, match=message) as caught:
        load_model(f"hf:{folder}")
    assert "\n" not in str(caught.value)


def test_names_are_looked_up_in_the_hubs_cache_without_a_network(
    folders, models, tmp_path, monkeypatch
):
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        UserError,
        match=r"hf:org/tiny .* bring config.json, model.safetensors, preprocessor_config.json",
    ):
        load_model("hf:org/tiny")
    cached = tmp_path / "models--org--tiny"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(commit)
    shutil.copytree(folders["clip"], cached / "snapshots" / commit)
    model = load_model("hf:org/tiny")
    assert (model.name, model.revision) == ("hf:tiny", models("clip")[0].revision)
    with pytest.raises(UserError, match="no such folder; hf: takes a folder"):
        load_model("hf:/no/such/folder")


# ---- end to end ----


def test_eval_measures_a_folder(folders, tmp_path):
    options = [
        "--tasks",
        "shapes/knn",
        "--limit",
        "20",
        "--device",
        "cpu",
        "--results",
        str(tmp_path),
    ]
    for kind in ("siglip2", "naflex"):
        result = CliRunner().invoke(cli.app, ["eval", "--ckpt", f"hf:{folders[kind]}", *options])
        assert result.exit_code == 0, result.output
    (tmp_path / "empty").mkdir()
    result = CliRunner().invoke(cli.app, ["eval", "--ckpt", f"hf:{tmp_path / 'empty'}", *options])
    assert result.exit_code == 2
    assert "lacks config.json; preprocessor_config.json; a tokenizer" in " ".join(
        result.output.split()
    )
    records = [json.loads(path.read_text()) for path in tmp_path.rglob("*.json")]
    assert sorted(record["model"]["name"] for record in records) == ["hf:naflex", "hf:siglip2"]


def test_normalised_embeddings_score_as_the_librarys_own_logits(models, folders):
    ours, theirs = models("siglip2")
    pictures, texts = [picture(*size) for size in SIZES], TEXTS[:7]
    tokens = ours.tokenize(texts)
    output = theirs(input_ids=tokens, **library_pixels(folders["siglip2"], pictures))
    image = normalize(
        ours.encode_image(torch.stack([ours.preprocess(image) for image in pictures])), dim=-1
    )
    text = normalize(ours.encode_text(tokens), dim=-1)
    assert close(image @ text.T * ours.logit_scale + ours.logit_bias, output.logits_per_image)
