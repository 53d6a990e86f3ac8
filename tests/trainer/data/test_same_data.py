"""A resumed run knows other data, and the same data at another place."""

import shutil

import pytest

from pairs import encoded, shard, source  # isort: skip


def write_shards(folder):
    for number in range(2):
        samples = [{"png": encoded(n), "txt": f"number {n} of {number}"} for n in range(4)]
        shard(folder / f"{number}.tar", samples)


def write_folder(folder):
    for n in range(4):
        (folder / f"{n}.png").write_bytes(encoded(n))
        (folder / f"{n}.txt").write_text(f"number {n}")


def write_list(folder):
    write_folder(folder)
    rows = [f'{{"file": "{n}.png", "caption": "number {n}"}}' for n in range(4)]
    (folder / "list.jsonl").write_text("\n".join(rows))


def another_shard(folder):
    shard(folder / "2.tar", [{"png": encoded(1), "txt": "one more"}])


def another_image(folder):
    shutil.copy(folder / "0.png", folder / "more.png")
    shutil.copy(folder / "0.txt", folder / "more.txt")


def another_row(folder):
    with open(folder / "list.jsonl", "a") as file:
        file.write('\n{"file": "0.png", "caption": "another of it"}')


def another_color(folder):
    samples = [{"png": encoded(9), "txt": f"number {n} of 1"} for n in range(4)]
    shard(folder / "1.tar", samples)


def another_word(folder):
    (folder / "0.txt").write_text("nimber 0")


def a_shard_less(folder):
    (folder / "0.tar").unlink()


def a_larger_image(folder):
    (folder / "0.png").write_bytes(encoded(0, size=(40, 30)))


@pytest.mark.parametrize(
    ("write", "change"),
    [
        (write_shards, another_shard),
        (write_shards, a_shard_less),
        (write_shards, another_color),
        (write_folder, another_image),
        (write_folder, another_word),
        (write_folder, a_larger_image),
        (write_list, another_row),
        (write_list, a_larger_image),
    ],
    ids=lambda function: function.__name__,
)
@pytest.mark.parametrize("mixed", ["{}", "3 * {} | 1 * shapes"])
def test_other_data_has_another_fingerprint_and_moved_data_the_same(tmp_path, write, change, mixed):
    folder = tmp_path / "here"
    folder.mkdir()
    write(folder)

    def fingerprint():
        return source(mixed.format(folder)).identity()["fingerprint"]

    before = fingerprint()
    folder = shutil.copytree(folder, tmp_path / "elsewhere")
    assert fingerprint() == before
    change(folder)
    assert fingerprint() != before


def test_generated_scenes_are_told_apart_by_what_they_show():
    words = ("shapes", "places", "places:num_pairs=16", "places:num_pairs=16,own_color=0.2")
    words += ("1 * shapes | 1 * places", "2 * shapes | 1 * places")
    identities = [source(word, decode_size=64).identity() for word in words]
    assert len({identity["fingerprint"] for identity in identities}) == len(words)
    assert [identity["pairs"] for identity in identities[:3]] == [None, None, 16]
