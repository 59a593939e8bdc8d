"""Exact robustness of the smallest mixture: a linear router between two linear experts, labels -1 and +1.

    f(x') = w_e . x' + b_e,    e = 1 if a . x' + c >= 0 else 0,    |x' - x| <= eps in every coordinate

For each expert the worst point of its side of the box solves a linear program with one constraint, which is a
fractional knapsack: start at the corner that hurts most; if it lies on the wrong side of the router's line, move
coordinates back, the cheapest for their gain first, until the line is met.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gated.advmoe.conv import MoEConv, top1
from gated.advmoe.networks import RoutedNetwork, Trace
from gated.gates._validation import check_floats, check_number

__all__ = ["ExactMargin", "LinearMoE", "exact_margin"]

Router = tuple[Float[Tensor, " dim"], Float[Tensor, ""]]
Experts = tuple[Float[Tensor, "2 dim"], Float[Tensor, "2"]]


class ExactMargin(NamedTuple):
    """Margins y f over the box, in the units of f; positive is right.

    Attributes:
        margin: the smallest over both experts: the input is safe if it is positive.
        by_expert: the smallest on each expert's own side of the line; +inf where the box does not reach it.
        worst: where that is; NaN where the box does not reach.
        route: the expert of the clean input.
        clean: y f(x).
        frozen: y (w_e . x + b_e) - eps |w_e|_1 with the clean route e kept, wherever the router would send the point.

    `margin <= by_expert[route]` and `frozen <= by_expert[route]` always; `frozen` may lie on either side of `margin`.
    """

    margin: Float[Tensor, " batch"]
    by_expert: Float[Tensor, "batch 2"]
    worst: Float[Tensor, "batch 2 dim"]
    route: Int[Tensor, " batch"]
    clean: Float[Tensor, " batch"]
    frozen: Float[Tensor, " batch"]

    @property
    def own_path(self) -> Bool[Tensor, " batch"]:
        """Beaten without a change of route."""
        return self.by_expert.gather(1, self.route[:, None])[:, 0] <= 0

    @property
    def only_by_flip(self) -> Bool[Tensor, " batch"]:
        """Beaten, but only where the other expert answers."""
        return (self.margin <= 0) & ~self.own_path


@torch.no_grad()
def exact_margin(
    x: Float[Tensor, "batch dim"],
    y: Int[Tensor, " batch"] | Float[Tensor, " batch"],
    eps: float | int,
    router: Router,
    experts: Experts,
) -> ExactMargin:
    """The smallest y f(x') over the box of half-width eps around each x, exactly; see `ExactMargin`.

    The line itself belongs to expert 1; expert 0's value is the infimum as the line is approached. O(dim log dim) for
    each input.

    Args:
        y: -1 or +1.
        eps: >= 0.
        router: (a, c).
        experts: (W, b), row e of W and entry e of b belong to expert e.

    Raises:
        ValueError: eps negative or not finite, labels other than -1 and +1, shapes that do not fit.

    Example:
        >>> router = (torch.tensor([1.0]), torch.tensor(0.0))  # the sign of x chooses
        >>> experts = (torch.tensor([[1.0], [2.0]]), torch.tensor([0.0, 0.0]))
        >>> found = exact_margin(torch.tensor([[1.0]]), torch.tensor([1]), 0.25, router, experts)
        >>> found.clean.tolist(), found.margin.tolist()  # 2 x falls by 2 * 0.25
        ([2.0], [1.5])
    """
    check_eps(eps)
    (a, c), (weight, bias) = router, experts
    if x.ndim != 2 or not x.is_floating_point():
        raise ValueError(f"x must be floating point, [batch, dim]; got {x.dtype} {tuple(x.shape)}")
    dim = x.shape[1]
    if a.shape != (dim,) or c.shape != ():
        raise ValueError(f"router must be shapes ({dim},) and (); got {tuple(a.shape)} and {tuple(c.shape)}")
    if weight.shape != (2, dim) or bias.shape != (2,):
        raise ValueError(f"experts must be shapes (2, {dim}) and (2,); got {tuple(weight.shape)}, {tuple(bias.shape)}")
    if y.shape != x.shape[:1] or y.dtype == torch.bool or not bool((y.abs() == 1).all()):
        raise ValueError(f"y must be -1 or +1 for each of {len(x)} inputs; got shape {tuple(y.shape)} or other labels")
    sign = y.to(x.dtype)
    score = x @ a + c
    route = (score >= 0).long()
    values = x @ weight.T + bias  # [batch, 2]
    margins, points = [], []
    for e, side in ((0, -1.0), (1, 1.0)):
        cost = sign[:, None] * weight[e]
        delta, reached = _knapsack(cost, side * a, side * score, eps)
        margin = sign * values[:, e] + (cost * delta).sum(1)
        margins.append(margin.masked_fill(~reached, torch.inf))
        points.append((x + delta).masked_fill(~reached[:, None], torch.nan))
    by_expert = torch.stack(margins, 1)
    clean = sign * values.gather(1, route[:, None])[:, 0]
    frozen = clean - eps * weight.abs().sum(1)[route]
    return ExactMargin(by_expert.amin(1), by_expert, torch.stack(points, 1), route, clean, frozen)


def _knapsack(cost: Tensor, a: Tensor, score: Tensor, eps: float | int) -> tuple[Tensor, Tensor]:
    """argmin over |delta| <= eps of cost . delta with a . delta + score >= 0, and whether there is such a delta."""
    toward = torch.where(a == 0, torch.ones_like(a), a.sign())  # the direction that helps the constraint
    delta = eps * torch.where(cost == 0, toward.expand_as(cost), -cost.sign())
    lacking = -(score + delta @ a)
    movable = (delta * a < 0).to(cost.dtype)  # coordinates that stand against the constraint
    gain = 2 * eps * a.abs() * movable
    ratio = torch.where(gain > 0, cost.abs() / a.abs().clamp_min(torch.finfo(a.dtype).tiny), torch.inf)
    order = ratio.argsort(1)
    sorted_gain = gain.gather(1, order)
    before = sorted_gain.cumsum(1) - sorted_gain
    share = ((lacking[:, None] - before) / sorted_gain.clamp_min(torch.finfo(a.dtype).tiny)).clamp(0, 1)
    share = torch.where(sorted_gain > 0, share, 0)
    taken = torch.zeros_like(gain).scatter(1, order, share)
    moved = delta + taken * 2 * eps * toward
    return moved, score + eps * a.abs().sum() >= 0


class LinearMoE(RoutedNetwork):
    """The same mixture as a network: two logits (-f / 2, f / 2) for the labels -1 and +1, given as classes 0 and 1.

    Takes part in every attack, so that what an attack finds can be held against `exact_margin`. The gate is that of
    `MoEConv` (straight-through, chosen expert only); on the line the exact form takes expert 1 and this one expert 0.

    Example:
        >>> router = (torch.tensor([1.0]), torch.tensor(0.0))
        >>> experts = (torch.tensor([[1.0], [2.0]]), torch.tensor([0.0, 0.0]))
        >>> LinearMoE(router, experts)(torch.tensor([[1.0], [-1.0]])).tolist()  # f = 2 and f = -1
        [[-1.0, 1.0], [0.5, -0.5]]
    """

    def __init__(self, router: Router, experts: Experts):
        super().__init__()
        (a, c), (weight, bias) = router, experts
        self.router, self.num_experts, self.num_routers = None, 2, 1
        self.a, self.c = nn.Parameter(a.clone()), nn.Parameter(c.clone())
        self.bias = nn.Parameter(bias.clone())
        self.experts = MoEConv(weight.shape[1], 1, 1, num_experts=2, dims=1).to(weight.dtype)
        self.experts.weight.data.copy_(weight.view(2, 1, -1, 1))

    def router_parameters(self) -> list[nn.Parameter]:
        return [self.a, self.c]

    def trace(
        self,
        x: Float[Tensor, "batch dim"],
        *,
        routes: Int[Tensor, "1 batch"] | None = None,
        temperature: float | int | None = None,
    ) -> Trace:
        """As `RoutedNetwork.trace`."""
        check_floats(f"batch {len(self.a)}", x=x)
        score = x @ self.a + self.c
        scores = torch.stack([-score, score], 1) / 2
        taken = top1(scores) if routes is None else routes[0]
        if temperature is not None:
            weights = (scores / temperature).softmax(1)
            f = self.experts.mixed(x[..., None], scores, temperature).flatten() + weights @ self.bias
        else:
            f = self.experts(x[..., None], scores) if routes is None else self.experts.chosen(x[..., None], taken)
            f = f.flatten() + self.bias[taken]
        return Trace(torch.stack([-f, f], 1) / 2, scores[None], taken[None])


def check_eps(eps: float | int) -> None:
    check_number("eps", eps, "[0, inf)")
