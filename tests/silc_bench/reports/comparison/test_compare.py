"""`silc-bench compare` on made-up records: who with whom, what it says, how often it is wrong."""

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from commands import call, error_of, fail, succeed
from hostile import HOSTILE_NAMES, cells
from made import N, put, trained
from PIL import Image
from rich.console import Console

from silc_bench.metrics import iou as metrics
from silc_bench.metrics import statistics as stats
from silc_bench.models.interface import Training
from silc_bench.reports.comparison import compare, pairing
from silc_bench.reports.comparison import report as reports
from silc_bench.reports.forms import forest_plot
from silc_bench.reports.leaderboard import build
from silc_bench.reports.view import View
from silc_bench.results import outcomes

pytestmark = pytest.mark.broad


def put_hits(folder, model, hits, task="made/zeroshot", **more):
    return put(folder, model, hits.mean(), task, arrays={"acc1": hits}, n=len(hits), **more)


def hits_of(rate, seed=0, n=N):
    """Nested: a better model hits all that a worse one hits, and more."""
    return np.random.default_rng(seed).random(n) < rate


def lines_of(folder, words="a b"):
    return succeed(f"compare {words} --results {folder}").splitlines()


def results_of(folder, names="ab", *tasks):
    return compare.compare(folder, list(names), tasks).results


def test_one_sentence_a_task(tmp_path):
    a, b = hits_of(0.5), hits_of(0.6)
    for task, first, second in (("made", a, b), ("other", a, np.roll(a, 1)), ("third", b, a)):
        put_hits(tmp_path, "a", first, f"{task}/zeroshot")
        put_hits(tmp_path, "b", second, f"{task}/zeroshot")
    points = f"{100 * (b.mean() - a.mean()):.2f} ± "
    better, same, worse = lines_of(tmp_path)[:3]
    assert better.startswith(f"b is better on made/zeroshot, +{points}")
    assert better.endswith("p < 0.0001 after Holm over 3 tests")
    assert same.startswith("no difference of b can be shown on other/zeroshot, +0.00 ± ")
    assert worse.startswith(f"b is worse on third/zeroshot, -{points}")
    assert lines_of(tmp_path, "b a")[0].startswith(f"a is worse on made/zeroshot, -{points}")
    first, second, *_ = lines_of(tmp_path, "a b --tasks 'oth*/*, third'")
    assert "on other/zeroshot" in first
    assert "after Holm over 2 tests" in first
    assert "on third/zeroshot" in second


def test_identical_models_do_not_differ(tmp_path):
    for model in "ab":
        put_hits(tmp_path, model, hits_of(0.5))
    first, *rest = lines_of(tmp_path)
    assert first.endswith("+0.00 ± 0.00 points, p 1")
    assert "over 1 test." in " ".join(rest)


def test_the_first_model_is_the_baseline_of_all_others(tmp_path):
    for model, rate in (("a", 0.5), ("b", 0.6), ("c", 0.4)):
        put_hits(tmp_path, model, hits_of(rate))
    results = results_of(tmp_path, "abc")
    verdicts = [(result.baseline, result.model, result.verdict) for result in results]
    assert verdicts == [("a", "b", "better"), ("a", "c", "worse"), ("b", "c", "worse")]
    alone = [results_of(tmp_path, names)[0].paired for names in ("ab", "ac", "bc")]
    assert [result.paired for result in results] == alone
    assert [result.p_holm for result in results] == stats.holm([pair.p for pair in alone]).tolist()
    matrix = reports.matrix(compare.compare(tmp_path, ["a", "b", "c"]))
    assert matrix == [
        ["a", "", "+0 -1 =0", "+1 -0 =0"],
        ["b", "+1 -0 =0", "", "+1 -0 =0"],
        ["c", "+0 -1 =0", "+0 -1 =0", ""],
    ]
    assert reports.matrix(compare.compare(tmp_path, ["a", "b"])) == []


# ---- several seeds ----

