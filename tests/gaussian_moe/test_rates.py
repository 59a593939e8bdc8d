"""Slopes against known power laws and numpy, and intervals that cover as often as they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gated.gaussian_moe.rates import rate

SIZES = [300, 600, 1200, 2500, 5000, 10_000]


def replicates(exponent: float, count: int, spread: float, seed: int) -> torch.Tensor:
    noise = torch.randn(len(SIZES), count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.tensor(SIZES, dtype=torch.float64)[:, None] ** exponent * (spread * noise).exp()


@given(st.floats(-2, 1), st.floats(0.01, 100), st.sampled_from(["mean", "median", "geometric", "rms"]))
@settings(max_examples=20)
def test_an_exact_power_law(exponent, factor, statistic):
    values = factor * replicates(exponent, 3, 0.0, 0)
    given = rate(SIZES, values, statistic=statistic, resamples=20)
    assert given.slope == pytest.approx(exponent, abs=1e-9)
    assert given.intercept == pytest.approx(math.log(factor), abs=1e-8)
    assert given.without_smallest == pytest.approx(exponent, abs=1e-9)
    assert given.interval == pytest.approx((exponent, exponent), abs=1e-9)
    assert given.statistics == pytest.approx(values[:, 0].tolist())


def test_statistics():
    values = torch.tensor([[1.0, 2.0, 4.0, 9.0], [2.0, 2.0, 8.0, 8.0]], dtype=torch.float64)
    expected = {
        "mean": [4, 5],
        "median": [3, 5],
        "geometric": [72**0.25, 4],
        "rms": [math.sqrt(102 / 4), math.sqrt(34)],
    }
    for name, statistics in expected.items():
        given = rate([10, 100], values, statistic=name, resamples=50)
        assert given.statistics == pytest.approx(statistics)
        assert given.slope == pytest.approx(math.log10(statistics[1] / statistics[0]))
        assert given.without_smallest == given.slope
    signed = rate([10, 100], values * torch.tensor([1.0, -1.0, 1.0, -1.0]), statistic="rms", resamples=50)
    assert signed.statistics == pytest.approx(expected["rms"])


def test_weights_are_one_over_the_variance_of_the_log():
    """Against numpy with weights sd^2 / (R mean^2), which is the variance of the log of a mean to first order."""
    values = replicates(-0.5, 400, 0.5, 1)
    values[0] = values[0].mean() * (1 + 0.02 * (values[0] / values[0].mean() - 1))  # the smallest n is far more exact
    given = rate(SIZES, values, resamples=4000)
    mean = values.mean(1)
    sd = (values.var(1) / 400 / mean.square()).sqrt()
    slope, intercept = np.polyfit(np.log(SIZES), mean.log().numpy(), 1, w=1 / sd.numpy())
    assert given.slope == pytest.approx(slope, abs=2e-3)
    unweighted = np.polyfit(np.log(SIZES), mean.log().numpy(), 1)[0]
    assert abs(given.slope - slope) < abs(unweighted - slope)
    assert given.intercept == pytest.approx(intercept, abs=2e-2)
    rest = np.polyfit(np.log(SIZES[1:]), mean[1:].log().numpy(), 1, w=1 / sd[1:].numpy())[0]
    assert given.without_smallest == pytest.approx(rest, abs=2e-3)


@pytest.mark.parametrize("statistic", ["mean", "geometric", "median"])
def test_intervals_cover(statistic):
    """95% intervals of 200 studies with 40 replicates. A bootstrap of so few is a little short; below 88% is wrong."""
    covered = 0
    for study in range(200):
        low, high = rate(
            SIZES, replicates(-0.5, 40, 0.6, study), statistic=statistic, resamples=200, seed=study
        ).interval
        covered += low <= -0.5 <= high
    assert 176 <= covered <= 199
    wide = rate(SIZES, replicates(-0.5, 40, 0.6, 0), level=0.99).interval
    narrow = rate(SIZES, replicates(-0.5, 40, 0.6, 0), level=0.5).interval
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_the_same_seed_gives_the_same_interval():
    values = replicates(-0.5, 24, 0.6, 0)
    assert rate(SIZES, values) == rate(torch.tensor(SIZES), values)
    assert rate(SIZES, values, seed=1).interval != rate(SIZES, values).interval


def test_a_failed_fit_shows_in_the_mean_and_its_size_loses_weight():
    values = replicates(-0.5, 40, 0.2, 0)
    values[0, 0] = 100 * values[0].mean()  # one failed fit at the smallest n
    mean, median = rate(SIZES, values), rate(SIZES, values, statistic="median")
    assert mean.statistics[0] > 3 * median.statistics[0]
    for robust in (mean, median):
        assert robust.slope == pytest.approx(-0.5, abs=0.05)
    unweighted = np.polyfit(np.log(SIZES), values.mean(1).log().numpy(), 1)[0]
    assert unweighted < -0.65
    assert mean.without_smallest == pytest.approx(-0.5, abs=0.05)


def test_zeros_are_kept():
    values = replicates(-0.5, 4, 0.1, 0)
    values[2, :3] = 0  # resamples with nothing but zeros are likely
    given = rate(SIZES, values)
    assert all(map(math.isfinite, (given.slope, *given.interval, given.intercept)))
