"""The released potential in closed form, the lattice, their forces, and normalisation at a zero kernel."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from gated.langevinflow import ConvPotential, LatticePotential, stiffness_of_periods


def conv(dim: int = 12, seed: int = 0) -> ConvPotential:
    torch.manual_seed(seed)
    return ConvPotential(dim).double()


def lattice(dim: int = 7, seed: int = 0, **kwargs) -> LatticePotential:
    gen = torch.Generator().manual_seed(seed)
    return LatticePotential(0.2 + torch.rand(dim, generator=gen, dtype=torch.double), **kwargs)


def potentials():
    return [conv(), lattice(), lattice(quartic=0.3), lattice(periodic=True, coupling=0.7)]


@given(st.integers(1, 6), st.integers(0, 99))
def test_the_released_energy_is_the_double_sum_over_convolutions(sites, seed):
    potential = conv(4 * sites, seed)
    z = torch.randn(3, 4 * sites, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    weight = potential.weight / potential.weight.norm(dim=2, keepdim=True)
    convolved = F.conv1d(z.view(3, 4, sites), weight, padding=1)
    brute = torch.einsum("bil,bjl->b", convolved, z.view(3, 4, sites))
    assert torch.allclose(potential.energy(z), brute, atol=1e-12)


def test_twelve_numbers_of_the_forty_eight_count():
    potential, z = conv(), torch.randn(5, 12, dtype=torch.double)
    before = potential.energy(z)
    with torch.no_grad():
        potential.weight.copy_(potential.normalised()[torch.tensor([2, 0, 3, 1])])  # another order of the outputs
    assert torch.allclose(potential.energy(z), before)
    assert potential.kernel().shape == (4, 3)


@pytest.mark.parametrize("which", range(4))
def test_gradient_is_autograd_is_finite_differences(which):
    potential = potentials()[which]
    z = torch.randn(4, potential.dim, dtype=torch.double, requires_grad=True)
    closed = potential.gradient(z)
    (by_autograd,) = torch.autograd.grad(potential.energy(z).sum(), z)
    assert torch.allclose(closed, by_autograd, atol=1e-12)
    eps = 1e-5
    for i in range(potential.dim):
        bump = eps * F.one_hot(torch.tensor(i), potential.dim).double()
        slope = (potential.energy(z + bump) - potential.energy(z - bump)) / (2 * eps)
        assert torch.allclose(closed[:, i], slope, atol=1e-7)


@pytest.mark.parametrize("which", range(4))
def test_hessian_is_that_of_the_energy(which):
    potential = potentials()[which]
    hessian = torch.autograd.functional.hessian(
        lambda z: potential.energy(z), torch.zeros(potential.dim, dtype=torch.double)
    )
    assert torch.allclose(potential.hessian(), hessian, atol=1e-12)


def test_released_spectrum_at_published_size():
    """Rank d/2, as many negative as positive eigenvalues; equal kernels give the largest one, below 96 / sqrt(3)."""
    eigenvalues = torch.linalg.eigvalsh(conv(280).hessian())
    assert (eigenvalues > 1e-9).sum() == (eigenvalues < -1e-9).sum() == 70
    equal = ConvPotential(280).double()
    torch.nn.init.ones_(equal.weight)
    largest = float(torch.linalg.eigvalsh(equal.hessian().detach())[-1])
    assert largest == pytest.approx(55.39, abs=5e-3)
    assert largest < 96 / math.sqrt(3)


def test_random_kernels_have_the_extremes_of_the_derivation():
    low, high = zip(*((float(e[0]), float(e[-1])) for e in _spectra(20)), strict=True)
    assert sum(low) / 20 == pytest.approx(-10.4, abs=1.5)
    assert sum(high) / 20 == pytest.approx(11.0, abs=1.5)


def _spectra(number):
    return [torch.linalg.eigvalsh(conv(280, seed).hessian().detach()) for seed in range(number)]


def test_lattice_dispersion_with_periodic_ends():
    dim, stiffness, coupling = 12, 0.3, 0.9
    potential = LatticePotential(torch.full((dim,), stiffness, dtype=torch.double), coupling=coupling, periodic=True)
    k = 2 * math.pi * torch.arange(dim, dtype=torch.double) / dim
    expected = (stiffness + 2 * coupling * (1 - k.cos())).sort().values
    assert torch.allclose(torch.linalg.eigvalsh(potential.hessian()), expected, atol=1e-12)


def test_lattice_starts_where_it_was_told_and_confines():
    potential = lattice(quartic=0.25, coupling=0.4)
    gen = torch.Generator().manual_seed(0)
    assert torch.allclose(potential.stiffness, 0.2 + torch.rand(7, generator=gen, dtype=torch.double))
    assert torch.allclose(potential.coupling, torch.full((6,), 0.4).double())
    assert torch.allclose(potential.quartic, torch.full((7,), 0.25).double())
    assert float(torch.linalg.eigvalsh(potential.hessian().detach())[0]) > 0


def test_periods():
    assert torch.allclose(stiffness_of_periods(8, 20, 2).sqrt(), 2 * math.pi / torch.tensor([8.0, 20.0]))


def test_zero_kernel_has_a_bounded_gradient_and_the_released_one_does_not():
    z = torch.randn(2, 8, generator=torch.Generator().manual_seed(0), dtype=torch.double)

    def largest(eps: float) -> float:
        potential = ConvPotential(8, init=0, eps=eps).double()
        assert not potential.energy(z).any()
        potential.energy(z).sum().backward()
        return float(potential.weight.grad.abs().max())

    ours, theirs = largest(1e-3), largest(1e-12)
    assert 1e8 < theirs / ours == pytest.approx(1e9, rel=1e-6)
    assert ours < 1e5


def test_normalised_kernels_have_norm_one_where_they_are_not_tiny():
    assert torch.allclose(conv().normalised().norm(dim=2), torch.ones(4, 4).double())


def test_a_tiny_step_leaves_a_zero_kernel_continuously():
    potential = ConvPotential(8, init=0)
    with torch.no_grad():
        potential.weight[0, 0, 0] = 5e-4
    assert float(potential.normalised()[0, 0, 0].detach()) == pytest.approx(0.5)
