"""gated.ninformer under torch.compile and torch.export. Run without the shape-checking import hook, whose wrappers the
compiler does not trace."""

import pytest
import torch

from gated.ninformer import Sizes, build

SIZES = Sizes.of_image(
    (2, 6, 9), 3, dim=8, outputs=5, token_hidden=7, channel_hidden=9, ffn_hidden=10, gmlp_hidden=12, heads=2
)


def network_and_images(kind: str = "ninformer"):
    torch.manual_seed(0)
    return build(kind, SIZES, 2), torch.randn(3, *SIZES.image, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ["ninformer", "mixer", "vit", "local_vit", "gmlp"])
def test_each_network_is_one_graph_with_the_same_gradients(kind):
    torch.compiler.reset()
    net, x = network_and_images(kind)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), net(x))
    got, expected = (torch.autograd.grad(f(x).square().sum(), list(net.parameters())) for f in (compiled, net))
    torch.testing.assert_close(got, expected)


def test_the_dial_is_traced_too():
    torch.compiler.reset()
    net, x = network_and_images()
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    dial = {"gate_mix": 0.3, "return_gates": True}
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, **dial), net(x, **dial))


def test_inference_mode_and_the_compiler_agree():
    """Inside a compiled network the block keeps to plain operators, which the compiler fuses itself."""
    torch.compiler.reset()
    net, x = network_and_images()
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    expected = net(x).detach()
    with torch.inference_mode():
        torch.testing.assert_close(compiled(x), expected)
        torch.testing.assert_close(net(x), expected)


def test_an_exported_network_answers_as_before():
    net, x = network_and_images()
    program = torch.export.export(net.eval(), (x,), dynamic_shapes={"x": {0: torch.export.Dim("batch", min=2)}})
    torch.testing.assert_close(program.module()(x[:2]), net(x[:2]))
