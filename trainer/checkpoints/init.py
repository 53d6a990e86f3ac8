"""Where a run starts from other weights: ``silc-bench train --init CKPT``.

Flow: ``read_start(config)`` -> the source, loaded as ``silc-bench eval`` loads it, in our names
(``silc_bench.trainer.checkpoints.libraries`` for other libraries' models), compared with the
source's own library on images and texts, fitted to the run's configuration -> a ``Start`` ->
``Start.fill(student)``.

Towers, scale and bias are the source's, the tokenizer too. The head is the source's where that is a
run with a head of the same shape (its centre comes along), otherwise fresh; the optimiser is fresh;
the teacher starts as the student's copy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from silc_bench.errors import UserError, first_line
from silc_bench.models.adapters.huggingface.text import PROBES
from silc_bench.models.interface import ImageModel, ImageTextModel, Training
from silc_bench.models.load import find_path, kinds, load_model
from silc_bench.models.weights.revision import hash_of_tensors
from silc_bench.trainer.checkpoints import file as checkpoint
from silc_bench.trainer.checkpoints import model as native
from silc_bench.trainer.checkpoints.early import placed
from silc_bench.trainer.checkpoints.libraries.exchange import INSTEAD, Towers, unfit
from silc_bench.trainer.checkpoints.libraries.open_clip import of_open_clip
from silc_bench.trainer.checkpoints.libraries.transformers import of_big_vision, of_hf
from silc_bench.trainer.config.config import Config, changed, flatten, without_heads
from silc_bench.trainer.config.presets import PRESETS, make_preset
from silc_bench.trainer.silc.student import TAUGHT, Student
from silc_bench.trainer.silc.tokenizers import AnyTokenizer, fingerprint_of
from silc_bench.trainer.silc.towers import VisionTower

# By the name of the class in ``silc_bench.models.adapters``, so that none of them is imported.
READERS: dict[str, Callable[[Any], Towers]] = {
    "HfModel": of_hf,
    "OpenClipModel": of_open_clip,
    "BigVisionTextModel": of_big_vision,
}


def towers_of(model: ImageModel) -> Towers:
    """What a run can start from.

    Raises:
        UserError: a model that our towers do not represent exactly, or whose tokenizer a checkpoint
            cannot hold.
    """
    readers = (READERS.get(kind.__name__) for kind in type(model).__mro__)
    reader = next(filter(None, readers), None)
    if reader is None:
        lacking = getattr(model, "lacking", {}).get("text", "it reads no texts")
        raise UserError(
            f"{lacking}, and a run needs both towers and the tokenizer",
            about="its texts",
            fix=INSTEAD,
        )
    towers = reader(model)

    # Other pixels could be folded into the first layer, but the weights would be changed by that.
    pipeline: Any = model.pipeline
    if tuple(pipeline.mean) != (0.5,) * 3 or tuple(pipeline.std) != (0.5,) * 3:
        raise UserError(
            f"it was trained on pixels with mean {list(pipeline.mean)} and deviation"
            f" {list(pipeline.std)}, and a run gives its towers pixels from -1 to 1",
            about="its images",
            fix=INSTEAD,
        )

    # Another way to make images of one size only moves scores a little: noted, not refused.
    preprocessing = (pipeline.resize, pipeline.crop, pipeline.interpolation)
    if preprocessing == ("squash", "none", "bicubic"):
        return towers
    note = (
        f"its images were made by {' / '.join(preprocessing)} (resize / crop / interpolation);"
        " those of this run are measured squashed, whole and bicubic, so its scores may differ from"
        " the source's by that"
    )
    return replace(towers, note=note)


# What both tokenizers must read alike before a run begins.
READ = (
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
# Largest difference of an embedding over its largest number: fp32 sums in another order explain it,
# and nothing else does.
EXACT = 1e-4


# Fields of a configuration that a run takes from its start.
OF_WEIGHTS = ("vision.gelu", "text.gelu")

# What a run's towers need not share with its source.
FREE = ("vision.image_size", "vision.init_positions")


@dataclass(frozen=True)
class Start:
    """Weights for a run of one configuration, and what there is to say about them."""

    name: str  # of the source, with its revision
    content: str  # what it brings, in words that say nothing of where it lies
    weights: dict[str, Tensor]  # by the names of Student; with a head where that is taken over
    center: Tensor | None  # of the head's teacher
    tokenizer: AnyTokenizer
    said: list[str]  # sentences for people
    fields: dict[str, str]  # of the configuration, as the weights need them

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
        source = _read(config.init)
    except UserError as error:
        raise placed(error, f"--init {config.init}") from None
    towers = source.towers
    sentences = [f"starts from {source.name}"]
    if source.seed not in (None, config.seed):
        sentences.append(
            f"its seed is {source.seed} and this run's {config.seed}: --group-seeds goes by this"
            " run's, so start each seed from the first phase's run of that seed, or the spread over"
            " seeds is that of this phase alone"
        )

    # No size depends on it, and only the weights know which one they were trained with.
    fields = {path: _config_field(_config_of(towers), path) for path in OF_WEIGHTS}
    taken = {path: form for path, form in fields.items() if form != _config_field(config, path)}
    if taken:
        config = changed(config, taken)
        words = ", ".join(f"{path}={form}" for path, form in taken.items())
        sentences.append(f"{words} as its towers were trained with")
    _check_sizes(config, towers, source.name)

    if towers.note:
        sentences.append(towers.note)
    weights = {**towers.weights, **_scalars(config, towers.weights, sentences)}

    # The size of the image is the one size that may differ: positions can be interpolated.
    theirs = towers.vision.image_size // towers.vision.patch_size
    ours = config.vision.image_size // config.vision.patch_size
    if theirs != ours:
        weights["vision.positions"] = _resized(config, weights["vision.positions"], theirs, ours)
        sentences.append(
            f"its positions, {theirs} x {theirs} for images of {towers.vision.image_size} px,"
            f" are interpolated to {ours} x {ours} for {config.vision.image_size} px"
        )
    if config.probe.every == 0:
        sentences.append(UNMEASURED)

    center = None
    content = source.content
    if config.distillation.weight > 0 and _takes_head(config, source.head, sentences):
        weights |= source.head
        center = source.center
        content += ", with its head"
    return Start(source.name, content, weights, center, towers.tokenizer, sentences, fields)


def _config_field(config: Config, path: str) -> str:
    return str(flatten(config)[path])


# ---- the source ----


class _Source(NamedTuple):
    towers: Towers
    head: dict[str, Tensor]  # by Student's names; empty where the source has none
    center: Tensor | None  # of the head's teacher
    name: str  # with its revision
    content: str  # of all but the head, as ``Start`` has it
    seed: int | None = None  # of a run of ours


def _read(spec: str) -> _Source:
    """Raises UserError, without the name of the option."""
    if spec.partition(":")[0] not in kinds():
        path, branch = find_path(spec)
        if native.is_ours(path):
            return _of_run(path, branch)

    model = load_model(spec)
    towers = towers_of(model)
    assert isinstance(model, ImageTextModel), "towers_of refuses what does not read"
    _prove(model, towers)

    # By our names, because those of a library change with its version.
    weights, tokenizer = hash_of_tensors(towers.weights), fingerprint_of(towers.tokenizer)
    content = f"weights {weights}, tokenizer {tokenizer}"
    return _Source(towers, {}, None, f"{model.name}@{model.revision[:8]}", content)


def _of_run(path: Path, branch: str | None) -> _Source:
    head: dict[str, Tensor] = {}
    center = None
    if native.is_exported(path):
        model = native.load(path, branch)
    else:
        file = checkpoint.find(path)
        payload = checkpoint.load(file)
        model = native.from_payload(file, payload, branch)

        # An average has no head of its own: the student's goes with it.
        part = payload["teacher" if branch == "teacher" else "student"]
        head = {name: value.float() for name, value in part.items() if name.startswith("head.")}
        center = payload["teacher"].get("center")

    weights = native.tensors(model)
    # A softmax loss leaves the bias where it was: it was never trained.
    if not model.config.contrastive.has_bias:
        weights["logit_bias"] = torch.zeros(())

    towers = Towers(model.config.vision, model.config.text, weights, model.tokenizer)
    name = f"{model.name}@{model.revision[:8]}"
    training = model.training
    assert training is not None, "a run's checkpoint and an export say it"
    return _Source(towers, head, center, name, _method_of(training), training.seed)


def _method_of(training: Training) -> str:
    """What a run of ours is but its seed: seeds of both phases are seeds of one method."""
    return (
        f"{training.preset}-{training.objective}:{training.branch}, data {training.data}, step"
        f" {training.step}, recipe {training.recipe}"
    )


def _prove(model: Any, towers: Towers) -> None:
    """The same token ids and embeddings as the source's own library gives.

    Raises:
        UserError: they differ, whatever the reason.
    """
    # On "meta" nothing is allocated; assign puts the source's tensors in place without a copy.
    with torch.device("meta"):
        student = Student(_config_of(towers))
    try:
        student.load_state_dict(towers.weights, assign=True)
    except RuntimeError as error:
        raise unfit(f"other weights than ours ({first_line(error)})") from None
    student.eval()

    texts = list(READ)
    their_tokens = model.tokenize(texts)
    our_tokens = towers.tokenizer(texts)
    if not torch.equal(our_tokens, their_tokens):
        row = int((our_tokens != their_tokens).any(dim=1).int().argmax())
        ours = our_tokens[row][:8].tolist()
        theirs = their_tokens[row][:8].tolist()
        raise UserError(
            f"no checkpoint can keep it: {texts[row]!r:.60} would be read as {ours} ..., not"
            f" {theirs} ...",
            about="its tokenizer",
            fix="bring its tokenizer.json, or start from another form of the same model",
        )

    # Noise over the whole range of pixels, -1 to 1, the same in every run.
    size = towers.vision.image_size
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, size, size, generator=generator) * 2 - 1
    with torch.no_grad():
        pairs = {
            "images": (student.vision(images), model.encode_image(images)),
            "texts": (student.text(their_tokens), model.encode_text(their_tokens)),
        }
    for kind, (ours, theirs) in pairs.items():
        difference = float((ours - theirs).abs().max() / theirs.abs().max())

        # "not <" instead of ">=": a NaN is refused too.
        if not difference < EXACT:
            raise UserError(
                f"a run's towers give others (by {difference:.1e} of the largest number; rounding"
                " explains 1e-6), so it is another architecture",
                about=f"its embeddings of {kind}",
                fix=INSTEAD,
            )


def _config_of(towers: Towers) -> Config:
    """A configuration with towers of these sizes, and without a head."""
    config = replace(make_preset("b16"), vision=towers.vision, text=towers.text)
    return without_heads(config)


# ---- what of it fits the run ----


def _check_sizes(config: Config, towers: Towers, name: str) -> None:
    """Every size but that of the images must be the run's.

    Raises:
        UserError: it names the differences and the options that remove them.
    """
    theirs = _sizes(_config_of(towers))
    ours = _sizes(config)
    differing = _misfits(theirs, ours)
    if not differing:
        return
    differences = [f"{path} {theirs[path]} there and {ours[path]} here" for path in differing]

    # The shortest command: the preset that is nearest to the source, where it is nearer than ours.
    misfits = {preset: _misfits(theirs, _sizes(make_preset(preset))) for preset in PRESETS}
    nearest = min(misfits, key=lambda preset: len(misfits[preset]))
    options = []
    if len(misfits[nearest]) < len(differing):
        options.append(f"--preset {nearest}")
        differing = misfits[nearest]
    options += [f"--set {path}={theirs[path]}" for path in differing]

    raise UserError(
        f"{name} has other towers than this run: {', '.join(differences)}",
        about=f"--init {config.init}",
        fix=f"use {' '.join(options)}",
    )


def _sizes(config: Config) -> dict[str, Any]:
    """Fields of both towers by their paths, without the image's size.

    Nor what positions start as: the source brings its own.
    """
    return {
        path: value
        for path, value in flatten(config).items()
        if path.startswith(("vision.", "text.")) and path not in FREE
    }


def _misfits(theirs: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    return [path for path in theirs if theirs[path] != ours[path]]


def _scalars(config: Config, weights: dict[str, Tensor], sentences: list[str]) -> dict[str, Tensor]:
    """The bias that this run's loss starts with; the scale is the source's."""
    scale, highest = float(weights["log_scale"].exp()), config.contrastive.max_scale
    if 0 < highest < scale:
        sentences.append(
            f"its scale of the logits, {scale:.5g}, comes down to contrastive.max_scale={highest:g}"
            " after the first step"
        )
    bias = weights["logit_bias"]

    # In a softmax it cancels, and would be a parameter without a gradient.
    if not config.contrastive.has_bias:
        return {"logit_bias": torch.zeros(())}

    # 0: the source's loss was a softmax, or it was never trained.
    init_bias = config.contrastive.init_bias
    if float(bias) == 0:
        sentences.append(
            f"it has no bias, which the sigmoid loss needs: that starts at init_bias={init_bias:g}"
        )
        return {"logit_bias": torch.tensor(init_bias)}
    return {}


def _resized(config: Config, positions: Tensor, theirs: int, ours: int) -> Tensor:
    """[1, theirs^2, W] -> [1, ours^2, W], as the tower itself does for images of another size."""
    image_size = theirs * config.vision.patch_size
    with torch.device("meta"):
        tower = VisionTower(replace(config.vision, image_size=image_size))
    tower.positions = nn.Parameter(positions)
    return tower.positions_for(ours, ours).detach().contiguous()


def _takes_head(config: Config, head: dict[str, Tensor], sentences: list[str]) -> bool:
    if not head:
        sentences.append("its head for self-distillation starts afresh: the source has none")
        return False

    with torch.device("meta"):
        ours = Student(config).state_dict()
    our_shapes = {name: value.shape for name, value in ours.items() if name.startswith("head.")}
    if {name: value.shape for name, value in head.items()} == our_shapes:
        sentences.append("its head for self-distillation and the centre are taken over")
        return True

    rows, columns = head["head.prototypes"].shape
    distillation = config.distillation
    sentences.append(
        f"its head for self-distillation has another shape ({rows:,} prototypes of {columns}) than"
        f" this run's ({distillation.num_prototypes:,} of {distillation.bottleneck_dim})"
        " and starts afresh"
    )
    return False
