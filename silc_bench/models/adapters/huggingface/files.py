"""The files of a transformers checkpoint: where they are, what is missing, what they say of images.

Flow: ``find_folder("google/siglip-base-patch16-224")`` -> a local folder, the hub's cache, or a
download -> ``read_json``, ``read_preprocessor`` -> ``pipeline_of``. Nothing that a repository
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
from pathlib import Path
from typing import Any

from PIL import Image

from silc_bench.errors import UserError
from silc_bench.models.preprocessing import INTERPOLATIONS, ImagePipeline
from silc_bench.system.checksums import check_manifest

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
CONFIGURATION = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
)
TOKENIZERS = (
    "tokenizer.json",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
)
TOKENIZER_EXTRAS = ("merges.txt", "special_tokens_map.json", "added_tokens.json")
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

Color = tuple[float, float, float]


def find_folder(name: str, needs_weights: bool) -> Path:
    """A folder as it is; else the hub's cache, then the hub, under that name.

    Raises:
        UserError: files are missing and cannot be downloaded; names them and says where they
            belong. Or the folder is an export of ours and not as it was written.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        missing = _missing(folder, needs_weights)
        if missing:
            raise UserError(f"{folder} lacks {'; '.join(missing)}")
        check_manifest(folder)
        return folder

    if folder.exists() or not HUB_NAME.fullmatch(name):
        kind = "a file" if folder.exists() else "no such folder"
        raise UserError(
            f"hf:{name}: {kind}; hf: takes a folder with config.json, "
            "or a name on the Hugging Face hub"
        )

    from huggingface_hub import snapshot_download

    # What is complete in the cache needs no network, whatever form its weights have. Then
    # safetensors are downloaded, and pickles only where a repository has nothing else.
    fixed = [*CONFIGURATION, *TOKENIZERS, *TOKENIZER_EXTRAS]
    reason = ""
    for weights, is_offline in [(PICKLES, True), (SAFETENSORS, False), (PICKLES, False)]:
        patterns = [*fixed, *(weights if needs_weights else ())]
        try:
            folder = Path(
                snapshot_download(name, allow_patterns=patterns, local_files_only=is_offline)
            )
        # the cache, the hub, a proxy and a broken download each raise their own kind
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
            continue

        missing = _missing(folder, needs_weights)
        if not missing:
            return folder
        reason = f"{folder} lacks {'; '.join(missing)}"

    weights_too = "model.safetensors, " if needs_weights else ""
    raise UserError(
        f"hf:{name} is no folder here, not complete in the hub's cache, and cannot be downloaded "
        f"({reason}); bring config.json, {weights_too}preprocessor_config.json, tokenizer.json "
        "(or spiece.model, or vocab and merges) and tokenizer_config.json from that page "
        "into a folder and write hf:FOLDER"
    )


