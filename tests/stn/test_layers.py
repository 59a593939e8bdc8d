"""Layers that respond: equal to explicit weights for each example, in value and in every derivative."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, grad, jvp, stack_module_state, vmap
from torch.nn import functional as F

from gated.backbones import macs
from gated.stn import StnConv1d, StnConv2d, StnLinear, StnLSTMCell

F64 = torch.float64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=F64)


def linear(i=5, o=4, n=3, **kwargs) -> StnLinear:
    return StnLinear(i, o, n, gate_std=0.7, generator=generator(), dtype=F64, **kwargs)


def weights(layer, raw):
    """W(u) and b(u) of one example, from the definition."""
    w0, w1 = layer.weight
    gate = (layer.gate[0] @ raw).view(-1, *[1] * (w0.ndim - 1))
    return w0 + gate * w1, None if layer.bias is None else layer.bias[0] + (layer.gate[1] @ raw) * layer.bias[1]


def explicit(layer, x, raw):
    rows = []
    for x_i, raw_i in zip(x, raw, strict=True):
        w, b = weights(layer, raw_i)
        if isinstance(layer, StnLinear):
            rows.append(F.linear(x_i, w, b))
        else:
            conv = F.conv2d if isinstance(layer, StnConv2d) else F.conv1d
            rows.append(conv(x_i[None], w, b, layer.stride, layer.padding, layer.dilation)[0])
    return torch.stack(rows)


CASES = {
    "linear": (linear, (6, 5)),
    "linear without bias": (lambda: linear(bias=False), (6, 5)),
    "linear on tokens": (linear, (6, 7, 2, 5)),
    "conv2d": (
        lambda: StnConv2d(2, 3, (3, 2), 3, stride=2, padding=1, gate_std=0.7, generator=generator(), dtype=F64),
        (6, 2, 5, 6),
    ),
    "conv2d without bias": (
        lambda: StnConv2d(2, 3, 3, 3, dilation=2, bias=False, gate_std=0.7, generator=generator(), dtype=F64),
        (6, 2, 6, 6),
    ),
    "conv1d": (
        lambda: StnConv1d(2, 3, 3, 3, padding="same", gate_std=0.7, generator=generator(), dtype=F64),
        (6, 2, 7),
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("shared", [False, True])
def test_value_and_all_gradients_are_those_of_explicit_weights(name, shared):
    layer, x = CASES[name][0](), randn(*CASES[name][1]).requires_grad_()
    raw = (randn(3, seed=2) if shared else randn(6, 3, seed=2)).requires_grad_()
    inputs = [x, raw, *layer.parameters()]
    y = layer(x, raw)
    wanted = explicit(layer, x, raw.expand(6, 3))
    assert torch.allclose(y, wanted, rtol=0, atol=1e-12)
    dy = randn(*y.shape, seed=3)
    for a, b in zip(torch.autograd.grad(y, inputs, dy), torch.autograd.grad(wanted, inputs, dy), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["linear", "linear without bias", "conv1d"])
def test_first_and_second_derivatives_by_finite_differences(name):
    layer, x = CASES[name][0](), randn(2, *CASES[name][1][1:])
    parameters = dict(layer.named_parameters())

    def call(x, raw, *values):
        return functional_call(layer, dict(zip(parameters, values, strict=True)), (x, raw))

    for raw in (randn(2, 3, seed=2), randn(3, seed=2)):
        inputs = [v.detach().clone().requires_grad_() for v in (x, raw, *parameters.values())]
        assert torch.autograd.gradcheck(call, inputs, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(call, inputs)


def test_the_wide_layer_at_single_precision_is_as_good_as_explicit_weights():
    layer = StnLinear(64, 32, 5, gate_std=0.3, generator=generator())
    x, raw = randn(16, 64).float(), randn(16, 5, seed=2).float()
    double = StnLinear(64, 32, 5, dtype=F64)
    double.load_state_dict(layer.state_dict())
    exact = explicit(double, x.double(), raw.double())
    assert (layer(x, raw) - exact).abs().max() < 1e-5


def test_conv_is_unfold_and_linear():
    layer, x, raw = CASES["conv2d without bias"][0](), randn(6, 2, 6, 6), randn(6, 3, seed=2)
    flat = linear(18, 3, bias=False)
    flat.load_state_dict({"weight": layer.weight.flatten(2), "gate": layer.gate})
    columns = F.unfold(x, 3, dilation=2).mT  # [batch, places, 18]
    assert torch.allclose(layer(x, raw).flatten(2).mT, flat(columns, raw), rtol=0, atol=1e-12)


def test_conv_of_one_pixel_is_linear():
    layer, x, raw = StnConv2d(5, 4, 1, 3, dtype=F64, generator=generator()), randn(6, 5, 2, 3), randn(6, 3, seed=2)
    flat = linear()
    flat.load_state_dict({"weight": layer.weight.flatten(2), "bias": layer.bias, "gate": layer.gate})
    assert torch.allclose(layer(x, raw), flat(x.movedim(1, -1), raw).movedim(-1, 1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_without_response_and_with_equal_rows_it_is_a_plain_layer(name):
    layer, x = CASES[name][0](), randn(*CASES[name][1])
    plain = explicit(layer, x, torch.zeros(6, 3, dtype=F64))
    assert torch.allclose(layer(x, torch.zeros(6, 3, dtype=F64)), plain, rtol=0, atol=1e-13)
    assert torch.allclose(layer(x, torch.zeros(3, dtype=F64)), plain, rtol=0, atol=1e-13)
    raw = randn(3, seed=4)
    assert torch.allclose(layer(x, raw.expand(6, 3)), layer(x, raw), rtol=0, atol=1e-12)


@given(factor=st.floats(-8, 8).filter(lambda c: abs(c) > 0.1))
def test_gates_times_a_factor_and_response_divided_by_it_is_the_same_function(factor):
    layer, x, raw = linear(), randn(6, 5), randn(6, 3, seed=2)
    before = layer(x, raw)
    with torch.no_grad():
        layer.gate.mul_(factor)
        layer.weight[1].div_(factor)
        layer.bias[1].div_(factor)
    assert torch.allclose(layer(x, raw), before, rtol=0, atol=1e-12)


def test_a_unit_responds_along_one_direction_only():
    layer = linear()
    jacobian = torch.func.jacrev(lambda raw: layer.collapsed(raw)[0])(randn(3))  # [out, in, n]
    assert torch.linalg.matrix_rank(jacobian).tolist() == [1] * 4
    alone = linear(n=1)
    target = randn(4, 5, seed=5)  # one hyperparameter: any affine response
    with torch.no_grad():
        alone.weight[1].copy_(target)
        alone.gate.fill_(1)
    assert torch.allclose(torch.func.jacrev(lambda raw: alone.collapsed(raw)[0])(randn(1))[..., 0], target)


@pytest.mark.parametrize("name", CASES)
def test_squared_norm_is_that_of_materialised_weights(name):
    layer, raw = CASES[name][0](), randn(6, 3, seed=2).requires_grad_()
    wanted = torch.stack([weights(layer, r)[0].square().sum() for r in raw])
    assert torch.allclose(layer.squared_norm(raw), wanted, rtol=1e-12)
    assert torch.allclose(layer.squared_norm(raw[0]), wanted[0], rtol=1e-12)
    inputs = [layer.weight, layer.gate, raw]
    found = torch.autograd.grad(layer.squared_norm(raw).sum(), inputs)
    for a, b in zip(found, torch.autograd.grad(wanted.sum(), inputs), strict=True):
        assert torch.allclose(a, b, rtol=1e-11, atol=1e-12)


def cell(**kwargs) -> StnLSTMCell:
    return StnLSTMCell(3, 4, 2, gate_std=0.7, generator=generator(), dtype=F64, **kwargs)


@pytest.mark.parametrize("bias", [True, False])
def test_lstm_cell_is_torchs_with_each_examples_own_weights(bias):
    ours, x, raw = cell(bias=bias), randn(5, 6, 3), randn(5, 2, seed=2)
    state, found = None, []
    for step in range(6):
        state = ours(x[:, step], state, raw)
        found.append(state[0])
    for i in range(5):
        plain, own = nn.LSTMCell(3, 4, bias=bias, dtype=F64), {}
        for leaf, layer in (("ih", ours.input), ("hh", ours.hidden)):
            own[f"weight_{leaf}"], b = weights(layer, raw[i])
            if bias:
                own[f"bias_{leaf}"] = b
        plain.load_state_dict(own)
        hidden = None
        for step in range(6):
            hidden = plain(x[i : i + 1, step], hidden)
            assert torch.allclose(hidden[0][0], found[step][i], rtol=0, atol=1e-12)


def test_lstm_cell_of_one_setting_and_its_gradients():
    ours, x, raw = cell(), randn(5, 3), randn(2, seed=2)
    inputs = [*ours.parameters()]
    total = [torch.stack(ours(x, None, r)).sum() for r in (raw, raw.expand(5, 2))]
    assert torch.allclose(total[0], total[1], rtol=1e-13)
    for a, b in zip(*(torch.autograd.grad(t, inputs) for t in total), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_stacked_runs_and_gradients_for_each_example_through_vmap(name):
    layers, x = [CASES[name][0]() for _ in range(3)], randn(*CASES[name][1])
    for seed, layer in enumerate(layers):
        with torch.no_grad():
            for p in layer.parameters():
                p.copy_(randn(*p.shape, seed=10 + seed))
    raw = randn(3, 6, 3, seed=2)
    params, _ = stack_module_state(layers)
    together = vmap(lambda p, r: functional_call(layers[0], p, (x, r)))(params, raw)
    apart = torch.stack([layer(x, r) for layer, r in zip(layers, raw, strict=True)])
    assert torch.allclose(together, apart, rtol=0, atol=1e-12)
    only = vmap(lambda r: layers[0](x, r))(raw[:, 0])  # the hyperparameters alone are batched, and shared
    assert torch.allclose(only, torch.stack([layers[0](x, r) for r in raw[:, 0]]), rtol=0, atol=1e-12)
    each = vmap(grad(lambda r, x: layers[0](x[None], r[None]).square().sum()))(raw[0], x)
    whole = raw[0].clone().requires_grad_()
    (wanted,) = torch.autograd.grad(layers[0](x, whole).square().sum(), whole)
    assert torch.allclose(each, wanted, rtol=0, atol=1e-10)


def test_forward_mode_along_the_hyperparameters_is_the_response():
    layer, x, raw, change = linear(), randn(6, 5), randn(6, 3, seed=2), randn(6, 3, seed=3)
    _, tangent = jvp(lambda r: layer(x, r), (raw,), (change,))
    assert torch.allclose(tangent, layer(x, raw + change) - layer(x, raw), rtol=0, atol=1e-12)  # affine in raw


def test_cost_is_twice_a_plain_layers_products_and_once_with_one_setting():
    plain, layer = nn.Linear(50, 40), StnLinear(50, 40, 5)
    x, raw = torch.zeros(8, 50), torch.zeros(8, 5)
    gates = 2 * 8 * 40 * 5
    assert macs(layer, x, raw) == 2 * macs(plain, x) + gates
    assert macs(layer, x, raw[0]) == macs(plain, x) + gates // 8


def test_no_gradient_is_made_for_hyperparameters_that_do_not_want_one():
    layer, x = linear(), randn(6, 5)
    y = layer(x, randn(6, 3, seed=2)).sum()
    seen, waiting = set(), [y.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [n for n, _ in node.next_functions]
    leaves = [n.variable for n in seen if hasattr(n, "variable")]
    assert {id(v) for v in leaves} == {id(p) for p in layer.parameters()}
    pieces = [n for n in seen if n.name() == "SplitBackward0"]
    assert len(pieces) == 1 and not any(n.name() == "SliceBackward0" for n in seen)  # one buffer, no padded copies


def test_start():
    layer = StnLinear(100, 50, 4, generator=generator(3))
    assert layer.weight.abs().max() <= 0.1 and layer.weight.abs().max() > 0.099
    assert layer.gate.std().item() == pytest.approx(0.01, rel=0.1)
    assert not StnLinear(3, 2, 4, gate_std=0).gate.any()
    again = StnLinear(100, 50, 4, generator=generator(3))
    assert all(torch.equal(p, q) for p, q in zip(layer.parameters(), again.parameters(), strict=True))
