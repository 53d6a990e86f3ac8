"""The training step against plain PyTorch, the ablation's exact identities, how a run stops."""

import copy
import io
import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console

from silc_bench.errors import RunError, UserError
from silc_bench.trainer import loop, train
from silc_bench.trainer.checkpoints import file as checkpoint
from silc_bench.trainer.config.config import apply_objective
from silc_bench.trainer.data.stream import open_source
from silc_bench.trainer.loop import run_training
from silc_bench.trainer.optim import lr_at
from silc_bench.trainer.silc.student import Student, init_weights
from silc_bench.trainer.silc.tokenizers import Tokenizer
from silc_bench.trainer.silc.views import make_views
from silc_bench.trainer.train import TrainState, train_step

pytestmark = [pytest.mark.broad, pytest.mark.usefixtures("few_captions")]
CPU = torch.device("cpu")


def start(config):
    """The state a run starts with, and its batches."""
    source = open_source(config.data)
    tokenizer = Tokenizer.train(
        source.captions(50), config.text.vocab_size, config.text.context_length
    )
    return TrainState.create(config, tokenizer, CPU), source.batches(config.batch_size, 0)


def steps(config, count):
    """The state after ``count`` steps and what each of them reported."""
    state, batches = start(config)
    reported = [train_step(state, next(batches)) for _ in range(count)]
    batches.close()
    return state, [{name: value.item() for name, value in row.items()} for row in reported]


def run(config, folder, *, resume=False):
    """run_training, and what it printed."""
    console = Console(file=io.StringIO(), width=200)
    path = run_training(config, folder, resume=resume, device=CPU, console=console)
    return path, console.file.getvalue()


def differing(one, other):
    one, other = one.state_dict(), other.state_dict()
    both = one.keys() & other.keys()
    return (one.keys() ^ other.keys()) | {
        name for name in both if not torch.equal(one[name], other[name])
    }


# --- one step, written out ------------------------------------------------------------------------


class PlainRun:
    """SILC's step with torch's optimiser and loops for the losses, the average and the centre.

    Towers and views are shared.
    """

    def __init__(self, config, tokenizer):
        self.config, self.tokenizer = config, tokenizer
        self.student = Student(config)
        init_weights(self.student, config.seed)
        self.tower, self.head = copy.deepcopy(self.student.vision), copy.deepcopy(self.student.head)
        self.center = torch.zeros(config.distillation.num_prototypes)
        named = [(n, p) for n, p in self.student.named_parameters() if p.requires_grad]
        spared = (
            "bias",
            "positions",
            "probe",
            "log_scale",
            "norm1.weight",
            "norm2.weight",
            "norm.weight",
            "embedding.weight",
        )
        optim = config.optim
        self.optimizer = torch.optim.AdamW(
            [
                {
                    "params": [p for n, p in named if not n.endswith(spared)],
                    "weight_decay": optim.weight_decay / optim.lr,
                },
                {"params": [p for n, p in named if n.endswith(spared)], "weight_decay": 0},
            ],
            betas=(optim.beta1, optim.beta2),
            foreach=False,
            fused=False,
        )

    def contrastive(self, images, texts):
        x, y = F.normalize(images, dim=-1), F.normalize(texts, dim=-1)
        scale, total = self.student.log_scale.exp(), 0.0
        logits = [[scale * torch.dot(xi, yj) for yj in y] for xi in x]
        if self.config.contrastive.loss == "sigmoid":
            for i in range(len(x)):
                for j in range(len(y)):
                    logit = logits[i][j] + self.student.logit_bias
                    total = total - F.logsigmoid(logit if i == j else -logit)
            return total / len(x)
        table = torch.stack([torch.stack(row) for row in logits])
        for i in range(len(x)):
            total = total - F.log_softmax(table[i], 0)[i] - F.log_softmax(table[:, i], 0)[i]
        return total / (2 * len(x))

    def step(self, number, batch):
        config, student, d = self.config, self.student, self.config.distillation
        views = make_views(batch.images, batch.sizes, config.views, config.seed, number)
        texts = student.text(self.tokenizer(batch.texts))
        crops = {"global": list(views.global_crops), "original": [views.original]}
        pictures = [crop for kind in config.contrastive.images.split("+") for crop in crops[kind]]
        loss = sum(self.contrastive(student.vision(p), texts) for p in pictures) / len(pictures)
        teacher_logits = []
        if d.weight > 0:
            with torch.no_grad():
                teacher_logits = [self.head(self.tower(crop)) for crop in views.global_crops]
            shown = (
                [("global", i, c) for i, c in enumerate(views.global_crops)]
                if d.pairs == "local+global"
                else []
            )
            shown += [("local", i, c) for i, c in enumerate(views.local_crops)]
            terms = []
            for t, logits in enumerate(teacher_logits):
                probs = F.softmax((logits - self.center) / d.teacher_temp, -1)
                for kind, i, crop in shown:
                    if (kind, i) != ("global", t):
                        log_probs = F.log_softmax(
                            student.head(student.vision(crop)) / d.student_temp, -1
                        )
                        terms.append(-(probs * log_probs).sum(-1).mean())
            loss = loss + d.weight * sum(terms) / len(terms)
        student.zero_grad()
        loss.backward()
        parameters = [p for p in student.parameters() if p.requires_grad]
        norm = torch.sqrt(sum(p.grad.square().sum() for p in parameters))
        for p in parameters:
            p.grad *= min(1.0, config.optim.clip_norm / norm.item())
        for group in self.optimizer.param_groups:
            group["lr"] = lr_at(number, config.num_steps, config.optim)
        self.optimizer.step()
        m = d.ema_momentum
        with torch.no_grad():
            pairs = [(self.tower, student.vision)] + (
                [(self.head, student.head)] if self.head is not None else []
            )
            for teacher, follows in pairs:
                for mine, theirs in zip(teacher.parameters(), follows.parameters(), strict=True):
                    mine.copy_(m * mine + (1 - m) * theirs)
            if teacher_logits:
                self.center = d.center_momentum * self.center + (1 - d.center_momentum) * torch.cat(
                    teacher_logits
                ).mean(0)
        return loss.item(), norm.item()


