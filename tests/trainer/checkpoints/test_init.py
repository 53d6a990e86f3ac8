"""``--init``: a run's first step has the source's embeddings.

By the source's own library; what cannot be exact is refused.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: nothing is looked up
sys.path.insert(0, str(Path(__file__).parents[2] / "silc_bench" / "models"))

import hf_folders

sys.path.insert(0, str(Path(__file__).parents[2] / "silc_bench" / "models" / "adapters"))
from test_big_vision import flax_arrays, pieces, theirs  # noqa: F401

from silc_bench.cli.app import app
from silc_bench.errors import UserError
from silc_bench.models.load import load_model
from silc_bench.trainer.checkpoints import file as checkpoint
from silc_bench.trainer.checkpoints import init as foreign_init
from silc_bench.trainer.checkpoints import model as native
from silc_bench.trainer.checkpoints import transformers as foreign_transformers
from silc_bench.trainer.checkpoints.export import export
from silc_bench.trainer.checkpoints.init import READ, UNMEASURED, read_start
from silc_bench.trainer.config.config import flatten
from silc_bench.trainer.config.overrides import apply_sets
from silc_bench.trainer.loop import run_training
from silc_bench.trainer.silc.tokenizers import ForeignTokenizer, Tokenizer, read_tokenizer
from silc_bench.trainer.train import TrainState

pytestmark = pytest.mark.broad

CPU = torch.device("cpu")
TEXTS = [*READ, "two dogs, please", "A RED RING!", "the sea"]
CAPTIONS = ["a red ring", "a blue star on a green ground", "the photo of a small dog"]


def fitted(config, init: str):
    """``config`` with the sizes that the refusal of ``init`` names: what it says must work."""
    config = replace(config, init=init)
    with pytest.raises(UserError, match="has other towers than this run") as refused:
        read_start(config)
    words = str(refused.value).rpartition("; use ")[2]
    assert "--preset" not in words, "no preset is nearer than the tiny configuration"
    config = apply_sets(config, re.findall(r"--set (\S+)", words))
    side = 3 * config.vision.patch_size
    views = replace(config.views, global_size=side, local_size=config.vision.patch_size)
    return replace(config, vision=replace(config.vision, image_size=side), views=views)


def at_source_size(config, model):
    return replace(config, vision=replace(config.vision, image_size=model.image_size))


def started(config) -> TrainState:
    start = read_start(config)
    return TrainState.create(config, start.tokenizer, CPU, start)


def pixels(size: int):
    return torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def assert_same(found, expected):
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.fixture
def uneven(tiny):
    """Towers of which no size is another's."""
    return tiny(
        vision={"image_size": 24, "width": 24, "depth": 2, "num_heads": 3, "mlp_dim": 50},
        text={"width": 40, "depth": 3, "num_heads": 5, "mlp_dim": 87},
        views={"global_size": 24},
        contrastive={"loss": "sigmoid"},
    )


