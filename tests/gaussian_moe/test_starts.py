"""Where fits start: sizes of the noise, weights of shared experts, moments of experts set apart."""

from __future__ import annotations

import torch

from gated.gaussian_moe import Gate, GaussianMoE, starts, truths

X = torch.linspace(-1, 1, 41, dtype=torch.float64)[:, None]
Y = torch.linspace(-3, 3, 41, dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def densities(model: GaussianMoE) -> torch.Tensor:
    n = len(model.tau)
    return model.log_density(X.expand(n, 41, 1), Y.expand(n, 41))


def test_near_scatters_all_numbers_but_the_gauge_and_the_temperature():
    truth, n = truths.SPARSE, 4000
    start = starts.near(truth, n, 0.1, generator())
    for name in ("beta0", "beta1", "a", "b"):
        noise = getattr(start, name) - getattr(truth, name)
        free = noise[:, :-1] if name.startswith("beta") else noise
        assert abs(free.std() - 0.1) < 0.003 and free.mean().abs() < 0.005
    assert abs((start.variance / truth.variance).log().std() - 0.1) < 0.003
    assert not start.beta0[:, -1].any() and not start.beta1[:, -1].any() and start.tau.eq(1).all()
    again, still = starts.near(truth, n, 0.1, generator()), starts.near(truth, 3, 0.0, generator())
    assert again.b.equal(start.b) and still.gate == truth.gate
    torch.testing.assert_close(densities(still), densities(truth.expand(3)))


def test_a_ray_changes_no_density_of_a_linear_gate():
    truth = truths.TEMPERATURE
    start = starts.near(truth, 4000, 0.0, generator(), ray=0.3)
    c = start.tau / truth.tau
    assert abs(c.log().std() - 0.3) < 0.01 and c.log().mean().abs() < 0.02
    torch.testing.assert_close(start.beta1[:, 0, 0] / start.tau, torch.full_like(c, 4.0))
    torch.testing.assert_close(densities(start[:9]), densities(truth.expand(9)))


def test_dealt_experts_leave_the_density_and_no_cell_empty():
    """Exact copies that share a weight are one expert."""
    for truth in (truths.DENSE, truths.TEMPERATURE):
        start = starts.deal(truth, 4, 50, 0.0, generator())
        torch.testing.assert_close(densities(start), densities(truth.expand(50)), rtol=1e-12, atol=1e-12)
        cell = (start.b[..., None] - truth.b).abs().argmin(-1)
        assert all(set(row) == {0, 1} and row == sorted(row) for row in cell.tolist())
        assert {row.count(0) for row in cell.tolist()} == {1, 2, 3}
    gate = Gate(3, "slope")
    assert starts.deal(truths.SPARSE, 4, 2, 0.1, generator(), gate=gate).gate == gate


def test_shared_cells_are_those_given():
    cell = torch.tensor([[0, 1, 2, 2], [0, 0, 1, 2]])
    start = starts.share(truths.SPARSE, cell, 0.0, generator(), gate=Gate(4, "slope"))
    assert start.b.equal(truths.SPARSE.b[cell])
    dense = truths.SPARSE.with_gate(Gate())
    torch.testing.assert_close(densities(start), densities(dense.expand(2)), rtol=1e-12, atol=1e-12)


def test_experts_set_apart_keep_the_mixtures_mean_and_variance():
    cell = torch.tensor([[0, 1, 1], [0, 0, 1]])
    start = starts.apart(truths.DENSE, cell, 0.5, 0.0, generator())
    std = truths.DENSE.variance.sqrt()
    torch.testing.assert_close(start.b[0, 2] - start.b[0, 1], std[1])  # -0.5 and +0.5 standard deviations
    torch.testing.assert_close(start.b[1, 1] - start.b[1, 0], std[0])
    for row in range(2):
        for true in range(2):
            these = cell[row] == true
            weight = start.beta0[row, these].softmax(0)
            mean = (weight * start.b[row, these]).sum()
            variance = (weight * (start.variance[row, these] + start.b[row, these].square())).sum() - mean.square()
            torch.testing.assert_close(mean, truths.DENSE.b[true])
            torch.testing.assert_close(variance, truths.DENSE.variance[true])
    three = starts.apart(truths.DENSE, torch.tensor([[0, 1, 1, 1]]), 0.5, 0.0, generator())
    torch.testing.assert_close((three.b[0, 1:] - truths.DENSE.b[1]) / std[1], torch.tensor([-0.5, 0, 0.5]).double())
