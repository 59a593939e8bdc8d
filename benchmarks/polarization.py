"""What pruning saves on the clock beside what it saves in multiply-adds, and what gates cost while they are there.

Cost model: T = T_fixed + sum over kept blocks of (MACs / rate + bytes / bandwidth + dispatch). Norm, ReLU and sum move
bytes in proportion to channels * height * width, so that at equal multiply-adds a block of the first stage moves twice
as many as one of the second. At batch 1 the number of operators counts, not their size: five small ones for each gate.

Every row has the multiply-adds of an image, in thousands, of our network (`kMAC`) and the full one (`kMAC_full`): the
ratio of the two is what the time ratio against the full network is to be held against. Half of the blocks go in
"kept = 6": two of each stage, never those that change the shape.
"""

from __future__ import annotations

from collections.abc import Callable
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


def block_races(report: bench.Report, name: str, batch: int, quick: bool) -> None:
    widths, size = NETS[name]
    x = torch.randn(batch, 1, size, size, generator=torch.Generator().manual_seed(0))
    rounds = 8 if quick else 20
    for kept in (6,) if quick else (6, 3):
        nets = {
            "pruned": small(widths, kept),
            "full network": plain(widths),
            "full network with its gates": GatedResNet(plain(widths)),
            "ResNet built with the same blocks": built(widths, kept),
        }
        calls = {case: partial(forward, net.eval(), x) for case, net in nets.items()}
        if kept == 6:
            calls["gated, each branch for the inputs that open it"] = partial(forward, half_open(widths, x).skip, x)
        result = bench.race(calls, rounds=rounds, min_ms=MIN_MS)
        add(report, "pruned, forward", nets["pruned"], nets["full network"], x, kept, result)
        if batch > 1:
            result = bench.race({case: training(net, x) for case, net in nets.items()}, rounds=rounds, min_ms=MIN_MS)
            add(report, "pruned, training step", nets["pruned"], nets["full network"], x, kept, result)


def gate_races(report: bench.Report, name: str, batch: int, quick: bool) -> None:
    """What the gates cost while nothing is pruned: peer/ours below 1 is their share."""
    widths, size = NETS[name]
    x = torch.randn(batch, 1, size, size, generator=torch.Generator().manual_seed(0))
    full, gated = plain(widths), GatedResNet(plain(widths))
    names = ("full network with its gates", "full network")
    rounds = 8 if quick else 20
    calls = {case: partial(forward, net.eval(), x) for case, net in zip(names, (gated, full), strict=True)}
    add(report, "gates, forward", full, full, x, 12, bench.race(calls, rounds=rounds, min_ms=MIN_MS))
    if batch > 1:
        steps = {case: training(net, x) for case, net in zip(names, (gated, full), strict=True)}
        add(report, "gates, training step", full, full, x, 12, bench.race(steps, rounds=rounds, min_ms=MIN_MS))


def stage_races(report: bench.Report, name: str, batch: int) -> None:
    """Two blocks less, of one stage or another: equal multiply-adds where the maps have even sizes."""
    widths, size = NETS[name]
    x = torch.randn(batch, 1, size, size, generator=torch.Generator().manual_seed(0))
    full = plain(widths).eval()
    nets = {
        stage: slice_blocks(full, [i not in (4 * stage + 2, 4 * stage + 3) for i in range(12)]) for stage in (0, 1, 2)
    }
    for stage, net in nets.items():
        calls = {"pruned": partial(forward, net, x), "full network": partial(forward, full, x)}
        add(
            report,
            f"two blocks of stage {stage + 1} pruned, forward",
            net,
            full,
            x,
            10,
            bench.race(calls, rounds=20, min_ms=MIN_MS),
        )


def channel_races(report: bench.Report, name: str, batch: int) -> None:
    """Half of the inner channels of every block, beside half of the blocks."""
    widths, size = NETS[name]
    x = torch.randn(batch, 1, size, size, generator=torch.Generator().manual_seed(0))
    full = plain(widths).eval()
    net = slice_channels(full, [[True, False]] * 12)
    calls = {
        "half of the inner channels pruned": partial(forward, net, x),
        "full network": partial(forward, full, x),
        "half of the blocks pruned": partial(forward, small(widths, 6).eval(), x),
    }
    add(report, "channels pruned, forward", net, full, x, 12, bench.race(calls, rounds=20, min_ms=MIN_MS))


def rows(quick: bool = False) -> list[dict]:
    """All rows of build/bench.json for this chapter; `quick` takes fewer sizes and rounds."""
    report = bench.Report("polarization")
    for name in ("8/16/32",) if quick else NETS:
        for batch in (1, 64):
            block_races(report, name, batch, quick)
            gate_races(report, name, batch, quick)
        if not quick:
            stage_races(report, name, 64)
            channel_races(report, name, 64)
    return report.rows
