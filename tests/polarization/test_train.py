"""One pass: what is trained, when the gates freeze, what it costs, and that pruning changes nothing afterwards."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gated.backbones import ResNet
from gated.polarization import (
    GatedResNet,
    activation_loss,
    costs,
    evaluate,
    freeze_pattern,
    gate_macs,
    one_pass,
    polarization_loss,
    prune,
    train_step,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(seed: int = 0, **kwargs) -> GatedResNet:
    torch.manual_seed(seed)
    return GatedResNet(ResNet((2, 2), (4, 8), in_channels=1, num_classes=2), **kwargs)


def bars(number: int, gen: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """A horizontal or a vertical bar in noise."""
    y = torch.randint(2, (number,), generator=gen)
    x = 0.3 * torch.randn(number, 1, 7, 7, generator=gen)
    for i in range(number):
        place = int(torch.randint(7, (), generator=gen))
        (x[i, 0, place] if y[i] else x[i, 0, :, place]).add_(1.5)
    return x, y


def stream(seed: int, batch: int = 32):
    x, y = bars(512, generator(seed))
    gen = generator(seed + 1)
    while True:
        chosen = torch.randint(512, (batch,), generator=gen)
        yield x[chosen], y[chosen]


def run(model: GatedResNet, steps: int = 80, **kwargs):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    held_out = bars(128, generator(9))[0]
    settings = {"activation": 0.1, "polarization": 1.0, "generator": generator(3)} | kwargs
    return one_pass(model.train(), optimizer, stream(5), held_out, steps=steps, **settings), held_out


def test_a_step_is_a_step_on_the_sum_of_the_three_losses():
    model, twin = small(), small()
    x, y = bars(16, generator())
    cost = torch.tensor([1.0, 2, 3, 4])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    parts = train_step(model, optimizer, x, y, activation=0.7, polarization=0.4, cost=cost, target=0.2)
    output = twin(x)
    task = torch.nn.functional.cross_entropy(output.logits, y)
    act = activation_loss(output.probability, cost, 0.2)
    pol = polarization_loss(output.probability)
    (task + 0.7 * act + 0.4 * pol).backward()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(p, q - 0.1 * q.grad, atol=1e-6)
    assert torch.allclose(torch.stack(parts), torch.stack([task, act, pol, torch.ones(())]), atol=1e-6)


def test_a_step_in_half_precision_counts_multiply_adds():
    net = ResNet((1, 1), (32, 64), in_channels=3, num_classes=2)
    model, macs = GatedResNet(net), costs(net, 32, 32).macs
    x, y = torch.randn(4, 3, 32, 32, generator=generator()), torch.tensor([0, 1, 1, 0])
    with torch.autocast("cpu", torch.float16):
        output = model(x)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        parts = train_step(model, optimizer, x, y, activation=1.0, polarization=1.0, cost=macs, target=0.5)
    assert max(macs) > torch.finfo(torch.float16).max
    assert parts[1].item() == pytest.approx(activation_loss(output.probability.double(), macs, 0.5).item(), abs=1e-3)


@pytest.mark.parametrize("soft", [True, False])
def test_the_gates_losses_reach_the_gates(soft):
    model = small(bias=0.2)
    for gate in model.gates:
        torch.nn.init.normal_(gate.decide.weight, std=3)
    before = [gate.decide.bias.clone() for gate in model.gates]
    x, y = bars(16, generator())
    optimizer = torch.optim.SGD([p for gate in model.gates for p in gate.parameters()], lr=1.0)
    with torch.no_grad():
        model.net.head[-1].weight.zero_()  # no word from the task
    train_step(model, optimizer, x, y, activation=0, polarization=1, soft=soft)
    moved = [(gate.decide.bias - b).abs().item() for gate, b in zip(model.gates, before, strict=True)]
    assert min(moved) > 0


@pytest.mark.parametrize("source", ["input", "free"])
def test_one_pass_ends_in_a_network_that_pruning_does_not_change(source):
    model = small(source=source)
    result, held_out = run(model)
    assert model.frozen is not None and 40 <= result.frozen_at <= 64 and len(result.losses) == 80
    assert result.dissent[0][0] == 40 and result.dissent[-1][0] == result.frozen_at
    net, report = prune(model, [held_out])
    model.eval()
    with torch.no_grad():
        assert torch.equal(net(held_out), model(held_out).logits) and report.bound == 0
    test = bars(256, generator(11))
    score, plain = evaluate(model, [test]), evaluate(net, [test])
    assert score == plain and plain.accuracy > 0.9 and plain.macs == costs(net, 7, 7).total_macs


@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_one_pass_reaches_the_sparsity_that_was_asked_for(sparsity):
    model = small()
    result, _ = run(model, 30, activation=20.0, target=1 - sparsity, noisy=0.3)
    cost = costs(model.net, 7, 7).per_gate(model)
    reached = float((cost * ~model.frozen).sum() / cost.sum())
    assert abs(reached - sparsity) <= cost.max() / cost.sum() / 2
    if sparsity in (0, 1):
        assert reached == sparsity
    assert result.losses[-1].open_share.item() == pytest.approx(1 - reached)


def test_macs_of_the_training_are_counted_as_run():
    model = small()
    result, held_out = run(model, 40, target=0.5, activation=5.0)
    size, shut = costs(model.net, 7, 7), ~model.frozen
    full, frozen = size.total_macs + gate_macs(model), 40 - result.frozen_at
    left = size.total_macs - sum(m for m, s in zip(size.macs, shut.tolist(), strict=True) if s)
    assert shut.any() and 0 < frozen <= 20
    questions = len(result.dissent) * (len(held_out) * full // 3)  # forward passes only: a third of a step each
    assert result.macs == 32 * (result.frozen_at * full + frozen * left) + questions


def test_the_optimiser_goes_on_with_its_state():
    model = small()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    x = bars(16, generator())[0]
    one_pass(model, optimizer, stream(5), x, steps=20, activation=5, polarization=1, target=0.5, every=1)
    steps = {int(optimizer.state[p]["step"]) for block in model.net.blocks for p in block.parameters()}
    opened = [int(optimizer.state[p]["step"]) for p in model.net.stem.parameters()]
    assert set(opened) == {20} and len(steps) == 2 and max(steps) == 20


def test_an_open_start_is_not_taken_for_consensus():
    model = small()
    result, _ = run(model, 20, activation=0, polarization=0, every=1)
    assert result.frozen_at == 10 and model.frozen.all()


class Alternating(torch.nn.Module):
    """A gate whose inputs never agree."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(torch.arange(len(x)) % 2 == 0, 3.0, -3.0)[:, None]


