"""The figure of the consensus: its flow against the library's, its costs, and that it does not come back."""

from __future__ import annotations

from importlib.resources import files

import pytest
import torch
from figure_page import shown

from gated.backbones import ResNet
from gated.lab.explorables.consensus import LEAN, NEED, ConsensusExplorable, noise
from gated.polarization.losses import polarization_loss, target_rate_loss
from gated.polarization.prune import slice_blocks
from gated.polarization.theory import gate_flow, unstable_share

AXES = {"fair": {}, "consensus": {"lambda_p": 0.8}, "apart": {"lambda_p": -1}}


def gain(number: float, modes: str = "two") -> torch.Tensor:
    rows = NEED[:1] * 200 if modes == "one" else NEED[1:2] * 120 + NEED[2:] * 80
    return number * torch.tensor(rows, dtype=torch.float64)


def test_400_steps_in_the_browser_are_400_steps_of_the_library(visit):
    page = visit("")
    script = files("gated.lab.explorables").joinpath("consensus.js").read_text(encoding="utf-8")
    body = script.replace("export default { render };", "return flow(begin(s, g), 400, s, g);")
    given = {"noise": noise(), "lean": LEAN, "need": NEED}
    start = torch.tensor(LEAN, dtype=torch.float64) + torch.tensor(noise(), dtype=torch.float64).view(12, 200).T
    for lambda_p in (-1.0, 0.0, 0.4, 1.0):
        for modes in ("one", "two"):
            state = {"lambda_p": lambda_p, "lambda_a": 0.3, "gain": 0.6, "spread": 1.0, "modes": modes, "base": []}
            flat = page.evaluate("([f, s, g]) => [...new Function('s', 'g', f)(s, g)]", [body, state, given])
            here = torch.tensor(flat, dtype=torch.float64).view(12, 200).T
            there = gate_flow(start, activation=0.3, polarization=lambda_p, gain=gain(0.6, modes), steps=400)
            assert (here.sigmoid() - there.sigmoid()).abs().max() < 1e-9
            figure = ConsensusExplorable(lambda_p, modes=modes)
            assert torch.equal(figure.flow(figure.start(), 400), there)


@pytest.mark.parametrize("gates", ["soft", "hard"])
@pytest.mark.parametrize("settings", AXES.values(), ids=AXES)
def test_the_two_parts_are_the_loss_and_the_bound_holds(settings, gates):
    figure = ConsensusExplorable(**settings, gates=gates)
    v, logits = figure.values(), figure.flow(figure.start(), 400)
    loss = polarization_loss(figure.shown(logits)).item()
    assert v["indecision"] + v["disagreement"] == pytest.approx(loss, abs=1e-14)
    assert [part[-1] for part in v["curve"]] == pytest.approx([v["indecision"], v["disagreement"]], abs=1e-14)
    hard = polarization_loss((logits > 0).double()).item()
    assert v["off_path"] <= v["bound"] + 1e-12 and v["bound"] <= 24 * hard + 1e-12
    if gates == "hard":
        assert v["indecision"] == 0


def test_every_state_has_its_words(visit):
    states = {
        **AXES,
        "open": {"lambda_a": 0, "modes": "one", "gain": 1, "lambda_p": 0.1},
        "shut": {"lambda_a": 1, "gain": 0, "lambda_p": 1},
        "moving": {"lambda_p": 0.8, "steps": 5},
        "torn": {"lambda_p": 0.1},
    }
    figures = [ConsensusExplorable(**settings) for settings in states.values()]
    page = visit(*(figure.html() for figure in figures))
    assert [figure.values()["kind"] for figure in figures] == list(states)
    titles = [figures[0].constants["words"][kind][0] for kind in states]
    assert page.locator(".gx-note strong").all_inner_texts() == titles


def test_one_kind_of_input_agrees_without_polarization_and_two_kinds_do_not():
    bound = {
        (modes, p): ConsensusExplorable(p, modes=modes, spread=0.5, lambda_a=0.15).values()["bound"]
        for modes in ("one", "two")
        for p in (0, 1)
    }
    assert bound["one", 0] < 0.05 and bound["two", 0] > 1
    assert bound["one", 1] == bound["two", 1] == 0


@pytest.mark.parametrize("lambda_a", [0.0, 0.4])
def test_minus_one_without_gain_is_the_target_rate_loss(lambda_a):
    figure = ConsensusExplorable(-1, lambda_a, gain=0)
    start, target = figure.start(), (1 - lambda_a) / 2
    s = start.clone().requires_grad_()
    (slope,) = torch.autograd.grad(target_rate_loss(s.sigmoid(), target), s)
    torch.testing.assert_close(figure.flow(start, 1), start - slope * start.numel())
    v = figure.values()
    assert v["open"] == pytest.approx([target] * 12, abs=0.01) and v["line"] == pytest.approx(target)
    assert v["lines"] == [[pytest.approx(target)] * 12] * 2


@pytest.mark.parametrize("lambda_p", [0.2, 0.3, 0.35, 0.8])
def test_the_line_is_the_librarys_threshold(lambda_p):
    assert (ConsensusExplorable(lambda_p).values()["line"] or None) == unstable_share(0.3, lambda_p)


def test_the_shares_are_those_of_the_sliced_network():
    v = ConsensusExplorable(0.8).values()
    net = ResNet((4, 4, 4), (16, 32, 64), in_channels=3, num_classes=10)
    small = slice_blocks(net, [bool(keep) for keep in v["kept"]])
    parameters = [sum(p.numel() for p in one.parameters()) for one in (small, net)]
    assert v["parameters"] == pytest.approx(parameters[0] / parameters[1], rel=1e-12)
    # stem and head 442,368 + 640; blocks of equal cost but for the two that change the shape
    macs = [4_718_592 * plain + 3_538_944 * changing + 443_008 for plain, changing in ((5, 1), (10, 2))]
    assert v["macs"] == pytest.approx(macs[0] / macs[1], rel=1e-12)
    assert sum(v["kept"]) == 6 and v["kept"][4] and not v["kept"][8]


