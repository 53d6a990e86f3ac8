"""Models trained here: RUN or RUN/checkpoints/step_N.pt, with ``:student`` (the default),
``:teacher`` or ``:average`` of its weights; or a branch exported.

An export (`silc-bench export --to safetensors`) is one branch in one file: its tensors by the names
of ``Student``, and texts beside them: format, branch, the whole configuration and the tokenizer,
both as JSON. Nothing else is needed to load it.

The teacher is the EMA of the vision tower; its texts are read by the student's text tower, the only
one there is (SILC's teacher has no text tower, 2310.13355). ``silc_bench.models.load`` imports this
file when a run is asked for.

Shapes: B pictures or texts, L tokens, D embedding, h x w patches.

The vision tower of `silc_bench.trainer.silc.towers`, as ``towers.dense`` wants it: no class token,
a MAP head, no projection after it.

Shapes: B pictures, N = h x w patches, W width (= D).
"""

from __future__ import annotations

import hashlib
import json
import textwrap
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor

from silc_bench.errors import UserError, unknown_name
from silc_bench.models.patch_features import (
    check_methods,
    dense,
    heads_of,
    joint_methods,
    merge_heads,
    methods_of,
)
from silc_bench.models.preprocessing import ImagePipeline
from silc_bench.models.weights import tensor_files
from silc_bench.models.weights.read import check_tensors, load_into, metadata_of, read_weights
from silc_bench.models.weights.revision import revision_of
from silc_bench.trainer.checkpoints import file as checkpoint
from silc_bench.trainer.config.config import Config, from_dict, to_dict, without_heads
from silc_bench.trainer.config.presets import PRESETS, make_preset
from silc_bench.trainer.silc.student import TAUGHT, Student
from silc_bench.trainer.silc.teacher import Teacher
from silc_bench.trainer.silc.tokenizers import (
    AnyTokenizer,
    ForeignTokenizer,
    check_pairing,
    read_tokenizer,
)
from silc_bench.trainer.silc.towers import VisionTower, count_parameters

BRANCHES = ("student", "teacher", "average")  # the last where the run kept one
MAX_DEPTH = 1000  # blocks; the largest preset has 48
EXPORTED = "silc-bench"  # metadata "format" of an exported file
TOKENIZER_FILE = "tokenizer.json"  # beside weights alone
MEAN, STD = 0.5, 0.5


class NativeImageModel:
    """A DenseModel over one branch: its image side. The text tower counts for revision and size."""

    def __init__(
        self,
        name: str,
        student: Student,
        vision: VisionTower,
        lacking: Mapping[str, str] | None = None,
    ):
        config = student.config
        self.name, self.config = name, config
        self.vision, self.text = vision.eval(), student.text.eval()
        self.tower = NativeTower(self.vision)
        self.dense_methods, self.lacking = (
            self.tower.dense_methods,
            {**self.tower.lacking, **(lacking or {})},
        )
        self.embed_dim = config.vision.width
        self.image_size = config.vision.image_size
        self.patch_size = config.vision.patch_size
        self.num_params = count_parameters(vision) + count_parameters(student.text)
        towers: dict[str, Any] = {"vision": config.vision, "text": config.text}
        settings: dict[str, Any] = {
            f"{side}_heads": tower.num_heads for side, tower in towers.items()
        }  # no weight tells them
        settings |= {
            f"{side}_gelu": tower.gelu for side, tower in towers.items() if tower.gelu != "tanh"
        }
        self.revision = revision_of({"vision": vision, "text": student.text}, settings)
        self.feature_points = {"pooled": self.embed_dim, "mean_patch": self.embed_dim}
        self.pipeline = ImagePipeline(
            self.image_size, mean=(MEAN,) * 3, std=(STD,) * 3
        )  # the whole picture, squashed
        self.image_protocol = self.pipeline.as_dict()

    def preprocess(self, image: Image.Image) -> Tensor:
        return self.pipeline(image)

    def encode_image(self, images: Tensor, point: str = "pooled") -> Tensor:
        if point == "mean_patch":
            return self.encode_dense(images, ("tokens",))["tokens"].mean(dim=(1, 2))
        return self.vision(images).float()

    def encode_dense(self, images: Tensor, methods: Sequence[str]) -> dict[str, Tensor]:
        check_methods(self.name, methods, self.dense_methods, self.lacking)
        return dense(self.tower, images, methods)

    def to(self, device: torch.device) -> Self:
        self.vision.to(device)
        self.text.to(device)
        return self


