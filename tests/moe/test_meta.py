"""gated.moe.meta against densities written out, exchangeable points, planted clusters and normal equations."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gated.moe.meta import (
    FAMILIES,
    MixtureCNP,
    evaluate,
    expert_nll,
    least_squares_gate,
    mixture_nll,
    sample_functions,
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def model(experts=3, **options) -> MixtureCNP:
    torch.manual_seed(0)
    return MixtureCNP(experts, **options).double()


def some(functions=5, context=6, target=4, seed=0):
    f = sample_functions(functions, context, target, seeded(seed))
    return f._replace(**{name: getattr(f, name).double() for name in f._fields[:4]})


def test_families_at_single_points():
    family = torch.arange(4)
    a, c = torch.full((4,), 1.5), torch.full((4,), -0.5)
    x = torch.tensor([[-1.0, -0.5, 0.25, 1.0]]).expand(4, -1)
    y = evaluate(family, a, c, x)
    for row, name in zip(y, FAMILIES, strict=True):
        for value, at in zip(row.tolist(), x[0].tolist(), strict=True):
            z = at + 0.5
            known = {
                "sinusoid": 1.5 * math.sin(2 * z),
                "line": 1.5 * z,
                "sawtooth": 3 * (z - math.floor(z)) - 1.5,
                "step": 1.5 if z >= 0 else -1.5,
            }[name]
            assert value == pytest.approx(known, abs=1e-6)


def test_the_samples_have_the_documented_distribution():
    f = sample_functions(4000, 5, 5, seeded(0))
    share = torch.bincount(f.family, minlength=4) / 4000
    assert (share - 0.25).abs().max() < 4 * math.sqrt(0.25 * 0.75 / 4000)
    x = torch.cat([f.x_context, f.x_target], 1)
    assert -2 <= x.min() < -1.99 < 1.99 < x.max() <= 2
    steps = torch.cat([f.y_context, f.y_target], 1)[f.family == 3].abs()
    assert steps.min() > 0.3
    assert steps.max() < 1.7
    assert steps.mean().item() == pytest.approx(1.0, abs=0.03)
    spread = (steps - steps.mean(1, keepdim=True)).std() * math.sqrt(10 / 9)  # |y| of a step is a + noise
    assert spread.item() == pytest.approx(0.05, rel=0.05)
    quiet = sample_functions(50, 5, 5, seeded(0), noise=0)
    flat = quiet.y_context[quiet.family == 3].abs()
    torch.testing.assert_close(flat, flat[:, :1].expand_as(flat))


def test_the_mixture_density_by_hand():
    f = some()
    out = model()(f.x_context, f.y_context, f.x_target)
    density = torch.distributions.Normal(out.mean, out.std).log_prob(f.y_target[:, None]).exp().prod(-1)
    torch.testing.assert_close((-expert_nll(out, f.y_target)).exp(), density)
    torch.testing.assert_close(mixture_nll(out, f.y_target), -(out.log_weight.exp() * density).sum(1).log())
    torch.testing.assert_close(out.log_weight.exp().sum(1), torch.ones(5, dtype=torch.float64))


def test_the_likelihood_integrates_to_one():
    f = some(2, 4, 1)
    out = model()(f.x_context, f.y_context, f.x_target)
    grid = torch.linspace(-40, 40, 40001, dtype=torch.float64)
    nll = torch.stack([mixture_nll(out, torch.full((2, 1), float(y), dtype=torch.float64)) for y in grid[::8]])
    torch.testing.assert_close((-nll).exp().sum(0) * 0.016, torch.ones(2, dtype=torch.float64), atol=1e-3, rtol=1e-3)


@given(seed=st.integers(0, 50), experts=st.integers(1, 4))
def test_order_of_points_is_nothing_and_targets_are_independent(seed, experts):
    f, m = some(seed=seed), model(experts)
    out = m(f.x_context, f.y_context, f.x_target)
    order = torch.randperm(6, generator=seeded(seed))
    again = m(f.x_context[:, order], f.y_context[:, order], f.x_target[:, :2])
    torch.testing.assert_close(again.log_weight, out.log_weight)
    torch.testing.assert_close(again.mean, out.mean[..., :2])
    torch.testing.assert_close(again.std, out.std[..., :2])
    assert out.std.min() >= 0.02


def test_one_expert_is_a_plain_process_and_a_given_choice_silences_the_rest():
    f, m = some(), model(1)
    assert m.gate is None
    out = m(f.x_context, f.y_context, f.x_target)
    torch.testing.assert_close(mixture_nll(out, f.y_target), expert_nll(out, f.y_target)[:, 0])
    r = m.encode(f.x_context, f.y_context)
    h = torch.cat([r[:, None].expand(-1, 4, -1), f.x_target[..., None]], -1)
    for i, w in enumerate(m.decoder):  # the decoder as three plain layers
        h = (h.relu() if i else h) @ w[0, :-1] + w[0, -1]
    torch.testing.assert_close(out.mean[:, 0], h[..., 0])

    m, choice = model(3), torch.tensor([2, 0, 1, 1, 0])
    log_weight = torch.nn.functional.one_hot(choice, 3).double().log()
    out = m(f.x_context, f.y_context, f.x_target, log_weight)
    alone = expert_nll(out, f.y_target)
    torch.testing.assert_close(mixture_nll(out, f.y_target), alone[torch.arange(5), choice])
    mixture_nll(out, f.y_target)[:1].sum().backward()
    grads = [w.grad for w in m.decoder]
    assert all(torch.isfinite(g).all() for g in grads)
    assert all((g[:2] == 0).all() and (g[2] != 0).any() for g in grads)


def test_learning_finds_two_planted_lines():
    """Functions y = 1 and y = -1, told apart by their contexts: the mixture's loss must reach the noise's entropy."""
    m = model(2, code=8, hidden=8).float()
    optimiser = torch.optim.Adam(m.parameters(), 1e-2)
    entropy = 0.5 * math.log(2 * math.pi * math.e * 0.1**2)
    for step in range(300):
        sign = (2 * torch.randint(2, (32, 1), generator=seeded(step)) - 1).float()
        y = sign + 0.1 * torch.randn(32, 8, generator=seeded(1000 + step))
        out = m(torch.zeros(32, 4), y[:, :4], torch.zeros(32, 4))
        loss = mixture_nll(out, y[:, 4:]).mean() / 4
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert entropy - 0.3 < loss.item() < entropy + 0.25


@given(experts=st.integers(1, 5), seed=st.integers(0, 30))
def test_the_fitted_gate_finds_planted_clusters(experts, seed):
    """Tight clusters in orthogonal directions, each with one expert that is good on it."""
    g = seeded(seed)
    cluster = torch.cat([torch.arange(experts), torch.randint(experts, (60,), generator=g)])
    good = torch.randperm(experts, generator=g)
    contexts = 5 * torch.eye(experts, 7)[cluster] + 0.1 * torch.randn(len(cluster), 7, generator=g)
    losses = 1 + torch.rand(len(cluster), experts, generator=g)
    losses[torch.arange(len(cluster)), good[cluster]] -= 1
    W, chosen = least_squares_gate(contexts, losses, g)
    assert torch.equal(chosen, good[cluster])
    assert torch.equal((contexts @ W).argmax(1), good[cluster])
    target = torch.nn.functional.one_hot(chosen, experts).float()
    expected = np.linalg.lstsq(contexts.numpy(), target.numpy(), rcond=None)[0]
    torch.testing.assert_close(W, torch.from_numpy(expected), atol=1e-4, rtol=1e-4)


def test_each_expert_serves_once_even_if_one_is_best_everywhere():
    contexts = torch.eye(3).repeat(4, 1)
    losses = torch.tensor([[0.0, 2.0, 3.0]]).repeat(12, 1)
    _, chosen = least_squares_gate(contexts, losses, seeded(0))
    assert sorted(chosen[:3].tolist()) == [0, 1, 2]


def test_an_outlier_does_not_decide_for_its_cluster():
    """The median, not the mean: expert 0 is better on all rows but one, where it is terrible."""
    contexts = torch.tensor([[1.0, 0.0]] * 5 + [[0.0, 1.0]] * 5)
    losses = torch.tensor([[0.0, 1.0]] * 4 + [[100.0, 1.0]] + [[1.0, 0.0]] * 5)
    W, chosen = least_squares_gate(contexts, losses, seeded(0))
    assert chosen.tolist() == [0] * 5 + [1] * 5
    torch.testing.assert_close(W, torch.eye(2), atol=1e-5, rtol=0)
