"""The workshop: one lock, one place for the address, schemas that refuse, API pages that follow the source."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def plain(name: str) -> str:
    return re.split(r"[^\w.-]", name.strip())[0].lower().replace("_", "-")


def test_everything_that_is_asked_for_is_locked(tool):
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    locked = {plain(line) for line in lines if line and not line.startswith("#")}
    assert all(re.match(r"[\w.-]+==[\w.]+($|;)", line) for line in lines if line and not line.startswith("#"))
    assert {plain(wanted) for wanted in tool("environment").requirements("test")} <= locked


def test_the_repository_moves_everywhere_at_once(tool, tmp_path):
    repo, now = tool("repo"), tool("bootstrap").repository()
    for path in (path for place in repo.PLACES for path in ROOT.glob(place)):
        target = tmp_path / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    changed = {path.name for path in repo.move("https://example.org/someone/elsewhere", tmp_path)}
    assert {"pyproject.toml", "_config.yml", "CITATION.cff", "README.md", "gla.ipynb"} <= changed
    for path in tmp_path.rglob("*.*"):
        assert not re.search(re.escape(now) + r"(?![\w-])", path.read_text(encoding="utf-8")), path.name
    assert repo.move(now, tmp_path)
    for path in tmp_path.rglob("*.*"):
        assert path.read_bytes() == (ROOT / path.relative_to(tmp_path)).read_bytes(), path.name


def test_the_address_stands_nowhere_else(tool):
    now, places = tool("bootstrap").repository(), tool("repo").PLACES
    known = {path for place in places for path in ROOT.glob(place)}
    for folder in ("gated", "book", "tools", "tests", "benchmarks", ".github"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".md", ".yml", ".ipynb", ".js", ".css", ".json") and "api" not in path.parts:
                assert path in known or now not in path.read_text(encoding="utf-8"), path


def test_schemas_refuse_what_they_should(tool):
    check = tool("results").check
    good = {
        "chapter": "gla", "id": "C1", "claim": "c", "refuted_if": "r", "measured": 0.5, "unit": "nats",
        "interval": [0.4, 0.6], "seeds": 3, "verdict": "holds here", "source": "live", "why": "w",
    }  # fmt: skip
    assert check("claims", {"rows": [good]}) == [good]
    for wrong in ({"verdict": "true"}, {"seeds": -1}, {"interval": [0.4]}, {"source": "memory"}, {"claim": ""}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            check("claims", {"rows": [good | wrong]})
    with pytest.raises(ValueError, match="rows"):
        check("claims", {"rows": []})


def test_api_pages_show_what_a_package_exports(tool):
    pages = tool("api").pages()
    import gated.gates

    for name in gated.gates.__all__:
        assert re.search(rf"{{py:(function|class)}} {name}\(", pages["gated.gates.md"]), name
    assert "batch time heads key" in pages["gated.kernels.gla.md"]
    assert {"gated.gates.md", "gated.kernels.gla.md", "gated.gla.md", "gated.lab.md", "index.md"} <= set(pages)


def test_api_pages_show_a_packages_modules_once(tool):
    page = tool("api").pages()["gated.moe.md"]
    for name in ("MoE", "expert_capacity", "ExpertParallel", "TopKGate", "fit_gaussian_gate", "pooled_context"):
        assert len(re.findall(rf"{{py:(?:function|class)}} {name}\(", page)) == 1, name
    assert "# gated.gates.noise" not in tool("api").pages()["gated.gates.md"].replace("\\", "")
