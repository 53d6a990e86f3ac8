"""The same weights through open_clip: and through hf: - equal embeddings, two revisions."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1]))

from images_and_runs import close, image_of, noise, pixels_of

from silc_bench.models.load import load_model
from silc_bench.models.patch_features import METHODS

open_clip = pytest.importorskip("open_clip")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.broad

VISION = {"image_size": 32, "layers": 2, "width": 32, "head_width": 8, "patch_size": 8}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 2}
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
TEXTS = [
    "",
    "a photo of a cat",
    "A Photo, don't you think",
    "naïve café",
    "一只猫坐在沙发上",
    "🐈 on a 🛋️",
    "word " * 200,
]
# open_clip's names -> transformers', part by part and in this order; queries, keys and values are
# one matrix in open_clip
NAMES = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.": "vision_model.embeddings.patch_embedding.",
    "visual.ln_pre.": "vision_model.pre_layrnorm.",
    "visual.ln_post.": "vision_model.post_layernorm.",
    "visual.proj": "visual_projection.weight",
    "visual.transformer.resblocks.": "vision_model.encoder.layers.",
    "text_projection": "text_projection.weight",
    "token_embedding.": "text_model.embeddings.token_embedding.",
    "ln_final.": "text_model.final_layer_norm.",
    "attn.out_proj.": "self_attn.out_proj.",
    "ln_1.": "layer_norm1.",
    "ln_2.": "layer_norm2.",
    "mlp.c_fc.": "mlp.fc1.",
    "mlp.c_proj.": "mlp.fc2.",
}
OF_TEXT = {
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "transformer.resblocks.": "text_model.encoder.layers.",
}


def to_transformers(state):
    """open_clip's names -> transformers'."""
    renamed = {}
    for name, value in state.items():
        for old, new in (NAMES if name.startswith("visual.") else OF_TEXT | NAMES).items():
            name = name.replace(old, new)
        if name.endswith("_projection.weight"):
            value = value.T.contiguous()
        if "attn.in_proj_" not in name:
            renamed[name] = value
            continue
        for part, piece in zip("qkv", value.chunk(3), strict=True):
            renamed[name.replace("attn.in_proj_", f"self_attn.{part}_proj.")] = piece.contiguous()
    return renamed


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """One random network in both layouts, read by both adapters."""
    ours, theirs = (tmp_path_factory.mktemp(name) for name in ("open_clip", "hf"))
    config = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT, "quick_gelu": True}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = open_clip.CLIP(**config)
        for parameter in network.parameters():
            parameter.data.add_(torch.randn_like(parameter), alpha=0.02)
    kept = network.state_dict().items()
    state = {name: value.contiguous() for name, value in kept if name != "attn_mask"}
    content = {"model_cfg": config, "preprocess_cfg": {"mean": MEAN, "std": STD}}
    (ours / "open_clip_config.json").write_text(json.dumps(content))
    save_file(state, ours / "open_clip_model.safetensors")

    shared = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
    }
    vision = {**shared, "image_size": 32, "patch_size": 8}
    text = {
        **shared,
        "vocab_size": 49408,
        "eos_token_id": 49407,
        "max_position_embeddings": 77,
        "pad_token_id": 0,
    }
    transformers.CLIPConfig(
        vision_config=vision, text_config=text, projection_dim=24
    ).save_pretrained(theirs)
    save_file(to_transformers(state), theirs / "model.safetensors")
    pixels = {
        "image_processor_type": "CLIPImageProcessor",
        "size": 32,
        "crop_size": 32,
        "resample": 3,
    }
    (theirs / "preprocessor_config.json").write_text(
        json.dumps({**pixels, "image_mean": MEAN, "image_std": STD})
    )
    simple = open_clip.SimpleTokenizer()
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocab = {names.get(token, token): index for token, index in simple.encoder.items()}
    (theirs / "vocab.json").write_text(json.dumps(vocab))
    merges = ["#version: 0.2", *(" ".join(merge) for merge in simple.bpe_ranks)]
    (theirs / "merges.txt").write_text("\n".join(merges), encoding="utf-8")
    # 0, with which open_clip pads
    settings = {"tokenizer_class": "CLIPTokenizer", "pad_token": "!"}
    (theirs / "tokenizer_config.json").write_text(json.dumps(settings))
    return load_model(f"open_clip:{ours}"), load_model(f"hf:{theirs}")


def test_pixels_tokens_and_embeddings_are_equal(pair):
    left, right = pair
    # elsewhere the two libraries round the offset of the crop differently
    images = [image_of(*size) for size in [(64, 64), (32, 32), (96, 48)]]
    pixels = pixels_of(left.preprocess, images)
    assert torch.equal(pixels, pixels_of(right.preprocess, images))
    assert left.feature_points == right.feature_points
    for point in left.feature_points:
        assert close(left.encode_image(pixels, point), right.encode_image(pixels, point))
    tokens = left.tokenize(TEXTS)
    assert torch.equal(tokens, right.tokenize(TEXTS))
    assert close(left.encode_text(tokens), right.encode_text(tokens))
    assert left.logit_scale == right.logit_scale
    assert left.num_params == right.num_params
    assert left.revision != right.revision, "names of weights are the library's"


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (48, 24)])
def test_dense_features_are_equal_at_any_size(pair, size):
    left, right = (model.encode_dense(noise(2, 3, *size), model.dense_methods) for model in pair)
    assert left.keys() == right.keys() == {*METHODS, "tokens:2"}
    for method in left:
        assert left[method].shape == right[method].shape
        assert close(left[method], right[method])
