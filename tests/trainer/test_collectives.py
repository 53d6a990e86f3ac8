"""The bytes that the ranks say to each other in a step are those of the plan."""

from collections import Counter
from dataclasses import replace

import on_ranks
import pytest
from gloo_pool import GlooPool

from silc_bench.trainer.monitor.plan.accelerators import ACCELERATORS
from silc_bench.trainer.monitor.plan.cluster import collectives

STEP = 1  # that is listened to, from 0
LATE = {"distillation": {"start_fraction": 0.75}}  # of four steps
VARIANTS = {  # objective and changes
    "silc": ("silc", {}),
    "contrastive": ("contrastive", {}),
    "softmax": ("silc", {"contrastive": {"loss": "softmax"}}),
    "original and global": ("silc", {"contrastive": {"images": "original+global"}}),
    "global views too": ("silc", {"distillation": {"pairs": "local+global"}}),
    "sinkhorn": ("silc", {"distillation": {"centering": "sinkhorn"}}),
    "masked": ("silc", {"masked": {"weight": 1.0}}),
    "micro-batches": ("silc", {"micro_batch": 1}),
    "blocks": ("silc", {"checkpointing": "blocks"}),
    "text locked": ("silc", {"optim": {"locked": "text"}}),
    "text of three layers locked": ("silc", {"optim": {"locked": "text"}, "text": {"depth": 3}}),
    "towers of two and three layers": ("silc", {"vision": {"depth": 2}, "text": {"depth": 3}}),
    "image tower of three layers locked": (
        "contrastive",
        {"optim": {"locked": "vision"}, "vision": {"depth": 3}},
    ),
    "text locked, micro-batches": (
        "silc",
        {"optim": {"locked": "text"}, "text": {"depth": 3}, "micro_batch": 1},
    ),
    "text locked, one micro-batch": ("silc", {"optim": {"locked": "text"}, "micro_batch": 8}),
    "image tower locked, micro-batches, both images": (
        "contrastive",
        {
            "optim": {"locked": "vision"},
            "vision": {"depth": 3},
            "contrastive": {"images": "original+global"},
            "micro_batch": 2,
        },
    ),
    "equal texts": ("silc", {"contrastive": {"equal_texts": "positive"}}),
    "before the teacher": ("silc", LATE),
    "before the teacher, masked": ("silc", {**LATE, "masked": {"weight": 1.0}}),
    "before the teacher, original": (
        "silc",
        {**LATE, "contrastive": {"images": "original"}, "micro_batch": 2},
    ),
}
NODE_OF_TWO = ACCELERATORS["h100"]._replace(per_node=2)


@pytest.fixture(scope="module")
def pool():
    pool = GlooPool(4)
    yield pool
    pool.close()


@pytest.mark.parametrize(
    ("world", "parallel"),
    [
        (2, "ddp"),
        (2, "fsdp"),
        pytest.param(4, "ddp", marks=pytest.mark.slow),
        pytest.param(4, "fsdp", marks=pytest.mark.slow),
        pytest.param(4, "hsdp", marks=pytest.mark.slow),
    ],
)
def test_a_step_says_as_many_bytes_as_planned(pool, tiny, world, parallel):
    configs = [
        replace(tiny(objective, **changes), parallel=parallel)
        for objective, changes in VARIANTS.values()
    ]
    tokenizer, batches = on_ranks.first_batches(configs[0], 2)
    of_node = 2 if parallel == "hsdp" else None
    said = pool.run(world, on_ranks.said_in_a_step, configs, tokenizer, batches, of_node)[0]

    for name, config, sizes in zip(VARIANTS, configs, said, strict=True):
        planned = Counter(dict.fromkeys(sizes, 0))
        is_taught = config.is_taught_at(STEP)
        for part in collectives(config, NODE_OF_TWO, world, is_taught=is_taught):
            planned[part.kind] += part.size
        assert sizes == dict(planned), name
