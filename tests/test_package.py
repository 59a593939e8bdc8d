"""The package as others get it: the same bytes wherever it is built, quick to import with what it declares, one version
everywhere, extras that the lock meets, files that are read without running them, a README whose code runs."""

from __future__ import annotations

import ast
import contextlib
import datetime
import io
import json
import re
import tarfile
import tomllib
import zipfile
from email import message_from_string
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import gated

pytestmark = pytest.mark.clock

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = {".py", ".js", ".css", ".toml", ".xz"}  # kinds of files in gated/, besides py.typed
ABOUT = {"METADATA", "WHEEL", "RECORD", "licenses/LICENSE", "licenses/LICENSE-TEXT"}


# Building and importing ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tool, tmp_path_factory):
    """A folder with the four builds of tools/release.py, and their digests."""
    folder = tmp_path_factory.mktemp("built")
    return folder, tool("release").builds(folder)


@pytest.fixture(scope="module")
def wheel(built) -> Path:
    return next((built[0] / "dist").glob("*.whl"))


@pytest.fixture(scope="module")
def bare(tool, built, wheel) -> Path:
    return tool("release").bare(built[0] / "bare", wheel)


def test_a_build_is_the_same_bytes_whatever_the_circumstances(built):
    plain, other, dated, other_dated = built[1]
    assert set(plain) == {f"gated-{gated.__version__}-py3-none-any.whl", f"gated-{gated.__version__}.tar.gz"}
    assert plain == other, "folder, times, modes, umask, or the way over the source distribution made a difference"
    assert dated == other_dated
    assert not set(plain.values()) & set(dated.values()), "SOURCE_DATE_EPOCH is not written into the files"


