"""gated.moe.reinforcement against exact expectations, finite differences, batch least squares and Bayes' rule."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gated.moe.reinforcement import (
    Actions,
    MixturePolicy,
    MultiGoalBandit,
    RecursiveLeastSquares,
    frequency_loss,
    gumbel_action,
    pmoe_loss,
    responsibility,
    score_function_loss,
    switching_system,
)

HEIGHTS = torch.tensor([1.0, 0.9, 0.8, 0.7], dtype=torch.float64)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0) -> torch.Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def test_the_reward_by_hand():
    bandit = MultiGoalBandit(HEIGHTS, 0.4)
    state, action = torch.tensor([0.3, -0.8], dtype=torch.float64), normal(2, 3, 2)
    for n in range(2):
        for i in range(3):
            pay = []
            for j in range(4):
                angle = 2 * math.pi * j / 4 + float(state[n])
                gap = action[n, i] - torch.tensor([math.cos(angle), math.sin(angle)])
                pay.append(float(HEIGHTS[j]) * math.exp(-float(gap @ gap) / 0.32))
            assert bandit.pay(state, action)[n, i].tolist() == pytest.approx(pay)
            assert float(bandit.reward(state, action)[n, i]) == pytest.approx(max(pay))
    torch.testing.assert_close(bandit.reward(state, action[:, 0]), bandit.reward(state, action)[:, 0])


def test_goals_pay_their_heights_until_they_are_removed():
    bandit, state = MultiGoalBandit(HEIGHTS), torch.linspace(-1, 1, 5, dtype=torch.float64)
    torch.testing.assert_close(bandit.reward(state, bandit.goals(state)), HEIGHTS.expand(5, -1))
    left = bandit.without(2).reward(state, bandit.goals(state))
    assert (left[:, 2] < 0.1).all()
    torch.testing.assert_close(left[:, [0, 1, 3]], HEIGHTS[[0, 1, 3]].expand(5, -1))


def test_the_reward_is_differentiable():
    bandit, state = MultiGoalBandit(HEIGHTS), torch.tensor([0.2, 0.5], dtype=torch.float64)
    action = normal(2, 3, 2, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: bandit.reward(state, a), action)


def test_a_policy_draws_what_its_mean_and_spread_say():
    torch.manual_seed(0)
    policy = MixturePolicy(3, std=0.5).double()
    state = torch.zeros(20_000, dtype=torch.float64)
    out = policy(state, normal(20_000, 3, 2))
    torch.testing.assert_close(out.action.mean(0), out.mean[0], atol=0.02, rtol=0)
    torch.testing.assert_close(out.action.std(0), out.std[0], atol=0.02, rtol=0)
    still = policy(state[:1], torch.zeros(1, 3, 2, dtype=torch.float64))
    torch.testing.assert_close(still.action, still.mean)
    assert 0.1 < out.std.min() < out.std.max() < 1.5


def test_the_frequency_loss_teaches_how_often_a_component_is_best():
    """Its gradient is zero, in the mean, where w is the share of draws that each component wins."""
    value = torch.rand(3000, 3, generator=seeded(0), dtype=torch.float64) + torch.tensor([0.0, 0.2, 0.1])
    share = torch.bincount(value.argmax(1), minlength=3).double() / 3000  # float32 would miss the zero by 1e-8
    logits = share.log().requires_grad_()
    frequency_loss(logits.expand(3000, 3), value).mean().backward()
    assert logits.grad.abs().max() < 1e-9
    away = (logits.detach() + torch.tensor([0.3, 0.0, 0.0])).requires_grad_()
    frequency_loss(away.expand(3000, 3), value).mean().backward()
    assert away.grad[0] > 1e-3


def test_the_frequency_loss_by_hand_and_its_ties():
    logits = torch.tensor([[0.0, math.log(3.0)]])
    assert frequency_loss(logits, torch.tensor([[2.0, 1.0]])).item() == pytest.approx(0.75**2 * 2)
    assert frequency_loss(logits, torch.tensor([[1.0, 1.0]])).item() == pytest.approx(0.75**2 * 2)


def test_who_climbs():
    logits, value = normal(4, 3), normal(4, 3, seed=1)
    actions = Actions(logits, normal(4, 3, 2), normal(4, 3, 2).exp(), normal(4, 3, 2))
    for best_only in (False, True):
        v = value.clone().requires_grad_()
        pmoe_loss(actions, v, best_only=best_only).sum().backward()
        best = torch.nn.functional.one_hot(value.argmax(1), 3).double()
        torch.testing.assert_close(v.grad, -best if best_only else -torch.ones(4, 3, dtype=torch.float64))


def test_the_score_function_is_unbiased():
    """The gradient of its mean over choices is that of the exact expected reward sum_i w_i value_i."""
    logits, value = normal(1, 3).requires_grad_(), normal(1, 3, seed=1).requires_grad_()
    (torch.softmax(logits, -1) * value).sum().backward()
    exact = logits.grad, value.grad
    rows = 60_000
    many, values = (x.detach().expand(rows, 3).clone().requires_grad_() for x in (logits, value))
    choice = torch.multinomial(torch.softmax(logits.detach(), -1)[0], rows, True, generator=seeded(2))
    pair = torch.zeros(rows, 3, 2, dtype=torch.float64)
    score_function_loss(Actions(many, pair, pair, pair), values, choice).mean().backward()
    torch.testing.assert_close(-many.grad.sum(0, keepdim=True), exact[0], atol=0.01, rtol=0)
    torch.testing.assert_close(-values.grad.sum(0, keepdim=True), exact[1], atol=0.01, rtol=0)


def test_the_score_functions_baseline_leaves_out_the_own_row():
    pair = torch.zeros(3, 2, 2)
    logits = torch.zeros(3, 2, requires_grad=True)
    value, choice = torch.tensor([[1.0, 9], [9, 4], [7, 9]]), torch.tensor([0, 1, 0])
    score_function_loss(Actions(logits, pair, pair, pair), value, choice).sum().backward()
    expected = [(1 - (4 + 7) / 2) / 2, (4 - (1 + 7) / 2) / 2, (7 - (1 + 4) / 2) / 2]
    chosen = logits.grad.gather(1, choice[:, None])[:, 0]
    torch.testing.assert_close(-chosen, torch.tensor(expected))


def test_a_gumbel_action_is_one_of_the_drawn_with_the_gates_frequency():
    logits = torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64).expand(20_000, 3).clone().requires_grad_()
    action = torch.tensor([[0.0, 1], [2, 3], [4, 5]], dtype=torch.float64).expand(20_000, 3, 2)
    out = gumbel_action(Actions(logits, action, action, action), 0.7, seeded(0))
    which = (out[:, 0] / 2).round().long()
    torch.testing.assert_close(out, action[0][which])
    share = torch.bincount(which, minlength=3) / 20_000
    torch.testing.assert_close(share.double(), torch.softmax(logits[0].detach(), -1), atol=0.015, rtol=0)
    out.sum().backward()
    assert (logits.grad != 0).any()


@given(
    steps=st.integers(1, 25),
    forget=st.sampled_from([1.0, 0.9, 0.5]),
    prior=st.sampled_from([1e-3, 1.0]),
    seed=st.integers(0, 50),
)
def test_recursive_is_batch_least_squares(steps, forget, prior, seed):
    """The minimiser of its docstring's objective, from the normal equations, for two batches."""
    x, y, w = (
        normal(steps, 2, 3, seed=seed),
        normal(steps, 2, 2, seed=seed + 1),
        normal(steps, 2, seed=seed + 2).square(),
    )
    w[::3] = 0
    start = normal(2, 2, 3, seed=seed + 3)
    rls = RecursiveLeastSquares(start, prior, forget)
    for t in range(steps):
        rls.step(x[t], y[t], w[t])
    for b in range(2):
        fade = forget ** torch.arange(steps - 1, -1, -1) * w[:, b]
        gram = (x[:, b] * fade[:, None]).T @ x[:, b] + prior * forget**steps * torch.eye(3)
        moment = (y[:, b] * fade[:, None]).T @ x[:, b] + prior * forget**steps * start[b]
        expected = torch.from_numpy(np.linalg.solve(gram.numpy(), moment.numpy().T).T)
        torch.testing.assert_close(rls.A[b], expected, atol=1e-5, rtol=1e-5)


