"""Two true experts, three fitted ones: where does the third go, what does it cost, and would data show it?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any, cast, get_args

import torch
from torch import Tensor

from gated.gaussian_moe.model import Gate, GaussianMoE, Rank
from gated.gaussian_moe.splits import split
from gated.gaussian_moe.truths import DENSE
from gated.lab.explorables import drawing as draw
from gated.lab.explorables.drawing import fixed, formula, frac, rule, sup, tag, text
from gated.lab.explorables.explorable import Explorable

COLUMNS, ROWS, TOP, BOTTOM = 75, 301, 18, -8
"""The quadrature's grid, which is also the map's: midpoints of [0, 1] in x, from the top down in y."""
LEVELS = (0.002, 0.02, 0.2)
"""Differences of the densities from which on the map's colours are stronger."""
WHERE, MIDDLE, HALF, POINTS = 0.8, -1, 1.5, 61
"""The slice: its x, the truth's mean there, half the slice's width in y, its points."""
STEP, LEAST = 1.05, 1e-8
"""Factor on delta for the exponent, and the least total variation that is precise enough for one."""
_LEFT, _CELL, _MAP, _GATE, _STRIP, _SLICE = 30, 6, 24, 382, 42, 480
_RIGHT, _FOOT = _LEFT + _CELL * COLUMNS, _GATE + _STRIP
_COLOURS = ("var(--gx-blue)", "var(--gx-green)", "var(--gx-grey)")
_SIGNS, _SHADES = ("var(--gx-orange)", "#9a4dff"), (0.2, 0.45, 0.9)
_ROW = draw.Axis(BOTTOM, TOP, _MAP + ROWS - 0.5, _MAP + 0.5)
_NEAR = draw.Axis(-HALF, HALF, _LEFT, _RIGHT)
_HEIGHT = draw.Axis(0, 1.7, _SLICE + 120, _SLICE)
_DELTA = draw.Axis(math.log10(0.05), 0, 34, 246)
_TV = draw.Axis(-7, 0, 176, 26)
_LINES = {"split": "var(--gx-blue)", "hidden": "var(--gx-red)"}

_OPEN, _CLOSE = (f'<mo stretchy="false">{brace}</mo>' for brace in "{}")
_SHOWS = "With halved weights and slope 25 the dot lies on the line"
WORDS: dict[str, tuple[str, str, str]] = {
    "short": (
        "One expert an input",
        formula("S ( x ) =", _OPEN, "i", _CLOSE, ", π_i ( x ) = 1"),
        "The truth mixes two experts around x = 0.32, and one expert cannot. Ranked by slope it is even the same "
        "expert for every x > 0; ranked by logit it changes where the logits cross.",
    ),
    "crowded": (
        "Two copies fill both places",
        formula("S ( x ) =", _OPEN, "1 , 3", _CLOSE),
        "Where both copies of the first true expert are kept, the second has no place, whatever the weights. Drag "
        "the third slope below 0, or keep three.",
    ),
    "dormant": (
        "The third expert sleeps",
        formula("S ( x ) =", _OPEN, "1 , 2", _CLOSE),
        "No input keeps it, so it has no part in the density. At full weight and distance 0 the fit is exactly the "
        "truth: one expert too many, and still two places are enough.",
    ),
    "faint": (
        "The third expert is kept and hardly weighs",
        formula("π_3 ( x ) ≈ 0"),
        "Its logit stays far below the largest. To be dormant an expert need not be left out: a small weight does it, "
        "and the error is as small as the weight.",
    ),
    "copy": (
        "Two copies share one true expert",
        formula(frac("1", "2"), "f_1 +", frac("1", "2"), "f_1 = f_1"),
        "All are kept. At full weight the copies count double and move the gate's border to the left. Halve the "
        "weights: only the difference of the slopes is left. Now pull the copies apart.",
    ),
    "split": (
        "The split widens the noise, and that shows",
        formula("V ∼", sup("δ", "2")),
        f"Halves at b ± δ s have the right mean and a variance δ² s² too large. {_SHOWS} of slope 2. Now compensate.",
    ),
    "hidden": (
        "Compensated, the split hides in the fourth moment",
        formula("V ∼", sup("δ", "4"), ", δ ∼", sup("n", "− 1 / 8")),
        f"With variance s² (1 − δ²) the halves have the right mean and variance together. {_SHOWS} of slope 4 while δ "
        "is small: half the distance takes 256 times the data.",
    ),
}


