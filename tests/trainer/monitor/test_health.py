"""Health: numbers against loops, planted failures named with their setting, runs undisturbed."""

import io
import math
from collections import Counter
from contextlib import closing
from itertools import islice

import numpy as np
import pytest
import torch
from refusals import refused
from rich.console import Console
from runs import CPU, differing, end_of
from torch.utils.flop_counter import FlopCounterMode

from silc_bench.datasets.files.shards import Damage
from silc_bench.errors import RunError
from silc_bench.trainer.checkpoints import file as checkpoint
from silc_bench.trainer.config.presets import configure
from silc_bench.trainer.data.stream import open_source
from silc_bench.trainer.monitor import health
from silc_bench.trainer.monitor.bounds import check_on_collapse
from silc_bench.trainer.monitor.health import Health
from silc_bench.trainer.monitor.plan import cost as estimate
from silc_bench.trainer.monitor.watch import Watch, repeating
from silc_bench.trainer.silc.masking import draw_masked
from silc_bench.trainer.silc.teacher import Teacher
from silc_bench.trainer.silc.tokenizers import Tokenizer
from silc_bench.trainer.silc.views import make_views
from silc_bench.trainer.train import TrainState, train_step

pytestmark = pytest.mark.broad


def state_of(config, step=0):
    tokenizer = Tokenizer.train(["a red circle"], config.text.vocab_size, 12)
    state = TrainState.create(config, tokenizer, CPU)
    state.step = step
    return state


def batches_of(config, count):
    with closing(open_source(config.data).batches(config.batch_size, 0)) as batches:
        return list(islice(batches, count))


# --- planted failures -----------------------------------------------------------------------------

PLANTED = {  # name -> what plants it, and the setting that is named
    "teacher stands still": (
        {"distillation": {"ema_momentum": 1.0}},
        "distillation.ema_momentum (now 1;",
    ),
    "teacher is uniform": (
        {"distillation": {"teacher_temp": 1.0}},
        "distillation.teacher_temp (now 1;",
    ),
    "centre stands still": (
        {"distillation": {"center_momentum": 1.0}},
        "distillation.center_momentum (now 1;",
    ),
    # a hundred times the preset's
    "steps too large": ({"optim": {"lr": 0.1}}, "optim.lr=0.1"),
    "head in half precision": ({}, "precision=fp32"),
}


def round_the_head(teacher, student, momentum, real=Teacher.update):
    """A head that is kept in fp16: what is smaller than its steps is lost after each update."""
    with torch.no_grad():
        for parameter in student.head.parameters():
            parameter.copy_(parameter.half().float())
    real(teacher, student, momentum)


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_failure_is_named_with_the_setting_to_change(
    tiny, tmp_path, monkeypatch, train, rows_in, name
):
    changes, setting = PLANTED[name]
    if name == "head in half precision":
        monkeypatch.setattr(Teacher, "update", round_the_head)
    printed = train(tiny(steps=16, **changes), tmp_path)
    (line,) = [line for line in printed.splitlines() if f": {name}: " in line]
    assert setting in line
    assert line in [note["note"] for note in rows_in(tmp_path / "notes.jsonl")]
    assert [other for other in PLANTED if f": {other}: " in printed] == [name]


def test_a_healthy_run_is_accused_of_nothing(tiny, tmp_path, train, rows_in):
    config = tiny(steps=16, log_every=4, distillation={"bottleneck_dim": 64})
    train(config, tmp_path, on_collapse="stop")
    assert not (tmp_path / "notes.jsonl").read_text()
    assert rows_in(tmp_path / "log.jsonl")[0]["update_ratio"] < 0.05


def test_stop_ends_the_run_with_the_sentence(tiny, tmp_path, train, rows_in):
    changes, _ = PLANTED["teacher stands still"]
    with refused(about="step 4", kind=RunError):
        train(tiny(steps=16, **changes), tmp_path, on_collapse="stop")
    assert [row["step"] for row in rows_in(tmp_path / "log.jsonl")] == [2, 4]


