"""`silc-bench compare` on made-up records: who with whom, what is said, how often it is wrong."""

from __future__ import annotations

import csv
import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from silc_bench.cli import app as cli
from silc_bench.metrics import iou as metrics
from silc_bench.metrics import statistics as stats
from silc_bench.reports import compare
from silc_bench.reports import compare_report as compare_files
from silc_bench.results import outcomes
from silc_bench.results.protocol import Protocol
from silc_bench.results.record import Record, save
from silc_bench.task import Scores

pytestmark = pytest.mark.broad

N = 400


def put(
    folder,
    model,
    arrays,
    values,
    task="made/zeroshot",
    *,
    revision=None,
    limit=None,
    version=1,
    fingerprint="0" * 16,
    n=N,
    group="zero-shot",
    **protocol,
):
    """Write a made-up record of the first metric in ``values``.

    And, unless ``arrays`` is empty, its outcomes.
    """
    image = {"size": 64, **protocol}
    measured = SimpleNamespace(
        name=model,
        revision=revision or f"{sum(model.encode()):016x}"[::-1],
        num_params=7,
        image_size=64,
        image_protocol=image,
        text_protocol={},
    )
    task = SimpleNamespace(
        name=task,
        version=version,
        group=group,
        main_metric=next(iter(values)),
        requires=frozenset(),
        protocol=dict,
    )
    data = SimpleNamespace(name=task.name.split("/")[0], split="test", fingerprint=fingerprint)
    scores = Scores({name: float(value) for name, value in values.items()}, {}, n, chance=0.1)
    record = Record.create(
        measured,
        task,
        data,
        scores,
        Protocol.of(measured, task, "fp32"),
        model_source="x",
        device="cpu",
        limit=limit,
        seconds=1,
    )
    outcomes.save(outcomes.pack(arrays, record), record, folder)
    save(record, folder)
    return record


def put_hits(folder, model, hits, task="made/zeroshot", **more):
    return put(folder, model, {"acc1": hits}, {"acc1": hits.mean()}, task, n=len(hits), **more)


def hits_of(rate, seed=0, n=N):
    """Nested: a better model hits all that a worse one hits, and more."""
    return np.random.default_rng(seed).random(n) < rate


def call(*args):
    result = CliRunner().invoke(
        cli.app, ["compare", *(str(arg) for arg in args)], env={"COLUMNS": "200"}
    )
    return result.exit_code, result.stdout, result.stderr


def said(*args):
    code, out, err = call(*args)
    assert code == 0, err
    return out


def refusal(*args):
    code, out, err = call(*args)
    assert code == 2
    assert not out
    assert err.startswith("error: ")
    assert "Traceback" not in err
    return err


def test_one_sentence_a_task(tmp_path):
    a, b = hits_of(0.5), hits_of(0.6)
    put_hits(tmp_path, "a", a)
    put_hits(tmp_path, "b", b)
    put_hits(tmp_path, "a", a, "other/zeroshot")
    put_hits(tmp_path, "b", np.roll(a, 1), "other/zeroshot")
    put_hits(tmp_path, "a", b, "third/zeroshot")
    put_hits(tmp_path, "b", a, "third/zeroshot")
    points = 100 * (b.mean() - a.mean())
    lines = said("a", "b", "--results", tmp_path).splitlines()
    assert lines[0].startswith(f"b is better on made/zeroshot, +{points:.2f} ± ")
    assert lines[0].endswith(" points, p < 0.0001 after Holm over 3 tests")
    assert lines[1].startswith("no difference of b can be shown on other/zeroshot, +0.00 ± ")
    assert lines[2].startswith(f"b is worse on third/zeroshot, -{points:.2f} ± ")
    swapped = said("b", "a", "--results", tmp_path).splitlines()
    assert swapped[0].startswith(f"a is worse on made/zeroshot, -{points:.2f} ± ")
    chosen = [
        result.task for result in compare.compare(tmp_path, ["a", "b"], ["oth*/*", "third"]).results
    ]
    assert chosen == ["other/zeroshot", "third/zeroshot"]
    assert "after Holm over 2 tests" in said(
        "a", "b", "--results", tmp_path, "--tasks", "oth*/*, third"
    )


def test_identical_models_do_not_differ(tmp_path):
    hits = hits_of(0.5)
    for model in ("a", "b"):
        put_hits(tmp_path, model, hits)
    (result,) = compare.compare(tmp_path, ["a", "b"]).results
    assert (result.paired.difference, result.paired.stderr, result.paired.p, result.p_holm) == (
        0,
        0,
        1,
        1,
    )
    line = said("a", "b", "--results", tmp_path).splitlines()[0]
    assert line == "no difference of b can be shown on made/zeroshot, +0.00 ± 0.00 points, p 1"


