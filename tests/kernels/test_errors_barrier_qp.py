"""Bad input to the batched quadratic programs: a ValueError that names the argument."""

import math

import pytest
import torch

from gated.kernels.barrier_qp import barrier_qp

A, B = torch.ones(3, 4, 2), -torch.ones(3, 4)
C, D = torch.ones(3, 2), torch.ones(3)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("a", {"a": torch.ones(3, 4, 3)}),
        ("a", {"a": torch.ones(2)}),
        ("a", {"a": [[1.0, 0.0]]}),
        ("a", {"a": torch.ones(3, 4, 2, dtype=torch.int64)}),
        ("b", {"b": torch.ones(3, 3)}),
        ("b", {"b": torch.ones(3, 4, 1)}),
        ("b", {"b": None}),
        ("b", {"b": -torch.ones(3, 4, dtype=torch.int32)}),
        ("c", {"c": torch.ones(3, 3)}),
        ("c", {"c": torch.ones(2)}),
        ("c", {"c": None}),
        ("d", {"d": None}),
        ("d", {"d": torch.ones(3, 1)}),
        ("d", {"d": 1.0}),
        ("nominal", {"nominal": torch.ones(4, 2)}),
        ("nominal", {"nominal": torch.ones(3, 2, device="meta")}),
        ("limit", {"limit": 0.0}),
        ("limit", {"limit": -1}),
        ("limit", {"limit": math.inf}),
        ("limit", {"limit": math.nan}),
        ("limit", {"limit": True}),
        ("limit", {"limit": torch.ones(3)}),
        ("limit", {"limit": None}),
        ("xi", {"xi": -0.1}),
        ("xi", {"xi": math.nan}),
        ("xi", {"xi": math.inf}),
        ("xi", {"xi": "10"}),
    ],
)
def test_names_what_does_not_fit(name, given):
    with pytest.raises(ValueError, match=rf"^{name} (must|is on)"):
        barrier_qp(**{"a": A, "b": B, "c": C, "d": D, "limit": 1.0} | given)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["a", "b", "c", "d", "nominal"])
def test_names_what_is_not_finite(name, value):
    given = {"a": A, "b": B, "c": C, "d": D, "nominal": C}
    given[name] = given[name].clone()
    given[name][1] = value
    with pytest.raises(ValueError, match=rf"^{name} must be finite"):
        barrier_qp(**given, limit=1.0)


def test_what_is_legal_is_not_refused():
    """Values whose sum leaves the range, an infeasible problem, a price of 0, no rows."""
    big = torch.full((3, 4), -3e38)
    assert barrier_qp(A, big, limit=1).feasible.all()
    assert not barrier_qp(A, -big, limit=1).feasible.any()
    assert (barrier_qp(A, B, limit=1, c=C, d=D, xi=0).u == 0).all()
    assert barrier_qp(A[:, :0], B[:, :0], limit=1e-3).feasible.all()
