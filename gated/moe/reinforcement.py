"""Mixtures of experts that act: a policy of several Gaussians, and predictors that compete for a changing world.

A bandit with several good actions: `MultiGoalBandit` pays r(s, a) = max_j w_j exp(-|a - g_j(s)|^2 / 2 sigma^2), and a
`MixturePolicy` acts by sum_i w_i(s) N(mu_i(s), sigma_i(s)^2). Drawing a component is not differentiable; PMOE draws an
action a_i from *each* component, lets it climb the reward, and teaches the gate by the frequency loss

    sum_i (w_i - v_i)^2,    v_i = 1[a_i is the best of the drawn actions].

A world that switches: modules predict x_(t+1) from x_t, and responsibilities share out both the learning and the
prediction. They are a softmax of the modules' errors, so that the gate has no parameters:

    lambda_i proportional to exp(-|x - prediction_i|^2 / 2 sigma^2).

Sources: Ren, Li, Ding, Pan and Dong, "Probabilistic Mixture-of-Experts for Efficient Deep Reinforcement Learning",
2021 (arXiv 2104.09122); Doya, Samejima, Katagiri and Kawato, "Multiple Model-Based Reinforcement Learning", Neural
Computation 14, 2002. Recursive least squares in place of the gradient steps is ours.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from gated.gates import gumbel_softmax_gate, softmax_gate


class MultiGoalBandit(NamedTuple):
    """Contextual one-step bandit in the plane, differentiable in the action.

    Goal j of state s in [-1, 1] lies at the angle 2 pi j / J + s on the unit circle and pays `heights[j]` at its
    centre; `width` is sigma. The state moves all goals, and the policy must follow them.
    """

    heights: Float[Tensor, " goals"]
    width: float | int = 0.4

    def goals(self, state: Float[Tensor, " rows"]) -> Float[Tensor, "rows goals 2"]:
        step = 2 * math.pi / len(self.heights)
        angle = state[:, None] + step * torch.arange(len(self.heights), device=state.device)
        return torch.stack([angle.cos(), angle.sin()], -1)

    def pay(
        self, state: Float[Tensor, " rows"], action: Float[Tensor, "rows *samples 2"]
    ) -> Float[Tensor, "rows *samples goals"]:
        """What each goal alone would pay; the reward is the largest of them."""
        goals = self.goals(state).view(len(state), *[1] * (action.ndim - 2), -1, 2)
        distance = (action[..., None, :] - goals).square().sum(-1)
        return self.heights * torch.exp(-distance / (2 * self.width**2))

    def reward(
        self, state: Float[Tensor, " rows"], action: Float[Tensor, "rows *samples 2"]
    ) -> Float[Tensor, " rows *samples"]:
        return self.pay(state, action).amax(-1)

    def without(self, goal: int) -> MultiGoalBandit:
        """The same bandit after goal number `goal` stopped paying."""
        if not 0 <= goal < len(self.heights):
            raise ValueError(f"goal must lie in 0..{len(self.heights) - 1}; got {goal}")
        return self._replace(heights=self.heights * (torch.arange(len(self.heights)) != goal).to(self.heights))


class Actions(NamedTuple):
    """A policy's distribution in each state, and one action drawn from each component."""

    logits: Float[Tensor, "rows components"]
    mean: Float[Tensor, "rows components 2"]
    std: Float[Tensor, "rows components 2"]
    action: Float[Tensor, "rows components 2"]


class MixturePolicy(nn.Module):
    """sum_i w_i(s) N(mu_i(s), diag sigma_i(s)^2) in the plane, from one hidden layer on (s, 1).

    Args:
        components: number of Gaussians; with 1 it is the usual Gaussian policy.
        hidden: width of the hidden layer.
        std: standard deviations at the start, around which they are learned.

    Raises:
        ValueError: components or hidden below 1, or std <= 0.
    """

    def __init__(self, components: int, hidden: int = 32, *, std: float | int = 0.3) -> None:
        super().__init__()
        for name, value in {"components": components, "hidden": hidden, "std": std}.items():
            if value <= 0:
                raise ValueError(f"{name} must be positive; got {value}")
        self.components, self.log_std = components, math.log(std)
        self.trunk = nn.Sequential(nn.Linear(1, hidden), nn.Tanh())
        self.head = nn.Linear(hidden, 5 * components)

    def forward(self, state: Float[Tensor, " rows"], noise: Float[Tensor, "rows components 2"]) -> Actions:
        """Actions mean + std noise, differentiable; `noise` is standard normal (zeros for the means)."""
        out = self.head(self.trunk(state[:, None])).unflatten(-1, (self.components, 5))
        mean, std = out[..., 1:3], torch.exp(self.log_std + out[..., 3:].clamp(-3, 1))
        return Actions(out[..., 0], mean, std, mean + std * noise)


def frequency_loss(
    logits: Float[Tensor, "rows components"], value: Float[Tensor, "rows components"]
) -> Float[Tensor, " rows"]:
    """sum_i (w_i - v_i)^2 with w = softmax(logits) and v the one-hot of the largest value (the lower index on ties).

    Over many draws it is least where w_i is the probability that component i's draw is the best.
    """
    best = F.one_hot(value.argmax(-1), value.shape[-1])
    return (softmax_gate(logits) - best).square().sum(-1)


