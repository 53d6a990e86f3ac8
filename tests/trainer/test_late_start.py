"""The teacher begins late: before it a run is the contrastive one; it begins as the student.

Bit for bit before it, and resumed exactly.

Then the presets that are built of these parts, shrunk until they run here.
"""

import copy
import io
import json
import shutil

import pytest
import torch
from on_ranks import first_batches
from rich.console import Console

from silc_bench.errors import UserError
from silc_bench.trainer import train
from silc_bench.trainer.checkpoints import file as checkpoint
from silc_bench.trainer.checkpoints import model as native
from silc_bench.trainer.config.config import MaskedConfig, from_dict, to_dict, without_heads
from silc_bench.trainer.config.presets import configure
from silc_bench.trainer.loop import run_training
from silc_bench.trainer.monitor.cost import flops_per_image
from silc_bench.trainer.optim import Adafactor
from silc_bench.trainer.silc.student import TAUGHT, Student, init_weights
from silc_bench.trainer.silc.teacher import Teacher
from silc_bench.trainer.train import TrainState, train_step

pytestmark = [pytest.mark.broad, pytest.mark.usefixtures("few_captions")]
CPU = torch.device("cpu")
STEPS, START = 6, 3
LATE = {
    "distillation": {"start_fraction": START / STEPS},
    "masked": {"weight": 0.5},
    "contrastive": {"images": "original"},
}


def late(tiny, **changes):
    return tiny(steps=STEPS, precision="fp32", **copy.deepcopy(LATE) | changes)


def values_of(row):
    return {name: value.item() for name, value in row.items()}


