"""Models of the open_clip library, loaded from its tags, from files, folders or the hub.

A model is written ``open_clip:ARCH/TAG``, ``ARCH/PATH``, ``ARCH/random``, ``FOLDER`` or
``hf-hub:ORG/NAME``.

Flow: ``load("ViT-B-32/openai")`` -> which architecture and file (``checkpoints``) -> the library's
own modules, filled (``checkpoints``) -> a model with the library's preprocessing and tokenizer.

Embeddings are the library's ``encode_image`` and ``encode_text`` without normalisation. The image
towers also take other sizes and give patch features (``towers``). Of the tokenizers this file
writes down what they do, as JSON for the protocol.

Text towers run without the padding that no answer depends on: a causal tower reads left to right
and is pooled at the end of the text, so what stands behind the longest text of a batch changes
nothing. A batch is cut there, exactly (for prompts a dozen tokens are left of 77); towers that see
their padding are left whole.

Shapes: B images or texts, L tokens, D embedding, W width, H x W pixels, h x w patches.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from silc_bench.errors import UserError
from silc_bench.models.adapters.huggingface.text import PROBES
from silc_bench.models.adapters.library import digest, library
from silc_bench.models.adapters.loaded import DenseLoadedModel
from silc_bench.models.adapters.open_clip.checkpoints import (
    Checkpoint,
    build,
    fill,
    find,
    refuse_code,
    state_of,
    tokenizer_of,
    without_code,
)
from silc_bench.models.adapters.open_clip.towers import tower_of
from silc_bench.models.preprocessing import ImagePipeline

Network = Any  # a CLIP, CustomTextCLIP or CoCa of open_clip

# Fields of the two configurations that the revision leaves out.
NO_EFFECT = {
    # they act in training only
    "patch_dropout",
    "timm_drop",
    "timm_drop_path",
    # where the library would take first weights from; ours come from the checkpoint
    "timm_model_pretrained",
    "hf_model_pretrained",
    # whether the tokens are returned beside the embedding
    "output_tokens",
    # what the weights or the text protocol tell already
    "hf_model_name",
    "hf_tokenizer_name",
    "tokenizer_mode",
    "tokenizer_kwargs",
}

# What changes the embeddings of a text tower of transformers and is no weight, by all the names
# that its families use.
READER_FIELDS = (
    "model_type",
    "pad_token_id",
    "num_attention_heads",
    "num_heads",
    "encoder_attention_heads",
    "hidden_act",
    "activation_function",
    "feed_forward_proj",
    "layer_norm_eps",
    "layer_norm_epsilon",
    "scale_embedding",
    "relative_attention_num_buckets",
    "relative_attention_max_distance",
)

SQUARE = "name a model whose images are resized by shortest or squash to one square"
POOLS = ("argmax", "eos")  # at the end of the text: the largest id, or a given one


class OpenClipModel(DenseLoadedModel):
    """A DenseModel that also reads texts."""

    libraries = ("open_clip_torch", "timm", "transformers")  # towers of the latter two occur in it

    def __init__(
        self,
        name: str,
        network: Network,
        tower: Any,
        pipeline: ImagePipeline,
        tokenizer: Any,
        settings: dict[str, Any],
    ):
        tower.feature_points = {"pooled": int(settings["embed_dim"]), **tower.feature_points}
        super().__init__(name, network, tower, pipeline, parts_of(network), settings)
        self.tokenizer = tokenizer
        self.text_protocol = text_protocol(tokenizer)
        self._encode_text = encoder_of(network)

        # the network keeps the logarithm of the scale; only models of the sigmoid loss have a bias
        self.logit_scale = network.logit_scale.exp().item()
        self.logit_bias = 0.0 if network.logit_bias is None else network.logit_bias.item()

    def tokenize(self, texts: list[str]) -> Tensor:
        return self.tokenizer(texts)

    def token_lengths(self, texts: list[str]) -> list[int]:
        return token_lengths(self.tokenizer, texts)

    def encode_text(self, tokens: Tensor) -> Tensor:
        return self._encode_text(tokens).float()


def load(rest: str, weights: Path | None = None) -> OpenClipModel:
    """What follows ``open_clip:`` -> a model on the CPU.

    Args:
        rest: one of the forms at the top of this file; an architecture alone where ``weights`` is
            given.
        weights: a file of weights.

    Raises:
        UserError: open_clip is not installed; an architecture, tag or file that does not exist,
            does not fit, or cannot be had.
    """
    library("open_clip", "open_clip")
    checkpoint = find(rest, weights)

    # Code that the checkpoint brings along is refused before anything is built, and by transformers
    # itself while it builds.
    refuse_code(checkpoint)
    state, quick_gelu = state_of(checkpoint)
    with without_code():
        network = build(checkpoint, quick_gelu)
        tokenizer = tokenizer_of(checkpoint)

    if state is not None:
        fill(network, state, checkpoint)
    network.eval().requires_grad_(False)

    # tower and pipeline know what they refuse, but not of which model
    try:
        tower = tower_of(network.visual)
        pipeline = _pipeline(checkpoint, network.visual.image_size)
    except UserError as error:
        raise UserError(error.problem, about=checkpoint.name, fix=error.fix) from None

    settings = _settings(network, checkpoint.config, quick_gelu)
    return OpenClipModel(checkpoint.name, network, tower, pipeline, tokenizer, settings)


def load_state(path: Path, arch: str) -> OpenClipModel:
    """Weights alone, of an architecture that open_clip knows."""
    return load(arch, path)


def encoder_of(network: Network) -> Callable[[Tensor], Tensor]:
    """[B, L] -> [B, D], as ``network.encode_text(tokens, normalize=False)``."""
    # CLIP holds the parts of its text tower itself, and under longer names than a tower apart
    tower: Any = getattr(network, "text", network)
    pool = getattr(tower, "text_pool_type", None) or getattr(tower, "pool_type", None)
    eos_id: Any = getattr(tower, "text_eos_id" if tower is network else "eos_id", None)

    # CoCa's text tower has a class token behind the text and masks its padding
    has_class_token = getattr(tower, "cls_emb", None) is not None
    sees_padding = has_class_token or getattr(tower, "use_pad_mask", False)
    is_causal = getattr(tower, "attn_mask", None) is not None
    if pool not in POOLS or sees_padding or not is_causal:
        return lambda tokens: network.encode_text(tokens, normalize=False)

    def encode(tokens: Tensor) -> Tensor:
        # argmax gives the first of equal values, hence the first end of text
        ends = tokens.argmax(dim=-1) if pool == "argmax" else tokens.eq(eos_id).int().argmax(dim=-1)
        length = int(ends.max()) + 1

        x = tower.token_embedding(tokens[:, :length]) + tower.positional_embedding[:length]
        x = tower.transformer(x, attn_mask=tower.attn_mask[:length, :length])

        # the norm works on each position alone, so it is enough to norm the pooled one
        x = tower.ln_final(x[torch.arange(len(x), device=x.device), ends])

        projection = tower.text_projection
        if projection is None:
            return x
        return projection(x) if isinstance(projection, nn.Linear) else x @ projection

    return encode


def token_lengths(tokenizer: Any, texts: list[str]) -> list[int]:
    """Of each text, the tokens that a tokenizer of open_clip makes before it cuts or pads."""
    inner = getattr(tokenizer, "tokenizer", None)  # of transformers; None for open_clip's own
    if inner is None:
        # it cleans the text itself, and adds its start and its end
        return [len(tokenizer.encode(text)) + 2 for text in texts]

    clean = getattr(tokenizer, "clean_fn", None) or canonicalized
    cleaned = [clean(text) for text in texts]

    # this mode adds its own start and end, and a class token behind the padding
    is_clips = getattr(tokenizer, "tokenizer_mode", "") == "clips"
    rows = [inner(text, add_special_tokens=not is_clips, verbose=False) for text in cleaned]
    return [len(row["input_ids"]) + 3 * is_clips for row in rows]


def canonicalized(text: str) -> str:
    """What open_clip's SigLipTokenizer does to each text; it has no ``clean_fn``."""
    from open_clip.tokenizer import basic_clean, canonicalize_text

    return canonicalize_text(basic_clean(text))


