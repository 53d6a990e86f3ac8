"""What the user's words after ``open_clip:`` mean: an architecture, its preprocessing, and the file
with its weights.

Flow: ``find("ViT-B-32/openai")`` -> a ``Checkpoint``, nothing built or read yet. A tag or
``hf-hub:`` name is looked up in the library's own cache and, where there is a network, fetched by
the library; files and folders need no network.

Preprocessing is what open_clip keeps with a tag, or in ``open_clip_config.json``. A file alone says
nothing about it: there the tags known for its architecture decide where they agree (SigLIP:
squashed, mean 0.5), and otherwise open_clip's default.

An open_clip model and its tokenizer from a ``Checkpoint``: the library's own classes, weights read
safely.

Flow: ``state_of`` -> {name: tensor} and the activation; ``build`` -> the network; ``fill`` -> every
weight in its place.

QuickGELU is on where the architecture says so, where the tag was trained with it (open_clip only
warns then), and for OpenAI's own state dicts, which are known by three numbers among their weights.

Nothing that comes with an open_clip checkpoint is executed.

Flow: ``refuse_code(checkpoint)`` before anything is built -> ``without_code()`` around what
open_clip builds.

Two ways lead from a configuration to Python of a repository, both through transformers:
``tokenizer_kwargs`` go unread to `AutoTokenizer.from_pretrained` (where ``trust_remote_code`` runs
it), and an ``auto_map`` in ``config.json`` or ``tokenizer_config.json`` names it (where a user at a
terminal is asked whether to run it).
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from silc_bench.errors import UserError, unknown_name
from silc_bench.system.checksums import check_manifest

CONFIG = "open_clip_config.json"
WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
PREPROCESS = ("mean", "std", "interpolation", "resize_mode")


@dataclass(frozen=True)
class Checkpoint:
    """An open_clip model before it is built."""

    name: str  # row of the leaderboard: "open_clip:ViT-B-32/openai"
    library_name: (
        str  # what open_clip.get_tokenizer takes: "ViT-B-32", "local-dir:FOLDER", "hf-hub:ORG/NAME"
    )
    config: dict[str, Any]  # the architecture: embed_dim, vision_cfg, text_cfg ...
    preprocess: dict[str, Any]  # of PREPROCESS, what is not the library's default
    weights: Path | None  # None: random ones were asked for
    quick_gelu: bool = False  # the tag was trained with it, whatever the architecture says


def find(rest: str, weights: Path | None = None) -> Checkpoint:
    """``rest``: what follows ``open_clip:``; with ``weights`` (a file) it is an architecture alone.

    Raises:
        UserError: an unknown architecture or tag, no such file, or a file that would have to be
        fetched and cannot be.
    """
    import open_clip

    if rest.startswith("hf-hub:"):
        return _from_hub(rest.removeprefix("hf-hub:"))
    arch, slash, choice = rest.partition("/")
    config = open_clip.get_model_config(arch) if arch in open_clip.list_models() else None
    if os.path.isdir(rest) and (config is None or os.path.exists(os.path.join(rest, CONFIG))):
        return _from_folder(Path(rest))
    if config is None:
        if os.path.exists(rest):
            raise UserError(
                f"{rest} is a file, which does not say its architecture; write open_clip:ARCH/{rest}"
            )
        raise unknown_name("open_clip architecture", arch, open_clip.list_models())
    if weights is not None:
        if slash:
            raise UserError(
                f"open_clip:{rest} with a file of weights beside it: write the architecture alone, open_clip:{arch}"
            )
        return _from_file(arch, config, weights)
    if choice == "random":
        return Checkpoint(f"open_clip:{arch}/random", arch, config, _agreed_preprocess(arch), None)
    if choice and open_clip.get_pretrained_cfg(arch, choice):
        return _from_tag(arch, config, choice.lower().replace("-", "_"))
    if choice and os.path.isfile(choice):
        return _from_file(arch, config, Path(choice))
    known = [*open_clip.list_pretrained_tags_by_model(arch), "random"]
    if not choice:
        raise UserError(
            f"open_clip:{arch} names no weights; write open_clip:{arch}/TAG with one of {', '.join(known)},"
            f" or open_clip:{arch}/PATH for a file"
        )
    if "/" in choice or choice.endswith(SUFFIXES):
        raise UserError(f"open_clip:{rest}: no such file: {choice}")
    raise unknown_name(f"tag or file of open_clip's {arch}", choice, known)


def _from_file(arch: str, config: dict[str, Any], path: Path) -> Checkpoint:
    # with its suffix: openai.pt is not the released row of that name
    return Checkpoint(f"open_clip:{arch}/{path.name}", arch, config, _agreed_preprocess(arch), path)


def _from_tag(arch: str, config: dict[str, Any], tag: str) -> Checkpoint:
    import open_clip

    about = open_clip.get_pretrained_cfg(arch, tag)
    repository, _, file = about.get("hf_hub", "").rpartition("/")
    source = (
        f"{file or WEIGHTS[0]} of {repository} on the Hugging Face hub"
        if repository
        else about.get("url") or about.get("file")
    )
    quick = bool(about.get("quick_gelu")) and not config.get("quick_gelu")
    same = f"{arch}-quickgelu" if quick and f"{arch}-quickgelu" in open_clip.list_models() else arch
    try:
        path = open_clip.download_pretrained(about)
    except (
        Exception
    ) as error:  # the cache, the hub, a proxy and a broken download each raise their own kind
        raise UserError(
            f"the weights of open_clip:{arch}/{tag} cannot be had ({_reason(error)}); bring {source} to this machine"
            f" and write open_clip:{same}/PATH"
        ) from None
    return Checkpoint(
        f"open_clip:{arch}/{tag}", arch, config, _preprocess(about), Path(path), quick
    )


def _from_folder(folder: Path) -> Checkpoint:
    """The form open_clip itself saves and publishes: CONFIG, weights, and the tokenizer's files
    where it has any.
    """
    if not (folder / CONFIG).is_file():
        raise UserError(
            f"{folder} holds no {CONFIG}; a folder of open_clip has one, a file is written open_clip:ARCH/PATH"
        )
    check_manifest(folder)
    config, preprocess = _read_config(folder / CONFIG)
    files = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    files = files or sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    if not files or (len(files) > 1 and files[0].name not in WEIGHTS):
        found = (
            f"{len(files)} files of weights ({', '.join(path.name for path in files[:3])})"
            if files
            else "no weights"
        )
        raise UserError(f"{folder} holds {found}; it should hold {WEIGHTS[0]} or {WEIGHTS[-1]}")
    return Checkpoint(
        f"open_clip:{folder.resolve().name}", f"local-dir:{folder}", config, preprocess, files[0]
    )


def _from_hub(repository: str) -> Checkpoint:
    from open_clip.pretrained import download_pretrained_from_hf

    if repository.count("/") != 1:
        raise UserError(f"open_clip:hf-hub:{repository}: a repository is written ORG/NAME")
    try:
        config, preprocess = _read_config(
            Path(download_pretrained_from_hf(repository, filename=CONFIG))
        )
        weights = Path(download_pretrained_from_hf(repository))
    except UserError:
        raise
    except Exception as error:  # as above
        raise UserError(
            f"open_clip:hf-hub:{repository} cannot be had ({_reason(error)}); bring {CONFIG}, {WEIGHTS[0]} and the tokenizer's"
            f" files of {repository} on the Hugging Face hub to a folder on this machine and write open_clip:FOLDER"
        ) from None
    return Checkpoint(
        f"open_clip:{repository}", f"hf-hub:{repository}", config, preprocess, weights
    )


def _read_config(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        config = content["model_cfg"]
        assert all(
            isinstance(config[part], kind)
            for part, kind in (("embed_dim", int), ("vision_cfg", dict), ("text_cfg", dict))
        )
        return config, _preprocess(content.get("preprocess_cfg") or {})
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        AssertionError,
        RecursionError,
    ) as error:
        raise UserError(
            f"{path} is no configuration of open_clip: model_cfg needs embed_dim, vision_cfg, text_cfg ({error})"
        ) from None


def _preprocess(about: dict[str, Any]) -> dict[str, Any]:
    return {key: about[key] for key in PREPROCESS if about.get(key) is not None}


def _agreed_preprocess(arch: str) -> dict[str, Any]:
    """That of all tags known for the architecture, or {} where they differ."""
    import open_clip

    known = [
        _preprocess(open_clip.get_pretrained_cfg(arch, tag))
        for tag in open_clip.list_pretrained_tags_by_model(arch)
    ]
    return known[0] if known and all(one == known[0] for one in known) else {}


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


Network = Any  # a CLIP, CustomTextCLIP or CoCa of open_clip
OPENAI_ENTRIES = {"input_resolution", "context_length", "vocab_size"}


def state_of(checkpoint: Checkpoint) -> tuple[dict[str, Tensor] | None, bool]:
    """Its weights, and whether their activation is QuickGELU."""
    from silc_bench.models.weights.read import read_weights

    quick_gelu = bool(checkpoint.config.get("quick_gelu")) or checkpoint.quick_gelu
    if checkpoint.weights is None:
        return None, quick_gelu
    state = read_weights(checkpoint.weights)
    if state.keys() >= OPENAI_ENTRIES:
        return {name: value for name, value in state.items() if name not in OPENAI_ENTRIES}, True
    return state, quick_gelu


def build(checkpoint: Checkpoint, quick_gelu: bool) -> Network:
    """The library's class for this configuration (as `open_clip.create_model` chooses it), filled
    from seed 0.
    """
    from open_clip import CLIP, CoCa, CustomTextCLIP

    config = {**copy.deepcopy(checkpoint.config), "quick_gelu": quick_gelu}
    is_custom = config.pop("custom_text", False) or "hf_model_name" in config["text_cfg"]
    kind = CLIP if not is_custom else CoCa if "multimodal_cfg" in config else CustomTextCLIP
    config["text_cfg"]["hf_model_pretrained"] = config["vision_cfg"]["timm_model_pretrained"] = (
        False
    )
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
    """Every weight from the file, with what `open_clip.load_checkpoint` translates: older names,
    sizes of positions.
    """
    from open_clip.convert import convert_state_dict
    from open_clip.model import (
        convert_to_custom_text_state_dict,
        resize_pos_embed,
        resize_text_pos_embed,
    )

    from silc_bench.models.weights.read import load_into

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
        raise UserError(
            f"{source}: its weights do not fit ({type(error).__name__}: {_short(error)})"
        ) from None
    load_into(network, state, source)


def tokenizer_of(checkpoint: Checkpoint) -> Any:
    """The library's own, with the length it was trained with."""
    import open_clip

    # said where transformers makes the tokenizer; open_clip's own classes do not know the word
    refusal = (
        {"trust_remote_code": False}
        if checkpoint.config["text_cfg"].get("hf_tokenizer_name")
        else {}
    )
    try:
        return open_clip.get_tokenizer(checkpoint.library_name, **refusal)
    except ImportError as error:
        raise UserError(
            f"the tokenizer of {checkpoint.name} needs transformers: pip install 'silc-bench[hf]' ({error})"
        ) from None
    except (
        Exception
    ) as error:  # transformers, tokenizers, the hub and a proxy each raise their own kind
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


