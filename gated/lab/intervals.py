"""Intervals: how far a mean of seeds or examples is known, and where the mean of further runs should fall."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import stats

FEW = 20  # below this many values an interval of the mean comes from Student's t, not from a bootstrap
PROCESSES = 1.1  # how far apart two processes' ratios of the same two times may be
Interval = tuple[float, float]


def t_interval(x: Any, level: float = 0.95) -> Interval:
    """Student's interval of the mean: mean ± t_{n-1} s/√n. Exact for normal values, fair for a few seeds."""
    x = _sample("x", x, 2, level)
    half = stats.t.ppf(0.5 + level / 2, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x))
    return float(x.mean() - half), float(x.mean() + half)


def bootstrap_interval(
    x: Any, level: float = 0.95, seed: int = 0, *, statistic: Callable[..., Any] = np.mean, resamples: int = 4000
) -> Interval:
    """Percentile bootstrap interval of `statistic(x, axis)`, by default the mean, from at least 20 values.

    With n values the bootstrap knows a spread of only √((n-1)/n) s and no t-factor: at n = 3 or 5 a "95 %"
    interval covers about 75 or 85 % of the time. So fewer than 20 values are refused here; `mean_interval`
    serves them.
    """
    x = _sample("x", x, FEW, level)
    found = stats.bootstrap(
        (x,),
        statistic,
        confidence_level=level,
        n_resamples=resamples,
        method="percentile",
        vectorized=True,
        batch=max(1, 1_000_000 // len(x)),
        rng=np.random.default_rng(seed),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def mean_interval(x: Any, level: float = 0.95, seed: int = 0) -> Interval:
    """Interval of the mean: `t_interval` below 20 values (seeds), else `bootstrap_interval` (examples)."""
    x = _sample("x", x, 2, level)
    return t_interval(x, level) if len(x) < FEW else bootstrap_interval(x, level, seed)


def across_processes(low: float, high: float) -> Interval:
    """The interval of a ratio of times, made wider by a tenth to either side: what another process may find.

    The rounds of one process share the layout of its memory and the state of its machine, so that their interval is
    too narrow. With nothing changed, an hour apart, ratios of the same two programs differed by up to 9 %.
    """
    if not 0 < low <= high:
        raise ValueError(f"low and high must be positive, low <= high; got {low} and {high}")
    return low / PROCESSES, high * PROCESSES


def paired_interval(a: Any, b: Any, level: float = 0.95, seed: int = 0) -> Interval:
    """`mean_interval` of the differences a - b, where a[i] and b[i] share their seed (or example).

    Pairing removes what both arms share (data order, luck of the split), so it decides with fewer seeds.
    """
    a, b = _sample("a", a, 2, level), _sample("b", b, 2, level)
    if a.shape != b.shape:
        raise ValueError(f"a and b must be paired: got {len(a)} and {len(b)} values")
    return mean_interval(a - b, level, seed)


def prediction_interval(x: Any, future: int = 1, level: float = 0.99) -> Interval:
    """Where the mean of `future` further runs should fall: mean ± t_{n-1} s √(1/n + 1/future)."""
    x = _sample("x", x, 2, level)
    if future < 1:
        raise ValueError(f"future must be at least 1 run, got {future}")
    half = stats.t.ppf(0.5 + level / 2, len(x) - 1) * x.std(ddof=1) * math.sqrt(1 / len(x) + 1 / future)
    return float(x.mean() - half), float(x.mean() + half)


def _sample(name: str, x: Any, least: int, level: float) -> np.ndarray:
    x = np.asarray(x, dtype=np.float64)
    if x.ndim != 1 or len(x) < least:
        raise ValueError(f"{name} must be one-dimensional with at least {least} values, got shape {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError(f"{name} must be finite, got {x[~np.isfinite(x)][0]}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}")
    return x
