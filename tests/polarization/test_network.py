"""The gated network and the plain one that is cut from it."""

import itertools

import pytest
import torch
from torch import nn

from gated.backbones import ResidualBlock, ResNet, Shortcut, macs
from gated.polarization import (
    FreeGate,
    GatedResNet,
    InputGate,
    Shift,
    audit,
    costs,
    gate_macs,
    prune,
    slice_blocks,
    slice_channels,
)


def resnet(blocks=(4, 4, 4), widths=(8, 16, 32), seed=0, classes=10) -> ResNet:
    """With norms that have seen data, so that nothing is equal by chance."""
    torch.manual_seed(seed)
    net = ResNet(blocks, widths, in_channels=1, num_classes=classes)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.bias, std=0.3)
            m.running_mean.normal_(std=0.3)
            m.running_var.uniform_(0.5, 2)
    return net.eval()


def images(number=6, size=14, seed=1) -> torch.Tensor:
    return torch.randn(number, 1, size, size, generator=torch.Generator().manual_seed(seed))


def constant(model: GatedResNet, pattern) -> GatedResNet:
    """Gates that say the pattern for every input, with the modules in place."""
    for gate, bits in zip(model.gates, torch.tensor(pattern).view(len(model.gates), -1), strict=True):
        if isinstance(gate, InputGate):
            gate.decide.bias.data = torch.where(bits, 5.0, -5.0)
        else:
            gate.logits.data = torch.where(bits, 5.0, -5.0)
    return model


def split(model: GatedResNet, level: float, gates) -> GatedResNet:
    """The chosen gates open for bright stems only."""
    for i in gates:
        gate = model.gates[i]
        gate.squeeze.weight.data.fill_(1.0)
        gate.squeeze.bias.data.zero_()
        gate.decide.weight.data.fill_(1.0)
        gate.decide.bias.data.fill_(-level)
    return model


PATTERN = [True, False, True, True, False, True, False, True, True, True, False, True]


@pytest.mark.parametrize("source", ["input", "free"])
@pytest.mark.parametrize("pattern", [PATTERN, [True] * 12, [False] * 12, [False] * 4 + [True] * 8])
def test_pruned_blocks_answer_bit_for_bit(source, pattern):
    model, x = constant(GatedResNet(resnet(), source=source).eval(), pattern), images()
    with torch.no_grad():
        output = model(x)
        net, report = prune(model, [x])
        assert output.gates.unique().tolist() in ([0.0, 1.0], [0.0], [1.0])
        assert torch.equal(net(x), output.logits)
        assert report.path_dissent == report.bound == 0 and report.inputs == 6
        assert report.majority.tolist() == pattern
        model.freeze(report.majority)
        frozen = model(x)
        assert torch.equal(frozen.logits, output.logits) and torch.equal(frozen.gates, output.gates)
        assert torch.equal(model.skip(x), output.logits)
    assert not any(isinstance(m, InputGate | FreeGate | GatedResNet) for m in net.modules())
    assert len(net.blocks) == sum(pattern) + sum(not pattern[i] for i in (4, 8))


def test_open_gates_are_the_plain_network():
    net, x = resnet(), images()
    model = constant(GatedResNet(net), [True] * 12).eval()
    with torch.no_grad():
        assert torch.equal(model(x).logits, net(x))


def test_shut_gates_leave_stem_shortcuts_and_head():
    net, x = resnet(), images()
    with torch.no_grad():
        y = net.stem(x)
        y = nn.functional.pad(y[:, :, ::2, ::2], (0, 0, 0, 0, 0, 8))
        y = nn.functional.pad(y[:, :, ::2, ::2], (0, 0, 0, 0, 0, 16))
        pruned = prune(constant(GatedResNet(net), [False] * 12), [x]).net
        assert torch.equal(pruned(x), net.head(y))
    assert [type(block) for block in pruned.blocks] == [Shortcut, Shortcut]
    one = GatedResNet(resnet((1,), (8,)))  # a single block
    assert len(prune(constant(one, [False]), [x]).net.blocks) == 0


def test_nothing_is_left_of_what_was_pruned():
    model = constant(GatedResNet(resnet()), ([True] * 2 + [False] * 2) * 3)
    net, built = prune(model, [images()]).net, resnet((2, 2, 2), seed=5)
    assert str(net) == str(built) and net.state_dict().keys() == built.state_dict().keys()
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._buffers.get("frozen") for m in net.modules())
    built.load_state_dict(net.state_dict())
    with torch.no_grad():
        assert torch.equal(net(images()), built(images()))


