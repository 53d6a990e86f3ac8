"""Result files of CLIP_benchmark and open_clip as published rows, and what has no place there."""

import json

import pytest
from refusals import refused

from silc_bench.errors import DataError
from silc_bench.results import imported, published

URL = "https://example.org/results.csv"
BENCHMARK = """\
acc1,acc5,mean_per_class_recall,dataset,model,pretrained,task,mean_average_precision,\
image_retrieval_recall@5,text_retrieval_recall@5,model_fullname
0.7738,0.9362,0.7345,imagenet-a,ViT-L-14-336,openai,zeroshot_classification,,,,ViT-L-14-336 openai
0.4457,0.7585,0.4494,vtab/dtd,ViT-L-14-336,openai,zeroshot_classification,,,,ViT-L-14-336 openai
,,,voc2007_multilabel,ViT-B-32,openai,zeroshot_classification,0.79,,,ViT-B-32 openai
0.7557,0.9386,0.7554,wds/vtab/cifar100,ViT-B-32,/fsx/b_290.pt,zeroshot_classification,,,,x
,,,flickr30k,ViT-L-14-336,openai,zeroshot_retrieval,,0.8546,0.9409,ViT-L-14-336 openai
"""
OPEN_CLIP = """\
name,pretrained,params (M),FLOPs (B),Average perf. on 38 datasets,ImageNet 1k,\
Caltech-101,CIFAR-10,Flickr
ViT-H-14,dfn5b,986.11,381.68,0.6961,0.8344,0.9552,0.9878,0.8646
ViT-L-14,openai,427.62,175.33,0.6173,0.7554,,0.9559,0.7508
"""
RETRIEVAL = """\
name,pretrained,params (M),Average score,Flickr image retr. R@1,MSCOCO text retr. R@10
ViT-L-14,openai,427.62,0.6588,0.6496,0.8792
"""
JSON = {
    "dataset": "imagenet1k",
    "model": "ViT-B-32",
    "pretrained": "laion2b_e16",
    "task": "zeroshot_classification",
    "metrics": {"acc1": 0.665, "acc5": 0.898, "mean_per_class_recall": 0.664},
    "language": "en",
}


@pytest.fixture
def read(tmp_path):
    """({model: values}, {reason: times}) of files by name; an object becomes JSON."""

    def of(**files):
        paths = []
        for name, content in files.items():
            ending = "csv" if isinstance(content, str) else "json"
            path = tmp_path / f"{name}.{ending}"
            path.write_text(content if isinstance(content, str) else json.dumps(content))
            paths.append(path)
        found = imported.read(paths, URL)
        values = {model: row["values"] for model, row in found.rows.items()}
        return values, {reason: len(where) for reason, where in found.left_out.items()}

    return of


def test_a_table_of_clip_benchmark(read):
    values, left_out = read(benchmark=BENCHMARK)
    assert values == {
        "open_clip:ViT-L-14-336/openai": {
            "imagenet_a/zeroshot": {
                "acc1": 0.7738, "acc5": 0.9362, "mean_per_class_recall": 0.7345
            },
            "flickr30k/retrieval": {
                "image_retrieval_recall@5": 0.8546, "text_retrieval_recall@5": 0.9409
            },
        },
        "ViT-B-32 /fsx/b_290.pt": {
            "cifar100/zeroshot": {"acc1": 0.7557, "acc5": 0.9386, "mean_per_class_recall": 0.7554}
        },
    }  # fmt: skip
    assert left_out == {"dataset 'vtab/dtd'": 1, "dataset 'voc2007_multilabel'": 1}


def test_tables_of_open_clip_meet_in_one_row_a_model(read):
    values, left_out = read(openclip_results=OPEN_CLIP, openclip_retrieval_results=RETRIEVAL)
    assert values == {
        "open_clip:ViT-H-14/dfn5b": {
            "imagenet1k/zeroshot": {"acc1": 0.8344}, "cifar10/zeroshot": {"acc1": 0.9878}
        },
        "open_clip:ViT-L-14/openai": {
            "imagenet1k/zeroshot": {"acc1": 0.7554},
            "cifar10/zeroshot": {"acc1": 0.9559},
            "flickr30k/retrieval": {"image_retrieval_recall@1": 0.6496},
            "coco/retrieval": {"text_retrieval_recall@10": 0.8792},
        },
    }  # fmt: skip
    # the mean of both ways of retrieval is no metric of ours; an empty cell is nothing
    assert left_out == {
        "column 'FLOPs (B)'": 2,
        "column 'Average perf. on 38 datasets'": 2,
        "column 'Caltech-101'": 1,
        "column 'Flickr'": 2,
        "column 'Average score'": 1,
    }


