"""The expert convolution: one convolution for each input as oracle, the float64 fixture, three stand-in gradients."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch.nn import functional as F

from gated.advmoe import MoEConv, expert_conv, top1
from gated.advmoe.conv import permute


def one_by_one(x, weight, routes, stride=1, padding=0):
    conv = F.conv1d if x.ndim == 3 else F.conv2d
    rows = zip(x, routes.tolist(), strict=True)
    return torch.cat([conv(row[None], weight[e], stride=stride, padding=padding) for row, e in rows])


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fixture(ste="selected"):
    """Two channels, experts of width 3, N = 2, 3x3; x, scores and weights by formula."""
    layer = MoEConv(2, 3, 3, num_experts=2, ste=ste).double()
    i = torch.arange(6 * 2 * 9, dtype=torch.float64)
    layer.weight.data = (0.5 * torch.sin(0.7 * (i + 1))).view(2, 3, 2, 3, 3)
    x = torch.cos(torch.arange(64, dtype=torch.float64)).view(2, 2, 4, 4).requires_grad_()
    return layer, x, torch.tensor([[1.0, 2.0], [3.0, 0.0]], dtype=torch.float64, requires_grad=True)


def test_the_float64_fixture():
    layer, x, scores = fixture()
    y = layer(x, scores)
    assert top1(scores).tolist() == [1, 0]
    torch.testing.assert_close(y.sum((1, 2, 3)), y.new_tensor([-0.708700, -0.807374]), atol=1e-6, rtol=0)
    loss = (y**2).sum()
    assert loss.item() == pytest.approx(2.4754412458, abs=1e-9)
    loss.backward()
    torch.testing.assert_close(scores.grad, y.new_tensor([[0, 2.584624], [2.366258, 0]]), atol=1e-6, rtol=0)
    assert x.grad.norm().item() == pytest.approx(9.211107, abs=1e-6)
    rows = layer.weight.grad.flatten(0, 1).flatten(1).norm(dim=1)
    want = [3.913133, 4.044816, 4.180429, 4.239865, 4.379483, 4.520800]
    torch.testing.assert_close(rows, rows.new_tensor(want), atol=1e-6, rtol=0)


def test_the_three_stand_in_gradients_by_their_formulas():
    layer, x, scores = fixture()
    every = torch.stack([F.conv2d(x, w, padding=1) for w in layer.weight], 1)  # [batch, N, ...]
    p = scores.softmax(1).detach()
    y = layer(x, scores)
    g = (2 * y[:, None] * every).sum((2, 3, 4)).detach()  # <dL/dy, y_j> for L = sum y^2
    chosen = F.one_hot(top1(scores), 2).double()
    g_e = (g * chosen).sum(1, keepdim=True)
    want = {"selected": g * chosen, "full": g, "softmax": g_e * p.gather(1, top1(scores)[:, None]) * (chosen - p)}
    for ste, expected in want.items():
        layer, x, scores = fixture(ste)
        out = layer(x, scores)
        torch.testing.assert_close(out, y)  # the value never depends on the stand-in
        (got,) = torch.autograd.grad((out**2).sum(), scores)
        torch.testing.assert_close(got, expected)


def test_the_true_slope_in_the_scores_is_zero():
    layer, x, scores = fixture()
    base = (layer(x, scores) ** 2).sum()
    for i in range(4):
        moved = scores.detach().clone().view(-1)
        moved[i] += 1e-4
        assert torch.equal((layer(x, moved.view(2, 2)) ** 2).sum(), base)


@given(
    batch=st.integers(0, 7), n=st.integers(1, 4), dims=st.sampled_from([1, 2]), stride=st.integers(1, 2),
    ordered=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_equals_one_convolution_for_each_input_and_its_gradients(batch, n, dims, stride, ordered, seed):
    x, weight = randn(batch, 2, *[5] * dims, seed=seed), randn(n, 3, 2, *[3] * dims, seed=seed + 1)
    routes = torch.randint(n, (batch,), generator=torch.Generator().manual_seed(seed))
    routes = routes.sort().values if ordered else routes
    x.requires_grad_()
    weight.requires_grad_()
    got = expert_conv(x, weight, routes, stride=stride, padding=1)
    if not batch:
        assert got.shape == (0, 3, *[(5 - 1) // stride + 1] * dims)
        return
    want = one_by_one(x, weight, routes, stride, 1)
    torch.testing.assert_close(got, want)
    ours, theirs = (torch.autograd.grad(y.sin().sum(), [x, weight]) for y in (got, want))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("routes", [[1, 0, 2, 1], [0, 1, 1, 2], [2, 2, 2, 2]])
def test_gradcheck_with_fixed_routes(routes):
    x, weight = randn(4, 2, 4, 4).requires_grad_(), randn(3, 2, 2, 3, 3, seed=1).requires_grad_()
    r = torch.tensor(routes)
    assert torch.autograd.gradcheck(lambda x, w: expert_conv(x, w, r, padding=1), (x, weight))
    assert torch.autograd.gradcheck(lambda x: expert_conv(x, weight.detach(), r, padding=1), (x,))
    assert torch.autograd.gradcheck(lambda w: expert_conv(x.detach(), w, r, padding=1), (weight,))


def test_no_expert_runs_that_nobody_chose():
    weight = randn(3, 2, 2, 3)
    weight[1] = torch.nan
    y = expert_conv(randn(4, 2, 6), weight, torch.tensor([2, 0, 0, 2]))
    assert torch.isfinite(y).all()


def test_multiply_adds_are_those_of_one_expert():
    from gated.backbones import macs

    layer = MoEConv(8, 6, 3, num_experts=4)
    x, scores = torch.randn(5, 8, 7, 7), torch.randn(5, 4)
    assert macs(layer, x, scores) == 5 * 9 * 8 * 6 * 49
    assert layer.weight.numel() == 4 * 9 * 8 * 6  # N w r C_in k^2


def test_one_expert_and_equal_experts_are_the_plain_convolution():
    x = randn(5, 2, 6, 6)
    for n in (1, 3):
        layer = MoEConv(2, 4, 3, num_experts=n).double()
        layer.weight.data[:] = layer.weight.data[0].clone()
        want = F.conv2d(x, layer.weight[0], padding=1)
        torch.testing.assert_close(layer(x, randn(5, n)), want)
        torch.testing.assert_close(layer.mixed(x, randn(5, n), 0.3), want)


def test_a_cold_mixture_is_the_choice():
    layer, x, scores = fixture()
    torch.testing.assert_close(layer.mixed(x, scores, 1e-3), layer(x, scores))


def test_equal_scores_go_to_the_lower_index():
    assert top1(torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 2.0]])).tolist() == [0, 1]


def test_permute_is_undone_by_its_inverse_and_has_the_right_gradient():
    order = torch.tensor([2, 0, 3, 1])
    x = randn(4, 2).requires_grad_()
    assert torch.equal(permute(permute(x, order, order.argsort()), order.argsort(), order), x)
    assert torch.autograd.gradcheck(lambda x: permute(x, order, order.argsort()), (x,))
    assert torch.autograd.gradgradcheck(lambda x: permute(x, order, order.argsort()) ** 2, (x,))


def test_autocast_and_half_precision():
    x, routes = torch.randn(4, 2, 6, 6, requires_grad=True), torch.tensor([0, 1, 0, 1])
    weight = torch.randn(2, 3, 2, 3, 3, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = expert_conv(x, weight, routes, padding=1)
    assert y.dtype == torch.bfloat16
    gx, gw = torch.autograd.grad(y.float().sum(), [x, weight])
    assert gx.dtype == gw.dtype == torch.float32
    torch.testing.assert_close(
        gx, torch.autograd.grad(one_by_one(x, weight, routes, 1, 1).sum(), x)[0], atol=0.2, rtol=0.05
    )
