"""The package as others get it: the same bytes from two builds, quick to import with what it declares, one version
everywhere, extras that the lock meets, a README whose code runs."""

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

pytestmark = pytest.mark.processes

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
def minimal(tool, built, wheel) -> Path:
    return tool("release").minimal(built[0] / "minimal", wheel)


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


def test_every_part_is_imported_in_less_than_a_third_of_a_second_beyond_torch(minimal, tool, slower):
    """All of them in one go, in processor time, so that what else runs on the machine plays no part; on a core that is
    slower than the one in `tools/check.py` it may take as many times longer."""
    release = tool("release")
    assert {"gated", "gated.gla", "gated.online_cbf", "gated.kernels.barrier_qp"} <= set(release.parts())
    code = "import " + ", ".join(release.parts())
    assert min(release.beyond_torch(minimal, code, "process_time") for _ in range(2)) < 0.3 * slower


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


def test_what_is_declared_is_enough(minimal, tool):
    """Every module is imported with the base dependencies alone. `gated.lab`, the GPU kernels and the scikit-learn
    estimator may ask for more: a package that an extra brings."""
    release = tool("release")
    release.beyond_torch(minimal, WALK)
    alone, missing, seen = json.loads((minimal.parent / "found.json").read_text(encoding="utf-8"))
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
    """reports/package.json: pip's own answer for each extra, under the lock and without it, to what is asked today."""
    release = tool("release")
    again = "run: make release-check"
    report = json.loads(release.REPORT.read_text(encoding="utf-8"))
    assert report["command"] == "make release-check"
    assert report["versions"]["gated"] == gated.__version__, again
    assert set(report["seconds_beyond_torch"]) == set(release.parts()), again
    assert max(report["seconds_beyond_torch"].values()) < 0.3
    assert list(report["extras"]) == extras() and report["lock"] == release.lock(), again
    pins = release.locked()
    for extra, found in report["extras"].items():
        assert found["asks"] == release.asked(extra), again
        for name, version in found["locked"].items():
            own = name == "gated" or name.startswith(("nvidia", "cuda"))
            assert own or version.split("+")[0] == release.pinned(pins[name]), again
        for wanted in map(Requirement, found["asks"]):
            for kind in ("locked", "newest") if extra not in release.WORKSHOP else ("locked",):
                version = found[kind].get(canonicalize_name(wanted.name))
                assert version and wanted.specifier.contains(version, prereleases=True), f"{wanted}, {kind}: {again}"


# One version, one date ------------------------------------------------------------------------------------------------


def test_version_and_date_are_the_same_everywhere(tool):
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert re.fullmatch(r"\d+\.\d+\.\d+", gated.__version__)
    assert citation["version"] == gated.__version__ == tool("bootstrap").version()
    tag = f"v{gated.__version__}"  # what the README and a notebook on Colab install, and which notebook Colab opens
    assert f'git+{tool("bootstrap").repository()}@{tag}"' in (ROOT / "README.md").read_text(encoding="utf-8")
    assert tool("bootstrap").text().count(f"@{tag}") == 1
    assert yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["repository"]["branch"] == tag
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


def test_the_changelog_keeps_its_form_and_names_every_part(tool):
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
    parts = {part.removeprefix("gated.kernels.") for part in tool("release").parts()} - {"gated"}
    assert not [part for part in parts if f"`{part}`" not in text]
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


# README --------------------------------------------------------------------------------------------------------------


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
