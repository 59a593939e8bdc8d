"""The top-k gate in Triton: three kernels, no atomics, the same result on every run.

The rows are cut into parts, one program each, at most `PARTS` of them so that the scan between them stays short:

    _score    walks its part in tiles of rows: softmax, k rounds of a row's maximum, and each choice's rank among the
              part's choices of that expert; leaves the part's count of each expert
    _scan     count[part, i] <- sum of count[p, i] over the parts p < part;  offsets: the running sum of the totals
    _place    position = rank in the part + count[part, i]

A tile keeps the slot (0..k-1, or k where nothing was chosen) at each expert's column instead of a list of indices, so
that k is no unrolled code and the rank is a running sum of `slot < k` down the tile's columns.

Tensors are contiguous: logits [T, N]; weights, experts, position [T, K]; count [parts, N] int32; offsets [N + 1].
"""

from typing import no_type_check  # a run-time type checker must leave the kernels' source as it is

import torch
import triton
import triton.language as tl
from torch import Tensor

PARTS = 1024


@triton.jit
@no_type_check
def _score(logits, weights, experts, position, count, T, tiles, N: tl.constexpr, K: tl.constexpr,
           ROWS: tl.constexpr, COLS: tl.constexpr, RENORMALISE: tl.constexpr):
    """Weights, experts and ranks in the part; `tiles` tiles of ROWS rows."""
    part = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, COLS)
    seen = tl.zeros((COLS,), tl.int32)
    for tile in range(tiles):
        row = (part * tiles + tile) * ROWS + tl.arange(0, ROWS)
        inside = (row < T)[:, None] & (column < N)[None, :]
        l = tl.load(logits + row[:, None] * N + column[None, :], mask=inside, other=-float("inf")).to(tl.float32)
        top = tl.maximum(tl.max(l, 1), -3.4e38)  # a row of -inf alone gets zeros
        e = tl.exp(l - top[:, None])
        slot = tl.full((ROWS, COLS), K, tl.int32)
        for j in range(K):
            value, index = tl.max(tl.where(slot < K, -float("inf"), l), 1, return_indices=True)
            open = value > -float("inf")
            slot = tl.where((column[None, :] == index[:, None]) & open[:, None], j, slot)
            tl.store(experts + row * K + j, tl.where(open, index, -1).to(tl.int64), mask=row < T)
        chosen = (slot < K).to(tl.int32)
        rank = tl.cumsum(chosen, 0) - chosen + seen[None, :]
        seen += tl.sum(chosen, 0)
        total = tl.maximum(tl.sum(tl.where(slot < K, e, 0.0) if RENORMALISE else e, 1), 1.0)
        for j in range(K):
            here = slot == j
            weight = tl.sum(tl.where(here, e, 0.0), 1) / total
            tl.store(weights + row * K + j, weight.to(weights.dtype.element_ty), mask=row < T)
            at = tl.max(tl.where(here, rank, -1), 1)
            tl.store(position + row * K + j, at.to(tl.int64), mask=row < T)
    tl.store(count + part * N + column, seen, mask=column < N)


@triton.jit
@no_type_check
def _scan(count, offsets, parts, N: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    """One program: sums over earlier parts in place of the counts, and where each expert's choices start."""
    column = tl.arange(0, COLS)
    before = tl.zeros((COLS,), tl.int32)
    for start in range(0, parts, ROWS):
        row = start + tl.arange(0, ROWS)
        inside = (row < parts)[:, None] & (column < N)[None, :]
        at = count + row[:, None] * N + column[None, :]
        c = tl.load(at, mask=inside, other=0)
        tl.store(at, tl.cumsum(c, 0) - c + before[None, :], mask=inside)
        before += tl.sum(c, 0)
    ends = tl.cumsum(before.to(tl.int64), 0)
    tl.store(offsets + 1 + column, ends, mask=column < N)
    tl.store(offsets + column, tl.zeros((COLS,), tl.int64), mask=column < 1)


@triton.jit
@no_type_check
def _place(experts, position, count, choices, size, N: tl.constexpr, BLOCK: tl.constexpr):
    """Adds to each rank the choices of the same expert in earlier parts; a part has `size` choices."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    expert = tl.load(experts + i, mask=i < choices, other=-1)
    taken = expert >= 0
    before = tl.load(count + (i // size) * N + expert, mask=taken, other=0)
    tl.store(position + i, tl.load(position + i, mask=taken, other=0) + before, mask=taken)


def plan(kernel: str, N: int) -> dict[str, int]:
    """Tile sizes, warps and stages of a kernel: what is launched below, and what is compiled ahead of time."""
    if kernel == "_place":
        return {"BLOCK": 1024, "num_warps": 4, "num_stages": 1}
    cols = triton.next_power_of_2(N)
    return {"ROWS": max(1, 2048 // cols), "COLS": cols, "num_warps": 4, "num_stages": 1}


def forward(logits: Tensor, k: int, renormalise: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    logits = logits.contiguous()
    T, N = logits.shape
    weights = logits.new_empty(T, k)
    experts, position = (logits.new_empty(T, k, dtype=torch.int64) for _ in range(2))
    offsets = logits.new_empty(N + 1, dtype=torch.int64)
    block = plan("_score", N)
    tiles = max(1, triton.cdiv(T, PARTS * block["ROWS"]))
    parts = triton.cdiv(T, tiles * block["ROWS"])
    count = logits.new_empty(parts, N, dtype=torch.int32)
    with torch.cuda.device_of(logits):  # Triton launches on the current device; no-op on CPU (interpreter)
        if T:
            _score[(parts,)](logits, weights, experts, position, count, T, tiles, N=N, K=k, RENORMALISE=renormalise,
                             **block)
        _scan[(1,)](count, offsets, parts, N=N, **plan("_scan", N))
        if parts > 1:
            place = plan("_place", N)
            _place[(triton.cdiv(T * k, place["BLOCK"]),)](
                experts, position, count, T * k, tiles * block["ROWS"] * k, N=N, **place)
    return weights, experts, position, offsets
