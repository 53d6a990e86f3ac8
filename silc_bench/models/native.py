"""Models trained here: RUN or RUN/checkpoints/step_N.pt, with ``:student`` (the default) or ``:teacher``.

The teacher is the EMA of the vision tower; its texts are read by the student's text tower, the only one there is (SILC's
teacher has no text tower, 2310.13355). The only place where the evaluation imports the trainer, and only when asked.

Shapes: B pictures or texts, L tokens, D embedding, h x w patches.
"""

from __future__ import annotations

import hashlib
import json
import textwrap
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from silc_bench.errors import UserError, unknown_name
from silc_bench.models.images import ImagePipeline
from silc_bench.models.revision import revision_of
from trainer import checkpoint
from trainer.config import TextConfig, from_dict
from trainer.model import Student, VisionTower, count_parameters
from trainer.teacher import Teacher
from trainer.tokenizer import Tokenizer

BRANCHES = ("student", "teacher")
MEAN, STD = 0.5, 0.5


class NativeModel:
    """A DenseModel over one branch of a checkpoint."""

    def __init__(self, name: str, student: Student, vision: VisionTower, tokenizer: Tokenizer):
        config = student.config
        self.name = name
        self.vision, self.text, self.tokenizer = vision.eval(), student.text.eval(), tokenizer
        self.embed_dim = config.vision.width
        self.image_size = config.vision.image_size
        self.patch_size = config.vision.patch_size
        self.num_params = count_parameters(vision) + count_parameters(student.text)
        self.logit_scale = student.log_scale.exp().item()
        self.logit_bias = student.logit_bias.item()
        heads = {"vision_heads": config.vision.num_heads, "text_heads": config.text.num_heads}  # no weight tells them
        self.revision = revision_of({"vision": vision, "text": student.text}, heads)
        self.feature_points = {"pooled": self.embed_dim, "mean_patch": self.embed_dim}
        self.pipeline = ImagePipeline(self.image_size, mean=(MEAN,) * 3, std=(STD,) * 3)  # the whole picture, squashed
        self.image_protocol = self.pipeline.as_dict()
        self.text_protocol = {
            "cleaning": tokenizer.cleaning,
            "length": config.text.context_length,
            "tokenizer": hashlib.sha256(tokenizer.to_json().encode()).hexdigest()[:16],
        }

    def preprocess(self, image: Image.Image) -> Tensor:
        return self.pipeline(image)

    def tokenize(self, texts: list[str]) -> Tensor:
        return self.tokenizer(texts)

    def encode_image(self, images: Tensor, point: str = "pooled") -> Tensor:
        if point == "mean_patch":
            return self.encode_dense(images, joint=False).mean(dim=(1, 2))
        return self.vision(images).float()

    def encode_text(self, tokens: Tensor) -> Tensor:
        return self.text(tokens).float()

    def encode_dense(self, images: Tensor, joint: bool) -> Tensor:
        return self.vision.dense(images, joint).float()

    def to(self, device: torch.device) -> NativeModel:
        self.vision.to(device)
        self.text.to(device)
        return self


def is_ours(path: Path) -> bool:
    """Whether a folder holds, or a file is, a checkpoint of `silc-bench train`, whole or damaged; nothing is unpickled."""
    if path.is_dir():
        return bool(checkpoint.all_in(path) or list(path.glob("step_*.pt")))
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            return bool(pickles) and checkpoint.FORMAT.split("/")[0].encode() in archive.read(pickles[0])
    except (OSError, ValueError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error):
        return False  # whatever it is, its reader says so


def load(path: Path, branch: str = "student") -> NativeModel:
    """The student or teacher of a run's newest checkpoint, or of a checkpoint file.

    Raises:
        UserError: no such file, a damaged or foreign one, an unknown branch, or parts that do not fit together:
            configuration, tokenizer, weights.
    """
    if branch not in BRANCHES:
        raise unknown_name("branch", branch, BRANCHES)
    file = checkpoint.find(path)
    payload = checkpoint.load(file)
    try:
        config = from_dict(_read_json(payload["config"]))
        tokenizer = Tokenizer.from_json(payload["tokenizer"])
        _check_pairing(tokenizer, config.text)
    except UserError as error:
        raise UserError(f"checkpoint {file}: {error}") from None
    try:
        with torch.device("meta"):  # nothing is allocated for sizes that only the file claims
            student = Student(config)
            teacher = Teacher(student, config.distillation)
        student.load_state_dict(payload["student"], assign=True)
        teacher.load_state_dict(payload["teacher"], assign=True)
        vision = student.vision if branch == "student" else teacher.vision
        return NativeModel(f"{config.name}:{branch}", student.float(), vision.float(), tokenizer)
    except (TypeError, RuntimeError) as error:
        reason = textwrap.shorten(str(error), 300, placeholder=" ...")
        raise UserError(f"checkpoint {file}: its weights do not fit its own configuration ({reason})") from None


def _read_json(text: Any) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"its config is not JSON ({error})") from None


def _check_pairing(tokenizer: Tokenizer, text: TextConfig) -> None:
    if tokenizer.context_length != text.context_length or tokenizer.vocab_size > text.vocab_size:
        raise UserError(
            f"its tokenizer makes {tokenizer.context_length} tokens of {tokenizer.vocab_size} kinds,"
            f" its text tower reads {text.context_length} of {text.vocab_size}"
        )
