"""The figure of the board: its rollouts against the library's, what it shows, and how it answers to hands."""

from __future__ import annotations

import random

import pytest
import torch
from figure_page import difference, drag_by_finger, shown

from gated.commformer import graph_from_indices, inclusion_probability, messages, sample_graph
from gated.commformer.rivals import Sweep, empty_graph, full_graph
from gated.commformer.rivals import play as finish
from gated.commformer.theory import gate_optimum
from gated.lab.explorables import board_marks as art
from gated.lab.explorables import board_run as run
from gated.lab.explorables.board import EXAMPLES, GRAPHS, READINGS, WORDS, BoardExplorable, preset, written

WRONG, GOOD, BLIND = (GRAPHS[name] for name in ("one wrong row", "all hear a seer", "only the blind"))


def of(name: str, **state) -> BoardExplorable:
    """The figure as an example's button leaves it."""
    return BoardExplorable(**{"logits": preset(name), **EXAMPLES[name], **state})


def graph(senders) -> torch.Tensor:
    return graph_from_indices([[j] for j in senders]).double()


def test_the_browser_agrees_on_60_states(visit):
    rng, figures = random.Random(21), []
    for _ in range(60):
        *cells, prey = rng.sample(range(25), 7)
        few = rng.choice([4, 40])  # with few values, rows are full of ties
        figures.append(
            BoardExplorable(
                rng.choice(["pcp", "scout"]),
                rng.randint(1, 5),
                [rng.randint(-few, few) / 10 for _ in range(36)],
                rng.choice([edge for edge in range(36) if edge % 7]),
                rng.choice([0, rng.randint(1, 60) / 20]),
                rng.randint(0, 20),
                rng.uniform(0.1, 10),
                rng.randrange(20),
                rng.randint(2, 8),
                cells,
                prey,
            )
        )
    page, one = visit("<p>"), figures[0]
    source = BoardExplorable.module().replace("export default { render };", "")
    constants = {key: one.constants[key] for key in ("boards", "noise", "kinds")}
    found = page.evaluate(
        f"([all, g]) => {{ {source} const memo = new Map(); return all.map((s) => compute(s, g, memo)); }}",
        [[figure.state for figure in figures], constants],
    )
    expected = [figure.values() for figure in figures]
    frames = [v.pop("frames") for v in found]
    assert max(map(difference, expected, found)) < 1e-12
    assert all(len(all_) == v["steps"] + 1 for all_, v in zip(frames, expected, strict=True))
    assert {v["kind"] for v in expected} == WORDS.keys()


@pytest.mark.parametrize("kind", ["pcp", "scout"])
def test_steps_are_those_of_the_librarys_sweep(kind):
    logits = torch.randn(6, 6, generator=torch.Generator().manual_seed(3)).mul(10).round().div(10).clamp(-4, 4)
    figure = BoardExplorable(kind, 2, logits.flatten().tolist())
    n, v = figure.sizes["n"], figure.values()
    edges = torch.tensor(figure.state["logits"], dtype=torch.float64).view(6, 6)[:n, :n]
    learned = sample_graph(edges, 2, generator=None)
    for index, one in enumerate((learned, empty_graph(n), full_graph(n))):
        world = run.place(kind, run.boards())
        steps, solved = finish(world, Sweep(world, one))
        assert v["mean"]["steps"][index] == steps.sum().item() / run.COUNT
        if index == 0:
            assert v["mean"]["solved"] == solved.sum().item() / run.COUNT
            assert v["mean"]["messages"] == pytest.approx((messages(one) * steps).sum().item() / run.COUNT)
    world = run.place(kind, [[*figure.state["cells"], figure.state["prey"]]])
    assert (v["steps"], v["solved"]) == tuple(int(x) for x in finish(world, Sweep(world, learned)))


