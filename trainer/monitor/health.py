"""Is the run learning, or has it collapsed: numbers for each row of the log, and a sentence for
what is wrong with them.

Flow: ``before_step`` and ``row`` around a step whose row is written; ``verdicts`` names what the
last rows show together.

Teacher and student are asked about the first SAMPLE pictures of the batch that was just learned
from, in the same views, without gradient and after the update: nothing is drawn, no state of the
run is touched, and the other steps pay nothing.

Shapes: T global views, H pictures looked at, D embedding, K prototypes.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from silc_bench.errors import RunError
from silc_bench.trainer.config.config import Config
from silc_bench.trainer.data.stream import Batch
from silc_bench.trainer.monitor.cost import flops_per_image, matmul_rate
from silc_bench.trainer.silc.masking import draw_masked, take
from silc_bench.trainer.silc.towers import Block, TextTower, VisionTower
from silc_bench.trainer.silc.views import make_views
from silc_bench.trainer.train import TrainState

SAMPLE = 64  # pictures
# rows in a row after the warm-up, before what a healthy run may pass through is called a collapse
PATIENCE = 3
UNIFORM, CERTAIN, ONE_HOT = 0.99, 0.05, 0.002  # teacher entropy / ln K
SAME = 1.5  # effective rank below which all embeddings are one direction
LEAP = 0.15  # of a matrix's own size in one step
# time constants of the centre, before which one prototype may win everywhere because it starts at 0
SETTLED = 5.0
RECIPE_TEMP = 0.04
ONE_DIRECTION = "embeddings are one direction"
PATCH = "patch_"  # begins the names of numbers of masked patches
WHOSE = {"": "", PATCH: "of patches "}  # how the sentences name a teacher's targets


@dataclass
class Health:
    """Kept beside a run, not in its checkpoints: it forgets at each start."""

    config: Config
    device: torch.device
    num_ranks: int = 1
    _before: list[Tensor] = field(default_factory=list)
    _teacher: Tensor | None = None  # a part of it at the last row
    _center: Tensor | None = None
    _student: Tensor | None = None
    _strikes: Counter[str] = field(default_factory=Counter)
    _patch_center: Tensor | None = None
    _flops: dict[bool, int] = field(default_factory=dict)  # by whether the teacher teaches

    def before_step(self, state: TrainState) -> None:
        self._before = [weight.detach().clone() for weight in _watched(state)]

    @torch.no_grad()
    def row(
        self, state: TrainState, batch: Batch, gradient_norm: float, images_per_second: float
    ) -> dict[str, float]:
        """The row's numbers of a step that ``before_step`` came before. RunError where the step
        overflowed the student.
        """
        changes = [
            (now - old).norm() / old.norm()
            for now, old in zip(_watched(state), self._before, strict=True)
        ]
        self._before = []
        is_taught = state.config.is_taught_at(state.step - 1)
        if is_taught not in self._flops:
            self._flops[is_taught] = flops_per_image(state.config, is_taught=is_taught)
        peak = self.num_ranks * matmul_rate(self.device, state.config.precision)
        return {
            **self._of_pictures(state, batch),
            "ema_distance": _distance(state.student.vision, state.teacher.vision),
            "update_ratio": float(torch.stack(changes).max()),
            **_gradient_norms(state, gradient_norm),
            "mfu": images_per_second * self._flops[is_taught] / peak,
        }

    def _of_pictures(self, state: TrainState, batch: Batch) -> dict[str, float]:
        config, student, teacher = state.config, state.student, state.teacher
        images, sizes = batch.images[:SAMPLE].to(self.device), batch.sizes[:SAMPLE]
        views = make_views(
            images, sizes, config.views, config.seed, state.step - 1, needs={"global_crops"}
        )
        assert views.global_crops is not None
        crops = views.global_crops.flatten(0, 1)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            features = student.vision(crops)
            if not torch.isfinite(features).all():
                raise RunError(
                    f"step {state.step}: after its update the features of its own pictures are not finite; try a lower optim.lr"
                    f" (now {config.optim.lr:g}) or a longer optim.warmup_fraction. Checkpoints that were written are intact."
                )
            found = {"feature_rank": effective_rank(features[: len(images)].float())}
            if not config.is_taught_at(state.step - 1):
                return found
            tokens = teacher.vision.tokens(crops)
            if teacher.head is not None and student.head is not None:
                logits = teacher.head(teacher.vision.pool(tokens))
                found |= _compared(logits, student.head(features), teacher.center, config)
            if teacher.patch_head is not None and student.patch_head is not None:
                places = (
                    draw_masked(config, len(images), state.step - 1).flatten(0, 1).to(self.device)
                )
                one = places[:, :1]  # of each view a patch is looked at
                guessed = take(student.vision.tokens(crops, places, student.mask_token), one)
                logits, answers = teacher.patch_head(take(tokens, one)), student.patch_head(guessed)
                of_patches = _compared(
                    logits.flatten(0, 1), answers.flatten(0, 1), teacher.patch_center, config
                )
                found |= {f"{PATCH}{name}": value for name, value in of_patches.items()}
        return found

    # ---- what the numbers mean ----

    def verdicts(self, state: TrainState, row: dict[str, float]) -> dict[str, str]:
        """A sentence for each thing that is wrong, by a short name. Call it once a row."""
        found = self._at_once(state, row)
        config, is_warm = (
            state.config,
            state.step >= state.config.optim.warmup_fraction * state.config.num_steps,
        )
        suspected = _collapses(config, row) if is_warm else {}
        taught_for = state.step - config.start_step
        if (
            taught_for < config.optim.warmup_fraction * config.num_steps
        ):  # the heads began late, and are as young
            suspected = {name: words for name, words in suspected.items() if name == ONE_DIRECTION}
        if round(taught_for * (1 - config.distillation.center_momentum), 6) < SETTLED:
            suspected = {
                name: words
                for name, words in suspected.items()
                if not name.startswith("one prototype")
            }
        for name in list(self._strikes):
            if name not in suspected:
                del self._strikes[name]
        for name, sentence in suspected.items():
            self._strikes[name] += 1
            if self._strikes[name] >= PATIENCE:
                found[name] = sentence
        return found

    def _at_once(self, state: TrainState, row: dict[str, float]) -> dict[str, str]:
        """What one row shows: weights that stand still while the student's move, that were rounded,
        or that leap.
        """
        found: dict[str, str] = {}
        config = state.config.distillation
        teacher, student = (
            _matrix(tower, -1).detach() for tower in (state.teacher.vision, state.student.vision)
        )
        has_learned = self._student is not None and not torch.equal(student, self._student)
        if has_learned and self._teacher is not None and torch.equal(teacher, self._teacher):
            found["teacher stands still"] = (
                "the teacher has not moved since the last row though the student has, so its targets stay what they were;"
                f" lower distillation.ema_momentum (now {config.ema_momentum:g}; the recipe's is 0.966 at batch 16k)"
            )
        heads = [
            head for head in (state.student.head, state.student.patch_head) if head is not None
        ]
        if kind := next(
            (kind for head in heads if (kind := _rounded_to(head.prototypes)) is not None), None
        ):
            found["head in half precision"] = (
                f"the weights of the head hold no more than {kind}: small updates are lost and the teacher's average stops"
                " moving; keep head, centre and average in fp32, and set precision=fp32 or auto"
            )
        centers = {
            "": (state.teacher.center, self._center),
            PATCH: (state.teacher.patch_center, self._patch_center),
        }
        for prefix, (center, before) in centers.items():
            is_still = has_learned and before is not None and torch.equal(center, before)
            if (
                is_still
                and config.centering == "mean"
                and row.get(f"{prefix}center_error", 0.0) > 0.1
            ):
                found[f"centre {WHOSE[prefix]}stands still"] = (
                    "the centre has not moved since the last row though the teacher's outputs have another mean: nothing keeps"
                    " the teacher from giving all pictures one prototype; lower distillation.center_momentum"
                    f" (now {config.center_momentum:g}; the recipe's is 0.9)"
                )
        self._center, self._patch_center = (
            None if c is None else c.clone() for c, _ in centers.values()
        )
        if row["update_ratio"] > LEAP:
            lr = state.config.optim.lr
            found["steps too large"] = (
                f"a single step changed a matrix by {100 * row['update_ratio']:.0f} % of its size: optim.lr={lr:g} is far too"
                " high; divide it by ten until this stays below 5 %"
            )
        self._teacher, self._student = teacher.clone(), student.clone()
        return found


def _collapses(config: Config, row: dict[str, float]) -> dict[str, str]:
    """What a healthy run may show for a moment, but not for long."""
    found, lr = {}, config.optim.lr
    if row["feature_rank"] < SAME:
        found[ONE_DIRECTION] = (
            f"all pictures have the same embedding (effective rank {row['feature_rank']:.2f}): lower optim.lr (now {lr:g}) or"
            f" lengthen optim.warmup_fraction (now {config.optim.warmup_fraction:g})"
        )
    if (
        config.distillation.centering != "sinkhorn"
    ):  # which balances the prototypes whatever the outputs are
        for prefix in WHOSE:
            if f"{prefix}teacher_entropy" in row:
                found |= _of_targets(config, row, prefix)
    return found


def _of_targets(config: Config, row: dict[str, float], prefix: str) -> dict[str, str]:
    """Of the targets for views (prefix "") or for masked patches."""
    found, distil, lr, whose = {}, config.distillation, config.optim.lr, WHOSE[prefix]
    entropy = f"entropy {row[f'{prefix}teacher_entropy']:.4f} of ln K"
    if row[f"{prefix}teacher_entropy"] > UNIFORM:
        is_temp = (
            row[f"{prefix}teacher_entropy_at_recipe"] < UNIFORM
            or distil.teacher_temp > distil.student_temp
        )
        setting = (
            f"lower distillation.teacher_temp (now {distil.teacher_temp:g}; the recipe's is {RECIPE_TEMP:g})"
            if is_temp
            else f"its outputs are alike at any temperature; lower optim.lr (now {lr:g})"
        )
        found[f"teacher {whose}is uniform"] = (
            f"the teacher's targets are uniform ({entropy}) and teach nothing: {setting}"
        )
    if row[f"{prefix}prototypes_in_use"] == 1 and row[f"{prefix}teacher_entropy"] < CERTAIN:
        found[f"one prototype {whose}".strip()] = (
            f"the teacher gives all pictures one prototype, the other {distil.num_prototypes - 1:,} are dead ({entropy}): lower"
            f" distillation.center_momentum (now {distil.center_momentum:g}), or optim.lr (now {lr:g})"
        )
    elif row[f"{prefix}teacher_entropy"] < ONE_HOT:
        found[f"teacher {whose}is one-hot"] = (
            f"the teacher is certain of one prototype a {'patch' if prefix else 'picture'} ({entropy}): raise"
            f" distillation.teacher_temp (now {distil.teacher_temp:g}; the recipe's is {RECIPE_TEMP:g})"
        )
    return found


def _compared(logits: Tensor, answers: Tensor, center: Tensor, config: Config) -> dict[str, float]:
    """Teacher's logits and student's answers [H, K] to the same pictures, or patches of them."""
    centered = logits - center
    log_teacher = F.log_softmax(centered / config.distillation.teacher_temp, dim=-1)
    log_student = F.log_softmax(answers / config.distillation.student_temp, dim=-1)
    return {
        "teacher_entropy": _entropy(log_teacher),
        "teacher_entropy_at_recipe": _entropy(F.log_softmax(centered / RECIPE_TEMP, dim=-1)),
        "student_teacher_kl": float(
            (log_teacher.exp() * (log_teacher - log_student)).sum(-1).mean()
        ),
        "prototypes_in_use": float(len(log_teacher.argmax(-1).unique())),
        "center_error": float((logits.mean(0) - center).norm() / logits.mean(0).norm()),
    }


def effective_rank(features: Tensor) -> float:
    """exp of the entropy of the singular values of unit features [H, D], summing to 1 (Roy and
    Vetterli 2007): 1 to D.
    """
    values = torch.linalg.svdvals(F.normalize(features.float(), dim=-1).cpu())
    shares = values / values.sum()
    return float(torch.exp(-(shares * shares.clamp_min(1e-12).log()).sum()))


def _entropy(log_probs: Tensor) -> float:
    """Mean over [..., K], as a share of ln K."""
    return float(-(log_probs.exp() * log_probs).sum(-1).mean()) / math.log(log_probs.shape[-1])


def _distance(student: nn.Module, teacher: nn.Module) -> float:
    """|student - teacher| / |student| over all weights."""
    ours: list[Tensor] = list(student.parameters())
    theirs: list[Tensor] = list(teacher.parameters())
    apart = torch.stack(
        [(one - other).norm() for one, other in zip(ours, theirs, strict=True)]
    ).norm()
    return float(apart / torch.stack(torch._foreach_norm(ours)).norm())


def _gradient_norms(state: TrainState, gradient_norm: float) -> dict[str, float]:
    """By part, before clipping, which scaled all of them alike; the optimiser leaves them as they
    were.
    """
    student = state.student
    parts: dict[str, nn.Module | None] = {
        "vision": student.vision,
        "text": student.text,
        "head": student.head,
    }
    parts["patch_head"] = student.patch_head
    squares = {}
    for name, module in parts.items():
        gradients = (
            [p.grad for p in module.parameters() if p.grad is not None]
            if module is not None
            else []
        )
        if gradients:
            squares[name] = float(torch.stack(torch._foreach_norm(gradients)).square().sum())
    scale = max(1.0, gradient_norm / state.config.optim.clip_norm)
    return {f"gradient_norm_{name}": scale * math.sqrt(square) for name, square in squares.items()}


def _watched(state: TrainState) -> list[Tensor]:
    """A matrix of the first and of the last block of each tower: what a step changes there, it
    changes elsewhere.
    """
    towers = (state.student.vision, state.student.text)
    return [
        weight
        for tower in towers
        for weight in (_matrix(tower, 0), _matrix(tower, -1))
        if weight.requires_grad
    ]


def _matrix(tower: VisionTower | TextTower, block: int) -> Tensor:
    chosen = tower.blocks[block]
    assert isinstance(chosen, Block)
    return chosen.mlp.fc1.weight


def _rounded_to(weights: Tensor) -> str | None:
    """The half precision that represents all of these weights exactly: a few thousand of fp32 never
    are.
    """
    some = weights.detach()[:256].float()
    for dtype in (
        torch.bfloat16,
        torch.float16,
    ):  # float16 holds most of what was rounded to bfloat16, and not the reverse
        if torch.equal(some, some.to(dtype).float()):
            return str(dtype).removeprefix("torch.")
    return None
