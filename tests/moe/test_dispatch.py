"""All dispatches against a loop over tokens and slots: outputs, and gradients of tokens, weights and experts."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gated import moe
from gated.moe import gates as m

DISPATCHES = [moe.dense_dispatch, moe.loop_dispatch, moe.sorted_dispatch, moe.capacity_dispatch]
KINDS = {
    "ffn": lambda n: moe.FFNExperts(n, 3, 4, activation="tanh"),
    "ffn with biases": lambda n: moe.FFNExperts(n, 3, 4, activation="gelu", bias=True, dim_out=2),
    "swiglu": lambda n: moe.FFNExperts(n, 3, 4, activation="silu", gated=True),
    "linear": lambda n: moe.LinearExperts(n, 3, 2),
    "residual": lambda n: moe.ResidualExperts(moe.FFNExperts(1, 3, 4, bias=True), n),
    "modules": lambda n: moe.ModuleExperts(torch.nn.Linear(3, 2) for _ in range(n)),
}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def seeded(build):
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return build()


def linear(num_experts):
    return seeded(lambda: m.LinearScore(3, num_experts))


def make(kind, num_experts, seed=0):
    experts = KINDS[kind](num_experts).double()
    generator = rng(seed)
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return experts


def by_hand(x, routing, experts):
    """y_t = sum over filled slots of w E(x_t), a token and a slot at a time."""
    each = experts.each()
    width = each[0](x[:0]).shape[1]
    y = [torch.zeros(width, dtype=x.dtype) for _ in range(len(x))]
    for t, row in enumerate(routing.experts.tolist()):
        for j, e in enumerate(row):
            if e >= 0:
                y[t] = y[t] + routing.weights[t, j] * each[e](x[t : t + 1])[0]
    return torch.stack(y) if len(x) else x.new_zeros(0, width)


def outputs(dispatch, x, routing, experts):
    """y and the gradients of a fixed random functional of it; what nobody used has zeros."""
    leaves = [x.detach().clone().requires_grad_(), routing.weights.detach().clone().requires_grad_()]
    leaves += [p for p in experts.parameters() if p.requires_grad]
    y = dispatch(leaves[0], routing._replace(weights=leaves[1]), experts)
    functional = (y * torch.randn(y.shape, generator=rng(9), dtype=torch.float64)).sum() + 0 * sum(
        p.sum() for p in leaves
    )
    return [y.detach(), *torch.autograd.grad(functional, leaves)]


@st.composite
def problems(draw):
    num_experts, tokens, seed = draw(st.integers(1, 6)), draw(st.integers(0, 9)), draw(st.integers(0, 10_000))
    k, bias = draw(st.integers(1, num_experts)), draw(st.sampled_from([0.0, 5.0]))
    generator = rng(seed)
    x = torch.randn(tokens, 3, generator=generator, dtype=torch.float64)
    logits = torch.randn(tokens, num_experts, generator=generator, dtype=torch.float64)
    logits += bias * torch.arange(num_experts)  # with a bias the last experts have all the tokens
    if draw(st.booleans()):
        logits = logits.round()  # ties
    weights, experts = logits.softmax(-1).topk(k)
    closed = torch.rand(tokens, k, generator=generator) < draw(st.sampled_from([0.0, 0.4, 1.0]))
    routing = moe.Routing(weights.masked_fill(closed, 0), experts.masked_fill(closed, -1), num_experts)
    capacity = draw(st.sampled_from([None, 0, 1, 3]))
    if capacity is not None:
        routing = moe.limit(routing, capacity, draw(st.sampled_from(["order", "max", "sum"])))
    return x, routing


@given(problems(), st.sampled_from(list(KINDS)))
def test_four_dispatches_and_a_loop(problem, kind):
    x, routing = problem
    experts = make(kind, routing.num_experts)
    want = outputs(by_hand, x, routing, experts)
    for dispatch in DISPATCHES:
        for got, expected in zip(outputs(dispatch, x, routing, experts), want, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["ffn", "swiglu"])
@pytest.mark.parametrize("factor", [None, 1.0])
def test_single_precision_and_a_real_size(kind, factor):
    experts = make(kind, 16).float()
    x = torch.randn(500, 3, generator=rng())
    gate = m.TopKGate(linear(16), 2)
    routing = (gate if factor is None else moe.Capacity(gate, factor))(x)
    results = [dispatch(x, routing, experts) for dispatch in DISPATCHES]
    for y in results[1:]:
        torch.testing.assert_close(y, results[0], rtol=1e-5, atol=1e-5)
    assert factor is None or routing.dropped > 0


class Layer(torch.nn.Module):
    """Two of three experts, from logits, in the form that `functional_call` wants."""

    def __init__(self, dispatch):
        super().__init__()
        self.experts, self.dispatch = make("ffn with biases", 3), dispatch

    def forward(self, x, logits):
        return self.dispatch(x, moe.Routing(*logits.softmax(-1).topk(2), 3), self.experts)


@pytest.mark.parametrize("dispatch", DISPATCHES)
def test_finite_differences(dispatch):
    layer = Layer(dispatch)
    names, parameters = zip(*layer.named_parameters(), strict=True)
    x, logits = (torch.randn(5, 3, generator=rng(i), dtype=torch.float64, requires_grad=True) for i in (0, 1))

    def run(x, logits, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x, logits))

    assert torch.autograd.gradcheck(run, (x, logits, *parameters))


@pytest.mark.parametrize("dispatch", DISPATCHES)
def test_an_expert_without_tokens_gets_zeros_as_gradient(dispatch):
    """Not None and not NaN: optimisers and all-reduces see all parameters in every step."""
    experts = make("ffn", 4)
    routing = moe.Routing(torch.ones(3, 1).double(), torch.tensor([[1], [1], [3]]), 4)
    dispatch(torch.ones(3, 3).double(), routing, experts).sum().backward()
    for parameter in experts.parameters():
        assert (parameter.grad[[0, 2]] == 0).all()
        assert (parameter.grad[[1, 3]] != 0).any()


@pytest.mark.parametrize("dispatch", DISPATCHES)
def test_a_dropped_token_gets_exactly_zero(dispatch):
    """Even where its features are not finite: the residual connection hands it on untouched."""
    experts = make("ffn", 2)
    x = torch.ones(3, 3).double()
    routing = moe.limit(moe.Routing(torch.ones(3, 1).double(), torch.zeros(3, 1, dtype=torch.int64), 2), 2)
    y = dispatch(x, routing, experts)
    assert (y[2] == 0).all()
    assert (y[:2] != 0).all()


@pytest.mark.parametrize("dispatch", DISPATCHES)
def test_half_precision_stays_and_the_weights_follow(dispatch):
    experts = make("swiglu", 4).bfloat16()
    x = torch.randn(9, 3, generator=rng()).bfloat16()
    routing = m.TopKGate(linear(4), 2)(x.float())
    y = dispatch(x, routing, experts)
    assert y.dtype == torch.bfloat16
    exact = dispatch(x.double(), routing._replace(weights=routing.weights.double()), make("swiglu", 4))
    torch.testing.assert_close(y.double(), exact, rtol=0.1, atol=0.3)


def test_the_result_does_not_depend_on_the_order_of_tokens_or_slots():
    experts, x = make("ffn", 5), torch.randn(30, 3, generator=rng(), dtype=torch.float64)
    routing = m.TopKGate(linear(5), 3).double()(x)
    order = torch.randperm(30, generator=rng(1))
    for dispatch in DISPATCHES:
        y = dispatch(x, routing, experts)
        flipped = routing._replace(weights=routing.weights.flip(1), experts=routing.experts.flip(1))
        torch.testing.assert_close(dispatch(x, flipped, experts), y)
        moved = moe.Routing(routing.weights[order], routing.experts[order], 5)
        torch.testing.assert_close(dispatch(x[order], moved, experts), y[order])


def test_the_buffers_are_as_large_as_the_limit_says():
    """`capacity_dispatch` calls the experts on N C rows, whatever the load; without a limit C is the largest load."""
    seen = []

    class Spy(moe.LinearExperts):
        def forward(self, rows, offsets):
            seen.append((len(rows), offsets.tolist()))
            return super().forward(rows, offsets)

    experts, x = Spy(3, 3, 2).double(), torch.ones(4, 3).double()
    routing = moe.Routing(torch.ones(4, 1).double(), torch.tensor([[0], [0], [0], [2]]), 3)
    moe.capacity_dispatch(x, routing, experts)
    moe.capacity_dispatch(x, moe.limit(routing, 2), experts)
    assert seen == [(9, [0, 3, 6, 9]), (6, [0, 2, 4, 6])]


def test_slots_by_a_loop():
    experts, x = make("ffn", 3), torch.randn(7, 3, generator=rng(), dtype=torch.float64)
    slots = seeded(lambda: m.SoftMoEGate(3, 3, 2)).double()(x)
    y = moe.slots_dispatch(x, slots, experts)
    want = torch.zeros_like(y)
    for i, expert in enumerate(experts.each()):
        for s in range(2):
            row = sum(slots.dispatch[t, i, s] * x[t] for t in range(7))
            for t in range(7):
                want[t] += slots.combine[t, i, s] * expert(row[None])[0]
    torch.testing.assert_close(y, want)
