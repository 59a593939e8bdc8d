"""Does a test notice when the code is wrong? `make mutants` changes one thing at a time in `gated/gates` and
`gated/kernels`, runs the tests that reach the changed line and lists the changes that no test noticed.

A change: a comparison, an operator, a number, a default or a flag; `not` or a minus left out; `and` for `or`; min for
max; the branches of a `where` or an `if` exchanged; a keyword argument or a `raise` left out. It stands in a function
or in a module's constant (upper-case): the bodies of classes and what a module runs once are left alone. Mutmut does
much of this, but leaves out decorated functions, and a kernel's operators are all decorated. A first run notes which
test reaches which line. Then each change gets a forked process, which stops at the first failure, or where a test
takes ten times its CPU seconds. Large groups have too many changes: a small sample is drawn, with a fixed seed. What
survives needs a reason in `reports/mutants.toml`.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import datetime
import functools
import gc
import hashlib
import importlib
import importlib.machinery
import json
import linecache
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
REPORT, REASONS = ROOT / "reports" / "mutants.json", ROOT / "reports" / "mutants.toml"
SEED, PATIENCE = 0, 20  # PATIENCE: CPU seconds that a test gets beyond ten times its own
# What is changed, the tests that may notice, the size of the sample (None: all), and whether Triton interprets.
GROUPS: dict[str, tuple[list[str], list[str], int | None, bool]] = {
    "gates": (["gated/gates/*.py"], ["tests/gates/test_*.py"], None, False)
}
for _family in ("barrier_qp", "gla", "gmoe_em", "grouped_gemm", "langevin_scan", "topk_gate"):
    _folder = f"gated/kernels/{_family}"
    _names = (_family, f"errors_{_family}*", f"compile_{_family}", "errors_devices")
    _tests = [f"tests/kernels/test_{name}.py" for name in _names]
    _most = {"grouped_gemm": None, "topk_gate": None, "barrier_qp": 120, "langevin_scan": 12}.get(_family, 24)
    GROUPS[_family] = ([f"{_folder}/{name}.py" for name in ("[!gip]*", "inductor", "points")], _tests, _most, False)
    _tests = [f"tests/kernels/test_{_family}_interp.py", f"tests/kernels/test_errors_{_family}*.py"]
    _files = [f"{_folder}/{name}.py" for name in ("__init__", "gpu", "packing")]
    GROUPS[_family + " in Triton"] = (_files, _tests, 8, True)

SWAPS: dict[type, type] = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And},
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult},
    **{ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd},
}
NAMES = {"min": "max", "amin": "amax", "minimum": "maximum", "argmin": "argmax", "any": "all", "floor": "ceil"}
NAMES |= {after: before for before, after in NAMES.items()}


@functools.cache
def text_of(file: str) -> str:
    """As it was when the run began: someone may edit it meanwhile."""
    return (ROOT / file).read_text(encoding="utf-8")


class Mutant(NamedTuple):
    file: str
    key: str  # function: before -> after, and the how-manieth such change in it
    after: str
    span: tuple[int, int, int, int]
    around: tuple[int, int]  # the lines of the function; (0, 0) for a module's constant

    def source(self) -> str:
        """The file's text with this change."""
        lines = text_of(self.file).encode().splitlines(keepends=True)
        top, left, bottom, right = self.span
        changed = lines[top - 1][:left] + self.after.encode() + lines[bottom - 1][right:]
        return b"".join([*lines[: top - 1], changed, *lines[bottom:]]).decode()


def changes(node: ast.AST) -> Iterator[ast.AST]:
    """What one may make of one node."""

    def copy(**fields: Any) -> ast.AST:
        return type(node)(**{**{name: getattr(node, name) for name in node._fields}, **fields})

    match node:
        case ast.Compare(ops=operators):
            for i, operator in enumerate(operators):
                yield copy(ops=[*operators[:i], SWAPS[type(operator)](), *operators[i + 1 :]])
        case ast.BinOp(op=operator) | ast.BoolOp(op=operator) if type(operator) in SWAPS:
            yield copy(op=SWAPS[type(operator)]())
        case ast.AugAssign(op=operator) if type(operator) in SWAPS:
            yield copy(op=SWAPS[type(operator)]())
        case ast.UnaryOp(operand=operand) if not isinstance(operand, ast.Constant):
            yield operand
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield ast.Constant(value + 1)
        case ast.Constant(value=float(value)):
            yield ast.Constant(2 * value if value else 1.0)
        case ast.IfExp(body=body, orelse=orelse):
            yield copy(body=orelse, orelse=body)
        case ast.Raise():
            yield ast.Pass()
        case ast.Name(id=name) if name in NAMES:
            yield copy(id=NAMES[name])
        case ast.Attribute(attr=name) if name in NAMES:
            yield copy(attr=NAMES[name])
        case ast.Call(args=[test, first, second], func=ast.Attribute(attr="where")):
            yield copy(args=[test, second, first])
    if isinstance(node, ast.Call):
        for i, keyword in enumerate(node.keywords):
            if keyword.arg:
                yield copy(keywords=node.keywords[:i] + node.keywords[i + 1 :])


