"""What the commformer package says about arguments that do not fit."""

import pytest
import torch

from gated.commformer import (
    PPO,
    Arm,
    Cohort,
    CommFormer,
    ReceiveGate,
    ValueNorm,
    graph_from_indices,
    inclusion_probability,
    initial_edges,
    logit_gap,
    messages,
    relation_attention,
    sample_graph,
    senders,
    stored_gate,
)
from gated.commformer.worlds import PermutationLookup

GRAPH = graph_from_indices([[1], [2], [0]])


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def network(**options) -> CommFormer:
    return CommFormer(3, 5, 2, width=8, **options)


# The graph -----------------------------------------------------------------------------------------------------------


def test_k_above_the_number_of_others():
    edges = torch.randn(4, 4)
    for k in (4, 5):
        with pytest.raises(ValueError, match=f"k must be at most 3, so many senders are there.*got {k}"):
            sample_graph(edges, k, generator=None)
    with pytest.raises(ValueError, match="k must be at most 4"):
        sample_graph(edges, 5, generator=None, self_edges=True)
    for k in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="k must be an integer of at least 1"):
            sample_graph(edges, k, generator=None)
    for k, message in ((0, "k must be an integer of at least 1"), (4, r"k must lie in 1\.\.3")):
        with pytest.raises(ValueError, match=message):
            logit_gap(edges, k)


def test_one_agent_has_nobody_to_hear():
    for call in (
        lambda: initial_edges(1, generator=generator()),
        lambda: senders(1, 0.4),
        lambda: sample_graph(torch.zeros(1, 1), 1, generator=None),
        lambda: inclusion_probability(torch.zeros(1, 1), 1),
        lambda: graph_from_indices([[]]),
        lambda: CommFormer(1, 5, 2),
    ):
        with pytest.raises(ValueError, match="agents must be at least 2"):
            call()


def test_edges_that_are_no_square_of_numbers():
    for edges in (torch.zeros(3), torch.zeros(3, 4)):
        with pytest.raises(ValueError, match="edges must have shape"):
            sample_graph(edges, 1, generator=None)
    with pytest.raises(ValueError, match="edges must be a floating-point tensor"):
        sample_graph(torch.zeros(3, 3, dtype=torch.long), 1, generator=None)
    for bad in (torch.nan, torch.inf):
        edges = torch.zeros(3, 3)
        edges[0, 1] = bad
        with pytest.raises(ValueError, match="edges must be finite"):
            sample_graph(edges, 1, generator=None)
    with pytest.raises(ValueError, match="temperature must be a positive"):
        sample_graph(torch.zeros(3, 3), 1, 0.0, generator=generator())


def test_what_has_no_closed_form_and_other_ranges():
    for k, message in ((0, "k must be an integer of at least 1"), (3, "k must be 1 or 2")):
        with pytest.raises(ValueError, match=message):
            inclusion_probability(torch.zeros(5, 5), k)
    with pytest.raises(ValueError, match="at most agents - 1 = 1, got 2"):
        inclusion_probability(torch.zeros(2, 2), 2)
    for share in (0, 1.1, torch.nan):
        with pytest.raises(ValueError, match=r"share must be a number in \(0, 1\]"):
            senders(5, share)
    for spread in (0, -1.0, torch.inf):
        with pytest.raises(ValueError, match="spread must be positive"):
            initial_edges(3, spread=spread, generator=generator())


def test_graphs_that_do_not_fit():
    for row in ([3], [0], [-1]):
        with pytest.raises(ValueError, match=r"senders_of\[0\] must hold other agents in 0\.\.2"):
            graph_from_indices([row, [], []])
    with pytest.raises(ValueError, match="graph must have shape"):
        messages(torch.zeros(3, 4))
    with pytest.raises(ValueError, match="receive must have an entry for each of 3 agents"):
        messages(GRAPH, torch.ones(2))


# Attention and network -----------------------------------------------------------------------------------------------


def test_attention_names_what_does_not_fit():
    x, relation = torch.randn(2, 3, 8), torch.randn(2, 16)
    with pytest.raises(ValueError, match="estimator must be one of"):
        relation_attention(x, (x, x), (x, x), relation, GRAPH, "soft")
    with pytest.raises(ValueError, match=r"relation must have shape \(2, 16\)"):
        relation_attention(x, (x, x), (x, x), relation[:, :8], GRAPH)
    with pytest.raises(ValueError, match=r"links \(graph\) must have shape \(\*batch, 3, 3\)"):
        relation_attention(x, (x, x), (x, x), relation, torch.zeros(3, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoder": "loose"}, "decoder must be one of"),
        ({"receive_gate": "hard"}, "receive_gate must be one of"),
        ({"estimator": "soft"}, "estimator must be one of"),
        ({"paper_quirks": True}, "paper_quirks needs the decoder"),
        ({"paper_quirks": True, "decoder": "mat", "receive_gate": "score"}, "no receive_gate"),
    ],
)
def test_networks_that_do_not_exist(options, message):
    with pytest.raises(ValueError, match=message):
        network(**options)


