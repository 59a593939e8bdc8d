"""Real decode steps with offloaded experts, the designs beside each other.

A step of batch 1 through 6 mixture layers, a dense layer behind each, experts of 2.1 MB in a temporary file behind a
throttled link. The clock measures a mixture layer: attention, gate, wait for the experts, experts, and the padding that
stands for a larger layer. So all times are set by a link and a padding of our choice, and only their ratios say
something. F / T is what the link is set to: the paper's Base (0.83) and Large (1.13) models, and a link too slow to
hide (3). What the closed form says of each is in the chapter.
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
    ms = {"pre-gated": np.array(found["pre_gated"].rounds)}
    ms |= {name: np.array(found[design].rounds) for design, name in NAMES.items()}
    why = dict.fromkeys(NAMES.values(), "the chapter's tests compare what is decoded")
    why[NAMES["look_ahead"]] = "the network before it was rewired"
    case = f"decode over a throttled link, a mixture layer, F/T = {ratio}"
    report.race(case, sizes, bench.Race(ms, 1, "cpu", uncompared=why))


def rows(quick: bool) -> list[dict]:
    report = bench.Report("pregated")
    settings: dict[int, tuple[float, ...]] = {8: (0.83,)} if quick else {8: (0.83, 1.13, 3.0), 16: (0.83,)}
    for num_experts, ratios in settings.items():
        found = measure(ratios, num_experts, rounds=6 if quick else 9, tokens=6 if quick else 8)
        for ratio, one in zip(ratios, found, strict=True):
            add(report, ratio, one)
    return report.rows
