"""The graph network: what it may know, whom it may confuse, and for how many it works."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gated.online_cbf import AgentState, GraphTuner, Neighbourhood, arena, doorway, join, observe, rollout

F64 = torch.float64


def crowd(agents: int, obstacles: int = 2, batch: int = 3, seed: int = 0):
    """Nobody overlaps: everybody stands on a place of a grid, with velocities."""
    g = torch.Generator().manual_seed(seed)
    side = 0.5 * torch.arange(4, dtype=F64)
    spots = torch.cartesian_prod(side, side)
    place = torch.stack([spots[torch.randperm(16, generator=g)[: agents + obstacles]] for _ in range(batch)])
    place = place + 0.1 * torch.rand(place.shape, generator=g, dtype=F64)
    goal = -2 - torch.rand(batch, agents, 2, generator=g, dtype=F64)
    a = arena(place[:, :agents], goal, 0.1, place[:, agents:], 0.15)
    velocity = torch.randn(batch, agents, 2, generator=g, dtype=F64)
    return a, AgentState(a.start, velocity, torch.zeros(batch, agents, dtype=torch.bool), 0)


def tuner(seed: int = 0, **settings) -> GraphTuner:
    net = GraphTuner(generator=torch.Generator().manual_seed(seed), communication=1.2, sensing=0.8, **settings)
    net.network.head[-1].weight.data.mul_(100)  # as untrained all answers are nearly alike
    return net.double()


@pytest.mark.parametrize("agents", [1, 2, 4, 7])
@pytest.mark.parametrize("obstacles", [0, 2])
def test_one_size_for_any_number(agents, obstacles):
    a, state = crowd(agents, obstacles)
    zeta = tuner()(a, state)
    assert zeta.shape == (3, agents, 2) and zeta.dtype == F64
    assert ((zeta > 0.5) & (zeta < 19)).all()


@given(st.permutations(range(5)), st.floats(-50, 50), st.floats(-50, 50))
def test_order_and_place_do_not_matter(order, x, y):
    a, state = crowd(5)
    net, shift = tuner(), torch.tensor([x, y], dtype=F64)
    zeta = net(a, state)
    moved = arena(a.start[:, order] + shift, a.goal[:, order] + shift, 0.1, a.obstacle.flip(1) + shift, 0.15)
    there = AgentState(moved.start, state.velocity[:, order], state.arrived, 7)
    assert torch.allclose(net(moved, there), zeta[:, order], atol=1e-8)


def test_observations_by_hand():
    a, state = crowd(4)
    seen = observe(a, state, communication=0.9, sensing=0.7)
    p, v = state.position, state.velocity
    for i in range(4):
        assert torch.equal(seen.node[1, i], torch.cat([a.goal[1, i] - p[1, i], v[1, i]]))
        for j in range(4):
            way = [(a.goal[1, k] - p[1, k]).norm() for k in (i, j)]
            h = (p[1, i] - p[1, j]).square().sum() - 0.04
            last = torch.stack([h, way[0] - way[1], torch.tanh(50 * (way[0] - way[1]))])
            assert torch.allclose(seen.other[1, i, j], torch.cat([p[1, j] - p[1, i], v[1, j] - v[1, i], last]))
            assert seen.sees_other[1, i, j] == (i != j and (p[1, i] - p[1, j]).norm() <= 0.9)
        for o in range(2):
            delta = a.obstacle[1, o] - p[1, i]
            h = delta.square().sum() - 0.0625
            assert torch.allclose(seen.obstacle[1, i, o], torch.cat([delta, h[None]]))
            assert seen.sees_obstacle[1, i, o] == (delta.norm() <= 0.7)


def test_whoever_is_out_of_sight_changes_nothing():
    a, state = crowd(5)
    net = tuner()
    zeta = net(a, state)
    i, far = next((i, j) for i in range(5) for j in range(5) if (a.start[0, i] - a.start[0, j]).norm() > 1.2)
    velocity = state.velocity.clone()
    velocity[0, far] += 1
    after = net(a, state._replace(velocity=velocity))
    assert torch.equal(after[0, i], zeta[0, i])
    assert not torch.equal(after[0, far], zeta[0, far])


def test_ablations_see_what_they_should():
    a, state = crowd(4)
    velocity = state.velocity.clone()
    velocity[:, 0] += 1
    other_place = arena(a.start, a.goal, 0.1, a.obstacle + 0.01, 0.15)
    for sees in (("self", "others"), ("self", "obstacles"), ("self",), ()):
        net = tuner(sees=sees)
        zeta = net(a, state)
        after = net(a, state._replace(velocity=velocity))
        assert torch.equal(after[:, 0], zeta[:, 0]) == (not sees)
        assert torch.equal(after[:, 1:], zeta[:, 1:]) == ("others" not in sees)
        assert torch.equal(net(other_place, state), zeta) == ("obstacles" not in sees)
    assert (zeta == zeta[0, 0]).all()


def test_untrained_it_is_nearly_the_constant_it_starts_from():
    a, state = crowd(4)
    zeta = GraphTuner(start=3.0, generator=torch.Generator().manual_seed(0))(a, state)
    assert (zeta - 3).abs().max() < 0.2


def test_draws_have_the_density_they_claim():
    net = tuner()
    a, state = crowd(4)
    seen = net.observe(a, state)
    y, density = net.draw(seen, torch.Generator().manual_seed(0))
    normal = torch.distributions.Normal(net.network(seen), net.log_std.exp())
    assert torch.allclose(density, normal.log_prob(y).sum(-1))
    many = torch.stack([net.draw(seen, g)[0] for g in [torch.Generator().manual_seed(1)] for _ in range(2000)])
    assert (many.mean(0) - net.network(seen)).abs().max() < 0.08
    assert (many.std(0) - net.log_std.exp()).abs().max() < 0.06
    first, again = (net.sampler(torch.Generator().manual_seed(3))(a, state) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, net(a, state))


def test_absent_agents_are_not_seen():
    parts = [doorway(2, sigma=0.02, agents=n, generator=torch.Generator().manual_seed(n)) for n in (2, 4)]
    net = tuner()
    drives = [rollout(x, net, steps=20, every=5).position for x in (parts[0], join(parts))]
    assert torch.allclose(drives[0], drives[1][:, :2, :2], atol=1e-10)


def test_a_critic_is_the_same_network_with_one_number():
    a, state = crowd(3)
    value = Neighbourhood(1, width=8).double()(observe(a, state))
    assert value.shape == (3, 3, 1)
    value.sum().backward()
