"""Ranges, their inverses, perturbation and entropy."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gated.stn import Hyperparameter, Hyperparameters

F64 = torch.float64
KINDS = {
    "bounded": Hyperparameter("a", 0, 0.9, 0.05),
    "bounded elsewhere": Hyperparameter("a", -2, 3.5, 1),
    "half-bounded": Hyperparameter("a", 0, None, 0.05),
    "half-bounded elsewhere": Hyperparameter("a", -1, None, 0.5),
    "powers": Hyperparameter("a", 1e-6, 1e-1, 1e-4, scale="log"),
    "half-bounded powers": Hyperparameter("a", 0, None, 1e-4, scale="log"),
}


@pytest.mark.parametrize("kind", KINDS)
@given(raw=st.floats(-12, 12))
def test_round_trip(kind, raw):
    h = KINDS[kind]
    given_raw = torch.tensor(raw, dtype=F64)
    assert h.inverse(h.value(given_raw)).item() == pytest.approx(raw, abs=2e-9)  # kappa e^12 eps at the ends
    single = given_raw.float()
    back = h.value(h.inverse(h.value(single)))
    assert back.item() == pytest.approx(h.value(single).item(), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_the_formulas_and_increase(kind):
    h, raw = KINDS[kind], torch.linspace(-9, 9, 37, dtype=F64)
    high, s = h.high, 1 / (1 + (-raw).exp())
    if h.scale == "log":
        wanted = h.low + raw.exp() if high is None else h.low ** (1 - s) * high**s
    else:
        wanted = h.low + ((1 + raw.exp()).log() if high is None else (high - h.low) * s)
    assert torch.allclose(h.value(raw), wanted, rtol=1e-12)
    assert (h.value(raw).diff() > 0).all()
    assert torch.autograd.gradcheck(h.value, raw.requires_grad_())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_ends_of_the_range(kind, dtype):
    h = KINDS[kind]
    value = h.value(torch.tensor([-1e4, -100.0, -50.0, 50.0, 80.0], dtype=dtype))
    assert value.isfinite().all() and (value >= h.low).all()
    assert h.high is None or (value <= h.high * (1 + 1e-6)).all()
    assert h.inverse(torch.tensor(h.low, dtype=dtype)).item() == -math.inf
    if h.high is not None:
        assert h.inverse(torch.tensor(h.high, dtype=dtype)).item() == math.inf


def test_inverse_softplus_neither_overflows_nor_cancels_in_single_precision():
    h = Hyperparameter("a", 0, None, 1)
    value = torch.tensor([1e-30, 1e-6, 1.0, 88.0, 200.0, 1e6])
    exact = [math.log(1e-30), math.log(math.expm1(1e-6)), math.log(math.expm1(1)), 88.0, 200.0, 1e6]
    assert h.inverse(value).tolist() == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize(("low", "high"), [(0, 4), (0, 24), (2, 3), (-3, 2)])
def test_discrete_values_are_all_whole_numbers_of_the_range_each_where_it_was_placed(low, high):
    h = Hyperparameter("holes", low, high, low, kind="discrete")
    for dtype in (torch.float32, F64):
        found = [h.value(torch.tensor(h.place(k), dtype=dtype)).item() for k in range(low, high)]
        assert found == list(range(low, high))
        line = h.value(torch.linspace(-60, 60, 20001, dtype=dtype))
        assert line.unique().tolist() == list(range(low, high))  # never the open end, even where sigmoid rounds to 1
    raw = torch.zeros(3, dtype=F64, requires_grad=True)
    assert torch.autograd.grad(h.value(raw).sum(), raw)[0].tolist() == [0, 0, 0]


def test_discrete_without_an_end_and_between_whole_numbers():
    h = Hyperparameter("steps", 1, None, 5, kind="discrete")
    assert [h.value(torch.tensor(h.place(k))).item() for k in (1, 5, 300)] == [1, 5, 300]
    edge = Hyperparameter("holes", 0, 4, 1.25, kind="discrete")
    assert 4 * torch.tensor(edge.place(1.25)).sigmoid().item() == pytest.approx(1.25)


def small(**kwargs) -> Hyperparameters:
    settings = [
        Hyperparameter("rate", 0, 0.9, 0.05),
        Hyperparameter("decay", 0, None, 1e-4, scale="log", per_example=False),
        Hyperparameter("holes", 0, 4, 1, kind="discrete"),
    ]
    return Hyperparameters(settings, dtype=F64, **kwargs)


def test_start_and_values_by_name():
    hyper = small()
    values = hyper.values()
    assert {k: v.item() for k, v in values.items()} == pytest.approx({"rate": 0.05, "decay": 1e-4, "holes": 1})
    assert hyper.raw[0].item() == pytest.approx(math.log(0.05 / 0.85))
    raw = torch.randn(7, 2, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    for i, (name, value) in enumerate(hyper.values(raw).items()):
        assert torch.equal(value, hyper.all[i].value(raw[..., i])) and name == hyper.names[i]
    moved = hyper.raw_of({"rate": 0.3, "holes": 3})
    found = {k: v.item() for k, v in hyper.values(moved).items()}
    assert found == pytest.approx({"rate": 0.3, "decay": 1e-4, "holes": 3})
    assert hyper.values()["rate"].item() == pytest.approx(0.05)


def test_perturbation_is_normal_around_raw_and_shared_where_a_batch_has_only_one():
    hyper, gen = small(scale=[0.5, 1.0, 2.0]), torch.Generator().manual_seed(0)
    raw = hyper.perturb(20000, gen)
    xi = (raw - hyper.raw) / hyper.scale
    assert xi[:, 1].unique().numel() == 1
    for column in (xi[:, 0], xi[:, 2]):
        assert abs(column.mean()) < 0.03 and column.std().item() == pytest.approx(1, abs=0.03)
    again = torch.Generator().manual_seed(0)
    wanted = hyper.raw + torch.tensor([0.5, 1, 2]) * torch.randn(20000, 3, dtype=F64, generator=again)
    assert torch.allclose(raw[:, [0, 2]], wanted[:, [0, 2]]) and torch.allclose(raw[0], wanted[0])
    assert torch.allclose(raw[:, 1], wanted[0, 1].expand(20000))
    slope = torch.autograd.grad(raw.sum(), [hyper.raw, hyper.rho])
    assert slope[0].tolist() == [20000.0] * 3
    assert torch.allclose(slope[1], xi.sum(0) * hyper.rho.sigmoid())


@given(scale=st.floats(1e-3, 50))
def test_entropy_is_the_normal_distributions(scale):
    hyper = small(scale=[scale, 1.0, 2 * scale])
    wanted = torch.distributions.Normal(torch.zeros(3, dtype=F64), hyper.scale).entropy().sum()
    assert hyper.entropy().item() == pytest.approx(wanted.item(), abs=1e-12)
    assert hyper.scale.tolist() == pytest.approx([scale, 1, 2 * scale], rel=1e-9)
    (slope,) = torch.autograd.grad(hyper.entropy(), hyper.rho)
    assert torch.allclose(slope, hyper.rho.sigmoid() / hyper.scale)  # dH/dsigma = 1/sigma


@pytest.mark.parametrize(("tau", "curvature"), [(1e-3, 0.01), (1e-2, 1.0), (0.1, 0.4)])
def test_scale_settles_at_the_square_root_of_tau_over_the_curvature(tau, curvature):
    """E L(raw + sigma xi) = L + h sigma^2 / 2 on a quadratic; tau = 1e-3, h = 0.01 give 0.316."""
    hyper = Hyperparameters([Hyperparameter("a", 0, 1, 0.5)], scale=0.7, dtype=F64)
    opt = torch.optim.LBFGS([hyper.rho], lr=0.5, max_iter=100, tolerance_grad=1e-12, tolerance_change=1e-14)

    def closure() -> torch.Tensor:
        xi = torch.tensor([[1.0], [-1.0]], dtype=F64)  # two points carry the exact second moment
        loss = curvature / 2 * (hyper.shift(xi) - hyper.raw.detach()).square().mean() - tau * hyper.entropy()
        opt.zero_grad()
        loss.backward()
        return loss

    opt.step(closure)
    assert hyper.scale.item() == pytest.approx(math.sqrt(tau / curvature), rel=1e-5)


def test_state_goes_through_a_state_dict():
    one, two = small(), small(scale=2)
    with torch.no_grad():
        one.raw.add_(1)
    two.load_state_dict(one.state_dict())
    assert torch.equal(one.raw, two.raw) and torch.equal(one.rho, two.rho)
    assert sorted(one.state_dict()) == ["raw", "rho"]
