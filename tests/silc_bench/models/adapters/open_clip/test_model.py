"""open_clip's own embeddings, pixels and token ids, a tiny model a family; maps; and refusals.

The maps are checked from their weights.
"""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import functools
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from silc_bench.cli import app as cli
from silc_bench.errors import UserError
from silc_bench.models.adapters.open_clip import model as adapter
from silc_bench.models.interface import DenseModel, ImageTextModel
from silc_bench.models.load import load_model

open_clip = pytest.importorskip("open_clip")

pytestmark = pytest.mark.broad

SIZES = [(211, 97), (40, 333), (64, 64), (7, 5)]
TEXTS = [
    "",
    " ",
    "a photo of a cat",
    "A Photo  of a CAT!",
    "naïve café, crème brûlée",
    "ÅÄÖ ñandú žluťoučký",
    "🐈 on a 🛋️",
    "👨‍👩‍👧‍👦",
    "一只猫坐在沙发上",
    "ソファーの上の猫",
    "소파 위의 고양이",
    "кошка на диване",
    "قطة على الأريكة",
    "it's &amp;quot;quoted&amp;quot; &lt;b&gt;",
    "snake_case_name and {braces}",
    "tabs\tand\nlines",
    "1234567890 3.14 1e-5",
    "word " * 200,
    "一" * 300,
    "🙂" * 100,
    *(f"a photo of {n} things, number {n * 7}" for n in range(30)),
]
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 2}
VIT = {"image_size": 32, "layers": 2, "width": 32, "head_width": 8, "patch_size": 8}
COCA = {
    **VIT,
    "attentional_pool": True,
    "attn_pooler_queries": 5,
    "attn_pooler_heads": 4,
    "output_tokens": True,
}


def timm_tower(name, pool, proj, size=32):
    return {"image_size": size, "timm_model_name": name, "timm_pool": pool, "timm_proj": proj}


SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 4}


def small_map(pretrained=False, **others):
    """timm's SigLIP tower, small."""
    from timm.models.vision_transformer import _create_vision_transformer

    return _create_vision_transformer(
        "vit_base_patch16_siglip_224", **{**SMALL, "class_token": False, **others}
    )


def small_rest(pretrained=False, **others):
    """The same, trained at a size that is no whole number of patches."""
    return small_map(**{"img_size": 34, **others})


def small_gap(pretrained=False, **others):
    """A ViT of timm with a class token that is left out of the mean, and its norm before."""
    from timm.models.vision_transformer import _create_vision_transformer

    return _create_vision_transformer(
        "test_vit2", **{**SMALL, "global_pool": "avg", "fc_norm": False, **others}
    )


def small_swin(pretrained=False, **others):
    """A Swin transformer: its map has channels last, and its windows are cut for one size."""
    from timm.models.swin_transformer import _create_swin_transformer

    sizes = {
        "img_size": 32,
        "patch_size": 4,
        "window_size": 4,
        "embed_dim": 24,
        "depths": (1, 2),
        "num_heads": (2, 4),
    }
    return _create_swin_transformer("swin_tiny_patch4_window7_224", **{**sizes, **others})


def small_eva(pretrained=False, **others):
    """timm's EVA02 tower, small: rotary positions beside learned ones, gates, norms inside."""
    from timm.models.eva import _create_eva

    eva = {
        "qkv_fused": False,
        "swiglu_mlp": True,
        "scale_mlp": True,
        "scale_attn_inner": True,
        "use_rot_pos_emb": True,
    }
    return _create_eva(
        "eva02_base_patch16_clip_224", **{**SMALL, **eva, "ref_feat_shape": (4, 4), **others}
    )


