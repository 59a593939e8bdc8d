"""One expert made two, and what that changes: how the density hides a second expert, measured without any data.

Split expert i into two halves at theta_i + delta and theta_i - delta, each with half its weight e^(beta_0 / tau). To
first order in delta the halves cancel, and the density moves by O(delta^2): an estimate from n points, which sees
differences of n^-1/2, cannot tell delta = n^-1/4 from 0. Halves at b +- delta add delta^2 to the variance of y. Take
it off their own variance, and the density moves by O(delta^4) only: n^-1/8 hides.

Source: the orders are those behind the rates of Nguyen, Akbarian, Yan and Ho 2024 (arXiv 2309.13850).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from gated.gates._validation import check_choice
from gated.gaussian_moe.model import Gate, GaussianMoE

Parameter = Literal["beta1", "a", "b", "variance"]


def split(
    model: GaussianMoE,
    expert: int,
    parameter: Parameter,
    delta: float | int | Float[Tensor, "*deltas"],
    *,
    compensate: bool = False,
) -> GaussianMoE:
    """Two halves of one expert at `parameter` + delta and - delta, in places `expert` and `expert` + 1.

    The gate keeps its form: a top-K gate now chooses K among k + 1. The last expert's beta_0 may no longer be 0.

    Args:
        model: one model.
        expert: which, from 0.
        parameter: what the halves differ in; the first entry of beta1 and a.
        delta: in the parameter's unit; its axes become those of the result.
        compensate: for "b" only, variance - delta^2 in both halves, which keeps the mean square of y.

    Raises:
        ValueError: many models, an expert that is not there, an unknown parameter, compensation of another one than b,
            a delta that leaves no variance.
    """
    check_choice("parameter", parameter, get_args(Parameter))
    if compensate and parameter != "b":
        raise ValueError(f'compensate is for the parameter "b"; got {parameter!r}')
    d = torch.as_tensor(delta, dtype=model.tau.dtype, device=model.tau.device)
    return split_jointly(model, expert, {parameter: d}, {"variance": -d.square()} if compensate else {})


def split_jointly(
    model: GaussianMoE,
    expert: int,
    apart: Mapping[Parameter, float | int | Float[Tensor, "*deltas"]],
    shift: Mapping[Parameter, float | int | Float[Tensor, "*deltas"]] | None = None,
) -> GaussianMoE:
    """As `split`, in several parameters at once.

    For a linear score d^2 u / d beta_1 d b = (1 / tau) du / da: halves at beta_1 +- c delta^2, b +- delta with
    variance - delta^2 and a - c delta^3 / tau move the density by O(delta^4), and by O(delta^3) if the score is bent.

    Args:
        model: one model.
        expert: which, from 0.
        apart: by how much the halves stand to either side of the expert, for each parameter; all of one shape, whose
            axes become those of the result.
        shift: what is added to both halves.

    Raises:
        ValueError: many models, an expert that is not there, an unknown parameter, halves without a variance.
    """
    steps = [(name, value, -1.0) for name, value in apart.items()]
    steps += [(name, value, 1.0) for name, value in (shift or {}).items()]
    if unknown := {name for name, *_ in steps} - {*get_args(Parameter)}:
        raise ValueError(f"parameters must be of {get_args(Parameter)}; got {sorted(unknown)}")
    deltas = [torch.as_tensor(value, dtype=model.tau.dtype, device=model.tau.device) for _, value, _ in steps]
    shape = torch.broadcast_shapes(*(d.shape for d in deltas))
    halves = _twice(model, expert, halve=True)
    halves = halves.map(lambda tensor: tensor.broadcast_to((*shape, *tensor.shape)).clone())
    for (name, _, sign), d in zip(steps, deltas, strict=True):
        moved = getattr(halves, name)[(..., 0) if name in ("beta1", "a") else (...,)]  # a view of the model
        moved[..., expert] += d
        moved[..., expert + 1] += sign * d
    if not (halves.variance > 0).all():
        least = float(halves.variance.min())
        raise ValueError(f"delta must leave both halves a variance above 0; got a variance of {least:g}")
    return halves


def duplicate(
    model: GaussianMoE, expert: int, slope: float | int, *, halve: bool = True, gate: Gate | None = None
) -> GaussianMoE:
    """One more expert, in place `expert` + 1: a copy whose gate has the slope `slope` (the first entry).

    Args:
        model: one model.
        expert: which, from 0.
        halve: both copies have half the weight; otherwise each has all of it.
        gate: the form of the new gate; None keeps the model's.

    Raises:
        ValueError: many models, an expert that is not there.
    """
    twice = _twice(model, expert, halve=halve)
    twice.beta1[expert + 1, 0] = slope
    return replace(twice, gate=gate or twice.gate)


def _twice(model: GaussianMoE, expert: int, *, halve: bool) -> GaussianMoE:
    """The expert in two places next to each other."""
    if model.models:
        raise ValueError(f"model must be one model; got {tuple(model.models)} of them")
    if not 0 <= expert < model.num_experts:
        raise ValueError(f"expert must be from 0 to {model.num_experts - 1}; got {expert}")
    order = [*range(expert + 1), *range(expert, model.num_experts)]
    beta0 = model.beta0[order]
    if halve:
        beta0[expert : expert + 2] -= model.tau * math.log(2)
    return replace(
        model,
        beta0=beta0,
        beta1=model.beta1[order],
        a=model.a[order],
        b=model.b[order],
        variance=model.variance[order],
    )
