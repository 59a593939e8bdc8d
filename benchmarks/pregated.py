"""Real decode steps with offloaded experts: the designs beside each other, and each beside its closed form.

A step of batch 1 through 6 mixture layers, a dense layer behind each, experts of 2.1 MB in a temporary file behind a
throttled link. The clock measures a mixture layer: attention, gate, wait for the experts, experts, and the padding that
stands for a larger layer. F / T is what the link is set to: the paper's Base (0.83) and Large (1.13) models, and a link
too slow to hide (3). On two shared cores the fetching thread takes a little from the products; how much the closed form
misses by that, and by jitter where the copy just fits its window, is what the rows named "closed form" tell.
"""

from __future__ import annotations

import numpy as np

from gated.lab import bench
from gated.pregated.measure import Measurement, measure

NAMES = {
    "resident": "all experts resident",
    "on_demand": "on demand",
    "prefetch_all": "prefetch all",
    "look_ahead": "training-free look-ahead, verified",
}


def add(report: bench.Report, ratio: float, found: Measurement) -> None:
    sizes = {"E": found.num_experts, "d": 256, "d_ff": 1024, "B": 6}
    case = f"decode, a mixture layer, F/T = {ratio}"
    ms = {"pre-gated": np.array(found["pre_gated"].rounds)}
    ms |= {name: np.array(found[design].rounds) for design, name in NAMES.items()}
    report.race(case, sizes, bench.Race(ms, 1, "cpu"))
    for design, name in {"pre_gated": "pre-gated", **NAMES}.items():
        if design != "resident":  # whose time is where the closed form takes its T from
            rounds = np.array(found[design].rounds)
            closed = {name: rounds, "closed form": np.full_like(rounds, found[design].predicted)}
            report.race(f"{case}, {name}", sizes, bench.Race(closed, 1, "cpu"))


def rows(quick: bool) -> list[dict]:
    report = bench.Report("pregated")
    ratios = (0.83,) if quick else (0.83, 1.13, 3.0)
    for num_experts in (8,) if quick else (8, 16):
        found = measure(ratios, num_experts, rounds=6, tokens=6 if quick else 8)
        for ratio, one in zip(ratios, found, strict=True):
            add(report, ratio, one)
    return report.rows
