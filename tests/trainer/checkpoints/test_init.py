"""``--init``: a run's first step has the source's embeddings.

By the source's own library; what cannot be exact is refused.
"""

import json
import math
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import hf_folders
import numpy as np
import pytest
import torch
from commands import fail, succeed
from random_runs import fresh_state, random_run
from refusals import refused
from runs import CPU, differing, end_of, run
from test_big_vision import flax_arrays, pieces, theirs  # noqa: F401

from silc_bench.errors import UserError
from silc_bench.models.load import load_model
from silc_bench.trainer.checkpoints import file as checkpoint
from silc_bench.trainer.checkpoints import init as foreign_init
from silc_bench.trainer.checkpoints import model as native
from silc_bench.trainer.checkpoints.export import export
from silc_bench.trainer.checkpoints.init import OF_WEIGHTS, READ, UNMEASURED, read_start
from silc_bench.trainer.config.config import changed, flatten
from silc_bench.trainer.config.overrides import apply_sets
from silc_bench.trainer.config.presets import configure, make_preset
from silc_bench.trainer.silc.tokenizers import ForeignTokenizer, read_tokenizer
from silc_bench.trainer.train import TrainState

pytestmark = pytest.mark.broad
TEXTS = [*READ, "two dogs, please", "A RED RING!", "the sea"]


def fitted(config, init: str):
    """``config`` with the sizes that the refusal of ``init`` names: what it says must work."""
    config = replace(config, init=init)
    with refused(about=f"--init {init}", is_kept=False) as caught:
        read_start(config)
    for preset in re.findall(r"--preset (\S+)", caught.value.fix):
        towers = make_preset(preset)
        config = replace(config, vision=towers.vision, text=towers.text)
    config = apply_sets(config, re.findall(r"--set (\S+)", caught.value.fix))
    patch_size = config.vision.patch_size
    sizes = dict.fromkeys(("vision.image_size", "views.global_size"), 3 * patch_size)
    return changed(config, {**sizes, "views.local_size": patch_size})


def at_source_size(config, model):
    return changed(config, {"vision.image_size": model.image_size})


def started(config) -> TrainState:
    start = read_start(config)
    return TrainState.create(changed(config, start.fields), start.tokenizer, CPU, start)


def pixels(size: int):
    return torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def assert_same(found, expected):
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def assert_starts_as(state, tokens, images, features, scale):
    """Both towers as the source's: ``features`` of ``images``, and of the texts' ``tokens``."""
    assert torch.equal(state.tokenizer(TEXTS), tokens)
    with torch.no_grad():
        assert_same(state.student.vision(images), features[0])
        assert_same(state.student.text(tokens), features[1])
    assert state.student.log_scale.item() == pytest.approx(scale.item(), abs=1e-6)


@torch.no_grad()
def features_of(network, tokens, images):
    """What a SiglipModel of transformers makes of both."""
    outputs = network(input_ids=tokens, pixel_values=images)
    return outputs.vision_model_output.pooler_output, outputs.text_model_output.pooler_output


@pytest.fixture
def siglip(tmp_path):
    return hf_folders.write("siglip", tmp_path / "hf")


# ---- models of other libraries ----


@pytest.mark.parametrize("kind", ["siglip", "siglip2", "sentencepiece", "exact gelu"])
def test_transformers(kind, tiny, tmp_path, request):
    import transformers

    folder = hf_folders.write("siglip2" if kind == "siglip2" else "siglip", tmp_path / "hf")
    if kind == "exact gelu":
        content = json.loads((folder / "config.json").read_text())
        for part in ("vision_config", "text_config"):
            content[part]["hidden_act"] = "gelu"
        hf_folders.write_json(folder / "config.json", content)
    if kind == "sentencepiece":
        bring_sentencepiece(folder, request.getfixturevalue("pieces")["c4_en"])
    model = load_model(f"hf:{folder}")
    config = at_source_size(fitted(tiny(), f"hf:{folder}"), model)
    state, said = started(config), " ".join(read_start(config).said)
    assert ("squash / none / bilinear" in said) == (kind == "siglip2"), "what the folder says"
    network = transformers.AutoModel.from_pretrained(folder).eval()
    # its own tokenizer, compared with the library in tests/silc_bench/models
    tokens = model.tokenize(TEXTS)
    features = features_of(network, tokens, pixels(32))
    assert_starts_as(state, tokens, pixels(32), features, network.logit_scale)
    assert state.student.logit_bias.item() == network.logit_bias.item()
    assert state.config.vision.gelu == ("exact" if kind == "exact gelu" else "tanh")
    assert state.tokenizer.lengths(TEXTS) == model.token_lengths(TEXTS)


