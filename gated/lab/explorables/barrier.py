"""A safety barrier as a gate: what it leaves of one agent's wish, two agents at a door, brakes that do not do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from gated.lab.explorables import barrier_marks as art
from gated.lab.explorables import barrier_scene as play
from gated.lab.explorables import drawing as draw
from gated.lab.explorables.barrier_scene import JAM, SIGMAS, STEPS
from gated.lab.explorables.drawing import fixed, formula, frac, row, sup, tag
from gated.lab.explorables.explorable import Explorable
from gated.online_cbf.filter import SafetyFilter

VIEWS = {"barrier": "one barrier", "doorway": "the doorway", "braking": "braking"}
MODES = {"share": "share: κ = ½", "full": "full: κ = 1"}
OBJECTIVES = {"nominal": "nearest to the wish", "clf": "progress at a price"}
RANGES = {
    "zeta": (0.2, 20), "zeta_o": (0.2, 20), "speed": (0, 1), "zeta_1": (0.5, 20), "zeta_2": (0.5, 20),
    "alpha": (0.5, 6), "v0": (0.3, 2), "brake": (0.3, 2),
}  # fmt: skip
FINE = 10_000
"""Recorded places are kept to 1 / FINE."""

_LIMIT = formula("n · u ≥ −", frac("κ α ( h )", "2 d"), ",  α ( h ) = min (", row("ζ", sup("h", "η")), ", h / Δt )")
_PEAK = frac("ζ v_0", "e")
NOTE = "Agent 1 starts δ ahead of the mirror image of agent 2. To the posts ζ is 10."
RED = ("infeasible", "beyond", "hit")
WORDS = {
    "open": ("The gate is open", _LIMIT,
        "The wish approaches both discs more slowly than allowed. The filter passes it on unchanged. Here n points "
        "from the other disc to the agent, d is the distance of the centres, h = d² − D² and D the sum of the radii."),
    "line": ("One row holds", _LIMIT,
        "Towards one disc the wish is faster than the curve allows. There the gate has closed, and the approach is cut "
        "to the limit. What goes along the line stays free."),
    "corner": ("Two rows hold", formula("n_1 · u = b_1", "<mspace width='1.2em'></mspace>", "n_2 · u = b_2"),
        "Both discs limit the approach. Two lines meet in one point and leave no choice."),
    "infeasible": ("Infeasible: no control fulfils all rows", formula("n · ( u − v_j ) ≥ −", frac("α ( h )", "2 d")),
        "With κ = 1 the row counts the velocity vⱼ of the neighbour. The agent has to make way, and obstacle and top "
        "speed do not let it. The polygon is empty, and the agent stands still. With κ = ½ this cannot happen: u = 0 "
        "fulfils every row."),
    "order": ("Unequal gates order the traffic", formula("ζ_1 ≠ ζ_2"),
        "One gate holds farther away from the other agent and waits. The other one passes until later, and goes first. "
        "As a rule that is the agent with the larger ζ. A large head start can overrule it."),
    "even": ("Equal gates, and the head start decides", formula("ζ_1 = ζ_2 , δ > 0"),
        "Only the head start δ tells the agents apart, and here it is enough. With a smaller one these gates jam."),
    "jam": ("Equal gates deadlock", formula("ζ_1 = ζ_2"),
        "Each agent sees the mirror image of what the other one sees, or nearly, does the same, and neither gets "
        "through. Nobody is hurt, nobody arrives. Move one of the two sliders."),
    "wedge": ("Neither gives way in time", formula("ζ_1 ≠ ζ_2"),
        "The strengths differ, and still both are stuck, and safe. Either both gates close so late that the agents "
        "stand in the door side by side. Or the head start of one makes up for the larger ζ of the other."),
    "slow": ("Safe, and too slow", formula("− n · u ≤ κ ζ", frac(row(sup("d", "2"), "−", sup("D", "2")), "2 d")),
        "A small ζ is a gate that closes far away. Somebody creeps, and the 200 steps of the deadline are over."),
    "run": ("A recorded run", formula("ζ_1 ( t ) , ζ_2 ( t )"),
        "These places were recorded, and the strengths may have changed at every step. The sliders of ζ and δ do "
        "nothing here. Scrub through time, and compare with two constants."),
    "brakes": ("The brakes suffice", formula(_PEAK, "≤ u_max"),
        "The filter lets through what keeps ẍ + 2ζẋ + ζ²x ≥ 0 for the gap x. A small ζ brakes early and gently: safe, "
        "and slow. A large ζ brakes late and hard."),
    "beyond": ("Infeasible: more than the brakes give", formula("ζ > e", frac("u_max", "v_0")),
        "The filter let the approach go on for so long that it now demands more than uₘₐₓ. This time full braking is "
        "enough. But the barrier no longer promises it."),
    "hit": ("Infeasible, and the wall is hit", formula("ζ > e", frac("u_max", "v_0")),
        "When the filter began to brake it was too late for these brakes. A barrier is only as safe as its problem is "
        "solvable. A smaller ζ would have begun earlier."),
}  # fmt: skip


class BarrierExplorable(Explorable):
    """Three views of a barrier: one agent's rows, two agents at a door, and a demand that the brakes cannot meet.

    Args:
        view: a key of `VIEWS`.
        agent, neighbour, goal, obstacle: places of the first view, |x| <= 1.45 and |y| <= 0.95; discs do not overlap.
        zeta, zeta_o: strengths to the neighbour and to the obstacle, 0.2 to 20. eta: 1 or 3.
        mode, objective: of `gated.online_cbf.SafetyFilter`. speed: at which the neighbour comes, read in mode "full".
        zeta_1, zeta_2: strengths of the agents at the door, 0.5 to 20. sigma: agent 1's head start δ, one of `SIGMAS`.
        time: steps shown, 0 to 200.
        run: a name of `runs` to show, or "" for the two constants.
        runs: recorded places [times, 2, 2] in `gated.online_cbf.doorway(1)`, at most 201 times, by name.
        alpha, v0, brake: strength ζ of the filter that brakes, speed of the approach, and what the brakes give.

    Raises:
        ValueError: a value out of its range.
    """

    name = "barrier"

    def __init__(
        self,
        view: str = "barrier",
        *,
        agent: Sequence[float | int] = (-0.7, 0.1),
        neighbour: Sequence[float | int] = (0.05, 0.4),
        goal: Sequence[float | int] = (1.2, -0.05),
        obstacle: Sequence[float | int] = (0.1, -0.5),
        zeta: float | int = 2.0,
        zeta_o: float | int = 2.0,
        eta: int = 1,
        mode: str = "share",
        objective: str = "nominal",
        speed: float | int = 0.5,
        zeta_1: float | int = 3.16,
        zeta_2: float | int = 3.16,
        sigma: float | int = 0.0,
        time: int = 60,
        run: str = "",
        runs: Mapping[str, Tensor] | None = None,
        alpha: float | int = 3.0,
        v0: float | int = 1.0,
        brake: float | int = 1.0,
    ) -> None:
        numbers = dict(zip(RANGES, (zeta, zeta_o, speed, zeta_1, zeta_2, alpha, v0, brake), strict=True))
        for name, number in (numbers | {"time": time}).items():
            low, high = (RANGES | {"time": (0, STEPS)})[name]
            if not low <= number <= high:
                raise ValueError(f"{name} must be in {low:g} to {high:g}, got {number}")
        places = {"agent": agent, "neighbour": neighbour, "goal": goal, "obstacle": obstacle}
        _check_places(places)
        kept = {name: _record(name, path) for name, path in (runs or {}).items()}
        words = {"view": (view, VIEWS), "mode": (mode, MODES), "objective": (objective, OBJECTIVES)}
        for name, (word, known) in (words | {"run": (run, ["", *kept])}).items():
            if word not in known:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {word!r}")
        for name, number, choices in (("eta", eta, (1, 3)), ("sigma", sigma, SIGMAS)):
            if number not in choices:
                raise ValueError(f"{name} must be one of {choices}, got {number}")
        state: dict[str, Any] = {"view": view} | {key: [float(x) for x in at] for key, at in places.items()}
        state |= {key: float(number) for key, number in numbers.items()}
        state |= {
            "eta": int(eta),
            "mode": mode,
            "objective": objective,
            "sigma": float(sigma),
            "time": int(time),
            "run": run,
        }
        rule, a = SafetyFilter(), play.door(0.0)
        constants = {
            "words": {key: list(value) for key, value in WORDS.items()}, "sigmas": list(SIGMAS), "zetas": play.ZETAS,
            "maps": play.maps()[0], "collisions": play.maps()[1], "runs": kept,
            "names": {"view": VIEWS, "mode": MODES, "objective": OBJECTIVES},
            "rule": {key: float(getattr(rule, key)) for key in ("dt", "epsilon", "xi", "gain", "tolerance")},
            "door": {"start": a.start[0].tolist(), "goal": a.goal[0].tolist(), "posts": a.obstacle[0].tolist()},
        }  # fmt: skip
        super().__init__(state, constants)

    def values(self) -> dict[str, Any]:
        """Of the view that is shown."""
        return {"view": self.state["view"], **getattr(self, f"_{self.state['view']}")()}

    def _barrier(self) -> dict[str, Any]:
        return play.choice(self.state)

    def _doorway(self) -> dict[str, Any]:
        s = self.state
        if s["run"]:
            path = torch.tensor(self.constants["runs"][s["run"]], dtype=torch.float64).view(-1, 2, 2) / FINE
            v = play.passage(path, play.door(0.0), None)
        else:
            run = play.drive(s["zeta_1"], s["zeta_2"], s["sigma"])
            v = play.passage(run.position[:, 0], run.arena, (s["zeta_1"], s["zeta_2"]))
        return {**v, "places": v["path"][min(s["time"], len(v["path"]) - 1)]}

    def _braking(self) -> dict[str, Any]:
        return play.braking(*(self.state[key] for key in ("alpha", "v0", "brake")))

    def __repr__(self) -> str:
        s, v = self.state, self.values()
        if s["view"] == "barrier":
            words = f"wish {_list(v['wish'])}, control {_list(v['u'])}"
        elif s["view"] == "doorway":
            words = s["run"] or "zeta {zeta_1:g} and {zeta_2:g}, head start {sigma:g}".format(**s)
            words += f": {_outcome(v)}"
        else:
            words = f"zeta {s['alpha']:g}: at most {v['peak']:.2f} demanded, {s['brake']:.2f} given"
        return f"BarrierExplorable: {WORDS[v['kind']][0]}\n  {words}"

    def markup(self) -> str:
        s, view = self.state, self.state["view"]
        near, door, stop = self._barrier(), self._doorway(), self._braking()
        goals, gap = self.constants["door"]["goal"], 2 * (self.constants["door"]["posts"][0][1] - 1)
        which = SIGMAS.index(s["sigma"])
        steps = self.constants["maps"][which]
        left = {
            "barrier": art.scene(s, near),
            "doorway": art.doorway(s, door, goals, gap)
            + art.clearance(s, door)
            + _key({"gap of the two": art.GREEN, "1 to a post": art.BLUE, "2 to a post": art.ORANGE}),
            "braking": art.demand(s, stop) + art.room(stop) + _key({"dashes: brakes without a limit": "transparent"}),
        }
        right = {
            "barrier": art.controls(near) + _key({"neighbour": art.ORANGE, "obstacle": art.GREY, "u*": art.GREEN,
                                                  "ring: without rows": "transparent"}) + art.speeds(near)
            + _key({"ring: allowed": "transparent", "dot: used": "transparent"}),
            "doorway": art.chart(s, steps) + _key({"fast": art.BLUE, "fainter: slower": "#0072b255", "jam": art.RED,
                                                   "too slow": art.GREY}) + tag("div", NOTE, style="font-size: 12.5px"),
            "braking": art.peaks(s, stop),
        }  # fmt: skip
        numbers = {
            "barrier": draw.readings({
                "wish": ("Without rows", _list(near["wish"])), "control": ("Control u*", _list(near["u"])),
                "neighbour": ("To the neighbour: speed, allowed", _pair(near, 0)),
                "obstacle": ("To the obstacle: speed, allowed", _pair(near, 1)),
                "verdict": ("Problem", "infeasible" if near["kind"] == "infeasible" else "feasible"),
            }),
            "doorway": draw.readings({
                "outcome": ("Outcome, steps", _outcome(door)), "first": ("First through the door", _first(door)),
                "arrival": ("Steps of agents 1, 2", _arrival(door)),
                "least": ("Smallest gap (0: just touching)", _gap(door["least"])),
                "collisions": ("Collisions in all of the map", str(self.constants["collisions"][which])),
            }),
            "braking": draw.readings({
                "peak": ("Peak demand ζ v₀ / e", fixed(stop["peak"], 3)),
                "brake": ("The brakes give uₘₐₓ", fixed(s["brake"], 2)),
                "threshold": ("Feasible up to ζ = e uₘₐₓ / v₀", fixed(stop["threshold"], 2)),
                "start": ("Braking begins at gap 2 v₀ / ζ", fixed(stop["start"], 2)), "end": ("In the end", _end(stop)),
            }),
        }  # fmt: skip
        order = sorted(VIEWS, key=lambda one: one != view)  # what is shown comes first
        kind = {"barrier": near, "doorway": door, "braking": stop}[view]["kind"]
        parts = [
            [
                tag(
                    "div",
                    content[one],
                    class_=css,
                    data_view=one,
                    style=f"display: {'block' if one == view else 'none'}",
                )
                for one in order
            ]
            for content, css in ((left, "gx-figure"), (right, "gx-figure"), (numbers, "gx-readings"))
        ]
        main = tag("div", *parts[0], tag("div", class_="gx-controls", style="margin-top: .8rem"))
        note = draw.callout(*WORDS[kind])
        if kind in RED:
            note = note.replace('class="gx-note"', 'class="gx-note" style="border-color: var(--gx-red)"')
        tabs = tag("div", data_tabs="", style="margin-bottom: .7rem")
        return tabs + draw.columns(main, *parts[1], note, *parts[2])


def _check_places(places: dict[str, Sequence[float | int]]) -> None:
    for name, at in places.items():
        if len(at) != 2 or not (abs(at[0]) <= play.WIDE and abs(at[1]) <= play.HIGH):
            raise ValueError(f"{name} must be two numbers, |x| <= {play.WIDE} and |y| <= {play.HIGH}, got {at!r}")
    for one, other in combinations(places, 2):
        least = play.reach(one, other)
        if least and math.dist(places[one], places[other]) < least + play.TOUCH:
            raise ValueError(
                f"{one} must be farther than {least:g} from the {other}, got {places[one]} and {places[other]}"
            )


def _record(name: str, path: Tensor) -> list[int]:
    if path.ndim != 3 or path.shape[1:] != (2, 2) or not 2 <= len(path) <= STEPS + 1:
        raise ValueError(f"runs must have shape [2 to {STEPS + 1}, 2, 2], got {list(path.shape)} for {name!r}")
    if len(name) < 4 or not path.isfinite().all():
        raise ValueError(f"runs must have names of 4 letters or more and be finite, got {name!r}")
    return (path.detach().double() * FINE).round().long().flatten().tolist()


def _key(colours: dict[str, str]) -> str:
    return tag("div", *(tag("span", word, style=f"--gx-swatch: {c}") for word, c in colours.items()), class_="gx-key")


def _list(numbers: Sequence[float | int]) -> str:
    return "; ".join(_fixed(x) for x in numbers)


def _fixed(x: float | int) -> str:
    return fixed(x, 2).replace("-0.00", "0.00").replace("-", "−")


def _pair(v: dict[str, Any], i: int) -> str:
    return _list([v["closing"][i], v["allowed"][i]])


def _outcome(v: dict[str, Any]) -> str:
    steps = v["steps"]
    return f"through in {steps}" if steps >= 0 else "jam" if steps == JAM else "too slow"


def _first(v: dict[str, Any]) -> str:
    return f"agent {v['first']}" if v["first"] else "nobody"


def _arrival(v: dict[str, Any]) -> str:
    return ", ".join(str(one) if one >= 0 else "never" for one in v["arrival"])


def _gap(gap: float | int) -> str:
    return fixed(gap, 3).replace("-0.000", "0.000").replace("-", "−")


def _end(v: dict[str, Any]) -> str:
    return f"hits the wall at {fixed(v['hit'], 2)}" if v["kind"] == "hit" else "stops before the wall"
