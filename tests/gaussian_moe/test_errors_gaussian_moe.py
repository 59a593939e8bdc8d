"""Bad input of the model, its fit, its starts and the regressor: a ValueError that says what would do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from gated.gaussian_moe import Gate, GaussianMoE, fit, starts, truths
from gated.gaussian_moe.estimator import GaussianMoERegressor
from gated.kernels.gmoe_em import Points


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def problem(datasets: int = 2, n: int = 20) -> tuple[Points, GaussianMoE]:
    x = truths.uniform(truths.UNIT, datasets * n, generator=generator())
    points = Points.pack(x, truths.DENSE.sample(x, generator()), torch.arange(0, datasets * n + 1, n))
    return points, starts.near(truths.DENSE, datasets, 0.01, generator())


# The model ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"top_k": 0}, "top_k must be None or an integer of at least 1; got 0"),
        ({"top_k": True}, "top_k"),
        ({"top_k": 1.0}, "top_k"),
        ({"rank": "bias"}, "rank must be one of"),
        ({"activation": "elu"}, "activation must be one of"),
    ],
)
def test_gate(arguments, message):
    with pytest.raises(ValueError, match=message):
        Gate(**arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beta0": torch.zeros(0)}, "beta0 must have shape"),
        ({"b": torch.zeros(3)}, "b must have beta0's shape"),
        ({"variance": torch.zeros(2, 1)}, "variance must have"),
        ({"beta1": torch.zeros(2)}, "beta1 must have shape"),
        ({"a": torch.zeros(2, 2)}, "a must have shape"),
        ({"tau": torch.zeros(2)}, "tau must have shape"),
        ({"gate": Gate(top_k=3)}, "top_k must be at most the number of experts, 2; got 3"),
    ],
)
def test_model(change, message):
    with pytest.raises(ValueError, match=message):
        replace(truths.DENSE, **change)


# The fit --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tolerance": 0.0}, "tolerance must be a positive finite number"),
        ({"max_slope": float("inf")}, "max_slope must be a positive finite number"),
        ({"max_bias": 0.0}, r"max_bias must be a number in \(0, inf\]; got 0.0"),
        ({"max_bias": float("nan")}, "max_bias"),
        ({"min_tau": -1.0}, "min_tau"),
        ({"max_iterations": 0}, "max_iterations must be an integer of at least 1"),
        ({"max_iterations": 2.0}, "max_iterations"),
        ({"polish": "newton"}, "polish must be None or one of"),
        ({"min_variance": 0.0}, "min_variance must be above 0"),
        ({"min_variance": torch.tensor([1.0, float("nan")])}, "min_variance"),
    ],
)
def test_fit_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        fit(*problem(), **arguments)


def test_fit_start():
    points, start = problem()
    with pytest.raises(ValueError, match=r"start must be 2 models of 1 inputs, one a data set; got models \(1,\) of 1"):
        fit(points, start[:1])
    wide = replace(start, a=torch.zeros(2, 2, 3).double(), beta1=torch.zeros(2, 2, 3).double())
    with pytest.raises(ValueError, match=r"got models .* of 3"):
        fit(points, wide)
    for name in start.tensors():
        with pytest.raises(ValueError, match=f"start's {name} must be finite"):
            fit(points, replace(start, **{name: start.tensors()[name] * float("nan")}))
    for name in ("variance", "tau"):
        with pytest.raises(ValueError, match=f"start's {name} must be finite and above 0"):
            fit(points, replace(start, **{name: 0 * start.tensors()[name]}))
    with pytest.raises(ValueError, match="float64"):
        fit(points, start.map(lambda tensor: tensor.float()))
    shifted = replace(start, beta1=start.beta1 + 1)
    fit(points, shifted, max_iterations=1)  # the identity lets a shift of all slopes be taken out
    with pytest.raises(ValueError, match="last expert must have beta1 = 0"):
        fit(points, shifted.with_gate(Gate(activation="tanh")))
    with pytest.raises(ValueError, match=r"finite likelihood; data sets \[0, 1\] do not"):
        fit(points, replace(start, b=start.b + 1e200))


def test_fit_points():
    points, start = problem()
    with pytest.raises(ValueError, match=r"no data set empty; \[2\] are"):
        fit(points._replace(segments=3), starts.near(truths.DENSE, 3, 0.01, generator()))
    with pytest.raises(ValueError, match="float64"):
        fit(points._replace(x=points.x.float(), y=points.y.float()), start)
    for bad in (float("nan"), float("inf")):
        y = points.y.clone()
        y[0, 0] = bad
        with pytest.raises(ValueError, match="points must be finite"):
            fit(points._replace(y=y), start)
        with pytest.raises(ValueError, match="finite"):
            Points.pack(torch.tensor([[bad]]), torch.ones(1), torch.tensor([0, 1]))


# Starts ---------------------------------------------------------------------------------------------------------------


def test_starts():
    truth, g = truths.SPARSE, generator()
    with pytest.raises(ValueError, match="truth must be one model"):
        starts.near(truth.expand(2), 2, 0.1, g)
    with pytest.raises(ValueError, match="scale must be at least 0; got -1"):
        starts.near(truth, 2, -1.0, g)
    with pytest.raises(ValueError, match="ray must be at least 0"):
        starts.near(truth, 2, 0.1, g, ray=float("nan"))
    with pytest.raises(ValueError, match="experts must be at least the truth's 3; got 2"):
        starts.deal(truth, 2, 2, 0.1, g)
    with pytest.raises(ValueError, match=r"cell must be \[datasets, experts\] in 0..2"):
        starts.share(truth, torch.tensor([[0, 1, 3]]), 0.1, g)
    with pytest.raises(ValueError, match="cell must end with the last true expert, 2"):
        starts.share(truth, torch.tensor([[2, 1, 0]]), 0.1, g)
    with pytest.raises(ValueError, match=r"\|distance\| < 1; got 1.5"):
        starts.apart(truth, torch.tensor([[0, 1, 2, 2]]), 1.5, 0.0, g)
    with pytest.raises(ValueError, match="top_k must be at most the number of experts"):
        starts.deal(truth, 3, 2, 0.1, g, gate=Gate(4))


# The regressor --------------------------------------------------------------------------------------------------------


def line(n: int) -> tuple[np.ndarray, np.ndarray]:
    x = np.linspace(-1, 1, n)
    return x[:, None], np.abs(x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_experts": 0}, "n_experts"),
        ({"n_experts": 2.0}, "n_experts"),
        ({"n_init": 0}, "n_init"),
        ({"min_variance": 0}, "min_variance"),
        ({"top_k": 3}, "top_k must be at most n_experts=2"),
        ({"rank": "bias"}, "rank"),
        ({"activation": "elu"}, "activation"),
        ({"tol": 0}, "tolerance"),
        ({"max_iter": 0}, "max_iterations"),
        ({"n_experts": 101}, "n_samples=100 must be at least n_experts=101"),
    ],
)
def test_regressor_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        GaussianMoERegressor(**options).fit(*line(100))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_regressor_data(bad):
    x, y = line(10)
    for where in (x[3], y[3:4]):
        kept, where[:] = where.copy(), bad
        with pytest.raises(ValueError, match=r"NaN|infinity"):
            GaussianMoERegressor().fit(x, y)
        where[:] = kept
    with pytest.raises(ValueError, match="n_samples=1 "):
        GaussianMoERegressor().fit([[1.0]], [2.0])
    assert GaussianMoERegressor(1).fit([[1.0]], [2.0]).predict([[1.0]]) == 2