def constants(text: str) -> list[ast.stmt]:
    """Where a module gives upper-case names their values."""
    return [node for node in ast.parse(text).body if re.match(r"[A-Z_]+(:| =)", ast.unparse(node))]


def mutants(file: str) -> list[Mutant]:
    """All changes of a file's functions and constants, but for annotations, texts, f-strings, and what is raised."""
    found: list[Mutant] = []
    seen: dict[str, int] = {}

    def visit(node: ast.AST, function: str, around: tuple[int, int]) -> None:
        for changed in changes(node) if function else ():
            assert isinstance(node, ast.expr | ast.stmt) and node.end_lineno and node.end_col_offset
            after = ast.unparse(changed)
            key = f"{file}: {function}: {ast.unparse(node)} -> {after}"
            seen[key] = seen.get(key, 0) + 1
            span = (node.lineno, node.col_offset, node.end_lineno, node.end_col_offset)
            text = f"({after})" if isinstance(node, ast.expr) else after
            found.append(Mutant(file, f"{key} ({seen[key]})", text, span, around))
        if isinstance(node, ast.FunctionDef):
            function, around = f"{function}.{node.name}".lstrip("."), (node.lineno, node.end_lineno or 0)
        if isinstance(node, ast.Raise | ast.JoinedStr):
            return
        for name, value in ast.iter_fields(node):
            if name not in ("annotation", "returns", "decorator_list"):
                for child in value if isinstance(value, list) else [value]:
                    if isinstance(child, ast.AST):
                        visit(child, function, around)

    visit(ast.parse(text_of(file)), "", (0, 0))
    for node in constants(text_of(file)):
        visit(node, "a constant", (0, 0))
    return found


def plant(mutant: Mutant, live: dict[tuple[str, str], list[FunctionType]]) -> None:
    """Gives the living functions of the file the code, and the defaults, of the changed text; or the constants."""
    path, text = str(ROOT / mutant.file), mutant.source()
    if mutant.around == (0, 0):
        home = next(vars(module) for module in list(sys.modules.values()) if getattr(module, "__file__", "") == path)
        before = dict(home)
        exec(compile(ast.Module(list(constants(text)), []), path, "exec"), home)
        for module in [module for name, module in sys.modules.items() if re.match(r"gated\b|tests\b|test_", name)]:
            for name, value in list(vars(module).items()):
                if name in before and value is before[name]:
                    setattr(module, name, home[name])
    linecache.cache[path] = (len(text), None, text.splitlines(keepends=True), path)  # Triton asks `inspect`
    loader, get_code = importlib.machinery.SourceFileLoader, importlib.machinery.SourceFileLoader.get_code

    def changed(self: Any, name: str) -> Any:
        return compile(text, path, "exec") if self.path == path else get_code(self, name)

    loader.get_code = changed  # type: ignore[assignment, method-assign]  # for what is imported only now

    def walk(body: list[ast.stmt], code: CodeType) -> None:
        made = {inner.co_qualname: inner for inner in code.co_consts if isinstance(inner, CodeType)}
        for node in body:
            if isinstance(node, ast.ClassDef):
                walk(node.body, next(c for name, c in made.items() if name.split(".")[-1] == node.name))
            if isinstance(node, ast.FunctionDef):
                name = next(name for name in made if name.split(".")[-1] == node.name)
                for function in live.get((path, name), []):
                    if function.__code__.co_freevars == made[name].co_freevars:
                        function.__code__ = made[name]
                    for field, nodes in (
                        ("__defaults__", node.args.defaults),
                        ("__kwdefaults__", node.args.kw_defaults),
                    ):
                        values = [n and eval(ast.unparse(n), function.__globals__) for n in nodes]
                        if field == "__defaults__":
                            function.__defaults__ = tuple(values)
                        else:
                            pairs = zip(node.args.kwonlyargs, nodes, values, strict=True)
                            function.__kwdefaults__ = {a.arg: value for a, n, value in pairs if n}

    walk(ast.parse(text).body, compile(text, path, "exec"))


