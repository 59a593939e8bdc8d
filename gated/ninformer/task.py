"""A regression in which one token says how the others count, and its control in which nothing is multiplied."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from gated.gates._validation import check_count


def mixing_task(
    batch: int, tokens: int = 8, dim: int = 16, *, control: bool = False, generator: torch.Generator | None = None
) -> tuple[Float[Tensor, "batch tokens dim"], Float[Tensor, "batch dim"]]:
    """Tokens (c, x_1, ..., x_(n-1)) and the target c * m, or c + m with `control`, where m is the mean of the x_i.

    c has as many entries +1 as -1, in random order; each x_i is Gaussian, shifted and scaled to mean 0 and variance 1
    over its d entries. So a norm over the channels loses nothing of any token. An entry of the target has mean 0 and
    variance 1/(n - 1), with `control` 1 + 1/(n - 1): the error of the best constant.

    Raises:
        ValueError: batch below 1, fewer than two tokens, dim odd or below 4.
    """
    check_count("batch", batch)
    check_count("tokens", tokens, 2)
    check_count("dim", dim, 4)
    if dim % 2:
        raise ValueError(f"dim must be even and at least 4, so that signs balance; got {dim}")
    device = None if generator is None else generator.device
    half = torch.arange(dim, device=device) < dim // 2
    order = torch.rand(batch, dim, generator=generator, device=device).argsort(-1)
    c = torch.where(half[order], 1.0, -1.0)
    x = torch.randn(batch, tokens - 1, dim, generator=generator, device=device)
    x = torch.nn.functional.layer_norm(x, (dim,), eps=0.0)
    mean = x.mean(1)
    return torch.cat([c[:, None], x], 1), c + mean if control else c * mean
