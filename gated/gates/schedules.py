"""Temperature against the step. Each function returns a schedule, step -> T; past its last step T stays."""

import math
from collections.abc import Callable

from gated.gates._validation import check_count, check_positive

Schedule = Callable[[int], float]


def constant_schedule(value: float | int) -> Schedule:
    """T(t) = value > 0.

    Example:
        >>> constant_schedule(0.5)(100)
        0.5
    """
    check_positive("value", value)
    return _anneal(value, value, 1, lambda done: value)


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
    return _anneal(start, end, steps, lambda done: (1 - done) * start + done * end)


def exponential_schedule(start: float | int, end: float | int, steps: int) -> Schedule:
    """T(t) = start^(1 - r) end^r: the same factor at every step.

    Args, Raises: as in `linear_schedule`.

    Source: Jang, Gu & Poole 2017, arXiv 1611.01144 (they hold T at a floor; here the floor is `end`).

    Example:
        >>> temperature = exponential_schedule(4.0, 1.0, steps=2)
        >>> temperature(0), temperature(1), temperature(2)
        (4.0, 2.0, 1.0)
    """
    return _anneal(start, end, steps, lambda done: start ** (1 - done) * end**done)


def cosine_schedule(start: float | int, end: float | int, steps: int) -> Schedule:
    """T(t) = end + (start - end) (1 + cos(pi r)) / 2: flat at both ends.

    Args, Raises: as in `linear_schedule`.

    Source: Loshchilov & Hutter 2017, arXiv 1608.03983 (there for the learning rate).

    Example:
        >>> temperature = cosine_schedule(3.0, 1.0, steps=2)
        >>> temperature(0), temperature(1), temperature(2)
        (3.0, 2.0, 1.0)
    """
    return _anneal(start, end, steps, lambda done: end + (start - end) * (1 + math.cos(math.pi * done)) / 2)


def _anneal(start: float | int, end: float | int, steps: int, value: Callable[[float], float]) -> Schedule:
    check_positive("start", start)
    check_positive("end", end)
    check_count("steps", steps)

    def schedule(step: int) -> float:
        if step < 0:
            raise ValueError(f"step must be at least 0; got {step!r}")
        return value(min(step / steps, 1.0))

    return schedule
