"""Exits on a backbone: any module whose blocks run one after the other, reached by hooks, with real early stop.

A forward hook on a block may replace what the block hands on. That is all that early exit needs: the hook asks the
exit who leaves, writes their answers down, and hands on the rows that stay. The later blocks then run on a smaller
batch; after the last one the rows go back to their places, and the backbone's code never knows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from gated.backbones import macs
from gated.gates._validation import check_axes, check_float, check_int, check_sizes
from gated.jeidnn._validation import check_number
from gated.jeidnn.policies import GatePolicy, Policy, UncertaintyGate

Visit = Callable[[int, Tensor], Tensor | None]


class _Stop(Exception):
    """Leaves the backbone's forward once no sample needs the rest of it."""


@dataclass(frozen=True)
class Features:
    """What a frozen backbone says about a set of samples, computed once: every head and gate is trained from it."""

    z: list[Tensor]
    """Features [batch, dim] that each exit but the last reads."""
    last: Float[Tensor, "batch classes"]
    """Logits of the backbone's own head."""
    y: Int64[Tensor, "batch"]

    def __post_init__(self) -> None:
        check_float("last", self.last)
        check_int("y", self.y)
        check_axes("batch classes, batch", last=self.last, y=self.y)
        for z in self.z:
            check_float("z", z)
            check_axes("batch dim, batch *rest", z=z, last=self.last)

    def take(self, rows: slice | Tensor) -> "Features":
        """Some of the samples: a slice, indices or a mask."""
        return type(self)([z[rows] for z in self.z], self.last[rows], self.y[rows])

    def __len__(self) -> int:
        return len(self.y)


class Answer(NamedTuple):
    """Logits of the exit that each sample took, which one that was, and the rows that each block ran on."""

    logits: Float[Tensor, "batch classes"]
    exit: Int64[Tensor, "batch"]
    rows: list[int]


def mean_over_pixels(z: Tensor) -> Tensor:
    """[batch, channels, height, width] to [batch, channels]; vectors stay as they are."""
    return z.mean((2, 3)) if z.ndim == 4 else z


