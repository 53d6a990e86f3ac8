"""The whole idea in minutes: train SILC and its contrastive-only twin, and compare the two.

Flow: two packaged models -> the tasks of ``shapes`` -> a first page; then two runs on generated
scenes -> the same tasks -> image, page, table and three sentences. Everything goes through the same
functions as the commands; stopping it loses nothing, and calling it again goes on where it stopped.

Run it: ``silc-bench demo``, or ``silc-bench demo --full`` for longer runs and every task.
"""

from __future__ import annotations

import io
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console, Group, RenderableType

from silc_bench.cli.demo_progress import FULL_SAMPLES, OBJECTIVES, SAMPLES, WholeBar, parts_of
from silc_bench.datasets.generated.shapes.dataset import Shapes
from silc_bench.datasets.generated.shapes.scenes import COLORS, PAINT, SHAPES
from silc_bench.evaluation.evaluate import evaluate
from silc_bench.evaluation.features import Extractor, choose_device
from silc_bench.evaluation.prompts import Prompts, class_embeddings, prompts_of
from silc_bench.evaluation.settings import EvalSettings
from silc_bench.models.interface import ImageModel, training_of
from silc_bench.models.load import load_model
from silc_bench.reports import leaderboard
from silc_bench.reports.comparison.compare import Result, compare
from silc_bench.reports.comparison.pairing import ALPHA
from silc_bench.results.record import Record
from silc_bench.show.asked import METHOD
from silc_bench.show.colors import PALETTE, class_colors
from silc_bench.show.look import component_maps, cosine_maps
from silc_bench.show.sheet import CELL, Panel, figure
from silc_bench.system.files import write_text_atomic
from silc_bench.system.limits import keep_freed_memory
from silc_bench.system.processes import StoppedError
from silc_bench.system.terminal import WARNING, one_line, say
from silc_bench.system.terminal_table import Column, Grid, Paragraph, Span
from silc_bench.task import Task
from silc_bench.tasks.dense.scores import without_background
from silc_bench.tasks.selection import current_version, select
from silc_bench.trainer.checkpoints import file as checkpoint
from silc_bench.trainer.config.config import Config
from silc_bench.trainer.config.presets import configure
from silc_bench.trainer.device import resolve
from silc_bench.trainer.loop import run_training

PRESET = "shapes_tiny"
MODELS = Path(__file__).parent / "demo_models"
# Few-shot by logistic regression says what the ridge says, in half a minute a model.
SLOW = ("shapes/fewshot_logistic", "shapes/segmentation_sgd", "shapes/segmentation_knn")
SHOWN = 6  # images in the figure
CAPTION = (
    "Dense features of the two models on six test scenes. Zero-shot masks: the nearest name of a"
    " shape for each pixel, in the legend's colours, and the nearest name of a colour, as that"
    " colour. The line is the true outline, and pixels outside it are not scored. One name all over"
    " the image says what is there, and not where. Patch PCA: three principal components of the"
    " patch features over the six scenes.\n"
)
# what the sentences tell, and how they call it
TOLD = {
    "shapes/zeroshot": "zero-shot",
    "shapes/zeroshot_unseen": "zero-shot of unseen pairs",
    "shapes/segmentation_zeroshot": "zero-shot masks",
}


def run_demo(out: Path, *, is_full: bool, console: Console, started: float) -> Path:
    """Measure, train and show below ``out``; the page's path. Raises as training and evaluation do.

    ``started``: when the command began, by ``time.perf_counter``.
    """
    device = choose_device("auto")
    if device.type == "cpu":
        keep_freed_memory()
    samples = FULL_SAMPLES if is_full else SAMPLES
    results = out / "results"

    # Before the bar: where this takes long, a line says so.
    packaged = {}
    for objective in OBJECTIVES:
        spec = str(MODELS / f"{PRESET}-{objective}.safetensors")
        packaged[spec] = load_model(spec, name=f"packaged-{objective}")

    with WholeBar(parts_of(is_full), console) as bar:
        bar.begin()
        tasks = tasks_of(is_full)
        measure(packaged, tasks, results, "packaged", bar)
        page = write_page(results, out)
        seconds = time.perf_counter() - started
        precision = resolve(config_of(OBJECTIVES[0], samples), device).precision
        say(f"first page after {seconds:.0f} s: {page}", console)
        say(f"now the models of your own, on {device} in {precision}", console)

        own = {}
        for objective in OBJECTIVES:
            run = out / "runs" / objective
            train(objective, samples, run, device, bar, console)
            own[f"{run}:student"] = load_model(f"{run}:student")

        bar.begin()
        records = measure(own, tasks, results, "trained_here", bar)
        page = write_page(results, out)

    compared = comparison_of(records, results)
    console.print(table_of(compared, records))
    for sentence in sentences_of(compared, samples):
        console.print(Paragraph(sentence))
    pair = " ".join(model.name for model in own.values())
    for line in (
        f"page: {page}",
        f"image: {results / 'pictures' / 'trained_here.png'}",
        f"next: silc-bench compare {pair} --results {shlex.quote(str(results))}",
    ):
        console.print(one_line(line), markup=False, highlight=False, soft_wrap=True)
    return page


