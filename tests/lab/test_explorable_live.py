"""A model behind a figure, without a browser: traits in, answers out (test_live_jupyterlab.py has the whole way)."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from traitlets import TraitError

from gated.lab.explorables import DecayExplorable, GateExplorable, RouterExplorable

BOOK = Path(__file__).parents[2] / "book"
ALONE = {  # whose figure has nothing behind it, and why
    "advmoe": "router and experts are lines that the reader lays; nothing is trained for this plane",
    "gates": "nothing is trained in the primer; its text shows how to put a model of one's own behind the figure",
    "langevinflow": "the particles move in a potential of the sliders, not in one that a network has learned",
    "polarization": "the figure trains its twelve gates itself, anew at each change",
    "pregated": "a timetable of copies and products: durations, and no outputs of a model",
    "temperature_theory": "expected likelihoods at parameters that the reader sets; no fit is asked",
    "topk_theory": "densities at parameters that the reader sets; no fit is asked",
}


def figure_cells(path: Path) -> list[str]:
    """The code cells of a notebook that make one of the figures."""
    cells = nbformat.read(path, as_version=4).cells
    return [c.source for c in cells if c.cell_type == "code" and re.search(r"\b[A-Z]\w+Explorable\(", c.source)]


def puts_a_model_behind(cell: str) -> bool:
    """Whether the cell ends with `figure.live(model)`."""
    match ast.parse(cell).body[-1]:
        case ast.Expr(ast.Call(ast.Attribute(attr="live"))):
            return True
    return False


def test_the_figure_of_a_chapter_has_the_model_of_the_chapter_behind_it():
    with_figures = {path.stem: cells for path in BOOK.glob("*.ipynb") if (cells := figure_cells(path))}
    assert len(with_figures) >= 14
    without = {name for name, cells in with_figures.items() if not any(map(puts_a_model_behind, cells))}
    assert without == set(ALONE)
    live = len(with_figures.keys() - ALONE.keys() - {"recipes"})
    log = (BOOK.parent / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"In { {6: 'six', 7: 'seven', 8: 'eight', 9: 'nine'}[live] } chapters it is the model" in log


def test_the_routers_points_are_those_of_its_page():
    figure = RouterExplorable()
    assert figure.points.shape == (len(figure.constants["clusters"]), 2)
    near = torch.cdist(figure.points, torch.tensor([[-0.6, 0.55], [0.65, 0.5], [0.55, -0.65], [-0.7, -0.6]]).double())
    assert (near.argmin(1) == torch.tensor(figure.constants["clusters"])).double().mean() > 0.95


def trained_router() -> torch.nn.Linear:
    """A router that has learned to send each quarter of the inputs to an expert of its own."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(512, 8, generator=generator)
    want = x[:, :2].sign().clamp_min(0).long() @ torch.tensor([1, 2])
    router = torch.nn.Linear(8, 8)
    torch.nn.init.zeros_(router.weight), torch.nn.init.zeros_(router.bias)
    optimiser = torch.optim.SGD(router.parameters(), 1.0)
    for _ in range(60):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(router(x), want).backward()
        optimiser.step()
    assert (router(x).argmax(1) == want).double().mean() > 0.95
    return router


def test_a_trained_model_answers_each_change_from_its_own_weights():
    router, x = trained_router(), torch.eye(8)[:1] * 3

    def weights(temperature, **_):
        with torch.no_grad():
            return {"weights": (router(x)[0] / temperature).softmax(0), "largest": float(router(x).max())}

    widget = GateExplorable().live(weights).widget()
    assert widget.trait_metadata("answer", "sync")
    for temperature in (1.0, 0.25, 8.0):
        widget.temperature = temperature
        answer = widget.answer
        assert answer["asked"] == {key: getattr(widget, key) for key in GateExplorable().state}
        expected = torch.softmax((router.weight @ x[0] + router.bias) / temperature, 0)
        assert answer["found"]["weights"] == pytest.approx(expected.tolist(), abs=1e-6)
    with torch.no_grad():
        router.bias += 5  # the model is asked anew, not remembered
    before = widget.answer["found"]["largest"]
    widget.temperature = 1.0
    assert widget.answer["found"]["largest"] == pytest.approx(before + 5, abs=1e-5)


