"""Models of the open_clip library: ``open_clip:ARCH/TAG``, ``ARCH/PATH``, ``ARCH/random``,
``FOLDER``, ``hf-hub:ORG/NAME``.

Flow: ``load("ViT-B-32/openai")`` -> which architecture and file (``checkpoints``) -> the library's
own modules, filled (``checkpoints``) -> a model with the library's preprocessing and tokenizer.

Embeddings are the library's ``encode_image`` and ``encode_text`` without normalisation; the image
towers also take other sizes and give patch features (``towers``).

Shapes: B pictures or texts, L tokens, D embedding, H x W pixels, h x w patches.

Texts of open_clip: what its tokenizers do, as JSON, and its text towers without the padding that no
answer depends on.

A causal tower reads left to right and is pooled at the end of the text: what stands behind the
longest text of a batch changes nothing. A batch is cut there (77 tokens to a dozen, for prompts),
exactly; towers that see their padding are left whole.

Shapes: B texts, L tokens, W width, D embedding.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from silc_bench.errors import UserError
from silc_bench.models.adapters.huggingface.text import PROBES
from silc_bench.models.adapters.library import library
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
from silc_bench.models.adapters.open_clip.towers import Tower, tower_of
from silc_bench.models.patch_features import check_methods
from silc_bench.models.preprocessing import ImagePipeline
from silc_bench.models.weights.revision import revision_of

Network = Any  # a CLIP, CustomTextCLIP or CoCa of open_clip
# fields of the two configurations that change no embedding, or that its weights or its protocol
# tell
NO_EFFECT = {
    *(
        "patch_dropout",
        "timm_drop",
        "timm_drop_path",
        "timm_model_pretrained",
        "hf_model_pretrained",
        "output_tokens",
    ),
    *("hf_model_name", "hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs"),
}
# the same of a text tower of transformers, by all the names that its families use
READER_FIELDS = (
    *("model_type", "pad_token_id", "num_attention_heads", "num_heads", "encoder_attention_heads"),
    *(
        "hidden_act",
        "activation_function",
        "feed_forward_proj",
        "layer_norm_eps",
        "layer_norm_epsilon",
        "scale_embedding",
    ),
    *("relative_attention_num_buckets", "relative_attention_max_distance"),
)


class OpenClipModel:
    """A DenseModel that also reads."""

    libraries = ("open_clip_torch", "timm", "transformers")  # towers of the latter two occur in it

    def __init__(
        self,
        name: str,
        network: Network,
        tower: Tower,
        pipeline: ImagePipeline,
        tokenizer: Any,
        settings: dict[str, Any],
    ):
        modules = _modules(network)
        self.name = name
        self.network, self.tower, self.tokenizer, self.settings = (
            network,
            tower,
            tokenizer,
            settings,
        )
        self._encode_text = encoder_of(network)
        self.revision = revision_of(modules, settings)
        self.embed_dim = int(settings["embed_dim"])
        self.image_size, self.patch_size = pipeline.size, tower.patch_size
        self.num_params = sum(
            parameter.numel() for module in modules.values() for parameter in module.parameters()
        )
        self.feature_points = {"pooled": self.embed_dim, **tower.points}
        self.dense_methods, self.lacking = tower.dense_methods, tower.lacking
        self.pipeline = pipeline
        self.image_protocol = pipeline.as_dict()
        self.text_protocol = text_protocol(tokenizer)
        self.logit_scale = network.logit_scale.exp().item()
        self.logit_bias = 0.0 if network.logit_bias is None else network.logit_bias.item()

    def preprocess(self, image: Image.Image) -> Tensor:
        return self.pipeline(image)

    def tokenize(self, texts: list[str]) -> Tensor:
        return self.tokenizer(texts)

    def encode_image(self, images: Tensor, point: str = "pooled") -> Tensor:
        """[B, 3, H, W] -> [B, feature_points[point]].

        Raises:
            UserError: a size that does not divide into patches, or that this architecture does not
            take.
        """
        if point == "mean_patch":
            return self.encode_dense(images, ("tokens",))["tokens"].mean(dim=(1, 2))
        self._check_size(images)
        encode = self.tower.pooled if point == "pooled" else self.tower.pre_projection
        return encode(images).float()

    def encode_text(self, tokens: Tensor) -> Tensor:
        return self._encode_text(tokens).float()

    def encode_dense(self, images: Tensor, methods: Sequence[str]) -> dict[str, Tensor]:
        """[B, 3, H, W] -> {method: [B, h, w, D or W]}.

        Raises:
            UserError: as ``encode_image``, and a method that this tower cannot do.
        """
        self._check_size(images)
        check_methods(self.name, methods, self.dense_methods, self.lacking)
        return self.tower.dense(images, methods)

    def to(self, device: torch.device) -> OpenClipModel:
        self.network.to(device)
        return self

    def _check_size(self, images: Tensor) -> None:
        height, width = images.shape[-2:]
        if (height, width) == (self.image_size, self.image_size):
            return
        if self.tower.is_fixed_size:
            raise UserError(
                f"{self.name} takes pictures of {self.image_size} x {self.image_size} pixels only, not {height} x {width}"
            )
        if height % self.patch_size or width % self.patch_size:
            raise UserError(
                f"{self.name} cuts pictures into patches of {self.patch_size} pixels; {height} x {width} does not divide"
            )


def load(rest: str, weights: Path | None = None) -> OpenClipModel:
    """What follows ``open_clip:`` -> a model on the CPU.

    Args:
        rest: one of the forms at the top of this file; an architecture alone where ``weights`` is
        given. weights: a file of weights.

    Raises:
        UserError: open_clip is not installed; an architecture, tag or file that does not exist,
        does not fit, or cannot be had.
    """
    library("open_clip", "open_clip")
    checkpoint = find(rest, weights)
    refuse_code(checkpoint)
    state, quick_gelu = state_of(checkpoint)
    with without_code():
        network = build(checkpoint, quick_gelu)
        tokenizer = tokenizer_of(checkpoint)
    if state is not None:
        fill(network, state, checkpoint)
    network.eval().requires_grad_(False)
    try:
        tower = tower_of(network.visual)
        pipeline = _pipeline(checkpoint, network.visual.image_size)
    except UserError as error:
        raise UserError(f"{checkpoint.name}: {error}") from None
    settings = _settings(network, checkpoint.config, quick_gelu)
    return OpenClipModel(checkpoint.name, network, tower, pipeline, tokenizer, settings)


def _pipeline(checkpoint: Checkpoint, image_size: int | tuple[int, int]) -> ImagePipeline:
    """`open_clip.transform.image_transform_v2` for evaluation, of the size that the tower takes."""
    from open_clip.transform import PreprocessCfg

    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    about = PreprocessCfg(**checkpoint.preprocess)
    if height != width:
        raise UserError(
            f"it takes pictures of {height} x {width} pixels; only squares are measured"
        )
    if about.resize_mode not in ("shortest", "squash"):
        raise UserError(
            f"it resizes pictures by their {about.resize_mode!r} side, which is not supported; only shortest and squash"
        )
    is_squash = about.resize_mode == "squash"
    return ImagePipeline(
        size=int(height),
        mean=tuple(about.mean),
        std=tuple(about.std),
        resize="squash" if is_squash else "shortest",
        crop="none" if is_squash else "center",
        interpolation="bilinear"
        if about.interpolation == "bilinear"
        else "bicubic",  # the library knows these two
    )


def _settings(network: Network, config: dict[str, Any], quick_gelu: bool) -> dict[str, Any]:
    """What changes the embeddings without being a weight: activation, heads, pooling, norms.
    Defaults add nothing.
    """
    from open_clip import CLIPTextCfg, CLIPVisionCfg

    settings: dict[str, Any] = {"embed_dim": config["embed_dim"], "quick_gelu": quick_gelu}
    for part, kind in (("vision_cfg", CLIPVisionCfg), ("text_cfg", CLIPTextCfg)):
        defaults = {field.name: field.default for field in dataclasses.fields(kind)}
        settings[part] = {
            k: v for k, v in config[part].items() if k not in NO_EFFECT and v != defaults.get(k)
        }
    reader = getattr(getattr(network, "text", None), "config", None)
    if reader is not None:  # a text tower of transformers
        settings["text_tower"] = {
            name: getattr(reader, name) for name in READER_FIELDS if hasattr(reader, name)
        }
    return settings


def _modules(network: Network) -> dict[str, nn.Module]:
    """What stands behind the embeddings: not the scale, the bias, or CoCa's decoder."""
    if hasattr(network, "text"):
        return {"visual": network.visual, "text": network.text}
    parts = {"positional_embedding": network.positional_embedding}
    if isinstance(network.text_projection, nn.Parameter):
        parts["text_projection"] = network.text_projection
    modules = {
        f"text.{name}": getattr(network, name)
        for name in ("transformer", "token_embedding", "ln_final")
    }
    if isinstance(network.text_projection, nn.Module):
        modules["text.text_projection"] = network.text_projection
    return {"visual": network.visual, "text": nn.ParameterDict(parts), **modules}


