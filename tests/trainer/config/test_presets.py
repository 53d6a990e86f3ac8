"""Presets: the recipe's numbers, their provenance, and how a configuration is put together."""

import re
from dataclasses import fields, is_dataclass

import pytest

from silc_bench.errors import UserError
from silc_bench.trainer.config.config import OBJECTIVES, Config, flatten, validate
from silc_bench.trainer.config.presets import (
    PRESETS,
    PROVENANCE,
    PROVENANCE_OF,
    configure,
    make_preset,
    provenance_of,
)

REAL = ("b16", "l16", "so400m", "g16")


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_valid_and_knows_its_name(name):
    config = make_preset(name)
    assert config.preset == name
    assert validate(config) is config


@pytest.mark.parametrize("name", REAL)
def test_the_recipe(name):
    """Naeem et al. 2310.13355, as far as it is known."""
    config = make_preset(name)
    views, distillation, optim = config.views, config.distillation, config.optim
    assert (views.num_global, views.num_local) == (2, 8)
    assert (views.global_area, views.local_area) == ((0.4, 1.0), (0.05, 0.4))
    assert (views.global_size, views.local_size) == (256, 96)
    assert (distillation.num_prototypes, distillation.student_temp, distillation.teacher_temp) == (
        65_536,
        0.1,
        0.04,
    )
    assert (distillation.center_momentum, distillation.ema_momentum) == (0.9, 0.966)
    assert (distillation.hidden_dim, distillation.bottleneck_dim, distillation.weight) == (
        2048,
        256,
        1.0,
    )
    assert (config.contrastive.loss, config.contrastive.images) == ("sigmoid", "global")
    assert (config.contrastive.init_scale, config.contrastive.init_bias) == (10.0, -10.0)
    assert (config.batch_size, config.samples) == (16_384, 20_000_000_000)
    assert (optim.lr, optim.schedule, optim.beta2, optim.weight_decay, optim.clip_norm) == (
        1e-3,
        "rsqrt",
        0.95,
        1e-4,
        1.0,
    )
    assert (
        round(optim.warmup_fraction * config.num_steps)
        == round(optim.cooldown_fraction * config.num_steps)
        == 50_000
    )
    assert (config.text.vocab_size, config.text.context_length) == (32_000, 64)


def test_siglip2_dense():
    """Tschannen et al. 2502.14786 at ViT-B/16, as far as it is known.

    The factor of this size is 0.25.
    """
    config = make_preset("siglip2_dense")
    assert (config.views.num_global, config.views.num_local, config.contrastive.images) == (
        1,
        8,
        "original",
    )
    assert (config.contrastive.loss, config.masked.ratio, config.num_masked) == (
        "sigmoid",
        0.5,
        128,
    )
    assert (config.distillation.weight, config.masked.weight) == (0.25 * 1, 0.25 * 0.25)
    assert config.start_step == round(0.8 * config.num_steps) == 976_562
    assert config.view_kinds == {"global_crops", "local_crops", "original"}
    assert config.view_kinds_at(config.start_step - 1) == {"original"}


def test_tips():
    """Maninis et al. 2410.16512 at ViT-B/16, as far as it is known."""
    config = make_preset("tips")
    distillation, views = config.distillation, config.views
    assert (config.contrastive.loss, distillation.weight, config.masked.weight) == (
        "softmax",
        1.0,
        2.0,
    )
    assert (distillation.num_prototypes, distillation.teacher_temp, config.start_step) == (
        32_768,
        0.07,
        0,
    )
    assert (views.jitter_prob, views.gray_prob, views.blur_probs, views.solarize_prob) == (
        0,
        0,
        (0, 0, 0),
        0,
    )


@pytest.mark.parametrize("name", PROVENANCE_OF)
def test_a_neighbour_says_of_each_field_that_departs_how_sure_it_is(name):
    """And never that SILC's paper is sure of a value that is not SILC's."""
    base, config = flatten(make_preset("b16")), flatten(make_preset(name))
    for path in [
        path for path, value in config.items() if value != base[path] and path != "preset"
    ]:
        own = {path, path.rpartition(".")[0]} & set(PROVENANCE_OF[name])
        assert own, path
        assert provenance_of(path, name) != provenance_of(path)


@pytest.mark.parametrize("name", REAL)
def test_the_two_towers_have_the_same_shape(name):
    config = make_preset(name)
    shape = ("width", "depth", "num_heads", "mlp_dim")
    assert [getattr(config.vision, f) for f in shape] == [getattr(config.text, f) for f in shape]


def test_provenance_speaks_of_fields_that_exist():
    groups = {f.name for f in fields(Config)}
    known = set(flatten(make_preset("b16"))) | groups
    for table in (PROVENANCE, *PROVENANCE_OF.values()):
        assert set(table) <= known
        assert all(
            words.split(":")[0].split()[0] in ("sure", "likely", "open") for words in table.values()
        )
    assert set(PROVENANCE_OF) <= set(PRESETS)


