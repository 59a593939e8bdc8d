"""Worlds behind PettingZoo's parallel API, for the learners of other libraries, and environments of others as worlds.

PettingZoo runs one copy at a time and a Python dictionary each step; the worlds themselves run thousands.

Example:
    >>> from gated.commformer.worlds import Pursuit
    >>> from gated.lab.parallel_env import ParallelWorld, parallel_env
    >>> env = parallel_env(Pursuit(1, seers=2, blind=1))
    >>> observations, infos = env.reset(seed=0)
    >>> observations, rewards, terminations, truncations, infos = env.step({agent: 4 for agent in env.agents})
    >>> sorted(rewards)
    ['agent_0', 'agent_1', 'agent_2']
    >>> world = ParallelWorld(lambda: parallel_env(Pursuit(1)), batch=2, limit=20)  # in which a `Cohort` can learn
    >>> world.num_agents
    3
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, SupportsInt

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gated.commformer.worlds import Transition, World

Named = dict[str, Any]  # by agent


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

    class WorldParallelEnv(ParallelEnv):  # type: ignore[misc]
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

        def reset(self, seed: int | None = None, options: Named | None = None) -> tuple[Named, Named]:
            if seed is not None:
                self.generator.manual_seed(seed)
            self.agents = list(names)
            observation = world.reset(self.generator)
            return self._named(observation), {name: {} for name in names}

        def step(self, actions: dict[str, SupportsInt]) -> tuple[Named, Named, Named, Named, Named]:
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

        def _named(self, observation: torch.Tensor) -> Named:
            return dict(zip(names, observation[0].numpy().astype("float32"), strict=True))

    return WorldParallelEnv()


class ParallelWorld:
    """Copies of a PettingZoo parallel environment as one world, in which a `gated.commformer.Cohort` can learn.

    Each copy is reset with a seed of its own, drawn from the generator that `reset` is given. A copy is done when all
    of its agents are terminated, and stands still from then on, at reward 0. Agents that see less than others have
    zeros behind what they see. Copies are stepped one after another in Python.

    Args:
        make: makes one environment. All its agents act in every step, until they end together.
        batch: copies.
        limit: steps of an episode; a copy that is not done by then is truncated.

    Raises:
        ValueError: if a size is below 1, an observation is not a vector, or agents differ in their numbers of actions.
    """

    bounds = (-math.inf, math.inf)

    def __init__(self, make: Callable[[], Any], *, batch: int, limit: int) -> None:
        for name, number in (("batch", batch), ("limit", limit)):
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        self.batch, self.limit = batch, limit
        self.envs = [make() for _ in range(batch)]
        self.names = list(self.envs[0].possible_agents)
        self.num_agents = len(self.names)
        shapes = [self.envs[0].observation_space(name).shape for name in self.names]
        if any(shape is None or len(shape) != 1 for shape in shapes):
            raise ValueError(f"observations must be vectors, got shapes {shapes}")
        self.observation_size = max(shape[0] for shape in shapes)
        actions = {int(getattr(self.envs[0].action_space(name), "n", 0)) for name in self.names}
        if len(actions) != 1 or 0 in actions:
            raise ValueError(f"all agents must have the same number of discrete actions, got {sorted(actions)}")
        self.num_actions = actions.pop()

    def reset(self, generator: torch.Generator) -> Float[Tensor, "batch agents features"]:
        seeds = torch.randint(2**31 - 1, (self.batch,), generator=generator, device=generator.device).tolist()
        self.steps, self.done = 0, torch.zeros(self.batch, dtype=torch.bool)
        self.seen = torch.zeros(self.batch, self.num_agents, self.observation_size)
        for copy, (env, seed) in enumerate(zip(self.envs, seeds, strict=True)):
            self._see(copy, env.reset(seed=seed)[0])
        return self.seen.clone()

    def step(self, actions: Int64[Tensor, "batch agents"]) -> Transition:
        """Raises ValueError for actions of another shape, out of range, or after the last step."""
        if actions.shape != (self.batch, self.num_agents):
            raise ValueError(f"actions must have shape {(self.batch, self.num_agents)}, got {tuple(actions.shape)}")
        if bool(((actions < 0) | (actions >= self.num_actions)).any()):
            raise ValueError(f"actions must lie in 0 to {self.num_actions - 1}")
        if self.steps >= self.limit:
            raise ValueError(f"the episode is over after {self.limit} steps; call reset")
        self.steps += 1
        rewards = torch.zeros(self.batch, self.num_agents)
        for copy, (env, moves) in enumerate(zip(self.envs, actions.tolist(), strict=True)):
            if not env.agents:
                continue
            seen, reward, ended, _, _ = env.step(dict(zip(self.names, moves, strict=True)))
            self._see(copy, seen)
            rewards[copy] = torch.tensor([float(reward[name]) for name in self.names])
            self.done[copy] = all(ended[name] for name in self.names)
        cut = torch.tensor([self.steps == self.limit or not env.agents for env in self.envs])
        return Transition(self.seen.clone(), rewards, self.done.clone(), cut & ~self.done)

    def _see(self, copy: int, seen: dict[str, Any]) -> None:
        for i, name in enumerate(self.names):
            x = torch.from_numpy(np.asarray(seen[name], dtype=np.float32))
            self.seen[copy, i, : len(x)] = x
