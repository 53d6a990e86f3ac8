"""Where a run starts from other weights: ``silc-bench train --init CKPT``.

Flow: ``read_start(config)`` -> the source, loaded as ``silc-bench eval`` loads it, in our names
(``silc_bench.trainer.checkpoints.transformers`` for other libraries' models), proved on pictures
and texts, fitted to the run's configuration -> a ``Start`` -> ``Start.fill(student)``.

Towers, scale and bias are the source's, the tokenizer too. The head is the source's where that is a
run with a head of the same shape (its centre comes along), otherwise fresh; the optimiser is fresh;
the teacher starts as the student's copy.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from silc_bench.errors import UserError
from silc_bench.models.adapters.huggingface.text import PROBES
from silc_bench.models.interface import ImageModel, ImageTextModel
from silc_bench.models.load import find_path, load_model
from silc_bench.trainer.checkpoints import file as checkpoint
from silc_bench.trainer.checkpoints import model as native
from silc_bench.trainer.checkpoints.exchange import INSTEAD, Towers
from silc_bench.trainer.checkpoints.open_clip import of_open_clip
from silc_bench.trainer.checkpoints.transformers import _of_big_vision, _of_hf
from silc_bench.trainer.config.config import Config
from silc_bench.trainer.config.presets import PRESETS, make_preset
from silc_bench.trainer.silc.student import TAUGHT, Student
from silc_bench.trainer.silc.tokenizers import AnyTokenizer
from silc_bench.trainer.silc.towers import VisionTower


def towers_of(model: ImageModel) -> Towers:
    """What a run can start from.

    Raises:
        UserError: a model that our towers do not represent exactly, or whose tokenizer a checkpoint
        cannot hold.
    """
    from silc_bench.models.adapters.big_vision import BigVisionModel, BigVisionTextModel
    from silc_bench.models.adapters.huggingface.model import HfModel
    from silc_bench.models.adapters.open_clip.model import OpenClipModel

    if isinstance(model, HfModel):
        found = _of_hf(model)
    elif isinstance(model, OpenClipModel):
        found = of_open_clip(model)
    elif isinstance(model, BigVisionTextModel):
        found = _of_big_vision(model)
    elif isinstance(model, BigVisionModel):
        raise UserError(f"a run needs both towers and the tokenizer: {model.lacking['text']}")
    else:
        raise UserError(f"it reads no texts, and a run learns from pictures with texts; {INSTEAD}")
    pipeline: Any = model.pipeline
    if tuple(pipeline.mean) != (0.5,) * 3 or tuple(pipeline.std) != (0.5,) * 3:
        raise UserError(
            f"it was trained on pixels with mean {list(pipeline.mean)} and deviation {list(pipeline.std)}, a run here gives its"
            f" towers pixels from -1 to 1; {INSTEAD}"
        )
    theirs = (pipeline.resize, pipeline.crop, pipeline.interpolation)
    if theirs == ("squash", "none", "bicubic"):
        return found
    return replace(
        found,
        note=f"its pictures were made by {' / '.join(theirs)} (resize / crop / interpolation); those of this run are measured"
        " squashed, whole and bicubic, so its scores may differ from the source's by that",
    )


READ = (  # what both tokenizers must read alike before a run begins
    *PROBES,
    "a text that is far too long " * 40,
    "snake_case, <eos> </s> <pad> & &amp;",
    "two  dogs\tand\n3.14 cats",
    "\u0130stanbul na\u00efve \u03a3\u038a\u03a3\u03a5\u03a6\u039f\u03a3",
)
UNMEASURED = (
    "whether it keeps what it can do without training is not measured; "
    "--set probe.every=500 does, and warns"
)
# largest difference of an embedding over its largest number: fp32 in another order, and nothing
# else
EXACT = 1e-4


@dataclass(frozen=True)
class Start:
    """Weights for a run of one configuration, and what there is to say about them."""

    name: str  # of the source, with its revision
    weights: dict[str, Tensor]  # by the names of Student; with a head where that is taken over
    center: Tensor | None  # of the head's teacher
    tokenizer: AnyTokenizer
    said: list[str] = field(default_factory=list)  # sentences for people

    def fill(self, student: Student) -> None:
        """Every parameter but those of fresh heads and the mask token, which stay as they were."""
        missing, unexpected = student.load_state_dict(self.weights, strict=False)
        assert not unexpected, unexpected
        assert all(name.startswith(TAUGHT) for name in missing), missing


def read_start(config: Config) -> Start:
    """``config.init`` as weights for ``config``.

    Raises:
        UserError: no such checkpoint; a model that our towers do not represent exactly; other sizes
        than the run's.
    """
    try:
        towers, head, center, name = _read(config.init)
    except UserError as error:
        raise UserError(f"--init {config.init}: {error}") from None
    _check_sizes(config, towers, name)
    said = [f"starts from {name}", *([towers.note] if towers.note else [])]
    weights = {**towers.weights, **_scalars(config, towers.weights, said)}
    grid = towers.vision["image_size"] // towers.vision["patch_size"]
    wanted = config.vision.image_size // config.vision.patch_size
    if grid != wanted:
        weights["vision.positions"] = _resized(config, weights["vision.positions"], grid, wanted)
        said.append(
            f"its positions, {grid} x {grid} for pictures of {towers.vision['image_size']} px, are interpolated to {wanted} x"
            f" {wanted} for {config.vision.image_size} px"
        )
    if config.probe.every == 0:
        said.append(UNMEASURED)
    if config.distillation.weight > 0:
        is_taken = _takes_head(config, head, said)
        weights |= head if is_taken else {}
        center = center if is_taken else None
    return Start(
        name, weights, center if config.distillation.weight > 0 else None, towers.tokenizer, said
    )


# ---- the source ----


def _read(spec: str) -> tuple[Towers, dict[str, Tensor], Tensor | None, str]:
    """(towers, head by Student's names or {}, its centre, name with revision)."""
    if spec.partition(":")[0] not in ("open_clip", "hf", "timm", "big_vision"):
        path, branch = find_path(spec)
        if native.is_ours(path):
            return _of_run(path, branch)
    model = load_model(spec)
    towers = towers_of(model)
    assert isinstance(model, ImageTextModel), "towers_of refuses what does not read"
    _prove(model, towers)
    return towers, {}, None, f"{model.name}@{model.revision[:8]}"


def _of_run(path: Any, branch: str | None) -> tuple[Towers, dict[str, Tensor], Tensor | None, str]:
    head: dict[str, Tensor] = {}
    center = None
    if native.is_exported(path):
        model = native.load(path, branch)
    else:
        file = checkpoint.find(path)
        payload = checkpoint.load(file)
        model = native.from_payload(file, payload, branch)
        part = payload[
            "teacher" if branch == "teacher" else "student"
        ]  # an average has no head of its own
        head = {name: value.float() for name, value in part.items() if name.startswith("head.")}
        center = payload["teacher"].get("center")
    vision, text = dataclasses.asdict(model.config.vision), dataclasses.asdict(model.config.text)
    weights = native.tensors(model)
    if model.config.contrastive.loss != "sigmoid":
        weights["logit_bias"] = torch.zeros(())
    return (
        Towers(vision, text, weights, model.tokenizer),
        head,
        center,
        f"{model.name}@{model.revision[:8]}",
    )


def _prove(model: Any, towers: Towers) -> None:
    """The same token ids and embeddings as the source's own library gives.

    Raises:
        UserError: they differ, whatever the reason.
    """
    with torch.device("meta"):
        student = Student(_config_of(towers))
    student.load_state_dict(towers.weights, strict=False, assign=True)
    student.eval()
    texts = list(READ)
    tokens = model.tokenize(texts)
    mine = towers.tokenizer(texts)
    if not torch.equal(mine, tokens):
        row = int((mine != tokens).any(dim=1).int().argmax())
        raise UserError(
            f"its tokenizer cannot be kept in a checkpoint: {texts[row]!r:.60} would be read as {mine[row][:8].tolist()} ...,"
            f" not {tokens[row][:8].tolist()} ...; bring its tokenizer.json, or start from another form of the same model"
        )
    size = towers.vision["image_size"]
    pictures = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        pairs = {
            "pictures": (student.vision(pictures), model.encode_image(pictures)),
            "texts": (student.text(tokens), model.encode_text(tokens)),
        }
    for what, (ours, theirs) in pairs.items():
        error = float((ours - theirs).abs().max() / theirs.abs().max())
        if not error < EXACT:
            raise UserError(
                f"its embeddings of {what} come out otherwise in the towers of a run (by {error:.1e} of the largest number,"
                " rounding explains 1e-6), so it is another architecture; nothing is approximated here"
            )


def _config_of(towers: Towers) -> Config:
    """Towers of these sizes alone."""
    base = make_preset("b16")
    return dataclasses.replace(
        base,
        vision=dataclasses.replace(base.vision, **towers.vision),
        text=dataclasses.replace(base.text, **towers.text),
        distillation=dataclasses.replace(base.distillation, weight=0.0),
    )


# ---- what of it fits the run ----


def _check_sizes(config: Config, towers: Towers, name: str) -> None:
    """Every size but that of the pictures must be the run's."""
    theirs = _sizes(towers.vision, towers.text)
    ours = _sizes(dataclasses.asdict(config.vision), dataclasses.asdict(config.text))
    differ = _misfits(theirs, ours)
    if not differ:
        return
    found = ", ".join(f"{path} {theirs[path]} there and {ours[path]} here" for path in differ)
    misfits = {preset: _misfits(theirs, _sizes_of_preset(preset)) for preset in PRESETS}
    nearest = min(misfits, key=lambda preset: len(misfits[preset]))
    words = [f"--set {path}={theirs[path]}" for path in differ]
    if len(misfits[nearest]) < len(differ):
        words = [
            f"--preset {nearest}",
            *(f"--set {path}={theirs[path]}" for path in misfits[nearest]),
        ]
    raise UserError(
        f"--init {config.init}: {name} has other towers than this run: {found}; use {' '.join(words)}"
    )


def _sizes(vision: dict[str, Any], text: dict[str, Any]) -> dict[str, Any]:
    sizes = {f"vision.{name}": value for name, value in vision.items() if name != "image_size"}
    return sizes | {f"text.{name}": value for name, value in text.items()}


def _misfits(theirs: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    return [path for path in theirs if theirs[path] != ours[path]]


def _sizes_of_preset(preset: str) -> dict[str, Any]:
    config = make_preset(preset)
    return _sizes(dataclasses.asdict(config.vision), dataclasses.asdict(config.text))


def _scalars(config: Config, weights: dict[str, Tensor], said: list[str]) -> dict[str, Tensor]:
    """The bias that this run's loss starts with; the scale is the source's."""
    bias = weights["logit_bias"]
    if config.contrastive.loss == "softmax":
        return {
            "logit_bias": torch.zeros(())
        }  # it cancels, and would be a parameter without a gradient
    if float(bias) == 0:  # of a softmax, or never trained
        said.append(
            f"it has no bias, which the sigmoid loss needs: that starts at init_bias={config.contrastive.init_bias:g}"
        )
        return {"logit_bias": torch.tensor(config.contrastive.init_bias)}
    return {}


def _resized(config: Config, positions: Tensor, grid: int, wanted: int) -> Tensor:
    """[1, grid^2, W] -> [1, wanted^2, W], as the tower itself does for pictures of another size."""
    source = dataclasses.replace(config.vision, image_size=grid * config.vision.patch_size)
    with torch.device("meta"):
        tower = VisionTower(source)
    tower.positions = nn.Parameter(positions)
    return tower.positions_for(wanted, wanted).detach().contiguous()


def _takes_head(config: Config, head: dict[str, Tensor], said: list[str]) -> bool:
    if not head:
        said.append("its head for self-distillation starts afresh: the source has none")
        return False
    with torch.device("meta"):
        wanted = {
            name: value.shape
            for name, value in Student(config).state_dict().items()
            if name.startswith("head.")
        }
    if {name: value.shape for name, value in head.items()} == wanted:
        said.append("its head for self-distillation and the centre are taken over")
        return True
    rows, columns = head["head.prototypes"].shape
    said.append(
        f"its head for self-distillation has another shape ({rows:,} prototypes of {columns}) than this run's"
        f" ({config.distillation.num_prototypes:,} of {config.distillation.bottleneck_dim}) and starts afresh"
    )
    return False
