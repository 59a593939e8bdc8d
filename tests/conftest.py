"""What all tests share: shapes checked at run time, reproducible property tests, and the built site in a
browser.

A test belongs to a part of `make test` by its file's name (`*interp*`, `*aot*`, `test_errors_*`) or by
the fixtures that it asks for (`browser`, `built_site`, `site_url`: the part `pages`). See CONTRIBUTING.
"""

from __future__ import annotations

import functools
import http.server
import importlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent

if os.environ.get("GATED_TYPECHECK", "1") != "0":
    from jaxtyping import install_import_hook

    install_import_hook("gated", "beartype.beartype")

settings.register_profile(
    "gated", deadline=None, derandomize=True, max_examples=50, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("gated")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if {"browser", "built_site", "site_url"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("pages")
        cases = item.callspec.params if hasattr(item, "callspec") else {}
        for name, value in cases.items():
            if isinstance(value, set | frozenset) and str(value) in item.name:
                why = "each process names a set in another order, and pytest-xdist then refuses to start"
                raise pytest.UsageError(f"{item.nodeid}: give {name} as a tuple ({why})")


def same_draws() -> None:
    """What is drawn without a generator of its own is the same in any order of the tests and in any process."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    same_draws()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    same_draws()


@pytest.fixture(scope="session")
def tool():
    """Imports a module of tools/ by its name."""
    folder = str(ROOT / "tools")
    sys.path.insert(0, folder)
    yield importlib.import_module
    sys.path.remove(folder)


@pytest.fixture(scope="session")
def slower(tool) -> float:
    """How many times slower a core is than the one in `tools/check.py`, for which bounds of time are meant."""
    return tool("check").slowness(1)


@pytest.fixture(scope="session")
def frame(slower) -> float:
    """A sixtieth of a second, in ms, as long as a slower core has it."""
    return 1000 / 60 * slower


@pytest.fixture(scope="session")
def built_site() -> Path:
    """The folder of the built pages; they are built first when they are not up to date."""
    done = subprocess.run([sys.executable, "tools/book.py"], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return ROOT / "_build" / "html"


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="session")
def site_url(built_site: Path):
    """The built pages over http, on a free port of this machine."""
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(_Quiet, directory=str(built_site))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def browser(tool):
    """Headless Chromium in which no host but this machine can be reached."""
    from playwright.sync_api import sync_playwright

    chromium = tool("chromium")
    path = chromium.find()
    assert path, chromium.HOW
    flags = [
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        flags.append("--no-sandbox")  # Chromium refuses its sandbox to root (containers)
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, headless=True, args=flags)
        yield running
        running.close()
