"""Ship the stored results of the chapters in the wheel.

A hook rather than a line of configuration: in an editable installation the package finds them in book/_results, and
a second, frozen copy in site-packages would stand before it.
"""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class StoredResults(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version != "editable":
            build_data["force_include"]["book/_results"] = "gated/lab/_results"
