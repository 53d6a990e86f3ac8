"""Background, words and rules of zero-shot segmentation, on made-up sets.

Against SCLIP's rule and plain loops.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from silc_bench.errors import UserError
from silc_bench.evaluation.prompts import Prompts, class_words
from silc_bench.evaluation.protocols import Rule, choose, rule_of
from silc_bench.metrics import accuracy, iou
from silc_bench.models import windows
from silc_bench.models.windows import DenseImage, View
from silc_bench.tasks.dense.scores import shares_miou
from silc_bench.tasks.dense.segmentation_zeroshot import BINS, Sweep, ZeroShotSegmentation, decided

MODEL = SimpleNamespace(image_protocol={})
NAMES = ("background", "cat", "dog", "grass")
SIDE, D = 12, 16
VIEW = View(SIDE, 8, 4)


@dataclass(frozen=True)
class Masks:
    masks: np.ndarray
    mask_names: tuple[str, ...] = NAMES
    has_background: bool = True
    name: str = "made-up"

    def __len__(self):
        return len(self.masks)

    def mask(self, index):
        return self.masks[index]


@dataclass
class Made:
    """Features made from the masks; ``asked`` keeps what views and methods were asked for."""

    data: dict
    cells: object
    words: dict
    device: str = "cpu"

    def __post_init__(self):
        self.asked = []

    def grids(self, role, view, method):
        self.asked.append((role, view, method))
        layout = VIEW.layout(SIDE, SIDE, 1)
        for index in range(len(self.data[role])):
            yield DenseImage(index, self.cells(self.data[role].mask(index), layout), layout)

    def text(self, texts):
        return np.stack([self.words[text] for text in texts])


def source(data_root, limit):
    raise AssertionError("not loaded here")


def task(**changes):
    return ZeroShotSegmentation(
        name="made-up/x", sources={"test": source}, prompts=Prompts("p", ("{c}",)), **changes
    )


def masks(count, seed=0):
    """Blocks of 4 x 4 pixels, half of them background, some pixels not scored."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(1, 4, (count, 3, 3)) * (rng.random((count, 3, 3)) < 0.5)
    found = blocks.repeat(4, axis=1).repeat(4, axis=2).astype(np.uint8)
    found[rng.random(found.shape) < 0.05] = 255
    return Masks(found)


def of_windows(pixels, layout):
    """[SIDE, SIDE, D] -> the grid of all windows' cells, a cell a pixel."""
    rows = [
        np.concatenate(
            [pixels[top : top + VIEW.window, left : left + VIEW.window] for left in layout.lefts],
            axis=1,
        )
        for top in layout.tops
    ]
    return np.concatenate(rows).astype(np.float32)


EYE = np.eye(D)
WORDS = {name: EYE[label] for label, name in enumerate(NAMES)}


def oracle(mask, layout):
    """The class's own axis; for background, and what is not scored, an axis that no word has."""
    return of_windows(EYE[np.where((mask == 0) | (mask == 255), D - 1, mask)], layout)


def noise(seed):
    rng = np.random.default_rng(seed)
    words = {name: rng.normal(size=D) for name in NAMES}
    return words, lambda mask, layout: of_windows(rng.normal(size=(*mask.shape, D)), layout)


# ---- the answer, and noise ----


@pytest.mark.parametrize("has_train", [True, False])
@pytest.mark.parametrize("scale", [40.0, None])
def test_the_right_pixels_score_one_with_the_background_and_without(has_train, scale):
    data = {"test": masks(21), **({"train": masks(5, seed=1)} if has_train else {})}
    scores = task(rule=Rule("native", scale=scale)).score(Made(data, oracle, WORDS))
    assert (
        scores.metrics["mIoU"]
        == scores.metrics["mIoU_foreground"]
        == scores.metrics["pixel_accuracy"]
        == 1.0
    )
    assert scores.n == (21 if has_train else 18), (
        "every tenth of the test pictures chose the threshold"
    )
    assert scores.details["threshold_from"].startswith(
        "5 pictures of train" if has_train else "every 10th test picture"
    )
    assert scores.details["threshold_mIoU"] == 1.0
    assert 0 < scores.details["threshold"] < 1


