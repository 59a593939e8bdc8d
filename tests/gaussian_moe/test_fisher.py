"""Information against autograd, against inverses and known figures; the ray, and which activations have one."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gated.gaussian_moe.fisher import (
    Fisher,
    density_and_score,
    fisher_information,
    homogeneity,
    profile_log_likelihood,
    ray,
    ray_log_likelihood,
)
from gated.gaussian_moe.model import Gate, GaussianMoE
from gated.gaussian_moe.truths import DENSE, SPARSE, SYMMETRIC, TEMPERATURE, TOP1, UNIT, temperature_truth, uniform
from gated.kernels.gmoe_em import ACTIVATIONS

GRID = torch.linspace(-2, 2, 401, dtype=torch.float64)
PARAMETERS = ("beta0", "beta1", "a", "b", "variance", "tau")


@pytest.fixture(scope="module")
def informations() -> dict[str, Fisher]:
    return {name: fisher_information(temperature_truth(name), SYMMETRIC) for name in ACTIVATIONS}


def draws(model: GaussianMoE, n: int, seed: int = 0, interval=SYMMETRIC):
    generator = torch.Generator().manual_seed(seed)
    x = uniform(interval, n, generator=generator)
    return x, model.sample(x, generator)


# Scores --------------------------------------------------------------------------------------------------------------


def vector(model: GaussianMoE) -> torch.Tensor:
    """The parameters in the order of the information matrix."""
    gate = torch.cat([model.beta0[:-1, None], model.beta1[:-1]], -1).flatten()
    return torch.cat([gate, model.tau[None], model.a.flatten(), model.b, model.variance])


def model_of(values: torch.Tensor, like: GaussianMoE) -> GaussianMoE:
    k, d = like.num_experts, like.dim
    gate, tau, a, b, variance = values.split([(k - 1) * (1 + d), 1, k * d, k, k])
    gate = torch.cat([gate.reshape(k - 1, 1 + d), torch.stack([like.beta0[-1], *like.beta1[-1]])[None]])
    return replace(
        like, beta0=gate[:, 0], beta1=gate[:, 1:], a=a.reshape(k, d), b=b, variance=variance, tau=tau.squeeze(0)
    )


@settings(max_examples=20)
@given(st.sampled_from(sorted(ACTIVATIONS)), st.integers(0, 1000), st.integers(1, 2), st.sampled_from([None, 2]))
def test_scores_against_autograd(activation, seed, dim, top_k):
    generator = torch.Generator().manual_seed(seed)
    random = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)  # noqa: E731
    k = 3
    beta0, beta1 = random(k), random(k, dim)
    beta0[-1], beta1[-1] = 0, 0
    gate = Gate(top_k, "logit", activation)
    model = GaussianMoE(beta0, beta1, random(k, dim), random(k), random(k).exp(), random(1).exp()[0], gate)
    x, y = random(5, dim), random(5, 4)
    log_density, score = density_and_score(model, x, y)
    theta = vector(model)
    flat = lambda values: model_of(values, model).log_density(x.repeat_interleave(4, 0), y.flatten())  # noqa: E731
    assert torch.allclose(log_density.flatten(), flat(theta), atol=1e-12)
    expected = torch.autograd.functional.jacobian(flat, theta)
    assert torch.allclose(score.flatten(0, 1), expected, atol=1e-9)
    without = density_and_score(model, x, y, free_tau=False)[1]
    tau = (k - 1) * (1 + dim)
    assert torch.equal(without, torch.cat([score[..., :tau], score[..., tau + 1 :]], -1))


def test_information_is_the_mean_negative_second_derivative():
    """A second identity, on draws: E[s s^T] = -E[d2 log p], within four standard errors."""
    model = temperature_truth("tanh")
    x, y = draws(model, 20_000)
    information = fisher_information(model, SYMMETRIC).matrix
    one = lambda values, x, y: model_of(values, model).log_density(x[None], y[None])[0]  # noqa: E731
    hessians = torch.vmap(torch.func.jacrev(torch.func.grad(one)), (None, 0, 0))(vector(model), x, y)
    error = hessians.std(0) / math.sqrt(len(x))
    assert ((hessians.mean(0) + information).abs() < 4.5 * error + 1e-12).all()


def test_information_of_one_gaussian_in_closed_form():
    # k = 1: X X^T / nu for (a, b), 1 / (2 nu^2) for nu; E X = 0 and E X^2 = 1/3 on [-1, 1].
    model = GaussianMoE.of([0], [0], [1.5], [2], [0.49])
    given = fisher_information(model, SYMMETRIC, free_tau=False)
    assert given.names == ("a_1", "b_1", "variance_1")
    expected = torch.diag(torch.tensor([1 / 3 / 0.49, 1 / 0.49, 1 / (2 * 0.49**2)], dtype=torch.float64))
    assert torch.allclose(given.matrix, expected, atol=1e-9)


def test_standard_errors_of_the_dense_truth():
    given = fisher_information(DENSE, UNIT, free_tau=False)
    errors = dict(zip(given.names, given.standard_errors().tolist(), strict=True))
    expected = {"beta0_1": 23.5, "beta1_1": 72.3, "a_1": 1.80, "a_2": 6.78, "b_1": 1.23, "b_2": 1.34}
    expected |= {"variance_1": 0.16, "variance_2": 0.40}
    assert errors == pytest.approx(expected, rel=2e-3, abs=6e-3)
    plain = torch.linalg.inv(given.matrix).diagonal().sqrt()
    assert torch.allclose(given.standard_errors(100), plain / 10, rtol=1e-8)
    assert given.null_space().shape == (8, 0)


def test_the_sparse_truth_is_regular_and_a_top1_gate_is_not():
    sparse = fisher_information(SPARSE, SYMMETRIC, free_tau=False)
    assert sparse.matrix.shape == (13, 13) and sparse.standard_errors().isfinite().all()
    top1 = fisher_information(TOP1, UNIT, free_tau=False)
    assert [name for name, e in zip(top1.names, top1.standard_errors().tolist(), strict=True) if e == math.inf] == [
        "beta0_1",
        "beta1_1",
    ]
    # Each expert is a regression on its own side of 8/25: sd(nu_i) = nu_i sqrt(2 / P(side)).
    errors = dict(zip(top1.names, top1.standard_errors().tolist(), strict=True))
    assert errors["variance_1"] == pytest.approx(0.09 * math.sqrt(2 / 0.68), rel=1e-6)
    assert errors["variance_2"] == pytest.approx(0.16 * math.sqrt(2 / 0.32), rel=1e-6)


# With temperature ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("activation", "null"),
    [
        ("identity", (0.2, 2, 0.5)),
        ("relu", (0.2, 2, 0.5)),
        ("leaky_relu", (0.2, 2, 0.5)),
        ("square", (0.2, 1, 0.5)),
        ("cube", (0.2, 2 / 3, 0.5)),
    ],
)
def test_homogeneous_activations_have_a_null_vector(informations, activation, null):
    given = informations[activation]
    assert given.names[:3] == ("beta0_1", "beta1_1", "tau")
    assert abs(float(given.eigenvalues()[0])) < 1e-13
    basis = given.null_space()
    assert basis.shape == (9, 1) and float(basis.norm()) == pytest.approx(1)
    direction = basis[:, 0] / basis[2, 0] * 0.5
    assert direction[:3].tolist() == pytest.approx(null, rel=1e-9)
    assert direction[3:].abs().max() < 1e-9
    errors = given.standard_errors()
    assert (errors[:3] == math.inf).all() and errors[3:].isfinite().all()
    # What the ray does not move is estimated as well as with tau known.
    known = fisher_information(temperature_truth(activation), SYMMETRIC, free_tau=False)
    assert torch.allclose(errors[3:], known.standard_errors()[2:], rtol=1e-6)
    # The mean of the squared second derivative along the null vector is 0; along beta_1 alone it is not.
    assert float(basis.mT @ given.matrix @ basis) < 1e-14 < float(given.matrix[1, 1])


@pytest.mark.parametrize(
    ("activation", "smallest", "errors"),
    [
        ("sigmoid", 1.2e-4, (6.2, 91.7, 16.1)),
        ("tanh", 2.3e-3, (1.6, 20.9, 2.3)),
        ("gelu", 1.4e-3, (2.0, 25.5, 6.9)),
        ("softplus", 1.4e-3, (1.8, 25.7, 6.3)),
        ("silu", 2.9e-3, (1.7, 18.1, 4.7)),
        ("sin", 1.4e-2, (1.6, 8.4, 1.1)),
    ],
)
def test_bent_activations_are_identified(informations, activation, smallest, errors):
    given = informations[activation]
    assert float(given.eigenvalues()[0]) == pytest.approx(smallest, rel=0.05)
    assert given.standard_errors()[:3].tolist() == pytest.approx(errors, abs=0.051)
    assert given.null_space().shape[1] == 0


def test_expert_standard_errors_with_tanh(informations):
    given = informations["tanh"].standard_errors()[3:].tolist()
    assert given == pytest.approx([1.54, 1.74, 0.90, 1.05, 0.51, 0.63], abs=0.0051)


def test_standard_error_of_tau_falls_with_the_bend():
    slopes = torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.float64)
    model = temperature_truth("tanh").expand(4)
    model.beta1[:, 0, 0] = slopes
    errors = fisher_information(model, SYMMETRIC).standard_errors()
    assert errors[:3, 2].tolist() == pytest.approx([9.1, 2.3, 1.2], abs=0.051)
    assert errors[2:, 1].tolist() == pytest.approx([32.8, 74.7], abs=0.051)  # saturated: beta_1 becomes hard
    sigmoid = temperature_truth("sigmoid").expand(2)
    sigmoid.beta1[:, 0, 0] = slopes[:2]
    assert fisher_information(sigmoid, SYMMETRIC).standard_errors()[:, 2].tolist() == pytest.approx(
        [104.6, 16.1], abs=0.051
    )


def test_homogeneity_predicts_the_null_space(informations):
    degrees = {"identity": 1, "relu": 1, "leaky_relu": 1, "square": 2, "cube": 3}
    for name, information in informations.items():
        given = homogeneity(name, GRID)
        assert (given.defect < 1e-12) == (information.null_space().shape[1] == 1) == (name in degrees)
        assert given.defect < 1e-12 or given.defect > 0.05
        assert ACTIVATIONS[name].degree == degrees.get(name)
        if name in degrees:
            assert given.degree == pytest.approx(degrees[name])


def test_inputs_of_two_dimensions():
    # The same law in the first input, nothing in the second: the first's entries do not change.
    pad = lambda t: torch.nn.functional.pad(t, (0, 1))  # noqa: E731
    wide = replace(TEMPERATURE, beta1=pad(TEMPERATURE.beta1), a=pad(TEMPERATURE.a))
    x = uniform(SYMMETRIC, 60, generator=torch.Generator().manual_seed(0))
    two = fisher_information(wide, torch.cat([x, x.flip(0)], -1))
    one = fisher_information(TEMPERATURE, x)
    assert two.names[:4] == ("beta0_1", "beta1_1[0]", "beta1_1[1]", "tau")
    assert two.names[4:8] == ("a_1[0]", "a_1[1]", "a_2[0]", "a_2[1]")
    keep = [two.names.index(name if name in two.names else name + "[0]") for name in one.names]
    assert torch.allclose(two.matrix[keep][:, keep], one.matrix, rtol=1e-12)


# The ray -------------------------------------------------------------------------------------------------------------


def test_the_density_along_the_ray():
    x = torch.linspace(-1, 1, 41, dtype=torch.float64)[:, None].repeat_interleave(161, 0)
    y = torch.linspace(-8, 8, 161, dtype=torch.float64).repeat(41)
    change = {}
    for name in ACTIVATIONS:
        model = temperature_truth(name)
        there = ray(model, 7.3)
        change[name] = float((there.log_density(x, y).exp() - model.log_density(x, y).exp()).abs().max())
    for name, value in change.items():
        assert (value < 1e-14) == (ACTIVATIONS[name].degree is not None), (name, value)
    assert change["identity"] < 4e-16
    assert change["tanh"] == pytest.approx(0.28, abs=0.006)


@given(st.floats(0.1, 10), st.integers(0, 1000))
def test_the_likelihood_is_flat_on_any_data(scale, seed):
    x = uniform(SYMMETRIC, 50, generator=torch.Generator().manual_seed(seed))
    y = torch.randn(50, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))  # not from the model
    scales = torch.tensor([scale, 1.0], dtype=torch.float64)
    for name in ("identity", "leaky_relu", "cube"):
        there, here = ray_log_likelihood(temperature_truth(name), x, y, scales).tolist()
        assert there == pytest.approx(here, rel=1e-12)
    there, here = ray_log_likelihood(temperature_truth("tanh"), x, y, scales).tolist()
    assert abs(there - here) > 1e-6 or abs(scale - 1) < 1e-3


@given(st.integers(0, 1000))
def test_eulers_identity(seed):
    """u = e^((beta_1 x + beta_0) / tau) N(y): du/dtau + (beta_1 du/dbeta_1 + beta_0 du/dbeta_0) / tau = 0; and the
    gradient of any log-likelihood has no component along (beta_0, beta_1, tau)."""
    generator = torch.Generator().manual_seed(seed)
    beta0, beta1, tau, a, b, nu, x, y = torch.randn(8, dtype=torch.float64, generator=generator).unbind()
    tau, nu = tau.exp(), nu.exp()

    def u(beta0, beta1, tau):
        normal = torch.exp(-((y - a * x - b) ** 2) / (2 * nu)) / (2 * math.pi * nu).sqrt()
        return torch.exp((beta1 * x + beta0) / tau) * normal

    d0, d1, dt = torch.func.grad(u, (0, 1, 2))(beta0, beta1, tau)
    assert abs(float(dt + (beta1 * d1 + beta0 * d0) / tau)) < 1e-12 * max(1, float(d0.abs()), float(dt.abs()))

    points = uniform(SYMMETRIC, 30, generator=generator)
    values = torch.randn(30, dtype=torch.float64, generator=generator)
    theta = torch.stack([beta0, beta1, tau])

    def log_likelihood(gate):
        model = replace(
            TEMPERATURE,
            beta0=torch.stack([gate[0], gate.new_zeros(())]),
            beta1=torch.stack([gate[1], gate.new_zeros(())])[:, None],
            tau=gate[2],
        )
        return model.log_density(points, values).sum()

    gradient = torch.func.grad(log_likelihood)(theta)
    assert abs(float(gradient @ theta)) < 1e-12 * (1 + float((gradient * theta).abs().sum()))


def test_the_relations_that_slow_the_other_parameters():
    """d2u/dbeta_1 db = (1/tau) du/da and d2u/db2 = 2 du/dnu, by autograd."""
    x, y = torch.tensor(0.7, dtype=torch.float64), torch.tensor(1.1, dtype=torch.float64)
    tau = 0.5

    def u(theta):
        beta1, a, b, nu = theta
        return torch.exp((beta1 * x + 0.2) / tau - (y - a * x - b) ** 2 / (2 * nu)) / nu.sqrt()

    theta = torch.tensor([1.3, 0.4, -0.2, 0.6], dtype=torch.float64)
    gradient, hessian = torch.func.grad(u)(theta), torch.func.jacrev(torch.func.grad(u))(theta)
    assert float(hessian[0, 2]) == pytest.approx(float(gradient[1]) / tau, rel=1e-12)
    assert float(hessian[2, 2]) == pytest.approx(2 * float(gradient[3]), rel=1e-12)


def test_shapes_along_the_ray():
    there = ray(temperature_truth("cube"), torch.tensor([[1.0, 8.0]], dtype=torch.float64))
    assert there.models == (1, 2)
    assert there.beta1[0, 1, 0, 0] == 4 and there.beta0[0, 1, 0] == 1.6 and there.tau[0, 1] == 4
    assert torch.equal(there.a[0, 1], TEMPERATURE.a)
    assert ray(there, 2.0).models == (1, 2)


def test_the_profile_is_flat_or_a_parabola():
    scales = torch.tensor([0.25, 0.9, 1.0, 1.1, 4.0], dtype=torch.float64)
    for name in ("identity", "relu"):
        x, y = draws(temperature_truth(name), 1000, seed=1)
        profile = profile_log_likelihood(temperature_truth(name), x, y, scales)
        assert float(profile.max() - profile.min()) < 1e-5
    # With tanh 2 (max - profile) is about ((tau - tau_hat) / sd)^2, sd^2 = (I^-1)_tau,tau / n.
    model = temperature_truth("tanh")
    n = 4000
    x, y = draws(model, n, seed=1)
    scales = torch.linspace(0.85, 1.15, 7, dtype=torch.float64)
    profile = profile_log_likelihood(model, x, y, scales)
    fixed = ray_log_likelihood(model, x, y, scales)
    assert (profile >= fixed - 1e-6).all()
    best = scales[profile.argmax()]
    assert abs(float(best) - 1) * 0.5 < 3 * 2.3 / math.sqrt(n)
    design = torch.stack([torch.ones_like(scales), scales, scales**2], -1)
    curvature = -2 * float(torch.linalg.lstsq(design, profile[:, None]).solution[2])
    predicted = n * 0.5**2 / float(fisher_information(model, SYMMETRIC).standard_errors()[2]) ** 2
    assert curvature == pytest.approx(predicted, rel=0.35)


def test_limits_of_the_temperature():
    x = torch.linspace(-1, 1, 8, dtype=torch.float64)[:, None]
    for name in ("identity", "tanh", "softplus"):
        model = temperature_truth(name)
        cold = replace(model, tau=model.tau * 1e-9).log_gate(x).exp()
        assert torch.equal(cold, torch.nn.functional.one_hot(model.logits(x).argmax(-1), 2).double())
        hot = replace(model, tau=model.tau * 1e12).log_gate(x).exp()
        assert torch.allclose(hot, torch.full_like(hot, 0.5), atol=1e-9)
