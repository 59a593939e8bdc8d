"""The formulas of other implementations, written down again, against ours. (Other oracles: in the tests of each part.)

V-MoE and Soft MoE: google-research/vmoe; cosine: microsoft/tutel; GShard: its algorithm 1.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gated import gates as g
from gated import moe
from gated.moe.gates import SoftMoEGate
from gated.moe.scores import CosineScore


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


@given(seed=st.integers(0, 1000), tokens=st.integers(1, 20), num_experts=st.integers(2, 6))
def test_switch_loss_is_gshards_times_n_squared(seed, tokens, num_experts):
    """GShard and V-MoE write N^2 mean_i(f_i Q_i), with f from the arg max."""
    p = normal(tokens, num_experts, seed=seed).softmax(-1)
    f = torch.nn.functional.one_hot(p.argmax(-1), num_experts).double().mean(0)
    theirs = num_experts**2 * (f * p.mean(0)).mean()
    torch.testing.assert_close(g.switch_loss(p, g.topk_mask(p, 1)), theirs, rtol=1e-12, atol=0)


def test_probabilities_of_selection_do_not_sum_to_k():
    """Each redraws one expert's noise with the others' fixed: these are not the chances of one common draw."""
    logits = normal(200, 6)
    noisy = g.add_gaussian_noise(logits, 1.0, generator=rng(1))
    total = g.selection_probability(logits, noisy, 1.0, 2).sum(-1)
    assert (total - 2).abs().max() > 0.3
    assert abs(total.mean().item() - 2) < 5 * total.std().item() / 200**0.5  # in the mean they do


def test_importance_loss_is_vmoes():
    """(std / mean)^2 of the summed weights, both over the population."""
    p = normal(30, 5).softmax(-1)
    total = p.sum(0)
    theirs = (total.var(correction=0).sqrt() / total.mean()) ** 2
    torch.testing.assert_close(g.importance_loss(p), theirs, rtol=1e-12, atol=0)


@pytest.mark.parametrize("theta", [math.log(2), 3.0, 7.0])
def test_cosine_score_is_tutels(theta):
    """normalize(x P, dim=1) @ normalize(E, dim=0) * exp(min(theta, log 100)), E with a column an expert."""
    score, x = CosineScore(6, 4, projection=3).double(), normal(9, 6)
    with torch.no_grad():
        score.prototypes.copy_(normal(4, 3, seed=1))
        score.log_scale.fill_(theta)
    unit = torch.nn.functional.normalize
    columns = score.prototypes.T
    theirs = unit(x @ score.projection.T, dim=1) @ unit(columns, dim=0) * min(math.exp(theta), 100.0)
    torch.testing.assert_close(score(x), theirs, rtol=1e-12, atol=1e-12)


def test_soft_moe_gate_is_vmoes_soft_router():
    """x and Phi divided by sqrt(sum of squares + 1e-6), the product times a scale that starts at one."""
    gate, x = SoftMoEGate(6, 3, slots=2).double(), normal(8, 6)
    phi = gate.phi.T

    def unit(a, dim):
        return a * torch.rsqrt(a.square().sum(dim, keepdim=True) + 1e-6)

    logits = unit(x, 1) @ unit(phi, 0)
    slots = gate(x)
    torch.testing.assert_close(slots.dispatch.flatten(1), logits.softmax(0), rtol=1e-4, atol=0)
    torch.testing.assert_close(slots.combine.flatten(1), logits.softmax(1), rtol=1e-4, atol=0)


def test_a_soft_layer_follows_a_permutation_of_its_tokens():
    torch.manual_seed(0)
    layer = moe.MoE(SoftMoEGate(6, 3, slots=2), moe.FFNExperts(3, 6, 8), moe.slots_dispatch).double()
    x, order = normal(7, 6), torch.randperm(7, generator=rng(2))
    torch.testing.assert_close(layer(x[order])[0], layer(x)[0][order], rtol=1e-12, atol=1e-12)
    other = torch.cat([x[:-1], x[-1:] + 1])
    assert (layer(other)[0] - layer(x)[0])[:-1].abs().max() > 1e-4  # and every token sees all others
