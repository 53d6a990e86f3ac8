"""Background, words and rules of zero-shot segmentation, on made-up sets.

Against SCLIP's rule and plain loops.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from given import GivenData, GivenFeatures
from refusals import refused

from silc_bench.evaluation.prompts import Prompts, class_words
from silc_bench.evaluation.protocols import Rule, choose, rule_of
from silc_bench.metrics import iou
from silc_bench.models import windows
from silc_bench.models.windows import DenseImage, View
from silc_bench.tasks.dense.segmentation_zeroshot import BINS, Sweep, ZeroShotSegmentation, decided

NAMES = ("background", "cat", "dog", "grass")
SIDE, D = 12, 16
VIEW = View(SIDE, 8, 4)
RNG = np.random.default_rng(0)


class Made(GivenFeatures):
    """``cells`` makes features from a mask; ``asked`` keeps what views and methods are read."""

    def grids(self, role, view, method):
        self.asked = (role, view, method)
        layout = VIEW.layout(SIDE, SIDE, 1)
        for index in range(len(self.data[role])):
            yield DenseImage(index, self.cells(self.data[role].mask(index), layout), layout)

    def text(self, texts):
        # every prompt of a class has its axis
        return np.stack([next(self.words[n] for n in NAMES if n in text) for text in texts])


def made(cells, words, **masks):
    return Made(data=masks, cells=cells, words=words)


def task(**changes):
    fields = {"name": "made-up/x", "sources": {"test": None}, "prompts": Prompts("p", ("{c}",))}
    return ZeroShotSegmentation(**{**fields, **changes})


def masks(count, seed=0, **fields):
    """Blocks of 4 x 4 pixels, half of them background, some pixels not scored."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(1, 4, (count, 3, 3)) * (rng.random((count, 3, 3)) < 0.5)
    pixels = blocks.repeat(4, axis=1).repeat(4, axis=2).astype(np.uint8)
    pixels[rng.random(pixels.shape) < 0.05] = 255
    what = {"masks": pixels, "mask_names": NAMES, "has_background": True, "name": "made-up"}
    return GivenData(**what | fields)


def of_windows(pixels, layout):
    """[SIDE, SIDE, D] -> the grid of all windows' cells, a cell a pixel."""
    places = []
    for starts in (layout.tops, layout.lefts):
        places.append(np.add.outer(starts, np.arange(VIEW.window)).ravel())
    return pixels[np.ix_(*places)].astype(np.float32)


EYE = np.eye(D)
WORDS = {name: EYE[label] for label, name in enumerate(NAMES)}


def oracle(mask, layout):
    """The class's own axis; for background, and what is not scored, an axis that no word has."""
    return of_windows(EYE[np.where((mask == 0) | (mask == 255), D - 1, mask)], layout)


# ---- the answer, and noise ----


@pytest.mark.parametrize("has_train", [True, False])
@pytest.mark.parametrize("scale", [40.0, None])
def test_the_right_pixels_score_one_with_the_background_and_without(has_train, scale):
    data = {"test": masks(21), **({"train": masks(5, seed=1)} if has_train else {})}
    scores = task(rule=Rule("native", scale=scale)).score(made(oracle, WORDS, **data))
    for metric in ("mIoU", "mIoU_foreground", "pixel_accuracy"):
        assert scores.metrics[metric] == 1.0
    assert scores.n == (21 if has_train else 18), "every tenth test image chose the threshold"
    assert scores.details["threshold_mIoU"] == 1.0
    assert 0 < scores.details["threshold"] < 1


@pytest.mark.parametrize(
    ("settings", "fields"),
    [
        ({"scores_background": False}, {}),
        ({"rule": Rule("native", threshold=0.5)}, {}),
        ({}, {"has_background": False, "masks": RNG.integers(1, 4, (4, SIDE, SIDE))}),
    ],
    ids=["not scored", "a threshold of the rule", "none"],
)
def test_no_threshold_is_chosen_where_none_is_needed(settings, fields):
    scores = task(**settings).score(made(oracle, WORDS, test=masks(4, **fields)))
    assert scores.metrics["mIoU"] == 1.0
    assert scores.n == 4
    assert "threshold_mIoU" not in scores.details
    has_names = settings.get("scores_background", True)
    assert list(scores.details["iou"]) == list(NAMES if has_names else NAMES[1:])


