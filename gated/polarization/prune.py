"""From gates to a smaller network: how far the inputs agree, what slicing can change, and the slicing.

Let gate l be open for a share m_l of n inputs, its majority value M_l, and d_l = min(m_l, 1 - m_l) the share that
dissents. In evaluation mode an input whose gates are M everywhere has the same answer before and after slicing. So

    share of changed answers <= P(gates != M) <= sum_l d_l <= 2 sum_l m_l (1 - m_l).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from gated.backbones import ResNet, Shortcut
from gated.gates._validation import check_float, check_number
from gated.polarization.network import GatedResNet


class Audit(NamedTuple):
    """What the gates say about a sample of inputs, in evaluation mode."""

    inputs: int
    """n"""
    open_share: Tensor
    """m_l, [gates], float64."""
    majority: Tensor
    """M_l, [gates], bool; open where the inputs are split evenly."""
    dissent: Tensor
    """d_l, [gates], float64, at most 1/2."""
    path_dissent: float
    """P(gates != M): the share of inputs with at least one gate against the majority."""
    open_by_class: Tensor | None
    """m_l among the inputs of each class, [classes, gates], NaN for a class that is absent; None without labels."""

    @property
    def bound(self) -> float:
        """sum_l d_l, at most 1: no larger share of this sample's answers can change by slicing."""
        # in whole inputs, so that rounding never puts the bound below what it bounds
        return min(1.0, int((self.dissent * self.inputs).round().sum()) / self.inputs)

    @property
    def unseen(self) -> float | None:
        """Where no input dissents: the largest rate of dissent that n inputs would miss with 5 %, at most 3/n."""
        return None if self.path_dissent else 1 - 0.05 ** (1 / self.inputs)


class Pruned(NamedTuple):
    """The plain network, and the audit that it rests on."""

    net: ResNet
    audit: Audit


class Shift(nn.Module):
    """y = ReLU(S(x) + c): what is left of a branch without inner channels, whose outer norm still says c = BN(0).

    Raises:
        ValueError: a constant that is not one number a channel.
    """

    def __init__(self, shortcut: Shortcut, constant: Float[Tensor, " channels"]) -> None:
        super().__init__()
        check_float("constant", constant)
        if constant.ndim != 1:
            raise ValueError(f"constant must have shape (channels,), got {tuple(constant.shape)}")
        self.shortcut, self.constant = shortcut, nn.Parameter(constant)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels_out h w"]:
        return F.relu(self.shortcut(x) + self.constant[:, None, None])


@torch.no_grad()
def audit(model: GatedResNet, loader: Iterable[Any]) -> Audit:
    """Asks the gates about every input of `loader`.

    Args:
        model: judged in evaluation mode, and left in the mode it was in.
        loader: batches of images, or of (images, labels). Held-out inputs: those of the training say less, and sorted
            batches nothing.

    Raises:
        ValueError: an empty loader, images that do not fit, or answers that are not finite. A shut block of diverged
            weights gives 0 * inf = NaN before slicing, and would be cut away without a word.
    """
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    seen, labels = [], []
    try:
        for batch in loader:
            x, y = (batch, None) if isinstance(batch, Tensor) else (batch[0], batch[1] if len(batch) > 1 else None)
            if not len(x):
                continue
            output = model(x)
            if not output.logits.isfinite().all():
                raise ValueError("model must give finite answers for the loader's inputs, got NaN or inf")
            seen.append(output.gates > 0.5)
            if y is not None:
                labels.append(y)
    finally:
        for m, mode in modes:
            m.training = mode
    if not seen:
        raise ValueError("loader must yield at least one input, got none")
    gates = torch.cat(seen)
    n, opened = len(gates), gates.sum(0)
    majority = 2 * opened >= n
    by_class = None
    if labels:
        y = torch.cat(labels)
        number = output.logits.shape[1]
        by_class = torch.stack([gates[y == c].double().mean(0) for c in range(number)])
    against = int((gates != majority).any(1).sum())
    return Audit(
        n, opened.double() / n, majority, torch.minimum(opened, n - opened).double() / n, against / n, by_class
    )


