"""What is known of public pipelines and checkpoints: ``pixels.json`` and ``expected.json``.

A checkpoint is recognised by its name alone, so a file that bears a famous name is held to it: to
its configuration, its size and its logit scale. No hash of published weights is stored, so that
other weights of the same architecture pass.

Both tables are written by this file: ``python -m silc_bench.models.doctor.known``. It needs
open_clip; nothing is downloaded.

- ``pixels.json``: hashes of well-known preprocessing by ``ImagePipeline``, which the tests hold
  equal to the libraries' own.
- ``expected.json``: facts of public checkpoints. Sizes, preprocessing, activation, length and
  cleaning are open_clip's own configuration of the architecture and tag; parameters are counted on
  the meta device. The same weights under other names (transformers, big_vision) are expected to
  have the same, without what their files say differently.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections import Counter
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from PIL import __version__ as pillow_version

from silc_bench.models.adapters.huggingface.naflex import NaflexPipeline
from silc_bench.models.doctor.subject import FAILED, OK, Finding, pixel_hash
from silc_bench.models.preprocessing import ImagePipeline

TOLERANCE = {"parameters": 2, "logit_scale": 0.01}  # adapters count scale and bias or not

# The fact that differs -> "likely cause; fix".
CAUSES = {
    "parameters": "the file holds another architecture than its name says; "
    "load it under the architecture it has",
    "image_size": "the tower or its preprocessing is of another resolution; "
    "bring the configuration published with the weights",
    **dict.fromkeys(
        ("mean", "std", "resize"),
        "preprocessing of another family; "
        "bring the preprocessor configuration published with the weights",
    ),
    "interpolation": "preprocessing of another library; "
    "bring the preprocessor configuration published with the weights",
    "context_length": "the tokenizer pads or cuts to another length than in training; "
    "set it to the trained one",
    "activation": "QuickGELU and GELU share their weights; "
    "load with the architecture or tag that names the right one",
    "ignores_case": "the cleaning of texts was lost (do_lower_case ...); "
    "bring the published tokenizer_config.json",
    "logit_scale": "the weights are not the published ones, or their scale was trained on or lost",
    "has_bias": "the sigmoid's bias was lost when the weights were converted; "
    "convert logit_bias (big_vision: b) too",
}

# Means and standard deviations of the families: (mean, std) of red, green, blue.
OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
NONE = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
CENTER: dict[str, Any] = {"resize": "shortest", "crop": "center"}
BILINEAR: dict[str, Any] = {"interpolation": "bilinear"}

# Names, sizes of the image, means and deviations, and what else differs from a bicubic squash.
PIPELINE_ROWS: list[tuple[str, tuple[int, ...], Any, dict[str, Any]]] = [
    ("OpenAI CLIP {}", (224, 240, 256, 288, 336, 384, 448), OPENAI, CENTER),
    ("OpenAI CLIP {} of transformers", (224, 336), OPENAI, {**CENTER, "crop": "center_floor"}),
    ("SigLIP squash {}", (32, 48, 64, 224, 256, 378, 384, 512), HALF, {}),
    (
        "squash {}, bilinear (SigLIP 2 of transformers, PE-Core)",
        (224, 256, 336, 384, 448, 512),
        HALF,
        BILINEAR,
    ),
    ("OpenAI's colours, squash {} (DFN)", (224, 378), OPENAI, {}),
    ("CLIPA {}", (224, 336), IMAGENET, BILINEAR),
    ("MobileCLIP {}", (224, 256), NONE, CENTER | BILINEAR),
    ("LAION ViT-L/14 {}", (224,), HALF, CENTER),
    ("DINOv2 {} of timm", (518,), IMAGENET, CENTER),
    ("ImageNet {} of 256, bilinear", (224,), IMAGENET, CENTER | BILINEAR | {"resize_size": 256}),
    ("ImageNet {} of 256, bicubic", (224,), IMAGENET, CENTER | {"resize_size": 256}),
    ("AugReg ViT {} of timm", (224,), HALF, CENTER | {"resize_size": 248}),
]
PIPELINES: dict[str, ImagePipeline | NaflexPipeline] = {
    name.format(size): ImagePipeline(size, *colors, **others)
    for name, sizes, colors, others in PIPELINE_ROWS
    for size in sizes
}
for _side in (16, 14):
    PIPELINES[f"NaFlex 256 patches of {_side}"] = NaflexPipeline(_side, 256, *HALF, "bilinear")

# How the tags begin whose checkpoints are listed.
TAGS = ("openai", "laion2b", "datacomp_xl", "dfn", "metaclip_", "webli")

# What OpenAI calls its file (converted: it is TorchScript), where it is not the architecture.
OPENAI_FILES = {"ViT-L-14-336": "ViT-L-14-336px"}

# The same weights in transformers and big_vision.
OTHER_NAMES = {
    "ViT-B-32/openai": ["hf:clip-vit-base-patch32"],
    "ViT-B-16/openai": ["hf:clip-vit-base-patch16"],
    "ViT-L-14/openai": ["hf:clip-vit-large-patch14"],
    "ViT-L-14-336/openai": ["hf:clip-vit-large-patch14-336"],
    "ViT-B-16-SigLIP/webli": ["hf:siglip-base-patch16-224", "big_vision:webli_en_b16_224_*"],
    "ViT-B-16-SigLIP-256/webli": ["hf:siglip-base-patch16-256", "big_vision:webli_en_b16_256_*"],
    "ViT-B-16-SigLIP-384/webli": ["hf:siglip-base-patch16-384", "big_vision:webli_en_b16_384_*"],
    "ViT-B-16-SigLIP-512/webli": ["hf:siglip-base-patch16-512", "big_vision:webli_en_b16_512_*"],
    "ViT-L-16-SigLIP-256/webli": ["hf:siglip-large-patch16-256", "big_vision:webli_en_l16_256_*"],
    "ViT-L-16-SigLIP-384/webli": ["hf:siglip-large-patch16-384", "big_vision:webli_en_l16_384_*"],
    "ViT-SO400M-14-SigLIP-384/webli": [
        "hf:siglip-so400m-patch14-384",
        "big_vision:webli_en_so400m_384_*",
    ],
    "ViT-B-16-SigLIP2/webli": ["hf:siglip2-base-patch16-224"],
    "ViT-B-16-SigLIP2-256/webli": ["hf:siglip2-base-patch16-256"],
    "ViT-L-16-SigLIP2-256/webli": ["hf:siglip2-large-patch16-256"],
}
CLIPPED = "its logit scale: CLIP clips it at 100, 2103.00020, section 2.5"


@cache
def read_table(name: str) -> dict[str, Any]:
    """``pixels`` or ``expected``."""
    path = files("silc_bench.models.doctor") / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))


def pipeline_named(digest: str) -> str:
    """The public preprocessing that gives these pixels, or that none does."""
    entries = read_table("pixels")["pipelines"].items()
    named = (name for name, entry in entries if entry["hash"] == digest)
    return next(named, "none of the known pipelines")


def hash_declared(protocol: dict[str, Any]) -> str | None:
    """The hash that pixels of such an ``image_protocol`` have; None: it is not in the table."""
    entries = read_table("pixels")["pipelines"].values()
    return next((entry["hash"] for entry in entries if entry["pipeline"] == protocol), None)


def expectation(name: str) -> dict[str, Any] | None:
    """The entry of a model's name ("open_clip:ViT-B-32/openai", also with a file's suffix).

    Upper and lower case are alike.
    """
    name = re.sub(r"\.(safetensors|bin|pth|pt)$", "", name).lower()
    for entry in read_table("expected")["checkpoints"]:
        # fnmatchcase, because fnmatch changes slashes on Windows
        if any(fnmatch.fnmatchcase(name, pattern.lower()) for pattern in entry["names"]):
            return entry
    return None


def compare(entry: dict[str, Any], facts: dict[str, Any]) -> list[Finding]:
    """One finding, or one for each difference.

    Args:
        entry: an ``expectation``.
        facts: of those that the table may expect, what the model has.
    """
    published = entry["names"][0]
    expect = {key: value for key, value in entry["expect"].items() if key in facts}
    findings = []
    for key, expected in expect.items():
        value = facts[key]
        if _fits(key, value, expected):
            continue
        shown = f"{value:.6g}" if isinstance(value, float) else value
        says = (
            f"{key.replace('_', ' ')} is {shown}, "
            f"expected {expected} of {published} ({entry['source']})"
        )
        cause, _, fix = CAUSES[key].partition("; ")
        fix = fix or "compare the file with the one published"
        findings.append(Finding(FAILED, says, cause, fix))

    compared = ", ".join(expect).replace("_", " ")
    says = f"configuration as expected of {published}: {compared}; weights not compared"
    return findings or [Finding(OK, says)]


def main() -> None:
    """Write both tables beside this file."""
    folder = Path(__file__).parent
    (folder / "pixels.json").write_text(_lines(pixel_table()), encoding="utf-8")
    (folder / "expected.json").write_text(_lines(expected_table()), encoding="utf-8")


def pixel_table() -> dict[str, Any]:
    """The content of pixels.json; the version of Pillow is in it, because it makes the pixels."""
    pipelines = {
        name: {"hash": pixel_hash(pipeline), "pipeline": pipeline.as_dict()}
        for name, pipeline in PIPELINES.items()
    }
    return {"pillow": pillow_version, "pipelines": pipelines}


def expected_table() -> dict[str, Any]:
    """The content of expected.json; checkpoints of which the same is expected share an entry."""
    import open_clip

    entries: dict[str, dict[str, Any]] = {}
    for arch, tag in open_clip.list_pretrained():
        config = open_clip.get_model_config(arch)
        # Counted as the adapter counts, and built without a download.
        is_counted = "hf_model_name" not in config["text_cfg"] and "multimodal_cfg" not in config
        if not tag.startswith(TAGS) or arch.endswith("-quickgelu") or not is_counted:
            continue

        about = open_clip.get_pretrained_cfg(arch, tag)
        expect = _expected(arch, tag, config, about)
        source = f"open_clip {open_clip.__version__}" + (f"; {CLIPPED}" if tag == "openai" else "")
        is_quick = f"{arch}-quickgelu" in open_clip.list_models() and about.get("quick_gelu")
        alike = [(_names(arch, tag, str(about.get("hf_hub", "")), is_quick), expect)]
        for name in OTHER_NAMES.get(f"{arch}/{tag}", ()):
            alike.append(([name], _elsewhere(name, expect)))
        for names, expected in alike:
            empty = {"names": [], "expect": expected, "source": source}
            entries.setdefault(json.dumps([expected, source]), empty)["names"] += names

    # a repository that two tags share does not say which of them it holds
    counts = Counter(name for entry in entries.values() for name in entry["names"])
    for entry in entries.values():
        entry["names"] = [name for name in entry["names"] if counts[name] == 1]
    return {"checkpoints": list(entries.values())}


def _fits(key: str, value: Any, expected: Any) -> bool:
    if key in TOLERANCE:
        return bool(abs(value - expected) <= TOLERANCE[key])

    # two towers may differ, and the table speaks of one
    if key == "activation":
        return expected in value.split(", ")
    return bool(value == expected)


def _lines(table: dict[str, Any]) -> str:
    """JSON with a line an entry, so that a change of one entry is a change of one line."""
    parts = []
    for key, value in table.items():
        text = json.dumps(value)
        if isinstance(value, dict):
            rows = [f"{json.dumps(name)}: {json.dumps(item)}" for name, item in value.items()]
            text = "{\n  " + ",\n  ".join(rows) + "\n }"
        elif isinstance(value, list):
            text = "[\n  " + ",\n  ".join(map(json.dumps, value)) + "\n ]"
        parts.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _names(arch: str, tag: str, hub: str, is_quick: bool) -> list[str]:
    """How the model may be called when it is loaded.

    By tag, from the hub, and as OpenAI's own file (without suffix).
    """
    # open_clip lists some architectures twice, and a QuickGELU tag may be loaded by either name.
    archs = [arch, f"{arch}-quickgelu"] if is_quick else [arch]
    checkpoints = [tag]
    if tag == "openai":
        checkpoints.append(OPENAI_FILES.get(arch, arch))
    names = [f"open_clip:{name}/{checkpoint}" for name in archs for checkpoint in checkpoints]

    # two slashes: "OWNER/REPOSITORY/", where the hub has a repository of this checkpoint
    if hub.count("/") == 2:
        names.append(f"open_clip:{hub.rstrip('/')}")
    return names


def _expected(arch: str, tag: str, config: dict[str, Any], about: dict[str, Any]) -> dict[str, Any]:
    """What open_clip's configuration says of an architecture and a tag."""
    text = config["text_cfg"]
    vision = config["vision_cfg"]
    expect = {
        "parameters": _num_params(arch),
        "image_size": vision["image_size"],
        "mean": list(about["mean"]),
        "std": list(about["std"]),
        "resize": about["resize_mode"],
        "interpolation": about["interpolation"],
        "context_length": text.get("context_length", 77),
        "has_bias": "init_logit_bias" in config,
    }

    # Where the cleaning neither lowers nor says otherwise, the tokenizer may still lower: then
    # nothing is expected.
    default = "whitespace" if "hf_tokenizer_name" in text else "lower"
    clean = text.get("tokenizer_kwargs", {}).get("clean", default)
    if clean in ("lower", "canonicalize"):
        expect["ignores_case"] = True

    # timm's towers bring their own activation
    if "timm_model_name" not in vision:
        is_quick = about.get("quick_gelu") or config.get("quick_gelu")
        expect["activation"] = "quick_gelu" if is_quick else "gelu"
    if tag == "openai":
        expect["logit_scale"] = 100.0
    return expect


def _elsewhere(name: str, expect: dict[str, Any]) -> dict[str, Any]:
    """What is expected of the same weights in another library."""
    # All but the CLIPs are SigLIPs, whose towers have GELU's tanh there.
    kept = dict(expect)
    if not name.startswith("hf:clip"):
        kept["activation"] = "gelu_tanh"

    # SigLIP 2 resizes there as its file says.
    if name.startswith("hf:siglip2"):
        del kept["interpolation"]
    return kept


@cache
def _num_params(arch: str) -> int:
    """Of both towers, without scale and bias, as the adapter of open_clip counts."""
    from silc_bench.models.adapters.open_clip.checkpoints import build, find

    # shapes alone: on the meta device a network takes no memory
    with torch.device("meta"):
        network = build(find(f"{arch}/random"), quick_gelu=False)
    return sum(
        value.numel()
        for name, value in network.named_parameters()
        if name not in ("logit_scale", "logit_bias")
    )


if __name__ == "__main__":
    main()