class ExitNetwork(nn.Module):
    """A backbone with L - 1 exits between its blocks: a linear classifier and a gate each. Its own head is exit L.

    Arguments:
        backbone: any module. One call runs `blocks` once each, in order, each handing one tensor with the batch
            first to the next. Rows must not depend on each other.
        example: one input batch of the backbone (one row will do): from it come the exits' widths and the costs.
        blocks: the modules after which an exit may stand; default `backbone.blocks`. After the last one stands no
            exit but the backbone's own head.
        summary: from a block's output to features [batch, dim]; default `backbone.summary` if there is one (for a
            transformer the normalised class token: one final norm for all exits), else the mean over pixels.
        gate: makes the gate of an exit from the width of its features; default `UncertaintyGate`.
        frozen: the backbone has no gradients and stays in evaluation mode, so that dropout and batch statistics are
            the same when gates are taught as when they decide. False trains it along with the exits.

    `costs` [exits] holds c_l: multiply-adds until a sample has left at l, all exits and gates on the way included,
    over those of all exits run, the backbone's end included: 0 < c_1 < ... < c_L = 1. `macs` [exits] holds them uncut.

    Raises ValueError if the blocks do not run once each in order, or a summary is no [batch, dim].

    Source: Regol, Chataoui & Coates 2024, arXiv 2310.09163.

    Example:
        >>> network = ExitNetwork(ResidualMLP(4, 3, dim=8, depth=3), torch.randn(1, 4))
        >>> network.exits, network(torch.randn(2, 4)).shape
        (3, torch.Size([2, 3, 3]))
    """

    costs: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        example: Tensor,
        *,
        blocks: Sequence[nn.Module] | None = None,
        summary: Callable[[Tensor], Tensor] | None = None,
        gate: Callable[[int], nn.Module] | None = None,
        frozen: bool = True,
    ) -> None:
        super().__init__()
        found = list(getattr(backbone, "blocks", [])) if blocks is None else list(blocks)
        if len(found) < 2:
            raise ValueError(f"blocks, or those of backbone, must be at least 2, an exit between two, got {len(found)}")
        if len(set(map(id, found))) < len(found):
            raise ValueError("blocks must be different modules; one stands there twice")
        self.backbone, self.frozen = backbone, frozen
        self._blocks = tuple(found)  # a tuple, because the backbone owns them
        own: Callable[[Tensor], Tensor] = getattr(backbone, "summary", mean_over_pixels)
        self._summary = own if summary is None else summary
        if frozen:
            backbone.requires_grad_(False)
        self.train()
        mode = backbone.training
        backbone.eval()
        widths: list[int] = []
        with torch.no_grad():
            last = self._run(example, lambda l, z: widths.append(self.summary(z).shape[1]))
        widths.pop()  # after the last block stands the backbone's own head
        backbone.train(mode)
        if last.ndim != 2 or last.shape[1] < 2:
            raise ValueError(f"backbone must return logits [batch, classes >= 2], got {tuple(last.shape)}")
        self.num_classes = last.shape[1]
        gate = gate or (lambda width: UncertaintyGate())
        self.heads = nn.ModuleList(nn.Linear(width, self.num_classes) for width in widths).to(last)
        self.gates = nn.ModuleList(gate(width) for width in widths).to(last)
        one = example[:1]
        self.macs = [macs(_Until(self, l), one) for l in range(self.exits)]
        self.register_buffer("costs", (torch.tensor(self.macs).double() / self.macs[-1]).to(last.device))

    @property
    def exits(self) -> int:
        return len(self._blocks)

    def train(self, mode: bool = True) -> "ExitNetwork":
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def summary(self, z: Tensor) -> Float[Tensor, "batch dim"]:
        """What an exit reads of a block's output z."""
        out = self._summary(z)
        if out.ndim != 2 or len(out) != len(z):
            raise ValueError(
                f"summary must give [batch, dim] for a block's output {tuple(z.shape)}, got {tuple(out.shape)}"
            )
        return out

    def _run(self, x: Tensor, visit: Visit) -> Tensor:
        """The backbone's output, with `visit(l, z)` after each block; what it returns, if anything, goes on instead."""
        seen = 0

        def hook(module: nn.Module, inputs: tuple[Any, ...], z: Tensor) -> Tensor | None:
            nonlocal seen
            if self._blocks[seen % self.exits] is not module or seen >= self.exits:
                raise ValueError("blocks must run once each, in the order given, in one call of the backbone")
            if not isinstance(z, Tensor):
                raise ValueError(f"blocks must return one tensor, got {type(z).__name__}")
            seen += 1
            return visit(seen - 1, z)

        handles = [block.register_forward_hook(hook) for block in self._blocks]
        try:
            out = self.backbone(x)
        finally:
            for handle in handles:
                handle.remove()
        if seen != self.exits:
            raise ValueError(f"blocks must run once each, in the order given; {seen} of {self.exits} ran")
        return out

    def features(self, x: Tensor, y: Int64[Tensor, "batch"]) -> Features:
        """What the heads and gates read of the samples x. Without gradients if the backbone is frozen."""
        z: list[Tensor] = []
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            last = self._run(x, lambda l, out: z.append(self.summary(out)) if l < self.exits - 1 else None)
        if len(last) != len(y):
            raise ValueError(f"y must have one class for each of the {len(last)} rows of x, got {len(y)}")
        return Features(z, last, y)

    def exit_logits(self, features: Features) -> Float[Tensor, "batch exits classes"]:
        """Logits of all exits, the backbone's head last."""
        answers = [head(z) for head, z in zip(self.heads, features.z, strict=True)]
        return torch.stack([*answers, features.last], 1)

    def gate_logits(
        self, features: Features, logits: Float[Tensor, "batch exits classes"]
    ) -> Float[Tensor, "batch gates"]:
        """s_l of all gates, g = sigmoid(s), from the exits' `logits`."""
        return torch.stack([gate(logits[:, l], features.z[l]) for l, gate in enumerate(self.gates)], 1)

    def forward(self, x: Tensor) -> Float[Tensor, "batch exits classes"]:
        """All exits of all samples."""
        check_float("x", x)
        return self.exit_logits(self.features(x, torch.zeros(len(x), dtype=torch.int64, device=x.device)))

    @torch.no_grad()
    def decide(self, x: Tensor, policy: Policy | None = None, *, shrink: float | int = 1) -> Answer:
        """Runs x until everybody has left. Samples that leave are taken out of the batch, so later blocks cost less.

        Args:
            x: a batch for the backbone.
            policy: who leaves; default the learned gates with the hard rule, `GatePolicy(self.gates)`.
            shrink: in [0, 1]. The batch is compacted when fewer than this share of its rows are still live: 1 as
                soon as anybody leaves, 1/2 lazily, 0 never: that is masked evaluation, which runs every block on
                every row. The answers are the same but for the rounding of products of another size.

        Raises:
            ValueError: shrink outside [0, 1], x empty, or the backbone mixes rows.
        """
        check_number("shrink", shrink, "[0, 1]")
        if not len(x):
            raise ValueError("x must hold at least one sample, got none")
        policy = policy or GatePolicy(self.gates)
        taken = torch.empty(len(x), dtype=torch.int64, device=x.device)
        who = torch.arange(len(x), device=x.device)  # rows of x that have not left
        at: Tensor | None = None  # their places in the batch that runs; None if there are no others in it
        logits: Tensor | None = None
        state: Tensor | None = None
        ran: list[int] = []

        def visit(l: int, out: Tensor) -> Tensor | None:
            nonlocal who, at, logits, state
            ran.append(len(out))
            if l == self.exits - 1:
                # The backbone's end gets as many rows as it gave its first block: it may rely on that.
                if len(out) == len(x):
                    return out
                live = out if at is None else out.index_select(0, at)
                return out.new_zeros(len(x), *out.shape[1:]).index_copy_(0, who, live)
            z = self.summary(out)
            answer = self.heads[l](z)
            if state is None:
                state = policy.start(len(x), answer)
                logits = answer.new_empty(len(x), self.num_classes)
            go, state = policy(l, answer, z, state)
            if at is not None:
                go, answer = go.index_select(0, at), answer.index_select(0, at)
            stay = (~go).nonzero().squeeze(1)
            if len(stay) == len(who):
                return None
            # All that are here are written down: who stays is answered again later.
            taken.index_fill_(0, who, l)
            logits.index_copy_(0, who, answer)  # type: ignore[union-attr]
            if shrink and not len(stay):
                raise _Stop
            who = who.index_select(0, stay)
            at = stay if at is None else at.index_select(0, stay)
            if len(at) >= shrink * len(out):
                return None
            state, out, at = state.index_select(0, at), out.index_select(0, at), None
            return out

        training = self.training
        if training:
            self.eval()
        try:
            out = self._run(x, visit)
        except _Stop:
            return Answer(logits, taken, ran)  # type: ignore[arg-type]
        finally:
            if training:
                self.train()
        if len(out) != len(x):
            raise ValueError(f"backbone must give one answer for each of {len(x)} rows, got {len(out)}")
        taken.index_fill_(0, who, self.exits - 1)
        logits.index_copy_(0, who, out.index_select(0, who))  # type: ignore[union-attr]
        return Answer(logits, taken, ran)  # type: ignore[arg-type]


