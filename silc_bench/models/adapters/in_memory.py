"""A module in memory as a model that can be measured: ``silc_bench.wrap``.

Flow: ``wrap(module, preprocess, tokenizer, name="mine")`` -> how it takes images (``pipeline_of``)
-> its kind: a model of open_clip, transformers or timm is run as its checkpoints are, with patch
features; any other module by its own ``encode_image`` and ``encode_text``.

The revision is the hash of the weights, taken anew by ``refreshed`` before each evaluation: a model
that is trained on between two of them is two rows. The module stays as it is: on its device, and in
training mode between the calls.

Shapes: B images or texts, S pixels a side, L tokens, D embedding.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from silc_bench.errors import UserError, first_line
from silc_bench.models.adapters.huggingface.text import PROBES
from silc_bench.models.adapters.library import digest, explained
from silc_bench.models.preprocessing import INTERPOLATIONS, ImagePipeline
from silc_bench.models.weights.revision import revision_of
from silc_bench.system.files import printable
from silc_bench.system.terminal import say

Preprocess = Callable[[Image.Image], Any]
ABOUT = "wrap"
# widths and heights of the images on which two ways to prepare them are compared: wide, high, a
# square, and sides that leave an odd margin
PROBE_SIZES = ((67, 41), (40, 93), (64, 64), (500, 375))
NO_ENCODER = "give a module with encode_image(images) -> [B, D], or an object around it that has it"
NO_STEPS = (
    "its preprocess is no chain of resize, centre crop and normalise, so no windows can be cut"
)
NO_PATCHES = "of modules in memory only those of open_clip, transformers and timm give them"
NO_TOKENIZER = "no tokenizer was given: wrap(model, preprocess, tokenizer)"
CALL_IT = (
    "give a function: lambda texts: tokenizer(texts, padding='max_length', max_length=64,"
    " truncation=True, return_tensors='pt').input_ids"
)
# the functions of a model that run its network
CALLS = ("encode_image", "encode_text", "encode_dense")


class InMemoryModel:
    """An ImageModel around a module; also an ImageTextModel or a DenseModel where it can be.

    What it cannot do, and why, stands in ``lacking``.
    """

    name: str
    revision: str  # 16 hex digits
    embed_dim: int  # D
    image_size: int  # S
    num_params: int
    feature_points: dict[str, int]
    pipeline: Any
    image_protocol: dict[str, Any]
    lacking: Mapping[str, str]
    preprocess: Callable[[Image.Image], Tensor]
    encode_image: Callable[..., Tensor]

    def __init__(self, module: nn.Module, build: Callable[[], Any]) -> None:
        """``build``: makes the model that runs ``module``, with its revision of this moment."""
        self.module = module
        self._build = build
        self._take(build())

    def _take(self, inner: Any) -> None:
        # set, not looked up on demand: whoever asks what a model can do looks at its attributes
        for name in dir(inner):
            if not name.startswith("_") and name not in ("to", *CALLS):
                setattr(self, name, getattr(inner, name))
        for name in CALLS:
            if hasattr(inner, name):
                setattr(self, name, partial(self._called, getattr(inner, name)))

    def _called(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with _evaluating(self.module):
            return call(*args, **kwargs)

    def refreshed(self) -> InMemoryModel:
        """The same model, whose revision is that of its weights now."""
        self._take(self._build())
        return self

    @property
    def device(self) -> torch.device:
        """Where its weights lie."""
        return _device_of(self.module)

    def to(self, device: torch.device) -> InMemoryModel:
        self.module.to(device)
        return self

    def __repr__(self) -> str:
        can = ["images"]
        can += ["text"] if hasattr(self, "encode_text") else []
        can += ["patch features"] if hasattr(self, "encode_dense") else []
        size = f"{self.num_params:,} parameters, {self.image_size} px"
        return f"<{self.name!r} @{self.revision[:8]} in memory: {size}, {', '.join(can)}>"


def wrap(
    model: nn.Module, preprocess: Preprocess | Any, tokenizer: Any = None, *, name: str = ""
) -> InMemoryModel:
    """A module in memory -> a model that ``evaluate`` measures.

    Args:
        model: of open_clip, of transformers (clip, siglip, siglip2, altclip, chinese_clip), of timm
            (images alone, without its classifier), or any module with
            ``encode_image(images [B, 3, S, S]) -> [B, D]`` and, to read text,
            ``encode_text(tokens [B, L]) -> [B, D]``. Its weights are fp32; they are not copied.
        preprocess: an image -> [3, S, S] fp32, for example the one that open_clip or timm made with
            the model; or a processor of transformers.
        tokenizer: a list of texts -> [B, L] int64; or a tokenizer of transformers with its model.
            Without one the model is measured on images alone.
        name: what records and tables call it; the class of ``model`` if empty. Another architecture
            on the same weights needs another name.

    Raises:
        UserError: a module, preprocess or tokenizer that cannot be used, with what to give instead.
    """
    module = _without_shells(model)
    name = printable(name or type(module).__name__)
    about = f"{ABOUT} {name!r}"
    if not isinstance(module, nn.Module):
        problem = f"a {type(module).__name__} is no torch.nn.Module"
        raise UserError(problem, about=about, fix="give the module; a path or spec needs no wrap")
    types = {weight.dtype for weight in module.parameters() if weight.is_floating_point()}
    if types != {torch.float32}:
        given = ", ".join(sorted(str(one).removeprefix("torch.") for one in types)) or "missing"
        problem = f"its weights are {given}"
        raise UserError(problem, about=about, fix="give model.float(); precision='bf16' casts")

    if _is_of(module, "transformers") and _is_of(preprocess, "transformers"):
        build = partial(_of_transformers, module, preprocess, tokenizer, name, about)
    else:
        pipeline = pipeline_of(preprocess, about)
        is_open_clip = _is_of(module, "open_clip") and hasattr(module, "visual")
        is_tokenized = tokenizer is None or _is_of(tokenizer, "open_clip")
        if is_open_clip and is_tokenized and isinstance(pipeline, ImagePipeline):
            build = partial(_of_open_clip, module, pipeline, tokenizer, name, about)
        elif _is_of(module, "timm") and isinstance(pipeline, ImagePipeline):
            build = partial(_of_timm, module, pipeline, name, about)
        else:
            build = partial(_Plain, module, pipeline, tokenizer, name, about)

    wrapped = InMemoryModel(module, build)
    for word in ("text", "dense"):
        if word in wrapped.lacking:
            what = "text" if word == "text" else "patch features"
            say(f"{name} gives no {what}: {wrapped.lacking[word]}")
    return wrapped


# ---- the kinds ----


def _of_open_clip(
    module: Any, pipeline: ImagePipeline, tokenizer: Any, name: str, about: str
) -> Any:
    from silc_bench.models.adapters.loaded import DenseLoadedModel
    from silc_bench.models.adapters.open_clip.model import OpenClipModel, parts_of
    from silc_bench.models.adapters.open_clip.towers import tower_of

    try:
        tower = tower_of(module.visual)
    except UserError as error:
        raise UserError(error.problem, about=about, fix=error.fix) from None
    with _evaluating(module), torch.inference_mode():
        pixels = torch.zeros(1, 3, pipeline.size, pipeline.size, device=_device_of(module))
        width = module.encode_image(pixels).shape[-1]
    settings = {"embed_dim": width, **_settings(module)}
    if tokenizer is not None:
        return OpenClipModel(name, module, tower, pipeline, tokenizer, settings)

    tower.feature_points = {"pooled": width, **tower.feature_points}
    tower.lacking = {**tower.lacking, "text": NO_TOKENIZER}
    return DenseLoadedModel(name, module, tower, pipeline, parts_of(module), settings)


def _of_timm(module: Any, pipeline: ImagePipeline, name: str, about: str) -> Any:
    from silc_bench.models.adapters.timm import of_network

    # what timm's towers refuse, a size for example, each says in its own way
    with _evaluating(module), explained("it cannot be run", about=about, fix=NO_ENCODER):
        return of_network(name, module, pipeline)


def _of_transformers(module: Any, processor: Any, tokenizer: Any, name: str, about: str) -> Any:
    """Through the files that a folder of the model would have: so it is what ``hf:FOLDER`` is."""
    from silc_bench.models.adapters.huggingface.model import FAMILIES, of_network

    model_type = getattr(getattr(module, "config", None), "model_type", "")
    family = FAMILIES.get(model_type)
    if family is None or type(module).__name__ != family.network:
        known = ", ".join(sorted({row.network for row in FAMILIES.values()}))
        problem = f"a {type(module).__name__} of transformers cannot be measured as it is"
        raise UserError(problem, about=about, fix=f"give one of {known}, or {NO_ENCODER[5:]}")

    tokenizer = tokenizer or getattr(processor, "tokenizer", None)
    if tokenizer is None:
        fix = "give the whole processor, or the tokenizer as third argument"
        raise UserError("an image processor without a tokenizer", about=about, fix=fix)
    with tempfile.TemporaryDirectory(prefix="silc-bench-wrap-") as folder:
        getattr(processor, "image_processor", processor).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        try:
            return of_network(module, Path(folder), name)
        except UserError as error:
            raise UserError(error.problem, about=about, fix=error.fix) from None


class _Plain:
    """A module by its own ``encode_image`` and ``encode_text``; both are tried here."""

    libraries: tuple[str, ...] = ()
    has_own_code = True  # embeddings of it are not stored: its code may change, its weights stay
    # no score depends on them, and nothing says how a module keeps them
    logit_scale, logit_bias = 1.0, 0.0

    def __init__(
        self, module: nn.Module, pipeline: Any, tokenizer: Any, name: str, about: str
    ) -> None:
        self.module = module
        self.name = name
        self.revision = revision_of({"": module})
        self.settings = _settings(module)
        self.num_params = sum(weight.numel() for weight in module.parameters())
        self.pipeline = pipeline
        self.image_protocol = pipeline.as_dict()
        self.image_size = pipeline.size

        if not callable(getattr(module, "encode_image", None)):
            problem = f"a {type(module).__name__} has no encode_image"
            raise UserError(problem, about=about, fix=NO_ENCODER)
        images = pipeline(_probe(*PROBE_SIZES[0]))[None].to(_device_of(module))
        self.embed_dim = _tried(module, "encode_image", images, about)
        self.feature_points = {"pooled": self.embed_dim}

        is_chain = isinstance(pipeline, ImagePipeline)
        is_open_clip = _is_of(module, "open_clip")
        lacking = {"dense": NO_STEPS if is_open_clip and not is_chain else NO_PATCHES}
        if not callable(getattr(module, "encode_text", None)):
            lacking["text"] = f"a {type(module).__name__} has no encode_text"
        elif tokenizer is None:
            lacking["text"] = NO_TOKENIZER
        else:
            self._read(tokenizer, about)
        self.lacking = lacking

    def _read(self, tokenizer: Any, about: str) -> None:
        """Gives it the functions of an ImageTextModel."""
        tokens = _tokens(tokenizer, list(PROBES), about)
        width = _tried(self.module, "encode_text", tokens.to(_device_of(self.module)), about)
        if width != self.embed_dim:
            problem = f"images have {self.embed_dim} numbers and texts {width}"
            fix = "give encode_image and encode_text that meet in one space"
            raise UserError(problem, about=about, fix=fix)

        if _is_of(tokenizer, "open_clip"):
            from silc_bench.models.adapters.open_clip.model import text_protocol, token_lengths

            self.text_protocol = text_protocol(tokenizer)
            self.token_lengths = partial(token_lengths, tokenizer)
        else:
            reads = digest(tokens.tolist())
            self.text_protocol = {"length": tokens.shape[1], "reads": reads}
        self.tokenize = partial(_tokens, tokenizer, about=about)
        self.encode_text = lambda tokens: self.module.encode_text(tokens).float()  # type: ignore[operator]

    def preprocess(self, image: Image.Image) -> Tensor:
        return self.pipeline(image)

    def encode_image(self, images: Tensor, point: str = "pooled") -> Tensor:
        return self.module.encode_image(images).float()  # type: ignore[operator]


def _tried(module: Any, call: str, inputs: Tensor, about: str) -> int:
    """The width D of what it gives for a few inputs.

    Raises:
        UserError: it fails, or gives no finite [B, D].
    """
    fix = f"{call} takes a batch and gives one row of numbers for each of its {len(inputs)}"
    try:
        with _evaluating(module), torch.inference_mode():
            features = getattr(module, call)(inputs)
    # code of others, which may fail in any way
    except Exception as error:
        problem = f"{call} fails on {list(inputs.shape)} ({first_line(error)})"
        raise UserError(problem, about=about, fix=fix) from error
    if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(inputs):
        given = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise UserError(f"{call} gives {given}", about=about, fix=fix)
    if not torch.isfinite(features).all():
        raise UserError(f"{call} gives NaN or infinity", about=about, fix="give trained weights")
    return features.shape[1]


def _tokens(tokenizer: Any, texts: list[str], about: str) -> Tensor:
    """[B, L] int64.

    Raises:
        UserError: the tokenizer fails, or gives something else.
    """
    try:
        tokens = tokenizer(texts)
        if not isinstance(tokens, Mapping):
            tokens = torch.as_tensor(tokens)
    except (TypeError, ValueError, RuntimeError) as error:
        problem = f"the tokenizer gives no rows of one length ({first_line(error)})"
        raise UserError(problem, about=about, fix=CALL_IT) from error
    if isinstance(tokens, Mapping) or tokens.ndim != 2 or len(tokens) != len(texts):
        given = type(tokens).__name__ if isinstance(tokens, Mapping) else list(tokens.shape)
        problem = f"the tokenizer gives {given} for {len(texts)} texts"
        raise UserError(problem, about=about, fix=CALL_IT)
    return tokens.long()


# ---- images ----


class GivenPreprocess:
    """A preprocess that is called as it was given: an RGB image -> [3, S, S] fp32."""

    def __init__(self, call: Preprocess, about: str) -> None:
        """Raises UserError where it fails, or gives other shapes."""
        self._call = call
        self._about = about
        outputs = [self(_probe(*size)) for size in PROBE_SIZES]
        shapes = sorted({tuple(one.shape) for one in outputs})
        sides = {side for shape in shapes for side in shape[1:]}
        if len(shapes) != 1 or len(sides) != 1:
            given = ", ".join(str(list(shape)) for shape in shapes)
            fix = "give one that makes every image the same square"
            raise UserError(f"preprocess gives {given}", about=about, fix=fix)
        (self.size,) = sides

        # black and white say which mean and standard deviation it takes, whatever its steps are
        black, white = (
            self(Image.new("RGB", (self.size, self.size), (level,) * 3)).flatten(1).median(1).values
            for level in (0, 255)
        )
        scale = (white - black).clamp(min=1e-12)
        self.mean = [round(value, 4) for value in (-black / scale).tolist()]
        self.std = [round(value, 4) for value in (1 / scale).tolist()]
        self.pixels = digest([[f"{v:.4f}" for v in one.flatten().tolist()] for one in outputs])

    def __call__(self, image: Image.Image) -> Tensor:
        try:
            pixels = self._call(image.convert("RGB"))
        except (TypeError, ValueError, AttributeError, RuntimeError, KeyError) as error:
            problem = f"preprocess fails on an image ({first_line(error)})"
            fix = "give a function of one PIL image"
            raise UserError(problem, about=self._about, fix=fix) from error
        if not isinstance(pixels, Tensor) or pixels.ndim != 3 or pixels.dtype != torch.float32:
            given = type(pixels).__name__
            if isinstance(pixels, Tensor):
                given = f"{list(pixels.shape)} {str(pixels.dtype).removeprefix('torch.')}"
            fix = "give a function of one PIL image that gives [3, S, S] float32"
            raise UserError(f"preprocess gives {given}", about=self._about, fix=fix)
        return pixels

    def as_dict(self) -> dict[str, Any]:
        """What can be told of it, as JSON: size and colours, and a hash of its pixels."""
        return {
            "preprocess": "given in memory",
            "size": self.size,
            "mean": self.mean,
            "std": self.std,
            "pixels": self.pixels,
        }


def pipeline_of(preprocess: Preprocess | Any, about: str) -> ImagePipeline | GivenPreprocess:
    """A chain of known steps as an ImagePipeline with the very same pixels, else as it is.

    What it does not normalise is said.

    Raises:
        UserError: it gives no [3, S, S] fp32, the same S for all images.
    """
    if not callable(preprocess):
        problem = f"a {type(preprocess).__name__} is no preprocess"
        fix = "give what turns one PIL image into [3, S, S] float32"
        raise UserError(problem, about=about, fix=fix)
    if _is_of(preprocess, "transformers"):
        processor = getattr(preprocess, "image_processor", preprocess)
        preprocess = partial(_processed, processor)

    given = GivenPreprocess(preprocess, about)
    if max(map(abs, given.mean)) < 1e-3:
        top = 1 / given.std[0]
        say(
            f"{about}: preprocess subtracts no mean, and its pixels run from 0 to {top:g}; check"
            " that the model was trained on such pixels"
        )
    chain = _chain(preprocess, given)
    images = [_probe(*size) for size in PROBE_SIZES]
    if chain and all(torch.equal(chain(image), given(image)) for image in images):
        return chain
    return given


def _processed(processor: Any, image: Image.Image) -> Tensor:
    return processor(images=image, return_tensors="pt")["pixel_values"][0].float()


def _chain(preprocess: Any, given: GivenPreprocess) -> ImagePipeline | None:
    """A pipeline of the steps of torchvision's Compose, as its fields say; None for other steps."""
    steps = {type(step).__name__: step for step in getattr(preprocess, "transforms", ())}
    resize, normalize = steps.get("Resize"), steps.get("Normalize")
    if resize is None or normalize is None:
        return None

    sides = [resize.size] if isinstance(resize.size, int) else [*resize.size]
    is_squash = len(sides) == 2
    side = sides[0]
    name = str(getattr(resize.interpolation, "value", resize.interpolation))
    if name not in INTERPOLATIONS or sides[-1] != side:
        return None
    if not is_squash and "CenterCrop" not in steps:
        return None
    return ImagePipeline(
        given.size,
        mean=_color(normalize.mean),
        std=_color(normalize.std),
        resize="squash" if is_squash else "shortest",
        resize_size=None if side == given.size else int(side),
        crop="none" if is_squash and side == given.size else "center",
        interpolation=name,
    )


