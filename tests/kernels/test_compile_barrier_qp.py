"""How the operators stand in PyTorch's dispatcher. Run without the shape-checking import hook, whose wrappers the
compiler does not trace."""

import pytest
import torch

from gated.kernels.barrier_qp import barrier_qp, inductor


def tensors(count: int = 40, rows: int = 5) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    b = 0.3 - torch.rand(count, rows, generator=generator, dtype=torch.float64)
    return [normal(count, rows, 2), b, normal(count, 2), normal(count), normal(count, 2)]


def test_the_operators_are_registered_properly():
    given = tensors()
    leaves = [y.clone().requires_grad_() for y in given]
    torch.library.opcheck(torch.ops.gated.barrier_qp.default, (*leaves, 3.0, 1.0))
    u, _, active, feasible = torch.ops.gated.barrier_qp(*given, 3.0, 1.0)
    assert 0 < int(feasible.sum()) < len(feasible)
    torch.library.opcheck(torch.ops.gated.barrier_qp_backward.default, (*given, u, active, torch.ones_like(u), 3.0))


@pytest.mark.parametrize("with_wish", [True, False])
def test_compiles_without_a_break(with_wish):
    a, b, c, d, w = (y.requires_grad_() for y in tensors())

    def loss(a: torch.Tensor, zeta: torch.Tensor, c: torch.Tensor, d: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        wish = {"c": c, "d": d} if with_wish else {"nominal": w}
        got = barrier_qp(a, zeta.tanh(), limit=1.0, **wish)
        return (got.u * w).sum() + torch.where(got.feasible, got.value, 0).sum()

    leaves = [a, b, w] + ([c, d] if with_wish else [])
    want = torch.autograd.grad(loss(a, b, c, d, w), leaves)
    got = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(a, b, c, d, w), leaves)
    torch.testing.assert_close(got, want)


def test_fake_tensors():
    """Shapes without data, as the compiler asks for them."""
    with torch._subclasses.FakeTensorMode():
        got = barrier_qp(torch.empty(2, 3, 4, 2), torch.empty(2, 3, 4), limit=1.0)
        assert [tuple(y.shape) for y in got] == [(2, 3, 2), (2, 3), (2, 3, 2), (2, 3)]
        assert [y.dtype for y in got] == [torch.float32, torch.float32, torch.int64, torch.bool]


# In machine code -----------------------------------------------------------------------------------------------------

# Inductor's own call of the C++ compiler does not survive a space in the path of the environment.
COMPILES = " " not in torch.__file__


@pytest.fixture
def traced(monkeypatch):
    """The traced operations as they are, without the seconds of machine code."""
    inductor._compiled.cache_clear()
    monkeypatch.setattr(torch._inductor, "standalone_compile", lambda graph, *_, **__: graph)
    yield
    inductor._compiled.cache_clear()


def outcome(given: list[torch.Tensor], limit: float = 1.0, xi: float = 3.0, **options):
    """What is found, and the gradients of u and of the values."""
    leaves = [y.detach().requires_grad_() for y in given]
    a, b, c, d, w = leaves
    got = barrier_qp(a, b, limit=limit, c=c, d=d, xi=xi, nominal=w, **options)
    loss = got.u.sum() + torch.where(got.feasible, got.value, 0).sum()
    return got, torch.autograd.grad(loss, leaves)


def assert_compiled_is_the_same(given: list[torch.Tensor], exact: float = 1e-10, **options) -> None:
    (got, slopes), (want, old) = (outcome(given, compiled=compiled, **options) for compiled in (True, False))
    assert (got.feasible == want.feasible).all()
    assert (got.active == want.active).all()
    torch.testing.assert_close(got.u, want.u, rtol=0, atol=exact)
    torch.testing.assert_close(got.value, want.value, rtol=exact, atol=exact)
    for a, b in zip(slopes, old, strict=True):
        assert ((a - b).abs() <= 100 * exact * (1 + b.abs().sum())).all()


@pytest.mark.parametrize("rows", [0, 1, 6, inductor.ROWS + 1])
def test_compiled_formulas_solve_the_same_problems(traced, rows):
    """Wishes and nominal controls, a third without a solution or fewer, by one function for all sizes of batches."""
    for count, limit, xi in ((700, 1.0, 3.0), (2, 0.01, 0.0), (300, 3.0, 40.0)):
        a, b, c, d, w = tensors(count, rows)
        assert_compiled_is_the_same([a, b * limit, c, d * limit, w * limit], limit=limit, xi=xi)
    assert inductor._compiled.cache_info().misses == (rows <= inductor.ROWS)


@pytest.mark.parametrize("power", [-110, -64, 0, 64, 120])
def test_compiled_formulas_in_single_precision(traced, power):
    given = [y.float() for y in tensors(300, 5)]
    for y in given[:2]:
        y[:, ::2] *= 2.0**power
    got, want = (barrier_qp(*given[:2], limit=1, nominal=given[-1], compiled=compiled) for compiled in (True, False))
    both = got.feasible & want.feasible
    assert got.u.dtype == torch.float32
    assert (got.feasible == want.feasible).float().mean() > 0.99
    torch.testing.assert_close(got.value[both], want.value[both], rtol=1e-4, atol=1e-4)


