"""How the operators stand in PyTorch's dispatcher. Run without the shape-checking import hook, whose wrappers the
compiler does not trace."""

import pytest
import torch

from gated.kernels.langevin_scan import langevin_scan


def tensors(potential: str, decay_steps: int):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    batch, time, dim = 2, 9, 4
    states = [normal(batch, dim), normal(batch, dim), normal(time, batch, dim)]
    factors = [torch.rand(decay_steps, batch, dim, generator=generator, dtype=torch.float64) for _ in range(2)]
    matrix = normal(1, dim, dim)
    coupling, quartic = (torch.rand(batch, dim, generator=generator, dtype=torch.float64) for _ in range(2))
    coupling[:, -1] = 0
    return {
        "modes": [*states, *factors, None, normal(batch, dim), None, None],
        "matrix": [*states, *factors, normal(time, batch, dim), matrix + matrix.mT, None, None],
        "quartic": [*states, *factors, normal(time, batch, dim), normal(batch, dim), coupling, quartic],
    }[potential]


@pytest.mark.parametrize(("potential", "decay_steps"), [("matrix", 9), ("quartic", 1)])
def test_the_operators_are_registered_properly(potential, decay_steps):
    given = tensors(potential, decay_steps)
    leaves = [None if y is None else y.clone().requires_grad_() for y in given]
    torch.library.opcheck(torch.ops.gated.langevin_scan.default, (*leaves, 0.1, "released"))
    z, v = torch.ops.gated.langevin_scan(*given, 0.1, "released")
    z0, v0, noise, sigma, decay, _, *potential = given
    for wanted in ([True] * 5 + [y is not None for y in potential[1:]], [False] * 7):
        inputs = (z0, v0, z, v, noise, sigma, decay, *potential, 0.1, "released", v.clone(), z.clone(), wanted)
        torch.library.opcheck(torch.ops.gated.langevin_scan_backward.default, inputs)


@pytest.mark.parametrize("scheme", ["released", "baoab"])
def test_compiles_without_a_break(scheme):
    generator = torch.Generator().manual_seed(1)
    z0, noise, raw = (torch.randn(*shape, generator=generator) for shape in ((2, 4), (2, 30, 4), (4,)))

    def loss(z0: torch.Tensor, raw: torch.Tensor) -> torch.Tensor:
        stiffness = torch.nn.functional.softplus(raw)
        z, v = langevin_scan(z0, -z0, noise, stiffness=stiffness, step=0.1, decay=torch.sigmoid(raw), scheme=scheme)
        return (z * v).sum()

    leaves = z0.requires_grad_(), raw.requires_grad_()
    want = torch.autograd.grad(loss(*leaves), leaves)
    got = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(*leaves), leaves)
    torch.testing.assert_close(got, want)


def test_fake_tensors():
    """Shapes and layouts without data, as the compiler asks for them."""
    with torch._subclasses.FakeTensorMode():
        state, noise = torch.empty(2, 4), torch.empty(2, 9, 4)
        for y in langevin_scan(state, state, noise, stiffness=torch.empty(4), step=0.1, decay=0.5):
            assert y.shape == (2, 9, 4)
            assert y.stride() == (4, 8, 1)
