"""Points in a plane, an anchor for each expert, and a gate between them: who goes where, and who is left over?"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from typing import Any

import torch
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor

from gated.gates import (
    biased_sigmoid_gate,
    coefficient_of_variation,
    cosine_logits,
    dense_to_sparse_gate,
    expert_choice_gate,
    gaussian_logits,
    laplace_logits,
    soft_moe_gate,
    softmax_gate,
    softmax_topk_gate,
    student_t_logits,
    switch_loss,
    top_p_gate,
    topk_gate,
    z_loss,
)
from gated.lab.explorables.drawing import (
    Axis,
    callout,
    columns,
    fixed,
    formula,
    frac,
    readings,
    row,
    rule,
    sup,
    svg,
    tag,
    text,
    total,
)
from gated.lab.explorables.explorable import Explorable

N, GRID, SPAN, UNIT = 6, 28, 1.25, 0.03
"""Experts, cells of the decision map a side, half the plane's width, unit of the tables of bytes."""
LEVELS = (0.4, 0.7)
SIZES = (40, 28, 18, 10)
"""Points in each of four clusters, on purpose unequal."""
CENTRES = ((-0.6, 0.55), (0.65, 0.5), (0.55, -0.65), (-0.7, -0.6))
SCORES = ("linear", "cosine", "Gaussian", "Student-t", "Laplace")
SELECTIONS = ("top-k", "Switch", "top-p", "dense to sparse", "expert choice", "Soft MoE", "sigmoid + bias")
PRIORITIES = ("first come", "largest weight first")
ANCHORS = (-0.62, 0.71, 0.13, 0.83, 0.77, 0.34, 0.48, -0.71, -0.33, -0.57, -0.86, -0.12)
_GATHERED = (-0.68, 0.6, -0.5, 0.45, 0.65, 0.52, 0.72, 0.44, 0.55, -0.65, -0.7, -0.6)
_COLOURS = ("var(--gx-blue)", "var(--gx-orange)", "var(--gx-green)", "#9a4dff", "#d6418f", "var(--gx-grey)")
_LEFT, _TOP, _SIDE = 4, 24, 448
_ROWS, _ROW = _TOP + _SIDE + 46, 20
_LOAD = Axis(0, 96, 22, 346)
_NAME = "fill: #fff; pointer-events: none; paint-order: stroke; stroke: #0009; stroke-width: 2.5px"


def _said(words: str) -> str:
    return f"<mtext>{words}&nbsp;</mtext>"


_EXP = (sup("e", "l_i"), row(total("j ∈ S"), sup("e", "l_j")))
WORDS: dict[str, tuple[str, str, str]] = {
    "top-k": (
        "Each point takes its k best experts",
        formula("w_i =", frac(*_EXP), ", S =", _said("the k largest"), "l"),
        "Weights sum to one. With k = 1 every weight is exactly one, and the gate gets no gradient from the task. "
        "With noise, a point at a border goes to either side by chance: its chances are the probit gate's.",
    ),
    "Switch": (
        "Softmax first, then the k best",
        formula("w_i = p_i , i ∈ S"),
        "The weight keeps what the others took of the softmax, so even a single expert's weight can be learned.",
    ),
    "top-p": (
        "As many experts as it takes",
        formula(total("i ∈ S"), "p_i > P"),
        "A point near one anchor is content with one expert. Between the anchors it takes several.",
    ),
    "dense to sparse": (
        "All experts first, few in the end",
        formula("w_i = p_i ,", _said("where"), "p_i > P"),
        "Lower the temperature slowly: at first most experts run for each point, in the end one. "
        "How many is decided point by point, and the best one always stays.",
    ),
    "expert choice": (
        "Each expert takes its best points",
        formula("S_i =", _said("the C points of largest"), "p_i"),
        "Loads are equal by construction. The price: some points are taken by several experts, others by none.",
    ),
    "Soft MoE": (
        "Nobody chooses: everything is averaged",
        formula("w_i =", frac(*_EXP), ", S =", _said("all experts")),
        "An expert works on C mixtures of all points, and a point takes a mixture of all results. Here an expert's "
        "mixtures share its anchor, so a point's weights are the softmax. Nothing is dropped, and nobody specialises "
        "sharply unless the temperature is low.",
    ),
    "sigmoid + bias": (
        "A bias that selects, but never weighs",
        formula("S =", _said("the k largest"), "s + b , w_i =", frac("s_i", row(total("j ∈ S"), "s_j"))),
        "After each step the bias of an expert with too much work falls, and of one with too little it rises. "
        "Press the button and watch the loads get even, and the agreement with the clusters fall. "
        "With a large step γ the loads jump back and forth.",
    ),
}


