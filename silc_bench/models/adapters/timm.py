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

import difflib
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from silc_bench.errors import UserError, unknown_name
from silc_bench.models.adapters.blocks import is_known_course
from silc_bench.models.adapters.library import library
from silc_bench.models.patch_features import JOINT, check_methods, methods_of, num_layers
from silc_bench.models.preprocessing import INTERPOLATIONS, ImagePipeline
from silc_bench.models.weights.revision import revision_of

# a torch module with timm's forward_features and forward_head, which its base class does not
# declare
Network = Any

FORMS = "timm:NAME, timm:NAME.TAG, timm:NAME/PATH or timm:NAME/random"


class TimmModel:
    """An ImageModel over a timm network of any shape; it has no text tower."""

    libraries = ("timm",)

    def __init__(self, name: str, network: Network, pipeline: ImagePipeline, embed_dim: int):
        self.name = name
        self.network = network
        self.embed_dim = embed_dim
        self.image_size = pipeline.size
        self.num_params = sum(parameter.numel() for parameter in network.parameters())

        # the architecture's name fixes activation, heads and norms; a tag may change these two
        config = _config(network)
        self.settings = {
            "architecture": config["architecture"],
            "global_pool": str(getattr(network, "global_pool", "")),
            "image_size": self.image_size,
        }
        self.revision = revision_of({"network": network}, self.settings)

        self.feature_points = {"pooled": embed_dim}
        self.lacking = {
            "text": "timm holds image encoders only",
            "dense": "its last features have no places on the picture",
        }

        self.pipeline = pipeline
        self.image_protocol = pipeline.as_dict()

        # what timm says of the release; _create may have opened the network to other sizes
        is_open = getattr(network, "dynamic_img_size", False)
        self.is_fixed_size = bool(config.get("fixed_input_size")) and not is_open

    def preprocess(self, image: Image.Image) -> Tensor:
        return self.pipeline(image)

    def encode_image(self, images: Tensor, point: str = "pooled") -> Tensor:
        """[B, 3, H, W] -> [B, D]."""
        return self.network.forward_head(self._features(images), pre_logits=True).float()

    def to(self, device: torch.device) -> TimmModel:
        self.network.to(device)
        return self

    def _features(self, images: Tensor) -> Any:
        height, width = images.shape[-2:]
        if self.is_fixed_size and (height, width) != (self.image_size, self.image_size):
            raise UserError(
                f"{self.name} takes pictures of {self.image_size} x {self.image_size} pixels only, "
                f"not {height} x {width}"
            )
        return self.network.forward_features(images)


