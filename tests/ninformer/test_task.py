"""The task that multiplies, and a block that solves it."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gated.ninformer import (
    NiNBlock,
    mixing_task,
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def zero(*modules: nn.Module) -> None:
    with torch.no_grad():
        for module in modules:
            for p in module.parameters():
                p.zero_()


@pytest.mark.parametrize("control", [False, True])
def test_the_task_multiplies_by_its_first_token(control):
    x, target = mixing_task(4_000, control=control, generator=seeded(6))
    again = mixing_task(4_000, control=control, generator=seeded(6))
    assert torch.equal(x, again[0]) and torch.equal(target, again[1])
    c, others = x[:, 0], x[:, 1:]
    assert x.shape == (4_000, 8, 16) and set(c.unique().tolist()) == {-1.0, 1.0} and (c.sum(-1) == 0).all()
    assert c.mean(0).abs().max() < 5 / math.sqrt(4_000)  # no place is favoured
    torch.testing.assert_close(F.layer_norm(x, (16,), eps=0.0), x, atol=1e-5, rtol=1e-5)
    mean = others.numpy().mean(1)
    np.testing.assert_allclose(target.numpy(), c.numpy() + mean if control else c.numpy() * mean, atol=1e-6)
    assert target.var().item() == pytest.approx(1 / 7 + control, rel=0.03)
    assert abs(target.mean().item()) < 0.01


def test_one_block_can_solve_the_task():
    """Token 0 hears every other token, and its own c multiplies what it hears: y_0 = c * (n - 1) mean(x)."""
    nin = NiNBlock(8, 16, 2, 4, 4).double()
    zero(nin.value, nin.mlp, nin.gate.token_mlp, nin.gate.channel_mlp)
    with torch.no_grad():
        nin.value.weight.copy_(torch.eye(16))
        # GELU(z) - GELU(-z) = z: two hidden entries carry the sum of the other tokens to token 0
        nin.gate.token_mlp.up.weight[:, 1:] = torch.tensor([[1.0], [-1.0]])
        nin.gate.token_mlp.down.weight[0] = torch.tensor([1.0, -1.0])
    x, target = mixing_task(100, generator=seeded(7))
    x = x.double()
    # the gate of token 0 is c + 7 mean(x), so its product with c is 1 + 7 c mean(x)
    torch.testing.assert_close(nin(x)[:, 0] - x[:, 0] - 1, 7 * target.double(), atol=1e-3, rtol=1e-3)
