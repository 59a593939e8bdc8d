"""The layer: gate, experts and dispatch in any combination, and what has to hold whatever they are.

This file is also what two ranks run, for the layer with experts on both of them.
"""

import sys

import pytest
import torch
import torch.distributed as dist
from torch import nn

from gated import gates as g
from gated import moe
from gated.lab.ranks import joined, launch
from gated.moe import gates as m
from gated.moe import levels
from gated.moe.expert_parallel import ExpertParallel, synchronise_gradients

D, N, H = 6, 5, 8
DISPATCHES = [moe.dense_dispatch, moe.loop_dispatch, moe.sorted_dispatch, moe.capacity_dispatch]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def seeded(build, seed=0):
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return build().double()


def tokens(*shape, seed=1):
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def linear(num_experts=N):
    return m.LinearScore(D, num_experts)


GATES = {
    "soft": lambda: m.SoftGate(linear()),
    "cosine": lambda: m.SoftmaxTopKGate(m.CosineScore(D, N), 2),
    "gaussian": lambda: m.SoftGate(m.GaussianScore(D, N)),
    "top-k": lambda: m.TopKGate(linear(), 2),
    "top-1": lambda: m.SoftmaxTopKGate(linear(), 1),
    "noisy": lambda: m.NoisyTopKGate(D, N, 2),
    "top-p": lambda: m.TopPGate(linear(), 0.5),
    "sigmoid": lambda: m.BiasedSigmoidGate(linear(), 2),
    "expert choice": lambda: m.ExpertChoiceGate(linear()),
    "random": lambda: m.RandomGate(N, 2),
    "limited": lambda: moe.Capacity(m.TopKGate(linear(), 2), 0.5),
    "dropout": lambda: moe.ExpertDropout(m.TopKGate(linear(), 2), 0.3),
    "soft moe": lambda: m.SoftMoEGate(D, N, 2),
}
SUM_ONE = ["soft", "gaussian", "top-k", "noisy", "random", "dropout", "soft moe"]


def layer_of(name, dispatch=moe.sorted_dispatch, experts=None):
    gate = seeded(GATES[name])
    experts = seeded(lambda: moe.FFNExperts(N, D, H, activation="gelu")) if experts is None else experts
    return moe.MoE(gate, experts, moe.slots_dispatch if name == "soft moe" else dispatch)


@pytest.mark.parametrize("name", GATES)
def test_every_gate_with_every_dispatch(name):
    x, results = tokens(2, 7, D), []
    for dispatch in DISPATCHES:
        layer = layer_of(name, dispatch)
        y, routing = layer(x, generator=rng())
        assert y.shape == x.shape
        y.square().sum().backward()
        results.append([y.detach(), *[p.grad for p in layer.parameters() if p.grad is not None]])
        assert routing[0].shape[0] == 14
    for other in results[1:]:
        assert len(other) == len(results[0])
        for got, want in zip(other, results[0], strict=True):
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", SUM_ONE)
def test_identical_experts_make_the_gate_irrelevant(name):
    """y_t = sum_j w_tj E(x_t) = E(x_t) where rows sum to one. (Soft MoE mixes tokens: its experts must be linear.)"""
    layer = layer_of(name, experts=seeded(lambda: moe.LinearExperts(N, D, 3)))
    with torch.no_grad():
        for parameter in layer.experts.parameters():
            parameter.copy_(parameter[:1].clone().expand_as(parameter))
    x = tokens(14, D)
    y, routing = layer(x, generator=rng())
    mixed = x
    if name == "soft moe":
        mixed = torch.einsum("tns,uns,ud->td", routing.combine, routing.dispatch, x)
    torch.testing.assert_close(y, mixed @ layer.experts.weight[0] + layer.experts.bias[0])


@pytest.mark.parametrize("dispatch", DISPATCHES)
@pytest.mark.parametrize("gated", [False, True])
def test_one_expert_is_a_dense_layer(dispatch, gated):
    experts = seeded(lambda: moe.FFNExperts(1, D, H, activation="silu", gated=gated))
    layer = moe.MoE(seeded(lambda: m.TopKGate(linear(1), 1)), experts, dispatch)
    x = tokens(3, 4, D)
    h = x @ experts.up[0]
    h = nn.functional.silu(h) if not gated else nn.functional.silu(h[..., :H]) * h[..., H:]
    torch.testing.assert_close(layer(x)[0], h @ experts.down[0])


def test_shapes_of_tokens():
    layer = layer_of("top-k")
    x = tokens(2, 3, 4, D)
    y, routing = layer(x)
    for other in (x.view(24, D), x.view(6, 4, D)):
        torch.testing.assert_close(layer(other)[0].view_as(y), y)
    torch.testing.assert_close(layer(x[0, 0, 0])[0], y[0, 0, 0])
    assert routing.experts.shape == (24, 2)
    for name in GATES:
        for empty in (x[:0], x[:, :0], x[:, :, :0]):
            if name != "soft moe" or len(empty.flatten(0, -2)) == 0:
                assert layer_of(name)(empty)[0].shape == empty.shape


