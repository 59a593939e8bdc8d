"""The same task without a particle, by networks that return the same `Rates`, and how to make them equally large.

GRUVae              as LFADS: read both ways, one Gaussian code starts a generator that runs without input
MaskedTransformer   as NDT: attention over bins with learned positions, nothing is random but dropout
GRUTransformer      `LangevinFlow` without z and v
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gated.gates._validation import check_choice, check_number, check_sizes
from gated.langevinflow._validation import check_generator, check_input, check_rate, check_task
from gated.langevinflow.model import Decoder, Encoder, EncoderInput, Rates, dropout
from gated.langevinflow.objective import gaussian_kl

Model = TypeVar("Model", bound=nn.Module)


class GRUVae(nn.Module):
    """q(g_0 | x) = N(A e, exp(B e)), e the last states of a GRU either way; g_t = GRU(g_{t-1}); log rate = W g_t + b.

    LFADS (Pandarinath et al. 2018) without its controller. KL against N(0, I).

    Args:
        observed, neurons, bins: as in `LangevinFlow`.
        dim: width of the encoder's states, of the code and of the generator.
        rate: of the dropout on e and on g.

    Raises:
        ValueError: as `LangevinFlow`.
    """

    def __init__(self, observed: int, neurons: int, bins: int, *, dim: int = 32, rate: float | int = 0.05) -> None:
        super().__init__()
        check_task(observed, neurons, bins)
        check_rate(rate)
        self.bins = bins
        self.forth, self.back = (Encoder(observed, dim, rate=0.0) for _ in range(2))
        self.mean, self.log_variance = nn.Linear(2 * dim, dim), nn.Linear(2 * dim, dim)
        self.generator = nn.GRUCell(1, dim)
        self.readout = nn.Linear(dim, neurons)
        self.rate = rate

    def forward(
        self, spikes: Float[Tensor, "trials observed_bins observed"], generator: torch.Generator | None = None
    ) -> Rates:
        """One sample, or the mean's path without a generator. Raises ValueError as `LangevinFlow`."""
        check_input(spikes, self.forth.observed, self.bins)
        check_generator(self, generator)
        masks = generator if self.training else None
        seen = spikes.shape[1]
        code = torch.cat([self.forth(spikes, seen)[:, -1], self.back(spikes.flip(1), seen)[:, -1]], -1)
        code = dropout(code, self.rate, masks)
        mean, log_variance = self.mean(code), self.log_variance(code)
        g = mean
        if generator is not None:
            noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
            g = g + (log_variance / 2).exp() * noise
        nothing, states = g.new_zeros(len(g), 1), []
        for _ in range(self.bins):
            states.append(g)
            g = self.generator(nothing, g)
        h = torch.stack(states, 1)
        return Rates(self.readout(dropout(h, self.rate, masks)), gaussian_kl(mean, log_variance), h=h)


class MaskedTransformer(nn.Module):
    """log rate = W Layers(E x_t + p_t) + b: post-norm layers over all bins, with a learned position p_t.

    NDT (Ye and Pandarinath 2021) in small. Bins past the observed ones enter as a learned token. What is masked is up
    to the training: `coordinated_dropout` hides single counts, for this network as for the others.

    Args:
        observed, neurons, bins: as in `LangevinFlow`.
        dim: width, a multiple of heads. depth, heads, hidden: of the layers; hidden None is 2 dim.
        rate: of the dropout.
    """

    def __init__(
        self,
        observed: int,
        neurons: int,
        bins: int,
        *,
        dim: int = 32,
        depth: int = 1,
        heads: int = 2,
        hidden: int | None = None,
        rate: float | int = 0.05,
    ) -> None:
        super().__init__()
        check_task(observed, neurons, bins)
        check_sizes(dim=dim)
        self.observed, self.bins, self.rate = observed, bins, rate
        self.embed = nn.Linear(observed, dim)
        self.later = nn.Parameter(0.02 * torch.randn(dim))
        self.position = nn.Parameter(0.02 * torch.randn(bins, dim))
        self.decoder = Decoder(
            dim, neurons, depth=depth, heads=heads, hidden=2 * dim if hidden is None else hidden, rate=rate
        )

    def forward(
        self, spikes: Float[Tensor, "trials observed_bins observed"], generator: torch.Generator | None = None
    ) -> Rates:
        """Raises ValueError as `LangevinFlow`; the KL is 0."""
        check_input(spikes, self.observed, self.bins)
        check_generator(self, generator)
        masks = generator if self.training else None
        later = self.later.expand(len(spikes), self.bins - spikes.shape[1], -1)
        tokens = torch.cat([self.embed(spikes), later], 1) + self.position
        return Rates(self.decoder(dropout(tokens, self.rate, masks), masks), spikes.new_zeros(len(spikes)))


class GRUTransformer(nn.Module):
    """`LangevinFlow`'s encoder and decoder with [h] in place of [z, v, h]: what the particle adds is what this lacks.

    Args:
        observed, neurons, bins, encoder_input, depth, heads, hidden, rate: as in `LangevinFlow`.
        dim: width of h, a multiple of heads. The decoder is as wide, so that for equal size it is larger than there.
    """

    def __init__(
        self,
        observed: int,
        neurons: int,
        bins: int,
        *,
        dim: int = 96,
        encoder_input: EncoderInput = "current",
        depth: int = 1,
        heads: int = 2,
        hidden: int = 64,
        rate: float | int = 0.05,
    ) -> None:
        super().__init__()
        check_task(observed, neurons, bins)
        self.bins = bins
        check_choice("encoder_input", encoder_input, get_args(EncoderInput))
        self.encoder = Encoder(observed, dim, source=encoder_input, rate=rate)
        self.decoder = Decoder(dim, neurons, depth=depth, heads=heads, hidden=hidden, rate=rate)

    def forward(
        self, spikes: Float[Tensor, "trials observed_bins observed"], generator: torch.Generator | None = None
    ) -> Rates:
        """Raises ValueError as `LangevinFlow`; the KL is 0."""
        check_input(spikes, self.encoder.observed, self.bins)
        check_generator(self, generator)
        masks = generator if self.training else None
        h = self.encoder(spikes, self.bins, masks)
        return Rates(self.decoder(h, masks), spikes.new_zeros(len(spikes)), h=h)


def match_parameters(
    build: Callable[[int], Model], target: int, *, widths: range = range(2, 513, 2), tolerance: float | int = 0.05
) -> Model:
    """`build(width)` for the width whose number of parameters is nearest to `target`.

    Built without touching the global random state: all but the last one on the meta device.

    Args:
        widths: the widths that are tried.

    Raises:
        ValueError: no widths, or no width comes within `tolerance` (a share of the target).
    """
    check_sizes(target=target)
    check_number("tolerance", tolerance, "[0, inf)")
    if not len(widths):
        raise ValueError("widths must hold at least one width to try; got none")

    def size(width: int) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in build(width).parameters())

    low, high = 0, len(widths) - 1
    while low < high:  # sizes grow with the width
        middle = (low + high) // 2
        low, high = (middle + 1, high) if size(widths[middle]) < target else (low, middle)
    best = min(widths[max(low - 1, 0) : low + 1], key=lambda width: abs(size(width) - target))
    if abs(size(best) - target) > tolerance * target:
        raise ValueError(
            f"target must lie within {tolerance:.0%} of a size; {target} is not, {best} gives {size(best)}"
        )
    return build(best)
