"""Who hears whom, and when: agents that learn a sparse graph of messages together with what they do with them.

    graph.py        the matrix of edge logits: exact and Gumbel-top-k graphs, inclusion probabilities
    attention.py    relation attention along the edges, and the gradient of a link
    receive.py      the gate of each agent that opens at the moments at which it listens
    network.py      `CommFormer`: encoder, critic and three decoders, with cached choosing
    ppo.py          normalised values, the clipped loss
    population.py   many seeds and variants trained at once; schedules that share the data between weights and edges
    worlds.py       permutation lookup, predators that capture prey, the scout: thousands of copies at once
    rivals.py       graphs to compare with, and scripted players on any graph
    theory.py       closed forms of the lookup game and of the receive gate; every graph by brute force
    study.py        the chapter's study: variants of one world as a cohort, asked on common starts

Papers: Hu, Shen, Zhang and Tao, "Learning Multi-Agent Communication from Graph Modeling Perspective" (arXiv 2405.08550)
and its journal version with the receive gate, "Communication Learning in Multi-Agent Systems from Graph Modeling
Perspective" (arXiv 2411.00382). The receive gate here, its estimators, the strict decoder and the second edge estimator
are our reading or our own.
"""

from gated.commformer.attention import Estimator, relation_attention, released_attention
from gated.commformer.graph import (
    graph_from_indices,
    inclusion_probability,
    initial_edges,
    logit_gap,
    messages,
    sample_graph,
    senders,
)
from gated.commformer.network import CommFormer, Decision
from gated.commformer.population import Arm, Cohort, EdgeSchedule, Losses
from gated.commformer.ppo import PPO, Rollout, ValueNorm, clipped_policy_loss, clipped_value_loss
from gated.commformer.receive import ReceiveGate, gate_log_prob, stored_gate

__all__ = [
    "PPO",
    "Arm",
    "Cohort",
    "CommFormer",
    "Decision",
    "EdgeSchedule",
    "Estimator",
    "Losses",
    "ReceiveGate",
    "Rollout",
    "ValueNorm",
    "clipped_policy_loss",
    "clipped_value_loss",
    "gate_log_prob",
    "graph_from_indices",
    "inclusion_probability",
    "initial_edges",
    "logit_gap",
    "messages",
    "relation_attention",
    "released_attention",
    "sample_graph",
    "senders",
    "stored_gate",
]