METHODS = {"contrastive": [0.50, 0.52, 0.48, 0.51], "silc": [0.53, 0.56, 0.50, 0.54]}


def put_seeds(folder, methods=METHODS):
    for objective, values in methods.items():
        for seed, value in enumerate(values):
            training = Training("tiny", objective, "student", "shapes", seed, 10, "1" * 16)
            put(folder, f"{objective}{seed}", value, training=training)


def test_seeds_of_a_method_are_one_side(tmp_path):
    put_seeds(tmp_path)
    names = ["contrastive0", "tiny-silc:student"]
    comparison = compare.compare(tmp_path, names, has_seeds_grouped=True)
    assert (comparison.baseline, comparison.models) == (
        "tiny-contrastive:student", ("tiny-silc:student",)
    )  # fmt: skip
    (result,) = comparison.results
    from scipy import stats as peer

    test = peer.ttest_rel(METHODS["silc"], METHODS["contrastive"])
    assert result.paired.p == pytest.approx(max(test.pvalue, 2 / 2**4))
    assert result.paired.difference == pytest.approx(0.03)
    low, high = test.confidence_interval()
    assert result.paired.margin == pytest.approx((high - low) / 2)
    assert result.value == pytest.approx(np.mean(METHODS["silc"]))
    lines = lines_of(tmp_path, "contrastive0 silc3 --group-seeds")
    assert "[t over 4 seeds]" in lines[0]


def test_seeds_of_a_method_are_one_row_of_the_leaderboard(tmp_path):
    put_seeds(tmp_path, METHODS | {"worse": [0.1, 0.12, 0.08, 0.11], "alone": [0.3]})
    put(tmp_path, "foreign", 0.2)
    board = build(tmp_path, View(has_seeds_grouped=True))
    (table,) = board.sections[0].tables
    rows = {row[0].text: (row[0].detail, row[3]) for row in table.rows}
    assert list(rows) == [
        "tiny-silc:student", "tiny-contrastive:student", "alone0", "foreign", "tiny-worse:student"
    ]  # fmt: skip
    detail, cell = rows["tiny-silc:student"]
    assert detail == " (4 seeds)"
    assert cell.is_best
    values = METHODS["silc"]
    half = 3.182446 * np.std(values, ddof=1) / 2  # t at 3 degrees of freedom
    assert cell.text + cell.detail == f"{100 * np.mean(values):.1f} ±{100 * half:.1f}"
    marks = {name: own[1].detail.endswith(" =") for name, own in rows.items()}
    assert [name for name, is_tied in marks.items() if is_tied] == []


def test_seeds_that_one_method_lacks_have_no_partner(tmp_path):
    put_seeds(tmp_path, {"contrastive": [0.5, 0.6], "silc": [0.7]})
    comparison = compare.compare(tmp_path, ["contrastive0", "silc0"], has_seeds_grouped=True)
    assert comparison.results == ()
    assert "two are needed" in comparison.omissions[0].reason


# What records tell of runs beside a method: (name, seed, recipe, tokenizer) of each, and words of
# the one remark on them; None: all is well.
RUNS = {
    "two recipes of the same seeds": (None, ("a0", 0, 1, 1), ("a1", 1, 1, 1), ("b0", 0, 2, 1)),
    "alone": (None, ("a0", 0, 1, 1)),
    "seeds of several recipes": (
        "3 runs, as a0@{a0} of seed 0 and a2@{a2} of seed 2, are alike in",
        *[("a0", 0, 1, 1), ("a1", 1, 2, 1), ("a2", 2, 3, 1)],
    ),
    "several runs of one seed": (
        "silc:student: 2 runs are left out, as a newer one has the same seed: the first is a0@{a0},"
        " with seed 0 as c0@{c0}",
        *[("a0", 0, 1, 1), ("b0", 0, 1, 1), ("c0", 0, 1, 1), ("a1", 1, 1, 1)],
    ),
    "other tokenizers": (
        "they read texts by 2 tokenizers, as a0@{a0} of seed 0 and a2@{a2} of seed 2",
        *[("a0", 0, 1, 1), ("a1", 1, 1, 1), ("a2", 2, 1, 2)],
    ),
}


