"""timm's own embeddings, pixels and maps, for a tiny model of each family; and refusals.

Each refusal is one sentence.
"""

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from silc_bench.cli import app as cli
from silc_bench.errors import UserError
from silc_bench.models.adapters import timm as adapter
from silc_bench.models.interface import DenseModel, ImageTextModel
from silc_bench.models.load import load_model

timm = pytest.importorskip("timm")

pytestmark = pytest.mark.broad

TOKENS = [
    "test_vit",
    "test_vit2",
    "test_vit3",
    "test_vit4",
    "test_vit_relpos",
    "deit_tiny_distilled_patch16_224",
]
MAPS = [
    "test_resnet",
    "test_convnext",
    "test_efficientnet",
    "test_nfnet",
    "test_maxvit",
    "test_mambaout",
]
OTHERS = ["crossvit_tiny_240", "eva02_tiny_patch14_224", "vit_tiny_r_s16_p8_224"]
SIZES = [(211, 97), (40, 333), (160, 160), (7, 5)]


def picture(width, height):
    pixels = np.random.default_rng(width * 1000 + height).integers(
        0, 256, (height, width, 3), dtype=np.uint8
    )
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def models():
    """Each architecture once: ours with random weights, and timm's own with the same ones.

    timm's is built its own way.
    """
    known = {}

    def pair(name):
        if name not in known:
            ours = load_model(f"timm:{name}/random")
            theirs = timm.create_model(name, num_classes=0).eval()
            theirs.load_state_dict(ours.network.state_dict())
            known[name] = ours, theirs
        return known[name]

    return pair


