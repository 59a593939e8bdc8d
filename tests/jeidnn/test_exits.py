"""Distributions over exits against brute force, hand-worked cases, samplers and finite differences."""

import itertools
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gated import jeidnn as j
from gated.jeidnn.exits import Causal

COMPOSITIONS = get_args(Causal)
D = torch.float64
G = torch.tensor([0.3, 0.5, 0.4], dtype=D)
gates = st.lists(st.floats(0, 1), min_size=1, max_size=7).map(lambda g: torch.tensor(g, dtype=D))


def close(a, b, tol=1e-12):
    return torch.allclose(torch.as_tensor(a, dtype=D), torch.as_tensor(b, dtype=D), rtol=0, atol=tol)


def test_hand_worked_example():
    assert close(j.exit_distribution(G, "stick"), [0.30, 0.35, 0.14, 0.21])
    p = j.exit_distribution(G, "clip")
    assert close(p, [0.30, 0.50, 0.20, 0.0])
    assert close(j.conditional_gates(p), [0.3, 0.5 / 0.7, 1, 1])
    assert int(j.hard_exit(p)) == 1


def test_cumulative_gates_spent_as_a_mass_leave_too_early():
    g = torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=D)
    place = torch.arange(1, 6, dtype=D)
    assert close(j.exit_distribution(g, "clip"), [0.2, 0.4, 0.4, 0, 0])
    assert float(j.exit_distribution(g, "clip") @ place) == pytest.approx(2.2)
    assert close(j.exit_distribution(g, "cdf"), [0.2] * 5)
    assert float(j.exit_distribution(g, "cdf") @ place) == pytest.approx(3.0)
    assert int(j.hard_exit(j.exit_distribution(g, "cdf"), "median")) == 2


@given(gates)
def test_every_composition_is_a_distribution(g):
    for composition in COMPOSITIONS:
        p = j.exit_distribution(g, composition)
        assert (p >= 0).all() and close(p.sum(), 1)
        assert 0 <= int(j.hard_exit(p)) <= len(g)


@given(gates)
def test_raw_sums_give_the_clipped_mass(g):
    before = torch.cat([g.new_zeros(1), g.cumsum(0)[:-1]])
    raw = torch.minimum(g, 1 - before).clamp(min=0)
    assert close(j.exit_distribution(g)[:-1], raw)


@given(gates)
def test_path_sums_over_all_gate_outcomes(g):
    for composition in COMPOSITIONS:
        p = j.exit_distribution(g, composition)
        h = j.conditional_gates(p)[:-1]
        brute = torch.zeros_like(p)
        for outcome in itertools.product([0, 1], repeat=len(g)):
            open_ = torch.tensor(outcome, dtype=D)
            brute[(*outcome, 1).index(1)] += (open_ * h + (1 - open_) * (1 - h)).prod()
        assert close(brute, p, 1e-11)


@given(st.floats(0, 1))
def test_two_exits_need_no_composition(g):
    for composition in COMPOSITIONS:
        p = j.exit_distribution(torch.tensor([g], dtype=D), composition)
        assert close(p, [g, 1 - g])


@pytest.mark.parametrize("composition", COMPOSITIONS)
def test_all_shut_and_first_open(composition):
    shut = torch.zeros(2, 4, dtype=D)
    assert close(j.exit_distribution(shut, composition)[:, -1], [1, 1])
    assert (j.hard_exit(j.exit_distribution(shut, composition)) == 4).all()
    first = torch.tensor([[1.0, 0, 0], [1.0, 0, 0]], dtype=D)
    assert close(j.exit_distribution(first, composition)[:, 0], [1, 1])
    assert (j.hard_exit(j.exit_distribution(first, composition)) == 0).all()


def late_by_division(p):
    """Exits by h >= 1/2 where h is divided out, with the mass left as a running difference and as a product."""
    difference = product = 1.0
    spent, found = 0.0, [0, 0]
    for l, mass in enumerate(p, 1):
        h = mass / difference, mass / product
        found = [old or l * (now >= 0.5) for old, now in zip(found, h, strict=True)]
        if all(found):
            return found
        spent += mass  # one by one: from Python 3.12 on, sum() makes up for what rounding takes
        difference, product = 1 - spent, product * (1 - h[1])


@pytest.mark.parametrize(("g", "exit"), [(0.1, 9), (0.15, 6), (0.2, 4), (0.3, 3), (0.4, 2), (0.5, 1), (0.7, 1)])
def test_constant_gate(g, exit):
    p = j.exit_distribution(torch.full((12,), g, dtype=D))
    assert int(j.hard_exit(p)) + 1 == exit
    if g in (0.1, 0.2):  # ties: the division is one exit late, which is why nothing is divided
        assert exit + 1 in late_by_division(p.tolist())
        single = j.exit_distribution(torch.full((12,), g))
        assert int(j.hard_exit(single)) + 1 == exit


@given(gates)
def test_hard_exit_by_the_definition(g):
    spent, expected = 0.0, None
    for l, one in enumerate([*g.tolist(), 1.0]):
        bar = (1 - spent) / 2
        if abs(one - bar) < 1e-9:
            return  # a tie
        if expected is None and (one > bar or spent >= 1):
            expected = l
        spent += one
    assert int(j.hard_exit(j.exit_distribution(g))) == expected


def test_sampling_the_categorical():
    p, n = j.exit_distribution(G), 200_000
    draws = torch.multinomial(p.expand(1, -1), n, replacement=True, generator=torch.Generator().manual_seed(0))
    share = torch.bincount(draws[0], minlength=4) / n
    assert ((share - p).abs() <= 4 * (p * (1 - p) / n).sqrt() + 1e-12).all()


@pytest.mark.parametrize("composition", COMPOSITIONS)
def test_gradients(composition):
    gen = torch.Generator().manual_seed(1)
    for _ in range(20):
        g = torch.rand(3, 4, generator=gen, dtype=D) * 0.9 + 0.02
        ordered = g.sort(1).values.diff(dim=1).abs().min() > 1e-3  # cdf has a kink where two gates agree
        if not ordered or ((1 - g.cumsum(1)).abs() < 1e-3).any():
            continue
        if composition == "cdf" and ((g[:, :, None] - g[:, None, :]).abs() + torch.eye(4)).min() < 1e-3:
            continue
        assert torch.autograd.gradcheck(lambda g: j.exit_distribution(g, composition), g.requires_grad_())


def test_a_gate_beyond_the_budget_has_no_gradient():
    g = torch.tensor([0.7, 0.6, 0.4], dtype=D, requires_grad=True)
    (j.exit_distribution(g) @ torch.tensor([1.0, 2, 3, 4], dtype=D)).backward()
    assert close(g.grad, [1 - 2, 0, 0])
    g.grad = None
    (j.exit_distribution(g, "stick") @ torch.tensor([1.0, 2, 3, 4], dtype=D)).backward()
    assert (g.grad != 0).all()


def test_cost_and_objective():
    costs = torch.tensor([0.25, 0.5, 0.75, 1.0], dtype=D)
    p = j.exit_distribution(G)
    assert float(j.expected_cost(p, costs)) == pytest.approx(0.3 * 0.25 + 0.5 * 0.5 + 0.2 * 0.75)
    losses = torch.tensor([3.0, 2, 1, 0], dtype=D)
    expected = 0.9 + 1.0 + 0.2 + 2 * float(j.expected_cost(p, costs))
    assert float(j.objective(p, losses, costs, 2)) == pytest.approx(expected)
    # linear in p: no distribution beats the best vertex
    assert float(j.objective(p, losses, costs, 2)) >= float((losses + 2 * costs).min())
