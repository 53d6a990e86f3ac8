"""Where a number of a run stops being healthy, and what to do then.

The verdicts ask for it, and the report draws it.
"""

from silc_bench.errors import unknown_name

# Of the teacher's entropy / ln K.
UNIFORM = 0.99
CERTAIN = 0.05
ONE_HOT = 0.002

# Of what a teacher's target could tell of its image (``health.py``), what it must tell at least.
# With shapes_tiny it rises from 0.08 to 0.37 in 120 steps, with places_tiny from 0.08 to 0.67 in
# 600. With places_tiny at a teacher_temp of 0.04 it stays at 0.02 to 0.04 for 160 steps, and the
# student learns nothing from it (docs/log.md).
TELLS_NOTHING = 0.05

# Effective rank below which all embeddings are one direction. Collapsed runs of shapes_tiny
# (optim.lr=0.03) have 1.08 to 1.30. Healthy ones have 4 and more; one of 40 steps, whose warm-up is
# 4 steps, has 1.55 to 1.66 from step 10 on.
SAME = 1.3
# Steps, before which it is normal that embeddings are alike or targets tell little, however short
# the warm-up is.
YOUNG = 50
LEAP = 0.15  # of a matrix's own size in one step
MAX_CENTER_ERROR = 0.1  # of the mean's own size; above it a centre has to move

MAX_WAIT = 0.1  # of the time, for data
MAX_LEFT_OUT = 0.1  # of the pairs that were read

ON_COLLAPSE = ("warn", "stop")


def check_on_collapse(answer: str) -> str:
    """Raises UserError for an unknown word of ``--on-collapse``."""
    if answer not in ON_COLLAPSE:
        raise unknown_name("answer to a collapse", answer, ON_COLLAPSE, about="--on-collapse")
    return answer
