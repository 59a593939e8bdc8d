"""The study: budgets that are equal where it says so, the same data for all arms, results that fit together."""

import pytest
import torch

from gated.advmoe import study
from gated.backbones import macs


def signals(size=160):
    g = torch.Generator().manual_seed(0)
    y = torch.randint(10, (size,), generator=g)
    x = torch.randn(size, 1, 40, generator=g) + 0.5 * y[:, None, None]
    return study.Signals((x, y), (x[:40], y[:40]), (x[40:], y[40:]))


def weights(model):
    return sum(conv.weight.numel() for conv in model.convs)


def test_budgets():
    nets = {arm: study.network(arm, 0) for arm in ("dense", "half", "equal", "joint", "parity")}
    assert weights(nets["joint"]) == 2 * weights(nets["half"])
    assert weights(nets["equal"]) == pytest.approx(weights(nets["joint"]), rel=0.08)
    x = torch.randn(1, 1, 40)
    assert macs(nets["joint"], x) == pytest.approx(macs(nets["half"], x), rel=0.01)  # but for the routers
    assert macs(nets["dense"], x) > 3 * macs(nets["half"], x)


def test_a_network_depends_on_its_seed_alone():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    a, b, c = study.network("joint", 0), study.network("turns", 0), study.network("joint", 1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert not all(torch.equal(p, q) for p, q in zip(a.parameters(), c.parameters(), strict=True))


def test_half_of_the_classes_go_to_each_expert():
    for seed in range(3):
        assert study.groups("parity", seed).tolist() == [0, 1] * 5
        assert sorted(study.groups("random classes", seed).tolist()) == [0] * 5 + [1] * 5
    assert study.groups("random classes", 0).tolist() != study.groups("random classes", 1).tolist()


ARMS = ["half", "half, standard", "joint", "frozen", "turns", "random classes", "parity, one rate", "halves"]


@pytest.mark.parametrize("arm", ARMS)
def test_a_short_run(arm):
    found = study.run(arm, 0, signals(), eps=0.1, steps=2, examples=12)
    again = study.run(arm, 0, signals(), eps=0.1, steps=2, examples=12)
    for one, two in zip(*(list(f.values()) if arm == "halves" else [f] for f in (found, again)), strict=True):
        assert one["union"] == two["union"] and one["clean"] == two["clean"]
        assert one["union"] <= min(one[member] for member in ("clean", "ste", "surrogate", "path", "search"))


def test_what_is_held_stays_where_it_was():
    data = signals()
    for arm, still in (("frozen", "router_parameters"), ("robust routers", "expert_parameters")):
        model = study.network(arm, 0)
        before = [p.clone() for p in getattr(model, still)()]
        study.train(model, arm, data.train, eps=0.1, steps=2, seed=0)
        assert all(torch.equal(p, q) for p, q in zip(before, getattr(model, still)(), strict=True))


def test_the_frozen_path_meets_an_attack_as_strong_as_the_network_does():
    data = signals()
    few = study.run("joint", 0, data, eps=0.3, steps=1, examples=20)
    strong = study.run_own_path("joint", 0, data, eps=0.3, steps=1, examples=20)["own path"]
    assert 0 <= strong <= few["clean"] and strong <= few["own path"] + 0.05
    plain = study.network("half", 0).eval()
    x, y = study.signals_of(0, data, 20)
    right = (plain(x).argmax(1) == y).double().mean().item()
    assert study.own_path(plain, x, y, 0.0, 0) == pytest.approx(right)
