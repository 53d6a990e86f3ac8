"""Words that the shell completes with the Tab key, where an option takes words that are known.

``WORDS`` says which option takes which. Nothing here imports torch or NumPy, because the
user waits at each key: what only heavy modules know is written down, and a test compares the two.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer
from typer.models import ArgumentInfo, OptionInfo

from silc_bench.cli.defaults import shared_results

Words = Callable[[Any], Iterable[str]]
PROTOCOLS = (
    "native",
    *("openai80", "openai7", "single", "bigvision"),
    *("tcl", "sclip", "naclip", "clearclip"),
)
DENSE_METHODS = ("plain", "maskclip", "sclip", "naclip", "clearclip")
FEATURE_POINTS = ("pooled", "pre_projection", "mean_patch")
EXISTING = ("skip", "overwrite", "error")
DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "fp32", "bf16")
BOARDS = ("md", "csv", "json", "html", "tex", "parquet")
COMPARISONS = ("md", "csv", "json", "tex", "png", "svg", "pdf")


def tasks(_: Any) -> list[str]:
    """Names of tasks, datasets and families."""
    from silc_bench.tasks.selection import all_tasks

    parts = {part for name in all_tasks() for part in name.split("/")}
    return sorted({*all_tasks(), *parts})


def datasets(ctx: Any) -> list[str]:
    return sorted({name.split("/")[0] for name in tasks(ctx) if "/" in name})


def presets(_: Any) -> Iterable[str]:
    from silc_bench.trainer.config.presets import PRESETS

    return PRESETS


def objectives(_: Any) -> Iterable[str]:
    from silc_bench.trainer.config.config import OBJECTIVES

    return OBJECTIVES


def targets(_: Any) -> Iterable[str]:
    from silc_bench.trainer.checkpoints.early import TARGETS

    return TARGETS


def fields(_: Any) -> list[str]:
    """Fields of a configuration, for ``--set``."""
    from silc_bench.trainer.config.config import flatten
    from silc_bench.trainer.config.presets import make_preset

    return [f"{field}=" for field in flatten(make_preset("b16"))]


def models(ctx: Any) -> list[str]:
    """Names of measured models, from the first record of each.

    They lie in ``--results``, or where the user's files and variables say.
    """
    source = ctx.get_parameter_source("results")
    is_typed = source is not None and source.name == "COMMANDLINE"
    folders = ctx.params["results"] if is_typed else shared_results(os.environ, Path.cwd())
    names = set()
    for folder in folders or ["results"]:
        for model in Path(folder).glob("*@*"):
            # A record that is damaged completes nothing; other commands name it.
            with suppress(StopIteration, OSError, ValueError, KeyError, TypeError):
                record = next(model.glob("*/*.json"))
                names.add(str(json.loads(record.read_text(encoding="utf-8"))["model"]["name"]))
    return sorted(names)


def order(ctx: Any) -> list[str]:
    return ["name", "params", *(name for name in tasks(ctx) if "/" in name)]


def listed(words: Iterable[str]) -> Words:
    return lambda _: words


# By the command's name for Python and the parameter; by the parameter alone, where all commands
# mean the same.
WORDS: dict[str, Words] = {
    "preset": presets,
    "objective": objectives,
    "set_": fields,
    "device": listed(DEVICES),
    "precision": listed(PRECISIONS),
    "protocol": listed(PROTOCOLS),
    "dense_method": listed(DENSE_METHODS),
    "feature_point": listed(FEATURE_POINTS),
    "existing": listed(EXISTING),
    "on_collapse": listed(("warn", "stop")),
    "group_by": listed(("family", "dataset", "protocol")),
    "sort": order,
    "to": targets,
    "leaderboard formats": listed(BOARDS),
    "compare formats": listed(COMPARISONS),
    "tasks": tasks,
    "models": models,
    "check name": datasets,
}
# These take several words, with commas between; the models of `compare` are words of their own.
WITH_COMMAS = ("tasks", "formats", "models")


def add_words(function: Callable[..., Any], hints: dict[str, Any]) -> None:
    """Let typer complete the options of a command.

    Args:
        hints: the types of its parameters, with what typer knows of them.
    """
    for name, hint in hints.items():
        words = WORDS.get(f"{function.__name__} {name}") or WORDS.get(name)
        # env --device is a flag.
        if words is None or bool in getattr(hint, "__args__", ()):
            continue
        for info in getattr(hint, "__metadata__", ()):
            if isinstance(info, (ArgumentInfo, OptionInfo)):
                has_commas = name in WITH_COMMAS and isinstance(info, OptionInfo)
                info.autocompletion = _completion(words, has_commas)


def _completion(words: Words, has_commas: bool) -> Callable[..., list[str]]:
    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",") if has_commas else ("", "", incomplete)
        taken = before.split(",")
        return [
            f"{before}{comma}{word}"
            for word in words(ctx)
            if word.startswith(last) and word not in taken
        ]

    return complete
