"""Configuration: typed --set, nearest names, validate's rules, the checkpoint's JSON and back."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused

from silc_bench.errors import UserError
from silc_bench.trainer.config import config as module
from silc_bench.trainer.config.config import (
    CHOICES,
    Config,
    TextConfig,
    ViewsConfig,
    VisionConfig,
    apply_objective,
    changed,
    flatten,
    from_dict,
    to_dict,
    validate,
)
from silc_bench.trainer.config.identity import recipe_of
from silc_bench.trainer.config.overrides import apply_sets
from silc_bench.trainer.config.presets import PRESETS, configure

TOWER = {"width": 128, "depth": 4, "num_heads": 4, "mlp_dim": 512}
BASE = Config(
    preset="base",
    vision=VisionConfig(image_size=64, patch_size=8, **TOWER),
    text=TextConfig(vocab_size=512, context_length=24, **TOWER),
    views=ViewsConfig(global_size=64, local_size=24),
    batch_size=128,
    samples=25_600,
)
FIELDS = flatten(BASE)
# Of shapes_tiny before there were fields of YOUNGER, with the rate that it had then.
RECIPE, AS_THEN = "5ed24eb089f2dd3c", "optim.lr=2e-3"


def value_of(config, path):
    return flatten(config)[path]


def differing(config):
    return {path for path in FIELDS if value_of(config, path) != FIELDS[path]}


# --- --set ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("item", "path", "value"),
    [
        ("batch_size=64", "batch_size", 64),
        ("samples=1e4", "samples", 10_000),
        ("samples=25_600", "samples", 25_600),
        ("samples=2.5E4", "samples", 25_000),
        ("optim.lr=1", "optim.lr", 1.0),
        (" optim.lr = 0.5 ", "optim.lr", 0.5),
        ("views.local_area=0.1,0.3", "views.local_area", (0.1, 0.3)),
        ("views.jitter=(0.1, 0.2, 0.3, 0)", "views.jitter", (0.1, 0.2, 0.3, 0.0)),
        ("contrastive.loss=softmax", "contrastive.loss", "softmax"),
        ("data.source=a=b/{0..3}.tar", "data.source", "a=b/{0..3}.tar"),
    ],
)
def test_set_reads_a_value_as_its_fields_type(item, path, value):
    config = apply_sets(BASE, [item])
    assert value_of(config, path) == value
    assert type(value_of(config, path)) is type(FIELDS[path])
    assert differing(config) <= {path}


def test_later_sets_win():
    assert apply_sets(BASE, ["optim.lr=1", "optim.lr=2"]).optim.lr == 2


@pytest.mark.parametrize(
    ("item", "about"),
    [
        ("batch_size=12.5", "batch_size"),
        ("batch_size=1.5e0", "batch_size"),
        ("batch_size=1e999", "batch_size"),
        ("batch_size=", "batch_size"),
        ("optim.lr=fast", "optim.lr"),
        ("compile=1", "compile"),
        ("views.local_area=0.1", "views.local_area"),
        ("views.local_area=0.1,x", "views.local_area"),
        ("optim.lr", "--set optim.lr"),
        ("objective=contrastive", "--set objective=contrastive"),
        ("preset=b16", "--set preset=b16"),
    ],
)
def test_set_refuses_what_cannot_be_meant(item, about):
    with refused(about=about):
        apply_sets(BASE, [item])


@pytest.mark.parametrize(
    ("path", "nearest"),
    [
        ("optm.lr", "optim.lr"),
        ("optim", "optim.lr"),
        ("batchsize", "batch_size"),
        ("zzz", "known: "),
    ],
)
def test_an_unknown_field_names_the_nearest(path, nearest):
    with refused(about=f"--set {path}=1") as caught:
        apply_sets(BASE, [f"{path}=1"])
    assert nearest in caught.value.fix


@given(text=st.text(max_size=12), path=st.sampled_from(sorted(FIELDS)))
def test_any_text_is_a_valid_configuration_or_one_sentence(text, path):
    try:
        config = apply_sets(BASE, [f"{path}={text}"])
    except UserError:
        return
    assert validate(config) is config


# --- rules ----------------------------------------------------------------------------------------

# changes, and the field that they break
BROKEN = [
    ("exchange=bf16 parallel=fsdp", "exchange"),
    ("contrastive.max_scale=9", "contrastive.max_scale"),
    ("checkpointing=blocks:99", "checkpointing"),
    ("vision.image_size=60", "vision.image_size"),
    ("views.global_size=60", "views.global_size"),
    ("views.local_size=20", "views.local_size"),
    ("vision.num_heads=3", "vision.width"),
    ("vision.width=130 vision.num_heads=2", "vision.width"),
    ("text.num_heads=3", "text.width"),
    ("checkpoint_keep_every=3 checkpoint_every=2", "checkpoint_keep_every"),
    ("views.num_local=0", "views.num_local"),
    ("views.num_local=0 distillation.pairs=local+global views.num_global=1", "views.num_local"),
    ("views.local_area=0.4,0.1", "views.local_area"),
    ("views.blur_sigma=2,1", "views.blur_sigma"),
    ("views.jitter=0.4,0.4,0.2,0.6", "views.jitter"),
    ("masked.weight=1 masked.ratio=1", "masked.ratio"),
    ("masked.weight=1 masked.ratio=0", "masked.ratio"),
    ("distillation.start_fraction=0.999", "distillation.start_fraction"),
    ("optim.locked=vision", "optim.locked"),
    ("optim.kind=adafactor optim.beta2=0.99", "optim.beta2"),
    ("optim.warmup_fraction=0.97", "optim.warmup_fraction"),
    ("samples=127", "samples"),
    ("init=runs/first tokenizer=c4_en.model", "tokenizer"),
]
# a value, and the fields for which it is too much or too little
OUTSIDE = {
    "0": "contrastive.init_scale data.mirror_gb distillation.student_temp distillation.teacher_temp"
    " optim.clip_norm optim.lr optim.layer_decay",
    "0,0.4": "views.local_area views.global_area views.blur_sigma",
    "1": "batch_size distillation.num_prototypes average_momentum distillation.start_fraction"
    " optim.beta1 optim.beta2",
    "1.01": "distillation.ema_momentum distillation.center_momentum optim.layer_decay"
    " views.flip_prob views.gray_prob views.jitter_prob views.solarize_prob",
    "0.4,1.1": "views.global_area views.local_area",
    "0,0,2": "views.blur_probs",
    "9223372036854775808": "seed data.seed",
}
MAY_BE_ZERO = (
    "distillation.ema_batch micro_batch views.num_local data.num_workers data.decode_size data.seed"
    " seed probe.every checkpoint_keep_every views.blur_size tokenizer_captions"
)


def test_every_rule_refuses_and_names_its_field():
    problems = set()
    for items, about in BROKEN:
        with refused(about=about) as caught:
            apply_sets(BASE, items.split())
        problems.add(caught.value.problem)
    assert {rule.problem for rule in module.RULES} <= problems


@pytest.mark.parametrize(
    ("path", "value"), [(path, value) for value in OUTSIDE for path in OUTSIDE[value].split()]
)
def test_numbers_outside_their_bounds_are_refused(path, value):
    with refused(about=path, is_kept=False):
        apply_sets(BASE, [f"{path}={value}"])


@pytest.mark.parametrize(
    "path", [path for path, value in FIELDS.items() if not isinstance(value, str | bool)]
)
def test_no_number_is_negative_or_endless_and_few_are_zero(path):
    """0 patches, heads or steps would divide by zero."""
    default = FIELDS[path]
    values = ["-1"] if path != "data.num_workers" else ["-2"]  # -1: as many as there are cores
    if isinstance(default, float | tuple):
        values = ["nan", "inf"] + ["-1"] * (path != "contrastive.init_bias")
    elif path not in MAY_BE_ZERO.split():
        values.append("0")
    for value in values:
        repeated = ",".join([value] * len(default)) if isinstance(default, tuple) else value
        with refused(about=path, is_kept=False):
            apply_sets(BASE, [f"{path}={repeated}"])


@pytest.mark.parametrize("path", CHOICES)
def test_choices_are_closed_and_name_the_nearest(path):
    for value in CHOICES[path]:
        fitting = ["distillation.weight=0"] if value == "vision" else []
        assert value_of(apply_sets(BASE, [*fitting, f"{path}={value}"]), path) == value
    with refused(about=path) as caught:
        apply_sets(BASE, [f"{path}={value}x"])
    assert value in caught.value.fix


def test_distillation_needs_a_pair_of_views():
    """A lone global view cannot be compared with itself: without local views it takes two."""
    for other in ("distillation.pairs=local+global", "distillation.weight=0"):
        assert apply_sets(BASE, ["views.num_local=0", other]).views.num_local == 0


# --- objectives -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "fields"),
    [
        ("silc", set()),
        ("contrastive+views", {"objective", "distillation.weight"}),
        ("contrastive", {"objective", "distillation.weight", "contrastive.images"}),
    ],
)
def test_an_objective_takes_a_part_away_and_nothing_else(objective, fields):
    config = apply_objective(BASE, objective)
    assert differing(config) == fields
    assert config.name == f"base-{objective}"


@pytest.mark.parametrize(
    ("objective", "images", "num_local", "kinds"),
    [
        ("silc", "global", 8, "global_crops local_crops"),
        ("silc", "original", 8, "global_crops local_crops original"),
        ("silc", "global", 0, "global_crops"),
        ("contrastive+views", "global", 8, "global_crops"),
        ("contrastive+views", "original+global", 8, "global_crops original"),
        ("contrastive", "original", 8, "original"),
    ],
)
def test_only_the_views_that_a_step_uses_are_made(objective, images, num_local, kinds):
    fields = {"contrastive.images": images, "views.num_local": num_local}
    config = changed(apply_objective(BASE, objective), fields)
    assert config.view_kinds == set(kinds.split())


@pytest.mark.parametrize(("samples", "steps"), [(128, 1), (255, 1), (256, 2), (25_600, 200)])
def test_steps_are_whole_batches(samples, steps):
    assert replace(BASE, samples=samples).num_steps == steps


# --- the checkpoint's copy ------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
def test_round_trip_through_json(preset):
    config = PRESETS[preset]()
    back = from_dict(json.loads(json.dumps(to_dict(config))))
    assert repr(back) == repr(config), "types too"


@pytest.mark.parametrize(
    ("path", "value", "about"),
    [
        ("gain", 1, "config"),
        ("optim", 3, "config.optim"),
        ("optim.lr_", 1, "config.optim"),
        ("optim.lr", "fast", "config.optim.lr"),
        ("optim.lr", None, "config.optim.lr"),
        ("batch_size", 12.5, "config.batch_size"),
        ("batch_size", True, "config.batch_size"),
        ("preset", 3, "config.preset"),
        ("views.local_area", None, "config.views.local_area"),
        ("views.local_area", [0.1], "config.views.local_area"),
        ("views.local_area", [0.1, "x"], "config.views.local_area"),
        ("vision.patch_size", 0, "vision.patch_size"),
    ],
)
def test_a_foreign_configuration_is_a_users_error(path, value, about):
    data = to_dict(BASE)
    section, _, name = path.rpartition(".")
    (data[section] if section else data)[name] = value
    with refused(about=about):
        from_dict(data)


@pytest.mark.parametrize("data", [None, [], "text", {}, {"preset": "base"}])
def test_what_is_no_configuration_at_all(data):
    with refused(about="config"):
        from_dict(data)


def test_a_field_that_an_older_checkpoint_lacks_takes_its_default():
    """Of every field that has one; the others stay as they were saved."""
    data = to_dict(changed(BASE, {"seed": 3, "precision": "fp32", "optim.lr": 0.5}))
    del data["precision"], data["optim"]["clip_norm"], data["distillation"]
    assert from_dict(data) == changed(BASE, {"seed": 3, "optim.lr": 0.5})


@pytest.mark.parametrize("was", [False, True])
def test_compile_was_a_bool_before_it_could_be_auto(was):
    """A checkpoint of that time is read, and a record of that time keeps its recipe."""
    config = from_dict(to_dict(BASE) | {"compile": was})
    assert config.compile == str(was).lower()
    assert (recipe_of(config) == recipe_of(BASE)) == (not was)


def test_a_whole_number_is_a_float_in_json():
    """Another writer of JSON may drop the point of 1.0."""
    data = to_dict(BASE)
    data["optim"]["clip_norm"] = 1
    assert repr(from_dict(data).optim.clip_norm) == "1.0"


def test_runs_that_differ_in_the_seed_alone_have_one_recipe():
    """`compare --group-seeds` pairs them; the seed of a run is also that of its data."""
    recipes = {recipe_of(configure("shapes_tiny", "silc", seed=seed)) for seed in (None, 1, 2)}
    assert len(recipes) == 1
    other = recipe_of(configure("shapes_tiny", "silc", sets=["data.seed=1"]))
    assert other not in recipes


@pytest.mark.parametrize("change", ["data.num_workers=8", "data.mirror_gb=100"])
def test_how_the_data_is_read_is_no_part_of_the_recipe(change):
    assert recipe_of(configure("shapes_tiny", "silc", sets=[AS_THEN, change])) == RECIPE


@pytest.mark.parametrize(
    "change",
    [
        "views.resize=bicubic",
        "vision.init_positions=normal",
        "contrastive.max_scale=100",
        "distillation.products=tf32",
        "exchange=bf16",
    ],
)
def test_a_younger_field_leaves_the_recipe_of_older_records_until_it_is_set(change):
    """Of a run before these fields: `recipe_of` there, with the same version of `hash_of`."""
    assert recipe_of(configure("shapes_tiny", "silc", sets=[AS_THEN])) == RECIPE
    assert recipe_of(configure("shapes_tiny", "silc", sets=[AS_THEN, change])) != RECIPE


@pytest.mark.parametrize("value", ["blocks:0", "blocks:-1", "blocks:", "blocks:1.5"])
def test_a_number_of_blocks_is_whole_and_positive(value):
    with refused(about="checkpointing"):
        apply_sets(BASE, [f"checkpointing={value}"])


@pytest.mark.parametrize(
    ("value", "counts"), [("none", [0, 0]), ("blocks:2", [2, 1]), ("blocks", [3, 1])]
)
def test_the_first_blocks_of_each_tower_are_computed_anew(value, counts):
    config = apply_sets(BASE, ["vision.depth=3", "text.depth=1", f"checkpointing={value}"])
    assert [config.num_checkpointed(depth) for depth in (3, 1)] == counts
