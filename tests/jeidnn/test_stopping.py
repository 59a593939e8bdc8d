"""The dynamic programme against all policies, and the small worlds against their figures and simulations."""

import itertools
import math

import pytest
import torch

from gated import jeidnn as j

D = torch.float64


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("seed", range(5))
def test_dynamic_programme_beats_all_policies(seed):
    gen = rng(seed)
    losses = 2 * torch.rand(3, 4, generator=gen, dtype=D)
    costs = torch.tensor([0.3, 0.6, 1.0], dtype=D)
    moves = torch.rand(2, 4, 4, generator=gen, dtype=D)
    moves /= moves.sum(-1, keepdim=True)
    start, trade_off = torch.full((4,), 0.25, dtype=D), 0.7
    total = losses + trade_off * costs[:, None]
    value, stop = j.optimal_stopping(losses, costs, moves, trade_off)
    worth = {}
    for policy in itertools.product([False, True], repeat=8):
        stops = torch.tensor(policy).view(2, 4)
        now, paid = start, 0.0
        for l in range(2):
            paid += float((now * stops[l] * total[l]).sum())
            now = (now * ~stops[l]) @ moves[l]
        worth[policy] = paid + float((now * total[2]).sum())
    best = min(worth, key=worth.get)
    assert float(start @ value[0]) == pytest.approx(worth[best])
    assert worth[tuple(stop[:2].flatten().tolist())] == pytest.approx(worth[best])
    assert stop[2].all()


def test_ties_stop():
    same = torch.ones(2, 1, dtype=D)
    costs, move = torch.tensor([0.5, 1.0], dtype=D), torch.ones(1, 1, 1, dtype=D)
    assert j.optimal_stopping(same, costs, move, 0).stop.all()


def test_the_free_and_the_priceless():
    losses = torch.tensor([[3.0, 1.0], [2.0, 0.5], [0.1, 0.2]], dtype=D)
    costs, move = torch.tensor([0.3, 0.6, 1.0], dtype=D), torch.eye(2, dtype=D).expand(2, 2, 2)
    assert not j.optimal_stopping(losses, costs, move, 0).stop[:2].any()
    assert j.optimal_stopping(losses, costs, move, 1e9).stop.all()


def test_two_calibrated_exits():
    threshold, rate, accuracy = j.calibrated_two_exits(0.95, 0.15)
    assert (threshold, rate, accuracy) == pytest.approx((0.8, 0.4, 0.93))
    q = (torch.arange(100_000, dtype=D) + 0.5) / 200_000 + 0.5
    reward = lambda t: float(torch.where(q >= t, q + 0.15, 0.95).mean())  # noqa: E731
    assert reward(0.8) >= max(reward(t) for t in torch.linspace(0.5, 1, 51).tolist()) - 1e-12
    assert float(torch.where(q >= 0.8, q, 0.95).mean()) == pytest.approx(0.93, abs=1e-5)
    assert j.calibrated_two_exits(0.95, 1).rate == 1 and j.calibrated_two_exits(1, 0).rate == 0


def test_a_learned_gate_finds_the_threshold():
    """Cost-sensitive BCE on the four statistics, in the limit of many samples: the gate's bar ends at tau = .8.

    The vote of plain labels ends elsewhere: with errors of 0 and 1 it leaves unless exit 1 alone is wrong.
    """
    q = (torch.arange(2000, dtype=D) + 0.5) / 4000 + 0.5
    logits = torch.stack([torch.logit(q), torch.zeros_like(q)], 1)
    outcomes = [(a, b) for a in (0.0, 1.0) for b in (0.0, 1.0)]  # errors of exit 1 and of exit 2
    chance = torch.stack([(q if a == 0 else 1 - q) * (0.95 if b == 0 else 0.05) for a, b in outcomes], 1)
    losses, costs = torch.tensor(outcomes, dtype=D), torch.tensor([0.85, 1.0], dtype=D)
    target, _ = j.gate_targets(j.exit_labels(losses, costs, 1), 2)
    every = target.expand(2000, 4, 1).reshape(-1, 1)
    bars = {}
    for name, weight in (("mean", j.regret(losses + costs)), ("vote", torch.ones(4, 1, dtype=D))):
        torch.manual_seed(0)
        gate = j.UncertaintyGate().double()
        targets = type(j.gate_targets(torch.zeros(1).long(), 2))(every, (chance * weight[:, 0]).reshape(-1, 1))
        optimiser = torch.optim.LBFGS(gate.parameters(), max_iter=300, line_search_fn="strong_wolfe")

        def closure(gate=gate, targets=targets, optimiser=optimiser):
            optimiser.zero_grad()
            loss = j.gate_loss(gate(logits, logits).repeat_interleave(4)[:, None], targets)
            loss.backward()
            return loss

        optimiser.step(closure)
        bars[name] = float(q[(gate(logits, logits) >= 0).nonzero()[0]])
    assert bars["mean"] == pytest.approx(0.8, abs=0.01)
    assert bars["vote"] < 0.6


