"""One step of a particle under a force, a leak and noise: the released step, the symplectic one, and BAOAB.

z, v: position and velocity of unit mass. h: the step. a in [0, 1]: the decay, what is left of v after a step; gamma =
1 - a is the friction per step and gamma_c = -ln(a) / h the friction of continuous time. sigma: the noise's scale.

    "euler"       z' = z + h v,  v' = a (v - h U'(z)) + u + sigma eps          the released step
    "symplectic"  z' = z + h v,  v' = a (v - h U'(z')) + u + sigma eps
    "baoab"       half a kick, half a drift, v <- a v + u + sigma eps, half a drift, half a kick

u is an optional push (control). Without it, noise sigma^2 = T (1 - a^2) belongs to temperature T (`exact_noise`): with
it the velocity alone has variance T for every a. The released sigma^2 = 2 gamma does not (`released_noise`).

Source of the released step: Song, Keller, Yue, Perona and Welling, arXiv 2507.11531, and its public code. Of BAOAB:
Leimkuhler and Matthews 2013, "Rational construction of stochastic numerical methods for molecular sampling".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gated.gates._validation import (
    check_axes,
    check_choice,
    check_float,
    check_number,
    check_positive,
    check_same_shape,
    is_number,
)

Scheme = Literal["euler", "symplectic", "baoab"]


def exact_noise(decay: float | int | Tensor, temperature: float | int = 1.0) -> float | Tensor:
    """sigma = sqrt(T (1 - a^2)), with which friction and noise balance at temperature T. Raises ValueError if T < 0.

    Args:
        decay: a.

    Example:
        >>> exact_noise(decay=0.6, temperature=1.0)
        0.8
    """
    check_number("temperature", temperature, "[0, inf)")
    if isinstance(decay, Tensor):
        return (temperature * (1 - decay**2)).sqrt()
    check_decay(decay)
    return math.sqrt(temperature * (1 - decay**2))


def released_noise(friction: float | int) -> float:
    """sigma = sqrt(2 gamma) as released, gamma in [0, 1] per bin: free velocities get variance 2 / (2 - gamma).

    Args:
        friction: gamma.

    Example:
        >>> released_noise(friction=0.5)
        1.0
    """
    check_number("friction", friction, "[0, 1]")
    return math.sqrt(2 * friction)


def langevin_step(
    gradient: Callable[[Tensor], Tensor],
    z: Float[Tensor, "*batch dim"],
    v: Float[Tensor, "*batch dim"],
    noise: Float[Tensor, "*batch dim"] | None = None,
    *,
    step: float | int,
    decay: float | int | Float[Tensor, "*batch dim"] = 1.0,
    scale: float | int | Float[Tensor, "*batch dim"] = 0.0,
    control: Float[Tensor, "*batch dim"] | None = None,
    scheme: Scheme = "baoab",
) -> tuple[Float[Tensor, "*batch dim"], Float[Tensor, "*batch dim"]]:
    """(z, v) one step later.

    Args:
        gradient: U', from positions to slopes of the same shape.
        noise: eps, standard normal; None for none.
        step: h > 0, not checked for stability (`check_step` does that).
        decay, scale: a and sigma, numbers or one for each entry.
        control: u, added to v where the noise is.
        scheme: as in the module's table.

    Raises:
        ValueError: a step that is not positive, an unknown scheme, shapes that differ, a decay or scale that is not
            finite.

    Example:
        >>> z, v = langevin_step(lambda z: z, torch.ones(1), torch.zeros(1), step=0.1)
        >>> z.item() < 1, v.item() < 0  # it is pulled back
        (True, True)
    """
    check_positive("step", step)
    check_choice("scheme", scheme, get_args(Scheme))
    check_float("v", v)
    for name, value in (("v", v), ("noise", noise), ("decay", decay), ("scale", scale), ("control", control)):
        if isinstance(value, Tensor):
            if value.shape != z.shape and (value.ndim or name not in ("decay", "scale")):
                raise ValueError(f"{name} must have the shape of z, {tuple(z.shape)}; got {tuple(value.shape)}")
        elif value is not None:
            check_number(name, value)
        elif name in ("decay", "scale"):
            raise ValueError(f"{name} must be a number, or one for each entry; got None")
    push: float | Tensor = 0.0 if noise is None else scale * noise
    if control is not None:
        push = push + control
    if scheme == "euler":
        return z + step * v, decay * (v - step * gradient(z)) + push
    if scheme == "symplectic":
        z = z + step * v
        return z, decay * (v - step * gradient(z)) + push
    v = v - step / 2 * gradient(z)
    z = z + step / 2 * v
    v = decay * v + push
    z = z + step / 2 * v
    return z, v - step / 2 * gradient(z)


def simulate(
    gradient: Callable[[Tensor], Tensor],
    z: Float[Tensor, "*batch dim"],
    v: Float[Tensor, "*batch dim"],
    noise: Float[Tensor, "*batch time dim"],
    *,
    step: float | int,
    decay: float | int | Float[Tensor, "*batch time dim"] = 1.0,
    scale: float | int | Float[Tensor, "*batch time dim"] = 0.0,
    control: Float[Tensor, "*batch time dim"] | None = None,
    scheme: Scheme = "baoab",
) -> tuple[Float[Tensor, "*batch time dim"], Float[Tensor, "*batch time dim"]]:
    """The path after each of `time` steps, without its start: a loop over `langevin_step`, whose arguments these are.

    Decay and scale may differ from step to step: a friction that is gated by the input.

    Raises:
        ValueError: shapes that do not fit; as `langevin_step`.

    Example:
        >>> z, v = simulate(lambda z: z, torch.ones(1), torch.zeros(1), torch.zeros(100, 1), step=0.1)
        >>> z.shape, bool(((z**2 + v**2) / 2 - 0.5).abs().max() < 0.01)  # the energy stays
        (torch.Size([100, 1]), True)
    """
    check_axes("*batch dim, *batch dim, *batch time dim", z=z, v=v, noise=noise)
    for name, value in (("decay", decay), ("scale", scale), ("control", control)):
        if isinstance(value, Tensor) and value.ndim:
            check_same_shape(name, value, "noise", noise)

    def at(value: float | int | Tensor, t: int) -> float | int | Tensor:
        return value[..., t, :] if isinstance(value, Tensor) and value.ndim else value

    path = []
    for t in range(noise.shape[-2]):
        z, v = langevin_step(
            gradient,
            z,
            v,
            noise[..., t, :],
            step=step,
            decay=at(decay, t),
            scale=at(scale, t),
            control=None if control is None else control[..., t, :],
            scheme=scheme,
        )
        path.append((z, v))
    if not path:
        return noise.clone(), noise.clone()
    return torch.stack([z for z, _ in path], -2), torch.stack([v for _, v in path], -2)


def step_matrix(
    hessian: Float[Tensor, "dim dim"], *, step: float | int, decay: float | int, scheme: Scheme = "baoab"
) -> Float[Tensor, "two_dim two_dim"]:
    """M with (z', v') = M (z, v), both stacked to [2 dim], under U = z H z / 2 and without noise.

    Its determinant is the factor by which a step scales phase-space volume: a^d for "symplectic" and "baoab",
    a^d det(I + h^2 H) for "euler".

    Args:
        decay: a.

    Raises:
        ValueError: a Hessian that is not square and finite; as `langevin_step`.

    Example:
        >>> M = step_matrix(torch.eye(1), step=0.5, decay=0.75)
        >>> round(torch.linalg.det(M).item(), 4)
        0.75
    """
    check_hessian(hessian)
    dim = len(hessian)
    start = torch.eye(2 * dim, dtype=hessian.dtype, device=hessian.device)
    after = langevin_step(
        lambda z: z @ hessian.mT, start[:, :dim], start[:, dim:], step=step, decay=decay, scheme=scheme
    )
    return torch.cat(after, 1).mT


def rotates(
    curvature: float | int | Float[Tensor, "*shape"], step: float | int, decay: float | int, scheme: Scheme = "euler"
) -> Bool[Tensor, "*shape"]:
    """Whether a mode of curvature lambda oscillates: the 2 x 2 matrix of its step has complex eigenvalues.

    For the released step ("euler") with a > 0 that is h^2 lambda > (1 - a)^2 / (4 a): .1681 at gamma = .55 and .4083
    at .7. For the other schemes det = a, and it is |trace| < 2 sqrt(a).

    Args:
        curvature: lambda, of either sign.
        step: h > 0.
        decay: a = 1 - gamma.

    Raises:
        ValueError: a step that is not positive, a decay outside [0, 1], an unknown scheme.

    Example:
        >>> bool(rotates(0.5, step=1.0, decay=0.45)), bool(rotates(0.1, step=1.0, decay=0.45))
        (True, False)
    """
    x = _squared_angle(curvature, step, decay, scheme)
    trace, det = _trace_and_det(x, decay, scheme)
    return trace**2 < 4 * det


def largest_step(curvature: float | int, decay: float | int = 1.0, scheme: Scheme = "baoab") -> float:
    """The bound below which steps keep a mode of curvature lambda = omega^2 > 0 bounded; inf for lambda <= 0.

    "baoab": 2 / omega, whatever the decay a. "symplectic": sqrt(2 (1 + a) / a) / omega, at a = 1 the same. "euler":
    sqrt((1 - a) / a) / omega, which is 0 without friction: the explicit step then gains energy for every h. With
    lambda < 0 there is nothing to lose: the particle runs away at every step, as it does in continuous time.

    Raises:
        ValueError: a curvature that is not finite, a decay outside [0, 1], an unknown scheme.

    Example:
        >>> largest_step(curvature=4.0)
        1.0
    """
    _squared_angle(curvature, 1.0, decay, scheme)
    if curvature <= 0:
        return math.inf
    factor = 4.0 if scheme == "baoab" else math.inf
    if scheme != "baoab" and decay > 0:
        factor = (1 - decay) / decay if scheme == "euler" else 2 * (1 + decay) / decay
    return math.sqrt(factor / curvature)


def check_step(
    hessian: Float[Tensor, "dim dim"], step: float | int, decay: float | int = 1.0, scheme: Scheme = "baoab"
) -> None:
    """Raises ValueError, with the bound of `largest_step`, if a mode of the symmetric Hessian outruns the step.

    Where U is not quadratic this looks at one point only.

    Args:
        decay, scheme: a and the integrator, as in `simulate`.
    """
    check_positive("step", step)
    check_hessian(hessian)
    curvature = float(torch.linalg.eigvalsh(hessian.detach())[-1])
    bound = largest_step(curvature, decay, scheme)
    if step >= bound:
        rule = {"euler": "sqrt((1 - a) / a)", "symplectic": "sqrt(2 (1 + a) / a)", "baoab": "2"}[scheme]
        raise ValueError(
            f"step must be below {rule} / omega_max = {bound:.4g} for {scheme!r}, with omega_max = "
            f"{math.sqrt(curvature):.4g} from the largest eigenvalue of the Hessian; got {step}"
        )


def check_hessian(hessian: Tensor) -> None:
    check_float("hessian", hessian)
    if hessian.ndim != 2 or hessian.shape[0] != hessian.shape[1] or not len(hessian):
        raise ValueError(f"hessian must be [dim, dim], dim >= 1; got shape {tuple(hessian.shape)}")
    if not bool(hessian.isfinite().all()):
        raise ValueError("hessian must be finite; got values that are not")


def check_decay(decay: float | int) -> None:
    if not (is_number(decay) and 0 <= decay <= 1):
        raise ValueError(f"decay must lie in [0, 1], and so must the friction 1 - decay; got decay {decay}")


def _squared_angle(curvature: float | int | Tensor, step: float | int, decay: float | int, scheme: str) -> Tensor:
    """h^2 lambda, which all that is scale-free depends on."""
    check_positive("step", step)
    check_decay(decay)
    if not isinstance(curvature, Tensor):
        check_number("curvature", curvature)
    check_choice("scheme", scheme, get_args(Scheme))
    return step**2 * (curvature if isinstance(curvature, Tensor) else torch.tensor(float(curvature)))


def _trace_and_det(x: Tensor, decay: float | int, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Of the matrix of one mode's step, x = h^2 lambda."""
    if scheme == "euler":
        return torch.full_like(x, 1 + decay), decay * (1 + x)
    trace = 1 + decay - decay * x if scheme == "symplectic" else (1 + decay) * (1 - x / 2)
    return trace, torch.full_like(x, decay)
