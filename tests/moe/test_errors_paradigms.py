"""The paradigm experiments' models answer bad input with a ValueError (run without the jaxtyping hook)."""

import pytest
import torch

from gated.moe import continual, meta, multitask, reinforcement


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("rounds", {"rounds": 0}),
        ("seeds", {"seeds": 0}),
        ("clusters", {"clusters": 0}),
        ("clusters", {"clusters": 8}),
        ("rank", {"rank": 11}),
        ("rank", {"rank": 0}),
        ("samples", {"samples": 0}),
    ],
)
def test_task_stream(argument, options):
    with pytest.raises(ValueError, match=argument):
        continual.linear_task_stream(**{"rounds": 3, "seeds": 1, "generator": seeded()} | options)


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("num_experts", {"num_experts": 0}),
        ("rate", {"rate": -1.0}),
        ("noise", {"noise": -0.1}),
        ("alpha", {"alpha": float("nan")}),
        ("balance", {"balance": -0.02}),
        ("stop", {"stop": -1}),
        ("route", {"route": torch.zeros(3, 2, dtype=torch.int64)}),
        ("route", {"route": torch.full((3, 1), 2)}),
        ("route", {"route": torch.full((3, 1), -1)}),
    ],
)
def test_learn(argument, options):
    stream = continual.linear_task_stream(3, 1, seeded())
    with pytest.raises(ValueError, match=rf"^{argument} must"):
        continual.learn(stream, **{"num_experts": 2, "generator": seeded()} | options)


@pytest.mark.parametrize(
    ("argument", "options"),
    [("functions", {"functions": 0}), ("context", {"context": 0}), ("target", {"target": 0}), ("noise", {"noise": -1})],
)
def test_sample_functions(argument, options):
    with pytest.raises(ValueError, match=rf"^{argument} must"):
        meta.sample_functions(**{"functions": 2, "context": 3, "target": 3, "generator": seeded()} | options)


@pytest.mark.parametrize("argument", ["num_experts", "code", "hidden", "least_std"])
def test_mixture_cnp(argument):
    with pytest.raises(ValueError, match=rf"^{argument} must"):
        meta.MixtureCNP(**{argument: 0})


def test_mixture_cnp_choice():
    points = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"^log_weight must"):
        meta.MixtureCNP(4)(points, points, points, torch.zeros(2, 3))


def test_least_squares_gate():
    with pytest.raises(ValueError, match="contexts and losses"):
        meta.least_squares_gate(torch.zeros(4, 2), torch.zeros(3, 2), seeded())
    with pytest.raises(ValueError, match="contexts and losses"):
        meta.least_squares_gate(torch.zeros(2, 2), torch.zeros(2, 3), seeded())


@pytest.mark.parametrize(
    ("argument", "options"),
    [("correlation", {"correlation": 1.1}), ("dim", {"dim": 1}), ("waves", {"waves": -1}), ("noise", {"noise": -0.1})],
)
def test_two_tasks(argument, options):
    with pytest.raises(ValueError, match=argument):
        multitask.two_tasks(**{"correlation": 0.5, "generator": seeded()} | options)


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("dim", {"dim": 0}),
        ("num_experts", {"num_experts": 0}),
        ("hidden", {"hidden": 0}),
        ("tasks", {"tasks": 0}),
        ("tower", {"tower": 0}),
        ("gates", {"gates": "none"}),
        ("num_experts", {"gates": "own"}),
        ("num_experts", {"orthogonal": True, "num_experts": 17}),
    ],
)
def test_mmoe(argument, options):
    with pytest.raises(ValueError, match=rf"^{argument} must"):
        multitask.MMoE(**{"dim": 4} | options)


def test_gram_schmidt():
    with pytest.raises(ValueError, match=r"^vectors must"):
        multitask.gram_schmidt(torch.zeros(3, 2))


def test_bandit_and_policy():
    with pytest.raises(ValueError, match=r"^goal must"):
        reinforcement.MultiGoalBandit(torch.ones(3)).without(3)
    for argument in ("components", "hidden", "std"):
        with pytest.raises(ValueError, match=rf"^{argument} must"):
            reinforcement.MixturePolicy(**{"components": 2} | {argument: 0})


@pytest.mark.parametrize(
    ("argument", "options"),
    [("seeds", {"seeds": 0}), ("time", {"time": 0}), ("dwell", {"dwell": 0}), ("noise", {"noise": -1.0})],
)
def test_switching_system(argument, options):
    with pytest.raises(ValueError, match=rf"^{argument} must"):
        reinforcement.switching_system(**{"seeds": 1, "time": 2, "generator": seeded()} | options)


@pytest.mark.parametrize("options", [{"prior": 0}, {"forget": 0}, {"forget": 1.1}])
def test_recursive_least_squares(options):
    with pytest.raises(ValueError, match=r"prior .* forget"):
        reinforcement.RecursiveLeastSquares(torch.zeros(2, 2), **options)


def test_responsibility():
    with pytest.raises(ValueError, match=r"^sigma must"):
        reinforcement.responsibility(torch.zeros(2, 3), 0.0)