@pytest.mark.parametrize("words", ["compare a0 other --group-seeds", "leaderboard --group-seeds"])
@pytest.mark.parametrize("case", RUNS)
def test_what_is_grouped_or_not_against_the_look_of_it_is_said(case, words, tmp_path):
    said, *runs = RUNS[case]
    revisions = {}
    for day, (name, seed, recipe, tokenizer) in enumerate((*runs, ("other", 0, 1, 1))):
        objective = "contrastive" if name == "other" else "silc"
        training = trained(objective, seed=seed, recipe=f"{recipe:016}")
        created, text = f"2026-01-0{1 + day}T00:00:00Z", {"tokenizer": f"{tokenizer:016}"}
        more = {"training": training, "created": created, "text": text}
        own = put(tmp_path, name, 0.5, version=9, **more)
        revisions[name] = own.model.revision[:8]
    printed = call(f"{words} --results {tmp_path}").stderr.replace("\n", "")
    remarks = ("run is left out", "runs are left out", "not grouped", "more than the seed")
    assert (said or "").format(**revisions) in printed
    assert sum(printed.count(remark) for remark in remarks) == (said is not None)


@pytest.mark.parametrize(
    ("count", "words"), [(3, "seed 2 has no partner"), (4, "2 seeds, as 2, have no partner")]
)
def test_a_seed_without_a_partner_is_said(count, words, tmp_path):
    put_seeds(tmp_path, {"contrastive": [0.5, 0.6, 0.7, 0.8][:count], "silc": [0.7, 0.6]})
    for names in (["contrastive0", "silc0"], ["silc0", "contrastive0"]):
        (remark,) = compare.compare(tmp_path, names, has_seeds_grouped=True).remarks
        assert remark.startswith(f"tiny-contrastive:student: {words} in tiny-silc:student, and ")


def test_seeds_with_several_setups_have_a_row_of_each(tmp_path):
    for seed, precisions in enumerate((["fp32"], ["fp32", "bf16"], ["fp32", "bf16"])):
        for precision in precisions:
            more = {"training": trained(seed=seed), "precision": precision}
            put(tmp_path, f"run{seed}", 0.5, version=9, **more)
    printed = succeed(f"leaderboard --group-seeds --results {tmp_path}")
    for words in ("(2 seeds, bf16)", "(3 seeds, fp32)", "Setups that differ"):
        assert words in printed


def test_a_model_without_a_seed_is_refused_among_methods(tmp_path):
    put_seeds(tmp_path)
    put(tmp_path, "foreign", 0.5)
    fail(f"compare silc0 foreign --group-seeds --results {tmp_path}", "foreign")
    fail(f"compare silc0 silc1 --group-seeds --results {tmp_path}", "silc0")


# ---- each kind of outcome ----


def test_captions_of_an_image_move_together(tmp_path):
    rng = np.random.default_rng(1)
    hits = [rng.random(N) < rate for rate in (0.5, 0.55)]
    for model, hit in zip("ab", hits, strict=True):
        ranks = {"text": rng.integers(0, 3, N), "image": np.where(np.repeat(hit, 5), 0, 7)}
        arrays = {"image_retrieval_picture": np.repeat(np.arange(N), 5)}
        values = {}
        for side, rank in ranks.items():
            arrays[f"{side}_retrieval_rank"] = rank
            values[f"{side}_retrieval_recall@1"] = (rank < 1).mean()
        put(tmp_path, model, values, "made/retrieval", arrays=arrays)
    main, other = results_of(tmp_path)
    kinds = [(result.metric, result.paired.test, result.is_main) for result in (main, other)]
    assert kinds == [
        ("text_retrieval_recall@1", "mcnemar", True),
        ("image_retrieval_recall@1", "bootstrap", False),
    ]
    stderr = np.std(hits[1].astype(int) - hits[0]) / np.sqrt(N)
    assert other.paired.stderr == pytest.approx(stderr, rel=0.05), "not less by sqrt(5)"
    assert "on made/retrieval (image_retrieval_recall@1)" in lines_of(tmp_path)[1]


