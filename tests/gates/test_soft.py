import itertools
import math

import entmax
import numpy as np
import pytest
import scipy.optimize
import torch

from gated.gates import entmax_gate, softmax_gate, sparsemax_gate

RNG = np.random.default_rng(0)


def test_softmax_by_the_definition():
    row = [0.3, -1.2, 2.0]
    powers = [math.exp(value / 0.7) for value in row]
    expected = torch.tensor([power / sum(powers) for power in powers], dtype=torch.float64)
    torch.testing.assert_close(
        softmax_gate(torch.tensor(row, dtype=torch.float64), 0.7), expected, rtol=1e-15, atol=0
    )


def test_temperature_per_row_equals_one_row_at_a_time():
    logits, temperature = (
        torch.tensor(RNG.normal(size=(2, 3, 4))),
        torch.tensor(RNG.uniform(0.1, 3, size=(2, 3))),
    )
    for gate in (softmax_gate, sparsemax_gate):
        together = gate(logits, temperature)
        for i, j in itertools.product(range(2), range(3)):
            torch.testing.assert_close(
                together[i, j], gate(logits[i, j], temperature[i, j].item()), rtol=0, atol=1e-15
            )


@pytest.mark.parametrize("shape", [(), (3,)])
def test_gradient_of_the_temperature_with_a_gate_shut(shape):
    logits = torch.tensor(RNG.normal(size=(3, 4)))
    logits[1, 2] = -torch.inf
    temperature = torch.full(shape, 0.6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: softmax_gate(logits, t), temperature)
    assert torch.autograd.gradcheck(lambda t: entmax_gate(logits, 1.5, t), temperature)


def brute_force_projection(row):
    """The projection onto the simplex: over all supports, the feasible point nearest to the row."""
    best = None
    for size in range(1, len(row) + 1):
        for support in map(list, itertools.combinations(range(len(row)), size)):
            point = np.zeros(len(row))
            point[support] = row[support] - (row[support].sum() - 1) / size
            if (point >= 0).all() and (
                best is None or ((point - row) ** 2).sum() < ((best - row) ** 2).sum()
            ):
                best = point
    return best


def test_sparsemax_against_all_supports():
    rows = RNG.normal(scale=1.5, size=(30, 5))
    expected = torch.tensor(np.stack([brute_force_projection(row) for row in rows]))
    torch.testing.assert_close(sparsemax_gate(torch.tensor(rows)), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("alpha", [1.01, 1.25, 1.5, 1.9])
def test_entmax_against_a_root_finder(alpha):
    for row in RNG.normal(scale=2, size=(10, 6)):
        scores = (alpha - 1) * row

        def weights(threshold, scores=scores):
            return np.clip(scores - threshold, 0, None) ** (1 / (alpha - 1))

        threshold = scipy.optimize.brentq(
            lambda t: weights(t).sum() - 1, scores.max() - 1, scores.max(), xtol=1e-15
        )
        torch.testing.assert_close(
            entmax_gate(torch.tensor(row), alpha), torch.tensor(weights(threshold)), atol=1e-12, rtol=0
        )


@pytest.mark.parametrize("alpha", [1.5, 2])
def test_entmax_solves_its_own_problem(alpha):
    """argmax of <w, l> + H_alpha(w), Tsallis entropy, by a general optimiser that knows nothing of
    thresholds."""
    row = np.array([0.9, 0.4, -0.2, -1.5])

    def loss(w):
        return -(w @ row + (w - np.abs(w) ** alpha).sum() / (alpha * (alpha - 1)))

    found = scipy.optimize.minimize(
        loss,
        np.full(4, 0.25),
        bounds=[(0, 1)] * 4,
        tol=1e-14,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
    )
    torch.testing.assert_close(
        entmax_gate(torch.tensor(row), alpha), torch.tensor(found.x), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(
    ("alpha", "peer"),
    [(2, entmax.sparsemax), (1.5, entmax.entmax15), (1.3, lambda x, dim: entmax.entmax_bisect(x, 1.3, dim))],
)
def test_entmax_against_the_authors_library(alpha, peer):
    ours = torch.tensor(RNG.normal(scale=2, size=(4, 5, 7)), requires_grad=True)
    theirs, upstream = ours.detach().clone().requires_grad_(), torch.tensor(RNG.normal(size=(4, 5, 7)))
    weights, expected = entmax_gate(ours, alpha), peer(theirs, dim=-1)
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-13)
    weights.backward(upstream)
    expected.backward(upstream)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("alpha", [1.05, 1.8])
def test_entmax_derivatives_with_and_without_shut_gates(alpha):
    logits = torch.tensor(RNG.normal(scale=2, size=(3, 5)), requires_grad=True)
    assert torch.autograd.gradcheck(lambda l: entmax_gate(l, alpha), logits)
    assert torch.autograd.gradgradcheck(lambda l: entmax_gate(l, alpha), logits)


def test_entmax_tends_to_softmax():
    logits = torch.tensor(RNG.normal(size=(5, 4)))
    assert torch.equal(entmax_gate(logits, 1), softmax_gate(logits))
    torch.testing.assert_close(entmax_gate(logits, 1 + 1e-6), softmax_gate(logits), rtol=0, atol=1e-5)


def test_entmax_shuts_gates():
    assert entmax_gate(torch.tensor([2.0, 1.9, -3.0]), 1.5)[2] == 0


def test_a_gate_on_the_edge_counts_as_shut():
    """Its weight is 0 from either side; the slope there is that of the gates that are open."""
    logits = torch.tensor([1.0, 0.0], requires_grad=True)
    weights = entmax_gate(logits, 2)
    assert weights.tolist() == [1, 0]
    assert torch.autograd.grad(weights[0], logits)[0].tolist() == [0, 0]


@pytest.mark.parametrize("gates", [1, 2, 1000])
def test_entmax_at_every_width_sums_to_one_in_single_precision(gates):
    weights = entmax_gate(torch.tensor(RNG.normal(size=(20, gates)), dtype=torch.float32), 1.5)
    torch.testing.assert_close(weights.sum(-1), torch.ones(20), rtol=0, atol=1e-5)
