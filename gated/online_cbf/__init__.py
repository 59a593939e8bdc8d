"""How hard a safety barrier holds, set online: agents that share a plane and never collide, whoever is in charge.

    arenas.py     `Arena`: starts, goals, discs in the way; the doorway, the crossing, their mixture
    filter.py     the barrier as a gate: rows, class-K functions, the clip that makes discrete steps safe
    rollout.py    episodes by the thousand, differentiable
    policies.py   constants, chance, rules written by hand
    network.py    the graph network that sets strengths online
    training.py   proximal policy optimisation, and descent through the rollout
    search.py     a grid of constants, and the cross-entropy method
    measures.py   success, makespan, SPL, speed, infeasible problems
    theory.py     closed forms

Paper: Gao, Yang and Prorok, "Online Control Barrier Functions for Decentralized Multi-Agent Navigation" (MRS 2023,
arXiv 2303.04313, version 2). No code of it is public, and only its abstract was at hand: single-integrator dynamics,
the split of a pair's constraint, the clip, the scenarios, the features and the reward are our own choices.
"""

from gated.online_cbf.arenas import Arena, arena, closest, crossing, doorway, join, log_uniform, mixture
from gated.online_cbf.filter import AgentState, SafetyFilter, Strength, barrier_rows, class_k, filtered_control
from gated.online_cbf.measures import Navigation, navigation
from gated.online_cbf.network import GraphTuner, Neighbourhood, Observation, observe
from gated.online_cbf.policies import constant, keep_right, nearer_first, random_strengths
from gated.online_cbf.rollout import Trajectory, Tuner, advance, initial_state, rollout
from gated.online_cbf.search import CrossEntropy, GridSearch, constant_score, cross_entropy, grid_search
from gated.online_cbf.training import Progress, Rewards, descend, ppo, returns, rewards

__all__ = [
    "AgentState",
    "Arena",
    "CrossEntropy",
    "GraphTuner",
    "GridSearch",
    "Navigation",
    "Neighbourhood",
    "Observation",
    "Progress",
    "Rewards",
    "SafetyFilter",
    "Strength",
    "Trajectory",
    "Tuner",
    "advance",
    "arena",
    "barrier_rows",
    "class_k",
    "closest",
    "constant",
    "constant_score",
    "cross_entropy",
    "crossing",
    "descend",
    "doorway",
    "filtered_control",
    "grid_search",
    "initial_state",
    "join",
    "keep_right",
    "log_uniform",
    "mixture",
    "navigation",
    "nearer_first",
    "observe",
    "ppo",
    "random_strengths",
    "returns",
    "rewards",
    "rollout",
]
