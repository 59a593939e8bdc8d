"""How the operators stand in PyTorch's dispatcher. Run without the shape-checking import hook, whose wrappers the
compiler does not trace."""

import pytest
import torch

from gated.kernels.barrier_qp import barrier_qp


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