def inside() -> set[str]:
    """What belongs to the package, from the files in gated/ and book/_results."""
    files = {path for path in (ROOT / "gated").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    strange = {str(path.relative_to(ROOT)) for path in files if path.suffix not in SHIPPED} - {"gated/py.typed"}
    assert not strange, "is this meant to be shipped?"
    return {str(path.relative_to(ROOT)) for path in files}


def test_the_wheel_holds_the_package_the_stored_results_the_licences_and_nothing_else(wheel):
    results = {f"gated/lab/_results/{path.name}" for path in (ROOT / "book/_results").iterdir()}
    about = {f"gated-{gated.__version__}.dist-info/{name}" for name in ABOUT}
    assert set(zipfile.ZipFile(wheel).namelist()) == inside() | results | about
    assert {"gated/py.typed", "gated/lab/_data/cards.toml", "gated/lab/explorables/figure.js"} <= inside()
    assert {f"gated/lab/_results/{name}.json" for name in ("gla", "stn", "online_cbf")} <= results
    assert wheel.stat().st_size < 4e6


def test_the_source_distribution_holds_what_the_wheel_is_made_of(built):
    with tarfile.open(next((built[0] / "dist").glob("*.tar.gz"))) as archive:
        members = archive.getmembers()
    names = {entry.name.split("/", 1)[1] for entry in members}
    papers = {"README.md", "CHANGELOG.md", "CITATION.cff", "SECURITY.md", "LICENSE", "LICENSE-TEXT"}
    workshop = {"pyproject.toml", "PKG-INFO", ".gitignore", "tools/hatch_build.py"}
    results = {f"book/_results/{path.name}" for path in (ROOT / "book/_results").iterdir()}
    assert names == inside() | results | papers | workshop
    assert not [name for name in names if name.endswith(".ipynb") or name.startswith("tests")]
    assert {entry.mode for entry in members} == {0o644}
    assert {entry.uid for entry in members} == {0}


def test_the_metadata_says_what_an_installer_and_an_index_ask_for(wheel, tool):
    about = zipfile.ZipFile(wheel).read(f"gated-{gated.__version__}.dist-info/METADATA").decode()
    fields = message_from_string(about)
    declared = tool("release").project()["project"]
    assert (fields["Name"], fields["Version"]) == ("gated", gated.__version__)
    assert fields["License-Expression"] == "Apache-2.0"
    assert fields.get_all("License-File") == ["LICENSE", "LICENSE-TEXT"]
    assert fields["Requires-Python"] == "<3.14,>=3.11"
    assert fields["Description-Content-Type"] == "text/markdown"
    assert set(fields.get_all("Provides-Extra")) == set(declared["optional-dependencies"])
    base = [text for text in fields.get_all("Requires-Dist") if "extra ==" not in text]
    assert sorted(base) == sorted(declared["dependencies"])
    assert all(text.partition(", ")[2].startswith("https://") for text in fields.get_all("Project-URL"))


def test_every_room_is_imported_in_less_than_a_third_of_a_second_beyond_torch(bare, tool):
    """All of them in one go, in processor time, so that what else runs on the machine plays no part."""
    release = tool("release")
    assert {"gated", "gated.gla", "gated.online_cbf", "gated.kernels.barrier_qp"} <= set(release.rooms())
    code = "import " + ", ".join(release.rooms())
    assert min(release.beyond_torch(bare, code, "process_time") for _ in range(2)) < 0.3


WALK = """
import importlib, json, pkgutil, sys
before = set(sys.modules)
import gated
alone = sorted(set(sys.modules) - before)
missing, seen = {}, []
def walk(path):
    for module in pkgutil.iter_modules(path[0], path[1]):
        seen.append(module.name)
        try:
            found = importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            missing[module.name] = error.name.partition(".")[0]
        else:
            if module.ispkg:
                walk((found.__path__, module.name + "."))
walk((gated.__path__, "gated."))
with open("found.json", "w") as file:
    json.dump([alone, missing, seen], file)
"""


def test_what_is_declared_is_enough(bare, tool):
    """Every module is imported with the base dependencies alone. `gated.lab`, the GPU kernels and the scikit-learn
    estimator may ask for more: a package that an extra brings."""
    release = tool("release")
    release.beyond_torch(bare, WALK)
    alone, missing, seen = json.loads((bare.parent / "found.json").read_text(encoding="utf-8"))
    assert alone == ["gated"], "import gated brings more than itself"
    assert len(seen) > 150
    brings = metadata.packages_distributions()
    for name, wanted in missing.items():
        kernel = name.startswith("gated.kernels.") and name.endswith(".gpu")
        extra = "triton" if kernel else "lab"
        assert kernel or name.startswith("gated.lab") or name == "gated.gaussian_moe.estimator", name
        extras = release.project()["project"]["optional-dependencies"][extra]
        assert {canonicalize_name(found) for found in brings[wanted]} & {Requirement(text).name for text in extras}, (
            name
        )


# Extras -------------------------------------------------------------------------------------------------------------


def extras() -> list[str]:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return ["", *declared["optional-dependencies"]]


@pytest.mark.parametrize("extra", extras())
def test_the_lock_meets_the_extra_and_all_that_it_brings(extra, tool):
    assert not tool("release").unsatisfied(extra)


def test_a_lock_that_does_not_meet_an_extra_is_noticed(tool, monkeypatch):
    release = tool("release")
    pins = release.locked()
    monkeypatch.setattr(release, "locked", lambda: {name: pin for name, pin in pins.items() if name != "cycler"})
    assert release.unsatisfied("lab") == ["matplotlib wants cycler>=0.10, which constraints.txt lacks"]
    monkeypatch.setattr(release, "locked", lambda: pins | {"numpy": Requirement("numpy==1.20.0")})
    assert "gated wants numpy>=1.26, constraints.txt has 1.20.0" in release.unsatisfied("")


def test_the_stored_report_is_about_this_package(tool):
    """reports/package.json: pip's own answer for each extra, builds that agree, and how long rooms take to import."""
    release = tool("release")
    again = "run: make release-check"
    report = json.loads(release.REPORT.read_text(encoding="utf-8"))
    assert report["command"] == "make release-check"
    assert report["versions"]["gated"] == gated.__version__, again
    assert report["builds"][0] == report["builds"][1] and report["builds"][2] == report["builds"][3]
    assert set(report["seconds_beyond_torch"]) == set(release.rooms()), again
    assert max(report["seconds_beyond_torch"].values()) < 0.3
    assert list(report["extras"]) == extras(), again
    pins = release.locked()
    declared = release.project()["project"]
    for extra, found in report["extras"].items():
        for text in [*declared["dependencies"], *declared["optional-dependencies"].get(extra, [])]:
            wanted = Requirement(text)
            assert wanted.name == "gated" or canonicalize_name(wanted.name) in found, f"{text}: {again}"
        for name, version in found.items():
            locked = release.pinned(pins[name]) if name in pins else None
            assert name == "gated" or name.startswith(("nvidia", "cuda")) or version.split("+")[0] == locked, again


# One version, one date ------------------------------------------------------------------------------------------------


def test_version_and_date_are_the_same_everywhere(tool):
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert re.fullmatch(r"\d+\.\d+\.\d+", gated.__version__)
    assert citation["version"] == gated.__version__
    log = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## \[(\d[^]]*)\] - (\S+)$", log, re.M)
    assert newest and newest[1] == gated.__version__
    assert datetime.date.fromisoformat(newest[2]) == citation["date-released"]
    declared = tool("release").project()["project"]
    assert "version" not in declared and declared["dynamic"] == ["version"]


def test_the_citation_file_has_what_its_format_asks_for(tool):
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    declared = tool("release").project()["project"]
    assert citation["cff-version"] == "1.2.0" and citation["type"] == "software"
    assert citation["message"] and citation["title"].startswith("gated") and citation["abstract"]
    assert [author["name"] for author in citation["authors"]] == [author["name"] for author in declared["authors"]]
    assert citation["license"] == declared["license"]
    assert citation["repository-code"] == declared["urls"]["Repository"]


def test_the_changelog_keeps_its_form_and_names_every_room(tool):
    """Keep a Changelog: [Unreleased] first, dated versions that fall, the six kinds of changes, a link for each."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    heads = re.findall(r"^## (.*)$", text, re.M)
    assert heads[0] == "[Unreleased]" and len(heads) > 1
    found = [re.fullmatch(r"\[(\d+)\.(\d+)\.(\d+)\] - (\d{4}-\d\d-\d\d)", head) for head in heads[1:]]
    assert all(found), heads
    versions = [tuple(map(int, head.groups()[:3])) for head in found]
    assert versions == sorted(set(versions), reverse=True)
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.*)$", text, re.M)) <= kinds
    linked = set(re.findall(r"^\[([^]]+)\]: https://", text, re.M))
    assert linked == {re.match(r"\[(.*?)\]", head)[1] for head in heads}
    rooms = {room.removeprefix("gated.kernels.") for room in tool("release").rooms()} - {"gated"}
    assert not [room for room in rooms if f"`{room}`" not in text]
    assert tool("release").notes().startswith("The first release") or len(found) > 1


# Types --------------------------------------------------------------------------------------------------------------


def untyped(source: str) -> list[str]:
    """The public functions and methods that lack an annotation; `__init__` need not say that it returns None."""
    found = []
    todo = [(node, "") for node in ast.parse(source).body]
    while todo:
        node, owner = todo.pop()
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            todo += [(inner, f"{node.name}.") for inner in node.body]
        elif isinstance(node, ast.FunctionDef) and (node.name.startswith("__") or not node.name.startswith("_")):
            given = node.args
            names = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
            bare = [name.arg for name in names if name and not name.annotation and name.arg not in ("self", "cls")]
            if bare or (node.returns is None and node.name != "__init__"):
                found.append(owner + node.name)
    return found


def test_everything_public_is_typed():
    assert untyped("class A:\n def f(self, x: int): ...\n def _g(self): ...\ndef h(x, *y: int) -> int: ...") == [
        "h",
        "A.f",
    ]
    for path in sorted((ROOT / "gated").rglob("*.py")):
        jitted = path.name == "gpu.py" and path.parents[1].name == "kernels"  # Triton's functions have no types
        assert jitted or not untyped(path.read_text(encoding="utf-8")), path


# What a file can do ---------------------------------------------------------------------------------------------------

RUNS = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "runpy"}


def dangers(source: str) -> list[str]:
    """What could run what a file says: unpickling in any form, evaluation of text, a shell."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.partition(".")[0] in RUNS]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in RUNS:
            found.append(node.module)
        elif isinstance(node, ast.Call):
            called, given = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            if called in (
                "eval",
                "exec",
                "compile",
                "__import__",
                "os.system",
                "os.popen",
                "yaml.load",
                "pd.read_pickle",
            ):
                found.append(called)
            if called in ("torch.load", "torch.hub.load", "torch.jit.load", "torch.package.PackageImporter"):
                found += [called] if given.get("weights_only") != "True" else []
            if given.get("allow_pickle", "False") != "False" or given.get("shell", "False") != "False":
                found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "from joblib import load", "eval(text)", "exec(text)", "torch.load(path)",
        "torch.load(path, weights_only=False)", "np.load(path, allow_pickle=True)", "run(text, shell=True)",
    ],
)  # fmt: skip
def test_what_could_run_a_file_is_recognised(line):
    assert dangers(line)
    assert not dangers("model.eval()\ntorch.load(path, weights_only=True)\nnp.load(path)\nre.compile(text)")


