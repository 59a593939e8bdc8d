"""The chapter's study: equal batches, honest splits, schedules that are replayed, and costs by counting."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gated.backbones import macs
from gated.stn import StnLinear, study, theory
from gated.stn import runs as several


def toy(seed: int, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    gen = torch.Generator().manual_seed(seed)
    y = torch.randint(10, (number,), generator=gen)
    return torch.randn(number, 40, generator=gen) + F.one_hot(y, 40), y


TASK = study.signals(toy(0, 150), toy(1, 60), train=80, valid=50)._replace(width=8, batch=16)
TEXT = study.characters(torch.arange(3000).remainder(7).to(torch.uint8), 7, part=300, block=100)._replace(width=8)


@pytest.mark.parametrize("task", [TASK, TEXT])
def test_parts_share_no_example_and_seeds_differ(task):
    for seed in range(3):
        parts = [set(p.tolist()) for p in task.rows(seed)]
        assert all(parts) and not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
        assert max(map(max, parts)) < len(task.pool[0])
    assert not torch.equal(task.rows(0)[0], task.rows(1)[0])


def test_windows_do_not_reach_into_another_part():
    """A window and its target lie within one block, and the target is the character after it."""
    train = TEXT.rows(0)[0]
    assert (train % 100 < 88).all()
    assert all(int(TEXT.pool[1][i]) == (int(TEXT.pool[0][i][-1]) + 1) % 7 for i in train[:50])


def test_a_schedule_is_replayed_step_by_step_and_a_constant_one_is_a_fixed_setting():
    setting = {"first": 0.4, "noise": 0.3}
    raw = several._models(TASK, [0], [setting], False, 8, 0.5, False)[0].hyperparameters.raw.detach()
    flat = study.fixed(TASK, [0], [setting], 12, 0.05)
    assert study.fixed(TASK, [0], raw.expand(1, 12, -1), 12, 0.05) == flat
    assert study.fixed(TASK, [0], [{}], 12, 0.05) != flat
    other = raw.expand(1, 12, -1).clone()
    other[0, 6:] += 1
    assert study.fixed(TASK, [0], other, 12, 0.05) != flat


def test_tuned_runs_start_where_they_are_told_and_keep_still_in_the_warm_up(monkeypatch):
    monkeypatch.setattr(several, "WARMUP", 6)
    found, raw = study.tune(TASK, [0, 1], 12, (0.02, 0.05), starts=[{"first": 0.3}, {}])
    assert found[0]["schedule"]["first"][0] == pytest.approx(0.3, rel=1e-5)
    assert found[1]["schedule"]["first"][0] == pytest.approx(0.05, rel=1e-5)
    assert raw.shape == (2, 12, 5)
    assert (raw[:, :8] == raw[:, :1]).all() and (raw[:, -1] != raw[:, 0]).any()


def test_all_settings_of_a_seed_see_the_same_batches():
    """Two equal settings in one ensemble differ by their draws of noise alone, and these are small here."""
    quiet = {"input": 0.001, "first": 0.001, "second": 0.001, "noise": 0.001}
    a, b, c = study.fixed(TASK, [0, 0, 1], [quiet] * 3, 20, 0.05)
    assert abs(a["test"] - b["test"]) < 0.02 < abs(a["test"] - c["test"])


def test_a_loss_that_is_not_finite_costs_its_own_run_only(monkeypatch):
    def finish(trainer, steps, checkpoints):
        if 3 in trainer.draws_of:
            raise ValueError("loss must be finite, got nan")
        return [{"seed": s} for s in trainer.draws_of]

    class Fake:
        def __init__(self, task, models, seeds, both, **options):
            self.draws_of = list(seeds)

    monkeypatch.setattr(several, "_Ensemble", Fake)
    monkeypatch.setattr(several, "_finish", finish)
    found = study.fixed(TASK, [0, 1, 2, 3, 4], [{}] * 5, 5, 0.1)
    assert [r.get("seed") for r in found] == [0, 1, 2, None, 4]
    assert found[3]["diverged"] and found[3]["test"] == pytest.approx(math.log(10))


def test_controls_hold_what_they_say(monkeypatch):
    monkeypatch.setattr(several, "WARMUP", 2)
    found = study.controls(TASK, [0, 1], 8, 0.05, (0.02, 0.05))
    assert len(found["grid"][0]) == 15 == len(study.grid(TASK))
    for runs, j, best in zip(found["grid"], found["chosen"], found["best"], strict=True):
        assert best == runs[j] and best["valid"][-1] == min(r["valid"][-1] for r in runs)
    count = lambda w: sum(p.numel() for p in TASK.body(w).parameters())  # noqa: E731
    gated = sum(p.numel() for m in TASK.body(8) if isinstance(m, nn.Linear) for p in m.parameters()) * 2
    assert abs(count(found["width of twice"]) - gated) < 0.1 * gated
    assert len(found["tuned"][0]["valid"]) == 3


def test_cost_of_a_cycle_by_counting_products():
    """In units of a forward product: plain 3, self-tuned 6, its validation step 4, half as often."""
    plain, gated = nn.Linear(64, 64, bias=False), StnLinear(64, 64, 3, bias=False)
    x, raw = torch.randn(8, 64, requires_grad=True), torch.randn(8, 3, requires_grad=True)
    one = macs(lambda: plain(x))
    forward = macs(lambda: gated(x, raw))
    assert forward == pytest.approx(2 * one, rel=0.06)
    assert pytest.approx((2 * 6 + 4) / 3 / 2) == study.COST


@pytest.mark.parametrize("method", ["implicit", "unrolled"])
def test_hypergradients_without_gates_move_noise_and_decay(method, monkeypatch):
    monkeypatch.setattr(several, "WARMUP", 2)
    task = study.signals(toy(0, 150), toy(1, 60), ("noise", "decay"), train=80, valid=50)._replace(width=8, batch=16)
    found = study.implicit(task, [0, 1], 10, (0.05, 0.05), method)
    assert len(found) == 2 and set(found[0]["schedule"]) == {"noise", "decay"}
    assert found[0]["schedule"]["noise"][0] == pytest.approx(0.05, rel=1e-5)
    assert found[0]["schedule"]["noise"][-1] != found[0]["schedule"]["noise"][0]


def test_implicit_of_the_study_is_the_theorys_on_one_batch(monkeypatch):
    """The first step of Adam goes against the sign of the hypergradient that the theory gives for the same batch."""
    seen = []
    original = theory.implicit_hypergradient

    def spy(train, validate, w, raw, **options):
        slope = original(train, validate, w, raw, **options)
        seen.append(options)
        return slope

    monkeypatch.setattr(several, "implicit_hypergradient", spy)
    monkeypatch.setattr(several, "WARMUP", 0)
    task = study.signals(toy(0, 150), toy(1, 60), ("noise", "decay"), train=80, valid=50)._replace(width=8, batch=16)
    study.implicit(task, [0], 4, (0.05, 0.05), "implicit")
    assert seen == [{"iterations": 5, "damping": 0.1}] * 2


def test_holes_are_the_37_settings():
    task = study.holes(toy(0, 150), toy(1, 60))
    assert [h.kind for h in task.hyper] == ["discrete", "discrete"]
    small = task._replace(width=4, batch=8, rows=lambda s: TASK.rows(s))
    found = study.cutouts(small, [0], 2, 0.05, (0.02, 0.05))
    assert len(found["settings"]) == 37 == len({tuple(c) for c in found["settings"]})


def test_rounded():
    assert study.rounded({"a": [1.2345678, (2, "b")]}) == {"a": [1.2346, [2, "b"]]}
