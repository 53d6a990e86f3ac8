"""Is the run learning, or has it collapsed: numbers for a row of the log, and verdicts on them.

Flow: ``before_step`` and ``row`` around a step whose row is written; ``verdicts`` names what the
last rows show together, each with what to change.

After the update, teacher and student encode the first SAMPLE images of the step's batch once more,
in the same views and without gradient. Nothing is drawn at random, no state of the run changes, and
steps without a row cost nothing more.

Shapes: T global views, H images looked at, D embedding, K prototypes.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from silc_bench.errors import RunError
from silc_bench.trainer.config.config import Config
from silc_bench.trainer.data.stream import Batch
from silc_bench.trainer.device import gathered, local_part, norms
from silc_bench.trainer.monitor.bounds import (
    CERTAIN,
    LEAP,
    MAX_CENTER_ERROR,
    ONE_HOT,
    SAME,
    TELLS_NOTHING,
    UNIFORM,
    YOUNG,
)
from silc_bench.trainer.monitor.plan.cost import flops_per_image, matmul_rate
from silc_bench.trainer.silc.masking import draw_masked, take
from silc_bench.trainer.silc.towers import Block, TextTower, VisionTower
from silc_bench.trainer.silc.views import make_views
from silc_bench.trainer.train import TrainState

SAMPLE = 64  # images
# After the warm-up so many rows, one after the other, have to show a thing before it is called a
# collapse: a healthy run may show it for a moment.
PATIENCE = 3

# So many time constants of the centre have to pass first. The centre starts at 0, and until it has
# settled one prototype may win everywhere.
SETTLED = 5.0
RECIPE_TEMP = 0.04

ONE_DIRECTION = "embeddings are one direction"
ONE_PROTOTYPE = "one prototype"
PATCH = "patch_"  # begins the names of numbers of masked patches
WHOSE = {"": "", PATCH: "of patches "}  # how the sentences name a teacher's targets


class Verdict(NamedTuple):
    """What is wrong with a run, and what its user can do."""

    problem: str
    fix: str
    is_collapse: bool = True  # False: it may pass by itself, and stops no run

    def __str__(self) -> str:
        return f"{self.problem}; {self.fix}"


@dataclass
class Health:
    """It is not in the checkpoints: a resumed run begins with a new one."""

    config: Config
    device: torch.device
    num_ranks: int = 1
    _before: list[Tensor] = field(default_factory=list)
    _last: dict[str, Tensor] = field(default_factory=dict)  # what may stand still, at the last row
    _strikes: Counter[str] = field(default_factory=Counter)

    def before_step(self, state: TrainState) -> None:
        self._before = [weight.detach().clone() for weight in _watched(state)]

    @torch.no_grad()
    def row(
        self, state: TrainState, batch: Batch, gradient_norm: float, images_per_second: float
    ) -> dict[str, float]:
        """The numbers of a row, for the step that was just done; ``before_step`` came before it.

        ``batch`` is this rank's part. Where the state is sharded every rank must ask.

        RunError where the step overflowed the student.
        """
        moves = [now - old for now, old in zip(_watched(state), self._before, strict=True)]
        changes = norms(moves) / norms(self._before)
        self._before = []  # its memory is free again until the next row

        # ``state.step`` counts the step that was just done, whose own number is one less.
        is_taught = state.config.is_taught_at(state.step - 1)
        flops = images_per_second * flops_per_image(state.config, is_taught=is_taught)
        peak = self.num_ranks * matmul_rate(self.device, state.config.precision)

        return {
            **self._of_images(state, batch),
            "ema_distance": _distance(state.student.vision, state.teacher.vision),
            "update_ratio": float(changes.max()),
            **_gradient_norms(state, gradient_norm),
            "mfu": flops / peak,
        }

    def _of_images(self, state: TrainState, batch: Batch) -> dict[str, float]:
        """What student and teacher make of the first SAMPLE images of the batch."""
        config = state.config
        student = state.student
        teacher = state.teacher
        step = state.step - 1

        # The views are drawn from (seed, step), so these are the views that the step learned from.
        images = batch.images[:SAMPLE].to(self.device)
        sizes = batch.sizes[:SAMPLE]
        views = make_views(images, sizes, config.views, config.seed, step, needs={"global_crops"})
        assert views.global_crops is not None
        crops = views.global_crops.flatten(0, 1)  # [T * H, 3, S, S]

        with (
            gathered(student, teacher),
            torch.autocast(self.device.type, torch.bfloat16, enabled=config.precision == "bf16"),
        ):
            features = student.vision(crops)
            if not torch.isfinite(features).all():
                raise RunError(
                    "after its update the features of its own images are not finite",
                    about=f"step {state.step}",
                    fix=f"lower optim.lr (now {config.optim.lr:g}) or lengthen"
                    " optim.warmup_fraction; checkpoints that were written are intact",
                )

            # The first features are those of the first view of each image.
            numbers = {"feature_rank": effective_rank(features[: len(images)].float())}
            if not config.is_taught_at(step):
                return numbers

            tokens = teacher.vision.tokens(crops)
            if teacher.head is not None and student.head is not None:
                logits = teacher.head(teacher.vision.pool(tokens))
                numbers |= _compared(logits, student.head(features), teacher.center, config)

            if teacher.patch_head is not None and student.patch_head is not None:
                masked = draw_masked(config, len(images), step).flatten(0, 1).to(self.device)
                first = masked[:, :1]  # one patch of each view is looked at
                guessed = take(student.vision.tokens(crops, masked, student.mask_token), first)
                logits = teacher.patch_head(take(tokens, first)).flatten(0, 1)
                answers = student.patch_head(guessed).flatten(0, 1)
                of_patches = _compared(logits, answers, teacher.patch_center, config)
                numbers |= {f"{PATCH}{name}": value for name, value in of_patches.items()}
        return numbers

    # ---- what the numbers mean ----

    def verdicts(self, state: TrainState, row: dict[str, float]) -> dict[str, Verdict]:
        """Each thing that is wrong, by a short name. Call it once a row."""
        config = state.config
        verdicts = self._at_once(state, row)

        # The rate is still rising, and heads that began late are as young as those of a run that
        # warms up: whatever a row shows then may pass.
        warmup_steps = config.optim.warmup_fraction * config.num_steps
        taught_for = state.step - config.start_step
        # Rounded, because 1 - 0.9 is a little less than 0.1.
        time_constants = round(taught_for * (1 - config.distillation.center_momentum), 6)

        suspected = {}
        for name, verdict in _collapses(config, row).items():
            age = state.step if name == ONE_DIRECTION else taught_for
            # the warm-up of a short run is short, and its first steps are no better for it
            may_be_young = name == ONE_DIRECTION or not verdict.is_collapse
            is_grown = age >= max(warmup_steps, YOUNG if may_be_young else 0)
            is_settled = time_constants >= SETTLED or not name.startswith(ONE_PROTOTYPE)
            if is_grown and is_settled:
                suspected[name] = verdict

        # Only what each of the last PATIENCE rows showed is named.
        self._strikes = Counter({name: self._strikes[name] + 1 for name in suspected})
        for name, verdict in suspected.items():
            if self._strikes[name] >= PATIENCE:
                verdicts[name] = verdict
        return verdicts

    def _at_once(self, state: TrainState, row: dict[str, float]) -> dict[str, Verdict]:
        """What one row shows without patience.

        Weights that stand still while the student's move, that were rounded, or that leap.
        """
        verdicts: dict[str, Verdict] = {}
        config = state.config.distillation
        watched = {
            # of sharded ones only the first rank's part, because only that rank judges
            "student": local_part(_matrix(state.student.vision, -1)),
            "teacher": local_part(_matrix(state.teacher.vision, -1)),
            "": state.teacher.center,
            PATCH: state.teacher.patch_center,
        }

        # Copies, to compare with at the next row: the run changes its weights in place.
        last = self._last
        self._last = {
            name: tensor.detach().clone() for name, tensor in watched.items() if tensor is not None
        }
        still = {name for name in last if torch.equal(self._last[name], last[name])}

        # A tower that is locked, or a rate of 0, stands still by right: nothing follows from it.
        has_learned = bool(last) and "student" not in still
        if has_learned and "teacher" in still:
            verdicts["teacher stands still"] = Verdict(
                "the teacher has not moved since the last row though the student has, so it always"
                " teaches the same",
                f"lower distillation.ema_momentum (now {config.ema_momentum:g}; the recipe's is"
                " 0.966 at batch 16k)",
            )

        for head in (state.student.head, state.student.patch_head):
            precision = None if head is None else _rounded_to(local_part(head.prototypes))
            if precision is not None:
                verdicts["head in half precision"] = Verdict(
                    f"the weights of the head hold no more than {precision}: small updates are lost"
                    " and the teacher's average stops moving",
                    "keep head, centre and average in fp32, and set precision=fp32 or auto",
                )
                break

        for prefix, whose in WHOSE.items():
            is_wrong = row.get(f"{prefix}center_error", 0.0) > MAX_CENTER_ERROR
            is_read = config.centering == "mean"
            if has_learned and prefix in still and is_wrong and is_read:
                verdicts[f"centre {whose}stands still"] = Verdict(
                    "the centre has not moved since the last row though the teacher's outputs have"
                    " another mean: nothing keeps the teacher from giving all images one"
                    " prototype",
                    f"lower distillation.center_momentum (now {config.center_momentum:g}; the"
                    " recipe's is 0.9)",
                )

        if row["update_ratio"] > LEAP:
            lr = state.config.optim.lr
            verdicts["steps too large"] = Verdict(
                f"a single step changed a matrix by {100 * row['update_ratio']:.0f} % of its size:"
                f" optim.lr={lr:g} is far too high",
                "divide it by ten until this stays below 5 %",
            )
        return verdicts


def _collapses(config: Config, row: dict[str, float]) -> dict[str, Verdict]:
    """What a healthy run may show for a moment, but not for long."""
    collapses = {}
    optim = config.optim
    if row["feature_rank"] < SAME:
        collapses[ONE_DIRECTION] = Verdict(
            f"all images have the same embedding (effective rank {row['feature_rank']:.2f})",
            f"lower optim.lr (now {optim.lr:g}) or lengthen optim.warmup_fraction (now"
            f" {optim.warmup_fraction:g})",
        )

    # Sinkhorn balances the prototypes whatever the outputs are, so its entropy says nothing.
    if config.distillation.centering != "sinkhorn":
        for prefix in WHOSE:
            if f"{prefix}teacher_entropy" in row:
                collapses |= _of_targets(config, row, prefix)
    return collapses


def _of_targets(config: Config, row: dict[str, float], prefix: str) -> dict[str, Verdict]:
    """Of the targets for views (prefix "") or for masked patches."""
    collapses = {}
    distil = config.distillation
    whose = WHOSE[prefix]
    entropy = row[f"{prefix}teacher_entropy"]
    shown = f"(entropy {entropy:.4f} of ln K)"
    lower_rate = f"lower optim.lr (now {config.optim.lr:g})"
    temperature = (
        f"distillation.teacher_temp (now {distil.teacher_temp:g}; the recipe's is {RECIPE_TEMP:g})"
    )

    if entropy > UNIFORM:
        # At the recipe's temperature the outputs would differ, or targets are softer than answers.
        at_recipe = row[f"{prefix}teacher_entropy_at_recipe"]
        is_too_warm = at_recipe < UNIFORM or distil.teacher_temp > distil.student_temp
        reason = "" if is_too_warm else ", and its outputs are alike at any temperature"
        collapses[f"teacher {whose}is uniform"] = Verdict(
            f"the teacher's targets are uniform {shown} and teach nothing{reason}",
            f"lower {temperature}" if is_too_warm else lower_rate,
        )

    if row[f"{prefix}prototypes_in_use"] == 1 and entropy < CERTAIN:
        collapses[f"{ONE_PROTOTYPE} {whose}".strip()] = Verdict(
            f"the teacher gives all images one prototype, the other {distil.num_prototypes - 1:,}"
            f" are dead {shown}",
            f"lower distillation.center_momentum (now {distil.center_momentum:g}), or {lower_rate}",
        )
    elif entropy < ONE_HOT:
        collapses[f"teacher {whose}is one-hot"] = Verdict(
            f"the teacher is certain of one prototype a {'patch' if prefix else 'image'} {shown}",
            f"raise {temperature}",
        )

    # Targets that are named above teach nothing either, and they are named once.
    told = row.get(f"{prefix}target_information", 1.0)
    if not collapses and told < TELLS_NOTHING:
        of_what = "patches" if prefix else "images"
        collapses[f"targets {whose}teach next to nothing"] = Verdict(
            f"the teacher's targets tell {100 * told:.1f} % of what tells the {of_what} of a"
            f" batch apart (entropy {entropy:.4f} of ln K)",
            f"lower {temperature}",
            is_collapse=False,
        )
    return collapses


def _compared(logits: Tensor, answers: Tensor, center: Tensor, config: Config) -> dict[str, float]:
    """Teacher's logits and student's answers [H, K] to the same images, or patches of them."""
    distil = config.distillation
    centered = logits - center
    log_teacher = F.log_softmax(centered / distil.teacher_temp, dim=-1)
    log_at_recipe = F.log_softmax(centered / RECIPE_TEMP, dim=-1)
    log_student = F.log_softmax(answers / distil.student_temp, dim=-1)

    divergence = (log_teacher.exp() * (log_teacher - log_student)).sum(-1)  # KL, in nats
    winners = log_teacher.argmax(-1).unique()
    mean = logits.mean(0)
    numbers = {
        "teacher_entropy": _entropy(log_teacher),
        "teacher_entropy_at_recipe": _entropy(log_at_recipe),
        "student_teacher_kl": float(divergence.mean()),
        "prototypes_in_use": float(len(winners)),
        "center_error": float((mean - center).norm() / mean.norm()),
    }

    # a single image is told from no other one
    of_images = log_teacher.exp().unflatten(0, (config.views.num_global, -1)).mean(0)
    if len(of_images) > 1:
        numbers["target_information"] = _information(of_images)
    return numbers


def effective_rank(features: Tensor) -> float:
    """1 to D: how many directions the unit features [H, D] fill (Roy and Vetterli 2007).

    It is exp of the entropy of their singular values, which are scaled to sum to 1.
    """
    values = torch.linalg.svdvals(F.normalize(features.float(), dim=-1).cpu())
    shares = values / values.sum()
    return float(torch.exp(-(shares * shares.clamp_min(1e-12).log()).sum()))


def _entropy(log_probs: Tensor) -> float:
    """Mean over [..., K], as a share of ln K."""
    nats = -(log_probs.exp() * log_probs).sum(-1).mean()
    return float(nats) / math.log(log_probs.shape[-1])


def _information(targets: Tensor) -> float:
    """What targets [H, K] say of their image: 0 is nothing, 1 which of the H images it is.

    An image's target is the mean over its views. The entropy of the mean target less the mean
    entropy of a target is how many nats prototype and image tell of each other (their mutual
    information), here as a share of ln H, the most it can be.
    """
    entropies = torch.special.entr(targets).sum(-1)
    told = torch.special.entr(targets.mean(0)).sum() - entropies.mean()
    return float(told) / math.log(len(targets))


def _distance(student: nn.Module, teacher: nn.Module) -> float:
    """|student - teacher| / |student| over all weights."""
    ours: list[Tensor] = list(student.parameters())
    theirs: list[Tensor] = list(teacher.parameters())
    apart = [our - their for our, their in zip(ours, theirs, strict=True)]
    return float(norms(apart).norm() / norms(ours).norm())


def _gradient_norms(state: TrainState, gradient_norm: float) -> dict[str, float]:
    """By part, as they were before clipping."""
    student = state.student
    squares = {}
    for name in ("vision", "text", "head", "patch_head"):
        module = getattr(student, name)
        if module is None:
            continue
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        if gradients:
            squares[name] = float(norms(gradients).square().sum())

    # Clipping scaled all of them alike, and the optimiser leaves them as they were. So the norm
    # before clipping says what to scale them back by.
    scale = max(1.0, gradient_norm / state.config.optim.clip_norm)
    return {f"gradient_norm_{name}": scale * math.sqrt(square) for name, square in squares.items()}


def _watched(state: TrainState) -> list[Tensor]:
    """A matrix of the first and of the last block of each tower that learns.

    What a step changes there, it changes elsewhere.
    """
    matrices = []
    for tower in (state.student.vision, state.student.text):
        matrices += [_matrix(tower, 0), _matrix(tower, -1)]
    return [matrix for matrix in matrices if matrix.requires_grad]


def _matrix(tower: VisionTower | TextTower, block: int) -> Tensor:
    chosen = tower.blocks[block]
    assert isinstance(chosen, Block)
    return chosen.mlp.fc1.weight


def _rounded_to(weights: Tensor) -> str | None:
    """The half precision that represents all of these weights exactly, if any.

    A few thousand weights of fp32 never are.
    """
    some = weights.detach()[:256].float()
    # bfloat16 first: float16 too holds most of what was rounded to bfloat16, and not the reverse.
    for dtype in (torch.bfloat16, torch.float16):
        if torch.equal(some, some.to(dtype).float()):
            return str(dtype).removeprefix("torch.")
    return None
