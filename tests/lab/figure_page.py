"""What a test reads off an interactive figure in the browser, and does to it."""

from __future__ import annotations

import json
import math

TOLERANCE = 1e-12  # relative, between what Python and what the browser computes


def shown(page, index: int = 0) -> dict:
    """The numbers that the figure shows."""
    return json.loads(page.locator("[data-explorable]").nth(index).get_attribute("data-values"))


def difference(a, b) -> float:
    """The largest relative difference of numbers (absolute below 1); infinite where the structure or a word differs."""
    if isinstance(a, dict):
        return max(map(difference, a.values(), (b[key] for key in a))) if a.keys() == b.keys() else math.inf
    if isinstance(a, list):
        return max(map(difference, a, b), default=0.0) if len(a) == len(b) else math.inf
    if isinstance(a, str) or isinstance(b, str):
        return 0.0 if a == b else math.inf
    return abs(a - b) / max(1.0, abs(a))


def drag_by_finger(page, *path: tuple[float, float]) -> None:
    """A finger that goes down at the first point and up at the last."""
    touch = page.context.new_cdp_session(page)
    for kind, points in [("touchStart", path[:1]), *(("touchMove", [point]) for point in path[1:]), ("touchEnd", [])]:
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y} for x, y in points]})
    page.wait_for_timeout(100)  # a page that scrolls would do it now
