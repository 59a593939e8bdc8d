"""The base of the interactive figures: one JavaScript file, two faces.

Python draws the picture once, as SVG. The figure's JavaScript is written against the model that anywidget
hands to a widget (``get``, ``set``, ``on``, ``off``, ``save_changes``) and only moves the marks of that
drawing. In a page without a kernel the file is inlined with a few lines that stand in for the model; in a
live kernel the same file is the ``_esm`` of a true anywidget, whose traits are synchronised with Python.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any, ClassVar

_EXPORT = "export default { render };"

# Stands in for anywidget's model where there is no kernel: it keeps the state and tells the listeners.
_MODEL = """
class Model {
  constructor(state) { this.state = { ...state }; this.heard = {}; }
  get(key) { return this.state[key]; }
  set(key, value) {
    if (this.state[key] === value) return;
    this.state[key] = value;
    for (const listener of this.heard["change:" + key] ?? []) listener();
  }
  on(event, listener) { (this.heard[event] ??= []).push(listener); }
  off(event, listener) { this.heard[event] = (this.heard[event] ?? []).filter((one) => one !== listener); }
  save_changes() {}
}
"""


@cache
def _read(file: str) -> str:
    return (files(__package__) / file).read_text(encoding="utf-8")


def _literal(data: object) -> str:
    """JSON that may stand inside a script element, whatever strings it holds."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


class Explorable(ABC):
    """An interactive figure.

    A subclass names its JavaScript file, draws its markup and says which numbers the picture shows.

    Args:
        state: what the reader changes, by name; numbers, strings and flat lists of numbers.
        constants: what the JavaScript also needs, but never changes.
    """

    name: ClassVar[str]
    """The figure's name: ``<name>.js`` beside this file, and the ``data-explorable`` mark in the page."""

    def __init__(self, state: dict[str, Any], constants: dict[str, Any] | None = None) -> None:
        self.state = state
        self.constants = constants or {}
        self._model: Callable[..., Mapping[str, Any]] | None = None

    @abstractmethod
    def values(self) -> dict[str, Any]:
        """The numbers that the picture shows, computed by the library in float64."""

    @abstractmethod
    def markup(self) -> str:
        """The picture of the current state as HTML with SVG: what is seen without JavaScript."""

    @abstractmethod
    def __repr__(self) -> str:
        """The current numbers in words."""

    @classmethod
    def module(cls) -> str:
        """The figure's JavaScript as one ES module that imports nothing."""
        return _read("figure.js") + _read(f"{cls.name}.js")

    def html(self) -> str:
        """The self-contained face: picture, style, script and state; no kernel, no request, same bytes each time."""
        data = _literal({**self.state, **self.constants})
        mark = "gx-" + hashlib.sha1(f"{self.name}{data}".encode()).hexdigest()[:10]
        script = self.module().replace(_EXPORT, "")
        if "</" in script or "<!--" in script:
            raise ValueError(f"{self.name}.js holds '</' or '<!--', which would end or break the inline script element")
        return (
            f'<div class="gx {mark}" data-explorable="{self.name}">'
            f"<style>{_read('figure.css')}</style>{self.markup()}</div>"
            f'<script>(() => {{\n"use strict";{_MODEL}{script}'
            f'for (const el of document.querySelectorAll(".{mark}:not([data-live])")) {{\n'
            f'  el.dataset.live = "";\n  render({{ model: new Model({data}), el }});\n}}\n}})();</script>'
        )

    def live(self, model: Callable[..., Mapping[str, Any]]) -> Explorable:
        """Puts a model behind the figure, which a running kernel asks each time the reader changes something.

        The answer stands below the figure, beside the figure's own number where it has one of that name. Where there
        is no kernel the figure is what it was. The figure itself comes back, so a cell may end with this call.
        Places that a slider passes while the model is busy are not asked; where it is by then, is.

        Args:
            model: called with the state by name; returns numbers, texts and lists of numbers, by name. What it raises
                is shown in the figure too.

        Example:
            >>> from gated.lab.explorables import GateExplorable
            >>> figure = GateExplorable(temperature=2.0).live(lambda temperature, **_: {"coldness": 1 / temperature})
            >>> figure.widget().answer["found"]
            {'coldness': 0.5}
        """
        self._model = model
        return self

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> Any:
        """The picture; after ``live`` the widget too, and its metadata, in which Colab finds its widget manager."""
        still = {"text/plain": repr(self), "text/html": self.html()}
        if self._model is None:
            return still
        view, metadata = self.widget()._repr_mimebundle_()
        return view | still, metadata

    def widget(self) -> Any:
        """The live face: an ``anywidget.AnyWidget`` with one synchronised trait for each entry of the state.

        ``figure.widget().observe(callback, "temperature")`` calls back each time the reader moves the slider. After
        ``live`` there is one trait more, ``answer``: what the model found, and the state it was asked about.
        """
        import anywidget
        import traitlets

        kinds: dict[type, Any] = {
            # a slider that starts at a whole number may go on to others; as a float, a count would be no index
            int: lambda: traitlets.Union([traitlets.Int(), traitlets.Float()]),
            float: traitlets.Float,
            str: traitlets.Unicode,
            list: traitlets.List,
        }
        data = {**self.state, **self.constants, "markup": self.markup()}
        module, style = self.module(), _read("figure.css")
        if self._model is not None:
            data["answer"] = _ask(self._model, self.state)
            module, style = module.replace(_EXPORT, _read("live.js")), style + _read("live.css")
        traits = {key: kinds.get(type(value), traitlets.Any)().tag(sync=True) for key, value in data.items()}
        body = {"_esm": module, "_css": style, **traits}
        widget = type(f"{type(self).__name__}Widget", (anywidget.AnyWidget,), body)(**data)
        if self._model is not None:
            widget.observe(lambda change: _follow(widget, self._model, list(self.state)), list(self.state))
        return widget


def _ask(model: Callable[..., Mapping[str, Any]], state: Mapping[str, Any]) -> dict[str, Any]:
    found = json.dumps(dict(model(**state)), default=lambda x: x.tolist())
    return {"asked": dict(state), "found": json.loads(found, parse_constant=str)}  # JSON knows no NaN


def _follow(widget: Any, model: Any, keys: list[str]) -> None:
    """Answers a change; a change of several traits at once, which is told for each of them, is answered once."""
    state = {key: getattr(widget, key) for key in keys}
    if state == widget.answer["asked"]:
        return
    try:
        widget.answer = _ask(model, state)
    except Exception as error:  # who looks at the figure would not see the kernel's log
        widget.answer = {"asked": state, "found": {}, "error": f"{type(error).__name__}: {error}"}
        raise