VARIANTS = {
    "silc": {},
    "local+global": {"distillation": {"pairs": "local+global", "weight": 0.5, "ema_momentum": 0.5}},
    "softmax": {
        "contrastive": {"loss": "softmax", "images": "original+global"},
        "optim": {"schedule": "rsqrt"},
    },
    "contrastive": {"objective": "contrastive"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_steps_equal_plain_pytorch(tiny, variant):
    """Values, gradient norm, student, teacher and centre after each of three steps.

    Adam divides a gradient by its own size: where that is nothing but rounding (a key's bias, which
    a softmax does not see, and a few others) the step is noise of up to the rate. So the rest of
    each parameter, and 99 % of all, are compared.
    """
    config = tiny(**{"precision": "fp32"} | VARIANTS[variant])
    state, batches = start(config)
    plain = PlainRun(config, state.tokenizer)
    assert differing(state.student, plain.student) == set()
    for number in range(3):
        batch = next(batches)
        loss, norm = plain.step(number, batch)
        values = train_step(state, batch)
        assert values["loss"].item() == pytest.approx(loss, rel=1e-5)
        assert values["gradient_norm"].item() == pytest.approx(norm, rel=1e-3)
        theirs = dict(plain.student.named_parameters()) | {
            f"teacher.vision.{n}": p for n, p in plain.tower.named_parameters()
        }
        theirs |= (
            {}
            if plain.head is None
            else {f"teacher.head.{n}": p for n, p in plain.head.named_parameters()}
        )
        mine = dict(state.student.named_parameters()) | {
            f"teacher.{n}": p for n, p in state.teacher.named_parameters()
        }
        assert mine.keys() == theirs.keys()
        errors = {name: (p - theirs[name]).detach().abs().flatten() for name, p in mine.items()}
        assert {name for name, error in errors.items() if error.quantile(0.4) > 1e-6} == set()
        assert torch.cat([*errors.values()]).quantile(0.99) < 1e-6
        assert max(error.max() for error in errors.values()) < 2 * config.optim.lr * (number + 1)
        if plain.head is not None:
            torch.testing.assert_close(state.teacher.center, plain.center, rtol=1e-4, atol=1e-5)
    batches.close()


def test_a_step_counts_itself(tiny):
    state, _ = steps(tiny(), 3)
    assert (state.step, state.samples_seen, state.position) == (3, 24, 24)


def test_bf16_keeps_weights_and_average_in_fp32(tiny):
    state, rows = steps(tiny(precision="bf16"), 2)
    _, exact = steps(tiny(precision="fp32"), 2)
    assert {p.dtype for p in [*state.student.parameters(), *state.teacher.parameters()]} == {
        torch.float32
    }
    assert rows[0]["loss"] == pytest.approx(exact[0]["loss"], rel=0.02)
    assert rows != exact


def test_it_learns(tiny):
    """25 real steps halve the contrastive loss, and take the student away from the teacher."""
    state, rows = steps(tiny(steps=25, optim={"lr": 3e-3}), 25)
    assert rows[-1]["contrastive"] < rows[0]["contrastive"] / 2
    assert differing(state.student.vision, state.teacher.vision) == set(
        state.student.vision.state_dict()
    )


# --- the ablation is one code path ----------------------------------------------------------------


@pytest.mark.parametrize("images", ["global", "original+global"])
def test_weight_zero_is_contrastive_with_views_bit_for_bit(tiny, images):
    part = {"contrastive": {"images": images}}
    silc, silc_rows = steps(tiny("silc", distillation={"weight": 0.0}, **part), 4)
    views, views_rows = steps(tiny("contrastive+views", **part), 4)
    assert differing(silc.student, views.student) == set()
    assert differing(silc.teacher, views.teacher) == set()
    assert silc_rows == views_rows
    assert set(silc_rows[0]) == {"loss", "contrastive", "gradient_norm"}


def test_the_first_contrastive_loss_is_the_same_with_and_without_distillation(tiny):
    """Same weights, same crops: the objective changes what is minimised, not what is seen."""
    _, (silc,) = steps(tiny("silc"), 1)
    _, (views,) = steps(tiny("contrastive+views"), 1)
    assert silc["contrastive"] == views["contrastive"]
    assert silc["loss"] == pytest.approx(silc["contrastive"] + silc["distillation"], rel=1e-6)


def test_distillation_changes_the_student(tiny):
    silc, _ = steps(tiny("silc"), 2)
    views, _ = steps(tiny("contrastive+views"), 2)
    assert "vision.patch.weight" in differing(silc.student, views.student)


def test_the_weight_multiplies_distillation_alone(tiny):
    _, (row,) = steps(tiny(distillation={"weight": 0.25}), 1)
    assert row["loss"] == pytest.approx(row["contrastive"] + 0.25 * row["distillation"], rel=1e-6)


def test_evaluating_the_losses_changes_no_state_and_draws_no_random_numbers(tiny):
    config = tiny()
    state, batches = start(config)
    batch = next(batches)
    train_step(state, batch)
    modules = [state.student, state.teacher]
    before, random_state = copy.deepcopy([m.state_dict() for m in modules]), torch.get_rng_state()
    found = []
    for _ in range(2):
        views = make_views(batch.images, batch.sizes, config.views, 0, 1)
        targets = state.teacher.targets(views)
        out = state.student(views, state.tokenizer(batch.texts))
        found.append(
            (
                train.contrastive(out, config).item(),
                train.distillation(out, targets.views, config).item(),
            )
        )
    assert found[0] == found[1]
    assert torch.equal(torch.get_rng_state(), random_state)
    for module, old in zip(modules, before, strict=True):
        assert all(torch.equal(value, old[name]) for name, value in module.state_dict().items())
    assert all(p.grad is None for p in state.teacher.parameters())
    batches.close()


def test_the_same_seed_gives_the_same_run_and_another_another(tiny):
    one, rows = steps(tiny(), 2)
    torch.manual_seed(123)  # the global generator has no part in it
    two, again = steps(tiny(), 2)
    other, _ = steps(tiny(seed=1), 2)
    assert differing(one.student, two.student) == set()
    assert rows == again
    assert "vision.patch.weight" in differing(one.student, other.student)


# --- values that are not finite -------------------------------------------------------------------


def moving_parts(state):
    """Bytes of weights, average, centre and moments; and the counters.

    Bytes, so that a planted NaN equals itself.
    """
    parts = state.student.state_dict() | {
        f"teacher.{n}": v for n, v in state.teacher.state_dict().items()
    }
    parts |= {
        f"{i}.{n}": v
        for i, moments in state.optimizer.state_dict()["state"].items()
        for n, v in moments.items()
    }
    return {n: v.numpy().tobytes() for n, v in parts.items()}, (
        state.step,
        state.samples_seen,
        state.position,
    )


@pytest.mark.parametrize(
    ("plant", "name", "cause"),
    [
        (
            lambda s: s.student.text.head.weight.data[0].fill_(math.nan),
            "contrastive",
            "lower optim.lr (now 0.001)",
        ),
        (lambda s: s.student.log_scale.data.fill_(1e4), "contrastive", "the features overflowed"),
        (
            lambda s: s.teacher.center.fill_(math.nan),
            "distillation",
            "a temperature is too small (student 0.1, teacher 0.04)",
        ),
        (
            lambda s: s.student.text.head.weight.register_hook(lambda g: g * math.inf),
            "gradient_norm",
            "a gradient overflowed",
        ),
    ],
)
def test_a_value_that_is_not_finite_stops_before_the_weights_are_touched(tiny, plant, name, cause):
    state, batches = start(tiny(optim={"lr": 1e-3}))
    train_step(state, next(batches))
    plant(state)
    before = moving_parts(state)
    with pytest.raises(RunError) as caught:
        train_step(state, next(batches))
    message = str(caught.value)
    assert message.startswith(f"step 2: {name} is not finite (contrastive ")
    assert cause in message
    assert moving_parts(state) == before
    batches.close()


def test_losses_that_are_finite_but_not_in_sum_are_named(tiny):
    state, batches = start(tiny(distillation={"weight": 3e38}))
    with pytest.raises(
        RunError, match=r"step 1: loss is not finite .*lower distillation.weight \(now 3e\+38\)"
    ):
        train_step(state, next(batches))
    batches.close()


def test_a_rate_that_is_far_too_high_stops_the_run(tiny, tmp_path):
    config = tiny(steps=9, checkpoint_every=1, optim={"lr": 1e30, "warmup_fraction": 0.0})
    with pytest.raises(
        RunError, match=r"step 2: contrastive is not finite .*try a lower optim.lr \(now 1e\+30\)"
    ):
        run(config, tmp_path)
    assert [p.name for p in checkpoint.all_in(tmp_path)] == ["step_00000001.pt"]
    assert checkpoint.load(checkpoint.find(tmp_path))["step"] == 1


def test_a_row_of_a_step_that_overflowed_the_student_is_a_sentence(tiny, tmp_path):
    config = tiny(steps=9, log_every=1, optim={"lr": 1e30, "warmup_fraction": 0.0})
    with pytest.raises(
        RunError,
        match=r"step 1: after its update the features .*lower optim.lr \(now 1e\+30\)",
    ):
        run(config, tmp_path)
    assert checkpoint.all_in(tmp_path) == []


# --- a run and its folder -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "TOKENIZER_CAPTIONS", 50)
        path, printed = run(tiny(steps=5), folder)
    return folder, path, printed


def test_a_run_leaves_checkpoints_and_a_log(tiny, finished):
    folder, path, printed = finished
    assert path == folder / "checkpoints" / "step_00000005.pt"
    assert [p.name for p in checkpoint.all_in(folder)] == ["step_00000003.pt", "step_00000005.pt"]
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 5]
    assert all(math.isfinite(value) for row in rows for value in row.values())
    expected = {
        "loss",
        "contrastive",
        "distillation",
        "gradient_norm",
        "lr",
        "logit_scale",
        "logit_bias",
        "samples_seen",
    }
    assert expected <= set(rows[0])
    assert [row["lr"] for row in rows] == [lr_at(step - 1, 5, tiny().optim) for step in (2, 4, 5)]
    assert [row["samples_seen"] for row in rows] == [16, 32, 40]
    assert "tiny-silc: 5 steps of 8, from shapes" in printed
    assert "step 5/5" in printed


def test_the_final_checkpoint_is_the_state_after_the_last_step(tiny, finished):
    state, _ = steps(tiny(steps=5), 5)
    saved = checkpoint.load(finished[1])
    assert all(
        torch.equal(value, saved["student"][name])
        for name, value in state.student.state_dict().items()
    )
    assert (saved["step"], saved["samples_seen"], saved["position"]) == (5, 40, 40)


def test_a_finished_run_is_recognised(tiny, finished):
    folder, path, _ = finished
    before = path.stat().st_mtime_ns
    again, printed = run(tiny(steps=5), folder, resume=True)
    assert again == path
    assert "already complete" in printed
    assert path.stat().st_mtime_ns == before


def test_a_folder_with_a_run_is_not_overwritten(tiny, finished):
    with pytest.raises(
        UserError, match=r"already holds a run; continue it with --resume, or choose another --out"
    ):
        run(tiny(steps=5), finished[0])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 9}, "samples 40 -> 72"),
        ({"seed": 4}, "seed 0 -> 4"),
        ({"distillation": {"weight": 0.5}}, "distillation.weight 1.0 -> 0.5"),
        ({"objective": "contrastive"}, "objective 'silc' -> 'contrastive'"),
    ],
)
def test_resuming_with_another_configuration_names_the_fields(tiny, finished, changes, words):
    with pytest.raises(UserError) as caught:
        run(tiny(**{"steps": 5} | changes), finished[0], resume=True)
    assert "started with another configuration" in str(caught.value)
    assert words in str(caught.value)


