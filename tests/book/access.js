// What is asked of a page for whoever reads it otherwise.
window.access = (() => {
  // What is folded is read too.
  function unfold() {
    for (const details of document.querySelectorAll("details")) details.open = true;
  }

  // Of thousands of coloured words of code one of each kind stays apart, and formulas and named pictures lose their
  // insides, which no screen reader hears: axe then reads a chapter within a second.
  function fewer() {
    const kept = new Set();
    for (const word of document.querySelectorAll("pre span:not([id]), code span.pre")) {
      if (kept.has(word.className)) word.replaceWith(...word.childNodes);
      else kept.add(word.className);
    }
    const inside = "mjx-container > *, svg[aria-hidden=true] > *, [role=img] > svg > *";
    for (const part of document.querySelectorAll(inside)) part.remove();
  }

  // axe's own rules of contrast take most of its time: on every page `words` and `curves` look at all, also at what
  // overlaps, and links in a text look alike everywhere.
  async function serious(whole = false) {
    const rules = { "color-contrast": { enabled: whole }, "link-in-text-block": { enabled: whole } };
    const { violations } = await axe.run(document, { resultTypes: ["violations"], rules });
    return violations.filter((one) => ["serious", "critical"].includes(one.impact))
      .map(({ id, nodes }) => `${id}: ${nodes.length}, first ${nodes[0].html.slice(0, 200)}`);
  }

  function rgba(text) {
    const numbers = (text.match(/-?[\d.]+(e-?\d+)?/g) ?? [0, 0, 0, 0]).map(Number);
    const to255 = text.startsWith("color(") ? 255 : 1;
    return [...numbers.slice(0, 3).map((x) => x * to255), numbers[3] ?? 1];
  }

  const over = (a, b) => [0, 1, 2].map((i) => a[3] * a[i] + (1 - a[3]) * b[i]).concat(1);

  // The colour of the page behind an element, and the product of its own and its parents' opacity, each once.
  let grounds = new WeakMap(), opacities = new WeakMap();

  function ground(node) {
    if (!node) return [255, 255, 255, 1];
    const own = () => over(rgba(getComputedStyle(node).backgroundColor), ground(node.parentElement));
    if (!grounds.has(node)) grounds.set(node, own());
    return grounds.get(node);
  }

  function opacity(node) {
    if (!node) return 1;
    if (!opacities.has(node)) opacities.set(node, +getComputedStyle(node).opacity * opacity(node.parentElement));
    return opacities.get(node);
  }

  function light(colour) {
    const linear = (x) => (x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = colour.slice(0, 3).map((x) => linear(x / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  }

  function ratio(ink, below) {
    const [a, b] = [light(over(ink, below)), light(below)];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  }

  // What is painted under a point of a picture: its shapes that were drawn before, then the page's own grounds.
  function painted(e, x, y) {
    const layers = [];
    for (const one of document.elementsFromPoint(x, y)) {
      if (!(one instanceof SVGElement) || one instanceof SVGSVGElement || one.closest("text")) continue;
      if (!(one.compareDocumentPosition(e) & Node.DOCUMENT_POSITION_FOLLOWING)) continue;
      if (one instanceof SVGImageElement) return null; // a raster's and a gradient's colours cannot be read
      const style = getComputedStyle(one), shape = one instanceof SVGGeometryElement;
      const at = shape && new DOMPoint(x, y).matrixTransform(one.getScreenCTM().inverse());
      const inside = style.fill !== "none" && (!shape || one.isPointInFill(at));
      const paint = inside ? style.fill : style.stroke, colour = rgba(paint);
      if (!/^(rgb|color)/.test(paint)) return null;
      colour[3] *= opacity(one) * (inside ? +style.fillOpacity : +style.strokeOpacity);
      layers.push(colour);
    }
    return layers.reduceRight((below, layer) => over(layer, below), ground(e.closest("svg").parentElement));
  }

  // The contrast of a drawn word with what most of it stands on: the median of three points. A rim is a ground.
  function drawnRatio(e, ink, style) {
    const rimmed = style.paintOrder.startsWith("stroke") && parseFloat(style.strokeWidth) >= 2;
    const rim = rimmed ? rgba(style.stroke) : [0, 0, 0, 0];
    const box = e.getBoundingClientRect(), wide = box.width >= box.height;
    const found = [0.2, 0.5, 0.8].map((t) => {
      const [s, u] = wide ? [t, 0.5] : [0.5, t];
      const below = painted(e, box.left + s * box.width, box.top + u * box.height);
      return below ? ratio(ink, over(rim, below)) : 21;
    });
    return found.sort((a, b) => a - b)[1];
  }

  // Words below WCAG's 4.5:1, or 3:1 where they are large. A picture is brought into the window, since only there the
  // browser says what lies under a point.
  function words() {
    const seen = {}, walk = document.createTreeWalker(document.querySelector(".bd-container"), NodeFilter.SHOW_TEXT);
    [grounds, opacities] = [new WeakMap(), new WeakMap()];
    document.head.append(Object.assign(document.createElement("style"),
      { textContent: "html { scroll-behavior: auto !important; } svg, svg * { pointer-events: auto !important; }" }));
    let shown;
    for (let node; (node = walk.nextNode()); ) {
      const e = node.parentElement, style = getComputedStyle(e), drawn = e instanceof SVGElement;
      if (!node.data.trim() || !e.getClientRects().length || style.visibility !== "visible") continue;
      if (e.closest("script, style, .gx-aria, mjx-container, :disabled, label:has(:disabled), title")) continue;
      const ink = rgba(drawn ? style.fill : style.color), size = parseFloat(style.fontSize);
      if (drawn && (!ink[3] || style.fill === "none")) continue;
      ink[3] *= opacity(e);
      const large = size >= 24 || (size >= 18.6 && +style.fontWeight >= 700);
      if (drawn && shown !== (shown = e.closest("svg"))) shown.scrollIntoView({ block: "center" });
      const found = drawn ? drawnRatio(e, ink, style) : ratio(ink, ground(e));
      const key = `${e.tagName}.${e.className.baseVal ?? e.className} ${drawn ? style.fill : style.color}`;
      if (found < (large ? 3 : 4.5) - 0.005) seen[key] ??= `${found.toFixed(2)} ${node.data.trim().slice(0, 40)}`;
    }
    return seen;
  }

  // Curves of plots and of figures below WCAG's 3:1; grid lines, which are see-through, are no information.
  function curves() {
    const seen = {}, drawn = ":is(figure[role=img], [data-explorable]) svg :is(path, line, polyline, use)";
    for (const e of document.querySelectorAll(drawn)) {
      const style = getComputedStyle(e), ink = rgba(style.stroke);
      const opaque = style.stroke.startsWith("rgb") && ink[3] === 1 && opacity(e) === 1 && +style.strokeOpacity === 1;
      if (!opaque || parseFloat(style.strokeWidth) < 1) continue;
      if (e.closest("defs, clipPath") || !e.getClientRects().length) continue;
      const found = ratio(ink, ground(e.closest("svg").parentElement));
      if (found < 2.995) seen[`${style.stroke} ${style.strokeWidth}`] ??= found.toFixed(2);
    }
    return seen;
  }

  // What scrolls but cannot be scrolled by keys: no tab stop, and none inside. The rare formula within a line that is
  // wider than a phone is left to the browser, which gives it the keys where it can.
  function stuck() {
    return [...document.querySelectorAll("body *")].filter((one) => {
      const { overflowX, overflowY } = getComputedStyle(one), can = (way) => way === "auto" || way === "scroll";
      const across = can(overflowX) && one.scrollWidth > one.clientWidth + 1;
      const down = can(overflowY) && one.scrollHeight > one.clientHeight + 1;
      if (!(across || down) || !one.getClientRects().length || one.matches("span.math")) return false;
      return one.tabIndex < 0 && !one.querySelector("a[href], input, button, summary, [tabindex='0']");
    }).map((one) => one.outerHTML.slice(0, 150));
  }

  // How often Tab stops within a figure: a group of radio buttons is one stop.
  function stops(figure) {
    const groups = new Set(), all = figure.querySelectorAll("input, button, select, summary, a[href], [tabindex='0']");
    const shown = (one) => one.checkVisibility({ visibilityProperty: true });
    return [...all].filter((one) => !one.disabled && shown(one)).filter((one) => {
      if (one.type !== "radio") return true;
      return !groups.has(one.name) && groups.add(one.name);
    }).length;
  }

  const look = (e) => {
    const s = getComputedStyle(e), ring = s.outlineStyle === "none" ? 0 : parseFloat(s.outlineWidth);
    return { ring, edge: [s.boxShadow, s.borderColor, s.backgroundColor, s.stroke, s.strokeWidth, s.fill].join() };
  };
  const parts = (e) => [e, e.closest("label"), ...e.querySelectorAll("*")].filter(Boolean);
  let before = new WeakMap();

  // How everything looks while nothing has the focus.
  function remember() {
    document.activeElement.blur();
    before = new WeakMap([...document.querySelectorAll("*")].map((one) => [one, look(one)]));
  }

  // What has the focus within a part of the page, and whether it looks otherwise than before: a ring, or a mark's edge.
  function focused(whole) {
    const now = document.activeElement;
    if (!whole.contains(now) || now === whole) return null;
    const seen = parts(now).some((one) => {
      const then = before.get(one) ?? { ring: 0 }, today = look(one);
      return (today.ring >= 2 && then.ring < 2) || (then.edge !== undefined && then.edge !== today.edge);
    });
    return { seen, what: now.outerHTML.slice(0, 120) };
  }

  return { unfold, fewer, serious, words, curves, stuck, stops, remember, focused };
})();
