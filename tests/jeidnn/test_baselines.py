"""Rules against loops, curves against brute force."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial import ConvexHull

from gated import jeidnn as j

D = torch.float64
COSTS = torch.tensor([0.25, 0.5, 0.75, 1.0], dtype=D)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_tally_by_hand():
    correct = torch.tensor([[True, False, True], [False, False, True], [True, True, False], [False, True, True]])
    costs = torch.tensor([0.2, 0.5, 1.0], dtype=D)
    cost, accuracy, rates = j.tally(torch.tensor([0, 2, 2, 0]), correct, costs)
    assert cost == pytest.approx(0.6) and accuracy == 0.5 and rates.tolist() == [0.5, 0, 0.5]


def test_thresholds_by_a_loop():
    scores = torch.rand(200, 3, generator=rng(), dtype=D)
    for threshold in (0.3, torch.tensor([0.9, 0.6, 0.3], dtype=D)):
        bars = torch.as_tensor(threshold).expand(3).tolist()
        expected = [next((l for l in range(3) if row[l] >= bars[l]), 3) for row in scores.tolist()]
        assert j.threshold_exit(scores, threshold).tolist() == expected
    assert (j.threshold_exit(scores, -1) == 0).all() and (j.threshold_exit(scores, 2) == 3).all()


@pytest.mark.parametrize("ratio", [0.05, 0.5, 1, 2])
def test_quotas_are_met(ratio):
    n = 1000
    scores = torch.rand(n, 3, generator=rng(1), dtype=D)
    quotas = j.geometric_quotas(4, ratio)
    assert quotas.tolist() == pytest.approx([ratio**k / sum(ratio**i for i in range(4)) for k in range(4)])
    thresholds = j.quota_thresholds(scores, quotas)
    taken = torch.bincount(j.threshold_exit(scores, thresholds), minlength=4)
    assert taken[:3].tolist() == [int(n * q + 1e-9) for q in quotas[:3].tolist()]


def test_quotas_of_nothing_and_of_all():
    scores = torch.rand(10, 2, generator=rng(2), dtype=D)
    none = j.quota_thresholds(scores, torch.tensor([0.0, 0.0, 1.0], dtype=D))
    assert none.isinf().all() and (j.threshold_exit(scores, none) == 2).all()
    every = j.quota_thresholds(scores, torch.tensor([1.0, 0.0, 0.0], dtype=D))
    assert (j.threshold_exit(scores, every) == 0).all()


@given(st.lists(st.lists(st.integers(0, 2), min_size=5, max_size=5), min_size=1, max_size=10), st.integers(1, 6))
def test_patience_by_a_loop(guess, patience):
    def exit(row):
        run = 0
        for l, g in enumerate(row):
            run = run + 1 if l and g == row[l - 1] else 1
            if run >= patience:
                return l
        return len(row) - 1

    assert j.patience_exit(torch.tensor(guess), patience).tolist() == [exit(row) for row in guess]


def test_random_exit_is_what_permuting_the_exits_gives():
    gen = rng(3)
    correct = torch.rand(5000, 4, generator=gen) < torch.tensor([0.4, 0.6, 0.8, 0.9])
    exit = torch.randint(4, (5000,), generator=gen)
    rates = j.tally(exit, correct, COSTS).rates
    closed = j.random_exit_accuracy(correct.double().mean(0), rates)
    drawn = [j.tally(exit[torch.randperm(5000, generator=gen)], correct, COSTS).accuracy for _ in range(200)]
    assert np.mean(drawn) == pytest.approx(closed, abs=4 * np.std(drawn) / 200**0.5)


def test_random_exit_of_the_published_rates():
    accuracy = torch.tensor([41.18, 57.19, 71.26, 85.26, 92.26, 94.78, 94.95])
    rates = torch.tensor([0, 4.0, 32.1, 37.4, 24.2, 2.4, 0])
    assert j.random_exit_accuracy(accuracy, rates / rates.sum()) == pytest.approx(81.7, abs=0.15)  # of rounded rates


def test_oracle_is_the_most_accurate_and_then_the_cheapest():
    correct = torch.rand(500, 4, generator=rng(4)) < 0.4
    exit = j.oracle_exit(correct)
    for row, e in zip(correct.tolist(), exit.tolist(), strict=True):
        assert e == (row.index(True) if any(row) else 0)
    assert j.tally(exit, correct, COSTS).accuracy == float(correct.any(1).double().mean())
    # with 0/1 losses and a price that is small enough it is the label-aware argmin
    losses = 1.0 - correct.double()
    assert torch.equal(exit, j.exit_labels(losses, COSTS, 0.5))


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=12))
def test_hull_is_the_best_mixture(points):
    x, y = (list(c) for c in zip(*points, strict=True))
    hx, hy = j.concave_hull(x, y)
    assert (hx.diff() > 0).all() and (hy.diff() > 0).all()
    assert float(hy[-1]) == max(y) and float(hx[0]) == min(x)
    for at in np.linspace(float(hx[0]), float(hx[-1]), 5).tolist():
        best = max(b for a, b in points if a <= at)
        for a, b in points:
            for c, d in points:
                if a <= at <= c and c - a > 1e-9:
                    best = max(best, b + (d - b) * (at - a) / (c - a))
        assert j.at_cost(hx, hy, at) == pytest.approx(best, abs=1e-6)


def test_hull_by_scipy():
    xy = torch.rand(40, 2, generator=rng(5), dtype=D).numpy()
    hx, hy = j.concave_hull(xy[:, 0].tolist(), xy[:, 1].tolist())
    corners = {tuple(xy[i]) for i in ConvexHull(xy).vertices}
    assert all((a, b) in corners for a, b in zip(hx.tolist(), hy.tolist(), strict=True))


def test_curves_at_equal_cost():
    costs, values = [1.0, 0.5, 0.5, 0.0], [3.0, 2.0, 1.0, 0.0]
    assert j.at_cost(costs, values, 0.25) == pytest.approx(1.0)
    assert j.at_cost(costs, values, 0.5) == 2.0  # the best of two points of the same cost
    assert j.at_cost(costs, values, 1) == 3.0 and j.at_cost(costs, values, 0) == 0.0
    assert np.interp(0.8, [0, 0.5, 1], [0, 2, 3]) == pytest.approx(j.at_cost(costs, values, 0.8))
