"""A particle with inertia, friction and noise in a potential: all T steps of its path, forward and backward.

    dz = v dt,    dv = (-g(z) - friction v) dt + noise,    g = dU/dz

with one of two potentials. Linear: U = 1/2 z^T H z, H symmetric (a matrix, or its diagonal). A chain of oscillators:

    U = sum_i s_i z_i^2 / 2 + sum_i kappa_i (z_i - z_{i+1})^2 / 2 + sum_i lambda_i z_i^4 / 4        (open ends)

s stiffness, kappa coupling, lambda quartic. In a step of length h the velocity keeps the factor a (decay, 1 forgets
nothing) and gains a kick b_t = sigma e_t + u_t of drawn noise e_t and a control u_t:

    "released"      z' = z + h v,   v' = a (v - h g(z)) + b                     sigma = sqrt(2 (1 - a) temperature)
    "symplectic"    z' = z + h v,   v' = a (v - h g(z')) + b                    sigma = sqrt((1 - a^2) temperature)
    "baoab"         v -= h/2 g(z);  z += h/2 v;  v = a v + b;  z += h/2 v;  v -= h/2 g(z)           sigma as above

"released" is explicit Euler with the noise of the published code (its gamma is 1 - a). Friction in the other two is
exact for a = exp(-friction h), and their noise is the one that leaves the temperature where it is.

    reference.py   the definition, a step at a time
    cpu.py         in-place operators on whole rows, and the adjoint walk back
    inductor.py    modes and chains in machine code, several steps a call
    gpu.py         Triton: a row's block of coordinates stays in registers over all steps

Autograd, fake tensors, vmap and `torch.compile(fullgraph=True)` see one operator forward and one backward
(`gated::langevin_scan`, `gated::langevin_scan_backward`). First order only: a second derivative is an error. An
ensemble is a `vmap` over stacked parameters with autograd outside of it; `torch.func.grad` takes no such operator.

Source: Song et al. 2025 (arXiv 2507.11531) for the model and the released step; Leimkuhler and Matthews 2013,
"Rational Construction of Stochastic Numerical Methods for Molecular Sampling" (arXiv 1203.5428), for BAOAB.
"""

from __future__ import annotations

import math
import sys
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from gated.kernels._forward_mode import refuse_tangents
from gated.kernels.langevin_scan import cpu, inductor
from gated.kernels.langevin_scan.reference import lattice_force, naive_langevin_scan

__all__ = ["Scheme", "langevin_scan", "lattice_force", "naive_langevin_scan"]

Scheme = Literal["released", "symplectic", "baoab"]


