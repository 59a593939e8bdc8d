"""The doorway: what constants, chance and a rule by hand are worth there, held against figures found by another
implementation (numpy, other draws of the starts), each from 48 or 64 starts. Ours must lie within their interval.
"""

import math

import pytest
import torch

from gated.online_cbf import (
    GridSearch,
    SafetyFilter,
    constant,
    crossing,
    doorway,
    grid_search,
    join,
    log_uniform,
    mixture,
    navigation,
    nearer_first,
    random_strengths,
    rollout,
)

STARTS = 64
F64 = torch.float64


def near(ours: float, theirs: float, starts: int) -> bool:
    """Within three standard errors of a difference of two shares, and two starts."""
    share = (ours + theirs) / 2
    return abs(ours - theirs) <= 3 * math.sqrt(share * (1 - share) * (1 / starts + 1 / STARTS)) + 2 / STARTS


def drove(sigma: float, policy, agents: int = 2, seed: int = 0, **settings) -> dict[str, float]:
    g = torch.Generator().manual_seed(seed)
    a = doorway(STARTS, sigma=sigma, agents=agents, generator=g, **settings)
    found = navigation(rollout(a, policy(g) if callable(policy) and policy.__name__ == "<lambda>" else policy))
    assert found.min_barrier.min() >= -1e-9
    assert not found.infeasible.any()
    return found.summary()


CONSTANT = [
    # sigma, zeta to agents, to obstacles, starts, success, mean steps
    (0.001, 2, 1, 64, 0.27, 196),
    (0.003, 2, 1, 64, 0.66, 184),
    (0.01, 3, 2, 64, 0.91, 129),
    (0.03, 2, 1, 64, 0.98, 166),
    (0.03, 3, 2, 64, 0.97, 121),
    (0.01, 1, 10, 48, 0.50, 195),
    (0.01, 3, 10, 48, 0.67, 145),
    (0.01, 10, 10, 48, 0.13, None),
    (0.01, 19, 10, 48, 0.0, None),
]


@pytest.mark.parametrize("sigma", [0.001, 0.003, 0.01, 0.03])
def test_constants(sigma):
    rows = [row for row in CONSTANT if row[0] == sigma]
    a = doorway(STARTS, sigma=sigma, generator=torch.Generator().manual_seed(0))
    found = grid_search(a, [row[1:3] for row in rows])
    for (*_, starts, success, steps), passed, took in zip(rows, found.success, found.makespan, strict=True):
        assert near(passed.double().mean().item(), success, starts)
        assert steps is None or abs(took.mean().item() - steps) < 13


def test_the_best_pair_has_most_successes_then_the_least_time():
    success = torch.tensor([[True, False], [True, True], [True, True]])
    makespan = torch.tensor([[10.0, 20.0], [90.0, 90.0], [80.0, 90.0]])
    assert GridSearch(((1, 1), (2, 2), (3, 3)), success, makespan).best == (3, 3)
    assert GridSearch(((1, 1), (2, 2)), success[:2], makespan[:2]).best == (2, 2)


def test_in_the_mirror_every_pair_of_constants_jams():
    found = grid_search(doorway(1, sigma=0.0), [(z, 10) for z in (0.5, 1, 2, 3, 5, 10, 19)])
    assert not found.success.any()
    by_identity = navigation(rollout(doorway(1, sigma=0.0), constant(torch.tensor([10.0, 3.0]), 10)))
    assert by_identity.success.all() and by_identity.makespan.item() == 106


@pytest.mark.parametrize("sigma", [0.001, 0.01])
def test_the_rule_always_passes(sigma):
    found = drove(sigma, nearer_first(19, 4, 10))
    assert found["success"] == 1
    assert abs(found["makespan"] - 100) < 1


@pytest.mark.parametrize(
    ("sigma", "redraw", "success", "steps"),
    [(0.001, None, 0.94, 132), (0.001, 10, 0.98, 115), (0.01, None, 0.95, 131), (0.03, None, 0.95, 130)],
)
def test_chance_breaks_most_ties(sigma, redraw, success, steps):
    found = drove(sigma, lambda g: random_strengths(1, 19, 2, generator=g, redraw=redraw))
    assert near(found["success"], success, 64)
    assert abs(found["makespan"] - steps) < 10


