"""The batched quadratic programs against solvers of single problems, optimality, limits, and the definition."""

import math

import numpy as np
import pytest
import qpsolvers
import torch
from hypothesis import given
from hypothesis import strategies as st
from proxsuite.torch.qplayer import QPFunction
from scipy.optimize import minimize
from torch import Tensor

from gated.kernels.barrier_qp import barrier_qp, cpu, naive_barrier_qp

XI = 10.0


def problem(count: int, rows: int, seed: int = 0, *, room: float = 0.15, wish=True, nominal=False) -> dict[str, Tensor]:
    """Rows from all sides, of any length; a larger `room` shuts more of the plane."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    angle, length = 2 * math.pi * uniform(count, rows), 0.2 + 2 * uniform(count, rows)
    given = {"a": length[..., None] * torch.stack([angle.cos(), angle.sin()], -1)}
    given["b"] = length * (room - uniform(count, rows))
    if wish:
        given["c"] = 4 * uniform(count, 2) - 2
        given["d"] = 0.5 * (given["c"] ** 2).sum(-1) + uniform(count) - 0.7
    if nominal:
        given["nominal"] = 3 * uniform(count, 2) - 1.5
    return given


KINDS = {
    "wish": {"wish": True},
    "nominal": {"wish": False, "nominal": True},
    "both": {"wish": True, "nominal": True},
}


def complete(given: dict[str, Tensor]) -> list[Tensor]:
    """a, b with the limits as rows, c, d, w; limit 1."""
    a, b = given["a"], given["b"]
    box = a.new_tensor([[1, 0], [-1, 0], [0, 1], [0, -1]]).expand(len(a), 4, 2)
    zero = a.new_zeros(len(a), 2)
    rest = given.get("c", zero), given.get("d", zero[:, 0]), given.get("nominal", zero)
    return [torch.cat([a, box], 1), torch.cat([b, -b.new_ones(len(b), 4)], 1), *rest]


# Other solvers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("solver", "options"), [("quadprog", {}), ("daqp", {"primal_tol": 1e-12})])
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_verdicts_of_a_solver(solver, options, kind):
    """The program in three variables, the third the slack of the wish; a fifth of the problems have no solution."""
    given = problem(300, 6, room=0.25, **KINDS[kind])
    got = barrier_qp(**given, limit=1, xi=XI)
    verdicts, weight = [], np.diag([2.0, 2.0, 2 * XI])
    for i, (a, b, c, d, w) in enumerate(zip(*complete(given), strict=True)):
        rows = torch.cat([torch.cat([c, -c.new_ones(1)])[None], torch.cat([-a, a.new_zeros(len(a), 1)], 1)]).numpy()
        far = torch.cat([-d[None], -b]).numpy()
        q = np.append(-2 * w.numpy(), 0.0)
        found = qpsolvers.solve_qp(weight, q, rows, far, solver=solver, **options)
        verdicts.append(found is not None)
        if found is not None:
            np.testing.assert_allclose(got.u[i], found[:2], atol=1e-8)
            value = ((found[:2] - w.numpy()) ** 2).sum() + XI * found[2] ** 2
            np.testing.assert_allclose(got.value[i], value, rtol=1e-10, atol=1e-10)
    assert got.feasible.tolist() == verdicts
    assert 30 < verdicts.count(False) < 150


def test_sequential_programming_of_scipy():
    given = problem(50, 6, 5, wish=True, nominal=True)
    got = barrier_qp(**given, limit=1, xi=XI)
    problems = [y.numpy() for y in complete(given)]
    for i in got.feasible.nonzero()[:, 0].tolist():
        a, b, c, d, w = (y[i] for y in problems)

        def cost(u, c=c, d=d, w=w):
            return ((u - w) ** 2).sum() + XI * max(0.0, c @ u + d) ** 2

        rows = {"type": "ineq", "fun": lambda u, a=a, b=b: a @ u - b, "jac": lambda u, a=a: a}
        best = minimize(cost, got.u[i].numpy() * 0.9, constraints=[rows], method="SLSQP", options={"ftol": 1e-14})
        if best.success:
            assert abs(best.fun - float(got.value[i])) < 1e-6 * max(1.0, best.fun)


# Optimality ---------------------------------------------------------------------------------------------------------


def multipliers(given: dict[str, Tensor], got, xi: float = XI) -> tuple[Tensor, Tensor]:
    """Of the active rows [problems, 2], 0 where there is none, and what they leave of the objective's gradient."""
    a, b, c, d, w = complete(given)
    u = got.u
    gradient = 2 * (u - w) + 2 * xi * ((c * u).sum(-1) + d).clamp_min(0)[:, None] * c
    there = got.active >= 0
    rows = a.gather(1, got.active.clamp_min(0)[..., None].expand(-1, 2, 2)) * there[..., None]
    left = (rows * u[:, None]).sum(-1) - b.gather(1, got.active.clamp_min(0)) * there
    assert left[got.feasible].abs().max() < 1e-12  # active rows hold with equality
    force = torch.linalg.pinv(rows.mT) @ gradient[..., None]
    return force.squeeze(-1), gradient - (rows.mT @ force).squeeze(-1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [0, 1, 2, 5, 12])
