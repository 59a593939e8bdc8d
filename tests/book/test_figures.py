"""Every interactive figure on its built page, as a reader meets it who opens the book from a disk: by hand, by keys, by
ear, and in time."""

from __future__ import annotations

import json
import statistics

import pytest
from built_page import ACCESS, CHAPTERS, Visit, after_tab

SLIDERS = "input[type=range][data-key]"

each_chapter = pytest.mark.parametrize("chapter", CHAPTERS, indirect=True, scope="module")

SET = """async ([input, value]) => {
  const frame = () => new Promise(requestAnimationFrame);
  input.value = value;
  input.dispatchEvent(new Event('input', {bubbles: true}));
  await frame();
  await frame();
}"""
PICTURES = "all => all.map(e => e.tagName == 'CANVAS' ? e.toDataURL() : e.innerHTML).join()"
TIMING = """async input => {
  const ms = [], frame = () => new Promise(done => requestAnimationFrame(() => setTimeout(done, 0)));
  const [low, high] = [+input.min, +input.max], before = input.value;
  for (let i = 0; i < 40; i++) {
    await frame();
    input.value = low + (high - low) * ((i * 7) % 11) / 10;
    const start = performance.now();
    input.dispatchEvent(new Event('input', {bubbles: true}));
    document.body.offsetHeight;               // style and layout belong to the answer
    ms.push(performance.now() - start);
  }
  input.value = before; input.dispatchEvent(new Event('input', {bubbles: true}));
  return ms;
}"""
LABEL = """e => (e.getAttribute('aria-label') || e.getAttribute('aria-labelledby')
    || [...(e.labels || [])].map(l => l.textContent).join('') || e.textContent).trim()"""
NAMED = """e => e.closest('[aria-hidden=true]') || e.closest('[aria-label]')
    || e.getAttribute('aria-labelledby') || e.querySelector('title')"""


@pytest.fixture(scope="module")
def chapter(browser, built_site, request):
    """The page of a chapter, opened once for all that is asked of its figures; each test leaves it as it was."""
    with Visit(browser, built_site.as_uri(), reduced_motion="reduce") as visit:
        visit.page.add_init_script(script=ACCESS)
        yield visit.open(f"book/{request.param}")
        assert visit.errors == []


@each_chapter
def test_every_slider_moves_the_picture(chapter):
    for figure in chapter.locator("[data-explorable]").all():
        sliders = figure.locator(SLIDERS).all()
        assert any(slider.is_enabled() for slider in sliders), figure.get_attribute("data-explorable")
        for slider in sliders:
            if slider.is_disabled():  # the figure says that it has no effect on what is shown now
                continue
            key = slider.get_attribute("data-key")
            low, high, first = (slider.evaluate(f"e => e.{what}") for what in ("min", "max", "value"))
            pictures, values = set(), set()
            for value in (low, high, first):
                chapter.evaluate(SET, [slider.element_handle(), value])
                pictures.add(figure.locator("svg, canvas").evaluate_all(PICTURES))
                values.add(figure.get_attribute("data-values"))
            assert len(pictures) > 1, f"{key} does not move the picture"
            assert len(values) > 1, f"{key} does not move data-values"
            json.loads(figure.get_attribute("data-values"))


@each_chapter
def test_arrow_keys_move_it_and_everything_has_a_name(chapter):
    for figure in chapter.locator("[data-explorable]").all():
        for control in figure.locator("input, button, select, [role=slider]").all():
            assert control.evaluate(LABEL), control.evaluate("e => e.outerHTML.slice(0, 200)")
        for picture in figure.locator("svg").all():
            assert picture.evaluate(NAMED), "an svg has neither a name nor aria-hidden"
        slider = figure.locator(SLIDERS).first
        first, before = slider.input_value(), figure.get_attribute("data-values")
        slider.focus()
        for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "ArrowLeft", "ArrowLeft"):
            chapter.keyboard.press(key)
            chapter.wait_for_timeout(40)
            if figure.get_attribute("data-values") != before:
                break
        else:
            pytest.fail("the arrow keys change nothing")
        chapter.evaluate(SET, [slider.element_handle(), first])


@each_chapter
def test_tab_reaches_every_control_and_leaves(chapter):
    chapter.evaluate("access.remember()")
    for figure in chapter.locator("[data-explorable]").all():
        wanted = figure.evaluate("one => access.stops(one)")
        assert wanted > 0, "a figure without controls"
        figure.evaluate("one => { one.tabIndex = -1; one.focus(); }")
        reached = []
        for _ in range(wanted + 3):
            if (now := after_tab(chapter, figure)) is None:
                break
            reached.append(now)
        else:
            pytest.fail(f"the keyboard does not leave the figure: {reached[-1]}")
        assert len(reached) >= wanted, (wanted, reached)


@pytest.mark.clock
@each_chapter
def test_a_slider_answers_within_a_frame(chapter, frame):
    for slider in chapter.locator(f"[data-explorable] {SLIDERS}").all():
        ms = statistics.median(slider.evaluate(TIMING))
        assert ms <= frame, f"{slider.get_attribute('data-key')}: {ms:.1f} ms"
