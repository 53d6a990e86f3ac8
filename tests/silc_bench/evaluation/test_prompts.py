"""How classes become text: named sets, cleaning, files of prompts a class, the two averages."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from silc_bench.errors import UserError
from silc_bench.evaluation.prompts import (
    Prompts,
    asks_in_words,
    class_embeddings,
    named_prompts,
    openai_templates,
    own_templates,
    read_per_class,
    with_prompts,
)
from silc_bench.tasks.classification.knn import Knn
from silc_bench.tasks.classification.zeroshot import ZeroShot
from silc_bench.tasks.dense.segmentation_zeroshot import ZeroShotSegmentation
from silc_bench.tasks.selection import all_tasks


class Texts:
    """Features that know texts only, and remember what was asked."""

    def __init__(self, dim=5):
        self.known, self.asked, self._dim = {}, [], dim
        self._rng = np.random.default_rng(0)

    def text(self, texts):
        self.asked += texts
        return np.stack(
            [self.known.setdefault(text, 10 * self._rng.normal(size=self._dim)) for text in texts]
        )


# ---- templates ----


def test_named_sets_are_clips():
    from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES

    named = named_prompts()
    for name, theirs in (
        ("openai80", OPENAI_IMAGENET_TEMPLATES),
        ("openai7", SIMPLE_IMAGENET_TEMPLATES),
    ):
        assert named[name].name == name
        assert sorted(named[name].texts(["tench"])[0]) == sorted(
            template("tench") for template in theirs
        )
    assert len(named["openai80"].templates) == 80
    assert named["single"].texts(["tench"]) == [["a photo of a tench."]]


def test_openais_prompts_of_cifar100_and_our_own():
    assert len(openai_templates("cifar100")) == 18
    assert openai_templates("cifar100")[0] == "a photo of a {c}."
    for template in (*openai_templates("cifar100"), *own_templates("shapes")):
        assert Prompts("one", (template,)).texts(["red circle"])[0][0].count("red circle") == 1


def test_prompts_of_shapes_are_how_its_captions_begin():
    from silc_bench.datasets.shapes.dataset import Shapes

    dataset = Shapes("test", 200)
    said = {caption for own in dataset.captions for caption in own}
    prompts = {
        text
        for own in Prompts("own", own_templates("shapes")).texts(dataset.class_names)
        for text in own
    }
    assert len(prompts & said) > 10, "a single object is described by exactly its prompt"


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("A photo of a St. Bernard.", "a photo of a st bernard"),
        ("jack-o'-lantern,  maillot", "jackolantern maillot"),
        ("  Great_White\tShark ", "great white shark"),
    ],
)
def test_bigvision_cleaning(text, cleaned):
    assert Prompts("p", ("{c}",), text_cleaning="bigvision").texts([text]) == [[cleaned]]
    assert Prompts("p", ("{c}",)).texts([text]) == [[text]]


# ---- averages ----


def test_embeddings_are_normalised_means_of_normalised_prompts():
    features = Texts()
    ours = class_embeddings(features, ["cat", "dog"], Prompts("p", ("a {c}", "the {c}", "my {c}")))
    assert features.asked == ["a cat", "the cat", "my cat", "a dog", "the dog", "my dog"]
    for row, name in zip(ours, ("cat", "dog"), strict=True):
        embeddings = [features.known[f"{word} {name}"] for word in ("a", "the", "my")]
        mean = sum(embedding / np.linalg.norm(embedding) for embedding in embeddings) / 3
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), atol=1e-12)


def test_logits_are_means_of_the_cosines_with_each_prompt():
    features = Texts()
    prompts = Prompts(
        "p", per_class={"cat": ("purrs", "meows", "sleeps"), "dog": ("barks",)}, average="logits"
    )
    logits = (image := np.random.default_rng(1).normal(size=5)) @ class_embeddings(
        features, ["dog", "cat"], prompts
    ).T
    for ours, own in zip(logits, (("barks",), ("purrs", "meows", "sleeps")), strict=True):
        assert ours == pytest.approx(
            np.mean(
                [
                    image @ features.known[text] / np.linalg.norm(features.known[text])
                    for text in own
                ]
            ),
            abs=1e-12,
        )


def test_the_two_averages_can_disagree():
    # one class whose prompts contradict each other, one whose prompts are poor and agree
    known = {"x1": [1, 0, 0.0], "x2": [0.28, 0.96, 0], "y1": [0.65, 0, 0.76], "y2": [0.65, 0, 0.76]}
    features = SimpleNamespace(text=lambda texts: np.array([known[text] for text in texts]))
    answers = {}
    for average in ("embeddings", "logits"):
        prompts = Prompts("p", per_class={"x": ("x1", "x2"), "y": ("y1", "y2")}, average=average)
        answers[average] = int(
            np.argmax(class_embeddings(features, ["x", "y"], prompts) @ [1.0, 0, 0])
        )
    assert answers == {"embeddings": 0, "logits": 1}


# ---- prompts per class ----


def test_a_file_of_prompts_per_class(tmp_path):
    path = tmp_path / "cupl.json"
    path.write_text(
        json.dumps({"dog": ["A dog barks.", "It wags."], "cat": ["It purrs."], "unused": ["x"]})
    )
    prompts = read_per_class(path)
    assert prompts.name == "cupl"
    assert prompts.texts(["cat", "dog"]) == [["It purrs."], ["A dog barks.", "It wags."]]
    with pytest.raises(
        UserError, match=r"lack 2 of 3 classes: 'cats', 'cow' \(the nearest to the first is 'cat'\)"
    ):
        prompts.texts(["dog", "cats", "cow"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "expected {class name"),
        ("{", "not a JSON file"),
        ('{"cat": "purrs"}', "prompts of class 'cat' are not a list"),
        ('{"cat": []}', "class 'cat' has no prompt"),
        ("{}", "expected {class name"),
    ],
)
def test_a_wrong_file_is_refused(content, message, tmp_path):
    path = tmp_path / "p.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_per_class(path)
    with pytest.raises(UserError, match="no such file"):
        read_per_class(tmp_path / "q.json")


# ---- what is refused, what is hashed ----


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "one of the two"),
        ({"templates": ("{c}",), "per_class": {"a": ("b",)}}, "one of the two"),
        ({"templates": ("a {}",)}, "has no {c}"),
        ({"templates": ("{c}",), "text_cleaning": "bigvisoin"}, "did you mean bigvision"),
        ({"templates": ("{c}",), "average": "logit"}, "did you mean logits"),
    ],
)
def test_wrong_prompts_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        Prompts("p", **fields)


def test_every_choice_is_in_the_protocol():
    choices = [
        Prompts("p", ("{c}",)),
        Prompts("p", ("{c}", "a {c}")),
        Prompts("p", ("{c}",), text_cleaning="bigvision"),
        Prompts("p", ("{c}",), average="logits"),
        Prompts("p", per_class={"a": ("b",)}),
        Prompts("p", per_class={"a": ("c",)}),
    ]
    assert len({json.dumps(prompts.protocol(), sort_keys=True) for prompts in choices}) == len(
        choices
    )


def test_a_task_asked_in_other_words_is_otherwise_the_same():
    single = named_prompts()["single"]
    for name, task in all_tasks().items():
        if isinstance(task, ZeroShot | ZeroShotSegmentation):
            assert asks_in_words(task)
            other = with_prompts(task, single)
            assert (other.name, other.version, other.sources) == (name, task.version, task.sources)
            assert (
                other.protocol()["templates"]
                == ["a photo of a {c}."]
                != task.protocol()["templates"]
            )
        if isinstance(task, Knn):
            assert not asks_in_words(task)
            with pytest.raises(UserError, match="no prompts to change"):
                with_prompts(task, single)
