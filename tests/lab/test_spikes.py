"""Simulated populations against their own laws, and the classical methods against closed forms and scikit-learn."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.decomposition import FactorAnalysis
from sklearn.linear_model import PoissonRegressor

from gated.lab import population as pop
from gated.lab import spikes
from gated.langevinflow import bits_per_spike

KINDS = (spikes.lorenz, spikes.lattice, spikes.control)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("make", KINDS)
def test_every_population_keeps_the_recipe(make):
    p = make(rng())
    assert p.spikes.shape == p.rates.shape == (384, 60, 40) and p.hand.shape == (384, 60, 2)
    assert (p.observed, p.heldin) == (50, 30)
    assert abs(float(p.rates.mean()) - 0.2) < 0.01 and abs(float(p.spikes.mean()) - 0.2) < 0.01
    assert torch.equal(p.spikes, p.spikes.round()) and float(p.spikes.min()) == 0
    # a log rate is linear in the latents, with sd .7; over all bins, of which two are not shown
    x = torch.cat([p.latents.flatten(0, 1), torch.ones(384 * 60, 1)], 1).double()
    r = p.rates.double().log().flatten(0, 1)
    left = r - x @ torch.linalg.lstsq(x, r).solution
    assert float(left.abs().max()) < 1e-4
    assert torch.allclose(r.std(0), torch.full((40,), 0.7, dtype=torch.float64), atol=0.05)
    # repeats share the trajectory, not the spikes
    first, second = (p.condition == 0).nonzero()[:2, 0]
    assert torch.equal(p.rates[first], p.rates[second]) and not torch.equal(p.spikes[first], p.spikes[second])
    # counts are Poisson: variance over the mean, given the rate, is one
    z = (p.spikes - p.rates) / p.rates.sqrt()
    assert abs(float(z.var()) - 1) < 0.01
    assert torch.equal(make(rng()).spikes, p.spikes) and not torch.equal(make(rng(1)).spikes, p.spikes)


@pytest.mark.parametrize("make", KINDS)
def test_the_hand_follows_the_latents_two_bins_later(make):
    p = make(rng(2))
    hand, x = p.hand[:, spikes.LAG :].reshape(-1, 2).double(), p.latents[:, : -spikes.LAG].flatten(0, 1).double()

    def unexplained(shift):
        a = p.latents[:, spikes.LAG - shift : 60 - shift].flatten(0, 1).double()
        return float((hand - a @ torch.linalg.lstsq(a, hand).solution).var())

    assert unexplained(spikes.LAG) == pytest.approx(0.04, rel=0.05)  # the noise
    assert min(range(3), key=unexplained) == spikes.LAG and len(x)


def test_lorenz_converges_with_order_four_and_stays_on_the_attractor():
    start = torch.tensor([[1.0, 1.0, 25.0]], dtype=torch.float64)
    exact = spikes.lorenz_path(start, 65, 0.015 / 16)[0, -1]
    errors = [float((spikes.lorenz_path(start, 4 * n + 1, 0.015 / n)[0, -1] - exact).norm()) for n in (1, 2)]
    assert 11 < errors[0] / errors[1] < 24
    path = spikes.lorenz_path(start, 4000)[0, 1000:]
    assert float(path[:, 2].min()) > 0 and float(path[:, 2].max()) < 50
    # fixed points of the equations stay where they are
    c = math.sqrt(8 / 3 * 27)
    still = torch.tensor([[c, c, 27.0], [-c, -c, 27.0], [0, 0, 0]], dtype=torch.float64)
    assert torch.allclose(spikes.lorenz_path(still, 5)[:, -1], still, atol=1e-9)


def test_the_lattice_has_the_periods_it_says():
    omega = torch.linalg.eigvalsh(spikes.lattice_hessian()).sqrt()
    periods = 2 * math.pi / omega
    assert float(periods.max()) == pytest.approx(20) and float(periods.min()) == pytest.approx(8)
    w, k = (math.pi / 10) ** 2, float(-spikes.lattice_hessian()[0, 1])
    want = torch.tensor([w + 2 * k * (1 - math.cos(math.pi * j / 8)) for j in range(8)], dtype=torch.float64)
    assert torch.allclose(omega**2, want, atol=1e-12)  # the dispersion of a chain with free ends
    assert spikes.lattice_friction() / (2 * math.sqrt(omega[0] * omega[-1])) == pytest.approx(spikes.DAMPING)


def test_lattice_and_control_have_one_law_and_only_one_of_them_turns():
    many = {f.__name__: f(rng(3), conditions=600, repeats=1) for f in (spikes.lattice, spikes.control)}
    law = spikes.lattice_hessian().inverse()
    correlation = law / law.diagonal().outer(law.diagonal()).sqrt()
    for p in many.values():
        for bin in (0, 59):
            assert torch.allclose(torch.corrcoef(p.latents[:, bin].T).double(), correlation, atol=0.15)
    keep = {name: float((p.latents[:, 1:] * p.latents[:, :-1]).mean()) for name, p in many.items()}
    assert keep["lattice"] == pytest.approx(keep["control"], abs=0.02)
    half = {name: float((p.latents[:, 7:] * p.latents[:, :-7]).mean()) for name, p in many.items()}
    assert half["lattice"] < -0.3 and half["control"] == pytest.approx(spikes.control_memory() ** 7, abs=0.06)


def test_splits_share_no_trial_and_by_condition_no_trajectory():
    p = spikes.lorenz(rng(), conditions=6, repeats=6)
    for by, shared in (("condition", 0), ("repeat", 6)):
        parts = spikes.split(p, by, rng())
        assert [len(q.spikes) for q in parts] == [24, 6, 6]
        sets = [set(q.condition.tolist()) for q in parts]
        assert all(len(a & b) == shared for a, b in itertools.combinations(sets, 2))
        rows = torch.cat([q.spikes for q in parts]).flatten(1)
        assert len(torch.unique(rows, dim=0)) == 36


# Classical methods --------------------------------------------------------------------------------------------------


def test_smoothing_keeps_constants_and_is_the_gaussian_inside():
    assert torch.allclose(pop.smooth(torch.ones(1, 20, 2), 3), torch.ones(1, 20, 2))
    pulse = torch.zeros(1, 61, 1)
    pulse[0, 30] = 1
    t = torch.arange(61.0) - 30
    want = torch.exp(-(t**2) / 8) / math.sqrt(8 * math.pi)
    assert torch.allclose(pop.smooth(pulse, 2)[0, 10:51, 0], want[10:51], atol=1e-6)


def test_the_readout_is_scikit_learns_poisson_regression():
    g = rng(4)
    x = torch.randn(30, 20, 3, generator=g, dtype=torch.float64) * torch.tensor([1.0, 5, 0.2])
    y = torch.poisson((0.3 * x[..., :1] - 1).exp().expand(-1, -1, 4), generator=g)
    got = pop.fit_readout(x, y, 0.01)
    flat = x.flatten(0, 1).numpy()
    z = (flat - flat.mean(0)) / flat.std(0, ddof=1)
    for n in range(4):
        want = PoissonRegressor(alpha=0.01, tol=1e-10, max_iter=500).fit(z, y[..., n].flatten().numpy())
        np.testing.assert_allclose(got.weight[:, n], want.coef_ / flat.std(0, ddof=1), atol=2e-4)
        np.testing.assert_allclose(got(x.float())[..., n].flatten(), want.predict(z), rtol=2e-3)


def model(seed=5, trials=40, bins=12, channels=6, factors=2):
    r = np.random.default_rng(seed)
    t = np.arange(bins)
    kernel = np.exp(-((t[:, None] - t) ** 2) / 18) + 1e-6 * np.eye(bins)
    x = np.linalg.cholesky(kernel) @ r.normal(size=(trials, bins, factors))
    return x @ r.normal(size=(factors, channels)) + 0.5 * r.normal(size=(trials, bins, channels))


def joint(gpfa, y):
    """Mean and covariance of a whole trial [bins * channels], and the prior's cross-covariance with the factors."""
    bins = y.shape[1]
    prior = [gpfa.kernel(bins, tau) for tau in gpfa.tau]
    total = sum(np.kron(k, np.outer(c, c)) for k, c in zip(prior, gpfa.loading.T, strict=True))
    return np.tile(gpfa.offset, bins), total + np.kron(np.eye(bins), np.diag(gpfa.noise)), prior