def test_no_file_that_is_read_can_run_code():
    """What SECURITY.md promises."""
    for path in sorted((ROOT / "gated").rglob("*.py")):
        assert not dangers(path.read_text(encoding="utf-8")), path
    promise = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    assert "safetensors" in promise and "tests/test_package.py" in promise


# README and workflows -------------------------------------------------------------------------------------------------


def test_the_readme_runs_from_top_to_bottom_and_starts_with_what_an_engineer_asks():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    printed, names = io.StringIO(), {}
    with contextlib.redirect_stdout(printed):
        for block in blocks:
            exec(compile(block, "README.md", "exec"), names)
    lines = printed.getvalue().splitlines()
    assert len(blocks) == 3 and lines[0].startswith("torch.Size([8, 128, 64])")
    assert names["model"].score(names["x"].numpy(), names["y"].numpy()) > 0.9
    assert names["output"].shape == (2, 1024, 4, 64) and names["routing"].load().shape == (16,)
    screen = "\n".join(text.splitlines()[:32])
    assert "pip install" in screen and blocks[0] in screen
    assert all(f"gated[{extra}]" in screen for extra in extras() if extra)
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", text):
        assert (ROOT / target).exists(), target


def workflows() -> dict[str, dict]:
    folder = ROOT / ".github" / "workflows"
    # YAML reads the word `on` as a truth value
    return {path.name: yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.yml"))}


def test_every_workflow_asks_for_as_little_as_it_can_and_pins_what_it_uses():
    assert set(workflows()) == {"ci.yml", "pages.yml", "release.yml"}
    for name, flow in workflows().items():
        assert flow["permissions"] == {"contents": "read"}, name
        assert "pull_request_target" not in flow[True] and "workflow_run" not in flow[True]
        for job in flow["jobs"].values():
            if "uses" in job:
                assert (ROOT / job["uses"]).exists() and job["uses"].startswith("./")
                continue
            assert job["timeout-minutes"] <= 90
            for step in job["steps"]:
                used = step.get("uses", "")
                assert ("run" in step) != bool(used)
                assert not used or re.search(r"@(v\d+|release/v\d+|[0-9a-f]{40})$", used), used
                assert "checkout" not in used or step["with"]["persist-credentials"] is False
                assert "${{" not in step.get("run", ""), "values reach a shell through the environment only"


def test_ci_runs_the_two_commands_on_two_pythons_and_two_torches(tool):
    job = workflows()["ci.yml"]["jobs"]["test"]
    matrix = job["strategy"]["matrix"]
    assert matrix["python"] == ["3.11", "3.13"]
    assert (
        len(matrix["torch"]) == 2
        and matrix["torch"][0] == ""
        and f"=={tool('matrix').OTHER_TORCH}" in matrix["torch"][1]
    )
    commands = [step["run"].partition(" #")[0].strip() for step in job["steps"] if "run" in step]
    assert "make book" in commands and ".ci/run" in commands
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_a_release_is_checked_built_twice_published_attested_and_shown():
    jobs = workflows()["release.yml"]["jobs"]
    assert {name: job.get("needs") for name, job in jobs.items()} == {
        "build": None, "publish": "build", "release": "publish", "docs": "release",
    }  # fmt: skip
    steps = {
        name: str([step.get("run", step.get("uses")) for step in job.get("steps", [])]) for name, job in jobs.items()
    }
    for wanted in ("make release-check", "test_package.py", "SOURCE_DATE_EPOCH", "sha256sum --check", "make offline"):
        assert wanted in steps["build"], wanted
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert "pypa/gh-action-pypi-publish" in steps["publish"] and "password" not in str(jobs["publish"])
    assert "attest-build-provenance" in steps["release"] and "gh release create" in steps["release"]
    assert jobs["docs"]["uses"] == "./.github/workflows/pages.yml"
    targets = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"^release-check:", targets, re.M) and re.search(r"^offline:", targets, re.M)
