"""Bad input is answered by an error that names the argument (without the hook)."""

import pytest
import torch

from gated import advmoe as m

X1, X2 = torch.zeros(3, 2, 8), torch.zeros(3, 2, 8, 8)
W1 = torch.zeros(2, 4, 2, 3)
R = torch.tensor([0, 1, 0])
ROUTER = (torch.ones(2), torch.tensor(0.0))
EXPERTS = (torch.ones(2, 2), torch.zeros(2))
PLANE, SIGN = torch.zeros(3, 2), torch.tensor([1, -1, 1])
Y = torch.tensor([0, 1, 2])


def net(**options):
    return m.MoECNN(2, 3, **({"widths": (4, 4), "strides": (1, 1), "kernel_size": 3} | options)).eval()


def layer(**options):
    return m.MoEConv(2, 4, 3, **({"num_experts": 2, "dims": 1} | options))


def exact(x=PLANE, y=SIGN, eps=0.1, router=ROUTER, experts=EXPERTS):
    return m.exact_margin(x, y, eps, router, experts)


def steps(model):
    return [*m.optimizers(model), (X1, Y), m.Trades(0.1)]


CASES = {
    "x": [
        lambda: m.expert_conv(X2, W1, R),
        lambda: m.expert_conv(torch.zeros(3, 5, 8), W1, R),
        lambda: m.expert_conv(torch.zeros(3, 2, 2), W1, R),
        lambda: net()(X2),
        lambda: net()(torch.zeros(3, 1, 8)),
        lambda: net()(X1.long()),
        lambda: net(dims=2)(X1),
        lambda: m.MoEResNet18(3)(torch.zeros(1, 1, 32, 32)),
        lambda: exact(x=PLANE[0]),
        lambda: exact(x=PLANE.long()),
        lambda: m.attack_panel(net(), X1 + 2, Y, 0.1, bounds=(0, 1)),
        lambda: layer().mixed(X2, torch.zeros(3, 2)),
    ],
    "weight": [lambda: m.expert_conv(X1, W1[0], R)],
    "routes": [
        lambda: m.expert_conv(X1, W1, R[:2]),
        lambda: m.expert_conv(X1, W1, R + 1),
        lambda: m.expert_conv(X1, W1, R - 1),
        lambda: net().trace(X1, routes=R),
        lambda: net().trace(X1, routes=R[None] + 1),
        lambda: net(routing="global").trace(X1, routes=R[None] - 1),
        lambda: m.route_load(R, 2),
        lambda: m.route_load(R[None] + 1, 2),
        lambda: m.load_entropy(R[None, :0], 2),
    ],
    "scores": [
        lambda: m.top1(torch.tensor([[0.0, float("nan")]])),
        lambda: m.top1(torch.tensor([[0.0, float("inf")]])),
        lambda: layer()(X1, torch.zeros(3, 3)),
        lambda: layer()(X1, torch.zeros(2, 2)),
    ],
    "in_channels": [lambda: m.MoEConv(0, 4, 3, num_experts=2), lambda: m.MoECNN(True, 3)],
    "kernel_size": [lambda: m.MoEConv(2, 4, 1.5, num_experts=2)],
    "num_experts": [
        lambda: layer(num_experts=0),
        lambda: net(num_experts=0),
        lambda: m.LayerRouter(2, 0),
        lambda: m.ConstantRouter(-1),
        lambda: m.costs("ResNet-18", num_experts=0),
    ],
    "dims": [lambda: layer(dims=3), lambda: net(dims=0)],
    "ste": [lambda: layer(ste="soft"), lambda: net(ste="none")],
    "expert": [lambda: m.ConstantRouter(2, 2)],
    "widths": [lambda: net(widths=(4,), strides=(1,)), lambda: net(widths=(4, 4, 4))],
    "ratio": [lambda r=r: net(ratio=r) for r in (0, -0.5, 1.5, True)] + [lambda: m.costs("VGG-16-BN", ratio=0)],
    "routing": [lambda: net(routing="all")],
    "router": [
        lambda: net(router=torch.nn.Identity()),
        lambda: m.MoEResNet18(3, num_experts=1, router=torch.nn.Identity()),
        lambda: exact(router=(torch.ones(3), torch.tensor(0.0))),
        lambda: exact(router=(torch.ones(2), torch.zeros(2))),
    ],
    "experts": [lambda: exact(experts=(torch.ones(3, 2), torch.zeros(3)))],
    "temperature": [lambda t=t: net().trace(X1, temperature=t) for t in (0, -1, float("nan"))]
    + [lambda: net().trace(X1, routes=R[None], temperature=1.0)],
    "name": [lambda: m.costs("ResNet-50")],
    "eps": [lambda e=e: m.Trades(e) for e in (-0.1, float("nan"), float("inf"))]
    + [lambda e=e: exact(eps=e) for e in (-1, float("nan"))]
    + [lambda e=e: m.attack_panel(net(), X1, Y, e) for e in (-0.1, float("nan"), float("inf"))]
    + [lambda: m.ste_attack(net(), X1, Y, -1), lambda: m.search_attack(net(), X1, Y, -1)]
    + [lambda: m.route_attack(net(), X1, -1), lambda: m.route_attack(net(num_experts=1), X1, -1)]
    + [lambda: m.path_attack(net(), X1, Y, -1)],
    "steps": [lambda s=s: m.Trades(0.1, steps=s) for s in (-1, 1.5)]
    + [lambda: m.attack_panel(net(), X1, Y, 0.1, steps=0)],
    "alpha": [lambda: m.Trades(0.1, alpha=0), lambda: m.ste_attack(net(), X1, Y, 0.1, alpha=-1)],
    "beta": [lambda: m.Trades(0.1, beta=-1)],
    "noise": [lambda: m.Trades(0.1, noise=float("nan"))],
    "bounds": [lambda: m.Trades(0.1, bounds=(1, 0)), lambda: m.attack_panel(net(), X1, Y, 0.1, bounds=(0, 0))],
    "restarts": [lambda: m.attack_panel(net(), X1, Y, 0.1, restarts=0)],
    "queries": [lambda: m.attack_panel(net(), X1, Y, 0.1, queries=0)],
    "max_paths": [lambda: m.path_attack(net(), X1, Y, 0.1, max_paths=0)],
    "members": [
        lambda: m.attack_panel(net(), X1, Y, 0.1, members=[]),
        lambda: m.attack_panel(net(), X1, Y, 0.1, members=["ste", "autoattack"]),
    ],
    "member": [lambda: m.attack_panel(net(), X1, Y, 0, members=["ste"]).accuracy("path")],
    "y": [
        lambda: m.attack_panel(net(), X1, Y[:2], 0.1),
        lambda: m.attack_panel(net(), X1, Y.float(), 0.1),
        lambda: m.attack_panel(net(), X1[:0], Y[:0], 0.1),
        lambda: exact(y=torch.tensor([0, 1, 1])),
        lambda: exact(y=SIGN[:2]),
        lambda: m.route_label_information(R[None], Y[:2], 2),
    ],
    "after": [lambda: m.churn(R[None], R[None, :2]), lambda: m.churn(R[None, :0], R[None, :0])],
    "donor": [
        lambda: m.with_router_of(net(), net(routing="global")),
        lambda: m.with_router_of(net(), net(num_experts=3)),
    ],
    "model": [
        lambda: m.released_step(net(), *steps(net())),
        lambda: m.released_attack(net(), X1, Y, 0.1),
    ],
    "partition": [
        lambda p=p: m.released_step(g := net(routing="global"), *steps(g), partition=torch.tensor(p))
        for p in ([0, 1], [0, 1, 2], [-1, 0, 1])
    ],
}


@pytest.mark.parametrize(("argument", "case"), [(name, case) for name, cases in CASES.items() for case in cases])
def test_a_value_error_names_the_argument(argument, case):
    with pytest.raises(ValueError, match=rf"^{argument} must "):
        case()


def test_one_class_and_one_input_are_no_error():
    model = net()
    x, y = torch.randn(1, 2, 8), torch.tensor([1])
    panel = m.attack_panel(model, x, y, 0.5, steps=2, queries=3)
    assert panel.accuracy() <= panel.accuracy("clean")
    psi, phi = m.optimizers(model)
    loss = m.joint_step(model, [psi, phi], (torch.randn(4, 2, 8), torch.ones(4, dtype=torch.int64)), m.Trades(0.1))
    assert loss > 0
