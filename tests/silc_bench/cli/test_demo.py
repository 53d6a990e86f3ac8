"""The demo's whole way at the size of a test; a second call does nothing anew.

The way: two runs, every task, images, page.
"""

import io
import os
import signal
from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from commands import TINY
from PIL import Image
from rich.console import Console

from silc_bench.cli import run_demo as demo
from silc_bench.datasets.dataset import IGNORE
from silc_bench.datasets.generated.shapes.scenes import SHAPES
from silc_bench.errors import RunError
from silc_bench.models.preprocessing import ImagePipeline
from silc_bench.results.folders import read
from silc_bench.show.colors import INK, PALETTE
from silc_bench.show.sheet import CELL, GAP, GROUP_GAP, LINE, MARGIN
from silc_bench.tasks.selection import select
from silc_bench.trainer import loop
from silc_bench.trainer.checkpoints.model import NativeImageModel
from silc_bench.trainer.config import presets
from silc_bench.trainer.config.presets import configure

pytestmark = pytest.mark.broad

SMALL = """
    vision.image_size=16 vision.patch_size=4 views.global_size=16 views.local_size=8
    checkpoint_every=100
"""
STEPS, BATCH = 3, 8
TASKS = 10
NAMES = {"shapes_tiny-contrastive:student", "shapes_tiny-silc:student"}
# images that are scored, and images whose pixels a dense probe learns from
NUM_TEST, NUM_MASKS = 20, 40
# the fewest scenes that hold ten of each class, as the main metric of few-shot needs
NUM_TRAIN = 1000
# for what stops and goes on: neither has anything to learn
FEW = ("shapes/retrieval", "shapes/zeroshot")


def small_tasks(patterns):
    """The same tasks on fewer images: whole splits, so that they rank."""

    def thin(source, count, data_root, limit):
        assert limit is None
        return source(data_root, None).part(range(count))

    tasks = []
    for task in select(patterns):
        counts = {"train": NUM_MASKS if "dense" in task.requires else NUM_TRAIN, "test": NUM_TEST}
        sources = {}
        for role, source in task.sources.items():
            sources[role] = partial(thin, source, counts[role])
        tasks.append(replace(task, sources=sources))
    return tasks


@pytest.fixture(scope="module")
def patched():
    """Everything small; counts training steps and encoded batches of images."""
    counts = Counter()
    with pytest.MonkeyPatch.context() as patch:
        tiny = configure("shapes_tiny", "silc", sets=[*TINY.split(), *SMALL.split()])
        patch.setitem(presets.PRESETS, "shapes_tiny", lambda: tiny)
        patch.setattr(loop, "TOKENIZER_CAPTIONS", 50)
        patch.setattr(demo, "FAST_SAMPLES", STEPS * BATCH)
        patch.setattr(demo, "select", small_tasks)
        for what, owner, name in (
            ("steps", loop, "train_step"),
            ("batches", NativeImageModel, "encode_image"),
        ):
            patch.setattr(owner, name, counted(getattr(owner, name), counts, what))
        yield counts


def counted(function, counts, what):
    def call(*args, **kwargs):
        counts[what] += 1
        return function(*args, **kwargs)

    return call


@pytest.fixture
def counts(patched):
    patched.clear()
    return patched


def run_demo(out):
    """(what it printed, whether each record was new, the page)."""
    screen, is_new = io.StringIO(), []
    page = demo.run_demo(
        out,
        is_fast=True,
        console=Console(file=screen, width=200),
        on_result=lambda record, new: is_new.append(new),
    )
    return screen.getvalue(), is_new, page


@pytest.fixture(scope="module")
def finished(patched, tmp_path_factory):
    """A demo that ran to its end: its folder and what ``run_demo`` gave."""
    out = tmp_path_factory.mktemp("demo")
    return out, run_demo(out)


def files_in(folder):
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_both_models_are_measured_on_every_task_and_rank(finished):
    out, (screen, is_new, _) = finished
    assert is_new == [True] * 2 * TASKS
    records = read([out / "results"]).records
    measured = {(record.model.name, record.task.name) for record in records}
    assert len(measured) == len(records) == 2 * TASKS
    assert {name for name, _ in measured} == NAMES
    assert len({record.model.revision for record in records}) == 2
    assert {record.limit for record in records} == {None}
    assert "What self-distillation changed" in screen


def test_both_runs_see_the_same_images_and_the_page_holds_all(finished):
    out, (_, _, page) = finished
    checkpoints = (out / "runs").glob("shapes_tiny-*/checkpoints/*.pt")
    assert [path.name for path in checkpoints] == 2 * [f"step_{STEPS:08d}.pt"]
    text = page.read_text(encoding="utf-8")
    for words in (*NAMES, "What self-distillation changed", "mIoU", "Patch PCA: three principal"):
        assert words in text
    assert text.count("data:image/png;base64,") == 1
    pages = {f"leaderboard.{ending}" for ending in ("md", "csv", "json", "html")}
    assert {path.name for path in out.iterdir()} == {"runs", "results"} | pages


