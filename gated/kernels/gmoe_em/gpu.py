"""The statistics in Triton: two kernels, no atomics, the same result on every run.

    _tile    at most 256 points of one block: everything about them in registers, [points, experts]; every number is
             added up over the points in float64 and written as a partial sum
    _total   a program for each data set and some of the numbers: adds up its tiles' partial sums, in order

Experts lie on an axis that is padded to a power of two. Where pairs of experts matter (which comes first, the Gram
matrix) a loop takes one expert's column after another out of the table, so that more experts are not more code.

Tensors are contiguous: x [B, d, L], y [B, L], count, segment [B]; beta0, b, variance [S, k]; beta1, a [S, k, d];
tau [S]; part [B * tiles, numbers] in the order of layout.py; bounds [S + 1] in tiles.
"""

from typing import no_type_check  # a run-time type checker must leave the kernels' source as it is

import torch
import triton
import triton.language as tl
from torch import Tensor

from gated.kernels.gmoe_em.activations import LEAK as _LEAK
from gated.kernels.gmoe_em.layout import sizes

LEAK = tl.constexpr(_LEAK)


@triton.jit
@no_type_check
def _sigma(z, NAME: tl.constexpr):
    """sigma(z) and sigma'(z)."""
    if NAME == "identity":
        value, slope = z, tl.full(z.shape, 1.0, z.dtype)
    elif NAME == "relu":
        value, slope = tl.maximum(z, 0.0), tl.where(z > 0, 1.0, 0.0)
    elif NAME == "leaky_relu":
        value, slope = tl.where(z > 0, z, LEAK * z), tl.where(z > 0, 1.0, LEAK)
    elif NAME == "square":
        value, slope = z * z, 2 * z
    elif NAME == "cube":
        value, slope = z * z * z, 3 * z * z
    elif NAME == "sin":
        value, slope = tl.sin(z), tl.cos(z)
    elif NAME == "gelu":
        phi = 0.5 * (1 + tl.erf(z * 0.7071067811865476))
        value, slope = z * phi, phi + z * 0.3989422804014327 * tl.exp(-0.5 * z * z)
    elif NAME == "tanh":
        small = tl.exp(-2 * tl.abs(z))
        size = (1 - small) / (1 + small)
        value, slope = tl.where(z > 0, size, -size), 1 - size * size
    else:
        small = tl.exp(-tl.abs(z))
        s = tl.where(z > 0, 1.0, small) / (1 + small)
        if NAME == "sigmoid":
            value, slope = s, s * (1 - s)
        elif NAME == "silu":
            value, slope = z * s, s * (1 + z * (1 - s))
        else:
            tl.static_assert(NAME == "softplus")
            value, slope = tl.maximum(z, 0.0) + tl.log(1 + small), s
    return value, slope


@triton.jit
@no_type_check
def _column(table, i, j):
    """Column j of [points, experts], [points, 1]."""
    return tl.sum(tl.where(i[None, :] == j, table, 0.0), 1)[:, None]


@triton.jit
@no_type_check
def _input(x, row, real, u: tl.constexpr, LENGTH: tl.constexpr):
    """z_u of z = (1, x), [points, 1], without the 1 of z_0 beyond the real points."""
    if u == 0:
        values = real.to(tl.float32)
    else:
        values = tl.load(x + (u - 1) * LENGTH + row, mask=real, other=0.0)
    return values[:, None]


@triton.jit
@no_type_check
def _sum(values):
    return tl.sum(values.to(tl.float64), 0)


