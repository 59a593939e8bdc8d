"""The grouped matrix product on the CPU, against rows multiplied by hand, PyTorch's own, and finite differences."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from gated.kernels.grouped_gemm import grouped_gemm, naive_grouped_gemm


def problem(sizes, inner, outer, seed=0, dtype=torch.float64, transposed=False):
    """Rows, matrices, offsets and gate weights; `transposed` stores each matrix as [outer, inner]."""
    gen = torch.Generator().manual_seed(seed)
    x = torch.randn(sum(sizes), inner, generator=gen, dtype=torch.float64).to(dtype)
    weight = torch.randn(len(sizes), inner, outer, generator=gen, dtype=torch.float64).to(dtype)
    if transposed:
        weight = weight.transpose(1, 2).contiguous().transpose(1, 2)
    r = torch.randn(sum(sizes), generator=gen, dtype=torch.float64).to(dtype)
    return x, weight, torch.tensor([0, *sizes]).cumsum(0), r


def by_hand(x, weight, sizes, r=None):
    """Every row with a copy of its own matrix: no offsets, no slices, and plain autograd goes through it."""
    group = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    y = torch.einsum("mk,mkn->mn", x, weight[group])
    return y if r is None else r[:, None] * y


ragged = st.lists(st.integers(0, 9), min_size=1, max_size=8)


@given(ragged, st.integers(1, 7), st.integers(1, 7), st.booleans(), st.booleans())
def test_equals_rows_by_hand(sizes, inner, outer, transposed, weighted):
    x, weight, offsets, r = problem(sizes, inner, outer, len(sizes), transposed=transposed)
    r = r if weighted else None
    got = grouped_gemm(x, weight, offsets, row_weight=r)
    torch.testing.assert_close(got, by_hand(x, weight, sizes, r), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(naive_grouped_gemm(x, weight, offsets, r), got, rtol=1e-12, atol=1e-12)


@given(ragged, st.integers(1, 5), st.integers(1, 5), st.booleans())
def test_gradients_equal_those_by_hand(sizes, inner, outer, weighted):
    x, weight, offsets, r = (y.requires_grad_(y.is_floating_point()) for y in problem(sizes, inner, outer, outer))
    out = torch.randn(sum(sizes), outer, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    wanted = [x, weight, r] if weighted else [x, weight]
    got = torch.autograd.grad(
        (grouped_gemm(x, weight, offsets, row_weight=r if weighted else None) * out).sum(), wanted
    )
    want = torch.autograd.grad((by_hand(x, weight, sizes, r if weighted else None) * out).sum(), wanted)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
def test_first_and_second_derivatives_by_finite_differences(weighted, transposed):
    x, weight, offsets, r = problem([2, 0, 1, 3], 3, 2, transposed=transposed)
    inputs = [y.requires_grad_() for y in ((x, weight, r) if weighted else (x, weight))]

    def product(x, weight, r=None):
        return grouped_gemm(x, weight, offsets, row_weight=r)

    assert torch.autograd.gradcheck(product, inputs)
    assert torch.autograd.gradgradcheck(product, inputs)


def test_the_gradient_of_an_empty_group_is_zero():
    x, weight, offsets, _ = problem([3, 0, 2], 4, 5)
    grouped_gemm(x, weight.requires_grad_(), offsets).sum().backward()
    assert not weight.grad[1].any()
    assert weight.grad[[0, 2]].ne(0).all()


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2)])
def test_only_what_is_asked_for_gets_a_gradient(wanted):
    x, weight, offsets, r = problem([2, 1], 3, 4)
    inputs = [x, weight, r]
    for i in wanted:
        inputs[i].requires_grad_()
    grouped_gemm(x, weight, offsets, row_weight=r).sum().backward()
    assert [y.grad is not None for y in inputs] == [i in wanted for i in range(3)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_beside_pytorchs_grouped_product(dtype):
    """`torch.nn.functional.grouped_mm`: the same rows, and the same gradients of the matrices."""
    theirs = torch.nn.functional.grouped_mm
    sizes = [40, 0, 7, 81]
    x, weight, offsets, _ = problem(sizes, 32, 48, dtype=dtype)
    ends = offsets[1:].int()
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2**-7, "atol": 2**-5}
    y = grouped_gemm(x, weight.requires_grad_(), offsets)
    torch.testing.assert_close(y, theirs(x, weight.detach(), offs=ends), **tolerance)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    y.backward(dy)
    torch.testing.assert_close(weight.grad, theirs(x.T, dy, offs=ends), **tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_sums_in_single(dtype):
    """4,096 equal terms: a sum kept in half precision would stop growing long before."""
    x, weight = torch.ones(3, 4096, dtype=dtype), torch.full((1, 4096, 2), 0.25, dtype=dtype)
    y = grouped_gemm(x, weight, torch.tensor([0, 3]))
    assert y.dtype == dtype
    assert y.eq(1024).all()


def test_views_give_what_their_copies_give():
    """Half of a packed gate-and-up parameter, every other matrix of it, and rows that are no contiguous tensor."""
    x, packed, _, _ = problem([2, 3, 1, 2], 4, 6, 3)
    offsets, x = torch.tensor([0, 5, 8]), x.T.contiguous().T
    views = packed[::2, :, 3:]
    assert not views.is_contiguous()
    torch.testing.assert_close(
        grouped_gemm(x, views, offsets), grouped_gemm(x.contiguous(), views.contiguous(), offsets)
    )


def test_a_row_weight_that_is_a_view():
    x, weight, offsets, _ = problem([4, 2], 3, 3)
    gate = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(
        grouped_gemm(x, weight, offsets, row_weight=gate[:, 1]), by_hand(x, weight, [4, 2], gate[:, 1])
    )


@pytest.mark.parametrize("sizes", [[0], [0, 0, 0]])
def test_no_rows_at_all(sizes):
    x, weight, offsets, r = problem(sizes, 3, 4)
    inputs = [y.requires_grad_() for y in (x, weight, r)]
    y = grouped_gemm(x, weight, offsets, row_weight=r)
    assert y.shape == (0, 4)
    y.sum().backward()
    assert all(y.grad.shape == y.shape and not y.grad.any() for y in inputs)


def test_what_is_not_finite_stays_in_its_row():
    x, weight, offsets, _ = problem([2, 2], 3, 4)
    x[1, 0] = float("nan")
    got = grouped_gemm(x, weight, offsets)
    assert got[1].isnan().all()
    assert got[[0, 2, 3]].isfinite().all()


def test_counts_its_operations():
    x, weight, offsets, _ = problem([5, 0, 3], 4, 6)
    with FlopCounterMode(display=False) as counter:
        y = grouped_gemm(x.requires_grad_(), weight.requires_grad_(), offsets)
        assert counter.get_total_flops() == 2 * 8 * 4 * 6
        y.sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 8 * 4 * 6
