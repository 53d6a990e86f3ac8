"""The demo's whole way at the size of a test; a second call does nothing anew.

The way: two packaged models, two runs, every task, images, page.
"""

import hashlib
import io
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from commands import TINY
from PIL import Image
from rich.console import Console

from silc_bench.cli import demo_progress
from silc_bench.cli import run_demo as demo
from silc_bench.cli.demo_progress import OBJECTIVES
from silc_bench.datasets.dataset import IGNORE
from silc_bench.datasets.generated.shapes.dataset import Shapes, ShapesColours
from silc_bench.datasets.generated.shapes.scenes import COLORS, PAINT, SHAPES
from silc_bench.errors import RunError
from silc_bench.metrics.statistics import Paired
from silc_bench.models.load import load_model
from silc_bench.models.preprocessing import ImagePipeline
from silc_bench.reports.comparison.compare import Result
from silc_bench.results.folders import read
from silc_bench.show.colors import INK, PALETTE
from silc_bench.show.sheet import CELL, GAP, GROUP_GAP, LINE, MARGIN
from silc_bench.system.terminal import say, warn
from silc_bench.tasks.selection import select
from silc_bench.trainer import loop
from silc_bench.trainer.checkpoints.model import NativeImageModel
from silc_bench.trainer.config import presets
from silc_bench.trainer.config.presets import configure
from silc_bench.trainer.monitor import watch

pytestmark = pytest.mark.broad

SMALL = """
    vision.image_size=16 vision.patch_size=4 views.global_size=16 views.local_size=8
    checkpoint_every=100
"""
STEPS, BATCH = 3, 8
TASKS = 10
PACKAGED = {"packaged-contrastive", "packaged-silc"}
OWN = {"contrastive:student", "silc:student"}
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
        patch.setattr(watch, "MAX_WAIT", 1.0)  # a busy machine waits for data, and would say so
        patch.setattr(demo, "SAMPLES", STEPS * BATCH)
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
    """(what it printed at 80 columns without a terminal, the page)."""
    screen = io.StringIO()
    console = Console(file=screen, width=80)
    page = demo.run_demo(out, is_full=False, console=console, started=time.perf_counter())
    return screen.getvalue(), page


@pytest.fixture(scope="module")
def finished(patched, tmp_path_factory):
    """A demo that ran to its end: its folder and what ``run_demo`` gave."""
    out = tmp_path_factory.mktemp("demo")
    return out, run_demo(out)


def files_in(folder):
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_every_model_is_measured_on_every_task_and_ranks(finished):
    out, _ = finished
    records = read([out / "results"]).records
    measured = {(record.model.name, record.task.name) for record in records}
    assert len(measured) == len(records) == 4 * TASKS
    assert {name for name, _ in measured} == PACKAGED | OWN
    assert len({record.model.revision for record in records}) == 4
    assert {record.limit for record in records} == {None}


def test_the_screen_tells_it_in_eighty_columns_and_warns_of_nothing(finished):
    out, (screen, page) = finished
    lines = screen.splitlines()
    assert max(len(line) for line in lines if str(out) not in line) <= 80
    begun = [line for line in lines if line[:2] in ("1/", "2/", "3/", "4/")]
    assert [line[:3] for line in begun] == ["1/4", "2/4", "3/4", "4/4"]
    assert sum(line.startswith("first page after") for line in lines) == 1
    assert not [line for line in lines if line.startswith("step ")]

    # a row a task, its name whole
    rows = [line.split() for line in lines if line.startswith("shapes/")]
    assert sorted(row[0] for row in rows) == sorted(task.name for task in demo.tasks_of(False))
    assert all(len(row) in (7, 8) for row in rows)

    told = [line for line in lines if line.startswith(("Asked", "Found", "This tells"))]
    assert len(told) == 3
    assert f"page: {page}" in lines
    # Rows and parts, the first page, sentences, and where the results lie: nothing was said
    # besides, so nothing is alarming in a healthy run.
    assert len(lines) < TASKS + 24


