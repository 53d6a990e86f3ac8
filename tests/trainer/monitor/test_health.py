"""Health: numbers against loops, planted failures named with their setting, runs undisturbed."""

import copy
import io
import json
import math

import numpy as np
import pytest
import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from silc_bench.cli.train import too_large_for
from silc_bench.datasets.files.shards import Damage
from silc_bench.errors import RunError, UserError
from silc_bench.trainer.checkpoints import file as checkpoint
from silc_bench.trainer.data.stream import open_source
from silc_bench.trainer.loop import run_training
from silc_bench.trainer.monitor import cost as estimate
from silc_bench.trainer.monitor import health
from silc_bench.trainer.monitor.health import Health, effective_rank
from silc_bench.trainer.monitor.watch import Watch, repeating
from silc_bench.trainer.silc.masking import draw_masked
from silc_bench.trainer.silc.teacher import Teacher
from silc_bench.trainer.silc.tokenizers import Tokenizer
from silc_bench.trainer.silc.views import make_views
from silc_bench.trainer.train import TrainState, train_step

pytestmark = [pytest.mark.broad, pytest.mark.usefixtures("few_captions")]
CPU = torch.device("cpu")


def watched(config, run, **options):
    """What a run printed, its rows, and the sentence it was stopped with."""
    console, stopped = Console(file=io.StringIO(), width=400), ""
    try:
        run_training(config, run, resume=False, device=CPU, console=console, **options)
    except RunError as error:
        stopped = str(error)
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return console.file.getvalue(), rows, stopped


def start(config):
    source = open_source(config.data)
    tokenizer = Tokenizer.train(
        source.captions(50), config.text.vocab_size, config.text.context_length
    )
    return TrainState.create(config, tokenizer, CPU), source.batches(config.batch_size, 0)


# --- planted failures -----------------------------------------------------------------------------

SENTENCES = {
    "teacher stands still": r"lower distillation.ema_momentum (now 1;",
    "teacher is uniform": r"lower distillation.teacher_temp (now 1; the recipe's is 0.04)",
    "centre stands still": r"lower distillation.center_momentum (now 1; the recipe's is 0.9)",
    "steps too large": r"optim.lr=0.1 is far too high",
    "head in half precision": r"keep head, centre and average in fp32",
}
PLANTED = {
    "teacher stands still": {"distillation": {"ema_momentum": 1.0}},
    "teacher is uniform": {"distillation": {"teacher_temp": 1.0}},
    "centre stands still": {"distillation": {"center_momentum": 1.0}},
    "steps too large": {"optim": {"lr": 0.1}},  # a hundred times the preset's
    "head in half precision": {},
}


def round_the_head(teacher, student, momentum, real=Teacher.update):
    """A head that is kept in fp16: what is smaller than its steps is lost after each update."""
    with torch.no_grad():
        for parameter in student.head.parameters():
            parameter.copy_(parameter.half().float())
    real(teacher, student, momentum)


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_failure_is_named_with_the_setting_to_change(tiny, tmp_path, monkeypatch, name):
    if name == "head in half precision":
        monkeypatch.setattr(Teacher, "update", round_the_head)
    config = tiny(
        **{"steps": 16, "precision": "fp32", "log_every": 2, "checkpoint_every": 100}
        | PLANTED[name]
    )
    printed, rows, _ = watched(config, tmp_path)
    (line,) = [line for line in printed.splitlines() if f": {name}: " in line]
    assert SENTENCES[name] in line
    assert rows[-1]["step"] == config.num_steps, "warned of, and run to its end"
    notes = [json.loads(kept) for kept in (tmp_path / "notes.jsonl").read_text().splitlines()]
    assert line in [note["note"] for note in notes]
    assert all(note["note"].startswith(f"step {note['step']}: ") for note in notes)
    others = [other for other in SENTENCES if other != name and f": {other}: " in printed]
    assert others == [], "the others are not accused"


def test_a_healthy_run_is_accused_of_nothing(tiny, tmp_path):
    config = tiny(
        steps=16,
        precision="fp32",
        log_every=4,
        checkpoint_every=100,
        distillation={"bottleneck_dim": 64},
    )
    printed, rows, stopped = watched(config, tmp_path)
    assert not [
        name
        for name in [*SENTENCES, "one prototype", "one direction", "one-hot"]
        if name in printed
    ]
    assert stopped == ""
    assert rows[0]["update_ratio"] < 0.05


