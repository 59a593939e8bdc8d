"""The chapter's study: a cohort of variants on one world, trained, and then asked everything on common starts.

    found = cohort({"kind": "lookup", "permutation": [1, 2, 0]}, {"ring": {"graph": "ring"}}, seeds=[0, 1], updates=100)
    found["ring"]["greedy"]["score"]                 of each seed, numbers that JSON can hold

All runs share their budget: network, rollouts, passes and seeds of the starting weights. They differ in what an `Arm`
holds, given here as a dictionary in which `graph` is a name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gated.commformer.graph import graph_from_indices, inclusion_probability, logit_gap
from gated.commformer.network import CommFormer
from gated.commformer.population import Arm, Cohort
from gated.commformer.ppo import PPO, Rollout
from gated.commformer.rivals import empty_graph, full_graph, random_graphs, ring_graph
from gated.commformer.worlds import PermutationLookup, Pursuit, scout

VERSION = 1
POINTS = 25
"""Of each curve."""
WORLDS: dict[str, Callable[..., Any]] = {"lookup": PermutationLookup, "pursuit": Pursuit, "scout": scout}


def world_of(description: Mapping[str, Any], copies: int) -> Any:
    """A world of `copies`: its `kind` and the options of that kind."""
    options = dict(description)
    return WORLDS[options.pop("kind")](copies, **options)


def graph_of(name: str, world: Any, k: int = 1) -> Tensor:
    """ "none", "full", "ring", "oracle", or "random-7": the eighth of a fixed list of random graphs."""
    agents = world.num_agents
    if name.startswith("random-"):
        which = int(name.removeprefix("random-"))
        return random_graphs(which + 1, agents, k, torch.Generator().manual_seed(2024))[which]
    makers = {
        "none": lambda: empty_graph(agents),
        "full": lambda: full_graph(agents),
        "ring": lambda: ring_graph(agents, k),
        "oracle": world.oracle_graph,
        "deaf": lambda: graph_from_indices(
            [
                [(i + 1) % agents] if i < world.seers else [world.seers + (i + 1 - world.seers) % world.blind]
                for i in range(agents)
            ]
        ),
    }
    return makers[name]()


def arm_of(name: str, options: Mapping[str, Any], world: Any) -> Arm:
    options = dict(options)
    if "graph" in options:
        options["graph"] = graph_of(options["graph"], world, options.get("k", 1))
    return Arm(name, **options)


def train(
    world: Mapping[str, Any],
    arms: Mapping[str, Mapping[str, Any]],
    seeds: Sequence[int],
    updates: int,
    *,
    copies: int = 64,
    network: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    freeze: int | None = None,
    early: tuple[int, float | int] | None = None,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> tuple[Cohort, Tensor]:
    """The trained cohort, and the score of each rollout [updates, runs].

    Args:
        world: see `world_of`.
        arms: what makes an `Arm`, by name.
        seeds: of the starting weights; the first is also that of all draws.
        updates: rollouts, each with `settings.epochs` passes.
        copies: of the world for each run.
        network: options of `CommFormer`; by default width 32 and the parallel decoder.
        settings: of `PPO`.
        freeze: after so many updates the edges stay as they are.
        early: (updates, price): so many updates at first have this price of listening, not the arm's.
        progress: may wrap the rounds, for a bar.
    """
    small = world_of(world, 1)
    sizes = (small.num_agents, small.observation_size, small.num_actions)
    options: dict[str, Any] = {"width": 32, "decoder": "parallel"} | dict(network or {})
    team = Cohort(
        lambda seed: CommFormer(*sizes, **options, seed=seed),
        [arm_of(name, arm, small) for name, arm in arms.items()],
        seeds,
        PPO(**({"epochs": 2, "groups": 8} | dict(settings or {}))),
    )
    large, generator = world_of(world, copies * team.runs), torch.Generator().manual_seed(seeds[0])
    scores, own = [], team.arms
    for update in progress(range(updates)):
        if early is not None:
            team.arms = tuple(replace(arm, penalty=early[1]) for arm in own) if update < early[0] else own
        if update == freeze:
            team.freeze_edges()
        scores.append(team.train(large, 1, generator)[0])
    return team, torch.stack(scores)


def play(team: Cohort, world: Mapping[str, Any], starts: int, *, greedy: bool, seed: int = 10_000) -> Rollout:
    """Every run from the same `starts`; actions are sampled, or the most probable ones."""
    generator = torch.Generator().manual_seed(seed)
    one, all_ = world_of(world, starts), world_of(world, starts * team.runs)
    one.reset(generator)
    again = lambda x: x.repeat(team.runs, *[1] * (x.ndim - 1))  # noqa: E731
    if isinstance(one, Pursuit):
        seen = all_.place(again(one.cells), again(one.prey))
    else:
        seen = all_.place(again(one.symbols), again(one.flags))
    return team.collect(all_, generator, greedy=greedy, observation=seen)


def cohort(
    world: Mapping[str, Any],
    arms: Mapping[str, Mapping[str, Any]],
    seeds: Sequence[int],
    updates: int,
    *,
    starts: int = 512,
    each: bool = False,
    **options: Any,
) -> dict[str, dict[str, Any]]:
    """What is asked of the arms, by name; each entry is a list over seeds.

    `curve` (mean score in `POINTS` blocks of updates); `sampled` and `greedy` play, each with score, steps, share of
    solved copies, messages a step and receive rate, and with `each` the steps of every start; `graph` (the senders of
    each row), `right` (rows that are the oracle's; where the arm has k senders), `gap` and `certainty` (mean over rows
    of the lead of the last sender, and of the greatest probability that a sender is drawn).
    """
    team, scores = train(world, arms, seeds, updates, **options)
    blocks = torch.stack([block.mean(0) for block in scores.tensor_split(min(POINTS, updates))], 1)
    graph, edges = team.graph(), team.edges.detach()
    known = world_of(world, 1)
    right = (graph == known.oracle_graph()).all(-1).sum(-1)
    certainty = inclusion_probability(edges, 1).amax(-1).mean(-1)
    columns: dict[str, Any] = {
        "curve": blocks,
        "graph": [[row.nonzero().flatten().tolist() for row in g] for g in graph],
        "right": right,
        "gap": logit_gap(edges, 1).mean(-1),
        "certainty": certainty,
    }
    plays = {}
    for greedy in (False, True):
        rollout = play(team, world, starts, greedy=greedy)
        plays["greedy" if greedy else "sampled"] = {
            "score": rollout.score.mean(1),
            "steps": rollout.steps.double().mean(1),
            "solved": rollout.done[:, -1].double().mean(1),
            "messages": rollout.messages_per_step,
            "receive": rollout.receive_rate,
        } | ({"each": rollout.steps} if each else {})
    found = {}
    for i, arm in enumerate(arms):
        runs = slice(i * len(seeds), (i + 1) * len(seeds))
        cut = lambda x, runs=runs: x[runs] if isinstance(x, list) else _short(x[runs])  # noqa: E731
        found[arm] = {name: cut(x) for name, x in columns.items()}
        found[arm] |= {how: {name: cut(x) for name, x in answers.items()} for how, answers in plays.items()}
    return found


def _short(x: Tensor) -> list[Any]:
    """As lists, numbers to five digits."""
    return x.tolist() if not x.is_floating_point() else (x.double() * 1e5).round().div(1e5).tolist()