class NativeModel(NativeImageModel):
    """An ImageTextModel: both towers, with the tokenizer they were trained with."""

    def __init__(self, name: str, student: Student, vision: VisionTower, tokenizer: AnyTokenizer):
        super().__init__(name, student, vision)
        self.tokenizer = tokenizer
        self.has_foreign_tokenizer = isinstance(
            tokenizer, ForeignTokenizer
        )  # of what the run started from
        self.log_scale = student.log_scale.item()
        self.logit_scale = student.log_scale.exp().item()
        self.logit_bias = student.logit_bias.item()
        self.text_protocol = {
            "cleaning": tokenizer.cleaning,
            "length": self.config.text.context_length,
            "tokenizer": hashlib.sha256(tokenizer.to_json().encode()).hexdigest()[:16],
        }

    def tokenize(self, texts: list[str]) -> Tensor:
        return self.tokenizer(texts)

    def encode_text(self, tokens: Tensor) -> Tensor:
        return self.text(tokens).float()


def is_ours(path: Path) -> bool:
    """Whether a folder holds, or a file is, what `train` or `export` wrote, whole or damaged;
    nothing is unpickled.
    """
    if path.is_dir():
        return bool(checkpoint.all_in(path) or list(path.glob("step_*.pt")))
    if not path.is_file():  # a pipe would be waited for
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if not pickles:
                return False
            with archive.open(
                pickles[0]
            ) as file:  # the format comes first; what claims to be large is not unpacked
                return checkpoint.FORMAT.split("/")[0].encode() in file.read(2**20)
    except (OSError, ValueError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error):
        return is_exported(path)  # whatever else it is, its reader says so


def is_exported(path: Path) -> bool:
    """Whether a file says in its header that it is an export of a model trained here."""
    try:
        return path.is_file() and tensor_files.read_metadata(path).get("format") == EXPORTED
    except (OSError, ValueError, RecursionError):
        return False


def load(path: Path, branch: str | None = None) -> NativeModel:
    """The student, teacher or average of a run's newest checkpoint, or of a checkpoint file; or the
    branch that was exported.

    Args:
        branch: None: the student, or the one that an exported file holds.

    Raises:
        UserError: no such file, a damaged or foreign one, an unknown branch, or parts that do not
        fit together: configuration, tokenizer, weights.
    """
    if is_exported(path):
        model = load_safetensors(path)
        if branch is not None and not model.name.endswith(f":{branch}"):
            raise UserError(
                f"{path}:{branch}: this export is {model.name} and holds nothing else; leave out :{branch}"
            )
        return model
    file = checkpoint.find(path)
    return from_payload(file, checkpoint.load(file), branch)


def from_payload(file: Path, payload: dict[str, Any], branch: str | None = None) -> NativeModel:
    """``load`` of a checkpoint file that has been read: ``payload`` is
    ``checkpoint.load(file)``.
    """
    if branch is not None and branch not in BRANCHES:
        raise unknown_name("branch", branch, BRANCHES)
    if branch == "average" and "average" not in payload:
        raise UserError(
            f"checkpoint {file} keeps no average of its weights; train with --set average_momentum=0.999 for one"
        )
    config, tokenizer = _read_words(file, payload)
    try:
        student = _empty(config)
        with torch.device("meta"):
            teacher = Teacher(student, config.distillation)
        student.load_state_dict(payload["student"], assign=True)
        teacher.load_state_dict(payload["teacher"], assign=True)
        for part in [
            name for name in BRANCHES if name in payload
        ]:  # here and not where a run is resumed, which may have to be looked into
            check_tensors(file, {f"{part}.{name}": value for name, value in payload[part].items()})
        if branch == "average":
            student.load_state_dict(student.state_dict() | payload["average"], assign=True)
        vision = student.vision if branch != "teacher" else teacher.vision
        return NativeModel(
            f"{config.name}:{branch or BRANCHES[0]}", student.float(), vision.float(), tokenizer
        )
    except (TypeError, OverflowError, RuntimeError) as error:
        raise _misfit(file, error) from None


