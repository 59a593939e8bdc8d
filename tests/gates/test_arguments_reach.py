"""What is easily lost between a signature and a formula: defaults, a scale that is passed on, the sign of the noise."""

import math

import pytest
import torch

from gated import gates as g
from gated.gates.noise import draw


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


LOGITS = torch.tensor([[0.3, -1.2, 2.0, 0.7], [1.5, 0.1, -0.4, 0.9]], dtype=torch.float64)


def test_gaussian_noise_is_added_to_the_logits():
    """H = l + s e, with the very e that torch draws from this generator."""
    e = torch.randn(LOGITS.shape, generator=rng(), dtype=LOGITS.dtype)
    found = g.add_gaussian_noise(LOGITS, 0.7, generator=rng())
    torch.testing.assert_close(found, LOGITS + 0.7 * e, rtol=0, atol=1e-14)  # e in the precision of l


def test_a_hard_gate_is_open_above_one_half_and_shut_at_it():
    logits = torch.tensor([-0.1, 0.0, 0.1])
    assert g.gumbel_sigmoid_gate(logits, hard=True, generator=None).tolist() == [0, 0, 1]


def test_one_selection_is_all_of_them():
    """N f_1 Q_1 = 2 * 1 * 1/2."""
    assert g.switch_loss(torch.tensor([[0.5, 0.5]]), torch.tensor([[1.0, 0.0]])).item() == 1


def test_noise_is_a_hundredth_at_least_unless_told_otherwise():
    gate = g.NoisyTopKGate(3, 4, 2)
    assert gate.min_noise_std == 0.01


def test_what_is_made_on_the_way_is_on_the_logits_device():
    """Tensors without data are on a device of their own, which may not meet the CPU's."""
    logits, order = torch.empty(5, 4, device="meta"), torch.empty(5, 2, dtype=torch.int64, device="meta")
    for found in (
        g.probit_gate(logits),
        g.plackett_luce_log_prob(logits, order),
        draw(lambda empty, generator: empty, logits, rng()),
        g.expert_choice_gate(logits, 2),
        g.top_p_gate(logits, 0.5),
        g.entmax_gate(logits),
        g.student_t_logits(logits, logits, torch.empty(5, device="meta"), 3.0),
    ):
        assert found.device == logits.device


def test_temperature_is_one_unless_given():
    torch.testing.assert_close(g.gumbel_sigmoid_gate(LOGITS, generator=None), LOGITS.sigmoid())
    torch.testing.assert_close(g.gumbel_softmax_gate(LOGITS, generator=None), LOGITS.softmax(-1))
    torch.testing.assert_close(g.dense_to_sparse_gate(LOGITS, 0.0, generator=None), LOGITS.softmax(-1))
    torch.testing.assert_close(g.laplace_logits(LOGITS, 0 * LOGITS), -LOGITS.norm(dim=-1)[:, None].expand(2, 2))
    torch.testing.assert_close(g.softmax_gate(LOGITS), LOGITS.exp() / LOGITS.exp().sum(-1, keepdim=True))


def test_the_slope_of_sampled_gates_is_that_of_softmax_at_temperature_one():
    logits = LOGITS.clone().requires_grad_()
    (found,) = torch.autograd.grad(g.gumbel_topk_gate(logits, 2, generator=None)[:, 0].sum(), logits)
    (expected,) = torch.autograd.grad(logits.softmax(-1)[:, 0].sum(), logits)
    torch.testing.assert_close(found, expected)


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
