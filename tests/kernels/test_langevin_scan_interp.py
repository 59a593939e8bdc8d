"""The Triton kernels of the Langevin scan in Triton's interpreter, against the step loop in float64.

Run with TRITON_INTERPRET=1. The operators' CPU side is replaced by what CUDA dispatches to, so that rotations, shapes
and the autograd around them are covered too.
"""

import os

import pytest
import torch
from torch import Tensor

from gated.kernels import langevin_scan as family
from gated.kernels.langevin_scan import langevin_scan, naive_langevin_scan

SCHEMES = ("released", "symplectic", "baoab")


def fenced(y: object) -> object:
    """The same numbers between NaN, which a kernel that reads beside a tensor would bring in."""
    if not isinstance(y, Tensor) or not y.is_contiguous():
        return y
    return y.new_full((y.numel() + 64,), torch.nan)[32:-32].view(y.shape).copy_(y)


@pytest.fixture
def on_gpu_side(monkeypatch):
    assert os.environ.get("TRITON_INTERPRET") == "1", "set TRITON_INTERPRET=1 before Python starts: `make kernels` does"
    for name, kernel in (("forward", family._scan_gpu), ("backward", family._backward_gpu)):
        monkeypatch.setattr(family.cpu, name, lambda *given, kernel=kernel: kernel(*map(fenced, given)))


def problem(potential: str, decay: str, batch: int, time: int, dim: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    given = {"z0": normal(batch, dim), "v0": normal(batch, dim), "noise": normal(batch, time, dim)}
    given |= {"control": normal(batch, time, dim), "temperature": 0.5 + uniform(dim)}
    given["stiffness"] = 2 * uniform(dim) - 0.5
    if potential == "matrix":
        h = normal(dim, dim)
        given["stiffness"] = h @ h.mT / dim
    if potential in ("chain", "quartic"):
        given["coupling"] = uniform(dim - 1)
    if potential == "quartic":
        given["quartic"] = uniform(dim)
    shapes = {"scalar": (), "coordinate": (dim,), "time": (batch, time), "all": (batch, time, dim)}
    given["decay"] = 0.2 + 0.7 * uniform(*shapes[decay])
    return given


def outcome(form, given: dict[str, Tensor], wanted: set[str], scheme: str) -> dict[str, Tensor]:
    leaves = {n: y.detach().clone().requires_grad_(n in wanted) for n, y in given.items()}
    z, v = form(**leaves, step=0.2, scheme=scheme)
    a, b = torch.randn(2, *z.shape, generator=torch.Generator().manual_seed(1)).to(z.dtype)
    grads = torch.autograd.grad((z * a).sum() + (v * b).sum(), [leaves[n] for n in sorted(wanted)])
    return {"z": z.detach(), "v": v.detach(), **dict(zip(sorted(wanted), grads, strict=True))}


def assert_equal(given: dict[str, Tensor], scheme: str, wanted: set[str] | None = None) -> None:
    wanted = set(given) if wanted is None else wanted
    got = outcome(langevin_scan, given, wanted, scheme)
    want = outcome(naive_langevin_scan, {n: y.double() for n, y in given.items()}, wanted, scheme)
    for name, y in got.items():
        error = (y.double() - want[name]).abs().max() / want[name].abs().max()
        assert error < 1e-5, (name, float(error))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    ("potential", "decay"),
    [("modes", "coordinate"), ("matrix", "time"), ("chain", "scalar"), ("quartic", "all")],
)
def test_path_and_all_gradients(on_gpu_side, scheme, potential, decay):
    """Coordinates that are no power of two, so that part of the block is empty."""
    assert_equal(problem(potential, decay, 2, 3, 5), scheme)


@pytest.mark.parametrize(
    ("potential", "batch", "dim", "time"),
    [("modes", 2, 1, 3), ("modes", 2, 64, 1), ("modes", 2, 70, 2), ("quartic", 2, 32, 2), ("quartic", 1, 5, 2)],
)
def test_sizes(on_gpu_side, potential, batch, dim, time):
    """One coordinate, a full block, two blocks, a full row of a chain; a single step. One row, whose parameters are
    not copied to more rows: nothing but NaN stands before its first coupling."""
    assert_equal(problem(potential, "scalar", batch, time, dim), "baoab")


@pytest.mark.parametrize("name", ["stiffness", "decay", "control"])
def test_only_what_is_asked_for(on_gpu_side, name):
    potential = "matrix" if name == "stiffness" else "quartic"
    assert_equal(problem(potential, "scalar", 2, 3, 4), "released", {name})


def test_a_matrix_with_equal_eigenvalues(on_gpu_side):
    """Its gradient does not go through the eigenvectors, which are not determined."""
    given = problem("matrix", "scalar", 2, 3, 4)
    given["stiffness"] = torch.eye(4)
    assert_equal(given, "baoab")


def test_without_control_and_with_data_that_need_no_gradient(on_gpu_side):
    given = problem("modes", "scalar", 2, 3, 4)
    del given["control"]
    assert_equal(given, "released", {"z0", "v0", "stiffness"})
