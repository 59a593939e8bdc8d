"""What is easily lost between a signature and a formula: defaults, a scale that is passed on, the sign of the noise."""

import math

import pytest
import torch

from gated import gates as g


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


LOGITS = torch.tensor([[0.3, -1.2, 2.0, 0.7], [1.5, 0.1, -0.4, 0.9]], dtype=torch.float64)


def test_gaussian_noise_is_added_to_the_logits():
    """H = l + s e, with the very e that torch draws from this generator."""
    e = torch.randn(LOGITS.shape, generator=rng(), dtype=LOGITS.dtype)
    torch.testing.assert_close(g.add_gaussian_noise(LOGITS, 0.7, generator=rng()), LOGITS + 0.7 * e)


def test_temperature_is_one_unless_given():
    torch.testing.assert_close(g.gumbel_sigmoid_gate(LOGITS, generator=None), LOGITS.sigmoid())
    torch.testing.assert_close(g.gumbel_softmax_gate(LOGITS, generator=None), LOGITS.softmax(-1))
    torch.testing.assert_close(g.softmax_gate(LOGITS), LOGITS.exp() / LOGITS.exp().sum(-1, keepdim=True))


def test_the_selection_bias_passes_its_scale_on():
    gate = g.SelectionBias(4, 2, scale=2.5).double()
    torch.testing.assert_close(gate(LOGITS).sum(-1), torch.full((2,), 2.5, dtype=torch.float64))


def test_the_hard_concrete_gate_starts_with_the_numbers_of_its_paper():
    """Louizos et al. 2018, section 4: beta = 2/3, gamma = -0.1, zeta = 1.1; P(z != 0) in closed form."""
    expected = torch.sigmoid(LOGITS - 2 / 3 * torch.tensor(0.1 / 1.1, dtype=torch.float64).log())
    torch.testing.assert_close(g.hard_concrete_open_probability(LOGITS), expected)
    torch.testing.assert_close(g.hard_concrete_mode(LOGITS), (-0.1 + 1.2 * LOGITS.sigmoid()).clamp(0, 1))


@pytest.mark.parametrize("ends", [{"low": -math.inf}, {"low": 0.0}, {"high": math.inf}, {"high": 1.0}])
def test_the_stretch_of_a_hard_concrete_gate_is_open_at_its_ends(ends):
    with pytest.raises(ValueError, match=next(iter(ends))):
        g.hard_concrete_mode(LOGITS, **ends)


def test_a_shut_gate_does_not_pull_on_the_entropy():
    """dH/dw_i = -(log w_i + 1) where a gate is open, and 0, not infinity, where it is shut."""
    weights = torch.tensor([0.25, 0.75, 0.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(g.entropy(weights), weights)
    expected = torch.where(weights > 0, -(weights.detach().log() + 1), 0.0)
    torch.testing.assert_close(slope, expected)
