"""Bad input to the theory of best responses: a ValueError that names the argument."""

import pytest
import torch

from gated.stn import theory

ONE = torch.ones(1, dtype=torch.float64)


def loss(w, lam):
    return (w * w).sum() + (lam * w).sum()


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: theory.sigmoid_response(torch.zeros(0, 3), torch.zeros(0)), "x"),
        (lambda: theory.sigmoid_response(torch.full((2, 2), float("nan")), torch.zeros(2)), "x"),
        (lambda: theory.affine_ridge_response(ONE, ONE, 0.0, -1.0), "scale"),
        (lambda: theory.affine_ridge_response(ONE, ONE, 0.0, float("inf")), "scale"),
        (lambda: theory.affine_ridge_response(ONE, ONE, 0.0, 1.0, "mean"), "method"),
        (lambda: theory.fit_affine_response(loss, ONE, ONE, 0.0), "scale"),
        (lambda: theory.fit_affine_response(loss, ONE, ONE, 1.0, nodes=0), "nodes"),
        (lambda: theory.fit_affine_response(loss, ONE, ONE, 1.0, steps=0), "steps"),
        (lambda: theory.implicit_hypergradient(loss, loss, ONE, ONE, iterations=0), "iterations"),
        (lambda: theory.implicit_hypergradient(loss, loss, ONE, ONE, damping=-1.0), "damping"),
        (lambda: theory.unrolled_hypergradient(loss, loss, ONE, ONE, steps=0, rate=0.1), "steps"),
        (lambda: theory.unrolled_hypergradient(loss, loss, ONE, ONE, steps=2, rate=0.0), "rate"),
        (lambda: theory.difference_hypergradient(lambda a: a.sum(), ONE, 0.0), "width"),
        (lambda: theory.equilibrium_scale(-1.0, 1.0), "temperature"),
    ],
)
def test_bad_input(call, named):
    with pytest.raises(ValueError, match=named):
        call()
