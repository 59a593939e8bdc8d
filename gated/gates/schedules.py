"""Temperature against the step. Each function returns a schedule, step -> T; past its last step T stays.

A schedule can be compared, copied and saved, and prints as the call that made it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from gated.gates._validation import check_count, check_positive

Schedule = Callable[[int], float]


def constant_schedule(value: float | int) -> Schedule:
    """T(t) = value > 0.

    Example:
        >>> constant_schedule(0.5)(100)
        0.5
    """
    check_positive("value", value)
    return _Annealed("constant", value, value, 1)


def linear_schedule(start: float | int, end: float | int, steps: int) -> Schedule:
    """T(t) = (1 - r) start + r end, r = min(t / steps, 1).

    Args:
        start, end: temperatures > 0; start may be the lower one.
        steps: number of steps >= 1 from start to end.

    Raises:
        ValueError: start or end <= 0, steps < 1; from the schedule, a negative step.

    Example:
        >>> temperature = linear_schedule(2.0, 1.0, steps=10)
        >>> temperature(0), temperature(5), temperature(99)
        (2.0, 1.5, 1.0)
    """
    return _Annealed("linear", start, end, steps)


def exponential_schedule(start: float | int, end: float | int, steps: int) -> Schedule:
    """T(t) = start^(1 - r) end^r: the same factor at every step.

    Args, Raises: as in `linear_schedule`.

    Source: Jang, Gu & Poole 2017, arXiv 1611.01144 (they hold T at a floor; here the floor is `end`).

    Example:
        >>> temperature = exponential_schedule(4.0, 1.0, steps=2)
        >>> temperature(0), temperature(1), temperature(2)
        (4.0, 2.0, 1.0)
    """
    return _Annealed("exponential", start, end, steps)


def cosine_schedule(start: float | int, end: float | int, steps: int) -> Schedule:
    """T(t) = end + (start - end) (1 + cos(pi r)) / 2: flat at both ends.

    Args, Raises: as in `linear_schedule`.

    Source: Loshchilov & Hutter 2017, arXiv 1608.03983 (there for the learning rate).

    Example:
        >>> temperature = cosine_schedule(3.0, 1.0, steps=2)
        >>> temperature(0), temperature(1), temperature(2)
        (3.0, 2.0, 1.0)
    """
    return _Annealed("cosine", start, end, steps)


@dataclass(frozen=True, repr=False)
class _Annealed:
    """A schedule by its name and numbers, so that a gate that holds one can be copied, compared and saved."""

    course: str
    start: float | int
    end: float | int
    steps: int

    def __post_init__(self) -> None:
        check_positive("start", self.start)
        check_positive("end", self.end)
        check_count("steps", self.steps)

    def __call__(self, step: int) -> float:
        if step < 0:
            raise ValueError(f"step must be at least 0; got {step!r}")
        start, end, done = self.start, self.end, min(step / self.steps, 1.0)
        match self.course:
            case "linear":
                return (1 - done) * start + done * end
            case "exponential":
                return start ** (1 - done) * end**done
            case "cosine":
                return end + (start - end) * (1 + math.cos(math.pi * done)) / 2
        return start

    def __repr__(self) -> str:
        numbers = f"{self.start}" if self.course == "constant" else f"{self.start}, {self.end}, steps={self.steps}"
        return f"{self.course}_schedule({numbers})"
