"""Whatever is read as a set of named parts is as it was written, or refused by name.

It is never something else.

One generator of damage (``damage.py``) over every container. What is kept for speed alone (stored
features, indexes of shards) is not refused: the damaged part is not served, and made again.
"""

import json
import shutil
import warnings
from collections import Counter

import made
import numpy as np
import pytest
import safetensors.torch
import torch
from damage import EDGE, of_file, of_folder

from silc_bench.datasets.files.shards import Damage
from silc_bench.errors import UserError
from silc_bench.models.adapters.huggingface import files as hf_files
from silc_bench.models.adapters.open_clip import checkpoints as open_clip_checkpoints
from silc_bench.models.interface import Training
from silc_bench.models.weights.read import read_weights
from silc_bench.results import outcomes
from silc_bench.results import record as results
from silc_bench.system import checksums
from silc_bench.system.cache import Store
from silc_bench.trainer.checkpoints import file as checkpoint
from silc_bench.trainer.checkpoints import model as native
from silc_bench.trainer.checkpoints.export import export
from silc_bench.trainer.config.config import (
    Config,
    DistillationConfig,
    TextConfig,
    ViewsConfig,
    VisionConfig,
)
from silc_bench.trainer.data import samples as filters
from silc_bench.trainer.data import shard_index as kept_indexes
from silc_bench.trainer.silc.student import Student
from silc_bench.trainer.silc.tokenizers import Tokenizer

pytestmark = pytest.mark.broad

NUM_IMAGES = 24
HITS = np.random.default_rng(0).random(NUM_IMAGES) < 0.6
LABELS = np.repeat([0, 1, 2], NUM_IMAGES // 3)
TOWER = {"width": 8, "depth": 1, "num_heads": 1, "mlp_dim": 8}
CONFIG = Config(
    preset="tiny",
    vision=VisionConfig(image_size=8, patch_size=8, **TOWER),
    text=TextConfig(vocab_size=260, context_length=4, **TOWER),
    views=ViewsConfig(global_size=8, local_size=8, num_local=1),
    distillation=DistillationConfig(weight=0.0),
)


def same(one, other):
    """Equal to the bit, with arrays and tensors anywhere in it."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        is_float = one.dtype.kind == "f"
        return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=is_float)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def check_file(
    path,
    read,
    instead=(),
    loses=None,
    edge=EDGE,
):
    """Every damage of ``path``: ``read`` gives what it gave, or refuses by the file's name.

    Args:
        instead: contents of whole files that do not belong here: of an older version, of another
            measurement.
        loses: whether what was read is no more than a part of what was there; then nothing is
            refused.
    """
    whole, expected, wrong = path.read_bytes(), read(), []
    others = ((f"file {number} in its place", content) for number, content in enumerate(instead))
    for name, content in (*of_file(whole, edge), *others):
        with open(path, "r+b") as file:  # many times cheaper than a new file each time
            file.write(content)
            file.truncate()
        if fault := fault_of(read, expected, path.name, loses):
            wrong.append(f"{name}: {fault}")
    path.write_bytes(whole)
    assert same(read(), expected)
    assert not wrong, f"{len(wrong)} damages, of which {wrong[:5]}"


def fault_of(read, expected, name, loses):
    """Empty where it is read as it was written, or less of it, or refused by name."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            given = read()
    except UserError as error:
        return "" if loses is None and name in str(error) else f"refused: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    is_right = same(given, expected) or (loses is not None and loses(given, expected))
    return "" if is_right else "read as something else"


# --- records and what each sample scored ----------------------------------------------------------


def record_of(hits, limit=None):
    recall = np.mean([hits[label == LABELS].mean() for label in range(3)])
    metrics = {"acc1": hits.mean(), "mean_per_class_recall": recall}
    return made.record_of("a:student", metrics, n=NUM_IMAGES, limit=limit)


def test_a_record(tmp_path):
    record = record_of(HITS)
    path = results.save(record, tmp_path)
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(fields.items()))))
    assert results.read_file(path, tmp_path) == record, "the order of the fields is no difference"
    del fields["checksums"]
    others = [json.dumps(fields), record_of(HITS, limit=5).to_json()]
    check_file(path, lambda: results.read_file(path, tmp_path), map(str.encode, others))


def test_what_each_sample_scored(tmp_path):
    record = record_of(HITS)
    arrays = {"acc1": HITS, "labels": LABELS}
    outcomes.save(outcomes.pack(arrays, record), record, tmp_path)
    others = [outcomes.pack({"acc1": HITS}, record_of(HITS, limit=5))]
    check_file(outcomes.path_of(record, tmp_path), lambda: outcomes.load(record, tmp_path), others)