def text_protocol(tokenizer: Any) -> dict[str, Any]:
    """All that ``tokenize`` does, as JSON.

    Options stand under their names. What comes out for a few texts stands in "reads", because some
    differences leave no other trace (a language that changes the special tokens, the library's own
    release).
    """
    inner = getattr(tokenizer, "tokenizer", None)  # of transformers; None for open_clip's own
    vocabulary = tokenizer.encoder if inner is None else inner.get_vocab()

    # open_clip's SigLipTokenizer has no such function: it canonicalizes every text
    clean = getattr(tokenizer, "clean_fn", None)
    cleaning = clean.__name__.removeprefix("_clean_") if clean else "canonicalize"
    reduce = getattr(tokenizer, "reduction_fn", None)
    reduction = reduce.__name__ if reduce else "end of text kept"

    # the last text is longer than the context, so that its ids show how a text is cut
    too_long = "a text that is too long " * tokenizer.context_length
    ids = tokenizer([*PROBES, too_long]).tolist()

    return {
        "cleaning": cleaning,
        "length": tokenizer.context_length,
        "tokenizer": type(inner or tokenizer).__name__,
        "vocabulary": digest(sorted(vocabulary.items())),
        "padding": 0 if inner is None else inner.pad_token_id,
        "mode": getattr(tokenizer, "tokenizer_mode", ""),
        "strip_sep_token": bool(getattr(tokenizer, "strip_sep_token", False)),
        "reduction": reduction,
        "reads": digest(ids),
    }


