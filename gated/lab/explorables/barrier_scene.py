"""What the figure of the barrier shows, by the library: one agent's choice, two agents at a door, one that brakes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from gated.kernels.barrier_qp import barrier_qp
from gated.online_cbf.arenas import Arena, arena, closest, doorway
from gated.online_cbf.filter import AgentState, SafetyFilter, barrier_rows, filtered_control
from gated.online_cbf.policies import constant
from gated.online_cbf.rollout import Trajectory, rollout
from gated.online_cbf.theory import approach_limit, braking_threshold, engagement_gap, peak_deceleration

RADIUS, OBSTACLE, WIDE, HIGH = 0.15, 0.4, 1.45, 0.95
"""Radii of an agent and of the obstacle; centres lie in |x| <= WIDE, |y| <= HIGH."""
TOUCH = 1e-6
"""Discs that are dragged keep this gap; a run that goes farther below 0 has a collision."""
SHOWN = [0.04 * i for i in range(41)]
"""Gaps at which the allowed speed is drawn."""
ZETAS = [float(f"{10 ** (k / 10):.3g}") for k in range(-3, 14)]
SIGMAS = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1)
"""Stops of the doorway's sliders, which are the cells of its maps."""
STEPS, POSTS = 200, 10.0
"""Deadline of the doorway, and zeta to its posts."""
STILL = 0.03
"""Who has not arrived and is slower than this is jammed."""
JAM, SLOW = -1, -2
"""Entries of a map that are no steps."""
TICK, SHOT = 0.005, 6.0
"""Step of the braking, and seconds of it that are drawn."""
SECOND = [0.08 * i for i in range(76)]
"""Times at which its demand is drawn, each 16th step."""


def reach(first: str, second: str) -> float:
    """How near two of the first view's places may come; a goal may lie under an agent."""
    radii = {"agent": RADIUS, "neighbour": RADIUS, "obstacle": OBSTACLE, "goal": RADIUS}
    if "goal" in (first, second) and "obstacle" not in (first, second):
        return 0.0
    return radii[first] + radii[second]


def choice(s: dict[str, Any]) -> dict[str, Any]:
    """The rows of the agent's control, what they leave, and what the filter takes."""
    rule = SafetyFilter(mode=s["mode"], objective=s["objective"], eta=s["eta"])
    place = {key: _tensor(s[key]) for key in ("agent", "neighbour", "goal", "obstacle")}
    a = arena(
        torch.stack([place["agent"], place["neighbour"]])[None],
        torch.stack([place["goal"], place["neighbour"]])[None],
        RADIUS,
        place["obstacle"][None, None],
        OBSTACLE,
    )
    away = place["agent"] - place["neighbour"]
    comes = (s["speed"] if s["mode"] == "full" else 0.0) * away / away.norm()
    state = AgentState(a.start, torch.stack([0 * comes, comes])[None], torch.zeros(1, 2, dtype=torch.bool), 0)
    strength = _tensor([s["zeta"], s["zeta_o"]]).expand(1, 2, 2)
    normal, bound = (rows[0, 0] for rows in barrier_rows(a, state, strength, rule))
    control, solved = filtered_control(a, state, strength, rule)
    u, feasible = control[0, 0], bool(solved[0, 0])
    wish = _wish(place["agent"] - place["goal"], rule)
    reaches = (2 * RADIUS, RADIUS + OBSTACLE)
    distance = torch.stack([away, place["agent"] - place["obstacle"]]).norm(dim=-1)
    shares = (0.5 if s["mode"] == "share" else 1.0, 1.0)
    sides = list(zip(reaches, (s["zeta"], s["zeta_o"]), shares, strict=True))
    tight = [bool(abs(n @ u - b) < 1e-9) and feasible for n, b in zip(normal, bound, strict=True)]
    curves = [approach_limit(_tensor(SHOWN) + D, D, z, eta=s["eta"], share=k, dt=rule.dt) for D, z, k in sides]
    allowed = [
        approach_limit(d, D, z, eta=s["eta"], share=k, dt=rule.dt) for d, (D, z, k) in zip(distance, sides, strict=True)
    ]
    corners = polygon([(*n, b) for n, b in zip(normal.tolist(), bound.tolist(), strict=True)])
    return {
        "kind": "infeasible" if not feasible else ("open", "line", "corner")[sum(tight)],
        "normals": normal.tolist(), "bounds": bound.tolist(), "wish": wish.tolist(), "u": u.tolist(),
        "polygon": corners if feasible else [], "tight": [int(one) for one in tight],
        "gaps": (distance - _tensor(reaches)).tolist(), "allowed": [one.item() for one in allowed],
        "closing": (-(normal @ u) + _tensor([comes.norm().item(), 0.0])).tolist(),
        "curves": [one.tolist() for one in curves], "comes": comes.tolist(),
    }  # fmt: skip


def _wish(way: Tensor, rule: SafetyFilter) -> Tensor:
    """The control that the agent would take alone."""
    if rule.objective == "nominal":
        return (-rule.gain * way).clamp(-rule.max_speed, rule.max_speed)
    empty = way.new_empty(0, 2)
    return barrier_qp(
        empty, empty[:, 0], limit=rule.max_speed, c=2 * way, d=rule.epsilon * way.square().sum(), xi=rule.xi
    ).u


