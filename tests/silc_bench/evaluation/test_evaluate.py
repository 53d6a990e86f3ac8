"""The whole flow on a small fake model: what is measured, skipped, refused, saved."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from given import measured
from refusals import refused

from silc_bench.errors import RunError, UserError
from silc_bench.evaluation.evaluate import check_supported
from silc_bench.results import outcomes
from silc_bench.results import record as results
from silc_bench.results.record import load_all
from silc_bench.task import Scores, Task
from silc_bench.tasks.classification.knn import Knn
from silc_bench.tasks.selection import select
from silc_bench.tasks.sources import shapes


class CountingModel:
    """Mean colours as embeddings; counts the images and texts it is asked to encode."""

    name, revision = "runs/counting:student", "0123456789abcdef"
    embed_dim, image_size, num_params, logit_scale, logit_bias = 3, 64, 7, 1.0, 0.0

    def __init__(self):
        self.feature_points = {"pooled": 3}
        self.image_protocol, self.text_protocol = {"resize": "none"}, {"cleaning": "none"}
        self.images = self.texts = 0

    def preprocess(self, image):
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255

    def tokenize(self, texts):
        return torch.tensor([[len(text), text.count("e"), 1] for text in texts])

    def encode_image(self, images, point="pooled"):
        self.images += len(images)
        return images.mean(dim=(2, 3)) - 0.5

    def encode_text(self, tokens):
        self.texts += len(tokens)
        return tokens.float() - 5

    def to(self, device):
        return self


class VisionModel:
    name, feature_points = "vision-only", {"pooled": 3}
    preprocess = encode_image = staticmethod(lambda images: images)


def run(model, patterns, folder, **settings):
    return measured(model, select(patterns), folder, **{"limit": 40, **settings})


def names_in(folder, ending):
    return sorted(path.name.split(".")[0] for path in folder.rglob(f"*.{ending}"))


def test_records_are_written_and_known_ones_are_not_measured_again(tmp_path):
    tasks = ["shapes/zeroshot", "shapes/knn"]
    first_model, again, seen = CountingModel(), CountingModel(), []
    first, second = (
        run(model, tasks, tmp_path, on_result=lambda record, is_new: seen.append(is_new))
        for model in (first_model, again)
    )
    assert [record.task.name for record in first] == ["shapes/knn", "shapes/zeroshot"]
    assert first_model.images == 80, "40 training and 40 test images, each once for both tasks"
    assert first_model.texts == 64 * 4
    assert all(record.limit == 40 and record.n == 40 for record in first)
    assert names_in(tmp_path, "json") == ["knn", "zeroshot"]
    assert second == first
    assert (again.images, again.texts) == (0, 0)
    assert seen == [True, True, False, False]


@pytest.mark.parametrize("change", [{"limit": 39}, {"precision": "bf16"}])
def test_another_limit_or_precision_is_another_measurement(tmp_path, change):
    for settings in ({}, change):
        run(CountingModel(), ["shapes/zeroshot"], tmp_path, **settings)
    assert names_in(tmp_path, "json") == ["zeroshot", "zeroshot"]


def test_existing_overwrite_and_error(tmp_path):
    (first,) = run(CountingModel(), ["shapes/zeroshot"], tmp_path)
    model = CountingModel()
    with refused(tmp_path):
        run(model, ["shapes/zeroshot", "shapes/knn"], tmp_path, existing="error")
    assert model.images == 0, "refused before any work"
    (second,) = run(model, ["shapes/zeroshot"], tmp_path, existing="overwrite")
    assert model.images == 40
    assert second.metrics == first.metrics
    assert names_in(tmp_path, "json") == ["zeroshot"]


def test_what_the_probe_learned_from_is_part_of_the_key(tmp_path):
    first, second = (
        measured(CountingModel(), [Knn(name="shapes/knn", sources=sources)], tmp_path)[0]
        for sources in (
            {"train": shapes("train", count), "test": shapes("test", 30)} for count in (50, 60)
        )
    )
    assert len(load_all(tmp_path)) == 2
    assert first.dataset == second.dataset


@pytest.mark.parametrize(
    ("tasks", "settings", "about"),
    [
        ("shapes/segmentation_linear", {}, "shapes/segmentation_linear"),
        ("cifar100/zeroshot", {}, "cifar100"),
        ("shapes/knn", {"device": "gpu"}, "--device"),
        ("shapes/knn", {"precision": "fp16"}, "--precision"),
        ("shapes/knn", {"batch_size": 0}, "--batch-size"),
        ("shapes/knn", {"existing": "skp"}, "--existing"),
        ("shapes/knn", {"feature_point": "poold"}, "runs/counting:student"),
        ("shapes/knn", {"feature_point": "mean_patch"}, "runs/counting:student"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_any_work(tmp_path, tasks, settings, about):
    model = CountingModel()
    with refused(about) if "cifar" not in tasks else pytest.raises(UserError, match="--data-root"):
        run(model, ["shapes/zeroshot", tasks], tmp_path, **settings)
    assert model.images == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("task", ["shapes/zeroshot", "shapes/retrieval"])
def test_a_model_without_text_is_refused_by_task(task):
    with refused(task):
        check_supported(VisionModel(), *select([task]))


def test_text_is_compared_at_the_pooled_feature_point_alone():
    model = CountingModel()
    model.feature_points = {"pooled": 3, "mean_patch": 3}
    check_supported(model, *select(["shapes/knn"]), "mean_patch")
    with refused("shapes/zeroshot"):
        check_supported(model, *select(["shapes/zeroshot"]), "mean_patch")


class Broken(Task):
    """A task that fails while it is scored, or gives ``outcome``."""

    name, version, group, main_metric = "shapes/broken", 1, "zero-shot", "acc1"
    requires = frozenset({"image"})

    def __init__(self, outcome):
        self.load = select(["shapes/zeroshot"])[0].load
        self.outcome = outcome

    def protocol(self):
        return {}

    def score(self, features):
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


WRONG = Scores({"acc1": 0.5}, {}, n=20, chance=0.5, outcomes={"acc1": np.zeros(20, bool)})


@pytest.mark.parametrize(
    ("outcome", "kind", "says"),
    [
        (ZeroDivisionError("deep inside"), RunError, "ZeroDivisionError: deep inside"),
        (UserError("image 7 is damaged"), UserError, "image 7 is damaged"),
        (WRONG, RunError, "acc1 is 0.000000"),
        (Scores({"acc1": float("nan")}, {}, n=1, chance=0.5), UserError, "acc1"),
    ],
    ids=["a bug", "the input", "samples that do not give the score", "no number"],
)
def test_a_failing_task_costs_only_itself(tmp_path, outcome, kind, says):
    is_ours = not isinstance(outcome, Scores)  # else jsonschema says what is wrong
    with refused("1 of 2 tasks", kind=kind, is_kept=is_ours) as caught:
        tasks = [Broken(outcome), *select(["shapes/zeroshot"])]
        measured(CountingModel(), tasks, tmp_path, limit=20)
    assert "shapes/broken" in caught.value.problem
    assert says in caught.value.problem
    assert names_in(tmp_path, "json") == names_in(tmp_path, "npz") == ["zeroshot"]


def test_interruption_is_not_swallowed(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        measured(CountingModel(), [Broken(KeyboardInterrupt())], tmp_path, limit=20)


def test_what_each_sample_scored_lies_beside_the_record_and_comes_first(tmp_path, monkeypatch):
    (record,) = run(CountingModel(), ["shapes/zeroshot"], tmp_path)
    kept = outcomes.load(record, tmp_path)
    assert kept["acc1"].mean() == record.metrics["acc1"]
    assert list(tmp_path.rglob("*.npz")) == [outcomes.path_of(record, tmp_path)]

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(results, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        run(CountingModel(), ["shapes/knn"], tmp_path)
    assert names_in(tmp_path, "npz") == ["knn", "zeroshot"]
    assert names_in(tmp_path, "json") == ["zeroshot"], "no record without its samples"


def test_features_that_are_not_finite_name_the_model_and_the_image(tmp_path):
    class Diverged(CountingModel):
        def encode_image(self, images, point="pooled"):
            features = super().encode_image(images)
            if self.images > 16:
                features[3] = torch.nan
            return features

    with refused("1 of 1", kind=RunError) as caught:
        run(Diverged(), ["shapes/zeroshot"], tmp_path, batch_size=16)
    assert "runs/counting:student" in caught.value.problem
    assert "image 19 of shapes/test" in caught.value.problem
