"""The learnable graph: its law against enumeration and draws, its gradient against finite differences."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gated.commformer import (
    graph_from_indices,
    inclusion_probability,
    initial_edges,
    logit_gap,
    messages,
    sample_graph,
    senders,
)
from gated.gates import plackett_luce_log_prob

F64 = torch.float64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=F64)


@pytest.mark.parametrize(("agents", "k"), [(3, 1), (5, 2), (6, 2), (8, 3), (10, 4), (27, 10)])
def test_senders_for_a_share_of_four_tenths(agents, k):
    assert senders(agents, 0.4) == k


def test_senders_at_the_ends():
    assert senders(5, 0.01) == 1 and senders(5, 1) == 4 and senders(2, 1.0) == 1


@given(st.integers(2, 8), st.data())
def test_every_row_has_exactly_k_senders_and_not_itself(agents, data):
    k = data.draw(st.integers(1, agents - 1))
    for source in (None, generator(1)):
        graph = sample_graph(logits(3, agents, agents), k, generator=source)
        assert set(graph.unique().tolist()) <= {0.0, 1.0}
        assert torch.equal(graph.sum(-1), torch.full((3, agents), float(k), dtype=F64))
        assert (graph.diagonal(dim1=-2, dim2=-1) == 0).all()


def test_the_exact_graph_takes_the_largest_logits():
    edges = torch.tensor([[9.0, 1, 2, 3], [1, 9, 3, 2], [4, 2, 9, 3], [0, 5, 1, 9]])
    exact = sample_graph(edges, 2, generator=None)
    assert torch.equal(exact, graph_from_indices([[3, 2], [2, 3], [0, 3], [1, 2]]))


def test_equal_logits_make_a_hub_and_noise_breaks_it():
    hub = sample_graph(torch.ones(6, 6), 1, generator=None)
    assert (hub.sum(0) >= 4).any()  # nearly everybody hears the same agent, whom nobody chose
    shares = [
        sample_graph(initial_edges(6, generator=generator(seed)), 1, generator=None).sum(0).max() for seed in range(50)
    ]
    assert torch.stack(shares).mean() < 3.2
    start = initial_edges(30, 30, generator=generator())
    assert start.shape == (30, 30, 30)
    assert start.mean().item() == pytest.approx(1, abs=1e-3) and start.std().item() == pytest.approx(1e-2, rel=0.05)


# The law of a draw ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2])
def test_inclusion_probability_is_that_of_all_orders(k):
    edges = 2 * logits(5, 5)
    closed = inclusion_probability(edges, k)
    expected = torch.zeros_like(edges)
    for i in range(5):
        others = [j for j in range(5) if j != i]
        for order in itertools.permutations(range(4), k):
            chance = plackett_luce_log_prob(edges[i, others], torch.tensor(order)).exp()
            for place in order:
                expected[i, others[place]] += chance
    assert torch.allclose(closed, expected, atol=1e-14)
    assert torch.allclose(closed.sum(-1), torch.full((5,), float(k), dtype=F64))
    assert (closed.diagonal() == 0).all()


@pytest.mark.parametrize(("k", "temperature"), [(1, 1.0), (2, 1.0), (2, 0.1)])
def test_inclusion_probability_is_the_share_of_draws(k, temperature):
    edges = logits(5, 5, seed=3)
    draws = 100_000
    many = edges.expand(draws, 5, 5)
    share = sample_graph(many, k, temperature, generator=generator(7)).mean(0)
    p = inclusion_probability(edges, k)
    deviation = (p * (1 - p) / draws).sqrt()
    assert ((share - p).abs() <= 4.5 * deviation + 1e-12).all()


def test_inclusion_probability_of_uniform_and_of_decided_rows():
    uniform = torch.full((5, 5), 3.0, dtype=F64)
    for k in (1, 2):
        off = inclusion_probability(uniform, k)[~torch.eye(5, dtype=torch.bool)]
        assert torch.allclose(off, torch.full((20,), k / 4, dtype=F64))
    decided = torch.zeros(3, 3, dtype=F64)
    decided[:, 0] = 500.0  # 1 - p would be 0
    assert torch.allclose(inclusion_probability(decided, 2).sum(-1), torch.full((3,), 2.0, dtype=F64))


def test_three_point_three_is_the_gap_for_nine_draws_of_ten():
    gap = math.log(0.9 * 3 / 0.1)
    assert gap == pytest.approx(3.3, abs=0.01)
    edges = torch.zeros(5, 5, dtype=F64)
    edges[0, 2] = gap
    assert inclusion_probability(edges, 1)[0, 2].item() == pytest.approx(0.9, abs=1e-12)
    assert logit_gap(edges, 1)[0].item() == pytest.approx(gap) and logit_gap(edges, 1)[1] == 0
    assert logit_gap(edges, 4)[0] == torch.inf  # all others are taken: nobody is next


# Its gradient --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_straight_through_is_the_slope_of_the_soft_graph(temperature):
    edges, coefficient = logits(4, 4).requires_grad_(), logits(4, 4, seed=1)
    (sample_graph(edges, 2, temperature, generator=generator(5)) * coefficient).sum().backward()
    noise = -torch.empty(4, 4, dtype=F64).exponential_(generator=generator(5)).log()

    def soft(e: torch.Tensor) -> torch.Tensor:
        off = (e + noise).masked_fill(torch.eye(4, dtype=torch.bool), -torch.inf)
        return ((off / temperature).softmax(-1) * coefficient).sum()

    for i, j in itertools.product(range(4), range(4)):
        step = torch.zeros(4, 4, dtype=F64)
        step[i, j] = 1e-6
        slope = (soft(edges.detach() + step) - soft(edges.detach() - step)) / 2e-6
        assert edges.grad[i, j].item() == pytest.approx(slope.item(), abs=1e-8)


def test_rows_of_the_gradient_add_up_to_nothing_and_losers_share_one_number():
    edges = logits(5, 5).requires_grad_()
    graph = sample_graph(edges, 2, generator=generator(2))
    credit = logits(5, 5, seed=4)
    (graph * credit * graph.detach()).sum().backward()  # only drawn senders have a say, as in masked attention
    assert edges.grad.sum(-1).abs().max() < 1e-15
    noise = -torch.empty(5, 5, dtype=F64).exponential_(generator=generator(2)).log()
    y = (edges.detach() + noise).masked_fill(torch.eye(5, dtype=torch.bool), -torch.inf).softmax(-1)
    for i in range(5):
        lost = [j for j in range(5) if j != i and graph[i, j] == 0]
        per_probability = edges.grad[i, lost] / y[i, lost]
        assert torch.allclose(per_probability, per_probability[0].expand(2), rtol=1e-9)


# Counting ------------------------------------------------------------------------------------------------------------


def test_messages_are_off_diagonal_links_of_those_who_listen():
    graph = graph_from_indices([[1, 2], [], [0]]) + torch.eye(3)
    assert messages(graph) == 3
    receive = torch.tensor([[1.0, 1, 0], [0, 1, 1], [0, 0, 0]])
    assert messages(graph, receive).tolist() == [2, 1, 0]
    for agents, many, all_of_them in ((27, 270, 702), (5, 10, 20)):
        drawn = sample_graph(initial_edges(agents, generator=generator()), senders(agents, 0.4), generator=None)
        assert messages(drawn) == many and agents * (agents - 1) == all_of_them


def test_with_self_edges_an_agent_may_take_itself():
    edges = torch.eye(4)
    assert torch.equal(sample_graph(edges, 1, generator=None, self_edges=True), torch.eye(4))
    assert messages(sample_graph(edges, 1, generator=None, self_edges=True)) == 0
    assert sample_graph(edges, 4, generator=None, self_edges=True).sum() == 16
