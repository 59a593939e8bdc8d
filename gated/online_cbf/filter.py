"""The barrier as a gate: the control nearest to an agent's wish that closes on others no faster than allowed.

    h_ij = |p_i - p_j|^2 - (R_i + R_j)^2,    h_io = |p_i - o|^2 - (R_i + R_o)^2,    alpha(h) = min(zeta h^eta, h / dt)
    share:   n_ij . u_i            >= -alpha_i(h_ij) / (4 d_ij)      half of the pair's allowance for each
    full:    n_ij . (u_i - v_j)    >= -alpha_i(h_ij) / (2 d_ij)      v_j: the other's control of the step before
    obstacle:  n_io . u_i          >= -alpha_i(h_io) / (2 d_io)

n points from the other to agent i, at distance d. The dynamics are p' = p + dt u, |u|_inf <= max_speed. As h is convex
in p_i - p_j, h' >= h + dt dh/dt, so that with "share" h' >= h - dt (alpha_i + alpha_j) / 2 >= 0: for every choice of
positive strengths zeta, different from agent to agent and from step to step, and without any margin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gated.gates._validation import check_count, check_float, check_number, check_positive
from gated.kernels.barrier_qp import barrier_qp
from gated.online_cbf.arenas import Arena

Strength = Tensor | tuple[Tensor, Tensor]
"""Strengths zeta > 0: [batch, agents, 2] (to all agents, to all obstacles), or a pair of tensors
[batch, agents, agents] (row i: of agent i to each; its own entry is not read) and [batch, agents, obstacles]."""


@dataclass(frozen=True)
class SafetyFilter:
    """What an agent's control has to satisfy, and what it is to be near to. Raises ValueError for values out of range.

    Args:
        mode: "share", in which no problem is ever infeasible, or "full", in which agents can be pushed back.
        objective: "clf" minimises |u|^2 + xi max(0, c.u + epsilon V)^2, V = |p - g|^2, c = 2 (p - g); "nominal"
            |u - w|^2 with the wish w = clip(gain (g - p)) in the box of speeds.
        eta: the exponent of alpha, 1 or 3: odd, so that alpha has the sign of h.
        clip: whether alpha is at most h / dt. Without it steps of finite length can collide.
        dt: seconds a step. max_speed: of each coordinate. tolerance: distance at which a goal counts as reached.
        nearest: rows for so many nearest other agents only; None for all.

    Example:
        >>> SafetyFilter(eta=3).dt
        0.05
    """

    mode: str = "share"
    objective: str = "clf"
    eta: int = 1
    clip: bool = True
    dt: float | int = 0.05
    max_speed: float | int = 1.0
    epsilon: float | int = 2.0
    xi: float | int = 10.0
    gain: float | int = 2.0
    tolerance: float | int = 0.15
    nearest: int | None = None

    def __post_init__(self) -> None:
        for name, choices in (("mode", ("share", "full")), ("objective", ("clf", "nominal")), ("eta", (1, 3))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {choices}, got {getattr(self, name)!r}")
        for name in ("dt", "max_speed", "epsilon", "xi", "gain", "tolerance"):
            value = getattr(self, name)
            check_positive(name, value)
        check_count("eta", self.eta)
        if self.nearest is not None:
            check_count("nearest", self.nearest)


class AgentState(NamedTuple):
    """What the world knows at one time.

    Args:
        step: how many steps have been made.
    """

    position: Float[Tensor, "batch agents 2"]
    velocity: Float[Tensor, "batch agents 2"]
    """The control of the step before, 0 at first."""
    arrived: Bool[Tensor, "batch agents"]
    """Whether the goal was reached once."""
    step: int


def check_state(a: Arena, state: AgentState) -> None:
    check_float("position", state.position)
    check_float("velocity", state.velocity)
    check_count("step", state.step, 0)
    for name, shape in (("position", a.start.shape), ("velocity", a.start.shape), ("arrived", a.start.shape[:2])):
        if getattr(state, name).shape != shape:
            raise ValueError(f"{name} must have shape {list(shape)}; got {list(getattr(state, name).shape)}")
    if state.arrived.dtype != torch.bool:
        raise ValueError(f"arrived must be true or false for each agent; got {state.arrived.dtype}")


def class_k(
    h: Float[Tensor, "*shape"],
    zeta: float | int | Float[Tensor, "*#shape"],
    eta: int = 1,
    dt: float | int | None = None,
) -> Float[Tensor, "*shape"]:
    """alpha(h) = zeta h^eta, with `dt` at most h / dt: how fast h may shrink. Negative where h is.

    Raises:
        ValueError: an eta below 1 or even (alpha would be positive outside of the safe set), a dt that is not positive,
            a zeta that is not finite or does not fit h.

    Example:
        >>> class_k(torch.tensor([0.5]), zeta=2.0).item()
        1.0
    """
    check_float("h", h)
    check_count("eta", eta)
    if eta % 2 == 0:
        raise ValueError(f"eta must be odd, for alpha to be negative where h is; got {eta}")
    if dt is not None:
        check_positive("dt", dt)
    if not isinstance(zeta, Tensor):
        check_number("zeta", zeta)
    elif zeta.ndim > h.ndim or any(a not in (1, b) for a, b in zip(zeta.shape[::-1], h.shape[::-1], strict=False)):
        raise ValueError(f"zeta must fit the shape of h, {tuple(h.shape)}; got {tuple(zeta.shape)}")
    alpha = zeta * (h if eta == 1 else h**eta)
    return alpha if dt is None else torch.minimum(alpha, h / dt)


def barrier_rows(
    a: Arena, state: AgentState, zeta: Strength, rule: SafetyFilter
) -> tuple[Float[Tensor, "batch agents rows 2"], Float[Tensor, "batch agents rows"]]:
    """The half-planes n.u >= b of every agent: other agents by index (with `nearest` by gap), then obstacles. |n| = 1.

    Raises:
        ValueError: strengths of another shape, and on a CPU also negative or not finite ones, and positions that are
            not finite; with `nearest`, a neighbour left out that could be touched in this step.
    """
    check_state(a, state)
    agents, obstacles = _strengths(a, zeta)
    if not a.start.is_cuda and not torch.compiler.is_compiling():
        _check_values(state.position, agents, obstacles)
    me, other = _pairs(a.agents, a.start.device)
    sides = [
        (state.position[:, other], a.radius[:, other], agents.expand(*agents.shape[:2], a.agents)[:, me, other]),
        (a.obstacle[:, None], a.obstacle_radius[:, None], obstacles),
    ]
    normals, bounds = [], []
    for side, (where, radius, strength) in enumerate(sides):
        delta = state.position[:, :, None] - where
        reach = a.radius[:, :, None] + radius
        square = delta.square().sum(-1)
        distance = square.clamp_min(torch.finfo(square.dtype).tiny).sqrt()
        alpha = class_k(square - reach.square(), strength, rule.eta, rule.dt if rule.clip else None)
        normal = delta / distance[..., None]
        if side == 1:
            bound = -alpha / (2 * distance)
        elif rule.mode == "share":
            bound = -alpha / (4 * distance)
        else:
            bound = (normal * state.velocity[:, other]).sum(-1) - alpha / (2 * distance)
        if side == 0 and rule.nearest is not None and rule.nearest < a.agents - 1:
            normal, bound = _nearest(normal, bound, distance - reach, rule)
        normals.append(normal)
        bounds.append(bound)
    return torch.cat(normals, 2), torch.cat(bounds, 2)


def filtered_control(
    a: Arena, state: AgentState, zeta: Strength, rule: SafetyFilter
) -> tuple[Float[Tensor, "batch agents 2"], Bool[Tensor, "batch agents"]]:
    """Each agent's control and whether its problem had a solution; where it had none, the agent stands still.

    Example:
        >>> a = arena(torch.tensor([[[-1.0, 0.0]]]), torch.tensor([[[1.0, 0.0]]]))
        >>> rule = SafetyFilter()
        >>> u, feasible = filtered_control(a, initial_state(a, rule), torch.ones(1, 1, 2), rule)
        >>> bool(u[0, 0, 0] > 0), feasible.tolist()
        (True, [[True]])
    """
    normal, bound = barrier_rows(a, state, zeta, rule)
    way = state.position - a.goal
    if rule.objective == "nominal":
        wish = (-rule.gain * way).clamp(-rule.max_speed, rule.max_speed)
        answer = barrier_qp(normal, bound, limit=rule.max_speed, nominal=wish)
    else:
        decrease = rule.epsilon * way.square().sum(-1)
        answer = barrier_qp(normal, bound, limit=rule.max_speed, c=2 * way, d=decrease, xi=rule.xi)
    return answer.u, answer.feasible


def _pairs(agents: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Index [agents, 1] of each agent and [agents, agents - 1] of its others."""
    me = torch.arange(agents, device=device)[:, None]
    other = torch.arange(agents - 1, device=device)[None]
    return me, other + (other >= me)


