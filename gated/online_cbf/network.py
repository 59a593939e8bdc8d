"""A graph network that reads an agent's neighbourhood and answers with its strengths, for any number of agents.

    node_i = [g_i - p_i, v_i],   others: sum_j phi(e_ij),   obstacles: sum_o psi(e_io),   y_i = MLP of the three
    e_ij = [p_j - p_i, v_j - v_i, h_ij, l_i - l_j, tanh(50 (l_i - l_j))],   l = |g - p|,   e_io = [o - p_i, h_io]

Only differences enter, so that moving the whole world changes nothing, and sums run over whoever is near, in any order.
The last two numbers of e_ij say who has the shorter way, to the millimetre: ties are broken by so little.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from gated.gates._validation import check_axes, check_number, check_positive, check_sizes, is_number
from gated.online_cbf.arenas import Arena
from gated.online_cbf.filter import AgentState, check_state
from gated.online_cbf.rollout import Tuner


class Observation(NamedTuple):
    """What agents perceive, each in its own place's coordinates."""

    node: Float[Tensor, "batch agents 4"]
    other: Float[Tensor, "batch agents agents 7"]
    sees_other: Bool[Tensor, "batch agents agents"]
    obstacle: Float[Tensor, "batch agents obstacles 3"]
    sees_obstacle: Bool[Tensor, "batch agents obstacles"]

    def take(self, index: Tensor) -> Observation:
        """Those of the batch that `index` picks."""
        return Observation(*(x[index] for x in self))


def observe(
    a: Arena, state: AgentState, *, communication: float | int = 2.0, sensing: float | int = 2.0
) -> Observation:
    """Relative states of others and of obstacles whose centres are at most `communication` and `sensing` away.

    Raises:
        ValueError: a distance that is negative or NaN.
    """
    for name, reach in (("communication", communication), ("sensing", sensing)):
        check_number(name, reach, "[0, inf]")
    check_state(a, state)
    delta = state.position[:, None] - state.position[:, :, None]  # [i, j]: from i to j
    square = delta.square().sum(-1)
    barrier = square - (a.radius[:, :, None] + a.radius[:, None]).square()
    way = a.goal - state.position
    length = way.norm(dim=-1)
    shorter = length[:, :, None] - length[:, None]
    speed = state.velocity[:, None] - state.velocity[:, :, None]
    scalars = torch.stack([barrier, shorter, (50 * shorter).tanh()], -1)
    there = a.present[:, :, None] & a.present[:, None] & ~torch.eye(a.agents, dtype=torch.bool, device=way.device)
    spot = a.obstacle[:, None] - state.position[:, :, None]
    far = spot.square().sum(-1)
    spot_barrier = far - (a.radius[:, :, None] + a.obstacle_radius[:, None]).square()
    return Observation(
        torch.cat([way, state.velocity], -1),
        torch.cat([delta, speed, scalars], -1),
        there & (square <= communication**2),
        torch.cat([spot, spot_barrier[..., None]], -1),
        a.present[:, :, None] & (far <= sensing**2),
    )


