"""Routers, routing levels and EM answer bad input with a ValueError that names the argument (without the hook)."""

import pytest
import torch

from gated import gates as g
from gated.moe import em, levels
from gated.moe import gates as m

X, IDS, MASK = torch.zeros(3, 4), torch.tensor([0, 1, 2]), torch.ones(3, 5, dtype=torch.bool)
Y, H, X3 = torch.zeros(2, 3), torch.full((2, 3, 5), 0.2), torch.zeros(2, 3, 4)
NONE_LEFT = MASK.clone()
NONE_LEFT[1] = False


def score():
    return m.LinearScore(4, 5)


def rng():
    return torch.Generator().manual_seed(0)


LEARNED = {
    "soft": lambda: m.SoftGate(score()),
    "top-k": lambda: m.TopKGate(score(), 2),
    "noisy": lambda: m.NoisyTopKGate(4, 5, 2),
    "probit": lambda: m.ProbitGate(score()),
    "top-p": lambda: m.TopPGate(score()),
    "expert choice": lambda: m.ExpertChoiceGate(score()),
    "sigmoid": lambda: m.BiasedSigmoidGate(score(), 2),
    "cosine": lambda: m.SoftGate(m.CosineScore(4, 5)),
    "gaussian": lambda: m.SoftGate(m.GaussianScore(4, 5)),
    "student": lambda: m.SoftGate(m.StudentTScore(4, 5)),
    "laplace": lambda: m.SoftGate(m.LaplaceScore(4, 5)),
    "soft moe": lambda: m.SoftMoEGate(4, 5),
}
FIXED = {"hash": lambda: m.HashGate(5), "random": lambda: m.RandomGate(5), "oracle": lambda: m.OracleGate(5)}


@pytest.mark.parametrize("make", LEARNED.values(), ids=LEARNED)
def test_signal(make):
    for bad in (torch.zeros(3, 5), torch.zeros(4), torch.zeros(2, 3, 4), torch.zeros(3, 4).long()):
        with pytest.raises(ValueError, match=r"^x must be"):
            make()(bad)


@pytest.mark.parametrize("make", (LEARNED | FIXED).values(), ids=LEARNED | FIXED)
def test_mask(make):
    x = IDS if make in (FIXED["hash"], FIXED["oracle"]) else X
    for bad in (MASK[:2], MASK[:, :4], MASK.float(), NONE_LEFT):
        with pytest.raises(ValueError, match=r"^mask must"):
            make()(x, bad)


@pytest.mark.parametrize("k", [0, 6, -1, 1.5, True, None])
def test_k(k):
    for make in (
        lambda: m.TopKGate(score(), k),
        lambda: m.SoftmaxTopKGate(score(), k),
        lambda: m.NoisyTopKGate(4, 5, k),
        lambda: m.BiasedSigmoidGate(score(), k),
        lambda: m.HashGate(5, k),
        lambda: m.RandomGate(5, k),
    ):
        with pytest.raises(ValueError, match=r"^k must be"):
            make()