def test_background_that_is_not_scored_needs_no_threshold():
    scores = task(scores_background=False).score(Made({"test": masks(4)}, oracle, WORDS))
    assert scores.metrics["mIoU"] == 1.0
    assert "threshold" not in scores.details
    assert list(scores.details["iou"]) == list(NAMES[1:])


def test_a_set_without_background_asks_for_every_label():
    data = Masks(
        np.random.default_rng(0).integers(0, 4, (6, SIDE, SIDE)).astype(np.uint8),
        has_background=False,
    )
    features = Made({"test": data}, lambda mask, layout: of_windows(EYE[mask], layout), WORDS)
    assert task().score(features).metrics["mIoU"] == 1.0


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("scores_background", [True, False])
def test_noise_scores_chance(scores_background, seed):
    words, cells = noise(seed)
    # then no word is the best more often than another
    orthogonal = np.linalg.qr(np.stack(list(words.values())).T)[0].T
    words = dict(zip(NAMES, orthogonal, strict=True))
    data = {"test": masks(60, seed), "train": masks(10, seed + 50)}
    scores = task(scores_background=scores_background).score(Made(data, cells, words))
    assert abs(scores.metrics["mIoU"] - scores.chance) < 4 * scores.stderr["mIoU"]
    if scores_background:
        away = scores.metrics["mIoU_foreground"] - scores.details["chance_foreground"]
        assert abs(away) < 4 * scores.stderr["mIoU_foreground"]
    else:
        assert scores.chance == pytest.approx(
            shares_miou(np.bincount(data["test"].masks.ravel())[1:4], np.full(3, 1 / 3))
        )


def test_one_image_cannot_choose_its_own_threshold():
    with pytest.raises(
        UserError, match="made-up/x: of one picture none is left to choose the threshold"
    ):
        task().score(Made({"test": masks(1)}, oracle, WORDS))
    fixed = task(rule=Rule("native", threshold=0.5)).score(Made({"test": masks(1)}, oracle, WORDS))
    assert fixed.details["threshold"] == 0.5
    assert fixed.n == 1


# ---- how a pixel is decided ----


def upsampled(cells, layout, height, width):
    """[height, width, W] in one piece."""
    return np.einsum(
        "ya,abw,xb->yxw", layout.rows(height).toarray(), cells, layout.cols(width).toarray()
    )


@pytest.mark.parametrize("scale", [40.0, None])
def test_decisions_are_those_of_sclips_code(scale):
    """Softmax over all words, each class's largest, argmax; and the largest as confidence."""
    rng, layout = np.random.default_rng(1), VIEW.layout(SIDE, SIDE, 1)
    owner = np.array([0, 0, 1, 2, 2, 2, 3])
    cells = rng.uniform(-0.2, 0.3, (*layout.grid, len(owner)))
    image = DenseImage(0, cells.astype(np.float32), layout)
    label, named, confidence = decided(lambda rows: rows, owner, scale, image, 17, 23)
    pixels = torch.from_numpy(upsampled(cells, layout, 17, 23))
    probability = pixels if scale is None else (scale * pixels).softmax(dim=-1)
    per_class = torch.stack([probability[..., owner == c].amax(dim=-1) for c in range(4)], dim=-1)
    assert np.array_equal(label, per_class.argmax(dim=-1))
    assert np.array_equal(named, 1 + per_class[..., 1:].argmax(dim=-1))
    np.testing.assert_allclose(confidence, per_class.amax(dim=-1), atol=1e-5)
    assert set(np.unique(label)) == {0, 1, 2, 3}


