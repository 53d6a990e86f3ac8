"""transformers' embeddings, pixels and token ids, a tiny random model a kind; traps; refusals."""

from __future__ import annotations

import json
import shutil
from copy import deepcopy
from pathlib import Path

import hf_folders
import numpy as np
import pytest
import torch
from hf_folders import KINDS, LENGTH, SIZE, change
from images_and_runs import (
    IMAGES,
    cached_repository,
    check_cut_texts,
    close,
    measure,
    noise,
    pixels_of,
    tokens_of_patches,
    without_network,
)
from pieces import train_pieces
from refusals import refused
from safetensors.torch import load_file, save_file

from silc_bench.models.adapters.huggingface import model as hf
from silc_bench.models.adapters.huggingface.naflex import unpack
from silc_bench.models.adapters.huggingface.text import without_padding
from silc_bench.models.adapters.huggingface.towers import HfBlock, embedding_of
from silc_bench.models.interface import DenseModel, ImageTextModel
from silc_bench.models.load import load_model
from silc_bench.models.weights import peft

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.broad
SQUARES = [kind for kind in KINDS if kind != "naflex"]
MAPS = ["siglip", "siglip2"]  # pooled by attention
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


def library_pixels(folder):
    """What the library's own processor over Pillow makes of the images."""
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    return processor(IMAGES, return_tensors="pt")


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


def configured(part=None, **fields):
    """Replaces fields of a folder's config.json, or of one of its parts."""

    def spoil(folder):
        changes = fields
        if part is not None:
            content = json.loads((folder / "config.json").read_text())
            changes = {part: content[part] | fields}
        change(folder / "config.json", **changes)

    return spoil


# ---- the library's own ----


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_and_image_embeddings_are_the_librarys_own(kind, models, folders):
    ours, theirs = models(kind)
    inputs = library_pixels(folders[kind])
    pixels = pixels_of(ours.preprocess)
    if kind == "naflex":
        patches, mask, grids = unpack(pixels)
        assert torch.equal(mask, inputs["pixel_attention_mask"].long())
        assert torch.equal(grids, inputs["spatial_shapes"].long())
        assert torch.equal(patches, inputs["pixel_values"])
    else:
        assert torch.equal(pixels, inputs["pixel_values"])
    embeddings = ours.encode_image(pixels)
    assert embeddings.dtype == torch.float32
    assert embeddings.shape[1] == ours.embed_dim
    assert close(embeddings, embedding_of(theirs.get_image_features(**inputs)))


@pytest.mark.parametrize("kind", KINDS)
def test_token_ids_and_text_embeddings_are_the_librarys_own(kind, models, folders):
    ours, theirs = models(kind)
    inputs = library_tokens(kind, folders[kind], TEXTS)
    tokens = ours.tokenize(TEXTS)
    assert torch.equal(tokens, inputs["input_ids"])
    if kind in (*MAPS, "naflex"):
        # trained to attend to the padding, and the trap is real: a mask changes the result
        masked = embedding_of(theirs.get_text_features(**inputs))
        assert (ours.encode_text(tokens) - masked).abs().max() > 1e-2
        assert ours.text_protocol["padding_is_masked"] is False
        del inputs["attention_mask"]
    assert close(ours.encode_text(tokens), embedding_of(theirs.get_text_features(**inputs)))

    alone, among = (ours.tokenize(["a cat", *others]) for others in ([], [WORDS[9] * 9]))
    assert close(ours.encode_text(alone), ours.encode_text(among)[:1])


@pytest.mark.parametrize("kind", KINDS)
def test_it_keeps_the_protocol(kind, models):
    ours, theirs = models(kind)
    has_bias = kind in (*MAPS, "naflex")
    assert isinstance(ours, ImageTextModel)
    assert isinstance(ours, DenseModel) == (kind in SQUARES)
    assert ("dense" in ours.lacking) == (kind == "naflex")
    assert (ours.name, ours.image_size) == (f"hf:{kind}", SIZE)
    assert ours.logit_scale == pytest.approx(theirs.logit_scale.exp().item())
    assert ours.logit_bias == (theirs.logit_bias.item() if has_bias else 0)
    num_params = sum(weight.numel() for weight in theirs.parameters())
    assert ours.num_params == num_params - 1 - has_bias
    json.dumps([ours.image_protocol, ours.text_protocol], allow_nan=False)
    for point, width in ours.feature_points.items():
        assert ours.encode_image(pixels_of(ours.preprocess), point).shape == (len(IMAGES), width)