def langevin_scan(
    z0: Float[Tensor, "batch dim"],
    v0: Float[Tensor, "batch dim"],
    noise: Float[Tensor, "batch time dim"],
    *,
    stiffness: Float[Tensor, " dim"] | Float[Tensor, "dim dim"],
    coupling: Float[Tensor, " links"] | None = None,
    quartic: Float[Tensor, " dim"] | None = None,
    step: float | int,
    decay: Tensor | float | int,
    temperature: Tensor | float | int = 1.0,
    control: Float[Tensor, "batch time dim"] | None = None,
    scheme: str = "baoab",
    compiled: bool = False,
) -> tuple[Float[Tensor, "batch time dim"], Float[Tensor, "batch time dim"]]:
    """Positions and velocities after each of the T steps; the first state, z0 and v0, is not among them.

    Args:
        z0, v0: the state before the first step.
        noise: e_t, drawn by the caller, one for each step.
        stiffness: s [dim], or a symmetric H [dim, dim]. May be negative (a saddle).
        coupling: kappa [dim - 1] between neighbours, with stiffness [dim] only; None is none.
        quartic: lambda [dim], with stiffness [dim] only; None is none.
        step: h.
        decay: a in [0, 1]: a number, or a tensor [], [dim], [batch, time] or [batch, time, dim].
        temperature: at least 0: a number, or a tensor [] or [dim].
        control: u_t, added to v where the noise is; None is none.
        scheme: "released", "symplectic" or "baoab".
        compiled: on a CPU, by PyTorch's Inductor, but for H, a single step or a single number: some seconds once for
            each form, that is scheme, dtype, what is None, and which tensors require a gradient. A warning, and no
            effect, where Inductor finds no C++ compiler or a space in the environment's path.

    Returns:
        z and v, float32, or float64 where z0 is float64. All is computed in that dtype, under autocast too. They
        are stored time first, as views [batch, time, dim].

    Raises:
        ValueError: shapes, dtypes, devices or options that do not fit; a GPU with float64, or with H and a decay
            that differs between coordinates. On a CPU also values out of range, NaN, an H that is not symmetric,
            and, but for "released", a step that is not below 2 / omega_max, with omega_max^2 the largest
            eigenvalue of the linear part; for the quartic, a path that leaves the floats' range.
        NotImplementedError: a forward-mode derivative is asked for; `naive_langevin_scan` has one.

    Gradients reach every tensor; that of H is the one of g = z H, which is not symmetric. They are infinite where
    sigma is the root of 0: at a decay of 1 or a temperature of 0, as tensors that require a gradient.

    Example:
        >>> z0, v0, noise = torch.ones(1, 2), torch.zeros(1, 2), torch.zeros(1, 50, 2)
        >>> z, v = langevin_scan(z0, v0, noise, stiffness=torch.ones(2), step=0.1, decay=1.0)
        >>> energy = (z**2 + v**2).sum(-1) / 2
        >>> z.shape, bool((energy - 1).abs().max() < 0.01)
        (torch.Size([1, 50, 2]), True)
    """
    given = {"z0": z0, "v0": v0, "noise": noise, "control": control}
    given |= {"stiffness": stiffness, "coupling": coupling, "quartic": quartic}
    _check(given, step, decay, temperature, scheme)
    refuse_tangents("langevin_scan", "naive_langevin_scan", *given.values())
    dtype = torch.float64 if z0.dtype == torch.float64 else torch.float32
    (batch, time, dim), dense = noise.shape, stiffness.dim() == 2
    a = decay.to(dtype) if isinstance(decay, Tensor) else decay
    t = temperature.to(dtype) if isinstance(temperature, Tensor) else temperature
    if isinstance(a, Tensor) and a.dim() > 1:  # [batch, time (, dim)]
        a = (a[..., None] if a.dim() == 2 else a).transpose(0, 1)
    square = (2 * (1 - a) if scheme == "released" else 1 - a * a) * t
    sigma = square.sqrt() if isinstance(square, Tensor) else math.sqrt(square)
    factors = [y if isinstance(y, Tensor) else z0.new_full((), y, dtype=dtype) for y in (sigma, a)]
    factors = [y.expand(time if y.dim() == 3 else 1, batch, dim) for y in factors]
    paths = [None if y is None else y.to(dtype).transpose(0, 1) for y in (noise, control)]
    if coupling is not None:
        coupling = torch.nn.functional.pad(coupling, (0, 1))  # the last oscillator has no right neighbour
    rows = [
        None if y is None else y.to(dtype).expand(batch, dim) for y in (None if dense else stiffness, coupling, quartic)
    ]
    if dense:
        rows[0] = stiffness.to(dtype)[None]
    z, v = torch.ops.gated.langevin_scan(
        z0.to(dtype), v0.to(dtype), paths[0], *factors, paths[1], *rows, float(step), scheme, compiled
    )
    return z.transpose(0, 1), v.transpose(0, 1)


# What is checked ----------------------------------------------------------------------------------------------------


def _check(given: dict[str, Any], step: object, decay: object, temperature: object, scheme: object) -> None:
    """Ranks, shapes, dtypes and options; values are looked at by the CPU operator."""
    z0, noise = given["z0"], given["noise"]
    for name, rank in (("z0", 2), ("noise", 3)):
        if not isinstance(given[name], Tensor) or given[name].dim() != rank:
            want = "[batch, dim]" if rank == 2 else "[batch, time, dim]"
            raise ValueError(f"{name} must be a tensor {want}; got {_what(given[name])}")
    if 0 in noise.shape:
        raise ValueError(f"noise must not be empty; got shape {tuple(noise.shape)}")
    batch, time, dim = noise.shape
    if z0.shape != (batch, dim):
        raise ValueError(f"z0 must have batch and dim of noise, {(batch, dim)}; got {tuple(z0.shape)}")
    stiffness = given["stiffness"]
    dense = isinstance(stiffness, Tensor) and stiffness.dim() == 2
    shapes: dict[str, list[tuple[int, ...]]] = {
        "z0": [(batch, dim)],
        "v0": [(batch, dim)],
        "noise": [(batch, time, dim)],
        "control": [(batch, time, dim)],
        "stiffness": [(dim,), (dim, dim)],
        "coupling": [(dim - 1,)],
        "quartic": [(dim,)],
        "decay": [(), (dim,), (batch, time), (batch, time, dim)],
        "temperature": [(), (dim,)],
    }
    for name, number, top in (("decay", decay, 1.0), ("temperature", temperature, sys.float_info.max)):
        if isinstance(number, Tensor):
            given[name] = number
        elif isinstance(number, bool) or not isinstance(number, (float, int)) or not 0 <= number <= top:
            allowed = "in [0, 1]" if name == "decay" else "at least 0 and finite"
            raise ValueError(f"{name} must be a number {allowed}, or a tensor; got {number!r}")
    for name, y in given.items():
        if y is None and name in ("coupling", "quartic", "control"):
            continue
        if not isinstance(y, Tensor) or tuple(y.shape) not in shapes[name]:
            want = " or ".join(str(list(shape)) for shape in shapes[name])
            raise ValueError(f"{name} must be a tensor {want}; got {_what(y)}")
        if not y.is_floating_point():
            raise ValueError(f"{name} must be of a floating dtype; got {y.dtype}. Convert it, e.g. {name}.float()")
        if y.device != z0.device:
            raise ValueError(f"{name} is on {y.device} but z0 is on {z0.device}; move one of them")
        if dense and name in ("coupling", "quartic"):
            raise ValueError(f"{name} must be None where stiffness is a matrix: put a coupling into the matrix")
    if isinstance(step, bool) or not isinstance(step, (float, int)) or not 0 < step < math.inf:
        raise ValueError(f"step must be a number above 0; got {step!r}")
    if scheme not in get_args(Scheme):
        raise ValueError(f"scheme must be one of {get_args(Scheme)}; got {scheme!r}")
    if z0.is_cuda:
        if z0.dtype == torch.float64:
            raise ValueError("z0 is float64 on a GPU, whose kernels compute in float32; use z0.float(), or z0.cpu()")
        if dense and isinstance(decay, Tensor) and tuple(decay.shape) in ((dim,), (batch, time, dim)):
            raise ValueError("decay must be the same for all coordinates where stiffness is a matrix on a GPU")


