import math

import pytest
import torch

from gated.gates import (
    add_gaussian_noise,
    importance_loss,
    load_loss,
    selection_probability,
    softmax_gate,
    switch_loss,
    topk_gate,
    topk_mask,
    z_loss,
)

LOGITS = torch.randn(5, 8, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def cov_squared(values):
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / len(values) / mean**2


def test_importance_and_load_loss_by_a_loop():
    weights = topk_gate(LOGITS, 2)
    columns = weights.reshape(-1, 4).T.tolist()
    assert importance_loss(weights).item() == pytest.approx(cov_squared([sum(c) for c in columns]), rel=1e-13)
    noisy = add_gaussian_noise(LOGITS, 0.5, generator=torch.Generator().manual_seed(1))
    probability = selection_probability(LOGITS, noisy, 0.5, 2)
    columns = probability.reshape(-1, 4).T.tolist()
    assert load_loss(probability).item() == pytest.approx(cov_squared([sum(c) for c in columns]), rel=1e-13)


def test_balance_losses_at_their_ends():
    collapsed, balanced = (
        torch.eye(4, dtype=torch.float64)[[0] * 8],
        torch.eye(4, dtype=torch.float64)[[0, 1, 2, 3] * 2],
    )
    assert importance_loss(collapsed).item() == pytest.approx(3)
    assert importance_loss(balanced).item() == 0
    assert switch_loss(collapsed, collapsed).item() == pytest.approx(4)
    assert switch_loss(balanced, balanced).item() == pytest.approx(1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_of_many_rows_is_summed_in_single(dtype):
    probability = torch.rand(300_000, 4, generator=torch.Generator().manual_seed(2)).to(dtype)
    selected = probability > 0.75
    logits = (300 * probability).requires_grad_()
    for loss in (importance_loss, load_loss, lambda p: switch_loss(p, selected), lambda p: z_loss(300 * p)):
        found, exact = loss(probability), loss(probability.double())
        assert found.dtype == torch.float32
        assert found.item() == pytest.approx(exact.item(), rel=1e-2 if exact > 2 else 1e-4, abs=1e-8)
    (gradient,) = torch.autograd.grad(importance_loss(logits) + z_loss(logits), logits)
    assert gradient.dtype == dtype
    assert gradient.isfinite().all()


@pytest.mark.parametrize("k", [1, 2])
def test_switch_loss_by_a_loop(k):
    rows = LOGITS.reshape(-1, 4).tolist()
    fraction, mean = [0.0] * 4, [0.0] * 4
    for row in rows:
        total = sum(map(math.exp, row))
        for i in range(4):
            mean[i] += math.exp(row[i]) / total / len(rows)
        for i in sorted(range(4), key=lambda i: -row[i])[:k]:
            fraction[i] += 1 / len(rows) / k
    expected = 4 * sum(f * q for f, q in zip(fraction, mean, strict=True))
    probability = softmax_gate(LOGITS)
    assert switch_loss(probability, topk_mask(LOGITS, k)).item() == pytest.approx(expected, rel=1e-13)
    assert switch_loss(probability, topk_gate(LOGITS, k)).item() == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_switch_loss_is_one_under_perfect_balance(k):
    """Every gate equally often first, second, ...: rotations of one row; and equal logits with any
    selection."""
    rotations = torch.stack(
        [torch.tensor([2.0, 0.3, -0.4, -1.0], dtype=torch.float64).roll(i) for i in range(4)]
    )
    assert switch_loss(softmax_gate(rotations), topk_mask(rotations, k)).item() == pytest.approx(1, rel=1e-14)
    equal = torch.zeros(6, 4, dtype=torch.float64)
    assert switch_loss(softmax_gate(equal), topk_mask(equal, k)).item() == pytest.approx(1, rel=1e-14)


def test_switch_loss_can_be_below_one():
    """Three rows prefer gate 0 by a little, one prefers gate 1 by a lot: f and Q disagree."""
    first = torch.tensor([0.51, 0.51, 0.51, 0.02], dtype=torch.float64)
    probability = torch.stack([first, 1 - first], -1)
    loss = switch_loss(probability, topk_mask(probability, 1)).item()
    assert loss == pytest.approx(2 * (0.75 * first.mean().item() + 0.25 * (1 - first.mean().item())))
    assert loss < 0.9


def test_z_loss_by_a_loop():
    rows = LOGITS.reshape(-1, 4).tolist()
    expected = sum(math.log(sum(map(math.exp, row))) ** 2 for row in rows) / len(rows)
    assert z_loss(LOGITS).item() == pytest.approx(expected, rel=1e-13)
    assert z_loss(torch.tensor([[1e4, -1e4, -torch.inf]])).item() == pytest.approx(1e8)


def test_gradients():
    logits = LOGITS[0].clone().requires_grad_()
    noise = LOGITS[1]
    for loss in (
        lambda l: importance_loss(topk_gate(l, 2)),
        lambda l: load_loss(selection_probability(l, l + 0.5 * noise, 0.5, 2)),
        lambda l: switch_loss(softmax_gate(l), topk_mask(l, 1)),
        z_loss,
    ):
        assert torch.autograd.gradcheck(loss, logits)


@pytest.mark.parametrize("descend", ["importance", "switch"])
def test_descent_revives_a_starved_gate(descend):
    """One gate starts with an advantage of 2; following the loss alone must bring the loads together."""
    bias = torch.tensor([2.0, 0.0, 0.0, 0.0], dtype=torch.float64, requires_grad=True)
    base = LOGITS.reshape(-1, 4)
    before = (topk_mask(base + bias, 1)).sum(0).max().item()
    for _ in range(200):
        logits = base + bias
        loss = (
            importance_loss(softmax_gate(logits))
            if descend == "importance"
            else switch_loss(softmax_gate(logits), topk_mask(logits, 1))
        )
        (gradient,) = torch.autograd.grad(loss, bias)
        bias = (bias - 0.5 * gradient).detach().requires_grad_()
    after = (topk_mask(base + bias, 1)).sum(0).max().item()
    assert before > 24
    assert after < 16
