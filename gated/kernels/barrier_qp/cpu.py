"""Whole batches as rows of operators: first the line that is right most often, then all lines where it was not.

Nine problems in ten are settled by one line, that of the row which the free optimum breaks most. The line's optimum
within what all other rows leave of it is the problem's if the multiplier of its row is not negative. For the others
every line is taken, in m^2 work instead of m, and the cheapest wins.

Problems lie along the last axis, rows of unit length before it. A line starts at `2 limit` before its foot, outside of
the box, and t >= 0 runs along it. A row leaves of it t >= n / s or t <= n / s by the sign of its slope s. `clamp` of
1 / s tells one from the other: comparisons and `where` take ten times as long as arithmetic here. It also bounds 1 / s,
so that a parallel row moves the bound past all of the box, one way or the other by what it misses.

Measured at 1,024 problems on one thread: most operators are NumPy's, which start in 0.4 microseconds instead of 1;
`clamp` and maxima with their places are PyTorch's, in half and in three quarters of the time.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray
BOX = np.array([[[1.0], [-1.0], [0.0], [0.0]], [[0.0], [0.0], [1.0], [-1.0]]])
CHUNK = 4096  # problems at a time; from here on more are no faster
TABLE = 2**20  # lines times rows of the problems whose lines are all taken at a time


def tolerance(dtype: torch.dtype | np.dtype) -> float:
    """By how much of the limit a row may be missed: a quarter for rows moved back, the rest for parallel ones."""
    return 1e-9 if dtype in (torch.float64, np.float64) else 1e-5


def powers(dtype: torch.dtype | np.dtype) -> tuple[int, int, int]:
    """The bits of a float's exponent, and those of the smallest power of two and of the largest that are used.

    A row times the power of two that brings its longer entry to [1, 2), or into [2^-52, 4) at the ends of the floats'
    range, has a square that neither over- nor underflows, and such a product is exact. For an exponent with the bits
    e that power has the bits ~e, less the smallest ones.
    """
    fraction, all_ones = (52, 2047) if dtype in (torch.float64, np.float64) else (23, 255)
    return all_ones << fraction, 1 << fraction, (all_ones - 2) << fraction


def _power(x: Array, y: Array) -> Array:
    """The power of two by which to multiply rows (x, y)."""
    exponent, low, high = powers(x.dtype)
    bits = np.maximum(np.abs(x), np.abs(y)).view(f"i{x.itemsize}")
    np.invert(bits, out=bits)
    bits &= exponent
    bits -= low
    return np.minimum(np.maximum(bits, low, out=bits), high, out=bits).view(x.dtype)


class _Cost(NamedTuple):
    """|u - w|^2 + xi max(0, c.u + d)^2, each of them [problems]."""

    cx: Array
    cy: Array
    d: Array
    wx: Array
    wy: Array
    xi: float

    def wish(self, x: Array, y: Array) -> Array:
        """max(0, c.u + d)."""
        return np.maximum(self.cx * x + self.cy * y + self.d, 0)

    def free(self) -> tuple[Array, Array]:
        push = self.wish(self.wx, self.wy) * self.xi / (self.xi * (self.cx * self.cx + self.cy * self.cy) + 1)
        return self.wx - push * self.cx, self.wy - push * self.cy

    def along(self, line: _Line) -> Array:
        """t of the line's optimum."""
        t = (self.wy - line.y) * line.nx - (self.wx - line.x) * line.ny
        rise = self.cy * line.nx - self.cx * line.ny
        steep = rise * self.xi
        t -= steep * self.wish(*line.at(t)) / (steep * rise + 1)
        return t

    def at(self, x: Array, y: Array) -> Array:
        over, dx, dy = self.wish(x, y), x - self.wx, y - self.wy
        return over * over * self.xi + dx * dx + dy * dy


