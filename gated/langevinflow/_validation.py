"""What the models check. Each message names the argument, what came, and what would do."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gated.gates._validation import check_float, check_number, check_sizes
from gated.langevinflow.objective import check_counts


def check_task(observed: int, neurons: int, bins: int) -> None:
    check_sizes(observed=observed, neurons=neurons, bins=bins)
    if neurons < observed:
        raise ValueError(f"neurons must be at least observed={observed}, which come first; got {neurons}")


def check_input(spikes: Tensor, observed: int, bins: int) -> None:
    check_float("spikes", spikes)
    if spikes.ndim != 3 or 0 in spikes.shape or spikes.shape[2] != observed or spikes.shape[1] > bins:
        raise ValueError(
            f"spikes must have shape [trials, observed bins, {observed}], not empty, with at most {bins} bins; got "
            f"{tuple(spikes.shape)}"
        )
    check_counts("spikes", spikes)


def check_generator(model: nn.Module, generator: torch.Generator | None) -> None:
    if model.training and generator is None:
        raise ValueError("generator must be given in training, for dropout and noise; got None")


def check_rate(rate: float | int) -> None:
    check_number("rate", rate, "[0, 1)")
