"""How far two conditional densities are apart, by quadrature in x and y, with the errors of both under control.

    E_X[h^2] = E_X[ 1/2 int (sqrt p - sqrt q)^2 dy ],    E_X[V] = E_X[ 1/2 int |p - q| dy ],    X uniform on an interval

In y: the trapezoidal rule from 8 standard deviations below the lowest mean to 8 above the highest, at every x its own
range. For sums of Gaussians this rule converges faster than any power of the step; |p - q| has kinks, which cost
O(step^2). In x: midpoints in every panel between the places where a top-K selection switches, since a density jumps
there. A panel with 3 m midpoints contains the m midpoints of the coarser rule, so that one evaluation gives two values
and from their difference the error; where it is too large, m is tripled.

Source: Nguyen, Akbarian, Yan and Ho 2024 (arXiv 2309.13850) measure convergence of densities in these two distances.
"""

from __future__ import annotations

import bisect
import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from gated.gaussian_moe.model import GaussianMoE

Interval = tuple[float | int, float | int]
REACH = 8.0  # standard deviations beyond the outermost means: leaves out 1e-15 of the mass
ELEMENTS = 1 << 17  # points of one pass: a few such arrays of float64 fit a core's cache
MOST_STEPS = 10**7
SCAN = 1025  # where a selection may switch, it is looked for between so many points


class Distances(NamedTuple):
    """Expected distances, and an estimate of the larger of their quadrature errors."""

    squared_hellinger: Float[Tensor, "*models"]
    total_variation: Float[Tensor, "*models"]
    error: Float[Tensor, "*models"]


def squared_hellinger(p: GaussianMoE, q: GaussianMoE, interval: Interval, **options: Any) -> Float[Tensor, "*models"]:
    """E_X[h^2(p, q)], between 0 and 1. See `distances`."""
    return distances(p, q, interval, **options).squared_hellinger


def total_variation(p: GaussianMoE, q: GaussianMoE, interval: Interval, **options: Any) -> Float[Tensor, "*models"]:
    """E_X[V(p, q)], between 0 and 1. See `distances`."""
    return distances(p, q, interval, **options).total_variation


def distances(
    p: GaussianMoE,
    q: GaussianMoE,
    interval: Interval | Float[Tensor, "n dim"],
    *,
    points: int = 20,
    tolerance: float | int = 1e-3,
    steps_per_deviation: float | int = 12.0,
    refinements: int = 3,
) -> Distances:
    """Squared Hellinger distance and total variation of p(y | x) and q(y | x), averaged over x.

    Args:
        p, q: one model each, or many; their leading axes are broadcast.
        interval: X is uniform on (low, high), for inputs in R^1. Or the inputs themselves, [n, dim], to average over: a
            fixed design, or draws of X where dim > 1. These are not refined.
        points: x-midpoints of the coarse rule, spread over the panels by their length; the fine rule has 3 times more.
        tolerance: the x-rule is refined until its error is below this times the total variation (or below 1e-10).
        steps_per_deviation: y-steps in the smallest standard deviation; at least 4.
        refinements: at most so many. Where they do not suffice, `error` tells.

    Raises:
        ValueError: an interval of no length, inputs of another dimension, models that do not broadcast, parameters that
            are not finite, a density whose integral over the range is not 1 within 1e-6.
    """
    if points < 1 or refinements < 0 or not tolerance > 0 or not steps_per_deviation >= 4:
        raise ValueError(
            "points must be at least 1, refinements 0, tolerance above 0 and steps_per_deviation at least 4; got "
            f"{points}, {refinements}, {tolerance} and {steps_per_deviation}"
        )
    if p.dim != q.dim:
        raise ValueError(f"p and q must have inputs of one dimension; got {p.dim} and {q.dim}")
    try:
        shape = torch.broadcast_shapes(p.models, q.models)
    except RuntimeError:
        raise ValueError(f"the leading axes of p and q must broadcast; got {p.models} and {q.models}") from None
    dtype = p.tau.dtype
    p, q = (_flat(model, shape, name) for model, name in ((p, "p"), (q, "q")))
    total = p.tau.shape[0]
    if isinstance(interval, Tensor):
        if interval.ndim != 2 or interval.shape[1] != p.dim or not len(interval):
            raise ValueError(f"interval as inputs must have shape [n, {p.dim}]; got {tuple(interval.shape)}")
        x = interval.to(p.tau).expand(total, *interval.shape)
        values, error = _integrals(p, q, x, steps_per_deviation)
        return _result(values.mean(1), error.mean(1), shape, dtype)
    edges = _panels(p, q, interval)
    result = p.tau.new_zeros(total, 2)
    error = p.tau.new_zeros(total, 2)
    todo = torch.arange(total, device=p.tau.device)
    for _ in range(refinements + 1):
        x, weight, coarse = _midpoints(edges[todo], points)
        value, y_error = _integrals(p[todo], q[todo], x[..., None], steps_per_deviation)
        fine = (weight[..., None] * value).sum(1)
        rough = (coarse[..., None] * value).sum(1)
        result[todo] = fine
        x_error = (fine - rough).abs() / 8  # midpoints: the error falls by 9 when their number triples
        error[todo] = x_error + (weight[..., None] * y_error).sum(1).abs()
        todo = todo[x_error.amax(-1) > torch.clamp(tolerance * fine[:, 1], min=1e-10)]
        if not len(todo):
            break
        points *= 3
    return _result(result, error, shape, dtype)


