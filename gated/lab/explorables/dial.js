// A whole NiNformer for the digits, with a dial on its gates. The numbers are those of gated.ninformer.

const SIDE = 8, PATCH = 2, PATCHES = 4, N = PATCHES * PATCHES, CHANGED = 1e-9;

function floats(text) {
  return Float64Array.from(new Float32Array(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer));
}

const gelu = (x) => x.map((v) => 0.5 * v * (1 + erf(v / Math.SQRT2)));
const plus = (x, y) => x.map((v, i) => v + y[i]);

// The maps of a row: W [outer, inner] and b [outer] on each row of x [rows, inner].
function linear({ W, b }, x) {
  const outer = b.length, inner = W.length / outer, rows = x.length / inner, y = new Float64Array(rows * outer);
  for (let r = 0; r < rows; r++) for (let o = 0; o < outer; o++) {
    const from = o * inner, at = r * inner;
    let sum = b[o];
    for (let i = 0; i < inner; i++) sum += W[from + i] * x[at + i];
    y[r * outer + o] = sum;
  }
  return y;
}

// The maps of a column: W x + b, x [inner, d]. This is how the tokens are mixed, without a transpose.
function fromLeft({ W, b }, x) {
  const outer = b.length, inner = W.length / outer, d = x.length / inner, y = new Float64Array(outer * d);
  for (let o = 0; o < outer; o++) {
    y.fill(b[o], o * d, (o + 1) * d);
    for (let i = 0; i < inner; i++) {
      const w = W[o * inner + i], from = i * d, at = o * d;
      for (let c = 0; c < d; c++) y[at + c] += w * x[from + c];
    }
  }
  return y;
}

// Mean 0 and variance 1 along each row, then scale and shift.
function norm({ W, b }, x) {
  const d = b.length, y = new Float64Array(x.length);
  for (let r = 0; r < x.length; r += d) {
    let mean = 0, variance = 0;
    for (let c = 0; c < d; c++) mean += x[r + c] / d;
    for (let c = 0; c < d; c++) variance += (x[r + c] - mean) ** 2 / d;
    const root = Math.sqrt(variance + 1e-5);
    for (let c = 0; c < d; c++) y[r + c] = ((x[r + c] - mean) / root) * W[c] + b[c];
  }
  return y;
}

// The parameters in the order of the module's state.
function network(weights, { d, T, C, F, classes, blocks }) {
  let at = 0;
  const take = (count) => weights.subarray(at, (at += count));
  const layer = (inner, outer) => ({ W: take(inner * outer), b: take(outer) });
  return {
    embed: layer(PATCH * PATCH, d),
    blocks: Array.from({ length: blocks }, () => ({
      norm: layer(1, d),
      tokenNorm: layer(1, d), tokenUp: layer(N, T), tokenDown: layer(T, N),
      channelNorm: layer(1, d), channelUp: layer(d, C), channelDown: layer(C, d),
      value: layer(d, d), up: layer(d, F), down: layer(F, d),
    })),
    head: layer(d, classes),
  };
}

// Patches [16, 4] to probabilities, gates after the dial, and the last block's tokens.
function run(net, patches, mix) {
  let x = linear(net.embed, patches);
  const gates = net.blocks.map((one) => {
    const normed = norm(one.norm, x), value = linear(one.value, normed);
    const mixed = plus(normed, fromLeft(one.tokenDown, gelu(fromLeft(one.tokenUp, norm(one.tokenNorm, normed)))));
    const inner = linear(one.channelDown, gelu(linear(one.channelUp, norm(one.channelNorm, mixed))));
    const gate = plus(mixed, inner).map((g) => 1 - mix + mix * g);
    const y = x.map((v, i) => v + value[i] * gate[i]);
    x = plus(y, linear(one.down, gelu(linear(one.up, norm(one.norm, y)))));
    return gate;
  });
  const d = x.length / N, mean = new Float64Array(d);
  x.forEach((v, i) => { mean[i % d] += v / N; });
  const logits = Array.from(linear(net.head, mean)), best = Math.max(...logits);
  const e = logits.map((l) => Math.exp(l - best)), sum = e.reduce((a, b) => a + b);
  return { probability: e.map((v) => v / sum), gates, tokens: x };
}

