"""In-place operators on rows, a row being one step of a whole batch; no array as long as the path but those asked for.

An operator on a row of 4,096 numbers takes about as long as its call, so what counts is how many there are: four a
step forward for modes (five for "baoab"), where autograd on the same formulas takes eight and keeps what each of them
makes. A new array of a whole path costs more than the operators that fill it, for its memory has to be mapped: noise
and control are read where they are, and of the way back only one row of each gradient is kept.

**Chunks.** For modes with a decay that stays the same, c steps are a 2 x 2 matrix M^c for each of them. So a path is
cut into about sqrt(T) chunks that are walked side by side from zero; M^c then carries the true states from chunk to
chunk, and a second walk starts from those. Twice the numbers, but about 4 sqrt(T) rows of calls in place of T: at
T = 100 that halves the time of rows of 256 numbers, and takes a fifth off that of 4,096; from WIDTH / 4 on nothing is
cut. The walk back does the same with M transposed.

**Gradients.** With p those by the state after a step and s_t = a p_v' what reaches the force, "released" has

    p_v = dL/dv_t + s_t + h p_z',    p_z = dL/dz_t + p_z' - h U''(z_t) s_t,    dL/db_t = p_v'

and the others alike. "baoab" ends a step with half a kick of the force with which the next one begins: both are one
kick of w = v - h/2 g(z), and v is half way. Parameters' gradients are sums over time, of -h s z for the stiffness and
of -h s z^3 for the quartic. For H that is the sum of -h z^T s: no eigenvector is differentiated.

Rows of a batch lie behind one another, so that the neighbour of every coordinate is the next number; couplings are
zero at the ends of rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

WIDTH = 32_767  # numbers in the rows of all chunks: from one more on, PyTorch's threads meet at every operator


class _Row(NamedTuple):
    """One step of an array; for a chain also as one line, without its last and without its first number."""

    all: Tensor
    left: Tensor
    right: Tensor


class _Force:
    """v - h g(z) and its gradients, row by row."""

    def __init__(self, stiffness: Tensor, coupling: Tensor | None, quartic: Tensor | None, h: float, batch: int):
        self.coupled, self.dense = coupling is not None, stiffness.dim() == 3
        self.size = (batch, stiffness.shape[-1])
        self.rows_of = (len(stiffness), batch // len(stiffness)) if self.dense else (batch,)
        self.shape = (*self.rows_of, stiffness.shape[-1])
        if coupling is not None:
            stiffness = stiffness + coupling + coupling.roll(1, -1)  # the last of a row is 0
            self.links = h * coupling.reshape(-1)[:-1]
        self.linear = -h * stiffness.contiguous()
        self.quartic = None if quartic is None else -h * quartic.contiguous()
        self.square, self.factor = self.row().all, self.row().all

    def split(self, y: Tensor) -> Tensor:
        """[..., batch, dim] as [..., groups, rows of a group, dim] where there is a matrix for each group."""
        return y.unflatten(-2, self.rows_of) if self.dense else y

    def rows(self, y: Tensor) -> list[_Row]:
        """The steps of y [time, batch, dim]."""
        rows = self.split(y).unbind(0)
        if not self.coupled:
            return [_Row(row, row, row) for row in rows]
        y = y.view(len(y), -1)
        return [_Row(*views) for views in zip(rows, y[:, :-1].unbind(0), y[:, 1:].unbind(0), strict=True)]

    def row(self, chunks: int = 1) -> _Row:
        """A new one, of zeros; or one for each of several chunks."""
        if self.coupled:
            return self.rows(torch.zeros(1, *self.size, dtype=self.linear.dtype))[0]
        row = torch.zeros(*((chunks,) if chunks > 1 else ()), *self.shape, dtype=self.linear.dtype)
        return _Row(row, row, row)

    def like(self, row: _Row) -> _Row:
        return self.row(len(row.all) if row.all.dim() > len(self.shape) else 1)

    def push(self, v: Tensor, z: _Row, out: _Row) -> None:
        """out = v - h g(z)."""
        if self.dense:
            torch.baddbmm(v, z.all, self.linear, out=out.all)
            return
        factor = self.linear
        if self.quartic is not None:
            torch.mul(z.all, z.all, out=self.square)
            factor = torch.addcmul(factor, self.quartic, self.square, out=self.factor)
        torch.addcmul(v, factor, z.all, out=out.all)
        if self.coupled:
            out.left.addcmul_(self.links, z.right)
            out.right.addcmul_(self.links, z.left)

    def pull(self, p: _Row, s: _Row, z: _Row) -> None:
        """p -= h U''(z) s."""
        if self.dense:
            p.all.baddbmm_(s.all, self.linear.mT)
            return
        factor = self.linear
        if self.quartic is not None:
            torch.mul(z.all, z.all, out=self.square)
            factor = torch.addcmul(factor, self.quartic, self.square, value=3, out=self.factor)
        p.all.addcmul_(factor, s.all)
        if self.coupled:
            p.left.addcmul_(self.links, s.right)
            p.right.addcmul_(self.links, s.left)


class _Sums:
    """Gradients of a force's parameters, up to the factor -h, as sums over the steps."""

    def __init__(self, force: _Force, chunks: int):
        self.force = force
        self.stiffness = torch.zeros_like(force.linear) if chunks == 1 else force.row(chunks).all
        self.product = torch.empty_like(self.stiffness)
        self.cross = torch.zeros_like(force.links) if force.coupled else None
        self.quartic = None if force.quartic is None else torch.zeros_like(force.quartic)

    def add(self, s: _Row, z: _Row) -> None:
        """After `pull` at the same z, whose square is read."""
        if self.force.dense:
            self.stiffness.baddbmm_(z.all.mT, s.all)
        elif self.quartic is None:
            self.stiffness.addcmul_(s.all, z.all)
        else:
            torch.mul(s.all, z.all, out=self.product)
            self.stiffness.add_(self.product)
            self.quartic.addcmul_(self.product, self.force.square)
        if self.cross is not None:
            self.cross.addcmul_(s.left, z.right).addcmul_(s.right, z.left)

    def give(self, rows: list[Tensor | None]) -> None:
        """Adds them to those of stiffness, coupling and quartic, each where there is one."""
        stiffness, coupling, quartic = rows
        assert stiffness is not None
        stiffness += self.stiffness.view(-1, *stiffness.shape).sum(0)
        # (s_i - s_{i+1}) (z_i - z_{i+1}): the stiffness has two of the four terms
        if coupling is not None and self.cross is not None:
            coupling += self.stiffness + self.stiffness.roll(-1, -1)
            coupling.view(-1)[:-1] -= self.cross
            coupling[:, -1] = 0
        if quartic is not None and self.quartic is not None:
            quartic += self.quartic