def _pipeline(checkpoint: Checkpoint, image_size: int | tuple[int, int]) -> ImagePipeline:
    """`open_clip.transform.image_transform_v2` for evaluation, of the size that the tower takes."""
    from open_clip.transform import PreprocessCfg

    sides = {image_size} if isinstance(image_size, int) else set(image_size)
    preprocess = PreprocessCfg(**checkpoint.preprocess)
    size, *others = sides
    resizes = {"squash": "none", "shortest": "center"}  # and how the image is then cropped
    resize = preprocess.resize_mode
    if others or resize not in resizes:
        problem = f"its images are resized by {resize!r} to sides of {sorted(sides)} pixels"
        raise UserError(problem, about=checkpoint.name, fix=SQUARE)

    # the library's third word, "random", means bicubic in evaluation
    is_bilinear = preprocess.interpolation == "bilinear"
    return ImagePipeline(
        size=int(size),
        mean=tuple(preprocess.mean),
        std=tuple(preprocess.std),
        resize=resize,
        crop=resizes[resize],
        interpolation="bilinear" if is_bilinear else "bicubic",
    )


def _settings(network: Network, config: dict[str, Any], quick_gelu: bool) -> dict[str, Any]:
    """What changes the embeddings without being a weight: activation, heads, pooling, norms."""
    from open_clip import CLIPTextCfg, CLIPVisionCfg

    settings: dict[str, Any] = {"embed_dim": config["embed_dim"], "quick_gelu": quick_gelu}

    # A default that is written out changes nothing, so it must not change the revision either.
    for part, kind in (("vision_cfg", CLIPVisionCfg), ("text_cfg", CLIPTextCfg)):
        defaults = {field.name: field.default for field in dataclasses.fields(kind)}
        settings[part] = {
            name: value
            for name, value in config[part].items()
            if name not in NO_EFFECT and value != defaults.get(name)
        }

    # a text tower of transformers has settings of its own, which open_clip's fields do not show
    reader = getattr(getattr(network, "text", None), "config", None)
    if reader is not None:
        settings["text_tower"] = {
            name: getattr(reader, name) for name in READER_FIELDS if hasattr(reader, name)
        }
    return settings


def parts_of(network: Network) -> dict[str, nn.Module]:
    """What stands behind the embeddings: not the scale, the bias, or CoCa's decoder."""
    if hasattr(network, "text"):
        return {"visual": network.visual, "text": network.text}

    # CLIP has no module of its text tower: its parts lie beside the image tower
    names = ("transformer", "token_embedding", "ln_final", "text_projection")
    parts = {f"text.{name}": getattr(network, name) for name in names}
    weights = {"positional_embedding": network.positional_embedding}
    if not isinstance(network.text_projection, nn.Module):
        weights["text_projection"] = parts.pop("text.text_projection")
    return {"visual": network.visual, "text": nn.ParameterDict(weights), **parts}
