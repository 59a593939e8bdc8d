"""Warm-up, gate phase, head phase and their alternation on a small frozen network."""

import copy
import functools

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

from gated import jeidnn as j

D = torch.float64


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def world(n=400, frozen=True):
    net, features = copy.deepcopy(grown(n))
    net.frozen = frozen
    net.backbone.requires_grad_(not frozen)
    return net, features


@functools.cache
def grown(n):
    """Four classes in the plane's quadrants, moved about; a backbone that has learned them, and its features."""
    torch.manual_seed(0)
    x = torch.randn(n, 2, generator=rng(), dtype=D)
    y = ((x[:, 0] * x[:, 1] > 0).long() + 2 * (x.norm(dim=1) > 1.2).long()).long()
    body = j.ResidualMLP(2, 4, dim=8, depth=4).double()
    optimiser = torch.optim.Adam(body.parameters(), 0.02)
    for _ in range(80):
        optimiser.zero_grad()
        F.cross_entropy(body(x), y).backward()
        optimiser.step()
    net = j.ExitNetwork(body, x)
    with torch.no_grad():
        features = net.features(x, y)
    return net, features


def parameters(module):
    return [p.detach().clone() for p in module.parameters()]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_warm_up_learns_the_heads_and_nothing_else():
    net, data = world()
    gates, body = parameters(net.gates), parameters(net.backbone)
    with torch.no_grad():
        before = j.exit_losses(net.exit_logits(data), data.y).mean(0)
    history = j.warm_up(net, data, data, epochs=10, patience=10, generator=rng())
    with torch.no_grad():
        after = j.exit_losses(net.exit_logits(data), data.y).mean(0)
    assert (after[:-1] < before[:-1] - 0.1).all() and after[-1] == before[-1]
    assert len(history) == 10 and len(history[0]) == 3
    assert same(gates, parameters(net.gates)) and same(body, parameters(net.backbone))


def test_warm_up_reaches_the_convex_optimum():
    net, data = world(200)
    y = torch.where(torch.rand(200, generator=rng(5)) < 0.3, torch.randint(4, (200,), generator=rng(6)), data.y)
    data = j.Features(data.z, data.last, y)
    j.warm_up(net, data, data, epochs=400, patience=400, batch_size=200, learning_rate=0.1, weight_decay=0)
    peer = LogisticRegression(C=1e6, max_iter=5000).fit(data.z[0].numpy(), data.y.numpy())
    best = -torch.from_numpy(peer.predict_log_proba(data.z[0].numpy()))[torch.arange(200), data.y].mean()
    with torch.no_grad():
        ours = F.cross_entropy(net.heads[0](data.z[0]), data.y)
    assert float(ours) == pytest.approx(float(best), abs=0.03)


def test_warm_up_keeps_each_head_s_best_epoch():
    net, data = world()
    history = j.warm_up(net, data, data, epochs=12, patience=2, learning_rate=0.5, generator=rng(3))
    with torch.no_grad():
        accuracy = (net.exit_logits(data)[:, :-1].argmax(-1) == data.y[:, None]).double().mean(0)
    best = torch.tensor(history, dtype=D).amax(0)
    assert accuracy.tolist() == pytest.approx(best.tolist())
    assert len(history) < 12  # all heads have come to rest


def test_weights_of_the_warm_up():
    """One batch, one step: the step of head l is (L - l) times that of its plain CE."""
    net, data = world(50)
    start = parameters(net.heads)
    slopes = torch.autograd.grad(
        sum(F.cross_entropy(h(z), data.y) for h, z in zip(net.heads, data.z, strict=True)), net.heads.parameters()
    )
    good = j.Features(data.z, data.last, net.exit_logits(data)[:, 0].argmax(-1))
    j.warm_up(net, data, good, epochs=1, batch_size=50, learning_rate=1e-3, weight_decay=0)
    for i, (a, b, slope) in enumerate(zip(start, parameters(net.heads), slopes, strict=True)):
        assert torch.allclose((a - b) / 1e-3, (4 - i // 2) * slope, atol=1e-9)


@pytest.mark.parametrize("phase", ["gates", "heads"])
def test_who_rests_does_not_move(phase):
    net, data = world(200)
    heads, gates = parameters(net.heads), parameters(net.gates)
    j.alternate(net, data, 0.3, phases=(phase,), epochs=2, generator=rng())
    assert same(heads, parameters(net.heads)) == (phase == "gates")
    assert same(gates, parameters(net.gates)) == (phase == "heads")


def test_momentum_does_not_leak_into_the_other_phase():
    """Both have moved, then the gates rest: not a digit of theirs changes, in spite of momentum and weight decay."""
    net, data = world(128)
    seen = []
    descend = j.training.descend

    def spy(optimiser, loss, where):
        before = parameters(net.heads if "gates" in where else net.gates)
        descend(optimiser, loss, where)
        seen.append(same(before, parameters(net.heads if "gates" in where else net.gates)))

    j.training.descend = spy
    try:
        steps = j.alternate(net, data, 0.3, epochs=2, period=1, batch_size=32, generator=rng())
    finally:
        j.training.descend = descend
    assert len(seen) == 8 and all(seen)
    assert [s.phase for s in steps] == ["gates", "heads"] * 4


def test_schedule_of_the_alternation():
    net, data = world(500)
    steps = j.alternate(net, data, 0.3, epochs=2, period=3, batch_size=64, generator=rng())
    assert [s.phase[0] for s in steps] == list("ggghhhgg") * 2  # 8 batches; each epoch begins with gates


def test_released_weighting_does_not_see_the_gates():
    """With it the heads end where the unweighted sum ends, whatever the trade-off; detached weights differ."""
    ends = {}
    for weighting, trade_off in (("released", 0.01), ("released", 5), ("unweighted", 1), ("detached", 5)):
        net, data = world(200)
        j.alternate(net, data, trade_off, weighting=weighting, epochs=3, period=2, generator=rng())
        ends[weighting, trade_off] = parameters(net.heads)
    apart = lambda a, b: max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))  # noqa: E731
    assert apart(ends["released", 0.01], ends["released", 5]) < 1e-12
    assert apart(ends["released", 5], ends["unweighted", 1]) < 1e-12
    assert apart(ends["detached", 5], ends["unweighted", 1]) > 1e-4