// 64 pixels, row by row, to patches [16, 4].
function cut(pixels) {
  const patches = new Float64Array(N * PATCH * PATCH);
  pixels.forEach((v, i) => {
    const row = Math.floor(i / SIDE), column = i % SIDE;
    patches[4 * (PATCHES * (row >> 1) + (column >> 1)) + PATCH * (row & 1) + (column & 1)] = v;
  });
  return patches;
}

// MACs of one block, with C = T, and F and gMLP's width 2 d.
const MACS = {
  ninformer: (n, T, d) => 4 * n * T * d + n * d * d + 4 * n * d * d,
  mixer: (n, T, d) => 4 * n * T * d,
  gmlp: (n, T, d) => 3 * n * d * d + n * n * d,
  vit: (n, T, d) => 4 * n * d * d + 2 * n * n * d + 4 * n * d * d,
};

function compute(s, g) {
  const d = g.shape.d, asked = `${s.gate_mix},${s.digit},${s.paint}`;
  if (g.asked !== asked) { // the other sliders need no new run
    const image = g.images.subarray(SIDE * SIDE * s.digit, SIDE * SIDE * (s.digit + 1));
    const pixels = image.map((v, i) => (s.paint[i] > 0 ? g.ink[1] : s.paint[i] < 0 ? g.ink[0] : v)), patches = cut(pixels);
    const other = patches.map((_, i) => patches[4 * g.order[i >> 2] + (i & 3)]);
    const [now, clean, shuffled] = [patches, cut(image), other].map((one) => run(g.net, one, s.gate_mix));
    Object.assign(g, { asked, pixels, now, clean, shuffled });
  }
  const { now, clean, shuffled } = g;
  const paint = cut(s.paint), bare = Array.from({ length: N }, (_, t) => +paint.subarray(4 * t, 4 * t + 4).every((v) => !v));
  const reach = bare.map((_, t) => {
    let moved = 0, size = 0;
    for (let i = t * d; i < (t + 1) * d; i++) {
      moved += (now.tokens[i] - clean.tokens[i]) ** 2;
      size += clean.tokens[i] ** 2;
    }
    return Math.sqrt(moved) / Math.sqrt(size);
  });
  const place = 10 * s.gate_mix, left = Math.min(9, Math.floor(place)), [a, b] = g.accuracy.slice(left, left + 2);
  const gates = now.gates[s.block], kinds = Object.keys(MACS), cost = (kind, n) => MACS[kind](n, s.hidden, s.dim);
  return {
    probability: now.probability, was: clean.probability,
    gate: bare.map((_, t) => gates[t * d + s.channel]), negative: gates.filter((v) => v < 0).length / gates.length,
    reach, changed: reach.filter((v, t) => bare[t] && v > CHANGED).length, bare,
    shuffle: Math.max(...shuffled.probability.map((p, k) => Math.abs(p - now.probability[k]))),
    accuracy: a + (place - left) * (b - a),
    macs: Object.fromEntries(kinds.map((kind) => [kind, cost(kind, s.tokens)])),
    shares: Object.fromEntries(kinds.slice(0, 3).map((kind) => [kind, g.counts.map((n) => cost(kind, n) / cost("vit", n))])),
    crossover: 2 * s.hidden - 1.5 * s.dim,
    regime: s.gate_mix === 0 ? "bag" : s.gate_mix === 1 ? "trained" : "between",
  };
}

const signed = (v) => v.toFixed(2).replace("-", "−");
const percent = (v) => (v <= CHANGED ? "0" : v < 0.0005 ? "< 0.1" : (100 * v).toFixed(v >= 0.0995 ? 0 : 1));
const group = (v, digits = 0) => v.toLocaleString("en-GB", { minimumFractionDigits: digits, maximumFractionDigits: digits });
const bare = (v) => v.bare.reduce((a, b) => a + b); // tokens without paint
const shade = (size) => (0.6 * size) / (1 + size);
const BLUE = "var(--gx-blue, #0072b2)", ORANGE = "var(--gx-orange, #c46a00)", GREY = "var(--gx-grey, #77808a)";

function frame(node, painted) {
  const [stroke, width, opacity] = painted ? [ORANGE, 2, "1"] : ["currentColor", 1, "0.2"];
  put(node, { stroke, "stroke-width": width, "stroke-opacity": opacity });
}