def bring_sentencepiece(folder: Path, model: Path) -> None:
    """The tokenizer of the published SigLIPs: a sentencepiece model read in Python."""
    import transformers

    (folder / "tokenizer.json").unlink()
    shutil.copy(model, folder / "spiece.model")
    hf_folders.write_json(folder / "tokenizer_config.json", {"tokenizer_class": "SiglipTokenizer"})
    tokenizer = transformers.SiglipTokenizer(str(model))
    config = transformers.SiglipConfig.from_pretrained(folder)
    config.text_config.vocab_size = tokenizer.vocab_size
    config.architectures = ["SiglipModel"]
    hf_folders.network_of(config).save_pretrained(folder)


@pytest.mark.parametrize("gelu", ["tanh", "exact"])
def test_open_clip(gelu, uneven, tmp_path):
    import open_clip

    config = changed(uneven, {"vision.gelu": gelu, "text.gelu": gelu})
    folder = tmp_path / "open_clip"
    export(native.load(random_run(config, tmp_path / "run")), "open_clip", folder)
    config = replace(config, init=f"open_clip:{folder}")
    network = open_clip.create_model_from_pretrained(
        f"local-dir:{folder}", return_transform=False
    ).eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)
    with torch.no_grad():
        features = network.encode_image(pixels(24)), network.encode_text(tokens)
    assert_starts_as(started(config), tokens, pixels(24), features, network.logit_scale)

    # weights know which form they were trained with
    other = dict.fromkeys(OF_WEIGHTS, "exact" if gelu == "tanh" else "tanh")
    assert started(changed(config, other)).config == config
    said = " ".join(read_start(changed(config, other)).said)
    assert f"vision.gelu={gelu}, text.gelu={gelu}" in said


MANUAL = Path(__file__).parents[3] / "docs" / "init.md"
# as the source's, but for the size of images
LAYOUT = """
    vision.patch_size=8 vision.width=32 vision.depth=2 vision.num_heads=4 vision.mlp_dim=64
    text.width=32 text.depth=2 text.num_heads=4 text.mlp_dim=64 text.vocab_size=300
    vision.image_size=32 views.global_size=32 views.local_size=8 data.decode_size=40
    distillation.num_prototypes=64 distillation.hidden_dim=32 distillation.bottleneck_dim=16
    batch_size=8 micro_batch=4 probe.every=0 log_every=1 data.num_workers=0
"""


def test_the_recipe_of_the_manual_continues_a_siglip_of_open_clip(tmp_path, shards):
    """Random, of 24 px and the exact GELU, as `ViT-B-16-SigLIP` of 224 px has it."""
    pattern = r"silc-bench (train --preset b16_1k --init \S+SigLIP/webli .*)"
    (line,) = re.findall(pattern, MANUAL.read_text())

    sets = apply_sets(make_preset("b16_1k"), LAYOUT.split())
    layout = {"vision.image_size": 24, "vision.gelu": "exact", "text.gelu": "exact"}
    source = native.load(random_run(changed(sets, layout), tmp_path / "run"))
    export(source, "open_clip", tmp_path / "siglip")

    own = {
        "open_clip:ViT-B-16-SigLIP/webli": f"open_clip:{tmp_path / 'siglip'}",
        "shards/*.tar": shards,
        "10_000_000": "16",
        "runs/siglip": str(tmp_path / "tuned"),
    }
    for words, instead in own.items():
        assert words in line
        line = line.replace(words, instead)
    line = f"{line} --device cpu {' '.join(f'--set {field}' for field in LAYOUT.split())}"
    said = succeed(line)
    for words in ("vision.gelu=exact, text.gelu=exact", "3 x 3", "4 x 4", "starts afresh"):
        assert words in said, words
    payload = end_of(tmp_path / "tuned")
    assert json.loads(payload["config"])["text"]["gelu"] == "exact"
    tokens = load_model(f"open_clip:{tmp_path / 'siglip'}").tokenize(TEXTS)
    assert torch.equal(read_tokenizer(payload["tokenizer"])(TEXTS), tokens)
    assert "already complete" in succeed(f"{line} --resume").replace("\n", "")


def test_big_vision(tiny, tmp_path, pieces, theirs):  # noqa: F811
    np.savez(tmp_path / "siglip.npz", **flax_arrays(theirs))
    shutil.copy(pieces["c4_en"], tmp_path / "sentencepiece.model")
    init = f"big_vision:{tmp_path / 'siglip.npz'}"
    model = load_model(init)
    state = started(at_source_size(fitted(tiny(), init), model))
    assert state.tokenizer.lengths(TEXTS) == model.token_lengths(TEXTS)
    tokens = model.tokenize(TEXTS)
    features = features_of(theirs, tokens, pixels(24))
    assert_starts_as(state, tokens, pixels(24), features, theirs.logit_scale)


