"""What a gate switches, in closed form: multiply-adds and parameters of each branch, of the rest, and of the gates."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gated.backbones import ResidualBlock, ResNet
from gated.gates._validation import check_sizes
from gated.polarization.network import GatedResNet


class Costs(NamedTuple):
    """Of a `ResNet`, for one image. Sums over blocks plus the fixed part are the whole network's.

    Args:
        fixed_parameters, parameters: the same of parameters.
    """

    fixed_macs: int
    """Stem and head."""
    macs: tuple[int, ...]
    """Each block's branch; 0 where a block has none."""
    fixed_parameters: int
    parameters: tuple[int, ...]

    @property
    def total_macs(self) -> int:
        return self.fixed_macs + sum(self.macs)

    @property
    def total_parameters(self) -> int:
        return self.fixed_parameters + sum(self.parameters)

    def per_gate(self, model: GatedResNet) -> Tensor:
        """Multiply-adds behind each gate, [gates]: a branch's are shared evenly by its groups, which is exact."""
        each = torch.tensor(self.macs, dtype=torch.get_default_dtype()) / model.gates_per_block
        return each.repeat_interleave(model.gates_per_block)


def costs(net: ResNet, height: int, width: int) -> Costs:
    """Multiply-adds (convolutions and classifier) and parameters (norms too) of a plain or pruned network.

    Args:
        net: any `ResNet`, also one that `prune` returned.
        height, width: of the images, in pixels.

    Raises:
        ValueError: a size below 1.

    Example:
        >>> from gated.backbones import ResNet
        >>> c = costs(ResNet((1,), (8,), in_channels=3, num_classes=10), 16, 16)
        >>> c.total_macs == c.fixed_macs + sum(c.macs)
        True
    """
    check_sizes(height=height, width=width)
    stem: Any = net.stem[0]
    classifier: Any = net.head[-1]
    blocks: list[Any] = list(net.blocks)
    fixed = stem.weight.numel() * height * width + classifier.weight.numel()
    macs = []
    for block in blocks:
        stride = getattr(block, "shortcut", block).stride
        height, width = -(-height // stride), -(-width // stride)
        convs = [m for m in block.modules() if isinstance(m, nn.Conv2d)] if isinstance(block, ResidualBlock) else []
        macs.append(sum(m.weight.numel() for m in convs) * height * width)
    sizes = tuple(sum(p.numel() for p in block.parameters()) for block in net.blocks)
    return Costs(fixed, tuple(macs), sum(p.numel() for p in net.parameters()) - sum(sizes), sizes)


def gate_macs(model: GatedResNet) -> int:
    """Multiply-adds of all gates for one image: C hidden + hidden G for an `InputGate` of C channels and G gates."""
    return sum(m.weight.numel() for m in model.gates.modules() if isinstance(m, nn.Linear))
