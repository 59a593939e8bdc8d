"""What the functions around the fits refuse, and what they say then."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from gated.gaussian_moe import distances as distances_module
from gated.gaussian_moe.boundary import boundary
from gated.gaussian_moe.distances import distances
from gated.gaussian_moe.fisher import fisher_information, ray
from gated.gaussian_moe.rates import rate
from gated.gaussian_moe.splits import duplicate, split, split_jointly
from gated.gaussian_moe.truths import DENSE, SPARSE, TEMPERATURE, UNIT
from gated.gaussian_moe.voronoi import (
    cells,
    exact_loss,
    fix_gauge,
    least_residual,
    polynomial_residual,
    rbar,
    tempered_loss,
)

WIDE = replace(DENSE, beta1=DENSE.beta1.repeat(1, 2), a=DENSE.a.repeat(1, 2))
LOST = replace(DENSE, b=DENSE.b * math.nan)
VALUES = torch.ones(3, 4, dtype=torch.float64)
X = torch.linspace(0, 1, 20, dtype=torch.float64)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: distances(DENSE, DENSE, (1.0, 0.0)), r"interval must be \(low, high\)"),
        (lambda: distances(DENSE, DENSE, (0.0, math.inf)), "interval must be"),
        (lambda: distances(WIDE, WIDE, UNIT), r"R\^2"),
        (lambda: distances(DENSE, WIDE, UNIT), "one dimension; got 1 and 2"),
        (lambda: distances(DENSE, DENSE, torch.zeros(3, 2)), r"shape \[n, 1\]; got \(3, 2\)"),
        (lambda: distances(DENSE, DENSE, torch.zeros(0, 1)), r"shape \[n, 1\]; got \(0, 1\)"),
        (lambda: distances(DENSE.expand(2), DENSE.expand(3), UNIT), "must broadcast"),
        (lambda: distances(LOST, DENSE, UNIT), "p.b must be finite; got 2"),
        (
            lambda: distances(DENSE, replace(DENSE, variance=-DENSE.variance), UNIT),
            "q.variance and q.tau must be above 0",
        ),
        (
            lambda: distances(DENSE, replace(DENSE, variance=DENSE.variance * 1e-20), UNIT),
            "variances must not be so small",
        ),
        (lambda: distances(DENSE, DENSE, UNIT, steps_per_deviation=2), "steps_per_deviation at least 4"),
        (lambda: distances(DENSE, DENSE, UNIT, tolerance=math.nan), "tolerance above 0"),
        (lambda: distances(DENSE, DENSE, UNIT, points=0), "points must be at least 1"),
        (lambda: fisher_information(DENSE, (1.0, 1.0)), "interval must be"),
        (lambda: fisher_information(DENSE.expand(2), UNIT, points=5).null_space(), "null_space is of one model"),
        (lambda: fisher_information(DENSE, UNIT, points=5).standard_errors(0), "n must be at least 1; got 0"),
        (lambda: ray(TEMPERATURE, 0.0), "scale must be above 0"),
        (lambda: ray(TEMPERATURE, math.inf), "scale must be above 0 and finite"),
        (lambda: cells(DENSE, WIDE), "one dimension; got 1 and 2"),
        (lambda: exact_loss(LOST, DENSE), "fitted.b must be finite; got 2"),
        (lambda: fix_gauge(LOST, DENSE), "fitted.b must be finite; got 2"),
        (lambda: tempered_loss(TEMPERATURE, TEMPERATURE, power=0.5), "power must be at least 1; got 0.5"),
        (lambda: rbar(0), "m must be at least 1; got 0"),
        (lambda: polynomial_residual(torch.zeros(2, 5), 0), "order must be at least 1; got 0"),
        (lambda: least_residual(2, 0, generator=torch.Generator()), "order must be at least 1; got 0"),
        (lambda: split(DENSE, 2, "b", 0.1), "expert must be from 0 to 1; got 2"),
        (lambda: split(DENSE, 0, "tau", 0.1), "parameter must be one of"),
        (lambda: split(DENSE, 0, "a", 0.1, compensate=True), "compensate is for the parameter \"b\"; got 'a'"),
        (lambda: split(DENSE, 0, "b", 0.4, compensate=True), "delta must leave both halves a variance"),
        (lambda: split(DENSE.expand(2), 0, "b", 0.1), "model must be one model"),
        (lambda: split_jointly(DENSE, 0, {"b": 0.1}, {"tau": 0.1}), r"parameters must be of .*; got \['tau'\]"),
        (lambda: duplicate(SPARSE, -1, 0.1), "expert must be from 0 to 2; got -1"),
        (lambda: boundary(X, X[:5]), r"got \(20,\) and \(5,\)"),
        (lambda: boundary(X[:9], X[:9]), "at least 10 points, 5 a side; got 9"),
        (lambda: boundary(X, X, least=2), "least must be at least 3"),
        (lambda: boundary(X, X * math.nan), "must be finite"),
        (lambda: boundary(X * 0, X), "two different inputs"),
        (lambda: boundary(X, X * 0), "y must vary"),
        (lambda: boundary(torch.cat([X[:1], X[:1].repeat(19) + 1]), X), "with 5 points on each side"),
        (lambda: rate([1, 1, 1], VALUES), "at least two different"),
        (lambda: rate([1, 2], VALUES), "2 sizes, at least 2 replicates"),
        (lambda: rate([1, 2, 3], VALUES[:, :1]), "at least 2 replicates"),
        (lambda: rate([0, 2, 3], VALUES), "above 0"),
        (lambda: rate([1, 2, 3], VALUES, statistic="mode"), "statistic must be one of"),
        (lambda: rate([1, 2, 3], VALUES * math.nan), "values must be finite; got 12"),
        (lambda: rate([1, 2, 3], -VALUES), "must not be negative"),
        (lambda: rate([1, 2, 3], VALUES * 0, statistic="geometric"), "nor 0"),
        (lambda: rate([1, 2, 3], VALUES * 0), r"above 0 at every n; it is 0 at n = \[1.0, 2.0, 3.0\]"),
        (lambda: rate([1, 2, 3], VALUES, level=1.0), r"level must be in \(0, 1\)"),
        (lambda: rate([1, 2, 3], VALUES, resamples=1), "resamples at least 10"),
    ],
)
def test_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_range_that_misses_mass_is_noticed(monkeypatch):
    monkeypatch.setattr(distances_module, "REACH", 3.0)
    with pytest.raises(ValueError, match="must integrate to 1 within 1e-6"):
        distances(DENSE, DENSE, UNIT)
