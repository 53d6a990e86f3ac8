"""An open_clip model and its tokenizer from a ``Checkpoint``: the library's own classes, weights read safely.

Flow: ``state_of`` -> {name: tensor} and the activation; ``build`` -> the network; ``fill`` -> every weight in its place.

QuickGELU is on where the architecture says so, where the tag was trained with it (open_clip only warns then), and for OpenAI's
own state dicts, which are known by three numbers among their weights.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from silc_bench.errors import UserError
from silc_bench.models.open_clip_checkpoints import Checkpoint

Network = Any  # a CLIP, CustomTextCLIP or CoCa of open_clip
OPENAI_ENTRIES = {"input_resolution", "context_length", "vocab_size"}


def state_of(checkpoint: Checkpoint) -> tuple[dict[str, Tensor] | None, bool]:
    """Its weights, and whether their activation is QuickGELU."""
    from silc_bench.models.weights import read_weights

    quick_gelu = bool(checkpoint.config.get("quick_gelu")) or checkpoint.quick_gelu
    if checkpoint.weights is None:
        return None, quick_gelu
    state = read_weights(checkpoint.weights)
    if state.keys() >= OPENAI_ENTRIES:
        return {name: value for name, value in state.items() if name not in OPENAI_ENTRIES}, True
    return state, quick_gelu


def build(checkpoint: Checkpoint, quick_gelu: bool) -> Network:
    """The library's class for this configuration (as `open_clip.create_model` chooses it), filled from seed 0."""
    from open_clip import CLIP, CoCa, CustomTextCLIP

    config = {**copy.deepcopy(checkpoint.config), "quick_gelu": quick_gelu}
    is_custom = config.pop("custom_text", False) or "hf_model_name" in config["text_cfg"]
    kind = CLIP if not is_custom else CoCa if "multimodal_cfg" in config else CustomTextCLIP
    config["text_cfg"]["hf_model_pretrained"] = config["vision_cfg"]["timm_model_pretrained"] = False
    reads = config["text_cfg"].get("hf_model_name")
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return kind(**config)
    except OSError as error:  # how transformers says that it found no configuration
        raise UserError(
            f"{checkpoint.name} reads with {reads}, whose configuration cannot be had ({_short(error)}); bring config.json and"
            f" the tokenizer's files of {reads} on the Hugging Face hub to this machine's cache (HF_HOME)"
        ) from None
    except (AssertionError, AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"{checkpoint.name}: its configuration builds no model ({type(error).__name__}: {_short(error)})"
        ) from None


def fill(network: Network, state: dict[str, Tensor], checkpoint: Checkpoint) -> None:
    """Every weight from the file, with what `open_clip.load_checkpoint` translates: older names, sizes of positions."""
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed, resize_text_pos_embed

    from silc_bench.models.weights import load_into

    source = f"{checkpoint.weights} as open_clip's {checkpoint.library_name}"
    wanted = network.state_dict()
    try:
        state = convert_state_dict(network, state)
        if "positional_embedding" in state and not hasattr(network, "positional_embedding"):
            state = convert_to_custom_text_state_dict(state)
        state.pop("text.transformer.embeddings.position_ids", None)  # of older transformers
        for name in {"logit_scale", "logit_bias"} & wanted.keys() & state.keys():
            state[name] = state[name].reshape(wanted[name].shape)
        if "logit_bias" in wanted and "logit_scale" in state:
            state.setdefault("logit_bias", torch.zeros_like(wanted["logit_bias"]))
        resize_pos_embed(state, network)
        resize_text_pos_embed(state, network)
    except (AssertionError, AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{source}: its weights do not fit ({type(error).__name__}: {_short(error)})") from None
    load_into(network, state, source)


def tokenizer_of(checkpoint: Checkpoint) -> Any:
    """The library's own, with the length it was trained with."""
    import open_clip

    # said where transformers makes the tokenizer; open_clip's own classes do not know the word
    refusal = {"trust_remote_code": False} if checkpoint.config["text_cfg"].get("hf_tokenizer_name") else {}
    try:
        return open_clip.get_tokenizer(checkpoint.library_name, **refusal)
    except ImportError as error:
        raise UserError(
            f"the tokenizer of {checkpoint.name} needs transformers: pip install 'silc-bench[hf]' ({error})"
        ) from None
    except Exception as error:  # transformers, tokenizers, the hub and a proxy each raise their own kind
        scheme, _, folder = checkpoint.library_name.rpartition(":")
        named = checkpoint.config["text_cfg"].get("hf_tokenizer_name") or "open_clip's own"
        place = (
            f"to {folder}"
            if scheme == "local-dir"
            else "to this machine's cache (HF_HOME), or with configuration and weights to a folder, and write open_clip:FOLDER"
        )
        raise UserError(
            f"the tokenizer of {checkpoint.name} cannot be had ({_short(error)}); bring the tokenizer's files (tokenizer.json,"
            f" tokenizer_config.json) of {named} on the Hugging Face hub {place}"
        ) from None


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
