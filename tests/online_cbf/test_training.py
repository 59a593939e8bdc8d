"""Rewards one by one, then whether learning learns."""

import pytest
import torch

from gated.online_cbf import (
    GraphTuner,
    SafetyFilter,
    constant,
    constant_score,
    cross_entropy,
    crossing,
    descend,
    doorway,
    grid_search,
    join,
    log_uniform,
    navigation,
    ppo,
    returns,
    rewards,
    rollout,
)
from gated.online_cbf.training import collect
from gated.policy_gradient import clipped_gain

F64 = torch.float64


def problems(generator: torch.Generator):
    return doorway(32, sigma=log_uniform((32,), 0.003, 0.1, generator), generator=generator, deadline=150)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("mode", ["share", "full"])
@pytest.mark.parametrize("team", [0.0, 0.5, 1.0])
def test_rewards_counted_one_by_one(mode, team):
    a = join([doorway(3, sigma=0.05, gap=0.6, generator=generator(), deadline=103), crossing(2, generator=generator())])
    drive = rollout(a, constant(6.0, 5.0), SafetyFilter(mode=mode), every=5)
    found = rewards(drive, every=5, team=team)
    decisions = -(-len(drive.velocity) // 5)
    assert found.reward.shape == (decisions, 5, 4)
    for e in range(5):
        here = [i for i in range(4) if a.present[e, i]]
        all_arrived = all(drive.arrival[e, i] >= 0 for i in here)
        end = max(int(drive.arrival[e, i]) for i in here) if all_arrived else int(a.deadline[e])
        for d in range(decisions):
            first, last = 5 * d, min(5 * d + 5, len(drive.velocity))
            assert found.alive[d, e] == (first < end)
            assert found.terminal[d, e] == (all_arrived and first < end <= last)
            own = {}
            for i in here:
                way = [(a.goal[e, i] - drive.position[t, e, i]).norm() for t in (0, first, last)]
                own[i] = (way[1] - way[2]) / way[0]
                own[i] = own[i] - 0.02 * bool(drive.arrival[e, i] < 0 or drive.arrival[e, i] > first)
                own[i] = own[i] + (all_arrived and first < end <= last)
                own[i] = own[i] - 0.5 * (~drive.feasible[first:last, e, i]).sum()
            for i in range(4):
                mixed = 0.0
                if i in here and first < end:
                    mixed = team * sum(own.values()) / len(own) + (1 - team) * own[i]
                assert float(found.reward[d, e, i]) == pytest.approx(float(mixed), abs=1e-12)
    if team == 1:
        total = [found.reward[:, e, 0].sum().item() for e in range(5)]
        assert returns(drive).tolist() == pytest.approx(total)


def test_a_return_is_progress_less_time_and_the_bonus():
    drive = rollout(doorway(1, sigma=0.0, agents=1), constant(5.0), every=1)
    arrived = int(drive.arrival[0, 0])
    left = (drive.position[arrived, 0, 0] - drive.arena.goal[0, 0]).norm() / (
        drive.position[0] - drive.arena.goal
    ).norm()
    assert returns(drive, every=1).item() == pytest.approx(1 - float(left) - 0.02 * arrived + 1)


def test_the_ratio_is_one_before_the_first_step():
    tuner = GraphTuner(generator=generator())
    batch = collect(tuner, problems(generator()), SafetyFilter(), generator(), every=5)
    seen = type(batch.seen)(*(x[:-1].flatten(0, 1) for x in batch.seen))
    density = tuner.log_density(tuner.network(seen), batch.y.flatten(0, 1))
    assert torch.allclose(density, batch.log_density.flatten(0, 1), atol=1e-5)
    assert len(batch.seen.node) == len(batch.y) + 1
    again = collect(tuner, problems(generator()), SafetyFilter(), generator(), every=5)
    assert torch.equal(again.trajectory.position, batch.trajectory.position)


def test_beyond_the_clip_nothing_is_paid():
    log_ratio = torch.tensor([0.5, -0.5, 0.1, 0.5, -0.5], dtype=F64, requires_grad=True)
    gain = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0], dtype=F64)
    clipped_gain(log_ratio, gain, 0.2).sum().backward()
    assert log_ratio.grad.ne(0).tolist() == [False, True, True, True, False]


def test_learning_finds_a_passage():
    """From a constant that jams in most doors, within a few iterations; the same seed gives the same answer."""
    tuner = GraphTuner(start=12.0, log_std=0.0, generator=generator())
    test = doorway(64, sigma=0.01, generator=generator(9), deadline=150)
    before = navigation(rollout(test, tuner, every=5)).success.double().mean()
    ppo(tuner, problems, generator=generator(), iterations=6, rate=3e-3)
    after = navigation(rollout(test, tuner, every=5)).success.double().mean()
    assert before < 0.6
    assert after > before + 0.2
    twins = [GraphTuner(generator=generator(2)) for _ in range(2)]
    for twin in twins:
        ppo(twin, problems, generator=generator(5), iterations=1, epochs=1)
    assert all(torch.equal(p, q) for p, q in zip(twins[0].parameters(), twins[1].parameters(), strict=True))


def test_the_rollout_differentiates_to_finite_differences():
    a = doorway(2, sigma=0.05, generator=generator(4), gap=0.6)

    def left(zeta):
        drive = rollout(a, constant(zeta[:2], zeta[2:]), steps=25)
        return (drive.position[-1] - a.goal).norm(dim=-1).mean()

    zeta = torch.tensor([2.0, 3.0, 4.0, 5.0], dtype=F64, requires_grad=True)
    (slope,) = torch.autograd.grad(left(zeta), zeta)
    assert slope.abs().min() > 1e-6
    for k in range(4):
        step = 1e-6 * torch.eye(4, dtype=F64)[k]
        with torch.no_grad():
            assert ((left(zeta + step) - left(zeta - step)) / 2e-6).item() == pytest.approx(slope[k].item(), rel=1e-4)


def test_descent_makes_a_timid_policy_bolder():
    tuner = GraphTuner(start=1.0, generator=generator())
    progress = descend(tuner, problems, generator=generator(), iterations=2, rate=3e-3)
    with torch.no_grad():
        drive = rollout(problems(generator(3)), tuner, every=5)
    assert drive.strength.mean() > 1.2
    assert progress.gradient.gt(0).all() and progress.makespan[-1] < progress.makespan[0]


def test_cross_entropy_climbs_a_hill():
    found = cross_entropy(
        lambda pairs: -(pairs.log() - torch.tensor([5.0, 2.0]).log()).square().sum(1),
        generator=generator(),
        iterations=12,
    )
    assert found.best == pytest.approx((5.0, 2.0), rel=0.02)
    assert (found.history[1:, 2] >= found.history[:-1, 2] - 1e-6).all()


def test_scores_of_constants_are_their_mean_returns():
    a = doorway(5, sigma=0.03, generator=generator(), deadline=120)
    pairs = torch.tensor([[2.0, 1.0], [5.0, 2.0]], dtype=F64)
    score = constant_score(a)(pairs)
    for (agents, obstacles), found in zip(pairs.tolist(), score.tolist(), strict=True):
        assert found == pytest.approx(returns(rollout(a, constant(agents, obstacles), every=5)).mean().item())
    grid = grid_search(a, [(2.0, 1.0), (5.0, 2.0)])
    drove = navigation(rollout(a, constant(5.0, 2.0), every=5))
    assert torch.equal(grid.success[1], drove.success) and torch.equal(grid.makespan[1], drove.makespan)
