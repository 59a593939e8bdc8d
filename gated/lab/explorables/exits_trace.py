"""What the figure of the exits knows about its samples: numbers rounded for the page, and the rules that read them."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gated.jeidnn.baselines import concave_hull, oracle_exit, patience_exit
from gated.jeidnn.calibration import exit_bias
from gated.jeidnn.exits import (
    Causal,
    conditional_gates,
    exit_distribution,
    expected_cost,
    first_true,
    hard_exit,
    remaining_mass,
)
from gated.jeidnn.labels import exit_labels, exit_losses
from gated.jeidnn.policies import uncertainty

POLICIES = {"gates": "learned gates", "confidence": "confidence", "entropy": "entropy", "patience": "patience"}
Hopeless = Literal["none", "added", "marked"]
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
SCALES = (60_000, 16_000, 60_000, 16_000, 4_000)
"""The four statistics, two probabilities and two entropies in nats, and the loss travel as 16-bit integers."""
GRID = [1 - (1 - i / 32) ** 2 for i in range(33)]
"""Thresholds at which the curves are computed."""
DRAW = 0.6180339887498949
"""Multiples of it, modulo 1, stand in for one random number a sample."""


class Crowd(NamedTuple):
    """All samples that the rules sort: of each exit statistics, answer, whether it is right; gates at each lambda."""

    statistics: Tensor
    guess: Tensor
    right: Tensor
    gates: list[Tensor]


class Outcomes(NamedTuple):
    """Mean cost, accuracy and exit rates, one row for each setting of a rule."""

    cost: Tensor
    accuracy: Tensor
    rates: Tensor

    def points(self) -> list[list[float]]:
        return torch.stack([self.cost, self.accuracy], 1).tolist()


class ExitTrace:
    """The arrays of `ExitsExplorable`'s trace, checked, rounded, and in float64.

    `packed` is what travels into the page: 16-bit integers in base 64, and a character for each class.
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        names = ("images", "label", "guess", "statistics", "loss", "costs")
        images, label, guess, statistics, loss, costs = (torch.as_tensor(given[name]) for name in names)
        if guess.ndim != 2 or not (4 <= len(guess) <= 300 and 3 <= guess.shape[1] <= 8):
            raise ValueError(f"trace['guess'] must be [4 to 300 samples, 3 to 8 exits], got {tuple(guess.shape)}")
        samples, exits = guess.shape
        side = images.shape[-1]
        shapes = {"images": (samples, side, side), "label": (samples,), "statistics": (samples, exits, 4)}
        shapes |= {"loss": (samples, exits), "costs": (exits,)}
        for name, shape in shapes.items():
            if torch.as_tensor(given[name]).shape != shape:
                raise ValueError(f"trace[{name!r}] must have shape {shape}, got {tuple(given[name].shape)}")
        weights = {float(price): torch.as_tensor(w).double() for price, w in sorted(given["gates"].items())}
        if not 2 <= len(weights) <= 12 or any(w.shape != (exits - 1, 5) for w in weights.values()):
            raise ValueError(f"trace['gates'] must map 2 to 12 lambdas to weights of shape ({exits - 1}, 5)")
        self.images: list[list[list[int]]] = images.tolist()
        self.prices = list(weights)
        self.packed: dict[str, Any] = {
            "statistics": _pack(statistics, SCALES[:4]),
            "losses": _pack(loss, SCALES[4:]),
            "guesses": "".join(DIGITS[k] for k in guess.flatten().tolist()),
            "labels": "".join(DIGITS[k] for k in label.tolist()),
            "costs": costs.double().tolist(),
            "prices": self.prices,
            "weights": [[[float(f"{x:.5g}") for x in gate] for gate in w.tolist()] for w in weights.values()],
            "classes": 1 + int(max(label.max(), guess.max())),
            "scales": list(SCALES),
            "unsure": hopeless_samples(1, exits)[0][0].tolist(),
            "draw": DRAW,
        }
        self.costs = costs.double()
        self.label, self.guess = label.long(), guess.long()
        self.statistics = _unpack(self.packed["statistics"], SCALES[:4]).view(samples, exits, 4)
        self.loss = _unpack(self.packed["losses"], SCALES[4:]).view(samples, exits)
        self.weights = torch.tensor(self.packed["weights"], dtype=torch.float64)
        self.classes: int = self.packed["classes"]

    def gates(self, price: float) -> Tensor:
        """g of the stored samples."""
        return gates(self.statistics, self.weights[self.prices.index(price)])

    def crowd(self, hopeless: Hopeless) -> Crowd:
        """The stored samples, with a quarter as many hopeless ones if asked for."""
        statistics, guess, right, n = self.statistics, self.guess, self.guess == self.label[:, None], len(self.guess)
        if hopeless != "none":
            more, answers = hopeless_samples(n // 4, guess.shape[1])
            statistics, guess = torch.cat([statistics, more]), torch.cat([guess, answers])
            right = torch.cat([right, answers == 0])
        values = [gates(statistics, weights) for weights in self.weights]
        if hopeless == "marked":
            for g in values:
                g[n:, 0] = 1
        return Crowd(statistics, guess, right, values)


def gates(statistics: Tensor, weights: Tensor) -> Tensor:
    """g = sigmoid(v . u + b) of L - 1 gates from the statistics u of L exits."""
    return ((statistics[:, :-1] * weights[:, :4]).sum(-1) + weights[:, 4]).sigmoid()


def hopeless_samples(count: int, exits: int) -> tuple[Tensor, Tensor]:
    """Statistics and answers of samples between two classes: right, which is class 0, in 50% of the cases, 52% at last.

    The two answers have the probability 1/2 each, and 0.52 and 0.48 at the last exit: the scores are calibrated.
    """
    p = torch.tensor([[0.5, 0.5]] * (exits - 1) + [[0.52, 0.48]], dtype=torch.float64)
    index = torch.arange(count)
    answers = (index % 2)[:, None].repeat(1, exits)
    answers[index % 50 == 1, -1] = 0
    return uncertainty(p.log()).expand(count, -1, -1), answers


def hard(p: Tensor, composition: Causal) -> Tensor:
    """The hard rule that fits: half of what is left, or the median of a distribution that was read as one."""
    return hard_exit(p, "median" if composition == "cdf" else "conditional")


def drawn(p: Tensor) -> Tensor:
    """One exit for each sample, drawn from its p with numbers that are always the same."""
    u = (torch.arange(len(p)) + 0.5).double() * DRAW % 1
    return (p[:, :-1].cumsum(1) <= u[:, None]).sum(1)


def synthetic_trace(samples: int = 60, exits: int = 5, classes: int = 10, seed: int = 0) -> dict[str, Any]:
    """A trace of made-up logits that grow sharper from exit to exit, for whoever has no network at hand."""
    random = torch.Generator().manual_seed(seed)
    label = torch.randint(classes, (samples,), generator=random)
    ease = 6 * torch.rand(samples, 1, 1, generator=random, dtype=torch.float64)
    depth = torch.linspace(0.3, 2, exits, dtype=torch.float64)[:, None]
    noise = torch.randn(samples, exits, classes, generator=random, dtype=torch.float64).cumsum(1) / 2
    logits = 1.5 * (F.one_hot(label, classes)[:, None] * ease * depth + noise)
    ramp = torch.arange(8) * torch.arange(8)[:, None] + 3 * torch.arange(8)
    weights = torch.tensor([4.0, -1.0, 2.0, -0.5, -4.0]) + torch.randn(exits - 1, 5, generator=random) / 4
    return {
        "images": ((ramp + label[:, None, None]) % 17).to(torch.uint8),
        "label": label,
        "guess": logits.argmax(-1),
        "statistics": uncertainty(logits),
        "loss": exit_losses(logits, label),
        "costs": torch.linspace(1 / exits, 1, exits, dtype=torch.float64),
        "gates": {price: weights + torch.tensor([0, 0, 0, 0, price]) for price in (0.0, 0.5, 1.0, 2.0)},
    }


def strokes(image: list[list[int]]) -> tuple[str, str]:
    """The pixels that hold some ink, and those that hold much, as horizontal strokes."""
    most, paths = max(1, *map(max, image)), []
    for level in (0.2, 0.6):
        d = ""
        for y, line in enumerate(image):
            dark = [value > level * most for value in line] + [False]
            for x, on in enumerate(dark):
                if on and not (x and dark[x - 1]):
                    d += f"M{x} {y}h{dark.index(False, x) - x}"
        paths.append(d)
    return paths[0], paths[1]


def _pack(values: Tensor, scales: tuple[int, ...]) -> str:
    # rounded down, so that no entropy exceeds ln K
    whole = (values.double().reshape(-1, len(scales)) * torch.tensor(scales)).floor().clamp(0, 65_535)
    return base64.b64encode(whole.numpy().astype("<u2").tobytes()).decode()


def _unpack(words: str, scales: tuple[int, ...]) -> Tensor:
    whole = np.frombuffer(base64.b64decode(words), "<u2").astype(np.float64)
    return torch.from_numpy(whole).view(-1, len(scales)) / torch.tensor(scales)


def outcomes(exits: Tensor, right: Tensor, costs: Tensor) -> Outcomes:
    """What `gated.jeidnn.tally` says, for many rules at once: exits [settings, samples], right [samples, exits]."""
    rates = F.one_hot(exits, len(costs)).double().mean(1)
    taken = right[torch.arange(len(right)), exits]
    return Outcomes(rates @ costs, taken.double().mean(1), rates)


def measure(s: dict[str, Any], t: ExitTrace) -> dict[str, Any]:
    """All numbers of the figure in the state s."""
    costs, composition = t.costs, cast(Causal, s["composition"])
    p = exit_distribution(torch.tensor(s["gates"], dtype=torch.float64), composition)
    own, loss = int(hard(p, composition)), t.loss[s["sample"]]
    crowd = t.crowd(s["hopeless"])
    right, claimed, grid = crowd.right, crowd.statistics[..., 0], torch.tensor(GRID, dtype=torch.float64)
    scores = {"confidence": claimed, "entropy": 1 - crowd.statistics[..., 1] / math.log(t.classes)}
    here = t.prices.index(s["price"])

    def passed(policy: str, thresholds: Tensor) -> Tensor:
        return first_true(scores[policy][:, :-1] >= thresholds[:, None, None])

    # exits of all samples for a list of settings, [settings, samples], the current one last
    q = exit_distribution(torch.stack([*crowd.gates, crowd.gates[here]]), composition)
    now = grid.new_tensor([s["threshold"]])
    leave = {
        "gates": hard(q, composition) if s["rule"] == "hard" else torch.stack([drawn(one) for one in q]),
        "confidence": passed("confidence", torch.cat([grid, now])),
        "entropy": passed("entropy", torch.cat([grid, now])),
        "patience": torch.stack([patience_exit(crowd.guess, m) for m in [*range(1, len(costs) + 1), s["patience"]]]),
    }
    results = {policy: outcomes(exits, right, costs) for policy, exits in leave.items()}
    if s["rule"] == "expected":
        results["gates"] = Outcomes(expected_cost(q, costs).mean(1), (q * right).sum(2).mean(1), q.mean(1))
    exits, first, accuracy = leave[s["policy"]][-1], oracle_exit(right), right.double().mean(0)
    at, own_results = exits[:, None], results[s["policy"]]
    bias = exit_bias(claimed.gather(1, at)[:, 0], right.gather(1, at)[:, 0], exits, len(costs))
    steps = torch.arange(len(costs))[:, None]
    frontier = outcomes(first.where(first <= steps, 0), right, costs)
    return {
        "p": p.tolist(),
        "h": conditional_gates(p).tolist(),
        "mass": remaining_mass(p).tolist(),
        "exit": own,
        "cost": float(costs[own]),
        "expected": float(expected_cost(p, costs)),
        "totals": (loss + s["price"] * costs).tolist(),
        "best": int(exit_labels(loss[None], costs, s["price"])),
        "moved": int(
            (torch.tensor(s["gates"], dtype=torch.float64) - t.gates(s["price"])[s["sample"]]).abs().amax() > 1e-9
        ),
        "points": {policy: [float(r.cost[-1]), float(r.accuracy[-1])] for policy, r in results.items()},
        "curves": {policy: r.points()[:-1] for policy, r in results.items()},
        "random": torch.stack([own_results.cost, own_results.rates @ accuracy], 1)[:-1].tolist(),
        "oracle": frontier.points(),
        "accuracy": accuracy.tolist(),
        "hull": torch.stack(concave_hull(costs, accuracy), 1).tolist(),
        "exits": exits.tolist(),
        "count": bias.number.tolist(),
        "bias": bias.bias.tolist(),
        "plain": (claimed - right.double()).mean(0).tolist(),
        "kind": kind(s),
    }


def kind(s: dict[str, Any]) -> str:
    """What the note is about."""
    if s["hopeless"] != "none":
        return str(s["hopeless"])
    return str({"gates": s["composition"], "patience": "patience"}.get(s["policy"], "threshold"))
