"""What the Triton kernels compile to for three targets, from build/kernels.json, which tools/kernels.py writes.

One row for every step of every family, target and size. See test_gla_aot.py for what has a peer.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TARGETS = {"sm_80": 166_912, "sm_90": 232_448, "gfx942": 65_536}  # bytes of shared memory that a block may use
STEPS = {
    "topk_gate": ("scores", "scan", "positions"),
    "grouped_gemm": ("product", "weight gradient"),
    "gmoe_em": ("tiles", "tiles, tanh by slope", "totals"),
    "langevin_scan": ("forward", "forward, released", "backward", "backward, released"),
    "barrier_qp": ("forward", "backward"),
}
SIZES = {
    "topk_gate": ({"N": 8, "K": 2}, {"N": 64, "K": 2}, {"N": 160, "K": 6}, {"N": 256, "K": 8}),
    # the second is a transposed view
    "grouped_gemm": ({"K": 1024, "N": 4096}, {"K": 4096, "N": 1024}, {"K": 128, "N": 512}, {"K": 200, "N": 333}),
    "gmoe_em": ({"K": 2, "DIM": 1}, {"K": 3, "DIM": 1}, {"K": 4, "DIM": 2}, {"K": 16, "DIM": 2}),
    "langevin_scan": tuple({"K": size, "COUPLED": coupled} for coupled in (0, 1) for size in (64, 280)),
    "barrier_qp": ({"K": 6}, {"K": 12}, {"K": 60}),
}
CASES = [
    (name, step, target, size)
    for name, steps in STEPS.items()
    for step in steps
    for target in TARGETS
    for size in SIZES[name]
]

Find = Callable[[str, str, str, dict], dict]


@pytest.fixture(scope="module")
def find() -> Find:
    """The one row of a step; an up-to-date report is kept as it is, an older one or none is made again."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "tools/kernels.py"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    table = json.loads((ROOT / "build/kernels.json").read_text())["rows"]

    def row(name: str, step: str, target: str, size: dict) -> dict:
        fits = [r for r in table if (r["kernel"], r["target"]) == (f"{name} {step}", target)]
        (found,) = (r for r in fits if size.items() <= r["sizes"].items())
        return found

    return row


@pytest.mark.parametrize(("name", "step", "target", "size"), CASES)
def test_kernel(find, name, step, target, size):
    row = find(name, step, target, size)
    assert row["spills"] == 0
    assert row["shared_bytes"] <= TARGETS[target]
    if name == "grouped_gemm":
        assert row["dtype"] == "bf16"
        assert row["shared_bytes"] > 0
        assert row["matrix_instructions"] > 0
        assert row["exponentials"] == 0
    else:
        assert row["shared_bytes"] <= 16_384  # so that many blocks share a multiprocessor
        assert row["registers"] <= 168  # three blocks of 128 threads at the least
        assert row["matrix_instructions"] == 0
        assert (row["exponentials"] > 0) == (step in ("scores", "tiles", "tiles, tanh by slope"))


def test_no_more_code_for_more_slots(find):
    """The rounds are a loop, not unrolled: 8 slots take no more instructions than 2."""
    for target in TARGETS:
        few, many = (find("topk_gate", "scores", target, size)["instructions"] for size in SIZES["topk_gate"][1::2])
        assert many < 1.1 * few


@pytest.mark.parametrize("step", STEPS["gmoe_em"])
def test_no_more_code_for_more_experts(find, step):
    """Pairs of experts are a loop: the code for 16 and two inputs is less than thrice that for 2 and one input."""
    for target in TARGETS:
        few, many = (find("gmoe_em", step, target, size)["instructions"] for size in SIZES["gmoe_em"][::3])
        assert many < 3 * few


@pytest.mark.parametrize("size", SIZES["grouped_gemm"][:2])
@pytest.mark.parametrize("step", STEPS["grouped_gemm"])
def test_two_blocks_fit_on_a_multiprocessor(find, step, size):
    """64 K registers and the shared memory of two blocks of 8 warps, on the newest target; one block on the older."""
    newest, older = (find("grouped_gemm", step, target, size) for target in ("sm_90", "sm_80"))
    assert 2 * newest["registers"] * 32 * newest["warps"] <= 65_536
    assert 2 * newest["shared_bytes"] <= TARGETS["sm_90"]
    assert older["registers"] * 32 * older["warps"] <= 65_536


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_a_transposed_view_costs_no_more_code(find, target):
    plain, view = (find("grouped_gemm", "product", target, size) for size in SIZES["grouped_gemm"][:2])
    assert view["matrix_instructions"] == plain["matrix_instructions"]
    assert view["instructions"] < 1.1 * plain["instructions"]


@pytest.mark.parametrize("step", STEPS["langevin_scan"])
def test_no_more_code_for_a_longer_row(find, step):
    """Steps are a loop, and coordinates are threads; only a chain of more than one warp needs shared memory."""
    for target in TARGETS:
        for pair in (SIZES["langevin_scan"][:2], SIZES["langevin_scan"][2:]):
            few, many = (find("langevin_scan", step, target, size) for size in pair)
            assert many["instructions"] < 1.3 * few["instructions"]
            assert not few["shared_bytes"]
            assert (many["shared_bytes"] > 0) == (pair[0]["COUPLED"] == 1)


@pytest.mark.parametrize("step", STEPS["barrier_qp"])
def test_no_more_code_for_more_barriers(find, step):
    """Lines are a loop and rows are threads: 60 barriers take no longer code than 6."""
    for target in TARGETS:
        few, _, many = (find("barrier_qp", step, target, size) for size in SIZES["barrier_qp"])
        assert many["instructions"] < 1.2 * few["instructions"]