class Examination:
    """A pytest plugin: once the tests are collected, it runs them in forked processes, with a change in each."""

    def __init__(self, files: list[str], drawn: list[Mutant]):
        self.files, self.drawn, self.survivors = files, drawn, list[dict[str, Any]]()
        self.counts = {"killed": 0, "crashed": 0, "out of time": 0}
        self.lines: dict[str, set[tuple[str, int]]] = {}
        self.seconds: dict[str, float] = {}

    def pytest_configure(self) -> None:
        from hypothesis import Phase, settings

        quick = settings(settings.get_profile("gated"), phases=(Phase.explicit, Phase.generate), database=None)
        settings.register_profile("mutants", quick)
        settings.load_profile("mutants")

    def pytest_runtestloop(self, session: Any) -> bool:
        paths = {str(ROOT / file): file for file in self.files}
        with tempfile.NamedTemporaryFile() as notes:
            if self.forked(1800, lambda: self.trace(session.items, paths, notes.name)):
                raise SystemExit("the tests fail without any change")
            lines, seconds, modules = json.loads(Path(notes.name).read_text())
            lines = {name: {tuple(place) for place in places} for name, places in lines.items()}
        for name in modules:  # once, and not in each process again
            with contextlib.suppress(Exception):
                importlib.import_module(name)
        live: dict[tuple[str, str], list[FunctionType]] = {}
        for thing in gc.get_objects():
            if type(thing) is FunctionType and thing.__code__.co_filename in paths:
                live.setdefault((thing.__code__.co_filename, thing.__code__.co_qualname), []).append(thing)
        gc.freeze()  # so that the forked processes share it
        for number, mutant in enumerate(self.drawn, 1):
            order: list[Any] = []
            began = time.monotonic()
            for low, high in ((mutant.span[0], mutant.span[2]), mutant.around):
                places = {(mutant.file, line) for line in range(low, high + 1)}
                order = order or [item for item in session.items if places & lines[item.nodeid]]
            rarity = {at: sum(at in reached for reached in lines.values()) for at in places}
            order.sort(  # first those that reach what few others do, an error say; then the shortest
                key=lambda item: (min(rarity[at] for at in places & lines[item.nodeid]), seconds[item.nodeid])
            )
            order = order or sorted(session.items, key=lambda item: seconds[item.nodeid])
            limits = [PATIENCE + int(10 * seconds[item.nodeid]) for item in order]
            code = self.forked(sum(limits), functools.partial(self.try_one, mutant, live, order, limits))
            if code == -signal.SIGUSR1:
                raise SystemExit(f"cannot make the change {mutant.key}")
            if code == 0:
                self.survivors.append({"change": mutant.key, "tests that reach it": len(order)})
            else:
                late = -code in (signal.SIGXCPU, signal.SIGKILL)
                self.counts["killed" if code > 0 else "out of time" if late else "crashed"] += 1
            verdict = "killed" if code > 0 else f"signal {-code}" if code else "SURVIVED"
            verdict += f" after {time.monotonic() - began:.1f} s"
            print(f"{number}/{len(self.drawn)} {verdict}: {mutant.key}, line {mutant.span[0]}", flush=True)
        return True

    def forked(self, cpu_s: int, work: Callable[[], None]) -> int:
        """The exit code of `work` in a process of its own: 1 where something was raised, -signal if one ended it."""
        if not (child := os.fork()):
            code = 1
            try:
                resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 5))
                sink = os.open(os.devnull, os.O_RDWR)
                for stream in range(3):
                    os.dup2(sink, stream)
                work()
                code = 0
            finally:
                os._exit(code)
        waited = 0  # in rounds, not by the clock: all of us may be stopped for a while
        while not (done := os.waitpid(child, os.WNOHANG))[0]:
            waited += 1
            if waited > 5000 * cpu_s:
                os.kill(child, signal.SIGKILL)
            time.sleep(0.01)
        return os.waitstatus_to_exitcode(done[1])

    def run(self, item: Any) -> None:
        item.ihook.pytest_runtest_protocol(item=item, nextitem=None)

    def pytest_runtest_makereport(self, call: Any) -> None:
        import pytest

        if call.excinfo is not None and not isinstance(call.excinfo.value, pytest.skip.Exception):
            os._exit(1)  # that it failed is enough: to say how takes longer than most tests

    def pytest_runtest_logreport(self, report: Any) -> None:
        sys.settrace(None) if report.when == "teardown" else None
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration

    def trace(self, items: list[Any], paths: dict[str, str], notes: str) -> None:
        """Which lines of the files each test reaches, and how long it takes."""
        reached: set[tuple[str, int]] = set()

        def each(frame: FrameType, event: str, _: object) -> Any:
            file = paths.get(frame.f_code.co_filename)
            if file is not None:
                reached.add((file, frame.f_lineno))
                return each

        lines = {}
        for item in items:
            reached.clear()
            sys.settrace(each)
            self.run(item)
            sys.settrace(None)
            lines[item.nodeid] = sorted(reached)
        Path(notes).write_text(json.dumps([lines, self.seconds, list(sys.modules)]))

    def try_one(
        self, mutant: Mutant, live: dict[tuple[str, str], list[FunctionType]], order: list[Any], limits: list[int]
    ) -> None:
        try:
            plant(mutant, live)
        except BaseException:
            os.kill(os.getpid(), signal.SIGUSR1)
        for item, seconds in zip(order, limits, strict=True):
            _, last = resource.getrlimit(resource.RLIMIT_CPU)
            resource.setrlimit(resource.RLIMIT_CPU, (min(last, int(time.process_time()) + seconds), last))
            self.run(item)


