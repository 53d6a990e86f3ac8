"""The learning rate: published points of both schedules, and what holds at every step."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from silc_bench.trainer.config.config import DistillationConfig, OptimConfig
from silc_bench.trainer.config.presets import make_preset
from silc_bench.trainer.optim import ema_at, lr_at

PEAK = 1e-3
RSQRT = OptimConfig(lr=PEAK, schedule="rsqrt", warmup_fraction=0.1, cooldown_fraction=0.2)
WSD = OptimConfig(lr=PEAK, schedule="wsd", warmup_fraction=0.1, cooldown_fraction=0.2)
COSINE = OptimConfig(lr=PEAK, schedule="cosine", warmup_fraction=0.1)


def rates(num_steps, config):
    return [lr_at(step, num_steps, config) for step in range(num_steps)]


@pytest.mark.parametrize("config", [RSQRT, COSINE, WSD])
def test_warm_up_is_a_straight_line_to_the_peak(config):
    rated = rates(1000, config)
    assert rated[:100] == pytest.approx([PEAK * (i + 1) / 100 for i in range(100)])
    assert max(rated) == rated[99] == PEAK


def test_rsqrt_is_big_visions_with_the_warm_up_as_its_time_scale():
    """Its rate after the warm-up is peak / sqrt(1 + (update - warmup) / timescale).

    At 10,000 steps half of ours in the end.
    """
    steps, warmup = 1_220_703, 50_000
    b16 = make_preset("b16").optim
    for update in (warmup, 4 * warmup, steps - warmup):
        rated = lr_at(update - 1, steps, b16)
        assert rated == pytest.approx(b16.lr / math.sqrt(1 + (update - warmup) / warmup))
    assert 0.44 < b16.lr / math.sqrt(1 + (update - warmup) / 10_000) / rated < 0.5


def test_rsqrt_cools_down_in_a_straight_line_to_nothing():
    """The factor on top of 1/sqrt falls evenly and would be 0 one step after the last."""
    expected = [PEAK * math.sqrt(100 / (i + 1)) for i in range(99, 1000)]
    factors = [1.0] * 700 + [1 - k / 201 for k in range(201)]
    wanted = [rate * factor for rate, factor in zip(expected, factors, strict=True)]
    assert rates(1000, RSQRT)[99:] == pytest.approx(wanted)


def test_cosine_is_half_a_cosine():
    expected = [PEAK * (1 + math.cos(math.pi * k / 901)) / 2 for k in range(901)]
    assert rates(1000, COSINE)[99:] == pytest.approx(expected)


def test_wsd_is_constant_and_then_falls_by_a_root():
    """Haegele et al. 2405.18392: 1 - sqrt(progress).

    A quarter of the way down half of the peak is left, at its end nothing.
    """
    rated = rates(1000, WSD)
    assert rated[99:799] == pytest.approx([PEAK] * 700)
    assert rated[799:] == pytest.approx([PEAK * (1 - math.sqrt(k / 201)) for k in range(201)])
    longer = rates(999, replace(WSD, cooldown_fraction=0.3))  # of 999 steps 300
    assert longer[698:] == pytest.approx([PEAK * (1 - math.sqrt(k / 301)) for k in range(301)])


# --- the teacher's momentum -----------------------------------------------------------------------


def test_a_cosine_starts_at_the_momentum_and_ends_at_one():
    """DINO's: half of the distance is left in the middle."""
    config = DistillationConfig(ema_momentum=0.996, ema_schedule="cosine")
    momenta = [ema_at(step, 1000, config, 64) for step in (0, 500, 1000)]
    assert momenta == pytest.approx([0.996, 0.998, 1.0])


@pytest.mark.parametrize(
    ("batch", "momentum"), [(16_384, 0.966), (4_096, 0.9915), (1_024, 0.997875), (16_384 * 40, 0.0)]
)
def test_the_distance_to_one_grows_with_the_batch(batch, momentum):
    """What a re-implementation found by trial, 0.99 at 4k and 0.999 at 1k, is near."""
    scaled = DistillationConfig(ema_momentum=0.966, ema_batch=16_384)
    assert ema_at(3, 100, scaled, batch) == pytest.approx(momentum)
    assert ema_at(3, 100, replace(scaled, ema_batch=0), batch) == pytest.approx(0.966)


@settings(max_examples=200)
@given(
    num_steps=st.integers(1, 400),
    warmup=st.floats(0, 1),
    cooldown=st.floats(0, 1),
    schedule=st.sampled_from(["rsqrt", "cosine", "wsd"]),
)
def test_every_rate_is_positive_and_climbs_to_the_peak_and_falls(
    num_steps, warmup, cooldown, schedule
):
    config = replace(
        RSQRT, schedule=schedule, warmup_fraction=warmup, cooldown_fraction=cooldown * (1 - warmup)
    )
    rated = rates(num_steps, config)
    assert all(0 < rate <= PEAK for rate in rated)
    peak = rated.index(max(rated))
    assert rated[: peak + 1] == sorted(rated[: peak + 1])
    assert rated[peak:] == sorted(rated[peak:], reverse=True)