def test_stop_ends_the_run_with_the_sentence(tiny, tmp_path):
    config = tiny(
        steps=16,
        precision="fp32",
        log_every=2,
        checkpoint_every=2,
        **PLANTED["teacher stands still"],
    )
    _, rows, stopped = watched(config, tmp_path, on_collapse="stop")
    assert stopped.startswith("stopped at step 4: teacher stands still: ")
    assert stopped.endswith("Checkpoints that were written are intact.")
    assert [row["step"] for row in rows] == [2, 4]


def test_an_unknown_answer_to_a_collapse(tiny, tmp_path):
    with pytest.raises(UserError, match=r"unknown --on-collapse 'stopp'; did you mean stop"):
        run_training(
            tiny(),
            tmp_path,
            resume=False,
            device=CPU,
            console=Console(file=io.StringIO()),
            on_collapse="stopp",
        )


def row(**changes):
    return {
        "feature_rank": 20.0,
        "teacher_entropy": 0.5,
        "teacher_entropy_at_recipe": 0.5,
        "prototypes_in_use": 9.0,
    } | changes


@pytest.mark.parametrize(
    ("changes", "name", "words"),
    [
        ({"feature_rank": 1.1}, "embeddings are one direction", "lower optim.lr (now 0.001)"),
        (
            {"teacher_entropy": 0.0, "prototypes_in_use": 1.0},
            "one prototype",
            "the other 63 are dead",
        ),
        (
            {"teacher_entropy": 0.001},
            "teacher is one-hot",
            "raise distillation.teacher_temp (now 0.04",
        ),
        (
            {"teacher_entropy": 0.999, "teacher_entropy_at_recipe": 0.999},
            "teacher is uniform",
            "lower optim.lr",
        ),
        ({}, None, ""),
    ],
)
def test_a_collapse_needs_several_rows(tiny, changes, name, words):
    config = tiny(steps=100)
    found = health._collapses(config, row(**changes))
    assert list(found) == ([name] if name else [])
    state, batches = start(config)
    batches.close()
    state.step = 50
    watch = Health(config, CPU)
    full = row(**changes) | {"update_ratio": 0.01, "center_error": 0.0}
    answers = [watch.verdicts(state, full) for _ in range(health.PATIENCE)]
    assert answers[:-1] == [{}] * (health.PATIENCE - 1)
    if name:
        assert words in answers[-1][name]
    assert watch.verdicts(state, row() | {"update_ratio": 0.01, "center_error": 0.0}) == {}
    assert watch.verdicts(state, full) == {}, "an interruption begins the count anew"


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"feature_rank": 1.49}, ["embeddings are one direction"]),
        ({"feature_rank": 1.51}, []),
        ({"teacher_entropy": 0.991, "teacher_entropy_at_recipe": 0.991}, ["teacher is uniform"]),
        ({"teacher_entropy": 0.989, "teacher_entropy_at_recipe": 0.989}, []),
        ({"teacher_entropy": 0.049, "prototypes_in_use": 1.0}, ["one prototype"]),
        ({"teacher_entropy": 0.051, "prototypes_in_use": 1.0}, []),
        ({"teacher_entropy": 0.049, "prototypes_in_use": 2.0}, []),
        ({"teacher_entropy": 0.0019}, ["teacher is one-hot"]),
        ({"teacher_entropy": 0.0021}, []),
    ],
)
def test_where_a_collapse_begins(tiny, changes, names):
    """Sinkhorn balances the prototypes whatever the outputs; embeddings are judged with it too."""
    assert list(health._collapses(tiny(), row(**changes))) == names
    balanced = health._collapses(tiny(distillation={"centering": "sinkhorn"}), row(**changes))
    assert list(balanced) == [name for name in names if name == "embeddings are one direction"]


@pytest.mark.parametrize(
    ("at_recipe", "teacher_temp", "setting"),
    [
        (0.5, 0.08, "lower distillation.teacher_temp (now 0.08"),
        # above the student's, no recipe's
        (0.999, 0.11, "lower distillation.teacher_temp (now 0.11"),
        (0.999, 0.09, "its outputs are alike at any temperature; lower optim.lr"),
    ],
)
def test_a_uniform_teacher_is_one_of_its_temperature_or_of_its_outputs(
    tiny, at_recipe, teacher_temp, setting
):
    uniform = row(teacher_entropy=0.999, teacher_entropy_at_recipe=at_recipe)
    assert (
        setting
        in health._collapses(tiny(distillation={"teacher_temp": teacher_temp}), uniform)[
            "teacher is uniform"
        ]
    )


