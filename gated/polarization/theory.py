"""The gates without a network: how they move, where they end, and what their estimators' gradients are worth.

s: logits [batch, gates], p = sigmoid(s), m_l the mean of p over the batch; lambda_a and lambda_p: the weights of the
activation and the polarization loss. All of this is our own derivation, besides `neuron_polarization`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from gated.gates import binary_gate


def unstable_share(activation: float | int, polarization: float | int) -> float | None:
    """m* = (1 + lambda_a / lambda_p) / 2: gates with a larger open share open, with a smaller one shut.

    Without a gain from the task. None where there is no such point between 0 and 1: lambda_a >= lambda_p shuts all.
    Raises ValueError unless lambda_p > 0 and lambda_a >= 0.
    """
    if not polarization > 0 or not activation >= 0:
        raise ValueError(
            f"polarization must be positive and activation at least 0, got {polarization} and {activation}"
        )
    return None if activation >= polarization else (1 + activation / polarization) / 2


def gate_flow(
    logits: Float[Tensor, "batch gates"],
    *,
    activation: float | int = 0.0,
    polarization: float | int = 0.0,
    gain: float | int | Float[Tensor, "#batch gates"] = 0.0,
    rate: float | int = 1.0,
    steps: int = 1,
) -> Float[Tensor, "batch gates"]:
    """s after Euler steps of ds_il = -rate [lambda_a - b_il + lambda_p (1 - 2 m_l)] p_il (1 - p_il).

    Gradient descent on the gates' losses and on a task that gains b for each unit of opening, all times batch and
    gates. A confident gate moves slowly: p (1 - p) falls like exp(-|s|).

    Args:
        activation, polarization: lambda_a, lambda_p of either sign.
        gain: b, one number, [gates], or one for each input and gate.
        rate: step size > 0. steps: number of steps.

    Raises:
        ValueError: rate not positive or steps negative.
    """
    if not rate > 0 or steps < 0:
        raise ValueError(f"rate must be positive and steps at least 0, got {rate} and {steps}")
    for _ in range(steps):
        p = logits.sigmoid()
        push = activation - gain + polarization * (1 - 2 * p.mean(0))
        logits = logits - rate * push * p * (1 - p)
    return logits


def dissent_from_polarization(polarization: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """d = (1 - sqrt(1 - 4 m (1 - m))) / 2, the minority's share behind a hard gate's m (1 - m) in [0, 1/4]."""
    if bool(((polarization < 0) | (polarization > 0.25)).any()):
        raise ValueError("polarization must lie in [0, 1/4] everywhere, got values that do not")
    return (1 - (1 - 4 * polarization).sqrt()) / 2


def exact_gradient(
    objective: Callable[[Tensor], Tensor], logits: Float[Tensor, " gates"]
) -> tuple[Float[Tensor, ""], Float[Tensor, " gates"]]:
    """E f(g) and its gradient in s, g_l ~ Bernoulli(sigmoid(s_l)) independent: a sum over all 2^L states.

    Args:
        objective: f, from gates [states, gates] to values [states].
        logits: s, of at most 20 gates.
    """
    s = logits.detach().requires_grad_()
    states, chance = _states(s)
    mean = (chance * objective(states)).sum()
    return mean.detach(), torch.autograd.grad(mean, s)[0]


def straight_through_gradient(
    objective: Callable[[Tensor], Tensor], logits: Float[Tensor, " gates"], *, slope: str = "sigmoid"
) -> Float[Tensor, " gates"]:
    """The mean of what `binary_gate` with draws estimates: sum over states of P(g) df/dg(g) dg/ds.

    Args:
        objective, logits: as in `exact_gradient`; f must be differentiable.
        slope: "sigmoid" for dg/ds = p (1 - p), "identity" for 1.
    """
    s = logits.detach().requires_grad_()
    states, chance = _states(s.detach())
    # the value of the state, the slope of the gate: what the backward pass of a draw sees
    gate = binary_gate(s, slope=slope)  # type: ignore[arg-type]
    drawn = states + (gate - gate.detach())
    return torch.autograd.grad((chance * objective(drawn)).sum(), s)[0]


def neuron_polarization(scale: Float[Tensor, " neurons"], t: float | int) -> Float[Tensor, ""]:
    """R = t sum_i |s_i| - sum_i |s_i - mean s|: another method of a similar name, which rewards spread over neurons.

    For s_i in [0, a] its minima are corners, and a share 1/2 - t/4 of neurons (within [0, 1]) is at a.

    Source: Zhuang et al. 2020, "Neuron-level Structured Pruning using Polarization Regularizer", NeurIPS.
    """
    return t * scale.abs().sum() - (scale - scale.mean()).abs().sum()


def _states(s: Tensor) -> tuple[Tensor, Tensor]:
    """All 0/1 patterns [2^L, L] and their probabilities."""
    if s.ndim != 1 or not 1 <= len(s) <= 20:
        raise ValueError(f"logits must have 1 to 20 gates in one dimension, got {tuple(s.shape)}")
    states = torch.tensor(list(itertools.product([0.0, 1.0], repeat=len(s))), dtype=s.dtype, device=s.device)
    p = s.sigmoid()
    return states, (states * p + (1 - states) * (1 - p)).prod(1)
