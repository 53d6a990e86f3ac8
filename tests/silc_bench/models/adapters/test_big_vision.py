"""A file in big_vision's layout computes what transformers' SigLIP does from the same arrays.

What cannot be read is said.

The files are written here from a random model, by a mapping of their own: name by name, in NumPy,
the way flax lays out arrays.
"""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from refusals import refused

sys.path.insert(0, str(Path(__file__).parents[1]))

from images_and_runs import IMAGES, close, measure, noise, pixels_of, tokens_of_patches

from silc_bench.errors import UserError
from silc_bench.models.adapters import big_vision
from silc_bench.models.adapters.sentencepieces import canonicalize, lower_ascii
from silc_bench.models.interface import DenseModel, ImageTextModel
from silc_bench.models.load import load_model

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.broad

WIDTH, TEXT_WIDTH, HEADS, TEXT_HEADS, LENGTH = 48, 32, 3, 2, 16
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


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """Two small sentencepiece models, in the manner of c4_en and of Gemma.

    The first ends with </s>; Gemma has <eos>, <pad>, no leading space.
    """
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("pieces")
    words = re.findall(r"\w+", " ".join(TEXTS[:4]))
    generator = np.random.default_rng(0)
    sentences = [" ".join(generator.choice(words, 8)) for _ in range(400)]
    special = {
        "c4_en": {"unk_id": 2, "bos_id": -1},
        "gemma": {"unk_id": 3, "bos_id": 2, "eos_piece": "<eos>"},
    }
    for name, options in special.items():
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_prefix=str(folder / name),
            vocab_size=120,
            pad_id=0,
            eos_id=1,
            byte_fallback=False,
            hard_vocab_limit=False,
            add_dummy_prefix=name == "c4_en",
            minloglevel=2,
            **options,
        )
    return {name: folder / f"{name}.model" for name in special}


def rows_of(path):
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_file=str(path)).get_piece_size()


@pytest.fixture(scope="module")
def theirs(pieces):
    config = transformers.SiglipConfig(
        vision_config={
            "hidden_size": WIDTH,
            "num_hidden_layers": 3,
            "intermediate_size": 80,
            "num_attention_heads": HEADS,
            "image_size": SIZE,
            "patch_size": PATCH,
        },
        text_config={
            "hidden_size": TEXT_WIDTH,
            "num_hidden_layers": 2,
            "intermediate_size": 56,
            "num_attention_heads": TEXT_HEADS,
            "vocab_size": rows_of(pieces["c4_en"]),
            "max_position_embeddings": LENGTH,
            "projection_size": WIDTH,
        },
    )
    torch.manual_seed(0)
    model = transformers.SiglipModel(config).eval()
    with torch.no_grad():  # initialised biases are zero and norms one: they would hide a mistake
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


# torch's layer -> flax's, in a block and in the head that pools
LAYERS = {
    "layer_norm1": "LayerNorm_0",
    "layer_norm2": "LayerNorm_1",
    "layernorm": "LayerNorm_0",
    "fc1": "MlpBlock_0/Dense_0",
    "fc2": "MlpBlock_0/Dense_1",
    "q_proj": f"{ATTENTION}/query",
    "k_proj": f"{ATTENTION}/key",
    "v_proj": f"{ATTENTION}/value",
    "out_proj": f"{ATTENTION}/out",
}


def flax_arrays(model):
    """{flax name: array}, each block its own entry; unknown parameters of the model fail."""
    arrays = {"t": model.logit_scale.detach().numpy(), "b": model.logit_bias.detach().numpy()}
    for tower, heads, root, encoder in (
        (model.vision_model, HEADS, "img", "img/Transformer"),
        (model.text_model, TEXT_HEADS, "txt", "txt/Encoder_0"),
    ):
        homes = {f"encoder.layers.{i}": f"{encoder}/encoderblock_{i}" for i in range(3)}
        homes["head"] = "img/MAPHead_0" if root == "img" else "txt"
        for name, value in tower.state_dict().items():
            arrays |= flax_entries(name, value.numpy(), heads, root, encoder, homes)
    return arrays