PROBE = {
    **JSON,
    "task": "linear_probe",
    "metrics": {"lp_acc1": 0.7, "weight_decay": 0.1, "fewshot_k": -1},
}


@pytest.mark.parametrize(
    ("content", "values", "left_out"),
    [
        (JSON, {"imagenet1k/zeroshot": JSON["metrics"]}, {}),
        (JSON | {"templates": ["a {c}"]}, {"imagenet1k/zeroshot": JSON["metrics"]}, {}),
        (
            PROBE,
            {"imagenet1k/linear": {"acc1": 0.7}},
            {"'weight_decay' of linear_probe": 1, "'fewshot_k' of linear_probe": 1},
        ),
    ],
    ids=["zero-shot", "with templates", "linear probe"],
)
def test_a_json_file_of_clip_benchmark(read, content, values, left_out):
    assert read(one=content) == ({"open_clip:ViT-B-32/laion2b_e16": values}, left_out)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"language": "ar"}, "language 'ar'"),
        ({"task": "captioning"}, "task 'captioning'"),
        ({"dataset": "<script>"}, "dataset '<script>'"),
        ({"metrics": {"acc1": 66.5}}, "no fraction between 0 and 1"),
        ({"metrics": {"acc1": float("nan")}}, "no fraction between 0 and 1"),
        ({"metrics": {"acc1": True}}, "no fraction between 0 and 1"),
        ({"metrics": {"acc1": [0.5]}}, "no fraction between 0 and 1"),
        ({"metrics": {"acc1": 10**400}}, "no fraction between 0 and 1"),
        ({"metrics": {"acc7": 0.5}}, "'acc7' of zeroshot_classification"),
        ({"model": "a\nb"}, "a model without a printable name"),
        ({"model": "", "pretrained": ""}, "a model without a printable name"),
        (PROBE | {"metrics": {"lp_acc1": 0.5, "fewshot_k": 10}}, "a linear probe on 10 shots"),
        ({"metrics": {"acc1": 0.9}}, "another value of the same model, task and metric"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_what_has_no_place_is_left_out_and_counted(read, change, reason):
    values, left_out = read(sound=JSON, other=JSON | change)
    assert values == {"open_clip:ViT-B-32/laion2b_e16": {"imagenet1k/zeroshot": JSON["metrics"]}}
    assert [key for key in left_out if key.startswith(reason)]


@pytest.mark.parametrize(
    "content",
    [
        "", "a,b\n1,2\n", "name,name,pretrained\n", '"open', "\0", [], {}, {"metrics": {}},
        {**JSON, "model": None}, JSON | {"dataset": "mnist"},
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_a_file_of_nothing_that_is_known_is_refused_by_name(tmp_path, content):
    path = tmp_path / f"a.{'csv' if isinstance(content, str) else 'json'}"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with refused(path, kind=DataError):
        imported.read([path], URL)


def test_of_a_folder_foreign_files_are_left_out(tmp_path):
    for name, content in (("a.json", json.dumps(JSON)), ("b.json", "{"), ("c.csv", "x"), ("d", "")):
        (tmp_path / name).write_text(content)
    found = imported.read([tmp_path], URL)
    assert found.num_values == 3
    assert sorted(where for places in found.left_out.values() for where in places) == [
        "b.json", "c.csv", "d"
    ]  # fmt: skip


@pytest.mark.parametrize("line", ["ViT,openai,1", "ViT,openai,1,2,3,4,5,6,7,8,9,10"])
def test_a_row_of_another_length_is_left_out(read, line):
    values, left_out = read(a=OPEN_CLIP + line + "\n")
    assert len(values) == 2
    assert left_out["a row with another number of columns than the first"] == 1


def test_what_is_saved_is_read_as_published(tmp_path):
    source = tmp_path / "openclip_results.csv"
    source.write_text("\ufeff" + OPEN_CLIP, encoding="utf-8")
    path = tmp_path / "results" / "reported" / "theirs.json"
    imported.save(imported.read([source], URL), path)
    rows, problems = published.load([tmp_path / "results"])
    assert not problems
    theirs = [row for row in rows if row.collection == "theirs"]
    assert [(row.model, row.params, row.url, row.where) for row in theirs] == [
        ("open_clip:ViT-H-14/dfn5b", 986_110_000, URL, "open_clip, openclip_results.csv"),
        ("open_clip:ViT-L-14/openai", 427_620_000, URL, "open_clip, openclip_results.csv"),
    ]
    with refused(path):
        imported.save(imported.read([source], URL), path)


def test_a_source_is_an_address(tmp_path):
    with refused("--source"):
        imported.read([tmp_path], "a paper")
