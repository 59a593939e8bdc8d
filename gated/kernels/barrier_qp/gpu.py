"""The quadratic programs in Triton: one kernel forward, one backward; a program takes a block of problems.

    _solve     rows and limits of a block in registers, [problems, rows], of unit length; a loop takes one line after
               another out of them, the others leave an interval of it, and the cheapest line is kept
    _adjoint   the two active rows of each problem are read again; what is not active gets a gradient of 0

A line and its bounds are those of cpu.py, tolerance included. Tensors are contiguous: a [P, M, 2], b [P, M], c, w, u
[P, 2], d, value [P], active [P, 2] int64, feasible [P] int8.
"""

from typing import no_type_check  # a run-time type checker must leave the kernels' source as it is

import torch
import triton
import triton.language as tl
from torch import Tensor

from gated.kernels.barrier_qp.cpu import powers, tolerance

SLACK = tl.constexpr(tolerance(torch.float32) / 4)
STEEPEST = tl.constexpr(4 / tolerance(torch.float32))
TINY = tl.constexpr(torch.finfo(torch.float32).tiny)
EXPONENT, LEAST, MOST = (tl.constexpr(bits) for bits in powers(torch.float32))


@triton.jit
@no_type_check
def _over(cx, cy, d, x, y):
    return tl.maximum(d + cx * x + cy * y, 0.0)


@triton.jit
@no_type_check
def _pair(pointer, p, inside):
    """Both columns of [P, 2] at the problems p, each [problems, 1]."""
    x = tl.load(pointer + 2 * p, mask=inside, other=0.0)
    return x[:, None], tl.load(pointer + 2 * p + 1, mask=inside, other=0.0)[:, None]


@triton.jit
@no_type_check
def _power(x, y):
    """The power of two by which to multiply rows (x, y), as in cpu.py."""
    longest = tl.maximum(tl.abs(x), tl.abs(y))
    bits = (~longest.to(tl.int32, bitcast=True) & EXPONENT) - LEAST
    return tl.where(longest > 0, tl.minimum(tl.maximum(bits, LEAST), MOST).to(tl.float32, bitcast=True), 1.0)


@triton.jit
@no_type_check
def _column(table, i, k):
    """Column k [problems, 1] of [problems, rows]."""
    return tl.sum(tl.where(i[None, :] == k, table, 0.0), 1)[:, None]


@triton.jit
@no_type_check
def _line(nx, ny, beta, i, k, cx, cy, d, wx, wy, xi, reach):
    """Normal and starting point of row k's line, and t of its optimum."""
    lx, ly, far = _column(nx, i, k), _column(ny, i, k), _column(beta, i, k)
    x, y = far * lx + reach * ly, far * ly - reach * lx
    t = (wy - y) * lx - (wx - x) * ly
    rise = cy * lx - cx * ly
    t -= xi * rise * _over(cx, cy, d, x - t * ly, y + t * lx) / (1 + xi * rise * rise)
    return lx, ly, x, y, t


@triton.jit
@no_type_check
def _bounds(nx, ny, beta, lx, ly, x, y, reach):
    """What each row leaves of a line, low <= t <= high [problems, rows], and how fast that gives way."""
    s = ny * lx - nx * ly
    n = beta - nx * x - ny * y
    inverse = 1 / tl.where(s == 0, TINY, s)
    up, down = tl.minimum(tl.maximum(inverse, 0.0), STEEPEST), tl.maximum(tl.minimum(inverse, 0.0), -STEEPEST)
    return n * up, 2 * reach + (n - 2 * reach * s) * down, up, down


