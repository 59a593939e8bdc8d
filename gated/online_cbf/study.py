"""The chapter's study: all learn from equally many episodes, and are judged on the same starts.

    tuned(seed)            what needs no network: grids over constants, chance, rules by hand
    timed(seed)            constants from the same grid, chosen by time and not by success
    learned("PPO", seed)   a network, trained and judged; `LEARNERS` names its kinds
    mixed(seed)            the same on several doors and a crossing at once, with a short deadline
    pushed(seed)           the same where agents can be pushed back and problems can have no solution

Training starts are scattered by sigma, log-uniform between `SIGMAS`' training ends; each choice is made from `EPISODES`
episodes. All decide every 5 steps. Results are what JSON can hold; `packed` outcomes are read by `unpacked`.
"""

from __future__ import annotations

import base64
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gated.online_cbf.arenas import Arena, doorway, join, log_uniform, mixture
from gated.online_cbf.filter import AgentState, SafetyFilter, Strength
from gated.online_cbf.measures import Navigation, navigation
from gated.online_cbf.network import GraphTuner, Observation
from gated.online_cbf.policies import constant, keep_right, nearer_first, random_strengths
from gated.online_cbf.rollout import Trajectory, Tuner, rollout
from gated.online_cbf.search import constant_score, cross_entropy, grid_search
from gated.online_cbf.training import EVERY, Progress, descend, ppo

VERSION = 1
BATCH, ITERATIONS = 64, 60
EPISODES = BATCH * ITERATIONS
TRAINING = (0.003, 0.1)
SIGMAS = (0.0, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
STARTS, CROWD, CROWDS = 256, 128, (4, 6)
AGENTS, OBSTACLES = (1.0, 2.0, 3.0, 5.0, 10.0, 19.0), (1.0, 2.0, 3.0, 5.0, 10.0)
PAIRS = tuple(itertools.product(AGENTS, OBSTACLES))
LEARNERS: dict[str, tuple[str, ...]] = {
    "PPO": ("self", "others", "obstacles"),
    "no others": ("self", "obstacles"),
    "no obstacles": ("self", "others"),
    "no hint": ("self", "others", "obstacles"),
    "constant": (),
    "descent": ("self", "others", "obstacles"),
}
"""What each network sees; "no hint" is `Unhinted`. "descent" goes back through the rollout, the others learn by PPO."""

Choice = tuple[float | int, ...]
Maker = Callable[[Choice, torch.Generator], Tuner]


def problems(generator: torch.Generator, batch: int = BATCH) -> Arena:
    """Training doorways."""
    return doorway(batch, sigma=log_uniform((batch,), *TRAINING, generator), generator=generator)


def judged(sigma: float | int, agents: int = 2, starts: int = STARTS) -> Arena:
    """The starts on which everybody is judged: the same at every call, and none of them a training start."""
    generator = torch.Generator().manual_seed(90_000 + 100 * SIGMAS.index(sigma) + agents)
    return doorway(starts, sigma=sigma, agents=agents, generator=generator)


def packed(drove: Navigation) -> dict[str, Any]:
    """Steps of each episode, negative where it failed, as 16-bit numbers in base64, and means of the rest."""
    steps = torch.where(drove.success, drove.makespan, -drove.makespan).short()
    found = drove.summary()
    return {
        "steps": base64.b64encode(steps.numpy().tobytes()).decode(),
        "spl": found["spl"],
        "speed": found["speed"],
        "infeasible": found["infeasible"],
        "min_barrier": found["min_barrier"],
        "min_gap": found["min_gap"],
    }


def unpacked(text: str) -> Tensor:
    """Steps of each episode, negative where it failed."""
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.int16).long()


def weights(tuner: GraphTuner) -> str:
    """All parameters in one text."""
    flat = torch.nn.utils.parameters_to_vector(tuner.parameters()).detach()
    return base64.b64encode(flat.numpy().tobytes()).decode()


