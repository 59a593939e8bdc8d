"""One sample's budget and everybody's: gates become exits, and rules for leaving meet on the accuracy-cost plane."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from gated.jeidnn.exits import Causal
from gated.lab.explorables import drawing as draw
from gated.lab.explorables.drawing import Axis, fixed, formula, rule, tag, text
from gated.lab.explorables.exits_trace import DIGITS, GRID, POLICIES, ExitTrace, Hopeless, measure, strokes
from gated.lab.explorables.explorable import Explorable

RULES = ("hard", "expected")

_INK = {
    "gates": "var(--gx-blue, #0072b2)", "confidence": "var(--gx-orange, #c46a00)",
    "entropy": "var(--gx-green, #00805b)", "patience": "var(--gx-red, #c8430a)", "single": "var(--gx-grey, #77808a)",
}  # fmt: skip
_WIDTH, _LEFT, _RIGHT = 456, 92, 448
_MASS = Axis(0, 1, 176, 28)
_ROWS = {"exit": 193, "answer": 209, "h": 225, "loss": 241}
_TOP, _TILES, _SPACE = 26, 58, 4  # of the stream of digits
_HINTS = {38: "bar: who", 52: "leaves", 78: "pale: < 10", 107: "line: all"}
_DARK: dict[str, Any] = {"faint": False, "stroke_width": 2}
_SMALL: dict[str, Any] = {"small": True, "text_anchor": "middle"}
_PHONE = """@container (max-width: 619px) { [data-explorable=exits] svg text { font-size: 15px }
[data-explorable=exits] svg text[data-small] { font-size: 12.5px } }"""
_QUESTION = [[b >> (7 - x) & 1 for x in range(8)] for b in (0x3C, 0x66, 0x06, 0x0C, 0x18, 0x18, 0x00, 0x18)]

WORDS = {
    "clip": (
        "g is the share that leaves here",
        formula("p_l = min ( g_l , m_l )"),
        "Each exit takes the share g of all the mass, as long as so much is left (grey). The sample leaves where p "
        "reaches half of what is left, so the bar falls from exit to exit.",
    ),
    "stick": (
        "g is the share of those who came",
        formula("p_l = g_l m_l"),
        "Stick-breaking: each exit takes the share g of what is left (grey), so g is h itself. The hard rule "
        "asks every gate for one half.",
    ),
    "cdf": (
        "g is the share that has left by now",
        formula("p_l = max ( 0 , g_l − ( 1 − m_l ) )"),
        "Gates that were taught to say 1 from the best exit on tell how likely it lies here or before. Spent as that, "
        "an exit takes only what g adds to the mass already gone. The sample leaves once half of all mass is spent, so "
        "at the first gate of one half or more.",
    ),
    "threshold": (
        "A threshold selects scores that err upwards",
        formula("E [ confidence − correct | exit = l ]"),
        "Who leaves first is mostly right. Who does not pass tries again at each exit, and leaves with the first score "
        "that is too high. Compare the bars below the digits with the lines. The learned gates read the same scores: "
        "do they select less?",
    ),
    "patience": (
        "Answers that agree",
        formula("ŷ_l = ŷ_l−1"),
        "The sample leaves once enough exits in a row give the same answer ŷ. No score is compared with anything. From "
        "two answers on nobody can leave at the first exit.",
    ),
    "added": (
        "Doubt is not always worth a longer run",
        formula("0.50 → 0.52"),
        "A fifth of the samples (?) now stand between two classes at every exit: right in 50% of the cases, and in 52% "
        "at the end. A threshold on confidence keeps them longest and gains next to nothing. Patience lets them go, "
        "since their answers agree, and so does entropy at a low τ: two classes are few.",
    ),
    "marked": (
        "One input more for the gates",
        formula("g_1 = 1"),
        "The gates now know the hopeless samples (?) and let them go at once: less cost for next to no "
        "accuracy. No threshold on confidence does that.",
    ),
}


class ExitsExplorable(Explorable):
    """Gates to exits for one sample; exits to accuracy and cost for all of them, by `gated.jeidnn`.

    `trace` is a mapping of arrays or tensors about s <= 300 test samples (200 fit best), of a network with L exits
    (3 to 8), the last its own head, and K classes (up to 36):

    - `images`: unsigned 8-bit integers [s, side, side], side up to 14 (MNIST halved): the ink, from 0 for paper up.
    - `label`: integers [s], the true classes.
    - `guess`: integers [s, L], the class that each exit answers, `logits.argmax(-1)`.
    - `statistics`: [s, L, 4], `gated.jeidnn.uncertainty(logits)`, in its order, of every exit.
    - `loss`: [s, L], cross-entropy of each exit in nats, `gated.jeidnn.exit_losses(logits, label)`.
    - `costs`: [L], c, all that is computed until a sample has left, rising to 1 for the full network.
    - `gates`: for 2 to 12 values of lambda an array [L - 1, 5], of each gate the four weights v and the bias b:
      `torch.cat([gate.linear.weight[0], gate.linear.bias])` of an `UncertaintyGate` with its default statistics.

    All gates belong to the same exits, those whose answers the trace holds: the figure compares rules on one network.
    Only numbers rounded to about 1e-4 travel into the page, and both sides compute with these.

    Args:
        trace: as above.
        sample: the one whose budget is shown.
        gates: other values for its L - 1 gates; None takes those of the trace.
        composition: of gates into a distribution, "clip", "stick" or "cdf".
        rule: "hard", or "expected" for the mean over exits drawn from the distribution.
        policy: whose exits the digits are sorted by, a member of `POLICIES`.
        trade_off: lambda, one of the trace's; None takes the one in the middle.
        threshold: tau in [0, 1], of the confidence max p, and of 1 - H / ln K for the entropy H.
        patience: answers in a row that must agree, 1 to L.
        hopeless: "added" for samples that no exit helps, a fifth of all then; "marked" where gates know them.

    Raises:
        ValueError: a trace of another form, a value out of its range.
    """

    name = "exits"

    def __init__(
        self,
        trace: Mapping[str, Any],
        sample: int = 0,
        gates: Sequence[float | int] | None = None,
        composition: str = "clip",
        rule: str = "hard",
        policy: str = "gates",
        trade_off: float | int | None = None,
        threshold: float | int = 0.9,
        patience: int = 2,
        hopeless: str = "none",
    ) -> None:
        t = self.trace = ExitTrace(trace)
        samples, exits = t.guess.shape
        price = t.prices[len(t.prices) // 2] if trade_off is None else float(trade_off)
        ranges = {"sample": (sample, 0, samples - 1), "threshold": (threshold, 0, 1), "patience": (patience, 1, exits)}
        for name, (value, low, high) in ranges.items():
            if not low <= value <= high:
                raise ValueError(f"{name} must be in {low} to {high}, got {value}")
        choices: dict[str, tuple[Any, Sequence[Any]]]
        choices = {
            "composition": (composition, get_args(Causal)),
            "rule": (rule, RULES),
            "policy": (policy, [*POLICIES]),
        }
        choices |= {"hopeless": (hopeless, get_args(Hopeless)), "trade_off": (price, t.prices)}
        for name, (word, known) in choices.items():
            if word not in known:
                raise ValueError(f"{name} must be one of {', '.join(map(str, known))}, got {word!r}")
        given = t.gates(price)[sample].tolist() if gates is None else [float(g) for g in gates]
        if len(given) != exits - 1 or not all(0 <= g <= 1 for g in given):
            raise ValueError(f"gates must be {exits - 1} numbers in [0, 1], got {gates}")
        state: dict[str, Any]
        state = {"sample": int(sample), "gates": given, "gate": 0, "composition": composition, "rule": rule}
        state |= {"policy": policy, "price": price, "threshold": float(threshold), "patience": int(patience)}
        words = {key: list(value) for key, value in WORDS.items()}
        super().__init__({**state, "hopeless": hopeless}, {**t.packed, "words": words, "grid": GRID})

    def values(self) -> dict[str, Any]:
        return measure(self.state, self.trace)

    def __repr__(self) -> str:
        s, v = self.state, self.values()
        points = ", ".join(f"{POLICIES[name]} {a:.3f} at {c:.3f}" for name, (c, a) in v["points"].items())
        return (
            f"ExitsExplorable: sample {s['sample']}, gates {', '.join(f'{g:.2f}' for g in s['gates'])}, "
            f"{s['composition']}: p {', '.join(f'{p:.2f}' for p in v['p'])}\n"
            f"  leaves at exit {v['exit'] + 1}, cost {v['cost']:.3f}; expected cost {v['expected']:.3f}\n"
            f"  accuracy at mean cost for lambda {s['price']:g}, tau {s['threshold']:g}, patience {s['patience']}: "
            f"{points}"
        )

    def markup(self) -> str:
        s, v = self.state, self.values()
        title, equation, words = WORDS[v["kind"]]
        cost, accuracy = v["points"][s["policy"]]
        numbers = {
            "exit": ("By its gates it leaves at exit", f"{v['exit'] + 1}, cost {_two(v['cost'])}"),
            "expected": ("Its mean cost if drawn from p", _two(v["expected"])),
            "best": ("Its best exit (★), if one knew the label", f"{v['best'] + 1}"),
            "policy": ("All samples, by the rule chosen", f"{_percent(accuracy)} at {_two(cost)}"),
        }
        swatches = zip([*POLICIES.values(), "single exits, their hull"], _INK.values(), strict=True)
        key = [tag("span", words, style=f"--gx-swatch: {ink}") for words, ink in swatches]
        dashes = "Dashed: oracle. Dotted: the rule’s exit rates, blind to the sample."
        legend = tag("div", *key, class_="gx-key") + tag("div", dashes, style="font-size: 12.5px")
        first, second = (tag("div", class_="gx-controls", style="margin: .5rem 0 1rem") for _ in range(2))
        left = tag("div", self._budget(v), first, self._plane(v), legend, second, class_="gx-figure")
        stream = tag("div", self._stream(v), class_="gx-figure")
        side = draw.callout(title, equation, words), draw.readings(numbers)
        return tag("style", _PHONE) + draw.columns(left, stream, *side)

    def _columns(self) -> list[tuple[float, float]]:
        """Centre and half width of the bars, one for each exit."""
        exits = len(self.trace.costs)
        width = (_RIGHT - _LEFT) / exits
        return [(_LEFT + width * (i + 0.5), min(18.0, 0.42 * width)) for i in range(exits)]

    def _budget(self, v: dict[str, Any]) -> str:
        s, t = self.state, self.trace
        sample, label, guess = s["sample"], DIGITS[t.label[s["sample"]]], t.guess[s["sample"]].tolist()
        marks = [text("One sample’s budget: drag a dot", 8, 14, strong=True)]
        paths = _paths(strokes(t.images[sample]), data_big="")
        marks.append(tag("g", *paths, transform=_place(8.0, 34.0, 62 / len(t.images[0])), **_pen(1.06)))
        marks.append(text(f"it is a {label}", 8, 112, small=True, data_slot="label"))
        marks.append(text("gates by hand" if v["moved"] else "its own gates", 8, 126, small=True, data_slot="whose"))
        for value, words in {0: "0", 0.5: "½", 1: "1"}.items():
            marks.append(rule(_LEFT, _MASS(value), _RIGHT, _MASS(value)))
            marks.append(text(words, _LEFT - 5, _MASS(value) + 3.5, small=True, text_anchor="end"))
        marks += [text("loss + λc" if row == "loss" else row, 8, y, small=True) for row, y in _ROWS.items()]
        for i, (x, half) in enumerate(self._columns()):
            box: dict[str, object] = {"x": x - half, "width": 2 * half}
            grey: dict[str, object] = {"fill": "currentColor", "fill_opacity": 0.1, "data_mass": i}
            marks.append(tag("rect", **box, **_MASS.bar(v["mass"][i]), **grey))
            ink = _INK["confidence" if i == v["exit"] else "gates"]
            marks.append(tag("rect", **box, **_MASS.bar(v["p"][i]), fill=ink, data_p=i))
            bar = _MASS(v["mass"][i] - 0.5 if s["composition"] == "cdf" else v["mass"][i] / 2)
            marks.append(rule(x - half - 3, bar, x + half + 3, bar, **_DARK, data_bar=i))
            answer = f"{DIGITS[guess[i]]} {'✓' if DIGITS[guess[i]] == label else '✗'}"
            cells = {"exit": f"{i + 1}", "answer": answer, "h": _two(v["h"][i])}
            cells["loss"] = _two(v["totals"][i]) + (" ★" if i == v["best"] else "")
            for row, y in _ROWS.items():
                weight = 600 if i == v["exit"] and row == "exit" else 400
                marks.append(text(cells[row], x, y, **_SMALL, style=f"font-weight: {weight}", data_cell=row))
        dots = []
        for i, g in enumerate(s["gates"]):
            x = self._columns()[i][0]
            reach = tag("rect", x=x - 22, y=14.0, width=44.0, height=164.0, fill="transparent")
            look: dict[str, object] = {"fill": _INK["gates"], "stroke": "currentColor", "stroke_width": 1.5}
            dots.append(tag("g", reach, tag("circle", cx=x, cy=_MASS(g), r=7, **look), data_handle=i))
        words = "What is left, what leaves, the falling bar and the gates of one sample, exit by exit"
        return draw.svg(_WIDTH, 250, words, *marks, tag("g", *dots, data_strip="mass", **_MASS.data()))

    def _plane(self, v: dict[str, Any]) -> str:
        # from a round accuracy below that of each single exit, with the hopeless samples or without
        worst = min(float(self.trace.crowd(some).right.double().mean(0).amin()) for some in ("none", "added"))
        low = max(0.0, math.floor((worst - 0.02) * 20) / 20)
        axis, cost = Axis(low, 1, 232, 26), Axis(math.floor(10 * float(self.trace.costs[0])) / 10, 1, 44, 444)
        marks = [text("Accuracy against mean cost of all samples", 8, 14, strong=True)]
        step = 5 if low >= 0.7 else 10 if low >= 0.4 else 20
        for value in range(100, math.ceil(100 * low - 1e-9) - 1, -step):
            y = axis(value / 100)
            marks.append(rule(cost.start, y, cost.stop, y))
            marks.append(text(f"{value}%", cost.start - 5, y + 3.5, small=True, text_anchor="end"))
        marks.append(rule(cost.start, axis.start, cost.stop, axis.start))
        for value in range(10, round(10 * cost.low) - 1, -1 if cost.low >= 0.3 else -2):
            marks.append(text(f"{value / 10:g}", cost(value / 10), 248, **_SMALL))
        lines = [("hull", v["hull"], _INK["single"], None), ("random", v["random"], "currentColor", "1.5 3")]
        lines += [("oracle", v["oracle"], "currentColor", "6 4")]
        lines += [(name, v["curves"][name], _INK[name], None) for name in POLICIES]
        for name, points, ink, dashes in lines:
            d = "M" + "L".join(f"{cost(x):.2f} {axis(y):.2f}" for x, y in points)
            look = {"fill": "none", "stroke": ink, "stroke_width": 2 if dashes is None else 1.5}
            marks.append(tag("path", d=d, **look, stroke_dasharray=dashes, data_curve=name))
        for i, (x, y) in enumerate(zip(self.trace.costs.tolist(), v["accuracy"], strict=True)):
            marks.append(tag("circle", cx=cost(x), cy=axis(y), r=3.5, fill=_INK["single"], data_single=i))
        for name, (x, y) in v["points"].items():
            size, edge = (8.0, "currentColor") if name == self.state["policy"] else (5.5, "none")
            look = {"fill": _INK[name], "stroke": edge, "stroke_width": 2, "data_point": name}
            marks.append(tag("circle", cx=cost(x), cy=axis(y), r=size, **look))
        words = "Accuracy against cost: four rules for leaving, the oracle, chance, and single exits"
        strip = tag("g", *marks, data_strip="accuracy", **axis.data())
        return draw.svg(_WIDTH, 254, words, tag("g", strip, data_strip="cost", **cost.data()))

    def _stream(self, v: dict[str, Any]) -> str:
        samples, side, exits = len(self.trace.guess), len(self.trace.images[0]), v["exits"]
        size, right = 14 if samples <= 200 else 12, self.trace.crowd("added").right.tolist()
        line = (_WIDTH - _TILES - 4) // size
        marks, tops, y = [text("Who leaves at which exit (red: wrong)", 8, 14, strong=True)], [], float(_TOP)
        for i, n in enumerate(v["count"]):
            words = f"{i + 1} · {_percent(n / len(exits), 0)}"
            marks.append(text(words, 8, y + size - 3.5, small=True, data_share=i))
            tops.append(y)
            y += size * max(1, math.ceil(n / line)) + _SPACE
        seen, tiles = [0] * len(tops), []
        for i, good in enumerate(right):
            exit = exits[i] if i < len(exits) else 0
            k, stored = seen[exit], i < samples
            seen[exit] += 1
            x, y = float(_TILES + size * (k % line)), tops[exit] + size * (k // line)
            wide = side if stored else 8
            shade: dict[str, object] = {"fill_opacity": "0" if good[exit] else "0.3"}
            shade["stroke"] = "currentColor" if i == self.state["sample"] else "none"
            plate = tag("rect", x="-.5", y="-1", width=wide + 1, height=wide + 1, **shade)
            ink = strokes(self.trace.images[i] if stored else _QUESTION)
            mark = {"data_pick" if stored else "data_more": i}
            tiles.append(tag("g", plate, *_paths(ink), transform=_place(x, y, (size - 2) / wide), **mark))
        hidden = "hidden" if len(exits) == samples else "visible"
        extra = tag("g", *tiles[samples:], visibility=hidden, data_extra="")
        sizes: dict[str, object] = {"data_size": size, "data_line": line, "data_side": side, "data_space": _SPACE}
        sizes |= {"data_left": _TILES, "data_top": _TOP, **_pen(1.06), "fill": _INK["patience"]}
        crowd = tag("g", *tiles[:samples], extra, data_stream="", **sizes)

        foot = float(_TOP + size * (math.ceil(len(right) / line) + len(tops) - 1) + _SPACE * len(tops))
        axis = Axis(-0.3, 0.6, foot + 118, foot + 30)
        marks.append(text("Claimed minus true: mean confidence − share right", 8, foot + 14, strong=True))
        for value, words in {-0.3: "−0.3", 0: "0", 0.3: "0.3", 0.6: "0.6"}.items():
            marks.append(rule(_LEFT, axis(value), _RIGHT, axis(value), faint=value != 0))
            marks.append(text(words, _LEFT - 5, axis(value) + 3.5, small=True, text_anchor="end"))
        marks += [text(words, 8, foot + down, small=True) for down, words in _HINTS.items()]
        for i, (x, half) in enumerate(self._columns()):
            bias, plain = v["bias"][i], axis(v["plain"][i])
            look: dict[str, object] = {"fill": _INK["confidence" if bias > 0 else "gates"]}
            look["fill_opacity"] = "1" if v["count"][i] >= 10 else "0.4"
            marks.append(tag("rect", x=x - half, width=2 * half, **axis.bar(bias), **look, data_bias=i))
            marks.append(rule(x - half - 3, plain, x + half + 3, plain, **_DARK, data_plain=i))
            words = f"{'+' if bias > 0 else '−'}{_two(abs(bias))}" if v["count"][i] else "–"
            marks.append(text(f"{i + 1}: {words}", x, foot + 134, **_SMALL, data_gap=i))
        words = "The digits, sorted by the exit at which they leave, and how much more the exits claim than is true"
        return draw.svg(_WIDTH, foot + 140, words, crowd, tag("g", *marks, data_strip="bias", **axis.data()))


def _paths(ink: tuple[str, str], **attributes: object) -> list[str]:
    faint, dark = ink
    return [tag("path", d=faint, stroke_opacity=".45", **attributes), tag("path", d=dark, **attributes)]


def _pen(width: float) -> dict[str, object]:
    return {"stroke": "currentColor", "stroke_width": width}


def _place(x: float, y: float, scale: float) -> str:
    """Rows of an image are lines through the middles of its pixels."""
    return f"translate({x:.2f} {y + scale / 2:.2f}) scale({scale:.4f})"


def _two(value: float) -> str:
    return fixed(value, 2)


def _percent(value: float, digits: int = 1) -> str:
    return f"{100 * value + 1e-9:.{digits}f}%"
