import math

import pytest
import torch

from gated.gates import (
    NoisyTopKGate,
    add_gaussian_noise,
    load_loss,
    noisy_topk_gate,
    selection_probability,
    softmax_topk_gate,
    topk_gate,
    topk_mask,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


LOGITS = torch.randn(40, 6, generator=generator(), dtype=torch.float64)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_topk_then_softmax_by_a_loop(k):
    for row, weights in zip(LOGITS.tolist(), topk_gate(LOGITS, k, 0.8).tolist(), strict=True):
        kept = sorted(range(6), key=lambda i: -row[i])[:k]
        total = sum(math.exp(row[i] / 0.8) for i in kept)
        expected = [math.exp(row[i] / 0.8) / total if i in kept else 0.0 for i in range(6)]
        assert weights == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("k", [1, 3])
def test_softmax_then_topk_by_a_loop(k):
    for row, weights in zip(LOGITS.tolist(), softmax_topk_gate(LOGITS, k).tolist(), strict=True):
        kept = sorted(range(6), key=lambda i: -row[i])[:k]
        total = sum(map(math.exp, row))
        assert weights == pytest.approx(
            [math.exp(row[i]) / total if i in kept else 0.0 for i in range(6)], abs=1e-15
        )


@pytest.mark.parametrize("k", [1, 3, 6])
def test_renormalised_softmax_topk_is_topk_softmax(k):
    torch.testing.assert_close(
        softmax_topk_gate(LOGITS, k, renormalise=True), topk_gate(LOGITS, k), rtol=0, atol=1e-15
    )


def test_top1_trains_the_router_only_if_the_softmax_comes_first():
    for gate, trains in ((topk_gate, False), (softmax_topk_gate, True)):
        logits = LOGITS.clone().requires_grad_()
        gate(logits, 1).sum().backward()
        assert (logits.grad != 0).any().item() is trains


def test_another_score_may_rank():
    slopes, bias = torch.tensor([3.0, 2.0, 1.0]), torch.tensor([-5.0, 0.0, 5.0])
    weights = topk_gate(slopes + bias, 2, ranking=slopes)
    torch.testing.assert_close(weights, torch.softmax(torch.tensor([-2.0, 2.0, -torch.inf]), -1))


def test_ranking_by_logits_where_the_weights_tie():
    logits = torch.tensor([0.0, 1e-9, -1.0])
    assert softmax_topk_gate(logits, 3)[0] == softmax_topk_gate(logits, 3)[1]
    assert (softmax_topk_gate(logits, 1) != 0).tolist() == [False, True, False]


def test_shut_gates_are_never_selected():
    row = torch.tensor([-torch.inf, 1.0, -torch.inf])
    assert topk_mask(row, 2).tolist() == [False, True, False]
    assert topk_gate(row, 2).tolist() == [0, 1, 0]


def test_gaussian_noise_has_the_given_spread_and_gradients():
    std = torch.tensor([[0.5, 2.0]], dtype=torch.float64).expand(20000, 2)
    noise = add_gaussian_noise(torch.zeros(20000, 2, dtype=torch.float64), std, generator=generator())
    torch.testing.assert_close(noise.std(0), std[0], rtol=0.02, atol=0)
    assert noise.mean(0).abs().max() < 0.05
    x, s = LOGITS[:3].clone().requires_grad_(), (LOGITS[3:6].abs() + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, s: add_gaussian_noise(x, s, generator=generator(1)), (x, s))


def test_noisy_topk_is_topk_of_the_noisy_logits():
    noisy = add_gaussian_noise(LOGITS, 0.7, generator=generator(3))
    assert torch.equal(noisy_topk_gate(LOGITS, 0.7, 2, generator=generator(3)), topk_gate(noisy, 2))
    assert torch.equal(noisy_topk_gate(LOGITS, 0.7, 2, generator=None), topk_gate(LOGITS, 2))


@pytest.mark.parametrize("k", [1, 2, 5, 6])
def test_selection_probability_against_redrawing_one_gates_noise(k):
    """Its definition: the noise of the others stays, that of gate i alone is drawn again, 20,000 times."""
    logits = LOGITS[:3]
    std = 0.3 + torch.rand(3, 6, generator=generator(1), dtype=torch.float64)
    noisy = add_gaussian_noise(logits, std, generator=generator(2))
    probability = selection_probability(logits, noisy, std, k)
    draws = 20000
    for i in range(6):
        redrawn = noisy.expand(draws, 3, 6).clone()
        noise = torch.randn(draws, 3, generator=generator(10 + i), dtype=torch.float64)
        redrawn[..., i] = logits[:, i] + std[:, i] * noise
        frequency = topk_mask(redrawn, k)[..., i].double().mean(0)
        error = (probability[:, i] * (1 - probability[:, i]) / draws).sqrt()
        assert ((frequency - probability[:, i]).abs() <= 4.5 * error + 1e-4).all()


def test_selection_probability_by_a_loop():
    noisy = add_gaussian_noise(LOGITS[:4], 0.5, generator=generator())
    for row, noisy_row, found in zip(
        LOGITS.tolist(), noisy.tolist(), selection_probability(LOGITS[:4], noisy, 0.5, 2), strict=False
    ):
        for i in range(6):
            others = sorted((value for j, value in enumerate(noisy_row) if j != i), reverse=True)
            z = (row[i] - others[1]) / 0.5
            assert found[i].item() == pytest.approx((1 + math.erf(z / math.sqrt(2))) / 2, abs=1e-14)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_gradients_of_the_selection_probability(k):
    logits = LOGITS[:3, :5].clone().requires_grad_()
    std = (LOGITS[3:6, :5].abs() + 0.2).requires_grad_()
    noise = LOGITS[6:9, :5]
    assert torch.autograd.gradcheck(lambda l, s: selection_probability(l, l + s * noise, s, k), (logits, std))


def test_selection_probability_with_gates_shut():
    logits = torch.tensor(
        [[0.0, -torch.inf, 1.0], [2.0, -torch.inf, -torch.inf]], dtype=torch.float64, requires_grad=True
    )
    std = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    probability = selection_probability(logits, logits + std * 0.1, std, 2)
    assert probability.tolist() == [[1, 0, 1], [1, 0, 0]]  # fewer rivals than places: certain
    probability = selection_probability(logits, logits + std * 0.1, std, 1)
    assert probability[1].tolist() == [1, 0, 0]
    probability.sum().backward()
    assert logits.grad.isfinite().all()
    assert std.grad.isfinite().all()


def test_module_starts_uniform_and_its_noise_learns_through_the_load():
    gate = NoisyTopKGate(4, 6, 2).double()
    x = torch.randn(8, 3, 4, generator=generator(), dtype=torch.float64)
    weights, probability = gate(x, generator(1))
    assert ((weights != 0).sum(-1) == 2).all()
    assert probability.shape == (8, 3, 6)
    load_loss(probability).backward()
    assert (gate.noise_weight.grad != 0).any()
    assert (gate.gate_weight.grad != 0).any()


def test_module_takes_a_single_row():
    gate, x = NoisyTopKGate(4, 6, 2), torch.randn(4, generator=generator())
    torch.nn.init.normal_(gate.gate_weight, generator=generator(1))
    for one, row in zip(gate.eval()(x), gate(x[None]), strict=True):
        assert torch.equal(one, row[0])


def test_module_by_the_formula_and_without_noise_in_evaluation():
    gate = NoisyTopKGate(4, 6, 2, min_noise_std=0.05).double()
    torch.nn.init.normal_(gate.gate_weight, generator=generator(1))
    torch.nn.init.normal_(gate.noise_weight, generator=generator(2))
    x = torch.randn(7, 4, generator=generator(3), dtype=torch.float64)
    logits, std = x @ gate.gate_weight, (x @ gate.noise_weight).exp().log1p() + 0.05
    noisy = add_gaussian_noise(logits, std, generator=generator(4))
    weights, probability = gate(x, generator(4))
    torch.testing.assert_close(weights, topk_gate(noisy, 2))
    torch.testing.assert_close(probability, selection_probability(logits, noisy, std, 2))
    weights, selected = gate.eval()(x)
    assert torch.equal(weights, topk_gate(logits, 2))
    assert torch.equal(selected, (weights != 0).double())
