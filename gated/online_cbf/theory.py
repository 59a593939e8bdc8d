"""What the barrier does, in closed form: limits of speed, the straight approach, the threshold of braking.

Our own derivations from the definitions in `filter.py`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gated.online_cbf.filter import class_k


def approach_limit(
    distance: Float[Tensor, "*shape"],
    reach: float | int,
    zeta: float | int,
    *,
    eta: int = 1,
    share: float | int = 1.0,
    dt: float | int | None = None,
) -> Float[Tensor, "*shape"]:
    """How fast an agent may close on another disc: share alpha(d^2 - D^2) / (2 d), alpha(h) = zeta h^eta.

    Args:
        distance: d >= D of the centres. reach: D > 0, the sum of radii.
        share: 1 for an obstacle, 1/2 for another agent that takes the other half.
        dt: with it alpha is at most h / dt.

    Raises:
        ValueError: D not positive, or a d below it.
    """
    if not reach > 0 or (distance < reach).any():
        raise ValueError(f"distance must be at least reach > 0, got reach {reach} and distances below or NaN")
    return share * class_k(distance.square() - reach**2, zeta, eta, dt) / (2 * distance)


def straight_approach(
    time: Float[Tensor, "*shape"], distance: float | int, reach: float | int, zeta: float | int
) -> Float[Tensor, "*shape"]:
    """h(t) = h_0 e^(-zeta t): an agent that drives straight at an obstacle as fast as it may, with eta = 1.

    Steps of length dt stay at or above h_0 (1 - zeta dt)^k, because h is convex along each of them.
    """
    return (distance**2 - reach**2) * (-zeta * time).exp()


def unconstrained_speed(
    distance: Float[Tensor, "*shape"], *, epsilon: float | int, xi: float | int
) -> Float[Tensor, "*shape"]:
    """2 xi epsilon r^3 / (1 + 4 xi r^2): speed of an agent at distance r from its goal, nobody near, within the box.

    About epsilon r / 2 far away, but of third order within 1 / (2 sqrt(xi)): there progress is not worth its control.
    """
    return 2 * xi * epsilon * distance**3 / (1 + 4 * xi * distance.square())


def engagement_gap(speed: float | int, poles: tuple[float | int, float | int]) -> float:
    """x* = v (1 / a_1 + 1 / a_2): where the filter of `simulate_braking` begins to slow down an approach at speed v."""
    _check_positive(speed=speed, poles=min(poles))
    return speed * (1 / poles[0] + 1 / poles[1])


def peak_deceleration(speed: float | int, poles: tuple[float | int, float | int]) -> float:
    """The hardest braking that the filter u <= a_1 a_2 x - (a_1 + a_2) v demands of an approach at `speed`.

    v a_1 a_2 / (a_2 - a_1) [r^(a_1 / (a_2 - a_1)) - r^(a_2 / (a_2 - a_1))] with r = a_1 / a_2; v a / e for equal poles.
    """
    _check_positive(speed=speed, poles=min(poles))
    low, high = sorted(poles)
    # r^(a_1 / (a_2 - a_1)) (1 - r) a_1 a_2 / (a_2 - a_1) = r^(a_1 / (a_2 - a_1)) a_1, which has no pole at a_1 = a_2
    spread = (high - low) / low
    return speed * low * math.exp(-math.log1p(spread) / spread if spread else -1.0)


def braking_threshold(speed: float | int, brake: float | int) -> float:
    """e a_max / v: with equal poles above it the filter demands more than the brakes give."""
    _check_positive(speed=speed, brake=brake)
    return math.e * brake / speed


class Braking(NamedTuple):
    """What happened to each approach."""

    demand: Float[Tensor, " cases"]
    """The hardest braking that was demanded."""
    feasible: Bool[Tensor, " cases"]
    """Whether it never exceeded the brakes."""
    gap: Float[Tensor, " cases"]
    """The smallest gap; below 0 after a collision."""


def simulate_braking(
    poles: Float[Tensor, "cases 2"], *, speed: float | int = 1.0, brake: float | int = 1.0, dt: float | int = 1e-3
) -> Braking:
    """An agent of constant speed towards a wall, x' = -v, v' = u, filtered by u <= a_1 a_2 x - (a_1 + a_2) v.

    Begins where the filter does, and lasts 8 times the slower pole's time and as long as stopping takes. Where the
    demand exceeds the brakes they are applied in full. Each step is exact for a constant u.
    """
    _check_positive(speed=speed, brake=brake, dt=dt, poles=poles.min().item())
    stiffness, damping = poles.prod(1), poles.sum(1)
    v = torch.full_like(stiffness, speed)
    x = v * damping / stiffness
    demand, gap = torch.zeros_like(v), x
    for _ in range(math.ceil((8 / poles.min().item() + speed / brake) / dt)):
        wanted = (stiffness * x - damping * v).clamp_max(0)
        demand = torch.maximum(demand, -wanted)
        u = wanted.clamp_min(-brake)
        x, v = x - dt * v - 0.5 * dt**2 * u, v + dt * u
        gap = torch.minimum(gap, x)
    return Braking(demand, demand <= brake, gap)


def _check_positive(**values: float | int) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")
