"""The teacher begins late: before it a run is the contrastive one; it begins as the student.

Bit for bit before it, and resumed exactly.

Then the presets that are built of these parts, shrunk until they run here.
"""

import copy
import json
import shutil

import pytest
import torch
from runs import CPU, differing, end_of, rows_of, run, started, values_of

from silc_bench.trainer import train
from silc_bench.trainer.checkpoints import file as checkpoint
from silc_bench.trainer.checkpoints import model as native
from silc_bench.trainer.config.config import without_heads
from silc_bench.trainer.config.presets import configure
from silc_bench.trainer.monitor.plan.cost import flops_per_image
from silc_bench.trainer.optim import Adafactor
from silc_bench.trainer.silc.student import TAUGHT
from silc_bench.trainer.silc.teacher import Teacher
from silc_bench.trainer.train import TrainState, train_step

pytestmark = [pytest.mark.broad, pytest.mark.usefixtures("few_captions")]
STEPS, START = 6, 3
LATE = {
    "distillation": {"start_fraction": START / STEPS},
    "masked": {"weight": 0.5},
    "contrastive": {"images": "original"},
}


def late(tiny, **changes):
    return tiny(steps=STEPS, **LATE | changes)


@pytest.fixture
def begun(tiny):
    """A run before its first step, and its batches."""
    return started(late(tiny), STEPS)


def test_before_the_start_it_is_the_contrastive_run_bit_for_bit(tiny, begun):
    """Values, towers, teacher and moments of the optimiser; from the start on it is another run."""
    mine, batches = begun
    plain = late(tiny, objective="contrastive", masked={"weight": 0.0})
    theirs = TrainState.create(plain, mine.tokenizer, CPU)
    for number, batch in enumerate(batches):
        row, other = (values_of(train_step(state, batch)) for state in (mine, theirs))
        is_taught = number >= START
        assert is_taught or row == other
        for name in ("student", "teacher"):
            ours, twins = (getattr(state, name).state_dict() for state in (mine, theirs))
            changed = differing({key: ours[key] for key in twins}, dict(twins))
            assert bool(changed) == is_taught
        late_ones = len(mine.student.taught_parameters()) if is_taught else 0
        assert len(mine.optimizer.state) == len(theirs.optimizer.state) + late_ones
    assert set(row) - set(other) == {"distillation", "masked"}


def test_before_the_start_it_costs_nothing(tiny, monkeypatch):
    """No view is made that only a teacher needs, no mask drawn, the teacher never asked.

    local+global encodes no more.
    """
    config, asked = late(tiny, distillation={"start_fraction": 0.5, "pairs": "local+global"}), []
    state, batches = started(config, STEPS)

    def note(owner, name):
        real = getattr(owner, name)

        def noted(*args, **kwargs):
            asked.append((name, *sorted(kwargs.get("needs", ()))))
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, noted)

    note(train, "make_views")
    note(train, "draw_masked")
    note(Teacher, "targets")
    encoded = []
    state.student.vision.register_forward_hook(lambda *call: encoded.append(len(call[-1])))
    for batch in batches[: START + 1]:
        train_step(state, batch)
    assert asked[:START] == [("make_views", "original")] * START
    assert encoded[:START] == [config.batch_size] * START
    kinds = ("global_crops", "local_crops", "original")
    assert asked[START:] == [("make_views", *kinds), ("draw_masked",), ("targets",)]


def test_at_the_start_the_teacher_is_the_student_and_the_heads_are_fresh(begun, monkeypatch):
    state, batches = begun
    first = copy.deepcopy(state.student.state_dict())
    at, real = {}, Teacher.targets

    def look(teacher, *args):
        at[state.step] = copy.deepcopy((state.student.state_dict(), teacher.state_dict()))
        return real(teacher, *args)

    monkeypatch.setattr(Teacher, "targets", look)
    for batch in batches:
        train_step(state, batch)
    assert list(at) == [3, 4, 5]
    student, teacher = at[START]
    centers = {name for name in teacher if name.endswith("center")}
    assert {name for name in differing(student, teacher) if name in teacher} == centers
    assert not any(teacher[name].any() for name in centers)
    moved = differing(student, first)
    assert "vision.patch.weight" in moved
    assert not [name for name in moved if name.startswith(TAUGHT)]
    assert "vision.patch.weight" in differing(*at[START + 1])