@pytest.mark.parametrize("stated", [None, 3, "acc1", ["acc1"]])
def test_a_header_that_lists_no_parts_is_refused(stated):
    assert checksums.differences(stated, {"acc1": "0" * 16})
    assert checksums.differences({"acc1": stated}, {"acc1": "0" * 16}) == "acc1 is altered"


# --- stored features ------------------------------------------------------------------------------


@pytest.fixture
def entry(tmp_path):
    """Every kind of part."""
    entry = Store(tmp_path / "cache").entry({"model": "m", "revision": "0" * 16})
    fill(entry, np.random.default_rng(0).normal(size=(8, 3)))
    return entry


def fill(entry, numbers):
    for start in (0, 8):
        entry.save(start, (numbers + start).astype(np.float32))
    for index in (0, 1):
        entry.save_grid(index, (16, 16), np.resize(numbers + index, (2, 2, 3)).astype(np.float16))
    entry.save_texts(["a", "b"], numbers[:2].astype(np.float32))
    entry.save_texts(["c", "d"], numbers[2:4].astype(np.float32))
    entry.save_word(repr(numbers[0, 0]))


def served(entry):
    """All that an entry gives to whoever asks: by row, image, text."""
    rows, is_known = entry.rows(16, 3)
    given = {f"row {index}": rows[index] for index in np.flatnonzero(is_known)}
    for index in entry.grids():
        grid = entry.grid(index, (16, 16))
        given |= {} if grid is None else {f"grid {index}": grid}
    given |= entry.texts(3)
    return given | ({} if entry.word() is None else {"word": entry.word()})


def is_less(given, expected):
    return all(name in expected and same(value, expected[name]) for name, value in given.items())


@pytest.mark.parametrize(
    "kind", ["rows-000000000-000000008.npy", "grid-000000000-16x16.npy", "texts-*.npy", "word.npy"]
)
def test_a_part_of_the_store(entry, kind, tmp_path):
    path = sorted(entry.folder.glob(kind))[0]
    other = Store(tmp_path / "other").entry({"model": "other"})
    fill(other, np.ones((8, 3)))
    parts = [part.read_bytes() for part in sorted(other.folder.iterdir())]
    check_file(path, lambda: served(entry), parts, is_less)


def test_the_folder_of_an_entry(entry):
    """Parts that changed places are served in neither."""
    expected = served(entry)
    for name in of_folder(entry.folder):
        assert is_less(served(entry), expected), name
    assert same(served(entry), expected)


# --- checkpoints ----------------------------------------------------------------------------------


def payload(step=3):
    generator = torch.Generator().manual_seed(step)
    return {
        "config": '{"preset": "tiny"}',
        "tokenizer": "{}",
        "student": {"weight": torch.randn(3, 2, generator=generator)},
        "teacher": {"center": torch.randn(3, generator=generator)},
        "optimizer": {
            "state": {0: {"step": torch.tensor(3.0)}},
            "param_groups": [{"lr": 0.1, "betas": (0.9, 0.95)}],
        },
        "step": step,
        "samples_seen": 8 * step,
        "position": 8 * step + 1,
    }


def saved(step):
    return {"format": checkpoint.FORMAT, **payload(step)}


def test_a_checkpoint_alone(tmp_path):
    """It was copied without the words beside it: the checksums are inside."""
    path, older = tmp_path / "x.pt", tmp_path / "older.pt"
    shutil.copy(checkpoint.save(tmp_path / "run", payload()), path)
    torch.save({**payload(), "format": "silc-bench-checkpoint/1"}, older)
    check_file(path, lambda: checkpoint.load(path), [older.read_bytes()])


def test_a_checkpoint_whose_tensors_were_replaced_is_refused_by_part(tmp_path):
    """The archive is whole, and every checksum of its own is right."""
    whole = checkpoint.with_checksums({"format": checkpoint.FORMAT, **payload()})
    for change, words in (
        ({"teacher": {"center": torch.zeros(3)}}, "teacher is altered"),
        ({"student": {"weight": whole["student"]["weight"].reshape(2, 3)}}, "student is altered"),
        ({"samples_seen": 25}, "samples_seen is altered"),
        ({"average": {}}, "average does not belong to it"),
        ({"checksums": {**whole["checksums"], "start": "0" * 16}}, "start is missing"),
        ({"checksums": None}, "does not say which parts"),
    ):
        torch.save({**whole, **change}, tmp_path / "x.pt")
        with pytest.raises(checkpoint.DamagedCheckpointError, match=rf"x\.pt: damaged: .*{words}"):
            checkpoint.load(tmp_path / "x.pt")


@pytest.fixture
def run(tmp_path):
    """Two checkpoints, the first with the better score."""
    for step, score in ((1, 0.9), (2, 0.5)):
        checkpoint.save(tmp_path / "run", payload(step), score)
    return tmp_path / "run"


