"""The files of a transformers checkpoint: where they are, what is missing, what they say of images.

Flow: ``find_folder("google/siglip-base-patch16-224")`` -> a local folder, the hub's cache, or a
download -> ``read_json``, ``read_pipeline`` with ``pipeline_of``. Nothing that a repository
brings along as code is ever run.

Pixels are those of the library's own processors over Pillow (transformers 4: the "slow" ones; 5:
``*ImageProcessorPil``), with which these models were published. The torchvision processors that
transformers 5 takes by default resize differently. Of the seven photographs of OpenAI's golden set,
at 224 pixels, these values differ (transformers 5.23, torchvision 0.29):

- CLIP's shortest edge: 0.4 % of them, by up to 2 of 255 levels;
- SigLIP's squash: 6.4 % of them, by up to 4 levels.

Transparent images lose their alpha, as in transformers 4; 5.23 lays them on white first.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from silc_bench.errors import UserError, first_line
from silc_bench.models.adapters.library import explained
from silc_bench.models.preprocessing import INTERPOLATIONS, Color, ImagePipeline
from silc_bench.models.weights import peft
from silc_bench.system.checksums import check_manifest

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
PREPROCESSOR = "preprocessor_config.json"
PROCESSOR = "processor_config.json"
CONFIGURATION = (
    "config.json",
    PREPROCESSOR,
    PROCESSOR,
    peft.CONFIG,
    "tokenizer_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)
TOKENIZERS = (
    "tokenizer.json",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
)
SAFETENSORS = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
# read with torch's weights_only, which builds nothing but tensors
PICKLES = (
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "pytorch_model-*-of-*.bin",
)
MAX_JSON = 16 * 2**20  # bytes

# Pillow's numbers, as the files store them -> our names
RESAMPLE = {int(Image.Resampling[name.upper()]): name for name in INTERPOLATIONS}

# processors whose operations an ImagePipeline has, and whether they crop unless told otherwise
IS_CROPPED = {
    "CLIPImageProcessor": True,
    "CLIPFeatureExtractor": True,
    "ChineseCLIPImageProcessor": True,
    "ChineseCLIPFeatureExtractor": True,
    "SiglipImageProcessor": False,
}


def find_folder(name: str, needs_weights: bool) -> Path:
    """A folder as it is; else the hub's cache, then the hub, under that name.

    Raises:
        UserError: files are missing and cannot be downloaded; names them and says where they
            belong. Or an adapter lies beside them, or the folder is an export of ours and not as it
            was written.
    """
    folder = Path(name).expanduser()
    bring = (
        f"bring config.json, {'model.safetensors, ' if needs_weights else ''}"
        "preprocessor_config.json, tokenizer_config.json and tokenizer.json (or spiece.model, or "
        "vocab and merges) into a folder and write hf:FOLDER"
    )
    if folder.is_dir():
        if needs_weights:
            peft.refuse_adapter(folder)
        missing = _missing(folder, needs_weights)
        if missing:
            raise UserError(f"it lacks {'; '.join(missing)}", about=folder, fix=bring)
        check_manifest(folder)
        return folder

    about = f"hf:{name}"
    if folder.exists() or not HUB_NAME.fullmatch(name):
        fix = "write hf:FOLDER with config.json in it, or a name on the Hugging Face hub"
        raise UserError("no folder, and no name on the hub", about=about, fix=fix)

    from huggingface_hub import snapshot_download

    # What is complete in the cache needs no network, whatever form its weights have. Then
    # safetensors are downloaded, and pickles only where a repository has nothing else.
    reason = ""
    for weights, is_offline in [(PICKLES, True), (SAFETENSORS, False), (PICKLES, False)]:
        patterns = [*CONFIGURATION, *TOKENIZERS, *(weights if needs_weights else ())]
        try:
            folder = Path(
                snapshot_download(name, allow_patterns=patterns, local_files_only=is_offline)
            )
        # the cache, the hub, a proxy and a broken download each raise their own kind
        except Exception as error:
            reason = first_line(error)
            continue

        missing = _missing(folder, needs_weights)
        if needs_weights:
            peft.refuse_adapter(folder)
        if not missing:
            return folder
        reason = f"{folder} lacks {'; '.join(missing)}"

    raise UserError(f"it cannot be downloaded ({reason})", about=about, fix=bring)


def read_json(path: Path) -> dict[str, Any]:
    """A configuration file; {} where there is none.

    Raises:
        UserError: not a JSON object, or one that asks for code of its own.
    """
    if not path.is_file():
        return {}

    problem = "no configuration"
    fix = "bring the published file: one JSON object"
    with explained(problem, about=path, fix=fix, kinds=(ValueError, RecursionError)):
        if path.stat().st_size > MAX_JSON:
            raise ValueError(f"larger than {MAX_JSON} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("not an object")

        # at any depth: a processor's configuration may lie within another file's
        asks_for_code = "auto_map" in json.dumps(content)

    if asks_for_code:
        fix = "remove it: nothing that comes with a checkpoint is executed"
        raise UserError("it asks for code of its own (auto_map)", about=path, fix=fix)
    return content


def read_pipeline(folder: Path, make: Callable[[Path, dict[str, Any]], Any]) -> Any:
    """What is done to images, by all files that say so.

    It is a file of its own, or a part of the one that transformers 5 writes. Where both are there,
    transformers 4 takes the first of them and transformers 5 the second.

    Args:
        make: a file and its settings -> a pipeline.

    Raises:
        UserError: neither is there, or the two make different pixels; whatever ``make`` raises.
    """
    own, whole = folder / PREPROCESSOR, folder / PROCESSOR
    files = {whole: read_json(whole).get("image_processor")}
    if own.is_file():
        files[own] = read_json(own)
    pipelines = {
        path: make(path, settings) for path, settings in files.items() if isinstance(settings, dict)
    }
    if not pipelines:
        fix = f"bring {PREPROCESSOR}, which says how images are resized"
        raise UserError("it has no image_processor", about=whole, fix=fix)

    # of each way to make images, the settings that the others do not share
    (path, pipeline), *others = pipelines.items()
    for other_path, other in others:
        steps = {path: pipeline.as_dict(), other_path: other.as_dict()}
        differ = [
            f"{name}: {list(items)}"
            for name, items in _differences(steps[path], steps[other_path]).items()
        ]
        if differ:
            files_named = f"{path.name} and {other_path.name}"
            problem = f"{files_named} make different images ({', '.join(differ)})"
            fix = "remove the file that these weights were not trained with"
            raise UserError(problem, about=folder, fix=fix)
    return pipeline


def processor_type(settings: dict[str, Any], default: str) -> str:
    """The class of the processor, without what says over which library it runs."""
    name = settings.get("image_processor_type") or settings.get("feature_extractor_type") or default
    return str(name).removesuffix("Fast").removesuffix("Pil")


def pipeline_of(
    path: Path, settings: dict[str, Any], default: str, image_size: int
) -> ImagePipeline:
    """The operations of CLIP's and SigLIP's processors -> an ImagePipeline.

    Args:
        path: the file that ``settings`` come from, for errors.
        settings: of the processor, as ``read_pipeline`` gives them.
        default: the processor's class, where the settings do not name it.
        image_size: pixels a side that the tower was trained on.

    Raises:
        UserError: something is not said and has no one default, or cannot be done, or makes another
            size.
    """
    kind = processor_type(settings, default)
    if kind not in IS_CROPPED:
        raise _unknown(path, "image_processor_type", kind, ", ".join(sorted(IS_CROPPED)))

    resize, resize_size = _side(path, settings, "size")
    size = resize_size
    crop = "none"
    if settings.get("do_center_crop", IS_CROPPED[kind]):
        # the processors cut the crop's offset to whole pixels, where torchvision rounds it
        crop = "center_floor"
        size = _side(path, settings, "crop_size")[1]
    elif resize != "squash":
        raise _unknown(path, "do_center_crop", False, "true, or a size of height and width")

    if size != image_size:
        fix = f"bring the file of this model, whose tower takes {image_size}"
        raise UserError(f"it makes images of {size} pixels a side", about=path, fix=fix)

    mean, std, interpolation = pixel_settings(path, settings)
    return ImagePipeline(
        size,
        mean,
        std,
        resize=resize,
        resize_size=resize_size,
        crop=crop,
        interpolation=interpolation,
    )


def pixel_settings(path: Path, settings: dict[str, Any]) -> tuple[Color, Color, str]:
    """Mean, standard deviation and interpolation.

    Raises:
        UserError: one of them is not said, or a step that all processors share is left out or
            changed.
    """
    for step in ("do_resize", "do_rescale"):
        if not settings.get(step, True):
            raise _unknown(path, step, False, "true")

    factor = settings.get("rescale_factor", 1 / 255)
    if not isinstance(factor, int | float) or not math.isclose(factor, 1 / 255, rel_tol=1e-9):
        raise _unknown(path, "rescale_factor", factor, "1/255")

    # a bool is an int in Python, and true would be Pillow's Lanczos
    resample = settings.get("resample")
    if type(resample) is not int or resample not in RESAMPLE:
        known = [f"{number} ({name})" for number, name in sorted(RESAMPLE.items())]
        raise _unknown(path, "resample", resample, ", ".join(known))

    if not settings.get("do_normalize", True):
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), RESAMPLE[resample]
    mean = _color(path, settings, "image_mean")
    return mean, _color(path, settings, "image_std"), RESAMPLE[resample]


def _differences(left: dict[str, Any], right: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """{name: both values} where they are not one."""
    names = sorted(left.keys() | right.keys())
    both = {name: (left.get(name), right.get(name)) for name in names}
    return {name: pair for name, pair in both.items() if pair[0] != pair[1]}


def _unknown(path: Path, key: str, value: Any, known: str) -> UserError:
    return UserError(f"{key} is {value!r}", about=path, fix=f"only {known} can be reproduced")


def _side(path: Path, settings: dict[str, Any], key: str) -> tuple[str, int]:
    """("squash" or "shortest", pixels) from any of the forms that the library has had."""
    value = settings.get(key)
    sides = value if isinstance(value, dict) else {"shortest_edge": value}
    is_squash = sides.keys() == {"height", "width"}
    pixels = next(iter(sides.values()), None)
    is_known = is_squash or sides.keys() == {"shortest_edge"}
    if not is_known or type(pixels) is not int or pixels < 1 or set(sides.values()) != {pixels}:
        known = "a number of pixels, shortest_edge, or height and width of a square"
        raise _unknown(path, key, value, known)
    return "squash" if is_squash else "shortest", pixels


def _color(path: Path, settings: dict[str, Any], key: str) -> Color:
    """Three numbers, of red, green and blue."""
    try:
        red, green, blue = map(float, settings[key])
        assert math.isfinite(red + green + blue)
    except (AssertionError, KeyError, TypeError, ValueError):
        raise _unknown(path, key, settings.get(key), "three numbers") from None
    return red, green, blue


def _missing(folder: Path, needs_weights: bool) -> list[str]:
    """What a checkpoint needs and this folder has not."""

    def lacks(*names: str) -> bool:
        return not any((folder / name).is_file() for name in names)

    weights = (*SAFETENSORS[:2], *PICKLES[:2])
    needs = {
        "config.json": ("config.json",),
        PREPROCESSOR: (PREPROCESSOR, PROCESSOR),
        "a tokenizer (tokenizer.json, or spiece.model, or vocab.json with merges.txt)": TOKENIZERS,
        **({"model.safetensors": weights} if needs_weights else {}),
    }
    missing = [what for what, names in needs.items() if lacks(*names)]
    if not needs_weights:
        return missing

    # the last part of a download that broke off may be missing, though its index is here
    for index in (SAFETENSORS[1], PICKLES[1]):
        shards = read_json(folder / index).get("weight_map") or {}
        files = {str(name) for name in shards.values()} if isinstance(shards, dict) else set()
        missing += sorted(name for name in files if lacks(name))
    return missing
