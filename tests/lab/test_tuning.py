"""Searches against NumPy's draws, Optuna's own loop, and hand-counted costs."""

import math

import numpy as np
import optuna
import pytest

from gated.lab import tuning
from gated.lab.tuning import Listed, Range, Run, Tpe, Trial

SPACE = {"a": Range(-1, 3), "b": Range(1e-4, 1.0, log=True), "k": Range(0, 3, whole=True)}


def bowl(s):
    return (s["a"] - 1) ** 2 + math.log10(s["b"] / 1e-2) ** 2 + (s["k"] - 2) ** 2


def train(settings):
    """Three checkpoints at costs 1, 2, 3; the score comes down to the bowl's."""
    return [Run([(1, bowl(s) + 2), (2, bowl(s) + 1), (3, bowl(s))], detail=10 * bowl(s)) for s in settings]


def test_draws_are_numpys():
    share = np.random.default_rng(7).random((5, 3))
    for s, u in zip(tuning.draws(SPACE, 5, 7), share, strict=True):
        assert s["a"] == pytest.approx(-1 + 4 * u[0], rel=1e-15)
        assert s["b"] == pytest.approx(1e-4 ** (1 - u[1]), rel=1e-12)
        assert s["k"] == int(4 * u[2])
    assert tuning.draws(SPACE, 3, 7) == tuning.draws(SPACE, 5, 7)[:3]
    many = [s["k"] for s in tuning.draws(SPACE, 4000, 0)]
    assert np.bincount(many).tolist() == pytest.approx([1000] * 4, abs=110)


def test_grid():
    found = tuning.grid(SPACE, {"a": 3, "b": 2, "k": 4})
    assert len(found) == 24 and len({tuple(s.values()) for s in found}) == 24
    assert found[0] == {"a": -1, "b": pytest.approx(1e-4), "k": 0}
    assert [s["k"] for s in found[:4]] == [0, 1, 2, 3] and found[-1]["a"] == 3
    assert tuning.grid({"b": SPACE["b"]}, {"b": 1}) == [{"b": pytest.approx(1e-2)}]
    assert [s["k"] for s in tuning.grid({"k": Range(0, 2, whole=True)}, {"k": 9})] == [0, 1, 2]  # no value twice


def test_listed_costs_and_order():
    settings = tuning.draws(SPACE, 6, 0)
    for together in (1, 4, 6):
        (trials,) = tuning.search(train, [Listed(settings)], 6, together=together)
        assert [t.setting for t in trials] == settings
        assert all(t.cost == 3 and not t.pruned and t.detail == 10 * t.score for t in trials)


def test_several_searches_keep_apart():
    lists = [tuning.draws(SPACE, 4, seed) for seed in range(3)]
    found = tuning.search(train, [Listed(s) for s in lists], 4, together=3)
    assert [[t.setting for t in trials] for trials in found] == lists
    assert all(t.score == bowl(t.setting) for trials in found for t in trials)


def test_tpe_is_optunas_own_loop_whoever_runs_beside_it():
    def objective(trial):
        return bowl(
            {
                "a": trial.suggest_float("a", -1, 3),
                "b": trial.suggest_float("b", 1e-4, 1, log=True),
                "k": trial.suggest_int("k", 0, 3),
            }
        )

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=3, n_startup_trials=5))
    study.optimize(objective, 15)
    found = tuning.search(train, [Tpe(SPACE, seed, startup=5) for seed in (9, 3)], 15)
    assert [t.score for t in found[1]] == pytest.approx(study.trials_dataframe()["value"].tolist(), rel=1e-12)
    again = tuning.search(train, [Tpe(SPACE, 3, startup=5)], 15)[0]
    assert again == found[1] != found[0]


def test_tpe_beats_random_on_a_bowl():
    budget = [3 * 30]
    tpe = [tuning.best_so_far(t, budget)[0] for t in tuning.search(train, [Tpe(SPACE, i) for i in range(5)], 30)]
    lists = [Listed(tuning.draws(SPACE, 30, i)) for i in range(5)]
    random = [tuning.best_so_far(t, budget)[0] for t in tuning.search(train, lists, 30, together=30)]
    assert np.mean(tpe) < np.mean(random)


def test_pruned_trials_are_charged_until_they_stop():
    (trials,) = tuning.search(train, [Tpe(SPACE, 0, startup=4, prune=True)], 25)
    pruned = [t for t in trials if t.pruned]
    assert 3 < len(pruned) < 22 and not any(t.pruned for t in trials[:4])
    assert all(t.cost in (1, 2) and t.detail is None for t in pruned)
    assert all(t.cost == 3 for t in trials if not t.pruned)
    for i, t in enumerate(trials):  # the rule by hand, at the first checkpoint
        earlier = [bowl(e.setting) + 2 for e in trials[:i]]
        if i >= 4 and bowl(t.setting) + 2 > np.median(earlier):
            assert t.pruned and t.cost == 1


def test_a_run_that_failed_does_not_stop_the_search():
    calls = []

    def sometimes(settings):
        calls.append(settings)
        return [Run([(1, math.nan if len(calls) == 2 else bowl(s))]) for s in settings]

    (trials,) = tuning.search(sometimes, [Tpe(SPACE, 0, startup=3)], 8)
    assert len(trials) == 8 and math.isnan(trials[1].score)
    assert tuning.best_so_far(trials, [8])[0] == min(t.score for t in trials if not math.isnan(t.score))


def test_best_so_far_by_hand():
    trials = [
        Trial({}, 5.0, 3, False, 50),
        Trial({}, 1.0, 1, True, None),
        Trial({}, 4.0, 3, False, 60),
        Trial({}, 2.0, 3, False, 20),
    ]
    found = tuning.best_so_far(trials, [2.9, 3, 6.9, 7, 9.9, 10, 99], of=lambda t: t.detail)
    assert math.isnan(found[0]) and found[1:] == [50, 50, 60, 60, 20, 20]