def test_the_second_phase_is_b16_but_for_its_length_and_rate():
    first, second = flatten(make_preset("b16")), flatten(make_preset("silc_star"))
    differ = {path for path in first if first[path] != second[path]} - {"preset"}
    assert differ == {"samples", "optim.lr", "optim.warmup_fraction", "optim.cooldown_fraction"}
    assert differ < set(PROVENANCE_OF["silc_star"])
    assert second["samples"] == 1_000_000_000
    assert provenance_of("optim.lr", "silc_star").startswith("open")
    assert provenance_of("optim.lr", "b16").startswith("likely")


def test_every_number_of_the_recipe_has_a_provenance():
    """The recipe's groups say how sure each of their fields is; our own affairs say nothing."""
    own = {
        "init",
        "preset",
        "objective",
        "seed",
        "precision",
        "micro_batch",
        "log_every",
        "checkpoint_every",
        "checkpoint_minutes",
        "average_momentum",
        "checkpointing",
        "compile",
    }
    config = make_preset("b16")
    for path in flatten(config):
        is_own = (
            path in own
            or path.startswith("probe.")
            or (path.startswith("data.") and path != "data.decode_size")
        )
        assert bool(provenance_of(path)) == (not is_own), path
    assert provenance_of("views.num_local") == "sure"
    assert provenance_of("views.flip_prob") == PROVENANCE["views"]
    assert all(
        is_dataclass(getattr(config, group))
        for group in {path.split(".")[0] for path in PROVENANCE if "." in path}
    )


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(UserError, match=r"preset 'b61'; did you mean .*b16"):
        make_preset("b61")
    with pytest.raises(UserError, match=r"shapes_tiny"):
        make_preset("shapes-tiny")
    with pytest.raises(UserError, match=r"known: b16, .*so400m"):
        make_preset("resnet")


def test_configure_lets_the_user_speak_last():
    config = configure(
        "cifar_tiny",
        "contrastive",
        data="x.tar",
        samples=1000,
        seed=3,
        sets=["optim.lr=2e-3", "samples=2000"],
    )
    assert (config.preset, config.objective, config.contrastive.images) == (
        "cifar_tiny",
        "contrastive",
        "original",
    )
    assert (config.data.source, config.samples, config.optim.lr) == ("x.tar", 2000, 2e-3)
    assert (config.seed, config.data.seed) == (3, 3)


def test_the_seed_names_the_whole_run():
    """0 is a seed too, not the absence of one."""
    assert configure("shapes_tiny", "silc", seed=0) == configure("shapes_tiny", "silc")
    assert configure("shapes_tiny", "silc", seed=7).data.seed == 7


def test_only_shapes_tiny_brings_its_data():
    assert {name for name in PRESETS if configure(name, "silc").data.source} == {"shapes_tiny"}


@pytest.mark.parametrize(
    ("samples", "words"),
    [(0, "samples must be at least 1"), (63, "samples must be at least batch_size")],
)
def test_configure_checks_the_whole(samples, words):
    with pytest.raises(UserError, match=words):
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
    ("shapes_tiny", "probe.tasks=shapes/knn", "probe.every=10"),
    ("shapes_tiny", "probe.limit=10", "probe.every=10"),
]


@pytest.mark.parametrize(("preset", "sets", "other"), IDLE)
def test_a_change_that_would_do_nothing_is_refused(preset, sets, other):
    *_, idle = sets.split()
    with pytest.raises(UserError, match=f"^--set {idle.partition('=')[0]} would do nothing: "):
        configure(preset, "silc", sets=sets.split())
    configure(preset, "silc", sets=[*sets.split(), other])


def test_the_arms_of_an_ablation_may_share_what_belongs_to_a_teacher():
    for objective in OBJECTIVES:
        configure(
            "siglip2_dense", objective, sets=["masked.ratio=0.3", "distillation.teacher_temp=0.05"]
        )


@pytest.mark.parametrize(
    ("objective", "sets", "words"),
    [
        (
            "contrastive",
            "distillation.weight=1",
            "objective contrastive has no teacher, and distillation.weight=1",
        ),
        (
            "contrastive+views",
            "masked.weight=1",
            "has no teacher, and distillation.weight=0, masked.weight=1",
        ),
        (
            "silc",
            "distillation.weight=0",
            "objective silc without distillation.weight and masked.weight",
        ),
        ("contrastive", "contrastive.images=global", "objective contrastive is without views"),
        ("silc", "vision.image_size=384", "views.global_size=256 and vision.image_size=384 differ"),
    ],
)
def test_a_run_that_is_not_what_its_name_says_is_refused(objective, sets, words):
    with pytest.raises(UserError, match=re.escape(words)):
        configure("b16", objective, sets=sets.split())


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_preset_and_objective_is_what_its_name_says(preset, objective):
    assert configure(preset, objective).name == f"{preset}-{objective}"
