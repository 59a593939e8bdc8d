"""Early stop by compaction beside its peers, on residual MLP blocks with an exit after each.

Cost model: a block costs t_b(n) on n rows, so all exits on all rows cost L B t_b and a batch that shrinks
sum_l t_b(n_l) plus, at each exit, one gather of the rows that stay (n d numbers read and written) and one wait for
their number. The ratio of multiply-adds, L B / sum n_l with heads and gates counted, is what could be gained; it
stands in `sizes` in percent. The exits are planned beforehand, so that time does not depend on what was learned; the
gates run all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from gated import jeidnn as j
from gated.lab import bench

WIDTH, HIDDEN, EXITS, CLASSES = 256, 512, 8, 10

ALL = "all exits on all rows, masked"
SORTED = "sorted by exit beforehand"


class Planned(j.GatePolicy):
    """The learned gates do their work, and the plan decides."""

    def __init__(self, gates: torch.nn.ModuleList, plan: Tensor) -> None:
        super().__init__(gates)
        self.plan = plan

    def start(self, n: int, like: Tensor) -> Tensor:
        return torch.stack([like.new_ones(n), self.plan.to(like)], 1)

    def __call__(self, l: int, logits: Tensor, z: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        mass, plan = state.unbind(1)
        mass.copy_(super().__call__(l, logits, z, mass)[1])
        return plan == l, state


def plans(batch: int) -> dict[str, Tensor]:
    """Where each row leaves: everywhere alike, half of the rest at each exit, and the last exit only."""
    gen = torch.Generator().manual_seed(0)
    uniform = torch.arange(batch) % EXITS
    geometric = (-torch.log2(1 - (torch.arange(batch) + 0.5) / batch)).long().clamp(max=EXITS - 1)
    late = torch.full((batch,), EXITS - 1)
    mixed = torch.randperm(batch, generator=gen)
    return {"uniform exits": uniform[mixed], "geometric exits": geometric[mixed], "all late": late}


def decided(network: j.ExitNetwork, x: Tensor, policy: Planned, shrink: float) -> Tensor:
    return network.decide(x, policy, shrink=shrink).logits


def one_by_one(network: j.ExitNetwork, x: Tensor, plan: Tensor) -> Tensor:
    rows = zip(x.split(1), plan.split(1), strict=True)
    return torch.cat([network.decide(row, Planned(network.gates, exit)).logits for row, exit in rows])


def sorted_slices(network: j.ExitNetwork, x: Tensor, plan: Tensor) -> None:
    """A lower bound that knows the exits before: rows in order of exit, each block on a slice, nothing decided."""
    order = plan.argsort(descending=True)
    counts = torch.bincount(plan, minlength=EXITS).flip(0).cumsum(0).flip(0).tolist()
    with torch.no_grad():
        z = network.backbone.embed(x[order])
        for l, block in enumerate(network.backbone.blocks):
            z = block(z[: counts[l]])
            if l < EXITS - 1:
                features = network.backbone.summary(z)
                network.gates[l](network.heads[l](features), features)
        network.backbone.head(network.backbone.summary(z))


def cases(network: j.ExitNetwork, x: Tensor, plan: Tensor, quick: bool) -> dict[str, Callable[[], object]]:
    policy = Planned(network.gates, plan)
    found: dict[str, Callable[[], object]] = {
        "compaction": partial(decided, network, x, policy, 1),
        ALL: partial(decided, network, x, policy, 0),
        "compaction below one half": partial(decided, network, x, policy, 0.5),
        SORTED: partial(sorted_slices, network, x, plan),
    }
    if len(x) <= 256 and not quick:
        found["one row at a time"] = partial(one_by_one, network, x, plan)
    return found


def rows(quick: bool = False) -> list[dict]:
    """All rows of build/bench.json for this chapter; `quick` takes fewer sizes and rounds."""
    report = bench.Report("jeidnn", tries=1 if quick else 3)
    torch.manual_seed(0)
    body = j.ResidualMLP(64, CLASSES, dim=WIDTH, depth=EXITS, hidden=HIDDEN)
    network = j.ExitNetwork(body, torch.zeros(1, 64)).eval()
    for batch in (1024,) if quick else (64, 256, 1024, 4096):
        x = torch.randn(batch, 64, generator=torch.Generator().manual_seed(0))
        for name, plan in plans(batch).items():
            saved = round(100 / float(network.costs[plan].mean()))
            sizes = {"B": batch, "L": EXITS, "d": WIDTH, "MAC ratio, %": saved}
            calls, why = cases(network, x, plan, quick), {SORTED: "it knows the exits, and answers nothing"}
            threads = (1,) if quick else (1, 2)
            for result in report.run(calls, threads, rounds=6 if quick else 12, uncompared=why):
                report.race(f"early stop, {name}", sizes, result)
    return report.rows
