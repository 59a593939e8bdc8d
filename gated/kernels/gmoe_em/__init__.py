"""All that one iteration of EM needs from the points of a Gaussian mixture of experts, in one pass over them.

    l_i = (sigma(beta_1i^T x) + beta_0i) / tau,   pi = softmax of the l_i over the selected experts i
    e_i = y - a_i^T x - b_i,                      r_i = pi_i N(e_i; 0, nu_i) / p,   p = sum_i pi_i N(e_i; 0, nu_i)

    log likelihood  sum log p        moment  sum r_i z z^T,  cross  sum r_i z e_i,  square  sum r_i e_i^2,   z = (1, x)
    gradient  sum J^T (r - pi)       gram    sum J^T (diag pi - pi pi^T) J,    J the logits' derivatives by the gate

The experts' update solves moment_i delta = cross_i for the change of (b_i, a_i): errors are taken at the current
experts so that nothing cancels. A Fisher scoring step of the gate solves gram delta = gradient. Of the points only x
and y are read; no table of responsibilities [points, experts] goes through memory.

    points.py        data sets of any sizes in blocks of equal length
    layout.py        the order of the sums
    activations.py   sigma and its derivative
    reference.py     the definition
    cpu.py           blocks in pieces that stay in the cache, or compiled
    gpu.py           Triton: a program for up to 256 points, then a sum over the programs of a data set

Source: Jordan and Jacobs 1994, "Hierarchical mixtures of experts and the EM algorithm", for the two updates. Their sums
in one pass, over selected experts and at a temperature, are ours.
"""

from __future__ import annotations

from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor

from gated.kernels._forward_mode import refuse_tangents
from gated.kernels.gmoe_em import cpu
from gated.kernels.gmoe_em.activations import ACTIVATIONS, Activation, ActivationName
from gated.kernels.gmoe_em.layout import Statistics, sizes, unpack
from gated.kernels.gmoe_em.points import Points
from gated.kernels.gmoe_em.reference import naive_gmoe_em

__all__ = ["ACTIVATIONS", "Activation", "ActivationName", "Points", "Statistics", "gmoe_em", "naive_gmoe_em"]

_RANKS = ("slope", "logit")


