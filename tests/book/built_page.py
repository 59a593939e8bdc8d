"""A page of the built site in the browser: what goes wrong on it, and what the keyboard reaches."""

from __future__ import annotations

from pathlib import Path

BOOK = Path(__file__).resolve().parents[2] / "book"
CHAPTERS = sorted(path.stem for path in BOOK.glob("*.ipynb") if "data-explorable" in path.read_text(encoding="utf-8"))
ACCESS = Path(__file__).with_name("access.js").read_text(encoding="utf-8")


class Visit:
    """A page and what went wrong on it: console messages, exceptions, failed requests, requests to
    other hosts."""

    def __init__(self, browser, base: str, **context) -> None:
        self.base = base
        self.context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | context))
        self.page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.errors: list[str] = []
        self.page.on(
            "console",
            lambda m: self.errors.append(f"{m.type}: {m.text}") if m.type in ("error", "warning") else None,
        )
        self.page.on("pageerror", lambda error: self.errors.append(f"exception: {error}"))
        self.page.on("request", self._request)
        self.page.on("requestfailed", lambda request: self.errors.append(f"failed: {request.url}"))
        self.page.on("response", lambda r: self.errors.append(f"{r.status}: {r.url}") if r.status >= 400 else None)

    def _request(self, request) -> None:
        if not request.url.startswith((self.base, "data:", "blob:", "about:")):
            self.errors.append(f"left the site: {request.url}")

    def open(self, name: str, *, idle: bool = False):
        """The page with its fonts and mathematics; `idle` waits half a second for late requests too."""
        self.page.goto(f"{self.base}/{name}.html", wait_until="load")
        self.page.evaluate("document.fonts.ready.then(() => true)")
        if idle:
            self.page.wait_for_load_state("networkidle")
        if self.page.locator(".math").count():
            self.page.wait_for_function("window.MathJax?.startup?.promise?.then(() => true)")
        return self.page

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *exception: object) -> None:
        self.context.close()


def after_tab(page, within):
    """What has the focus after Tab, and shows it; None where nothing within has it."""
    page.keyboard.press("Tab")
    now = within.evaluate("one => access.focused(one)")
    if now is None:
        return None
    assert now["seen"], f"the focus cannot be seen on {now['what']}"
    return now["what"]