def test_tiles_decide_as_the_whole_does(monkeypatch):
    rng, layout = np.random.default_rng(2), VIEW.layout(SIDE, SIDE, 1)
    image = DenseImage(
        0, accuracy.normalize(rng.normal(size=(*layout.grid, D))).astype(np.float32), layout
    )
    weights = torch.from_numpy(accuracy.normalize(rng.normal(size=(9, D))).T.copy()).float()
    owner = np.arange(9)
    whole = decided(lambda cells: cells @ weights, owner, None, image, 50, 40)
    monkeypatch.setattr(windows, "TILE_LOGITS", 9 * 8 * 8)
    monkeypatch.setattr(windows, "CELL_LOGITS", 1)
    tiled = decided(lambda cells: cells @ weights, owner, None, image, 50, 40)
    assert np.array_equal(whole[0], tiled[0])
    assert np.array_equal(whole[1], tiled[1])
    np.testing.assert_allclose(whole[2], tiled[2], atol=1e-6)


def test_the_sweep_is_mean_iou_at_each_threshold():
    rng = np.random.default_rng(3)
    sweep, images = Sweep(4, -1.0, 1.0), []
    for _ in range(3):
        label, confidence, mask = (
            rng.integers(0, 4, (9, 7)),
            rng.uniform(-1.1, 1.1, (9, 7)),
            rng.integers(0, 5, (9, 7)),
        )
        mask = np.where(mask == 4, 255, mask).astype(np.uint8)
        images.append((label, confidence.astype(np.float32), mask))
        sweep.add(*images[-1])
    scores = sweep.scores()
    assert scores.shape == (BINS + 1,)
    for place in (0, 1, 250, 499, 777, BINS - 1):
        threshold = -1 + 2 * place / BINS
        areas = sum(
            iou.areas(np.where((confidence < threshold) & (place > 0), 0, label), mask, 4)
            for label, confidence, mask in images
        )
        assert scores[place] == pytest.approx(iou.mean_iou(areas), abs=1e-12)
    threshold, best = sweep.best()
    assert best == scores.max()
    assert scores[round((threshold + 1) / 2 * BINS)] == best


def test_the_best_threshold_lies_amid_those_that_are_as_good():
    sweep = Sweep(2, 0.0, 1.0)
    sweep.add(np.array([[1, 1]]), np.array([[0.2, 0.8]]), np.array([[0, 1]], dtype=np.uint8))
    threshold, best = sweep.best()
    assert best == 1.0
    assert threshold == pytest.approx(0.5, abs=0.002)


# ---- rules ----


def test_rules_are_those_of_the_papers_code():
    tcl, sclip, naclip, clearclip = (
        {
            name: rule_of(protocol, name)
            for name in ("voc20", "voc21", "pc60", "cityscapes", "cocostuff", "coco_object")
        }
        for protocol in ("tcl", "sclip", "naclip", "clearclip")
    )
    assert {rule.view for rule in tcl.values()} == {View(448, 448, 224, "bilinear")}
    assert {rule.threshold for rule in tcl.values()} == {None}
    assert len(tcl["voc20"].prompts.templates) == 9
    assert tcl["voc20"].prompts.templates[-3:] == (
        "a photo of the small {c}.",
        "a photo of many {c}.",
        "a photo of {c}s.",
    )
    assert sclip["voc21"].view == View(336, 224, 112, "bilinear")
    assert (sclip["voc21"].scale, sclip["pc60"].scale, sclip["voc20"].scale) == (65, 50, 40)
    assert {naclip[name].view == sclip[name].view for name in naclip} == {True}
    assert (sclip["cityscapes"].view.size, sclip["cocostuff"].view.size) == (560, 448)
    assert {rule.scale for rule in naclip.values()} == {40}
    assert [clearclip[name].threshold for name in ("voc20", "voc21", "pc60", "coco_object")] == [
        None,
        0.5,
        0.15,
        0.4,
    ]
    assert clearclip["cityscapes"].view == View(448, 224, 224, "bilinear")
    assert [rule["voc20"].method for rule in (tcl, sclip, naclip, clearclip)] == [
        "maskclip",
        "sclip",
        "naclip",
        "clearclip",
    ]
    with pytest.raises(UserError, match="protocol of segmentation 'sclib'"):
        rule_of("sclib", "voc20")


