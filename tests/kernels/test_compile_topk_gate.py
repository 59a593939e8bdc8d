"""How the operator stands in PyTorch's dispatcher. Run without the shape-checking import hook, whose wrappers the
compiler does not trace."""

import pytest
import torch

from gated.kernels.topk_gate import topk_gate


@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize(("tokens", "dtype"), [(7, torch.float64), (0, torch.float32), (5, torch.float16)])
def test_the_operator_is_registered_properly(tokens, dtype, renormalise):
    logits = torch.randn(tokens, 4, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    torch.library.opcheck(torch.ops.gated.topk_gate.default, (logits, 2, renormalise))


# Inductor's own call of the C++ compiler does not survive a space in the path of the environment.
BACKENDS = ["aot_eager"] if " " in torch.__file__ else ["aot_eager", "inductor"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_without_a_break(backend):
    logits = torch.randn(12, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()

    def loss(logits):
        weights, experts, position, offsets = topk_gate(logits, 2, renormalise=False)
        return (weights * (experts + position)).sum() + offsets.sum()

    want = torch.autograd.grad(loss(logits), logits)
    got = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend=backend)(logits), logits)
    torch.testing.assert_close(got, want)


def test_the_gradient_stays_on_its_device():
    """Shapes without data are on a device of their own, which may not meet the CPU's tensors."""
    logits = torch.empty(3, 4, device="meta", requires_grad=True)
    compiled = torch.compile(lambda y: topk_gate(y, 2).weights.sum(), fullgraph=True, backend="aot_eager")
    (got,) = torch.autograd.grad(compiled(logits), logits)
    assert got.device == logits.device and got.shape == logits.shape
