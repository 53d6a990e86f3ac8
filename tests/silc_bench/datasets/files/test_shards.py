"""Shards: webdataset's samples, braceexpand's patterns, and damage that is counted, not hidden."""

import io
import multiprocessing
import os
import random
import tarfile
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from braceexpand import braceexpand
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from refusals import refused
from webdataset import WebDataset

from silc_bench.datasets.files.shards import (
    Damage,
    DamagedImageError,
    decode_image,
    expand,
    index_shard,
    open_image,
    read_member,
)
from silc_bench.errors import UserError

REAL = os.environ.get("SILC_BENCH_TEST_DATA")
ODD_NAMES = [
    "000.png",
    "000.txt",
    "001.PNG",
    "001.seg.png",
    "__meta__/notes.txt",
    "__about__",
    "noextension",
    "sub.dir/002.jpg",
    "sub.dir/002.cls",
    "./003.png",
    "._003.png",
    f"{'long' * 40}/{'name' * 30}.png",
    "größe.txt",
    "000.png",  # the key again, later: a sample of its own
]


def write_tar(path, members, tar_format=tarfile.PAX_FORMAT):
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return path


def content(shard):
    return [
        (sample.key, {ext: read_member(shard.path, place) for ext, place in sample.members.items()})
        for sample in shard.samples
    ]


def content_by_webdataset(paths):
    read = WebDataset([str(path) for path in paths], shardshuffle=False, empty_check=False)
    added = ("__url__", "__local_path__")
    samples = [{ext: data for ext, data in sample.items() if ext not in added} for sample in read]
    return [(sample.pop("__key__"), sample) for sample in samples]


def encoded(kind, mode="RGB", size=(8, 6)):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind)
    return buffer.getvalue()


# ---- reading ----


@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_samples_equal_webdatasets(tmp_path, tar_format):
    members = [
        (name, os.urandom(random.Random(i).choice([0, 1, 511, 512, 513, 3000])))
        for i, name in enumerate(ODD_NAMES)
    ]
    path = write_tar(tmp_path / "a.tar", members, tar_format)
    shard = index_shard(path)
    assert content(shard) == content_by_webdataset([path])
    assert [sample.key for sample in shard.samples][:3] == ["000", "001", "sub.dir/002"]
    assert set(shard.samples[1].members) == {"png", "seg.png"}
    assert shard.damage.total == 0


@pytest.mark.skipif(REAL is None, reason="SILC_BENCH_TEST_DATA is not set: no real shards")
def test_real_shards_equal_webdatasets():
    paths = expand(f"{REAL}/cifar100/train/cifar100-train-00000{{3..4}}.tar")
    ours = [sample for path in paths for sample in content(index_shard(path))]
    assert ours == content_by_webdataset(paths)
    assert len(ours) == 5000


@given(st.from_regex(r"(([ab.]{1,3}|__a__)/){0,2}([abA_][abA._]{0,6}|__a__)", fullmatch=True))
@settings(
    max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
def test_keys_are_split_as_webdataset_splits_them(tmp_path, name):
    path = write_tar(tmp_path / "a.tar", [(name, b"x")])
    assert content(index_shard(path)) == content_by_webdataset([path])


def test_hidden_files_and_other_members_are_passed_over(tmp_path):
    """Finder's "._0.png" beside "0.png"; webdataset takes the folder for their key."""
    members = [("a/._0.png", b"x"), ("a/0.png", b"y"), (".b", b"z")]
    path = write_tar(tmp_path / "a.tar", members)
    with tarfile.open(path, "a") as tar:
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE):
            header = tarfile.TarInfo("other.png")
            header.type, header.linkname = kind, "/etc/passwd"
            tar.addfile(header)
    assert content(index_shard(path)) == [("a/0", {"png": b"y"})]


@pytest.mark.timing
def test_threads_and_forked_workers_read_the_same(tmp_path):
    members = [(f"{i:04d}.bin", os.urandom(1000 + i)) for i in range(300)]
    shard = index_shard(write_tar(tmp_path / "a.tar", members))
    places = [sample.members["bin"] for sample in shard.samples] * 3
    expected = [data for _, data in members] * 3
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda place: read_member(shard.path, place), places)) == expected
    context = multiprocessing.get_context("fork")
    with context.Pool(3) as workers:
        assert workers.starmap(read_member, [(shard.path, place) for place in places]) == expected