def _color(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _probe(width: int, height: int) -> Image.Image:
    """An image of noise and slopes, the same everywhere."""
    x = torch.arange(width).view(1, 1, -1)
    y = torch.arange(height).view(1, -1, 1)
    color = torch.arange(1, 4).view(-1, 1, 1)
    # large primes scatter the last digits: a hash, not a generator that a release may change
    noise = (x * 7919 + y * 104729 + color * 1299709) % 97
    values = (noise + (x * color + y * 3) % 159).to(torch.uint8)
    return Image.fromarray(values.permute(1, 2, 0).contiguous().numpy())


# ---- modules ----


def _is_of(thing: Any, package: str) -> bool:
    return any(kind.__module__.split(".")[0] == package for kind in type(thing).__mro__)


def _without_shells(model: Any) -> Any:
    """The module inside of DataParallel, DistributedDataParallel and torch.compile."""
    shells = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while isinstance(model, shells) or hasattr(model, "_orig_mod"):
        model = model.module if isinstance(model, shells) else model._orig_mod
    return model


def _settings(module: nn.Module) -> dict[str, Any]:
    """What changes the embeddings and is no weight, as far as a module shows it."""
    parts = [part for part in module.modules() if next(part.parameters(), None) is None]
    kinds = {type(part).__name__ for part in parts}
    activations = sorted(kind for kind in kinds if kind.endswith(("LU", "ish", "Tanh")))
    return {"module": type(module).__name__, "activations": activations}


def _device_of(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Within it the module is in evaluation mode; then each part is as it was before."""
    training = [part for part in module.modules() if part.training]
    if training:
        module.eval()
    try:
        yield
    finally:
        # one by one: a part may have been frozen on purpose
        for part in training:
            part.training = True
