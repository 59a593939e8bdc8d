"""The CPU path of the Langevin scan against the step loop, and both against closed forms of the dynamics."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import solve_discrete_lyapunov
from torch import Tensor

from gated.kernels.langevin_scan import cpu, langevin_scan, lattice_force, naive_langevin_scan

SCHEMES = ("released", "symplectic", "baoab")
POTENTIALS = ("modes", "matrix", "chain", "quartic")
DECAYS = ("number", "scalar", "coordinate", "time", "all")


def problem(potential: str, decay: str, batch: int, time: int, dim: int, dtype=torch.float64, seed: int = 0):
    """Inputs of every kind, as keyword arguments."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype)

    given = {"z0": normal(batch, dim), "v0": normal(batch, dim), "noise": normal(batch, time, dim)}
    given |= {"control": normal(batch, time, dim), "temperature": 0.5 + uniform(dim)}
    h = normal(dim, dim)
    given["stiffness"] = (h + h.mT) / 2 if potential == "matrix" else 2 * uniform(dim) - 0.5
    if potential in ("chain", "quartic"):
        given["coupling"] = uniform(dim - 1)
    if potential == "quartic":
        given["quartic"] = uniform(dim)
    shapes = {"scalar": (), "coordinate": (dim,), "time": (batch, time), "all": (batch, time, dim)}
    given["decay"] = 0.7 if decay == "number" else 0.2 + 0.7 * uniform(*shapes[decay])
    return given


def outcome(form, given, weights, **options) -> dict[str, Tensor]:
    """z, v and the gradients of a weighted sum of both by all tensors."""
    given = {name: y.detach().requires_grad_() if isinstance(y, Tensor) else y for name, y in given.items()}
    leaves = {name: y for name, y in given.items() if isinstance(y, Tensor)}
    z, v = form(**given, **options)
    grads = torch.autograd.grad((z * weights[0]).sum() + (v * weights[1]).sum(), list(leaves.values()))
    return {"z": z.detach(), "v": v.detach(), **dict(zip(leaves, grads, strict=True))}


def weights(given, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, *given["noise"].shape, generator=generator, dtype=torch.float64).to(dtype)


def assert_equal(got, want, tolerance: float):
    for name, y in got.items():
        error = (y - want[name]).abs().max() / want[name].abs().max().clamp_min(1)
        assert error <= tolerance, (name, float(error))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("potential", POTENTIALS)
@pytest.mark.parametrize("decay", DECAYS)
def test_equals_the_step_loop(scheme, potential, decay):
    given = problem(potential, decay, 3, 7, 5)
    options = {"step": 0.1, "scheme": scheme}
    got = outcome(langevin_scan, given, weights(given), **options)
    assert_equal(got, outcome(naive_langevin_scan, given, weights(given), **options), 1e-12)


@pytest.mark.parametrize("scheme", SCHEMES)
@given(
    seed=st.integers(0, 99),
    batch=st.integers(1, 4),
    time=st.integers(1, 70),
    dim=st.integers(1, 6),
    width=st.sampled_from([0, 64, 32_767]),
    stiffness=st.floats(-0.5, 20),
)
@settings(max_examples=25)
def test_chunks_of_any_number_and_length(scheme, seed, batch, time, dim, width, stiffness):
    """Modes with one decay for all steps: chunks side by side, the steps that are left over, and one after another."""
    given = problem("modes", "coordinate", batch, time, dim, seed=seed)
    given["stiffness"] += stiffness
    before, cpu.WIDTH = cpu.WIDTH, width
    try:
        got = outcome(langevin_scan, given, weights(given), step=0.3, scheme=scheme)
    finally:
        cpu.WIDTH = before
    want = outcome(naive_langevin_scan, given, weights(given), step=0.3, scheme=scheme)
    scale = max(float(y.abs().max()) for y in want.values())
    assert_equal({n: y / scale for n, y in got.items()}, {n: y / scale for n, y in want.items()}, 1e-12)