@pytest.mark.parametrize("name", ["all hear a seer", "the scout"])
def test_a_gate_that_is_shut_in_view_of_the_prey_costs_no_step(name):
    """A player whose rows are taken away step by step goes the same ways as one that listens always."""
    figure = of(name, penalty=0.05)
    kind, n = figure.state["world"], figure.sizes["n"]
    one = sample_graph(figure.edges()[0], 1, generator=None)
    always, gated = (run.place(kind, run.boards()) for _ in range(2))
    free, shut = Sweep(always, one), Sweep(gated, one)
    me, sent = torch.eye(n, dtype=torch.bool), 0
    while always.time < always.limit:
        opened = ~gated.sees() & ~(gated.reached & (gated.captured | ~gated.is_blind))
        shut.hears = (one > 0) & opened[:, :, None] | me
        sent += messages(one, opened.double())
        always.step(free())
        gated.step(shut())
        assert torch.equal(always.cells, gated.cells) and torch.equal(always.captured, gated.captured)
    v, listening = figure.values(), of(name).values()
    assert all(v["listens"]) or kind == "scout"
    counted = sum(s for s in sent.tolist()) / run.COUNT
    assert v["mean"]["steps"] == listening["mean"]["steps"] and v["mean"]["messages"] == pytest.approx(counted)
    assert counted < 0.8 * listening["mean"]["messages"] and v["steps"] == listening["steps"]


def test_worth_is_the_price_at_which_an_agents_own_account_turns():
    """Steps and paid gates of agent i with its row and without, from the rewards of the library's game."""
    for name in ("one wrong row", "all hear a seer", "the scout"):
        figure = of(name)
        kind, n, worth = figure.state["world"], figure.sizes["n"], figure.values()["worth"]
        for i in range(n):
            rows = sample_graph(figure.edges()[0], 1, generator=None)
            accounts = []
            for kept in (True, False):
                rows[i] = rows[i] * kept
                world = run.place(kind, run.boards())
                sweep, reward, opened = Sweep(world, rows), 0.0, 0
                while world.time < world.limit:
                    done = world.reached[:, i] & (world.captured[:, i] | ~world.is_blind[i])
                    opened += int((~world.sees()[:, i] & ~done).sum()) * kept
                    reward += world.step(sweep()).reward[:, i].double().sum().item()
                accounts.append((reward, opened))
            (with_row, gates), (without, _) = accounts
            at = lambda price: with_row - 0.05 * price * gates - without  # noqa: B023, E731
            assert at(worth[i]) == pytest.approx(0, abs=1e-4)
            assert gates == 0 or at(worth[i] + 0.01) < 0 < at(worth[i] - 0.01)


def test_one_wrong_row_blinds_one_agent():
    wrong, good = of("one wrong row").values(), of("all hear a seer").values()
    assert wrong["told"] == [1, 1, 1, 1, 1, 0] and wrong["kind"] == "wrong" and good["kind"] == "open"
    assert wrong["worth"][:5] == good["worth"][:5] and wrong["worth"][5] == 0 < 1 < good["worth"][5]
    end = min(wrong["steps"], good["steps"])
    for agent in range(5):  # nobody else loses a step
        assert wrong["states"][agent][:end] == good["states"][agent][:end]
    assert wrong["steps"] > 2 * good["steps"] and good["mean"]["solved"] == 1 > 0.8 > wrong["mean"]["solved"]
    spoilt = [of("all hear a seer").values()["mean"]["steps"][0]]
    for row in range(3, 6):
        senders = list(GOOD)
        senders[row] = 3 if row > 3 else 4
        spoilt.append(run.means("pcp", graph(senders), 1, True)["steps"][0])
    assert min(spoilt[1:]) > spoilt[0] + 4


def test_edges_from_the_blind_are_worth_nothing():
    v = of("only the blind").values()
    assert v["kind"] == "deaf" and v["worth"] == [0.0] * 6 and v["messages"] > 0 == v["news"] == v["carried"]
    assert v["mean"]["steps"][0] == v["mean"]["steps"][1]
    assert of("only the blind", penalty=0.05).values()["listens"] == [0] * 6
    v = of("the scout", k=2).values()  # a second sender is blind, whoever it is
    alone = of("the scout").values()
    assert v["worth"] == alone["worth"] and v["messages"] == 2 * alone["messages"] and v["steps"] == alone["steps"]