def test_the_first_model_is_the_baseline_of_all_others(tmp_path):
    for model, rate in (("a", 0.5), ("b", 0.6), ("c", 0.4)):
        put_hits(tmp_path, model, hits_of(rate))
    found = compare.compare(tmp_path, ["a", "b", "c"])
    assert [(result.model, result.verdict) for result in found.results] == [
        ("b", "better"),
        ("c", "worse"),
    ]
    pair = [compare.compare(tmp_path, ["a", other]).results[0].paired for other in "bc"]
    assert [result.paired for result in found.results] == pair
    assert [result.p_holm for result in found.results] == stats.holm(
        [test.p for test in pair]
    ).tolist()


# ---- each kind of outcome ----


def retrieval(text, image, picture):
    arrays = {
        "text_retrieval_rank": text,
        "image_retrieval_rank": image,
        "image_retrieval_picture": picture,
    }
    return arrays, {
        "text_retrieval_recall@1": (text < 1).mean(),
        "image_retrieval_recall@1": (image < 1).mean(),
    }


def test_captions_of_an_image_move_together(tmp_path):
    rng = np.random.default_rng(1)
    picture = np.repeat(np.arange(N), 5)
    together = [np.repeat(rng.random(N) < rate, 5) for rate in (0.5, 0.55)]
    for model, hits in zip("ab", together, strict=True):
        put(
            tmp_path,
            model,
            *retrieval(rng.integers(0, 3, N), np.where(hits, 0, 7), picture),
            "made/retrieval",
        )
    main, other = compare.compare(tmp_path, ["a", "b"]).results
    assert (main.metric, main.paired.test, main.is_main) == (
        "text_retrieval_recall@1",
        "mcnemar",
        True,
    )
    assert (other.metric, other.paired.test, other.is_main) == (
        "image_retrieval_recall@1",
        "bootstrap",
        False,
    )
    one = np.stack(together, axis=1)[::5].astype(int)
    assert other.paired.stderr == pytest.approx(
        np.std(one[:, 1] - one[:, 0]) / np.sqrt(N), rel=0.05
    ), "not less by sqrt(5)"
    assert "on made/retrieval (image_retrieval_recall@1)" in said("a", "b", "--results", tmp_path)


def test_areas_and_draws_of_shots(tmp_path):
    rng = np.random.default_rng(2)
    truth = rng.integers(50, 100, (N, 5))
    for model, share in (("a", 0.5), ("b", 0.55)):
        inside = rng.binomial(truth, share)
        areas = np.stack([inside, inside + rng.integers(0, 30, (N, 5)), truth], axis=1)
        put(
            tmp_path,
            model,
            {"areas": areas},
            {"mIoU": metrics.mean_iou(areas.sum(axis=0))},
            "made/segmentation",
        )
        hits = rng.random((N, 3)) < share
        put(tmp_path, model, {"acc1_10shot": hits}, {"acc1_10shot": hits.mean()}, "made/fewshot")
    fewshot, segmentation = compare.compare(tmp_path, ["a", "b"]).results
    assert (fewshot.paired.test, segmentation.paired.test) == ("bootstrap", "bootstrap")
    assert segmentation.verdict == "better"
    assert segmentation.paired.difference == pytest.approx(
        segmentation.value - segmentation.baseline_value, abs=1e-12
    )
    kept = [
        outcomes.load(record, tmp_path)["acc1_10shot"]
        for record in records_of(tmp_path, "made/fewshot")
    ]
    per_image = (kept[1].mean(axis=1) - kept[0].mean(axis=1)).var() / N
    draws = np.var(kept[1].mean(axis=0) - kept[0].mean(axis=0), ddof=1) / 3
    assert fewshot.paired.stderr == pytest.approx(np.sqrt(per_image + draws), rel=0.05)


def records_of(folder, task):
    from silc_bench.results.record import load_all

    return [record for record in load_all(folder) if record.task.name == task]