def test_the_router_learns_from_the_task_through_softmax_top_1_only():
    """Top-1 before the softmax weighs with the constant 1: the task's loss never reaches the router."""
    for make, learns in ((lambda: m.SoftmaxTopKGate(linear(), 1), True), (lambda: m.TopKGate(linear(), 1), False)):
        layer = moe.MoE(seeded(make), seeded(lambda: moe.FFNExperts(N, D, H)))
        layer(tokens(20, D))[0].square().sum().backward()
        grad = layer.gate.score.weight.grad
        assert (grad is not None and bool(grad.abs().max() > 1e-9)) == learns


def test_balance_losses_take_the_routing_that_comes_back():
    layer, x = layer_of("top-1"), tokens(40, D)
    _, routing = layer(x)
    share = routing.load().double() / 40
    loss = g.switch_loss(routing.probability, routing.dense())
    torch.testing.assert_close(loss, N * (share * routing.probability.mean(0)).sum())
    assert (torch.autograd.grad(loss + g.z_loss(routing.logits), layer.gate.score.weight)[0] != 0).all()
    assert not [name for name, value in vars(layer).items() if isinstance(value, moe.Routing)]


def test_signals_and_masks_other_than_the_token():
    x, experts = tokens(3, 4, D), seeded(lambda: moe.FFNExperts(N, D, H))
    task = torch.tensor([4, 0, 2])
    oracle = moe.MoE(m.OracleGate(N), experts)
    ids = task[:, None].expand(3, 4)
    y, routing = oracle(x, ids)
    assert routing.experts.view(3, 4).tolist() == ids.tolist()
    torch.testing.assert_close(oracle(x, ids.flatten())[0], y)
    for b, e in enumerate(task.tolist()):
        torch.testing.assert_close(y[b], experts.each()[e](x[b]))

    layer = moe.MoE(seeded(lambda: m.TopKGate(linear(), 2)), experts)
    context = levels.pooled_context(x)
    y, routing = layer(x, context)
    assert (routing.experts.view(3, 4, 2) == routing.experts.view(3, 4, 2)[:, :1]).all()
    torch.testing.assert_close(layer(x, context.view(3, 4, D))[0], y)
    mask = torch.zeros(3, 4, N, dtype=torch.bool)
    mask[:, 1::2, :2] = mask[:, ::2, 2:] = True
    chosen = layer(x, mask=mask)[1].experts.view(3, 4, 2)
    assert (chosen[:, 1::2] < 2).all()
    assert (chosen[:, ::2] >= 2).all()
    assert torch.equal(layer(x, mask=mask.view(12, N))[1].experts, chosen.view(12, 2))


@pytest.mark.parametrize("name", ["soft moe", "expert choice", "by sequence"])
def test_gates_that_look_at_all_tokens_see_one_sequence_at_a_time(name):
    gate = moe.Capacity(seeded(lambda: m.TopKGate(linear(), 2)), 0.7, per_sequence=True)
    layer = layer_of("top-k") if name == "by sequence" else layer_of(name)
    if name == "by sequence":
        layer.gate = gate
    x = tokens(3, 7, D)
    y, routing = layer(x)
    alone = [layer(sequence) for sequence in x]
    torch.testing.assert_close(y, torch.stack([one for one, _ in alone]))
    assert (
        torch.equal(routing[0][:, : alone[0][1][0].shape[1]], torch.cat([one[0] for _, one in alone]))
        or name == "expert choice"
    )
    if name == "expert choice":
        assert torch.equal(routing.dense(), torch.cat([one.dense() for _, one in alone]))
        assert routing.load().tolist() == [3 * 2] * N  # ceil(7 / 5) each, in each of three
    if name == "by sequence":
        assert routing.dropped == sum(one.dropped for _, one in alone) > 0
        assert routing.capacity == 3 * 2  # ceil(0.7 * 2 * 7 / 5)
        mask = torch.rand(3, 7, N, generator=rng()) < 0.7
        mask[..., 0] = True
        want = torch.stack([layer(sequence, mask=own)[0] for sequence, own in zip(x, mask, strict=True)])
        torch.testing.assert_close(layer(x, mask=mask)[0], want)
    if name == "soft moe":
        order = torch.randperm(7, generator=rng())
        torch.testing.assert_close(layer(x[:, order])[0], y[:, order])
    changed = torch.cat([x[:2], x[2:] + 1])
    assert torch.equal(layer(changed)[0][:2], y[:2])


