"""What a population's activity was described with before deep networks: smoothing, factor analysis, GPFA.

Features are smoothed counts, or factors of them (`Gpfa`, `FactorAnalysis`), [trials, bins, features]; a Poisson
regression to all neurons, the same for all, makes rates of them. `baseline_rates` chooses each one's knobs on
validation trials; so does `autoregression`, which predicts what follows.

Example:
    >>> from gated.lab.population import fit_readout, smooth
    >>> counts = torch.poisson(torch.full((8, 20, 3), 0.5), torch.Generator().manual_seed(0))
    >>> features = smooth(counts, sd=2.0)
    >>> readout = fit_readout(features, counts, penalty=0.1)
    >>> readout(features).shape
    torch.Size([8, 20, 3])
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import minimize_scalar
from torch import Tensor

from gated.lab.spikes import Population, SpikeParts
from gated.langevinflow.metrics import bits_per_spike

Features = Float[Tensor, "trials bins features"]


def smooth(counts: Float[Tensor, "trials bins neurons"], sd: float | int) -> Features:
    """A Gaussian of `sd` bins over time. At a trial's ends the weights that are left are scaled to sum 1."""
    if not sd > 0:
        raise ValueError(f"sd must be a positive number of bins, got {sd}")
    t = torch.arange(counts.shape[1], dtype=counts.dtype)
    weight = (-((t[:, None] - t) ** 2) / (2 * sd**2)).softmax(1)
    return torch.einsum("st,btn->bsn", weight, counts)


class Readout(NamedTuple):
    """log rate = features @ weight + bias."""

    weight: Float[Tensor, "features neurons"]
    bias: Float[Tensor, " neurons"]

    def __call__(self, features: Features) -> Float[Tensor, "trials bins neurons"]:
        """Expected counts a bin; log rates are kept within -12..4."""
        return (features @ self.weight + self.bias).clamp(-12, 4).exp()


def fit_readout(
    features: Features, counts: Float[Tensor, "trials bins neurons"], penalty: float | int, rounds: int = 25
) -> Readout:
    """Poisson regression with log link for all neurons at once: Newton's steps on mean(e^r - y r) + penalty |w|²/2.

    Features are standardised, and the penalty is on standardised weights; the bias has none. A step that would raise
    the loss is halved.

    Raises:
        ValueError: a penalty that is not positive (the minimum could lie at infinity), shapes that do not fit.
    """
    if not penalty > 0:
        raise ValueError(f"penalty must be positive, got {penalty}")
    if features.shape[:2] != counts.shape[:2]:
        raise ValueError(f"features and counts must have the same trials and bins, got {tuple(features.shape)} and "
                         f"{tuple(counts.shape)}")  # fmt: skip
    x, y = features.flatten(0, 1).double(), counts.flatten(0, 1).double()
    mean, sd = x.mean(0), x.std(0).clamp(min=1e-9)
    x = torch.cat([(x - mean) / sd, x.new_ones(len(x), 1)], 1)
    short = x.float()
    ridge = torch.cat([x.new_full((x.shape[1] - 1,), penalty), x.new_full((1,), 1e-9)])
    weight = x.new_zeros(x.shape[1], y.shape[1])
    weight[-1] = y.mean(0).clamp(min=1e-6).log()

    def loss(w: Tensor) -> Tensor:
        r = x @ w
        return (r.exp() - y * r).mean(0) + (ridge[:, None] * w**2).sum(0) / 2

    for _ in range(rounds):
        rate = (x @ weight).exp()
        slope = x.T @ (rate - y) / len(x) + ridge[:, None] * weight
        # steps need no exact curvature; the slope, which decides where they end, is exact
        curve = torch.einsum("tn,tf,tg->nfg", rate.float(), short, short).double() / len(x) + torch.diag(ridge)
        move = torch.linalg.solve(curve, slope.T).T
        before, size = loss(weight), x.new_ones(y.shape[1])
        for _ in range(12):
            worse = loss(weight - size * move) > before + 1e-12
            if not worse.any():
                break
            size = torch.where(worse, size / 2, size)
        weight = weight - torch.where(worse, 0.0, size) * move
        if float(slope.abs().max()) < 1e-9:
            break
    scaled = weight[:-1] / sd[:, None]
    return Readout(scaled.float(), (weight[-1] - mean @ scaled).float())


# Gaussian-process factor analysis -----------------------------------------------------------------------------------