def random_run(config, folder: Path) -> Path:
    """A checkpoint with no number zero or one by default, and a teacher unlike its student."""
    state = TrainState.create(
        config, Tokenizer.train(CAPTIONS, 300, config.text.context_length), CPU
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in state.student.parameters():
            parameter.normal_(std=0.05 if parameter.ndim > 1 else 0.2, generator=generator)
        for parameter in state.teacher.parameters():
            parameter.normal_(std=0.05 if parameter.ndim > 1 else 0.2, generator=generator)
        state.teacher.center.normal_(generator=generator)
        state.student.log_scale.fill_(2.5)
    checkpoint.save(folder, state.payload())
    return folder


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
    assert ("made by squash / none / bilinear" in said) == (kind == "siglip2"), (
        "what the folder says of its pictures"
    )
    network = transformers.AutoModel.from_pretrained(folder).eval()
    # its own tokenizer, compared with the library in tests/silc_bench/models
    tokens = model.tokenize(TEXTS)
    assert torch.equal(state.tokenizer(TEXTS), tokens)
    with torch.no_grad():
        outputs = network(input_ids=tokens, pixel_values=pixels(32))
        assert_same(state.student.vision(pixels(32)), outputs.vision_model_output.pooler_output)
        assert_same(state.student.text(tokens), outputs.text_model_output.pooler_output)
    assert state.student.log_scale.item() == network.logit_scale.item()
    assert state.student.logit_bias.item() == network.logit_bias.item()
    assert state.config.vision.gelu == ("exact" if kind == "exact gelu" else "tanh")


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

    config = replace(
        uneven, vision=replace(uneven.vision, gelu=gelu), text=replace(uneven.text, gelu=gelu)
    )
    run, folder = random_run(config, tmp_path / "run"), tmp_path / "open_clip"
    export(native.load(run), "open_clip", folder)
    state = started(replace(config, init=f"open_clip:{folder}"))
    network = open_clip.create_model_from_pretrained(
        f"local-dir:{folder}", return_transform=False
    ).eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)
    assert torch.equal(state.tokenizer(TEXTS), tokens)
    with torch.no_grad():
        assert_same(state.student.vision(pixels(24)), network.encode_image(pixels(24)))
        assert_same(state.student.text(tokens), network.encode_text(tokens))
    assert state.student.log_scale.item() == network.logit_scale.item()
    other = "exact" if gelu == "tanh" else "tanh"
    with pytest.raises(
        UserError, match=rf"vision\.gelu {gelu} there and {other} here.*--set vision\.gelu={gelu}"
    ):
        read_start(
            replace(config, init=f"open_clip:{folder}", vision=replace(config.vision, gelu=other))
        )


def test_big_vision(tiny, tmp_path, pieces, theirs):  # noqa: F811
    np.savez(tmp_path / "siglip.npz", **flax_arrays(theirs))
    shutil.copy(pieces["c4_en"], tmp_path / "sentencepiece.model")
    init = f"big_vision:{tmp_path / 'siglip.npz'}"
    model = load_model(init)
    state = started(at_source_size(fitted(tiny(), init), model))
    tokens = model.tokenize(TEXTS)
    assert torch.equal(state.tokenizer(TEXTS), tokens)
    with torch.no_grad():
        outputs = theirs(input_ids=tokens, pixel_values=pixels(24))
        assert_same(state.student.vision(pixels(24)), outputs.vision_model_output.pooler_output)
        assert_same(state.student.text(tokens), outputs.text_model_output.pooler_output)
    assert state.student.log_scale.item() == pytest.approx(theirs.logit_scale.item(), abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("clip", r"it is a CLIP \(a class token, a causal mask"),
        ("naflex", "it is a NaFlex SigLIP 2"),
        ("altclip", "it is an AltCLIP .*XLM-R"),
        ("chinese_clip", "it is a Chinese-CLIP .*BERT"),
    ],
)
def test_what_is_no_siglip_is_refused_with_what_can_be_used(kind, reason, tiny, tmp_path):
    folder = hf_folders.write(kind, tmp_path / kind)
    with pytest.raises(UserError, match=rf"--init hf:{folder}: {reason}.*start from a SigLIP"):
        read_start(replace(tiny(), init=f"hf:{folder}"))


TEXT_OF_CLIP = {"context_length": 12, "vocab_size": 49_408, "width": 32, "heads": 2, "layers": 1}
SMALL_CLIPS = {
    "small-clip": {"image_size": 32, "patch_size": 16, "width": 64, "layers": 1},
    "small-resnet": {"image_size": 32, "width": 8, "layers": [1, 1, 1, 1]},
}


@pytest.fixture
def small_clips(tmp_path):
    """open_clip knows SMALL_CLIPS as its own ViT-B-32 and RN50, of which they are small copies."""
    import open_clip

    folder = tmp_path / "archs"
    folder.mkdir()
    for name, vision in SMALL_CLIPS.items():
        hf_folders.write_json(
            folder / f"{name}.json",
            {"embed_dim": 32, "vision_cfg": vision, "text_cfg": TEXT_OF_CLIP},
        )
    open_clip.add_model_config(folder)
    yield
    open_clip.factory._MODEL_CONFIG_PATHS.remove(folder)
    for name in SMALL_CLIPS:
        del open_clip.factory._MODEL_CONFIGS[name]


