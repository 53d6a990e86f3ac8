"""Presets: the recipe's numbers, their provenance, and how a configuration is put together."""

from dataclasses import fields

import pytest
from refusals import refused

from silc_bench.errors import UserError
from silc_bench.trainer.config.config import OBJECTIVES, Config, TextConfig, VisionConfig, flatten
from silc_bench.trainer.config.presets import (
    PRESETS,
    PROVENANCE,
    PROVENANCE_OF,
    TINY,
    configure,
    make_preset,
    provenance_of,
)

REAL = ("b16", "l16", "so400m", "g16")
SOURCES = {  # google-research/big_vision (positions), facebookresearch/dino
    "vision.init_positions": "normal",
    "views.resize": "bicubic",
    "views.blur_size": 0,
    "views.blur_sigma": (0.1, 2.0),
    "distillation.init_prototypes": "uniform",
}


def assert_holds(config, expected):
    """``expected``: {"section.field": value}."""
    fields = flatten(config)
    assert {path: fields[path] for path in expected} == expected


@pytest.mark.parametrize("name", REAL)
def test_the_recipe(name):
    """Naeem et al. 2310.13355, as far as it is known."""
    config = make_preset(name)
    expected = {
        "views.num_global": 2,
        "views.num_local": 8,
        "views.global_area": (0.4, 1.0),
        "views.local_area": (0.05, 0.4),
        "views.global_size": 256,
        "views.local_size": 96,
        "distillation.num_prototypes": 65_536,
        "distillation.student_temp": 0.1,
        "distillation.teacher_temp": 0.04,
        "distillation.center_momentum": 0.9,
        "distillation.ema_momentum": 0.966,
        "distillation.hidden_dim": 2048,
        "distillation.bottleneck_dim": 256,
        "distillation.weight": 1.0,
        "contrastive.loss": "sigmoid",
        "contrastive.images": "global",
        "contrastive.init_scale": 10.0,
        "contrastive.init_bias": -10.0,
        "optim.lr": 1e-3,
        "optim.schedule": "rsqrt",
        "optim.beta2": 0.95,
        "optim.weight_decay": 1e-4,
        "optim.clip_norm": 1.0,
        "text.vocab_size": 32_000,
        "text.context_length": 64,
        "batch_size": 16_384,
        "samples": 20_000_000_000,
    }
    for size in ("width", "depth", "num_heads", "mlp_dim"):
        expected[f"vision.{size}"] = getattr(config.text, size)
    assert_holds(config, expected)
    for fraction in (config.optim.warmup_fraction, config.optim.cooldown_fraction):
        assert round(fraction * config.num_steps) == 50_000


@pytest.mark.parametrize("name", PRESETS)
def test_details_are_the_sources_but_of_the_tiny_presets(name):
    """These have committed results, and keep what they were trained with: every field's default.

    So the sources are named for the others alone.
    """
    before = flatten(Config("", VisionConfig(), TextConfig()))
    assert_holds(
        make_preset(name), {path: before[path] for path in SOURCES} if name in TINY else SOURCES
    )
    assert all(bool(provenance_of(path, name)) == (name not in TINY) for path in SOURCES)


def test_siglip2_dense():
    """Tschannen et al. 2502.14786 at ViT-B/16, as far as it is known.

    The factor of this size is 0.25.
    """
    config = make_preset("siglip2_dense")
    expected = {
        "views.num_global": 1,
        "views.num_local": 8,
        "contrastive.loss": "sigmoid",
        "contrastive.images": "original",
        "masked.weight": 0.25 * 0.25,
        "masked.ratio": 0.5,
        "distillation.weight": 0.25,
        "distillation.ema_momentum": 0.966,
        "distillation.ema_batch": 32_768,
    }
    assert_holds(config, expected)
    assert (config.num_masked, config.start_step) == (128, 976_562)
    assert config.view_kinds == {"global_crops", "local_crops", "original"}
    assert config.view_kinds_at(config.start_step - 1) == {"original"}