def close(left, right):
    return torch.allclose(left, right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", TOKENS + MAPS + OTHERS)
def test_embeddings_and_pixels_are_timms_own(models, name):
    ours, theirs = models(name)
    transform = timm.data.create_transform(
        **timm.data.resolve_model_data_config(theirs), is_training=False
    )
    pictures = [picture(*size) for size in SIZES]
    pixels = torch.stack([transform(image) for image in pictures])
    assert torch.equal(torch.stack([ours.preprocess(image) for image in pictures]), pixels)
    with torch.no_grad():
        embeddings, expected = ours.encode_image(pixels), theirs(pixels)
    assert embeddings.dtype == torch.float32
    assert embeddings.shape == (len(SIZES), ours.embed_dim)
    assert close(embeddings, expected)
    assert expected.std(dim=0).max() > 1e-3, "the pictures must differ, or this test proves nothing"
    assert ours.num_params == sum(p.numel() for p in theirs.parameters())
    assert ours.name == f"timm:{name}/random"


@pytest.mark.parametrize("name", TOKENS + ["eva02_tiny_patch14_224", "vit_tiny_r_s16_p8_224"])
def test_dense_features_of_tokens_are_the_patches_that_leave_the_tower(models, name):
    ours, theirs = models(name)
    pixels = torch.stack([ours.preprocess(picture(*size)) for size in SIZES])
    with torch.no_grad():
        dense = ours.encode_dense(pixels, ["tokens"])["tokens"]
        maps = theirs.forward_intermediates(pixels, indices=1, norm=True, intermediates_only=True)[
            0
        ]
        pooled = ours.encode_image(pixels, "mean_patch")
    assert close(dense, maps.permute(0, 2, 3, 1))
    assert close(pooled, dense.mean(dim=(1, 2)))
    assert pooled.shape[1] == ours.feature_points["mean_patch"]
    assert ours.patch_size * dense.shape[1] == ours.image_size
    assert isinstance(ours, DenseModel)


def test_a_norm_after_pooling_is_not_applied_to_patches(models):
    ours, _ = models("test_vit2")
    pixels = ours.preprocess(picture(50, 60))[None]
    with torch.no_grad():
        dense = ours.encode_dense(pixels, ["tokens"])["tokens"]
        normed = ours.network.fc_norm(ours.encode_image(pixels, "mean_patch"))
    assert dense.mean(dim=-1).abs().max() > 1e-3, "normed tokens have mean 0"
    assert close(ours.encode_image(pixels), normed), "averaged first, normed then"


@pytest.mark.parametrize("name", MAPS)
def test_dense_features_of_maps_keep_their_places(models, name):
    ours, theirs = models(name)
    pixels = torch.stack([ours.preprocess(picture(*size)) for size in SIZES[:2]])
    with torch.no_grad():
        dense = ours.encode_dense(pixels, ["tokens"])["tokens"]
        features = theirs.forward_features(pixels)
    channels_first = features if name != "test_mambaout" else features.permute(0, 3, 1, 2)
    for row, column in ((0, 0), (0, dense.shape[2] - 1), (dense.shape[1] - 1, 1)):
        assert close(dense[:, row, column], channels_first[:, :, row, column])
    assert ours.patch_size == 32
    assert dense.shape[1:3] == (ours.image_size // 32,) * 2
    if name == "test_resnet":
        assert close(ours.encode_image(pixels), ours.encode_image(pixels, "mean_patch")), (
            "it pools by the mean"
        )


@pytest.mark.parametrize("name", ["test_vit", "test_vit2", "test_vit3", "eva02_tiny_patch14_224"])
def test_any_multiple_of_the_patch_size_equals_timms_own_resizing(name):
    ours = load_model(f"timm:{name}/random")
    theirs = timm.create_model(name, num_classes=0, dynamic_img_size=False).eval()
    theirs.load_state_dict(ours.network.state_dict())
    height, width = 5 * ours.patch_size, 8 * ours.patch_size
    theirs.set_input_size(img_size=(height, width))
    pixels = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert ours.encode_dense(pixels, ["tokens"])["tokens"].shape[:3] == (2, 5, 8)
        assert close(ours.encode_image(pixels), theirs(pixels))


def test_convolutions_take_any_size(models):
    with torch.no_grad():
        assert models("test_resnet")[0].encode_dense(torch.zeros(1, 3, 97, 130), ["tokens"])[
            "tokens"
        ].shape[1:3] == (4, 5)


def test_patches_that_leave_a_rest_are_taken_at_the_trained_size(monkeypatch):
    """As in SigLIP So400m/14, where 27 patches of 14 see 378 of 384 pixels.

    Here 3 of 14 see 42 of 45.
    """
    registry = sys.modules["timm.models._registry"]._model_entrypoints
    original = registry["test_vit"]

    def with_rest(pretrained=False, **given):
        about = {
            "pretrained_cfg_overlay": {"input_size": (3, 45, 45)},
            "img_size": 45,
            "patch_size": 14,
        }
        return original(pretrained, **{"dynamic_img_size": False, **given, **about})

    monkeypatch.setitem(registry, "test_vit", with_rest)
    ours = load_model("timm:test_vit/random")
    pixels = ours.preprocess(picture(90, 70))[None]
    theirs = timm.create_model("test_vit", num_classes=0).eval()
    theirs.load_state_dict(ours.network.state_dict())
    with torch.no_grad():
        assert pixels.shape[-1] == 45
        assert ours.encode_dense(pixels, ["tokens"])["tokens"].shape[1:3] == (3, 3)
        assert close(ours.encode_image(pixels), theirs(pixels))
    with pytest.raises(UserError, match="45 x 45 pixels only"):
        ours.encode_image(torch.zeros(1, 3, 56, 56))


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("test_vit", (160, 170), "patches of 16 pixels"),
        ("test_vit_relpos", (192, 192), "160 x 160 pixels only, not 192 x 192"),
    ],
)
def test_a_size_that_does_not_fit_is_a_sentence(models, name, size, words):
    ours, _ = models(name)
    for encode in (
        ours.encode_image,
        lambda images: ours.encode_dense(images, ["tokens"])["tokens"],
    ):
        with pytest.raises(UserError, match=words):
            encode(torch.zeros(1, 3, *size))


