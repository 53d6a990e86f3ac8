"""Texts: decoded or refused, and split, alike in every reader."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused

from silc_bench.datasets.files.texts import decode_text, likely_encoding, lines_of, text_of
from silc_bench.datasets.own_data import parse
from silc_bench.errors import DataError

LETTERS = ("\u2028", "\x85", "\x0b", "\x0c", "\x1c", "\u2029")  # ends of lines for splitlines()
LINE_ENDS = {"LF": "\n", "CR LF": "\r\n", "CR": "\r"}
MARKED = ("utf-8", "utf-8-sig", "utf-16", "utf-32")  # those that say which they are, and UTF-8


@given(st.sampled_from(MARKED), st.text(st.characters(exclude_categories=["Cs"])))
def test_every_text_with_a_mark_and_every_utf8_is_read(encoding, text):
    assert text_of(text.encode(encoding)) == text.removeprefix(
        "\ufeff" if encoding == "utf-8" else ""
    )


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\ufeff"))),
    st.sampled_from(sorted(LINE_ENDS)),
)
def test_only_real_line_ends_end_a_line(lines, end):
    kept = [line.strip() for line in lines if line.strip()]
    assert lines_of(LINE_ENDS[end].join(lines)) == kept


def test_the_marks_of_files_that_were_put_together_are_no_letters():
    assert lines_of("\ufeffcat\n\ufeff dog\n\ufeff\n") == ["cat", "dog"]


ENCODED = {
    "WINDOWS-1252": "caf\u00e9 fran\u00e7ais \u2013 a dog\u2019s bowl".encode("cp1252"),
    "UTF-16LE": "a b\u00f6se cat".encode("utf-16-le"),
    "UTF-16BE": "a b\u00f6se cat".encode("utf-16-be"),
    "GB18030": "\u4e00\u53ea\u5728\u8349\u5730\u4e0a\u7684\u72d7".encode("gb18030"),
    "SHIFT_JIS": "\u8349\u306e\u4e0a\u306e\u72ac".encode("shift_jis"),
    "WINDOWS-1251": "\u0441\u043e\u0431\u0430\u043a\u0430 \u043d\u0430".encode("cp1251"),
}


@pytest.mark.parametrize("encoding", ENCODED)
def test_the_advice_names_the_encoding_where_the_bytes_tell(tmp_path, encoding):
    data, path = ENCODED[encoding], tmp_path / "a list.txt"
    is_told = encoding.startswith(("UTF", "WINDOWS-1252"))
    assert likely_encoding(data) == (encoding if is_told else None)
    with refused(path, DataError, is_kept=encoding == "WINDOWS-1252") as caught:
        decode_text(data, path, path)
    assert f"iconv -f {encoding if is_told else 'ENCODING'} " in caught.value.fix
    assert "'" in caught.value.fix, "the line can be typed as it stands"


# ---- every reader ----


def names_of(make, folder, data):
    make.tree(folder, [(f"{name}/0.png", make.image(0)) for name in ("a", "b")])
    (folder / "classnames.txt").write_bytes(data)
    return parse(f"folder:{folder}").load("test").class_names


def templates_of(make, folder, data):
    make.tree(folder, [(f"{name}/0.png", make.image(0)) for name in ("a", "b")])
    (folder / "zeroshot_classification_templates.txt").write_bytes(data)
    return parse(f"folder:{folder}").templates()


def captions_of_shards(make, folder, data):
    path = make.tar(folder / "a.tar", [("0.png", make.image(0)), ("0.txt", data)])
    return parse(f"wds:{path}").load("test").captions[0]


def listed(ending, row, head=()):
    """The reader of such a list, given the captions as lines; ``row`` is a line of it."""

    def captions_of_a_list(make, folder, data):
        make.tree(folder, [("0.png", make.image(0))])
        # latin1 keeps every byte, so the list has the encoding of the captions
        marks = {"".encode(name): name for name in ("utf-8-sig", "utf-16")}
        encoding = next((name for mark, name in marks.items() if data.startswith(mark)), "latin1")
        text = data.decode(encoding)
        end = next(end for end in ("\r\n", "\r", "\n") if end in text)
        rows = end.join([*head, *map(row, text.split(end))])
        (folder / f"x.{ending}").write_bytes(rows.encode(encoding))
        return parse(f"captions:{folder}/x.{ending}").load("test").captions[0]

    return captions_of_a_list


READERS = {
    "classnames.txt": names_of,
    "templates": templates_of,
    "shards": captions_of_shards,
    ".csv": listed("csv", lambda line: f'0.png,"{line}"', ["file,caption"]),
    ".tsv": listed("tsv", lambda line: f"0.png\t{line}", ["file\tcaption"]),
    ".jsonl": listed(
        "jsonl", lambda line: json.dumps({"file": "0.png", "caption": line}, ensure_ascii=False)
    ),
}


@pytest.mark.parametrize("end", LINE_ENDS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_reads_every_encoding_and_line_end(make, tmp_path, reader, encoding, end):
    texts = (f"one{''.join(LETTERS)}\u00fc {{c}}", "two {c}")
    data = LINE_ENDS[end].join(texts).encode(encoding)
    assert tuple(READERS[reader](make, tmp_path, data)) == texts


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_refuses_what_is_no_utf8(make, tmp_path, reader):
    with refused(tmp_path, DataError) as caught:
        READERS[reader](make, tmp_path, "caf\u00e9 {c}\nb {c}".encode("cp1252"))
    assert "WINDOWS-1252" in caught.value.problem


def test_the_line_of_iconv_names_a_file_with_spaces(tmp_path):
    path = tmp_path / "my names.txt"
    with refused(path, DataError) as caught:
        decode_text(b"caf\xe9", path, path)
    assert caught.value.fix.count(f"'{Path(path)}'") == 2