class _Until(nn.Module):
    """The work until exit l is taken, for the counter: blocks, and all heads and gates on the way."""

    def __init__(self, network: ExitNetwork, l: int) -> None:
        super().__init__()
        self.network, self.l = network, l

    def forward(self, x: Tensor) -> None:
        network = self.network

        def visit(l: int, out: Tensor) -> None:
            if l == network.exits - 1:
                return
            z = network.summary(out)
            network.gates[l](network.heads[l](z), z)
            if l == self.l:
                raise _Stop

        try:
            network._run(x, visit)
        except _Stop:
            return


def transformer_exit_macs(tokens: int, dim: int, classes: int, mlp_ratio: int = 2) -> int:
    """Multiply-adds from one exit of a vision transformer to the next: N (4 + 2 r) d^2 + 2 N^2 d + d K + 4.

    N tokens of width d, MLP of width r d, K classes; the last two terms are a head on one token and a gate.

    Args:
        mlp_ratio: r.

    Raises:
        ValueError: sizes below 1.
    """
    check_sizes(tokens=tokens, dim=dim, classes=classes, mlp_ratio=mlp_ratio)
    return tokens * (4 + 2 * mlp_ratio) * dim**2 + 2 * tokens**2 * dim + dim * classes + 4


def released_exit_count(tokens: int, dim: int, classes: int, mlp_ratio: int = 2) -> int:
    """The same step as the released code counts it: each linear layer once an image instead of once a token.

    Weights and biases of the linear layers (no bias in q, k, v) are added once; a LayerNorm counts 2.5 N d, a GELU
    4 N d_ff, the products of the attention nothing; a gate 9 K + 6. At 197 tokens the true step is 94 times as much
    for the paper's T2T-ViT-7 and 107 times for its T2T-ViT-14.

    Args:
        mlp_ratio: d_ff / d.

    Raises:
        ValueError: sizes below 1.
    """
    check_sizes(tokens=tokens, dim=dim, classes=classes, mlp_ratio=mlp_ratio)
    hidden = mlp_ratio * dim
    linear = 3 * dim**2 + dim * (dim + 1) + hidden * (dim + 1) + dim * (hidden + 1)
    norms = 3 * (5 * tokens * dim) // 2
    return linear + norms + 4 * tokens * hidden + classes * (dim + 1) + 9 * classes + 6
