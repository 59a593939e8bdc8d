"""Selections against brute force, quadrature, Monte Carlo and the sums of rows and columns."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from gated import gates as g

grid = st.lists(st.integers(-24, 24), min_size=1, max_size=7)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(row=grid, threshold=st.sampled_from([0.0, 0.1, 0.25, 0.4, 0.5, 0.9, 1.0]))
def test_top_p_by_a_loop(row, threshold):
    logits = torch.tensor(row, dtype=torch.float64) / 8
    p = g.softmax_gate(logits)
    kept, total = [], 0.0
    for i in sorted(range(len(row)), key=lambda i: (-row[i], i)):
        kept.append(i)
        total += p[i].item()
        if total > threshold:
            break
    expected = torch.zeros_like(p)
    expected[kept] = p[kept]
    assert torch.equal(g.top_p_gate(logits, threshold), expected)


def test_top_p_is_strict_and_grows_with_p():
    half = torch.zeros(1, 2)
    assert g.top_p_gate(half, 0.5).tolist() == [[0.5, 0.5]]  # 0.5 is not above 0.5
    assert g.top_p_gate(half, 0.49).tolist() == [[0.5, 0]]
    logits = normal(500, 9)
    counts = [(g.top_p_gate(logits, p) != 0).sum(-1) for p in torch.linspace(0, 1, 11).tolist()]
    assert (counts[0] == 1).all()
    assert (counts[-1] == 9).all()
    for fewer, more in itertools.pairwise(counts):
        assert (fewer <= more).all()


def test_top_p_of_one_keeps_all_where_sums_are_rounded_up():
    logits = 8 * normal(2000, 9).float()
    ranked = g.softmax_gate(logits).sort(descending=True).values
    assert (ranked.cumsum(-1)[:, :-1] > 1).any()
    assert (g.top_p_gate(logits, 1.0) > 0).all()


@given(data=st.data(), tokens=st.integers(1, 7), gates=st.integers(1, 4))
def test_expert_choice_by_a_loop(data, tokens, gates):
    values = st.lists(st.integers(-16, 16), min_size=tokens * gates, max_size=tokens * gates)
    logits = torch.tensor(data.draw(values), dtype=torch.float64).reshape(tokens, gates) / 8
    capacity = data.draw(st.integers(1, tokens))
    p, expected = logits.softmax(-1), torch.zeros(tokens, gates, dtype=torch.float64)
    rank = logits.log_softmax(-1)
    for i in range(gates):
        for t in sorted(range(tokens), key=lambda t: (-rank[t, i].item(), t))[:capacity]:
            expected[t, i] = p[t, i]
    found = g.expert_choice_gate(logits, capacity)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-15)
    assert g.load(found).tolist() == [capacity] * gates


def test_expert_choice_leaves_tokens_out_and_takes_tokens_twice():
    logits = torch.tensor([[5.0, 5.0, -9.0], [0.0, 0.0, 4.0], [1.0, 1.0, 1.0]], dtype=torch.float64)
    counts = (g.expert_choice_gate(logits, 1) != 0).sum(-1)
    assert counts.tolist() == [2, 1, 0]


def test_a_shut_gate_does_not_take_the_token():
    logits = torch.tensor([[0.0, -torch.inf], [1.0, -torch.inf], [0.0, 0.0]])
    assert g.load(g.expert_choice_gate(logits, 2)).tolist() == [2, 1]


@pytest.mark.parametrize("std", [0.5, 1.0, 3.0])
def test_probit_of_two_is_the_normal_distribution_function(std):
    for a, b in ((0.0, 0.0), (1.3, -0.4), (-6.0, 5.0)):
        weights = g.probit_gate(torch.tensor([a, b], dtype=torch.float64), std)
        expected = stats.norm.cdf((a - b) / (std * math.sqrt(2)))
        assert weights.tolist() == pytest.approx([expected, 1 - expected], rel=1e-13)


@pytest.mark.parametrize("gates", [3, 8, 64])
def test_probit_against_adaptive_quadrature(gates):
    row = 2 * normal(gates, seed=gates)
    found = g.probit_gate(row, 0.7)
    assert found.sum().item() == pytest.approx(1, abs=1e-14)
    z = (row / 0.7).numpy()
    for i in range(0, gates, 7):
        others = [z[j] for j in range(gates) if j != i]

        def density(u, i=i, others=others):
            return math.exp(stats.norm.logpdf(u - z[i]) + stats.norm.logcdf([u - o for o in others]).sum())

        exact = integrate.quad(density, z.max() - 12, z.max() + 12, epsabs=1e-13, limit=200)[0]
        assert found[i].item() == pytest.approx(exact, abs=1e-10)


def test_probit_and_gumbel_by_monte_carlo():
    row, draws = torch.tensor([0.5, 0.0, -1.0, 1.0], dtype=torch.float64), 200_000
    generator = torch.Generator().manual_seed(0)
    rows = row.expand(draws, 4)
    for gate, noisy in (
        (g.probit_gate, g.add_gaussian_noise(rows, 1.0, generator=generator)),
        (g.softmax_gate, g.add_gumbel_noise(rows, generator)),
    ):
        weights = gate(row)
        frequency = torch.bincount(noisy.argmax(-1), minlength=4) / draws
        assert ((frequency - weights).abs() < 4 * (weights * (1 - weights) / draws).sqrt()).all()
    assert (g.probit_gate(row) - g.softmax_gate(row)).abs().max() > 0.02  # and the two are not the same


def test_a_third_gate_far_below_does_not_matter():
    pair = torch.tensor([0.3, -0.5], dtype=torch.float64)
    for low in (-60.0, -torch.inf):
        three = g.probit_gate(torch.cat([pair, torch.tensor([low], dtype=torch.float64)]))
        torch.testing.assert_close(three[:2], g.probit_gate(pair), rtol=0, atol=1e-12)


def test_soft_moe_columns_and_rows():
    logits = normal(2, 5, 6)
    dispatch, combine = g.soft_moe_gate(logits)
    torch.testing.assert_close(dispatch.sum(1), torch.ones(2, 6).double())
    torch.testing.assert_close(combine.sum(2), torch.ones(2, 5).double())
    by_hand = logits.exp()
    torch.testing.assert_close(dispatch, by_hand / by_hand.sum(1, keepdim=True))
    torch.testing.assert_close(combine, by_hand / by_hand.sum(2, keepdim=True))
    order = torch.tensor([3, 0, 4, 1, 2])
    for moved, still in zip(g.soft_moe_gate(logits[:, order]), (dispatch, combine), strict=True):
        torch.testing.assert_close(moved, still[:, order])


def test_one_slot_makes_all_outputs_equal():
    x = normal(5, 3)
    dispatch, combine = g.soft_moe_gate(normal(5, 1, seed=1))
    outputs = combine @ torch.tanh(dispatch.T @ x)
    torch.testing.assert_close(outputs, outputs[:1].expand(5, 3))


def test_soft_moe_with_pairs_shut():
    logits = normal(4, 3).requires_grad_()
    shut = torch.zeros(4, 3, dtype=torch.bool)
    shut[:, 1], shut[0, 0] = True, True
    dispatch, combine = g.soft_moe_gate(logits.masked_fill(shut, -torch.inf))
    assert (dispatch[shut] == 0).all()
    assert (combine[shut] == 0).all()
    assert dispatch.sum(0).tolist() == pytest.approx([1, 0, 1])
    assert combine.sum(1).tolist() == pytest.approx([1] * 4)
    (dispatch + combine).square().sum().backward()
    assert logits.grad.isfinite().all()


def test_soft_moe_gradients_and_empty_batches():
    x = normal(2, 3, 4)
    assert torch.autograd.gradcheck(g.soft_moe_gate, x.requires_grad_())
    assert g.soft_moe_gate(torch.zeros(0, 4))[0].shape == (0, 4)
    assert g.soft_moe_gate(torch.zeros(0, 3, 4))[1].shape == (0, 3, 4)
