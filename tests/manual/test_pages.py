"""What is typed of a page, and which marks are refused."""

from pathlib import Path

import pytest
from manual.pages import steps_of

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

PAGE = """\
Text with `silc-bench tasks` in it.

<!-- not run, "torchrun": it takes eight
     GPUs -->
<!-- fails here, "hf:": it needs a download -->

    silc-bench doctor runs/own          # a remark
    torchrun -m silc_bench train \\
        --preset b16
    silc-bench doctor hf:folder

1. A list:

        $ silc-bench tasks
        silc-bench is what this prints

```python
import silc_bench
```

    silc_bench.load_results("results")

<!-- not run: it installs -->

    pip install .
"""


def test_what_is_typed_and_what_is_not():
    steps, faults = steps_of(PAGE)
    assert faults == []
    assert [(step.line, step.text, step.mark and step.mark.reason) for step in steps] == [
        (7, "silc-bench doctor runs/own          # a remark", None),
        (8, "torchrun -m silc_bench train     --preset b16", "it takes eight GPUs"),
        (10, "silc-bench doctor hf:folder", "it needs a download"),
        (14, "silc-bench tasks", None),
        (18, "import silc_bench", None),
        (21, 'import silc_bench\nsilc_bench.load_results("results")', None),
        (25, "pip install .", "it installs"),
    ]


@pytest.mark.parametrize(
    "page",
    [
        '<!-- not run, "hf:": why -->\n\n    silc-bench doctor runs/own\n',  # in no line
        '<!-- not run, "own", "hf:": why -->\n\n    silc-bench doctor runs/own\n',  # one of two
        "<!-- not run: why -->\n\nText.\n\n    silc-bench tasks\n",  # before no block
        '<!-- not run: why -->\n\n    {"a": 1}\n',  # nothing is typed there
        "<!-- not run -->\n\n    silc-bench tasks\n",  # no reason
    ],
)
def test_a_mark_that_marks_nothing_is_refused(page):
    assert steps_of(page)[1]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_mark_of_the_manual_marks_something(page):
    assert steps_of(page.read_text(encoding="utf-8"))[1] == []
