"""Models trained here, as an evaluation sees them.

Flow: ``load(path, branch)`` -> a ``NativeModel``. The path is RUN or RUN/checkpoints/step_N.pt (a
folder without .pt where the run was sharded), the branch "student" (the default), "teacher" or
"average" of its weights; or the path is an export. It is called as the run's folder, "own:student"
of runs/own; ``training`` says what it was trained as.
``silc_bench.models.load`` imports this file when a run is asked for.

An export (`silc-bench export --to safetensors`) is one branch in one file: its tensors by the names
of ``Student``, and texts beside them: format, branch, the whole configuration and the tokenizer,
both as JSON. Nothing else is needed to load it.

The teacher is the EMA of the vision tower; its texts are read by the student's text tower, the only
one there is (SILC's teacher has no text tower, 2310.13355).

``NativeTower`` and ``NativeBlock`` show the vision tower of ``silc_bench.trainer.silc.towers`` in
the parts that ``silc_bench.models.patch_features.dense`` asks for: no class token, a MAP head, no
projection after it.

Shapes: B images or texts, L tokens, D embedding, N = h x w patches, W width (= D).
"""

from __future__ import annotations

import json
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from PIL import Image
from torch import Tensor

from silc_bench.errors import UserError, first_line, unknown_name
from silc_bench.models.interface import Training
from silc_bench.models.load import BRANCHES, is_folder
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
from silc_bench.models.weights.parts import label_of, split_part
from silc_bench.models.weights.read import (
    check_tensors,
    load_into,
    metadata_of,
    read_weights,
)
from silc_bench.models.weights.revision import revision_of
from silc_bench.trainer.checkpoints import file as checkpoint
from silc_bench.trainer.checkpoints.early import placed
from silc_bench.trainer.config.config import Config, from_dict, to_dict, without_heads
from silc_bench.trainer.config.identity import by_content, named, recipe_of
from silc_bench.trainer.config.presets import PRESETS, make_preset
from silc_bench.trainer.silc.student import SCALARS, TAUGHT, Student, with_scalars
from silc_bench.trainer.silc.teacher import Teacher
from silc_bench.trainer.silc.tokenizers import (
    AnyTokenizer,
    check_pairing,
    fingerprint_of,
    read_tokenizer,
)
from silc_bench.trainer.silc.towers import VisionTower, count_parameters

MAX_DEPTH = 1000  # blocks; the largest preset has 48
EXPORTED = "silc-bench"  # metadata "format" of an exported file
TOKENIZER_FILE = "tokenizer.json"  # beside weights alone
MEAN, STD = 0.5, 0.5
T = TypeVar("T")


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
        self.name = name
        self.training: Training | None = None  # of weights alone nobody knows it
        self.config = config
        self.vision = vision.eval()
        self.text = student.text.eval()
        self.tower = NativeTower(self.vision)
        self.dense_methods = self.tower.dense_methods
        self.lacking = {**self.tower.lacking, **(lacking or {})}

        self.embed_dim = config.vision.width
        self.image_size = config.vision.image_size
        self.patch_size = config.vision.patch_size
        self.num_params = count_parameters(vision) + count_parameters(student.text)
        self.feature_points = {"pooled": self.embed_dim, "mean_patch": self.embed_dim}

        # Two models can have the same weights and differ in these: no tensor's shape tells them.
        # The default GELU adds nothing to the hash.
        towers: dict[str, Any] = {"vision": config.vision, "text": config.text}
        settings: dict[str, Any] = {}
        for side, tower in towers.items():
            settings[f"{side}_heads"] = tower.num_heads
            if tower.gelu != "tanh":
                settings[f"{side}_gelu"] = tower.gelu
        self.revision = revision_of({"vision": vision, "text": student.text}, settings)
        gelus = {f"{side}_gelu": tower.gelu for side, tower in towers.items()}
        self.settings = {**settings, **gelus}  # for people: the default is said, too

        # The whole image, squashed to a square; pixels from -1 to 1.
        self.pipeline = ImagePipeline(self.image_size, mean=(MEAN,) * 3, std=(STD,) * 3)
        self.image_protocol = self.pipeline.as_dict()

    def preprocess(self, image: Image.Image) -> Tensor:
        """One image -> [3, H, W] fp32."""
        return self.pipeline(image)

    def encode_image(self, images: Tensor, point: str = "pooled") -> Tensor:
        """[B, 3, H, W] -> [B, D] fp32, not normalised."""
        if point == "mean_patch":
            return self.encode_dense(images, ("tokens",))["tokens"].mean(dim=(1, 2))
        return self.vision(images).float()

    def encode_dense(self, images: Tensor, methods: Sequence[str]) -> dict[str, Tensor]:
        """[B, 3, H, W] -> [B, h, w, D] by each of the methods."""
        check_methods(self.name, methods, self.dense_methods, self.lacking)
        return dense(self.tower, images, methods)

    def to(self, device: torch.device) -> Self:
        self.vision.to(device)
        self.text.to(device)
        return self


