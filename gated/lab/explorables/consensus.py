"""From dynamic to static: 200 inputs by 12 gates slide to a consensus, and the network loses the shut blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gated.backbones import ResNet
from gated.lab.explorables import drawing as draw
from gated.lab.explorables.drawing import fixed, formula, frac, rule, tag, text, total
from gated.lab.explorables.explorable import Explorable
from gated.polarization.cost import costs
from gated.polarization.losses import decomposition
from gated.polarization.theory import gate_flow

INPUTS, GATES, STEPS, EVERY, FIRST = 200, 12, 400, 5, 120
"""FIRST inputs are of the first kind, the others of the second. Not half, so that no tie decides."""
LEAN = (1.6, 1.2, -0.9, 1.4, 1.9, -1.2, 0.8, -1.5, -1.1, -0.8, -0.9, 1.5)
"""Mean logit of each gate at the start."""
NEED = (
    (1, 0.6, 0.4, 0.5, 0.9, 0.3, 0.5, 0.2, 0.4, 0.5, 0.1, 0.8),
    (1, 0.9, 0.1, 0.6, 1, 0.1, 0.8, 0.3, 0.7, 0.1, 0, 0.9),
    (1, 0.2, 0.8, 0.3, 0.9, 0.6, 0.2, 0.3, 0.2, 0.7, 0, 0.9),
)
"""What each block is worth to the task, times the gain: with one kind of input, and to the first and second of two."""
CHANGES, SHADES = (4, 8), 8
"""Blocks that change the shape: when they are cut, their shortcut stays. And the matrix's shades."""

_BLUE, _ORANGE = "var(--gx-blue, #0072b2)", "var(--gx-orange, #c46a00)"
_LEFT, _SLOT, _TILE, _RIGHT = 38, 29, 23, 38 + 29 * GATES
_PATH, _NEW, _MATRIX = 42, 88, 272
_SHARE, _LOSS = draw.Axis(0, 1, 222, 132), draw.Axis(0, 0.25, 576, 506)
_TIME = draw.Axis(0, STEPS, _LEFT, _RIGHT)
_GLIDE = "transition: transform .6s, opacity .6s, width .6s"

_AGREED = formula(total("l") + "<msub><mi>d</mi><mi>l</mi></msub>", "= 0")
_TURNS = formula("<msup><mi>m</mi><mo>*</mo></msup>", "=", frac("1", "2"), "( 1 +", frac("λ_a − b", "λ_p"), ")")
WORDS = {
    "consensus": ("Consensus: gates are constants, and shut blocks go", _AGREED,
        "Each gate says the same for all 200 inputs, so cutting the shut blocks changes no answer. The row closes up. "
        "Of a block that changes the shape the shortcut stays, as a thin mark."),
    "open": ("All gates are open", _AGREED,
        "That is a consensus too, and it saves nothing: only λₐ asks for fewer blocks."),
    "shut": ("All gates are shut", _AGREED,
        "A consensus that no one wants. From λₐ = λₚ on, only the task’s gain holds a gate open."),
    "apart": ("Gates are asked to differ", formula("λ_p &lt; 0"),
        "Each gate is drawn towards the dashes on its bar. With −1 and no gain this is the target-rate loss of "
        "ConvNet-AIG, target (1 − λₐ) / 2. The network stays dynamic."),
    "fair": ("Each input decides for itself", formula("b &gt; λ_a"),
        "Without polarization a gate opens for the inputs that gain more than λₐ from it (b, what the task gains). Two "
        "kinds of input that need different blocks stay divided."),
    "moving": ("On the way", _TURNS,
        "A gate whose bar ends above its dashes opens for all inputs, one that ends below them shuts for all. A "
        "confident gate takes long: let it run to the end, then go on from here."),
    "torn": ("The task keeps them apart", _TURNS,
        "A bar that ends between its two dashes opens for one kind of input and shuts for the other. A larger λₚ or a "
        "smaller gain brings the dashes together."),
    "late": ("Too late for a consensus", formula("λ_p ( 1 − 2 m ) p ( 1 − p ) ≈ 0"),
        "These inputs divided before λₚ was this large. Near an even split it pushes little, and confident gates "
        "hardly move. The small row is what the same sliders reach from a fresh start."),
}  # fmt: skip