class Neighbourhood(nn.Module):
    """The two sums and the agent itself, then an MLP: numbers for each agent. The policy's mean and its critic.

    Args:
        outputs: numbers an agent. width: of all hidden layers.
        sees: which of "self", "others" and "obstacles" enter; without any, what is left is one learned constant.
        generator: of the initial weights.

    Raises:
        ValueError: unknown or repeated names in `sees`; observations of other shapes, or on a CPU not finite.
    """

    def __init__(
        self,
        outputs: int,
        *,
        width: int = 32,
        sees: tuple[str, ...] = ("self", "others", "obstacles"),
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if len(set(sees) & {"self", "others", "obstacles"}) != len(sees):
            raise ValueError(f'sees must name some of "self", "others" and "obstacles" once each, got {sees}')
        check_sizes(outputs=outputs, width=width)
        self.sees = sees
        self.phi = _mlp(7, width, width, generator)
        self.psi = _mlp(3, width, width, generator)
        self.head = _mlp(4 + 2 * width, width, outputs, generator)

    def forward(self, seen: Observation) -> Float[Tensor, "batch agents outputs"]:
        check_axes(
            "batch agents 4, batch agents agents 7, batch agents agents, batch agents obstacles 3, "
            "batch agents obstacles",
            node=seen.node,
            other=seen.other,
            sees_other=seen.sees_other,
            obstacle=seen.obstacle,
            sees_obstacle=seen.sees_obstacle,
        )
        weight = next(self.head.parameters())
        if not weight.is_cuda and not torch.compiler.is_compiling():
            for name, x in zip(seen._fields, seen, strict=True):
                if x.is_floating_point() and not math.isfinite(x.sum().item()) and not x.isfinite().all():
                    raise ValueError(f"observation {name} must be finite everywhere; got NaN or infinity")
        node, other, obstacle = (x.to(weight.dtype) for x in (seen.node, seen.other, seen.obstacle))
        others = (self.phi(other) * seen.sees_other[..., None]).sum(2)
        obstacles = (self.psi(obstacle) * seen.sees_obstacle[..., None]).sum(2)
        parts = zip(("self", "others", "obstacles"), (node, others, obstacles), strict=True)
        return self.head(torch.cat([x if name in self.sees else torch.zeros_like(x) for name, x in parts], -1))


class GraphTuner(nn.Module):
    """A normal policy over y, squashed into strengths zeta = low (high / low)^sigmoid(y), to agents and to obstacles.

    Called like any `Tuner` it answers with the mean; `sampler` is the policy that draws.

    Args:
        low, high: bounds of zeta, 0 < low < high. A linear class-K function is clipped from 1 / dt on.
        start: zeta of the untrained policy, about; between low and high.
        log_std: of y at first; learned, the same for all agents.
        communication, sensing: as in `observe`. width, sees, generator: as in `Neighbourhood`.
    """

    def __init__(
        self,
        *,
        low: float | int = 0.5,
        high: float | int = 19.0,
        start: float | int = 3.0,
        log_std: float | int = -0.5,
        communication: float | int = 2.0,
        sensing: float | int = 2.0,
        width: int = 32,
        sees: tuple[str, ...] = ("self", "others", "obstacles"),
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not (all(map(is_number, (low, start, high))) and 0 < low < start < high < math.inf):
            raise ValueError(f"low, start and high must be positive and rise, got {low}, {start} and {high}")
        check_number("log_std", log_std)
        check_positive("communication", communication)
        check_positive("sensing", sensing)
        self.low, self.high, self.communication, self.sensing = low, high, communication, sensing
        self.network = Neighbourhood(2, width=width, sees=sees, generator=generator)
        share = math.log(start / low) / math.log(high / low)
        with torch.no_grad():
            last: Any = self.network.head[-1]
            last.weight.mul_(0.01)
            last.bias.fill_(math.log(share / (1 - share)))
        self.log_std = nn.Parameter(torch.full((2,), float(log_std)))

    def observe(self, a: Arena, state: AgentState) -> Observation:
        return observe(a, state, communication=self.communication, sensing=self.sensing)

    def strength(self, y: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """zeta of y; float64 for the simulator's sake."""
        return self.low * (self.high / self.low) ** y.double().sigmoid()

    def forward(self, a: Arena, state: AgentState) -> Float[Tensor, "batch agents 2"]:
        return self.strength(self.network(self.observe(a, state))).to(state.position.dtype)

    def draw(
        self, seen: Observation, generator: torch.Generator
    ) -> tuple[Float[Tensor, "batch agents 2"], Float[Tensor, "batch agents"]]:
        """y and its log density."""
        mean = self.network(seen)
        noise = torch.randn(mean.shape, generator=generator, device=generator.device).to(mean)
        y = mean + self.log_std.exp() * noise
        return y, self.log_density(mean, y)

    def log_density(self, mean: Float[Tensor, "*batch 2"], y: Float[Tensor, "*batch 2"]) -> Float[Tensor, "*batch"]:
        z = (y - mean) / self.log_std.exp()
        return (-0.5 * z.square() - self.log_std - 0.5 * math.log(2 * math.pi)).sum(-1)

    def sampler(self, generator: torch.Generator) -> Tuner:
        """The policy that draws anew at each call."""

        def policy(a: Arena, state: AgentState) -> Tensor:
            return self.strength(self.draw(self.observe(a, state), generator)[0]).to(state.position.dtype)

        return policy


def _mlp(inputs: int, width: int, outputs: int, generator: torch.Generator | None) -> nn.Sequential:
    net = nn.Sequential(
        nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, outputs)
    )
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.orthogonal_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)
    return net