@pytest.mark.usefixtures("small_clips")
@pytest.mark.parametrize(
    "spec",
    [
        "open_clip:small-clip/random",
        "open_clip:small-resnet/random",
        "timm:vit_tiny_patch16_224/random",
    ],
)
def test_other_libraries_models_that_are_no_siglip(spec, tiny):
    reason = "it reads no texts" if spec.startswith("timm") else "it is no SigLIP"
    with pytest.raises(UserError, match=rf"--init {spec}: {reason}"):
        read_start(replace(tiny(), init=spec))


def test_what_only_the_numbers_tell_is_refused(tiny, tmp_path, monkeypatch):
    """An architecture that passes every look at its parts and still computes something else."""
    folder = hf_folders.write("siglip", tmp_path / "hf")
    config = fitted(tiny(), f"hf:{folder}")
    monkeypatch.setitem(foreign_transformers.PARTS, "norm1", "layer_norm2")
    monkeypatch.setitem(foreign_transformers.PARTS, "norm2", "layer_norm1")
    with pytest.raises(
        UserError, match=r"embeddings of pictures come out otherwise .* nothing is approximated"
    ):
        read_start(config)


def with_weight(towers, name, value):
    return replace(
        towers, weights={**towers.weights, name: torch.full_like(towers.weights[name], value)}
    )


def with_another_token(towers):
    def tokenizer(texts):
        tokens = towers.tokenizer(texts).clone()
        tokens[texts.index("two  dogs\tand\n3.14 cats"), 0] += 1
        return tokens

    return replace(towers, tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            with_another_token,
            r"its tokenizer cannot be kept .*: 'two  dogs\\tand\\n3.14 cats' would be read as \[",
        ),
        (
            lambda towers: with_weight(towers, "vision.patch.bias", math.nan),
            "its embeddings of pictures come out otherwise",
        ),
        (
            lambda towers: with_weight(towers, "text.head.bias", 0.01),
            "its embeddings of texts come out otherwise",
        ),
    ],
)
def test_what_is_kept_is_proved_on_images_texts_and_tokens(
    tiny, tmp_path, monkeypatch, change, reason
):
    """Whatever a reader of another library's model gets wrong."""
    folder = hf_folders.write("siglip", tmp_path / "hf")
    read = foreign_init.towers_of
    monkeypatch.setattr(
        "silc_bench.trainer.checkpoints.init.towers_of", lambda model: change(read(model))
    )
    with pytest.raises(UserError, match=f"--init hf:{folder}: {reason}"):
        read_start(replace(tiny(), init=f"hf:{folder}"))


def test_norms_of_another_epsilon_and_other_pixels_are_refused(tiny, tmp_path):
    folder = hf_folders.write("siglip", tmp_path / "hf")
    hf_folders.change(folder / "preprocessor_config.json", **hf_folders.OPENAI)
    with pytest.raises(UserError, match="trained on pixels with mean"):
        read_start(replace(tiny(), init=f"hf:{folder}"))
    content = json.loads((folder / "config.json").read_text())
    content["text_config"]["layer_norm_eps"] = 1e-5
    hf_folders.write_json(folder / "config.json", content)
    with pytest.raises(UserError, match="its norms add 1e-05 to the variance, ours 1e-06"):
        read_start(replace(tiny(), init=f"hf:{folder}"))


# ---- runs made here ----


@pytest.mark.parametrize("branch", ["student", "teacher"])
def test_a_run(branch, uneven, tmp_path):
    run = random_run(uneven, tmp_path / "run")
    source, payload = native.load(run, branch), checkpoint.load(checkpoint.find(run))
    state = started(replace(uneven, init=f"{run}:{branch}"))
    with torch.no_grad():
        assert torch.equal(state.student.vision(pixels(24)), source.encode_image(pixels(24)))
        assert torch.equal(
            state.student.text(source.tokenize(TEXTS)), source.encode_text(source.tokenize(TEXTS))
        )
    assert torch.equal(state.student.head.prototypes, payload[branch]["head.prototypes"]), (
        "the head is the branch's"
    )
    assert torch.equal(state.teacher.center, payload["teacher"]["center"])
    for mine, ours in zip(
        state.teacher.vision.parameters(), state.student.vision.parameters(), strict=True
    ):
        assert torch.equal(mine, ours), "the teacher starts as the student's copy"
    assert state.student.log_scale.item() == 2.5
    assert state.student.logit_bias.item() == payload["student"]["logit_bias"].item()
    assert state.tokenizer.to_json() == payload["tokenizer"]
    assert (state.step, state.samples_seen, state.position) == (0, 0, 0)
    assert not state.optimizer.state, "the optimiser is fresh"


