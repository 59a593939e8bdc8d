"""A regulariser that moves its own network: the exact best response of ridge regression against an affine fit to it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from gated.lab.explorables import drawing as draw
from gated.lab.explorables.drawing import fixed, formula, frac, row, rule, sup, tag, text
from gated.lab.explorables.explorable import Explorable
from gated.lab.explorables.response_run import MODES, NARROW, SETS, SPAN, STEPS, TARGETS, WIDE, RidgeTuning, draws, run

STEEP = 5
"""|2 ln d| is at most this."""
METHODS = {"stn": "STN line", "delta": "Δ-STN line", "exact": "exact response"}
SHOWN = [(i - 60) / 10 for i in range(121)]
"""Values of lambda at which curves are drawn."""

_BLUE, _ORANGE, _GREEN = "var(--gx-blue, #0072b2)", "var(--gx-orange, #c46a00)", "var(--gx-green, #00805b)"
COLOURS = {"stn": _ORANGE, "delta": _GREEN, "exact": _BLUE}
_LINES = {**COLOURS, "exact": "var(--gx-grey, #77808a)"}
_PUSH, _BOTTOM, _TOP = 15, 0.25, 1.15  # lambda-units of arrow per unit of slope; the loss shown
_X, _GATE, _SPECTRUM = draw.Axis(-SPAN, SPAN, 36, 312), draw.Axis(0, 1, 176, 42), draw.Axis(-STEEP, STEEP, 318, 246)
_LOSS, _WIDTH = draw.Axis(_BOTTOM, _TOP, 226, 30), draw.Axis(math.log10(NARROW), math.log10(WIDE), 186, 30)
_TIME, _SCHEDULE = draw.Axis(0, STEPS, 36, 312), draw.Axis(-SPAN, SPAN, 318, 240)
_ROWS = (284, 312)
_NUMBER = "fill: var(--pst-color-background, #fff); pointer-events: none"

_JACOBIAN = formula("J = −", frac("r m w_0", row("a + r m ( 1 +", sup("σ", "2"), ")")))
_BALANCE = formula("<msup><mi>σ</mi><mo>*</mo></msup>", "=", f"<msqrt>{frac('τ', 'h')}</msqrt>")
WORDS = {
    "trust": ("The line is as good as the sigmoid", formula("g ( λ + ε ) ≈ g ( λ ) − g ( 1 − g ) ε"),
        "Where ±2σ is narrow, the gates are nearly straight in it. The affine response then has nearly the true slope, "
        "and the step of λ is nearly the one that retraining at every λ would give."),
    "shrunk": ("The hypergradient shrinks", _JACOBIAN,
        "A gate bends within ±2σ, and a straight line can only average over that. Here r is the penalty, a = d², and "
        "m = exp(σ²/2). The slope J of the weights falls as σ grows. λ still goes the right way, but slowly."),
    "stretched": ("The hypergradient is too large", _JACOBIAN,
        "The fit averages over parts of the gates that are steeper than the place where λ stands. Or modes that push λ "
        "in opposite directions shrink unequally, and less of the push cancels."),
    "wrong": ("The hypergradient points the wrong way", formula("m =", sup("e", row(sup("σ", "2"), "/ 2"))),
        "For STN the centre of the line is fitted under the perturbation too. On average that is a larger penalty, by "
        "the factor m, and λ is moved as if it stood nearer there. Δ-STN keeps the centre where it belongs."),
    "turned": ("The sum of the pushes has turned", _JACOBIAN,
        "Some modes push λ up and some push it down. A flat line shrinks the pushes by different factors, and the sum "
        "changes its sign. The exact centre of Δ-STN does not help against that: only a smaller σ does."),
    "flat": ("There is hardly a slope", formula("d L_V / d λ ≈ 0"),
        "λ stands where the true validation loss is nearly flat, so the ratio of the two slopes says little. σ goes on "
        "to its balance with the entropy."),
    "noisy": ("Noise drowns the slope", formula("sd ( J ) ∝", frac("ν", "σ")),
        "A refit sees few examples, and their targets vary with the perturbation by chance. A small σ leaves little to "
        "tell the response from that. The noise looks like curvature, so σ shrinks further. A larger τ leads out."),
    "runaway": ("σ has run away", _BALANCE,
        "The fitted line is so flat that the loss hardly depends on the perturbation. Nothing holds against the "
        "entropy, σ grows to the limit of this figure, and λ stays where it is."),
    "exact": ("The exact response: gates that close", formula("g_i =", frac("1", row("1 +", sup("e", "λ − 2 ln d_i")))),
        "Ridge regression is a soft filter. The mode with singular value d is half shut when the penalty exp(λ) is d². "
        "The grey lines are the tangents. Where the loss bends down, h is negative and σ has no balance."),
}  # fmt: skip


class ResponseExplorable(Explorable):
    """Drag a ridge penalty: six gates and the lines fitted to them, the loss along both, and the schedule that follows.

    Args:
        lam: lambda, the logarithm of the penalty, where a run starts, -6 to 6.
        sigma: width of the perturbation of lambda where a run starts, 0.05 to 4.
        tau: weight of the entropy, 0.0001 to 0.1.
        noise: of each refit, 0 to 0.1; the targets' chance covariance with a unit perturbation, in each mode.
        method: a key of `METHODS`.
        steps: steps of the run that are done, 0 to 100.
        spectrum: 2 ln d for each mode, -5 to 5; that lambda shuts the mode's gate by half.
        mode: the mode whose gate is marked, 0 to 5. seed: of the noise, 0 to 99.

    Raises:
        ValueError: a value out of its range.
    """

    name = "response"

    def __init__(
        self,
        lam: float | int = 3.0,
        sigma: float | int = 1.0,
        tau: float | int = 0.01,
        noise: float | int = 0.0,
        method: str = "stn",
        steps: int = 0,
        spectrum: Sequence[float | int] = (3, 2, 1, 0, -1, -2),
        mode: int = 0,
        seed: int = 0,
    ) -> None:
        bounds = {"lam": (lam, -SPAN, SPAN), "sigma": (sigma, NARROW, WIDE), "tau": (tau, 1e-4, 0.1)}
        bounds |= {"noise": (noise, 0, 0.1), "steps": (steps, 0, STEPS), "mode": (mode, 0, MODES - 1)}
        for name, (number, low, high) in {**bounds, "seed": (seed, 0, 99)}.items():
            if not low <= number <= high:
                raise ValueError(f"{name} must be in {low} to {high}, got {number}")
        if method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
        if len(spectrum) != MODES or not all(abs(c) <= STEEP for c in spectrum):
            raise ValueError(f"spectrum must be {MODES} numbers in -{STEEP} to {STEEP}, got {spectrum!r}")
        state = {"lam": float(lam), "sigma": float(sigma), "tau": float(tau), "noise": float(noise), "method": method}
        state |= {"steps": int(steps), "spectrum": [float(c) for c in spectrum], "mode": int(mode), "seed": int(seed)}
        words = {key: list(value) for key, value in WORDS.items()}
        super().__init__(state, {**SETS, "words": words, "names": METHODS, "colours": _LINES})

    def tuning(self) -> RidgeTuning:
        """The game of the sliders: spectrum, entropy and noise."""
        s = self.state
        return RidgeTuning(tuple(s["spectrum"]), s["tau"], s["noise"], s["seed"])

    def values(self) -> dict[str, Any]:
        s, game = self.state, self.tuning()
        paths = {name: run(game, name, s["lam"], s["sigma"]) for name in METHODS}
        method, lam, sigma = s["method"], *(path[s["steps"]] for path in paths[s["method"]])
        drawn = draws(s["seed"])[s["steps"]]
        centre, slope = game.fit(method, lam, sigma, drawn)
        exact = game.fit("exact", lam, sigma, drawn)
        fitted, curvature, line = game.slopes(method, centre, slope)
        true, *_ = game.slopes("exact", *exact)
        curve = game.loss(game.ridge.gates(torch.tensor(SHOWN, dtype=torch.float64)) * TARGETS)
        best, noise = int(curve.argmin()), game.noise_of_slope(method, lam, sigma, centre)
        return {
            "lam": lam, "sigma": sigma, "gates": (exact[0] / TARGETS).tolist(),
            "centre": (centre / TARGETS).tolist(), "slope": (slope / TARGETS).tolist(),
            "curve": curve.tolist(), "loss": game.loss(exact[0]).item(), "fitted_loss": game.loss(centre).item(),
            "best": SHOWN[best], "least": curve[best].item(), "true": true, "fitted": fitted,
            "ratio": fitted / true if abs(true) > 1e-4 else "", "curvature": curvature, "line": line,
            "balance": math.sqrt(s["tau"] / curvature) if curvature > 1e-9 else "",
            "paths": {name: [list(lams), list(sigmas)] for name, (lams, sigmas) in paths.items()},
            "kind": _kind(method, sigma, true, fitted, noise),
        }  # fmt: skip

    def __repr__(self) -> str:
        s, v = self.state, self.values()
        return (
            f"ResponseExplorable: {METHODS[s['method']]}, lambda {v['lam']:.2f}, sigma {v['sigma']:.2f} after "
            f"{s['steps']} steps\n  hypergradient {v['fitted']:+.4f}, true {v['true']:+.4f}\n"
            f"  validation loss {v['loss']:.3f}, least {v['least']:.3f} at lambda {v['best']:.2f}"
        )

    def markup(self) -> str:
        v = self.values()
        numbers = {
            "now": ("λ and σ now", f"{_signed(v['lam'], 2)}, {fixed(v['sigma'], 2)}"),
            "true": ("True hypergradient dLᵥ/dλ", _signed(v["true"], 4)),
            "fitted": ("Hypergradient of the fit", _signed(v["fitted"], 4)),
            "ratio": ("Their ratio, fit / true", _ratio(v["ratio"])),
            "curvature": ("Curvature h along the fit", _signed(v["curvature"], 4)),
            "balance": ("Entropy balance √(τ/h)", _balance(v["balance"])),
            "losses": ("Validation loss: now, least", f"{fixed(v['loss'], 3)}, {fixed(v['least'], 3)}"),
        }
        key = {"exact response": _BLUE, "STN": _ORANGE, "Δ-STN": _GREEN, "±2σ around λ": "#8885"}
        swatches = "".join(tag("span", words, style=f"--gx-swatch: {colour}") for words, colour in key.items())
        hint = (
            "Ridge regression with six modes, and λ is the logarithm of its penalty. Each step refits the straight "
            "response under λ + σξ (ξ is normal), then moves λ and σ down the validation loss, less τ times the "
            "entropy. A mode with singular value d is half shut at λ = 2 ln d. Drag it to scale both sets’ inputs."
        )
        shape = "grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr))"
        below = tag("div", draw.readings(numbers), style="margin-top: 1rem")
        cells = [tag("div", picture, class_="gx-figure") for picture in (self._gates(v), self._losses(v))]
        cells.append(tag("div", tag("div", class_="gx-controls"), below))
        cells.append(tag("div", self._paths(v), class_="gx-figure"))
        cells += [draw.callout(*WORDS[v["kind"]]), tag("div", hint, style="font-size: 13px; order: 2")]
        key_line = tag("div", swatches, class_="gx-key", style="margin-bottom: .5rem")
        return key_line + tag("div", *cells, class_="gx-grid", style=shape)

    def _gates(self, v: dict[str, Any]) -> str:
        """The gates with their lines, and the spectrum to drag."""
        marks = [text("Gates of six modes over λ", 8, 14, strong=True), *_frame(_GATE, {0: "0", 0.5: "½", 1: "1"})]
        marks += _band(v, _GATE)
        for i, gate in enumerate(self.tuning().ridge.gates(torch.tensor(SHOWN, dtype=torch.float64)).T.tolist()):
            look: dict[str, Any] = {"fill": "none", "stroke_width": 3.0 if i == self.state["mode"] else 1.25}
            marks.append(tag("path", d=_path(_X, SHOWN, _GATE, gate), stroke=_BLUE, **look, data_gate=i))
            ends = _within(v["centre"][i], v["slope"][i], *_reach(v))
            d = _path(_X, [v["lam"] + e for e in ends], _GATE, [v["centre"][i] + v["slope"][i] * e for e in ends])
            marks.append(tag("path", d=d, stroke=_LINES[self.state["method"]], **look, data_line=i))
        strip = [text("Spectrum: drag 2 ln d", 8, 226, strong=True)]
        for c in (-STEEP, 0, STEEP):
            strip += [rule(36, _SPECTRUM(c), 312, _SPECTRUM(c), faint=c != 0), _label(f"{c}", 30, _SPECTRUM(c) + 4)]
        for i, c in enumerate(self.state["spectrum"]):
            x, y = 59.0 + 46 * i, _SPECTRUM(c)
            strip.append(rule(x, _SPECTRUM(0), x, y, faint=False, data_stem=i))
            dot = tag("circle", cx=x, cy=y, r=8, fill=_BLUE) + tag("circle", cx=x, cy=y, r=17, fill="transparent")
            number = text(f"{i + 1}", x, y + 4, text_anchor="middle", style=_NUMBER)
            strip.append(tag("g", dot, number, data_handle=i))
        label = "Six sigmoid gates over the log penalty, the lines fitted to them, and the spectrum of the inputs"
        return draw.svg(320, 336, label, tag("g", *marks, data_axis="gate", **_GATE.data()),
                        tag("g", *strip, data_axis="spectrum", **_SPECTRUM.data()),
                        tag("g", data_axis="x", **_X.data()))  # fmt: skip

    def _losses(self, v: dict[str, Any]) -> str:
        """The loss along the exact response and along the line, and where they push lambda."""
        marks = [text("Validation loss over λ", 8, 14, strong=True), *_frame(_LOSS, {0.3: "0.3", 0.6: "0.6", 1: "1"})]
        marks += _band(v, _LOSS)
        own, look = _LINES[self.state["method"]], {"fill": "none", "stroke_width": 2.5}
        marks.append(tag("path", d=_path(_X, SHOWN, _LOSS, v["curve"]), stroke=_BLUE, **look, data_true=""))
        for name, reach, dash in (("wide", (-SPAN - v["lam"], SPAN - v["lam"]), "3 5"), ("near", _reach(v), None)):
            marks.append(tag("path", d=_bowl(v, *reach), stroke=own, stroke_dasharray=dash, **look, data_bowl=name))
        marks.append(tag("circle", cx=_X(v["lam"]), cy=_LOSS(v["loss"]), r=5, fill=_BLUE, data_at="loss"))
        marks.append(tag("circle", cx=_X(v["lam"]), cy=_LOSS(v["fitted_loss"]), r=4, fill=own, data_at="fitted_loss"))
        marks.append(text("Where λ is pushed, and how hard", 8, 264, strong=True))
        side = {"x": 8.0, "text_anchor": "start"} if v["lam"] > 0 else {"x": 312.0, "text_anchor": "end"}
        for name, y, colour in (("true", _ROWS[0], _BLUE), ("fitted", _ROWS[1], own)):
            marks.append(tag("text", name, y=y + 4, font_size=12, fill="currentColor", **side, data_name=name))
            arrow = {"stroke": colour, "stroke_linecap": "round", "fill": "none", "stroke_width": 3, "data_arrow": name}
            marks.append(tag("path", d=_arrow(v["lam"], v[name], y), **arrow))
        label = (
            "Validation loss of the exact and of the fitted response over the log penalty, with their slopes as arrows"
        )
        return draw.svg(320, 336, label, tag("g", *marks, data_axis="loss", **_LOSS.data()))

    def _paths(self, v: dict[str, Any]) -> str:
        """The ways of lambda and sigma, and lambda over the steps."""
        done, method, marks = self.state["steps"], self.state["method"], [text("Path of λ and σ", 8, 14, strong=True)]
        marks += _frame(_WIDTH, {math.log10(w): f"{w:g}" for w in (0.05, 0.2, 1, 4)})
        marks.append(_label("σ upwards; dashed: least loss", 312, 14))
        best, time = _X(v["best"]), [text("Schedule: λ over the steps", 8, 228, strong=True)]
        marks.append(rule(best, _WIDTH.start, best, _WIDTH.stop, faint=False, stroke_dasharray="4 3", data_best=""))
        for lam in (-SPAN, 0, SPAN):
            time += [
                rule(36, _SCHEDULE(lam), 312, _SCHEDULE(lam), faint=lam != 0),
                _label(f"{lam}", 30, _SCHEDULE(lam) + 4),
            ]
        time += [_label(words, _TIME(t), _SCHEDULE.start + 15, "middle") for t, words in {0: "0", 50: "50"}.items()]
        time.append(_label("100 steps", 312, _SCHEDULE.start + 15))
        for name, (lams, sigmas) in v["paths"].items():
            look: dict[str, Any] = {
                "fill": "none",
                "stroke": COLOURS[name],
                "stroke_width": 3.0 if name == method else 1.5,
            }
            logs = [math.log10(sigma) for sigma in sigmas]
            marks.append(tag("path", d=_path(_X, lams, _WIDTH, logs), **look, stroke_opacity=0.35, data_all=name))
            d = _path(_X, lams[: done + 1], _WIDTH, logs[: done + 1])
            marks.append(tag("path", d=d, **look, data_done=name))
            dot = {"cx": _X(lams[done]), "cy": _WIDTH(logs[done]), "r": 6 if name == method else 4, "data_head": name}
            marks.append(tag("circle", fill=COLOURS[name], **dot))
            time.append(
                tag("path", d=_path(_TIME, list(range(STEPS + 1)), _SCHEDULE, lams), **look, data_schedule=name)
            )
        now = _TIME(done)
        time.append(rule(now, _SCHEDULE.start, now, _SCHEDULE.stop, faint=False, data_now=""))
        label = "The way of the log penalty and the perturbation's width for three methods, and the penalty by steps"
        return draw.svg(320, 336, label, tag("g", *marks, data_axis="width", **_WIDTH.data()),
                        tag("g", *time, data_axis="schedule", **_SCHEDULE.data()),
                        tag("g", data_axis="time", **_TIME.data()))  # fmt: skip


def _kind(method: str, sigma: float, true: float, fitted: float, noise: float) -> str:
    if method == "exact":
        return "exact"
    if noise > abs(true):
        return "noisy"
    if sigma == WIDE or abs(true) < 0.004:
        return "runaway" if sigma == WIDE else "flat"
    ratio = fitted / true
    if ratio < 0:
        return "wrong" if method == "stn" else "turned"
    return "shrunk" if ratio < 0.85 else "stretched" if ratio > 1.15 else "trust"


def _label(words: str, x: draw.Number, y: draw.Number, anchor: str = "end") -> str:
    return text(words.replace("-", "−"), x, y, text_anchor=anchor, fill_opacity="0.72")


def _frame(axis: draw.Axis, labels: dict[float | int, str]) -> list[str]:
    """Lines and labels of the vertical axis, and the labels of lambda below."""
    lines = [rule(36, axis(at), 312, axis(at), faint=axis(at) < axis.start) for at in labels]
    lines += [_label(word, 30, axis(at) + 4) for at, word in labels.items()]
    ticks = {-6: "−6", -3: "−3", 0: "λ = 0", 3: "3", 6: "6"}
    return lines + [_label(word, _X(lam), axis.start + 15, "middle") for lam, word in ticks.items()]


def _band(v: dict[str, Any], axis: draw.Axis) -> list[str]:
    left, right, here = _X(v["lam"] - 2 * v["sigma"]), _X(v["lam"] + 2 * v["sigma"]), _X(v["lam"])
    box = {"x": left, "width": right - left, "y": axis.stop, "height": axis.start - axis.stop}
    line = rule(here, axis.start, here, axis.stop, faint=False, data_here="")
    return [tag("rect", **box, fill="currentColor", fill_opacity=0.1, data_band=""), line]


def _reach(v: dict[str, Any]) -> tuple[float, float]:
    """From lambda to the ends of the band, inside the picture."""
    lam, width = v["lam"], 2 * v["sigma"]
    return max(-width, -SPAN - lam), min(width, SPAN - lam)


def _within(centre: float, slope: float, low: float, high: float) -> list[float]:
    """The ends of the part of low to high where centre + slope e is a little below 0 at least and above 1 at most."""
    if abs(slope) > 1e-9:
        one, two = sorted(((-0.12 - centre) / slope, (1.12 - centre) / slope))
        low, high = max(low, one), min(high, two)
    return [low, high] if low < high else []


def _bowl(v: dict[str, Any], low: float, high: float) -> str:
    """The loss along the line between two distances from lambda, as far as it lies in the picture."""
    start, slope, line = v["fitted_loss"], v["fitted"], v["line"]
    room = slope**2 - 2 * line * (start - _TOP)
    if line > 1e-9 and room > 0:
        low, high = max(low, (-slope - math.sqrt(room)) / line), min(high, (-slope + math.sqrt(room)) / line)
    at = [low + (high - low) * i / 40 for i in range(41)] if low < high else []
    return _path(_X, [v["lam"] + e for e in at], _LOSS, [start + slope * e + line * e * e / 2 for e in at])


def _arrow(lam: float, slope: float, y: int) -> str:
    start, tip = _X(lam), _X(lam - _PUSH * slope)
    side = math.copysign(6, tip - start)
    head = f"m{-side:.2f} -5l{side:.2f} 5l{-side:.2f} 5" if abs(tip - start) >= 3 else ""
    return f"M{start:.2f} {y}H{tip:.2f}{head}"


def _path(at: draw.Axis, xs: Sequence[draw.Number], to: draw.Axis, ys: Sequence[draw.Number]) -> str:
    return "M" + "L".join(f"{at(x):.2f} {to(y):.2f}" for x, y in zip(xs, ys, strict=True)) if xs else "M0 0"


def _signed(number: float, digits: int) -> str:
    return f"{number:.{digits}f}".replace("-", "−")


def _balance(sigma: float | str) -> str:
    return "none" if isinstance(sigma, str) else "over 99" if sigma > 99 else fixed(sigma, 2)


def _ratio(ratio: float | str) -> str:
    return "no slope" if isinstance(ratio, str) else _signed(ratio, 2)
