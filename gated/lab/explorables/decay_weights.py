"""What the decay figure shows: the weights of a gated memory, and the exponents that ways of factoring them meet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Scheme = Literal["one piece", "chunk", "sub-chunk"]
SCHEMES: tuple[Scheme, ...] = ("one piece", "chunk", "sub-chunk")
LIMITS = {"fp16": float(np.log(65504.0)), "fp32": float(np.log(3.4028234663852886e38))}


def log_gate(z: Sequence[float | int] | NDArray[np.float64], temperature: float | int) -> NDArray[np.float64]:
    """g = log σ(z) / τ, the log of the decay, at most 0. Source: the gate of Yang et al. 2024, arXiv 2312.06635."""
    logits = np.asarray(z, dtype=np.float64)
    if logits.ndim != 1 or not logits.size or not np.isfinite(logits).all():
        raise ValueError(f"z must be a non-empty row of finite numbers, got shape {logits.shape}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    return -np.logaddexp(0.0, -logits) / temperature


def decay_matrix(z: Sequence[float | int] | NDArray[np.float64], temperature: float | int) -> NDArray[np.float64]:
    """The weights exp(G_t − G_i) with which token t reads token i; 0 above the diagonal, 1 on it.

    G_t = Σ_{j≤t} log σ(z_j) / τ. The write of a step is not decayed by its own gate. Each difference is
    summed on its own, from i+1 to t, so that it is exact to rounding however far back the sequence began.

    Args:
        z: gate logits, one for each token.
        temperature: τ > 0.

    Raises:
        ValueError: an empty or non-finite z, or τ ≤ 0.
    """
    g = log_gate(z, temperature)
    exponent = np.array([[g[i + 1 : t + 1].sum() if i <= t else -np.inf for i in range(len(g))] for t in range(len(g))])
    return np.exp(exponent)


def max_exponent(
    z: Sequence[float | int] | NDArray[np.float64],
    temperature: float | int,
    scheme: Scheme,
    chunk: int = 64,
    subchunk: int = 16,
    repeats: int = 1,
) -> float:
    """The largest exponent that a way of factoring exp(G_t − G_i) = exp(G_t − R) · exp(R − G_i) has to take, in nats.

    ``"one piece"`` has the reference R = 0 before the first token, ``"chunk"`` the start of each chunk.
    ``"sub-chunk"`` has, for each pair of sub-blocks of a chunk, the first row of the later one, which lies
    between the two positions; its diagonal blocks take the difference itself. exp overflows beyond 11.09 in
    fp16 and 88.72 in fp32 and bfloat16.

    Args:
        z: gate logits of one sentence.
        temperature: τ > 0.
        scheme: which of the three.
        chunk, subchunk: lengths in tokens, both at least 1; the last block may be shorter.
        repeats: how often the sentence is repeated, at least 1.

    Raises:
        ValueError: a bad z or τ, an unknown scheme, or a length below 1.
    """
    for name, value in {"chunk": chunk, "subchunk": subchunk, "repeats": repeats}.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if scheme not in SCHEMES:
        raise ValueError(f"scheme must be one of {SCHEMES}, got {scheme!r}")
    g = np.tile(log_gate(z, temperature), repeats)
    if scheme == "one piece":
        return float(-g.sum())
    starts = range(0, len(g), chunk)
    if scheme == "chunk":
        return float(max(-g[start : start + chunk].sum() for start in starts))
    largest = 0.0
    for start in starts:
        end = min(start + chunk, len(g))
        for first in range(start, end, subchunk):
            rows = np.cumsum(g[first + 1 : min(first + subchunk, end)])  # G_t − G_first
            columns = np.cumsum(g[first:start:-1])  # G_first − G_i for the columns before, nearest first
            largest = max([largest, *rows, *columns])
    return float(largest)
