"""Side-by-side timing: rounds A B A B in one run, medians, and ratios with intervals.

    result = race({"ours": ours, "SDPA": sdpa}, rounds=20, threads=2)
    report = Report("gla")
    report.race("forward", {"T": 2048}, result)
    report.scaling("forward", [1024, 2048, 4096], milliseconds)
    report

A shared or throttled machine slows all cases of a round alike, so the ratios within rounds hold where times
do not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import stats
from torch.utils._pytree import tree_leaves

from gated.lab.claims import Number
from gated.lab.style import Shown, Table, interval_text

MIME = "application/vnd.gated.bench+json"


class Estimate(NamedTuple):
    """A value and its interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} {interval_text((self.low, self.high))}"


@contextmanager
def use_threads(n: int) -> Iterator[None]:
    """Runs PyTorch's CPU operators on `n` threads within the context, then on as many as before."""
    if n < 1:
        raise ValueError(f"n must be at least 1 thread, got {n}")
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True, repr=False)
class Race(Shown):
    """Times of each case: `ms` [rounds], milliseconds a call. The first case is ours, the others peers."""

    ms: Mapping[str, np.ndarray]
    threads: int
    device: str
    level: float = 0.95

    def median(self, case: str) -> float:
        """Median time of one call, in milliseconds."""
        return float(np.median(self._of(case)))

    def ratio(self, peer: str) -> Estimate:
        """Median over rounds of (peer's time / our time), above 1 where we are faster, with its interval."""
        return median_interval(self._of(peer) / next(iter(self.ms.values())), self.level)

    def table(self) -> Table:
        ours, *peers = self.ms
        rows = [(ours, f"{self.median(ours):.3g}", "1")]
        rows += [(peer, f"{self.median(peer):.3g}", str(self.ratio(peer))) for peer in peers]
        return Table(("Case", "Median ms", f"Times ours ({_threads(self.threads)}, {self.device})"), rows)

    def _of(self, case: str) -> np.ndarray:
        if case not in self.ms:
            raise ValueError(f"case must be one of {list(self.ms)}, got {case!r}")
        return self.ms[case]