def test_chunks_are_taken_for_modes_only():
    decay, row = torch.ones(1, 2, 4), torch.ones(2, 4)
    assert [p.chunks for p in cpu._parts(45, decay, row, None, None)] == [6, 1]
    assert [p.chunks for p in cpu._parts(36, decay, row, None, None)] == [6]
    for parts in (
        cpu._parts(45, decay, row, row, None),
        cpu._parts(45, decay, row, None, row),
        cpu._parts(45, decay, torch.ones(1, 4, 4), None, None),
        cpu._parts(45, decay.expand(45, 2, 4), row, None, None),
        cpu._parts(45, torch.ones(1, 1, 32_767), row, None, None),
    ):
        assert [p.chunks for p in parts] == [1]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("potential", POTENTIALS)
def test_float32(scheme, potential):
    given = problem(potential, "scalar", 8, 100, 16, torch.float32)
    if potential == "matrix":
        given["stiffness"] = given["stiffness"] @ given["stiffness"] / 16
    else:
        given["stiffness"] = given["stiffness"].abs()
    exact = {name: y.double() for name, y in given.items()}
    got = outcome(langevin_scan, given, weights(given, torch.float32), step=0.1, scheme=scheme)
    want = outcome(naive_langevin_scan, exact, weights(given), step=0.1, scheme=scheme)
    assert got["z"].dtype == got["v"].dtype == torch.float32
    for name in got:  # relative to the largest: gradients of what is shared add up thousands of steps
        error = (got[name] - want[name]).abs().max() / want[name].abs().max()
        assert error <= (1e-5 if name in ("z", "v", "z0", "v0", "noise", "control") else 3e-5), (name, float(error))


def test_long_paths_of_chunks_drift_no_more_than_the_loop():
    """The published step, 512 times: an error of a chunk's transition would come back in every chunk."""
    given = problem("modes", "number", 8, 512, 16, torch.float32) | {"decay": 0.45, "control": None}
    given["stiffness"] *= 3
    exact = {n: y.double() if isinstance(y, Tensor) else y for n, y in given.items()}
    want, _ = naive_langevin_scan(**exact, step=0.01, scheme="released")
    drift = [
        float((form(**given, step=0.01, scheme="released")[0] - want).abs().max())
        for form in (langevin_scan, naive_langevin_scan)
    ]
    assert drift[0] < 2 * drift[1] < 1e-5


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("potential", "decay"), [("quartic", "coordinate"), ("quartic", "all"), ("matrix", "time")])
def test_gradcheck(scheme, potential, decay):
    given = problem(potential, decay, 2, 4, 3)
    names = list(given)
    leaves = [y.requires_grad_() for y in given.values()]

    def paths(*inputs: Tensor):
        given = dict(zip(names, inputs, strict=True))
        if potential == "matrix":
            given["stiffness"] = (given["stiffness"] + given["stiffness"].mT) / 2
        return langevin_scan(**given, step=0.3, scheme=scheme)

    torch.autograd.gradcheck(paths, leaves, fast_mode=True)


def test_a_matrix_with_equal_eigenvalues_has_a_gradient():
    given = problem("matrix", "number", 2, 20, 4)
    given["stiffness"] = torch.eye(4).double()
    got = outcome(langevin_scan, given, weights(given), step=0.3)
    assert_equal(got, outcome(naive_langevin_scan, given, weights(given), step=0.3), 1e-12)
    diagonal = outcome(langevin_scan, given | {"stiffness": torch.ones(4).double()}, weights(given), step=0.3)
    torch.testing.assert_close(got["stiffness"].diagonal(), diagonal["stiffness"])


def test_a_chain_is_its_matrix():
    given = problem("chain", "scalar", 2, 30, 6)
    identity = torch.eye(6).double()
    matrix = lattice_force(identity, given["stiffness"], given["coupling"])
    torch.testing.assert_close(matrix, matrix.mT)
    rest = {name: y for name, y in given.items() if name not in ("stiffness", "coupling")}
    for scheme in SCHEMES:
        chain = langevin_scan(**given, step=0.2, scheme=scheme)
        torch.testing.assert_close(chain, langevin_scan(**rest, stiffness=matrix, step=0.2, scheme=scheme))


