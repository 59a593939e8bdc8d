"""The alternation: what each step moves, whose gradient that is, schedules, ensembles, and going on after a stop."""

import copy
import io
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gated.stn import Hyperparameter, Hyperparameters, Trainer, input_noise, selftune

F64 = torch.float64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def data(number: int = 96, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(number, 6, generator=generator(seed), dtype=F64)
    return x, (x[:, 0] > x[:, 1]).long() + (x[:, 2] > 0).long()


TRAIN, VALID = data(), data(48, 2)


def hyper(**kwargs) -> Hyperparameters:
    settings = [
        Hyperparameter("rate", 0, 0.9, 0.1),
        Hyperparameter("noise", 0, None, 0.1),
        Hyperparameter("decay", 0, None, 1e-2, scale="log"),
    ]
    return Hyperparameters(settings, dtype=F64, **kwargs)


def network(seed: int = 0, drop: bool = True) -> nn.Module:
    torch.manual_seed(seed)
    middle = nn.Dropout(0.5) if drop else nn.Identity()
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), middle, nn.Linear(8, 3)).double()


def model(seed: int = 0, drop: bool = True, **kwargs):
    kwargs = {"gate_std": 0.3, "generator": generator(seed)} | kwargs
    return selftune(network(seed, drop), hyper(), rates={"2": "rate"} if drop else {}, **kwargs)


def augment(x, values, generator):
    return input_noise(x, values["noise"], generator)


def penalty(model, raw, values):
    return values["decay"] * model.squared_norm(raw)


def fast(parameters):
    return torch.optim.Adam(parameters, lr=0.05)


def trainer(net=None, valid=VALID, **kwargs) -> Trainer:
    options = {"augment": augment, "penalty": penalty, "batch": 16, "hyper_optimizer": fast, "warmup": 3} | kwargs
    return Trainer(model() if net is None else net, TRAIN, valid, **options)


def test_a_training_step_is_a_step_on_the_perturbed_loss_with_its_penalty():
    net, twin = model(drop=False), model(drop=False)
    run = trainer(net, augment=None, seed=5, optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    loss = run.train_step()
    rows = torch.randperm(96, generator=generator(20))[:16]
    xi = torch.randn(16, 3, generator=generator(22), dtype=F64)
    raw = (twin.hyperparameters.raw + twin.hyperparameters.scale * xi).detach()
    wanted = F.cross_entropy(twin(TRAIN[0][rows], raw), TRAIN[1][rows])
    wanted = wanted + (raw[:, 2].exp() * twin.squared_norm(raw)).mean()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-12)
    wanted.backward()
    for (name, p), q in zip(net.named_parameters(), twin.parameters(), strict=True):
        moved = q if name.startswith("hyper") else q - 0.1 * q.grad
        assert torch.allclose(p, moved, rtol=0, atol=1e-12), name


@pytest.mark.parametrize("tune_scale", [True, False])
@pytest.mark.parametrize("centred", [True, False])
def test_a_validation_step_moves_the_hyperparameters_alone_down_the_validation_gradient(tune_scale, centred):
    net, twin = model(centred=centred), model(centred=centred).eval()
    run = trainer(net, tune_scale=tune_scale, seed=5, entropy=0.3, hyper_optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    loss = run.valid_step()
    rows = torch.randperm(48, generator=generator(21))[:16]
    h = twin.hyperparameters
    xi = torch.randn(16, 3, generator=generator(22), dtype=F64)
    raw = h.raw + h.scale * xi if tune_scale else h.raw
    wanted = F.cross_entropy(twin(VALID[0][rows], raw), VALID[1][rows])  # no dropout, noise, or penalty
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-12)
    (wanted - 0.3 * (h.scale * math.sqrt(2 * math.pi * math.e)).log().sum()).backward()
    after = net.state_dict()
    assert torch.allclose(after["hyperparameters.raw"], h.raw - 0.1 * h.raw.grad, rtol=0, atol=1e-12)
    rho = h.rho - 0.1 * h.rho.grad if tune_scale else h.rho
    assert torch.allclose(after["hyperparameters.rho"], rho, rtol=0, atol=1e-12)
    assert all(torch.equal(after[k], v) for k, v in before.items() if not k.startswith("hyper"))
    assert all(p.grad is None for p in net.parameters())
    assert not net.training


