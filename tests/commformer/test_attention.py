"""Relation attention: against a tensor of relations, against PyTorch's attention, and the slopes of its links."""

import math

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gated.commformer import relation_attention, released_attention, sample_graph

F64 = torch.float64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=F64)


def off_diagonal(agents: int) -> torch.Tensor:
    return 1 - torch.eye(agents, dtype=F64)


def naive(q, k, v, relation, graph, *, released=False, causal=False):
    """The equations with a relation for every pair, one input and one receiver after another."""
    out = torch.zeros_like(q)
    width, agents = q.shape[-1], q.shape[-2]
    for b in range(len(q)):
        alpha = graph if graph.ndim == 2 else graph[b]
        for i in range(agents):
            scores, factors, values = [], [], []
            for j in range(agents):
                same = float(i == j)
                if released:
                    kind, factor = int(alpha[j, i]), alpha[i, j] + same
                else:
                    kind, factor = int(i != j), alpha[i, j] if i != j else torch.tensor(1.0, dtype=F64)
                if factor == 0 or (causal and j > i):
                    continue
                ra, rb = relation[kind, :width], relation[kind, width:]
                scores.append((q[b, i] + ra) @ (k[b, j] + rb) / (width if released else math.sqrt(width)))
                factors.append(factor)
                values.append(v[b, j])
            p = torch.stack(scores).softmax(0)
            out[b, i] = sum(p[n] * (factors[n] if released else 1) * values[n] for n in range(len(values)))
    return out


@pytest.mark.parametrize("estimator", ["masked", "normalised"])
@pytest.mark.parametrize("each", [False, True])
def test_two_vectors_are_a_relation_for_every_pair(estimator, each):
    q, k, v = (draw(3, 5, 8, seed=s) for s in range(3))
    relation = draw(2, 16, seed=3)
    graph = sample_graph(draw(*((3,) if each else ()), 5, 5), 2, generator=generator())
    leaves = [x.requires_grad_() for x in (q, k, v, relation)]
    ours = relation_attention(q, (k, v), (k, v), relation, graph, estimator)
    theirs = naive(q, k, v, relation, graph)
    assert torch.allclose(ours, theirs, atol=1e-14)
    weight = draw(3, 5, 8, seed=5)
    for a, b in zip(
        torch.autograd.grad((ours * weight).sum(), leaves),
        torch.autograd.grad((theirs * weight).sum(), leaves),
        strict=True,
    ):
        assert torch.allclose(a, b, atol=1e-13)


def test_all_edges_and_one_kind_are_plain_attention():
    q, k, v = (draw(4, 6, 8, seed=s) for s in range(3))
    relation = draw(1, 16).expand(2, 16)
    ra, rb = relation[0].chunk(2)
    ours = relation_attention(q, (k, v), (k, v), relation, off_diagonal(6))
    assert torch.allclose(ours, F.scaled_dot_product_attention(q + ra, k + rb, v), atol=1e-14)
    plain = relation_attention(q, (k, v), (k, v), torch.zeros(2, 16, dtype=F64), off_diagonal(6))
    assert torch.allclose(plain, F.scaled_dot_product_attention(q, k, v), atol=1e-14)


@pytest.mark.parametrize("estimator", ["masked", "normalised"])
def test_a_row_without_links_is_its_own_value(estimator):
    q, k, v = (draw(4, 3, 8, seed=s) for s in range(3))
    none = relation_attention(q, (k, v), (k, v), draw(2, 16), torch.zeros(3, 3, dtype=F64), estimator)
    assert torch.equal(none, v)
    nobody = relation_attention(q, (k, v), (k[:, :0], v[:, :0]), draw(2, 16), torch.zeros(3, 0, dtype=F64), estimator)
    assert torch.equal(nobody, v)


def test_what_an_agent_keeps_and_what_it_sends_are_apart():
    q, k, v, k_own, v_own = (draw(2, 4, 8, seed=s) for s in range(5))
    relation, graph = draw(2, 16, seed=6), off_diagonal(4)
    ours = relation_attention(q, (k_own, v_own), (k, v), relation, graph)
    for i in range(4):
        own = torch.arange(4)[:, None] == i
        mixed = naive(q, torch.where(own, k_own, k), torch.where(own, v_own, v), relation, graph)
        assert torch.allclose(ours[:, i], mixed[:, i], atol=1e-14)


def test_no_tensor_holds_a_vector_for_each_pair():
    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for x in tree_leaves(out):
                self.numbers = max(self.numbers, x.numel() if isinstance(x, torch.Tensor) else 0)
            return out

    batch, agents, width = 4, 27, 64
    q, k, v = (draw(batch, agents, width, seed=s).requires_grad_() for s in range(3))
    relation, graph = draw(2, 2 * width, seed=3).requires_grad_(), off_diagonal(agents)
    with Largest() as seen:
        relation_attention(q, (k, v), (k, v), relation, graph).sum().backward()
    assert seen.numbers == batch * agents * max(agents + 1, width) < batch * agents**2 * width / 20