def degenerate(case: str, count: int = 400) -> list[torch.Tensor]:
    a, b, c, d, w = tensors(count, 4)
    angle = torch.atan2(a[:, 0, 1], a[:, 0, 0])
    if case == "one point":
        b = (a * (w[:, None] / 5)).sum(-1)
    elif case == "rows twice":
        a[:, 2:], b[:, 2:] = 3 * a[:, :2], 3 * b[:, :2]
    elif case == "no row":
        a[:, ::3], b[:, ::3] = 0, torch.linspace(-1, 0.003, count, dtype=a.dtype)[:, None]
    elif case == "opposite rows":
        turned = angle[:, None] + torch.tensor([0.0, torch.pi, torch.pi + 1e-9], dtype=a.dtype)
        a[:, :3] = torch.stack([turned.cos(), turned.sin()], -1)
        b[:, :3] = torch.tensor([0.2, -0.2, -0.2]) + torch.linspace(-5e-10, 5e-9, count, dtype=a.dtype)[:, None]
    elif case == "at rest":
        b = -b.abs() * 10 ** (-18 * torch.rand(b.shape, generator=torch.Generator().manual_seed(1)).double())
        b[:, ::2] = 0
    return [a, b, c, d, w]


@pytest.mark.parametrize("limit", [1.0, 1e-4, 1e4])
def test_compiled_formulas_leave_what_is_doubtful(traced, limit):
    """Verdicts are those without compilation, and values as near as the tolerance leaves them, in any unit."""
    for case in ("one point", "rows twice", "no row", "opposite rows", "at rest"):
        a, b, c, d, w = degenerate(case)
        given = {"limit": limit, "c": c, "d": d * limit, "nominal": w * limit}
        got, want = (barrier_qp(a, b * limit, **given, compiled=compiled) for compiled in (True, False))
        assert (got.feasible == want.feasible).all(), case
        missed = [(b - (a @ y.u[..., None]).squeeze(-1) / limit).amax(1) for y in (got, want)]
        assert all((y[want.feasible] < 1e-8).all() for y in missed), case
        ok = want.feasible & (missed[0] < 1e-12) & (missed[1] < 1e-12)
        assert ok.any(), case
        values = [y.value[ok] / limit**2 for y in (got, want)]
        torch.testing.assert_close(*values, rtol=1e-7, atol=1e-7, msg=case)


def test_compiled_names_what_is_not_finite(traced):
    a, b, *_ = tensors(12, 3)
    big = torch.full_like(b, -1e308)  # whose sum leaves the range
    assert barrier_qp(a, big, limit=1, compiled=True).feasible.all()
    b[3, 1] = torch.nan
    with pytest.raises(ValueError, match=r"^b must be finite"):
        barrier_qp(a, b, limit=1, compiled=True)


def test_machine_code_at_all_sizes():
    """Two problems, vectors with a rest, and rows whose square no float holds."""
    inductor._compiled.cache_clear()
    if COMPILES:
        for count, power in ((2, 0), (37, 0), (200, 0), (200, 900), (200, -900)):
            a, b, *rest = tensors(count, 1)
            assert_compiled_is_the_same([a * 2.0**power, b * 2.0**power, *rest])
        assert inductor._compiled.cache_info().misses == 1
    else:
        with pytest.warns(RuntimeWarning, match="no effect"):
            assert_compiled_is_the_same(tensors(37, 1))
    inductor._compiled.cache_clear()


def test_without_a_compiler_it_says_so_once_and_gives_the_same(monkeypatch):
    inductor._compiled.cache_clear()

    def broken(*_, **__):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch._inductor, "standalone_compile", broken)
    a, b, *_ = tensors()
    with pytest.warns(RuntimeWarning, match=r"no effect.*no compiler here") as caught:
        got = [barrier_qp(a, b, limit=1, compiled=True) for _ in range(2)]
    assert len(caught) == 1
    for x, y, z in zip(*got, barrier_qp(a, b, limit=1), strict=True):
        assert torch.equal(x, z) and torch.equal(y, z)
    inductor._compiled.cache_clear()


def test_compiled_inside_a_program_and_over_runs(traced):
    given = tensors(12, 3)

    def loss(a, b, c, d, w, compiled=True):
        got = barrier_qp(a, b, limit=1, c=c, d=d, nominal=w, compiled=compiled)
        return (got.u * w).sum()

    want = loss(*given, compiled=False)
    torch.testing.assert_close(torch.compile(loss, fullgraph=True, backend="aot_eager")(*given), want)
    stacked = [torch.stack([y, y]) for y in given]
    torch.testing.assert_close(torch.func.vmap(loss)(*stacked), torch.stack([want, want]))
    torch.library.opcheck(torch.ops.gated.barrier_qp.default, (*given, 3.0, 1.0, True))
