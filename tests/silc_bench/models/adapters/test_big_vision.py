"""A file in big_vision's layout computes what transformers' SigLIP does from the same arrays.

What cannot be read is said.

The files are written here from a random model, by a mapping of their own: name by name, in NumPy,
the way flax lays out arrays.
"""

import re

import numpy as np
import pytest
import torch
from hf_folders import LENGTH, TEXT, VISION, network_of
from images_and_runs import (
    IMAGES,
    check_cut_texts,
    close,
    measure,
    noise,
    pixels_of,
    tokens_of_patches,
)
from pieces import C4_EN, GEMMA, train_pieces
from refusals import refused

from silc_bench.models.adapters import big_vision
from silc_bench.models.interface import DenseModel, ImageTextModel
from silc_bench.models.load import load_model

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.broad

WIDTH, TEXT_WIDTH, HEADS, TEXT_HEADS = 32, 24, 2, 4
SIZE, PATCH = 24, 8
ATTENTION = "MultiHeadDotProductAttention_0"
TEXTS = [
    "a photo of a cat.",
    "",
    "A PHOTO, of   two\tdogs!",
    "a long sentence about a great many cats and dogs that goes on and on " * 4,
    "café ÉTÉ",
    "no_underscores here",
    "🐱 猫 and 犬",
]


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """Two small sentencepiece models, in the manner of c4_en and of Gemma.

    The first ends with </s>; Gemma has <eos>, <pad>, no leading space.
    """
    folder = tmp_path_factory.mktemp("pieces")
    words = re.findall(r"\w+", " ".join(TEXTS[:4]))
    generator = np.random.default_rng(0)
    sentences = [" ".join(generator.choice(words, 8)) for _ in range(400)]
    return {
        name: train_pieces(folder / f"{name}.model", sentences, 120, special)
        for name, special in {"c4_en": C4_EN, "gemma": GEMMA}.items()
    }


def rows_of(path):
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_file=str(path)).get_piece_size()


@pytest.fixture(scope="module")
def theirs(pieces):
    config = transformers.SiglipConfig(
        vision_config={
            **VISION,
            "num_hidden_layers": 3,
            "num_attention_heads": HEADS,
            "image_size": SIZE,
        },
        text_config={
            **TEXT,
            "vocab_size": rows_of(pieces["c4_en"]),
            "max_position_embeddings": LENGTH,
            "projection_size": WIDTH,
        },
        architectures=["SiglipModel"],
    )
    return network_of(config)


# torch's names -> flax's, part by part and in this order
NAMES = {
    "logit_scale": "t",
    "logit_bias": "b",
    "vision_model.embeddings.patch_embedding": "img.embedding",
    "text_model.embeddings.token_embedding.weight": "txt.Embed_0.embedding",
    "embeddings.position_embedding.weight": "pos_embedding",
    "vision_model.encoder.layers.": "img.Transformer.encoderblock_",
    "vision_model.post_layernorm.weight": "img.Transformer.encoder_norm.scale",
    "vision_model.post_layernorm": "img.Transformer.encoder_norm",
    "text_model.encoder.layers.": "txt.Encoder_0.encoderblock_",
    "text_model.final_layer_norm.weight": "txt.Encoder_0.encoder_norm.scale",
    "text_model.final_layer_norm": "txt.Encoder_0.encoder_norm",
    "vision_model.head.layernorm": "vision_model.head.layer_norm1",
    "vision_model.head.attention": f"vision_model.head.{ATTENTION}",
    "vision_model.head": "img.MAPHead_0",
    "vision_model": "img",
    "text_model": "txt",
    "layer_norm1.weight": "LayerNorm_0.scale",
    "layer_norm2.weight": "LayerNorm_1.scale",
    "layer_norm1": "LayerNorm_0",
    "layer_norm2": "LayerNorm_1",
    "mlp.fc1": "MlpBlock_0.Dense_0",
    "mlp.fc2": "MlpBlock_0.Dense_1",
    "self_attn": ATTENTION,
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "out_proj": "out",
    "weight": "kernel",
    ".": "/",
}