def test_the_validation_loss_is_a_function_of_the_hyperparameters_alone():
    one, two = trainer(tune_scale=False, valid_batch=48), trainer(tune_scale=False, valid_batch=48, seed=1)
    assert one.valid_step().item() == pytest.approx(two.valid_step().item(), rel=1e-12)
    frozen = model(gate_std=0)
    for layer in (frozen.net[0], frozen.net[3]):
        layer.gate.requires_grad_(False)
    run = trainer(frozen)
    start = frozen.hyperparameters.raw.clone()
    run.run(8)
    assert torch.equal(frozen.hyperparameters.raw, start)  # no gates: hypergradient 0


def leaves(loss: torch.Tensor) -> set[int]:
    """The tensors whose gradients the loss has a graph to."""
    seen, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [n for n, _ in node.next_functions]
    return {id(n.variable) for n in seen if hasattr(n, "variable")}


def test_each_kind_of_step_has_a_graph_to_what_it_moves_and_pays_for_nothing_else():
    run = trainer()
    x, y, xi = TRAIN[0][:16], TRAIN[1][:16], torch.zeros(16, 3, dtype=F64)
    assert leaves(run._call(x, y, xi, "train", False)) == {id(p) for p in run.phi.values()}
    assert leaves(run._call(x, y, xi, "valid", True)) == {id(run.raw), id(run.rho)}


def test_order_of_steps(monkeypatch):
    run, seen = trainer(warmup=3, train_steps=2, valid_steps=2), []
    train_step, valid_step = run.train_step, run.valid_step
    monkeypatch.setattr(run, "train_step", lambda: (seen.append("T"), train_step())[1])
    monkeypatch.setattr(run, "valid_step", lambda: (seen.append("V"), valid_step())[1])
    run.run(8)
    assert "".join(seen) == "TTTTTVVTTVVT"


def test_each_epoch_sees_each_example_once():
    seen = []
    x = torch.arange(96, dtype=F64)[:, None].expand(96, 6)

    def look(x, values, generator):
        seen.append(x[:, 0].clone())
        return x

    Trainer(model(), (x, TRAIN[1]), augment=look, batch=20).run(8)  # 16 of each epoch are left for another one
    first, second = torch.cat(seen[:4]), torch.cat(seen[4:])
    assert len(first.unique()) == len(second.unique()) == 80 and not torch.equal(first, second)


def test_schedule_holds_every_step_before_it_was_made():
    run = trainer()
    start = run.raw.detach().clone()
    run.run(12)
    schedule = run.schedule
    assert schedule.raw.shape == schedule.scale.shape == (12, 3)
    assert schedule.train_loss.shape == schedule.valid_loss.shape == (12,)
    assert torch.equal(schedule.raw[:5], start.expand(5, 3))  # first validation step after the fifth
    assert not torch.equal(schedule.raw[5], start) and torch.equal(schedule.raw[5], schedule.raw[6])
    assert schedule.valid_loss[:5].isnan().all() and schedule.valid_loss[5:].isfinite().all()
    values = schedule.values(run.models[0].hyperparameters)
    assert torch.allclose(values["rate"], 0.9 * schedule.raw[:, 0].sigmoid())
    assert torch.allclose(schedule.scale[0], torch.full((3,), 0.5, dtype=F64))


def plain_loop(schedule, seed, steps):
    """A plain network by hand with the schedule's values, a step at a time."""
    net = network(drop=False)
    opt = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    orders, order, position = generator(4 * seed), None, 96
    for step in range(steps):
        if position + 16 > 96:
            order, position = torch.randperm(96, generator=orders), 0
        rows = order[position : position + 16]
        position += 16
        norm = sum(p.square().sum() for p in net.parameters() if p.ndim > 1)
        loss = F.cross_entropy(net(TRAIN[0][rows]), TRAIN[1][rows]) + schedule[step, 2].exp() * norm
        opt.zero_grad()
        loss.backward()
        opt.step()
    return net


def test_replay_is_a_plain_network_under_the_schedules_values():
    first = trainer(model(drop=False), augment=None)
    first.run(14)
    plain = model(drop=False, respond=False)
    replay = trainer(plain, None, augment=None, schedule=first.schedule.raw, seed=7)
    replay.run(14)
    wanted = plain_loop(first.schedule.raw, 7, 14)
    for p, q in zip(plain.net.parameters(), wanted.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=0, atol=1e-12)
    assert torch.equal(replay.schedule.raw, first.schedule.raw)