def load_safetensors(path: Path) -> NativeModel:
    """What ``metadata`` and ``tensors`` of a model gave, in one file: the same name, revision and
    embeddings.

    Raises:
        UserError: damaged, not an export of a model trained here, or parts that do not fit
        together.
    """
    words = metadata_of(path)
    if (
        words.get("format") != EXPORTED
        or words.get("branch") not in BRANCHES
        or tensor_files.CHECKSUMS not in words
    ):
        raise UserError(
            f"{path}: no export of this version (its header names no format, branch or checksums); export it again"
        )
    weights = read_weights(path)  # first: it compares the checksums of the texts too
    config, tokenizer = _read_words(path, words)
    try:
        towers = _empty(without_heads(config))
        towers.load_state_dict(weights, assign=True)
        towers.config = config
        return NativeModel(
            f"{config.name}:{words['branch']}", towers.float(), towers.vision, tokenizer
        )
    except (TypeError, OverflowError, RuntimeError) as error:
        raise _misfit(path, error) from None


def load_state(path: Path, preset: str) -> NativeImageModel:
    """A student's weights alone, in the towers of a preset; the tokenizer is that of the file's
    header, else ``TOKENIZER_FILE`` beside it (what ``Tokenizer.to_json`` gives). Without either it
    is an image model, and ``lacking`` names the file to bring.

    Raises:
        UserError: an unknown preset, a damaged tokenizer, weights or a tokenizer that do not fit.
    """
    config, words, tokenizer = _towers_of(preset), _tokenizer_of(path), None
    if words is not None:
        config, tokenizer = _read_words(
            path, {"config": json.dumps(to_dict(config)), "tokenizer": words}
        )
    with torch.device("meta"):
        student = Student(config)
    weights = {
        name: value for name, value in read_weights(path).items() if not name.startswith(TAUGHT)
    }
    load_into(student, weights, f"checkpoint {path} as silc:{preset}")
    name = f"silc:{preset}/{path.stem}"
    if tokenizer is not None:
        return NativeModel(name, student, student.vision, tokenizer)
    bring = (
        f"weights without the tokenizer they were trained with: put it beside {path} as {TOKENIZER_FILE} (the text `tokenizer`"
        " of the run's checkpoint), or export the run itself: silc-bench export RUN --to safetensors"
    )
    return NativeImageModel(name, student, student.vision, {"text": bring})


def _tokenizer_of(path: Path) -> str | None:
    words = metadata_of(path).get("tokenizer")
    file = (path if path.is_dir() else path.parent) / TOKENIZER_FILE
    if words is not None or not file.is_file():
        return words
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{file}: the tokenizer beside the weights cannot be read ({error})"
        ) from None


