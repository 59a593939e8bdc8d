"""Every interactive figure in a real JupyterLab: a hand in the browser, a trait in the kernel, and an answer back."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from playwright.sync_api import expect

from gated.lab import explorables
from gated.lab.explorables import Explorable

pytestmark = pytest.mark.clock

FIGURES = sorted(
    name
    for name in explorables.__all__
    if isinstance(kind := getattr(explorables, name), type) and kind is not Explorable
)
GIVEN = {  # figures that need more than their name: a network that is trained in the notebook, and a recorded run
    "DialExplorable": "DialExplorable(net, x[:6], y[:6], [0.5] * 11)",
    "ExitsExplorable": "ExitsExplorable(synthetic_trace())",
}
START = """
import torch
from gated.lab import explorables
from gated.lab.explorables import *
from gated.lab.explorables.exits_trace import synthetic_trace

def library(figure):
    "Asked by the figure in the browser, the library answers from the kernel; what it heard comes back too."
    def answer(**state):
        figure.state.update(state)
        numbers = {**figure.values(), **{"heard " + key: value for key, value in state.items()}}
        return {key: value for key, value in numbers.items() if isinstance(value, (int, float, str))}
    return answer
"""
TRAINING = """
from sklearn.datasets import load_digits
from gated.ninformer import DIGITS, build

torch.manual_seed(0)
x, y = load_digits(return_X_y=True)
x, y = torch.tensor(x, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(y)
net = build("ninformer", DIGITS, 1)
optimiser = torch.optim.Adam(net.parameters(), 3e-3)
for step in range(60):
    rows = torch.randint(len(x), (128,))
    optimiser.zero_grad()
    torch.nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
    optimiser.step()
net.eval()
print("right:", float((net(x).argmax(1) == y).double().mean()))
"""
MODEL = """
@torch.no_grad()
def trained(gate_mix, digit, paint, **_):
    image = x[digit].flatten().clone()
    for place, colour in enumerate(paint):
        if colour:
            image[place] = x[:6].max() if colour > 0 else 0
    chances = net(image.view(1, 1, 8, 8), gate_mix=gate_mix)[0].softmax(0)
    return {"class": int(chances.argmax()), "chance": float(chances.max())}

DialExplorable(net, x[:6], y[:6], [0.5] * 11).live(trained)
"""
SLOW = """
import time

asked = []

def slow(temperature, **_):
    asked.append(temperature)
    time.sleep(0.3)
    return {"asked": len(asked), "heard": temperature}

GateExplorable().live(slow)
"""
# A hand that draws a slider through twenty places in half a second.
DRAG = """async slider => {
  const least = +slider.min, step = (+slider.max - least) / 20;
  for (let i = 1; i <= 20; i++) {
    slider.value = least + i * step;
    slider.dispatchEvent(new Event("input", { bubbles: true }));
    await new Promise(done => setTimeout(done, 25));
  }
}"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab on a free port of this machine; it serves an empty folder and asks for a token."""
    home, token = tmp_path_factory.mktemp("lab"), secrets.token_hex(16)
    (work := home / "work").mkdir()
    settings = home / "settings" / "@jupyterlab" / "notebook-extension"
    settings.mkdir(parents=True)
    # else a cell that is out of sight is taken out of the page
    (settings / "tracker.jupyterlab-settings").write_text('{"windowingMode": "none"}')
    folders = {f"JUPYTER_{name}_DIR": str(home / name.lower()) for name in ("RUNTIME", "CONFIG", "DATA")}
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--expose-app-in-browser", "--allow-root"]
    command += ["--ServerApp.ip=127.0.0.1", "--ServerApp.port=0", f"--IdentityProvider.token={token}"]
    command += [f"--ServerApp.root_dir={work}", f"--LabApp.user_settings_dir={home / 'settings'}"]
    command += [
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        "--LabApp.extension_manager=readonly",
    ]
    environment = (
        os.environ
        | folders
        | {"HOME": str(home), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    )
    with open(home / "log", "w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        for _ in range(600):
            if found := list((home / "runtime").glob("jpserver-*.json")):
                break
            assert server.poll() is None, (home / "log").read_text()
            time.sleep(0.1)
        yield work, json.loads(found[0].read_text())["url"], token
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def settled(figure) -> tuple[dict, dict]:
    """The figure's own numbers and the kernel's, once the kernel has answered what is set now."""
    figure.locator('.gx-answer[aria-busy="false"]').wait_for(timeout=60_000)
    return tuple(
        json.loads(node.get_attribute(mark))
        for node, mark in ((figure, "data-values"), (figure.locator(".gx-answer"), "data-answer"))
    )


def test_every_figure_hears_its_kernel_and_is_heard(browser, lab):
    work, url, token = lab
    cells = [START, TRAINING, MODEL, SLOW]
    cells += [f"figure = {GIVEN.get(name, name + '()')}\nfigure.live(library(figure))" for name in FIGURES]
    cells += ["print('all', 'cells', 'ran')"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, work / "figures.ipynb")
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    faults = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(f"{url}lab/tree/figures.ipynb?token={token}")
    page.wait_for_function(
        "window.jupyterapp?.shell.currentWidget?.context?.sessionContext?.session?.kernel", timeout=120_000
    )
    page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')")
    page.get_by_text("all cells ran").wait_for(timeout=120_000)
    assert page.locator('[data-mime-type="application/vnd.jupyter.stderr"]').all_inner_texts() == []

    look = "node => [getComputedStyle(node).display, getComputedStyle(node.firstChild).float]"
    figures = page.locator(".jp-OutputArea [data-explorable]")
    expect(figures).to_have_count(2 + len(FIGURES), timeout=60_000)
    settled(figures.nth(1))
    figures.nth(1).locator("input[data-key=temperature]").evaluate(DRAG)
    _, answered = settled(figures.nth(1))  # places that went by while the model was busy are not asked any more
    assert answered["heard"] == 20 and 2 <= answered["asked"] <= 6
    for index, name in enumerate(["trained", "slow", *FIGURES]):
        if name == "slow":
            continue
        figure = figures.nth(index)
        own, answer = settled(figure)
        for readings in figure.locator(".gx-numbers").all():  # JupyterLab has a style of its own for lists
            assert readings.evaluate(look) == ["grid", "none"], name
        slider = figure.locator("input[type=range]:visible").first
        key = slider.get_attribute("data-key")
        before = slider.input_value()
        full = float(before) >= float(slider.get_attribute("max"))
        slider.press("ArrowLeft" if full else "ArrowRight")  # a key that JupyterLab must leave to the slider
        assert slider.input_value() != before, name
        moved, answered = settled(figure)
        assert moved != own and answered != answer, name
        if name == "trained":
            assert answered["class"] == max(range(10), key=moved["probability"].__getitem__)
            assert answered["chance"] == pytest.approx(max(moved["probability"]), abs=1e-5)
            assert f"{answered['chance']:.4g}" in figure.locator(".gx-answer").inner_text()
        else:
            assert answered[f"heard {key}"] != answer[f"heard {key}"], name
            for shared in answered.keys() & moved.keys():
                own = (
                    moved[shared]
                    if isinstance(moved[shared], str)
                    else pytest.approx(moved[shared], rel=1e-9, abs=1e-9)
                )
                assert answered[shared] == own, (name, shared)
    page.close()
    assert not faults
