"""Checkpoints of transformers, CLIP, SigLIP, SigLIP 2 and their kin: ``hf:FOLDER`` or ``hf:NAME``.

A NAME is one on the Hugging Face hub.

Flow: ``load("google/siglip-base-patch16-224")`` -> its files (``files``) -> the library's network,
filled through ``weights.read_weights`` (never by unpickling, never with code from the repository)
-> an ``HfModel`` with its pipeline, its ``Reader`` (``text``) and a tower that knows how its kind
pools: ``ClsTower``, ``MapTower`` (``towers``) or ``NaflexTower`` (``naflex``).

The image towers are run block by block from the library's own modules, at any size; texts go
through `get_text_features`. Works with transformers 4.51 to 5.x: only names that all of them share
are used.

Shapes: B images or texts, L tokens, D embedding, W width of the tower, N patches = h x w.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from silc_bench.errors import UserError, unknown_name
from silc_bench.models.adapters.huggingface.files import (
    find_folder,
    pipeline_of,
    read_json,
    read_preprocessor,
)
from silc_bench.models.adapters.huggingface.naflex import (
    NaflexPipeline,
    NaflexTower,
    naflex_pipeline,
)
from silc_bench.models.adapters.huggingface.text import (
    Reader,
    check_end_of_text,
    read_tokenizer,
    without_padding,
)
from silc_bench.models.adapters.huggingface.towers import ClsTower, MapTower, embedding_of
from silc_bench.models.adapters.library import library
from silc_bench.models.patch_features import check_methods, dense
from silc_bench.models.preprocessing import ImagePipeline
from silc_bench.models.weights.revision import revision_of


@dataclass(frozen=True)
class Family:
    """One of the library's `model_type`s."""

    network: str  # the class
    processor: str  # the class that prepares images, where the files do not name it
    length: int | None  # tokens that it was trained on; None: as many as it has positions
    is_masked: bool = False  # whether its text tower must not see the padding
    is_causal: bool = False  # whether its text tower sees nothing behind the end of text


FAMILIES = {
    "clip": Family("CLIPModel", "CLIPImageProcessor", None, is_causal=True),
    "siglip": Family("SiglipModel", "SiglipImageProcessor", None),  # and SigLIP 2 of one resolution
    "siglip2": Family("Siglip2Model", "Siglip2ImageProcessor", None),  # NaFlex
    "altclip": Family("AltCLIPModel", "CLIPImageProcessor", 77, is_masked=True),
    "chinese_clip": Family("ChineseCLIPModel", "ChineseCLIPImageProcessor", 52, is_masked=True),
}

# What changes the embeddings and is no weight; read from the two towers' configurations where they
# have it.
SETTINGS = (
    "hidden_act",
    "num_attention_heads",
    "layer_norm_eps",
    "image_size",
    "patch_size",
    "num_patches",
)


class HfModel:
    """An ImageTextModel over a network of transformers."""

    libraries = ("transformers", "tokenizers")

    def __init__(
        self,
        name: str,
        network: Any,
        tower: ClsTower | MapTower | NaflexTower,
        reader: Reader,
        pipeline: ImagePipeline | NaflexPipeline,
    ):
        self.name = name
        self.network = network
        self.tower = tower
        self.reader = reader
        self._is_causal = FAMILIES[network.config.model_type].is_causal

        self.feature_points = tower.feature_points
        self.embed_dim = tower.feature_points["pooled"]
        self.image_size = pipeline.size

        # towers and projections: the scale and the bias are no modules, so they are not counted
        modules = dict(network.named_children())
        self.num_params = sum(
            parameter.numel() for module in modules.values() for parameter in module.parameters()
        )
        self.revision = revision_of(modules, _settings(network.config))

        # the network keeps the logarithm of the scale; only models of the sigmoid loss have a bias
        self.logit_scale = network.logit_scale.exp().item()
        self.logit_bias = network.logit_bias.item() if hasattr(network, "logit_bias") else 0.0

        self.pipeline = pipeline
        self.image_protocol = pipeline.as_dict()
        self.text_protocol = reader.protocol()

    def preprocess(self, image: Image.Image) -> Tensor:
        return self.pipeline(image)

    def tokenize(self, texts: list[str]) -> Tensor:
        return self.reader(texts)

    def encode_image(self, images: Tensor, point: str = "pooled") -> Tensor:
        """What ``preprocess`` gives, in a batch -> [B, feature_points[point]]."""
        return self.tower.encode(images, point).float()

    def encode_text(self, tokens: Tensor) -> Tensor:
        """[B, L] -> [B, D]."""
        if self._is_causal:
            tokens = without_padding(tokens, self.network.config.text_config.eos_token_id)

        # SigLIP was trained to see its padding: there the argument must be absent
        mask = self.reader.attention_mask(tokens)
        masked = {} if mask is None else {"attention_mask": mask}
        return embedding_of(self.network.get_text_features(input_ids=tokens, **masked)).float()

    def to(self, device: torch.device) -> HfModel:
        self.network.to(device)
        return self