def test_areas_and_draws_of_shots(tmp_path):
    rng = np.random.default_rng(2)
    truth = rng.integers(50, 100, (N, 5))
    draws = []
    for model, share in (("a", 0.5), ("b", 0.55)):
        inside = rng.binomial(truth, share)
        areas = np.stack([inside, inside + rng.integers(0, 30, (N, 5)), truth], axis=1)
        value = {"mIoU": metrics.mean_iou(areas.sum(axis=0))}
        put(tmp_path, model, value, "made/segmentation", arrays={"areas": areas})
        draws.append(rng.random((N, 3)) < share)
        value = {"acc1_10shot": draws[-1].mean()}
        put(tmp_path, model, value, "made/fewshot", arrays={"acc1_10shot": draws[-1]})
    fewshot, segmentation = results_of(tmp_path)
    assert fewshot.paired.test == segmentation.paired.test == "bootstrap"
    assert segmentation.verdict == "better"
    difference = segmentation.value - segmentation.baseline_value
    assert segmentation.paired.difference == pytest.approx(difference, abs=1e-12)
    gained = draws[1].astype(float) - draws[0]
    variance = gained.mean(axis=1).var() / N + gained.mean(axis=0).var(ddof=1) / 3
    assert fewshot.paired.stderr == pytest.approx(np.sqrt(variance), rel=0.05)


def test_rare_classes_weigh_as_much_as_common_ones(tmp_path):
    labels = np.repeat([0, 1], [300, 100])
    recalls = []
    for model, hits in (("a", labels == 0), ("b", hits_of(0.5))):
        recalls.append(np.mean([hits[labels == label].mean() for label in (0, 1)]))
        values = {"mean_per_class_recall": recalls[-1], "acc1": hits.mean()}
        put(tmp_path, model, values, arrays={"acc1": hits, "labels": labels})
    (result,) = results_of(tmp_path)
    assert result.paired.difference == pytest.approx(recalls[1] - recalls[0])
    assert result.paired.test == "bootstrap"


# ---- how often it is wrong ----


def test_equal_models_are_told_apart_in_five_of_a_hundred_reports(monkeypatch):
    """Four tasks of every kind, two equally good models: any difference claimed is false."""
    monkeypatch.setattr(stats, "PAIRED_RESAMPLES", 300)
    rng = np.random.default_rng(4)
    image, easy = np.repeat(np.arange(80), 5), rng.random(80)

    def ranks():
        hits = (rng.random(400) < rng.beta(1, 1, 80)[image]).astype(int)
        return {"image_retrieval_rank": hits, "image_retrieval_picture": image}

    def areas():
        inside = rng.binomial(30, rng.beta(2, 2, (80, 2)))
        return {"areas": np.stack([inside, *np.full((2, 80, 2), 30)], axis=1)}

    draw = {
        "acc1": lambda: {"acc1": rng.random(80) < easy},
        "acc1_5shot": lambda: {"acc1_5shot": rng.random((80, 3)) < easy[:, None]},
        "image_retrieval_recall@1": ranks,
        "pixel_accuracy": areas,
    }
    reports = []
    for _ in range(300):
        p = []
        for metric, arrays in draw.items():
            p.append(pairing.paired(*(outcomes.per_image(arrays(), metric) for _ in "ab")).p)
        reports.append(p)
    is_false = [min(stats.holm(p)) < pairing.ALPHA for p in reports]
    assert np.mean(is_false) <= 0.08, "0.05 within 2.4 standard errors of this simulation"
    *safe, captions, pixels = np.mean(np.less(reports, 0.05), axis=0)
    assert 0.02 <= captions <= 0.09
    assert 0.02 <= pixels <= 0.09
    assert max(safe) <= 0.08, "McNemar and three draws err on the safe side"