@pytest.mark.parametrize("kind", ["clip", "naflex", "altclip", "chinese_clip"])
def test_what_is_no_siglip_is_refused_with_what_can_be_used(kind, tiny, tmp_path):
    folder = hf_folders.write(kind, tmp_path / kind)
    with refused(about=f"--init hf:{folder}, its towers"):
        read_start(replace(tiny(), init=f"hf:{folder}"))


TEXT_OF_CLIP = {"context_length": 12, "vocab_size": 49_408, "width": 32, "heads": 2, "layers": 1}
SMALL_CLIPS = {
    "small-clip": {"image_size": 32, "patch_size": 16, "width": 64, "layers": 1},
    "small-resnet": {"image_size": 32, "width": 8, "layers": [1, 1, 1, 1]},
}


@pytest.fixture
def small_clips(monkeypatch):
    """open_clip knows SMALL_CLIPS as its own ViT-B-32 and RN50, of which they are small copies."""
    from open_clip import factory

    for name, vision in SMALL_CLIPS.items():
        config = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": TEXT_OF_CLIP}
        monkeypatch.setitem(factory._MODEL_CONFIGS, name, config)


@pytest.mark.usefixtures("small_clips")
@pytest.mark.parametrize(
    ("spec", "part"),
    [
        ("open_clip:small-clip/random", "its towers"),
        ("open_clip:small-resnet/random", "its towers"),
        ("timm:vit_tiny_patch16_224/random", "its texts"),
    ],
)
def test_other_libraries_models_that_are_no_siglip(spec, part, tiny):
    with refused(about=f"--init {spec}, {part}"):
        read_start(replace(tiny(), init=spec))


def with_weight(towers, name, value):
    weights = {**towers.weights, name: torch.full_like(towers.weights[name], value)}
    return replace(towers, weights=weights)


def without_a_head(towers):
    """An architecture that passes every look at its parts."""
    return replace(
        towers,
        weights={
            name: value
            for name, value in towers.weights.items()
            if not name.startswith("text.head.")
        },
    )


def with_another_token(towers):
    def tokenizer(texts):
        tokens = towers.tokenizer(texts).clone()
        tokens[texts.index("two  dogs\tand\n3.14 cats"), 0] += 1
        return tokens

    return replace(towers, tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (with_another_token, "its tokenizer"),
        (without_a_head, "its towers"),
        (lambda towers: with_weight(towers, "vision.patch.bias", math.nan), "embeddings of images"),
        (lambda towers: with_weight(towers, "text.head.bias", 0.01), "embeddings of texts"),
    ],
)
def test_what_is_kept_is_proved_on_images_texts_and_tokens(tiny, siglip, monkeypatch, change, part):
    """Whatever a reader of another library's model gets wrong."""
    read = foreign_init.towers_of
    monkeypatch.setattr(foreign_init, "towers_of", lambda model: change(read(model)))
    with refused(about=part, is_kept=False):
        read_start(replace(tiny(), init=f"hf:{siglip}"))


def test_norms_of_another_epsilon_and_other_pixels_are_refused(tiny, siglip):
    config = replace(tiny(), init=f"hf:{siglip}")
    hf_folders.change(siglip / "preprocessor_config.json", **hf_folders.OPENAI)
    with refused(about="its images"):
        read_start(config)
    content = json.loads((siglip / "config.json").read_text())
    content["text_config"]["layer_norm_eps"] = 1e-5
    hf_folders.write_json(siglip / "config.json", content)
    with refused(about="its towers"):
        read_start(config)


# ---- runs made here ----


@pytest.fixture
def random(uneven, tmp_path):
    """The configuration ``uneven`` that starts from a random run of itself."""
    return replace(uneven, init=str(random_run(uneven, tmp_path / "random")))


@pytest.mark.parametrize(("highest", "is_said"), [(0.0, False), (10.0, True), (100.0, False)])
def test_a_scale_above_the_ceiling_is_said(random, highest, is_said):
    """It is 12.2 there, and the first step would bring it down without a word."""
    said = " ".join(read_start(changed(random, {"contrastive.max_scale": highest})).said)
    assert ("max_scale=10" in said) == is_said


