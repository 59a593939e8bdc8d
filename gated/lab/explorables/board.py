"""Who hears whom on a board with a prey: an editable graph of messages, what it costs, and what listening pays."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gated.commformer import inclusion_probability, logit_gap, sample_graph
from gated.commformer.theory import gate_optimum, listening_threshold
from gated.gates import softmax_gate, topk_mask
from gated.lab.explorables import board_marks as art
from gated.lab.explorables import board_run as play
from gated.lab.explorables import drawing as draw
from gated.lab.explorables.board_run import AGENTS, KINDS, LIMIT, SIZE
from gated.lab.explorables.drawing import fixed, formula, tag
from gated.lab.explorables.explorable import Explorable

DRAWS, FLAGS = 20, 0.25
"""Draws of noise that come with the figure; how often the lookup game asks for another's symbol."""
NAMES = {"pcp": "3 see, 3 are blind", "scout": "a scout, 4 blind"}
GRAPHS = {
    "one wrong row": (1, 0, 0, 0, 1, 4),
    "all hear a seer": (1, 0, 0, 0, 1, 2),
    "only the blind": (3, 4, 5, 4, 5, 3),
    "the scout": (1, 0, 0, 0, 0, 0),
}
"""Whom each agent hears in the examples; in those that are not here, a seer."""
EXAMPLES: dict[str, dict[str, Any]] = {"one wrong row": {}, "all hear a seer": {}, "only the blind": {}}
EXAMPLES |= {"at a price": {"penalty": 0.5}, "all hear all": {"k": AGENTS - 1}, "the scout": {"world": "scout"}}
_BLIND = formula("α_ij = 1 ,", "<mi>j</mi><mtext>&#160;blind</mtext>")
_GATE = formula("z_i = 1 ⟺", "<mtext>no prey in&#160;</mtext>", "o_i", "<mtext>&#160;and&#160;</mtext>", "w_i > λ")
WORDS = {
    "wrong": ("A wrong row blinds its agent and nobody else", _BLIND,
        "α is 1 where agent i hears agent j. A blind agent whose row holds only blind senders is told nothing, and "
        "goes through the board row by row. Its gate is worth nothing and shuts at any price. The others find the prey "
        "as early as before, but all wait for the last. Click on a seer in that row of the matrix, and see the steps."),
    "deaf": ("Edges from the blind are worth nothing", formula("w_i = 0"),
        "Every blind agent hears only the blind. Messages cross, and none tells where the prey is. The blind take the "
        "same ways as without any edge, so the worth w of their open gates is 0."),
    "open": ("All are told, and the gates stay open", formula("λ = 0"),
        "Each blind row leads to a seer. Without a price λ an open gate costs nothing, and nothing speaks for "
        "shutting it: most messages repeat what their receiver knows. Now raise λ a little."),
    "thrifty": ("Listen where your own observation says nothing", _GATE,
        "A gate z looks at its agent’s observation o and nothing else. It shuts where the prey is in view, which "
        "costs no step. It also shuts at all times where its worth w lies below λ: the seers’ first, as each of them "
        "can look for itself. The blind have to go on listening, though this script would remember."),
    "dear": ("The price shuts gates that are needed", formula("w_i ≤ λ"),
        "A blind agent’s row leads to a seer, but an open gate now costs more than w, the steps that it saves. The "
        "agent does not listen less and less. It stops."),
    "silent": ("Nobody listens any more", formula("λ ≥", "<munder><mo>max</mo><mi>i</mi></munder>", "w_i"),
        "λ is no longer below any gate’s worth w, and the run is the one without edges. So it goes in the lookup "
        "game, where the jump stands at 1 − 1/K: what another’s symbol is worth to one who has to guess among K."),
}  # fmt: skip


def preset(name: str) -> list[float]:
    """Logits of an example: noise, its largest in the row given to the sender that is wanted, and 1.5 more."""
    noise, logits = random.Random(5), list[float]()
    for i, j in enumerate(GRAPHS.get(name, GRAPHS["all hear a seer"])):
        row = noise.sample(range(-9, 10), AGENTS)
        top = max((m for m in range(AGENTS) if m != i), key=row.__getitem__)
        row[top], row[j] = row[j], row[top] + 15
        logits += [x / 10 for x in row]
    return logits


