"""What the tests of the interactive figures share."""

from __future__ import annotations

import pytest


@pytest.fixture
def visit(browser, tmp_path):
    """Opens HTML from a file; in the end, no page may have logged anything or asked for anything but itself."""
    contexts, faults = [], []

    def open_page(*bodies: str, theme: str = "light", width: int = 900, **context):
        target = tmp_path / f"page{len(contexts)}.html"
        head = '<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        target.write_text(
            f'{head}<html lang="en" data-theme="{theme}"><body style="margin:0 8px">{"".join(bodies)}',
            encoding="utf-8",
        )
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, **context))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text))
        page.on(
            "request",
            lambda request: request.url.startswith((target.as_uri(), "blob:")) or faults.append(request.url),
        )
        page.goto(target.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not faults
