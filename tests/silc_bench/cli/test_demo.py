"""The demo's whole way at the size of a test; a second call does nothing anew.

The way: two runs, every task, pictures, page.
"""

from __future__ import annotations

import io
import os
import signal
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from silc_bench.cli import run_demo as demo
from silc_bench.datasets.dataset import IGNORE
from silc_bench.datasets.shapes.scenes import SHAPES
from silc_bench.errors import RunError, UserError
from silc_bench.models.preprocessing import ImagePipeline
from silc_bench.results.record import load_all
from silc_bench.show.colors import PALETTE
from silc_bench.show.sheet import CELL, GAP, GROUP_GAP, LINE, MARGIN
from silc_bench.tasks.selection import select
from silc_bench.trainer import loop
from silc_bench.trainer.config import presets

pytestmark = pytest.mark.broad

STEPS, BATCH = 3, 8
TASKS = 10
# images that are scored, and images whose pixels a dense probe learns from
NUM_TEST, NUM_MASKS = 20, 40
# the fewest scenes that hold ten of each class, as the main metric of few-shot needs
NUM_TRAIN = 1000
# for what stops and goes on: neither has anything to learn
FEW = ("shapes/retrieval", "shapes/zeroshot")


def tiny_preset():
    tower = {"width": 32, "depth": 1, "num_heads": 2, "mlp_dim": 48}
    full = presets.shapes_tiny()
    return replace(
        full,
        vision=replace(full.vision, image_size=16, patch_size=4, **tower),
        text=replace(full.text, vocab_size=300, **tower),
        views=replace(full.views, global_size=16, local_size=8, num_local=2),
        distillation=replace(
            full.distillation, num_prototypes=64, hidden_dim=32, bottleneck_dim=16
        ),
        batch_size=BATCH,
        checkpoint_every=100,
    )


def small_tasks(patterns):
    """The same tasks on fewer pictures: whole splits, so that they rank."""

    def thinned(task):
        counts = {"train": NUM_MASKS if "dense" in task.requires else NUM_TRAIN, "test": NUM_TEST}
        return replace(
            task,
            sources={
                role: partial(thin, source, counts[role]) for role, source in task.sources.items()
            },
        )

    def thin(source, count, data_root, limit):
        assert limit is None
        return source(data_root, None).part(range(count))

    return [thinned(task) for task in select(patterns)]


@pytest.fixture(scope="module")
def patched():
    """Everything small; counts training steps and encoded batches of pictures."""
    counts = {"steps": 0, "batches": 0}
    with pytest.MonkeyPatch.context() as patch:
        tiny = tiny_preset()
        patch.setitem(presets.PRESETS, "shapes_tiny", lambda: tiny)
        patch.setattr(loop, "TOKENIZER_CAPTIONS", 50)
        patch.setattr(demo, "FAST_SAMPLES", STEPS * BATCH)
        patch.setattr(demo, "select", small_tasks)
        step, encode = loop.train_step, demo.evaluate

        def counted_step(*args):
            counts["steps"] += 1
            return step(*args)

        def counted_evaluate(model, *args, **kwargs):
            forward = model.encode_image

            def counted(images, point="pooled"):
                counts["batches"] += 1
                return forward(images, point)

            model.encode_image = counted
            return encode(model, *args, **kwargs)

        patch.setattr(loop, "train_step", counted_step)
        patch.setattr(demo, "evaluate", counted_evaluate)
        yield counts


@pytest.fixture
def counts(patched):
    patched.update(steps=0, batches=0)
    return patched


@pytest.fixture
def few_tasks(patched, monkeypatch):
    """Two tasks instead of all: where a demo goes on does not depend on how many tasks it has."""
    monkeypatch.setattr(demo, "select", lambda patterns: small_tasks(FEW))


def run_demo(out, **options):
    """(what it printed, whether each record was new, the page)."""
    screen, is_new = io.StringIO(), []
    console = Console(file=screen, width=200)
    page = demo.run_demo(
        out,
        is_fast=True,
        console=console,
        on_result=lambda record, new: is_new.append(new),
        **options,
    )
    return screen.getvalue(), is_new, page