@pytest.mark.parametrize("kind", SQUARES)
def test_feature_points_are_the_librarys_steps(kind, models):
    ours, theirs = models(kind)
    images = noise(3, 3, SIZE, SIZE)
    vision = theirs.vision_model(pixel_values=images)
    patches = vision.last_hidden_state
    if kind not in MAPS:
        patches = theirs.vision_model.post_layernorm(patches[:, 1:])
        assert close(ours.encode_image(images, "pre_projection"), vision.pooler_output)
    assert close(tokens_of_patches(ours, images).flatten(1, 2), patches)
    assert close(ours.encode_image(images, "mean_patch"), patches.mean(dim=1))


def test_the_mean_patch_of_naflex_leaves_out_the_padding(models, folders):
    ours, theirs = models("naflex")
    inputs = library_pixels(folders["naflex"])
    mask = inputs["pixel_attention_mask"]
    tokens = theirs.vision_model(inputs["pixel_values"], mask, inputs["spatial_shapes"])[0]
    assert not mask.all()
    expected = [row[kept.bool()].mean(dim=0) for row, kept in zip(tokens, mask, strict=True)]
    pooled = ours.encode_image(pixels_of(ours.preprocess), "mean_patch")
    assert close(pooled, torch.stack(expected))


# ---- dense ----