def test_noise_scores_chance():
    rng = np.random.default_rng(0)
    # orthogonal: then no word is the best more often than another
    words = dict(zip(NAMES, np.linalg.qr(rng.normal(size=(D, 4)))[0].T, strict=True))
    data = {"test": masks(60), "train": masks(10, seed=50)}

    def cells(mask, layout):
        return of_windows(rng.normal(size=(*mask.shape, D)), layout)

    scores = task().score(made(cells, words, **data))
    chances = {"mIoU": scores.chance, "mIoU_foreground": scores.details["chance_foreground"]}
    for metric, chance in chances.items():
        assert abs(scores.metrics[metric] - chance) < 4 * scores.stderr[metric]


def test_one_image_cannot_choose_its_own_threshold():
    with refused("made-up/x"):
        task().score(made(oracle, WORDS, test=masks(1)))


# ---- how a pixel is decided ----


def upsampled(cells, layout, height, width):
    """[height, width, W] in one piece."""
    return np.einsum(
        "ya,abw,xb->yxw", layout.rows(height).toarray(), cells, layout.cols(width).toarray()
    )


@pytest.mark.parametrize("tile", [1, windows.TILE_LOGITS])
@pytest.mark.parametrize("scale", [40.0, None])
def test_decisions_are_those_of_sclips_code(scale, tile, monkeypatch):
    """Softmax over all words, each class's largest, argmax; and the largest as confidence."""
    monkeypatch.setattr(windows, "TILE_LOGITS", tile)
    layout = VIEW.layout(SIDE, SIDE, 1)
    owner = np.array([0, 0, 1, 2, 2, 2, 3])
    cells = RNG.uniform(-0.2, 0.3, (*layout.grid, len(owner)))
    image = DenseImage(0, cells.astype(np.float32), layout)
    label, named, confidence = decided(lambda rows: rows, owner, scale, image, 17, 23)
    pixels = torch.from_numpy(upsampled(cells, layout, 17, 23))
    probability = pixels if scale is None else (scale * pixels).softmax(dim=-1)
    per_class = torch.stack([probability[..., owner == c].amax(dim=-1) for c in range(4)], dim=-1)
    assert np.array_equal(label, per_class.argmax(dim=-1))
    assert np.array_equal(named, 1 + per_class[..., 1:].argmax(dim=-1))
    np.testing.assert_allclose(confidence, per_class.amax(dim=-1), atol=1e-5)
    assert set(np.unique(label)) == {0, 1, 2, 3}


def test_the_sweep_is_mean_iou_at_each_threshold():
    sweep, images = Sweep(4, -1.0, 1.0), []
    for _ in range(3):
        label, mask = RNG.integers(0, 4, (9, 7)), RNG.integers(0, 5, (9, 7))
        confidence = RNG.uniform(-1.1, 1.1, (9, 7)).astype(np.float32)
        images.append((label, confidence, np.where(mask == 4, 255, mask).astype(np.uint8)))
        sweep.add(*images[-1])
    scores = sweep.scores()
    assert scores.shape == (BINS + 1,)
    for place in (0, 1, 250, 499, 777, BINS - 1, BINS):
        areas = 0
        for label, confidence, mask in images:
            is_below = (confidence < sweep.thresholds[place]) & (place > 0)
            areas = areas + iou.areas(np.where(is_below, 0, label), mask, 4)
        assert scores[place] == pytest.approx(iou.mean_iou(areas), abs=1e-12)
    threshold, best = sweep.best()
    assert best == scores.max() == scores[round((threshold + 1) / 2 * BINS)]


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0)])
def test_sweep_and_score_agree_at_every_threshold(low, high):
    """Also where a confidence is a threshold itself, or the highest there is."""
    sweep = Sweep(2, low, high)
    values = np.concatenate([sweep.thresholds, RNG.uniform(low, high, 500), [high] * 9])
    confidence = values.astype(np.float32)[None]
    label = np.ones(confidence.shape, dtype=np.int64)
    mask = RNG.integers(0, 2, confidence.shape).astype(np.uint8)
    sweep.add(label, confidence, mask)
    for threshold, swept in zip(sweep.thresholds, sweep.scores(), strict=True):
        scored = np.where(confidence < threshold, 0, label)
        assert swept == pytest.approx(iou.mean_iou(iou.areas(scored, mask, 2)), abs=1e-12)