class _Part(NamedTuple):
    """chunks * length steps from `start` on: chunks of modes, walked side by side, or one chunk of any force."""

    start: int
    chunks: int
    length: int

    def cut(self, y: Tensor, force: _Force) -> list[Tensor]:
        """y [time, batch, dim] as the rows of each step of the chunks; y [1, batch, dim] is the same for all steps."""
        if len(y) == 1:
            return [row.contiguous() for row in force.split(y).unbind(0)] * self.length
        y = y[self.start : self.start + self.chunks * self.length]
        return list(force.split(y).unbind(0) if self.chunks == 1 else y.unflatten(0, (self.chunks, -1)).unbind(1))

    def rows(self, y: Tensor, force: _Force) -> list[_Row]:
        if self.chunks == 1:
            return force.rows(y[self.start : self.start + self.length])
        return [_Row(row, row, row) for row in self.cut(y, force)]

    def before(self, first: Tensor, y: Tensor, force: _Force) -> _Row:
        """The state before each chunk: `first` [batch, dim], or what stands in y."""
        row = force.row(self.chunks)
        if self.chunks == 1:
            row.all.copy_(force.split(y[self.start - 1] if self.start else first))
        else:
            row.all[0] = first
            row.all[1:] = y[self.length - 1 : -1 : self.length][: self.chunks - 1]
        return row


