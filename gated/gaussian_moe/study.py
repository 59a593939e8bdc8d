"""The simulation study behind both chapters: which data, which fits, and what is measured of each.

A *law* is a truth with the distribution of its inputs. A *regime* is a way to fit the data of a law: form, start and
measurements. Every data set has a generator of its own, seeded by (law, n, replicate), and so has every start. So
regimes of one law see the same data, a small study sees the first replicates of a large one, and neither the order nor
the grouping of the computations matters.

| regimes                               | data         | what is fitted                                               |
|---------------------------------------|--------------|--------------------------------------------------------------|
| `dense`, `sparse`                     | DENSE, SPARSE| the true form                                                |
| `labels`                              | DENSE        | the experts alone, each to its own points (the oracle)       |
| `over`                                | DENSE        | 3 experts of 3                                               |
| `kbar2`, `kbar3`, `kbar4`             | SPARSE       | 4 experts of which 2, 3, 4 are kept; the middle one twice    |
| `sparse_dense`                        | SPARSE       | 3 experts of 3: a model that is wrong                        |
| `top1`                                | TOP1         | 1 expert of 2: EM, and the boundary by a scan                |
| `fixed`, `ratio`                      | TEMPERATURE  | tau known; beta / tau estimated instead (tau = 1)            |
| `identity`, `tanh`, `relu`, `sigmoid` | TEMPERATURE  | tau estimated; that activation in truth and fit              |
| `tanh_fixed`                          | TEMPERATURE  | tau known, tanh                                              |

With surplus experts there are two starts, and the higher likelihood counts; and biases are bounded, so that no weight
goes to zero and the set of parameters is bounded, as the theory has it.

    found = unpack(sweep(["dense", "over"], [100, 1000], replicates=8))
    found["over"]["total_variation"]   # [sizes, replicates]
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from gated.gates._validation import check_choice
from gated.gaussian_moe import measures, truths
from gated.gaussian_moe.em import Fit, Polish, fit
from gated.gaussian_moe.measures import Data, Measured, Outcome
from gated.gaussian_moe.model import Gate, GaussianMoE
from gated.gaussian_moe.starts import apart, near, share
from gated.kernels.gmoe_em import Points

SCALE = 0.1  # noise of all starts, whatever n is
RAY = 0.3  # standard deviation of log c, by which a start multiplies (beta_0, beta_1, tau)
SPLIT = 0.5  # standard deviations from the middle, in the second start of fits with surplus experts
MAX_SLOPE = 200.0  # bound on |beta_1|, of all regimes
MAX_BIAS = 12.0  # bound on |beta_0| with surplus experts; the largest of a truth is 8
SHARD = 400_000  # points of a shard
VERSION = 4  # of what `shard` means, for those who keep its results

FULL = {"sizes": [100, 215, 464, 1000, 2154, 4642, 10_000, 21_544, 46_416, 100_000], "replicates": 40}
LIVE = {"sizes": [464, 1000, 2154], "replicates": 16}
TOPK_THEORY = ["dense", "sparse", "labels", "over", "kbar2", "kbar3", "kbar4", "sparse_dense", "top1"]
TEMPERATURE_THEORY = ["fixed", "ratio", "identity", "tanh", "tanh_fixed", "relu", "sigmoid"]

Values = dict[str, list[float]]
Run = Callable[[Callable[..., Values], Mapping[str, Mapping[str, Any]]], Mapping[str, Values]]


class Law(NamedTuple):
    """A truth, and the interval on which its inputs are uniform."""

    truth: GaussianMoE
    interval: tuple[float, float]


LAWS = {
    "dense": Law(truths.DENSE, truths.UNIT),
    "sparse": Law(truths.SPARSE, truths.SYMMETRIC),
    "top1": Law(truths.TOP1, truths.UNIT),
    "identity": Law(truths.TEMPERATURE, truths.SYMMETRIC),
    "tanh": Law(truths.temperature_truth("tanh"), truths.SYMMETRIC),
    "relu": Law(truths.temperature_truth("relu"), truths.SYMMETRIC),
    "sigmoid": Law(truths.temperature_truth("sigmoid"), truths.SYMMETRIC),
}


def data(law: str, n: int, replicate: int) -> Data:
    """The data set of a law, a size and a replicate: always the same one."""
    truth, interval = LAWS[law]
    generator = _generator(law, n, replicate, "data")
    x = truths.uniform(interval, n, generator=generator)
    expert = torch.multinomial(truth.log_gate(x).exp(), 1, generator=generator)
    noise = torch.randn(n, 1, dtype=x.dtype, generator=generator)
    y = truth.means(x).gather(1, expert) + truth.variance.sqrt()[expert] * noise
    return Data(x, y[:, 0], expert[:, 0])


def _generator(*name: str | int) -> torch.Generator:
    digest = hashlib.blake2b("/".join(map(str, name)).encode(), digest_size=4).digest()  # a generator takes 32 bits
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


# Starts: one model for each attempt -----------------------------------------------------------------------------------

Start = Callable[[GaussianMoE, Gate, torch.Generator], list[GaussianMoE]]


def _near(truth: GaussianMoE, gate: Gate, generator: torch.Generator) -> list[GaussianMoE]:
    return [near(truth, 1, SCALE, generator).with_gate(gate)]


def _along_the_ray(truth: GaussianMoE, gate: Gate, generator: torch.Generator) -> list[GaussianMoE]:
    return [near(truth, 1, SCALE, generator, ray=RAY).with_gate(gate)]


def _by_tau(truth: GaussianMoE, gate: Gate, generator: torch.Generator) -> list[GaussianMoE]:
    return [measures.by_tau(model) for model in _along_the_ray(truth, gate, generator)]


def _one_twice(truth: GaussianMoE, gate: Gate, generator: torch.Generator) -> list[GaussianMoE]:
    """A true expert at random has two fitted ones: once both are near it, once one to either side."""
    extra = torch.randint(truth.num_experts, (1,), generator=generator)
    cell = torch.cat([torch.arange(truth.num_experts), extra]).sort().values[None]
    return _together_and_apart(truth, cell, gate, generator)


def _last_twice(truth: GaussianMoE, gate: Gate, generator: torch.Generator) -> list[GaussianMoE]:
    """In `SPARSE` the last expert is the middle one, which every input keeps."""
    cell = torch.tensor([[*range(truth.num_experts), truth.num_experts - 1]])
    return _together_and_apart(truth, cell, gate, generator)


def _together_and_apart(truth: GaussianMoE, cell: Tensor, gate: Gate, generator: torch.Generator) -> list[GaussianMoE]:
    return [share(truth, cell, SCALE, generator, gate=gate), apart(truth, cell, SPLIT, SCALE, generator, gate=gate)]


@dataclass(frozen=True)
class Regime:
    """How the data of a law are fitted and what is measured; see `REGIMES`."""

    law: str
    measure: Callable[..., Measured]  # of an `Outcome`
    start: Start = _near
    gate: Gate | None = None  # the fitted form; None is the truth's
    free_tau: bool = False  # whether tau is estimated
    polish: Polish | None = None
    max_iterations: int = 2000
    max_bias: float = math.inf


SURPLUS: dict[str, Any] = {"polish": "lbfgs", "max_iterations": 1000, "max_bias": MAX_BIAS}

REGIMES: dict[str, Regime] = {
    "dense": Regime("dense", measures.exact),
    "sparse": Regime("sparse", measures.exact),
    "labels": Regime("dense", measures.oracle),
    "over": Regime("dense", measures.double, _one_twice, **SURPLUS),
    "kbar2": Regime("sparse", measures.over, _last_twice, Gate(2, "slope"), **SURPLUS),
    "kbar3": Regime("sparse", measures.over, _last_twice, Gate(3, "slope"), **SURPLUS),
    "kbar4": Regime("sparse", measures.over, _last_twice, Gate(4, "slope"), **SURPLUS),
    "sparse_dense": Regime("sparse", measures.density, gate=Gate(), polish="lbfgs"),
    "top1": Regime("top1", measures.top1),
    "fixed": Regime("identity", measures.known_temperature),
    "ratio": Regime("identity", measures.ratios, _by_tau),
    "identity": Regime("identity", measures.free_temperature, _along_the_ray, free_tau=True),
    "tanh": Regime("tanh", measures.free_temperature, _along_the_ray, free_tau=True),
    "tanh_fixed": Regime("tanh", measures.known_temperature),
    "relu": Regime("relu", measures.free_temperature, _along_the_ray, free_tau=True),
    "sigmoid": Regime("sigmoid", measures.free_temperature, _along_the_ray, free_tau=True),
}


# One shard ------------------------------------------------------------------------------------------------------------


def shard(regime: str, n: int, first: int, last: int) -> Values:
    """Replicates first .. last - 1 of a regime at n points: each measurement, one number a replicate.

    What they are is said in `gated.gaussian_moe.measures`.

    Raises:
        ValueError: a regime that is not in `REGIMES`, n below 50, an empty range of replicates.
    """
    check_choice("regime", regime, REGIMES)
    if n < 50 or not 0 <= first < last:
        raise ValueError(f"n must be at least 50 and 0 <= first < last; got n={n}, first={first}, last={last}")
    this = REGIMES[regime]
    drawn = [data(this.law, n, replicate) for replicate in range(first, last)]
    if this.measure is measures.oracle:  # nothing is fitted
        measured = measures.oracle(LAWS[this.law].truth, drawn)
    else:
        # One fit at a time: a few operations (powers, the steps of a quadrature) round by the company they are in.
        outcome = _outcome(this, n, range(first, last), drawn)
        each = [this.measure(outcome.only(i)) for i in range(last - first)]
        measured = {name: torch.cat([one[name] for one in each]) for name in each[0]}
    return {name: values.double().tolist() for name, values in measured.items()}


def _outcome(this: Regime, n: int, replicates: Iterable[int], drawn: list[Data]) -> Outcome:
    """The best fit over the starts."""
    truth, interval = LAWS[this.law]
    offsets = torch.arange(len(drawn) + 1) * n
    points = Points.pack(torch.cat([d.x for d in drawn]), torch.cat([d.y for d in drawn]), offsets)
    gate = this.gate or truth.gate
    starts = [this.start(truth, gate, _generator(this.law, n, r, "start")) for r in replicates]
    tries = []
    for models in zip(*starts, strict=True):
        start = _stack(models)
        found = fit(
            points,
            start,
            free_tau=this.free_tau,
            max_slope=MAX_SLOPE,
            max_bias=this.max_bias,
            polish=this.polish,
            max_iterations=this.max_iterations,
        )
        tries.append((found, start))
    best = torch.stack([found.log_likelihood for found, _ in tries]).argmax(0).tolist()

    def pick(name: str) -> Tensor:
        return torch.stack([getattr(tries[b][0], name)[i] for i, b in enumerate(best)])

    chosen = Fit(
        model=_stack([tries[b][0].model[i : i + 1] for i, b in enumerate(best)]),
        log_likelihood=pick("log_likelihood"),
        iterations=pick("iterations"),
        converged=pick("converged"),
        dormant=pick("dormant"),
        at_bound=pick("at_bound"),
        history=None,
    )
    start = _stack([tries[b][1][i : i + 1] for i, b in enumerate(best)])
    at_truth = torch.stack([truth.log_density(d.x, d.y).sum() for d in drawn])
    ratio = 2 * (chosen.log_likelihood - at_truth)
    return Outcome(truth, interval, chosen, start, ratio, drawn, MAX_SLOPE, this.max_bias)


def _stack(models: Sequence[GaussianMoE]) -> GaussianMoE:
    parts = [model.tensors() for model in models]
    return GaussianMoE(**{name: torch.cat([part[name] for part in parts]) for name in parts[0]}, gate=models[0].gate)


# The whole study ------------------------------------------------------------------------------------------------------


def jobs(regimes: Iterable[str], sizes: Sequence[int], replicates: int) -> dict[str, dict[str, Any]]:
    """The shards of a study by name, each the arguments of `shard`, the longest first."""
    found: list[tuple[float, str, int, int, int]] = []
    for regime in regimes:
        cost = 30 if REGIMES[regime].polish else 1  # redundant experts take that many times more passes
        for n in sizes:
            step = max(1, SHARD // n)
            for first in range(0, replicates, step):
                last = min(first + step, replicates)
                found.append((cost * n * (last - first), regime, n, first, last))
    found.sort(key=lambda job: -job[0])
    return {
        f"{regime}-{n}-{first}-{last}": {"regime": regime, "n": n, "first": first, "last": last}
        for _, regime, n, first, last in found
    }


def _loop(function: Callable[..., Values], jobs: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Values]:
    return {name: function(**arguments) for name, arguments in jobs.items()}


def sweep(
    regimes: Sequence[str], sizes: Sequence[int], replicates: int, *, run: Run = _loop, digits: int = 4
) -> dict[str, dict[str, list[str]]]:
    """A study: `{regime: {measurement: one line of numbers for each size}}`, to be kept as text; see `unpack`.

    Args:
        regimes: of `REGIMES`. sizes: numbers of points. replicates: data sets at each.
        run: `run(function, jobs)` gives `{name: function(**arguments)}` for `jobs` = `{name: arguments}`, in any order
            and wherever it likes. By default a loop; with `gated.lab.shards` and its folder and cluster
            `functools.partial(shards.run, folder=folder, client=client, version=study.VERSION)`.
        digits: significant digits that are kept.

    Raises:
        ValueError: an unknown or repeated regime, a repeated size or one below 50, replicates or digits below 1.
    """
    if not regimes or len(set(regimes)) < len(regimes) or not set(regimes) <= set(REGIMES):
        raise ValueError(f"regimes must be of {tuple(REGIMES)}, at least one and none twice; got {list(regimes)}")
    if not sizes or len(set(sizes)) < len(sizes) or min(sizes) < 50:
        raise ValueError(f"sizes must be at least 50, at least one and none twice; got {list(sizes)}")
    if replicates < 1 or digits < 1:
        raise ValueError(f"replicates and digits must be at least 1; got {replicates} and {digits}")
    work = jobs(regimes, sizes, replicates)
    results = run(shard, work)
    found: dict[str, dict[str, list[str]]] = {}
    for regime in regimes:
        rows = []
        for n in sizes:
            mine = [name for name, job in work.items() if (job["regime"], job["n"]) == (regime, n)]
            mine.sort(key=lambda name: work[name]["first"])
            rows.append({key: [x for name in mine for x in results[name][key]] for key in results[mine[0]]})
        found[regime] = {key: [" ".join(f"{x:.{digits}g}" for x in row[key]) for row in rows] for key in rows[0]}
    return found


def unpack(found: Mapping[str, Mapping[str, Sequence[str]]]) -> dict[str, dict[str, Float[Tensor, "sizes replicates"]]]:
    """What `sweep` gives, as numbers: `{regime: {measurement: [sizes, replicates]}}`."""
    return {
        regime: {
            key: torch.tensor([[float(x) for x in line.split()] for line in lines], dtype=torch.float64)
            for key, lines in measured.items()
        }
        for regime, measured in found.items()
    }
