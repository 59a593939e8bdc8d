"""The Triton kernels of the quadratic programs in Triton's interpreter, against the definition in float64.

Run with TRITON_INTERPRET=1. The operators' CPU side is replaced by what CUDA dispatches to, so that shapes and the
autograd around them are covered too.
"""

import os

import pytest
import torch
from torch import Tensor

from gated.kernels import barrier_qp as family
from gated.kernels.barrier_qp import barrier_qp, naive_barrier_qp


@pytest.fixture
def on_gpu_side(monkeypatch):
    assert os.environ.get("TRITON_INTERPRET") == "1", "set TRITON_INTERPRET=1 before Python starts: `make kernels` does"
    monkeypatch.setattr(family.cpu, "forward", family._solve_gpu)
    monkeypatch.setattr(family.cpu, "backward", family._backward_gpu)


def problem(count: int, rows: int, nominal: bool) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    angle = 6.2832 * torch.rand(count, rows, generator=generator)
    length = 0.3 + torch.rand(count, rows, generator=generator)
    given = {
        "a": length[..., None] * torch.stack([angle.cos(), angle.sin()], -1),
        "b": length * (0.15 - torch.rand(count, rows, generator=generator)),
    }
    if nominal:
        return given | {"nominal": torch.randn(count, 2, generator=generator)}
    c = 2 * torch.randn(count, 2, generator=generator)
    return given | {"c": c, "d": 0.5 * (c * c).sum(-1) - 0.5}


def outcome(form, given: dict[str, Tensor], xi: float) -> dict[str, Tensor]:
    leaves = {n: y.detach().clone().requires_grad_() for n, y in given.items()}
    u, value, *rest = form(**leaves, xi=xi, limit=0.8)
    feasible = rest[-1]
    weight = torch.randn(u.shape, generator=torch.Generator().manual_seed(1)).to(u.dtype)
    loss = (u * weight)[feasible].sum() + (value * weight[..., 0])[feasible].sum()
    grads = torch.autograd.grad(loss, list(leaves.values()))
    return {"u": u.detach(), "value": value.detach(), "feasible": feasible, **dict(zip(leaves, grads, strict=True))}


@pytest.mark.parametrize("nominal", [True, False])
@pytest.mark.parametrize(("count", "rows"), [(40, 0), (40, 1), (70, 6), (40, 13)])
def test_equals_the_definition(on_gpu_side, count, rows, nominal):
    """More than a block of problems, and rows that do and do not fill the registers."""
    given = problem(count, rows, nominal)
    got = outcome(barrier_qp, given, 3.0)
    want = outcome(naive_barrier_qp, {n: y.double() for n, y in given.items()}, 3.0)
    assert (got.pop("feasible") == want.pop("feasible")).all()
    assert want["u"].abs().amax() > 0.1
    for name, y in got.items():
        torch.testing.assert_close(y.double(), want[name], rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("power", [-100, -64, -40, 40, 64, 100])
def test_a_row_times_a_power_of_two(on_gpu_side, power):
    """The same bits, gradients too, though the square of the row's length lies outside of the floats' range."""
    given, size = problem(40, 6, True), torch.tensor([1.0, 2.0**power, 1.0, 2.0**power, 1.0, 1.0])
    want = outcome(barrier_qp, given, 3.0)
    got = outcome(barrier_qp, dict(given, a=given["a"] * size[:, None], b=given["b"] * size), 3.0)
    got |= {"a": got["a"] * size[:, None], "b": got["b"] * size}
    assert all(torch.equal(y, want[name]) for name, y in got.items())


@pytest.mark.parametrize("nominal", [True, False])
def test_the_same_rows_are_active_as_on_a_cpu(on_gpu_side, monkeypatch, nominal):
    given = problem(60, 6, nominal)
    got = barrier_qp(**given, limit=0.8)
    monkeypatch.undo()
    want = barrier_qp(**given, limit=0.8)
    assert (got.active == want.active).all()
    assert {0, 1, 2} <= set((want.active >= 0).sum(1).tolist())


def test_rows_that_say_nothing_or_forbid_all(on_gpu_side):
    a = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]]).expand(2, 2, 2).clone().requires_grad_()
    b = torch.tensor([[0.5, -1.0], [0.5, 1.0]], requires_grad=True)
    result = barrier_qp(a, b, limit=1.0)
    assert result.feasible.tolist() == [True, False]
    assert result.active.tolist() == [[0, -1], [-1, -1]]
    da, db = torch.autograd.grad(result.u.sum(), (a, b))
    assert db.tolist() == [[1, 0], [0, 0]]
    assert da.isfinite().all()


def test_standing_still_is_always_allowed(on_gpu_side):
    """Rows at contact, three of them nearly on one line: never infeasible, none missed by more than promised."""
    generator = torch.Generator().manual_seed(0)
    given = problem(300, 5, False)
    size = 10 ** (-9 * torch.rand(300, 5, generator=generator))
    size[torch.rand(300, 5, generator=generator) < 0.3] = 0
    given["b"] = -given["b"].abs() * size
    angle = torch.atan2(given["a"][:, 0, 1], given["a"][:, 0, 0])
    close = angle[:, None] + torch.tensor([0, 1, 1]) * torch.pi + torch.tensor([0.0, 1.0, -1.0]) * size[:, :1]
    given["a"][:150, :3] = torch.stack([close.cos(), close.sin()], -1)[:150]
    got = barrier_qp(**given, limit=1, xi=10.0)
    assert got.feasible.all()
    a, b = given["a"].double(), given["b"].double()
    missed = (b - (a @ got.u.double()[..., None]).squeeze(-1)) / a.norm(dim=-1)
    assert missed.max() < 1.2e-5
    assert got.u.abs().max() < 1.00002