SCORES = (m.LinearScore, m.CosineScore, m.GaussianScore, m.StudentTScore, m.LaplaceScore)
CASES = {
    "features": [lambda s=s: s(0, 5) for s in SCORES],
    "num_experts": [lambda s=s: s(4, 1.5) for s in SCORES]
    + [lambda f=f: f(0) for f in (m.HashGate, m.RandomGate, m.OracleGate, m.PredictionErrorScore)],
    "projection": [lambda: m.CosineScore(4, 5, projection=0)],
    "scale": [lambda v=v: m.CosineScore(4, 5, scale=v) for v in (0, 101)]
    + [lambda: m.BiasedSigmoidGate(score(), 2, scale=0.0)],
    "perturbation": [lambda: m.CosineScore(4, 5, perturbation=(-1, 0))(X)],
    "covariance": [lambda: m.GaussianScore(4, 5, covariance="round")],
    "min_std": [lambda: m.GaussianScore(4, 5, min_std=0)],
    "min_noise_std": [lambda: m.NoisyTopKGate(4, 5, 2, min_noise_std=0)],
    "freedom": [lambda v=v: m.StudentTScore(4, 5, v) for v in (0, float("inf"))],
    "temperature": [lambda: m.LaplaceScore(4, 5, 0), lambda: m.SoftGate(score(), temperature=-1)],
    "sigma": [lambda: m.PredictionErrorScore(5, 0)],
    "score": [lambda: m.SoftGate(torch.nn.Linear(4, 5))],
    "noise_std": [lambda: m.SoftmaxTopKGate(score(), 2, noise_std=-1), lambda: m.ProbitGate(score(), noise_std=0)],
    "capacity_factor": [lambda: m.ExpertChoiceGate(score(), capacity_factor=0)],
    "threshold": [
        lambda: m.TopPGate(score(), 1.1),
        lambda: m.DenseToSparseGate(score(), g.constant_schedule(1.0), 1.0),
    ],
    "groups": [lambda: m.BiasedSigmoidGate(score(), 2, groups=2), lambda: m.BiasedSigmoidGate(score(), 2, groups=0)],
    "keep_groups": [lambda: m.BiasedSigmoidGate(score(), 1, groups=5, keep_groups=6)],
    "k": [lambda: m.BiasedSigmoidGate(score(), 2, groups=5, keep_groups=1)],
    "rate": [lambda: m.BiasedSigmoidGate(score(), 2, rate=0)],
    "load": [lambda: m.BiasedSigmoidGate(score(), 2).update(torch.zeros(4))],
    "slots": [lambda: m.SoftMoEGate(4, 5, 0)],
    "ids": [
        lambda f=f, i=i: f(5)(i)
        for f in (m.HashGate, m.OracleGate)
        for i in (IDS[:, None], IDS.float(), IDS.bool())
    ]
    + [lambda i=i: m.OracleGate(5)(torch.tensor([i])) for i in (-1, 5)],
    "x": [lambda f=f: f(X) for f in (levels.per_token, levels.pooled_context)]
    + [lambda f=f, x=x: f(x, Y, H) for f in (em.fit_gaussian_gate, em.fit_softmax_gate) for x in (X, X3[:, :0])]
    + [lambda: m.SoftGate(m.PredictionErrorScore(5))(X)],
    "valid": [
        lambda v=v: levels.pooled_context(X3, v)
        for v in (torch.ones(2, 2).bool(), torch.ones(2, 3), torch.zeros(2, 3).bool())
    ],
    "tasks": [lambda: levels.TaskSignal(0, 3)],
    "task": [lambda t=t: levels.TaskSignal(2, 3)(t) for t in (IDS, IDS - 1, IDS.float(), IDS[None])],
    "modality": [lambda i=i: levels.modality_mask(i, IDS) for i in (IDS - 1, IDS.float())],
    "owner": [lambda o=o: levels.modality_mask(IDS, o) for o in (IDS[:2], IDS.float(), IDS[None])],
    "bits": [lambda b=b: levels.attribute_bits(IDS, b) for b in (0, 63, True)],
    "code": [lambda: levels.attribute_bits(IDS, 1), lambda: levels.attribute_bits(IDS - 1)],
    "counts": [lambda: levels.vocabulary_mask(IDS.float(), 5, rng(), rare_below=1)],
    "visible_rare": [lambda: levels.vocabulary_mask(IDS, 5, rng(), rare_below=1, visible_rare=6)],
    "visible_frequent": [lambda: levels.vocabulary_mask(IDS, 5, rng(), rare_below=1, visible_frequent=0)],
    "y": [lambda f=f: f(X3, Y[:, :2], H) for f in (em.fit_gaussian_gate, em.fit_softmax_gate)],
    "responsibility": [
        lambda f=f, h=h: f(X3, Y, h)
        for f in (em.fit_gaussian_gate, em.fit_softmax_gate)
        for h in (H[:1], H[0], H.double())
    ],
    "steps": [lambda f=f: f(X3, Y, H, steps=0) for f in (em.fit_gaussian_gate, em.fit_softmax_gate)]
    + [lambda: em.fit_softmax_gate(X3, Y, H, newton_steps=0)],
    "floor": [lambda f=f: f(X3, Y, H, floor=0) for f in (em.fit_gaussian_gate, em.fit_softmax_gate)],
    "gate_freedom": [lambda: em.fit_gaussian_gate(X3, Y, H, gate_freedom=0)],
    "expert_freedom": [lambda: em.fit_gaussian_gate(X3, Y, H, expert_freedom=float("nan"))],
    "experts": [lambda k=k: em.nearest_of_random(X3, k, rng()) for k in (0, 4)],
}


@pytest.mark.parametrize(("name", "call"), [(name, call) for name, calls in CASES.items() for call in calls])
def test_every_other_argument(name, call):
    with pytest.raises(ValueError, match=rf"^{name} (\(and newton_steps\) )?must"):
        call()
