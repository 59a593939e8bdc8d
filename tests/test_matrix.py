"""The stored report on other versions, processors, places and orders is complete and is about today's conditions;
a small part of it is run again here. Warnings are errors, also of every module's import."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.processes

EVERY_MODULE = """
import importlib, pkgutil, gated
names = [module.name for module in pkgutil.walk_packages(gated.__path__, "gated.")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""


@pytest.fixture(scope="module")
def matrix(tool):
    return tool("matrix")


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return json.loads((ROOT / "reports" / "matrix.json").read_text(encoding="utf-8"))["rows"]


def test_each_condition_of_today_has_passed_and_left_nothing_behind(matrix, rows):
    assert [row["condition"] for row in rows] == list(matrix.CONDITIONS)
    for row in rows:
        condition = matrix.CONDITIONS[row["condition"]]
        assert row["failed"] == 0 and row["failures"] == [] and row["tree_unchanged"], row
        assert row["passed"] > 3500 and row["seconds"] > 0 and row["skipped"] < 50, row
        assert row["arguments"] == list(condition.arguments)
        for name, value in condition.variables.items():
            assert name == "LOCPATH" or row["variables"][name] == value


def test_what_the_interpreters_said_covers_what_is_promised(rows):
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = next(line.removeprefix("torch==") for line in lines if line.startswith("torch=="))
    torches = {row["torch"].split("+")[0] for row in rows}
    assert pinned in torches and len({version.rsplit(".", 1)[0] for version in torches}) >= 2
    assert {"3.11", "3.13"} <= {row["python"].rsplit(".", 1)[0] for row in rows}
    assert {1, 2} <= {row["threads"] for row in rows}
    assert {".", ","} <= {row["decimal_sign"] for row in rows}
    assert len({row["hours_from_utc"] for row in rows}) >= 3 and max(row["hours_from_utc"] for row in rows) == 14
    assert any(row["encoding"].lower() not in ("utf-8", "utf8") for row in rows)
    capabilities = {row["capability"] for row in rows}
    assert "DEFAULT" in capabilities and len(capabilities) >= 2
    seeds = {argument for row in rows for argument in row["arguments"] if "seed" in argument}
    assert len(seeds) >= 3


def test_a_small_part_again(matrix, tmp_path):
    """An order, a place and a processor that `make unit` does not know."""
    variables = {"OMP_NUM_THREADS": "1", "TZ": "Pacific/Kiritimati", "LC_ALL": "C"} | matrix.OLD
    if shutil.which("localedef"):
        made = ["localedef", "-i", "de_DE", "-f", "UTF-8", tmp_path / "de_DE.UTF-8"]
        if subprocess.run(made, capture_output=True).returncode == 0:  # its sources are a package of their own
            variables |= {"LOCPATH": str(tmp_path), "LC_ALL": "de_DE.UTF-8"}
    chosen = ["tests/gates/test_soft.py", "tests/gates/test_schedules.py", "tests/gates/test_losses.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen]
    seed = [*matrix.shuffled(4)]
    done = subprocess.run([*command, *seed], cwd=ROOT, env=os.environ | variables, text=True, capture_output=True)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr


def test_warnings_are_errors():
    """In the tests by pytest's setting, in the imports here."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]["ini_options"]
    assert settings["filterwarnings"][0] == "error"
    assert all(line.startswith(("ignore:", "default:")) for line in settings["filterwarnings"][1:])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", EVERY_MODULE],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 150 and not done.stderr
