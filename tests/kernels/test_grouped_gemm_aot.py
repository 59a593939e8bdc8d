"""What the Triton kernels compile to for three targets, from build/kernels.json, which tools/kernels.py writes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TARGETS = {"sm_80": 166_912, "sm_90": 232_448, "gfx942": 65_536}  # bytes of shared memory that a block may use
STEPS = ("product", "weight gradient")
SIZES = ((1024, 4096), (4096, 1024), (128, 512), (200, 333))  # the second is a transposed view


@pytest.fixture(scope="module")
def rows() -> dict[tuple, dict]:
    """All rows of the family; an up-to-date report is kept as it is, an older one or none is made again."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "tools/kernels.py"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    table = json.loads((ROOT / "build/kernels.json").read_text())["rows"]
    own = [row for row in table if row["kernel"].startswith("grouped_gemm ")]
    return {(row["kernel"].split(" ", 1)[1], row["target"], row["sizes"]["K"], row["sizes"]["N"]): row for row in own}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("size", SIZES)
def test_kernel(rows, step, target, size):
    row = rows[step, target, *size]
    assert row["dtype"] == "bf16"
    assert row["spills"] == 0
    assert 0 < row["shared_bytes"] <= TARGETS[target]
    assert row["matrix_instructions"] > 0
    assert row["exponentials"] == 0


@pytest.mark.parametrize("size", SIZES[:2])
@pytest.mark.parametrize("step", STEPS)
def test_two_blocks_fit_on_a_multiprocessor(rows, step, size):
    """64 K registers and the shared memory of two blocks of 8 warps, on the newest target; one block on the older."""
    newest, older = rows[step, "sm_90", *size], rows[step, "sm_80", *size]
    assert 2 * newest["registers"] * 32 * newest["warps"] <= 65_536
    assert 2 * newest["shared_bytes"] <= TARGETS["sm_90"]
    assert older["registers"] * 32 * older["warps"] <= 65_536


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_a_transposed_view_costs_no_more_code(rows, target):
    plain, view = rows["product", target, 1024, 4096], rows["product", target, 4096, 1024]
    assert view["matrix_instructions"] == plain["matrix_instructions"]
    assert view["instructions"] < 1.1 * plain["instructions"]
