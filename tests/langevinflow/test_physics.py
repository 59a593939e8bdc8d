"""The exact laws: their published figures, their limits, and long simulations beside them."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from gated.langevinflow import (
    LatticePotential,
    autocorrelation_time,
    exact_noise,
    langevin_step,
    mean_with_error,
    ou_moments,
    released_noise,
    simulate,
    split_moments,
    stationary_covariance,
    step_covariance,
    step_matrix,
)

DOUBLE = torch.double


def one(curvature: float) -> torch.Tensor:
    return torch.tensor([[curvature]], dtype=DOUBLE)


@pytest.mark.parametrize(
    ("curvature", "friction", "time", "flow", "noise"),
    [
        (1, 0.55, 1, [[0.612887, 0.647842], [-0.647842, 0.256574]], [[0.204671, 0.230834], [0.230834, 0.514471]]),
        (4, 0.5, 0.25, [[0.882507, 0.225338], [-0.901354, 0.769838]], [[0.004518, 0.025389], [0.025389, 0.204240]]),
    ],
)
def test_moments_of_the_damped_oscillator(curvature, friction, time, flow, noise):
    e, c = ou_moments(one(curvature), friction=friction, temperature=1, time=time)
    assert torch.allclose(e, torch.tensor(flow, dtype=DOUBLE), atol=6e-7)
    assert torch.allclose(c, torch.tensor(noise, dtype=DOUBLE), atol=6e-7)
    assert float(torch.det(e)) == pytest.approx(math.exp(-friction * time), rel=1e-12)
    stationary = torch.diag(torch.tensor([1 / curvature, 1.0], dtype=DOUBLE))
    assert torch.allclose(c, stationary - e @ stationary @ e.mT, atol=1e-12)


def test_moments_on_a_saddle_add_up():
    """Two halves of the time are the whole, with a negative curvature too: C(2t) = E C E^T + C."""
    hessian = torch.diag(torch.tensor([-1.0, 2.0], dtype=DOUBLE))
    e, c = ou_moments(hessian, friction=0.4, temperature=1.5, time=0.5)
    e2, c2 = ou_moments(hessian, friction=0.4, temperature=1.5, time=1.0)
    assert torch.allclose(e @ e, e2, atol=1e-12)
    assert torch.allclose(e @ c @ e.mT + c, c2, atol=1e-12)


@pytest.mark.parametrize(("h_omega", "expected"), [(0.1, 0.9975), (0.5, 0.9375), (1.0, 0.75), (1.5, 0.4375)], ids=str)
@pytest.mark.parametrize("decay", [0.3, 0.9])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_baoab_has_exact_positions_at_every_stable_step(h_omega, expected, decay, temperature):
    omega, h = 1.7, h_omega / 1.7
    s = stationary_covariance(one(omega**2), step=h, decay=decay, scale=exact_noise(decay, temperature))
    assert float(s[0, 0]) == pytest.approx(temperature / omega**2, rel=1e-12)
    assert float(s[1, 1]) == pytest.approx(temperature * expected, rel=1e-12)
    assert float(s[0, 1]) == pytest.approx(0, abs=1e-12)
    assert float(torch.det(step_matrix(one(omega**2), step=h, decay=decay))) == pytest.approx(decay, rel=1e-12)


def test_baoab_on_a_lattice_settles_in_the_boltzmann_law():
    torch.manual_seed(0)
    hessian = LatticePotential(0.2 + torch.rand(6, dtype=DOUBLE), coupling=0.5).hessian().detach()
    s = stationary_covariance(hessian, step=0.9, decay=0.8, scale=exact_noise(0.8))
    assert torch.allclose(s[:6, :6], torch.linalg.inv(hessian), atol=1e-11)


@pytest.mark.parametrize(
    ("gamma", "expected"),
    [(0.55, [[2.2224, -0.0069], [-0.0069, 1.3794]]), (0.7, [[3.3335, -0.0077], [-0.0077, 1.5385]])],
)
def test_the_released_step_breaks_fluctuation_dissipation(gamma, expected):
    options = {"step": 0.01, "decay": 1 - gamma, "scale": released_noise(gamma), "scheme": "euler"}
    s = stationary_covariance(one(1.0), **options)
    assert torch.allclose(s, torch.tensor(expected, dtype=DOUBLE), atol=6e-5)
    matrix, noise = (
        step_matrix(one(1.0), step=0.01, decay=1 - gamma, scheme="euler"),
        step_covariance(one(1.0), **options),
    )
    assert torch.allclose(s, matrix @ s @ matrix.mT + noise, atol=1e-12)
    for curvature in (1.0, 5.0):  # h -> 0
        s = stationary_covariance(one(curvature), **{**options, "step": 1e-4})
        assert float(s[0, 0]) == pytest.approx(1 / ((1 - gamma) * curvature), rel=1e-3)
        assert float(s[1, 1]) == pytest.approx(2 / (2 - gamma), rel=1e-6)


@pytest.mark.parametrize(
    ("gamma", "n", "expected"),
    [(0.55, 29, 0.1), (0.55, 44, 0.1244), (0.55, 84, 0.1732), (0.7, 29, 0.0894), (0.7, 44, 0.1108), (0.7, 84, 0.154)],
)
def test_a_free_released_particle_hardly_moves(gamma, n, expected):
    flat, h = one(0.0), 0.01
    options = {"step": h, "decay": 1 - gamma, "scheme": "euler"}
    matrix, noise = step_matrix(flat, **options), step_covariance(flat, scale=released_noise(gamma), **options)
    covariance = torch.diag(torch.tensor([0.0, 1.0], dtype=DOUBLE))
    for _ in range(n):
        covariance = matrix @ covariance @ matrix.mT + noise
    assert math.sqrt(covariance[0, 0]) == pytest.approx(expected, abs=6e-5)
    for _ in range(20_000):
        covariance = matrix @ covariance @ matrix.mT + noise
    assert float(covariance[0, 0]) == pytest.approx(2 * h**2 * (n + 20_000) / gamma, rel=1e-3)


def test_equipartition_within_four_corrected_standard_errors():
    torch.manual_seed(0)
    gen = torch.Generator().manual_seed(0)
    potential = LatticePotential(0.2 + 0.8 * torch.rand(8, dtype=DOUBLE), coupling=0.3)
    h, temperature, decay = 0.3, 1.7, 0.9
    hessian = potential.hessian().detach()
    noise = torch.randn(40, 3000, 8, generator=gen, dtype=DOUBLE)
    start = torch.zeros(40, 8, dtype=DOUBLE)
    with torch.no_grad():
        z, v = simulate(
            lambda z: z @ hessian, start, start, noise, step=h, decay=decay, scale=exact_noise(decay, temperature)
        )
    z, v = z[:, 500:], v[:, 500:]
    s = stationary_covariance(hessian, step=h, decay=decay, scale=exact_noise(decay, temperature))
    for series, expected in (
        ((v**2).mean(-1), float(s[8:, 8:].diagonal().mean())),
        ((z * (z @ hessian)).mean(-1), temperature),  # each quadratic degree of freedom holds T
    ):
        mean, error = mean_with_error(series)
        pooled, deviation = float(mean.mean()), float((error**2).sum().sqrt()) / 40
        assert abs(pooled - expected) < 4 * deviation
        assert deviation < 0.02 * temperature
        # the naive error ignores the memory and is too small
        assert deviation > 1.2 * float(series.std()) / math.sqrt(series.numel())
    assert float(s[8:, 8:].diagonal().mean()) == pytest.approx(temperature, rel=0.05)


def test_autocorrelation_time_of_an_autoregression():
    gen, phi = torch.Generator().manual_seed(1), 0.8
    noise = torch.randn(20_000, 20, generator=gen, dtype=DOUBLE)
    x, series = torch.zeros(20, dtype=DOUBLE), []
    for e in noise:
        x = phi * x + e
        series.append(x)
    tau = autocorrelation_time(torch.stack(series, -1))
    assert float(tau.mean()) == pytest.approx((1 + phi) / (1 - phi), rel=0.05)
    assert float(autocorrelation_time(noise.mT).mean()) == pytest.approx(1, abs=0.05)


def test_density_along_the_flow_by_moments():
    """log q of a Gaussian start, after t: mean and covariance by (E, C) against a cloud of particles of small steps."""
    hessian, friction, time, h = one(2.0), 0.6, 1.0, 0.01
    mean, covariance = torch.tensor([1.0, -0.5], dtype=DOUBLE), torch.diag(torch.tensor([0.2, 0.4], dtype=DOUBLE))
    e, c = ou_moments(hessian, friction=friction, temperature=1, time=time)
    later = MultivariateNormal(e @ mean, e @ covariance @ e.mT + c)
    gen = torch.Generator().manual_seed(0)
    cloud = mean + torch.randn(40_000, 2, generator=gen, dtype=DOUBLE) * covariance.diagonal().sqrt()
    z, v = cloud[:, :1], cloud[:, 1:]
    decay = math.exp(-friction * h)
    for _ in range(round(time / h)):
        noise = torch.randn(z.shape, generator=gen, dtype=DOUBLE)
        z, v = langevin_step(lambda z: 2.0 * z, z, v, noise, step=h, decay=decay, scale=exact_noise(decay))
    cloud = torch.cat([z, v], 1)
    # kernel density of the cloud is the density of the law widened by the kernel
    angle = 2 * math.pi * torch.arange(5, dtype=DOUBLE) / 5
    circle = torch.stack([angle.cos(), angle.sin()], 1)  # far out there are too few particles to count
    width, points = 0.15, later.mean + circle @ torch.linalg.cholesky(later.covariance_matrix).mT
    kernel = MultivariateNormal(torch.zeros(2, dtype=DOUBLE), width**2 * torch.eye(2, dtype=DOUBLE))
    estimate = torch.stack([kernel.log_prob(p - cloud).exp().mean().log() for p in points])
    widened = MultivariateNormal(later.mean, later.covariance_matrix + width**2 * torch.eye(2, dtype=DOUBLE))
    assert torch.allclose(estimate, widened.log_prob(points), atol=0.06)


def test_the_three_part_split_is_of_first_order():
    torch.manual_seed(0)
    hessian = LatticePotential(0.5 + torch.rand(3, dtype=DOUBLE)).hessian().detach()
    start = 0.3 * torch.eye(6, dtype=DOUBLE)
    e, c = ou_moments(hessian, friction=0.7, temperature=1.2, time=1.5)
    exact = e @ start @ e.mT + c
    law = MultivariateNormal(torch.zeros(6, dtype=DOUBLE), exact)
    point = law.sample()

    def error(steps: int) -> float:
        split = split_moments(start, hessian, friction=0.7, temperature=1.2, time=1.5, steps=steps)
        return float(MultivariateNormal(law.mean, split).log_prob(point) - law.log_prob(point))

    assert error(200) / error(400) == pytest.approx(2, abs=0.05)
    assert error(400) / error(800) == pytest.approx(2, abs=0.03)


def test_friction_alone_raises_the_log_density_by_its_share_of_volume():
    start, h = torch.eye(4, dtype=DOUBLE), 0.3
    flat = torch.zeros(2, 2, dtype=DOUBLE)
    after = split_moments(start, flat, friction=0.8, temperature=0.0, time=h, steps=1)
    assert float(torch.logdet(after)) / -2 == pytest.approx(0.8 * 2 * h, rel=1e-12)