def read_json(path: Path) -> dict[str, Any]:
    """A configuration file; {} where there is none.

    Raises:
        UserError: not a JSON object, or one that asks for code of its own.
    """
    if not path.is_file():
        return {}

    try:
        if path.stat().st_size > MAX_JSON:
            raise ValueError(f"larger than {MAX_JSON} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("not an object")

        # at any depth: a processor's configuration may lie within another file's
        asks_for_code = "auto_map" in json.dumps(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no configuration: {error}") from None

    if asks_for_code:
        raise UserError(
            f"{path} asks for code of its own (auto_map), "
            "and nothing that comes with a checkpoint is executed"
        )
    return content


def read_preprocessor(folder: Path) -> tuple[Path, dict[str, Any]]:
    """What is done to images, and the file that says so.

    It is a file of its own, or a part of the one that transformers 5 writes.
    """
    own = folder / "preprocessor_config.json"
    if own.is_file():
        return own, read_json(own)

    whole = folder / "processor_config.json"
    settings = read_json(whole).get("image_processor")
    if not isinstance(settings, dict):
        raise UserError(
            f"{whole} has no image_processor; bring preprocessor_config.json, "
            "which says how pictures are resized"
        )
    return whole, settings


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
        settings: of the processor, as ``read_preprocessor`` gives them.
        default: the processor's class, where the settings do not name it.
        image_size: pixels a side that the tower was trained on.

    Raises:
        UserError: something is not said and has no one default, or cannot be done, or makes another
            size.
    """
    kind = processor_type(settings, default)
    if kind not in IS_CROPPED:
        raise UserError(
            f"{path} is of {kind}; what is known how to reproduce: {', '.join(sorted(IS_CROPPED))}"
        )

    resize, resize_size = _side(path, settings, "size")
    size = resize_size
    crop = "none"
    if settings.get("do_center_crop", IS_CROPPED[kind]):
        # the processors cut the crop's offset to whole pixels, where torchvision rounds it
        crop = "center_floor"
        size = _side(path, settings, "crop_size")[1]
    elif resize != "squash":
        raise UserError(
            f"{path} resizes the shortest edge without a crop: "
            "pictures of many sizes, which do not make a batch"
        )

    if size != image_size:
        raise UserError(
            f"{path} makes pictures of {size} pixels a side, "
            f"but config.json is of a tower for {image_size}"
        )

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
            raise UserError(
                f"{path} says {step}: false; "
                "only pictures that are resized and scaled to [0, 1] are measured"
            )

    factor = settings.get("rescale_factor", 1 / 255)
    if not isinstance(factor, int | float) or not math.isclose(factor, 1 / 255, rel_tol=1e-9):
        raise UserError(
            f"{path} says rescale_factor: {factor!r}; only 1/255 is known how to reproduce"
        )

    # a bool is an int in Python, and true would be Pillow's Lanczos
    resample = settings.get("resample")
    if isinstance(resample, bool) or not isinstance(resample, int) or resample not in RESAMPLE:
        known = ", ".join(f"{number} ({name})" for number, name in sorted(RESAMPLE.items()))
        raise UserError(f"{path} says resample: {resample!r}; known: {known}")
    interpolation = RESAMPLE[resample]

    if not settings.get("do_normalize", True):
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), interpolation

    mean = _color(path, settings, "image_mean")
    std = _color(path, settings, "image_std")
    return mean, std, interpolation


def _side(path: Path, settings: dict[str, Any], key: str) -> tuple[str, int]:
    """("squash" or "shortest", pixels) from any of the forms that the library has had."""
    value = settings.get(key)
    keys = set(value) if isinstance(value, dict) else set()
    if isinstance(value, int):
        how, sides = "shortest", {value}
    elif keys == {"shortest_edge"}:
        how, sides = "shortest", set(value.values())  # type: ignore[union-attr]
    elif keys == {"height", "width"}:
        how, sides = "squash", set(value.values())  # type: ignore[union-attr]
    else:
        raise UserError(
            f"{path} says {key}: {value!r}; known: a number, shortest_edge, or height and width"
        )

    # a second side is left where height and width differ
    side = sides.pop()
    if sides or isinstance(side, bool) or not isinstance(side, int) or side < 1:
        raise UserError(f"{path} says {key}: {value!r}; only squares of whole pixels are measured")
    return how, side


def _color(path: Path, settings: dict[str, Any], key: str) -> Color:
    """Three numbers, of red, green and blue."""
    value = settings.get(key)
    numbers = value if isinstance(value, list) else []
    if len(numbers) != 3 or not all(_is_finite(number) for number in numbers):
        raise UserError(f"{path} says {key}: {value!r}; expected three numbers")

    red, green, blue = numbers
    return float(red), float(green), float(blue)


def _is_finite(number: Any) -> bool:
    return isinstance(number, int | float) and math.isfinite(number)


def _missing(folder: Path, needs_weights: bool) -> list[str]:
    """What a checkpoint needs and this folder has not."""

    def lacks(*names: str) -> bool:
        return not any((folder / name).is_file() for name in names)

    missing = []
    if lacks("config.json"):
        missing.append("config.json")
    if lacks("preprocessor_config.json", "processor_config.json"):
        missing.append("preprocessor_config.json")
    if lacks(*TOKENIZERS):
        missing.append(
            "a tokenizer (tokenizer.json, or spiece.model, or vocab.json with merges.txt)"
        )
    if not needs_weights:
        return missing

    if lacks(*SAFETENSORS[:2], *PICKLES[:2]):
        missing.append("model.safetensors")

    # the last part of a download that broke off may be missing, though its index is here
    for index in (SAFETENSORS[1], PICKLES[1]):
        shards = read_json(folder / index).get("weight_map") or {}
        files = {str(name) for name in shards.values()} if isinstance(shards, dict) else set()
        missing += sorted(name for name in files if lacks(name))
    return missing
