"""Modes and chains in machine code: LENGTH steps are one function, made by Inductor from the formulas below.

The rows of a batch are one line of numbers. For modes the steps are a single loop over that line, with the state in
registers; for a chain each step is a loop of its own, for it reads its neighbours. Sizes, the step's length and all
values are inputs, so that a function serves every path of the same form. Steps after the last one are walked without
noise and thrown away; on the way back all their gradients are zero. With 4,096 numbers a chunk's arithmetic takes about
as long as its call, so no size is asserted in it, and the path is written where it will stand.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from gated.kernels.machine_code import machine_code

LENGTH = 20  # each further step is half a second of compilation, and 100 steps are five calls

Given = dict[str, Tensor]


def _row(y: Tensor, t: int) -> Tensor:
    """Step t of [LENGTH, numbers]; [numbers] is the same for all steps."""
    return y if y.dim() == 1 else y[t]


def _right(y: Tensor) -> Tensor:
    """Of each coordinate the next one."""
    return pad(y[1:], (0, 1))


def _slope(given: Given, z: Tensor, s: Tensor, cubic: int) -> Tensor:
    """-h A(z) s, with A(z) z the force (`cubic` 1), and U''(z) where `cubic` is 3."""
    factor = given["linear"]
    if "quartic" in given:
        factor = factor + cubic * given["quartic"] * (z * z)
    out = factor * s
    if "links" in given:  # those between rows are zero
        out = out + given["links"] * _right(s) + pad((given["links"] * s)[:-1], (1, 0))
    return out


def _tally(given: Given, s: Tensor, z: Tensor) -> list[Tensor]:
    """What a step adds to the sums for stiffness, couplings and quartic, up to the factor -h."""
    out = [s * z]
    if "links" in given:
        out.append(s * _right(z) + _right(s) * z)
    if "quartic" in given:
        out.append(s * z * (z * z))
    return out


def _added(sums: list[Tensor], more: list[Tensor]) -> list[Tensor]:
    return [a + b for a, b in zip(sums, more, strict=True)] if sums else more


def _ahead(scheme: str, wanted: tuple[bool, ...], given: Given) -> list[Tensor]:
    """The last w, from z and w, which for "baoab" is v - h/2 g(z). z and v of each step go into the caller's rows."""
    h, z, w = given["step"], given["z"], given["w"]
    for t in range(LENGTH):
        a, kick = _row(given["decay"], t), _row(given["sigma"], t) * given["noise"][t]
        if "control" in given:
            kick = kick + given["control"][t]
        if scheme == "baoab":
            v = a * w + kick
            z = z + h / 2 * w + h / 2 * v
            w = v + _slope(given, z, z, 1)
            v = (v + w) / 2
        else:
            before, z = z, z + h * w
            at = before if scheme == "released" else z
            v = w = a * (w + _slope(given, at, at, 1)) + kick
        given[f"z into {t}"].copy_(z)
        given[f"v into {t}"].copy_(v)
    return [w]


