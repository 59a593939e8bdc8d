"""The mixture-of-experts layer: a gate, experts and a dispatch, three plain arguments.

    y_t = sum_j w_tj E_(e_tj)(x_t),    w_t, e_t = gate(signal_t)

Source: survey, eq. 5 and II-C (signals other than the token).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gated.moe.dispatch import sorted_dispatch
from gated.moe.routing import Routing, Slots

__all__ = ["MoE", "SharedExpert"]


class MoE(nn.Module):
    """`y, routing = layer(x)`: routes every token of x, runs its experts, adds their results up.

        layer = MoE(TopKGate(LinearScore(d, N), k=2), FFNExperts(N, d, 4 * d))
        y, routing = layer(x)                                   # x [*batch, d]
        loss = task(x + y) + 1e-2 * switch_loss(routing.probability, routing.dense())

    The routing of this very call comes back beside y: the balance losses, the load and the number of dropped choices
    are read from it, and the layer keeps nothing.

    Args:
        gate: `gate(signal, mask, generator)` -> `Routing` or `Slots`; see `gated.moe.gates`.
        experts: see `gated.moe.experts`.
        dispatch: `dispatch(x, routing, experts)` -> y, one of `gated.moe.dispatch`, or an `ExpertParallel`. Slots want
            `slots_dispatch`.

    A gate with `per_sequence = True` (Soft MoE, expert choice, a capacity counted by sequence) decides about x
    [*batch, time, d] one sequence at a time. All others see all tokens in one call.

    Example:
        >>> from gated.moe.gates import TopKGate
        >>> from gated.moe.scores import LinearScore
        >>> layer = MoE(TopKGate(LinearScore(8, 4), k=2), FFNExperts(4, 8, 16))
        >>> y, routing = layer(torch.randn(10, 8))
        >>> y.shape, routing.load().sum().item()  # ten tokens, two experts each
        (torch.Size([10, 8]), 20)
    """

    def __init__(
        self, gate: nn.Module, experts: nn.Module, dispatch: Callable[[Tensor, Any, Any], Tensor] = sorted_dispatch
    ):
        super().__init__()
        self.gate, self.experts, self.dispatch = gate, experts, dispatch

    def extra_repr(self) -> str:
        return f"dispatch={getattr(self.dispatch, '__name__', type(self.dispatch).__name__)}"

    def forward(
        self,
        x: Float[Tensor, "*batch dim"],
        signal: Tensor | None = None,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Float[Tensor, "*batch dim_out"], Routing | Slots]:
        """y and the routing of the tokens, in the order of `x.flatten(0, -2)`.

        Args:
            signal: what the gate sees instead of x, a row or an id for each token: [*batch, features], [*batch], or
                with one leading dimension for all tokens (see `gated.moe.levels`).
            mask: which experts each token may use, [*batch, num_experts] or [tokens, num_experts].
            generator: for the gate's noise in training; without it there is none.

        Raises:
            ValueError: a signal or mask for another number of tokens, and what gate and dispatch raise.
        """
        tokens = x.reshape(-1, x.shape[-1])
        seen = tokens if signal is None else _rows("signal", signal, x)
        allowed = None if mask is None else _rows("mask", mask, x)
        time = x.shape[-2] if x.ndim > 2 else len(tokens)
        if not getattr(self.gate, "per_sequence", False) or len(tokens) <= time:
            routing = self.gate(seen, allowed, generator)
            y = self.dispatch(tokens, routing, self.experts)
        else:
            masks = [None] * (len(tokens) // time) if allowed is None else allowed.split(time)
            parts = [self.gate(part, m, generator) for part, m in zip(seen.split(time), masks, strict=True)]
            if isinstance(parts[0], Slots):  # slots of one sequence must not read another
                ys = [self.dispatch(part, r, self.experts) for part, r in zip(tokens.split(time), parts, strict=True)]
                y, routing = torch.cat(ys), Slots(*(torch.cat(fields) for fields in zip(*parts, strict=True)))
            else:
                routing = Routing.join(parts)
                y = self.dispatch(tokens, routing, self.experts)
        return y.reshape(*x.shape[:-1], y.shape[-1]), routing


class SharedExpert(nn.Module):
    """y = shared(x) + MoE(x): an expert that every token uses, beside those it chooses. Returns (y, routing) too.

    Args:
        shared: any module from [*batch, dim] to the layer's output.
        layer: an `MoE`.

    Source: survey, II-B (ViMoE); Dai et al. 2024 (DeepSeekMoE), arXiv 2401.06066.

    Example:
        >>> from gated.moe.gates import TopKGate
        >>> from gated.moe.scores import LinearScore
        >>> layer = MoE(TopKGate(LinearScore(8, 4), k=1), FFNExperts(4, 8, 16))
        >>> y, routing = SharedExpert(torch.nn.Identity(), layer)(torch.ones(3, 8))
        >>> torch.allclose(y, layer(torch.ones(3, 8))[0] + 1, atol=1e-6)
        True
    """

    def __init__(self, shared: nn.Module, layer: MoE):
        super().__init__()
        self.shared, self.layer = shared, layer

    def forward(
        self,
        x: Float[Tensor, "*batch dim"],
        signal: Tensor | None = None,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Float[Tensor, "*batch dim_out"], Routing | Slots]:
        """As `MoE.forward`."""
        y, routing = self.layer(x, signal, mask, generator)
        return self.shared(x) + y, routing


def _rows(name: str, values: Tensor, x: Tensor) -> Tensor:
    """`values` with one leading dimension, a row for each token of x."""
    lead = x.shape[:-1]
    if values.shape[: len(lead)] == lead:
        return values.flatten(0, len(lead) - 1) if lead else values[None]
    if values.ndim and len(values) == lead.numel():
        return values
    raise ValueError(f"{name} must have a row for each of x's tokens, {tuple(lead)}; got shape {tuple(values.shape)}")