@pytest.mark.parametrize("kind", SQUARES)
def test_joint_features_are_what_the_library_says_of_a_patch_left_alone(kind, models):
    """A sequence of one token attends to nothing else.

    So each patch goes alone through the library's own last block or pooling head.
    """
    ours, theirs = models(kind)
    images, vision = noise(2, 3, SIZE, SIZE), theirs.vision_model
    if kind in MAPS:
        tokens = vision(pixel_values=images).last_hidden_state
        expected = vision.head(tokens.flatten(0, 1)[:, None])
    else:
        entering = []
        last = vision.encoder.layers[-1]
        hook = last.register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0]))
        vision(pixel_values=images)
        hook.remove()
        output = last(entering[0][:, 1:].flatten(0, 1)[:, None], None)
        expected = theirs.visual_projection(vision.post_layernorm(output[:, 0]))
    joint = ours.encode_dense(images, ["maskclip"])["maskclip"]
    assert close(joint, expected.view(2, SIZE // 8, SIZE // 8, ours.embed_dim))


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_layer_taken_apart_and_put_together_is_the_layer(kind, models):
    layer = models(kind)[1].vision_model.encoder.layers[-1]
    parts, tokens = HfBlock(layer), noise(2, 5, 32)
    attended = torch.nn.functional.scaled_dot_product_attention(*parts.split(tokens, None))
    assert close(parts.finish(tokens, parts.join(tokens, attended)), layer(tokens, None))


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_other_sizes_keep_positions_where_they_are(kind, folders, models):
    """Positions that do not vary over the grid are the same on any grid, however interpolated."""
    ours = load_model(f"hf:{folders[kind]}")
    theirs = deepcopy(models(kind)[1])
    first = 1 if kind == "clip" else 0
    for network in (ours.network, theirs):
        positions = network.vision_model.embeddings.position_embedding.weight
        positions.data[first:] = positions.data[first]
    images = noise(2, 3, 48, 72)
    expected = theirs.get_image_features(pixel_values=images, interpolate_pos_encoding=True)
    assert close(ours.encode_image(images), embedding_of(expected))
    for features in ours.encode_dense(images, ours.dense_methods).values():
        assert features.shape[:3] == (2, 6, 9)
    with refused(about=f"hf:{kind}"):
        ours.encode_image(images[..., :50])


def test_the_trained_size_need_not_divide(copy):
    """SigLIP So400m has 27 patches of 14 pixels in 384: the rest is not seen."""
    folder = copy("siglip")
    config = transformers.AutoConfig.from_pretrained(folder)
    config.vision_config.image_size = 36
    theirs = hf_folders.network_of(config)
    theirs.save_pretrained(folder)
    change(folder / "preprocessor_config.json", size={"height": 36, "width": 36})
    ours = load_model(f"hf:{folder}")
    images = noise(2, 3, 36, 36)
    expected = embedding_of(theirs.get_image_features(pixel_values=images))
    assert close(ours.encode_image(images), expected)
    assert tokens_of_patches(ours, images).shape[1:3] == (4, 4)


# ---- traps ----


@pytest.mark.parametrize("kind", ["siglip2", "naflex"])
def test_siglip2_reads_lower_case_whatever_the_librarys_tokenizer_does(kind, models, folders):
    ours, _ = models(kind)
    tokenizer = transformers.GemmaTokenizer.from_pretrained(folders[kind])
    texts = ["A Photo of two CATS", "a photo of two cats"]
    upper, lower = tokenizer(texts)["input_ids"]
    assert upper != lower, "the trap is real: the tokenizer that the files name keeps capitals"
    for row in ours.tokenize(texts).tolist():
        assert row[: len(lower)] == lower
    assert ours.text_protocol["cleaning"] == "lower"


def test_siglip_texts_are_canonical(copy):
    folder = copy("siglip")
    (folder / "tokenizer.json").unlink()
    train_pieces(folder / "spiece.model", hf_folders.CORPUS * 20, 40)
    settings = folder / "tokenizer_config.json"
    hf_folders.write_json(settings, {"tokenizer_class": "SiglipTokenizer", "model_max_length": 64})
    lowered = ("lower, no ASCII punctuation", True)
    for cleaning, is_lower in (lowered, ("no ASCII punctuation", False)):
        change(settings, do_lower_case=is_lower)
        ours = load_model(f"hf:{folder}")
        expected = library_tokens("siglip", folder, TEXTS)["input_ids"]
        assert torch.equal(ours.tokenize(TEXTS), expected)
        assert torch.equal(*ours.tokenize(["A photo, of a CAT!", "A  photo of a CAT"]))
        assert torch.equal(*ours.tokenize(["a CAT", "a cat"])) == is_lower
        assert ours.text_protocol["cleaning"] == cleaning


def test_a_siglip_whose_tokenizer_keeps_capitals_is_refused_unless_it_says_so(copy):
    folder = copy("siglip")
    assert load_model(f"hf:{folder}").text_protocol["cleaning"] == "none", (
        "its own normaliser lowers"
    )
    change(folder / "tokenizer.json", normalizer=None)
    with refused(about=folder):
        load_model(f"hf:{folder}")
    change(folder / "tokenizer_config.json", do_lower_case=False)
    assert not torch.equal(*load_model(f"hf:{folder}").tokenize(["a CAT", "a cat"]))


def lengths_seen(network):
    """The lengths of the texts that the network reads from now on."""
    seen = []
    network.text_model.register_forward_pre_hook(
        lambda _, args, named: seen.append(named["input_ids"].shape[1]), with_kwargs=True
    )
    return seen


@pytest.mark.parametrize("kind", ["clip", "clip_old_eos"])
def test_clips_causal_tower_reads_no_padding(kind, models):
    """Cut behind the batch's longest text: the library's answer at full length, from less work."""
    ours, theirs = models(kind)
    exact = deepcopy(ours.network).double()  # in twice the digits, to twice the digits
    seen = lengths_seen(ours.network)
    for texts in (["a cat"], ["a", "a red ring"], [""], TEXTS):
        tokens = ours.tokenize(texts)
        whole = embedding_of(theirs.get_text_features(input_ids=tokens))
        assert close(ours.encode_text(tokens), whole, 1e-6)
        cut = without_padding(tokens, theirs.config.text_config.eos_token_id)
        long, short = (embedding_of(exact.get_text_features(input_ids=x)) for x in (tokens, cut))
        torch.testing.assert_close(short, long, rtol=0, atol=1e-13)
    assert seen[0] < LENGTH
    assert seen[2:] == [2, LENGTH], "start and end alone; texts of which some are cut"


@pytest.mark.parametrize("kind", ["siglip", "altclip", "chinese_clip"])
def test_towers_that_are_not_causal_are_left_whole(kind, models):
    ours, _ = models(kind)
    seen = lengths_seen(ours.network)
    ours.encode_text(ours.tokenize(["a cat"]))
    assert seen == [LENGTH]


def test_tokens_that_the_tower_does_not_know_are_refused(copy):
    folder = copy("clip")
    vocab = json.loads((folder / "vocab.json").read_text())
    vocab = {token: index + (0 if index < 500 else 1000) for token, index in vocab.items()}
    hf_folders.write_json(folder / "vocab.json", vocab)
    configured("text_config", eos_token_id=max(vocab.values()))(folder)
    ours = load_model(f"hf:{folder}")
    with refused(about=folder):
        ours.tokenize(["a cat"])


def test_weights_are_not_rounded_to_the_dtype_that_the_configuration_names(copy, models):
    folder = copy("clip")
    change(folder / "config.json", dtype="float16", torch_dtype="float16")
    assert load_model(f"hf:{folder}").revision == models("clip")[0].revision


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
    pixels = pixels_of(load_model(f"hf:{folder}").preprocess)
    assert torch.equal(pixels, library_pixels(folder)["pixel_values"].float())


def test_preprocessing_as_transformers_5_writes_it(copy, models):
    folder = copy("clip")
    own = folder / "preprocessor_config.json"
    whole = {"image_processor": json.loads(own.read_text()), "processor_class": "CLIPProcessor"}
    own.unlink()
    hf_folders.write_json(folder / "processor_config.json", whole)
    assert load_model(f"hf:{folder}").image_protocol == models("clip")[0].image_protocol


@pytest.mark.parametrize("kind", KINDS)
def test_texts_that_are_cut_are_counted(models, kind):
    check_cut_texts(models(kind)[0])


# kind, what the second file says otherwise, and whether other pixels follow
SECOND = [
    ("clip", {}, False),
    ("clip", {"image_processor_type": "CLIPImageProcessorFast", "data_format": "x"}, False),
    ("clip", {"size": {"shortest_edge": 32}}, False),
    ("clip", {"image_mean": [0.1, 0.2, 0.3]}, True),
    ("clip", {"size": 40}, True),
    ("clip", {"size": {"height": 32, "width": 32}}, True),
    ("clip", {"resample": 2}, True),
    ("siglip", {"do_normalize": False}, True),
    ("naflex", {}, False),
    ("naflex", {"max_num_patches": 30}, True),
]


@pytest.mark.parametrize(("kind", "changes", "is_other"), SECOND)
def test_two_files_of_preprocessing_make_the_same_pixels(copy, models, kind, changes, is_other):
    folder = copy(kind)
    settings = json.loads((folder / "preprocessor_config.json").read_text()) | changes
    hf_folders.write_json(folder / "processor_config.json", {"image_processor": settings})
    if is_other:
        with refused(about=folder):
            load_model(f"hf:{folder}")
        return
    assert load_model(f"hf:{folder}").image_protocol == models(kind)[0].image_protocol


@pytest.mark.parametrize("name", peft.FILES)
def test_an_adapter_beside_its_base_is_refused(copy, models, tmp_path, monkeypatch, name):
    folder = copy("clip")
    (folder / name).write_text("{}")
    with refused(about=folder):
        load_model(f"hf:{folder}")

    # weights of their own beside a folder that gives the configuration alone
    torch.save(models("clip")[1].state_dict(), tmp_path / "whole.pt")
    assert load_model(str(tmp_path / "whole.pt"), f"hf:{folder}")

    without_network(monkeypatch, tmp_path)
    shutil.copytree(folder, cached_repository(tmp_path, "org/tuned"))
    with refused(about="snapshots"):
        load_model("hf:org/tuned")


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("clip", "rescale_factor", 1.0),
        ("clip", "do_resize", False),
        ("clip", "resample", 7),
        ("clip", "resample", None),
        ("clip", "size", None),
        ("clip", "size", {"height": 32, "width": 40}),
        ("clip", "size", True),
        ("clip", "crop_size", 24),
        ("clip", "do_center_crop", False),
        ("clip", "image_mean", [0.5]),
        ("clip", "image_processor_type", "ViltImageProcessor"),
        ("naflex", "patch_size", 16),
        ("naflex", "max_num_patches", None),
        ("naflex", "image_processor_type", "SiglipImageProcessor"),
    ],
)
def test_preprocessing_that_cannot_be_reproduced_is_refused(copy, kind, key, value):
    folder = copy(kind)
    change(folder / "preprocessor_config.json", **{key: value})
    with refused(about=folder / "preprocessor_config.json"):
        load_model(f"hf:{folder}")


