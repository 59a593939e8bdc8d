"""Simulated populations of spiking neurons whose latent state, and so whose true rates, are known.

Chaotic (`lorenz`), oscillators (`lattice`), or neither (`control`). All three have the same readout. The latents x are
standardised; a neuron's log rate is a linear function of them, with a standard deviation of .7 over the data, and its
mean rate is .2 expected counts a bin; counts are Poisson. A condition is one latent trajectory, a repeat is new spikes
(and a new hand) on it. Splitting by repeat asks only whether known trajectories are denoised; splitting by condition
asks for new ones.

The control has the lattice's stationary law at every moment, and no inertia: a model that owes its success to
oscillations has nothing to gain on it.

Example:
    >>> from gated.lab.spikes import lattice, split
    >>> generator = torch.Generator().manual_seed(0)
    >>> population = lattice(generator, conditions=10, repeats=2)
    >>> parts = split(population, "condition", generator)
    >>> parts.train.spikes[:, : population.observed, : population.heldin].shape  # what a model may see
    torch.Size([14, 50, 30])
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from gated.langevinflow.physics import ou_moments

LAG = 2  # bins from the latents to the hand
SITES, SLOWEST, FASTEST, DAMPING = 8, 20.0, 8.0, 0.05  # of the lattice: periods in bins, share of critical damping


class Population(NamedTuple):
    """Trials of a population. Rates are expected counts in a bin."""

    spikes: Float[Tensor, "trials bins neurons"]
    rates: Float[Tensor, "trials bins neurons"]
    latents: Float[Tensor, "trials bins dim"]
    hand: Float[Tensor, "trials bins 2"]
    """A velocity: a linear map of the latents `LAG` bins earlier, and noise."""
    condition: Int64[Tensor, " trials"]
    observed: int
    """Bins that a model sees; the others are forward prediction."""
    heldin: int
    """Neurons that a model sees, the first ones; the others are held out."""

    def rows(self, index: Tensor) -> Population:
        """Some of the trials."""
        kept = {name: getattr(self, name)[index] for name in self._fields[:5]}
        return self._replace(**kept)


class SpikeParts(NamedTuple):
    """Three parts of a population without a trial in common."""

    train: Population
    valid: Population
    test: Population


def lorenz(
    generator: torch.Generator, conditions: int = 24, repeats: int = 16, observed: int = 50, forward: int = 10,
    neurons: int = 40, heldin: int = 30,
) -> Population:  # fmt: skip
    """Latents on the Lorenz attractor, .015 of its time a bin.

    Args:
        generator: of everything random.
        conditions, repeats: trajectories, and trials on each.
        observed, forward: bins of a trial that are seen, and that follow.
        neurons, heldin: all of them, and those that are seen.

    Raises:
        ValueError: a size below 1 (`forward` may be 0), `heldin` not below `neurons`.
    """
    _check(conditions, repeats, observed, forward, neurons, heldin)
    start = torch.randn(conditions, 3, generator=generator, dtype=torch.float64) * 5 + torch.tensor([0.0, 0, 25])
    path = lorenz_path(start, 1000 + observed + forward + LAG)[:, 1000:]  # on the attractor by then
    return _population(path, repeats, observed, neurons, heldin, generator)


def lorenz_path(start: Float64[Tensor, "batch 3"], bins: int, step: float = 0.015) -> Float64[Tensor, "batch bins 3"]:
    """Runge and Kutta's fourth order for x' = 10 (y - x), y' = x (28 - z) - y, z' = x y - 8/3 z, the start first."""

    def slope(s: Tensor) -> Tensor:
        x, y, z = s.unbind(-1)
        return torch.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z], -1)

    path = [start]
    for _ in range(bins - 1):
        s = path[-1]
        a = slope(s)
        b = slope(s + step / 2 * a)
        c = slope(s + step / 2 * b)
        d = slope(s + step * c)
        path.append(s + step / 6 * (a + 2 * b + 2 * c + d))
    return torch.stack(path, 1)


def lattice(
    generator: torch.Generator, conditions: int = 96, repeats: int = 4, observed: int = 50, forward: int = 10,
    neurons: int = 40, heldin: int = 30,
) -> Population:  # fmt: skip
    """Latents are the positions of eight coupled oscillators with friction and noise at temperature 1.

    Their modes have periods from 8 to 20 bins (`lattice_hessian`). Each bin is one exact step of the linear Langevin
    equation, from its stationary law, so neither has an integrator's error. Arguments as `lorenz`.
    """
    _check(conditions, repeats, observed, forward, neurons, heldin)
    flow, covariance = ou_moments(lattice_hessian(), friction=lattice_friction(), temperature=1.0, time=1.0)
    start = torch.block_diag(lattice_hessian().inverse(), torch.eye(SITES, dtype=torch.float64))
    path = _gaussian_path(flow, covariance, start, conditions, observed + forward + LAG, generator)
    return _population(path[..., :SITES], repeats, observed, neurons, heldin, generator)


def control(
    generator: torch.Generator, conditions: int = 96, repeats: int = 4, observed: int = 50, forward: int = 10,
    neurons: int = 40, heldin: int = 30,
) -> Population:  # fmt: skip
    """Latents with the lattice's law at every moment, but of an Ornstein-Uhlenbeck process: they relax, and never turn.

    From a bin to the next it is correlated as much as the lattice is (`control_memory`). Arguments as `lorenz`.
    """
    _check(conditions, repeats, observed, forward, neurons, heldin)
    law, keep = lattice_hessian().inverse(), control_memory()
    flow = keep * torch.eye(SITES, dtype=torch.float64)
    path = _gaussian_path(
        flow, (1 - keep**2) * law, law, conditions, observed + forward + LAG, generator
    )  # fmt: skip
    return _population(path, repeats, observed, neurons, heldin, generator)


def lattice_hessian() -> Float64[Tensor, "8 8"]:
    """w² on the diagonal and a coupling k between neighbours, so that the slowest and fastest modes have the periods.

    A chain of n sites with free ends has omega_j^2 = w² + 2 k (1 - cos(pi j / n)), j = 0..n-1.
    """
    low, high = ((2 * math.pi / period) ** 2 for period in (SLOWEST, FASTEST))
    couple = (high - low) / (2 - 2 * math.cos(math.pi * (SITES - 1) / SITES))
    apart = torch.eye(SITES, dtype=torch.float64).diff(dim=0)
    return low * torch.eye(SITES, dtype=torch.float64) + couple * apart.T @ apart


def lattice_friction() -> float:
    """gamma_c = 2 zeta omega, with omega the geometric mean of the slowest and the fastest mode."""
    return 2 * DAMPING * 2 * math.pi / math.sqrt(SLOWEST * FASTEST)


def control_memory() -> float:
    """Autocorrelation of the lattice's positions from a bin to the next, over all sites."""
    flow, _ = ou_moments(lattice_hessian(), friction=lattice_friction(), temperature=1.0, time=1.0)
    law = lattice_hessian().inverse()
    return float((flow[:SITES, :SITES] @ law).trace() / law.trace())


