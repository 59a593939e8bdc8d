"""The exponent of a power law in n, from replicates at several n, with the uncertainty that belongs to it.

log s(n) = c + slope log n, where s(n) is a statistic of the replicates at n: weighted least squares, weights one over
the variance of log s(n). The interval is a bootstrap: replicates are drawn anew within each n, the line is fitted
again, and percentiles of the slopes are taken. No n is left out, but the slope without the smallest n is reported,
since small samples bend the line; another statistic tells how much of the slope is due to a few heavy replicates.

A slope tells powers from each other only as far as its interval does. sqrt(log n / n) has local slope -.43 at n = 10^3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from gated.gates._validation import check_choice

Statistic = Literal["mean", "median", "geometric", "rms"]


class Rate(NamedTuple):
    """A fitted power law s(n) = e^intercept n^slope."""

    slope: float
    interval: tuple[float, float]
    intercept: float
    without_smallest: float
    """The slope without the smallest n; with two sizes only, the slope itself."""
    statistics: list[float]
    """s(n) at each n."""


def rate(
    sizes: Sequence[int] | Tensor,
    values: Float[Tensor, "sizes replicates"],
    *,
    statistic: Statistic = "mean",
    level: float | int = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Rate:
    """Slope of log s(n) on log n with its bootstrap interval.

    Args:
        sizes: n, at least two different ones.
        values: one row for each n, at least two replicates. Not negative; above 0 for "geometric".
        statistic: s: the mean, the median, the geometric mean, or the root of the mean square ("rms", for errors that
            may be negative).
        level: of the interval. resamples: bootstrap draws. seed: of these draws.

    Raises:
        ValueError: sizes and values that do not fit together or are out of range, a statistic that is 0 at some n.
    """
    n = torch.as_tensor(sizes, dtype=torch.float64)
    if n.ndim != 1 or len(n) < 2 or len(n.unique()) < 2 or not (n > 0).all():
        raise ValueError(f"sizes must be at least two different numbers above 0; got {n.tolist()}")
    if values.ndim != 2 or len(values) != len(n) or values.shape[1] < 2:
        raise ValueError(f"values must be [{len(n)} sizes, at least 2 replicates]; got {tuple(values.shape)}")
    check_choice("statistic", statistic, get_args(Statistic))
    if not 0 < level < 1 or resamples < 10:
        raise ValueError(f"level must be in (0, 1) and resamples at least 10; got {level} and {resamples}")
    v = values.detach().to("cpu", torch.float64)
    if not v.isfinite().all():
        raise ValueError(f"values must be finite; got {int((~v.isfinite()).sum())} that are not")
    if (statistic != "rms" and (v < 0).any()) or (statistic == "geometric" and (v == 0).any()):
        raise ValueError(f'values must not be negative (nor 0 for "geometric"); the smallest is {float(v.min())}')
    log_s = _log_statistic(v, statistic)
    if not log_s.isfinite().all():
        raise ValueError(
            f"values must have a {statistic} above 0 at every n; it is 0 at n = {n[~log_s.isfinite()].tolist()}"
        )
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(v.shape[1], (resamples, *v.shape), generator=generator)
    again = _log_statistic(v.expand(resamples, -1, -1).gather(-1, drawn), statistic)
    # A resample may hold nothing but zeros: its logarithm is out of reach, and so it counts as the lowest finite one.
    again = torch.where(again.isfinite(), again, again.masked_fill(~again.isfinite(), math.inf).amin())
    variance = again.var(0)
    weight = 1 / variance.clamp(min=max(1e-6 * float(variance.max()), 1e-30))
    slope, intercept = _line(n.log(), log_s, weight)
    slopes = _line(n.log(), again, weight)[0]
    low, high = slopes.quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)).tolist()
    rest = n > n.min()
    without = _line(n[rest].log(), log_s[rest], weight[rest])[0] if len(n[rest].unique()) > 1 else slope
    return Rate(float(slope), (low, high), float(intercept), float(without), log_s.exp().tolist())


def _log_statistic(values: Tensor, statistic: Statistic) -> Tensor:
    """Of the last axis."""
    match statistic:
        case "mean":
            return values.mean(-1).log()
        case "median":
            return values.quantile(0.5, -1).log()  # Tensor.median would take the lower of the middle two
        case "geometric":
            return values.log().mean(-1)
        case "rms":
            return values.square().mean(-1).log() / 2


def _line(x: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted least squares of y [..., sizes] on x: slope and intercept."""
    share = weight / weight.sum()
    x_mean, y_mean = (share * x).sum(), (share * y).sum(-1)
    slope = (share * (x - x_mean) * (y - y_mean[..., None])).sum(-1) / (share * (x - x_mean).square()).sum()
    return slope, y_mean - slope * x_mean
