"""The training step of SILC (arXiv 2310.13355), and the state that it moves.

Flow: views -> teacher's targets -> student -> losses -> backward -> update -> EMA.
``train_step`` is the algorithm and nothing else: SILC, with masked patches, a late teacher, a
control and an average of the weights, which are off unless asked for. ``silc_bench.trainer.loop``
is what surrounds it; PROVENANCE of ``config.presets`` says how sure each number is.

    state = TrainState.create(config, tokenizer, torch.device("cuda"))
    values = train_step(state, next(batches))

Randomness is a pure function of (seed, step). So (state, step, data position) are enough to
continue a run bit for bit, on the same machine and with the same number of threads. Another number
of threads adds numbers in another order.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from silc_bench.errors import RunError, UserError, first_line
from silc_bench.trainer.checkpoints import file as checkpoint
from silc_bench.trainer.checkpoints.init import Start
from silc_bench.trainer.config.config import LOSSES, Config, from_dict, to_dict
from silc_bench.trainer.data.stream import Batch
from silc_bench.trainer.device import (
    PendingValues,
    first_of,
    is_sharded,
    mean_over_ranks,
    mesh_of,
    resolve,
    send,
    shard,
    state_for_first,
    with_averaged_gradients,
)
from silc_bench.trainer.optim import (
    Average,
    average_at,
    clip_gradients,
    ema_at,
    lr_at,
    make_optimizer,
    set_lr,
)
from silc_bench.trainer.silc import losses
from silc_bench.trainer.silc.distillation import Targets, distillation_loss
from silc_bench.trainer.silc.masking import draw_masked
from silc_bench.trainer.silc.student import MicroBatches, Student, StudentOutput, init_weights
from silc_bench.trainer.silc.teacher import Taught, Teacher
from silc_bench.trainer.silc.tokenizers import AnyTokenizer, fingerprint_of, read_tokenizer
from silc_bench.trainer.silc.towers import blocks_of, compile_blocks
from silc_bench.trainer.silc.views import make_views

COUNTERS = ("step", "samples_seen", "position")  # of a checkpoint


def train_step(state: TrainState, batch: Batch) -> dict[str, Tensor]:
    """One optimiser update on this rank's ``batch``.

    Returns the losses and the gradient norm of the global batch: scalars, on the device.
    """
    config, student, teacher, step = state.config, state.student, state.teacher, state.step
    device = student.log_scale.device
    first = first_of(len(batch.texts))  # place of this rank's first pair in the global batch

    # Schedules are pure functions of the step. A run may let its teacher begin late (SigLIP 2).
    set_lr(state.optimizer, lr_at(step, config.num_steps, config.optim))
    is_taught = config.is_taught_at(step)
    if is_taught and step == config.start_step > 0:
        state.start_teaching()

    # Views: global and local crops of each image. Masked patches are SigLIP 2's; SILC has none.
    images = batch.images.to(device, non_blocking=True)  # the data stream page-locked them
    kinds = config.view_kinds_at(step)
    views = make_views(
        images, batch.sizes, config.views, config.seed, step, first=first, needs=kinds
    )
    masked = None
    if is_taught and config.masked.weight > 0:
        masked = send(draw_masked(config, len(batch.texts), step, first), device)
    tokens = send(state.tokenizer(batch.texts), device)

    # The teacher sees the global crops, without gradient. The student encodes all of its views in
    # one call, because DDP averages the gradients of calls to the DDP module only: state.forward
    # is the student inside micro-batches and DDP.
    targets = Taught(views=None, patches=None)
    with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        if is_taught:
            targets = teacher.targets(views, masked, config.micro_batch)
            # A control of a study (config.CONTROLS): no image gets its own targets.
            if config.distillation.is_shuffled:
                num_views, num_images = config.views.num_global, len(batch.texts)
                targets = targets.shuffled(num_views, num_images, config.seed, step)
        out = state.forward(views, tokens, masked, is_taught)

    # SILC: contrastive + weight * distillation, of the student's local crops (with local+global:
    # of its global crops too) towards the teacher's global ones.
    terms = {"contrastive": contrastive(out, tokens, config)}
    if targets.views is not None:
        terms["distillation"] = distillation(out, targets.views, config)
    if targets.patches is not None:
        terms["masked"] = masked_patches(out, targets.patches, config)
    loss = terms["contrastive"] + config.distillation.weight * terms.get("distillation", 0.0)
    loss = loss + config.masked.weight * terms.get("masked", 0.0)

    state.optimizer.zero_grad()
    loss.backward()
    gradient_norm = clip_gradients(student, config.optim.clip_norm)
    values = global_values({**terms, "loss": loss, "gradient_norm": gradient_norm})
    state.check_finite(values)  # all ranks stop, or none; on a CPU before the weights change
    state.optimizer.step()
    student.limit_scale()

    # The teacher follows the new weights, the centre follows the logits of this step's targets.
    teacher.update(student, ema_at(step, config.num_steps, config.distillation, config.batch_size))
    teacher.update_center(targets)
    if state.average is not None:
        state.average.update(student, average_at(step, config.average_momentum))

    state.advance(batch)
    return values


def contrastive(out: StudentOutput, tokens: Tensor, config: Config) -> Tensor:
    """The image-text loss: each view that meets the text meets the texts of the global batch.

    The loss is averaged over these views: in SILC every global view, with either loss. ``tokens``
    [b, L]: where equal texts count as right ones, these say which are equal.
    """
    loss = getattr(losses, LOSSES[config.contrastive.loss].function)
    features = (out.image_features, out.text_features, out.scale, out.bias)
    if config.contrastive.equal_texts == "positive":
        return loss(*features, is_right=losses.equal_texts(tokens))
    return loss(*features)


def distillation(out: StudentOutput, targets: Targets, config: Config) -> Tensor:
    """Cross-entropy of the student's views with the teacher's; no view meets itself."""
    assert out.projections is not None
    assert out.prototypes is not None
    # The student's global views come first, in the teacher's order; local views equal none of its.
    num_skipped = config.views.num_global if config.distillation.pairs == "local+global" else 0

    return distillation_loss(
        out.projections, out.prototypes, targets, config.distillation.student_temp, num_skipped
    )


def masked_patches(out: StudentOutput, targets: Targets, config: Config) -> Tensor:
    """Cross-entropy with the teacher's patches, averaged over the masked places alone (iBOT)."""
    assert out.patch_projections is not None
    assert out.patch_prototypes is not None
    # [T, B, n, d] -> [1, T * B * n, d]: each place is compared with the same place, no other.
    patches = out.patch_projections.flatten(0, 2).unsqueeze(0)

    return distillation_loss(
        patches, out.patch_prototypes, targets, config.distillation.student_temp
    )


