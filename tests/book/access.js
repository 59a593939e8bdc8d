// What test_access.py asks of a page.
window.access = (() => {
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

  // axe's own rule of contrast takes most of its time and skips what overlaps: `words` and `curves` look at all.
  async function serious() {
    const rules = { "color-contrast": { enabled: false } };
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

  function ground(node) {
    const layers = [];
    for (let up = node; up; up = up.parentElement) layers.push(rgba(getComputedStyle(up).backgroundColor));
    return layers.reduceRight((below, layer) => over(layer, below), [255, 255, 255, 1]);
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

  function opacity(node) {
    let whole = 1;
    for (let up = node; up; up = up.parentElement) whole *= +getComputedStyle(up).opacity;
    return whole;
  }

  // Words below WCAG's 4.5:1, or 3:1 where they are large; on figures' own marks the figure's tests look.
  function words() {
    const seen = {}, walk = document.createTreeWalker(document.querySelector(".bd-container"), NodeFilter.SHOW_TEXT);
    for (let node; (node = walk.nextNode()); ) {
      const e = node.parentElement, style = getComputedStyle(e), drawn = e instanceof SVGElement;
      if (!node.data.trim() || !e.getClientRects().length || style.visibility !== "visible") continue;
      if (e.closest("script, style, .gx-aria, mjx-container, :disabled, label:has(:disabled), title")) continue;
      const ink = rgba(drawn ? style.fill : style.color), size = parseFloat(style.fontSize);
      if (drawn && (!ink[3] || style.fill === "none")) continue;
      ink[3] *= opacity(e);
      const large = size >= 24 || (size >= 18.6 && +style.fontWeight >= 700);
      const found = ratio(ink, ground(drawn ? e.closest("svg").parentElement : e));
      if (drawn && found < 1.15) continue; // as good as the page's own colour: it stands on a mark
      const key = `${e.tagName}.${e.className.baseVal ?? e.className} ${drawn ? style.fill : style.color}`;
      if (found < (large ? 3 : 4.5) - 0.005) seen[key] ??= `${found.toFixed(2)} ${node.data.trim().slice(0, 40)}`;
    }
    return seen;
  }

  // Curves of the plots below WCAG's 3:1; grid lines, which are see-through, are no information.
  function curves() {
    const seen = {};
    for (const e of document.querySelectorAll("figure[role=img] > svg :is(path, line, use)")) {
      const style = getComputedStyle(e), ink = rgba(style.stroke);
      const opaque = style.stroke.startsWith("rgb") && +style.opacity === 1 && +style.strokeOpacity === 1;
      if (!opaque || parseFloat(style.strokeWidth) < 1.5 || e.closest("defs, clipPath")) continue;
      const found = ratio(ink, ground(e.closest("figure")));
      if (found < 2.995) seen[style.stroke] ??= found.toFixed(2);
    }
    return seen;
  }

  // How often Tab stops within a figure: a group of radio buttons is one stop.
  function stops(figure) {
    const groups = new Set(), all = figure.querySelectorAll("input, button, select, summary, a[href], [tabindex='0']");
    return [...all].filter((one) => !one.disabled && one.checkVisibility()).filter((one) => {
      if (one.type !== "radio") return true;
      return !groups.has(one.name) && groups.add(one.name);
    }).length;
  }

  // What has the focus within a figure, and whether that is seen.
  function focused(figure) {
    const now = document.activeElement;
    if (!figure.contains(now) || now === figure) return null;
    const parts = [now, now.closest("label"), ...now.querySelectorAll("*")].filter(Boolean);
    const seen = parts.some((one) => {
      const style = getComputedStyle(one), ring = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
      return ring || (one instanceof SVGElement && parseFloat(style.strokeWidth) >= 3);
    });
    return { seen, what: now.outerHTML.slice(0, 120) };
  }

  return { fewer, serious, words, curves, stops, focused };
})();
