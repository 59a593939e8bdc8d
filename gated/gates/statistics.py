"""What a batch of gates did: who was open, how much flowed, how evenly."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gated.gates._validation import check_rows


def at_least_single(values: Tensor) -> torch.dtype:
    """The precision for a sum over a batch. Half ends at 65504, and a mean over the batch is a sum at first."""
    return torch.promote_types(values.dtype, torch.float32)


def load(weights: Float[Tensor, "*batch gates"] | Bool[Tensor, "*batch gates"]) -> Float[Tensor, "gates"]:
    """load_i = number of rows in which gate i is open (weight other than 0), over all batch dimensions.

    A count has no gradient; `selection_probability` is the smooth one. A mask will do as well. The counts
    come in single precision at least: half precision would round them.

    Raises:
        ValueError: weights neither floating point nor boolean, or without gates.

    Source: Shazeer et al. 2017, arXiv 1701.06538, section 4.

    Example:
        >>> load(torch.tensor([[0.7, 0.3], [1.0, 0.0]])).tolist()
        [2.0, 1.0]
    """
    check_rows("weights", weights, allow_bool=True)
    count = weights.ne(0).reshape(-1, weights.shape[-1]).sum(0)
    return count.to(at_least_single(weights))


def importance(weights: Float[Tensor, "*batch gates"]) -> Float[Tensor, "gates"]:
    """importance_i = sum over all rows of w_i; differentiable. In single precision at least: half would overflow.

    Raises:
        ValueError: weights not floating point or without gates.

    Source: Shazeer et al. 2017, arXiv 1701.06538, eq. 6.

    Example:
        >>> importance(torch.tensor([[0.75, 0.25], [1.0, 0.0]])).tolist()
        [1.75, 0.25]
    """
    check_rows("weights", weights)
    return weights.reshape(-1, weights.shape[-1]).sum(0, dtype=at_least_single(weights))


def coefficient_of_variation(values: Float[Tensor, "*batch gates"]) -> Float[Tensor, "*batch"]:
    """CoV = std(v) / mean(v) over the last dimension, std of the population (squares divided by gates).

    0 for equal values, sqrt(gates - 1) if one gate has everything. NaN where all values are 0. At 0, where
    the slope is not unique, the gradient is 0. In single precision at least.

    Args:
        values: v >= 0, for instance `load` or `importance`.

    Raises:
        ValueError: values not floating point or without gates.

    Source: Shazeer et al. 2017, arXiv 1701.06538, section 4 (which does not say which standard deviation).

    Example:
        >>> coefficient_of_variation(torch.tensor([1.0, 3.0]))
        tensor(0.5000)
    """
    check_rows("values", values)
    values = values.to(at_least_single(values))
    mean = values.mean(-1, keepdim=True)
    return torch.linalg.vector_norm(values / mean - 1, dim=-1) / values.shape[-1] ** 0.5


def entropy(weights: Float[Tensor, "*batch gates"]) -> Float[Tensor, "*batch"]:
    """H = -sum_i w_i log w_i in nats, from 0 (one gate) to log(gates) (uniform), row by row; 0 log 0 = 0.

    The slope is infinite at w_i = 0; shut gates get gradient 0 instead, so that the gradient of
    H(gate(logits)) is right.

    Args:
        weights: w >= 0, rows that sum to one (a load divided by its sum is a row too).

    Raises:
        ValueError: weights not floating point or without gates.

    Source: Shannon 1948.

    Example:
        >>> entropy(torch.full((4,), 0.25))  # log 4
        tensor(1.3863)
    """
    check_rows("weights", weights)
    shut = weights == 0
    # The second mask leaves the product's own slope, log(1) = 0, at shut gates.
    return -(weights * weights.masked_fill(shut, 1).log()).sum(-1)


def effective_gates(weights: Float[Tensor, "*batch gates"]) -> Float[Tensor, "*batch"]:
    """exp(H(w)): the number of equally open gates that has the same entropy, from 1 to gates.

    Args, Raises: as in `entropy`.

    Source: Hill 1973 (the Hill number of order 1, also called perplexity).

    Example:
        >>> effective_gates(torch.tensor([0.5, 0.5, 0.0])).round(decimals=4).item()
        2.0
    """
    return entropy(weights).exp()
