"""open_clip's own embeddings, pixels and token ids, a tiny model a family; maps; and refusals.

The maps are checked from their weights.
"""

from __future__ import annotations

import functools
import json
import shutil

import hf_folders
import images_and_runs
import pytest
import torch
from images_and_runs import (
    check_cut_texts,
    close,
    encode_image,
    measure,
    pixels_of,
    tokens_of_patches,
    without_network,
)
from refusals import refused

from silc_bench.models.interface import METHODS, DenseModel, ImageTextModel
from silc_bench.models.load import load_model

open_clip = pytest.importorskip("open_clip")

pytestmark = pytest.mark.broad

TEXTS = [
    "",
    " ",
    "A Photo  of a CAT!",
    "naïve café, crème brûlée, žluťoučký",
    "👨‍👩‍👧‍👦 on a 🛋️",
    "一只猫坐在沙发上",
    "قطة على الأريكة",
    "it's &amp;quot;quoted&amp;quot; &lt;b&gt;",
    "snake_case_name and {braces}",
    "tabs\tand\nlines, 3.14 1e-5",
    "word " * 200,
    "一" * 300,
    "🙂" * 100,
    *(f"a photo of {n} things" for n in range(3)),
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


SIGLIP = {**SMALL, "class_token": False}
EVA = {
    **SMALL,
    "qkv_fused": False,
    "swiglu_mlp": True,
    "scale_mlp": True,
    "scale_attn_inner": True,
    "use_rot_pos_emb": True,
    "ref_feat_shape": (4, 4),
}
SWIN = {
    "img_size": 32,
    "patch_size": 4,
    "window_size": 4,
    "embed_dim": 24,
    "depths": (1, 2),
    "num_heads": (2, 4),
}
# small towers of timm: the family, the tower of the usual size, and what is smaller
TRUNKS = {
    "small_map": ("vision_transformer", "vit_base_patch16_siglip_224", SIGLIP),
    # a size that is no whole number of patches
    "small_rest": ("vision_transformer", "vit_base_patch16_siglip_224", {**SIGLIP, "img_size": 34}),
    # the class token is left out of the mean, and its norm comes before
    "small_gap": (
        "vision_transformer",
        "test_vit2",
        {**SMALL, "global_pool": "avg", "fc_norm": False},
    ),
    # its map has channels last, and its windows are cut for one size
    "small_swin": ("swin_transformer", "swin_tiny_patch4_window7_224", SWIN),
    # rotary positions beside learned ones, gates, norms inside
    "small_eva": ("eva", "eva02_base_patch16_clip_224", EVA),
}


def register(name):
    """timm knows the tower from now on."""
    import timm

    family, base, sizes = TRUNKS[name]
    create = getattr(getattr(timm.models, family), f"_create_{family}")

    def make(pretrained=False, **others):
        return create(base, **{**sizes, **others})

    make.__name__ = name
    timm.models.register_model(make)


def configs(reader):
    """{architecture: its configuration}.

    ``reader``: a folder with a tokenizer and a text tower of transformers.
    """
    siglip_text = {
        **TEXT,
        "context_length": 16,
        "vocab_size": 400,
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
        "norm_kwargs": {"eps": 1e-6},
        "hf_tokenizer_name": str(reader),
        "tokenizer_kwargs": {"clean": "canonicalize"},
    }
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
    nowhere = {"hf_tokenizer_name": "nobody/nothing"}
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
        "tiny-no-tokenizer": {**base, "vision_cfg": VIT, "text_cfg": {**TEXT, **nowhere}},
        "tiny-no-reader": {
            **base,
            "vision_cfg": VIT,
            "text_cfg": {**nowhere, "hf_model_name": "nobody/nothing"},
        },
    }


KNOWN = list(configs(""))
ARCHS = KNOWN[:-2]  # those that can be had
GRIDS = ["tiny-vit", "tiny-clipa", "tiny-coca", "tiny-siglip", "tiny-eva", "tiny-gap"]