def configs(reader):
    """{architecture: its configuration}.

    ``reader``: a folder with a tokenizer and a text tower of transformers.
    """
    siglip_text = {
        "context_length": 16,
        "vocab_size": 400,
        "width": 32,
        "heads": 4,
        "layers": 2,
        "no_causal_mask": True,
    }
    siglip_text |= {"proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}}
    siglip_text |= {"hf_tokenizer_name": str(reader), "tokenizer_kwargs": {"clean": "canonicalize"}}
    coca_text = {**TEXT, "context_length": 76}
    hf_text = {
        "hf_model_name": str(reader),
        "hf_tokenizer_name": str(reader),
        "context_length": 20,
        "hf_pooler_type": "mean_pooler",
    }
    blocks = {"qk_norm": True, "scale_heads": True, "scale_attn": True, "ls_init_value": 0.1}
    clipa = {"pool_type": "avg", "no_ln_pre": True, "final_ln_after_pool": True}
    base = {"embed_dim": 24, "text_cfg": TEXT}
    return {
        "tiny-vit": {**base, "vision_cfg": VIT},
        "tiny-vit-quickgelu": {**base, "vision_cfg": VIT, "quick_gelu": True},
        "tiny-blocks": {**base, "vision_cfg": {**VIT, **blocks}},
        "tiny-clipa": {**base, "vision_cfg": {**VIT, **clipa}},
        "tiny-resnet": {
            **base,
            "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8},
        },
        "tiny-coca": {
            **base,
            "vision_cfg": COCA,
            "text_cfg": {**coca_text, "embed_cls": True, "output_tokens": True},
            "multimodal_cfg": coca_text,
            "custom_text": True,
        },
        "tiny-siglip": {
            "embed_dim": 48,
            "vision_cfg": timm_tower("small_map", "map", "none"),
            "text_cfg": siglip_text,
            "custom_text": True,
            "init_logit_bias": -10,
        },
        "tiny-rest": {
            "embed_dim": 48,
            "vision_cfg": timm_tower("small_rest", "map", "none", 34),
            "text_cfg": TEXT,
            "custom_text": True,
        },
        "tiny-eva": {
            **base,
            "vision_cfg": timm_tower("small_eva", "token", None),
            "custom_text": True,
        },
        "tiny-gap": {**base, "vision_cfg": timm_tower("small_gap", "", "linear")},
        "tiny-convnext": {**base, "vision_cfg": timm_tower("test_convnext", "", "mlp", 128)},
        "tiny-swin": {**base, "vision_cfg": timm_tower("small_swin", "", "linear")},
        "tiny-max": {**base, "vision_cfg": timm_tower("small_gap", "max", "linear")},
        "tiny-roberta": {**base, "vision_cfg": VIT, "text_cfg": hf_text},
    }


ARCHS = list(configs(""))
GRIDS = ["tiny-vit", "tiny-clipa", "tiny-coca", "tiny-siglip", "tiny-eva", "tiny-gap"]


def make_reader(folder):
    """A byte-level tokenizer and the configuration of a small text tower, as cached."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast, RobertaConfig

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["a photo of a cat", "things and numbers"], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
    )
    fast.save_pretrained(folder)
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 48,
    }
    RobertaConfig(
        vocab_size=300,
        max_position_embeddings=40,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        **sizes,
    ).save_pretrained(folder)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder of configurations that open_clip knows during this file.

    As timm knows the small towers.
    """
    import timm

    for small in (small_map, small_rest, small_gap, small_swin, small_eva):
        timm.models.register_model(small)
    reads = open_clip.factory.SimpleTokenizer
    # the same vocabulary, parsed once instead of thirty times
    open_clip.factory.SimpleTokenizer = functools.cache(reads)
    folder = tmp_path_factory.mktemp("open_clip")
    (folder / "archs").mkdir()
    make_reader(folder / "reader")
    for name, config in configs(folder / "reader").items():
        (folder / "archs" / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / "archs")
    yield folder
    open_clip.factory.SimpleTokenizer = reads
    open_clip.factory._MODEL_CONFIG_PATHS.remove(folder / "archs")
    for name in ARCHS:
        del open_clip.factory._MODEL_CONFIGS[name]


@pytest.fixture(scope="module")
def models(home):
    """Each architecture once: open_clip's own with random weights, and ours from its file."""
    known = {}

    def pair(arch):
        if arch not in known:
            theirs = open_clip.create_model(arch, pretrained_text=False).eval()
            draw(theirs)
            torch.save(theirs.state_dict(), home / f"{arch}.pt")
            known[arch] = load_model(f"open_clip:{arch}/{home / arch}.pt"), theirs
        return known[arch]

    return pair


def draw(network):
    """Random biases, norms and statistics too: a weight that is left out shows."""
    generator = torch.Generator().manual_seed(1)
    for name, value in network.state_dict().items():
        if name.endswith("running_var"):
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
        elif value.is_floating_point() and value.ndim:
            if not value.isfinite().all() or "text_decoder.text_projection" in name:
                value.zero_()  # never initialised by the library
            value.add_(0.1 * torch.randn(value.shape, generator=generator))
    for parameter in network.parameters():
        parameter.requires_grad_(False)


def picture(width, height):
    pixels = np.random.default_rng(width * 1000 + height).integers(
        0, 256, (height, width, 3), dtype=np.uint8
    )
    return Image.fromarray(pixels)


def noise(model, batch=2, more=(0, 0)):
    """Pictures of the trained size, or ``more`` patches higher and wider."""
    side, P = model.image_size, model.patch_size
    return torch.randn(
        batch, 3, side + more[0] * P, side + more[1] * P, generator=torch.Generator().manual_seed(3)
    )


def close(left, right, tolerance=1e-5):
    return torch.allclose(left, right, rtol=tolerance, atol=tolerance)


def refused(spec, *words):
    with pytest.raises(UserError) as error:
        load_model(spec)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
    return message


@pytest.mark.parametrize("arch", ARCHS)
@torch.no_grad()
def test_embeddings_pixels_and_tokens_are_open_clips_own(models, arch):
    ours, theirs = models(arch)
    assert isinstance(ours, ImageTextModel)
    assert isinstance(ours, DenseModel)
    transform = open_clip.transform.image_transform_v2(
        open_clip.transform.PreprocessCfg(**open_clip.get_model_preprocess_cfg(theirs)),
        is_train=False,
    )
    pictures = [picture(*size) for size in SIZES]
    pixels = torch.stack([transform(image) for image in pictures])
    assert torch.equal(torch.stack([ours.preprocess(image) for image in pictures]), pixels)
    embeddings = ours.encode_image(pixels)
    assert embeddings.dtype == torch.float32
    assert embeddings.shape == (len(SIZES), ours.embed_dim)
    assert close(embeddings, theirs.encode_image(pixels, normalize=False))
    tokens = ours.tokenize(TEXTS)
    assert torch.equal(tokens, open_clip.get_tokenizer(arch)(TEXTS))
    assert tokens.dtype == torch.int64
    texts = ours.encode_text(tokens)
    assert texts.shape == (50, ours.embed_dim)
    assert close(texts, theirs.encode_text(tokens, normalize=False))
    assert ours.logit_scale == pytest.approx(theirs.logit_scale.exp().item())
    assert ours.logit_bias == (0 if theirs.logit_bias is None else theirs.logit_bias.item())
    json.dumps([ours.image_protocol, ours.text_protocol, ours.settings])


def test_protocols_say_what_decides_pixels_and_tokens(models):
    clip, siglip = models("tiny-vit")[0], models("tiny-siglip")[0]
    assert clip.image_protocol["resize"] == "shortest"
    assert clip.text_protocol["cleaning"] == "lower"
    assert clip.text_protocol["length"] == 77
    assert clip.text_protocol["tokenizer"] == "SimpleTokenizer"
    assert clip.text_protocol["padding"] == 0
    assert siglip.text_protocol["cleaning"] == "canonicalize"
    assert siglip.text_protocol["length"] == 16
    assert siglip.text_protocol["padding"] == 1
    assert siglip.text_protocol["vocabulary"] != clip.text_protocol["vocabulary"]
    assert siglip.logit_bias != 0
    assert siglip.name == "open_clip:tiny-siglip/tiny-siglip.pt"


@pytest.mark.parametrize("arch", ARCHS)
@torch.no_grad()
def test_feature_points_have_their_widths(models, arch):
    ours, theirs = models(arch)
    images = noise(ours)
    for point, width in ours.feature_points.items():
        assert ours.encode_image(images, point).shape == (2, width)
    assert close(
        ours.encode_image(images, "mean_patch"),
        ours.encode_dense(images, ["tokens"])["tokens"].mean(dim=(1, 2)),
    )
    if "pre_projection" not in ours.feature_points:
        assert arch in ("tiny-siglip", "tiny-rest")  # pooled as it is
        return
    before, visual = ours.encode_image(images, "pre_projection"), theirs.visual
    if hasattr(visual, "trunk"):
        projected = visual.head(visual.trunk.get_classifier()(before))
    else:
        projected = (
            visual.attnpool.c_proj(before) if hasattr(visual, "attnpool") else before @ visual.proj
        )
    assert close(projected, ours.encode_image(images))


@pytest.mark.parametrize(
    "arch",
    [
        "tiny-vit",
        "tiny-blocks",
        "tiny-resnet",
        "tiny-siglip",
        "tiny-eva",
        "tiny-gap",
        "tiny-convnext",
    ],
)
@torch.no_grad()
def test_patches_are_the_librarys_last_features(models, arch):
    ours, theirs = models(arch)
    images = noise(ours)
    last = theirs.visual.forward_intermediates(
        images, indices=[4 if arch == "tiny-resnet" else -1], normalize_intermediates=True
    )
    if arch == "tiny-convnext":  # its intermediates pass a norm that its features do not
        last = {"image_intermediates": [theirs.visual.trunk.forward_features(images)]}
    assert close(
        ours.encode_dense(images, ["tokens"])["tokens"],
        last["image_intermediates"][-1].permute(0, 2, 3, 1),
    )


@pytest.mark.parametrize("arch", ["tiny-vit", "tiny-vit-quickgelu"])
@torch.no_grad()
def test_joint_map_of_a_class_token_is_the_value_path_of_its_last_block(models, arch):
    ours, theirs = models(arch)
    images, visual = noise(ours), theirs.visual
    x = visual._embeds(images)
    for block in visual.transformer.resblocks[:-1]:
        x = block(x)
    w, W = {name: value.double() for name, value in visual.state_dict().items()}, 32
    last, x = "transformer.resblocks.1.", x.double()[:, 1:]

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        return (
            centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * w[name + ".weight"]
            + w[name + ".bias"]
        )

    values = (
        norm(x, last + "ln_1") @ w[last + "attn.in_proj_weight"][2 * W :].T
        + w[last + "attn.in_proj_bias"][2 * W :]
    )
    x = x + values @ w[last + "attn.out_proj.weight"].T + w[last + "attn.out_proj.bias"]
    hidden = norm(x, last + "ln_2") @ w[last + "mlp.c_fc.weight"].T + w[last + "mlp.c_fc.bias"]
    gate = (
        torch.sigmoid(1.702 * hidden)
        if arch.endswith("quickgelu")
        else 0.5 * (1 + torch.erf(hidden / 2**0.5))
    )
    x = x + (hidden * gate) @ w[last + "mlp.c_proj.weight"].T + w[last + "mlp.c_proj.bias"]
    expected = norm(x, "ln_post") @ w["proj"]
    assert close(
        ours.encode_dense(images, ["maskclip"])["maskclip"], expected.unflatten(1, (4, 4)).float()
    )


@torch.no_grad()
def test_joint_maps_of_other_blocks_see_each_token_alone(models):
    ours, theirs = models("tiny-blocks")
    images, visual = noise(ours), theirs.visual
    x = visual.transformer.resblocks[0](visual._embeds(images))
    x = visual.transformer.resblocks[1](x.reshape(-1, 1, 32)).view_as(x)[:, 1:]
    assert close(
        ours.encode_dense(images, ["maskclip"])["maskclip"].flatten(1, 2),
        visual.ln_post(x) @ visual.proj,
    )
    ours, theirs = models("tiny-eva")
    images, trunk = noise(ours), theirs.visual.trunk
    inputs = []
    handle = trunk.blocks[-1].register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    trunk(images)
    handle.remove()
    x = trunk.blocks[-1](inputs[0].reshape(-1, 1, 48), rope=None).view_as(inputs[0])[:, 1:]
    assert close(
        ours.encode_dense(images, ["maskclip"])["maskclip"].flatten(1, 2), trunk.head(trunk.norm(x))
    )


@pytest.mark.parametrize(
    "arch", ["tiny-clipa", "tiny-coca", "tiny-siglip", "tiny-gap", "tiny-convnext", "tiny-swin"]
)
@torch.no_grad()
def test_a_joint_patch_is_what_pooling_gives_where_all_patches_are_that_one(models, arch):
    ours, theirs = models(arch)
    images, visual = noise(ours, batch=1), theirs.visual
    method = "maskclip" if arch in ("tiny-coca", "tiny-siglip") else "plain"
    features = ours.encode_dense(images, ["tokens", method])
    patches, joint = features["tokens"], features[method]
    for row, column in ((0, 0), (1, 3), (3, 2)):
        token = patches[:, row, column]
        if arch == "tiny-convnext":
            pooled = visual.head(
                visual.trunk.forward_head(token[:, :, None, None].expand(-1, -1, 5, 5))
            )
        elif arch == "tiny-swin":
            pooled = visual.head(
                visual.trunk.forward_head(token[:, None, None].expand(-1, 5, 5, -1))
            )
        elif hasattr(visual, "trunk"):
            pooled = visual.head(visual.trunk.forward_head(token[:, None].expand(-1, 6, -1)))
        else:
            pooled = visual._pool(token[:, None].expand(-1, 6, -1))[0] @ visual.proj
        assert close(joint[:, row, column], pooled)


@torch.no_grad()
def test_map_pooling_is_the_mean_of_the_values_as_its_heads_weigh_them(models):
    ours, _ = models("tiny-siglip")
    images, pool = noise(ours), ours.network.visual.trunk.attn_pool
    tokens = ours.encode_dense(images, ["tokens"])["tokens"].flatten(1, 2)
    heads, d = pool.num_heads, 48 // pool.num_heads
    q = pool.q(pool.latent)[0, 0].view(heads, d)
    k, v = pool.kv(tokens).view(2, 16, 2, heads, d).unbind(2)
    weights = torch.einsum("hd,bnhd->bhn", q, k).mul(d**-0.5).softmax(-1)
    assert (weights - 1 / 16).abs().max() > 1e-4

    def finish(values):
        values = pool.proj(values)
        return values + pool.mlp(pool.norm(values))

    pooled = torch.einsum("bhn,bnhd->bhd", weights, v).flatten(1)
    assert close(finish(pooled), ours.encode_image(images))
    assert close(
        finish(v.flatten(2)), ours.encode_dense(images, ["maskclip"])["maskclip"].flatten(1, 2)
    )


@torch.no_grad()
def test_resnet_pooling_is_the_mean_of_the_values_as_its_heads_weigh_them(models):
    ours, _ = models("tiny-resnet")
    images, pool = noise(ours), ours.network.visual.attnpool
    locations = ours.encode_dense(images, ["tokens"])["tokens"].flatten(1, 2)
    x = torch.cat([locations.mean(1, keepdim=True), locations], 1) + pool.positional_embedding
    heads, d = pool.num_heads, 256 // pool.num_heads
    q, k, v = (f(x).unflatten(2, (heads, d)) for f in (pool.q_proj, pool.k_proj, pool.v_proj))
    weights = torch.einsum("bhd,bnhd->bhn", q[:, 0], k).mul(d**-0.5).softmax(-1)
    assert close(
        pool.c_proj(torch.einsum("bhn,bnhd->bhd", weights, v).flatten(1)), ours.encode_image(images)
    )
    assert close(
        pool.c_proj(v.flatten(2))[:, 1:],
        ours.encode_dense(images, ["maskclip"])["maskclip"].flatten(1, 2),
    )


@torch.no_grad()
def test_a_mean_of_joint_patches_is_the_embedding_where_the_norm_comes_first(models):
    ours, _ = models("tiny-gap")
    assert close(
        ours.encode_dense(noise(ours), ["plain"])["plain"].mean(dim=(1, 2)),
        ours.encode_image(noise(ours)),
    )


@pytest.mark.parametrize("arch", ["tiny-coca", "tiny-siglip", "tiny-eva", "tiny-gap"])
@torch.no_grad()
def test_all_methods_share_one_pass(models, arch):
    ours, _ = models(arch)
    images, visual = noise(ours), ours.network.visual
    blocks = visual.trunk.blocks if hasattr(visual, "trunk") else visual.transformer.resblocks
    calls = []
    handle = blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    together = ours.encode_dense(images, ours.dense_methods)
    handle.remove()
    assert len(calls) == 1
    assert ("plain" in together) == (arch in ("tiny-eva", "tiny-gap"))
    for method, features in together.items():
        assert close(features, ours.encode_dense(images, [method])[method])
    joint = [features for method, features in together.items() if "tokens" not in method]
    assert len({features.sum().item() for features in joint}) == len(joint) >= 4


@torch.no_grad()
def test_a_map_has_one_path_to_text(models):
    ours, _ = models("tiny-convnext")
    assert ours.dense_methods == ("tokens", "plain")
    with pytest.raises(
        UserError,
        match=(
            "'maskclip': it pools the mean of a map and has no attention to change; ask for plain"
        ),
    ):
        ours.encode_dense(noise(ours), ["maskclip"])


@pytest.mark.parametrize("arch", GRIDS)
@torch.no_grad()
def test_another_size_is_what_open_clip_gives_when_built_for_it(models, home, arch):
    ours, _ = models(arch)
    at_home = ours.encode_image(noise(ours))
    images = noise(ours, more=(1, 3))
    bigger = open_clip.create_model(
        arch, pretrained=str(home / f"{arch}.pt"), force_image_size=tuple(images.shape[2:])
    ).eval()
    # the library resizes positions of squares only when it loads
    if not hasattr(bigger.visual, "trunk"):
        square = noise(ours, more=(2, 2))
        bigger = open_clip.create_model(
            arch, pretrained=str(home / f"{arch}.pt"), force_image_size=square.shape[2]
        ).eval()
        images = square
    assert close(ours.encode_image(images), bigger.encode_image(images, normalize=False), 2e-5)
    wide = noise(ours, more=(1, 3))
    h, w = wide.shape[2] // ours.patch_size, wide.shape[3] // ours.patch_size
    for features in ours.encode_dense(wide, ours.dense_methods).values():
        assert features.shape[:3] == (2, h, w)
    assert torch.equal(ours.encode_image(noise(ours)), at_home)


@pytest.mark.parametrize("arch", ["tiny-resnet", "tiny-convnext"])
@torch.no_grad()
def test_maps_take_other_sizes_too(models, arch):
    ours, _ = models(arch)
    at_home, side = ours.encode_image(noise(ours)), ours.image_size // 32
    method = ours.dense_methods[-1]
    assert ours.encode_dense(noise(ours, more=(1, 2)), [method])[method].shape == (
        2,
        side + 1,
        side + 2,
        24,
    )
    assert ours.encode_image(noise(ours, more=(1, 2))).isfinite().all()
    assert torch.equal(ours.encode_image(noise(ours)), at_home)


@torch.no_grad()
def test_a_size_that_does_not_divide_is_refused(models):
    ours, _ = models("tiny-vit")
    for call in (
        ours.encode_image,
        lambda images: ours.encode_dense(images, ["maskclip"])["maskclip"],
    ):
        with pytest.raises(UserError, match="patches of 8 pixels; 36 x 32"):
            call(torch.zeros(1, 3, 36, 32))


@torch.no_grad()
def test_a_trained_size_that_does_not_divide_is_taken_as_it_is_and_no_other(models):
    """As So400m/14 at 384 pixels: the rest of 6 belongs to no patch."""
    ours, theirs = models("tiny-rest")
    assert (ours.image_size, ours.patch_size) == (34, 8)
    images = torch.randn(2, 3, 34, 34, generator=torch.Generator().manual_seed(3))
    assert torch.equal(ours.encode_image(images), theirs.encode_image(images))
    patches = ours.encode_dense(images, ["tokens"])["tokens"]
    assert close(patches.flatten(1, 2), theirs.visual.trunk.forward_features(images))
    assert patches.shape == (2, 4, 4, 48)
    assert ours.encode_dense(images, ["maskclip"])["maskclip"].shape == (2, 4, 4, 48)
    assert ours.encode_image(images, "mean_patch").shape == (2, 48)
    for side in (32, 40):
        with pytest.raises(
            UserError, match=f"pictures of 34 x 34 pixels only, not {side} x {side}"
        ):
            ours.encode_image(torch.zeros(1, 3, side, side))


@torch.no_grad()
def test_what_a_tower_cannot_do_is_refused_with_the_reason(models):
    swin, _ = models("tiny-swin")
    with pytest.raises(UserError, match="pictures of 32 x 32 pixels only, not 40 x 40"):
        swin.encode_image(noise(swin, more=(1, 1)))
    ours, _ = models("tiny-max")
    assert ours.encode_dense(noise(ours), ["tokens"])["tokens"].shape == (2, 4, 4, 48)
    with pytest.raises(
        UserError,
        match=r"tiny-max\.pt cannot give dense .* its pooling 'max' says nothing of a patch alone",
    ):
        ours.encode_dense(noise(ours), ["maskclip"])["maskclip"]


@pytest.mark.parametrize("arch", ["tiny-vit", "tiny-siglip", "tiny-eva", "tiny-resnet"])
@torch.no_grad()
def test_bf16_autocast_changes_little(models, arch):
    ours, _ = models(arch)
    for call in (
        ours.encode_image,
        lambda images: ours.encode_dense(images, ["maskclip"])["maskclip"],
    ):
        exact = call(noise(ours))
        with torch.autocast("cpu", torch.bfloat16):
            half = call(noise(ours))
        assert half.dtype == torch.float32
        assert (half - exact).abs().max() < 0.05 * exact.abs().max()


def test_activation_is_part_of_the_revision(models, home):
    plain, quick = (
        models("tiny-vit")[0],
        load_model(f"open_clip:tiny-vit-quickgelu/{home / 'tiny-vit.pt'}"),
    )
    assert plain.settings["quick_gelu"] is False
    assert quick.settings["quick_gelu"] is True
    assert quick.revision != plain.revision
    with torch.no_grad():
        assert not close(quick.encode_image(noise(quick)), plain.encode_image(noise(plain)))
    state = torch.load(home / "tiny-vit.pt", weights_only=True)
    numbers = {
        name: torch.tensor(7) for name in ("input_resolution", "context_length", "vocab_size")
    }
    torch.save({**state, **numbers}, home / "of_openai.pt")
    assert load_model(f"open_clip:tiny-vit/{home / 'of_openai.pt'}").revision == quick.revision


def test_a_tag_brings_its_preprocessing_and_activation_and_a_file_what_all_tags_agree_on(
    models, home, monkeypatch
):
    plain, _ = models("tiny-vit")
    about = {
        "file": str(home / "tiny-vit.pt"),
        "mean": (0.5, 0.4, 0.3),
        "std": (0.5, 0.5, 0.5),
        "interpolation": "bilinear",
    }
    tags = {"mine": {**about, "resize_mode": "squash", "quick_gelu": True}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-vit", tags)
    tagged = load_model("open_clip:tiny-vit/mine")
    assert tagged.name == "open_clip:tiny-vit/mine"
    assert tagged.settings["quick_gelu"] is True
    with pytest.warns(UserWarning, match="QuickGELU"):
        theirs, _, transform = open_clip.create_model_and_transforms("tiny-vit", pretrained="mine")
    for size in SIZES:
        assert torch.equal(tagged.preprocess(picture(*size)), transform(picture(*size)))
    forced = open_clip.create_model(
        "tiny-vit", pretrained=about["file"], force_quick_gelu=True
    ).eval()
    with torch.no_grad():
        images = noise(tagged)
        assert close(tagged.encode_image(images), forced.encode_image(images))
        # a warning is all it does
        assert not close(tagged.encode_image(images), theirs.eval().encode_image(images))
    file = load_model(f"open_clip:tiny-vit/{home / 'tiny-vit.pt'}")
    assert file.image_protocol == tagged.image_protocol
    assert file.revision == plain.revision  # weights and activation; pixels are in the protocol
    tags["other"] = {**tags["mine"], "resize_mode": "shortest"}
    assert (
        load_model(f"open_clip:tiny-vit/{home / 'tiny-vit.pt'}").image_protocol
        == plain.image_protocol
    )
    message = refused("open_clip:tiny-vit", "mine", "other", "random", "PATH")
    assert message.startswith("open_clip:tiny-vit names no weights")
    refused("open_clip:tiny-vit/mime", "mine")


@pytest.mark.parametrize("kind", ["parallel", "cascade"])
def test_a_tower_pooled_twice_is_refused(home, tmp_path, kind):
    config = json.loads((home / "archs" / "tiny-vit.json").read_text())
    config["vision_cfg"] |= {**COCA, "attentional_pool": kind}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    vision = {**config["vision_cfg"], "output_tokens": False}
    torch.save(
        open_clip.CLIP(24, vision, TEXT).state_dict(), tmp_path / "open_clip_pytorch_model.bin"
    )
    refused(f"open_clip:{tmp_path}", f"pooled twice (attentional_pool '{kind}')")


def test_a_file_is_never_named_as_a_released_checkpoint(models, home):
    models("tiny-vit")
    for name in ("openai.pt", "random.pt"):
        (home / name).write_bytes((home / "tiny-vit.pt").read_bytes())
        assert load_model(f"open_clip:tiny-vit/{home / name}").name == f"open_clip:tiny-vit/{name}"


def test_random_is_reproducible_named_so_and_leaves_the_generator_alone(home):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one = load_model("open_clip:tiny-coca/random")
    assert torch.equal(torch.rand(1), expected)
    assert one.name == "open_clip:tiny-coca/random"
    assert load_model("open_clip:tiny-coca/random").revision == one.revision


def test_a_file_beside_an_architecture(models, home):
    model = adapter.load("tiny-vit", home / "tiny-vit.pt")
    assert model.revision == models("tiny-vit")[0].revision
    with pytest.raises(UserError, match="write the architecture alone"):
        adapter.load("tiny-vit/openai", home / "tiny-vit.pt")


def make_folder(folder, home, arch, **preprocess):
    from safetensors.torch import save_file

    make_reader(folder)
    config = json.loads((home / "archs" / f"{arch}.json").read_text())
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": preprocess})
    )
    state = torch.load(home / f"{arch}.pt", weights_only=True)
    save_file(
        {name: value.contiguous().clone() for name, value in state.items()},
        folder / "open_clip_model.safetensors",
    )


def test_a_folder_is_what_open_clip_makes_of_it(models, home, tmp_path):
    theirs_here, _ = models("tiny-siglip")
    folder = tmp_path / "mine"
    make_folder(
        folder,
        home,
        "tiny-siglip",
        mean=[0.5] * 3,
        std=[0.5] * 3,
        resize_mode="squash",
        interpolation="bicubic",
    )
    torch.save({}, folder / "open_clip_pytorch_model.bin")  # the safe format is preferred
    ours = load_model(f"open_clip:{folder}")
    theirs, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    assert ours.name == "open_clip:mine"
    assert ours.revision == theirs_here.revision
    for size in SIZES:
        assert torch.equal(ours.preprocess(picture(*size)), transform(picture(*size)))
    with torch.no_grad():
        assert close(ours.encode_image(noise(ours)), theirs.eval().encode_image(noise(ours)))
    assert torch.equal(ours.tokenize(TEXTS), theirs_here.tokenize(TEXTS))


def test_folders_that_are_none_are_refused(models, home, tmp_path):
    models("tiny-siglip")
    refused(f"open_clip:{tmp_path}", "holds no open_clip_config.json")
    make_folder(tmp_path, home, "tiny-siglip", resize_mode="longest")
    refused(f"open_clip:{tmp_path}", "'longest' side, which is not supported")
    (tmp_path / "open_clip_model.safetensors").unlink()
    refused(f"open_clip:{tmp_path}", "holds no weights")
    for name in ("a.bin", "b.bin"):
        torch.save({}, tmp_path / name)
    refused(f"open_clip:{tmp_path}", "2 files of weights (a.bin, b.bin)")
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {"embed_dim": 3}}')
    refused(f"open_clip:{tmp_path}", "no configuration of open_clip")