def race(
    cases: Mapping[str, Callable[[], Any]],
    rounds: int = 15,
    warmup: int = 2,
    threads: int = 1,
    min_ms: Number = 2.0,
    level: float = 0.95,
) -> Race:
    """Times the cases against each other: in each round every case once, in their order.

    A case is called often enough that one measurement lasts `min_ms`. When a case returns CUDA tensors all
    are timed by CUDA events. `rounds` must be 6 or more: fewer give no 95 % interval for a median.
    """
    if not cases:
        raise ValueError("cases must hold at least one function, got none")
    for name, value, least in (("rounds", rounds, 6), ("warmup", warmup, 1)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    with use_threads(threads):
        results = [fn() for fn in cases.values() for _ in range(warmup)]
        cuda = any(isinstance(x, torch.Tensor) and x.is_cuda for x in tree_leaves(results))
        del results
        clock = _cuda_ms if cuda else _cpu_ms
        calls = {name: max(1, math.ceil(min_ms / max(clock(fn, 1), 1e-6))) for name, fn in cases.items()}
        ms = {name: np.empty(rounds) for name in cases}
        for i in range(rounds):
            for name, fn in cases.items():
                ms[name][i] = clock(fn, calls[name])
    return Race(ms, threads, torch.cuda.get_device_name() if cuda else "cpu", level)


def _cpu_ms(fn: Callable[[], Any], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        fn()
    return (time.perf_counter() - start) * 1e3 / calls


def _cuda_ms(fn: Callable[[], Any], calls: int) -> float:
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(calls):
        fn()
    stop.record()
    torch.cuda.synchronize()
    return start.elapsed_time(stop) / calls


def median_interval(x: Any, level: float = 0.95) -> Estimate:
    """The median and an interval of order statistics: at least `level` for any distribution (binomial tails).

    Raises `ValueError` when `x` has too few values for this level (6 for 95 %).
    """
    x = np.sort(np.asarray(x, dtype=np.float64))
    # how many of n values lie below the median is Binomial(n, 1/2)
    k = int(stats.binom.ppf((1 - level) / 2, len(x), 0.5))
    if k < 1:
        raise ValueError(f"x has {len(x)} values, too few for an interval of its median at level {level}")
    return Estimate(float(np.median(x)), float(x[k - 1]), float(x[len(x) - k]))


def fit_exponent(
    sizes: Sequence[Number] | np.ndarray, times: Sequence[Number] | np.ndarray, level: float = 0.95
) -> Estimate:
    """Exponent p of time ∝ size^p: slope of log time over log size by least squares, with its t-interval.

    Each time is one size's median. Raises `ValueError` for fewer than three sizes or values that are not
    positive.
    """
    x, y = np.asarray(sizes, dtype=np.float64), np.asarray(times, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1 or len(np.unique(x)) < 3:
        raise ValueError(f"sizes and times must pair at least three sizes, got shapes {x.shape} and {y.shape}")
    if not ((x > 0) & (y > 0) & np.isfinite(x) & np.isfinite(y)).all():
        raise ValueError("sizes and times must be positive and finite")
    line = stats.linregress(np.log(x), np.log(y))
    half = float(stats.t.ppf(0.5 + level / 2, len(x) - 2) * line.stderr)
    return Estimate(float(line.slope), float(line.slope) - half, float(line.slope) + half)


def sgemm_rate(threads: int = 1, size: int = 1024, rounds: int = 8) -> float:
    """The machine's float32 matrix-product rate in FLOP/s (2 size³ a product): the best of `rounds`."""
    a, b = torch.randn(2, size, size, generator=torch.Generator().manual_seed(0))
    with use_threads(threads):
        a @ b
        return 2 * size**3 / (min(_cpu_ms(lambda: a @ b, 1) for _ in range(rounds)) * 1e-3)


class Report(Shown):
    """The measurements of one chapter: a table on the page, with the rows of `build/bench.json` in it."""

    def __init__(self, chapter: str) -> None:
        self.chapter = chapter
        self.rows: list[dict[str, Any]] = []

    def race(self, case: str, sizes: Mapping[str, int], result: Race) -> None:
        """Adds a row for each peer of `result`: chapter, case, sizes, threads, device, ours_ms, peer,
        peer_ms, ratio.

        The ratio is peer/ours; `ratio_interval` stands beside it.
        """
        ours, *peers = result.ms
        for peer in peers:
            ratio = result.ratio(peer)
            self.rows.append(
                {
                    "chapter": self.chapter,
                    "case": case,
                    "sizes": dict(sizes),
                    "threads": result.threads,
                    "device": result.device,
                    "ours_ms": _four(result.median(ours)),
                    "peer": peer,
                    "peer_ms": _four(result.median(peer)),
                    "ratio": _four(ratio.value),
                    "ratio_interval": [_four(ratio.low), _four(ratio.high)],
                }
            )

    def scaling(
        self,
        case: str,
        sizes: Sequence[int],
        ms: Sequence[Number] | np.ndarray,
        *,
        over: str = "T",
        threads: int = 1,
        device: str = "cpu",
        level: float = 0.95,
    ) -> Estimate:
        """Adds a row of times against the size named `over` and returns its fitted exponent."""
        fitted = fit_exponent(sizes, ms, level)
        self.rows.append(
            {
                "chapter": self.chapter,
                "case": case,
                "sizes": {over: list(sizes)},
                "threads": threads,
                "device": device,
                "ours_ms": [_four(x) for x in ms],
                "exponent": _four(fitted.value),
                "exponent_interval": [_four(fitted.low), _four(fitted.high)],
            }
        )
        return fitted

    def table(self) -> Table:
        rows = [_cells(row) for row in self.rows]
        return Table(("Case", "Ours", "Peer", "Result"), rows, mime={MIME: {"rows": self.rows}})


def _cells(row: Mapping[str, Any]) -> tuple[str | tuple[str, str], ...]:
    sizes = ", ".join(f"{name}={value}" for name, value in row["sizes"].items())
    case = (row["case"], f"{sizes}; {_threads(row['threads'])}, {row['device']}")
    if "exponent" in row:
        times = ", ".join(f"{x:.3g}" for x in row["ours_ms"])
        exponent = f"exponent {row['exponent']:.3g} {interval_text(row['exponent_interval'])}"
        return case, f"{times} ms", "", exponent
    peer = f"{row['peer']}: {row['peer_ms']:.3g} ms"
    return (
        case,
        f"{row['ours_ms']:.3g} ms",
        peer,
        f"× {row['ratio']:.3g} {interval_text(row['ratio_interval'])}",
    )


def _four(x: float) -> float:
    return float(f"{x:.4g}")


def _threads(n: int) -> str:
    return f"{n} thread" if n == 1 else f"{n} threads"
