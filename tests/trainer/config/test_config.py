"""Configuration: typed --set, nearest names, validate's rules, the checkpoint's JSON and back."""

import dataclasses
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from silc_bench.errors import UserError
from silc_bench.trainer.config import config as module
from silc_bench.trainer.config.config import (
    CHOICES,
    OBJECTIVES,
    Config,
    DistillationConfig,
    TextConfig,
    ViewsConfig,
    VisionConfig,
    apply_objective,
    flatten,
    from_dict,
    to_dict,
    validate,
)
from silc_bench.trainer.config.overrides import apply_sets
from silc_bench.trainer.config.presets import PRESETS

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


def value_of(config, path):
    return flatten(config)[path]


def refused(*sets, config=None):
    """The message of the UserError that these changes meet."""
    with pytest.raises(UserError) as caught:
        apply_sets(config or BASE, sets)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- --set ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("item", "path", "value"),
    [
        ("batch_size=64", "batch_size", 64),
        ("samples=1e4", "samples", 10_000),
        ("samples=25_600", "samples", 25_600),
        ("samples=2.5E4", "samples", 25_000),
        ("optim.lr=3e-4", "optim.lr", 3e-4),
        ("optim.lr=1", "optim.lr", 1.0),
        (" optim.lr = 0.5 ", "optim.lr", 0.5),
        ("views.local_area=0.1,0.3", "views.local_area", (0.1, 0.3)),
        ("views.jitter=(0.1, 0.2, 0.3, 0)", "views.jitter", (0.1, 0.2, 0.3, 0.0)),
        ("contrastive.loss=softmax", "contrastive.loss", "softmax"),
        ("data.source=a=b/{0..3}.tar", "data.source", "a=b/{0..3}.tar"),
        ("seed=0", "seed", 0),
    ],
)
def test_set_reads_a_value_as_its_fields_type(item, path, value):
    changed = apply_sets(BASE, [item])
    assert value_of(changed, path) == value
    assert type(value_of(changed, path)) is type(FIELDS[path])
    assert {p for p in FIELDS if value_of(changed, p) != FIELDS[p]} <= {path}


def test_later_sets_win():
    assert apply_sets(BASE, ["optim.lr=1", "optim.lr=2"]).optim.lr == 2


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ("batch_size=12.5", ["batch_size", "'12.5'", "int"]),
        ("batch_size=1.5e0", ["batch_size", "int"]),
        ("batch_size=1e999", ["batch_size", "int"]),
        ("batch_size=many", ["batch_size", "'many'", "int"]),
        ("batch_size=", ["batch_size", "int"]),
        ("optim.lr=fast", ["optim.lr", "'fast'", "float"]),
        ("views.local_area=0.1", ["views.local_area", "tuple[float, float]"]),
        ("views.local_area=0.1,0.2,0.3", ["views.local_area", "tuple[float, float]"]),
        ("views.local_area=0.1,x", ["views.local_area", "0.1,x", "tuple[float, float]"]),
        ("optim.lr", ["expected field=value", "optim.lr=3e-4"]),
        ("optim=3", ["optim", "name one of its fields", "weight_decay"]),
        ("seed.value=3", ["seed", "has no fields"]),
        ("objective=contrastive", ["--objective contrastive"]),
        ("preset=b16", ["--preset b16"]),
    ],
)
def test_set_refuses_what_cannot_be_meant(item, words):
    message = refused(item)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("item", "nearest"),
    [
        ("optim.lrr=1", "optim.lr"),
        ("optm.lr=1", "optim"),
        ("view.num_local=1", "views"),
        ("distillation.wieght=0", "distillation.weight"),
        ("zzz=0", "known: "),
        ("batchsize=3", "batch_size"),
    ],
)
def test_an_unknown_field_names_the_nearest(item, nearest):
    message = refused(item)
    assert item.partition("=")[0] in message
    assert nearest in message.partition(";")[2]


@given(text=st.text(max_size=12), path=st.sampled_from(sorted(FIELDS)))
def test_any_text_is_a_valid_configuration_or_one_sentence(text, path):
    try:
        changed = apply_sets(BASE, [f"{path}={text}"])
    except UserError:
        return
    assert validate(changed) is changed


# --- rules ----------------------------------------------------------------------------------------

