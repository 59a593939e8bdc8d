"""Layers under torch.compile: the same numbers, and no graph break where shapes depend on no values. Run without the
shape-checking import hook, whose wrappers the compiler does not trace."""

import pytest
import torch

from gated import moe
from gated.moe import gates as m

# PyTorch's compiler looks at gradients of tensors that have none, and hides the warning only from itself.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


def make(gate, dispatch):
    torch.manual_seed(0)
    return moe.MoE(gate(), moe.FFNExperts(5, 6, 8, activation="silu", gated=True), dispatch)


def limited():
    return moe.Capacity(m.TopKGate(m.LinearScore(6, 5), 2), 0.75, priority="sum")


CASES = {
    "dense": (lambda: m.TopKGate(m.LinearScore(6, 5), 2), moe.dense_dispatch, True),
    "capacity": (limited, moe.capacity_dispatch, True),
    "slots": (lambda: m.SoftMoEGate(6, 5, 2), moe.slots_dispatch, True),
    "sorted": (limited, moe.sorted_dispatch, False),
    "loop": (limited, moe.loop_dispatch, False),
}


# Inductor's own call of the C++ compiler does not survive a space in the path of the environment.
COMPILER = "aot_eager" if " " in torch.__file__ else "inductor"


@pytest.mark.parametrize("name", CASES)
def test_compiled_layers_agree(name):
    gate, dispatch, whole = CASES[name]
    layer = make(gate, dispatch)
    compiled = torch.compile(layer, fullgraph=whole, backend=COMPILER if whole else "aot_eager")
    for tokens in (12, 7):
        x = torch.randn(tokens, 6, generator=torch.Generator().manual_seed(tokens))
        results = []
        for call in (layer, compiled):
            layer.zero_grad()
            y, routing = call(x)
            y.square().sum().backward()
            results.append([y, routing[0], *(parameter.grad.clone() for parameter in layer.parameters())])
        torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-5)
