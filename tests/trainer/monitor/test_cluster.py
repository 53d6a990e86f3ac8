"""The plan for named accelerators: sums, choices and refusals."""

import inspect
import io
import re

import pytest
import torch
from refusals import refused
from rich.console import Console

from silc_bench.trainer.config.config import changed
from silc_bench.trainer.config.presets import configure
from silc_bench.trainer.monitor.plan import accelerators, cluster, cost
from silc_bench.trainer.monitor.plan.accelerators import ACCELERATORS, named


@pytest.fixture
def config():
    return configure("shapes_tiny", "silc", sets=["batch_size=64"])


def test_it_measures_nothing_and_multiplies_by_the_price(config, monkeypatch):
    monkeypatch.setattr(cost, "matmul_rate", None)
    planned = cluster.plan(config, "h100x16", price=2.5)
    assert planned.fits
    assert planned.cost == tuple(hours * 16 * 2.5 for hours in planned.hours)
    assert planned.hours[0] <= planned.hours[1]
    assert list(planned.bytes_by_part) == ["ddp", "hsdp", "fsdp"]
    ddp, hsdp, fsdp = (parts["optimiser state"] for parts in planned.bytes_by_part.values())
    assert (ddp, ddp) == pytest.approx((8 * hsdp, 16 * fsdp), rel=1e-4)


def test_both_dry_runs_count_the_same_bytes(config, monkeypatch):
    monkeypatch.setattr(cost, "matmul_rate", lambda device, precision: 1e12)
    config = changed(config, {"precision": "bf16"})
    planned = cluster.plan(config, "h100x16", held={"checkpointing", "micro_batch", "parallel"})
    for way, parts in planned.bytes_by_part.items():
        shared = changed(config, {"parallel": way})
        assert cost.estimate(shared, torch.device("cuda"), 16).bytes_by_part == parts


def test_each_figure_has_a_source_or_is_called_guessed():
    lines = inspect.getsource(accelerators).splitlines()
    figures = re.compile(r"\s+(bf16|fp32|memory|bandwidth|link|net)=(?!0\.0,)")
    without = [line for line in lines if figures.match(line) and "  # " not in line]
    assert not without
    for name, accelerator in ACCELERATORS.items():
        assert ("guessed" in accelerator.links) == (name in ("l40s", "rtx4090"))


def test_what_the_user_set_is_held(config):
    fields = {"checkpointing", "micro_batch", "parallel"}
    planned = cluster.plan(config, "h100x16", held=fields)
    assert (planned.checkpointing, planned.micro_batch, planned.parallel) == ("none", 0, "ddp")


def test_of_micro_batches_that_take_as_long_the_largest_that_fits_is_chosen():
    """Twice the chosen one fits no more; with an accelerator alone no setting costs traffic."""
    config = configure("s16", "silc", sets=["vision.depth=1", "text.depth=1", "batch_size=4096"])
    planned = cluster.plan(config, "rtx4090", held={"checkpointing"})
    assert planned.micro_batch > 1
    parts = dict(planned.bytes_by_part["ddp"])
    assert sum(parts.values()) <= planned.room_bytes < sum(parts.values()) + parts["activations"]


def test_an_accelerator_without_bf16_runs_in_fp32(config):
    assert any("in fp32" in words for words in cluster.plan(config, "v100").assumptions)


def test_gradients_that_are_exchanged_in_bf16_are_half_as_many_and_only_of_ddp(config):
    plain, half = (
        cluster.plan(changed(config, {"exchange": exchange}), "h100x16", held={"parallel"})
        for exchange in ("fp32", "bf16")
    )
    free = cluster.plan(changed(config, {"exchange": "bf16"}), "h100x16")
    assert list(half.bytes_by_part) == list(free.bytes_by_part) == ["ddp"]
    sizes = [
        next(part["size"] for part in planned.collectives if part["name"] == "gradients")
        for planned in (plain, half)
    ]
    assert sizes[0] == 2 * sizes[1]


@pytest.mark.parametrize("on", ["h100x1", "h100x8"])
@pytest.mark.parametrize("way", ["fsdp", "hsdp"])
def test_a_way_that_the_user_set_is_shown_where_it_is_like_another(config, on, way):
    config = changed(config, {"parallel": way})
    planned = cluster.plan(config, on, held={"parallel"})
    assert way in planned.bytes_by_part
    cluster.show_plan(planned, Console(file=(said := io.StringIO()), width=300))
    assert f"parallel={way}" in said.getvalue()


def test_a_late_teacher_is_said_and_costs_less(config):
    late = changed(config, {"distillation.start_fraction": 0.75})
    planned, whole = (cluster.plan(each, "h100x16", held={"parallel"}) for each in (late, config))
    assert planned.hours[0] < whole.hours[0]
    assert planned.communication_seconds < whole.communication_seconds
    assert planned.bytes_by_part == whole.bytes_by_part
    assert "the teacher begins after step" in planned.assumptions[-1]


@pytest.mark.parametrize(
    ("on", "name", "count"),
    [
        ("h100", "h100", 1),
        ("h100x1", "h100", 1),
        ("H100X64", "h100", 64),
        ("8xh100", "h100", 8),
        (" h100 x 8 ", "h100", 8),
        ("rtx4090", "rtx4090", 1),
        ("rtx4090x2", "rtx4090", 2),
        ("a100-40x5", "a100-40", 5),
    ],
)
def test_accelerators_as_people_write_them(on, name, count):
    assert named(on) == (name, ACCELERATORS[name], count)


@pytest.mark.parametrize(
    ("on", "hint"),
    [
        ("h101x8", "did you mean h100"),
        ("a100x8", "did you mean a100-40 or a100-80?"),
        ("A100-SXM4-80GB", "write NAMExCOUNT"),
        ("4090x2", "did you mean rtx4090?"),
        ("h100:8", "did you mean h100"),
        ("8xh100x8", "did you mean h100"),
        ("tpu", "known: a100-40, a100-80, h100,"),
        ("64", "write NAMExCOUNT"),
        ("", "write NAMExCOUNT"),
        ("h100x0", "try h100x8"),
        ("h100x12", "try h100x8 or h100x16"),
        ("h100x-8", "write NAMExCOUNT"),
        (f"h100x{'9' * 5000}", "write NAMExCOUNT"),
    ],
)
def test_what_is_no_accelerator_is_refused_with_what_to_write(on, hint):
    with refused(about="--on") as caught:
        named(on)
    assert hint in caught.value.fix


def test_ranks_that_cannot_share_the_batch_are_refused(config):
    with refused(about="batch_size"):
        cluster.plan(config, "h100x128")
