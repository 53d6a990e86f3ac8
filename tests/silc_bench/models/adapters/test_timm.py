"""timm's own embeddings, pixels and maps, for a tiny model of each family; and refusals."""

import functools
import sys

import pytest
import torch
from images_and_runs import (
    IMAGES,
    cached_repository,
    close,
    encode_image,
    measure,
    noise,
    pixels_of,
    tokens_of_patches,
    without_network,
)
from PIL import Image
from refusals import refused

from silc_bench.models.adapters import timm as adapter
from silc_bench.models.interface import JOINT, DenseModel, ImageTextModel
from silc_bench.models.load import load_model

timm = pytest.importorskip("timm")

pytestmark = pytest.mark.broad

# the last two: rotary positions, and convolutions before the blocks
TOKENS = [f"test_vit{kind}" for kind in ("", "2", "3", "4", "_relpos")]
TOKENS += ["deit_tiny_distilled_patch16_224", "eva02_tiny_patch14_224", "vit_tiny_r_s16_p8_224"]
MAPS = ("resnet", "convnext", "efficientnet", "nfnet", "maxvit", "mambaout")
MAPS = [f"test_{kind}" for kind in MAPS]
TWO_SCALES = "crossvit_tiny_240"
TRANSFORM = timm.data.resolve_data_config({"input_size": (3, 96, 96)})


@pytest.fixture(scope="module")
def models():
    """Each architecture once: ours with random weights, and timm's own with the same ones."""
    known = {}

    def pair(name):
        if name not in known:
            ours = load_model(f"timm:{name}/random")
            known[name] = ours, twin(ours, name)
        return known[name]

    return pair


def twin(ours, name, **options):
    """timm's own network, built its own way, with our weights."""
    theirs = timm.create_model(name, num_classes=0, **options).eval()
    theirs.load_state_dict(ours.network.state_dict())
    return theirs


@pytest.fixture
def trained():
    torch.manual_seed(3)
    return timm.create_model("test_vit").eval()


def check_embeddings(ours, trained):
    pixels = pixels_of(ours.preprocess)
    features = trained.forward_features(pixels)
    assert close(ours.encode_image(pixels), trained.forward_head(features, pre_logits=True))


@pytest.mark.parametrize("name", [*TOKENS, *MAPS, TWO_SCALES])
def test_embeddings_and_pixels_are_timms_own(models, name):
    ours, theirs = models(name)
    config = timm.data.resolve_model_data_config(theirs)
    pixels = pixels_of(timm.data.create_transform(**config, is_training=False))
    assert torch.equal(pixels_of(ours.preprocess), pixels)
    expected = theirs(pixels)
    embeddings = ours.encode_image(pixels)
    assert embeddings.dtype == torch.float32
    assert close(embeddings, expected)
    assert expected.shape[1] == ours.embed_dim
    assert expected.std(dim=0).max() > 1e-3, "the images must differ, or this test proves nothing"
    assert ours.num_params == sum(weight.numel() for weight in theirs.parameters())
    assert ours.name == f"timm:{name}/random"
    assert not isinstance(ours, ImageTextModel)


@pytest.mark.parametrize("name", TOKENS)
def test_dense_features_of_tokens_are_the_patches_that_leave_the_tower(models, name):
    ours, theirs = models(name)
    pixels = pixels_of(ours.preprocess)
    options = {"indices": 1, "norm": True, "intermediates_only": True}
    (last,) = theirs.forward_intermediates(pixels, **options)
    dense = tokens_of_patches(ours, pixels)
    assert close(dense, last.permute(0, 2, 3, 1))
    assert ours.patch_size * dense.shape[1] == ours.image_size
    assert isinstance(ours, DenseModel)

    pooled = ours.encode_image(pixels, "mean_patch")
    assert pooled.shape[1] == ours.feature_points["mean_patch"]
    if name == "test_vit2":
        assert dense.mean(dim=-1).abs().max() > 1e-3, "normed tokens have mean 0"
        assert close(ours.encode_image(pixels), ours.network.fc_norm(pooled))


@pytest.mark.parametrize("name", MAPS)
def test_dense_features_of_maps_keep_their_places(models, name):
    ours, theirs = models(name)
    pixels = pixels_of(ours.preprocess)
    dense = tokens_of_patches(ours, pixels)
    features = theirs.forward_features(pixels)
    channels_last = features if name == "test_mambaout" else features.permute(0, 2, 3, 1)
    assert close(dense, channels_last)
    assert ours.patch_size * dense.shape[1] == ours.image_size
    assert ours.dense_methods == ("tokens",)
    if name == "test_resnet":
        pooled = ours.encode_image(pixels, "mean_patch")
        assert close(ours.encode_image(pixels), pooled), "it pools by the mean"
        assert tokens_of_patches(ours, noise(1, 3, 97, 130)).shape[1:3] == (4, 5)


