"""The chapter's study in small: parts do not overlap, arms differ where they should, equal costs are equal."""

import functools

import pytest
import torch

from gated import jeidnn as j
from gated.jeidnn import recipe, study


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def body():
    return j.ResidualMLP(6, 3, dim=8, depth=3)


@functools.cache
def small():
    """One seed of a task in which the classes are shells around the origin."""
    x = torch.randn(5000, 6, generator=rng())
    norm = x.square().sum(1)
    y = (norm > 4.3).long() + (norm > 6.6)
    before, recipe.TURNS = recipe.TURNS, 2
    try:
        return study.measure(x, y, body, 0, 4, [0.1, 1.0], [1.0])
    finally:
        recipe.TURNS = before


def test_parts_share_nothing():
    x = torch.arange(1001.0)
    parts = study.divide(x, x.long(), 3)
    assert [len(part[1]) for part in parts] == [500, 150, 150, 201]
    assert torch.equal(torch.cat([part[0] for part in parts]).sort().values, x)
    assert all(torch.equal(a.long(), b) for a, b in parts)


def test_released_heads_never_hear_of_the_gates():
    arms = small()["arms"]
    heads = {arm: [row["exit accuracy"] for row in arms[arm]] for arm in arms}
    assert heads["released"][0] == heads["released"][1]
    assert heads["post-hoc"][0] == heads["post-hoc"][1] == heads["hazards"][0]
    assert heads["detached"][0] != heads["detached"][1]


def test_figures_belong_together():
    found = small()
    costs = torch.tensor(found["costs"]).double()
    for arm in found["arms"].values():
        for row in arm:
            assert float(torch.tensor(row["rates"]).double() @ costs) == pytest.approx(row["cost"], abs=1e-4)
            chance = torch.tensor(row["rates"]) @ torch.tensor(row["exit accuracy"])
            assert float(chance) == pytest.approx(row["by chance"], abs=1e-4)
            assert row["threshold"] == row["rivals"]["confidence"]
    for curve in found["curves"].values():
        assert len(curve) == len(study.GRID)
    # ends of every curve on the frozen network: nobody needs a rule to send all to one exit
    for name in (*study.SCORES, "patience", "mixture of exits"):
        assert found["curves"][name][-1] == pytest.approx(found["exit accuracy"][-1])
    released = found["variants"]["subsequent, as a mass"][0]
    assert released["accuracy"] == found["arms"]["post-hoc"][1]["accuracy"]
    assert found["first right exit"][1] >= max(found["exit accuracy"])


def test_a_seed_can_be_run_again():
    drop = lambda value: {k: v for k, v in value.items() if k not in ("seconds", "arms")}  # noqa: E731
    first = drop(small())
    small.cache_clear()
    assert drop(small()) == first


def test_arms_that_are_looked_at_closely():
    """Quality for those named; other statistics for the gates of the last, and other targets only for post-hoc."""
    x = torch.randn(2000, 6, generator=rng(1))
    y = (x.square().sum(1) > 5).long()
    before, recipe.TURNS = recipe.TURNS, 1
    try:
        body = lambda: j.ResidualMLP(6, 2, dim=8, depth=3)  # noqa: E731
        found = study.measure(x, y, body, 0, 2, [0.5], [0.5], False, ["weighted", "hazards"], ["weighted", "hazards"])
    finally:
        recipe.TURNS = before
    assert found["quality"][0].keys() == {
        f"{words}{arm}" for arm in ("weighted", "hazards") for words in ("", "threshold at the cost of ")
    }
    assert not found["variants"] and found["statistics"].keys() == study.STATISTICS.keys()
    assert "gate loss" in found["arms"]["weighted"][0] and "gate loss" not in found["arms"]["hazards"][0]