def test_tips():
    """Maninis et al. 2410.16512 at ViT-B/16, as far as it is known."""
    expected = {
        "contrastive.loss": "softmax",
        "distillation.weight": 1.0,
        "distillation.num_prototypes": 32_768,
        "distillation.teacher_temp": 0.07,
        "distillation.start_fraction": 0.0,
        "distillation.ema_momentum": 0.994,
        "distillation.ema_schedule": "cosine",
        "distillation.ema_batch": 16_384,
        "masked.weight": 2.0,
        "masked.ratio": 0.75,
        "views.num_global": 1,
        "batch_size": 16_384,
        "samples": 8_120_000_000,
        "views.jitter_prob": 0,
        "views.gray_prob": 0,
        "views.blur_probs": (0, 0, 0),
        "views.solarize_prob": 0,
    }
    assert_holds(make_preset("tips"), expected)


@pytest.mark.parametrize("name", PROVENANCE_OF)
def test_a_neighbour_says_of_each_field_that_departs_how_sure_it_is(name):
    """And never that SILC's paper is sure of a value that is not SILC's."""
    base, config = flatten(make_preset("b16")), flatten(make_preset(name))
    for path, value in config.items():
        if value != base[path] and path != "preset":
            own = {path, path.rpartition(".")[0]} & set(PROVENANCE_OF[name])
            assert own, path
            assert provenance_of(path, name) != provenance_of(path)


def test_provenance_speaks_of_fields_that_exist():
    groups = {f.name for f in fields(Config)}
    known = set(flatten(make_preset("b16"))) | groups
    for table in (PROVENANCE, *PROVENANCE_OF.values()):
        assert set(table) <= known
        for words in table.values():
            assert words.startswith(("sure", "likely", "open"))
    assert set(PROVENANCE_OF) <= set(PRESETS)


def test_the_second_phase_is_b16_but_for_its_length_and_rate():
    first, second = flatten(make_preset("b16")), flatten(make_preset("silc_star"))
    differ = {path for path in first if first[path] != second[path]} - {"preset"}
    assert differ == {"samples", "optim.lr", "optim.warmup_fraction", "optim.cooldown_fraction"}
    assert second["samples"] == 1_000_000_000


OWN = """
    init preset objective seed precision micro_batch log_every compile exchange checkpoint_every
    checkpoint_keep_every checkpoint_minutes average_momentum checkpointing parallel probe. data.
"""


def test_every_number_of_the_recipe_has_a_provenance():
    """Our own affairs say nothing."""
    for path in flatten(make_preset("b16")):
        is_own = path.startswith(tuple(OWN.split())) and path != "data.decode_size"
        assert bool(provenance_of(path)) == (not is_own), path
    assert provenance_of("views.num_local") == "sure"
    assert provenance_of("views.flip_prob") == PROVENANCE["views"]


def test_a_tiny_preset_tells_how_its_rate_and_clipping_were_found():
    for name, words in TINY.items():
        told = {path: provenance_of(path, name) for path in flatten(make_preset(name))}
        told = {path: said for path, said in told.items() if said}
        assert told == dict.fromkeys(("optim.lr", "optim.clip_norm"), words)
        assert words.startswith("open")
        assert "results/" in words


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(UserError, match="shapes_tiny"):
        make_preset("shapes-tiny")


def test_configure_lets_the_user_speak_last():
    config = configure(
        "cifar_tiny",
        "contrastive",
        data="x.tar",
        samples=1000,
        seed=3,
        sets=["optim.lr=2e-3", "samples=2000"],
    )
    expected = {
        "preset": "cifar_tiny",
        "objective": "contrastive",
        "contrastive.images": "original",
        "data.source": "x.tar",
        "data.seed": 3,
        "samples": 2000,
        "optim.lr": 2e-3,
        "seed": 3,
    }
    assert_holds(config, expected)


def test_the_seed_names_the_whole_run():
    """0 is a seed too, not the absence of one."""
    assert configure("shapes_tiny", "silc", seed=0) == configure("shapes_tiny", "silc")