def global_values(shares: dict[str, Tensor]) -> dict[str, Tensor]:
    """Means over the ranks of this rank's scalars.

    A value that is not finite on one rank makes the mean not finite. So all ranks stop at the same
    step, and none waits for another.
    """
    scalars = torch.stack([share.detach().float() for share in shares.values()])
    return dict(zip(shares, mean_over_ranks(scalars), strict=True))


def stop_if_not_finite(answer: PendingValues, config: Config) -> None:
    """Raise RunError that names the first value that is not finite and the likely cause."""
    numbers = answer.wait()
    name = next((name for name, number in numbers.items() if not math.isfinite(number)), None)
    if name is None:
        return

    distil = config.distillation
    lower_lr = f"lower optim.lr (now {config.optim.lr:g})"
    lower_weight = f"lower masked.weight (now {config.masked.weight:g})"
    raise_temps = (
        f"raise distillation.student_temp (now {distil.student_temp:g})"
        f" or distillation.teacher_temp (now {distil.teacher_temp:g}), or {lower_lr}"
    )
    cause, fix = {
        "contrastive": ("the features overflowed", lower_lr),
        "distillation": ("a temperature is too small, or the rate too high", raise_temps),
        "masked": ("as for distillation", f"{raise_temps}, or {lower_weight}"),
        "gradient_norm": (
            "the losses are finite, and a gradient overflowed",
            f"{lower_lr}, raise optim.warmup_fraction, or set precision=fp32",
        ),
        "loss": (
            "the weighted losses add up to more than a number holds",
            f"lower distillation.weight (now {distil.weight:g}), or {lower_weight}",
        ),
    }[name]
    parts = ", ".join(f"{key} {number:g}" for key, number in numbers.items() if key != "loss")
    raise RunError(
        f"{name} is not finite ({parts}); likely cause: {cause}; saved checkpoints are intact",
        about=f"step {answer.step + 1}",
        fix=fix,
    )


