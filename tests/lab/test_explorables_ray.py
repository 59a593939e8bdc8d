"""The figure of the ray: its quadrature against the library's information and a plain sum, and what it shows."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from gated.gaussian_moe.fisher import fisher_information
from gated.gaussian_moe.truths import SYMMETRIC, temperature_truth
from gated.kernels.gmoe_em.activations import ACTIVATIONS
from gated.lab.explorables.ray import NAMES, RayExplorable, loss_along, spread

CURED = [name for name in NAMES if ACTIVATIONS[name].degree is None]


def truth(activation: str, beta1: float = 2.0):
    slopes = torch.tensor([[beta1], [0.0]], dtype=torch.float64)
    return replace(temperature_truth(activation), beta1=slopes)


@pytest.mark.parametrize("beta1", [0.5, 2.0, 5.0])
@pytest.mark.parametrize("activation", NAMES)
def test_the_spread_is_that_of_the_librarys_information(activation, beta1):
    model = truth(activation, beta1)
    information = fisher_information(model, SYMMETRIC)
    expected = information.standard_errors()[information.names.index("tau")].item()
    assert spread(model) == pytest.approx(expected, rel=1e-6)
    assert (spread(model) == math.inf) == (activation not in CURED)


@pytest.mark.parametrize(
    ("activation", "beta1", "expected"),
    [
        ("tanh", 2, 2.3), ("sigmoid", 2, 16.1), ("gelu", 2, 6.9), ("softplus", 2, 6.3), ("silu", 2, 4.7),
        ("sin", 2, 1.1), ("tanh", 1, 9.1), ("tanh", 4, 1.2), ("sigmoid", 1, 104.6),
    ],
)  # fmt: skip
def test_the_spread_has_the_figures_of_another_quadrature(activation, beta1, expected):
    """400 midpoints in x, 1601 values of y, and scores by fourth-order differences, to the digits given."""
    assert spread(truth(activation, beta1)) == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("c", [0.1, 0.7, 3.0])
@pytest.mark.parametrize(
    ("activation", "sigma"), [("tanh", np.tanh), ("sin", np.sin), ("sigmoid", lambda z: 1 / (1 + np.exp(-z)))]
)
def test_the_loss_by_a_plain_sum(activation, sigma, c):
    x, y = (np.arange(1000)[:, None] + 0.5) / 500 - 1, np.linspace(-8, 9, 1701)

    def density(scale: float) -> np.ndarray:
        logit = (sigma(2 * scale * x) + 0.2 * scale - sigma(0.0)) / (0.5 * scale)
        first = 1 / (1 + np.exp(-logit))
        normal = lambda mean: np.exp(-((y - mean) ** 2) / 0.5) / np.sqrt(0.5 * np.pi)  # noqa: E731
        return first * normal(3 * x + 1) + (1 - first) * normal(-2 * x - 1)

    p, q = density(1.0), density(c)
    kept = p > 1e-250
    ratio = np.log(np.where(kept, p, 1) / np.where(kept, q, 1))
    expected = (p * ratio).sum() * 0.01 / 1000
    assert loss_along(truth(activation), [c])[0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("activation", NAMES)
def test_the_curve_starts_with_the_information_along_the_ray(activation):
    model, step = truth(activation), 1e-3
    tangent = torch.tensor([0.2, 2.0 / (ACTIVATIONS[activation].degree or 1), 0.5], dtype=torch.float64)
    information = fisher_information(model, SYMMETRIC)
    gate = [information.names.index(name) for name in ("beta0_1", "beta1_1", "tau")]
    expected = (tangent @ information.matrix[gate][:, gate] @ tangent).item()
    down, up = loss_along(model, [math.exp(-step), math.exp(step)])
    assert (down + up) / step**2 == pytest.approx(expected, rel=1e-4, abs=1e-8)
    # All else fitted anew, a point loses less: the dashed curve is never the sharper one.
    if activation in CURED:
        assert (0.5 / spread(model)) ** 2 < expected


@pytest.mark.parametrize("activation", NAMES)
def test_what_a_homogeneous_score_cannot_see(activation):
    v = RayExplorable(activation, c=7.3, n=1e6).values()
    if activation in CURED:
        assert v["apart"] > 0.02 and 1e6 * v["loss"] > 1000 and v["regime"] == "bent"
    else:
        assert v["apart"] < 1e-14 and max(map(abs, v["curve"])) < 1e-14 and v["sd"][activation] == "infinite"
        assert v["regime"] == "flat" and v["needed"] == "infinite"


def test_how_much_bend_buys_how_much_n():
    at = {n: RayExplorable("sigmoid", n=n).values() for n in (1000, 100_000)}
    assert [v["regime"] for v in at.values()] == ["hopeless", "bent"]
    assert at[1000]["sd"]["sigmoid"] == pytest.approx(10 * at[100_000]["sd"]["sigmoid"], rel=1e-12)
    needed = at[1000]["needed"]
    again = RayExplorable("sigmoid", n=needed).values()
    assert again["sd"]["sigmoid"] == pytest.approx(0.05, rel=1e-12)  # a tenth of tau


def test_the_same_slider_does_nothing_for_a_line_and_bends_the_curve_of_tanh(visit):
    page = visit(RayExplorable("identity").html())
    gate = lambda: page.locator("[data-gate=there]").get_attribute("d")  # noqa: E731
    lost, before = page.locator("[data-lost]"), gate()
    heights = {float(point.split()[1]) for point in lost.get_attribute("d")[1:].split("L")}
    page.locator("input[data-key=c]").focus()
    for _ in range(30):
        page.keyboard.press("ArrowRight")
    assert gate() == before == page.locator("[data-gate=here]").get_attribute("d")
    assert len(heights) == 1 and page.locator("[data-slot=lost]").inner_text() == "0.00"
    assert page.locator(".gx-note").inner_text().startswith("Nothing changes")
    page.get_by_label("tanh").check()
    assert gate() != page.locator("[data-gate=here]").get_attribute("d")
    heights = [float(point.split()[1]) for point in lost.get_attribute("d")[1:].split("L")]
    assert heights[0] == heights[-1] == min(heights) and max(heights) > min(heights) + 100  # in by the edge, out by it
    assert float(page.locator("[data-slot=lost]").inner_text()) > 6


def test_the_marker_goes_when_there_are_points_enough(visit):
    page = visit(RayExplorable().html())
    words = lambda: page.locator("[data-verdict=sigmoid]").text_content()  # noqa: E731
    assert words() == "0.51 hopeless" and page.locator("[data-verdict=relu]").text_content() == "∞ at any n"
    page.get_by_label("sigmoid").check()
    assert page.locator(".gx-note").inner_text().startswith("Identified, but hopeless")
    page.locator("input[data-key=n]").focus()
    page.keyboard.press("End")
    assert words() == "0.016" and page.locator("[data-verdict=relu]").text_content() == "∞ at any n"
    assert page.locator(".gx-note").inner_text().startswith("The bend")


def test_every_slider_moves_picture_and_values_from_the_start(visit):
    page = visit(RayExplorable().html())
    figure = page.locator("[data-explorable=ray]")
    state = lambda: (figure.locator("svg").inner_html(), json.loads(figure.get_attribute("data-values")))  # noqa: E731
    for key in ("c", "beta1", "n"):
        picture, values = state()
        page.locator(f"input[data-key={key}]").focus()
        page.keyboard.press("ArrowLeft")
        assert state()[0] != picture and state()[1] != values, key
