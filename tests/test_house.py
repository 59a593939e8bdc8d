"""The house as it stands: which floor may lean on which, what each folder is for, and nothing that nobody calls.

Read from the files' syntax trees; nothing is imported.
"""

from __future__ import annotations

import ast
import builtins
import functools
import graphlib
import json
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
GROUND = {"gates", "kernels", "backbones", "policy_gradient"}
MODULE_OF = {  # else a page and its module share a name
    chapter["name"]: chapter["module"]
    for chapter in tomllib.loads((ROOT / "book/chapters.toml").read_text(encoding="utf-8"))["chapter"]
    if "module" in chapter
}
AT_MOST = 400  # lines
LONG = {  # a file with more, and why it is one file
    "gated/gla.py": "one layer with its three decays, its cache and its block; the examples make it long",
    "gated/kernels/gla/cpu.py": "the chunk form with its backward, which share one ladder of partial products",
    "gated/kernels/langevin_scan/cpu.py": "forward, backward and the code they generate: one sum in three pieces",
    "gated/lab/explorables/barrier.js": "one figure: three views of one solver, which the browser has once",
    "gated/lab/explorables/board.js": "one figure: the run of a board, its drawing, and the hands on it",
    "gated/lab/explorables/particle.js": "one figure: the particle's laws, its drawing, and the hands on it",
    "gated/langevinflow/model.py": "one model: encoder, flow and decoder; the examples make it long",
    "gated/polarization/study.py": "one study, from the first training to the last table, in parts that are short",
    "gated/stn/training.py": "one class, the trainer, with what it checks, saves and draws",
    "tests/kernels/test_barrier_qp.py": "one solver against five oracles, all on the same random problems",
    "tests/lab/test_explorables_barrier.py": "one figure of three views, which share their random states",
    "tests/lab/test_explorables_exits.py": "one figure, whose two hundred random traces all its tests share",
    "tests/lab/test_explorables_particle.py": "one figure, whose named settings all its tests share",
}


def source(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


@functools.cache
def tree(path: str) -> ast.Module:
    return ast.parse(source(path))


@functools.cache
def files(*patterns: str) -> tuple[str, ...]:
    return tuple(sorted(str(p.relative_to(ROOT)) for pattern in patterns for p in ROOT.glob(pattern)))


@functools.cache
def modules() -> dict[str, str]:
    """The package's modules by their dotted names."""
    return {p.removesuffix(".py").removesuffix("/__init__").replace("/", "."): p for p in files("gated/**/*.py")}


def taken(code: ast.AST) -> set[str]:
    """The package's modules that some code imports, at its top or within a function."""
    found = set()
    for node in ast.walk(code):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in modules() else str(node.module))
    return found & set(modules())


def part(module: str) -> str:
    """The part of the package that a module belongs to: `gla` for gated.gla, `moe` for gated.moe.em."""
    return [*module.split("."), ""][1]


def chapters() -> set[str]:
    return {part(module) for module in modules()} - GROUND - {"", "lab"}


@functools.cache
def cells(page: str) -> str:
    """The code of a page, without IPython's magics."""
    notebook = json.loads(source(page))
    code = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return re.sub(r"(?m)^\s*[%!].*$", "", "\n".join(code))


def test_a_module_leans_only_on_the_floors_below():
    for module, path in modules().items():
        here = part(module)
        allowed = {here, ""} | GROUND
        if here in GROUND:
            allowed = {here, "gates"} if here in ("backbones", "policy_gradient") else {here}
        elif here == "lab":
            allowed |= chapters()
        assert {part(other) for other in taken(tree(path))} <= allowed, path


def test_imports_run_in_no_circle():
    graph = {module: taken(tree(path)) - {module} for module, path in modules().items()}
    assert len(tuple(graphlib.TopologicalSorter(graph).static_order())) == len(modules())


@pytest.mark.parametrize("path", files("book/*.ipynb"))
def test_a_page_imports_its_module_the_ground_and_the_lab(path):
    page = Path(path).stem
    own = chapters() if page == "recipes" else {MODULE_OF.get(page, page)}
    assert {part(module) for module in taken(ast.parse(cells(path)))} <= GROUND | own | {"lab", ""}


@pytest.mark.parametrize("path", files("gated/**/__init__.py"))
def test_a_folder_says_in_one_line_what_it_is_for(path):
    first = (ast.get_docstring(tree(path)) or "").split("\n\n")[0]
    assert first.endswith(".") and "\n" not in first and 20 < len(first) <= 120, first


def test_a_module_has_its_tests_where_a_reader_looks():
    parts = {path for module, path in modules().items() if module.count(".") == 1}
    for path in parts - {"gated/lab/__init__.py"}:
        name = Path(path).parent.name if path.endswith("__init__.py") else Path(path).stem
        folder = (ROOT / "tests" / name).is_dir()
        assert folder == path.endswith("__init__.py") and (folder or files(f"tests/test_{name}.py")), path


def test_no_file_is_long_without_a_reason():
    sized = files(*(f"{d}/**/*.{e}" for d in ("gated", "tests", "tools", "benchmarks") for e in ("py", "js", "css")))
    assert {path for path in sized if source(path).count("\n") > AT_MOST} == set(LONG)
    assert all(len(why) > 40 for why in LONG.values())