class _Line(NamedTuple):
    """Unit normals and starting points of lines n.u = beta; t runs along (-ny, nx)."""

    nx: Array
    ny: Array
    x: Array
    y: Array

    @staticmethod
    def of(nx: Array, ny: Array, beta: Array, reach: float) -> _Line:
        return _Line(nx, ny, beta * nx + reach * ny, beta * ny - reach * nx)

    def at(self, t: Array) -> tuple[Array, Array]:
        return self.x - t * self.ny, self.y + t * self.nx

    def bounds(self, nx: Array, ny: Array, beta: Array, limit: float) -> tuple[Array, Array, Array, Array]:
        """What rows [m, ...] leave of the lines, low <= t <= -high, and how fast these give way as a row moves back."""
        steepest = 4 / tolerance(nx.dtype)
        s = ny * self.nx
        s -= nx * self.ny
        n = beta - nx * self.x
        n -= ny * self.y
        inverse = torch.from_numpy(np.divide(1, s))
        up, down = inverse.clamp(0, steepest).numpy(), inverse.clamp_(-steepest, 0).numpy()
        low = up * n
        s *= 4 * limit
        s -= n
        s *= down
        s -= 4 * limit
        return low, s, up, down


def unit_rows(a: Tensor, b: Tensor, limit: float) -> Array:
    """Normals of unit length, and distances from 0, of rows and limits [3, m + 4, problems]; a row a = 0 keeps its 0.

    Distances beyond the box are cut to the same side of it, where they say as much.
    """
    count, m, _ = a.shape
    space = a.new_empty(3, m + 4, count)
    rows = space.numpy()
    rows[:2, :m] = a.numpy().transpose(2, 1, 0)
    rows[2, :m] = b.numpy().T
    x, y, beta = rows[:, :m]
    size = x * x
    size += y * y
    tiny = np.finfo(size.dtype).tiny
    if not (tiny <= size.min(initial=1) and size.max(initial=1) < np.inf):
        rows[:, :m] *= _power(x, y)
        size = x * x + y * y
    np.maximum(size, tiny, out=size)  # a row a = 0
    np.divide(1, np.sqrt(size, out=size), out=size)
    x *= size
    y *= size
    beta *= size
    space[2, :m].clamp_(-4 * limit, 4 * limit)
    rows[:2, m:] = BOX
    rows[2, m:] = -limit
    return rows


