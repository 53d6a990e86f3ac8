"""What tells one method from another, and data from other data, wherever a run lies (no torch).

Both stand in the records of models that were trained here.
"""

from __future__ import annotations

import re

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


def recipe_of(config: Config) -> str:
    """16 hex digits over all that makes the weights but the seed, which runs of a study vary."""
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
