"""The stored mutation report: all groups, in full or the sample that the table asks for, made of today's code; a reason
for each survivor. And the tool notices what the tests notice."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import gated

ROOT = Path(__file__).resolve().parent.parent
REPORT = json.loads((ROOT / "reports" / "mutants.json").read_text(encoding="utf-8"))
COUNTS = ("killed", "crashed", "out of time")


@pytest.fixture(scope="module")
def possible(tool):
    """Each group's changes of today, by file."""
    mutants = tool("mutants")
    return {name: mutants.everything(name) for name in mutants.GROUPS}


def test_the_report_and_its_reasons(tool):
    mutants = tool("mutants")
    assert set(REPORT) == {"command", "seed", "machine", "versions", "groups"}
    assert REPORT["command"] == "make mutants" and REPORT["seed"] == mutants.SEED
    assert list(REPORT["groups"]) == list(mutants.GROUPS)
    for name, group in REPORT["groups"].items():
        assert set(group) == {"date", "most", "changes", "examined", *COUNTS, "survivors"}, name
        assert sum(group[count] for count in COUNTS) + len(group["survivors"]) == group["examined"], name
        assert len({survivor["change"] for survivor in group["survivors"]}) == len(group["survivors"]), name
        for survivor in group["survivors"]:
            assert survivor["reason"], f"why does no test notice {survivor['change']}?"
    assert mutants.explained(json.loads(json.dumps(REPORT))) == REPORT, "other reasons than in reports/mutants.toml"


def test_every_group_was_examined_as_the_table_asks(tool):
    """A sample of just that size; all, but for a twentieth at most, where code was edited before `--again`."""
    table = tool("mutants").GROUPS
    for name, group in REPORT["groups"].items():
        assert group["most"] == table[name][2], name
        everything = sum(group["changes"].values())
        if group["most"] is None:
            assert abs(group["examined"] - everything) <= everything / 20, name
        else:
            assert group["examined"] == min(group["most"], everything), name


def test_the_report_is_about_this_code(possible):
    """As many changes as today, within a twentieth or five in a file; the survivors can still be made."""
    assert REPORT["versions"]["gated"] == gated.__version__
    for name, group in REPORT["groups"].items():
        today = {file: sum(each.file == file for each in possible[name]) for file in group["changes"]}
        assert set(today) == {each.file for each in possible[name]}, name
        for file, count in group["changes"].items():
            assert abs(today[file] - count) <= max(5, count / 20), f"{file}: {count} changes then, {today[file]} now"
        assert abs(sum(today.values()) - sum(group["changes"].values())) <= sum(today.values()) / 20, name
        survivors = {survivor["change"] for survivor in group["survivors"]}
        assert survivors <= {each.key for each in possible[name]}, name


def test_no_reason_is_left_over():
    """Each reason in the table explains something that survived."""
    reasons = tomllib.loads((ROOT / "reports" / "mutants.toml").read_text(encoding="utf-8"))["reasons"]
    given = {survivor["reason"] for group in REPORT["groups"].values() for survivor in group["survivors"]}
    assert [row["change"] for row in reasons if row["why"] not in given] == []


TOY = """
import ctypes

STEPS = 3
IDLE = 7


def down(start):
    while start > 0:
        start -= 1
    return start


def read(address=None):
    if address is not None:
        ctypes.string_at(address)
    return STEPS
"""
TOY_TESTS = """
import toy
from toy import STEPS


def test_toy():
    assert toy.down(3) == 0 and toy.read() == STEPS == 3
"""


@pytest.mark.clock
def test_the_tool_changes_constants_and_tells_how_a_change_ended(tmp_path):
    """An endless loop, a crash, a constant that is noticed and one that nobody looks at."""
    (tmp_path / "toy.py").write_text(TOY)
    (tmp_path / "test_toy.py").write_text(TOY_TESTS)
    profile = "from hypothesis import settings\n\nsettings.register_profile('gated')\n"
    (tmp_path / "conftest.py").write_text(profile)
    program = (
        f"import json, pathlib, mutants; mutants.ROOT, mutants.PATIENCE = pathlib.Path({str(tmp_path)!r}), 2; "
        "mutants.GROUPS['toy'] = (['toy.py'], ['test_toy.py'], None, False); "
        "print(json.dumps(mutants.examine('toy', None)))"
    )
    paths = {"PYTHONPATH": os.pathsep.join(map(str, (ROOT / "tools", tmp_path)))}
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, env=paths)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert [each["change"] for each in found["survivors"]] == ["toy.py: a constant: 7 -> 8 (1)"]
    # start > 0 to start >= 0, and 0 to 1, end at another number; start -= 1 to start += 1 never ends
    assert found["out of time"] == 1 and found["crashed"] == 1
    assert found["examined"] == sum(found[count] for count in COUNTS) + 1
