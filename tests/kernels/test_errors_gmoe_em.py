"""Bad input to the fused pass of EM: a ValueError that names the argument."""

import math

import pytest
import torch

from gated.kernels.gmoe_em import Points, gmoe_em


def pack(points: int = 6, dim: int = 1, **changed):
    given = {"x": torch.zeros(points, dim), "y": torch.zeros(points), "offsets": torch.tensor([0, 2, 6])}
    return Points.pack(**given | changed)


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("x and y", {"x": torch.zeros(6)}),
        ("x and y", {"x": torch.zeros(6, 0)}),
        ("x and y", {"y": torch.zeros(5)}),
        ("x and y", {"y": torch.zeros(6).double()}),
        ("x and y", {"x": torch.zeros(6, 1).long(), "y": torch.zeros(6).long()}),
        ("offsets", {"offsets": torch.tensor([0, 5])}),
        ("offsets", {"offsets": torch.tensor([1, 6])}),
        ("offsets", {"offsets": torch.tensor([0, 4, 2, 6])}),
        ("offsets", {"offsets": torch.tensor([], dtype=torch.int64)}),
        ("offsets", {"offsets": torch.tensor([0.0, 6.0])}),
        ("length", {"length": 0}),
        ("length", {"length": 2.5}),
        ("x", {"x": torch.full((6, 1), math.nan)}),
        ("y", {"y": torch.full((6,), math.inf)}),
    ],
)
def test_points(name, changed):
    with pytest.raises(ValueError, match=rf"^{name} must"):
        pack(**changed)


def call(points=None, top_k=None, rank="logit", activation="identity", **changed):
    p = {"beta0": torch.zeros(2, 3), "beta1": torch.zeros(2, 3, 1), "a": torch.zeros(2, 3, 1), "b": torch.zeros(2, 3)}
    p |= {"variance": torch.ones(2, 3), "tau": torch.ones(2)}
    p |= changed
    return gmoe_em(points or pack(), **p, top_k=top_k, rank=rank, activation=activation)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("segments", value) for value in (True, 2.0, -1, None)),
        *(("x", value) for value in (None, torch.zeros(2, 256), torch.zeros(2, 1, 0), torch.zeros(2, 1, 256).long())),
        *(("y", value) for value in (None, torch.zeros(2, 5), torch.zeros(2, 256).bool(), torch.zeros(2, 256).long())),
        *(("count", value) for value in (torch.zeros(3).long(), torch.ones(2), torch.tensor([2, 257]))),
        *(("segment", value) for value in (torch.zeros(2), torch.tensor([0, 2]), torch.tensor([-1, 0]))),
    ],
)
def test_points_put_together_by_hand(name, value):
    assert call(pack()._replace(segments=2)) is not None
    with pytest.raises(ValueError, match=rf"^{name} must"):
        call(pack()._replace(**{name: value}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("beta0", torch.zeros(3, 3)),
        ("beta0", torch.zeros(2, 0)),
        ("beta0", torch.tensor(1.0)),
        ("beta1", torch.zeros(2, 3)),
        ("beta1", torch.zeros(2, 3, 2)),
        ("a", torch.zeros(2, 2, 1)),
        ("b", torch.zeros(2, 3).long()),
        ("variance", torch.zeros(2, 3)),
        ("variance", torch.full((2, 3), math.nan)),
        ("tau", torch.ones(2, 3)),
        ("tau", torch.tensor([1.0, 0.0])),
        ("tau", torch.tensor([1.0, -1.0])),
        ("a", torch.full((2, 3, 1), math.inf)),
        ("top_k", 0),
        ("top_k", 4),
        ("top_k", 1.0),
        ("top_k", True),
        ("rank", "bias"),
        ("activation", "swish"),
    ],
)
def test_names_the_argument(name, value):
    with pytest.raises(ValueError, match=rf"^{name} must"):
        call(**{name: value})


def test_names_the_data_set():
    with pytest.raises(ValueError, match=r"data sets \[1\]"):
        call(tau=torch.tensor([1.0, 0.0]))


def test_half_precision_points():
    points = pack()
    with pytest.raises(ValueError, match=r"^points must be float32 or float64"):
        call(Points(points.x.half(), points.y.half(), *points[2:]))


def test_what_is_legal_is_not_refused():
    assert call().log_likelihood.isfinite().all()
    assert call(pack(x=torch.zeros(0, 1), y=torch.zeros(0), offsets=torch.tensor([0, 0, 0]))).log_likelihood.eq(0).all()
