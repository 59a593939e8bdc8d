"""The stored mutation report: its form, a reason for each survivor, changes that today's code still allows; and the
tool notices what the tests notice."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
REPORT = json.loads((ROOT / "reports" / "mutants.json").read_text(encoding="utf-8"))


def test_the_report_and_its_reasons(tool):
    mutants = tool("mutants")
    assert set(REPORT) == {"command", "date", "seed", "machine", "versions", "groups"}
    assert REPORT["command"] == "make mutants" and REPORT["seed"] == mutants.SEED
    assert "gates" in REPORT["groups"] and set(REPORT["groups"]) <= set(mutants.GROUPS)
    for name, group in REPORT["groups"].items():
        assert set(group) == {"changes", "examined", "killed", "out of time", "survivors"}, name
        ended = group["killed"] + group["out of time"] + len(group["survivors"])
        assert ended == group["examined"] <= sum(group["changes"].values()), name
        for survivor in group["survivors"]:
            assert survivor["reason"], f"why does no test notice {survivor['change']}?"


def test_the_report_is_about_this_code(tool):
    """What survived is still a change that one can make, but for a few that edits since have removed."""
    mutants = tool("mutants")
    survivors = [each["change"] for group in REPORT["groups"].values() for each in group["survivors"]]
    today = {
        each.key for group in REPORT["groups"].values() for file in group["changes"] for each in mutants.mutants(file)
    }
    assert sum(change not in today for change in survivors) <= len(survivors) / 10


@pytest.mark.clock
def test_the_tool_tells_killed_from_survived():
    """All that can be changed in the schedules, of which one change alters nothing: how long a constant takes."""
    program = (
        "import json, mutants; "
        "mutants.GROUPS['one'] = (['gated/gates/schedules.py'], ['tests/gates/test_schedules.py'], 12, False); "
        "print(json.dumps(mutants.examine('one', None)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": f"{ROOT / 'tools'}{os.pathsep}{ROOT}"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["examined"] == 12 and found["killed"] + len(found["survivors"]) == 12
    assert {each["change"].split(": ", 1)[1] for each in found["survivors"]} <= {"constant_schedule: 1 -> 2 (1)"}
