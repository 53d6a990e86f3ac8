"""The whole flow on a small fake model: what is measured, skipped, refused, saved."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from silc_bench.errors import RunError, UserError
from silc_bench.evaluation.evaluate import check_supported, evaluate
from silc_bench.results import outcomes
from silc_bench.results import record as results
from silc_bench.task import Scores
from silc_bench.tasks.selection import select


class CountingModel:
    """Mean colours as embeddings; counts the pictures and texts it is asked to encode."""

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


def run(model, patterns, results_dir, **options):
    defaults = {
        "model_source": "runs/counting",
        "data_root": None,
        "results_dir": results_dir,
        "limit": 40,
        "device": "cpu",
    }
    return evaluate(model, select(patterns), **{**defaults, **options})


def test_records_are_written_and_known_ones_are_not_measured_again(tmp_path):
    model, seen = CountingModel(), []
    first = run(
        model,
        ["shapes/zeroshot", "shapes/knn"],
        tmp_path,
        on_result=lambda record, is_new: seen.append(is_new),
    )
    assert [record.task.name for record in first] == ["shapes/knn", "shapes/zeroshot"]
    assert model.images == 80, "40 training and 40 test pictures, each once for both tasks"
    assert model.texts == 64 * 4
    assert all(record.limit == 40 and record.n == 40 for record in first)
    assert len(list(tmp_path.rglob("*.json"))) == 2

    again = CountingModel()
    second = run(
        again,
        ["shapes/zeroshot", "shapes/knn"],
        tmp_path,
        on_result=lambda record, is_new: seen.append(is_new),
    )
    assert second == first
    assert (again.images, again.texts) == (0, 0)
    assert seen == [True, True, False, False]


@pytest.mark.parametrize("change", [{"limit": 39}, {"precision": "bf16"}])
def test_another_limit_or_precision_is_another_measurement(tmp_path, change):
    run(CountingModel(), ["shapes/zeroshot"], tmp_path)
    model = CountingModel()
    run(model, ["shapes/zeroshot"], tmp_path, **change)
    assert model.images > 0


def test_existing_overwrite_and_error(tmp_path):
    (first,) = run(CountingModel(), ["shapes/zeroshot"], tmp_path)
    model = CountingModel()
    with pytest.raises(UserError, match=r"already measured.*shapes/zeroshot"):
        run(model, ["shapes/zeroshot", "shapes/knn"], tmp_path, existing="error")
    assert model.images == 0, "refused before any work"
    (second,) = run(model, ["shapes/zeroshot"], tmp_path, existing="overwrite")
    assert model.images == 40
    assert second.metrics == first.metrics
    assert len(list(tmp_path.rglob("*.json"))) == 1
    with pytest.raises(UserError, match="did you mean skip"):
        run(model, ["shapes/zeroshot"], tmp_path, existing="skp")


def test_what_the_probe_learned_from_is_part_of_the_key(tmp_path):
    from silc_bench.tasks.classification.knn import Knn
    from silc_bench.tasks.sources import shapes

    test, small, large = shapes("test", 30), shapes("train", 50), shapes("train", 60)
    records = [
        evaluate(
            CountingModel(),
            [Knn(name="shapes/knn", sources={"train": train, "test": test})],
            model_source="x",
            data_root=None,
            results_dir=tmp_path,
            device="cpu",
        )
        for train in (small, large)
    ]
    assert len(list(tmp_path.rglob("*.json"))) == 2
    (first,), (second,) = records
    assert first.dataset == second.dataset
    assert first.protocol["hash"] != second.protocol["hash"]


@pytest.mark.parametrize("task", ["shapes/zeroshot", "shapes/retrieval"])
def test_a_model_without_text_is_refused_by_name(task, tmp_path):
    with pytest.raises(
        UserError, match=f"{task} needs text features, which vision-only cannot give"
    ):
        check_supported(VisionModel(), *select([task]))


def test_a_model_without_dense_features_is_refused_before_any_work(tmp_path):
    model = CountingModel()
    with pytest.raises(UserError, match=r"needs dense features.*encode_dense"):
        run(model, ["shapes/zeroshot", "shapes/segmentation_linear"], tmp_path)
    assert model.images == 0
    assert not list(tmp_path.rglob("*.json"))


def test_missing_data_root_is_named_before_any_work(tmp_path):
    model = CountingModel()
    with pytest.raises(UserError, match="--data-root"):
        run(model, ["shapes/zeroshot", "cifar100/zeroshot"], tmp_path)
    assert model.images == 0


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"device": "gpu"}, "unknown device"),
        ({"precision": "fp16"}, "unknown precision"),
        ({"batch_size": 0}, "--batch-size"),
    ],
)
def test_bad_options(tmp_path, option, message):
    with pytest.raises(UserError, match=message):
        run(CountingModel(), ["shapes/zeroshot"], tmp_path, **option)


class Broken:
    """A task that fails while it is scored."""

    name, version, group, main_metric = "shapes/broken", 1, "zero-shot", "acc1"
    requires = frozenset({"image"})

    def __init__(self, load, outcome):
        self.load, self.outcome = load, outcome

    def protocol(self):
        return {}

    def score(self, features):
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


@pytest.mark.parametrize(
    ("outcome", "error", "says"),
    [
        (ZeroDivisionError("deep inside"), RunError, "ZeroDivisionError: deep inside"),
        (UserError("picture 7 is damaged"), UserError, "picture 7 is damaged"),
    ],
    ids=["a bug", "the input"],
)
def test_a_failing_task_costs_only_itself(tmp_path, outcome, error, says):
    (zeroshot,) = select(["shapes/zeroshot"])
    broken = Broken(zeroshot.load, outcome)
    with pytest.raises(error, match=rf"1 of 2 tasks failed - shapes/broken: {says}"):
        evaluate(
            CountingModel(),
            [broken, zeroshot],
            model_source="x",
            data_root=None,
            results_dir=tmp_path,
            limit=20,
            device="cpu",
        )
    (path,) = tmp_path.rglob("*.json")
    assert json.loads(path.read_text())["task"]["name"] == "shapes/zeroshot"


def test_what_each_sample_scored_lies_beside_the_record_and_comes_first(tmp_path, monkeypatch):
    (record,) = run(CountingModel(), ["shapes/zeroshot"], tmp_path)
    kept = outcomes.load(record, tmp_path)
    assert kept["acc1"].mean() == record.metrics["acc1"]
    assert len(kept["labels"]) == record.n
    (path,) = tmp_path.rglob("*.npz")
    assert path == outcomes.path_of(record, tmp_path)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(results, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        run(CountingModel(), ["shapes/knn"], tmp_path)
    assert [file.name.split(".")[0] for file in sorted(tmp_path.rglob("*.npz"))] == [
        "knn",
        "zeroshot",
    ]
    assert len(list(tmp_path.rglob("*.json"))) == 1, "no record without its samples"


def test_samples_that_do_not_give_the_score_cost_only_their_task(tmp_path):
    (zeroshot,) = select(["shapes/zeroshot"])
    wrong = Scores({"acc1": 0.5}, {}, n=20, chance=0.5, outcomes={"acc1": np.zeros(20, bool)})
    with pytest.raises(
        RunError, match=r"shapes/broken: .*acc1 is 0.000000 by them and 0.500000 by the record"
    ):
        evaluate(
            CountingModel(),
            [Broken(zeroshot.load, wrong), zeroshot],
            model_source="x",
            data_root=None,
            results_dir=tmp_path,
            limit=20,
            device="cpu",
        )
    assert [path.name.split(".")[0] for path in tmp_path.rglob("*.npz")] == ["zeroshot"]


def test_a_score_that_is_not_a_number_is_not_written(tmp_path):
    (zeroshot,) = select(["shapes/zeroshot"])
    broken = Broken(zeroshot.load, Scores({"acc1": float("nan")}, {}, n=1, chance=0.5))
    with pytest.raises(UserError, match="shapes/broken"):
        evaluate(
            CountingModel(),
            [broken],
            model_source="x",
            data_root=None,
            results_dir=tmp_path,
            limit=20,
            device="cpu",
        )
    assert not list(tmp_path.rglob("*.json"))


def test_features_that_are_not_finite_name_the_model_and_the_image(tmp_path):
    class Diverged(CountingModel):
        def encode_image(self, images, point="pooled"):
            features = super().encode_image(images)
            if self.images > 16:
                features[3] = torch.nan
            return features

    with pytest.raises(
        RunError, match=r"runs/counting:student .*not finite for picture 19 of shapes/test"
    ):
        run(Diverged(), ["shapes/zeroshot"], tmp_path, batch_size=16)


def test_interruption_is_not_swallowed(tmp_path):
    class Interrupted(CountingModel):
        def encode_image(self, images, point="pooled"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(Interrupted(), ["shapes/zeroshot"], tmp_path)
