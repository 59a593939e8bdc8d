"""The worlds against slow ones, a copy at a time, written from the rules; and what the rules imply."""

import hashlib
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gated.commformer.rivals import Sweep, full_graph, play, random_actions
from gated.commformer.worlds import (
    CAPTURE,
    STAY,
    PermutationLookup,
    Pursuit,
    Transition,
    World,
    predator_prey,
    scout,
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def hot(index: int, size: int) -> list[float]:
    return [float(index == i) for i in range(size)]


class SlowPursuit:
    """One board in plain Python."""

    def __init__(self, world, cells, prey):
        self.w, n = world, world.size
        self.at = [divmod(c, n) for c in cells]
        self.prey = divmod(prey, n)
        self.held = [False] * len(cells)
        self.captured = [False] * len(cells)
        self.time, self.over = 0, False

    def blind(self, i):
        return i >= self.w.seers

    def ready(self, i):
        return self.held[i] and (self.captured[i] or not self.blind(i))

    def step(self, actions):
        agents = range(len(self.at))
        if self.over:
            pays = [0.0 for _ in agents]
        else:
            for i, action in enumerate(actions):
                row, column = self.at[i]
                if self.held[i]:
                    if action == 5 and self.blind(i):
                        self.captured[i] = True
                    continue
                if action == 0 and row > 0:
                    row -= 1
                if action == 1 and column < self.w.size - 1:
                    column += 1
                if action == 2 and row < self.w.size - 1:
                    row += 1
                if action == 3 and column > 0:
                    column -= 1
                self.at[i] = (row, column)
            for i in agents:
                if self.at[i] == self.prey:
                    self.held[i] = True
            pays = [0.0 if self.ready(i) else -0.05 for i in agents]
            self.over = all(self.ready(i) for i in agents)
        self.time += 1
        return pays, self.over, self.time == self.w.limit and not self.over

    def observe(self, i):
        numbers = self.compact(i) if self.w.form == "compact" else self.released(i)
        if self.w.ids:
            numbers += hot(i, len(self.at))
        if self.w.clock:
            numbers += hot(0 if self.time == self.w.limit else self.time, self.w.limit)
        return numbers

    def compact(self, i):
        n, v = self.w.size, self.w.vision
        row, column = self.at[i]
        window = [(row + a, column + b) for a in range(-v, v + 1) for b in range(-v, v + 1)]
        where = [float(cell == self.prey and not self.blind(i)) for cell in window]
        return hot(row * n + column, n * n) + hot(int(self.blind(i)), 2) + where + [float(not any(where))]

    def released(self, i):
        n, v = self.w.size, self.w.vision
        numbers = []
        for a, b in itertools.product(range(-v, v + 1), repeat=2):
            row, column = self.at[i][0] + a, self.at[i][1] + b
            inside = 0 <= row < n and 0 <= column < n
            numbers += hot(row * n + column if inside else -1, n * n)
            capturers = sum(at == (row, column) for at in self.at[self.w.seers :])
            predators = sum(at == (row, column) for at in self.at[: self.w.seers])
            kinds = [capturers, float(not inside), float((row, column) == self.prey), predators]
            numbers += [-1.0] * 4 if self.blind(i) else [float(k) for k in kinds]
        return numbers


# Five games of the released code (`charleshsc/CommFormer`, commit c6cd65e, its two environments, mode "mixed"), played
# once elsewhere: (size, seers, blind, vision), cells, prey; the actions of each step; who paid; and the start of the
# SHA-256 of all observations as bytes.
RELEASED = [
    (
        (5, 2, 1, 1),
        [5, 2, 19],
        16,
        "123 323 133 125 245 255 244 055 540 331",
        "111 111 111 100 100 100 100 100 100 000",
        "f1f5ca27a06e616b",
    ),
    (
        (5, 3, 3, 1),
        [14, 13, 17, 3, 21, 10],
        18,
        "401201 224502 324221 244213 144512 444550 442551 443521 443505",
        "110111 110111 000111 000111 000011 000001 000001 000001 000000",
        "a163f5927917ec5e",
    ),
    ((5, 3, 0, 1), [14, 0, 17], 6, "000 340 321 313 014 443", "111 111 111 001 001 000", "c59347c1b1cf4da0"),
    ((4, 1, 2, 2), [7, 13, 4], 1, "000 301 305 411 130 555", "111 111 010 010 010 000", "fc1ec24b3b39e97d"),
    (
        (3, 2, 2, 0),
        [3, 4, 6, 2],
        8,
        "2112 1415 1353 2052 4251 4255 4455 4151",
        "1111 1111 0101 0101 0101 0100 0100 0000",
        "4bbebf8177c4c270",
    ),
]


@pytest.mark.parametrize(("board", "cells", "prey", "moves", "pays", "digest"), RELEASED)
def test_plays_as_the_released_code_did(board, cells, prey, moves, pays, digest):
    size, seers, blind, vision = board
    world = Pursuit(1, size=size, seers=seers, blind=blind, vision=vision, form="released", ids=False, clock=False)
    found = hashlib.sha256()
    found.update(world.place(torch.tensor([cells]), torch.tensor([prey])).to(torch.int8).numpy().tobytes())
    for t, (actions, paid) in enumerate(zip(moves.split(), pays.split(), strict=True)):
        observation, reward, done, _ = world.step(torch.tensor([[int(a) for a in actions]]))
        found.update(observation.to(torch.int8).numpy().tobytes())
        torch.testing.assert_close(reward[0], torch.tensor([-0.05 * int(p) for p in paid]))
        assert bool(done) == (t + 1 == len(moves.split()))
    assert found.hexdigest().startswith(digest)


@st.composite
def boards(draw):
    size = draw(st.integers(2, 4))
    seers = draw(st.integers(1, 2))
    return {
        "size": size,
        "seers": seers,
        "blind": draw(st.integers(0, min(2, size**2 - 1 - seers))),
        "vision": draw(st.integers(0, 2)),
        "limit": draw(st.integers(1, 9)),
        "form": draw(st.sampled_from(["compact", "released"])),
        "ids": draw(st.booleans()),
        "clock": draw(st.booleans()),
    }


@given(boards(), st.integers(0, 2**31))
def test_pursuit_is_the_slow_one(options, seed):
    """Half of the moves are those of a player who searches, so that preys are found and captured."""
    generator, copies = seeded(seed), 5
    world = Pursuit(copies, **options)
    observation = world.reset(generator)
    slow = [SlowPursuit(world, c.tolist(), int(p)) for c, p in zip(world.cells, world.prey, strict=True)]
    player = Sweep(world, full_graph(world.num_agents) if world.num_agents > 1 else None)
    agents = range(world.num_agents)
    assert observation.tolist() == [[b.observe(i) for i in agents] for b in slow]
    for _ in range(world.limit):
        chosen = torch.rand(copies, world.num_agents, generator=generator) < 0.7
        actions = torch.where(chosen, player(), random_actions(world, generator))
        observation, reward, done, truncated = world.step(actions)
        pays, overs, cuts = zip(*(b.step(a) for b, a in zip(slow, actions.tolist(), strict=True)), strict=True)
        torch.testing.assert_close(reward, torch.tensor(pays), rtol=0, atol=0)
        assert done.tolist() == list(overs)
        assert truncated.tolist() == list(cuts)
        assert observation.tolist() == [[b.observe(i) for i in agents] for b in slow]


@given(
    st.permutations(range(4)).filter(lambda p: all(i != j for i, j in enumerate(p))),
    st.integers(2, 4),
    st.booleans(),
    st.sampled_from([0, 0.3, 1]),
    st.integers(0, 2**31),
)
def test_lookup_is_the_slow_one(permutation, symbols, ids, rate, seed):
    generator = seeded(seed)
    world = PermutationLookup(6, permutation, symbols, ids=ids, flag_rate=rate)
    observation = world.reset(generator)
    actions = random_actions(world, generator)
    after, reward, done, truncated = world.step(actions)
    for b, i in itertools.product(range(6), range(4)):
        x, f = world.symbols[b].tolist(), world.flags[b].tolist()
        expected = hot(x[i], symbols) + (hot(i, 4) if ids else []) + (hot(int(f[i]), 2) if rate < 1 else [])
        assert observation[b, i].tolist() == after[b, i].tolist() == expected
        assert float(reward[b, i]) == (int(actions[b, i]) == (x[permutation[i]] if f[i] else x[i]))
    assert done.all() and not truncated.any()
    if rate in (0, 1):
        assert (world.flags == bool(rate)).all()


def test_flags_come_at_their_rate():
    world = PermutationLookup(20_000, [1, 2, 3, 0], flag_rate=0.25)
    world.reset(seeded(0))
    assert abs(float(world.flags.float().mean()) - 0.25) < 4 * (0.25 * 0.75 / 80_000) ** 0.5
    share = torch.bincount(world.symbols.flatten(), minlength=4) / 80_000
    assert (share - 0.25).abs().max() < 4 * (0.25 * 0.75 / 80_000) ** 0.5


def worlds() -> list[World]:
    return [
        Pursuit(8),
        Pursuit(8, seers=3, blind=3, form="released"),
        predator_prey(8, form="released", vision=0),
        scout(8, size=4, limit=7),
        PermutationLookup(8, [1, 2, 0]),
        PermutationLookup(8, [1, 0], flag_rate=0.5, ids=False),
    ]


@pytest.mark.parametrize("number", range(6))
def test_interface(number):
    world, twin = worlds()[number], worlds()[number]
    assert isinstance(world, World)
    for seed in (3, 3, 4):
        first = world.reset(seeded(seed))
        assert first.shape == (8, world.num_agents, world.observation_size)
        assert torch.equal(first, twin.reset(seeded(seed)))
        generator = seeded(1)
        for t in range(world.limit):
            actions = random_actions(world, generator)
            transition = world.step(actions)
            assert isinstance(transition, Transition)
            assert all(torch.equal(a, b) for a, b in zip(transition, twin.step(actions), strict=True))
            assert transition.observation.shape == first.shape
            assert transition.observation.min() >= world.bounds[0] and transition.observation.max() <= world.bounds[1]
            assert not (transition.done & transition.truncated).any()
            assert t + 1 < world.limit or (transition.done | transition.truncated).all()
            assert t + 1 == world.limit or not transition.truncated.any()
        with pytest.raises(RuntimeError, match="reset"):
            world.step(actions)
    assert not torch.equal(world.reset(seeded(3)), world.reset(seeded(4)))


def test_sizes_of_the_sheet():
    assert Pursuit(1, form="released", ids=False, clock=False).observation_size == 261
    assert Pursuit(1, ids=False, clock=False).observation_size == 25 + 2 + 9 + 1
    assert (Pursuit(1).num_actions, predator_prey(1).num_actions) == (6, 5)
    board = scout(1)
    assert (board.num_agents, board.seers, board.blind) == (5, 1, 4)
    board.reset(seeded(0))
    assert board.sees().tolist() == [[True, False, False, False, False]]


def test_starts_are_even():
    """Each place of each agent and of the prey is 1/9 of the draws, and no two ever share one."""
    world = Pursuit(18_000, size=3, seers=1, blind=1)
    world.reset(seeded(0))
    drawn = torch.cat((world.cells, world.prey[:, None]), 1)
    expected = 18_000 / 9
    for column in drawn.T:
        chi2 = ((torch.bincount(column, minlength=9) - expected) ** 2 / expected).sum()
        assert chi2 < 26.1  # the 0.999 quantile with 8 degrees of freedom
    pairs = torch.bincount(drawn[:, 0] * 9 + drawn[:, 2], minlength=81).view(9, 9)
    assert (pairs.diagonal() == 0).all()
    others = pairs[~torch.eye(9, dtype=torch.bool)]
    assert ((others - 250) ** 2 / 250).sum() < 113  # 0.999 of 71 degrees of freedom


def test_an_episode_by_hand():
    """A seer two cells and a blind agent one cell from the prey in the middle of a board of 3 x 3."""
    world = Pursuit(1, size=3, seers=1, blind=1, limit=6)
    world.place(torch.tensor([[0, 3]]), torch.tensor([4]))
    costs = []
    script = [
        [1, 1],  # the seer goes right; the blind agent comes upon the prey
        [5, 3],  # 5 is nothing to a seer; the blind agent is held
        [2, 4],  # the seer arrives and pays no more
        [0, CAPTURE],  # it is held too; the capture ends the game
        [0, 0],  # nothing moves, nobody pays
    ]
    cells = []
    for actions in script:
        _, reward, done, truncated = world.step(torch.tensor([actions]))
        costs.append([round(float(r), 3) for r in reward[0]])
        cells.append(world.cells[0].tolist())
        assert not truncated.any()
        assert bool(done) == (len(costs) >= 4)
    assert costs == [[-0.05, -0.05], [-0.05, -0.05], [0.0, -0.05], [0.0, 0.0], [0.0, 0.0]]
    assert cells == [[1, 4], [1, 4], [4, 4], [4, 4], [4, 4]]


def test_time_is_up_only_for_those_who_are_not_done():
    """Two equal boards, one of which is solved by the last step."""
    world = Pursuit(2, size=2, seers=1, blind=0, limit=2)
    world.place(torch.tensor([[0], [0]]), torch.tensor([1, 1]))
    _, reward, done, truncated = world.step(torch.tensor([[STAY], [STAY]]))
    assert not done.any() and not truncated.any()
    observation, reward, done, truncated = world.step(torch.tensor([[1], [STAY]]))
    assert done.tolist() == [True, False] and truncated.tolist() == [False, True]
    assert reward.flatten().tolist() == [0.0, pytest.approx(-0.05)]
    assert observation[..., -2:].tolist() == [[[1.0, 0.0]]] * 2  # the clock begins anew


@pytest.mark.parametrize("form", ["compact", "released"])
def test_blind_agents_see_nothing_and_seers_only_their_window(form):
    """All places of the prey, all others as they are: what each agent sees changes only with the prey in its window."""
    cells, preys = torch.tensor([0, 7, 24]), torch.tensor([c for c in range(25) if c not in (0, 7, 24)])
    world = Pursuit(len(preys), seers=2, blind=1, form=form)
    seen = world.place(cells.expand(len(preys), -1), preys)
    assert (seen[:, 2] == seen[0, 2]).all()
    for agent, (row, column) in enumerate([(0, 0), (1, 2)]):
        near = ((preys // 5 - row).abs() <= 1) & ((preys % 5 - column).abs() <= 1)
        assert torch.equal(world.sees()[:, agent], near)
        away = seen[~near, agent]
        assert (away == away[0]).all()
        assert len(torch.unique(seen[near, agent], dim=0)) == near.sum()
        assert not (seen[near, agent] == away[0]).all(-1).any()


def test_copies_do_not_touch_each_other():
    """One copy alone is what it was among the others."""
    many, generator = Pursuit(16, seers=3, blind=2, form="released"), seeded(2)
    many.reset(generator)
    alone = Pursuit(1, seers=3, blind=2, form="released")
    alone.place(many.cells[5:6], many.prey[5:6])
    for _ in range(many.limit):
        actions = random_actions(many, generator)
        for of_many, of_one in zip(many.step(actions), alone.step(actions[5:6]), strict=True):
            assert torch.equal(of_many[5:6], of_one)


def test_relabelling_predators_changes_nothing():
    """In predator-prey all are alike: agents in another order are the same game in another order."""
    order = torch.tensor([2, 0, 1])
    one, other, generator = (predator_prey(32, ids=False), predator_prey(32, ids=False), seeded(0))
    one.reset(generator)
    other.place(one.cells[:, order], one.prey)
    for _ in range(one.limit):
        actions = random_actions(one, generator)
        a, b = one.step(actions), other.step(actions[:, order])
        assert torch.equal(a.observation[:, order], b.observation)
        assert torch.equal(a.reward[:, order], b.reward) and torch.equal(a.done, b.done)


def test_one_agent_plays_alone():
    world = Pursuit(1, size=2, seers=1, blind=0)
    world.place(torch.tensor([[0]]), torch.tensor([3]))
    assert play(world, Sweep(world)).steps.tolist() == [2]