def _strengths(a: Arena, zeta: Strength) -> tuple[Tensor, Tensor]:
    """To agents [batch, agents, 1 or agents] and to obstacles [batch, agents, 1 or obstacles]."""
    batch, agents, obstacles = len(a), a.agents, a.obstacle.shape[1]
    if isinstance(zeta, Tensor):
        if zeta.shape != (batch, agents, 2):
            raise ValueError(f"zeta must have shape {[batch, agents, 2]}, got {list(zeta.shape)}")
        return zeta[..., :1], zeta[..., 1:]
    if not isinstance(zeta, Sequence):
        raise ValueError(f"zeta must be a tensor, or a pair of them; got {type(zeta).__name__}")
    shapes = [list(z.shape) for z in zeta]
    if shapes != [[batch, agents, agents], [batch, agents, obstacles]]:
        raise ValueError(
            f"zeta must be a pair of shapes {[batch, agents, agents]} and {[batch, agents, obstacles]}, got {shapes}"
        )
    return zeta


def _check_values(position: Tensor, *strengths: Tensor) -> None:
    if not math.isfinite(position.sum().item()) and not position.isfinite().all():
        raise ValueError("position must be finite everywhere; got NaN or infinity")
    for z in strengths:
        if z.numel() and not 0 <= z.detach().min().item() <= z.detach().max().item() < math.inf:
            raise ValueError("zeta must be finite and not negative everywhere; got values that are not")


def _nearest(normal: Tensor, bound: Tensor, gap: Tensor, rule: SafetyFilter) -> tuple[Tensor, Tensor]:
    """The rows of the nearest others alone; the next one must be too far to be touched in this step."""
    assert rule.nearest is not None
    order = gap.detach().argsort(2)
    kept, left = order[..., : rule.nearest], order[..., rule.nearest :]
    closing = 2 * math.sqrt(2) * rule.max_speed * rule.dt  # both along a diagonal of the box
    if not gap.is_cuda and (gap.gather(2, left) < closing).any():
        raise ValueError(f"nearest={rule.nearest} leaves out a neighbour that could be touched in this step; take more")
    return normal.gather(2, kept[..., None].expand(*kept.shape, 2)), bound.gather(2, kept)