def _back(scheme: str, wanted: tuple[bool, ...], given: Given) -> list[Tensor]:
    """The adjoint of `_ahead`: pz, pv, gradients as wanted, and the sums over the steps for the potential.

    Gradients of a sigma or decay that is the same for all steps are sums too.
    """
    h, pz, pv = given["step"], given["pz"], given["pv"]
    noises, sigmas, decays, controls = [], [], [], []
    sums: list[Tensor] = []
    for t in reversed(range(LENGTH)):
        entering = given["z"][t - 1] if t else given["before"]
        z = entering if scheme == "released" else given["z"][t]
        a = _row(given["decay"], t)
        pz = pz + given["dz"][t]
        kick = pv + given["dv"][t]
        s = pv + given["dv"][t] / 2 if scheme == "baoab" else a * kick
        bend = _slope(given, z, s, 3)
        if scheme == "baoab":
            pz = pz + bend
            kick = kick + h / 2 * pz
            pv = a * kick + h / 2 * pz
        elif scheme == "symplectic":
            pz = pz + bend
            pv = s + h * pz
        else:
            pv = s + h * pz
            pz = pz + bend
        if wanted[0]:
            noises.append(kick * _row(given["sigma"], t))
        if wanted[1]:
            sigmas.append(kick * given["noise"][t])
        if wanted[2]:  # friction acts on v - h g, or on half of that way
            at = z if scheme == "symplectic" else entering
            met = _slope(given, at, at, 1)
            v = given["v"][t - 1] if t else given["v before"]
            decays.append(kick * (v + (met / 2 if scheme == "baoab" else met)))
        if wanted[3]:
            controls.append(kick)
        if any(wanted[4:]):
            sums = _added(sums, _tally(given, s, z))
    out = [pz, pv]
    for name, rows in (("noise", noises), ("sigma", sigmas), ("decay", decays), ("control", controls)):
        if rows and name in ("sigma", "decay") and given["decay"].dim() == 1:
            out.append(sum(rows[1:], rows[0]))
        elif rows:
            out.append(torch.stack(rows[::-1]))
    return out + sums


@functools.cache
def _compiled(
    chunk: Callable[[str, tuple[bool, ...], Given], list[Tensor]],
    scheme: str,
    wanted: tuple[bool, ...],
    ranks: tuple[tuple[str, int], ...],
    dtype: torch.dtype,
) -> Callable[..., Sequence[Tensor]] | None:
    """A chunk in machine code, for any number of coordinates. None, and a warning, where that cannot be had."""

    def of_tensors(*tensors: Tensor) -> list[Tensor]:
        return chunk(scheme, wanted, {name: y for (name, _), y in zip(ranks, tensors, strict=True)})

    numbers = 1009  # any but LENGTH, so that neither is taken for the other
    example: list[Any] = [torch.ones((LENGTH, numbers)[2 - rank :], dtype=dtype) for _, rank in ranks]
    return machine_code(of_tensors, example)


def _line(y: Tensor) -> Tensor:
    """A row as numbers one behind the other."""
    return y.detach().reshape(-1).contiguous()


def _reader(y: Tensor) -> Callable[[int], Tensor]:
    """LENGTH steps of y [time, batch, dim] from a given one on, zeros after the last; of y [1, batch, dim] its row."""
    if len(y) == 1:
        row = _line(y)
        return lambda start: row
    scratch = torch.empty(LENGTH, y[0].numel(), dtype=y.dtype)
    lines = y.detach().view(len(y), -1) if y.is_contiguous() else None

    def read(start: int) -> Tensor:
        left = min(LENGTH, len(y) - start)
        if lines is not None and left == LENGTH:
            return lines[start : start + LENGTH]
        _copy(y[start : start + left], scratch.view(LENGTH, *y.shape[1:])[:left])
        if left < LENGTH:
            scratch.numpy()[left:] = 0
        return scratch

    return read


def _write(into: Tensor, start: int, y: Tensor) -> None:
    into = into[start : start + LENGTH]
    _copy(y[: len(into)].view(into.shape), into)


def _copy(y: Tensor, into: Tensor) -> None:
    """By NumPy, in one thread: two would take longer to meet than to copy."""
    into.numpy()[:] = y.detach().numpy()


def _potential(stiffness: Tensor, coupling: Tensor | None, quartic: Tensor | None, h: float) -> Given:
    given = {"step": torch.tensor(h, dtype=stiffness.dtype)}
    if coupling is not None:
        stiffness = stiffness + coupling + coupling.roll(1, -1)  # the last of a row is 0
        given["links"] = h * _line(coupling)
    if quartic is not None:
        given["quartic"] = -h * _line(quartic)
    return given | {"linear": -h * _line(stiffness)}


def _ranks(given: Given) -> tuple[tuple[str, int], ...]:
    return tuple((name, y.dim()) for name, y in given.items())