def fitted(
    delta: Sequence[float | int],
    slope: float | int = 25.0,
    *,
    top_k: int = 3,
    compensate: bool = False,
    halve: bool = True,
    rank: str = "slope",
) -> GaussianMoE:
    """One model for each delta: `DENSE` and, as expert 3, a copy of its expert 1 with another slope in the gate."""
    gap = torch.tensor(delta, dtype=torch.float64) * DENSE.variance[0].sqrt()
    halves = split(DENSE, 0, "b", gap, compensate=compensate)
    model = halves.map(lambda t: t[:, [0, 2, 1]] if t.ndim > 1 else t)
    model.beta1[:, 2] = slope
    if not halve:
        model.beta0[:, ::2] = DENSE.beta0[0]
    return model.with_gate(Gate(top_k, cast(Rank, rank)))


@cache
def _x() -> Tensor:
    return (torch.arange(COLUMNS, dtype=torch.float64)[:, None] + 0.5) / COLUMNS


def difference(model: GaussianMoE) -> Tensor:
    """Fitted minus true density on the grid: [models, columns, rows]."""
    x, y = _x().repeat_interleave(ROWS, 0), TOP - (TOP - BOTTOM) / (ROWS - 1) * torch.arange(ROWS).double()
    y, models = y.repeat(COLUMNS), len(model.tau)
    p = model.log_density(x.expand(models, *x.shape), y.expand(models, *y.shape)).exp()
    return (p - DENSE.log_density(x, y).exp()).unflatten(-1, (COLUMNS, ROWS))


def variation(difference: Tensor) -> Tensor:
    """Total variation of each column; there is no density at the ends of the range in y."""
    return difference.abs().sum(-1) * ((TOP - BOTTOM) / (ROWS - 1) / 2)


@cache
def _lines() -> dict[str, list[tuple[float, float]]]:
    """log10 of delta and of the total variation for splits at three places, with halved weights and equal slopes."""
    delta = [0.05 * 19 ** (i / 19) for i in range(20)]
    both = {kind: fitted(delta, compensate=kind == "hidden") for kind in _LINES}
    tv = {kind: variation(difference(model)).mean(-1).tolist() for kind, model in both.items()}
    return {kind: list(zip(map(math.log10, delta), map(math.log10, tv[kind]), strict=True)) for kind in _LINES}


