"""The gates' losses and their dynamics: closed forms, autograd, finite differences, brute force."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gated.backbones import ResNet
from gated.gates import binary_gate, gumbel_sigmoid_gate
from gated.polarization import (
    activation_loss,
    costs,
    decomposition,
    freeze_pattern,
    polarization_loss,
    target_rate_loss,
)
from gated.polarization.theory import (
    dissent_from_polarization,
    exact_gradient,
    gate_flow,
    neuron_polarization,
    straight_through_gradient,
    unstable_share,
)

F64 = torch.float64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# What the loss is ----------------------------------------------------------------------------------------------------


def test_polarization_is_the_total_variance_of_beta_gates():
    p = torch.from_numpy(np.random.default_rng(0).beta(0.5, 1.2, 100_000))[:, None]
    parts = decomposition(p)
    a, b = 0.5, 1.2
    mean, variance = a / (a + b), a * b / ((a + b) ** 2 * (a + b + 1))
    exact = (mean * (1 - mean), mean - mean**2 - variance, variance)
    for part, value in zip(parts, exact, strict=True):
        assert part.item() == pytest.approx(value, abs=2e-3)  # sampling error of 1e5 draws
    assert exact == pytest.approx((0.20761, 0.13072, 0.07689), abs=1e-5)
    assert abs(parts.total - parts.indecision - parts.disagreement).item() < 3e-15
    assert [part.item() for part in parts] == pytest.approx([0.207058, 0.130317, 0.076740], abs=1e-6)
    assert polarization_loss(p).item() == pytest.approx(parts.total.item(), abs=1e-15)


@given(st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=1, max_size=9))
def test_decomposition_is_an_identity(rows):
    parts = decomposition(torch.tensor(rows, dtype=F64))
    assert torch.allclose(parts.total, parts.indecision + parts.disagreement, atol=1e-14)


def test_each_part_alone_is_blind_to_the_other_failure():
    split = torch.tensor([[1.0], [0.0]])
    undecided = torch.full((2, 1), 0.5)
    assert decomposition(split).indecision == 0 and decomposition(undecided).disagreement == 0
    assert polarization_loss(split) == polarization_loss(undecided) == 0.25


def test_the_mean_over_inputs_comes_before_the_mean_over_gates():
    gates = torch.tensor([[1.0, 0.0]]).repeat(6, 1)  # every gate constant, one open and one shut
    assert polarization_loss(gates) == 0
    assert gates.mean() * (1 - gates.mean()) == 0.25


@pytest.mark.parametrize(("batch", "value"), [(2, 0.105), (8, 0.18375), (32, 0.2034375), (128, 0.208359375)])
def test_mean_of_a_batch_of_hard_gates_is_short_by_its_share(batch, value):
    law = torch.tensor([math.comb(batch, k) * 0.3**k * 0.7 ** (batch - k) for k in range(batch + 1)], dtype=F64)
    gates = (torch.arange(batch)[:, None] < torch.arange(batch + 1)).to(F64)  # column k has k open gates
    biased = torch.stack([polarization_loss(column[:, None]) for column in gates.T])
    unbiased = torch.stack([polarization_loss(column[:, None], unbiased=True) for column in gates.T])
    assert (law @ biased).item() == pytest.approx(value, abs=1e-12)
    assert (law @ unbiased).item() == pytest.approx(0.21, abs=1e-12)


def test_mean_of_a_batch_of_probabilities_is_short_by_their_variance():
    values, batch = torch.tensor([0.1, 0.4, 0.8], dtype=F64), 3
    draws = values[torch.tensor(list(itertools.product(range(3), repeat=batch)))]
    mean = torch.stack([polarization_loss(row[:, None]) for row in draws]).mean()
    whole = decomposition(values[:, None])
    assert torch.allclose(mean, whole.total - whole.disagreement / batch, atol=1e-14)


def test_one_input_agrees_with_itself():
    assert polarization_loss((torch.rand(1, 5, generator=generator()) > 0.5).float()) == 0


def test_gradient_and_curvature():
    gates = torch.rand(7, 1, dtype=F64, generator=generator()).requires_grad_()
    (gradient,) = torch.autograd.grad(polarization_loss(gates), gates)
    assert torch.allclose(gradient, (1 - 2 * gates.mean()).expand(7, 1) / 7, atol=1e-15)
    assert torch.autograd.gradcheck(polarization_loss, (gates,), eps=1e-6, atol=1e-8)
    hessian = torch.autograd.functional.hessian(lambda g: polarization_loss(g[:, None]), gates.detach()[:, 0])
    assert torch.allclose(torch.linalg.eigvalsh(hessian), torch.tensor([-2 / 7] + [0.0] * 6, dtype=F64), atol=1e-14)
    logits = torch.randn(7, 1, dtype=F64, generator=generator(1)).requires_grad_()
    p = logits.sigmoid()
    (gradient,) = torch.autograd.grad(polarization_loss(p), logits)
    assert torch.allclose(gradient, (1 - 2 * p.mean()) * p * (1 - p) / 7, atol=1e-15)


def test_activation_loss_weighs_gates_and_meets_a_target():
    gates = torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
    cost = torch.tensor([1.0, 2.0, 5.0])
    assert activation_loss(gates).item() == pytest.approx(2 / 3)
    assert activation_loss(gates, cost).item() == pytest.approx((1 + 1 + 2.5) / 8)
    assert activation_loss(gates, cost, target=0.5).item() == pytest.approx((4.5 / 8 - 0.5) ** 2)
    assert activation_loss(gates, (1, 2, 5)) == activation_loss(gates, [1.0, 2.0, 5.0]) == activation_loss(gates, cost)
    assert activation_loss(torch.ones(2, 3), cost, target=1) == activation_loss(torch.zeros(2, 3), cost, target=0) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_holds_a_networks_costs(dtype):
    macs = costs(ResNet((1, 1, 1), (16, 32, 64), in_channels=3, num_classes=10), 32, 32).macs
    assert max(macs) > torch.finfo(torch.float16).max
    gates = torch.rand(70_000, 3, generator=generator()).to(dtype)
    for loss in (
        lambda g: activation_loss(g, macs),
        lambda g: activation_loss(g, torch.tensor(macs, dtype=torch.float32), 0.3),
        polarization_loss,
        lambda g: target_rate_loss(g, 0.2),
        lambda g: decomposition(g).total.mean(),
    ):
        found, exact = loss(gates), loss(gates.double())
        assert found.dtype == torch.float32
        assert found.item() == pytest.approx(exact.item(), rel=1e-5)
    assert torch.equal(freeze_pattern(gates[0], 0.45, macs), freeze_pattern(gates[0].double(), 0.45, macs))


@given(st.lists(st.lists(st.floats(0, 1), min_size=2, max_size=2), min_size=1, max_size=6), st.floats(0, 1))
def test_target_rate_loss_is_the_family_at_minus_one(rows, t):
    gates = torch.tensor(rows, dtype=F64)
    family = t**2 + (1 - 2 * t) * activation_loss(gates) - polarization_loss(gates)
    assert target_rate_loss(gates, t).item() == pytest.approx(family.item(), abs=1e-15)
    assert target_rate_loss(gates, 0.5).item() == pytest.approx(0.25 - polarization_loss(gates).item(), abs=1e-15)


# How the gates move --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "end"), [(0.51, 1.0), (0.49, 0.0), (0.5, None)])
def test_flow_goes_to_the_majority_and_a_tie_stays(share, end):
    logits = torch.where(torch.arange(100) < round(100 * share), 1.0, -1.0).to(F64)[:, None]
    moved = gate_flow(logits, polarization=1, rate=1, steps=3000)
    if end is None:
        assert torch.allclose(moved, logits, atol=1e-12)
    else:
        assert bool(((moved > 0) == bool(end)).all())
        assert abs(moved.sigmoid().mean() - end) < 1e-2


@pytest.mark.parametrize(("mean", "end"), [(0.592, 0), (0.639, 0), (0.74, 0), (0.76, 1), (0.862, 1)])
def test_with_the_activation_loss_the_threshold_moves_up(mean, end):
    assert unstable_share(0.5, 1) == 0.75
    logits = torch.full((100, 1), math.log(mean / (1 - mean)), dtype=F64)
    assert bool(((gate_flow(logits, activation=0.5, polarization=1, steps=4000) > 0) == bool(end)).all())


def test_without_a_threshold_everything_shuts():
    assert unstable_share(1, 1) is None and unstable_share(0, 1) == 0.5
    logits = torch.full((3, 1), 3.0, dtype=F64)
    assert bool((gate_flow(logits, activation=1, polarization=1, steps=4000) < 0).all())


@pytest.mark.parametrize(("confidence", "steps"), [(1, 10), (2, 17), (4, 81), (6, 522), (8, 3749)])
def test_confident_dissenters_take_exponentially_long(confidence, steps):
    logits = torch.where(torch.arange(10) < 9, 1.0, -1.0).to(F64)[:, None] * confidence
    before = gate_flow(logits, polarization=1, steps=steps - 1)
    assert before.min() <= 0 < gate_flow(before, polarization=1).min()


@pytest.mark.parametrize(
    ("gain", "polarization", "opened", "closed"),
    [
        (0.05, 0.2, 0, 0),
        *((gain, 0.2, 1, 0) for gain in (0.2, 0.25, 0.35, 0.4, 0.45)),
        (0.55, 0.2, 1, 1),
        (0.25, 0, 0, 0),
        (0.35, 0, 1, 1),
    ],
)
def test_polarization_freezes_early_guesses(gain, polarization, opened, closed):
    """From an open and from a shut start, with an activation weight of 0.3."""
    for start, end in ((2.0, opened), (-2.0, closed)):
        logits = torch.full((4, 1), start, dtype=F64)
        moved = gate_flow(logits, activation=0.3, polarization=polarization, gain=gain, steps=4000)
        assert bool(((moved > 0) == bool(end)).all()), start


def test_flow_is_gradient_descent():
    logits = torch.randn(5, 3, dtype=F64, generator=generator()).requires_grad_()
    gain = torch.rand(5, 3, dtype=F64, generator=generator(1))
    p = logits.sigmoid()
    loss = 0.3 * activation_loss(p) + 0.7 * polarization_loss(p) - (gain * p).mean()
    (gradient,) = torch.autograd.grad(loss, logits)
    moved = gate_flow(logits.detach(), activation=0.3, polarization=0.7, gain=gain, rate=0.1)
    assert torch.allclose(moved, logits - 0.1 * 15 * gradient, atol=1e-14)


@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=20))
def test_the_certificate_in_all_its_steps(rows):
    gates = torch.tensor(rows).double()
    mean = gates.mean(0)
    dissent = torch.minimum(mean, 1 - mean)
    path = (gates != (mean >= 0.5)).any(1).double().mean()
    assert path <= dissent.sum() + 1e-12
    assert dissent.sum() <= 2 * 4 * polarization_loss(gates) + 1e-12
    assert torch.allclose(dissent_from_polarization(decomposition(gates).total), dissent, atol=1e-7)


# What the estimators are worth ---------------------------------------------------------------------------------------

W = torch.tensor([1, -2, 1.5], dtype=F64)
S = torch.tensor([0.5, -1, 1.5], dtype=F64)


def square(g: torch.Tensor) -> torch.Tensor:
    return 0.5 * (g @ W - 0.7) ** 2


def test_gradients_of_the_toy():
    mean, gradient = exact_gradient(square, S)
    assert mean.item() == pytest.approx(0.8651382, abs=1e-7)
    assert gradient.tolist() == pytest.approx([0.114794, -0.058520, 0.030107], abs=1e-6)
    for i in range(3):
        step = 1e-5 * torch.eye(3, dtype=F64)[i]
        slope = (exact_gradient(square, S + step)[0] - exact_gradient(square, S - step)[0]) / 2e-5
        assert gradient[i].item() == pytest.approx(slope.item(), abs=1e-8)
    estimated = straight_through_gradient(square, S)
    assert estimated.tolist() == pytest.approx([0.143573, -0.240235, 0.136679], abs=1e-6)
    p = S.sigmoid()
    assert torch.allclose(estimated - gradient, W**2 * p * (1 - p) * (p - 0.5), atol=1e-12)
    assert (estimated - gradient).tolist() == pytest.approx([0.028778, -0.181716, 0.106571], abs=1e-6)
    q = p.clone().requires_grad_()
    (field,) = torch.autograd.grad(square(q[None]).sum(), q)
    assert torch.allclose(estimated, field * p * (1 - p), atol=1e-12)  # the gradient at the mean field
    identity = straight_through_gradient(square, S, slope="identity")
    assert identity.tolist() == pytest.approx([0.6109, -1.2219, 0.9164], abs=1e-4)


def test_the_score_function_estimator_has_no_bias_and_this_much_noise():
    states = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)), dtype=F64)
    p = S.sigmoid()
    chance = torch.where(states > 0, p, 1 - p).prod(1)
    estimate = square(states)[:, None] * (states - p)
    mean = chance @ estimate
    assert torch.allclose(mean, exact_gradient(square, S)[1], atol=1e-12)
    assert (chance @ (estimate - mean) ** 2).sqrt().tolist() == pytest.approx([0.51, 0.51, 0.49], abs=0.006)


def test_straight_through_is_unbiased_without_squares_and_at_one_half():
    def multilinear(g):
        return g[:, 0] * g[:, 1] - 2 * g[:, 1] * g[:, 2] + 3 * g[:, 0]

    assert torch.allclose(straight_through_gradient(multilinear, S), exact_gradient(multilinear, S)[1], atol=1e-12)
    half = torch.zeros(3, dtype=F64)
    assert torch.allclose(straight_through_gradient(square, half), exact_gradient(square, half)[1], atol=1e-12)
    sure = 12 * torch.tensor([1.0, -1, 1], dtype=F64)
    assert (straight_through_gradient(square, sure) - exact_gradient(square, sure)[1]).abs().max() < 1e-4


def test_the_threshold_gates_gradient_is_that_of_nothing():
    s = S.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(square(binary_gate(s)[None]).sum(), s)
    assert gradient.tolist() == pytest.approx([0.4230, -0.7078, 0.4027], abs=1e-4)


@pytest.mark.parametrize(
    ("temperature", "mean", "sd"),
    [
        (2.0, (0.064, -0.117, 0.084), (0.13, 0.25, 0.18)),
        (1.0, (0.095, -0.152, 0.101), (0.21, 0.41, 0.29)),
        (0.5, (0.114, -0.145, 0.089), (0.33, 0.63, 0.42)),
        (0.1, (0.119, -0.084, 0.045), (0.79, 1.45, 0.95)),
    ],
)
def test_gumbel_straight_through_trades_bias_for_variance(temperature, mean, sd):
    draws = 200_000
    s = S.expand(draws, 3).clone().requires_grad_()
    g = gumbel_sigmoid_gate(s, temperature, hard=True, generator=generator())
    (gradient,) = torch.autograd.grad(square(g).sum(), s)
    error = gradient.std(0) / draws**0.5
    assert ((gradient.mean(0) - torch.tensor(mean, dtype=F64)).abs() < 5 * error + 6e-4).all()
    assert gradient.std(0).tolist() == pytest.approx(list(sd), abs=0.02)


# The method of a similar name ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [-2.5, -1.0, -0.4, 0.0, 0.5, 1.0, 2.0, 3.0])
def test_spread_over_neurons_is_best_at_corners_with_the_known_share(t):
    corners = torch.tensor(list(itertools.product([0.0, 1.0], repeat=12)), dtype=F64)
    value = torch.vmap(lambda scale: neuron_polarization(scale, t))(corners)
    share = corners[value <= value.min() + 1e-9].mean(1)
    best = min(max(0.5 - t / 4, 0), 1)
    nearest = (torch.arange(13) / 12 - best).abs().min()
    assert torch.allclose((share - best).abs(), nearest.double().expand(len(share)), atol=1e-7)
    inside = torch.rand(2000, 12, dtype=F64, generator=generator())
    assert torch.vmap(lambda scale: neuron_polarization(scale, t))(inside).min() > value.min() - 1e-12