def test_gpfa_is_the_gaussian_that_it_says():
    y = model()
    gpfa = pop.Gpfa(2, rounds=4).fit(y)
    mean, covariance, prior = joint(gpfa, y)
    want = multivariate_normal(mean, covariance).logpdf(y.reshape(len(y), -1)).mean()
    got, spread, likelihood = gpfa._posterior(y)
    assert likelihood == pytest.approx(want, rel=1e-9)
    for i, k in enumerate(prior):  # conditioning the joint normal
        cross = np.kron(k, gpfa.loading[:, i][None])
        solved = np.linalg.solve(covariance, (y.reshape(len(y), -1) - mean).T)
        np.testing.assert_allclose(got[..., i], (cross @ solved).T, atol=1e-9)
        np.testing.assert_allclose(spread[i, :, i], k - cross @ np.linalg.solve(covariance, cross.T), atol=1e-9)


def test_gpfas_likelihood_never_falls_and_it_finds_the_time_scale():
    gpfa = pop.Gpfa(2, rounds=25, tau=1.5).fit(model(trials=150))
    assert (np.diff(gpfa.history) > -1e-9 * abs(gpfa.history[0])).all()
    assert np.allclose(gpfa.tau, 3, atol=0.7)


def test_without_memory_gpfa_is_factor_analysis():
    y = model(trials=100)
    gpfa = pop.Gpfa(2, rounds=1, tau=0.01)
    fa = FactorAnalysis(2).fit(y.reshape(-1, 6))
    gpfa.loading, gpfa.offset, gpfa.noise = fa.components_.T, fa.mean_, fa.noise_variance_
    np.testing.assert_allclose(gpfa.means(y).reshape(-1, 2), fa.transform(y.reshape(-1, 6)), atol=1e-6)
    assert gpfa._posterior(y)[2] / 12 == pytest.approx(fa.score(y.reshape(-1, 6)), rel=1e-6)
    law = multivariate_normal(fa.mean_, fa.components_.T @ fa.components_ + np.diag(fa.noise_variance_))
    assert fa.score(y.reshape(-1, 6)) == pytest.approx(law.logpdf(y.reshape(-1, 6)).mean())


