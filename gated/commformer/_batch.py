"""A rollout as the update wants it."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gated.commformer.network import Decision
from gated.commformer.ppo import (
    PPO,
    Rollout,
    ValueNorm,
    standardise,
)
from gated.commformer.receive import gate_log_prob
from gated.policy_gradient import advantages

RATIO_TOLERANCE = 1e-3


class Batch:
    """A rollout as the update wants it: steps and copies in one axis, advantages, targets, and what was before."""

    def __init__(
        self, rollout: Rollout, settings: PPO, norm: ValueNorm, penalty: Float[Tensor, " runs"], priced: bool
    ) -> None:
        _, self.steps, self.copies = rollout.done.shape
        self.observation, self.action, self.receive = (
            x.flatten(1, 2) for x in (rollout.observation, rollout.action, rollout.receive)
        )
        self.penalty = penalty
        self.weight = rollout.live.to(rollout.reward).flatten(1, 2)[..., None]
        reward = rollout.reward
        if priced:
            reward = reward - penalty[:, None, None, None] * rollout.receive

        def learn(value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            """Advantage of unit deviation, return, and the old value in the critic's units."""
            real = norm.denormalise(value)
            steps = (x.movedim(1, 0) for x in (reward, real, rollout.done))
            gain = advantages(*steps, discount=settings.discount, trace=settings.trace).movedim(0, 1)
            gain, target = gain.flatten(1, 2), (gain + real[:, :-1]).flatten(1, 2)
            return standardise(gain, self.weight), target, value[:, :-1].flatten(1, 2)

        self.advantage, target, self.old_value = learn(rollout.value)
        self.gate_advantage, gate_target, self.old_baseline = learn(rollout.gate_baseline)
        norm.update(target, self.weight)
        self.target, self.gate_target = norm.normalise(target), norm.normalise(gate_target)
        self.old_log_prob, self.old_gate_log_prob = (x.flatten(1, 2) for x in (rollout.log_prob, rollout.gate_log_prob))
        self.fresh = torch.ones(len(penalty), dtype=torch.bool, device=reward.device)

    def begin(self, decision: Decision, where: Bool[Tensor, " runs"]) -> None:
        """Before a run's first step: its log probabilities must be the rollout's, and stand for them from now on.

        Teacher forcing and choosing differ by rounding; taking the former for both makes the ratio exactly 1.
        """
        first = (self.fresh & where)[:, None, None]
        if not bool(first.any()):
            return
        new = (decision.log_prob.detach(), gate_log_prob(decision.gate_logit.detach(), self.receive))
        for name, log_prob in zip(("old_log_prob", "old_gate_log_prob"), new, strict=True):
            old = getattr(self, name)
            apart = ((log_prob - old).abs() * first).max()
            if not apart < RATIO_TOLERANCE:
                raise RuntimeError(
                    f"the ratio must be 1 before the first step, but log probabilities are {apart:.2g} apart: "
                    "the rollout is of other weights, another graph or another gate sample"
                )
            setattr(self, name, torch.where(first, log_prob, old))

    def half(self, halved: Bool[Tensor, " runs"], odd: Bool[Tensor, " runs"]) -> Float[Tensor, "runs steps 1"]:
        """The weights of the steps; of halved runs those of odd copies, or of even ones."""
        parity = torch.arange(self.copies, device=odd.device).repeat(self.steps) % 2
        return self.weight * (~halved[:, None] | (parity == odd[:, None]))[..., None]
