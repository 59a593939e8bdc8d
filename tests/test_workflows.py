"""The workflows on the repository's host: what runs there, with which rights, and from whose code."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.clock

ROOT = Path(__file__).resolve().parents[1]


def workflows() -> dict[str, dict]:
    folder = ROOT / ".github" / "workflows"
    # YAML reads the word `on` as a truth value
    return {path.name: yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.yml"))}


def test_every_workflow_asks_for_as_little_as_it_can_and_pins_what_it_uses():
    assert set(workflows()) == {"ci.yml", "pages.yml", "release.yml"}
    for name, flow in workflows().items():
        assert flow["permissions"] == {"contents": "read"}, name
        for line in re.findall(r"uses: (.*)", (ROOT / ".github/workflows" / name).read_text(encoding="utf-8")):
            # a tag or a branch can be moved by whoever owns it; the comment says which release the commit is
            assert re.fullmatch(r"\./\S+|[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line
        assert "pull_request_target" not in flow[True] and "workflow_run" not in flow[True]
        for job in flow["jobs"].values():
            if "uses" in job:
                assert (ROOT / job["uses"]).exists() and job["uses"].startswith("./")
                continue
            assert job["timeout-minutes"] <= 90
            for step in job["steps"]:
                used = step.get("uses", "")
                assert ("run" in step) != bool(used)
                assert "checkout" not in used or step["with"]["persist-credentials"] is False
                assert "${{" not in step.get("run", ""), "values reach a shell through the environment only"


def test_ci_runs_the_two_commands_on_two_pythons_and_two_torches(tool):
    job = workflows()["ci.yml"]["jobs"]["test"]
    matrix = job["strategy"]["matrix"]
    assert matrix["python"] == ["3.11", "3.13"]
    for name in ("pages.yml", "release.yml"):
        steps = [step for job in workflows()[name]["jobs"].values() for step in job.get("steps", [])]
        used = [step["with"]["python-version"] for step in steps if "setup-python" in step.get("uses", "")]
        assert used and set(used) <= set(matrix["python"]), f"{name} runs on a Python that CI never saw"
    assert (
        len(matrix["torch"]) == 2
        and matrix["torch"][0] == ""
        and f"=={tool('matrix').OTHER_TORCH}" in matrix["torch"][1]
    )
    commands = [step["run"].partition(" #")[0].strip() for step in job["steps"] if "run" in step]
    assert "make book" in commands and ".ci/run" in commands
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_the_readme_says_which_versions_are_tested_and_what_never_ran(tool):
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    matrix = workflows()["ci.yml"]["jobs"]["test"]["strategy"]["matrix"]
    release = tool("release")
    torches = f"{tool('matrix').OTHER_TORCH} and {release.pinned(release.locked()['torch'])}"
    assert f"with Python {' and '.join(matrix['python'])} and with PyTorch {torches}." in readme
    (floor,) = [text.partition(">=")[2] for text in release.asked("") if text.startswith("torch>=")]
    assert f"PyTorch {floor} or newer." in readme
    ran = sorted((ROOT / "book/_results").glob("gpu_*.json"))
    assert ("No Triton kernel has been run on a GPU yet." in readme) == (not ran)


def test_a_release_is_checked_built_twice_published_attested_and_shown():
    jobs = workflows()["release.yml"]["jobs"]
    assert {name: job.get("needs") for name, job in jobs.items()} == {
        "build": None, "publish": "build", "release": "publish", "docs": "release",
    }  # fmt: skip
    steps = {
        name: str([step.get("run", step.get("uses")) for step in job.get("steps", [])]) for name, job in jobs.items()
    }
    for wanted in ("make release-check", "test_package.py", "SOURCE_DATE_EPOCH", "diff --recursive", "make offline"):
        assert wanted in steps["build"], wanted
    assert jobs["build"]["permissions"] == {"contents": "read", "actions": "read"}
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert "pypa/gh-action-pypi-publish" in steps["publish"] and "password" not in str(jobs["publish"])
    assert "attest-build-provenance" in steps["release"] and "gh release create" in steps["release"]
    assert jobs["docs"]["uses"] == "./.github/workflows/pages.yml"
    targets = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"^release-check:", targets, re.M) and re.search(r"^offline:", targets, re.M)


def script(job: str, holding: str) -> str:
    """The one script of a release's job that holds these words."""
    (found,) = [
        step["run"] for step in workflows()["release.yml"]["jobs"][job]["steps"] if holding in step.get("run", "")
    ]
    return found