def _what(y: object) -> str:
    return str(list(y.shape)) if isinstance(y, Tensor) else type(y).__name__


def _check_values(decay, stiffness, coupling, step, scheme) -> None:
    low, high = (float(y) for y in decay.aminmax())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"decay must be in [0, 1]; got values from {low:g} to {high:g}")
    if not bool(stiffness.isfinite().all()):
        raise ValueError("stiffness must be finite; got values that are not")
    if stiffness.dim() == 3 and not bool((stiffness - stiffness.mT).abs().amax() <= 1e-5 * stiffness.abs().amax()):
        raise ValueError("stiffness must be finite and symmetric where it is a matrix; use (H + H.T) / 2")
    if scheme == "released" or step * step * _bound(stiffness, coupling) < 4:
        return
    largest = float(torch.linalg.eigvalsh(_matrices(stiffness, coupling)).amax())
    if step * step * largest >= 4:
        raise ValueError(
            f"step must be below 2 / omega_max = {2 / math.sqrt(largest):.4g}, above which the path explodes; got "
            f"{step:g}. Take a smaller step, or less stiffness or coupling"
        )


def _bound(stiffness: Tensor, coupling: Tensor | None) -> float:
    """At least the largest eigenvalue of the linear part, by the sums of its rows."""
    if stiffness.dim() == 3:
        return float(stiffness.abs().sum(-1).amax())
    if coupling is None:
        return float(stiffness.amax())
    size = coupling.abs()
    return float((stiffness + coupling + size + (coupling + size).roll(1, -1)).amax())


def _matrices(stiffness: Tensor, coupling: Tensor | None) -> Tensor:
    """The linear part as symmetric matrices, one for each row of the batch, or for each of H."""
    if stiffness.dim() == 3:
        return stiffness
    if coupling is None:
        return stiffness[..., None, None]
    links = coupling[:, :-1]
    diagonal = stiffness + coupling + coupling.roll(1, -1)  # the last one is 0
    return torch.diag_embed(diagonal) - torch.diag_embed(links, 1) - torch.diag_embed(links, -1)


def _check_last(z, v, z0, v0, noise, sigma, control, stiffness, coupling, quartic) -> None:
    """NaN and infinities outlive every step, so that the last state shows whether there were any."""
    if (z[-1].sum() + v[-1].sum()).isfinite():
        return
    inputs = {"z0": z0, "v0": v0, "noise": noise, "control": control}
    inputs |= {"stiffness": stiffness, "coupling": coupling, "quartic": quartic}
    if not sigma.isfinite().all():
        raise ValueError("temperature must be at least 0 and finite; the size of the noise that it gives is not")
    for name, y in inputs.items():
        if y is not None and not y.isfinite().all():
            raise ValueError(f"{name} must be finite; got NaN or infinite values")
    raise ValueError(
        f"step is too large: the path left the range of {z.dtype}. With a quartic or a negative stiffness no bound "
        "holds for all positions; take a smaller step, or fewer of them"
    )


# The operators ------------------------------------------------------------------------------------------------------