class DenseHfModel(HfModel):
    """A DenseModel: images of one size make one grid of patches."""

    tower: ClsTower | MapTower

    def __init__(
        self,
        name: str,
        network: Any,
        tower: ClsTower | MapTower,
        reader: Reader,
        pipeline: ImagePipeline,
    ):
        super().__init__(name, network, tower, reader, pipeline)
        self.patch_size = tower.patch_size
        self.dense_methods = tower.dense_methods
        self.lacking = tower.lacking

    def encode_dense(self, images: Tensor, methods: Sequence[str]) -> dict[str, Tensor]:
        """[B, 3, H, W] -> {method: [B, h, w, D or W]}.

        Raises:
            UserError: a size that does not divide into patches, or a method that this tower cannot
                do.
        """
        check_methods(self.name, methods, self.dense_methods, self.lacking)
        return dense(self.tower, images, methods)


def load(rest: str, weights: Path | None = None) -> HfModel:
    """What follows ``hf:`` -> a model on the CPU.

    Args:
        rest: a folder, or a name on the hub.
        weights: a file whose weights are taken instead of the folder's own.

    Raises:
        UserError: files missing, damaged or of another kind of model, weights that do not fit,
            packages missing.
    """
    transformers = library("transformers", "hf")
    folder = find_folder(rest, needs_weights=weights is None)
    content = read_json(folder / "config.json")
    model_type, family = _family(content, folder)

    with _quiet(transformers):
        network = _network(transformers, family, folder, content, weights or folder)
        vision = network.config.vision_config
        text = network.config.text_config

        # the tokens of a text; XLM-R counts its positions from one behind the id of its padding
        offset = text.pad_token_id + 1 if model_type == "altclip" else 0
        positions = text.max_position_embeddings - offset
        length = positions if family.length is None else min(family.length, positions)

        is_siglip = model_type.startswith("siglip")
        reader = read_tokenizer(folder, length, text.vocab_size, family.is_masked, is_siglip)

    if model_type == "clip":
        check_end_of_text(reader, text.eos_token_id, folder)

    # the row of the leaderboard: a folder's name, or a hub's name without its owner
    name = rest.rpartition("/")[2]
    if Path(rest).is_dir():
        name = Path(rest).expanduser().resolve().name
    name = f"hf:{name}" if weights is None else f"hf:{name}/{weights.stem}"

    path, settings = read_preprocessor(folder)
    if model_type == "siglip2":
        squares = naflex_pipeline(path, settings, vision.patch_size)
        return HfModel(name, network, NaflexTower(network, squares.patch_size), reader, squares)

    pipeline = pipeline_of(path, settings, family.processor, vision.image_size)
    tower = MapTower(network) if model_type == "siglip" else ClsTower(network)
    return DenseHfModel(name, network, tower, reader, pipeline)


