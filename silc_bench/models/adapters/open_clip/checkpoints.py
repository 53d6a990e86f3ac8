"""From the words after ``open_clip:`` to a network with its weights and its tokenizer.

Flow: ``find("ViT-B-32/openai")`` -> a ``Checkpoint``, nothing built or read yet ->
``refuse_code(checkpoint)`` -> ``state_of`` -> {name: tensor} and the activation -> within
``without_code()``, ``build`` -> the library's own network and ``tokenizer_of`` -> its tokenizer ->
``fill`` -> every weight in its place.

Where it comes from. A tag or ``hf-hub:`` name is looked up in the library's own cache and, where
there is a network, fetched by the library; files and folders need no network.

Preprocessing is what open_clip keeps with a tag, or in ``open_clip_config.json``. A file alone says
nothing about it: there the tags known for its architecture decide where they agree (SigLIP:
squashed, mean 0.5), and otherwise open_clip's default.

QuickGELU is on where the architecture says so, where the tag was trained with it (open_clip only
warns then), and for OpenAI's own state dicts, which are known by three numbers among their weights.

Nothing that comes with a checkpoint is executed. Two ways lead from a configuration to Python of a
repository, both through transformers: ``tokenizer_kwargs`` go unread to
`AutoTokenizer.from_pretrained` (where ``trust_remote_code`` runs it), and an ``auto_map`` in
``config.json`` or ``tokenizer_config.json`` names it (where a user at a terminal is asked whether
to run it).
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
from silc_bench.models.adapters.library import MISFITS, explained, library, seeded
from silc_bench.models.weights.parts import split_part
from silc_bench.models.weights.peft import refuse_adapter
from silc_bench.models.weights.read import load_into, read_weights, say_passed_over
from silc_bench.system.checksums import check_manifest

CONFIG = "open_clip_config.json"
WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
PREPROCESS = ("mean", "std", "interpolation", "resize_mode")

# the tables with a row for each patch (and the class token) or each token of a text
POSITIONS = {
    "visual.positional_embedding": "images",
    "visual.trunk.pos_embed": "images",
    "positional_embedding": "texts",
    "text.positional_embedding": "texts",
}

# numbers that lie among the weights in OpenAI's own files, and nowhere else
OPENAI_ENTRIES = {"input_resolution", "context_length", "vocab_size"}

# options of open_clip's tokenizers; all others reach transformers
TOKENIZER_KWARGS = ("clean", "language", "strip_sep_token")
NO_SETTINGS = f"leave only {', '.join(TOKENIZER_KWARGS)} in the configuration's text_cfg"
READ_BY_TRANSFORMERS = ("config.json", "tokenizer_config.json")

Network = Any  # a CLIP, CustomTextCLIP or CoCa of open_clip


@dataclass(frozen=True)
class Checkpoint:
    """An open_clip model before it is built."""

    name: str  # row of the leaderboard: "open_clip:ViT-B-32/openai"
    # what open_clip.get_tokenizer takes: "ViT-B-32", "local-dir:FOLDER", "hf-hub:ORG/NAME"
    library_name: str
    config: dict[str, Any]  # the architecture: embed_dim, vision_cfg, text_cfg ...
    preprocess: dict[str, Any]  # of PREPROCESS, what is not the library's default
    weights: Path | None  # None: random ones were asked for
    quick_gelu: bool = False  # the tag was trained with it, whatever the architecture says


def find(rest: str, weights: Path | None = None) -> Checkpoint:
    """What follows ``open_clip:`` -> which model it means.

    Args:
        rest: one of the forms of ``open_clip.model``; an architecture alone where ``weights`` is
            given.
        weights: a file of weights.

    Raises:
        UserError: an unknown architecture or tag, no such file, or a file that would have to be
            fetched and cannot be.
    """
    import open_clip

    if rest.startswith("hf-hub:"):
        return _from_hub(rest.removeprefix("hf-hub:"))

    # A folder may bear an architecture's name by chance: it is meant only where it has a CONFIG.
    arch, slash, choice = rest.partition("/")
    config = open_clip.get_model_config(arch) if arch in open_clip.list_models() else None
    if os.path.isdir(rest) and (config is None or os.path.exists(os.path.join(rest, CONFIG))):
        return _from_folder(Path(rest))

    about = f"open_clip:{rest}"
    if config is None:
        if os.path.exists(rest):
            problem = "a file does not say its architecture"
            raise UserError(problem, about=about, fix=f"write open_clip:ARCH/{rest}")
        raise unknown_name("architecture", arch, open_clip.list_models(), about)

    if weights is not None:
        if slash:
            problem = f"a file of weights beside it, {weights}"
            raise UserError(problem, about=about, fix=f"write the architecture alone, {arch}")
        return _from_file(arch, config, weights)

    if choice == "random":
        return Checkpoint(about, arch, config, _agreed_preprocess(arch), None)

    # A tag before a file of the same name; open_clip itself takes tags in any case, with - or _.
    if choice and open_clip.get_pretrained_cfg(arch, choice):
        return _from_tag(arch, config, choice.lower().replace("-", "_"))
    if choice and os.path.isfile(split_part(choice)[0]):
        return _from_file(arch, config, Path(choice))

    known_tags = [*open_clip.list_pretrained_tags_by_model(arch), "random"]
    if not choice:
        fix = f"write open_clip:{arch}/PATH for a file, or /TAG, one of {', '.join(known_tags)}"
        raise UserError("this names no weights", about=about, fix=fix)
    if "/" in choice or choice.endswith(SUFFIXES):
        raise UserError("no such file", about=about, fix=f"check the path {choice}")
    raise unknown_name("tag or file", choice, known_tags, about)


def refuse_code(checkpoint: Checkpoint) -> None:
    """Refuses a configuration that could have code of the checkpoint executed.

    Raises:
        UserError: settings of the tokenizer that are not open_clip's own, or a local file that asks
            for code.
    """
    from silc_bench.models.adapters.huggingface.files import read_json

    settings = checkpoint.config["text_cfg"].get("tokenizer_kwargs", {})
    about = f"{checkpoint.name}: tokenizer_kwargs"
    if not isinstance(settings, dict):
        raise UserError(f"this is no object, but {settings!r}", about=about, fix=NO_SETTINGS)

    unknown = sorted(settings.keys() - set(TOKENIZER_KWARGS))
    if unknown:
        problem = f"{', '.join(unknown)} can have a checkpoint's own code executed"
        raise UserError(problem, about=about, fix=NO_SETTINGS)

    # read_json refuses an auto_map; what it returns is of no use here
    for folder in _folders(checkpoint):
        for name in READ_BY_TRANSFORMERS:
            read_json(folder / name)


@contextmanager
def without_code() -> Iterator[None]:
    """Within it transformers refuses a repository's code, where it would ask at the terminal."""
    try:
        from transformers import dynamic_module_utils as transformers_code
    except ModuleNotFoundError:  # what does not read with transformers is built without it
        yield
        return

    # The seconds that transformers waits for the user's answer; with 0 it never asks.
    seconds = transformers_code.TIME_OUT_REMOTE_CODE
    transformers_code.TIME_OUT_REMOTE_CODE = 0
    try:
        yield
    finally:
        transformers_code.TIME_OUT_REMOTE_CODE = seconds