def forward(
    a: Tensor, b: Tensor, c: Tensor, d: Tensor, w: Tensor, xi: float, limit: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """u [problems, 2], value [problems], active [problems, 2] and feasible [problems]."""
    count = len(a)
    u, value = a.new_empty(count, 2), a.new_empty(count)
    active, feasible = torch.empty(count, 2, dtype=torch.int64), torch.empty(count, dtype=torch.bool)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        for start in range(0, count, CHUNK):
            part = slice(start, start + CHUNK)
            out = u[part].numpy(), value[part].numpy(), active[part].numpy(), feasible[part].numpy()
            _solve(a[part], b[part], c[part], d[part], w[part], xi, limit, out)
    return u, value, active, feasible


def _solve(
    a: Tensor, b: Tensor, c: Tensor, d: Tensor, w: Tensor, xi: float, limit: float, out: tuple[Array, ...]
) -> None:
    """Writes what `forward` returns into `out`."""
    rows = unit_rows(a, b, limit)
    (cx, cy), (wx, wy) = _columns(c), _columns(w)
    cost = _Cost(cx, cy, d.numpy(), wx, wy, xi)
    nx, ny, beta = rows
    free_x, free_y = cost.free()
    missing = beta - nx * free_x
    missing -= ny * free_y
    worst, k = _max(missing)
    x, y, j, fits = _on_line(rows, k, cost, limit)
    inside = worst <= 0
    x, y = np.where(inside, free_x, x), np.where(inside, free_y, y)
    k, j = np.where(inside, -1, k), np.where(inside, -1, j)
    fits |= inside
    left = np.flatnonzero(~fits)
    size = max(1, TABLE // len(nx) ** 2)
    for start in range(0, len(left), size):
        rest = left[start : start + size]
        some = _Cost(cx.take(rest), cy.take(rest), cost.d.take(rest), wx.take(rest), wy.take(rest), xi)
        x[rest], y[rest], k[rest], j[rest], fits[rest] = _enumerate(rows.take(rest, axis=2), some, limit)
    first, last = np.minimum(j, k), np.maximum(j, k)
    one = first < 0
    u, value, active, feasible = out
    u[:, 0], u[:, 1], feasible[:] = x, y, fits
    value[:] = np.where(fits, cost.at(x, y), np.inf)
    active[:, 0], active[:, 1] = np.where(one, last, first), np.where(one, -1, last)


def _max(table: Array) -> tuple[Array, Array]:
    """The largest number of each column, and where it stands."""
    value, place = torch.from_numpy(table).max(0)
    return value.numpy(), place.numpy()


def _on_line(rows: Array, k: Array, cost: _Cost, limit: float) -> tuple[Array, Array, Array, Array]:
    """The optimum on the line of row k, the row that holds it there (or -1), and whether it is the problem's.

    The latter is for a row k that the free optimum breaks.
    """
    nx, ny, beta = rows
    place = np.arange(len(k))
    at = k * len(k) + place
    line = _Line.of(nx.take(at), ny.take(at), beta.take(at), 2 * limit)
    low, high, _, _ = line.bounds(nx, ny, beta, limit)
    (low, before), (high, after) = _max(low), _max(high)
    high = -high
    best = cost.along(line)
    early, late = best < low, best > high
    x, y = line.at(np.minimum(np.maximum(best, low), high))
    j = np.where(early, before, after)
    # the multiplier of row k is (gradient x n_j) / (n_k x n_j); the sign of the latter is known
    at = j * len(k) + place
    push = cost.wish(x, y) * cost.xi
    turn = (x - cost.wx + push * cost.cx) * ny.take(at) - (y - cost.wy + push * cost.cy) * nx.take(at)
    wrong = (early & (turn < 0)) | (late & (turn > 0)) | (low > high)
    return x, y, np.where(early | late, j, -1), ~wrong


def _enumerate(rows: Array, cost: _Cost, limit: float) -> tuple[Array, ...]:
    """Every line. Where none has a point, one that has when rows are moved back a little."""
    nx, ny, beta = rows
    line = _Line.of(nx, ny, beta, 2 * limit)
    lows, highs, up, down = line.bounds(nx[:, None], ny[:, None], beta[:, None], limit)
    (low, before), (high, after) = _max(lows), _max(highs)
    best = cost.along(line)
    t = np.minimum(np.maximum(best, low), -high)
    values = cost.at(*line.at(t))
    nothing = np.abs(nx) + np.abs(ny) < 0.5  # a row a = 0 has no line
    values[nothing | (low > -high)] = np.inf
    k, feasible = values.argmin(0), values.min(0) < np.inf
    doubt = np.flatnonzero(~feasible)
    if len(doubt):
        slack = tolerance(rows.dtype) / 4 * limit
        far = lows[..., doubt] - slack * up[..., doubt], highs[..., doubt] + slack * down[..., doubt]
        (low[:, doubt], before[:, doubt]), (high[:, doubt], after[:, doubt]) = _max(far[0]), _max(far[1])
        loose = ~nothing[:, doubt] & (low[:, doubt] <= -high[:, doubt])
        k[doubt], feasible[doubt] = loose.argmax(0), loose.any(0)
        t = np.minimum(np.maximum(best, low), -high)
    at = k * len(k) + np.arange(len(k))
    best, early, late = best.take(at), low.take(at), -high.take(at)
    j = np.where(best < early, before.take(at), np.where(best > late, after.take(at), -1))
    x, y = (z.take(at) for z in line.at(t))
    none = ~feasible
    x[none] = y[none] = 0
    k[none] = j[none] = -1
    return x, y, k, j, feasible


@np.errstate(divide="ignore", over="ignore", invalid="ignore")  # of what is thrown away: a row a = 0 has no line
def backward(
    a: Tensor, b: Tensor, c: Tensor, d: Tensor, w: Tensor, u: Tensor, active: Tensor, du: Tensor, xi: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of a, b, c, d, w from that of u: the adjoint of the equations that the winner solves.

    u - w + rho s c = sum mu_l a_l and a_l.u = b_l over the active rows; s = c.u + d, rho = xi where s > 0, else 0. Then
    y is what du leaves in directions that stay on those rows, in the metric of H = 1 + rho c c^T, and du - H y =
    sum nu_l a_l. With one active row the second direction is the one along its line.
    """
    count, m = b.shape
    table = np.concatenate([a.numpy().reshape(-1), BOX[..., 0].T.reshape(-1).astype(a.numpy().dtype)])
    (k, j), place = _columns(active), np.arange(0, count * m, m) if m else np.zeros(count, np.int64)
    (cx, cy), (wx, wy), (ux, uy), (gx, gy), far = _columns(c), _columns(w), _columns(u), _columns(du), d.numpy()
    one, two = k >= 0, j >= 0
    at = [2 * np.where(row < m, place + row, count * m + row - m) * there for row, there in ((k, one), (j, two))]
    kx, ky, jx, jy = (table.take(start + side) for start in at for side in (0, 1))
    of_k, of_j = _power(kx, ky), _power(jx, jy)
    kx, ky, jx, jy = kx * of_k, ky * of_k, jx * of_j, jy * of_j
    size = kx * kx + ky * ky
    turn = kx * jy - ky * jx
    two &= turn * turn > tolerance(a.dtype) ** 2 * size * (jx * jx + jy * jy)  # parallel rows hold u like one
    jx, jy = np.where(two, jx, -ky), np.where(two, jy, kx)
    det = kx * jy - ky * jx

    over = np.maximum(cx * ux + cy * uy + far, 0)
    rho = (over > 0) * far.dtype.type(xi)
    pull = rho * (cx * gx + cy * gy) / (rho * (cx * cx + cy * cy) + 1)
    rise = cy * kx - cx * ky
    held = (gy * kx - gx * ky) / (size + rho * rise * rise) * ~two
    yx, yy = np.where(one, -held * ky, gx - pull * cx), np.where(one, held * kx, gy - pull * cy)
    yc = rho * (yx * cx + yy * cy)
    over *= rho

    da, db = (np.zeros((count * m + 1, *y), far.dtype) for y in ((2,), ()))  # the last row for what is not active
    nx, ny, mx, my = gx - yx - yc * cx, gy - yy - yc * cy, ux - wx + over * cx, uy - wy + over * cy
    for row, there, power, qx, qy in ((k, one, of_k, jx, jy), (j, two, of_j, -kx, -ky)):
        nu, mu = (nx * qy - ny * qx) / det, (mx * qy - my * qx) / det
        to = np.where(there & (row < m), place + row, count * m)
        da[to, 0], da[to, 1], db[to] = (mu * yx - nu * ux) * power, (mu * yy - nu * uy) * power, nu * power
    dc, dw = np.stack([-over * yx - yc * ux, -over * yy - yc * uy], 1), np.stack([yx, yy], 1)
    da, db = da[:-1].reshape(count, m, 2), db[:-1].reshape(count, m)
    of_a, of_b, of_c, of_d, of_w = (torch.from_numpy(y) for y in (da, db, dc, -yc, dw))
    return of_a, of_b, of_c, of_d, of_w


def _columns(pairs: Tensor) -> tuple[Array, Array]:
    x, y = pairs.numpy().T
    return np.ascontiguousarray(x), np.ascontiguousarray(y)
