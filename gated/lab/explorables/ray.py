"""Gate and temperature grow together: which scores notice it, and how many points does it take to see?"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gated.gaussian_moe.fisher import density_and_score, ray
from gated.gaussian_moe.model import GaussianMoE
from gated.gaussian_moe.truths import TEMPERATURE, temperature_truth
from gated.kernels.gmoe_em.activations import ACTIVATIONS, ActivationName
from gated.lab.explorables import drawing as draw
from gated.lab.explorables.drawing import fixed, formula, frac, row, rule, sup, tag, text
from gated.lab.explorables.explorable import Explorable

NAMES: dict[ActivationName, str] = {
    "identity": "identity", "tanh": "tanh", "sigmoid": "sigmoid", "gelu": "GELU", "silu": "SiLU",
    "softplus": "softplus", "sin": "sine", "relu": "ReLU", "square": "square", "cube": "cube",
}  # fmt: skip
SHOWN = [(i - 40) / 40 for i in range(81)]
"""Inputs at which the gate is drawn."""
SCALES = [10 ** (k * abs(k) / 900) for k in range(-30, 31)]
"""Places on the ray, densest at c = 1, where many points make the curve narrow."""
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(32)
NODES = [*((_NODES - 1) / 2).tolist(), *((_NODES + 1) / 2).tolist()]
"""Gauss-Legendre nodes of x in two halves, because a ReLU has its kink between them."""
WEIGHTS = [*(_WEIGHTS / 4).tolist()] * 2
OUTPUTS = [-6.5 + i / 8 for i in range(113)]
"""Values of y a quarter of a deviation apart: the trapezoidal rule is all but exact for Gaussians."""
CHANCE, TOP = 1.92, 6
"""Half the 95% point of chi-square with one degree of freedom; the largest loss that is drawn."""
TAU = TEMPERATURE.tau.item()

_BLUE, _ORANGE, _GREY = "var(--gx-blue, #0072b2)", "var(--gx-orange, #c46a00)", "var(--gx-grey, #77808a)"
_X, _PI = draw.Axis(-1, 1, 44, 444), draw.Axis(0, 1, 172, 28)
_RAY, _LOSS = draw.Axis(-1, 1, 44, 444), draw.Axis(0, TOP, 396, 252)  # of log10 c; of nats
_SD = draw.Axis(-3, 2, 72, 344)  # of log10 sd
_FIRST, _ROW = 478, 18

_INVERSE = f"<msub>{row('(', sup('I', '− 1'), ')')}{row('τ τ')}</msub>"
_ERROR = formula("sd ( τ̂ ) =", f"<msqrt>{frac(_INVERSE, 'n')}</msqrt>")
WORDS = {
    "flat": (
        "Nothing changes along this ray",
        formula("σ (", sup("c", "1 / p"), "z ) = c σ ( z )"),
        "Score, bias and temperature grow by the same factor c, and their quotient stays. The data cannot tell one c "
        "from another, however many there are: τ keeps the value at which the fit was started. The degree p of "
        "the score is 1 for a line or a ReLU, 2 for the square and 3 for the cube.",
    ),
    "bent": (
        "The bend gives τ away",
        _ERROR,
        "A larger slope bends the score in another way, so no temperature can make up for it. The sharper the dashed "
        "curve, the smaller the error of τ. It falls as one over the root of n.",
    ),
    "hopeless": (
        "Identified, but hopeless at this n",
        _ERROR,
        "Where the inputs lie, the score is close to one that the ray does not change, a straight line or a ReLU, so "
        "the dashed curve hardly rises. The rate is that of the others, and yet the error exceeds τ. Move n until it "
        "is less.",
    ),
}


def _grid() -> tuple[Tensor, Tensor, Tensor]:
    """Inputs [x, 1], outputs [x, y], and the weight of each pair in an integral over both."""
    nodes, outputs, weights = (torch.tensor(values, dtype=torch.float64) for values in (NODES, OUTPUTS, WEIGHTS))
    step = OUTPUTS[1] - OUTPUTS[0]
    return nodes[:, None], outputs.expand(len(nodes), -1), step * weights[:, None].expand(-1, len(outputs))


def loss_along(truth: GaussianMoE, scales: list[float]) -> list[float]:
    """E[log p(y | x; truth) - log p(y | x; moved by c)], nats a point, x uniform on [-1, 1]."""
    x, y, weight = _grid()
    x, y = x.expand(y.shape).reshape(-1, 1), y.flatten()
    log_density = truth.log_density(x, y)
    moved = ray(truth, torch.tensor(scales, dtype=torch.float64))
    there = moved.log_density(x.expand(len(scales), *x.shape), y.expand(len(scales), -1))
    return ((log_density - there) @ (weight.flatten() * log_density.exp())).tolist()


def spread(truth: GaussianMoE) -> float:
    """sqrt((I^-1)_tau,tau): sqrt(n) times the standard deviation of tau when all nine parameters are estimated.

    The score of tau is exchanged for the derivative along the ray: they differ by scores of the gate's other
    parameters, which are projected out in any case, and this keeps its digits where the score is nearly straight.
    Infinite for a homogeneous activation.
    """
    if ACTIVATIONS[truth.gate.activation].degree is not None:
        return math.inf
    x, y, weight = _grid()
    log_density, score = density_and_score(truth, x, y)
    along = score[..., :3] @ torch.stack([truth.beta0[0], truth.beta1[0, 0], truth.tau]) / truth.tau
    rows = torch.cat([score[..., 3:], score[..., :2], along[..., None]], -1).flatten(0, 1)
    mass = (weight * log_density.exp()).flatten()
    return 1 / torch.linalg.cholesky(rows.T @ (mass[:, None] * rows))[-1, -1].item()


class RayExplorable(Explorable):
    """Move along (c beta_0, c beta_1, c tau) and see gate, likelihood, and the error of tau for ten activations.

    The truth is `gated.gaussian_moe.truths.TEMPERATURE` with the activation and beta_1 chosen here.

    Args:
        activation: the score's, a key of `NAMES`.
        c: place on the ray, 0.1 to 10; the truth is c = 1.
        beta1: the true slope, 0.5 to 5.
        n: points, 100 to 1,000,000.

    Raises:
        ValueError: a value out of its range.
    """

    name = "ray"

    def __init__(
        self, activation: str = "tanh", c: float | int = 2.5, beta1: float | int = 2.0, n: float | int = 1000
    ) -> None:
        if activation not in NAMES:
            raise ValueError(f"activation must be one of {', '.join(NAMES)}, got {activation!r}")
        for name, number, low, high in (("c", c, 0.1, 10), ("beta1", beta1, 0.5, 5), ("n", n, 100, 1e6)):
            if not low <= number <= high:
                raise ValueError(f"{name} must be in {low:g} to {high:,.0f}, got {number}")
        state = {"activation": activation, "c": float(c), "beta1": float(beta1), "n": float(n)}
        truth = {name: tensor.flatten().tolist() for name, tensor in TEMPERATURE.tensors().items()}
        truth |= {"beta0": truth["beta0"][0], "tau": truth["tau"][0]}
        degrees = {name: ACTIVATIONS[name].degree or 0 for name in NAMES}  # 0: not homogeneous
        grids = {"nodes": NODES, "weights": WEIGHTS, "outputs": OUTPUTS, "shown": SHOWN, "scales": SCALES}
        constants = {"names": NAMES, "degrees": degrees, "truth": truth, "words": WORDS, **grids}
        super().__init__(state, constants)

    def truth(self, activation: ActivationName | None = None) -> GaussianMoE:
        """The true model with the slope of the slider."""
        truth = temperature_truth(activation or self.state["activation"])
        beta1 = torch.tensor([[self.state["beta1"]], [0.0]], dtype=torch.float64)
        return replace(truth, beta1=beta1)

    def values(self) -> dict[str, Any]:
        s, truth = self.state, self.truth()
        x = torch.tensor(SHOWN, dtype=torch.float64)[:, None]
        here, there = (ray(truth, c).log_gate(x)[:, 0].exp().tolist() for c in (1.0, s["c"]))
        spreads = {name: spread(self.truth(name)) for name in NAMES}
        own = spreads[s["activation"]]
        sd = {name: value / math.sqrt(s["n"]) for name, value in spreads.items()}
        return {
            "here": here,
            "there": there,
            "apart": max(abs(a - b) for a, b in zip(here, there, strict=True)),
            "curve": loss_along(truth, SCALES),
            "loss": loss_along(truth, [s["c"]])[0],
            "sd": {name: value if value < math.inf else "infinite" for name, value in sd.items()},
            "needed": 100 * (own / TAU) ** 2 if own < math.inf else "infinite",
            "regime": "flat" if own == math.inf else "hopeless" if sd[s["activation"]] > TAU else "bent",
        }

    def __repr__(self) -> str:
        s, v = self.state, self.values()
        return (
            f"RayExplorable: {NAMES[s['activation']]} score, beta_1 {s['beta1']:g}, c {s['c']:g}, n {s['n']:,.0f}\n"
            f"  gates at theta and c theta differ by at most {v['apart']:.3f}; {_lost(v['loss'], s['n'])} nats lost\n"
            f"  sd of tau (truth {TAU}): {_sd(v['sd'][s['activation']])}; points for 10%: {_points(v['needed'])}"
        )

    def markup(self) -> str:
        s, v = self.state, self.values()
        title, equation, words = WORDS[v["regime"]]
        numbers = {
            "apart": ("The two gates differ by at most", fixed(v["apart"], 3)),
            "lost": ("Log-likelihood lost at c, in nats", _lost(v["loss"], s["n"])),
            "error": (f"sd of the estimated τ (true τ: {TAU})", _sd(v["sd"][s["activation"]])),
            "needed": ("Points until τ is known to 10%", _points(v["needed"])),
        }
        colours = {"the truth θ = (β₀, β₁, τ)": _BLUE, "moved along the ray by c": _ORANGE}
        key = [tag("span", words, style=f"--gx-swatch: {colour}") for words, colour in colours.items()]
        left = tag(
            "div", tag("div", *key, class_="gx-key", style="margin-bottom: .4rem"), self._picture(v), class_="gx-figure"
        )
        controls = tag("div", class_="gx-controls")
        return draw.columns(left, draw.callout(title, equation, words), controls, draw.readings(numbers))

    def _picture(self, v: dict[str, Any]) -> str:
        """The gate at both places, the loss between them, and the errors of tau."""
        s = self.state
        gates = [text("Share of expert 1, π₁(x)", 8, 14, strong=True)]
        for value in (0, 0.5, 1):
            gates += [rule(_X.start, _PI(value), _X.stop, _PI(value), faint=value > 0)]
            gates += [text(f"{value:g}", _X.start - 8, _PI(value) + 3.5, small=True, text_anchor="end")]
        for value, label in {-1: "−1", 0: "x = 0", 1: "1"}.items():
            gates.append(text(label, _X(value), _PI(0) + 16, small=True, text_anchor="middle"))
        line: dict[str, object] = {"fill": "none", "stroke_width": 2.5}
        places = [(_X(x), a, b) for x, a, b in zip(SHOWN, v["here"], v["there"], strict=True)]
        gates.append(tag("path", d=_path([(x, _PI(a)) for x, a, _ in places]), stroke=_BLUE, data_gate="here", **line))
        there = _path([(x, _PI(b)) for x, _, b in places])
        gates.append(tag("path", d=there, stroke=_ORANGE, stroke_dasharray="7 4", data_gate="there", **line))

        losses = [text("Log-likelihood that n points lose at c", 8, 226, strong=True)]
        losses.append(text("solid: all else fixed; dashed: all else fitted anew, near c = 1", 8, 241, small=True))
        for value in (0, 3, 6):
            losses += [rule(_RAY.start, _LOSS(value), _RAY.stop, _LOSS(value), faint=value > 0)]
            losses += [text(f"{value}", _RAY.start - 8, _LOSS(value) + 3.5, small=True, text_anchor="end")]
        for label in ("0.1", "0.3", "1", "3", "10"):
            words = "c = 1" if label == "1" else label
            losses.append(text(words, _RAY(math.log10(float(label))), _LOSS(0) + 16, small=True, text_anchor="middle"))
        chance = _LOSS(CHANCE)
        losses.append(rule(_RAY.start, chance, _RAY.stop, chance, faint=False, stroke_dasharray="2 3"))
        losses.append(text("below: may be chance (95%)", _RAY.start + 4, chance - 5, small=True))
        sharp = v["sd"][s["activation"]]
        curvature = 0.0 if sharp == "infinite" else (TAU / sharp) ** 2
        again = [(c, curvature * math.log(c) ** 2 / 2) for c in SCALES if 0.5 <= c <= 2]
        losses.append(
            tag("path", d=_below(again), stroke="currentColor", stroke_dasharray="4 4", data_again="", **line)
        )
        lost = [(c, s["n"] * loss) for c, loss in zip(SCALES, v["curve"], strict=True)]
        losses.append(tag("path", d=_below(lost), stroke=_ORANGE, data_lost="", **line))
        x, y = _RAY(math.log10(s["c"])), _LOSS(s["n"] * v["loss"])
        losses.append(rule(x, _LOSS(0), x, y, faint=False, data_stem=""))
        losses.append(tag("circle", cx=x, cy=y, r=6, fill=_ORANGE, stroke="currentColor", data_dot=""))
        bottom = _FIRST + _ROW * len(NAMES)
        return draw.svg(
            456,
            bottom + 18,
            "The gate at the truth and moved along the ray; the log-likelihood lost along the ray; and the predicted "
            "standard deviation of the estimated temperature for ten activations",
            tag("g", *gates, data_strip="gate", **_PI.data()),
            tag("g", *losses, data_strip="loss", **_LOSS.data()),
            tag("g", *self._bars(v, bottom), data_strip="sd", **_SD.data()),
            tag("g", data_strip="ray", **_RAY.data()),
            tag("g", data_strip="x", **_X.data()),
        )

    def _bars(self, v: dict[str, Any], bottom: int) -> list[str]:
        """The error of tau for every activation at this slope and this n."""
        marks = [text("Predicted sd of τ at this n", 8, _FIRST - 26, strong=True)]
        for i, (name, words) in enumerate(NAMES.items()):
            y, sd = float(_FIRST + _ROW * i), v["sd"][name]
            weight = 600 if name == self.state["activation"] else 400
            marks.append(text(words, 8, y + 10.5, style=f"font-weight: {weight}", data_name=name))
            width = _SD(_SD.high if sd == "infinite" else math.log10(sd)) - _SD.start
            fill, shade = _look(sd)
            look: dict[str, object] = {"fill": fill, "fill_opacity": shade, "data_bar": name}
            marks.append(tag("rect", x=float(_SD.start), y=y, width=max(1.5, width), height=13, rx=2, **look))
            marks.append(text(_verdict(sd), _SD.stop + 8, y + 10.5, small=True, data_verdict=name))
        edge = _SD(math.log10(TAU))
        marks.append(rule(edge, _FIRST - 5, edge, bottom, faint=False, stroke_dasharray="4 3"))
        marks.append(text("sd = τ", edge, _FIRST - 9, small=True, text_anchor="middle"))
        for power, label in {-3: "0.001", -2: "0.01", -1: "0.1", 0: "1", 1: "10", 2: "100"}.items():
            marks.append(text(label, _SD(power), bottom + 12, small=True, text_anchor="middle"))
        return marks


def _path(points: list[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in points)


def _below(curve: list[tuple[float, float]]) -> str:
    """The path of a curve of (c, nats) as far as it lies under the upper edge."""
    at, points = [(_RAY(math.log10(c)), loss) for c, loss in curve], []
    for i, (x, loss) in enumerate(at):
        if loss <= TOP:
            points.append((x, _LOSS(loss)))
            continue
        for u, low in [at[j] for j in (i - 1, i + 1) if 0 <= j < len(at)]:
            if low < TOP:
                points.append((u + (x - u) * (TOP - low) / (loss - low), _LOSS(TOP)))
    return _path(points)


def _look(sd: float | str) -> tuple[str, float]:
    return (_GREY, 0.35) if isinstance(sd, str) else (_BLUE, 1.0) if sd <= TAU else (_ORANGE, 1.0)


def _verdict(sd: float | str) -> str:
    return "∞ at any n" if isinstance(sd, str) else f"{_sd(sd)} hopeless" if sd > TAU else _sd(sd)


def _sd(sd: float | str) -> str:
    return "∞" if isinstance(sd, str) else f"{sd:.{4 if sd < 0.01 else 3 if sd < 0.1 else 2 if sd < 10 else 1}f}"


def _lost(loss: float, n: float) -> str:
    lost = max(0.0, n * loss)
    return f"{lost:.2f}" if lost < 100 else f"{lost:,.0f}"


def _points(needed: float | str) -> str:
    return "no number" if isinstance(needed, str) else f"{float(f'{needed:.2g}'):,.0f}"
