"""Networks that choose: forced pathways, constant routers, parameter lists, norms, the sizes of the testbed."""

import copy

import pytest
import torch

from gated.advmoe import ConstantRouter, MoECNN, MoEResNet18, small_router
from gated.backbones import macs


def build(seed=0, **options):
    torch.manual_seed(seed)
    small = {"widths": (6, 8, 8), "strides": (1, 2, 1), "kernel_size": 3} | options
    return MoECNN(2, 3, **small).double()


def signals(batch=9, seed=0, dims=1):
    shape = (batch, 2, 12) if dims == 1 else (batch, 2, 6, 6)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def static(model, expert):
    """The plain network that holds weight slice `expert` of every layer."""
    plain = build(num_experts=1)
    state = {}
    for name, value in model.state_dict().items():
        if "router" not in name:
            state[name] = value[expert : expert + 1] if name.startswith("convs") else value
    plain.load_state_dict(state)
    return plain


@pytest.mark.parametrize("routing", ["layer", "global"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("expert", [0, 1])
def test_a_constant_router_is_the_static_network(routing, training, expert):
    model = build(routing=routing)
    x = signals()
    for _ in range(3):
        model.train()(signals(seed=5))  # running statistics that are not at their start
    constant = copy.deepcopy(model)
    if routing == "global":
        constant.router = ConstantRouter(2, expert)
    else:
        for conv in constant.convs:
            conv.router = ConstantRouter(2, expert)
    plain = static(model, expert).train(training)
    want = plain(x)
    torch.testing.assert_close(constant.train(training)(x), want, atol=1e-12, rtol=0)
    routes = torch.full((model.num_routers, len(x)), expert)
    forced = copy.deepcopy(model).train(training).trace(x, routes=routes)
    torch.testing.assert_close(forced.logits, want, atol=1e-12, rtol=0)
    assert torch.equal(forced.routes, routes)


@pytest.mark.parametrize("routing", ["layer", "global"])
@pytest.mark.parametrize("dims", [1, 2])
def test_inputs_do_not_see_each_other_in_evaluation(routing, dims):
    model = build(routing=routing, dims=dims).eval()
    x = signals(12, dims=dims)
    trace = model.trace(x)
    assert trace.scores.shape == (model.num_routers, 12, 2) and trace.routes.shape == (model.num_routers, 12)
    alone = torch.cat([model(row[None]) for row in x])
    torch.testing.assert_close(trace.logits, alone)
    again = model.trace(x, routes=trace.routes)
    torch.testing.assert_close(again.logits, trace.logits)
    torch.testing.assert_close(again.scores, trace.scores)
    torch.testing.assert_close(model.trace(x, temperature=1e-9).logits, trace.logits)
    generator = torch.Generator().manual_seed(1)
    mixed = torch.randint(2, trace.routes.shape, generator=generator)  # whatever the routers think: both experts
    for m in model.modules():
        if hasattr(m, "running_mean"):
            m.running_mean += torch.randn(m.running_mean.shape, generator=generator, dtype=torch.float64)
    forced = model.trace(x, routes=mixed).logits
    alone = torch.cat([model.trace(x[i : i + 1], routes=mixed[:, i : i + 1]).logits for i in range(12)])
    torch.testing.assert_close(forced, alone)


def test_one_expert_needs_no_router_and_its_scores_reach_nothing():
    model = build(num_experts=1)
    assert model.router_parameters() == [] and len(model.expert_parameters()) == len(list(model.parameters()))
    trace = model.trace(signals())
    assert not trace.scores.any() and not trace.routes.any()


def test_equal_experts_make_the_router_irrelevant():
    model = build(routing="layer").eval()
    for conv in model.convs:
        conv.weight.data[1] = conv.weight.data[0]
    torch.testing.assert_close(model(signals()), static(model, 0).eval()(signals()))


@pytest.mark.parametrize("routing", ["layer", "global"])
def test_parameter_lists_are_disjoint_and_complete(routing):
    for model in (build(routing=routing), MoEResNet18(10, routing=routing)):
        psi, phi = model.expert_parameters(), model.router_parameters()
        ids = [id(p) for p in psi + phi]
        assert phi and len(set(ids)) == len(ids)
        assert set(ids) == {id(p) for p in model.parameters()}
        names = {id(p): n for n, p in model.named_parameters()}
        assert all("router" in names[id(p)] for p in phi) and not any("router" in names[id(p)] for p in psi)
        assert any("norm" in names[id(p)] for p in psi)  # affine parts of the norms are the experts'


def test_the_router_learns_through_the_gate_only_where_it_chose():
    model = build(routing="global")
    seen = []
    handle = model.router.register_forward_hook(lambda m, args, out: seen.append(out))
    trace = model.trace(signals())
    handle.remove()
    (grad,) = torch.autograd.grad(trace.logits.square().sum(), seen[0])
    chosen = torch.nn.functional.one_hot(trace.routes[0], 2).bool()
    assert (grad[chosen] != 0).all() and not grad[~chosen].any()


def test_costs_of_the_testbed():
    x = torch.randn(1, 1, 40)
    dense, half = MoECNN(1, 10, num_experts=1, ratio=1), MoECNN(1, 10, num_experts=1)
    moe = MoECNN(1, 10)
    assert macs(dense, x) == 416_640
    assert macs(moe, x) == macs(half, x) + 2 * (32 + 16 + 32)  # routers: N x the inputs of the layers
    convs = sum(conv.weight.numel() for conv in moe.convs)
    assert convs == 2 * 5 * (32 * 16 + 16 * 32 + 32 * 32)


def test_a_small_router_for_images():
    assert small_router(3, 2, dims=2)(torch.randn(4, 2, 8, 8)).shape == (4, 3)


def test_resnet_routes_by_layer_too():
    model = MoEResNet18(4, routing="layer", ratio=0.0625, num_experts=3).eval()
    trace = model.trace(torch.randn(2, 3, 32, 32))
    assert trace.logits.shape == (2, 4) and trace.scores.shape == (16, 2, 3)
