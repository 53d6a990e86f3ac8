"""Shards: webdataset's samples, braceexpand's patterns, and damage that is counted, not hidden."""

import os
import tarfile

import pytest
from braceexpand import braceexpand
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from refusals import refused
from webdataset import WebDataset

from silc_bench.datasets.files.shards import (
    Damage,
    expand,
    index_shard,
    read_member,
)
from silc_bench.datasets.own_data import parse
from silc_bench.errors import UserError

ODD_NAMES = [
    *("000.png", "000.txt", "001.PNG", "001.seg.png", "__meta__/notes.txt", "__about__"),
    *("noextension", "sub.dir/002.jpg", "sub.dir/002.cls", "./003.png", "._003.png"),
    *(f"{'long' * 40}/{'name' * 30}.png", "größe.txt"),
    "000.png",  # the key again, later: a sample of its own
]


@pytest.fixture
def shard(make, tmp_path):
    """The function that writes a shard, and damages it by ``change``; its index."""

    def write(members, change=lambda data: None, **options):
        path = make.tar(tmp_path / "a.tar", members, **options)
        data = bytearray(path.read_bytes())
        change(data)
        path.write_bytes(data)
        return index_shard(path)

    return write


def content(shard):
    return [
        (sample.key, {ext: read_member(shard.path, place) for ext, place in sample.members.items()})
        for sample in shard.samples
    ]


def content_by_webdataset(path):
    read = WebDataset(str(path), shardshuffle=False, empty_check=False)
    added = ("__url__", "__local_path__")
    samples = [{ext: data for ext, data in sample.items() if ext not in added} for sample in read]
    return [(sample.pop("__key__"), sample) for sample in samples]


# ---- reading ----


@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_samples_equal_webdatasets(shard, tar_format):
    sizes = (0, 1, 511, 512, 513, 3000)
    members = [(name, os.urandom(sizes[i % 6])) for i, name in enumerate(ODD_NAMES)]
    index = shard(members, tar_format=tar_format)
    assert content(index) == content_by_webdataset(index.path)
    assert [sample.key for sample in index.samples][:3] == ["000", "001", "sub.dir/002"]
    assert set(index.samples[1].members) == {"png", "seg.png"}
    assert index.damage.total == 0


@given(st.from_regex(r"(([ab.]{1,3}|__a__)/){0,2}([abA_][abA._]{0,6}|__a__)", fullmatch=True))
@settings(
    max_examples=200,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_keys_are_split_as_webdataset_splits_them(shard, name):
    index = shard([(name, b"x")])
    assert content(index) == content_by_webdataset(index.path)


def test_hidden_files_and_other_members_are_passed_over(make, tmp_path):
    """Finder's "._0.png" beside "0.png"; webdataset takes the folder for their key."""
    members = [("a/._0.png", b"x"), ("a/0.png", b"y"), (".b", b"z")]
    path = make.tar(tmp_path / "a.tar", members)
    with tarfile.open(path, "a") as tar:
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE):
            header = tarfile.TarInfo("other.png")
            header.type, header.linkname = kind, "/etc/passwd"
            tar.addfile(header)
    assert content(index_shard(path)) == [("a/0", {"png": b"y"})]


def test_reading_a_shard_that_shrank_or_vanished_is_an_error(shard):
    index = shard([("0.bin", bytes(9000))])
    for change in (lambda: os.truncate(index.path, 4000), index.path.unlink):
        change()
        with refused(index.path):
            read_member(index.path, index.samples[0].members["bin"])


# ---- damage ----


def test_a_cut_at_any_place_keeps_what_is_whole_and_counts_the_damage(shard):
    members = [(f"{i:02d}.{ext}", os.urandom(700)) for i in range(4) for ext in ("png", "txt")]
    end_of_data = len(members) * (512 + 1024)
    for cut in (*range(512, end_of_data + 1, 128), end_of_data + 1, end_of_data - 1, 513):
        index = shard(members, lambda data, cut=cut: data.__delitem__(slice(cut, None)))
        contents = [data for _, sample in content(index) for data in sample.values()]
        num_whole = sum(cut >= i * 1536 + 512 + 700 for i in range(len(members)))
        assert contents == [data for _, data in members[:num_whole]], cut
        assert index.damage.total == (cut <= end_of_data), cut


def test_a_broken_header_in_the_middle_is_counted(shard):
    def break_checksum(data):
        data[2 * 1024 + 150] ^= 0xFF  # of the third member

    index = shard([(f"{i}.txt", bytes(100)) for i in range(5)], break_checksum)
    assert [sample.key for sample in index.samples] == ["0", "1"]
    ((cause, where),) = index.damage.first.items()
    assert cause.startswith("unreadable header")
    assert where.endswith("byte 2,048")


def test_the_same_name_twice_in_a_sample_is_counted(shard):
    index = shard([("0.txt", b"first"), ("0.TXT", b"second")])
    assert content(index) == [("0", {"txt": b"first"})]
    assert index.damage.counts == {"second member of the same name": 1}


@settings(
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(st.tuples(st.integers(0, 10239), st.integers(0, 255)), min_size=1, max_size=6))
def test_flipped_bytes_never_lead_outside_the_file(shard, flips):
    def flip(data):
        for at, value in flips:
            data[at] = value
            seal_header(data, at - at % 512)

    try:
        index = shard([(f"{'d' * 120}/{i}.txt", bytes(300)) for i in range(3)], flip)
    except UserError:
        return
    for sample in index.samples:
        for offset, size in sample.members.values():
            assert 0 <= offset <= offset + size <= index.path.stat().st_size


