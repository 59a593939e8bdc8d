"""Statistics of routes by hand and by scikit-learn; routers that change their experts."""

import math

import pytest
import torch
from sklearn.metrics import mutual_info_score

from gated.advmoe import (
    MoECNN,
    churn,
    load_entropy,
    route_label_information,
    route_load,
    route_robustness,
    routes_of,
    with_router_of,
)


def net(seed=0, **options):
    torch.manual_seed(seed)
    return MoECNN(2, 4, **({"widths": (6, 8, 8), "strides": (1, 2, 1), "kernel_size": 3} | options)).eval()


def test_load_and_its_entropy():
    routes = torch.tensor([[0, 1, 0, 1], [2, 2, 2, 2], [0, 0, 0, 1]])
    want = torch.tensor([[0.5, 0.5, 0], [0, 0, 1], [0.75, 0.25, 0]], dtype=torch.float64)
    torch.testing.assert_close(route_load(routes, 3), want)
    h = load_entropy(routes, 3)
    assert h[0].item() == pytest.approx(math.log(2)) and h[1].item() == 0 and math.copysign(1, h[1].item()) == 1
    assert h[2].item() == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))


def test_churn_counts_inputs_not_layers():
    a = torch.tensor([[0, 1, 0, 1], [0, 0, 0, 0]])
    b = torch.tensor([[0, 0, 0, 1], [0, 1, 0, 1]])
    assert churn(a, b) == 0.5 and churn(a, a) == 0


def test_information_is_scikit_learns():
    g = torch.Generator().manual_seed(0)
    routes, y = torch.randint(3, (2, 500), generator=g), torch.randint(5, (500,), generator=g)
    routes[1] = y % 3
    got = route_label_information(routes, y, 3)
    for row, value in zip(routes, got, strict=True):
        assert value.item() == pytest.approx(mutual_info_score(row.numpy(), y.numpy()), abs=1e-12)
    assert got[1] > 1 > 0.05 > got[0]


def test_routes_of_a_data_set_do_not_depend_on_the_batches():
    model = net()
    x = torch.randn(23, 2, 12)
    model.train()
    assert torch.equal(routes_of(model, x, batch=5), routes_of(model, x))
    assert model.training


@pytest.mark.parametrize("routing", ["layer", "global"])
def test_swapped_routers(routing):
    one, two = net(0, routing=routing), net(1, routing=routing)
    two.train()(torch.randn(16, 2, 12))  # running statistics of a router's norm go along
    two.eval()
    both = with_router_of(one, two)
    x = torch.randn(10, 2, 12)
    if routing == "global":
        torch.testing.assert_close(both.trace(x).scores, two.trace(x).scores)
    forced = torch.ones(one.num_routers, 10, dtype=torch.int64)
    torch.testing.assert_close(both.trace(x, routes=forced).logits, one.trace(x, routes=forced).logits)
    assert all(torch.equal(a, b) for a, b in zip(both.router_parameters(), two.router_parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(both.expert_parameters(), one.expert_parameters(), strict=True))
    assert not set(map(id, both.parameters())) & set(map(id, one.parameters()))


def test_a_collapsed_router_is_perfectly_robust_and_its_entropy_says_so():
    model = net(routing="global")
    model.router[-1].linear.bias.data = torch.tensor([100.0, 0.0])
    x = torch.randn(20, 2, 12)
    assert route_robustness(model, x, 0.3, steps=5) == 1
    assert load_entropy(routes_of(model, x), 2).item() == 0
    model.router[-1].linear.bias.data.zero_()
    scores = model.trace(x).scores[0]
    model.router[-1].linear.bias.data[1] = (scores[:, 0] - scores[:, 1]).median()  # balanced, and close to the line
    assert route_robustness(model, x, 0.3, steps=5, generator=torch.Generator().manual_seed(0)) < 0.8
    assert load_entropy(routes_of(model, x), 2).item() > 0.6
