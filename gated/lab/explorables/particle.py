"""A particle with a leak: 200 of them in a potential, the area they fill, and 12 neurons that listen to one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gated.lab.explorables import drawing as draw
from gated.lab.explorables import particle_flow as flow
from gated.lab.explorables import particle_marks as art
from gated.lab.explorables.drawing import fixed, formula, rule, sup, tag, text
from gated.lab.explorables.explorable import Explorable
from gated.lab.explorables.particle_flow import CAP, POINTS, RADIUS, STEPS, Mode
from gated.langevinflow.integrators import exact_noise, released_noise

REACH, TRACE = 3, 24
"""The blob starts with |z|, |v| <= REACH; bins of the particle's trace."""
RANGES = {"gamma": (0, 0.95), "h": (0.01, 1), "curvature": (-4, 12), "coupling": (0, 4), "temperature": (0, 3)}
NOISES = {"released": "released √(2γT)", "exact": "exact √(T(1−(1−γ)²))"}
SCHEMES = {"euler": "explicit Euler", "symplectic": "symplectic", "baoab": "BAOAB"}

_BLUE, _ORANGE = "var(--gx-blue, #0072b2)", "var(--gx-orange, #c46a00)"
_GREEN, _RED = "var(--gx-green, #00805b)", "var(--gx-red, #c8430a)"
_RING = {"stroke": "currentColor", "stroke_width": 1.5}

_SLOW, _TURNS = (formula(sup("( tr M )", "2"), sign, "4 det M") for sign in ("≥", "&lt;"))
WORDS = {
    "frozen": ("The particle hardly moves", _SLOW,
        "Noise fills the velocities within a few bins. But h is so small that z feels little of it, and the potential "
        "needs longer than the whole run to pull. M is the matrix of one step; its eigenvalues are real, so nothing "
        "turns."),
    "creeps": ("It slides back and does not turn", _SLOW,
        "Friction wins over the spring: both eigenvalues of a step’s matrix M are real. Of the spectrum, the longest "
        "periods have the most."),
    "turns": ("It turns", _TURNS,
        "The eigenvalues of a step’s matrix M are a pair with an angle, and a turn takes 2π over this angle bins. The "
        "spectrum has a peak where friction is small, and the neurons fire one after the other."),
    "saddle": ("A saddle: nothing holds the particle", formula("λ &lt; 0"),
        "The potential falls to both sides. The cloud stretches by the same factor in each step, if often a small one, "
        "and there is no law to settle in. That is no fault of the integrator: of the directions in which the released "
        "potential pulls at all, half are like this."),
    "bursts": ("The step explodes, not the particle", formula("max | μ | ≥ 1"),
        "The potential confines, and a smaller h would show it. At this h an eigenvalue μ of the step’s matrix does "
        "not lie inside the unit circle. Explicit Euler gets there first: where friction shrinks the area by 1 − γ, it "
        "adds a factor 1 + h²λ."),
    "drifts": ("No force on the sum of the two", formula("λ = 0"),
        "At most a spring between the two holds them together. Their sum wanders off like a free particle, and there "
        "is no law to settle in."),
    "free": ("Without friction nothing settles", formula("γ = 0"),
        "Both noise rules are silent at γ = 0. These two steps keep the area exactly and the energy within bounds, "
        "and the cloud turns on and on."),
}  # fmt: skip