def test_listening_pays_the_blind_and_hardly_those_who_see():
    v = of("all hear a seer").values()
    assert max(v["worth"][:3]) < 0.3 < 1 < min(v["worth"][3:])
    kinds, rates = [], []
    for penalty in (0, 0.05, 0.5, 1.17, 3):
        one = of("all hear a seer", penalty=penalty).values()
        kinds.append(one["kind"])
        rates.append(one["mean"]["messages"])
        assert all("1" not in row for row, ear in zip(one["opened"], one["listens"], strict=True) if not ear)
    assert kinds == ["open", "thrifty", "thrifty", "dear", "silent"] and rates == sorted(rates, reverse=True)
    assert of("the scout").values()["worth"][0] == 0 < 2 < min(of("the scout").values()["worth"][1:])
    priced = of("all hear a seer", penalty=0.5).values()
    assert priced["mean"]["messages"] < 0.5 * v["mean"]["messages"]
    assert priced["mean"]["steps"][0] < v["mean"]["steps"][0] + 1


def test_the_lookup_game_is_the_closed_form():
    for symbols in (2, 4):
        for penalty in (0, 0.3, 1 - 1 / symbols, 1):
            v, best = BoardExplorable(symbols=symbols, penalty=penalty).values(), gate_optimum(symbols, 0.25, penalty)
            assert v["threshold"] == 1 - 1 / symbols and v["rate"] == list(best.rate) and v["reward"] == best.reward


def test_temperature_shapes_the_weights_and_not_the_draw():
    cold, warm = BoardExplorable(temperature=0.1).values(), BoardExplorable(temperature=10).values()
    assert cold["drawn"] == warm["drawn"] and cold["first"] == warm["first"] and cold["two"] == warm["two"]
    assert max(cold["soft"]) > 0.99 and max(warm["soft"]) < 0.3
    assert max(range(6), key=cold["soft"].__getitem__) == cold["drawn"].index(1)


def test_inclusion_probabilities_are_the_shares_of_many_draws():
    figure = BoardExplorable(k=2)
    edges, _ = figure.edges()
    many = edges.expand(40_000, 6, 6)
    for k, key in ((1, "first"), (2, "two")):
        shares = sample_graph(many, k, generator=torch.Generator().manual_seed(k)).mean(0)[5]
        assert figure.values()[key] == pytest.approx(shares.tolist(), abs=0.012)
        assert figure.values()[key] == inclusion_probability(edges, k)[5].tolist()


def test_an_entry_is_let_in_and_out(visit):
    page = visit(BoardExplorable().html())
    page.locator("[data-pick='30']").click()  # agent 5 hears agent 0
    v = shown(page)
    assert v["graph"][5] == "100000" and v["kind"] == "open" and v["steps"] < 10
    assert page.locator("[data-pick='30']").get_attribute("aria-pressed") == "true"
    assert page.locator("[data-check='5']").text_content() == "✓"
    logits = BoardExplorable().state["logits"]
    logits[30], logits[34] = logits[34], logits[30]
    assert difference(BoardExplorable(logits=logits).values(), v) < 1e-12
    page.keyboard.press("Enter")  # out again: the best of the others comes in
    assert shown(page)["graph"][5] == "000010"
    page.keyboard.press("ArrowRight")
    assert page.locator("[data-pick='31']").evaluate("node => node === document.activeElement")
    assert page.locator("[data-pick='31']").evaluate("node => getComputedStyle(node).outline").endswith("solid 2px")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Space")
    v = shown(page)
    assert (v["row"], v["marked"]) == (4, 1) and v["graph"][4] == "100000"  # 1 was kept: now it is out
    before = v["logit"]
    for _ in range(3):
        page.keyboard.press("+")
    page.keyboard.press("-")
    assert shown(page)["logit"] == pytest.approx(before + 0.2)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")  # past the diagonal
    assert page.locator("[data-pick='29']").get_attribute("tabindex") == "0"
    assert page.locator("[data-pick][tabindex='0']").count() == 1