@pytest.fixture(scope="module")
def finished(patched, tmp_path_factory):
    """A demo that ran to its end: its folder and what ``run_demo`` gave."""
    out = tmp_path_factory.mktemp("demo")
    return out, run_demo(out)


def files_in(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_both_models_are_measured_on_every_task_and_rank(finished):
    out, (screen, is_new, _) = finished
    assert is_new == [True] * 2 * TASKS
    records = load_all(out / "results")
    names = {record.model.name for record in records}
    assert names == {"shapes_tiny-contrastive:student", "shapes_tiny-silc:student"}
    assert len({record.model.revision for record in records}) == 2
    tasks = {record.task.name for record in records}
    assert len(tasks) == TASKS
    assert {(record.model.name, record.task.name) for record in records} == {
        (name, task) for name in names for task in tasks
    }
    assert {record.limit for record in records} == {None}
    assert "What self-distillation changed" in screen


def test_both_runs_see_the_same_images(finished):
    out, _ = finished
    steps = [
        path.parent.parent.name + "/" + path.name
        for path in sorted(out.glob("runs/*/checkpoints/*.pt"))
    ]
    assert steps == [
        f"shapes_tiny-{objective}/step_{STEPS:08d}.pt" for objective in ("contrastive", "silc")
    ]


def test_the_page_holds_tables_and_images(finished):
    out, (_, _, page) = finished
    assert page == out / "leaderboard.html"
    text = page.read_text(encoding="utf-8")
    for words in (
        "shapes_tiny-silc:student",
        "shapes_tiny-contrastive:student",
        "What self-distillation changed",
        "mIoU",
    ):
        assert words in text
    assert text.count("data:image/png;base64,") == 1
    assert "Patch PCA: three principal components" in text
    assert {path.name for path in out.iterdir()} == {
        "runs",
        "results",
        "leaderboard.md",
        "leaderboard.csv",
        "leaderboard.html",
    }


def columns_of(path, count):
    """The sheet's cells [SHOWN, CELL, CELL, 3] of each column.

    Columns stand in pairs, each row below its titles.
    """
    pixels, start, step = (
        np.asarray(Image.open(path)),
        MARGIN + 2 * (LINE + GAP),
        CELL + LINE + 3 * GAP,
    )
    assert pixels.shape[1] == 2 * MARGIN + count * (CELL + GAP) - GAP + (count // 2 - 1) * (
        GROUP_GAP - GAP
    )
    lefts = [
        MARGIN + column * (CELL + GAP) + column // 2 * (GROUP_GAP - GAP) for column in range(count)
    ]
    tops = [start + row * step for row in range(demo.SHOWN)]
    return [
        np.stack([pixels[top : top + CELL, left : left + CELL] for top in tops]) for left in lefts
    ]


def test_the_image_has_scenes_truth_and_two_columns_a_model(finished):
    scenes, truth, _, patches, _, other_patches = columns_of(
        finished[0] / "results" / "pictures" / "dense_features.png", 6
    )
    dataset = demo.Shapes("test", 64)
    for index, scene in enumerate(scenes):
        enlarged = dataset.image(index).resize((CELL, CELL), Image.Resampling.NEAREST)
        np.testing.assert_array_equal(scene, enlarged)
    colors = {tuple(color) for color in truth.reshape(-1, 3).tolist()}
    assert colors <= {*PALETTE, (255, 255, 255)}
    assert len(colors) > 2
    assert (patches != other_patches).any(), "the two models differ"


class Oracle:
    """Knows the shape at every pixel, and the shape that a text names."""

    name, revision, embed_dim, image_size, patch_size = (
        "oracle-silc:student",
        "0" * 16,
        len(SHAPES),
        64,
        1,
    )

    dense_methods, pipeline = (
        ("tokens", "maskclip"),
        ImagePipeline(64, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    )

    def __init__(self):
        self.text_protocol = {"cleaning": "none"}
        dataset = demo.Shapes("test", demo.SHOWN)
        self.truth = {
            dataset.image(i).tobytes(): demo.without_background(dataset.mask(i))
            for i in range(demo.SHOWN)
        }
        self.texts = []

    def to(self, device):
        return self

    def tokenize(self, texts):
        self.texts = texts
        return torch.arange(len(texts))[:, None]

    def encode_text(self, tokens):
        return torch.tensor(
            [
                [float(shape in self.texts[row].split()) for shape in SHAPES]
                for row in tokens[:, 0].tolist()
            ]
        )

    def encode_dense(self, images, methods):
        pixels = (255 * images).round().byte().permute(0, 2, 3, 1).numpy()
        masks = [self.truth[image.tobytes()] for image in pixels]
        known = torch.from_numpy(
            np.eye(len(SHAPES))[np.where(np.stack(masks) == IGNORE, 0, masks)]
        ).float()
        return dict.fromkeys(methods, known)


def test_masks_are_the_nearest_names(tmp_path):
    demo.draw_dense([Oracle()], tmp_path / "a.png", torch.device("cpu"))
    _, truth, mask, _ = columns_of(tmp_path / "a.png", 4)
    is_scored = (truth != 255).any(axis=-1)
    assert 0.02 < is_scored.mean() < 0.98
    np.testing.assert_array_equal(mask[is_scored], truth[is_scored])
    assert (mask[~is_scored] != 255).any(axis=-1).all(), "pale, not empty, on the background"
    assert (
        (tmp_path / "a.txt")
        .read_text()
        .startswith("Dense features of the two models on six test scenes.")
    )


def test_a_second_call_trains_and_measures_nothing(finished, counts):
    out, (screen, _, _) = finished
    before = files_in(out)
    again, is_new, _ = run_demo(out)
    assert counts == {"steps": 0, "batches": 0}
    assert is_new == [False] * 2 * TASKS
    assert again.count("is already complete") == 2
    assert files_in(out) == before, "tables, page and picture too are the same bytes"
    assert again.splitlines()[-1] == screen.splitlines()[-1]


@pytest.mark.timing
@pytest.mark.parametrize("stopped_after", [1, STEPS + 1])
def test_a_demo_stopped_while_it_trains_goes_on(
    finished, few_tasks, counts, tmp_path, monkeypatch, stopped_after
):
    step = loop.train_step

    def interrupted(*args):
        values = step(*args)
        if counts["steps"] == stopped_after:
            os.kill(os.getpid(), signal.SIGINT)
        return values

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", interrupted)
        with pytest.raises(RunError, match=r"stopped by SIGINT after step 1; .* is saved"):
            run_demo(tmp_path)
    assert counts["steps"] == stopped_after
    assert not list(tmp_path.rglob("leaderboard.*"))
    _, is_new, page = run_demo(tmp_path)
    assert counts["steps"] == 2 * STEPS, "no step twice"
    assert is_new == [True] * 2 * len(FEW)
    assert page.exists()
    revisions = [
        {record.model.revision for record in load_all(out / "results")}
        for out in (tmp_path, finished[0])
    ]
    assert revisions[0] == revisions[1], "the weights of a demo that was not stopped"


def test_a_demo_stopped_while_it_measures_goes_on(finished, few_tasks, counts, tmp_path):
    for name, data in files_in(finished[0] / "runs").items():
        path = tmp_path / "runs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    seen = []

    def interrupt(record, is_new):
        seen.append(record.task.name)
        if len(seen) == len(FEW) + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        demo.run_demo(
            tmp_path, is_fast=True, console=Console(file=io.StringIO()), on_result=interrupt
        )
    _, is_new, _ = run_demo(tmp_path)
    assert is_new == [False] * (len(FEW) + 1) + [True] * (len(FEW) - 1)
    assert counts["steps"] == 0


def test_a_folder_of_another_demo_is_refused(finished, monkeypatch):
    out, _ = finished
    before = files_in(out)
    monkeypatch.setattr(demo, "FAST_SAMPLES", 2 * STEPS * BATCH)
    with pytest.raises(
        UserError,
        match=rf"{out}/runs/shapes_tiny-contrastive was started with another configuration",
    ):
        run_demo(out)
    assert files_in(out) == before
