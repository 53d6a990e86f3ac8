"""The hash names what was measured: every field counts, key order does not, only JSON passes."""

import hashlib
import json
from dataclasses import fields, replace
from types import SimpleNamespace

import numpy as np
import pytest

from silc_bench.results.protocol import Protocol

BASE = Protocol(
    version=1,
    name="native",
    image={"size": 64, "resize": "squash", "mean": [0.5, 0.5, 0.5]},
    text={"length": 32, "clean": "canonical"},
    class_names={"count": 2, "sha256": "0" * 16},
    task={"templates": ["a {}", "the {}"], "l2": 1024.0},
    task_version=1,
    main_metric="acc1",
    feature_point="pooled",
    precision="fp32",
)


def test_hash_is_the_start_of_sha256_of_the_sorted_json():
    content = BASE.as_dict()
    stated = content.pop("hash")
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    assert content.keys() == {field.name for field in fields(Protocol)}
    assert BASE.hash == stated == hashlib.sha256(canonical.encode()).hexdigest()[:16]


@pytest.mark.parametrize("bad", [float("nan"), np.float32(1), {1, 2}])
def test_what_is_not_json_is_refused(bad):
    with pytest.raises(ValueError, match="plain JSON"):
        replace(BASE, image={"mean": bad})


@pytest.mark.parametrize("requires", [("image", "text"), ("image",), ("dense", "text")])
def test_of_takes_each_part_from_its_owner(requires):
    feature_point = "dense" if "dense" in requires else "pooled"
    has_text = "text" in requires
    model = SimpleNamespace(image_protocol=BASE.image, text_protocol=BASE.text)
    task = SimpleNamespace(
        requires=frozenset(requires), protocol=lambda: BASE.task, version=1, main_metric="acc1"
    )
    plain = replace(
        BASE, feature_point=feature_point, text=BASE.text if has_text else {}, class_names={}
    )
    assert Protocol.of(model, task, "fp32") == plain
    named = Protocol.of(model, task, "fp32", class_names=("cat", "dog"))
    sha256 = hashlib.sha256(b'["cat", "dog"]').hexdigest()[:16]
    assert named == replace(plain, class_names={"count": 2, "sha256": sha256} if has_text else {})
