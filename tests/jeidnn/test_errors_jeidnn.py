"""Bad input is a ValueError that names the argument (without the shape-checking hook)."""

import copy
import math

import pytest
import torch
from torch import nn

from gated import jeidnn as j

D = torch.float64
NAN, INF = math.nan, math.inf
COSTS = torch.tensor([0.5, 1.0])
X = torch.zeros(4, 3)
Y = torch.zeros(4, dtype=torch.int64)
LOGITS = torch.zeros(4, 2, 5)
CONF, RIGHT = torch.full((4,), 0.5), torch.ones(4, dtype=torch.bool)


def net():
    torch.manual_seed(0)
    return j.ExitNetwork(j.ResidualMLP(3, 5, dim=4, depth=3), X)


NET = net()
DATA = NET.features(X, Y)
NAN_DATA = j.Features([z * NAN for z in DATA.z], DATA.last, Y)


class Twice(nn.Module):
    """Runs a block twice."""

    def __init__(self):
        super().__init__()
        self.blocks, self.head = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)]), nn.Linear(3, 5)

    def forward(self, x):
        return self.head(self.blocks[1](self.blocks[0](self.blocks[0](x))))


class Mixes(nn.Module):
    """Gives one answer for the whole batch."""

    def __init__(self):
        super().__init__()
        self.blocks, self.head = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)]), nn.Linear(3, 5)

    def forward(self, x):
        return self.head(self.blocks[1](self.blocks[0](x))).mean(0, keepdim=True)


class Pair(nn.Module):
    def forward(self, x):
        return x, x


def body(**more):
    return j.ResidualMLP(3, 5, dim=4, depth=3, **more)


def spoiled():
    out = copy.deepcopy(NET)
    nn.init.constant_(out.heads[0].weight, INF)
    return out


def order():
    b = body()
    return j.ExitNetwork(b, X, blocks=list(b.blocks)[::-1])


