"""Nobody ever touches anybody: ten thousand random episodes with random strengths, new at every step."""

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from gated.online_cbf import SafetyFilter, arena, rollout
from gated.online_cbf.arenas import Arena

EPISODES, STEPS = 1250, 40


def crowd(episodes: int, agents: int, obstacles: int, generator: torch.Generator) -> Arena:
    """Random discs in a small square, none overlapping; goals anywhere but in obstacles."""
    kept: list[list[Tensor]] = []
    while sum(len(k[0]) for k in kept) < episodes:
        many = 40 * episodes

        def uniform(*shape: int, low: float, high: float, many: int = many) -> Tensor:
            return low + (high - low) * torch.rand(many, *shape, generator=generator, dtype=torch.float64)

        start, goal = uniform(agents, 2, low=-0.7, high=0.7), uniform(agents, 2, low=-0.7, high=0.7)
        spot = uniform(obstacles, 2, low=-0.7, high=0.7)
        radius, reach = uniform(agents, low=0.03, high=0.2), uniform(obstacles, low=0.05, high=0.3)
        discs, sizes = torch.cat([start, spot], 1), torch.cat([radius, reach], 1)
        gap = torch.cdist(discs, discs) - sizes[:, :, None] - sizes[:, None]
        gap.diagonal(dim1=1, dim2=2).fill_(1)
        good = gap[:, :agents].flatten(1).amin(1) > 0
        if obstacles:
            good &= (torch.cdist(goal, spot) - radius[:, :, None] - reach[:, None]).flatten(1).amin(1) > 0
        kept.append([x[good] for x in (start, goal, radius, spot, reach)])
    return arena(*(torch.cat(x)[:episodes] for x in zip(*kept, strict=True)), deadline=STEPS)


def restless(generator: torch.Generator, low: float = 1e-3, high: float = 1e3):
    """Another strength for each agent, towards each other disc, at every step: from a wall to nothing at all."""

    def policy(a, state):
        agents, obstacles = a.agents, a.obstacle.shape[1]
        u = torch.rand(len(a), agents, agents + obstacles, generator=generator, dtype=torch.float64)
        zeta = (low * (high / low) ** u).to(a.start.dtype)
        return zeta[..., :agents], zeta[..., agents:]

    return policy


def smallest_barrier(trajectory) -> Float[Tensor, " batch"]:
    """Without the package's own geometry, over every recorded time."""
    a = trajectory.arena
    times = len(trajectory.position)
    discs = torch.cat([trajectory.position, a.obstacle.expand(times, *a.obstacle.shape)], 2)
    sizes = torch.cat([a.radius, a.obstacle_radius], 1)
    square = (discs[:, :, :, None] - discs[:, :, None]).square().sum(-1)
    h = square - (sizes[:, :, None] + sizes[:, None]).square()
    h.diagonal(dim1=2, dim2=3).fill_(torch.inf)
    return h[:, :, : a.agents].amin((0, 2, 3))


CASES = [
    # agents, obstacles, eta, objective, dt
    (2, 1, 1, "clf", 0.05),
    (3, 0, 1, "clf", 0.1),
    (3, 1, 3, "clf", 0.2),
    (4, 1, 1, "clf", 0.05),
    (2, 2, 3, "nominal", 0.05),
    (3, 2, 1, "nominal", 0.1),
    (4, 0, 3, "nominal", 0.3),
    (1, 3, 1, "clf", 0.2),
]


@pytest.mark.parametrize(("agents", "obstacles", "eta", "objective", "dt"), CASES)
def test_ten_thousand_episodes_without_a_touch(agents, obstacles, eta, objective, dt):
    generator = torch.Generator().manual_seed(agents + 10 * obstacles + 100 * eta)
    a = crowd(EPISODES, agents, obstacles, generator)
    rule = SafetyFilter(objective=objective, eta=eta, dt=dt)
    drive = rollout(a, restless(generator), rule, steps=STEPS)
    lowest = smallest_barrier(drive)
    assert lowest.min() >= -1e-9
    assert drive.feasible.all()
    assert (lowest < 0.02).double().mean() > 0.05  # they do come close
    assert EPISODES * len(CASES) == 10_000


def test_it_is_the_clip_and_the_half_that_keep_them_apart():
    generator = torch.Generator().manual_seed(0)
    a = crowd(100, 3, 1, generator)
    unclipped = rollout(a, restless(generator), SafetyFilter(clip=False, dt=0.2), steps=STEPS)
    assert (smallest_barrier(unclipped) < -1e-3).double().mean() > 0.3
    greedy = rollout(a, restless(generator), SafetyFilter(mode="full", dt=0.2), steps=STEPS)
    assert (smallest_barrier(greedy) < -1e-3).double().mean() > 0.02


def test_single_precision_keeps_them_apart_to_its_own_rounding():
    generator = torch.Generator().manual_seed(1)
    a = crowd(200, 3, 1, generator).to(torch.float32)
    drive = rollout(a, restless(generator), steps=STEPS)
    assert drive.position.dtype == torch.float32
    assert smallest_barrier(drive).min() >= -1e-5
    assert drive.feasible.all()
