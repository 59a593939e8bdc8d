"""The maxima that EM finds beside those of other optimisers and of other programs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from scipy.optimize import minimize
from sklearn.mixture import GaussianMixture
from torch import Tensor

from gated.gaussian_moe import Gate, GaussianMoE, fit, starts, truths
from gated.gaussian_moe.steps import Layout
from gated.kernels.gmoe_em import Points
from gated.moe.em import fit_softmax_gate


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pack(x: Tensor, y: Tensor) -> Points:
    """x [datasets, n, dim], y [datasets, n]."""
    return Points.pack(x.flatten(0, 1), y.flatten(), torch.arange(0, y.numel() + 1, y.shape[1]))


def draw(truth: GaussianMoE, interval: tuple[float, float], n: int, datasets: int, seed: int = 0):
    g = generator(seed)
    x = truths.uniform(interval, datasets, n, generator=g)
    y = truth.expand(datasets).sample(x, g)
    return x, y, pack(x, y)


def random_model(datasets: int, k: int, d: int, gate: Gate, seed: int = 0, tau: float = 1.0) -> GaussianMoE:
    g = generator(seed)
    normal = lambda *shape: torch.randn(datasets, *shape, dtype=torch.float64, generator=g)  # noqa: E731
    beta0, beta1 = normal(k), normal(k, d)
    beta0[:, -1], beta1[:, -1] = 0, 0
    tau_ = torch.full((datasets,), tau, dtype=torch.float64)
    return GaussianMoE(beta0, beta1, 2 * normal(k, d), normal(k), 0.3 * (0.3 * normal(k)).exp(), tau_, gate)


def scipy_best(x: Tensor, y: Tensor, model: GaussianMoE, free_tau: bool) -> float:
    """The log-likelihood of one data set that scipy's L-BFGS-B reaches from `model`, within our bounds."""
    layout = Layout(model.num_experts, model.dim, model.gate)
    floor = 1e-3 * y.var(correction=0)[None]
    theta = layout.pack(model)
    low, high = layout.bounds(theta, floor, free_tau, 200.0, 1e-3)

    def minus(row: np.ndarray) -> tuple[float, np.ndarray]:
        at = torch.tensor(row)[None].requires_grad_()
        value = -layout.unpack(at).log_density(x, y).sum()
        value.backward()
        return value.item(), at.grad[0].numpy()

    options = {"maxiter": 1000, "maxfun": 2000, "ftol": 1e-15, "gtol": 1e-8, "maxcor": 20}
    limits = list(zip(low[0].tolist(), high[0].tolist(), strict=True))
    found = minimize(minus, theta[0].numpy(), jac=True, method="L-BFGS-B", bounds=limits, options=options)
    return -float(found.fun)


def test_scipy_finds_no_better_maximum():
    """50 random problems, 40 with a linear gate and 10 with tanh and a free temperature.

    In none of them scipy ends more than 1e-6 above our maximum: neither from there, with noise of 1% on all numbers,
    nor from our start, the truth with noise.
    """
    for seed in range(50):
        g, free_tau = generator(seed), seed >= 40
        if free_tau:
            truth = starts.near(truths.temperature_truth("tanh"), 1, 0.2, g)
        else:
            truth = random_model(1, 2 + seed % 2, 1 + seed % 3 // 2, Gate(), seed=seed)
        x = torch.randn(1, 300, truth.dim, dtype=torch.float64, generator=g)
        y = truth.sample(x, g)
        start = starts.near(truth[0], 1, 0.1, g)
        ours = fit(pack(x, y), start, free_tau=free_tau, polish="lbfgs", tolerance=1e-9)
        near = ours.model.map(lambda t, g=g: t * (1 + 0.01 * torch.randn(t.shape, dtype=t.dtype, generator=g)))
        near = near if free_tau else replace(near, tau=ours.model.tau)
        assert scipy_best(x, y, near, free_tau) <= ours.log_likelihood.item() + 1e-6, seed
        assert scipy_best(x, y, start, free_tau) <= ours.log_likelihood.item() + 1e-6, seed


def test_scipy_finds_no_better_maximum_of_a_top_k_gate():
    x, y, points = draw(truths.SPARSE, truths.SYMMETRIC, 300, 4)
    start = starts.near(truths.SPARSE, 4, 0.1, generator(1))
    ours = fit(points, start, polish="lbfgs", tolerance=1e-9)
    for s in range(4):
        one = slice(s, s + 1)
        for begin in (start[one], starts.near(ours.model[s], 1, 0.01, generator(s))):
            assert scipy_best(x[one], y[one], begin, False) <= ours.log_likelihood[s].item() + 1e-6


def test_an_independent_em_of_the_same_model_agrees():
    """The EM of chapter moe: full Newton in each step, all points at once, no residuals and no blocks."""
    x, y, points = draw(truths.TEMPERATURE, truths.SYMMETRIC, 500, 6)
    start = starts.near(replace(truths.TEMPERATURE, tau=torch.tensor(1.0, dtype=torch.float64)), 6, 0.1, generator(1))
    r = (start.log_gate(x) + start.log_experts(x, y)).softmax(-1)
    other = fit_softmax_gate(x, y, r, steps=300, tolerance=1e-14)
    ours = fit(points, start, tolerance=1e-10).model
    torch.testing.assert_close(ours.log_density(x, y).sum(-1), other.log_likelihood[-1], rtol=0, atol=1e-7)
    weight = torch.cat([ours.a, ours.b[..., None]], -1)
    torch.testing.assert_close(weight, other.model.weight, rtol=0, atol=1e-4)
    torch.testing.assert_close(ours.variance.sqrt(), other.model.std, rtol=0, atol=1e-4)
    gate = torch.cat([ours.beta1, ours.beta0[..., None]], -1)
    torch.testing.assert_close(gate, other.model.gate, rtol=0, atol=2e-3)


def test_without_inputs_it_is_scikit_learns_gaussian_mixture():
    g = generator(5)
    y = torch.cat([torch.randn(150, generator=g) - 2, 0.5 * torch.randn(250, generator=g) + 1]).double()
    means, weights = torch.tensor([-1.5, 0.5]), torch.tensor([0.5, 0.5])
    theirs = GaussianMixture(
        2, means_init=means[:, None], weights_init=weights, precisions_init=np.ones((2, 1, 1)), tol=1e-12, max_iter=2000
    ).fit(y[:, None].numpy())
    zeros = torch.zeros(1, 2, 1, dtype=torch.float64)
    start = GaussianMoE(zeros[..., 0], zeros, zeros, means[None].double(), zeros[..., 0] + 1, zeros[:, 0, 0] + 1)
    ours = fit(pack(torch.zeros(1, 400, 1, dtype=torch.float64), y[None]), start, tolerance=1e-11)
    assert abs(ours.log_likelihood.item() / 400 - theirs.score(y[:, None].numpy())) < 1e-6
    np.testing.assert_allclose(ours.model.b[0], theirs.means_[:, 0], atol=1e-4)
    np.testing.assert_allclose(ours.model.beta0[0].softmax(0), theirs.weights_, atol=1e-4)
    np.testing.assert_allclose(ours.model.variance[0], theirs.covariances_[:, 0, 0], atol=1e-3)
