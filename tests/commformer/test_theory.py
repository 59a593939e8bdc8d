"""The lookup game's closed forms against enumeration of all states, all graphs and all gates."""

import itertools
import math
from collections import Counter, defaultdict
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gated.commformer.rivals import all_graphs, empty_graph, full_graph, random_graphs, ring_graph
from gated.commformer.theory import (
    bayes_value,
    best_answers,
    expected_largest_count,
    full_without_ids,
    gate_optimum,
    listening_threshold,
    no_communication,
    random_derangement,
    random_row,
)
from gated.commformer.worlds import PermutationLookup

PERMUTATION = (3, 0, 4, 1, 2)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_figures_for_five_agents_and_four_symbols():
    assert no_communication(4) == 0.25
    assert random_row(5, 4) == 0.4375
    assert expected_largest_count(4, 4) == 2.125
    assert full_without_ids(5, 4) == 0.53125
    assert listening_threshold(4) == 0.75


@pytest.mark.parametrize(("messages", "symbols"), [(1, 3), (2, 2), (4, 4), (5, 3), (7, 2), (4, 1), (3, 6)])
def test_largest_count_by_enumeration(messages, symbols):
    total = sum(max(Counter(s).values()) for s in itertools.product(range(symbols), repeat=messages))
    assert expected_largest_count(messages, symbols) == float(Fraction(total, symbols**messages))


def best_by_enumeration(graph, permutation, symbols, ids) -> list[float]:
    """Groups all states by what an agent knows, and answers each group with its most frequent target."""
    agents = len(permutation)
    values = []
    for i in range(agents):
        groups: dict[object, Counter] = defaultdict(Counter)
        for state in itertools.product(range(symbols), repeat=agents):
            heard = [state[j] for j in range(agents) if graph[i][j] and j != i]
            groups[(state[i], tuple(heard if ids else sorted(heard)))][state[permutation[i]]] += 1
        values.append(sum(max(g.values()) for g in groups.values()) / symbols**agents)
    return values


@given(
    st.integers(2, 4).flatmap(
        lambda n: st.tuples(
            st.permutations(range(n)).filter(lambda p: all(i != j for i, j in enumerate(p))),
            st.lists(st.lists(st.integers(0, 1), min_size=n, max_size=n), min_size=n, max_size=n),
        )
    ),
    st.integers(2, 3),
    st.booleans(),
)
def test_bayes_value_by_enumeration(game, symbols, ids):
    permutation, graph = game
    value = bayes_value(torch.tensor(graph, dtype=torch.float32), permutation, symbols, ids=ids)
    expected = best_by_enumeration(graph, permutation, symbols, ids)
    assert value.tolist() == pytest.approx(expected, abs=1e-12)


def every_state(agents: int, symbols: int) -> torch.Tensor:
    return torch.tensor(list(itertools.product(range(symbols), repeat=agents)))


@pytest.mark.parametrize("ids", [True, False])
def test_best_answers_reach_the_value(ids):
    """Played on all 4^5 states, for none, full, ring, random and the oracle: the mean reward is the value, exactly."""
    states = every_state(5, 4)
    world = PermutationLookup(len(states), PERMUTATION, 4, ids=ids)
    graphs = [empty_graph(5), full_graph(5), ring_graph(5), world.oracle_graph(), *random_graphs(6, 5, 2, seeded(0))]
    for graph in graphs:
        world.place(states)
        reward = world.step(best_answers(world, graph)).reward
        assert reward.double().mean(0).tolist() == bayes_value(graph, PERMUTATION, 4, ids=ids).tolist()


def test_brute_force_over_all_graphs():
    """One edge a row, five agents: of 1,024 graphs the oracle alone is worth 1, each what its right rows are worth."""
    graphs = all_graphs(5, 1)
    states = every_state(5, 4)
    world = PermutationLookup(len(states), PERMUTATION, 4)
    played = []
    for graph in graphs:
        world.place(states)
        played.append(float(world.step(best_answers(world, graph)).reward.double().mean()))
    value = bayes_value(graphs, PERMUTATION, 4).mean(-1)
    torch.testing.assert_close(value, torch.tensor(played, dtype=torch.float64), rtol=0, atol=1e-12)
    assert float(value.max()) == 1.0 and int((value == 1).sum()) == 1
    assert torch.equal(graphs[value.argmax()], world.oracle_graph())
    right = (graphs * world.oracle_graph()).sum((1, 2))
    torch.testing.assert_close(value, (right.double() + (5 - right.double()) / 4) / 5)
    assert float(value.mean()) == pytest.approx(random_row(5, 4), abs=1e-12)
    assert [int((right == r).sum()) for r in range(6)] == [math.comb(5, r) * 3 ** (5 - r) for r in range(6)]
    without = bayes_value(graphs, PERMUTATION, 4, ids=False).mean(-1)
    assert torch.equal(without, value)  # an edge of its own says who speaks