def make_reader(folder):
    """A tokenizer and the configuration of a small text tower, as cached."""
    from transformers import RobertaConfig

    folder.mkdir()
    _, special = hf_folders.TOKENIZER["altclip"](folder)
    sizes = {**hf_folders.TEXT, "hidden_size": 32, "max_position_embeddings": 40}
    RobertaConfig(vocab_size=300, **sizes, **special).save_pretrained(folder)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder of configurations that open_clip knows during this file.

    As timm knows the small towers.
    """
    for name in TRUNKS:
        register(name)
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
    for name in KNOWN:
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


def noise(model, batch=2, more=(0, 0)):
    """Images of the trained size, or ``more`` patches higher and wider."""
    sides = [model.image_size + count * model.patch_size for count in more]
    return images_and_runs.noise(batch, 3, *sides, seed=3)


def dense(model, images, method="maskclip"):
    """[B, h * w, D]."""
    return model.encode_dense(images, [method])[method].flatten(1, 2)


@pytest.mark.parametrize("arch", ARCHS)
def test_embeddings_pixels_and_tokens_are_open_clips_own(models, arch):
    ours, theirs = models(arch)
    assert isinstance(ours, ImageTextModel)
    assert isinstance(ours, DenseModel)
    preprocess = open_clip.transform.PreprocessCfg(**open_clip.get_model_preprocess_cfg(theirs))
    pixels = pixels_of(open_clip.transform.image_transform_v2(preprocess, is_train=False))
    assert torch.equal(pixels_of(ours.preprocess), pixels)
    embeddings = ours.encode_image(pixels)
    assert embeddings.dtype == torch.float32
    assert embeddings.shape[1] == ours.embed_dim
    assert close(embeddings, theirs.encode_image(pixels, normalize=False))
    tokens = ours.tokenize(TEXTS)
    assert torch.equal(tokens, open_clip.get_tokenizer(arch)(TEXTS))
    texts = ours.encode_text(tokens)
    assert close(texts, theirs.encode_text(tokens, normalize=False))
    assert ours.logit_scale == pytest.approx(theirs.logit_scale.exp().item())
    assert ours.logit_bias == (0 if theirs.logit_bias is None else theirs.logit_bias.item())
    json.dumps([ours.image_protocol, ours.text_protocol, ours.settings])


@pytest.mark.parametrize("arch", ["tiny-vit", "tiny-coca", "tiny-siglip", "tiny-roberta"])
def test_texts_that_are_cut_are_counted(models, arch):
    check_cut_texts(models(arch)[0])


@pytest.mark.parametrize("arch", ARCHS)
def test_feature_points_have_their_widths(models, arch):
    ours, theirs = models(arch)
    images = noise(ours)
    for point, width in ours.feature_points.items():
        assert ours.encode_image(images, point).shape == (2, width)
    mean = tokens_of_patches(ours, images).mean(dim=(1, 2))
    assert close(ours.encode_image(images, "mean_patch"), mean)
    if arch in ("tiny-siglip", "tiny-rest"):  # pooled as it is
        assert "pre_projection" not in ours.feature_points
        return

    before = ours.encode_image(images, "pre_projection")
    visual = theirs.visual
    if hasattr(visual, "trunk"):
        projected = visual.head(visual.trunk.get_classifier()(before))
    elif hasattr(visual, "attnpool"):
        projected = visual.attnpool.c_proj(before)
    else:
        projected = before @ visual.proj
    assert close(projected, ours.encode_image(images))


@pytest.mark.parametrize(
    "arch",
    ["tiny-vit", "tiny-blocks", "tiny-resnet", "tiny-siglip", "tiny-eva", "tiny-gap"],
)
def test_patches_are_the_librarys_last_features(models, arch):
    ours, theirs = models(arch)
    images = noise(ours)
    last = theirs.visual.forward_intermediates(
        images, indices=[4 if arch == "tiny-resnet" else -1], normalize_intermediates=True
    )["image_intermediates"][-1]
    assert close(tokens_of_patches(ours, images), last.permute(0, 2, 3, 1))


def test_patches_of_a_map_are_its_features(models):
    ours, theirs = models("tiny-convnext")
    features = theirs.visual.trunk.forward_features(noise(ours))
    assert close(tokens_of_patches(ours, noise(ours)), features.permute(0, 2, 3, 1))


@pytest.mark.parametrize(
    "arch", ["tiny-clipa", "tiny-coca", "tiny-siglip", "tiny-gap", "tiny-convnext", "tiny-swin"]
)
def test_a_joint_patch_is_what_pooling_gives_where_all_patches_are_that_one(models, arch):
    ours, theirs = models(arch)
    visual = theirs.visual
    method = "maskclip" if arch in ("tiny-coca", "tiny-siglip") else "plain"
    features = ours.encode_dense(noise(ours, batch=1), ["tokens", method])
    for place in ((0, 0), (1, 3), (3, 2)):
        token = features["tokens"][:, *place]
        copies = token[:, None].expand(-1, 6, -1)
        if arch == "tiny-convnext":
            copies = copies.mT[..., None]
        elif arch == "tiny-swin":
            copies = copies[:, None]
        if hasattr(visual, "trunk"):
            pooled = visual.head(visual.trunk.forward_head(copies))
        else:
            pooled = visual._pool(copies)[0] @ visual.proj
        assert close(features[method][:, *place], pooled)


def mixed(q, k, v):
    """[B, H, d], [B, N, H, d] twice -> [B, H * d]: attention of one query, head by head."""
    weights = torch.einsum("bhd,bnhd->bhn", q, k).mul(q.shape[-1] ** -0.5).softmax(-1)
    return torch.einsum("bhn,bnhd->bhd", weights, v).flatten(1)


def test_resnet_pooling_is_the_mean_of_the_values_as_its_heads_weigh_them(models):
    ours, _ = models("tiny-resnet")
    pool = ours.network.visual.attnpool
    places = dense(ours, noise(ours), "tokens")
    x = torch.cat([places.mean(1, keepdim=True), places], 1) + pool.positional_embedding
    projections = (pool.q_proj, pool.k_proj, pool.v_proj)
    q, k, v = (layer(x).unflatten(2, (pool.num_heads, -1)) for layer in projections)
    assert close(pool.c_proj(mixed(q[:, 0], k, v)), ours.encode_image(noise(ours)))
    assert close(pool.c_proj(v.flatten(2))[:, 1:], dense(ours, noise(ours)))


@pytest.mark.parametrize("arch", GRIDS)
def test_another_size_is_what_open_clip_gives_when_built_for_it(models, home, arch):
    ours, theirs = models(arch)
    at_home = ours.encode_image(noise(ours))

    # the library resizes positions of squares only when it loads
    images = noise(ours, more=(1, 3) if hasattr(theirs.visual, "trunk") else (2, 2))
    options = {"pretrained": str(home / f"{arch}.pt"), "force_image_size": images.shape[2:]}
    bigger = open_clip.create_model(arch, **options).eval()
    assert close(ours.encode_image(images), bigger.encode_image(images, normalize=False), 2e-5)
    assert torch.equal(ours.encode_image(noise(ours)), at_home)


@pytest.mark.parametrize("arch", [*GRIDS, "tiny-resnet", "tiny-convnext"])
def test_every_map_has_the_grid_of_its_image(models, arch):
    ours, _ = models(arch)
    images = noise(ours, more=(1, 3))
    grid = [side // ours.patch_size for side in images.shape[2:]]
    for features in ours.encode_dense(images, ours.dense_methods).values():
        assert features.shape[:3] == (2, *grid)
    assert ours.encode_image(images).isfinite().all()


def test_a_trained_size_that_does_not_divide_is_taken_as_it_is(models):
    """As So400m/14 at 384 pixels: the rest of 6 belongs to no patch."""
    ours, theirs = models("tiny-rest")
    images = noise(ours)
    assert (ours.image_size, ours.patch_size) == (34, 8)
    features = theirs.visual.trunk.forward_features(images)
    assert close(tokens_of_patches(ours, images), features.unflatten(1, (4, 4)))
    assert dense(ours, images).shape == (2, 16, 48)
    assert ours.encode_image(images, "mean_patch").shape == (2, 48)


@pytest.mark.parametrize(
    ("arch", "size"),
    [
        ("tiny-vit", (36, 32)),
        ("tiny-rest", (32, 32)),
        ("tiny-rest", (40, 40)),
        ("tiny-swin", (40, 40)),
    ],
)
@pytest.mark.parametrize("encode", [encode_image, tokens_of_patches])
def test_a_size_that_a_tower_does_not_take_is_refused(models, arch, size, encode):
    ours, _ = models(arch)
    with refused(about=ours.name):
        encode(ours, torch.zeros(1, 3, *size))


@pytest.mark.parametrize(
    ("arch", "methods"), [("tiny-convnext", ("tokens", "plain")), ("tiny-max", ("tokens",))]
)
def test_what_a_tower_cannot_do_has_a_reason(models, arch, methods):
    ours, _ = models(arch)
    can = [method for method in ours.dense_methods if ":" not in method]
    assert tuple(can) == methods
    assert ours.lacking.keys() == {*METHODS} - {*methods}
    with refused(about=ours.name):
        dense(ours, noise(ours))


@pytest.mark.parametrize("arch", ["tiny-vit", "tiny-siglip", "tiny-eva", "tiny-resnet"])
@pytest.mark.parametrize("encode", [dense, encode_image])
def test_bf16_autocast_changes_little(models, arch, encode):
    ours, _ = models(arch)
    exact = encode(ours, noise(ours))
    with torch.autocast("cpu", torch.bfloat16):
        half = encode(ours, noise(ours))
    assert half.dtype == torch.float32
    assert (half - exact).abs().max() < 0.05 * exact.abs().max()


def test_activation_is_part_of_the_revision(models, home):
    plain, _ = models("tiny-vit")
    quick = load_model(f"open_clip:tiny-vit-quickgelu/{home / 'tiny-vit.pt'}")
    assert [plain.settings["quick_gelu"], quick.settings["quick_gelu"]] == [False, True]
    assert quick.revision != plain.revision
    assert not close(quick.encode_image(noise(quick)), plain.encode_image(noise(plain)))

    # OpenAI's own files are known by three numbers
    numbers = dict.fromkeys(("input_resolution", "context_length", "vocab_size"), torch.tensor(7))
    torch.save(torch.load(home / "tiny-vit.pt") | numbers, home / "of_openai.pt")
    assert load_model(f"open_clip:tiny-vit/{home / 'of_openai.pt'}").revision == quick.revision


def test_a_tag_brings_its_preprocessing_and_activation_and_a_file_what_all_tags_agree_on(
    models, home, monkeypatch
):
    plain, _ = models("tiny-vit")
    file = str(home / "tiny-vit.pt")
    tag = {
        "file": file,
        "mean": (0.5, 0.4, 0.3),
        "std": (0.5, 0.5, 0.5),
        "interpolation": "bilinear",
        "resize_mode": "squash",
        "quick_gelu": True,
    }
    tags = {"mine": tag}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-vit", tags)
    tagged = load_model("open_clip:tiny-vit/mine")
    assert tagged.name == "open_clip:tiny-vit/mine"
    assert tagged.settings["quick_gelu"] is True
    with pytest.warns(UserWarning, match="QuickGELU"):
        theirs, _, transform = open_clip.create_model_and_transforms("tiny-vit", pretrained="mine")
    assert torch.equal(pixels_of(tagged.preprocess), pixels_of(transform))
    forced = open_clip.create_model("tiny-vit", pretrained=file, force_quick_gelu=True).eval()
    images = noise(tagged)
    assert close(tagged.encode_image(images), forced.encode_image(images))
    # a warning is all it does
    assert not close(tagged.encode_image(images), theirs.eval().encode_image(images))

    of_file = load_model(f"open_clip:tiny-vit/{file}")
    assert of_file.image_protocol == tagged.image_protocol
    assert of_file.revision == plain.revision  # of weights and activation alone
    tags["other"] = {**tag, "resize_mode": "shortest"}
    assert load_model(f"open_clip:tiny-vit/{file}").image_protocol == plain.image_protocol
    for name in ("tiny-vit", "tiny-vit/mime"):
        with refused(about=f"open_clip:{name}") as caught:
            load_model(f"open_clip:{name}")
        assert "mine" in caught.value.fix


def test_a_file_is_never_named_as_a_released_checkpoint(models, home):
    models("tiny-vit")
    for name in ("openai.pt", "random.pt"):
        (home / name).write_bytes((home / "tiny-vit.pt").read_bytes())
        assert load_model(f"open_clip:tiny-vit/{home / name}").name == f"open_clip:tiny-vit/{name}"


def test_random_is_reproducible_named_so_and_leaves_the_generator_alone(home):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    model = load_model("open_clip:tiny-coca/random")
    assert torch.equal(torch.rand(1), expected)
    assert model.name == "open_clip:tiny-coca/random"
    assert load_model("open_clip:tiny-coca/random").revision == model.revision


def test_a_file_beside_an_architecture_has_no_tag(models, home):
    models("tiny-vit")
    with refused(about="open_clip:tiny-vit/openai"):
        load_model(str(home / "tiny-vit.pt"), "open_clip:tiny-vit/openai")


def write_config(folder, home, arch, **others):
    config = json.loads((home / "archs" / f"{arch}.json").read_text())
    for part, fields in others.pop("model_cfg", {}).items():
        config[part] = fields and config[part] | fields
    content = {"model_cfg": config, "preprocess_cfg": others}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    return config


def test_a_folder_is_what_open_clip_makes_of_it(models, home, tmp_path, capsys):
    from safetensors.torch import save_file

    released, _ = models("tiny-siglip")
    folder = tmp_path / "mine"
    shutil.copytree(home / "reader", folder)
    write_config(folder, home, "tiny-siglip", mean=[0.5] * 3, std=[0.5] * 3, resize_mode="squash")
    state = torch.load(home / "tiny-siglip.pt")
    save_file(
        {name: value.contiguous().clone() for name, value in state.items()},
        folder / "open_clip_model.safetensors",
    )
    torch.save({}, folder / "open_clip_pytorch_model.bin")  # the safe format is preferred
    ours = load_model(f"open_clip:{folder}")
    theirs, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    assert ours.name == "open_clip:mine"
    said = "open_clip_model.safetensors is read, not open_clip_pytorch_model.bin"
    assert said in capsys.readouterr().err
    assert ours.revision == released.revision
    assert torch.equal(pixels_of(ours.preprocess), pixels_of(transform))
    assert close(ours.encode_image(noise(ours)), theirs.eval().encode_image(noise(ours)))
    assert torch.equal(ours.tokenize(TEXTS), released.tokenize(TEXTS))


def pools_twice(how):
    vision = {**COCA, "output_tokens": False, "attentional_pool": how}
    return {"model_cfg": {"vision_cfg": vision}}


BIN = ("open_clip_pytorch_model.bin",)
# files of weights, and what is changed in the configuration; None: there is none
NO_FOLDERS = {
    "no config": ((), None),
    "no weights": ((), {}),
    "two weights": (("a.bin", "b.bin"), {}),
    "half": ((), {"model_cfg": {"text_cfg": None}}),
    "longest": (BIN, {"resize_mode": "longest"}),
    "parallel": (BIN, pools_twice("parallel")),
    "cascade": (BIN, pools_twice("cascade")),
}


@pytest.mark.parametrize("case", NO_FOLDERS)
def test_folders_that_are_none_are_refused(home, tmp_path, case):
    files, changes = NO_FOLDERS[case]
    folder = tmp_path / "mine"
    folder.mkdir()
    if changes is not None:
        content = write_config(folder, home, "tiny-vit", **changes)
    for name in files:
        torch.save(open_clip.CLIP(**content).state_dict(), folder / name)
    with refused(about="mine"):
        load_model(f"open_clip:{folder}")


@pytest.mark.parametrize(
    ("rest", "fix"),
    [
        ("ViT-B-33/openai", "ViT-B-32"),
        ("ViT-B-32", "laion2b_s34b_b79k"),
        ("ViT-B-32/opanai", "openai"),
        ("tiny-vit/{home}/nothing.pt", "nothing.pt"),
        ("{home}/tiny-vit.pt", "open_clip:ARCH/"),
        ("hf-hub:nothing", "ORG/NAME"),
        # what cannot be had is named, with what to write then
        ("ViT-B-32/openai", "write open_clip:ViT-B-32-quickgelu/PATH"),
        ("ViTamin-S/datacomp1b", "pytorch_model.bin of jienengchen/ViTamin-S on"),
        ("hf-hub:nobody/nothing", "files of nobody/nothing on the Hugging Face hub to a folder"),
        ("tiny-no-tokenizer/random", "nobody/nothing on the Hugging Face hub"),
        ("tiny-no-reader/random", "config.json and the tokenizer's files of nobody/nothing"),
    ],
)
def test_mistakes_are_named(models, home, monkeypatch, tmp_path, rest, fix):
    models("tiny-vit")
    without_network(monkeypatch, tmp_path)
    rest = rest.format(home=home)
    with refused(about=f"open_clip:{rest}", is_kept=False) as caught:
        load_model(f"open_clip:{rest}")
    assert fix in caught.value.fix


def test_weights_of_another_architecture_are_refused(models, home):
    models("tiny-vit")
    with refused(about="tiny-vit.pt as open_clip's tiny-clipa") as caught:
        load_model(f"open_clip:tiny-clipa/{home / 'tiny-vit.pt'}")
    assert "visual.ln_pre" in caught.value.problem
    torch.save({"a": torch.zeros(3)}, home / "other.pt")
    with refused(about="other.pt as open_clip's tiny-siglip", is_kept=False):
        load_model(f"open_clip:tiny-siglip/{home / 'other.pt'}")


OTHER_SIZES = [
    ("tiny-vit", "visual.positional_embedding", "18 positions of images instead of 17"),
    ("tiny-vit", "positional_embedding", "78 positions of texts instead of 77"),
    ("tiny-siglip", "visual.trunk.pos_embed", "17 positions of images instead of 16"),
    ("tiny-siglip", "text.positional_embedding", "17 positions of texts instead of 16"),
    ("tiny-coca", "text.positional_embedding", "of texts"),
    ("tiny-resnet", "visual.attnpool.positional_embedding", "[6, 256] instead of [5, 256]"),
]


@pytest.mark.parametrize("way", ["file", "arch", "folder"])
@pytest.mark.parametrize(("arch", "name", "says"), OTHER_SIZES)
def test_weights_of_another_image_size_or_text_length_are_refused(
    models, home, tmp_path, way, arch, name, says
):
    models(arch)
    state = torch.load(home / f"{arch}.pt")
    positions = state[name]
    state[name] = torch.cat([positions, positions[..., -1:, :]], dim=-2)
    path = tmp_path / "open_clip_pytorch_model.bin"
    torch.save(state, path)
    shutil.copytree(home / "reader", tmp_path, dirs_exist_ok=True)
    write_config(tmp_path, home, arch)
    spec, arch_of_file = {
        "file": (f"open_clip:{arch}/{path}", None),
        "arch": (str(path), f"open_clip:{arch}"),
        "folder": (f"open_clip:{tmp_path}", None),
    }[way]
    with refused(about=path) as caught:
        load_model(spec, arch_of_file)
    assert says in caught.value.problem


def test_a_tiny_model_is_evaluated_end_to_end(home, tmp_path):
    done = measure("open_clip:tiny-vit/random", "shapes/zeroshot,shapes/retrieval", tmp_path, 12)
    assert done.exit_code == 0, done.output
    assert len(list(tmp_path.rglob("*.json"))) == 2