def _result(values: Tensor, error: Tensor, shape: torch.Size, dtype: torch.dtype) -> Distances:
    hellinger, variation = values.to(dtype).unbind(-1)
    return Distances(hellinger.reshape(shape), variation.reshape(shape), error.amax(-1).to(dtype).reshape(shape))


def _flat(model: GaussianMoE, shape: torch.Size, name: str) -> GaussianMoE:
    """One leading axis, float64 (float32 cannot hold the mass to 1e-6 and a distance of 1e-6 at once)."""
    for field, tensor in model.tensors().items():
        if not tensor.isfinite().all():
            raise ValueError(f"{name}.{field} must be finite; got {int((~tensor.isfinite()).sum())} other values")
    lead = model.tau.ndim
    if not ((model.variance > 0).all() and (model.tau > 0).all()):
        raise ValueError(f"{name}.variance and {name}.tau must be above 0")
    many = lambda tensor: tensor.double().broadcast_to((*shape, *tensor.shape[lead:]))  # noqa: E731
    return model.map(lambda tensor: many(tensor).reshape(shape.numel(), *tensor.shape[lead:]))


# x --------------------------------------------------------------------------------------------------------------------


def nodes(model: GaussianMoE, interval: Interval, points: int) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs [n, 1] for one model, with the weights [n] of the fine midpoint rule and of the coarse one inside it.

    `points` parts are spread over the panels between switches; the fine rule has three times as many, see `distances`.
    """
    flat = _flat(model, torch.Size([1]), "model")
    x, fine, coarse = _midpoints(_panels(flat, flat, interval), points)
    return x[0, :, None], fine[0], coarse[0]


def _panels(p: GaussianMoE, q: GaussianMoE, interval: Interval) -> Float[Tensor, "models edges"]:
    """Where p's or q's selection switches on the interval, between its two ends; padded with its upper end."""
    low, high = interval
    if not (math.isfinite(low) and math.isfinite(high) and low < high) or p.dim != 1:
        raise ValueError(
            f"interval must be (low, high), finite and low < high, and needs inputs in R^1 (give inputs [n, dim] "
            f"otherwise); got {interval} in R^{p.dim}"
        )
    ends = p.tau.new_tensor([low, high]).expand(len(p.tau), 2)
    return torch.cat([ends, *(switches(model, interval) for model in (p, q))], -1).sort(-1).values


def switches(model: GaussianMoE, interval: Interval) -> Float[Tensor, "models switches"]:
    """Where on the interval the set of selected experts changes, by bisection between 1025 points; padded with `high`.

    Two changes that both lie between neighbours of these points are missed.
    """
    low, high = interval
    count = len(model.tau)
    if model.gate.top_k is None or model.gate.top_k == model.num_experts:
        return model.tau.new_zeros(count, 0)
    grid = torch.linspace(low, high, SCAN, dtype=model.tau.dtype, device=model.tau.device)
    kept = model.selected(grid.expand(count, SCAN)[..., None])
    row, cell = (kept[:, 1:] != kept[:, :-1]).any(-1).nonzero(as_tuple=True)
    left, right, before = grid[cell], grid[cell + 1], kept[row, cell]
    for _ in range(44):  # halves the cell down to the last bits of a float64
        middle = (left + right) / 2
        same = (model[row].selected(middle[:, None, None])[:, 0] == before).all(-1)
        left, right = torch.where(same, middle, left), torch.where(same, right, middle)
    place = torch.arange(len(row), device=row.device) - torch.searchsorted(row, row)
    found = model.tau.new_full((count, int(place.max()) + 1 if len(row) else 0), high)
    found[row, place] = (left + right) / 2
    return found


def _midpoints(edges: Tensor, points: int) -> tuple[Tensor, Tensor, Tensor]:
    """Midpoints [models, n] of 3 m equal parts of every panel; weights of the fine rule, and of the m-part rule in it.

    The weights of one model sum to 1. All models have the same number m_j in panel j: enough for the longest of them.
    """
    width = edges.diff(dim=-1)
    share = (width / width.sum(-1, keepdim=True)).amax(0)
    parts = (points * share).ceil().long().clamp(min=3) * (share > 0)
    panel = torch.repeat_interleave(torch.arange(len(parts), device=edges.device), 3 * parts)
    within = torch.arange(len(panel), device=edges.device) - (3 * parts).cumsum(0)[panel] + 3 * parts[panel]
    step = width[:, panel] / (3 * parts[panel])
    weight = step / width.sum(-1, keepdim=True)
    coarse = torch.where(within % 3 == 1, 3 * weight, torch.zeros_like(weight))
    return edges[:, panel] + (within + 0.5) * step, weight, coarse


# y --------------------------------------------------------------------------------------------------------------------


def _integrals(p: GaussianMoE, q: GaussianMoE, x: Tensor, steps_per_deviation: float | int) -> tuple[Tensor, Tensor]:
    """h^2(x), V(x) [models, n, 2], and the y-rule's error as Richardson's extrapolation from every second point has it.

    Every (model, x) is a row with its own range in y. Rows that need a like number of points go through in one pass.
    """
    models, n = x.shape[:2]
    rows = []
    for model in (p, q):
        deviation = model.variance.sqrt()[:, None].expand(models, n, model.num_experts)
        rows.append([t.flatten(0, 1) for t in (model.log_gate(x).exp(), model.means(x), deviation)])
    pi, mean, deviation = (torch.cat(pair, -1) for pair in zip(*rows, strict=True))
    absent = pi == 0
    low = (mean - REACH * deviation).masked_fill(absent, math.inf).amin(-1)
    high = (mean + REACH * deviation).masked_fill(absent, -math.inf).amax(-1)
    steps = ((high - low) / deviation.masked_fill(absent, math.inf).amin(-1) * steps_per_deviation).ceil()
    order = steps.argsort()
    value, error = x.new_empty(models * n, 2), x.new_empty(models * n, 2)
    start = 0
    ordered = steps[order].tolist()
    if ordered[-1] > MOST_STEPS:
        raise ValueError(
            f"variances must not be so small that y needs over {MOST_STEPS} steps; the smallest standard deviation "
            f"is {float(deviation.amin()):.1e}, the widest range {float((high - low).amax()):.1e}"
        )
    while start < len(order):
        stop = start + max(1, int(ELEMENTS // (ordered[start] + 1)))
        stop = max(start + 1, bisect.bisect_right(ordered, 1.5 * ordered[start], start, min(stop, len(order))))
        part = order[start:stop]
        # An even number of steps, so that every second point is a trapezoidal rule too.
        count = 2 * math.ceil(ordered[stop - 1] / 2)
        value[part], error[part] = _pass([[t[part] for t in row] for row in rows], low[part], high[part], count)
        start = stop
    return value.reshape(models, n, 2), error.reshape(models, n, 2)


def _pass(rows: list[list[Tensor]], low: Tensor, high: Tensor, count: int) -> tuple[Tensor, Tensor]:
    step = (high - low) / count
    y = low[:, None] + step[:, None] * torch.arange(count + 1, dtype=low.dtype, device=low.device)
    densities = []
    for name, (pi, mean, deviation) in zip("pq", rows, strict=True):
        density = torch.zeros_like(y)
        for i in range(pi.shape[-1]):
            z = (y - mean[:, i, None]).mul_((math.sqrt(0.5) / deviation[:, i])[:, None])
            height = pi[:, i] / (math.sqrt(2 * math.pi) * deviation[:, i])
            density.addcmul_(z.mul_(z).neg_().exp_(), height[:, None])
        off = (density.sum(-1) * step - 1).abs().amax()
        if not off <= 1e-6:
            raise ValueError(
                f"{name}'s density must integrate to 1 within 1e-6 at every x; it is off by {float(off):.1e}. "
                "More steps_per_deviation would do."
            )
        densities.append(density)
    p, q = densities
    gap = (p - q).abs_()
    root = p.sqrt_().sub_(q.sqrt_()).square_()
    # Both integrands are below 1e-14 at the ends of the range, so that the ends need no half weights.
    value = torch.stack([root.sum(-1), gap.sum(-1)], -1) * (step / 2)[:, None]
    half = torch.stack([root[:, ::2].sum(-1), gap[:, ::2].sum(-1)], -1) * step[:, None]
    return value, (value - half) / 3
