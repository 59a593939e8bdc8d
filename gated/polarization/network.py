"""A residual network whose branches, or groups of channels, are switched by binary gates while it trains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from gated.backbones import ResidualBlock, ResNet
from gated.gates import binary_gate, gumbel_sigmoid_gate
from gated.gates._validation import check_choice, check_float, check_floats, check_number, check_sizes

Source = Literal["input", "free"]


class GatedOutput(NamedTuple):
    """What one call computed. The gates of a block stand side by side, block after block."""

    logits: Tensor
    """The network's answer, [batch, classes]."""
    gates: Tensor
    """g in {0, 1}, exactly, [batch, gates]; backward the slope of the estimator."""
    probability: Tensor
    """p = sigmoid(s), [batch, gates], without noise."""


class InputGate(nn.Module):
    """s = W_2 ReLU(W_1 GAP(x) + b_1) + b_2: a logit for each gate and input. GAP is the mean over pixels.

    W_2 starts near 0, so that all inputs agree, and b_2 at `bias`: 1.9 opens with p = 0.87.

    Example:
        >>> InputGate(channels=8, gates=3)(torch.randn(2, 8, 4, 4)).shape
        torch.Size([2, 3])
    """

    def __init__(self, channels: int, gates: int, *, hidden: int = 16, bias: float | int = 1.9) -> None:
        super().__init__()
        check_sizes(channels=channels, gates=gates, hidden=hidden)
        check_number("bias", bias)
        self.squeeze, self.decide = nn.Linear(channels, hidden), nn.Linear(hidden, gates)
        nn.init.normal_(self.decide.weight, std=1e-3)
        nn.init.constant_(self.decide.bias, bias)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch gates"]:
        check_floats(f"batch {self.squeeze.in_features} height width", x=x)
        return self.decide(F.relu(self.squeeze(x.mean((2, 3)))))


class FreeGate(nn.Module):
    """s, a parameter for each gate, whatever the input: what an `InputGate` has to be compared with.

    Example:
        >>> FreeGate(gates=3)(torch.randn(2, 8, 4, 4)).shape
        torch.Size([2, 3])
    """

    def __init__(self, gates: int, *, bias: float | int = 1.9) -> None:
        super().__init__()
        check_sizes(gates=gates)
        check_number("bias", bias)
        self.logits = nn.Parameter(torch.full((gates,), float(bias)))

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch gates"]:
        check_floats("batch channels height width", x=x)
        return self.logits.expand(len(x), -1)


