"""What several papers' policies learn by: generalised advantages, and the clipped gain of proximal policy optimisation.

    A_t = sum_k (discount trace)^k d_(t+k),   d_t = r_t + discount V_(t+1) - V_t        Schulman et al. 2016, eq. 16
    gain = min(rho A, clip(rho, 1 - c, 1 + c) A),   rho = pi(a) / pi_old(a)             Schulman et al. 2017, eq. 7

(arXiv 1506.02438 and 1707.06347.)
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gated.gates._validation import check_axes, check_float, check_number, check_same_shape


def advantages(
    reward: Float[Tensor, "time *batch agents"],
    value: Float[Tensor, "after *batch agents"],
    done: Bool[Tensor, " time *batch"],
    *,
    live: Bool[Tensor, " time *batch"] | None = None,
    discount: float | int = 0.99,
    trace: float | int = 0.95,
) -> Float[Tensor, "time *batch agents"]:
    """Generalised advantage estimates of each step; A + V is the return that a critic is trained on.

    Args:
        reward: of each step.
        value: V of what each step sees and, one step longer, of what stands after the last (`after` = time + 1).
        done: nothing follows this step, so that V_(t+1) and A_(t+1) count nothing. An end by the clock is none: there
            the value stands for all that was cut off.
        live: steps that count; A is 0 elsewhere. None: all.
        discount, trace: in [0, 1].

    Raises:
        ValueError: a value that is not one step longer than the reward, shapes that do not fit, flags that are not
            bool, a discount or trace out of range.

    Example:
        >>> reward, done = torch.ones(3, 1), torch.tensor([False, False, True])
        >>> advantages(reward, torch.zeros(4, 1), done, discount=1.0, trace=1.0).flatten().tolist()
        [3.0, 2.0, 1.0]
    """
    check_float("reward", reward)
    check_float("value", value)
    check_axes("time *batch agents, after *batch agents, time *batch", reward=reward, value=value, done=done)
    flags = {"done": done} if live is None else {"done": done, "live": live}
    for name, flag in flags.items():
        if flag.dtype != torch.bool or flag.shape != done.shape:
            raise ValueError(f"{name} must be bool, shape {tuple(done.shape)}; got {flag.dtype} {tuple(flag.shape)}")
    for name, number in (("discount", discount), ("trace", trace)):
        check_number(name, number, "[0, 1]")
    steps = len(reward)
    if len(value) != steps + 1:
        raise ValueError(f"value must have {steps + 1} steps, one more than the reward, got {len(value)}")
    goes_on = (~done)[..., None].to(reward.dtype)
    surprise = reward + discount * goes_on * value[1:] - value[:-1]
    counts = torch.ones_like(goes_on) if live is None else live[..., None].to(reward.dtype)
    ahead, out = torch.zeros_like(reward[0]), []
    for t in reversed(range(steps)):
        ahead = (surprise[t] + discount * trace * goes_on[t] * ahead) * counts[t]
        out.append(ahead)
    return torch.stack(out[::-1])


def clipped_gain(
    log_ratio: Float[Tensor, "*shape"], advantage: Float[Tensor, "*shape"], clip: float | int
) -> Float[Tensor, "*shape"]:
    """min(rho A, clip(rho, 1 - clip, 1 + clip) A), rho = e^log_ratio: what a step away from the old policy is paid.

    Raises:
        ValueError: shapes that differ, a clip that is negative or not finite.

    Example:
        >>> clipped_gain(torch.tensor([2.0, 0.5]).log(), torch.ones(2), clip=0.25).tolist()
        [1.25, 0.5]
    """
    check_float("log_ratio", log_ratio)
    check_same_shape("advantage", advantage, "log_ratio", log_ratio)
    check_number("clip", clip, "[0, inf)")
    ratio = log_ratio.exp()
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