def test_a_shortcut_that_only_adds_channels_stays():
    net, x = resnet((2,), (8,)), images()
    net.stem, net.blocks[0] = resnet((1,), (4,)).stem, ResidualBlock(4, 8).eval()
    model = constant(GatedResNet(net), [False, True]).eval()
    pruned = prune(model, [x]).net
    assert [type(block) for block in pruned.blocks] == [Shortcut, ResidualBlock]
    with torch.no_grad():
        assert torch.equal(pruned(x), model(x).logits)


def test_prune_copies_and_restores_the_mode():
    model, x = constant(GatedResNet(resnet()), PATTERN), images()
    model.train()
    model.net.stem.eval()
    net = prune(model, [x, (x, torch.zeros(6, dtype=torch.long))][:1]).net
    assert model.training and model.net.blocks[0].training and not model.net.stem.training
    assert not any(m.training for m in net.modules())
    before = model.net.blocks[0].branch[0].weight.clone()
    net.blocks[0].branch[0].weight.data.zero_()
    assert torch.equal(model.net.blocks[0].branch[0].weight, before)


@pytest.mark.parametrize("groups", [2, 4, 8])
def test_pruned_channels_answer_up_to_rounding(groups):
    generator = torch.Generator().manual_seed(groups)
    pattern = torch.rand(12 * groups, generator=generator) > 0.4
    pattern[:groups] = False  # a block without inner channels
    pattern[groups : 2 * groups] = True
    model, x = constant(GatedResNet(resnet(), groups=groups), pattern.tolist()).eval(), images()
    with torch.no_grad():
        net, report = prune(model, [x])
        full = model(x)
        assert torch.equal(report.majority, pattern) and full.gates.shape == (6, 12 * groups)
        assert (net(x) - full.logits).abs().max() < 1e-5
        model.freeze(pattern)
        assert torch.equal(model(x).logits, full.logits)
    assert isinstance(net.blocks[0], Shift)
    for block, bits in zip(net.blocks[1:], pattern.view(12, groups)[1:], strict=True):
        if bits.any():
            width = block.branch[3].out_channels * int(bits.sum()) // groups
            assert block.branch[0].out_channels == block.branch[3].in_channels == block.branch[1].num_features == width


def test_sliced_channels_can_be_trained_on():
    net = slice_channels(resnet((2,), (8,)), [[True, False], [False, False]]).train()
    net(images()).sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    costs_after = costs(net, 14, 14)
    assert costs_after.total_macs == macs(net, images(1)) and costs_after.macs == (9 * 8 * 4 * 2 * 196, 0)
    assert costs_after.total_parameters == sum(p.numel() for p in net.parameters())


def test_a_gate_before_the_norm_would_still_speak():
    """Why the channel gate stands behind norm and ReLU."""
    norm = resnet().blocks[0].branch[1]
    with torch.no_grad():
        said = norm(torch.zeros(1, 8, 4, 4))[0, :, 0, 0]
    exact = norm.bias - norm.running_mean * norm.weight / (norm.running_var + norm.eps).sqrt()
    assert torch.allclose(said, exact, atol=1e-6) and said.abs().max() > 0.1


# Without consensus ---------------------------------------------------------------------------------------------------


def test_an_audit_counts_what_each_gate_says():
    model, x = GatedResNet(resnet()), images(200)
    level = 16 * model.eval().net.stem(x).mean((2, 3)).sum(1).quantile(0.1).item()
    split(model, level, [0, 2])
    y = torch.arange(200) % 3
    with torch.no_grad():
        gates = model(x).gates
    report = audit(model, [(x[:70], y[:70]), (x[70:], y[70:]), (x[:0], y[:0])])
    assert torch.equal(report.open_share, gates.double().mean(0)) and report.inputs == 200
    assert report.dissent[0] == pytest.approx(0.1) and report.dissent[1] == 0 and report.unseen is None
    majority = [round(gates[:, i].mean().item()) for i in range(12)]
    paths = [row.tolist() == majority for row in gates]
    assert report.path_dissent == pytest.approx(1 - sum(paths) / 200)
    assert 0 < report.path_dissent <= report.bound
    for c in range(3):
        assert torch.allclose(report.open_by_class[c], gates[y == c].double().mean(0))
    assert report.open_by_class[3:].isnan().all()