def test_what_is_said_about_the_size_of_the_package_is_so():
    said = source("CONTRIBUTING.md").partition("## Reading the code")[2].partition("\n## ")[0]
    lines = {ending: sum(source(path).count("\n") for path in files(f"gated/**/*.{ending}")) for ending in ("py", "js")}
    assert "more than 40,000 lines of Python, and nearly 4,000 of JavaScript" in said
    assert 40_000 < lines["py"] < 50_000 and 3_500 < lines["js"] < 4_000
    listed, folder = [], ""
    for inside, name in re.findall(r"in `(\w[\w/]*)`:|`([\w/]+\.py)`", said):
        folder = inside or folder
        here = f"gated/{folder}/{name}"  # a name that stands in no such folder is a path from gated/
        listed += [here if (ROOT / here).exists() else f"gated/{name}"] if name else []
    assert len(listed) == len(set(listed)) > 15
    assert "about 5,000 lines" in said and 4_500 < sum(source(path).count("\n") for path in listed) < 5_500


BUILT_IN = set(dir(builtins)) | {"__file__", "__name__", "__doc__", "__annotations__"}


CODE = ("gated/**/*.py", "tests/**/*.py", "tools/**/*.py", "benchmarks/**/*.py")


def test_no_name_is_used_that_nobody_made():
    """The linters leave this out, since shapes such as "batch time" look like undefined names to them."""
    undefined = {path: unmade for path in files(*CODE) if (unmade := loaded(tree(path)) - made(tree(path)))}
    assert undefined == {}


def loaded(code: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(code) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


def made(code: ast.AST) -> set[str]:
    found = {*dir(builtins), "__file__", "__annotations__"}
    for node in ast.walk(code):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            found.add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.alias):
            found.add((node.asname or node.name).split(".")[0])
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            found.add(node.name)
    return found


def test_no_file_is_a_drawer_for_the_rest():
    drawers = {"utils", "util", "common", "base", "helpers", "misc", "tools", "core", "shared"}
    assert not [path for path in files(*CODE) if Path(path).stem.strip("_") in drawers]


@functools.cache
def mentions() -> dict[str, set[str]]:
    """Each name that is read somewhere (or spelled as a text, for getattr), with the files that do so. A test makes
    nobody need a name, and neither does an `__all__`."""
    found: dict[str, set[str]] = {}
    for path in files(*(pattern for pattern in CODE if not pattern.startswith("tests"))):
        for name in set().union(*(read(node) for node in tree(path).body if not exports(node))):
            found.setdefault(name, set()).add(path)
    for path in files("book/*.ipynb"):
        for name in read(ast.parse(cells(path))):
            found.setdefault(name, set()).add(path)
    return found


@functools.cache
def read(code: ast.AST) -> set[str]:
    out = set()
    for node in ast.walk(code):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            out.add(node.id)
        elif isinstance(node, ast.Attribute):
            out.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            out.add(node.value)
    return out


def top_level(module: ast.Module) -> dict[str, ast.stmt]:
    found: dict[str, ast.stmt] = {}
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [n for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)]
            found |= {name.id: node for name in names}
    return found


OFFERED = {  # what no code of ours calls, and for whom it stands there
    "called by Sphinx, by hatch, by tests/test_package.py": {"setup", "StoredResults", "beyond_torch", "unsatisfied"},
    "gates, schedules and losses for a model of the reader's": {
        "HardConcrete", "cosine_schedule", "linear_schedule", "noisy_topk_gate", "router_z_loss",
    },
    "another library's form of what the book computes: scikit-learn, PettingZoo, transformers, torch.distributed": {
        "EXPECTED_FAILED_CHECKS", "GaussianMoERegressor", "ParallelWorld", "mixtral_layer", "switch_layer",
        "synchronise_gradients",
    },
    "files of the Neural Latents Benchmark, which no page may load": {"load_prepared", "read_nwb", "save_prepared"},
    "quantities and worlds of the papers beyond those that the pages show, tested like the rest": {
        "best_answers", "duplicate", "full_without_ids", "generalisation", "mixture_nll", "predator_prey",
        "profile_log_likelihood", "random_derangement", "ray_log_likelihood", "rbar", "scale_noise",
        "tempered_over_loss", "true_scores",
    },
    "for studies and figures of the reader's": {
        "PlanPolicy", "TEMPERATURE_THEORY", "fit_seeds", "mean_with_error", "sgemm_rate", "synthetic_trace",
    },
}  # fmt: skip


def test_somebody_calls_each_name_or_it_is_said_for_whom_it_stands():
    """Only code that ships or is read counts: the package, the workshop, the benchmarks, the pages."""
    idle = {path: names for path in files("gated/**/*.py", "tools/*.py", "benchmarks/*.py") if (names := idle_in(path))}
    assert set().union(*idle.values()) == set().union(*OFFERED.values()), idle


def idle_in(path: str) -> set[str]:
    module, idle = tree(path), set()
    for name, node in top_level(module).items():
        if name.startswith("__") or name == "_" or handed_on(node):
            continue
        here = any(name in read(other) for other in module.body if other is not node and not exports(other))
        others = mentions().get(name, set()) - {path}
        if name.startswith("_"):
            others = {other for other in others if other.startswith("gated/")}
        if not here and not others:
            idle.add(name)
    return idle


def handed_on(node: ast.stmt) -> bool:
    """Whether a decorator gives the function to PyTorch: as a kernel, a fake, a count of operations."""
    return any("regist" in ast.unparse(decorator) for decorator in getattr(node, "decorator_list", ()))


def exports(node: ast.stmt) -> bool:
    """Whether it is `__all__ = [...]`."""
    return isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets)


def test_what_a_module_offers_is_there():
    for path in files("gated/**/*.py"):
        body = tree(path).body
        imports = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
        there = {alias.asname or alias.name for node in imports for alias in node.names} | set(top_level(tree(path)))
        for names in (ast.literal_eval(node.value) for node in body if exports(node)):
            assert len(set(names)) == len(names) and set(names) <= there, path
