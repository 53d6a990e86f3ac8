"""The page's data: what stands in its columns, what is packed, what is said of a record."""

import base64
import json
import re
import shlex
import struct
import zlib

import pytest
from boards import document_of, made, page_of, published, typical
from hypothesis import given
from hypothesis import strategies as st

from silc_bench.reports.page.document import command
from silc_bench.reports.page.libraries import FOLDER, libraries
from silc_bench.reports.page.render import embedded_json
from silc_bench.reports.page.words import in_words


def unpacked(pack):
    return zlib.decompress(base64.b64decode(pack))


def column_of(document, column_id):
    (column,) = [one for one in document["columns"] if one["id"] == column_id]
    return column


def test_a_column_holds_rows_values_errors_and_who_is_best():
    a, b, c = made("a", 0.5), made("b", 0.7), made("c", 0.69)
    other = made("c", {"mIoU": 0.2, "acc1": 0.4}, "coco/segmentation", group="dense")
    document = document_of([c, other, b, a], best=[b, c])
    names = [document["models"]["name"][row] for row in range(3)]
    column = column_of(document, "cifar100/zeroshot acc1")
    assert names == ["a", "b", "c"]
    assert column["rows"] == [0, 1, 2]
    assert column["values"] == [0.5, 0.7, 0.69]
    assert column["errors"] == [0.01] * 3
    assert column["best"] == [1, 2]
    alone = column_of(document, "coco/segmentation mIoU")
    assert (alone["rows"], alone["best"]) == ([2], []), "a single value is no best"
    assert [one["is_main"] for one in document["columns"]] == [True, True, False]


def test_two_setups_and_two_revisions_of_a_model_are_rows_of_their_own():
    records = [made("m", 0.5), made("m", 0.4, precision="bf16"), made("m", 0.3, revision="b" * 16)]
    ids = document_of(records)["models"]["id"]
    assert len(set(ids)) == 3
    assert any(one.endswith(" bf16") for one in ids)


def test_published_numbers_stand_beside_the_column_of_their_task_or_alone():
    values = {"cifar100/zeroshot": {"acc1": 0.9, "acc5": 0.99}}
    document = document_of([made("a", 0.5)], [published("paper", values)])
    shared = column_of(document, "cifar100/zeroshot acc1")
    assert shared["published"] == {"rows": [1], "values": [0.9]}
    assert shared["rows"] == [0]
    alone = column_of(document, "cifar100/zeroshot acc5")
    assert (alone["question"], alone["rows"]) == (None, [])
    assert document["models"]["url"] == [None, "https://arxiv.org/abs/2310.13355"]


def test_scores_by_class_are_packed_as_ten_thousandths_and_gaps():
    records = [made("a", 0.5, scores=[1.0, None, 0.12345]), made("b", 0.5, scores=[0, 0.5, 1])]
    (question,) = document_of(records)["questions"]
    scores = struct.unpack("<6H", unpacked(question["classes"]))
    assert scores == (10000, 0xFFFF, 1234, 0, 5000, 10000)
    pack = json.loads(unpacked(question["records"]))
    assert pack["class_names"] == ["apple", "bear", "cup"]
    assert pack["details"] == [{}, {}], "what the table of classes shows is not said twice"


@pytest.mark.parametrize(
    "details",
    [
        {"iou": {"sky": 0.5, "sea": None}},
        {"acc1_by_class": [["sky", 0.5], ["sea", 0.1]]},
        {"acc1_by_class": "not by class"},
        {"iou": {"sky": 7}},
        {},
    ],
)
def test_records_that_name_other_classes_keep_their_own(details):
    records = [made("a", 0.5, scores=[1.0, 0.5, 0.1]), made("b", 0.5, details=details)]
    (question,) = document_of(records)["questions"]
    pack = json.loads(unpacked(question["records"]))
    assert (pack["class_names"], question["classes"]) == ([], None)
    assert pack["details"][1] == json.loads(json.dumps(details))


def test_long_details_are_cut_and_say_so():
    record = made("a", 0.5, details={"notes": "x" * 5000, "cost": 0.1})
    (question,) = document_of([record])["questions"]
    (details,) = json.loads(unpacked(question["records"]))["details"]
    assert details["cost"] == 0.1
    assert re.search(r"… \(5002 characters; the record has them all\)$", details["notes"])


def test_the_date_is_that_of_the_newest_record_and_images_are_counted_once():
    old, new = "2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z"
    records = [made("a", 0.5, created=old), made("b", 0.5, created=old)]
    records.append(made("a", 0.5, "cifar100/knn", created=new, n=500))
    document = document_of(records)
    assert (document["date"], document["num_images"]) == (new, 500)
    assert document_of([])["date"] is None


def test_the_same_records_give_the_same_bytes():
    assert typical() == typical()


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (made("a", 0.5), "--ckpt runs/a --tasks cifar100/zeroshot --precision fp32"),
        (made("a", 0.5, limit=10), "--precision fp32 --limit 10"),
        (
            made("a", 0.5, protocol="openai80", precision="bf16"),
            "--protocol openai80 --precision bf16",
        ),
        (made("a", 0.5, protocol="tcl+sclip"), "--protocol tcl --dense-method sclip --precision"),
        (made("a", 0.5, protocol="native+tokens:4"), "zeroshot --dense-method tokens:4 --prec"),
        (made("a", 0.5, protocol="native+mine"), "zeroshot --prompts PROMPTS.json --precision"),
    ],
)
def test_the_command_repeats_what_was_asked(record, expected):
    assert expected in command(record)


@given(st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1))
def test_a_hostile_name_is_one_word_of_the_command(source):
    words = shlex.split(command(made("a", 0.5, source=source)))
    assert words[words.index("--ckpt") + 1] == source


def test_words_leave_hashes_out_and_keep_lists_of_texts():
    question = {
        "hash": "0f" * 8,
        "dataset": {"name": "x", "fingerprint": "0f" * 8, "pools": {"train": "0f" * 8}},
        "asks": {"templates": ["a {c}", "b {c}"], "l2": 1e-05, "mean": [0.5, 0.25]},
        "class_names": {"sha256": "0f" * 8, "count": 10},
        "limit": None,
        "antialias": True,
        "tokenizer": "3ecd337ed31ddc63",
    }
    assert in_words(question) == [
        ["dataset: name", "x"],
        ["templates", ["a {c}", "b {c}"]],
        ["L2 penalty", "1e-05"],
        ["mean", "0.5, 0.25"],
        ["class names: count", "10"],
        ["antialias", "yes"],
    ]


@given(st.recursive(st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_no_text_ends_the_element_that_holds_the_data(value):
    text = embedded_json({"value": value, "more": "</script><!--<script>"})
    assert "<" not in text
    assert json.loads(text)["value"] == value


def test_the_page_loads_nothing_from_elsewhere():
    page = typical()
    markup = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert "default-src 'none'" in markup
    assert not re.search(r"<(?:link|iframe|object|embed|base|img|script)\b", markup)
    assert not re.search(r"@import|url\(", markup)
    assert re.findall(r"<script[^>]*\bsrc\b", page) == []
    assert "sourceMappingURL" not in page


def test_each_library_is_the_file_of_the_list_with_its_licence():
    for library in libraries():
        assert len(library.text()) > 10_000
        licence = FOLDER / f"{library.file}.LICENSE"
        assert licence.read_text(encoding="utf-8").startswith(("Copyright", "MIT License"))
        page = page_of([made("a", 0.5)])
        assert f'"version":"{library.version}","licence":"{library.licence}"' in page
