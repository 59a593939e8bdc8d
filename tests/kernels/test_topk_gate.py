"""The fused top-k gate on the CPU, against loops that count by hand, `gated.gates` and finite differences."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from gated.gates import load, softmax_topk_gate
from gated.gates import topk_gate as dense_topk_gate
from gated.kernels.topk_gate import naive_topk_gate, topk_gate

INF = math.inf


@st.composite
def problems(draw):
    """Integers, so that ties are common, and -inf, which may fill rows."""
    tokens, experts = draw(st.integers(0, 12)), draw(st.integers(1, 9))
    value = st.one_of(st.integers(-3, 3).map(float), st.just(-INF))
    rows = [draw(st.lists(value, min_size=experts, max_size=experts)) for _ in range(tokens)]
    logits = torch.tensor(rows, dtype=torch.float64).view(tokens, experts)
    return logits, draw(st.integers(1, experts)), draw(st.booleans())


@given(problems())
def test_equals_loops_that_count(problem):
    logits, k, renormalise = problem
    got = topk_gate(logits, k, renormalise=renormalise)
    count = [0] * logits.shape[1]
    for t, row in enumerate(logits.tolist()):
        left = {i: value for i, value in enumerate(row) if value > -INF}
        total = sum(math.exp(value) for value in row)
        kept = []
        for slot in range(k):
            if not left:
                assert got.experts[t, slot] == got.position[t, slot] == -1
                assert got.weights[t, slot] == 0
                continue
            best = min(left, key=lambda i: (-left[i], i))
            kept.append(math.exp(left.pop(best)))
            assert got.experts[t, slot] == best
            assert got.position[t, slot] == count[best]
            count[best] += 1
        of = sum(kept) if renormalise else total
        for slot, e in enumerate(kept):
            assert math.isclose(got.weights[t, slot], e / of, rel_tol=1e-12)
    assert got.offsets.tolist() == [sum(count[:i]) for i in range(len(count) + 1)]
    for a, b in zip(got, naive_topk_gate(logits, k, renormalise=renormalise), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("tokens", "experts"), [(2048, 4), (777, 37), (513, 256)])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_is_a_counting_sort_of_the_dense_gate(tokens, experts, k):
    """Spread over the experts the weights are those of `gated.gates`, and destination is a stable sort's."""
    logits = torch.randn(tokens, experts, generator=torch.Generator().manual_seed(k))
    logits[::3] = logits[::3].round()
    got, loose = topk_gate(logits, k), topk_gate(logits, k, renormalise=False)
    for choice, want in ((got, dense_topk_gate(logits, k)), (loose, softmax_topk_gate(logits, k))):
        dense = torch.zeros_like(logits).scatter(1, choice.experts, choice.weights)
        torch.testing.assert_close(dense, want)
    assert torch.equal(got.offsets.diff(), load(dense).long())
    destination = got.offsets[got.experts] + got.position
    order = got.experts.flatten().sort(stable=True).indices
    assert torch.equal(order[destination.flatten()], torch.arange(tokens * k))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype):
    logits = 4 * torch.randn(200, 20, generator=torch.Generator().manual_seed(0)).to(dtype)
    got, want = topk_gate(logits, 3), topk_gate(logits.float(), 3)
    assert got.weights.dtype == dtype
    assert torch.equal(got.weights, want.weights.to(dtype))
    assert torch.equal(got.experts, want.experts)


def test_the_definition_divides_by_the_kept_unless_told_otherwise():
    """As the operator does."""
    logits = torch.tensor([[0.0, 0.0, 0.0]])
    assert naive_topk_gate(logits, 2)[0].tolist() == topk_gate(logits, 2).weights.tolist() == [[0.5, 0.5]]


def test_large_logits_do_not_overflow():
    got = topk_gate(torch.tensor([[1e38, -1e38, 1e38], [-3e38, -3.1e38, -INF]]), 2)
    assert got.weights.tolist() == [[0.5, 0.5], [1.0, 0.0]]
    assert got.experts.tolist() == [[0, 2], [0, 1]]


def test_the_logits_are_left_alone():
    logits = torch.randn(5, 4, dtype=torch.float64)
    before = logits.clone()
    topk_gate(logits, 2)
    assert torch.equal(logits, before)


def distinct(tokens: int, experts: int):
    """Logits further apart than a finite difference's step, some of them -inf."""
    generator = torch.Generator().manual_seed(tokens)
    order = torch.rand(tokens, experts, generator=generator, dtype=torch.float64).argsort(1)
    return (0.3 * order.double()).requires_grad_()


@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_gradients_by_finite_differences(k, renormalise):
    logits = distinct(4, 5)

    def weights(logits):
        return topk_gate(logits, k, renormalise=renormalise).weights

    torch.autograd.gradcheck(weights, logits)
    torch.autograd.gradgradcheck(weights, logits)


@pytest.mark.parametrize("renormalise", [True, False])
def test_gradients_with_shut_experts(renormalise):
    """Rows with fewer open experts than slots, and with none: the definition's gradients, and zeros, never NaN."""
    shut = torch.tensor([[0, 0, 0, 0], [1, 0, 1, 1], [1, 1, 1, 1], [0, 1, 0, 1]], dtype=torch.bool)
    logits = distinct(4, 4)
    out = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    choice = topk_gate(logits.masked_fill(shut, -INF), 2, renormalise=renormalise)
    (got,) = torch.autograd.grad((choice.weights * out).sum(), logits)
    rows = [0, 1, 3]  # autograd of the definition has no answer for a row without any open expert
    masked = logits.masked_fill(shut, -INF)[rows]
    want = (naive_topk_gate(masked, 2, renormalise=renormalise)[0] * out[rows])[choice.experts[rows] >= 0]
    (want,) = torch.autograd.grad(want.sum(), logits)
    torch.testing.assert_close(got[rows], want[rows])
    assert not got[2].any()


def test_no_gradient_through_indices():
    got = topk_gate(distinct(3, 4), 2)
    assert got.weights.requires_grad
    assert not any(y.requires_grad for y in got[1:])


def test_counts_its_operations():
    with FlopCounterMode(display=False) as counter:
        topk_gate(torch.randn(10, 8), 2)
    assert counter.get_total_flops() == 10 * 8 * 5