class BoardExplorable(Explorable):
    """Edit the graph of messages on a board with a prey: who is told, the steps that it takes, what listening pays.

    The agents follow the script of `gated.commformer.rivals.Sweep`: search, and go to the prey once it or somebody
    whom it hears has seen it. At a price, a gate is open in the dark: while its agent is not done and has no prey in
    view, if that is worth more than the price. Means are over a hundred boards.

    Args:
        world: "pcp", three agents with a window of 3 x 3 and three blind ones, or "scout", one that sees all and four.
        k: senders of each row, 1 to 5 (four at most for the scout's five agents).
        logits: E row by row, 6 x 6, each in -4 to 4; the diagonal plays no part.
        edge: the entry that is marked, 6 i + j for receiver i and sender j.
        penalty: lambda, the price of an open gate for one step, in steps (units of the 0.05 that a step costs), 0 to 3.
        step: the step that is shown, 0 to 20.
        temperature: of the relaxed draw, 0.1 to 10. draw: which noise, 0 to 19.
        symbols: K of the lookup game, 2 to 8.
        cells: where the agents start, six different cells (row * 5 + column). prey: another one.

    Raises:
        ValueError: a value out of its range.
    """

    name = "board"

    def __init__(
        self,
        world: str = "pcp",
        k: int = 1,
        logits: Sequence[float | int] | None = None,
        edge: int = 30,
        penalty: float | int = 0.0,
        step: int = 3,
        temperature: float | int = 1.0,
        draw: int = 0,
        symbols: int = 4,
        cells: Sequence[int] | None = None,
        prey: int | None = None,
    ) -> None:
        logits = preset("one wrong row") if logits is None else logits
        first = play.boards()[1]
        cells, prey = first[:AGENTS] if cells is None else list(cells), first[AGENTS] if prey is None else prey
        if world not in KINDS:
            raise ValueError(f"world must be one of {', '.join(KINDS)}, got {world!r}")
        if len(logits) != AGENTS**2 or not all(abs(x) <= art.STRONGEST for x in logits):
            raise ValueError(f"logits must be {AGENTS**2} numbers in -{art.STRONGEST} to {art.STRONGEST}")
        limits: dict[str, tuple[float | int, ...]] = {"k": (k, 1, AGENTS - 1), "edge": (edge, 0, AGENTS**2 - 1)}
        limits |= {"penalty": (penalty, 0, art.DEAREST), "step": (step, 0, LIMIT), "draw": (draw, 0, DRAWS - 1)}
        limits |= {"temperature": (temperature, 0.1, 10)}
        for name, (number, low, high) in (limits | {"symbols": (symbols, 2, 8)}).items():
            if not low <= number <= high:
                raise ValueError(f"{name} must be in {low} to {high}, got {number}")
        if edge % (AGENTS + 1) == 0:
            raise ValueError(f"edge must be of two agents, got {edge} on the diagonal")
        taken = [*cells, prey]
        if len(taken) != AGENTS + 1 or len({*taken} & {*range(SIZE**2)}) != AGENTS + 1:
            raise ValueError(f"cells must be {AGENTS} different ones of {SIZE**2}, without the prey's, got {taken}")
        state: dict[str, Any] = {"world": world, "k": k, "logits": [float(x) + 0.0 for x in logits], "edge": edge}
        state |= {"penalty": float(penalty), "step": step, "temperature": float(temperature), "draw": draw}
        state |= {"symbols": symbols, "cells": [int(c) for c in cells], "prey": int(prey)}
        letters = ["".join(chr(97 + cell) for cell in board) for board in play.boards()]
        examples = {
            name: {"world": "pcp", "logits": preset(name), "k": 1, "penalty": 0.0} | patch
            for name, patch in EXAMPLES.items()
        }
        words = {"words": {kind: list(told) for kind, told in WORDS.items()}, "names": NAMES}
        super().__init__(state, {"boards": letters, "noise": _noise(), "kinds": KINDS, "examples": examples, **words})

    @property
    def sizes(self) -> dict[str, int]:
        """Agents, seers and how far these see."""
        kind = KINDS[self.state["world"]]
        return {"n": kind["seers"] + kind["blind"], "seers": kind["seers"], "vision": kind["vision"]}

    @property
    def marked(self) -> tuple[int, int]:
        """Receiver and sender of the marked entry; one that the world has."""
        n, (i, j) = self.sizes["n"], divmod(self.state["edge"], AGENTS)
        return (i, j) if max(i, j) < n else (n - 1, 0)

    def edges(self) -> tuple[Tensor, int]:
        """The logits and k of the agents that there are."""
        n = self.sizes["n"]
        logits = torch.tensor(self.state["logits"], dtype=torch.float64).view(AGENTS, AGENTS)
        return logits[:n, :n], min(self.state["k"], n - 1)

    def _all(self) -> dict[str, Any]:
        s, (edges, k), (i, j) = self.state, self.edges(), self.marked
        n, seers, world, free = len(edges), self.sizes["seers"], s["world"], s["penalty"] == 0
        graph = sample_graph(edges, k, generator=None)
        worth = play.worth(world, graph)
        listens = [int(art.pays(w, s["penalty"])) for w in worth]
        here = play.played(world, [*s["cells"], s["prey"]], graph, listens, free)
        told = [int(x) for x in (graph[:, :seers] > 0).any(1).tolist()]
        noisy = (edges[i] + torch.tensor(_noise()[s["draw"]], dtype=torch.float64)[:n]).index_fill(
            0, torch.tensor([i]), -torch.inf
        )
        soft = softmax_gate(noisy, s["temperature"]).tolist()
        best = gate_optimum(s["symbols"], FLAGS, s["penalty"])
        t = min(s["step"], here["steps"])
        return here | {
            "graph": ["".join(f"{a:.0f}" for a in row) for row in graph.tolist()], "k": k, "told": told,
            "worth": worth, "listens": listens, "t": t, "now": here["frames"][t],
            "mean": play.means(world, graph * torch.tensor(listens)[:, None], k, free),
            "row": i, "marked": j, "logit": edges[i, j].item(),
            "gap": logit_gap(edges, k)[i].item() if k < n - 1 else "none",
            "first": inclusion_probability(edges, 1)[i].tolist(), "two": inclusion_probability(edges, 2)[i].tolist(),
            "soft": soft, "drawn": topk_mask(noisy, k).int().tolist(),
            "slope": soft[j] * (1 - soft[j]) / s["temperature"],
            "threshold": listening_threshold(s["symbols"]), "rate": list(best.rate), "reward": best.reward,
            "kind": _kind(told[seers:], listens[seers:], any(listens), free),
        }  # fmt: skip

    def values(self) -> dict[str, Any]:
        return {key: value for key, value in self._all().items() if key != "frames"}

    def __repr__(self) -> str:
        s, v = self.state, self.values()
        ending = "solved" if v["solved"] else "not solved"
        rows = ", ".join(f"{i} hears {_list(row)}" for i, row in enumerate(v["graph"]))
        return (
            f"BoardExplorable: {NAMES[s['world']]}, lambda {s['penalty']:g}\n  {rows}\n  this board: {ending} after "
            f"{v['steps']} steps, {v['messages']} messages, {v['news']} of them news; mean over {play.COUNT} boards: "
            f"{v['mean']['steps'][0]:.2f} steps, {v['mean']['solved']:.0%} solved\n  {WORDS[v['kind']][0]}"
        )

    def markup(self) -> str:
        s, v, sizes = self.state, self._all(), self.sizes
        few = {"n": sizes["n"], "seers": sizes["seers"]}
        numbers = {slot: (label, number) for (slot, label), number in zip(READINGS.items(), written(v, s), strict=True)}
        key = {"knows or tells the prey": art.BLUE, "is done": art.GREEN, "prey": art.RED, "tells nothing": art.GREY}
        swatches = "".join(tag("span", word, style=f"--gx-swatch: {colour}") for word, colour in key.items())
        lines = (
            "Circles see the shaded cells, squares are blind. All can be dragged, and so can the prey. A thick arrow "
            "tells its receiver for the first time; at a dotted one the gate is shut. Orange under a bar: gate open."
        )
        entry = (
            "Click on an entry, or press Enter, to let the edge in or out; each row keeps k, framed in orange. "
            "If k is all, a click does nothing. + and − change the logit. A tick: the blind agent hears a seer."
        )
        lot = (
            "Bars: chance to be drawn first, and on top second, at any T. Dots: the weights y of one draw, which T "
            "sharpens; full ones are kept. T shapes the gradient, the gap of the logits decides who is drawn."
        )
        worth = (
            "w: steps that its row saves an agent for each step in the dark (100 boards, all others listening). λ is "
            "the price of an open gate for one step, in steps. In the lookup game agents are asked for their own "
            "symbol or another’s, and the unit is a right answer."
        )
        controls = [tag("div", class_="gx-controls", data_for=where) for where in ("board", "graph", "price", "draw")]
        cells = [
            tag("div", swatches, class_="gx-key") + art.board(v["now"], v, s, **sizes) + controls[0],
            art.matrix(v, s["logits"], self.marked, **few) + _hint(entry) + controls[1],
            art.timeline(v, **few) + _hint(lines) + draw.callout(*WORDS[v["kind"]]),
            art.prices(v, s, **few) + _hint(worth) + controls[2],
            art.chances(v, n=sizes["n"], k=v["k"]) + _hint(lot) + controls[3],
        ]
        blocks = [
            tag("div", cell, class_="gx-figure", style="display: grid; gap: .6rem; align-content: start")
            for cell in cells
        ]
        blocks.append(tag("div", draw.readings(numbers)))
        shape = "grid-template-columns: repeat(auto-fit, minmax(min(100%, 17.75rem), 1fr))"
        return tag("div", *blocks, class_="gx-grid", style=shape)


