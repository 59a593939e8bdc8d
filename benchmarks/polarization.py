"""What pruning saves on the clock beside what it saves in multiply-adds, and what gates cost while they are there.

Cost model: T = T_fixed + sum over kept blocks of (MACs / rate + bytes / bandwidth + dispatch). Norm, ReLU and sum move
bytes in proportion to channels * height * width, so that at equal multiply-adds a block of the first stage moves twice
as many as one of the second. At batch 1 the number of operators counts, not their size: five small ones for each gate.

Every row has the multiply-adds of an image, in thousands, of our network (`kMAC`) and the full one (`kMAC_full`): the
ratio of the two is what the time ratio against the full network is to be held against. Half of the blocks go in
"kept = 6": two of each stage, never those that change the shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gated.backbones import ResNet
from gated.lab import bench
from gated.polarization import GatedResNet, costs, slice_blocks, slice_channels

NETS = {"8/16/32": ((8, 16, 32), 14), "16/32/64": ((16, 32, 64), 28)}
MIN_MS = 20  # a single image takes less than a millisecond: many calls a round, or its first one decides
DROPPED = {6: (2, 3, 6, 7, 10, 11), 3: (1, 2, 3, 5, 6, 7, 9, 10, 11)}


def plain(widths: tuple[int, ...]) -> ResNet:
    torch.manual_seed(0)
    return ResNet((4, 4, 4), widths, in_channels=1, num_classes=10)


def small(widths: tuple[int, ...], kept: int) -> ResNet:
    return slice_blocks(plain(widths), [i not in DROPPED[kept] for i in range(12)])


def built(widths: tuple[int, ...], kept: int) -> ResNet:
    """The network that somebody would have written who knew the depth."""
    torch.manual_seed(0)
    return ResNet((kept // 3,) * 3, widths, in_channels=1, num_classes=10)


def half_open(widths: tuple[int, ...], x: Tensor) -> GatedResNet:
    """Each gate is open for half of the inputs, blocks that change the shape for all."""
    model = GatedResNet(plain(widths)).eval()
    with torch.no_grad():
        for i, gate in enumerate(model.gates):
            nn.init.normal_(gate.decide.weight)
            nn.init.zeros_(gate.decide.bias)
            seen: list[Tensor] = []
            hook = gate.register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(output))
            model(x)
            hook.remove()
            gate.decide.bias.fill_(9.0 if i in (4, 8) else -float(seen[0].quantile(0.5)))
    return model


def forward(call: Callable[[Tensor], Any], x: Tensor) -> object:
    with torch.no_grad():
        return call(x)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> object:
    output = model(x)
    loss = nn.functional.cross_entropy(output if isinstance(output, Tensor) else output.logits, y)
    if not isinstance(output, Tensor):
        share = output.probability.mean(0)
        loss = loss + 0.1 * share.mean() + (share * (1 - share)).mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss


def training(model: nn.Module, x: Tensor) -> Callable[[], object]:
    optimizer = torch.optim.SGD(model.train().parameters(), lr=1e-3, momentum=0.9)
    return partial(step, model, optimizer, x, torch.arange(len(x)) % 10)


def add(report: bench.Report, case: str, net: ResNet, full: ResNet, x: Tensor, kept: int, result: bench.Race) -> None:
    size = x.shape[-1]
    report.race(
        case,
        {
            "batch": len(x),
            "pixels": size,
            "width": full.head[-1].in_features,
            "kept": kept,
            "kMAC": costs(net, size, size).total_macs // 1000,
            "kMAC_full": costs(full, size, size).total_macs // 1000,
        },
        result,
    )


FULL, GATED = "full network", "full network with its gates"
HALF, SKIPPED = "pruned, 6 blocks kept", "gated, each branch for the inputs that open it"


def races(report: bench.Report, name: str, batch: int, quick: bool) -> None:
    """One race for all networks, and its rows: pruned beside full, what gates cost (below 1), stages, channels."""
    widths, size = NETS[name]
    x = torch.randn(batch, 1, size, size, generator=torch.Generator().manual_seed(0))
    kepts = (6,) if quick else (6, 3)
    full = plain(widths)
    nets: dict[str, ResNet | GatedResNet] = {FULL: full, GATED: GatedResNet(plain(widths))}
    for kept in kepts:
        nets |= {
            f"pruned, {kept} blocks kept": small(widths, kept),
            f"ResNet built with {kept} blocks": built(widths, kept),
        }
    calls: dict[str, Callable[[], object]] = {case: partial(forward, net.eval(), x) for case, net in nets.items()}
    calls[SKIPPED] = partial(forward, half_open(widths, x).skip, x)
    cut = {} if quick or batch == 1 else fewer(widths)
    calls |= {case: partial(forward, net, x) for case, net in cut.items()}
    (result,) = report.run(calls, rounds=8 if quick else 15, min_ms=MIN_MS, uncompared=others(calls))
    for kept in kepts:
        mine = f"pruned, {kept} blocks kept"
        peers = [FULL, GATED, f"ResNet built with {kept} blocks", *([SKIPPED] if kept == 6 else [])]
        add(report, "pruned, forward", nets[mine], full, x, kept, result.among(mine, *peers))
    add(report, "gates, forward", full, full, x, 12, result.among(GATED, FULL))
    for case, net in cut.items():
        peers, kept = ([FULL, HALF], 12) if case == CHANNELS else ([FULL], 10)
        add(report, "fewer blocks or channels, forward", net, full, x, kept, result.among(case, *peers))
    if batch > 1:
        steps = {case: training(net, x) for case, net in nets.items()}
        (result,) = report.run(steps, rounds=8 if quick else 15, min_ms=MIN_MS, uncompared=others(steps))
        for kept in kepts:
            mine = f"pruned, {kept} blocks kept"
            peers = [FULL, GATED, f"ResNet built with {kept} blocks"]
            add(report, "pruned, training step", nets[mine], full, x, kept, result.among(mine, *peers))
        add(report, "gates, training step", full, full, x, 12, result.among(GATED, FULL))


def others(calls: Mapping[str, object]) -> dict[str, str]:
    return dict.fromkeys(list(calls)[1:], "another network")


CHANNELS = "half of the inner channels pruned"


def fewer(widths: tuple[int, ...]) -> dict[str, ResNet]:
    """Two blocks less, of one stage or another, of equal multiply-adds where maps have even sizes; and half of the
    inner channels of every block."""
    full = plain(widths).eval()
    nets = {
        f"two blocks of stage {stage + 1} pruned": slice_blocks(
            full, [i not in (4 * stage + 2, 4 * stage + 3) for i in range(12)]
        )
        for stage in (0, 1, 2)
    }
    return nets | {CHANNELS: slice_channels(full, [[True, False]] * 12)}


def rows(quick: bool = False) -> list[dict]:
    """All rows of build/bench.json for this chapter; `quick` takes fewer sizes and rounds."""
    report = bench.Report("polarization", tries=1 if quick else 3)
    for name in ("8/16/32",) if quick else NETS:
        for batch in (1, 64):
            races(report, name, batch, quick)
    return report.rows