def polygon(rows: Sequence[tuple[float | int, ...]]) -> list[list[float]]:
    """Corners of what rows n.u >= b leave of the box of speeds."""
    corners = [[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]
    for x, y, b in rows:
        heights = [x * p + y * q - b for p, q in corners]
        kept = []
        for i, ((p, q), h) in enumerate(zip(corners, heights, strict=True)):
            (before, behind), g = corners[i - 1], heights[i - 1]
            if (h >= 0) != (g >= 0):
                kept.append([before + g / (g - h) * (p - before), behind + g / (g - h) * (q - behind)])
            if h >= 0:
                kept.append([p, q])
        corners = kept
    return corners


def door(sigma: float | int) -> Arena:
    """The doorway as its own mirror image, but for agent 1, who starts `sigma` farther on."""
    a = doorway(1, sigma=0)
    start = a.start.clone()
    start[:, 0, 0] += sigma
    return replace(a, start=start)


@cache
def drive(first: float | int, second: float | int, sigma: float | int) -> Trajectory:
    return rollout(door(sigma), constant(_tensor([first, second]), POSTS))


@cache
def maps() -> tuple[list[list[int]], list[int]]:
    """For each of SIGMAS steps until both arrived, JAM or SLOW; row by row of agent 2's zeta, agent 1's inside.

    And how many of those runs had a collision.
    """
    axis, size = _tensor(ZETAS), len(ZETAS) ** 2
    out, collisions = [], []
    for sigma in SIGMAS:
        pairs = torch.stack([axis.repeat(len(ZETAS)), axis.repeat_interleave(len(ZETAS))], -1)
        run = rollout(door(sigma).repeat(size), constant(pairs, torch.full_like(pairs, POSTS)))
        moves = run.velocity[-1].abs().amax((1, 2)) >= STILL
        steps = torch.where((run.arrival >= 0).all(1), run.ends, torch.where(moves, SLOW, JAM))
        out.append(steps.tolist())
        collisions.append(int((closest(run.position, run.arena)[0].amin(0) < -TOUCH).sum()))
    return out, collisions


def passage(path: Tensor, a: Arena, zetas: tuple[float | int, float | int] | None) -> dict[str, Any]:
    """What a run [times, 2, 2] through the door comes to; `zetas` if they were constant."""
    there = (path - a.goal[0]).norm(dim=-1) <= SafetyFilter().tolerance
    arrival = [int(column.nonzero()[0]) if column.any() else -1 for column in there.T]
    through = [int(column.nonzero()[0]) if column.any() else STEPS + 1 for column in (path[..., 0] > 0).T]
    speed = (path[-1] - path[-2]).abs().max().item() / SafetyFilter().dt
    done = min(arrival) >= 0
    steps = max(arrival) if done else JAM if speed < STILL else SLOW
    if zetas is None:
        kind = "run"
    elif done:
        kind = "even" if zetas[0] == zetas[1] else "order"
    else:
        kind = "slow" if steps == SLOW else "jam" if zetas[0] == zetas[1] else "wedge"
    pair = (path[:, 0] - path[:, 1]).norm(dim=-1) - 2 * RADIUS
    post = (path[:, :, None] - a.obstacle[0]).norm(dim=-1).amin(-1) - 1 - RADIUS
    return {
        "kind": kind, "steps": steps, "arrival": arrival,
        "first": 0 if min(through) > STEPS else 1 + (through[1] < through[0]),
        "least": closest(path[:, None], a)[0].min().item(),
        "path": path.flatten(1).tolist(), "pair": pair.tolist(), "post": post.T.tolist(),
    }  # fmt: skip


def braking(alpha: float | int, v0: float | int, brake: float | int) -> dict[str, Any]:
    """An approach to a wall under the filter with two poles at alpha: x' = -v, v' = u, step by step.

    "wanted" and "gap" end where the wall is hit; "ideal" is what would be demanded of brakes without a limit.
    """
    peak, threshold, start = (
        peak_deceleration(v0, (alpha, alpha)),
        braking_threshold(v0, brake),
        engagement_gap(v0, (alpha, alpha)),
    )
    x, v, least, wanted, gaps, hit = start, v0, start, [], [], 0.0
    for step in range(math.ceil((8 / alpha + v0 / brake) / TICK)):
        demand = min(alpha * alpha * x - 2 * alpha * v, 0.0)
        u = max(demand, -brake)
        if step % 16 == 0 and step * TICK <= SHOT and not hit:
            wanted.append(-demand)
            gaps.append(x)
        before = x
        x, v = x - TICK * v - 0.5 * TICK**2 * u, v + TICK * u
        least = min(least, x)
        if x < 0 <= before:
            hit = v
    kind = "brakes" if peak <= brake else "beyond" if least >= 0 else "hit"
    return {
        "kind": kind, "peak": peak, "threshold": threshold, "start": start, "least": least, "hit": hit,
        "wanted": wanted, "gap": gaps, "ideal": [alpha * alpha * v0 * t * math.exp(-alpha * t) for t in SECOND],
    }  # fmt: skip


def _tensor(numbers: Sequence[float | int]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)
