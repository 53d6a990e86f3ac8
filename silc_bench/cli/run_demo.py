"""The whole idea in minutes: train SILC and its contrastive-only twin, and compare the two.

Flow: two runs on generated scenes -> every ``shapes`` task -> records -> images ->
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

from silc_bench.datasets.generated.shapes.dataset import Shapes
from silc_bench.datasets.generated.shapes.scenes import SHAPES
from silc_bench.evaluation.evaluate import evaluate
from silc_bench.evaluation.features import Extractor, choose_device
from silc_bench.evaluation.prompts import class_embeddings, prompts_of
from silc_bench.evaluation.settings import EvalSettings
from silc_bench.models.interface import ImageModel, training_of
from silc_bench.models.load import load_model
from silc_bench.reports import leaderboard
from silc_bench.reports.forms.terminal import to_terminal
from silc_bench.results.record import Record
from silc_bench.show.colors import class_colors
from silc_bench.show.look import METHOD, component_maps, cosine_maps
from silc_bench.show.sheet import CELL, Panel, figure
from silc_bench.system.files import write_text_atomic
from silc_bench.tasks.dense.scores import without_background
from silc_bench.tasks.selection import current_version, select
from silc_bench.trainer.checkpoints import file as checkpoint
from silc_bench.trainer.config.presets import configure
from silc_bench.trainer.loop import run_training

PRESET = "shapes_tiny"
OBJECTIVES = ("contrastive", "silc")
# At the preset's 38,400 samples a contrastive run was seen that still told colours only.
SAMPLES = 48_000
FAST_SAMPLES = 2_560
# Few-shot by logistic regression says what the ridge says, in half a minute a model.
SLOW = ("shapes/fewshot_logistic", "shapes/segmentation_sgd", "shapes/segmentation_knn")
SHOWN = 6  # images in the figure
CAPTION = (
    "Dense features of the two models on six test scenes. Zero-shot masks: the nearest shape name"
    " for each pixel, in flat colours; the line is the true outline, and pixels outside it are not"
    " scored. Patch PCA: three principal components of the patch features over the six scenes.\n"
)


def run_demo(
    out: Path, *, is_fast: bool, console: Console, on_result: Callable[[Record, bool], None]
) -> Path:
    """Train, evaluate and show below ``out``; the page's path.

    Raises as training and evaluation do.
    """
    device = choose_device("auto")
    results = out / "results"
    samples = FAST_SAMPLES if is_fast else SAMPLES

    specs = []
    for objective in OBJECTIVES:
        config = configure(PRESET, objective, samples=samples)
        run = out / "runs" / config.name
        # A demo that was stopped goes on; a finished run is at its end at once.
        is_begun = bool(checkpoint.all_in(run))
        run_training(config, run, resume=is_begun, device=device, console=console)
        specs.append(f"{run}:student")

    models = [load_model(spec) for spec in specs]
    tasks = [task for task in select(["shapes/*"]) if task.name not in SLOW]
    for spec, model in zip(specs, models, strict=True):
        evaluate(
            model,
            tasks,
            EvalSettings(progress=console.is_terminal),
            model_source=spec,
            data_root=None,
            results_dir=results,
            on_result=on_result,
        )

    # Before the leaderboard, whose page takes in the images that lie below the results.
    draw_dense(models, results / "pictures" / "dense_features.png", device)
    board = leaderboard.build(results, current_version=current_version)
    console.print(to_terminal(board))
    page = next(path for path in leaderboard.write(board, out) if path.suffix == ".html")
    print(f"open {page} in a browser: tables, intervals and images")
    return page


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
        rows.append([image, _mask(mask, mask, "truth")])

    own_prompts = prompts_of("shapes_segmentation")
    for model in models:
        extract = Extractor(model, EvalSettings(device=device, precision="fp32", batch_size=64))
        # Said before the extraction, so that both kinds of features come from one forward pass.
        extract.grids.expect(dataset, None, (METHOD, "tokens"))
        features = extract({"test": dataset})

        classes = class_embeddings(features, SHAPES, own_prompts)
        cosines = cosine_maps(features.grids("test", None, METHOD), classes, sizes)
        parts = component_maps(features.grids("test", None, "tokens"), sizes)

        training = training_of(model)
        groups.append((training.objective if training else model.name, 2))
        for index, row in enumerate(rows):
            predicted = cosines[index].argmax(axis=-1)
            row.append(_mask(predicted, truth[index], "zero-shot mask"))
            row.append(Panel(parts[index], "patch PCA"))

    figure(groups, rows, SHAPES, path)
    write_text_atomic(path.with_suffix(".txt"), CAPTION)


def _mask(classes: np.ndarray, truth: np.ndarray, title: str) -> Panel:
    """Classes [H, W] in flat colours, the outline of ``truth`` over them."""
    # enlarged first: the outline is a line then, not a row of the image's large pixels
    zoom = max(1, CELL // max(truth.shape))
    large = (part.repeat(zoom, axis=0).repeat(zoom, axis=1) for part in (classes, truth))
    return Panel(class_colors(*large), title)
