"""Worlds, rivals and theory answer bad input with a ValueError that names the argument (without the jaxtyping hook)."""

import pytest
import torch

from gated.commformer.rivals import Sweep, all_graphs, empty_graph, full_graph, random_graphs, ring_graph
from gated.commformer.theory import (
    bayes_value,
    best_answers,
    expected_largest_count,
    gate_optimum,
    random_derangement,
    random_row,
)
from gated.commformer.worlds import PermutationLookup, Pursuit


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("batch", {"batch": 0}),
        ("batch", {"batch": True}),
        ("size", {"size": 1}),
        ("seers", {"seers": 0}),
        ("blind", {"blind": -1}),
        ("vision", {"vision": 0.5}),
        ("limit", {"limit": 0}),
        ("form", {"form": "full"}),
        (r"seers \+ blind", {"size": 2, "seers": 3, "blind": 1}),
    ],
)
def test_board(argument, options):
    with pytest.raises(ValueError, match=argument):
        Pursuit(**{"batch": 2} | options)


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("batch", {"batch": 0}),
        ("symbols", {"symbols": 1}),
        ("permutation", {"permutation": []}),
        ("permutation", {"permutation": [0]}),
        ("permutation", {"permutation": [0, 1]}),
        ("permutation", {"permutation": [1, 1]}),
        ("permutation", {"permutation": [1, 2]}),
        ("flag_rate", {"flag_rate": 1.5}),
        ("flag_rate", {"flag_rate": float("nan")}),
    ],
)
def test_lookup(argument, options):
    with pytest.raises(ValueError, match=argument):
        PermutationLookup(**{"batch": 2, "permutation": [1, 0]} | options)


@pytest.mark.parametrize(
    ("argument", "cells", "prey"),
    [
        ("overlap", [[0, 1], [2, 2]], [5, 5]),
        ("overlap: they do in copy 1", [[0, 1], [2, 3]], [5, 3]),
        ("cells", [[0, 9], [2, 3]], [5, 5]),
        ("cells", [[0, -1], [2, 3]], [5, 5]),
        ("cells", [[0, 1]], [5]),
        ("cells", [[0.0, 1.0], [2.0, float("nan")]], [5, 5]),
        ("prey", [[0, 1], [2, 3]], [5]),
        ("prey", [[0, 1], [2, 3]], [5, 9]),
    ],
)
def test_starts(argument, cells, prey):
    with pytest.raises(ValueError, match=argument):
        Pursuit(2, size=3, seers=1, blind=1).place(torch.tensor(cells), torch.tensor(prey))


def test_actions():
    world, game = Pursuit(2, seers=3, blind=0), PermutationLookup(2, [1, 2, 0])
    zeros = torch.zeros(2, 3, dtype=torch.int64)
    for each in (world, game):
        with pytest.raises(RuntimeError, match="reset"):
            each.step(zeros)
        each.reset(seeded())
        for actions in (zeros[:1], zeros[:, :2], zeros.float(), zeros - 1, zeros + 5):
            with pytest.raises(ValueError, match="actions"):
                each.step(actions)
    with pytest.raises(ValueError, match="actions"):
        game.step(zeros + 4)
    world.step(zeros + 4)


def test_symbols_and_flags():
    game = PermutationLookup(2, [1, 0])
    symbols = torch.zeros(2, 2, dtype=torch.int64)
    for bad in (symbols + 4, symbols.float(), symbols[0]):
        with pytest.raises(ValueError, match="symbols"):
            game.place(bad)
    for flags in (symbols, torch.ones(2, 1, dtype=torch.bool), torch.zeros(2, 2, dtype=torch.bool)):
        with pytest.raises(ValueError, match="flags"):
            game.place(symbols, flags)


@pytest.mark.parametrize("k", [0, 5, -1])
def test_more_senders_than_others(k):
    for call in (
        lambda: ring_graph(5, k),
        lambda: random_graphs(2, 5, k, seeded()),
        lambda: all_graphs(5, k),
        lambda: Pursuit(1, seers=3, blind=2).oracle_graph(k),
    ):
        with pytest.raises(ValueError, match=r"k must lie in \[1, 4\]"):
            call()


def test_one_agent():
    for call in (
        lambda: ring_graph(1),
        lambda: full_graph(1),
        lambda: all_graphs(1),
        lambda: random_graphs(1, 1, 1, seeded()),
        lambda: random_derangement(1, seeded()),
        lambda: random_row(1, 4),
    ):
        with pytest.raises(ValueError, match="agents must be at least 2"):
            call()
    with pytest.raises(ValueError, match="k must lie"):
        Pursuit(1, seers=1, blind=0).oracle_graph()


def test_too_many_graphs():
    with pytest.raises(ValueError, match="agents=8 and k=1 make 5764801 graphs"):
        all_graphs(8)


def test_graphs_that_do_not_fit():
    world = Pursuit(2)
    world.reset(seeded())
    for graph in (empty_graph(4), torch.zeros(3, 3).bool(), torch.zeros(3, 2), torch.zeros(3, 3, 3)):
        with pytest.raises(ValueError, match="graph"):
            Sweep(world, graph)
    game = PermutationLookup(2, [1, 2, 0])
    game.reset(seeded())
    for graph in (empty_graph(4), torch.zeros(3, 3).long()):
        with pytest.raises(ValueError, match="graph"):
            bayes_value(graph, [1, 2, 0], 4)
        with pytest.raises(ValueError, match="graph"):
            best_answers(game, graph)
    with pytest.raises(ValueError, match="permutation"):
        bayes_value(empty_graph(3), [0, 2, 1], 4)


def test_numbers_of_the_theory():
    with pytest.raises(ValueError, match="messages"):
        expected_largest_count(0, 4)
    for rate, price in ((-0.1, 0.5), (0.5, -1.0), (0.5, float("nan"))):
        with pytest.raises(ValueError, match="flag_rate must lie"):
            gate_optimum(4, rate, price)
