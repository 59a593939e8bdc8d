"""How the operators stand in PyTorch's dispatcher. Run without the shape-checking import hook, whose wrappers the
compiler does not trace."""

import pytest
import torch

from gated.kernels.grouped_gemm import grouped_gemm

# PyTorch's compiler looks at gradients of tensors that have none, and hides the warning only from itself.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


def problem(dtype=torch.float64, rows=(3, 0, 4)):
    gen = torch.Generator().manual_seed(0)
    x = torch.randn(sum(rows), 5, generator=gen).to(dtype).requires_grad_()
    weight = torch.randn(len(rows), 6, 5, generator=gen).to(dtype).requires_grad_()
    r = torch.randn(sum(rows), generator=gen).to(dtype).requires_grad_()
    return x, weight, r, torch.tensor([0, *rows]).cumsum(0)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("rows", [(3, 0, 4), (0, 0)])
def test_the_operators_are_registered_properly(dtype, rows, weighted):
    x, weight, r, offsets = problem(dtype, rows)
    product, gradient = torch.ops.gated.grouped_gemm.default, torch.ops.gated.grouped_gemm_weight.default
    torch.library.opcheck(product, (x, weight.transpose(1, 2), offsets, r if weighted else None))
    torch.library.opcheck(gradient, (x, torch.ones(x.shape[0], 2, dtype=dtype, requires_grad=True), offsets))


# Inductor's own call of the C++ compiler does not survive a space in the path of the environment.
BACKENDS = ["aot_eager"] if " " in torch.__file__ else ["aot_eager", "inductor"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_without_a_break(backend):
    x, weight, r, offsets = problem()

    def loss(x, weight, r):
        hidden = grouped_gemm(x, weight.transpose(1, 2), offsets).relu()
        return grouped_gemm(hidden, weight, offsets, row_weight=r).square().sum()

    want = torch.autograd.grad(loss(x, weight, r), (x, weight, r))
    got = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend=backend)(x, weight, r), (x, weight, r))
    torch.testing.assert_close(got, want)


def test_group_sizes_are_no_part_of_the_graph():
    """Other offsets, the same number of rows: nothing is compiled again."""
    x, weight, _, _ = problem()
    count = []

    def backend(graph, _):
        count.append(graph)
        return graph

    compiled = torch.compile(lambda x, w, o: grouped_gemm(x, w.transpose(1, 2), o), fullgraph=True, backend=backend)
    for offsets in ([0, 3, 3, 7], [0, 0, 7, 7], [0, 1, 2, 7]):
        offsets = torch.tensor(offsets)
        torch.testing.assert_close(compiled(x, weight, offsets), grouped_gemm(x, weight.transpose(1, 2), offsets))
    assert len(count) == 1
