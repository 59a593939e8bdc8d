"""One decode step of a mixture whose experts live on the slow side of a link: who waits for whom?"""

from __future__ import annotations

import math
from typing import Any

from gated.lab.explorables.drawing import (
    Axis,
    callout,
    columns,
    formula,
    frac,
    readings,
    row,
    rule,
    svg,
    tag,
    text,
)
from gated.lab.explorables.explorable import Explorable
from gated.pregated.published import ACTIVE, COLUMNS, LATENCY, MODELS, SSD
from gated.pregated.simulate import DESIGNS, Design, Step, Timing, peak_memory, simulate_step

BLOCKS = 12  # at most
OVERHEAD = 0.05  # milliseconds
_NAMES: dict[Design, str] = {
    "resident": "resident",
    "on_demand": "on demand",
    "prefetch_all": "prefetch all",
    "pre_gated": "pre-gated",
    "look_ahead": "guess, verify",
}
_KINDS = {
    "wait": ("waiting", "var(--gx-orange, #c46a00)"),
    "block": ("mixture block", "var(--gx-blue, #0072b2)"),
    "dense": ("dense layer", "var(--gx-grey, #77808a)"),
    "copy": ("copy of experts", "var(--gx-green, #00805b)"),
    "repair": ("copy after a wrong guess", "var(--gx-red, #c8430a)"),
}
_LINK = ("copy", "repair")
_SHOWN: dict[Design, tuple[str, ...]] = {
    design: ("block", "dense")
    if design == "resident"
    else ("wait", "block", "dense", "copy", "repair")
    if design == "look_ahead"
    else ("wait", "block", "dense", "copy")
    for design in DESIGNS
}
_WIDTH, _LEFT, _RIGHT = 560, 104, 548
_TIME = Axis(0, 1, _LEFT, _RIGHT)
_LATENCY = Axis(-1, 3, 104, 318)  # log10 of milliseconds
_MEMORY = Axis(0, 6, 346, _RIGHT)  # log10 of megabytes
_STRIP, _ROW, _ROWS = 58, 26, 376

_RANGES: dict[str, tuple[float, float]] = {
    "bandwidth": (1, 64),
    "size": (1, 100),
    "num_experts": (2, 256),
    "active": (1, 16),
    "blocks": (1, BLOCKS),
    "block": (0.1, 10),
    "dense": (0, 5),
    "look_ahead": (1, 3),
    "guessed": (0, 1),
}
_WHOLE = ("num_experts", "active", "blocks", "look_ahead")

_LATE = row("T + δ +", frac("a F", "B"), "+", frac("B − 1", "B"), "( a F − W )")
_REGIMES = {
    "resident": ("All experts are here", formula("T"), "Nothing is copied. This is the memory one would like to save."),
    "on_demand": (
        "Each block waits for its copy",
        formula("T + δ + a F"),
        "The gate decides, then the link works, then the processor. One of the two always rests.",
    ),
    "hidden": (
        "The copy hides behind the work",
        formula("T + δ +", frac("a F", "B")),
        "The next block's experts arrive while this block computes. What is left over is the first block, "
        "which nobody could announce.",
    ),
    "late": (
        "The link never rests",
        formula(_LATE),
        "The copies take longer than the window W in which they could hide. Now the link alone "
        "sets the pace.",
    ),
    "deep": (
        "More blocks ahead",
        "",
        "The first N blocks have gates of their own and wait. A deeper look-ahead needs N + 1 buffers, and it "
        "cannot make a busy link faster.",
    ),
    "all": (
        "Every expert is copied",
        formula("T + δ +", frac("E F", "B"), "+", frac("B − 1", "B"), "max ( 0 , E F − W )"),
        "Nothing is guessed and nothing is chosen: all E experts of the next block move, most of them in vain.",
    ),
    "guess": (
        "A guess, then the true gate",
        formula("T + δ +", frac("a F", "B"), "+ …"),
        "The next gate is asked early, on features that are not yet final. What it got wrong is copied on demand, "
        "so the output stays that of the original model.",
    ),
}