class DenseTimmModel(TimmModel):
    """A DenseModel: the features of this network have positions."""

    def __init__(
        self,
        name: str,
        network: Network,
        pipeline: ImagePipeline,
        embed_dim: int,
        width: int,
        patch_size: int,
    ):
        super().__init__(name, network, pipeline, embed_dim)
        self.patch_size = patch_size
        self.feature_points = {"pooled": embed_dim, "mean_patch": width}
        self.blocks = list(network.blocks) if is_known_course(network) else []
        self.dense_methods = methods_of(len(self.blocks), ())
        reason = "it has no text tower, so no space shared with text"
        self.lacking = {"text": self.lacking["text"], **dict.fromkeys(JOINT, reason)}

    def encode_image(self, images: Tensor, point: str = "pooled") -> Tensor:
        """[B, 3, H, W] -> [B, feature_points[point]]."""
        if point == "mean_patch":
            return self.encode_dense(images, ("tokens",))["tokens"].mean(dim=(1, 2))
        return super().encode_image(images, point)

    def encode_dense(self, images: Tensor, methods: Sequence[str]) -> dict[str, Tensor]:
        """[B, 3, H, W] -> {method: [B, h, w, W]}, [B, h, w, N * W] for "tokens:N".

        Raises:
            UserError: a method in the space shared with text (there is no text), or a size that the
                network does not take.
        """
        check_methods(self.name, methods, self.dense_methods, self.lacking)

        # The last block's output comes out of the network, with the final norm; hooks bring that of
        # the blocks before it, as many as the methods ask for.
        count = max(num_layers(method) for method in methods)
        outputs: list[Tensor] = []
        handles = [
            block.register_forward_hook(lambda _, inputs, output: outputs.append(output))
            for block in self.blocks[-count:-1]
        ]
        try:
            features = self._features(images)
        finally:
            for handle in handles:
                handle.remove()

        layers = [*(self.network.norm(tokens) for tokens in outputs), features]
        height, width = images.shape[-2:]
        layers = [
            _positions(self.network, layer, height, width, self.patch_size) for layer in layers
        ]
        return {
            method: torch.cat(layers[-num_layers(method) :], dim=-1).float() for method in methods
        }

    def _features(self, images: Tensor) -> Any:
        # asked here, so that the error names the model
        height, width = images.shape[-2:]
        has_rest = height % self.patch_size or width % self.patch_size
        if has_rest and _is_tokens(self.network) and not self.is_fixed_size:
            raise UserError(
                f"{self.name} cuts pictures into patches of {self.patch_size} pixels; "
                f"{height} x {width} is no multiple of that"
            )
        return super()._features(images)


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
        raise UserError(f"timm:{rest} names no file of weights; write {FORMS}")

    if path == "random":
        # the caller's random numbers go on as if nothing had been drawn
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = _create(timm, name)
        label = f"timm:{name}/random"
    elif slash:
        network = _create(timm, name)
        _fill(network, name, Path(path))
        # the label has the file's suffix: random.pt is not the row /random
        label = f"timm:{name}/{Path(path).name}"
    else:
        # the row names the tag even where the user left it to timm
        network = _download(timm, name)
        config = _config(network)
        parts = (config["architecture"], config.get("tag"))
        label = f"timm:{'.'.join(part for part in parts if part)}"

    return _adapt(timm, label, network.eval().requires_grad_(False))


def _check_name(timm: ModuleType, name: str) -> None:
    """Refuses an architecture or a tag that timm does not know; names those that are near it."""
    arch, _, tag = name.partition(".")
    if not timm.is_model(arch):
        # of more than a thousand names only near ones help
        known = timm.list_models()
        if not difflib.get_close_matches(arch, known, n=1, cutoff=0.5):
            raise UserError(
                f"unknown timm architecture {arch!r}; "
                f"timm.list_models() names all {len(known)}; write {FORMS}"
            )
        raise unknown_name("timm architecture", arch, known)

    if not tag:
        return
    full_names = timm.models.get_arch_pretrained_cfgs(arch)
    tags = [full_name.partition(".")[2] for full_name in full_names]
    if tag not in tags:
        raise unknown_name(f"tag of timm's {arch}", tag, filter(None, tags))


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
        raise UserError(
            f"timm has no trained weights for {name}; "
            f"write timm:{name}/PATH for a file, or timm:{name}/random"
        )

    source = str(config.url or config.file)
    if config.hf_hub_id:
        file = config.hf_hub_filename or "model.safetensors"
        source = f"{file} of {config.hf_hub_id} on the Hugging Face hub"
    try:
        return _create(timm, name, pretrained=True)
    # the cache, the hub, a proxy and a broken download each raise their own kind
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(
            f"the weights of timm:{name} cannot be had ({reason}); "
            f"bring {source} to this machine and write timm:{name}/PATH"
        ) from error


def _fill(network: Network, name: str, path: Path) -> None:
    """Puts local weights into the network, all but a classifier.

    Names of the original release are translated by timm.

    Raises:
        UserError: weights of another network.
    """
    from silc_bench.models.weights.read import load_into, read_weights

    weights = _without_classifier(read_weights(path), network)
    translate = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    if translate and weights.keys() != network.state_dict().keys():
        try:
            weights = _without_classifier(translate(weights, network), network)
        except Exception as error:  # made for known releases, it fails in any way on other files
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise UserError(
                f"{path} does not hold the weights of timm's {name}: {reason}"
            ) from None

    load_into(network, weights, f"{path} as timm's {name}")


