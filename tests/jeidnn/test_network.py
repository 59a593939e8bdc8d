"""Exits on backbones by hooks: the same answers with and without compaction, and costs counted twice."""

import copy
import math

import pytest
import torch
from torch import nn

from gated import backbones
from gated import jeidnn as j
from gated.jeidnn.baselines import patience_exit, threshold_exit
from gated.jeidnn.policies import Policy

D = torch.float64


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


class Loose(nn.Module):
    """A user's model that has no `features` and names nothing as ours do; its blocks sit in a Sequential."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(1, 12, 4, 4)
        self.cls = nn.Parameter(torch.randn(1, 1, 12))
        self.layers = nn.Sequential(*(nn.TransformerEncoderLayer(12, 2, 16, 0.1, batch_first=True) for _ in range(3)))
        self.fc_norm, self.fc = nn.LayerNorm(12), nn.Linear(12, 5)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = self.layers(torch.cat([self.cls.expand(len(x), -1, -1), x], 1))
        return self.fc(self.fc_norm(x[:, 0]))


def network(kind, n=40, dtype=D, **more):
    torch.manual_seed(0)
    if kind == "mlp":
        body, x = j.ResidualMLP(7, 5, dim=8, depth=5), torch.randn(n, 7, generator=rng())
    elif kind == "vit":
        body = backbones.ViT(image_size=8, patch_size=4, in_channels=1, num_classes=5, dim=8, depth=4, heads=2)
        x = torch.randn(n, 1, 8, 8, generator=rng())
    elif kind == "cnn":
        body = backbones.ResNet((2, 2), (4, 8), in_channels=1, num_classes=5)
        x = torch.randn(n, 1, 8, 8, generator=rng())
    else:
        body, x = Loose(), torch.randn(n, 1, 8, 8, generator=rng())
        more = {"blocks": list(body.layers), "summary": lambda z: body.fc_norm(z[:, 0])} | more
    body, x = body.to(dtype), x.to(dtype)
    out = j.ExitNetwork(body, x[:1], **more)
    for head in out.heads:
        nn.init.normal_(head.weight, std=2, generator=rng(9))
    with torch.no_grad():  # three in ten of the samples have g > 1/2 at each gate
        features = out.features(x, torch.zeros(n, dtype=torch.int64))
        logits = out.exit_logits(features)
        for l, gate in enumerate(out.gates):
            nn.init.normal_(gate.linear.weight, std=20 if kind == "cnn" else 6, generator=rng(l))
            nn.init.zeros_(gate.linear.bias)
            nn.init.constant_(gate.linear.bias, -float(gate(logits[:, l], features.z[l]).quantile(0.7)))
    return out, x


KINDS = ["mlp", "vit", "cnn", "loose"]


@pytest.mark.parametrize("kind", KINDS)
def test_features_and_last_exit_are_the_backbone_s(kind):
    net, x = network(kind)
    logits = net(x)
    assert logits.shape == (40, net.exits, 5)
    assert torch.equal(logits[:, -1], net.backbone(x))
    features = net.features(x, torch.zeros(40, dtype=torch.int64))
    if kind != "loose":
        for z, own in zip(features.z, list(net.backbone.features(x))[:-1], strict=True):
            expected = own.mean((2, 3)) if kind == "cnn" else net.backbone.summary(own)
            assert torch.equal(z, expected)
    for l, (head, z) in enumerate(zip(net.heads, features.z, strict=True)):
        assert torch.allclose(logits[:, l], head(z))
    some = features.take(slice(3, 9))
    assert len(some) == 6 and torch.equal(some.last, features.last[3:9])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("composition", ["clip", "stick", "cdf"])
def test_compaction_is_masked_evaluation(kind, composition):
    net, x = network(kind)
    logits = net(x)
    p = j.exit_distribution(net.gate_logits(net.features(x, torch.zeros(40).long()), logits).sigmoid(), composition)
    for rule in ("conditional", "median"):
        exits = j.hard_exit(p, rule)
        assert len(exits.unique()) > 2  # the test would be empty if all went one way
        answers = [net.decide(x, j.GatePolicy(net.gates, composition, rule), shrink=s) for s in (1, 0.5, 0)]
        for answer in answers:
            assert torch.equal(answer.exit, exits)
            assert torch.allclose(answer.logits, logits[torch.arange(40), exits], atol=1e-10)
        still = [int((exits >= l).sum()) for l in range(net.exits)]
        assert answers[0].rows == [n for n in still if n]
        assert answers[2].rows == [40] * net.exits
        assert all(a <= b for a, b in zip(answers[0].rows, answers[1].rows, strict=False))
        assert all(2 * n >= rows for n, rows in zip(still, answers[1].rows, strict=False))


def test_single_precision_differs_by_rounding_only():
    net, x = network("mlp", 400, torch.float32)
    compact, masked = net.decide(x), net.decide(x, shrink=0)
    with torch.no_grad():
        p = j.exit_distribution(net.gate_logits(net.features(x, torch.zeros(400).long()), net(x)).sigmoid())
    tie = (2 * p - j.remaining_mass(p)).abs() < 1e-5
    near = (tie & (torch.arange(net.exits) <= masked.exit[:, None]))[:, :-1].any(1)  # these alone may go either way
    assert near.sum() < 4
    assert torch.equal(compact.exit[~near], masked.exit[~near])
    assert torch.allclose(compact.logits[~near], masked.logits[~near], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_all_shut_and_first_open(kind):
    net, x = network(kind)
    for gate in net.gates:
        nn.init.zeros_(gate.linear.weight)
        nn.init.constant_(gate.linear.bias, -50)
    answer = net.decide(x)
    assert (answer.exit == net.exits - 1).all() and answer.rows == [40] * net.exits
    assert torch.equal(answer.logits, net.backbone(x))
    nn.init.constant_(net.gates[0].linear.bias, 50)
    answer = net.decide(x)
    assert (answer.exit == 0).all() and answer.rows == [40]
    assert float(net.costs[answer.exit].mean()) == pytest.approx(net.macs[0] / net.macs[-1])


def test_every_policy_stops_where_its_rule_says():
    net, x = network("mlp")
    with torch.no_grad():
        logits = net(x)
    plan = torch.randint(net.exits, (40,), generator=rng(5))
    cases = [(j.PlanPolicy(plan), plan)]
    for kind, threshold in (("confidence", 0.8), ("entropy", -0.5), ("margin", 0.6)):
        rule = threshold_exit(j.score(logits, kind)[:, :-1], threshold)
        cases.append((j.ThresholdPolicy(threshold, kind), rule))
    each = [0.9, 0.8, 0.7, 0.6]
    rule = threshold_exit(j.score(logits)[:, :-1], torch.tensor(each).double())
    cases.append((j.ThresholdPolicy(each), rule))
    for patience in (1, 2, 3):
        cases.append((j.PatiencePolicy(patience), patience_exit(logits.argmax(-1), patience)))
    for policy, exits in cases:
        assert isinstance(policy, Policy)
        for shrink in (1, 0.5, 0):
            answer = net.decide(x, policy, shrink=shrink)
            assert torch.equal(answer.exit, exits)
            assert torch.allclose(answer.logits, logits[torch.arange(40), exits])


@pytest.mark.parametrize("shrink", [1, 0.5, 0.2, 0])
def test_exits_that_nobody_takes(shrink):
    net, x = network("vit")
    logits = net(x)
    for plan in ([3] * 40, [0] + [3] * 39, [0, 2] * 20, [2] * 39 + [0], [1] * 40):
        exits = torch.tensor(plan)
        answer = net.decide(x, j.PlanPolicy(exits), shrink=shrink)
        assert torch.equal(answer.exit, exits)
        assert torch.allclose(answer.logits, logits[torch.arange(40), exits])


def test_the_batch_does_not_matter():
    net, x = network("vit")
    whole = net.decide(x)
    for rows in (slice(0, 1), slice(5, 17)):
        part = net.decide(x[rows])
        assert torch.equal(part.exit, whole.exit[rows]) and torch.allclose(part.logits, whole.logits[rows])


def test_an_early_stop_runs_no_later_block():
    net, x = network("mlp")
    ran = []
    for i, block in enumerate(net.backbone.blocks):
        block.register_forward_hook(lambda m, a, z, i=i: ran.append(i))
    net.decide(x, j.PlanPolicy(torch.tensor([0, 1] * 20)))
    assert ran == [0, 1]


def test_no_hook_is_left_and_the_mode_comes_back():
    net, x = network("cnn")
    net.decide(x)
    net.decide(x, j.PlanPolicy(torch.zeros(40, dtype=torch.int64)))
    assert all(not block._forward_hooks for block in net.backbone.blocks)
    assert net.training and net.heads.training and not net.backbone.training


def test_frozen_backbone_stays_as_it_was():
    net, x = network("loose")
    net.train()
    assert torch.equal(net(x), net(x))  # dropout is off
    before = {k: v.clone() for k, v in network("cnn")[0].backbone.state_dict().items()}
    net, x = network("cnn")
    net(x).sum().backward()
    assert all(torch.equal(v, before[k]) for k, v in net.backbone.state_dict().items())
    assert all(p.grad is None for p in net.backbone.parameters())
    assert all(p.grad is not None for p in net.heads.parameters())


def test_open_backbone_learns():
    net, x = network("cnn", frozen=False)
    j.joint_loss(net, x, torch.zeros(40, dtype=torch.int64)).backward()
    assert all(p.grad is not None and (p.grad != 0).any() for p in net.backbone.parameters())


def test_copies_stand_alone():
    net, x = network("mlp")
    other = copy.deepcopy(net)
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
    assert not torch.equal(other(x), net(x)) and other(x).abs().sum() > 0


# Gates -------------------------------------------------------------------------------------------------------------


def test_statistics_at_their_ends():
    for k in (2, 3, 10):
        log = torch.log(torch.tensor(float(k)))
        uniform = j.uncertainty(torch.zeros(1, k, dtype=D))[0]
        assert uniform.tolist() == pytest.approx([1 / k, float(log), 0, float(log)])
        one_hot = torch.full((1, k), -1e4, dtype=D)
        one_hot[0, 1] = 0
        assert j.uncertainty(one_hot)[0].tolist() == [1, 0, 1, 0]


def test_statistics_by_definition():
    logits = torch.randn(30, 6, generator=rng(), dtype=D)
    u = j.uncertainty(logits)
    for row, (top, spread, margin, squared) in zip(logits.softmax(1).tolist(), u.tolist(), strict=True):
        h = torch.distributions.Categorical(torch.tensor(row)).entropy()
        q = [p * p for p in row]
        h2 = torch.distributions.Categorical(torch.tensor(q)).entropy()
        first, second = sorted(row)[::-1][:2]
        assert [top, spread, margin, squared] == pytest.approx([first, float(h), first - second, float(h2)], rel=1e-5)
    two = j.uncertainty(logits[:, :2])
    assert torch.allclose(two[:, 2], 2 * two[:, 0] - 1)


@pytest.mark.parametrize("dtype", [D, torch.float32, torch.float16])
def test_statistics_one_by_one_are_the_columns_of_all(dtype):
    logits = (4 * torch.randn(30, 6, generator=rng(), dtype=D)).to(dtype)
    names = ["confidence", "entropy", "margin", "squared entropy"]
    u = j.uncertainty(logits)
    for some in ([n] for n in names):
        assert torch.equal(j.uncertainty(logits, some)[:, 0], u[:, names.index(some[0])])
    assert torch.equal(j.uncertainty(logits, names[::-1]), u.flip(1))
    for kind, sign in (("confidence", 1), ("entropy", -1), ("margin", 1)):
        assert torch.equal(j.score(logits, kind), sign * u[:, names.index(kind)])


def test_large_logits_are_finite_though_their_sum_is_not():
    for dtype, big in ((torch.float16, 6e4), (torch.float32, 1.2e38)):
        logits = torch.tensor([[big, 0.0, big], [big, 0.0, 0.0]], dtype=dtype)
        assert torch.isfinite(logits).all() and torch.isinf(logits.sum())
        assert j.uncertainty(logits)[1].tolist() == [1, 0, 1, 0]
    opposite = torch.tensor([[math.inf, -math.inf, 0.0]])
    with pytest.raises(ValueError, match="logits must be finite"):
        j.uncertainty(opposite)


def test_gate_has_five_parameters_and_passes_no_gradient_on():
    gate = j.UncertaintyGate().double()
    assert sum(p.numel() for p in gate.parameters()) == 5
    logits = torch.randn(4, 6, generator=rng(), dtype=D).requires_grad_()
    z = torch.randn(4, 3, generator=rng(), dtype=D).requires_grad_()
    out = gate(logits, z)
    assert torch.allclose(out, j.uncertainty(logits) @ gate.linear.weight[0] + gate.linear.bias)
    out.sum().backward()
    assert logits.grad is None and z.grad is None and gate.linear.weight.grad is not None


@pytest.mark.parametrize(
    ("names", "layer"), [(["margin"], 0), (["entropy", "confidence"], 0), ([], 3), (["margin"], 3)]
)
def test_gate_sees_what_it_is_told_to(names, layer):
    gate = j.UncertaintyGate(names, layer).double()
    logits, z = torch.randn(4, 6, generator=rng(), dtype=D), torch.randn(4, 3, generator=rng(1), dtype=D)
    u = j.uncertainty(logits)
    columns = [u[:, ["confidence", "entropy", "margin", "squared entropy"].index(n)] for n in names]
    seen = torch.stack([*columns, *(z.unbind(1) if layer else [])], 1)
    assert torch.allclose(gate(logits, z), seen @ gate.linear.weight[0] + gate.linear.bias)


# Costs -------------------------------------------------------------------------------------------------------------


def test_mlp_costs_in_closed_form():
    width, hidden, classes, into = 8, 16, 5, 7
    net, _ = network("mlp")
    step = 2 * width * hidden + width * classes + 4
    expected = [into * width + l * step for l in range(1, 5)]
    expected.append(expected[-1] + 2 * width * hidden + width * classes)
    assert net.macs == expected
    assert torch.equal(net.costs, torch.tensor(expected).double() / expected[-1])


def test_transformer_costs_in_closed_form():
    net, _ = network("vit")
    tokens = net.backbone.embed.tokens
    steps = torch.tensor(net.macs).diff().tolist()
    assert steps[:-1] == [j.transformer_exit_macs(tokens, 8, 5)] * 2
    assert steps[-1] == j.transformer_exit_macs(tokens, 8, 5) - 4  # no gate at the end


def test_costs_are_those_of_one_row():
    assert network("cnn", 1)[0].macs == network("cnn", 6)[0].macs


PUBLISHED = [  # tokens, width, classes, MLP ratio, released count a step in millions, true block in millions
    ("CIFAR-10, T2T-ViT-7", 197, 256, 10, 2, 1.3097, 123.2),
    ("CIFAR-100, T2T-ViT-14", 197, 384, 100, 3, 2.9910, 320.3),
    ("SVHN, T2T-ViT-7", 5, 256, 10, 2, 0.5478, None),
]


@pytest.mark.parametrize(("tokens", "dim", "classes", "ratio", "counted", "true"), [row[1:] for row in PUBLISHED])
def test_the_released_count(tokens, dim, classes, ratio, counted, true):
    assert j.released_exit_count(tokens, dim, classes, ratio) / 1e6 == pytest.approx(counted, abs=5e-5)
    block = backbones.TransformerBlock(dim, 4 if dim == 256 else 6, ratio * dim)
    by_hook = backbones.macs(block, torch.zeros(1, tokens, dim))
    assert by_hook == j.transformer_exit_macs(tokens, dim, classes, ratio) - dim * classes - 4
    if true is not None:
        assert by_hook / 1e6 == pytest.approx(true, abs=0.05)


def test_the_released_count_of_the_paper_s_curve():
    """Published costs of CIFAR-10 lie on stem + step (l - 1), and the stem is most of the first exit in that count."""
    assert j.released_exit_count(197, 256, 10) == 1_309_674
    full = 5.534e6 + 6 * j.released_exit_count(197, 256, 10)
    assert full / 1e6 == pytest.approx(13.39, abs=0.005)
    stem = 5.534e6 - j.released_exit_count(197, 256, 10)
    assert stem / 5.534e6 == pytest.approx(0.76, abs=0.005) and stem / full == pytest.approx(0.32, abs=0.005)
    assert j.transformer_exit_macs(197, 256, 10) / j.released_exit_count(197, 256, 10) == pytest.approx(94, abs=0.1)
    ratio = j.transformer_exit_macs(197, 384, 100, 3) / j.released_exit_count(197, 384, 100, 3)
    assert ratio == pytest.approx(107.1, abs=0.05)
