"""The measures of a few episodes, counted step by step."""

import math
from dataclasses import replace

import pytest
import torch

from gated.online_cbf import SafetyFilter, Trajectory, arena, constant, doorway, join, navigation, rollout

F64 = torch.float64


@pytest.mark.parametrize("mode", ["share", "full"])
def test_measures_counted_one_by_one(mode):
    a = doorway(6, sigma=0.05, agents=4, gap=0.5, generator=torch.Generator().manual_seed(3), deadline=150)
    rule = SafetyFilter(mode=mode)
    drive = rollout(a, constant(6.0, 5.0), rule)
    found = navigation(drive, rule)
    assert {True, False} >= set(found.success.tolist())
    for e in range(6):
        arrival, end = [], 0
        for i in range(4):
            away = (drive.position[:, e, i] - a.goal[e, i]).norm(dim=-1)
            inside = [t for t in range(len(away)) if away[t] <= 0.15 and t <= 150]
            arrival.append(inside[0] if inside else -1)
        assert drive.arrival[e].tolist() == arrival
        end = max(arrival) if min(arrival) >= 0 else 150
        gaps, speeds, spl, infeasible = [], [], [], 0
        for t in range(end + 1):
            for i in range(4):
                for j in range(i):
                    gaps.append(math.dist(drive.position[t, e, i], drive.position[t, e, j]) - 0.3)
                gaps += [math.dist(drive.position[t, e, i], a.obstacle[e, o]) - 1.15 for o in range(2)]
        for i in range(4):
            own = arrival[i] if arrival[i] >= 0 else end
            speeds += [drive.velocity[t, e, i].abs().max().item() for t in range(own)]
            path = sum(math.dist(drive.position[t + 1, e, i], drive.position[t, e, i]) for t in range(own))
            length = math.dist(a.start[e, i], a.goal[e, i])
            spl.append((arrival[i] >= 0 and min(gaps) >= -1e-3) * length / max(length, path))
            infeasible += sum(not drive.feasible[t, e, i] for t in range(end))
        assert found.success[e].item() == (min(arrival) >= 0 and min(gaps) >= -1e-3)
        assert found.makespan[e] == end
        assert found.min_gap[e].item() == pytest.approx(min(gaps))
        assert found.speed[e].item() == pytest.approx(sum(speeds) / len(speeds))
        assert found.spl[e].item() == pytest.approx(sum(spl) / 4)
        assert found.infeasible[e] == infeasible
    assert (found.infeasible.sum() > 0) == (mode == "full")


def test_a_touch_is_no_success():
    a = arena(torch.tensor([[[0.0, 0], [1, 0]]], dtype=F64), torch.tensor([[[0.0, 0], [0.2, 0]]], dtype=F64))
    still = torch.ones(2, 1, 2, dtype=torch.bool)
    position = torch.stack([a.start, torch.tensor([[[0.0, 0], [0.25, 0]]], dtype=F64), a.goal])
    velocity = position.diff(dim=0) / 0.05
    found = navigation(Trajectory(a, position, velocity, velocity, still, torch.tensor([[0, 2]])))
    assert not found.success.any() and found.spl.item() == 0
    assert found.min_gap.item() == pytest.approx(-0.1)


def test_what_happens_after_the_end_counts_nowhere():
    a = arena(
        torch.tensor([[[0.0, 0], [1, 0]]], dtype=F64), torch.tensor([[[0.0, 0], [0.5, 0]]], dtype=F64), deadline=9
    )
    later = torch.tensor([[[0.0, 0], [0.2, 0]]], dtype=F64)
    position = torch.stack([a.start, a.goal, later])
    feasible = torch.tensor([True, False]).reshape(2, 1, 1).expand(2, 1, 2)
    velocity = position.diff(dim=0)
    found = navigation(Trajectory(a, position, velocity, velocity, feasible, torch.tensor([[0, 1]])))
    assert found.success.all() and found.makespan.item() == 1
    assert found.min_gap.item() == pytest.approx(0.2) and found.min_barrier.item() == pytest.approx(0.25 - 0.09)
    assert found.infeasible.item() == 0 and found.speed.item() == pytest.approx(0.5)


def test_a_goal_reached_a_step_too_late_is_not_reached():
    a = doorway(3, sigma=0.0, agents=1)
    took = int(rollout(a, constant(5.0)).arrival[0])
    drive = rollout(replace(a, deadline=torch.tensor([took + 9, took, took - 1])), constant(5.0), every=4)
    assert drive.arrival.tolist() == [[took], [took], [-1]]
    assert navigation(drive).success.tolist() == [True, True, False]
    assert drive.ends.tolist() == [took, took, took - 1]


def test_one_agent_alone():
    a = arena(torch.zeros(2, 1, 2, dtype=F64), torch.tensor([[[1.0, 0.0]], [[0.1, 0.0]]], dtype=F64))
    found = navigation(rollout(a, constant(1.0)))
    assert found.success.all()
    assert found.min_gap.tolist() == [math.inf, math.inf]
    assert found.makespan[1] == 0 and found.spl.tolist() == [1.0, 1.0]
    post = doorway(1, sigma=0.0, agents=1)
    assert navigation(rollout(post, constant(3.0))).success.all()


def test_absent_agents_count_nowhere():
    a = doorway(4, sigma=0.03, generator=torch.Generator().manual_seed(0))
    pair = join([a, doorway(1, sigma=0.0, agents=4)])[:4]
    first, second = (navigation(rollout(x, constant(3.0, 2.0))) for x in (a, pair))
    for name in ("success", "makespan", "spl", "speed", "infeasible", "min_gap"):
        assert torch.allclose(getattr(first, name).double(), getattr(second, name).double()), name


def test_the_recorded_positions_are_the_sum_of_the_controls():
    a = doorway(3, sigma=0.03, generator=torch.Generator().manual_seed(0))
    drive = rollout(a, constant(3.0, 2.0), steps=50)
    assert torch.allclose(drive.position[1:] - drive.position[0], 0.05 * drive.velocity.cumsum(0), atol=1e-12)
    assert drive.strength.shape == (50, 3, 2, 2)
    assert drive.velocity.abs().max() <= 1 + 1e-9