def test_targets_that_tell_little_are_named_and_stop_no_run(tiny, tmp_path, monkeypatch, train):
    monkeypatch.setattr(health, "TELLS_NOTHING", 1.0)
    monkeypatch.setattr(health, "YOUNG", 0)
    printed = train(tiny(steps=16), tmp_path, on_collapse="stop")
    assert ": targets teach next to nothing: " in printed


def test_an_unknown_answer_to_a_collapse():
    with refused(about="--on-collapse"):
        check_on_collapse("stopp")


def row(**changes):
    healthy = {"teacher_entropy": 0.5, "teacher_entropy_at_recipe": 0.5, "prototypes_in_use": 9.0}
    healthy |= {"feature_rank": 20.0, "update_ratio": 0.01, "target_information": 0.3}
    return healthy | changes


def verdicts(config, step=50, **changes):
    """What is found in five equal rows of step ``step``."""
    watch = Health(config, CPU)
    state = state_of(config, step)
    rows = [watch.verdicts(state, row(**changes)) for _ in range(5)]
    return {name: verdict for row in rows for name, verdict in row.items()}


ONE_DIRECTION = "embeddings are one direction"


UNIFORM = "teacher is uniform"
NOTHING = "targets teach next to nothing"


@pytest.mark.parametrize(
    ("changes", "name", "setting"),
    [
        ({"feature_rank": 1.29}, ONE_DIRECTION, "lower optim.lr (now 0.001)"),
        ({"feature_rank": 1.31}, None, ""),
        ({"teacher_entropy": 0.991}, UNIFORM, "lower distillation.teacher_temp (now 0.04"),
        (
            {"teacher_entropy": 0.991, "teacher_entropy_at_recipe": 0.991},
            UNIFORM,
            "lower optim.lr",
        ),
        ({"teacher_entropy": 0.989}, None, ""),
        (
            {"teacher_entropy": 0.049, "prototypes_in_use": 1.0},
            "one prototype",
            "distillation.center_momentum",
        ),
        ({"teacher_entropy": 0.051, "prototypes_in_use": 1.0}, None, ""),
        ({"teacher_entropy": 0.049}, None, ""),
        ({"teacher_entropy": 0.0019}, "teacher is one-hot", "raise distillation.teacher_temp"),
        ({"teacher_entropy": 0.0021}, None, ""),
        ({"target_information": 0.049}, NOTHING, "lower distillation.teacher_temp (now 0.04"),
        ({"target_information": 0.051}, None, ""),
        ({"target_information": 0.0, "teacher_entropy": 0.991}, UNIFORM, "teacher_temp"),
        ({"update_ratio": 0.151}, "steps too large", "optim.lr"),
        ({"update_ratio": 0.149}, None, ""),
    ],
)
def test_where_a_collapse_begins(tiny, changes, name, setting):
    """Sinkhorn balances the prototypes whatever the outputs; the rest is judged with it too."""
    found = verdicts(tiny(steps=100), **changes)
    assert list(found) == ([name] if name else [])
    assert setting in "".join(map(str, found.values()))
    balanced = verdicts(tiny(steps=100, distillation={"centering": "sinkhorn"}), **changes)
    assert list(balanced) == [name for name in found if name in (ONE_DIRECTION, "steps too large")]


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"teacher_entropy": 0.0, "prototypes_in_use": 1.0}, "one prototype of patches"),
        ({"teacher_entropy": 0.001}, "teacher of patches is one-hot"),
        ({"teacher_entropy": 0.999}, "teacher of patches is uniform"),
        ({"target_information": 0.0}, "targets of patches teach next to nothing"),
        ({}, None),
    ],
)
def test_a_collapse_of_masked_patches_is_named_as_theirs(tiny, changes, name):
    of_patches = {f"patch_{field}": value for field, value in row(**changes).items()}
    found = verdicts(tiny(steps=100, masked={"weight": 0.5}), **of_patches)
    assert list(found) == ([name] if name else [])