def tasks_of(is_full: bool) -> list[Task]:
    """Of ``shapes``; with --full also the slow ones, and those of masks by colour."""
    if is_full:
        return select(["shapes/*", "shapes_colours/*"])
    return [task for task in select(["shapes/*"]) if task.name not in SLOW]


def measure(
    models: Mapping[str, ImageModel],
    tasks: Sequence[Task],
    results: Path,
    figure_name: str,
    bar: WholeBar,
) -> list[Record]:
    """Records of ``models``, by what they were loaded from, and the image of what they see."""
    records: list[Record] = []
    count = len(models) * len(tasks)

    def on_result(record: Record, is_new: bool) -> None:
        records.append(record)
        if is_new:
            bar.done(len(records) / count)
        else:
            bar.know(len(records) / count)

    for spec, model in models.items():
        evaluate(
            model,
            tasks,
            EvalSettings(),
            model_source=spec,
            data_root=None,
            results_dir=results,
            on_result=on_result,
        )
    place = results / "pictures" / f"{figure_name}.png"
    draw_dense(list(models.values()), place, choose_device("auto"))
    return records


def train(
    objective: str,
    samples: int,
    run: Path,
    device: torch.device,
    bar: WholeBar,
    console: Console,
) -> None:
    """A run in the folder ``run``, or the rest of it."""
    config = config_of(objective, samples)
    bar.begin()

    # A demo that was stopped goes on; a finished run is at its end at once.
    checkpoints = checkpoint.all_in(run)
    if checkpoints:
        bar.know(checkpoint.step_of(checkpoints[-1]) / config.num_steps)

    def on_step(step: int) -> None:
        bar.done(step / config.num_steps, f"step {step} of {config.num_steps}")

    try:
        run_training(
            config,
            run,
            resume=bool(checkpoints),
            device=device,
            console=_Warnings(console),
            on_step=on_step,
        )
    except StoppedError as error:
        fix = "nothing is lost: the same command goes on from there"
        raise StoppedError(error.problem, about=run, fix=fix) from None


def config_of(objective: str, samples: int) -> Config:
    # A row of the log looks at student and teacher: every ten steps that is 4 % of the time.
    return configure(PRESET, objective, samples=samples, sets=["log_every=25"])


class _Warnings(Console):
    """For a run below a bar that is not its own: only what ``warn`` says, above that bar."""

    def __init__(self, shown: Console) -> None:
        super().__init__(file=io.StringIO())
        self._shown = shown

    def print(self, *objects: Any, style: Any = None, **how: Any) -> None:
        if style == WARNING:
            self._shown.print(*objects, style=style, **how)


# ---- what it says in the end ----


def write_page(results: Path, out: Path) -> Path:
    """All records so far as a page that needs nothing else, and as tables beside it."""
    board = leaderboard.build(results, current_version=current_version)
    return next(path for path in leaderboard.write(board, out) if path.suffix == ".html")


def comparison_of(records: Sequence[Record], results: Path) -> list[Result]:
    """The main metric of each task, silc against contrastive."""
    models = dict.fromkeys(f"{each.model.name}@{each.model.revision}" for each in records)
    return [result for result in compare(results, list(models)).results if result.is_main]


