"""Who sets what: rules by hand, chance, constants, and what a mirror does to them."""

import torch

from gated.online_cbf import (
    AgentState,
    Arena,
    GraphTuner,
    SafetyFilter,
    arena,
    constant,
    crossing,
    doorway,
    initial_state,
    keep_right,
    nearer_first,
    random_strengths,
    rollout,
)

F64 = torch.float64
FLIP = torch.tensor([1.0, -1.0], dtype=F64)


def at(*places: tuple[float, float]) -> tuple[Arena, AgentState]:
    """Agents of a doorway, their goals to the right, moved to these places."""
    a = doorway(1, sigma=0.0, agents=len(places))
    state = initial_state(a, SafetyFilter())
    return a, state._replace(position=torch.tensor([places], dtype=F64))


def test_the_nearer_one_and_whoever_is_through_go_first():
    a, state = at((-0.5, 0.0), (-0.9, 0.1), (0.6, 0.0), (1.2, 0.0))
    agents, obstacles = nearer_first(19, 4, 10)(a, state)
    order = [3, 2, 0, 1]  # the farthest behind the door, then the other one, then by distance
    for i in range(4):
        for j in range(4):
            first = order.index(i) < order.index(j)
            assert i == j or agents[0, i, j] == (19 if first else 4)
    assert (obstacles == 10).all() and obstacles.shape == (1, 4, 2)
    a, state = at((-0.5, 0.4), (-0.5, -0.4))
    assert (nearer_first(19, 4, 10)(a, state)[0] == 4).all()


def test_the_right_has_the_way():
    a = crossing(1, agents=2, sigma=0.0)  # one drives to the right, one up: that one has the other on its left
    agents, _ = keep_right(19, 4, 10)(a, initial_state(a, SafetyFilter()))
    assert agents[0, 0, 1] == 4 and agents[0, 1, 0] == 19
    assert (rollout(a, keep_right(19, 4, 10)).arrival > 0).all()


def test_random_strengths_are_drawn_when_they_should():
    a = doorway(2000, sigma=0.0)
    state = initial_state(a, SafetyFilter())
    policy = random_strengths(1, 19, 2, generator=torch.Generator().manual_seed(0), redraw=10)
    at_start = policy(a, state)
    assert (at_start[..., 1] == 2).all()
    assert at_start[..., 0].min() >= 1 and at_start[..., 0].max() <= 19
    assert (at_start[..., 0] < 19**0.5).double().mean() - 0.5 < 0.03
    assert torch.equal(policy(a, state._replace(step=9)), at_start)
    assert not torch.equal(policy(a, state._replace(step=10)), at_start)
    once = random_strengths(1, 19, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(once(a, state), at_start)
    assert torch.equal(once(a, state._replace(step=10)), at_start)
    assert not torch.equal(once(a, state), at_start)  # the next episode


def test_constants_by_number_identity_and_problem():
    a, state = at((-1.0, 0.5), (-1.0, -0.5))
    a, state = a.repeat(3), state._replace(position=state.position.repeat(3, 1, 1))
    assert (constant(2)(a, state) == 2).all()
    assert constant(torch.tensor([1.0, 5.0]), 3)(a, state)[2].tolist() == [[1, 3], [5, 3]]
    by_problem = constant(torch.tensor([[1.0], [2.0], [3.0]]))(a, state)
    assert by_problem[:, 1].tolist() == [[1, 1], [2, 2], [3, 3]]


def test_only_a_policy_that_ignores_left_and_right_cannot_break_a_mirror():
    """The network sees a neighbour on its left or on its right. Averaged over the mirror it cannot, and jams."""
    net = GraphTuner(generator=torch.Generator().manual_seed(0))
    net.network.head[-1].weight.data.mul_(100)
    a = doorway(1, sigma=0.0, deadline=120)

    def mirrored(x: Arena) -> Arena:
        return arena(x.start * FLIP, x.goal * FLIP, x.radius, x.obstacle * FLIP, x.obstacle_radius)

    def blind(x: Arena, state: AgentState) -> torch.Tensor:
        there = state._replace(position=state.position * FLIP, velocity=state.velocity * FLIP)
        return (net(x, state) + net(mirrored(x), there)) / 2

    with torch.no_grad():
        first, second = (rollout(a, policy, every=5) for policy in (net, blind))
    assert (first.strength[0, 0, 0] - first.strength[0, 0, 1]).abs().max() > 0.5
    assert (second.strength[:, 0, 0] - second.strength[:, 0, 1]).abs().max() < 1e-6
    assert (second.arrival == -1).all()
    assert (first.position[:, 0, 0] - first.position[:, 0, 1] * FLIP).abs().max() > 0.1