@pytest.mark.parametrize(
    "size", [b"\x80" + b"\x7f" * 11, b"\xff" * 12, b"\xff" * 11 + b"\x00", b"77777777777\0"]
)
@pytest.mark.parametrize("kind", [b"0", b"x", b"L", b"5"])
def test_nonsense_sizes_are_counted(shard, size, kind):
    def spoil(data):
        data[1024 + 124 : 1024 + 136], data[1024 + 156 : 1024 + 157] = size, kind
        seal_header(data, 1024)

    index = shard([(f"{i}.txt", bytes(300)) for i in range(3)], spoil)
    assert [sample.key for sample in index.samples] == ["0"]
    assert index.damage.total == 1


def seal_header(data, start):
    """Make the checksum right, so that the header is believed."""
    data[start + 148 : start + 156] = b" " * 8
    data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])


NO_TARS = {
    "empty": b"",
    "compressed": b"\x1f\x8b" + bytes(600),
    "a pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
    "an image": b"\xff\xd8\xff\xe0\x00\x10JFIF",
    "a page": b"<!DOCTYPE html><html>not found</html>" * 40,
    "missing": None,
}


@pytest.mark.parametrize("case", NO_TARS)
def test_files_that_are_no_tar_are_named_for_what_they_are(tmp_path, case):
    path = tmp_path / "a.tar"
    if NO_TARS[case] is not None:
        path.write_bytes(NO_TARS[case])
    with refused(path):
        index_shard(path)


def test_damage_is_summed_by_cause_with_the_first_example():
    damage, other = Damage(), Damage()
    assert damage.summary() == "no damage"
    damage.add("corrupt image", "a:1")
    other.add("no caption", "b:3")
    other.add("corrupt image", "b:1")
    other.add("corrupt image", "b:2")
    damage.merge(other)
    assert damage.total == 4
    assert damage.summary() == "4 damaged: 3 corrupt image (first: a:1), 1 no caption (first: b:3)"


# ---- patterns ----


PATTERNS = "{000..012} x{8..11}y {a,b}{1..2} {b,a,c} {3..1} {08..11} p{a,q{1..3}} {x} plain a{,b}"


@pytest.mark.parametrize("pattern", PATTERNS.split())
def test_braces_expand_as_in_bash(tmp_path, pattern):
    names = list(braceexpand(f"{pattern}.tar"))
    for name in names:
        (tmp_path / name).touch()
    assert [path.name for path in expand(f"{tmp_path}/{pattern}.tar")] == names


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("{0}/a", "a/1.tar a/2.tar"),
        ("{0}/**/3.tar", "b/deep/3.tar"),
        ("{0}/b/deep/3.tar {0}/a/*.tar", "b/deep/3.tar a/1.tar a/2.tar"),
        ("{0}/a {0}/a/2.tar", "a/1.tar a/2.tar"),
        ("{0}/{{a,b/deep}}", "a/1.tar a/2.tar b/deep/3.tar"),
        ("{0}/with space", "with space/4.tar"),
    ],
)
def test_folders_globs_and_several_patterns(make, tmp_path, pattern, names):
    files = ("a/2.tar", "a/1.tar", "a/notes.txt", "b/deep/3.tar", "with space/4.tar")
    make.tree(tmp_path, [(name, b"") for name in files])
    paths = expand(pattern.format(tmp_path))
    assert " ".join(str(path.relative_to(tmp_path)) for path in paths) == names


ODD_FOLDERS = ("my shards", "a [x]", "b#1", "c,d", "e {1..2}", "f*", "g?", "{a,b}", "two  spaces")


@pytest.mark.parametrize("name", ODD_FOLDERS)
def test_what_is_there_is_meant_as_it_is_written(make, tmp_path, name):
    folder = tmp_path / name
    make.tree(folder, [(f"{i}.tar", b"") for i in range(3)] + [("my 9.tar", b"")])
    numbered = [folder / f"{i}.tar" for i in range(3)]
    assert expand(f"{folder}/{{0..2}}.tar") == expand(f"{folder}/[0-2].tar") == numbered
    assert expand(str(folder)) == expand(f"{folder}/*.tar") == [*numbered, folder / "my 9.tar"]
    assert expand(f"{folder}/my 9.tar") == [folder / "my 9.tar"]
    if "  " not in name:
        both = f"{folder}/{{0..1}}.tar {folder}/my 9.tar"
        assert expand(both) == [*numbered[:2], folder / "my 9.tar"]
        with refused(f"{name}/7.tar"):
            expand(f"{folder}/7.tar")


def test_an_image_of_a_shard_that_is_not_read_is_named(make, tmp_path):
    make.tar(tmp_path / "a.tar", [("0.heic", b""), ("0.txt", b"one")])
    (sample,) = index_shard(tmp_path / "a.tar").samples
    assert (sample.image, sample.unread) == (None, "heic")
    with refused("a.tar:0") as caught:
        parse(f"wds:{tmp_path}/a.tar").load("test")
    assert ".heic" in caught.value.fix


@pytest.mark.parametrize(
    ("pattern", "about"),
    [
        ("  ", "'  '"),
        ("{}/none.tar", "none.tar"),
        ("{}/*.tar.gz", "*.tar.gz"),
        ("{}/empty", "empty/*.tar"),
        ("{}/{{0..3}}.tar", "2.tar"),
    ],
)
def test_a_pattern_without_a_file_is_an_error(make, tmp_path, pattern, about):
    (tmp_path / "empty").mkdir()
    make.tree(tmp_path, [(f"{i}.tar", b"") for i in (0, 1, 3)])
    with refused(about):
        expand(pattern.format(tmp_path))
