"""The loop against torch by hand, all seeds at once against the loop, counts against arithmetic."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gated.lab import train


def build(seed, norm=False):
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        middle = nn.BatchNorm1d(8) if norm else nn.Tanh()
        # before a batch norm a bias has no gradient but rounding, which AdamW blows up
        return nn.Sequential(nn.Linear(4, 8, bias=not norm), middle, nn.Linear(8, 3))


def batches(seed):
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randn(6, 4, generator=generator), torch.randint(3, (6,), generator=generator)


def loss_fn(model, batch):
    logits = model(batch[0])
    return F.cross_entropy(logits, batch[1]), {"accuracy": (logits.argmax(-1) == batch[1]).double().mean()}


def test_fit_is_the_loop_one_writes_by_hand():
    model, twin = build(0), build(0)
    schedule = train.warmup_cosine(12, warmup=3)
    curves = train.fit(
        model,
        loss_fn,
        batches(1),
        12,
        schedule=schedule,
        clip=0.5,
        evaluate=lambda m: {"training": m.training, "norm": m[0].weight.norm()},
        every=5,
    )
    optimiser, losses, source = train.adamw(twin.parameters()), [], batches(1)
    for step in range(12):
        optimiser.param_groups[0]["lr"] = 1e-3 * schedule(step)
        optimiser.zero_grad()
        loss = loss_fn(twin, next(source))[0]
        loss.backward()
        nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
        optimiser.step()
        losses.append(loss.item())
    assert curves["loss"].tolist() == pytest.approx(losses, abs=1e-7)
    assert curves.step("loss").tolist() == list(range(1, 13))
    assert curves.step("norm").tolist() == [5, 10, 12]
    assert curves["training"].sum() == 0
    assert model.training
    assert curves["norm"][-1].item() == pytest.approx(twin[0].weight.norm().item(), abs=1e-6)
    assert curves.final("loss", 3).item() == pytest.approx(sum(losses[-3:]) / 3, abs=1e-7)
    with pytest.raises(ValueError, match="accuracy"):
        curves["nats"]


def test_schedule_warms_up_and_comes_down():
    factor = train.warmup_cosine(100, warmup=10, floor=0.1)
    assert [factor(0), factor(9), factor(10), factor(99), factor(500)] == pytest.approx([0.1, 1, 1, 0.1, 0.1])
    assert factor(54) == pytest.approx(0.55, abs=0.02)


def test_the_seed_decides_dropout_and_leaves_the_global_state_alone():
    def run(seed):
        model = nn.Sequential(build(0), nn.Dropout(0.5))
        return train.fit(model, loss_fn, batches(0), 5, seed=seed)["loss"]

    before = torch.random.get_rng_state()
    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_list_starts_again_and_an_iterator_runs_out():
    one = [next(batches(0)) for _ in range(2)]
    assert len(train.fit(build(0), loss_fn, one, 5)["loss"]) == 5
    with pytest.raises(ValueError, match="step 3 of 5"):
        train.fit(build(0), loss_fn, iter(one), 5)


@pytest.mark.parametrize("norm", [False, True])
def test_all_seeds_at_once_equal_the_loop(norm):
    seeds, schedule = [3, 1, 4], train.warmup_cosine(15)
    alone = [build(seed, norm) for seed in seeds]
    runs = [train.fit(m, loss_fn, batches(s), 15, schedule=schedule) for m, s in zip(alone, seeds, strict=True)]
    loop = train.stack(runs)
    curves, models = train.fit_seeds(lambda s: build(s, norm), loss_fn, batches, 15, seeds, schedule=schedule)
    assert curves["loss"].shape == (3, 15)
    for name in ("loss", "accuracy"):
        torch.testing.assert_close(curves[name], loop[name], atol=2e-6, rtol=0)
    for one, many in zip(alone, models, strict=True):
        for (name, a), b in zip(one.state_dict().items(), many.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, atol=2e-5, rtol=0, msg=name)


def test_frozen_parameters_stay():
    def half(seed):
        model = build(seed)
        model[0].requires_grad_(False)
        return model

    _, models = train.fit_seeds(half, loss_fn, batches, 4, [0, 1])
    assert torch.equal(models[1][0].weight, build(1)[0].weight)
    assert not torch.equal(models[1][2].weight, build(1)[2].weight)


def test_stack_needs_equal_steps():
    short, long = (train.fit(build(0), loss_fn, batches(0), n) for n in (3, 4))
    with pytest.raises(ValueError, match="same steps"):
        train.stack([short, long])


def test_progress_is_silent_when_nobody_watches(tmp_path):
    code = "from gated.lab.train import bar\nassert list(bar(range(3), 'x')) == [0, 1, 2]"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == done.stdout == ""


def test_progress_shows_in_a_terminal_and_obeys_quiet(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("GATED_QUIET", raising=False)
    list(train.bar(range(2), "fitting"))
    assert "fitting" in capsys.readouterr().err
    monkeypatch.setenv("GATED_QUIET", "1")
    list(train.bar(range(2), "fitting"))
    assert capsys.readouterr().err == ""


def test_parameters_count_once_and_only_when_trained():
    model = build(0)
    tied = nn.ModuleList([model, model[0]])
    assert train.count_parameters(tied) == 4 * 8 + 8 + 8 * 3 + 3
    model[0].requires_grad_(False)
    assert train.count_parameters(tied) == 8 * 3 + 3


def test_unequal_budgets_are_named():
    a, b = train.Budget.of(build(0), torch.zeros(5, 4), steps=100), train.Budget(69, 280, 100)
    assert a == train.Budget(67, 280, 100)
    table = str(train.equal_budget({"ours": a, "peer": b}))
    assert "69" in table
    with pytest.raises(ValueError, match=r"parameters by more than 2%: 'ours' has 67, 'peer' has 69"):
        train.equal_budget({"ours": a, "peer": b}, tolerance=0.02)
    train.equal_budget({"ours": a, "peer": b}, tolerance=0.02, on=("macs", "steps"))
