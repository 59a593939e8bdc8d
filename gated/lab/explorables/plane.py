"""A router between two experts under attack: when does it matter that the attacker can change the route?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gated.advmoe.exact import ExactMargin, exact_margin
from gated.lab.explorables import drawing as draw
from gated.lab.explorables.drawing import fixed, formula, rule, tag, text
from gated.lab.explorables.explorable import Explorable

SPAN, REACH, WIDEST, GRID = 2, 1.4, 0.6, 48
"""The plane is |x_1|, |x_2| <= SPAN; point and box keep to REACH and WIDEST, and so to the plane; cells of the map."""
EXPERTS = {
    "standard": ((-0.61, 1.0, -0.73), (-0.47, 1.0, 0.67)),
    "robust": ((0.083, 1.0, -0.061), (-0.079, 1.0, 0.033)),
}
"""Experts 0 and 1 as (w_1, w_2, b). The standard ones cross the plane far apart, the robust ones nearly together."""
ROUTERS = {"standard": 0.03, "robust": -1.17}
"""Where the router's line lies along its normal: near the middle of the plane, or well away from it."""

_SIDE, _LEFT, _TOP = 384, 8, 46
_CELL = _SIDE // GRID
_EXPERTS = ("var(--gx-green, #00805b)", "var(--gx-blue, #0072b2)")
_SAFE, _OWN, _FLIP, _WRONG = "none", "var(--gx-orange, #c46a00)", "#9a4dff", "currentColor"
_X, _Y = draw.Axis(-SPAN, SPAN, _LEFT, _LEFT + _SIDE), draw.Axis(-SPAN, SPAN, _TOP + _SIDE, _TOP)
_BADGE = {
    "steady": (_SAFE, "Safe"),
    "agree": (_SAFE, "Safe"),
    "flip": (_FLIP, "Beaten only by flipping the route"),
    "own": (_OWN, "Beaten on its own path"),
    "wrong": (_WRONG, "Beaten on its own path: wrong as it is"),
}
WORDS = {
    "steady": (
        "Safe, as the route cannot flip",
        formula("| a · x + c | > ε ( | a_1 | + | a_2 | )"),
        "Expert 1 answers where a · x + c ≥ 0, and the box does not reach that line. What the other expert would say "
        "does not matter: a wide router margin cures a flip. But a line that moves takes its band of flips along; it "
        "has to lie where no inputs are.",
    ),
    "agree": (
        "Safe, though the route can flip",
        formula("y f_0 ( x′ ) > 0 , y f_1 ( x′ ) > 0"),
        "The router’s line cuts the box, so an attacker can choose the expert. Both are right at every x′ of their "
        "parts, and the choice buys nothing: experts that agree cure a flip as well as a wide router margin does. A "
        "frozen route that reports less has its worst corner across the line, where its expert is not asked.",
    ),
    "flip": (
        "The flip is the attack",
        formula("y f_o ( x′ ) ≤ 0 , e → o"),
        "The expert e that answers now is right on its whole part of the box. The other one, o, is wrong on some of "
        "the rest. An attack that keeps the route cannot go there. Two cures: move the router’s line out of the box, "
        "or let the experts agree.",
    ),
    "own": (
        "No flip is needed",
        formula("y f_e ( x′ ) ≤ 0"),
        "At some x′ of the box the router keeps expert e, and e is wrong there. No router helps that keeps this "
        "expert for these inputs: it is the expert that has to be robust here.",
    ),
    "wrong": (
        "Wrong before any attack",
        formula("y f_e ( x ) ≤ 0"),
        "The point lies on the wrong side of its expert’s line, and ε plays no part. An attack with nothing to do "
        "counts as won.",
    ),
}