def prune(model: GatedResNet, loader: Iterable[Any], *, max_dissent: float | int = 0.0) -> Pruned:
    """The network without gates and without what the majority shut, as a copy in evaluation mode.

    Where all inputs of `loader` agree, it answers them as `model` does in evaluation mode: bit for bit with a gate a
    block, up to the order of summation with channel groups. Where they do not, at most `bound` of the answers change,
    and that has to be allowed. If everything is shut, stem, shortcuts and head are left.

    Args:
        model: gates and network. loader: as in `audit`.
        max_dissent: largest `Audit.bound` that is accepted, in [0, 1]; 0 asks for consensus.

    Raises:
        ValueError: more dissent than accepted, naming the gates; max_dissent out of range; and as `audit`.
    """
    check_number("max_dissent", max_dissent, "[0, 1]")
    report = audit(model, loader)
    if report.bound > max_dissent:
        split = {int(i): round(float(report.dissent[i]), 4) for i in report.dissent.nonzero()[:, 0]}
        raise ValueError(
            f"model has no consensus: up to {report.bound:.4g} of the answers could change, max_dissent={max_dissent}. "
            f"Dissent by gate: {split}. Train further, freeze the gates, or allow more"
        )
    cut = slice_blocks if model.groups is None else slice_channels
    pattern = report.majority.view(len(model.gates), -1).tolist()
    net = cut(model.net, [row[0] for row in pattern] if model.groups is None else pattern)
    return Pruned(net.eval(), report)


def slice_blocks(net: ResNet, keep: Sequence[bool]) -> ResNet:
    """A copy of `net` with the blocks l where keep[l]; of a block that changes the shape, the shortcut stays.

    Every block's input is >= 0 (a ReLU made it), so ReLU(S(x)) = S(x). Raises ValueError unless `keep` has one entry
    for each block.
    """
    _check_keep(net, keep)
    sliced = copy.deepcopy(net)
    blocks: list[nn.Module] = []
    given: list[Any] = list(sliced.blocks)
    for block, kept in zip(given, keep, strict=True):
        short = block if isinstance(block, Shortcut) else block.shortcut
        if kept:
            blocks.append(block)
        elif short.stride > 1 or short.out_channels != short.in_channels:
            blocks.append(short)
    sliced.blocks = nn.ModuleList(blocks)
    return sliced


def slice_channels(net: ResNet, keep: Sequence[Sequence[bool]]) -> ResNet:
    """A copy of `net` in which block l has only those inner channels whose group is kept.

    Args:
        keep: for each block, a truth value for each of equal groups of neighbouring channels. A block that keeps none
            becomes a `Shift` by the constant that its outer norm has in evaluation mode.

    Raises:
        ValueError: another number of rows than blocks, or groups that do not divide a block's inner channels.
    """
    _check_keep(net, keep)
    sliced = copy.deepcopy(net)
    blocks: list[Any] = list(sliced.blocks)
    for i, (block, groups) in enumerate(zip(blocks, keep, strict=True)):
        inner = block.branch[0].out_channels if hasattr(block, "branch") else 0
        if not inner or not groups or inner % len(groups):
            raise ValueError(f"keep[{i}] must have groups that divide {inner} inner channels, got {len(groups)} groups")
        conv, norm, _, conv2, norm2 = block.branch
        chosen = torch.tensor(groups, device=conv.weight.device).repeat_interleave(inner // len(groups)).nonzero()[:, 0]
        if not len(chosen):
            scale = norm2.weight / (norm2.running_var + norm2.eps).sqrt()
            sliced.blocks[i] = Shift(block.shortcut, (norm2.bias - norm2.running_mean * scale).detach())
            continue
        conv.weight = nn.Parameter(conv.weight.detach()[chosen])
        conv2.weight = nn.Parameter(conv2.weight.detach()[:, chosen])
        norm.weight, norm.bias = (nn.Parameter(p.detach()[chosen]) for p in (norm.weight, norm.bias))
        norm.running_mean, norm.running_var = norm.running_mean[chosen], norm.running_var[chosen]
        conv.out_channels = conv2.in_channels = norm.num_features = len(chosen)
    return sliced


def _check_keep(net: ResNet, keep: Sequence[Any]) -> None:
    if len(keep) != len(net.blocks):
        raise ValueError(f"keep must have one entry for each of {len(net.blocks)} blocks, got {len(keep)}")
