"""Hyperparameters that can be trained: unconstrained numbers, the ranges they map to, and their perturbation.

`raw` [n], lambda, is what the gates see and the optimiser moves; a hyperparameter's value is a function of it:

    bounded:       low + (high - low) sigmoid(raw)        half-bounded:  low + softplus(raw)
    logarithmic:   the same of the logarithm, low (high / low)^sigmoid(raw); half-bounded: low + e^raw
    discrete:      the floor of it; only what uses the value sees the integer

Each example of a batch has its own raw_i = raw + sigma xi_i, xi normal, sigma = softplus(rho).

Source: arXiv 1903.03088, sections 3.3 and 4 and its appendix; the stable inverses are our own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from gated.gates._validation import check_choice, check_sizes, is_number

Kind = Literal["continuous", "discrete"]
Scale = Literal["linear", "log"]


@dataclass(frozen=True)
class Hyperparameter:
    """One hyperparameter, its range and where it starts.

    Arguments:
        name: by which `Hyperparameters.values` returns it.
        low, high: ends of the open range; high None for a half-bounded one.
        start: value at the start, inside the range.
        kind: "discrete" for whole numbers: range (0, 4) has the values 0, 1, 2, 3.
        per_example: False for one that a batch can have only one of (a dropped weight, a penalty of the whole batch):
            all examples get the first one's perturbation.
        scale: "log" for one that is thought of in powers (weight decay).

    Raises ValueError for a range without inside, or a start outside of it.

    Example:
        >>> rate = Hyperparameter("rate", low=0.0, high=1.0, start=0.25)
        >>> rate.name, rate.start
        ('rate', 0.25)
    """

    name: str
    low: float | int
    high: float | int | None
    start: float | int
    kind: Kind = "continuous"
    per_example: bool = True
    scale: Scale = "linear"

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, get_args(Kind))
        check_choice("scale", self.scale, get_args(Scale))
        high = math.inf if self.high is None else self.high
        numbers = is_number(self.low) and is_number(high)
        if not (numbers and -math.inf < self.low < high) or (self.high is not None and not math.isfinite(self.high)):
            raise ValueError(f"{self.name}: low and high must be finite, low < high; got {self.low} and {self.high}")
        if self.scale == "log" and (self.low < 0 or (self.low == 0 and self.high is not None)):
            raise ValueError(f"{self.name}: low must be positive on a log scale with two ends; got {self.low}")
        if self.kind == "discrete" and not all(float(end).is_integer() for end in (self.low, self.high or 0)):
            raise ValueError(f"{self.name}: a discrete range must have whole ends, got {self.low} and {self.high}")
        self.place(self.start)

    def value(self, raw: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """The hyperparameter's value; differentiable unless discrete (then its gradient is 0)."""
        if self.high is None:
            value = self.low + (raw.exp() if self.scale == "log" else F.softplus(raw))
        elif self.scale == "log":
            value = self.low * (raw.sigmoid() * math.log(self.high / self.low)).exp()
        else:
            value = self.low + (self.high - self.low) * raw.sigmoid()
        if self.kind == "continuous":
            return value
        value = value.floor()  # a sigmoid that rounds to 1 must not reach the open end
        return value if self.high is None else value.clamp(max=self.high - 1)

    def inverse(self, value: Float[Tensor, "*batch"] | float | int) -> Float[Tensor, "*batch"]:
        """raw of a value before its floor (float64 for a number); -inf and inf at the ends. ValueError outside."""
        if not isinstance(value, Tensor) and not is_number(value):
            raise ValueError(f"{self.name} must be a number, got {value!r}")
        value = value if isinstance(value, Tensor) else torch.tensor(float(value), dtype=torch.float64)
        high = math.inf if self.high is None else self.high
        if not bool(((value >= self.low) & (value <= high)).all()):
            raise ValueError(f"{self.name} must lie in [{self.low}, {high}], got {value.tolist()}")
        if self.high is not None and self.scale == "log":
            return (value / self.low).log().log() - (self.high / value).log().log()
        above = value - self.low
        if self.high is not None:
            return above.log() - (self.high - value).log()
        return above.log() if self.scale == "log" else above + (-torch.expm1(-above)).log()

    def place(self, value: float | int) -> float:
        """raw where this value is sure: for a whole number of a discrete one the middle of its cell, k + 1/2.

        On the edge itself half of all perturbations, and rounding, give k - 1. Raises ValueError outside of the range,
        or at an end of it, where raw would be infinite.
        """
        if self.kind == "discrete" and float(value).is_integer():
            value = value + 0.5
        raw = float(self.inverse(value))
        if not math.isfinite(raw):
            raise ValueError(f"{self.name} must lie inside ({self.low}, {self.high}), not at an end; got {value}")
        return raw


