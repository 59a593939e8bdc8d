"""Learning how hard to hold: proximal policy optimisation, and descent through the rollout itself.

Reward of agent i for a decision, which holds for several steps:

    (|p - g| before - after) / |g - start|  -  0.02 while not arrived  +  1 when the last of the team arrives
    - 0.5 for each problem without a solution,    then mixed: team * (mean over agents) + (1 - team) * own

An own reward alone makes yielding irrational: whoever waits for another only loses time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gated.gates._validation import check_number, check_positive, check_sizes
from gated.online_cbf.arenas import Arena
from gated.online_cbf.filter import AgentState, SafetyFilter
from gated.online_cbf.measures import navigation
from gated.online_cbf.network import GraphTuner, Neighbourhood, Observation
from gated.online_cbf.rollout import Trajectory, advance, initial_state, rollout
from gated.policy_gradient import advantages, clipped_gain

WAIT, BONUS, PENALTY = 0.02, 1.0, 0.5
EVERY = 5
"""Steps for which a decision holds."""


class Rewards(NamedTuple):
    """Of each decision."""

    reward: Float[Tensor, "decisions batch agents"]
    alive: Bool[Tensor, "decisions batch"]
    """Whether the episode was still on."""
    terminal: Bool[Tensor, "decisions batch"]
    """Whether the last of the team arrived; an end by the deadline is none, and its value is bootstrapped."""


def rewards(trajectory: Trajectory, *, every: int = EVERY, team: float | int = 1.0) -> Rewards:
    """What every decision earned; `team` in [0, 1] as above. `every` as in `rollout`. Raises ValueError for others."""
    check_number("team", team, "[0, 1]")
    check_sizes(every=every)
    a, steps = trajectory.arena, len(trajectory.velocity)
    begin = torch.arange(0, steps, every, device=trajectory.arrival.device)
    end = (begin + every).clamp_max(steps)
    way = (trajectory.position - a.goal).norm(dim=-1)
    length = (a.goal - a.start).norm(dim=-1).clamp_min(1e-6)
    own_end = torch.where(trajectory.arrival >= 0, trajectory.arrival, steps)
    done = (trajectory.arrival >= 0).all(1)
    terminal = done & (trajectory.ends > begin[:, None]) & (trajectory.ends <= end[:, None])
    failed = torch.nn.functional.pad((~trajectory.feasible).to(way.dtype).cumsum(0), (0, 0, 0, 0, 1, 0))
    own = (
        (way[begin] - way[end]) / length
        - WAIT * (begin[:, None, None] < own_end).to(way.dtype)
        + BONUS * terminal[..., None].to(way.dtype)
        - PENALTY * (failed[end] - failed[begin])
    )
    alive = begin[:, None] < trajectory.ends
    own = own * alive[..., None] * a.present
    mean = own.sum(-1, keepdim=True) / a.present.sum(1)[:, None]
    return Rewards((team * mean + (1 - team) * own) * a.present, alive, terminal)


def returns(trajectory: Trajectory, *, every: int = EVERY) -> Float[Tensor, " batch"]:
    """Undiscounted sum of an episode's team rewards: what all three ways of learning are to make large.

    Args:
        every: steps between two decisions, as in `rewards`.
    """
    earned = rewards(trajectory, every=every)
    return earned.reward.sum((0, 2)) / trajectory.arena.present.sum(1)


class Collected(NamedTuple):
    """Decisions of whole episodes, as the policy saw and made them."""

    seen: Observation  # [decisions, batch, agents, ...], with the end as one more
    y: Float[Tensor, "decisions batch agents 2"]
    log_density: Float[Tensor, "decisions batch agents"]
    trajectory: Trajectory


@torch.no_grad()
def collect(tuner: GraphTuner, a: Arena, rule: SafetyFilter, generator: torch.Generator, *, every: int) -> Collected:
    """Runs the drawing policy on each problem once."""
    seen: list[Observation] = []
    drawn: list[tuple[Tensor, Tensor]] = []

    def policy(a: Arena, state: AgentState) -> Tensor:
        seen.append(tuner.observe(a, state))
        drawn.append(tuner.draw(seen[-1], generator))
        return tuner.strength(drawn[-1][0]).to(state.position.dtype)

    trajectory = rollout(a, policy, rule, every=every)
    end = AgentState(
        trajectory.position[-1], trajectory.velocity[-1], trajectory.arrival >= 0, len(trajectory.velocity)
    )
    seen.append(tuner.observe(a, end))
    y, density = (torch.stack(x) for x in zip(*drawn, strict=True))
    return Collected(Observation(*(torch.stack(x) for x in zip(*seen, strict=True))), y, density, trajectory)


class Progress(NamedTuple):
    """One entry an iteration."""

    episode_return: Float[Tensor, " iterations"]
    success: Float[Tensor, " iterations"]
    makespan: Float[Tensor, " iterations"]
    gradient: Float[Tensor, " iterations"]
    """Mean norm of the policy's gradient before it is shortened."""


