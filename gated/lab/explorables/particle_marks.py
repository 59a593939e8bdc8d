"""The axes and paths of the figure of the particle, as strings of the same bytes each time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gated.lab.explorables import drawing as draw
from gated.lab.explorables.drawing import rule, tag, text
from gated.lab.explorables.particle_flow import LINES, NEURONS, STEPS

SPAN = 4
"""The plane is |z|, |v| <= SPAN."""
WIDE, LEFT, ROW = 340, 34, 8
Z, V = draw.Axis(-SPAN, SPAN, 22, 334), draw.Axis(-SPAN, SPAN, 336, 24)
TIME, LINE = draw.Axis(0, STEPS, LEFT, LEFT + 300), draw.Axis(LINES[0], LINES[-1], LEFT, LEFT + 300)
AREA, PLACE, POWER = draw.Axis(-12, 6, 130, 40), draw.Axis(-SPAN, SPAN, 124, 44), draw.Axis(0, 1, 110, 40)
RASTER = draw.Axis(0, NEURONS, 24, 24 + ROW * NEURONS)


def trail(curves: Sequence[Sequence[Sequence[float | int]]], x: draw.Axis = Z, y: draw.Axis = V) -> str:
    """The path of some polylines, broken where they leave the axes."""
    d = ""
    for curve in curves:
        pen = "M"
        for a, b in curve:
            there = x.low <= a <= x.high and y.low <= b <= y.high
            d += f"{pen}{x(a):.2f} {y(b):.2f}" if there else ""
            pen = "L" if there else "M"
    return d or "M0 0"


def curve_path(name: str, values: list[float], axis: draw.Axis, **look: Any) -> str:
    d = trail([list(enumerate(values))], TIME, axis)
    return tag("path", d=d, fill="none", **{"stroke": "currentColor"} | look, data_curve=name)


def held(point: Sequence[float]) -> list[float]:
    """The point, or where the way to it from 0 leaves the plane."""
    far = max(1.0, *(abs(x) / SPAN for x in point))
    return [x / far for x in point]


def dots(points: list[list[float]]) -> tuple[str, str]:
    """Points as strokes of no length; those outside lie on the edge, in a path of their own."""
    paths = ["", ""]
    for point in points:
        z, v = held(point)
        paths[max(map(abs, point)) > SPAN] += f"M{Z(z):.2f} {V(v):.2f}h0"
    return paths[0] or "M0 0", paths[1] or "M0 0"


def powers(v: dict[str, Any]) -> list[str]:
    """Both spectra on one scale, paths."""
    lists = [v[name] if v[name] != "none" else [] for name in ("expected", "spectrum")]
    top = max([*lists[0], *lists[1], 1e-9])
    return [
        trail([[(k, share / top) for k, share in zip(LINES, shares, strict=False)]], LINE, POWER) for shares in lists
    ]


def ticks(counts: list[str], step: int) -> tuple[str, str]:
    """Spikes up to the bin shown, and later ones; two or more in a bin are a taller stroke."""
    paths = ["", ""]
    for i, row in enumerate(counts):
        for n, count in enumerate(row):
            if count != "0":
                high = 5 if count == "1" else 7
                paths[n > step] += f"M{TIME(n + 0.5):.2f} {RASTER.start + ROW * (i + 1) - high}v{high}"
    return paths[0] or "M0 0", paths[1] or "M0 0"


def scaffold(axis: draw.Axis, labels: dict[draw.Number, str]) -> list[str]:
    lines = [rule(LEFT, axis(value), TIME.stop, axis(value), faint=value != 0) for value in labels]
    return lines + [text(word, LEFT - 6, axis(v) + 4, text_anchor="end") for v, word in labels.items()]


def contours(k: float | int) -> list[list[tuple[float, float]]]:
    """Lines of equal v^2/2 + k z^2/2, through v = 1, 2, 3, 4, or through such z where the energy is negative."""
    turn, line = [2 * math.pi * i / 72 for i in range(73)], [0.1 * i - SPAN for i in range(10 * 2 * SPAN + 1)]
    if k > 0:
        return [[(w / math.sqrt(k) * math.cos(t), w * math.sin(t)) for t in turn] for w in (1, 2, 3, 4)]
    up = [[(z, sign * math.sqrt(w * w - k * z * z)) for z in line] for w in (1, 2, 3) for sign in (1, -1)]
    if k == 0:
        return up
    return up + [[(sign * math.sqrt(w * w - v * v / k), v) for v in line] for w in (1, 2, 3) for sign in (1, -1)]


def ellipse(mean: Sequence[float | int], law: Sequence[float] | str) -> list[tuple[float, float]]:
    """Two standard deviations around the mean; nothing where there is no law."""
    if isinstance(law, str) or law[0] <= 0:
        return []
    a, c = math.sqrt(law[0]), law[2] / math.sqrt(law[0])
    b, turn = math.sqrt(max(0.0, law[1] - c * c)), [math.pi * i / 30 for i in range(61)]
    return [(mean[0] + 2 * a * math.cos(t), mean[1] + 2 * (c * math.cos(t) + b * math.sin(t))) for t in turn]