@pytest.mark.parametrize(
    ("temperature", "setting"),
    [(0.11, "distillation.teacher_temp (now 0.11"), (0.09, "optim.lr")],  # the student's: 0.1
)
def test_targets_softer_than_the_answers_are_one_of_the_temperature(tiny, temperature, setting):
    config = tiny(steps=100, distillation={"teacher_temp": temperature})
    found = verdicts(config, teacher_entropy=0.999, teacher_entropy_at_recipe=0.999)
    assert setting in found[UNIFORM].fix


def test_a_collapse_needs_several_rows(tiny):
    state = state_of(tiny(steps=100), step=50)
    watch = Health(state.config, CPU)
    collapsed = row(feature_rank=1.0)
    rows = [collapsed] * health.PATIENCE + [row(), collapsed]
    found = [list(watch.verdicts(state, each)) for each in rows]
    silent = [[]] * (health.PATIENCE - 1)
    assert found == [*silent, [ONE_DIRECTION], [], []], "an interruption begins the count anew"


COLLAPSED = {"teacher_entropy": 0.0, "prototypes_in_use": 1.0, "feature_rank": 1.0}


@pytest.mark.parametrize(
    ("changes", "step", "names"),
    [
        # the warm-up: a tenth of the steps
        ({"center_momentum": 0.0}, 9, set()),
        ({"center_momentum": 0.0}, 10, {"one prototype"}),
        # the centre settles: five times 1 / (1 - 0.9); embeddings are young for as many steps
        ({}, 49, set()),
        ({}, 50, {ONE_DIRECTION, "one prototype"}),
        # heads that begin late are young then
        ({"start_fraction": 0.5, "center_momentum": 0.0}, 59, {ONE_DIRECTION}),
        ({"start_fraction": 0.5, "center_momentum": 0.0}, 60, {ONE_DIRECTION, "one prototype"}),
    ],
)
def test_what_is_young_may_look_collapsed(tiny, changes, step, names):
    config = tiny(steps=100, distillation=changes)
    assert set(verdicts(config, step, **COLLAPSED)) == names


@pytest.mark.parametrize(("step", "names"), [(49, []), (50, [NOTHING])])
def test_targets_may_tell_little_at_first(tiny, step, names):
    config = tiny(steps=100, distillation={"center_momentum": 0.0})
    assert list(verdicts(config, step, target_information=0.0)) == names


def test_a_long_warm_up_excuses_one_direction_for_as_long(tiny):
    config = tiny("contrastive", steps=1000)
    found = [verdicts(config, step, feature_rank=1.0) for step in (99, 100)]
    assert list(map(list, found)) == [[], [ONE_DIRECTION]]


# Effective ranks of shapes_tiny, contrastive, seed 0, as far as its log has them: {steps of the
# run: (its rate, {step: rank})}. `--samples 2560`, `--samples 9600`, and `--samples 6400 --set
# optim.lr=0.03`; the first two at the rate that the preset had then.
RANKS = {
    40: (2e-3, {10: 1.66, 20: 1.58, 30: 1.57, 40: 1.55}),
    150: (2e-3, {10: 4.14, 20: 6.82, 30: 8.15, 60: 7.72, 90: 8.19, 120: 8.02, 150: 8.25}),
    100: (3e-2, {10: 1.14, 20: 1.26, 30: 1.12, 40: 1.26, 50: 1.08, 60: 1.11, 70: 1.25, 80: 1.21}),
}