HOPELESS = ([0.5, 0.3, 0.2], [0.95, 0.6, 0.5], [0.97, 0.9, 0.52])


def test_hopeless_samples():
    figures = {order: j.accuracy_when_continuing(*HOPELESS, 0.3, order) for order in ("gain", "confidence", "random")}
    assert figures == pytest.approx({"gain": 0.845, "confidence": 0.789, "random": 0.786}, abs=5e-4)
    for order in figures:
        assert j.accuracy_when_continuing(*HOPELESS, 0, order) == pytest.approx(0.755)
        assert j.accuracy_when_continuing(*HOPELESS, 1, order) == pytest.approx(0.859)
    # the best order is a linear programme
    from scipy.optimize import linprog

    shares, first, second = HOPELESS
    gains = [-s * (b - a) for s, a, b in zip(shares, first, second, strict=True)]
    best = linprog(gains, A_ub=[shares], b_ub=[0.3], bounds=(0, 1))
    assert figures["gain"] == pytest.approx(0.755 - best.fun)


def test_selection_bias():
    assert j.selection_bias(1, 1, 0.5) == pytest.approx(0.32227, abs=5e-6)
    n, gen = 1_000_000, rng(2)
    q = torch.randn(n, generator=gen, dtype=D)
    eps = 0.5 * torch.randn(n, generator=gen, dtype=D)
    passed = q + eps >= 1
    assert float(passed.double().mean()) == pytest.approx(0.1855, abs=0.0015)
    assert float(eps[passed].mean()) == pytest.approx(0.32227, abs=0.004)
    shrunk = (q + eps) / 1.25
    assert float((shrunk - q)[shrunk >= 0.8].mean()) == pytest.approx(0, abs=0.005)
    # deep in the tail the bias is noise^2 / s^2 of the threshold
    assert j.selection_bias(50, 1, 1) == pytest.approx(25, rel=1e-2)


def test_best_of_n():
    figures = {2: 0.5642, 3: 0.8463, 4: 1.0294, 6: 1.2672, 7: 1.3522, 14: 1.7034}
    assert {n: j.expected_maximum(n) for n in figures} == pytest.approx(figures, abs=5e-5)
    assert j.expected_maximum(1) == pytest.approx(0, abs=1e-12)
    assert j.expected_maximum(2) == pytest.approx(1 / math.sqrt(math.pi), abs=1e-9)
    assert j.expected_maximum(3) == pytest.approx(1.5 / math.sqrt(math.pi), abs=1e-9)


def test_no_stopping_rule_biases_a_filtration():
    """Seven exits, after 1 to 7 flips, and a threshold on max p: calibrated scores stay so, noisy ones do not."""
    gen, n = rng(3), 400_000
    score, outcome = j.beta_bernoulli_chain(n, 7, gen)
    assert score.shape == (n, 8) and (score[:, 0] == 0.5).all()
    noise = 0.8 * torch.randn(n, 7, generator=gen, dtype=D)
    for p, bias in ((score[:, 1:], 0.0), (torch.sigmoid(torch.logit(score[:, 1:]) + noise), 0.140)):
        confidence, right = torch.maximum(p, 1 - p), (p > 0.5) == outcome[:, None]
        exit = j.baselines.threshold_exit(confidence[:, :-1], 0.75)
        taken = confidence.gather(1, exit[:, None]).squeeze(1)
        at, number = j.exit_bias(taken, right.gather(1, exit[:, None]).squeeze(1), exit, 7)
        assert float(at @ number.double()) / n == pytest.approx(bias, abs=0.0028)
        if not bias:  # and at each exit alone
            assert (at.abs() < 4.5 * 0.5 / number.clamp(min=1).sqrt()).all()
