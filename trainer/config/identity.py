"""What tells one method from another, and data from other data, wherever a run lies (no torch).

Both stand in the records of models that were trained here. A path says nothing of a method, so a
run notes what ``--init`` or ``--tokenizer`` brought, its checkpoints keep this note, and
``by_content`` puts it in the path's place. A checkpoint without it, of an earlier version, keeps
the recipe that has the path in it.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from silc_bench.errors import UserError
from silc_bench.results.question import hash_of
from silc_bench.trainer.config.config import Config, TextConfig, VisionConfig, flatten

# fields of the configuration that leave the weights as they are, and the seed
NO_RECIPE = (
    "seed",
    "log_every",
    "checkpoint_every",
    "checkpoint_keep_every",
    "checkpoint_minutes",
    "probe",
    "parallel",
)

# Fields that are younger than records with a recipe. At their default, which is what every run did
# before them, they are left out, so that those records keep theirs.
YOUNGER = (
    "vision.init_positions",
    "views.blur_size",
    "views.resize",
    "distillation.init_prototypes",
    "tokenizer",
    "tokenizer_captions",
    "contrastive.max_scale",
    "distillation.products",
    "exchange",
)

# How data is read, which is no part of what is learned: any number of workers reads the same
# batches. Records hold these as parts of their recipe, when no run had others, so they stay parts.
UNLEARNED = {"data.num_workers": "0", "data.mirror_gb": "50.0"}


def named(source: str) -> str:
    """A source as others may read it: where a folder lies on one machine tells them nothing."""
    return re.sub(r"(?<![^\s|])/(?:[^\s|]*/)?(?=[^\s|/]+/[^\s|/]+/[^\s|/]+)", "", source)


def by_content(config: Config, brought: Any) -> Config:
    """``config`` with what ``--init`` or ``--tokenizer`` brought in place of where that lay.

    Args:
        brought: {"init": WORDS} or {"tokenizer": DIGITS}, as ``TrainState`` notes it.

    Raises:
        UserError: it is anything else.
    """
    is_note = isinstance(brought, dict) and brought.keys() <= {"init", "tokenizer"}
    if not is_note or not all(isinstance(content, str) for content in brought.values()):
        raise UserError(
            "is no note of what --init or --tokenizer brought",
            about="brought",
            fix="copy it again, or take an earlier checkpoint of the run",
        )
    return replace(config, **brought)


def recipe_of(config: Config) -> str:
    """16 hex digits over all that makes the weights but the seed, which runs of a study vary.

    ``config``: of ``by_content``, where a run keeps such a note.
    """
    before = flatten(Config("", VisionConfig(), TextConfig()))
    fields = {
        name: value
        for name, value in flatten(config).items()
        if name.partition(".")[0] not in NO_RECIPE
        and name != "data.source"
        and not (name in YOUNGER and value == before[name])
    }
    # It was a bool once, and what is not said to be compiled was not.
    fields["compile"] = config.compile == "true"

    # `--seed` sets this one too. 0, which records of the first seed hold, and not left out.
    fields["data.seed"] = config.data.seed - config.seed
    return hash_of({name: str(value) for name, value in fields.items()} | UNLEARNED)