FOUR = [(2, 10, 0.85), (3, 10, 0.83), (5, 10, 0.88), (10, 10, 0.54), (19, 10, 0.23), (5, 2, 1.0)]


def test_four_agents():
    g = torch.Generator().manual_seed(1)
    found = grid_search(doorway(40, sigma=0.03, agents=4, generator=g), [(z, o) for z, o, _ in FOUR])
    for (_, _, theirs), ours in zip(FOUR, found.success.double().mean(1).tolist(), strict=True):
        assert near(ours, theirs, 40)
    assert found.best == (5, 2)
    rule = drove(0.03, nearer_first(19, 5, 2), agents=4)
    assert rule["success"] == 1
    assert abs(rule["makespan"] - 141) < 3


def test_the_full_budget_meets_problems_without_a_solution():
    """Shared: none. In full: nearly every episode meets one, for any strength; and from 2 on agents touch."""
    g = torch.Generator().manual_seed(2)
    a = doorway(32, sigma=0.03, agents=4, gap=0.45, generator=g)
    zeta = torch.tensor([0.2, 1.0, 10.0, 20.0], dtype=F64).repeat_interleave(32)[:, None]
    found = navigation(rollout(a.repeat(4), constant(zeta, 10), SafetyFilter(mode="full"), steps=200))
    met = (found.infeasible > 0).double().reshape(4, 32).mean(1)
    touched = (found.min_gap < -1e-3).double().reshape(4, 32).mean(1)
    assert (met > 0.85).all()
    assert touched[:2].tolist() == [0, 0]
    assert touched[2] > 0.8


def test_scenes_are_where_they_should_be():
    a = doorway(3, sigma=0.0, agents=4)
    at = torch.tensor([[-1.2, 0.5], [-1.2, -0.5], [-1.8, 0.5], [-1.8, -0.5]], dtype=F64)
    assert torch.allclose(a.start, at.expand(3, 4, 2))
    assert torch.allclose(a.goal[0, :, 0], torch.tensor([1.9, 1.9, 1.3, 1.3], dtype=F64))
    assert a.deadline.tolist() == [300] * 3
    assert doorway(1, sigma=0.0).deadline.item() == 200
    c = crossing(1, sigma=0.0)
    assert torch.equal(c.goal[0, :2, 1], c.start[0, :2, 1])
    assert torch.equal(c.start[0, 2:], c.start[0, :2].flip(-1))
    assert (torch.pdist(c.goal[0]) >= 0.55).all()
    for make in (doorway, crossing):
        first, again, other = (make(4, sigma=0.05, generator=torch.Generator().manual_seed(s)).start for s in (0, 0, 1))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
    spread = doorway(20_000, sigma=0.02, generator=torch.Generator().manual_seed(0)).start.std(0)
    assert (spread - 0.02).abs().max() < 5e-4


def test_crowded_doorways_are_drawn_again_until_nobody_overlaps():
    sigma = log_uniform((4000,), 0.05, 0.15, torch.Generator().manual_seed(1))
    a = doorway(4000, sigma=sigma, agents=6, generator=torch.Generator().manual_seed(0))
    assert torch.stack([torch.pdist(x) for x in a.start[:500]]).min() >= 0.3


def test_a_joined_batch_drives_as_its_parts_do():
    parts = mixture(3, sigma=0.02, generator=torch.Generator().manual_seed(0))
    assert list(parts) == ["doorway 0.36", "doorway 0.5", "doorway 0.8", "crossing"]
    whole = join(list(parts.values()))
    assert (whole.agents, len(whole), set(whole.deadline.tolist())) == (4, 12, {130})
    together = rollout(whole, nearer_first(19, 4, 10))
    found = navigation(together)
    for k, part in enumerate(parts.values()):
        drive = rollout(part, nearer_first(19, 4, 10))
        alone, rows = navigation(drive), slice(3 * k, 3 * k + 3)
        steps = min(len(drive.position), len(together.position))
        ours = together.position[:steps, rows, : part.agents]
        assert torch.allclose(drive.position[:steps], ours, atol=1e-9)
        for name, mine, theirs in zip(found._fields, found, alone, strict=True):
            if part.agents == 4 or name not in ("min_gap", "min_barrier"):
                assert torch.allclose(mine[rows].double(), theirs.double()), name
    assert not navigation(together)[0][found.makespan == 130].any()