@cache
def noise() -> list[float]:
    """Standard normal, gate by gate, with two decimals: the inputs' part in the logits at the start."""
    return np.random.default_rng(1).standard_normal(GATES * INPUTS).round(2).tolist()


@cache
def sizes() -> dict[str, Any]:
    """`costs` of the gated network, a ResNet for CIFAR with 12 blocks: of each block, and of the rest."""
    found = costs(ResNet((4, 4, 4), (16, 32, 64), in_channels=3, num_classes=10), 32, 32)
    return {key: list(value) if isinstance(value, tuple) else value for key, value in found._asdict().items()}


class ConsensusExplorable(Explorable):
    """Move the weights of the gates' losses and see whether 200 inputs agree on 12 gates, and on which.

    Args:
        lambda_p: weight of the polarization loss, -1 to 1. lambda_a: of the activation loss, 0 to 1.
        gain: the task's, times `NEED`, 0 to 1.
        spread: standard deviation of a gate's logits at the start, 0 to 2.
        steps: Euler steps shown, 0 to 400.
        modes: "one" or "two" kinds of input.
        gates: what is shown and measured, the "soft" p or the "hard" 1[p > 1/2]. The flow follows p in any case.
        logits: None for the start; else 12 times 200 numbers, gate by gate, from which the flow goes on.

    Raises:
        ValueError: a value out of its range.
    """

    name = "consensus"

    def __init__(
        self,
        lambda_p: float | int = 0.0,
        lambda_a: float | int = 0.3,
        gain: float | int = 0.6,
        spread: float | int = 1.0,
        steps: int = STEPS,
        modes: str = "two",
        gates: str = "soft",
        logits: Sequence[float] | None = None,
    ) -> None:
        sliders = {"lambda_p": lambda_p, "lambda_a": lambda_a, "gain": gain, "spread": spread, "steps": steps}
        for (name, number), low, high in zip(sliders.items(), (-1, 0, 0, 0, 0), (1, 1, 1, 2, STEPS), strict=True):
            if not low <= number <= high:
                raise ValueError(f"{name} must be in {low} to {high}, got {number}")
        for name, word, words in (("modes", modes, ("one", "two")), ("gates", gates, ("soft", "hard"))):
            if word not in words:
                raise ValueError(f"{name} must be one of {', '.join(words)}, got {word!r}")
        base = [] if logits is None else [float(s) for s in logits]
        if logits is not None and (len(base) != GATES * INPUTS or not all(map(math.isfinite, base))):
            raise ValueError(f"logits must be {GATES * INPUTS} finite numbers, got {len(base)}")
        state = {name: float(number) for name, number in sliders.items()} | {"steps": int(steps), "base": base}
        state |= {"modes": modes, "gates": gates, "start": "warm" if base else "fresh"}
        constants = {"noise": noise(), "lean": list(LEAN), "need": [*map(list, NEED)], "sizes": sizes(), "words": WORDS}
        super().__init__(state, constants)

    def flow(self, logits: Tensor, steps: int) -> Tensor:
        """`gate_flow` of [inputs, gates] with the sliders' weights."""
        s, need = self.state, self._need().repeat_interleave(torch.tensor([FIRST, INPUTS - FIRST]), 0)
        weights = {"activation": s["lambda_a"], "polarization": s["lambda_p"]}
        return gate_flow(logits, **weights, gain=s["gain"] * need, steps=steps)

    def _need(self) -> Tensor:
        """Of the two kinds of input, [2, gates]."""
        return torch.tensor(NEED[1:] if self.state["modes"] == "two" else NEED[:1] * 2, dtype=torch.float64)

    def start(self, *, fresh: bool = False) -> Tensor:
        """The logits from which the steps are counted, [inputs, gates]."""
        warm = bool(self.state["base"]) and not fresh
        z = torch.tensor(self.state["base"] if warm else noise(), dtype=torch.float64).view(GATES, INPUTS).T
        return z if warm else torch.tensor(LEAN, dtype=torch.float64) + self.state["spread"] * z

    def shown(self, logits: Tensor) -> Tensor:
        return (logits > 0).double() if self.state["gates"] == "hard" else logits.sigmoid()

    def values(self) -> dict[str, Any]:
        s, at, curve = self.state, self.start(), []
        logits = self.flow(at, s["steps"])
        again = (self.flow(self.start(fresh=True), s["steps"] if s["base"] else 0) > 0).sum(0)
        for _ in range(STEPS // EVERY + 1):
            curve.append([part.mean().item() for part in decomposition(self.shown(at))[1:]])
            at = self.flow(at, EVERY)
        gates, hard = self.shown(logits), (logits > 0).double()
        opened = hard.sum(0)
        kept, against = opened * 2 >= INPUTS, torch.minimum(opened, INPUTS - opened)
        _, indecision, disagreement = decomposition(gates)
        push = s["lambda_a"] - s["gain"] * self._need() + s["lambda_p"] * (1 - 2 * logits.sigmoid().mean(0))
        if not against.any():
            kind = {0: "shut", GATES: "open"}.get(int(kept.sum()), "consensus")
        elif s["lambda_p"] <= 0:
            kind = "apart" if s["lambda_p"] < 0 else "fair"
        elif s["base"] and not (again % INPUTS).any():
            kind = "late"
        else:
            torn = bool(((push.prod(0) < 0) & (against > 0)).any())
            kind = "torn" if torn and s["steps"] == STEPS else "moving"
        return {
            "open": gates.mean(0).tolist(), "inputs": gates.mean(1).tolist(), "dissent": (against / INPUTS).tolist(),
            "bound": against.sum().item() / INPUTS, "off_path": (hard != kept).any(1).double().mean().item(),
            "indecision": indecision.mean().item(), "disagreement": disagreement.mean().item(),
            "curve": [list(part) for part in zip(*curve, strict=True)],
            "kept": kept.int().tolist(), "macs": _share("macs", kept), "parameters": _share("parameters", kept),
            "lines": [[self._turn(s["gain"] * b) for b in need] for need in self._need().tolist()],
            "line": self._turn(0.0), "fresh": (again * 2 >= INPUTS).int().tolist() if s["base"] else "", "kind": kind,
        }  # fmt: skip

    def _turn(self, gain: float) -> float | str:
        """m*, where the push on an input with this gain is 0; nothing unless it lies between 0 and 1."""
        a, p = self.state["lambda_a"] - gain, self.state["lambda_p"]
        return (1 + a / p) / 2 if abs(a) < abs(p) else ""

    def __repr__(self) -> str:
        s, v = self.state, self.values()
        return (
            f"ConsensusExplorable: lambda_p {s['lambda_p']:g}, lambda_a {s['lambda_a']:g}, step {s['steps']}\n"
            f"  indecision + disagreement {_parts(v)}; {_percent(v['off_path'])} off the majority's path\n"
            f"  {sum(v['kept'])} of {GATES} blocks, {_percent(v['macs'])} of the multiply-adds kept"
        )

    def markup(self) -> str:
        v = self.values()
        numbers = {
            "parts": ("Lₚₒₗ, its two parts", _parts(v)),
            "off_path": ("Inputs off the majority’s path", _percent(v["off_path"])),
            "bound": ("Σ dₗ (below 1: bounds the changed answers)", fixed(v["bound"], 3)),
            "kept": ("Blocks kept (majority)", f"{sum(v['kept'])} of {GATES}"),
            "macs": ("Multiply-adds kept", _percent(v["macs"])),
            "parameters": ("Parameters kept", _percent(v["parameters"])),
        }
        label = "12 blocks in a row; below each its open share and its gate for 200 inputs; below, the loss by steps"
        marks = [*self._network(v), *self._shares(v), *self._matrix(), *self._losses(v)]
        left = tag("div", draw.svg(_RIGHT + 32, _LOSS.start + 20, label, *marks), class_="gx-figure")
        note, controls = draw.callout(*WORDS[v["kind"]]), tag("div", class_="gx-controls")
        return draw.columns(left, note, controls, draw.readings(numbers))

    def _network(self, v: dict[str, Any]) -> list[str]:
        cut, fresh = v["bound"] == 0, v["fresh"] or [0] * GATES
        marks = [text("The network", 8, 14, strong=True)]
        marks.append(text(_status(v), _RIGHT, 14, text_anchor="end", data_status=""))
        middle, end = _places(v["kept"], cut)
        look: dict[str, Any] = {"fill": "currentColor", "fill_opacity": 0.6, "style": _GLIDE, "data_path": ""}
        marks.append(tag("rect", x=_LEFT - 16, y=_PATH - 1, width=end - _LEFT + 22, height=2, **look))
        small = [text("from a fresh start, with the same sliders:", _LEFT, _NEW - 4, small=True)]
        for l, x in enumerate(middle):
            gone, height = cut and not v["kept"][l], 16 + 7 * (l // 4)
            where: dict[str, Any] = {"transform": f"translate({x:.2f} 0)", "style": _GLIDE}
            box: dict[str, Any] = {"x": -_TILE / 2, "y": _PATH - height / 2, "width": _TILE, "height": height, "rx": 3}
            tile = tag("rect", **box, fill="var(--pst-color-background, Canvas)")
            tile += tag("rect", **box, fill=_BLUE, fill_opacity=v["open"][l], stroke=_BLUE, data_tile=l)
            tile += text(f"{l + 1}", 0, _PATH + 28, small=True, text_anchor="middle")
            marks.append(tag("g", tile, opacity=0.0 if gone else 1.0, data_block=l, **where))
            if l in CHANGES:
                short = tag("rect", x=-2, y=_PATH - 9, width=4, height=18, fill="var(--gx-grey, #77808a)")
                marks.append(tag("g", short, opacity=1.0 if gone else 0.0, data_short=l, **where))
            box = {"x": _LEFT + _SLOT * l + 6.5, "y": _NEW + 2, "width": 16, "height": 9, "rx": 2}
            small.append(tag("rect", **box, fill=_BLUE, fill_opacity=float(fresh[l]), stroke=_BLUE, data_fresh=l))
        head = tag("path", d=f"M0 {_PATH - 5}l9 5l-9 5z", fill="currentColor")
        marks.append(tag("g", head, transform=f"translate({end + 6:.2f} 0)", style=_GLIDE, data_head=""))
        return [*marks, tag("g", *small, visibility=_seen(v["fresh"]), data_new="")]

    def _shares(self, v: dict[str, Any]) -> list[str]:
        marks = [text("Open shares m", 8, _SHARE.stop - 12, strong=True)]
        look: dict[str, Any] = {"text_anchor": "end", "visibility": _seen(self.state["lambda_p"]), "data_turn": ""}
        marks.append(text("orange: m*, where the push on p turns", _RIGHT, _SHARE.stop - 12, small=True, **look))
        marks += _scaffold(_SHARE, {0: "0", 0.5: "½", 1: "1"})
        for l in range(GATES):
            x = _LEFT + _SLOT * (l + 0.5)
            marks.append(tag("rect", x=x - 9, width=18, **_SHARE.bar(v["open"][l]), fill=_BLUE, data_bar=l))
            marks.append(text(f"{l + 1}", x, _SHARE.start + 14, small=True, text_anchor="middle"))
            for k in range(2):
                value = v["lines"][k][l]
                ends: dict[str, Any] = dict.fromkeys(("y1", "y2"), _SHARE(value or 0.0))
                line: dict[str, Any] = {"stroke": _ORANGE, "stroke_width": 3, "visibility": _seen(value)}
                marks.append(tag("line", x1=x - 12 + 12 * k, x2=x + 12 * k, **ends, **line, data_line=f"{k},{l}"))
        y, star = _SHARE(v["line"] or 0.0), dict[str, Any](visibility=_seen(v["line"]), data_star="")
        marks.append(rule(_LEFT, y, _RIGHT, y, faint=False, stroke_dasharray="4 3", **star))
        marks.append(text("b = 0", _RIGHT + 3, y + 3.5, small=True, **star))
        return [tag("g", *marks, data_share="", **_SHARE.data())]

    def _matrix(self) -> list[str]:
        marks = [text("Gates of 200 inputs, blue is open", 8, _MATRIX - 12, strong=True)]
        box = {"x": _LEFT, "y": _MATRIX, "width": _RIGHT - _LEFT, "height": INPUTS, "fill": "none"}
        marks.append(tag("rect", **box, stroke="currentColor", stroke_opacity=0.3))
        for shade, d in enumerate(_cells(self.shown(self.flow(self.start(), self.state["steps"]))), 1):
            marks.append(tag("path", d=d or "M0 0", fill=_BLUE, fill_opacity=shade / SHADES, data_shade=shade))
        kinds = [rule(_LEFT - 24, _MATRIX + FIRST, _RIGHT, _MATRIX + FIRST, faint=False)]
        for words, y in (("kind 1", _MATRIX + FIRST / 2), ("kind 2", _MATRIX + (FIRST + INPUTS) / 2)):
            kinds.append(text(words, 28, y, small=True, text_anchor="middle", transform=f"rotate(-90 28 {y:g})"))
        return [*marks, tag("g", *kinds, visibility=_seen(self.state["modes"] == "two"), data_kinds="")]

    def _losses(self, v: dict[str, Any]) -> list[str]:
        marks = [text("Lₚₒₗ over the steps", 8, _LOSS.stop - 14, strong=True)]
        for words, left, colour in (("indecision", 180, _BLUE), ("+ disagreement", 270, _ORANGE)):
            marks.append(tag("rect", x=left, y=_LOSS.stop - 24, width=11, height=11, rx=2, fill=colour))
            marks.append(text(words, left + 16, _LOSS.stop - 14))
        marks += _scaffold(_LOSS, {0: "0", 0.25: "¼"})
        for value in (0, 100, 200, 300, 400):
            marks.append(text(f"{value}", _TIME(value), _LOSS.start + 15, small=True, text_anchor="middle"))
        low, added = v["curve"]
        top = [a + b for a, b in zip(low, added, strict=True)]
        for i, (under, over, colour) in enumerate((([0.0] * len(low), low, _BLUE), (low, top, _ORANGE))):
            marks.append(tag("polygon", points=_area(under, over), fill=colour, fill_opacity=0.8, data_area=i))
        x = _TIME(self.state["steps"])
        marks.append(rule(x, _LOSS.start, x, _LOSS.stop - 4, faint=False, stroke_width=2, data_now=""))
        return [tag("g", *marks, data_loss="", **_LOSS.data()), tag("g", data_time="", **_TIME.data())]


def _share(key: str, kept: Tensor) -> float:
    """Of the whole network's cost, what is left with the kept blocks."""
    each, fixed = sizes()[key], sizes()[f"fixed_{key}"]
    return (fixed + sum(c for c, keep in zip(each, kept.tolist(), strict=True) if keep)) / (fixed + sum(each))


def _places(kept: list[int], cut: bool) -> tuple[list[float], float]:
    """Middle of each block on the row, and where the row ends; without the blocks that are cut it is shorter."""
    middle, end = list[float](), float(_LEFT)
    for l, keep in enumerate(kept):
        width = _SLOT if keep or not cut else 10 if l in CHANGES else 0
        middle.append(end + width / 2)
        end += width
    return middle, end


def _cells(gates: Tensor) -> list[str]:
    """For each shade a path of all its cells, run by run down the columns."""
    paths = [""] * (SHADES + 1)
    for l, column in enumerate((gates * SHADES + 0.5).floor().int().T.tolist()):
        start = 0
        for i in range(1, INPUTS + 1):
            if i == INPUTS or column[i] != column[start]:
                paths[column[start]] += f"M{_LEFT + _SLOT * l + 3} {_MATRIX + start}h{_TILE}v{i - start}h-{_TILE}z"
                start = i
    return paths[1:]


def _area(under: list[float], over: list[float]) -> str:
    points = [*enumerate(over), *[*enumerate(under)][::-1]]
    return " ".join(f"{_TIME(EVERY * i):.2f},{_LOSS(value):.2f}" for i, value in points)


def _scaffold(axis: draw.Axis, labels: dict[draw.Number, str]) -> list[str]:
    lines = [rule(_LEFT, axis(value), _RIGHT, axis(value), faint=value > 0) for value in labels]
    return lines + [text(word, _LEFT - 6, axis(v) + 4, small=True, text_anchor="end") for v, word in labels.items()]


def _seen(there: object) -> str:
    return "visible" if there else "hidden"


def _status(v: dict[str, Any]) -> str:
    gone = GATES - sum(v["kept"])
    return "no consensus, so no block can go" if v["bound"] else f"consensus: {gone} block{'s' * (gone != 1)} cut away"


def _parts(v: dict[str, Any]) -> str:
    return f"{fixed(v['indecision'], 3)} + {fixed(v['disagreement'], 3)}"


def _percent(share: float) -> str:
    return f"{fixed(100 * share, 1)} %"