def _family(content: dict[str, Any], folder: Path) -> tuple[str, Family]:
    """The model type that a config.json names, and its row in ``FAMILIES``.

    Raises:
        UserError: none, or one that is not known.
    """
    model_type = content.get("model_type")
    if model_type in FAMILIES:
        return model_type, FAMILIES[model_type]

    known = f"model types of pictures and text that are known: {', '.join(sorted(FAMILIES))}"
    if not isinstance(model_type, str):
        raise UserError(f"{folder / 'config.json'} names no model_type; {known}")

    unknown = unknown_name("model_type", model_type, FAMILIES)
    raise UserError(f"{unknown} ({folder / 'config.json'}; {known})")


def _network(
    transformers: Any, family: Family, folder: Path, content: dict[str, Any], weights: Path
) -> Any:
    """The library's network in fp32, every weight from ``weights``.

    Raises:
        UserError: a configuration that makes no network, or weights of another one; names the
            first few.
    """
    from silc_bench.models.weights.read import read_weights

    # Fused attention gives the same numbers to 1e-6; transformers 4 has it for three families.
    kind = getattr(transformers, family.network)
    attention = "sdpa" if getattr(kind, "_supports_sdpa", False) else "eager"

    # older releases saved the positions' numbers, which are no weights
    state = {
        key: value
        for key, value in read_weights(weights).items()
        if not key.endswith(".position_ids")
    }
    try:
        config = kind.config_class.from_dict({**_without_dtype(content), "torch_dtype": "float32"})
        network, report = kind.from_pretrained(
            None,
            config=config,
            state_dict=state,
            attn_implementation=attention,
            ignore_mismatched_sizes=True,  # reported, and refused below
            output_loading_info=True,
        )
    # the library raises its own kinds where fields do not fit, or do not fit each other
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(
            f"{folder / 'config.json'} does not describe a {family.network} ({reason})"
        ) from None

    if not getattr(config.vision_config, "vision_use_head", True):
        raise UserError(
            f"{folder / 'config.json'}: this image tower has no pooling head, "
            "so it gives no image embedding"
        )
    _check_report(report, folder, weights)
    return network.float().eval().requires_grad_(False)


def _check_report(report: dict[str, Any], folder: Path, weights: Path) -> None:
    """Refuses weights that are missing, too many or of another shape.

    The library would draw the missing ones at random and only warn.
    """
    faults = []
    for verb, entry in (
        ("lacks", "missing_keys"),
        ("has besides", "unexpected_keys"),
        ("has in other shapes", "mismatched_keys"),
    ):
        # a mismatch is a tuple: the name and the two shapes
        keys = sorted(
            key if isinstance(key, str) else f"{key[0]} {tuple(key[1])}" for key in report[entry]
        )
        if keys:
            faults.append(f"{verb} {len(keys)} ({', '.join(keys[:3])})")

    if faults:
        raise UserError(
            f"{weights} does not hold the weights of {folder / 'config.json'}: "
            f"it {' and '.join(faults)}"
        )


def _without_dtype(content: dict[str, Any]) -> dict[str, Any]:
    """A configuration without its dtype, to which transformers 5 rounds weights.

    Here they stay what the file holds.
    """
    kept = {key: value for key, value in content.items() if key not in ("dtype", "torch_dtype")}
    return {
        key: _without_dtype(value) if isinstance(value, dict) else value
        for key, value in kept.items()
    }


def _settings(config: Any) -> dict[str, Any]:
    """What ``revision_of`` cannot see in the weights."""
    settings: dict[str, Any] = {"model_type": config.model_type}
    for side, tower in (("vision", config.vision_config), ("text", config.text_config)):
        settings[side] = {name: getattr(tower, name) for name in SETTINGS if hasattr(tower, name)}

    # CLIP alone pools where its configuration finds the end of text
    if config.model_type == "clip":
        settings["text"]["eos_token_id"] = config.text_config.eos_token_id
    return settings


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Silences the library's progress bars and load reports.

    What matters in them is checked here and refused.
    """
    log = transformers.utils.logging
    verbosity = log.get_verbosity()
    has_bar = log.is_progress_bar_enabled()

    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if has_bar:
            log.enable_progress_bar()
