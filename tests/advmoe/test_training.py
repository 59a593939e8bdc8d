"""TRADES and the steps: closed forms, the NaN story, who is updated by what, and evaluation mode in attacks."""

import copy

import pytest
import torch
from torch.nn import functional as F

from gated.advmoe import (
    AttackError,
    MoECNN,
    Trades,
    advmoe_step,
    joint_step,
    kl,
    optimizers,
    project,
    released_step,
    standard_step,
    trades_attack,
    trades_loss,
)


def build(seed=0, **options):
    torch.manual_seed(seed)
    return MoECNN(2, 4, **({"widths": (6, 8, 8), "strides": (1, 2, 1), "kernel_size": 3} | options))


def batch(seed=0, size=16):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, 2, 12, generator=generator), torch.randint(4, (size,), generator=generator)


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


# Divergence ----------------------------------------------------------------------------------------------------------


def test_kl_by_its_definition_and_by_the_library():
    p, q = torch.randn(2, 7, 5, generator=gen(), dtype=torch.float64)
    a, b = torch.distributions.Categorical(logits=p), torch.distributions.Categorical(logits=q)
    want = torch.distributions.kl_divergence(a, b)
    for log_space in (True, False):
        torch.testing.assert_close(kl(p, q, log_space=log_space), want)
    assert torch.autograd.gradcheck(kl, (p.requires_grad_(), q.requires_grad_()))
    y = torch.arange(7) % 5
    torch.testing.assert_close(trades_loss(p, q, y, 3), F.cross_entropy(p, y) + 3 * want.mean())
    torch.testing.assert_close(trades_loss(p, p, y), F.cross_entropy(p, y))


def test_the_nan_story():
    """One score 200 above the other: the usual call's gradient is NaN, whose sign is 0; in log space it is finite."""
    p = torch.tensor([[0.0, 200.0]], requires_grad=True)
    q = torch.tensor([[0.0, 200.0]], requires_grad=True)
    (bad,) = torch.autograd.grad(kl(p, q, log_space=False).sum(), p)
    assert bad.isnan().any()
    assert torch.tensor(float("nan")).sign() == 0 and torch.full((1, 2), torch.nan).argmax(1) == 0
    for which in (p, q):
        (good,) = torch.autograd.grad(kl(p, q).sum(), which)
        assert torch.equal(good, torch.zeros_like(good))
    with pytest.raises(ValueError, match="scores must be finite"):
        build(routing="layer").convs[0](torch.zeros(1, 6, 12), torch.full((1, 2), torch.nan))


# The attack ----------------------------------------------------------------------------------------------------------


def test_no_step_returns_the_noisy_start_and_no_radius_the_input():
    model, (x, _) = build(), batch()
    start = trades_attack(model, x, Trades(0.5, steps=0), gen(3))
    assert torch.equal(start, x + 1e-3 * torch.randn(x.shape, generator=gen(3)))
    assert torch.equal(trades_attack(model, x, Trades(0), gen(3)), x)


@pytest.mark.parametrize("bounds", [None, (-1.0, 1.0)])
def test_the_attack_uses_its_ball_and_raises_the_divergence(bounds):
    model, (x, _) = build().eval(), batch()
    x = x if bounds is None else x.clamp(*bounds)
    trades = Trades(0.1, steps=5, bounds=bounds)
    x_adv = trades_attack(model, x, trades, gen())
    moved = (x_adv - x).abs()
    assert moved.max() <= 0.1 + 1e-6 and (moved.flatten(1).amax(1) > 0.09).all()
    if bounds:
        assert x_adv.min() >= -1 and x_adv.max() <= 1
    noise = x + 0.1 * torch.randn(x.shape, generator=gen()).sign()
    clean = model(x)
    assert kl(clean, model(x_adv)).mean() > kl(clean, model(noise)).mean()
    torch.testing.assert_close(project(x + 5, x, 0.1), x + 0.1)


def test_attacks_run_in_evaluation_mode_and_leave_no_trace():
    model, (x, _) = build(routing="global"), batch()
    model.train()
    model.stem.eval()  # a part that its owner froze stays frozen
    before = copy.deepcopy(model.state_dict())
    modes = []
    handle = model.head.register_forward_pre_hook(lambda m, _: modes.append(m.training))
    trades_attack(model, x, Trades(0.1), gen())
    handle.remove()
    assert modes and not any(modes)
    assert model.training and model.head.training and not model.stem.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_an_attack_without_slope_is_no_attack():
    model, (x, _) = build(), batch()
    model.head.weight.data.zero_()
    with pytest.raises(AttackError, match="0 everywhere"):
        trades_attack(model, x, Trades(0.1), gen())
    model.head.weight.data.fill_(torch.nan)
    with pytest.raises(AttackError, match="not finite"):
        trades_attack(model, x, Trades(0.1), gen())


