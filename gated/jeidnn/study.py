"""One seed of the chapter's study: a network is trained and frozen, then every rule for leaving it meets every other.

    parts = divide(x, y, seed)                   half to learn from, 15 % for gates, 15 % for calibration, 20 % for test
    network, features = grow(body, parts, seed)  the frozen backbone, and what its exits read of each part
    measure(x, y, body, seed)                    all of it, as numbers that JSON can hold

All rules are compared at equal mean cost. A rule with a knob is a curve; between two of its points, and between them
and the two exits that need no rule at all (everybody at the first, everybody at the last), it is a mixture.
"""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gated.jeidnn.baselines import (
    Tally,
    at_cost,
    concave_hull,
    geometric_quotas,
    oracle_exit,
    patience_exit,
    quota_thresholds,
    random_exit_accuracy,
    tally,
    threshold_exit,
)
from gated.jeidnn.calibration import (
    brier,
    calibration_error,
    conformal_sets,
    conformal_thresholds,
    exit_bias,
    fit_temperature,
    set_quality,
)
from gated.jeidnn.exits import Causal, Rule, exit_distribution, hard_exit, objective
from gated.jeidnn.labels import exit_labels, exit_losses
from gated.jeidnn.network import ExitNetwork
from gated.jeidnn.policies import UncertaintyGate, score
from gated.jeidnn.recipe import Grown, divide, grow, learn, pooled, seeded, taught, warmed
from gated.jeidnn.training import PhaseLoss, joint_loss

VERSION = 1
GRID = torch.linspace(0, 1, 25).double()  # where curves are stored, from the cost of the first exit to 1
SCORES = ("confidence", "entropy", "margin")

CostCurve = tuple[list[float], list[float]]


class Seen:
    """What the heads of a network answer on the four parts."""

    def __init__(self, network: ExitNetwork, grown: Grown) -> None:
        self.network, self.grown, self.costs = network, grown, network.costs
        with torch.no_grad():
            self.gates = network.exit_logits(grown.gates)
            self.calibration = network.exit_logits(grown.calibration)
            self.test = network.exit_logits(grown.test)
        self.y = grown.test.y
        self.correct = self.test.argmax(-1) == self.y[:, None]
        self.correct_gates = self.gates.argmax(-1) == grown.gates.y[:, None]
        self.losses = exit_losses(self.test, self.y)
        self.losses_gates = exit_losses(self.gates, grown.gates.y)

    def exits(self, part: str, composition: Causal = "clip", rule: Rule = "conditional") -> Tensor:
        """Where the network's gates send the samples of a part."""
        with torch.no_grad():
            g = self.network.gate_logits(getattr(self.grown, part), getattr(self, part)).sigmoid()
        return hard_exit(exit_distribution(g, composition), rule)

    def tally(self, exit: Tensor) -> Tally:
        return tally(exit, self.correct, self.costs)


def knobs(seen: Seen, kind: Any, quotas: bool = False) -> list[Any]:
    """Thresholds of a score from the gates' part: one for all exits at each percentile, or one each from quotas."""
    scores = score(seen.gates[:, :-1], kind)
    if not quotas:
        return scores.flatten().double().quantile(torch.linspace(0, 1, 101).double()).tolist()
    ratios = torch.logspace(-1.5, 1.5, 61).tolist()
    return [quota_thresholds(scores, geometric_quotas(seen.correct.shape[1], r)) for r in ratios]


def curve(seen: Seen, exits: Sequence[Tensor], part: str = "test") -> CostCurve:
    """Costs and accuracies of some rules, with the two ends."""
    correct = seen.correct if part == "test" else seen.correct_gates
    tallies = [tally(exit, correct, seen.costs) for exit in exits]
    accuracy = correct.double().mean(0)
    return (
        [t.cost for t in tallies] + [float(seen.costs[0]), 1.0],
        [t.accuracy for t in tallies] + [float(accuracy[0]), float(accuracy[-1])],
    )


def threshold_curve(seen: Seen, kind: Any, quotas: bool = False, part: str = "test") -> CostCurve:
    scores = score(getattr(seen, part)[:, :-1], kind)
    return curve(seen, [threshold_exit(scores, t) for t in knobs(seen, kind, quotas)], part)