class Unhinted(GraphTuner):
    """The network without the difference of both ways to the goals, by which `nearer_first` decides."""

    def observe(self, a: Arena, state: AgentState) -> Observation:
        seen = super().observe(a, state)
        return seen._replace(other=seen.other * seen.other.new_tensor([1, 1, 1, 1, 1, 0, 0]))


def untrained(kind: str, generator: torch.Generator | None = None) -> GraphTuner:
    """The network of a kind of `LEARNERS`."""
    return (Unhinted if kind == "no hint" else GraphTuner)(sees=LEARNERS[kind], generator=generator)


def restored(text: str, kind: str = "PPO") -> GraphTuner:
    """The network whose `weights` these are."""
    tuner = untrained(kind)
    flat = torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.float32)
    torch.nn.utils.vector_to_parameters(flat, tuner.parameters())
    return tuner


def drive(a: Arena, policy: Tuner, rule: SafetyFilter | None = None) -> Trajectory:
    with torch.no_grad():
        return rollout(a, policy, rule, every=EVERY)


def judge(policy: Tuner, sigmas: Sequence[float | int] = SIGMAS, crowds: Sequence[int] = CROWDS) -> dict[str, Any]:
    """Outcomes at each sigma with two agents, and at sigma = 0.03 with more."""
    found = {f"{sigma:g}": packed(navigation(drive(judged(sigma), policy))) for sigma in sigmas}
    for agents in crowds:
        found[f"{agents} agents"] = packed(navigation(drive(judged(0.03, agents, CROWD), policy)))
    return found


# What is tuned without a network -----------------------------------------------------------------------------------