def test_nothing_to_resume(tiny, tmp_path):
    with pytest.raises(
        UserError, match=r"holds no checkpoints/step_\*.pt to continue from; leave --resume out"
    ):
        run(tiny(), tmp_path, resume=True)
    with pytest.raises(UserError, match="to continue from"):
        run(tiny(), tmp_path / "nowhere", resume=True)


def test_a_damaged_checkpoint_is_not_resumed(tiny, finished, tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "step_00000003.pt").write_bytes(finished[1].read_bytes()[:5000])
    with pytest.raises(UserError, match="truncated"):
        run(tiny(steps=5), tmp_path, resume=True)


def test_what_a_shard_lacks_is_reported(tiny, tmp_path, shards):
    """Two epochs of 20 readable pairs and one that is cut in half."""
    _, printed = run(tiny("contrastive", steps=5, data={"source": shards}), tmp_path)
    assert "5 steps of 8, 1.9 epochs, from 21 pairs in 2 shards" in printed
    assert "left out: 1 damaged: 1 corrupt image (first: " in printed


def test_a_mixture_has_no_epochs(tiny, tmp_path, shards):
    """Each source ends at a time of its own."""
    _, printed = run(
        tiny("contrastive", steps=1, data={"source": f"3 * {shards} | 1 * {shards}"}), tmp_path
    )
    assert "1 steps of 8, from 75 % 21 pairs in 2 shards + 25 % 21 pairs in 2 shards" in printed


