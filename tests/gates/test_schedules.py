import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gated.gates import constant_schedule, cosine_schedule, exponential_schedule, linear_schedule

temperatures = st.floats(0.01, 100)


@pytest.mark.parametrize("make", [linear_schedule, exponential_schedule, cosine_schedule])
@given(start=temperatures, end=temperatures, steps=st.integers(1, 50))
def test_from_start_to_end_without_turning_back(make, start, end, steps):
    schedule = make(start, end, steps)
    values = [schedule(step) for step in range(steps + 1)]
    assert values[0] == pytest.approx(start, rel=1e-13)
    assert values[-1] == schedule(steps + 1) == schedule(10 * steps) == end
    ordered = sorted(values, reverse=start > end)
    assert values == pytest.approx(ordered, rel=1e-12)


def test_values_by_hand():
    assert linear_schedule(2, 1, 4)(1) == 1.75
    assert exponential_schedule(8.0, 0.5, 4)(1) == pytest.approx(4)
    assert exponential_schedule(8.0, 0.5, 4)(3) == pytest.approx(1)
    assert cosine_schedule(3.0, 1.0, 4)(2) == pytest.approx(2)
    assert cosine_schedule(3.0, 1.0, 4)(1) == pytest.approx(2 + math.sqrt(0.5))
    assert constant_schedule(0.7)(0) == constant_schedule(0.7)(9) == 0.7
