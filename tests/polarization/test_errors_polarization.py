"""What the polarization module says about arguments that do not fit."""

import pytest
import torch
from torch import nn

from gated.backbones import ResNet
from gated.polarization import (
    GatedResNet,
    activation_loss,
    audit,
    costs,
    decomposition,
    evaluate,
    freeze_pattern,
    one_pass,
    polarization_loss,
    prune,
    slice_blocks,
    slice_channels,
    target_rate_loss,
    train_step,
)
from gated.polarization.theory import (
    dissent_from_polarization,
    exact_gradient,
    gate_flow,
    straight_through_gradient,
    unstable_share,
)


def net(channels: int = 1) -> ResNet:
    torch.manual_seed(0)
    return ResNet((1, 1), (4, 8), in_channels=channels, num_classes=3)


IMAGES = torch.zeros(2, 1, 8, 8)
LABELS = torch.zeros(2, dtype=torch.long)


@pytest.mark.parametrize(
    "loss", [polarization_loss, activation_loss, decomposition, lambda g: target_rate_loss(g, 0.5)]
)
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (3,)])
def test_losses_need_inputs_and_gates(loss, shape):
    with pytest.raises(ValueError, match=r"(gates|probability) must have shape"):
        loss(torch.zeros(shape))


def test_losses_name_the_argument():
    gates = torch.ones(2, 3)
    with pytest.raises(ValueError, match="at least 2 inputs"):
        polarization_loss(gates[:1], unbiased=True)
    for cost in ([1.0, 1.0], [1.0, -1.0, 1.0], [0.0, 0.0, 0.0], [1.0, torch.nan, 1.0], [1.0, torch.inf, 1.0]):
        with pytest.raises(ValueError, match="cost must"):
            activation_loss(gates, torch.tensor(cost))
        with pytest.raises(ValueError, match="cost must"):
            activation_loss(gates, cost)
    for cost in (["a", "b", "c"], "abc", 3.0, [True, True, True]):
        with pytest.raises(ValueError, match="cost must be a tensor or a sequence of numbers"):
            activation_loss(gates, cost)
    for target in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"target must be a number in \[0, 1\]"):
            activation_loss(gates, target=target)
        with pytest.raises(ValueError, match=r"target must be a number in \[0, 1\]"):
            target_rate_loss(gates, target)
        with pytest.raises(ValueError, match=r"target must be a number in \[0, 1\]"):
            freeze_pattern(gates[0], target)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"groups": 3}, "groups must"),
        ({"groups": 0}, "groups must"),
        ({"source": "batch"}, "source must be one of"),
        ({"hidden": 0}, "hidden must"),
        ({"hidden": 2.5}, "hidden must"),
    ],
)
def test_gated_network_names_the_argument(settings, words):
    with pytest.raises(ValueError, match=words):
        GatedResNet(net(), **settings)


def test_only_whole_residual_networks_are_gated():
    with pytest.raises(ValueError, match="residual blocks"):
        GatedResNet(slice_blocks(net(), [True, False]))
    with pytest.raises(ValueError, match="residual blocks"):
        GatedResNet(slice_blocks(ResNet((1,), (4,), in_channels=1, num_classes=3), [False]))


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 8, 8), (0, 1, 8, 8), (2, 1, 0, 8)])
def test_images_that_do_not_fit(shape):
    model = GatedResNet(net()).eval()
    for call in (model, model.skip, lambda x: prune(model, [x]) if len(x) else model(x)):
        with pytest.raises(ValueError, match="x must have shape"):
            call(torch.zeros(shape))


@pytest.mark.parametrize("pattern", [[True], [True, False, True], [1, 0], [1.0, 0.0]])
def test_freeze_needs_a_bool_for_each_gate(pattern):
    with pytest.raises(ValueError, match="one bool for each of 2 gates"):
        GatedResNet(net()).freeze(torch.tensor(pattern))


def test_skip_needs_evaluation_and_block_gates():
    for model in (GatedResNet(net()).train(), GatedResNet(net(), groups=2).eval()):
        with pytest.raises(ValueError, match="skip needs"):
            model.skip(IMAGES)


@pytest.mark.parametrize("loader", [[], [IMAGES[:0]], [(IMAGES[:0], LABELS[:0])]])
def test_an_empty_loader(loader):
    model = GatedResNet(net())
    for call in (audit, prune):
        with pytest.raises(ValueError, match="loader must yield at least one input"):
            call(model, loader)
    with pytest.raises(ValueError, match="loader must yield at least one input"):
        evaluate(model, [])
    assert model.training