def test_kuhn_tucker_conditions(kind, rows):
    given = problem(4500, rows, 1, **KINDS[kind])  # more than one chunk of the CPU path
    got = barrier_qp(**given, limit=1, xi=XI)
    force, rest = multipliers(given, got)
    ok = got.feasible
    a, b, *_ = complete(given)
    assert ((a @ got.u[..., None]).squeeze(-1) - b)[ok].min() > -1e-12
    assert rest[ok].abs().max() < 1e-10
    assert force[ok].min() > -1e-10
    counts = (got.active >= 0).sum(1)[ok].bincount(minlength=3)
    assert (counts > 0).all() or rows < 2
    both = got.active[(got.active >= 0).sum(1) == 2]
    assert (both[:, 0] < both[:, 1]).all()
    assert (got.active[(got.active[:, 0] < 0)] == -1).all()


def test_the_derivative_of_the_value_is_the_multiplier():
    given = problem(300, 6, 2)
    given["b"].requires_grad_()
    got = barrier_qp(**given, limit=1, xi=XI)
    (slope,) = torch.autograd.grad(got.value[got.feasible].sum(), given["b"])
    given["b"] = given["b"].detach()
    force, _ = multipliers(given, got)
    inside = (got.active >= 0) & (got.active < 6)
    want = torch.zeros_like(slope).scatter_add(1, got.active.clamp(0, 5), force.detach() * inside)
    torch.testing.assert_close(slope[got.feasible], want[got.feasible], rtol=1e-9, atol=1e-9)


# The definition, and gradients --------------------------------------------------------------------------------------


def outcome(form, given: dict[str, Tensor], weight: Tensor, **options):
    leaves = {name: y.detach().clone().requires_grad_() for name, y in given.items()}
    u, value, *rest = form(**leaves, **options)
    ok = rest[-1]
    loss = (u * weight)[ok].sum() + (value * weight[:, 0])[ok].sum()
    grads = torch.autograd.grad(loss, list(leaves.values()))
    return u.detach(), value.detach(), ok, dict(zip(leaves, grads, strict=True))