# What a link's gradient says -----------------------------------------------------------------------------------------


def link_gradient(estimator):
    q, k, v = (draw(1, 5, 8, seed=s) for s in range(3))
    relation, weight = draw(2, 16, seed=3), draw(1, 5, 8, seed=4)
    links = sample_graph(draw(5, 5, seed=5), 2, generator=None).detach().requires_grad_()
    out = relation_attention(q, (k, v), (k, v), relation, links, estimator)
    (out * weight).sum().backward()
    ra, rb = relation.chunk(2, -1)
    scores = ((q + ra[1]) @ (k + rb[1]).mT / math.sqrt(8))[0]
    itself = ((q + ra[0]) * (k + rb[0])).sum(-1)[0] / math.sqrt(8)
    total = itself.exp() + (links.detach() * scores.exp()).sum(-1)
    return links, scores.exp() / total[:, None], v[0], out[0].detach(), weight[0]


def test_masked_links_that_are_not_there_learn_nothing():
    links, p, v, _, weight = link_gradient("masked")
    assert torch.allclose(links.grad, links.detach() * p * (weight @ v.mT), atol=1e-14)
    assert (links.grad[links == 0] == 0).all() and (links.grad[links == 1] != 0).all()


def test_normalised_links_learn_what_they_would_bring():
    links, p, v, out, weight = link_gradient("normalised")
    gain = (weight[:, None] * (v[None] - out[:, None])).sum(-1)
    assert torch.allclose(links.grad, p * gain, atol=1e-13)
    off = ~torch.eye(5, dtype=torch.bool)
    assert (links.grad[off] != 0).all()


def test_normalised_is_the_slope_between_no_link_and_a_link():
    """Between 0 and 1 it is smooth, so that finite differences apply; links above 1/2 count as there for the scale."""
    q, k, v = (draw(1, 4, 8, seed=s) for s in range(3))
    relation = draw(2, 16, seed=3)
    links = torch.tensor([[0, 0.9, 0.2, 0], [0.6, 0, 0, 0.7], [0.3, 0.1, 0, 0.8], [1, 1, 0.4, 0]], dtype=F64)
    assert torch.autograd.gradcheck(
        lambda x: relation_attention(q, (k, v), (k, v), relation, x, "normalised"), links.requires_grad_()
    )


def test_a_missing_link_with_a_huge_score_breaks_nothing():
    q, k, v = (draw(1, 3, 4, seed=s).float() for s in range(3))
    q, k = 30 * q, 30 * k
    links = torch.tensor([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]], requires_grad=True)
    masked, normalised = (
        relation_attention(q, (k, v), (k, v), torch.zeros(2, 8), links, name) for name in ("masked", "normalised")
    )
    assert torch.allclose(masked, normalised, atol=1e-6)
    assert torch.autograd.grad(normalised.sum(), links)[0].isfinite().all()


# As released ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True])
def test_released_form_is_its_equations(causal):
    q, k, v = (draw(3, 5, 8, seed=s) for s in range(3))
    relation = draw(2, 16, seed=3)
    graph = sample_graph(draw(3, 5, 5, seed=8), 2, generator=generator(), self_edges=True)
    assert 0 < graph.diagonal(dim1=-2, dim2=-1).sum() < 15
    ours = released_attention(q, k, v, relation, graph, causal)
    assert torch.allclose(ours, naive(q, k, v, relation, graph, released=True, causal=causal), atol=1e-14)


def test_released_rows_add_up_to_more_than_one_and_read_the_other_direction():
    q, k = draw(1, 5, 8), draw(1, 5, 8, seed=1)
    ones, relation = torch.ones(1, 5, 8, dtype=F64), draw(2, 16, seed=2)
    alone = released_attention(q, k, ones, relation, torch.eye(5, dtype=F64))
    assert torch.equal(alone, 2 * ones)  # drawn for itself, an agent counts twice
    both = sample_graph(torch.eye(5, dtype=F64), 2, generator=None, self_edges=True)
    rows = released_attention(q, k, ones, relation, both)
    assert ((rows > 1) & (rows < 2)).all()
    base = off_diagonal(5)
    cut = base.clone()
    cut[0, 3] = 0  # 0 stops hearing 3: the kind of (3, 0) changes with it
    v = draw(1, 5, 8, seed=3)
    before, after = (released_attention(q, k, v, relation, g) for g in (base, cut))
    assert (before != after).any(-1)[0].tolist() == [True, False, False, True, False]
    before, after = (relation_attention(q, (k, v), (k, v), relation, g) for g in (base, cut))
    assert (before != after).any(-1)[0].tolist() == [True, False, False, False, False]