def test_ties_are_parted_and_a_full_row_stays(visit):
    page, source = visit("<p>"), BoardExplorable.module().replace("export default { render };", "")
    rng = random.Random(2)
    cases = [
        [[rng.choice([-4, 0, 4]) for _ in range(36)], i, j, rng.randint(1, 4), 6]
        for i in range(6) for j in range(6) if i != j for _ in range(4)
    ]  # fmt: skip
    found = page.evaluate(f"(cases) => {{ {source} return cases.map((c) => exchanged(...c)); }}", cases)
    for (logits, i, j, k, _), after in zip(cases, found, strict=True):
        rows = [sample_graph(torch.tensor(x).double().view(6, 6), k, generator=None) for x in (logits, after)]
        assert rows[1][i, j] == 1 - rows[0][i, j] and rows[1][i].sum() == k and max(map(abs, after)) <= 4
        assert torch.equal(rows[0][torch.arange(6) != i], rows[1][torch.arange(6) != i])
    full = page.evaluate(f"() => {{ {source} return exchanged({cases[0][0]}, 0, 1, 5, 6); }}")
    assert full == cases[0][0]


def test_agents_and_prey_are_dragged_and_moved_by_keys(visit):
    page = visit(BoardExplorable().html())
    prey = page.locator("[data-handle='6']")
    start = BoardExplorable().state
    page.locator("input[data-key=step]").fill("0")
    side = page.locator("[data-view='0'] + rect").bounding_box()["width"]
    box = prey.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x - 2 * side, y + side, steps=5)
    page.mouse.up()
    page.mouse.move(x, y)
    cell = start["prey"] - 2 + 5
    assert prey.get_attribute("aria-valuenow") == str(cell)
    assert difference(BoardExplorable(prey=cell, step=0).values(), shown(page)) < 1e-12
    agent = page.locator("[data-handle='0']")
    agent.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowLeft")
    cells = list(start["cells"])
    for by in (5, -1):
        to = cells[0] + by
        if to in cells:
            cells[cells.index(to)] = cells[0]
        cells[0] = to
    assert difference(BoardExplorable(cells=cells, prey=cell, step=0).values(), shown(page)) < 1e-12
    # onto one that is there: they change places
    target = cells[0] - 1 if cells[0] % 5 else cells[0] + 1
    page.keyboard.press("ArrowLeft" if cells[0] % 5 else "ArrowRight")
    values = [page.locator(f"[data-handle='{i}']").get_attribute("aria-valuenow") for i in range(7)]
    assert values[0] == str(target) and len(set(values)) == 7