def test_a_row_of_the_batch_is_alone():
    """Neighbours are looked up along a line of all rows: the last of a row must not pull the next row's first."""
    given = problem("quartic", "time", 3, 9, 4)
    z, v = langevin_scan(**given, step=0.2)
    for n in range(3):
        one = {k: y[n : n + 1] if k in ("z0", "v0", "noise", "control", "decay") else y for k, y in given.items()}
        alone = langevin_scan(**one, step=0.2)
        assert torch.equal(alone[0], z[n : n + 1]) and torch.equal(alone[1], v[n : n + 1])


def matrix_of(scheme: str, step: float, decay: float, stiffness: float) -> np.ndarray:
    """M of one step without noise, for one mode, from the two unit states."""
    first = torch.eye(2).double()
    still = torch.zeros(2, 1, 1).double()
    z, v = langevin_scan(
        first[:, :1],
        first[:, 1:],
        still,
        stiffness=torch.tensor([stiffness]).double(),
        step=step,
        decay=decay,
        scheme=scheme,
    )
    return torch.stack([z.flatten(), v.flatten()]).numpy()


@pytest.mark.parametrize("gamma", [0.0, 0.55, 0.7])
def test_phase_volume(gamma):
    """The symplectic steps keep det = a; explicit Euler multiplies it by 1 + h^2 lambda (.450045 at h = .01)."""
    a, h = 1 - gamma, 0.01
    for scheme in ("symplectic", "baoab"):
        assert np.linalg.det(matrix_of(scheme, h, a, 1.0)) == pytest.approx(a, abs=1e-12)
    assert np.linalg.det(matrix_of("released", h, a, 1.0)) == pytest.approx(a * (1 + h * h), abs=1e-12)


def test_energy_without_friction():
    """1000 steps of an oscillator: the energy grows by (1 + h^2)^1000, or comes back to within O(h)."""
    one, still = torch.ones(1, 1).double(), torch.zeros(1, 1000, 1).double()
    for h, grown, kept in ((0.01, 1.10517, 1.0046), (0.1, 20_959, 0.9596)):
        for scheme, want in (("released", grown), ("symplectic", kept)):
            z, v = langevin_scan(one, 0 * one, still, stiffness=one[0], step=h, decay=1.0, scheme=scheme)
            assert float(z[0, -1, 0] ** 2 + v[0, -1, 0] ** 2) == pytest.approx(want, rel=1e-4)


def test_there_and_back_without_friction():
    given = problem("quartic", "number", 3, 50, 5)
    given = {n: y for n, y in given.items() if n in ("stiffness", "coupling", "quartic")} | {"decay": 1.0, "step": 0.1}
    z0, v0, still = torch.ones(3, 5).double(), torch.zeros(3, 5).double(), torch.zeros(3, 50, 5).double()
    z, v = langevin_scan(z0, v0, still, **given)
    z, v = langevin_scan(z[:, -1], -v[:, -1], still, **given)
    torch.testing.assert_close(z[:, -1], z0)
    torch.testing.assert_close(v[:, -1], v0, atol=1e-12, rtol=0)


def stationary(scheme: str, step: float, decay: float, stiffness: float) -> np.ndarray:
    """Covariance S = M S M^T + Q, with Q from the scan's answer to one unit of noise."""
    zero, one = torch.zeros(1, 1).double(), torch.ones(1, 1, 1).double()
    z, v = langevin_scan(
        zero, zero, one, stiffness=torch.tensor([stiffness]).double(), step=step, decay=decay, scheme=scheme
    )
    n = np.array([[z.item()], [v.item()]])
    return solve_discrete_lyapunov(matrix_of(scheme, step, decay, stiffness), n @ n.T)


def test_stationary_covariances():
    """The released step at two of its settings; and BAOAB, whose positions are exact for every stable step."""
    for gamma, want in ((0.55, [2.2224, -0.0069, 1.3794]), (0.7, [3.3335, -0.0077, 1.5385])):
        found = stationary("released", 0.01, 1 - gamma, 1.0)
        assert [found[0, 0], found[0, 1], found[1, 1]] == pytest.approx(want, abs=1e-4)
    for h, want in ((0.1, 0.9975), (0.5, 0.9375), (1.0, 0.75), (1.5, 0.4375)):
        found = stationary("baoab", h, math.exp(-0.55 * h), 1.0)
        assert found[0, 0] == pytest.approx(1, abs=1e-12)
        assert found[1, 1] == pytest.approx(want, abs=1e-12)