class ParticleExplorable(Explorable):
    """Two coupled oscillators with friction and noise, of which one is shown: 200 particles from a blob, bin by bin.

    U = curvature/2 (z_1^2 + z_2^2) + coupling/2 (z_1 - z_2)^2; the partner starts at rest at 0.

    Args:
        gamma: friction per bin. h: the step. curvature, coupling, temperature: ranges in `RANGES`.
        noise: added to a velocity, "released" with sd sqrt(2 gamma T) or "exact" with sqrt(T (1 - (1 - gamma)^2)).
        integrator: a scheme of `gated.langevinflow.integrators`.
        start: (z, v) in the middle of the blob, both in -3 to 3.
        step: bins shown, 0 to 120.
        seed: of the noise, 0 to 9999.

    Raises:
        ValueError: a value out of its range.
    """

    name = "particle"

    def __init__(
        self,
        gamma: float | int = 0.55,
        h: float | int = 0.01,
        curvature: float | int = 11.0,
        coupling: float | int = 0.0,
        temperature: float | int = 1.0,
        noise: str = "released",
        integrator: str = "euler",
        start: Sequence[float | int] = (1.5, 0.0),
        step: int = 45,
        seed: int = 0,
    ) -> None:
        sliders = dict(zip(RANGES, (gamma, h, curvature, coupling, temperature), strict=True))
        limits = RANGES | {"step": (0, STEPS), "seed": (0, 9999)}
        for name, number in (sliders | {"step": step, "seed": seed}).items():
            if not limits[name][0] <= number <= limits[name][1]:
                raise ValueError(f"{name} must be in {limits[name][0]:g} to {limits[name][1]:g}, got {number}")
        for name, word, words in (("noise", noise, NOISES), ("integrator", integrator, SCHEMES)):
            if word not in words:
                raise ValueError(f"{name} must be one of {', '.join(words)}, got {word!r}")
        if len(start) != 2 or not all(abs(x) <= REACH for x in start):
            raise ValueError(f"start must be two numbers in -{REACH} to {REACH}, got {start!r}")
        state: dict[str, Any] = {name: float(number) for name, number in sliders.items()}
        state |= {"noise": noise, "integrator": integrator, "start": [float(x) for x in start]}
        state |= {"step": int(step), "seed": int(seed)}
        super().__init__(state, {"words": WORDS, "noises": NOISES, "schemes": SCHEMES})

    @property
    def how(self) -> dict[str, Any]:
        """The step's decay, length, noise scale and scheme."""
        s, a, heat = self.state, 1 - self.state["gamma"], self.state["temperature"]
        scale = released_noise(s["gamma"]) * math.sqrt(heat) if s["noise"] == "released" else exact_noise(a, heat)
        return {"a": a, "h": s["h"], "scale": float(scale), "scheme": s["integrator"]}

    def modes(self) -> list[Mode]:
        s, a = self.state, self.how["a"]
        both = (s["curvature"], s["curvature"] + 2 * s["coupling"])
        return [Mode.of(k, a, s["h"], s["integrator"]) for k in both]

    def paths(self, *, quiet: bool = False) -> Tensor:
        """(z_1, z_2, v_1, v_2) of all points [points, bins, 4], or of the first one without noise."""
        k, c = self.state["curvature"], self.state["coupling"]
        hessian = torch.tensor([[k + c, -c], [-c, k + c]], dtype=torch.float64)
        start, noise = flow.blob(*self.state["start"]), flow.normals(self.state["seed"])
        if quiet:
            return flow.paths((start[0][:1], start[1][:1]), hessian, noise[:1], **self.how | {"scale": 0.0})
        return flow.paths(start, hessian, noise, **self.how)

    def values(self) -> dict[str, Any]:
        s, modes, how, x = self.state, self.modes(), self.how, self.paths()
        a, h, scale, scheme = how.values()
        kind, bins = flow.kind_of(modes, s["gamma"]), x.shape[1]
        laws = [mode.law(a, h, scale, scheme) for mode in modes] if kind in ("frozen", "creeps", "turns") else []
        growth = sum(math.log(max(abs(mode.det), 1e-12)) for mode in modes) / 2
        z1, z2, v1, v2 = x[:, min(s["step"], bins - 1)].unbind(1)
        energy = v1**2 + v2**2 + s["curvature"] * (z1**2 + z2**2) + s["coupling"] * (z1 - z2) ** 2
        (var_z, cov), (_, var_v) = torch.cov(torch.stack([z1, v1]), correction=0).tolist()
        counts, cut = flow.spikes(x[0], s["seed"])
        return {
            "kind": kind, "ended": bins - 1, "factor": math.exp(growth), "det": modes[0].det * modes[1].det,
            "eigenvalues": [mode.eigenvalues for mode in modes], "radius": max(mode.radius for mode in modes),
            "zeta": [abs(math.log(a)) / h / (2 * math.sqrt(m.curvature)) if m.curvature > 0 else "none" for m in modes],
            "angle": h * h * modes[1].curvature, "bound": flow.bound(a, scheme),
            "turns": int(any(mode.turn < 0 for mode in modes)), "period": [mode.period for mode in modes],
            "memory": -1 / math.log(a) if a < 1 else "endless",
            "law": [sum(law[i] for law in laws) / 2 for i in range(3)] if laws else "none",
            "rest": sum(m.curvature * l[0] + l[1] for m, l in zip(modes, laws, strict=True)) / 4 if laws else "none",
            "mean": [z1.mean().item(), v1.mean().item()], "cloud": [var_z, var_v, cov],
            "outside": int(((z1.abs() > art.SPAN) | (v1.abs() > art.SPAN)).sum()), "energy": energy.mean().item() / 4,
            "path": x[0, :, 0].tolist(), "partner": x[0, :, 1].tolist(), "quiet": self.paths(quiet=True)[0].T.tolist(),
            "area": flow.volumes(x) if scale else [n * growth for n in range(bins)],
            "spectrum": flow.spectrum(x[:, :STEPS, 0]),
            "expected": flow.expected_spectrum(modes, laws, scheme) if laws and scale else "none",
            "counts": counts, "cut": cut,
        }  # fmt: skip

    def __repr__(self) -> str:
        s, v = self.state, self.values()
        return (
            f"ParticleExplorable: gamma {s['gamma']:g}, h {s['h']:g}, curvature {s['curvature']:g}, coupling "
            f"{s['coupling']:g}, T {s['temperature']:g}, {s['noise']} noise, {SCHEMES[s['integrator']]}\n"
            f"  {WORDS[v['kind']][0]}; damping ratio {_list(v['zeta'])}; turns: {_turns(v)}\n"
            f"  variances of z and v: {_list(v['cloud'])} in bin {min(s['step'], v['ended'])}, "
            f"{_list(v['law'])} in the long run"
        )

    def markup(self) -> str:
        v = self.values()
        numbers = {
            "zeta": ("Damping ζ", _list(v["zeta"])),
            "turns": ("Turns? h²(λ + 2κ)", _turns(v)),
            "period": ("Bins of a turn", _list(v["period"])),
            "memory": ("Bins of memory", _short(v["memory"])),
            "factor": ("Area × a step; 1 − γ", f"{fixed(v['factor'], 4)}; {fixed(self.how['a'], 4)}"),
            "radius": ("Greatest | μ |", fixed(v["radius"], 4)),
            "law": ("Variances z; v, long run", _list(v["law"])),
            "cloud": ("Variances z; v, now", _list(v["cloud"])),
            "energy": ("Mean energy now; long run", _list([v["energy"], v["rest"]])),
            "cut": (f"Rates cut at {CAP} spikes a bin", str(v["cut"])),
        }
        plane = tag("div", self._plane(v), class_="gx-figure", style="max-width: 28rem; margin: 0 auto")
        others = (self._areas(v), self._places(v), self._powers(v), self._raster(v))
        panels = tag("div", *others, class_="gx-figure", style="display: grid; gap: .6rem")
        controls = tag("div", class_="gx-controls", style="margin: .8rem 0")
        left = tag("div", plane, controls, draw.callout(*WORDS[v["kind"]]))
        return draw.columns(left, panels, draw.readings(numbers))

    def _plane(self, v: dict[str, Any]) -> str:
        s, now, x = self.state, min(self.state["step"], v["ended"]), self.paths()[:, :, [0, 2]]
        marks = [text(_status(now, v), 22, 14, strong=True, data_status="")]
        for at, label in {-2: "−2", 0: "z = 0", 2: "2"}.items():
            marks += [
                rule(art.Z(at), art.V.stop, art.Z(at), art.V.start),
                rule(art.Z.start, art.V(at), art.Z.stop, art.V(at)),
            ]
            marks.append(text(label, art.Z(at), art.V.start + 15, text_anchor="middle"))
            marks.append(text(label.replace("z", "v"), art.Z.start + 4, art.V(at) - 4))
        frame: dict[str, Any] = {"x": art.Z.start, "y": art.V.stop, "width": 312, "height": 312, "fill": "none"}
        marks.append(tag("rect", **frame, stroke="currentColor", stroke_opacity=0.4))
        marks.append(
            tag("rect", **frame, stroke=_RED, stroke_width=4, visibility=_seen(v["kind"] == "bursts"), data_burst="")
        )
        inside, edge = art.dots(x[:, now].tolist())
        dots: dict[str, Any] = {"stroke_linecap": "round", "stroke_width": 5}
        looks: dict[str, tuple[str, dict[str, Any]]] = {
            "contours": (art.trail(art.contours(s["curvature"] + s["coupling"])), {"stroke_opacity": 0.35}),
            "cloud": (inside, dots | {"stroke": _BLUE, "stroke_opacity": 0.55}),
            "edge": (edge, dots | {"stroke": _RED}),
            "law": (art.trail([art.ellipse([0, 0], v["law"])]), {"stroke": _ORANGE, "stroke_width": 3}),
            "sample": (art.trail([art.ellipse(v["mean"], v["cloud"])]), {"stroke_width": 2, "stroke_dasharray": "5 4"}),
            "trace": (art.trail([x[0, max(0, now - TRACE) : now + 1].tolist()]), {"stroke_opacity": 0.7}),
        }
        for mark, (d, look) in looks.items():
            marks.append(tag("path", d=d, fill="none", **{"stroke": "currentColor"} | look, data_mark=mark))
        z, w = art.held(x[0, now].tolist())
        marks.append(tag("circle", cx=art.Z(z), cy=art.V(w), r=5, fill=_GREEN, **_RING, data_particle=""))
        disc = {"r": RADIUS * 39, "fill": "transparent", "stroke": _BLUE, "stroke_dasharray": "3 3"}
        handle = tag("circle", **disc | {"fill": _BLUE, "fill_opacity": 0.12}) + tag(
            "path", d="M-6 0h12M0 -6v12", **_RING
        )
        place = f"translate({art.Z(s['start'][0]):.2f} {art.V(s['start'][1]):.2f})"
        marks.append(tag("g", handle, transform=place, style="cursor: move", data_handle=""))
        label = (
            "Position and velocity of 200 particles over lines of equal energy, with an ellipse of two standard "
            "deviations for the particles and one for the law that they settle in"
        )
        words = {
            "200 particles": _BLUE,
            "one of them": _GREEN,
            "long run, 2 sd": _ORANGE,
            "dashes: the 200, 2 sd": "transparent",
            "thin lines: equal energy": "transparent",
        }
        key = [tag("span", word, style=f"--gx-swatch: {colour}") for word, colour in words.items()]
        axes = (tag("g", *marks, data_z="", **art.Z.data()), tag("g", data_v="", **art.V.data()))
        return draw.svg(art.WIDE, 356, label, *axes) + tag("div", *key, class_="gx-key")

    def _areas(self, v: dict[str, Any]) -> str:
        lines = [[n * math.log(each) for n in range(STEPS + 1)] for each in (self.how["a"], v["factor"])]
        marks = [
            *art.scaffold(art.AREA, {-10: "−10", -5: "−5", 0: "0", 5: "5"}),
            art.curve_path("contraction", lines[0], art.AREA, stroke_dasharray="5 4"),
            art.curve_path("silent", lines[1], art.AREA, stroke=_ORANGE, stroke_width=4, stroke_opacity=0.7),
            art.curve_path("area", v["area"], art.AREA, stroke=_BLUE, stroke_width=2),
        ]
        words = ("Log area of the cloud (per oscillator)", "blue: cloud; orange: no noise; dashes: n ln(1 − γ)")
        return self._panel(words, "Logarithm of the area that the cloud fills, by bins", "area", art.AREA, marks, v)

    def _places(self, v: dict[str, Any]) -> str:
        marks = [
            *art.scaffold(art.PLACE, {-3: "−3", 0: "0", 3: "3"}),
            art.curve_path("quiet", v["quiet"][0], art.PLACE, stroke_dasharray="5 4"),
            art.curve_path("partner", v["partner"], art.PLACE, stroke_opacity=0.45),
            art.curve_path("path", v["path"], art.PLACE, stroke=_GREEN, stroke_width=2),
        ]
        words = ("One particle: z over the bins", "green: z; thin: its partner; dashes: z without noise")
        return self._panel(words, "Position of a particle and its partner, by bins", "place", art.PLACE, marks, v)

    def _powers(self, v: dict[str, Any]) -> str:
        marks = art.scaffold(art.POWER, {0: "0"})
        for line, period in {2: "60", 6: "20", 12: "10", 20: "6", 30: "4 bins"}.items():
            marks.append(text(period, art.LINE(line), 125, text_anchor="end" if line == 30 else "middle"))
        for which, d in zip(("expected", "spectrum"), art.powers(v), strict=True):
            look = (
                {"stroke": _BLUE, "stroke_width": 2} if which == "spectrum" else {"stroke": _ORANGE, "stroke_width": 4}
            )
            marks.append(tag("path", d=d, fill="none", stroke_opacity=0.8, **look, data_curve=which))
        marks = [text("Spectrum of z by period", 8, 14, strong=True), *marks]
        marks.append(text("blue: of the 200; orange: of the long-run law", 8, 31))
        missing: dict[str, Any] = {"text_anchor": "middle", "visibility": _seen(v["spectrum"] == "none")}
        marks.append(text("none: z rests, or the run ends early", art.LINE.start + 150, 80, **missing, data_void=""))
        axes = (tag("g", *marks, data_power="", **art.POWER.data()), tag("g", data_line="", **art.LINE.data()))
        return draw.svg(art.WIDE, 131, "Spectrum of the position, of the particles and of the stationary law", *axes)

    def _raster(self, v: dict[str, Any]) -> str:
        past, later = art.ticks(v["counts"], self.state["step"])
        look: dict[str, Any] = {"stroke": "currentColor", "stroke_width": 1.6}
        marks = [tag("path", d=past, **look, data_spikes="past")]
        marks.append(tag("path", d=later, **look, stroke_opacity=0.25, data_spikes="later"))
        marks.append(text("1", art.LEFT - 8, 33, text_anchor="end"))
        marks.append(text("12", art.LEFT - 8, art.RASTER.stop, text_anchor="end"))
        words = ("Spikes of 12 neurons that hear (z, v)", "")
        return self._panel(words, "Spikes of twelve neurons, bin by bin", "raster", art.RASTER, marks, v)

    def _panel(
        self, words: tuple[str, str], label: str, name: str, axis: draw.Axis, marks: list[str], v: dict[str, Any]
    ) -> str:
        """A panel over the bins: its words, what is drawn, and the bin that is shown."""
        low, high = max(axis.start, axis.stop), min(axis.start, axis.stop)
        x = art.TIME(min(self.state["step"], v["ended"]))
        shown = [text(words[0], 8, 14, strong=True), text(words[1], 8, 31), *marks]
        shown.append(rule(x, low, x, high, faint=False, stroke_width=1.5, data_now=""))
        for value in (0, 30, 60, 90, 120):
            word = "bin 0" if value == 0 else f"{value}"
            shown.append(text(word, art.TIME(value), low + 15, text_anchor="end" if value == STEPS else "middle"))
        inner = tag("g", *shown, **{f"data_{name}": ""}, **axis.data())
        return draw.svg(art.WIDE, low + 20, label, inner, tag("g", data_time="", **art.TIME.data()))


def _seen(there: bool) -> str:
    return "visible" if there else "hidden"


def _status(now: int, v: dict[str, Any]) -> str:
    if now == v["ended"] < STEPS:
        return f"Bin {now} is the last: the run leaves all bounds"
    return f"Bin {now}" + (f": {v['outside']} of {POINTS} beyond the edge" if v["outside"] else "")


def _short(value: float | str) -> str:
    return value if isinstance(value, str) else f"{float(f'{value:.3g}'):.10g}".replace("-", "−")


def _list(values: Sequence[float | str] | str) -> str:
    """Numbers side by side; once where all are the same."""
    return values if isinstance(values, str) else "; ".join(dict.fromkeys(map(_short, values[:2])))


def _turns(v: dict[str, Any]) -> str:
    verdict = "yes" if v["turns"] else "no" if v["angle"] <= v["bound"] else "no, it flips"
    return f"{verdict}: {_short(v['angle'])} {'>' if v['angle'] > v['bound'] else '<'} {_short(v['bound'])}"