def test_every_name_of_the_full_demo_stays_whole_in_eighty_columns():
    names = [task.name for task in demo.tasks_of(True)]
    assert {name.partition("/")[0] for name in names} == {"shapes", "shapes_colours"}
    assert set(demo.SLOW) < set(names)

    tested = Paired(-0.125, 0.0123, 0.0246, 0.0, "mcnemar")
    compared = [
        Result("a", "b", name, "acc1", True, "native", "q", "f", None, 9, 1.0, 0.875, tested, 0.0)
        for name in names
    ]
    records = [SimpleNamespace(task=SimpleNamespace(name=name, chance=0.104)) for name in names]
    screen = io.StringIO()
    Console(file=screen, width=80).print(demo.table_of(compared, records))
    rows = [line.split() for line in screen.getvalue().splitlines() if line.startswith("shapes")]
    shown = ["10.4", "100.0", "87.5", "-12.5", "±", "1.2", "*"]
    assert rows == [[name, *shown] for name in names]


def test_what_a_run_warns_of_is_shown_and_nothing_else_of_it(finished):
    screen = io.StringIO()
    quiet = demo._Warnings(Console(file=screen, width=80))
    say("step 10/20", quiet)
    warn("the teacher stands still", quiet)
    assert screen.getvalue() == "the teacher stands still\n"


def test_both_runs_see_the_same_images_and_the_page_holds_all(finished):
    out, (_, page) = finished
    checkpoints = (out / "runs").glob("*/checkpoints/*.pt")
    assert [path.name for path in checkpoints] == 2 * [f"step_{STEPS:08d}.pt"]
    text = page.read_text(encoding="utf-8")
    changed = "What self-distillation changed"
    for words in (*PACKAGED, *OWN, changed, "mIoU", "Patch PCA: three principal"):
        assert words in text
    assert text.count("data:image/png;base64,") == 2
    pages = {f"leaderboard.{ending}" for ending in ("md", "csv", "json", "html")}
    assert {path.name for path in out.iterdir()} == {"runs", "results"} | pages


def test_the_packaged_models_are_those_of_the_published_records():
    """And what their page says of them: file, revision, checksum."""
    results = Path(__file__).parents[3] / "results"
    page = (demo.MODELS / "README.md").read_text(encoding="utf-8")
    for objective in OBJECTIVES:
        file = demo.MODELS / f"shapes_tiny-{objective}.safetensors"
        model = load_model(str(file))
        digits = model.revision[:8]
        assert (results / f"shapes_tiny-{objective}+student@{digits}").is_dir()
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        assert f"| `{file.name}` | {digits} | {sha256[:8]} |" in page


def columns_of(path, groups):
    """The sheet's cells [SHOWN, CELL, CELL, 3] of each column.

    ``groups``: how many columns stand together; each row is below its titles.
    """
    pixels = np.asarray(Image.open(path))
    before = np.repeat(np.arange(len(groups)), groups)
    lefts = MARGIN + np.arange(sum(groups)) * (CELL + GAP) + before * (GROUP_GAP - GAP)
    assert pixels.shape[1] == lefts[-1] + CELL + MARGIN
    tops = MARGIN + 2 * (LINE + GAP) + np.arange(demo.SHOWN) * (CELL + LINE + 3 * GAP)
    cell = np.arange(CELL)
    rows, cols = (tops[:, None] + cell)[..., None], lefts[:, None, None, None] + cell
    return pixels[rows, cols]


