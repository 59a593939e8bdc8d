import itertools
import math

import pytest
import scipy.stats
import torch

from gated.gates import (
    HardConcrete,
    binary_gate,
    gumbel_sigmoid_gate,
    hard_concrete_gate,
    hard_concrete_mode,
    hard_concrete_open_probability,
    straight_through,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


LOGITS = torch.randn(50, generator=generator(), dtype=torch.float64)


def test_straight_through_is_hard_forward_and_soft_backward():
    soft = LOGITS.clone().requires_grad_()
    hard = torch.full_like(soft, 1 / 3)
    gate = straight_through(hard, soft.sin())
    assert torch.equal(gate, hard)
    gate.sum().backward()
    torch.testing.assert_close(soft.grad, LOGITS.cos())


def test_binary_gate_thresholds_and_slopes():
    p = LOGITS.sigmoid()
    for slope, expected in (("sigmoid", p * (1 - p)), ("identity", torch.ones_like(p))):
        logits = LOGITS.clone().requires_grad_()
        gate = binary_gate(logits, 0.6, slope=slope)
        assert torch.equal(gate, (p > 0.6).double())
        gate.sum().backward()
        torch.testing.assert_close(logits.grad, expected)
    assert binary_gate(torch.tensor(0.0)) == 0  # p = threshold is shut


def test_bernoulli_frequency():
    open_share = binary_gate(LOGITS.expand(20000, 50), generator=generator()).mean(0)
    p = LOGITS.sigmoid()
    assert ((open_share - p).abs() < 4.5 * (p * (1 - p) / 20000).sqrt()).all()
    assert not binary_gate(torch.full((1000,), -torch.inf), generator=generator()).any()
    assert binary_gate(torch.full((1000,), torch.inf), generator=generator()).all()


def test_bernoulli_in_half_precision_is_not_rounded_to_its_few_values():
    logits = torch.full((200_000,), -7.0, dtype=torch.bfloat16)
    expected = 200_000 / (1 + math.exp(7))  # about 182; a uniform draw with 8 bits would give 781
    assert abs(binary_gate(logits, generator=generator()).double().sum() - expected) < 70


class TestEstimatorsOnAnEnumerableLoss:
    """f(g) = (w.g - 0.7)^2 / 2 with three gates: eight states, so every expectation is a short sum."""

    weights = torch.tensor([1.0, -2.0, 1.5], dtype=torch.float64)
    logits = torch.tensor([0.5, -1.0, 1.5], dtype=torch.float64)
    draws = 200_000

    def mean_gradient(self, gate):
        logits = self.logits.clone().requires_grad_()
        (((gate(logits.expand(self.draws, 3)) * self.weights).sum(-1) - 0.7) ** 2 / 2).mean().backward()
        return logits.grad

    def expected(self, slope):
        p, total = self.logits.sigmoid(), torch.zeros(3, dtype=torch.float64)
        for state in itertools.product((0.0, 1.0), repeat=3):
            g = torch.tensor(state, dtype=torch.float64)
            total += (
                torch.where(g == 1, p, 1 - p).prod() * ((self.weights * g).sum() - 0.7) * self.weights * slope
            )
        return total

    @pytest.mark.parametrize("slope", ["sigmoid", "identity"])
    def test_sampled_straight_through(self, slope):
        p = self.logits.sigmoid()
        found = self.mean_gradient(lambda s: binary_gate(s, slope=slope, generator=generator()))
        expected = self.expected(p * (1 - p) if slope == "sigmoid" else 1.0)
        torch.testing.assert_close(found, expected, rtol=0, atol=0.012 if slope == "identity" else 0.003)

    def test_deterministic_threshold(self):
        p = self.logits.sigmoid()
        found = self.mean_gradient(binary_gate)
        torch.testing.assert_close(found, (2.5 - 0.7) * self.weights * p * (1 - p), rtol=1e-9, atol=0)

    def test_gumbel_straight_through_by_quadrature(self):
        """Its mean at T = 1, from the density of the binary concrete: y given the hard value, gate by
        gate."""
        u = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
        y = (self.logits[:, None] + u.log() - (1 - u).log()).sigmoid()  # three gates x quadrature nodes
        slope, hard, p = y * (1 - y), (y > 0.5).double(), self.logits.sigmoid()
        mean_slope, mean_slope_hard = slope.mean(-1), (slope * hard).mean(-1)
        others = (self.weights * p).sum() - self.weights * p - 0.7
        expected = self.weights * (others * mean_slope + self.weights * mean_slope_hard)
        found = self.mean_gradient(lambda s: gumbel_sigmoid_gate(s, 1.0, hard=True, generator=generator()))
        torch.testing.assert_close(found, expected, rtol=0, atol=0.004)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_gumbel_sigmoid_has_the_binary_concrete_law(temperature):
    """P(y <= x) = sigmoid(T logit(x) - s)."""
    y = gumbel_sigmoid_gate(
        torch.full((20000,), 0.7, dtype=torch.float64), temperature, generator=generator()
    )
    law = scipy.stats.kstest(y.numpy(), lambda x: 1 / (1 + (math.exp(0.7) * ((1 - x) / x) ** temperature)))
    assert law.pvalue > 1e-3
    assert abs((y > 0.5).double().mean() - 1 / (1 + math.exp(-0.7))) < 0.015


def test_gumbel_sigmoid_hard_forward_soft_backward():
    soft, hard = LOGITS.clone().requires_grad_(), LOGITS.clone().requires_grad_()
    y = gumbel_sigmoid_gate(soft, 0.5, generator=generator(2))
    z = gumbel_sigmoid_gate(hard, 0.5, hard=True, generator=generator(2))
    assert torch.equal(z, (y > 0.5).double())
    y.sum().backward()
    z.sum().backward()
    assert torch.equal(soft.grad, hard.grad)
    torch.testing.assert_close(soft.grad, (y * (1 - y) / 0.5).detach())


def test_gumbel_sigmoid_learnable_temperature():
    logits = torch.cat([LOGITS[:5], torch.tensor([-torch.inf, torch.inf], dtype=torch.float64)])
    temperature = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda t: gumbel_sigmoid_gate(logits, t, generator=generator()), temperature
    )