def test_weights_noise_and_freezing_follow_the_schedule(monkeypatch):
    from gated.polarization import train

    seen = []

    def record(model, optimizer, x, y, **settings):
        seen.append((settings["activation"], settings["polarization"], settings["generator"] is not None))
        return train_step(model, optimizer, x, y, **settings)

    monkeypatch.setattr(train, "train_step", record)
    model = small()
    model.gates[1] = Alternating()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    held_out = bars(64, generator(9))[0]
    shares = {"warmup": 0.2, "noisy": 0.5, "latest": 0.7}
    settings = {"activation": 2.0, "polarization": 3.0, "generator": generator(3), "every": 2}
    result = one_pass(model, optimizer, stream(5), held_out, steps=10, **settings, **shares)
    assert [a for a, _, _ in seen] == [0.0] * 2 + [2.0] * 8
    assert [p for _, p, _ in seen] == pytest.approx([0.0] * 3 + [0.6, 1.2, 1.8, 2.4] + [3.0] * 3)
    assert [g for _, _, g in seen] == [True] * 5 + [False] * 5
    assert [step for step, _ in result.dissent] == [6, 7] and result.frozen_at == 7
    assert result.changed == result.dissent[-1][1] == 0.5


def test_runs_are_reproducible():
    first, second = small(), small()
    a, b = run(first, 20)[0], run(second, 20)[0]
    assert torch.equal(torch.stack([s.task for s in a.losses]), torch.stack([s.task for s in b.losses]))
    assert a.dissent == b.dissent and torch.equal(first.frozen, second.frozen)


