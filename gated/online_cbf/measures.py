"""How well agents drove: success, makespan, path length, speed, distance kept, and problems without a solution."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gated.online_cbf.arenas import closest
from gated.online_cbf.filter import SafetyFilter
from gated.online_cbf.rollout import Trajectory

TOUCH = -1e-3
"""A gap below this counts as a collision."""


class Navigation(NamedTuple):
    """One entry an episode. Absent agents count nowhere, and neither does what happens after an episode's end."""

    success: Bool[Tensor, " batch"]
    """All agents reached their goals by the deadline, and nobody touched anything."""
    makespan: Float[Tensor, " batch"]
    """Steps until the last arrival; the deadline where not all arrived."""
    spl: Float[Tensor, " batch"]
    """Mean over agents of S l / max(l, path), l = |g - start|; S: arrived in time, in an episode without a touch."""
    speed: Float[Tensor, " batch"]
    """Mean of |u|_inf / max_speed over the steps of agents that have not arrived yet (PCTSpeed)."""
    infeasible: Int[Tensor, " batch"]
    """Control problems without a solution, over agents and steps."""
    min_gap: Float[Tensor, " batch"]
    """Smallest distance between discs; infinite for one agent alone."""
    min_barrier: Float[Tensor, " batch"]
    """Smallest h."""

    def summary(self) -> dict[str, float]:
        """Means over the batch; of `infeasible` the share of episodes that met any, of gap and barrier the smallest."""
        means = {name: getattr(self, name).double().mean().item() for name in ("success", "makespan", "spl", "speed")}
        return means | {
            "infeasible": (self.infeasible > 0).double().mean().item(),
            "min_gap": self.min_gap.min().item(),
            "min_barrier": self.min_barrier.min().item(),
        }


def navigation(trajectory: Trajectory, rule: SafetyFilter | None = None) -> Navigation:
    """Measures every episode of a batch that `rollout` ran under `rule`."""
    rule = SafetyFilter() if rule is None else rule
    a, arrival, ends = trajectory.arena, trajectory.arrival, trajectory.ends
    times = torch.arange(len(trajectory.position), device=arrival.device)[:, None]
    gap, barrier = (x.masked_fill(times > ends, torch.inf).amin(0) for x in closest(trajectory.position, a))
    reached = arrival >= 0
    untouched = gap >= TOUCH
    own_end = torch.where(reached, arrival, ends[:, None])
    driving = (times[:-1, :, None] < own_end) & a.present
    path = (trajectory.position.diff(dim=0).norm(dim=-1) * driving).sum(0)
    length = (a.goal - a.start).norm(dim=-1)
    share = torch.where(length > 0, length / torch.maximum(length, path).clamp_min(1e-12), 1.0)
    agents = a.present.sum(1)
    return Navigation(
        reached.all(1) & untouched,
        ends.to(a.start.dtype),
        (share * (reached & untouched[:, None] & a.present)).sum(1) / agents,
        (trajectory.velocity.abs().amax(-1) * driving).sum((0, 2)) / rule.max_speed / driving.sum((0, 2)).clamp_min(1),
        (~trajectory.feasible & (times[:-1] < ends)[..., None] & a.present).sum((0, 2)),
        gap,
        barrier,
    )
