"""One row after another, in machine code made by Inductor from the formulas below: Seidel's incremental method.

As long as a row is fulfilled by the optimum so far, this stays the optimum. Otherwise the new one lies on the row's
line, in the interval that the limits and the earlier rows leave of it. In the loop over problems there is no branch:
each line is looked at and taken where its row is broken. Lines and bounds are those of cpu.py.

Where an interval is empty by less than twice the slack (rows through one point, say), it depends on the order of the
rows whether the problem is solved. Such a problem is left to cpu.py, so that all verdicts are that one's.

The rows are written out, m^2 / 2 bounds, for each number of rows anew: `ROWS` is where that takes too long. The sizes
of batches, xi and the limit are inputs. Measured on one thread, 1,024 problems of 6 rows take 55 microseconds here, and
what surrounds them (checks, rows laid problem by problem, autograd's operator) 90.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gated.kernels.barrier_qp import cpu
from gated.kernels.machine_code import machine_code

ROWS = 10  # compiled in 40 seconds of one idle core; 6 rows in 25, one row in 6
FINE, DOUBTFUL, NONE = 0.0, 1.0, 2.0


def _optimum(table: Tensor, numbers: Tensor) -> list[Tensor]:
    """u_x, u_y, value, both active rows and verdict, each [problems], from [3m + 5, problems] and (xi, limit)."""
    m = len(table) // 3 - 1
    xi, limit = numbers[0], numbers[1]
    cx, cy, wx, wy, d = table[3 * m], table[3 * m + 1], table[3 * m + 2], table[3 * m + 3], table[3 * m + 4]
    zero = torch.zeros_like(d)
    one, none = zero + 1, zero - 1
    reach, tolerance = 2 * limit, cpu.tolerance(d.dtype)
    tiny, steepest, slack = torch.finfo(d.dtype).tiny, 4 / tolerance, tolerance / 2 * limit
    exponent, least, most = cpu.powers(d.dtype)
    integer = torch.int64 if d.dtype == torch.float64 else torch.int32

    def wish(x: Tensor, y: Tensor) -> Tensor:
        return (cx * x + cy * y + d).relu()

    push = xi * wish(wx, wy) / (xi * (cx * cx + cy * cy) + 1)
    x, y = wx - push * cx, wy - push * cy
    # limits: lines of x are without ends, those of y end at the limits of x
    at = torch.minimum(torch.maximum(x, -limit), limit)
    k = torch.where(x < at, m + 0.0, torch.where(x > at, m + 1.0, none))
    x, y = at, torch.where(x == at, y, wy - xi * cy * wish(at, wy) / (xi * cy * cy + 1))
    at = torch.minimum(torch.maximum(y, -limit), limit)
    t, moved = wx - xi * cx * wish(wx, at) / (xi * cx * cx + 1), y != at
    k = torch.where(y < at, m + 2.0, torch.where(y > at, m + 3.0, k))
    j = torch.where(moved & (t < -limit), m + 0.0, torch.where(moved & (t > limit), m + 1.0, none))
    x, y = torch.where(moved, torch.minimum(torch.maximum(t, -limit), limit), x), at

    verdict = zero
    earlier: list[tuple[Tensor, Tensor, Tensor]] = []
    for i in range(m):
        nx, ny = table[i], table[m + i]
        bits = torch.maximum(nx.abs(), ny.abs()).view(integer)
        power = ((~bits & exponent) - least).clamp(least, most).view(d.dtype)
        nx, ny, beta = nx * power, ny * power, table[2 * m + i] * power
        size = one / (nx * nx + ny * ny).clamp_min(tiny).sqrt()
        nx, ny, beta = nx * size, ny * size, torch.minimum(torch.maximum(beta * size, -2 * reach), 2 * reach)
        start_x, start_y = beta * nx + reach * ny, beta * ny - reach * nx
        t = (wy - start_y) * nx - (wx - start_x) * ny
        rise = cy * nx - cx * ny
        steep = rise * xi
        t = t - steep * wish(start_x - t * ny, start_y + t * nx) / (steep * rise + 1)
        # bounds, how fast they give way as a row moves back, and the rows' numbers; of two limits each is one bound
        bounds: list[tuple[Any, ...]] = []
        for number, slope, at in ((m, -ny, start_x), (m + 2, nx, start_y)):
            turned, lower, upper, reached = slope < 0, -limit - at, at - limit, 2 * reach * slope.abs()
            give, which = (one / slope).abs().clamp_max(steepest), torch.where(turned, number + 1.0, zero + number)
            first = torch.where(turned, upper, lower) * give
            last = 2 * reach - (torch.where(turned, lower, upper) + reached) * give
            bounds.append((first, last, give, -give, which, 2 * number + 1 - which))
        for number, (qx, qy, far) in enumerate(earlier):
            s, missing = qy * nx - qx * ny, far - qx * start_x - qy * start_y
            up, down = (one / s).clamp(0, steepest), (one / s).clamp(-steepest, 0)
            last = 2 * reach + (missing - 2 * reach * s) * down
            bounds.append((missing * up, last, up, down, float(number), float(number)))
        low, high, before, after, rising, falling = zero, zero + 2 * reach, none, none, zero, zero
        for first, last, up, down, lower, upper in bounds:
            later, sooner = first > low, last < high
            low, before, rising = (torch.where(later, *y) for y in ((first, low), (lower, before), (up, rising)))
            high, after, falling = (torch.where(sooner, *y) for y in ((last, high), (upper, after), (down, falling)))
        broken = beta - nx * x - ny * y > 0
        early, late = t < low, t > high
        t = torch.where(early, low, torch.where(late, high, t))
        gap = low - high
        lost = (gap > slack * (rising - falling)) | (nx.abs() + ny.abs() < 0.5)  # a row a = 0 has no line
        found = torch.where(lost, NONE, torch.where(gap > 0, DOUBTFUL, verdict))
        verdict = torch.where(broken, torch.maximum(found, verdict), verdict)
        x, y = torch.where(broken, start_x - t * ny, x), torch.where(broken, start_y + t * nx, y)
        k = torch.where(broken, float(i), k)
        j = torch.where(broken, torch.where(early, before, torch.where(late, after, none)), j)
        earlier.append((nx, ny, beta))

    over, dx, dy, lost = wish(x, y), x - wx, y - wy, verdict == NONE
    value = torch.where(lost, torch.inf, over * over * xi + dx * dx + dy * dy)
    first, last = torch.minimum(j, k), torch.maximum(j, k)
    single = first < 0
    first, last = torch.where(single, last, first), torch.where(single, none, last)
    x, y = torch.where(lost, zero, x), torch.where(lost, zero, y)
    return [x, y, value, torch.where(lost, none, first), torch.where(lost, none, last), verdict]


@functools.cache
def _compiled(m: int, dtype: torch.dtype) -> Callable[..., Sequence[Tensor]] | None:
    """`_optimum` for m rows in machine code. None, and a warning, where that cannot be had."""
    example = [torch.ones(3 * m + 5, 1009, dtype=dtype), torch.ones(2, dtype=dtype)]
    # no formula written out again where its result is at hand; the last few problems without vectors
    config = {"realize_opcount_threshold": 4, "realize_reads_threshold": 1, "cpp.enable_loop_tail_vec": False}
    return machine_code(lambda *given: _optimum(*given), example, **config)


def forward(
    a: Tensor, b: Tensor, c: Tensor, d: Tensor, w: Tensor, xi: float, limit: float
) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """What `cpu.forward` gives; None where nothing can be compiled, or the numbers' sum is not finite."""
    count, m = b.shape
    function = _compiled(m, a.dtype) if m <= ROWS and count > 1 else None
    if function is None:
        return None
    table = a.new_empty(3 * m + 5, count)
    into = table.numpy()  # whose copies start sooner
    into[: 2 * m].reshape(2, m, count)[:] = a.numpy().transpose(2, 1, 0)
    into[2 * m : 3 * m], into[3 * m : -3], into[-3:-1], into[-1] = (y.numpy().T for y in (b, c, w, d))
    if not math.isfinite(float(table.sum())):
        return None
    x, y, value, first, last, verdict = function(table, a.new_tensor([xi, limit]))
    out = torch.stack([x, y], 1), value, torch.stack([first, last], 1).long(), verdict != NONE
    some = np.flatnonzero(verdict.numpy() == DOUBTFUL)
    if len(some):
        for whole, part in zip(out, cpu.forward(a[some], b[some], c[some], d[some], w[some], xi, limit), strict=True):
            whole[some] = part
    return out
