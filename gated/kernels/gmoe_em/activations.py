"""What may stand between a linear score and the softmax, with its derivative and its degree of homogeneity.

An activation sigma with z sigma'(z) = p sigma(z) for all z is homogeneous of degree p: sigma(c z) = c^p sigma(z) for
c > 0. The gate softmax((sigma(beta_1^T x) + beta_0) / tau) then has an exact symmetry, (beta_1, beta_0, tau) ->
(c^(1/p) beta_1, c beta_0, c tau), and tau cannot be estimated.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

ActivationName = Literal[
    "identity", "tanh", "sigmoid", "gelu", "silu", "softplus", "sin", "relu", "leaky_relu", "square", "cube"
]


class Activation(NamedTuple):
    """sigma, sigma', and p where sigma is homogeneous of degree p (else None).

    Args:
        value, derivative: sigma and sigma'.

    Example:
        >>> ACTIVATIONS["identity"].degree
        1
    """

    value: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor]
    degree: int | None


def _gelu_derivative(z: Tensor) -> Tensor:
    density = torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    return 0.5 * (1 + torch.erf(z / math.sqrt(2))) + z * density


def _tanh_derivative(z: Tensor) -> Tensor:
    t = torch.tanh(z)
    return 1 - t * t


def _sigmoid_derivative(z: Tensor) -> Tensor:
    s = torch.sigmoid(z)
    return s * (1 - s)


def _silu_derivative(z: Tensor) -> Tensor:
    s = torch.sigmoid(z)
    return s * (1 + z * (1 - s))


LEAK = 0.1  # slope of the leaky ReLU below zero

ACTIVATIONS: dict[str, Activation] = {
    "identity": Activation(lambda z: z, torch.ones_like, 1),
    "tanh": Activation(torch.tanh, _tanh_derivative, None),
    "sigmoid": Activation(torch.sigmoid, _sigmoid_derivative, None),
    "gelu": Activation(lambda z: 0.5 * z * (1 + torch.erf(z / math.sqrt(2))), _gelu_derivative, None),
    "silu": Activation(lambda z: z * torch.sigmoid(z), _silu_derivative, None),
    "softplus": Activation(lambda z: -F.logsigmoid(-z), torch.sigmoid, None),
    "sin": Activation(torch.sin, torch.cos, None),
    "relu": Activation(torch.relu, lambda z: (z > 0).to(z.dtype), 1),
    "leaky_relu": Activation(
        lambda z: torch.where(z > 0, z, LEAK * z),
        lambda z: torch.where(z > 0, torch.ones_like(z), torch.full_like(z, LEAK)),
        1,
    ),
    "square": Activation(lambda z: z * z, lambda z: 2 * z, 2),
    "cube": Activation(lambda z: z * z * z, lambda z: 3 * z * z, 3),
}
