"""gated.moe.multitask against layers written out, networks that share nothing, QR, and the data's moments."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from gated.moe.multitask import MMoE, gram_schmidt, two_tasks


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def model(**options) -> MMoE:
    torch.manual_seed(0)
    return MMoE(**{"dim": 9, "num_experts": 4, "hidden": 6, "tower": 3} | options).double()


X = torch.randn(11, 9, generator=seeded(5), dtype=torch.float64)


def tower(m: MMoE, k: int, h: torch.Tensor) -> torch.Tensor:
    hidden = (h @ m.tower_in[k, :-1] + m.tower_in[k, -1]).relu()
    return hidden @ m.tower_out[k, :-1, 0] + m.tower_out[k, -1, 0]


@given(rho=st.floats(-1, 1), seed=st.integers(0, 50))
def test_two_directions_meet_at_the_angle(rho, seed):
    t = two_tasks(rho, seeded(seed), dim=20, scale=0.7)
    lengths = t.weight.norm(dim=1)
    torch.testing.assert_close(lengths, torch.full((2,), 0.7))
    assert float(t.weight[0] @ t.weight[1]) / 0.49 == pytest.approx(rho, abs=1e-5)


def test_the_data_by_hand_and_its_noise():
    t = two_tasks(0.3, seeded(1), dim=5, scale=1.5, waves=3, noise=0.2)
    x, y = t.sample(20_000, seeded(2))
    for k in range(2):
        z = x @ t.weight[k]
        waves = sum(torch.sin(a * z + b) for a, b in zip(t.alpha, t.beta, strict=True))
        torch.testing.assert_close(t.mean(x)[:, k], z + waves)
    noise = y - t.mean(x)
    assert noise.std().item() == pytest.approx(0.2, rel=0.03)
    assert abs(torch.corrcoef(noise.T)[0, 1].item()) < 0.03
    assert x.mean().abs() < 0.02
    assert x.std().item() == pytest.approx(1, abs=0.02)


def test_related_tasks_are_one_task():
    t = two_tasks(1.0, seeded(0))
    x, _ = t.sample(10, seeded(1))
    torch.testing.assert_close(t.mean(x)[:, 0], t.mean(x)[:, 1])


@pytest.mark.parametrize("gates", ["task", "shared"])
def test_the_layer_by_hand(gates):
    m = model(gates=gates, tasks=3)
    W = m.gate.weight.unflatten(0, (-1, 4))
    out = m(X)
    for row, x in enumerate(X):
        for k in range(3):
            gate = torch.softmax(W[k if gates == "task" else 0] @ x, 0)
            experts = [
                (m.experts.weight[6 * i : 6 * i + 6] @ x + m.experts.bias[6 * i : 6 * i + 6]).relu() for i in range(4)
            ]
            mixed = sum(w * e for w, e in zip(gate, experts, strict=True))
            torch.testing.assert_close(out[row, k], tower(m, k, mixed))


def test_equal_gates_are_one_gate():
    many, one = model(gates="task"), model(gates="shared")
    state = many.state_dict()
    state["gate.weight"][4:] = state["gate.weight"][:4]
    many.load_state_dict(state)
    one.load_state_dict(state | {"gate.weight": state["gate.weight"][:4]})
    torch.testing.assert_close(many(X), one(X))
    torch.testing.assert_close(many.weights(X), one.weights(X))


def test_one_expert_is_a_shared_bottom():
    m = model(num_experts=1)
    assert m.gate is None
    h = F.relu(m.experts(X))
    torch.testing.assert_close(m(X), torch.stack([tower(m, 0, h), tower(m, 1, h)], 1))


def test_own_experts_share_nothing():
    m = model(gates="own", num_experts=2)
    (grad,) = torch.autograd.grad(m(X)[:, 0].sum(), m.experts.weight)
    assert (grad[:6] != 0).any()
    assert (grad[6:] == 0).all()
    alone = F.relu(F.linear(X, m.experts.weight[6:], m.experts.bias[6:]))
    torch.testing.assert_close(m(X)[:, 1], tower(m, 1, alone))


def test_each_task_trains_its_own_gate_only():
    m = model(gates="task")
    m(X)[:, 1].sum().backward()
    assert (m.gate.weight.grad[:4] == 0).all()
    assert (m.gate.weight.grad[4:] != 0).any()


@given(count=st.integers(1, 6), extra=st.integers(0, 4), seed=st.integers(0, 200))
def test_gram_schmidt_is_qr(count, extra, seed):
    v = torch.randn(3, count, count + extra, generator=seeded(seed))
    u = gram_schmidt(v)
    torch.testing.assert_close(u @ u.mT, torch.eye(count).expand(3, -1, -1), atol=1e-5, rtol=0)
    Q, R = torch.linalg.qr(v.double().mT)
    sign = R.diagonal(dim1=-2, dim2=-1).sign()
    steep = R.diagonal(dim1=-2, dim2=-1).abs().amin() > 1e-2
    if steep:
        torch.testing.assert_close(u.double(), (Q * sign[:, None]).mT, atol=1e-3, rtol=0)


def test_gram_schmidt_of_nearly_parallel_and_of_zero_vectors():
    v = torch.randn(1, 8, generator=seeded(0)) + 1e-4 * torch.randn(5, 8, generator=seeded(1))
    u = gram_schmidt(v)
    torch.testing.assert_close(u @ u.T, torch.eye(5), atol=1e-5, rtol=0)
    zero = torch.zeros(2, 3, requires_grad=True)
    out = gram_schmidt(zero)
    out.sum().backward()
    assert (out == 0).all()
    assert torch.isfinite(zero.grad).all()


def test_gram_schmidt_gradient():
    v = torch.randn(2, 3, 4, generator=seeded(3), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(gram_schmidt, v)


def test_orthogonal_experts_are_mixed_from_an_orthonormal_basis():
    m = model(orthogonal=True)
    basis = gram_schmidt(F.relu(m.experts(X)).view(11, 4, 6))
    mixed = torch.einsum("ne,neh->nh", m.weights(X)[:, 1], basis)
    torch.testing.assert_close(m(X)[:, 1], tower(m, 1, mixed))
    assert not torch.allclose(m(X), model()(X))


def test_weights_sum_to_one():
    for options in ({}, {"gates": "shared"}, {"num_experts": 1}, {"gates": "own", "num_experts": 2}):
        w = model(**options).weights(X)
        assert w.shape[:2] == (11, 2)
        torch.testing.assert_close(w.sum(-1), torch.ones(11, 2, dtype=torch.float64))


def test_related_tasks_can_be_learned():
    """On the way to the noise floor: far below a straight line's error, from fresh data."""
    torch.manual_seed(0)
    t = two_tasks(1.0, seeded(3), dim=4, scale=1.0)
    m = MMoE(4, num_experts=4, hidden=16)
    optimiser = torch.optim.Adam(m.parameters(), 1e-2)
    for step in range(400):
        x, y = t.sample(128, seeded(step))
        loss = (m(x) - y).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    x, y = t.sample(4000, seeded(10**6))
    ones = torch.cat([x, torch.ones(4000, 1)], 1)
    line = (ones @ torch.linalg.lstsq(ones, y).solution - y).square().mean()
    assert (m(x) - y).square().mean() < line / 4
    assert math.isfinite(float(line))