# ---- what is not compared, and why ----


def reasons(folder, **options):
    omissions = compare.compare(folder, ["a", "b"], **options).omissions
    return {left.task.split("/")[0]: left.reason for left in omissions}


def test_every_task_is_compared_or_has_a_reason(tmp_path):
    hits = hits_of(0.5)
    differing = {
        "asked": ({"asks": {"shots": 5}}, {"asks": {"prompts": ["a {}"]}}),
        "protocol": ({}, {"protocol": "openai80"}),
        "data": ({"fingerprint": "1" * 16}, {"fingerprint": "2" * 16}),
        "version": ({"version": 1}, {"version": 2}),
        "limit": ({"limit": N}, {}),
        "made": ({}, {}),
        "only": ({},),
        "old": ({},),
    }
    for task, measured in differing.items():
        for model, fields in zip("ab", measured, strict=False):
            put_hits(tmp_path, model, hits, f"{task}/zeroshot", **fields)
    put(tmp_path, "b", 0.5, "old/zeroshot")
    for model in "ab":
        values = {"map": 0.5, "acc1": hits.mean()}
        put(tmp_path, model, values, "strange/zeroshot", arrays={"acc1": hits})
    by_task = reasons(tmp_path)
    for task, words in {
        "asked": 'asks.shots is 5 against –; asks.prompts is – against ["a {}"]',
        "data": "dataset.fingerprint is 1111111111111111 against 2222222222222222",
        "limit": "limit is 400 against null",
        "old": "no outcomes of single images of b@",
        "only": "only a has measured it (protocol native, ",
        "protocol": "protocol is native against openai80",
        "strange": "the outcomes do not say what each image adds to map",
        "version": "task_version is 1 against 2",
    }.items():
        assert words in by_task.pop(task)
    assert by_task == {}
    assert sum(line.startswith("not compared: ") for line in lines_of(tmp_path)) == 8


def test_models_with_other_preprocessing_are_paired_and_the_difference_is_said_once(tmp_path):
    for task in ("made/zeroshot", "other/zeroshot"):
        put_hits(tmp_path, "a", hits_of(0.5), task, size=64)
        put_hits(tmp_path, "b", hits_of(0.6), task, size=224, crop="center")
    comparison = compare.compare(tmp_path, ["a", "b"])
    assert len(comparison.results) == 2
    assert comparison.setups == {"b": (("image.size", "64", "224"), ("image.crop", "–", "center"))}
    shown = lines_of(tmp_path)
    assert sum("image.size 64 → 224" in line for line in shown) == 1


def test_no_question_in_common_is_an_error_that_says_why(tmp_path):
    put_hits(tmp_path, "a", hits_of(0.5))
    put_hits(tmp_path, "b", hits_of(0.6), protocol="openai80")
    result = call(f"compare a b --results {tmp_path}")
    assert result.exit_code == 2
    assert "protocol is native against openai80" in result.stdout
    assert str(tmp_path) in error_of(result.stderr)


def test_of_several_setups_of_one_model_the_newest_counts_and_is_said(tmp_path):
    put_hits(tmp_path, "a", hits_of(0.5))
    for day, precision in ((1, "bf16"), (2, "fp32")):
        created = f"2026-01-0{day}T00:00:00Z"
        put_hits(tmp_path, "b", hits_of(0.5 + day / 10), precision=precision, created=created)
    comparison = compare.compare(tmp_path, ["a", "b"])
    (result,) = comparison.results
    assert result.value == hits_of(0.7).mean()
    (left,) = comparison.omissions
    assert "several setups" in left.reason