Problems = Callable[[torch.Generator], Arena]
"""Draws a batch of problems."""


def ppo(
    tuner: GraphTuner,
    problems: Problems,
    *,
    generator: torch.Generator,
    rule: SafetyFilter | None = None,
    iterations: int = 60,
    every: int = EVERY,
    team: float | int = 0.5,
    discount: float | int = 0.99,
    trace: float | int = 0.95,
    clip: float | int = 0.2,
    epochs: int = 4,
    minibatches: int = 4,
    rate: float | int = 1e-3,
    entropy: float | int = 0.003,
    width: int = 32,
) -> Progress:
    """Trains `tuner` in place on fresh problems each iteration; its critic is such a network that sees everything.

    Args:
        problems: draws the batch of an iteration.
        generator: of problems, draws, order, and the critic's first weights.
        every, team: as in `rewards`. discount, trace: as in `gated.policy_gradient.advantages`.
        clip: how far the ratio of densities may leave 1 and still be paid for.
        entropy: weight of the policy's entropy, here that of log_std. width: of the critic.

    Raises:
        ValueError: counts below 1, a rate or clip that is not positive, shares outside [0, 1].

    Source: Schulman et al. 2017 (arXiv 1707.06347), eqs. 7 and 9.
    """
    check_sizes(iterations=iterations, every=every, epochs=epochs, minibatches=minibatches, width=width)
    check_positive("rate", rate)
    check_positive("clip", clip)
    check_number("entropy", entropy, "[0, inf)")
    for name, share in (("team", team), ("discount", discount), ("trace", trace)):
        check_number(name, share, "[0, 1]")
    rule = SafetyFilter() if rule is None else rule
    device = tuner.log_std.device
    critic = Neighbourhood(1, width=width, generator=generator).to(device)
    optimizer = torch.optim.Adam([*tuner.parameters(), *critic.parameters()], lr=rate)
    progress = []
    for _ in range(iterations):
        batch = collect(tuner, problems(generator), rule, generator, every=every)
        present = batch.trajectory.arena.present
        earned = rewards(batch.trajectory, every=every, team=team)
        with torch.no_grad():
            value = torch.stack([critic(s)[..., 0] for s in _times(batch.seen)]).to(earned.reward.dtype)
        gain = advantages(earned.reward, value, earned.terminal, live=earned.alive, discount=discount, trace=trace)
        target = (gain + value[:-1]).flatten(0, 1)
        weight = (earned.alive[..., None] & present).flatten(0, 1)
        gain = gain.flatten(0, 1)
        gain = (gain - gain[weight].mean()) / gain[weight].std().clamp_min(1e-8)
        seen = Observation(*(x[:-1].flatten(0, 1) for x in batch.seen))
        y, before = batch.y.flatten(0, 1), batch.log_density.flatten(0, 1)
        rows = weight.any(1).nonzero()[:, 0]
        norms = []
        for _ in range(epochs):
            order = torch.randperm(len(rows), generator=generator, device=generator.device).to(device)
            for part in rows[order].chunk(minibatches):
                some, mask = seen.take(part), weight[part]
                density = tuner.log_density(tuner.network(some), y[part])
                policy_loss = -_mean(clipped_gain(density - before[part], gain[part].to(density.dtype), clip), mask)
                value_loss = _mean((critic(some)[..., 0] - target[part].to(density.dtype)).square(), mask)
                loss = policy_loss + 0.5 * value_loss - entropy * tuner.log_std.sum()
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                norms.append(float(torch.nn.utils.clip_grad_norm_(tuner.parameters(), 0.5)))
                torch.nn.utils.clip_grad_norm_(critic.parameters(), 0.5)
                optimizer.step()
        progress.append(_entry(batch.trajectory, rule, every, norms))
    return Progress(*torch.tensor(progress).T)