def test_mistakes_are_named(models, home):
    models("tiny-vit")
    refused("open_clip:ViT-B-33/openai", "ViT-B-32")
    refused("open_clip:ViT-B-32", "laion2b_s34b_b79k", "openai", "random")
    refused("open_clip:ViT-B-32/opanai", "openai")
    refused(f"open_clip:tiny-vit/{home}/nothing.pt", "no such file")
    refused(f"open_clip:{home / 'tiny-vit.pt'}", "does not say its architecture")
    refused(
        f"open_clip:tiny-clipa/{home / 'tiny-vit.pt'}",
        "tiny-vit.pt as open_clip's tiny-clipa",
        "2 unexpected (visual.ln_pre",
    )
    torch.save({"a": torch.zeros(3)}, home / "other.pt")
    refused(f"open_clip:tiny-siglip/{home / 'other.pt'}", "do not fit")


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_without_a_network_the_file_to_bring_is_named(home, no_network, tmp_path):
    source = (
        "open_clip_model.safetensors of timm/vit_base_patch32_clip_224.openai on the Hugging Face "
        "hub"
    )
    refused("open_clip:ViT-B-32/openai", source, "write open_clip:ViT-B-32-quickgelu/PATH")
    refused(
        "open_clip:ViTamin-S/datacomp1b",
        "pytorch_model.bin of jienengchen/ViTamin-S on",
        "write open_clip:ViTamin-S/PATH",
    )
    refused(
        "open_clip:hf-hub:nobody/nothing",
        "open_clip_config.json",
        "nobody/nothing",
        "write open_clip:FOLDER",
    )
    refused("open_clip:hf-hub:nothing", "ORG/NAME")
    config = json.loads((home / "archs" / "tiny-siglip.json").read_text())
    config["text_cfg"]["hf_tokenizer_name"] = "nobody/nothing"
    path = tmp_path / "tiny-nobody.json"
    path.write_text(json.dumps(config))
    open_clip.add_model_config(path)
    try:
        refused(
            "open_clip:tiny-nobody/random", "tokenizer", "nobody/nothing on the Hugging Face hub"
        )
        config["text_cfg"] = {
            "hf_model_name": "nobody/reader",
            "hf_tokenizer_name": "nobody/reader",
        }
        path.write_text(json.dumps(config))
        open_clip.factory._rescan_model_configs()
        refused("open_clip:tiny-nobody/random", "reads with nobody/reader", "bring config.json")
    finally:
        open_clip.factory._MODEL_CONFIG_PATHS.remove(path)
        del open_clip.factory._MODEL_CONFIGS["tiny-nobody"]


def test_without_the_library_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    refused("open_clip:ViT-B-32/openai", "pip install 'silc-bench[open_clip]'")


def test_a_tiny_model_is_evaluated_end_to_end(home, tmp_path):
    words = [
        "eval",
        "--ckpt",
        "open_clip:tiny-vit/random",
        "--tasks",
        "shapes/zeroshot,shapes/retrieval",
        "--limit",
        "12",
    ]
    done = CliRunner().invoke(cli.app, [*words, "--device", "cpu", "--results", str(tmp_path)])
    assert done.exit_code == 0, done.output
    records = [json.loads(path.read_text()) for path in tmp_path.rglob("*.json")]
    assert {record["task"]["name"] for record in records} == {"shapes/zeroshot", "shapes/retrieval"}
    assert all(record["model"]["name"] == "open_clip:tiny-vit/random" for record in records)
