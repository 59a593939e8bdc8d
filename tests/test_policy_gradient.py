"""Advantages against the sums they stand for, and the clipped gain against its gradient."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gated.policy_gradient import advantages, clipped_gain

F64 = torch.float64


@given(st.integers(0, 2**31), st.floats(0, 1), st.floats(0, 1))
def test_advantages_are_the_sums_they_stand_for(seed, discount, trace):
    """Episodes of random ends: one where nothing follows, or one by the clock, where the value stands for the rest."""
    g = torch.Generator().manual_seed(seed)
    reward, value = torch.randn(6, 5, 2, generator=g, dtype=F64), torch.randn(7, 5, 2, generator=g, dtype=F64)
    ends, arrives = torch.randint(1, 7, (5,), generator=g), torch.rand(5, generator=g) < 0.5
    step = torch.arange(6)[:, None]
    found = advantages(reward, value, (step == ends - 1) & arrives, live=step < ends, discount=discount, trace=trace)
    for e in range(5):
        for t in range(6):
            total = torch.zeros(2, dtype=F64)
            for k in range(t, int(ends[e])):
                after = 0 if arrives[e] and k == ends[e] - 1 else discount * value[k + 1, e]
                total += (discount * trace) ** (k - t) * (reward[k, e] + after - value[k, e])
            assert torch.allclose(found[t, e], total)


def test_nothing_flows_back_over_an_end():
    g = torch.Generator().manual_seed(0)
    reward, value = torch.randn(4, 2, 3, 2, generator=g), torch.randn(5, 2, 3, 2, generator=g)
    done = torch.zeros(4, 2, 3, dtype=torch.bool)
    done[1, 0, 0] = True
    before = advantages(reward, value, done)
    changed = reward.clone(), value.clone()
    for x in changed:
        x[2:, 0, 0] += 1
    after = advantages(*changed, done)
    assert torch.equal(before[:2, 0, 0], after[:2, 0, 0]) and not torch.equal(before[2:, 0, 0], after[2:, 0, 0])


def test_without_discount_and_values_it_is_the_sum_that_is_to_come():
    reward = torch.randn(4, 2, 3, dtype=F64)
    sums = advantages(reward, torch.zeros(5, 2, 3, dtype=F64), torch.zeros(4, 2, dtype=torch.bool), discount=1, trace=1)
    assert torch.allclose(sums, reward.flip(0).cumsum(0).flip(0))


def test_with_trace_one_it_is_return_and_bootstrap_less_value():
    reward, value = torch.ones(3, 1, 1, dtype=F64), torch.tensor([5.0, 6, 7, 8], dtype=F64).reshape(4, 1, 1)
    done = torch.zeros(3, 1, dtype=torch.bool)
    assert advantages(reward, value, done, discount=0.5, trace=1)[0].item() == 1 + 0.5 + 0.25 + 0.125 * 8 - 5
    done[2] = True
    assert advantages(reward, value, done, discount=0.5, trace=1)[0].item() == 1.75 - 5


@given(st.floats(-2, 2), st.floats(-3, 3), st.floats(0.01, 0.5))
def test_the_clipped_gain_pays_no_step_beyond_the_clip(log_ratio, advantage, clip):
    x = torch.tensor(log_ratio, dtype=F64, requires_grad=True)
    gain = clipped_gain(x, torch.tensor(advantage, dtype=F64), clip)
    gain.backward()
    ratio = torch.tensor(log_ratio, dtype=F64).exp().item()
    far = ratio > 1 + clip if advantage > 0 else ratio < 1 - clip
    assert gain.item() <= ratio * advantage + 1e-12
    assert x.grad.item() == (0 if far else pytest.approx(ratio * advantage))