def test_whole_runs_go_before_limited_ones_and_limited_ones_are_marked(tmp_path):
    rates = {"a": 0.5, "b": 0.6}
    for model, rate in rates.items():
        hits = hits_of(rate, n=50)
        put_hits(tmp_path, model, hits, limit=50, fingerprint="1" * 16)
    assert lines_of(tmp_path)[0].endswith("[limited to 50 images]")
    for model, rate in rates.items():
        for version in (1, 2):
            put_hits(tmp_path, model, hits_of(rate), version=version)
    comparison = compare.compare(tmp_path, ["a", "b"])
    assert [(result.n, result.limit) for result in comparison.results] == [(N, None)]
    for part, left in zip(("50 images", "the whole split"), comparison.omissions, strict=True):
        assert left.reason.startswith(f"task version 1 on {part}: left out, as task version 2 on")


# ---- mistakes ----


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """Records of two revisions of one name, and of two other models."""
    folder = tmp_path_factory.mktemp("named")
    for revision in ("1234567890abcdef", "fedcba9876543210"):
        put_hits(folder, "run-silc:student", hits_of(0.5), revision=revision)
    put_hits(folder, "run-contrastive:student", hits_of(0.6))
    put_hits(folder, "hf:org/name@main", hits_of(0.6))
    return folder


@pytest.mark.parametrize(
    ("words", "about"),
    [
        ("run-contrastve:student hf:org/name@main", "did you mean run-contrastive:student"),
        ("run-contrastive:student run-silc:student", "run-silc:student@12345678, run-silc:stud"),
        ("run-silc:student@1234567f hf:org/name@main", "did you mean run-silc:student@12345678"),
        ("run-silc:student@12345678 run-silc:student@1234", "run-silc:student@1234"),
        ("run-contrastive:student", "run-contrastive:student"),
        ("hf:org/name@main run-contrastive:student --tasks zershot", "did you mean zeroshot"),
        ("hf:org/name@main run-contrastive:student --out {named}/a/b", "--out"),
        ("hf:org/name@main run-contrastive:student --out {file}", "compare.py"),
    ],
)
def test_a_wrong_comparison_is_refused(named, words, about):
    words = words.format(named=named, file=compare.__file__)
    fail(f"compare {words} --results {named}", about)


def test_revisions_are_told_apart(named):
    lines = lines_of(named, "run-silc:student@12345678 run-silc:student@fedcba98 hf:org/name@main")
    assert "no difference of run-silc:student@fedcba98 can be shown" in lines[0]
    assert "hf:org/name@main is better" in lines[1]


