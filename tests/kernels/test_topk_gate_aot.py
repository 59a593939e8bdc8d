"""What the Triton kernels compile to for three targets, from build/kernels.json, which tools/kernels.py writes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TARGETS = {"sm_80": 166_912, "sm_90": 232_448, "gfx942": 65_536}  # bytes of shared memory that a block may use
SIZES = ((8, 2), (64, 2), (160, 6), (256, 8))  # experts, and how many a token takes


@pytest.fixture(scope="module")
def rows() -> dict[tuple, dict]:
    """All rows of the family; an up-to-date report is kept as it is, an older one or none is made again."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "tools/kernels.py"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    table = json.loads((ROOT / "build/kernels.json").read_text())["rows"]
    own = [row for row in table if row["kernel"].startswith("topk_gate ")]
    return {(row["kernel"].split()[1], row["target"], row["sizes"]["N"], row["sizes"]["K"]): row for row in own}


@pytest.mark.parametrize("step", ["scores", "scan", "positions"])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("size", SIZES)
def test_kernel(rows, step, target, size):
    row = rows[step, target, *size]
    assert row["spills"] == 0
    assert row["shared_bytes"] <= min(TARGETS[target], 16_384)  # so that many blocks share a multiprocessor
    assert row["registers"] <= 168  # three blocks of 128 threads at the least
    assert row["matrix_instructions"] == 0
    assert step == "scores" or row["exponentials"] == 0


def test_no_more_code_for_more_slots(rows):
    """The rounds are a loop, not unrolled: 8 slots take no more instructions than 2."""
    for target in TARGETS:
        assert rows["scores", target, 256, 8]["instructions"] < 1.1 * rows["scores", target, 64, 2]["instructions"]
