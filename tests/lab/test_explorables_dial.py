"""The figure of the dial: the whole network in the page, what paint reaches, and what hands do to it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from figure_page import drag_by_finger, shown

from gated.lab.explorables.dial import CORNER, COUNTS, PLACES, DialExplorable
from gated.ninformer import DIGITS, MNIST, Sizes, block_macs, build

SMALL = Sizes.of_image((1, 8, 8), 2, dim=6, outputs=10, token_hidden=5, channel_hidden=7, ffn_hidden=4)
RISING = [k / 10 for k in range(11)]
CLEAN = [0] * 64


def figure(sizes: Sizes = SMALL, depth: int = 2, seed: int = 0, scale: float = 0.7, **state) -> DialExplorable:
    generator = torch.Generator().manual_seed(seed)
    net = build("ninformer", sizes, depth, dropout=0.1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    images = torch.rand(4, 1, 8, 8, generator=generator)
    images[:, :, 0, 0] = 0  # paint in the corner is seen
    return DialExplorable(net, images, torch.tensor([3, 1, 4, 1]), RISING, **state)


def far(a, b) -> float:
    if isinstance(a, dict):
        return max(far(a[key], b[key]) for key in a)
    if isinstance(a, str):
        return 0.0 if a == b else math.inf
    return float(np.abs(np.subtract(a, b)).max())


def test_the_page_runs_the_whole_network_for_the_digits(visit):
    figures = [
        figure(DIGITS),
        figure(DIGITS, gate_mix=0.0, digit=1, block=1, channel=31),
        figure(DIGITS, gate_mix=0.37, digit=2, paint=[(i * 7) % 3 - 1 for i in range(64)], scale=0.3),
        figure(DIGITS, gate_mix=0.99, digit=3, depth=3, block=2, paint=CLEAN, scale=0.05),
    ]
    page = visit(*(one.html() for one in figures))
    for index, one in enumerate(figures):
        assert far(one.values(), shown(page, index)) < 1e-11, one.state


def test_the_values_are_those_of_the_networks_own_call():
    one = figure(depth=3, gate_mix=0.3, digit=2, block=1, channel=4)
    image = one.images[2:3].clone()
    image[0, 0, 0, 0] = one.images.max()
    logits, gates = one.net(image, gate_mix=0.3, return_gates=True)
    v = one.values()
    assert v["probability"] == pytest.approx(logits[0].softmax(-1).tolist(), abs=1e-14)
    gate = 0.7 + 0.3 * gates[1, 0]
    assert v["gate"] == pytest.approx(gate[:, 4].tolist(), abs=1e-14)
    assert v["negative"] == (gate < 0).sum().item() / gate.numel()
    assert v["was"] == pytest.approx(one.net(one.images[2:3], gate_mix=0.3)[0].softmax(-1).tolist(), abs=1e-14)
    assert v["accuracy"] == pytest.approx(0.3)
    # the head is linear in the mean over tokens, so the tokens of the hook give the logits back
    tokens = one.run(image)[2]
    assert one.net.head(tokens.mean(0)).tolist() == pytest.approx(logits[0].tolist(), abs=1e-13)


def test_no_token_sees_another_when_the_dial_is_at_0():
    rows = torch.arange(64).view(8, 8)
    for i, places in enumerate(PLACES.tolist()):
        y, x = divmod(i, 4)
        assert places == rows[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].flatten().tolist()
    closed, slightly, trained = (figure(gate_mix=mix).values() for mix in (0.0, 0.01, 1.0))
    assert closed["bare"] == [0] + [1] * 15 and closed["changed"] == 0 and closed["reach"][0] > 0.01
    assert closed["reach"][1:] == [0.0] * 15 and closed["shuffle"] < 1e-14 and closed["gate"] == [1.0] * 16
    assert slightly["changed"] == trained["changed"] == 15 and trained["shuffle"] > 1e-3
    assert sum(slightly["reach"][1:]) < sum(trained["reach"][1:]) / 5
    assert [v["regime"] for v in (closed, slightly, trained)] == ["bag", "between", "trained"]
    assert trained["negative"] > 0.2 and closed["negative"] == 0
    wiped = figure(paint=CLEAN).values()
    assert wiped["reach"] == [0.0] * 16 and wiped["was"] == wiped["probability"] and sum(wiped["bare"]) == 16


def test_the_costs_are_the_librarys_and_cross_where_they_say():
    one = figure(tokens=640, hidden=512, dim=256)
    v = one.values()
    sizes = Sizes(640, 256, 10, token_hidden=512, channel_hidden=512, ffn_hidden=512, gmlp_hidden=512)
    assert v["macs"] == {kind: block_macs(kind, sizes) for kind in ("ninformer", "mixer", "gmlp", "vit")}
    assert v["crossover"] == 640 and v["macs"]["ninformer"] == v["macs"]["vit"]
    for n, share in zip(COUNTS, v["shares"]["ninformer"], strict=True):
        assert (share > 1) == (n < 640)


CHANGES = {
    "0.5 * v * (1 + erf(v / Math.SQRT2))": "0.5 * v * (1 + Math.tanh(0.7978845608 * (v + 0.044715 * v * v * v)))",
    "variance + 1e-5": "variance",
    "norm(one.tokenNorm, normed)": "normed",
    "plus(normed, fromLeft": "plus(x, fromLeft",
    "norm(one.norm, y)": "y",
    "1 - mix + mix * g": "mix * g",
    "PATCH * (row & 1) + (column & 1)": "PATCH * (column & 1) + (row & 1)",
    "3 * n * d * d + n * n * d": "3 * n * d * d + 2 * n * n * d",
}


def test_a_changed_line_is_noticed(visit):
    one = figure(gate_mix=0.8)
    html = one.html()
    assert all(old in html for old in CHANGES)
    page = visit(html, *(html.replace(*change) for change in CHANGES.items()))
    assert far(one.values(), shown(page)) < 1e-12
    for index, change in enumerate(CHANGES, 1):
        assert far(one.values(), shown(page, index)) > 1e-7, change


def test_paint_by_mouse_key_and_button(visit):
    page = visit(figure().html())
    pixel = lambda row, column: page.locator(f"[data-pixel='{8 * row + column}']")  # noqa: E731
    page.get_by_role("button", name="wipe off").click()
    assert far(figure(paint=CLEAN).values(), shown(page)) < 1e-12
    page.get_by_role("button", name="one pixel").click()
    assert far(figure().values(), shown(page)) < 1e-12

    a, b = (pixel(*at).bounding_box() for at in ((3, 2), (3, 4)))
    light = [figure().images[0, 0, 3, column].item() <= 0.5 * figure().images.max().item() for column in range(8)]
    page.mouse.move(a["x"] + 8, a["y"] + 8)
    page.mouse.down()
    page.mouse.move(b["x"] + 8, b["y"] + 8, steps=8)
    page.mouse.up()
    page.mouse.move(b["x"] + 80, b["y"] + 8)  # the button is up
    paint = list(CORNER)
    paint[26:29] = [1 if light[2] else -1] * 3  # the first pixel decides, and the drag goes on with it
    assert far(figure(paint=paint).values(), shown(page)) < 1e-12

    for key in ("ArrowDown", "ArrowRight", "ArrowUp", "ArrowLeft", "ArrowUp"):
        page.keyboard.press(key)
    page.keyboard.press(" ")
    paint[18] = 1 if figure().images[0, 0, 2, 2] <= 0.5 * figure().images.max() else -1
    assert far(figure(paint=paint).values(), shown(page)) < 1e-12
    page.keyboard.press("Enter")  # once more: the paint goes
    paint[18] = 0
    assert far(figure(paint=paint).values(), shown(page)) < 1e-12
    assert page.locator("[data-pixel][tabindex='0']").count() == 1


def test_paint_by_finger_does_not_scroll(visit):
    page = visit(figure(paint=CLEAN).html(), width=375, has_touch=True, is_mobile=True)
    box = page.locator("[data-pixel='0']").bounding_box()
    assert box["width"] > 18
    x, y = box["x"] + 10, box["y"] + 10
    step = page.locator("[data-pixel='8']").bounding_box()["y"] - box["y"]
    drag_by_finger(page, (x, y + 3 * step), (x, y + 2 * step), (x, y + step), (x, y))
    assert page.evaluate("scrollY") == 0
    assert sum(map(abs, [1 - bare for bare in shown(page)["bare"]])) == 2  # four pixels of two patches
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 375


def test_what_the_reader_sees_when_the_dial_goes_to_0(visit):
    page = visit(figure().html())
    read = lambda name: page.locator(f"[data-slot={name}]").inner_text()  # noqa: E731
    assert read("changed") == "15 of 15" and read("title").startswith("λ = 1")
    page.locator("input[data-key=gate_mix]").focus()
    page.keyboard.press("ArrowLeft")
    assert read("title").startswith("Between")
    page.keyboard.press("Home")
    assert read("changed") == "0 of 15" and read("title").startswith("λ = 0") and read("shuffle") == "0.00"
    assert page.locator("[data-much]").all_text_contents()[1:] == ["0"] * 15
    assert set(page.locator("[data-sign]").all_text_contents()) == {"1.00"}
    page.get_by_label("Test image 3, class 4").check()
    assert far(figure(gate_mix=0.0, digit=2).values(), shown(page)) < 1e-12
    page.get_by_label("block 2").check()
    assert page.locator("[data-title]").text_content() == "Gates: block 2, channel 1"


def test_every_slider_moves_picture_and_values_from_the_start(visit):
    page = visit(figure(channel=2).html())
    root = page.locator("[data-explorable=dial]")
    state = lambda: (root.locator("svg").evaluate_all("all => all.map(e => e.innerHTML)"), shown(page))  # noqa: E731
    keys = page.locator("input[type=range]").evaluate_all("all => all.map(e => e.dataset.key)")
    assert keys == ["gate_mix", "channel", "tokens", "hidden", "dim"]
    for key in keys:
        picture, values = state()
        page.locator(f"input[data-key={key}]").focus()
        page.keyboard.press("ArrowLeft")
        assert state()[0] != picture and state()[1] != values, key


def test_the_star_hides_where_nothing_crosses(visit):
    page = visit(figure(hidden=16, dim=256).html())
    assert page.locator("[data-star]").get_attribute("visibility") == "hidden"
    assert page.locator("[data-slot=crossover]").inner_text().startswith("no n")
    page.locator("input[data-key=hidden]").focus()
    page.keyboard.press("End")
    assert page.locator("[data-star]").get_attribute("visibility") == "visible"
    assert page.locator("[data-slot=crossover]").inner_text() == "3,712"


def test_the_page_holds_little_more_than_the_weights():
    weights = 4 * 21_898 * 4 / 3  # 4 bytes each, in base64
    assert weights < len(figure(DIGITS).html().encode()) < weights + 80_000


def test_the_live_widget_has_a_trait_for_all_that_the_reader_moves():
    one, heard = figure(channel=3), []
    widget = one.widget()
    assert {key: getattr(widget, key) for key in one.state} == one.state
    widget.observe(lambda change: heard.append(change.new), "gate_mix")
    widget.gate_mix = 0.25
    assert heard == [0.25] and widget.weights == one.constants["weights"]


NET = build("ninformer", SMALL, 2)
IMAGES, LABELS = torch.zeros(2, 1, 8, 8), torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: DialExplorable(build("mixer", SMALL, 2), IMAGES, LABELS, RISING), "net"),
        (lambda: DialExplorable(build("ninformer", SMALL, 2, variant="sum"), IMAGES, LABELS, RISING), "net"),
        (lambda: DialExplorable(build("ninformer", MNIST, 1), IMAGES, LABELS, RISING), "net"),
        (lambda: DialExplorable(NET, IMAGES.repeat(7, 1, 1, 1), LABELS.repeat(7), RISING), "images"),
        (lambda: DialExplorable(NET, IMAGES, LABELS, RISING[1:]), "accuracy"),
        (lambda: DialExplorable(NET, IMAGES, LABELS, [98.0] * 11), "accuracy"),
        (lambda: figure(gate_mix=1.1), "gate_mix"),
        (lambda: figure(digit=4), "digit"),
        (lambda: figure(block=2), "block"),
        (lambda: figure(channel=6), "channel"),
        (lambda: figure(paint=[2] * 64), "paint"),
        (lambda: figure(paint=[1]), "paint"),
        (lambda: figure(tokens=3), "tokens"),
        (lambda: figure(hidden=8), "hidden"),
        (lambda: figure(dim=16), "dim"),
    ],
)
def test_bad_input_is_named(make, argument):
    with pytest.raises(ValueError, match=f"^{argument} "):
        make()
