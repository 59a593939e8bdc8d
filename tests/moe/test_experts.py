"""Each kind of expert against its formula, one row at a time."""

import math

import pytest
import torch
from torch.nn import functional as F

from gated import moe
from gated.moe import gates as m


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def randomised(module, seed=0):
    generator = rng(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module.double()


X = torch.randn(8, 5, generator=rng(3), dtype=torch.float64)
OFFSETS = torch.tensor([0, 3, 3, 7, 8])  # the second of four experts has no rows
OWNER = [0, 0, 0, 2, 2, 2, 2, 3]


def rows_of(experts, formula):
    """The stack in one call, and one by one, against a formula for expert i."""
    together = experts(X, OFFSETS)
    for row, (i, x) in enumerate(zip(OWNER, X, strict=True)):
        torch.testing.assert_close(together[row], formula(i, x))
        torch.testing.assert_close(experts.each()[i](x[None])[0], formula(i, x))
    assert experts.num_experts == len(experts.each()) == 4
    assert experts(X[:0], 0 * OFFSETS).shape == (0, together.shape[1])


ACTIVATIONS = {
    "relu": lambda x: x.clamp(min=0),
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "tanh": lambda x: 1 - 2 / (torch.exp(2 * x) + 1),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("gated", [False, True])
def test_ffn(activation, bias, gated):
    e = randomised(moe.FFNExperts(4, 5, 6, activation=activation, gated=gated, bias=bias, dim_out=3))
    act = ACTIVATIONS[activation]

    def formula(i, x):
        h = x @ e.up[i] + (e.up_bias[i] if bias else 0)
        h = act(h[:6]) * h[6:] if gated else act(h)
        return h @ e.down[i] + (e.down_bias[i] if bias else 0)

    rows_of(e, formula)


def test_ffn_starts_as_linear_layers_do():
    e = moe.FFNExperts(50, 16, 64, bias=True)
    for parameter, width in ((e.up, 16), (e.up_bias, 16), (e.down, 64), (e.down_bias, 64)):
        assert 0.95 * width**-0.5 < parameter.abs().max() <= width**-0.5
        assert abs(parameter.std() * (3 * width) ** 0.5 - 1) < 0.05


@pytest.mark.parametrize("bias", [False, True])
def test_linear(bias):
    e = randomised(moe.LinearExperts(4, 5, 2, bias=bias))
    rows_of(e, lambda i, x: x @ e.weight[i] + (e.bias[i] if bias else 0))


def test_modules():
    modules = [
        torch.nn.Linear(5, 2),
        torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2)),
    ]
    e = randomised(moe.ModuleExperts([*modules, *modules]))
    rows_of(e, lambda i, x: e.experts[i](x))
    e(X, OFFSETS).sum().backward()
    assert all(parameter.grad is not None for parameter in e.parameters())


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_residual(rank, bias):
    core = randomised(moe.FFNExperts(1, 5, 6, activation="gelu", bias=bias, dim_out=3))
    e = moe.ResidualExperts(core, 4, rank=rank)
    start = moe.FFNExperts(4, 5, 6, activation="gelu", bias=bias, dim_out=3).double()
    with torch.no_grad():
        for name, parameter in start.named_parameters():
            parameter.copy_(core.get_parameter(name).expand_as(parameter))
    torch.testing.assert_close(e(X, OFFSETS), start(X, OFFSETS))  # every expert is the core

    learned = {name for name, parameter in e.named_parameters() if parameter.requires_grad}
    assert learned == {
        f"{where}.{which}.weight" for where in ("up", "down") for which in ("last", "first")[: 1 + bool(rank)]
    }
    with torch.no_grad():
        for name in learned:
            e.get_parameter(name).copy_(torch.randn(e.get_parameter(name).shape, generator=rng(5)))
    before = core.up.clone()

    def matrix(stack, i):
        return stack.last.weight[i] if rank is None else stack.first.weight[i] @ stack.last.weight[i]

    def formula(i, x):
        h = F.gelu(x @ (core.up[0] + matrix(e.up, i)) + (core.up_bias[0] if bias else 0))
        return h @ (core.down[0] + matrix(e.down, i)) + (core.down_bias[0] if bias else 0)

    rows_of(e, formula)
    e(X, OFFSETS).square().sum().backward()
    assert all((parameter.grad is not None) == (name in learned) for name, parameter in e.named_parameters())
    assert torch.equal(core.up, before)
    with torch.no_grad():
        core.up.zero_()
    assert torch.equal(e.core.up, before)  # a copy