def flax_arrays(model):
    """{flax name: array}, each block its own entry."""
    arrays = {}
    for name, value in model.state_dict().items():
        names, values = [name], [value.numpy()]
        if "in_proj_" in name:
            names = [name.replace("in_proj_", f"{part}_proj.") for part in "qkv"]
            values = np.split(values[0], 3)
        for old, new in NAMES.items():
            names = [name.replace(old, new) for name in names]
        arrays |= dict(zip(names, map(as_flax, names, values), strict=True))
    return arrays


def as_flax(name, value):
    """An array in flax's order of axes."""
    heads = HEADS if name.startswith("img/") else TEXT_HEADS
    if name.endswith("pos_embedding"):
        return value[None]
    if name == "img/embedding/kernel":
        return value.transpose(2, 3, 1, 0)
    if name.endswith("/kernel"):
        value = value.T
    if name.endswith("/out/kernel"):
        return value.reshape(heads, -1, value.shape[-1])
    if re.search("/(query|key|value)/", name):
        return value.reshape(*value.shape[:-1], heads, -1)
    return value


def scanned(arrays):
    """Blocks stacked along depth, as a model trained with scan=True keeps them."""
    stacked = {}
    for name, value in arrays.items():  # in the order of the blocks
        stacked.setdefault(re.sub(r"encoderblock_\d", "encoderblock", name), []).append(value)
    return {
        name: np.stack(values) if "/encoderblock/" in name else values[0]
        for name, values in stacked.items()
    }


def trained(arrays):
    """As the trainer saves them: below params/, the optimiser's state beside."""
    state = {"opt/0/mu/img/pos_embedding": np.zeros((1, 4, 2), np.float32), "opt/step": np.array(7)}
    return {f"params/{name}": value for name, value in arrays.items()} | state


@pytest.fixture(scope="module")
def arrays(theirs):
    return flax_arrays(theirs)


@pytest.fixture
def write(tmp_path, pieces):
    """Writes a checkpoint and its tokenizer's file; the path."""

    def write(arrays, tokenizer="c4_en"):
        np.savez(tmp_path / "tiny.npz", **arrays)
        if tokenizer:
            (tmp_path / "tokenizer.model").write_bytes(pieces[tokenizer].read_bytes())
        return tmp_path / "tiny.npz"

    return write


@pytest.fixture
def load(write):
    return lambda arrays, tokenizer="c4_en": load_model(f"big_vision:{write(arrays, tokenizer)}")


PIXELS = noise(3, 3, SIZE, SIZE)


@pytest.mark.parametrize("layout", ["plain", "scanned", "params", "scanned params"])
def test_embeddings_equal_transformers(theirs, arrays, load, layout):
    stored = scanned(arrays) if "scanned" in layout else arrays
    ours = load(trained(stored) if "params" in layout else stored)
    tokens = torch.randint(0, ours.parts["text"].config.vocab_size, (5, LENGTH))
    image = theirs.vision_model(pixel_values=PIXELS).pooler_output
    assert close(ours.encode_image(PIXELS), image)
    assert close(ours.encode_text(tokens), theirs.text_model(input_ids=tokens).pooler_output)
    assert isinstance(ours, ImageTextModel)
    assert isinstance(ours, DenseModel)
    assert ours.name == "big_vision:tiny"
    assert (ours.image_size, ours.patch_size) == (SIZE, PATCH)
    num_params = sum(weight.numel() for weight in theirs.parameters())
    assert ours.num_params == num_params - 2, "less scale and bias"
    assert ours.logit_scale == pytest.approx(theirs.logit_scale.exp().item())
    assert ours.logit_bias == pytest.approx(theirs.logit_bias.item())


def test_the_revision_is_of_weights_and_not_of_their_layout(arrays, load):
    revision = load(arrays).revision
    assert load(trained(scanned(arrays))).revision == revision
    probe = "img/MAPHead_0/probe"
    assert load({**arrays, probe: arrays[probe] + 1e-3}).revision != revision


def test_bfloat16_arrays_are_read_as_jax_saves_them(arrays, load):
    """An npz knows no bfloat16: NumPy writes two bytes without a type."""
    rounded = {name: torch.tensor(value).bfloat16() for name, value in arrays.items()}
    stored = {name: value.view(torch.int16).numpy().view("V2") for name, value in rounded.items()}
    in_fp32 = {name: value.float().numpy() for name, value in rounded.items()}
    ours = load(stored)
    assert ours.revision == load(in_fp32).revision
    assert ours.encode_image(PIXELS).dtype == torch.float32


