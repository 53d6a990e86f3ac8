"""Questions, setups and metrics in a reader's words (no torch).

Nobody reads a hash: a heading says ``CIFAR-100 zero-shot, top-1``. Where several questions of one
task stand side by side, ``distinctions`` says in words how they differ, and ``setup_labels`` does
so for the setups of one model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from silc_bench.results.question import Question
from silc_bench.results.setup import Setup

DATASETS = {
    "ade20k150": "ADE20K-150",
    "ade20k847": "ADE20K-847",
    "camvid": "CamVid",
    "camvid_mini": "CamVid mini",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "cityscapes": "Cityscapes",
    "coco": "COCO",
    "coco_mini": "COCO mini",
    "coco_object": "COCO-Object",
    "cocostuff": "COCO-Stuff",
    "flickr30k": "Flickr30k",
    "imagenet1k": "ImageNet-1k",
    "imagenet_a": "ImageNet-A",
    "imagenet_r": "ImageNet-R",
    "imagenet_sketch": "ImageNet-Sketch",
    "imagenet_v2": "ImageNet-V2",
    "objectnet": "ObjectNet",
    "pc59": "Pascal Context-59",
    "pc60": "Pascal Context-60",
    "pc459": "Pascal Context-459",
    "places": "places",
    "places_things": "places, things",
    "shapes": "shapes",
    "shapes_colours": "shapes, colours",
    "voc20": "VOC-20",
    "voc21": "VOC-21",
}
FAMILIES = {
    "correspondence": "patch correspondence",
    "discovery": "object discovery",
    "fewshot": "few-shot ridge",
    "fewshot_logistic": "few-shot logistic",
    "knn": "kNN",
    "linear": "linear probe",
    "retrieval": "retrieval",
    "segmentation_knn": "kNN segmentation",
    "segmentation_linear": "linear segmentation",
    "segmentation_open_vocabulary": "open-vocabulary segmentation",
    "segmentation_sgd": "SGD segmentation",
    "segmentation_zeroshot": "zero-shot segmentation",
    "zeroshot": "zero-shot",
    "zeroshot_unseen": "zero-shot, unseen pairs",
}
GROUPS = {
    "zero-shot": "Zero-shot classification",
    "few-shot": "Few-shot classification",
    "linear": "Linear probe",
    "knn": "k nearest neighbours",
    "retrieval": "Retrieval",
    "dense": "Dense",
}
METRICS = {
    "acc1": "top-1",
    "acc5": "top-5",
    "boundary_mIoU": "boundary mIoU",
    "foreground_iou": "foreground IoU",
    "mIoU_foreground": "mIoU without background",
    "mean_class_accuracy": "mean class accuracy",
    "mean_per_class_recall": "mean per-class recall",
    "pixel_accuracy": "pixel accuracy",
}
_PATTERNS = (
    (r"acc([15])_(\d+)shot", "top-{0}, {1}-shot"),
    (r"acc([15])_(\d+)nn", "top-{0}, k = {1}"),
    (r"image_retrieval_recall@(\d+)", "text to image R@{0}"),
    (r"text_retrieval_recall@(\d+)", "image to text R@{0}"),
    (r"image_retrieval_median_rank", "text to image, median rank"),
    (r"text_retrieval_median_rank", "image to text, median rank"),
    (r"patch_recall@(\d+)", "patch R@{0}"),
)
_FIELDS = {
    "image.size": "{} px",
    "image.resize": "resize {}",
    "image.crop": "crop {}",
    "image.interpolation": "{}",
    "text.length": "{} tokens",
    "text.cleaning": "text {}",
    "feature_point": "{}",
    "precision": "{}",
    "device": "{}",
}
COMPARED = r"(?:image|text)_retrieval_recall@1"  # between models, beside each main metric
MAX_TEXT = 40  # of a value in a label


def dataset_title(name: str) -> str:
    """ "CIFAR-100"; the name itself of a dataset that is not ours."""
    return DATASETS.get(name, name)


def family_title(family: str) -> str:
    """ "zero-shot" of "zeroshot"."""
    return FAMILIES.get(family, family.replace("_", " "))


def task_title(task: str) -> str:
    """ "CIFAR-100 zero-shot" of "cifar100/zeroshot"."""
    dataset, _, family = task.partition("/")
    return f"{dataset_title(dataset)} {family_title(family)}"


def metric_title(metric: str) -> str:
    """ "top-1, 5-shot" of "acc1_5shot"; the name itself where we know no other word."""
    if metric in METRICS:
        return METRICS[metric]
    for pattern, words in _PATTERNS:
        match = re.fullmatch(pattern, metric)
        if match:
            return words.format(*match.groups())
    return metric


def title(task: str, metric: str) -> str:
    """ "CIFAR-100 zero-shot, top-1"."""
    return f"{task_title(task)}, {metric_title(metric)}"


def distinctions(questions: Sequence[Question]) -> list[str]:
    """A few words for each of several questions of one task: what sets it apart from the others.

    The protocol's name where that is enough, else the fields that differ, values in words.
    """
    labels = [question.protocol for question in questions]
    labels = labels if len(set(labels)) > 1 else [""] * len(labels)
    fields = [_question_fields(question) for question in questions]
    return _told_apart(labels, fields, {})


def setup_labels(setups: Sequence[Setup]) -> list[str]:
    """A few words for each of several setups of one model; empty for a single one."""
    if len(setups) < 2:
        return [""] * len(setups)
    fields = [flat_fields(setup.as_dict()) for setup in setups]
    return _told_apart([""] * len(setups), fields, _FIELDS)


def question_words(question: Question) -> dict[str, str]:
    """Field -> value, for a reader: nothing but what the evaluation decided."""
    return {name: _short(value) for name, value in _question_fields(question).items()}


def setup_words(setup: Setup) -> dict[str, str]:
    """Field -> value, for a reader."""
    return {name: _short(value) for name, value in flat_fields(setup.as_dict()).items()}


def differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The fields in which two flat dicts differ: name and both values in words."""
    rows: list[tuple[str, str, str]] = []
    for name in dict.fromkeys((*first, *second)):
        if first.get(name) != second.get(name):
            rows.append((name, _short(first.get(name, "–")), _short(second.get(name, "–"))))
    return rows