@pytest.mark.timing
def test_a_full_disk_names_the_last_good_checkpoint(tiny, tmp_path, monkeypatch):
    real, config = torch.save, tiny(steps=5, checkpoint_every=2)

    def fills_up(payload, path):
        if payload["step"] == 4:
            path.write_bytes(b"half a checkpoint")
            raise OSError(28, "No space left on device")
        real(payload, path)

    monkeypatch.setattr(torch, "save", fills_up)
    with pytest.raises(
        RunError,
        match=(
            r"step 4: the checkpoint could not be written .*the last good one is "
            r".*step_00000002.pt"
        ),
    ):
        run(config, tmp_path)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir() if p.suffix != ".json"] == [
        "step_00000002.pt"
    ]
    monkeypatch.undo()
    monkeypatch.setattr(loop, "TOKENIZER_CAPTIONS", 50)
    path, _ = run(config, tmp_path, resume=True)
    assert path.name == "step_00000005.pt"


@pytest.mark.timing
def test_a_write_that_failed_ends_the_run_at_the_next_step(tiny, tmp_path, monkeypatch):
    """And not at the next checkpoint, which may be hours away."""
    calls, write, step = [], checkpoint.Writer.write, loop.train_step

    def failed(run, payload, score):
        raise OSError(28, "No space left on device")

    def written(writer, payload, score):
        write(writer, payload, score)
        assert writer._pending.exception(timeout=60)

    monkeypatch.setattr(checkpoint, "save", failed)
    monkeypatch.setattr(checkpoint.Writer, "write", written)
    monkeypatch.setattr(loop, "train_step", lambda *args: calls.append(1) or step(*args))
    with pytest.raises(RunError, match="step 2: the checkpoint could not be written"):
        run(tiny(steps=9, checkpoint_every=2), tmp_path)
    assert len(calls) == 3


def test_the_objective_is_part_of_the_runs_name(tiny):
    assert apply_objective(replace(tiny(), preset="b16"), "contrastive").name == "b16-contrastive"