class CellsExplorable(Explorable):
    """Fit two experts by three: how many are kept, the third one's slope, and how far it is split off the first.

    Args:
        top_k: experts an input keeps, 1 to 3.
        slope: the third expert's in the gate, -2 to 26. Its copy, expert 1, has 25, and expert 2 has 0.
        delta: experts 1 and 3 lie at b + delta s and b - delta s, s^2 the true variance; 0 to 0.9.
        compensate: whether their variances are s^2 (1 - delta^2).
        halve: whether their weights exp(beta_0) are halved.
        rank: what the gate selects by, "slope" or "logit".

    Raises:
        ValueError: a value out of its range.
    """

    name = "cells"

    def __init__(
        self,
        top_k: int = 2,
        slope: float | int = 24.9,
        delta: float | int = 0.0,
        compensate: bool = False,
        halve: bool = False,
        rank: str = "slope",
    ) -> None:
        for name, number, low, high in (("top_k", top_k, 1, 3), ("slope", slope, -2, 26), ("delta", delta, 0, 0.9)):
            if not low <= number <= high:
                raise ValueError(f"{name} must be in {low} to {high}, got {number}")
        if rank not in get_args(Rank):
            raise ValueError(f"rank must be one of {', '.join(get_args(Rank))}, got {rank!r}")
        state = {"top_k": int(top_k), "slope": float(slope), "delta": float(delta)}
        choices = {"compensate": bool(compensate), "halve": bool(halve), "rank": rank}
        super().__init__({**state, **choices}, {"words": {key: list(value) for key, value in WORDS.items()}})

    def _models(self) -> GaussianMoE:
        """The model shown, and the two that are split a little farther and a little less."""
        options = {key: value for key, value in self.state.items() if key != "delta"}
        return fitted([self.state["delta"] * factor for factor in (1, STEP, 1 / STEP)], **options)

    def values(self) -> dict[str, Any]:
        s, models = self.state, self._models()
        gaps = difference(models)
        columns, model = variation(gaps), models[0]
        tv, wider, closer = columns.mean(-1).tolist()
        known = s["delta"] > 0 and closer > LEAST
        share = model.log_gate(_x()).exp()
        kept = (model.selected(_x()) * torch.tensor([1, 2, 4])).sum(-1).tolist()
        y = MIDDLE + HALF * (2 * torch.arange(POINTS).double() / (POINTS - 1) - 1)
        x = torch.full((POINTS, 1), WHERE, dtype=torch.float64)
        parts = (model.log_gate(x) + model.log_experts(x, y)).exp()
        if s["top_k"] < 3:
            kind = "short" if s["top_k"] == 1 else "crowded" if 5 in kept else "dormant"
        elif share[:, 2].amax() < 0.05:
            kind = "faint"
        else:
            kind = "copy" if s["delta"] == 0 else "hidden" if s["compensate"] else "split"
        return {
            "tv": tv,
            "exponent": round(math.log(wider / closer) / math.log(STEP) / 2, 3) if known else "",
            "kind": kind,
            "kept": kept,
            "shares": [(share[:, 1] + share[:, 2]).tolist(), share[:, 1].tolist()],
            "columns": columns[0].tolist(),
            "slice": [parts[:, 0].tolist(), parts[:, 2].tolist(), parts.sum(-1).tolist()],
            "truth": DENSE.log_density(x, y).exp().tolist(),
            "levels": _levels(gaps[0]).flatten().bincount(minlength=7).tolist(),
        }

    def __repr__(self) -> str:
        s, v = self.state, self.values()
        extra = ", variance compensated" * s["compensate"] + ", weights halved" * s["halve"]
        return (
            f"CellsExplorable: {s['top_k']} of 3 experts by {s['rank']}, third slope {s['slope']:g}, distance "
            f"{s['delta']:g}{extra}\n  {_kept(v['kept'])}\n  total variation {v['tv']:.3g}, its exponent in the "
            f"distance {v['exponent'] or 'not defined'}"
        )

    def markup(self) -> str:
        v = self.values()
        title, equation, words = WORDS[v["kind"]]
        numbers = {
            "tv": ("Total variation V of fit and truth", _small(v["tv"])),
            "exponent": ("Exponent of V in δ, here", "–" if v["exponent"] == "" else fixed(v["exponent"], 2)),
            "n": ("Data that show it, about 1/V²", _data(v["tv"])),
        }
        signs = zip(("fit above truth", "fit below truth"), _SIGNS, strict=True)
        key = "".join(tag("span", words, style=f"--gx-swatch: {colour}") for words, colour in signs)
        key += f"darker at {', '.join(map(str, LEVELS))}"
        left = tag("div", self._picture(v), tag("div", key, class_="gx-key"), class_="gx-figure")
        rates = tag("div", _rates(self.state["delta"], v["tv"]), class_="gx-figure")
        note = draw.callout(title, equation, words)
        return draw.columns(left, rates, note, tag("div", class_="gx-controls"), draw.readings(numbers))

    def _picture(self, v: dict[str, Any]) -> str:
        """The map, the gate's shares over the same x, and a slice through the copies."""
        models, width = self._models(), _RIGHT - _LEFT
        small: dict[str, Any] = {"small": True, "text_anchor": "middle"}
        marks = [text("Fitted minus true density of y, over x", _LEFT, 14, strong=True)]
        box = {"fill": "none", "stroke": "currentColor", "stroke_opacity": 0.25}
        marks.append(tag("rect", x=_LEFT, y=_MAP, width=width, height=ROWS, **box))
        for y in (-5, 0, 5, 10, 15):
            marks.append(text(f"{y}".replace("-", "−"), _LEFT - 6, _ROW(y) + 4, small=True, text_anchor="end"))
        for kind, path in enumerate(_tiles(_levels(difference(models)[0]).tolist())):
            look = {"fill": _SIGNS[kind // 3], "fill_opacity": _SHADES[kind % 3]}
            marks.append(tag("path", d=path or "M0 0", **look, data_tile=kind))
        for i, (a, b) in enumerate(zip(models.a[0, :, 0].tolist(), models.b[0].tolist(), strict=True)):
            ends = {"x1": _LEFT, "y1": _ROW(b), "x2": _RIGHT, "y2": _ROW(a + b)}
            seen = "visible" if any(mask >> i & 1 for mask in v["kept"]) else "hidden"
            line = {"stroke": _COLOURS[i], "stroke_width": 1.5, "visibility": seen}
            marks.append(tag("line", **ends, **line, data_mean=i))
        for at in (0, 0.25, 0.5, 0.75, 1):
            marks.append(text(f"{at:g}", _LEFT + at * width, _MAP + ROWS + 14, **small))

        marks.append(text("The gate: each kept expert’s share", _LEFT, _GATE - 8, strong=True))
        for i in range(3):
            at = _RIGHT - 120 + 42 * i
            marks.append(tag("rect", x=at, y=_GATE - 18, width=12, height=12, rx=2, fill=_COLOURS[i]))
            marks.append(text(f"{i + 1}", at + 17, _GATE - 8))
        marks.append(tag("rect", x=_LEFT, y=_GATE, width=width, height=_STRIP, fill=_COLOURS[0]))
        for i, shares in zip((2, 1), v["shares"], strict=True):
            marks.append(tag("path", d=_steps(shares), fill=_COLOURS[i], data_share=i))
        marks.append(text(_kept(v["kept"]), _LEFT, _FOOT + 15, small=True, data_kept=""))

        title = f"Densities at x = {WHERE:g}: truth (grey), fit (line), parts (dashed)"
        marks.append(text(title, _LEFT, _SLICE - 12, strong=True))
        marks.append(tag("polyline", points=_curve(v["truth"]), fill="currentColor", fill_opacity=0.22))
        for i, part in enumerate(v["slice"]):
            line = {"stroke": "currentColor"} if i == 2 else {"stroke": _COLOURS[2 * i], "stroke_dasharray": "6 4"}
            marks.append(tag("polyline", points=_curve(part), fill="none", stroke_width=1.8, **line, data_slice=i))
        marks.append(rule(_LEFT, _HEIGHT(0), _RIGHT, _HEIGHT(0), faint=False))
        for y in (-1, 0, 1):
            marks.append(text(f"y = {MIDDLE + y}".replace("-", "−"), _NEAR(y), _HEIGHT(0) + 14, **small))
        places = {"data_left": _LEFT, "data_top": _MAP, "data_gate": _FOOT, "data_strip": _STRIP}
        return draw.svg(
            _RIGHT + 8,
            _HEIGHT(0) + 18,
            "Where the density of three fitted experts differs from that of two true ones, over x and y; below it the "
            "gate's shares over x, and the densities at one x",
            tag("g", *marks, data_height="", **places, **_HEIGHT.data()),
            tag("g", data_row="", **_ROW.data()),
        )


def _rates(delta: float, tv: float) -> str:
    """Total variation against distance, both as logarithms: two lines, and where the reader stands."""
    marks = [text(f"Total variation V = {_small(tv)}", 4, 12, strong=True, data_heading="")]
    marks.append(text("n = 1/V²", 296, 12, small=True, text_anchor="end"))
    marks.append(text("δ", _DELTA.stop + 14, _TV.start + 16, small=True))
    for power in (0, -2, -4, -6):
        y = _TV(power)
        marks.append(rule(_DELTA.start, y, _DELTA.stop, y))
        marks.append(text(_ten(power), _DELTA.start - 6, y + 4, small=True, text_anchor="end"))
        marks.append(text(_ten(-2 * power), _DELTA.stop + 8, y + 4, small=True))
    for tick in (0.05, 0.1, 0.2, 0.5, 1):
        x = _DELTA(math.log10(tick))
        marks.append(rule(x, _TV.start, x, _TV.start + 4, faint=False))
        marks.append(text(f"{tick:g}", x, _TV.start + 16, small=True, text_anchor="middle"))
    for kind, words, dx, dy in (("split", "slope 2", -30, -12), ("hidden", "slope 4: compensated", 12, 10)):
        points = [(_DELTA(x), _TV(y)) for x, y in _lines()[kind]]
        line = {"fill": "none", "stroke": _LINES[kind], "stroke_width": 2}
        marks.append(tag("polyline", points=" ".join(f"{x:.2f},{y:.2f}" for x, y in points), **line))
        marks.append(text(words, points[7][0] + dx, points[7][1] + dy, small=True))
    level = _TV(math.log10(max(tv, 1e-12)))
    shown, line = delta > 0, {"stroke_dasharray": "3 3", "data_level": ""}
    marks.append(rule(_DELTA.start, level, _DELTA.stop, level, faint=False, **line))
    place = {"cx": _DELTA(math.log10(delta)), "cy": level} if shown else {"cx": 0.0, "cy": 0.0}
    seen = "visible" if shown else "hidden"
    marks.append(tag("circle", **place, r=6, fill="currentColor", visibility=seen, data_dot=""))
    return draw.svg(
        300,
        _TV.start + 20,
        "Total variation against the distance of the split, both logarithmic: a line of slope 2, one of slope 4 for "
        "the compensated variance, and a dot at the distance chosen",
        tag("g", *marks, data_delta="", **_DELTA.data()),
        tag("g", data_tv="", **_TV.data()),
    )


def _levels(gap: Tensor) -> Tensor:
    """0 for less than the first level, 1 to 3 where the fit is above the truth, 4 to 6 where it is below."""
    level = torch.bucketize(gap.abs(), gap.new_tensor(LEVELS), right=True)
    return torch.where((gap < 0) & (level > 0), level + 3, level)


def _tiles(levels: list[list[int]]) -> list[str]:
    """For each level a path of all its cells, run by run."""
    paths = [""] * 6
    for c, column in enumerate(levels):
        start = 0
        for r in range(1, ROWS + 1):
            if r == ROWS or column[r] != column[start]:
                if column[start]:
                    here = f"M{_LEFT + _CELL * c} {_MAP + start}h{_CELL}v{r - start}h-{_CELL}z"
                    paths[column[start] - 1] += here
                start = r
    return paths


def _steps(shares: list[float]) -> str:
    return f"M{_LEFT} {_FOOT}{''.join(f'V{_FOOT - _STRIP * share:.2f}h{_CELL}' for share in shares)}V{_FOOT}z"


def _curve(densities: list[float]) -> str:
    width = (_RIGHT - _LEFT) / (POINTS - 1)
    return " ".join(f"{_LEFT + width * i:.2f},{_HEIGHT(p):.2f}" for i, p in enumerate(densities))


def _kept(masks: list[int]) -> str:
    """Which experts are kept, and where: masks with bit i for expert i + 1, one a column."""
    starts = [c for c in range(COLUMNS) if c == 0 or masks[c] != masks[c - 1]]
    names = [", ".join(f"{i + 1}" for i in range(3) if masks[c] >> i & 1) for c in starts]
    ends = [f" up to x = {c / COLUMNS:.2f}" for c in starts[1:]] + [""]
    return "Kept: " + "; then ".join(map(str.__add__, names, ends))


_HIGH = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _ten(power: int) -> str:
    return "1" if power == 0 else f"10{str(power).translate(_HIGH)}"


def _power(number: float, digits: int) -> str:
    mantissa, power = f"{number:.{digits}e}".split("e")
    return f"{mantissa} × 10{str(int(power)).translate(_HIGH)}"


def _data(tv: float) -> str:
    return "none" if tv < 1e-12 else f"{tv**-2:.0f}" if tv > 0.01 else _power(tv**-2, 0)


def _small(number: float) -> str:
    return "0" if number < 1e-12 else f"{number:.4f}" if number >= 0.001 else _power(number, 1)