class Hyperparameters(nn.Module):
    """n hyperparameters with parameters `raw` [n] and `rho` [n]; sigma = softplus(rho).

    Arguments:
        hyperparameters: their names differ.
        scale: sigma at the start, one number or one for each.

    Raises ValueError for none, equal names, or a scale that is not positive and finite.

    Example:
        >>> h = Hyperparameters([Hyperparameter("rate", 0.0, 1.0, 0.25)])
        >>> h.raw.shape
        torch.Size([1])
    """

    shared: Tensor

    def __init__(
        self,
        hyperparameters: Sequence[Hyperparameter],
        *,
        scale: float | int | Sequence[float | int] = 0.5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.all = tuple(hyperparameters)
        if not all(isinstance(each, Hyperparameter) for each in self.all):
            raise ValueError(f"hyperparameters must each be a `Hyperparameter`; got {hyperparameters!r}")
        if not self.all or len(set(self.names)) < len(self.all):
            raise ValueError(f"hyperparameters must be at least one, with different names; got {self.names}")
        scales = list(scale) if isinstance(scale, Sequence) else [scale] * len(self.all)
        if len(scales) != len(self.all) or not all(is_number(s) and 0 < s < math.inf for s in scales):
            raise ValueError(f"scale must be positive and finite, one number or {len(self.all)}; got {scale}")
        dtype = torch.get_default_dtype() if dtype is None else dtype
        self.raw = nn.Parameter(torch.tensor([h.place(h.start) for h in self.all], device=device, dtype=dtype))
        rho = [s + math.log(-math.expm1(-s)) for s in map(float, scales)]
        self.rho = nn.Parameter(torch.tensor(rho, device=device, dtype=dtype))
        shared = torch.tensor([not h.per_example for h in self.all], device=device)
        self.register_buffer("shared", shared, persistent=False)

    def __len__(self) -> int:
        return len(self.all)

    def extra_repr(self) -> str:
        return ", ".join(f"{h.name} in ({h.low}, {h.high})" for h in self.all)

    @property
    def names(self) -> list[str]:
        return [h.name for h in self.all]

    @property
    def scale(self) -> Float[Tensor, " n"]:
        """sigma = softplus(rho)."""
        return F.softplus(self.rho)

    def perturb(self, batch: int, generator: torch.Generator | None = None) -> Float[Tensor, "batch n"]:
        """raw + sigma xi for each example, xi normal: differentiable in raw and rho. ValueError for batch < 1."""
        check_sizes(batch=batch)
        return self.shift(
            torch.randn(batch, len(self.all), generator=generator, device=self.raw.device, dtype=self.raw.dtype)
        )

    def shift(self, xi: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
        """raw + sigma xi, where the hyperparameters of a whole batch take the first example's xi for all."""
        if not all(h.per_example for h in self.all):
            xi = torch.where(self.shared, xi[:1], xi)
        return self.raw + self.scale * xi

    def values(self, raw: Float[Tensor, "*batch n"] | None = None) -> dict[str, Float[Tensor, "*batch"]]:
        """The value of each hyperparameter, by name; of `self.raw` if none is given.

        Raises ValueError unless raw's last axis is n.
        """
        raw = self.raw if raw is None else raw
        if raw.ndim < 1 or raw.shape[-1] != len(self.all):
            raise ValueError(f"raw must have shape [..., {len(self.all)}], got {tuple(raw.shape)}")
        return {h.name: h.value(column) for h, column in zip(self.all, raw.unbind(-1), strict=True)}

    def entropy(self) -> Float[Tensor, ""]:
        """H = sum_k ln(sigma_k sqrt(2 pi e)) of the perturbation, in nats."""
        return self.scale.log().sum() + len(self.all) * 0.5 * math.log(2 * math.pi * math.e)

    def raw_of(self, values: Mapping[str, float | int]) -> Float[Tensor, " n"]:
        """raw [n] at these values (`Hyperparameter.place`), and as it is where they are not named.

        For fixed values and schedules. Raises ValueError for an unknown name or a value outside its range.
        """
        unknown = set(values) - set(self.names)
        if unknown:
            raise ValueError(f"values must be of {self.names}, got {sorted(unknown)}")
        raw = self.raw.detach().clone()
        for i, h in enumerate(self.all):
            if h.name in values:
                raw[i] = h.place(values[h.name])
        return raw
