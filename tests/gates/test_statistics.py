import math

import numpy as np
import pytest
import torch

from gated.gates import (
    coefficient_of_variation,
    effective_gates,
    entropy,
    importance,
    load,
    softmax_gate,
    topk_gate,
)

WEIGHTS = topk_gate(torch.randn(4, 10, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64), 2)


def test_load_and_importance_by_a_loop():
    count, total = [0] * 6, [0.0] * 6
    for row in WEIGHTS.reshape(-1, 6).tolist():
        for i, weight in enumerate(row):
            count[i] += weight != 0
            total[i] += weight
    assert load(WEIGHTS).tolist() == count
    assert load(WEIGHTS != 0).tolist() == count
    assert importance(WEIGHTS).tolist() == pytest.approx(total)
    assert load(WEIGHTS).sum() == 2 * 40


def test_load_counts_exactly_in_half_precision():
    counts = load(torch.ones(70001, 2, dtype=torch.float16))
    assert counts.tolist() == [70001, 70001]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_importance_is_summed_in_single_precision(dtype):
    weights = torch.rand(300_000, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    total = importance(weights)
    assert total.dtype == torch.float32
    torch.testing.assert_close(total.double(), weights.double().sum(0), rtol=1e-5, atol=0)
    huge = torch.tensor([6e4, 6e4, 3e4], dtype=dtype)
    spread = coefficient_of_variation(huge)
    assert spread.item() == pytest.approx(coefficient_of_variation(huge.double()).item(), rel=1e-6)


def test_coefficient_of_variation_is_the_populations():
    values = np.random.default_rng(0).uniform(0, 5, size=(7, 6))
    expected = values.std(-1) / values.mean(-1)
    np.testing.assert_allclose(coefficient_of_variation(torch.tensor(values)).numpy(), expected, rtol=1e-13)
    assert coefficient_of_variation(torch.tensor([9.0, 0, 0, 0, 0])).item() == pytest.approx(2)
    even = torch.full((4,), 3.0, requires_grad=True)
    spread = coefficient_of_variation(even)
    spread.backward()
    assert spread == 0
    assert even.grad.tolist() == [0, 0, 0, 0]


def test_entropy_and_effective_gates_by_a_loop():
    for row, found in zip(WEIGHTS.reshape(-1, 6), entropy(WEIGHTS).flatten().tolist(), strict=True):
        assert found == pytest.approx(-sum(w * math.log(w) for w in row.tolist() if w > 0), abs=1e-15)
    uniform = torch.full((3, 8), 1 / 8, dtype=torch.float64)
    torch.testing.assert_close(entropy(uniform), torch.full((3,), math.log(8), dtype=torch.float64))
    assert effective_gates(uniform).tolist() == pytest.approx([8, 8, 8])
    assert effective_gates(torch.tensor([0.5, 0, 0.5, 0])).item() == pytest.approx(2)
    one = effective_gates(torch.tensor([0.0, 1.0, 0.0]))
    assert one == 1


@pytest.mark.parametrize("gate", [softmax_gate, lambda x: topk_gate(x, 3)], ids=["dense", "top-k"])
@pytest.mark.parametrize(
    "statistic", [entropy, effective_gates, lambda w: coefficient_of_variation(importance(w))]
)
def test_gradients_through_a_gate_with_shut_entries(gate, statistic):
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    logits[1, 2] = -torch.inf
    open_entries = logits.isfinite()

    def through(values):
        return statistic(gate(logits.masked_scatter(open_entries, values)))

    assert torch.autograd.gradcheck(through, logits[open_entries].requires_grad_())