def test_an_export_has_no_head(uneven, tmp_path):
    export(
        native.load(random_run(uneven, tmp_path / "run")), "safetensors", tmp_path / "x.safetensors"
    )
    config = replace(uneven, init=str(tmp_path / "x.safetensors"))
    assert any(
        "starts afresh: the source has none" in sentence for sentence in read_start(config).said
    )
    fresh = TrainState.create(uneven, Tokenizer.train(CAPTIONS, 300, 12), CPU)
    assert torch.equal(started(config).student.head.prototypes, fresh.student.head.prototypes)


def test_a_head_of_another_shape_is_fresh_and_said(uneven, tmp_path):
    run = random_run(uneven, tmp_path / "run")
    config = replace(
        uneven, init=str(run), distillation=replace(uneven.distillation, num_prototypes=32)
    )
    said = " ".join(read_start(config).said)
    assert (
        "another shape (64 prototypes of 16) than this run's (32 of 16) and starts afresh" in said
    )
    assert started(config).teacher.center.abs().max() == 0


def test_a_run_without_self_distillation_takes_no_head(uneven, tmp_path):
    run = random_run(uneven, tmp_path / "run")
    config = replace(uneven, init=str(run), distillation=replace(uneven.distillation, weight=0.0))
    assert started(config).student.head is None
    begins = f"starts from {native.load(run).name}@{native.load(run).revision[:8]}"
    assert read_start(config).said == [begins, UNMEASURED]
    assert read_start(replace(config, probe=replace(config.probe, every=500))).said == [begins]


def test_images_of_another_size_interpolate_the_positions_and_say_so(uneven, tmp_path):
    run = random_run(uneven, tmp_path / "run")
    config = replace(uneven, init=str(run), vision=replace(uneven.vision, image_size=40))
    state, said = started(config), " ".join(read_start(config).said)
    assert "its positions, 3 x 3 for pictures of 24 px, are interpolated to 5 x 5 for 40 px" in said
    source = native.load(run)
    with torch.no_grad():
        assert_same(state.student.vision(pixels(40)), source.encode_image(pixels(40)))


@pytest.mark.parametrize("section", ["vision", "text"])
def test_other_sizes_name_both_sides_and_what_fits(section, uneven, tmp_path):
    run = random_run(uneven, tmp_path / "run")
    config = replace(uneven, init=str(run), **{section: replace(getattr(uneven, section), depth=5)})
    there = getattr(uneven, section).depth
    with pytest.raises(
        UserError,
        match=rf"{section}\.depth {there} there and 5 here; use --set {section}\.depth={there}$",
    ):
        read_start(config)


def test_the_preset_that_fits_is_named(tiny, tmp_path):
    from silc_bench.trainer.config.presets import configure

    run = random_run(
        configure("shapes_tiny", "silc", sets=["text.vocab_size=300"]), tmp_path / "run"
    )
    with pytest.raises(UserError, match=r"; use --preset shapes_tiny --set text\.vocab_size=300$"):
        read_start(replace(tiny(), init=str(run)))


def test_a_softmax_has_no_bias_and_a_sigmoid_starts_one(uneven, tmp_path):
    softmax = replace(uneven, contrastive=replace(uneven.contrastive, loss="softmax"))
    run = random_run(softmax, tmp_path / "run")
    config = replace(uneven, init=str(run))
    assert any(
        "it has no bias, which the sigmoid loss needs" in sentence
        for sentence in read_start(config).said
    )
    assert started(config).student.logit_bias.item() == -10
    assert (
        started(
            replace(softmax, init=str(random_run(uneven, tmp_path / "sigmoid")))
        ).student.logit_bias.item()
        == 0
    )


