"""Who decides."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from gated.backbones import ResNet
from gated.gates._validation import check_choice, check_count, check_floats, check_sizes


class LayerRouter(nn.Module):
    """s = A mean(h) + a, the mean over time or pixels of a layer's input h. N C multiply-adds.

    Large scores are large slopes for what lies below (dL/dh is A^T dL/ds), which makes the features and then the
    scores larger still: give routers a smaller learning rate than experts, or the scores grow without bound.

    Example:
        >>> LayerRouter(channels=8, num_experts=4)(torch.randn(2, 8, 32)).shape
        torch.Size([2, 4])
    """

    def __init__(self, channels: int, num_experts: int):
        super().__init__()
        check_sizes(channels=channels, num_experts=num_experts)
        self.linear = nn.Linear(channels, num_experts)

    def forward(self, h: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch experts"]:
        check_floats(f"batch {self.linear.in_features} length *space", h=h)
        return self.linear(h.flatten(2).mean(-1))


class ConstantRouter(nn.Module):
    """Always the same expert: the network becomes the plain one of width r. No parameters.

    Args:
        expert: which one.

    Raises:
        ValueError: an expert that does not exist.

    Example:
        >>> ConstantRouter(num_experts=3, expert=1)(torch.randn(2, 8, 32)).tolist()
        [[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]]
    """

    def __init__(self, num_experts: int, expert: int = 0):
        super().__init__()
        check_sizes(num_experts=num_experts)
        check_count("expert", expert, least=0)
        if expert >= num_experts:
            raise ValueError(f"expert must lie in 0..{num_experts - 1}; got {expert!r}")
        self.num_experts, self.expert = num_experts, expert

    def forward(self, h: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch experts"]:
        check_floats("batch channels *space", h=h)
        return F.one_hot(torch.full((len(h),), self.expert, device=h.device), self.num_experts).to(h.dtype)


def image_router(num_experts: int, in_channels: int = 3) -> ResNet:
    """The authors' router: the residual network of 20 layers (widths 16, 32, 64) with N outputs.

    269,202 parameters and 40.6 million multiply-adds for N = 2 and images of 3 x 32 x 32. Raises ValueError for sizes
    below 1.
    """
    check_sizes(num_experts=num_experts)
    return ResNet((3, 3, 3), (16, 32, 64), in_channels=in_channels, num_classes=num_experts)


def small_router(num_experts: int, in_channels: int, *, dims: int = 1, width: int = 8) -> nn.Sequential:
    """A router for small inputs: two convolutions of stride 2 with norm and ReLU, then a `LayerRouter`.

    Args:
        dims: 1 for signals, 2 for images.

    Raises:
        ValueError: sizes below 1, other dims.
    """
    check_sizes(num_experts=num_experts, in_channels=in_channels, dims=dims, width=width)
    check_choice("dims", dims, (1, 2))
    conv = (nn.Conv1d, nn.Conv2d)[dims - 1]
    norm = (nn.BatchNorm1d, nn.BatchNorm2d)[dims - 1]
    k = (5, 3)[dims - 1]
    return nn.Sequential(
        conv(in_channels, width, k, 2, k // 2, bias=False),
        norm(width),
        nn.ReLU(),
        conv(width, 2 * width, k, 2, k // 2, bias=False),
        norm(2 * width),
        nn.ReLU(),
        LayerRouter(2 * width, num_experts),
    )