def flat_fields(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as dotted fields; the hash of the whole is left out, as it follows."""
    fields: dict[str, Any] = {}
    for name, item in value.items():
        if name == "hash" and not prefix:
            continue
        place = f"{prefix}.{name}" if prefix else name
        if isinstance(item, Mapping) and item:
            fields |= flat_fields(item, place)
        else:
            fields[place] = item
    return fields


def _question_fields(question: Question) -> dict[str, Any]:
    fields = flat_fields(question.as_dict())
    fields["protocol"] = fields.pop("protocol")  # last: it is said first where it differs
    return fields


def _told_apart(
    labels: list[str], fields: Sequence[Mapping[str, Any]], words: Mapping[str, str]
) -> list[str]:
    """Labels, lengthened field by field until no two are equal."""
    names = dict.fromkeys(name for own in fields for name in own)
    for name in names:
        if len(set(labels)) == len(labels):
            break
        values = [own.get(name) for own in fields]
        texts = [_short(value) for value in values]
        distinct = list(dict.fromkeys(map(repr, values)))

        # only a field that parts labels which are still equal says something new
        if len(set(zip(labels, map(repr, values), strict=True))) == len(set(labels)):
            continue

        # a fingerprint or a long list has no words: the variants are numbered
        if len(set(texts)) < len(distinct) or any(_is_hash(value) for value in values):
            texts = [f"variant {1 + distinct.index(repr(value))}" for value in values]
        shown = [
            _with_name(name, text, words) if value is not None else ""
            for text, value in zip(texts, values, strict=True)
        ]
        labels = [", ".join(filter(None, pair)) for pair in zip(labels, shown, strict=True)]
    return labels


def _with_name(name: str, text: str, words: Mapping[str, str]) -> str:
    if name in words:
        return words[name].format(text)
    if name.startswith("libraries."):
        return f"{name.removeprefix('libraries.')} {text}"
    return f"{name.rpartition('.')[2].replace('_', ' ')} {text}"


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{8,64}", value) is not None


def _short(value: Any) -> str:
    """A value in a few words; a long list by its length."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if isinstance(value, list) and len(text) > MAX_TEXT:
        return f"{len(value)} entries"
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"