def test_limits_of_the_value():
    assert bayes_value(empty_graph(5), PERMUTATION, 4).tolist() == [no_communication(4)] * 5
    assert bayes_value(full_graph(5), PERMUTATION, 4).tolist() == [1.0] * 5
    assert bayes_value(full_graph(5), PERMUTATION, 4, ids=False).tolist() == [full_without_ids(5, 4)] * 5
    assert bayes_value(empty_graph(5), PERMUTATION, 4, flag_rate=0).tolist() == [1.0] * 5
    own = torch.eye(5)
    assert torch.equal(bayes_value(own, PERMUTATION, 4), bayes_value(empty_graph(5), PERMUTATION, 4))


def test_the_target_is_uniform_given_what_else_is_known():
    """Eight agents and eight symbols, by play: a wrong sender, and the agent's own symbol, are worth nothing."""
    world = PermutationLookup(40_000, [1, 2, 3, 4, 5, 6, 7, 0], 8)
    world.reset(seeded(0))
    reward = world.step(best_answers(world, ring_graph(8, 1).T.contiguous())).reward
    assert abs(float(reward.mean()) - no_communication(8)) < 4 * (1 / 8 * 7 / 8 / 320_000) ** 0.5
    world.reset(seeded(0))
    assert float(world.step(world.symbols).reward.mean()) == pytest.approx(1 / 8, abs=4e-3)


@pytest.mark.parametrize("symbols", [2, 4])
@pytest.mark.parametrize("rate", [0.0, 0.25, 1.0])
def test_gate_by_all_four_policies(symbols, rate):
    """z(f) for f = 0 and 1 is one of four; the best of them at each price, and the shares at which they listen."""
    threshold = 1 - 1 / symbols
    for price in (0.0, 0.1, threshold / 2, threshold, threshold + 0.05, 2.0):
        found = []
        for closed, opened in itertools.product((0, 1), repeat=2):
            listens = (1 - rate) * closed + rate * opened
            right = 1 - rate + rate * (1.0 if opened else 1 / symbols)
            found.append((right - price * listens, listens))
        best = max(reward for reward, _ in found)
        rates = [z for reward, z in found if reward > best - 1e-12]
        optimum = gate_optimum(symbols, rate, price)
        assert optimum.reward == pytest.approx(best, abs=1e-12)
        assert optimum.rate == pytest.approx((min(rates), max(rates)), abs=1e-12)


def test_phase_transition_of_the_gate_by_play():
    """Who listens when its flag is set, and who never does: 1 - λρ and 1 - ρ + ρ/K, equal at λ* = 3/4."""
    world = PermutationLookup(40_000, PERMUTATION, 4, flag_rate=0.25)
    world.reset(seeded(0))
    flags = world.flags
    listening = world.step(best_answers(world, world.oracle_graph())).reward
    world.reset(seeded(0))
    deaf = world.step(best_answers(world, empty_graph(5))).reward
    assert (listening == 1).all()
    gain = (listening - deaf)[flags]
    assert abs(float(gain.mean()) - listening_threshold(4)) < 4 * (0.75 * 0.25 / len(gain)) ** 0.5
    assert ((listening - deaf)[~flags] == 0).all()
    below, above = gate_optimum(4, 0.25, 0.74), gate_optimum(4, 0.25, 0.76)
    assert below.rate == (0.25, 0.25) and above.rate == (0.0, 0.0)
    assert below.reward == pytest.approx(1 - 0.74 / 4)
    assert (
        above.reward
        == pytest.approx(0.75 + 0.25 / 4)
        == bayes_value(empty_graph(5), PERMUTATION, 4, flag_rate=0.25).mean()
    )


def test_derangements_are_even():
    generator = seeded(0)
    count = Counter(random_derangement(4, generator) for _ in range(4500))
    assert len(count) == 9
    assert sum((c - 500) ** 2 / 500 for c in count.values()) < 26.1  # 0.999 of 8 degrees of freedom
    assert random_derangement(2, generator) == (1, 0)
