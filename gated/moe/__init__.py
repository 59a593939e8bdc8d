"""Mixtures of experts: gates, experts and dispatches that fit together, and the layer made of them.

    routing.py      what a gate hands to a dispatch
    scores.py, gates.py, baselines.py    every gate behind one signature
    levels.py       what a gate looks at: token, task, sequence, modality, attributes
    experts.py, attention.py             what can be an expert
    dispatch.py, capacity.py, dropout.py, expert_parallel.py    how tokens reach their experts
    layer.py        `MoE(gate, experts, dispatch)`
    convert.py      weights of other libraries' layers
    em.py, continual.py, meta.py, multitask.py, reinforcement.py    other ways to learn, and other things to learn

Survey: Mu and Lin, "A Comprehensive Survey of Mixture-of-Experts", 2025 (arXiv 2503.07137).
"""

from gated.moe.attention import MixtureOfHeads
from gated.moe.capacity import Capacity, expert_capacity, limit, token_order
from gated.moe.dispatch import capacity_dispatch, dense_dispatch, loop_dispatch, slots_dispatch, sorted_dispatch
from gated.moe.dropout import ExpertDropout
from gated.moe.experts import FFNExperts, LinearExperts, ModuleExperts, ResidualExperts, conv_experts
from gated.moe.layer import MoE, SharedExpert
from gated.moe.routing import Routing, Slots

__all__ = [
    "Capacity",
    "ExpertDropout",
    "FFNExperts",
    "LinearExperts",
    "MixtureOfHeads",
    "MoE",
    "ModuleExperts",
    "ResidualExperts",
    "Routing",
    "SharedExpert",
    "Slots",
    "capacity_dispatch",
    "conv_experts",
    "dense_dispatch",
    "expert_capacity",
    "limit",
    "loop_dispatch",
    "slots_dispatch",
    "sorted_dispatch",
    "token_order",
]
