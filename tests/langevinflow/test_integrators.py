"""Volume, reversibility, energy, order, stability bounds, rotation: what each step keeps and what it does not."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from gated.kernels.langevin_scan import langevin_scan
from gated.langevinflow import (
    ConvPotential,
    LatticePotential,
    check_step,
    exact_noise,
    langevin_step,
    largest_step,
    ou_moments,
    released_noise,
    rotates,
    simulate,
    step_covariance,
    step_matrix,
)

SCHEMES = ["euler", "symplectic", "baoab"]
DOUBLE = torch.double


def spring(curvature: float = 1.0):
    return lambda z: curvature * z


def at(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=DOUBLE)


def test_noise_rules():
    assert exact_noise(0.45) == pytest.approx(0.8930, abs=5e-5)
    assert released_noise(0.55) == pytest.approx(1.0488, abs=5e-5)
    for gamma, variance in ((0.55, 1.37931), (0.7, 1.53846)):
        assert released_noise(gamma) ** 2 / (1 - (1 - gamma) ** 2) == pytest.approx(variance, abs=5e-6)
        assert 2 / (2 - gamma) == pytest.approx(variance, abs=5e-6)


def test_released_step_by_hand():
    z, v = langevin_step(spring(2.0), at(1.0), at(3.0), at(0.5), step=0.1, decay=0.45, scale=1.0, scheme="euler")
    assert float(z) == pytest.approx(1.3)
    assert float(v) == pytest.approx(0.45 * (3 - 0.1 * 2) + 0.5)


def test_memory_and_equivalent_friction_of_the_released_settings():
    for gamma, memory, continuous in ((0.55, 1.25, 79.9), (0.7, 0.83, 120.4)):
        assert -1 / math.log(1 - gamma) == pytest.approx(memory, abs=5e-3)
        assert -math.log(1 - gamma) / 0.01 == pytest.approx(continuous, abs=0.1)


def energy(z, v) -> float:
    return float((z**2 + v**2).sum() / 2)


@pytest.mark.parametrize(
    ("step", "euler", "symplectic"), [(0.01, 1.10517, 1.0046), (0.1, 20959.0, 0.9596)], ids=["short", "long"]
)
def test_energy_after_a_thousand_steps(step, euler, symplectic):
    for scheme, expected in (("euler", euler), ("symplectic", symplectic)):
        z, v = at(1.0), at(0.0)
        for _ in range(1000):
            z, v = langevin_step(spring(), z, v, step=step, scheme=scheme)
        assert energy(z, v) / 0.5 == pytest.approx(expected, rel=2e-4)
    assert (1 + step**2) ** 1000 == pytest.approx(euler, rel=1e-4)


def test_verlet_keeps_the_energy_up_to_the_square_of_the_step():
    def worst(step: float, time: float) -> float:
        path = simulate(spring(), at(1.0), at(0.0), torch.zeros(int(time / step), 1, dtype=DOUBLE), step=step)
        return float(((path[0] ** 2 + path[1] ** 2) / 2 - 0.5).abs().max())

    assert worst(0.1, 20) / worst(0.05, 20) == pytest.approx(4, rel=0.05)
    assert worst(0.1, 200) == pytest.approx(worst(0.1, 20), rel=1e-2)  # no drift


@pytest.mark.parametrize("decay", [0.3, 1.0])
def test_volume_factor_by_autograd(decay):
    """(1 - gamma)^d det(I + h^2 H) for the released step, (1 - gamma)^d for the others, also with a quartic."""
    torch.manual_seed(0)
    for potential in (
        ConvPotential(8).double(),
        LatticePotential(0.5 + torch.rand(6, dtype=DOUBLE), coupling=0.4, quartic=0.5),
    ):
        dim, h = potential.dim, 0.2
        state = 0.3 * torch.randn(2 * dim, dtype=DOUBLE)

        def map_(x, scheme, potential=potential, dim=dim, h=h):
            z, v = langevin_step(potential.gradient, x[:dim], x[dim:], step=h, decay=decay, scheme=scheme)
            return torch.cat([z, v])

        for scheme in SCHEMES:
            det = torch.det(torch.autograd.functional.jacobian(lambda x, s=scheme: map_(x, s), state))
            expected = decay**dim
            if scheme == "euler":
                curved = torch.autograd.functional.hessian(lambda z, p=potential: p.energy(z), state[:dim])
                expected = expected * torch.det(torch.eye(dim, dtype=DOUBLE) + h**2 * curved)
            assert float(det) == pytest.approx(float(expected), rel=1e-11)


def test_published_volume_factor():
    matrix = step_matrix(torch.eye(1, dtype=DOUBLE), step=0.01, decay=0.45, scheme="euler")
    assert float(torch.det(matrix)) == pytest.approx(0.450045, abs=1e-9)


def test_frictionless_baoab_runs_back():
    torch.manual_seed(0)
    potential = LatticePotential(0.5 + torch.rand(6, dtype=DOUBLE), quartic=0.3)
    z, v = torch.randn(2, 3, 6, dtype=DOUBLE)
    still = torch.zeros(3, 50, 6, dtype=DOUBLE)
    path = simulate(potential.gradient, z, v, still, step=0.3)
    back = simulate(potential.gradient, path[0][:, -1], -path[1][:, -1], still, step=0.3)
    assert torch.allclose(back[0][:, -1], z, atol=1e-12)
    assert torch.allclose(-back[1][:, -1], v, atol=1e-12)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_matrix_is_the_step(scheme):
    torch.manual_seed(0)
    potential = LatticePotential(torch.rand(5, dtype=DOUBLE) + 0.2)
    z, v = torch.randn(2, 4, 5, dtype=DOUBLE)
    after = langevin_step(potential.gradient, z, v, step=0.4, decay=0.7, scheme=scheme)
    matrix = step_matrix(potential.hessian(), step=0.4, decay=0.7, scheme=scheme)
    assert torch.allclose(torch.cat([z, v], 1) @ matrix.mT, torch.cat(after, 1), atol=1e-12)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("quartic", [None, 0.2])
def test_loop_is_the_fused_scan(scheme, quartic):
    torch.manual_seed(0)
    potential = LatticePotential(torch.rand(5, dtype=DOUBLE) + 0.2, quartic=quartic)
    z, v = torch.randn(2, 3, 5, dtype=DOUBLE)
    noise, control = torch.randn(2, 3, 9, 5, dtype=DOUBLE)
    decay = torch.rand(3, 9, 5, dtype=DOUBLE)
    scale = (2 * (1 - decay)).sqrt() if scheme == "euler" else exact_noise(decay)
    options = {"step": 0.3, "decay": decay, "control": control}
    ours = simulate(potential.gradient, z, v, noise, scale=scale, scheme=scheme, **options)
    fused = langevin_scan(
        z,
        v,
        noise,
        stiffness=potential.stiffness,
        coupling=potential.coupling,
        quartic=potential.quartic,
        scheme="released" if scheme == "euler" else scheme,
        **options,
    )
    for a, b in zip(ours, fused, strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def test_no_steps():
    z, v = simulate(spring(), torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 0, 3), step=0.1)
    assert z.shape == v.shape == (2, 0, 3)


def test_baoab_is_of_weak_order_two():
    """The covariance after t = 2 from a fixed state is off by a quarter when the step halves."""
    hessian, friction, time = torch.tensor([[1.3]], dtype=DOUBLE), 0.8, 2.0
    exact = ou_moments(hessian, friction=friction, temperature=1, time=time)[1]

    def error(step: float) -> float:
        decay = math.exp(-friction * step)
        matrix = step_matrix(hessian, step=step, decay=decay)
        each = step_covariance(hessian, step=step, decay=decay, scale=exact_noise(decay))
        total = torch.zeros_like(each)
        for _ in range(round(time / step)):
            total = matrix @ total @ matrix.mT + each
        return float((total - exact).abs().max())

    assert error(0.2) / error(0.1) == pytest.approx(4, abs=0.3)
    assert error(0.1) / error(0.05) == pytest.approx(4, abs=0.1)


@given(st.floats(-3, 12), st.floats(0.05, 1.5), st.floats(0.01, 0.99), st.sampled_from(SCHEMES))
def test_rotation_is_complex_eigenvalues(curvature, step, decay, scheme):
    matrix = step_matrix(torch.tensor([[curvature]], dtype=DOUBLE), step=step, decay=decay, scheme=scheme)
    trace, det = matrix.trace(), torch.det(matrix)
    discriminant = float(trace**2 - 4 * det)
    assume(abs(discriminant) > 1e-6)
    assert bool(rotates(at(curvature), step, decay, scheme)) == (discriminant < 0)
    assert bool(torch.linalg.eigvals(matrix).imag.abs().max() > 0) == (discriminant < 0)


@pytest.mark.parametrize(("gamma", "threshold"), [(0.55, 0.1681), (0.7, 0.4083)])
def test_no_kernel_can_oscillate_in_the_released_settings(gamma, threshold):
    a = 1 - gamma
    assert (1 - a) ** 2 / (4 * a) == pytest.approx(threshold, abs=5e-5)
    assert bool(rotates(threshold * 1.001, 1.0, a)) and not bool(rotates(threshold * 0.999, 1.0, a))
    assert not bool(rotates(96 / math.sqrt(3), 0.01, a))
    assert 0.01**2 * 55.426 < 0.00555 < threshold / 30
    assert -math.log(a) / 0.01 / (2 * math.sqrt(55.426)) >= 5.36  # the damping ratio of continuous time


@pytest.mark.parametrize(("curvature", "change"), [(55.39, -0.175), (20.0, -0.067), (-20.0, 0.071)])
def test_a_whole_trial_of_the_released_settings_moves_little(curvature, change):
    """44 steps at gamma = .55 from z = 1 at rest, without noise."""
    z, _ = simulate(
        spring(curvature), at(1.0), at(0.0), torch.zeros(44, 1, dtype=DOUBLE), step=0.01, decay=0.45, scheme="euler"
    )
    assert float(z[-1]) - 1 == pytest.approx(change, abs=2e-3)


def test_the_step_that_would_rotate():
    assert not bool(rotates(11.0, 0.1235, 0.45)) and bool(rotates(11.0, 0.124, 0.45))


@given(st.floats(0.05, 20), st.floats(0.02, 1.0), st.sampled_from(SCHEMES))
def test_bound_is_where_the_spectral_radius_passes_one(curvature, decay, scheme):
    bound = largest_step(curvature, decay, scheme)
    hessian = torch.tensor([[curvature]], dtype=DOUBLE)

    def radius(step: float) -> float:
        return float(torch.linalg.eigvals(step_matrix(hessian, step=step, decay=decay, scheme=scheme)).abs().max())

    if bound > 0:
        assert radius(bound * 0.99) <= 1 + 1e-9
    assert radius(max(bound, 0.01) * 1.01) > 1


def test_bounds():
    assert largest_step(4.0) == largest_step(4.0, 0.3) == 1.0
    assert largest_step(4.0, 1.0, "symplectic") == 1.0
    assert largest_step(4.0, 1.0, "euler") == 0.0
    assert largest_step(-1.0) == math.inf
    check_step(torch.tensor([[4.0]]), 0.999)
    with pytest.raises(ValueError, match=r"step must be below 2 / omega_max = 1 for 'baoab'.*omega_max = 2"):
        check_step(torch.tensor([[4.0]]), 1.0)
