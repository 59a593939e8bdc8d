import copy
import io
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gated.gates import (
    DenseToSparseGate,
    constant_schedule,
    cosine_schedule,
    exponential_schedule,
    linear_schedule,
)

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


SCHEDULES = [f(2.0, 1, 3) for f in (linear_schedule, exponential_schedule, cosine_schedule)] + [constant_schedule(0.5)]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_a_schedule_can_be_kept(schedule):
    for kept in (pickle.loads(pickle.dumps(schedule)), copy.deepcopy(schedule)):
        assert kept == schedule
        assert [kept(step) for step in range(5)] == [schedule(step) for step in range(5)]
    assert eval(repr(schedule)) == schedule
    assert len(set(SCHEDULES)) == 4


def test_a_gate_on_a_schedule_is_saved_whole():
    gate = DenseToSparseGate(linear_schedule(2.0, 1.0, 4), threshold=0.1)
    gate.advance()
    file = io.BytesIO()
    torch.save(gate, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    again.advance()
    assert again.temperature == 1.5
    assert gate.temperature == 1.75
