"""MLP-Mixer and the gating unit without gradients on a CPU: fewer passes over memory, a few images at a time.

Written operator by operator, a Mixer block makes a new array for every step, the largest of T d or n C numbers an
image, and in a large batch each leaves the cache before it is read again. Within `torch.inference_mode()` instead

- the batch runs in slices whose hidden arrays fit a core's cache;
- the token mixing multiplies from the left, W_1 x for each image, so nothing is transposed, and the residual and both
  biases enter through the products;
- GELU overwrites its argument;
- the gating unit's last pass reads x, u and g and writes y: the product and the residual sum in one.

The numbers are the same to rounding. `MixerBlock` and `NiNBlock` do so by themselves.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

CACHED = 2**18
"""Numbers of a slice's largest array: 1 MiB in float32."""

gelu_ = torch.ops.aten.gelu_
"""The exact GELU in place, which torch.nn.functional lacks."""


def fuses(x: Tensor, dropout: nn.Dropout) -> bool:
    """Whether a block may run so: asked for by inference mode, on a CPU, with nothing to drop."""
    if torch.compiler.is_compiling():  # first, because the compiler cannot trace the question for inference mode
        return False
    # Inference mode, not merely no_grad: vmap then never meets arrays that are written in place.
    return (
        torch.is_inference_mode_enabled()
        and x.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and not (dropout.training and dropout.p > 0)
    )


def in_slices(
    write: Callable[[Tensor, Tensor], object], x: Float[Tensor, "batch tokens dim"], largest: int
) -> Float[Tensor, "batch tokens dim"]:
    """y, where write(part of x, part of y) fills in as many images at a time as have `CACHED` numbers together, when
    the largest array of one image has `largest`."""
    y, images = torch.empty_like(x), max(1, CACHED // largest)
    for part, out in zip(x.split(images), y.split(images), strict=True):
        write(part, out)
    return y


def from_left(linear: nn.Linear, x: Float[Tensor, "batch inner dim"], plus: Tensor) -> Float[Tensor, "batch outer dim"]:
    """plus + W x for each image, W [outer, inner] the linear map's weight."""
    return torch.baddbmm(plus, linear.weight.expand(len(x), -1, -1), x)
