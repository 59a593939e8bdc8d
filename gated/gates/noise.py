"""Gaussian, Gumbel and logistic noise on logits, from a caller's generator."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from gated.gates._validation import check_float, check_noise_std, check_rows


def draw(fill: Callable[..., Tensor], like: Tensor, generator: torch.Generator) -> Tensor:
    """Draws by one of torch's in-place samplers, in single precision at least: half has too few values."""
    wide = torch.promote_types(like.dtype, torch.float32)
    return fill(torch.empty(like.shape, dtype=wide, device=like.device), generator=generator)


def add_gaussian_noise(
    logits: Float[Tensor, "*batch gates"],
    noise_std: float | int | Float[Tensor, "*batch gates"],
    *,
    generator: torch.Generator,
) -> Float[Tensor, "*batch gates"]:
    """H_i = l_i + s_i e_i with e_i ~ N(0, 1): differentiable in l and in s.

    Args:
        logits: l.
        noise_std: s > 0, one number, or one value per entry (V-MoE uses 1/gates).
        generator: where the noise comes from.

    Raises:
        ValueError: s <= 0 or of another shape; logits not floating point or without gates.

    Source: Shazeer et al. 2017, arXiv 1701.06538, eq. 4.

    Example:
        >>> noisy = add_gaussian_noise(torch.zeros(1000), 2.0, generator=torch.Generator().manual_seed(0))
        >>> abs(noisy.std().item() - 2) < 0.2
        True
    """
    check_rows("logits", logits)
    check_noise_std(noise_std, logits)
    return logits + noise_std * draw(torch.Tensor.normal_, logits, generator).to(logits.dtype)


def gumbel_noise(like: Float[Tensor, "*shape"], generator: torch.Generator) -> Float[Tensor, "*shape"]:
    """g = -log E with E ~ Exp(1): standard Gumbel noise in the shape, dtype and device of `like`; finite."""
    exponential = draw(torch.Tensor.exponential_, like, generator)
    return -exponential.clamp(min=torch.finfo(exponential.dtype).tiny).log().to(like.dtype)


def add_gumbel_noise(
    logits: Float[Tensor, "*shape"], generator: torch.Generator | None
) -> Float[Tensor, "*shape"]:
    """l + g, g ~ Gumbel(0, 1); generator None adds nothing.

    Example:
        >>> add_gumbel_noise(torch.tensor([1.0, 2.0]), generator=None)
        tensor([1., 2.])
    """
    check_float("logits", logits)
    return logits if generator is None else logits + gumbel_noise(logits, generator)


def add_logistic_noise(
    logits: Float[Tensor, "*shape"], generator: torch.Generator | None
) -> Float[Tensor, "*shape"]:
    """l + g - g', which is logistic noise, log u - log(1 - u); generator None adds nothing."""
    if generator is None:
        return logits
    return logits + gumbel_noise(logits, generator) - gumbel_noise(logits, generator)