def test_forgetting_stays_stable_over_thousands_of_steps():
    """Without symmetry of P, rounding errors grow by 1 / forget a step: by 1e68 here."""
    x, y, forget = normal(1500, 1, 2), normal(1500, 1, 2, seed=1), 0.9
    rls = RecursiveLeastSquares(torch.zeros(1, 2, 2, dtype=torch.float64), forget=forget)
    for t in range(1500):
        rls.step(x[t], y[t], torch.ones(1, dtype=torch.float64))
    fade = (forget ** torch.arange(1499, -1, -1).double()).sqrt()[:, None]
    expected = torch.linalg.lstsq(fade * x[:, 0], fade * y[:, 0]).solution.T
    torch.testing.assert_close(rls.A[0], expected, atol=1e-9, rtol=1e-9)


def test_least_squares_finds_noiseless_dynamics():
    s = switching_system(1, 40, seeded(0), noise=0, dwell=10**9)
    rls = RecursiveLeastSquares(torch.zeros(1, 2, 2, dtype=torch.float64), 1e-9)
    for t in range(40):
        rls.step(s.x[:, t], s.x[:, t + 1], torch.ones(1, dtype=torch.float64))
    torch.testing.assert_close(rls.A[0], s.dynamics[s.mode[0, 0]], atol=1e-7, rtol=0)


