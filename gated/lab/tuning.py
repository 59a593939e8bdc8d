"""Searches for hyperparameters with honest accounting: grid, random and TPE (Optuna), with or without pruning.

`train` gets a list of settings and returns a `Run` for each, so that the searches of several seeds can train their
networks together in one ensemble, although each of them has to wait for its own results. Cost is counted in whatever
unit `train` reports, for instance steps of a plain network.

Example:
    >>> from gated.lab.tuning import Range, Run, Tpe, best_so_far, search
    >>> def train(settings):
    ...     return [Run(curve=[(1.0, abs(s["rate"] - 0.3))], detail=s["rate"]) for s in settings]
    >>> space = {"rate": Range(0, 0.9), "decay": Range(1e-6, 1e-2, log=True)}
    >>> found = search(train, [Tpe(space, seed, prune=True) for seed in range(2)], trials=16)
    >>> rates = best_so_far(found[0], budgets=[1, 4, 16], of=lambda trial: trial.detail)
    >>> bool(abs(rates[-1] - 0.3) < 0.1)
    True
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Setting = dict[str, float | int]


class Range(NamedTuple):
    """From `low` to `high`, both included; `log`: uniform in the logarithm; `whole`: integers."""

    low: float | int
    high: float | int
    log: bool = False
    whole: bool = False


Space = Mapping[str, Range]


class Run(NamedTuple):
    """What became of a setting: `curve`, (cost, validation score) at each checkpoint, the last at the end.

    A lower score is better. `detail`: anything else, such as the test score at the end.
    """

    curve: Sequence[tuple[float, float]]
    detail: Any = None


class Trial(NamedTuple):
    """A setting that was tried. A pruned one is charged up to the checkpoint at which it was stopped."""

    setting: Setting
    score: float
    cost: float
    pruned: bool
    detail: Any


class Listed:
    """Settings one after the other, such as those of a `grid` or of `draws`.

    `ask` says what to try, `tell` hears what became of it, in the same order. `waits`: whether a setting depends on
    the outcomes before it.
    """

    waits = False

    def __init__(self, settings: Sequence[Setting]) -> None:
        self._settings, self._asked, self._told = list(settings), 0, 0

    def ask(self) -> Setting:
        self._asked += 1
        return self._settings[self._asked - 1]

    def tell(self, run: Run) -> Trial:
        self._told += 1
        cost, score = run.curve[-1]
        return Trial(self._settings[self._told - 1], score, cost, False, run.detail)


class Tpe:
    """Optuna's tree-structured Parzen estimator, and its median pruner if `prune`. The same seed, the same search.

    Args:
        space: the ranges.
        seed: of the sampler.
        startup: settings that are drawn at random before the estimator is asked.
        prune: stop a trial at a checkpoint at which it is worse than the median of the earlier trials there.
    """

    waits = True

    def __init__(self, space: Space, seed: int, *, startup: int = 8, prune: bool = False) -> None:
        _check(space)
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        spread: dict[str, Any] = {
            name: optuna.distributions.IntDistribution(int(r.low), int(r.high), log=r.log)
            if r.whole
            else optuna.distributions.FloatDistribution(r.low, r.high, log=r.log)
            for name, r in space.items()
        }
        self._spread, self._prune = spread, prune
        pruner = optuna.pruners.MedianPruner(n_startup_trials=startup) if prune else optuna.pruners.NopPruner()
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup)
        self._study: Any = optuna.create_study(sampler=sampler, pruner=pruner)
        self._open: Any = None
        self._state = optuna.trial.TrialState

    def ask(self) -> Setting:
        self._open = self._study.ask(self._spread)
        return dict(self._open.params)

    def tell(self, run: Run) -> Trial:
        trial: Any = self._open
        for i, (cost, score) in enumerate(run.curve):
            trial.report(score, i)
            if self._prune and i < len(run.curve) - 1 and trial.should_prune():
                self._study.tell(trial, state=self._state.PRUNED)
                return Trial(dict(trial.params), score, cost, True, None)
        if math.isfinite(score):
            self._study.tell(trial, score)
        else:
            self._study.tell(trial, state=self._state.FAIL)
        return Trial(dict(trial.params), score, cost, False, run.detail)


Searcher = Listed | Tpe


def grid(space: Space, points: Mapping[str, int]) -> list[Setting]:
    """All combinations of evenly spaced values, both ends included; the last name changes fastest.

    Raises ValueError for other names than the space's, or fewer than 1 point (1 is the middle of the range).
    """
    _check(space)
    if set(points) != set(space) or min(points.values()) < 1:
        raise ValueError(f"points must give at least 1 for each of {list(space)}, got {dict(points)}")
    settings: list[Setting] = [{}]
    for name, r in space.items():
        share = np.linspace(0, 1, points[name]) if points[name] > 1 else np.array([0.5])
        settings = [s | {name: v} for s in settings for v in dict.fromkeys(_at(r, share))]
    return settings


def draws(space: Space, count: int, seed: int) -> list[Setting]:
    """`count` settings drawn uniformly (in the logarithm where `log`), by NumPy's generator of this seed.

    The first k of them are the k settings that a shorter search of the same seed would try.
    """
    _check(space)
    share = np.random.default_rng(seed).random((count, len(space)))
    columns = [_at(r, share[:, i], edges=True) for i, r in enumerate(space.values())]
    return [dict(zip(space, row, strict=True)) for row in zip(*columns, strict=True)]


def search(
    train: Callable[[list[Setting]], Sequence[Run]], searchers: Sequence[Searcher], trials: int, *, together: int = 1
) -> list[list[Trial]]:
    """`trials` trials of each searcher, trained round by round; returns the trials of each.

    Args:
        train: settings -> what became of them. A round has one setting of each searcher, searcher by searcher.
        searchers: for instance one for each seed.
        trials: of each.
        together: rounds that are trained in one call, for searchers that need not wait.

    Raises:
        ValueError: trials or together below 1, or together > 1 with a searcher that waits.
    """
    if trials < 1 or together < 1:
        raise ValueError(f"trials and together must be at least 1, got {trials} and {together}")
    if together > 1 and any(s.waits for s in searchers):
        raise ValueError(f"together must be 1 where a search waits for its outcomes, got {together}")
    found: list[list[Trial]] = [[] for _ in searchers]
    for first in range(0, trials, together):
        rounds = min(together, trials - first)
        settings = [s.ask() for s in searchers for _ in range(rounds)]
        runs = iter(train(settings))
        for s, kept in zip(searchers, found, strict=True):
            kept.extend(s.tell(next(runs)) for _ in range(rounds))
    return found


def best_so_far(
    trials: Sequence[Trial], budgets: Sequence[float | int], of: Callable[[Trial], float] = lambda t: t.score
) -> list[float]:
    """`of` the trial with the best validation score among those finished within each budget (nan if none is).

    Costs add up, pruned trials included; a pruned trial is never chosen, for nobody finished its network.
    """
    spent = np.cumsum([t.cost for t in trials])
    chosen = []
    for budget in budgets:
        inside = [
            t
            for t, s in zip(trials, spent, strict=True)
            if s <= budget + 1e-9 and not t.pruned and math.isfinite(t.score)
        ]
        chosen.append(float(of(min(inside, key=lambda t: t.score))) if inside else math.nan)
    return chosen


def _at(r: Range, share: np.ndarray, edges: bool = False) -> list[float | int]:
    """Values at these shares of the range. `edges`: whole numbers with equal chances, for shares that were drawn."""
    if r.whole and edges:
        return [int(v) for v in np.minimum(r.low + np.floor(share * (r.high - r.low + 1)), r.high)]
    values = r.low * (r.high / r.low) ** share if r.log else r.low + share * (r.high - r.low)
    return [round(v) if r.whole else float(v) for v in values]


def _check(space: Space) -> None:
    if not space:
        raise ValueError("space must have at least one range, got none")
    for name, r in space.items():
        if not r.low < r.high or not math.isfinite(r.high - r.low) or (r.log and r.low <= 0):
            raise ValueError(f"space[{name!r}] must have finite low < high, and low > 0 where log; got {r}")
