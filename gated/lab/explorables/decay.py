"""Where does the memory go? One channel of gated linear attention under the reader's hands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gated.lab.explorables.decay_weights import LIMITS, SCHEMES, Scheme, decay_matrix, log_gate, max_exponent
from gated.lab.explorables.drawing import Axis, fixed, formula, rule, sup, svg, tag, text
from gated.lab.explorables.explorable import Explorable

SENTENCE = "the cat sat on the mat . then it slept all day . at night it hunted mice in the old barn again ."
WORDS = SENTENCE.split()
"""The largest x for which exp(x) is finite. bfloat16 has the range of fp32."""


_WIDTH, _LEFT, _CELL = 420.0, 52.0, 15.0
_GATES = Axis(-20, 8, 104, 22)
_MATRIX_TOP = 156.0
_HELD = Axis(0, 1, 590, 548)
_NATS = Axis(0, 16, 4, 296)
"""The exponents' axis runs in log2(1 + x), which shows 0, 11.09, 88.72 and the thousands side by side."""
_COLOURS = {
    "state": "var(--gx-blue, #0072b2)",
    "matmul": "var(--gx-orange, #c46a00)",
    "diagonal": "var(--gx-green, #00805b)",
    "over": "var(--gx-red, #c8430a)",
}
_PARTS = {
    "state": "through the state",
    "matmul": "half-precision matmul",
    "diagonal": "fp32, element by element",
}
_NAMES = {
    "one piece": "one piece",
    "chunk": "a reference per chunk",
    "sub-chunk": "a reference per sub-chunk",
}
_SPLIT = formula(sup("e", "G_t − G_i"), "=", sup("e", "G_t − R"), "·", sup("e", "R − G_i"))
_WHY = (
    "A matrix product needs each weight split in two, at a reference R. If R lies before token i, the second "
    "exponent is positive and grows with the distance. If R lies between the tokens, neither exponent passes 0."
)
T = len(WORDS)
MIXED = [
    -3.1,
    -17.6,
    -0.4,
    -12.9,
    -8.2,
    -19.3,
    -1.7,
    -15.1,
    -6.5,
    -10.8,
    -18.4,
    -2.6,
    -14.0,
    -5.3,
    -9.7,
    -0.9,
    -16.2,
    -11.5,
    -4.4,
    -19.8,
    -7.1,
    -13.3,
    -2.0,
    -17.0,
]
"""Gate logits spread evenly over (−20, 0): with τ = 1 the strongly mixed gates on which careless factoring breaks."""