def test_replay_uses_the_scheduled_rates_and_fixed_values_are_a_constant_schedule():
    rates = []
    plain = model(respond=False)
    schedule = torch.stack([plain.hyperparameters.raw_of({"rate": r}) for r in (0.1, 0.5, 0.8)])

    def look(x, values, generator):
        rates.append(values["rate"].item())
        return x

    trainer(plain, None, augment=look, schedule=schedule).run(3)
    assert rates == pytest.approx([0.1, 0.5, 0.8])
    constant = {"schedule": hyper().raw.detach().expand(6, 3)}
    one, two = (trainer(model(respond=False), None, **k) for k in ({"perturb": False}, constant))
    one.run(6)
    two.run(6)
    assert all(torch.equal(p, q) for p, q in zip(one.phi.values(), two.phi.values(), strict=True))


@pytest.mark.parametrize("linearised", [False, True])
def test_an_ensemble_is_its_runs(linearised):
    options = {"augment": None, "linearised": linearised}
    nets = [model(s, drop=False, centred=linearised) for s in range(3)]
    singles = copy.deepcopy(nets)
    together = trainer(nets, seed=[4, 5, 6], **options)
    together.run(9)
    for i, net in enumerate(singles):
        alone = trainer(net, seed=4 + i, **options)
        alone.run(9)
        for (name, p), q in zip(net.named_parameters(), nets[i].parameters(), strict=True):
            assert torch.allclose(p, q, rtol=0, atol=1e-9), name
        for ours, theirs in zip(together.schedule, alone.schedule, strict=True):
            assert torch.allclose(ours[i], theirs, rtol=0, atol=1e-9, equal_nan=True)
        assert together.evaluate(VALID)[i].item() == pytest.approx(alone.evaluate(VALID).item())
    again = trainer(singles, None, schedule=together.schedule.raw, seed=[1, 2, 3], **options)
    again.run(9)
    assert torch.equal(again.schedule.raw, together.schedule.raw)


