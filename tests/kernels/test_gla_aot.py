"""What the Triton kernels compile to for three targets, from build/kernels.json, which tools/kernels.py writes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TARGETS = {"sm_80": 166_912, "sm_90": 232_448, "gfx942": 65_536}  # bytes of shared memory that a block may use
PRODUCTS = ("write, forward", "read, forward", "write, backward", "read, backward", "gradients")
CASES = [(step, target, size) for step in (*PRODUCTS, "recurrence") for target in TARGETS for size in (64, 128)]


@pytest.fixture(scope="module")
def rows() -> dict[tuple[str, str, int], dict]:
    """All rows; an up-to-date report is kept as it is, an older one or none is made again."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "tools/kernels.py"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    table = json.loads((ROOT / "build/kernels.json").read_text())["rows"]
    return {(row["kernel"], row["target"], row["sizes"]["K"]): row for row in table}


@pytest.mark.parametrize(("step", "target", "size"), CASES)
def test_kernel(rows, step, target, size):
    row = rows[f"gla {step}", target, size]
    assert row["dtype"] == "bf16"
    assert row["spills"] == 0
    assert 0 < row["shared_bytes"] <= TARGETS[target]
    assert (row["matrix_instructions"] > 0) == (step in PRODUCTS)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("size", [64, 128])
def test_beside_flash_linear_attention(rows, target, size):
    """A pass takes fewer launches, and every row holds the peer's figures, compiled by the same tool."""
    for name, most in (("forward, all launches", 2), ("backward, all launches", 4)):
        row = rows[f"gla {name}", target, size]
        assert row["launches"] == most < len(row["peer"]["kernels"])
        assert row["spills"] == 0
        assert row["peer"]["registers"] > 0
        assert row["peer"]["matrix_instructions"] > 0
        # static counts, so only of the order: a loop's body counts once on both sides
        assert row["instructions"] < 1.5 * row["peer"]["instructions"]