def split(
    population: Population, by: Literal["condition", "repeat"], generator: torch.Generator,
    shares: tuple[float, float] = (2 / 3, 1 / 6),
) -> SpikeParts:  # fmt: skip
    """Training, validation and test trials; the last gets what `shares` leave.

    "condition": no trajectory is in two parts. "repeat": each has trials in all of them.

    Raises:
        ValueError: an unknown `by`, shares that leave a part empty.
    """
    if by not in ("condition", "repeat"):
        raise ValueError(f"by must be 'condition' or 'repeat', got {by!r}")
    kinds = int(population.condition.max()) + 1
    repeats = len(population.condition) // kinds
    size = kinds if by == "condition" else repeats
    sizes = [round(share * size) for share in shares]
    sizes.append(size - sum(sizes))
    if min(sizes) < 1:
        raise ValueError(f"shares must leave each part at least one {by} of {size}, got {shares}")
    trials = torch.arange(len(population.condition)).view(kinds, repeats)
    order = torch.randperm(size, generator=generator).split(sizes)
    return SpikeParts(*(population.rows((trials[i] if by == "condition" else trials[:, i]).flatten()) for i in order))


def _gaussian_path(
    flow: Tensor, covariance: Tensor, start: Tensor, batch: int, bins: int, generator: torch.Generator
) -> Tensor:
    """x' = flow x + noise from N(0, start)."""
    noise = torch.randn(bins, batch, len(flow), generator=generator, dtype=torch.float64)
    path = [noise[0] @ torch.linalg.cholesky(start).mT]
    factor = torch.linalg.cholesky(covariance).mT
    for eps in noise[1:]:
        path.append(path[-1] @ flow.mT + eps @ factor)
    return torch.stack(path, 1)


def _population(
    path: Tensor, repeats: int, observed: int, neurons: int, heldin: int, generator: torch.Generator
) -> Population:
    """The readout that all populations share."""
    path = (path - path.mean((0, 1))) / path.std((0, 1))
    uniform = torch.rand(path.shape[-1], neurons, generator=generator, dtype=torch.float64)
    sign = torch.randint(0, 2, uniform.shape, generator=generator) * 2 - 1
    drive = path @ (sign * (1 + uniform))
    drive = 0.7 * (drive - drive.mean((0, 1))) / drive.std((0, 1))
    rates = 0.2 * drive.exp() / drive.exp().mean((0, 1))
    move = torch.randn(path.shape[-1], 2, generator=generator, dtype=torch.float64) / math.sqrt(path.shape[-1])
    hand = (path @ move)[:, :-LAG].repeat_interleave(repeats, 0)
    hand = hand + 0.2 * torch.randn(hand.shape, generator=generator, dtype=torch.float64)
    rates, path = rates[:, LAG:].repeat_interleave(repeats, 0), path[:, LAG:].repeat_interleave(repeats, 0)
    spikes = torch.poisson(rates, generator=generator)
    condition = torch.arange(len(path)) // repeats
    return Population(spikes.float(), rates.float(), path.float(), hand.float(), condition, observed, heldin)


def _check(conditions: int, repeats: int, observed: int, forward: int, neurons: int, heldin: int) -> None:
    sizes = {"conditions": conditions, "repeats": repeats, "observed": observed, "heldin": heldin}
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if forward < 0:
        raise ValueError(f"forward must be at least 0 bins, got {forward}")
    if heldin >= neurons:
        raise ValueError(f"heldin must leave neurons to hold out: below {neurons}, got {heldin}")
