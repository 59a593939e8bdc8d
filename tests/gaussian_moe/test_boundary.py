"""The scan for a top-1 gate's boundary against two regressions at every cut, and its rate."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gated.gaussian_moe.boundary import boundary
from gated.gaussian_moe.rates import rate
from gated.gaussian_moe.truths import TOP1, UNIT, uniform


def draws(replicates: int, n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = uniform(UNIT, replicates, n, generator=generator)
    return x[..., 0], TOP1.expand(replicates).sample(x, generator)


def side(x: torch.Tensor, y: torch.Tensor, floor: float) -> float:
    design = torch.stack([x, torch.ones_like(x)], -1)
    rest = y - (design @ torch.linalg.lstsq(design, y[:, None]).solution)[:, 0]
    variance = max(float(rest.square().mean()), floor)
    return float(-0.5 * (math.log(2 * math.pi * variance) + rest.square() / variance).sum())


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.integers(10, 60))
def test_against_two_regressions_at_every_cut(seed, n):
    x, y = draws(1, n, seed)
    x, y = x[0], y[0]
    given = boundary(x, y, least=4)
    order = x.argsort()
    xs, ys = x[order], y[order]
    floor = 1e-3 * float(y.var(correction=0))
    expected = [
        side(xs[:m], ys[:m], floor) + side(xs[m:], ys[m:], floor) if 4 <= m <= n - 4 else -math.inf for m in range(1, n)
    ]
    assert given.log_likelihood.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-7)
    best = expected.index(max(expected)) + 1
    assert float(given.boundary) == pytest.approx(float(xs[best - 1] + xs[best]) / 2)
    assert torch.allclose(given.cuts, (xs[1:] + xs[:-1]) / 2)


def test_the_error_falls_like_one_over_n():
    sizes = [300, 1000, 3000, 10_000]
    errors = torch.stack([boundary(*draws(200, n, seed=n)).boundary - 0.32 for n in sizes])
    scaled = torch.tensor(sizes) * errors.square().mean(-1).sqrt()
    # A published figure for n RMSE is .66 to .76; 200 replicates tell it to a tenth or so.
    assert (scaled > 0.55).all() and (scaled < 0.9).all()
    assert float(scaled.mean()) == pytest.approx(0.71, abs=0.08)
    given = rate(sizes, errors, statistic="rms")
    assert given.interval[0] < -1 < given.interval[1] and given.interval[1] < -0.85
    for n, row in zip(sizes, errors, strict=True):
        assert float(row.abs().max()) < 10 / n


def test_units_and_order_do_not_matter():
    x, y = draws(5, 200, seed=3)
    given = boundary(x, y)
    shuffle = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    assert torch.equal(boundary(x[:, shuffle], y[:, shuffle]).boundary, given.boundary)
    other = boundary(100 + 7 * x, 50 - 3 * y)
    assert torch.allclose(other.boundary, 100 + 7 * given.boundary, rtol=1e-12)
    assert torch.allclose(other.log_likelihood[:, 9:-9], given.log_likelihood[:, 9:-9] - 200 * math.log(3), rtol=1e-6)
    one = boundary(x[2], y[2])
    assert one.boundary.shape == () and float(one.boundary) == float(given.boundary[2])


def test_equal_inputs_are_not_cut_and_exact_lines_are_no_trap():
    x, y = draws(1, 100, seed=0)
    twice = boundary(x.repeat(1, 2), y.repeat(1, 2))
    finite = twice.log_likelihood[0].isfinite()
    assert (twice.cuts[0, finite] != x.repeat(1, 2).sort().values[0, :-1][finite]).all()
    assert float(twice.boundary) == pytest.approx(float(boundary(x, y).boundary))
    # Six points exactly on a line at the left end would have an infinite likelihood.
    x, y = x.sort().values, y.gather(-1, x.argsort())
    y[:, :6] = x[:, :6]
    assert abs(float(boundary(x, y).boundary) - 0.32) < 0.05