@pytest.mark.parametrize(("trade_off", "exit"), [(0, None), (1e6, 0)])
def test_free_and_priceless(trade_off, exit):
    net, data = world()
    j.warm_up(net, data, data, epochs=5, generator=rng())
    steps = j.alternate(
        net, data, trade_off, phases=("gates",), epochs=20, learning_rate=0.3, balance=False, generator=rng()
    )
    assert all(s.loss == s.loss for s in steps)
    with torch.no_grad():
        logits = net.exit_logits(data)
        taken = j.hard_exit(j.exit_distribution(net.gate_logits(data, logits).sigmoid()))
    if exit is None:  # the last exit is right almost always
        assert float((taken == net.exits - 1).double().mean()) > 0.5
    else:
        assert (taken == exit).all()


def test_a_price_moves_the_exits_forward():
    costs = []
    for trade_off in (0.05, 0.5, 5):
        net, data = world()
        j.warm_up(net, data, data, epochs=5, generator=rng())
        j.alternate(net, data, trade_off, held_out=data, epochs=10, learning_rate=0.1, balance=False, generator=rng())
        with torch.no_grad():
            logits = net.exit_logits(data)
            taken = j.hard_exit(j.exit_distribution(net.gate_logits(data, logits).sigmoid()))
        costs.append(float(net.costs[taken].mean()))
    assert costs[0] > costs[1] > costs[2]


@pytest.mark.parametrize("target", ["subsequent", "one-hot", "hazard"])
@pytest.mark.parametrize("cost_sensitive", [False, True])
def test_gate_phase_by_hand(target, cost_sensitive):
    net, data = world(60)
    batch = data.take(torch.arange(20))
    logits = net.exit_logits(batch).detach()
    losses = j.exit_losses(logits, batch.y)
    targets = j.gate_targets(j.exit_labels(losses, net.costs, 0.4), 4, target)
    weight = targets.weight * (j.regret(losses + 0.4 * net.costs) if cost_sensitive else 1)
    g = net.gate_logits(batch, logits).sigmoid()
    bce = -(targets.target * g.log() + (1 - targets.target) * (1 - g).log()) * weight
    loss = j.gate_phase(net, batch, 0.4, target, cost_sensitive=cost_sensitive)
    assert float(loss.detach()) == pytest.approx(float(bce.mean().detach()))
    loss.backward()
    assert all(p.grad is None for p in net.heads.parameters())
    assert all(p.grad is not None for p in net.gates.parameters())


def test_head_phase_passes_nothing_to_the_gates():
    net, data = world(60)
    j.head_phase(net, data).backward()
    assert all(p.grad is None for p in net.gates.parameters())
    assert all(p.grad is not None for p in net.heads.parameters())


def test_one_class_in_a_batch():
    net, data = world()
    one = data.take(data.y == 2)
    j.warm_up(net, one, one, epochs=2, generator=rng())
    steps = j.alternate(net, one, 0.5, epochs=2, period=2, generator=rng())
    assert all(0 <= s.loss < 100 for s in steps)
    assert all(p.isfinite().all() for p in net.parameters())


def test_same_seed_same_run():
    ends = []
    for _ in range(2):
        net, data = world(100)
        j.warm_up(net, data, data, epochs=1, generator=rng(7))
        j.alternate(net, data, 0.5, epochs=1, period=1, generator=rng(8))
        ends.append(parameters(net))
    assert same(*ends)


def test_joint_loss_is_the_unweighted_sum():
    net, data = world(40, frozen=False)
    x = torch.randn(40, 2, generator=rng(), dtype=D)
    logits = net(x)
    expected = sum(F.cross_entropy(logits[:, l], data.y) for l in range(4))
    assert float(j.joint_loss(net, x, data.y).detach()) == pytest.approx(float(expected.detach()))
