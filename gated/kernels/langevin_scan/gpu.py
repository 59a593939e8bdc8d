"""The path in Triton: a program holds a block of one row's coordinates in registers and walks over all steps.

    _walk    z, v of a block stay in registers; a step reads its noise (and control) and writes z and v
    _back    the same walk in reverse, by the formulas of cpu.py; positions are read back, velocities only for the
             gradient of the decay. Parameters' gradients are sums in registers, one for each row of the batch, so
             that no two programs add to the same place and a result is the same on every run

Coordinates that are coupled must see their neighbours: then a block is a whole row, and the neighbours are the same
registers one place further, by a gather along the block. Couplings are zero at a row's end, where there is none. A
matrix H is diagonalised once; kicks and states are rotated into its modes and back, which is exact for a decay that
is the same for all coordinates. Its gradient is -h sum z^T s with s from `_back`, rotated back: no eigenvector is
differentiated, and equal eigenvalues do no harm.

Noise does not depend on the step before; it is asked for one step ahead. Arrays are contiguous: states and parameters
[B, D], paths [T, B, D], decay and sigma [1 or T, B, D]. SCHEME: 0 released, 1 symplectic, 2 baoab.
"""

from typing import no_type_check  # a run-time type checker must leave the kernels' source as it is

import torch
import triton
import triton.language as tl
from torch import Tensor

SCHEMES = ("released", "symplectic", "baoab")


@triton.jit
@no_type_check
def _beside(x, BLOCK: tl.constexpr):
    """The right and the left neighbour of each coordinate; at the ends, itself."""
    i = tl.arange(0, BLOCK)
    return tl.gather(x, tl.minimum(i + 1, BLOCK - 1), 0), tl.gather(x, tl.maximum(i - 1, 0), 0)


@triton.jit
@no_type_check
def _times(x, factor, link, before, COUPLED: tl.constexpr, BLOCK: tl.constexpr):
    """factor x less what comes from the neighbours: the product with a symmetric matrix that has three diagonals."""
    y = factor * x
    if COUPLED:
        right, left = _beside(x, BLOCK)
        y -= link * right + before * left
    return y


@triton.jit
@no_type_check
def _potential(stiffness, coupling, quartic, at, i, inside, COUPLED: tl.constexpr, QUARTIC: tl.constexpr):
    """Diagonal of the linear part, coupling to the right and to the left, quartic."""
    linear = tl.load(stiffness + at, mask=inside, other=0.0)
    link, before, cubic = linear * 0, linear * 0, linear * 0
    if COUPLED:
        link = tl.load(coupling + at, mask=inside, other=0.0)
        before = tl.load(coupling + at - 1, mask=inside & (i > 0), other=0.0)
        linear += link + before
    if QUARTIC:
        cubic = tl.load(quartic + at, mask=inside, other=0.0)
    return linear, link, before, cubic


@triton.jit
@no_type_check
def _walk(z0, v0, noise, sigma, decay, control, stiffness, coupling, quartic, z, v, step, T,
          D: tl.constexpr, BLOCK: tl.constexpr, SCHEME: tl.constexpr, COUPLED: tl.constexpr, QUARTIC: tl.constexpr,
          CONTROL: tl.constexpr, VARYING: tl.constexpr):
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside, at = i < D, tl.program_id(0).to(tl.int64) * D + i
    width = tl.num_programs(0).to(tl.int64) * D
    linear, link, before, cubic = _potential(stiffness, coupling, quartic, at, i, inside, COUPLED, QUARTIC)
    bz, bw = tl.load(z0 + at, mask=inside, other=0.0), tl.load(v0 + at, mask=inside, other=0.0)
    a, scale = tl.load(decay + at, mask=inside, other=0.0), tl.load(sigma + at, mask=inside, other=0.0)
    e = tl.load(noise + at, mask=inside, other=0.0)
    if SCHEME == 2:
        bw -= step / 2 * _times(bz, linear + cubic * bz * bz, link, before, COUPLED, BLOCK)
    for t in range(T):
        more = inside & (t + 1 < T)
        now = at + t * width
        ahead = tl.load(noise + now + width, mask=more, other=0.0)
        kick = scale * e
        if CONTROL:
            kick += tl.load(control + now, mask=inside, other=0.0)
        if SCHEME == 2:
            bz += step / 2 * bw
            bw = a * bw + kick
            bz += step / 2 * bw
            half = step / 2 * _times(bz, linear + cubic * bz * bz, link, before, COUPLED, BLOCK)
            bv = bw - half
            bw = bv - half
        else:
            if SCHEME == 1:
                bz += step * bw
            push = step * _times(bz, linear + cubic * bz * bz, link, before, COUPLED, BLOCK)
            if SCHEME == 0:
                bz += step * bw
            bw = a * (bw - push) + kick
            bv = bw
        tl.store(z + now, bz, mask=inside)
        tl.store(v + now, bv, mask=inside)
        e = ahead
        if VARYING:
            a = tl.load(decay + now + width, mask=more, other=0.0)
            scale = tl.load(sigma + now + width, mask=more, other=0.0)