@pytest.mark.parametrize("num_words", [1, 2, 20])
def test_a_background_is_found_among_any_number_of_words(num_words):
    names = ("background", *(f"<{number}>" for number in range(num_words)))
    axes = np.eye(num_words + 2)
    words = dict(zip(names, axes, strict=False))
    rng = np.random.default_rng(1)
    fields = {"mask_names": names, "has_background": True, "name": "made-up"}
    pixels = rng.integers(0, num_words + 1, (22, SIDE, SIDE)).astype(np.uint8)
    test = GivenData(masks=pixels, **fields)

    class Asked(Made):
        def text(self, texts):
            return np.stack([words[text] for text in texts])

    def cells(mask, layout):
        return of_windows(axes[np.where(mask == 0, num_words + 1, mask)], layout)

    scores = task().score(Asked(data={"test": test}, cells=cells, words=words))
    assert scores.metrics["mIoU"] == scores.details["threshold_mIoU"] == 1.0
    assert bool(scores.notes) == (num_words == 1)


def test_the_best_threshold_lies_amid_those_that_are_as_good():
    sweep = Sweep(2, 0.0, 1.0)
    sweep.add(np.array([[1, 1]]), np.array([[0.2, 0.8]]), np.array([[0, 1]], dtype=np.uint8))
    threshold, best = sweep.best()
    assert best == 1.0
    assert threshold == pytest.approx(0.5, abs=0.002)


# ---- rules ----


def test_a_protocol_puts_its_rule_and_words_in_place_of_the_tasks():
    own = task(name="voc21/segmentation_zeroshot", needs_data_root=True)
    asked = own.under(choose("sclip"))
    assert asked.rule == rule_of("sclip", "voc21")
    assert asked.prompts == asked.rule.prompts
    assert asked.dense_needs() == {"test": ("sclip",)}
    other = choose("tcl", dense_method="naclip")
    assert other.name == "tcl+naclip"
    assert own.under(other).rule == replace(rule_of("tcl", "voc21"), method="naclip")
    method_alone = own.under(choose("native", dense_method="plain"))
    assert method_alone.rule == replace(own.rule, method="plain")
    assert method_alone.prompts is own.prompts
    assert not choose("openai80").changes(own)
    assert not choose("native", dense_method="maskclip").changes(own)


def test_view_and_method_reach_the_features():
    features = made(oracle, WORDS, test=masks(4))
    task(scores_background=False).under(choose("clearclip")).score(features)
    assert features.asked == ("test", View(448, 448, 224, "bilinear"), "clearclip")


def test_words_of_named_sets_are_the_protocols_and_those_of_own_data_their_names():
    names = tuple(words[0] for words in class_words("voc21", "native"))
    data = GivenData(mask_names=names, name="voc21")
    fields = {"name": "voc21/x", "rule": rule_of("sclip", "voc21")}
    named, own = (task(needs_data_root=is_named, **fields) for is_named in (True, False))
    assert named._words(data) == list(class_words("voc21", "sclip"))
    assert own._words(data) == [(name,) for name in names]

    # the words themselves are hashed
    other = replace(named, rule=rule_of("clearclip", "voc21")).protocol()
    assert named.protocol()["words_sha256"] != other["words_sha256"]
    assert "words_sha256" not in own.protocol()


@pytest.mark.parametrize("has_words", [True, False])
def test_background_words_take_part_where_the_rule_says_so(has_words):
    away = WORDS | {"background": EYE[D - 1]}
    rule = Rule("native", threshold=0.0, has_background_words=has_words)
    scores = task(rule=rule).score(made(oracle, away, test=masks(10)))
    assert (scores.metrics["mIoU"] == 1.0) == has_words
    assert scores.metrics["mIoU_foreground"] == 1.0


@pytest.mark.parametrize(
    ("value", "about"), [(0, "cat, dog, grass"), (255, "background, cat, dog")]
)
def test_images_without_a_class_are_a_sentence_and_no_nan(value, about):
    """Background alone has no IoU of a named class, pixels that are not scored have none at all."""
    pixels = np.full((4, SIDE, SIDE), value, np.uint8)
    with refused(about):
        task().score(made(oracle, WORDS, test=masks(4, masks=pixels), train=masks(5, seed=1)))
