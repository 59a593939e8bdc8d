"""What the routes of a data set say: how even they are, how they change, what they know of the label."""

from __future__ import annotations

import copy

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gated.advmoe.attacks import route_attack
from gated.advmoe.networks import RoutedNetwork
from gated.advmoe.training import Bounds, evaluating
from gated.gates import entropy
from gated.gates._validation import check_int, check_sizes


@torch.no_grad()
def routes_of(
    model: RoutedNetwork, x: Float[Tensor, "examples ..."], batch: int = 1000
) -> Int[Tensor, "routers examples"]:
    """Each input's route, in evaluation mode, `batch` inputs at a time. Raises ValueError for a batch below 1.

    Example:
        >>> routes_of(MoECNN(1, 10, num_experts=4), torch.randn(5, 1, 40)).shape
        torch.Size([3, 5])
    """
    check_sizes(batch=batch)
    with evaluating(model):
        return torch.cat([model.trace(part).routes for part in x.split(batch)], 1)


def route_load(routes: Int[Tensor, "routers examples"], num_experts: int) -> Float[Tensor, "routers experts"]:
    """Share of the inputs that each router sends to each expert.

    Raises:
        ValueError: no inputs, an expert beyond `num_experts`.

    Example:
        >>> route_load(torch.tensor([[0, 0, 1, 0]]), num_experts=2).tolist()
        [[0.75, 0.25]]
    """
    _check_routes(routes, num_experts)
    counts = torch.stack([torch.bincount(row, minlength=num_experts) for row in routes])
    return counts.double() / routes.shape[1]


def load_entropy(routes: Int[Tensor, "routers examples"], num_experts: int) -> Float[Tensor, " routers"]:
    """Entropy of each router's load in nats: log N at balance, 0 for a router that has collapsed.

    Raises:
        ValueError: as `route_load`.

    Example:
        >>> load_entropy(torch.tensor([[0, 1, 0, 1]]), num_experts=2)  # log 2
        tensor([0.6931], dtype=torch.float64)
    """
    return entropy(route_load(routes, num_experts)).abs()  # a load of exactly 1 gives -0


def churn(before: Int[Tensor, "routers examples"], after: Int[Tensor, "routers examples"]) -> float:
    """Share of the inputs whose route changed in at least one layer.

    Raises:
        ValueError: routes of different shapes, or none.

    Example:
        >>> churn(torch.tensor([[0, 1, 0, 1]]), torch.tensor([[0, 1, 1, 1]]))
        0.25
    """
    if before.shape != after.shape or not before.numel():
        raise ValueError(f"after must have the shape of before, {tuple(before.shape)}; got {tuple(after.shape)}")
    return (before != after).any(0).double().mean().item()


def route_label_information(
    routes: Int[Tensor, "routers examples"], y: Int[Tensor, " examples"], num_experts: int
) -> Float[Tensor, " routers"]:
    """I(route; label) = H(route) + H(label) - H(route, label) in nats, of the counts, for each router.

    For a router that knows nothing the estimate is about (N - 1)(C - 1) / (2 examples), not 0.

    Raises:
        ValueError: not one label an input, labels below 0; as `route_load`.

    Example:
        >>> route_label_information(torch.tensor([[0, 1, 0, 1]]), torch.tensor([0, 1, 0, 1]), 2)  # log 2
        tensor([0.6931], dtype=torch.float64)
    """
    _check_routes(routes, num_experts)
    if y.shape != routes.shape[1:]:
        raise ValueError(f"y must hold one label for each of {routes.shape[1]} inputs; got shape {tuple(y.shape)}")
    check_int("y", y)
    if int(y.min()) < 0:
        raise ValueError(f"y must hold classes from 0 on; got {int(y.min())}")
    classes = int(y.max()) + 1
    joint = route_load(routes * classes + y, num_experts * classes)
    table = joint.unflatten(1, (num_experts, classes))
    return (entropy(table.sum(2)) + entropy(table.sum(1)) - entropy(joint)).clamp_min(0)


def route_robustness(
    model: RoutedNetwork,
    x: Float[Tensor, "examples ..."],
    eps: float | int,
    *,
    steps: int = 20,
    restarts: int = 1,
    bounds: Bounds = None,
    generator: torch.Generator | None = None,
) -> float:
    """RS: the share of inputs whose route in every layer survives `route_attack`. Needs `load_entropy` beside it.

    Args:
        eps, restarts: as in `route_attack`.
    """
    found = route_attack(model, x, eps, steps=steps, restarts=restarts, bounds=bounds, generator=generator)
    return 1 - found.broken.double().mean().item()


def with_router_of(model: RoutedNetwork, donor: RoutedNetwork) -> RoutedNetwork:
    """A new network: `model` with the routers of `donor`, weights and running statistics.

    Raises:
        ValueError: routers that do not fit.
    """
    swapped = copy.deepcopy(model)
    state, given = swapped.state_dict(), donor.state_dict()
    theirs = {name: value for name, value in given.items() if _of_router(name)}
    if {n: v.shape for n, v in theirs.items()} != {n: v.shape for n, v in state.items() if _of_router(n)}:
        raise ValueError("donor must have routers of the same shapes as model")
    swapped.load_state_dict(state | theirs)
    return swapped


def _of_router(name: str) -> bool:
    return "router" in name.split(".")


def _check_routes(routes: Tensor, num_experts: int) -> None:
    check_sizes(num_experts=num_experts)
    check_int("routes", routes)
    if routes.ndim != 2 or not routes.numel():
        raise ValueError(f"routes must be [routers, examples] with at least one of each; got {tuple(routes.shape)}")
    if not 0 <= int(routes.min()) <= int(routes.max()) < num_experts:
        raise ValueError(f"routes must lie in 0..{num_experts - 1}; got {int(routes.min())}..{int(routes.max())}")
