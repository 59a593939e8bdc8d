"""What the gates check before they compute. Each message names the argument, what came, and what would do."""

import math
from collections.abc import Iterable
from numbers import Integral, Real

import torch
from jaxtyping import Float
from torch import Tensor

Temperature = float | int | Float[Tensor, ""] | Float[Tensor, "*batch"]
"""A number, a scalar tensor (one to learn), or one value per row: the logits' shape less its last axis."""


def holds_anywhere(condition: Tensor) -> bool:
    """Whether `condition` is true somewhere; False where values cannot be read (compilation, vmap)."""
    if torch.compiler.is_compiling():
        return False
    try:
        return bool(condition.any())
    except (torch.OutOfMemoryError, torch.AcceleratorError):  # the device's own troubles, not a missing value
        raise
    except RuntimeError:
        return False


def check_float(name: str, tensor: Tensor) -> None:
    if not (isinstance(tensor, Tensor) and tensor.is_floating_point()):
        given = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise ValueError(f"{name} must be a floating-point tensor; got {given}")


def check_int(name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor) or tensor.is_floating_point() or tensor.dtype == torch.bool:
        given = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise ValueError(f"{name} must be a tensor of integers; got {given}")


def check_axes(axes: str, **tensors: Tensor) -> None:
    """Each tensor has the axes that stand for it in `axes`, as in "*batch dim, dim", and one name is one size in all.

    `*batch` is any number of axes, a number is a size. Nothing is broadcast.
    """
    sizes: dict[str, object] = {}
    for words, (name, tensor) in zip(axes.split(","), tensors.items(), strict=True):
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{name} must be a tensor [{words.strip()}]; got {type(tensor).__name__}")
        names, shape = words.split(), tuple(tensor.shape)
        star = next((i for i, axis in enumerate(names) if axis[0] == "*"), None)
        parts: list[object] = list(shape)
        if star is not None and len(shape) >= len(names) - 1:
            end = len(shape) - (len(names) - star - 1)
            parts[star:end] = [shape[star:end]]
        known = {axis: sizes[axis] for axis in names if axis in sizes and not axis.isdigit()}
        sizes |= {axis: int(axis) for axis in names if axis.isdigit()}
        if len(parts) != len(names) or any(
            sizes.setdefault(axis, part) != part for axis, part in zip(names, parts, strict=True)
        ):
            given = "".join(f", {axis} = {size}" for axis, size in known.items())
            raise ValueError(f"{name} must have shape [{words.strip()}]{given}; got {shape}")


def check_floats(axes: str, **tensors: Tensor) -> None:
    """What a module asks of its input: floating point, and `check_axes`."""
    for name, tensor in tensors.items():
        check_float(name, tensor)
    check_axes(axes, **tensors)


def check_rows(name: str, tensor: Tensor, *, allow_bool: bool = False) -> None:
    if not (allow_bool and isinstance(tensor, Tensor) and tensor.dtype == torch.bool):
        check_float(name, tensor)
    if tensor.ndim == 0 or tensor.shape[-1] == 0:
        raise ValueError(f"{name} must have shape (*batch, gates), gates >= 1; got {tuple(tensor.shape)}")


def check_logits(logits: Tensor, check_finite: bool) -> None:
    """For gates that compete in a row: -inf shuts a gate, +inf has no meaning, one gate must stay open."""
    check_rows("logits", logits)
    if not check_finite:
        return
    if holds_anywhere(logits.isnan() | logits.isposinf()):
        raise ValueError("logits must hold neither NaN nor +inf (-inf shuts a gate); got some")
    if holds_anywhere(logits.isneginf().all(-1)):
        raise ValueError("logits must leave a gate open in each row; got a row of -inf only")


def check_binary_logits(name: str, logits: Tensor, check_finite: bool) -> None:
    """For gates that stand alone: any shape; -inf is shut, +inf is open."""
    check_float(name, logits)
    if check_finite and holds_anywhere(logits.isnan()):
        raise ValueError(f"{name} must hold no NaN (-inf shuts a gate, +inf opens it); got some")


def is_number(value: object) -> bool:
    """A real number; truth values are none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_positive(name: str, value: float | int) -> None:
    if not (is_number(value) and 0 < value < math.inf):
        raise ValueError(f"{name} must be a positive finite number; got {value!r}")


def check_number(name: str, value: float | int, interval: str = "(-inf, inf)") -> None:
    """A real number in the interval, written as in mathematics: "[0, 1)" holds 0 and not 1, "(0, inf]" any above 0."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    ends = [low] * (interval[0] == "[") + [high] * (interval[-1] == "]")
    if not is_number(value) or not (low < value < high or value in ends):
        raise ValueError(f"{name} must be a number in {interval}; got {value!r}")


def check_temperature(temperature: float | int | Tensor, logits: Tensor) -> None:
    if not isinstance(temperature, Tensor):
        return check_positive("temperature", temperature)
    check_float("temperature", temperature)
    if temperature.ndim and temperature.shape != logits.shape[:-1]:
        raise ValueError(
            "temperature must be a number, a scalar tensor or one value per row, shape "
            f"{tuple(logits.shape[:-1])}; got shape {tuple(temperature.shape)}"
        )
    if holds_anywhere(~((temperature > 0) & temperature.isfinite())):
        raise ValueError(f"temperature must be positive and finite everywhere; got {temperature}")


def check_count(name: str, value: int, least: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}; got {value!r}")


def check_sizes(**sizes: int) -> None:
    """`check_count` of several: widths, experts, steps."""
    for name, size in sizes.items():
        check_count(name, size)


def check_choice(name: str, value: object, choices: Iterable[object]) -> None:
    known = tuple(choices)
    if value not in known:
        raise ValueError(f"{name} must be one of {known}; got {value!r}")


def check_k(k: int, gates: int) -> None:
    check_count("k", k)
    if k > gates:
        raise ValueError(f"k must be at most the number of gates, {gates}; got {k!r}")


def check_same_shape(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    if tensor.shape != other.shape:
        raise ValueError(f"{name} must have the shape of {other_name}, {tuple(other.shape)}; got {tuple(tensor.shape)}")


def check_noise_std(noise_std: float | int | Tensor, logits: Tensor) -> None:
    if not isinstance(noise_std, Tensor):
        return check_positive("noise_std", noise_std)
    check_float("noise_std", noise_std)
    check_same_shape("noise_std", noise_std, "logits", logits)
    if holds_anywhere(~((noise_std > 0) & noise_std.isfinite())):
        raise ValueError("noise_std must be positive and finite everywhere; got values that are not")