def _bytes(table: Tensor) -> str:
    return base64.b64encode((table / UNIT).round().clamp(-127, 127).to(torch.int8).numpy().tobytes()).decode()


def _table(text: str, width: int) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.int8).view(-1, width).double() * UNIT


class RouterExplorable(Explorable):
    """Drag the experts' anchors; choose score, selection, temperature, noise, capacity; see map, loads, drops, losses.

    Args:
        anchors: x and y of six anchors, flat, each in [-1.25, 1.25].
        score: how a point and an anchor make a logit, one of `SCORES`. The temperature is the variance for
            "Gaussian" and the squared scale for "Student-t" (two degrees of freedom).
        selection: how logits make weights, one of `SELECTIONS`.
        top_k: experts a point, 1 to 4 (where the selection has a k); also the budget behind the capacity.
        temperature: 0.05 to 5.
        noise: standard deviation of the normal noise on the logits, 0 to 2; the map is drawn without it.
        threshold: P, which the sum of weights exceeds in "top-p", and each weight in "dense to sparse"; 0.05 to 0.95.
        capacity: factor on the even share k T / N that an expert may serve, 0.25 to 3.
        priority: who is served first where the capacity binds, one of `PRIORITIES`.
        rate: step of the bias, 0.001 to 0.05.
        bias: six numbers, for "sigmoid + bias".
        picked: the anchor that has the focus.
        seed: draws the points and their noise.

    Raises:
        ValueError: a value out of its range.
    """

    name = "router"

    def __init__(
        self,
        anchors: Sequence[float | int] = ANCHORS,
        score: str = "linear",
        selection: str = "top-k",
        top_k: int = 1,
        temperature: float | int = 0.5,
        noise: float | int = 0.0,
        threshold: float | int = 0.5,
        capacity: float | int = 1.25,
        priority: str = "first come",
        rate: float | int = 0.005,
        bias: Sequence[float | int] = (0.0,) * N,
        picked: int = 0,
        seed: int = 0,
    ) -> None:
        if len(anchors) != 2 * N or not all(-SPAN <= x <= SPAN for x in anchors):
            raise ValueError(f"anchors must be {2 * N} numbers in [-{SPAN}, {SPAN}], got {list(anchors)}")
        if len(bias) != N:
            raise ValueError(f"bias must be {N} numbers, got {list(bias)}")
        for name, value, allowed in (
            ("score", score, SCORES),
            ("selection", selection, SELECTIONS),
            ("priority", priority, PRIORITIES),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        for name, number, low, high in (
            ("top_k", top_k, 1, 4),
            ("temperature", temperature, 0.05, 5),
            ("noise", noise, 0, 2),
            ("threshold", threshold, 0.05, 0.95),
            ("capacity", capacity, 0.25, 3),
            ("rate", rate, 0.001, 0.05),
            ("picked", picked, 0, N - 1),
        ):
            if not low <= number <= high:
                raise ValueError(f"{name} must be in {low} to {high}, got {number}")
        state = {
            "anchors": [float(x) for x in anchors],
            "score": score,
            "selection": selection,
            "top_k": int(top_k),
            "temperature": float(temperature),
            "noise": float(noise),
            "threshold": float(threshold),
            "capacity": float(capacity),
            "priority": priority,
            "rate": float(rate),
            "bias": [float(x) for x in bias],
            "picked": int(picked),
        }
        generator = torch.Generator().manual_seed(seed)
        spread = 0.19 * torch.randn(sum(SIZES), 2, generator=generator, dtype=torch.float64)
        clusters = [i for i, size in enumerate(SIZES) for _ in range(size)]
        order = torch.randperm(len(clusters), generator=generator).tolist()
        clusters = [clusters[i] for i in order]
        points = torch.tensor(CENTRES, dtype=torch.float64)[clusters] + spread
        draws = torch.randn(len(clusters), N, generator=generator, dtype=torch.float64)
        constants = {
            "points": _bytes(points),
            "draws": _bytes(draws),
            "unit": UNIT,
            "clusters": clusters,
            "centres": list(_GATHERED),
            "colours": list(_COLOURS),
            "applies": {"threshold": ["top-p", "dense to sparse"], "rate": ["sigmoid + bias"]},
            "words": {key: list(value) for key, value in WORDS.items()},
        }
        super().__init__(state, constants)

    @property
    def points(self) -> Tensor:
        """x and y of all points [96, 2], rounded as they travel into the page."""
        return _table(self.constants["points"], 2)

    def _logits(self, x: Tensor) -> Tensor:
        s = self.state
        anchors, tau = torch.tensor(s["anchors"], dtype=torch.float64).view(N, 2), s["temperature"]
        if s["score"] == "linear":
            return x @ anchors.T / tau
        if s["score"] == "cosine":
            return cosine_logits(x, anchors, 1 / tau)
        if s["score"] == "Laplace":
            return laplace_logits(x, anchors, tau)
        deviation = torch.full((N,), tau**0.5, dtype=torch.float64)
        if s["score"] == "Student-t":
            return student_t_logits(x, anchors, deviation, 2.0)
        return gaussian_logits(x, anchors, deviation)

    def _weights(self, logits: Tensor) -> Tensor:
        s = self.state
        k = s["top_k"]
        if s["selection"] == "top-k":
            return topk_gate(logits, k)
        if s["selection"] == "Switch":
            return softmax_topk_gate(logits, k)
        if s["selection"] == "top-p":
            return top_p_gate(logits, s["threshold"])
        if s["selection"] == "dense to sparse":
            return dense_to_sparse_gate(logits, s["threshold"], generator=None)
        if s["selection"] == "Soft MoE":  # an expert's slots are alike, so one of them stands for all
            return soft_moe_gate(logits)[1]
        return biased_sigmoid_gate(logits, torch.tensor(s["bias"], dtype=torch.float64), k)

    def values(self) -> dict[str, Any]:
        s = self.state
        points, draws = self.points, _table(self.constants["draws"], N)
        T = len(points)
        limit = math.ceil(s["capacity"] * s["top_k"] * T / N)
        logits = self._logits(points) + s["noise"] * draws
        p = softmax_gate(logits)
        centres = (2 * torch.arange(GRID, dtype=torch.float64) + 1) / GRID - 1
        cells = torch.cartesian_prod(-SPAN * centres, SPAN * centres).flip(1)
        if s["selection"] == "expert choice":
            weights = expert_choice_gate(logits, min(limit, T))
            threshold = torch.where(weights > 0, p, torch.inf).amin(0)
            field = softmax_gate(self._logits(cells))
            field = torch.where(field >= threshold, field, 0.0)
        else:
            weights, field = self._weights(logits), self._weights(self._logits(cells))
        value, best = field.max(-1)
        level = 3 * best + (value >= LEVELS[0]).long() + (value >= LEVELS[1]).long()

        slots = s["selection"] == "Soft MoE"
        pairs = weights.nonzero().tolist()
        if s["priority"] == PRIORITIES[1]:
            largest = weights.amax(-1).tolist()
            pairs.sort(key=lambda pair: (-largest[pair[0]], *pair))
        kept, served = [0] * N, torch.zeros_like(weights)
        for t, i in pairs:
            if slots or kept[i] < limit:
                kept[i] += 1
                served[t, i] = weights[t, i]
        top = torch.where(served.amax(-1) > 0, served.argmax(-1), -1)
        asked = (weights > 0).sum(0)
        selected = weights > 0
        if slots:  # an expert's load is its slots, whatever the points
            asked, kept, selected = torch.full_like(asked, limit), [limit] * N, torch.ones_like(selected)
        known = top >= 0
        truth = torch.tensor(self.constants["clusters"])[known]
        return {
            "top": top.tolist(),
            "asked": asked.tolist(),
            "kept": kept,
            "cells": torch.where(value > 0, level, -1).tolist(),
            "limit": limit,
            "dropped": int(asked.sum()) - sum(kept),
            "unserved": T - int(known.sum()),
            "imbalance": coefficient_of_variation(asked.double()).item(),
            "switch_loss": switch_loss(p, selected).item(),
            "z_loss": z_loss(logits).item(),
            "active": sum(kept) / T,
            "agreement": float(normalized_mutual_info_score(truth, top[known])) if len(truth) else 0.0,
            "kind": s["selection"],
        }

    def __repr__(self) -> str:
        s, v = self.state, self.values()
        return (
            f"RouterExplorable: {s['score']} scores, {s['selection']}, k {s['top_k']}, "
            f"temperature {s['temperature']:g}, {len(v['top'])} points, {N} experts of capacity {v['limit']}\n"
            f"  loads {', '.join(map(str, v['asked']))} (CoV {v['imbalance']:.2f}), {v['dropped']} dropped, "
            f"{v['unserved']} points without an expert\n"
            f"  Switch loss {v['switch_loss']:.3f}, z loss {v['z_loss']:.3f}, "
            f"agreement with the clusters {v['agreement']:.3f}"
        )

    def markup(self) -> str:
        v = self.values()
        title, equation, words = WORDS[v["kind"]]
        numbers = {
            "agreement": ("Agreement with the clusters (NMI)", fixed(v["agreement"], 2)),
            "imbalance": ("Imbalance of the loads (CoV)", fixed(v["imbalance"], 2)),
            "dropped": ("Choices dropped (points unserved)", f"{v['dropped']} ({v['unserved']})"),
            "active": (
                "Experts a point (of all FLOPs)",
                f"{fixed(v['active'], 2)} ({fixed(100 * v['active'] / N, 0)} %)",
            ),
            "switch": ("Switch loss", fixed(v["switch_loss"], 2)),
            "z": ("z loss", fixed(v["z_loss"], 2)),
        }
        hint = "Drag an anchor, or move it by the arrow keys; Page Up and Page Down go to another."
        hint = tag("div", hint, style="font-size: 12.5px; margin-top: .4rem")
        left = tag("div", self._picture(v), hint, class_="gx-figure")
        return columns(left, callout(title, equation, words), tag("div", class_="gx-controls"), readings(numbers))

    def _picture(self, v: dict[str, Any]) -> str:
        s, cell = self.state, _SIDE // GRID

        def place(x: float, y: float) -> tuple[float, float]:
            return _LEFT + _SIDE * (x / SPAN + 1) / 2, _TOP + _SIDE * (1 - y / SPAN) / 2

        paths = [""] * (3 * N)
        for at, kind in enumerate(v["cells"]):
            if kind >= 0:
                paths[kind] += f"M{_LEFT + cell * (at % GRID)} {_TOP + cell * (at // GRID)}h{cell}v{cell}h-{cell}z"
        marks = [text("Points, and the expert that each gets first", _LEFT, 14, strong=True)]
        for kind, path in enumerate(paths):
            fill, shade = _COLOURS[kind // 3], (0.12, 0.24, 0.4)[kind % 3]
            marks.append(tag("path", d=path or "M0 0", fill=fill, fill_opacity=shade, data_tile=kind))
        for t, (x, y) in enumerate(self.points.tolist()):
            px, py = place(x, y)
            top = v["top"][t]
            fill, opacity = _COLOURS[max(0, top)], 0.0 if top < 0 else 1.0
            marks.append(tag("circle", cx=px, cy=py, r=4, fill=fill, fill_opacity=opacity, data_dot=t))
            cross = f"M{px - 3.5:.1f} {py - 3.5:.1f}l7 7m0 -7l-7 7"
            seen = "hidden" if top >= 0 else "visible"
            marks.append(tag("path", d=cross, stroke="currentColor", stroke_width=1.5, visibility=seen, data_cross=t))
        for i in range(N):
            x, y = place(*s["anchors"][2 * i : 2 * i + 2])
            name: dict[str, object] = {"text_anchor": "middle", "font_size": 13, "font_weight": 600, "fill": "#fff"}
            marks.append(
                tag(
                    "g",
                    tag("circle", r=13, fill=_COLOURS[i], stroke="currentColor", stroke_width=1.5),
                    tag("text", str(i + 1), y=4.5, style=_NAME, **name),
                    transform=f"translate({x:.2f} {y:.2f})",
                    data_handle=i,
                    style="cursor: move",
                )
            )
        bars = [text("Load: choices that fall on each expert", _LEFT, _ROWS - 24, strong=True)]
        bars.append(text("dashed: capacity C; pale: beyond it, dropped", _LEFT, _ROWS - 9, small=True))
        for i in range(N):
            y = float(_ROWS + _ROW * i)
            bars.append(text(f"{i + 1}", _LEFT, y + 12))
            for kind, shade in (("asked", 0.35), ("kept", 1.0)):
                look: dict[str, object] = {"fill": _COLOURS[i], "fill_opacity": shade, f"data_{kind}": i}
                width = _LOAD(v[kind][i]) - _LOAD.start
                bars.append(tag("rect", x=float(_LOAD.start), y=y, width=width, height=15, **look))
            label = f"{v['asked'][i]}"
            if s["selection"] == "sigmoid + bias":
                label += f", b = {fixed(s['bias'][i], 3)}".replace("-", "−")
            bars.append(text(label, _LOAD.stop + 8, y + 12, data_label=i))
        bottom = _ROWS + _ROW * N
        edge = _LOAD(v["limit"])
        bars.append(rule(edge, _ROWS - 4, edge, bottom, faint=False, stroke_dasharray="4 3", data_limit=""))
        bars.append(rule(_LOAD.start, _ROWS - 4, _LOAD.start, bottom))
        return svg(
            _SIDE + 2 * _LEFT,
            bottom + 4,
            "A plane of points with six experts' anchors, coloured by the expert that serves each place, and the loads",
            tag("g", *marks, data_plane="", data_left=_LEFT, data_top=_TOP, data_side=_SIDE),
            tag("g", *bars, data_loads="", **_LOAD.data()),
        )