def pmoe_loss(
    actions: Actions, value: Float[Tensor, "rows components"], *, best_only: bool = False
) -> Float[Tensor, " rows"]:
    """frequency loss - sum_i value_i: every component climbs its own reward; with `best_only`, the best alone."""
    climb = value.amax(-1) if best_only else value.sum(-1)
    return frequency_loss(actions.logits, value.detach()) - climb


def score_function_loss(
    actions: Actions, value: Float[Tensor, "rows components"], choice: Int[Tensor, " rows"]
) -> Float[Tensor, " rows"]:
    """A loss whose gradient estimates that of -E reward, from the one component `choice` ~ softmax(logits) of each row:
    through the action for the component, -(value - baseline) d log w_choice for the gate. The baseline is the mean
    reward of the other rows."""
    chosen = value.gather(-1, choice[:, None])[:, 0]
    detached = chosen.detach()
    baseline = (detached.sum() - detached) / max(len(detached) - 1, 1)
    log_weight = F.log_softmax(actions.logits, -1).gather(-1, choice[:, None])[:, 0]
    return -chosen - (detached - baseline) * log_weight


def gumbel_action(actions: Actions, temperature: float | int, generator: torch.Generator) -> Float[Tensor, "rows 2"]:
    """sum_i y_i a_i with y a hard Gumbel-softmax sample of the gate: one component forward, all of them backward."""
    y = gumbel_softmax_gate(actions.logits, temperature, hard=True, generator=generator)
    return (y[..., None] * actions.action).sum(-2)


class SwitchingSystem(NamedTuple):
    """x_(t+1) = A_(mode_t) x_t + noise, for independent seeds; float64."""

    x: Float[Tensor, "seeds time_plus_one 2"]
    mode: Int[Tensor, "seeds time"]
    dynamics: Float[Tensor, "modes 2 2"]


def switching_system(
    seeds: int, time: int, generator: torch.Generator, *, dwell: int = 50, noise: float | int = 0.1
) -> SwitchingSystem:
    """Three modes: rotations by 0.3, -0.3 and 1.2 radians that shrink by 0.98, started at x_0 ~ N(0, I).

    The mode is drawn uniformly and kept for a geometric time of mean `dwell` steps (it may be drawn again).
    The noise of each step is normal, with standard deviation `noise`.

    Raises:
        ValueError: seeds, time or dwell below 1, or a negative noise.
    """
    for name, size in {"seeds": seeds, "time": time, "dwell": dwell}.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1; got {size}")
    if not noise >= 0:
        raise ValueError(f"noise must be at least 0; got {noise}")
    angle = torch.tensor([0.3, -0.3, 1.2], dtype=torch.float64)
    c, s = angle.cos(), angle.sin()
    dynamics = 0.98 * torch.stack([c, -s, s, c], -1).view(3, 2, 2)
    fresh = torch.randint(3, (seeds, time), generator=generator)
    switch = torch.rand(seeds, time, generator=generator) < 1 / dwell
    switch[:, 0] = True
    latest = torch.where(switch, torch.arange(time), 0).cummax(1).values
    mode = fresh.gather(1, latest)
    x = [torch.randn(seeds, 2, generator=generator, dtype=torch.float64)]
    for t in range(time):
        shock = noise * torch.randn(seeds, 2, generator=generator, dtype=torch.float64)
        x.append((dynamics[mode[:, t]] @ x[-1][..., None])[..., 0] + shock)
    return SwitchingSystem(torch.stack(x, 1), mode, dynamics)


class RecursiveLeastSquares:
    """Weighted least squares, one observation at a time: A minimises sum_s weight_s c^(t-s) |y_s - A x_s|^2
    + prior c^t |A - A_0|^2 after t observations, c = `forget`.

    `A` is [*batch, out, dim], the start A_0; batches (seeds, modules) are independent. A weight of 0 leaves A where it
    is (and with c < 1 still fades the past).
    """

    def __init__(
        self, A: Float[Tensor, "*batch out dim"], prior: float | int = 1e-3, forget: float | int = 1.0
    ) -> None:
        if not prior > 0 or not 0 < forget <= 1:
            raise ValueError(f"prior must be positive and forget in (0, 1]; got {prior} and {forget}")
        self.A, self.forget = A, forget
        self.P = (torch.eye(A.shape[-1]).to(A) / prior).expand(*A.shape[:-2], -1, -1)

    def step(
        self, x: Float[Tensor, "*batch dim"], y: Float[Tensor, "*batch out"], weight: Float[Tensor, "*batch"]
    ) -> None:
        """Takes in one observation y of A x, with its weight."""
        P = self.P / self.forget
        Px, w = P @ x[..., None], weight[..., None, None]
        gain = w * Px / (1 + w * (x[..., None, :] @ Px))
        error = y[..., None] - self.A @ x[..., None]
        self.A = self.A + error * gain.mT
        P = P - gain * Px.mT
        self.P = (P + P.mT) / 2  # an antisymmetric rest of rounding would grow by 1 / c a step, for ever


def responsibility(
    squared_error: Float[Tensor, "*batch modules"], sigma: float | int
) -> Float[Tensor, "*batch modules"]:
    """lambda_i proportional to exp(-squared_error_i / 2 sigma^2). Raises `ValueError` unless sigma > 0."""
    if not sigma > 0:
        raise ValueError(f"sigma must be positive; got {sigma}")
    return softmax_gate(-squared_error / 2, float(sigma) ** 2)