def rivals(seen: Seen) -> dict[str, CostCurve]:
    """The curves that need no learned gate."""
    found: dict[str, CostCurve] = {}
    for kind in SCORES:
        found[kind] = threshold_curve(seen, kind)
        found[f"{kind}, quotas"] = threshold_curve(seen, kind, quotas=True)
    guess = seen.test.argmax(-1)
    found["patience"] = curve(seen, [patience_exit(guess, m) for m in range(1, guess.shape[1] + 1)])
    # which exits stand on the hull is decided on the gates' part
    corners, _ = concave_hull(seen.costs, seen.correct_gates.double().mean(0))
    chosen = [l for l, c in enumerate(seen.costs.tolist()) if (corners - c).abs().min() < 1e-9]
    found["mixture of exits"] = curve(seen, [torch.full_like(seen.y, l) for l in chosen])
    return found


def cheapest(seen: Seen, trade_off: float) -> dict[str, float]:
    """The confidence threshold with the least mean loss + lambda cost on the gates' part, and what it does on test."""
    now, then = score(seen.gates[:, :-1]), score(seen.test[:, :-1])
    pay = lambda t: priced(seen.losses_gates, seen.costs, threshold_exit(now, t), trade_off)  # noqa: E731
    exit = threshold_exit(then, min(knobs(seen, "confidence"), key=pay))
    found = seen.tally(exit)
    return {
        "cost": found.cost, "accuracy": found.accuracy, "J": priced(seen.losses, seen.costs, exit, trade_off)
    }  # fmt: skip


def priced(losses: Tensor, costs: Tensor, exit: Tensor, trade_off: float) -> float:
    """Mean of loss + lambda c at the exits taken."""
    taken = F.one_hot(exit, losses.shape[1]).double()
    return float(objective(taken, losses.double(), costs, trade_off).mean())


def matched_threshold(seen: Seen, cost: float) -> float:
    """The confidence threshold whose cost on the gates' part is nearest to `cost`."""
    scores = score(seen.gates[:, :-1])
    off = lambda t: abs(tally(threshold_exit(scores, t), seen.correct_gates, seen.costs).cost - cost)  # noqa: E731
    return min(knobs(seen, "confidence"), key=off)


def quality(seen: Seen, exit: Tensor, exit_calibration: Tensor) -> dict[str, Any]:
    """Bias at the exits, calibration error and conformal sets of what a rule answers, raw and temperature-scaled."""
    exits, y, grown = seen.correct.shape[1], seen.y, seen.grown
    found: dict[str, Any] = {"cost": seen.tally(exit).cost, "accuracy": seen.tally(exit).accuracy}
    temperature = torch.tensor([fit_temperature(seen.gates[:, l], grown.gates.y) for l in range(exits)])
    for name, scale in {"raw": torch.ones(exits), "scaled": temperature}.items():
        p = (seen.test / scale[:, None]).softmax(-1)
        answer = p[torch.arange(len(y)), exit]
        confidence, right = answer.amax(1), answer.argmax(1) == y
        bias, number = exit_bias(confidence, right, exit, exits)
        early = number[:-1].double() / number[:-1].sum().clamp(min=1)
        found[f"bias, {name}"] = float(early @ bias[:-1])
        # the same exits, as often, by chance: what is left of the bias is due to the heads, not to who leaves
        alone = (p.amax(-1).double() - seen.correct.double()).mean(0)
        found[f"bias by chance, {name}"] = float(early @ alone[:-1])
        found[f"ECE, {name}"] = calibration_error(confidence, right)
        found[f"debiased ECE, {name}"] = calibration_error(confidence, right, debiased=True)
        found[f"Brier, {name}"] = brier(answer, y)
        found[f"NLL, {name}"] = float(-answer.double().gather(1, y[:, None]).clamp(min=1e-12).log().mean())
        held = (seen.calibration / scale[:, None]).softmax(-1)
        sizes, misses = [], []
        for alpha in (torch.arange(1, 31) / 200).tolist():
            q = conformal_thresholds(held, grown.calibration.y, exit_calibration, alpha, "general")
            kept = set_quality(conformal_sets(answer, q[exit]), y)
            sizes.append(-kept.size)
            misses.append(kept.miss)
            if abs(alpha - 0.05) < 1e-9:
                found[f"set size, {name}"], found[f"miss, {name}"] = kept.size, kept.miss
        found[f"set size at miss 5 %, {name}"] = -at_cost(misses, sizes, min(max(0.05, min(misses)), max(misses)))
    return found


def reading(seen: Seen, exit: Tensor, trade_off: float, base: Mapping[str, CostCurve]) -> dict[str, Any]:
    """What gates do on the test part, beside the threshold of `base` at their own cost."""
    found = seen.tally(exit)
    return {
        "cost": found.cost,
        "accuracy": found.accuracy,
        "rates": found.rates.tolist(),
        "J": priced(seen.losses, seen.costs, exit, trade_off),
        "threshold": at_cost(*base["confidence"], found.cost),
    }