@pytest.mark.parametrize("name", ["test_vit", "test_vit2", "test_vit3", "eva02_tiny_patch14_224"])
def test_any_multiple_of_the_patch_size_equals_timms_own_resizing(models, name):
    ours, _ = models(name)
    theirs = twin(ours, name, dynamic_img_size=False)
    height, width = 5 * ours.patch_size, 8 * ours.patch_size
    theirs.set_input_size(img_size=(height, width))
    pixels = noise(2, 3, height, width)
    assert tokens_of_patches(ours, pixels).shape[:3] == (2, 5, 8)
    assert close(ours.encode_image(pixels), theirs(pixels))


def test_patches_that_leave_a_rest_are_taken_at_the_trained_size(monkeypatch):
    """As in SigLIP So400m/14, where 27 patches of 14 see 378 of 384; here 3 see 42 of 45."""
    registry = sys.modules["timm.models._registry"]._model_entrypoints
    original = registry["test_vit"]

    def with_rest(pretrained=False, **given):
        config = {"input_size": (3, 45, 45)}
        sizes = {"pretrained_cfg_overlay": config, "img_size": 45, "patch_size": 14}
        return original(pretrained, **{"dynamic_img_size": False, **given, **sizes})

    monkeypatch.setitem(registry, "test_vit", with_rest)
    ours = load_model("timm:test_vit/random")
    pixels = pixels_of(ours.preprocess)
    assert pixels.shape[-1] == 45
    assert tokens_of_patches(ours, pixels).shape[1:3] == (3, 3)
    assert close(ours.encode_image(pixels), twin(ours, "test_vit")(pixels))
    with refused(about="timm:test_vit/random"):
        ours.encode_image(noise(1, 3, 56, 56))


@pytest.mark.parametrize(
    ("name", "size"), [("test_vit", (160, 170)), ("test_vit_relpos", (192, 192))]
)
@pytest.mark.parametrize("encode", [encode_image, tokens_of_patches])
def test_a_size_that_does_not_fit_is_refused(models, name, size, encode):
    ours, _ = models(name)
    with refused(about=ours.name):
        encode(ours, noise(1, 3, *size))


def test_tokens_of_several_blocks_are_the_librarys_intermediates(models):
    ours, theirs = models("test_vit")
    pixels = noise(2, 3, 160, 160)
    options = {"norm": True, "intermediates_only": True, "output_fmt": "NLC"}
    last = theirs.forward_intermediates(pixels, indices=3, **options)
    features = ours.encode_dense(pixels, ["tokens:3", "tokens"])
    assert close(features["tokens:3"], torch.cat(last, dim=-1).unflatten(1, (10, 10)))
    assert torch.equal(features["tokens"], features["tokens:3"][..., -last[0].shape[-1] :])
    assert ours.dense_methods[-1] == f"tokens:{len(theirs.blocks)}"


def test_features_without_places_are_no_dense_model(models):
    ours, _ = models(TWO_SCALES)
    assert not isinstance(ours, DenseModel)
    assert list(ours.feature_points) == ["pooled"]
    assert "dense" in ours.lacking
    assert set(JOINT) <= models("test_vit")[0].lacking.keys()


def test_tasks_with_text_are_refused_before_any_work_and_others_run(tmp_path):
    refusal = measure("timm:test_resnet/random", "shapes/knn,shapes/zeroshot", tmp_path)
    assert refusal.exit_code == 2
    assert adapter.NO_TEXT in refusal.stderr
    assert not list(tmp_path.rglob("*.json"))
    assert measure("timm:test_resnet/random", "shapes/knn", tmp_path).exit_code == 0
    assert len(list(tmp_path.rglob("*.json"))) == 1


def test_random_weights_are_the_same_each_time_and_leave_the_generator_alone(models):
    torch.manual_seed(7)
    revision = load_model("timm:test_vit/random").revision
    drawn = torch.rand(1)
    torch.manual_seed(7)
    assert torch.equal(drawn, torch.rand(1))
    assert models("test_vit")[0].revision == revision


def test_local_weights_with_and_without_a_classifier(models, trained, tmp_path):
    state = trained.state_dict()
    files = {
        "full": state,
        "ddp": {f"module.{key}": value for key, value in state.items()},
        "bare": {key: value for key, value in state.items() if not key.startswith("head.")},
    }
    revisions = {models("test_vit")[0].revision}
    for name, weights in files.items():
        torch.save(weights, tmp_path / f"{name}.pth")
        ours = load_model(f"timm:test_vit/{tmp_path}/{name}.pth")
        revisions.add(ours.revision)
        assert ours.name == f"timm:test_vit/{name}.pth"
        check_embeddings(ours, trained)
    assert len(revisions) == 2