@triton.jit
@no_type_check
def _state(first, path, at, t, width, inside):
    """The state before step t: the first one, or what step t - 1 left."""
    start = tl.load(first + at, mask=inside & (t == 0), other=0.0)
    return start + tl.load(path + at + (t - 1) * width, mask=inside & (t > 0), other=0.0)


@triton.jit
@no_type_check
def _back(z0, v0, z, v, noise, sigma, decay, stiffness, coupling, quartic, dz, dv, dz0, dv0, dnoise, dsigma, ddecay,
          dcontrol, dstiffness, dcoupling, dquartic, force, step, T,
          D: tl.constexpr, BLOCK: tl.constexpr, SCHEME: tl.constexpr, COUPLED: tl.constexpr, QUARTIC: tl.constexpr,
          VARYING: tl.constexpr, NOISE: tl.constexpr, FRICTION: tl.constexpr, CONTROL: tl.constexpr,
          MATRIX: tl.constexpr):
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside, at = i < D, tl.program_id(0).to(tl.int64) * D + i
    width = tl.num_programs(0).to(tl.int64) * D
    linear, link, before, cubic = _potential(stiffness, coupling, quartic, at, i, inside, COUPLED, QUARTIC)
    pz = tl.zeros((BLOCK,), tl.float32)
    pw, sum_s, sum_c, sum_q, sum_a, sum_e = pz, pz, pz, pz, pz, pz
    a, scale = tl.load(decay + at, mask=inside, other=0.0), tl.load(sigma + at, mask=inside, other=0.0)
    after = tl.load(z + at + (T - 1) * width, mask=inside, other=0.0)
    for back in range(T):
        t = T - 1 - back
        now = at + t * width
        entering = _state(z0, z, at, t, width, inside)
        gz = tl.load(dz + now, mask=inside, other=0.0)
        gv = tl.load(dv + now, mask=inside, other=0.0)
        if VARYING:
            a = tl.load(decay + now, mask=inside, other=0.0)
            scale = tl.load(sigma + now, mask=inside, other=0.0)
        where = entering if SCHEME == 0 else after  # the force's position
        curve = linear + 3 * cubic * where * where
        if SCHEME == 2:
            s = pw + 0.5 * gv
        else:
            s = a * (pw + gv)
        s = s * step
        pz += gz
        bend = _times(s, curve, link, before, COUPLED, BLOCK)
        if SCHEME == 2:
            pz -= bend
            kick = pw + gv + step / 2 * pz
            pw = a * kick + step / 2 * pz
        else:
            kick = pw + gv
            if SCHEME == 1:
                pz -= bend
            pw = a * kick + step * pz
            if SCHEME == 0:
                pz -= bend
        sum_s -= s * where
        if COUPLED:  # the links' sums: both neighbours' differences
            right, _ = _beside(where, BLOCK)
            s_right, _ = _beside(s, BLOCK)
            sum_c -= (s - s_right) * (where - right)
        if QUARTIC:
            sum_q -= s * where * where * where
        if MATRIX:
            tl.store(force + now + (0 if SCHEME == 0 else width), -s, mask=inside)
        if CONTROL:
            tl.store(dcontrol + now, kick, mask=inside)
        if NOISE:
            tl.store(dnoise + now, scale * kick, mask=inside)
        if FRICTION:
            spot = after if SCHEME == 1 else entering
            rest = _times(spot, linear + cubic * spot * spot, link, before, COUPLED, BLOCK)
            if SCHEME == 2:
                rest = rest / 2
            forgotten = kick * (_state(v0, v, at, t, width, inside) - step * rest)
            drawn = kick * tl.load(noise + now, mask=inside, other=0.0)
            if VARYING:
                tl.store(ddecay + now, forgotten, mask=inside)
                tl.store(dsigma + now, drawn, mask=inside)
            else:
                sum_a += forgotten
                sum_e += drawn
        after = entering
    if SCHEME == 2:
        s = step / 2 * pw
        pz -= _times(s, linear + 3 * cubic * after * after, link, before, COUPLED, BLOCK)
        sum_s -= s * after
        if COUPLED:
            right, _ = _beside(after, BLOCK)
            s_right, _ = _beside(s, BLOCK)
            sum_c -= (s - s_right) * (after - right)
        if QUARTIC:
            sum_q -= s * after * after * after
        if MATRIX:
            tl.store(force + at, -s, mask=inside)
    tl.store(dz0 + at, pz, mask=inside)
    tl.store(dv0 + at, pw, mask=inside)
    tl.store(dstiffness + at, sum_s, mask=inside)
    if COUPLED:
        tl.store(dcoupling + at, tl.where(i < D - 1, sum_c, 0.0), mask=inside)
    if QUARTIC:
        tl.store(dquartic + at, sum_q, mask=inside)
    if FRICTION and not VARYING:
        tl.store(ddecay + at, sum_a, mask=inside)
        tl.store(dsigma + at, sum_e, mask=inside)