def test_what_is_not_there(uneven, tmp_path):
    with pytest.raises(
        UserError, match=r"--init nowhere: checkpoint nowhere: no such file or folder"
    ):
        read_start(replace(uneven, init="nowhere"))
    run = random_run(uneven, tmp_path / "run")
    with pytest.raises(UserError, match="unknown branch 'techer'; did you mean teacher"):
        read_start(replace(uneven, init=f"{run}:techer"))


# ---- the dry run ----


@pytest.fixture
def dry_run(uneven):
    """The command with the sizes of ``uneven``, which are no preset's."""
    named = (
        "vision.",
        "text.",
        "views.",
        "distillation.",
        "batch_size",
        "samples",
        "contrastive.loss",
    )
    sets = [
        f"--set={path}={value}".replace(" ", "")
        for path, value in flatten(uneven).items()
        if path.startswith(named)
    ]

    def run(*options):
        return CliRunner().invoke(
            app, ["train", "--preset=shapes_tiny", *sets, "--dry-run", *options], terminal_width=400
        )

    return run


def test_the_dry_run_says_what_the_start_would_say(dry_run, uneven, tmp_path):
    spec, changed = (
        f"{random_run(uneven, tmp_path / 'run')}:teacher",
        "distillation.num_prototypes=32",
    )
    done = dry_run(f"--init={spec}", f"--set={changed}")
    said = read_start(apply_sets(replace(uneven, init=spec), [changed])).said
    assert done.exit_code == 0
    assert done.output.splitlines()[: len(said)] == said
    assert len(said) == 3
    assert "memory, all of it" in done.output


@pytest.mark.parametrize("mistake", ["name", "branch", "cut", "sizes", "library"])
def test_the_dry_run_refuses_what_the_start_refuses(mistake, dry_run, uneven, tmp_path):
    run = random_run(uneven, tmp_path / "run")
    spec = {"name": "nowhere", "branch": f"{run}:techer", "library": f"hf:{tmp_path}"}.get(
        mistake, str(run)
    )
    config = replace(uneven, init=spec)
    if mistake == "cut":
        os.truncate(checkpoint.find(run), 5000)
    if mistake == "sizes":
        config = replace(config, text=replace(config.text, depth=5))
    with pytest.raises(UserError) as refused:
        read_start(config)
    done = dry_run(f"--init={spec}", f"--set=text.depth={config.text.depth}")
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr == f"error: {refused.value}\n"


def test_a_run_that_goes_on_reads_no_source_in_a_dry_run_either(dry_run):
    done = dry_run("--init=nowhere", "--resume")
    assert done.exit_code == 0
    assert "memory, all of it" in done.output


# ---- the run itself ----


def trained(config, run: Path, *, resume: bool = False) -> str:
    out = io.StringIO()
    run_training(config, run, resume=resume, device=CPU, console=Console(file=out, width=400))
    return out.getvalue()


def test_a_run_from_foreign_weights_is_whole_without_them(tiny, tmp_path):
    """It trains, stops, goes on and is measured after the source's folder is gone."""
    folder = hf_folders.write("siglip2", tmp_path / "hf")
    config = fitted(tiny(steps=4, contrastive={"loss": "sigmoid"}), f"hf:{folder}")
    said = trained(config, tmp_path / "whole")
    assert "starts from hf:hf@" in said
    trained(replace(config, samples=3 * config.batch_size), tmp_path / "part")
    state = TrainState.restore(checkpoint.load(checkpoint.find(tmp_path / "whole")), CPU)
    expected = load_model(f"hf:{folder}").tokenize(TEXTS)
    shutil.rmtree(folder)
    assert isinstance(state.tokenizer, ForeignTokenizer)
    assert torch.equal(state.tokenizer(TEXTS), expected)
    assert state.start["name"].startswith("hf:hf@")
    model = load_model(str(tmp_path / "whole"))
    assert torch.equal(model.tokenize(TEXTS), expected)
    export(model, "safetensors", tmp_path / "x.safetensors")
    assert torch.equal(load_model(str(tmp_path / "x.safetensors")).tokenize(TEXTS), expected)
    for target in ("hf", "open_clip"):
        with pytest.raises(UserError, match="its tokenizer is another library's"):
            export(model, target, tmp_path / target)


