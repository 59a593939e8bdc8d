"""Bad input to the fused top-k gate: a ValueError that names the argument."""

import math

import pytest
import torch

from gated.kernels.topk_gate import topk_gate


@pytest.mark.parametrize(
    "logits",
    [
        torch.randn(4),
        torch.randn(2, 3, 4),
        torch.ones(3, 4, dtype=torch.int64),
        [[1.0, 2.0]],
        torch.tensor([[0.0, math.nan]]),
        torch.tensor([[0.0, 1.0], [0.0, math.inf]]),
        torch.tensor([[-math.inf, math.nan]]),
    ],
)
def test_names_the_logits(logits):
    with pytest.raises(ValueError, match=r"^logits must"):
        topk_gate(logits, 1)


@pytest.mark.parametrize("k", [0, -1, 5, 2.0, None])
def test_names_k(k):
    with pytest.raises(ValueError, match=r"^k must be an integer in 1\.\.4"):
        topk_gate(torch.randn(3, 4), k)


def test_no_experts():
    with pytest.raises(ValueError, match=r"^k must"):
        topk_gate(torch.randn(3, 0), 1)


def test_what_is_legal_is_not_refused():
    assert topk_gate(torch.full((3, 4), -math.inf), 4).weights.eq(0).all()
    assert topk_gate(torch.randn(0, 4), 4).offsets.eq(0).all()