@pytest.mark.parametrize(("steps", "is_alarmed"), [(40, False), (150, False), (100, True)])
def test_a_healthy_start_of_the_demo_raises_no_alarm_and_a_collapse_does(steps, is_alarmed):
    rate, ranks = RANKS[steps]
    config = configure("shapes_tiny", "contrastive", samples=64 * steps, sets=[f"optim.lr={rate}"])
    watch = Health(config, CPU)
    state = state_of(config)
    found = set()
    for state.step, rank in ranks.items():
        found |= watch.verdicts(state, row(feature_rank=rank)).keys()
    assert found == ({ONE_DIRECTION} if is_alarmed else set())


def test_a_run_that_collapses_says_so(tiny, tmp_path, train):
    """At a hundred times the preset's rate."""
    config = tiny("contrastive", steps=65, log_every=5, optim={"lr": 0.1})
    assert f": {ONE_DIRECTION}: " in train(config, tmp_path)


@pytest.mark.parametrize(
    ("errors", "centering", "names"),
    [
        ((0.11, 0.0), "mean", {"centre stands still"}),
        ((0.09, 0.11), "mean", {"centre of patches stands still"}),
        ((0.11, 0.11), "mean", {"centre stands still", "centre of patches stands still"}),
        ((0.11, 0.11), "sinkhorn", set()),
    ],
)
def test_a_centre_that_stands_still_is_named_where_the_mean_has_moved_away(
    tiny, errors, centering, names
):
    """Not while the student stands still too, nor where nothing reads the centre.

    Each of the two for itself.
    """
    state = state_of(tiny(masked={"weight": 0.5}, distillation={"centering": centering}))
    watch = Health(state.config, CPU)
    full = row(center_error=errors[0], patch_center_error=errors[1])
    assert [watch.verdicts(state, full), watch.verdicts(state, full)] == [{}, {}]
    towers = [part.vision.blocks[-1].mlp.fc1.weight for part in (state.student, state.teacher)]
    for still, moved in (
        (names, towers),
        (names - {"centre stands still"}, [*towers, state.teacher.center]),
        (names - {"centre of patches stands still"}, [*towers, state.teacher.patch_center]),
    ):
        with torch.no_grad():
            torch._foreach_add_(moved, 0.01)
        assert set(watch.verdicts(state, full)) == still


@pytest.mark.parametrize("head", ["head", "patch_head"])
@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_a_head_that_was_rounded_is_named_with_its_precision(tiny, head, kind):
    state = state_of(tiny(masked={"weight": 0.5}))
    prototypes = getattr(state.student, head).prototypes
    prototypes.data = prototypes.to(getattr(torch, kind)).float()
    found = Health(state.config, CPU).verdicts(state, row())
    assert f" {kind}:" in found["head in half precision"].problem


# --- the numbers ----------------------------------------------------------------------------------


def looped(logits, answers, center, config):
    """Teacher's [H, K] against the student's, an image and a prototype at a time, in float64."""
    distil = config.distillation
    sums, winners = Counter(), set()
    num_images = len(logits) // config.views.num_global
    joint = np.zeros((num_images, logits.shape[1]))  # share of each (image, prototype)
    for crop, (logit, answer) in enumerate(zip(logits.double(), answers.double(), strict=True)):
        centered = logit - center
        target = torch.softmax(centered / distil.teacher_temp, -1).tolist()
        sharp = torch.softmax(centered / 0.04, -1).tolist()
        reply = torch.softmax(answer / distil.student_temp, -1).tolist()
        for name, shares in (("teacher_entropy", target), ("teacher_entropy_at_recipe", sharp)):
            sums[name] -= sum(x * math.log(x) for x in shares if x > 0) / math.log(len(shares))
        pairs = zip(target, reply, strict=True)
        sums["student_teacher_kl"] += sum(x * math.log(x / y) for x, y in pairs if x > 0)
        joint[crop % num_images] += np.array(target) / len(logits)
        winners.add(int(np.argmax(target)))
    apart = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    told = (joint * np.log(np.maximum(joint, 1e-300) / apart)).sum() / math.log(num_images)
    mean = logits.double().mean(0)
    error = float((mean - center).norm() / mean.norm())
    means = {name: total / len(logits) for name, total in sums.items()}
    of_all = {"prototypes_in_use": len(winners), "center_error": error, "target_information": told}
    return means | of_all


