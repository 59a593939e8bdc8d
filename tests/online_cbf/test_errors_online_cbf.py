"""What the online CBF module says about arguments that do not fit, and what it does at the edges."""

import math

import pytest
import torch

from gated.online_cbf import (
    AgentState,
    GraphTuner,
    Neighbourhood,
    SafetyFilter,
    advance,
    arena,
    barrier_rows,
    class_k,
    constant,
    cross_entropy,
    crossing,
    descend,
    doorway,
    filtered_control,
    grid_search,
    initial_state,
    join,
    log_uniform,
    navigation,
    observe,
    ppo,
    random_strengths,
    rewards,
    rollout,
)
from gated.online_cbf.theory import approach_limit, braking_threshold, engagement_gap, simulate_braking

F64 = torch.float64
START = torch.tensor([[[-1.0, 0.0], [1.0, 0.0]]], dtype=F64)
GOAL = -START
POST = torch.tensor([[[0.0, 1.0]]], dtype=F64)


def door(agents: int = 2):
    return doorway(2, sigma=0.0, agents=agents)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"start": START * 0.1}, "start must not overlap with other starts; in problem 0 discs overlap by 0.1"),
        ({"start": START * 0}, "start must not overlap with other starts"),
        ({"obstacle": START[:, :1]}, "start must not overlap with obstacles"),
        ({"goal": POST.expand(1, 2, 2), "obstacle": POST, "obstacle_radius": 0.3}, "goal must not overlap with obst"),
        ({"radius": 0.0}, "radius must be positive everywhere; got 0"),
        ({"radius": -1.0}, "radius must be positive everywhere; got -1"),
        ({"obstacle": POST, "obstacle_radius": 0.0}, "obstacle_radius must be a positive"),
        ({"deadline": 0}, "deadline must be an integer of at least 1"),
        ({"start": START * math.nan}, "start must be finite everywhere"),
        ({"goal": GOAL * math.inf}, "goal must be finite everywhere"),
        ({"radius": math.nan}, "radius must be finite everywhere"),
        ({"start": START[0]}, r"start must have shape \[batch, agents, 2\]"),
        ({"start": START[:, :0], "goal": GOAL[:, :0]}, "agents >= 1"),
        ({"goal": GOAL[:, :1]}, r"goal must have shape \[1, 2, 2\], got \[1, 1, 2\]"),
        ({"radius": torch.ones(2)}, r"radius must have shape \[1, 2\]"),
        ({"obstacle": POST[0]}, "obstacle must have shape"),
        ({"goal": GOAL.float()}, "goal must be floating point like start"),
        ({"centre": torch.zeros(1, 3, dtype=F64)}, "centre must have shape"),
    ],
)
def test_arenas_name_the_argument(settings, words):
    with pytest.raises(ValueError, match=words):
        arena(**({"start": START, "goal": GOAL} | settings))