COMPOSITIONS: dict[str, tuple[Causal, Rule]] = {
    "as a mass": ("clip", "conditional"),
    "as a distribution": ("cdf", "median"),
    "as hazards": ("stick", "conditional"),
}
ARMS: dict[str, tuple[dict[str, Any], str]] = {
    "detached": ({"weighting": "detached"}, "as a mass"),
    "released": ({"weighting": "released"}, "as a mass"),
    "post-hoc": ({"phases": ("gates",)}, "as a mass"),
    "hazards": ({"phases": ("gates",), "target": "hazard", "balance": False}, "as hazards"),
    "hazards, detached": (
        {"weighting": "detached", "target": "hazard", "balance": False, "composition": "stick"},
        "as hazards",
    ),
    "weighted": ({"weighting": "plain"}, "as a mass"),
    "hazards, weighted": (
        {"weighting": "plain", "target": "hazard", "balance": False, "composition": "stick"},
        "as hazards",
    ),
    "released, no class weights": ({"weighting": "released", "balance": False}, "as a mass"),
}  # those with one phase on heads that were trained as long without looking at gates
FOUR = tuple(ARMS)[:4]
VARIANTS: dict[str, tuple[dict[str, Any], Sequence[str]]] = {
    "subsequent, no class weights": ({"balance": False}, ("as a mass", "as a distribution")),
    "one-hot": ({"target": "one-hot", "balance": False}, ("as a mass",)),
    "hazard, regret": ({"target": "hazard", "balance": False, "cost_sensitive": True}, ("as hazards",)),
    "own training samples": ({"held_out": None}, ("as a mass",)),
}  # fmt: skip
STATISTICS: dict[str, dict[str, Any]] = {
    "max": {"statistics": ("confidence",)},
    "max, entropy": {"statistics": ("confidence", "entropy")},
    "four, z": {"layer": True},
}


def regated(network: ExitNetwork, statistics: Mapping[str, Any], seed: int) -> ExitNetwork:
    """The same heads with new gates."""
    twin = copy.deepcopy(network)
    with seeded(seed):
        twin.gates = nn.ModuleList(
            UncertaintyGate(**(dict(statistics) | ({"layer": h.in_features} if "layer" in statistics else {})))
            for h in twin.heads
        )
    return twin


def smoothed(history: Sequence[PhaseLoss], phase: str, points: int = 20) -> list[float]:
    losses = torch.tensor([step.loss for step in history if step.phase == phase]).double()
    return [float(part.mean()) for part in losses.tensor_split(points)]