def test_the_time_left_knows_that_taught_steps_cost_more(tiny, tmp_path):
    """In units of the mean of the steps since the last row, which ``images_per_second`` gives."""
    config = late(tiny, log_every=1)
    _, printed = run(config, tmp_path)
    assert f"{STEPS} steps of 8, the teacher from step {START + 1} on" in printed
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    growth = flops_per_image(config) / flops_per_image(config, is_taught=False)
    assert growth > 1.5
    left = [row["seconds_left"] * row["images_per_second"] / config.batch_size for row in rows]
    assert left == pytest.approx([2 + 3 * growth, 1 + 3 * growth, 3 * growth, 2, 1, 0])


@pytest.mark.parametrize("kind", ["adamw", "adafactor"])
def test_a_resume_anywhere_about_the_start_is_exact(tiny, kind):
    (state, batches), saved = started(late(tiny, optim={"kind": kind}), STEPS), []
    for batch in batches:
        saved.append(copy.deepcopy(state.payload()))
        train_step(state, batch)
    for step in (START - 1, START, START + 1):
        resumed = TrainState.restore(saved[step], CPU)
        for batch in batches[step:]:
            train_step(resumed, batch)
        assert not differing(state.payload(), resumed.payload())


def test_adafactor_is_as_fresh_for_a_weight_that_begins_late():
    """Its first updates, after 40 of another weight, are those of a fresh optimiser."""
    early, weight, twin = (torch.ones(40, 64, requires_grad=True) for _ in range(3))
    both, alone = (
        Adafactor([{"params": params, "weight_decay": 0.0}], 1e-2, 0.9)
        for params in ([early, weight], [twin])
    )
    for step in range(45):
        early.grad = torch.randn(40, 64)
        if step >= 40:
            weight.grad = twin.grad = torch.randn(40, 64)
            alone.step()
        both.step()
    assert torch.equal(weight, twin)
    assert not torch.equal(weight, torch.ones(40, 64))


# --- the presets ----------------------------------------------------------------------------------

TOWER = {"width": 32, "depth": 1, "num_heads": 2, "mlp_dim": 48}
SECTIONS = {
    "vision": {**TOWER, "image_size": 32, "patch_size": 8},
    "text": {**TOWER, "vocab_size": 300, "context_length": 12},
    "views": {"global_size": 32, "local_size": 16, "num_local": 2},
    "data": {"decode_size": 32, "num_workers": 0},
    "distillation": {"num_prototypes": 64, "hidden_dim": 32, "bottleneck_dim": 16},
    "probe": {"every": 5, "tasks": "shapes/knn,shapes/zeroshot", "limit": 24},
}
SMALL = [f"{part}.{name}={x}" for part, fields in SECTIONS.items() for name, x in fields.items()]
SMALL += ["batch_size=8", "samples=40", "precision=fp32", "log_every=1", "checkpoint_every=1"]
TAUGHT_STEPS = {"siglip2_dense": [5], "tips": [1, 2, 3, 4, 5]}
TAUGHT_NAMES = {"teacher_entropy", "patch_teacher_entropy", "patch_student_teacher_kl"}


@pytest.mark.parametrize("preset", TAUGHT_STEPS)
def test_a_preset_trains_is_evaluated_and_resumes(preset, tmp_path):
    """Five steps on generated scenes; resumed before the last step it ends with the same bits."""
    config = configure(preset, "silc", data="shapes", sets=SMALL)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(config, whole)
    rows = rows_of(whole)
    for name in TAUGHT_NAMES | {"distillation", "masked"}:
        assert [row["step"] for row in rows if name in row] == TAUGHT_STEPS[preset], name
    weights = {"distillation": config.distillation.weight, "masked": config.masked.weight}
    for row in rows:
        taught = sum(weight * row.get(name, 0.0) for name, weight in weights.items())
        assert row["loss"] == pytest.approx(row["contrastive"] + taught, rel=1e-6)
    (probe,) = [json.loads(line) for line in (whole / "probes.jsonl").read_text().splitlines()]
    assert {"probe/shapes/knn", "probe/shapes/zeroshot"} < set(probe)

    shutil.copytree(whole, parts)
    checkpoint.path_of(parts, 5).unlink()
    run(config, parts, resume=True)
    assert not differing(end_of(whole), end_of(parts))

    for branch in ("student", "teacher"):
        model = native.load(whole, branch)
        towers = native._empty(without_heads(model.config))
        towers.load_state_dict(native.tensors(model), assign=True)
        images = torch.zeros(1, 3, 32, 32)
        assert torch.equal(towers.vision(images), model.vision(images))