def equal(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(
            equal(value, other[key]) for key, value in one.items()
        )
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def test_before_the_start_it_is_the_contrastive_run_bit_for_bit(tiny):
    """Values, towers, teacher and moments of the optimiser; from the start on it is another run."""
    config, plain = late(tiny), late(tiny, objective="contrastive", masked={"weight": 0.0})
    tokenizer, batches = first_batches(config, STEPS)
    mine, theirs = (TrainState.create(c, tokenizer, CPU) for c in (config, plain))
    for number, batch in enumerate(batches):
        row, other = values_of(train_step(mine, batch)), values_of(train_step(theirs, batch))
        if number < START:
            assert row == other
        towers, twins = mine.student.state_dict(), theirs.student.state_dict()
        assert all(torch.equal(towers[name], value) for name, value in twins.items()) == (
            number < START
        )
        teachers = mine.teacher.state_dict()
        assert all(torch.equal(teachers[n], v) for n, v in theirs.teacher.state_dict().items()) == (
            number < START
        )
        assert len(mine.optimizer.state) == len(theirs.optimizer.state) + (number >= START) * len(
            mine.student.taught_parameters()
        )
    assert set(row) - set(other) == {"distillation", "masked"}


def test_before_the_start_it_costs_nothing(tiny, monkeypatch):
    """No view is made that only a teacher needs, no mask drawn, the teacher never asked.

    local+global encodes no more.
    """
    config, asked = late(tiny, distillation={"start_fraction": 0.5, "pairs": "local+global"}), []
    tokenizer, batches = first_batches(config, STEPS)
    state = TrainState.create(config, tokenizer, CPU)
    real_views, real_masks, real_targets = train.make_views, train.draw_masked, Teacher.targets
    monkeypatch.setattr(
        train,
        "make_views",
        lambda *a, **k: asked.append(("views", *sorted(k["needs"]))) or real_views(*a, **k),
    )
    monkeypatch.setattr(train, "draw_masked", lambda *a: asked.append("masks") or real_masks(*a))
    monkeypatch.setattr(Teacher, "targets", lambda *a: asked.append("teacher") or real_targets(*a))
    encoded = []
    state.student.vision.register_forward_hook(lambda module, inputs, out: encoded.append(len(out)))
    for batch in batches[:START]:
        train_step(state, batch)
    assert asked == [("views", "original")] * START
    assert encoded == [config.batch_size] * START
    train_step(state, batches[START])
    assert asked[START:] == [
        ("views", "global_crops", "local_crops", "original"),
        "masks",
        "teacher",
    ]


def test_at_the_start_the_teacher_is_the_student_and_the_heads_are_fresh(tiny, monkeypatch):
    config, seen = late(tiny), []
    tokenizer, batches = first_batches(config, STEPS)
    state = TrainState.create(config, tokenizer, CPU)
    fresh = Student(config)
    init_weights(fresh, config.seed)
    real = Teacher.targets

    def look(teacher, *args):
        seen.append(state.step)
        if state.step == START:
            ours, first = state.student.state_dict(), fresh.state_dict()
            followed = dict(teacher.named_parameters())
            assert all(torch.equal(value, ours[name]) for name, value in followed.items())
            assert not torch.equal(ours["vision.patch.weight"], first["vision.patch.weight"])
            assert all(
                torch.equal(value, first[name])
                for name, value in ours.items()
                if name.startswith(TAUGHT)
            )
            assert not teacher.center.any()
            assert not teacher.patch_center.any()
        return real(teacher, *args)

    monkeypatch.setattr(Teacher, "targets", look)
    for batch in batches:
        train_step(state, batch)
    assert seen == [3, 4, 5]
    assert not torch.equal(state.teacher.vision.patch.weight, state.student.vision.patch.weight)


def test_the_time_left_knows_that_taught_steps_cost_more(tiny, tmp_path):
    """In units of the mean of the steps since the last row, which ``images_per_second`` gives."""
    config, said = late(tiny, log_every=1), io.StringIO()
    run_training(config, tmp_path, resume=False, device=CPU, console=Console(file=said))
    assert f"{STEPS} steps of 8, the teacher from step {START + 1} on" in " ".join(
        said.getvalue().split()
    )
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    growth = flops_per_image(config) / flops_per_image(config, is_taught=False)
    assert growth > 1.5
    left = [row["seconds_left"] * row["images_per_second"] / config.batch_size for row in rows]
    assert left == pytest.approx([2 + 3 * growth, 1 + 3 * growth, 3 * growth, 2, 1, 0])


@pytest.mark.parametrize("kind", ["adamw", "adafactor"])
def test_a_resume_anywhere_about_the_start_is_exact(tiny, kind):
    config = late(tiny, optim={"kind": kind})
    tokenizer, batches = first_batches(config, STEPS)
    state, saved = TrainState.create(config, tokenizer, CPU), {}
    for batch in batches:
        saved[state.step] = copy.deepcopy(state.payload())
        train_step(state, batch)
    for step in (START - 1, START, START + 1):
        other = TrainState.restore(saved[step], CPU)
        for batch in batches[step:]:
            train_step(other, batch)
        one, two = state.payload(), other.payload()
        assert [name for name in one if not equal(one[name], two[name])] == []


def test_adafactor_is_as_fresh_for_a_weight_that_begins_late():
    """Its first updates, after 40 of another weight, are those of a fresh optimiser."""
    early, weight, twin = (torch.ones(40, 64, requires_grad=True) for _ in range(3))
    both, alone = (
        Adafactor([{"params": params, "weight_decay": 0.0}], 1e-2, 0.9)
        for params in ([early, weight], [twin])
    )
    generator = torch.Generator().manual_seed(0)
    for step in range(45):
        early.grad = torch.randn(40, 64, generator=generator)
        if step >= 40:
            weight.grad = torch.randn(40, 64, generator=generator)
            twin.grad = weight.grad.clone()
            alone.step()
        both.step()
    assert torch.equal(weight, twin)
    assert not torch.equal(weight, torch.ones(40, 64))


def test_a_checkpoint_from_before_these_fields_is_read_as_it_ran(tiny):
    saved = to_dict(tiny())
    del saved["masked"], saved["distillation"]["start_fraction"]
    config = from_dict(json.loads(json.dumps(saved)))
    assert config == tiny()
    assert (config.masked, config.start_step) == (MaskedConfig(), 0)
    assert config.masked.weight == 0


@pytest.mark.parametrize(
    ("fraction", "words"),
    [(-0.1, "must be at least 0"), (1.0, "must be at least 0"), (0.99, "leaves no step")],
)
def test_a_start_that_cannot_be_is_refused(tiny, fraction, words):
    with pytest.raises(UserError, match=f"distillation.start_fraction.*{words}"):
        tiny(steps=STEPS, distillation={"start_fraction": fraction})


# --- the presets ----------------------------------------------------------------------------------

SMALL = [
    *(
        f"{tower}.{size}"
        for tower in ("vision", "text")
        for size in ("width=32", "depth=1", "num_heads=2", "mlp_dim=48")
    ),
    *(
        "vision.image_size=32",
        "vision.patch_size=8",
        "text.vocab_size=300",
        "text.context_length=12",
    ),
    *("views.global_size=32", "views.local_size=16", "views.num_local=2", "data.decode_size=32"),
    *(
        "distillation.num_prototypes=64",
        "distillation.hidden_dim=32",
        "distillation.bottleneck_dim=16",
    ),
    *("batch_size=8", "samples=40", "precision=fp32", "log_every=1", "checkpoint_every=1"),
    *("probe.every=5", "probe.tasks=shapes/knn,shapes/zeroshot", "probe.limit=24"),
]
TAUGHT_STEPS = {"siglip2_dense": [5], "tips": [1, 2, 3, 4, 5]}


@pytest.mark.parametrize("preset", TAUGHT_STEPS)
def test_a_preset_trains_is_evaluated_and_resumes(preset, tmp_path):
    """Five steps on generated scenes; resumed before the last step it ends with the same bits."""
    config = configure(preset, "silc", data="shapes", sets=SMALL)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    console = Console(file=io.StringIO(), width=200)
    run_training(config, whole, resume=False, device=CPU, console=console)
    rows = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    for name in (
        "distillation",
        "masked",
        "teacher_entropy",
        "patch_teacher_entropy",
        "patch_student_teacher_kl",
    ):
        assert [row["step"] for row in rows if name in row] == TAUGHT_STEPS[preset], name
    for row in rows:
        total = row["contrastive"] + config.distillation.weight * row.get("distillation", 0.0)
        assert row["loss"] == pytest.approx(
            total + config.masked.weight * row.get("masked", 0.0), rel=1e-6
        )
    (probe,) = [json.loads(line) for line in (whole / "probes.jsonl").read_text().splitlines()]
    assert {"probe/shapes/knn", "probe/shapes/zeroshot"} < set(probe)

    shutil.copytree(whole, parts)
    for suffix in (".pt", ".json"):
        checkpoint.path_of(parts, 5).with_suffix(suffix).unlink()
    assert checkpoint.load(checkpoint.find(parts))["step"] == 4
    run_training(config, parts, resume=True, device=CPU, console=console)
    ends = [checkpoint.load(checkpoint.find(run)) for run in (whole, parts)]
    assert [name for name in ends[0] if not equal(ends[0][name], ends[1][name])] == []

    for branch in ("student", "teacher"):
        model = native.load(whole, branch)
        towers = native._empty(without_heads(model.config))
        towers.load_state_dict(native.tensors(model), assign=True)
        assert torch.equal(
            towers.vision(torch.zeros(1, 3, 32, 32)), model.vision(torch.zeros(1, 3, 32, 32))
        )