class PlaneExplorable(Explorable):
    """Two linear experts and a linear router in the plane: the exact verdict of a box, and of one at every place.

    Args:
        point: the input, both coordinates in -1.4 to 1.4.
        eps: half the box's width, 0 to 0.6.
        angle: of the router's normal against the first axis in degrees, -90 to 90; it points to expert 1's side.
        router: a key of `ROUTERS`.
        experts: a key of `EXPERTS`.
        label: what is right for the point, 1 or -1; also the label that the map supposes everywhere.

    Raises:
        ValueError: a value out of its range.
    """

    name = "plane"

    def __init__(
        self,
        point: Sequence[float | int] = (0.25, 0.65),
        eps: float | int = 0.4,
        angle: float | int = 0.0,
        router: str = "standard",
        experts: str = "standard",
        label: int = 1,
    ) -> None:
        if len(point) != 2 or not all(abs(x) <= REACH for x in point):
            raise ValueError(f"point must be two numbers in -{REACH} to {REACH}, got {point!r}")
        for name, number, low, high in (("eps", eps, 0, WIDEST), ("angle", angle, -90, 90)):
            if not low <= number <= high:
                raise ValueError(f"{name} must be in {low} to {high}, got {number}")
        for name, choice, known in (("router", router, ROUTERS), ("experts", experts, EXPERTS)):
            if choice not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {choice!r}")
        if label not in (-1, 1):
            raise ValueError(f"label must be 1 or -1, got {label!r}")
        state = {"point": [float(x) for x in point], "eps": float(eps), "angle": float(angle)}
        tables = {"offsets": ROUTERS, "lines": {name: [list(e) for e in both] for name, both in EXPERTS.items()}}
        badges = {"badges": {key: list(badge) for key, badge in _BADGE.items()}, "colours": list(_EXPERTS)}
        words = {"words": {key: list(value) for key, value in WORDS.items()}}
        choices = {"router": router, "experts": experts, "label": int(label)}
        super().__init__({**state, **choices}, {**tables, **badges, **words})

    def _network(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        s = self.state
        angle, offset = math.radians(s["angle"]), torch.tensor(-ROUTERS[s["router"]], dtype=torch.float64)
        experts = torch.tensor(EXPERTS[s["experts"]], dtype=torch.float64)
        normal = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
        return (normal, offset), (experts[:, :2], experts[:, 2])

    def exact(self, x: Tensor) -> ExactMargin:
        """`gated.advmoe.exact_margin` of the network shown, at points [batch, 2] of the label chosen."""
        label = torch.full((len(x),), self.state["label"])
        return exact_margin(x, label, self.state["eps"], *self._network())

    def values(self) -> dict[str, Any]:
        s = self.state
        centres = SPAN * ((2 * torch.arange(GRID, dtype=torch.float64) + 1) / GRID - 1)
        cells = torch.cartesian_prod(-centres, centres).flip(1)  # row by row from the top
        point = torch.tensor([s["point"]], dtype=torch.float64)
        (a, c), _ = self._network()
        one, everywhere = self.exact(point), self.exact(cells)
        route, margins = int(one.route), one.by_expert[0].tolist()
        if bool(one.clean <= 0):
            kind = "wrong"
        elif bool(one.margin <= 0):
            kind = "own" if bool(one.own_path) else "flip"
        else:
            kind = "steady" if margins[1 - route] == math.inf else "agree"
        codes = torch.where(everywhere.own_path, 1, torch.where(everywhere.only_by_flip, 2, 0))
        codes = codes.masked_fill(everywhere.clean <= 0, 3)
        reached, right = [margin < math.inf for margin in margins], int((codes != 3).sum())
        return {
            "kind": kind,
            "route": route,
            "margin": one.margin.item(),
            "by_expert": [margin if there else "not reached" for margin, there in zip(margins, reached, strict=True)],
            "worst": [p if there else "not reached" for p, there in zip(one.worst[0].tolist(), reached, strict=True)],
            "clean": one.clean.item(),
            "frozen": one.frozen.item(),
            "slack": ((point @ a + c).abs() - s["eps"] * a.abs().sum()).item(),
            "cells": "".join(map(str, codes.tolist())),
            "safe": int((codes == 0).sum()) / right,
            "reported": int((everywhere.frozen > 0).sum()) / right,
        }

    def __repr__(self) -> str:
        s, v = self.state, self.values()
        return (
            f"PlaneExplorable: {s['router']} router at {s['angle']:g} degrees, {s['experts']} experts, eps {s['eps']:g}"
            f"\n  point ({s['point'][0]:g}, {s['point'][1]:g}), label {s['label']:+d}: {_BADGE[v['kind']][1]}; exact "
            f"margin {v['margin']:+.3f}, with a frozen route {v['frozen']:+.3f}"
            f"\n  safe share of the right places {v['safe']:.0%}, with frozen routes {v['reported']:.0%}"
        )

    def markup(self) -> str:
        v = self.values()
        title, equation, words = WORDS[v["kind"]]
        numbers = {
            "margin1": ("Margin of expert 1 (blue)", _margin(v["by_expert"][1])),
            "margin0": ("Margin of expert 0 (green)", _margin(v["by_expert"][0])),
            "slack": ("Router margin |a·x + c| − ε‖a‖₁", _signed(v["slack"])),
            "exact": ("Exact margin: the smaller one", _signed(v["margin"])),
            "frozen": ("A frozen-route attack reports", _signed(v["frozen"])),
            "off": ("Its error", _error(v["frozen"] - v["margin"])),
            "share": (
                "Right places safe: exact, frozen",
                f"{fixed(100 * v['safe'], 0)} %, {fixed(100 * v['reported'], 0)} %",
            ),
        }
        pale = f"color-mix(in srgb, {_WRONG} 20%, transparent)"
        colours = {"beaten on its own path": _OWN, "only by a flip": _FLIP, "wrong as it is": pale}
        key = "".join(tag("span", words, style=f"--gx-swatch: {colour}") for words, colour in colours.items())
        hint = (
            "Drag the point, or move it by the arrow keys. The map shows the verdict for a point of this label at "
            "every place, safe where it is blank. Each expert (0 green, 1 blue) says +1 above its line, which is "
            "solid where the router asks that expert. Dots: the worst place for each; crossed: it is beaten there."
        )
        below = tag("div", key, class_="gx-key") + tag("div", hint, style="font-size: 12.5px; margin-top: .4rem")
        left = tag("div", self._picture(v), below, class_="gx-figure")
        controls = tag("div", class_="gx-controls")
        return draw.columns(left, draw.callout(title, equation, words), controls, draw.readings(numbers))

    def _picture(self, v: dict[str, Any]) -> str:
        s = self.state
        (normal, offset), (weights, biases) = self._network()
        router = (*normal.tolist(), offset.item())
        colour, verdict = _BADGE[v["kind"]]
        frame = {"x": _LEFT, "width": _SIDE, "rx": 6, "fill": "none"}
        look = {"stroke": "currentColor" if colour == _SAFE else colour, "stroke_width": 2}
        marks = [tag("rect", y=4, height=30, **frame, **look, data_badge="")]
        marks.append(tag("circle", cx=_LEFT + 18, cy=19, r=7, fill=colour, **look, data_lamp=""))
        marks.append(text(verdict, _LEFT + 34, 24, strong=True, style="font-size: 15px", data_verdict=""))
        for code, path in enumerate(_tiles(v["cells"])):
            fill, shade = ((_OWN, 0.4), (_FLIP, 0.45), (_WRONG, 0.2))[code]
            marks.append(tag("path", d=path, fill=fill, fill_opacity=shade, data_tile=code))
        for at, label in {-1: "−1", 0: "x₁ = 0", 1: "1"}.items():
            marks += [rule(_X(at), _TOP, _X(at), _TOP + _SIDE), rule(_LEFT, _Y(at), _LEFT + _SIDE, _Y(at))]
            marks.append(text(label, _X(at), _TOP + _SIDE + 14, small=True, text_anchor="middle"))
            marks.append(text(label.replace("₁", "₂"), _LEFT + 3, _Y(at) - 3, small=True))
        marks.append(tag("rect", y=_TOP, height=_SIDE, **frame | {"rx": 0}, stroke="currentColor", stroke_opacity=0.4))
        line: dict[str, object] = {"fill": "none", "stroke_width": 2.5}
        for e, (w, b) in enumerate(zip(weights.tolist(), biases.tolist(), strict=True)):
            own = tuple((2 * e - 1) * number for number in router)
            for side, dash in ((own, None), (tuple(-number for number in own), "3 5")):
                path = _path(_ends((*w, b), side))
                marks.append(tag("path", d=path, stroke=_EXPERTS[e], stroke_dasharray=dash, **line, data_line=e))
        marks.append(tag("path", d=_path(_ends(router)), stroke="currentColor", **line, data_router=""))
        for e, (x, y) in enumerate(_names(router)):
            name: dict[str, Any] = {"text_anchor": "middle", "data_name": e, "style": f"fill: {_EXPERTS[e]}"}
            marks.append(text(f"to {e}", _X(x), _Y(y) + 4, strong=True, **name))
        (x, y), eps = s["point"], s["eps"]
        box = [(x - eps, y - eps), (x + eps, y - eps), (x + eps, y + eps), (x - eps, y + eps)]
        for e in range(2):
            part = _clip(box, tuple((2 * e - 1) * number for number in router))
            points = " ".join(f"{_X(x):.2f},{_Y(y):.2f}" for x, y in part)
            ink = {"stroke": _EXPERTS[e], "stroke_width": 2, "fill": _EXPERTS[e], "fill_opacity": 0.18}
            marks.append(tag("polygon", points=points, **ink, data_part=e))
        ring, sign = {"stroke": "currentColor", "stroke_width": 1.5}, "+" if s["label"] > 0 else "−"
        inside: dict[str, object] = {"text_anchor": "middle", "font_size": 16, "font_weight": 600, "data_sign": ""}
        shape = "fill: #fff; paint-order: stroke; stroke: #0008; stroke-width: 2px; pointer-events: none"
        marks.append(
            tag(
                "g",
                tag("circle", r=10, fill=_EXPERTS[v["route"]], **ring),
                tag("circle", r=18, fill="transparent"),
                tag("text", sign, y=5.5, style=shape, fill="#fff", **inside),
                transform=f"translate({_X(s['point'][0]):.2f} {_Y(s['point'][1]):.2f})",
                style="cursor: move",
                data_handle="",
            )
        )
        for e, (at, margin) in enumerate(zip(v["worst"], v["by_expert"], strict=True)):
            dot = tag("circle", r=5.5, fill=_EXPERTS[e], **ring)
            there = at != "not reached"
            beaten = "visible" if there and margin <= 0 else "hidden"
            cross = tag("path", d="M-8 -8L8 8M8 -8L-8 8", **ring | {"stroke_width": 2.5}, visibility=beaten)
            place = f"translate({_X(at[0]):.2f} {_Y(at[1]):.2f})" if there else "translate(0.00 0.00)"
            seen = {"style": "pointer-events: none" if there else "display: none", "data_worst": e}
            marks.append(tag("g", dot, cross, transform=place, **seen))
        return draw.svg(
            _SIDE + 2 * _LEFT,
            _TOP + _SIDE + 20,
            "A plane with the router's line and two experts' lines, a point in its box of possible attacks with the "
            "worst place for each expert, and the verdict for every place of the plane",
            tag("g", *marks, data_x="", **_X.data()),
            tag("g", data_y="", **_Y.data()),
        )


def _signed(number: float) -> str:
    return f"{number:+.2f}".replace("-", "−")


def _margin(margin: float | str) -> str:
    return "out of reach" if isinstance(margin, str) else _signed(margin)


def _error(gap: float) -> str:
    return "none" if abs(gap) < 0.005 else f"{fixed(abs(gap), 2)} too {'high' if gap > 0 else 'low'}"


def _tiles(cells: str) -> list[str]:
    """For the three kinds that are not safe, a path of all their cells, run by run."""
    paths = [""] * 3
    for r in range(GRID):
        line, start = cells[r * GRID : (r + 1) * GRID], 0
        for c in range(1, GRID + 1):
            if c == GRID or line[c] != line[start]:
                if line[start] != "0":
                    width = _CELL * (c - start)
                    run = f"M{_LEFT + _CELL * start} {_TOP + _CELL * r}h{width}v{_CELL}h-{width}z"
                    paths[int(line[start]) - 1] += run
                start = c
    return [path or "M0 0" for path in paths]


def _ends(line: tuple[float, ...], *sides: tuple[float, ...]) -> list[tuple[float, float]]:
    """Where (u, v, w): u x + v y + w = 0 enters and leaves the plane and the sides where forms are not negative."""
    u, v, w = line
    size = u * u + v * v
    low, high = -9.0, 9.0
    for p, q, r in ((1, 0, SPAN), (-1, 0, SPAN), (0, 1, SPAN), (0, -1, SPAN), *sides):
        start, slope = r - (p * u + q * v) * w / size, q * u - p * v
        if abs(slope) < 1e-12:
            high = high if start >= 0 else low
        elif slope > 0:
            low = max(low, -start / slope)
        else:
            high = min(high, -start / slope)
    return [(-u * w / size - v * t, -v * w / size + u * t) for t in (low, high)] if low < high else []


def _path(ends: list[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{_X(x):.2f} {_Y(y):.2f}" for x, y in ends or [(-SPAN, SPAN)])


def _names(router: tuple[float, ...]) -> list[tuple[float, float]]:
    """Where the words on both sides of the router's line stand: below its upper end."""
    u, v, _ = router
    x, y = _ends(router)[1]
    middle, limit = (x + 0.2 * v, y - 0.2 * u), SPAN - 0.2
    return [
        (max(-limit, min(limit, middle[0] + k * u)), max(-limit, min(limit, middle[1] + k * v))) for k in (-0.25, 0.25)
    ]


def _clip(corners: list[tuple[float, float]], side: tuple[float, ...]) -> list[tuple[float, float]]:
    """The part of a polygon where the side's form is not negative."""
    kept, heights = [], [side[0] * x + side[1] * y + side[2] for x, y in corners]
    for i, (x, y) in enumerate(corners):
        (before, behind), h, g = corners[i - 1], heights[i], heights[i - 1]
        if (h >= 0) != (g >= 0):
            share = g / (g - h)
            kept.append((before + share * (x - before), behind + share * (y - behind)))
        if h >= 0:
            kept.append((x, y))
    return kept
