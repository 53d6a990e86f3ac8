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

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from silc_bench.errors import UserError
from silc_bench.models.adapters.huggingface.files import (
    find_folder,
    pipeline_of,
    read_json,
    read_pipeline,
)
from silc_bench.models.adapters.huggingface.naflex import NaflexTower, naflex_pipeline
from silc_bench.models.adapters.huggingface.text import (
    Reader,
    check_end_of_text,
    read_tokenizer,
    without_padding,
)
from silc_bench.models.adapters.huggingface.towers import ClsTower, MapTower, embedding_of
from silc_bench.models.adapters.library import explained, library
from silc_bench.models.adapters.loaded import DenseLoadedModel, LoadedModel
from silc_bench.models.weights.parts import label_of
from silc_bench.models.weights.read import part_fix, read_weights


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


class HfModel(LoadedModel):
    """An ImageTextModel over a network of transformers."""

    libraries = ("transformers", "tokenizers")

    def __init__(self, name: str, network: Any, tower: Any, reader: Reader, pipeline: Any):
        # towers and projections: the scale and the bias are no modules, so they are not counted
        parts = dict(network.named_children())
        super().__init__(name, network, tower, pipeline, parts, _settings(network.config))
        self.reader = reader
        self.text_protocol = reader.protocol()
        self._is_causal = FAMILIES[network.config.model_type].is_causal

        # the network keeps the logarithm of the scale; only models of the sigmoid loss have a bias
        self.logit_scale = network.logit_scale.exp().item()
        self.logit_bias = network.logit_bias.item() if hasattr(network, "logit_bias") else 0.0

    def tokenize(self, texts: list[str]) -> Tensor:
        return self.reader(texts)

    def token_lengths(self, texts: list[str]) -> list[int]:
        return self.reader.lengths(texts)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """[B, L] -> [B, D]."""
        if self._is_causal:
            tokens = without_padding(tokens, self.network.config.text_config.eos_token_id)

        # SigLIP was trained to see its padding: there the argument must be absent
        mask = self.reader.attention_mask(tokens)
        masked = {} if mask is None else {"attention_mask": mask}
        return embedding_of(self.network.get_text_features(input_ids=tokens, **masked)).float()


class DenseHfModel(HfModel, DenseLoadedModel):
    """A DenseModel: images of one size make one grid of patches."""


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
    path = folder / "config.json"
    content = read_json(path)
    model_type = str(content.get("model_type"))
    if model_type not in FAMILIES:
        fix = f"only {', '.join(sorted(FAMILIES))} can be loaded"
        raise UserError(f"unknown model_type {model_type!r}", about=path, fix=fix)
    family = FAMILIES[model_type]

    with _quiet(transformers):
        network = _network(transformers, family, path, content, weights or folder)

    # the row of the leaderboard: a folder's name, or a hub's name without its owner
    name = rest.rpartition("/")[2]
    if Path(rest).is_dir():
        name = Path(rest).expanduser().resolve().name
    name = f"hf:{name}" if weights is None else f"hf:{name}/{label_of(weights)}"
    return of_network(network, folder, name)


def of_network(network: Any, folder: Path, name: str) -> HfModel:
    """A network of one of ``FAMILIES``, in fp32, with the files of its preprocessing and tokenizer.

    Raises:
        UserError: files missing, damaged or of another kind of model.
    """
    model_type = network.config.model_type
    family = FAMILIES[model_type]
    vision = network.config.vision_config
    text = network.config.text_config

    # the tokens of a text; XLM-R counts its positions from one behind the id of its padding
    offset = text.pad_token_id + 1 if model_type == "altclip" else 0
    positions = text.max_position_embeddings - offset
    length = min(family.length or positions, positions)
    is_siglip = model_type.startswith("siglip")
    with _quiet(library("transformers", "hf")):
        reader = read_tokenizer(folder, length, text.vocab_size, family.is_masked, is_siglip)

    if model_type == "clip":
        check_end_of_text(reader, text.eos_token_id, folder)

    if model_type == "siglip2":
        squares = read_pipeline(
            folder, lambda path, settings: naflex_pipeline(path, settings, vision.patch_size)
        )
        return HfModel(name, network, NaflexTower(network), reader, squares)

    pipeline = read_pipeline(
        folder,
        lambda path, settings: pipeline_of(path, settings, family.processor, vision.image_size),
    )
    tower = MapTower(network) if is_siglip else ClsTower(network)
    return DenseHfModel(name, network, tower, reader, pipeline)


def load_state(path: Path, name: str) -> HfModel:
    """Weights alone, with the configuration and the tokenizer of a folder or a name on the hub."""
    return load(name, path)


def _network(
    transformers: Any, family: Family, path: Path, content: dict[str, Any], weights: Path
) -> Any:
    """The library's network in fp32, every weight from ``weights``.

    Raises:
        UserError: a configuration that makes no network, or weights of another one; names the
            first few.
    """
    # Fused attention gives the same numbers to 1e-6; transformers 4 has it for three families.
    kind = getattr(transformers, family.network)
    attention = "sdpa" if getattr(kind, "_supports_sdpa", False) else "eager"

    # older releases saved the positions' numbers, which are no weights
    state = {
        key: value
        for key, value in read_weights(weights).items()
        if not key.endswith(".position_ids")
    }
    problem = f"it describes no {family.network}"
    fix = "bring the published config.json"
    # the library raises its own kinds where fields do not fit, or do not fit each other
    with explained(problem, about=path, fix=fix):
        config = kind.config_class.from_dict({**_without_dtype(content), "torch_dtype": "float32"})
        network, report = kind.from_pretrained(
            None,
            config=config,
            state_dict=state,
            attn_implementation=attention,
            ignore_mismatched_sizes=True,  # reported, and refused below
            output_loading_info=True,
        )

    if not getattr(config.vision_config, "vision_use_head", True):
        fix = "name a checkpoint with vision_use_head"
        raise UserError("its image tower has no pooling head", about=path, fix=fix)
    _check_report(report, path, weights, part_fix(state, network.state_dict()))
    return network.float().eval().requires_grad_(False)


def _check_report(report: dict[str, Any], path: Path, weights: Path, fix: str) -> None:
    """Refuses weights that are missing, too many or of another shape.

    The library would draw the missing ones at random and only warn.
    """
    faults = []
    for kind in ("missing", "unexpected", "mismatched"):
        # a mismatch is a tuple: the name and the two shapes
        keys = sorted(map(str, report[f"{kind}_keys"]))
        if keys:
            faults.append(f"{len(keys)} {kind} ({', '.join(keys[:3])})")

    if faults:
        fix = fix or f"bring the weights of {path}"
        raise UserError(f"its weights do not fit: {'; '.join(faults)}", about=weights, fix=fix)


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
