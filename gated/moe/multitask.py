"""Multi-task regression with experts that the tasks share, and gates that the tasks do or do not share.

With experts E_i(x) = relu(A_i x + b_i), a gate per task and a small tower h_k per task,

    y_k = h_k( sum_i softmax(W_k x)_i E_i(x) ).

This is MMoE; with one gate for all tasks it is OMoE, with one expert the shared bottom, and with expert k for task k
alone it is single-task learning. `TwoTasks` are two regression tasks whose relatedness is a dial.

Source: Ma, Zhao, Yi, Chen, Hong and Chi, "Modeling Task Relationships in Multi-task Learning with Multi-gate
Mixture-of-Experts", KDD 2018; the Gram-Schmidt step is that of MOORE (Hendawy, Peters and D'Eramo, ICLR 2024, arXiv
2311.11385).
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from gated.gates import softmax_gate
from gated.gates._validation import check_choice

Gates = Literal["task", "shared", "own"]


class TwoTasks(NamedTuple):
    """y_k = w_k . x + sum_i sin(alpha_i w_k . x + beta_i) + noise, with x ~ N(0, I)."""

    weight: Float[Tensor, "2 dim"]
    alpha: Float[Tensor, " waves"]
    beta: Float[Tensor, " waves"]
    noise: float | int

    def mean(self, x: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows 2"]:
        """y without noise."""
        z = x @ self.weight.T
        return z + torch.sin(z[..., None] * self.alpha + self.beta).sum(-1)

    def sample(self, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(x [rows, dim], y [rows, 2])."""
        x = torch.randn(rows, self.weight.shape[1], generator=generator, dtype=self.weight.dtype)
        y = self.mean(x)
        return x, y + self.noise * torch.randn(y.shape, generator=generator, dtype=y.dtype)


def two_tasks(
    correlation: float | int,
    generator: torch.Generator,
    *,
    dim: int = 100,
    scale: float | int = 0.3,
    waves: int = 5,
    noise: float | int = 0.1,
) -> TwoTasks:
    """w_1 = scale u_1 and w_2 = scale (rho u_1 + sqrt(1 - rho^2) u_2), with random orthonormal u_1, u_2.

    alpha and beta are standard normal. The argument w . x of the waves has the standard deviation `scale`.

    Raises:
        ValueError: correlation rho outside [-1, 1], dim < 2, waves < 0, or a negative noise.
    """
    if not -1 <= correlation <= 1:
        raise ValueError(f"correlation must lie in [-1, 1]; got {correlation}")
    if dim < 2 or waves < 0 or not noise >= 0:
        raise ValueError(f"dim >= 2, waves >= 0 and noise >= 0 must hold; got dim={dim}, waves={waves}, noise={noise}")
    u = torch.linalg.qr(torch.randn(dim, 2, generator=generator)).Q.T
    second = correlation * u[0] + math.sqrt(1 - correlation**2) * u[1]
    alpha, beta = torch.randn(2, waves, generator=generator)
    return TwoTasks(scale * torch.stack([u[0], second]), alpha, beta, noise)


def gram_schmidt(vectors: Float[Tensor, "*batch count dim"], eps: float = 1e-8) -> Float[Tensor, "*batch count dim"]:
    """Orthonormal vectors that span, for each j, what the first j of `vectors` span. A vector that lies in the span of
    those before it, to within the length `eps`, becomes shorter than one, and zero in the limit.

    Raises:
        ValueError: count > dim.
    """
    if vectors.shape[-2] > vectors.shape[-1]:
        raise ValueError(f"vectors must be at most as many as their dimension; got shape {tuple(vectors.shape)}")
    basis: list[Tensor] = []
    for v in vectors.unbind(-2):
        for _ in range(2):  # the second round removes what rounding left of the first
            for b in basis:
                v = v - (v * b).sum(-1, keepdim=True) * b
        basis.append(v / (v.square().sum(-1, keepdim=True) + eps**2).sqrt())
    return torch.stack(basis, -2)


class MMoE(nn.Module):
    """Maps x [rows, dim] to [rows, tasks].

    Args:
        dim: width of x.
        num_experts, hidden: number and width of the experts.
        tasks, tower: number of tasks, and width of the hidden layer of each task's tower.
        gates: "task": one softmax gate per task; "shared": one for all; "own": expert k serves task k alone, without a
            gate (then num_experts = tasks). One expert needs no gate and gets none.
        orthogonal: Gram-Schmidt over the experts' outputs of each row before they are mixed.

    Raises:
        ValueError: a size below 1, unknown gates, "own" with num_experts != tasks, or orthogonal with
            num_experts > hidden.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int = 8,
        hidden: int = 16,
        tasks: int = 2,
        tower: int = 8,
        *,
        gates: Gates = "task",
        orthogonal: bool = False,
    ) -> None:
        super().__init__()
        sizes = {"dim": dim, "num_experts": num_experts, "hidden": hidden, "tasks": tasks, "tower": tower}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1; got {size}")
        check_choice("gates", gates, get_args(Gates))
        if gates == "own" and num_experts != tasks:
            raise ValueError(f"num_experts must be tasks, {tasks}, with gates='own'; got {num_experts}")
        if orthogonal and num_experts > hidden:
            raise ValueError(f"num_experts must be at most hidden, {hidden}, with orthogonal=True; got {num_experts}")
        self.num_experts, self.tasks, self.gates, self.orthogonal = num_experts, tasks, gates, orthogonal
        self.experts = nn.Linear(dim, num_experts * hidden)
        learned = 0 if gates == "own" or num_experts == 1 else tasks if gates == "task" else 1
        self.gate = nn.Linear(dim, learned * num_experts, bias=False) if learned else None
        self.tower_in = nn.Parameter((2 * torch.rand(tasks, hidden + 1, tower) - 1) / math.sqrt(hidden))
        self.tower_out = nn.Parameter((2 * torch.rand(tasks, tower + 1, 1) - 1) / math.sqrt(tower))

    def weights(self, x: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows tasks experts"]:
        """Each task's weights of the experts; rows sum to one."""
        if self.gate is not None:
            logits = self.gate(x).unflatten(-1, (-1, self.num_experts))
            return softmax_gate(logits).expand(-1, self.tasks, -1)
        fixed = torch.eye(self.tasks) if self.gates == "own" else torch.ones(self.tasks, 1)
        return fixed.to(x).expand(len(x), -1, -1)

    def forward(self, x: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows tasks"]:
        outputs = F.relu(self.experts(x)).unflatten(-1, (self.num_experts, -1))
        if self.orthogonal:
            outputs = gram_schmidt(outputs)
        mixed = torch.einsum("nke,neh->knh", self.weights(x), outputs)
        hidden = F.relu(mixed @ self.tower_in[:, :-1] + self.tower_in[:, -1:])
        return (hidden @ self.tower_out[:, :-1] + self.tower_out[:, -1:])[..., 0].T