_POTENTIAL = "Tensor stiffness, Tensor? coupling, Tensor? quartic, float step, str scheme"


def _scan_gpu(z0, v0, noise, sigma, decay, control, stiffness, coupling, quartic, step, scheme, compiled=False):
    from gated.kernels.langevin_scan import gpu

    return gpu.forward(z0, v0, noise, sigma, decay, control, stiffness, coupling, quartic, step, scheme)


_scan = torch.library.custom_op(
    "gated::langevin_scan",
    _scan_gpu,
    mutates_args=(),
    device_types="cuda",
    schema="(Tensor z0, Tensor v0, Tensor noise, Tensor sigma, Tensor decay, Tensor? control, "
    f"{_POTENTIAL}, bool compiled=False) -> (Tensor, Tensor)",
)


@_scan.register_kernel("cpu")
def _scan_cpu(z0, v0, noise, sigma, decay, control, stiffness, coupling, quartic, step, scheme, compiled=False):
    _check_values(decay, stiffness, coupling, step, scheme)
    inputs = (z0, v0, noise, sigma, decay, control, stiffness, coupling, quartic, step, scheme)
    with torch.autocast("cpu", enabled=False):
        z, v = (inductor.forward(*inputs) if compiled else None) or cpu.forward(*inputs)
    _check_last(z, v, z0, v0, noise, sigma, control, stiffness, coupling, quartic)
    return z, v


@_scan.register_fake
def _scan_fake(z0, v0, noise, *_):
    return noise.new_empty(noise.shape), noise.new_empty(noise.shape)


def _backward_gpu(*inputs):
    """Gradients of z0, v0 and, empty if not wanted, of noise, sigma, decay, control, stiffness, coupling, quartic."""
    from gated.kernels.langevin_scan import gpu

    return gpu.backward(*inputs[:15])


_scan_backward = torch.library.custom_op(
    "gated::langevin_scan_backward",
    _backward_gpu,
    mutates_args=(),
    device_types="cuda",
    schema="(Tensor z0, Tensor v0, Tensor z, Tensor v, Tensor noise, Tensor sigma, Tensor decay, "
    f"{_POTENTIAL}, Tensor dz, Tensor dv, bool[] wanted, bool compiled=False) -> Tensor[]",
)


@_scan_backward.register_kernel("cpu")
def _backward_cpu(*inputs):
    inputs, compiled = inputs[:15], inputs[15:] == (True,)
    with torch.autocast("cpu", enabled=False):
        return (inductor.backward(*inputs) if compiled else None) or cpu.backward(*inputs)


@_scan_backward.register_fake
def _backward_fake(z0, v0, z, v, noise, sigma, decay, stiffness, coupling, quartic, step, scheme, dz, dv, wanted, *_):
    like = zip((noise, sigma, decay, noise, stiffness, z0, z0), wanted, strict=True)
    return [z0.new_empty(shape) for shape in (z0.shape, z0.shape, *(y.shape if want else (0,) for y, want in like))]


def _setup_context(ctx, inputs, output):
    z0, v0, noise, sigma, decay, _, stiffness, coupling, quartic, *ctx.options = inputs
    ctx.save_for_backward(z0, v0, *output, noise, sigma, decay, stiffness, coupling, quartic)


def _autograd(ctx, dz, dv):
    wanted = list(ctx.needs_input_grad[2:9])
    grads = torch.ops.gated.langevin_scan_backward(*ctx.saved_tensors, *ctx.options[:2], dz, dv, wanted, ctx.options[2])
    rest = [y if want else None for y, want in zip(grads[2:], wanted, strict=True)]
    return *grads[:2], *rest, None, None, None


_scan.register_autograd(_autograd, setup_context=_setup_context)


# A batch of runs is a longer batch -----------------------------------------------------------------------------------


def _fold(y, dim, runs, axis):
    """The runs' axis put before the batch's, `axis`, and both made one; an input without it is the same for all."""
    if y is None:
        return None
    y = y.unsqueeze(0).expand(runs, *y.shape) if dim is None else y.movedim(dim, 0)
    return y.movedim(0, axis).flatten(axis, axis + 1)


def _vmap(info, dims, *inputs):
    """Not for the backward operator: autograd stands outside of `vmap`, as torch.func.grad takes no such operators."""
    axes = (0, 0, 1, 1, 1, 1, 0, 0, 0)
    tensors = [_fold(y, dim, info.batch_size, axis) for y, dim, axis in zip(inputs, dims, axes, strict=False)]
    out = torch.ops.gated.langevin_scan(*tensors, *inputs[9:])
    return tuple(y.unflatten(1, (info.batch_size, -1)) for y in out), (1, 1)


_scan.register_vmap(_vmap)