READINGS = {
    "here": "Steps on this board", "sent": "Messages sent; by one who knows; new to the listener",
    "means": "100 boards: steps (20 if not solved); solved",
    "bounds": "100 boards: steps without edges; with all", "cost": "100 boards: messages a board",
    "gap": "Logit gap of the marked row", "kept": "Chance that the marked edge is drawn",
    "slope": "Weight y of the marked edge; its slope y(1 − y)/T",
    "lookup": "Lookup game: receive rate; reward",
}  # fmt: skip


def written(v: dict[str, Any], s: dict[str, Any]) -> list[str]:
    """The readings' numbers."""
    mean, (low, high), j = v["mean"], v["rate"], v["marked"]
    kept = fixed(v["first" if v["k"] == 1 else "two"][j], 3) + (" (first two)" if v["k"] > 2 else "")
    return [
        f"{v['steps']}" if v["solved"] else f"{LIMIT}, not solved",
        f"{v['messages']}; {v['carried']}; {v['news']}",
        f"{fixed(mean['steps'][0], 2)}; {fixed(100 * mean['solved'], 0)} %",
        f"{fixed(mean['steps'][1], 2)}; {fixed(mean['steps'][2], 2)}",
        fixed(mean["messages"], 1),
        v["gap"] if isinstance(v["gap"], str) else fixed(v["gap"], 1),
        kept,
        f"{fixed(v['soft'][j], 3)}; {fixed(v['slope'], 3)}",
        (fixed(low, 2) if low == high else f"{fixed(low, 2)} to {fixed(high, 2)}") + f"; {fixed(v['reward'], 3)}",
    ]


def _noise() -> list[list[float]]:
    """Gumbel noise of every draw, three decimals, for six senders."""
    uniform = random.Random(6)
    return [
        [round(-math.log(-math.log(uniform.uniform(1e-6, 1 - 1e-6))), 3) for _ in range(AGENTS)] for _ in range(DRAWS)
    ]


def _kind(told: list[int], listen: list[int], anybody: bool, free: bool) -> str:
    """Which of the words apply; `told` and `listen` are the blind agents'."""
    if not any(told):
        return "deaf"
    if not anybody:
        return "silent"
    if not all(told):
        return "wrong"
    if free:
        return "open"
    return "thrifty" if all(listen) else "dear"


def _hint(words: str) -> str:
    return tag("div", words, style="font-size: 12.5px; line-height: 1.35")


def _list(row: str) -> str:
    return " and ".join(str(j) for j, a in enumerate(row) if a == "1")