def _can(stiffness: Tensor, noise: Tensor) -> bool:
    """Not a matrix, which is no loop over numbers; nor one step or one number, that would look like no axis at all."""
    return stiffness.dim() < 3 and len(noise) > 1 and noise[0].numel() > 1


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
) -> tuple[Tensor, Tensor] | None:
    """z and v [time, batch, dim], as from `cpu.forward`; None where nothing can be compiled."""
    if not _can(stiffness, noise):
        return None
    given = _potential(stiffness, coupling, quartic, step) | {"z": _line(z0), "w": _line(v0)}
    if scheme == "baoab":
        given["w"] = given["w"] + _slope(given, given["z"], given["z"], 1) / 2
    paths = {"noise": noise, "sigma": sigma, "decay": decay} | ({} if control is None else {"control": control})
    readers = {name: _reader(y) for name, y in paths.items()}
    z, v = (torch.empty(noise.shape, dtype=noise.dtype) for _ in range(2))
    lines = {name: list(y.view(len(y), -1).unbind(0)) for name, y in (("z", z), ("v", v))}
    none = torch.empty_like(lines["z"][0])
    function = None
    for start in range(0, len(noise), LENGTH):
        given |= {name: read(start) for name, read in readers.items()}
        for t in range(LENGTH):
            given |= {
                f"{name} into {t}": rows[start + t] if start + t < len(rows) else none for name, rows in lines.items()
            }
        function = function or _compiled(_ahead, scheme, (), _ranks(given), noise.dtype)
        if function is None:
            return None
        (given["w"],) = function(*given.values())
        given["z"] = given[f"z into {LENGTH - 1}"]
    return z, v


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
) -> list[Tensor] | None:
    """What `cpu.backward` gives; None where nothing can be compiled."""
    if not _can(stiffness, noise):
        return None
    given = _potential(stiffness, coupling, quartic, step)
    given |= {name: torch.zeros(z0.numel(), dtype=z.dtype) for name in ("pz", "pv")}
    paths = {"z": z, "dz": dz, "dv": dv, "decay": decay}
    read_too = zip(("sigma", "noise", "v"), (sigma, noise, v), wanted, strict=False)
    readers = {name: _reader(y) for name, y in (paths | {name: y for name, y, want in read_too if want}).items()}
    likes = zip((noise, sigma, decay, noise), wanted, strict=False)
    out = [torch.zeros(like.shape, dtype=z.dtype) if want else z.new_empty(0) for like, want in likes]
    sums: list[Tensor] = []
    function = None
    for start in reversed(range(0, len(noise), LENGTH)):
        given |= {name: read(start) for name, read in readers.items()}
        given["before"] = _line(z[start - 1] if start else z0)
        if wanted[2]:
            given["v before"] = _line(v[start - 1] if start else v0)
        function = function or _compiled(_back, scheme, tuple(wanted), _ranks(given), z.dtype)
        if function is None:
            return None
        given["pz"], given["pv"], *found = function(*given.values())
        for into in out:
            if len(into) == 1:
                into += found.pop(0).view(into.shape)
            elif len(into):
                _write(into, start, found.pop(0))
        sums = _added(sums, found)
    pz, pv = given["pz"], given["pv"]
    if scheme == "baoab":  # the half kick with which the first step begins
        first, s = _line(z0), pv / 2
        pz = pz + _slope(given, first, s, 3)
        sums = _added(sums, _tally(given, s, first)) if sums else []
    rows = [z.new_empty(0) for _ in range(3)]
    if wanted[4]:
        rows[0] = sums[0]
    if wanted[5]:  # (s_i - s_{i+1}) (z_i - z_{i+1}): the stiffness has two of the four terms
        rows[1] = sums[0] + _right(sums[0]) - sums[1]
    if wanted[6]:
        rows[2] = sums[-1]
    rows = [-step * y.view(z0.shape) if want else y for y, want in zip(rows, wanted[4:], strict=True)]
    if wanted[5]:
        rows[1][:, -1] = 0
    return [pz.view(z0.shape), pv.view(z0.shape), *out, *rows]
