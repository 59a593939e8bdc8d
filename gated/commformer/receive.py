"""When to listen: a gate of each agent, opened or shut at every step by what the agent itself sees.

    l_i = w . GELU(W o_i + b) + c,    z_i ~ Bernoulli(sigmoid(l_i)) in rollouts,    z_i = 1[l_i > 0] at execution

What reaches agent i at time t is alpha_ij z_i(t): a fixed choice of senders times a choice of the moment. The paper
(arXiv 2411.00382) says that such a gate exists and looks at the current observation; formula, estimators and penalty
are our reading. Nothing in the reward speaks for silence, so without a penalty the gate has no reason to shut.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from gated.gates import straight_through
from gated.gates._validation import (
    check_float,
    check_floats,
    check_number,
    check_positive,
    check_same_shape,
    check_sizes,
)

ReceiveEstimator = Literal["straight_through", "score"]


class ReceiveGate(nn.Module):
    """A logit of listening for each agent, and what its own observation alone makes it expect (`baseline`).

    The same weights for all agents. It starts open, at sigmoid(2) = 0.88.

    Args:
        observation: numbers that an agent sees.
        width: of the hidden layer.
        bias: c at the start.

    Example:
        >>> logit, baseline = ReceiveGate(observation=5)(torch.randn(2, 3, 5))
        >>> logit.shape
        torch.Size([2, 3])
    """

    def __init__(self, observation: int, width: int = 32, *, bias: float | int = 2.0) -> None:
        super().__init__()
        check_sizes(observation=observation, width=width)
        check_number("bias", bias)
        self.hidden, self.decide = nn.Linear(observation, width), nn.Linear(width, 2)
        nn.init.normal_(self.decide.weight, std=1e-2)
        with torch.no_grad():
            self.decide.bias.copy_(torch.tensor([float(bias), 0.0]))

    def forward(
        self, observation: Float[Tensor, "*batch agents observation"]
    ) -> tuple[Float[Tensor, "*batch agents"], Float[Tensor, "*batch agents"]]:
        """(l, baseline). The baseline is a value that z cannot change: what the score estimator subtracts."""
        check_floats(f"*batch agents {self.hidden.in_features}", observation=observation)
        logit, baseline = self.decide(F.gelu(self.hidden(observation))).unbind(-1)
        return logit, baseline


def stored_gate(
    logit: Float[Tensor, "*batch agents"], stored: Float[Tensor, "*batch agents"], temperature: float | int = 1.0
) -> Float[Tensor, "*batch agents"]:
    """The rollout's z once more: its value, bit for bit, with the slope of sigmoid(l / T).

    A new draw in the update would compare two policies: the ratio of PPO would not be 1 before the first step.

    Raises:
        ValueError: shapes that differ; T <= 0.

    Example:
        >>> stored_gate(torch.zeros(3), torch.tensor([1.0, 0.0, 1.0])).tolist()
        [1.0, 0.0, 1.0]
    """
    check_positive("temperature", temperature)
    check_float("logit", logit)
    check_float("stored", stored)
    check_same_shape("stored", stored, "logit", logit)
    return straight_through(stored, (logit / temperature).sigmoid())


def gate_log_prob(logit: Float[Tensor, "*batch"], receive: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """log P(z | l) = z log sigmoid(l) + (1 - z) log sigmoid(-l), in nats.

    Raises:
        ValueError: shapes that differ.

    Example:
        >>> gate_log_prob(torch.zeros(2), torch.tensor([1.0, 0.0])).exp().tolist()
        [0.5, 0.5]
    """
    check_float("logit", logit)
    check_same_shape("receive", receive, "logit", logit)
    return F.logsigmoid(torch.where(receive > 0.5, logit, -logit))
