import itertools
import math

import pytest
import scipy.stats
import torch
import torch.nn.functional as F

from gated.gates import (
    add_gumbel_noise,
    gumbel_softmax_gate,
    gumbel_topk_gate,
    gumbel_topk_sample,
    plackett_luce_log_prob,
    topk_mask,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


LOGITS = torch.tensor([0.8, -0.4, 0.1, -1.3], dtype=torch.float64)


def test_noise_is_gumbel():
    noise = add_gumbel_noise(torch.zeros(20000, dtype=torch.float64), generator())
    assert scipy.stats.kstest(noise.numpy(), scipy.stats.gumbel_r.cdf).pvalue > 1e-3


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gumbel_softmax_equals_torch(hard, dtype):
    ours = torch.randn(7, 5, generator=generator(), dtype=dtype).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    with torch.random.fork_rng():
        torch.manual_seed(11)
        expected = F.gumbel_softmax(theirs, 0.6, hard)
    weights = gumbel_softmax_gate(ours, 0.6, hard=hard, generator=generator(11))
    torch.testing.assert_close(weights, expected)
    if hard:
        assert set(weights.flatten().tolist()) == {0.0, 1.0}
    upstream = torch.randn(7, 5, generator=generator(1), dtype=dtype)
    weights.backward(upstream)
    expected.backward(upstream)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_gumbel_max_samples_the_softmax():
    winners = gumbel_softmax_gate(LOGITS.expand(40000, 4), 0.1, hard=True, generator=generator()).sum(0)
    assert scipy.stats.chisquare(winners.numpy(), 40000 * LOGITS.softmax(-1).numpy()).pvalue > 1e-3


def brute_force_probability(order):
    """Draw one after the other from the softmax over what is left."""
    left, probability = list(range(4)), 1.0
    for i in order:
        probability *= math.exp(LOGITS[i]) / sum(math.exp(LOGITS[j]) for j in left)
        left.remove(i)
    return probability


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_plackett_luce_by_enumeration(k):
    orders = list(itertools.permutations(range(4), k))
    expected = torch.tensor([brute_force_probability(order) for order in orders], dtype=torch.float64)
    log_prob = plackett_luce_log_prob(LOGITS.expand(len(orders), 4), torch.tensor(orders))
    torch.testing.assert_close(log_prob.exp(), expected, rtol=1e-13, atol=0)
    assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-13)
    draws = gumbel_topk_sample(LOGITS.expand(40000, 4), k, generator=generator(k))
    counts = [(draws == torch.tensor(order)).all(-1).sum().item() for order in orders]
    assert sum(counts) == 40000
    assert scipy.stats.chisquare(counts, 40000 * expected.numpy()).pvalue > 1e-3


def test_inclusion_probability_of_two():
    """P(j in the pair) = p_j + sum_{l != j} p_l p_j / (1 - p_l)."""
    p = LOGITS.softmax(-1)
    expected = torch.stack(
        [p[j] + sum(p[i] * p[j] / (1 - p[i]) for i in range(4) if i != j) for j in range(4)]
    )
    share = gumbel_topk_gate(LOGITS.expand(40000, 4), 2, generator=generator()).mean(0)
    torch.testing.assert_close(share, expected, rtol=0, atol=0.012)


def test_plackett_luce_edges():
    assert plackett_luce_log_prob(LOGITS, torch.tensor([1, 1])) == -math.inf
    shut = torch.tensor([0.0, -torch.inf, 1.0], dtype=torch.float64)
    pair = plackett_luce_log_prob(shut, torch.tensor([2, 0]))
    assert pair.item() == pytest.approx(math.log(math.e / (1 + math.e)))
    huge = torch.tensor([1e4, -1e4, 0.0], dtype=torch.float64, requires_grad=True)
    log_prob = plackett_luce_log_prob(huge, torch.tensor([1, 0, 2]))
    log_prob.backward()
    assert log_prob.isfinite()
    assert huge.grad.isfinite().all()


def test_plackett_luce_batch_vmap_and_gradient():
    logits = torch.randn(3, 4, 5, generator=generator(), dtype=torch.float64)
    order = gumbel_topk_sample(logits, 3, generator=generator(1))
    together = plackett_luce_log_prob(logits, order)
    assert together.shape == (3, 4)
    one_by_one = torch.func.vmap(torch.func.vmap(plackett_luce_log_prob))(logits, order)
    torch.testing.assert_close(one_by_one, together)
    assert torch.autograd.gradcheck(lambda l: plackett_luce_log_prob(l, order), logits.requires_grad_())


def test_sample_without_noise_is_the_likeliest_order():
    assert gumbel_topk_sample(LOGITS, 3, generator=None).tolist() == [0, 2, 1]
    assert gumbel_topk_sample(torch.zeros(4), 2, generator=None).tolist() == [0, 1]


def test_gumbel_topk_gate_is_k_hot_with_the_soft_gradient():
    logits = torch.randn(50, 6, generator=generator(), dtype=torch.float64).requires_grad_()
    gate = gumbel_topk_gate(logits, 3, 0.7, generator=generator(4))
    noisy = add_gumbel_noise(logits.detach(), generator(4))
    assert torch.equal(gate, topk_mask(noisy, 3).double())
    upstream = torch.randn(50, 6, generator=generator(5), dtype=torch.float64)
    gate.backward(upstream)
    y = torch.softmax(noisy / 0.7, -1)
    torch.testing.assert_close(logits.grad, y * (upstream - (y * upstream).sum(-1, keepdim=True)) / 0.7)
    torch.testing.assert_close(logits.grad.sum(-1), torch.zeros(50, dtype=torch.float64), rtol=0, atol=1e-14)