@pytest.mark.parametrize("change", ["labels", "draws"])
def test_outcomes_of_other_samples_are_refused(tmp_path, change):
    hits = np.tile([True, False], N // 2)
    arrays = {
        "labels": [{"acc1": hits, "labels": np.arange(N) % count} for count in (4, 3)],
        "draws": [{"acc1": np.stack([hits] * count, 1)} for count in (2, 3)],
    }[change]
    paths = []
    for model, part in zip("ab", arrays, strict=True):
        paths.append(outcomes.path_of(put(tmp_path, model, 0.5, arrays=part), tmp_path))
    fail(f"compare a b --results {tmp_path}", " and ".join(map(str, paths)))


# ---- files ----

HOSTILE = "x|<b>`[a](b)*"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """What was printed, the folder that was written, the comparison."""
    folder, written = tmp_path_factory.mktemp("records"), tmp_path_factory.mktemp("report") / "new"
    for model, rate in (("a", 0.5), (HOSTILE, 0.6), ("c", 0.5)):
        put_hits(folder, model, hits_of(rate))
        put_hits(folder, model, hits_of(rate + 0.01, seed=1), "second/zeroshot")
    put_hits(folder, "a", hits_of(0.5), "only/zeroshot")
    lines = lines_of(folder, f"a '{HOSTILE}' c --out {written}")
    return lines, written, compare.compare(folder, ["a", HOSTILE, "c"])


def test_files_say_what_the_terminal_says(report):
    lines, folder, comparison = report
    paths = [folder / f"compare.{ending}" for ending in ("md", "csv", "json", "png")]
    assert [f"wrote {path}" for path in paths] == lines[-4:]
    assert sorted(folder.iterdir()) == sorted(paths)
    assert set(reports.sentences(comparison)) <= set(lines)
    text, table, data, plot = paths

    content = json.loads(data.read_text(encoding="utf-8"))
    keys = ("schema", "baseline", "models", "num_tests")
    assert [content[key] for key in keys] == ["compare/3", "a", [HOSTILE, "c"], 6]
    differences = [result.paired.difference for result in comparison.results]
    assert [row["difference"] for row in content["results"]] == differences
    assert content["not_compared"][0]["task"] == "only/zeroshot"

    rows = list(csv.DictReader(io.StringIO(table.read_text(encoding="utf-8"))))
    p_holm = [result.p_holm for result in comparison.results]
    assert [float(row["p_holm"]) for row in rows[:6]] == p_holm
    verdicts = ["better"] * 2 + ["no difference"] * 2 + ["worse"] * 2 + ["not compared"] * 2
    assert [row["verdict"] for row in rows] == verdicts

    page = text.read_text(encoding="utf-8")
    assert "<b>" not in page
    assert page.count("can be shown on") == 2
    assert "only/zeroshot" in page
    with Image.open(plot) as image:
        tones = {forest_plot.TONES[verdict] for verdict in verdicts[:4]}
        assert tones <= {color for _, color in image.getcolors(1 << 20)}


def test_every_format_is_written(report, tmp_path):
    pytest.importorskip("fpdf")
    comparison = report[2]
    paths = reports.write(comparison, tmp_path, reports.FORMATS)
    assert {path.suffix.removeprefix(".") for path in paths} == set(reports.FORMATS)
    tex = reports.to_latex(comparison)
    assert tex.count(r"\begin{table}") == len(comparison.models)
    assert tex.count(r"\textbf{$+$") == 2, "the differences that can be shown"
    assert "![" not in reports.to_markdown(comparison)


@pytest.mark.parametrize("width", [60, 80])
def test_the_terminal_shows_every_number_whole(report, width):
    comparison = report[2]
    names = {name: name for name in (comparison.baseline, *comparison.models)}
    names |= {HOSTILE: HOSTILE_NAMES[2], "c": HOSTILE_NAMES[-3]}
    results = []
    for number, result in enumerate(comparison.results):
        task = f"{HOSTILE_NAMES[number]}/zeroshot"
        names_of = {"baseline": names[result.baseline], "model": names[result.model]}
        results.append(replace(result, **names_of, task=task, is_main=False))
    models = tuple(names[model] for model in comparison.models)
    hostile = replace(comparison, models=models, results=tuple(results))
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(reports.to_terminal(hostile))
    shown = console.file.getvalue()
    assert max(map(cells, shown.splitlines())) <= width
    shown_results = [r for r in comparison.results if r.baseline == comparison.baseline]
    assert shown_results
    for paired in (result.paired for result in shown_results):
        assert f"{100 * paired.difference:+.2f} ± {100 * paired.stderr:.2f}" in shown


def test_equal_comparisons_give_equal_bytes(report, tmp_path):
    _, folder, comparison = report
    for path in reports.write(comparison, tmp_path):
        assert path.read_bytes() == (folder / path.name).read_bytes()


def test_the_plot_is_to_scale(tmp_path):
    """Zero, the dot and the ends of its interval stand as their numbers do."""
    path = tmp_path / "plot.png"
    forest_plot.draw([forest_plot.Row("a", -10.0, 5.0, "better")], "title", path)
    pixels = np.asarray(Image.open(path))
    heights = (pixels == forest_plot.TONES["better"]).all(axis=-1).sum(axis=0)
    left, *_, right = np.flatnonzero(heights)
    dot = np.flatnonzero(heights == heights.max()).mean()
    zero = (pixels == forest_plot.INK).all(axis=-1).sum(axis=0).argmax()
    assert zero - dot == pytest.approx(2 * (dot - left), abs=3)
    assert right - dot == pytest.approx(dot - left, abs=3)