def columns_of(path, count):
    """The sheet's cells [SHOWN, CELL, CELL, 3] of each column.

    Columns stand in pairs, each row below its titles.
    """
    pixels = np.asarray(Image.open(path))
    index = np.arange(count)
    lefts = MARGIN + index * (CELL + GAP) + index // 2 * (GROUP_GAP - GAP)
    assert pixels.shape[1] == lefts[-1] + CELL + MARGIN
    tops = MARGIN + 2 * (LINE + GAP) + np.arange(demo.SHOWN) * (CELL + LINE + 3 * GAP)
    cell = np.arange(CELL)
    rows, cols = (tops[:, None] + cell)[..., None], lefts[:, None, None, None] + cell
    return pixels[rows, cols]


class Oracle:
    """Knows the shape at every pixel, and the shape that a text names."""

    name, revision, embed_dim = "oracle-silc:student", "0" * 16, len(SHAPES)
    image_size, patch_size, text_protocol = 64, 1, {"cleaning": "none"}
    dense_methods = ("tokens", "maskclip")
    pipeline = ImagePipeline(64, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

    def __init__(self):
        dataset = demo.Shapes("test", demo.SHOWN)
        self.truth, self.texts = {}, []
        for index in range(demo.SHOWN):
            mask = demo.without_background(dataset.mask(index))
            self.truth[dataset.image(index).tobytes()] = mask

    def to(self, device):
        return self

    def tokenize(self, texts):
        self.texts = texts
        return torch.arange(len(texts))[:, None]

    def encode_text(self, tokens):
        rows = [self.texts[row].split() for row in tokens[:, 0].tolist()]
        return torch.tensor([[float(shape in words) for shape in SHAPES] for words in rows])

    def encode_dense(self, images, methods):
        pixels = (255 * images).round().byte().permute(0, 2, 3, 1).numpy()
        masks = np.stack([self.truth[image.tobytes()] for image in pixels])
        known = np.eye(len(SHAPES))[np.where(masks == IGNORE, 0, masks)]
        return dict.fromkeys(methods, torch.from_numpy(known).float())


def test_masks_are_the_nearest_names(tmp_path):
    demo.draw_dense([Oracle()], tmp_path / "a.png", torch.device("cpu"))
    scenes, truth, mask, _ = columns_of(tmp_path / "a.png", 4)
    for index, scene in enumerate(scenes):
        image = demo.Shapes("test", demo.SHOWN).image(index)
        enlarged = image.resize((CELL, CELL), Image.Resampling.NEAREST)
        np.testing.assert_array_equal(scene, enlarged)
    colors = {tuple(color) for color in truth.reshape(-1, 3).tolist()}
    assert len(colors) > 3
    assert colors <= {*PALETTE, (255, 255, 255), INK}
    is_scored = (truth != 255).any(axis=-1)
    np.testing.assert_array_equal(mask[is_scored], truth[is_scored])
    beside = {tuple(color) for color in mask[~is_scored].tolist()}
    assert beside <= set(PALETTE), "the prediction is flat: nothing marks where it is scored"
    assert (mask == INK).all(axis=-1).any(), "but the true outline"
    assert "two models on six test scenes" in (tmp_path / "a.txt").read_text()


def test_a_second_call_trains_and_measures_nothing(finished, counts):
    out, (screen, _, _) = finished
    before = files_in(out)
    again, is_new, _ = run_demo(out)
    assert not counts
    assert is_new == [False] * 2 * TASKS
    assert again.count("is already complete") == 2
    assert files_in(out) == before, "tables, page and image too are the same bytes"
    assert again.splitlines()[-1] == screen.splitlines()[-1]


@pytest.mark.timing
@pytest.mark.parametrize("stopped_after", [1, STEPS + 1])
def test_a_demo_stopped_while_it_trains_goes_on(
    finished, counts, tmp_path, monkeypatch, stopped_after
):
    """Two tasks instead of all: where it goes on does not depend on how many it has."""
    monkeypatch.setattr(demo, "select", lambda patterns: small_tasks(FEW))
    step = loop.train_step

    def interrupted(*args):
        values = step(*args)
        if counts["steps"] == stopped_after:
            os.kill(os.getpid(), signal.SIGINT)
        return values

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", interrupted)
        with pytest.raises(RunError, match="stopped by SIGINT after step 1"):
            run_demo(tmp_path)
    assert counts["steps"] == stopped_after
    assert not list(tmp_path.rglob("leaderboard.*"))
    _, is_new, page = run_demo(tmp_path)
    assert counts["steps"] == 2 * STEPS, "no step twice"
    assert is_new == [True] * 2 * len(FEW)
    assert page.exists()
    stopped, whole = (
        {record.model.revision for record in read([out / "results"]).records}
        for out in (tmp_path, finished[0])
    )
    assert stopped == whole, "the weights of a demo that was not stopped"