def test_a_resumed_run_ends_bit_for_bit_and_does_not_read_the_source_again(
    uneven, tmp_path, monkeypatch, few_captions
):
    config = replace(uneven, init=str(random_run(uneven, tmp_path / "source")), checkpoint_every=2)
    trained(config, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    (tmp_path / "part" / "checkpoints" / "step_00000004.pt").unlink()
    shutil.rmtree(tmp_path / "source")
    trained(config, tmp_path / "part", resume=True)
    ends = [checkpoint.load(checkpoint.find(tmp_path / name)) for name in ("whole", "part")]
    assert ends[0]["step"] == ends[1]["step"] == 4
    assert all(
        torch.equal(value, ends[1]["student"][name]) for name, value in ends[0]["student"].items()
    )
    with pytest.raises(UserError, match=r"started with another configuration \(init "):
        trained(replace(config, init="elsewhere"), tmp_path / "part", resume=True)


def test_a_damaged_foreign_tokenizer_is_one_sentence(tiny, tmp_path):
    folder = hf_folders.write("siglip", tmp_path / "hf")
    text = started(
        at_source_size(fitted(tiny(), f"hf:{folder}"), load_model(f"hf:{folder}"))
    ).tokenizer.to_json()
    assert torch.equal(
        read_tokenizer(text)(TEXTS), read_tokenizer(read_tokenizer(text).to_json())(TEXTS)
    )
    for broken in (
        text[:-20],
        text.replace('"cleaning": "none"', '"cleaning": "more"'),
        text.replace('"length"', '"len"'),
    ):
        with pytest.raises(UserError, match="a tokenizer kept from another library's model"):
            read_tokenizer(broken)


def test_a_token_without_an_embedding_is_named(tiny, tmp_path):
    folder = hf_folders.write("siglip", tmp_path / "hf")
    described = json.loads(
        started(
            at_source_size(fitted(tiny(), f"hf:{folder}"), load_model(f"hf:{folder}"))
        ).tokenizer.to_json()
    )
    with pytest.raises(UserError, match=r"'the sea' has the token .* but the text tower knows 3"):
        ForeignTokenizer({**described, "vocab_size": 3})(["the sea"])


def test_silc_star_is_a_second_phase(uneven, tmp_path):
    """From a finished run on a cleaner set, with the preset's own schedule.

    Without one it says what it needs.
    """
    from silc_bench.trainer.config.presets import configure

    shrunk = [
        f"{path}={value}"
        for path, value in flatten(uneven).items()
        if path.startswith(("vision.", "text."))
    ]
    shrunk += [
        "views.global_size=24",
        "views.local_size=8",
        "views.num_local=2",
        "batch_size=8",
        "data.decode_size=32",
    ]
    shrunk += [
        "distillation.num_prototypes=64",
        "distillation.hidden_dim=32",
        "distillation.bottleneck_dim=16",
    ]
    shrunk += ["precision=fp32", "probe.tasks=shapes/zeroshot", "probe.limit=16"]
    options = {"data": "shapes", "samples": 32, "sets": shrunk}
    with pytest.raises(
        UserError, match="preset silc_star goes on from a finished run: name it, as in --init"
    ):
        trained(configure("silc_star", "silc", **options), tmp_path / "star")
    run = random_run(uneven, tmp_path / "first")
    said = trained(
        configure("silc_star", "silc", init=f"{run}:teacher", **options), tmp_path / "star"
    )
    assert "starts from tiny-silc:teacher@" in said
    assert "its head for self-distillation and the centre are taken over" in said
    payload = checkpoint.load(checkpoint.find(tmp_path / "star"))
    before = checkpoint.load(checkpoint.find(run))["teacher"]
    assert payload["step"] == 4
    assert not torch.equal(
        payload["teacher"]["vision.patch.weight"], before["vision.patch.weight"]
    ), "it really learns on"
    assert (
        payload["student"]["vision.patch.weight"] - before["vision.patch.weight"]
    ).abs().max() < 1e-3, "from there"