def everything(group: str) -> list[Mutant]:
    """All changes of a group, in an order that is drawn, and that an edit of one of them leaves to the others."""
    files = sorted({str(path.relative_to(ROOT)) for pattern in GROUPS[group][0] for path in ROOT.glob(pattern)})
    found = [mutant for file in files for mutant in mutants(file)]
    return sorted(  # what __init__ does on a GPU is tested with the kernels that it calls
        (mutant for mutant in found if "__init__" not in mutant.file or ("_gpu: " in mutant.key) == GROUPS[group][3]),
        key=lambda mutant: hashlib.sha256(f"{SEED} {mutant.key}".encode()).digest(),
    )


def examine(group: str, most: int | None, wanted: set[str] | None = None) -> dict[str, Any]:
    """Runs `most` changes of a group, or those whose keys are wanted: the counts, and what survived."""
    _, patterns, _, interpret = GROUPS[group]
    tests = sorted({str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern)})
    possible = everything(group)
    drawn = possible[:most] if wanted is None else [mutant for mutant in possible if mutant.key in wanted]
    changes = dict(sorted(Counter(mutant.file for mutant in possible).items()))
    os.environ |= {"GATED_TYPECHECK": "0", "GATED_QUIET": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    os.environ |= {"TRITON_INTERPRET": "1"} if interpret else {}
    import pytest
    import torch

    torch.set_num_threads(1)  # a forked process waits for ever for threads that it does not have

    work = Examination(list(changes), drawn)
    options = ["-q", "-s", "--assert=plain", "-p", "no:cacheprovider", "-p", "no:faulthandler"]
    if drawn and pytest.main([*options, *tests], plugins=[work]):
        raise SystemExit(f"{group}: the examination failed")
    return {"changes": changes, "examined": len(drawn), **work.counts, "survivors": work.survivors}


def explained(report: dict[str, Any]) -> dict[str, Any]:
    """Every survivor with its reason: the first in `reports/mutants.toml` whose pattern the change matches."""
    reasons = tomllib.loads(REASONS.read_text(encoding="utf-8"))["reasons"]
    for group in report["groups"].values():
        for survivor in group["survivors"]:
            fits = (row["why"] for row in reasons if re.search(row["change"], survivor["change"]))
            survivor["reason"] = next(fits, "")
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("group", nargs="?", default="", help=f"of {', '.join(GROUPS)}; all unless named")
    parser.add_argument("--again", action="store_true", help="only what survived in the report without a reason")
    given = parser.parse_args()
    group = given.group
    if not group:  # a process each, for what Triton reads when it is imported
        for group in GROUPS:
            subprocess.run([sys.executable, __file__, group, *["--again"] * given.again], check=True)
        return
    sys.path.insert(0, str(ROOT))
    from gated.lab.claims import machine, versions

    stored = json.loads(REPORT.read_text()) if REPORT.exists() else {}
    groups = stored["groups"] if stored.get("versions") == versions() else {}  # of other versions nothing is kept
    most = GROUPS[group][2]
    if given.again and group in groups:
        before = explained(stored)["groups"][group]
        kept = [survivor for survivor in before["survivors"] if survivor["reason"]]
        after = examine(group, most, {each["change"] for each in before["survivors"] if not each["reason"]})
        after |= {name: before[name] + after[name] for name in ("killed", "crashed", "out of time")}
        after["survivors"] = kept + after["survivors"]
        after |= {name: before[name] for name in ("most", "changes", "examined")}
    else:
        after = {"most": most} | examine(group, most)
    after = {"date": f"{datetime.date.today()}"} | after
    groups = {name: after if name == group else groups[name] for name in GROUPS if name in {*groups, group}}
    report = {"command": "make mutants", "seed": SEED, "machine": machine(), "versions": versions(), "groups": groups}
    REPORT.write_text(json.dumps(explained(report), indent=1) + "\n")


if __name__ == "__main__":
    main()
