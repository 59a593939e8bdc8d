"""Episodes by the thousand: a policy sets strengths, the filter turns wishes into controls, agents move."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gated.gates._validation import check_sizes
from gated.online_cbf.arenas import Arena
from gated.online_cbf.filter import AgentState, SafetyFilter, Strength, filtered_control

Tuner = Callable[[Arena, AgentState], Strength]
"""A policy: what the strengths are at this moment."""


class Trajectory(NamedTuple):
    """All that happened in a batch of episodes. Frame t of an animation is position[t]."""

    arena: Arena
    position: Float[Tensor, "times batch agents 2"]  # times = steps + 1
    velocity: Float[Tensor, "steps batch agents 2"]
    strength: Float[Tensor, "steps batch agents 2"]
    """To agents and to obstacles; of strengths that differ from one to the other, the smallest."""
    feasible: Bool[Tensor, "steps batch agents"]
    arrival: Int[Tensor, "batch agents"]
    """Steps until the goal was reached first, 0 where it was at the start; -1 for never in time."""

    @property
    def ends(self) -> Int[Tensor, " batch"]:
        """Steps of each episode: until the last agent arrived, or to its deadline."""
        done = (self.arrival >= 0).all(1)
        return torch.where(done, self.arrival.amax(1), self.arena.deadline)


def initial_state(a: Arena, rule: SafetyFilter) -> AgentState:
    """At the starts, at rest."""
    arrived = (a.start - a.goal).norm(dim=-1) <= rule.tolerance
    return AgentState(a.start, torch.zeros_like(a.start), arrived, 0)


def advance(
    a: Arena, state: AgentState, zeta: Strength, rule: SafetyFilter
) -> tuple[AgentState, Bool[Tensor, "batch agents"]]:
    """One step p' = p + dt u, and whether each agent's problem was feasible."""
    control, feasible = filtered_control(a, state, zeta, rule)
    position = state.position + rule.dt * control
    arrived = state.arrived | ((position - a.goal).norm(dim=-1) <= rule.tolerance)
    return AgentState(position, control, arrived, state.step + 1), feasible


def rollout(
    a: Arena, policy: Tuner, rule: SafetyFilter | None = None, *, every: int = 1, steps: int | None = None
) -> Trajectory:
    """Runs all episodes of a batch side by side, differentiably, until all have ended.

    An agent that has arrived goes on obeying the filter. Episodes that end before others are simulated further, but
    what happens then counts nowhere: see `Trajectory.ends`.

    Args:
        policy: called each `every` steps; its strengths hold until the next call.
        rule: `SafetyFilter()` if None.
        steps: stop after so many at the latest; the largest deadline if None.

    Raises:
        ValueError: `every` or `steps` below 1, and what `barrier_rows` raises.

    Example:
        >>> way = doorway(2, generator=torch.Generator().manual_seed(0))
        >>> run = rollout(way, constant(2.0), steps=5)
        >>> run.position.shape
        torch.Size([6, 2, 2, 2])
    """
    rule = SafetyFilter() if rule is None else rule
    last = int(a.deadline.max()) if steps is None else steps
    check_sizes(every=every, steps=last)
    state = initial_state(a, rule)
    arrival = torch.where(state.arrived, 0, -1)
    positions, velocities, strengths, feasible = [state.position], [], [], []
    zeta: Strength = state.position
    for t in range(last):
        if t % every == 0:
            if t and bool(((arrival >= 0).all(1) | (t >= a.deadline)).all()):
                break
            zeta = policy(a, state)
        state, ok = advance(a, state, zeta, rule)
        new = state.arrived & (arrival < 0) & (state.step <= a.deadline)[:, None]
        arrival = torch.where(new, state.step, arrival)
        positions.append(state.position)
        velocities.append(state.velocity)
        strengths.append(_summary(zeta))
        feasible.append(ok)
    return Trajectory(
        a, torch.stack(positions), torch.stack(velocities), torch.stack(strengths), torch.stack(feasible), arrival
    )


def _summary(zeta: Strength) -> Tensor:
    """[batch, agents, 2]; an agent without others or without obstacles has nothing there to compare: 0."""
    if isinstance(zeta, Tensor):
        return zeta
    agents, obstacles = zeta
    own = torch.eye(agents.shape[1], dtype=torch.bool, device=agents.device)
    smallest = agents.masked_fill(own, torch.inf).amin(-1) if agents.shape[1] > 1 else torch.zeros_like(agents[..., 0])
    return torch.stack([smallest, obstacles.amin(-1) if obstacles.shape[2] else torch.zeros_like(smallest)], -1)