def flax_entries(name, value, heads, root, encoder, homes):
    *parts, leaf = name.split(".")
    layer = parts[-1]
    if "embedding" in layer:
        place, value = {
            "patch_embedding": (f"img/embedding/{'kernel' if leaf == 'weight' else leaf}", value),
            "position_embedding": (f"{root}/pos_embedding", value[None]),
            "token_embedding": ("txt/Embed_0/embedding", value),
        }[layer]
        return {place: value.transpose(2, 3, 1, 0) if value.ndim == 4 else value}
    if leaf == "probe":
        return {"img/MAPHead_0/probe": value}
    if layer in ("post_layernorm", "final_layer_norm"):
        return {f"{encoder}/encoder_norm/{'scale' if leaf == 'weight' else leaf}": value}

    home = next(new for old, new in homes.items() if name.startswith(f"{old}."))
    split = (heads, -1)
    if leaf.startswith("in_proj"):
        kind = "kernel" if leaf.endswith("weight") else "bias"
        places = [f"{home}/{ATTENTION}/{part}/{kind}" for part in ("query", "key", "value")]
        pieces = [piece.T.reshape(*piece.T.shape[:-1], *split) for piece in np.split(value, 3)]
        return dict(zip(places, pieces, strict=True))

    place = f"{home}/{LAYERS.get(layer, layer)}"
    if "norm" in layer:
        return {f"{place}/{'scale' if leaf == 'weight' else leaf}": value}
    value = value.T
    if layer in ("q_proj", "k_proj", "v_proj"):
        value = value.reshape(*value.shape[:-1], heads, value.shape[-1] // heads)
    elif layer == "out_proj" and leaf == "weight":
        value = value.reshape(heads, value.shape[0] // heads, -1)
    return {f"{place}/{'kernel' if leaf == 'weight' else leaf}": value}


def scanned(arrays):
    """Blocks stacked along depth, as a model trained with scan=True keeps them."""
    stacked, blocks = {}, {}
    for name, value in arrays.items():
        if "/encoderblock_" in name:
            before, after = name.split("/encoderblock_")
            number, rest = after.split("/", 1)
            blocks.setdefault(f"{before}/encoderblock/{rest}", {})[int(number)] = value
        else:
            stacked[name] = value
    return stacked | {
        name: np.stack([values[i] for i in range(len(values))]) for name, values in blocks.items()
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
    sizes = (ours.name, ours.image_size, ours.patch_size, ours.embed_dim)
    assert sizes == ("big_vision:tiny", SIZE, PATCH, WIDTH)
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


def test_a_scale_of_one_axis_is_a_number(arrays, load):
    scale = {"t": np.full(1, 2.0, np.float32)}
    assert load(arrays | scale).logit_scale == pytest.approx(np.exp(2.0))


def test_dense_features_pool_back_and_take_the_value_path(theirs, arrays, load):
    ours = load(arrays)
    tokens = theirs.vision_model(pixel_values=PIXELS).last_hidden_state
    assert close(tokens_of_patches(ours, PIXELS), tokens.unflatten(1, (3, 3)))
    assert close(ours.encode_image(PIXELS, "mean_patch"), tokens.mean(dim=1))
    joint = ours.encode_dense(PIXELS, ["maskclip"])["maskclip"].flatten(1, 2)
    # the head sees one patch at a time: all attention lies on it
    alone = [theirs.vision_model.head(tokens[:, i : i + 1]) for i in range(tokens.shape[1])]
    assert close(joint, torch.stack(alone, dim=1))


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


def test_cleaning():
    assert canonicalize(" A Photo,  of_a\tCAT's\nÉté! ") == "a photo ofa cats été"
    assert lower_ascii("ÉTÉ, Straße!") == "ÉtÉ, straße!"


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
    "two scales": {"t": ones(2)},
    "no scale": {"t": ones(0)},
    "a scale beyond fp32": {"t": np.array(200.0, np.float32)},
    "biases": {"b": ones(3, 1)},
}
# of those, what the readers of weights refuse
BY_OTHERS = ("a block", "the head", "a projection more", "another width", "a flat key", "objects")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused(arrays, write, damage):
    change = DAMAGES[damage]
    if isinstance(change, str):
        kept = {name: value for name, value in arrays.items() if not re.search(change, name)}
        path = write(kept)
    else:
        path = write(arrays | change)
    if damage in (*BY_OTHERS, "a text width"):
        with pytest.raises(UserError, match=rf"{path}\b.*(not fit|Object arrays)"):
            load_model(f"big_vision:{path}")
    else:
        with refused(about=path):
            load_model(f"big_vision:{path}")


def test_files_that_are_none(tmp_path):
    with refused(about="big_vision:"):
        load_model(f"big_vision:{tmp_path}/x.npz")
    (tmp_path / "x.npz").write_text("hello")
    with pytest.raises(UserError):
        load_model(f"big_vision:{tmp_path}/x.npz")


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
    shape = big_vision.TowerShape(WIDTH, 3, 80, HEADS)
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
