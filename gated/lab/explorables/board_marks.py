"""The places and panels of the figure of the board, as strings of the same bytes each time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gated.lab.explorables import drawing as draw
from gated.lab.explorables.board_run import AGENTS, LIMIT, SIZE
from gated.lab.explorables.drawing import fixed, rule, tag, text

BLUE, ORANGE = "var(--gx-blue, #0072b2)", "var(--gx-orange, #c46a00)"
GREEN, RED, GREY = "var(--gx-green, #00805b)", "var(--gx-red, #c8430a)", "var(--gx-grey, #77808a)"
PAGE = "var(--pst-color-background, Canvas)"
INK = ("currentColor", PAGE, PAGE)
"""Of an agent's number, by its state: nothing known, knows, done."""
FILLS = (PAGE, BLUE, GREEN)
CELL, LEFT, TOP = 60, 20, 28
ROW, HEAD, SIDE, WIDE = 34, 44, 62, 42
STRONGEST, DEAREST = 4, 3
TIME, LANE = draw.Axis(0, LIMIT + 1, 66, 330), 19
WORTH, BAR = draw.Axis(0, DEAREST, 108, 330), 19
CHANCE, SLOT = draw.Axis(0, 1, 136, 36), 50
ARROWS = {"shut": (GREY, 1.5, "1 4"), "empty": (GREY, 2, None), "told": (BLUE, 2, None), "news": (BLUE, 3.5, None)}
"""What an edge does in this step: colour, width, dashes."""


def seen(there: object) -> str:
    return "visible" if there else "hidden"


def name(agent: int, seers: int) -> str:
    return f"{agent} {'sees' if agent < seers else 'blind'}"


def centre(cell: int) -> tuple[float | int, float | int]:
    return LEFT + CELL * (cell % SIZE) + CELL // 2, TOP + CELL * (cell // SIZE) + CELL // 2


