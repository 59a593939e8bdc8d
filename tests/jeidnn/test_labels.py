"""Surrogate labels and the losses of both phases against brute force, comparative statics and the known identity."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gated import jeidnn as j
from gated.jeidnn.labels import GateTargets

D = torch.float64
COSTS = torch.tensor([0.2, 0.4, 0.7, 1.0], dtype=D)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def some_losses(n=300, exits=4, seed=0):
    return torch.rand(n, exits, generator=rng(seed), dtype=D) * 3


def test_exit_losses():
    logits = torch.randn(20, 3, 5, generator=rng(), dtype=D)
    y = torch.randint(5, (20,), generator=rng(1))
    ce = torch.stack([torch.nn.functional.cross_entropy(logits[:, l], y, reduction="none") for l in range(3)], 1)
    assert torch.allclose(j.exit_losses(logits, y), ce)


@given(st.floats(0, 20), st.integers(0, 50))
def test_labels_by_brute_force(trade_off, seed):
    losses = some_losses(20, seed=seed)
    labels = j.exit_labels(losses, COSTS, trade_off)
    for row, label in zip(losses.tolist(), labels.tolist(), strict=True):
        totals = [loss + trade_off * c for loss, c in zip(row, COSTS.tolist(), strict=True)]
        assert label == totals.index(min(totals))


def test_labels_never_move_later_as_the_price_rises():
    losses = some_losses()
    labels = torch.stack([j.exit_labels(losses, COSTS, x) for x in torch.linspace(0, 20, 60).tolist()])
    assert (labels.diff(dim=0) <= 0).all()
    assert torch.equal(labels[0], losses.argmin(1))
    enough = float(((losses[:, :1] - losses[:, 1:]) / (COSTS[1:] - COSTS[0])).max())
    assert (j.exit_labels(losses, COSTS, enough * 1.001) == 0).all()
    assert (j.exit_labels(losses, COSTS, enough * 0.999) == 0).sum() == len(losses) - 1
    assert (j.exit_labels(losses, COSTS, 1e12) == 0).all()


def test_ties_take_the_earlier_exit():
    assert (j.exit_labels(torch.ones(5, 4), COSTS, 0) == 0).all()


def test_targets():
    labels = torch.tensor([0, 2, 3])
    target, weight = j.gate_targets(labels, 4)
    assert target.tolist() == [[1, 1, 1], [0, 0, 1], [0, 0, 0]]
    assert (weight == 1).all()
    assert torch.equal(target.sum(1), 3.0 - labels)  # L - l* with both counted from one end
    target, weight = j.gate_targets(labels, 4, "hazard")
    assert target.tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]
    assert weight.tolist() == [[1, 0, 0], [1, 1, 1], [1, 1, 1]]
    target, weight = j.gate_targets(labels, 4, "one-hot")
    assert target.tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0]] and (weight == 1).all()


@pytest.mark.parametrize(("kind", "composition"), [("subsequent", "cdf"), ("one-hot", "clip"), ("hazard", "stick")])
def test_each_target_belongs_to_a_composition(kind, composition):
    """The best constant gates under BCE, put through the matching composition, give the labels' own shares."""
    labels = torch.tensor([0] * 1 + [1] * 3 + [2] * 2 + [3] * 4)
    target, weight = j.gate_targets(labels, 4, kind)
    g = ((target * weight).sum(0) / weight.sum(0)).double()
    logits = torch.logit(g).expand(10, 3).clone().requires_grad_()
    (slope,) = torch.autograd.grad(j.gate_loss(logits, GateTargets(target, weight)), logits)
    assert slope.sum(0).abs().max() < 1e-7  # g is where the loss is least
    shares = torch.tensor([0.1, 0.3, 0.2, 0.4], dtype=D)
    assert torch.allclose(j.exit_distribution(g, composition), shares, atol=1e-6)
    if kind == "subsequent":
        assert not torch.allclose(j.exit_distribution(g, "clip"), shares, atol=0.05)


def test_positive_weights():
    labels = torch.tensor([0] * 8 + [2] * 1 + [3] * 1)
    # 2/8; nobody has label 1, so 10/0.1 is held at the cap; 9/1 too
    assert j.positive_weights(labels, 4).tolist() == [0.25, 5, 5]
    assert j.positive_weights(labels, 4, cap=1000).tolist() == pytest.approx([0.25, 100, 9])
    for share, weight in ((0.75, 0.33), (0.87, 0.15), (0.93, 0.07)):
        n = round(share * 100)
        given_ = torch.tensor([0] * n + [1] * (100 - n))
        assert float(j.positive_weights(given_, 7)[0]) == pytest.approx(weight, abs=0.01)


def test_gate_loss_by_hand():
    s = torch.tensor([[0.3, -1.0]], dtype=D)
    targets = GateTargets(torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 0.5]]))
    g = s.sigmoid()[0]
    expected = (2 * 3 * -g[0].log() + 0.5 * -(1 - g[1]).log()) / 2
    assert float(j.gate_loss(s, targets, torch.tensor([3.0, 7.0]))) == pytest.approx(float(expected))


# The vote and the mean ---------------------------------------------------------------------------------------------


