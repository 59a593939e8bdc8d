"""The study: equal budgets, the same starts for all, what is packed comes back, and sides that are taken away."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from gated.online_cbf import (
    GraphTuner,
    SafetyFilter,
    constant,
    doorway,
    initial_state,
    navigation,
    nearer_first,
    study,
)


@pytest.fixture(scope="module")
def tuner():
    return GraphTuner(generator=torch.Generator().manual_seed(0))


def test_everybody_has_the_same_number_of_episodes():
    for choices, _ in study.FAMILIES.values():
        assert len(set(choices)) == len(choices) and study.EPISODES % len(choices) == 0
    assert study.EPISODES == 6 * 16 * (study.EPISODES // 96)  # the cross-entropy method's


def test_all_are_judged_on_the_same_starts_that_nobody_trains_on():
    a, b = study.judged(0.01), study.judged(0.01)
    assert torch.equal(a.start, b.start) and len(a) == study.STARTS
    assert not torch.equal(a.start, study.judged(0.03).start)
    training = study.problems(torch.Generator().manual_seed(0), 512)
    assert not (training.start[:, None] == a.start[None]).all((2, 3)).any()
    spread = (training.start - study.judged(0.0).start[:1]).flatten(1).std(1)
    assert 0.002 < spread.median() < 0.05


def test_outcomes_are_packed_and_come_back():
    drove = navigation(study.drive(study.judged(0.01)[:20], nearer_first(19, 4, 10)))
    found = study.packed(drove)
    assert torch.equal(
        study.unpacked(found["steps"]), torch.where(drove.success, drove.makespan, -drove.makespan).long()
    )
    assert found["spl"] == pytest.approx(drove.spl.mean().item())
    jam = navigation(study.drive(study.judged(0.0)[:2], nearer_first(19, 4, 10)))
    assert study.unpacked(study.packed(jam)["steps"]).tolist() == [-200, -200]


def test_weights_come_back(tuner):
    again = study.restored(study.weights(tuner))
    a = study.judged(0.1)[:4]
    state = initial_state(a, SafetyFilter())
    assert torch.equal(again(a, state), tuner(a, state))


def test_the_mirrored_policy_is_blind_to_reflection_and_the_same_where_the_policy_was(tuner):
    a = study.judged(0.1)[:4]
    flip = torch.tensor([1.0, -1.0], dtype=torch.float64)
    names = ("start", "goal", "obstacle", "centre")
    b = replace(a, **{name: getattr(a, name) * flip for name in names})
    blind = study.mirrored(tuner)
    here, there = (blind(x, initial_state(x, SafetyFilter())) for x in (a, b))
    torch.testing.assert_close(here, there)
    seen, other = (tuner(x, initial_state(x, SafetyFilter())) for x in (a, b))
    assert not torch.allclose(seen, other)
    torch.testing.assert_close(here, (seen * other).sqrt())


def test_blind_to_reflection_it_jams_in_the_mirror(tuner):
    with torch.no_grad():
        tuner.network.head[-1].weight.mul_(100)  # a network that tells sides apart
    a = study.judged(0.0)[:1]
    assert not navigation(study.drive(a, study.mirrored(tuner))).success.any()
    ride = study.drive(a, study.mirrored(tuner))
    assert (ride.strength[:, :, 0] == ride.strength[:, :, 1]).all()


def test_order_tells_who_leads_who_is_bolder_and_who_is_first():
    """Constants by name: the larger strength goes first in the mirror, whoever it is; a lead is that of the starts."""
    a = study.judged(0.1)[:6]
    for first, second in ((10.0, 3.0), (3.0, 10.0)):
        mirror = doorway(6, sigma=0.0)
        seen = study.order(mirror, study.drive(mirror, constant(torch.tensor([first, second]).double(), 10.0)))
        assert (seen["ahead"] == (first > second)).all() and (seen["lead"].abs() < 1e-12).all()
        torch.testing.assert_close(seen["bolder"], torch.full((6,), math.log(first / second)).double())
        assert seen["size"].item() == pytest.approx(10 / 3)
    seen = study.order(a, study.drive(a, constant(3.0, 3.0)))
    torch.testing.assert_close(seen["lead"], a.start[:, 1].norm(dim=-1) - a.start[:, 0].norm(dim=-1))
    assert (seen["bolder"] == 0).all() and seen["size"] == 1


def test_constants_by_time_come_from_the_starts_of_those_by_success(small, monkeypatch):
    monkeypatch.setattr(study, "PAIRS", ((1.0, 1.0), (5.0, 3.0)))
    monkeypatch.setitem(study.FAMILIES, "fixed", (study.PAIRS, study.FAMILIES["fixed"][1]))
    drawn, problems = [], study.problems

    def kept(generator, batch=2):
        drawn.append(problems(generator, batch))
        return drawn[-1]

    monkeypatch.setattr(study, "problems", kept)
    found = study.timed(3, episodes=4)
    study.best("fixed", partial(kept, torch.Generator().manual_seed(503)), 4, 3)
    assert torch.equal(drawn[0].start, drawn[1].start) and len(drawn[0]) == 2
    steps = [navigation(study.drive(drawn[0], constant(*pair))).makespan.mean().item() for pair in study.PAIRS]
    assert found["choice"] == study.PAIRS[steps.index(min(steps))]


@pytest.fixture
def small(monkeypatch):
    """Few starts, little time, two choices."""

    def few(sigma, agents=2, starts=4):
        return doorway(2, sigma=sigma, deadline=30, generator=torch.Generator().manual_seed(5))

    def problems(generator, batch=2):
        return doorway(batch, sigma=0.01, deadline=30, generator=generator)

    monkeypatch.setattr(study, "judged", few)
    monkeypatch.setattr(study, "problems", problems)
    monkeypatch.setattr(study, "SIGMAS", (0.0, 0.03))
    monkeypatch.setattr(study, "BATCH", 4)
    monkeypatch.setattr(study, "FAMILIES", {name: (kept[-2:], make) for name, (kept, make) in study.FAMILIES.items()})


def test_the_best_of_a_family_has_most_successes(monkeypatch):
    choices, make = ((3, 3, 10), (10, 3, 10), (3.5, 3.4, 10)), study.FAMILIES["by identity"][1]
    monkeypatch.setitem(study.FAMILIES, "by identity", (choices, make))
    assert study.best("by identity", lambda batch: doorway(batch, sigma=0.0), 3, 0) == (10, 3, 10)


def test_without_the_hint_it_does_not_see_how_far_others_have_to_go():
    a = study.judged(0.1)[:4]
    b = replace(a, goal=a.goal.clone())
    b.goal[:, 1, 0] += 0.5
    for kind, same in (("no hint", True), ("PPO", False)):
        tuner = study.untrained(kind, torch.Generator().manual_seed(0))
        here, there = (tuner(x, initial_state(x, SafetyFilter()))[:, 0] for x in (a, b))
        assert torch.equal(here, there) == same


@pytest.mark.parametrize("kind", ["PPO", "descent", "constant", "no hint"])
def test_a_learner_leaves_curves_weights_and_outcomes(kind, small):
    found = study.learned(kind, 0, iterations=1)
    assert [len(x) for x in found["curves"].values()] == [1, 1, 1, 1]
    assert ("judged, drawn" in found) == (kind != "descent")
    assert all(case["min_barrier"] >= -1e-9 and case["infeasible"] == 0 for case in found["judged"].values())
    study.restored(found["weights"], kind)


def test_pushed_agents_are_judged_in_full_mode(small):
    found = study.pushed(0, iterations=1)
    assert set(found["judged"]) == {"fixed", "by identity", "nearer first", "PPO"}
    assert all(set(cases) == {"0", "0.03"} for cases in found["judged"].values())
    assert found["judged"]["by identity"]["0"]["infeasible"] in (0, 1)