def test_reading_a_shard_that_shrank_or_vanished_is_an_error(tmp_path):
    shard = index_shard(write_tar(tmp_path / "a.tar", [("0.bin", bytes(9000))]))
    for change in (lambda: os.truncate(shard.path, 4000), shard.path.unlink):
        change()
        with refused(shard.path):
            read_member(shard.path, shard.samples[0].members["bin"])


# ---- damage ----


def test_a_cut_at_any_place_keeps_what_is_whole_and_counts_the_damage(tmp_path):
    members = [(f"{i:02d}.{ext}", os.urandom(700)) for i in range(4) for ext in ("png", "txt")]
    whole = write_tar(tmp_path / "whole.tar", members).read_bytes()
    end_of_data = len(members) * (512 + 1024)
    for cut in (*range(512, end_of_data + 1, 128), end_of_data + 1, end_of_data - 1, 513):
        path = tmp_path / "cut.tar"
        path.write_bytes(whole[:cut])
        shard = index_shard(path)
        found = [data for _, sample in content(shard) for data in sample.values()]
        whole_members = sum(cut >= i * 1536 + 512 + 700 for i in range(len(members)))
        assert found == [data for _, data in members[:whole_members]], cut
        assert shard.damage.total == 1 or cut > end_of_data, cut
    assert index_shard(tmp_path / "whole.tar").damage.total == 0


def test_a_broken_header_in_the_middle_is_counted(tmp_path):
    path = write_tar(tmp_path / "a.tar", [(f"{i}.txt", bytes(100)) for i in range(5)])
    data = bytearray(path.read_bytes())
    data[2 * 1024 + 150] ^= 0xFF  # checksum field of the third member
    path.write_bytes(data)
    shard = index_shard(path)
    assert [sample.key for sample in shard.samples] == ["0", "1"]
    ((cause, where),) = shard.damage.first.items()
    assert cause.startswith("unreadable header")
    assert where.endswith("byte 2,048")


def test_the_same_name_twice_in_a_sample_is_counted(tmp_path):
    shard = index_shard(write_tar(tmp_path / "a.tar", [("0.txt", b"first"), ("0.TXT", b"second")]))
    assert content(shard) == [("0", {"txt": b"first"})]
    assert shard.damage.counts == {"second member of the same name": 1}


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.tuples(st.integers(0, 10239), st.integers(0, 255)), min_size=1, max_size=6),
    st.booleans(),
)
def test_flipped_bytes_never_lead_outside_the_file(tmp_path, flips, seal):
    path = write_tar(tmp_path / "a.tar", [(f"{'d' * 120}/{i}.txt", bytes(300)) for i in range(3)])
    data = bytearray(path.read_bytes())
    for at, value in flips:
        data[at] = value
        if seal:
            seal_header(data, at - at % 512)
    path.write_bytes(data)
    try:
        shard = index_shard(path)
    except UserError:
        return
    for sample in shard.samples:
        for offset, size in sample.members.values():
            assert 0 <= offset <= offset + size <= len(data)


@pytest.mark.parametrize(
    "size", [b"\x80" + b"\x7f" * 11, b"\xff" * 12, b"\xff" * 11 + b"\x00", b"77777777777\0"]
)
@pytest.mark.parametrize("kind", [b"0", b"x", b"L", b"5"])
def test_nonsense_sizes_are_counted(tmp_path, size, kind):
    path = write_tar(tmp_path / "a.tar", [(f"{i}.txt", bytes(300)) for i in range(3)])
    data = bytearray(path.read_bytes())
    data[1024 + 124 : 1024 + 136], data[1024 + 156 : 1024 + 157] = size, kind
    seal_header(data, 1024)
    path.write_bytes(data)
    shard = index_shard(path)
    assert [sample.key for sample in shard.samples] == ["0"]
    assert shard.damage.total == 1


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