def test_the_original_release_is_translated_by_timm(models, tmp_path):
    """ConvNeXt's first release has `downsample_layers.0.0` and `stages.0.0.pwconv1`."""
    ours, _ = models("test_convnext")
    names = {
        "stem.": "downsample_layers.0.",
        "head.norm.": "norm.",
        ".blocks.": ".",
        ".mlp.fc": ".pwconv",
        ".conv_dw.": ".dwconv.",
    }
    original = {}
    for key, value in ours.network.state_dict().items():
        for new, old in names.items():
            key = key.replace(new, old)
        if ".downsample." in key:
            stage, part = key.removeprefix("stages.").split(".downsample.")
            key = f"downsample_layers.{stage}.{part}"
        original[key] = value
    torch.save(original, tmp_path / "release.pth")
    assert original.keys() != ours.network.state_dict().keys()
    assert load_model(f"timm:test_convnext/{tmp_path}/release.pth").revision == ours.revision


def test_a_file_that_is_not_there():
    with refused(about="nowhere.pth") as caught:
        load_model("timm:test_vit/nowhere.pth")
    assert "path" in caught.value.fix


DAMAGES = {
    "missing": lambda state: {key: state[key] for key in state if "blocks.2" not in key},
    "shape": lambda state: {**state, "norm.weight": torch.ones(3)},
    "other": lambda state: {"something": torch.ones(2)},
}


# an architecture, the size that its weights are of, and a name that timm's translation takes out
OTHER_SIZES = [
    ("test_vit", {"img_size": 192}, "mask_token"),
    ("test_vit", {"patch_size": 8}, "mask_token"),
    ("beit_base_patch16_224", {"img_size": 192}, "relative_position_index"),
]


@pytest.mark.parametrize(("name", "size", "taken_out"), OTHER_SIZES)
@pytest.mark.parametrize("is_translated", [False, True])
def test_weights_of_another_size_are_refused_and_never_resized(
    tmp_path, monkeypatch, name, size, taken_out, is_translated
):
    create = functools.partial(timm.create_model, depth=1)
    monkeypatch.setattr(timm, "create_model", create)
    state = create(name, num_classes=0, **size).state_dict()
    if is_translated:
        state[taken_out] = torch.zeros(1)
    torch.save(state, tmp_path / "x.pth")
    with refused(about=f"{tmp_path}/x.pth as timm's {name}", is_kept=False):
        load_model(f"timm:{name}/{tmp_path}/x.pth")

    # of the trained size the same names are taken
    torch.save(
        create(name, num_classes=0).state_dict() | {taken_out: torch.zeros(1)}, tmp_path / "x.pth"
    )
    assert load_model(f"timm:{name}/{tmp_path}/x.pth")


@pytest.mark.parametrize("damage", DAMAGES)
def test_weights_that_do_not_fit_are_refused(tmp_path, trained, damage):
    torch.save(DAMAGES[damage](trained.state_dict()), tmp_path / "x.pth")
    with refused(about=f"{tmp_path}/x.pth as timm's test_vit"):
        load_model(f"timm:test_vit/{tmp_path}/x.pth")


@pytest.mark.parametrize(
    ("rest", "fix"),
    [
        ("tset_vit/random", "test_vit"),
        ("qqqqqqqqqq", "list_models()"),
        ("test_vit.r160_in2k", "r160_in1k"),
        ("test_vit/", "PATH"),
        ("test_vit4", "timm:test_vit4/PATH"),
        ("test_vit", "bring model.safetensors of timm/test_vit.r160_in1k"),
    ],
)
def test_names_that_lead_nowhere(monkeypatch, tmp_path, rest, fix):
    without_network(monkeypatch, tmp_path)
    with refused(about=f"timm:{rest.removesuffix('/random')}", is_kept=False) as caught:
        load_model(f"timm:{rest}")
    assert fix in caught.value.fix


def test_a_cached_download_works_without_a_network(monkeypatch, trained, tmp_path):
    from safetensors.torch import save_file

    folder = cached_repository(tmp_path, "timm/test_vit.r160_in1k")
    folder.mkdir()
    save_file(trained.state_dict(), folder / "model.safetensors")
    without_network(monkeypatch, tmp_path)
    monkeypatch.setattr("timm.models._hub.get_cache_dir", lambda *_: str(tmp_path))
    ours = load_model("timm:test_vit")
    assert ours.name == "timm:test_vit.r160_in1k"
    check_embeddings(ours, trained)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("crop_mode", "border"),
        ("input_size", (3, 224, 192)),
        ("input_size", (1, 224, 224)),
        ("interpolation", "hamming"),
    ],
)
def test_transforms_that_cannot_be_reproduced_are_refused(key, value):
    with refused(about="timm:x"):
        adapter._pipeline("timm:x", {**TRANSFORM, key: value})


@pytest.mark.parametrize("crop_pct", [1.0, 0.875, 0.95])
@pytest.mark.parametrize("crop_mode", ["center", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_every_transform_that_is_accepted_is_timms(crop_pct, crop_mode, interpolation):
    chosen = {"crop_pct": crop_pct, "crop_mode": crop_mode, "interpolation": interpolation}
    theirs = timm.data.create_transform(**TRANSFORM | chosen, is_training=False)
    ours = adapter._pipeline("timm:x", TRANSFORM | chosen)
    images = [*IMAGES, Image.new("RGB", (1, 1))]
    assert torch.equal(pixels_of(ours, images), pixels_of(theirs, images))
