"""The strongest constants: all pairs of a grid, and the cross-entropy method on two numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gated.gates._validation import check_positive, check_sizes, is_number
from gated.online_cbf.arenas import Arena
from gated.online_cbf.filter import SafetyFilter
from gated.online_cbf.measures import navigation
from gated.online_cbf.policies import constant
from gated.online_cbf.rollout import Trajectory, rollout
from gated.online_cbf.training import returns

GRID = tuple((agents, obstacles) for obstacles in (1.0, 2.0, 10.0) for agents in (1.0, 2.0, 3.0, 5.0, 10.0, 19.0))
"""Pairs (zeta to agents, zeta to obstacles)."""


class GridSearch(NamedTuple):
    """What each pair of constants is worth on each problem, in the order given.

    Args:
        pairs: zeta towards agents and towards obstacles.
    """

    pairs: tuple[tuple[float | int, float | int], ...]
    success: Bool[Tensor, "pairs batch"]
    makespan: Float[Tensor, "pairs batch"]

    @property
    def best(self) -> tuple[float | int, float | int]:
        """Most successes; of equals the smallest mean makespan."""
        ranks = zip(self.success.double().mean(1).tolist(), (-self.makespan.mean(1)).tolist(), strict=True)
        return self.pairs[max(enumerate(ranks), key=lambda item: item[1])[0]]


def grid_search(
    a: Arena, pairs: Sequence[tuple[float | int, float | int]] = GRID, rule: SafetyFilter | None = None
) -> GridSearch:
    """Drives every problem with every pair, all side by side. Tune on one set of starts, judge on another.

    Args:
        pairs: zeta towards agents and towards obstacles.

    Raises:
        ValueError: no pair, or strengths below 0.
    """
    if not len(pairs):
        raise ValueError("pairs must hold at least one pair of strengths, got none")
    if not all(isinstance(pair, Sequence) and len(pair) == 2 and all(map(is_number, pair)) for pair in pairs):
        raise ValueError(f"pairs must be two strengths each, finite and not negative, got {pairs}")
    strengths = torch.tensor(pairs, dtype=a.start.dtype, device=a.start.device)
    if not bool(((strengths >= 0) & strengths.isfinite()).all()):
        raise ValueError(f"pairs must be two strengths each, finite and not negative, got {pairs}")
    drove = navigation(_drive(a, strengths, rule), rule)
    shape = (len(pairs), len(a))
    return GridSearch(tuple(pairs), drove.success.reshape(shape), drove.makespan.reshape(shape))


def constant_score(a: Arena, rule: SafetyFilter | None = None) -> Callable[[Tensor], Tensor]:
    """The mean of `training.returns` over all problems, for each of several pairs of constants [pairs, 2]."""
    return lambda pairs: returns(_drive(a, pairs.to(a.start), rule)).reshape(len(pairs), len(a)).mean(1)


class CrossEntropy(NamedTuple):
    """Where the search ended, and the way there."""

    best: tuple[float, float]
    """The centre of the last draws."""
    history: Float[Tensor, "iterations 3"]
    """Of each iteration: the centre's zeta to agents and to obstacles, and the elite's mean score."""


def cross_entropy(
    score: Callable[[Float[Tensor, "population 2"]], Float[Tensor, " population"]],
    *,
    generator: torch.Generator,
    iterations: int = 10,
    population: int = 32,
    elite: int = 8,
    low: float | int = 0.5,
    high: float | int = 19.0,
) -> CrossEntropy:
    """Maximises `score` over two strengths: normal draws in log zeta, refitted to the best `elite` of each round.

    Starts in the middle of [log low, log high] with half of its width as standard deviation; draws are clamped to it.

    Args:
        iterations: how many rounds.

    Raises:
        ValueError: low and high not positive and rising, fewer than 2 of the elite or more than the population.
    """
    check_sizes(iterations=iterations, population=population, elite=elite)
    check_positive("low", low)
    check_positive("high", high)
    if low >= high:
        raise ValueError(f"low must be below high; got {low} and {high}")
    if not 2 <= elite <= population:
        raise ValueError(f"elite must lie in 2..population, got {elite} of {population}")
    ends = torch.tensor([low, high], dtype=torch.float64).log()
    mean, std = ends.mean().expand(2), (ends.diff() / 2).expand(2)
    history = []
    for _ in range(iterations):
        noise = torch.randn(population, 2, generator=generator, dtype=torch.float64, device=generator.device).cpu()
        draws = (mean + std * noise).clamp(*ends.tolist())
        value = score(draws.exp()).double().cpu()
        best = value.topk(elite).indices
        mean, std = draws[best].mean(0), draws[best].std(0)
        history.append(torch.cat([mean.exp(), value[best].mean()[None]]))
    return CrossEntropy((float(mean[0].exp()), float(mean[1].exp())), torch.stack(history))


def _drive(a: Arena, pairs: Tensor, rule: SafetyFilter | None) -> Trajectory:
    agents, obstacles = pairs.repeat_interleave(len(a), 0)[:, None].unbind(-1)
    with torch.no_grad():
        return rollout(a.repeat(len(pairs)), constant(agents, obstacles), rule, every=5)