def test_the_network_loses_its_shut_blocks_and_the_path_closes_up(visit):
    page = visit(ConsensusExplorable().html())
    path, block = page.locator("[data-path]"), page.locator("[data-block='8']")
    length, place = (lambda: float(path.get_attribute("width"))), (lambda l: _place(page, l))
    whole, before = length(), [place(l) for l in range(12)]
    assert block.get_attribute("opacity") == "1.00"
    page.get_by_role("button", name="consensus").click()
    assert shown(page)["bound"] == 0 and length() == pytest.approx(whole - 5 * 29 - 19)
    assert block.get_attribute("opacity") == "0.00" and place(11) < before[11] - 150 and place(0) == before[0]
    assert page.locator("[data-short='8']").get_attribute("opacity") == "1.00"
    assert page.locator("[data-status]").text_content() == "consensus: 6 blocks cut away"
    page.get_by_role("button", name="price only").click()
    assert length() == whole and [place(l) for l in range(12)] == before


def test_nothing_glides_for_those_who_ask_for_less_motion(visit):
    glides = "() => getComputedStyle(document.querySelector('[data-block]')).transitionDuration !== '0s'"
    calm, usual = (visit(ConsensusExplorable().html(), reduced_motion=kind) for kind in ("reduce", "no-preference"))
    assert usual.evaluate(glides) and not calm.evaluate(glides)


def test_going_on_from_here_does_not_come_back(visit):
    page = visit(ConsensusExplorable().html())
    new, fair = page.locator("[data-new]"), shown(page)
    page.get_by_role("button", name="consensus").click()
    agreed = shown(page)
    page.get_by_role("button", name="price only").click()
    assert shown(page) == fair  # afresh, the way does not matter
    page.get_by_label("goes on from here").check()
    assert shown(page) == fair and page.locator("input[data-key=spread]").is_disabled()
    assert new.get_attribute("visibility") == "hidden"

    # 0, then 0.8, then 0: three legs of 400 steps, the last two from the logits that were reached
    page.get_by_role("button", name="consensus").click()
    late = shown(page)
    assert late["kind"] == "late" and late["bound"] > 1 and late["fresh"] == agreed["kept"]
    assert new.get_attribute("visibility") == "visible"
    page.get_by_role("button", name="price only").click()
    back = shown(page)
    assert max(abs(a - b) for a, b in zip(back["open"], fair["open"], strict=True)) > 0.05
    figure = ConsensusExplorable()
    at = figure.start()
    for lambda_p in (0.0, 0.8, 0.0):
        at = gate_flow(at, activation=0.3, polarization=lambda_p, gain=gain(0.6), steps=400)
    assert back["open"] == pytest.approx(at.sigmoid().mean(0).tolist(), abs=1e-9)

    page.get_by_label("a change starts afresh").check()
    assert shown(page) == fair and page.locator("input[data-key=spread]").is_enabled()


def test_a_consensus_reached_early_outlives_its_cause(visit):
    page = visit(ConsensusExplorable(0.8).html())
    page.get_by_label("goes on from here").check()
    page.locator("input[data-key=lambda_p]").focus()
    for _ in range(16):  # down to 0, 400 steps at each stop
        page.keyboard.press("ArrowLeft")
    v = shown(page)
    assert v["line"] == "" and v["kind"] == "consensus" and v["bound"] == 0
    assert ConsensusExplorable(0.0).values()["bound"] > 2


def test_play_runs_the_steps_to_the_end(visit):
    page = visit(ConsensusExplorable(steps=300).html())
    steps, play = page.locator("input[data-key=steps]"), page.get_by_role("button", name="play the steps")
    play.click()
    page.wait_for_function("() => +document.querySelector('input[data-key=steps]').value === 400", timeout=8000)
    play.wait_for()
    play.click()  # from the end it starts again
    page.wait_for_function("() => +document.querySelector('input[data-key=steps]').value < 300", timeout=8000)
    page.get_by_role("button", name="stop").click()
    stopped = steps.input_value()
    page.wait_for_timeout(100)
    assert steps.input_value() == stopped


def test_every_slider_moves_picture_and_values_from_the_start(visit):
    page = visit(ConsensusExplorable().html(), width=375)
    figure = page.locator("[data-explorable=consensus]")
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    state = lambda: (figure.locator("svg").inner_html(), shown(page))  # noqa: E731
    for key in ("lambda_p", "lambda_a", "gain", "spread", "steps"):
        picture, values = state()
        page.locator(f"input[data-key={key}]").focus()
        page.keyboard.press("ArrowLeft")
        assert state()[0] != picture and state()[1] != values, key


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lambda_p": 1.5}, "lambda_p must be in -1 to 1, got 1.5"),
        ({"spread": float("nan")}, "spread must be in 0 to 2, got nan"),
        ({"modes": "three"}, "modes must be one of one, two, got 'three'"),
        ({"logits": [0.0] * 12}, "logits must be 2400 finite numbers, got 12"),
        ({"logits": [float("inf")] * 2400}, "logits must be 2400 finite numbers"),
    ],
)
def test_bad_settings_are_named(settings, words):
    with pytest.raises(ValueError, match=words):
        ConsensusExplorable(**settings)


def _place(page, block: int) -> float:
    return float(page.locator(f"[data-block='{block}']").get_attribute("transform").split("(")[1].split()[0])
