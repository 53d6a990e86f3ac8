"""What the study asks, of whom, and by which rule: all of it written down before the runs.

The rule: SILC's claim holds in a setting if the difference "silc - contrastive+views" AND the
difference "silc - silc+frozen" exclude 0 (95 % intervals, paired by seed) on linear segmentation of
things and stuff and on zero-shot segmentation of things and stuff.

The arms run on one code path. Two are controls: a teacher that keeps its first, random weights, and
targets that belong to another image. A gain that they share is no self-distillation.

Learning rate and clipping are chosen for each arm by itself, on "val", with seeds that are not
reported: every pair that is tried with the first of TUNING_SEEDS, then the FINALISTS best of an arm
with the second one too. The highest mean of the sum of the measures in ``tuned_by`` is taken. On
places what is tried is no full grid: five rates with one clipping, and the other clipping with one
rate. It is done once, with 1,024 pairs, and all settings take what it chose. Both spare time: some
45 runs of a minute or two instead of 300. The rate 4e-3 was added, for all arms, when
contrastive+views turned out best at 2e-3, the highest until then, and 8e-3 when all arms turned out
best at 4e-3.

Photographs: the rule is the same, on linear and on zero-shot segmentation of CamVid, with three
seeds. CIFAR-100 teaches few of the words that street scenes are asked for; so zero-shot is expected
near chance there, and with it a verdict of "does not hold" says little. Each pair is seen once:
two epochs were planned, and cut after two tuning runs of contrastive (15.1 % and 12.2 % on "val" at
rates of 1e-3 and 2e-3), because 32 such runs take three hours of a core. For the same reason tuning
has one seed there: the second one was cut after four of its runs, all with the first.

Shapes: no question is asked there, but the preset ``shapes_tiny`` has one rate and one clipping for
all objectives. They are the pair with the highest sum over contrastive, contrastive+views and silc;
the rest is as above. A silc run takes four minutes of a core, so four pairs were tried with
contrastive first, and its two best with silc. (At first all of three pairs were to run with both
arms, 4e-3 and 0.3 among them, 1e-3 not. After three runs of contrastive, whose scores sum up to 32
points with it and to 59 at 2e-3, 1e-3 was tried too; no silc run had ended by then. When it turned
out best, 5e-4 was added, as 1e-3 was the lowest rate, and contrastive+views, which had been left
out to spare time.)

Each pair seen once: only the three arms that the rule asks about, as eight seeds of five arms would
take the time of another setting.

The search asks where the claim could hold, should it not hold as tuned. Each of SEARCHED runs with
each of its arms on "val" and the first tuning seed, and the SEARCH_FINALISTS best once more with
the second one. How good a variant is, is its margin: the smallest of the four differences that the
rule asks about, in the mean over these seeds. All outcomes are kept. The finalist with the highest
margin is confirmed once: on eight fresh seeds, and on test scenes that nothing was measured on
before. Only that confirmation counts. (The finalists came in after 6 of 58 runs, before the others.
Until then all variants were to run with both seeds, which would have taken twice the time.)

TRIED_LATER came after the confirmation: towers ten times as large, as no variant of the search had
other towers. They are trained at half the tuned rate, as they are twice as wide. One with a margin
above 0 is run with the second seed too. They choose nothing and are not confirmed, so whatever they
show is a hint for a study to come and no result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

ARMS = ("contrastive", "contrastive+views", "silc", "silc+frozen", "silc+shuffled")  # objectives
AGAINST = ("contrastive+views", "silc+frozen")  # whom silc must beat
SAMPLES = 38_400  # images seen by a run
QUICK_SAMPLES = 3_200
FINALISTS = 2  # pairs of ``tried`` that an arm is given with the second seed, where it is asked for
TUNING_SEEDS = (100, 101)
SEARCH_FINALISTS = 3  # variants that the search gives the second seed

Pair = tuple[str, str]  # optim.lr, clip_norm


@dataclass(frozen=True)
class World:
    """Where the arms learn, and what is asked of them."""

    preset: str
    tuned_on: str  # the setting
    tried: tuple[Pair, ...]
    tuned_by: tuple[str, ...]  # columns of ``measures``, on "val"
    measures: Mapping[str, tuple[str, str]]  # column: (task, metric)
    decisive: tuple[str, ...]  # columns that the rule asks about
    of_teacher: tuple[str, ...]  # columns
    sets: Mapping[str, str] = field(default_factory=dict)  # of every run
    arms: tuple[str, ...] = ARMS
    has_one_pair: bool = False  # for all arms together
    needs_data: bool = False  # --data-root
    has_second_seed: bool = True  # of tuning


PLACES = World(
    "places_tiny",
    tuned_on="1024",
    tried=(
        ("1e-3", "0.3"),
        ("2e-3", "0.3"),
        ("5e-4", "0.3"),
        ("1e-3", "1.0"),
        ("4e-3", "0.3"),
        ("8e-3", "0.3"),
    ),
    tuned_by=("linear things+stuff", "zero-shot things+stuff"),
    measures={
        "linear things+stuff": ("places/segmentation_linear", "mIoU"),
        "zero-shot things+stuff": ("places/segmentation_zeroshot", "mIoU"),
        "linear things": ("places_things/segmentation_linear", "mIoU"),
        "zero-shot things": ("places_things/segmentation_zeroshot", "mIoU"),
        "correspondence": ("places/correspondence", "patch_recall@1"),
        "discovery": ("places_things/discovery", "foreground_iou"),
        "zero-shot place": ("places/zeroshot", "acc1"),
        "zero-shot thing": ("places_things/zeroshot", "acc1"),
        "kNN place": ("places/knn", "acc1_20nn"),
    },
    decisive=("linear things+stuff", "zero-shot things+stuff"),
    # the quick ones
    of_teacher=(
        "linear things+stuff",
        "zero-shot things+stuff",
        "zero-shot place",
        "zero-shot thing",
    ),
)
# CIFAR-100 has no val, so its last shard of training images is held out from all runs.
PHOTOGRAPHS = World(
    "cifar_tiny",
    tuned_on="photographs",
    tried=(("1e-3", "0.3"), ("2e-3", "0.3"), ("1e-3", "1.0")),
    tuned_by=("zero-shot CIFAR-100",),
    measures={
        "linear CamVid": ("camvid_mini/segmentation_linear", "mIoU"),
        "zero-shot CamVid": ("camvid_mini/segmentation_zeroshot", "mIoU"),
        "correspondence CamVid": ("camvid_mini/correspondence", "patch_recall@1"),
        "zero-shot COCO": ("coco_mini/segmentation_zeroshot", "mIoU"),
        "discovery COCO": ("coco_mini/discovery", "foreground_iou"),
        "correspondence COCO": ("coco_mini/correspondence", "patch_recall@1"),
        "zero-shot CIFAR-100": ("cifar100/zeroshot", "acc1"),
        "kNN CIFAR-100": ("cifar100/knn", "acc1_20nn"),
    },
    decisive=("linear CamVid", "zero-shot CamVid"),
    of_teacher=("linear CamVid", "zero-shot CIFAR-100"),
    sets={
        "vision.patch_size": "4",
        "vision.depth": "3",
        "vision.width": "96",
        "vision.mlp_dim": "384",
        "precision": "fp32",
    },
    arms=("contrastive", "contrastive+views", "silc", "silc+frozen"),
    needs_data=True,
    has_second_seed=False,
)

SHAPES = World(
    "shapes_tiny",
    tuned_on="shapes",
    tried=(("2e-3", "1.0"), ("1e-3", "1.0"), ("5e-4", "1.0")),
    tuned_by=("zero-shot", "linear shapes", "zero-shot shapes"),
    measures={
        "zero-shot": ("shapes/zeroshot", "acc1"),
        "linear shapes": ("shapes/segmentation_linear", "mIoU"),
        "zero-shot shapes": ("shapes/segmentation_zeroshot", "mIoU"),
    },
    decisive=(),
    of_teacher=(),
    arms=("contrastive", "contrastive+views", "silc"),
    has_one_pair=True,
)


@dataclass(frozen=True)
class Setting:
    """``arms`` train on ``source``; the rows of the other arms are those of ``others_of``."""

    title: str
    source: str  # below --data-root, where the world needs one
    world: World = PLACES
    arms: tuple[str, ...] = ARMS
    seeds: tuple[int, ...] = tuple(range(8))
    samples: int = SAMPLES
    others_of: str = ""
    has_equal_seconds: bool = False  # each arm sees so many images that it trains as long as silc
    is_confirmation: bool = False


SETTINGS = {
    "1024": Setting("places, 1,024 pairs", "places:num_pairs=1024"),
    "1024-seconds": Setting(
        "places, 1,024 pairs, equal seconds",
        "places:num_pairs=1024",
        arms=("contrastive", "contrastive+views"),
        others_of="1024",
        has_equal_seconds=True,
    ),
    "4096": Setting("places, 4,096 pairs", "places:num_pairs=4096"),
    "endless": Setting("places, each pair seen once", "places", arms=(*AGAINST, "silc")),
    "photographs": Setting(
        "CIFAR-100 photographs, 22,500 pairs",
        "cifar100/train/cifar100-train-00000{0..8}.tar",
        PHOTOGRAPHS,
        PHOTOGRAPHS.arms,
        seeds=(0, 1, 2),
        samples=22_528,  # each pair once
    ),
    # tuned for its preset, and not run
    "shapes": Setting("shapes, each scene seen once", "shapes", SHAPES, SHAPES.arms, seeds=()),
    "confirmation": Setting(
        "places, 1,024 pairs, as the search chose, on fresh seeds and scenes",
        "places:num_pairs=1024",
        arms=(*AGAINST, "silc"),
        seeds=tuple(range(200, 208)),
        is_confirmation=True,
    ),
}


@dataclass(frozen=True)
class Variant:
    """A change of all ``arms``; an arm that it leaves as it was is read from the tuning runs."""

    sets: Mapping[str, str]
    samples: int = SAMPLES
    # a change of distillation alone leaves contrastive+views as it was
    arms: tuple[str, ...] = ("silc", "silc+frozen")


ALL_THREE = (*AGAINST, "silc")
SEARCHED = {
    "4 times as many steps": Variant({}, 4 * SAMPLES, ALL_THREE),
    "teacher starts at half": Variant({"distillation.start_fraction": "0.5"}),
    "EMA 0.966": Variant({"distillation.ema_momentum": "0.966"}, arms=("silc",)),
    "EMA 0.996": Variant({"distillation.ema_momentum": "0.996"}, arms=("silc",)),
    "teacher_temp 0.01": Variant({"distillation.teacher_temp": "0.01"}),
    "teacher_temp 0.04": Variant({"distillation.teacher_temp": "0.04"}),
    "128 prototypes": Variant({"distillation.num_prototypes": "128"}),
    "2,048 prototypes": Variant({"distillation.num_prototypes": "2048"}),
    "Sinkhorn": Variant({"distillation.centering": "sinkhorn"}),
    "distillation weight 0.3": Variant({"distillation.weight": "0.3"}),
    "distillation weight 3": Variant({"distillation.weight": "3"}),
    "global views distilled too": Variant({"distillation.pairs": "local+global"}),
    "masked patches": Variant({"masked.weight": "1"}),
    "text meets the original image": Variant({"contrastive.images": "original"}),
    "text meets the original, views jittered": Variant(
        {"contrastive.images": "original", "views.jitter_prob": "0.8", "views.gray_prob": "0.2"}
    ),
}
LARGER = {
    "vision.depth": "4",
    "vision.width": "128",
    "vision.mlp_dim": "384",
    "text.depth": "2",
    "text.width": "128",
    "text.mlp_dim": "384",
    "optim.lr": "2e-3",
}
TRIED_LATER = {
    "towers of 1 M": Variant(LARGER, arms=ALL_THREE),
    "towers of 1 M, 4 times as many steps": Variant(LARGER, 4 * SAMPLES, ALL_THREE),
}
VARIANTS = {**SEARCHED, **TRIED_LATER}
