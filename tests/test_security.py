"""What SECURITY.md promises: nothing in the package unpickles, evaluates text or asks a shell."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = {  # that run what they read, or exist to run text
    "_pickle", "builtins", "cPickle", "cloudpickle", "code", "codeop", "dill", "imp", "joblib", "jsonpickle", "marshal",
    "pickle", "pty", "runpy", "shelve",
}  # fmt: skip
BUILT_IN = {"eval", "exec", "compile", "__import__", "__builtins__"}
LAST = {  # names that mean the same wherever they are taken from
    "PackageImporter", "SourceFileLoader", "Unpickler", "exec_module", "full_load", "getoutput", "getstatusoutput",
    "popen", "read_pickle", "spec_from_file_location", "unsafe_load",
}  # fmt: skip
OF_OS = re.compile(r"(os|posix)\.(system|popen|exec[lv]\w*|spawn\w*|posix_spawn\w*|startfile)")
LOADS = ("json.load", "tomllib.load", "triton.language.load", "gated.")  # that read numbers and texts


DANGEROUS = """
    import pickle
    import pickle as p
    from joblib import load
    from _pickle import loads
    import builtins
    from os import *
    import marshal, json
    import_module('dill')
    import importlib; importlib.import_module('code')
    eval(text)
    exec(text)
    list(map(eval, texts))
    run = exec
    __import__(name)
    compile(text, '', 'exec')
    __builtins__['eval'](text)
    getattr(os, 'system')(text)
    import os; os.system(text)
    from os import system
    from os import system as run; run(text)
    import os as o; o.popen(x)
    import os; os.execv(path, [])
    import os; run = os.spawnl
    import subprocess; subprocess.getoutput(text)
    from subprocess import getstatusoutput as ask; ask(text)
    import subprocess as s; s.run(text, shell=True)
    from subprocess import run; run(text, shell=yes)
    import subprocess; subprocess.run(text, **options)
    import torch; torch.load(path)
    import torch as t; t.load(path)
    from torch import load; load(path)
    from torch import load as read; read(path)
    import torch; read = torch.load; read(path)
    import torch; torch.load(path, weights_only=False)
    import torch; torch.load(path, **options)
    import torch; torch.hub.load(repo, model)
    import torch.jit; torch.jit.load(path)
    from torch.package import PackageImporter
    from torch.serialization import load; load(path, weights_only=flag)
    import numpy as np; np.load(path, allow_pickle=True)
    import numpy as np; np.load(path, None, True)
    from numpy import load; load(path, allow_pickle=trusted)
    import yaml; yaml.load(text)
    import yaml; yaml.unsafe_load(text)
    from yaml import load; load(text, Loader)
    import pandas as pd; pd.read_pickle(path)
    something.load(path)
    from importlib.util import spec_from_file_location
    loader.exec_module(module)
"""
HARMLESS = """
    model.eval()
    import re; re.compile(text)
    import torch; torch.compile(model)
    routing.load()
    import torch; torch.load(path, weights_only=True)
    import numpy as np; np.load(path); np.load(path, 'r')
    import numpy as np; np.load(path, allow_pickle=False)
    import json; json.load(file)
    import tomllib; tomllib.load(file)
    import triton.language as tl; tl.load(x + at, mask=inside)
    import subprocess; subprocess.Popen(command, env=environment)
    import os; os.environ['HOME']
    model.load_state_dict(state)
    from dask.system import CPU_COUNT
    from importlib import import_module; import_module(name)
    {'eval': 1}['eval']
"""


def dangers(source: str) -> list[str]:
    """What could run what a file says. A name is followed to where it was imported from, whatever it is called here."""
    tree, origin, found = ast.parse(source), {}, []
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                origin[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
                found += [alias.name] if alias.name.partition(".")[0] in MODULES else []
        elif isinstance(node, ast.ImportFrom):
            origin |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            found += [node.module] if (node.module or "").partition(".")[0] in MODULES else []
            found += [f"{node.module}.*" for alias in node.names if alias.name == "*"]

    def full(node: ast.AST) -> str:
        if isinstance(node, ast.Name):
            return origin.get(node.id, node.id)
        return f"{full(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else "?"

    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            name = full(node)
            bad = OF_OS.fullmatch(name) or name.rpartition(".")[2] in LAST or (name in BUILT_IN and name not in own)
            handed_on = re.fullmatch(r"(torch|numpy|yaml)(\.\w+)*\.load", name) and id(node) not in called
            found += [name] if bad or handed_on else []
        elif isinstance(node, ast.alias) and node.name.rpartition(".")[2] in LAST:
            found.append(node.name)
        elif isinstance(node, ast.Call):
            found += [ast.unparse(node)] if runs(node, full(node.func), own) else []
    imported = [name for name in origin.values() if OF_OS.fullmatch(name)]
    return found + imported


def runs(call: ast.Call, name: str, own: set[str]) -> bool:
    """Whether the arguments of a call make it dangerous."""
    given = {word.arg: ast.unparse(word.value) for word in call.keywords}
    last, texts = name.rpartition(".")[2], [arg.value for arg in call.args if isinstance(arg, ast.Constant)]
    if given.get("allow_pickle", "False") != "False" or given.get("shell", "False") != "False":
        return True
    if None in given and (name.startswith("subprocess.") or last == "load"):  # **options: nobody can tell
        return True
    if last in ("import_module", "getattr"):
        return any(str(text).partition(".")[0] in MODULES | BUILT_IN | LAST | {"system"} for text in texts)
    if last != "load" or name in own or not (call.args or call.keywords) or name.startswith(LOADS):
        return False
    if name == "numpy.load":
        return len(call.args) > 2  # the third is allow_pickle
    return name != "torch.load" or given.get("weights_only") != "True"


@pytest.mark.parametrize("text", DANGEROUS.split("\n")[1:-1])
def test_what_could_run_a_file_is_recognised(text):
    assert dangers(text.strip())


@pytest.mark.parametrize("text", HARMLESS.split("\n")[1:-1])
def test_what_is_harmless_is_let_through(text):
    assert not dangers("def load(weights): ...\nload(weights)")
    assert not dangers(text.strip())


def test_no_file_that_is_read_can_run_code():
    for path in sorted((ROOT / "gated").rglob("*.py")):
        assert not dangers(path.read_text(encoding="utf-8")), path
    promise = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    assert "safetensors" in promise and "tests/test_security.py" in promise


def test_hdf5_is_read_through_the_helper_that_refuses_what_leads_out():
    """What `gated.lab.hdf5.within` refuses is tested in tests/lab/test_errors_nlb.py, from outside."""
    readers = {path.name for path in (ROOT / "gated").rglob("*.py") if "h5py.File(" in path.read_text(encoding="utf-8")}
    assert readers == {"nlb.py", "nwb.py"}
    for name in readers:
        assert "within(" in (ROOT / "gated/lab" / name).read_text(encoding="utf-8")