@pytest.mark.parametrize(("update_ratio", "is_named"), [(0.149, False), (0.151, True)])
def test_how_large_a_step_is_too_large(tiny, update_ratio, is_named):
    state, batches = start(tiny())
    batches.close()
    found = Health(state.config, CPU).verdicts(state, row(update_ratio=update_ratio))
    assert ("steps too large" in found) == is_named


@pytest.mark.parametrize(
    ("errors", "changes", "names"),
    [
        ({"center_error": 0.11, "patch_center_error": 0.0}, {}, {"centre stands still"}),
        (
            {"center_error": 0.09, "patch_center_error": 0.11},
            {},
            {"centre of patches stands still"},
        ),
        (
            {"center_error": 0.11, "patch_center_error": 0.11},
            {},
            {"centre stands still", "centre of patches stands still"},
        ),
        (
            {"center_error": 0.11, "patch_center_error": 0.11},
            {"distillation": {"centering": "sinkhorn"}},
            set(),
        ),
    ],
)
def test_a_centre_that_stands_still_is_named_where_the_mean_has_moved_away(
    tiny, errors, changes, names
):
    """Not while the student stands still too, nor where nothing reads the centre.

    Each of the two for itself.
    """
    state, batches = start(tiny(steps=100, masked={"weight": 0.5}, **changes))
    batches.close()
    watch, full = Health(state.config, CPU), row(update_ratio=0.01, **errors)
    assert [watch.verdicts(state, full), watch.verdicts(state, full)] == [{}, {}]
    towers = [
        tower.blocks[-1].mlp.fc1.weight for tower in (state.student.vision, state.teacher.vision)
    ]
    centers = {
        "centre stands still": state.teacher.center,
        "centre of patches stands still": state.teacher.patch_center,
    }
    for moved in (None, *centers):
        with torch.no_grad():
            for tensor in (*towers, *([centers[moved]] if moved else [])):
                tensor.add_(0.01)
        assert set(watch.verdicts(state, full)) == names - {moved}


@pytest.mark.parametrize("head", ["head", "patch_head"])
@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_a_head_that_was_rounded_is_named_with_its_precision(tiny, head, kind):
    state, batches = start(tiny(masked={"weight": 0.5}))
    batches.close()
    prototypes = getattr(state.student, head).prototypes
    with torch.no_grad():
        prototypes.copy_(prototypes.to(getattr(torch, kind)).float())
    found = Health(state.config, CPU).verdicts(state, row(update_ratio=0.01))
    assert f"hold no more than {kind}:" in found["head in half precision"]


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        (
            {"patch_teacher_entropy": 0.0, "patch_prototypes_in_use": 1.0},
            "one prototype of patches",
        ),
        ({"patch_teacher_entropy": 0.001}, "teacher of patches is one-hot"),
        ({"patch_teacher_entropy": 0.999}, "teacher of patches is uniform"),
        ({}, None),
    ],
)
def test_a_collapse_of_masked_patches_is_named_as_theirs(tiny, changes, name):
    of_patches = {
        "patch_teacher_entropy": 0.5,
        "patch_teacher_entropy_at_recipe": 0.5,
        "patch_prototypes_in_use": 9.0,
    }
    found = health._collapses(tiny(masked={"weight": 0.5}), row(**of_patches | changes))
    assert list(found) == ([name] if name else [])


def test_heads_that_begin_late_are_young_then(tiny):
    """What a run may show in its first steps, heads may show in theirs.

    The embeddings are judged as ever.
    """
    config = tiny(steps=100, distillation={"start_fraction": 0.5}, optim={"warmup_fraction": 0.2})
    state, batches = start(config)
    batches.close()
    full = row(teacher_entropy=0.001, feature_rank=1.0) | {
        "update_ratio": 0.01,
        "center_error": 0.0,
    }
    for step, names in (
        (65, {"embeddings are one direction"}),
        (70, {"embeddings are one direction", "teacher is one-hot"}),
    ):
        state.step, watch = step, Health(config, CPU)
        assert {name for _ in range(5) for name in watch.verdicts(state, full)} == names