def test_rare_classes_weigh_as_much_as_common_ones(tmp_path):
    labels = np.repeat([0, 1], [300, 100])
    a, b = labels == 0, hits_of(0.5)
    for model, hits in (("a", a), ("b", b)):
        value = np.mean([hits[labels == label].mean() for label in (0, 1)])
        arrays = {"acc1": hits, "labels": labels}
        put(tmp_path, model, arrays, {"mean_per_class_recall": value, "acc1": hits.mean()})
    (result,) = compare.compare(tmp_path, ["a", "b"]).results
    assert result.paired.difference == pytest.approx(
        np.mean([b[labels == label].mean() for label in (0, 1)]) - 0.5
    )
    assert result.paired.test == "bootstrap"


def test_the_order_of_samples_does_not_matter():
    rng = np.random.default_rng(3)
    areas, image = rng.integers(1, 50, (2, 60, 3, 4)), rng.integers(0, 3, (2, 60, 2))
    found = []
    for chosen in (np.arange(60), rng.permutation(60)):
        asked_by = {"image_retrieval_picture": np.repeat(np.arange(60), 2)}
        queries = [{"image_retrieval_rank": ranks[chosen].ravel(), **asked_by} for ranks in image]
        images = [{"areas": part[chosen]} for part in areas]
        for metric, arrays in (("mIoU", images), ("image_retrieval_recall@1", queries)):
            found.append(compare.paired(*(outcomes.per_image(part, metric) for part in arrays)))
    assert found[:2] == found[2:]


# ---- how often it is wrong ----


def test_equal_models_are_told_apart_in_five_of_a_hundred_reports(monkeypatch):
    """Four tasks of every kind, two equally good models: any difference claimed is false."""
    monkeypatch.setattr(stats, "PAIRED_RESAMPLES", 300)
    rng = np.random.default_rng(4)
    picture, easy, false, single = np.repeat(np.arange(80), 5), rng.random(80), 0, []
    for _ in range(300):
        draw = {
            "acc1": lambda: {"acc1": rng.random(80) < easy},
            "acc1_5shot": lambda: {"acc1_5shot": rng.random((80, 3)) < easy[:, None]},
            "image_retrieval_recall@1": lambda: {
                "image_retrieval_rank": (rng.random(400) < rng.beta(1, 1, 80)[picture]).astype(int),
                "image_retrieval_picture": picture,
            },
            "pixel_accuracy": lambda: {
                "areas": np.stack(
                    [rng.binomial(30, rng.beta(2, 2, (80, 2))), *np.full((2, 80, 2), 30)], axis=1
                )
            },
        }
        p = [
            compare.paired(*(outcomes.per_image(arrays(), metric) for _ in "ab")).p
            for metric, arrays in draw.items()
        ]
        single.append([value < 0.05 for value in p])
        false += min(stats.holm(p)) < compare.ALPHA
    assert false / 300 <= 0.08, "0.05 within 2.4 standard errors of this simulation"
    rates = np.mean(single, axis=0)
    assert all(0.02 <= rate <= 0.09 for rate in rates[2:]), rates
    assert all(rate <= 0.08 for rate in rates[:2]), "McNemar and three draws err on the safe side"


# ---- what is not compared, and why ----


def reasons(folder, *names, **options):
    return [
        f"{left.task}: {left.reason}"
        for left in compare.compare(folder, names or ["a", "b"], **options).omissions
    ]


def test_every_task_is_compared_or_has_a_reason(tmp_path):
    hits = hits_of(0.5)
    for model in "ab":
        put_hits(tmp_path, model, hits)
    put_hits(tmp_path, "a", hits, "only/zeroshot")
    put_hits(tmp_path, "a", hits, "size/zeroshot", size=224)
    put_hits(tmp_path, "b", hits, "size/zeroshot", size=64, crop="none")
    put_hits(tmp_path, "a", hits, "data/zeroshot", fingerprint="1" * 16)
    put_hits(tmp_path, "b", hits, "data/zeroshot", fingerprint="2" * 16)
    put_hits(tmp_path, "a", hits, "version/zeroshot", version=1)
    put_hits(tmp_path, "b", hits, "version/zeroshot", version=2)
    put_hits(tmp_path, "a", hits, "limit/zeroshot", limit=N)
    put_hits(tmp_path, "b", hits, "limit/zeroshot")
    put(tmp_path, "a", {}, {"acc1": 0.5}, "old/zeroshot")
    put_hits(tmp_path, "b", hits, "old/zeroshot")
    for model in "ab":
        put(tmp_path, model, {"acc1": hits}, {"map": 0.5, "acc1": hits.mean()}, "strange/zeroshot")
    found = reasons(tmp_path)
    assert found[0] == "data/zeroshot: not measured alike: data is 11111111 against 22222222"
    assert (
        found[1]
        == "limit/zeroshot: not measured alike: limit is 400 pictures against the whole split"
    )
    assert found[2].startswith(
        "old/zeroshot: a kept no outcomes of single pictures (`silc-bench eval --existing "
        "overwrite`"
    )
    assert found[3].startswith("only/zeroshot: only a has measured it (protocol native ")
    assert found[4] == (
        "size/zeroshot: not measured alike: image.size is 224 against 64; "
        'image.crop is nothing against "none"'
    )
    assert found[5] == "strange/zeroshot: the outcomes do not say what each picture adds to map"
    assert found[6] == "version/zeroshot: not measured alike: task_version is 1 against 2"
    assert len(found) == 7
    out = said("a", "b", "--results", tmp_path)
    assert all(f"not compared: {reason}" in out for reason in found)