def _without_classifier(weights: dict[str, Tensor], network: Network) -> dict[str, Tensor]:
    # one name, several (a distilled DeiT has two heads), or none
    classifier = _config(network).get("classifier") or ()
    names = (classifier,) if isinstance(classifier, str) else tuple(classifier)

    # what the network itself still holds is filled, whatever its name
    keys = {f"{name}.{part}" for name in names for part in ("weight", "bias")}
    left_out = keys - network.state_dict().keys()
    return {key: value for key, value in weights.items() if key not in left_out}


def _adapt(timm: ModuleType, label: str, network: Network) -> TimmModel:
    """The model around a filled network: dense where its features have positions."""
    pipeline = _pipeline(label, timm.data.resolve_model_data_config(network))
    side = pipeline.size

    # one empty image shows what the network gives, whatever its family calls it
    with torch.no_grad():
        features = network.forward_features(torch.zeros(1, 3, side, side))
        embed_dim = network.forward_head(features, pre_logits=True).shape[-1]

    if isinstance(features, Tensor) and features.dim() == 4:
        h, _, width = _positions(network, features, side, side, 1).shape[1:]
    elif isinstance(features, Tensor) and features.dim() == 3 and _is_tokens(network):
        h = math.isqrt(features.shape[1] - network.num_prefix_tokens)
        width = features.shape[2]
    else:
        return TimmModel(label, network, pipeline, embed_dim)

    # rounded, because patches may leave a rest of the image: 384 / 27 is a bit more than 14
    patch_size = round(side / h)
    return DenseTimmModel(label, network, pipeline, embed_dim, width, patch_size)


def _is_tokens(network: Network) -> bool:
    """Whether `forward_features` gives prefix tokens, then patches row by row.

    Elsewhere in timm their order differs.
    """
    return hasattr(network, "num_prefix_tokens") and getattr(network, "output_fmt", "NLC") == "NLC"


def _positions(
    network: Network, features: Tensor, height: int, width: int, patch_size: int
) -> Tensor:
    """What `forward_features` gives for ``height`` x ``width`` pixels -> [B, h, w, W]."""
    if features.dim() == 3:
        patches = features[:, network.num_prefix_tokens :]
        return patches.unflatten(1, (height // patch_size, width // patch_size))

    is_channels_last = str(getattr(network, "output_fmt", "NCHW")) == "NHWC"
    return features if is_channels_last else features.permute(0, 2, 3, 1)


def _pipeline(label: str, config: dict[str, Any]) -> ImagePipeline:
    """timm's evaluation transform (`timm.data.create_transform`): resize, centre crop, normalise.

    The image is resized to size / crop_pct.

    Raises:
        UserError: a transform that does more, or takes images that are no squares.
    """
    channels, height, width = config["input_size"]
    if channels != 3 or height != width:
        raise UserError(
            f"{label} takes pictures of {channels} x {height} x {width}; "
            "only 3 channels and a square are measured"
        )
    if config["crop_mode"] not in ("center", "squash"):
        raise UserError(
            f"{label} is evaluated with the crop mode {config['crop_mode']!r}; "
            "only center and squash are measured"
        )
    if config["interpolation"] not in INTERPOLATIONS:
        raise UserError(
            f"{label} is resized with {config['interpolation']!r}; "
            f"only {', '.join(INTERPOLATIONS)} are measured"
        )

    return ImagePipeline(
        size=height,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        resize="squash" if config["crop_mode"] == "squash" else "shortest",
        resize_size=math.floor(height / config["crop_pct"]),  # timm rounds down too
        crop="center",
        interpolation=config["interpolation"],
    )


def _config(network: Network) -> dict[str, Any]:
    return dict(network.pretrained_cfg)
