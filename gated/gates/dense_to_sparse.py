"""EvoMoE's gate: all experts at first, fewer as the temperature falls, their number decided row by row."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gated.gates._validation import Temperature, check_logits, check_number
from gated.gates.noise import add_gumbel_noise
from gated.gates.soft import softmax_gate
from gated.gates.topk import topk_mask


def dense_to_sparse_gate(
    logits: Float[Tensor, "*batch gates"],
    threshold: float | int,
    temperature: Temperature = 1.0,
    *,
    generator: torch.Generator | None,
    check_finite: bool = False,
) -> Float[Tensor, "*batch gates"]:
    """p = softmax((l + g) / T), g_i ~ Gumbel(0, 1); w_i = p_i if p_i > P or i = argmax p, else 0.

    The kept weights are not rescaled, so rows sum to at most one. The rule that the largest always stays is
    ours: without it a row whose weights are all at or below P would be dropped.

    Args:
        logits, temperature, check_finite: as in `softmax_gate`; T falls during training (see `schedules`).
        threshold: P, 0 <= P < 1. P = 0 keeps all that is not zero.
        generator: where g comes from; None leaves it out (evaluation).

    Raises:
        ValueError: P outside [0, 1), and as in `softmax_gate`.

    Source: Nie et al. 2021 (EvoMoE), arXiv 2112.14397.

    Example:
        >>> dense_to_sparse_gate(torch.tensor([0.6, 0.3, 0.1]).log(), threshold=0.2, generator=None)
        tensor([0.6000, 0.3000, 0.0000])
    """
    check_logits(logits, check_finite)
    _check_threshold(threshold)
    noisy = add_gumbel_noise(logits, generator)
    weights = softmax_gate(noisy, temperature)
    return weights.masked_fill((weights <= threshold) & ~topk_mask(noisy, 1), 0)


class DenseToSparseGate(nn.Module):
    """`dense_to_sparse_gate` on a schedule, with the step as a buffer, so that checkpoints resume it.

    Noise in training only. Call `advance()` once per optimiser step; evaluation uses the temperature reached.

    Args:
        schedule: from a step (0, 1, ...) to a temperature, as `linear_schedule` and its like return it.
        threshold: P, 0 <= P < 1.

    Raises:
        ValueError: P outside [0, 1); in training, no generator; as in `softmax_gate`.

    Source: Nie et al. 2021 (EvoMoE), arXiv 2112.14397.

    Example:
        >>> gate = DenseToSparseGate(linear_schedule(2.0, 1.0, steps=2), threshold=0.2)
        >>> gate.advance()
        >>> gate.temperature
        1.5
    """

    step: Tensor

    def __init__(self, schedule: Callable[[int], float], threshold: float | int):
        super().__init__()
        _check_threshold(threshold)
        self.schedule, self.threshold = schedule, threshold
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    @property
    def temperature(self) -> float:
        return self.schedule(int(self.step))

    def advance(self) -> None:
        self.step += 1

    def forward(
        self, logits: Float[Tensor, "*batch gates"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "*batch gates"]:
        if self.training and generator is None:
            raise ValueError("generator must be a torch.Generator in training; got None")
        noise = generator if self.training else None
        return dense_to_sparse_gate(logits, self.threshold, self.temperature, generator=noise)


def _check_threshold(threshold: float | int) -> None:
    check_number("threshold", threshold, "[0, 1)")
