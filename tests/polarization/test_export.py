"""A pruned network leaves PyTorch: as an exported program, and as ONNX for onnxruntime."""

import numpy as np
import onnxruntime
import pytest
import torch

from gated.backbones import ResNet
from gated.polarization import GatedResNet, prune

OPEN = {None: [True, False, True, False], 2: [True, False, True, True, False, False, False, True]}


@pytest.fixture(params=[None, 2], ids=["blocks", "channels"])
def pruned(request):
    """Two blocks of four, one of them the shape's; or half of the channels, and a block that keeps none."""
    torch.manual_seed(0)
    model = GatedResNet(ResNet((2, 2), (4, 8), in_channels=1, num_classes=3), groups=request.param)
    x = torch.randn(16, 1, 9, 9)
    for _ in range(5):
        model.train()(x)  # the norms' statistics are no longer those of the start
    model.freeze(OPEN[request.param])
    return prune(model, [x]).net, model.eval(), x


@torch.no_grad()
def test_exported_program_answers_as_the_gated_network(pruned):
    net, model, x = pruned
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(net, (x[:4],), dynamic_shapes=({0: batch},))
    names = {str(node.target) for node in program.graph.nodes}
    assert any("conv2d" in name for name in names) and not any("mul" in name or "sigmoid" in name for name in names)
    assert torch.allclose(program.module()(x), model(x).logits, atol=1e-5)


# PyTorch's own, while it copies a tree of arguments
@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.:FutureWarning")
@torch.no_grad()
def test_onnxruntime_answers_as_the_gated_network(pruned):
    net, model, x = pruned
    program = torch.onnx.export(
        net, (x[:4],), dynamo=True, verbose=False, dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(answer, model(x).logits.numpy(), rtol=1e-4, atol=1e-5)