def test_soft_moe_with_one_slot_gives_every_token_the_same():
    layer = moe.MoE(seeded(lambda: m.SoftMoEGate(D, 1, 1)), seeded(lambda: moe.FFNExperts(1, D, H)), moe.slots_dispatch)
    y, _ = layer(tokens(2, 7, D))
    torch.testing.assert_close(y, y[:, :1].expand_as(y))
    assert not torch.allclose(y[0], y[1])


def test_overflow_passes_through_the_residual_and_is_counted():
    layer = moe.MoE(
        moe.Capacity(seeded(lambda: m.TopKGate(linear(), 2)), 0.25), seeded(lambda: moe.FFNExperts(N, D, H))
    )
    x = tokens(4, 10, D)
    for mode in (layer.train(), layer.eval()):
        y, routing = mode(x)
        lost = (routing.experts < 0).all(-1).view(4, 10)
        assert lost.any()
        assert torch.equal((x + y)[lost], x[lost])
        assert (y[~lost] != 0).any(-1).all()
        assert routing.dropped == 80 - routing.load().sum()


def test_shared_expert():
    inner = layer_of("limited")
    shared = seeded(lambda: nn.Linear(D, D))
    layer, x = moe.SharedExpert(shared, inner), tokens(2, 9, D)
    y, routing = layer(x)
    torch.testing.assert_close(y, inner(x)[0] + x @ shared.weight.T + shared.bias)
    assert torch.equal(routing.experts, inner(x)[1].experts)


def test_state_dict_and_what_it_prints():
    layer, other = (
        layer_of("top-k"),
        moe.MoE(m.TopKGate(linear(), 2), moe.FFNExperts(N, D, H, activation="gelu")).double(),
    )
    other.load_state_dict(layer.state_dict())
    assert torch.equal(layer(tokens(5, D))[0], other(tokens(5, D))[0])
    assert set(layer.state_dict()) == {"gate.score.weight", "experts.up", "experts.down"}
    assert "sorted_dispatch" in repr(layer)
    assert "5 experts, 6 -> 8 -> 6, gelu" in repr(layer)
    assert "self." not in repr(moe.FFNExperts(N, D, H, gated=True))
    assert "5 experts, 6 -> 8 -> 6, relu, gated=True" in repr(moe.FFNExperts(N, D, H, gated=True))
    assert "factor=0.5" in repr(layer_of("limited"))


def test_training_reduces_the_loss_and_specialises():
    """Two clusters with opposite targets, which no single linear expert can serve."""
    x = tokens(200, D)
    x[:, 0] = torch.where(torch.arange(200) % 2 == 0, 3.0, -3.0)
    target = x[:, 1:2] * x[:, :1].sign()
    losses = {}
    for num_experts in (1, 2):
        gate = seeded(lambda n=num_experts: m.SoftmaxTopKGate(m.LinearScore(D, n), 1))
        layer = moe.MoE(gate, seeded(lambda n=num_experts: moe.LinearExperts(n, D, 1)))
        optimiser = torch.optim.Adam(layer.parameters(), lr=0.05)
        for _ in range(150):
            y, routing = layer(x)
            loss = (y - target).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        losses[num_experts] = loss.item()
    assert losses[1] > 0.5
    assert losses[2] < 0.05
    cluster = torch.arange(200) % 2
    assert abs((routing.experts[:, 0] == cluster).double().mean() - 0.5) > 0.49


def layer_on_two_ranks():
    """Run by each rank: a parallel layer against all experts in one process."""
    rank = dist.get_rank()
    parallel = ExpertParallel(timeout=20)
    own = parallel.own(N)
    for make in (lambda: m.TopKGate(linear(), 2), lambda: moe.Capacity(m.SoftmaxTopKGate(linear(), 1), 1.0)):
        whole = moe.MoE(seeded(make), seeded(lambda: moe.FFNExperts(N, D, H, activation="gelu", bias=True)))
        part = moe.MoE(seeded(make), moe.FFNExperts(len(own), D, H, activation="gelu", bias=True).double(), parallel)
        with torch.no_grad():
            for name, parameter in part.experts.named_parameters():
                parameter.copy_(whole.experts.get_parameter(name)[own.start : own.stop])
        x = [tokens(2, 4, D, seed=r) for r in range(2)]  # capacity is counted rank by rank
        want = [whole(mine)[0] for mine in x]
        sum(y.square().sum() for y in want).backward()
        y, _ = part(x[rank])
        torch.testing.assert_close(y, want[rank])
        y.square().sum().backward()
        synchronise_gradients(part)
        for name, parameter in part.named_parameters():
            grad = whole.get_parameter(name).grad
            if "experts." in name:
                grad = grad[own.start : own.stop]
            torch.testing.assert_close(parameter.grad, grad)
    print("agrees")


def test_expert_parallelism_is_a_dispatch():
    assert launch([__file__, "layer_on_two_ranks"], 2) == ["agrees\n"] * 2


if __name__ == "__main__":
    with joined():
        globals()[sys.argv[1]]()