@pytest.mark.parametrize("branch", ["student", "teacher"])
def test_a_run(branch, random):
    source, payload = native.load(Path(random.init), branch), end_of(Path(random.init))
    state = started(replace(random, init=f"{random.init}:{branch}"))
    student, teacher = state.student, state.teacher
    assert not differing(student.vision, source.vision)
    assert not differing(student.text, source.text)
    assert not differing(teacher.vision, student.vision), "the teacher starts as the copy"
    assert torch.equal(student.head.prototypes, payload[branch]["head.prototypes"])
    assert torch.equal(teacher.center, payload["teacher"]["center"])
    assert student.log_scale.item() == 2.5
    assert student.logit_bias.item() == payload["student"]["logit_bias"].item()
    assert state.tokenizer.to_json() == payload["tokenizer"]
    assert (state.step, state.samples_seen, state.position) == (0, 0, 0)
    assert not state.optimizer.state, "the optimiser is fresh"


def test_an_export_has_no_head(uneven, random, tmp_path):
    path = tmp_path / "x.safetensors"
    export(native.load(Path(random.init)), "safetensors", path)
    config = replace(uneven, init=str(path))
    assert "source has none" in read_start(config).said[-1]
    head = started(config).student.head
    assert torch.equal(head.prototypes, fresh_state(uneven).student.head.prototypes)


def test_a_head_of_another_shape_is_fresh_and_said(random):
    config = changed(random, {"distillation.num_prototypes": 32})
    assert "(64 prototypes of 16) than this run's (32 of 16)" in read_start(config).said[-1]
    assert started(config).teacher.center.abs().max() == 0


def test_a_run_without_self_distillation_takes_no_head(random):
    config = changed(random, {"distillation.weight": 0.0})
    assert started(config).student.head is None
    source = native.load(Path(config.init))
    begins = f"starts from {source.name}@{source.revision[:8]}"
    assert read_start(config).said == [begins, UNMEASURED]
    assert read_start(changed(config, {"probe.every": 500})).said == [begins]


def test_images_of_another_size_interpolate_the_positions_and_say_so(random):
    config = changed(random, {"vision.image_size": 40})
    sentence = read_start(config).said[1]
    assert all(size in sentence for size in ("3 x 3", "24 px", "5 x 5", "40 px"))
    source = native.load(Path(random.init))
    with torch.no_grad():
        features = started(config).student.vision(pixels(40))
        assert_same(features, source.encode_image(pixels(40)))


@pytest.mark.parametrize("section", ["vision", "text"])
def test_other_sizes_name_both_sides_and_what_fits(section, random):
    there = getattr(random, section).depth
    with refused(about=f"--init {random.init}", is_kept=False) as caught:
        read_start(changed(random, {f"{section}.depth": 5}))
    assert f"{section}.depth {there} there and 5 here" in caught.value.problem
    assert caught.value.fix == f"use --set {section}.depth={there}"


def test_the_preset_that_fits_is_named(tiny, tmp_path):
    source = configure("shapes_tiny", "silc", sets=["text.vocab_size=300"])
    init = str(random_run(source, tmp_path))
    with refused(about=f"--init {init}", is_kept=False) as caught:
        read_start(replace(tiny(), init=init))
    assert caught.value.fix == "use --preset shapes_tiny --set text.vocab_size=300"


def test_a_softmax_has_no_bias_and_a_sigmoid_starts_one(random, tmp_path):
    softmax = changed(random, {"contrastive.loss": "softmax"})
    assert started(softmax).student.logit_bias.item() == 0
    config = replace(random, init=str(random_run(softmax, tmp_path / "softmax")))
    assert "init_bias=-10" in " ".join(read_start(config).said)
    assert started(config).student.logit_bias.item() == -10


# ---- the dry run ----


def sets_of(config, *sections):
    """The changes that make any preset ``config`` in these sections."""
    fields = flatten(config).items()
    sets = [f"{path}={value}" for path, value in fields if path.startswith(sections)]
    return [change.replace(" ", "") for change in sets]


@pytest.fixture
def dry_run(uneven):
    """The command with the sizes of ``uneven``, which are no preset's."""
    sections = ("vision.", "text.", "views.", "distillation.", "batch_size", "samples")
    sets = " --set ".join(sets_of(uneven, *sections, "contrastive.loss"))
    return f"train --preset shapes_tiny --dry-run --set {sets}"


def test_the_dry_run_says_what_the_start_would_say(dry_run, random):
    init, other = f"{random.init}:teacher", "distillation.num_prototypes=32"
    lines = succeed(f"{dry_run} --init {init} --set {other}").splitlines()
    said = read_start(apply_sets(replace(random, init=init), [other])).said
    assert lines[: len(said)] == said
    assert len(said) == 3
    assert any("memory, all of it" in line for line in lines)


