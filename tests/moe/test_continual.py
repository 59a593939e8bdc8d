"""gated.moe.continual against projections written out, closed forms, autograd, and the rounds one by one."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gated.moe.continual import (
    forgetting,
    generalisation,
    learn,
    linear_task_stream,
    minimum_norm_update,
    purity,
    task_errors,
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stream(rounds=30, seeds=3, seed=0, **options):
    return linear_task_stream(rounds, seeds, seeded(seed), **options)


def near(a, b, tol=1e-9):
    torch.testing.assert_close(a, b, atol=tol, rtol=tol)


def test_the_stream_is_what_it_says():
    s = stream(200, 4, tasks=8)
    near(s.weight[:, :3].norm(dim=-1), torch.full((4, 3), 0.4, dtype=torch.float64))
    assert (s.weight[..., 6:] == 0).all()
    assert (s.X[:, :, 6:] == 0).all()
    assert 0.001 < (s.weight[:, 3:6] - s.weight[:, :3])[..., :6].std() < 0.004
    near(s.y, torch.einsum("tsdn,tsd->tsn", s.X, s.truth()))
    lengths = s.X.norm(dim=2).sort(-1).values
    near(lengths[..., :5], torch.full((200, 4, 5), 0.1, dtype=torch.float64))
    signal = s.X.gather(3, s.X.norm(dim=2).argmax(-1)[..., None, None].expand(-1, -1, 10, 1))[..., 0]
    near(signal, 6 * s.truth() / s.truth().norm(dim=-1, keepdim=True))
    assert set(s.task.unique().tolist()) == set(range(8))


@given(samples=st.integers(1, 9), rank=st.integers(1, 8), seed=st.integers(0, 99))
def test_an_update_fits_and_moves_only_within_the_inputs(samples, rank, seed):
    s = stream(1, 2, seed, samples=samples, rank=rank, dim=8)
    old = torch.randn(2, 8, generator=seeded(seed + 1), dtype=torch.float64)
    new = minimum_norm_update(old, s.X[0], s.y[0])
    near((s.X[0].mT @ new[..., None])[..., 0], s.y[0], 1e-8)
    for x, step in zip(s.X[0], new - old, strict=True):  # no part of the step is orthogonal to all inputs
        inside = x @ np.linalg.lstsq(x, step, rcond=1e-12)[0]
        near(torch.as_tensor(inside), step, 1e-8)


def test_one_expert_is_sequential_projection():
    """M = 1 with one input a round is Kaczmarz's method, written as its textbook formula."""
    s = stream(40, 2, samples=1)
    history = learn(s, 1, seeded(1))
    w = np.zeros((2, 10))
    for t in range(40):
        for i in range(2):
            a, b = s.X[t, i, :, 0].numpy(), float(s.y[t, i, 0])
            w[i] = w[i] + (b - a @ w[i]) / (a @ a) * a
        near(history.weight[t, :, 0], torch.from_numpy(w), 1e-12)


def test_with_as_many_samples_as_rank_the_last_task_is_all_that_is_known():
    """Closed form: G_t of one expert is the mean distance from the last task to all tasks so far."""
    s = stream(50, 4)
    G = generalisation(s, learn(s, 1, seeded(1)))
    truth = s.truth()
    for t in (0, 7, 49):
        near(G[t], (truth[t] - truth[: t + 1]).norm(dim=-1).mean(0), 1e-8)


def test_nothing_is_forgotten_where_each_expert_sees_one_task():
    s = stream(60, 3)
    assert forgetting(s, learn(s, 7, seeded(0), route=s.task)).abs().max() < 1e-10
    assert forgetting(s, learn(s, 1, seeded(0)))[-1].min() > 0.1


def test_metrics_against_loops():
    s = stream(12, 2)
    h = learn(s, 3, seeded(4))
    G, F = generalisation(s, h), forgetting(s, h)
    for seed in range(2):
        for t in range(12):
            errors, drifts = [], []
            for i in range(t + 1):
                m, n = int(h.expert[i, seed]), int(s.task[i, seed])
                now = float((h.weight[t, seed, m] - s.weight[seed, n]).norm())
                then = float((h.weight[i, seed, m] - s.weight[seed, n]).norm())
                errors.append(now)
                drifts.append(abs(now - then))
            assert float(G[t, seed]) == pytest.approx(np.mean(errors), abs=1e-12)
            assert float(F[t, seed]) == pytest.approx(sum(drifts[:-1]) / max(t, 1), abs=1e-12)
            near(task_errors(s, h, t)[:, seed], torch.tensor(errors, dtype=torch.float64))


def test_the_gate_follows_the_gradient_of_its_loss():
    """One step from a gate that is not zero, against autograd on the loss as the paper writes it."""
    s = stream(9, 1)
    h = learn(s, 4, seeded(3), noise=0.0, rate=0.7)
    for t in range(1, 9):
        theta = h.gate[t - 1, 0].clone().requires_grad_()
        pi = torch.softmax((theta @ s.X[t, 0]).sum(1), 0)
        m = int(pi.argmax())
        assert m == int(h.expert[t, 0])
        moved = (h.weight[t, 0, m] - h.weight[t - 1, 0, m]).norm()
        (pi[m] * moved + 0.5 * 4 * pi[m] / (t + 1)).backward()
        near(h.gate[t, 0], theta.detach() - 0.7 * theta.grad, 1e-12)


def test_noise_rate_stop_balance_and_route():
    s = stream(40, 50)
    fair = learn(s, 4, seeded(0), rate=0)
    assert (fair.gate == 0).all()
    share = torch.bincount(fair.expert.flatten(), minlength=4) / fair.expert.numel()
    assert (share - 0.25).abs().max() < 4 * math.sqrt(0.25 * 0.75 / 2000)
    first = learn(s, 4, seeded(0), rate=0, noise=0)
    assert (first.expert == 0).all()  # ties go to the lower index
    stopped = learn(s, 4, seeded(0), stop=10)
    free = learn(s, 4, seeded(0))
    near(stopped.gate[9], free.gate[9], 0)
    near(stopped.gate[-1], stopped.gate[9], 0)
    assert not torch.equal(free.gate[-1], free.gate[9])
    near(learn(s, 4, seeded(0), alpha=0).gate, learn(s, 4, seeded(0), balance=0).gate, 0)
    assert not torch.equal(learn(s, 4, seeded(0), balance=0.1).gate, free.gate)
    assert torch.equal(learn(s, 3, seeded(0), route=s.task % 3).expert, s.task % 3)


def test_seeds_do_not_touch_each_other():
    s = stream(25, 4)
    alone = s._replace(X=s.X[:, 2:3], y=s.y[:, 2:3], task=s.task[:, 2:3], weight=s.weight[2:3])
    near(learn(alone, 3, seeded(0), noise=0).weight[:, 0], learn(s, 3, seeded(0), noise=0).weight[:, 2], 1e-12)


def test_more_experts_generalise_and_the_oracle_is_best():
    """The order that the paper reports: one expert, learned routing among five, routing by the true cluster."""
    s = stream(400, 24)
    runs = {M: learn(s, M, seeded(1)) for M in (1, 5)}
    oracle = learn(s, 3, seeded(1), route=s.task % 3)
    one, five, best = (generalisation(s, h)[-1].mean() for h in (runs[1], runs[5], oracle))
    assert best < 0.004
    assert best < five / 2 < five < one / 4
    assert 0.3 < one < 0.5
    assert purity(s, oracle).min() == 1
    assert purity(s, runs[5]).mean() > 0.85
    assert purity(s, runs[1]).mean() < 0.5