def test_different_protocols_are_paired_only_when_asked_and_then_marked(tmp_path):
    put_hits(tmp_path, "a", hits_of(0.5), size=64)
    put_hits(tmp_path, "b", hits_of(0.6), size=224)
    code, out, err = call("a", "b", "--results", tmp_path)
    assert code == 2
    assert out == "not compared: made/zeroshot: not measured alike: image.size is 64 against 224\n"
    assert "no task was compared" in err
    out = said("a", "b", "--results", tmp_path, "--across-protocols")
    assert out.startswith("b is better on made/zeroshot, ")
    assert "[protocols differ: native " in out.splitlines()[0]
    # now a has two, and which one is meant is not ours to guess
    put_hits(tmp_path, "a", hits_of(0.5), size=128)
    assert len(reasons(tmp_path, across_protocols=True)) == 2
    put_hits(tmp_path, "b", hits_of(0.6), size=128)
    assert len(reasons(tmp_path, across_protocols=True)) == 0


def test_whole_runs_go_before_limited_ones_and_limited_ones_are_marked(tmp_path):
    for model, rate in (("a", 0.5), ("b", 0.6)):
        put_hits(tmp_path, model, hits_of(rate, n=50), limit=50, fingerprint="1" * 16)
    line = said("a", "b", "--results", tmp_path).splitlines()[0]
    assert line.endswith("[limited to 50 pictures]")
    for model, rate in (("a", 0.5), ("b", 0.6)):
        put_hits(tmp_path, model, hits_of(rate))
        put_hits(tmp_path, model, hits_of(rate), version=2)
    found = compare.compare(tmp_path, ["a", "b"])
    assert [(result.n, result.limit) for result in found.results] == [(N, None)]
    assert sorted(left.reason for left in found.omissions) == [
        (
            "task version 1 on 50 pictures: left out, as task version 2 on the whole split was "
            "compared"
        ),
        (
            "task version 1 on the whole split: left out, as task version 2 on the whole split "
            "was compared"
        ),
    ]


# ---- mistakes ----


def test_names(tmp_path):
    for revision in ("1234567890abcdef", "fedcba9876543210"):
        put_hits(tmp_path, "run-silc:student", hits_of(0.5), revision=revision)
    put_hits(tmp_path, "run-contrastive:student", hits_of(0.6))
    put_hits(tmp_path, "hf:org/name@main", hits_of(0.6))
    here = ("--results", tmp_path)
    assert "did you mean run-contrastive:student" in refusal(
        "run-contrastve:student", "run-silc:student", *here
    )
    several = refusal("run-contrastive:student", "run-silc:student", *here)
    assert "run-silc:student@12345678, run-silc:student@fedcba98" in several
    assert "did you mean run-silc:student@12345678" in refusal(
        "run-silc:student@1234567f", "run-contrastive:student", *here
    )
    out = said("run-silc:student@12345678", "run-silc:student@fedcba98", "hf:org/name@main", *here)
    assert "no difference of run-silc:student@fedcba98 can be shown" in out
    assert "hf:org/name@main is better" in out
    assert "a model was named twice" in refusal(
        "run-silc:student@12345678", "run-silc:student@1234", *here
    )
    assert "two models or more" in refusal("run-contrastive:student", *here)
    assert "did you mean zeroshot" in refusal(
        "hf:org/name@main", "run-contrastive:student", "--tasks", "zershot", *here
    )


def test_folders_without_records(tmp_path):
    assert "no results folder" in refusal("a", "b", "--results", tmp_path / "missing")
    assert "no records in" in refusal("a", "b", "--results", tmp_path)
    put_hits(tmp_path, "a", hits_of(0.5))
    put_hits(tmp_path, "b", hits_of(0.5))
    (tmp_path / "file").write_text("")
    assert "not a folder" in refusal("a", "b", "--results", tmp_path, "--out", tmp_path / "file")
    assert "every JSON file is a record" in refusal(
        "a", "b", "--results", tmp_path, "--out", tmp_path / "a" / "b"
    )


