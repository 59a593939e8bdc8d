"""The filter against other solvers, by hand, in its limits, and in the mirror."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from gated.online_cbf import (
    AgentState,
    SafetyFilter,
    arena,
    barrier_rows,
    class_k,
    closest,
    constant,
    doorway,
    filtered_control,
    initial_state,
    keep_right,
    nearer_first,
    rollout,
)

F64 = torch.float64


def scene(batch: int = 1, agents: int = 3, seed: int = 0):
    """Agents on a jittered circle, an obstacle in the middle, velocities of the step before."""
    g = torch.Generator().manual_seed(seed)
    angle = torch.arange(agents, dtype=F64) * 2 * torch.pi / agents + 0.3
    ring = torch.stack([angle.cos(), angle.sin()], -1)
    start = 0.6 * ring + 0.1 * torch.rand(batch, agents, 2, generator=g, dtype=F64)
    goal = -1.5 * ring + 0.1 * torch.rand(batch, agents, 2, generator=g, dtype=F64)
    a = arena(start, goal, 0.15, torch.zeros(batch, 1, 2, dtype=F64), 0.2)
    velocity = torch.randn(batch, agents, 2, generator=g, dtype=F64).clamp(-1, 1)
    zeta = 1 + 4 * torch.rand(batch, agents, 2, generator=g, dtype=F64)
    return a, AgentState(start, velocity, torch.zeros(batch, agents, dtype=torch.bool), 0), zeta


@pytest.mark.parametrize("mode", ["share", "full"])
@pytest.mark.parametrize("eta", [1, 3])
def test_rows_are_the_conditions_written_out(mode, eta):
    a, state, zeta = scene(2)
    rule = SafetyFilter(mode=mode, eta=eta)
    normal, bound = barrier_rows(a, state, zeta, rule)
    p, v = state.position, state.velocity
    for e in range(2):
        for i in range(3):
            others = [j for j in range(3) if j != i]
            for row, j in enumerate([*others, "obstacle"]):
                at = a.obstacle[e, 0] if j == "obstacle" else p[e, j]
                reach = 0.35 if j == "obstacle" else 0.3
                delta = p[e, i] - at
                h = delta.square().sum() - reach**2
                alpha = min(zeta[e, i, int(j == "obstacle")] * h**eta, h / rule.dt)
                # dh/dt + alpha >= 0, each side divided by 2 |delta|
                right = -0.5 * alpha if mode == "share" and j != "obstacle" else -alpha
                if mode == "full" and j != "obstacle":
                    right = right + 2 * delta @ v[e, j]
                assert torch.allclose(normal[e, i, row], delta / delta.norm(), atol=1e-15)
                assert torch.allclose(bound[e, i, row], right / (2 * delta.norm()), atol=1e-14)


def test_strengths_for_each_neighbour_go_to_their_rows():
    a, state, _ = scene()
    agents, obstacles = torch.arange(1.0, 10.0, dtype=F64).reshape(1, 3, 3), torch.tensor([[[10.0], [11], [12]]])
    _, bound = barrier_rows(a, state, (agents, obstacles.to(F64)), SafetyFilter())
    for i in range(3):
        others = [j for j in range(3) if j != i]
        for row, zeta in enumerate([*agents[0, i, others].tolist(), float(obstacles[0, i, 0])]):
            alike = torch.full((1, 3, 2), zeta, dtype=F64)
            assert bound[0, i, row] == barrier_rows(a, state, alike, SafetyFilter())[1][0, i, row]


@pytest.mark.parametrize("objective", ["clf", "nominal"])
@pytest.mark.parametrize("mode", ["share", "full"])
def test_controls_are_those_of_a_general_solver(objective, mode):
    a, state, zeta = scene(batch=6, seed=3)
    rule = SafetyFilter(objective=objective, mode=mode)
    u, feasible = filtered_control(a, state, zeta, rule)
    normal, bound = (x.numpy() for x in barrier_rows(a, state, zeta, rule))
    compared = 0
    for e in range(6):
        for i in range(3):
            way = (a.goal - state.position)[e, i].numpy()
            if objective == "nominal":
                wish = np.clip(rule.gain * way, -1, 1)

                def cost(x, wish=wish):
                    return float(((x[:2] - wish) ** 2).sum() + x[2] ** 2)

                rows = []
            else:

                def cost(x):
                    return float((x[:2] ** 2).sum() + rule.xi * x[2] ** 2)

                # slack - (c.u + d) >= 0
                rows = [lambda x, way=way: x[2] + 2 * way @ x[:2] - rule.epsilon * (way @ way)]
            rows += [lambda x, n=n, b=b: n @ x[:2] - b for n, b in zip(normal[e, i], bound[e, i], strict=True)]
            answer = minimize(
                cost,
                np.array([0.01, 0.01, 3.0]),
                method="SLSQP",
                bounds=[(-1, 1), (-1, 1), (None, None)],
                constraints=[{"type": "ineq", "fun": row} for row in rows],
                options={"ftol": 1e-14, "maxiter": 300},
            )
            if feasible[e, i]:
                compared += 1
                assert np.abs(answer.x[:2] - u[e, i].numpy()).max() < 1e-5
            else:
                assert mode == "full"
                assert not answer.success
                assert torch.equal(u[e, i], torch.zeros(2, dtype=F64))
    assert compared >= 9


def test_class_k_is_what_it_says():
    h = torch.tensor([-0.1, 0.0, 0.2, 2.0], dtype=F64)
    assert torch.allclose(class_k(h, 3.0), 3 * h)
    assert torch.allclose(class_k(h, 3.0, 3), 3 * h**3)
    assert torch.allclose(class_k(h, 3.0, 3, 0.1), torch.tensor([-1.0, 0, 0.024, 20.0], dtype=F64))
    assert all(torch.equal(class_k(h, 3.0, eta).sign(), h.sign()) for eta in (1, 3, 5))


@pytest.mark.parametrize(("eta", "kind"), [(1, "obstacle"), (3, "obstacle"), (1, "agent")])
def test_the_strength_moves_the_control_as_the_closed_form_says(eta, kind):
    """One active row, the wish not fulfilled: du/dzeta = -kappa h^eta H^-1 a / (a' H^-1 a), H = I + xi c c'."""
    start, goal = (
        torch.tensor([[[-0.8, 0.1], [0.0, 0.0]]], dtype=F64),
        torch.tensor([[[1.0, 0.2], [0.0, 0.0]]], dtype=F64),
    )
    if kind == "obstacle":
        a, kappa, reach = arena(start[:, :1], goal[:, :1], 0.15, start[:, 1:], 0.2), 1.0, 0.35
    else:
        a, kappa, reach = arena(start, goal, 0.15), 0.5, 0.3
    rule = SafetyFilter(eta=eta, xi=10.0, max_speed=50.0)  # no side of the box holds it
    state = initial_state(a, rule)
    zeta = torch.ones(1, a.agents, 2, dtype=F64, requires_grad=True)
    u = filtered_control(a, state, zeta, rule)[0][0, 0]
    rows = torch.stack([torch.autograd.grad(u[k], zeta, retain_graph=True)[0][0, 0] for k in range(2)])
    moved = rows[:, 1 if kind == "obstacle" else 0]
    delta = start[0, 0] - start[0, 1]
    h, n = delta @ delta - reach**2, 2 * delta
    c = 2 * (start - goal)[0, 0]
    inverse = torch.eye(2, dtype=F64) - rule.xi * torch.outer(c, c) / (1 + rule.xi * c @ c)
    expected = -kappa * h**eta * (inverse @ n) / (n @ inverse @ n)
    assert torch.allclose(moved, expected, atol=1e-12)
    assert moved.abs().max() > 0.01


@pytest.mark.parametrize("mode", ["share", "full"])
def test_gradients_of_controls(mode):
    a, state, zeta = scene(seed=5)
    rule = SafetyFilter(mode=mode)

    def control(position, velocity, zeta):
        return filtered_control(a, state._replace(position=position, velocity=velocity), zeta, rule)[0]

    inputs = [x.requires_grad_() for x in (state.position.clone(), 0.1 * state.velocity, zeta)]
    assert torch.autograd.gradcheck(control, inputs)


def test_without_strength_nobody_comes_nearer_to_anybody():
    a, _, _ = scene(batch=20, agents=4, seed=1)
    away = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=F64)[
        :, None
    ]  # two want out, two want in, and stay where they are
    a = arena(a.start, a.start * 2 * away, a.radius, a.obstacle, a.obstacle_radius)
    drive = rollout(a, constant(0.0), steps=30)
    discs = torch.cat([drive.position, a.obstacle.expand(31, 20, 1, 2)], 2)
    distance = torch.cdist(discs, discs)[:, :, :4]
    assert (distance.diff(dim=0) > -1e-9).all()
    assert drive.velocity[:, :, :2].abs().amax((0, 3)).min() > 0.1
    assert drive.velocity[:, :, 2:].abs().max() < 0.1


def test_beyond_one_over_dt_strength_changes_nothing():
    a, rule = doorway(8, sigma=0.03, generator=torch.Generator().manual_seed(0)), SafetyFilter()
    first, second = (rollout(a, constant(z), rule, steps=60) for z in (1 / rule.dt, 1e6))
    assert torch.allclose(first.position, second.position, atol=1e-9)
    a, state, zeta = scene(4)
    full = SafetyFilter(mode="full")
    first, second = (filtered_control(a, state, torch.full_like(zeta, z), full)[0] for z in (1 / full.dt, 1e6))
    assert torch.allclose(first, second, atol=1e-12)


def test_a_step_at_full_strength_just_touches_the_linearised_barrier():
    """zeta >= 1 / dt is the filter that looks one step ahead: h + dt dh/dt = 0 where the row holds the control."""
    rule = SafetyFilter(max_speed=10.0, epsilon=40.0, dt=0.1)
    a = arena(
        torch.tensor([[[-0.5, 0.0]]], dtype=F64),
        torch.tensor([[[3.0, 0.0]]], dtype=F64),
        0.1,
        torch.zeros(1, 1, 2, dtype=F64),
        0.2,
    )
    state = initial_state(a, rule)
    u, _ = filtered_control(a, state, torch.full((1, 1, 2), 99.0, dtype=F64), rule)
    h = 0.25 - 0.09
    assert torch.allclose(h + rule.dt * 2 * (state.position * u).sum(), torch.zeros((), dtype=F64), atol=1e-14)


def test_alone_an_agent_drives_as_the_wish_says_within_the_box():
    goal = torch.tensor([0.05, 0.1, 0.3, 1.0, 3.0], dtype=F64)
    a = arena(torch.zeros(5, 1, 2, dtype=F64), torch.stack([goal, 0 * goal], -1)[:, None])
    rule = SafetyFilter()
    u, _ = filtered_control(a, initial_state(a, rule), torch.ones(5, 1, 2, dtype=F64), rule)
    free = 2 * rule.xi * rule.epsilon * goal**3 / (1 + 4 * rule.xi * goal**2)
    assert torch.allclose(u[:, 0, 0], free.clamp(-1, 1), atol=1e-14)
    assert not u[:, 0, 1].any()
    none, _ = filtered_control(a, initial_state(a, rule), torch.ones(5, 1, 2, dtype=F64), SafetyFilter(xi=1e-12))
    assert none.abs().max() < 1e-8


def test_the_nearest_rows_are_among_all_rows():
    a, state, zeta = scene(agents=5)
    bound = barrier_rows(a, state, zeta, SafetyFilter(dt=0.01))[1]
    near, less = barrier_rows(a, state, zeta, SafetyFilter(dt=0.01, nearest=2))
    gap = torch.cdist(state.position, state.position)[0].fill_diagonal_(torch.inf)
    for i in range(5):
        others = [j for j in range(5) if j != i]
        expected = {others.index(j) for j in gap[i].argsort()[:2].tolist()} | {4}
        assert {bound[0, i].tolist().index(b) for b in less[0, i].tolist()} == expected
    assert near.shape == (1, 5, 3, 2)


ROTATION = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=F64)


@pytest.mark.parametrize("name", ["moved", "rotated", "mirrored", "permuted"])
@pytest.mark.parametrize("mode", ["share", "full"])
def test_whole_rollouts_have_the_symmetries_of_the_plane(name, mode):
    order = torch.tensor([2, 0, 1, 3])
    change = {
        "moved": lambda x: x + torch.tensor([3.0, -2.0], dtype=F64),
        "rotated": lambda x: x @ ROTATION,
        "mirrored": lambda x: x * torch.tensor([1.0, -1.0], dtype=F64),
        "permuted": lambda x: x,
    }[name]
    a = doorway(6, sigma=0.05, agents=4, gap=0.6, generator=torch.Generator().manual_seed(2))
    b = arena(change(a.start), change(a.goal), a.radius, change(a.obstacle), a.obstacle_radius, centre=change(a.centre))
    if name == "permuted":
        b = arena(a.start[:, order], a.goal[:, order], a.radius, a.obstacle, a.obstacle_radius)
    rule = SafetyFilter(mode=mode)
    first, second = (rollout(x, nearer_first(19, 4, 10), rule, steps=60).position for x in (a, b))
    expected = first[:, :, order] if name == "permuted" else change(first)
    assert torch.allclose(second, expected, atol=1e-12 if name in ("mirrored", "permuted") else 1e-9)


def test_mirrored_agents_stay_mirrored_and_jam():
    a = doorway(1, sigma=0.0)
    drive = rollout(a, constant(3.0, 10.0))
    flipped = drive.position[:, :, [1, 0]] * torch.tensor([1.0, -1.0], dtype=F64)
    assert (drive.position - flipped).abs().max() <= 1e-12
    assert (drive.arrival == -1).all()


def test_left_and_right_break_the_tie_of_a_mirror():
    """Permutation-equivariant, translation-invariant, deterministic: what two mirrored agents see is not the same."""
    drive = rollout(doorway(1, sigma=0.0), keep_right(19.0, 4.0, 10.0))
    assert (drive.arrival > 0).all()
    assert closest(drive.position, drive.arena)[1].min() >= -1e-9