def test_dense_features_pool_back_and_take_the_value_path(theirs, arrays, load):
    ours = load(arrays)
    tokens = theirs.vision_model(pixel_values=PIXELS).last_hidden_state
    assert close(tokens_of_patches(ours, PIXELS), tokens.unflatten(1, (3, 3)))
    joint = ours.encode_dense(PIXELS, ["maskclip"])["maskclip"].flatten(1, 2)
    # the head sees one patch at a time: all attention lies on it
    alone = [theirs.vision_model.head(tokens[:, i : i + 1]) for i in range(tokens.shape[1])]
    assert close(joint, torch.stack(alone, dim=1))


@pytest.mark.parametrize("tokenizer", ["c4_en", "gemma"])
def test_texts_that_are_cut_are_counted(arrays, load, tokenizer):
    check_cut_texts(load(arrays, tokenizer))


def test_any_multiple_of_the_patch_size(arrays, load):
    ours = load(arrays)
    images = noise(3, 3, 40, 16)
    assert ours.encode_image(images).shape == (3, WIDTH)
    assert tokens_of_patches(ours, images).shape == (3, 5, 2, WIDTH)
    with refused(about="big_vision:tiny"):
        ours.encode_image(images[..., :12])


def test_images_are_squashed_as_transformers_does(arrays, load):
    from transformers.models.siglip import image_processing_pil_siglip as siglip

    processor = siglip.SiglipImageProcessorPil(size={"height": SIZE, "width": SIZE})
    theirs = processor(IMAGES, return_tensors="pt")["pixel_values"]
    assert torch.equal(pixels_of(load(arrays).preprocess), theirs)


def test_tokens_of_siglip_equal_transformers(arrays, load, pieces):
    ours = load(arrays)
    theirs = transformers.SiglipTokenizer(str(pieces["c4_en"]), model_max_length=LENGTH)
    options = {"padding": "max_length", "truncation": True, "max_length": LENGTH}
    tokens = ours.tokenize(TEXTS)
    assert tokens.dtype == torch.int64
    assert tokens.tolist() == theirs(TEXTS, **options)["input_ids"]
    assert tokens[1].tolist() == [1] * LENGTH, "an empty text is all end"
    assert tokens[3, -1] == 1, "a cut text keeps its end"
    assert ours.text_protocol["cleaning"] == "canonicalize"


def test_tokens_of_siglip2_end_with_eos_and_are_filled_with_padding(arrays, load, pieces):
    import sentencepiece

    rows = rows_of(pieces["gemma"])
    table = np.resize(arrays["txt/Embed_0/embedding"], (rows, TEXT_WIDTH))
    ours = load({**arrays, "txt/Embed_0/embedding": table}, "gemma")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(pieces["gemma"]))
    for text, row in zip(TEXTS, ours.tokenize(TEXTS).tolist(), strict=True):
        lowered = "".join(letter.lower() if letter.isascii() else letter for letter in text)
        expected = [*processor.encode(lowered)[: LENGTH - 1], 1]
        assert row == expected + [0] * (LENGTH - len(expected))
    assert ours.text_protocol["padding"] == 0