function render({ model, el }) {
  const keys = ["gate_mix", "digit", "block", "channel", "paint", "tokens", "hidden", "dim"];
  const fixed = ["shape", "labels", "accuracy", "ink", "counts", "order"];
  const g = Object.fromEntries(fixed.map((key) => [key, model.get(key)]));
  g.images = floats(model.get("images"));
  g.net = network(floats(model.get("weights")), g.shape);
  const fig = figure({ model, el }, { name: "dial", keys, draw, say });
  const marks = (name) => fig.all(`[data-${name}]`), strip = (name) => scale(fig.one(`[data-strip="${name}"]`));
  const at = Object.fromEntries(["probability", "dial", "accuracy", "count", "share"].map((name) => [name, strip(name)]));
  const pixels = marks("pixel"), gates = marks("gate"), signs = marks("sign"), reaches = marks("reach"), much = marks("much");
  const bars = marks("bar"), lines = marks("was"), numbers = marks("number");
  const names = { ninformer: "NiNformer", mixer: "Mixer", gmlp: "gMLP", vit: "ViT" };
  let shown = null; // the shades of the pixels now

  function draw() {
    const s = Object.fromEntries(keys.map((key) => [key, model.get(key)])), v = compute(s, g);
    shown = Array.from(g.pixels, (value) => (value - g.ink[0]) / (g.ink[1] - g.ink[0]));
    pixels.forEach((node, i) => {
      put(node, { "fill-opacity": 0.9 * shown[i], "aria-pressed": String(shown[i] > 0.5) });
      frame(node, s.paint[i]);
    });
    fig.one("[data-title]").textContent = `Gates: block ${s.block + 1}, channel ${s.channel + 1}`;
    v.gate.forEach((gate, t) => {
      put(gates[t], { fill: gate >= 0 ? BLUE : ORANGE, "fill-opacity": shade(Math.abs(gate)) });
      signs[t].textContent = signed(gate);
      put(reaches[t], { "fill-opacity": shade(5 * v.reach[t]) });
      frame(reaches[t], !v.bare[t]);
      much[t].textContent = percent(v.reach[t]);
    });
    v.probability.forEach((p, k) => {
      put(bars[k], { width: at.probability(p) - at.probability(0), fill: k === g.labels[s.digit] ? BLUE : GREY });
      put(lines[k], { x1: at.probability(v.was[k]), x2: at.probability(v.was[k]) });
      numbers[k].textContent = p.toFixed(2);
    });
    put(fig.one("[data-dot]"), { cx: at.dial(s.gate_mix), cy: at.accuracy(v.accuracy) });
    for (const kind in v.shares) {
      const points = g.counts.map((n, i) => [Math.log2(n), Math.log2(v.shares[kind][i])]).filter(([, y]) => Math.abs(y) <= at.share.high);
      const path = points.map(([x, y]) => `${at.count(x).toFixed(2)} ${at.share(y).toFixed(2)}`).join("L");
      put(fig.one(`[data-share="${kind}"]`), { d: "M" + (path || "0 0") });
    }
    const x = at.count(Math.log2(s.tokens)), star = at.count(Math.log2(Math.max(v.crossover, 1)));
    const visibility = v.crossover >= 4 && v.crossover <= 4096 ? "visible" : "hidden";
    put(fig.one("[data-now]"), { x1: x, x2: x });
    put(fig.one("[data-star]"), { cx: star, visibility });
    put(fig.one("[data-label]"), { x: star + 6, visibility });
    fig.callout(v.regime, model.get("words"));
    fig.write("changed", `${v.changed} of ${bare(v)}`);
    fig.write("negative", `${(100 * v.negative).toFixed(0)} %`);
    fig.write("shuffle", v.shuffle.toFixed(2));
    fig.write("accuracy", `${(100 * v.accuracy).toFixed(1)} %`);
    for (const kind in names) {
      fig.write(kind, `${group(v.macs[kind] / 1e6, v.macs[kind] < 1e7 ? 2 : 1)} M (${(v.macs[kind] / v.macs.vit).toFixed(2)})`);
    }
    fig.write("crossover", v.crossover >= 1 ? group(v.crossover) : "no n: always cheaper");
    return v;
  }

  function say(v) {
    const best = v.probability.indexOf(Math.max(...v.probability));
    return `Lambda ${model.get("gate_mix").toFixed(2)}: class ${best} with probability ${v.probability[best].toFixed(2)}. ` +
      `${v.changed} of ${bare(v)} tokens without paint changed. For ${model.get("tokens")} tokens a NiNformer block ` +
      `costs ${(v.macs.ninformer / v.macs.vit).toFixed(2)} times the multiply-adds of ViT's.`;
  }

  const { d, blocks } = g.shape, none = new Array(SIDE * SIDE).fill(0), count = { decode: (u) => u - 1, encode: (v) => v + 1 };
  slider(fig, { key: "gate_mix", label: "Dial λ", min: 0, max: 1, step: 0.01, show: (v) => v.toFixed(2) });
  slider(fig, { key: "channel", label: "Channel", min: 1, max: d, step: 1, show: (v) => `${v + 1}`, ...count });
  if (blocks > 1) choice(fig, { key: "block", label: "Block", options: Array.from({ length: blocks }, (_, l) => [l, `block ${l + 1}`]) });
  element(fig.controls, "span", { "aria-hidden": "true" }, "Test image of a");
  choice(fig, { key: "digit", label: "Test image", options: g.labels.map((label, i) => [i, String(label)]) });
  fig.all("[data-key=digit]").forEach((node, i) => put(node, { "aria-label": `Test image ${i + 1}, class ${g.labels[i]}` }));
  presets(fig, { label: "Paint", options: [
    ["one pixel in the corner", { paint: none.map((_, i) => (i ? 0 : 1)) }], ["wipe off all paint", { paint: none }],
  ] });
  const lower = { ...fig, controls: fig.one("[data-costs]") };
  const power = { decode: (u) => Math.round(2 ** u), encode: Math.log2 };
  slider(lower, { key: "tokens", label: "Tokens n", min: 2, max: 12, step: 0.05, show: (v) => group(v), ...power });
  slider(lower, { key: "hidden", label: "Widths T = C", min: 16, max: 2048, step: 16, show: (v) => group(v) });
  slider(lower, { key: "dim", label: "Channels d", min: 32, max: 1024, step: 32, show: (v) => group(v) });

  // The pixels: a press chooses ink, eraser or cloth by the pixel under it, and a drag goes on with that.
  const plane = fig.one("[data-digit]"), svg = plane.ownerSVGElement, cell = 23;
  put(svg, { role: "group" });
  let brush = null, focus = 0;
  const paint = (i) => {
    if (i >= 0 && model.get("paint")[i] !== brush) fig.set({ paint: model.get("paint").map((old, j) => (i === j ? brush : old)) });
  };
  const choose = (i) => { brush = model.get("paint")[i] ? 0 : shown[i] > 0.5 ? -1 : 1; };
  const under = (event) => {
    const box = svg.getBoundingClientRect(), ratio = svg.viewBox.baseVal.width / box.width;
    const column = Math.floor(((event.clientX - box.left) * ratio - plane.dataset.left) / cell);
    const row = Math.floor(((event.clientY - box.top) * ratio - plane.dataset.top) / cell);
    return Math.min(row, column) < 0 || Math.max(row, column) >= SIDE ? -1 : SIDE * row + column;
  };
  const goto = (i) => {
    put(pixels[focus], { tabindex: "-1" });
    put(pixels[focus = i], { tabindex: "0" });
    pixels[i].focus({ preventScroll: true });
  };
  pixels.forEach((node, i) => {
    const label = `Pixel in row ${Math.floor(i / SIDE) + 1}, column ${(i % SIDE) + 1}`;
    put(node, { role: "button", "aria-label": label, tabindex: i ? "-1" : "0" });
    node.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      node.setPointerCapture(event.pointerId);
      choose(i);
      goto(i);
      paint(i);
    });
    still(node);
    node.addEventListener("pointermove", (event) => { if (node.hasPointerCapture(event.pointerId)) paint(under(event)); });
    node.addEventListener("keydown", (event) => {
      const row = Math.floor(i / SIDE), column = i % SIDE, step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (step) goto(SIDE * ((row + step[0] + SIDE) % SIDE) + ((column + step[1] + SIDE) % SIDE));
      else if (event.key === " " || event.key === "Enter") {
        choose(i);
        paint(i);
      } else return;
      event.preventDefault();
    });
  });
  fig.update();
  return fig.stop;
}

export default { render };
