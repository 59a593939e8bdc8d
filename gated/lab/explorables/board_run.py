"""What the figure of the board computes: scripted rollouts on a hundred boards and on the reader's own."""

from __future__ import annotations

import random
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gated.commformer import messages
from gated.commformer.rivals import Sweep, empty_graph, full_graph
from gated.commformer.worlds import Pursuit, scout

SIZE, LIMIT, AGENTS, COUNT = 5, 20, 6, 100
"""Cells along a side, steps of an episode, agents at most, boards that means are taken over."""
KINDS = {"pcp": {"seers": 3, "blind": 3, "vision": 1}, "scout": {"seers": 1, "blind": 4, "vision": SIZE - 1}}


@cache
def boards() -> list[list[int]]:
    """Cells of six agents and of the prey, for each board."""
    draw = random.Random(8)
    return [draw.sample(range(SIZE**2), AGENTS + 1) for _ in range(COUNT)]


def place(kind: str, starts: list[list[int]], copies: int = 1) -> Pursuit:
    """The world with these starts, all of them as often as `copies` says."""
    batch = len(starts) * copies
    world = scout(batch, size=SIZE, limit=LIMIT) if kind == "scout" else Pursuit(batch, seers=3, blind=3, limit=LIMIT)
    cells = torch.tensor(starts).repeat(copies, 1)
    world.place(cells[:, : world.num_agents], cells[:, AGENTS])
    return world


class BoardFrame(NamedTuple):
    """A moment: where all are, who sees the prey, who knew of it, who knows after this step's messages, who is done."""

    cells: Tensor
    sees: Tensor
    knew: Tensor
    known: Tensor
    finished: Tensor


class BoardRun(NamedTuple):
    """Steps of each copy and whether it was solved; for each agent its unfinished steps and those in the dark."""

    steps: Tensor
    solved: Tensor
    cost: Tensor
    dark: Tensor
    frames: list[BoardFrame]


def rollout(world: Pursuit, graph: Tensor) -> BoardRun:
    """The library's sweep along a graph. In the dark: not done, and the prey not in view."""
    sweep, frames = Sweep(world, graph), list[BoardFrame]()
    cost, dark, steps = (torch.zeros_like(x, dtype=torch.int64) for x in (world.cells, world.cells, world.prey))

    def frame(knew: Tensor) -> BoardFrame:
        finished = world.reached & (world.captured | ~world.is_blind)
        return BoardFrame(world.cells, world.sees(), knew, sweep.known, finished)

    while world.time < world.limit and not world.done.all():
        knew, steps = sweep.known, steps + ~world.done
        actions = sweep()
        frames.append(frame(knew))
        dark += ~frames[-1].sees & ~frames[-1].finished
        cost += world.step(actions).reward < 0
    return BoardRun(steps, world.done, cost, dark, [*frames, frame(sweep.known)])


def worth(kind: str, graph: Tensor) -> list[float]:
    """Steps that an agent's own row saves it for each step in the dark, all others listening: what hearing pays."""
    n = len(graph)
    graphs = graph.repeat(n + 1, 1, 1)
    graphs[torch.arange(1, n + 1), torch.arange(n)] = 0
    run = rollout(place(kind, boards(), n + 1), graphs.repeat_interleave(COUNT, 0))
    cost, dark = run.cost.view(n + 1, COUNT, n).sum(1).tolist(), run.dark[:COUNT].sum(0).tolist()
    return [(cost[i + 1][i] - cost[0][i]) / max(1, dark[i]) for i in range(n)]


def means(kind: str, graph: Tensor, k: int, free: bool) -> dict[str, Any]:
    """Over all boards: steps, solved share and messages of the graph, and the steps with no edge and with all."""
    n = len(graph)
    graphs = torch.stack([graph, empty_graph(n).to(graph), full_graph(n).to(graph)])
    run = rollout(place(kind, boards(), 3), graphs.repeat_interleave(COUNT, 0))
    steps, listens = run.steps.view(3, COUNT).sum(1).tolist(), graph.sum(1) > 0
    sent = n * k * steps[0] if free else k * int(run.dark[:COUNT, listens].sum())
    solved = int(run.solved[:COUNT].sum()) / COUNT
    return {"steps": [s / COUNT for s in steps], "solved": solved, "messages": sent / COUNT}


def played(kind: str, start: list[int], graph: Tensor, listens: list[int], free: bool) -> dict[str, Any]:
    """One board, step by step. `free`: gates cost nothing and never shut; else they open in the dark."""
    run = rollout(place(kind, [start]), graph * torch.tensor(listens)[:, None])
    ear, sent, carried, news, frames = torch.tensor(listens, dtype=torch.bool), 0, 0, 0, []
    for t, frame in enumerate(run.frames):
        cells, sees, knew, known, finished = (x[0] for x in frame)
        end = t == len(run.frames) - 1
        opened = torch.zeros_like(ear) if end else torch.ones_like(ear) if free else ear & ~sees & ~finished
        crossing = (graph > 0) & opened[:, None]
        told = crossing & sees
        new = told & ~(knew | sees)[:, None]
        sent += int(messages(graph, opened.to(graph)))
        carried, news = carried + int(told.sum()), news + int(new.sum())
        hears = [[j for j, a in enumerate(row) if a > 0 and not end] for row in graph.tolist()]
        kinds = [[1 + int(told[i, j]) + int(new[i, j]) if opened[i] else 0 for j in row] for i, row in enumerate(hears)]
        frames.append({
            "cells": cells.tolist(), "sees": sees.int().tolist(), "open": opened.int().tolist(),
            "arrows": ["".join(map(str, row)) for row in kinds],
            "state": [2 if done else int(k) for done, k in zip(finished.tolist(), known.tolist(), strict=True)],
        })  # fmt: skip
    return {
        "steps": int(run.steps), "solved": int(run.solved), "messages": sent, "carried": carried, "news": news,
        "states": ["".join(str(f["state"][i]) for f in frames) for i in range(len(graph))],
        "opened": ["".join(str(f["open"][i]) for f in frames) for i in range(len(graph))],
        "frames": frames,
    }  # fmt: skip