class NativeModel(NativeImageModel):
    """An ImageTextModel: both towers, with the tokenizer they were trained with."""

    def __init__(
        self,
        name: str,
        student: Student,
        vision: VisionTower,
        tokenizer: AnyTokenizer,
        training: Training | None = None,
    ):
        super().__init__(name, student, vision)
        self.training = training
        self.tokenizer = tokenizer
        self.log_scale = student.log_scale.item()
        self.logit_scale = student.log_scale.exp().item()
        self.logit_bias = student.logit_bias.item()

        # Two runs may have tokenizers of one kind whose merges were learnt on other captions.
        self.text_protocol = {
            "cleaning": tokenizer.cleaning,
            "length": self.config.text.context_length,
            "tokenizer": fingerprint_of(tokenizer),
        }

    def tokenize(self, texts: list[str]) -> Tensor:
        """B texts -> token ids [B, L]."""
        return self.tokenizer(texts)

    def token_lengths(self, texts: list[str]) -> list[int]:
        """Of each text, its tokens before it is cut, with the end of text."""
        return self.tokenizer.lengths(texts)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """[B, L] -> [B, D] fp32, not normalised."""
        return self.text(tokens).float()


def is_ours(path: Path) -> bool:
    """Whether a folder holds, or a file is, what `train` or `export` wrote, whole or damaged.

    Nothing is unpickled.
    """
    if path.is_dir():
        return is_folder(path) or bool(checkpoint.all_in(path))

    # Opening a pipe would wait until somebody writes into it.
    if not path.is_file():
        return False

    format_name = checkpoint.FORMAT.split("/")[0].encode()
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if not pickles:
                return False

            # The format comes first, so 1 MiB is enough: a file may claim to unpack to gigabytes.
            with archive.open(pickles[0]) as file:
                return format_name in file.read(2**20)
    except (OSError, ValueError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error):
        # No archive: an export, or a file of somebody else, whose reader says what is wrong.
        return is_exported(path)


def is_exported(path: Path) -> bool:
    """Whether a file says in its header that it is an export of a model trained here."""
    try:
        return path.is_file() and tensor_files.read_metadata(path).get("format") == EXPORTED
    except (OSError, ValueError, RecursionError):
        return False


def load(path: Path, branch: str | None = None) -> NativeModel:
    """A branch of a run's newest checkpoint, of a checkpoint file, or the one that was exported.

    Args:
        branch: of BRANCHES. None: the student, or the one that an exported file holds.

    Raises:
        UserError: no such file, a damaged or foreign one, an unknown branch, or parts that do not
            fit together: configuration, tokenizer, weights.
    """
    if is_exported(path):
        model = load_safetensors(path)
        assert model.training is not None
        if branch is not None and branch != model.training.branch:
            raise UserError(
                f"this export is the {model.training.branch} and holds nothing else",
                about=f"{path}:{branch}",
                fix=f"leave out :{branch}",
            )
        return model

    file = checkpoint.find(path)
    return from_payload(file, checkpoint.load(file), branch)


