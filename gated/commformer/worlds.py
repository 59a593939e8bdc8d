"""Worlds for agents that may talk: many copies at once, in torch, all of one length.

    observation = world.reset(generator)            # (batch, agents, features), on the generator's device
    observation, reward, done, truncated = world.step(actions)

A copy that is done stays as it is and pays nothing until the next reset, so that a batch is a plain block of
`limit` steps; `done` says which of them count. `place` starts from states that the caller chose, a row for each copy:
the same starts for every rival, or a board that a reader has drawn.

`PermutationLookup` is ours, and its optimum is known. `Pursuit` follows the rules of the released
predator-capture-prey and predator-prey games (`charleshsc/CommFormer`, after IC3Net); the clock, the names of the
agents, the compact observation and the scout are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.functional import one_hot

from gated.commformer.graph import graph_from_indices
from gated.gates._validation import check_choice

Form = Literal["compact", "released"]

STEP_COST = 0.05
UP, RIGHT, DOWN, LEFT, STAY, CAPTURE = range(6)
ROW_MOVES = (-1, 0, 1, 0, 0, 0)
COLUMN_MOVES = (0, 1, 0, -1, 0, 0)


class Transition(NamedTuple):
    """What a step leads to.

    `done`: the task is solved, nothing follows. `truncated`: the clock stopped a copy that is not solved, so the
    value of `observation` is to be added (bootstrapped). Both are false before the last step of an unsolved copy.
    """

    observation: Float[Tensor, "batch agents features"]
    reward: Float[Tensor, "batch agents"]
    done: Bool[Tensor, " batch"]
    truncated: Bool[Tensor, " batch"]


@runtime_checkable
class World(Protocol):
    """What the worlds share. `limit`: steps of an episode. `bounds`: between what an observation's numbers lie."""

    batch: int
    num_agents: int
    num_actions: int
    observation_size: int
    limit: int
    bounds: tuple[float, float]

    def reset(self, generator: torch.Generator) -> Float[Tensor, "batch agents features"]: ...

    def step(self, actions: Int64[Tensor, "batch agents"]) -> Transition: ...


class PermutationLookup:
    """A game of one step: agent i sees its own symbol x_i and is paid 1 for naming the symbol of agent π(i).

    x_i is uniform over `symbols`. With `flag_rate` ρ below 1 each agent also sees a private flag f_i ~ Bern(ρ): with
    f_i = 1 it is to name x_π(i) as before, with f_i = 0 its own x_i, so that listening is worth nothing.

    An observation is x_i one-hot; then, with `ids`, i one-hot; then, with flags, f_i one-hot.

    Args:
        batch: copies of the game.
        permutation: π, without a fixed point.
        symbols: K, how many there are, and how many actions.
        ids: whether an observation says whose it is. Without, what is heard from several agents is a bag.
        flag_rate: ρ in [0, 1]; 1 is the game without flags.

    Raises:
        ValueError: if `permutation` is none or has a fixed point (so: a single agent), or a number is out of range.
    """

    limit = 1
    bounds = (0.0, 1.0)

    def __init__(
        self,
        batch: int,
        permutation: Sequence[int],
        symbols: int = 4,
        *,
        ids: bool = True,
        flag_rate: float | int = 1.0,
    ) -> None:
        _at_least("batch", batch, 1)
        _at_least("symbols", symbols, 2)
        check_derangement(permutation)
        if not 0 <= flag_rate <= 1:
            raise ValueError(f"flag_rate must be a probability in [0, 1], got {flag_rate}")
        self.batch, self.ids, self.flag_rate = batch, ids, flag_rate
        self.permutation = tuple(permutation)
        self.num_agents, self.num_actions = len(self.permutation), symbols
        self.observation_size = symbols + (self.num_agents if ids else 0) + (2 if flag_rate < 1 else 0)
        self.over = True

    def reset(self, generator: torch.Generator) -> Float[Tensor, "batch agents features"]:
        shape, device = (self.batch, self.num_agents), generator.device
        symbols = torch.randint(self.num_actions, shape, generator=generator, device=device)
        if self.flag_rate == 1:
            return self.place(symbols)
        return self.place(symbols, torch.rand(shape, generator=generator, device=device) < self.flag_rate)

    def place(
        self, symbols: Int64[Tensor, "batch agents"], flags: Bool[Tensor, "batch agents"] | None = None
    ) -> Float[Tensor, "batch agents features"]:
        """Starts from these symbols and flags (by default all set)."""
        _whole_numbers("symbols", symbols, (self.batch, self.num_agents), self.num_actions)
        flags = torch.ones_like(symbols, dtype=torch.bool) if flags is None else flags
        if flags.shape != symbols.shape or flags.dtype != torch.bool:
            raise ValueError(
                f"flags must be bool, shape {tuple(symbols.shape)}; got {flags.dtype} {tuple(flags.shape)}"
            )
        if self.flag_rate == 1 and not flags.all():
            raise ValueError("flags must all be set in a game without them (flag_rate = 1)")
        self.symbols, self.flags, self.over = symbols, flags, False
        self.target = torch.where(flags, symbols[:, list(self.permutation)], symbols)
        parts = [one_hot(symbols, self.num_actions)]
        if self.ids:
            names = torch.eye(self.num_agents, dtype=torch.int64, device=symbols.device)
            parts.append(names.expand(self.batch, -1, -1))
        if self.flag_rate < 1:
            parts.append(one_hot(flags.long(), 2))
        self.observation = torch.cat(parts, -1).to(torch.get_default_dtype())
        return self.observation

    def step(self, actions: Int64[Tensor, "batch agents"]) -> Transition:
        if self.over:
            raise RuntimeError("the game is over or has not begun: call reset")
        _whole_numbers("actions", actions, (self.batch, self.num_agents), self.num_actions)
        self.over = True
        done = torch.ones(len(actions), dtype=torch.bool, device=actions.device)
        reward = (actions == self.target).to(self.observation.dtype)
        return Transition(self.observation, reward, done, ~done)

    def oracle_graph(self) -> Float[Tensor, "agents agents"]:
        """Row i hears π(i) and nobody else."""
        return graph_from_indices([[j] for j in self.permutation])


