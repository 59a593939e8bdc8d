"""Distances of densities against closed forms and scipy's quadrature, and what a wrong number of experts costs."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from gated.gaussian_moe import distances as module
from gated.gaussian_moe.distances import Distances, distances, squared_hellinger, switches, total_variation
from gated.gaussian_moe.model import Gate, GaussianMoE
from gated.gaussian_moe.splits import duplicate
from gated.gaussian_moe.truths import DENSE, SPARSE, SYMMETRIC, TOP1, UNIT, temperature_truth


def plain(mean: float, variance: float, slope: float = 0.0) -> GaussianMoE:
    return GaussianMoE.of([0], [0], [slope], [mean], [variance])


@given(st.floats(-2, 2), st.floats(0.1, 4), st.floats(0.1, 4))
def test_two_gaussians_hellinger_in_closed_form(gap, v1, v2):
    expected = 1 - math.sqrt(2 * math.sqrt(v1 * v2) / (v1 + v2)) * math.exp(-(gap**2) / (4 * (v1 + v2)))
    given = squared_hellinger(plain(gap, v1, 3.0), plain(0.0, v2, 3.0), UNIT)
    assert float(given) == pytest.approx(expected, abs=1e-12)


@given(st.floats(-3, 3), st.floats(0.05, 4))
def test_two_gaussians_total_variation_in_closed_form(gap, variance):
    given = distances(plain(gap, variance, -2.0), plain(0.0, variance, -2.0), UNIT, steps_per_deviation=48)
    expected = math.erf(abs(gap) / math.sqrt(8 * variance))
    assert float(given.total_variation) == pytest.approx(expected, abs=3e-4)
    assert abs(float(given.total_variation) - expected) < 6 * float(given.error) + 1e-7


def test_slopes_that_differ_are_averaged_over_x():
    # The means are 3x apart for X uniform on [0, 1]: E erf(3X / sqrt 8).
    expected = integrate.quad(lambda x: math.erf(3 * x / math.sqrt(8)), 0, 1)[0]
    given = total_variation(plain(0.0, 1.0, 3.0), plain(0.0, 1.0), UNIT, tolerance=1e-5, steps_per_deviation=48)
    assert float(given) == pytest.approx(expected, abs=2e-5)


def test_a_mixture_against_scipy():
    x = 0.31  # where both experts of DENSE count
    other = replace(DENSE, b=DENSE.b + 0.2, variance=DENSE.variance * 1.3)

    def density(model: GaussianMoE, y: float) -> float:
        at = torch.tensor([[x]], dtype=torch.float64)
        pi, mean = model.log_gate(at).exp()[0].tolist(), model.means(at)[0].tolist()
        return sum(
            p * stats.norm.pdf(y, m, math.sqrt(v)) for p, m, v in zip(pi, mean, model.variance.tolist(), strict=True)
        )

    integral = lambda f: integrate.quad(f, -3, 14, limit=400, points=[1.2, 1.4, 8.8, 9.0])[0] / 2  # noqa: E731
    variation = integral(lambda y: abs(density(DENSE, y) - density(other, y)))
    hellinger = integral(lambda y: (math.sqrt(density(DENSE, y)) - math.sqrt(density(other, y))) ** 2)
    given = distances(DENSE, other, torch.tensor([[x]], dtype=torch.float64), steps_per_deviation=60)
    assert float(given.total_variation) == pytest.approx(variation, abs=1e-4)
    assert float(given.squared_hellinger) == pytest.approx(hellinger, abs=1e-9)


def test_hellinger_against_draws():
    generator = torch.Generator().manual_seed(0)
    other = replace(DENSE, b=DENSE.b + 0.3)
    x = torch.rand(200_000, 1, dtype=torch.float64, generator=generator)
    y = DENSE.sample(x, generator)
    affinity = (0.5 * (other.log_density(x, y) - DENSE.log_density(x, y))).exp()  # h^2 = 1 - E sqrt(q / p)
    error = float(affinity.std() / math.sqrt(len(x)))
    assert abs(float(1 - affinity.mean() - squared_hellinger(DENSE, other, UNIT))) < 4 * error


@settings(max_examples=12)
@given(st.integers(0, 10_000))
def test_inequalities_symmetry_and_batches(seed):
    generator = torch.Generator().manual_seed(seed)
    p, q = (
        SPARSE.expand(3).map(lambda t: t * (0.5 + torch.rand(t.shape, dtype=t.dtype, generator=generator)))
        for _ in range(2)
    )
    forth, back = distances(p, q, SYMMETRIC, points=6), distances(q, p, SYMMETRIC, points=6)
    assert torch.allclose(forth.total_variation, back.total_variation, atol=1e-12)
    h2, v = forth.squared_hellinger, forth.total_variation
    slack = 2 * forth.error + 1e-9
    assert (h2 <= v + slack).all() and (v <= (2 * h2).sqrt() + slack).all() and (v <= 1 + slack).all()
    one = distances(p[1], q[1], SYMMETRIC, points=6)
    assert abs(float(one.total_variation - v[1])) < 2 * float(forth.error[1] + one.error)
    assert one.total_variation.shape == ()


def test_the_same_model_is_at_distance_0_exactly():
    for model, interval in ((DENSE, UNIT), (SPARSE, SYMMETRIC), (TOP1, UNIT), (temperature_truth("tanh"), SYMMETRIC)):
        assert distances(model, model, interval) == Distances(*[torch.zeros((), dtype=torch.float64)] * 3)


def test_inputs_in_more_dimensions_and_float32():
    # The second input is ignored by all experts and the gate: the same numbers as with one.
    wide = lambda m: replace(m, beta1=torch.nn.functional.pad(m.beta1, (0, 1)), a=torch.nn.functional.pad(m.a, (0, 1)))  # noqa: E731
    other = replace(DENSE, b=DENSE.b + 0.3)
    x = torch.rand(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    two, one = distances(wide(DENSE), wide(other), x), distances(DENSE, other, x[:, :1])
    assert torch.allclose(two.total_variation, one.total_variation, rtol=1e-12)
    low = distances(DENSE.map(torch.Tensor.float), other.map(torch.Tensor.float), x[:, :1].float())
    assert low.total_variation.dtype == torch.float32
    assert torch.allclose(low.total_variation.double(), one.total_variation, rtol=1e-5)


def test_the_error_estimate_covers_the_refined_difference():
    other = TOP1.with_gate(Gate(2)).map(lambda t: t.clone())
    rough = distances(TOP1, other, UNIT, points=5, refinements=0)
    fine = distances(TOP1, other, UNIT, points=400, tolerance=1e-6, steps_per_deviation=48)
    assert float(rough.error) > 1e-4  # so that the test says something
    assert abs(float(rough.total_variation - fine.total_variation)) < float(rough.error) + float(fine.error)
    refined = distances(TOP1, other, UNIT, points=5)
    assert abs(float(refined.total_variation - fine.total_variation)) < 1e-3 * float(fine.total_variation)


def test_unequal_demands_share_no_pass():
    # One model needs 500 times more points than its neighbours; its distance is that of the closed form all the same.
    thin = plain(0.0, 1e-6).map(lambda t: torch.stack([t, t]))
    thin = replace(thin, variance=torch.tensor([[1e-6], [1.0]], dtype=torch.float64))
    other = replace(thin, b=torch.tensor([[1e-3], [1.0]], dtype=torch.float64))
    given = distances(thin, other, UNIT, steps_per_deviation=48)
    expected = torch.tensor([math.erf(1 / math.sqrt(8))] * 2, dtype=torch.float64)
    assert torch.allclose(given.total_variation, expected, atol=1e-4)


# Where the selection switches ----------------------------------------------------------------------------------------


def test_switches_in_closed_form():
    assert torch.allclose(switches(TOP1[None], UNIT), torch.tensor([[8 / 25]], dtype=torch.float64), atol=1e-12)
    # Slopes 3, -3, 0: two of three change places at x = 0 only.
    assert torch.allclose(switches(SPARSE[None], (-1.0, 1.5)), torch.zeros(1, 1, dtype=torch.float64), atol=1e-12)
    # (2 x)^2 - 1/4 = 0 at both sides of 0.
    square = GaussianMoE.of([-0.25, 0], [2, 0], [0, 0], [0, 0], [1, 1], gate=Gate(1, "logit", "square"))
    assert torch.allclose(
        switches(square[None], SYMMETRIC).sort().values, torch.tensor([[-0.25, 0.25]], dtype=torch.float64), atol=1e-12
    )
    assert switches(DENSE[None], UNIT).shape == (1, 0)


def test_a_shifted_boundary_costs_its_shift():
    # The experts do not overlap there: V is the length of the strip between both boundaries, wherever it lies.
    for shift in (1e-6, 1e-4, 0.0123, 0.05):
        other = replace(TOP1, beta0=TOP1.beta0 + torch.tensor([25 * shift, 0.0], dtype=torch.float64))
        given = distances(TOP1, other, UNIT)
        assert float(given.total_variation) == pytest.approx(shift, rel=1e-6, abs=1e-12)
        assert float(given.squared_hellinger) == pytest.approx(shift, rel=1e-6, abs=1e-12)


# How many experts a fit has to activate (k = 2 or 3 true experts, K of them kept) -------------------------------------


def variation(model: GaussianMoE, truth: GaussianMoE, interval: tuple[float, float]) -> float:
    return float(total_variation(model, truth, interval, tolerance=1e-4))


@pytest.mark.parametrize("rank", ["slope", "logit"])
def test_a_dormant_third_expert_costs_nothing(rank):
    assert variation(duplicate(DENSE, 0, -1.0, halve=False, gate=Gate(2, rank)), DENSE, UNIT) == 0.0


def test_live_duplicate_in_the_dense_truth():
    slope = lambda k: duplicate(DENSE, 0, 24.9, gate=Gate(k, "slope"))  # noqa: E731
    assert variation(slope(2), DENSE, UNIT) == pytest.approx(0.3197, abs=2e-4)
    assert variation(slope(3), DENSE, UNIT) == pytest.approx(6.3e-4, abs=1e-5)
    # Ranked by logits the second expert is not lost for x < 8/25, and the same model is ten times closer.
    assert variation(slope(2).with_gate(Gate(2, "logit")), DENSE, UNIT) == pytest.approx(0.0319, abs=2e-4)


@pytest.mark.parametrize(
    ("expert", "expected"),
    [(0, (0.0733, 0.0431, 0.0918)), (1, (0.1479, 0.0104, 0.0918)), (2, (0.0873, 0.0003, 0.0917))],
)
def test_live_duplicate_in_the_sparse_truth(expert, expected):
    offset = {0: -0.01, 1: 0.01, 2: 0.01}[expert]
    slope = float(SPARSE.beta1[expert, 0]) + offset
    given = [variation(duplicate(SPARSE, expert, slope, gate=Gate(k, "slope")), SPARSE, SYMMETRIC) for k in (2, 3, 4)]
    assert given == pytest.approx(expected, abs=1e-4)
    assert given[1] < min(given[0], given[2])  # U-shaped: neither fewer nor more


def test_a_weightless_fourth_expert_in_the_sparse_truth():
    model = duplicate(SPARSE, 2, 0.5, halve=False, gate=Gate(3, "slope"))
    model.beta0[3] = -30.0
    assert 0 <= variation(model, SPARSE, SYMMETRIC) < 1e-12


def test_live_duplicate_in_the_top1_truth():
    """The experts hardly overlap near the boundary, so that V = E |weight of expert 1 - 1{it is selected}|. With the
    logit l = 25 x - 8, uniform with density 1/25, and both copies at l - ln 2: keeping one of three moves the boundary
    to l = ln 2; keeping two makes the weight sigmoid(l - ln 2) below l = ln 2 and 1 above."""
    for expert in (0, 1):
        model = duplicate(TOP1, expert, float(TOP1.beta1[expert, 0]))
        given = [variation(model.with_gate(Gate(k, "logit")), TOP1, UNIT) for k in (1, 2, 3)]
        assert given[0] == pytest.approx(math.log(2) / 25, rel=1e-6)
        assert given[1] == pytest.approx(0.0323, abs=2e-4)  # 2 ln 1.5 / 25 = .0324 but for the overlap at x = 1/2
        assert given[2] == pytest.approx(0.0551, abs=1e-4)
        sharp = replace(TOP1, beta0=16 * TOP1.beta0, beta1=16 * TOP1.beta1)
        sharp = duplicate(sharp, expert, float(sharp.beta1[expert, 0]), gate=Gate(2, "logit"))
        refined = total_variation(sharp, TOP1, UNIT, tolerance=1e-4, refinements=5)
        assert float(refined) == pytest.approx(2 * math.log(1.5) / 400, rel=2e-3)


def test_every_density_of_the_chapters_has_mass_1():
    models = [(DENSE, UNIT), (TOP1, UNIT), (SPARSE, SYMMETRIC), (temperature_truth("sin"), SYMMETRIC)]
    for model, interval in models:
        x, fine, coarse = module.nodes(model, interval, 20)
        assert float(fine.sum()) == pytest.approx(1, abs=1e-12) and float(coarse.sum()) == pytest.approx(1, abs=1e-12)
        y = torch.linspace(-12, 22, 4_001, dtype=torch.float64)
        density = model.log_density(x[:, None].expand(-1, len(y), 1), y.expand(len(x), -1)).exp()
        assert torch.allclose(torch.trapezoid(density, y), torch.ones(len(x), dtype=torch.float64), atol=1e-9)