def from_payload(file: Path, payload: dict[str, Any], branch: str | None) -> NativeModel:
    """``load`` of a checkpoint file that has been read.

    Args:
        payload: ``checkpoint.load(file)``.
    """
    if branch is not None and branch not in BRANCHES:
        raise unknown_name("branch", branch, BRANCHES, about=file)
    if branch == "average" and "average" not in payload:
        raise UserError(
            "keeps no average of its weights",
            about=file,
            fix="train with --set average_momentum=0.999 for one",
        )

    config, tokenizer = _read_texts(file, payload)
    training = _training(config, branch or BRANCHES[0], payload["step"])
    name = f"{_name_of(file) or config.name}:{training.branch}"
    try:
        student = _empty(config)
        with torch.device("meta"):
            teacher = Teacher(student, config.distillation)
        student.load_state_dict(payload["student"], assign=True)
        teacher.load_state_dict(payload["teacher"], assign=True)

        # Values are checked here and not where a run is resumed: a run that diverged may have to be
        # looked into.
        for part in BRANCHES:
            if part in payload:
                values = payload[part].items()
                check_tensors(file, {f"{part}.{inner}": value for inner, value in values})

        # An average is of towers and scalars; the heads stay the student's.
        if branch == "average":
            student.load_state_dict(student.state_dict() | payload["average"], assign=True)
        vision = teacher.vision if branch == "teacher" else student.vision
        return NativeModel(name, student.float(), vision.float(), tokenizer, training)
    except (TypeError, OverflowError, RuntimeError) as error:
        raise _misfit(file, error) from None


def load_safetensors(path: Path) -> NativeModel:
    """An export: ``metadata`` and ``tensors`` of a model in one file.

    It has the same name, revision and embeddings as that model.

    Raises:
        UserError: damaged, not an export of a model trained here, or parts that do not fit
            together.
    """
    texts = metadata_of(path)
    is_known = texts.get("format") == EXPORTED and texts.get("branch") in BRANCHES
    is_known = is_known and re.fullmatch("[0-9]{1,18}", texts.get("step", "")) is not None
    if not is_known or not texts.get("name") or tensor_files.CHECKSUMS not in texts:
        raise UserError(
            "no export of this version (its header lacks its format, name, branch, step or"
            " checksums)",
            about=path,
            fix="export it again",
        )

    # Before the texts are read: it compares their checksums too.
    weights = read_weights(path)
    config, tokenizer = _read_texts(path, texts)
    training = _training(config, texts["branch"], int(texts["step"]))
    try:
        # An export holds no heads, but the model's configuration says what it was trained with.
        towers = _empty(without_heads(config))
        towers.load_state_dict(weights, assign=True)
        towers.config = config
        return NativeModel(texts["name"], towers.float(), towers.vision, tokenizer, training)
    except (TypeError, OverflowError, RuntimeError) as error:
        raise _misfit(path, error) from None


def load_state(path: Path, preset: str) -> NativeImageModel:
    """A student's weights alone, in the towers of a preset.

    The tokenizer is that of the file's header, else ``TOKENIZER_FILE`` beside it (what
    ``Tokenizer.to_json`` gives). Without either it is an image model, and ``lacking`` names the
    file to bring.

    Raises:
        UserError: an unknown preset, a damaged tokenizer, weights or a tokenizer that do not fit.
    """
    config = _towers_of(preset)
    tokenizer = None
    tokenizer_text = _tokenizer_of(path)
    if tokenizer_text is not None:
        texts = {"config": json.dumps(to_dict(config)), "tokenizer": tokenizer_text}
        config, tokenizer = _read_texts(path, texts)

    with torch.device("meta"):
        student = Student(config)
    weights = with_scalars(_without_taught(read_weights(path)))
    load_into(student, weights, f"checkpoint {path} as silc:{preset}")

    name = f"silc:{preset}/{label_of(path)}"
    if tokenizer is not None:
        return NativeModel(name, student, student.vision, tokenizer)
    bring = (
        f"weights without the tokenizer they were trained with: put it beside {path} as"
        f" {TOKENIZER_FILE} (the text `tokenizer` of the run's checkpoint), or export the run"
        " itself: silc-bench export RUN --to safetensors"
    )
    return NativeImageModel(name, student, student.vision, {"text": bring})