# ---- files ----


def test_weights_in_any_safe_form_are_the_same_model(copy, models, tmp_path):
    folder, ours = copy("clip"), models("clip")[0]
    state = models("clip")[1].state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    assert load_model(f"hf:{folder}").revision == ours.revision
    (folder / "pytorch_model.bin").unlink()
    bias = "vision_model.post_layernorm.bias"
    changes = {"logit_scale": torch.tensor(1.0), bias: state[bias] + 1}
    torch.save({"state_dict": state | changes}, tmp_path / "tuned.pt")
    tuned = hf.load_state(tmp_path / "tuned.pt", str(folder))
    assert tuned.name == "hf:clip/tuned"
    assert tuned.logit_scale == pytest.approx(np.e)
    assert tuned.revision != ours.revision


@pytest.mark.parametrize(
    ("part", "fields"),
    [("vision_config", {"hidden_act": "gelu"}), ("text_config", {"eos_token_id": 2})],
)
def test_activation_and_pooled_token_are_part_of_the_revision(copy, models, part, fields):
    folder = copy("clip")
    configured(part, **fields)(folder)
    assert load_model(f"hf:{folder}").revision != models("clip")[0].revision


def weighed(**changes):
    """Replaces weights of a folder; None removes one."""

    def spoil(folder):
        path = folder / "model.safetensors"
        state = load_file(path) | changes
        save_file({name: value for name, value in state.items() if value is not None}, path)

    return spoil