@pytest.mark.parametrize(
    "pattern",
    [
        "{000..012}",
        "x{8..11}y",
        "{a,b}{1..2}",
        "{b,a,c}",
        "{3..1}",
        "{08..11}",
        "p{a,q{1..3}}",
        "{x}",
        "plain",
        "a{,b}",
    ],
)
def test_braces_expand_as_in_bash(tmp_path, pattern):
    names = list(braceexpand(f"{pattern}.tar"))
    for name in names:
        (tmp_path / name).touch()
    assert [path.name for path in expand(f"{tmp_path}/{pattern}.tar")] == names


def test_folders_globs_and_several_patterns(tmp_path):
    for name in ("a/2.tar", "a/1.tar", "a/notes.txt", "b/deep/3.tar", "with space/4.tar"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    def names(pattern):
        return [str(path.relative_to(tmp_path)) for path in expand(pattern)]

    assert names(f"{tmp_path}/a") == ["a/1.tar", "a/2.tar"]
    assert names(f"{tmp_path}/**/3.tar") == ["b/deep/3.tar"]
    assert names(f"{tmp_path}/b/deep/3.tar {tmp_path}/a/*.tar") == [
        "b/deep/3.tar",
        "a/1.tar",
        "a/2.tar",
    ]
    assert names(f"{tmp_path}/a {tmp_path}/a/2.tar") == ["a/1.tar", "a/2.tar"]
    assert names(f"{tmp_path}/with space") == ["with space/4.tar"]
    assert names(f"{tmp_path}/{{a,b/deep}}") == ["a/1.tar", "a/2.tar", "b/deep/3.tar"]


@pytest.mark.parametrize(
    ("pattern", "about"),
    [
        ("  ", "'  '"),
        ("{root}/none.tar", "{root}/none.tar"),
        ("{root}/*.tar", "{root}/*.tar"),
        ("{root}/empty", "{root}/empty/*.tar"),
        ("{root}/{{0..3}}.tar", "{root}/2.tar"),
    ],
)
def test_a_pattern_without_a_file_is_an_error(tmp_path, pattern, about):
    (tmp_path / "empty").mkdir()
    if "0..3" in pattern:
        for i in (0, 1, 3):
            (tmp_path / f"{i}.tar").touch()
    with refused(about.format(root=tmp_path)):
        expand(pattern.format(root=tmp_path))


# ---- images ----


@pytest.mark.parametrize(
    "kind", ["PNG RGB", "PNG P", "PNG 1", "PNG RGBA", "JPEG CMYK", "JPEG L", "WEBP RGB"]
)
def test_images_of_every_usual_kind_become_rgb(kind):
    data = encoded(*kind.split())
    image = decode_image(data)
    assert (image.mode, image.size) == ("RGB", (8, 6))
    assert image.tobytes() == Image.open(io.BytesIO(data)).convert("RGB").tobytes()


def test_unusable_images_are_refused_by_cause():
    png = encoded("PNG", size=(64, 64))
    deep = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 900).save(deep, "PNG")
    jpeg = encoded("JPEG", size=(64, 64))
    corrupt = (b"", b"not an image", png[: len(png) // 2], png[:20], jpeg[:400])
    cases = [
        *(("corrupt image", data) for data in corrupt),
        *(("oversized image", claiming(png, *size)) for size in ((20_000, 3_300), (10**5, 10**5))),
        ("image of more than 8 bits", deep.getvalue()),
    ]
    for cause, data in cases:
        with pytest.raises(DamagedImageError) as caught:
            decode_image(data)
        assert caught.value.cause == cause


def claiming(png, width, height):
    header = png[12:16] + width.to_bytes(4, "big") + height.to_bytes(4, "big") + png[24:29]
    return png[:12] + header + zlib.crc32(header).to_bytes(4, "big") + png[33:]


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["PNG", "JPEG", "WEBP"]),
    st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), max_size=6),
    st.floats(0, 1),
)
def test_broken_images_raise_nothing_else(kind, flips, keep):
    data = bytearray(encoded(kind, size=(24, 24)))
    for at, value in flips:
        data[at % len(data)] = value
    try:
        image = decode_image(bytes(data[: int(len(data) * keep) + 1]))
    except DamagedImageError:
        return
    assert image.mode == "RGB"


def test_a_damaged_image_is_described_without_the_address_of_a_buffer():
    for read in (decode_image, open_image):
        with pytest.raises(DamagedImageError, match=r"^corrupt image: [^<]*image file$"):
            read(b"no image")