@pytest.mark.parametrize("clip_norm", [0.5, 1e4])  # below the norm of the gradient, and above
def test_numbers_equal_loops_in_float64(tiny, monkeypatch, clip_norm):
    """Of views and of masked patches, of which the first of each view is looked at."""
    config = tiny(
        vision={"image_size": 32, "depth": 2},
        text={"depth": 2},
        views={"global_size": 32, "local_size": 16},
        masked={"weight": 0.5},
        distillation={"teacher_temp": 0.07, "center_momentum": 0.5},
        optim={"clip_norm": clip_norm},
    )
    monkeypatch.setattr(health, "matmul_rate", lambda device, precision: 1e9)
    state, (first, batch) = state_of(config), batches_of(config, 2)
    train_step(state, first)
    before = {name: p.detach().clone() for name, p in state.student.named_parameters()}
    watch = Health(config, CPU, num_ranks=3)
    watch.before_step(state)
    norm = float(train_step(state, batch)["gradient_norm"])
    assert 0.5 < norm < 1e4
    student, teacher = state.student, state.teacher
    with torch.no_grad():
        # the largest change is in one of four matrices
        student.text.blocks[1].mlp.fc1.weight.add_(0.3)
        teacher.vision.patch.weight.mul_(2)  # not as long as the student's
        noise = torch.randn(64, generator=torch.Generator().manual_seed(0))
        teacher.center.add_(0.02 * noise)
    found = watch.row(state, batch, norm, images_per_second=100.0)

    views = make_views(
        batch.images, batch.sizes, config.views, config.seed, 1, needs={"global_crops"}
    )
    crops = views.global_crops.flatten(0, 1)
    places = draw_masked(config, 8, 1).flatten(0, 1)
    rows, first = torch.arange(len(crops)), places[:, 0]
    with torch.no_grad():
        features, tokens = student.vision(crops), teacher.vision.tokens(crops)
        logits = teacher.head(teacher.vision(crops))
        of_views = looped(logits, student.head(features), teacher.center, config)
        guessed = student.vision.tokens(crops, places, student.mask_token)[rows, first]
        logits = teacher.patch_head(tokens[rows, first])
        of_patches = looped(logits, student.patch_head(guessed), teacher.patch_center, config)
        unit = torch.nn.functional.normalize(features[:8].double(), dim=-1)
        values = torch.linalg.svdvals(unit)
    expected = of_views | {f"patch_{name}": value for name, value in of_patches.items()}
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-3)
    shares = (values / values.sum()).tolist()
    rank = math.exp(-sum(x * math.log(x) for x in shares))
    assert found["feature_rank"] == pytest.approx(rank, rel=1e-3)
    change = [
        float((p.detach() - before[name]).norm() / before[name].norm())
        for name, p in state.student.named_parameters()
        if name.endswith("mlp.fc1.weight") and ".pool." not in name
    ]
    assert found["update_ratio"] == pytest.approx(max(change), rel=1e-5)
    ours, theirs = (
        torch.cat([p.detach().flatten() for p in part.vision.parameters()])
        for part in (student, teacher)
    )
    distance = float((ours - theirs).norm() / ours.norm())
    assert found["ema_distance"] == pytest.approx(distance, rel=1e-4)
    parts = [found[f"gradient_norm_{part}"] for part in ("vision", "text", "head", "patch_head")]
    # less scale, bias and mask token
    assert math.hypot(*parts) == pytest.approx(norm, rel=1e-2)
    assert found["mfu"] == pytest.approx(100.0 * estimate.flops_per_image(config) / 3e9)


