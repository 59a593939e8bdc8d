"""What `_validation` says of numbers, counts and choices: the ends of a range, truth values, what is no number."""

import contextlib
import math
import re

import numpy as np
import pytest
import torch

from gated import gates as g
from gated.gates import _validation as check

ROW = torch.tensor([[0.5, -1.0, 2.0], [0.0, 1.0, 3.0]])


@pytest.mark.parametrize("value", [0, 1, 0.5, 1.0, np.float64(0.25), np.int64(1)])
def test_numbers_in_a_range(value):
    for interval, at_0, at_1 in (("[0, 1]", True, True), ("(0, 1]", False, True), ("[0, 1)", True, False)):
        outside = (value == 0 and not at_0) or (value == 1 and not at_1)
        refused = pytest.raises(ValueError, match=rf"^x must be a number in {re.escape(interval)}; got")
        with refused if outside else contextlib.nullcontext():
            check.check_number("x", value, interval)


@pytest.mark.parametrize("value", [-1e-9, 1 + 1e-9, math.nan, math.inf, -math.inf, True, "1", None, 1j])
@pytest.mark.parametrize("interval", ["[0, 1]", "(0, 1]", "[0, 1)", "(0, 1)", "[0, 1e0]"])
def test_numbers_beyond_it(value, interval):
    with pytest.raises(ValueError, match=re.escape(f"x must be a number in {interval}; got {value!r}")):
        check.check_number("x", value, interval)


def test_ends_at_infinity():
    for value in (-1e308, 0, 1e308):
        check.check_number("x", value)
    check.check_number("x", math.inf, "(0, inf]")
    for value, interval in ((math.inf, "[0, inf)"), (-math.inf, "(-inf, inf)"), (math.nan, "[-inf, inf]")):
        with pytest.raises(ValueError, match=rf"^x must be a number in {re.escape(interval)}"):
            check.check_number("x", value, interval)


def test_truth_values_and_words_are_no_numbers():
    assert [check.is_number(value) for value in (1, 0.5, np.float32(1), True, "1", None, 1j)] == [True] * 3 + [
        False
    ] * 4


def test_counts_and_sizes():
    check.check_count("n", np.int64(1))
    check.check_count("n", 0, 0)
    check.check_sizes(width=1, depth=2)
    for value, least in ((0, 1), (-1, 0), (1, 2)):
        with pytest.raises(ValueError, match=rf"^n must be an integer of at least {least}; got {value}"):
            check.check_count("n", value, least)
    with pytest.raises(ValueError, match=r"^depth must be an integer"):
        check.check_sizes(width=1, depth=0)


def test_choices():
    check.check_choice("how", "b", {"a": 1, "b": 2})
    with pytest.raises(ValueError, match=r"^how must be one of \('a', 'b'\); got 'c'"):
        check.check_choice("how", "c", {"a": 1, "b": 2})


def test_what_is_read_is_read_from_any_entry():
    assert check.holds_anywhere(torch.tensor([False, True]))
    assert not check.holds_anywhere(torch.tensor([False, False]))
    assert torch.func.vmap(lambda y: torch.tensor(float(check.holds_anywhere(y))))(torch.ones(2, 2)).tolist() == [0, 0]


@pytest.mark.parametrize("order", [[[0], [3]], [[-1], [0]]])
def test_an_order_points_at_gates(order):
    with pytest.raises(ValueError, match=r"^order must hold gates from 0 to 2"):
        g.plackett_luce_log_prob(ROW, torch.tensor(order))