def spots(cells: Sequence[int]) -> list[tuple[float, float]]:
    """Where the agents are drawn: up to three in a row, up to two rows in a cell."""
    places = []
    for i, cell in enumerate(cells):
        here = [j for j, other in enumerate(cells) if other == cell]
        rank, m = here.index(i), len(here)
        wide = m if m <= 3 else math.ceil(m / 2)
        x, y = centre(cell)
        places.append((x + 19.0 * (rank % wide - (wide - 1) / 2), y + (22.0 * (rank // wide) - 11 if m > 3 else 0.0)))
    return places


def arrow(start: Sequence[float], stop: Sequence[float]) -> str:
    """A bent arrow between two spots, so that the way back is another line."""
    dx, dy = stop[0] - start[0], stop[1] - start[1]
    far = math.sqrt(dx * dx + dy * dy)
    u, w, bend = dx / far, dy / far, min(30.0, 0.2 * far)
    leave, land = min(12.0, 0.3 * far), min(14.0, 0.35 * far)
    ax, ay, bx, by = start[0] + u * leave, start[1] + w * leave, stop[0] - u * land, stop[1] - w * land
    cx, cy = (ax + bx) / 2 - w * bend, (ay + by) / 2 + u * bend
    ex, ey = bx - cx, by - cy
    size = math.sqrt(ex * ex + ey * ey)
    p, q = 6 * ex / size, 6 * ey / size
    curve = f"M{ax:.2f} {ay:.2f}Q{cx:.2f} {cy:.2f} {bx:.2f} {by:.2f}"
    return curve + f"L{bx - p - q:.2f} {by - q + p:.2f}M{bx:.2f} {by:.2f}L{bx - p + q:.2f} {by - q - p:.2f}"


def arrows(frame: dict[str, Any], graph: list[str]) -> list[str]:
    """A path for each kind of `ARROWS`."""
    at, paths = spots(frame["cells"]), [""] * len(ARROWS)
    for i, kinds in enumerate(frame["arrows"]):
        for j, kind in zip([j for j, a in enumerate(graph[i]) if a == "1"], kinds, strict=False):
            paths[int(kind)] += arrow(at[j], at[i])
    return [path or "M0 0" for path in paths]


def trail(frames: list[dict[str, Any]], agent: int) -> str:
    """The way of an agent through the cells, beside the others' ways, to where it is drawn."""
    shift = 3 * agent - 7
    points = [(x + shift, y + shift) for x, y in (centre(frame["cells"][agent]) for frame in frames)]
    x, y = spots(frames[-1]["cells"])[agent]
    return "M" + "".join(f"{x} {y}L" for x, y in points) + f"{x:.2f} {y:.2f}"


def views(cells: Sequence[int], seers: int, vision: int) -> list[float]:
    """How much each cell is shaded: those in some window."""
    return [0.14 if any(_apart(cell, at) <= vision for at in cells[:seers]) else 0.0 for cell in range(SIZE**2)]


def _apart(a: int, b: int) -> int:
    return max(abs(a // SIZE - b // SIZE), abs(a % SIZE - b % SIZE))


def board(frame: dict[str, Any], v: dict[str, Any], s: dict[str, Any], *, n: int, seers: int, vision: int) -> str:
    marks = [text(status(v, v["t"]), LEFT, 16, strong=True, data_status="")]
    for cell, shade in enumerate(views(frame["cells"], seers, vision)):
        x, y = centre(cell)
        box = {"x": x - CELL / 2, "y": y - CELL / 2, "width": CELL, "height": CELL}
        marks.append(tag("rect", **box, fill=BLUE, fill_opacity=shade, data_view=cell))
        marks.append(tag("rect", **box, fill="none", stroke="currentColor", stroke_opacity=0.25))
    x, y = centre(s["prey"])
    diamond = tag("path", d="M0 -27L27 0L0 27L-27 0Z", fill=RED, fill_opacity=0.2, stroke=RED, stroke_width=2.5)
    hold: dict[str, Any] = {"style": "cursor: move; touch-action: none"}
    marks.append(tag("g", diamond, transform=f"translate({x:.2f} {y:.2f})", data_handle=AGENTS, **hold))
    thin: dict[str, Any] = {"fill": "none", "stroke_linecap": "round", "stroke_linejoin": "round"}
    for i in range(AGENTS):
        d = trail(v["frames"][: v["t"] + 1], i) if i < n else "M0 0"
        marks.append(tag("path", d=d, stroke=GREY, stroke_width=1.5, stroke_opacity=0.45, **thin, data_trail=i))
    for (kind, (colour, width, dash)), d in zip(ARROWS.items(), arrows(frame, v["graph"]), strict=True):
        look = {"stroke": colour, "stroke_width": width, "stroke_dasharray": dash, "pointer_events": "none"}
        marks.append(tag("path", d=d, **look, **thin, data_arrow=kind))
    places = spots(frame["cells"])
    for i in range(AGENTS):
        x, y = places[i] if i < n else (0, 0)
        state = frame["state"][i] if i < n else 0
        edge: dict[str, Any] = {"fill": FILLS[state], "stroke": "currentColor", "stroke_width": 1.5}
        round_, square = seen(i < seers and i < n), seen(seers <= i < n)
        body = tag("circle", r=17, fill="transparent") + tag("circle", r=9.5, **edge, visibility=round_, data_body=i)
        body += tag("rect", x=-9, y=-9, width=18, height=18, rx=2, **edge, visibility=square, data_body=i)
        ink = {"style": f"fill: {INK[state]}; pointer-events: none", "font_weight": 600, "font_size": 12}
        body += tag("text", f"{i}", y=4.5, text_anchor="middle", **ink, data_number=i)
        where = {"transform": f"translate({x:.2f} {y:.2f})", "visibility": seen(i < n), "data_handle": i}
        marks.append(tag("g", body, **where, **hold))
    label = "A board of five by five cells with a prey, agents that see or are blind, and the messages of this step"
    return draw.svg(340, TOP + CELL * SIZE + 6, label, *marks)


def status(v: dict[str, Any], t: int) -> str:
    ending = f"solved in {v['steps']}" if v["solved"] else f"not solved in {LIMIT}"
    return f"Step {t} of {v['steps']}: {ending}"


def runs(line: str, mark: str, y: float, row: int) -> str:
    """A path of the stretches at which a line of digits holds `mark`."""
    d, start = "", -1
    for t in range(len(line) + 1):
        on = t < len(line) and line[t] == mark
        if on and start < 0:
            start = t
        if not on and start >= 0:
            d += f"M{TIME(start):.2f} {y + LANE * row:.2f}H{TIME(t):.2f}"
            start = -1
    return d


def lanes(v: dict[str, Any]) -> list[str]:
    """Paths: who knows, who is done, whose gate is open."""
    rows = [(v["states"], "1", 29.0), (v["states"], "2", 29.0), (v["opened"], "1", 36.5)]
    return ["".join(runs(line, mark, y, i) for i, line in enumerate(lines)) or "M0 0" for lines, mark, y in rows]


def timeline(v: dict[str, Any], *, n: int, seers: int) -> str:
    marks, low = [text("Who knows, and who listens", 8, 14, strong=True)], 24 + LANE * AGENTS
    for t in (0, 5, 10, 15, 20):
        marks.append(rule(TIME(t), 22, TIME(t), low))
        marks.append(text(f"{t}", TIME(t + 0.5), low + 14, text_anchor="middle"))
    for i in range(AGENTS):
        look: dict[str, Any] = {"visibility": seen(i < n), "data_lane": i}
        marks.append(text(name(i, seers), 8, 33 + LANE * i, **look))
    for (kind, colour, width), d in zip(
        (("knows", BLUE, 9), ("done", GREEN, 9), ("open", ORANGE, 3)), lanes(v), strict=True
    ):
        marks.append(tag("path", d=d, fill="none", stroke=colour, stroke_width=width, data_run=kind))
    box = {"y": 20, "width": TIME(1) - TIME(0), "height": low - 18, "fill": "none", "stroke": "currentColor"}
    marks.append(tag("rect", x=TIME(v["t"]), **box, stroke_width=1.5, data_now=""))
    label = "For each agent and step, whether it knows where the prey is, is done, and has its gate open"
    return draw.svg(340, low + 20, label, tag("g", *marks, data_time="", **TIME.data()))


def matrix(v: dict[str, Any], logits: list[float], marked: tuple[int, int], *, n: int, seers: int) -> str:
    marks = [text("Logits: row i hears the k largest", 8, 14, strong=True), text("hears", 8, HEAD - 6)]
    for j in range(AGENTS):
        look: dict[str, Any] = {"text_anchor": "middle", "visibility": seen(j < n), "data_column": j}
        marks.append(text(f"{j}", SIDE + WIDE * (j + 0.5), HEAD - 6, **look))
    for i in range(AGENTS):
        y = HEAD + ROW * i
        marks.append(text(name(i, seers), 8, y + 21, visibility=seen(i < n), data_row=i))
        check, colour = ("✓", GREEN) if i < n and v["told"][i] else ("✗", RED)
        look = {"style": f"fill: {colour}", "visibility": seen(seers <= i < n), "data_check": i}
        marks.append(text(check, 318, y + 21, strong=True, **look))
        for j in range(AGENTS):
            if i != j:
                marks.append(_entry(i, j, logits, v["graph"], seen(i < n and j < n)))
    i, j = marked
    frame = {
        "x": SIDE + WIDE * j + 1.0,
        "y": HEAD + ROW * i + 1.0,
        "width": WIDE - 2,
        "height": ROW - 2,
        "fill": "none",
    }
    look = {"stroke": "currentColor", "stroke_width": 2, "stroke_dasharray": "3 3", "pointer_events": "none"}
    marks.append(tag("rect", **frame, **look, data_marked=""))
    label = "The matrix of logits: rows are receivers, columns senders; the edges of the graph are framed"
    return draw.svg(340, HEAD + ROW * AGENTS + 4, label, *marks)


def shade(logit: float) -> float:
    return 0.6 * (logit + STRONGEST) / (2 * STRONGEST)


def _entry(i: int, j: int, logits: list[float], graph: list[str], there: str) -> str:
    x, y, logit = SIDE + WIDE * j, HEAD + ROW * i, logits[AGENTS * i + j]
    box = {"x": x + 3, "y": y + 3, "width": WIDE - 6, "height": ROW - 6, "rx": 3}
    kept = there == "visible" and graph[i][j] == "1"
    parts = tag("rect", x=x, y=y, width=WIDE, height=ROW, fill="transparent")
    parts += tag("rect", **box, fill=BLUE, fill_opacity=shade(logit), stroke=GREY, stroke_width=0.5)
    parts += tag("rect", **box, fill="none", stroke=ORANGE, stroke_width=3.5, visibility=seen(kept))
    number = fixed(logit, 1).replace("-", "−")
    parts += text(number, x + WIDE / 2, y + 21, text_anchor="middle", style="pointer-events: none")
    return tag("g", parts, visibility=there, data_pick=AGENTS * i + j)


def prices(v: dict[str, Any], s: dict[str, Any], *, n: int, seers: int) -> str:
    marks = [text("What an open gate is worth, against λ", 8, 14, strong=True)]
    low = 26 + BAR * (AGENTS + 2)
    for x in range(DEAREST + 1):
        marks += [
            rule(WORTH(x), 22, WORTH(x), low, faint=x > 0),
            text(f"{x}", WORTH(x), low + 14, text_anchor="middle"),
        ]
    marks.append(text("steps saved per step; lookup: right answers", WORTH(DEAREST), low + 30, text_anchor="end"))
    rows = [(name(i, seers), v["worth"][i] if i < n else 0.0, i < n) for i in range(AGENTS)]
    rows += [("lookup: own", 0.0, True), ("lookup: other’s", v["threshold"], True)]
    for r, (label, value, there) in enumerate(rows):
        y = 26 + BAR * r
        look: dict[str, Any] = {"visibility": seen(there)}
        marks.append(text(label, 8, y + 13, **look, data_holder=r))
        fill = BLUE if pays(value, s["penalty"]) else GREY
        bar = {"x": WORTH(0), "y": y + 3, "width": WORTH(value) - WORTH(0), "height": BAR - 6, "fill": fill}
        marks.append(tag("rect", **bar, **look, data_worth=r))
    price = WORTH(s["penalty"])
    marks.append(
        rule(price, 20, price, low, faint=False, stroke=ORANGE, stroke_width=3, stroke_opacity="1", data_price="")
    )
    label = "A bar for each agent and for both cases of the lookup game: the worth of an open gate, with its price"
    return draw.svg(340, low + 36, label, tag("g", *marks, data_value="", **WORTH.data()))


def pays(value: float, penalty: float) -> bool:
    return penalty == 0 or value > penalty


def chances(v: dict[str, Any], *, n: int, k: int) -> str:
    """The row of the marked edge: the first sender drawn, the second on top of it, and one draw's weights."""
    marks = [text(f"Draws of row {v['row']}: who is kept", 8, 14, strong=True, data_title="")]
    for value, word in {0: "0", 0.5: "½", 1: "1"}.items():
        marks.append(rule(30, CHANCE(value), 330, CHANCE(value), faint=value > 0))
        marks.append(text(word, 24, CHANCE(value) + 4, text_anchor="end"))
    for j in range(AGENTS):
        x, there = 30 + SLOT * (j + 0.5), j < n and j != v["row"]
        first, two, soft = (v[key][j] if there else 0.0 for key in ("first", "two", "soft"))
        look: dict[str, Any] = {"visibility": seen(there)}
        more = {"fill": BLUE, "fill_opacity": 0.45 if k > 1 else 0.12}
        marks.append(tag("rect", x=x - 15, width=20, **CHANCE.bar(first), fill=BLUE, **look, data_first=j))
        marks.append(tag("rect", x=x - 15, width=20, **CHANCE.bar(two, first), **more, **look, data_second=j))
        dot = {"fill": ORANGE if there and v["drawn"][j] else PAGE, "stroke": ORANGE, "stroke_width": 2}
        marks.append(tag("circle", cx=x + 14, cy=CHANCE(soft), r=5, **dot, **look, data_soft=j))
        marks.append(text(f"{j}", x, CHANCE.start + 16, text_anchor="middle", **look, data_sender=j))
    label = "Chance of each sender of the marked row to be drawn first or second, and its weight in one draw"
    return draw.svg(340, CHANCE.start + 22, label, tag("g", *marks, data_chance="", **CHANCE.data()))