def test_tokens_of_several_blocks_are_the_librarys_intermediates(models):
    ours, theirs = models("test_vit")
    pixels = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        last = theirs.forward_intermediates(
            pixels, indices=3, norm=True, intermediates_only=True, output_fmt="NLC"
        )
        found = ours.encode_dense(pixels, ["tokens:3", "tokens"])
    torch.testing.assert_close(found["tokens:3"], torch.cat(last, dim=-1).unflatten(1, (10, 10)))
    assert torch.equal(found["tokens"], found["tokens:3"][..., -last[0].shape[-1] :])
    assert ours.dense_methods[-1] == f"tokens:{len(theirs.blocks)}"
    assert models("test_resnet")[0].dense_methods == ("tokens",)


def test_no_text_no_joint_space_and_no_places_where_there_are_none(models):
    ours, _ = models("test_vit")
    assert not isinstance(ours, ImageTextModel)
    with pytest.raises(
        UserError, match="'maskclip': it has no text tower, so no space shared with text"
    ):
        ours.encode_dense(torch.zeros(1, 3, 160, 160), ["maskclip"])
    two_scales, _ = models("crossvit_tiny_240")
    assert not isinstance(two_scales, DenseModel)
    assert list(two_scales.feature_points) == ["pooled"]


def test_tasks_with_text_are_refused_before_any_work_and_others_run(tmp_path):
    def run(task):
        words = [
            "eval",
            "--ckpt",
            "timm:test_resnet/random",
            "--tasks",
            task,
            "--limit",
            "20",
            "--device",
            "cpu",
        ]
        return CliRunner().invoke(cli.app, [*words, "--results", str(tmp_path)])

    refused = run("shapes/knn,shapes/zeroshot")
    assert refused.exit_code == 2
    assert (
        "shapes/zeroshot needs text features, which timm:test_resnet/random cannot give"
        in refused.stderr
    )
    assert "timm holds image encoders only" in refused.stderr
    assert not list(tmp_path.rglob("*.json"))
    assert run("shapes/knn").exit_code == 0
    assert len(list(tmp_path.rglob("*.json"))) == 1


def test_random_weights_are_the_same_each_time_and_leave_the_generator_alone():
    torch.manual_seed(7)
    first = load_model("timm:test_vit/random")
    drawn = torch.rand(1)
    torch.manual_seed(7)
    assert torch.equal(drawn, torch.rand(1))
    assert load_model("timm:test_vit/random").revision == first.revision
    assert load_model("timm:test_vit2/random").revision != first.revision


def test_local_weights_with_and_without_a_classifier(tmp_path):
    torch.manual_seed(3)
    trained = timm.create_model("test_vit").eval()
    bare = {
        key: value for key, value in trained.state_dict().items() if not key.startswith("head.")
    }
    torch.save(trained.state_dict(), tmp_path / "full.pth")
    torch.save(
        {f"module.{key}": value for key, value in trained.state_dict().items()},
        tmp_path / "ddp.pth",
    )
    torch.save(bare, tmp_path / "bare.pth")
    full, ddp, headless = (
        load_model(f"timm:test_vit/{tmp_path}/{name}.pth") for name in ("full", "ddp", "bare")
    )
    assert full.name == "timm:test_vit/full.pth"
    assert (
        full.revision
        == ddp.revision
        == headless.revision
        != load_model("timm:test_vit/random").revision
    )
    pixels = full.preprocess(picture(90, 70))[None]
    with torch.no_grad():
        assert close(
            full.encode_image(pixels),
            trained.forward_head(trained.forward_features(pixels), pre_logits=True),
        )


def test_the_original_release_is_translated_by_timm(tmp_path):
    """ConvNeXt's first release names its parts otherwise.

    `downsample_layers.0.0`, `stages.0.0.pwconv1`.
    """
    ours = load_model("timm:test_convnext/random")
    weights = ours.network.state_dict()
    names = {
        "stem.0.": "downsample_layers.0.0.",
        "stem.1.": "downsample_layers.0.1.",
        "head.norm.": "norm.",
    }
    original = {}
    for key, value in weights.items():
        for new, old in names.items():
            key = old + key.removeprefix(new) if key.startswith(new) else key
        if key.startswith("stages.") and ".downsample." in key:
            stage, part = key.split(".")[1], key.split(".downsample.")[1]
            key = f"downsample_layers.{stage}.{part}"
        key = (
            key.replace(".blocks.", ".")
            .replace(".mlp.fc", ".pwconv")
            .replace(".conv_dw.", ".dwconv.")
        )
        original[key] = value
    torch.save(original, tmp_path / "release.pth")
    assert original.keys() != weights.keys()
    assert load_model(f"timm:test_convnext/{tmp_path}/release.pth").revision == ours.revision


