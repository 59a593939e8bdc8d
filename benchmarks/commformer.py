"""What two vectors save beside a tensor of relations, what a cache saves in decoding, and what training at once saves.

Cost model for B inputs, N agents, width d. Relation tensor: 2 B N^2 d^2 multiply-adds for its map and 3 B N^2 d numbers
at once, beside which q k and p v, 2 B N^2 d, hardly count. Two vectors: only the latter, and 3 B N^2 numbers for scores
and weights. Masked attention of PyTorch knows no relations: what remains of ours beside it is what they cost.

Choosing actions one agent after another computes all N rows N times without a cache and each row once with it, N^2 + N
pairs against N^3; for small N the number of operators counts instead, and it is the same.

`kB` in a row is the largest sum of tensors that live at one time within a call of ours, beyond its inputs, and
`kB_relation_tensor` that of the peer of this name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gated.commformer import PPO, Arm, Cohort, CommFormer, relation_attention, sample_graph, senders
from gated.commformer.rivals import random_actions, ring_graph
from gated.commformer.worlds import PermutationLookup, Pursuit, World
from gated.lab import bench
from gated.lab.parallel_env import parallel_env

Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


class PeakMemory(TorchDispatchMode):
    """The largest sum of bytes of tensors that were made within, and lived at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        known = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and x.untyped_storage()._cdata not in known:
                storage = x.untyped_storage()
                self.live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.live = {key: entry for key, entry in self.live.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return out


def peak_bytes(call: Callable[[], object]) -> int:
    with PeakMemory() as memory:
        call()
    return memory.peak


# Attention -----------------------------------------------------------------------------------------------------------


def two_vectors(q: Tensor, k: Tensor, v: Tensor, kinds: Tensor, relation: Tensor, graph: Tensor) -> Tensor:
    return relation_attention(q, (k, v), (k, v), kinds @ relation, graph)


def relation_tensor(q: Tensor, k: Tensor, v: Tensor, kinds: Tensor, relation: Tensor, graph: Tensor) -> Tensor:
    """A vector for each pair, mapped for each pair."""
    each = kinds[graph.long()] @ relation
    ra, rb = each.chunk(2, -1)
    scores = ((q[:, :, None] + ra) * (k[:, None] + rb)).sum(-1) / math.sqrt(q.shape[-1])
    hidden = (graph + torch.eye(graph.shape[-1])) == 0
    return scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v


def masked_sdpa(q: Tensor, k: Tensor, v: Tensor, kinds: Tensor, relation: Tensor, graph: Tensor) -> Tensor:
    seen = (graph + torch.eye(graph.shape[-1])) > 0
    return F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], attn_mask=seen[:, None])[:, 0]


def full_sdpa(q: Tensor, k: Tensor, v: Tensor, kinds: Tensor, relation: Tensor, graph: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]


def gathered(count: int, q: Tensor, k: Tensor, v: Tensor, kinds: Tensor, relation: Tensor, graph: Tensor) -> Tensor:
    """Only the keys and values of the `count` senders and of the agent itself, copied side by side."""
    seen = (graph + torch.eye(graph.shape[-1])).topk(count + 1).indices
    row = torch.arange(len(q))[:, None, None]
    scores = (q[:, :, None] * k[row, seen]).sum(-1) / math.sqrt(q.shape[-1])
    return (scores.softmax(-1)[..., None] * v[row, seen]).sum(-2)


def inputs(batch: int, agents: int, width: int) -> Inputs:
    """q, k, v, the two relation vectors, their map, and a graph for each input."""
    draw = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, batch, agents, width, generator=draw)
    kinds, relation = torch.randn(2, width, generator=draw), torch.randn(width, 2 * width, generator=draw) / width
    edges = torch.randn(batch, agents, agents, generator=draw)
    return q, k, v, kinds, relation, sample_graph(edges, senders(agents, 0.4), generator=None)


