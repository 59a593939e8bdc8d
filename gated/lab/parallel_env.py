"""A world behind PettingZoo's parallel API, for the learners of other libraries.

    env = parallel_env(Pursuit(1, seers=2, blind=1))
    observations, infos = env.reset(seed=0)
    observations, rewards, terminations, truncations, infos = env.step({agent: 4 for agent in env.agents})

PettingZoo runs one copy at a time and a Python dictionary each step; the worlds themselves run thousands.
"""

from __future__ import annotations

from typing import Any, SupportsInt

import torch

from gated.commformer.worlds import World


def parallel_env(world: World) -> Any:
    """A `pettingzoo.ParallelEnv` of the agents "agent_0", "agent_1", ... of `world`.

    All agents end together: terminated when the world is done, truncated when time is up. A seed that is given to
    `reset` decides all that follows; without one the random numbers go on.

    Args:
        world: one copy of a world, with `batch` 1.

    Raises:
        ImportError: if PettingZoo is not installed.
        ValueError: if the world has more copies than one.
    """
    try:
        from gymnasium.spaces import Box, Discrete
        from pettingzoo import ParallelEnv
    except ImportError as error:
        raise ImportError(f"the parallel API needs PettingZoo ({error}): pip install pettingzoo") from error
    if world.batch != 1:
        raise ValueError(f"world must have batch 1, because PettingZoo plays one copy at a time; got {world.batch}")
    low, high = world.bounds
    names = [f"agent_{i}" for i in range(world.num_agents)]

    class WorldParallelEnv(ParallelEnv):
        metadata = {"name": type(world).__name__, "render_modes": [], "is_parallelizable": True}  # noqa: RUF012
        render_mode = None

        def __init__(self) -> None:
            self.possible_agents = list(names)
            self.agents: list[str] = []
            self.observation_spaces = {name: Box(low, high, (world.observation_size,)) for name in names}
            self.action_spaces = {name: Discrete(world.num_actions) for name in names}
            self.generator = torch.Generator()
            self.generator.seed()

        def observation_space(self, agent: str) -> Box:
            return self.observation_spaces[agent]

        def action_space(self, agent: str) -> Discrete:
            return self.action_spaces[agent]

        def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
            if seed is not None:
                self.generator.manual_seed(seed)
            self.agents = list(names)
            observation = world.reset(self.generator)
            return self._named(observation), {name: {} for name in names}

        def step(self, actions: dict[str, SupportsInt]) -> tuple[dict, dict, dict, dict, dict]:
            if not self.agents:
                return {}, {}, {}, {}, {}
            if set(actions) != set(names):
                raise ValueError(f"actions must name each of {names}, got {sorted(actions)}")
            moves = torch.tensor([[int(actions[name]) for name in names]])
            observation, reward, done, truncated = world.step(moves)
            if done or truncated:
                self.agents = []
            return (
                self._named(observation),
                dict(zip(names, reward[0].tolist(), strict=True)),
                dict.fromkeys(names, bool(done)),
                dict.fromkeys(names, bool(truncated)),
                {name: {} for name in names},
            )

        def _named(self, observation: torch.Tensor) -> dict:
            return dict(zip(names, observation[0].numpy().astype("float32"), strict=True))

    return WorldParallelEnv()
