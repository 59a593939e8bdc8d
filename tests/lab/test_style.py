"""Contrast and colour blindness by formula; the SVG's bytes, colours and words; tables for all readers."""

import itertools
import re
import xml.etree.ElementTree as ET

import matplotlib
import numpy as np
import pytest

matplotlib.use("agg")
import matplotlib.pyplot as plt

from gated.lab import style
from gated.lab.claims import t_interval

# what colour-blind readers see, on linear RGB (Machado, Oliveira and Fernandes 2009, severity 1)
BLIND = {
    "none": np.eye(3),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}


def linear(colour):
    c = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def contrast(a, b):
    low, high = sorted(float(linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (a, b))
    return (high + 0.05) / (low + 0.05)


def lab(rgb):
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ rgb
    f = np.cbrt(np.clip(xyz / [0.9505, 1, 1.089], 1e-4, None))
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("colour", style.PALETTE)
@pytest.mark.parametrize("page", ["#ffffff", "#14181e", "#121212"])
def test_curves_stand_out_from_the_page(colour, page):
    assert contrast(colour, page) >= 3


@pytest.mark.parametrize("eye", BLIND)
def test_no_two_curves_look_alike(eye):
    seen = [lab(np.clip(BLIND[eye] @ linear(c), 0, 1)) for c in style.PALETTE]
    for (i, a), (j, b) in itertools.combinations(enumerate(seen), 2):
        assert np.linalg.norm(a - b) > (20 if eye == "tritanopia" else 28), (
            style.PALETTE[i],
            style.PALETTE[j],
        )
    assert len(set(style.DASHES)) == len(style.PALETTE)


def draw():
    with style.look():
        fig, ax = plt.subplots()
        ax.plot([1, 2, 3], label="ours")
        ax.plot([3, 2, 1], label=r"$\alpha_t$")
        ax.set(xlabel="step", ylabel="loss")
        ax.legend()
    return style.show(fig, alt='Our loss falls, the "peer\'s" rises')


def test_the_same_figure_has_the_same_bytes():
    first = draw()
    assert first == draw()
    assert len(first.svg) < 20_000
    assert not plt.get_fignums()


def test_the_figure_follows_the_page():
    picture = draw()
    root = ET.fromstring(picture.svg)
    colours = set(re.findall(r"#[0-9a-f]{6}\b", picture.svg))
    assert colours == set(style.PALETTE[:2])
    assert "currentColor" in picture.svg
    words = [t.text for t in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"step", "loss", "ours"} <= set(words)
    assert not re.search(r'id="(figure|axes|text|patch|legend|matplotlib)', picture.svg)
    assert "DejaVu" not in picture.svg
    used = set(re.findall(r"url\(#(\w+)\)", picture.svg)) | set(re.findall(r'href="#(\w+)"', picture.svg))
    assert used <= set(re.findall(r'id="(\w+)"', picture.svg))
    assert not re.search(r"http(?!://www\.w3\.org)", picture.svg)


def test_no_figure_styles_the_rest_of_the_page():
    """A `<style>` in an inline SVG holds for the document, so that a round dot elsewhere would lose its cap."""
    svg = draw().svg
    assert "<style" not in svg
    root = svg[: svg.index(">")]
    assert 'stroke-linejoin="round"' in root and 'stroke-linecap="butt"' in root


def test_the_figure_speaks():
    bundle = draw()._repr_mimebundle_()
    assert bundle["text/plain"] == 'Our loss falls, the "peer\'s" rises'
    figure = ET.fromstring(bundle["text/html"])
    assert figure.get("role") == "img"
    assert figure.get("aria-label") == bundle["text/plain"]


def test_a_band_is_the_mean_and_its_t_interval():
    runs = np.random.default_rng(0).normal(size=(4, 3))
    with style.look():
        fig, ax = plt.subplots()
        style.band(ax, [1, 2, 3], runs, "ours", index=1)
    assert ax.lines[0].get_ydata() == pytest.approx(runs.mean(0))
    assert ax.lines[0].get_color() == style.PALETTE[1]
    corners = ax.collections[0].get_paths()[0].vertices
    assert corners[:, 1].min() == pytest.approx(min(t_interval(c)[0] for c in runs.T))
    style.band(ax, [1, 2, 3], runs[:1], "one seed")
    assert len(ax.collections) == 1
    plt.close(fig)


def test_a_table_reads_in_every_form():
    rows = [("a<b", ("0.5", "3 seeds")), ("long name", "12")]
    table = style.Table(("Model", "Loss"), rows, caption="Losses")
    assert str(table) == "Losses\nModel      Loss\na<b        0.5\nlong name  12"
    html = table._repr_mimebundle_()["text/html"]
    root = ET.fromstring(html[html.index("<div") :])
    rows = [[cell.text for cell in tr] for tr in root.iter("tr")]
    assert rows == [["Model", "Loss"], ["a<b", "0.5"], ["long name", "12"]]
    assert [td.get("data-label") for td in root.iter("td")] == ["Model", "Loss"] * 2
    assert set(re.findall(r"#[0-9a-f]{3,8}\b|rgb", html)) == {"#80808059"}  # a veil of grey; else the page's colours


def test_a_wide_table_scrolls_below_a_caption_that_does_not(visit):
    table = style.Table([f"column{i}" for i in range(12)], [["unbreakable"] * 12], caption="whole words " * 20)
    page = visit(table.html(), width=700)
    wide, shown = page.locator(".gated-wide").evaluate("e => [e.scrollWidth, e.clientWidth]")
    assert wide > shown > 600
    page.locator(".gated-wide").evaluate("e => e.scrollLeft = e.scrollWidth")
    box = page.locator("caption").bounding_box()
    assert box["x"] >= 8 and box["x"] + box["width"] <= 8 + shown + 1


def test_on_a_phone_an_empty_cell_has_no_label(visit):
    page = visit(style.Table(("Case", "Peer"), [("a", ""), ("b", "torch")]).html(), width=375)
    assert page.locator("td:visible").all_text_contents() == ["a", "b", "torch"]


def test_white_words_on_marks_have_a_dark_rim_wherever_they_are_shown(visit):
    with style.look():
        fig, ax = plt.subplots()
        ax.text(0.5, 0.5, "on a mark", color="white")
        ax.text(0.5, 0.2, "on the page")
    page = visit(style.show(fig, "a word on a mark")._repr_mimebundle_()["text/html"])
    rims = {e.text_content(): e.evaluate("e => getComputedStyle(e).paintOrder") for e in page.locator("text").all()}
    assert rims["on a mark"] == "stroke" and rims["on the page"] == "normal"
