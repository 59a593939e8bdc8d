"""Where a top-1 gate switches from one expert to the other, estimated by trying every place.

With K = 1 the softmax over the one selected expert is 1: the likelihood has no derivative in the gate, and no optimiser
moves it. For two experts and inputs in R^1 ranked by logits all that the gate does is cut the line in two. For a cut
between two neighbouring inputs, the best experts are the least-squares lines of both sides, and the log-likelihood is

    -sum over sides s of (n_s / 2) (log(2 pi nu_s) + 1),    nu_s: the mean square of the side's residuals.

Cumulative sums give all cuts in one pass over the sorted inputs. The estimate's error falls like 1/n, not n^-1/2, since
only the gap between two inputs is in doubt. (beta_0 and beta_1 of the gate are not identified, only the cut is.)
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Boundary(NamedTuple):
    """The best cut and how well the others do."""

    boundary: Float[Tensor, "*replicates"]
    """The middle between the two inputs that enclose the best cut."""
    log_likelihood: Float[Tensor, "*replicates cuts"]
    """Of the best two lines at every cut; -inf where a side has too few points."""
    cuts: Float[Tensor, "*replicates cuts"]
    """Middles between neighbouring inputs, ascending: n - 1 of them."""


def boundary(
    x: Float[Tensor, "*replicates n"],
    y: Float[Tensor, "*replicates n"],
    *,
    least: int = 5,
    min_variance: float | int = 1e-3,
) -> Boundary:
    """The cut with the largest likelihood, inputs in R^1 in any order: O(n log n) to sort, O(n) for all cuts.

    Args:
        x, y: finite, float64 (the sums of squares of float32 lose the residuals).
        least: points that each side must have; at least 3, since two points lie on a line.
        min_variance: the variance of a side is not taken below this times the variance of y: a few points that happen
            to lie on a line would otherwise win.

    Raises:
        ValueError: other shapes, fewer than 2 `least` points, inputs that are not finite, inputs without two different
            ones, y without variance.
    """
    if x.shape != y.shape or x.ndim == 0:
        raise ValueError(f"x and y must have one shape (*replicates, n); got {tuple(x.shape)} and {tuple(y.shape)}")
    if least < 3 or not min_variance > 0:
        raise ValueError(f"least must be at least 3 and min_variance above 0; got {least} and {min_variance}")
    n = x.shape[-1]
    if n < 2 * least:
        raise ValueError(f"x must have at least {2 * least} points, {least} a side; got {n}")
    if not (x.isfinite().all() and y.isfinite().all()):
        raise ValueError("x and y must be finite")
    x, order = x.sort(-1)
    if (x[..., 0] == x[..., -1]).any():
        raise ValueError("x must hold two different inputs in every replicate")
    # Centred and scaled, so that the differences of sums below cancel as little as they can.
    y = y.gather(-1, order)
    floor = y.var(-1, correction=0, keepdim=True)
    if not (floor > 0).all():
        raise ValueError("y must vary in every replicate")
    u = (x - x.mean(-1, keepdim=True)) / x.std(-1, correction=0, keepdim=True)
    v = (y - y.mean(-1, keepdim=True)) / floor.sqrt()
    sums = torch.stack([torch.ones_like(u), u, v, u * u, u * v, v * v]).cumsum(-1)
    left, right = sums[..., :-1], sums[..., -1:] - sums[..., :-1]
    log_likelihood = torch.zeros_like(left[0])
    for count, su, sv, suu, suv, svv in (left, right):
        within_u = (suu - su * su / count).clamp(min=1e-300)
        within_uv = suv - su * sv / count
        residual = svv - sv * sv / count - within_uv.square() / within_u
        nu = (residual / count).clamp(min=min_variance) * floor
        log_likelihood = log_likelihood - count / 2 * (torch.log(2 * math.pi * nu) + residual / count / nu * floor)
    position = torch.arange(1, n, device=x.device)
    allowed = (position >= least) & (position <= n - least) & (x[..., 1:] > x[..., :-1])
    log_likelihood = log_likelihood.masked_fill(~allowed, -math.inf)
    if (log_likelihood.amax(-1) == -math.inf).any():
        raise ValueError(f"x must have two neighbours that differ with {least} points on each side, in every replicate")
    cuts = (x[..., 1:] + x[..., :-1]) / 2
    best = log_likelihood.argmax(-1, keepdim=True)
    return Boundary(cuts.gather(-1, best)[..., 0], log_likelihood, cuts)