def test_damaged_outcomes_are_named(tmp_path):
    put_hits(tmp_path, "a", hits_of(0.5))
    record = put_hits(tmp_path, "b", hits_of(0.5))
    path = outcomes.path_of(record, tmp_path)
    path.write_bytes(path.read_bytes()[:-30])
    assert str(path) in refusal("a", "b", "--results", tmp_path)


@pytest.mark.parametrize("change", ["labels", "draws"])
def test_outcomes_of_other_samples_are_refused(tmp_path, change):
    hits = np.tile([True, False], N // 2)
    if change == "labels":
        first, second = (
            {"acc1": hits, "labels": labels} for labels in (np.arange(N) % 4, np.arange(N) % 3)
        )
    else:
        first, second = {"acc1": np.stack([hits, hits], 1)}, {"acc1": np.stack([hits] * 3, 1)}
    put(tmp_path, "a", first, {"acc1": 0.5})
    put(tmp_path, "b", second, {"acc1": 0.5})
    message = refusal("a", "b", "--results", tmp_path)
    assert "though both say the same data" in message
    assert message.count("outcomes.npz") == 2


def test_other_samples_under_another_protocol_are_a_reason_not_an_error(tmp_path):
    put(tmp_path, "a", {"acc1": np.ones((N, 2), bool)}, {"acc1": 1.0}, size=32)
    put(tmp_path, "b", {"acc1": np.ones((N, 3), bool)}, {"acc1": 1.0}, size=64)
    assert (
        "the protocols differ, and so do the samples" in reasons(tmp_path, across_protocols=True)[0]
    )


# ---- files ----

HOSTILE = "x|<b>`[a](b)*"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder, written = tmp_path_factory.mktemp("records"), tmp_path_factory.mktemp("report") / "new"
    for model, rate in (("a", 0.5), (HOSTILE, 0.6), ("c", 0.5)):
        put_hits(folder, model, hits_of(rate))
        put_hits(folder, model, hits_of(rate + 0.01, seed=1), "second/zeroshot")
    put_hits(folder, "a", hits_of(0.5), "only/zeroshot")
    out = said("a", HOSTILE, "c", "--results", folder, "--out", written)
    return out, written, compare.compare(folder, ["a", HOSTILE, "c"])


def test_files_say_what_the_terminal_says(report):
    out, folder, found = report
    assert [
        f"wrote {folder / f'compare.{ending}'}" for ending in ("md", "csv", "json", "png")
    ] == out.splitlines()[-4:]
    assert sorted(path.name for path in folder.iterdir()) == [
        "compare.csv",
        "compare.json",
        "compare.md",
        "compare.png",
    ]
    data = json.loads((folder / "compare.json").read_text(encoding="utf-8"))
    assert (data["schema"], data["baseline"], data["models"], data["num_tests"]) == (
        "compare/1",
        "a",
        [HOSTILE, "c"],
        4,
    )
    assert [row["difference"] for row in data["results"]] == [
        result.paired.difference for result in found.results
    ]
    assert data["not_compared"][0]["task"] == "only/zeroshot"
    rows = list(csv.DictReader(io.StringIO((folder / "compare.csv").read_text(encoding="utf-8"))))
    assert len(rows) == len(found.results) + len(found.omissions) == 6
    assert [float(row["p_holm"]) for row in rows[:4]] == [result.p_holm for result in found.results]
    assert [row["verdict"] for row in rows] == [
        "better",
        "better",
        "no difference",
        "no difference",
        *["not compared"] * 2,
    ]
    text = (folder / "compare.md").read_text(encoding="utf-8")
    assert "<b>" not in text
    assert text.count("can be shown on") == 2
    assert "only/zeroshot" in text
    for sentence in compare_files.sentences(found):
        assert sentence in out
    with Image.open(folder / "compare.png") as picture:
        picture.load()
        assert picture.height > 6 * 26
        colors = {color for _, color in picture.getcolors(1 << 20)}
    assert {(0, 114, 178), (120, 120, 120)} <= colors


def test_equal_comparisons_give_equal_bytes(report, tmp_path):
    _, folder, found = report
    for path in compare_files.write(found, tmp_path):
        assert path.read_bytes() == (folder / path.name).read_bytes()