def test_only_presets_of_generated_scenes_bring_their_data():
    assert {name for name in PRESETS if configure(name, "silc").data.source} == {
        "shapes_tiny",
        "places_tiny",
    }


@pytest.mark.parametrize("samples", [0, 63])
def test_configure_checks_the_whole(samples):
    with refused(about="samples"):
        configure("shapes_tiny", "silc", samples=samples)


# preset, changes of which the last does nothing, and a change beside which it does something
IDLE = [
    ("b16", "optim.schedule=cosine optim.cooldown_fraction=0.1", "optim.schedule=wsd"),
    ("b16", "contrastive.loss=softmax contrastive.init_bias=-5", "contrastive.loss=sigmoid"),
    (
        "b16",
        "distillation.centering=sinkhorn distillation.center_momentum=0.5",
        "distillation.centering=mean",
    ),
    ("b16", "masked.ratio=0.3", "masked.weight=0.5"),
    ("shapes_tiny", "views.jitter=0.2,0.2,0.2,0.1", "views.jitter_prob=0.5"),
    ("shapes_tiny", "views.blur_sigma=0.2,1", "views.blur_probs=0,0,0.5"),
    ("siglip2_dense", "views.solarize_prob=0.1", "views.num_global=2"),
    ("b16", "tokenizer=c4_en.model tokenizer_captions=9", "tokenizer="),
    ("shapes_tiny", "probe.tasks=shapes/knn", "probe.every=10"),
    ("shapes_tiny", "probe.limit=10", "probe.every=10"),
    ("shapes_tiny", "probe.teacher=true", "probe.every=10"),
]


@pytest.mark.parametrize(("preset", "sets", "other"), IDLE)
def test_a_change_that_would_do_nothing_is_refused(preset, sets, other):
    *_, idle = sets.split()
    with refused(about=f"--set {idle.partition('=')[0]}"):
        configure(preset, "silc", sets=sets.split())
    configure(preset, "silc", sets=[*sets.split(), other])


def test_the_arms_of_an_ablation_may_share_what_belongs_to_a_teacher():
    for objective in OBJECTIVES:
        configure(
            "siglip2_dense", objective, sets=["masked.ratio=0.3", "distillation.teacher_temp=0.05"]
        )


@pytest.mark.parametrize(
    ("objective", "change", "about"),
    [
        ("contrastive", "distillation.weight=1", "--objective contrastive"),
        ("contrastive+views", "masked.weight=1", "--objective contrastive+views"),
        ("silc", "distillation.weight=0", "--objective silc"),
        ("contrastive", "contrastive.images=global", "--objective contrastive"),
        ("silc", "vision.image_size=384", "views.global_size"),
        ("silc", "data.decode_size=255", "data.decode_size"),
    ],
)
def test_a_run_that_is_not_what_its_name_says_is_refused(objective, change, about):
    with refused(about=about):
        configure("b16", objective, sets=[change])


@pytest.mark.parametrize(
    ("objective", "sets", "pixels", "canvas"),
    [
        ("silc", "", 430, 512),  # 96 / sqrt(0.05); 495.7 of an image of 3 to 4
        ("silc", "views.local_area=0.2,0.4", 405, 480),  # 256 / sqrt(0.4); 467.4
        ("silc", "views.local_size=112", 501, 608),  # 578.4
        ("contrastive+views", "", 405, 480),
        ("contrastive", "", 256, 352),  # 341.3: the shorter side has 256
        ("contrastive", "data.decode_size=300", 256, 300),
    ],
)
def test_the_pixels_that_the_smallest_crop_of_a_step_needs(objective, sets, pixels, canvas):
    """Of a square image; and the side of the square that an image is decoded to."""
    config = configure("b16", objective, sets=sets.split())
    assert (config.needed_pixels, config.canvas) == (pixels, canvas)


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_preset_and_objective_is_what_its_name_says(preset, objective):
    assert configure(preset, objective).name == f"{preset}-{objective}"
