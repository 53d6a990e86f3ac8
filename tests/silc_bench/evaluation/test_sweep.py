"""Several models, one after the other: one in memory at a time, and a failure stops no other."""

import weakref

import pytest
from given import Means, Noise, extractor
from refusals import refused
from torchvision.transforms.v2 import functional as tv

from silc_bench.datasets.public.find import NotFoundError
from silc_bench.errors import RunError, UserError
from silc_bench.evaluation.settings import EvalSettings
from silc_bench.evaluation.sweep import Checkpoint, sweep
from silc_bench.tasks.selection import select


def named(name, digit="0"):
    model = Means()
    model.name, model.revision = name, digit * 16
    return model


def failing(error):
    def load():
        raise error

    return load


def run(checkpoints, folder, tasks=("shapes/zeroshot", "shapes/knn"), data_root=None, **settings):
    return sweep(
        [Checkpoint(source, load) for source, load in checkpoints.items()],
        select(tasks),
        EvalSettings(device="cpu", limit=20, **settings),
        data_root=data_root,
        results_dir=folder,
    )


def test_one_model_is_in_memory_at_a_time(tmp_path, capsys):
    alive = []

    def load():
        assert not any(one() for one in alive), "the model before is gone"
        model = named(f"model {len(alive)}")
        alive.append(weakref.ref(model))
        if len(alive) == 2:
            raise UserError("is damaged", about="b", fix=f"bring another than {model.name}")
        return model

    found = run({"a": load, "b": load, "c": load}, tmp_path)
    assert len(alive) == 3
    assert [record.model.name for record in found.records] == ["model 0"] * 2 + ["model 2"] * 2
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("3 checkpoints, 40 images each: about ")
    assert [line.startswith("b failed") for line in said].count(True) == 1
    assert said[-1].startswith("2 of 3 checkpoints done, about ")


def test_images_that_keep_their_shape_are_timed_too():
    model = Means()
    data = Noise([(8, 8), (16, 8), (8, 24)])
    model.preprocess = lambda image: tv.pil_to_tensor(image).float()
    assert extractor(model).seconds_an_image(data) > 0
    assert model.batches == [1, 1, 1, 1], "the first is not counted"


def test_what_is_known_is_counted(tmp_path):
    assert run({"a": lambda: named("a")}, tmp_path).counts() == "2 measured"
    found = run({"a": lambda: named("a"), "b": lambda: named("b")}, tmp_path)
    assert found.counts() == "2 measured, 2 known before and not measured again"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (UserError("is damaged", about="b", fix="bring another"), UserError),
        (RunError("gives NaN", about="b", fix="train again"), RunError),
        (ZeroDivisionError("a defect"), RunError),
    ],
)
def test_a_model_that_fails_is_reported_at_the_end(tmp_path, error, kind):
    found = run({"a": lambda: named("a"), "b": failing(error), "c": failing(error)}, tmp_path)
    assert len(found.records) == 2
    reasons = set(found.failures.values())
    assert len(reasons) == 1
    assert reasons.pop().endswith(str(error))
    with refused(about="2 of 3 checkpoints failed", kind=kind) as caught:
        raise found.error(3)
    assert caught.value.problem.count(str(error)) == 1, "each reason is said once"


@pytest.mark.parametrize("error", [UserError("is damaged", about="a", fix="bring another")])
def test_the_error_of_an_only_model_is_its_own(tmp_path, error):
    with pytest.raises(UserError) as caught:
        run({"a": failing(error)}, tmp_path)
    assert caught.value is error


def test_data_that_is_missing_stops_all_before_the_second_is_loaded(tmp_path):
    later = []
    models = {"a": lambda: named("a"), "b": lambda: later.append(1)}
    with refused(about="cifar100", kind=NotFoundError):
        run(models, tmp_path, tasks=["cifar100/knn"], data_root=tmp_path)
    assert not later
