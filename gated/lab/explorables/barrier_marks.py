"""The pictures of the barrier's figure: what `barrier.js` moves later."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from gated.lab.explorables import drawing as draw
from gated.lab.explorables.barrier_scene import (
    JAM,
    OBSTACLE,
    RADIUS,
    SECOND,
    SHOT,
    SHOWN,
    SLOW,
    STEPS,
    TICK,
    ZETAS,
    polygon,
)
from gated.lab.explorables.drawing import Axis, Number, rule, tag, text

BLUE, ORANGE = "var(--gx-blue, #0072b2)", "var(--gx-orange, #c46a00)"
GREEN, RED, GREY = "var(--gx-green, #00805b)", "var(--gx-red, #c8430a)", "var(--gx-grey, #77808a)"
AGENTS = (BLUE, ORANGE)

X, Y, UNIT = Axis(-1.6, 1.6, 4, 316), Axis(-1.1, 1.1, 238, 23.5), 97.5
U, V = Axis(-1.15, 1.15, 30, 306), Axis(-1.15, 1.15, 300, 24)
GAP, SPEED = Axis(0, 1.6, 36, 312), Axis(0, 1.5, 152, 26)
DX, DY, DOOR = Axis(-1.75, 1.75, 4, 316), Axis(-0.85, 0.85, 176, 24.5), 312 / 3.5
TIME, CLEAR = Axis(0, STEPS, 36, 306), Axis(0, 1, 122, 26)
CELLS = Axis(-0.35, 1.35, 36, 308), Axis(-0.35, 1.35, 292, 20)
CELL = 16
SECONDS, BRAKE, ROOM = Axis(0, SHOT, 36, 312), Axis(0, 4.5, 170, 26), Axis(-1, 3, 130, 26)
ALPHA, PEAK = Axis(0, 6, 36, 312), Axis(0, 4.5, 250, 26)
SHADES = (105, 130, 160, STEPS)
"""A cell of the map that takes at most so many steps has the next lighter blue."""
INK = ("0.95", "0.7", "0.45", "0.25")
_SOLID: dict[str, Any] = {"fill": "none", "stroke_width": 2.5, "stroke_linejoin": "round", "pointer_events": "none"}


def path(points: Iterable[Sequence[Number]], close: str = "") -> str:
    """Lines through points, in pixels."""
    joined = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return f"M{joined}{close}" if joined else "M0 0"


def curve(x: Axis, xs: Sequence[Number], y: Axis, ys: Sequence[Number], every: int = 1) -> str:
    """Each so many points, and the last."""
    last = len(xs) - 1
    return path([(x(p), y(q)) for i, (p, q) in enumerate(zip(xs, ys, strict=True)) if i % every == 0 or i == last])


def arrow(x: Number, y: Number, dx: Number, dy: Number) -> str:
    """From (x, y) on by (dx, dy), in pixels."""
    size = math.hypot(dx, dy)
    if size < 5:
        return "M0 0"
    tip, p, q = (x + dx, y + dy), 7 * dx / size, 7 * dy / size
    left, right = (tip[0] - p + 0.5 * q, tip[1] - q - 0.5 * p), (tip[0] - p - 0.5 * q, tip[1] - q + 0.5 * p)
    return path([(x, y), tip]) + path([left, tip, right])


def seen(there: bool) -> str:
    return "visible" if there else "hidden"


def axes(**named: Axis) -> str:
    """Empty marks that carry the axes."""
    return "".join(tag("g", data_axis=name, **axis.data()) for name, axis in named.items())


def _frame(x: Axis, y: Axis, across: dict[Number, str], up: dict[Number, str]) -> list[str]:
    marks = [rule(x.start, y(v), x.stop, y(v), faint=y(v) < y.start) for v in up]
    marks += [text(word, x.start - 6, y(v) + 4, text_anchor="end", fill_opacity="0.72") for v, word in up.items()]
    return marks + [
        text(word, x(v), y.start + 15, text_anchor="middle", fill_opacity="0.72") for v, word in across.items()
    ]


# The first view -------------------------------------------------------------------------------------------------------


def _disc(key: str, at: Sequence[Number], radius: Number, colour: str, word: str) -> str:
    """A disc that is dragged."""
    look = {"fill": colour, "fill_opacity": "1" if key == "agent" else "0.35", "stroke": colour}
    if key == "goal":
        look |= {"fill": "none", "stroke_dasharray": "3 3"}
    marks = tag("circle", r=radius, stroke_width=1.5, **look) + tag("circle", r=max(radius, 19.0), fill="transparent")
    y = 4 if key == "obstacle" else round(radius) + 12
    marks += text(word, 0, y, text_anchor="middle", style="pointer-events: none")
    return tag("g", marks, transform=f"translate({X(at[0]):.2f} {Y(at[1]):.2f})", style="cursor: move", data_handle=key)


def scene(s: dict[str, Any], v: dict[str, Any]) -> str:
    """Agent, neighbour, goal and obstacle, with the wish and what the filter takes."""
    frame = {"x": X.start, "y": Y.stop, "width": X.stop - X.start, "height": Y.start - Y.stop, "fill": "none"}
    marks = [text("The place: drag the discs and the goal", 4, 14, strong=True)]
    marks.append(tag("rect", **frame, stroke="currentColor", stroke_opacity=0.3))
    marks.append(_disc("agent", s["agent"], RADIUS * UNIT, BLUE, "agent"))
    marks.append(_disc("neighbour", s["neighbour"], RADIUS * UNIT, ORANGE, "neighbour"))
    marks.append(_disc("obstacle", s["obstacle"], OBSTACLE * UNIT, GREY, "obstacle"))
    marks.append(_disc("goal", s["goal"], 14.0, BLUE, "goal"))
    marks.append(tag("path", d=_from(s["neighbour"], v["comes"]), stroke=ORANGE, **_SOLID, data_arrow="comes"))
    wish = {"stroke": "currentColor", "stroke_dasharray": "4 3", **_SOLID, "stroke_width": 1.75}
    marks.append(tag("path", d=_from(s["agent"], v["wish"]), **wish, data_arrow="wish"))
    taken = _SOLID | {"stroke_width": 3.5}
    marks.append(tag("path", d=_from(s["agent"], v["u"]), stroke=GREEN, **taken, data_arrow="u"))
    label = "An agent, its neighbour, its goal and an obstacle, with the wished and the filtered velocity as arrows"
    return draw.svg(320, 242, label, *marks, axes(x=X, y=Y))


def _from(at: Sequence[Number], velocity: Sequence[Number]) -> str:
    return arrow(X(at[0]), Y(at[1]), 0.6 * UNIT * velocity[0], -0.6 * UNIT * velocity[1])


def speeds(v: dict[str, Any]) -> str:
    """The allowed speed of approach by the gap, with the two gaps of the moment."""
    marks = [text("Allowed approach speed by the gap", 4, 14, strong=True)]
    marks += _frame(GAP, SPEED, {0: "gap 0", 0.5: "0.5", 1: "1", 1.5: "1.5"}, {0: "0", 0.5: "0.5", 1: "1", 1.5: "1.5"})
    for i, colour in enumerate((ORANGE, GREY)):
        marks.append(tag("path", d=curve(GAP, SHOWN, SPEED, v["curves"][i]), stroke=colour, **_SOLID, data_curve=i))
        x, y = GAP(v["gaps"][i]), SPEED(v["allowed"][i])
        marks.append(tag("circle", cx=x, cy=y, r=6, fill="none", stroke=colour, stroke_width=2.5, data_allowed=i))
        marks.append(tag("circle", cx=x, cy=SPEED(v["closing"][i]), r=4, fill=colour, data_closing=i))
    label = "How fast an agent may approach, by the gap to a disc: a curve for the neighbour and one for the obstacle"
    return draw.svg(320, 172, label, *marks, axes(gap=GAP, speed=SPEED))


def controls(v: dict[str, Any]) -> str:
    """The plane of controls: half-planes, what they leave, the wish and the answer."""
    marks = [text("Its controls: what the rows leave", 4, 14, strong=True)]
    for at, word in {-1: "−1", 0: "u = 0", 1: "1"}.items():
        marks += [rule(U(at), V.stop, U(at), V.start), rule(U.start, V(at), U.stop, V(at))]
        marks.append(text(word, U(at), V.start + 13, text_anchor="middle", fill_opacity="0.72"))
    box = {"x": U(-1), "y": V(1), "width": U(1) - U(-1), "height": V(-1) - V(1), "fill": "none"}
    for i, colour in enumerate((ORANGE, GREY)):
        d = path([(U(p), V(q)) for p, q in forbidden(v["normals"][i], v["bounds"][i])], "Z")
        marks.append(tag("path", d=d, fill=colour, fill_opacity=0.22, data_forbidden=i))
        marks.append(tag("path", d=edge(v["normals"][i], v["bounds"][i]), stroke=colour, **_SOLID, data_edge=i))
    d = path([(U(p), V(q)) for p, q in v["polygon"]], "Z")
    marks.append(tag("path", d=d, fill=GREEN, fill_opacity=0.18, stroke=GREEN, stroke_width=1.5, data_polygon=""))
    red = v["kind"] == "infeasible"
    border = (RED, "4") if red else ("currentColor", "1.5")
    marks.append(tag("rect", **box, stroke=border[0], stroke_width=border[1], data_box=""))
    (a, b), (c, d2) = v["wish"], v["u"]
    marks.append(tag("path", d=path([(U(a), V(b)), (U(c), V(d2))]), stroke="currentColor", stroke_dasharray="4 3",
                     fill="none", data_cut=""))  # fmt: skip
    ring = {"fill": "none", "stroke": "currentColor", "stroke_width": 2, "data_dot": "wish"}
    marks.append(tag("circle", cx=U(a), cy=V(b), r=6, **ring))
    marks.append(tag("circle", cx=U(c), cy=V(d2), r=6, fill=RED if red else GREEN, data_dot="u"))
    word = tag("text", "No control fulfils all rows", x=168, y=37, text_anchor="middle", font_size=13, data_strong="",
               fill=RED, style=f"fill: {RED}", visibility=seen(red), data_empty="")  # fmt: skip
    label = "The plane of the agent's controls with one half-plane per disc, the polygon they leave, wish and answer"
    return draw.svg(320, 318, label, *marks, word, axes(u=U, v=V))


def forbidden(normal: Sequence[Number], bound: Number) -> list[list[float]]:
    """The corner points of the part of the box that a row forbids."""
    return polygon([(-normal[0], -normal[1], -bound)])


def edge(normal: Sequence[Number], bound: Number) -> str:
    """The line of a row, inside the box."""
    (p, q), corners = normal, []
    for i in (-1.0, 1.0):
        if abs(q) > 1e-9 and abs(y := (bound - p * i) / q) <= 1:
            corners.append((i, y))
        if abs(p) > 1e-9 and abs(x := (bound - q * i) / p) < 1:
            corners.append((x, i))
    return path([(U(x), V(y)) for x, y in corners[:2]]) if len(corners) > 1 else "M0 0"


# The doorway ----------------------------------------------------------------------------------------------------------


def doorway(s: dict[str, Any], v: dict[str, Any], goals: Sequence[Sequence[Number]], gap: Number) -> str:
    now, marks = min(s["time"], len(v["path"]) - 1), []
    top, half = DY.high, 1 + gap / 2
    wide = math.sqrt(1 - (half - top) ** 2)
    for side in (1, -1):
        level, ends = f"{DY(side * top):.2f}", [f"{DX(end):.2f}" for end in (-wide, wide)]
        d = f"M{ends[0]} {level}A{DOOR:.2f} {DOOR:.2f} 0 0 {int(side < 0)} {ends[1]} {level}Z"
        marks.append(tag("path", d=d, fill=GREY, fill_opacity=0.35, stroke=GREY))
    marks.append(text(status(now, v), 4, 14, strong=True, data_status=""))
    for i, colour in enumerate(AGENTS):
        track = [(DX(row[2 * i]), DY(row[2 * i + 1])) for row in v["path"]]
        x, y = goals[i]
        marks.append(tag("circle", cx=DX(x), cy=DY(y), r=9, fill="none", stroke=colour, stroke_dasharray="3 3"))
        thin = _SOLID | {"stroke_width": 1.5, "stroke_opacity": 0.4}
        marks.append(tag("path", d=path(track), **thin, stroke=colour, data_track=i))
        marks.append(tag("path", d=path(track[: now + 1]), stroke=colour, **_SOLID, data_past=i))
        place = f"translate({track[now][0]:.2f} {track[now][1]:.2f})"
        paper = {"style": "fill: var(--pst-color-background, #fff)", "text_anchor": "middle"}
        number = tag("text", str(i + 1), y=4, font_size=12, **paper)
        marks.append(tag("g", tag("circle", r=RADIUS * DOOR, fill=colour), number, transform=place, data_disc=i))
    label = "Two round agents, one above and one below, on their ways through a door between two posts"
    return draw.svg(320, 182, label, *marks, axes(dx=DX, dy=DY))


def status(now: int, v: dict[str, Any]) -> str:
    end = len(v["path"]) - 1
    words = {JAM: "jam", SLOW: "too slow"}.get(v["steps"], "both are through")
    return f"Step {now} of {end}" + (f": {words}" if now == end else "")


def clearance(s: dict[str, Any], v: dict[str, Any]) -> str:
    """Gaps over the steps: between the agents, and of each to the nearer post."""
    marks = [text("Gaps over the steps: below 0 is a collision", 4, 14, strong=True)]
    marks += _frame(TIME, CLEAR, {0: "0", 50: "50", 100: "100", 150: "150", 200: "200"}, {0: "0", 0.5: "0.5", 1: "1"})
    marks.append(rule(36, CLEAR(0), TIME.stop, CLEAR(0), stroke=RED, stroke_opacity=1, stroke_width=1.5))
    times = list(range(len(v["path"])))
    rows = {"pair": (v["pair"], GREEN), "one": (v["post"][0], BLUE), "two": (v["post"][1], ORANGE)}
    for name, (series, colour) in rows.items():
        look = _SOLID | {"stroke_width": 2.5 if name == "pair" else 1.25}
        marks.append(tag("path", d=curve(TIME, times, CLEAR, series, 4), stroke=colour, **look, data_series=name))
    at = TIME(min(s["time"], len(times) - 1))
    marks.append(rule(at, CLEAR.stop, at, CLEAR.start, faint=False, data_now=""))
    label = "The gap between the two agents and their gaps to the posts, over the steps; none goes below 0"
    return draw.svg(320, 140, label, *marks, axes(time=TIME, clear=CLEAR))


def cells(steps: Sequence[int]) -> list[str]:
    """A path for each shade of blue, for jams and for what is too slow; runs of cells of a row in one."""
    kinds, n = [shade(one) for one in steps], len(ZETAS)
    out = [""] * (len(INK) + 2)
    for j in range(n):
        start = 0
        for i in range(1, n + 1):
            if i < n and kinds[n * j + i] == kinds[n * j + start]:
                continue
            x, y, width = CELLS[0].start + CELL * start, CELLS[1].start - CELL * (j + 1), CELL * (i - start)
            out[kinds[n * j + start]] += f"M{x} {y}h{width}v{CELL}h-{width}z"
            start = i
    return [d or "M0 0" for d in out]


def shade(steps: int) -> int:
    if steps < 0:
        return len(INK) + (steps == SLOW)
    return next(i for i, most in enumerate(SHADES) if steps <= most)


def chart(s: dict[str, Any], steps: Sequence[int]) -> str:
    """The map over both strengths; the marker stands at the sliders."""
    marks = [text("Outcome by ζ₁ (across) and ζ₂ (up)", 4, 12, strong=True)]
    colours = [*[(BLUE, ink) for ink in INK], (RED, "0.9"), (GREY, "0.5")]
    for i, (d, (colour, ink)) in enumerate(zip(cells(steps), colours, strict=True)):
        marks.append(tag("path", d=d, fill=colour, fill_opacity=ink, data_cells=i))
    cover = {"x": CELLS[0].start, "y": CELLS[1].stop, "width": 272, "height": 272, "fill": "transparent"}
    marks.append(tag("rect", **cover, data_pick="map"))
    for zeta in (0.5, 1, 2, 5, 10, 20):
        at = math.log10(zeta)
        marks.append(text(f"{zeta:g}", CELLS[0](at), 307, text_anchor="middle", fill_opacity="0.72"))
        marks.append(text(f"{zeta:g}", 30, CELLS[1](at) + 4, text_anchor="end", fill_opacity="0.72"))
    ring = {"fill": "none", "stroke_width": 2.5}
    spot = tag("circle", r=7, **ring | {"stroke_width": 5.0}, stroke="var(--pst-color-background, #fff)")
    spot += tag("circle", r=7, **ring, stroke="currentColor") + tag("circle", r=18, fill="transparent")
    place = f"translate({CELLS[0](math.log10(s['zeta_1'])):.2f} {CELLS[1](math.log10(s['zeta_2'])):.2f})"
    marker = tag("g", spot, transform=place, style="cursor: move", data_handle="map", visibility=seen(not s["run"]))
    label = "Map of what comes of the strengths of both agents: steps to finish, jam, or too slow"
    return draw.svg(320, 312, label, *marks, marker, axes(one=CELLS[0], two=CELLS[1]))


# Braking --------------------------------------------------------------------------------------------------------------


def demand(s: dict[str, Any], v: dict[str, Any]) -> str:
    """What is demanded of the brakes over time; red where they cannot give it."""
    times = [16 * TICK * i for i in range(len(v["wanted"]))]
    marks = [text("Demanded deceleration over time", 4, 14, strong=True)]
    marks += _frame(SECONDS, BRAKE, {0: "0", 2: "2", 4: "4", 5.75: "6 s"}, {0: "0", 1: "1", 2: "2", 3: "3", 4: "4"})
    y = BRAKE(s["brake"])
    over = {"x": 36, "width": 276, "y": 26, "height": y - 26, "fill": RED, "fill_opacity": 0.12}
    marks.append(tag("rect", **over, visibility=seen(v["kind"] != "brakes"), data_over="demand"))
    marks.append(rule(36, y, 312, y, stroke=ORANGE, stroke_opacity=1, stroke_width=2, data_level="demand"))
    marks.append(text("uₘₐₓ", 312, y - 4, text_anchor="end", data_name="demand"))
    ink = BLUE if v["kind"] == "brakes" else RED
    ideal = {"stroke": "currentColor", "stroke_dasharray": "4 3", "fill": "none", "stroke_width": 1.5, "data_ideal": ""}
    marks.append(tag("path", d=curve(SECONDS, SECOND, BRAKE, v["ideal"]), **ideal))
    marks.append(tag("path", d=curve(SECONDS, times, BRAKE, v["wanted"]), stroke=ink, **_SOLID, data_wanted=""))
    label = "The deceleration that the filter demands over time, and the most that the brakes give"
    return draw.svg(320, 190, label, *marks, axes(seconds=SECONDS, decel=BRAKE))


def room(v: dict[str, Any]) -> str:
    """The gap to the wall over time."""
    times = [16 * TICK * i for i in range(len(v["gap"]))]
    marks = [text("Gap to the wall over time", 4, 14, strong=True)]
    marks += _frame(SECONDS, ROOM, {0: "0", 2: "2", 4: "4", 5.75: "6 s"}, {-1: "−1", 0: "0", 1: "1", 2: "2", 3: "3"})
    wall = {"x": 36, "width": 276, "y": ROOM(0), "height": ROOM(-1) - ROOM(0), "fill": GREY, "fill_opacity": 0.3}
    marks.append(tag("rect", **wall))
    marks.append(text("wall", 42, ROOM(-0.75), fill_opacity="0.72"))
    ink = RED if v["kind"] == "hit" else BLUE
    marks.append(tag("path", d=curve(SECONDS, times, ROOM, v["gap"]), stroke=ink, **_SOLID, data_room=""))
    label = "The gap to the wall over time; below 0 lies the wall"
    return draw.svg(320, 150, label, *marks, axes(room=ROOM))


def peaks(s: dict[str, Any], v: dict[str, Any]) -> str:
    """The peak of the demand over alpha, with the threshold."""
    marks = [text("Peak demand by ζ", 4, 14, strong=True)]
    marks += _frame(ALPHA, PEAK, {0: "0", 1: "1", 2: "2", 3: "3", 4: "4", 5: "5", 6: "6"},
                    {0: "0", 1: "1", 2: "2", 3: "3", 4: "4"})  # fmt: skip
    x, y, ink = ALPHA(v["threshold"]), PEAK(s["brake"]), BLUE if v["kind"] == "brakes" else RED
    marks.append(tag("rect", x=x, y=26, width=312 - x, height=224, fill=RED, fill_opacity=0.12, data_over="peak"))
    marks.append(tag("path", d=_ray(s["v0"] / math.e), stroke=BLUE, **_SOLID, data_ray=""))
    marks.append(rule(36, y, 312, y, stroke=ORANGE, stroke_opacity=1, stroke_width=2, data_level="peak"))
    marks.append(text("uₘₐₓ", 312, y - 4, text_anchor="end", data_name="peak"))
    marks.append(rule(x, 250, x, 26, stroke=RED, stroke_opacity=1, stroke_dasharray="4 3", data_threshold=""))
    marks.append(text("infeasible →", min(x + 5, 240), 40, style=f"fill: {RED}", data_beyond="",
                      visibility=seen(v["threshold"] < ALPHA.high)))  # fmt: skip
    marks.append(
        tag("circle", cx=ALPHA(s["alpha"]), cy=PEAK(v["peak"]), r=7, fill=ink, stroke="currentColor", data_peak="")
    )
    label = (
        "The hardest braking that the filter demands, a line over zeta, with the threshold where it exceeds the brakes"
    )
    return draw.svg(320, 270, label, *marks, axes(alpha=ALPHA, peak=PEAK))


def _ray(slope: Number) -> str:
    """The line peak = slope alpha, as far as it lies in the picture."""
    end = min(ALPHA.high, PEAK.high / slope)
    return path([(ALPHA(0), PEAK(0)), (ALPHA(end), PEAK(slope * end))])
