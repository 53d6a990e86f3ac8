"""What the user's words after ``open_clip:`` mean: an architecture, its preprocessing, and the file with its weights.

Flow: ``find("ViT-B-32/openai")`` -> a ``Checkpoint``, nothing built or read yet. A tag or ``hf-hub:`` name is looked up in the
library's own cache and, where there is a network, fetched by the library; files and folders need no network.

Preprocessing is what open_clip keeps with a tag, or in ``open_clip_config.json``. A file alone says nothing about it: there the
tags known for its architecture decide where they agree (SigLIP: squashed, mean 0.5), and otherwise open_clip's default.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from silc_bench.checksums import check_manifest
from silc_bench.errors import UserError, unknown_name

CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
PREPROCESS = ("mean", "std", "interpolation", "resize_mode")


@dataclass(frozen=True)
class Checkpoint:
    """An open_clip model before it is built."""

    name: str  # row of the leaderboard: "open_clip:ViT-B-32/openai"
    library_name: str  # what open_clip.get_tokenizer takes: "ViT-B-32", "local-dir:FOLDER", "hf-hub:ORG/NAME"
    config: dict[str, Any]  # the architecture: embed_dim, vision_cfg, text_cfg ...
    preprocess: dict[str, Any]  # of PREPROCESS, what is not the library's default
    weights: Path | None  # None: random ones were asked for
    quick_gelu: bool = False  # the tag was trained with it, whatever the architecture says


def find(rest: str, weights: Path | None = None) -> Checkpoint:
    """``rest``: what follows ``open_clip:``; with ``weights`` (a file) it is an architecture alone.

    Raises:
        UserError: an unknown architecture or tag, no such file, or a file that would have to be fetched and cannot be.
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
            raise UserError(f"{rest} is a file, which does not say its architecture; write open_clip:ARCH/{rest}")
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
        f"{file or WEIGHTS[0]} of {repository} on the Hugging Face hub" if repository else about.get("url") or about.get("file")
    )
    quick = bool(about.get("quick_gelu")) and not config.get("quick_gelu")
    same = f"{arch}-quickgelu" if quick and f"{arch}-quickgelu" in open_clip.list_models() else arch
    try:
        path = open_clip.download_pretrained(about)
    except Exception as error:  # the cache, the hub, a proxy and a broken download each raise their own kind
        raise UserError(
            f"the weights of open_clip:{arch}/{tag} cannot be had ({_reason(error)}); bring {source} to this machine"
            f" and write open_clip:{same}/PATH"
        ) from None
    return Checkpoint(f"open_clip:{arch}/{tag}", arch, config, _preprocess(about), Path(path), quick)


def _from_folder(folder: Path) -> Checkpoint:
    """The form open_clip itself saves and publishes: CONFIG, weights, and the tokenizer's files where it has any."""
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder} holds no {CONFIG}; a folder of open_clip has one, a file is written open_clip:ARCH/PATH")
    check_manifest(folder)
    config, preprocess = _read_config(folder / CONFIG)
    files = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    files = files or sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    if not files or (len(files) > 1 and files[0].name not in WEIGHTS):
        found = f"{len(files)} files of weights ({', '.join(path.name for path in files[:3])})" if files else "no weights"
        raise UserError(f"{folder} holds {found}; it should hold {WEIGHTS[0]} or {WEIGHTS[-1]}")
    return Checkpoint(f"open_clip:{folder.resolve().name}", f"local-dir:{folder}", config, preprocess, files[0])


def _from_hub(repository: str) -> Checkpoint:
    from open_clip.pretrained import download_pretrained_from_hf

    if repository.count("/") != 1:
        raise UserError(f"open_clip:hf-hub:{repository}: a repository is written ORG/NAME")
    try:
        config, preprocess = _read_config(Path(download_pretrained_from_hf(repository, filename=CONFIG)))
        weights = Path(download_pretrained_from_hf(repository))
    except UserError:
        raise
    except Exception as error:  # as above
        raise UserError(
            f"open_clip:hf-hub:{repository} cannot be had ({_reason(error)}); bring {CONFIG}, {WEIGHTS[0]} and the tokenizer's"
            f" files of {repository} on the Hugging Face hub to a folder on this machine and write open_clip:FOLDER"
        ) from None
    return Checkpoint(f"open_clip:{repository}", f"hf-hub:{repository}", config, preprocess, weights)


def _read_config(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        config = content["model_cfg"]
        assert all(
            isinstance(config[part], kind) for part, kind in (("embed_dim", int), ("vision_cfg", dict), ("text_cfg", dict))
        )
        return config, _preprocess(content.get("preprocess_cfg") or {})
    except (OSError, ValueError, TypeError, KeyError, AttributeError, AssertionError, RecursionError) as error:
        raise UserError(
            f"{path} is no configuration of open_clip: model_cfg needs embed_dim, vision_cfg, text_cfg ({error})"
        ) from None


def _preprocess(about: dict[str, Any]) -> dict[str, Any]:
    return {key: about[key] for key in PREPROCESS if about.get(key) is not None}


def _agreed_preprocess(arch: str) -> dict[str, Any]:
    """That of all tags known for the architecture, or {} where they differ."""
    import open_clip

    known = [_preprocess(open_clip.get_pretrained_cfg(arch, tag)) for tag in open_clip.list_pretrained_tags_by_model(arch)]
    return known[0] if known and all(one == known[0] for one in known) else {}


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