@pytest.mark.parametrize(("temperature", "low", "high"), [(2 / 3, -0.1, 1.1), (0.4, -0.3, 1.2)])
def test_hard_concrete_masses_against_sampling(temperature, low, high):
    log_alpha = torch.tensor([-2.0, 0.0, 1.0], dtype=torch.float64)
    draws = 40000
    z = hard_concrete_gate(log_alpha.expand(draws, 3), temperature, low, high, generator=generator())
    assert 0 <= z.min() <= z.max() <= 1
    for probability, frequency in (
        (hard_concrete_open_probability(log_alpha, temperature, low, high), (z != 0).double().mean(0)),
        # z = 1 where the stretched y reaches 1: P = sigmoid(log_alpha - T log((1 - low) / (high - 1)))
        ((log_alpha - temperature * math.log((1 - low) / (high - 1))).sigmoid(), (z == 1).double().mean(0)),
    ):
        assert (
            (probability - frequency).abs() < 4.5 * (probability * (1 - probability) / draws).sqrt()
        ).all()


def test_hard_concrete_values_by_hand():
    """P = 1 / (1 + exp(-(log_alpha - beta log(-gamma/zeta)))) at beta = 2/3, gamma = -0.1, zeta = 1.1."""
    probability = hard_concrete_open_probability(torch.tensor([0.0, -1.0], dtype=torch.float64))
    by_hand = [1 / (1 + 11 ** (-2 / 3)), 1 / (1 + math.e * 11 ** (-2 / 3))]
    assert probability.tolist() == pytest.approx(by_hand, abs=1e-15)
    mode = hard_concrete_mode(torch.tensor([0.0, -5.0, 5.0, 1.0], dtype=torch.float64))
    assert mode.tolist() == pytest.approx([0.5, 0, 1, 1.2 / (1 + math.exp(-1)) - 0.1])


def test_hard_concrete_gradients():
    for seed in range(3):
        logits = LOGITS[:8].clone().requires_grad_()
        assert torch.autograd.gradcheck(
            lambda a, s=seed: hard_concrete_gate(a, generator=generator(s)), logits
        )
    logits = torch.tensor([-50.0, 50.0], requires_grad=True)
    hard_concrete_gate(logits, generator=generator()).sum().backward()
    assert logits.grad.tolist() == [0, 0]


def test_the_module_starts_half_open_with_the_numbers_of_the_paper():
    gate = HardConcrete(2)
    assert gate.log_alpha.tolist() == [0, 0]
    assert (gate.temperature, gate.low, gate.high) == (2 / 3, -0.1, 1.1)
    assert HardConcrete(2, log_alpha=1).log_alpha.dtype == torch.get_default_dtype()


def test_hard_concrete_module():
    gate = HardConcrete(4, log_alpha=0.3)
    z = gate(generator(5))
    torch.testing.assert_close(z, hard_concrete_gate(gate.log_alpha, generator=generator(5)))
    assert gate.expected_open().item() == pytest.approx(4 / (1 + math.exp(-0.3) * 11 ** (-2 / 3)))
    gate.expected_open().backward()
    assert (gate.log_alpha.grad > 0).all()
    torch.testing.assert_close(gate.eval()(), hard_concrete_mode(gate.log_alpha))