def _parts(time: int, decay: Tensor, stiffness: Tensor, coupling: Tensor | None, quartic: Tensor | None) -> list[_Part]:
    size = decay[0].numel()
    chunks = min(math.isqrt(time), WIDTH // size)
    if chunks < 4 or len(decay) > 1 or stiffness.dim() == 3 or coupling is not None or quartic is not None:
        return [_Part(0, 1, time)]
    length, rest = divmod(time, chunks)
    return [_Part(0, chunks, length), *([_Part(chunks * length, 1, rest)] if rest else [])]


def _walk(
    force: _Force,
    scheme: str,
    h: float,
    z: _Row,
    w: _Row,
    decays: list[Tensor],
    kicks: list[Tensor],
    zs: list[_Row],
    vs: list[Tensor],
    final: bool,
) -> None:
    """Steps from z and w, which for "baoab" is v - h/2 g(z), into `zs` and `vs`; leaves the last state in z and w.

    A row of `vs` may be that of `kicks`, and all of `zs` may be z: one is written over the other. `final`: `vs` is to
    hold velocities, not what "baoab" has before the force.
    """
    at, velocity, free = z, w.all, force.like(w)
    for a, kick, zt, vt in zip(decays, kicks, zs, vs, strict=True):
        if scheme == "baoab":
            torch.add(at.all, w.all, alpha=h / 2, out=zt.all)
            torch.addcmul(kick, a, w.all, out=vt)
            zt.all.add_(vt, alpha=h / 2)
            force.push(vt, zt, w)
            if final:
                vt.lerp_(w.all, 0.5)
        else:
            if scheme == "released":
                force.push(velocity, at, free)
            torch.add(at.all, velocity, alpha=h, out=zt.all)
            if scheme == "symplectic":
                force.push(velocity, zt, free)
            torch.addcmul(kick, a, free.all, out=vt)
            velocity = vt
        at = zt
    if at is not z:
        z.all.copy_(at.all)
    if velocity is not w.all:
        w.all.copy_(velocity)


def _power(stiffness: Tensor, decay: Tensor, h: float, scheme: str, length: int) -> tuple[Tensor, Tensor]:
    """What `length` steps without kicks make of z = 1 and of w = 1: rows [2, batch, dim] of z and of w.

    In float64, for an error of M would be the same in all chunks and add up; once where the batch shares its modes.
    """
    rows = 1 if stiffness.stride(0) == 0 and decay.stride(1) == 0 else len(stiffness)
    force = _Force(stiffness[:rows].double(), None, None, h, rows)
    z, w, v, none = (force.row(2) for _ in range(4))
    z.all[0], w.all[1] = 1, 1
    velocity = v.all if scheme == "baoab" else w.all
    decays, kicks, vs = ([y] * length for y in (decay[0, :rows].double(), none.all, velocity))
    _walk(force, scheme, h, z, w, decays, kicks, [z] * length, vs, False)
    shape = (2, *stiffness.shape)
    return z.all.to(stiffness.dtype).expand(shape).contiguous(), w.all.to(stiffness.dtype).expand(shape).contiguous()


def forward(
    z0: Tensor,
    v0: Tensor,
    noise: Tensor,
    sigma: Tensor,
    decay: Tensor,
    control: Tensor | None,
    stiffness: Tensor,
    coupling: Tensor | None,
    quartic: Tensor | None,
    step: float,
    scheme: str,
) -> tuple[Tensor, Tensor]:
    """z and v [time, batch, dim]."""
    h, time, force = step, len(noise), _Force(stiffness, coupling, quartic, step, len(z0))
    z, v = (torch.empty(noise.shape, dtype=noise.dtype) for _ in range(2))
    first, w = force.row(), force.row()
    first.all.copy_(force.split(z0))
    w.all.copy_(force.split(v0))
    if scheme == "baoab":
        half = force.row()
        force.push(w.all, first, half)
        w.all.lerp_(half.all, 0.5)
    for part in _parts(time, decay, stiffness, coupling, quartic):
        decays, zs, vs = part.cut(decay, force), part.rows(z, force), part.cut(v, force)
        controls = vs if control is None else part.cut(control, force)
        for vt, scale, e, u in zip(vs, part.cut(sigma, force), part.cut(noise, force), controls, strict=True):
            if control is None:
                torch.mul(scale, e, out=vt)
            else:
                torch.addcmul(u, scale, e, out=vt)
        if part.chunks > 1:
            # all chunks but the first from a state of zeros, then where each of them really starts
            starts = force.row(part.chunks), force.row(part.chunks)
            ends = force.row(part.chunks), force.row(part.chunks)
            for start, end, given in zip(starts, ends, (first, w), strict=True):
                start.all[0] = end.all[0] = given.all
            scratch = force.row(part.chunks).all if scheme == "baoab" else ends[1].all
            _walk(force, scheme, h, *ends, decays, vs, part.length * [ends[0]], part.length * [scratch], False)
            (zz, zw), (wz, ww) = _power(stiffness, decay, h, scheme, part.length)
            sz, sw = (y.all.unbind(0) for y in starts)
            for n in range(1, part.chunks):
                sz[n].copy_(ends[0].all[n - 1])
                sw[n].copy_(ends[1].all[n - 1])
                if n > 1:
                    sz[n].addcmul_(zz, sz[n - 1]).addcmul_(zw, sw[n - 1])
                    sw[n].addcmul_(wz, sz[n - 1]).addcmul_(ww, sw[n - 1])
            _walk(force, scheme, h, *starts, decays, vs, zs, vs, True)
            first.all.copy_(sz[-1])
            w.all.copy_(sw[-1])
        else:
            _walk(force, scheme, h, first, w, decays, vs, zs, vs, True)
    return z, v


def _walk_back(
    force: _Force,
    scheme: str,
    h: float,
    pz: _Row,
    pv: _Row,
    decays: list[Tensor],
    dzs: list[Tensor],
    dvs: list[Tensor],
    zs: list[_Row],
    tally: Callable[[_Row, _Row], None] | None = None,
    reached: Callable[[int], None] | None = None,
) -> None:
    """From the gradients by the last state, pz and pv (by w for "baoab"), to those by the first one, in place.

    Args:
        zs: positions, the first one before the first step.
        tally: is given s and z of each step.
        reached: is given t when pv is the gradient by the kick of step t.
    """
    s = force.like(pz)
    for t in reversed(range(len(dzs))):
        pz.all.add_(dzs[t])
        if scheme == "baoab":
            torch.add(pv.all, dvs[t], alpha=0.5, out=s.all)
        else:
            pv.all.add_(dvs[t])
            torch.mul(pv.all, decays[t], out=s.all)
        at = zs[t if scheme == "released" else t + 1]
        if scheme != "released":
            force.pull(pz, s, at)
            if tally:
                tally(s, at)
        if scheme == "baoab":
            pv.all.add_(dvs[t]).add_(pz.all, alpha=h / 2)
        if reached:
            reached(t)
        if scheme == "baoab":
            pv.all.mul_(decays[t]).add_(pz.all, alpha=h / 2)
        else:
            torch.add(s.all, pz.all, alpha=h, out=pv.all)
        if scheme == "released":
            force.pull(pz, s, at)
            if tally:
                tally(s, at)


def _reached(
    force: _Force,
    scheme: str,
    kick: Tensor,
    scales: list[Tensor],
    noises: list[Tensor],
    zs: list[_Row],
    vs: list[Tensor],
    into: tuple[list[Tensor] | None, ...],
    t: int,
) -> None:
    """What the gradient by the kick of step t is for noise, sigma, decay and control, where they are wanted."""
    d_noise, d_sigma, d_decay, d_control = into
    if d_control is not None:
        d_control[t].copy_(kick)
    if d_noise is not None:
        torch.mul(kick, scales[t], out=d_noise[t])
    if d_sigma is not None:
        d_sigma[t].addcmul_(kick, noises[t])
    if d_decay is not None:  # friction acts on v - h g, or on half of that way
        at = zs[t + 1 if scheme == "symplectic" else t]
        free = force.like(at)
        force.push(vs[t], at, free)
        d_decay[t].addcmul_(kick, free.all.lerp_(vs[t], 0.5) if scheme == "baoab" else free.all)


def backward(
    z0: Tensor,
    v0: Tensor,
    z: Tensor,
    v: Tensor,
    noise: Tensor,
    sigma: Tensor,
    decay: Tensor,
    stiffness: Tensor,
    coupling: Tensor | None,
    quartic: Tensor | None,
    step: float,
    scheme: str,
    dz: Tensor,
    dv: Tensor,
    wanted: list[bool],
) -> list[Tensor]:
    """Gradients of z0, v0 and, empty if not wanted, of noise, sigma, decay, control, stiffness, coupling, quartic."""
    h, time, force = step, len(noise), _Force(stiffness, coupling, quartic, step, len(z0))
    pz, pv = force.row(), force.row()
    out = [
        torch.zeros(like.shape, dtype=z.dtype) if want else z.new_empty(0)
        for like, want in zip((noise, sigma, decay, noise), wanted, strict=False)
    ]
    rows = [None if y is None else torch.zeros(y.shape, dtype=z.dtype) for y in (stiffness, coupling, quartic)]
    for part in reversed(_parts(time, decay, stiffness, coupling, quartic)):
        sums, decays = _Sums(force, part.chunks), part.cut(decay, force)
        zs = [part.before(z0, z, force), *part.rows(z, force)]
        vs = [part.before(v0, v, force).all, *part.cut(v, force)] if wanted[2] else []
        scales, noises = part.cut(sigma, force), part.cut(noise, force)
        dzs, dvs = part.cut(dz, force), part.cut(dv, force)
        # sums over time, apart for each chunk, or a row for each step
        totals = [
            y.new_zeros(part.chunks, *y.shape[1:]) if want and len(y) == 1 else None
            for y, want in zip(out, wanted, strict=False)
        ]
        d_noise, d_sigma, d_decay, d_control = (
            None if not want else part.cut(y, force) if total is None else part.length * [force.split(total).squeeze(0)]
            for y, want, total in zip(out, wanted, totals, strict=False)
        )
        if part.chunks > 1:
            ends = force.row(part.chunks), force.row(part.chunks)
            starts = force.row(part.chunks), force.row(part.chunks)  # where the walk back from zero arrives
            for end, start, given in zip(ends, starts, (pz, pv), strict=True):
                end.all[-1] = start.all[-1] = given.all
            _walk_back(force, scheme, h, *starts, decays, dzs, dvs, zs)
            (zz, zw), (wz, ww) = _power(stiffness, decay, h, scheme, part.length)
            ez, ev = (y.all.unbind(0) for y in ends)
            for n in reversed(range(part.chunks - 1)):
                ez[n].copy_(starts[0].all[n + 1])
                ev[n].copy_(starts[1].all[n + 1])
                if n < part.chunks - 2:
                    ez[n].addcmul_(zz, ez[n + 1]).addcmul_(wz, ev[n + 1])
                    ev[n].addcmul_(zw, ez[n + 1]).addcmul_(ww, ev[n + 1])
        else:
            ends = pz, pv
        reached = partial(
            _reached, force, scheme, ends[1].all, scales, noises, zs, vs, (d_noise, d_sigma, d_decay, d_control)
        )
        _walk_back(force, scheme, h, *ends, decays, dzs, dvs, zs, sums.add if any(wanted[4:]) else None, reached)
        if part.chunks > 1:
            pz.all.copy_(ends[0].all[0])
            pv.all.copy_(ends[1].all[0])
        for y, total in zip(out, totals, strict=True):
            if total is not None:
                y.add_(total.sum(0))
        sums.give(rows)
    if scheme == "baoab":  # the half kick with which the first step begins
        s, start, sums = force.row(), force.row(), _Sums(force, 1)
        torch.mul(pv.all, 0.5, out=s.all)
        start.all.copy_(force.split(z0))
        force.pull(pz, s, start)
        sums.add(s, start)
        sums.give(rows)
    out += [z.new_empty(0) if y is None or not want else -h * y for y, want in zip(rows, wanted[4:], strict=True)]
    return [pz.all.reshape(z0.shape), pv.all.reshape(z0.shape), *out]