def _preset(model: Any, measured: dict[str, float | None], **changes: Any) -> dict[str, Any]:
    timing = model.timing
    state = {
        "bandwidth": float(f"{model.expert_bytes / 1e6 / timing.expert:.3g}"),
        "size": model.expert_bytes / 1e6,
        "num_experts": model.num_experts,
        "active": 1,
        "blocks": model.blocks,
        "block": timing.block,
        "dense": timing.dense,
        "look_ahead": 1,
        "guessed": 0.8,
    }
    return {"state": state | changes, "measured": {k: v for k, v in measured.items() if v is not None}}


def _row(values: tuple[float | None, ...]) -> dict[str, float | None]:
    return dict(zip(COLUMNS, values, strict=True))


PRESETS: dict[str, dict[str, Any]] = {
    "Base-128": _preset(MODELS["Base-128"], _row(LATENCY["Base-128"])),
    "Large-128": _preset(MODELS["Large-128"], _row(LATENCY["Large-128"])),
    "Large, disk": _preset(SSD, {"on_demand": 7.706}),
    "Large, PCIe 5": _preset(MODELS["Large-128"], {}, bandwidth=50.0),
    "Base-64, a = 16": _preset(MODELS["Base-64"], _row(ACTIVE[16]), active=16, block=ACTIVE[16][0]),
}
"""States of the paper's machine, and the milliseconds a layer that were measured there (if any)."""