def test_a_tokenizer_json_serves_too(arrays, load, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    rows = len(arrays["txt/Embed_0/embedding"])
    words = ["<pad>", "<eos>", "<unk>", "cat", "dog", *(f"w{i}" for i in range(5, rows))]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(2)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    ours = load(arrays, tokenizer=None)
    assert ours.tokenize(["Cat dog dog xyz"])[0].tolist() == [3, 4, 4, 2, 1] + [0] * (LENGTH - 5)


def test_without_a_tokenizer_images_are_measured_and_texts_refused(arrays, write, load, tmp_path):
    spec = f"big_vision:{write(arrays, tokenizer=None)}"
    blind = load_model(spec)
    assert not isinstance(blind, ImageTextModel)
    refusal = measure(spec, "shapes/zeroshot", tmp_path)
    assert refusal.exit_code == 2
    assert f"into {tmp_path} as one of tokenizer.model" in refusal.stderr
    assert measure(spec, "shapes/knn", tmp_path).exit_code == 0
    assert load(arrays).revision == blind.revision, "the tokenizer does not change images"


def test_an_image_tower_alone(arrays, load, theirs):
    ours = load({name: value for name, value in arrays.items() if name.startswith("img/")})
    assert "text" in ours.lacking
    expected = theirs.vision_model(pixel_values=PIXELS).pooler_output
    assert close(ours.encode_image(PIXELS), expected)


def ones(*shape):
    return np.ones(shape, np.float32)


# what is left out, or put in another form
DAMAGES = {
    "a block": "img/Transformer/encoderblock_1/",
    "the head": "MAPHead_0",
    "the scale": "^t$",
    "pixels": "img/embedding",
    "all images": "img/",
    "a projection more": {"img/head/kernel": ones(4, 4)},
    "naflex": {"img/embedding/kernel": ones(192, WIDTH)},
    "no square": {"img/pos_embedding": ones(1, 8, WIDTH)},
    "another width": {"img/MAPHead_0/LayerNorm_0/scale": ones(7)},
    "a flat key": {f"img/MAPHead_0/{ATTENTION}/key/kernel": ones(9)},
    "objects": {"img/pos_embedding": np.array([{}, 1], dtype=object)},
    "a text width": {"txt/head/kernel": ones(TEXT_WIDTH, 9)},
    "heads": {f"img/Transformer/encoderblock_0/{ATTENTION}/query/kernel": ones(WIDTH, 5, 9)},
    "two scales": {"t": 0 * ones(2)},
    "no scale": {"t": ones(0)},
    "a scale beyond fp32": {"t": np.array(200.0, np.float32)},
    "biases": {"b": ones(3, 1)},
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused(arrays, write, damage):
    change = DAMAGES[damage]
    if isinstance(change, str):
        kept = {name: value for name, value in arrays.items() if not re.search(change, name)}
    else:
        kept = arrays | change
    path = write(kept)
    with refused(about=path, is_kept=damage != "objects"):
        load_model(f"big_vision:{path}")


def test_files_that_are_none(tmp_path):
    path = tmp_path / "x.npz"
    with refused(about=f"big_vision:{path}"):
        load_model(f"big_vision:{path}")
    path.write_text("hello")
    with refused(about=path):
        load_model(f"big_vision:{path}")


@pytest.mark.parametrize(
    ("name", "content"),
    [("tokenizer.model", b"no model"), ("tokenizer.json", b"{}"), ("spiece.model", None)],
)
def test_tokenizer_files_that_do_not_fit(arrays, load, tmp_path, pieces, name, content):
    larger = {"txt/Embed_0/embedding": np.zeros((5000, TEXT_WIDTH), np.float32)}
    (tmp_path / name).write_bytes(content or pieces["c4_en"].read_bytes())
    with refused(about=tmp_path / name, is_kept=content is None):
        load(arrays | larger, tokenizer=None)


@pytest.fixture
def nano(monkeypatch):
    shape = big_vision.TowerShape(WIDTH, 3, 48, HEADS)
    monkeypatch.setitem(big_vision.VARIANTS, "Nano", shape)


@pytest.mark.parametrize("arch", ["B/16", "So400n/14", "B", "B/16@x", "Nano/8@32"])
def test_an_arch_that_is_another_one_is_refused(arrays, write, nano, arch):
    with refused(about=f"--arch {arch}"):
        load_model(f"big_vision:{write(arrays)}", arch)


@pytest.mark.parametrize("arch", ["Nano/8", "Nano/8@24"])
def test_an_arch_that_the_file_has_is_taken(arrays, write, nano, arch):
    assert load_model(f"big_vision:{write(arrays)}", arch).image_size == SIZE


def test_patches_that_leave_a_rest(arrays, write, nano, monkeypatch):
    """As So400m/14 at 384, whose 27 patches see 378; here 3 patches of 8 see 24 of 29."""
    spec = f"big_vision:{write(arrays)}"
    asked = load_model(spec, "Nano/8@29")
    monkeypatch.setitem(big_vision.RESOLUTIONS, (PATCH, 3), 29)
    known = load_model(spec)
    assert asked.revision == known.revision
    for ours in (asked, known):
        pixels = pixels_of(ours.preprocess)
        assert pixels.shape[-1] == ours.image_size == 29
        seen = pixels[..., :24, :24]
        assert torch.equal(ours.encode_image(pixels), ours.encode_image(seen))
        assert tokens_of_patches(ours, pixels).shape[1:3] == (3, 3)