POOLS = ("argmax", "eos")  # at the end of the text: the largest id, or a given one


def encoder_of(network: Network) -> Callable[[Tensor], Tensor]:
    """[B, L] -> [B, D], as ``network.encode_text(tokens, normalize=False)``."""
    tower: Any = getattr(network, "text", network)
    pool = getattr(tower, "text_pool_type", None) or getattr(tower, "pool_type", None)
    eos_id: Any = (
        getattr(tower, "text_eos_id", None) if tower is network else getattr(tower, "eos_id", None)
    )
    sees_padding = getattr(tower, "cls_emb", None) is not None or getattr(
        tower, "use_pad_mask", False
    )
    if pool not in POOLS or sees_padding or getattr(tower, "attn_mask", None) is None:
        return lambda tokens: network.encode_text(tokens, normalize=False)

    def encode(tokens: Tensor) -> Tensor:
        ends = tokens.argmax(dim=-1) if pool == "argmax" else tokens.eq(eos_id).int().argmax(dim=-1)
        length = int(ends.max()) + 1
        x = tower.token_embedding(tokens[:, :length]) + tower.positional_embedding[:length]
        x = tower.transformer(x, attn_mask=tower.attn_mask[:length, :length])
        x = tower.ln_final(x[torch.arange(len(x), device=x.device), ends])
        projection = tower.text_projection
        if projection is None:
            return x
        return projection(x) if isinstance(projection, nn.Linear) else x @ projection

    return encode


def text_protocol(tokenizer: Any) -> dict[str, Any]:
    """All that ``tokenize`` does, as JSON: the options by their names, and, in "reads", by what
    comes out.

    Some leave no trace but that (a language that changes the special tokens, the library's own
    release).
    """
    inner = getattr(tokenizer, "tokenizer", None)  # of transformers
    vocabulary = tokenizer.encoder if inner is None else inner.get_vocab()
    clean, reduce = getattr(tokenizer, "clean_fn", None), getattr(tokenizer, "reduction_fn", None)
    ids = tokenizer([*PROBES, "a text that is too long " * tokenizer.context_length]).tolist()
    return {
        "cleaning": clean.__name__.removeprefix("_clean_") if clean else "canonicalize",
        "length": tokenizer.context_length,
        "tokenizer": type(inner or tokenizer).__name__,
        "vocabulary": _digest(sorted(vocabulary.items())),
        "padding": 0 if inner is None else inner.pad_token_id,
        "mode": getattr(tokenizer, "tokenizer_mode", ""),
        "strip_sep_token": bool(getattr(tokenizer, "strip_sep_token", False)),
        "reduction": reduce.__name__ if reduce else "end of text kept",
        "reads": _digest(ids),
    }


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