def cell():
    """Ten samples that a gate cannot tell apart: exit 1 is as good for six of them, and 3 nats worse for four."""
    losses = torch.tensor([[1.0, 1.0]] * 6 + [[4.0, 1.0]] * 4, dtype=D)
    return losses, torch.tensor([0.7, 1.0], dtype=D)  # with trade_off 1 the second exit costs 0.3 more


def best_gate(targets, positive=None):
    """The constant g of least loss, in closed form."""
    target, weight = (x.double() for x in targets)
    up = (weight * target * (1 if positive is None else positive)).sum()
    return float(up / (up + (weight * (1 - target)).sum()))


def test_a_vote_is_not_a_mean():
    losses, costs = cell()
    labels = j.exit_labels(losses, costs, 1)
    targets = j.gate_targets(labels, 2)
    assert best_gate(targets) == pytest.approx(0.6)  # leaves
    totals = losses + costs
    assert float(totals[:, 0].mean() - totals[:, 1].mean()) == pytest.approx(0.9)  # and that costs .9 nats
    weighted = targets._replace(weight=j.regret(totals))
    assert float((weighted.weight * weighted.target).sum() / 10) == pytest.approx(0.18)
    assert float((weighted.weight * (1 - weighted.target)).sum() / 10) == pytest.approx(1.08)
    assert best_gate(weighted) < 0.5  # goes on
    for s, t in ((0.6, targets), (0.18 / 1.26, weighted)):
        logit = torch.logit(torch.tensor(s, dtype=D)).expand(10, 1).clone().requires_grad_()
        (slope,) = torch.autograd.grad(j.gate_loss(logit, t), logit)
        assert float(slope.sum().abs()) < 1e-7


@pytest.mark.parametrize("weight", [0.25, 1, 3])
def test_a_positive_weight_moves_the_bar_of_the_vote(weight):
    for yes in range(1, 20):
        targets = GateTargets((torch.arange(20) < yes).float()[:, None], torch.ones(20, 1))
        if abs(yes / 20 - 1 / (1 + weight)) > 1e-9:
            assert (best_gate(targets, weight) > 0.5) == (yes / 20 > 1 / (1 + weight))


def test_regret_by_brute_force():
    totals = some_losses(50)
    for row, r in zip(totals.tolist(), j.regret(totals).tolist(), strict=True):
        assert r == pytest.approx([abs(row[l] - min(row[l + 1 :])) for l in range(3)])


# The weighting of the heads ----------------------------------------------------------------------------------------


def weighted(weighting, seed=0):
    logits = torch.randn(30, 4, 5, generator=rng(seed), dtype=D).requires_grad_()
    y = torch.randint(5, (30,), generator=rng(seed + 1))
    p = torch.rand(30, 4, generator=rng(seed + 2), dtype=D)
    value = j.inference_loss(j.exit_losses(logits, y), p / p.sum(1, keepdim=True), weighting)
    return value, torch.autograd.grad(value, logits)[0]


def test_released_weighting_is_the_unweighted_sum():
    for seed in range(5):
        (value, slope), (plain, plain_slope) = weighted("released", seed), weighted("unweighted", seed)
        assert float(value.detach() - plain.detach()) == pytest.approx(0, abs=1e-14)
        assert (slope - plain_slope).abs().max() < 1e-16
        (value, slope) = weighted("detached", seed)
        assert float(value.detach() - plain.detach()) == pytest.approx(0, abs=1e-14)  # the value does not tell
        assert (slope - plain_slope).abs().max() > 1e-3


def test_detached_weighting_keeps_the_weight_of_a_sample():
    losses = some_losses(40).requires_grad_()
    p = j.exit_distribution(torch.rand(40, 3, generator=rng(3), dtype=D))
    (slope,) = torch.autograd.grad(j.inference_loss(losses, p), losses)
    ratio = losses.sum(1) / (p * losses).sum(1)
    assert torch.allclose(slope, p * ratio[:, None].detach() / 40)
    assert torch.allclose((slope * losses).sum(1), losses.sum(1) / 40)


def test_plain_weights_and_the_gradient_of_the_detached_ratio():
    losses = torch.rand(8, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64).requires_grad_()
    p = torch.rand(8, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    slope = lambda value: torch.autograd.grad(value, losses, retain_graph=True)[0]  # noqa: E731
    plain = j.inference_loss(losses, p, "plain")
    assert torch.allclose(slope(plain), 5 * p / 8, atol=1e-15)
    even = torch.full_like(p, 0.2)
    assert torch.allclose(j.inference_loss(losses, even, "plain"), j.inference_loss(losses, even, "unweighted"))
    log = (losses.sum(1).detach() * (p * losses).sum(1).log()).mean()
    assert torch.allclose(slope(j.inference_loss(losses, p, "detached")), slope(log), atol=1e-12)


@pytest.mark.parametrize("weighting", ["detached", "released"])
def test_a_sample_that_no_exit_takes_counts_unweighted(weighting):
    losses = some_losses(3).requires_grad_()
    p = torch.zeros(3, 4, dtype=D)
    value = j.inference_loss(losses, p, weighting)
    assert float(value.detach()) == pytest.approx(float(losses.sum(1).mean().detach()))
    (slope,) = torch.autograd.grad(value, losses)
    assert torch.allclose(slope, torch.full_like(slope, 1 / 3))