def test_before_the_end_of_the_warm_up_nothing_is_called_a_collapse(tiny):
    config = tiny(steps=100)
    state, batches = start(config)
    batches.close()
    full = row(feature_rank=1.0) | {"update_ratio": 0.01, "center_error": 0.0}
    for step, is_named in ((9, False), (10, True)):
        state.step, watch = step, Health(config, CPU)
        assert any(watch.verdicts(state, full) for _ in range(5)) == is_named


def test_one_prototype_is_no_collapse_before_the_centre_has_settled(tiny):
    config = tiny(steps=100)
    state, batches = start(config)
    batches.close()
    full = row(teacher_entropy=0.0, prototypes_in_use=1.0) | {
        "update_ratio": 0.01,
        "center_error": 0.0,
    }
    for step, is_named in ((49, False), (50, True)):  # five times 1 / (1 - 0.9)
        state.step, watch = step, Health(config, CPU)
        assert any("one prototype" in watch.verdicts(state, full) for _ in range(5)) == is_named


# --- the numbers ----------------------------------------------------------------------------------


def looped(logits, answers, center, config):
    """Teacher's [H, K] against the student's, a picture and a prototype at a time, in float64."""
    d, found = (
        config.distillation,
        {"teacher_entropy": [], "teacher_entropy_at_recipe": [], "student_teacher_kl": []},
    )
    winners, logits, answers, center = set(), logits.double(), answers.double(), center.double()
    for logit, answer in zip(logits, answers, strict=True):
        p, sharp, q = (
            torch.softmax(x, -1).tolist()
            for x in (
                (logit - center) / d.teacher_temp,
                (logit - center) / 0.04,
                answer / d.student_temp,
            )
        )
        found["teacher_entropy"].append(
            -sum(x * math.log(x) for x in p if x > 0) / math.log(len(p))
        )
        found["teacher_entropy_at_recipe"].append(
            -sum(x * math.log(x) for x in sharp if x > 0) / math.log(len(p))
        )
        found["student_teacher_kl"].append(
            sum(x * math.log(x / y) for x, y in zip(p, q, strict=True) if x > 0)
        )
        winners.add(int(np.argmax(p)))
    mean = logits.mean(0)
    error = float((mean - center).square().sum().sqrt() / mean.square().sum().sqrt())
    return {name: np.mean(values) for name, values in found.items()} | {
        "prototypes_in_use": len(winners),
        "center_error": error,
    }


@pytest.mark.parametrize("clip_norm", [0.5, 1e4])  # below the norm of the gradient, and above
def test_numbers_equal_loops_in_float64(tiny, monkeypatch, clip_norm):
    """Of views and of masked patches, of which the first of each view is looked at."""
    towers = {
        "vision": {"image_size": 32, "depth": 2},
        "text": {"depth": 2},
        "views": {"global_size": 32, "local_size": 16},
    }
    distillation = {"teacher_temp": 0.07, "center_momentum": 0.5}
    config = tiny(
        precision="fp32",
        masked={"weight": 0.5},
        distillation=distillation,
        optim={"clip_norm": clip_norm},
        **towers,
    )
    monkeypatch.setattr(health, "matmul_rate", lambda device, precision: 1e9)
    state, batches = start(config)
    train_step(state, next(batches))
    batch = next(batches)
    batches.close()
    before = {name: p.detach().clone() for name, p in state.student.named_parameters()}
    watch = Health(config, CPU, num_ranks=3)
    watch.before_step(state)
    norm = float(train_step(state, batch)["gradient_norm"])
    assert 0.5 < norm < 1e4
    with torch.no_grad():
        # the largest change is in one of four matrices
        state.student.text.blocks[1].mlp.fc1.weight.add_(0.3)
        state.teacher.vision.patch.weight.mul_(2)  # not as long as the student's
        state.teacher.center.add_(
            0.02 * torch.randn(64, generator=torch.Generator().manual_seed(0))
        )
    found = watch.row(state, batch, norm, images_per_second=100.0)

    student, teacher = state.student, state.teacher
    crops = make_views(
        batch.images, batch.sizes, config.views, config.seed, 1, needs={"global_crops"}
    ).global_crops
    places = draw_masked(config, 8, 1).flatten(0, 1)
    with torch.no_grad():
        crops = crops.flatten(0, 1)
        of_views = looped(
            teacher.head(teacher.vision(crops)),
            student.head(student.vision(crops)),
            teacher.center,
            config,
        )
        rows, first = torch.arange(len(crops)), places[:, 0]
        seen = teacher.patch_head(teacher.vision.tokens(crops)[rows, first])
        guessed = student.patch_head(
            student.vision.tokens(crops, places, student.mask_token)[rows, first]
        )
        of_patches = looped(seen, guessed, teacher.patch_center, config)
        values = torch.linalg.svdvals(
            torch.nn.functional.normalize(student.vision(crops[:8]).double(), dim=-1)
        )
    for prefix, expected in (("", of_views), ("patch_", of_patches)):
        assert {name: found[f"{prefix}{name}"] for name in expected} == pytest.approx(
            expected, rel=1e-3
        ), prefix
    shares = (values / values.sum()).tolist()
    assert found["feature_rank"] == pytest.approx(
        math.exp(-sum(x * math.log(x) for x in shares)), rel=1e-3
    )
    change = [
        float((p.detach() - before[name]).norm() / before[name].norm())
        for name, p in state.student.named_parameters()
        if name.endswith("mlp.fc1.weight") and ".pool." not in name
    ]
    assert found["update_ratio"] == pytest.approx(max(change), rel=1e-5)
    pairs = zip(student.vision.parameters(), teacher.vision.parameters(), strict=True)
    apart = sum(float(((a - b) ** 2).detach().sum()) for a, b in pairs)
    size = sum(float((a**2).detach().sum()) for a in student.vision.parameters())
    assert found["ema_distance"] == pytest.approx(math.sqrt(apart / size), rel=1e-4)
    parts = [found[f"gradient_norm_{part}"] for part in ("vision", "text", "head", "patch_head")]
    # less scale, bias and mask token
    assert math.sqrt(sum(part**2 for part in parts)) == pytest.approx(norm, rel=1e-2)
    assert found["mfu"] == pytest.approx(100.0 * estimate.flops_per_image(config) / 3e9)