@given(
    seed=st.integers(0, 999),
    rows=st.integers(0, 9),
    kind=st.sampled_from(list(KINDS)),
    xi=st.sampled_from([0.0, 0.3, 40.0]),
    limit=st.sampled_from([1e-3, 0.5, 3.0]),
)
def test_equals_the_definition(seed, rows, kind, xi, limit):
    given = problem(30, rows, seed, **KINDS[kind])
    weight = torch.randn(30, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    u, value, ok, grads = outcome(barrier_qp, given, weight, xi=xi, limit=limit)
    u_naive, value_naive, ok_naive, grads_naive = outcome(naive_barrier_qp, given, weight, xi=xi, limit=limit)
    assert (ok == ok_naive).all()
    torch.testing.assert_close(u, u_naive, rtol=0, atol=1e-9)
    torch.testing.assert_close(value, value_naive, rtol=1e-10, atol=1e-10)
    for name, y in grads.items():
        scale = 1 + grads_naive[name].abs().sum()
        assert ((y - grads_naive[name]).abs() < 1e-9 * scale).all(), name


def away_from_kinks(given: dict[str, Tensor], got) -> Tensor:
    """Which problems are feasible with no multiplier, no other row and no wish within 1e-2 of 0."""
    a, b, c, d, _ = complete(given)
    left = ((a @ got.u[..., None]).squeeze(-1) - b) / a.norm(dim=-1)
    index = torch.arange(a.shape[1])
    active = (index == got.active[:, :1]) | (index == got.active[:, 1:])
    force, _ = multipliers(given, got)
    clear = got.feasible & (left.masked_fill(active, 9) > 1e-2).all(1)
    clear &= ((force > 1e-2) | (got.active < 0)).all(1)
    return clear & (((c * got.u).sum(-1) + d).abs() > 1e-2) if "c" in given else clear


@pytest.mark.parametrize("kind", KINDS)
def test_finite_differences(kind):
    given = problem(200, 4, 3, **KINDS[kind])
    got = barrier_qp(**given, limit=1, xi=XI)
    clear = away_from_kinks(given, got)
    counts = (got.active >= 0).sum(1)
    some = torch.cat([(clear & (counts == n)).nonzero()[:3, 0] for n in (0, 1, 2)])
    assert len(some) == 9
    given = {name: y[some].requires_grad_() for name, y in given.items()}
    names = list(given)

    def solve(*tensors: Tensor):
        return barrier_qp(**dict(zip(names, tensors, strict=True)), limit=1, xi=XI)[:2]

    assert torch.autograd.gradcheck(solve, tuple(given.values()), eps=1e-7, atol=1e-4, rtol=1e-5)


def test_a_layer_for_batches():
    """ProxQP's, in three variables, away from kinks. Its solutions are exact to 1e-5, its gradients are rough.

    They are regularised: half of them are within two hundredths, some are off by half their size, whatever its
    tolerances. `test_finite_differences` is the strict one.
    """
    given = problem(120, 6, 16)
    clear = away_from_kinks(given, barrier_qp(**given, limit=1, xi=XI))
    given = {name: y[clear].requires_grad_() for name, y in given.items()}
    got = barrier_qp(**given, limit=1, xi=XI)
    a, b, c, d, _ = complete(given)
    n, m = b.shape
    rows = torch.cat([a, a.new_zeros(n, m, 1)], 2), torch.cat([-c, c.new_ones(n, 1)], 1)[:, None]
    least, weight = torch.cat([b, d[:, None]], 1), torch.diag(b.new_tensor([2.0, 2.0, 2 * XI])).expand(n, 3, 3)
    none = b.new_zeros(n, 3), b.new_zeros(n, 0, 3), b.new_zeros(n, 0)
    x, _, _ = QPFunction()(weight, *none, torch.cat(rows, 1), least, torch.full_like(least, 1e20))
    torch.testing.assert_close(x[:, :2], got.u, rtol=0, atol=1e-5)
    torch.testing.assert_close((x[:, :2] ** 2).sum(1) + XI * x[:, 2] ** 2, got.value, rtol=1e-5, atol=1e-5)
    slopes = (torch.autograd.grad(y.sum(), list(given.values()), retain_graph=True) for y in (x[:, :2], got.u))
    for name, near, y in zip(given, *slopes, strict=True):
        off = (near - y).reshape(n, -1).norm(dim=1) / (1 + y.reshape(n, -1).norm(dim=1))
        assert n > 80
        assert off.median() < 0.02, name


@pytest.mark.parametrize("kappa", [1.0, 0.5])
@pytest.mark.parametrize("eta", [1, 3])
def test_closed_form_gradient_of_a_barrier(kappa, eta):
    """One barrier b = -kappa zeta h^eta: du/dzeta = -kappa h^eta H^-1 a / (a^T H^-1 a), with H = 1 + xi c c^T."""
    zeta, h = torch.tensor(1.2, dtype=torch.float64, requires_grad=True), 0.4
    a, c = torch.tensor([0.8, 0.3], dtype=torch.float64), torch.tensor([1.0, -0.4], dtype=torch.float64)
    b = -kappa * zeta * h**eta
    got = barrier_qp(a[None, None], b[None, None], limit=5.0, c=c[None], d=torch.full((1,), 3.0).double(), xi=XI)
    assert got.active.tolist() == [[0, -1]]
    slope = [torch.autograd.grad(got.u[0, i], zeta, retain_graph=True)[0] for i in range(2)]
    to_line = torch.linalg.solve(torch.eye(2, dtype=torch.float64) + XI * torch.outer(c, c), a)
    torch.testing.assert_close(torch.stack(slope), -kappa * h**eta * to_line / (a @ to_line))


def test_two_active_rows_leave_no_choice():
    """u = A^-1 b, whatever the wish."""
    a = torch.tensor([[[-1.0, 0.2], [0.3, -1.0]]], dtype=torch.float64)
    b = torch.tensor([[0.1, 0.2]], dtype=torch.float64, requires_grad=True)
    c = torch.tensor([[-1.0, -1.0]], dtype=torch.float64, requires_grad=True)
    got = barrier_qp(a, b, limit=1, c=c, d=torch.ones(1, dtype=torch.float64), xi=XI)
    assert got.active.tolist() == [[0, 1]]
    torch.testing.assert_close(got.u[0], torch.linalg.solve(a[0], b[0]))
    slope = torch.stack([torch.autograd.grad(got.u[0, i], b, retain_graph=True)[0][0] for i in range(2)])
    torch.testing.assert_close(slope, torch.linalg.inv(a[0]))
    assert (torch.autograd.grad(got.u.sum(), c)[0] == 0).all()


# Limits -------------------------------------------------------------------------------------------------------------


def test_no_rows_and_a_wish_along_an_axis():
    """The box clips -xi d c / (1 + xi c^2)."""
    d = torch.linspace(-4, 9, 40, dtype=torch.float64)
    c = torch.tensor([1.5, 0.0], dtype=torch.float64).expand(40, 2)
    got = barrier_qp(d.new_empty(40, 0, 2), d.new_empty(40, 0), limit=0.7, c=c, d=d, xi=XI)
    want = (-XI * 1.5 * d.clamp_min(0) / (1 + XI * 1.5**2)).clamp(-0.7, 0.7)
    torch.testing.assert_close(got.u, torch.stack([want, torch.zeros_like(want)], 1))
    assert set(got.active[:, 0].tolist()) == {-1, 0}


def test_a_wish_that_costs_nothing():
    """xi -> 0: the shortest u that the rows allow, 0 where that is one."""
    given = problem(200, 4, 4)
    none = barrier_qp(given["a"], given["b"], limit=1)
    little, zero = (barrier_qp(**given, limit=1, xi=xi) for xi in (1e-12, 0.0))
    torch.testing.assert_close(zero.u, none.u, rtol=0, atol=0)
    torch.testing.assert_close(little.u, none.u, rtol=0, atol=1e-8)
    assert (none.u[(given["b"] <= 0).all(1)] == 0).all()


def test_a_speed_limit():
    """Straight towards an obstacle at the distance r: as fast as kappa zeta (r^2 - D^2) / (2 r), the speed limit."""
    r, reach, zeta, kappa = torch.linspace(0.5, 3, 26, dtype=torch.float64), 0.4, 0.7, 0.5
    a = torch.stack([-2 * r, torch.zeros_like(r)], 1)[:, None]  # the obstacle lies at (r, 0)
    b = (-kappa * zeta * (r**2 - reach**2))[:, None]
    got = barrier_qp(a, b, limit=1, nominal=r.new_tensor([1.0, 0.0]).expand(26, 2))
    allowed = kappa * zeta * (r**2 - reach**2) / (2 * r)
    torch.testing.assert_close(got.u[:, 0], allowed.clamp_max(1.0))
    assert (got.u[:, 1].abs() < 1e-15).all()


# What changes nothing -----------------------------------------------------------------------------------------------


def same(got, want, tolerance: float = 1e-12) -> None:
    assert (got.feasible == want.feasible).all()
    torch.testing.assert_close(got.u, want.u, rtol=0, atol=tolerance)
    torch.testing.assert_close(got.value, want.value, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_fill_up(kind):
    """a = 0, b = -1 changes neither the solution nor the gradients, and gets a gradient of 0."""
    given = problem(300, 5, 6, **KINDS[kind])
    more = dict(given)
    more["a"] = torch.cat([given["a"][:, :2], torch.zeros(300, 3, 2).double(), given["a"][:, 2:]], 1)
    more["b"] = torch.cat([given["b"][:, :2], -torch.ones(300, 3).double(), given["b"][:, 2:]], 1)
    same(barrier_qp(**more, limit=1, xi=XI), barrier_qp(**given, limit=1, xi=XI), 0.0)
    weight = torch.randn(300, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    *_, grads = outcome(barrier_qp, more, weight, limit=1, xi=XI)
    *_, want = outcome(barrier_qp, given, weight, limit=1, xi=XI)
    for name, y in grads.items():
        if name in ("a", "b"):
            assert (y[:, 2:5] == 0).all()
            y = torch.cat([y[:, :2], y[:, 5:]], 1)
        torch.testing.assert_close(y, want[name], rtol=0, atol=0)


def test_a_row_of_zeros_that_cannot_hold():
    given = problem(20, 3, room=-0.5)
    given["a"][:, 1], given["b"][:, 1] = 0.0, 1e-9
    assert not barrier_qp(**given, limit=1).feasible.any()
    given["b"][:, 1] = 0.0
    assert barrier_qp(**given, limit=1).feasible.all()


@pytest.mark.parametrize("kind", KINDS)
def test_order_and_length_of_rows(kind):
    given = problem(300, 6, 7, **KINDS[kind])
    got = barrier_qp(**given, limit=1, xi=XI)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    other = dict(given, a=given["a"][:, order], b=given["b"][:, order])
    moved = barrier_qp(**other, limit=1, xi=XI)
    same(moved, got)
    names = torch.cat([order, torch.arange(6, 10), torch.tensor([-1])])
    assert (names[moved.active].sort(1).values == got.active.sort(1).values).all()
    size = torch.rand(300, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 100 + 1e-3
    same(barrier_qp(**dict(given, a=given["a"] * size[..., None], b=given["b"] * size), limit=1, xi=XI), got)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 100), (torch.float64, 900)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_times_a_power_of_two(kind, dtype, most):
    """The same bits, gradients too, however far squares of the row's length lie outside of the floats' range."""
    given = {name: y.to(dtype) for name, y in problem(300, 6, 17, **KINDS[kind]).items()}
    weight = torch.randn(300, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    want = outcome(barrier_qp, given, weight, limit=1, xi=XI)
    assert 0.3 < want[2].float().mean() < 1
    for power in torch.linspace(-most, most, 9).round().tolist():
        size = torch.ones(300, 6, dtype=dtype)
        size[:, ::2] = 2.0**power
        other = dict(given, a=given["a"] * size[..., None], b=given["b"] * size)
        *got, grads = outcome(barrier_qp, other, weight, limit=1, xi=XI)
        assert all(torch.equal(y, old) for y, old in zip(got, want[:3], strict=True))
        grads |= {"a": grads["a"] * size[..., None], "b": grads["b"] * size}
        assert all(torch.equal(y, want[3][name]) for name, y in grads.items())


@pytest.mark.parametrize("form", [barrier_qp, naive_barrier_qp])
@pytest.mark.parametrize("size", [1e-38, 1e-19, 1e-16, 1e10, 1e19, 1e25, 3e38])
def test_rows_whose_square_no_float_holds(form, size):
    """size u_x >= size / 2, and what no u fulfils."""
    a = torch.tensor([[[size, 0.0]]] * 2, requires_grad=True)
    b = torch.tensor([[0.5], [0.9]])
    u, _, *_, feasible = form(a, b * a[..., 0].detach(), limit=0.8, nominal=torch.tensor([[0.0, 0.5]] * 2))
    assert feasible.tolist() == [True, False]
    torch.testing.assert_close(u[0].detach(), torch.tensor([0.5, 0.5]))
    slope = torch.autograd.grad(u[0, 0], a)[0] * a.detach()  # u_x = b / a_x, which a_y does not move
    if size > 1e-38:
        torch.testing.assert_close(slope[0, 0], torch.tensor([-0.5, 0.0]))


def test_a_quarter_turn_a_mirror_and_a_change_of_unit():
    given = problem(300, 6, 8, nominal=True)
    got = barrier_qp(**given, limit=1, xi=XI)
    for turn in ([[0.0, -1.0], [1.0, 0.0]], [[-1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]):
        to = torch.tensor(turn, dtype=torch.float64)
        turned = barrier_qp(
            given["a"] @ to, given["b"], limit=1, c=given["c"] @ to, d=given["d"], nominal=given["nominal"] @ to, xi=XI
        )
        same(turned, got._replace(u=got.u @ to))
    unit = 1e-4
    small = {name: y * (unit if name in ("b", "d", "nominal") else 1) for name, y in given.items()}
    scaled = barrier_qp(**small, limit=unit, xi=XI)
    same(scaled, got._replace(u=got.u * unit, value=got.value * unit**2))


def test_the_same_row_twice_and_rows_against_each_other():
    given = problem(300, 4, 9)
    got = barrier_qp(**given, limit=1, xi=XI)
    twice = {name: torch.cat([y, y * (1 + 1e-16), 3 * y], 1) if name in "ab" else y for name, y in given.items()}
    weight = torch.ones(300, 2, dtype=torch.float64)
    u, _, ok, grads = outcome(barrier_qp, twice, weight, limit=1, xi=XI)
    assert (ok == got.feasible).all()
    torch.testing.assert_close(u, got.u, rtol=0, atol=1e-12)
    assert all(y.isfinite().all() for y in grads.values())
    a = torch.tensor([[0.6, 0.8], [-0.6, -0.8]], dtype=torch.float64).expand(3, 2, 2).clone().requires_grad_()
    b = torch.tensor([[0.2, -0.2], [0.2, -0.3], [0.2, -0.1]], dtype=torch.float64)  # a line, a strip, nothing
    wish = {"c": torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(3, 2), "d": torch.ones(3, dtype=torch.float64)}
    result = barrier_qp(a, b, limit=1, **wish, xi=XI)
    assert result.feasible.tolist() == [True, True, False]
    assert (result.u[:2].detach() @ a[0, 0].detach() - 0.2).abs().max() < 1e-9
    assert torch.autograd.grad(result.u.sum(), a)[0].isfinite().all()


def test_parallel_rows_that_miss_each_other_by_less_than_the_tolerance():
    """They hold u like one row, and gradients stay finite."""
    a = torch.tensor([[0.6, 0.8], [-0.6, -0.8]], dtype=torch.float64).expand(20, 2, 2).clone().requires_grad_()
    b = torch.tensor([0.2, -0.2], dtype=torch.float64) + torch.linspace(0, 5e-10, 20, dtype=torch.float64)[:, None]
    turn = torch.linspace(0, 6, 20, dtype=torch.float64)
    got = barrier_qp(a, b, limit=1, nominal=torch.stack([turn.cos(), turn.sin()], 1) * 3)
    assert got.feasible.all()
    assert torch.autograd.grad(got.u.sum(), a)[0].abs().max() < 10


def test_a_single_point():
    """Three rows through one point, which rounding may move apart: still feasible, and u is that point."""
    g = torch.Generator().manual_seed(0)
    point, turn = torch.rand(2000, 1, 2, generator=g).double() - 0.5, torch.rand(2000, 1, generator=g).double()
    angle = turn + torch.tensor([0.0, 2.0, 4.5], dtype=torch.float64)
    a = torch.stack([angle.cos(), angle.sin()], -1)
    got = barrier_qp(a, (a * point).sum(-1), limit=1, nominal=torch.randn(2000, 2, generator=g).double())
    assert got.feasible.all()
    torch.testing.assert_close(got.u, point[:, 0], rtol=0, atol=2e-9)
    assert not barrier_qp(a, (a * point).sum(-1) + 1e-8, limit=1).feasible.any()


def test_a_filled_up_row_before_a_corner_at_rest():
    """u = 0, held by two rows, is not put down to a row a = 0, on whose line u = 0 costs the same.

    The third row is broken most by w but does not hold u, so that all lines are taken.
    """
    a = torch.tensor([[[0.0, 0.0], [-1.0, 0.0], [0.0, -1.0], [-1.0, -1.0]]], dtype=torch.float64)
    b = torch.tensor([[-1.0, 0.0, 0.0, -0.1]], dtype=torch.float64)
    got = barrier_qp(a, b, limit=1, nominal=torch.tensor([[3.0, 3.0]], dtype=torch.float64))
    assert got.active.tolist() == [[1, 2]]
    assert got.u.abs().max() < 1e-15


# Verdicts -----------------------------------------------------------------------------------------------------------


def test_where_nothing_fulfils_the_rows():
    given = {name: y.requires_grad_() for name, y in problem(200, 6, 10, room=0.5).items()}
    got = barrier_qp(**given, limit=1, xi=XI)
    no = ~got.feasible
    assert 50 < int(no.sum()) < 190
    assert (got.u[no] == 0).all()
    assert (got.value[no] == math.inf).all()
    assert (got.active[no] == -1).all()
    for y in torch.autograd.grad(got.u.sum() + got.value[got.feasible].sum(), list(given.values())):
        assert y.isfinite().all()
        assert (y[no] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_standing_still_is_always_allowed(dtype):
    """b <= 0, many rows at contact (b = 0 or nearly so): never infeasible, and no row missed by more than promised."""
    generator = torch.Generator().manual_seed(0)
    given = problem(6000, 8, 11)
    size = 10 ** (-18 * torch.rand(6000, 8, generator=generator, dtype=torch.float64))
    size[torch.rand(6000, 8, generator=generator) < 0.3] = 0
    given["b"] = -given["b"].abs() * size
    angle = torch.atan2(given["a"][:, 0, 1], given["a"][:, 0, 0])
    close = angle[:, None] + torch.tensor([0, 1, 1]) * math.pi + torch.tensor([0.0, 1.0, -1.0]) * size[:, :1]
    given["a"][:2000, :3] = torch.stack([close.cos(), close.sin()], -1)[:2000]  # three rows on nearly the same line
    given = {name: y.to(dtype) for name, y in given.items()}
    got = barrier_qp(**given, limit=1, xi=XI)
    assert got.feasible.all()
    a, b, *_ = complete({name: y.double() for name, y in given.items()})
    missed = (b - (a @ got.u.double()[..., None]).squeeze(-1)) / a.norm(dim=-1)
    assert missed.max() < (1.2e-5 if dtype == torch.float32 else 1.2e-9)


def test_in_parts(monkeypatch):
    """Chunks of any size, and a few problems at a time where all lines are taken, give the same numbers."""
    given = problem(300, 6, 15, room=0.3)
    want = barrier_qp(**given, limit=1, xi=XI)
    monkeypatch.setattr(cpu, "CHUNK", 70)
    monkeypatch.setattr(cpu, "TABLE", 500)
    for y, whole in zip(barrier_qp(**given, limit=1, xi=XI), want, strict=True):
        assert (y == whole).all()


def test_single_precision():
    given = problem(2000, 6, 12)
    got = barrier_qp(**{name: y.float() for name, y in given.items()}, limit=1, xi=XI)
    want = barrier_qp(**given, limit=1, xi=XI)
    assert got.u.dtype == got.value.dtype == torch.float32
    sure = got.feasible == want.feasible
    assert sure.float().mean() > 0.998
    a, b, *_ = complete(given)
    missed = (b - (a @ got.u.double()[..., None]).squeeze(-1)) / a.norm(dim=-1)
    assert missed[got.feasible].max() < 1.2e-5
    both = got.feasible & want.feasible
    error = (got.value.double() - want.value)[both].abs() / want.value[both].clamp_min(1)
    assert error.max() < 1e-4


# Shapes, types, transformations -------------------------------------------------------------------------------------


def test_leading_axes():
    given = problem(24, 3, 13, nominal=True)
    flat = barrier_qp(**given, limit=1, xi=XI)
    for lead in ((4, 6), (2, 3, 4), (24, 1)):
        shaped = {name: y.view(lead + y.shape[1:]) for name, y in given.items()}
        got = barrier_qp(**shaped, limit=1, xi=XI)
        for y, want in zip(got, flat, strict=True):
            assert y.shape == lead + want.shape[1:]
            assert (y.reshape(want.shape) == want).all()
    one = barrier_qp(**{name: y[0] for name, y in given.items()}, limit=1, xi=XI)
    assert one.value.shape == ()
    assert (one.u == flat.u[0]).all()


@pytest.mark.parametrize("shape", [(0, 3), (0, 0), (5, 0)])
def test_empty(shape):
    a, b = torch.zeros(*shape, 2, requires_grad=True), torch.zeros(shape)
    got = barrier_qp(a, b, limit=1)
    assert got.u.shape == (shape[0], 2)
    assert got.feasible.all()
    assert torch.autograd.grad(got.u.sum(), a)[0].shape == a.shape


def test_types():
    given = problem(5, 3)
    mixed = {name: y.float() if name == "a" else y for name, y in given.items()}
    assert barrier_qp(**mixed, limit=1).u.dtype == torch.float32
    half = {name: y.bfloat16() for name, y in given.items()}
    with torch.autocast("cpu"):
        assert barrier_qp(**half, limit=1).u.dtype == torch.float32
    got = barrier_qp(**given, limit=1)
    assert (got.active.dtype, got.feasible.dtype) == (torch.int64, torch.bool)


def test_vmap_over_runs():
    """Autograd outside of vmap, as for an ensemble; what has no axis of runs is the same for all."""
    given = problem(12, 4, 14, nominal=True)
    runs = {name: y.view(3, 4, *y.shape[1:]).clone().requires_grad_() for name, y in given.items()}
    runs["d"] = given["d"][:4].clone().requires_grad_()
    names = list(runs)

    def solve(*tensors: Tensor):
        return tuple(barrier_qp(**dict(zip(names, tensors, strict=True)), limit=1, xi=XI))

    got = torch.func.vmap(solve, in_dims=tuple(None if n == "d" else 0 for n in names))(*runs.values())
    each = [solve(*(y if n == "d" else y[i] for n, y in runs.items())) for i in range(3)]
    for y, want in zip(got, zip(*each, strict=True), strict=True):
        assert (y == torch.stack(want)).all()
    slopes = (torch.autograd.grad(u.sum(), list(runs.values())) for u in (got[0], torch.stack([e[0] for e in each])))
    for y, want in zip(*slopes, strict=True):
        torch.testing.assert_close(y, want)


def test_no_second_derivative():
    given = problem(5, 3)
    given["b"].requires_grad_()
    (slope,) = torch.autograd.grad(barrier_qp(**given, limit=1).u.square().sum(), given["b"], create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(slope.sum(), given["b"])


def test_the_inputs_stay_as_they_are():
    given = problem(40, 5, nominal=True)
    before = {name: y.clone() for name, y in given.items()}
    barrier_qp(**given, limit=1)
    assert all((y == before[name]).all() for name, y in given.items())


def test_rows_that_are_parallel_to_rounding_hold_like_one():
    """Where both of two rows that turn by 1e-10 are named, the solution slides along them: no slope is huge."""
    gen = torch.Generator().manual_seed(0)
    angle, *place = torch.rand(3, 20_000, generator=gen).double()
    angle = 2 * math.pi * angle
    rows = torch.stack([torch.stack([(angle + e).cos(), (angle + e).sin()], -1) for e in (0.0, 1e-10)], 1)
    rows[::2, 1] *= -1  # beside each other, or from both sides
    nominal = torch.randn(20_000, 2, generator=gen).double().requires_grad_()
    bound = (rows * 0.4 * torch.stack(place, -1)[:, None]).sum(-1)
    answer = barrier_qp(rows.requires_grad_(), bound, limit=1.0, nominal=nominal)
    both = ((answer.active >= 0) & (answer.active < 2)).all(-1)
    assert both.sum() > 20
    slope = torch.randn(20_000, 2, generator=gen).double()
    to_rows, to_nominal = torch.autograd.grad((answer.u * slope).sum(), (rows, nominal))
    along = rows.detach()[:, 0].flip(-1) * torch.tensor([-1.0, 1.0]).double()
    want = (slope * along).sum(-1, keepdim=True) * along
    torch.testing.assert_close(to_nominal[both], want[both], rtol=1e-6, atol=1e-6)
    assert to_rows[both].abs().max() < 100
