"""Our own checkpoints as models: loaded, named, refused; preprocessing against torchvision."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from silc_bench.errors import UserError
from silc_bench.models.interface import DenseModel, ImageTextModel
from silc_bench.models.load import load_model
from silc_bench.models.weights.revision import revision_of
from silc_bench.trainer.checkpoints import file as checkpoint
from silc_bench.trainer.checkpoints import model as native
from silc_bench.trainer.config.config import (
    Config,
    DistillationConfig,
    TextConfig,
    ViewsConfig,
    VisionConfig,
    to_dict,
)
from silc_bench.trainer.silc.tokenizers import Tokenizer
from silc_bench.trainer.train import TrainState

pytestmark = pytest.mark.broad

TOWER = {"width": 32, "depth": 1, "num_heads": 2, "mlp_dim": 48}
CONFIG = Config(
    preset="tiny",
    vision=VisionConfig(image_size=16, patch_size=8, **TOWER),
    text=TextConfig(vocab_size=270, context_length=12, **TOWER),
    views=ViewsConfig(global_size=16, local_size=8, num_local=2),
    distillation=DistillationConfig(num_prototypes=64, hidden_dim=32, bottleneck_dim=16),
    batch_size=8,
    samples=8,
)
CAPTIONS = ["a red ring", "a blue star on a green ground"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run whose teacher lags behind its student."""
    state = TrainState.create(CONFIG, Tokenizer.train(CAPTIONS, 270, 12), torch.device("cpu"))
    with torch.no_grad():
        for parameter in state.teacher.parameters():
            parameter.mul_(0.9)
    folder = tmp_path_factory.mktemp("runs") / "a"
    checkpoint.save(folder, state.payload())
    return folder


@pytest.fixture(scope="module")
def model(run):
    return load_model(str(run))


@pytest.fixture
def changed(run, tmp_path):
    """Writes the run's checkpoint with fields replaced; its path."""

    def write(name: str = "x.pt", **fields) -> str:
        whole = checkpoint.load(checkpoint.find(run))
        torch.save(checkpoint.with_checksums({**whole, **fields}), tmp_path / name)
        return str(tmp_path / name)

    return write


def payload_of(run):
    return checkpoint.load(checkpoint.find(run))


# ---- the protocol ----


def test_it_keeps_the_protocol(model):
    assert isinstance(model, ImageTextModel)
    assert isinstance(model, DenseModel)
    assert (model.name, model.embed_dim, model.image_size, model.patch_size) == (
        "tiny-silc:student",
        32,
        16,
        8,
    )
    assert model.logit_scale == pytest.approx(10.0)
    assert model.logit_bias == pytest.approx(-10.0)
    json.dumps([model.image_protocol, model.text_protocol], allow_nan=False)


def test_parameters_are_those_of_the_two_towers(run, model):
    saved = payload_of(run)["student"]
    assert model.num_params == sum(
        v.numel() for name, v in saved.items() if name.startswith(("vision.", "text."))
    )


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_shapes_and_fp32_also_under_autocast(model, precision):
    images = torch.stack(
        [model.preprocess(Image.new("RGB", (20, 30), color)) for color in ("red", "blue", "green")]
    )
    with torch.no_grad(), torch.autocast("cpu", precision, enabled=precision != torch.float32):
        outputs = {
            (3, 32): model.encode_image(images),
            (2, 32): model.encode_text(model.tokenize(CAPTIONS)),
            (3, 2, 2, 32): model.encode_dense(images, ["maskclip"])["maskclip"],
        }
        patches = model.encode_dense(images, ["tokens"])["tokens"]
    assert patches.shape == (3, 2, 2, 32)
    assert not torch.equal(patches, outputs[3, 2, 2, 32])
    for shape, output in outputs.items():
        assert (output.shape, output.dtype) == (shape, torch.float32)
        assert output.isfinite().all()
    assert abs(outputs[3, 32].norm(dim=-1) - 1).min() > 1e-3, "not normalised"


def test_loading_is_repeatable_and_draws_no_random_numbers(run, model):
    before = torch.random.get_rng_state()
    again = load_model(str(run))
    assert torch.equal(torch.random.get_rng_state(), before)
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(again.encode_image(images), model.encode_image(images))
    assert not again.vision.training
    assert not again.text.training


