"""The flagship figure: temperature, top-k and noise on a row of logits that the reader drags."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gated.gates import (
    coefficient_of_variation,
    effective_gates,
    entropy,
    importance,
    load,
    softmax_topk_gate,
    topk_gate,
)
from gated.lab.explorables.drawing import (
    Axis,
    above,
    callout,
    columns,
    fixed,
    readings,
    rule,
    svg,
    tag,
    text,
)
from gated.lab.explorables.explorable import Explorable
from gated.lab.explorables.gates_words import REGIMES

TOKENS = 256
UNIT = 0.03
"""The fixed deviations and noise draws, of standard deviation 1, are whole multiples of this: one signed byte each."""

ORDERS = ("topk-softmax", "softmax-topk")
SWEEP = [0.05 * 400 ** (step / 40) for step in range(41)]
"""Temperatures of the curves above the slider, evenly spaced in the logarithm from 0.05 to 20."""
CURVE_DRAWS = 64
"""Noise draws that the curves are the mean of; the bars take all 256."""

_INDICES = "₁₂₃₄₅₆₇₈₉"
_WIDTH, _HEIGHT, _LEFT, _COLUMN = 420.0, 500.0, 34.0, 44.5
_LOGITS = Axis(-4, 4, 124, 24)
_WEIGHTS = Axis(0, 1, 244, 164)
_GRADIENT = Axis(-0.5, 0.5, 348, 284)
_LOAD = Axis(0, 1, 466, 396)
_CURVES = Axis(0, 1, 80, 10)
_BLUE, _GREEN, _ORANGE = "var(--gx-blue, #0072b2)", "var(--gx-green, #00805b)", "var(--gx-orange, #c46a00)"


def _slope(number: float) -> str:
    return "×" if number == 0 else "≈0" if abs(number) < 0.005 else fixed(number, 2).replace("-", "−")


def _draws(seed: int) -> str:
    """A [256, 8] table of standard normal draws, one signed byte each, as base64 text."""
    table = torch.randn(TOKENS, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return base64.b64encode((table / UNIT).round().clamp(-127, 127).to(torch.int8).numpy().tobytes()).decode()


def _table(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.int8).view(TOKENS, 8).double() * UNIT


class GateExplorable(Explorable):
    """Temperature, top-k and noise on one row of logits, and what they do to weights, gradient and load.

    Args:
        logits: eight numbers in [-4, 4], which the reader drags.
        temperature: divides the logits; 0.05 to 20.
        k: experts that stay open, 1 to 8.
        noise: standard deviation ν of the normal noise on the logits, 0 to 3.
        order: ``"topk-softmax"`` (weights of the open experts sum to 1) or ``"softmax-topk"`` (cut, not renormalised).
        expert: the expert whose logit the gradient is taken with respect to, counted from 0.
        seed: draws the batch's fixed deviations and noise.

    Raises:
        ValueError: an argument outside its range.
    """

    name = "gates"

    def __init__(
        self,
        logits: Sequence[float | int] = (1.2, 0.4, -0.6, 2.0, 0.1, -1.5, 0.9, -0.2),
        temperature: float | int = 1.0,
        k: int = 8,
        noise: float | int = 0.0,
        order: str = "topk-softmax",
        expert: int = 3,
        seed: int = 0,
    ) -> None:
        z = [float(value) for value in logits]
        if len(z) != 8 or not all(-4 <= value <= 4 for value in z):
            raise ValueError(f"logits must be 8 numbers in [-4, 4], got {list(logits)}")
        if not 0.05 <= temperature <= 20:
            raise ValueError(f"temperature must be in [0.05, 20], got {temperature}")
        if not 1 <= k <= 8:
            raise ValueError(f"k must be in 1 to 8, got {k}")
        if not 0 <= noise <= 3:
            raise ValueError(f"noise must be in [0, 3], got {noise}")
        if order not in ORDERS:
            raise ValueError(f"order must be one of {ORDERS}, got {order!r}")
        if not 0 <= expert < 8:
            raise ValueError(f"expert must be in 0 to 7, got {expert}")
        state = {"logits": z, "temperature": float(temperature), "top_k": int(k), "noise": float(noise)}
        constants = {
            "deviations": _draws(2 * seed),
            "draws": _draws(2 * seed + 1),
            "unit": UNIT,
            "regimes": REGIMES,
        }
        super().__init__({**state, "order": order, "expert": int(expert)}, constants)

    def gate(self, logits: Tensor, temperature: float | Tensor | None = None) -> Tensor:
        """The gate at the current state, for any batch of logits."""
        gate = topk_gate if self.state["order"] == "topk-softmax" else softmax_topk_gate
        return gate(logits, self.state["top_k"], self.state["temperature"] if temperature is None else temperature)

    def values(self) -> dict[str, Any]:
        """Everything the picture shows, by ``gated.gates`` and autograd in float64."""
        z = torch.tensor(self.state["logits"], dtype=torch.float64)
        noise = self.state["noise"] * _table(self.constants["draws"])
        batch = self.gate((z + _table(self.constants["deviations"])) + noise)

        weights, jacobian = self._respond([self.state["temperature"]], noise)
        curve_weights, curve_jacobian = self._respond(SWEEP, noise[:CURVE_DRAWS])
        shares, curve_shares = (w / w.sum(-1, keepdim=True) for w in (weights[0], curve_weights))
        ordered, last = weights[0].sort(dim=0).values, weights.shape[1] - 1
        effective = effective_gates(shares).mean().item()
        return {
            "weights": weights[0].mean(0).tolist(),
            "low": ordered[round(0.1 * last)].tolist(),
            "high": ordered[round(0.9 * last)].tolist(),
            "gradient": jacobian[0, :, self.state["expert"]].tolist(),
            "norm": jacobian[0].norm().item(),
            "entropy": entropy(shares).mean().item(),
            "effective": effective,
            "load": (load(batch) / TOKENS).tolist(),
            "importance": (importance(batch) / TOKENS).tolist(),
            "imbalance": coefficient_of_variation(load(batch)).item(),
            "norm_curve": curve_jacobian.flatten(1).norm(dim=1).tolist(),
            "effective_curve": effective_gates(curve_shares).mean(1).tolist(),
            "regime": self._regime(weights[0], effective),
        }

    def _respond(self, temperatures: list[float], noise: Tensor) -> tuple[Tensor, Tensor]:
        """Weights [temperature, draw, i], and the Jacobian [temperature, i, j] of their mean over the draws."""
        taus = torch.tensor(temperatures, dtype=torch.float64)
        rows = (noise if self.state["noise"] else noise[:1]).expand(len(taus), -1, -1)
        logits = torch.tensor(self.state["logits"], dtype=torch.float64).expand(len(taus), 8).clone().requires_grad_()
        weights = self.gate(logits[:, None] + rows, taus[:, None].expand(rows.shape[:-1]))
        means = weights.mean(1).sum(0)  # each temperature has its own copy of the logits, so they may be summed
        slopes = [torch.autograd.grad(mean, logits, retain_graph=True)[0] for mean in means]
        return weights.detach(), torch.stack(slopes, 1)

    def _regime(self, weights: Tensor, effective: float) -> str:
        k, order = self.state["top_k"], self.state["order"]
        if self.state["noise"]:
            return "noisy"
        if k == 1:
            return "hard" if order == "topk-softmax" else "switch"
        if k < 8 and order == "softmax-topk":
            return "truncated"
        if weights.max() > 0.99:
            return "argmax"
        if effective > 0.985 * k:
            return "uniform"
        return "dense" if k == 8 else "sparse"

    def __repr__(self) -> str:
        s, v = self.state, self.values()
        listed = lambda numbers: ", ".join(f"{x:.3f}" for x in numbers)  # noqa: E731
        return (
            f"GateExplorable: {v['regime']} gate over 8 experts\n"
            f"  temperature {s['temperature']:g}, top {s['top_k']}, noise {s['noise']:g}, {s['order']}\n"
            f"  weights    {listed(v['weights'])}\n"
            f"  gradient   {listed(x + 0.0 for x in v['gradient'])} (with respect to logit {s['expert'] + 1})\n"
            f"  load       {listed(v['load'])}\n"
            f"  entropy {v['entropy']:.3f} nats, {v['effective']:.2f} effective experts, gradient norm {v['norm']:.3f}"
        )

    def markup(self) -> str:
        v = self.values()
        title, equation, words = REGIMES[v["regime"]]
        numbers = {
            "entropy": ("Entropy H(w)", f"{fixed(v['entropy'], 2)} nats"),
            "effective": ("Effective experts exp H", f"{fixed(v['effective'], 2)} of 8"),
            "norm": ("Gradient norm ‖∂w/∂z‖", fixed(v["norm"], 3)),
            "imbalance": ("Load imbalance (CV)", fixed(v["imbalance"], 2)),
        }
        key = self._swatch("effective experts ÷ 8", _BLUE) + self._swatch("gradient norm", _GREEN)
        return columns(
            tag("div", self._bars(v), class_="gx-figure"),
            callout(title, equation, words),
            tag("div", class_="gx-controls"),
            tag("div", tag("div", key, class_="gx-key"), self._curves(v)),
            readings(numbers),
        )

    @staticmethod
    def _swatch(words: str, colour: str) -> str:
        return tag("span", words, style=f"--gx-swatch: {colour}")

    def _curves(self, v: dict[str, Any]) -> str:
        """How openness and gradient depend on the temperature, and where on that axis the gate stands."""
        across = Axis(0, 40, 26, 294)
        now = across(40 * math.log(self.state["temperature"] / 0.05) / math.log(400))

        def line(values: list[float], colour: str, mark: str) -> str:
            points = " ".join(f"{across(i):.2f},{_CURVES(y):.2f}" for i, y in enumerate(values))
            return tag("polyline", points=points, fill="none", stroke=colour, stroke_width=2, data_curve=mark)

        scaffold = [rule(26, _CURVES(y), 294, _CURVES(y), faint=y != 0) for y in (0, 1)]
        scaffold += [text(str(y), 20, _CURVES(y) + 3.5, small=True, text_anchor="end") for y in (0, 1)]
        scaffold += [text(f"{SWEEP[i]:.3g}", across(i), 94, small=True, text_anchor="middle") for i in (0, 20, 40)]
        return svg(
            300,
            112,
            "Effective experts and gradient norm against the temperature, on a logarithmic axis",
            *scaffold,
            text("temperature τ", 160, 108, small=True, text_anchor="middle"),
            line([x / 8 for x in v["effective_curve"]], _BLUE, "effective"),
            line(v["norm_curve"], _GREEN, "norm"),
            rule(now, 4, now, 80, faint=False, stroke_dasharray="3 3", data_now=""),
            data_curves="",
            data_left=26,
            data_right=294,
            **_CURVES.data(),
        )

    def _bars(self, v: dict[str, Any]) -> str:
        """Four strips over one row of experts: logits, weights, gradient, load."""
        s, right = self.state, _LEFT + 8 * _COLUMN
        centre = [_LEFT + _COLUMN * (i + 0.5) for i in range(8)]

        def strip(mark: str, axis: Axis, heading: str, ticks: dict[float | int, str], body: list[str]) -> str:
            scaffold = [
                text(
                    heading,
                    _LEFT,
                    axis.stop - (12 if mark == "logits" else 18),
                    strong=True,
                    data_heading=mark,
                )
            ]
            scaffold += [
                text(label, _LEFT - 6, axis(y) + 3.5, small=True, text_anchor="end") for y, label in ticks.items()
            ]
            scaffold += [rule(_LEFT, axis(y), right, axis(y), faint=y != 0) for y in ticks]
            return tag("g", *scaffold, *body, data_strip=mark, **axis.data())

        dots, bars, slopes, loads, even = [], [], [], [], _LOAD(s["top_k"] / 8)
        for i, (x, z, w, d) in enumerate(zip(centre, s["logits"], v["weights"], v["gradient"], strict=True)):
            open_ = v["high"][i] > 0
            dots.append(
                tag(
                    "g",
                    tag("rect", x=x - _COLUMN / 2, y=16.0, width=_COLUMN, height=116.0, fill="transparent"),
                    rule(x, _LOGITS(0), x, _LOGITS(z), faint=False, stroke_width=2),
                    tag(
                        "circle",
                        cx=x,
                        cy=_LOGITS(z),
                        r=8,
                        fill=_BLUE,
                        fill_opacity=1 if open_ else 0.15,
                        stroke=_BLUE,
                        stroke_width=2,
                    ),
                    data_handle=i,
                )
            )
            bars += [
                tag("rect", x=x - 15, width=30, **_WEIGHTS.bar(w), fill=_BLUE, rx=2, data_weight=i),
                rule(
                    x,
                    _WEIGHTS(v["low"][i]),
                    x,
                    _WEIGHTS(v["high"][i]),
                    faint=False,
                    stroke_width=1.5,
                    data_spread=i,
                    visibility="visible" if s["noise"] else "hidden",
                ),
                text(
                    fixed(w, 2) if w else "0",
                    x + (12 if s["noise"] else 0),
                    _WEIGHTS(w) - 4,
                    small=True,
                    text_anchor="middle",
                    data_weight_label=i,
                ),
            ]
            slopes += [
                tag(
                    "rect",
                    x=x - 15,
                    width=30,
                    **_GRADIENT.bar(d),
                    fill=_ORANGE if d < 0 else _GREEN,
                    rx=2,
                    data_slope=i,
                ),
                text(
                    _slope(d),
                    x,
                    _GRADIENT(d) + (12 if d < 0 else -4),
                    small=True,
                    text_anchor="middle",
                    data_slope_label=i,
                ),
            ]
            loads += [
                tag(
                    "rect",
                    x=x - 19,
                    width=38,
                    **_LOAD.bar(v["load"][i]),
                    fill=_BLUE,
                    fill_opacity=0.28,
                    rx=2,
                    data_load=i,
                ),
                tag(
                    "rect",
                    x=x - 9,
                    width=18,
                    **_LOAD.bar(v["importance"][i]),
                    fill=_BLUE,
                    rx=2,
                    data_importance=i,
                ),
                text(
                    f"{fixed(100 * v['load'][i], 0)}%",
                    x,
                    above(_LOAD(v["load"][i]), even),
                    small=True,
                    text_anchor="middle",
                    data_load_label=i,
                ),
            ]
        loads.append(rule(_LEFT, even, right, even, faint=False, stroke_dasharray="4 4", data_even=""))
        loads.append(text("even", right + 3, even + 3.5, small=True, data_even_label=""))
        names = [text(str(i + 1), x, 481, text_anchor="middle") for i, x in enumerate(centre)]
        picks = [
            tag(
                "rect",
                x=x - _COLUMN / 2,
                y=136.0,
                width=_COLUMN,
                height=350.0,
                fill="transparent",
                data_pick=i,
            )
            for i, x in enumerate(centre)
        ]
        column = tag(
            "rect",
            x=centre[s["expert"]] - _COLUMN / 2,
            y=16.0,
            width=_COLUMN,
            height=470.0,
            rx=6,
            fill="currentColor",
            fill_opacity=0.07,
            data_column="",
        )
        chosen, over = _INDICES[s["expert"]], f": mean over {TOKENS} draws" if s["noise"] else ""
        return svg(
            _WIDTH,
            _HEIGHT,
            "Eight experts side by side: logits, gate weights, gradient and load",
            column,
            strip("logits", _LOGITS, "Logits zᵢ: drag the dots", {-4: "−4", 0: "0", 4: "4"}, dots),
            strip("weights", _WEIGHTS, "Gate weights wᵢ" + over, {0: "0", 1: "1"}, bars),
            strip(
                "gradient",
                _GRADIENT,
                f"Gradient ∂wᵢ/∂z{chosen} (× is none)",
                {-0.5: "−½", 0: "0", 0.5: "½"},
                slopes,
            ),
            strip("load", _LOAD, "Load: pale, share of 256 tokens; solid, mean weight", {0: "0", 1: "1"}, loads),
            *names,
            text("expert i", right / 2 + _LEFT / 2, 496, small=True, text_anchor="middle"),
            *picks,
            data_bars="",
        )
