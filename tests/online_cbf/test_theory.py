"""Closed forms beside simulations of them."""

import math

import pytest
import torch

from gated.online_cbf import SafetyFilter, arena, constant, filtered_control, initial_state, rollout
from gated.online_cbf.theory import (
    approach_limit,
    braking_threshold,
    engagement_gap,
    peak_deceleration,
    simulate_braking,
    straight_approach,
    unconstrained_speed,
)

F64 = torch.float64


def towards_an_obstacle(distance: torch.Tensor, others: bool = False):
    """Agents left of a disc of radius 0.2 at the origin that want through it."""
    start = torch.stack([-distance, 0 * distance], -1)[:, None]
    middle = torch.zeros(len(distance), 1, 2, dtype=F64)
    goal = torch.tensor([9.0, 0.0], dtype=F64).expand(len(distance), 1, 2)
    if others:
        return arena(torch.cat([start, middle], 1), torch.cat([goal, middle], 1), 0.15)
    return arena(start, goal, 0.15, middle, 0.2)


@pytest.mark.parametrize("eta", [1, 3])
@pytest.mark.parametrize("objective", ["clf", "nominal"])
def test_the_filter_closes_in_at_the_limit(eta, objective):
    distance = torch.linspace(0.36, 0.9, 10, dtype=F64)
    rule = SafetyFilter(eta=eta, objective=objective, dt=0.01)
    for others, reach, share in ((False, 0.35, 1.0), (True, 0.3, 0.5)):
        a = towards_an_obstacle(distance, others)
        u, _ = filtered_control(a, initial_state(a, rule), torch.ones(10, a.agents, 2, dtype=F64), rule)
        limit = approach_limit(distance, reach, 1.0, eta=eta, share=share, dt=rule.dt)
        assert torch.allclose(u[:, 0, 0], limit.clamp_max(1), atol=1e-12)


def test_a_straight_approach_decays_exponentially():
    zeta, distance = 0.8, torch.tensor([1.0], dtype=F64)
    errors = []
    for dt in (0.02, 0.01):
        a = towards_an_obstacle(distance)
        drive = rollout(a, constant(zeta), SafetyFilter(dt=dt), steps=round(2 / dt))
        h = drive.position[:, 0, 0].square().sum(-1) - 0.35**2
        time = dt * torch.arange(len(h), dtype=F64)
        assert (h >= h[0] * (1 - zeta * dt) ** (time / dt) - 1e-15).all()
        errors.append((h - straight_approach(time, 1.0, 0.35, zeta)).abs().max())
    assert errors[1] < 3e-3
    assert 1.8 < errors[0] / errors[1] < 2.2  # first order in dt


def test_speed_near_the_goal_is_of_third_order():
    r = torch.tensor([0.02, 0.1], dtype=F64)
    speed = unconstrained_speed(r, epsilon=2.0, xi=10.0)
    assert torch.allclose(speed, torch.tensor([0.0003, 0.0286], dtype=F64), atol=5e-5)
    far = torch.tensor([100.0], dtype=F64)
    assert torch.allclose(unconstrained_speed(far, epsilon=2.0, xi=10.0), far, rtol=1e-4)  # epsilon r / 2


@pytest.mark.parametrize("poles", [(2.0, 2.0), (1.0, 3.0), (3.0, 1.0), (2.0, 2.0001), (0.5, 4.0)])
def test_peak_deceleration_is_what_the_simulation_demands(poles):
    run = simulate_braking(torch.tensor([poles], dtype=F64), speed=1.3, brake=9.0)
    assert run.demand.item() == pytest.approx(peak_deceleration(1.3, poles), rel=2e-3)
    assert run.feasible.all() and run.gap.item() > 0
    low, high = sorted(poles)
    if high - low > 1e-3:
        r = low / high
        bracket = r ** (low / (high - low)) - r ** (high / (high - low))
        assert peak_deceleration(1.3, poles) == pytest.approx(1.3 * low * high / (high - low) * bracket)


def test_equal_poles_brake_with_v_alpha_over_e():
    assert peak_deceleration(2.0, (3.0, 3.0)) == pytest.approx(6 / math.e)
    assert peak_deceleration(2.0, (3.0, 3.0 + 1e-9)) == pytest.approx(6 / math.e)
    assert engagement_gap(2.0, (2.0, 4.0)) == 1.5


def test_brakes_fail_above_e_a_over_v():
    """Feasible at 2.65 and 2.70, not at 2.73 and 2.80: e lies between."""
    alpha = torch.tensor([2.65, 2.70, 2.73, 2.80], dtype=F64)
    run = simulate_braking(alpha[:, None].expand(4, 2), speed=1.0, brake=1.0)
    assert run.feasible.tolist() == [True, True, False, False]
    assert ((alpha < braking_threshold(1.0, 1.0)) == run.feasible).all()
    # no filter to speak of: the full brake over the whole way, v^2 / 2a, after one step that saw nothing yet
    late = simulate_braking(torch.tensor([[1000.0, 1000.0]], dtype=F64), speed=1.0, brake=0.5, dt=0.01)
    assert late.gap.item() == pytest.approx(0.002 - 0.01 - 1.0, abs=1e-12)
    hard = simulate_braking(torch.tensor([[30.0, 30.0]], dtype=F64))
    assert hard.gap.item() < 0 and not hard.feasible.any()
