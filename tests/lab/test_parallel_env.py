"""The worlds behind PettingZoo's parallel API pass PettingZoo's own tests, and are the worlds."""

import sys
import warnings

import pytest
import torch

from gated.commformer.worlds import PermutationLookup, Pursuit, predator_prey, scout
from gated.lab.parallel_env import parallel_env

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