def test_moments_approach_those_of_the_process():
    """BAOAB of an oscillator with w^2 = 4, friction .5, over t = .25, against E = expm(At): weak order 2."""
    want = np.array([[0.882507, 0.225338], [-0.901354, 0.769838]])
    errors = []
    for steps in (1, 2, 4):
        h = 0.25 / steps
        m = np.linalg.matrix_power(matrix_of("baoab", h, math.exp(-0.5 * h), 4.0), steps)
        errors.append(np.abs(m - want).max())
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_compute_in_float32(dtype):
    given = {n: y.to(dtype) if isinstance(y, Tensor) else y for n, y in problem("chain", "number", 2, 9, 4).items()}
    single = {n: y.float() if isinstance(y, Tensor) else y for n, y in given.items()}
    want = langevin_scan(**single, step=0.1)
    assert all(torch.equal(a, b) for a, b in zip(langevin_scan(**given, step=0.1), want, strict=True))
    matrix = problem("matrix", "number", 2, 9, 4, torch.float32)
    want = outcome(langevin_scan, matrix, weights(matrix, torch.float32), step=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = outcome(langevin_scan, matrix, weights(matrix, torch.float32), step=0.1)
    assert_equal(got, want, 0.0)


def test_a_second_derivative_is_an_error():
    given = problem("modes", "number", 2, 5, 3)
    z0 = given.pop("z0").requires_grad_()
    z, _ = langevin_scan(z0, **given, step=0.1)
    (grad,) = torch.autograd.grad((z**2).sum(), z0, create_graph=True)
    with pytest.raises(RuntimeError, match="langevin_scan_backward"):
        grad.sum().backward()


@pytest.mark.parametrize("potential", POTENTIALS)
@pytest.mark.parametrize("common", [(), ("noise", "z0"), ("stiffness",), ("decay",)], ids="+".join)
def test_vmap_over_runs(potential, common):
    """Stacked parameters and data, or some that all runs share; outputs and gradients as from run after run."""
    runs = [problem(potential, "coordinate", 2, 20, 3, seed=s) for s in range(3)]
    for run in runs:
        run.update({n: runs[0][n] for n in common})
    names = list(runs[0])

    def loss(*inputs: Tensor) -> Tensor:
        z, v = langevin_scan(**dict(zip(names, inputs, strict=True)), step=0.1)
        return (z * v).sum() + z[:, -1].sum()

    stacked = [runs[0][n] if n in common else torch.stack([run[n] for run in runs]) for n in names]
    leaves = [y.requires_grad_() for y in stacked]
    losses = torch.func.vmap(loss, in_dims=tuple(None if n in common else 0 for n in names))(*leaves)
    got = torch.autograd.grad(losses.sum(), leaves)
    each = [[y.detach().requires_grad_() for y in run.values()] for run in runs]
    want = [loss(*run) for run in each]
    torch.testing.assert_close(losses, torch.stack(want))
    grads = [torch.autograd.grad(y, run) for y, run in zip(want, each, strict=True)]
    for n, name in enumerate(names):
        parts = torch.stack([run[n] for run in grads])
        torch.testing.assert_close(got[n], parts.sum(0) if name in common else parts, rtol=1e-10, atol=1e-10)


def test_only_what_is_asked_for_is_computed(monkeypatch):
    """Data need no gradient: then none is as long as the path."""
    given = problem("quartic", "number", 2, 9, 3)
    sizes, backward = [], cpu.backward

    def watched(*inputs):
        out = backward(*inputs)
        sizes.append([y.numel() for y in out])
        return out

    monkeypatch.setattr(cpu, "backward", watched)
    z, _ = langevin_scan(**given | {"quartic": given["quartic"].requires_grad_()}, step=0.1)
    z.sum().backward()
    assert sizes == [[6, 6, 0, 0, 0, 0, 0, 0, 6]]
