"""How slowly a density tells that an expert was split: the orders in delta, with the figures that belong to them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gated.gaussian_moe.distances import total_variation
from gated.gaussian_moe.model import Gate, GaussianMoE
from gated.gaussian_moe.splits import duplicate, split, split_jointly
from gated.gaussian_moe.truths import DENSE, SPARSE, SYMMETRIC, TOP1, UNIT, temperature_truth

DELTAS = torch.tensor([0.4, 0.3, 0.2, 0.14, 0.1], dtype=torch.float64)


def variations(truth, interval, expert, parameter, unit, compensate=False) -> torch.Tensor:
    halves = split(truth, expert, parameter, DELTAS * unit, compensate=compensate)
    return total_variation(halves, truth, interval, tolerance=1e-4, steps_per_deviation=24)


def slope(values: torch.Tensor) -> float:
    x = DELTAS.log() - DELTAS.log().mean()
    return float((x * values.log()).sum() / x.square().sum())


@pytest.mark.parametrize(
    ("parameter", "unit", "compensate", "expected"),
    [
        ("b", 0.4, False, 1.98),  # in standard deviations, sqrt .16
        ("b", 0.4, True, 4.12),
        ("variance", 0.16, False, 2.04),
        ("a", 1.0, False, 1.99),
        ("beta1", 5.0, False, 1.98),
    ],
)
def test_orders_in_the_dense_truth(parameter, unit, compensate, expected):
    values = variations(DENSE, UNIT, 1, parameter, unit, compensate)
    assert slope(values) == pytest.approx(expected, abs=0.0051)
    if compensate:
        assert values[[0, -1]].tolist() == pytest.approx([1.145e-3, 3.8e-6], rel=0.01)
        # Straighter the smaller delta is: towards exactly 4.
        assert 4 < float((values[-2] / values[-1]).log() / (DELTAS[-2] / DELTAS[-1]).log()) < 4.05


@pytest.mark.parametrize(
    ("parameter", "unit", "compensate", "expected"),
    [
        ("beta1", 1.0, False, {"tanh": 2.01, "identity": 1.98}),
        ("a", 1.0, False, {"tanh": 1.96, "identity": 1.96}),
        ("b", 0.5, False, {"tanh": 1.98, "identity": 1.98}),
        ("b", 0.5, True, {"tanh": 4.12, "identity": 4.12}),
    ],
)
def test_splits_of_one_expert_do_not_tell_two_gates_apart(parameter, unit, compensate, expected):
    for activation, order in expected.items():
        values = variations(temperature_truth(activation), SYMMETRIC, 0, parameter, unit, compensate)
        assert slope(values) == pytest.approx(order, abs=0.0051)


def test_jointly_in_slope_and_intercept_a_bent_score_lets_less_hide():
    """d^2 u / d beta_1 d b is the derivative of u to a, over tau, for a linear score only: delta^4 against delta^3."""
    d = DELTAS / 4
    for activation, order in {"identity": 4, "tanh": 3}.items():
        truth = temperature_truth(activation)
        shift = {"variance": -(d**2), "a": -8 * d**3 / truth.tau}
        halves = split_jointly(truth, 0, {"beta1": 8 * d**2, "b": d}, shift)
        values = total_variation(halves, truth, SYMMETRIC, tolerance=1e-4, steps_per_deviation=24)
        assert slope(values) == pytest.approx(order, abs=0.1)


@settings(max_examples=25)
@given(
    st.sampled_from([DENSE, SPARSE.with_gate(Gate()), temperature_truth("tanh")]),
    st.integers(0, 1),
    st.sampled_from(["beta1", "a", "b", "variance"]),
    st.floats(0.001, 0.08),
)
def test_two_halves_written_out(truth, expert, parameter, delta):
    """p changes by the mean of the two moved joint densities minus the old one, before it is normalised."""
    model = split(truth, expert, parameter, delta)
    x = torch.linspace(-1, 1, 7, dtype=torch.float64)[:, None]
    y = torch.linspace(-3, 3, 7, dtype=torch.float64)

    def joint(m: GaussianMoE) -> torch.Tensor:
        return m.logits(x).exp() * m.log_experts(x, y).exp()

    numerator, weights = joint(truth), truth.logits(x).exp()
    n_halves, w_halves = torch.zeros(7, dtype=torch.float64), torch.zeros(7, dtype=torch.float64)
    for sign in (1, -1):
        moved = truth.map(torch.Tensor.clone)
        values = getattr(moved, parameter)
        (values[..., 0] if values.ndim == 2 else values)[expert] += sign * delta
        n_halves += joint(moved)[:, expert] / 2
        w_halves += moved.logits(x).exp()[:, expert] / 2
    rest = [i for i in range(truth.num_experts) if i != expert]
    expected = (numerator[:, rest].sum(-1) + n_halves) / (weights[:, rest].sum(-1) + w_halves)
    assert torch.allclose(model.log_density(x, y).exp(), expected, rtol=1e-9, atol=1e-300)


def test_no_distance_no_change_and_many_distances():
    for truth, interval in ((DENSE, UNIT), (temperature_truth("sigmoid"), SYMMETRIC)):
        halves = split(truth, 0, "b", torch.zeros(2, 3, dtype=torch.float64), compensate=True)
        assert halves.models == (2, 3) and halves.num_experts == 3
        assert total_variation(halves, truth, interval).max() < 1e-13
    many, one = split(DENSE, 1, "b", DELTAS[1:], compensate=True), split(DENSE, 1, "b", 0.2, compensate=True)
    assert torch.equal(many[1].b, one.b) and torch.equal(many[1].variance, one.variance)
    assert one.b.tolist() == [15, -4.8, -5.2]
    assert one.variance.tolist() == pytest.approx([0.09, 0.12, 0.12])
    assert torch.equal(DENSE.b, torch.tensor([15.0, -5.0], dtype=torch.float64))  # the truth is not written to


def test_compensated_halves_keep_mean_and_mean_square():
    halves = split(DENSE, 1, "b", 0.25, compensate=True)
    mean = (halves.b[1] + halves.b[2]) / 2
    square = ((halves.b[1:] - mean).square() + halves.variance[1:]).mean()
    assert float(mean) == -5 and float(square) == pytest.approx(0.16)


def test_duplicates():
    live = duplicate(SPARSE, 2, 0.01, gate=Gate(3, "slope"))
    assert live.beta1[:, 0].tolist() == [3, -3, 0, 0.01] and live.gate.top_k == 3
    assert live.beta0.tolist() == pytest.approx([0.5, -0.5, -math.log(2), -math.log(2)])
    whole = duplicate(SPARSE, 0, 2.0, halve=False)
    assert whole.beta0.tolist() == [0.5, 0.5, -0.5, 0] and whole.gate == SPARSE.gate
    warm = duplicate(temperature_truth("tanh"), 0, 2.0)  # half the weight e^(beta_0 / tau)
    assert float((warm.beta0[0] / warm.tau).exp()) == pytest.approx(math.exp(0.4) / 2)


# The form of the gate in its limits ----------------------------------------------------------------------------------


def test_keeping_all_experts_is_the_dense_softmax_bit_for_bit():
    x = torch.linspace(-1, 1, 50, dtype=torch.float64)[:, None]
    for rank in ("slope", "logit"):
        kept = SPARSE.with_gate(Gate(3, rank)).log_gate(x)
        assert torch.equal(kept, SPARSE.with_gate(Gate()).log_gate(x))
        first = SPARSE.with_gate(Gate(1, rank)).log_gate(x).exp()
        assert torch.equal(first, first.round()) and torch.equal(first.sum(-1), torch.ones(50, dtype=torch.float64))


def test_a_common_shift_of_all_logits_changes_nothing():
    x = torch.linspace(-1, 1, 50, dtype=torch.float64)[:, None]
    y = torch.linspace(-4, 4, 50, dtype=torch.float64)
    for model in (DENSE, SPARSE, TOP1):
        shifted = replace(model, beta0=model.beta0 + 1.7, beta1=model.beta1 - 0.9)
        assert torch.allclose(shifted.log_density(x, y), model.log_density(x, y), rtol=1e-10)
        assert torch.equal(shifted.selected(x), model.selected(x))


def test_slopes_alone_keep_one_expert_where_all_inputs_are_positive():
    """With slopes 25 and 0 and inputs in (0, 1] the top-1 gate by slope is constant: every input goes to expert 1."""
    x = torch.linspace(0.001, 1, 100, dtype=torch.float64)[:, None]
    assert DENSE.with_gate(Gate(1, "slope")).selected(x)[:, 0].all()
    assert TOP1.selected(x)[:, 0].double().mean() == pytest.approx(0.68, abs=0.01)