def plan(kernel: str, D: int, coupled: bool) -> dict[str, int]:
    """Block, warps and stages of a kernel: what is launched below, and what is compiled ahead of time."""
    block = max(16, triton.next_power_of_2(D))
    if not coupled:
        block = min(64, block)  # many short programs: a step waits for memory, not for arithmetic
    return {"BLOCK": block, "num_warps": max(1, min(8, block // 64)), "num_stages": 1}


class _Modes:
    """Matrices H [groups, D, D] by their eigenvalues: the same path for rows rotated into the eigenvectors."""

    def __init__(self, stiffness: Tensor, batch: int):
        values, self.vectors = torch.linalg.eigh(stiffness)
        self.stiffness = values.repeat_interleave(batch // len(values), 0)

    def into(self, y: Tensor, back: bool = False) -> Tensor:
        """y [..., B, D] in modes, or from modes back."""
        vectors = self.vectors.mT if back else self.vectors
        return (y.unflatten(-2, (len(vectors), -1)) @ vectors).flatten(-3, -2)

    def gradient(self, force: Tensor, z0: Tensor, z: Tensor) -> Tensor:
        """sum z^T dL/dg [groups, D, D] over rows and steps, from rows in modes."""
        split = (-1, len(self.vectors), len(z0) // len(self.vectors), z0.shape[1])
        found = torch.einsum("tgbi,tgbj->gij", torch.cat([z0[None], z]).view(split), force.view(split))
        return self.vectors @ found @ self.vectors.mT


def _launch(kernel, B: int, D: int, coupled: bool, *arguments, **constants) -> None:
    block = plan(kernel.__name__, D, coupled)
    given = [y.contiguous() if isinstance(y, Tensor) else y for y in arguments]
    with torch.cuda.device_of(given[0]):  # Triton launches on the current device; no-op on CPU (interpreter)
        kernel[(B, triton.cdiv(D, block["BLOCK"]))](*given, D=D, COUPLED=coupled, **constants, **block)


def forward(z0: Tensor, v0: Tensor, noise: Tensor, sigma: Tensor, decay: Tensor, control: Tensor | None,
            stiffness: Tensor, coupling: Tensor | None, quartic: Tensor | None, step: float,
            scheme: str) -> tuple[Tensor, Tensor]:
    """z and v [T, B, D]."""
    if stiffness.dim() == 3:  # sigma may differ between coordinates, and cannot be rotated
        modes, kick = _Modes(stiffness, len(z0)), sigma * noise + (0 if control is None else control)
        state = modes.into(z0), modes.into(v0), modes.into(kick), torch.ones_like(decay), decay, None
        z, v = forward(*state, modes.stiffness, None, None, step, scheme)
        return modes.into(z, back=True), modes.into(v, back=True)
    T, B, D = noise.shape
    time = max(len(sigma), len(decay))
    z, v = (noise.new_empty(noise.shape) for _ in range(2))
    _launch(_walk, B, D, coupling is not None, z0, v0, noise, sigma.expand(time, B, D), decay.expand(time, B, D),
            control, stiffness, coupling, quartic, z, v, step, T, SCHEME=SCHEMES.index(scheme),
            QUARTIC=quartic is not None, CONTROL=control is not None, VARYING=time > 1)
    return z, v


def backward(z0: Tensor, v0: Tensor, z: Tensor, v: Tensor, noise: Tensor, sigma: Tensor, decay: Tensor,
             stiffness: Tensor, coupling: Tensor | None, quartic: Tensor | None, step: float, scheme: str, dz: Tensor,
             dv: Tensor, wanted: list[bool]) -> list[Tensor]:
    """Gradients of z0, v0 and, empty if not wanted, of noise, sigma, decay, control, stiffness, coupling, quartic."""
    if stiffness.dim() == 3:
        return _matrix_backward(z0, v0, z, v, noise, sigma, decay, stiffness, step, scheme, dz, dv, wanted)
    found, _ = _backward(z0, v0, z, v, noise, sigma, decay, stiffness, coupling, quartic, step, scheme, dz, dv, wanted)
    return found


def _matrix_backward(z0, v0, z, v, noise, sigma, decay, stiffness, step, scheme, dz, dv, wanted) -> list[Tensor]:
    """The decay is the same for all coordinates: only the sum over them of its gradient has a meaning."""
    modes = _Modes(stiffness, len(z0))
    z0, v0, z, v, dz, dv = (modes.into(y) for y in (z0, v0, z, v, dz, dv))
    kicks = [False, False, wanted[2], any(wanted[:2]) or wanted[3], False, False, False]
    (dz0, dv0, _, _, ddecay, dkick, *_), force = _backward(
        z0, v0, z, v, z, torch.ones_like(decay), decay, modes.stiffness, None, None, step, scheme, dz, dv, kicks,
        matrix=wanted[4])
    dkick = modes.into(dkick, back=True) if kicks[3] else dkick
    found = [
        sigma * dkick if wanted[0] else None,
        (dkick * noise).sum_to_size(sigma.shape) if wanted[1] else None,
        ddecay,
        dkick if wanted[3] else None,
        modes.gradient(force, z0, z) if wanted[4] else None,
        None,
        None,
    ]
    states = [modes.into(dz0, back=True), modes.into(dv0, back=True)]
    return states + [z0.new_empty(0) if y is None else y for y in found]


def _backward(z0, v0, z, v, noise, sigma, decay, stiffness, coupling, quartic, step, scheme, dz, dv, wanted,
              matrix: bool = False) -> tuple[list[Tensor], Tensor]:
    """The gradients, and for a matrix those of the forces at z_0 .. z_T."""
    T, B, D = noise.shape
    time = max(len(sigma), len(decay))
    friction = wanted[1] or wanted[2]

    def empty(shape: tuple[int, ...], want: bool) -> Tensor:
        return z0.new_empty(shape if want else (0,))

    state = [empty((B, D), True) for _ in range(2)]
    dnoise, dcontrol = empty((T, B, D), wanted[0]), empty((T, B, D), wanted[3])
    dsigma, ddecay = (empty((time, B, D), friction) for _ in range(2))
    rows = [empty((B, D), want) for want in (True, coupling is not None, quartic is not None)]
    force = z0.new_zeros(T + 1 if matrix else 0, B, D)
    _launch(_back, B, D, coupling is not None, z0, v0, z, v, noise, sigma.expand(time, B, D), decay.expand(time, B, D),
            stiffness, coupling, quartic, dz, dv, *state, dnoise, dsigma, ddecay, dcontrol, *rows, force, step, T,
            SCHEME=SCHEMES.index(scheme), QUARTIC=quartic is not None, VARYING=time > 1, NOISE=wanted[0],
            FRICTION=friction, CONTROL=wanted[3], MATRIX=matrix)
    dsigma, ddecay = (
        y.sum_to_size(like.shape) if want else empty((0,), False)
        for y, like, want in zip((dsigma, ddecay), (sigma, decay), wanted[1:3], strict=True)
    )
    rows = [y if want else empty((0,), False) for y, want in zip(rows, wanted[4:], strict=True)]
    return [*state, dnoise, dsigma, ddecay, dcontrol, *rows], force