@dataclass
class TrainState:
    """Everything that a checkpoint holds, and what is made from it again (``forward``)."""

    config: Config
    student: Student
    teacher: Teacher
    optimizer: torch.optim.Optimizer
    tokenizer: AnyTokenizer

    # What a step calls: the student, inside micro-batches and DDP where there are any.
    forward: nn.Module

    step: int = 0  # optimiser updates done
    samples_seen: int = 0  # images, over all ranks
    position: int = 0  # where the data continues

    # Of a run that started from other weights: what is known of them.
    start: dict[str, Any] | None = None

    # What --init or --tokenizer brought, by the option, for ``identity.by_content``.
    brought: dict[str, str] = field(default_factory=dict)

    # What identifies the data (``Source.identity``), and under "nodes" how many entries each of
    # several nodes has gone.
    data: dict[str, Any] | None = None

    # A moving average of the student's weights, for evaluation alone.
    average: Average | None = None

    # Values of the last step, still on their way from a GPU.
    unchecked: PendingValues | None = None

    @classmethod
    def create(
        cls,
        config: Config,
        tokenizer: AnyTokenizer,
        device: torch.device,
        start: Start | None = None,
    ) -> TrainState:
        """The state before the first step: weights drawn from the seed, or those of ``start``."""
        config = resolve(config, device)
        student = Student(config)
        init_weights(student, config.seed)
        if start is not None:
            start.fill(student)

        # Where ranks share the weights, ``shard`` brings each share to its device.
        mesh = mesh_of(config, device)
        if mesh is None:
            student.to(device)

        # The teacher begins as a copy of the student, so the student's weights must stand first.
        teacher = Teacher(student, config.distillation)
        if mesh is None:
            teacher.to(device)
        if start is not None and start.center is not None:
            teacher.center.copy_(start.center)
        if config.compile == "true":
            compile_blocks(device, student, teacher)
        if mesh is not None:
            # A locked tower is encoded outside of the student's own call, too.
            shard(student, blocks_of(student), mesh, methods=["of_locked"])
            shard(teacher, blocks_of(teacher), mesh, methods=["targets"])

        optimizer = make_optimizer(student, config.optim)
        state = cls(config, student, teacher, optimizer, tokenizer, forward=student)
        if start is not None:
            state.start = {"name": start.name}
            state.brought = {"init": start.content}
        elif config.tokenizer:
            state.brought = {"tokenizer": fingerprint_of(tokenizer)}
        if config.average_momentum:
            state.average = Average(student)
        state.connect()
        return state

    def connect(self) -> None:
        """Make ``forward`` for the steps from here on.

        Before the teacher teaches, heads and mask token ask for no gradient: the optimiser leaves
        them as they started, and DDP does not wait for them.
        """
        for parameter in self.student.taught_parameters():
            parameter.requires_grad_(self.config.is_taught_at(self.step))

        # DDP notes at its start which parameters ask for a gradient, so it comes after that.
        forward: nn.Module = self.student
        if self.config.micro_batch:
            forward = MicroBatches(self.student, self.config.micro_batch)
        self.forward = with_averaged_gradients(forward, self.config.exchange)

    def start_teaching(self) -> None:
        """Make the teacher a copy of the student; heads and centres are still as they started.

        SigLIP 2 (2502.14786) adds its self-distillation so, late in a run.
        """
        self.teacher.update(self.student, 0.0)
        self.connect()

    def advance(self, batch: Batch) -> None:
        """Count the step that was done, and keep where the data goes on after ``batch``."""
        self.step += 1
        self.samples_seen += self.config.batch_size
        self.position = batch.position
        if batch.nodes and self.data is not None:
            self.data["nodes"] = list(batch.nodes)

    def check_finite(self, values: dict[str, Tensor]) -> None:
        """Raise RunError where ``values`` of this step are not finite, on a GPU a step later.

        On a CPU this happens before the weights are touched. On a GPU the host reads the values of
        the step before while the GPU works on this one, so that the GPU never runs out of work.
        """
        self.confirm()
        self.unchecked = PendingValues(self.step, values)
        if self.unchecked.is_here:
            self.confirm()

    def confirm(self) -> None:
        """Raise RunError where the last step's values are not finite; the host waits for a GPU."""
        answer = self.unchecked
        self.unchecked = None
        if answer is not None:
            stop_if_not_finite(answer, self.config)

    def payload(self) -> dict[str, Any]:
        """What a checkpoint holds; weights of a diverged student never reach one (RunError)."""
        self.confirm()
        payload: dict[str, Any] = {
            "config": json.dumps(to_dict(self.config)),
            "tokenizer": self.tokenizer.to_json(),
            **self.held(),
            "optimizer": self.optimizer.state_dict(),
            **{name: getattr(self, name) for name in COUNTERS},
        }
        if self.start is not None:
            payload["start"] = json.dumps(self.start)
        if self.brought:
            payload["brought"] = json.dumps(self.brought)
        if self.data is not None:
            payload["data"] = json.dumps(self.data)
        return payload

    def held(self) -> dict[str, dict[str, Tensor]]:
        """Weights, centre and average, by their names in a checkpoint; what this rank holds."""
        held = {"student": self.student.state_dict(), "teacher": self.teacher.state_dict()}
        if self.average is not None:
            held["average"] = self.average.weights
        return held

    def parameters(self) -> list[Tensor]:
        """What the optimiser moves, in the order by which its state is numbered."""
        return [weight for group in self.optimizer.param_groups for weight in group["params"]]

    def to_evaluate(self) -> TrainState:
        """This state, with models that the first rank can call without the others.

        Where nothing is sharded it is this state itself. Otherwise every rank must ask, and the
        first rank gets the whole student on its device, and the teacher if the probe measures it.
        """
        if not is_sharded(self.student.log_scale):
            return self

        with torch.device("meta"):
            student = Student(self.config)
            teacher = Teacher(student, self.config.distillation)
        for empty, model in ((student, self.student), (teacher, self.teacher)):
            if empty is student or self.config.probe.teacher:
                weights = state_for_first(model)
                if weights is not None:
                    empty.load_state_dict(weights, assign=True)
        return replace(self, student=student, teacher=teacher)

    @classmethod
    def restore(cls, payload: dict[str, Any], device: torch.device) -> TrainState:
        """The state from the answer of ``checkpoint.load`` or ``load_newest``.

        Raises:
            UserError: its parts do not fit.
        """
        with _fitting():
            config = from_dict(json.loads(payload["config"]))
            tokenizer = read_tokenizer(payload["tokenizer"])

        # Outside: what fails here (memory, another rank) is no matter of the checkpoint.
        state = cls.create(config, tokenizer, device)
        with _fitting():
            payload = checkpoint.fitted(payload, state.held(), state.parameters())
            state.student.load_state_dict(payload["student"])
            state.teacher.load_state_dict(payload["teacher"])
            state.optimizer.load_state_dict(payload["optimizer"])

            for name in COUNTERS:
                setattr(state, name, int(payload[name]))
            state.start = json.loads(payload["start"]) if "start" in payload else None
            # Not ``create``'s: a run of an earlier version stays the method that its records say.
            state.brought = json.loads(payload.get("brought", "{}"))
            state.data = json.loads(payload["data"]) if "data" in payload else None
            if state.average is not None:
                state.average.load(payload["average"])

        # ``create`` connected it for step 0, when a late teacher does not teach yet.
        if state.step >= config.start_step > 0:
            state.connect()
        return state


@contextmanager
def _fitting() -> Iterator[None]:
    """UserError where the parts of a checkpoint do not fit what is filled from them."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise UserError(
            f"the checkpoint's parts do not fit together ({first_line(error)})",
            about="--resume",
            fix="resume with the version that wrote it, or start anew with another --out",
        ) from None