@pytest.mark.parametrize(
    ("peaks", "told"), [((0, 1, 0, 1), 1.0), ((0, 0, 0, 0), 0.0), ((0, 1), None)]
)
def test_targets_tell_which_image_it_is_where_there_is_more_than_one(tiny, peaks, told):
    """Rows are two views of each image, the first views first; a target names one prototype."""
    logits = 100.0 * torch.eye(8)[list(peaks)]
    found = health._compared(logits, logits, torch.zeros(8), tiny())
    assert found.get("target_information") == (told if told is None else pytest.approx(told))


def test_before_the_teacher_teaches_a_step_is_counted_without_it(tiny, monkeypatch):
    """The step before the first taught one, and that one."""
    monkeypatch.setattr(health, "matmul_rate", lambda device, precision: 1e9)
    config = tiny(distillation={"start_fraction": 0.5})
    state, batches = state_of(config), batches_of(config, 4)
    watch = Health(config, CPU)
    for batch, is_taught in zip(batches, (False, False, True, True), strict=True):
        watch.before_step(state)
        train_step(state, batch)
        found = watch.row(state, batch, 1.0, images_per_second=1.0)
        flops = estimate.flops_per_image(config, is_taught=is_taught)
        assert found["mfu"] == pytest.approx(flops / 1e9)
        assert ("teacher_entropy" in found) == is_taught


# --- it changes nothing ---------------------------------------------------------------------------


def test_rows_and_probes_leave_the_run_as_it_is(tiny, tmp_path, train, rows_in):
    """The weights of a run that looks at every step are those of a run that never looks.

    It probes every second step, too.
    """
    often, never = tmp_path / "often", tmp_path / "never"
    probe = {"every": 2, "tasks": "shapes/knn,shapes/zeroshot", "limit": 24}
    train(tiny(steps=5, log_every=1, probe=probe), often)
    train(tiny(steps=5, log_every=100), never)
    assert differing(end_of(often), end_of(never)) == {"config"}

    scores = {}
    for probed in rows_in(often / "probes.jsonl"):
        scores[probed["step"]] = (
            sum(probed[f"probe/shapes/{name}"] for name in ("knn", "zeroshot")) / 2
        )
    assert list(scores) == [2, 4, 5]
    best = max(scores, key=lambda step: (scores[step], step))
    assert checkpoint.best_in(often) == checkpoint.path_of(often, best)


# --- the estimate ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"distillation": {"pairs": "local+global"}},
        {"objective": "contrastive"},
        {"masked": {"weight": 0.5}},
        {"masked": {"weight": 0.5}, "distillation": {"weight": 0.0}},
    ],
)
def test_counted_flops_are_those_of_a_step(tiny, changes):
    """Of the real step under torch's counter, less the products that resize its images."""
    config = tiny(**changes)
    state, (batch,) = state_of(config), batches_of(config, 1)
    with FlopCounterMode(display=False) as counter:
        train_step(state, batch)
    with FlopCounterMode(display=False) as views:
        make_views(batch.images, batch.sizes, config.views, config.seed, 0, needs=config.view_kinds)
    counted = counter.get_total_flops() - views.get_total_flops()
    assert estimate.flops_per_image(config) * config.batch_size == pytest.approx(counted, rel=0.12)


def test_the_estimate_counts_the_model_it_will_build(tiny):
    config = tiny()
    state = state_of(config)
    found = estimate.estimate(config, CPU)
    assert sum(found.parameters.values()) + 2 == sum(p.numel() for p in state.student.parameters())
    parts = found.bytes_by_part
    assert parts["weights"] == parts["gradients"]
    assert parts["optimiser state"] == pytest.approx(2 * parts["weights"], rel=1e-3)
    assert parts["teacher"] == 4 * sum(p.numel() for p in state.teacher.parameters())
    assert found.images_per_second * found.flops_per_image == pytest.approx(found.matmul_rate)
    assert found.hours == pytest.approx(config.samples / found.images_per_second / 3600)
    half = estimate.estimate(config, CPU, num_ranks=2).bytes_by_part
    assert half["activations"] == parts["activations"] / 2


