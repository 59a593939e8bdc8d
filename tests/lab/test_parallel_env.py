"""The worlds behind PettingZoo's parallel API pass PettingZoo's own tests, and are the worlds."""

import sys
import warnings

import pytest
import torch

from gated.commformer import PPO, Arm, Cohort, CommFormer
from gated.commformer.worlds import PermutationLookup, Pursuit, predator_prey, scout
from gated.lab.parallel_env import ParallelWorld, parallel_env

WORLDS = {
    "two seers, one blind": lambda: Pursuit(1),
    "released observation": lambda: Pursuit(1, seers=3, blind=3, form="released"),
    "predator-prey": lambda: predator_prey(1),
    "scout": lambda: scout(1, size=4),
    "lookup": lambda: PermutationLookup(1, [1, 2, 0]),
    "lookup with flags": lambda: PermutationLookup(1, [1, 0], flag_rate=0.25, ids=False),
}


@pytest.mark.parametrize("name", WORLDS)
def test_passes_the_tests_of_pettingzoo(name):
    from pettingzoo.test import parallel_api_test, parallel_seed_test

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # most of what they find wrong is only a warning
        parallel_api_test(parallel_env(WORLDS[name]()), num_cycles=200)
        parallel_seed_test(lambda: parallel_env(WORLDS[name]()), num_cycles=20)


@pytest.mark.parametrize("name", WORLDS)
def test_is_the_world(name):
    env, world = parallel_env(WORLDS[name]()), WORLDS[name]()
    generator = torch.Generator()
    for seed in (5, None, 6):  # without a seed the same random numbers go on
        if seed is not None:
            generator.manual_seed(seed)
        observation = world.reset(generator)
        seen, _ = env.reset(seed=seed)
        moves = torch.Generator().manual_seed(0)
        while env.agents:
            for i, agent in enumerate(env.possible_agents):
                assert seen[agent].tolist() == observation[0, i].tolist()
                assert env.observation_space(agent).contains(seen[agent])
            actions = torch.randint(world.num_actions, (1, world.num_agents), generator=moves)
            seen, rewards, ended, cut, infos = env.step(dict(zip(env.agents, actions[0].tolist(), strict=True)))
            observation, reward, done, truncated = world.step(actions)
            assert list(rewards.values()) == reward[0].tolist()
            assert set(ended.values()) == {bool(done)} and set(cut.values()) == {bool(truncated)}
            assert infos == {agent: {} for agent in env.possible_agents}
        assert bool(done | truncated)
        assert env.step({}) == ({}, {}, {}, {}, {})


def test_bad_input():
    with pytest.raises(ValueError, match="batch 1"):
        parallel_env(Pursuit(2))
    env = parallel_env(Pursuit(1))
    env.reset(seed=0)
    for actions in ({"agent_0": 1}, dict.fromkeys([*env.agents, "agent_9"], 0)):
        with pytest.raises(ValueError, match="actions must name each of"):
            env.step(actions)
    with pytest.raises(ValueError, match="actions must lie in 0 to 5"):
        env.step(dict.fromkeys(env.agents, 6))


def test_without_pettingzoo(monkeypatch):
    monkeypatch.setitem(sys.modules, "pettingzoo", None)
    with pytest.raises(ImportError, match="pip install pettingzoo"):
        parallel_env(Pursuit(1))


# The other way round -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WORLDS)
def test_there_and_back_is_the_world(name):
    """Copies of a world behind the API, taken as one world again, are copies of it with seeds of their own."""
    make = WORLDS[name]
    world, apart = ParallelWorld(lambda: parallel_env(make()), batch=3, limit=make().limit), [make() for _ in range(3)]
    seen = world.reset(torch.Generator().manual_seed(1))
    seeds = torch.randint(2**31 - 1, (3,), generator=torch.Generator().manual_seed(1)).tolist()
    own = torch.cat([one.reset(torch.Generator().manual_seed(seed)) for one, seed in zip(apart, seeds, strict=True)])
    assert torch.equal(seen, own.float())
    moves, over = torch.Generator().manual_seed(0), torch.zeros(3, dtype=torch.bool)
    for _ in range(world.limit):
        actions = torch.randint(world.num_actions, (3, world.num_agents), generator=moves)
        step = world.step(actions)
        for copy, one in enumerate(apart):
            if not over[copy]:
                alone = one.step(actions[copy : copy + 1])
                assert all(torch.equal(x[copy : copy + 1], y.to(x)) for x, y in zip(step, alone, strict=True))
            else:
                assert step.done[copy] and not step.reward[copy].any()
        over |= step.done
    assert bool((step.done | step.truncated).all())
    with pytest.raises(ValueError, match="call reset"):
        world.step(actions)


def test_a_cohort_learns_in_an_environment_of_others():
    """Simple reference of the multi-agent particle environments: each agent knows the other's goal, and tells it."""
    from mpe2 import simple_reference_v3

    world = ParallelWorld(lambda: simple_reference_v3.parallel_env(max_cycles=5), batch=8, limit=5)
    assert (world.num_agents, world.observation_size, world.num_actions) == (2, 21, 50)
    people = Cohort(
        lambda seed: CommFormer(2, 21, 50, width=16, seed=seed),
        [Arm("none", "fixed", graph=torch.zeros(2, 2)), Arm("joint", "joint")],
        seeds=[0],
        settings=PPO(epochs=1),
    )
    before = [p.clone() for p in people.parameters.values()]
    score = people.train(world, 2, torch.Generator().manual_seed(0))
    assert score.shape == (2, 2) and bool((score < 0).all())  # distances to the goals, with a minus
    moved = torch.stack(
        [(a - b).detach().flatten(1).abs().sum(1) for a, b in zip(before, people.parameters.values(), strict=True)]
    )
    assert bool((moved.sum(0) > 0).all())  # both runs


def test_environments_that_are_no_worlds():
    with pytest.raises(ValueError, match="limit must be at least 1"):
        ParallelWorld(lambda: parallel_env(Pursuit(1)), batch=1, limit=0)
    from mpe2 import simple_speaker_listener_v4

    with pytest.raises(ValueError, match="same number of discrete actions"):
        ParallelWorld(simple_speaker_listener_v4.parallel_env, batch=1, limit=5)
    world = ParallelWorld(lambda: parallel_env(Pursuit(1)), batch=2, limit=5)
    world.reset(torch.Generator().manual_seed(0))
    for actions, message in ((torch.zeros(1, 3), "must have shape"), (torch.full((2, 3), 6), "lie in 0 to 5")):
        with pytest.raises(ValueError, match=message):
            world.step(actions.long())