class Gpfa:
    """y_t = C x_t + d + noise of variance R (diagonal); each factor a Gaussian process with kernel
    (1 - e) exp(-(s - t)² / (2 tau²)) + e 1[s = t], e = .001.

    Learned by expectation maximisation: C, d and R in closed form, each tau by a line search. All trials have one
    length, so they share the posterior's covariance. With tau near 0 this is factor analysis.

    Args:
        factors: number of factors.
        rounds: of the expectation maximisation.
        tau: first time scale, in bins.

    Source: Yu et al., "Gaussian-process factor analysis", Journal of Neurophysiology 2009.
    """

    NOISE = 1e-3

    def __init__(self, factors: int, rounds: int = 30, tau: float | int = 5.0) -> None:
        if factors < 1 or rounds < 1 or not tau > 0:
            raise ValueError(f"factors, rounds and tau must be positive, got {factors}, {rounds} and {tau}")
        self.factors, self.rounds, self.tau = factors, rounds, np.full(factors, float(tau))
        self.history: list[float] = []  # log likelihood a trial, before each round

    def kernel(self, bins: int, tau: float) -> np.ndarray:
        """[bins, bins]."""
        t = np.arange(bins)
        return (1 - self.NOISE) * np.exp(-((t[:, None] - t) ** 2) / (2 * tau**2)) + self.NOISE * np.eye(bins)

    def fit(self, y: np.ndarray) -> Gpfa:
        """`y` [trials, bins, channels], best square roots of counts."""
        from sklearn.decomposition import FactorAnalysis

        y = np.asarray(y, float)
        first = FactorAnalysis(self.factors).fit(y.reshape(-1, y.shape[-1]))
        self.loading, self.offset, self.noise = first.components_.T, first.mean_, first.noise_variance_
        for _ in range(self.rounds):
            mean, covariance, likelihood = self._posterior(y)
            self.history.append(likelihood)
            self._learn(y, mean, covariance)
        return self

    def means(self, y: np.ndarray, later: int = 0) -> np.ndarray:
        """Posterior means of the factors [trials, bins + later, factors]: the processes go on for `later` bins."""
        mean = self._posterior(np.asarray(y, float))[0]
        bins, total = mean.shape[1], mean.shape[1] + later
        after = np.empty((len(mean), later, self.factors))
        for i, tau in enumerate(self.tau):
            kernel = self.kernel(total, tau)
            after[..., i] = mean[..., i] @ np.linalg.solve(kernel[:bins, :bins], kernel[:bins, bins:])
        return np.concatenate([mean, after], 1)

    def _posterior(self, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """Means [trials, bins, factors], covariance [factors, bins, factors, bins], log likelihood a trial."""
        trials, bins, channels = y.shape
        p, centred = self.factors, y - self.offset
        blocks = np.zeros((p, bins, p, bins))
        for i in range(p):
            blocks[i, :, i] = self.kernel(bins, self.tau[i])
        prior = blocks.reshape(p * bins, -1)
        load = self.loading / self.noise[:, None]
        gain = np.kron(self.loading.T @ load, np.eye(bins))  # the data's precision, the same at each bin
        inner = np.eye(p * bins) + prior @ gain
        covariance = np.linalg.solve(inner, prior)
        score = (centred @ load).transpose(0, 2, 1).reshape(trials, -1)
        mean = score @ covariance
        quadratic = (centred**2 / self.noise).sum() - (score * mean).sum()
        logdet = np.linalg.slogdet(inner)[1] + bins * np.log(self.noise).sum()
        likelihood = -0.5 * (quadratic / trials + logdet + bins * channels * np.log(2 * np.pi))
        shape = (trials, p, bins)
        return mean.reshape(shape).transpose(0, 2, 1), covariance.reshape(p, bins, p, bins), float(likelihood)

    def _learn(self, y: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> None:
        trials, bins, _ = y.shape
        ones = np.concatenate([mean, np.ones((trials, bins, 1))], -1)
        second = np.einsum("btf,btg->fg", ones, ones)
        second[:-1, :-1] += trials * np.einsum("itjt->ij", covariance)
        cross = np.einsum("btn,btf->nf", y, ones)
        both = np.linalg.solve(second, cross.T).T
        self.loading, self.offset = both[:, :-1], both[:, -1]
        self.noise = np.maximum(((y**2).sum((0, 1)) - (both * cross).sum(1)) / (trials * bins), 1e-6)
        for i in range(self.factors):
            moment = mean[..., i].T @ mean[..., i] / trials + covariance[i, :, i]

            def cost(log_tau: float, moment: np.ndarray = moment) -> float:
                kernel = self.kernel(bins, np.exp(log_tau))
                return np.linalg.slogdet(kernel)[1] + np.trace(np.linalg.solve(kernel, moment))

            now = np.log(self.tau[i])
            found = minimize_scalar(cost, bounds=(now - 0.7, now + 0.7), method="bounded", options={"xatol": 0.02})
            if found.fun < cost(now):  # a bounded search may miss where it stands
                self.tau[i] = np.exp(found.x)


# All of them, with knobs from validation ----------------------------------------------------------------------------

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
SMOOTHING = (1.5, 3.0, 5.0, 8.0)
FACTORS = (3, 6, 10)
LAGS, SCORES = 12, 8


class Baseline(NamedTuple):
    """Rates of the test trials and of the training trials [trials, bins, neurons], and the knobs that were chosen."""

    test: Tensor
    train: Tensor
    knobs: dict[str, float]


def features_of(method: str, parts: SpikeParts, sd: float | int, factors: int) -> list[Tensor]:
    """Features [trials, bins, features] of the three parts, learned from the training trials' held-in counts.

    GPFA carries them on after the observed bins; the others stay as they were in the last of these.
    """
    counts = [part.spikes[:, : part.observed, : part.heldin] for part in parts]
    later = parts.train.spikes.shape[1] - parts.train.observed
    if method == "GPFA":
        gpfa = Gpfa(factors).fit(counts[0].sqrt().numpy())
        return [torch.tensor(gpfa.means(x.sqrt().numpy(), later)).float() for x in counts]
    if method == "smoothing":
        found = [smooth(x, sd) for x in counts]
    elif method == "factor analysis":
        from sklearn.decomposition import FactorAnalysis

        roots = [smooth(x.sqrt(), sd) for x in counts]
        model = FactorAnalysis(factors, random_state=0).fit(roots[0].flatten(0, 1).numpy())
        found = [torch.tensor(model.transform(x.flatten(0, 1).numpy())).float().view(*x.shape[:2], -1) for x in roots]
    else:
        raise ValueError(f"method must be 'smoothing', 'factor analysis' or 'GPFA', got {method!r}")
    return [torch.cat([x, x[:, -1:].expand(-1, later, -1)], 1) for x in found]


def baseline_rates(method: str, parts: SpikeParts) -> Baseline:
    """Fits a method and its readout, which learns from the observed bins; what follows takes the same readout.

    Knobs are chosen by the held-out neurons' bits per spike on the validation trials: smoothing's width; factor
    analysis' width and number of factors; GPFA's number of factors; and every readout's penalty.
    """
    seen, held = parts.valid.observed, parts.valid.heldin
    grid: Iterable[tuple[float, int]] = {
        "smoothing": [(sd, 0) for sd in SMOOTHING],
        "factor analysis": itertools.product(SMOOTHING[:3], FACTORS),
    }.get(method, [(0.0, k) for k in FACTORS])
    best: tuple[float, dict[str, float], list[Tensor], Readout] | None = None
    for sd, factors in grid:
        x = features_of(method, parts, sd, factors)
        for penalty in PENALTIES:
            readout = fit_readout(x[0][:, :seen], parts.train.spikes[:, :seen], penalty, rounds=5)
            score = bits_per_spike(readout(x[1])[:, :seen, held:], parts.valid.spikes[:, :seen, held:])
            if best is None or score > best[0]:
                best = score, {"sd": sd, "factors": factors, "penalty": penalty}, x, readout
    assert best is not None
    _, knobs, x, readout = best
    return Baseline(readout(x[2]), readout(x[0]), knobs)


def autoregression(parts: SpikeParts) -> Baseline:
    """Rates of the bins after the observed ones: Poisson regression of each later bin on the last `LAGS` bins.

    Held-in counts come as `SCORES` scores of a factor analysis. There is one readout for each distance in time, trained
    at every fifth bin, so at ends like the one it is asked about; one penalty for all, chosen on validation trials.
    """
    seen, later = parts.train.observed, parts.train.spikes.shape[1] - parts.train.observed
    scores = features_of("factor analysis", parts, 0.1, SCORES)
    past = [x[:, :seen].unfold(1, LAGS, 1).flatten(2) for x in scores]  # at bin LAGS - 1 and on
    ends = torch.arange(seen - 1, LAGS - 2, -5)

    def rates(penalty: float, which: Sequence[int]) -> list[Tensor]:
        found: list[list[Tensor]] = [[] for _ in which]
        for distance in range(1, later + 1):
            target = parts.train.spikes[:, ends + distance]
            readout = fit_readout(past[0][:, ends - LAGS + 1], target, penalty, rounds=4)
            for out, part in zip(found, which, strict=True):
                out.append(readout(past[part][:, -1:]))
        return [torch.cat(out, 1) for out in found]

    tried = {p: bits_per_spike(rates(p, [1])[0], parts.valid.spikes[:, seen:]) for p in (0.03, 0.1, 0.3, 1.0)}
    penalty = max(tried, key=tried.__getitem__)
    test, train = rates(penalty, [2, 0])
    return Baseline(test, train, {"penalty": penalty})


def true_scores(part: Population) -> dict[str, float]:
    """Bits per spike of the true rates: the ceiling, up to chance."""
    seen, held = part.observed, part.heldin
    return {
        "co-bps": bits_per_spike(part.rates[:, :seen, held:], part.spikes[:, :seen, held:]),
        "fp-bps": bits_per_spike(part.rates[:, seen:], part.spikes[:, seen:]),
    }
