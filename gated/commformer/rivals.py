"""What a learned graph has to beat: fixed graphs, and a scripted pursuit on any of them.

A graph is what `sample_graph` returns: row i = receiver, column j = sender, zeros and ones, an empty diagonal, because
everybody knows what it sees itself. `Pursuit.oracle_graph` and `PermutationLookup.oracle_graph` are the graphs of
somebody who knows the world.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from gated.commformer.graph import check_agents, check_graph
from gated.commformer.worlds import CAPTURE, DOWN, LEFT, RIGHT, STAY, UP, Pursuit, World

MOST_GRAPHS = 1 << 20


def empty_graph(agents: int) -> Float[Tensor, "agents agents"]:
    """Nobody hears anybody: the only graph of a single agent."""
    return torch.zeros(agents, agents)


def full_graph(agents: int) -> Float[Tensor, "agents agents"]:
    """Everybody hears all others."""
    check_agents(agents)
    return 1 - torch.eye(agents)


def ring_graph(agents: int, k: int = 1) -> Float[Tensor, "agents agents"]:
    """Agent i hears the `k` that come after it, i + 1 to i + k, around."""
    _check_senders(agents, k)
    step = (torch.arange(agents) - torch.arange(agents)[:, None]) % agents
    return ((step >= 1) & (step <= k)).to(torch.get_default_dtype())


def random_graphs(count: int, agents: int, k: int, generator: torch.Generator) -> Float[Tensor, "count agents agents"]:
    """`count` graphs in which each row has `k` senders, drawn evenly."""
    _check_senders(agents, k)
    draw = torch.rand(count, agents, agents, generator=generator, device=generator.device)
    draw.diagonal(dim1=1, dim2=2).fill_(-1.0)
    return torch.zeros_like(draw).scatter_(-1, draw.topk(k).indices, 1.0)


def all_graphs(agents: int, k: int = 1) -> Float[Tensor, "graphs agents agents"]:
    """Every graph of `k` senders a row: C(N-1, k)^N of them, 1,024 for five agents and one sender.

    Raises:
        ValueError: if there are more than a million.
    """
    _check_senders(agents, k)
    count = math.comb(agents - 1, k) ** agents
    if count > MOST_GRAPHS:
        raise ValueError(f"agents={agents} and k={k} make {count} graphs; at most {MOST_GRAPHS} are listed")
    rows = torch.zeros(agents, math.comb(agents - 1, k), agents)
    for i in range(agents):
        for r, senders in enumerate(itertools.combinations([j for j in range(agents) if j != i], k)):
            rows[i, r, list(senders)] = 1
    choice = torch.cartesian_prod(*[torch.arange(rows.shape[1])] * agents).view(-1, agents)
    return rows[torch.arange(agents), choice]


class Sweep:
    """Searches until it knows where the prey is, then goes there; a player with a memory, for one episode.

    An agent knows once it, or somebody whom it hears, has had the prey in view. Until then it walks along lanes from
    whose cells the whole board comes into its window, beginning at their nearest corner, and around; a blind agent's
    lanes are all rows. It feels when it is held, and then captures.

    Args:
        world: after its reset.
        graph: who hears whom; by default nobody.
    """

    def __init__(
        self,
        world: Pursuit,
        graph: Float[Tensor, "agents agents"] | Float[Tensor, "batch agents agents"] | None = None,
    ) -> None:
        agents, device = world.num_agents, world.cells.device
        graph = empty_graph(agents) if graph is None else graph
        check_graph(graph)
        if graph.shape not in ((agents, agents), (world.batch, agents, agents)):
            raise ValueError(f"graph must have a row for each of {agents} agents, got shape {tuple(graph.shape)}")
        self.world = world
        self.hears = (graph.to(device) > 0) | torch.eye(agents, dtype=torch.bool, device=device)
        self.known = torch.zeros_like(world.reached)
        lanes = [_lanes(world.size, world.vision), _lanes(world.size, 0)]
        longest = max(len(lane) for lane in lanes)
        table = torch.tensor([lane + [lane[-1]] * (longest - len(lane)) for lane in lanes], device=device)
        self._lane = table[world.is_blind.long()]
        self._length = torch.tensor([len(lane) for lane in lanes], device=device)[world.is_blind.long()]
        rank = _distance(world.cells[..., None], self._lane, world.size) * longest
        self._next = (rank + torch.arange(longest, device=device)).argmin(-1)  # the first of the nearest

    def __call__(self) -> Int64[Tensor, "batch agents"]:
        """The actions of this step."""
        world = self.world
        self.known = self.known | (self.hears & world.sees()[:, None]).any(-1)
        agent = torch.arange(world.num_agents, device=world.cells.device)
        there = world.cells == self._lane[agent, self._next]
        self._next = (self._next + there) % self._length
        goal = torch.where(self.known, world.prey[:, None], self._lane[agent, self._next])
        down = goal // world.size - world.cells // world.size
        right = goal % world.size - world.cells % world.size
        actions = torch.full_like(goal, STAY)
        for way, sign in ((right, (LEFT, RIGHT)), (down, (UP, DOWN))):  # rows first, columns then
            actions = torch.where(way < 0, sign[0], torch.where(way > 0, sign[1], actions))
        return torch.where(world.reached, torch.where(world.is_blind, CAPTURE, STAY), actions)


class Finish(NamedTuple):
    """Steps until a copy was solved, `limit` if it was not, and whether it was."""

    steps: Int64[Tensor, " batch"]
    solved: Bool[Tensor, " batch"]


def play(world: Pursuit, act: Callable[[], Tensor]) -> Finish:
    """Plays from where `world` stands until all copies are solved or time is up: `play(world, Sweep(world, graph))`."""
    steps = torch.full_like(world.prey, world.time)
    while world.time < world.limit and not world.done.all():
        steps += ~world.done
        world.step(act())
    return Finish(steps, world.done)


def random_actions(world: World, generator: torch.Generator) -> Int64[Tensor, "batch agents"]:
    """One even draw for each agent."""
    shape = (world.batch, world.num_agents)
    return torch.randint(world.num_actions, shape, generator=generator, device=generator.device)


def _lanes(size: int, reach: int) -> list[int]:
    """The corners of a way to and fro on which windows of `reach` cover the board, a lane every 2 reach + 1 rows."""
    reach = min(reach, (size - 1) // 2)
    last = size - 1 - reach
    rows = [*range(reach, last, 2 * reach + 1), last]
    corners: list[int] = []
    for n, row in enumerate(rows):
        ends = (row * size + reach, row * size + last)
        corners += ends if n % 2 == 0 else ends[::-1]
    return list(dict.fromkeys(corners))


def _distance(a: Tensor, b: Tensor, size: int) -> Tensor:
    return (a // size - b // size).abs() + (a % size - b % size).abs()


def _check_senders(agents: int, k: int) -> None:
    check_agents(agents)
    if not 1 <= k < agents:
        raise ValueError(f"k must lie in [1, {agents - 1}] for {agents} agents (nobody is its own sender), got {k}")
