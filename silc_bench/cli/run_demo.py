"""The whole idea in minutes: train SILC and its contrastive-only twin, evaluate both, compare them
in tables and pictures.

Flow: two runs on generated scenes -> every ``shapes`` task -> records -> pictures ->
leaderboard.html. Everything goes through the same functions as the commands; stopping it loses
nothing, and calling it again goes on where it stopped.

Run it: ``silc-bench demo``, or ``silc-bench demo --fast`` to see every part in about a minute.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from silc_bench.datasets.dataset import IGNORE
from silc_bench.datasets.shapes.dataset import Shapes
from silc_bench.datasets.shapes.scenes import SHAPES
from silc_bench.evaluation.evaluate import evaluate
from silc_bench.evaluation.features import Extractor, choose_device
from silc_bench.evaluation.prompts import Prompts, class_embeddings, own_templates
from silc_bench.models.interface import ImageModel
from silc_bench.models.load import load_model
from silc_bench.reports import leaderboard
from silc_bench.results.record import Record
from silc_bench.show.colors import class_colors
from silc_bench.show.look import METHOD, component_maps, cosine_maps
from silc_bench.show.sheet import Panel, figure
from silc_bench.system.files import write_text_atomic
from silc_bench.tasks.dense.scores import without_background
from silc_bench.tasks.selection import current_version, select
from silc_bench.trainer.checkpoints import file as checkpoint
from silc_bench.trainer.config.presets import configure
from silc_bench.trainer.loop import run_training

PRESET, OBJECTIVES = "shapes_tiny", ("contrastive", "silc")
SAMPLES, FAST_SAMPLES = (
    48_000,
    2_560,
)  # at the preset's 38,400 a contrastive run was seen still telling colours only
SHOWN = 6  # pictures in the figure


def run_demo(
    out: Path, *, is_fast: bool, console: Console, on_result: Callable[[Record, bool], None]
) -> Path:
    """Train, evaluate and show below ``out``; the page's path. Raises as training and evaluation
    do.
    """
    device = choose_device("auto")
    results = out / "results"
    specs = []
    for objective in OBJECTIVES:
        config = configure(PRESET, objective, samples=FAST_SAMPLES if is_fast else SAMPLES)
        run = out / "runs" / config.name
        run_training(
            config, run, resume=bool(checkpoint.all_in(run)), device=device, console=console
        )
        specs.append(f"{run}:student")
    models = [load_model(spec) for spec in specs]
    # few-shot by logistic regression says what the ridge says, in half a minute a model
    slow = ("shapes/fewshot_logistic", "shapes/segmentation_sgd", "shapes/segmentation_knn")
    tasks = [task for task in select(["shapes/*"]) if task.name not in slow]
    for spec, model in zip(specs, models, strict=True):
        evaluate(
            model,
            tasks,
            model_source=spec,
            data_root=None,
            results_dir=results,
            progress=console.is_terminal,
            on_result=on_result,
        )
    draw_dense(models, results / "pictures" / "dense_features.png", device)
    board = leaderboard.build(results, current_version=current_version)
    console.print(leaderboard.to_terminal(board))
    page = next(path for path in leaderboard.write(board, out) if path.suffix == ".html")
    print(f"open {page} in a browser: tables, intervals and pictures")
    return page


def draw_dense(models: Sequence[ImageModel], path: Path, device: torch.device) -> None:
    """Zero-shot masks and patch PCA of each model on the first test scenes -> PNG, with its caption
    beside it.
    """
    dataset = Shapes("test", SHOWN)
    truth = [without_background(dataset.mask(index)) for index in range(SHOWN)]
    sizes = [mask.shape for mask in truth]
    groups = [("", 2)]
    rows = [
        [Panel(np.asarray(dataset.image(i)), "picture"), _mask(mask, mask, "truth")]
        for i, mask in enumerate(truth)
    ]
    for model in models:
        extract = Extractor(
            model, device=device, precision="fp32", batch_size=64, num_workers=0, progress=False
        )
        extract.grids.expect(dataset, None, (METHOD, "tokens"))
        features = extract({"test": dataset})
        classes = class_embeddings(
            features, SHAPES, Prompts("shapes_segmentation", own_templates("shapes_segmentation"))
        )
        cosines = cosine_maps(features.grids("test", None, METHOD), classes, sizes)
        parts = component_maps(features.grids("test", None, "tokens"), sizes)
        groups.append((model.name.partition("-")[2].partition(":")[0], 2))
        for index, row in enumerate(rows):
            row.append(_mask(cosines[index].argmax(axis=-1), truth[index], "zero-shot mask"))
            row.append(Panel(parts[index], "patch PCA"))
    figure(groups, rows, SHAPES, path)
    write_text_atomic(
        path.with_suffix(".txt"),
        "Dense features of the two models on six test scenes. Zero-shot masks: the nearest shape name for each pixel, strong"
        " where it is scored, pale on the background. Patch PCA: three principal components of the patch features over the six"
        " scenes.\n",
    )


def _mask(classes: np.ndarray, truth: np.ndarray, title: str) -> Panel:
    return Panel(class_colors(classes, truth != IGNORE), title)
