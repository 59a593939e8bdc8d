"""Voronoi losses against enumeration over subsets, symmetries that must not matter, and the polynomial system."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gated.gaussian_moe.fisher import ray
from gated.gaussian_moe.model import Gate, GaussianMoE
from gated.gaussian_moe.splits import duplicate, split
from gated.gaussian_moe.truths import DENSE, SPARSE, TEMPERATURE, temperature_truth
from gated.gaussian_moe.voronoi import (
    cells,
    exact_loss,
    fix_gauge,
    least_residual,
    over_loss,
    polynomial_residual,
    rbar,
    tempered_loss,
    tempered_over_loss,
)

LOSSES = (exact_loss, over_loss, tempered_loss, tempered_over_loss)
seeds = st.integers(0, 100_000)


def near(truth: GaussianMoE, seed: int, size: float = 0.1) -> GaussianMoE:
    generator = torch.Generator().manual_seed(seed)
    return truth.map(lambda t: t + size * torch.rand(t.shape, dtype=t.dtype, generator=generator))


def numbers(model: GaussianMoE, i: int) -> list[float]:
    return [float(model.beta1[i, 0]), float(model.a[i, 0]), float(model.b[i]), float(model.variance[i])]


def by_enumeration(fitted: GaussianMoE, truth: GaussianMoE, excess) -> float:
    """The maximum over K-subsets of the true experts, every sum written out; `excess(differences, m)` of one expert."""
    k = truth.num_experts
    cell = []
    for i in range(fitted.num_experts):
        distance = [math.dist(numbers(fitted, i), numbers(truth, j)) for j in range(k)]
        cell.append(distance.index(min(distance)))

    def cost(j: int) -> float:
        members = [i for i in range(fitted.num_experts) if cell[i] == j]
        weight = {i: math.exp(float(fitted.beta0[i] / fitted.tau)) for i in members}
        total = abs(sum(weight.values()) - math.exp(float(truth.beta0[j] / truth.tau)))
        for i in members:
            difference = [abs(p - q) for p, q in zip(numbers(fitted, i), numbers(truth, j), strict=True)]
            total += weight[i] * excess(difference, len(members))
        return total

    top_k = truth.gate.top_k or k
    return max(sum(cost(j) for j in subset) for subset in itertools.combinations(range(k), top_k))


def joint(difference, m):
    beta1, a, b, variance = difference
    if m == 1:
        return math.hypot(beta1, a, b, variance)
    return math.hypot(beta1, b) ** (2 * m) + math.hypot(a, variance) ** m


@given(seeds, st.sampled_from([DENSE, SPARSE, SPARSE.with_gate(Gate(1)), SPARSE.with_gate(Gate())]))
def test_losses_against_enumeration(seed, truth):
    exact = near(truth, seed, 0.5)
    assert float(exact_loss(exact, truth)) == pytest.approx(
        by_enumeration(exact, truth, lambda d, m: math.hypot(*d)), rel=1e-12
    )
    over = near(split(truth, seed % truth.num_experts, "b", 0.2), seed, 0.3)
    assert float(over_loss(over, truth)) == pytest.approx(by_enumeration(over, truth, joint), rel=1e-12)
    assert float(tempered_loss(exact, truth.with_gate(Gate()), power=3)) == pytest.approx(
        by_enumeration(
            exact,
            truth.with_gate(Gate()),
            lambda d, m: sum(v**3 for v in d) + abs(float(exact.tau - truth.tau)) ** 3,
        ),
        rel=1e-12,
    )


@given(seeds)
def test_cells_against_loops(seed):
    fitted = near(duplicate(SPARSE, seed % 3, 0.3), seed, 2.0)
    expected = []
    for i in range(4):
        distance = [math.dist(numbers(fitted, i), numbers(SPARSE, j)) for j in range(3)]
        expected.append(distance.index(min(distance)))
    assert cells(fitted, SPARSE).tolist() == expected


def test_loss_of_an_activation_gate_by_hand():
    truth = temperature_truth("tanh")
    fitted = split(truth, 0, "a", 0.2)
    fitted = replace(fitted, tau=fitted.tau + 0.1, beta0=fitted.beta0 * (truth.tau + 0.1) / truth.tau)
    # Both halves of expert 1 have |d a| = .2 to the power 2, weights that sum to e^(.2/.5); and |d tau| = .1 once.
    assert float(tempered_over_loss(fitted, truth)) == pytest.approx(math.exp(0.4) * 0.04 + 0.1, rel=1e-12)
    single = replace(truth, b=truth.b + torch.tensor([0.0, 0.3], dtype=torch.float64))
    assert float(tempered_over_loss(single, truth)) == pytest.approx(0.3, rel=1e-12)
    assert float(tempered_over_loss(split(truth, 1, "b", 0.3), truth)) == pytest.approx(0.3**4, rel=1e-12)
    assert float(tempered_over_loss(split(truth, 1, "variance", 0.1), truth)) == pytest.approx(0.1**2, rel=1e-12)


@given(seeds)
def test_the_order_of_the_experts_does_not_matter(seed):
    fitted = near(duplicate(SPARSE, 0, 2.9), seed)
    order = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    shuffled = replace(
        fitted,
        **{name: getattr(fitted, name)[order] for name in ("beta0", "beta1", "a", "b", "variance")},
    )
    for loss in LOSSES:
        assert float(loss(shuffled, SPARSE)) == pytest.approx(float(loss(fitted, SPARSE)), rel=1e-12)
    assert (fix_gauge(shuffled, SPARSE).beta0 - fix_gauge(fitted, SPARSE).beta0[order]).abs().max() < 1e-12


@pytest.mark.parametrize("loss", LOSSES)
def test_no_loss_at_the_truth_nor_at_an_exact_split(loss):
    for truth in (DENSE, SPARSE, TEMPERATURE, temperature_truth("sigmoid")):
        assert float(loss(truth, truth)) == 0
        for expert in range(truth.num_experts):
            assert float(loss(split(truth, expert, "b", 0.0), truth)) < 1e-14


def test_many_models_at_once():
    fits = [near(split(SPARSE, e, "b", 0.1), e) for e in range(3)]
    many = GaussianMoE(
        *(
            torch.stack([getattr(fit, name) for fit in fits])
            for name in ("beta0", "beta1", "a", "b", "variance", "tau")
        ),
        gate=fits[0].gate,
    )
    for loss in LOSSES:
        assert torch.allclose(loss(many, SPARSE), torch.stack([loss(fit, SPARSE) for fit in fits]), rtol=1e-13)
    truths = SPARSE.expand(3)
    assert torch.equal(cells(many, truths), cells(many, SPARSE))
    assert torch.allclose(over_loss(many, truths), over_loss(many, SPARSE), rtol=1e-13)


# The gauge -----------------------------------------------------------------------------------------------------------


@given(seeds, st.floats(-5, 5), st.floats(-5, 5))
def test_a_shift_of_all_logits_is_undone(seed, t0, t1):
    for truth in (DENSE, SPARSE, TEMPERATURE):
        fitted = near(truth, seed)
        moved = replace(fitted, beta0=fitted.beta0 + t0, beta1=fitted.beta1 + t1)
        one, two = fix_gauge(fitted, truth), fix_gauge(moved, truth)
        assert torch.allclose(one.beta0, two.beta0, atol=1e-10) and torch.allclose(one.beta1, two.beta1, atol=1e-10)
        x = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
        assert torch.allclose(two.log_density(x, 2 * x[:, 0]), fitted.log_density(x, 2 * x[:, 0]), atol=1e-8)
        assert float(one.beta0[-1]) == pytest.approx(0, abs=1e-12) and float(one.beta1[-1, 0]) == pytest.approx(0)


def test_two_experts_in_the_last_cell():
    """A fit that holds its own last expert at beta_0 = beta_1 = 0 gives that cell twice its weight, and tilts it."""
    fitted = split(DENSE, 1, "beta1", 0.5)
    fitted = replace(fitted, beta0=fitted.beta0 - fitted.beta0[-1], beta1=fitted.beta1 - fitted.beta1[-1])
    assert float(over_loss(fitted, DENSE)) > 0.5
    fixed = fix_gauge(fitted, DENSE)
    assert float(fixed.beta0[1:].exp().sum()) == pytest.approx(1)
    assert fixed.beta1[:, 0].tolist() == pytest.approx([25, 0.5, -0.5])
    assert float(over_loss(fixed, DENSE)) == pytest.approx(0.5**4)


def test_labels_that_switched_and_an_empty_last_cell():
    switched = DENSE.map(lambda t: t.flip(0) if t.ndim else t)
    switched = replace(switched, beta0=switched.beta0 + 8, beta1=switched.beta1 - 25)  # its last expert at 0
    assert float(exact_loss(fix_gauge(switched, DENSE), DENSE)) == pytest.approx(0, abs=1e-12)
    # All experts near the first true one: the closest to the last takes its part, and the loss stays finite.
    lost = replace(DENSE, a=DENSE.a[[0, 0]], b=DENSE.b[[0, 0]] + torch.tensor([0, -1.0], dtype=torch.float64))
    fixed = fix_gauge(lost, DENSE)
    assert float(fixed.beta0[1]) == 0 and math.isfinite(float(over_loss(fixed, DENSE)))


def test_with_an_activation_only_beta0_moves():
    truth = temperature_truth("tanh")
    moved = replace(truth, beta0=truth.beta0 + 3)
    assert torch.allclose(fix_gauge(moved, truth).beta0, truth.beta0, atol=1e-12)
    tilted = replace(truth, beta1=truth.beta1 + 0.3)
    assert torch.equal(fix_gauge(tilted, truth).beta1, tilted.beta1)


def test_along_the_ray_the_density_stays_and_the_loss_grows():
    scales = torch.tensor([1.0, 1.1, 2.0, 4.0], dtype=torch.float64)
    loss = tempered_loss(ray(TEMPERATURE, scales), TEMPERATURE, power=2)
    assert float(loss[0]) == 0 and (loss.diff() > 0).all()
    # Weights e^(beta_0 / tau) stay; so what is left is w (|d beta_1|^2 + |d tau|^2) + |d tau|^2.
    d = scales - 1
    assert torch.allclose(loss, math.exp(0.4) * ((2 * d) ** 2 + (0.5 * d) ** 2) + (0.5 * d) ** 2)


def test_a_very_cold_fit_has_a_finite_loss():
    cold = replace(TEMPERATURE, tau=torch.tensor(1e-5, dtype=torch.float64))
    for loss in LOSSES:
        assert math.isfinite(float(loss(cold, TEMPERATURE)))


# The polynomial system -----------------------------------------------------------------------------------------------


def literally(p, order):
    """The system as it is printed, sums over all exponents."""
    sides = []
    for l1, l2 in itertools.product(range(order + 1), repeat=2):
        if not 1 <= l1 + l2 <= order:
            continue
        total = 0.0
        for p1, p2, p3, p4, p5 in p:
            for a1, a2, a3, a4 in itertools.product(range(order + 1), repeat=4):
                if a1 + a2 == l1 and a2 + a3 + 2 * a4 == l2:
                    factorials = math.factorial(a1) * math.factorial(a2) * math.factorial(a3) * math.factorial(a4)
                    total += p5**2 * p1**a1 * p2**a2 * p3**a3 * p4**a4 / factorials
        sides.append(total)
    return sides


@given(seeds, st.integers(1, 5), st.integers(1, 3))
def test_the_system_as_it_is_printed(seed, order, experts):
    p = torch.randn(experts, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    sides = polynomial_residual(p, order)
    assert len(sides) == (order**2 + 3 * order) // 2
    assert sides.sort().values.tolist() == pytest.approx(sorted(literally(p.tolist(), order)), rel=1e-9, abs=1e-9)


def test_a_solution_by_hand():
    """p_1 = p_2 = 0, p_3 = +-1, p_4 = -1/2 solves the system of order 3. In order 4 one side is left: 1/4! - 1/4 + 1/8
    = -1/12 from each expert."""
    p = torch.tensor([[0, 0, 1, -0.5, 1], [0, 0, -1, -0.5, 1]], dtype=torch.float64)
    assert float(polynomial_residual(p, 3).abs().max()) < 1e-15
    left = polynomial_residual(p, 4)
    assert left[left.abs() > 1e-15].tolist() == pytest.approx([-1 / 6])


def test_orders_at_which_two_and_three_experts_stop_cancelling():
    """From 64 starts each: below rbar there is a solution, to rounding, and at rbar there is none: several starts agree
    on the norm that is left."""
    least = {}
    for m, order in [(2, 2), (2, 3), (2, 4), (3, 4), (3, 5), (3, 6)]:
        norms = least_residual(m, order, generator=torch.Generator().manual_seed(m))
        assert (norms.diff() >= 0).all()
        least[m, order] = norms[:2].tolist()
    for solved in [(2, 2), (2, 3), (3, 4), (3, 5)]:
        assert least[solved][0] < 1e-14
    assert least[2, 4] == pytest.approx([0.03109] * 2, abs=1e-5)
    assert least[3, 6] == pytest.approx([9.643e-4] * 2, abs=1e-6)
    assert [rbar(m) for m in (1, 2, 3, 4)] == [1, 4, 6, 8]


@given(seeds, st.integers(1, 5))
def test_the_derivatives_of_the_search(seed, order):
    from gated.gaussian_moe import voronoi

    free = torch.randn(3, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    slope = voronoi._bounded(free, order)[1]
    for start in range(3):
        expected = torch.autograd.functional.jacobian(lambda f: voronoi._bounded(f, order)[0], free[start])
        assert torch.allclose(slope[start], expected.flatten(1), rtol=1e-9, atol=1e-9)