class Pursuit:
    """A board on which all agents have to come to a prey that stands still; some of them are blind.

    The first `seers` agents see the cells at most `vision` away, the `blind` ones only their own cell's number. All
    start on cells of their own. Actions 0 to 3 move up, right, down and left, against a wall nothing happens; 4 stays;
    5, if there are blind agents, captures. Who comes upon the prey is held there; a blind agent then has to play 5.
    Each step costs an agent 0.05 unless it stands on the prey and, if blind, has captured it. A copy is done when all
    agents have.

    `form="released"` is the observation of the released code: for each cell of the window the cell's number one-hot,
    then how many capturers, "outside", prey and predators are there; the blind have -1 in these four. `"compact"` says
    the same about the prey in fewer numbers: own cell, role, and where in the window the prey is (or that it is not
    there, which is all that a blind agent is told), each one-hot. Then follow, in both forms, i one-hot with `ids` and,
    with `clock`, the step modulo `limit`, one-hot: a policy without memory cannot sweep a board otherwise. As the clock
    begins anew where time cuts an episode off, the value that is bootstrapped there is one that is trained.

    Args:
        batch: copies of the board.
        size: cells along each side.
        seers, blind: how many agents of each kind.
        vision: how far the seers see, in king's moves.
        limit: steps until time is up.
        form: "compact" or "released".
        ids, clock: what is appended to the observation.

    Raises:
        ValueError: if a number is out of range, nobody sees, or agents and prey have no cells of their own.
    """

    def __init__(
        self,
        batch: int,
        *,
        size: int = 5,
        seers: int = 2,
        blind: int = 1,
        vision: int = 1,
        limit: int = 20,
        form: Form = "compact",
        ids: bool = True,
        clock: bool = True,
    ) -> None:
        lowest = {"batch": 1, "size": 2, "seers": 1, "blind": 0, "vision": 0, "limit": 1}
        for (name, low), value in zip(lowest.items(), (batch, size, seers, blind, vision, limit), strict=True):
            _at_least(name, value, low)
        if seers + blind >= size**2:
            raise ValueError(
                f"seers + blind must be below size * size = {size**2}, so that agents and prey start on "
                f"cells of their own; got {seers + blind}"
            )
        check_choice("form", form, get_args(Form))
        self.batch, self.size, self.seers, self.blind = batch, size, seers, blind
        self.vision, self.limit, self.form, self.ids, self.clock = vision, limit, form, ids, clock
        self.num_agents = seers + blind
        self.num_actions = 6 if blind else 5
        self.bounds = (0.0, 1.0) if form == "compact" else (-1.0, float(self.num_agents))
        window = (2 * vision + 1) ** 2
        self._body = size**2 + 2 + window + 1 if form == "compact" else window * (size**2 + 4)
        self.observation_size = self._body + (self.num_agents if ids else 0) + (limit if clock else 0)
        self.time = limit

    def reset(self, generator: torch.Generator) -> Float[Tensor, "batch agents features"]:
        draw = torch.rand(self.batch, self.size**2, generator=generator, device=generator.device)
        cells = draw.topk(self.num_agents + 1).indices  # the largest of equal draws, in order: a random choice of cells
        return self.place(cells[:, :-1], cells[:, -1])

    def place(
        self, cells: Int64[Tensor, "batch agents"], prey: Int64[Tensor, " batch"]
    ) -> Float[Tensor, "batch agents features"]:
        """Starts with the agents on `cells` and the prey on `prey` (row * size + column)."""
        _whole_numbers("cells", cells, (self.batch, self.num_agents), self.size**2)
        _whole_numbers("prey", prey, (self.batch,), self.size**2)
        taken = torch.cat((cells, prey[:, None]), 1).sort().values
        if (taken.diff() == 0).any():
            where = int((taken.diff() == 0).any(1).nonzero()[0])
            raise ValueError(f"cells and prey must all differ, or starts overlap: they do in copy {where}")
        device = cells.device
        self.cells, self.prey, self.time = cells, prey, 0
        self.is_blind = torch.arange(self.num_agents, device=device) >= self.seers
        self.reached = torch.zeros_like(cells, dtype=torch.bool)
        self.captured = torch.zeros_like(self.reached)
        self.done = torch.zeros_like(prey, dtype=torch.bool)
        self._moves = torch.tensor((ROW_MOVES, COLUMN_MOVES), device=device)
        return self._observe()

    def step(self, actions: Int64[Tensor, "batch agents"]) -> Transition:
        if self.time >= self.limit:
            raise RuntimeError("time is up or nothing has begun: call reset")
        _whole_numbers("actions", actions, (self.batch, self.num_agents), self.num_actions)
        self.captured = self.captured | (self.reached & self.is_blind & (actions == CAPTURE))
        rows, columns = self._moves[:, actions] + torch.stack((self.cells // self.size, self.cells % self.size))
        moved = rows.clamp(0, self.size - 1) * self.size + columns.clamp(0, self.size - 1)
        self.cells = torch.where(self.reached, self.cells, moved)
        self.reached = self.cells == self.prey[:, None]
        finished = self.reached & (self.captured | ~self.is_blind)
        reward = torch.where(finished, 0.0, -STEP_COST)
        self.done = finished.all(1)
        self.time += 1
        cut = self.time >= self.limit
        return Transition(self._observe(), reward, self.done, ~self.done if cut else torch.zeros_like(self.done))

    def sees(self) -> Bool[Tensor, "batch agents"]:
        """Who has the prey in its window now."""
        down, right = self._offsets(self.prey[:, None])
        return (torch.maximum(down.abs(), right.abs()) <= self.vision) & ~self.is_blind

    def oracle_graph(self, k: int = 1) -> Float[Tensor, "agents agents"]:
        """Each row hears the first `k` others: seers, and with k = 1 the same seer for all.

        All who depend on one seer learn together; spread over several, the last of them learns when the last seer does.
        """
        if not 1 <= k < self.num_agents:
            raise ValueError(f"k must lie in [1, {self.num_agents - 1}] for {self.num_agents} agents, got {k}")
        agents = range(self.num_agents)
        return graph_from_indices([[j for j in agents if j != i][:k] for i in agents])

    def _offsets(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        """How many rows below and columns to the right of each agent `cells` lie."""
        return cells // self.size - self.cells // self.size, cells % self.size - self.cells % self.size

    def _observe(self) -> Tensor:
        states, agents = self.cells.shape
        device = self.cells.device
        observation = torch.zeros(states, agents, self.observation_size, device=device)
        ones = []
        if self.form == "compact":
            down, right = self._offsets(self.prey[:, None])
            width = 2 * self.vision + 1
            spot = (down + self.vision) * width + right + self.vision
            ones += [self.cells, self.size**2 + self.is_blind.long().expand(states, agents)]
            ones.append(self.size**2 + 2 + torch.where(self.sees(), spot, width**2))
        else:
            observation[..., : self._body] = self._windows()
        at = self._body
        if self.ids:
            ones.append(at + torch.arange(agents, device=device).expand(states, agents))
            at += agents
        if self.clock:
            ones.append(torch.full_like(self.cells, at + self.time % self.limit))
        return observation.scatter_(-1, torch.stack(ones, -1), 1.0) if ones else observation

    def _windows(self) -> Tensor:
        """The released observation: (batch, agents, window * (size * size + 4))."""
        states = len(self.cells)
        v, cells, device = self.vision, self.size**2, self.cells.device
        board = torch.zeros(states, (self.size + 2 * v) ** 2, cells + 4, device=device)
        numbers = torch.full((self.size + 2 * v, self.size + 2 * v), cells + 1, device=device)
        numbers[v : v + self.size, v : v + self.size] = torch.arange(cells, device=device).view(self.size, self.size)
        board.scatter_(-1, numbers.view(1, -1, 1).expand(states, -1, 1), 1.0)
        things = torch.cat((self.cells, self.prey[:, None]), 1)
        kinds = torch.cat((torch.where(self.is_blind, cells, cells + 3), torch.tensor([cells + 2], device=device)))
        spots = (things // self.size + v) * (self.size + 2 * v) + things % self.size + v
        flat = board.view(states, -1)
        flat.scatter_add_(1, spots * (cells + 4) + kinds, torch.ones_like(spots, dtype=board.dtype))
        reach = torch.arange(2 * v + 1, device=device)
        window = (reach[:, None] * (self.size + 2 * v) + reach).flatten()
        corner = self.cells // self.size * (self.size + 2 * v) + self.cells % self.size
        seen = board[torch.arange(states, device=device)[:, None, None], corner[..., None] + window]
        seen[:, self.seers :, :, cells:] = -1.0
        return seen.flatten(2)


def predator_prey(batch: int, predators: int = 3, **options: Any) -> Pursuit:
    """Predator-prey: everybody sees. Over random starts all are alike, so who hears whom can hardly matter."""
    return Pursuit(batch, **{"seers": predators, "blind": 0} | options)


def scout(batch: int, blind: int = 4, size: int = 5, **options: Any) -> Pursuit:
    """Agent 0 sees the whole board, the others nothing: the only edges that help a blind agent lead to agent 0."""
    return Pursuit(batch, **{"size": size, "seers": 1, "blind": blind, "vision": size - 1} | options)


def check_derangement(permutation: Sequence[int]) -> None:
    """Two agents at least, each number once, none at its own place."""
    if len(permutation) < 2 or sorted(permutation) != list(range(len(permutation))):
        raise ValueError(f"permutation must be one of 0 to N - 1 with N at least 2 agents, got {list(permutation)}")
    fixed = [i for i, j in enumerate(permutation) if i == j]
    if fixed:
        raise ValueError(f"permutation must move everybody: agents {fixed} would look up themselves")


def _at_least(name: str, value: int, low: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ValueError(f"{name} must be a whole number of at least {low}, got {value!r}")


def _whole_numbers(name: str, x: Tensor, shape: tuple[int, ...], below: int) -> None:
    if x.dtype != torch.int64 or x.shape != shape:
        raise ValueError(f"{name} must be int64, shape {shape}; got {x.dtype} {tuple(x.shape)}")
    low, high = (int(bound) for bound in x.aminmax())
    if low < 0 or high >= below:
        raise ValueError(f"{name} must lie in 0 to {below - 1}, got values from {low} to {high}")
