"""Routings, capacity, experts, dispatches, layers and converters answer bad input with a ValueError that names the
argument (without the hook)."""

import pytest
import torch

from gated import moe
from gated.moe import convert
from gated.moe import gates as m

X, ROUTING = torch.zeros(3, 4), moe.Routing(torch.ones(3, 1), torch.zeros(3, 1, dtype=torch.int64), 5)
EXPERTS = moe.FFNExperts(5, 4, 6)
SLOTS = moe.Slots(torch.zeros(3, 5, 2), torch.zeros(3, 5, 2))
SPARSE = [moe.dense_dispatch, moe.loop_dispatch, moe.sorted_dispatch, moe.capacity_dispatch]
MIXTRAL = {
    "gate.weight": torch.zeros(5, 4),
    "experts.gate_up_proj": torch.zeros(5, 12, 4),
    "experts.down_proj": torch.zeros(5, 4, 6),
}


def gate():
    return m.TopKGate(m.LinearScore(4, 5), 2)


def layer():
    return moe.MoE(gate(), EXPERTS)


def without(name):
    return {key: value for key, value in MIXTRAL.items() if key != name}


def rows_only(rows, offsets):
    return rows


CASES = {
    "slots": [lambda n=n: moe.Routing.from_dense(torch.ones(3, 5), n) for n in (0, 6)],
    "parts": [lambda: moe.Routing.join([]), lambda: moe.Routing.join([ROUTING, ROUTING._replace(num_experts=4)])],
    "factor": [lambda f=f: moe.expert_capacity(3, 1, 5, f) for f in (-1, float("inf"), float("nan"))]
    + [lambda: moe.Capacity(gate(), -0.5), lambda: moe.Capacity(gate()), lambda: moe.Capacity(gate(), 1, size=3)],
    "size": [lambda s=s: moe.Capacity(gate(), size=s) for s in (-1, 1.5, True)],
    "capacity": [lambda c=c: moe.limit(ROUTING, c) for c in (-1, 2.0, True)],
    "priority": [
        lambda: moe.limit(ROUTING, 1, "best"),
        lambda: moe.token_order(torch.ones(3, 1), "last"),
        lambda: moe.Capacity(gate(), 1, priority="first"),
    ],
    "num_experts": [lambda f=f: f(0, 4, 6) for f in (moe.FFNExperts, moe.LinearExperts)]
    + [lambda: moe.ResidualExperts(moe.FFNExperts(1, 4, 6), 0), lambda: moe.conv_experts(0, 1, 2)]
    + [lambda: moe.MixtureOfHeads(gate(), 0, 4, 2)],
    "dim": [lambda: moe.FFNExperts(2, 0, 6), lambda: moe.MixtureOfHeads(gate(), 5, 0, 2)],
    "hidden": [lambda: moe.FFNExperts(2, 4, 1.5)],
    "dim_out": [lambda: moe.FFNExperts(2, 4, 6, dim_out=0), lambda: moe.LinearExperts(2, 4, True)],
    "activation": [lambda: moe.FFNExperts(2, 4, 6, activation="swish")],
    "modules": [lambda: moe.ModuleExperts([])],
    "core": [lambda: moe.ResidualExperts(EXPERTS, 3)],
    "rank": [lambda: moe.ResidualExperts(moe.FFNExperts(1, 4, 6), 3, rank=0)],
    "kernel": [lambda: moe.conv_experts(2, 1, 2, kernel=0)],
    "p": [lambda p=p: moe.ExpertDropout(gate(), p) for p in (-0.1, 1)],
    "gate": [lambda: moe.ExpertDropout(torch.nn.Linear(2, 2), 0.5)],
    "x": [lambda d=d, x=x: d(x, ROUTING, EXPERTS) for d in SPARSE for x in (X[:2], X[0], X[None])]
    + [lambda: moe.slots_dispatch(X[:2], SLOTS, EXPERTS)]
    + [lambda x=x: moe.MixtureOfHeads(gate(), 5, 4, 2)(x) for x in (X, torch.zeros(1, 3, 5))],
    "routing": [lambda d=d: d(X, SLOTS, EXPERTS) for d in SPARSE]
    + [lambda: moe.slots_dispatch(X, ROUTING, EXPERTS)]
    + [lambda d=d: d(X, ROUTING._replace(weights=torch.ones(3, 2)), EXPERTS) for d in SPARSE],
    "experts": [lambda d=d: d(X, ROUTING, moe.FFNExperts(4, 4, 6)) for d in SPARSE]
    + [lambda: moe.slots_dispatch(X, SLOTS, moe.FFNExperts(4, 4, 6))]
    + [lambda: moe.loop_dispatch(X, ROUTING, rows_only)],
    "signal": [lambda s=s: layer()(X[None], s) for s in (X[:2], torch.zeros(()), torch.zeros(1, 2, 4))],
    "mask": [
        lambda: layer()(X, mask=torch.ones(2, 5, dtype=torch.bool)),
        lambda: layer()(X, mask=torch.ones(3, 4, dtype=torch.bool)),
        lambda: layer()(X, mask=torch.zeros(3, 5, dtype=torch.bool)),
    ],
    "state": [lambda name=name: convert.mixtral_layer(without(name)) for name in MIXTRAL]
    + [lambda: convert.mixtral_layer(MIXTRAL, prefix="model.")]
    + [lambda: convert.mixtral_layer(MIXTRAL | {"experts.down_proj": torch.zeros(4, 4, 6)})]
    + [lambda: convert.switch_layer(MIXTRAL, 3)],
    "k": [lambda: convert.mixtral_layer(MIXTRAL, 6)],
    "layer": [
        lambda: convert.mixtral_state(layer()),
        lambda: convert.mixtral_state(moe.MoE(m.SoftGate(m.LinearScore(4, 5)), moe.FFNExperts(5, 4, 6, gated=True))),
        lambda: convert.mixtral_state(moe.MoE(gate(), moe.FFNExperts(5, 4, 6, gated=True, activation="gelu"))),
        lambda: convert.switch_state(layer()),
    ]
    + [
        lambda g=g: convert.mixtral_state(moe.MoE(g, moe.FFNExperts(5, 4, 6, activation="silu", gated=True)))
        for g in (
            m.SoftmaxTopKGate(m.LinearScore(4, 5), 2),
            m.TopKGate(m.LinearScore(4, 5, bias=True), 2),
            m.TopKGate(m.LinearScore(4, 5), 2, temperature=0.5),
        )
    ]
    + [
        lambda g=g, options=options: convert.switch_state(moe.MoE(moe.Capacity(g, **options), EXPERTS))
        for g, options in (
            (m.SoftmaxTopKGate(m.LinearScore(4, 5), 2), {"size": 3, "per_sequence": True}),
            (m.SoftmaxTopKGate(m.LinearScore(4, 5), 1, temperature=0.3), {"size": 3, "per_sequence": True}),
            (m.SoftmaxTopKGate(m.LinearScore(4, 5), 1), {"size": 3}),
            (m.SoftmaxTopKGate(m.LinearScore(4, 5), 1), {"factor": 0.5, "per_sequence": True}),
            (m.SoftmaxTopKGate(m.LinearScore(4, 5), 1), {"size": 3, "per_sequence": True, "priority": "max"}),
        )
    ],
}


@pytest.mark.parametrize(("name", "call"), [(name, call) for name, calls in CASES.items() for call in calls])
def test_every_argument(name, call):
    with pytest.raises(ValueError, match=rf"^{name} (or size )?must"):
        call()


@pytest.mark.parametrize("dispatch", SPARSE)
def test_experts_of_another_width(dispatch):
    with pytest.raises(ValueError, match=r"(weight|x) must (be|have)"):
        dispatch(X, ROUTING, moe.FFNExperts(5, 3, 6))


def test_rows_that_the_offsets_do_not_cover():
    for experts in (EXPERTS, moe.LinearExperts(5, 4, 2)):
        with pytest.raises(ValueError, match=r"^offsets must"):
            experts(X, torch.tensor([0, 1, 1, 1, 1, 2]))