def descend(
    tuner: GraphTuner,
    problems: Problems,
    *,
    generator: torch.Generator,
    rule: SafetyFilter | None = None,
    iterations: int = 60,
    horizon: int = 30,
    every: int = EVERY,
    rate: float | int = 1e-3,
) -> Progress:
    """Trains `tuner` in place by back-propagation through the controls, `horizon` steps at a time.

    Minimises the mean over steps and agents of |p - g| / |g - start| until an agent arrives: progress, early. The
    arrival of the team has no derivative, and beyond the horizon none is taken. The policy's mean drives.

    Args:
        horizon: steps between two updates, a multiple of `every`. Others as in `ppo`.

    Raises:
        ValueError: counts below 1, a rate that is not positive, a horizon that is no multiple of `every`.
    """
    check_sizes(iterations=iterations, every=every, horizon=horizon)
    check_positive("rate", rate)
    if horizon % every:
        raise ValueError(f"horizon must be a multiple of every={every}, got {horizon}")
    rule = SafetyFilter() if rule is None else rule
    optimizer = torch.optim.Adam(tuner.network.parameters(), lr=rate)
    progress = []
    for _ in range(iterations):
        a = problems(generator)
        length = (a.goal - a.start).norm(dim=-1).clamp_min(1e-6)
        state, norms = initial_state(a, rule), []
        losses: list[Tensor] = []
        last = int(a.deadline.max())
        for t in range(last):
            if t % every == 0:
                zeta = tuner(a, state)
                if not bool(zeta.isfinite().all()):
                    raise ValueError(f"rate={rate} is too large: the strengths of the tuner are no longer finite")
            driving = ~state.arrived & a.present & (t < a.deadline)[:, None]
            state, _ = advance(a, state, zeta, rule)
            losses.append(((state.position - a.goal).norm(dim=-1) / length * driving).sum() / a.present.sum())
            if (t + 1) % horizon == 0 or t + 1 == last:
                loss = torch.stack(losses).mean()
                if loss.requires_grad:
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                    norms.append(float(torch.nn.utils.clip_grad_norm_(tuner.network.parameters(), 0.5)))
                    optimizer.step()
                losses, state = [], state._replace(position=state.position.detach(), velocity=state.velocity.detach())
        with torch.no_grad():
            progress.append(_entry(rollout(a, tuner, rule, every=every), rule, every, norms))
    return Progress(*torch.tensor(progress).T)


def _times(seen: Observation) -> list[Observation]:
    return [Observation(*x) for x in zip(*seen, strict=True)]


def _mean(x: Tensor, mask: Tensor) -> Tensor:
    return (x * mask).sum() / mask.sum().clamp_min(1)


def _entry(trajectory: Trajectory, rule: SafetyFilter, every: int, norms: Sequence[float]) -> tuple[float, ...]:
    drove = navigation(trajectory, rule).summary()
    norm = sum(norms) / len(norms) if norms else math.nan
    return returns(trajectory, every=every).mean().item(), drove["success"], drove["makespan"], norm
