"""Divergences against Monte Carlo, the released formula's constants, coordinated dropout, bits per spike."""

import math
import sys
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal, Poisson, kl_divergence

from gated.langevinflow import (
    bits_per_spike,
    coordinated_dropout,
    exact_noise,
    gaussian_kl,
    girsanov_kl,
    poisson_nll,
    released_beta,
    released_kl,
    scored,
    simulate,
    step_covariance,
    step_matrix,
)

DOUBLE = torch.double


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def row(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=DOUBLE)


def test_gaussian_kl_closed_form_and_monte_carlo():
    closed = float(gaussian_kl(row(0.3), row(2 * math.log(0.8)), row(-0.2), row(2 * math.log(1.5))))
    assert closed == pytest.approx(0.326386, abs=5e-7)
    q, p = Normal(0.3, 0.8), Normal(-0.2, 1.5)
    assert closed == pytest.approx(float(kl_divergence(q, p)), rel=1e-6)
    x = 0.3 + 0.8 * torch.randn(1_000_000, generator=gen())
    ratio = q.log_prob(x) - p.log_prob(x)
    assert abs(float(ratio.mean()) - closed) < 4 * float(ratio.std()) / 1000


def test_gaussian_kl_is_zero_only_for_the_prior_and_sums_over_dimensions():
    assert float(gaussian_kl(row(0, 0), row(0, 0))) == 0
    m, l = torch.randn(2, 3, 4, generator=gen(), dtype=DOUBLE)
    each = kl_divergence(Normal(m, (l / 2).exp()), Normal(torch.zeros_like(m), 1.0)).sum(-1)
    assert torch.allclose(gaussian_kl(m, l), each)


@pytest.mark.parametrize(
    ("gamma", "proper", "expected"),
    [(0.55, False, 12.820), (0.7, False, 17.925), (0.55, True, 3.801), (0.7, True, 5.180)],
)
def test_constant_of_the_released_formula(gamma, proper, expected):
    still = torch.zeros(2, 44, 3, dtype=DOUBLE)
    per_entry = released_kl(still, gamma, proper_constant=proper) / (44 * 3)
    assert per_entry.tolist() == pytest.approx([expected] * 2, abs=6e-4)


def test_only_the_velocity_has_a_gradient_in_the_released_formula():
    v = torch.randn(2, 5, 3, generator=gen(), dtype=DOUBLE, requires_grad=True)
    (grad,) = torch.autograd.grad(released_kl(v, 0.55).sum(), v)
    assert torch.allclose(grad, 10 * v)  # of 5 v^2


@pytest.mark.parametrize(("bins", "neurons", "beta"), [(45, 182, 819), (40, 130, 520), (40, 65, 260), (85, 54, 459)])
def test_effective_beta_of_the_released_loss(bins, neurons, beta):
    assert released_beta(bins, neurons) == pytest.approx(beta)


def test_girsanov_kl_is_the_mean_log_ratio_of_path_densities():
    """Pushed paths of a spring against free ones, by their step densities in the velocity; exact for each step."""
    h, a, steps, number = 0.4, 0.8, 6, 40_000
    sigma = float(exact_noise(a))
    push = 0.3 * torch.randn(steps, 1, generator=gen(1), dtype=DOUBLE)
    noise = torch.randn(number, steps, 1, generator=gen(2), dtype=DOUBLE)
    log_ratio = ((noise + push / sigma) ** 2 - noise**2).sum((1, 2)) / 2  # the noise a free path would have needed
    path_kl = float(girsanov_kl(push, sigma).sum())
    assert abs(float(log_ratio.mean()) - path_kl) < 4 * float(log_ratio.std()) / math.sqrt(number)
    # the noise is what the path says it was: undo the step
    start = torch.zeros(number, 1, dtype=DOUBLE)
    z, v = simulate(lambda z: z, start, start, noise, step=h, decay=a, scale=sigma, control=push.expand(number, -1, -1))
    before_z, before_v = torch.cat([start[:, None], z[:, :-1]], 1), torch.cat([start[:, None], v[:, :-1]], 1)
    needed = ((v + h / 2 * z) - a * (before_v - h / 2 * before_z)) / sigma
    assert torch.allclose(needed, noise + push / sigma, atol=1e-12)


def test_no_push_costs_nothing():
    assert not girsanov_kl(torch.zeros(3, 4), 0.5).any()


def test_end_marginals_differ_less_than_paths():
    """Data processing: the KL between the Gaussian laws of the last state is at most that of the paths."""
    h, a = 0.4, 0.8
    sigma = float(exact_noise(a))
    push = 0.5 * torch.randn(8, 1, generator=gen(3), dtype=DOUBLE)
    zero = torch.zeros(1, 1, dtype=DOUBLE)
    options = {"step": h, "decay": a, "scale": sigma}
    z, v = simulate(lambda z: z, zero, zero, torch.zeros(1, 8, 1, dtype=DOUBLE), control=push[None], **options)
    matrix = step_matrix(torch.eye(1, dtype=DOUBLE), step=h, decay=a)
    each = step_covariance(torch.eye(1, dtype=DOUBLE), **options)
    covariance = torch.zeros_like(each)
    for _ in range(8):
        covariance = matrix @ covariance @ matrix.mT + each
    mean = torch.cat([z[0, -1], v[0, -1]])
    end = float(mean @ torch.linalg.solve(covariance, mean)) / 2
    assert 0 < end < float(girsanov_kl(push, sigma).sum())


