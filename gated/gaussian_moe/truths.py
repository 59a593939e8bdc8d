"""The models that the chapters draw their data from, all with inputs in R^1 and in float64.

| name          | x is uniform on | kept   | what it is                                                       |
|---------------|-----------------|--------|------------------------------------------------------------------|
| `DENSE`       | [0, 1]          | 2 of 2 | the dense predecessor's example: slopes 25 and 0                 |
| `SPARSE`      | [-1, 1]         | 2 of 3 | ranked by slope: x > 0 keeps experts 1, 3 and x < 0 keeps 2, 3   |
| `TOP1`        | [0, 1]          | 1 of 2 | `DENSE`'s parameters, ranked by logit: the boundary is at 8 / 25 |
| `TEMPERATURE` | [-1, 1]         | 2 of 2 | tau = 0.5; any activation, `temperature_truth("tanh")`           |

`DENSE`'s standard deviations .3 and .4 are those of the code of Nguyen, Nguyen and Ho 2023 (arXiv 2305.03288), whose
text calls them variances.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from gated.gaussian_moe.model import Gate, GaussianMoE
from gated.kernels.gmoe_em.activations import ActivationName

DENSE = GaussianMoE.of([-8, 0], [25, 0], [-20, 20], [15, -5], [0.3**2, 0.4**2])
SPARSE = GaussianMoE.of(
    [0.5, -0.5, 0], [3, -3, 0], [2, 2, 0.5], [2, -2, 0], [0.16, 0.16, 0.25], gate=Gate(top_k=2, rank="slope")
)
TOP1 = DENSE.with_gate(Gate(top_k=1, rank="logit"))
TEMPERATURE = GaussianMoE.of([0.2, 0], [2, 0], [3, -2], [1, -1], [0.25, 0.25], tau=0.5)

UNIT, SYMMETRIC = (0.0, 1.0), (-1.0, 1.0)


def temperature_truth(activation: ActivationName) -> GaussianMoE:
    """`TEMPERATURE` with an activation in its gate."""
    return TEMPERATURE.with_gate(replace(TEMPERATURE.gate, activation=activation))


def uniform(interval: tuple[float, float], *shape: int, generator: torch.Generator) -> Float[Tensor, "*shape 1"]:
    """Inputs in R^1, uniform on the interval, in float64."""
    low, high = interval
    return low + (high - low) * torch.rand(*shape, 1, dtype=torch.float64, generator=generator)