def test_before_the_teacher_teaches_a_step_is_counted_without_it(tiny, monkeypatch):
    """The step before the first taught one, and that one."""
    monkeypatch.setattr(health, "matmul_rate", lambda device, precision: 1e9)
    config = tiny(precision="fp32", distillation={"start_fraction": 0.5})
    state, batches = start(config)
    watch = Health(config, CPU)
    for is_taught in (False, False, True, True):
        watch.before_step(state)
        batch = next(batches)
        train_step(state, batch)
        found = watch.row(state, batch, 1.0, images_per_second=1.0)
        assert found["mfu"] == pytest.approx(
            estimate.flops_per_image(config, is_taught=is_taught) / 1e9
        )
        assert ("teacher_entropy" in found) == is_taught
    batches.close()


def test_effective_rank():
    assert effective_rank(torch.ones(9, 4)) == pytest.approx(1.0, abs=1e-3)
    assert effective_rank(torch.eye(6)) == pytest.approx(6.0, rel=1e-4)
    two = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(8, 2)
    assert effective_rank(two) == pytest.approx(2.0, rel=1e-4)
    assert effective_rank(1000 * torch.eye(6)) == pytest.approx(6.0, rel=1e-4), (
        "lengths play no part"
    )


def test_without_a_head_there_is_no_teacher_to_judge(tiny, tmp_path):
    _, rows, _ = watched(tiny("contrastive", steps=4), tmp_path)
    assert {"feature_rank", "ema_distance", "update_ratio", "gradient_norm_vision", "mfu"} <= set(
        rows[0]
    )
    assert "teacher_entropy" not in rows[0]


# --- it changes nothing ---------------------------------------------------------------------------


def test_looking_draws_nothing_and_touches_nothing(tiny):
    config = tiny(precision="fp32")
    state, batches = start(config)
    batch = next(batches)
    watch = Health(config, CPU)
    watch.before_step(state)
    train_step(state, batch)
    batches.close()
    before, generator = copy.deepcopy(state.payload()), torch.get_rng_state()
    gradients = [p.grad.clone() for p in state.student.parameters() if p.grad is not None]
    watch.verdicts(state, watch.row(state, batch, 1.0, 1.0))
    assert torch.equal(torch.get_rng_state(), generator)
    after = state.payload()
    for part in ("student", "teacher"):
        assert all(torch.equal(value, after[part][name]) for name, value in before[part].items())
    assert all(
        map(
            torch.equal,
            gradients,
            [p.grad for p in state.student.parameters() if p.grad is not None],
        )
    )
    assert state.student.training


