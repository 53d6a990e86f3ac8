"""Whether a run fits, what would fit instead, and how long it takes: all by the cost model."""

import io
import re
import shlex
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from refusals import refused
from rich.console import Console
from runs import CPU, run

from silc_bench.system.terminal import duration
from silc_bench.trainer.config.presets import configure
from silc_bench.trainer.monitor.plan import fit
from silc_bench.trainer.monitor.plan.cost import estimate

pytestmark = pytest.mark.broad

GIB = fit.GIB
CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def _rate(monkeypatch):
    """A device that does a TFLOP a second."""
    for place in ("fit", "cost"):
        name = f"silc_bench.trainer.monitor.plan.{place}.matmul_rate"
        monkeypatch.setattr(name, lambda device, precision: 1e12)


def configured(line):
    """What `silc-bench train` makes of these options, but for those of the device."""
    words = shlex.split(line)
    sets = [after for word, after in pairwise(words) if word == "--set"]
    preset = words[words.index("--preset") + 1] if "--preset" in words else "b16_1k"
    return configure(preset, "silc", sets=["precision=fp32", *sets])


@pytest.mark.parametrize("gibibytes", [8, 23.5, 48])
def test_each_way_that_is_named_fits_by_the_same_count(gibibytes):
    config = configure("b16_1k", "silc", sets=["precision=fp32", "micro_batch=0"])
    room = round(gibibytes * GIB)
    ways = list(fit.ways(config, CPU, room))
    assert len(ways) > 3
    for way in ways:
        is_here = way.where.startswith("here")
        cost = estimate(way.config, CPU, way.devices)
        assert way.size == sum(cost.bytes_by_part.values())
        assert way.size <= fit.ROOM * (room if is_here else fit.ELSEWHERE.memory)
        assert f"{fit.size_text(way.size)} a device" in str(way)
        rate = 1e12 if is_here else fit.ELSEWHERE.rate
        # the count's time is that of a TFLOP/s and the whole rate
        assert way.hours == pytest.approx(2 * cost.hours * 1e12 / rate)

        # typed as it stands, it is what was counted
        typed = configured(way.options)
        fields = ("batch_size", "micro_batch", "checkpointing", "vision", "samples")
        for name in fields:
            if "--preset" in way.options or name in way.options:
                assert getattr(typed, name) == getattr(way.config, name), name


@pytest.mark.parametrize(
    ("preset", "sets", "gibibytes", "options"),
    [
        # 20 GiB of b16_1k's 27 in bf16 are activations of 64 pairs
        ("b16_1k", "", 23.5, "--set micro_batch=32"),
        ("b16_1k", "", 23.5, "--set checkpointing=blocks"),
        ("b16_1k", "", 23.5, "--preset s16"),
        ("b16_1k", "", 23.5, "--device cuda"),
        # no micro-batch helps where the images of the whole batch do not fit
        ("s16", "batch_size=65536", 23.5, "--set batch_size=4096"),
        ("s16", "batch_size=65536 micro_batch=0", 23.5, "--set batch_size=4096 --set micro_batch="),
        ("s16", "batch_size=65536 micro_batch=0", 23.5, "torchrun --nproc-per-node 4"),
    ],
)
def test_what_would_fit_is_named_by_its_options(preset, sets, gibibytes, options):
    config = configure(preset, "silc", sets=["precision=bf16", *sets.split()])
    ways = [way.options for way in fit.ways(config, CPU, round(gibibytes * GIB))]
    assert any(way.startswith(options) for way in ways), ways


def test_a_resumed_run_is_told_only_what_leaves_its_result_as_it_is():
    config = configure("b16_1k", "silc", sets=["precision=bf16", "compile=false"])
    ways = list(fit.ways(config, CPU, 20 * GIB, is_resumed=True))
    assert ways
    for way in ways:
        changes = {"micro_batch": way.config.micro_batch, "checkpointing": way.config.checkpointing}
        assert way.config == replace(config, **changes)


