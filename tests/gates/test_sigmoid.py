import math

import pytest
import torch

from gated.gates import SelectionBias, biased_sigmoid_gate, load

LOGITS = torch.randn(30, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
BIAS = torch.tensor([0.4, -0.3, 0.0, 0.2, -0.1], dtype=torch.float64)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_by_a_loop(k):
    for row, weights in zip(
        LOGITS.tolist(), biased_sigmoid_gate(LOGITS, BIAS, k, scale=2.5).tolist(), strict=True
    ):
        scores = [1 / (1 + math.exp(-value)) for value in row]
        kept = sorted(range(5), key=lambda i: -(scores[i] + BIAS[i].item()))[:k]
        total = sum(scores[i] for i in kept)
        assert weights == pytest.approx(
            [2.5 * scores[i] / total if i in kept else 0.0 for i in range(5)], abs=1e-14
        )


def test_the_bias_selects_and_never_weighs():
    bias = BIAS.clone().requires_grad_()
    row = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    weights = biased_sigmoid_gate(row, torch.tensor([5.0, 0.0, 0.0], dtype=torch.float64), 2)
    score = 1 / (1 + math.exp(-1))
    assert weights.tolist() == pytest.approx([0.5 / (0.5 + score), 0, score / (0.5 + score)])
    assert not biased_sigmoid_gate(LOGITS, bias, 2).requires_grad


def test_a_shut_gate_stays_shut_whatever_its_bias():
    row, bias = torch.tensor([-torch.inf, 0.0, 1.0]), torch.tensor([10.0, 0.0, 0.0])
    assert (biased_sigmoid_gate(row, bias, 2) != 0).tolist() == [False, True, True]


def test_scores_that_all_underflow_still_weigh():
    row = torch.tensor([-1e4, -1e4 - math.log(3), -2e4], dtype=torch.float64)
    weights = biased_sigmoid_gate(row, torch.zeros(3, dtype=torch.float64), 3)
    assert weights.tolist() == pytest.approx([0.75, 0.25, 0])


def test_update_moves_against_the_load():
    gate = SelectionBias(4, 1, rate=0.01)
    gate.update(torch.tensor([10.0, 2.0, 4.0, 0.0]))
    assert gate.bias.tolist() == pytest.approx([-0.01, 0.01, 0.0, 0.01])


def test_defaults_of_the_module():
    gate = SelectionBias(2, 1)
    gate.update(torch.tensor([3.0, 1.0]))
    assert gate.bias.tolist() == pytest.approx([-0.001, 0.001])
    assert gate(torch.zeros(2)).tolist() == [0, 1]


def test_updates_balance_a_collapsed_router():
    gate = SelectionBias(4, 1, rate=0.02)
    logits = torch.randn(400, 4, generator=torch.Generator().manual_seed(1)) + torch.tensor(
        [2.0, 0.0, 0.0, 0.0]
    )
    before = load(gate(logits))
    for _ in range(100):
        gate.update(load(gate(logits)))
    after = load(gate(logits))
    assert before.max() > 250
    assert after.max() < 130
    assert "bias" in gate.state_dict()