class GatedResNet(nn.Module):
    """x_(l+1) = ReLU(S_l(x_l) + g_l(x_l) F_l(x_l)), g_l in {0, 1} for each block l and input.

    With `groups` the gates switch groups of the branch's inner channels instead, after norm and ReLU: before the norm a
    shut channel would still say a constant.

    Arguments:
        net: the network whose blocks are gated. Its modules are used, not copied.
        groups: None for one gate a block; else the number of equal groups, each of neighbouring channels.
        source: "input" for an `InputGate` in each block, "free" for a `FreeGate`.
        hidden, bias: of the gates.

    The shortcut always flows, so all gates may be shut: then the answer comes from stem, shortcuts and head, and for
    channel groups from the constants of the outer norms. A shut block gets no gradient, yet is computed in training;
    what the gate learns from is what the branch would have added. `freeze` ends that.

    Raises ValueError for settings that do not fit.

    Example:
        >>> from gated.backbones import ResNet
        >>> model = GatedResNet(ResNet((1, 1), (8, 16), in_channels=3, num_classes=10))
        >>> answer = model(torch.randn(4, 3, 16, 16), generator=torch.Generator().manual_seed(0))
        >>> answer.logits.shape, answer.gates.shape
        (torch.Size([4, 10]), torch.Size([4, 2]))
    """

    frozen: Tensor | None

    def __init__(
        self,
        net: ResNet,
        *,
        groups: int | None = None,
        source: Source = "input",
        hidden: int = 16,
        bias: float | int = 1.9,
    ) -> None:
        super().__init__()
        check_choice("source", source, get_args(Source))
        check_sizes(hidden=hidden)
        if groups is not None:
            check_sizes(groups=groups)
        blocks: list[Any] = list(net.blocks)
        if not blocks or not all(isinstance(block, ResidualBlock) for block in blocks):
            raise ValueError("net must have residual blocks, and nothing else in between; got " + str(net.blocks))
        widths = [block.branch[0].out_channels for block in blocks]
        if groups is not None and (groups < 1 or any(width % groups for width in widths)):
            raise ValueError(f"groups must be at least 1 and divide the widths of all blocks, {widths}; got {groups}")
        self.net, self.groups = net, groups
        self.gates_per_block = groups or 1
        self.gates = nn.ModuleList(
            InputGate(block.shortcut.in_channels, self.gates_per_block, hidden=hidden, bias=bias)
            if source == "input"
            else FreeGate(self.gates_per_block, bias=bias)
            for block in blocks
        )
        self.register_buffer("frozen", None, persistent=False)

    @property
    def num_gates(self) -> int:
        return len(self.gates) * self.gates_per_block

    def freeze(self, pattern: Tensor | Sequence[bool]) -> None:
        """From now on gate l is pattern[l] for all inputs, and a shut block is not computed.

        The gates' modules are no longer asked. Parameters stay the same objects, so an optimiser goes on with its
        state; with gradients set to None it leaves shut blocks alone. Frozen channel groups are multiplied by 0 and 1,
        which saves nothing before `prune`. The pattern is not part of the state dict.

        Raises ValueError unless the pattern has one truth value for each gate.
        """
        values = torch.as_tensor(pattern, device=next(self.net.parameters()).device)
        if values.shape != (self.num_gates,) or values.dtype != torch.bool:
            raise ValueError(
                f"pattern must hold one bool for each of {self.num_gates} gates, got {values.dtype} "
                f"{tuple(values.shape)}"
            )
        self.frozen = values

    def forward(
        self,
        x: Float[Tensor, "batch channels height width"],
        generator: torch.Generator | None = None,
        temperature: float | int = 1.0,
    ) -> GatedOutput:
        """Answer, gates and their probabilities.

        In training with a generator the gates are drawn: Gumbel-sigmoid at `temperature`, 1[y > 1/2] forward and
        slope y (1 - y) / T backward. Without one, and always in evaluation, g = 1[p > 1/2], slope p (1 - p).

        Raises ValueError for images with another number of channels; any height and width will do.
        """
        check_images("x", x, self.net.in_channels)
        hard: list[Tensor] = []
        soft: list[Tensor] = []
        x = self.net.stem(x)
        constant = None if self.frozen is None else self.frozen.split(self.gates_per_block)
        opened = None if self.frozen is None else self.frozen.tolist()  # read once, not once a block
        for i, (block, gate) in enumerate(self._pairs()):
            if constant is not None and opened is not None:
                g = p = constant[i].to(x.dtype).expand(len(x), -1)
                x = block.shortcut(x) if self.groups is None and not opened[i] else self._block(block, x, g)
            else:
                s = gate(x)
                g, p = self._decide(s, generator, temperature), s.sigmoid()
                x = self._block(block, x, g)
            hard.append(g)
            soft.append(p)
        return GatedOutput(self.net.head(x), torch.cat(hard, dim=1), torch.cat(soft, dim=1))

    @torch.no_grad()
    def skip(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """The answer of `forward` in evaluation, where each branch is computed for those inputs alone that open it.

        Gates are read on the host, once a block: what is saved in arithmetic is paid for in waiting.
        Raises ValueError in training mode, for gates of channel groups, and as `forward`.
        """
        if self.training or self.groups is not None:
            raise ValueError("skip needs evaluation mode and one gate a block (groups=None)")
        check_images("x", x, self.net.in_channels)
        x = self.net.stem(x)
        for i, (block, gate) in enumerate(self._pairs()):
            g = self.frozen[i].expand(len(x)) if self.frozen is not None else binary_gate(gate(x))[:, 0] > 0
            chosen = g.nonzero()[:, 0]
            y = block.shortcut(x)
            if len(chosen) == len(x):
                y = y + block.branch(x)
            elif len(chosen):
                y = y.index_add(0, chosen, block.branch(x[chosen]))
            x = F.relu(y)
        return self.net.head(x)

    def _decide(self, s: Tensor, generator: torch.Generator | None, temperature: float | int) -> Tensor:
        if self.training and generator is not None:
            return gumbel_sigmoid_gate(s, temperature, hard=True, generator=generator)
        return binary_gate(s)

    def _pairs(self) -> Iterator[tuple[Any, Any]]:
        return zip(self.net.blocks, self.gates, strict=True)

    def _block(self, block: Any, x: Tensor, g: Tensor) -> Tensor:
        if self.groups is None:
            return F.relu(block.shortcut(x) + g[..., None, None] * block.branch(x))
        inner = block.branch[:3](x)
        mask = g.repeat_interleave(inner.shape[1] // self.groups, dim=1)
        return F.relu(block.shortcut(x) + block.branch[3:](mask[..., None, None] * inner))


def check_images(name: str, x: Tensor, in_channels: int) -> None:
    check_float(name, x)
    if x.ndim != 4 or x.shape[1] != in_channels or 0 in x.shape:
        raise ValueError(f"{name} must have shape [batch, {in_channels}, height, width], got {tuple(x.shape)}")