def test_of_gpus_like_this_one_more_are_counted():
    config = configure("s16", "silc", sets=["precision=bf16", "micro_batch=0"])
    ways = [way for way in fit.ways(config, CUDA, 24 * GIB) if way.devices > 1]
    assert [way.devices for way in ways] == [2, 8], "with micro-batches, and without"
    assert "8 cuda like this one" in ways[-1].where


@pytest.mark.parametrize(
    ("gibibytes", "options"),
    [(24, "torchrun --nproc-per-node 8 "), (12, "torchrun --nnodes 2 --nproc-per-node 8 ")],
)
def test_more_gpus_than_a_machine_has_are_several_machines(gibibytes, options):
    config = configure("s16", "silc", sets=["precision=bf16", "micro_batch=0"])
    ways = [way.options for way in fit.ways(config, CUDA, gibibytes * GIB)]
    assert any(way.startswith(options) for way in ways), ways


@pytest.fixture
def small(monkeypatch):
    """A machine of 2 MiB."""
    monkeypatch.setattr(fit, "memory_of", lambda device: 2 * 2**20)


def test_what_cannot_fit_is_refused_before_the_first_image_and_leaves_nothing(
    tiny, small, tmp_path, monkeypatch
):
    def opened(*args):
        raise AssertionError("no data is opened")

    monkeypatch.setattr("silc_bench.trainer.loop.open_source", opened)
    with refused(about="tiny-silc"):
        run(tiny(batch_size=256, samples=512), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("few_captions", "small")
def test_a_wrong_count_locks_nobody_out(tiny, tmp_path):
    _, said = run(tiny(steps=2, batch_size=64, samples=128), tmp_path, force=True)
    assert "starting all the same (--force)" in said
    assert "micro_batch" not in said


@pytest.mark.parametrize(("days", "is_said"), [(0.99, False), (1.01, True)])
def test_a_run_of_more_than_a_day_is_told_of_first(tiny, monkeypatch, days, is_said):
    config = tiny()
    one = fit.hours_of(config, CPU)
    monkeypatch.setattr(fit, "LONG", one / days)
    console = Console(file=io.StringIO(), width=200)
    fit.check_fit(config, CPU, console, is_resumed=False, force=False)
    said = console.file.getvalue()
    assert ("memory, all of it" in said) == ("Ctrl-C stops it" in said) == is_said
    fit.check_fit(config, CPU, resumed := Console(file=io.StringIO()), is_resumed=True, force=False)
    assert not resumed.file.getvalue()


# ---- the table of the manual ----

MANUAL = Path(__file__).parents[3] / "docs" / "cost.md"
ROWS = (  # options, and the GPUs that the manual names
    ("--preset s16", "RTX 4090", 1),
    ("--preset b16_1k", "A100", 1),
    ("--preset b16_1k --samples 10_000_000", "A100", 1),
    ("--preset b16_1k --samples 10_000_000 --set checkpointing=blocks", "RTX 4090", 1),
    ("--preset b16", "H100", 128),
)


def row_of(options, name, devices):
    words = options.split()
    sets = [word for word in words if "=" in word]
    samples = int(words[words.index("--samples") + 1]) if "--samples" in words else None
    config = configure(words[1], "silc", samples=samples, sets=["precision=bf16", *sets])
    gpu = fit.GPUS[name]
    cost = estimate(config, CPU, devices)
    size = sum(cost.bytes_by_part.values())
    assert size <= fit.ROOM * gpu.memory, "it fits"

    parameters = sum(cost.parameters.values()) / 1e6
    hours = 2 * cost.hours * 1e12 / gpu.rate
    return (
        f"| `{options}` | {parameters:.0f} M | {config.batch_size:,} | {config.samples:,} |"
        f" {devices} {gpu.name} | {size / GIB:.1f} GiB | {duration(3600 * hours)} |"
    )


def test_the_table_of_the_manual_is_what_the_cost_model_says():
    rows = [row_of(*row) for row in ROWS]
    lines = [line for line in MANUAL.read_text().splitlines() if re.match(r"\| `--preset", line)]
    assert lines == rows, "\n".join(rows)