@given(sigma=st.floats(0.05, 5), seed=st.integers(0, 50))
def test_responsibility_is_bayes_rule_for_equal_gaussians(sigma, seed):
    prediction, x = normal(4, 3, 2, seed=seed), normal(4, 1, 2, seed=seed + 1)
    likelihood = torch.distributions.Normal(prediction, sigma).log_prob(x).sum(-1).exp()
    posterior = responsibility((prediction - x).square().sum(-1), sigma)
    if likelihood.sum(-1).min() > 1e-200:
        torch.testing.assert_close(posterior, likelihood / likelihood.sum(-1, keepdim=True), atol=1e-9, rtol=1e-6)


def test_the_system_switches_and_obeys_its_modes():
    s = switching_system(40, 500, seeded(1), dwell=20, noise=0.1)
    step = (s.dynamics[s.mode] @ s.x[:, :-1, :, None])[..., 0]
    shock = s.x[:, 1:] - step
    assert shock.std().item() == pytest.approx(0.1, rel=0.03)
    assert abs(shock.mean()) < 0.003
    changes = (s.mode[:, 1:] != s.mode[:, :-1]).double().mean().item()
    assert changes == pytest.approx(2 / 3 / 20, rel=0.1)  # one draw in three picks the same mode again
    share = torch.bincount(s.mode.flatten(), minlength=3) / s.mode.numel()
    assert (share - 1 / 3).abs().max() < 0.06
    for A, angle in zip(s.dynamics, (0.3, -0.3, 1.2), strict=True):
        eigenvalue = np.linalg.eigvals(A.numpy())
        assert np.abs(eigenvalue) == pytest.approx([0.98, 0.98])
        assert abs(np.angle(eigenvalue[0])) == pytest.approx(abs(angle))
        assert float(A[1, 0]) == pytest.approx(0.98 * math.sin(angle))


def test_pmoe_learns_to_earn():
    torch.manual_seed(0)
    bandit, policy, generator = MultiGoalBandit(HEIGHTS.float()), MixturePolicy(4), seeded(0)
    optimiser = torch.optim.Adam(policy.parameters(), 1e-2)

    def draw(rows):
        return 2 * torch.rand(rows, generator=generator) - 1, torch.randn(rows, 4, 2, generator=generator)

    def value():
        state, noise = draw(2000)
        actions = policy(state, noise)
        return (torch.softmax(actions.logits, -1) * bandit.reward(state, actions.action)).sum(-1).mean().item()

    before = value()
    for _ in range(200):
        state, noise = draw(64)
        actions = policy(state, noise)
        optimiser.zero_grad()
        pmoe_loss(actions, bandit.reward(state, actions.action)).mean().backward()
        optimiser.step()
    assert before < 0.4
    assert value() > 0.7