def test_rows_and_probes_leave_the_run_as_it_is(tiny, tmp_path):
    """The weights of a run that looks at every step are those of a run that never looks.

    It probes every second step, too.
    """
    probe = {"every": 2, "tasks": "shapes/knn,shapes/zeroshot", "limit": 24}
    ends = []
    for name, changes in (
        ("often", {"log_every": 1, "probe": probe}),
        ("never", {"log_every": 100}),
    ):
        config = tiny(steps=5, precision="fp32", **changes)
        path = run_training(
            config,
            tmp_path / name,
            resume=False,
            device=CPU,
            console=Console(file=io.StringIO(), width=200),
        )
        ends.append(torch.load(path, weights_only=True))
    for part in ("student", "teacher"):
        assert all(torch.equal(value, ends[1][part][name]) for name, value in ends[0][part].items())
    found = [
        json.loads(line) for line in (tmp_path / "often" / "probes.jsonl").read_text().splitlines()
    ]
    assert [line["step"] for line in found] == [2, 4, 5]
    assert all(set(line) == {"step", "probe/shapes/knn", "probe/shapes/zeroshot"} for line in found)

    best = max(
        found,
        key=lambda line: (line["probe/shapes/knn"] + line["probe/shapes/zeroshot"], line["step"]),
    )
    assert checkpoint.best_in(tmp_path / "often").name == f"step_{best['step']:08d}.pt"
    words = json.loads(checkpoint.path_of(tmp_path / "often", 5).with_suffix(".json").read_text())
    assert words["score"] == pytest.approx(
        (found[-1]["probe/shapes/knn"] + found[-1]["probe/shapes/zeroshot"]) / 2
    )


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
    """Of the real step under torch's counter, less the products that resize its pictures."""
    config = tiny(**{"precision": "fp32"} | changes)
    state, batches = start(config)
    batch = next(batches)
    batches.close()
    with FlopCounterMode(display=False) as counter:
        train_step(state, batch)
    with FlopCounterMode(display=False) as views:
        make_views(batch.images, batch.sizes, config.views, config.seed, 0, needs=config.view_kinds)
    counted = counter.get_total_flops() - views.get_total_flops()
    assert estimate.flops_per_image(config) * config.batch_size == pytest.approx(counted, rel=0.12)


def test_the_estimate_counts_the_model_it_will_build(tiny):
    config = tiny(precision="fp32")
    state, batches = start(config)
    batches.close()
    found = estimate.estimate(config, CPU)
    assert sum(found.parameters.values()) + 2 == sum(p.numel() for p in state.student.parameters())
    train = found.bytes_by_part
    assert (
        train["weights"]
        == train["gradients"]
        == pytest.approx(train["optimiser state"] / 2, rel=1e-3)
    )
    assert train["teacher"] == 4 * sum(p.numel() for p in state.teacher.parameters())
    assert found.images_per_second * found.flops_per_image == pytest.approx(found.matmul_rate)
    assert found.hours == pytest.approx(config.samples / found.images_per_second / 3600)
    assert (
        estimate.estimate(config, CPU, num_ranks=2).bytes_by_part["activations"]
        == train["activations"] / 2
    )


@pytest.mark.parametrize(
    ("data", "advice"),
    [
        (
            {"decode_size": 24},
            "raise data.num_workers (now 0), or lower data.decode_size (now 24, views have 16)",
        ),
        ({"decode_size": 16}, "raise data.num_workers (now 0)"),
        ({"decode_size": 24, "num_workers": 1}, "lower data.decode_size (now 24, views have 16)"),
        (
            {"decode_size": 16, "num_workers": 1},
            "every core decodes already: pack smaller pictures, or give it more cores",
        ),
    ],
)
def test_waiting_for_data_is_answered_by_what_can_help(tiny, monkeypatch, data, advice):
    """On one core. Pictures decoded at the size of a view are not to be made smaller."""
    monkeypatch.setattr("silc_bench.trainer.data.stream.num_cores", lambda: 1)
    config = tiny(precision="fp32", data=data)
    assert config.views.global_size == 16
    state, batches = start(config)
    batches.close()
    said, kept = io.StringIO(), []
    watching = Watch(config, CPU, Console(file=said, width=300), "warn", Damage(), kept.append)
    monkeypatch.setattr(watching._health, "verdicts", lambda state, row: {})
    watching.judge(state, {"data_wait_share": 0.46, "left_out": 0})
    assert said.getvalue() == f"step 0: 46 % of the time was spent waiting for data; {advice}\n"