def state_of(checkpoint: Checkpoint) -> tuple[dict[str, Tensor] | None, bool]:
    """The weights of a checkpoint, and whether their activation is QuickGELU."""
    quick_gelu = bool(checkpoint.config.get("quick_gelu")) or checkpoint.quick_gelu
    if checkpoint.weights is None:
        return None, quick_gelu

    state = read_weights(checkpoint.weights)
    if state.keys() >= OPENAI_ENTRIES:
        return {name: value for name, value in state.items() if name not in OPENAI_ENTRIES}, True
    return state, quick_gelu


def build(checkpoint: Checkpoint, quick_gelu: bool) -> Network:
    """The library's class for this configuration, its weights drawn from seed 0.

    The class is chosen as `open_clip.create_model` chooses it.

    Raises:
        UserError: the configuration builds no model, or that of its text tower is not here.
    """
    from open_clip import CLIP, CoCa, CustomTextCLIP

    config = {**copy.deepcopy(checkpoint.config), "quick_gelu": quick_gelu}
    is_custom = config.pop("custom_text", False) or "hf_model_name" in config["text_cfg"]
    kind = CLIP if not is_custom else CoCa if "multimodal_cfg" in config else CustomTextCLIP

    # the towers of timm and transformers would fetch weights, only to have them overwritten
    config["text_cfg"]["hf_model_pretrained"] = False
    config["vision_cfg"]["timm_model_pretrained"] = False

    # how transformers says that it found no configuration
    text_tower = config["text_cfg"].get("hf_model_name")
    no_reader = explained(
        f"the configuration of its text tower {text_tower} cannot be had",
        about=checkpoint.name,
        fix=f"bring config.json and the tokenizer's files of {text_tower} on the Hugging Face hub "
        "to this machine's cache (HF_HOME)",
        kinds=OSError,
    )
    no_model = explained(
        "its configuration builds no model",
        about=checkpoint.name,
        fix="correct the configuration",
        kinds=MISFITS,
    )
    with seeded(), no_model, no_reader:
        return kind(**config)