def damaged(state, how):
    if how == "missing":
        return {key: value for key, value in state.items() if "blocks.2" not in key}
    if how == "shape":
        return {**state, "norm.weight": torch.ones(3)}
    return {"something": torch.ones(2)}


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("missing", r"12 missing \(blocks.2"),
        ("shape", r"norm.weight \[3\] instead of \[64\]"),
        ("other", "missing"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path, how, words):
    torch.save(damaged(timm.create_model("test_vit").state_dict(), how), tmp_path / "x.pth")
    with pytest.raises(UserError, match=words) as caught:
        load_model(f"timm:test_vit/{tmp_path}/x.pth")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rest", "words"),
    [
        ("tset_vit/random", "did you mean test_vit"),
        ("qqqqqqqqqq", r"list_models\(\) names all"),
        ("test_vit.r160_in2k", "did you mean r160_in1k"),
        ("test_vit/", "names no file"),
        ("test_vit4", "no trained weights for test_vit4"),
    ],
)
def test_names_that_lead_nowhere(rest, words):
    with pytest.raises(UserError, match=words):
        load_model(f"timm:{rest}")


def test_what_cannot_be_downloaded_is_named(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(
        UserError,
        match=r"bring model.safetensors of timm/test_vit.r160_in1k .* write timm:test_vit/PATH",
    ):
        load_model("timm:test_vit")


def test_a_cached_download_works_without_a_network(monkeypatch, tmp_path):
    """The layout of the hub's cache, by hand: snapshots of a commit, a reference that names it."""
    from huggingface_hub import constants
    from safetensors.torch import save_file

    torch.manual_seed(5)
    trained = timm.create_model("test_vit").eval()
    repository = tmp_path / "models--timm--test_vit.r160_in1k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    (repository / "snapshots" / ("a" * 40)).mkdir(parents=True)
    save_file(trained.state_dict(), repository / "snapshots" / ("a" * 40) / "model.safetensors")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("timm.models._hub.get_cache_dir", lambda *_: str(tmp_path))
    ours = load_model("timm:test_vit")
    assert ours.name == "timm:test_vit.r160_in1k"
    pixels = ours.preprocess(picture(90, 70))[None]
    with torch.no_grad():
        assert close(
            ours.encode_image(pixels),
            trained.forward_head(trained.forward_features(pixels), pre_logits=True),
        )


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"pip install 'silc-bench\[timm\]'"):
        load_model("timm:test_vit/random")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"crop_mode": "border"}, "crop mode 'border'"),
        ({"input_size": (3, 224, 192)}, "3 x 224 x 192"),
        ({"input_size": (1, 224, 224)}, "1 x 224 x 224"),
        ({"interpolation": "hamming"}, "'hamming'"),
    ],
)
def test_transforms_that_cannot_be_reproduced_are_refused(config, words):
    base = timm.data.resolve_data_config({"img_size": 224})
    with pytest.raises(UserError, match=words):
        adapter._pipeline("timm:x", {**base, **config})


@pytest.mark.parametrize("crop_pct", [1.0, 0.875, 0.95])
@pytest.mark.parametrize("crop_mode", ["center", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_every_transform_that_is_accepted_is_timms(crop_pct, crop_mode, interpolation):
    config = {
        "input_size": (3, 96, 96),
        "crop_pct": crop_pct,
        "crop_mode": crop_mode,
        "interpolation": interpolation,
    }
    config = {**config, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    theirs = timm.data.create_transform(**config, is_training=False)
    ours = adapter._pipeline("timm:x", config)
    for size in SIZES:
        assert torch.equal(ours(picture(*size)), theirs(picture(*size)))