@pytest.mark.parametrize(
    ("init", "sets"),
    [
        ("nowhere", ""),
        ("{run}:techer", ""),
        ("hf:{run}", ""),
        ("{cut}", ""),
        ("{run}", "--set text.depth=5"),
    ],
)
def test_the_dry_run_refuses_what_the_start_refuses(init, sets, dry_run, random, tmp_path):
    shutil.copytree(random.init, tmp_path / "cut")
    os.truncate(checkpoint.find(tmp_path / "cut"), 5000)
    init = init.format(run=random.init, cut=tmp_path / "cut")
    fail(f"{dry_run} --init {init} {sets}", f"--init {init}", is_kept=False)


def test_a_run_that_goes_on_reads_no_source_in_a_dry_run_either(dry_run):
    assert "memory, all of it" in succeed(f"{dry_run} --init nowhere --resume")


# ---- the run itself ----


def test_a_run_from_foreign_weights_is_whole_without_them(tiny, tmp_path):
    """It trains, stops, goes on and is measured after the source's folder is gone."""
    folder = hf_folders.write("siglip2", tmp_path / "hf")
    config = fitted(tiny(contrastive={"loss": "sigmoid"}), f"hf:{folder}")
    _, said = run(config, tmp_path / "run")
    assert "starts from hf:hf@" in said
    state = TrainState.restore(end_of(tmp_path / "run"), CPU)
    expected = load_model(f"hf:{folder}").tokenize(TEXTS)
    shutil.rmtree(folder)
    assert isinstance(state.tokenizer, ForeignTokenizer)
    assert torch.equal(state.tokenizer(TEXTS), expected)
    assert state.start["name"].startswith("hf:hf@")
    model = load_model(str(tmp_path / "run"))
    export(model, "safetensors", tmp_path / "x.safetensors")
    for source in (model, load_model(str(tmp_path / "x.safetensors"))):
        assert torch.equal(source.tokenize(TEXTS), expected)
    for target in ("hf", "open_clip"):
        with refused(about=model.name):
            export(model, target, tmp_path / target)


def test_a_resumed_run_ends_bit_for_bit_and_does_not_read_the_source_again(random, tmp_path):
    config, folder = replace(random, checkpoint_every=2), tmp_path / "run"
    run(config, folder)
    end = end_of(folder)
    checkpoint.path_of(folder, 4).unlink()
    shutil.rmtree(random.init)
    run(config, folder, resume=True)
    assert not differing(end_of(folder), end)
    with refused(about=folder):
        run(replace(config, init="elsewhere"), folder, resume=True)


def test_a_foreign_tokenizer_is_read_again_or_refused(tiny, siglip):
    spec = f"hf:{siglip}"
    config = at_source_size(fitted(tiny(), spec), load_model(spec))
    text = started(config).tokenizer.to_json()
    tokenizer = read_tokenizer(text)
    assert torch.equal(tokenizer(TEXTS), read_tokenizer(tokenizer.to_json())(TEXTS))
    unknown = text.replace('"cleaning": "none"', '"cleaning": "more"')
    for broken in (text[:-20], unknown, text.replace('"length"', '"len"')):
        with pytest.raises(UserError):
            read_tokenizer(broken)
    with pytest.raises(UserError, match="'the sea' has the token"):
        ForeignTokenizer({**json.loads(text), "vocab_size": 3})(["the sea"])


def test_silc_star_is_a_second_phase(uneven, tmp_path):
    """From a finished run on a cleaner set, with the preset's own schedule.

    Without one it says what it needs.
    """
    shrunk = sets_of(uneven, "vision.", "text.", "views.", "distillation.", "batch_size")
    shrunk += [
        "data.decode_size=32",
        "data.num_workers=0",
        "precision=fp32",
        "probe.tasks=shapes/zeroshot",
    ]
    options = {"data": "shapes", "samples": 32, "sets": [*shrunk, "probe.limit=16"]}
    with pytest.raises(UserError, match="silc_star"):
        run(configure("silc_star", "silc", **options), tmp_path / "star")
    first = random_run(uneven, tmp_path / "first")
    config = configure("silc_star", "silc", init=f"{first}:teacher", **options)
    _, said = run(config, tmp_path / "star")
    assert "starts from first:teacher@" in said
    assert "its head for self-distillation and the centre are taken over" in said
    before, after = (end_of(folder)["teacher"] for folder in (first, tmp_path / "star"))
    change = after["vision.patch.weight"] - before["vision.patch.weight"]
    assert 0 < change.abs().max() < 1e-3, "it learns on from there"