def test_a_finger_drags_an_agent_and_taps_an_entry(visit):
    page = visit(BoardExplorable(step=0).html(), width=375, has_touch=True, is_mobile=True)
    agent = page.locator("[data-handle='1']")
    box = agent.locator("circle").first.bounding_box()
    assert box["width"] > 30  # wide enough for a finger
    side = page.locator("[data-view='0'] + rect").bounding_box()["width"]
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    before = int(agent.get_attribute("aria-valuenow"))
    drag_by_finger(page, (x, y), (x, y + side / 2), (x, y + side))
    assert int(agent.get_attribute("aria-valuenow")) == before + 5 and page.evaluate("scrollY") == 0
    entry = page.locator("[data-pick='32']")
    entry.scroll_into_view_if_needed()
    box = entry.bounding_box()
    assert min(box["width"], box["height"]) > 30
    page.touchscreen.tap(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert shown(page)["graph"][5] == "001000"


def test_examples_words_and_readings(visit):
    page = visit(BoardExplorable().html())
    for name, patch in EXAMPLES.items():
        page.get_by_role("button", name=name, exact=True).click()
        v = shown(page)
        assert difference(of(name).values(), v) < 1e-12
        assert page.locator(".gx-note strong").inner_text() == WORDS[v["kind"]][0]
        readings = page.locator("dd").all_inner_texts()
        assert readings == written(of(name).values(), of(name).state) and len(readings) == len(READINGS)
        rows = GRAPHS.get(name, GOOD)[: len(v["graph"])]
        assert all(v["graph"][i][j] == "1" for i, j in enumerate(rows)) and patch.get("k", 1) == v["k"]
    assert page.locator("[data-lane='5']").get_attribute("visibility") == "hidden"  # the scout's world has five
    assert not page.locator("[data-handle='5']").is_visible()


def test_run_board_and_draw(visit):
    page = visit(BoardExplorable(step=13).html())
    step = page.locator("input[data-key=step]")
    page.get_by_role("button", name="run").click()
    page.wait_for_function("() => +document.querySelector('input[data-key=step]').value === 15", timeout=8000)
    page.get_by_role("button", name="run").click()
    page.wait_for_function("() => +document.querySelector('input[data-key=step]').value < 5", timeout=8000)
    page.get_by_role("button", name="stop").click()
    stopped = step.input_value()
    page.wait_for_timeout(600)
    assert step.input_value() == stopped
    page.get_by_role("button", name="another board").click()
    *cells, prey = run.boards()[2]
    assert difference(BoardExplorable(cells=cells, prey=prey, step=0).values(), shown(page)) < 1e-12
    page.get_by_role("button", name="another draw").click()
    assert difference(BoardExplorable(cells=cells, prey=prey, step=0, draw=1).values(), shown(page)) < 1e-12


def test_a_message_is_drawn_as_what_it_is(visit):
    page = visit(of("at a price", step=0).html())
    seen = {kind: set() for kind in art.ARROWS}
    for step in range(8):
        page.locator("input[data-key=step]").fill(str(step))
        now = shown(page)["now"]
        for code, kind in enumerate(art.ARROWS):
            d = page.locator(f"[data-arrow={kind}]").get_attribute("d")
            count = "".join(now["arrows"]).count(str(code))
            assert d.count("Q") == count
            seen[kind].add(count > 0)
    assert all(kinds == {True, False} for kinds in seen.values())
    v = shown(page)
    assert v["t"] == v["steps"] == 7 and v["now"]["arrows"] == [""] * 6  # solved: nothing is said any more
    assert v["messages"] == sum(row.count("1") for row in v["opened"])


@pytest.mark.parametrize("width", [375, 343, 900])
def test_panels_stand_below_each_other_on_a_phone_and_can_be_read(visit, width):
    page = visit(BoardExplorable().html(), width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    boxes = [figure.bounding_box() for figure in page.locator(".gx-figure").all()]
    assert len(boxes) == 5 and len({round(box["x"]) for box in boxes}) == (1 if width < 400 else 2)
    sizes = page.locator(".gx svg text").evaluate_all(
        "all => all.map((e) => parseFloat(getComputedStyle(e).fontSize) * e.getScreenCTM().a)"
    )
    assert min(sizes) >= 11


def test_every_slider_moves_picture_and_values_from_the_start(visit):
    page = visit(BoardExplorable().html())
    figure = page.locator("[data-explorable=board]")
    state = lambda: ("".join(figure.locator("svg").evaluate_all("all => all.map(e => e.innerHTML)")), shown(page))  # noqa: E731
    for key in ("step", "logits", "k", "penalty", "symbols", "temperature"):
        picture, values = state()
        page.locator(f"input[data-key={key}]").focus()
        page.keyboard.press("ArrowRight")
        assert state()[0] != picture and state()[1] != values, key


@pytest.mark.parametrize(
    ("settings", "argument"),
    [
        ({"world": "pp"}, "world"),
        ({"k": 0}, "k"),
        ({"k": 6}, "k"),
        ({"logits": [0.0] * 35}, "logits"),
        ({"logits": [4.1] * 36}, "logits"),
        ({"logits": [float("nan")] * 36}, "logits"),
        ({"edge": 7}, "edge"),
        ({"edge": 36}, "edge"),
        ({"penalty": -0.1}, "penalty"),
        ({"step": 21}, "step"),
        ({"temperature": 0}, "temperature"),
        ({"draw": 20}, "draw"),
        ({"symbols": 1}, "symbols"),
        ({"cells": [0, 1, 2, 3, 4, 4], "prey": 9}, "cells"),
        ({"cells": [0, 1, 2, 3, 4, 5], "prey": 5}, "cells"),
        ({"cells": [0, 1, 2, 3, 4, 25], "prey": 9}, "cells"),
    ],
)
def test_bad_settings_are_named(settings, argument):
    with pytest.raises(ValueError, match=f"^{argument} must be "):
        BoardExplorable(**settings)