def _by_turns(choice: Choice, generator: torch.Generator | None = None) -> Tuner:
    """The first and the second agent by their names; in a crowd by turns."""
    first, second, obstacles = choice

    def policy(a: Arena, state: AgentState) -> Strength:
        return constant(
            torch.tensor([first, second], dtype=torch.float64).repeat(-(-a.agents // 2))[: a.agents], obstacles
        )(a, state)

    return policy


def _with(obstacles: Sequence[float | int], *pairs: Choice) -> tuple[Choice, ...]:
    return tuple((*pair, z) for pair in pairs for z in obstacles)


RULES = _with((2, 5, 10), (19, 3), (19, 4), (19, 5), (10, 4))
CHANCE = _with((2, 5, 10), (1, 10), (1, 19), (2, 10), (2, 19))
FAMILIES: dict[str, tuple[tuple[Choice, ...], Maker]] = {
    "fixed": (PAIRS, lambda choice, generator: constant(*choice)),
    "by identity": (_with((2, 10), *itertools.combinations(sorted(AGENTS, reverse=True), 2)), _by_turns),
    "random": (CHANCE, lambda choice, generator: random_strengths(*choice, generator=generator)),
    "random, redrawn": (CHANCE, lambda choice, generator: random_strengths(*choice, generator=generator, redraw=10)),
    "nearer first": (RULES, lambda choice, generator: nearer_first(*choice)),
    "keep right": (RULES, lambda choice, generator: keep_right(*choice)),
}
"""Of each family the choices, all tried on the same training starts, and what a choice makes."""


def best(
    family: str, draw: Callable[[int], Arena], episodes: int, seed: int, rule: SafetyFilter | None = None
) -> Choice:
    """The choice with most successes on as many starts as the episodes allow; of equals the one with fewest steps."""
    choices, maker = FAMILIES[family]
    a = draw(episodes // len(choices))
    if family == "fixed":
        return grid_search(a, PAIRS, rule).best

    def worth(choice: Choice) -> tuple[float, float]:
        drove = navigation(drive(a, maker(choice, torch.Generator().manual_seed(seed)), rule), rule)
        return drove.success.double().mean().item(), -drove.makespan.mean().item()

    return max(choices, key=worth)


def tuned(seed: int, episodes: int = EPISODES) -> dict[str, Any]:
    """Each family's best choice and what it does; constants also tuned at each sigma, and for each crowd, alone."""
    generator = torch.Generator().manual_seed(500 + seed)
    found: dict[str, Any] = {}
    for family, (_, maker) in FAMILIES.items():
        choice = best(family, partial(problems, generator), episodes, seed)
        crowds = () if family == "keep right" else CROWDS
        policy = maker(choice, torch.Generator().manual_seed(seed))
        found[family] = {"choice": choice, "judged": judge(policy, crowds=crowds)}
    told: dict[str, Any] = {"choice": {}, "judged": {}}
    cases = [(f"{s:g}", s, 2) for s in SIGMAS] + [(f"{n} agents", 0.03, n) for n in CROWDS]
    for name, sigma, agents in cases:
        draw = partial(doorway, sigma=sigma, agents=agents, generator=generator)
        told["choice"][name] = best("fixed", draw, episodes if agents == 2 else episodes // 4, seed)
        policy = constant(*told["choice"][name])
        told["judged"] |= judge(policy, [sigma], []) if agents == 2 else judge(policy, [], [agents])
    found["fixed, told"] = told
    search = cross_entropy(
        lambda pairs: constant_score(problems(generator, episodes // 96))(pairs),
        generator=generator,
        iterations=6,
        population=16,
        elite=4,
    )
    found["cross-entropy"] = {"choice": search.best, "judged": judge(constant(*search.best))}
    return found


def timed(seed: int, episodes: int = EPISODES) -> dict[str, Any]:
    """Of the grid of "fixed", on its training starts, the constants with fewest steps; a failure counts as 200."""
    found = grid_search(problems(torch.Generator().manual_seed(500 + seed), episodes // len(PAIRS)), PAIRS)
    choice = PAIRS[int(found.makespan.mean(1).argmin())]
    return {"choice": choice, "judged": judge(constant(*choice))}


# What is learned ----------------------------------------------------------------------------------------------------


def learner(kind: str, seed: int, iterations: int = ITERATIONS) -> tuple[GraphTuner, Progress]:
    """A network of `LEARNERS` and how it came on."""
    generator = torch.Generator().manual_seed(seed)
    tuner = untrained(kind, generator)
    train = descend if kind == "descent" else ppo
    return tuner, train(tuner, problems, generator=generator, iterations=iterations)


def learned(kind: str, seed: int, iterations: int = ITERATIONS) -> dict[str, Any]:
    """Curves, weights, and what its mean and its draws do."""
    tuner, progress = learner(kind, seed, iterations)
    crowds = CROWDS if kind in ("PPO", "descent") else ()
    found = {"curves": curves(progress), "weights": weights(tuner), "std": tuner.log_std.exp().tolist()}
    found["judged"] = judge(tuner, crowds=crowds)
    if kind != "descent":
        found["judged, drawn"] = judge(tuner.sampler(torch.Generator().manual_seed(seed)), crowds=crowds)
    return found


def curves(progress: Progress) -> Mapping[str, list[float]]:
    return {name: [float(f"{x:.5g}") for x in values.tolist()] for name, values in progress._asdict().items()}


def mirrored(tuner: Tuner) -> Tuner:
    """The policy made blind to left and right: the geometric mean of what it says here and in the mirror, y to -y."""

    def policy(a: Arena, state: AgentState) -> Tensor:
        flip = torch.tensor([1, -1], dtype=a.start.dtype, device=a.start.device)
        names = ("start", "goal", "obstacle", "centre")
        b = replace(a, **{name: getattr(a, name) * flip for name in names})
        there = state._replace(position=state.position * flip, velocity=state.velocity * flip)
        here, mirror = tuner(a, state), tuner(b, there)
        assert isinstance(here, Tensor) and isinstance(mirror, Tensor)
        return (here * mirror).sqrt()

    return policy


def order(a: Arena, ride: Trajectory) -> dict[str, Tensor]:
    """Of each episode of two agents: `lead` of the first over the second, to the door; whether the first is through
    first (`ahead`); and log zeta_1 / zeta_2 towards each other until one is through, its mean (`bolder`) and size."""
    waits = (ride.position[..., 0] <= 0).long().cumprod(0).sum(0)  # steps on the near side of the door
    before = torch.arange(len(ride.strength))[:, None] < waits.amin(1)
    ratio = (ride.strength[:, :, 0, 0] / ride.strength[:, :, 1, 0]).log()
    return {
        "lead": a.start[:, 1].norm(dim=-1) - a.start[:, 0].norm(dim=-1),
        "ahead": waits[:, 0] < waits[:, 1],
        "bolder": (ratio * before).sum(0) / before.sum(0),
        "size": ratio.abs()[before].mean().exp(),
    }


def character(tuner: GraphTuner) -> dict[str, Any]:
    """Who is bolder and who goes first under its mean, by side and by head start; and what it does if mirrored."""
    found: dict[str, Any] = {"mirrored": {}}
    for sigma in SIGMAS:
        drove = navigation(drive(judged(sigma), mirrored(tuner)))
        found["mirrored"][f"{sigma:g}"] = drove.success.double().mean().item()
    for sigma in (0.01, 0.1):
        a = judged(sigma)
        seen = order(a, drive(a, tuner))
        clear = seen["lead"].abs() > 0.05
        found[f"upper first, {sigma:g}"] = seen["ahead"].double().mean().item()
        if clear.any():
            for name, who in (("first", seen["ahead"]), ("bolder", seen["bolder"] > 0)):
                found[f"nearer {name}, {sigma:g}"] = (who == (seen["lead"] > 0))[clear].double().mean().item()
        found[f"ratio, {sigma:g}"] = seen["size"].item()
    return found


# Several places at once, and problems without a solution --------------------------------------------------------------


def mixed(seed: int, iterations: int = ITERATIONS, test: int = 128) -> dict[str, Any]:
    """One pair of constants for all places, one for each, one rule, and a network, with sigma = 0.01."""
    generator = torch.Generator().manual_seed(700 + seed)
    episodes = BATCH * iterations

    def places(batch: int) -> dict[str, Arena]:
        return mixture(batch, generator=generator)

    def all_places(batch: int) -> Arena:
        return join(list(places(batch // 4).values()))

    held_out = mixture(test, generator=torch.Generator().manual_seed(91_000))
    policies: dict[str, Mapping[str, Tuner]] = {}
    choices: dict[str, Any] = {}
    for family in ("fixed", "nearer first", "random, redrawn"):
        choices[family] = best(family, all_places, episodes, seed)
        tuner = FAMILIES[family][1](choices[family], torch.Generator().manual_seed(seed))
        policies[family] = dict.fromkeys(held_out, tuner)
    choices["fixed, told"] = {}
    for name in held_out:

        def one_place(batch: int, name: str = name) -> Arena:
            return places(batch)[name]

        choices["fixed, told"][name] = best("fixed", one_place, episodes, seed)
    policies["fixed, told"] = {name: constant(*choice) for name, choice in choices["fixed, told"].items()}
    network = GraphTuner(generator=generator)
    progress = ppo(network, lambda g: all_places(BATCH), generator=generator, iterations=iterations)
    policies["PPO"] = dict.fromkeys(held_out, network)
    return {
        "choice": choices,
        "curves": curves(progress),
        "weights": weights(network),
        "judged": {
            who: {name: packed(navigation(drive(a, policy[name]))) for name, a in held_out.items()}
            for who, policy in policies.items()
        },
    }


def pushed(seed: int, iterations: int = ITERATIONS) -> dict[str, Any]:
    """In full mode: constants, the rule, and a network that loses half a point for each problem without a solution."""
    rule = SafetyFilter(mode="full")
    generator = torch.Generator().manual_seed(800 + seed)
    choices = {
        family: best(family, partial(problems, generator), BATCH * iterations, seed, rule)
        for family in ("fixed", "by identity", "nearer first")
    }
    policies = {family: FAMILIES[family][1](choice, generator) for family, choice in choices.items()}
    network = GraphTuner(generator=generator)
    progress = ppo(network, problems, generator=generator, rule=rule, iterations=iterations)
    policies["PPO"] = network
    return {
        "choice": choices,
        "curves": curves(progress),
        "judged": {
            who: {f"{s:g}": packed(navigation(drive(judged(s), policy, rule), rule)) for s in SIGMAS}
            for who, policy in policies.items()
        },
    }