@triton.jit
@no_type_check
def _tile(x, y, count, segment, beta0, beta1, a, b, variance, tau, part, LENGTH: tl.constexpr, NUMBERS: tl.constexpr,
          K: tl.constexpr, DIM: tl.constexpr, TOP: tl.constexpr, SLOPE: tl.constexpr, NAME: tl.constexpr,
          ROWS: tl.constexpr, COLS: tl.constexpr):
    """One row of `part`."""
    block, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row, i = tile * ROWS + tl.arange(0, ROWS), tl.arange(0, COLS)
    real, used = row < tl.load(count + block), i < K
    s = tl.load(segment + block)
    x += block * DIM * LENGTH
    z = tl.zeros((ROWS, COLS), tl.float32)
    error = tl.load(y + block * LENGTH + row, mask=real, other=0.0)[:, None]
    error = error - tl.load(b + s * K + i, mask=used, other=0.0)[None, :]
    for u in tl.static_range(DIM):
        xu = _input(x, row, real, u + 1, LENGTH)
        z += xu * tl.load(beta1 + (s * K + i) * DIM + u, mask=used, other=0.0)[None, :]
        error -= xu * tl.load(a + (s * K + i) * DIM + u, mask=used, other=0.0)[None, :]
    nu = tl.load(variance + s * K + i, mask=used, other=1.0)[None, :]
    score, slope = _sigma(z, NAME)
    l = (score + tl.load(beta0 + s * K + i, mask=used, other=0.0)[None, :]) / tl.load(tau + s)

    by = score if SLOPE else l
    chosen = (row >= 0)[:, None] & used[None, :]
    if TOP < K:
        before = tl.zeros((ROWS, COLS), tl.int32)
        for j in range(K):
            other = _column(by, i, j)
            before += ((other > by) | ((other == by) & (i[None, :] > j))).to(tl.int32)
        chosen = chosen & (before < TOP)

    l = tl.where(chosen, l, -float("inf"))
    top = tl.max(l, 1)[:, None]
    above = tl.where(chosen, l - top, 0.0)
    pi = tl.where(chosen, tl.exp(above), 0.0)
    total = tl.sum(pi, 1)[:, None]
    pi = pi / total
    joint = l - 0.5 * (error * error / nu + tl.log(nu))
    joint_top = tl.max(joint, 1)[:, None]
    r = tl.exp(joint - joint_top)
    joint_total = tl.sum(r, 1)[:, None]
    one = _input(x, row, real, 0, LENGTH)
    r = r / joint_total * one
    density = (joint_top - top + tl.log(joint_total / total) - 0.9189385332046727) * one

    D: tl.constexpr = DIM + 1
    CORNER: tl.constexpr = D * (D + 1) // 2
    GATE: tl.constexpr = (K - 1) * D + 1
    CROSS: tl.constexpr = 1 + K * CORNER
    SQUARE: tl.constexpr = CROSS + K * D
    GRADIENT: tl.constexpr = SQUARE + K
    GRAM: tl.constexpr = GRADIENT + GATE
    SELECTED: tl.constexpr = GRAM + GATE * (GATE + 1) // 2
    part += (block * tl.num_programs(1) + tile) * NUMBERS
    tl.store(part, tl.sum(_sum(density), 0))
    tl.store(part + SQUARE + i, _sum(r * error * error), mask=used)
    tl.store(part + SELECTED + i, _sum(tl.where(chosen, one, 0.0)), mask=used)
    free = i < K - 1
    middle = tl.sum(pi * above, 1)[:, None]
    aside = pi * (middle - above) * one
    tl.store(part + GRADIENT + GATE - 1, tl.sum(_sum((pi * one - r) * above), 0))
    tl.store(part + SELECTED - 1, tl.sum(_sum(-aside * (above - middle)), 0))
    for u in tl.static_range(D):
        zu = _input(x, row, real, u, LENGTH)
        steep = zu if u == 0 else zu * slope
        at = i * D + u  # of the gate's numbers
        tl.store(part + CROSS + at, _sum(r * error * zu), mask=used)
        tl.store(part + GRADIENT + at, _sum((r - pi * one) * steep), mask=free)
        tl.store(part + GRAM + at * GATE - at * (at - 1) // 2 + GATE - 1 - at, _sum(aside * steep), mask=free)
        for v in tl.static_range(D):
            zv = _input(x, row, real, v, LENGTH)
            if v >= u:
                tl.store(part + 1 + i * CORNER + u * D - u * (u - 1) // 2 + v - u, _sum(r * zu * zv), mask=used)
            for j in range(K - 1):
                spread = pi * (tl.where(i[None, :] == j, 1.0, 0.0) - _column(pi, i, j)) * steep * zv
                if v > 0:
                    spread *= _column(slope, i, j)
                to = j * D + v
                tl.store(part + GRAM + at * GATE - at * (at - 1) // 2 + to - at, _sum(spread), mask=free & (at <= to))


@triton.jit
@no_type_check
def _total(part, bounds, total, NUMBERS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    """total[s] <- the sum of the rows bounds[s] .. bounds[s + 1] - 1 of `part`."""
    s, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * COLS + tl.arange(0, COLS)
    first, last = tl.load(bounds + s), tl.load(bounds + s + 1)
    found = tl.zeros((ROWS, COLS), tl.float64)
    for start in range(first, last, ROWS):
        row = start + tl.arange(0, ROWS).to(tl.int64)
        inside = (row < last)[:, None] & (column < NUMBERS)[None, :]
        found += tl.load(part + row[:, None] * NUMBERS + column[None, :], mask=inside, other=0.0)
    tl.store(total + s * NUMBERS + column, tl.sum(found, 0), mask=column < NUMBERS)


def plan(kernel: str, k: int, d: int, length: int, *, hip: bool = False) -> dict[str, int]:
    """Tile sizes, warps and stages of a kernel: what is launched below, and what is compiled ahead of time."""
    if kernel == "_total":
        return {"NUMBERS": sum(sizes(k, d)), "ROWS": 16, "COLS": 32, "num_warps": 4, "num_stages": 1}
    cols = max(2, triton.next_power_of_2(k))
    rows = min(256, 2048 // cols, triton.next_power_of_2(length))
    # four elements of a table a thread; eight take up to twice the registers, and some spill
    warps = max(1, rows * cols // (4 * (64 if hip else 32)))
    return {"NUMBERS": sum(sizes(k, d)), "ROWS": rows, "COLS": cols, "num_warps": warps, "num_stages": 1}


def forward(x: Tensor, y: Tensor, count: Tensor, segment: Tensor, segments: int, parameters: list[Tensor], top_k: int,
            rank: str, activation: str) -> Tensor:
    """[segments, numbers] in float64."""
    (blocks, d, length), k = x.shape, parameters[0].shape[1]
    hip = torch.version.hip is not None
    tile, add = plan("_tile", k, d, length, hip=hip), plan("_total", k, d, length, hip=hip)
    tiles = triton.cdiv(length, tile["ROWS"])
    part = x.new_empty(blocks * tiles, tile["NUMBERS"], dtype=torch.float64)
    total = x.new_empty(segments, tile["NUMBERS"], dtype=torch.float64)
    bounds = tiles * torch.searchsorted(segment, torch.arange(segments + 1, device=x.device))
    given = [t.contiguous() for t in (x, y, count.long(), segment.long(), *parameters)]
    with torch.cuda.device_of(x):  # Triton launches on the current device; no-op on CPU (interpreter)
        if blocks:
            _tile[(blocks, tiles)](*given, part, LENGTH=length, K=k, DIM=d, TOP=top_k, SLOPE=rank == "slope",
                                   NAME=activation, **tile)
        if segments:
            _total[(segments, triton.cdiv(add["NUMBERS"], add["COLS"]))](part, bounds, total, **add)
    return total
