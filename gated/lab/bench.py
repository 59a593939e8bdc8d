"""Side-by-side timing: rounds A B A B in one run, medians, and ratios with intervals.

A shared or throttled machine slows all cases of a round alike, so the ratios within rounds hold where times
do not. A cell of a notebook that ends with the report shows its table.

Example:
    >>> from gated.lab.bench import Report, race
    >>> x, report = torch.randn(100, 100), Report("toy")
    >>> result = race({"one product": lambda: x @ x, "two": lambda: x @ x @ x}, rounds=6, threads=1)
    >>> report.race("product", {"n": 100}, result)
    >>> [row["peer"] for row in report.rows]
    ['two']
    >>> print(report.scaling("product", [100, 200, 400], [1.0, 8.0, 64.0]))  # milliseconds: n^3
    3 [3, 3]
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import stats
from torch.utils._pytree import tree_leaves

from gated.lab.claims import Number
from gated.lab.compare import agreement
from gated.lab.style import Shown, Table, interval_text

MIME = "application/vnd.gated.bench+json"

ALIKE = 1.2  # two calls that differ by less take the same time: warming up ends
WARM_CALLS, WARM_MS = 6, 1000.0  # or it ends here
WIDE = 1.6  # high / low of a ratio's interval that is too wide to be believed
TOO_FAST = 2.1  # as many times as fast on two threads: something else was in the way of one
REPEAT_S = 30.0  # what a report spends at most on races that are run again
NARROW = 0.3  # an exponent whose interval is wider says nothing


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
    """Times of each case: `ms` [rounds], milliseconds a call. The first case is ours, the others peers.

    `apart` has how far results of peers were from ours, `uncompared` why those of others were not compared, and
    `unsteady` the cases whose times are not to be believed.
    """

    ms: Mapping[str, np.ndarray]
    threads: int
    device: str
    level: float = 0.95
    apart: Mapping[str, float] = field(default_factory=dict)
    uncompared: Mapping[str, str] = field(default_factory=dict)
    unsteady: frozenset[str] = frozenset()

    def median(self, case: str) -> float:
        """Median time of one call, in milliseconds."""
        return float(np.median(self._of(case)))

    def ratio(self, peer: str) -> Estimate:
        """Median over rounds of (peer's time / our time), above 1 where we are faster, with its interval."""
        return median_interval(self._of(peer) / next(iter(self.ms.values())), self.level)

    def steady(self, peer: str) -> bool:
        """Whether the ratio is to be believed: a narrow interval, and both cases not in `unsteady`."""
        ratio = self.ratio(peer)
        return ratio.high <= WIDE * ratio.low and not {peer, next(iter(self.ms))} & self.unsteady

    def among(self, *cases: str) -> Race:
        """The same times of these cases alone, the first of them in the place of ours."""
        ours, *peers = cases
        compared, apart, why = {*self.apart, next(iter(self.ms))}, {}, {}
        for peer in peers:  # each was compared with the first of all
            if {ours, peer} <= compared:
                apart[peer] = self.apart.get(ours, 0.0) + self.apart.get(peer, 0.0)
            elif reason := self.uncompared.get(peer) or self.uncompared.get(ours):
                why[peer] = reason
        return replace(self, ms={case: self._of(case) for case in cases}, apart=apart, uncompared=why)

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
    uncompared: Mapping[str, str] | None = None,
    tolerance: Number | None = None,
) -> Race:
    """Times the cases against each other: in each round every case once, in their order.

    A case is called `warmup` times and then on until two calls take the same time and compile nothing, and in a round
    so often that one measurement lasts `min_ms`. When a case returns CUDA tensors all are timed by CUDA events.
    `rounds` must be 6 or more: fewer give no 95 % interval for a median.

    Unless `uncompared` is None, what the first call of each case returns is compared with ours. Cases named there are
    left out, each for the reason given.

    Raises:
        AssertionError: a result is further from ours than `tolerance`, relative to the largest number in it; if None,
            half of the digits that the less precise of the two has must agree.
    """
    if not cases:
        raise ValueError("cases must hold at least one function, got none")
    for name, value, least in (("rounds", rounds, 6), ("warmup", warmup, 1)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if unknown := [name for name in uncompared or {} if name not in list(cases)[1:]]:
        raise ValueError(f"uncompared must name peers among the cases, got {unknown}")
    with use_threads(threads):
        first, results = {}, {}
        for name, fn in cases.items():
            start = time.perf_counter()
            results[name] = fn()
            first[name] = (time.perf_counter() - start) * 1e3
        apart = {} if uncompared is None else agreement(results, uncompared, tolerance)
        cuda = any(isinstance(x, torch.Tensor) and x.is_cuda for x in tree_leaves(results))
        del results
        clock = _cuda_ms if cuda else _cpu_ms
        calls = {
            name: max(1, math.ceil(min_ms / max(_warm(fn, clock, first[name], warmup), 1e-6)))
            for name, fn in cases.items()
        }
        ms = {name: np.empty(rounds) for name in cases}
        for i in range(rounds):
            for name, fn in cases.items():
                ms[name][i] = clock(fn, calls[name])
    device = torch.cuda.get_device_name() if cuda else "cpu"
    return Race(ms, threads, device, level, apart, dict(uncompared or {}))


def _warm(fn: Callable[[], Any], clock: Callable[[Callable[[], Any], int], float], before: float, least: int) -> float:
    """Milliseconds of the last call of a case that was called once, in `before`."""
    ms, spent = before, 0.0
    for called in range(1, WARM_CALLS):
        try:
            with _compiling_nothing():
                ms = clock(fn, 1)
        except RuntimeError:  # something was to be compiled; whatever else it was comes again
            ms, before = clock(fn, 1), math.inf
        spent += ms
        alike = max(ms, before) <= ALIKE * min(ms, before)
        if called >= least and (alike or spent > WARM_MS):
            break
        before = ms
    return ms


def _compiling_nothing() -> AbstractContextManager[Any]:
    # nobody has compiled anything where the compiler was not even imported, which takes seconds
    return torch.compiler.set_stance("fail_on_recompile") if "torch._dynamo" in sys.modules else nullcontext()


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

    def __init__(self, chapter: str, tries: int = 1) -> None:
        self.chapter = chapter
        self.rows: list[dict[str, Any]] = []
        self._tries, self._cold, self._repeated = tries, tries > 1, 0.0

    def run(
        self,
        cases: Mapping[str, Callable[[], Any]],
        threads: Sequence[int] = (1,),
        *,
        within: Callable[[int], AbstractContextManager[Any]] = use_threads,
        uncompared: Mapping[str, str] | None = None,
        tolerance: Number | None = None,
        **options: Any,
    ) -> list[Race]:
        """A race for each number of threads, `within` a context that sets it; results are compared once.

        With more than one try, the first race of a report is run once for nothing, and all races again where one of
        them has an interval that is too wide, or a case is faster on two threads than two can make it. What stays so is
        marked in the rows.
        """
        compare: dict[str, Any] = {"uncompared": uncompared, "tolerance": tolerance}
        apart: Mapping[str, float] = {}
        best: tuple[int, list[Race]] | None = None
        if self._cold:
            apart, compare, self._cold = race(cases, **options, **compare).apart, {}, False
        for _ in range(self._tries):
            start, found = time.perf_counter(), []
            for n in threads:
                with within(n):
                    result = race(cases, threads=n, **options, **compare)
                if compare:  # once: those that learn take ways of their own
                    apart, compare = result.apart, {}
                found.append(replace(result, apart=apart, uncompared=dict(uncompared or {})))
            found = _marked(found)
            doubts = sum(not result.steady(peer) for result in found for peer in list(result.ms)[1:])
            best = (doubts, found) if best is None or doubts < best[0] else best
            if not doubts or self._repeated > REPEAT_S:
                break
            self._repeated += time.perf_counter() - start
        assert best is not None
        return best[1]

    def race(self, case: str, sizes: Mapping[str, Number], result: Race) -> None:
        """Adds a row for each peer of `result`: chapter, case, sizes, threads, device, ours, ours_ms, peer,
        peer_ms, ratio.

        The ratio is peer/ours; `ratio_interval` stands beside it. `apart` is how far the two results differ, or
        `uncompared` why they were not compared, and `unsteady` marks what is not to be believed.
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
                    "ours": ours,
                    "ours_ms": _four(result.median(ours)),
                    "peer": peer,
                    "peer_ms": _four(result.median(peer)),
                    "ratio": _four(ratio.value),
                    "ratio_interval": [_four(ratio.low), _four(ratio.high)],
                }
                | ({"apart": float(f"{result.apart[peer]:.1e}")} if peer in result.apart else {})
                | ({"uncompared": result.uncompared[peer]} if peer in result.uncompared else {})
                | ({} if result.steady(peer) else {"unsteady": True})
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
        settled: bool = False,
    ) -> Estimate:
        """Adds a row of times against the size named `over` and returns its fitted exponent.

        If `settled`, only the larger half of the sizes is fitted, at least three of them, since what a call costs
        whatever the size bends the curve below; and where the interval is not narrow the row has times alone.
        """
        largest = np.argsort(sizes)[-max(3, (len(sizes) + 1) // 2) :] if settled else np.arange(len(sizes))
        fitted = fit_exponent(np.asarray(sizes)[largest], np.asarray(ms)[largest], level)
        self.rows.append(
            {
                "chapter": self.chapter,
                "case": case,
                "sizes": {over: list(sizes)},
                "threads": threads,
                "device": device,
                "ours_ms": [_four(x) for x in ms],
            }
        )
        if not settled or fitted.high - fitted.low < NARROW:
            self.rows[-1] |= {
                "exponent": _four(fitted.value),
                "exponent_interval": [_four(fitted.low), _four(fitted.high)],
            }
        return fitted

    def table(self) -> Table:
        rows = [_cells(row) for row in self.rows]
        return Table(("Case", "Ours", "Peer", "Result"), rows, mime={MIME: {"rows": self.rows}})


def _cells(row: Mapping[str, Any]) -> tuple[str | tuple[str, str], ...]:
    sizes = ", ".join(f"{name}={value}" for name, value in row["sizes"].items())
    case = (row["case"], f"{sizes}; {_threads(row['threads'])}, {row['device']}")
    if "peer" not in row:
        times = ", ".join(f"{x:.3g}" for x in row["ours_ms"])
        exponent = (
            f"exponent {row['exponent']:.3g} {interval_text(row['exponent_interval'])}" if "exponent" in row else ""
        )
        return case, f"{times} ms", "", exponent
    ratio = f"× {row['ratio']:.3g} {interval_text(row['ratio_interval'])}"
    return case, f"{row['ours_ms']:.3g} ms", f"{row['peer']}: {row['peer_ms']:.3g} ms", ratio


def _marked(races: list[Race]) -> list[Race]:
    """Cases that two threads make faster than they can are not to be believed on any number of threads."""
    alone = {race.threads: race for race in races}.get(1)
    fast = {
        case
        for race in races
        for case in race.ms
        if alone is not None and race.threads == 2 and alone.median(case) > TOO_FAST * race.median(case)
    }
    return [replace(race, unsteady=frozenset(fast)) for race in races]


def _four(x: Number) -> float:
    return float(f"{x:.4g}")


def _threads(n: int) -> str:
    return f"{n} thread" if n == 1 else f"{n} threads"