def test_convolutions_on_signals():
    e = moe.conv_experts(3, 1, 10, width=4)
    signals = torch.randn(6, 40, generator=rng())
    offsets = torch.tensor([0, 2, 2, 6])
    y = e(signals, offsets)
    for row, i in enumerate([0, 0, 2, 2, 2, 2]):
        _, first, _, second, _, _, _, last = e.experts[i]
        h = F.relu(F.conv1d(signals[row][None, None], first.weight, first.bias, stride=2, padding=2))
        assert h.shape == (1, 4, 20)
        h = F.relu(F.conv1d(h, second.weight, second.bias, stride=2, padding=2))
        torch.testing.assert_close(y[row], h.mean(-1)[0] @ last.weight.T + last.bias)
    y.sum().backward()
    assert all(parameter.grad is not None for parameter in e.parameters())
    two = moe.conv_experts(2, 2, 3)
    assert two(torch.randn(4, 2 * 30), torch.tensor([0, 1, 4])).shape == (4, 3)


def heads(gate, **options):
    return randomised(moe.MixtureOfHeads(gate, 4, 6, 3, **options), seed=7)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    "dispatch", [moe.sorted_dispatch, moe.loop_dispatch, moe.dense_dispatch, moe.capacity_dispatch]
)
def test_heads_by_a_loop(causal, dispatch):
    layer = heads(m.TopKGate(m.LinearScore(6, 4), 2), causal=causal, dispatch=dispatch)
    x = torch.randn(2, 5, 6, generator=rng(), dtype=torch.float64)
    y, routing = layer(x)
    weights = routing.dense().view(2, 5, 4)
    for b in range(2):
        key, value = x[b] @ layer.key.weight.T, x[b] @ layer.value.weight.T
        for t in range(5):
            want = torch.zeros(6, dtype=torch.float64)
            seen = t + 1 if causal else 5
            for i in range(4):
                score = (x[b, t] @ layer.query.weight[i]) @ key[:seen].T / 3**0.5
                want = want + weights[b, t, i] * (score.softmax(0) @ value[:seen]) @ layer.output.weight[i]
            torch.testing.assert_close(y[b, t], want)
    y.square().sum().backward()
    assert all(bool((parameter.grad != 0).any()) for parameter in layer.parameters())


def test_all_heads_with_equal_weights_are_multi_query_attention():
    layer = heads(m.TopKGate(m.LinearScore(6, 4, zero=True), 4), causal=True)
    layer.gate.score.weight.data.zero_()
    x = torch.randn(1, 7, 6, generator=rng(), dtype=torch.float64)
    q = torch.einsum("btd,ndc->bntc", x, layer.query.weight)
    k, v = (f(x)[:, None].expand(-1, 4, -1, -1) for f in (layer.key, layer.value))
    o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(layer(x)[0], torch.einsum("bntc,ncd->btd", o, layer.output.weight) / 4)
    dropped = heads(moe.Capacity(m.TopKGate(m.LinearScore(6, 4), 2), 0))
    assert not dropped(x)[0].any()


def test_expert_dropout():
    x = torch.randn(50, 3, generator=rng(), dtype=torch.float64)
    gate = m.SoftGate(m.LinearScore(3, 8)).double()
    drop = moe.ExpertDropout(gate, 0.5)
    quiet = gate(x).dense()
    assert torch.equal(drop(x).dense(), quiet)  # no generator
    assert torch.equal(drop.eval()(x, generator=rng()).dense(), quiet)
    drop.train()
    generator, missing = rng(1), 0
    for _ in range(200):
        dense = drop(x, generator=generator).dense()
        out = (dense == 0).all(0)
        assert torch.equal(dense == 0, out.expand(50, -1))  # whole experts
        torch.testing.assert_close(dense[:, ~out], quiet[:, ~out] / quiet[:, ~out].sum(1, keepdim=True))
        missing += int(out.sum())
    assert abs(missing / 1600 - 0.5) < 4 * 0.5 / 40
    assert torch.equal(drop(x, generator=rng(2)).dense(), drop(x, generator=rng(2)).dense())

    mask = torch.zeros(50, 8, dtype=torch.bool)
    mask[torch.arange(50), torch.arange(50) % 8] = True
    assert torch.equal(drop(x, mask, generator).dense(), mask.double())  # nothing else is left for these tokens
    most = moe.ExpertDropout(m.TopKGate(m.LinearScore(3, 8), 2).double(), 0.999)
    for _ in range(20):
        routing = most(x, generator=generator)
        assert (routing.load() > 0).sum() >= 1
        torch.testing.assert_close(routing.weights.sum(-1), torch.ones(50).double())


def test_autocast():
    """The grouped product runs in the low precision that linear layers get, and gradients come back in single."""
    e = randomised(moe.FFNExperts(4, 5, 6, activation="gelu", bias=True)).float()
    x, offsets = X.float(), OFFSETS
    exact = e(x, offsets)
    with torch.autocast("cpu", torch.bfloat16):
        y = e(x, offsets)
    torch.testing.assert_close(y.float(), exact, rtol=0.05, atol=0.3)
    assert not torch.equal(y.float(), exact)
    y.float().sum().backward()
    assert {parameter.grad.dtype for parameter in e.parameters()} == {torch.float32}