BROKEN = [  # changes, and words of the message they meet
    ("vision.image_size=60", "vision.image_size must be a multiple of vision.patch_size"),
    ("views.global_size=60", "views.global_size must be a multiple of vision.patch_size"),
    ("views.local_size=20", "views.local_size must be a multiple of vision.patch_size"),
    ("vision.num_heads=3", "vision.width must be a multiple"),
    ("vision.width=130 vision.num_heads=2", "vision.width must be a multiple of 4"),
    ("text.num_heads=3", "text.width must be a multiple"),
    ("views.num_local=0", "views.num_local >= 1"),
    ("views.local_area=0,0.4", "views.*_area"),
    ("views.local_area=0.4,0.1", "views.*_area"),
    ("views.global_area=0.4,1.1", "views.*_area"),
    ("views.flip_prob=1.5", "views.*_prob"),
    ("views.gray_prob=-0.5", "views.*_prob"),
    ("views.blur_probs=0,0,2", "views.blur_probs"),
    ("views.jitter=-0.1,0.4,0.2,0.1", "views.jitter"),
    ("views.jitter=0.4,0.4,0.2,0.6", "views.jitter"),
    ("distillation.num_prototypes=1", "distillation.num_prototypes"),
    ("seed=9223372036854775808", "seed and data.seed"),
    ("data.seed=9223372036854775808", "seed and data.seed"),
    ("views.blur_sigma=0,1", "views.blur_sigma"),
    ("views.blur_sigma=2,1", "views.blur_sigma"),
    ("contrastive.init_scale=0", "contrastive.init_scale"),
    ("distillation.weight=-1", "distillation.weight"),
    ("masked.weight=-1", "masked.weight"),
    ("masked.weight=1 masked.ratio=1", "masked.ratio"),
    ("distillation.start_fraction=1", "distillation.start_fraction"),
    ("distillation.start_fraction=0.999", "leaves no step"),
    ("distillation.ema_momentum=1.01", "distillation.ema_momentum"),
    ("distillation.ema_momentum=-0.1", "distillation.ema_momentum"),
    ("distillation.center_momentum=1.01", "distillation.center_momentum"),
    ("distillation.student_temp=0", "temperatures"),
    ("distillation.teacher_temp=-0.04", "temperatures"),
    ("optim.lr=0", "optim.lr"),
    ("optim.clip_norm=0", "optim.clip_norm"),
    ("optim.weight_decay=-1", "optim.weight_decay"),
    ("optim.layer_decay=0", "optim.layer_decay"),
    ("optim.locked=vision", "optim.locked"),
    ("optim.beta1=1", "optim.beta1"),
    ("optim.beta2=-0.1", "optim.beta2"),
    ("optim.kind=adafactor optim.beta2=0.99", "optim.beta2 has no meaning"),
    ("average_momentum=1.0", "average_momentum"),
    ("optim.warmup_fraction=-0.1", "optim.warmup_fraction"),
    ("optim.warmup_fraction=0.97", "sum to at most 1"),
    ("checkpoint_minutes=-1", "checkpoint_minutes"),
    ("data.mirror_gb=0", "data.mirror_gb"),
    ("batch_size=1", "a contrastive loss needs a negative"),
    ("samples=127", "samples must be at least batch_size"),
]


@pytest.mark.parametrize(("items", "words"), BROKEN)
def test_every_rule_refuses_and_names_its_field(items, words):
    assert words in refused(*items.split())


def test_no_rule_is_left_untested():
    """Each message of the rules is met by one of the broken configurations."""
    met = {refused(*items.split()) for items, _ in BROKEN}
    assert {f"configuration: {message}" for _, message in module._rules(BASE)} <= met


@pytest.mark.parametrize("path", [path for path, value in FIELDS.items() if type(value) is int])
def test_whole_numbers_have_a_least_value(path):
    """0 patches, heads or steps would divide by zero.

    0 workers, local views and the seed 0 are meant.
    """
    may_be_zero = path in module.MAY_BE_ZERO
    assert f"{path} must be at least {0 if may_be_zero else 1}" in refused(f"{path}=-1")
    if not may_be_zero:
        assert f"{path} must be at least 1" in refused(f"{path}=0")


@pytest.mark.parametrize(
    "path", [path for path, value in FIELDS.items() if isinstance(value, float | tuple)]
)
@pytest.mark.parametrize("number", ["nan", "inf"])
def test_numbers_are_finite(path, number):
    text = ",".join([number] * len(FIELDS[path])) if isinstance(FIELDS[path], tuple) else number
    assert f"{path} must be finite" in refused(f"{path}={text}")


@pytest.mark.parametrize("path", CHOICES)
def test_choices_are_closed_and_name_the_nearest(path):
    for value in CHOICES[path]:
        fitting = ["distillation.weight=0"] if value == "vision" else []
        assert value_of(apply_sets(BASE, [*fitting, f"{path}={value}"]), path) == value
        message = refused(f"{path}={value}x")
        assert path in message
        assert value in message


def test_distillation_needs_a_pair_of_views():
    """A lone global view cannot be compared with itself: without local views it takes two."""
    two_globals = ["views.num_local=0", "distillation.pairs=local+global"]
    assert apply_sets(BASE, two_globals).views.num_local == 0
    assert "views.num_global >= 2" in refused(*two_globals, "views.num_global=1")
    assert apply_sets(BASE, ["views.num_local=0", "distillation.weight=0"]).distillation.weight == 0


# --- objectives -----------------------------------------------------------------------------------