def gmoe_em(
    points: Points,
    beta0: Float[Tensor, "segments experts"],
    beta1: Float[Tensor, "segments experts dim"],
    a: Float[Tensor, "segments experts dim"],
    b: Float[Tensor, "segments experts"],
    variance: Float[Tensor, "segments experts"],
    tau: Float[Tensor, " segments"],
    *,
    top_k: int | None = None,
    rank: str = "logit",
    activation: str = "identity",
    compiled: bool = False,
) -> Statistics:
    """The sums of `Statistics` at the given parameters, which are those of `gated.gaussian_moe.GaussianMoE`.

    Computed in the dtype of the points, added up in float64. Not differentiable: the derivatives are the result.

    Args:
        points: of all data sets.
        top_k: how many experts a point keeps, ties to the lower index; None keeps all.
        rank: what they are chosen by: "slope", sigma(beta_1i^T x), or "logit".
        activation: sigma, a key of `ACTIVATIONS`.
        compiled: on a CPU, through `torch.compile`: some seconds once for each number of experts, inputs and form of
            the gate.

    Raises:
        ValueError: shapes that do not fit together, top_k out of range, an unknown rank or activation; on a CPU also
            parameters that are not finite and a variance or tau that is not positive.
        NotImplementedError: a forward-mode derivative is asked for; `naive_gmoe_em` has one.

    Example:
        >>> x = torch.randn(100, 2)
        >>> points = Points.pack(x, torch.randn(100), torch.tensor([0, 100]))
        >>> one = torch.ones(1, 2)  # one data set, two experts that are alike
        >>> sums = gmoe_em(points, 0 * one, torch.zeros(1, 2, 2), torch.zeros(1, 2, 2), 0 * one, one, one[:, 0])
        >>> sums.moment.shape, round(sums.moment[0, 0, 0, 0].item(), 3)  # half of the points is each one's
        (torch.Size([1, 2, 3, 3]), 50.0)
    """
    if not isinstance(points, Points):
        raise ValueError(f"points must be `Points`, as `Points.pack` gives them; got {type(points).__name__}")
    points.check()
    x, y, count, segment, segments = points
    if x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"points must be float32 or float64; got {x.dtype}")
    if x.is_cuda and x.dtype == torch.float64:
        raise ValueError("points are float64 on a GPU, whose kernels compute in float32; use .float(), or .cpu()")
    k, d = beta0.shape[-1] if beta0.dim() else 0, x.shape[1]
    shapes = {"beta0": (k,), "beta1": (k, d), "a": (k, d), "b": (k,), "variance": (k,), "tau": ()}
    parameters = [beta0, beta1, a, b, variance, tau]
    for (name, shape), given in zip(shapes.items(), parameters, strict=True):
        if given.shape != (segments, *shape) or not given.is_floating_point() or k < 1:
            want = "[segments, experts, dim]" if len(shape) == 2 else "[segments, experts]" if shape else "[segments]"
            raise ValueError(
                f"{name} must be a floating tensor {want} = {[segments, *shape]}; got {given.dtype} {[*given.shape]}"
            )
        if given.device != x.device:
            raise ValueError(f"{name} must be on the points' device, {x.device}; it is on {given.device}")
        if x.device.type == "cpu" and not given.isfinite().all():
            raise ValueError(f"{name} must be finite; it is not in data sets {_where(~given.isfinite())}")
        if name in ("variance", "tau") and x.device.type == "cpu" and not (given > 0).all():
            raise ValueError(f"{name} must be above 0; it is not in data sets {_where(given <= 0)}")
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or not 1 <= top_k <= k):
        raise ValueError(f"top_k must be None or an integer in 1..{k}, the number of experts; got {top_k!r}")
    if rank not in _RANKS:
        raise ValueError(f"rank must be one of {_RANKS}; got {rank!r}")
    if activation not in get_args(ActivationName):
        raise ValueError(f"activation must be one of {get_args(ActivationName)}; got {activation!r}")
    refuse_tangents("gmoe_em", "naive_gmoe_em", x, y, *parameters)
    parameters = [p.detach().to(x.dtype) for p in parameters]
    flat = _gmoe_em(x, y, count, segment, segments, *parameters, top_k or k, rank, activation, compiled)
    return unpack(flat, k, d, tau.detach().double())


def _where(bad: Tensor) -> list[int]:
    """The first of the data sets that have one."""
    return bad.view(len(bad), -1).any(1).nonzero()[:5, 0].tolist()


def _gmoe_em_gpu(x, y, count, segment, segments, beta0, beta1, a, b, variance, tau, top_k, rank, activation, compiled):
    from gated.kernels.gmoe_em import gpu

    return gpu.forward(x, y, count, segment, segments, [beta0, beta1, a, b, variance, tau], top_k, rank, activation)


_gmoe_em = torch.library.custom_op(
    "gated::gmoe_em",
    _gmoe_em_gpu,
    mutates_args=(),
    device_types="cuda",
    schema="(Tensor x, Tensor y, Tensor count, Tensor segment, int segments, Tensor beta0, Tensor beta1, Tensor a, "
    "Tensor b, Tensor variance, Tensor tau, int top_k, str rank, str activation, bool compiled) -> Tensor",
)


@_gmoe_em.register_kernel("cpu")
def _gmoe_em_cpu(x, y, count, segment, segments, beta0, beta1, a, b, variance, tau, top_k, rank, activation, compiled):
    parameters = [beta0, beta1, a, b, variance, tau]
    return cpu.forward(x, y, count, segment, segments, parameters, top_k, rank, activation, compiled)


@_gmoe_em.register_fake
def _gmoe_em_fake(x, y, count, segment, segments, beta0, *_):
    return x.new_empty(segments, sum(sizes(beta0.shape[1], x.shape[1])), dtype=torch.float64)
