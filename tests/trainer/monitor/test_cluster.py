"""The plan for named accelerators: sums, choices and refusals."""

import pytest
from refusals import refused

from silc_bench.trainer.config.presets import configure
from silc_bench.trainer.monitor.plan import cluster, cost


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


def test_what_the_user_set_is_held(config):
    fields = {"checkpointing", "micro_batch", "parallel"}
    planned = cluster.plan(config, "h100x16", held=fields)
    assert (planned.checkpointing, planned.micro_batch, planned.parallel) == ("none", 0, "ddp")


def test_an_accelerator_without_bf16_runs_in_fp32(config):
    assert any("in fp32" in words for words in cluster.plan(config, "v100").assumptions)


@pytest.mark.parametrize("on", ["h101x8", "h100x12", "tpu"])
def test_what_is_no_accelerator_is_refused(config, on):
    with refused(about="--on"):
        cluster.plan(config, on)