def test_channel_groups_take_one_pass_too():
    model = small(groups=2)
    result, held_out = run(model, 30, target=0.5, activation=10.0, noisy=0.3)
    assert abs(result.losses[-1].open_share.item() - 0.5) < 0.1
    net = prune(model, [held_out]).net
    model.eval()
    with torch.no_grad():
        assert (net(held_out) - model(held_out).logits).abs().max() < 1e-5
    assert costs(net, 7, 7).total_macs < costs(model.net, 7, 7).total_macs


def test_polarization_removes_the_dissent_that_two_kinds_of_input_want():
    """Gates alone, two halves of the inputs that gain from different blocks: the losses on a toy without a network."""
    from gated.polarization.theory import gate_flow

    gain = torch.tensor([[0.5, 0.1], [0.1, 0.5]]).repeat(20, 1)
    start = torch.full((40, 2), 1.0)
    dissent = []
    for weight in (0.0, 1.0):
        opened = (gate_flow(start, activation=0.3, polarization=weight, gain=gain, steps=2000) > 0).double().mean(0)
        dissent.append(torch.minimum(opened, 1 - opened).sum().item())
    assert dissent == [1.0, 0.0]


@pytest.mark.parametrize(
    ("target", "pattern"),
    [
        (0.0, [0, 0, 0, 0]),
        (1.0, [1, 1, 1, 1]),
        (0.5, [0, 1, 1, 0]),
        (0.25, [0, 1, 0, 0]),
        (0.1, [0, 0, 0, 0]),
    ],
)
def test_the_nearest_pattern_takes_the_most_open_gates(target, pattern):
    share = torch.tensor([0.2, 0.9, 0.5, 0.0])
    assert freeze_pattern(share, target).tolist() == [bool(bit) for bit in pattern]


def test_the_nearest_pattern_counts_cost():
    share, cost = torch.tensor([0.9, 0.8, 0.7]), torch.tensor([1.0, 8.0, 1.0])
    assert freeze_pattern(share, 0.5, cost).tolist() == [True, False, False]
    assert freeze_pattern(share, 0.6, cost).tolist() == [True, True, False]


@given(st.lists(st.tuples(st.booleans(), st.floats(0.01, 0.49), st.integers(1, 5)), min_size=1, max_size=8))
def test_a_consensus_on_the_target_stays_as_it_is(gates):
    bits, doubt, cost = (torch.tensor(part) for part in zip(*gates, strict=True))
    cost = cost.double()
    target = float((cost * bits).sum() / cost.sum())
    assert torch.equal(freeze_pattern(torch.where(bits, 1 - doubt, doubt).double(), min(target, 1.0), cost), bits)


def test_dynamic_evaluation_counts_the_mean_of_what_is_open():
    model, (x, y) = small(), bars(60, generator())
    model.eval()
    gate = model.gates[1]
    with torch.no_grad():
        feature = next(model.net.features(x)).mean((2, 3)).sum(1)
    gate.squeeze.weight.data.fill_(1.0)
    gate.squeeze.bias.data.zero_()
    gate.decide.weight.data.fill_(1.0)
    gate.decide.bias.data.fill_(-16 * feature.quantile(0.3).item())
    size = costs(model.net, 7, 7)
    score = evaluate(model, [(x[:50], y[:50]), (x[50:], y[50:])])
    assert score.macs == pytest.approx(size.total_macs + gate_macs(model) - 0.3 * size.macs[1])
    assert not model.training and evaluate(model.train(), [(x, y)]) == score and model.training
    model.eval()
    with torch.no_grad():
        assert score.accuracy == pytest.approx((model(x).logits.argmax(1) == y).double().mean().item())
