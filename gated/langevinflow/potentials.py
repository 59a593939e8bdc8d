"""Where the force comes from: the released convolutional potential in closed form, and a lattice of oscillators.

Both have the same three methods. `energy(z)` is U, `gradient(z)` is dU/dz (the force is minus it), and `hessian()` is
the matrix H of second derivatives, at the origin where it is not the same everywhere.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from gated.gates._validation import check_float, check_number, check_positive, check_sizes


class ConvPotential(nn.Module):
    """The released potential: U = sum_{i,j} sum_l C_il z_jl with C = conv1d(z, W / |W|), zero padding, 3 taps.

    z is read as 4 channels of d/4 sites, channel by channel. The double sum factorises: with the channel sum
    s_l = sum_j z_jl and the summed kernel w_ck = sum_i W_ick / |W_ic|, U = sum_l s_l sum_ck w_ck z_c,l+k-1. So 12 of
    the 48 numbers count, the force is linear in z, and U is indefinite: it confines nothing.

    Args:
        dim: d, a multiple of 4.
        init: standard deviation of the first kernels; 0 for the zeros of the released code.
        eps: kernels with a norm below it are divided by it instead. The released 1e-12 makes the gradient at a zero
            kernel 1e12 times what arrives; ours is bounded by 1/eps.

    Raises:
        ValueError: dim not a positive multiple of 4, init negative, eps not positive.
    """

    def __init__(self, dim: int, *, init: float | int = 0.1, eps: float | int = 1e-3) -> None:
        super().__init__()
        check_sizes(dim=dim)
        check_positive("eps", eps)
        if dim % 4:
            raise ValueError(f"dim must be a multiple of 4, the channels of the potential; got {dim}")
        check_number("init", init, "[0, inf)")
        self.dim, self.eps = dim, eps
        self.weight = nn.Parameter(init * torch.randn(4, 4, 3))

    def normalised(self) -> Float[Tensor, "4 4 3"]:
        """Each kernel W_ic of 3 taps over its norm."""
        return self.weight / torch.linalg.vector_norm(self.weight, dim=2, keepdim=True).clamp_min(self.eps)

    def kernel(self) -> Float[Tensor, "4 3"]:
        """w_ck, the 12 numbers that the potential depends on."""
        return self.normalised().sum(0)

    def energy(self, z: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch"]:
        site = _sites(z)
        return (site.sum(-2) * self._filtered(site)).sum(-1)

    def gradient(self, z: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """g_cm = sum_k w_ck s_{m+1-k} + sum_jk w_jk z_j,m+k-1, zero outside."""
        site = _sites(z)
        total = F.pad(site.sum(-2), (1, 1)).unfold(-1, 3, 1).flip(-1)
        return (self._filtered(site).unsqueeze(-2) + torch.einsum("ck,...lk->...cl", self.kernel(), total)).flatten(-2)

    def hessian(self) -> Float[Tensor, "dim dim"]:
        """H, the same everywhere."""
        return self.gradient(torch.eye(self.dim, dtype=self.weight.dtype, device=self.weight.device))

    def _filtered(self, site: Tensor) -> Tensor:
        return torch.einsum("ck,...clk->...l", self.kernel(), F.pad(site, (1, 1)).unfold(-1, 3, 1))


class LatticePotential(nn.Module):
    """Oscillators in a row: U = 1/2 sum omega_i^2 z_i^2 + 1/2 sum kappa_i (z_i - z_{i+1})^2 + 1/4 sum lambda_i z_i^4.

    It confines. With equal omega and kappa and periodic ends the waves have omega(k)^2 = omega^2 + 2 kappa (1 - cos k).
    Stiffness omega^2, coupling kappa and quartic lambda are learned, positive through a softplus.

    Args:
        stiffness: first omega_i^2 > 0, [dim], in 1 / (unit of the step)^2.
        coupling: first kappa > 0, one number for all pairs.
        quartic: first lambda > 0, one number for all sites; None leaves the term out, and the force linear.
        periodic: whether the last site is a neighbour of the first (three sites at least).

    Raises:
        ValueError: a first value that is not positive and finite, fewer than three sites with periodic ends.

    Example:
        >>> LatticePotential(torch.ones(4), coupling=0.1).energy(torch.zeros(2, 4)).tolist()
        [0.0, 0.0]
    """

    def __init__(
        self,
        stiffness: Float[Tensor, " dim"],
        *,
        coupling: float | int = 0.1,
        quartic: float | int | None = None,
        periodic: bool = False,
    ) -> None:
        super().__init__()
        check_float("stiffness", stiffness)
        if stiffness.ndim != 1 or not len(stiffness) or not bool(((stiffness > 0) & stiffness.isfinite()).all()):
            raise ValueError(f"stiffness must be a row of positive finite numbers; got {stiffness.tolist()}")
        check_positive("coupling", coupling)
        if quartic is not None:
            check_positive("quartic", quartic)
        self.dim, self.periodic = len(stiffness), periodic
        if periodic and self.dim < 3:
            raise ValueError(f"stiffness must have at least 3 sites for periodic ends; got {self.dim}")
        pairs = self.dim if periodic else self.dim - 1
        self.raw_stiffness = nn.Parameter(_inverse_softplus(stiffness.detach().clone()))
        self.raw_coupling = nn.Parameter(_inverse_softplus(stiffness.new_full((pairs,), coupling)))
        self.raw_quartic = (
            None if quartic is None else nn.Parameter(_inverse_softplus(stiffness.new_full((self.dim,), quartic)))
        )

    @property
    def stiffness(self) -> Float[Tensor, " dim"]:
        """omega_i^2."""
        return F.softplus(self.raw_stiffness)

    @property
    def coupling(self) -> Float[Tensor, " pairs"]:
        """kappa_i, between site i and the next."""
        return F.softplus(self.raw_coupling)

    @property
    def quartic(self) -> Float[Tensor, " dim"] | None:
        """lambda_i, or None."""
        return None if self.raw_quartic is None else F.softplus(self.raw_quartic)

    def energy(self, z: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch"]:
        energy = (self.stiffness * z**2).sum(-1) / 2 + (self.coupling * self._stretch(z) ** 2).sum(-1) / 2
        return energy if self.quartic is None else energy + (self.quartic * z**4).sum(-1) / 4

    def gradient(self, z: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        gradient = z @ self.hessian()
        return gradient if self.quartic is None else gradient + self.quartic * z**3

    def hessian(self) -> Float[Tensor, "dim dim"]:
        """H at the origin: diag(omega^2) + D^T diag(kappa) D, D the differences of neighbours."""
        differences = self._stretch(torch.eye(self.dim, dtype=self.stiffness.dtype, device=self.stiffness.device))
        return torch.diag(self.stiffness) + (differences * self.coupling) @ differences.T

    def _stretch(self, z: Tensor) -> Tensor:
        """z_i - z_{i+1} of each pair."""
        return z - z.roll(-1, -1) if self.periodic else z[..., :-1] - z[..., 1:]


def stiffness_of_periods(shortest: float | int, longest: float | int, dim: int) -> Float[Tensor, " dim"]:
    """(2 pi / period)^2 for `dim` periods, evenly spaced in their logarithm.

    Raises ValueError unless 0 < shortest <= longest.

    Example:
        >>> stiffness_of_periods(10, 40, dim=3).shape
        torch.Size([3])
    """
    check_positive("shortest", shortest)
    check_sizes(dim=dim)
    check_positive("longest", longest)
    if shortest > longest:
        raise ValueError(f"shortest must be at most longest; got {shortest} and {longest}")
    return (2 * math.pi / torch.logspace(math.log10(shortest), math.log10(longest), dim)) ** 2


def _sites(z: Tensor) -> Tensor:
    return z.unflatten(-1, (4, -1))


def _inverse_softplus(value: Tensor) -> Tensor:
    return value + (-torch.expm1(-value)).log()