def without(name):
    return lambda folder: (folder / name).unlink()


def without_a_shard(folder):
    without("model.safetensors")(folder)
    index = {"weight_map": {"logit_scale": "model-00001-of-00002.safetensors"}}
    hf_folders.write_json(folder / "model.safetensors.index.json", index)


CODE = {"AutoTokenizer": ["x.Y", None]}
# what is done to a folder, and the part of it that the error is about
DAMAGES = {
    "no config": (without("config.json"), ""),
    "no pixels": (without("preprocessor_config.json"), ""),
    "no weights": (without("model.safetensors"), ""),
    "no tokenizer": (without("vocab.json"), ""),
    "no shard": (without_a_shard, ""),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
    "no type": (configured(model_type=None), "config.json"),
    "type": (configured(model_type="clipseg"), "config.json"),
    "code": (configured(auto_map=CODE), "config.json"),
    "tokenizer code": (
        lambda folder: change(folder / "tokenizer_config.json", auto_map=CODE),
        "tokenizer_config.json",
    ),
    "heads": (configured("vision_config", num_attention_heads=5), "config.json"),
    "activation": (configured("vision_config", hidden_act="no such"), "config.json"),
    "tokenizer": (lambda folder: (folder / "vocab.json").write_text("[1"), ""),
    "names": (weighed(logit_scale=None, bias=torch.ones(1)), ""),
    "shape": (weighed(**{"text_projection.weight": torch.zeros(7, 24)}), ""),
    # with them CLIP would silently pool the first token, or a wrong one
    "end": (configured("text_config", eos_token_id=3), ""),
    "no end": (configured("text_config", eos_token_id=100), ""),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused(damage, copy):
    folder = copy("clip")
    spoil, part = DAMAGES[damage]
    spoil(folder)
    is_ours = damage not in ("no JSON", "heads", "activation", "tokenizer", "shape")
    with refused(about=folder / part, is_kept=is_ours):
        load_model(f"hf:{folder}")


def test_names_are_looked_up_in_the_hubs_cache_without_a_network(
    folders, models, tmp_path, monkeypatch
):
    without_network(monkeypatch, tmp_path)
    with refused(about="hf:org/tiny", is_kept=False) as caught:
        load_model("hf:org/tiny")
    assert "model.safetensors" in caught.value.fix
    shutil.copytree(folders["clip"], cached_repository(tmp_path, "org/tiny"))
    model = load_model("hf:org/tiny")
    assert (model.name, model.revision) == ("hf:tiny", models("clip")[0].revision)
    with refused(about="hf:/no/such/folder"):
        load_model("hf:/no/such/folder")


# ---- end to end ----


def test_eval_measures_a_folder(folders, tmp_path):
    for kind in ("siglip2", "naflex"):
        done = measure(f"hf:{folders[kind]}", "shapes/knn", tmp_path)
        assert done.exit_code == 0, done.output
    assert len(list(tmp_path.rglob("*.json"))) == 2