@triton.jit
@no_type_check
def _solve(a, b, c, d, w, u, value, active, feasible, xi, limit, P,
           M: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    p = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside, i = p < P, tl.arange(0, ROWS)
    at, given = p[:, None] * M + i[None, :], inside[:, None] & (i < M)[None, :]
    nx = tl.load(a + 2 * at, mask=given, other=0.0)
    ny = tl.load(a + 2 * at + 1, mask=given, other=0.0)
    power = _power(nx, ny)
    nx, ny = nx * power, ny * power
    size = tl.sqrt(tl.maximum(nx * nx + ny * ny, TINY))
    nx, ny = nx / size, ny / size
    beta = tl.load(b + at, mask=given, other=-1.0) * power / size
    beta = tl.minimum(tl.maximum(beta, -4 * limit), 4 * limit)
    box = i[None, :] - M  # the limits, and nothing beyond them
    nx = tl.where(box == 0, 1.0, tl.where(box == 1, -1.0, nx))
    ny = tl.where(box == 2, 1.0, tl.where(box == 3, -1.0, ny))
    beta = tl.where((box >= 0) & (box < 4), -limit, beta)
    cx, cy = _pair(c, p, inside)
    wx, wy = _pair(w, p, inside)
    wish = tl.load(d + p, mask=inside, other=0.0)[:, None]

    push = xi * _over(cx, cy, wish, wx, wy) / (1 + xi * (cx * cx + cy * cy))
    free_x, free_y = wx - push * cx, wy - push * cy
    free = tl.max(beta - nx * free_x - ny * free_y, 1)[:, None] <= 0
    reach = 2 * limit
    best = tl.where(free, -1.0, float("inf"))
    k = tl.full((BLOCK, 1), -1, tl.int32)
    slack = tl.zeros((BLOCK, 1), tl.float32)
    for l in range(M + 4):
        lx, ly, x, y, t = _line(nx, ny, beta, i, l, cx, cy, wish, wx, wy, xi, reach)
        low, high, up, down = _bounds(nx, ny, beta, lx, ly, x, y, reach)
        widest = tl.min(high - limit * SLACK * down, 1)[:, None] - tl.max(low - limit * SLACK * up, 1)[:, None]
        low, high = tl.max(low, 1)[:, None], tl.min(high, 1)[:, None]
        t = tl.minimum(tl.maximum(t, low), high)
        x, y = x - t * ly, y + t * lx
        over = _over(cx, cy, wish, x, y)
        cost = (x - wx) * (x - wx) + (y - wy) * (y - wy) + xi * over * over
        real = tl.abs(lx) + tl.abs(ly) > 0.5
        better = real & (low <= high) & (cost < best)
        # none so far: one that has a point when rows are moved back a little
        loose = real & (widest >= 0) & (k < 0) & (best > 0)
        best, k = tl.where(better, cost, best), tl.where(better | loose, l, k)
        slack = tl.where(better, 0.0, tl.where(loose, limit * SLACK, slack))

    lx, ly, x, y, t = _line(nx, ny, beta, i, k, cx, cy, wish, wx, wy, xi, reach)
    low, high, up, down = _bounds(nx, ny, beta, lx, ly, x, y, reach)
    low, before = tl.max(low - slack * up, 1, return_indices=True)
    high, after = tl.min(high - slack * down, 1, return_indices=True)
    low, before, high, after = low[:, None], before[:, None], high[:, None], after[:, None]
    j = tl.where(t < low, before, tl.where(t > high, after, -1))
    t = tl.minimum(tl.maximum(t, low), high)
    there = k >= 0
    ux = tl.where(there, x - t * ly, tl.where(free, free_x, 0.0))
    uy = tl.where(there, y + t * lx, tl.where(free, free_y, 0.0))
    j = tl.where(there, j, -1)
    one = tl.where(j < 0, k, tl.minimum(j, k))
    two = tl.where(j < 0, -1, tl.maximum(j, k))
    over = _over(cx, cy, wish, ux, uy)
    cost = (ux - wx) * (ux - wx) + (uy - wy) * (uy - wy) + xi * over * over
    p, inside = p[:, None], inside[:, None]
    tl.store(u + 2 * p, ux, mask=inside)
    tl.store(u + 2 * p + 1, uy, mask=inside)
    tl.store(value + p, tl.where(there | free, cost, float("inf")), mask=inside)
    tl.store(active + 2 * p, one.to(tl.int64), mask=inside)
    tl.store(active + 2 * p + 1, two.to(tl.int64), mask=inside)
    tl.store(feasible + p, (there | free).to(tl.int8), mask=inside)


@triton.jit
@no_type_check
def _row(a, p, k, inside, M: tl.constexpr):
    """The row or limit k of each problem, not of unit length."""
    given = inside & (k >= 0) & (k < M)
    at = 2 * (p * M + k)
    x, y = tl.load(a + at, mask=given, other=0.0), tl.load(a + at + 1, mask=given, other=0.0)
    x = tl.where(k == M, 1.0, tl.where(k == M + 1, -1.0, x))
    return x, tl.where(k == M + 2, 1.0, tl.where(k == M + 3, -1.0, y))


@triton.jit
@no_type_check
def _adjoint(a, c, d, w, u, active, du, da, db, dc, dd, dw, xi, P,
             M: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    p = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside, i = p < P, tl.arange(0, ROWS)
    k = tl.load(active + 2 * p, mask=inside, other=-1)
    j = tl.load(active + 2 * p + 1, mask=inside, other=-1)
    kx, ky = _row(a, p, k, inside, M)
    jx, jy = _row(a, p, j, inside, M)
    ux, uy = tl.load(u + 2 * p, mask=inside, other=0.0), tl.load(u + 2 * p + 1, mask=inside, other=0.0)
    gx, gy = tl.load(du + 2 * p, mask=inside, other=0.0), tl.load(du + 2 * p + 1, mask=inside, other=0.0)
    cx, cy = tl.load(c + 2 * p, mask=inside, other=0.0), tl.load(c + 2 * p + 1, mask=inside, other=0.0)
    wx, wy = tl.load(w + 2 * p, mask=inside, other=0.0), tl.load(w + 2 * p + 1, mask=inside, other=0.0)
    over = tl.load(d + p, mask=inside, other=0.0) + cx * ux + cy * uy
    of_k, of_j = _power(kx, ky), _power(jx, jy)
    kx, ky, jx, jy = kx * of_k, ky * of_k, jx * of_j, jy * of_j

    det, one = kx * jy - ky * jx, k >= 0
    two = (j >= 0) & (tl.abs(det) > tl.sqrt((kx * kx + ky * ky) * (jx * jx + jy * jy)) * SLACK)
    kx = tl.where(one, kx, 1.0)  # no row: any one, whose share is thrown away
    jx, jy = tl.where(two, jx, -ky), tl.where(two, jy, kx)
    det = kx * jy - ky * jx
    rho = tl.where(over > 0, xi, 0.0)
    pull = rho * (cx * gx + cy * gy) / (1 + rho * (cx * cx + cy * cy))
    rise = cy * kx - cx * ky
    held = (gy * kx - gx * ky) / (kx * kx + ky * ky + rho * rise * rise)
    yx = tl.where(two, 0.0, tl.where(one, -held * ky, gx - pull * cx))
    yy = tl.where(two, 0.0, tl.where(one, held * kx, gy - pull * cy))
    yc = rho * (yx * cx + yy * cy)

    fx, fy = gx - yx - yc * cx, gy - yy - yc * cy
    nu_k, nu_j = tl.where(one, (fx * jy - fy * jx) / det, 0.0), tl.where(two, (kx * fy - ky * fx) / det, 0.0)
    fx, fy = ux - wx + rho * over * cx, uy - wy + rho * over * cy
    mu_k, mu_j = tl.where(one, (fx * jy - fy * jx) / det, 0.0), tl.where(two, (kx * fy - ky * fx) / det, 0.0)
    tl.store(dw + 2 * p, yx, mask=inside)
    tl.store(dw + 2 * p + 1, yy, mask=inside)
    tl.store(dc + 2 * p, -rho * over * yx - yc * ux, mask=inside)
    tl.store(dc + 2 * p + 1, -rho * over * yy - yc * uy, mask=inside)
    tl.store(dd + p, -yc, mask=inside)

    first, second = i[None, :] == k[:, None], i[None, :] == j[:, None]
    power = tl.where(first, of_k[:, None], tl.where(second, of_j[:, None], 0.0))
    nu = tl.where(first, nu_k[:, None], tl.where(second, nu_j[:, None], 0.0))
    mu = tl.where(first, mu_k[:, None], tl.where(second, mu_j[:, None], 0.0))
    at, given = p[:, None] * M + i[None, :], inside[:, None] & (i < M)[None, :]
    tl.store(da + 2 * at, (mu * yx[:, None] - nu * ux[:, None]) * power, mask=given)
    tl.store(da + 2 * at + 1, (mu * yy[:, None] - nu * uy[:, None]) * power, mask=given)
    tl.store(db + at, nu * power, mask=given)


def plan(kernel: str, M: int) -> dict[str, int]:
    """Tile sizes, warps and stages of a kernel: what is launched below, and what is compiled ahead of time."""
    rows = triton.next_power_of_2(M + 4)
    return {"BLOCK": max(1, 512 // rows), "ROWS": rows, "num_warps": 4, "num_stages": 1}


def _launch(kernel, P: int, M: int, *arguments) -> None:
    block = plan(kernel.__name__, M)
    if P:
        with torch.cuda.device_of(arguments[0]):  # Triton launches on the current device; no-op on CPU (interpreter)
            kernel[(triton.cdiv(P, block["BLOCK"]),)](*arguments, P, M=M, **block)


def forward(
    a: Tensor, b: Tensor, c: Tensor, d: Tensor, w: Tensor, xi: float, limit: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    given = [y.contiguous() for y in (a, b, c, d, w)]
    P, M, _ = a.shape
    u, value, feasible = a.new_empty(P, 2), a.new_empty(P), a.new_empty(P, dtype=torch.bool)
    active = a.new_empty(P, 2, dtype=torch.int64)
    _launch(_solve, P, M, *given, u, value, active, feasible.view(torch.int8), xi, limit)
    return u, value, active, feasible


def backward(
    a: Tensor, b: Tensor, c: Tensor, d: Tensor, w: Tensor, u: Tensor, active: Tensor, du: Tensor, xi: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    given = [y.contiguous() for y in (a, c, d, w, u, active, du)]
    da, db, dc, dd, dw = (y.new_empty(y.shape) for y in (a, b, c, d, w))
    _launch(_adjoint, *b.shape, *given, da, db, dc, dd, dw, xi)
    return da, db, dc, dd, dw