def fill(network: Network, state: dict[str, Tensor], checkpoint: Checkpoint) -> None:
    """Puts every weight of the file into its place.

    Older names are translated as `open_clip.load_checkpoint` does. It also resizes position
    embeddings of another image size or text length, which makes another model of the weights: here
    they are refused.

    Raises:
        UserError: weights that are missing, too many, or of another shape.
    """
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    source = f"{checkpoint.weights} as open_clip's {checkpoint.library_name}"
    fix = "name the architecture that these weights were trained in"
    expected = network.state_dict()
    with explained("its weights do not fit", about=source, fix=fix, kinds=MISFITS):
        state = convert_state_dict(network, state)

        # CLIP's names of the text tower, in a network that keeps it apart
        if "positional_embedding" in state and not hasattr(network, "positional_embedding"):
            state = convert_to_custom_text_state_dict(state)
        state.pop("text.transformer.embeddings.position_ids", None)  # of older transformers

        # One number is stored as [] by some releases and as [1] by others. A file of a model with
        # a scale and no bias fills a network with both: a bias of 0 changes nothing.
        for name in {"logit_scale", "logit_bias"} & expected.keys() & state.keys():
            state[name] = state[name].reshape(expected[name].shape)
        if "logit_bias" in expected and "logit_scale" in state:
            state.setdefault("logit_bias", torch.zeros_like(expected["logit_bias"]))

    _check_sizes(state, expected, source)
    load_into(network, state, source)


def _check_sizes(state: dict[str, Tensor], expected: dict[str, Tensor], source: str) -> None:
    """Refuses weights whose number of positions is another one, in words of images and texts.

    Raises:
        UserError: says both numbers, and where those of the weights are to be written.
    """
    others = [
        f"{_length(state[name])} positions of {what} instead of {_length(expected[name])}"
        for name, what in POSITIONS.items()
        if name in state and name in expected and _length(state[name]) != _length(expected[name])
    ]
    if others:
        fix = (
            "name the architecture of that size; if there is none, write its configuration, with "
            f"the image_size and context_length of training, as {CONFIG} beside the weights and "
            "name the folder"
        )
        raise UserError(f"its weights have {' and '.join(others)}", about=source, fix=fix)


def _length(positions: Tensor) -> int:
    """Of [N, W], or of timm's [1, N, W]; 0 of what is no such table."""
    return positions.shape[-2] if positions.dim() > 1 else 0


def tokenizer_of(checkpoint: Checkpoint) -> Any:
    """The library's own tokenizer, with the length it was trained with.

    Raises:
        UserError: its files or transformers are missing.
    """
    import open_clip

    hub_name = checkpoint.config["text_cfg"].get("hf_tokenizer_name")
    if hub_name:
        library("transformers", "hf")

    scheme, _, place = checkpoint.library_name.rpartition(":")
    if scheme != "local-dir":
        place = "this machine's cache (HF_HOME), or a folder that you write as open_clip:FOLDER"
    fix = (
        "bring the tokenizer's files (tokenizer.json, tokenizer_config.json) of "
        f"{hub_name or 'open_clip'} on the Hugging Face hub to {place}"
    )
    # only where transformers makes the tokenizer: open_clip's own classes do not know this option
    refusal = {"trust_remote_code": False} if hub_name else {}
    with explained("its tokenizer cannot be had", about=checkpoint.name, fix=fix):
        return open_clip.get_tokenizer(checkpoint.library_name, **refusal)


def _from_file(arch: str, config: dict[str, Any], path: Path) -> Checkpoint:
    # with its suffix: openai.pt is not the released row of that name
    return Checkpoint(f"open_clip:{arch}/{path.name}", arch, config, _agreed_preprocess(arch), path)


def _from_tag(arch: str, config: dict[str, Any], tag: str) -> Checkpoint:
    """A tag of the library's own table, its weights fetched where they are not here.

    Raises:
        UserError: they cannot be fetched; names the file to bring and how to write it.
    """
    import open_clip

    entry = open_clip.get_pretrained_cfg(arch, tag)
    repository, _, file = entry.get("hf_hub", "").rpartition("/")
    source = entry.get("url") or entry.get("file")
    if repository:
        source = f"{file or WEIGHTS[0]} of {repository} on the Hugging Face hub"

    # A file alone does not tell its activation, so the advice names the variant that has it.
    quick_gelu = bool(entry.get("quick_gelu")) and not config.get("quick_gelu")
    variant = f"{arch}-quickgelu"
    arch_of_file = variant if quick_gelu and variant in open_clip.list_models() else arch

    name = f"open_clip:{arch}/{tag}"
    fix = f"bring {source} to this machine and write open_clip:{arch_of_file}/PATH"
    with explained("its weights cannot be had", about=name, fix=fix):
        path = open_clip.download_pretrained(entry)
    return Checkpoint(name, arch, config, _preprocess(entry), Path(path), quick_gelu)


