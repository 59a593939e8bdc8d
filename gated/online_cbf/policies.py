"""Who sets how hard the barrier holds, without learning: constants, chance, and a rule written by hand.

Each makes a `Tuner`: called with the arena and the state of the moment, it answers with strengths.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from gated.gates._validation import check_count, check_number
from gated.online_cbf.arenas import Arena, log_uniform
from gated.online_cbf.filter import AgentState, Strength
from gated.online_cbf.rollout import Tuner


def constant(
    agents: float | int | Float[Tensor, "*shape"], obstacles: float | int | Float[Tensor, "*shape2"] | None = None
) -> Tuner:
    """The same strengths at all times: zeta to other agents, and to obstacles (the same if None).

    A number for all, a tensor [agents] for one by identity, [batch, 1] for one a problem, [batch, agents] for both.

    Raises:
        ValueError: a number that is negative or not finite; when it is called, strengths that do not fit
            [batch, agents].

    Example:
        >>> way = doorway(2, generator=torch.Generator().manual_seed(0))
        >>> strengths = constant(2.0, obstacles=5.0)(way, initial_state(way, SafetyFilter()))
        >>> strengths[0, 0].tolist()  # towards agents, and towards obstacles
        [2.0, 5.0]
    """
    obstacles = agents if obstacles is None else obstacles
    _check_strengths(agents=agents, obstacles=obstacles)

    def policy(a: Arena, state: AgentState) -> Strength:
        like = state.position
        sides = [torch.as_tensor(z, dtype=like.dtype, device=like.device) for z in (agents, obstacles)]
        try:
            return torch.stack([z.expand(like.shape[:2]) for z in sides], -1)
        except RuntimeError:
            shapes = [tuple(z.shape) for z in sides]
            raise ValueError(
                f"constant strengths must fit [batch, agents] = {tuple(like.shape[:2])}, got shapes {shapes}"
            ) from None

    return policy


def random_strengths(
    low: float | int,
    high: float | int,
    obstacles: float | int,
    *,
    generator: torch.Generator,
    redraw: int | None = None,
) -> Tuner:
    """log zeta uniform in [log low, log high] for each agent, drawn when an episode starts and each `redraw` steps.

    Args:
        obstacles: zeta towards obstacles.

    Raises:
        ValueError: `redraw` below 1, strengths that are negative or not finite; as `log_uniform`.
    """
    if redraw is not None:
        check_count("redraw", redraw)
    _check_strengths(obstacles=obstacles)
    log_uniform((), low, high, torch.Generator())  # its errors, now
    held: list[Tensor] = []

    def policy(a: Arena, state: AgentState) -> Strength:
        if state.step == 0 or (redraw is not None and state.step % redraw == 0):
            held[:] = [log_uniform(state.position.shape[:2], low, high, generator).to(state.position)]
        return torch.stack([held[0], torch.full_like(held[0], obstacles)], -1)

    return policy


def nearer_first(high: float | int, low: float | int, obstacles: float | int) -> Tuner:
    """Of two agents the one nearer to the centre, or already through, takes `high` towards the other, that one `low`.

    Through is who has the centre behind and the goal before: (g - m).(p - m) > 0 for the centre m. Of two who are
    through, the farther one leads. Equals, to 1e-9, both take `low`.

    Args:
        obstacles: zeta towards obstacles.

    Raises:
        ValueError: a strength that is negative or not finite.
    """
    _check_strengths(high=high, low=low, obstacles=obstacles)

    def policy(a: Arena, state: AgentState) -> Strength:
        out = state.position - a.centre[:, None]
        through = ((a.goal - a.centre[:, None]) * out).sum(-1) > 0
        order = torch.where(through, -1.0, 1.0) * out.norm(dim=-1)
        leads = order[:, :, None] < order[:, None, :] - 1e-9
        agents = torch.where(leads, float(high), float(low)).to(out)
        return agents, out.new_full((*out.shape[:2], a.obstacle.shape[1]), obstacles)

    return policy


def keep_right(high: float | int, low: float | int, obstacles: float | int) -> Tuner:
    """Right of way: an agent takes `low` towards others on its right, looking from start to goal, else `high`.

    A rule without memory, identities or chance that breaks the tie of two mirrored agents: what they see is mirrored,
    not the same, so that left and right tell them apart.

    Args:
        obstacles: zeta towards obstacles.

    Raises:
        ValueError: a strength that is negative or not finite.

    Example:
        >>> way = doorway(2, generator=torch.Generator().manual_seed(0))
        >>> keep_right(high=6.0, low=0.5, obstacles=5.0)(way, initial_state(way, SafetyFilter()))[0].shape
        torch.Size([2, 2, 2])
    """
    _check_strengths(high=high, low=low, obstacles=obstacles)

    def policy(a: Arena, state: AgentState) -> Strength:
        way = a.goal - a.start
        delta = state.position[:, None] - state.position[:, :, None]  # [i, j]: from i to j
        right = way[:, :, None, 0] * delta[..., 1] - way[:, :, None, 1] * delta[..., 0] < 0
        agents = torch.where(right, float(low), float(high)).to(way)
        return agents, way.new_full((*way.shape[:2], a.obstacle.shape[1]), obstacles)

    return policy


def _check_strengths(**strengths: float | int | Tensor) -> None:
    """By name; what tensors hold is checked where they are used."""
    for name, strength in strengths.items():
        if not isinstance(strength, Tensor):
            check_number(name, strength, "[0, inf)")
