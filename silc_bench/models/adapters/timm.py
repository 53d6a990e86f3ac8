"""Image encoders of the timm library: ``timm:NAME[.TAG]``, and the same with weights of your own.

``timm:NAME[.TAG]/PATH`` takes local weights, ``timm:NAME/random`` random ones.

Flow: ``load("vit_small_patch14_dinov2.lvd142m")`` -> timm builds the model without its classifier
and fills it -> its data configuration becomes an ``ImagePipeline`` -> a model without text.

"pooled" is what timm calls the embedding: the model with ``num_classes=0``, that is
`forward_head(pre_logits=True)`: class token, mean, attention pool or hidden layers, as trained.

Dense features are the output of `forward_features` at its positions: patch tokens without class,
distillation and register tokens, or a feature map. Where the architecture normalises before pooling
they have passed the final norm; where it does so after pooling (`fc_norm` of ViTs that average, the
head's norm of ConvNeXt), they have not: that norm was never trained on them.

Shapes: B images, D embedding, W width of the tower, H x W or S x S pixels, h x w positions.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from silc_bench.errors import UserError, nearest, unknown_name
from silc_bench.models.adapters.blocks import inputs_of, is_known_course, places_of
from silc_bench.models.adapters.library import explained, library, seeded
from silc_bench.models.adapters.loaded import DenseLoadedModel, LoadedModel
from silc_bench.models.interface import JOINT
from silc_bench.models.patch_features import methods_of, num_layers
from silc_bench.models.preprocessing import INTERPOLATIONS, ImagePipeline

# a torch module with timm's forward_features and forward_head, which its base class does not
# declare
Network = Any

FORMS = "timm:NAME, timm:NAME.TAG, timm:NAME/PATH or timm:NAME/random"
MEASURED = (
    "name a model of square images in 3 channels, crop mode center or squash, interpolation "
    f"{', '.join(INTERPOLATIONS)}"
)
NO_TEXT = "timm holds image encoders only"


class TimmModel(LoadedModel):
    """An ImageModel over a timm network of any shape; it has no text tower."""

    libraries = ("timm",)


class DenseTimmModel(TimmModel, DenseLoadedModel):
    """A DenseModel: the features of this network have positions."""


class Tower:
    """A network whose features have no places on the image."""

    def __init__(self, network: Network, embed_dim: int):
        self.network = network
        self.feature_points = {"pooled": embed_dim}
        self.lacking = {"text": NO_TEXT, "dense": "its last features have no places on the image"}

        # what timm says of the release; _create may have opened the network to other sizes
        is_open = getattr(network, "dynamic_img_size", False)
        self.is_fixed_size = bool(_config(network).get("fixed_input_size")) and not is_open
        self.step = 0 if self.is_fixed_size else 1

    def encode(self, images: Tensor, point: str) -> Tensor:
        """[B, 3, H, W] -> [B, D]."""
        return self.network.forward_head(self.network.forward_features(images), pre_logits=True)


class DenseTower(Tower):
    """A network of tokens or of a map."""

    def __init__(self, network: Network, embed_dim: int, width: int, patch_size: int):
        super().__init__(network, embed_dim)
        self.patch_size = patch_size
        if _is_tokens(network) and not self.is_fixed_size:
            self.step = patch_size
        self.feature_points = {"pooled": embed_dim, "mean_patch": width}
        self.blocks = list(network.blocks) if is_known_course(network) else []
        self.dense_methods = methods_of(len(self.blocks), ())
        reason = "it has no text tower, so no space shared with text"
        self.lacking = {"text": NO_TEXT, **dict.fromkeys(JOINT, reason)}

    def dense(self, images: Tensor, methods: Sequence[str]) -> dict[str, Tensor]:
        """[B, 3, H, W] -> {method: [B, h, w, W]}, [B, h, w, N * W] for "tokens:N"."""
        # The last block's output comes out of the network, with the final norm; that of the blocks
        # before it, as many as the methods ask for, is what enters the next one.
        count = max(map(num_layers, methods))
        with inputs_of(self.blocks[len(self.blocks) - count + 1 :]) as outputs:
            features = self.network.forward_features(images)

        grid = images.shape[2] // self.patch_size, images.shape[3] // self.patch_size
        layers = [*(self.network.norm(tokens) for tokens in outputs), features]
        maps = [places_of(self.network, layer, grid) for layer in layers]
        return {
            method: torch.cat(maps[-num_layers(method) :], dim=-1).float() for method in methods
        }


def load(rest: str) -> TimmModel:
    """What follows ``timm:`` -> a model on the CPU.

    Raises:
        UserError: timm is not installed, no such architecture, tag or file, weights that do not fit
            or cannot be had, or an evaluation transform that is more than resize, centre crop,
            normalise.
    """
    timm = library("timm", "timm")
    name, slash, path = rest.partition("/")
    _check_name(timm, name)
    if slash and not path:
        raise UserError("this names no file of weights", about=f"timm:{rest}", fix=f"write {FORMS}")

    # the label of a file has its suffix: random.pt is not the row /random
    label = f"timm:{name}/{Path(path).name}"
    if path == "random":
        with seeded():
            network = _create(timm, name)
    elif slash:
        network = _create(timm, name)
        _fill(network, name, Path(path))
    else:
        # the row names the tag even where the user left it to timm
        network = _download(timm, name)
        config = _config(network)
        parts = (config["architecture"], config.get("tag"))
        label = f"timm:{'.'.join(filter(None, parts))}"

    pipeline = _pipeline(label, timm.data.resolve_model_data_config(network))
    return of_network(label, network.eval().requires_grad_(False), pipeline)


def _check_name(timm: ModuleType, name: str) -> None:
    """Refuses an architecture or a tag that timm does not know; names those that are near it."""
    arch, _, tag = name.partition(".")
    about = f"timm:{name}"
    if not timm.is_model(arch):
        # of more than a thousand names only near ones help
        known = timm.list_models()
        near = nearest(arch, known)
        if near:
            raise unknown_name("architecture", arch, near, about)
        fix = f"timm.list_models() names all {len(known)}; write {FORMS}"
        raise UserError("unknown architecture", about=about, fix=fix)

    if not tag:
        return
    full_names = timm.models.get_arch_pretrained_cfgs(arch)
    tags = [full_name.partition(".")[2] for full_name in full_names]
    if tag not in tags:
        raise unknown_name("tag", tag, filter(None, tags), about)


def _create(timm: ModuleType, name: str, pretrained: bool = False) -> Network:
    """The network without its classifier, open to other image sizes where it can be.

    Position embeddings are then resized by timm (bicubic, antialiased).
    """
    options: dict[str, Any] = {"pretrained": pretrained, "num_classes": 0}
    try:
        network = timm.create_model(name, **options, dynamic_img_size=True)
    except TypeError as error:
        if "dynamic_img_size" not in str(error):
            raise
        return timm.create_model(name, **options)

    # SigLIP So400m/14 at 384: open to other sizes, it refuses its own, which leaves a rest
    patch = getattr(getattr(network, "patch_embed", None), "patch_size", (1, 1))
    if _config(network)["input_size"][-1] % patch[-1]:
        return timm.create_model(name, **options, dynamic_img_size=False)
    return network


def _download(timm: ModuleType, name: str) -> Network:
    """A network filled by timm from its cache or, where there is a network, from the hub.

    Nothing but tensors is unpickled.

    Raises:
        UserError: there are no weights, or they cannot be had; names the file to bring.
    """
    config = timm.models.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        fix = f"write timm:{name}/PATH for a file, or timm:{name}/random"
        raise UserError("timm has no trained weights for it", about=f"timm:{name}", fix=fix)

    source = str(config.url or config.file)
    if config.hf_hub_id:
        file = config.hf_hub_filename or "model.safetensors"
        source = f"{file} of {config.hf_hub_id} on the Hugging Face hub"
    fix = f"bring {source} to this machine and write timm:{name}/PATH"
    with explained("its weights cannot be had", about=f"timm:{name}", fix=fix):
        return _create(timm, name, pretrained=True)


def _fill(network: Network, name: str, path: Path) -> None:
    """Puts local weights into the network, all but a classifier.

    Names of the original release are translated by timm.

    Raises:
        UserError: weights of another network.
    """
    from silc_bench.models.weights.read import load_into, read_weights

    about = f"{path} as timm's {name}"
    weights = _without_classifier(read_weights(path), network)
    translate = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    if translate and weights.keys() != network.state_dict().keys():
        # made for known releases, it fails in any way on other files
        fix = "name the architecture that these weights were trained in"
        module = sys.modules[type(network).__module__]
        with explained("its weights do not fit", about=about, fix=fix), _without_resizing(module):
            weights = _without_classifier(translate(weights, network), network)

    load_into(network, weights, about)


@contextmanager
def _without_resizing(module: ModuleType) -> Iterator[None]:
    """Within it timm's translation renames weights and resizes none.

    It resizes position embeddings and patches to the network's, by functions that all its modules
    import by these names. Weights whose names need no translation are never resized either.
    """

    def refusing(resize: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def checked(weight: Tensor, *args: Any, **others: Any) -> Tensor:
            resized = resize(weight, *args, **others)
            if resized.shape != weight.shape:
                shapes = f"{list(weight.shape)} instead of {list(resized.shape)}"
                raise ValueError(f"weights of another image or patch size, {shapes}")
            return resized

        return checked

    originals = {
        name: part
        for name, part in vars(module).items()
        if name.startswith(("resample_", "resize_")) and callable(part)
    }
    for name, part in originals.items():
        setattr(module, name, refusing(part))
    try:
        yield
    finally:
        for name, part in originals.items():
            setattr(module, name, part)


def _without_classifier(weights: dict[str, Tensor], network: Network) -> dict[str, Tensor]:
    # one name, several (a distilled DeiT has two heads), or none
    classifier = _config(network).get("classifier") or ()
    names = (classifier,) if isinstance(classifier, str) else tuple(classifier)

    # what the network itself still holds is filled, whatever its name
    keys = {f"{name}.{part}" for name in names for part in ("weight", "bias")}
    left_out = keys - network.state_dict().keys()
    return {key: value for key, value in weights.items() if key not in left_out}


def of_network(label: str, network: Network, pipeline: ImagePipeline) -> TimmModel:
    """The model around a filled network: dense where its features have positions.

    ``pipeline``: to a size that the network takes.
    """
    config = _config(network)
    side = pipeline.size

    # the architecture's name fixes activation, heads and norms; a tag may change these two
    settings = {
        "architecture": config["architecture"],
        "global_pool": str(getattr(network, "global_pool", "")),
        "image_size": side,
    }

    # one empty image shows what the network gives, whatever its family calls it
    with torch.no_grad():
        device = next(network.parameters()).device
        features = network.forward_features(torch.zeros(1, 3, side, side, device=device))
        embed_dim = network.forward_head(features, pre_logits=True).shape[-1]

    is_map = isinstance(features, Tensor) and features.dim() == 4
    is_tokens = isinstance(features, Tensor) and features.dim() == 3 and _is_tokens(network)
    if not is_map and not is_tokens:
        tower = Tower(network, embed_dim)
        return TimmModel(label, network, tower, pipeline, {"network": network}, settings)

    num_rows = 0
    if is_tokens:
        num_rows = math.isqrt(features.shape[1] - network.num_prefix_tokens)
    places = places_of(network, features, (num_rows, num_rows))

    # rounded, because patches may leave a rest of the image: 384 / 27 is a bit more than 14
    dense_tower = DenseTower(network, embed_dim, places.shape[-1], round(side / places.shape[1]))
    return DenseTimmModel(label, network, dense_tower, pipeline, {"network": network}, settings)


def _is_tokens(network: Network) -> bool:
    """Whether `forward_features` gives prefix tokens, then patches row by row.

    Elsewhere in timm their order differs.
    """
    return hasattr(network, "num_prefix_tokens") and getattr(network, "output_fmt", "NLC") == "NLC"


def _pipeline(label: str, config: dict[str, Any]) -> ImagePipeline:
    """timm's evaluation transform (`timm.data.create_transform`): resize, centre crop, normalise.

    The image is resized to size / crop_pct.

    Raises:
        UserError: a transform that does more, or takes images that are no squares.
    """
    shape = config["input_size"]
    is_squash = config["crop_mode"] == "squash"
    is_known = {
        f"images of {shape}": shape[0] == 3 and shape[1] == shape[2],
        f"the crop mode {config['crop_mode']!r}": is_squash or config["crop_mode"] == "center",
        f"the interpolation {config['interpolation']!r}": config["interpolation"] in INTERPOLATIONS,
    }
    unknown = [what for what, is_ours in is_known.items() if not is_ours]
    if unknown:
        problem = f"it is evaluated with {' and '.join(unknown)}"
        raise UserError(problem, about=label, fix=MEASURED)

    return ImagePipeline(
        size=shape[1],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        resize="squash" if is_squash else "shortest",
        resize_size=math.floor(shape[1] / config["crop_pct"]),  # timm rounds down too
        crop="center",
        interpolation=config["interpolation"],
    )


def _config(network: Network) -> dict[str, Any]:
    return dict(network.pretrained_cfg)
