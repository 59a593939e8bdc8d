"""Gates that open and shut one by one: straight-through, Gumbel-sigmoid (binary concrete), hard concrete."""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gated.gates._validation import (
    Temperature,
    check_binary_logits,
    check_count,
    check_float,
    check_number,
    check_positive,
    check_same_shape,
    check_temperature,
    is_number,
)
from gated.gates.noise import add_logistic_noise, draw
from gated.gates.soft import tempered

Slope = Literal["sigmoid", "identity"]


def straight_through(hard: Float[Tensor, "*shape"], soft: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The value of `hard`, bit for bit, with the gradient of `soft`: a biased estimator, by design.

    Raises:
        ValueError: shapes that differ.

    Source: Bengio, Leonard & Courville 2013, arXiv 1308.3432.

    Example:
        >>> soft = torch.tensor([0.2, 0.9], requires_grad=True)
        >>> hard = straight_through((soft > 0.5).float(), soft)
        >>> hard.tolist(), torch.autograd.grad(hard.sum(), soft)[0].tolist()
        ([0.0, 1.0], [1.0, 1.0])
    """
    check_float("hard", hard)
    check_float("soft", soft)
    check_same_shape("soft", soft, "hard", hard)
    return hard.detach() + (soft - soft.detach())


def binary_gate(
    logits: Float[Tensor, "*shape"],
    threshold: float = 0.5,
    *,
    slope: Slope = "sigmoid",
    generator: torch.Generator | None = None,
    check_finite: bool = False,
) -> Float[Tensor, "*shape"]:
    """g = 1[p > threshold], p = sigmoid(s); with a generator g ~ Bernoulli(p) instead. Straight-through.

    Args:
        logits: s, any shape, each entry its own gate; -inf is shut, +inf open.
        threshold: in (0, 1); p = threshold is shut. Not used when sampling.
        slope: dg/ds in the backward pass: "sigmoid" p (1 - p), or "identity" 1.
        generator: where the Bernoulli draws come from; None decides by the threshold.
        check_finite: also look for NaN.

    Raises:
        ValueError: threshold outside (0, 1), unknown slope, logits not floating point or, with
            `check_finite`, NaN.

    Source: Bengio, Leonard & Courville 2013, arXiv 1308.3432.

    Example:
        >>> binary_gate(torch.tensor([-1.0, 0.0, 2.0])).tolist()
        [0.0, 0.0, 1.0]
    """
    check_binary_logits("logits", logits, check_finite)
    check_positive("threshold", threshold)
    if threshold >= 1:
        raise ValueError(f"threshold must lie in (0, 1); got {threshold!r}")
    if slope not in ("sigmoid", "identity"):
        raise ValueError(f"slope must be 'sigmoid' or 'identity'; got {slope!r}")
    probability = logits.sigmoid()
    bar = threshold if generator is None else draw(torch.Tensor.uniform_, logits, generator)
    hard = (probability > bar).to(logits.dtype)
    soft = probability if slope == "sigmoid" else logits.masked_fill(logits.isinf(), 0)
    return straight_through(hard, soft)


def gumbel_sigmoid_gate(
    logits: Float[Tensor, "*shape"],
    temperature: Temperature = 1.0,
    *,
    hard: bool = False,
    generator: torch.Generator | None,
    check_finite: bool = False,
) -> Float[Tensor, "*shape"]:
    """y = sigmoid((s + log u - log(1 - u)) / T), u ~ U(0, 1): binary concrete.

    P(y > 1/2) = sigmoid(s) at every T.

    Args:
        logits, check_finite: as in `binary_gate`.
        temperature: T > 0, as in `softmax_gate`; T -> 0 gives Bernoulli(sigmoid(s)).
        hard: 1[y > 1/2] forward with slope y (1 - y) / T (straight-through).
        generator: where u comes from; None leaves the noise out (evaluation).

    Raises:
        ValueError: temperature as in `softmax_gate`, logits as in `binary_gate`.

    Source: Maddison, Mnih & Teh 2017, arXiv 1611.00712; Jang, Gu & Poole 2017, arXiv 1611.01144.

    Example:
        >>> gumbel_sigmoid_gate(torch.tensor([-1.0, 2.0]), hard=True, generator=None).tolist()
        [0.0, 1.0]
    """
    check_binary_logits("logits", logits, check_finite)
    check_temperature(temperature, logits)
    noisy = add_logistic_noise(logits, generator)
    soft = tempered(noisy, temperature).sigmoid()
    return straight_through((soft > 0.5).to(soft), soft) if hard else soft


def hard_concrete_gate(
    log_alpha: Float[Tensor, "*shape"],
    temperature: float | int = 2 / 3,
    low: float | int = -0.1,
    high: float | int = 1.1,
    *,
    generator: torch.Generator,
    check_finite: bool = False,
) -> Float[Tensor, "*shape"]:
    """z = clip(low + (high - low) y, 0, 1), y = `gumbel_sigmoid_gate(log_alpha, T)`.

    The binary concrete y is stretched beyond [0, 1] and folded back, so that exact 0 and exact 1 have mass.
    Where z is clipped the gradient is 0.

    Args:
        log_alpha: location, any shape, each entry its own gate; -inf is shut, +inf open.
        temperature: T > 0 (beta in the paper).
        low, high: low < 0 and high > 1 (gamma and zeta in the paper).
        generator: where u comes from.
        check_finite: also look for NaN.

    Raises:
        ValueError: T <= 0, low >= 0, high <= 1, log_alpha not floating point or, with `check_finite`, NaN.

    Source: Louizos, Welling & Kingma 2018, arXiv 1712.01312, section 2.2.

    Example:
        >>> z = hard_concrete_gate(torch.zeros(1000), generator=torch.Generator().manual_seed(0))
        >>> bool((z == 0).any()), bool((z == 1).any()), bool(((z > 0) & (z < 1)).any())
        (True, True, True)
    """
    _check_hard_concrete(log_alpha, temperature, low, high, check_finite)
    return _stretch((add_logistic_noise(log_alpha, generator) / temperature).sigmoid(), low, high)


def hard_concrete_mode(
    log_alpha: Float[Tensor, "*shape"],
    low: float | int = -0.1,
    high: float | int = 1.1,
    *,
    check_finite: bool = False,
) -> Float[Tensor, "*shape"]:
    """z = clip(low + (high - low) sigmoid(log_alpha), 0, 1): the gate for evaluation, without noise or T.

    Args, Raises, Source: as in `hard_concrete_gate`.

    Example:
        >>> hard_concrete_mode(torch.tensor([-5.0, 0.0, 5.0])).tolist()
        [0.0, 0.5, 1.0]
    """
    _check_hard_concrete(log_alpha, 1.0, low, high, check_finite)
    return _stretch(log_alpha.sigmoid(), low, high)


def hard_concrete_open_probability(
    log_alpha: Float[Tensor, "*shape"],
    temperature: float | int = 2 / 3,
    low: float | int = -0.1,
    high: float | int = 1.1,
    *,
    check_finite: bool = False,
) -> Float[Tensor, "*shape"]:
    """P(z != 0) = sigmoid(log_alpha - T log(-low / high)); the sum is the expected L0 norm, to be penalised.

    Args, Raises, Source: as in `hard_concrete_gate`.

    Example:
        >>> hard_concrete_open_probability(torch.tensor([float("-inf"), float("inf")])).tolist()
        [0.0, 1.0]
    """
    _check_hard_concrete(log_alpha, temperature, low, high, check_finite)
    return torch.sigmoid(log_alpha - temperature * math.log(-low / high))


class HardConcrete(nn.Module):
    """One learnable log_alpha per gate: `hard_concrete_gate` in training, `hard_concrete_mode` in evaluation.

    Raises:
        ValueError: as in `hard_concrete_gate`; in training, no generator.

    Source: Louizos, Welling & Kingma 2018, arXiv 1712.01312.

    Example:
        >>> gate = HardConcrete(3, log_alpha=5.0).eval()
        >>> gate().tolist()
        [1.0, 1.0, 1.0]
    """

    def __init__(
        self,
        gates: int,
        log_alpha: float | int = 0.0,
        temperature: float | int = 2 / 3,
        low: float | int = -0.1,
        high: float | int = 1.1,
    ):
        super().__init__()
        check_count("gates", gates)
        check_number("log_alpha", log_alpha)
        self.log_alpha = nn.Parameter(torch.tensor(log_alpha, dtype=torch.get_default_dtype()).repeat(gates))
        _check_hard_concrete(self.log_alpha, temperature, low, high, check_finite=True)
        self.temperature, self.low, self.high = temperature, low, high

    def forward(self, generator: torch.Generator | None = None) -> Float[Tensor, "gates"]:
        if not self.training:
            return hard_concrete_mode(self.log_alpha, self.low, self.high)
        if generator is None:
            raise ValueError("generator must be a torch.Generator in training; got None")
        return hard_concrete_gate(self.log_alpha, self.temperature, self.low, self.high, generator=generator)

    def expected_open(self) -> Float[Tensor, ""]:
        """E |z|_0 = sum P(z != 0), between 0 and the number of gates."""
        return hard_concrete_open_probability(self.log_alpha, self.temperature, self.low, self.high).sum()


def _stretch(y: Tensor, low: float | int, high: float | int) -> Tensor:
    return (low + (high - low) * y).clamp(0, 1)


def _check_hard_concrete(
    log_alpha: Tensor, temperature: float | int, low: float | int, high: float | int, check_finite: bool
) -> None:
    check_binary_logits("log_alpha", log_alpha, check_finite)
    check_positive("temperature", temperature)
    if not (is_number(low) and -math.inf < low < 0):
        raise ValueError(f"low must be negative and finite, so that z = 0 has mass; got {low!r}")
    if not (is_number(high) and 1 < high < math.inf):
        raise ValueError(f"high must be above 1 and finite, so that z = 1 has mass; got {high!r}")