def _tokenizer_of(path: Path) -> str | None:
    """The JSON text of the tokenizer that belongs to a file or folder of weights."""
    in_header = metadata_of(path).get("tokenizer")
    place, _ = split_part(path)
    folder = place if place.is_dir() else place.parent
    file = folder / TOKENIZER_FILE
    if in_header is not None or not file.is_file():
        return in_header

    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"the tokenizer beside the weights cannot be read ({first_line(error)})",
            about=file,
            fix=f"bring {TOKENIZER_FILE} of the same run",
        ) from None


def fitting_presets(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Presets whose towers have exactly these tensors; heads are left out.

    Of presets with the same towers it names the first.
    """
    if "vision.patch.weight" not in shapes:
        return []

    # From the last preset to the first, so that the first keeps the place of equal towers.
    configs = [_towers_of(preset) for preset in reversed(PRESETS)]
    different = {(config.vision, config.text): config for config in configs}

    wanted_shapes = _without_taught(shapes)
    wanted_shapes |= {name: (1,) for name in SCALARS if name in shapes}  # an export has them as ()
    fitting = []
    for config in different.values():
        # Building a tower of the largest preset takes a while, on "meta" too.
        if config.vision.width != shapes["vision.patch.weight"][0]:
            continue
        with torch.device("meta"):
            state = Student(config).state_dict()
        if {name: tuple(value.shape) for name, value in state.items()} == wanted_shapes:
            fitting.append(config.preset)
    return fitting


def _without_taught(named: Mapping[str, T]) -> dict[str, T]:
    """Of tensors, or shapes, by the names of ``Student``: those of the towers and scalars."""
    return {name: value for name, value in named.items() if not name.startswith(TAUGHT)}


def _towers_of(preset: str) -> Config:
    return without_heads(make_preset(preset))


def tensors(model: NativeModel) -> dict[str, Tensor]:
    """The weights of an export: fp32, by the names of ``Student``, without its head."""
    weights: dict[str, Tensor] = {}
    for part, tower in {"vision": model.vision, "text": model.text}.items():
        for name, value in tower.state_dict().items():
            weights[f"{part}.{name}"] = value
    weights["log_scale"] = torch.tensor(model.log_scale)
    weights["logit_bias"] = torch.tensor(model.logit_bias)
    return weights


def metadata(model: NativeModel) -> dict[str, str]:
    """The texts of an export: all that it needs beside the weights, its name among them."""
    assert model.training is not None
    return {
        "format": EXPORTED,
        "name": model.name,
        "branch": model.training.branch,
        "step": str(model.training.step),
        "config": json.dumps(to_dict(model.config)),
        "tokenizer": model.tokenizer.to_json(),
    }


def _name_of(file: Path) -> str:
    """A run's name is its folder's, a checkpoint that lies alone is called as its file."""
    # The folder is resolved, so that "." has a name; the file is not, as a store of many files may
    # call what it links to by a hash.
    folder = file.parent.resolve()
    if not file.name.startswith("step_"):
        return file.stem
    return folder.parent.name if folder.name == "checkpoints" else folder.name


def _training(config: Config, branch: str, step: int) -> Training:
    return Training(
        preset=config.preset,
        objective=config.objective,
        branch=branch,
        data=named(config.data.source),
        seed=config.seed,
        step=step,
        recipe=recipe_of(config),
    )


def _empty(config: Config) -> Student:
    """A student to load tensors into.

    Nothing is allocated, and not much done, for sizes that only the configuration claims.
    """
    depth = max(config.vision.depth, config.text.depth)
    if depth > MAX_DEPTH:
        raise RuntimeError(f"towers of {depth:,} blocks; at most {MAX_DEPTH:,} are built")

    with torch.device("meta"):
        return Student(config)


def _misfit(file: Path, error: Exception) -> UserError:
    return UserError(
        f"its weights do not fit its own configuration ({first_line(error, 300)})",
        about=file,
        fix=checkpoint.COPY_AGAIN,
    )


def _read_texts(file: Path, texts: dict[str, Any]) -> tuple[Config, AnyTokenizer]:
    """Configuration and tokenizer from the texts beside the weights. Raises UserError.

    Where a checkpoint notes what ``--init`` or ``--tokenizer`` brought, the configuration says
    that, and so does that of an export: both names one method wherever those lay.
    """
    # What these say names no file: one place adds it.
    try:
        config = from_dict(_read_json(texts.get("config"), "config"))
        config = by_content(config, _read_json(texts.get("brought", "{}"), "brought"))
        tokenizer = read_tokenizer(texts.get("tokenizer", ""))
        check_pairing(tokenizer, config.text)
    except UserError as error:
        raise placed(error, file) from None
    return config, tokenizer


def _read_json(text: Any, about: str) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(
            f"is not JSON ({first_line(error)})", about=about, fix=checkpoint.COPY_AGAIN
        ) from None


class NativeTower:
    """The vision tower of one branch, a ``silc_bench.trainer.silc.towers.VisionTower``."""

    num_prefix = 0
    is_attention_pooled = True

    def __init__(self, vision: Any):
        self.vision = vision
        self.block = NativeBlock(vision.blocks[-1])

        joint, self.lacking = joint_methods(True, self.block, "Block")
        self.dense_methods = methods_of(len(vision.blocks), joint)

    def enter(self, images: Tensor, count: int) -> tuple[list[Tensor], None, tuple[int, int]]:
        """Tokens [B, N, W] that enter the last ``count`` blocks, no rotary positions, (h, w)."""
        # No more than count of them at a time: each is as large as a layer's activations.
        entered = [self.vision.embed(images)]
        for block in self.vision.blocks[:-1]:
            entered = [*entered, block(entered[-1])][-count:]

        patch_size = self.vision.patch_size
        height, width = images.shape[2:]
        return entered, None, (height // patch_size, width // patch_size)

    def last(self, tokens: Tensor, rope: None) -> Tensor:
        """[B, N, W] through the last block."""
        return self.vision.blocks[-1](tokens)

    def normed(self, patches: Tensor) -> Tensor:
        """[B, N, W] through the norm after the blocks."""
        return self.vision.norm(patches)

    def joint(self, patches: Tensor) -> Tensor:
        """[B, N, W] -> [B, N, D]: each patch pooled alone, so that it meets texts."""
        return self.vision.pool.per_patch(self.vision.norm(patches))


class NativeBlock:
    """A ``silc_bench.trainer.silc.towers.Block`` taken apart around its attention."""

    def __init__(self, block: Any):
        self.block = block

    def split(self, tokens: Tensor, rope: None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of tokens [B, N, W], by head."""
        attention = self.block.attention
        q, k, v = attention.qkv(self.block.norm1(tokens)).chunk(3, dim=-1)
        num_heads = attention.num_heads
        return heads_of(q, num_heads), heads_of(k, num_heads), heads_of(v, num_heads)

    def join(self, tokens: Tensor, values: Tensor) -> Tensor:
        """Values that were attended to, by head -> what the block adds to its tokens [B, N, W]."""
        return self.block.attention.out(merge_heads(values))

    def finish(self, tokens: Tensor, added: Tensor) -> Tensor:
        """The rest of the block, after attention has given ``added`` [B, N, W]."""
        tokens = tokens + added
        return tokens + self.block.mlp(self.block.norm2(tokens))
