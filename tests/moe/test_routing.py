"""Routings: dense and sparse forms, order, place, joining; and capacity, against loops over tokens and slots."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from gated.moe import Capacity, Routing, expert_capacity, limit, token_order
from gated.moe import gates as m


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def linear(num_experts):
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return m.LinearScore(4, num_experts)


@st.composite
def routings(draw, ties=False):
    """0 to 9 tokens, k of up to 6 experts, some slots empty, weights distinct or with ties."""
    num_experts, tokens, seed = draw(st.integers(1, 6)), draw(st.integers(0, 9)), draw(st.integers(0, 10_000))
    k, empty = draw(st.integers(1, num_experts)), draw(st.sampled_from([0.0, 0.4, 1.0]))
    generator = rng(seed)
    weights, experts = torch.rand(tokens, num_experts, generator=generator, dtype=torch.float64).topk(k)
    if ties:
        weights = (3 * weights).ceil() / 3
    closed = torch.rand(tokens, k, generator=generator) < empty
    return Routing(weights.masked_fill(closed, 0), experts.masked_fill(closed, -1), num_experts)


@given(routings())
def test_dense_load_order_and_place_by_loops(routing):
    tokens, slots = routing.experts.shape
    choices = [(int(routing.experts[t, j]), t, j) for t in range(tokens) for j in range(slots)]
    filled = [(e, t, j) for e, t, j in choices if e >= 0]
    dense = torch.zeros(tokens, routing.num_experts, dtype=torch.float64)
    for e, t, j in filled:
        dense[t, e] = routing.weights[t, j]
    assert torch.equal(routing.dense(), dense)
    assert routing.load().tolist() == [sum(e == i for e, *_ in filled) for i in range(routing.num_experts)]
    order, offsets = routing.sort()
    assert order.tolist() == [slots * t + j for _, t, j in sorted(filled)]
    assert offsets.tolist() == [sum(e < i for e, *_ in filled) for i in range(routing.num_experts + 1)]
    for e, t, j in choices:
        earlier = sum(other[0] == e and other[1:] < (t, j) for other in filled)
        assert routing.position()[t, j] == (earlier if e >= 0 else -1)


@given(routings())
def test_from_dense_and_back(routing):
    dense = routing.dense()
    for slots in (None, routing.experts.shape[1], routing.num_experts):
        again = Routing.from_dense(dense, slots)
        assert torch.equal(again.dense(), dense)
        assert (again.weights.diff(dim=1) <= 0).all()
    fullest = max([1, *routing.experts.ge(0).sum(-1).tolist()])
    assert Routing.from_dense(dense).experts.shape[1] == fullest


@given(routings(), routings())
def test_join(first, second):
    second = Routing(second.weights, second.experts % first.num_experts, first.num_experts)
    joined = Routing.join([first, second, first])
    assert torch.equal(joined.dense(), torch.cat([first.dense(), second.dense(), first.dense()]))
    assert joined.probability is None
    limited = [limit(part._replace(probability=part.dense()), 2) for part in (first, second)]
    joined = Routing.join(limited)
    assert joined.capacity == 4
    assert joined.dropped == limited[0].dropped + limited[1].dropped
    assert torch.equal(joined.probability, torch.cat([first.dense(), second.dense()]))


def fill_buffers(routing, capacity, priority):
    """First choices of all tokens before second choices; among them tokens in their order of priority."""
    rows = routing.weights.tolist()
    score = {"order": lambda t: 0, "max": lambda t: -max(rows[t]), "sum": lambda t: -float(routing.weights[t].sum())}
    order = sorted(range(len(rows)), key=score[priority])
    room = [capacity] * routing.num_experts
    experts = routing.experts.clone()
    for j in range(experts.shape[1]):
        for t in order:
            e = int(experts[t, j])
            if e >= 0 and room[e] > 0:
                room[e] -= 1
            else:
                experts[t, j] = -1
    return order, experts


@given(routings(ties=True), st.integers(0, 5), st.sampled_from(["order", "max", "sum"]))
def test_limit_by_a_loop(routing, capacity, priority):
    order, experts = fill_buffers(routing, capacity, priority)
    assert token_order(routing.weights, priority).tolist() == order
    limited = limit(routing, capacity, priority)
    assert torch.equal(limited.experts, experts)
    assert torch.equal(limited.weights, routing.weights.masked_fill(experts < 0, 0))
    assert limited.load().max() <= capacity
    assert limited.capacity == capacity
    assert limited.dropped == routing.load().sum() - limited.load().sum()
    twice = limit(limited, 0)
    assert twice.dropped == routing.load().sum()
    assert not twice.load().any()


def test_ties_go_to_the_earlier_token_in_long_batches_too():
    """An unstable sort shows only there."""
    weights = torch.arange(5000).remainder(3)[:, None].float()
    for priority in ("max", "sum"):
        order = token_order(weights, priority)
        assert order.tolist() == [t for value in (2, 1, 0) for t in range(5000) if t % 3 == value]


def test_dropped_choices_get_no_gradient():
    weights = torch.tensor([[0.5], [0.9], [0.7]], requires_grad=True)
    limited = limit(Routing(weights, torch.zeros(3, 1, dtype=torch.int64), 2), 1, "max")
    limited.dense().sum().backward()
    assert weights.grad.tolist() == [[0], [1], [0]]


def test_capacity_gate_counts_in_training_and_in_evaluation():
    x = torch.randn(40, 4, generator=rng())
    gate = Capacity(m.TopKGate(linear(5), 2), 0.75, priority="sum")
    for mode in (gate.train(), gate.eval()):
        routing = mode(x)
        free = mode.gate(x)
        assert routing.capacity == 12  # 0.75 * 2 * 40 / 5
        assert routing.dropped == (free.load() - 12).clamp(min=0).sum() > 0
        assert torch.equal(routing.probability, free.probability)
    assert gate(x[:0]).capacity == 0
    fixed = Capacity(gate.gate, size=3)(x)
    assert fixed.load().tolist() == free.load().clamp(max=3).tolist()
    assert Capacity(gate.gate, 0)(x).dropped == 80
    assert Capacity(gate.gate, 1e9)(x).dropped == 0
    assert expert_capacity(1024, 2, 64, 1.1) == 36


def test_priority_keeps_the_sure_tokens():
    """With a plain order the end of the batch is dropped, with a priority the least sure, and less weight is lost."""
    x = torch.randn(200, 4, generator=rng())
    gate = m.SoftmaxTopKGate(linear(4), 1)
    plain, best = (Capacity(gate, 0.5, priority=priority)(x) for priority in ("order", "max"))
    free = gate(x)
    for e in range(4):
        mine = (free.experts[:, 0] == e).nonzero()[:, 0]
        first, kept = (set((r.experts[:, 0] == e).nonzero()[:, 0].tolist()) for r in (plain, best))
        assert first == set(mine[:25].tolist())
        assert kept == set(mine[free.weights[mine, 0].argsort(descending=True)[:25]].tolist())
    assert best.weights.sum() > plain.weights.sum()


@pytest.mark.parametrize(
    ("factor", "num_experts", "published"),
    [(1, 8, 3.3), (1, 64, 9.8), (1, 128, 13.9), (1.25, 8, 0.0), (1.25, 64, 2.2), (1.25, 128, 5.3)],
)
def test_what_random_routing_drops(factor, num_experts, published):
    """1,024 tokens, k = 1: in expectation sum over experts of E[(Binomial(T, 1/N) - C)+] / T; per cent."""
    tokens, generator, gate = 1024, rng(5), m.RandomGate(num_experts)
    capacity = expert_capacity(tokens, 1, num_experts, factor)
    load = torch.arange(tokens + 1)
    tail = (load - capacity).clamp(min=0).numpy()
    expected = 100 * num_experts * float((binom.pmf(load.numpy(), tokens, 1 / num_experts) * tail).sum()) / tokens
    assert abs(expected - published) < 0.06
    limited = Capacity(gate, factor)
    x = torch.zeros(tokens, 1)
    shares = torch.stack([limited(x, generator=generator).dropped for _ in range(60)]).double() * 100 / tokens
    assert abs(shares.mean() - expected) < 4 * shares.std() / 60**0.5 + 1e-9