def fitting_presets(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Presets whose towers have exactly these tensors, of those with the same towers the first;
    heads are left out.
    """
    found: list[str] = []
    different = {
        (config.vision, config.text): config.preset for config in map(_towers_of, reversed(PRESETS))
    }
    for preset in different.values() if "vision.patch.weight" in shapes else ():
        config = _towers_of(preset)
        if config.vision.width == shapes["vision.patch.weight"][0]:
            with torch.device("meta"):
                towers = {
                    name: tuple(value.shape) for name, value in Student(config).state_dict().items()
                }
            if towers == {
                name: shape for name, shape in shapes.items() if not name.startswith(TAUGHT)
            }:
                found.append(preset)
    return found


def _towers_of(preset: str) -> Config:
    return without_heads(make_preset(preset))


def tensors(model: NativeModel) -> dict[str, Tensor]:
    """All that ``load_safetensors`` needs of the weights: fp32, by the names of ``Student``,
    without its head.
    """
    towers = {"vision": model.vision, "text": model.text}
    weights = {
        f"{part}.{name}": value
        for part, tower in towers.items()
        for name, value in tower.state_dict().items()
    }
    return weights | {
        "log_scale": torch.tensor(model.log_scale),
        "logit_bias": torch.tensor(model.logit_bias),
    }


def metadata(model: NativeModel) -> dict[str, str]:
    """All that it needs beside them, and the name, for people."""
    return {
        "format": EXPORTED,
        "name": model.name,
        "branch": model.name.rpartition(":")[2],
        "config": json.dumps(to_dict(model.config)),
        "tokenizer": model.tokenizer.to_json(),
    }


def _empty(config: Config) -> Student:
    """A student to load tensors into: nothing is allocated, and not much done, for sizes that only
    the configuration claims.
    """
    depth = max(config.vision.depth, config.text.depth)
    if depth > MAX_DEPTH:
        raise RuntimeError(f"towers of {depth:,} blocks; at most {MAX_DEPTH:,} are built")
    with torch.device("meta"):
        return Student(config)


def _misfit(file: Path, error: Exception) -> UserError:
    reason = textwrap.shorten(str(error), 300, placeholder=" ...")
    return UserError(f"checkpoint {file}: its weights do not fit its own configuration ({reason})")


def _read_words(file: Path, words: dict[str, Any]) -> tuple[Config, AnyTokenizer]:
    try:
        config = from_dict(_read_json(words.get("config")))
        tokenizer = read_tokenizer(words.get("tokenizer", ""))
        check_pairing(tokenizer, config.text)
    except UserError as error:
        raise UserError(f"checkpoint {file}: {error}") from None
    return config, tokenizer


def _read_json(text: Any) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"its config is not JSON ({error})") from None


class NativeTower:
    """One branch's tower; ``vision`` is a ``silc_bench.trainer.silc.towers.VisionTower``."""

    num_prefix = 0
    is_attention_pooled = True

    def __init__(self, vision: Any):
        self.vision = vision
        self.block = NativeBlock(vision.blocks[-1])
        joint, self.lacking = joint_methods(True, self.block, "Block")
        self.dense_methods = methods_of(len(vision.blocks), joint)

    def enter(self, images: Tensor, count: int) -> tuple[list[Tensor], None, tuple[int, int]]:
        entered = [self.vision.embed(images)]
        for block in self.vision.blocks[:-1]:
            entered = [*entered, block(entered[-1])][-count:]
        patch = self.vision.patch_size
        return entered, None, (images.shape[2] // patch, images.shape[3] // patch)

    def last(self, tokens: Tensor, rope: None) -> Tensor:
        return self.vision.blocks[-1](tokens)

    def normed(self, patches: Tensor) -> Tensor:
        return self.vision.norm(patches)

    def joint(self, patches: Tensor) -> Tensor:
        return self.vision.pool.per_patch(self.vision.norm(patches))


class NativeBlock:
    """`silc_bench.trainer.silc.towers.Block` taken apart."""

    def __init__(self, block: Any):
        self.block = block

    def split(self, tokens: Tensor, rope: None) -> tuple[Tensor, Tensor, Tensor]:
        attention = self.block.attention
        q, k, v = attention.qkv(self.block.norm1(tokens)).chunk(3, dim=-1)
        return (
            heads_of(q, attention.num_heads),
            heads_of(k, attention.num_heads),
            heads_of(v, attention.num_heads),
        )

    def join(self, tokens: Tensor, values: Tensor) -> Tensor:
        return self.block.attention.out(merge_heads(values))

    def finish(self, tokens: Tensor, added: Tensor) -> Tensor:
        tokens = tokens + added
        return tokens + self.block.mlp(self.block.norm2(tokens))
