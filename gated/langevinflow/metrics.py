"""How good predicted rates are: the likelihood that they gain over each neuron's mean, in bits for each spike."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from gated.gates._validation import check_same_shape, holds_anywhere
from gated.langevinflow.objective import check_counts


def bits_per_spike(rates: Float[Tensor, "trials bins neurons"], spikes: Float[Tensor, "trials bins neurons"]) -> float:
    """(NLL of the null - NLL of the rates) / (spikes ln 2); the null is each neuron's mean over the given counts.

    ln y! cancels: it is sum [y log2(r / m) - (r - m) / ln 2] / spikes, computed in float64. Targets that are NaN are
    left out; rates of 0 count as 1e-9 (in a copy). Rates are expected counts per bin, not Hz. The null knows the
    evaluation's mean, so that a model of constant rates scores below 0 on new data.

    Raises:
        ValueError: shapes that differ, no spikes, rates that are negative or not finite where there is a target, counts
            that are negative or infinite.

    Source: Pei et al. 2021, "Neural Latents Benchmark '21" (arXiv 2109.04463).

    Example:
        >>> spikes = torch.tensor([[[1.0], [3.0]]])
        >>> round(bits_per_spike(torch.full_like(spikes, 2.0), spikes), 6)  # no better than the mean
        0.0
    """
    check_same_shape("rates", rates, "spikes", spikes)
    there = ~spikes.isnan()
    rates, spikes = rates.double(), spikes.double()
    check_counts("spikes", spikes[there])
    if holds_anywhere(~(rates[there].isfinite() & (rates[there] >= 0))):
        raise ValueError("rates must be finite and at least 0; got some that are not")
    counts = torch.where(there, spikes, 0.0)
    total = float(counts.sum())
    if not total > 0:
        raise ValueError("spikes must hold at least one spike; got none")
    axes = tuple(range(spikes.ndim - 1))
    floor = 1e-9
    null = counts.sum(axes) / there.sum(axes).clamp_min(1)
    rates, null = torch.where(rates == 0, floor, rates), torch.where(null == 0, floor, null)
    gain = counts * (rates / null).log() - (rates - null)
    return float(torch.where(there, gain, 0.0).sum()) / (total * math.log(2))
