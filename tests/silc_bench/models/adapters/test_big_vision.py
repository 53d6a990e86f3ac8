"""A file in big_vision's layout computes what transformers' SigLIP does from the same arrays.

What cannot be read is said.

The files are written here from a random model, by a mapping of their own: name by name, in NumPy,
the way flax lays out arrays.
"""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from silc_bench.cli import app as cli
from silc_bench.errors import UserError
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


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """Two small sentencepiece models, in the manner of c4_en and of Gemma.

    The first ends with </s>; Gemma has <eos>, <pad>, no leading space.
    """
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("pieces")
    words = re.findall(
        r"\w+",
        (
            "a photo of the cat dog and many two long sentence about great goes on that no here "
            "underscores"
        ),
    )
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


def flax_arrays(model):
    """{flax name: array}, each block its own entry; unknown parameters of the model fail."""
    arrays = {}
    for name, value in model.state_dict().items():
        value = value.numpy()
        tower, heads = ("img", HEADS) if name.startswith("vision_model") else ("txt", TEXT_HEADS)
        encoder = "img/Transformer" if tower == "img" else "txt/Encoder_0"
        parts = name.split(".")
        leaf = parts[-1]
        if name in ("logit_scale", "logit_bias"):
            arrays["t" if name == "logit_scale" else "b"] = value
        elif "patch_embedding" in parts:
            arrays[f"img/embedding/{'kernel' if leaf == 'weight' else leaf}"] = (
                np.transpose(value, (2, 3, 1, 0)) if leaf == "weight" else value
            )
        elif "position_embedding" in parts:
            arrays[f"{tower}/pos_embedding"] = value[None]
        elif "token_embedding" in parts:
            arrays["txt/Embed_0/embedding"] = value
        elif leaf == "probe":
            arrays["img/MAPHead_0/probe"] = value
        elif leaf.startswith("in_proj"):
            for part, piece in zip(("query", "key", "value"), np.split(value, 3), strict=True):
                place = f"img/MAPHead_0/{ATTENTION}/{part}"
                if leaf.endswith("weight"):
                    arrays[f"{place}/kernel"] = piece.T.reshape(WIDTH, heads, WIDTH // heads)
                else:
                    arrays[f"{place}/bias"] = piece.reshape(heads, WIDTH // heads)
        else:
            block = f"{encoder}/encoderblock_{parts[3]}" if "layers" in parts else None
            layer = next(part for part in reversed(parts[:-1]))
            place = {
                "layer_norm1": f"{block}/LayerNorm_0",
                "layer_norm2": f"{block}/LayerNorm_1",
                "post_layernorm": f"{encoder}/encoder_norm",
                "final_layer_norm": f"{encoder}/encoder_norm",
                "layernorm": "img/MAPHead_0/LayerNorm_0",
                "fc1": f"{block or 'img/MAPHead_0'}/MlpBlock_0/Dense_0",
                "fc2": f"{block or 'img/MAPHead_0'}/MlpBlock_0/Dense_1",
                "q_proj": f"{block}/{ATTENTION}/query",
                "k_proj": f"{block}/{ATTENTION}/key",
                "v_proj": f"{block}/{ATTENTION}/value",
                "out_proj": f"{block or 'img/MAPHead_0'}/{ATTENTION}/out",
                "head": "txt/head",
            }[layer]
            width = value.shape[-1]
            if leaf == "weight":
                if "norm" in layer:
                    leaf = "scale"
                elif layer in ("q_proj", "k_proj", "v_proj"):
                    leaf, value = "kernel", value.T.reshape(width, heads, width // heads)
                elif layer == "out_proj":
                    leaf, value = "kernel", value.T.reshape(heads, width // heads, width)
                else:
                    leaf, value = "kernel", value.T
            elif layer in ("q_proj", "k_proj", "v_proj"):
                value = value.reshape(heads, width // heads)
            arrays[f"{place}/{leaf}"] = value
    return arrays


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


def random_pixels(height=SIZE, width=SIZE):
    return torch.randn(
        3, 3, height, width, generator=torch.Generator().manual_seed(height * 100 + width)
    )


def embeddings_of(model, pixels, tokens):
    with torch.no_grad():
        image, text = (
            model.get_image_features(pixel_values=pixels),
            model.get_text_features(input_ids=tokens),
        )
    # transformers 5 gives more than the tensor
    return [getattr(output, "pooler_output", output) for output in (image, text)]


@pytest.mark.parametrize("layout", ["plain", "scanned", "params", "scanned params"])
def test_embeddings_equal_transformers(theirs, arrays, write, layout):
    stored = scanned(arrays) if "scanned" in layout else arrays
    ours = load_model(f"big_vision:{write(trained(stored) if 'params' in layout else stored)}")
    tokens = torch.randint(
        0,
        len(arrays["txt/Embed_0/embedding"]),
        (5, LENGTH),
        generator=torch.Generator().manual_seed(1),
    )
    pixels = random_pixels()
    image, text = embeddings_of(theirs, pixels, tokens)
    with torch.no_grad():
        assert torch.allclose(ours.encode_image(pixels), image, rtol=1e-5, atol=1e-5)
        assert torch.allclose(ours.encode_text(tokens), text, rtol=1e-5, atol=1e-5)
    assert isinstance(ours, ImageTextModel)
    assert isinstance(ours, DenseModel)
    assert (ours.name, ours.image_size, ours.patch_size, ours.embed_dim) == (
        "big_vision:tiny",
        SIZE,
        PATCH,
        WIDTH,
    )
    assert ours.num_params == sum(p.numel() for p in theirs.parameters()) - 2  # less scale and bias
    assert ours.logit_scale == pytest.approx(theirs.logit_scale.exp().item())
    assert ours.logit_bias == pytest.approx(theirs.logit_bias.item())


def test_the_revision_is_of_weights_and_not_of_their_layout(arrays, write):
    first = load_model(f"big_vision:{write(arrays)}").revision
    assert load_model(f"big_vision:{write(trained(scanned(arrays)))}").revision == first
    changed = {**arrays, "img/MAPHead_0/probe": arrays["img/MAPHead_0/probe"] + 1e-3}
    assert load_model(f"big_vision:{write(changed)}").revision != first


def test_bfloat16_arrays_are_read_as_jax_saves_them(theirs, arrays, write):
    """An npz knows no bfloat16: NumPy writes two bytes without a type."""

    def rounded(value):
        return torch.tensor(value).bfloat16()

    stored = {
        name: rounded(value).view(torch.int16).numpy().view("V2") for name, value in arrays.items()
    }
    ours = load_model(f"big_vision:{write(stored)}")
    in_fp32 = {name: rounded(value).float().numpy() for name, value in arrays.items()}
    exact = load_model(f"big_vision:{write(in_fp32)}")
    assert ours.revision == exact.revision
    with torch.no_grad():
        assert ours.encode_image(random_pixels()).dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("t", np.ones(2), r"exp\(t\), the scale has the shape \[2\]"),
        ("t", np.ones(0), r"has the shape \[0\]"),
        ("t", np.array(200.0), r"exp\(t\), the scale is inf"),
        ("b", np.ones((3, 1)), r"b, the bias has the shape \[3, 1\]"),
    ],
)
def test_a_scale_or_bias_that_is_no_number(arrays, write, name, value, words):
    path = write({**arrays, name: value.astype(np.float32)})
    with pytest.raises(UserError, match=f"^{path}: .*{words}.*; it must be one finite number"):
        load_model(f"big_vision:{path}")
    held = load_model(f"big_vision:{write({**arrays, 't': np.full(1, 2.0, np.float32)})}")
    assert held.logit_scale == pytest.approx(np.exp(2.0))


def test_dense_features_pool_back_and_take_the_value_path(theirs, arrays, write):
    ours = load_model(f"big_vision:{write(arrays)}")
    pixels = random_pixels()
    with torch.no_grad():
        tokens = theirs.vision_model(pixel_values=pixels).last_hidden_state
        patches = ours.encode_dense(pixels, ["tokens"])["tokens"]
        assert patches.shape == (3, 3, 3, WIDTH)
        assert torch.allclose(patches.flatten(1, 2), tokens, atol=1e-5)
        assert torch.allclose(
            ours.encode_image(pixels, "mean_patch"), tokens.mean(dim=1), atol=1e-5
        )
        joint = ours.encode_dense(pixels, ["maskclip"])["maskclip"].flatten(1, 2)
        # the head sees one patch at a time: all attention lies on it
        for i in range(tokens.shape[1]):
            assert torch.allclose(
                joint[:, i], theirs.vision_model.head(tokens[:, i : i + 1]), atol=1e-5
            )


def test_any_multiple_of_the_patch_size(arrays, write):
    ours = load_model(f"big_vision:{write(arrays)}")
    with torch.no_grad():
        assert ours.encode_image(random_pixels(40, 16)).shape == (3, WIDTH)
        assert ours.encode_dense(random_pixels(40, 16), ["maskclip"])["maskclip"].shape == (
            3,
            5,
            2,
            WIDTH,
        )
    with pytest.raises(UserError, match="24 x 20 pixels do not divide into patches of 8"):
        ours.encode_image(random_pixels(24, 20))


def test_images_are_squashed_as_transformers_does(arrays, write):
    from transformers.models.siglip import image_processing_pil_siglip as siglip

    ours = load_model(f"big_vision:{write(arrays)}")
    processor = siglip.SiglipImageProcessorPil(size={"height": SIZE, "width": SIZE})
    for width, height in ((31, 47), (101, 25), (5, 7)):
        pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
        image = Image.fromarray(pixels)
        assert torch.equal(
            ours.preprocess(image), processor(image, return_tensors="pt")["pixel_values"][0]
        )


def test_tokens_of_siglip_equal_transformers(arrays, write, pieces):
    ours = load_model(f"big_vision:{write(arrays)}")
    theirs = transformers.SiglipTokenizer(str(pieces["c4_en"]), model_max_length=LENGTH)
    expected = theirs(
        TEXTS, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt"
    )["input_ids"]
    tokens = ours.tokenize(TEXTS)
    assert tokens.dtype == torch.int64
    assert torch.equal(tokens, expected)
    assert tokens[1].tolist() == [1] * LENGTH, "an empty text is all end"
    assert tokens[3, -1] == 1, "a cut text keeps its end"
    assert ours.text_protocol["cleaning"] == "canonicalize"


def test_tokens_of_siglip2_end_with_eos_and_are_filled_with_padding(arrays, write, pieces):
    import sentencepiece

    rows = rows_of(pieces["gemma"])
    table = np.resize(arrays["txt/Embed_0/embedding"], (rows, TEXT_WIDTH))
    ours = load_model(f"big_vision:{write({**arrays, 'txt/Embed_0/embedding': table}, 'gemma')}")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(pieces["gemma"]))
    for text, row in zip(TEXTS, ours.tokenize(TEXTS).tolist(), strict=True):
        ids = processor.encode(
            "".join(letter.lower() if letter.isascii() else letter for letter in text)
        )
        expected = [*ids, 1] if len(ids) < LENGTH else [*ids[: LENGTH - 1], 1]
        assert row == expected + [0] * (LENGTH - len(expected))
    assert ours.text_protocol["padding"] == 0


def test_a_tokenizer_json_serves_too(arrays, write, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    rows = arrays["txt/Embed_0/embedding"].shape[0]
    vocabulary = {
        "<pad>": 0,
        "<eos>": 1,
        "<unk>": 2,
        "cat": 3,
        "dog": 4,
        **{f"w{i}": i for i in range(5, rows)},
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(2)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    ours = load_model(f"big_vision:{write(arrays, tokenizer=None)}")
    assert ours.tokenize(["Cat dog dog xyz"])[0].tolist() == [3, 4, 4, 2, 1] + [0] * (LENGTH - 5)


def test_cleaning():
    assert canonicalize(" A Photo,  of_a\tCAT's\nÉté! ") == "a photo ofa cats été"
    assert lower_ascii("ÉTÉ, Straße!") == "ÉtÉ, straße!"


def test_without_a_tokenizer_images_are_measured_and_texts_refused_by_the_missing_file(
    arrays, write, tmp_path
):
    path = write(arrays, tokenizer=None)
    ours = load_model(f"big_vision:{path}")
    assert not isinstance(ours, ImageTextModel)

    def run(task):
        words = [
            "eval",
            "--ckpt",
            f"big_vision:{path}",
            "--tasks",
            task,
            "--limit",
            "20",
            "--device",
            "cpu",
        ]
        return CliRunner().invoke(cli.app, [*words, "--results", str(tmp_path / "results")])

    refused = run("shapes/zeroshot")
    assert refused.exit_code == 2
    assert "the tokenizer is no part of tiny.npz: put the sentencepiece model" in refused.stderr
    assert str(tmp_path) in refused.stderr
    assert run("shapes/knn").exit_code == 0
    (record,) = [json.loads(file.read_text()) for file in (tmp_path / "results").rglob("*.json")]
    revision = record["model"]["revision"]
    assert revision == load_model(f"big_vision:{write(arrays)}").revision, (
        "the tokenizer does not change the pictures"
    )


def test_an_image_tower_alone(arrays, write, theirs):
    of_images = {name: value for name, value in arrays.items() if name.startswith("img/")}
    ours = load_model(f"big_vision:{write(of_images)}")
    assert "holds no text tower" in ours.lacking["text"]
    with torch.no_grad():
        expected = theirs.vision_model(pixel_values=random_pixels()).pooler_output
        assert torch.allclose(ours.encode_image(random_pixels()), expected, atol=1e-5)


def without(arrays, part):
    return {name: value for name, value in arrays.items() if part not in name}


DAMAGES = {
    "a block": (
        lambda a: without(a, "img/Transformer/encoderblock_1/"),
        "lacks img/Transformer/encoderblock_1/LayerNorm_0",
    ),
    "the head": (lambda a: without(a, "MAPHead_0"), "lacks img/MAPHead_0/LayerNorm_0/bias"),
    "the scale": (lambda a: {name: value for name, value in a.items() if name != "t"}, "lacks t$"),
    "pixels": (lambda a: without(a, "img/embedding"), "no img/embedding/kernel"),
    "all pictures": (lambda a: without(a, "img/"), "holds no img/ arrays"),
    "a projection more": (
        lambda a: {**a, "img/head/kernel": np.ones((4, 4), np.float32)},
        "has also img/head/kernel",
    ),
    "naflex": (
        lambda a: {**a, "img/embedding/kernel": np.ones((192, WIDTH), np.float32)},
        "NaFlex checkpoints load as hf:",
    ),
    "no square": (
        lambda a: {**a, "img/pos_embedding": np.ones((1, 8, WIDTH), np.float32)},
        "no square colour picture",
    ),
    "another width": (
        lambda a: {**a, "img/MAPHead_0/LayerNorm_0/scale": np.ones(7, np.float32)},
        r"head.layernorm.weight \[7\] instead of \[48\]",
    ),
    "a flat key": (
        lambda a: {**a, f"img/MAPHead_0/{ATTENTION}/key/kernel": np.ones(9, np.float32)},
        "in_proj_weight .* instead of",
    ),
    "objects": (
        lambda a: {**a, "img/pos_embedding": np.array([{}, 1], dtype=object)},
        "Python objects",
    ),
    "a text width": (
        lambda a: {**a, "txt/head/kernel": np.ones((TEXT_WIDTH, 9), np.float32)},
        "head.weight",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_a_sentence(arrays, write, damage):
    harm, words = DAMAGES[damage]
    with pytest.raises(UserError, match=words) as caught:
        load_model(f"big_vision:{write(harm(dict(arrays)))}")
    assert "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load_model(f"big_vision:{tmp_path}/x.npz")
    (tmp_path / "x.npz").write_text("hello")
    with pytest.raises(UserError):
        load_model(f"big_vision:{tmp_path}/x.npz")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("tokenizer.model", b"no model", "is no sentencepiece model"),
        ("tokenizer.json", b"{}", "is no tokenizer"),
        ("spiece.model", None, "120 pieces|pieces, the text tower"),
    ],
)
def test_tokenizer_files_that_do_not_fit(arrays, write, tmp_path, pieces, name, content, words):
    larger = np.zeros((5000, TEXT_WIDTH), np.float32)
    (tmp_path / name).write_bytes(pieces["c4_en"].read_bytes() if content is None else content)
    with pytest.raises(UserError, match=words):
        load_model(
            f"big_vision:{write({**arrays, 'txt/Embed_0/embedding': larger}, tokenizer=None)}"
        )


def test_arch_is_a_check(arrays, write):
    path = write(arrays)
    for arch, words in (
        ("B/16", r"is not B/16 but TowerShape\(width=48"),
        ("So400n/14", "did you mean So400m"),
        ("B", "does not say the patch size"),
        ("B/16@x", "does not say the patch size"),
    ):
        with pytest.raises(UserError, match=words):
            load_model(f"big_vision:{path}", arch)


def test_arch_of_a_true_size(theirs, write, monkeypatch):
    from silc_bench.models.adapters import big_vision

    tower = big_vision.TowerShape(WIDTH, 3, 80, HEADS)
    monkeypatch.setitem(big_vision.VARIANTS, "Nano", tower)
    path = write(flax_arrays(theirs))
    for arch in ("Nano/8", "Nano/8@24"):
        assert load_model(f"big_vision:{path}", arch).image_size == SIZE
    with pytest.raises(UserError, match="is not Nano/8@32 but Nano/8@24"):
        load_model(f"big_vision:{path}", "Nano/8@32")


def test_patches_that_leave_a_rest(theirs, write, monkeypatch):
    """So400m/14 was trained on 384 pixels, and its 27 patches see 378.

    Here 3 patches of 8 see 24 of 29.
    """
    from silc_bench.models.adapters import big_vision

    monkeypatch.setitem(big_vision.VARIANTS, "Nano", big_vision.TowerShape(WIDTH, 3, 80, HEADS))
    path = write(flax_arrays(theirs))
    asked = load_model(f"big_vision:{path}", "Nano/8@29")
    monkeypatch.setitem(big_vision.RESOLUTIONS, (PATCH, 3), 29)
    known = load_model(f"big_vision:{path}")
    assert asked.revision == known.revision
    for ours in (asked, known):
        pixels = ours.preprocess(Image.new("RGB", (50, 40), "red"))[None]
        assert pixels.shape[-1] == ours.image_size == 29
        with torch.no_grad():
            assert torch.equal(ours.encode_image(pixels), ours.encode_image(pixels[..., :24, :24]))
            assert ours.encode_dense(pixels, ["tokens"])["tokens"].shape[1:3] == (3, 3)