# Steps ---------------------------------------------------------------------------------------------------------------


def changed(model, before):
    """Names of the parameters that are no longer what they were."""
    return {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}


def names(model, params):
    ids = {id(p) for p in params}
    return {n for n, p in model.named_parameters() if id(p) in ids}


@pytest.mark.parametrize("routing", ["layer", "global"])
def test_who_is_updated_by_which_step(routing):
    for which in ("experts", "routers", "both", "advmoe"):
        model = build(routing=routing)
        psi, phi = optimizers(model, lr=0.05)
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        trades = Trades(0.1)
        if which == "experts":
            joint_step(model, psi, batch(), trades, gen())
            want = names(model, model.expert_parameters())
        elif which == "routers":
            joint_step(model, phi, batch(), trades, gen())
            want = names(model, model.router_parameters())
        else:
            want = set(before)
            if which == "both":
                joint_step(model, [psi, phi], batch(), trades, gen())
            else:
                advmoe_step(model, psi, phi, batch(), batch(1), trades, gen())
        assert changed(model, before) == want
        assert all(p.grad is None for p in model.parameters())  # nothing accumulates


def test_one_joint_step_is_plain_sgd_on_trades():
    model = build()
    twin = copy.deepcopy(model)
    psi, phi = optimizers(model, lr=0.1, momentum=0, weight_decay=0)
    x, y = batch()
    loss = joint_step(model, [psi, phi], (x, y), Trades(0.1), gen())
    x_adv = trades_attack(twin, x, Trades(0.1), gen())
    twin.train()
    clean, adversarial = twin(x), twin(x_adv)
    p = clean.softmax(1)
    divergence = (p * (clean.log_softmax(1) - adversarial.log_softmax(1))).sum(1).mean()
    by_hand = F.cross_entropy(clean, y) + 6 * divergence
    assert loss == pytest.approx(by_hand.item(), rel=1e-5)
    by_hand.backward()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b - 0.1 * b.grad, atol=2e-6, rtol=1e-4)


def test_the_two_levels_are_two_joint_steps_with_fresh_attacks():
    model = build()
    twin = copy.deepcopy(model)
    trades = Trades(0.1)
    got = advmoe_step(model, *optimizers(model), batch(), batch(1), trades, gen())
    psi, phi = optimizers(twin)
    generator = gen()
    want = (joint_step(twin, phi, batch(), trades, generator), joint_step(twin, psi, batch(1), trades, generator))
    assert got == want
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_the_released_step_teaches_the_router_the_class_modulo_n():
    model = build(routing="global", num_experts=2)
    psi, phi = optimizers(model, lr=0.05, router_lr=0.1)
    x, y = batch(size=32)
    x = x + 3 * (y % 2)[:, None, None]  # parity can be seen
    before = copy.deepcopy(model)
    for _ in range(12):
        losses = released_step(model, psi, phi, (x, y), Trades(0.05), gen())
    assert all(torch.isfinite(torch.tensor(losses)))
    routes = model.eval().trace(x).routes[0]
    assert (routes == y % 2).float().mean() > 0.95
    swapped = copy.deepcopy(before)
    psi, phi = optimizers(swapped, lr=0.05, router_lr=0.1)
    for _ in range(12):
        released_step(swapped, psi, phi, (x, y), Trades(0.05), gen(), partition=torch.tensor([1, 0, 1, 0]))
    assert (swapped.eval().trace(x).routes[0] == 1 - y % 2).float().mean() > 0.95


def test_the_released_router_never_sees_the_classifier():
    model = build(routing="global")
    twin = copy.deepcopy(model)
    twin.head.bias.data += torch.tensor([3.0, -1.0, 0.5, 2.0])
    for m in (model, twin):
        psi, phi = optimizers(m, lr=0.05)
        released_step(m, psi, phi, batch(), Trades(0, beta=6), gen())  # eps = 0: no attack through which it could
    for a, b in zip(model.router_parameters(), twin.router_parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_loss_that_is_not_finite_updates_nothing():
    model = build()
    model.head.bias.data[0] = torch.inf
    before = copy.deepcopy(model.state_dict())
    psi, phi = optimizers(model)
    with pytest.raises(FloatingPointError, match="nothing was updated"):
        standard_step(model, [psi, phi], batch())
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())


def test_standard_training_learns():
    model = build(num_experts=1)
    psi, none = optimizers(model, lr=0.1)
    assert none is None
    x, _ = batch(size=64)
    y = 2 * (x[:, 0].mean(1) > 0).long() + (x[:, 1].mean(1) > 0).long()
    losses = [standard_step(model, [psi, none], (x, y)) for _ in range(60)]
    assert losses[-1] < 0.5 * losses[0]