def test_touching_starts_are_allowed():
    a = arena(START * 0.15, GOAL * 3)
    assert rollout(a, constant(1.0), steps=5).feasible.all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: doorway(0), "batch must be an integer of at least 1"),
        (lambda: doorway(1, agents=0), "agents must be an integer of at least 1"),
        (lambda: doorway(1, gap=0, sigma=0), "gap must be a positive"),
        (lambda: doorway(1, sigma=-1), "sigma must be finite, not negative"),
        (lambda: doorway(3, sigma=torch.ones(2)), "one for each of 3 problems"),
        (lambda: doorway(1, sigma=0.1), "generator must be given"),
        (lambda: doorway(4, sigma=0.001, radius=0.6, generator=torch.Generator()), "could not be drawn"),
        (lambda: doorway(4, sigma=0, radius=0.6), "start must not overlap"),
        (lambda: crossing(1, agents=3), "agents must be even"),
        (lambda: join([]), "arenas must hold at least one"),
        (lambda: log_uniform((2,), 0, 1, torch.Generator()), "low must be a positive"),
        (lambda: log_uniform((2,), 2, 1, torch.Generator()), "low must be at most high; got 2 and 1"),
        (lambda: random_strengths(1, 2, 1, generator=torch.Generator(), redraw=0), "redraw must be"),
        (lambda: random_strengths(3, 2, 1, generator=torch.Generator()), "low must be at most high; got 3 and 2"),
        (lambda: SafetyFilter(mode="half"), r"mode must be one of \('share', 'full'\), got 'half'"),
        (lambda: SafetyFilter(objective="none"), "objective must be one of"),
        (lambda: class_k(torch.tensor([-0.5]), 3.0, 2), "^eta must be odd, for alpha to be negative where h is; got 2"),
        (lambda: SafetyFilter(eta=2), r"eta must be one of \(1, 3\)"),
        (lambda: SafetyFilter(dt=0), "dt must be a positive"),
        (lambda: SafetyFilter(xi=math.nan), "xi must be a positive"),
        (lambda: SafetyFilter(max_speed=math.inf), "max_speed must be a positive finite number"),
        (lambda: SafetyFilter(nearest=0), "nearest must be an integer of at least 1"),
        (lambda: GraphTuner(low=3, start=2), "low, start and high"),
        (lambda: GraphTuner(high=2, start=3), "low, start and high"),
        (lambda: Neighbourhood(1, sees=("others", "others")), "sees must name"),
        (lambda: GraphTuner(sees=("goals",)), "sees must name"),
        (lambda: rollout(door(), constant(1), every=0), "every must be an integer of at least 1"),
        (lambda: rollout(door(), constant(1), steps=0), "steps must be an integer of at least 1"),
        (lambda: grid_search(door(), []), "pairs must hold at least one"),
        (lambda: cross_entropy(lambda x: x[:, 0], generator=torch.Generator(), elite=1), "elite must lie"),
        (lambda: cross_entropy(lambda x: x[:, 0], generator=torch.Generator(), elite=40), "elite must lie"),
        (lambda: cross_entropy(lambda x: x[:, 0], generator=torch.Generator(), low=0), "low must be a positive"),
        (lambda: ppo(GraphTuner(), lambda g: door(), generator=torch.Generator(), iterations=0), "iterations must"),
        (lambda: ppo(GraphTuner(), lambda g: door(), generator=torch.Generator(), team=2), "team must be a number"),
        (lambda: descend(GraphTuner(), lambda g: door(), generator=torch.Generator(), horizon=7), "multiple of every"),
        (lambda: rewards(rollout(door(), constant(1), steps=5), team=-1), "team must be a number"),
        (lambda: approach_limit(torch.tensor([0.2]), 0.3, 1.0), "distance must be at least reach"),
        (lambda: approach_limit(torch.tensor([0.2]), 0.0, 1.0), "distance must be at least reach"),
        (lambda: braking_threshold(0, 1), "speed must be positive"),
        (lambda: engagement_gap(1, (0, 1)), "poles must be positive"),
        (lambda: simulate_braking(torch.ones(1, 2), dt=0), "dt must be positive"),
    ],
)
def test_calls_name_the_argument(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize(
    ("zeta", "words"),
    [
        (torch.ones(2, 2, 3, dtype=F64), r"zeta must have shape \[2, 2, 2\]"),
        (torch.ones(2, 2, dtype=F64), r"zeta must have shape \[2, 2, 2\]"),
        ((torch.ones(2, 2, 2, dtype=F64), torch.ones(2, 2, 3, dtype=F64)), "zeta must be a pair of shapes"),
        (-torch.ones(2, 2, 2, dtype=F64), "zeta must be finite and not negative"),
        (torch.full((2, 2, 2), math.nan, dtype=F64), "zeta must be finite and not negative"),
        (torch.full((2, 2, 2), math.inf, dtype=F64), "zeta must be finite and not negative"),
    ],
)
def test_strengths_that_do_not_fit(zeta, words):
    rule = SafetyFilter()
    with pytest.raises(ValueError, match=words):
        filtered_control(door(), initial_state(door(), rule), zeta, rule)
    with pytest.raises(ValueError, match=words):
        rollout(door(), lambda a, state: zeta)


def test_constants_that_do_not_fit():
    with pytest.raises(ValueError, match=r"must fit \[batch, agents\] = \(2, 2\), got shapes"):
        rollout(door(), constant(torch.ones(3), 1.0))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_observations_that_are_not_numbers(value):
    a, rule = door(), SafetyFilter()
    state = initial_state(a, rule)
    lost = state._replace(position=state.position.clone())
    lost.position[1, 0, 1] = value
    with pytest.raises(ValueError, match="position must be finite everywhere"):
        advance(a, lost, torch.ones(2, 2, 2, dtype=F64), rule)
    net = GraphTuner()
    with pytest.raises(ValueError, match="observation node must be finite everywhere"):
        net(a, lost)
    with pytest.raises(ValueError, match="observation node must be finite everywhere"):
        net.network(observe(a, state._replace(velocity=lost.position)))


def test_a_left_out_neighbour_must_be_out_of_reach():
    a = arena(
        torch.tensor([[[0.0, 0], [0.4, 0], [-0.4, 0]]], dtype=F64),
        torch.tensor([[[5.0, 0], [6, 0], [7, 0]]], dtype=F64),
    )
    rule = SafetyFilter(nearest=1)
    with pytest.raises(ValueError, match="nearest=1 leaves out a neighbour"):
        barrier_rows(a, initial_state(a, rule), torch.ones(1, 3, 2, dtype=F64), rule)
    far = SafetyFilter(nearest=1, dt=0.001)
    assert barrier_rows(a, initial_state(a, far), torch.ones(1, 3, 2, dtype=F64), far)[1].shape == (1, 3, 1)


def test_an_infeasible_problem_stands_still_and_is_counted():
    """Full budget: two others rush in from both sides faster than any control yields."""
    a = arena(
        torch.tensor([[[0.0, 0], [0.31, 0], [-0.31, 0]]], dtype=F64),
        torch.tensor([[[0.0, 2], [-1, 0.0], [1, 0]]], dtype=F64),
    )
    rule = SafetyFilter(mode="full")
    velocity = torch.tensor([[[0.0, 0], [-1, 0], [1, 0]]], dtype=F64)
    state = AgentState(a.start, velocity, torch.zeros(1, 3, dtype=torch.bool), 0)
    u, feasible = filtered_control(a, state, torch.ones(1, 3, 2, dtype=F64), rule)
    assert not feasible[0, 0]
    assert u[0, 0].tolist() == [0, 0]
    assert filtered_control(a, state, torch.ones(1, 3, 2, dtype=F64), SafetyFilter())[1].all()
    drive = rollout(a, constant(10.0), rule, steps=30)
    assert navigation(drive).infeasible.item() == (~drive.feasible).sum() > 0


def test_one_agent_works_in_everything():
    g = torch.Generator().manual_seed(0)
    net = GraphTuner(generator=g)
    a = doorway(4, sigma=0.01, agents=1, generator=g, deadline=150)
    ppo(net, lambda g: a, generator=g, iterations=1, epochs=1)
    descend(net, lambda g: a, generator=g, iterations=1)
    free = arena(torch.zeros(1, 1, 2, dtype=F64), torch.ones(1, 1, 2, dtype=F64))
    for x in (a, free):
        found = navigation(rollout(x, net.sampler(g), SafetyFilter(mode="full"), every=5))
        assert found.success.all()