def tool_named(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)


def bash(text: str, folder: Path, **environment: str) -> bool:
    """Whether the host's shell would go on after this script; `bin` in the folder comes first on the path."""
    clean = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "HOME": str(folder), "RUNNER_TEMP": str(folder / "temp")}
    done = subprocess.run(
        ["bash", "-e", "-c", text], cwd=folder, env=clean | environment, capture_output=True, text=True
    )
    return done.returncode == 0


def test_only_a_commit_of_main_that_ci_has_passed_is_released(tmp_path):
    ask = script("build", "gh run list")
    git = "git -c user.name=a -c user.email=a@b -c init.defaultBranch=main"
    assert bash(f"{git} init -q && {git} commit -q --allow-empty -m one && {git} tag v1", tmp_path)
    assert bash(f"{git} update-ref refs/remotes/origin/main HEAD && {git} commit -q --allow-empty -m aside", tmp_path)
    # says how many runs of CI succeeded for the commit that it is asked for
    tool_named(
        tmp_path / "bin", "gh", 'echo "$*" >> asked\ncase "$*" in *"--commit $PASSED "*) echo 1;; *) echo 0;; esac'
    )
    passed = (tmp_path / ".git/refs/tags/v1").read_text().strip()
    known = {"GITHUB_REPOSITORY": "a/b", "PASSED": passed}
    assert not bash(ask, tmp_path, **known), "the commit aside lies on no main"
    assert bash(f"{git} checkout -q v1", tmp_path)
    assert bash(ask, tmp_path, **known)
    assert not bash(ask, tmp_path, **known | {"PASSED": "another"}), "CI has not passed"
    for wanted in ("--workflow ci.yml", "--branch main", "--event push", "--status success", f"--commit {passed}"):
        assert wanted in (tmp_path / "asked").read_text(), wanted
    tool_named(tmp_path / "bin", "gh", "exit 1")
    assert not bash(ask, tmp_path, **known), "nobody could be asked"


def test_every_file_of_a_release_has_its_digest(tmp_path):
    for name in ("dist", "temp"):
        (tmp_path / name).mkdir()
    files = ["gated-1.0.0.tar.gz", "gated-1.0.0-py3-none-any.whl", "gated-book-1.0.0.zip", "gated-book-1.0.0.pdf"]
    for name in files[:2]:
        (tmp_path / "dist" / name).write_text(name)
    tool_named(tmp_path / "bin", "make", f"for name in {' '.join(files[2:])}; do echo x > dist/$name; done")
    tool_named(tmp_path / ".venv/bin", "python", "echo notes")
    assert bash(script("build", "make offline"), tmp_path)
    lines = (tmp_path / "beside/SHA256SUMS").read_text().splitlines()
    assert {line.split()[1].removeprefix("./") for line in lines} == set(files)
    assert {path.name for path in (tmp_path / "dist").iterdir()} == set(files[:2]), "what goes to the index"
    assert (tmp_path / "beside/notes.md").read_text() == "notes\n"
    changed = Path(shutil.copytree(tmp_path, tmp_path.parent / "changed on the way"))
    (changed / "dist" / files[0]).write_text("another")
    assert bash(script("release", "--check"), tmp_path) and not bash(script("release", "--check"), changed)
    assert {path.name for path in (tmp_path / "all").iterdir()} == {*files, "SHA256SUMS"}