TOKENIZER_KWARGS = (
    "clean",
    "language",
    "strip_sep_token",
)  # of open_clip's tokenizers; all others reach transformers
READ_BY_TRANSFORMERS = ("config.json", "tokenizer_config.json")


def refuse_code(checkpoint: Checkpoint) -> None:
    """Raises:
    UserError: settings of the tokenizer that are not open_clip's own, or a local file that asks for
    code.
    """
    from silc_bench.models.adapters.huggingface.files import read_json

    text = checkpoint.config["text_cfg"]
    settings = text.get("tokenizer_kwargs", {})
    if not isinstance(settings, dict):
        raise UserError(
            f"{checkpoint.name}: tokenizer_kwargs of its text_cfg is no object, but {settings!r}"
        )
    unknown = sorted(settings.keys() - set(TOKENIZER_KWARGS))
    if unknown:
        raise UserError(
            f"{checkpoint.name}: tokenizer_kwargs of its text_cfg sets {', '.join(unknown)}; only {', '.join(TOKENIZER_KWARGS)}"
            " are taken, since others can have a checkpoint's own code executed; remove it from the configuration"
        )
    for folder in _folders(checkpoint):
        for name in READ_BY_TRANSFORMERS:
            read_json(folder / name)


@contextmanager
def without_code() -> Iterator[None]:
    """Within it transformers refuses code of a repository where it would ask the user at the
    terminal.
    """
    try:
        from transformers import dynamic_module_utils
    except ModuleNotFoundError:  # what does not read with transformers is built without it
        yield
        return
    seconds = getattr(dynamic_module_utils, "TIME_OUT_REMOTE_CODE", None)
    if seconds is None:
        yield
        return
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    try:
        yield
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = seconds


def _folders(checkpoint: Checkpoint) -> list[Path]:
    """The local ones that transformers would read; of a name on the hub it refuses code by
    itself.
    """
    text = checkpoint.config["text_cfg"]
    named = [
        text[key]
        for key in ("hf_model_name", "hf_tokenizer_name")
        if isinstance(text.get(key), str) and text[key]
    ]
    scheme, _, folder = checkpoint.library_name.partition(":")
    if named and scheme == "local-dir":
        named.append(folder)
    return [Path(name) for name in named if Path(name).is_dir()]