@pytest.mark.parametrize("sizes", [(3, 0, 2), (3, 5, 0), (3, 5.0, 2)])
def test_sizes_below_one(sizes):
    with pytest.raises(ValueError, match="must be an integer of at least 1"):
        CommFormer(*sizes)


def test_inputs_that_do_not_fit_the_network():
    net = network()
    o = torch.zeros(4, 3, 5)
    for shape in ((4, 3, 6), (4, 2, 5), (5,)):
        with pytest.raises(ValueError, match=r"observation must have shape \[\*batch 3 5\]"):
            net(torch.zeros(shape), GRAPH)
    with pytest.raises(ValueError, match=r"graph must have shape \(\*batch, 3, 3\)"):
        net(o, torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"action must have shape \(4, 3\)"):
        net(o, GRAPH, torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"receive must have shape \(4, 3\)"):
        net(o, GRAPH, receive=torch.zeros(3))
    for action in (-1, 2):
        with pytest.raises(ValueError, match=r"action must lie in 0\.\.1"):
            net(o, GRAPH, torch.full((4, 3), action))
    for bad in (torch.nan, torch.inf):
        with pytest.raises(ValueError, match="observation must be finite"):
            net(o.index_fill(0, torch.tensor([1]), bad), GRAPH)


def test_an_empty_row_is_no_error_but_an_agent_alone():
    decision = network()(torch.randn(4, 3, 5), torch.zeros(3, 3))
    assert decision.logits.isfinite().all() and decision.value.isfinite().all()


def test_gates_that_do_not_fit():
    with pytest.raises(ValueError, match="width must be an integer"):
        ReceiveGate(5, 0)
    with pytest.raises(ValueError, match="temperature must be a positive"):
        stored_gate(torch.zeros(3), torch.ones(3), 0)
    with pytest.raises(ValueError, match="stored must have the shape of logit"):
        stored_gate(torch.zeros(3), torch.ones(2))


# Training ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "never"}, "schedule must be one of"),
        ({"schedule": "split", "graph": GRAPH}, "graph is for the schedule 'fixed'"),
        ({"drawn": True}, "drawn needs a schedule"),
        ({"lr": 0}, "lr must be a positive"),
        ({"edge_lr": -1}, "edge_lr must be a positive"),
        ({"penalty": -0.1}, r"penalty must be a number in \[0, inf\)"),
        ({"penalty": torch.inf}, r"penalty must be a number in \[0, inf\); got inf"),
    ],
)
def test_arms_that_do_not_exist(options, message):
    with pytest.raises(ValueError, match=message):
        Arm("x", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be an integer"),
        ({"groups": 0}, "groups must be an integer"),
        ({"clip": 0}, "clip must be a positive"),
        ({"temperature": 0}, "temperature must be a positive"),
        ({"discount": 1.1}, r"discount must be a number in \[0, 1\]"),
        ({"entropy": -1}, r"entropy must be a number in \[0, inf\)"),
        ({"edge_value": torch.nan}, r"edge_value must be a number in \[0, inf\); got nan"),
    ],
)
def test_settings_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        PPO(**options)


def test_populations_that_do_not_fit():
    with pytest.raises(ValueError, match="arms must be an integer of at least 1"):
        Cohort(lambda seed: network(), [], [0])
    with pytest.raises(ValueError, match=r"graph of 'x' must have shape \(3, 3\), got \(2, 2\)"):
        Cohort(lambda seed: network(), [Arm("x", graph=torch.zeros(2, 2))], [0])
    with pytest.raises(ValueError, match="k must be at most 2"):
        Cohort(lambda seed: network(), [Arm("x", "split", k=3)], [0])


def test_worlds_that_do_not_fit():
    def people(*arms: Arm, **settings) -> Cohort:
        return Cohort(lambda seed: network(), arms, [0], PPO(**settings))

    fixed, split = Arm("fixed", graph=GRAPH), Arm("split", "split")
    game = lambda copies: PermutationLookup(copies, (1, 2, 0), 2)  # noqa: E731
    with pytest.raises(ValueError, match=r"world must have \(3, 5, 2\) agents, features and actions"):
        people(fixed).collect(PermutationLookup(4, (1, 0), 2), generator())
    with pytest.raises(ValueError, match="multiple of 2 copies"):
        people(fixed, fixed).collect(game(3), generator())
    with pytest.raises(ValueError, match="at least 2 for each run, got 1"):
        people(split).collect(game(1), generator())
    with pytest.raises(ValueError, match="groups must divide the 6 copies"):
        people(split, groups=4).collect(game(6), generator())
    with pytest.raises(ValueError, match="observation must be finite"):
        people(fixed).decide(torch.full((1, 2, 3, 5), torch.nan), None)
    with pytest.raises(ValueError, match="arm and seed must be of"):
        people(fixed).run_of("none", 0)
    with pytest.raises(ValueError, match="updates must be an integer"):
        people(fixed).train(game(2), 0, generator())


def test_parts_of_ppo_that_do_not_fit():
    with pytest.raises(ValueError, match=r"keep must be a number in \[0, 1\)"):
        ValueNorm(2, keep=1.0, like=torch.zeros(1))