def test_a_protocol_puts_its_rule_and_words_in_place_of_the_tasks():
    own = replace(task(), name="voc21/segmentation_zeroshot", needs_data_root=True)
    named = choose("sclip")
    assert named.changes(MODEL, own)
    asked = named.task(own)
    assert (asked.view, asked.rule.method, asked.rule.threshold) == (
        View(336, 224, 112, "bilinear"),
        "sclip",
        0.1,
    )
    assert len(asked.prompts.templates) == 80
    assert asked.dense_needs() == {"test": ("sclip",)}
    other = choose("tcl", dense_method="naclip")
    assert other.name == "tcl+naclip"
    assert other.task(own).rule == replace(rule_of("tcl", "voc21"), method="naclip")
    method_alone = choose("native", dense_method="plain")
    assert method_alone.task(own).rule == replace(own.rule, method="plain")
    assert method_alone.task(own).prompts is own.prompts
    assert not choose("openai80").changes(MODEL, own)
    assert not choose("native", dense_method="maskclip").changes(MODEL, own), (
        "what changes nothing is native"
    )
    with pytest.raises(UserError, match="dense method 'sclap'"):
        choose("tcl", dense_method="sclap")
    hashes = {
        repr(choose(name).task(own).protocol())
        for name in ("native", "tcl", "sclip", "naclip", "clearclip")
    }
    assert len(hashes) == 5


def test_a_protocol_of_segmentation_leaves_other_tasks_alone():
    from silc_bench.tasks.selection import select

    for name in ("shapes/zeroshot", "shapes/knn", "shapes/retrieval"):
        assert not choose("tcl").changes(MODEL, select([name])[0])


def test_view_and_method_reach_the_features():
    features = Made({"test": masks(4)}, oracle, WORDS)
    choose("clearclip").task(task(scores_background=False)).score(replace_words(features))
    assert features.asked == [("test", View(448, 448, 224, "bilinear"), "clearclip")]


def replace_words(features):
    """Every prompt of a class has its axis."""

    class All(dict):
        def __missing__(self, text):
            return next(EYE[label] for label, name in enumerate(NAMES) if name in text)

    features.words = All()
    return features


def test_words_of_named_sets_are_the_protocols_and_those_of_own_data_their_names():
    names = tuple(words[0] for words in class_words("voc21", "native"))
    data = Masks(np.zeros((1, 4, 4), np.uint8), mask_names=names, name="voc21")
    named = replace(task(), needs_data_root=True, rule=rule_of("sclip", "voc21"))
    assert named._words(data) == list(class_words("voc21", "sclip"))
    assert task(rule=rule_of("sclip", "voc21"))._words(data) == [(name,) for name in names]
    listed = {
        rule: replace(named, name="voc21/x", rule=rule_of(rule, "voc21")).protocol()
        for rule in ("sclip", "clearclip")
    }
    assert listed["sclip"]["words_sha256"] != listed["clearclip"]["words_sha256"], (
        "the words themselves are hashed"
    )
    assert "words_sha256" not in task().protocol()


@pytest.mark.parametrize("has_words", [True, False])
def test_background_words_take_part_where_the_rule_says_so(has_words):
    data = masks(10)
    away = {"background": EYE[D - 1], **{name: WORDS[name] for name in NAMES[1:]}}
    rule = Rule("native", threshold=0.0, has_background_words=has_words)
    scores = task(rule=rule).score(Made({"test": data}, oracle, away))
    assert (scores.metrics["mIoU"] == 1.0) == has_words
    assert scores.metrics["mIoU_foreground"] == 1.0
