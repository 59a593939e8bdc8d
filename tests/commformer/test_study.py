"""The chapter's study: its graphs, its common starts, and that it asks what it says."""

import json

import pytest
import torch

from gated.commformer import study
from gated.commformer.rivals import empty_graph, full_graph, ring_graph

LOOKUP = {"kind": "lookup", "permutation": [1, 2, 0], "symbols": 2}
SCOUT = {"kind": "scout", "size": 3, "blind": 2, "limit": 4}
SMALL = {"copies": 8, "network": {"width": 8}, "settings": {"epochs": 1, "groups": 2}}


def test_graphs_have_the_names_that_they_are_called_by():
    world = study.world_of(SCOUT, 1)
    named = {name: study.graph_of(name, world) for name in ("none", "full", "ring", "oracle", "deaf")}
    assert torch.equal(named["none"], empty_graph(3)) and torch.equal(named["full"], full_graph(3))
    assert torch.equal(named["ring"], ring_graph(3)) and torch.equal(named["oracle"], world.oracle_graph())
    assert named["deaf"].argmax(-1).tolist() == [1, 2, 1], "the blind hear one another"
    five = study.world_of({"kind": "lookup", "permutation": [1, 2, 3, 4, 0]}, 1)
    random = [study.graph_of(f"random-{i}", five) for i in range(4)]
    assert all(bool((g.sum(-1) == 1).all()) and float(g.diagonal().sum()) == 0 for g in random)
    assert len({tuple(g.flatten().tolist()) for g in random}) == 4
    assert torch.equal(random[2], study.graph_of("random-2", five)), "the list is fixed"


@pytest.mark.parametrize("world", [LOOKUP, LOOKUP | {"flag_rate": 0.5}, SCOUT])
def test_all_runs_play_the_same_starts(world):
    team, scores = study.train(world, {"ring": {"graph": "ring"}, "none": {"graph": "none"}}, [0, 1], 2, **SMALL)
    assert scores.shape == (2, 4)
    for greedy in (False, True):
        seen = study.play(team, world, 6, greedy=greedy).observation[:, 0]
        assert seen.shape[:2] == (4, 6) and all(torch.equal(seen[0], other) for other in seen)


def test_what_is_found_is_plain_and_the_same_twice():
    arms = {"oracle": {"graph": "oracle"}, "joint": {"schedule": "joint", "edge_lr": 0.5}}
    once, twice = (study.cohort(LOOKUP, arms, [0, 1], 3, starts=16, each=True, **SMALL) for _ in range(2))
    assert json.loads(json.dumps(once)) == json.loads(json.dumps(twice)) == once
    assert once["oracle"]["right"] == [3, 3] and once["oracle"]["graph"][0] == [[1], [2], [0]]
    assert [len(once["joint"][name]) for name in ("curve", "gap", "certainty")] == [2, 2, 2]
    for how in ("sampled", "greedy"):
        assert once["oracle"][how]["messages"] == [3.0, 3.0] and once["oracle"][how]["receive"] == [1.0, 1.0]
        assert len(once["joint"][how]["each"][1]) == 16


def test_edges_that_are_frozen_from_the_start_never_move():
    arms = {"joint": {"schedule": "joint", "edge_lr": 0.5}}
    ends = [study.train(LOOKUP, arms, [0], 2, freeze=freeze, **SMALL)[0].edges.detach() for freeze in (0, None)]
    start = study.train(LOOKUP, arms, [0], 1, freeze=0, **SMALL)[0].edges.detach()
    assert torch.equal(ends[0], start) and not torch.equal(ends[1], start)


def test_an_early_price_stands_in_for_that_of_the_arm_until_it_ends():
    gated = SMALL | {"network": {"width": 8, "receive_gate": "score"}}

    def trained(price, updates, early):
        arms = {"a": {"graph": "oracle", "penalty": price, "lr": 0.01}}
        return study.train(LOOKUP, arms, [0], updates, early=early, **gated)[0].parameters

    same = lambda a, b: all(torch.equal(a[name], b[name]) for name in a)  # noqa: E731
    assert same(trained(0.9, 2, (2, 0.1)), trained(0.1, 2, None)), "so long it is the early one"
    assert not same(trained(0.9, 3, (2, 0.1)), trained(0.1, 3, None)), "then the arm's own"
    assert same(trained(0.9, 2, (0, 0.1)), trained(0.9, 2, None))
