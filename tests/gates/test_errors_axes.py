"""`check_axes`: what fits the axes that are written down passes, all else is refused by the argument's name."""

import pytest
import torch

from gated.gates._validation import check_axes, check_int

GOOD = [
    ("batch dim, batch", {"x": (2, 3), "y": (2,)}),
    ("*batch dim, dim", {"x": (4, 2, 3), "y": (3,)}),
    ("*batch dim, *batch dim", {"x": (3,), "y": (3,)}),
    ("time *batch agents, time *batch", {"x": (5, 2, 7, 3), "y": (5, 2, 7)}),
    ("dim dim", {"x": (3, 3)}),
    ("batch dim, batch", {"x": (0, 3), "y": (0,)}),
]
BAD = [
    ("batch dim, batch dim", {"x": (2, 3), "y": (2, 1)}, r"y must have shape \[batch dim\], batch = 2, dim = 3; got"),
    ("batch dim, batch", {"x": (2, 3), "y": (3,)}, r"y must have shape \[batch\], batch = 2; got \(3,\)"),
    ("batch dim", {"x": (3,)}, "x must have shape"),
    ("batch dim", {"x": (1, 2, 3)}, "x must have shape"),
    ("*batch dim, *batch dim", {"x": (4, 3), "y": (3,)}, "y must have shape"),
    ("*batch dim", {"x": ()}, "x must have shape"),
    ("time *batch agents, time *batch", {"x": (5, 2, 3), "y": (5,)}, "y must have shape"),
    ("dim dim", {"x": (3, 2)}, "x must have shape"),
]


@pytest.mark.parametrize(("axes", "shapes"), GOOD)
def test_shapes_that_fit(axes, shapes):
    check_axes(axes, **{name: torch.zeros(shape) for name, shape in shapes.items()})


@pytest.mark.parametrize(("axes", "shapes", "message"), BAD)
def test_shapes_that_do_not_fit(axes, shapes, message):
    with pytest.raises(ValueError, match=message):
        check_axes(axes, **{name: torch.zeros(shape) for name, shape in shapes.items()})


def test_as_many_axes_as_tensors():
    with pytest.raises(ValueError, match="zip"):
        check_axes("batch", x=torch.zeros(2), y=torch.zeros(3))


def test_what_is_no_tensor_or_holds_no_integers():
    with pytest.raises(ValueError, match="x must be a tensor"):
        check_axes("batch", x=[1.0])
    for value in (torch.zeros(2), torch.ones(2, dtype=torch.bool), [1]):
        with pytest.raises(ValueError, match="y must be a tensor of integers"):
            check_int("y", value)
    check_int("y", torch.zeros(2, dtype=torch.int32))