@pytest.mark.parametrize("seed", range(4))
def test_slicing_without_consensus_changes_no_more_than_the_bound(seed):
    model, x = GatedResNet(resnet(seed=seed)).eval(), images(150, seed=seed)
    for i in (0, 1, 3):
        with torch.no_grad():
            sums = [model.net.stem(x), *model.net.features(x)][i].mean((2, 3)).sum(1)
        split(model, 16 * sums.quantile(0.15).item(), [i])
    report = audit(model, [x])
    assert report.bound > 0
    with pytest.raises(ValueError, match="no consensus"):
        prune(model, [x])
    net = prune(model, [x], max_dissent=report.bound).net
    with torch.no_grad():
        output, sliced = model(x), net(x)
    agree = (output.gates.bool() == report.majority).all(1)
    assert torch.allclose(sliced[agree], output.logits[agree], atol=1e-5)
    different = (sliced - output.logits).abs().amax(1) > 1e-4
    changed = (sliced.argmax(1) != output.logits.argmax(1)).double().mean()
    assert different.any() and changed <= different.double().mean() <= report.path_dissent <= report.bound
    y = torch.randint(10, (150,), generator=torch.Generator().manual_seed(seed))
    gap = (sliced.argmax(1) == y).double().mean() - (output.logits.argmax(1) == y).double().mean()
    assert abs(gap) <= report.dissent.sum()


def test_zero_dissent_among_few_leaves_room():
    model = constant(GatedResNet(resnet()), PATTERN)
    for n in (10, 60):
        unseen = audit(model, [images(n)]).unseen
        assert (1 - unseen) ** n == pytest.approx(0.05) and unseen <= 3 / n


def test_consensus_of_a_sorted_batch_is_not_that_of_all():
    model, x = GatedResNet(resnet()), images(100)
    light = model.eval().net.stem(x).mean((2, 3)).sum(1)
    split(model, 16 * light.quantile(0.5).item(), [0])
    report = audit(model, [x])
    assert report.dissent[0] == 0.5 and report.majority[0]  # an even split counts as open
    dark = x[light < light.quantile(0.5)]
    assert audit(model, [dark]).bound == 0 and audit(model, [x]).bound > 0.4


# Skipping ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 7])
def test_skipping_answers_like_the_dense_form(batch):
    model, x = GatedResNet(resnet()).double().eval(), images(56).double()
    for i in range(0, 12, 2):
        with torch.no_grad():
            sums = [model.net.stem(x), *model.net.features(x)][i].mean((2, 3)).sum(1)
        split(model, 16 * sums.quantile(0.5).item(), [i])
    with torch.no_grad():
        dense = model(x)
        assert 0.1 < dense.gates[:, ::2].mean() < 0.9
        skipped = torch.cat([model.skip(part) for part in x.split(batch)])
    assert torch.allclose(skipped, dense.logits, atol=1e-10)


# Gradients of the gates ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["input", "free"])
@pytest.mark.parametrize("groups", [None, 4])
@pytest.mark.parametrize("drawn", [False, True])
def test_gates_are_binary_and_get_the_estimators_gradient(source, groups, drawn):
    model, x = GatedResNet(resnet(), groups=groups, source=source, bias=0.3).train(), images()
    generator = torch.Generator().manual_seed(0) if drawn else None
    output = model(x, generator, 0.7)
    assert set(output.gates.unique().tolist()) <= {0.0, 1.0} and output.gates.shape == (6, model.num_gates)
    if drawn:
        assert 0.4 < output.gates.mean() < 0.9
    output.logits.square().sum().backward()
    for gate in model.gates:
        grads = [p.grad for p in gate.parameters()]
        assert all(g is not None for g in grads) and any(g.abs().sum() > 0 for g in grads)
    again = model.eval()(x, torch.Generator().manual_seed(5))  # evaluation does not draw
    assert torch.equal(again.gates, model(x).gates) and again.gates.min() == 1


def test_slope_of_a_gate_is_what_its_branch_adds():
    model, x = GatedResNet(resnet((1,), (8,)), source="free", bias=0.4), images()
    model(x).logits[:, 2].sum().backward()
    with torch.no_grad():
        h = model.net.stem(x)
        branch = model.net.blocks[0].branch(h)
        active = (h + branch > 0) * branch
        p = torch.tensor(0.4).sigmoid()
        slope = (active.mean((2, 3)) @ model.net.head[-1].weight[2]).sum() * p * (1 - p)
    assert torch.allclose(model.gates[0].logits.grad, slope, rtol=1e-4)