CASES = {
    "gates": [
        lambda: j.exit_distribution(torch.tensor([0.5, 1.2])),
        lambda: j.exit_distribution(torch.tensor([-0.1])),
        lambda: j.exit_distribution(torch.tensor([0.5, NAN])),
        lambda: j.exit_distribution(torch.zeros(3, 0)),
        lambda: j.exit_distribution(torch.tensor([1])),
    ],
    "composition": [
        lambda: j.exit_distribution(torch.tensor([0.5]), "sum"),
        lambda: j.GatePolicy(NET.gates, "softmax"),
    ],
    "rule": [lambda: j.hard_exit(torch.tensor([0.5, 0.5]), "soft"), lambda: j.GatePolicy(NET.gates, rule="soft")],
    "p": [
        lambda: j.hard_exit(torch.tensor([0.5, NAN])),
        lambda: j.inference_loss(torch.ones(4, 2), torch.ones(4, 3)),
    ],
    "trade_off": [
        *(lambda v=v: j.exit_labels(torch.ones(4, 2), COSTS, v) for v in (-1, NAN, INF, True)),
        lambda: j.alternate(NET, DATA, -0.1),
        lambda: j.optimal_stopping(torch.ones(2, 3), COSTS, torch.full((1, 3, 3), 1 / 3), -1),
    ],
    "losses": [
        lambda: j.exit_labels(torch.tensor([[1.0, NAN]]), COSTS, 1),
        lambda: j.exit_labels(torch.ones(2), COSTS, 1),
        lambda: j.inference_loss(torch.tensor([[1.0, INF]]), torch.ones(1, 2)),
        lambda: j.inference_loss(torch.tensor([[1.0, -1]]), torch.ones(1, 2)),
    ],
    "costs": [
        lambda: j.exit_labels(torch.ones(4, 2), COSTS.flip(0), 1),
        lambda: j.exit_labels(torch.ones(4, 3), COSTS, 1),
        lambda: j.expected_cost(torch.ones(2, 2) / 2, torch.tensor([0.0, 1.0])),
        lambda: j.tally(Y, torch.ones(4, 2, dtype=torch.bool), torch.tensor([1.0, NAN])),
        lambda: j.at_cost([], [], 1),
        lambda: j.concave_hull([1.0, 2.0], [1.0]),
        lambda: j.concave_hull([1.0], [NAN]),
    ],
    "logits": [
        lambda: j.uncertainty(torch.zeros(4, 1)),
        lambda: j.uncertainty(torch.tensor([[0.0, NAN]])),
        lambda: j.exit_losses(LOGITS[0], Y),
        lambda: j.exit_losses(LOGITS * INF, Y),
        lambda: j.fit_temperature(LOGITS, Y),
    ],
    "y": [
        lambda: j.exit_losses(LOGITS, Y[:2]),
        lambda: j.exit_losses(LOGITS, Y + 5),
        lambda: j.exit_losses(LOGITS, Y - 1),
        lambda: j.exit_losses(LOGITS, Y.float()),
        lambda: NET.features(X, Y[:3]),
        lambda: j.brier(torch.ones(4, 5) / 5, Y + 5),
        lambda: j.fit_temperature(LOGITS[:, 0], Y - 1),
    ],
    "kind": [
        lambda: j.gate_targets(Y, 2, "all"),
        lambda: j.score(LOGITS, "max"),
        lambda: j.ThresholdPolicy(0.5, "max"),
    ],
    "statistics": [
        lambda: j.UncertaintyGate(["max"]),
        lambda: j.UncertaintyGate([]),
        lambda: j.uncertainty(LOGITS, ["max"]),
        lambda: j.uncertainty(LOGITS, []),
    ],
    "exit": [
        lambda: j.exit_bias(CONF, RIGHT, Y - 1, 2),
        lambda: j.tally(Y.float(), torch.ones(4, 2, dtype=torch.bool), COSTS),
        lambda: j.conformal_thresholds(LOGITS.softmax(-1), Y, Y + 2, 0.1),
    ],
    "weighting": [lambda: j.inference_loss(torch.ones(4, 2), torch.ones(4, 2), "soft")],
    "targets": [lambda: j.gate_loss(torch.zeros(4, 3), j.gate_targets(Y, 2))],
    "labels": [lambda: j.gate_targets(Y + 2, 2), lambda: j.positive_weights(Y + 2, 2)],
    "cap": [lambda: j.positive_weights(Y, 2, 0)],
    "totals": [lambda: j.regret(torch.ones(3))],
    # the network
    "blocks": [
        lambda: j.ExitNetwork(nn.Linear(3, 5), X),
        lambda: j.ExitNetwork(body(), X, blocks=[]),
        lambda: j.ExitNetwork(Twice(), X),
        lambda: j.ExitNetwork(body(), X, blocks=[nn.Linear(3, 3), nn.Linear(3, 3)]),
        lambda: (b := body()) and j.ExitNetwork(b, X, blocks=[b.blocks[0], b.blocks[0]]),
        order,
        lambda: (b := Twice()) and j.ExitNetwork(nn.Sequential(p := Pair(), b), X, blocks=[p, b]),
    ],
    "summary": [lambda: j.ExitNetwork(body(), X, summary=lambda z: z.mean())],
    "backbone": [lambda: j.ExitNetwork(Mixes(), X[:1]).decide(X, j.ThresholdPolicy(2))],
    "in_features": [lambda: j.ResidualMLP(0, 5)],
    "depth": [lambda: j.ResidualMLP(3, 5, depth=1.5)],
    "x": [lambda: NET(torch.zeros(4, 2)), lambda: NET(X.long()), lambda: NET.decide(X[:0])],
    "shrink": [*(lambda v=v: NET.decide(X, shrink=v) for v in (-0.1, 1.1, NAN))],
    # policies and baselines
    "threshold": [
        lambda: j.ThresholdPolicy(NAN),
        lambda: j.ThresholdPolicy([[0.5]]),
        lambda: j.threshold_exit(torch.zeros(4, 2), torch.zeros(3)),
        lambda: j.selection_bias(NAN, 1, 1),
    ],
    "scores": [
        lambda: j.threshold_exit(torch.full((4, 2), NAN), 1),
        lambda: j.quota_thresholds(torch.zeros(4), COSTS),
        lambda: j.conformal_quantile(torch.zeros(0), 0.1),
        lambda: j.conformal_quantile(torch.tensor([NAN]), 0.1),
    ],
    "patience": [
        *(lambda v=v: j.PatiencePolicy(v) for v in (0, 1.5, True)),
        lambda: j.patience_exit(Y[:, None], 0),
        lambda: j.warm_up(NET, DATA, DATA, patience=0),
    ],
    "plan": [
        lambda: j.PlanPolicy(Y - 1),
        lambda: j.PlanPolicy(Y.float()),
        lambda: NET.decide(X, j.PlanPolicy(Y[:2])),
    ],
    "ratio": [*(lambda v=v: j.geometric_quotas(3, v) for v in (0, -1, INF, NAN))],
    "quotas": [
        lambda: j.quota_thresholds(torch.zeros(4, 2), torch.ones(3)),
        lambda: j.quota_thresholds(torch.zeros(4, 2), torch.tensor([0.5, 0.5])),
        lambda: j.quota_thresholds(torch.zeros(4, 2), torch.tensor([1.5, -0.5, 0])),
    ],
    "rates": [
        lambda: j.random_exit_accuracy(COSTS, torch.tensor([0.5, 0.4])),
        lambda: j.random_exit_accuracy(COSTS, torch.ones(3) / 3),
    ],
    "cost": [*(lambda v=v: j.at_cost([1.0, 2.0], [1.0, 2.0], v) for v in (0.5, 2.5, NAN))],
    # training
    "epochs": [lambda: j.warm_up(NET, DATA, DATA, epochs=0), lambda: j.alternate(NET, DATA, 1, epochs=1.5)],
    "period": [lambda: j.alternate(NET, DATA, 1, period=0)],
    "batch_size": [
        lambda: j.alternate(NET, DATA, 1, batch_size=0),
        lambda: j.warm_up(NET, DATA, DATA, batch_size=-1),
    ],
    "phases": [lambda: j.alternate(NET, DATA, 1, phases=()), lambda: j.alternate(NET, DATA, 1, phases=("both",))],
    "learning_rate": [
        lambda: j.warm_up(NET, DATA, DATA, learning_rate=0),
        lambda: j.alternate(NET, DATA, 1, learning_rate=NAN),
        lambda: j.warm_up(copy.deepcopy(NET), DATA, DATA, epochs=60, learning_rate=1e38),  # a loss that overflows
    ],
    "weight_decay": [lambda: j.alternate(NET, DATA, 1, weight_decay=-1)],
    "train": [lambda: j.warm_up(NET, DATA.take(Y > 0), DATA), lambda: j.alternate(NET, NAN_DATA, 1)],
    "validation": [lambda: j.warm_up(NET, DATA, NAN_DATA)],
    "held_out": [lambda: j.alternate(NET, DATA, 1, held_out=DATA.take(Y > 0))],
    # calibration
    "confidence": [
        lambda: j.calibration_error(CONF + 1, RIGHT),
        lambda: j.calibration_error(CONF * NAN, RIGHT),
        lambda: j.reliability(CONF[:0], RIGHT[:0]),
        lambda: j.exit_bias(-CONF, RIGHT, Y, 2),
    ],
    "correct": [lambda: j.reliability(CONF, RIGHT[:2]), lambda: j.reliability(CONF, RIGHT.float())],
    "bins": [
        lambda: j.calibration_error(CONF, RIGHT, 0),
        lambda: j.calibration_error(CONF, RIGHT, 3, debiased=True),
    ],
    "alpha": [*(lambda v=v: j.conformal_quantile(CONF, v) for v in (-0.1, 1.1, NAN))],
    "variant": [lambda: j.conformal_thresholds(LOGITS.softmax(-1), Y, Y, 0.1, "all")],
    "probabilities": [
        lambda: j.conformal_thresholds(LOGITS[0], Y, Y, 0.1),
        lambda: j.conformal_sets(LOGITS * NAN, CONF),
        lambda: j.brier(LOGITS, Y),
    ],
    "thresholds": [
        lambda: j.conformal_sets(LOGITS[:, 0], CONF[:2]),
        lambda: j.conformal_sets(LOGITS[:, 0], CONF * NAN),
    ],
    # small worlds
    "transitions": [
        lambda: j.optimal_stopping(torch.ones(2, 3), COSTS, torch.ones(1, 3, 3), 1),
        lambda: j.optimal_stopping(torch.ones(2, 3), COSTS, torch.ones(2, 3, 3) / 3, 1),
    ],
    "accuracy": [lambda: j.calibrated_two_exits(1.1, 0.1)],
    "price": [lambda: j.calibrated_two_exits(0.9, -0.1)],
    "shares": [lambda: j.accuracy_when_continuing([0.5, 0.4], [0, 0], [1, 1], 0.5)],
    "budget": [lambda: j.accuracy_when_continuing([1], [0], [1], 1.5)],
    "order": [lambda: j.accuracy_when_continuing([1], [0], [1], 0.5, "first")],
    "noise": [lambda: j.selection_bias(1, 1, 0)],
    "spread": [lambda: j.selection_bias(1, -1, 1)],
    "n": [lambda: j.expected_maximum(0)],
    "samples": [lambda: j.beta_bernoulli_chain(0, 3, torch.Generator())],
    "flips": [lambda: j.beta_bernoulli_chain(3, 0, torch.Generator())],
}


@pytest.mark.parametrize("name", CASES)
def test_names_the_argument(name):
    for case in CASES[name]:
        with pytest.raises(ValueError, match=rf"^{name}\b.* (must|suit|stands)"):
            case()


def test_a_head_that_has_overflowed_is_seen_at_once():
    with pytest.raises(ValueError, match=r"^logits must be finite"):
        spoiled().decide(X + 1)
    with pytest.raises(ValueError, match=r"^logits must be finite"):
        j.alternate(spoiled(), DATA, 1)


def test_no_hook_is_left_after_an_error():
    network = net()
    with pytest.raises(ValueError):
        network.decide(X, j.PlanPolicy(Y[:2]))
    assert all(not block._forward_hooks for block in network.backbone.blocks)