def test_several_changes_at_once_are_one_question():
    asked = []
    widget = GateExplorable().live(lambda **state: asked.append(state) or {}).widget()
    assert len(asked) == 1
    widget.set_state({"temperature": 2.0, "top_k": 3, "noise": 1.0})  # as the browser sends it
    assert len(asked) == 2
    assert (asked[1]["temperature"], asked[1]["top_k"], asked[1]["noise"]) == (2.0, 3, 1.0)
    widget.temperature = 2.0
    assert len(asked) == 2


def test_a_state_that_starts_whole_may_take_any_number_and_counts_stay_whole():
    asked = []
    widget = GateExplorable().live(lambda **state: asked.append(state["top_k"]) or {}).widget()
    first = widget.top_k
    widget.top_k = 1.5
    widget.top_k = 3
    assert asked == [first, 1.5, 3] and [type(k) for k in asked] == [int, float, int]
    with pytest.raises(TraitError):
        widget.top_k = "three"


def test_answers_may_be_tensors_arrays_and_words_and_are_no_nan():
    found = {"a": torch.tensor([1.0, 2.0]), "b": np.float32(0.5), "c": "hard", "d": float("nan"), "e": True}
    widget = DecayExplorable().live(lambda **_: found).widget()
    assert widget.answer["found"] == {"a": [1.0, 2.0], "b": 0.5, "c": "hard", "d": "NaN", "e": True}


def test_what_the_model_raises_is_raised_and_shown():
    def model(temperature, **_):
        return {"inverse": 1 / (temperature - 2)}

    widget = GateExplorable().live(model).widget()
    with pytest.raises(ZeroDivisionError):
        widget.temperature = 2.0
    assert widget.answer["error"].startswith("ZeroDivisionError: ") and widget.answer["found"] == {}
    assert widget.answer["asked"]["temperature"] == 2.0
    widget.temperature = 3.0
    assert widget.answer["found"] == {"inverse": 1.0} and "error" not in widget.answer
    with pytest.raises(ZeroDivisionError):  # in the cell that makes the figure it stops the cell
        GateExplorable(temperature=2).live(model).widget()


def test_without_a_kernel_the_figure_is_what_it_was():
    still, live = GateExplorable(), GateExplorable()
    assert live.live(lambda **_: {"a": 1}) is live
    assert live.html() == still.html()
    bundle, view = still._repr_mimebundle_(), "application/vnd.jupyter.widget-view+json"
    assert set(bundle) == {"text/html", "text/plain"}
    lively, metadata = live._repr_mimebundle_()
    assert metadata == {}
    assert set(lively) == {*bundle, view} and {key: lively[key] for key in bundle} == bundle
    assert lively[view]["model_id"]


def test_only_a_figure_with_a_model_carries_the_answers_code():
    still, live = GateExplorable().widget(), GateExplorable().live(lambda **_: {}).widget()
    assert "gx-answer" not in str(still._esm) and "gx-answer" not in str(still._css) and not still.has_trait("answer")
    assert str(live._esm).count("export default") == str(still._esm).count("export default") == 1
    assert "gx-answer" in str(live._esm) and str(live._css).startswith(str(still._css))


def test_a_notebook_keeps_the_figure_and_drops_the_widget(tool):
    """What is committed, and what the page shows, is the same with a model as without."""
    figure = GateExplorable().live(lambda **_: {"a": 1})
    output = nbformat.v4.new_output("display_data", figure._repr_mimebundle_()[0])
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("figure", outputs=[output], id="a")])
    data = tool("notebooks").normalise(nb).cells[0].outputs[0]["data"]
    assert dict(data) == GateExplorable()._repr_mimebundle_()