def test_the_folder_of_checkpoints(run):
    """The newest whole one is what was written then; the best one is the best, or not known."""
    folder, refused = run / "checkpoints", set()
    first, second = checkpoint.all_in(run)
    for name in of_folder(folder):
        assert checkpoint.best_in(run) in (None, *checkpoint.all_in(run)), name
        for path in checkpoint.all_in(run):
            try:
                assert same(checkpoint.load(path), saved(int(path.stem[-1]))), name
            except UserError as error:
                refused.add(name)
                # not every damage is refused
                assert path.name in str(error)  # noqa: PT017
                assert path.stem in name, f"{path.name} is refused: {name}"
    assert f"{first.name} and {second.name} are swapped" in refused
    words = [path.with_suffix(".json").name for path in (second, first)]
    assert " is in the place of ".join(words) in refused
    assert checkpoint.best_in(run) == first


def test_checkpoints_that_changed_places_with_their_words(run):
    first, second = checkpoint.all_in(run)
    for suffix in (".pt", ".json"):
        paths = [path.with_suffix(suffix) for path in (first, second)]
        contents = [path.read_bytes() for path in paths]
        for path, content in zip(paths, reversed(contents), strict=True):
            path.write_bytes(content)
    with pytest.raises(UserError, match="it holds step 1 and was renamed"):
        checkpoint.load_newest(run)


def test_the_words_beside_a_checkpoint(run):
    """A score that was altered is not believed, and the checkpoint itself needs none."""
    first, second = checkpoint.all_in(run)
    words = first.with_suffix(".json")
    check_file(
        words,
        lambda: (checkpoint.best_in(run), checkpoint.load(first)),
        loses=lambda read, _: same(read, (second, saved(1))),
    )
    words.write_text(words.read_text().replace("0.9", "0.1"))
    assert checkpoint.best_in(run) == second, "not by its score, which is not known"
    words.unlink()
    assert same(checkpoint.load(first), saved(1))
    words.write_bytes(second.with_suffix(".json").read_bytes())
    with pytest.raises(UserError, match=rf"its sha256 is not that of {words.name}"):
        checkpoint.load(first)


# --- indexes of shards ----------------------------------------------------------------------------


def test_an_index_of_a_shard(tmp_path):
    places = []
    for number in (1, 2):
        path = tmp_path / f"{number}.tar"
        path.write_bytes(bytes(number))
        shard = kept_indexes.Shard(str(path))
        places.append(kept_indexes.kept_at(shard, filters.parse(""), tmp_path / "kept"))
        rows = np.arange(12).reshape(2, 6) * number
        index = kept_indexes.ShardIndex(
            rows, Damage({"no text": number}, "a"), Counter({"width": 1})
        )
        kept_indexes.keep(index, shard, places[-1])

    def read():
        index = kept_indexes.load(places[0])
        return index and (index.rows, index.damage.counts, index.damage.first, index.left_out)

    check_file(places[0], read, [places[1].read_bytes()], loses=lambda given, _: given is None)


# --- exports --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    student = Student(CONFIG)
    generator = torch.Generator().manual_seed(0)
    for parameter in student.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    tokenizer = Tokenizer.train(["a red ring"], 260, 4)
    training = Training("tiny", "silc", "student", "shapes", seed=0, step=4)
    return native.NativeModel("own:student", student, student.vision, tokenizer, training)


def test_an_exported_file(model, tmp_path):
    path = tmp_path / "x.safetensors"
    export(model, "safetensors", path)
    without_checksums = safetensors.torch.save(native.tensors(model), native.metadata(model))

    def read():
        loaded = native.load(path)
        return loaded.name, loaded.revision, loaded.logit_scale, loaded.tokenizer.to_json()

    check_file(path, read, [without_checksums], edge=256)


READERS = {
    "hf": lambda folder: hf_files.find_folder(str(folder), needs_weights=True),
    "open_clip": open_clip_checkpoints._from_folder,
}


@pytest.mark.parametrize("target", READERS)
@pytest.mark.parametrize("reader", ["adapter", "weights"])
def test_an_exported_folder(model, tmp_path, target, reader):
    """Without its list of files it is anybody's folder.

    What is in it for people is not looked at.
    """
    folder = tmp_path / target
    export(model, target, folder)
    listed = contents(folder)
    read = READERS[target] if reader == "adapter" else read_weights
    for name in of_folder(folder):
        files = contents(folder)
        damaged = {file for file in files | listed if files.get(file) != listed.get(file)}
        try:
            read(folder)
        except UserError as error:
            # not every damage is refused
            assert str(folder) in str(error), name  # noqa: PT017
            assert any(file in str(error) for file in damaged), f"{name}: {error}"  # noqa: PT017
        else:
            assert damaged & listed.keys() == {checksums.MANIFEST}, name
            assert checksums.MANIFEST not in files, name
    (folder / "README.md").write_text("mine")
    read(folder)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}