def test_a_shut_block_gets_no_gradient_and_its_gate_does():
    model = constant(GatedResNet(resnet(), source="free"), PATTERN)
    model(images()).logits.square().sum().backward()
    shut, gate = model.net.blocks[1].branch, model.gates[1]
    assert all(p.grad.abs().max() == 0 for p in shut.parameters()) and gate.logits.grad.abs() > 0
    model.zero_grad()
    model.freeze(torch.tensor(PATTERN))
    model(images()).logits.square().sum().backward()
    assert all(p.grad is None for p in [*shut.parameters(), *gate.parameters()])


def test_gates_start_open_and_in_agreement():
    model = GatedResNet(resnet(), groups=4)
    p = model(images()).probability
    assert p.mean().item() == pytest.approx(0.870, abs=2e-3) and p.std(0).max() < 1e-2


def test_other_image_sizes_and_dtypes():
    model = GatedResNet(resnet()).double()
    output = model(images(2, 9).double())
    assert output.logits.shape == (2, 10) and output.gates.dtype == torch.float64


# Costs ---------------------------------------------------------------------------------------------------------------


def cifar(n: int) -> ResNet:
    return ResNet((n, n, n), (16, 32, 64), in_channels=3, num_classes=10)


@pytest.mark.parametrize(
    ("n", "first", "number", "parameters", "operations"),
    [(18, 37, 12, 51.4, 22.4), (18, 0, 12, 3.2, 22.4), (9, 19, 6, 52.0, 22.6)],
)
def test_half_of_the_parameters_is_a_fifth_of_the_macs(n, first, number, parameters, operations):
    net = cifar(n)
    keep = [not first <= i < first + number for i in range(3 * n)]
    full, left = costs(net, 32, 32), costs(slice_blocks(net, keep), 32, 32)
    assert 100 * (1 - left.total_parameters / full.total_parameters) == pytest.approx(parameters, abs=0.05)
    assert 100 * (1 - left.total_macs / full.total_macs) == pytest.approx(operations, abs=0.05)


@pytest.mark.parametrize("size", [(32, 32), (14, 14), (15, 9)])
def test_costs_in_closed_form_are_what_a_counter_counts(size):
    net = cifar(3)
    for keep in ([True] * 9, [False] * 9, [True, False, False] * 3, [False, False, True] * 3):
        sliced = slice_blocks(net, keep)
        counted = costs(sliced, *size)
        assert counted.total_macs == macs(sliced, torch.zeros(1, 3, *size))
        assert counted.total_parameters == sum(p.numel() for p in sliced.parameters())
    full = costs(net, 32, 32)
    assert set(full.macs) == {4_718_592, 3_538_944} and full.total_macs == 40_551_040
    assert [full.parameters[i] for i in (0, 4, 7)] == [4_672, 18_560, 73_984]


def test_cost_of_gates():
    model = GatedResNet(resnet((1,), (32,)))
    assert gate_macs(model) == 528 == macs(model.gates[0], torch.zeros(1, 32, 4, 4))
    assert gate_macs(GatedResNet(resnet(), source="free")) == 0
    grouped = GatedResNet(resnet(), groups=4)
    size = costs(grouped.net, 14, 14)
    per_gate = size.per_gate(grouped)
    assert len(per_gate) == 48 and per_gate.sum().item() == sum(size.macs)
    assert macs(grouped, images(1)) == size.total_macs + gate_macs(grouped)
    assert gate_macs(GatedResNet(resnet())) / size.total_macs < 1.8e-3
    one_less = slice_channels(grouped.net, [[False, True, True, True]] + [[True] * 4] * 11)
    assert size.total_macs - costs(one_less, 14, 14).total_macs == per_gate[0].item()


# Leaving PyTorch's eager mode ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [None, 4])
def test_a_pruned_network_can_be_exported(groups):
    pattern = PATTERN if groups is None else list(itertools.chain(*([k, True, k, k] for k in PATTERN)))
    net = prune(constant(GatedResNet(resnet(), groups=groups), pattern), [images()]).net.eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(net, (images(4),), dynamic_shapes={"x": {0: batch}})
    for number in (1, 3, 9):
        x = images(number)
        assert torch.allclose(program.module()(x), net(x), atol=1e-5)
    names = {str(node.target) for node in program.graph.nodes}
    assert not any("sigmoid" in name or "mul" in name for name in names), names
