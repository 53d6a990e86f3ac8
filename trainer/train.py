"""The training step: views -> student and teacher -> losses -> update -> EMA, and the state that it
moves.

``train_step`` is the algorithm and nothing else; ``silc_bench.trainer.loop`` is what surrounds it.
Randomness is a pure function of (seed, step), so (state, step, data position) continue a run bit
for bit, on the same machine and with as many threads as before: another number of threads adds in
another order.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from silc_bench.errors import RunError, UserError
from silc_bench.trainer.checkpoints.init import Start
from silc_bench.trainer.config.config import Config, from_dict, to_dict
from silc_bench.trainer.data.stream import Batch
from silc_bench.trainer.device import Answer, first_of, mean_over_ranks, parallel, resolve, send
from silc_bench.trainer.optim import (
    Average,
    average_at,
    clip_gradients,
    ema_at,
    lr_at,
    make_optimizer,
    set_lr,
)
from silc_bench.trainer.silc.distillation import Targets, distillation_loss
from silc_bench.trainer.silc.losses import sigmoid_loss, softmax_loss
from silc_bench.trainer.silc.masking import draw_masked
from silc_bench.trainer.silc.student import MicroBatches, Student, StudentOutput, init_weights
from silc_bench.trainer.silc.teacher import Taught, Teacher
from silc_bench.trainer.silc.tokenizers import AnyTokenizer, read_tokenizer
from silc_bench.trainer.silc.towers import compile_blocks
from silc_bench.trainer.silc.views import make_views


@dataclass
class TrainState:
    """Everything that a checkpoint holds."""

    config: Config
    student: Student
    teacher: Teacher
    optimizer: torch.optim.Optimizer
    tokenizer: AnyTokenizer
    forward: nn.Module  # the student, or what stands before it: micro-batches, several processes
    step: int = 0  # optimiser updates done
    samples_seen: int = 0
    position: int = 0  # where the data continues
    start: dict[str, Any] | None = (
        None  # of a run that started from other weights: what is known of them
    )
    average: Average | None = None  # of the student's weights, for evaluation alone
    unchecked: Answer | None = None  # values of the last step, still on their way from a GPU

    @classmethod
    def create(
        cls,
        config: Config,
        tokenizer: AnyTokenizer,
        device: torch.device,
        start: Start | None = None,
    ) -> TrainState:
        """A run's state before its first step, its weights drawn from the seed, or those of
        ``start``.
        """
        config = resolve(config, device)
        student = Student(config)
        init_weights(student, config.seed)
        if start is not None:
            start.fill(student)
        student.to(device)
        teacher = Teacher(student, config.distillation).to(device)
        if start is not None and start.center is not None:
            teacher.center.copy_(start.center)
        if config.compile:
            compile_blocks(student, teacher)
        known = None if start is None else {"name": start.name}
        state = cls(
            config,
            student,
            teacher,
            make_optimizer(student, config.optim),
            tokenizer,
            student,
            start=known,
        )
        state.average = Average(student) if config.average_momentum else None
        state.connect()
        return state

    def connect(self) -> None:
        """Make ``forward`` for the steps from here on.

        Before the teacher teaches, heads and mask token ask for no gradient: the optimiser leaves
        them as they started, and DDP does not wait for them.
        """
        for parameter in self.student.taught_parameters():
            parameter.requires_grad_(self.config.is_taught_at(self.step))
        micro_batch = self.config.micro_batch
        self.forward = parallel(
            MicroBatches(self.student, micro_batch) if micro_batch else self.student
        )

    def start_teaching(self) -> None:
        """The teacher becomes a copy of the student, heads and centres are as they started (SigLIP
        2, 2502.14786).
        """
        self.teacher.update(self.student, 0.0)
        self.connect()

    @classmethod
    def restore(cls, payload: dict[str, Any], device: torch.device) -> TrainState:
        """From ``checkpoint.load``'s answer. UserError when the file's parts do not fit
        together.
        """
        try:
            config = from_dict(json.loads(payload["config"]))
            state = cls.create(config, read_tokenizer(payload["tokenizer"]), device)
            state.student.load_state_dict(payload["student"])
            state.teacher.load_state_dict(payload["teacher"])
            state.optimizer.load_state_dict(payload["optimizer"])
            state.step, state.samples_seen, state.position = (
                int(payload[k]) for k in ("step", "samples_seen", "position")
            )
            state.start = json.loads(payload["start"]) if "start" in payload else None
            if state.average is not None:
                state.average.load(payload["average"])
            if state.step >= config.start_step > 0:
                state.connect()
        except (ValueError, TypeError, KeyError, RuntimeError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(
                f"--resume: the checkpoint's parts do not fit together ({reason})"
            ) from None
        return state

    def confirm(self) -> None:
        """Raises RunError where the last step's values are not finite. On a GPU the host waits for
        them.
        """
        answer, self.unchecked = self.unchecked, None
        if answer is not None:
            stop_if_not_finite(answer, self.config)

    def payload(self) -> dict[str, Any]:
        self.confirm()
        return {
            "config": json.dumps(to_dict(self.config)),
            "tokenizer": self.tokenizer.to_json(),
            "student": self.student.state_dict(),
            "teacher": self.teacher.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "samples_seen": self.samples_seen,
            "position": self.position,
            **({} if self.start is None else {"start": json.dumps(self.start)}),
            **({} if self.average is None else {"average": self.average.weights}),
        }


def train_step(state: TrainState, batch: Batch) -> dict[str, Tensor]:
    """One optimiser update on this rank's ``batch``. Returns losses and gradient norm of the global
    one, on the device.
    """
    config, student, teacher = state.config, state.student, state.teacher
    device, first = student.log_scale.device, first_of(len(batch.texts))
    set_lr(state.optimizer, lr_at(state.step, config.num_steps, config.optim))
    is_taught, needs = config.is_taught_at(state.step), config.view_kinds_at(state.step)
    if is_taught and state.step == config.start_step > 0:
        state.start_teaching()
    images = batch.images.to(
        device, non_blocking=True
    )  # page-locked by silc_bench.trainer.data.stream
    views = make_views(
        images, batch.sizes, config.views, config.seed, state.step, first=first, needs=needs
    )
    is_masked = is_taught and config.masked.weight > 0
    masked = (
        send(draw_masked(config, len(batch.texts), state.step, first), device)
        if is_masked
        else None
    )
    tokens = send(state.tokenizer(batch.texts), device)
    with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        taught = (
            teacher.targets(views, masked, config.micro_batch) if is_taught else Taught(None, None)
        )
        out = state.forward(views, tokens, masked, is_taught)  # of the student, all at once
    losses = {"contrastive": contrastive(out, config)}
    if taught.views is not None:
        losses["distillation"] = distillation(out, taught.views, config)
    if taught.patches is not None:
        losses["masked"] = masked_patches(out, taught.patches, config)
    loss = losses["contrastive"] + config.distillation.weight * losses.get("distillation", 0.0)
    loss = loss + config.masked.weight * losses.get("masked", 0.0)
    state.optimizer.zero_grad()
    loss.backward()
    gradient_norm = clip_gradients(student, config.optim.clip_norm)
    values = global_values({**losses, "loss": loss, "gradient_norm": gradient_norm})
    state.confirm()  # the step before, while a GPU is busy with this one
    state.unchecked = Answer(state.step, values)
    if state.unchecked.is_here:
        state.confirm()  # before the weights are touched
    state.optimizer.step()
    teacher.update(
        student, ema_at(state.step, config.num_steps, config.distillation, config.batch_size)
    )
    teacher.update_center(taught)
    if state.average is not None:
        state.average.update(student, average_at(state.step, config.average_momentum))
    state.step, state.samples_seen, state.position = (
        state.step + 1,
        state.samples_seen + config.batch_size,
        batch.position,
    )
    return values


def contrastive(out: StudentOutput, config: Config) -> Tensor:
    """The image-text loss, averaged over the views that meet the text; each view meets the texts of
    the global batch.
    """
    if config.contrastive.loss == "sigmoid":
        return sigmoid_loss(out.image_features, out.text_features, out.scale, out.bias)
    return softmax_loss(out.image_features, out.text_features, out.scale)


def distillation(out: StudentOutput, targets: Targets, config: Config) -> Tensor:
    """Cross-entropy of the student's views with the teacher's, but for a view with itself."""
    assert out.projections is not None
    assert out.prototypes is not None
    num_skipped = config.views.num_global if config.distillation.pairs == "local+global" else 0
    return distillation_loss(
        out.projections, out.prototypes, targets, config.distillation.student_temp, num_skipped
    )


def masked_patches(out: StudentOutput, targets: Targets, config: Config) -> Tensor:
    """Cross-entropy with the teacher's at the masked places alone, averaged over them (iBOT,
    2111.07832).
    """
    assert out.patch_projections is not None
    assert out.patch_prototypes is not None
    patches = out.patch_projections.flatten(0, 2).unsqueeze(0)
    return distillation_loss(
        patches, out.patch_prototypes, targets, config.distillation.student_temp
    )


def global_values(shares: dict[str, Tensor]) -> dict[str, Tensor]:
    """Means over the ranks: what is not finite on one of them is so on all, and every rank stops at
    the same step.
    """
    return dict(
        zip(
            shares,
            mean_over_ranks(torch.stack([v.detach().float() for v in shares.values()])),
            strict=True,
        )
    )


def stop_if_not_finite(answer: Answer, config: Config) -> None:
    """Raise RunError that names the first value that is not finite and the likely cause."""
    numbers = answer.wait()
    name = next((name for name, number in numbers.items() if not math.isfinite(number)), None)
    if name is None:
        return
    causes = {
        "contrastive": f"the features overflowed or a picture was not a number; try a lower optim.lr (now {config.optim.lr:g})",
        "distillation": f"a temperature is too small (student {config.distillation.student_temp:g}, "
        f"teacher {config.distillation.teacher_temp:g}) or optim.lr too high (now {config.optim.lr:g})",
        "masked": f"a temperature is too small (student {config.distillation.student_temp:g}, "
        f"teacher {config.distillation.teacher_temp:g}) or masked.weight (now {config.masked.weight:g}) or optim.lr too high "
        f"(now {config.optim.lr:g})",
        "gradient_norm": f"the losses are finite but a gradient overflowed; try a lower optim.lr (now {config.optim.lr:g}), "
        "a longer optim.warmup_fraction, or precision=fp32",
        "loss": f"the weighted losses add up to more than a number holds; lower distillation.weight (now "
        f"{config.distillation.weight:g}) or masked.weight (now {config.masked.weight:g})",
    }
    found = ", ".join(f"{k} {number:g}" for k, number in numbers.items() if k != "loss")
    raise RunError(
        f"step {answer.step + 1}: {name} is not finite ({found}). Likely cause: {causes[name]}."
        " Checkpoints that were written are intact."
    )