def forward(call: Callable[..., Tensor], x: Inputs) -> Tensor:
    with torch.no_grad():
        return call(*x)


def both(call: Callable[..., Tensor], x: Inputs) -> tuple[Tensor, ...]:
    """With the slopes of q, k, v and, where there are any, of what makes the relations."""
    leaves = [t.detach().requires_grad_() for t in x[:5]]
    return torch.autograd.grad(call(*leaves, x[5]).sum(), leaves, allow_unused=True)


def attention_races(report: bench.Report, batch: int, agents: int, width: int, quick: bool) -> None:
    x = inputs(batch, agents, width)
    cases = {
        "two vectors": two_vectors,
        "relation tensor": relation_tensor,
        "masked SDPA, no relations": masked_sdpa,
        "full SDPA, no relations": full_sdpa,
        "gather of k keys, no relations": partial(gathered, senders(agents, 0.4)),
    }
    for name, run in (("relation attention, forward", forward), ("relation attention, forward and backward", both)):
        kilobytes = [peak_bytes(partial(run, call, x)) // 1000 for call in (two_vectors, relation_tensor)]
        sizes = {"B": batch, "N": agents, "d": width, "k": senders(agents, 0.4)}
        sizes |= {"kB": kilobytes[0], "kB_relation_tensor": kilobytes[1]}
        calls = {case: partial(run, call, x) for case, call in cases.items()}
        without = {case: "it knows no relations" for case in cases if case.endswith("no relations")}
        for result in report.run(calls, rounds=6 if quick else 15, uncompared=without):
            report.race(name, sizes, result)


# Decoding ------------------------------------------------------------------------------------------------------------


def choose(network: CommFormer, observation: Tensor, graph: Tensor, cached: bool) -> Tensor:
    with torch.no_grad():
        return network(observation, graph, cached=cached).logits


def decoding_races(report: bench.Report, batch: int, agents: int, quick: bool) -> None:
    network = CommFormer(agents, 12, 5, width=64)
    observation = torch.randn(batch, agents, 12, generator=torch.Generator().manual_seed(0))
    graph = sample_graph(network.edges, senders(agents, 0.4), generator=None).detach()
    calls = {
        "keys and values kept": partial(choose, network, observation, graph, True),
        "all agents decoded again": partial(choose, network, observation, graph, False),
    }
    sizes = {"B": batch, "N": agents, "d": 64}
    for result in report.run(calls, rounds=6 if quick else 12, uncompared={}):
        report.race("choosing actions", sizes, result)


# Training ------------------------------------------------------------------------------------------------------------


def training_races(report: bench.Report, runs: int, copies: int, quick: bool) -> None:
    """One rollout and its update, for all runs at once and for one after another."""
    agents, draw = 5, torch.Generator().manual_seed(0)

    def people(count: int) -> Callable[[], object]:
        world = PermutationLookup(count * copies, tuple((i + 1) % agents for i in range(agents)))
        arms = [Arm("ring", graph=ring_graph(agents))]
        team = Cohort(
            lambda seed: CommFormer(agents, world.observation_size, world.num_actions, width=32, seed=seed),
            arms,
            range(count),
            PPO(epochs=1),
        )
        return partial(team.train, world, 1, draw)

    one = people(1)
    calls = {"all runs at once": people(runs), "one run after another": lambda: [one() for _ in range(runs)]}
    sizes = {"runs": runs, "B": copies, "N": agents, "d": 32}
    alone = {"one run after another": "each call trains further, with numbers drawn in another order"}
    for result in report.run(calls, rounds=6 if quick else 12, uncompared=alone):
        report.race("rollout and update", sizes, result)


# Worlds ---------------------------------------------------------------------------------------------------------------


def episode(world: World, actions: list[Tensor], generator: torch.Generator) -> float:
    """A reset and `limit` steps; the actions were drawn before."""
    world.reset(generator)
    for chosen in actions:
        transition = world.step(chosen)
    return float(transition.reward[0, 0])


def one_by_one(worlds: list[World], actions: list[Tensor], generator: torch.Generator) -> None:
    for copy, world in enumerate(worlds):
        episode(world, [chosen[copy : copy + 1] for chosen in actions], generator)


def by_dictionaries(envs: list, actions: list[list[list[int]]]) -> None:
    """The same through PettingZoo: an environment for each copy, a dictionary for each step."""
    for env, script in zip(envs, actions, strict=True):
        env.reset()
        for chosen in script:
            if not env.agents:
                break
            env.step(dict(zip(env.possible_agents, chosen, strict=True)))


def drawn(world: World) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [random_actions(world, generator) for _ in range(world.limit)]


def growth(report: bench.Report, case: str, worlds: dict[int, World], over: str, rounds: int) -> None:
    """The sizes take turns in one race."""
    generator = torch.Generator().manual_seed(0)
    calls = {str(size): partial(episode, world, drawn(world), generator) for size, world in worlds.items()}
    (result,) = report.run(calls, rounds=rounds, min_ms=5)
    report.scaling(case, list(worlds), [result.median(size) for size in calls], over=over, settled=True)


def world_rows(report: bench.Report, quick: bool) -> None:
    """Steps of the worlds: what a step costs against copies and agents, and batched beside one copy after the other.

    Every row is of whole episodes, the reset among them: steps a second = copies * steps / time, `steps_s` in the race.
    """
    generator = torch.Generator().manual_seed(0)
    # no 64 among the copies: that is the race below
    rounds, batches = (8, (48, 192, 768)) if quick else (12, (12, 48, 192, 768, 3072))
    makers = {
        "lookup, 5 agents": lambda copies: PermutationLookup(copies, [1, 2, 3, 4, 0]),
        "pursuit, 3 agents": Pursuit,
        "pursuit, 6 agents": partial(Pursuit, seers=3, blind=3),
        "pursuit, 3 agents, released observation": partial(Pursuit, form="released"),
    }
    for name, make in list(makers.items())[: 2 if quick else None]:
        growth(report, f"world, an episode: {name}", {copies: make(copies) for copies in batches}, "B", rounds)
    crowd = (2, 4, 8) if quick else (2, 4, 8, 16, 32)
    worlds: dict[int, World] = {2 * blind: Pursuit(1024, size=10, seers=blind, blind=blind) for blind in crowd}
    growth(report, "world, an episode: pursuit, 1,024 copies of 10 x 10", worlds, "N", rounds)

    copies = 64
    world = Pursuit(copies)
    actions = drawn(world)
    scripts = torch.stack(actions, 1).tolist()
    envs = [parallel_env(Pursuit(1)) for _ in range(copies)]
    calls: dict[str, Callable[[], object]] = {
        "copies at once": partial(episode, world, actions, generator),
        "one copy after the other": partial(one_by_one, [Pursuit(1)] * copies, actions, generator),
        "PettingZoo, one environment a copy": partial(by_dictionaries, envs, scripts),
    }
    starts = dict.fromkeys(list(calls)[1:], "each episode draws where it starts")
    (result,) = report.run(calls, rounds=6 if quick else 12, warmup=1, uncompared=starts)
    rate = round(copies * world.limit / result.median("copies at once") * 1e3)
    sizes = {"B": copies, "N": world.num_agents, "steps": world.limit, "steps_s": rate}
    report.race("world, an episode", sizes, result)


def rows(quick: bool = False) -> list[dict]:
    """All rows of build/bench.json for this chapter; `quick` takes fewer sizes and rounds."""
    report = bench.Report("commformer", tries=1 if quick else 3)
    for agents in (27,) if quick else (5, 10, 27):
        attention_races(report, 32 if quick else 128, agents, 64, quick)
        decoding_races(report, 32 if quick else 64, agents, quick)
    world_rows(report, quick)
    training_races(report, 16, 32, quick)
    if not quick:
        training_races(report, 40, 128, quick)
    return report.rows