class OffloadExplorable(Explorable):
    """The two lanes of one decode step, and latency and memory of five designs, by `gated.pregated.simulate`.

    Args:
        bandwidth: of the link, GB/s, 1 to 64.
        size: of one expert, MB, 1 to 100. One copy takes F = size / bandwidth milliseconds.
        num_experts: E a block, 2 to 256.
        active: distinct active experts a block, 1 to 16, at most E.
        blocks: mixture blocks B, 1 to 12.
        block, dense: T (0.1 to 10) and T_d (0 to 5), milliseconds.
        look_ahead: N of the pre-gated design, 1 to 3.
        guessed: share of right guesses of the design "look_ahead", 0 to 1.
        design: the one whose lanes are drawn.

    Raises:
        ValueError: a value out of its range.
    """

    name = "offload"

    def __init__(
        self,
        bandwidth: float | int = PRESETS["Base-128"]["state"]["bandwidth"],
        size: float | int = PRESETS["Base-128"]["state"]["size"],
        num_experts: int = 128,
        active: int = 1,
        blocks: int = 6,
        block: float | int = PRESETS["Base-128"]["state"]["block"],
        dense: float | int = PRESETS["Base-128"]["state"]["dense"],
        look_ahead: int = 1,
        guessed: float | int = 0.8,
        design: str = "pre_gated",
    ) -> None:
        given = {
            "bandwidth": bandwidth,
            "size": size,
            "num_experts": num_experts,
            "active": active,
            "blocks": blocks,
            "block": block,
            "dense": dense,
            "look_ahead": look_ahead,
            "guessed": guessed,
        }
        for name, value in given.items():
            low, high = _RANGES[name]
            if not low <= value <= high:
                raise ValueError(f"{name} must be in {low:g} to {high:g}, got {value}")
        if active > num_experts:
            raise ValueError(f"active must be at most num_experts = {num_experts}, got {active}")
        if design not in DESIGNS:
            raise ValueError(f"design must be one of {', '.join(DESIGNS)}, got {design!r}")
        state = {name: int(value) if name in _WHOLE else float(value) for name, value in given.items()}
        regimes = {key: list(words) for key, words in _REGIMES.items()}
        super().__init__({**state, "design": design}, {"presets": PRESETS, "regimes": regimes, "overhead": OVERHEAD})

    def values(self) -> dict[str, Any]:
        s = self.state
        timing = Timing(s["block"], s["dense"], s["size"] / s["bandwidth"], OVERHEAD)
        active = [s["active"]] * s["blocks"]

        def play(design: Design) -> Step:
            return simulate_step(
                design, timing, active, s["num_experts"], look_ahead=s["look_ahead"], hit_rate=s["guessed"]
            )

        steps = {design: play(design) for design in DESIGNS}
        step = steps[s["design"]]
        return {
            "latency": {design: one.mean_latency for design, one in steps.items()},
            "memory": {
                design: peak_memory(design, active, s["num_experts"], 1, look_ahead=s["look_ahead"]) * s["size"]
                for design in DESIGNS
            },
            "bars": {design: self._bars(design, one) for design, one in steps.items()},
            "totals": {design: one.total for design, one in steps.items()},
            "end": max(one.total for design, one in steps.items() if design != "prefetch_all"),
            "moved": step.moved * s["size"],
            "copy": (s["num_experts"] if s["design"] == "prefetch_all" else s["active"]) * timing.expert,
            "window": timing.window,
            "break_even": timing.break_even,
            "regime": self._regime(s["active"] * timing.expert <= timing.window),
            "preset": next((name for name, one in PRESETS.items() if one["state"].items() <= s.items()), ""),
        }

    @staticmethod
    def _bars(design: Design, step: Step) -> dict[str, list[list[float]]]:
        bars = {kind: [[0.0, 0.0] for _ in range(BLOCKS)] for kind in _SHOWN[design]}
        for event in step.events:
            if event.kind == "wait" and bars["wait"][event.block][1]:
                bars["wait"][event.block][1] = event.end  # for the guess, and then for its repair
            elif event.kind in bars:
                bars[event.kind][event.block] = [event.start, event.end]
        return bars

    def _regime(self, fits: bool) -> str:
        design = self.state["design"]
        if design == "pre_gated":
            return "deep" if self.state["look_ahead"] > 1 else "hidden" if fits else "late"
        return {"prefetch_all": "all", "look_ahead": "guess"}.get(design, design)

    def __repr__(self) -> str:
        v, s = self.values(), self.state
        listed = ", ".join(f"{_NAMES[d]} {v['latency'][d]:.3f} ms / {v['memory'][d]:,.0f} MB" for d in DESIGNS)
        return (
            f"OffloadExplorable: {s['blocks']} blocks of {s['num_experts']} experts, {s['active']} active, "
            f"{s['size']:.4g} MB each over {s['bandwidth']:g} GB/s\n"
            f"  latency of a layer and experts in the fast tier: {listed}\n"
            f"  copy {v['copy']:.3f} ms, window {v['window']:.3f} ms, break-even at {v['break_even']:.2f} experts"
        )

    def markup(self) -> str:
        v = self.values()
        title, equation, words = _REGIMES[v["regime"]]
        numbers = {
            "copy": ("Copies for a block", f"{fixed(v['copy'])} ms"),
            "window": ("Window W = T + T<sub>d</sub>", f"{fixed(v['window'])} ms"),
            "break_even": ("Hides up to W / F =", f"{fixed(v['break_even'])} experts"),
            "moved": ("Copied for one token", f"{fixed(v['moved'])} MB"),
        }
        key = "".join(tag("span", label, style=f"--gx-swatch: {colour}") for label, colour in _KINDS.values())
        left = tag("div", self._picture(v), tag("div", key, class_="gx-key"), class_="gx-figure")
        return columns(
            left, callout(title, equation, words), tag("div", class_="gx-controls"), readings(numbers)
        )

    def _picture(self, v: dict[str, Any]) -> str:
        def x(time: float) -> float:
            return _TIME(time / v["end"])

        chosen = self.state["design"]
        lanes = [text("One token, block by block: processor above, link below", 4, 14, strong=True)]
        for i, design in enumerate(DESIGNS):
            top = 22.0 + _STRIP * i
            weight = 600 if design == chosen else 400
            lanes.append(text(_NAMES[design], 4, top + 14, data_name=design, font_weight=weight))
            lanes.append(text(f"{fixed(v['totals'][design])} ms", 4, top + 28, small=True, data_total=design))
            lanes.append(rule(_LEFT, top + 23, _RIGHT, top + 23))
            for kind in _SHOWN[design]:
                for b, (start, end) in enumerate(v["bars"][design][kind]):
                    lanes.append(
                        tag(
                            "rect",
                            x=x(start),
                            y=top + (25 if kind in _LINK else 3),
                            width=x(end) - x(start),
                            height=19,
                            fill=_KINDS[kind][1],
                            data_bar=f"{design},{kind},{b}",
                        )
                    )
        bottom = 22 + _STRIP * len(DESIGNS) - 6
        lanes.append(rule(_LEFT, bottom, _RIGHT, bottom))
        for i in range(5):
            place = _LEFT + (_RIGHT - _LEFT) * i / 4
            lanes.append(rule(place, bottom, place, bottom + 5, faint=False))
            mark = fixed(v["end"] * i / 4)
            lanes.append(text(mark, place, bottom + 17, small=True, text_anchor="middle", data_tick=i))
        lanes.append(text("ms", 4, bottom + 17, small=True))

        rows = [text("A layer, ms", _LATENCY(-1), _ROWS - 26, strong=True)]
        rows += [text("Experts in the fast tier, MB", _MEMORY(0), _ROWS - 26, strong=True)]
        bottom = _ROWS + _ROW * len(DESIGNS)
        for axis in (_LATENCY, _MEMORY):
            for power in range(int(axis.low), int(axis.high) + 1):
                rows.append(rule(axis(power), _ROWS - 4, axis(power), bottom))
                label = {-1: "0.1", 6: "10⁶", 5: "10⁵", 4: "10⁴"}.get(power, f"{10 ** max(power, 0)}")
                rows.append(text(label, axis(power), _ROWS - 9, small=True, text_anchor="middle"))
        measured = PRESETS[v["preset"]]["measured"] if v["preset"] else {}
        for i, design in enumerate(DESIGNS):
            y = _ROWS + _ROW * i + 2.0
            weight = 600 if design == chosen else 400
            rows.append(text(_NAMES[design], 96, y + 14, text_anchor="end", data_name=design, font_weight=weight))
            for kind, axis in (("latency", _LATENCY), ("memory", _MEMORY)):
                value = v[kind][design]
                length = max(1.5, axis(math.log10(value)) - axis.start) if value > 0 else 1.5
                look: dict[str, object] = {"fill": _KINDS["block" if kind == "latency" else "copy"][1]}
                look |= {"fill_opacity": 1.0 if design == chosen else 0.5, "data_row": f"{kind},{design}"}
                rows.append(tag("rect", x=float(axis.start), y=y, width=length, height=20, **look))
            at = _LATENCY(math.log10(measured.get(design, 1)))
            seen = "visible" if design in measured else "hidden"
            ink: dict[str, object] = {"stroke": "currentColor", "stroke_width": 3, "visibility": seen}
            rows.append(tag("line", x1=at, x2=at, y1=y - 2, y2=y + 22, data_measured=design, **ink))
        seen = "visible" if measured else "hidden"
        legend = "upright marks: measured by the authors"
        rows.append(text(legend, _LATENCY(-1), bottom + 14, small=True, data_legend="", visibility=seen))
        return svg(
            _WIDTH,
            bottom + 22,
            "Timeline of one decode step on processor and link, above latency and memory of five designs",
            tag("g", *lanes, data_strip="time", **_TIME.data()),
            tag("g", *rows[:1], data_strip="latency", **_LATENCY.data()),
            tag("g", *rows[1:], data_strip="memory", **_MEMORY.data()),
        )


def fixed(value: float | int) -> str:
    """Two decimals below 10, one below 100, none above."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"
