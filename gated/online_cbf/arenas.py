"""Where agents drive: batches of starts, goals, discs in the way, and the doorway, the crossing and their mixture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from numbers import Real
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gated.gates._validation import check_count, check_float, check_positive, check_sizes, is_number

FAR = 100.0
"""Where absent agents and obstacles are parked: out of everybody's sight."""


@dataclass(frozen=True, eq=False)
class Arena:
    """A batch of problems for disc-shaped agents. `arena` makes one from less; both check it.

    Raises:
        ValueError: shapes that do not fit, values that are not finite, a radius or deadline that is not positive,
            overlapping starts, a start or a goal inside an obstacle.
    """

    start: Float[Tensor, "batch agents 2"]
    goal: Float[Tensor, "batch agents 2"]
    radius: Float[Tensor, "batch agents"]
    obstacle: Float[Tensor, "batch obstacles 2"]
    obstacle_radius: Float[Tensor, "batch obstacles"]
    centre: Float[Tensor, "batch 2"]
    """The contested place: the door, the crossing. Only hand-written rules look at it."""
    deadline: Int[Tensor, " batch"]
    """In steps of the simulation."""
    present: Bool[Tensor, "batch agents"]
    """False for agents that only fill up a batch: parked far away on their goals, and left out of every mean."""

    def __post_init__(self) -> None:
        _check(self)

    def __len__(self) -> int:
        return len(self.start)

    @property
    def agents(self) -> int:
        return self.start.shape[1]

    def __getitem__(self, index: Any) -> Arena:
        """Those problems of the batch that `index` (a slice, a mask or indices) picks."""
        return replace(self, **{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def repeat(self, times: int) -> Arena:
        """The whole batch `times` times, one copy after another."""
        return replace(
            self, **{f.name: (x := getattr(self, f.name)).repeat(times, *[1] * (x.ndim - 1)) for f in fields(self)}
        )

    def to(self, target: torch.device | torch.dtype | str) -> Arena:
        """On another device, or in another floating dtype."""
        moved = {}
        for f in fields(self):
            x = getattr(self, f.name)
            moved[f.name] = x if isinstance(target, torch.dtype) and not x.is_floating_point() else x.to(target)
        return replace(self, **moved)


def arena(
    start: Float[Tensor, "batch agents 2"],
    goal: Float[Tensor, "batch agents 2"],
    radius: float | int | Float[Tensor, "batch agents"] = 0.15,
    obstacle: Float[Tensor, "batch obstacles 2"] | None = None,
    obstacle_radius: float | int | Float[Tensor, "batch obstacles"] = 1.0,
    *,
    centre: Float[Tensor, "batch 2"] | None = None,
    deadline: int | Int[Tensor, " batch"] = 200,
) -> Arena:
    """An `Arena` whose agents are all present; numbers stand for all alike, no `obstacle` for none, `centre` for 0.

    Raises:
        ValueError: as `Arena`; starts that are not [batch, agents, 2].

    Example:
        >>> arena(torch.tensor([[[-1.0, 0.0]]]), torch.tensor([[[1.0, 0.0]]])).radius.shape
        torch.Size([1, 1])
    """
    check_float("start", start)
    if start.ndim != 3 or start.shape[-1] != 2:
        raise ValueError(f"start must have shape [batch, agents, 2], got {tuple(start.shape)}")
    if not isinstance(deadline, Tensor):
        check_count("deadline", deadline)
    if not isinstance(obstacle_radius, Tensor):
        check_positive("obstacle_radius", obstacle_radius)
    if not isinstance(radius, Tensor) and not is_number(radius):
        raise ValueError(f"radius must be a number, or a tensor with one for each agent; got {radius!r}")
    batch, agents = start.shape[:2]
    spots = start.new_zeros(batch, 0, 2) if obstacle is None else obstacle
    return Arena(
        start,
        goal,
        radius if isinstance(radius, Tensor) else start.new_full((batch, agents), radius),
        spots,
        obstacle_radius if isinstance(obstacle_radius, Tensor) else start.new_full(spots.shape[:2], obstacle_radius),
        start.new_zeros(batch, 2) if centre is None else centre,
        deadline if isinstance(deadline, Tensor) else torch.full((batch,), deadline, device=start.device),
        torch.ones(batch, agents, dtype=torch.bool, device=start.device),
    )


def join(arenas: Sequence[Arena]) -> Arena:
    """One batch of several that may differ in their numbers of agents and obstacles; what lacks is parked far away.

    Raises:
        ValueError: no arena.
    """
    if not arenas:
        raise ValueError("arenas must hold at least one, got none")
    agents = max(a.agents for a in arenas)
    obstacles = max(a.obstacle.shape[1] for a in arenas)
    parts = []
    for a in arenas:
        seats, spots = a.start.new_zeros(len(a), agents - a.agents, 2), obstacles - a.obstacle.shape[1]
        seats[..., 0] = FAR + 10 * torch.arange(agents - a.agents)
        parts.append(
            (
                torch.cat([a.start, seats], 1),
                torch.cat([a.goal, seats], 1),
                torch.nn.functional.pad(a.radius, (0, agents - a.agents), value=0.15),
                torch.nn.functional.pad(a.obstacle, (0, 0, 0, spots), value=-FAR),
                torch.nn.functional.pad(a.obstacle_radius, (0, spots), value=1.0),
                a.centre,
                a.deadline,
                torch.nn.functional.pad(a.present, (0, agents - a.agents), value=False),
            )
        )
    return Arena(*(torch.cat(column) for column in zip(*parts, strict=True)))


def doorway(
    batch: int,
    *,
    sigma: float | int | Float[Tensor, " batch"] = 0.01,
    generator: torch.Generator | None = None,
    gap: float | int = 0.36,
    agents: int = 2,
    radius: float | int = 0.15,
    deadline: int | None = None,
    dtype: torch.dtype = torch.float64,
) -> Arena:
    """Two posts of radius 1 leave a door of width `gap` at the origin; rows of two agents want through it to the right.

    Row r starts at (-1.2 - 0.6 r, +-0.5) plus normal noise. Goals stand mirrored at (1.3 + 0.6 r, +-0.5), the front
    row's farthest. Without noise the problem is its own mirror image, and equal agents jam in the door.

    Args:
        sigma: standard deviation of the starts, one or one a problem; starts that overlap are drawn again.
        generator: of the noise; needed where sigma is not 0.
        gap: > 0. agents: >= 1, an odd one out stands above. radius: of the agents.
        deadline: in steps; 100 + 50 agents if None.

    Raises:
        ValueError: a gap that is not positive; as `arena`.

    Example:
        >>> doorway(3, generator=torch.Generator().manual_seed(0)).start.shape
        torch.Size([3, 2, 2])
    """
    check_sizes(batch=batch, agents=agents)
    check_positive("gap", gap)
    rows = -(-agents // 2)
    row, side = torch.arange(agents) // 2, 0.5 - torch.arange(agents, dtype=dtype) % 2
    start = torch.stack([-1.2 - 0.6 * row.to(dtype), side], -1)
    goal = torch.stack([1.3 + 0.6 * (rows - 1 - row).to(dtype), side], -1).expand(batch, -1, -1)
    posts = torch.tensor([[0.0, 1 + gap / 2], [0.0, -1 - gap / 2]], dtype=dtype).expand(batch, -1, -1)
    start = _scattered(start, goal, radius, posts, sigma, batch, generator)
    return arena(start, goal, radius, posts, deadline=100 + 50 * agents if deadline is None else deadline)


def crossing(
    batch: int,
    *,
    sigma: float | int | Float[Tensor, " batch"] = 0.01,
    generator: torch.Generator | None = None,
    agents: int = 4,
    radius: float | int = 0.15,
    deadline: int = 200,
    dtype: torch.dtype = torch.float64,
) -> Arena:
    """Two streams of parallel lanes, 0.7 apart, cross at right angles in the open; the first half drives to the right.

    Without noise the problem is its own image in the diagonal. Arguments as in `doorway`; `agents` must be even.

    Example:
        >>> crossing(3, generator=torch.Generator().manual_seed(0), agents=4).start.shape
        torch.Size([3, 4, 2])
    """
    check_sizes(batch=batch, agents=agents)
    if agents % 2:
        raise ValueError(f"agents must be even, half of them in each stream, got {agents}")
    lanes = agents // 2
    offset = 0.7 * (torch.arange(lanes, dtype=dtype) - (lanes - 1) / 2)
    reach = torch.full_like(offset, 0.85 + 0.35 * lanes)
    east, north = torch.stack([-reach, offset], -1), torch.stack([offset, -reach], -1)
    flip = torch.tensor([-1.0, 1.0], dtype=dtype)
    goal = torch.cat([east * flip, north * -flip]).expand(batch, -1, -1)
    start = _scattered(torch.cat([east, north]), goal, radius, goal.new_zeros(batch, 0, 2), sigma, batch, generator)
    return arena(start, goal, radius, deadline=deadline)


def mixture(
    batch: int,
    *,
    sigma: float | int = 0.01,
    generator: torch.Generator | None = None,
    gaps: Sequence[float | int] = (0.36, 0.5, 0.8),
    deadline: int = 130,
    dtype: torch.dtype = torch.float64,
) -> dict[str, Arena]:
    """`batch` doorways of each gap and `batch` crossings of four agents, by name; `join` makes one batch of them.

    Args:
        sigma: standard deviation of the starts.
        gaps: the doors' widths.
        deadline: in steps, the same for all.

    Raises:
        ValueError: as `doorway`.
    """
    for gap in gaps:
        check_positive("gaps", gap)
    shared: dict[str, Any] = {"sigma": sigma, "generator": generator, "deadline": deadline, "dtype": dtype}
    kinds = {f"doorway {gap:g}": doorway(batch, gap=gap, **shared) for gap in gaps}
    return kinds | {"crossing": crossing(batch, **shared)}


def log_uniform(
    size: Sequence[int], low: float | int, high: float | int, generator: torch.Generator
) -> Float[Tensor, " ..."]:
    """Draws between low and high > 0, uniform in their logarithm, float64: scales of noise, random strengths.

    Args:
        size: shape of the result.

    Raises:
        ValueError: bounds that are not positive or not in order.
    """
    check_positive("low", low)
    check_positive("high", high)
    if low > high:
        raise ValueError(f"low must be at most high; got {low} and {high}")
    for axis in size:
        check_count("size", axis, least=0)
    u = torch.rand(tuple(size), generator=generator, device=generator.device, dtype=torch.float64)
    return low * (high / low) ** u


def closest(
    position: Float[Tensor, "*time batch agents 2"], a: Arena
) -> tuple[Float[Tensor, "*time batch"], Float[Tensor, "*time batch"]]:
    """The smallest gap (distance less radii) and barrier (distance^2 less radii^2) of any pair; infinite without pairs.

    Of agents among themselves and with obstacles, at each time.

    Raises:
        ValueError: positions that are not [*time, batch, agents, 2].

    Example:
        >>> a = arena(torch.tensor([[[-1.0, 0.0], [1.0, 0.0]]]), torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]]), radius=0.25)
        >>> gap, barrier = closest(a.start, a)
        >>> gap.tolist(), barrier.tolist()  # 2 apart, less 0.5
        ([1.5], [3.75])
    """
    check_float("position", position)
    if position.shape[-3:] != a.start.shape:
        raise ValueError(f"position must have shape [*time, {len(a)}, {a.agents}, 2], got {tuple(position.shape)}")
    i, j = torch.triu_indices(a.agents, a.agents, 1, device=position.device)
    delta = torch.cat(
        [
            position[..., i, :] - position[..., j, :],
            (position[..., :, None, :] - a.obstacle[:, None]).flatten(-3, -2),
        ],
        -2,
    )
    reach = torch.cat(
        [a.radius[:, i] + a.radius[:, j], (a.radius[:, :, None] + a.obstacle_radius[:, None]).flatten(1)], -1
    )
    if not delta.shape[-2]:
        nothing = position.new_full(position.shape[:-2], math.inf)
        return nothing, nothing
    square = delta.square().sum(-1)
    return (square.sqrt() - reach).amin(-1), (square - reach.square()).amin(-1)


def _scattered(
    start: Tensor,
    goal: Tensor,
    radius: float | int,
    posts: Tensor,
    sigma: float | int | Tensor,
    batch: int,
    generator: torch.Generator | None,
) -> Tensor:
    """Starts with noise; those that overlap anything are drawn again."""
    check_positive("radius", radius)
    if not isinstance(sigma, Real | Tensor):
        raise ValueError(f"sigma must be a number or a tensor; got {sigma!r}")
    scale = torch.as_tensor(sigma, dtype=start.dtype)
    if scale.shape not in ((), (batch,)) or not (scale.isfinite() & (scale >= 0)).all():
        raise ValueError(f"sigma must be finite, not negative, one or one for each of {batch} problems; got {sigma}")
    out = start.expand(batch, -1, -1).clone()
    if not scale.any():
        return out
    if generator is None:
        raise ValueError("generator must be given where sigma is not 0, or the starts could not be drawn again")
    scale, todo = scale.expand(batch), torch.ones(batch, dtype=torch.bool)
    for _ in range(100):
        noise = torch.randn(int(todo.sum()), *start.shape, generator=generator, dtype=start.dtype)
        out[todo] = start + scale[todo, None, None] * noise
        i, j = torch.triu_indices(len(start), len(start), 1)
        near = ((out[:, i] - out[:, j]).norm(dim=-1) < 2 * radius).any(-1)
        near |= ((out[:, :, None] - posts[:, None]).norm(dim=-1) < radius + 1).flatten(1).any(-1)
        if not near.any():
            return out
        todo = near
    raise ValueError(f"sigma={sigma} or radius={radius} is so large that starts could not be drawn without overlap")


def _check(a: Arena) -> None:
    check_float("start", a.start)
    if a.start.ndim != 3 or 0 in a.start.shape[:2]:
        raise ValueError(f"start must have shape [batch >= 1, agents >= 1, 2], got {tuple(a.start.shape)}")
    batch, agents = a.start.shape[:2]
    spots = a.obstacle.shape[1] if a.obstacle.ndim == 3 else 0
    shapes = {
        "start": (batch, agents, 2),
        "goal": (batch, agents, 2),
        "radius": (batch, agents),
        "obstacle": (batch, spots, 2),
        "obstacle_radius": (batch, spots),
        "centre": (batch, 2),
        "deadline": (batch,),
        "present": (batch, agents),
    }
    for name, shape in shapes.items():
        x = getattr(a, name)
        if tuple(x.shape) != shape:
            raise ValueError(f"{name} must have shape {list(shape)}, got {list(x.shape)}")
        if name not in ("deadline", "present") and (x.dtype != a.start.dtype or not x.is_floating_point()):
            raise ValueError(f"{name} must be floating point like start ({a.start.dtype}), got {x.dtype}")
        if x.is_floating_point() and not x.isfinite().all():
            raise ValueError(f"{name} must be finite everywhere; got NaN or infinity")
    for name in ("radius", "obstacle_radius", "deadline"):
        x = getattr(a, name)
        if x.numel() and not (x > 0).all():
            raise ValueError(f"{name} must be positive everywhere; got {x.min().item():g}")
    slack = 1e-9 if a.start.dtype == torch.float64 else 1e-5
    far = math.inf
    i, j = torch.triu_indices(agents, agents, 1, device=a.start.device)
    for name, value, reach in (
        ("start", a.start[:, i] - a.start[:, j], a.radius[:, i] + a.radius[:, j]),
        ("start", a.start[:, :, None] - a.obstacle[:, None], a.radius[:, :, None] + a.obstacle_radius[:, None]),
        ("goal", a.goal[:, :, None] - a.obstacle[:, None], a.radius[:, :, None] + a.obstacle_radius[:, None]),
    ):
        gap = value.norm(dim=-1) - reach
        if gap.numel() and (far := gap.min().item()) < -slack:
            where = int(gap.flatten(1).amin(1).argmin())
            what = "other starts" if value.ndim == 3 else "obstacles"
            raise ValueError(
                f"{name} must not overlap with {what}; in problem {where} discs overlap by {-far:.3g}: put them "
                "further apart, or make `radius` or `obstacle_radius` smaller"
            )