def test_a_diverged_shut_block_is_not_cut_away_in_silence():
    model = GatedResNet(net(), bias=-5.0)
    model.net.blocks[0].branch[0].weight.data[0, 0, 0, 0] = torch.inf
    with pytest.raises(ValueError, match="finite answers"):
        prune(model, [IMAGES + 1])
    assert model.training


def test_no_consensus_names_the_gates():
    model = GatedResNet(net())
    gate = model.gates[1]
    nn.init.constant_(gate.squeeze.weight, 1.0)
    nn.init.zeros_(gate.squeeze.bias)
    nn.init.constant_(gate.decide.weight, 1.0)
    x = torch.cat([IMAGES, torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))])
    with torch.no_grad():
        level = next(model.eval().net.features(x)).mean((2, 3)).sum(1)
    gate.decide.bias.data.fill_(-16 * level.quantile(0.5).item() - 1e-3)
    with pytest.raises(ValueError, match=r"up to 0\.\d+ of the answers .* gate: \{1: 0\.\d+\}"):
        prune(model, [x])
    with pytest.raises(ValueError, match="max_dissent"):
        prune(model, [x], max_dissent=1.5)
    assert len(prune(model, [x], max_dissent=0.5).net.blocks) == 2


def test_slicing_needs_an_entry_for_each_block():
    with pytest.raises(ValueError, match="one entry for each of 2 blocks"):
        slice_blocks(net(), [True])
    with pytest.raises(ValueError, match="one entry for each of 2 blocks"):
        slice_channels(net(), [[True]])
    with pytest.raises(ValueError, match=r"keep\[1\] must have groups"):
        slice_channels(net(), [[True, False], [True, False, True]])
    with pytest.raises(ValueError, match=r"keep\[0\] must have groups"):
        slice_channels(net(), [[], [True]])
    with pytest.raises(ValueError, match=r"keep\[1\] must have groups"):  # its branch is gone already
        slice_channels(slice_blocks(net(), [True, False]), [[True], [True]])


def test_a_loss_that_is_not_finite_changes_nothing():
    model = GatedResNet(net())
    before = [p.clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="loss must be finite"):
        train_step(model, optimizer, IMAGES * torch.nan, LABELS, activation=0.1, polarization=0.1)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"warmup": 0.6}, "warmup <= noisy"),
        ({"latest": 1.2}, "latest <= 1"),
        ({"steps": 0}, "steps must be an integer of at least 1"),
        ({"every": 0}, "every must be an integer of at least 1"),
        ({"target": 2.0}, r"target must be a number in \[0, 1\]"),
        ({"steps": 9}, "at least steps=9 batches, got 4"),
    ],
)
def test_one_pass_names_the_argument(settings, words):
    model = GatedResNet(net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    arguments = {"steps": 4, "activation": 0.1, "polarization": 0.1} | settings
    with pytest.raises(ValueError, match=words):
        one_pass(model, optimizer, [(IMAGES + 1, LABELS)] * 4, IMAGES, **arguments)


def test_one_pass_needs_gates_that_move():
    model = GatedResNet(net())
    model.freeze([True, True])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="frozen"):
        one_pass(model, optimizer, [(IMAGES, LABELS)], IMAGES, steps=1, activation=0, polarization=0)


def test_costs_need_pixels():
    with pytest.raises(ValueError, match="height must be an integer of at least 1"):
        costs(net(), 0, 4)


def test_theory_names_the_argument():
    for activation, polarization in ((0.1, 0.0), (-0.1, 1.0), (0.1, -1.0)):
        with pytest.raises(ValueError, match="polarization must be positive"):
            unstable_share(activation, polarization)
    for settings in ({"rate": 0}, {"steps": -1}):
        with pytest.raises(ValueError, match="rate must be positive"):
            gate_flow(torch.zeros(2, 1), **settings)
    for value in (-0.1, 0.3):
        with pytest.raises(ValueError, match=r"\[0, 1/4\]"):
            dissent_from_polarization(torch.tensor([value]))
    for shape in ((0,), (21,), (2, 2)):
        for call in (exact_gradient, straight_through_gradient):
            with pytest.raises(ValueError, match="1 to 20 gates"):
                call(lambda g: g.sum(1), torch.zeros(shape))
