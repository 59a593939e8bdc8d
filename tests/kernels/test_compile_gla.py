"""How the operators stand in PyTorch's dispatcher. Run without the shape-checking import hook, whose wrappers the
compiler does not trace."""

import pytest
import torch
from torch.nn.functional import logsigmoid

from gated.kernels.gla import chunk_gla, fused_recurrent_gla


def problem(gen, *shapes):
    return [torch.randn(*shape, generator=gen, dtype=torch.float64).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("form", ["chunk", "recurrent"])
@pytest.mark.parametrize("packed", [False, True])
def test_the_operator_is_registered_properly(form, packed):
    """With the layout that attention usually has, heads before time in memory: the results are laid out anew."""
    gen = torch.Generator().manual_seed(11)
    *inputs, state = problem(gen, (1, 2, 70, 4), (1, 2, 70, 4), (1, 2, 70, 3), (2 if packed else 1, 2, 4, 3))
    q, k, v = (y.detach().transpose(1, 2).requires_grad_() for y in inputs)
    g = torch.empty_like(q).copy_(logsigmoid(q.detach().roll(1))).requires_grad_()
    bounds = torch.tensor([0, 30, 70]) if packed else None
    torch.library.opcheck(torch.ops.gated.gla.default, (q, k, v, g, 0.5, state, bounds, form))
    detached = [y.detach() for y in (q, k, v, g)]
    entering = torch.ops.gated.gla(*detached, 0.5, state.detach(), bounds, form)[2]
    torch.library.opcheck(
        torch.ops.gated.gla_backward.default,
        (
            *detached,
            0.5,
            state.detach(),
            bounds,
            entering,
            torch.randn_like(v.detach()),
            state.detach().clone(),
        ),
    )


@pytest.mark.parametrize("form", [chunk_gla, fused_recurrent_gla])
def test_compiles_without_a_break(form):
    gen = torch.Generator().manual_seed(13)
    q, k, v, _ = problem(gen, (1, 80, 1, 4), (1, 80, 1, 4), (1, 80, 1, 3), (1, 1, 4, 3))
    g = logsigmoid(q.detach().roll(1)).requires_grad_()

    def loss(q, k, v, g):
        return form(q, k, v, g)[0].square().sum()

    want = torch.autograd.grad(loss(q, k, v, g), (q, k, v, g))
    got = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(q, k, v, g), (q, k, v, g))
    torch.testing.assert_close(got, want)