def table_of(compared: Sequence[Result], records: Sequence[Record]) -> RenderableType:
    """A row for each task, in no more than 80 columns."""
    heads = ("chance", *OBJECTIVES, "difference")
    columns = [Column("task"), *(Column(head, is_numeric=True) for head in heads)]
    chance = {record.task.name: record.task.chance for record in records}

    rows: list[list[tuple[Span, ...]]] = []
    for result in compared:
        values = (chance[result.task], result.baseline_value, result.value)
        paired = result.paired
        mark = " " if result.verdict == "no difference" else "*"
        difference = f"{100 * paired.difference:+.1f} ± {100 * paired.stderr:.1f} {mark}"
        texts = (result.task, *(f"{100 * value:.1f}" for value in values), difference)
        rows.append([((text, ""),) for text in texts])
    note = Paragraph(
        "Percent; differences in points ± one standard error over the same test images."
        f" *: a difference between these two, at {ALPHA:g} after Holm's correction.",
        "dim",
    )
    return Group(Grid(columns, rows), note, "")


def sentences_of(compared: Sequence[Result], samples: int) -> list[str]:
    """What was asked, what came out, and what that shows."""
    intervals = []
    by_task = {result.task: result.paired for result in compared}
    for task, words in TOLD.items():
        if task in by_task:
            middle, half = 100 * by_task[task].difference, 100 * by_task[task].margin
            interval = f"{middle - half:+.1f} to {middle + half:+.1f}"
            intervals.append(f"{words} {middle:+.1f} ({interval})")
    return [
        "Asked: do these small models gain by self-distillation (SILC), if both sides learn from"
        f" the same {samples:,} generated scenes?",
        "Found, silc minus contrastive in points with 95 % intervals over the test images:"
        f" {', '.join(intervals)}.",
        "This tells these two checkpoints apart, one seed a side, and not the methods: for those,"
        " benchmarks/README.md in the repository has studies with several seeds.",
    ]


def draw_dense(models: Sequence[ImageModel], path: Path, device: torch.device) -> None:
    """Zero-shot masks and patch PCA of each model on the first test scenes -> a PNG.

    Its caption lies beside it, as a .txt file of the same name.
    """
    dataset = Shapes("test", SHOWN)
    truth = [without_background(dataset.mask(index)) for index in range(SHOWN)]
    sizes = [mask.shape for mask in truth]

    # A row a scene. A group of columns has a heading and a number of columns: first the scene
    # itself with its mask, then each model with what it sees.
    groups = [("", 2)]
    rows = []
    for index, mask in enumerate(truth):
        image = Panel(np.asarray(dataset.image(index)), "image")
        rows.append([image, _mask(mask, mask, "true shapes")])

    # Towers this small know colours and hardly shapes, so both are asked. A colour is painted as
    # itself.
    paint = [bright for bright, _ in PAINT.values()]
    asked: dict[str, tuple[Sequence[str], Prompts, Sequence[tuple[int, ...]]]] = {
        "nearest shape": (SHAPES, prompts_of("shapes_segmentation"), PALETTE),
        "nearest colour": (COLORS, prompts_of("shapes_colours_segmentation"), paint),
    }
    for model in models:
        extract = Extractor(model, EvalSettings(device=device, precision="fp32", batch_size=64))
        # Said before the extraction, so that both kinds of features come from one forward pass.
        extract.grids.expect(dataset, None, (METHOD, "tokens"))
        features = extract({"test": dataset})

        training = training_of(model)
        groups.append((training.objective if training else model.name, 1 + len(asked)))
        for title, (names, prompts, palette) in asked.items():
            classes = class_embeddings(features, names, prompts)
            cosines = cosine_maps(features.grids("test", None, METHOD), classes, sizes)
            for cosine, mask, row in zip(cosines, truth, rows, strict=True):
                row.append(_mask(cosine.argmax(axis=-1), mask, title, palette))

        parts = component_maps(features.grids("test", None, "tokens"), sizes)
        for part, row in zip(parts, rows, strict=True):
            row.append(Panel(part, "patch PCA"))

    figure(groups, rows, SHAPES, path)
    write_text_atomic(path.with_suffix(".txt"), CAPTION)


def _mask(
    classes: np.ndarray,
    truth: np.ndarray,
    title: str,
    palette: Sequence[tuple[int, ...]] = PALETTE,
) -> Panel:
    """Classes [H, W] in flat colours, the outline of ``truth`` over them."""
    # enlarged first: the outline is a line then, not a row of the image's large pixels
    zoom = max(1, CELL // max(truth.shape))
    large = [part.repeat(zoom, axis=0).repeat(zoom, axis=1) for part in (classes, truth)]
    return Panel(class_colors(large[0], large[1], palette), title)