def _from_folder(folder: Path) -> Checkpoint:
    """The form open_clip saves and publishes: CONFIG, weights, and the tokenizer's files if any.

    Raises:
        UserError: no CONFIG, no or too many weights, an adapter, or an export of ours that was
            changed.
    """
    if not (folder / CONFIG).is_file():
        fix = f"bring its {CONFIG}, or write open_clip:ARCH/PATH for a file"
        raise UserError(f"a folder without {CONFIG}", about=folder, fix=fix)
    refuse_adapter(folder)
    check_manifest(folder)
    config, preprocess = _read_config(folder / CONFIG)

    # The usual names first: beside them other files of weights may lie. Of unusual names only one
    # is taken, because nobody could say which of two was meant.
    files = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    files = files or sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    if not files or (len(files) > 1 and files[0].name not in WEIGHTS):
        content = "no weights"
        if files:
            first_names = ", ".join(path.name for path in files[:3])
            content = f"{len(files)} files of weights ({first_names})"
        fix = f"put the weights that are meant there as {WEIGHTS[0]} or {WEIGHTS[-1]}"
        raise UserError(f"a folder with {content}", about=folder, fix=fix)

    say_passed_over(folder, files[0].name, WEIGHTS)
    name = f"open_clip:{folder.resolve().name}"
    return Checkpoint(name, f"local-dir:{folder}", config, preprocess, files[0])


def _from_hub(repository: str) -> Checkpoint:
    """A repository of the form that ``_from_folder`` reads, from the hub's cache or the hub."""
    from open_clip.pretrained import download_pretrained_from_hf

    about = f"open_clip:hf-hub:{repository}"
    if repository.count("/") != 1:
        raise UserError("no name on the hub", about=about, fix="write open_clip:hf-hub:ORG/NAME")

    fix = (
        f"bring {CONFIG}, {WEIGHTS[0]} and the tokenizer's files of {repository} on the Hugging "
        "Face hub to a folder on this machine and write open_clip:FOLDER"
    )
    with explained("it cannot be had", about=about, fix=fix):
        config_path = Path(download_pretrained_from_hf(repository, filename=CONFIG))
        config, preprocess = _read_config(config_path)
        weights = Path(download_pretrained_from_hf(repository))

    name = f"open_clip:{repository}"
    return Checkpoint(name, f"hf-hub:{repository}", config, preprocess, weights)


def _read_config(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The architecture and the preprocessing that CONFIG holds.

    Raises:
        UserError: it cannot be read or lacks a part of the architecture.
    """
    # whatever JSON of another form makes of the lines below; deep nesting is a RecursionError
    kinds = (*MISFITS, OSError, RecursionError)
    problem = "no configuration of open_clip"
    fix = "write its model_cfg with embed_dim, vision_cfg and text_cfg"
    with explained(problem, about=path, fix=fix, kinds=kinds):
        content = json.loads(path.read_text(encoding="utf-8"))
        config = content["model_cfg"]
        for part, kind in (("embed_dim", int), ("vision_cfg", dict), ("text_cfg", dict)):
            assert isinstance(config[part], kind), part
        return config, _preprocess(content.get("preprocess_cfg") or {})


def _preprocess(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: entry[key] for key in PREPROCESS if entry.get(key) is not None}


def _agreed_preprocess(arch: str) -> dict[str, Any]:
    """That of all tags known for the architecture, or {} where they differ."""
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(arch)
    by_tag = [_preprocess(open_clip.get_pretrained_cfg(arch, tag)) for tag in tags]
    is_agreed = all(preprocess == by_tag[0] for preprocess in by_tag)
    return by_tag[0] if by_tag and is_agreed else {}


def _folders(checkpoint: Checkpoint) -> list[Path]:
    """The local folders that transformers would read.

    Names on the hub are left out: ``without_code`` has transformers refuse their code itself.
    """
    text = checkpoint.config["text_cfg"]
    names = [text.get(key) for key in ("hf_model_name", "hf_tokenizer_name")]
    named = [name for name in names if isinstance(name, str) and name]

    # where transformers takes part, it reads the checkpoint's own folder too
    scheme, _, folder = checkpoint.library_name.partition(":")
    if named and scheme == "local-dir":
        named.append(folder)
    return [Path(name) for name in named if Path(name).is_dir()]
