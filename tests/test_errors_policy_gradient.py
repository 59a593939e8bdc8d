"""Bad input of the policy gradient's parts."""

import pytest
import torch

from gated.policy_gradient import advantages

DONE = torch.zeros(4, 2, dtype=torch.bool)


def test_a_value_that_ends_with_the_reward():
    with pytest.raises(ValueError, match="value must have 5 steps, one more than the reward, got 4"):
        advantages(torch.zeros(4, 2, 3), torch.zeros(4, 2, 3), DONE)


@pytest.mark.parametrize("name", ["discount", "trace"])
@pytest.mark.parametrize("number", [-0.1, 1.5, float("nan")])
def test_a_weight_out_of_range(name, number):
    with pytest.raises(ValueError, match=rf"{name} must be a number in \[0, 1\]"):
        advantages(torch.zeros(4, 2, 3), torch.zeros(5, 2, 3), DONE, **{name: number})