class DecayExplorable(Explorable):
    """One channel's decay in gated linear attention: what is left of each token, and which exponents it
    takes to compute.

    Args:
        z: gate logits, one for each of the 24 tokens of the sentence, in [-20, 8].
        temperature: τ, 1 to 64.
        chunk: tokens in a chunk, 1 to 24.
        subchunk: tokens in a sub-chunk, 1 to 24; no more than ``chunk`` are used.
        repeats: how often the sentence is repeated for the exponents, 1 to 200.
        token: the token that is looked at, counted from 0.

    Raises:
        ValueError: an argument outside its range.
    """

    name = "decay"

    def __init__(
        self,
        z: Sequence[float | int] = (0.0,) * T,
        temperature: float | int = 16.0,
        chunk: int = 12,
        subchunk: int = 4,
        repeats: int = 1,
        token: int = T - 1,
    ) -> None:
        logits = [float(value) for value in z]
        if len(logits) != T or not all(-20 <= value <= 8 for value in logits):
            raise ValueError(f"z must be {T} numbers in [-20, 8], got {list(z)}")
        if not 1 <= temperature <= 64:
            raise ValueError(f"temperature must be in [1, 64], got {temperature}")
        for name, value, low, high in (
            ("chunk", chunk, 1, T),
            ("subchunk", subchunk, 1, T),
            ("repeats", repeats, 1, 200),
            ("token", token, 0, T - 1),
        ):
            if not low <= value <= high:
                raise ValueError(f"{name} must be in {low} to {high}, got {value}")
        state = {
            "z": logits,
            "temperature": float(temperature),
            "chunk": int(chunk),
            "subchunk": int(subchunk),
        }
        super().__init__(
            {**state, "repeats": int(repeats), "token": int(token)},
            {"words": WORDS, "limits": LIMITS, "mixed": MIXED, "colours": _COLOURS},
        )

    def part(self, t: int, i: int) -> str:
        """Which part of the chunkwise algorithm computes the weight of token i in the output of token t ≥ i."""
        chunk = self.state["chunk"]
        if t // chunk != i // chunk:
            return "state"
        subchunk = min(self.state["subchunk"], chunk)
        return "diagonal" if t % chunk // subchunk == i % chunk // subchunk else "matmul"

    def values(self) -> dict[str, Any]:
        s = self.state
        g, matrix = log_gate(s["z"], s["temperature"]), decay_matrix(s["z"], s["temperature"])
        lengths = {"chunk": s["chunk"], "subchunk": min(s["subchunk"], s["chunk"]), "repeats": s["repeats"]}
        parts = [self.part(t, i) for t in range(T) for i in range(t + 1)]
        return {
            "matrix": [matrix[t, i].item() for t in range(T) for i in range(t + 1)],
            "held": matrix[s["token"], : s["token"] + 1].tolist(),
            "exponents": {scheme: max_exponent(s["z"], s["temperature"], scheme, **lengths) for scheme in SCHEMES},
            "log_gate": g[s["token"]].item(),
            "half_life": float(np.log(2) / -g[s["token"]]),
            "shares": {part: parts.count(part) / len(parts) for part in _PARTS},
            "onset": self._onset(g),
        }

    @staticmethod
    def _onset(g: NDArray[np.float64]) -> int:
        """The first length, in tokens of the repeated sentence, at which one piece overflows fp32."""
        whole = np.floor(LIMITS["fp32"] / -g.sum())
        rest = LIMITS["fp32"] + whole * g.sum() + np.cumsum(g)
        return int(whole * T + np.argmax(np.append(rest, -1.0) < 0) + 1)

    def __repr__(self) -> str:
        s, v = self.state, self.values()
        listed = ", ".join(f"{name} {v['exponents'][name]:.2f}" for name in SCHEMES)
        return (
            f"DecayExplorable: {T} tokens x {s['repeats']}, temperature {s['temperature']:g}, "
            f"chunk {s['chunk']}, sub-chunk {min(s['subchunk'], s['chunk'])}\n"
            f"  largest exponent (nats): {listed}\n"
            f"  exp overflows beyond {LIMITS['fp16']:.2f} in fp16 and {LIMITS['fp32']:.2f} in fp32\n"
            f"  one piece overflows fp32 from {v['onset']:,} tokens on\n"
            f"  token {s['token'] + 1} ({WORDS[s['token']]!r}): half-life {v['half_life']:.2f} tokens, "
            f"{v['held'][0]:.4f} of the first token left"
        )

    def markup(self) -> str:
        v = self.values()
        numbers = {
            "half": ("", _steps(v["half_life"])),
            "onset": ("One piece overflows fp32 from", f"{v['onset']:,} tokens"),
            "share": ("Weights computed in fp32", f"{fixed(100 * v['shares']['diagonal'], 0)}%"),
        }
        numbers["half"] = (f"Half-life at “{WORDS[self.state['token']]}”", numbers["half"][1])
        listed = "".join(
            tag("dt", words, data_slot=f"{key}-name") + tag("dd", number, data_slot=key)
            for key, (words, number) in numbers.items()
        )
        key = "".join(tag("span", words, style=f"--gx-swatch: {_COLOURS[part]}") for part, words in _PARTS.items())
        side = (
            tag("div", self._exponents(v), class_="gx-figure")
            + tag("div", _SPLIT, tag("p", _WHY), class_="gx-note")
            + tag("div", class_="gx-controls")
            + tag("dl", listed, class_="gx-numbers")
        )
        left = tag("div", self._memory(v), tag("div", key, class_="gx-key"), class_="gx-figure")
        return tag("div", left, tag("div", side, class_="gx-side"), class_="gx-grid")

    def _memory(self, v: dict[str, Any]) -> str:
        """The gates, the matrix and what is left, over the same 24 columns."""
        s, right, token = self.state, _LEFT + T * _CELL, self.state["token"]
        x = [_LEFT + _CELL * i for i in range(T)]
        y = [_MATRIX_TOP + _CELL * t for t in range(T)]
        bottom = _MATRIX_TOP + T * _CELL

        gates = [text("Gate logits z: drag a dot down to forget", _LEFT, 12, strong=True)]
        for z, words in {-20: "−20", 0: "0", 8: "8"}.items():
            gates += [text(words, _LEFT - 6, _GATES(z) + 3.5, small=True, text_anchor="end")]
            gates += [rule(_LEFT, _GATES(z), right, _GATES(z), faint=z != 0)]
        for i, z in enumerate(s["z"]):
            centre = x[i] + _CELL / 2
            gates.append(
                tag(
                    "g",
                    tag("rect", x=x[i], y=16.0, width=_CELL, height=94.0, fill="transparent"),
                    rule(centre, _GATES(0), centre, _GATES(z), faint=False, stroke_width=2),
                    tag(
                        "circle",
                        cx=centre,
                        cy=_GATES(z),
                        r=5,
                        fill=_COLOURS["state"],
                        stroke="currentColor",
                        stroke_width=2 if i == token else 0,
                    ),
                    data_handle=i,
                )
            )
        labels = [
            text(
                word,
                0,
                0,
                small=True,
                transform=f"translate({x[i] + _CELL / 2 + 3:.2f} {_MATRIX_TOP - 5:.2f}) rotate(-62)",
            )
            for i, word in enumerate(WORDS)
        ]
        labels += [text(word, _LEFT - 6, y[t] + 11, small=True, text_anchor="end") for t, word in enumerate(WORDS)]

        weights = iter(v["matrix"])
        cells = [
            tag(
                "rect",
                x=x[i],
                y=y[t],
                width=_CELL - 1,
                height=_CELL - 1,
                fill=_COLOURS[self.part(t, i)],
                fill_opacity=0.1 + 0.9 * next(weights),
                data_cell=f"{t},{i}",
            )
            for t in range(T)
            for i in range(t + 1)
        ]
        frame = tag(
            "rect",
            x=_LEFT - 1,
            y=y[token] - 1.0,
            width=(token + 1) * _CELL + 1,
            height=_CELL + 1,
            fill="none",
            stroke="currentColor",
            stroke_width=1.5,
            data_row="",
        )
        titles = [
            text("Weight of token i (column)", right, _MATRIX_TOP + 30, small=True, text_anchor="end"),
            text("when token t (row) reads:", right, _MATRIX_TOP + 44, small=True, text_anchor="end"),
            text(
                "exp(G_t − G_i)".replace("_t", "ₜ").replace("_i", "ᵢ"),
                right,
                _MATRIX_TOP + 59,
                text_anchor="end",
            ),
        ]
        held = [
            text(
                f"Left in the state after “{WORDS[token]}”",
                _LEFT,
                bottom + 20,
                strong=True,
                data_heading="held",
            )
        ]
        for value, label in {0: "0", 1: "1"}.items():
            held += [text(label, _LEFT - 6, _HELD(value) + 3.5, small=True, text_anchor="end")]
            held += [rule(_LEFT, _HELD(value), right, _HELD(value), faint=value != 0)]
        held += [
            tag(
                "rect",
                x=x[i],
                width=_CELL - 1,
                **_HELD.bar(v["held"][i] if i <= token else 0.0),
                fill=_COLOURS["state"],
                data_held=i,
            )
            for i in range(T)
        ]
        return svg(
            _WIDTH,
            596,
            "Gate logits of 24 tokens, the matrix of decay weights, and what the state still holds",
            tag("g", *gates, data_strip="gates", **_GATES.data()),
            *labels,
            *cells,
            frame,
            *titles,
            tag("g", *held, data_strip="held", **_HELD.data()),
        )

    def _exponents(self, v: dict[str, Any]) -> str:
        """The largest exponent of each scheme beside the limits of the number formats."""

        def place(nats: float | int) -> float:
            return _NATS(np.log2(1 + nats).item())

        marks = [text("Largest exponent met, in nats", 4, 12, strong=True)]
        for row, scheme in enumerate(SCHEMES):
            value, top = v["exponents"][scheme], 30.0 + 36 * row
            over = value > LIMITS["fp32"]
            marks += [
                text(_verdict(scheme, value), 4, top + 9, small=True, data_verdict=scheme),
                tag(
                    "rect",
                    x=4.0,
                    y=top + 14,
                    width=max(1.5, place(value) - 4),
                    height=11,
                    rx=2,
                    fill=_COLOURS["over" if over else "state"],
                    data_exponent=scheme,
                ),
            ]
        for name, limit in LIMITS.items():
            marks += [rule(place(limit), 43 + 36 * row, place(limit), 57 + 36 * row, faint=False) for row in range(3)]
            marks.append(rule(place(limit), 140, place(limit), 146, faint=False))
            marks.append(text(f"{limit:.1f}", place(limit), 158, small=True, text_anchor="middle"))
            marks.append(text(name.replace("fp32", "fp32, bf16"), place(limit), 171, small=True, text_anchor="middle"))
        marks += [
            text(label, place(value), 158, small=True, text_anchor="middle")
            for value, label in {0: "0", 1000: "1,000", 30000: "30,000"}.items()
        ]
        marks.append(rule(4, 143, 296, 143))
        return svg(
            300,
            176,
            "Largest exponent of three ways of computing the weights",
            *marks,
            data_bars="",
            **_NATS.data(),
        )


def _steps(tokens: float) -> str:
    return f"{tokens:,.0f} tokens" if tokens >= 100 else f"{tokens:.2f} tokens"


def _verdict(scheme: Scheme, nats: float) -> str:
    says = "overflows fp32" if nats > LIMITS["fp32"] else "overflows fp16" if nats > LIMITS["fp16"] else "fits"
    return f"{_NAMES[scheme]}: {nats:,.1f}, {says}"
