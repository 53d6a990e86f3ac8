"""How classes become text: named sets, cleaning, files of prompts a class, their mean."""

from __future__ import annotations

import json

import numpy as np
import pytest
from refusals import refused

from silc_bench.errors import DataError
from silc_bench.evaluation.prompts import (
    Prompts,
    class_embeddings,
    prompts_of,
    read_per_class,
)


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


def test_named_sets_are_clips():
    from open_clip import zero_shot_metadata as theirs

    for name, templates in (
        ("openai80", theirs.OPENAI_IMAGENET_TEMPLATES),
        ("openai7", theirs.SIMPLE_IMAGENET_TEMPLATES),
    ):
        ours = prompts_of(name)
        assert ours.name == name
        assert sorted(ours.texts(["tench"])[0]) == sorted(make("tench") for make in templates)
    assert prompts_of("single").texts(["tench"]) == [["a photo of a tench."]]
    assert prompts_of("openai_cifar100").templates[0] == "a photo of a {c}."
    assert len(prompts_of("openai_cifar100").templates) == 18


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


def test_embeddings_are_normalised_means_of_normalised_prompts():
    features = Texts()
    ours = class_embeddings(features, ["cat", "dog"], Prompts("p", ("a {c}", "the {c}", "my {c}")))
    assert features.asked == ["a cat", "the cat", "my cat", "a dog", "the dog", "my dog"]
    for row, name in zip(ours, ("cat", "dog"), strict=True):
        embeddings = [features.known[f"{word} {name}"] for word in ("a", "the", "my")]
        mean = sum(embedding / np.linalg.norm(embedding) for embedding in embeddings) / 3
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), atol=1e-12)


def test_a_file_of_prompts_per_class(tmp_path):
    path = tmp_path / "cupl.json"
    content = {"dog": ["A dog barks.", "It wags."], "cat": ["It purrs."], "unused": ["x"]}
    path.write_text(json.dumps(content), encoding="utf-8-sig")  # with a mark, as Windows writes
    prompts = read_per_class(path)
    assert prompts.name == "cupl"
    assert prompts.texts(["cat", "dog"]) == [["It purrs."], ["A dog barks.", "It wags."]]
    with refused("cupl") as caught:
        prompts.texts(["dog", "cats", "cow"])
    assert "'cats', 'cow'" in caught.value.problem


@pytest.mark.parametrize("content", ["[1]", "{", '{"cat": "purrs"}', '{"cat": []}', "{}", None])
def test_a_wrong_file_is_refused(content, tmp_path):
    path = tmp_path / "p.json"
    if content is not None:
        path.write_text(content)
    with refused(path, kind=DataError, is_kept=content != "{"):
        read_per_class(path)


def test_prompts_in_another_encoding_are_refused(tmp_path):
    path = tmp_path / "p.json"
    path.write_bytes('{"cat": ["a caf\u00e9 cat"]}'.encode("cp1252"))
    with refused(path, kind=DataError) as caught:
        read_per_class(path)
    assert "WINDOWS-1252" in caught.value.problem


def test_a_template_without_a_place_for_the_class_is_refused():
    with refused("mine"):
        Prompts("mine", ("a {}",))


def test_every_choice_is_in_the_protocol():
    choices = [
        Prompts("p", ("{c}",)),
        Prompts("p", ("{c}", "a {c}")),
        Prompts("p", ("{c}",), text_cleaning="bigvision"),
        Prompts("p", per_class={"a": ("b",)}),
        Prompts("p", per_class={"a": ("c",)}),
    ]
    hashed = {json.dumps(prompts.protocol(), sort_keys=True) for prompts in choices}
    assert len(hashed) == len(choices)