def test_gpfa_goes_on_as_the_process_does():
    y = model(trials=60)
    gpfa = pop.Gpfa(2, rounds=5).fit(y)
    longer = gpfa.means(y, 8)
    np.testing.assert_array_equal(longer[:, :12], gpfa.means(y))
    # as if later bins had been there with infinite noise: condition the joint law of 20 bins on the first 12
    mean, covariance, _ = joint(gpfa, y)
    for i, tau in enumerate(gpfa.tau):
        cross = np.kron(gpfa.kernel(20, tau)[:, :12], gpfa.loading[:, i][None])
        want = cross @ np.linalg.solve(covariance, (y.reshape(len(y), -1) - mean).T)
        np.testing.assert_allclose(longer[..., i], want.T, atol=1e-6)


@pytest.mark.parametrize("method", ["smoothing", "factor analysis", "GPFA"])
def test_baselines_lie_between_the_mean_and_the_truth(method, monkeypatch):
    monkeypatch.setattr(pop, "FACTORS", (3,))
    monkeypatch.setattr(pop, "SMOOTHING", (3.0, 5.0))
    p = spikes.lorenz(rng(6), conditions=36, repeats=3, observed=25, forward=4, neurons=24, heldin=18)
    parts = spikes.split(p, "condition", rng())
    found = pop.baseline_rates(method, parts)
    assert found.test.shape == parts.test.spikes.shape and found.train.shape == parts.train.spikes.shape
    ceiling = pop.true_scores(parts.test)["co-bps"]
    assert 0.1 < bits_per_spike(found.test[:, :25, 18:], parts.test.spikes[:, :25, 18:]) < ceiling
    # what is held out cannot matter
    spoiled = parts._replace(test=parts.test._replace(spikes=parts.test.spikes.clone()))
    spoiled.test.spikes[:, :, 18:] = 9
    spoiled.test.spikes[:, 25:] = 9
    assert torch.equal(pop.baseline_rates(method, spoiled).test, found.test)


def test_autoregression_knows_what_comes_next():
    p = spikes.lattice(rng(7), conditions=360, repeats=1, observed=30, forward=2, neurons=24, heldin=18)
    parts = spikes.split(p, "condition", rng())
    found = pop.autoregression(parts)
    assert found.test.shape == (60, 2, 24)
    assert 0 < bits_per_spike(found.test, parts.test.spikes[:, 30:]) < pop.true_scores(parts.test)["fp-bps"]