def test_linearised_takes_the_centre_from_the_plain_loss_and_the_response_from_the_tangent():
    net, twin = model(drop=False, centred=True), model(drop=False, centred=True)
    run = trainer(net, augment=None, linearised=True, optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    loss = run.train_step()
    rows = torch.randperm(96, generator=generator(0))[:16]
    x, y, h = TRAIN[0][rows], TRAIN[1][rows], twin.hyperparameters
    raw = (h.raw + h.scale * torch.randn(16, 3, generator=generator(2), dtype=F64)).detach()
    centre = F.cross_entropy(twin(x, h.raw), y) + h.raw[2].exp() * twin.squared_norm()
    tangent = F.cross_entropy(twin.linearised(x, raw), y) + (raw[:, 2].exp() * twin.squared_norm(raw)).mean()
    assert loss.item() == pytest.approx(tangent.item(), rel=1e-12)
    phi = {k: p for k, p in twin.named_parameters() if not k.startswith("hyper")}
    a, b = (torch.autograd.grad(part, list(phi.values())) for part in (centre, tangent))
    for (name, q), at_centre, along in zip(phi.items(), a, b, strict=True):
        g = along if name.endswith("gate") else torch.stack([at_centre[0], along[1]])
        assert torch.allclose(net.get_parameter(name), q - 0.1 * g, rtol=0, atol=1e-12), name


def copied(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file)


@pytest.mark.parametrize("ensemble", [False, True])
@pytest.mark.parametrize("linearised", [False, True])
def test_saving_loading_and_going_on_is_the_same_trajectory_bit_for_bit(ensemble, linearised):
    def fresh():
        nets = [model(s, centred=linearised) for s in range(2)]
        return trainer(nets if ensemble else nets[0], seed=[3, 4] if ensemble else 3, linearised=linearised)

    whole, first, second = fresh(), fresh(), fresh()
    whole.run(17)
    first.run(8)
    state = copied(first.state_dict())
    first.run(2)  # what is saved does not move with the run
    second.run(1)  # and what was there before is gone
    second.load_state_dict(state)
    second.run(9)
    for ours, theirs in zip(whole.schedule, second.schedule, strict=True):
        assert torch.equal(ours.nan_to_num(), theirs.nan_to_num())
    for ours, theirs in zip(whole.models, second.models, strict=True):
        assert all(torch.equal(v, theirs.state_dict()[k]) for k, v in ours.state_dict().items())


def test_two_calls_of_run_are_one_and_the_seed_decides():
    one, two, other = trainer(), trainer(), trainer(seed=1)
    one.run(9)
    two.run(4)
    two.run(5)
    other.run(9)
    assert torch.equal(one.schedule.train_loss, two.schedule.train_loss)
    assert not torch.equal(one.schedule.train_loss, other.schedule.train_loss)


def test_arms_with_one_seed_see_the_same_batches():
    seen = {True: [], False: []}

    def look(respond):
        def call(x, values, generator):
            seen[respond].append(x.clone())
            return x

        return call

    for respond in (True, False):
        trainer(model(respond=respond), VALID if respond else None, augment=look(respond)).run(9)
    assert all(torch.equal(a, b) for a, b in zip(*seen.values(), strict=True))


def test_evaluate_is_the_mean_over_all_examples_without_regularisers():
    run = trainer()
    run.run(6)
    net = run.models[0].eval()
    x, y = data(1500, 9)
    assert run.evaluate((x, y)).item() == pytest.approx(F.cross_entropy(net(x), y).item(), rel=1e-12)
    right = run.evaluate((x, y), lambda output, y: (output.argmax(-1) == y).double())
    assert right.item() == pytest.approx((net(x).argmax(-1) == y).double().mean().item())


def test_it_learns_to_regularise():
    """Ridge: all weight decay is too much, the validation loss pulls it down; too little noise in y, and up."""
    gen = generator(0)
    w = torch.randn(12, generator=gen, dtype=F64)
    for noise, start, sign in ((0.01, 0.3, -1), (6.0, 1e-3, 1)):
        x, xv = (torch.randn(n, 12, generator=gen, dtype=F64) for n in (24, 400))
        y, yv = (a @ w + noise * torch.randn(len(a), generator=gen, dtype=F64) for a in (x, xv))
        h = Hyperparameters([Hyperparameter("decay", 0, None, start, scale="log")], scale=0.3, dtype=F64)
        net = selftune(nn.Linear(12, 1, bias=False).double(), h, centred=True, gate_std=0.1, generator=gen)
        run = Trainer(
            net,
            (x, y),
            (xv, yv),
            loss=lambda output, y: (output[:, 0] - y).square(),
            penalty=penalty,
            batch=24,
            optimizer=lambda p: torch.optim.Adam(p, lr=0.02),
            hyper_optimizer=lambda p: torch.optim.Adam(p, lr=0.02),
            warmup=200,
            tune_scale=False,
        )
        run.run(600)
        assert sign * (h.raw.item() - math.log(start)) > 0.5


def test_the_scale_settles_where_entropy_and_curvature_balance():
    """sigma = sqrt(tau / h) for a response whose validation loss is a quadratic of curvature h."""
    h = Hyperparameters([Hyperparameter("a", 0, 1, 0.5)], scale=1.0, dtype=F64)
    net = selftune(nn.Linear(1, 1, bias=False).double(), h, centred=True)
    with torch.no_grad():
        net.net.weight.copy_(torch.tensor([[[0.0]], [[1.0]]]))
        net.net.gate.fill_(0.2)  # output 0.2 u, loss u^2 0.02, h = 0.04
    x, y = torch.ones(512, 1, dtype=F64), torch.zeros(512, dtype=F64)
    run = Trainer(
        net,
        (x + 1, y),
        (x, y),
        loss=lambda output, y: (output[:, 0] - y).square() / 2,
        batch=512,
        entropy=1e-3,
        hyper_optimizer=lambda p: torch.optim.Adam(p, lr=0.05),
    )
    seen = []
    for _ in range(300):
        run.valid_step()
        seen.append(h.scale.item())
    assert sum(seen[200:]) / 100 == pytest.approx(math.sqrt(1e-3 / 0.04), rel=0.05)


def test_a_validation_set_from_the_training_set_warns():
    x, y = TRAIN
    mixed = torch.randperm(96, generator=generator())
    for rows, new, words in ((torch.arange(96), 0, "96 of 96"), (mixed, 0, "96 of 96"), ([0, 1, 2], 2, "3 of 5")):
        held = torch.cat([x[rows], x[:new] + 1]), torch.cat([y[rows], y[:new]])
        with pytest.warns(UserWarning, match=f"{words} validation examples also stand in the training set"):
            trainer(valid=held, valid_batch=4)


def test_no_warning_without_overlap_or_for_other_answers(recwarn):
    trainer()
    trainer(valid=(TRAIN[0], (TRAIN[1] + 1) % 3))
    trainer(valid=(torch.cat([TRAIN[0][:8], VALID[0][:9]]), torch.cat([TRAIN[1][:8], VALID[1][:9]])))
    assert not [w for w in recwarn if "validation" in str(w.message)]
