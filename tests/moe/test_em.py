"""EM against its own promise (never down), planted models, scikit-learn, and its limits."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.mixture import GaussianMixture

from gated.moe.em import GaussianGateModel, fit_gaussian_gate, fit_softmax_gate, nearest_of_random

FITS = {
    "normal": fit_gaussian_gate,
    "t gate": lambda *a, **o: fit_gaussian_gate(*a, **o, gate_freedom=3),
    "t experts": lambda *a, **o: fit_gaussian_gate(*a, **o, expert_freedom=2.5),
    "t both": lambda *a, **o: fit_gaussian_gate(*a, **o, gate_freedom=1, expert_freedom=1),
    "softmax": fit_softmax_gate,
}


def by_name(fits):
    return pytest.mark.parametrize("fit", fits.values(), ids=fits)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def planted(runs, n, seed=0):
    """Two clusters in the plane with opposite lines."""
    generator = rng(seed)
    j = (torch.rand(runs, n, generator=generator) < 0.4).long()
    mean = torch.tensor([[-1.5, 0.5], [1.5, -0.5]], dtype=torch.float64)
    weight = torch.tensor([[2.0, -1.0, 0.5], [-1.0, 3.0, -2.0]], dtype=torch.float64)
    std = torch.tensor([0.3, 0.6], dtype=torch.float64)
    noise = torch.randn(runs, n, 3, generator=generator, dtype=torch.float64)
    x = mean[j] + 0.8 * noise[..., :2]
    y = (torch.cat([x, torch.ones_like(x[..., :1])], -1) * weight[j]).sum(-1) + std[j] * noise[..., 2]
    return x, y, (mean, weight, std)


@by_name(FITS)
@settings(max_examples=12)
@given(
    seed=st.integers(0, 1000),
    n=st.integers(1, 40),
    dim=st.integers(1, 3),
    experts=st.integers(1, 5),
    shape=st.sampled_from(["normal", "repeated", "constant", "collinear", "heavy"]),
)
def test_log_likelihood_never_decreases(fit, seed, n, dim, experts, shape):
    x, y = normal(2, n, dim, seed=seed), normal(2, n, seed=seed + 1)
    if shape == "repeated":
        x, y = x.round(), y.round()
    elif shape == "constant":
        x = torch.zeros_like(x)
    elif shape == "collinear":
        x = x[..., :1].expand_as(x).contiguous()
    elif shape == "heavy":
        x, y = x / normal(2, n, 1, seed=seed + 2), y / normal(2, n, seed=seed + 3)
    # more experts than distinct inputs, so that some must die or collapse onto the floor
    h = nearest_of_random(x, min(experts, n), rng(seed))
    found = fit(x, y, h, steps=25, tolerance=-math.inf)
    assert found.log_likelihood.shape == (26, 2)
    assert found.log_likelihood.isfinite().all()
    least = -1e-9 * (1 + found.log_likelihood.abs().amax(0))
    assert (found.log_likelihood.diff(dim=0) >= least).all()
    assert found.model.predict(x).isfinite().all()


def test_never_decreases_to_1e_9_on_data_of_ordinary_size():
    x, y, _ = planted(3, 400)
    for fit in FITS.values():
        found = fit(x, y, nearest_of_random(x, 4, rng(1)), steps=150, tolerance=-math.inf)
        assert (found.log_likelihood.diff(dim=0) >= -1e-9).all()
        assert (found.log_likelihood[-1] > found.log_likelihood[0] + 1).all()


@by_name({name: fit for name, fit in FITS.items() if name in ("normal", "t gate", "softmax")})
def test_recovers_a_planted_model(fit):
    x, y, (mean, weight, std) = planted(3, 4000)
    found = fit(x, y, nearest_of_random(x, 2, rng(2)), steps=300).model
    for run in range(3):
        error = [(found.weight[run][list(p)] - weight).abs().max() for p in itertools.permutations(range(2))]
        order = list(itertools.permutations(range(2)))[int(np.argmin(error))]
        assert min(error) < 0.12
        torch.testing.assert_close(found.std[run][list(order)], std, rtol=0.06, atol=0)
        if isinstance(found, GaussianGateModel):
            torch.testing.assert_close(found.mean[run][list(order)], mean, rtol=0, atol=0.12)


def test_one_step_by_loops():
    x, y, _ = planted(1, 30)
    h = normal(1, 30, 2, seed=5).softmax(-1)
    before = fit_gaussian_gate(x, y, h, steps=1, gate_freedom=4, expert_freedom=3, tolerance=-math.inf)
    model = fit_gaussian_gate(x, y, h, steps=2, gate_freedom=4, expert_freedom=3, tolerance=-math.inf).model
    b = before.model
    X, Y, Z = x[0].numpy(), y[0].numpy(), np.c_[x[0].numpy(), np.ones(30)]
    h = b.log_joint(x, y)[0].softmax(-1).numpy()
    for j in range(2):
        L = b.factor[0, j].numpy()
        m2 = [float(np.sum(np.linalg.solve(L, v - b.mean[0, j].numpy()) ** 2)) for v in X]
        u = np.array([(4 + 2) / (4 + m) for m in m2]) * h[:, j]
        mu = u @ X / u.sum()
        sigma = sum(a * np.outer(v - mu, v - mu) for a, v in zip(u, X, strict=True)) / h[:, j].sum()
        r = (Y - Z @ b.weight[0, j].numpy()) / b.std[0, j].item()
        a = h[:, j] * 4 / (3 + r**2)
        w = np.linalg.lstsq(Z * a[:, None] ** 0.5, Y * a**0.5, rcond=None)[0]
        np.testing.assert_allclose(model.mean[0, j], mu, rtol=1e-9)
        np.testing.assert_allclose(model.factor[0, j] @ model.factor[0, j].T, sigma, rtol=1e-9)
        np.testing.assert_allclose(model.weight[0, j], w, rtol=1e-8)
        np.testing.assert_allclose(model.std[0, j] ** 2, (a * (Y - Z @ w) ** 2).sum() / h[:, j].sum(), rtol=1e-9)
        np.testing.assert_allclose(model.log_prior[0, j].exp(), h[:, j].mean(), rtol=1e-12)


def test_with_targets_that_say_nothing_the_gate_is_sklearns_mixture():
    x, _, _ = planted(1, 500)
    y = torch.zeros(1, 500, dtype=torch.float64)  # all experts fit alike: what is left is a mixture in x
    h = nearest_of_random(x, 2, rng(3))
    found = fit_gaussian_gate(x, y, h, steps=1000, tolerance=1e-13, floor=1e-9).model
    oracle = GaussianMixture(2, tol=1e-13, reg_covar=0, max_iter=2000, means_init=found.mean[0] + 0.1).fit(x[0])
    order = np.argsort(oracle.means_[:, 0])
    mine = found.mean[0, :, 0].argsort()
    np.testing.assert_allclose(found.mean[0, mine], oracle.means_[order], atol=1e-4)
    sigma = found.factor[0, mine] @ found.factor[0, mine].mT
    np.testing.assert_allclose(sigma, oracle.covariances_[order], atol=1e-4)
    np.testing.assert_allclose(found.gate_logits(x)[0].logsumexp(-1), oracle.score_samples(x[0]), atol=1e-4)


def test_the_softmax_gates_inner_problem_is_logistic_regression():
    from gated.moe.em import _newton, _with_one

    x = normal(1, 300, 2)
    labels = (x[0, :, 0] + normal(300, seed=1) > 0).long() + (x[0, :, 1] + normal(300, seed=2) > 0.5).long()
    h = torch.nn.functional.one_hot(labels, 3).double()[None]
    gate = _newton(torch.zeros(1, 3, 3, dtype=torch.float64), _with_one(x), h, 50)
    oracle = LogisticRegression(C=1e12, tol=1e-12, max_iter=5000).fit(x[0], labels)
    expected = np.c_[oracle.coef_, oracle.intercept_]
    np.testing.assert_allclose(gate[0], expected - expected[2:], atol=1e-4)


def test_separable_responsibilities_have_no_finite_gate_and_stay_finite():
    x = torch.cat([normal(1, 50, 2) - 6, normal(1, 50, 2, seed=1) + 6], 1)
    y = x[..., 0] + normal(1, 100, seed=2)
    found = fit_softmax_gate(x, y, nearest_of_random(x, 2, rng(0)), steps=60, tolerance=-math.inf)
    assert found.log_likelihood.isfinite().all()
    assert found.model.gate.isfinite().all()


def test_a_million_degrees_of_freedom_are_the_normal_distribution():
    x, y, _ = planted(2, 300)
    h = nearest_of_random(x, 2, rng(4))
    gaussian = fit_gaussian_gate(x, y, h, steps=20, tolerance=-math.inf)
    student = fit_gaussian_gate(x, y, h, steps=20, tolerance=-math.inf, gate_freedom=1e6, expert_freedom=1e6)
    for a, b in zip(gaussian.model[:5], student.model[:5], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gaussian.log_likelihood, student.log_likelihood, rtol=1e-5, atol=0)


def test_t_gate_shrugs_off_what_moves_the_normal_one():
    x, y, (mean, *_) = planted(1, 600)
    x[:, :60] = 25 * normal(1, 60, 2, seed=9)
    h = torch.nn.functional.one_hot((x[..., 0] > 0).long(), 2).double()
    error = [
        (fit_gaussian_gate(x, y, h, gate_freedom=v).model.mean[0] - mean).abs().max().item() for v in (math.inf, 2)
    ]
    assert error[1] < 0.3 < error[0]


def test_runs_do_not_touch_each_other():
    x, y, _ = planted(3, 80)
    h = nearest_of_random(x, 3, rng(5))
    for fit in FITS.values():
        together = fit(x, y, h, steps=10, tolerance=-math.inf)
        alone = fit(x[1:2], y[1:2], h[1:2], steps=10, tolerance=-math.inf)
        torch.testing.assert_close(together.log_likelihood[:, 1:2], alone.log_likelihood, rtol=1e-9, atol=1e-9)


def test_one_expert_is_linear_regression():
    x, y, _ = planted(1, 50)
    ones = torch.cat([x[0], torch.ones(50, 1, dtype=torch.float64)], 1)
    expected = torch.linalg.lstsq(ones, y[0]).solution
    for fit in (fit_gaussian_gate, fit_softmax_gate):
        found = fit(x, y, torch.ones(1, 50, 1, dtype=torch.float64))
        torch.testing.assert_close(found.model.weight[0, 0], expected)
        torch.testing.assert_close(found.model.predict(x)[0], ones @ expected)
        residual = (y[0] - ones @ expected).square().mean()
        by_hand = -25 * (torch.log(2 * math.pi * residual) + 1)
        assert found.model.conditional_log_likelihood(x, y).item() == pytest.approx(by_hand.item())


def test_an_expert_that_nobody_wants_keeps_its_parameters():
    x, y, _ = planted(1, 60)
    h = torch.tensor([1.0, 0.0]).double().expand(1, 60, 2)
    found = fit_gaussian_gate(x, y, h, steps=3).model
    assert found.log_prior[0, 1] == -math.inf
    torch.testing.assert_close(found.mean[0, 1], x[0].mean(0))
    torch.testing.assert_close(found.factor[0, 1], x[0].std(0, correction=0).max() * torch.eye(2).double())
    assert found.weight[0, 1].tolist() == [0, 0, 0]
    torch.testing.assert_close(found.std[0, 1], y[0].std(correction=0))


def test_iterations_counts_the_steps_to_the_end():
    from gated.moe.em import Fit

    x, y, _ = planted(1, 50)
    model = fit_gaussian_gate(x, y, torch.ones(1, 50, 1, dtype=torch.float64)).model
    fit = Fit(model, torch.tensor([[0.0, 5.0], [4.0, 9.9], [9.95, 10.0], [10.0, 10.0]]))
    assert fit.iterations(0.2) == [2, 1]
    assert fit.iterations(20) == [0, 0]