def test_an_objective_takes_a_part_away_and_nothing_else():
    full = BASE
    assert apply_objective(full, "silc") == full
    views = apply_objective(full, "contrastive+views")
    assert {p for p in FIELDS if value_of(views, p) != FIELDS[p]} == {
        "objective",
        "distillation.weight",
    }
    plain = apply_objective(full, "contrastive")
    changed = {p for p in FIELDS if value_of(plain, p) != FIELDS[p]}
    assert changed == {"objective", "distillation.weight", "contrastive.images"}
    assert [apply_objective(full, o).name for o in OBJECTIVES] == [f"base-{o}" for o in OBJECTIVES]


def test_an_unknown_objective_names_the_nearest():
    with pytest.raises(UserError, match=r"'contrastiv'.*contrastive"):
        apply_objective(BASE, "contrastiv")


@pytest.mark.parametrize(
    ("objective", "images", "num_local", "kinds"),
    [
        ("silc", "global", 8, {"global_crops", "local_crops"}),
        ("silc", "original", 8, {"global_crops", "local_crops", "original"}),
        ("silc", "original+global", 8, {"global_crops", "local_crops", "original"}),
        ("silc", "global", 0, {"global_crops"}),
        ("contrastive+views", "global", 8, {"global_crops"}),
        ("contrastive+views", "original+global", 8, {"global_crops", "original"}),
        ("contrastive", None, 8, {"original"}),
    ],
)
def test_only_the_views_that_a_step_uses_are_made(objective, images, num_local, kinds):
    config = apply_objective(BASE, objective)
    if images is not None:
        config = replace(config, contrastive=replace(config.contrastive, images=images))
    assert replace(config, views=replace(config.views, num_local=num_local)).view_kinds == kinds


@pytest.mark.parametrize(("samples", "steps"), [(128, 1), (255, 1), (256, 2), (25_600, 200)])
def test_steps_are_whole_batches(samples, steps):
    assert replace(BASE, samples=samples).num_steps == steps


# --- the checkpoint's copy ------------------------------------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("preset", PRESETS)
def test_round_trip_through_json(preset, objective):
    config = apply_objective(PRESETS[preset](), objective)
    back = from_dict(json.loads(json.dumps(to_dict(config))))
    assert back == config
    assert [type(v) for v in flatten(back).values()] == [type(v) for v in flatten(config).values()]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.pop("vision"), ["vision"]),
        (lambda d: d["optim"].update(lr_=1), ["config.optim", "lr_"]),
        (lambda d: d.update(gain=1), ["gain"]),
        (lambda d: d.update(optim=3), ["config.optim", "int"]),
        (lambda d: d["optim"].update(lr="fast"), ["config.optim.lr", "'fast'", "float"]),
        (lambda d: d["optim"].update(lr=None), ["config.optim.lr", "None", "float"]),
        (lambda d: d.update(batch_size=12.5), ["config.batch_size", "12.5", "int"]),
        (lambda d: d.update(batch_size=True), ["config.batch_size", "True", "int"]),
        (lambda d: d.update(preset=3), ["config.preset", "str"]),
        (
            lambda d: d["views"].update(local_area=None),
            ["config.views.local_area", "tuple[float, float]"],
        ),
        (
            lambda d: d["views"].update(local_area=[0.1]),
            ["config.views.local_area", "tuple[float, float]"],
        ),
        (
            lambda d: d["views"].update(local_area=[0.1, "x"]),
            ["config.views.local_area", "'x'", "float"],
        ),
        (lambda d: d["vision"].update(patch_size=0), ["vision.patch_size must be at least 1"]),
    ],
)
def test_a_foreign_configuration_is_a_users_error(change, words):
    data = json.loads(json.dumps(to_dict(BASE)))
    change(data)
    with pytest.raises(UserError) as caught:
        from_dict(data)
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_field_that_an_older_checkpoint_lacks_takes_its_default():
    """Of every field that has one; the others stay as they were saved."""
    data = json.loads(json.dumps(to_dict(replace(BASE, seed=3, optim=replace(BASE.optim, lr=0.5)))))
    del data["precision"], data["optim"]["clip_norm"], data["distillation"]
    back = from_dict(data)
    assert (back.precision, back.optim.clip_norm, back.distillation) == (
        "auto",
        1.0,
        DistillationConfig(),
    )
    assert (back.seed, back.optim.lr) == (3, 0.5)


def test_a_whole_number_is_a_float_in_json():
    """Another writer of JSON may drop the point of 1.0."""
    data = to_dict(BASE)
    data["optim"]["clip_norm"] = 1
    assert repr(from_dict(data).optim.clip_norm) == "1.0"


@pytest.mark.parametrize("data", [None, [], "text", {}])
def test_what_is_no_configuration_at_all(data):
    with pytest.raises(UserError, match="not a configuration of this version"):
        from_dict(data)


def test_configurations_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        BASE.seed = 3