@pytest.fixture
def judged(tiny, monkeypatch):
    """What is said of a row by a watch that finds the run itself healthy."""

    def judge(data, position=0, **numbers):
        state = state_of(tiny(data=data))
        state.position = position
        said, kept = Console(file=io.StringIO(), width=300), []
        watch = Watch(state.config, CPU, said, "warn", Damage(), kept.append)
        monkeypatch.setattr(watch._health, "verdicts", lambda state, row: {})
        for _ in range(2):  # it is said once
            watch.judge(state, {"data_wait_share": 0.0, "left_out": 0} | numbers)
        assert said.file.getvalue().splitlines() == kept
        return " ".join(kept)

    return judge


@pytest.mark.parametrize(
    ("data", "advised"),
    [
        ({"decode_size": 40}, {"data.num_workers (now 0)", "data.decode_size (now 40"}),
        ({"decode_size": 36}, {"data.num_workers (now 0)"}),
        ({"decode_size": 40, "num_workers": 1}, {"data.decode_size (now 40"}),
        ({"decode_size": 36, "num_workers": 1}, {"pack smaller images"}),
    ],
)
def test_waiting_for_data_is_answered_by_what_can_help(judged, monkeypatch, data, advised):
    """On one core. A local view, 8 px of a twentieth of an image, is sharp from 36 px on."""
    monkeypatch.setattr("silc_bench.trainer.data.stream.num_cores", lambda: 1)
    said = judged(data, data_wait_share=0.46)
    assert said.startswith("step 0: 46 %")
    ways = ("data.num_workers (now 0)", "data.decode_size (now 40", "pack smaller images")
    assert {way for way in ways if way in said} == advised


def test_what_is_left_out_is_in_the_rows_and_its_cause_is_said_once(
    tiny, tmp_path, shards, train, rows_in
):
    """Of 20 readable pairs and the broken one the log counts each meeting, the summary the pair."""
    config = tiny(data={"source": shards}, batch_size=4, samples=64, log_every=1)
    said = train(config, tmp_path)
    rows = rows_in(tmp_path / "log.jsonl")
    met = next(row["step"] for row in rows if row["left_out"])
    # a busy machine may note that data is waited for, too
    notes = [row for row in rows_in(tmp_path / "notes.jsonl") if "left out" in row["note"]]
    (note,) = notes
    assert note["note"].startswith(f"step {met}: left out: corrupt image")
    assert said.count(note["note"]) == 1, "and one in 21 is no alarm"
    end = end_of(tmp_path)
    assert rows[-1]["left_out"] == end["position"] - end["samples_seen"] > 0


@pytest.mark.parametrize(("left_out", "is_said"), [(10, False), (11, True)])
def test_a_source_of_which_much_cannot_be_read_is_named(judged, left_out, is_said):
    assert judged({}, position=100, left_out=left_out).startswith("step 0: 11 %") == is_said


@pytest.mark.parametrize(
    ("batch_size", "num_samples", "fix"),
    [
        (8, 8, ""),
        (9, 8, "lower batch_size to 8 or less"),
        (2, 1, "take more pairs"),
        (9, 10**6, ""),
        (9, None, ""),
    ],
)
def test_a_batch_that_holds_a_pair_twice_is_named(tiny, batch_size, num_samples, fix):
    sentence = repeating(tiny(batch_size=batch_size, samples=64), num_samples) or ""
    assert sentence.rpartition("; ")[2] == fix


def test_a_run_says_that_its_batches_repeat_pairs(tiny, tmp_path, shards, train):
    config = tiny(data={"source": shards}, batch_size=32, samples=32)
    assert repeating(config, 21) in train(config, tmp_path)
