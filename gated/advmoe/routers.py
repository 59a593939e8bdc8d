"""Who decides, and the norm behind the decision."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from gated.advmoe.conv import permute
from gated.backbones import ResNet
from gated.gates._validation import check_sizes

Norm = Literal["shared", "expert"]


class LayerRouter(nn.Module):
    """s = A mean(h) + a, the mean over time or pixels of a layer's input h. N C multiply-adds.

    With a `cap` s = cap tanh((A mean(h) + a) / cap). Large scores are large slopes for what lies below (dL/dh is
    A^T dL/ds), which makes the features and then the scores larger still: without a cap or a small learning rate the
    scores can grow without bound. `detach` cuts that loop: in training mode no gradient passes to h, so the layers
    below get the true gradient of the network with its routes held. In evaluation mode, where attacks run, it passes.
    """

    def __init__(self, channels: int, num_experts: int, cap: float | int | None = None, *, detach: bool = False):
        super().__init__()
        check_sizes(channels=channels, num_experts=num_experts)
        if cap is not None and not 0 < cap < float("inf"):
            raise ValueError(f"cap must be positive and finite, or None; got {cap!r}")
        self.linear, self.cap, self.detach = nn.Linear(channels, num_experts), cap, detach

    def forward(self, h: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch experts"]:
        h = h.detach() if self.detach and self.training else h
        s = self.linear(h.flatten(2).mean(-1))
        return s if self.cap is None else self.cap * (s / self.cap).tanh()


class ConstantRouter(nn.Module):
    """Always the same expert: the network becomes the plain one of width r. No parameters."""

    def __init__(self, num_experts: int, expert: int = 0):
        super().__init__()
        check_sizes(num_experts=num_experts)
        if not 0 <= expert < num_experts:
            raise ValueError(f"expert must lie in 0..{num_experts - 1}; got {expert!r}")
        self.num_experts, self.expert = num_experts, expert

    def forward(self, h: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch experts"]:
        return F.one_hot(torch.full((len(h),), self.expert, device=h.device), self.num_experts).to(h.dtype)


def image_router(num_experts: int, in_channels: int = 3) -> ResNet:
    """The authors' router: the residual network of 20 layers (widths 16, 32, 64) with N outputs.

    269,202 parameters and 40.6 million multiply-adds for N = 2 and images of 3 x 32 x 32.
    """
    return ResNet((3, 3, 3), (16, 32, 64), in_channels=in_channels, num_classes=num_experts)


def small_router(
    num_experts: int, in_channels: int, *, dims: int = 1, width: int = 8, cap: float | int | None = None
) -> nn.Sequential:
    """A router for small inputs: two convolutions of stride 2 with norm and ReLU, then a `LayerRouter`."""
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
        LayerRouter(2 * width, num_experts, cap),
    )


class RoutedNorm(nn.Module):
    """Batch norm behind an expert convolution: one for all experts (as the authors have it), or one for each.

    A shared norm pools the experts' outputs: its running statistics are right only while the loads stay what they
    were in training.
    """

    def __init__(self, channels: int, num_experts: int, *, dims: int, kind: Norm):
        super().__init__()
        norm = (nn.BatchNorm1d, nn.BatchNorm2d)[dims - 1]
        self.norms = nn.ModuleList(norm(channels) for _ in range(num_experts if kind == "expert" else 1))

    def forward(
        self, y: Float[Tensor, "batch channels *space"], routes: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch channels *space"]:
        if len(self.norms) == 1:
            return self.norms[0](y)
        order = routes.argsort(stable=True)
        back = order.argsort()
        parts = permute(y, order, back).split(torch.bincount(routes, minlength=len(self.norms)).tolist())
        done = [norm(part) for norm, part in zip(self.norms, parts, strict=True) if len(part)]
        return permute(torch.cat(done), back, order) if done else y