class Oracle:
    """Knows shape and colour at every pixel, and those that a text names."""

    name, revision, embed_dim = "oracle-silc:student", "0" * 16, len(SHAPES) + len(COLORS)
    image_size, patch_size, text_protocol = 64, 1, {"cleaning": "none"}
    dense_methods = ("tokens", "maskclip")
    pipeline = ImagePipeline(64, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

    def __init__(self):
        sets = [kind("test", demo.SHOWN) for kind in (Shapes, ShapesColours)]
        self.truth, self.texts = {}, []
        for index in range(demo.SHOWN):
            masks = [demo.without_background(dataset.mask(index)) for dataset in sets]
            self.truth[sets[0].image(index).tobytes()] = masks

    def to(self, device):
        return self

    def tokenize(self, texts):
        self.texts = texts
        return torch.arange(len(texts))[:, None]

    def encode_text(self, tokens):
        rows = [self.texts[row].split() for row in tokens[:, 0].tolist()]
        return torch.tensor([[float(n in words) for n in (*SHAPES, *COLORS)] for words in rows])

    def encode_dense(self, images, methods):
        pixels = (255 * images).round().byte().permute(0, 2, 3, 1).numpy()
        shapes, colors = np.swapaxes([self.truth[image.tobytes()] for image in pixels], 0, 1)
        known = [np.eye(8)[np.where(masks == IGNORE, 0, masks)] for masks in (shapes, colors)]
        return dict.fromkeys(methods, torch.from_numpy(np.concatenate(known, axis=-1)).float())


def test_masks_are_the_nearest_names(tmp_path):
    demo.draw_dense([Oracle()], tmp_path / "a.png", torch.device("cpu"))
    scenes, truth, mask, colored, _ = columns_of(tmp_path / "a.png", (2, 3))
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
    paint = {bright for bright, _ in PAINT.values()}
    assert {tuple(color) for color in colored.reshape(-1, 3).tolist()} <= {*paint, INK}
    named = ShapesColours("test", demo.SHOWN)
    for index, cell in enumerate(colored):
        # the middle of a pixel of the scene: an outline may lie on its edge
        zoom = CELL // 64
        seen = cell[zoom // 2 :: zoom, zoom // 2 :: zoom]
        for value, (bright, _) in enumerate(PAINT.values(), 1):
            assert (seen[named.mask(index) == value] == bright).all()
    assert "two models on six test scenes" in (tmp_path / "a.txt").read_text()


def test_a_second_call_trains_and_measures_nothing(finished, counts):
    out, (screen, _) = finished
    before = files_in(out)
    again, _ = run_demo(out)
    assert not counts
    assert files_in(out) == before, "tables, page and images too are the same bytes"

    def told(text):
        return text[text.index("task  ") :]

    assert told(again) == told(screen)


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
        with pytest.raises(RunError, match="stopped by SIGINT after step 1; nothing is lost"):
            run_demo(tmp_path)
    assert counts["steps"] == stopped_after
    first = (tmp_path / "leaderboard.html").read_text(encoding="utf-8")
    assert all(name in first for name in PACKAGED), "a page stands before anything is trained"

    _, page = run_demo(tmp_path)
    assert counts["steps"] == 2 * STEPS, "no step twice"
    assert all(name in page.read_text(encoding="utf-8") for name in OWN)
    stopped, whole = (
        {record.model.revision for record in read([out / "results"]).records}
        for out in (tmp_path, finished[0])
    )
    assert stopped == whole, "the weights of a demo that was not stopped"


# ---- what it says at once, and the bar ----

LOADED = "import sys; print(sorted({'torch', 'numpy', 'pandas'} & set(sys.modules)))"


def test_what_it_will_do_is_said_before_torch_is_loaded():
    program = f"from silc_bench.cli.demo_progress import plan; print(len(plan(0, 'd'))); {LOADED}"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split("\n")[:2] == ["5", "[]"]


@pytest.mark.parametrize("is_full", [False, True])
@pytest.mark.parametrize(("cores", "words"), [(1, "one core"), (2, "2 cores")])
def test_the_plan_names_folder_scenes_and_minutes(monkeypatch, cores, words, is_full):
    monkeypatch.setattr(demo_progress, "num_cores", lambda: cores)
    *_, last = lines = demo_progress.plan(is_full, "here/demo")
    assert max(map(len, lines)) <= 80
    scenes = demo_progress.FULL_SAMPLES if is_full else demo_progress.SAMPLES
    assert f"{scenes:,} generated scenes" in " ".join(lines)
    assert "here/demo" in " ".join(lines)
    assert last.startswith("About ")
    assert words in last


@pytest.mark.parametrize(
    ("finished_", "known", "elapsed", "left"),
    [
        (0, 0, 1, None),
        (4, 0, 1, None),  # too little to tell
        (50, 0, 100, 100),
        (50, 25, 50, 100),  # what was known took no time
        (100, 0, 70, 0),
    ],
)
def test_the_time_left_goes_by_what_was_worked(finished_, known, elapsed, left):
    assert demo_progress.seconds_left(100, finished_, known, elapsed) == left


def test_one_bar_goes_over_all_parts():
    parts = [demo_progress.Part("measuring", 10), demo_progress.Part("training", 30)]
    screen = io.StringIO()
    console = Console(file=screen, width=80, force_terminal=True, _environ={"TERM": "xterm"})
    with demo_progress.WholeBar(parts, console) as bar:
        bar.begin()
        bar.know(0.5)
        bar.done(1)
        bar.begin()
        bar.done(0.5, "step 1 of 2")
        bar._bar.refresh()
        (task,) = bar._bar.tasks
        assert task.percentage == pytest.approx(100 * 25 / 40)
        assert task.description == "2/2 training, step 1 of 2"
    assert "62%" in screen.getvalue()