def measure(
    x: Tensor,
    y: Tensor,
    body: Callable[[], nn.Module],
    seed: int,
    epochs: int,
    trade_offs: Sequence[float],
    details: Sequence[float] = (),
    branchy: bool = True,
    arms: Sequence[str] = FOUR,
    closely: Sequence[str] = ("detached", "post-hoc"),
) -> dict[str, Any]:
    """The arms at every lambda of `trade_offs`; targets, compositions and statistics at those of `details`.

    Of `arms` those in `closely` have the quality of their answers measured; the last of these is the one whose gates
    are given other statistics, and if it is "post-hoc", other targets.
    """
    start = time.perf_counter()
    parts = divide(x, y, seed)
    grown = grow(body, parts, seed, epochs)
    first = Seen(copy.deepcopy(warmed(grown, seed)), grown)
    plain = copy.deepcopy(first.network)
    taught(plain, grown, 0, seed, phases=("heads",), weighting="unweighted")
    seen = Seen(plain, grown)
    curves = rivals(seen) | {"confidence, warm-up heads": threshold_curve(first, "confidence")}
    chosen = {quotas: {k: threshold_curve(seen, k, quotas, "gates") for k in SCORES} for quotas in (False, True)}
    if branchy:
        with seeded(seed):
            open_network = ExitNetwork(body(), parts.train[0][:1], summary=pooled, frozen=False)
        learn(open_network, lambda a, b: joint_loss(open_network, a, b), parts.train, epochs, seed)
        with torch.no_grad():
            features = [open_network.features(*part) for part in parts]
        joint = Seen(open_network, Grown(open_network, *features))
        curves["confidence, jointly trained"] = threshold_curve(joint, "confidence")
        joint_accuracy = joint.correct.double().mean(0).tolist()
    first_right = seen.tally(oracle_exit(seen.correct))
    result: dict[str, Any] = {
        "seed": seed,
        "costs": seen.costs.tolist(),
        "exit accuracy": seen.correct.double().mean(0).tolist(),
        "exit accuracy, warm-up": first.correct.double().mean(0).tolist(),
        "exit accuracy, jointly trained": joint_accuracy if branchy else None,
        "first right exit": [first_right.cost, first_right.accuracy],
        "arms": {arm: [] for arm in arms},
        "variants": {}, "statistics": {}, "label cost": [], "label-aware": [], "cheapest threshold": [],
        "quality": [], "curves": {},
    }  # fmt: skip
    low = float(seen.costs[0])
    grid = (low + (1 - low) * GRID).clamp(low, 1).tolist()
    result["curves"] = {name: [at_cost(*c, v) for v in grid] for name, c in curves.items()}
    for trade_off in trade_offs:
        label = exit_labels(seen.losses, seen.costs, trade_off)
        aware = seen.tally(label)
        result["label cost"].append(aware.cost)
        result["label-aware"].append([aware.cost, aware.accuracy])
        result["cheapest threshold"].append(cheapest(seen, trade_off))
        by_arm: dict[str, Seen] = {}
        for arm in arms:
            options, use = ARMS[arm]
            network = copy.deepcopy(plain if "phases" in options else first.network)
            begun = time.perf_counter()
            history = taught(network, grown, trade_off, seed, **options)
            seconds = time.perf_counter() - begun
            now = by_arm[arm] = Seen(network, grown)
            exit = now.exits("test", *COMPOSITIONS[use])
            row = reading(now, exit, trade_off, curves)
            cost = row["cost"]
            row |= {
                "trade_off": trade_off,
                "rivals": {name: at_cost(*c, cost) for name, c in curves.items()},
                # the score that is the most accurate at this cost on the gates' part
                "chosen score": max(SCORES, key=lambda k: at_cost(*chosen[False][k], min(cost, 1))),
                "chosen score, quotas": max(SCORES, key=lambda k: at_cost(*chosen[True][k], min(cost, 1))),
                "by chance": random_exit_accuracy(now.correct.double().mean(0), torch.tensor(row["rates"]).double()),
                "threshold on these heads": at_cost(*threshold_curve(now, "confidence"), cost),
                "exit accuracy": now.correct.double().mean(0).tolist(),
                "seconds": seconds,
            }
            if "phases" not in options and trade_off in details:
                row["head loss"], row["gate loss"] = smoothed(history, "heads"), smoothed(history, "gates")
            result["arms"][arm].append(row)
        if trade_off in details and closely[-1] == "post-hoc":
            now = by_arm["post-hoc"]
            for use, how in COMPOSITIONS.items():
                row = reading(now, now.exits("test", *how), trade_off, curves)
                result["variants"].setdefault(f"subsequent, {use}", []).append(row)
        qualities: dict[str, Any] = {}
        for arm in set(closely) & by_arm.keys():
            gated = by_arm[arm]
            threshold = matched_threshold(seen, float(seen.costs[gated.exits("gates")].mean()))
            thresholded = [threshold_exit(score(part[:, :-1]), threshold) for part in (seen.test, seen.calibration)]
            qualities[arm] = quality(gated, gated.exits("test"), gated.exits("calibration"))
            qualities[f"threshold at the cost of {arm}"] = quality(seen, *thresholded)
        result["quality"].append(qualities)
    teaching, use = ARMS[closely[-1]]
    for trade_off in details:
        for name, (options, uses) in VARIANTS.items() if closely[-1] == "post-hoc" else ():
            network = copy.deepcopy(plain)
            taught(network, grown, trade_off, seed, phases=("gates",), **options)
            now = Seen(network, grown)
            for how_ in uses:
                row = reading(now, now.exits("test", *COMPOSITIONS[how_]), trade_off, curves)
                result["variants"].setdefault(f"{name}, {how_}", []).append(row)
        for name, statistics in STATISTICS.items():
            network = regated(plain, statistics, seed)
            taught(network, grown, trade_off, seed, **teaching)
            now = Seen(network, grown)
            row = reading(now, now.exits("test", *COMPOSITIONS[use]), trade_off, curves)
            result["statistics"].setdefault(name, []).append(row)
    result["seconds"] = time.perf_counter() - start
    return rounded(result)


def rounded(value: Any) -> Any:
    """Five digits are more than 1,000 test samples can tell."""
    if isinstance(value, Mapping):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(v) for v in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value