def test_a_step_too_large_for_the_device_is_told_what_fits(tiny):
    """8 pairs of 10 GiB and 4 GiB beside: 2 fit into nine tenths of 30, 1 into 20, none into 8."""
    config, parts = tiny(batch_size=8), {"weights": 4 << 30, "activations": 80 << 30}
    assert too_large_for(parts, config, 84 << 30) is None
    assert (
        "needs 84.00 GiB and this process may use 30.00 GiB: --set micro_batch=2 fits"
        in too_large_for(parts, config, 30 << 30)
    )
    assert "micro_batch=1 fits" in too_large_for(parts, config, 20 << 30)
    assert "not enough for one pair at a time: --set checkpointing=blocks" in too_large_for(
        parts, config, 8 << 30
    )
    assert "checkpointing" not in too_large_for(
        parts, tiny(batch_size=8, checkpointing="blocks"), 20 << 30
    )
    assert "less than model and optimiser alone, 4.00 GiB" in too_large_for(parts, config, 3 << 30)
    batch = {**parts, "pictures and views": 16 << 30}
    assert (
        "less than the pictures and logits of 4 pairs and the model, 20.00 GiB: "
        "it takes more devices"
    ) in too_large_for(batch, config, 19 << 30, devices=2)
    # 4 pairs of 20 GiB
    assert "micro_batch=1 fits" in too_large_for(parts, config, 30 << 30, devices=2)
    half = {"weights": 4 << 30, "activations": 40 << 30}
    assert "micro_batch=2 fits" in too_large_for(half, tiny(batch_size=8, micro_batch=4), 30 << 30)
    assert estimate.memory_of(CPU) > 2**30


def test_what_is_left_out_is_in_the_rows_and_its_cause_is_said_once(tiny, tmp_path, shards):
    """Of 20 readable pairs and the broken one the log counts each meeting, the summary the pair."""
    config = tiny(precision="fp32", data={"source": shards}, batch_size=4, samples=64, log_every=1)
    said, rows, _ = watched(config, tmp_path)
    (cause,) = {line.split(", first ")[0] for line in said.splitlines() if ": left out: " in line}
    met = next(row["step"] for row in rows if row["left_out"])
    assert cause == f"step {met}: left out: corrupt image"
    assert [row["left_out"] for row in rows] == sorted(row["left_out"] for row in rows)
    final = checkpoint.load(checkpoint.find(tmp_path))
    assert rows[-1]["left_out"] == final["position"] - final["samples_seen"] > 0
    assert "could not be read" not in said, "one in 21 is no alarm"


def test_a_source_of_which_much_cannot_be_read_is_named(tiny, monkeypatch):
    config = tiny(precision="fp32")
    state, batches = start(config)
    batches.close()
    said, kept = io.StringIO(), []
    watching = Watch(config, CPU, Console(file=said, width=300), "warn", Damage(), kept.append)
    monkeypatch.setattr(watching._health, "verdicts", lambda state, row: {})
    state.position = 100
    for left_out in (10, 11, 12):
        watching.judge(state, {"data_wait_share": 0.0, "left_out": left_out})
    assert kept == said.getvalue().splitlines()
    assert said.getvalue() == (
        "step 0: 11 % of the pairs could not be read; `silc-bench data stats` counts them by "
        "cause\n"
    )


@pytest.mark.parametrize(
    ("batch_size", "num_samples", "is_said"),
    [(8, 8, False), (9, 8, True), (9, 10**6, False), (9, None, False)],
)
def test_a_batch_that_holds_a_pair_twice_is_named(tiny, batch_size, num_samples, is_said):
    sentence = repeating(tiny(batch_size=batch_size, samples=64), num_samples)
    assert (sentence is not None) == is_said
    assert not is_said or "lower batch_size to 8 or less" in sentence


def test_a_run_says_that_its_batches_repeat_pairs(tiny, tmp_path, shards):
    said, _, _ = watched(
        tiny(precision="fp32", data={"source": shards}, batch_size=32, samples=32), tmp_path
    )
    assert "a batch of 32 holds pairs several times, of 21 in all" in said