# ---- names ----


def test_student_is_the_default_and_teacher_another_model(run, model):
    file = str(checkpoint.find(run))
    student = [
        load_model(spec)
        for spec in (f"{run}:student", file, f"{file}:student", str(run / "checkpoints"))
    ]
    assert {(m.name, m.revision) for m in student} == {(model.name, model.revision)}
    teacher = [load_model(f"{spec}:teacher") for spec in (run, file)]
    assert {m.name for m in teacher} == {"tiny-silc:teacher"}
    assert {m.revision for m in teacher} == {teacher[0].revision} != {model.revision}
    images, tokens = torch.rand(1, 3, 16, 16), model.tokenize(CAPTIONS)
    with torch.no_grad():
        assert not torch.equal(teacher[0].encode_image(images), model.encode_image(images))
        assert torch.equal(teacher[0].encode_text(tokens), model.encode_text(tokens)), (
            "the student's text tower"
        )


@pytest.mark.parametrize("name", ["with:colon", "a:student", "x:y/z"])
def test_a_colon_may_be_part_of_the_path(run, model, tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(run)
    (tmp_path / "with").touch()  # the path as it is written comes first
    assert load_model(str(path)).revision == model.revision
    assert load_model(f"{path}:teacher").name == "tiny-silc:teacher"


def test_the_newest_checkpoint_of_a_run_counts(changed, run, tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    for step in (20, 100, 3):
        scaled = {name: value * step for name, value in payload_of(run)["student"].items()}
        changed(f"run/checkpoints/step_{step:08d}.pt", student=scaled, step=step)
    assert (
        load_model(str(tmp_path / "run")).revision
        == load_model(str(folder / "step_00000100.pt")).revision
    )


# ---- the revision ----


def test_revision_depends_on_every_weight_of_the_towers_and_nothing_else(run, model, changed):
    saved = payload_of(run)["student"]
    seen = {model.revision}
    for name, value in saved.items():
        weights = {**saved, name: value + 0.5}
        revision = load_model(changed(student=weights)).revision
        is_tower = name.startswith(("vision.", "text."))
        assert (revision not in seen) == is_tower, name
        seen.add(revision)
    assert len(model.revision) == 16
    assert int(model.revision, 16) >= 0


def test_revision_is_not_about_names_optimiser_step_or_tokenizer(model, changed):
    renamed = json.dumps(to_dict(replace(CONFIG, preset="another", seed=7, samples=800)))
    other = load_model(changed(config=renamed, optimizer={}, step=99, samples_seen=1, position=5))
    assert other.name == "another-silc:student"
    assert other.revision == model.revision


def test_revision_is_not_about_dtype_or_device(run, changed):
    saved = payload_of(run)["student"]
    half = {name: value.bfloat16() for name, value in saved.items()}
    whole = {name: value.float() for name, value in half.items()}
    models = [load_model(changed(student=weights)) for weights in (half, whole)]
    assert models[0].revision == models[1].revision
    assert {p.dtype for m in models for p in (*m.vision.parameters(), *m.text.parameters())} == {
        torch.float32
    }
    towers = {"vision": models[1].vision, "text": models[1].text}
    heads = {"vision_heads": CONFIG.vision.num_heads, "text_heads": CONFIG.text.num_heads}
    halved = {name: copy.deepcopy(tower).bfloat16() for name, tower in towers.items()}
    assert revision_of(halved, heads) == models[1].revision
    assert models[1].to(torch.device("cpu")) is models[1]
    assert revision_of(towers, heads) == models[1].revision
    assert revision_of(towers) != models[1].revision, "what is no weight counts too"


def test_revision_tells_where_a_value_stands():
    first, second = torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False)
    one = revision_of({"vision": first, "text": second})
    assert one == revision_of({"text": second, "vision": first}), (
        "the order of the modules is no difference"
    )
    assert one != revision_of({"vision": second, "text": first})
    flat = torch.nn.Linear(4, 1, bias=False)
    flat.weight.data = first.weight.data.reshape(1, 4)
    assert revision_of({"x": flat}) != revision_of({"x": first}), "same bytes, other shape"


# ---- preprocessing ----


def picture(mode: str, size: tuple[int, int]) -> Image.Image:
    rng = np.random.default_rng(len(mode))
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 4), dtype=np.uint8))
    return (
        image.quantize(7)
        if mode == "P"
        else image.convert("RGB").convert(mode)
        if mode != "RGBA"
        else image
    )


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "YCbCr"])
@pytest.mark.parametrize("size", [(1, 1), (16, 16), (37, 23), (1, 300), (15, 17)])
def test_preprocess_is_torchvisions_squash_of_the_image_in_colour(model, mode, size):
    image = picture(mode, size)
    peer = v2.Compose(
        [
            v2.Resize((16, 16), InterpolationMode.BICUBIC, antialias=True),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )
    pixels = model.preprocess(image)
    assert (pixels.shape, pixels.dtype) == ((3, 16, 16), torch.float32)
    torch.testing.assert_close(pixels, peer(image.convert("RGB")), atol=1e-6, rtol=0)
    assert -1 <= pixels.min() <= pixels.max() <= 1


def test_preprocess_of_black_white_and_a_known_image(model):
    assert (model.preprocess(Image.new("L", (5, 9), 0)) == -1).all()
    assert (model.preprocess(Image.new("RGB", (5, 9), "white")) == 1).all()
    rng = np.random.default_rng(0)
    array = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    np.testing.assert_allclose(
        model.preprocess(Image.fromarray(array)), array.transpose(2, 0, 1) / 127.5 - 1, atol=1e-6
    )
    assert model.image_protocol == {
        "resize": "squash",
        "size": 16,
        "interpolation": "bicubic",
        "antialias": True,
        "crop": "none",
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
    }


# ---- texts ----


def test_the_tokenizer_is_the_checkpoints_own(run, model, changed):
    own = Tokenizer.from_json(payload_of(run)["tokenizer"])
    texts = ["A Red  ring!", "", "<eos>", "ß 你好 🙂", "word " * 100]
    assert torch.equal(model.tokenize(texts), own(texts))
    assert model.text_protocol["length"] == 12
    other = Tokenizer.train(["other captions teach other merges"] * 3, 270, 12)
    assert not torch.equal(other(CAPTIONS), own(CAPTIONS))
    bound = load_model(changed(tokenizer=other.to_json()))
    assert torch.equal(bound.tokenize(CAPTIONS), other(CAPTIONS))
    assert bound.text_protocol["tokenizer"] != model.text_protocol["tokenizer"], (
        "it reads differently: another protocol"
    )
    assert bound.revision == model.revision


# ---- what is refused ----


class Hostile:
    def __reduce__(self):
        return (print, ("HOSTILE CODE RAN",))


NOT_OURS = {
    "empty": (lambda path, run: path.touch(), "it is empty"),
    "text": (lambda path, run: path.write_text("hello"), "truncated or of another kind"),
    "cut": (
        lambda path, run: path.write_bytes(checkpoint.find(run).read_bytes()[:20_000]),
        "truncated or of another kind",
    ),
    "another program's": (
        lambda path, run: torch.save({"model": torch.zeros(2)}, path),
        r"it holds \['model'\]",
    ),
    "a bare tensor": (lambda path, run: torch.save(torch.zeros(2), path), "it holds Tensor"),
    "a whole module": (
        lambda path, run: torch.save(torch.nn.Linear(2, 2), path),
        "refused, nothing was executed",
    ),
    "hostile": (lambda path, run: torch.save(Hostile(), path), "refused, nothing was executed"),
    "hostile pickle": (
        lambda path, run: path.write_bytes(pickle.dumps(Hostile())),
        "truncated or of another kind",
    ),
    "a folder": (lambda path, run: path.mkdir(), "a folder without checkpoints"),
    "nothing": (lambda path, run: None, "no such file or folder"),
}


@pytest.mark.parametrize(("write", "words"), NOT_OURS.values(), ids=NOT_OURS)
def test_what_is_no_checkpoint_is_named_and_never_executed(tmp_path, run, capfd, write, words):
    path = tmp_path / "it.pt"
    write(path, run)
    with pytest.raises(UserError, match=rf"^{path}: .*{words}") as caught:
        native.load(path)
    assert "\n" not in str(caught.value)
    assert "HOSTILE" not in "".join(capfd.readouterr())


def with_field(section: str, name: str, value: int) -> str:
    config = to_dict(CONFIG)
    config[section][name] = value
    return json.dumps(config)


DAMAGED = {
    "config cut": ({"config": "{"}, "config: is not JSON"),
    "config too deep": ({"config": "[" * 100_000}, "config: is not JSON"),
    "config no text": ({"config": 3}, "config: is not JSON"),
    "config of another version": ({"config": "{}"}, "not a configuration of this version"),
    "config that cannot be": (
        {"config": with_field("vision", "patch_size", 7)},
        "is no multiple of vision.patch_size",
    ),
    "another width": (
        {"config": with_field("vision", "width", 64)},
        "weights do not fit its own configuration .*size mismatch",
    ),
    "a width nobody has": (
        {"config": with_field("vision", "width", 4 * 10**8)},
        "weights do not fit its own configuration",
    ),
    "no weights": ({"student": {}}, "weights do not fit its own configuration .*Missing key"),
    "weights that are none": ({"student": None}, "weights do not fit its own configuration"),
    "no teacher": ({"teacher": {}}, "weights do not fit its own configuration .*Missing key"),
    "no tokenizer": ({"tokenizer": "{}"}, "tokenizer is damaged"),
    "tokenizer no text": ({"tokenizer": 3}, "tokenizer is damaged"),
    "tokenizer of another length": (
        {"tokenizer": Tokenizer.train(CAPTIONS, 270, 13).to_json()},
        "its tokenizer makes 13 tokens of 270 kinds, its text tower reads 12 of 270",
    ),
    "tokenizer with more words": (
        {"tokenizer": Tokenizer.train(CAPTIONS, 275, 12).to_json()},
        "its tokenizer makes 12 tokens of 275 kinds, its text tower reads 12 of 270",
    ),
    "another format": (
        {"format": "silc-bench-checkpoint/99"},
        f"no checkpoint of format {checkpoint.FORMAT}",
    ),
}


@pytest.mark.parametrize(("fields", "words"), DAMAGED.values(), ids=DAMAGED)
def test_parts_that_do_not_fit_are_named_with_the_file(changed, fields, words):
    path = changed(**fields)
    with pytest.raises(UserError, match=f"^{path}[:,] .*{words}") as caught:
        load_model(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("part", ["student", "teacher"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_diverged_run_is_named_with_its_tensor_but_can_be_resumed(run, changed, part, value):
    state = payload_of(run)[part]
    name = next(name for name in state if name.endswith("norm.weight"))
    state[name] = state[name].clone()
    state[name][0] = value
    path = changed(**{part: state})
    with pytest.raises(
        UserError, match=rf"^checkpoint {path}: {part}\.{name} is not finite \(1 of"
    ):
        load_model(path)
    assert not checkpoint.load(Path(path))[part][name].isfinite().all()


def test_a_run_of_sparse_weights_is_refused(run, changed):
    state = payload_of(run)["student"]
    name = next(name for name in state if name.endswith("fc1.weight"))
    path = changed(student=state | {name: state[name].to_sparse()})
    with pytest.raises(UserError, match=f"^checkpoint {path}: "):
        load_model(path)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("{run}:techer", "unknown branch 'techer'; did you mean teacher?"),
        ("{run}:best", "unknown branch 'best'; known: average, student, teacher"),
        ("{run}:", "unknown branch ''; known: average, student, teacher"),
        ("{run}/nope:teacher", "checkpoint {run}/nope:teacher: no such file or folder"),
        ("openclip:ViT-B-32", "unknown kind of checkpoint 'openclip'; did you mean open_clip?"),
        (":teacher", "checkpoint :teacher: no such file or folder"),
        ("", "an empty name is no checkpoint; name a run's folder, a file, or open_clip:ARCH/TAG"),
        ("timm:", "'timm:' names no checkpoint; write timm:NAME, NAME/PATH or NAME/random"),
    ],
)
def test_names_that_name_nothing(run, spec, words):
    with pytest.raises(UserError) as caught:
        load_model(spec.format(run=run))
    assert words.format(run=run) in str(caught.value)