def test_poisson_nll_is_that_of_the_distribution():
    log_rates = torch.randn(3, 4, generator=gen(), dtype=DOUBLE)
    counts = torch.poisson(torch.full((3, 4), 1.5, dtype=DOUBLE), generator=gen())
    full = -Poisson(log_rates.exp()).log_prob(counts)
    assert torch.allclose(poisson_nll(log_rates, counts, full=True), full)
    assert torch.allclose(poisson_nll(log_rates, counts) + torch.lgamma(counts + 1), full)


@pytest.mark.parametrize("keep", [0.5, 0.3, 0.4, 0.6])
def test_coordinated_dropout_shares(keep):
    g, spikes = gen(), torch.full((400, 50, 20), 2.0)
    seen, visible = coordinated_dropout(spikes, keep, g)
    assert float(seen.mean()) == pytest.approx(2, rel=0.01)  # E[x m / c] = x
    assert bool((seen[visible] == 2 / keep).all()) and not seen[~visible].any()
    assert float(visible.float().mean()) == pytest.approx(keep, abs=3e-3)
    original, released = (scored(visible, keep, rule, g) for rule in ("original", "released"))
    assert not (original & visible).any() and float(original.float().mean()) == pytest.approx(1 - keep, abs=3e-3)
    assert float(released.float().mean()) == pytest.approx(1 - keep**2, abs=3e-3)
    assert float((released & visible).float().mean()) == pytest.approx(keep * (1 - keep), abs=3e-3)
    assert bool(released[~visible].all())


# Bits per spike -----------------------------------------------------------------------------------------------------

RATES = torch.tensor([[[0.5, 1], [2, 0.25], [1, 0.75]]], dtype=DOUBLE)
SPIKES = torch.tensor([[[0.0, 1], [3, 0], [1, 2]]], dtype=DOUBLE)


def nlb_tools_evaluation():
    folder = str(Path(__file__).resolve().parents[2] / ".venv" / "oracles")
    sys.path.append(folder)  # at the end: what we have installed comes first
    try:
        from nlb_tools import evaluation
    finally:
        sys.path.remove(folder)
    return evaluation


def test_bits_per_spike_of_the_example():
    assert bits_per_spike(RATES, SPIKES) == pytest.approx(0.381974, abs=5e-7)
    model = float(poisson_nll(RATES.log(), SPIKES, full=True).sum())
    null = float(poisson_nll(SPIKES.mean((0, 1)).log().expand_as(SPIKES), SPIKES, full=True).sum())
    assert (model, null) == pytest.approx((6.480829, 8.334178), abs=5e-7)
    assert bits_per_spike(RATES, SPIKES) == pytest.approx((null - model) / (7 * math.log(2)), rel=1e-12)


def test_null_is_zero_and_constant_rates_of_other_data_are_below():
    spikes = torch.poisson(torch.full((20, 10, 4), 0.4, dtype=DOUBLE), generator=gen())
    assert bits_per_spike(spikes.mean((0, 1)).expand_as(spikes), spikes) == 0
    train = torch.poisson(torch.full((20, 10, 4), 0.4, dtype=DOUBLE), generator=gen(1))
    assert bits_per_spike(train.mean((0, 1)).expand_as(spikes), spikes) < 0


@given(st.integers(0, 10**6))
def test_bits_per_spike_is_that_of_nlb_tools(seed):
    g = gen(seed)
    trials, bins, neurons = (int(n) for n in torch.randint(1, 6, (3,), generator=g))
    rates = torch.rand(trials, bins, neurons, generator=g, dtype=DOUBLE) * 2
    spikes = torch.poisson(rates, generator=g)
    rates[torch.rand(rates.shape, generator=g) < 0.1] = 0
    spikes[torch.rand(rates.shape, generator=g) < 0.1] = math.nan
    spikes[0, 0, 0] = 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a neuron without any target
        oracle = nlb_tools_evaluation().bits_per_spike(rates.numpy().copy(), spikes.numpy())
    kept = rates.clone()
    assert bits_per_spike(rates, spikes) == pytest.approx(float(oracle), rel=1e-9, abs=1e-9)
    assert torch.equal(rates, kept)  # zeros are replaced in a copy


def test_order_of_neurons_and_trials_does_not_matter():
    g = gen()
    rates = torch.rand(6, 5, 4, generator=g, dtype=DOUBLE) + 0.1
    spikes = torch.poisson(rates, generator=g)
    trials, neurons = torch.randperm(6, generator=g), torch.randperm(4, generator=g)
    shuffled = bits_per_spike(rates[trials][:, :, neurons], spikes[trials][:, :, neurons])
    assert shuffled == pytest.approx(bits_per_spike(rates, spikes), rel=1e-12)
